//! Who pays for a packet, what refuses it, and what is counted.

use std::sync::Barrier;

use towpath_ebpf_common::lease::quantum;
use towpath_ebpf_common::meter::{Class, Direction, FIRST_PEER_SLOT, GLOBAL_SLOT, Limits};
use towpath_ebpf_common::rate::{LimitWord, TICKS_PER_NANOSECOND_LOG2};
use towpath_ebpf_common::reason::Reason;
use towpath_ebpf_common::route::{RouteKey, Settings, Target, flag};
use towpath_ebpf_tests::shape::{NEXT_HOP, Shape, Way};
use towpath_ebpf_tests::{Program, Verdict, now};

const UP: u32 = FIRST_PEER_SLOT;
const DOWN: u32 = FIRST_PEER_SLOT + 1;
const DATA_BYTES: usize = 472;
/// What a packet of [`DATA_BYTES`] is charged where the peer is reached by IPv4.
const CHARGED: u64 = 500;

fn program() -> Option<Program> {
    let program = Program::load().expect("the program loads");
    if program.is_none() {
        towpath_net::skip("loading programs into the kernel needs root");
    }
    program
}

/// Sets a route whose slots pay, and returns its packet.
fn paid(program: &mut Program, shape: &Shape, up_slot: u32, down_slot: u32) -> Vec<u8> {
    let target = Target {
        up_slot,
        down_slot,
        ..shape.target()
    };
    program.set_route(&shape.key(), &target).expect("a route");
    program
        .set_next_hop(NEXT_HOP, shape.next_hop())
        .expect("a next hop");
    shape.datagram(&[7; DATA_BYTES], &[], &[]).to_bytes()
}

/// The slowest limit, with room for this many bytes.
fn budget(bytes: u64) -> u64 {
    LimitWord::new(LimitWord::MIN_BITS_PER_SECOND, bytes)
        .expect("a limit")
        .to_bits()
}

fn limits(up: u64, down: u64) -> Limits<u64> {
    Limits {
        up,
        down,
        ..Limits::default()
    }
}

/// More than any test uses.
const PLENTY: u64 = 1 << 30;

/// A time of a bucket that refuses everything for an hour, however long a test is held up.
fn exhausted() -> u64 {
    (now() + 3_600_000_000_000) << TICKS_PER_NANOSECOND_LOG2
}

fn exhaust(program: &mut Program, slot: u32) {
    let mut meter = program.meter(slot).expect("a meter");
    meter.up.spent_until = exhausted();
    meter.down.spent_until = exhausted();
    program.set_meter(slot, meter).expect("a meter");
}

/// Sends the packet until it is dropped; how often it was not.
fn until_dropped(program: &mut Program, frame: &[u8]) -> u64 {
    let mut relayed = 0;
    while program.run(frame).expect("a run").verdict == Verdict::Transmit {
        relayed += 1;
        assert!(relayed < 10_000, "the limit never holds");
    }
    relayed
}

#[track_caller]
fn expect(program: &mut Program, frame: &[u8], verdict: Verdict, reason: Reason) {
    let outcome = program.run(frame).expect("a run");
    assert_eq!((outcome.verdict, outcome.reason), (verdict, reason));
}

fn passed(direction: &Direction<u64>) -> (u64, u64, u64) {
    (direction.packets, direction.bytes, direction.payload_bytes)
}

