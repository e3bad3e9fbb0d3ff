//! Addresses as the tables keep them: compact, and comparable without looking at the family.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// A peer's transport address; IPv4 as IPv4-mapped IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PeerAddr {
    pub(crate) ip: PeerIp,
    pub(crate) port: u16,
}

/// A peer's address; IPv4 as IPv4-mapped IPv6. A mapped address on the wire never gets this far.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PeerIp([u8; 16]);

impl PeerIp {
    #[inline]
    pub(crate) fn new(ip: IpAddr) -> Self {
        Self(octets(ip))
    }

    #[inline]
    pub(crate) fn ip(self) -> IpAddr {
        address(self.0)
    }

    pub(crate) fn bits(self) -> u128 {
        u128::from_ne_bytes(self.0)
    }
}

impl PeerAddr {
    #[inline]
    pub(crate) fn new(peer: SocketAddr) -> Self {
        Self {
            ip: PeerIp::new(peer.ip()),
            port: peer.port(),
        }
    }

    #[inline]
    pub(crate) fn socket(self) -> SocketAddr {
        SocketAddr::new(self.ip.ip(), self.port)
    }
}

/// A client's 5-tuple; its transport is UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Flow {
    client: [u8; 16],
    server: [u8; 16],
    /// Which link a link-local client is on.
    scope: u32,
    client_port: u16,
    /// The listening address it came to, which stands for the server's port.
    pub(crate) listener: u16,
}

impl Flow {
    #[inline]
    pub(crate) fn new(listener: u16, server: IpAddr, client: SocketAddr) -> Self {
        let scope = match client {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        };
        Self {
            client: octets(client.ip()),
            server: octets(server),
            scope,
            client_port: client.port(),
            listener,
        }
    }

    /// The client's address.
    #[inline]
    pub(crate) fn client(&self) -> SocketAddr {
        match address(self.client) {
            IpAddr::V4(v4) => SocketAddr::new(IpAddr::V4(v4), self.client_port),
            IpAddr::V6(v6) => SocketAddrV6::new(v6, self.client_port, 0, self.scope).into(),
        }
    }

    /// The server's address the client sends to.
    #[inline]
    pub(crate) fn server(&self) -> IpAddr {
        address(self.server)
    }

    /// What is hashed; the rest hardly ever differs.
    #[inline]
    pub(crate) fn hash_input(&self) -> (u128, u64) {
        let port = u64::from(self.client_port) << 16 | u64::from(self.listener);
        (u128::from_ne_bytes(self.client), port)
    }
}

#[inline]
fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[inline]
fn address(octets: [u8; 16]) -> IpAddr {
    match octets {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => IpAddr::from([a, b, c, d]),
        _ => IpAddr::V6(Ipv6Addr::from(octets)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_survive_the_compact_form() {
        for text in [
            "192.0.2.1:5000",
            "[2001:db8::1]:5000",
            "[fe80::1%3]:5000",
            "0.0.0.0:1",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            let flow = Flow::new(0, address.ip(), address);
            assert_eq!(flow.client(), address);
            assert_eq!(flow.server(), address.ip());
            assert_eq!(PeerAddr::new(address).socket().ip(), address.ip());
        }
    }
}
