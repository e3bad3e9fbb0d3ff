//! What the program leaves to userspace, and what it drops.

use std::net::{SocketAddr, UdpSocket};

use towpath_ebpf_common::reason::Reason;
use towpath_ebpf_common::route::{LocalKey, NextHop, RouteKey, Settings, Target};
use towpath_ebpf_tests::packet::{Datagram, SERVICE_VLAN, VLAN, channel_data, fill_ipv4_checksum};
use towpath_ebpf_tests::shape::{NEXT_HOP, Shape, Way, address};
use towpath_ebpf_tests::{Program, Verdict, now};

/// A program with a route for each way and pair of families, or a loud skip.
fn program() -> Option<Program> {
    let program = Program::load().expect("the program loads");
    if program.is_none() {
        towpath_net::skip("loading programs into the kernel needs root");
    }
    let mut program = program?;
    program
        .set_next_hop(NEXT_HOP, Shape::plain(Way::ToPeer).next_hop())
        .expect("a next hop");
    for shape in all() {
        program
            .set_route(&shape.key(), &shape.target())
            .expect("a route");
    }
    Some(program)
}

/// Each way, within each family.
fn all() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for way in [Way::ToPeer, Way::ToClient, Way::Between] {
        for family in [0, 1] {
            let (from, to) = (family, family);
            shapes.push(Shape {
                from,
                to,
                ..Shape::plain(way)
            });
        }
    }
    shapes
}

fn datagram(shape: &Shape) -> Datagram {
    Datagram {
        traffic_class: 0,
        time_to_live: 64,
        ..shape.datagram(&[0x5a; 100], &[], &[])
    }
}

#[track_caller]
fn passes(program: &mut Program, frame: &[u8], reason: Reason) {
    let outcome = program.run(frame).expect("a run");
    assert_eq!((outcome.verdict, outcome.reason), (Verdict::Pass, reason));
    assert_eq!(
        outcome.packet, frame,
        "a packet that is passed is as it was"
    );
}

#[track_caller]
fn is_relayed(program: &mut Program, frame: &[u8]) {
    let outcome = program.run(frame).expect("a run");
    let expected = (Verdict::Transmit, Reason::Transmitted);
    assert_eq!((outcome.verdict, outcome.reason), expected);
}

/// The frame with bytes overwritten, from the start of the IP header, and its checksum made right.
fn with_ip_bytes(datagram: &Datagram, offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = datagram.to_bytes();
    let ip = datagram.ip_offset();
    frame[ip + offset..ip + offset + bytes.len()].copy_from_slice(bytes);
    if datagram.source.is_ipv4() {
        fill_ipv4_checksum(&mut frame[ip..ip + 20]);
    }
    frame
}

#[test]
fn the_packets_that_the_other_tests_damage_are_relayed_as_they_are() {
    let Some(mut program) = program() else { return };
    for shape in all() {
        is_relayed(&mut program, &datagram(&shape).to_bytes());
    }
}

#[test]
fn a_packet_for_another_address_or_port_has_no_route() {
    let Some(mut program) = program() else { return };
    for shape in all() {
        let arrived = datagram(&shape);
        let port = |mut address: SocketAddr, by: i32| {
            address.set_port((i32::from(address.port()) + by) as u16);
            address
        };
        let other = |original: SocketAddr, text: [&str; 2]| {
            SocketAddr::new(address(text[shape.from]).ip(), original.port())
        };
        for strange in [
            Datagram {
                destination: other(
                    arrived.destination,
                    ["198.51.100.77:0", "[2001:db8:1::77]:0"],
                ),
                ..arrived.clone()
            },
            Datagram {
                source: other(arrived.source, ["192.0.2.8:0", "[2001:db8:7::8]:0"]),
                ..arrived.clone()
            },
            Datagram {
                source: port(arrived.source, 1),
                ..arrived.clone()
            },
            Datagram {
                destination: port(arrived.destination, 1),
                ..arrived.clone()
            },
        ] {
            passes(&mut program, &strange.to_bytes(), Reason::NoRoute);
        }
    }
}

#[test]
fn rfc_8656_section_12_6_a_channel_without_a_route_is_passed() {
    let Some(mut program) = program() else { return };
    let arrived = datagram(&Shape::plain(Way::ToPeer));
    for channel in [0x4000, 0x4abd, 0x7fff] {
        let strange = Datagram {
            payload: channel_data(channel, b"data", &[]),
            ..arrived.clone()
        };
        passes(&mut program, &strange.to_bytes(), Reason::NoRoute);
    }
}