#[test]
fn every_packet_is_counted_in_its_payers_direction_and_nowhere_else() {
    let Some(mut program) = program() else { return };
    for (way, up, down) in [
        (Way::ToPeer, UP, 0),
        (Way::ToClient, 0, DOWN),
        (Way::Between, UP, DOWN),
    ] {
        for (from, to) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let shape = Shape {
                from,
                to,
                ..Shape::plain(way)
            };
            let before = [UP, DOWN].map(|slot| program.meter(slot).expect("a meter"));
            let frame = paid(&mut program, &shape, up, down);
            let begin = now();
            for _ in 0..5 {
                expect(&mut program, &frame, Verdict::Transmit, Reason::Transmitted);
            }
            let after = [UP, DOWN].map(|slot| program.meter(slot).expect("a meter"));
            // What is charged is the plain leg: it is the peer's family that counts.
            let peer = if way == Way::ToClient { from } else { to };
            let charged = DATA_BYTES as u64 + 8 + if peer == 0 { 20 } else { 40 };
            let sum = |before: &Direction<u64>| {
                let (packets, bytes, payload) = passed(before);
                let data = DATA_BYTES as u64;
                (packets + 5, bytes + 5 * charged, payload + 5 * data)
            };
            if up != 0 {
                assert_eq!(passed(&after[0].up), sum(&before[0].up), "{shape:?}");
                assert!((begin..=now()).contains(&after[0].up.last_seen));
            } else {
                assert_eq!(passed(&after[0].up), passed(&before[0].up));
            }
            if down != 0 {
                assert_eq!(passed(&after[1].down), sum(&before[1].down), "{shape:?}");
                assert!((begin..=now()).contains(&after[1].down.last_seen));
            } else {
                assert_eq!(passed(&after[1].down), passed(&before[1].down));
            }
            assert_eq!(passed(&after[0].down), (0, 0, 0));
            assert_eq!(passed(&after[1].up), (0, 0, 0));
        }
    }
}

#[test]
fn a_peer_over_its_limit_loses_packets_and_they_are_counted() {
    let Some(mut program) = program() else { return };
    program
        .set_limits(UP, limits(budget(PLENTY), 0))
        .expect("limits");
    let frame = paid(&mut program, &Shape::plain(Way::ToPeer), UP, 0);
    for _ in 0..4 {
        expect(&mut program, &frame, Verdict::Transmit, Reason::Transmitted);
    }
    exhaust(&mut program, UP);
    for _ in 0..3 {
        expect(&mut program, &frame, Verdict::Drop, Reason::OverUp);
    }
    let meter = program.meter(UP).expect("a meter").up;
    assert_eq!(passed(&meter), (4, 4 * CHARGED, 4 * DATA_BYTES as u64));
    assert_eq!(
        (meter.dropped_packets, meter.dropped_bytes),
        (3, 3 * CHARGED)
    );
}

#[test]
fn what_passes_is_a_burst_and_what_the_rate_gives_meanwhile() {
    let Some(mut program) = program() else { return };
    program
        .set_limits(UP, limits(budget(20 * CHARGED), 0))
        .expect("limits");
    let frame = paid(&mut program, &Shape::plain(Way::ToPeer), UP, 0);
    let begin = now();
    let relayed = until_dropped(&mut program, &frame);
    let earned = (now() - begin) * LimitWord::MIN_BITS_PER_SECOND / 8 / 1_000_000_000;
    assert!(relayed >= 20, "{relayed}");
    assert!(relayed * CHARGED <= 20 * CHARGED + 64 + earned, "{relayed}");
}

#[test]
fn a_raised_limit_acts_on_the_next_packet() {
    let Some(mut program) = program() else { return };
    let frame = paid(&mut program, &Shape::plain(Way::ToPeer), UP, 0);
    let fast = LimitWord::new(400_000_000_000, 1500).expect("a limit");
    for raised in [fast.to_bits(), 0] {
        program
            .set_limits(UP, limits(budget(1500), 0))
            .expect("limits");
        until_dropped(&mut program, &frame);
        program.set_limits(UP, limits(raised, 0)).expect("limits");
        expect(&mut program, &frame, Verdict::Transmit, Reason::Transmitted);
    }
}

#[test]
fn a_share_of_the_adaptation_is_what_holds() {
    let Some(mut program) = program() else { return };
    let frame = paid(&mut program, &Shape::plain(Way::ToPeer), UP, 0);
    exhaust(&mut program, UP);
    expect(&mut program, &frame, Verdict::Transmit, Reason::Transmitted);
    program
        .set_limits(
            UP,
            Limits {
                up_share: budget(PLENTY),
                ..limits(0, 0)
            },
        )
        .expect("limits");
    expect(&mut program, &frame, Verdict::Drop, Reason::OverUp);
}

