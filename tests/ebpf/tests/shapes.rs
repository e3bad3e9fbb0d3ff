//! Every shape of packet, byte for byte.

use towpath_ebpf_common::reason::Reason;
use towpath_ebpf_common::route::{NextHop, Target};
use towpath_ebpf_tests::packet::{Checksum, Datagram};
use towpath_ebpf_tests::shape::{NEXT_HOP, Shape, shapes};
use towpath_ebpf_tests::{Program, RUN_INTERFACE, Verdict, model};

/// Lengths around the ends of words and of the smallest and the largest frame.
const LENGTHS: [usize; 12] = [0, 1, 2, 3, 4, 5, 17, 18, 160, 161, 1000, 1399];

#[test]
fn every_shape_of_packet_leaves_exactly_as_the_model_says() {
    let Some(mut program) = Program::load().expect("the program loads") else {
        return towpath_net::skip("loading programs into the kernel needs root");
    };
    let mut cases = 0;
    for shape in shapes() {
        let (_, _, channel) = shape.ends();
        let (target, next_hop) = (shape.target(), shape.next_hop());
        let key = shape.key();
        program.set_route(&key, &target).expect("a route");
        program
            .set_next_hop(NEXT_HOP, next_hop)
            .expect("a next hop");
        for length in LENGTHS {
            let data: Vec<u8> = (0..length)
                .map(|index| (index * 7 + length) as u8)
                .collect();
            for (padding, trailer) in surroundings(length, channel) {
                let arrived = shape.datagram(&data, &padding, &trailer);
                check(&mut program, &shape, &arrived, &data, &target, &next_hop);
                cases += 1;
            }
        }
        program.remove_route(&key).expect("the route goes");
    }
    assert!(cases > 10_000, "{cases} cases");
}

/// What may be behind the data: padding to a multiple of four, and a frame's own padding.
fn surroundings(length: usize, channel: u16) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all = vec![(vec![], vec![]), (vec![], vec![0xee; 11])];
    let padding = if channel == 0 {
        0
    } else {
        length.next_multiple_of(4) - length
    };
    for bytes in 1..=padding {
        all.push((vec![0xa5; bytes], vec![]));
        all.push((vec![0; bytes], vec![0xee; 3]));
    }
    all
}

fn check(
    program: &mut Program,
    shape: &Shape,
    arrived: &Datagram,
    data: &[u8],
    target: &Target,
    next_hop: &NextHop,
) {
    let frame = arrived.to_bytes();
    let outcome = program.run(&frame).expect("a run");
    let from_ipv4 = arrived.source.is_ipv4();
    let to_ipv4 = target.destination.is_ipv4();
    if arrived.checksum == Checksum::None && !(from_ipv4 && to_ipv4) {
        assert_eq!(outcome.verdict, Verdict::Pass, "{shape:?}");
        assert_eq!(outcome.reason, Reason::ZeroChecksum, "{shape:?}");
        assert_eq!(outcome.packet, frame, "{shape:?}");
        return;
    }
    let (verdict, reason) = if shape.interface == RUN_INTERFACE {
        (Verdict::Transmit, Reason::Transmitted)
    } else {
        (Verdict::Redirect, Reason::Redirected)
    };
    let expected = model::relayed(arrived, data, target, next_hop).to_bytes();
    assert_eq!(outcome.reason, reason, "{shape:?} {} bytes", data.len());
    assert_eq!(outcome.verdict, verdict, "{shape:?}");
    assert!(
        outcome.packet == expected,
        "{shape:?} {} bytes\n  got      {:02x?}\n  expected {expected:02x?}",
        data.len(),
        outcome.packet
    );
}
