//! Which addresses a relay answers from and hands out: on a wildcard listener, and behind a 1:1
//! NAT.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use towpath_net::{
    Driver, Host, Kind, Lab, Probe, RelayAddress, Relayed, Server, ServerOptions, address,
};

const PORT: u16 = 3478;
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends from the probe to the peer's socket and back, through a permission; returns the address
/// the peer sees.
fn relays_both_ways(probe: &mut Probe, socket: &UdpSocket) -> SocketAddr {
    let peer = socket.local_addr().expect("a bound socket has an address");
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("the patience is not zero");
    probe
        .create_permission(&[peer.ip()])
        .expect("the peer is allowed");
    probe.send(peer, b"there");
    let mut buffer = [0; 64];
    let (bytes, relayed) = socket.recv_from(&mut buffer).expect("the peer is reached");
    assert_eq!(&buffer[..bytes], b"there");
    socket
        .send_to(b"back", relayed)
        .expect("the relayed address has a route");
    let data = b"back".to_vec();
    assert_eq!(
        probe.receive(PATIENCE),
        Some(Relayed::Indication { peer, data })
    );
    relayed
}

/// Every address of a wildcard listener answers as itself, and gives its own address to allocations.
fn a_wildcard_listener_answers_from_the_address_asked(kind: Kind) {
    const OWN: [&str; 4] = ["10.77.2.1", "10.77.2.5", "fd77:2::1", "fd77:2::5"];
    let Some(lab) = Lab::with(&["turnserver"]) else {
        return;
    };
    let host = lab.host("server", &["10.77.2.1/24", "fd77:2::1/64"]);
    host.add_address("10.77.2.5/24");
    host.add_address("fd77:2::5/64");
    let client = lab.host("client", &["10.77.2.2/24", "fd77:2::2/64"]);
    let peer = lab.host("peer", &["10.77.2.3/24", "fd77:2::3/64"]);
    let mut options = ServerOptions::on(&OWN.map(address));
    if matches!(kind, Kind::Towpath(_)) {
        let wildcards = [address("0.0.0.0"), address("::")];
        options.listen = wildcards.map(|any| SocketAddr::new(any, PORT)).into();
    }
    let _server = Server::start(kind, &host, &options);
    for own in OWN.map(address) {
        let (local, family) = own_family(own);
        let asked = SocketAddr::new(own, PORT);
        let mut probe = Probe::new(&client, local, asked);
        let (granted, source) = probe.binding().expect("Binding needs no credentials");
        assert_eq!(source, asked, "the answer leaves from the address asked");
        assert_eq!(granted.mapped.map(|mapped| mapped.ip()), Some(local));
        let granted = probe.allocate(Some(family)).expect("the server allocates");
        let relayed = granted.relayed.expect("an allocation has an address");
        if matches!(kind, Kind::Towpath(_)) {
            assert_eq!(relayed.ip(), own, "the relayed address is the one asked");
        }
        let socket = peer.bind_any(address(if own.is_ipv4() {
            "10.77.2.3"
        } else {
            "fd77:2::3"
        }));
        assert_eq!(relays_both_ways(&mut probe, &socket), relayed);
    }
}

fn own_family(own: IpAddr) -> (IpAddr, towpath_proto::wire::attribute::Family) {
    let local = if own.is_ipv4() {
        "10.77.2.2"
    } else {
        "fd77:2::2"
    };
    (
        address(local),
        towpath_proto::wire::attribute::Family::of(own),
    )
}

