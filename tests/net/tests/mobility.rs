//! Mobility (RFC 8016) on the wire: coturn's client moves to another port in the middle of its run, and
//! ours before it sends; nothing is lost, whichever shard the new port belongs to.

use std::net::SocketAddr;

use towpath_net::{
    Driver, EchoPeer, Kind, Lab, PASSWORD, Server, ServerOptions, USER, Uclient, address, tool,
};

const SERVER: &str = "10.77.2.1";
const PEER: &str = "10.77.2.3";

/// Runs coturn's client with mobility: each of its clients makes an allocation, shows its ticket from a
/// new socket, and sends from there.
fn moves_without_loss(kind: Kind, shards: u16, flags: &[&str]) {
    let programs = [
        "turnutils_uclient",
        "turnutils_peer",
        "turnserver",
        "timeout",
    ];
    let Some(lab) = Lab::with(&programs) else {
        return;
    };
    let server_host = lab.host("server", &["10.77.2.1/24"]);
    let client_host = lab.host("client", &["10.77.2.2/24"]);
    let peer_host = lab.host("peer", &["10.77.2.3/24"]);
    let options = ServerOptions {
        mobility: true,
        shards,
        ..ServerOptions::on(&[address(SERVER)])
    };
    let server = Server::start(kind, &server_host, &options);
    let peer = SocketAddr::new(address(PEER), 3480);
    let _peer = EchoPeer::start(&peer_host, &[peer]);
    let client = Uclient {
        flags: &[&["-M"], flags].concat(),
        server: SocketAddr::new(address(SERVER), 3478),
        peer: (!flags.contains(&"-y")).then_some(peer),
        clients: 4,
        messages: 100,
    };
    client.loses_nothing_on(&client_host);
    if kind != Kind::Coturn {
        server.wait_for_control();
        let status = server.status_json();
        let moved = status["allocations_moved"].as_u64().expect("it is counted");
        assert!(moved >= 4, "{status}");
    }
}

macro_rules! moves {
    ($($name:ident: $kind:expr, $shards:expr, $flags:expr;)*) => {
        $(#[test] fn $name() { moves_without_loss($kind, $shards, &$flags); })*
    };
}

const RING: Kind = Kind::Towpath(Driver::IoUring);
const EPOLL: Kind = Kind::Towpath(Driver::Epoll);

moves! {
    coturn_moves_its_client: Kind::Coturn, 0, ["-c"];
    channels_over_io_uring: RING, 1, ["-c"];
    channels_over_io_uring_between_two_shards: RING, 2, ["-c"];
    channels_over_epoll: EPOLL, 1, ["-c"];
    channels_over_epoll_between_two_shards: EPOLL, 2, ["-c"];
    indications_over_io_uring_between_two_shards: RING, 2, ["-c", "-s"];
    indications_over_epoll_between_two_shards: EPOLL, 2, ["-c", "-s"];
    even_ports_over_io_uring_between_two_shards: RING, 2, [];
    clients_among_themselves_over_epoll_between_two_shards: EPOLL, 2, ["-y", "-c"];
}

/// Our own client, often enough that it moves from shard to shard.
#[test]
fn our_own_client_moves_between_shards_and_loses_nothing() {
    let Some(lab) = Lab::new() else {
        return;
    };
    let host = lab.host("server", &["10.77.2.1/24"]);
    for driver in [Driver::IoUring, Driver::Epoll] {
        let options = ServerOptions {
            mobility: true,
            shards: 2,
            ..ServerOptions::on(&[address(SERVER)])
        };
        let server = Server::start(Kind::Towpath(driver), &host, &options);
        server.wait_for_control();
        for _ in 0..8 {
            let arguments = [
                "turn",
                SERVER,
                "--user",
                USER,
                "--password",
                PASSWORD,
                "--mobility",
                "--count",
                "200",
                "--rate",
                "2000",
                "--json",
            ];
            let report = tool(&host, &arguments);
            let report: serde_json::Value = serde_json::from_str(&report).unwrap();
            assert_eq!(report["lost"], 0, "{report}");
            assert!(report["moved_us"].as_f64().unwrap() > 0.0, "{report}");
        }
        let status = server.status_json();
        assert_eq!(status["allocations_moved"], 16, "{status}");
        assert!(server.stop().success());
    }
}