#[test]
fn stun_and_everything_else_at_the_listening_port_is_passed() {
    let Some(mut program) = program() else { return };
    for family in [0, 1] {
        let (from, to) = (family, family);
        let shape = Shape {
            from,
            to,
            ..Shape::plain(Way::ToPeer)
        };
        for payload in [
            &b"\x00\x01\x00\x00\x21\x12\xa4\x42aaaaaaaaaaaa"[..],
            &b"\x16\xfe\xfd handshake"[..],
            &b"\x3f\xff\x00\x00"[..],
            &b"\x80\x00\x00\x00"[..],
            &b"\x4a\xbc\x00"[..],
            &b""[..],
        ] {
            let arrived = Datagram {
                payload: payload.to_vec(),
                ..datagram(&shape)
            };
            passes(&mut program, &arrived.to_bytes(), Reason::NotChannelData);
        }
    }
}

#[test]
fn data_that_looks_like_channel_data_is_plain_udp_at_a_relayed_port() {
    let Some(mut program) = program() else { return };
    // A QUIC short header.
    let arrived = Datagram {
        payload: vec![0x4a; 60],
        ..datagram(&Shape::plain(Way::ToClient))
    };
    is_relayed(&mut program, &arrived.to_bytes());
}

#[test]
fn rfc_8656_section_12_5_more_behind_channel_data_than_padding_is_passed() {
    let Some(mut program) = program() else { return };
    let arrived = datagram(&Shape::plain(Way::ToPeer));
    for (data, tail, relayed) in [
        (0, 0, true),
        (0, 1, false),
        (1, 3, true),
        (1, 4, false),
        (2, 2, true),
        (2, 3, false),
        (3, 1, true),
        (3, 2, false),
        (4, 0, true),
        (4, 4, false),
    ] {
        let packet = Datagram {
            payload: channel_data(0x4abc, &vec![7; data], &vec![9; tail]),
            ..arrived.clone()
        };
        if relayed {
            is_relayed(&mut program, &packet.to_bytes());
        } else {
            passes(&mut program, &packet.to_bytes(), Reason::ChannelLength);
        }
    }
    let mut cut = channel_data(0x4abc, &[7; 100], &[]);
    cut.truncate(80);
    let cut = Datagram {
        payload: cut,
        ..arrived
    };
    passes(&mut program, &cut.to_bytes(), Reason::ChannelLength);
}

#[test]
fn fragments_are_passed() {
    let Some(mut program) = program() else { return };
    for shape in all() {
        let arrived = datagram(&shape);
        if shape.from == 1 {
            passes(
                &mut program,
                &with_ip_bytes(&arrived, 6, &[44]),
                Reason::Fragment,
            );
            continue;
        }
        for flags in [[0x20, 0], [0x20, 1], [0, 1], [0x1f, 0xff], [0x60, 0]] {
            let frame = with_ip_bytes(&arrived, 6, &flags);
            passes(&mut program, &frame, Reason::Fragment);
        }
    }
}

#[test]
fn ip_options_and_extension_headers_are_passed() {
    let Some(mut program) = program() else { return };
    for shape in all() {
        let arrived = datagram(&shape);
        if shape.from == 0 {
            for first in [0x46, 0x4f] {
                let frame = with_ip_bytes(&arrived, 0, &[first]);
                passes(&mut program, &frame, Reason::Options);
            }
        } else {
            for header in [0, 43, 60, 51] {
                let frame = with_ip_bytes(&arrived, 6, &[header]);
                passes(&mut program, &frame, Reason::NotUdp);
            }
        }
    }
}

#[test]
fn other_protocols_are_passed() {
    let Some(mut program) = program() else { return };
    for shape in all() {
        let arrived = datagram(&shape);
        let offset = if shape.from == 0 { 9 } else { 6 };
        for protocol in [1, 6, 58, 132, 136] {
            let frame = with_ip_bytes(&arrived, offset, &[protocol]);
            passes(&mut program, &frame, Reason::NotUdp);
        }
        let mut arp = arrived.to_bytes();
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        passes(&mut program, &arp, Reason::NotIp);
    }
}

#[test]
fn a_broadcast_frame_is_passed() {
    let Some(mut program) = program() else { return };
    for shape in all() {
        for mac in [[0xff; 6], [0x33, 0x33, 0, 0, 0, 1], [1, 0, 0x5e, 0, 0, 1]] {
            let arrived = Datagram {
                destination_mac: mac,
                ..datagram(&shape)
            };
            passes(&mut program, &arrived.to_bytes(), Reason::NotIp);
        }
    }
}

