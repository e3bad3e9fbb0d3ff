//! What travels beside the payload through userspace: DSCP and ECN, the DF bit, and ICMP errors. Each
//! test runs on both drivers.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use towpath_net::{
    Addresses, Content, Datagram, Driver, Flow, Host, KernelLab, KernelMode, Kind, Lab, Packet,
    Probe, Relayed, Server, ServerOptions, USER, Wire, address,
};
use towpath_proto::wire::attribute::{Family, Icmp};

const PATIENCE: Duration = Duration::from_secs(20);

/// Long enough for a datagram on a virtual link, where none is to come.
const QUIET: Duration = Duration::from_millis(300);

macro_rules! on_both_drivers {
    ($($name:ident;)*) => {
        mod io_uring { $(#[test] fn $name() { super::$name(super::Driver::IoUring); })* }
        mod epoll { $(#[test] fn $name() { super::$name(super::Driver::Epoll); })* }
    };
}

on_both_drivers! {
    dscp_and_ecn_at_the_peer_are_the_clients_and_at_the_client_the_peers;
    what_leaves_has_the_df_bit_where_the_client_asked_for_it_and_only_there;
    what_is_longer_than_the_interface_carries_is_told_of_and_not_sent;
    a_closed_port_of_a_peer_is_told_of_and_takes_nothing_from_an_open_one;
    a_link_behind_a_router_that_is_too_narrow_is_told_of_with_its_mtu;
}

/// Client, relay without the kernel path, and peer, with eyes on the far ends of the links.
struct Rig {
    client: Wire,
    peer: Wire,
    relay_macs: [[u8; 6]; 2],
    _server: Server,
    lab: KernelLab,
}

impl Rig {
    fn start(driver: Driver) -> Option<Self> {
        let lab = KernelLab::new(&[])?;
        let options = lab.options(KernelMode::Off);
        let server = Server::start(Kind::Towpath(driver), &lab.relay, &options);
        Some(Self {
            client: Wire::open(&lab.client, "eth0"),
            peer: Wire::open(&lab.peer, "eth0"),
            relay_macs: ["eth0", "eth1"].map(|interface| lab.relay.mac(interface)),
            _server: server,
            lab,
        })
    }

    fn to_peer(&self, packet: Packet, traffic_class: u8) -> Datagram {
        let mut sent = packet.on(self.client.mac(), self.relay_macs[0]);
        sent.traffic_class = traffic_class;
        self.client.send(&sent.frame());
        sent
    }

    fn to_client(&self, packet: Packet, traffic_class: u8) -> Datagram {
        let mut sent = packet.on(self.peer.mac(), self.relay_macs[1]);
        sent.traffic_class = traffic_class;
        self.peer.send(&sent.frame());
        sent
    }

    /// A client with a permission for the peer.
    fn probe(&self, addresses: &Addresses) -> Probe {
        let mut probe =
            Probe::of_user(&self.lab.client, addresses.client, addresses.server(), USER);
        let family = Some(Family::of(addresses.peer));
        probe.allocate(family).expect("an allocation");
        let permitted = probe.create_permission(&[addresses.peer]);
        permitted.expect("a permission");
        probe
    }
}

/// The datagram on a wire for which `is` holds.
fn arrives(wire: &Wire, is: impl Fn(&Datagram) -> bool) -> Datagram {
    let found = wire.find(PATIENCE, |content| match content {
        Content::Udp(datagram) if is(&datagram) => Some(datagram),
        Content::Udp(_) | Content::Fragment | Content::Icmp(..) | Content::Other => None,
    });
    found.expect("it arrives")
}

fn family_pairs() -> [(Addresses, Addresses); 4] {
    let (v4, v6) = (Addresses::v4(), Addresses::v6());
    [(v4, v4), (v4, v6), (v6, v4), (v6, v6)]
}

/// RFC 8656 §15, preferred: "Set the outgoing value to the incoming value".
fn dscp_and_ecn_at_the_peer_are_the_clients_and_at_the_client_the_peers(driver: Driver) {
    let Some(rig) = Rig::start(driver) else {
        return;
    };
    for (client, peer) in family_pairs() {
        rig.lab.peer.knock(peer.relayed);
        let mut flow = Flow::open(&rig.lab, USER, &client, &peer);
        for class in [0, 1, 2, 3, 0xb8, 0xb9, 0xff, 0] {
            let data = [class, 7, 7];
            rig.to_peer(flow.from_client(&data), class);
            let came = arrives(&rig.peer, |datagram| flow.at_peer(&data).is(datagram));
            assert_eq!(came.traffic_class, class, "{came:?}");
            rig.to_client(flow.from_peer(&data), class);
            let came = arrives(&rig.client, |datagram| flow.at_client(&data).is(datagram));
            assert_eq!(came.traffic_class, class, "{came:?}");
            // The same as Send and Data indications: to and from another port of the peer.
            let other = SocketAddr::new(flow.peer.ip(), 9999);
            let mut sent = flow.from_client(&data);
            sent.payload = flow.probe.indication(other, &data);
            rig.to_peer(sent, class);
            let came = arrives(&rig.peer, |datagram| datagram.destination == other);
            assert_eq!((came.traffic_class, &came.payload[..]), (class, &data[..]));
            let mut sent = flow.from_peer(&data);
            sent.source = other;
            rig.to_client(sent, class);
            let came = arrives(&rig.client, |datagram| {
                datagram.destination == flow.probe.local()
                    && datagram.payload.len() > 20
                    && datagram.payload[..2] == [0, 0x17]
                    && datagram.payload.ends_with(&[class, 7, 7, 0])
            });
            assert_eq!(came.traffic_class, class, "{came:?}");
        }
    }
}

/// RFC 8656 §15: "in response to a Send indication containing the DONT-FRAGMENT attribute, then set
/// the DF bit … to 1"; else, alternate: "always assume the incoming DF bit is 0".
fn what_leaves_has_the_df_bit_where_the_client_asked_for_it_and_only_there(driver: Driver) {
    let Some(rig) = Rig::start(driver) else {
        return;
    };
    let v4 = Addresses::v4();
    rig.lab.peer.knock(v4.relayed);
    let mut probe = rig.probe(&v4);
    let peer = SocketAddr::new(v4.peer, 7000);
    let bound = SocketAddr::new(v4.peer, 7001);
    let _sockets = [peer, bound].map(|address| rig.lab.peer.bind(address));
    probe.bind_channel(0x4001, bound).expect("a channel");
    for round in 0..20u8 {
        probe.send(peer, &[round, 0]);
        probe.send_whole(peer, &[round, 1]);
        probe.send_whole(peer, &[round, 1]);
        probe.send_on_channel(0x4001, &[round, 0]);
        probe.send_whole(peer, &[round, 1]);
        for _ in 0..5 {
            let came = arrives(&rig.peer, |datagram| {
                datagram.payload.first() == Some(&round)
            });
            assert_eq!(came.dont_fragment, came.payload[1] == 1, "{came:?}");
        }
    }
}

fn too_big(icmp_type: u8, code: u16, mtu: u32) -> Icmp {
    Icmp {
        icmp_type,
        code,
        error_data: mtu,
    }
}

fn told(probe: &mut Probe) -> (SocketAddr, Icmp) {
    match probe.receive(PATIENCE) {
        Some(Relayed::Icmp { peer, icmp }) => (peer, icmp),
        other => panic!("{other:?} is no ICMP error"),
    }
}

fn bind(host: &Host, address: SocketAddr) -> UdpSocket {
    let socket = host.bind(address);
    let limit = socket.set_read_timeout(Some(PATIENCE));
    limit.expect("the limit is not zero");
    socket
}

fn received(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let bytes = socket.recv(&mut buffer).expect("it arrives");
    buffer.truncate(bytes);
    buffer
}

fn is_quiet(socket: &UdpSocket) -> bool {
    let limit = socket.set_read_timeout(Some(QUIET));
    limit.expect("the limit is not zero");
    let quiet = socket.recv(&mut [0; 16]).is_err();
    let limit = socket.set_read_timeout(Some(PATIENCE));
    limit.expect("the limit is not zero");
    quiet
}

fn what_is_longer_than_the_interface_carries_is_told_of_and_not_sent(driver: Driver) {
    let Some(rig) = Rig::start(driver) else {
        return;
    };
    let v4 = Addresses::v4();
    rig.lab.peer.knock(v4.relayed);
    let mut probe = rig.probe(&v4);
    let peer = bind(&rig.lab.peer, SocketAddr::new(v4.peer, 7000));
    let to = SocketAddr::new(v4.peer, 7000);
    for _ in 0..3 {
        probe.send_whole(to, &[1; 1600]);
        // The kernel does not say to which port it would have gone.
        let expected = (SocketAddr::new(v4.peer, 0), too_big(3, 4, 1500));
        assert_eq!(told(&mut probe), expected);
        assert!(is_quiet(&peer));
        probe.send(to, &[2; 1600]);
        assert_eq!(received(&peer), [2; 1600]);
        probe.send_whole(to, &[3; 1400]);
        assert_eq!(received(&peer), [3; 1400]);
    }
    assert_eq!(probe.receive(QUIET), None);
}

/// RFC 8656 §11.5
fn a_closed_port_of_a_peer_is_told_of_and_takes_nothing_from_an_open_one(driver: Driver) {
    let Some(rig) = Rig::start(driver) else {
        return;
    };
    for (addresses, kind) in [(Addresses::v4(), (3, 3)), (Addresses::v6(), (1, 4))] {
        rig.lab.peer.knock(addresses.relayed);
        let mut probe = rig.probe(&addresses);
        let open = bind(&rig.lab.peer, SocketAddr::new(addresses.peer, 7000));
        let closed = SocketAddr::new(addresses.peer, 7001);
        let to = SocketAddr::new(addresses.peer, 7000);
        for round in 0..10u8 {
            probe.send(closed, b"anybody?");
            probe.send(to, &[round]);
            assert_eq!(received(&open), [round]);
            assert_eq!(told(&mut probe), (closed, too_big(kind.0, kind.1, 0)));
        }
        assert_eq!(probe.receive(QUIET), None);
    }
}

/// A client, a relay, and a peer behind a router with a narrow link.
struct Narrow {
    client: Host,
    relay: Host,
    peer: Host,
    _lab: Lab,
}

const NARROW_MTU: u32 = 1300;

impl Narrow {
    fn new() -> Option<Self> {
        let lab = Lab::with(&["sysctl"])?;
        let [client, relay, router, peer] =
            ["client", "relay", "router", "peer"].map(|role| lab.island(role));
        router.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        router.run("sysctl", &["-qw", "net.ipv6.conf.all.forwarding=1"]);
        router.run("sysctl", &["-qw", "net.ipv4.icmp_ratelimit=0"]);
        router.run("sysctl", &["-qw", "net.ipv6.icmp.ratelimit=0"]);
        lab.cable((&client, "eth0"), (&relay, "eth0"), &[]);
        lab.cable((&relay, "eth1"), (&router, "eth0"), &[]);
        let mtu = NARROW_MTU.to_string();
        lab.cable((&router, "eth1"), (&peer, "eth0"), &["mtu", &mtu]);
        for (host, interface, addresses) in [
            (&client, "eth0", ["10.77.2.2/24", "fd77:2::2/64"]),
            (&relay, "eth0", ["10.77.2.1/24", "fd77:2::1/64"]),
            (&relay, "eth1", ["10.77.3.1/24", "fd77:3::1/64"]),
            (&router, "eth0", ["10.77.3.2/24", "fd77:3::2/64"]),
            (&router, "eth1", ["10.77.4.2/24", "fd77:4::2/64"]),
            (&peer, "eth0", ["10.77.4.3/24", "fd77:4::3/64"]),
        ] {
            for address in addresses {
                host.add_address_to(interface, address);
            }
        }
        for (host, routers) in [
            (&relay, ["10.77.3.2", "fd77:3::2"]),
            (&peer, ["10.77.4.2", "fd77:4::2"]),
        ] {
            host.run("ip", &["route", "add", "default", "via", routers[0]]);
            host.run("ip", &["-6", "route", "add", "default", "via", routers[1]]);
        }
        Some(Self {
            client,
            relay,
            peer,
            _lab: lab,
        })
    }
}

/// RFC 8656 §11.5 and §18.13, and the DF bit kept to the end: a router drops what the client wants
/// whole, and fragments the rest.
fn a_link_behind_a_router_that_is_too_narrow_is_told_of_with_its_mtu(driver: Driver) {
    let Some(lab) = Narrow::new() else { return };
    let mut options = ServerOptions::on(&[address("10.77.2.1"), address("fd77:2::1")]);
    options.relay = [address("10.77.3.1"), address("fd77:3::1")]
        .map(Into::into)
        .into();
    options.allow = vec!["10.77.4.0/24".into(), "fd77:4::/64".into()];
    let _server = Server::start(Kind::Towpath(driver), &lab.relay, &options);
    let probe = |client: &str, server: &str, peer: SocketAddr| {
        let server = SocketAddr::new(address(server), 3478);
        let mut probe = Probe::new(&lab.client, address(client), server);
        probe
            .allocate(Some(Family::of(peer.ip())))
            .expect("an allocation");
        probe.create_permission(&[peer.ip()]).expect("a permission");
        probe
    };

    let to = SocketAddr::new(address("10.77.4.3"), 7000);
    let peer = bind(&lab.peer, to);
    let mut client = probe("10.77.2.2", "10.77.2.1", to);
    for _ in 0..3 {
        client.send_whole(to, &[1; 1350]);
        assert_eq!(told(&mut client), (to, too_big(3, 4, NARROW_MTU)));
        assert!(is_quiet(&peer));
        client.send(to, &[2; 1350]);
        assert_eq!(received(&peer), [2; 1350]);
        client.send_whole(to, &[3; 1200]);
        assert_eq!(received(&peer), [3; 1200]);
    }
    assert_eq!(client.receive(QUIET), None);

    let to = SocketAddr::new(address("fd77:4::3"), 7000);
    let peer = bind(&lab.peer, to);
    let mut client = probe("fd77:2::2", "fd77:2::1", to);
    // Nobody fragments on the way over IPv6; the relay does, once it knows that it has to.
    client.send(to, &[4; 1350]);
    assert_eq!(told(&mut client), (to, too_big(2, 0, NARROW_MTU)));
    assert!(is_quiet(&peer));
    client.send(to, &[5; 1350]);
    assert_eq!(received(&peer), [5; 1350]);
}
