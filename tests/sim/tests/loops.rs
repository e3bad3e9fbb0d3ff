//! Loops of relayed addresses die: whatever users arrange, the datagrams that one datagram causes are
//! few.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use towpath_proto::Timestamp;
use towpath_sim::kernel::KernelPath;
use towpath_sim::network::{HostId, Link, Network};
use towpath_sim::probe::{Tester, Value, Way};
use towpath_sim::relay_spec::RelaySpec;
use towpath_sim::scenario::Actor;
use towpath_sim::stun::{attribute, kind};
use towpath_sim::{Dice, World};

const CLIENT: &str = "8.1.0.1:2000";
const OTHER_CLIENT: &str = "8.1.0.1:2001";
const PEER: &str = "8.1.0.1:4000";

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("the test's addresses are addresses")
}

fn pair(local: &str, public: &str) -> (IpAddr, IpAddr) {
    let ip = |text: &str| text.parse().expect("the test's addresses are addresses");
    (ip(local), ip(public))
}

struct Scene {
    world: World<Actor>,
    tester: Tester,
    relays: Vec<HostId>,
}

impl Scene {
    fn new(relays: &[RelaySpec]) -> Self {
        let dice = Dice::new(1);
        let link = Link::perfect(Duration::from_millis(5));
        let network = Network::new(link, dice.fork("network", 0));
        let mut world = World::new(1, Timestamp::ZERO, network);
        let relays = relays
            .iter()
            .enumerate()
            .map(|(index, spec)| {
                let dice = dice.fork("relay", index as u64);
                spec.add_to(&mut world, &dice, |host| Actor::Relay(Box::new(host)))
            })
            .collect();
        let sockets = [CLIENT, OTHER_CLIENT, PEER].map(addr);
        let tester = Tester::new(&mut world, dice.fork("tester", 0), &sockets);
        Self {
            world,
            tester,
            relays,
        }
    }

    fn allocate(&mut self, way: &Way, server: SocketAddr) -> SocketAddr {
        let relayed = self.tester.allocate(&mut self.world, way, server);
        relayed.unwrap_or_else(|| panic!("{way:?} gets no allocation from {server}"))
    }

    fn permit(&mut self, way: &Way, server: SocketAddr, peer: SocketAddr) {
        let code = self.tester.permit(&mut self.world, way, server, peer);
        assert_eq!(code, Some(0), "{way:?} asked {server} for {peer}");
    }

    fn bind(&mut self, way: &Way, server: SocketAddr, channel: (u16, SocketAddr)) {
        let code = self
            .tester
            .bind_channel(&mut self.world, way, server, channel);
        assert_eq!(code, Some(0), "{way:?} asked {server} for {channel:?}");
    }

    /// Sends one datagram and counts what is sent until nothing is under way any more.
    fn count_caused_by(&mut self, source: &str, to: SocketAddr, bytes: &[u8]) -> u64 {
        let before = self.world.network.counts().sent;
        self.tester
            .send(&mut self.world, &Way::Direct(addr(source)), to, bytes);
        let until = self.world.now() + Duration::from_secs(250);
        while self.world.in_flight() > 0 && self.world.step(until) {}
        assert_eq!(self.world.in_flight(), 0, "datagrams are still going round");
        self.world.network.counts().sent - before
    }
}

fn relay(address: &str) -> RelaySpec {
    RelaySpec::simple(vec![pair(address, address)])
}

fn translated_relay() -> RelaySpec {
    RelaySpec::simple(vec![pair("10.9.0.1", "9.1.0.1")])
}

#[test]
fn an_allocation_whose_peer_is_itself_gets_its_data_back_once() {
    for spec in [relay("9.1.0.1"), translated_relay()] {
        let server = spec.servers()[0];
        let mut scene = Scene::new(&[spec]);
        let way = Way::Direct(addr(CLIENT));
        let relayed = scene.allocate(&way, server);
        scene.bind(&way, server, (0x4000, relayed));
        let data = [0x40, 0, 0, 4, 1, 2, 3, 4];
        // To the relay, from the relayed address to itself, to the client.
        assert_eq!(scene.count_caused_by(CLIENT, server, &data), 3);
        let received = scene.tester.received(&mut scene.world);
        assert!(received.len() == 1 && received[0].payload == data);
    }
}

