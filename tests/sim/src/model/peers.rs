//! Where data to and from a peer goes: the relay's own addresses, and those that nobody may reach.

use std::net::{IpAddr, SocketAddr};

use towpath_proto::Timestamp;

use super::special_use::{self, Verdict};
use super::{Alive, Model};

/// What the rules say about an address as a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judged {
    /// Permissions for it are granted.
    Allowed,
    /// Permissions for it are refused.
    Denied,
    /// Either.
    Unclear,
}

impl Model {
    /// What the rules say about an address as a peer.
    pub fn judge_peer(&self, ip: IpAddr) -> Judged {
        let rules = &self.rules;
        if rules.denied.contains(&ip) {
            return Judged::Denied;
        }
        if rules
            .relay_addresses
            .iter()
            .any(|(_, public)| *public == ip)
        {
            return Judged::Allowed;
        }
        if rules.own_addresses.contains(&ip) {
            return Judged::Denied;
        }
        if self.hides_own_address(ip) {
            // No port there may be reached; whether the permission is refused is open.
            return Judged::Unclear;
        }
        if rules.allowed.contains(&ip) {
            return Judged::Allowed;
        }
        match special_use::verdict(ip) {
            Verdict::SpecialUse => Judged::Denied,
            Verdict::Global => Judged::Allowed,
            Verdict::Unclear => Judged::Unclear,
        }
    }

    fn hides_own_address(&self, ip: IpAddr) -> bool {
        let IpAddr::V6(v6) = ip else { return false };
        let own = &self.rules.own_addresses;
        special_use::embedded_v4(v6).any(|v4| own.contains(&IpAddr::V4(v4)))
    }

    /// Whether data may go to a peer's address, and where it then goes on the relay's host: the
    /// relayed port of another allocation is reached at its local address.
    pub(super) fn route(&self, now: Timestamp, peer: SocketAddr) -> (Alive, SocketAddr) {
        let rules = &self.rules;
        let relay_address = rules
            .relay_addresses
            .iter()
            .find(|(_, public)| *public == peer.ip());
        if let Some((local, _)) = relay_address {
            let local = SocketAddr::new(*local, peer.port());
            return (self.relayed_port(now, local), local);
        }
        let own = rules.own_addresses.contains(&peer.ip()) || self.hides_own_address(peer.ip());
        (if own { Alive::No } else { Alive::Yes }, peer)
    }

    /// The peer behind the source of a datagram, as its clients know it, and whether data from it
    /// may be relayed: not from an address of the relay's host that is no relayed port.
    pub(super) fn peer_of(&self, now: Timestamp, remote: SocketAddr) -> (Alive, SocketAddr) {
        let rules = &self.rules;
        let port = remote.port();
        let pair = rules
            .relay_addresses
            .iter()
            .find(|(local, public)| *local == remote.ip() || *public == remote.ip());
        if let Some((local, public)) = pair {
            let alive = self.relayed_port(now, SocketAddr::new(*local, port));
            return (alive, SocketAddr::new(*public, port));
        }
        let own = rules.own_addresses.contains(&remote.ip());
        (if own { Alive::No } else { Alive::Yes }, remote)
    }

    fn relayed_port(&self, now: Timestamp, local: SocketAddr) -> Alive {
        let Some(flow) = self.ports.get(&local) else {
            return Alive::No;
        };
        let allocation = self.allocations.get(flow);
        let Some(address) = allocation.and_then(|allocation| allocation.at(local)) else {
            return Alive::Maybe;
        };
        // The port belongs to the allocation until it is closed.
        match self.rules.alive(now, address.expires) {
            Alive::No => Alive::Maybe,
            alive => alive,
        }
    }
}
