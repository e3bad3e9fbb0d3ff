//! coturn's own client through the kernel path: nothing is lost on any rung, and what has a channel is
//! relayed by the kernel, packet for packet.

use std::net::SocketAddr;

use towpath_net::{
    Addresses, Driver, EchoPeer, KernelLab, KernelMode, Kind, Pinned, Server, Uclient,
    UclientOutcome,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    V4,
    V6,
}
use Family::{V4, V6};

impl Family {
    fn addresses(self) -> Addresses {
        match self {
            V4 => Addresses::v4(),
            V6 => Addresses::v6(),
        }
    }
}

/// Who relays the client's messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    /// The kernel, both ways.
    Kernel,
    /// Userspace: they have no channel, or stay within the relay.
    Userspace,
}

/// Runs the client with `flags` against the server's address of family `server`, with the peer's
/// address of family `peer`; `None` for clients among themselves.
fn relays_without_loss(
    mode: KernelMode,
    flags: &[&str],
    server: Family,
    peer: Option<Family>,
    by: By,
) {
    let programs = ["turnutils_uclient", "turnutils_peer", "timeout"];
    let Some(lab) = KernelLab::new(&programs) else {
        return;
    };
    let kind = Kind::Towpath(Driver::Auto);
    let _server = Server::start(kind, &lab.relay, &lab.options(mode));
    let peers = [V4, V6].map(|family| SocketAddr::new(family.addresses().peer, 3480));
    let _peer = peer.map(|_| EchoPeer::start(&lab.peer, &peers));
    // The kernel relays to neighbours that are known.
    for family in [V4, V6] {
        lab.peer.knock(family.addresses().relayed);
    }
    let client = Uclient {
        flags,
        server: server.addresses().server(),
        peer: peer.map(|family| SocketAddr::new(family.addresses().peer, 3480)),
        clients: 2,
        messages: 100,
    };
    let UclientOutcome { sent, .. } = client.loses_nothing_on(&lab.client);
    if mode != KernelMode::Off {
        let pinned = Pinned::open(lab.pins());
        let expected = if by == By::Kernel { 2 * sent } else { 0 };
        assert_eq!(pinned.relayed(), expected, "{:?}", pinned.reasons());
    }
}

macro_rules! cases {
    ($mode:expr; $($name:ident: $flags:expr, $server:expr, $peer:expr, $by:expr;)*) => {
        $(#[test] fn $name() { relays_without_loss($mode, &$flags, $server, $peer, $by); })*
    };
}

mod native {
    use super::*;

    cases! { KernelMode::Native;
        channels_with_even_port_over_v4: [], V4, Some(V4), By::Kernel;
        channels_over_v4: ["-c"], V4, Some(V4), By::Kernel;
        send_indications_over_v4: ["-c", "-s"], V4, Some(V4), By::Userspace;
        between_clients_over_v4: ["-y"], V4, None, By::Userspace;
        between_clients_by_send_over_v4: ["-y", "-c", "-s"], V4, None, By::Userspace;
        v6_relay_from_a_v4_client: ["-c", "-x"], V4, Some(V6), By::Kernel;
        v6_relay_with_even_port_over_v6: ["-x"], V6, Some(V6), By::Kernel;
        v6_relay_send_indications_over_v6: ["-c", "-x", "-s"], V6, Some(V6), By::Userspace;
        v4_relay_from_a_v6_client: ["-c"], V6, Some(V4), By::Kernel;
        padded_channels: ["-c", "-D"], V4, Some(V4), By::Kernel;
        extra_requests: ["-c", "-G"], V4, Some(V4), By::Kernel;
    }
}

mod generic {
    use super::*;

    cases! { KernelMode::Generic;
        channels_over_v4: ["-c"], V4, Some(V4), By::Kernel;
        send_indications_over_v4: ["-c", "-s"], V4, Some(V4), By::Userspace;
        between_clients_over_v4: ["-y"], V4, None, By::Userspace;
        v6_relay_from_a_v4_client: ["-c", "-x"], V4, Some(V6), By::Kernel;
        v6_relay_with_even_port_over_v6: ["-x"], V6, Some(V6), By::Kernel;
    }
}

mod userspace {
    use super::*;

    cases! { KernelMode::Off;
        channels_over_v4: ["-c"], V4, Some(V4), By::Userspace;
        v6_relay_from_a_v4_client: ["-c", "-x"], V4, Some(V6), By::Userspace;
    }
}
