use super::*;
use crate::packet::{Route, UDP_PAYLOAD_OFFSET, udp_frame};
use crate::skip::unless_refused;

const CLIENT: &str = "10.77.1.2:10000";
const LISTENER: &str = "10.77.1.11:3478";
const RELAYED: &str = "10.77.2.11:50000";
const PEER: &str = "10.77.2.2:30000";
const CHANNEL: u16 = 0x4001;
const OTHER_CHANNEL: u16 = 0x4fff;
const INTERFACE: u32 = 7;

fn address(text: &str) -> SocketAddrV4 {
    text.parse().expect("an address")
}

fn mac(last: u8) -> Mac {
    [2, 0x11, 0x22, 0x33, 0x44, last]
}

fn flow(from: &str, to: &str, source: &str, destination: &str, new_channel: u16) -> RewrittenFlow {
    RewrittenFlow {
        from: address(from),
        to: address(to),
        channel: CHANNEL,
        source: address(source),
        destination: address(destination),
        new_channel,
        source_mac: mac(3),
        destination_mac: mac(4),
        interface: INTERFACE,
    }
}

/// ChannelData to UDP, UDP to ChannelData, ChannelData to ChannelData.
fn flows() -> [RewrittenFlow; 3] {
    [
        flow(CLIENT, LISTENER, RELAYED, PEER, 0),
        flow(PEER, RELAYED, LISTENER, CLIENT, CHANNEL),
        flow("10.77.1.3:4444", LISTENER, LISTENER, CLIENT, OTHER_CHANNEL),
    ]
}

/// A program with [`flows`], where this process may load one.
fn rewriter() -> Option<Rewriter> {
    let rewriter = unless_refused(Rewriter::load(16).map_err(Into::into))?;
    for flow in &flows() {
        rewriter.insert(flow).expect("room for a flow");
    }
    Some(rewriter)
}

fn message(channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    if channel != 0 {
        message.extend_from_slice(&channel.to_be_bytes());
        message.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    }
    message.extend_from_slice(payload);
    message
}

fn arriving(flow: &RewrittenFlow, payload: &[u8]) -> Vec<u8> {
    let route = Route {
        source_mac: mac(1),
        destination_mac: mac(2),
        source: flow.from,
        destination: flow.to,
    };
    udp_frame(&route, &message(flow.old_channel(), payload))
}

/// The frame built from nothing, with checksums over all of it.
fn leaving(flow: &RewrittenFlow, payload: &[u8]) -> Vec<u8> {
    let route = Route {
        source_mac: flow.source_mac,
        destination_mac: flow.destination_mac,
        source: flow.source,
        destination: flow.destination,
    };
    udp_frame(&route, &message(flow.new_channel, payload))
}

