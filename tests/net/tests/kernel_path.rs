//! What the kernel path does with every shape of packet, on real links: relays it as the next router
//! would want it, or leaves it to userspace, which relays it all the same.

use std::time::Duration;

use towpath_ebpf_common::reason::Reason;
use towpath_net::{
    Addresses, Content, Datagram, Driver, Flow, KernelLab, KernelMode, Kind, Packet, Pinned,
    Relayed, Server, ServerOptions, Shape, USER, Wire,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server with the kernel path, and eyes on the far ends of its links.
struct Rig {
    client: Wire,
    peer: Wire,
    relay_macs: [[u8; 6]; 2],
    pinned: Pinned,
    _server: Server,
    lab: KernelLab,
}

impl Rig {
    fn start(mode: KernelMode) -> Option<Self> {
        let lab = KernelLab::new(&[])?;
        let options = lab.options(mode);
        Some(Self::with(lab, &options))
    }

    fn with(lab: KernelLab, options: &ServerOptions) -> Self {
        let server = Server::start(Kind::Towpath(Driver::Auto), &lab.relay, options);
        Self {
            client: Wire::open(&lab.client, "eth0"),
            peer: Wire::open(&lab.peer, "eth0"),
            relay_macs: ["eth0", "eth1"].map(|interface| lab.relay.mac(interface)),
            pinned: Pinned::open(lab.pins()),
            _server: server,
            lab,
        }
    }

    fn flow(&self, client: &Addresses, peer: &Addresses) -> Flow {
        // The peer is known from here on.
        self.lab.peer.knock(peer.relayed);
        Flow::open(&self.lab, USER, client, peer)
    }

    fn to_relay_from_client(&self, packet: Packet) -> Datagram {
        packet.on(self.client.mac(), self.relay_macs[0])
    }

    fn to_relay_from_peer(&self, packet: Packet) -> Datagram {
        packet.on(self.peer.mac(), self.relay_macs[1])
    }

    /// What comes out of the peer's wire for what was sent by the client.
    fn at_peer(&self, expected: &Packet) -> Datagram {
        arrives(&self.peer, expected)
    }

    fn at_client(&self, expected: &Packet) -> Datagram {
        arrives(&self.client, expected)
    }
}

fn arrives(wire: &Wire, expected: &Packet) -> Datagram {
    let found = wire.find(PATIENCE, |content| match content {
        Content::Udp(datagram) if expected.is(&datagram) => Some(datagram),
        Content::Udp(_) | Content::Fragment | Content::Icmp(..) | Content::Other => None,
    });
    found.unwrap_or_else(|| panic!("{expected:?} did not arrive"))
}

/// Bytes that differ from those of other lengths.
fn data(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + length) as u8).collect()
}

fn family_pairs() -> [(Addresses, Addresses); 4] {
    let (v4, v6) = (Addresses::v4(), Addresses::v6());
    [(v4, v4), (v4, v6), (v6, v4), (v6, v6)]
}

/// Every family pair, lengths odd and even, both ways: the payload as it was, addresses of the relay,
/// link addresses of the hop, one hop less, DSCP and ECN as they were, every checksum right.
fn relayed_packets_are_what_a_router_would_send(mode: KernelMode) {
    const CLASS: u8 = 0xB9;
    let Some(rig) = Rig::start(mode) else { return };
    for (client, peer) in family_pairs() {
        let flow = rig.flow(&client, &peer);
        let before = rig.pinned.relayed();
        let lengths = [0, 1, 2, 3, 4, 5, 31, 100, 171, 172, 1000, 1200, 1400];
        for length in lengths {
            let data = data(length);
            let sent = Datagram {
                hops: 17,
                traffic_class: CLASS,
                ..rig.to_relay_from_client(flow.from_client(&data))
            };
            rig.client.send(&sent.frame());
            let came = rig.at_peer(&flow.at_peer(&data));
            assert_eq!((came.hops, came.traffic_class), (16, CLASS), "{came:?}");
            assert_eq!(came.source_mac, rig.relay_macs[1], "{came:?}");
            let sent = Datagram {
                hops: 2,
                traffic_class: CLASS,
                ..rig.to_relay_from_peer(flow.from_peer(&data))
            };
            rig.peer.send(&sent.frame());
            let came = rig.at_client(&flow.at_client(&data));
            assert_eq!((came.hops, came.traffic_class), (1, CLASS), "{came:?}");
            assert_eq!(came.source_mac, rig.relay_macs[0], "{came:?}");
        }
        let relayed = rig.pinned.relayed() - before;
        let expected = 2 * lengths.len() as u64;
        assert_eq!(relayed, expected, "{:?}", rig.pinned.reasons());
    }
}