#[test]
fn two_vlan_tags_are_passed() {
    let Some(mut program) = program() else { return };
    for shape in all() {
        let arrived = Datagram {
            tags: vec![(SERVICE_VLAN, 7), (VLAN, 8)],
            ..datagram(&shape)
        };
        passes(&mut program, &arrived.to_bytes(), Reason::NotIp);
    }
}

#[test]
fn an_ipv4_header_with_a_wrong_checksum_is_passed_and_not_made_right() {
    let Some(mut program) = program() else { return };
    for shape in all().into_iter().filter(|shape| shape.from == 0) {
        let arrived = datagram(&shape);
        let right = arrived.to_bytes();
        for bit in 0..16 {
            let mut frame = right.clone();
            frame[arrived.ip_offset() + 10 + bit / 8] ^= 1 << (bit % 8);
            passes(&mut program, &frame, Reason::Malformed);
        }
    }
}

#[test]
fn a_wrong_version_in_the_ip_header_is_passed() {
    let Some(mut program) = program() else { return };
    for shape in all() {
        let arrived = datagram(&shape);
        let wrong: &[u8] = if shape.from == 0 {
            &[0x44, 0x40, 0x65, 0x55, 0x05]
        } else {
            &[0x45, 0x40, 0x70, 0x00]
        };
        for first in wrong {
            let frame = with_ip_bytes(&arrived, 0, &[*first]);
            passes(&mut program, &frame, Reason::Malformed);
        }
    }
}

#[test]
fn lengths_that_contradict_each_other_are_passed() {
    let Some(mut program) = program() else { return };
    for shape in all() {
        let arrived = datagram(&shape);
        let frame = arrived.to_bytes();
        let offset = if shape.from == 0 { 2 } else { 4 };
        let at = arrived.ip_offset() + offset;
        let length = u16::from_be_bytes([frame[at], frame[at + 1]]);
        for wrong in [length - 1, length + 1, length + 100, 0, 7, 27, 0xffff] {
            let frame = with_ip_bytes(&arrived, offset, &wrong.to_be_bytes());
            passes(&mut program, &frame, Reason::Malformed);
        }
        let at = arrived.udp_offset() + 4;
        for wrong in [0, 7, 8, 107, 0xffff_u16] {
            let mut frame = frame.clone();
            frame[at..at + 2].copy_from_slice(&wrong.to_be_bytes());
            passes(&mut program, &frame, Reason::Malformed);
        }
    }
}

#[test]
fn a_frame_cut_off_anywhere_is_passed() {
    let Some(mut program) = program() else { return };
    for shape in all() {
        for tag_in in [None, Some(VLAN)] {
            let frame = datagram(&Shape { tag_in, ..shape }).to_bytes();
            // The kernel runs no program on less than an Ethernet header.
            for length in 14..frame.len() {
                passes(&mut program, &frame[..length], Reason::Malformed);
            }
        }
    }
}

#[test]
fn rfc_8656_section_16_a_packet_on_its_last_hop_is_passed() {
    let Some(mut program) = program() else { return };
    for shape in all() {
        for time_to_live in [0, 1] {
            let arrived = Datagram {
                time_to_live,
                ..datagram(&shape)
            };
            passes(&mut program, &arrived.to_bytes(), Reason::TimeToLive);
        }
        let arrived = Datagram {
            time_to_live: 2,
            ..datagram(&shape)
        };
        is_relayed(&mut program, &arrived.to_bytes());
    }
}

#[test]
fn an_ipv6_packet_without_a_checksum_is_passed() {
    let Some(mut program) = program() else { return };
    for shape in all().into_iter().filter(|shape| shape.from == 1) {
        let arrived = datagram(&shape);
        let mut frame = arrived.to_bytes();
        frame[arrived.udp_offset() + 6..][..2].fill(0);
        passes(&mut program, &frame, Reason::ZeroChecksum);
    }
}

#[test]
fn a_packet_that_would_outgrow_the_next_hops_mtu_is_passed() {
    let Some(mut program) = program() else { return };
    for way in [Way::ToPeer, Way::ToClient, Way::Between] {
        for (from, to) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let shape = Shape {
                from,
                to,
                ..Shape::plain(way)
            };
            program
                .set_route(&shape.key(), &shape.target())
                .expect("a route");
            let headers =
                8 + if to == 0 { 20 } else { 40 } + if shape.target().channel == 0 { 0 } else { 4 };
            let longest = 1500 - headers;
            let fits = shape.datagram(&vec![1; longest], &[], &[]);
            is_relayed(&mut program, &fits.to_bytes());
            let too_big = shape.datagram(&vec![1; longest + 1], &[], &[]);
            passes(&mut program, &too_big.to_bytes(), Reason::TooBig);
        }
    }
}

