use super::*;

const MS: Duration = Duration::from_millis(1);

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn packet(sender: HostId, source: &str, destination: &str, payload: &[u8]) -> Packet {
    let (source, destination) = (addr(source), addr(destination));
    Packet {
        source,
        destination,
        traffic_class: 0,
        payload: payload.to_vec(),
        sender,
    }
}

fn two_hosts(link: Link) -> (Network, HostId, HostId, Trace) {
    let mut network = Network::new(link, Dice::new(1));
    let a = network.add_host(&[ip("8.0.0.1"), ip("2a00::1")], Edge::Open);
    let pairs = vec![(ip("10.0.0.4"), ip("9.0.0.1"))];
    let b = network.add_host(
        &[ip("10.0.0.4")],
        Edge::OneToOne {
            pairs,
            hairpin: false,
        },
    );
    (network, a, b, Trace::new())
}

#[test]
fn a_translated_host_is_reached_by_its_public_address_and_answers_from_it() {
    let (mut network, a, b, mut trace) = two_hosts(Link::perfect(MS));
    let now = Timestamp::from_nanos(5);
    let there = network.send(now, packet(a, "8.0.0.1:7", "9.0.0.1:9", b"x"), &mut trace);
    let arrived = packet(a, "8.0.0.1:7", "10.0.0.4:9", b"x");
    assert_eq!(
        there,
        [Arrival {
            at: now + MS,
            host: b,
            packet: arrived
        }]
    );
    let back = network.send(now, packet(b, "10.0.0.4:9", "8.0.0.1:7", b"y"), &mut trace);
    assert_eq!(back[0].packet, packet(b, "9.0.0.1:9", "8.0.0.1:7", b"y"));
    let inside = network.send(now, packet(a, "8.0.0.1:7", "10.0.0.4:9", b"z"), &mut trace);
    assert_eq!(
        inside,
        [],
        "the local address cannot be reached from outside"
    );
    let hairpin = network.send(now, packet(b, "10.0.0.4:9", "9.0.0.1:9", b"z"), &mut trace);
    assert_eq!(hairpin, [], "this edge does not turn packets around");
}

#[test]
fn a_translated_host_gets_another_public_address() {
    let (inside, before, after) = (ip("10.0.0.1"), ip("8.0.0.1"), ip("8.0.0.2"));
    let mut network = Network::new(Link::perfect(MS), Dice::new(1));
    let edge = Edge::OneToOne {
        pairs: vec![(inside, before)],
        hairpin: false,
    };
    let host = network.add_host(&[inside], edge);
    let other = network.add_host(&[ip("9.0.0.1")], Edge::Open);
    let mut trace = Trace::new();
    network.renumber(host, before, after);
    let sent = packet(host, "10.0.0.1:7", "9.0.0.1:9", b"x");
    let arrivals = network.send(Timestamp::ZERO, sent, &mut trace);
    assert_eq!(arrivals[0].packet.source, addr("8.0.0.2:7"));
    let sent = packet(other, "9.0.0.1:9", "8.0.0.2:7", b"x");
    let arrivals = network.send(Timestamp::ZERO, sent, &mut trace);
    assert_eq!(arrivals[0].packet.destination, addr("10.0.0.1:7"));
    let sent = packet(other, "9.0.0.1:9", "8.0.0.1:7", b"x");
    assert_eq!(network.send(Timestamp::ZERO, sent, &mut trace), []);
}

#[test]
fn what_a_kernel_keeps_on_the_host_stays_there() {
    let (mut network, a, _, mut trace) = two_hosts(Link::perfect(MS));
    for (to, as_seen) in [
        ("127.0.0.1:9", "127.0.0.1:9"),
        ("0.0.0.0:9", "127.0.0.1:9"),
        ("[::]:9", "[::1]:9"),
        ("[::ffff:127.0.0.1]:9", "127.0.0.1:9"),
        ("[2a00::1]:9", "[2a00::1]:9"),
    ] {
        let now = Timestamp::ZERO;
        let arrivals = network.send(now, packet(a, "8.0.0.1:7", to, b"x"), &mut trace);
        assert_eq!(arrivals[0].host, a, "{to}");
        assert_eq!(arrivals[0].packet.destination, addr(as_seen), "{to}");
    }
}

