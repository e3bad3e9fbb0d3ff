//! Independent clients understand every server: coturn's STUN client, and aioice, a TURN client in
//! another language.

use std::net::SocketAddr;

use towpath_net::{
    Aioice, Driver, EchoPeer, Kind, Lab, PASSWORD, Server, ServerOptions, USER, address,
};

fn stun_client_learns_its_address(kind: Kind, server: &str, client: &str) {
    let Some(lab) = Lab::with(&["turnutils_stunclient", "turnserver"]) else {
        return;
    };
    let host = lab.host("server", &["10.77.2.1/24", "fd77:2::1/64"]);
    let client_host = lab.host("client", &["10.77.2.2/24", "fd77:2::2/64"]);
    let options = ServerOptions::on(&[address("10.77.2.1"), address("fd77:2::1")]);
    let _server = Server::start(kind, &host, &options);
    let report = client_host.run(
        "timeout",
        &["20", "turnutils_stunclient", "-L", client, server],
    );
    let line = report
        .lines()
        .find(|line| line.contains("reflexive addr"))
        .unwrap_or_default();
    let expected = format!("reflexive addr: {client}:");
    assert!(line.contains(&expected), "no `{expected}` in:\n{report}");
}

fn aioice_relays(kind: Kind) {
    let Some(lab) = Lab::with(&["turnutils_peer", "turnserver"]) else {
        return;
    };
    let Some(aioice) = Aioice::find() else {
        return;
    };
    let host = lab.host("server", &["10.77.2.1/24"]);
    let client_host = lab.host("client", &["10.77.2.2/24"]);
    let peer_host = lab.host("peer", &["10.77.2.3/24"]);
    let server = SocketAddr::new(address("10.77.2.1"), 3478);
    let peer = SocketAddr::new(address("10.77.2.3"), 3480);
    let _server = Server::start(kind, &host, &ServerOptions::on(&[server.ip()]));
    let _peer = EchoPeer::start(&peer_host, &[peer]);
    aioice.loses_nothing_on(&client_host, server, (USER, PASSWORD), peer);
}

macro_rules! clients {
    ($($module:ident: $kind:expr;)*) => {
        $(mod $module {
            use super::*;

            #[test]
            fn stunclient_learns_its_address_over_v4() {
                stun_client_learns_its_address($kind, "10.77.2.1", "10.77.2.2");
            }

            #[test]
            fn stunclient_learns_its_address_over_v6() {
                stun_client_learns_its_address($kind, "fd77:2::1", "fd77:2::2");
            }

            #[test]
            fn aioice_relays_through_it() {
                aioice_relays($kind);
            }
        })*
    };
}

clients! {
    coturn: Kind::Coturn;
    towpath_io_uring: Kind::Towpath(Driver::IoUring);
    towpath_epoll: Kind::Towpath(Driver::Epoll);
}
