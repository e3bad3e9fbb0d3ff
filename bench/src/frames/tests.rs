use super::*;
use crate::packet::{Route, parse_udp, udp_frame};
use crate::skip::unless_refused;

const PAYLOAD_BYTES: usize = 100;
const SENT_AT_ONCE: u64 = 40;

/// Packets of two flows, there and back.
fn packets() -> Vec<(Side, Vec<u8>)> {
    let mut payload: Vec<u8> = (0..PAYLOAD_BYTES as u8).collect();
    Stamp::default().write(&mut payload);
    let framed = [&[0x40, 0, 0, PAYLOAD_BYTES as u8], &payload[..]].concat();
    let mut packets = Vec::new();
    for last in [1, 2] {
        let route = |source: &str, destination: &str| Route {
            source_mac: [2, 0, 0, 0, 0, last],
            destination_mac: [2, 0, 0, 0, 1, last],
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
        };
        let there = route(&format!("10.0.0.{last}:5000"), "10.0.0.9:3478");
        let back = route("10.0.1.1:7000", &format!("10.0.0.9:5000{last}"));
        packets.push((Side::Client, udp_frame(&there, &framed)));
        packets.push((Side::Peer, udp_frame(&back, &payload)));
    }
    packets
}

/// A generator whose packets are all due.
fn generator() -> Option<FrameGenerator> {
    let links = unless_refused(DeviceMap::new(2).map_err(Into::into))?;
    let generator = unless_refused(FrameGenerator::with_links(&links, &packets()))?;
    generator.set(&Schedule {
        rate_pps: 1e9,
        duration_ns: SENT_AT_ONCE,
        quantum_ns: 0,
        unit: 1,
    });
    let words = generator.shared.words();
    words[LENGTH].store(u64::MAX / 2, Ordering::Relaxed);
    Some(generator)
}

#[test]
fn packets_leave_in_turn_whatever_was_in_the_frame_before() {
    let Some(generator) = generator() else { return };
    let packets = packets();
    let mut frame = vec![0xee; generator.frame.len()];
    frame[FRAMED_PAYLOAD..].copy_from_slice(&generator.frame[FRAMED_PAYLOAD..]);
    // The first packet is the only one due at the very start.
    for number in 0..SENT_AT_ONCE {
        let (_, packet) = &packets[number as usize % packets.len()];
        let tested = generator.program.test(&frame, 1).expect("a test run");
        if number % SAMPLED != 0 {
            assert!(tested.frame == *packet, "packet {number}");
            continue;
        }
        let stamp_at = packet.len() - PAYLOAD_BYTES;
        let (before, stamp) = tested.frame.split_at(stamp_at);
        assert!(before == &packet[..stamp_at], "packet {number}");
        let word = |at: usize| u32::from_ne_bytes(stamp[at..at + 4].try_into().expect("four"));
        assert_eq!(u64::from(word(Stamp::NUMBER_OFFSET)), number / SAMPLED + 1);
        assert!(stamp[Stamp::BYTES..] == packet[stamp_at + Stamp::BYTES..]);
        assert!(parse_udp(&tested.frame).is_some());
    }
    let words = generator.shared.words();
    assert_eq!(words[SENT].load(Ordering::Relaxed), SENT_AT_ONCE);
    assert_eq!(u64::from(generator.samples()), SENT_AT_ONCE / SAMPLED);
    let tested = generator.program.test(&frame, 1).expect("a test run");
    assert_eq!(tested.verdict, verdict::DROP, "everything was sent");
    assert!(tested.frame == frame);
}

#[test]
fn nothing_leaves_before_its_time_or_after_the_deadline() {
    let Some(generator) = generator() else { return };
    let words = generator.shared.words();
    let verdict = || {
        let tested = generator.program.test(&generator.frame, 1);
        tested.expect("a test run").verdict
    };
    verdict();
    assert_eq!(words[SENT].load(Ordering::Relaxed), 1);
    words[TICK].store(u64::MAX, Ordering::Relaxed);
    words[DUE].store(1, Ordering::Relaxed);
    assert_eq!(verdict(), verdict::DROP);
    words[TICK].store(0, Ordering::Relaxed);
    words[LENGTH].store(0, Ordering::Relaxed);
    assert_eq!(verdict(), verdict::DROP);
    assert_eq!(words[SENT].load(Ordering::Relaxed), 1);
}

#[test]
fn a_stamp_written_by_the_program_leaves_the_checksum_valid() {
    let Some(generator) = generator() else { return };
    let tested = generator.program.test(&generator.frame, 1);
    let frame = tested.expect("a test run").frame;
    let (source, destination, message) = parse_udp(&frame).expect("a datagram");
    let route = Route {
        source_mac: frame[6..12].try_into().expect("six bytes"),
        destination_mac: frame[0..6].try_into().expect("six bytes"),
        source,
        destination,
    };
    assert!(frame == udp_frame(&route, message));
}
