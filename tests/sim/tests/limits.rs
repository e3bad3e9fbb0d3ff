//! A node's limits: what passes, who gets it, and how soon a change acts.
//!
//! Throughput is what packets carry on the network, headers included.

use std::time::Duration;

use towpath_proto::bandwidth::{Allowance, Bandwidth, BandwidthConfig, Priority, Sharing};
use towpath_proto::common::rate::LimitWord;
use towpath_proto::machine::Machine as _;
use towpath_sim::crypto;
use towpath_sim::dice::{Dice, PerMillion};
use towpath_sim::hub::Hub;
use towpath_sim::limiter;
use towpath_sim::network::Link;
use towpath_sim::seeds;

const MBIT: u64 = 1_000_000;
const SECOND: Duration = Duration::from_secs(1);
const ENDLESS: u64 = u64::MAX;
const FREE: LimitWord = LimitWord::UNLIMITED;

fn limit(bits_per_second: u64, burst_bytes: u64) -> LimitWord {
    LimitWord::new(bits_per_second, burst_bytes).expect("what is asked for makes sense")
}

fn hub(spokes: usize, config: BandwidthConfig) -> Hub {
    let limits = Bandwidth::new(&config).expect("what is asked for makes sense");
    let link = Link::perfect(Duration::from_millis(15));
    let mut hub = Hub::new(spokes as u64, spokes, link, limits, &crypto::seeded(1));
    hub.run(2 * SECOND);
    hub
}

fn peers(up: LimitWord, down: LimitWord) -> BandwidthConfig {
    BandwidthConfig {
        default: Allowance {
            up,
            down,
            floor: None,
        },
        ..BandwidthConfig::default()
    }
}

fn everybody(up: LimitWord, down: LimitWord) -> BandwidthConfig {
    BandwidthConfig {
        up,
        down,
        ..BandwidthConfig::default()
    }
}

/// Bits a second of so many bytes in ten seconds.
fn rate(bytes: u64) -> u64 {
    bytes * 8 / 10
}

#[track_caller]
fn assert_within(percent: u64, rate: u64, expected: u64) {
    let off = rate.abs_diff(expected) * 100;
    assert!(off <= percent * expected, "{rate} is not {expected}");
}

#[test]
fn an_upload_is_as_fast_as_its_limit() {
    for (bits, burst) in [
        (10 * MBIT, 256 * 1024),
        (10 * MBIT, 1500),
        (MBIT, 16 * 1024),
    ] {
        let mut hub = hub(1, peers(limit(bits, burst), FREE));
        hub.upload(0, ENDLESS);
        hub.run(SECOND);
        let before = hub.sent_to(0);
        hub.run(10 * SECOND);
        assert_within(2, rate(hub.sent_to(0) - before), bits);
    }
}

#[test]
fn a_download_is_as_fast_as_its_limit() {
    for (bits, burst) in [
        (10 * MBIT, 256 * 1024),
        (10 * MBIT, 3000),
        (2 * MBIT, 16 * 1024),
    ] {
        let mut hub = hub(1, peers(FREE, limit(bits, burst)));
        hub.download(0, ENDLESS);
        // The window that was open before is filled first.
        hub.run(5 * SECOND);
        let before = hub.came_from(0);
        hub.run(10 * SECOND);
        assert_within(2, rate(hub.came_from(0) - before), bits);
    }
}

#[test]
fn the_smallest_limit_passes_whole_packets_and_everything_arrives() {
    let slowest = limit(LimitWord::MIN_BITS_PER_SECOND, LimitWord::MIN_BURST_BYTES);
    let mut hub = hub(1, peers(slowest, slowest));
    hub.upload(0, 40_000);
    hub.download(0, 40_000);
    let took = hub.run_until_done(60 * SECOND).expect("nothing hangs");
    assert!(took >= 5 * SECOND, "{took:?} for five seconds' worth");
    assert!(took <= 8 * SECOND, "{took:?} for five seconds' worth");
    assert_eq!(
        (hub.delivered_to(0), hub.delivered_from(0)),
        (40_000, 40_000)
    );
}