#[test]
fn a_packet_is_charged_to_both_of_a_circuits_peers_or_to_neither() {
    let Some(mut program) = program() else { return };
    program
        .set_limits(UP, limits(budget(PLENTY), 0))
        .expect("limits");
    program
        .set_limits(DOWN, limits(0, budget(PLENTY)))
        .expect("limits");
    let frame = paid(&mut program, &Shape::plain(Way::Between), UP, DOWN);
    for _ in 0..3 {
        expect(&mut program, &frame, Verdict::Transmit, Reason::Transmitted);
    }
    exhaust(&mut program, DOWN);
    let before = program.meter(UP).expect("a meter").up;
    for _ in 0..50 {
        expect(&mut program, &frame, Verdict::Drop, Reason::OverDown);
    }
    let after = program.meter(UP).expect("a meter").up;
    assert_eq!(after.spent_until, before.spent_until, "charged nothing");
    assert_eq!(passed(&after), passed(&before));
    assert_eq!(after.dropped_packets, 50);
    assert_eq!(
        program.meter(DOWN).expect("a meter").down.dropped_packets,
        50
    );
}

#[test]
fn a_class_over_its_limit_gives_the_peer_back_what_it_was_charged() {
    let Some(mut program) = program() else { return };
    program
        .set_limits(
            UP,
            Limits {
                class: u64::from(Class::Bulk.slot()),
                ..limits(budget(PLENTY), 0)
            },
        )
        .expect("limits");
    program
        .set_limits(Class::Bulk.slot(), limits(budget(PLENTY), 0))
        .expect("limits");
    let frame = paid(&mut program, &Shape::plain(Way::ToPeer), UP, 0);
    for _ in 0..3 {
        expect(&mut program, &frame, Verdict::Transmit, Reason::Transmitted);
    }
    exhaust(&mut program, Class::Bulk.slot());
    let before = program.meter(UP).expect("a meter").up.spent_until;
    for _ in 0..150 {
        expect(&mut program, &frame, Verdict::Drop, Reason::OverClass);
    }
    let after = program.meter(UP).expect("a meter").up.spent_until;
    assert_eq!(after, before);
}

#[test]
fn everybodys_limit_is_leased_and_refuses_without_charging_anybody() {
    let Some(mut program) = program() else { return };
    let global = budget(64_000);
    let settings = program.settings().expect("the settings");
    program
        .set_settings(Settings { global, ..settings })
        .expect("the settings");
    let class = Class::Interactive.slot();
    for slot in [UP, class] {
        program
            .set_limits(slot, limits(budget(PLENTY), 0))
            .expect("limits");
    }
    let frame = paid(&mut program, &Shape::plain(Way::ToPeer), UP, 0);
    let begin = now();
    let relayed = until_dropped(&mut program, &frame);
    let earned = (now() - begin) * LimitWord::MIN_BITS_PER_SECOND / 8 / 1_000_000_000;
    // The test may move between CPUs, and each keeps a part of what it leased.
    let leased = u64::from(quantum(LimitWord::from_bits(global)));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let bytes = relayed * CHARGED;
    assert!(bytes <= 64_000 + earned, "{bytes}");
    assert!(bytes + (leased + CHARGED) * cpus >= 64_000, "{bytes}");
    exhaust(&mut program, GLOBAL_SLOT);
    let spent = |program: &mut Program| {
        [UP, class].map(|slot| program.meter(slot).expect("a meter").up.spent_until)
    };
    let mut still = 0;
    for _ in 0..50 {
        let before = spent(&mut program);
        let outcome = program.run(&frame).expect("a run");
        if outcome.verdict == Verdict::Transmit {
            still += CHARGED;
            continue;
        }
        assert_eq!(outcome.reason, Reason::OverGlobal);
        assert_eq!(spent(&mut program), before);
    }
    assert!(still <= leased * cpus, "{still}");
}