#[test]
fn two_allocations_that_are_each_others_peers_pass_data_on_once() {
    for spec in [relay("9.1.0.1"), translated_relay()] {
        let server = spec.servers()[0];
        let mut scene = Scene::new(&[spec]);
        let (way, other_way) = (Way::Direct(addr(CLIENT)), Way::Direct(addr(OTHER_CLIENT)));
        let relayed = scene.allocate(&way, server);
        let other_relayed = scene.allocate(&other_way, server);
        scene.bind(&way, server, (0x4000, other_relayed));
        scene.bind(&other_way, server, (0x4001, relayed));
        let sent = scene.count_caused_by(CLIENT, server, &[0x40, 0, 0, 4, 1, 2, 3, 4]);
        assert_eq!(sent, 3);
        let received = scene.tester.received(&mut scene.world);
        assert_eq!(received[0].destination, addr(OTHER_CLIENT));
        assert_eq!(received[0].payload, [0x40, 1, 0, 4, 1, 2, 3, 4]);
    }
}

#[test]
fn a_listening_address_cannot_be_reached_from_a_relayed_port() {
    let mut spec = translated_relay();
    spec.addresses.push(pair("2a00:9::1", "2a00:9::1"));
    let server = spec.servers()[0];
    let mut scene = Scene::new(&[spec]);
    let way = Way::Direct(addr(CLIENT));
    let relayed = scene.allocate(&way, server);
    scene.permit(&way, server, relayed);
    let inner = Way::Through(Box::new(way.clone()), server);
    for listener in [
        "9.1.0.1:3478",
        "10.9.0.1:3478",
        "[2a00:9::1]:3478",
        "[::ffff:9.1.0.1]:3478",
    ] {
        let nonce = scene.tester.nonce(&mut scene.world, &inner, addr(listener));
        assert_eq!(nonce, None, "{listener} answers to a relayed address");
    }
}

/// Two allocations of one relay, each the other's client. A user cannot get there but by spoofing the
/// relay's own address.
#[test]
fn allocations_of_one_relay_that_are_each_others_clients_do_not_loop() {
    let server = addr("9.1.0.1:3478");
    for mut spec in [relay("9.1.0.1"), translated_relay()] {
        spec.port_range = 50_000..=50_001;
        let mut scene = Scene::new(&[spec]);
        let way = Way::Direct(addr(CLIENT));
        let first = scene.allocate(&way, server);
        scene.permit(&way, server, first);
        // The challenge to the relayed address would come back through the allocation, if the
        // relay's listening address were a peer.
        let spoofed = Way::Direct(first);
        let nonce = scene.tester.nonce(&mut scene.world, &spoofed, server);
        assert_eq!(
            nonce, None,
            "the nonce for a relayed address was given away"
        );
        assert!(scene.count_caused_by(PEER, first, b"data") <= 2);
    }
}

/// The same over two relays, where no spoofing is needed to learn the nonces: the relays are ordinary
/// peers and clients of each other.
///
/// ```text
///   X on relay 1: its client is Y's relayed address     X wraps what comes from relay 2 for Y
///   Y on relay 2: its client is X's relayed address     Y wraps what comes from relay 1 for X
/// ```
///
/// Neither relay can see that from addresses: to each the other is an ordinary client and an ordinary
/// peer. But every round wraps the datagram twice.
#[test]
fn a_loop_over_two_relays_dies_after_a_few_rounds() {
    for path in [KernelPath::Off, KernelPath::Watched, KernelPath::Taken] {
        loop_over_two_relays(path);
    }
}