#[test]
fn weights_hold_where_the_limit_for_all_binds_and_nobody_starves() {
    for (up, down) in [(true, false), (false, true)] {
        let all = limit(14 * MBIT, 32 * 1024);
        let config = everybody(if up { all } else { FREE }, if down { all } else { FREE });
        let mut hub = hub(3, config);
        for (spoke, priority) in Priority::ALL.into_iter().enumerate() {
            let peer = hub.id(spoke);
            hub.ask(move |machine, now| machine.set_priority(now, peer, priority))
                .expect("what is asked for makes sense");
            if up {
                hub.upload(spoke, ENDLESS);
            } else {
                hub.download(spoke, ENDLESS);
            }
        }
        hub.run(15 * SECOND);
        // What is read comes evenly; what comes does so as windows open.
        let passed = |hub: &Hub| {
            [0, 1, 2].map(|spoke| match up {
                true => hub.sent_to(spoke),
                false => hub.delivered_from(spoke),
            })
        };
        let before = passed(&hub);
        hub.run(10 * SECOND);
        let after = passed(&hub);
        let rates = [0, 1, 2].map(|spoke| rate(after[spoke] - before[spoke]));
        let total: u64 = rates.iter().sum();
        println!("up {up}: {rates:?}");
        // Of 1,228 bytes, 63 are headers.
        let expected = if up {
            14 * MBIT
        } else {
            14 * MBIT * 1165 / 1228
        };
        assert_within(2, total, expected);
        for (rate, weight) in rates.into_iter().zip([4, 2, 1]) {
            assert_within(5, rate, weight * expected / 7);
        }
    }
}

#[test]
fn what_one_does_not_want_goes_to_the_others_within_floor_and_ceiling() {
    let config = BandwidthConfig {
        up: limit(10 * MBIT, 32 * 1024),
        sharing: Sharing {
            weights: [100, 10, 1],
            floor: MBIT,
        },
        ..BandwidthConfig::default()
    };
    let mut hub = hub(3, config);
    let [first, second, third] = [0, 1, 2].map(|spoke| hub.id(spoke));
    hub.ask(move |machine, now| {
        machine
            .set_priority(now, first, Priority::Control)
            .expect("what is asked for makes sense");
        machine
            .set_priority(now, third, Priority::Bulk)
            .expect("what is asked for makes sense");
        let ceiling = Allowance {
            up: limit(3 * MBIT, 16 * 1024),
            ..Allowance::UNLIMITED
        };
        machine
            .set_limit(now, first, ceiling)
            .expect("what is asked for makes sense");
        machine
            .set_priority(now, second, Priority::Interactive)
            .expect("what is asked for makes sense");
    });
    for spoke in 0..3 {
        hub.upload(spoke, ENDLESS);
    }
    hub.run(2 * SECOND);
    let before = [0, 1, 2].map(|spoke| hub.sent_to(spoke));
    hub.run(10 * SECOND);
    let rates = [0, 1, 2].map(|spoke| rate(hub.sent_to(spoke) - before[spoke]));
    println!("{rates:?}");
    for (rate, expected) in rates.into_iter().zip([3 * MBIT, 6 * MBIT, MBIT]) {
        assert_within(5, rate, expected);
    }
}

#[test]
fn a_change_acts_at_once() {
    let mut hub = hub(1, peers(limit(64_000, 1500), FREE));
    hub.upload(0, ENDLESS);
    hub.run(5 * SECOND);
    let peer = hub.id(0);
    let set = |hub: &mut Hub, bits| {
        let allowance = Allowance {
            up: limit(bits, 16 * 1024),
            ..Allowance::UNLIMITED
        };
        hub.ask(move |machine, now| machine.set_limit(now, peer, allowance))
            .expect("what is asked for makes sense");
        let before = hub.sent_to(0);
        hub.run(SECOND);
        (hub.sent_to(0) - before) * 8
    };
    assert_within(5, set(&mut hub, 10 * MBIT), 10 * MBIT);
    // What had been saved up by then passes too.
    assert_within(15, set(&mut hub, MBIT), MBIT);
    assert_within(5, set(&mut hub, 20 * MBIT), 20 * MBIT);
}

#[test]
fn a_small_message_does_not_wait_for_bulk() {
    let mut hub = hub(3, everybody(limit(2 * MBIT, 4096), FREE));
    hub.upload(0, ENDLESS);
    hub.upload(1, ENDLESS);
    hub.run(5 * SECOND);
    let begin = hub.now();
    let ping = hub.upload(2, 64);
    hub.run(SECOND);
    let took = hub
        .arrived(2, ping)
        .expect("what is asked for makes sense")
        .saturating_since(begin);
    assert!(took < Duration::from_millis(50), "{took:?}");
}