/// Padding behind ChannelData, and bytes behind the datagram: relayed in the kernel without them.
fn padding_is_left_off(mode: KernelMode) {
    let Some(rig) = Rig::start(mode) else { return };
    for (client, peer) in family_pairs() {
        let flow = rig.flow(&client, &peer);
        let before = rig.pinned.relayed();
        let data = data(5);
        let mut padded = flow.from_client(&data);
        padded.payload.extend([0; 3]);
        rig.client.send(&rig.to_relay_from_client(padded).frame());
        rig.at_peer(&flow.at_peer(&data));
        let shape = Shape {
            trailing_bytes: 7,
            ..Shape::default()
        };
        let sent = rig.to_relay_from_peer(flow.from_peer(&data));
        rig.peer.send(&sent.shaped(shape));
        rig.at_client(&flow.at_client(&data));
        let relayed = rig.pinned.relayed() - before;
        assert_eq!(relayed, 2, "{:?}", rig.pinned.reasons());
    }
}

/// What the kernel leaves to userspace for `reason`, which relays it.
fn userspace_relays(rig: &Rig, reason: Reason, times: u64, relay: impl FnOnce()) {
    let (before, relayed) = (rig.pinned.count(reason), rig.pinned.relayed());
    relay();
    let passed = rig.pinned.count(reason) - before;
    assert_eq!(passed, times, "{reason:?}: {:?}", rig.pinned.reasons());
    assert_eq!(rig.pinned.relayed(), relayed, "{:?}", rig.pinned.reasons());
}

fn odd_packets_are_left_to_userspace(mode: KernelMode) {
    let Some(mut rig) = Rig::start(mode) else {
        return;
    };
    for (client, peer) in family_pairs() {
        let mut flow = rig.flow(&client, &peer);
        let v4_client = client.client.is_ipv4();
        let data = data(333);
        if v4_client {
            let shape = Shape {
                option_words: 1,
                ..Shape::default()
            };
            userspace_relays(&rig, Reason::Options, 1, || {
                let sent = rig.to_relay_from_client(flow.from_client(&data));
                rig.client.send(&sent.shaped(shape));
                rig.at_peer(&flow.at_peer(&data));
            });
        }
        userspace_relays(&rig, Reason::TimeToLive, 1, || {
            let sent = Datagram {
                hops: 1,
                ..rig.to_relay_from_client(flow.from_client(&data))
            };
            rig.client.send(&sent.frame());
            rig.at_peer(&flow.at_peer(&data));
        });
        if v4_client && peer.peer.is_ipv6() {
            let shape = Shape {
                no_udp_checksum: true,
                ..Shape::default()
            };
            userspace_relays(&rig, Reason::ZeroChecksum, 1, || {
                let sent = rig.to_relay_from_client(flow.from_client(&data));
                rig.client.send(&sent.shaped(shape));
                rig.at_peer(&flow.at_peer(&data));
            });
        }
        a_fragmented_datagram_arrives_whole(&mut rig, &mut flow);
    }
}

/// Two fragments from the client's own stack: neither is taken for a datagram.
fn a_fragmented_datagram_arrives_whole(rig: &mut Rig, flow: &mut Flow) {
    let large = data(1900);
    let reason = Reason::Fragment;
    let (before, relayed) = (rig.pinned.count(reason), rig.pinned.relayed());
    flow.probe.send_on_channel(flow.channel, &large);
    let mut buffer = vec![0; 4096];
    flow.socket
        .set_read_timeout(Some(PATIENCE))
        .expect("20 s is not zero");
    let came = loop {
        let (bytes, from) = flow.socket.recv_from(&mut buffer).expect("it arrives");
        if bytes == large.len() {
            break (&buffer[..bytes], from);
        }
    };
    assert_eq!(came, (&large[..], flow.relayed));
    let passed = rig.pinned.count(reason) - before;
    assert!(passed >= 2, "{:?}", rig.pinned.reasons());
    assert_eq!(rig.pinned.relayed(), relayed, "{:?}", rig.pinned.reasons());
}