#[test]
fn links_lose_duplicate_and_corrupt_as_often_as_they_say() {
    let link = Link {
        loss: PerMillion(200_000),
        duplication: PerMillion(100_000),
        corruption: PerMillion(50_000),
        ..Link::perfect(MS)
    };
    let (mut network, a, _, mut trace) = two_hosts(link);
    let mut corrupted = 0;
    for _ in 0..10_000 {
        let sent = packet(a, "8.0.0.1:7", "9.0.0.1:9", b"payload");
        for arrival in network.send(Timestamp::ZERO, sent, &mut trace) {
            corrupted += u64::from(arrival.packet.payload != b"payload");
        }
    }
    let counts = network.counts();
    assert!((1_800..2_200).contains(&counts.lost), "{counts:?}");
    assert!((700..900).contains(&counts.duplicated), "{counts:?}");
    assert!((350..550).contains(&corrupted), "{corrupted}");
    assert_eq!(
        counts.sent + counts.duplicated - counts.lost,
        counts.arrived
    );
}

#[test]
fn a_link_marks_those_that_understand_ecn_and_loses_what_is_too_long() {
    let link = Link {
        congestion: PerMillion(1_000_000),
        most_bytes: 7,
        ..Link::perfect(MS)
    };
    let (mut network, a, _, mut trace) = two_hosts(link);
    for (before, after) in [(0b1011_1000, 0b1011_1000), (0b10, 0b11), (0b101, 0b111)] {
        let mut sent = packet(a, "8.0.0.1:7", "9.0.0.1:9", b"payload");
        sent.traffic_class = before;
        let arrivals = network.send(Timestamp::ZERO, sent, &mut trace);
        assert_eq!(arrivals[0].packet.traffic_class, after);
    }
    let sent = packet(a, "8.0.0.1:7", "9.0.0.1:9", b"payloads");
    assert_eq!(network.send(Timestamp::ZERO, sent, &mut trace), []);
    assert_eq!(network.counts().lost, 1);
}

#[test]
fn jitter_keeps_the_order_and_reordering_does_not() {
    let jitter = Duration::ZERO..20 * MS;
    for (reordering, expected) in [(PerMillion(0), false), (PerMillion(300_000), true)] {
        let link = Link {
            jitter: jitter.clone(),
            reordering: (reordering, 50 * MS),
            ..Link::perfect(MS)
        };
        let (mut network, a, _, mut trace) = two_hosts(link);
        let mut times = Vec::new();
        for i in 0..200 {
            let sent = packet(a, "8.0.0.1:7", "9.0.0.1:9", b"x");
            let now = Timestamp::ZERO + MS * i;
            times.extend(network.send(now, sent, &mut trace).iter().map(|a| a.at));
        }
        assert_eq!(!times.is_sorted(), expected);
    }
}

#[test]
fn a_partition_ends() {
    let (mut network, a, b, mut trace) = two_hosts(Link::perfect(MS));
    network.partition(a, b, Timestamp::ZERO + 5 * MS);
    let mut sent = |at| network.send(at, packet(a, "8.0.0.1:7", "9.0.0.1:9", b"x"), &mut trace);
    assert_eq!(sent(Timestamp::ZERO + 4 * MS), []);
    assert_eq!(sent(Timestamp::ZERO + 5 * MS).len(), 1);
}

#[test]
fn a_port_has_one_socket_and_a_wildcard_takes_it_on_all_addresses() {
    let (mut network, a, _, _) = two_hosts(Link::perfect(MS));
    assert_eq!(network.bind(a, addr("0.0.0.0:3478")), Ok(()));
    assert_eq!(network.bind(a, addr("8.0.0.1:3478")), Err(BindError::InUse));
    assert_eq!(network.bind(a, addr("8.0.0.2:1")), Err(BindError::NotLocal));
    assert_eq!(network.bind(a, addr("[::]:3478")), Ok(()));
    assert_eq!(network.bind(a, addr("8.0.0.1:1")), Ok(()));
    assert_eq!(network.bind(a, addr("8.0.0.1:1")), Err(BindError::InUse));
    assert!(network.close(a, addr("8.0.0.1:1")) && !network.close(a, addr("8.0.0.1:1")));
    assert_eq!(
        network.socket_for(a, addr("8.0.0.1:3478")),
        Some(addr("0.0.0.0:3478"))
    );
    assert_eq!(network.socket_for(a, addr("8.0.0.1:1")), None);
}