fn payload(bytes: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

#[test]
fn every_flow_leaves_byte_for_byte_as_built_anew() {
    let Some(rewriter) = rewriter() else { return };
    for flow in &flows() {
        for bytes in [4, 5, 27, 172, 173, 999, 1200, 1452] {
            for seed in 0..50 {
                let payload = payload(bytes, seed);
                let frame = arriving(flow, &payload);
                let tested = rewriter.program.test(&frame, 1).expect("a test run");
                assert_eq!(tested.verdict, verdict::REDIRECT, "{flow:?} {bytes}");
                assert!(
                    tested.frame == leaving(flow, &payload),
                    "{flow:?}, {bytes} bytes, seed {seed}"
                );
            }
        }
    }
}

#[test]
fn a_checksum_that_comes_to_zero_leaves_as_all_ones() {
    let Some(rewriter) = rewriter() else { return };
    let checksum = UDP_CHECKSUM as usize;
    for flow in &flows() {
        // The last word makes the sum of the leaving packet whatever it is wanted to be.
        let mut payload = vec![0; 100];
        let sum = leaving(flow, &payload);
        let missing = u16::from_be_bytes([sum[checksum], sum[checksum + 1]]);
        payload[98..].copy_from_slice(&missing.to_be_bytes());
        let expected = leaving(flow, &payload);
        assert_eq!(expected[checksum..checksum + 2], [0xff, 0xff]);
        let tested = rewriter
            .program
            .test(&arriving(flow, &payload), 1)
            .expect("a test run");
        assert!(tested.frame == expected, "{flow:?}");
    }
}

#[test]
fn packets_without_a_flow_pass_as_they_are() {
    let Some(rewriter) = rewriter() else { return };
    let [to_peer, to_client, _] = flows();
    let payload = payload(172, 1);
    let stranger = RewrittenFlow {
        from: address("10.77.2.3:30000"),
        ..to_client
    };
    let unbound = RewrittenFlow {
        channel: OTHER_CHANNEL,
        ..to_peer
    };
    let other_port = RewrittenFlow {
        to: address("10.77.2.11:50001"),
        ..to_client
    };
    for flow in [stranger, unbound, other_port] {
        let frame = arriving(&flow, &payload);
        let tested = rewriter.program.test(&frame, 1).expect("a test run");
        assert_eq!(tested.verdict, verdict::PASS, "{flow:?}");
        assert!(tested.frame == frame, "{flow:?}");
    }
}

#[test]
fn unusual_packets_pass_as_they_are() {
    let Some(rewriter) = rewriter() else { return };
    let [to_peer, _, _] = flows();
    let frame = arriving(&to_peer, &payload(172, 2));
    let changed = |at: usize, byte: u8| {
        let mut frame = frame.clone();
        assert_ne!(frame[at], byte);
        frame[at] = byte;
        frame
    };
    let without_checksum = {
        let mut frame = frame.clone();
        frame[UDP_CHECKSUM as usize..][..2].fill(0);
        frame
    };
    let unusual = [
        ("not IPv4", changed(ETHER_TYPE as usize, 0x86)),
        ("options", changed(IP as usize, 0x46)),
        ("not UDP", changed(PROTOCOL as usize, 6)),
        ("first fragment", changed(FRAGMENT as usize, 0x20)),
        ("later fragment", changed(FRAGMENT as usize + 1, 1)),
        ("lengths disagree", changed(UDP_LENGTH as usize + 1, 1)),
        ("padding", changed(CHANNEL_LENGTH as usize + 1, 171)),
        ("no checksum", without_checksum),
        ("short", frame[..UDP_PAYLOAD_OFFSET + 3].to_vec()),
    ];
    for (what, frame) in unusual {
        let tested = rewriter.program.test(&frame, 1).expect("a test run");
        assert_eq!(tested.verdict, verdict::PASS, "{what}");
        assert!(tested.frame == frame, "{what}");
    }
}

#[test]
fn a_flow_without_an_interface_leaves_by_the_one_it_came_by() {
    let Some(rewriter) = rewriter() else { return };
    let [to_peer, _, _] = flows();
    let flow = RewrittenFlow {
        interface: 0,
        ..to_peer
    };
    rewriter.insert(&flow).expect("room for a flow");
    let frame = arriving(&flow, &payload(172, 3));
    let tested = rewriter.program.test(&frame, 1).expect("a test run");
    assert_eq!(tested.verdict, verdict::TX);
    assert!(tested.frame == leaving(&flow, &payload(172, 3)));
}

#[test]
fn a_pair_of_inverse_flows_can_be_run_over_and_over() {
    let Some(rewriter) = rewriter() else { return };
    // Back from the peer's side; its port has to count as a relayed one, so that it is plain UDP.
    let peer = "10.77.2.2:60000";
    let there = flow(CLIENT, LISTENER, RELAYED, peer, 0);
    let mut back = flow(RELAYED, peer, CLIENT, LISTENER, CHANNEL);
    (back.source_mac, back.destination_mac) = (mac(1), mac(2));
    for flow in [&there, &back] {
        rewriter.insert(flow).expect("room for a flow");
    }
    let frame = arriving(&there, &payload(172, 4));
    let even = rewriter.program.test(&frame, 1000).expect("a test run");
    assert!(even.frame == frame);
    let odd = rewriter.program.test(&frame, 1001).expect("a test run");
    assert!(odd.frame == leaving(&there, &payload(172, 4)));
}
