//! coturn's own client in every mode it has over UDP relays through every server and loses nothing:
//! channels and Send indications, to an echoing peer and between clients, over both families, across
//! them and with allocations in both (`-Z`), with EVEN-PORT and reservations (all but `-c`), padding,
//! requests that nobody needs, and attributes that a server may not know.
//!
//! A row is a test on each server: its name, the client's flags, the family of the server's address and
//! that of the peer's (`None`: clients among themselves). What the server must be told for it, beside
//! what [`ServerOptions::on`] says, follows as a function of the options.

use std::net::{IpAddr, SocketAddr};

use towpath_net::{Driver, EchoPeer, Kind, Lab, Server, ServerOptions, Uclient, address};

const SERVER: [&str; 2] = ["10.77.2.1", "fd77:2::1"];
const PEER: [&str; 2] = ["10.77.2.3", "fd77:2::3"];
const V4: usize = 0;
const V6: usize = 1;

/// Changes what a server is told.
type Tell = fn(&mut ServerOptions);

/// Runs the client with `flags` against the server's address of family `server`, with the peer's
/// address of family `peer`; `None` for clients among themselves.
fn relays_without_loss(
    kind: Kind,
    flags: &[&str],
    server: usize,
    peer: Option<usize>,
    tell: &[Tell],
) {
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
    let mut options = ServerOptions::on(&addresses);
    tell.iter().for_each(|tell| tell(&mut options));
    let _server = Server::start(kind, &server_host, &options);
    let _peer = peer.map(|_| EchoPeer::start(&peer_host, &peers));
    let client = Uclient {
        flags,
        server: SocketAddr::new(addresses[server], 3478),
        peer: peer.map(|family| peers[family]),
        clients: 2,
        messages: 100,
    };
    client.loses_nothing_on(&client_host);
}

macro_rules! rows {
    ($kind:expr; $($name:ident: $flags:expr, $server:expr, $peer:expr $(, $tell:expr)?;)*) => {
        $(#[test] fn $name() {
            relays_without_loss($kind, &$flags, $server, $peer, &[$($tell)?]);
        })*
    };
}

macro_rules! matrix {
    ($($module:ident: $kind:expr;)*) => {
        $(mod $module { use super::*; rows! { $kind;
            channels_with_even_port_over_v4: [], V4, Some(V4);
            channels_over_v4: ["-c"], V4, Some(V4);
            send_indications_over_v4: ["-c", "-s"], V4, Some(V4);
            send_indications_with_even_port_over_v4: ["-s"], V4, Some(V4);
            between_clients_over_v4: ["-y"], V4, None;
            between_clients_by_send_over_v4: ["-y", "-c", "-s"], V4, None;
            between_clients_without_even_port_over_v4: ["-y", "-c"], V4, None;

            v6_relay_from_a_v4_client: ["-c", "-x"], V4, Some(V6);
            v6_relay_with_even_port_over_v6: ["-x"], V6, Some(V6);
            v6_relay_send_indications_over_v6: ["-c", "-x", "-s"], V6, Some(V6);
            v6_relay_between_clients_over_v6: ["-y", "-x"], V6, None;
            v6_relay_between_clients_by_send_over_v6: ["-y", "-c", "-x", "-s"], V6, None;
            v6_relay_between_v4_clients: ["-y", "-x"], V4, None;
            v4_relay_from_a_v6_client: ["-c"], V6, Some(V4);
            v4_relay_between_v6_clients: ["-y", "-c"], V6, None;
            v4_relay_asked_for_over_v4: ["-X", "-c"], V4, Some(V4);
            v4_relay_asked_for_over_v6: ["-X"], V6, Some(V4);

            dual_allocations_to_a_v4_peer: ["-Z", "-c"], V4, Some(V4);
            dual_allocations_to_a_v6_peer: ["-Z", "-c"], V4, Some(V6);
            dual_allocations_by_send_over_v6: ["-Z", "-c", "-s"], V6, Some(V6);
            dual_allocations_between_clients: ["-Z", "-c", "-y"], V4, None;

            padded_channels: ["-c", "-D"], V4, Some(V4);
            padded_channels_over_v6: ["-x", "-D"], V6, Some(V6);
            padded_channels_between_clients: ["-y", "-D"], V4, None;

            extra_requests: ["-c", "-G"], V4, Some(V4);
            dont_fragment_over_v4: ["-c", "-g"], V4, Some(V4);
            dont_fragment_by_send_over_v4: ["-c", "-s", "-g"], V4, Some(V4);
            dont_fragment_over_v6: ["-c", "-x", "-s", "-g"], V6, Some(V6);
            extra_requests_with_even_port: ["-G"], V4, Some(V4);
            extra_requests_and_send_indications: ["-s", "-G"], V4, Some(V4);
            extra_requests_and_padding: ["-c", "-D", "-G"], V4, Some(V4);
            extra_requests_over_v6: ["-x", "-s", "-G"], V6, Some(V6);
            extra_requests_between_clients: ["-y", "-G"], V4, None;

            long_messages: ["-c", "-l", "1400"], V4, Some(V4);
            long_send_indications_over_v6: ["-c", "-x", "-s", "-l", "1300"], V6, Some(V6);
            an_origin_and_a_bandwidth: ["-c", "-o", "https://example.org", "-a", "1000000"], V4, Some(V4);
        }})*
    };
}

matrix! {
    coturn: Kind::Coturn;
    towpath_io_uring: Kind::Towpath(Driver::IoUring);
    towpath_epoll: Kind::Towpath(Driver::Epoll);
}