#[test]
fn an_expired_route_is_no_route() {
    let Some(mut program) = program() else { return };
    for shape in all() {
        let frame = datagram(&shape).to_bytes();
        let mut expires = |expires: u64| {
            let target = Target {
                expires,
                ..shape.target()
            };
            program.set_route(&shape.key(), &target).expect("a route");
            program.run(&frame).expect("a run").reason
        };
        assert_eq!(expires(0), Reason::Expired);
        assert_eq!(expires(now()), Reason::Expired);
        assert_eq!(expires(now() + 3_600_000_000_000), Reason::Transmitted);
    }
}

#[test]
fn a_next_hop_that_is_not_known_passes_the_packet() {
    let Some(mut program) = program() else { return };
    let shape = Shape::plain(Way::ToPeer);
    let frame = datagram(&shape).to_bytes();
    let valid = shape.next_hop();
    let invalid = NextHop {
        state: NextHop::INVALID,
        ..valid
    };
    program.set_next_hop(NEXT_HOP, invalid).expect("a next hop");
    passes(&mut program, &frame, Reason::NoNextHop);
    program.set_next_hop(NEXT_HOP, valid).expect("a next hop");
    is_relayed(&mut program, &frame);
    let target = Target {
        next_hop: u32::MAX,
        ..shape.target()
    };
    program.set_route(&shape.key(), &target).expect("a route");
    passes(&mut program, &frame, Reason::NoNextHop);
}

#[test]
fn a_packet_for_a_virtual_cable_is_redirected_also_where_it_came_in() {
    let Some(mut program) = program() else { return };
    let shape = Shape::plain(Way::ToPeer);
    let frame = datagram(&shape).to_bytes();
    let transmitted = program.run(&frame).expect("a run");
    let cable = NextHop {
        state: NextHop::REDIRECT,
        ..shape.next_hop()
    };
    program.set_next_hop(NEXT_HOP, cable).expect("a next hop");
    let outcome = program.run(&frame).expect("a run");
    let expected = (Verdict::Redirect, Reason::Redirected);
    assert_eq!((outcome.verdict, outcome.reason), expected);
    assert_eq!(outcome.packet, transmitted.packet);
}

#[test]
fn a_next_hop_that_moved_is_followed_at_once() {
    let Some(mut program) = program() else { return };
    let shape = Shape::plain(Way::ToPeer);
    let frame = datagram(&shape).to_bytes();
    let moved = NextHop {
        destination_mac: [2, 9, 8, 7, 6, 5],
        ..shape.next_hop()
    };
    is_relayed(&mut program, &frame);
    program.set_next_hop(NEXT_HOP, moved).expect("a next hop");
    let outcome = program.run(&frame).expect("a run");
    assert_eq!(outcome.packet[..6], moved.destination_mac);
}

#[test]
fn everything_is_passed_while_forwarding_is_off_or_the_layout_is_another() {
    let Some(mut program) = program() else { return };
    let on = program.settings().expect("the settings");
    for off in [Settings { flags: 0, ..on }, Settings { layout: 99, ..on }] {
        program.set_settings(off).expect("the settings");
        for shape in all() {
            passes(&mut program, &datagram(&shape).to_bytes(), Reason::Disabled);
        }
    }
    program.set_settings(on).expect("the settings");
    is_relayed(&mut program, &datagram(&all()[0]).to_bytes());
}

#[test]
fn channel_data_in_channel_data_going_round_is_passed() {
    let Some(mut program) = program() else { return };
    let wrapped = |times| {
        let mut data = b"data".to_vec();
        for _ in 0..times {
            data = channel_data(0x4001, &data, &[]);
        }
        Datagram {
            payload: data,
            ..datagram(&Shape::plain(Way::ToClient))
        }
    };
    is_relayed(&mut program, &wrapped(4).to_bytes());
    passes(&mut program, &wrapped(5).to_bytes(), Reason::Nested);
    passes(&mut program, &wrapped(9).to_bytes(), Reason::Nested);
}