#[test]
fn a_slot_that_is_not_there_is_never_unmetered() {
    let Some(mut program) = program() else { return };
    for (up, down) in [(u32::MAX, 0), (0, 4096), (UP, 1 << 20)] {
        let frame = paid(&mut program, &Shape::plain(Way::Between), up, down);
        let outcome = program.run(&frame).expect("a run");
        let expected = (Verdict::Pass, Reason::NoRoute);
        assert_eq!((outcome.verdict, outcome.reason), expected);
        assert_eq!(outcome.packet, frame);
    }
}

#[test]
fn a_packet_that_is_passed_is_not_charged() {
    let Some(mut program) = program() else { return };
    program
        .set_limits(UP, limits(budget(PLENTY), 0))
        .expect("limits");
    let shape = Shape::plain(Way::ToPeer);
    let frame = paid(&mut program, &shape, UP, 0);
    let mut last_hop = frame.clone();
    last_hop[14 + 8] = 1;
    towpath_ebpf_tests::packet::fill_ipv4_checksum(&mut last_hop[14..34]);
    expect(&mut program, &last_hop, Verdict::Pass, Reason::TimeToLive);
    let up = program.meter(UP).expect("a meter").up;
    assert_eq!((passed(&up), up.spent_until), ((0, 0, 0), 0));
}

#[test]
fn a_bucket_ahead_of_the_clock_refuses_and_one_far_behind_lets_a_burst_pass() {
    let Some(mut program) = program() else { return };
    program
        .set_limits(UP, limits(budget(1500), 0))
        .expect("limits");
    let frame = paid(&mut program, &Shape::plain(Way::ToPeer), UP, 0);
    exhaust(&mut program, UP);
    expect(&mut program, &frame, Verdict::Drop, Reason::OverUp);
    let mut meter = program.meter(UP).expect("a meter");
    meter.up.spent_until = 0;
    program.set_meter(UP, meter).expect("a meter");
    for _ in 0..3 {
        expect(&mut program, &frame, Verdict::Transmit, Reason::Transmitted);
    }
    until_dropped(&mut program, &frame);
}

#[test]
fn two_cpus_lose_no_count() {
    const RUNS: u32 = 100_000;
    let Some(mut program) = program() else { return };
    let settings = program.settings().expect("the settings");
    program
        .set_settings(Settings {
            flags: flag::FORWARD | flag::KEEP_TTL,
            ..settings
        })
        .expect("the settings");
    // One packet goes round and round: from a circuit's leg into itself.
    let shape = Shape::plain(Way::Between);
    let (source, local, channel) = shape.ends();
    let target = Target {
        destination: local,
        source,
        channel,
        up_slot: UP,
        down_slot: DOWN,
        ..shape.target()
    };
    let key = RouteKey::new(source, local, channel);
    program.set_route(&key, &target).expect("a route");
    program
        .set_next_hop(NEXT_HOP, shape.next_hop())
        .expect("a next hop");
    let fast = LimitWord::new(400_000_000_000, LimitWord::MAX_BURST_BYTES).expect("a limit");
    for slot in [UP, DOWN] {
        let limits = limits(fast.to_bits(), fast.to_bits());
        program.set_limits(slot, limits).expect("limits");
    }
    let frame = shape.datagram(&[7; DATA_BYTES], &[], &[]).to_bytes();
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                barrier.wait();
                program.repeat(&frame, RUNS).expect("a run");
            });
        }
    });
    for direction in [
        program.meter(UP).expect("a meter").up,
        program.meter(DOWN).expect("a meter").down,
    ] {
        let all = direction.packets + direction.dropped_packets;
        assert_eq!(all, u64::from(2 * RUNS));
        assert_eq!(direction.bytes, direction.packets * CHARGED);
        assert_eq!(direction.dropped_bytes, direction.dropped_packets * CHARGED);
    }
}
