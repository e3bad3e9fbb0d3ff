//! Who the kernel path relays for, and for how long: no longer than the server would, but also while
//! the server is away.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use towpath_bench::assembler::Instruction;
use towpath_bench::bpf::XdpProgram;
use towpath_bench::sys;
use towpath_ebpf_common::reason::Reason;
use towpath_net::{
    Addresses, Content, Driver, Flow, Host, KernelLab, KernelMode, Kind, Packet, Pinned, Server,
    USER, Wire,
};

const PATIENCE: Duration = Duration::from_secs(20);
const KIND: Kind = Kind::Towpath(Driver::Auto);

/// Far ends of the relay's links, and frames from one to the other.
struct Ends {
    client: Wire,
    peer: Wire,
    relay_macs: [[u8; 6]; 2],
}

impl Ends {
    fn new(lab: &KernelLab) -> Self {
        Self {
            client: Wire::open(&lab.client, "eth0"),
            peer: Wire::open(&lab.peer, "eth0"),
            relay_macs: ["eth0", "eth1"].map(|interface| lab.relay.mac(interface)),
        }
    }

    fn client_sends(&self, packet: Packet) {
        let frame = packet.on(self.client.mac(), self.relay_macs[0]).frame();
        self.client.send(&frame);
    }

    fn peer_sends(&self, packet: Packet) {
        let frame = packet.on(self.peer.mac(), self.relay_macs[1]).frame();
        self.peer.send(&frame);
    }

    /// Data goes both ways, in the kernel.
    fn relay_both_ways(&self, flow: &Flow, pinned: &Pinned, data: &[u8]) {
        let before = pinned.relayed();
        self.client_sends(flow.from_client(data));
        arrives(&self.peer, &flow.at_peer(data));
        self.peer_sends(flow.from_peer(data));
        arrives(&self.client, &flow.at_client(data));
        assert_eq!(pinned.relayed() - before, 2, "{:?}", pinned.reasons());
    }

    /// Data goes neither way, whoever looks.
    fn relay_nothing(&self, lab: &KernelLab, flow: &mut Flow, data: &[u8]) {
        self.client.received();
        self.peer.received();
        self.client_sends(flow.from_client(data));
        self.peer_sends(flow.from_peer(data));
        // Everything sent before has been dealt with once these are answered.
        lab.client.knock(Addresses::v4().relay);
        lab.peer.knock(Addresses::v4().relayed);
        flow.probe.binding().expect("a server answers");
        for (wire, packet) in [
            (&self.client, flow.at_client(data)),
            (&self.peer, flow.at_peer(data)),
        ] {
            let leaked = wire
                .received()
                .into_iter()
                .any(|frame| matches!(frame, Ok(Content::Udp(datagram)) if packet.is(&datagram)));
            assert!(!leaked, "{packet:?}");
        }
    }
}

fn arrives(wire: &Wire, expected: &Packet) {
    let found = wire.find(PATIENCE, |content| match content {
        Content::Udp(datagram) => expected.is(&datagram).then_some(()),
        Content::Fragment | Content::Icmp(..) | Content::Other => None,
    });
    assert!(found.is_some(), "{expected:?} did not arrive");
}

/// Ends the server without a warning, and waits until the kernel has let go of its sockets.
fn kill(server: &mut Server, lab: &KernelLab) {
    server.kill();
    for addresses in [Addresses::v4(), Addresses::v6()] {
        lab.relay.wait_until_free(addresses.server());
    }
}

fn flow(lab: &KernelLab) -> Flow {
    let v4 = Addresses::v4();
    lab.peer.knock(v4.relayed);
    Flow::open(lab, USER, &v4, &v4)
}

#[test]
fn a_deleted_allocation_is_relayed_for_no_more() {
    let Some(lab) = KernelLab::new(&[]) else {
        return;
    };
    let _server = Server::start(KIND, &lab.relay, &lab.options(KernelMode::Native));
    let (ends, pinned) = (Ends::new(&lab), Pinned::open(lab.pins()));
    let mut flow = flow(&lab);
    ends.relay_both_ways(&flow, &pinned, b"while it lives");
    flow.probe.refresh(0).expect("an allocation can be deleted");
    let before = pinned.relayed();
    ends.relay_nothing(&lab, &mut flow, b"after its end");
    assert_eq!(pinned.relayed(), before, "{:?}", pinned.reasons());
}