/// Userspace finds what is inside by the attributes; only it can tell whether that goes round.
#[test]
fn what_has_a_data_indication_within_its_wrappings_is_userspaces_to_judge() {
    let Some(mut program) = program() else { return };
    let wrapped = |times: usize, inner: &[u8]| {
        let mut data = inner.to_vec();
        for _ in 0..times {
            data = channel_data(0x4000, &data, &[]);
        }
        Datagram {
            payload: data,
            ..datagram(&Shape::plain(Way::ToClient))
        }
    };
    let indication = |kind: u8| {
        let mut message = vec![0, kind, 0, 40, 0x21, 0x12, 0xa4, 0x42];
        message.resize(60, 1);
        message
    };
    for times in 0..=4 {
        let frame = wrapped(times, &indication(0x17)).to_bytes();
        passes(&mut program, &frame, Reason::Nested);
        // Another message of STUN is data like any other.
        is_relayed(&mut program, &wrapped(times, &indication(0x01)).to_bytes());
    }
    // Where the wrapping's length is wrong it is no wrapping.
    let mut frame = wrapped(1, &indication(0x17));
    frame.payload[3] -= 1;
    frame.payload[2] = 1;
    is_relayed(&mut program, &frame.to_bytes());
}

/// What becomes of a packet when these are the relayed ports.
fn run(program: &mut Program, ports: u32, frame: &[u8]) -> (Verdict, Reason) {
    let settings = program.settings().expect("the settings");
    program
        .set_settings(Settings { ports, ..settings })
        .expect("the settings");
    let outcome = program.run(frame).expect("a run");
    (outcome.verdict, outcome.reason)
}

#[test]
fn a_relays_address_that_no_socket_holds_stays_silent() {
    let Some(mut program) = program() else { return };
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = UdpSocket::bind(address).expect("a socket");
        let heard = listener.local_addr().expect("its address");
        let client = SocketAddr::new(heard.ip(), 40_000);
        // A binding request, as any client sends it.
        let request = b"\x00\x01\x00\x00\x21\x12\xa4\x42aaaaaaaaaaaa";
        let frame = Datagram::new(client, heard, request).to_bytes();
        let own_port = Settings::ports(heard.port(), heard.port());
        let ways = [(0, Reason::NotChannelData), (own_port, Reason::NoRoute)];
        for (ports, reason) in ways {
            assert_eq!(
                run(&mut program, ports, &frame),
                (Verdict::Pass, reason),
                "not the relay's"
            );
        }
        let locals = [LocalKey::listening(heard), LocalKey::relaying(heard.ip())];
        for local in locals {
            program.add_local(local).expect("a local");
        }
        for (ports, reason) in ways {
            assert_eq!(
                run(&mut program, ports, &frame),
                (Verdict::Pass, reason),
                "somebody listens"
            );
        }
        drop(listener);
        for (ports, _) in ways {
            assert_eq!(
                run(&mut program, ports, &frame),
                (Verdict::Drop, Reason::Silent)
            );
        }
        run(&mut program, 0, &frame);
        let other = SocketAddr::new(heard.ip(), heard.port() ^ 1);
        let frame = Datagram::new(client, other, request).to_bytes();
        passes(&mut program, &frame, Reason::NotChannelData);
    }
}

#[test]
fn a_routed_packet_the_program_cannot_relay_stays_silent_too() {
    let Some(mut program) = program() else { return };
    let client = address("127.0.0.1:40000");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let local = socket.local_addr().expect("its address");
    let key = RouteKey::new(client, local, 0x4abc);
    let target = Target {
        next_hop: 7,
        ..Shape::plain(Way::ToPeer).target()
    };
    program.set_route(&key, &target).expect("a route");
    program.listen_alone(local).expect("the settings");
    let frame = Datagram::new(client, local, &channel_data(0x4abc, b"data", &[])).to_bytes();
    passes(&mut program, &frame, Reason::NoNextHop);
    drop(socket);
    let outcome = program.run(&frame).expect("a run");
    assert_eq!(
        (outcome.verdict, outcome.reason),
        (Verdict::Drop, Reason::Silent)
    );
}

#[test]
fn both_ends_of_the_port_range_are_relayed_ports_and_their_neighbours_are_not() {
    let Some(mut program) = program() else { return };
    let settings = program.settings().expect("the settings");
    program
        .set_settings(Settings {
            ports: Settings::ports(0x1234, 0x3412),
            ..settings
        })
        .expect("the settings");
    let shape = Shape::plain(Way::ToClient);
    for (port, is_relayed_port) in [
        (0x1233, false),
        (0x1234, true),
        (0x2000, true),
        (0x3412, true),
        (0x3413, false),
    ] {
        let mut arrived = datagram(&shape);
        arrived.destination.set_port(port);
        let key = RouteKey::new(arrived.source, arrived.destination, 0);
        program.set_route(&key, &shape.target()).expect("a route");
        if is_relayed_port {
            is_relayed(&mut program, &arrived.to_bytes());
        } else {
            passes(&mut program, &arrived.to_bytes(), Reason::ChannelLength);
        }
    }
}
