//! Addresses as the tables keep them: compact, and comparable without looking at the family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::wire::attribute::Family;

/// An IP address in two words, the high one first; IPv4 as IPv4-mapped IPv6. A mapped address on the
/// wire never gets this far.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct CompactIp([u64; 2]);

/// The words of ::ffff:0:0, without the IPv4 address.
const MAPPED: [u64; 2] = [0, 0xffff << 32];

impl CompactIp {
    #[inline]
    pub(crate) fn new(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self([MAPPED[0], MAPPED[1] | u64::from(v4.to_bits())]),
            IpAddr::V6(v6) => {
                let bits = v6.to_bits();
                Self([(bits >> 64) as u64, bits as u64])
            }
        }
    }

    #[inline]
    pub(crate) fn ip(self) -> IpAddr {
        let [high, low] = self.0;
        if high == MAPPED[0] && low >> 32 == MAPPED[1] >> 32 {
            IpAddr::V4(Ipv4Addr::from_bits(low as u32))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(self.bits()))
        }
    }

    pub(crate) fn family(self) -> Family {
        Family::of(self.ip())
    }

    #[inline]
    pub(crate) fn bits(self) -> u128 {
        u128::from(self.0[0]) << 64 | u128::from(self.0[1])
    }
}

/// A peer's transport address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PeerAddr {
    pub(crate) ip: CompactIp,
    pub(crate) port: u16,
}

impl PeerAddr {
    #[inline]
    pub(crate) fn new(peer: SocketAddr) -> Self {
        Self {
            ip: CompactIp::new(peer.ip()),
            port: peer.port(),
        }
    }

    #[inline]
    pub(crate) fn socket(self) -> SocketAddr {
        SocketAddr::new(self.ip.ip(), self.port)
    }
}

/// A client's 5-tuple; its transport is UDP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Flow {
    client: CompactIp,
    server: CompactIp,
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
            client: CompactIp::new(client.ip()),
            server: CompactIp::new(server),
            scope,
            client_port: client.port(),
            listener,
        }
    }

    /// The client's address.
    #[inline]
    pub(crate) fn client(&self) -> SocketAddr {
        match self.client.ip() {
            IpAddr::V4(v4) => SocketAddr::new(IpAddr::V4(v4), self.client_port),
            IpAddr::V6(v6) => SocketAddrV6::new(v6, self.client_port, 0, self.scope).into(),
        }
    }

    /// The server's address the client sends to.
    #[inline]
    pub(crate) fn server(&self) -> IpAddr {
        self.server.ip()
    }

    /// What is hashed; the rest hardly ever differs.
    #[inline]
    pub(crate) fn hash_input(&self) -> (u128, u64) {
        let port = u64::from(self.client_port) << 16 | u64::from(self.listener);
        (self.client.bits(), port)
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