fn loop_over_two_relays(path: KernelPath) {
    let (server1, server2) = (addr("9.1.0.1:3478"), addr("9.2.0.1:3478"));
    let mut small = relay("9.2.0.1");
    // The relayed port of the second allocation has to be the one of the first: there is just one.
    small.port_range = 50_000..=50_000;
    let mut large = relay("9.1.0.1");
    (large.kernel_path, small.kernel_path) = (path, path);
    let mut scene = Scene::new(&[large, small]);

    // An allocation on relay 2, and through it X on relay 1.
    let way = Way::Direct(addr(CLIENT));
    let y_relayed = scene.allocate(&way, server2);
    scene.permit(&way, server2, server1);
    let through_y = Way::Through(Box::new(way.clone()), server2);
    let x_relayed = scene.allocate(&through_y, server1);
    scene.permit(&through_y, server1, server2);
    scene.bind(&through_y, server1, (0x4000, server2));
    // Through X, the nonce that relay 2 gives X's relayed address.
    let through_x = Way::Through(Box::new(through_y), server1);
    let nonce = scene
        .tester
        .nonce(&mut scene.world, &through_x, server2)
        .expect("strangers get a nonce");

    // The allocation on relay 2 is given up and made again with X's relayed address as its client,
    // by requests whose answers nobody sees.
    let world = &mut scene.world;
    let own_nonce = scene.tester.nonce(world, &way, server2);
    let own_nonce = own_nonce.expect("strangers get a nonce");
    let release = [(attribute::LIFETIME, Value::Bytes(&[0; 4]))];
    let answer = scene
        .tester
        .request(world, &way, server2, &own_nonce, (kind::REFRESH, &release));
    let answer = answer.expect("a deletion is answered");
    assert_eq!(answer.number(attribute::LIFETIME), Some(0));
    let spoofed = Way::Direct(x_relayed);
    let transport = [(attribute::REQUESTED_TRANSPORT, Value::Bytes(&[17, 0, 0, 0]))];
    scene.tester.request(
        world,
        &spoofed,
        server2,
        &nonce,
        (kind::ALLOCATE, &transport),
    );
    let channel = [
        (attribute::CHANNEL_NUMBER, Value::Bytes(&[0x40, 0, 0, 0])),
        (attribute::XOR_PEER_ADDRESS, Value::Address(server1)),
    ];
    scene.tester.request(
        world,
        &spoofed,
        server2,
        &nonce,
        (kind::CHANNEL_BIND, &channel),
    );
    let peers = [(attribute::XOR_PEER_ADDRESS, Value::Address(addr(PEER)))];
    scene.tester.request(
        world,
        &spoofed,
        server2,
        &nonce,
        (kind::CREATE_PERMISSION, &peers),
    );
    for relay in &scene.relays {
        let Actor::Relay(host) = scene.world.node(*relay) else {
            unreachable!()
        };
        assert_eq!(host.model().allocations().len(), 1);
        let routes = if path == KernelPath::Off { 0 } else { 2 };
        assert_eq!(host.kernel().routes().len(), routes);
    }

    let caused = scene.count_caused_by(PEER, y_relayed, b"round and round");
    // Where the loop goes by the kernel, it is found out a round later.
    assert!(
        (4..=10).contains(&caused),
        "one datagram caused {caused}, {path:?}"
    );
}

#[test]
fn the_private_side_of_a_relay_address_is_no_peer() {
    let spec = translated_relay();
    let server = spec.servers()[0];
    let mut scene = Scene::new(&[spec]);
    let (way, other_way) = (Way::Direct(addr(CLIENT)), Way::Direct(addr(OTHER_CLIENT)));
    scene.allocate(&way, server);
    let other = scene.allocate(&other_way, server);
    let private = SocketAddr::new("10.9.0.1".parse().unwrap(), other.port());
    let code = scene.tester.permit(&mut scene.world, &way, server, private);
    assert_eq!(code, Some(403));
}

/// Ends that answer everything: the only loops that go on are the users' own, outside of the relay.
#[test]
fn a_relay_sends_at_most_one_datagram_for_each_it_receives() {
    let spec = translated_relay();
    let server = spec.servers()[0];
    let mut scene = Scene::new(&[spec]);
    let way = Way::Direct(addr(CLIENT));
    let relayed = scene.allocate(&way, server);
    scene.permit(&way, server, addr(PEER));
    scene.permit(&way, server, relayed);
    let cases: &[(&str, SocketAddr, &[u8])] = &[
        (PEER, relayed, b"data"),
        (PEER, relayed, &[0x40, 0, 0, 0]),
        (PEER, server, &[0x40, 0, 0, 0]),
        (OTHER_CLIENT, server, &[0; 20]),
        (
            OTHER_CLIENT,
            relayed,
            b"data without permission is from the same host",
        ),
    ];
    for (source, to, bytes) in cases {
        let sent = scene.count_caused_by(source, *to, bytes);
        assert!(sent <= 2, "{bytes:?} from {source} to {to} caused {sent}");
    }
}