#[test]
fn of_two_streams_the_one_of_higher_priority_goes_first() {
    let mut hub = hub(1, peers(limit(MBIT, 4096), FREE));
    let connection = hub.connection(0);
    let [bulk, control] =
        [(Priority::Bulk, 400_000), (Priority::Control, 50_000)].map(|(priority, bytes)| {
            let stream = hub.upload(0, bytes);
            hub.ask(move |machine, now| {
                machine.set_stream_priority(now, connection, stream, priority)
            })
            .expect("what is asked for makes sense");
            stream
        });
    let begin = hub.now();
    hub.run_until_done(10 * SECOND).expect("nothing hangs");
    let took = |stream| {
        hub.arrived(0, stream)
            .expect("what is asked for makes sense")
            .saturating_since(begin)
    };
    assert!(
        took(control) < Duration::from_millis(600),
        "{:?}",
        took(control)
    );
    assert!(took(bulk) > 3 * SECOND, "{:?}", took(bulk));
}

#[test]
fn datagrams_over_the_limit_are_dropped_and_counted_and_streams_leave_room_for_them() {
    let mut hub = hub(1, peers(FREE, limit(MBIT, 16 * 1024)));
    hub.download(0, ENDLESS);
    hub.run(20 * SECOND);
    // 100 kbit/s beside a stream that takes all there is.
    for _ in 0..100 {
        hub.datagram(0, vec![7; 1000]);
        hub.run(Duration::from_millis(100));
    }
    assert_eq!(hub.datagrams(), 100);
    let over = |hub: &mut Hub| hub.ask(|machine, _| machine.counters().over_down.value());
    assert_eq!(over(&mut hub), 0);
    for _ in 0..1000 {
        hub.datagram(0, vec![7; 1000]);
        hub.run(Duration::from_millis(2));
    }
    hub.run(SECOND);
    let dropped = over(&mut hub);
    assert_eq!(
        hub.datagrams() + dropped,
        1100,
        "none is lost without a count"
    );
    assert!(dropped > 500, "{dropped}");
    let peer = hub.id(0);
    let usage = hub
        .ask(move |machine, _| machine.usage(peer))
        .expect("what is asked for makes sense");
    assert_eq!(usage.down.dropped_packets, dropped);
}

#[test]
fn streams_of_a_limited_connection_take_turns() {
    let mut hub = hub(2, peers(FREE, limit(2 * MBIT, 4096)));
    for _ in 0..4 {
        hub.download(0, 500_000);
    }
    hub.run(4 * SECOND);
    let read = hub.read_of_streams();
    println!("{read:?}");
    let (least, most) = (
        read.iter().min().expect("what is asked for makes sense"),
        read.iter().max().unwrap(),
    );
    assert!(least * 2 > *most, "{read:?}");
    hub.run_until_done(20 * SECOND).expect("nothing hangs");
    assert_eq!(hub.delivered_from(0), 2_000_000);
}

#[test]
fn what_is_used_is_what_passes() {
    let mut hub = hub(2, everybody(limit(10 * MBIT, 16 * 1024), FREE));
    hub.upload(0, 300_000);
    hub.upload(1, 100_000);
    hub.download(1, 200_000);
    hub.run_until_done(10 * SECOND).expect("nothing hangs");
    hub.run(SECOND);
    for spoke in 0..2 {
        let peer = hub.id(spoke);
        let usage = hub
            .ask(move |machine, _| machine.usage(peer))
            .expect("what is asked for makes sense");
        assert_eq!(usage.up.bytes, hub.sent_to(spoke));
        assert_eq!(usage.down.bytes, hub.came_from(spoke));
    }
    let total = hub.ask(|machine, _| machine.bandwidth().usage_in_total());
    assert_eq!(total.up.bytes, hub.sent_to(0) + hub.sent_to(1));
}