/// A stranger, and a peer without a permission, do not come through.
#[test]
fn only_the_peer_of_a_channel_is_let_through() {
    let Some(lab) = KernelLab::new(&[]) else {
        return;
    };
    let _server = Server::start(KIND, &lab.relay, &lab.options(KernelMode::Native));
    let (ends, pinned) = (Ends::new(&lab), Pinned::open(lab.pins()));
    let flow = flow(&lab);
    ends.relay_both_ways(&flow, &pinned, b"the peer");
    let before = pinned.relayed();
    let data = b"a stranger";
    for stranger in ["10.77.3.9:9", "10.77.2.2:9"] {
        ends.peer_sends(Packet {
            source: stranger.parse().expect("an address"),
            ..flow.from_peer(data)
        });
    }
    // Another client's port, and a channel that is not bound.
    let client = flow.probe.local();
    ends.client_sends(Packet {
        source: SocketAddr::new(client.ip(), client.port() ^ 1),
        ..flow.from_client(data)
    });
    let mut unbound = flow.from_client(data);
    unbound.payload[1] ^= 0x40;
    ends.client_sends(unbound);
    // The relay's other address.
    ends.client_sends(Packet {
        destination: SocketAddr::new(Addresses::v4().relayed, 3478),
        ..flow.from_client(data)
    });
    ends.relay_both_ways(&flow, &pinned, b"the peer again");
    assert_eq!(pinned.relayed() - before, 2, "{:?}", pinned.reasons());
    for wire in [&ends.client, &ends.peer] {
        let leaked = wire.received().into_iter().any(
            |frame| matches!(frame, Ok(Content::Udp(datagram)) if datagram.payload.ends_with(data)),
        );
        assert!(!leaked);
    }
}

/// A flood of ICMP errors is what a closed port answers with; the kernel path keeps it closed.
#[test]
fn routes_go_on_while_the_server_is_dead_and_strangers_hear_nothing() {
    let Some(lab) = KernelLab::new(&[]) else {
        return;
    };
    let mut server = Server::start(KIND, &lab.relay, &lab.options(KernelMode::Native));
    let (ends, pinned) = (Ends::new(&lab), Pinned::open(lab.pins()));
    let flow = flow(&lab);
    ends.relay_both_ways(&flow, &pinned, b"with a server");
    kill(&mut server, &lab);
    ends.relay_both_ways(&flow, &pinned, b"without a server");

    let silent = pinned.count(Reason::Silent);
    let strangers: [Packet; 3] = [
        Packet {
            source: "10.77.3.3:9".parse().expect("an address"),
            ..flow.from_peer(b"a stranger to the relayed port")
        },
        Packet {
            source: "10.77.2.2:9".parse().expect("an address"),
            ..flow.from_client(b"a stranger to the listening port")
        },
        Packet {
            payload: vec![
                0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
            ],
            ..flow.from_client(b"")
        },
    ];
    let [relayed, listening, binding] = strangers;
    ends.client.received();
    ends.peer.received();
    ends.peer_sends(relayed);
    ends.client_sends(listening);
    ends.client_sends(binding);
    // A port that is not the relay's is answered for as ever: the control of this test.
    ends.peer_sends(Packet {
        destination: SocketAddr::new(Addresses::v4().relayed, 9),
        ..flow.from_peer(b"not the relay's port")
    });
    let unreachable = ends.peer.find(PATIENCE, |content| match content {
        Content::Icmp(3, 3) => Some(()),
        Content::Icmp(..) | Content::Udp(_) | Content::Fragment | Content::Other => None,
    });
    assert!(unreachable.is_some(), "an ordinary closed port says so");
    ends.relay_both_ways(&flow, &pinned, b"and nobody was told");
    for wire in [&ends.client, &ends.peer] {
        let errors: Vec<_> = wire
            .received()
            .into_iter()
            .filter(|frame| matches!(frame, Ok(Content::Icmp(3, _))))
            .collect();
        assert_eq!(errors, [], "{:?}", pinned.reasons());
    }
    assert_eq!(
        pinned.count(Reason::Silent) - silent,
        3,
        "{:?}",
        pinned.reasons()
    );
}

#[test]
fn the_next_server_takes_the_pins_over() {
    let Some(lab) = KernelLab::new(&[]) else {
        return;
    };
    let options = lab.options(KernelMode::Native);
    let mut server = Server::start(KIND, &lab.relay, &options);
    let (ends, pinned) = (Ends::new(&lab), Pinned::open(lab.pins()));
    let mut old = flow(&lab);
    ends.relay_both_ways(&old, &pinned, b"the first server");
    let program = attached(&lab.relay, "eth0");
    kill(&mut server, &lab);
    assert_eq!(
        attached(&lab.relay, "eth0"),
        program,
        "it stays while nobody is there"
    );

    let _server = Server::start(KIND, &lab.relay, &options);
    assert!(attached(&lab.relay, "eth0").is_some());
    // The new server does not know the old one's allocations, so nothing is relayed for them.
    ends.relay_nothing(&lab, &mut old, b"of the first server's");
    let new = flow(&lab);
    ends.relay_both_ways(&new, &pinned, b"the second server");
}