/// The header that goes in front makes some packets too large for the client's link.
fn what_would_outgrow_the_link_is_left_to_userspace(mode: KernelMode) {
    let Some(rig) = Rig::start(mode) else { return };
    for (client, peer) in family_pairs() {
        let mut flow = rig.flow(&client, &peer);
        let headers = |ip: std::net::IpAddr| if ip.is_ipv4() { 28 } else { 48 };
        let largest_in = 1500 - headers(peer.peer);
        let largest_out = 1500 - headers(client.client) - 4;
        let before = rig.pinned.relayed();
        let fits = data(largest_in.min(largest_out));
        let sent = rig.to_relay_from_peer(flow.from_peer(&fits));
        rig.peer.send(&sent.frame());
        rig.at_client(&flow.at_client(&fits));
        let relayed = rig.pinned.relayed() - before;
        assert_eq!(relayed, 1, "{:?}", rig.pinned.reasons());
        if largest_in <= largest_out {
            continue;
        }
        while flow.probe.receive(Duration::from_millis(1)).is_some() {}
        userspace_relays(&rig, Reason::TooBig, 1, || {
            let large = data(largest_in);
            let sent = rig.to_relay_from_peer(flow.from_peer(&large));
            rig.peer.send(&sent.frame());
            let number = Flow::CHANNEL;
            let data = large;
            let received = flow.probe.receive(PATIENCE);
            assert_eq!(received, Some(Relayed::Channel { number, data }));
        });
    }
}

/// A peer that is another client's relayed address: userspace, and nothing loops.
fn clients_of_one_relay_reach_each_other(mode: KernelMode) {
    let Some(rig) = Rig::start(mode) else { return };
    let v4 = Addresses::v4();
    let mut one = rig.flow(&v4, &v4);
    let mut other = Flow::to(
        &rig.lab,
        USER,
        &v4,
        one.relayed,
        rig.lab.peer.bind_any(v4.peer),
    );
    let channel = Flow::CHANNEL + 1;
    one.probe
        .bind_channel(channel, other.relayed)
        .expect("a relayed address is a peer");
    let before = rig.pinned.relayed();
    for length in [1, 100, 1200] {
        other.probe.send_on_channel(other.channel, &data(length));
        let received = one.probe.receive(PATIENCE);
        let data = data(length);
        let number = channel;
        assert_eq!(received, Some(Relayed::Channel { number, data }));
    }
    assert_eq!(rig.pinned.relayed(), before, "{:?}", rig.pinned.reasons());
}

/// The peer's hardware is replaced: what is sent to it follows, in the kernel.
fn traffic_follows_a_neighbour_with_a_new_address(mode: KernelMode) {
    const NEW: &str = "02:00:00:00:77:07";
    let Some(rig) = Rig::start(mode) else { return };
    let v4 = Addresses::v4();
    let flow = rig.flow(&v4, &v4);
    let data = data(64);
    rig.client
        .send(&rig.to_relay_from_client(flow.from_client(&data)).frame());
    rig.at_peer(&flow.at_peer(&data));
    rig.lab
        .peer
        .run("ip", &["link", "set", "eth0", "address", NEW]);
    let peer = v4.peer.to_string();
    rig.lab.relay.run(
        "ip",
        &[
            "neigh",
            "replace",
            &peer,
            "lladdr",
            NEW,
            "dev",
            "eth1",
            "nud",
            "permanent",
        ],
    );
    let peer_wire = Wire::open(&rig.lab.peer, "eth0");
    let expected = flow.at_peer(&data);
    // How long the news takes to reach the relay is its own affair; bounded, so that a failure ends.
    for _ in 0..400 {
        let before = rig.pinned.relayed();
        rig.client
            .send(&rig.to_relay_from_client(flow.from_client(&data)).frame());
        let came = peer_wire.find(Duration::from_millis(50), |content| match content {
            Content::Udp(datagram) => expected.is(&datagram).then_some(datagram),
            Content::Fragment | Content::Icmp(..) | Content::Other => None,
        });
        if came.is_some() && rig.pinned.relayed() > before {
            return;
        }
    }
    panic!("nothing arrives at {NEW}: {:?}", rig.pinned.reasons());
}

macro_rules! rungs {
    ($($module:ident: $mode:expr;)*) => {
        $(mod $module {
            use super::*;

            #[test]
            fn relayed_packets_are_what_a_router_would_send() {
                super::relayed_packets_are_what_a_router_would_send($mode);
            }

            #[test]
            fn padding_is_left_off() {
                super::padding_is_left_off($mode);
            }

            #[test]
            fn odd_packets_are_left_to_userspace() {
                super::odd_packets_are_left_to_userspace($mode);
            }

            #[test]
            fn what_would_outgrow_the_link_is_left_to_userspace() {
                super::what_would_outgrow_the_link_is_left_to_userspace($mode);
            }

            #[test]
            fn clients_of_one_relay_reach_each_other() {
                super::clients_of_one_relay_reach_each_other($mode);
            }

            #[test]
            fn traffic_follows_a_neighbour_with_a_new_address() {
                super::traffic_follows_a_neighbour_with_a_new_address($mode);
            }
        })*
    };
}

rungs! {
    native: KernelMode::Native;
    generic: KernelMode::Generic;
}
