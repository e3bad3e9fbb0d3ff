//! Which peers a relay lets its clients reach: nothing special unless it is allowed, in whatever
//! way it is written down, and by no method.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use towpath_net::{
    Driver, Host, Kind, Lab, Probe, Refused, Relayed, Server, ServerOptions, address,
};
use towpath_proto::wire::attribute::Family;

/// The port that everything is sent to, so that it can be told from other traffic.
const WATCHED: u16 = 7000;

/// Special-use IPv4 addresses: this host, private and shared networks, link-local and metadata,
/// documentation, benchmarks, relays, multicast, reserved, broadcast.
const SPECIAL_V4: &[&str] = &[
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.1.2.3",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.254",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
];

/// Special-use IPv6 addresses, and every way to write an IPv4 address as one.
const SPECIAL_V6: &[&str] = &[
    "::",
    "::1",
    // IPv4-compatible, -mapped and -translated.
    "::127.0.0.1",
    "::10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    // NAT64, with the well-known and the local prefix.
    "64:ff9b::127.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::10.0.0.1",
    // 6to4.
    "2002:7f00:1::",
    "2002:a00:1::1",
    "2002:a9fe:a9fe::",
    // Teredo: the server's address as it is, then the client's with every bit turned.
    "2001:0:7f00:1:0:ffff:f5ff:fffe",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "2001:0:4136:e378:8000:63bf:f5ff:fffe",
    // Unique local, link-local, site-local, multicast.
    "fc00::1",
    "fd00::1",
    "fd00:ec2::254",
    "fe80::1",
    "febf::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    // Discard, benchmarks, ORCHID, documentation, segment routing, and what is not global unicast.
    "100::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "3fff::1",
    "5f00::1",
    "4000::1",
];

/// A server that may reach one peer only, and a count of what it sends to others all the same.
struct Watched {
    server: Host,
    client: Host,
    peer: Host,
    _process: Server,
    _lab: Lab,
}