/// The id of the XDP program on an interface.
fn attached(host: &Host, interface: &str) -> Option<u64> {
    let text = host.run("ip", &["-j", "link", "show", "dev", interface]);
    let links: serde_json::Value = serde_json::from_str(&text).expect("ip prints JSON");
    links[0]["xdp"]["prog"]["id"].as_u64()
}

/// Somebody else's program stays where it is; the relay goes on in userspace there, and says why.
#[test]
fn a_foreign_program_is_left_alone() {
    let Some(lab) = KernelLab::new(&[]) else {
        return;
    };
    const PASS: i32 = 2;
    let pass = [Instruction::set(0, PASS), Instruction::exit()];
    let _foreign = lab.relay.inside(|| {
        let index = sys::interface_index("eth1").expect("the interface exists");
        let program = XdpProgram::load(&pass).expect("a program can be loaded");
        program.attach(index).expect("a program can be attached")
    });
    let foreign = attached(&lab.relay, "eth1");
    let server = Server::start(KIND, &lab.relay, &lab.options(KernelMode::Auto));
    assert_eq!(attached(&lab.relay, "eth1"), foreign);
    let flow = flow(&lab);
    let ends = Ends::new(&lab);
    let data = b"beside a foreign program";
    ends.client_sends(flow.from_client(data));
    arrives(&ends.peer, &flow.at_peer(data));
    ends.peer_sends(flow.from_peer(data));
    arrives(&ends.client, &flow.at_client(data));
    server.wait_for_control();
    let status = server.status();
    assert!(status.contains("eth1"), "{status}");
    let rungs = server.status_json()["kernel"].to_string();
    assert!(rungs.contains("userspace"), "{rungs}");
}

/// Limits are set in the maps: by the server, or without one; the next packet is judged by them.
#[test]
fn a_limit_holds_from_the_next_packet_on_with_the_server_and_without_it() {
    let Some(lab) = KernelLab::new(&[]) else {
        return;
    };
    let mut server = Server::start(KIND, &lab.relay, &lab.options(KernelMode::Native));
    server.wait_for_control();
    let (ends, pinned) = (Ends::new(&lab), Pinned::open(lab.pins()));
    let flow = flow(&lab);
    ends.relay_both_ways(&flow, &pinned, b"without a limit");
    let slot = pinned.slot(USER);
    let passed_of = |count: u64| {
        let before = pinned.up(slot);
        for _ in 0..count {
            ends.client_sends(flow.from_client(&[7; 1000]));
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = pinned.up(slot);
            let passed = now.packets - before.packets;
            if passed + now.dropped_packets - before.dropped_packets == count {
                return passed;
            }
            assert!(Instant::now() < deadline, "{:?}", pinned.reasons());
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    assert_eq!(passed_of(100), 100);
    // A burst of four packets, and an eighth of a second for each more.
    lab.limits(&["set", USER, "--up", "64kbit", "--burst", "4112B"]);
    let passed = passed_of(100);
    assert!((4..20).contains(&passed), "{passed}");
    lab.limits(&["set", USER, "--up", "unlimited"]);
    assert_eq!(passed_of(100), 100);

    kill(&mut server, &lab);
    lab.limits(&["set", USER, "--up", "64kbit", "--burst", "4112B"]);
    let passed = passed_of(100);
    assert!(passed < 20, "{passed}");
    // Nothing is left of the burst now; a raised limit does not make anyone wait for it.
    lab.limits(&["set", USER, "--up", "10Gbit", "--burst", "4MiB"]);
    assert_eq!(passed_of(100), 100);
}

/// An address that the relay itself gets while it serves is no longer relayed to by the kernel.
#[test]
fn a_peer_that_becomes_the_relay_itself_is_relayed_to_no_more() {
    let Some(lab) = KernelLab::new(&[]) else {
        return;
    };
    let _server = Server::start(KIND, &lab.relay, &lab.options(KernelMode::Native));
    let (ends, pinned) = (Ends::new(&lab), Pinned::open(lab.pins()));
    let later: IpAddr = "10.77.3.8".parse().expect("an address");
    lab.peer.add_address("10.77.3.8/24");
    let v4 = Addresses::v4();
    let socket = lab.peer.bind_any(later);
    let local = socket.local_addr().expect("a bound socket has an address");
    lab.peer.knock_from(later, (v4.relayed, 9).into());
    let flow = Flow::to(&lab, USER, &v4, local, socket);
    ends.relay_both_ways(&flow, &pinned, b"while it is a peer");
    lab.peer
        .run("ip", &["addr", "del", "10.77.3.8/24", "dev", "eth0"]);
    lab.relay.add_address_to("eth1", "10.77.3.8/24");
    let data = b"to the relay itself";
    for _ in 0..400 {
        let before = pinned.relayed();
        ends.client_sends(flow.from_client(data));
        lab.client.knock(v4.relay);
        if pinned.relayed() == before {
            return;
        }
    }
    panic!("still relayed: {:?}", pinned.reasons());
}