#[test]
fn without_anything_to_do_nothing_is_woken() {
    let mut hub = hub(2, everybody(limit(2 * MBIT, 16 * 1024), FREE));
    hub.upload(0, 500_000);
    hub.upload(1, 500_000);
    hub.run_until_done(20 * SECOND).expect("nothing hangs");
    hub.run(SECOND);
    let before = hub.wakeups();
    hub.run(20 * SECOND);
    assert!(
        hub.wakeups() - before <= 4,
        "{} times",
        hub.wakeups() - before
    );
    let peer = hub.id(0);
    let usage = hub
        .ask(move |machine, _| machine.usage(peer))
        .expect("what is asked for makes sense");
    assert!(usage.up.limit.is_unlimited(), "its share was lifted");
    hub.ask(|machine, now| assert!(machine.poll_timeout().is_none_or(|at| at > now)));
}

#[test]
fn the_limiter_does_what_exact_arithmetic_says() {
    let mut all = limiter::Outcome::default();
    let mut runs = 0;
    for seed in seeds::from_environment() {
        let run = std::panic::catch_unwind(|| limiter::run(seed));
        all.add(&run.unwrap_or_else(|_| panic!("seed {seed} failed; TOWPATH_SIM_SEED={seed}")));
        runs += 1;
    }
    println!("{runs} runs: {all:?}");
    if runs >= seeds::DEFAULT_COUNT {
        let many = 10 * runs;
        assert!(
            all.passed > many && all.by_peer > many && all.by_all > many,
            "{all:?}"
        );
        assert!(all.changes > many && all.forgotten > 0, "{all:?}");
        assert!(all.close * 50 < all.passed, "{all:?}");
    }
}

/// Any limits, changed at any time, on a network that loses: all that was said arrives, byte for byte.
fn random(seed: u64) {
    let mut dice = Dice::new(seed).fork("limits", 0);
    let any = |dice: &mut Dice| {
        let rate = *dice.pick(&[500_000, 2 * MBIT, 20 * MBIT, 1000 * MBIT]);
        let burst = *dice.pick(&[1500, 16 * 1024, 256 * 1024]);
        if dice.one_in(3) {
            FREE
        } else {
            limit(rate, burst)
        }
    };
    let allowance = |dice: &mut Dice| Allowance {
        up: any(dice),
        down: any(dice),
        floor: None,
    };
    let config = BandwidthConfig {
        default: allowance(&mut dice),
        ..everybody(any(&mut dice), any(&mut dice))
    };
    let mut link =
        Link::perfect(dice.duration(Duration::from_millis(1)..Duration::from_millis(60)));
    link.loss = PerMillion(*dice.pick(&[0, 10_000, 50_000]));
    let spokes = 1 + dice.below(3);
    let limits = Bandwidth::new(&config).expect("what is asked for makes sense");
    let mut hub = Hub::new(seed, spokes, link, limits, &crypto::seeded(seed));
    hub.run(10 * SECOND);
    let mut expected = vec![(0, 0); spokes];
    for _ in 0..20 {
        let spoke = dice.below(spokes);
        let (peer, bytes) = (hub.id(spoke), dice.range(0..60_000));
        match dice.below(6) {
            0 => {
                hub.upload(spoke, bytes);
                expected[spoke].0 += bytes;
            }
            1 => {
                hub.download(spoke, bytes);
                expected[spoke].1 += bytes;
            }
            2 => {
                let allowance = allowance(&mut dice);
                hub.ask(move |machine, now| machine.set_limit(now, peer, allowance))
                    .expect("what is asked for makes sense");
            }
            3 => {
                let (up, down) = (any(&mut dice), any(&mut dice));
                hub.ask(move |machine, now| machine.set_global_limit(now, up, down));
            }
            4 => {
                let priority = *dice.pick(&Priority::ALL);
                hub.ask(move |machine, now| machine.set_priority(now, peer, priority))
                    .expect("what is asked for makes sense");
            }
            _ => hub.run(dice.duration(Duration::ZERO..SECOND)),
        }
    }
    hub.run_until_done(60 * SECOND).expect("nothing hangs");
    for (spoke, expected) in expected.into_iter().enumerate() {
        let arrived = (hub.delivered_to(spoke), hub.delivered_from(spoke));
        assert_eq!(arrived, expected, "spoke {spoke}");
    }
}

#[test]
fn whatever_the_limits_are_everything_arrives() {
    let seeds = seeds::from_environment();
    let every = if seeds.end - seeds.start > 1 { 5 } else { 1 };
    for seed in seeds.step_by(every) {
        random(seed);
    }
}