/// A router that shows one inner host as a public address, both ways, as clouds do. Inner hosts
/// reach each other's public address through it only where `hairpins`.
fn one_to_one_nat(lab: &Lab, public: &str, inner: &str, hairpins: bool) -> Host {
    let router = lab.host("router", &[&format!("{public}/24"), "10.0.4.1/24"]);
    router.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
    router.run("sysctl", &["-qw", "net.ipv4.conf.eth0.send_redirects=0"]);
    let hairpin = if hairpins {
        String::new()
    } else {
        format!("add rule ip nat in ip saddr {inner} ip daddr {public} drop\n")
    };
    let rules = format!(
        "add table ip nat
         add chain ip nat in {{ type filter hook prerouting priority -300; }}
         {hairpin}
         add chain ip nat pre {{ type nat hook prerouting priority dstnat; }}
         add rule ip nat pre ip daddr {public} dnat to {inner}
         add chain ip nat post {{ type nat hook postrouting priority srcnat; }}
         add rule ip nat post ip saddr {inner} snat to {public}"
    );
    router.run("nft", &[&rules]);
    router
}

/// A server with an inner address relays under its public one, to peers and to itself.
fn behind_a_one_to_one_nat(kind: Kind, router_hairpins: bool) {
    let Some(lab) = Lab::with(&["turnserver", "nft", "sysctl"]) else {
        return;
    };
    let (public, inner) = (address("10.77.2.1"), address("10.0.4.4"));
    let _router = one_to_one_nat(&lab, "10.77.2.1", "10.0.4.4", router_hairpins);
    let host = lab.host("server", &["10.0.4.4/24"]);
    host.run("ip", &["route", "add", "default", "via", "10.0.4.1"]);
    let client = lab.host("client", &["10.77.2.2/24"]);
    let peer = lab.host("peer", &["10.77.2.3/24"]);
    let mut options = ServerOptions::on(&[inner]);
    options.relay = vec![RelayAddress {
        local: inner,
        public,
    }];
    let _server = Server::start(kind, &host, &options);

    let server = SocketAddr::new(public, PORT);
    let mut probes = [(); 2].map(|()| Probe::new(&client, address("10.77.2.2"), server));
    let relayed = probes.each_mut().map(|probe| {
        let granted = probe.allocate(None).expect("the server allocates");
        granted.relayed.expect("an allocation has an address")
    });
    assert_eq!(
        relayed.map(|address| address.ip()),
        [public; 2],
        "responses give the public one"
    );

    let socket = peer.bind_any(address("10.77.2.3"));
    assert_eq!(relays_both_ways(&mut probes[0], &socket), relayed[0]);

    let [first, second] = &mut probes;
    first
        .create_permission(&[public])
        .expect("relayed addresses are peers");
    second
        .create_permission(&[public])
        .expect("relayed addresses are peers");
    first.send(relayed[1], b"through the hairpin");
    let data = b"through the hairpin".to_vec();
    let received = second.receive(PATIENCE);
    assert_eq!(
        received,
        Some(Relayed::Indication {
            peer: relayed[0],
            data
        })
    );
    for own in [public, inner] {
        let listening = SocketAddr::new(own, PORT);
        assert!(
            first.bind_channel(0x4001, listening).is_err(),
            "{listening} is out of reach"
        );
    }
}

mod coturn {
    use super::*;

    #[test]
    fn every_listening_address_answers_as_itself() {
        a_wildcard_listener_answers_from_the_address_asked(Kind::Coturn);
    }
}

macro_rules! drivers {
    ($($module:ident: $driver:expr;)*) => {
        $(mod $module {
            use super::*;

            const KIND: Kind = Kind::Towpath($driver);

            #[test]
            fn every_address_of_a_wildcard_listener_answers_as_itself() {
                a_wildcard_listener_answers_from_the_address_asked(KIND);
            }

            #[test]
            fn a_public_address_is_given_behind_a_nat_that_hairpins() {
                behind_a_one_to_one_nat(KIND, true);
            }

            #[test]
            fn a_public_address_is_given_behind_a_nat_without_hairpin() {
                behind_a_one_to_one_nat(KIND, false);
            }
        })*
    };
}

drivers! {
    io_uring: Driver::IoUring;
    epoll: Driver::Epoll;
}
