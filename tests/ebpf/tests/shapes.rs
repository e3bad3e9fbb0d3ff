//! Every shape of packet, byte for byte.

use std::net::SocketAddr;

use towpath_ebpf_common::reason::Reason;
use towpath_ebpf_common::route::{NextHop, RouteKey, Target};
use towpath_ebpf_tests::packet::{Checksum, Datagram, SERVICE_VLAN, VLAN, channel_data};
use towpath_ebpf_tests::{Program, RUN_INTERFACE, Verdict, model};

const CLIENTS: [&str; 2] = ["192.0.2.7:40000", "[2001:db8:7::7]:40000"];
const LISTENERS: [&str; 2] = ["198.51.100.1:3478", "[2001:db8:1::1]:3478"];
const RELAYED: [&str; 2] = ["198.51.100.2:50000", "[2001:db8:1::2]:50000"];
const PEERS: [&str; 2] = ["203.0.113.9:7000", "[2001:db8:9::9]:7000"];
const CHANNEL: u16 = 0x4abc;
const OTHER_CHANNEL: u16 = 0x4001;
/// Lengths around the ends of words and of the smallest and the largest frame.
const LENGTHS: [usize; 12] = [0, 1, 2, 3, 4, 5, 17, 18, 160, 161, 1000, 1399];

#[derive(Clone, Copy, Debug)]
enum Way {
    ToPeer,
    ToClient,
    Between,
}

/// One shape of packet and what happens to it.
#[derive(Clone, Copy, Debug)]
struct Shape {
    way: Way,
    from: usize,
    to: usize,
    tag_in: Option<u16>,
    vlan_out: u16,
    interface: u32,
    checksum: Checksum,
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for way in [Way::ToPeer, Way::ToClient, Way::Between] {
        for (from, to) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            for tag_in in [None, Some(VLAN), Some(SERVICE_VLAN)] {
                for vlan_out in [0, 99] {
                    for checksum in [Checksum::Right, Checksum::None, Checksum::WrongBy(0x1234)] {
                        for interface in [RUN_INTERFACE, RUN_INTERFACE + 1] {
                            shapes.push(Shape {
                                way,
                                from,
                                to,
                                tag_in,
                                vlan_out,
                                interface,
                                checksum,
                            });
                        }
                    }
                }
            }
        }
    }
    shapes
}

impl Shape {
    fn key(&self) -> (SocketAddr, SocketAddr, u16) {
        match self.way {
            Way::ToPeer | Way::Between => (
                address(CLIENTS[self.from]),
                address(LISTENERS[self.from]),
                CHANNEL,
            ),
            Way::ToClient => (address(PEERS[self.from]), address(RELAYED[self.from]), 0),
        }
    }

    fn target(&self) -> Target {
        let (source, destination, channel) = match self.way {
            Way::ToPeer => (RELAYED[self.to], PEERS[self.to], 0),
            Way::ToClient => (LISTENERS[self.to], CLIENTS[self.to], CHANNEL),
            Way::Between => (LISTENERS[self.to], PEERS[self.to], OTHER_CHANNEL),
        };
        Target {
            destination: address(destination),
            source: address(source),
            channel,
            up_slot: 0,
            down_slot: 0,
            next_hop: 3,
            generation: 1,
            expires: u64::MAX,
        }
    }

    fn next_hop(&self) -> NextHop {
        NextHop {
            interface: self.interface,
            mtu: 1500,
            destination_mac: [0x02, 0xaa, 1, 2, 3, 4],
            source_mac: [0x02, 0xbb, 5, 6, 7, 8],
            vlan: self.vlan_out,
            state: NextHop::VALID,
        }
    }

    fn datagram(&self, data: &[u8], padding: &[u8], trailer: &[u8]) -> Datagram {
        let (source, local, channel) = self.key();
        let payload = match channel {
            0 => data.to_vec(),
            channel => channel_data(channel, data, padding),
        };
        Datagram {
            tags: self.tag_in.map(|tag| (tag, 0x2007)).into_iter().collect(),
            traffic_class: 0xb9,
            flow_label: 0x5_4321,
            identification: 0xbeef,
            dont_fragment: !data.len().is_multiple_of(3),
            time_to_live: 2 + data.len() as u8 % 200,
            checksum: self.checksum,
            trailer: trailer.to_vec(),
            ..Datagram::new(source, local, &payload)
        }
    }
}

#[test]
fn every_shape_of_packet_leaves_exactly_as_the_model_says() {
    let Some(mut program) = Program::load().expect("the program loads") else {
        return towpath_net::skip("loading programs into the kernel needs root");
    };
    let mut cases = 0;
    for shape in shapes() {
        let (source, local, channel) = shape.key();
        let (target, next_hop) = (shape.target(), shape.next_hop());
        let key = RouteKey::new(source, local, channel);
        program.set_route(&key, &target).expect("a route");
        program.set_next_hop(3, next_hop).expect("a next hop");
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