impl Watched {
    fn start(kind: Kind, options: &ServerOptions) -> Option<Self> {
        let lab = Lab::with(&["nft", "turnserver"])?;
        let server = lab.host("server", &["10.77.2.1/24", "fd77:2::1/64"]);
        let client = lab.host("client", &["10.77.2.2/24", "fd77:2::2/64"]);
        let peer = lab.host("peer", &["10.77.2.3/24", "fd77:2::3/64"]);
        // Every address has a route, so that nothing fails for want of one.
        server.run("ip", &["route", "add", "default", "via", "10.77.2.9"]);
        server.run("ip", &["-6", "route", "add", "default", "via", "fd77:2::9"]);
        server.run(
            "nft",
            &["add table inet watch
               add counter inet watch leaked
               add chain inet watch output { type filter hook output priority 0; }
               add rule inet watch output ip daddr 10.77.2.3 udp dport 7000 accept
               add rule inet watch output ip6 daddr fd77:2::3 udp dport 7000 accept
               add rule inet watch output udp dport { 7000, 3478 } counter name leaked"],
        );
        let process = Server::start(kind, &server, options);
        server.run("nft", &["reset counter inet watch leaked"]);
        Some(Self {
            server,
            client,
            peer,
            _process: process,
            _lab: lab,
        })
    }

    fn options() -> ServerOptions {
        let mut options = ServerOptions::on(&[address("10.77.2.1"), address("fd77:2::1")]);
        options.allow = vec!["10.77.2.3/32".into(), "fd77:2::3/128".into()];
        options
    }

    fn probe(&self, family: Family) -> Probe {
        let server = SocketAddr::new(address("10.77.2.1"), 3478);
        let mut probe = Probe::new(&self.client, address("10.77.2.2"), server);
        probe.allocate(Some(family)).expect("the server allocates");
        probe
    }

    /// Datagrams the server sent to the watched ports of others than the peer.
    fn leaked(&self) -> u64 {
        let listing = self.server.run("nft", &["list counter inet watch leaked"]);
        let mut words = listing
            .split_whitespace()
            .skip_while(|word| *word != "packets");
        words
            .nth(1)
            .and_then(|packets| packets.parse().ok())
            .expect("nft counts packets")
    }

    /// The positive control: what is allowed arrives. It comes after everything sent before.
    fn reaches_its_peer(&self, probe: &mut Probe, peer: IpAddr) {
        let peer = SocketAddr::new(peer, WATCHED);
        let socket = self.peer.bind(peer);
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("20 s is not zero");
        probe
            .create_permission(&[peer.ip()])
            .expect("the peer is allowed");
        probe.send(peer, b"allowed");
        let mut buffer = [0; 64];
        let (bytes, relayed) = socket.recv_from(&mut buffer).expect("the peer is reached");
        assert_eq!(&buffer[..bytes], b"allowed");
        socket
            .send_to(b"back", relayed)
            .expect("the relayed address has a route");
        let data = b"back".to_vec();
        let received = probe.receive(Duration::from_secs(20));
        assert_eq!(received, Some(Relayed::Indication { peer, data }));
    }
}

/// Tries every method on every address; returns what was not refused.
fn not_refused(probe: &mut Probe, addresses: &[&str], allowed: IpAddr) -> Vec<String> {
    const FORBIDDEN: Refused = Refused(403);
    let mut granted = Vec::new();
    let mut note = |what: &str, address: &str, outcome: Result<_, Refused>| {
        if outcome != Err(FORBIDDEN) {
            granted.push(format!("{what} {address}: {outcome:?}"));
        }
    };
    for (channel, text) in (0x4000..).zip(addresses) {
        let special = address(text);
        let peer = SocketAddr::new(special, WATCHED);
        note(
            "CreatePermission",
            text,
            probe.create_permission(&[special]),
        );
        note(
            "CreatePermission beside",
            text,
            probe.create_permission(&[allowed, special]),
        );
        note("ChannelBind", text, probe.bind_channel(channel, peer));
        probe.send(peer, b"forbidden");
        probe.send_on_channel(channel, b"forbidden");
    }
    granted
}

fn every_special_address_is_refused(kind: Kind, family: Family) {
    let Some(watched) = Watched::start(kind, &Watched::options()) else {
        return;
    };
    let (addresses, peer) = match family {
        Family::V4 => (SPECIAL_V4, address("10.77.2.3")),
        Family::V6 => (SPECIAL_V6, address("fd77:2::3")),
    };
    let mut probe = watched.probe(family);
    assert_eq!(not_refused(&mut probe, addresses, peer), [""; 0]);
    watched.reaches_its_peer(&mut probe, peer);
    assert_eq!(watched.leaked(), 0, "datagrams reached forbidden peers");
}

/// The server's own addresses: a permission says nothing about a port yet, but no datagram may
/// reach one that is no live relayed port.
fn own_ports_are_out_of_reach(kind: Kind, family: Family) {
    let Some(watched) = Watched::start(kind, &Watched::options()) else {
        return;
    };
    let (own, peer) = match family {
        Family::V4 => (address("10.77.2.1"), address("10.77.2.3")),
        Family::V6 => (address("fd77:2::1"), address("fd77:2::3")),
    };
    let mut probe = watched.probe(family);
    let _ = probe.create_permission(&[own]);
    for (channel, port) in [
        (0x4000, 3478),
        (0x4001, WATCHED),
        (0x4002, 22),
        (0x4003, 9478),
    ] {
        let own = SocketAddr::new(own, port);
        assert_eq!(probe.bind_channel(channel, own), Err(Refused(403)), "{own}");
        probe.send(own, b"forbidden");
        probe.send_on_channel(channel, b"forbidden");
    }
    watched.reaches_its_peer(&mut probe, peer);
    assert_eq!(watched.leaked(), 0, "datagrams reached the server itself");
}

/// An address that the server's machine is given while it serves is its own from then on.
fn an_address_that_comes_later_is_out_of_reach(kind: Kind) {
    let mut options = Watched::options();
    options.allow = vec!["10.77.2.0/24".into()];
    let Some(watched) = Watched::start(kind, &options) else {
        return;
    };
    let later = address("10.77.2.8");
    let mut probe = watched.probe(Family::V4);
    let granted = probe.create_permission(&[later]);
    assert!(granted.is_ok(), "nobody knows yet: {granted:?}");
    watched.server.add_address("10.77.2.8/24");
    let end = Instant::now() + Duration::from_secs(20);
    while probe.create_permission(&[later]) != Err(Refused(403)) {
        assert!(Instant::now() < end, "the address is still a peer's");
        std::thread::sleep(Duration::from_millis(50));
    }
    probe.send(SocketAddr::new(later, WATCHED), b"forbidden");
    watched.reaches_its_peer(&mut probe, address("10.77.2.3"));
    assert_eq!(watched.leaked(), 0, "a datagram reached the server itself");
}

fn a_denied_prefix_wins_over_an_allowed_one(kind: Kind) {
    let mut options = Watched::options();
    options.allow = vec!["10.77.2.0/24".into()];
    options.deny = vec!["10.77.2.4/31".into()];
    let Some(watched) = Watched::start(kind, &options) else {
        return;
    };
    let mut probe = watched.probe(Family::V4);
    let peer = address("10.77.2.3");
    assert_eq!(
        not_refused(&mut probe, &["10.77.2.4", "10.77.2.5"], peer),
        [""; 0]
    );
    watched.reaches_its_peer(&mut probe, peer);
    assert_eq!(watched.leaked(), 0);
}

/// The control: coturn as Debian ships it lets such addresses through, so what the tests above look
/// for can be seen.
#[test]
fn the_probe_sees_what_coturn_lets_through() {
    let Some(watched) = Watched::start(Kind::Coturn, &Watched::options()) else {
        return;
    };
    let mut probe = watched.probe(Family::V4);
    let peer = address("10.77.2.3");
    let granted = not_refused(
        &mut probe,
        &["10.0.0.1", "169.254.169.254", "127.0.0.1"],
        peer,
    );
    assert!(
        granted
            .iter()
            .any(|line| line.starts_with("ChannelBind 10.0.0.1")),
        "{granted:?}"
    );
    assert!(
        !granted.iter().any(|line| line.contains(" 127.0.0.1")),
        "{granted:?}"
    );
    watched.reaches_its_peer(&mut probe, peer);
    assert!(watched.leaked() >= 2, "{} datagrams", watched.leaked());
}

macro_rules! drivers {
    ($($module:ident: $driver:expr;)*) => {
        $(mod $module {
            use super::*;

            const KIND: Kind = Kind::Towpath($driver);

            #[test]
            fn every_special_v4_address_is_refused() {
                every_special_address_is_refused(KIND, Family::V4);
            }

            #[test]
            fn every_special_v6_address_is_refused() {
                every_special_address_is_refused(KIND, Family::V6);
            }

            #[test]
            fn own_v4_ports_are_out_of_reach() {
                own_ports_are_out_of_reach(KIND, Family::V4);
            }

            #[test]
            fn own_v6_ports_are_out_of_reach() {
                own_ports_are_out_of_reach(KIND, Family::V6);
            }

            #[test]
            fn an_own_address_that_comes_later_is_out_of_reach() {
                an_address_that_comes_later_is_out_of_reach(KIND);
            }

            #[test]
            fn deny_wins_over_allow() {
                a_denied_prefix_wins_over_an_allowed_one(KIND);
            }
        })*
    };
}

drivers! {
    io_uring: Driver::IoUring;
    epoll: Driver::Epoll;
}
