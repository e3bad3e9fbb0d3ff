//! coturn's own client relays through every server and loses nothing: channels and Send
//! indications, to an echoing peer and between clients, with EVEN-PORT and reservations (all but
//! `-c`), over both families, across them and with allocations in both (`-Z`).

use std::net::{IpAddr, SocketAddr};

use towpath_net::{Driver, EchoPeer, Kind, Lab, Server, ServerOptions, Uclient, address};

const SERVER: [&str; 2] = ["10.77.2.1", "fd77:2::1"];
const PEER: [&str; 2] = ["10.77.2.3", "fd77:2::3"];
const V4: usize = 0;
const V6: usize = 1;

/// Runs the client with `flags` against the server's address of family `server`, with the peer's
/// address of family `peer`; `None` for clients among themselves.
fn relays_without_loss(kind: Kind, flags: &[&str], server: usize, peer: Option<usize>) {
    let programs = [
        "turnutils_uclient",
        "turnutils_peer",
        "turnserver",
        "timeout",
    ];
    let Some(lab) = Lab::with(&programs) else {
        return;
    };
    let server_host = lab.host("server", &["10.77.2.1/24", "fd77:2::1/64"]);
    let client_host = lab.host("client", &["10.77.2.2/24", "fd77:2::2/64"]);
    let peer_host = lab.host("peer", &["10.77.2.3/24", "fd77:2::3/64"]);
    let addresses: [IpAddr; 2] = SERVER.map(address);
    let peers = PEER.map(|peer| SocketAddr::new(address(peer), 3480));
    let _server = Server::start(kind, &server_host, &ServerOptions::on(&addresses));
    let _peer = peer.map(|_| EchoPeer::start(&peer_host, &peers));
    let client = Uclient {
        flags,
        server: SocketAddr::new(addresses[server], 3478),
        peer: peer.map(|family| peers[family]),
        clients: 2,
        messages: 100,
    };
    let outcome = client
        .run(&client_host)
        .unwrap_or_else(|output| panic!("{output}"));
    assert_eq!(outcome.lost, 0, "{outcome:?}");
    assert_eq!(outcome.sent, outcome.received, "{outcome:?}");
    assert!(outcome.sent >= 200, "{outcome:?}");
}

macro_rules! cases {
    ($kind:expr; $($name:ident: $flags:expr, $server:expr, $peer:expr;)*) => {
        $(#[test] fn $name() { relays_without_loss($kind, &$flags, $server, $peer); })*
    };
}

macro_rules! matrix {
    ($($module:ident: $kind:expr;)*) => {
        $(mod $module { use super::*; cases! { $kind;
            channels_with_even_port_over_v4: [], V4, Some(V4);
            channels_over_v4: ["-c"], V4, Some(V4);
            send_indications_over_v4: ["-c", "-s"], V4, Some(V4);
            between_clients_over_v4: ["-y"], V4, None;
            between_clients_by_send_over_v4: ["-y", "-c", "-s"], V4, None;
            v6_relay_from_a_v4_client: ["-c", "-x"], V4, Some(V6);
            v6_relay_with_even_port_over_v6: ["-x"], V6, Some(V6);
            v6_relay_send_indications_over_v6: ["-c", "-x", "-s"], V6, Some(V6);
            v6_relay_between_clients_over_v6: ["-y", "-x"], V6, None;
            v4_relay_from_a_v6_client: ["-c"], V6, Some(V4);
            v4_relay_asked_for_over_v6: ["-X"], V6, Some(V4);
            dual_allocations_to_a_v4_peer: ["-Z", "-c"], V4, Some(V4);
            dual_allocations_to_a_v6_peer: ["-Z", "-c"], V4, Some(V6);
            dual_allocations_by_send_over_v6: ["-Z", "-c", "-s"], V6, Some(V6);
            dual_allocations_between_clients: ["-Z", "-c", "-y"], V4, None;
            padded_channels: ["-c", "-D"], V4, Some(V4);
            extra_requests: ["-c", "-G"], V4, Some(V4);
            dont_fragment_over_v4: ["-c", "-g"], V4, Some(V4);
            dont_fragment_by_send_over_v4: ["-c", "-s", "-g"], V4, Some(V4);
            dont_fragment_over_v6: ["-c", "-x", "-s", "-g"], V6, Some(V6);
        }})*
    };
}

matrix! {
    coturn: Kind::Coturn;
    towpath_io_uring: Kind::Towpath(Driver::IoUring);
    towpath_epoll: Kind::Towpath(Driver::Epoll);
}
