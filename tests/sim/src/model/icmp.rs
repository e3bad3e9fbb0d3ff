//! What clients are told of ICMP errors (RFC 8656 §11.5).

use std::net::SocketAddr;

use towpath_proto::Timestamp;
use towpath_proto::relay::DropReason;

use super::{Alive, Alternative, Expectation, Flow, Model, Sent, travels};
use crate::stun::{self, attribute, kind};
use crate::world::IcmpError;

impl Model {
    /// An ICMP error arrives about a datagram from a relayed port.
    pub fn icmp_error(&self, now: Timestamp, error: &IcmpError) -> Expectation {
        use DropReason::{IcmpNotPermitted, IcmpTooMany, IcmpUnusable, NoSuchPort};
        let refused = Alternative::Drop(&[NoSuchPort, IcmpUnusable, IcmpNotPermitted]);
        let peer = error.destination;
        let flow = self.ports.get(&error.source);
        let found = flow.and_then(|flow| Some((*flow, self.allocations.get(flow)?)));
        let Some((flow, allocation)) = found else {
            return vec![refused];
        };
        let mut addresses = allocation.addresses.iter();
        let Some(address) = addresses.find(|address| address.local == error.source) else {
            return vec![refused];
        };
        let is_told = match peer {
            SocketAddr::V4(_) => [3, 11].contains(&error.icmp_type),
            SocketAddr::V6(_) => (1..=3).contains(&error.icmp_type),
        };
        let permission = allocation.permissions.get(&peer.ip());
        let may = self
            .rules
            .alive(now, address.expires)
            .and(permission.map_or(Alive::No, |until| self.rules.alive(now, *until)));
        if !is_told || may == Alive::No {
            return vec![refused];
        }
        let too_big = match peer {
            SocketAddr::V4(_) => error.icmp_type == 3 && error.code == 4,
            SocketAddr::V6(_) => error.icmp_type == 2,
        };
        let [m0, m1, m2, m3] = if too_big { error.mtu } else { 0 }.to_be_bytes();
        let value = [0, 0, error.icmp_type << 1, error.code, m0, m1, m2, m3];
        let mut expected = vec![
            Alternative::Icmp(peer, flow, value),
            // How many are told is not modelled; that few are is for the relay's own tests.
            Alternative::Drop(&[IcmpTooMany]),
        ];
        if may == Alive::Maybe {
            expected.push(refused);
        }
        expected
    }
}

/// Whether a datagram tells the client of this error, and of nothing else.
pub(super) fn tells(sent: &Sent, flow: Flow, peer: SocketAddr, value: [u8; 8]) -> bool {
    let Some(message) = stun::parse(&sent.payload) else {
        return false;
    };
    travels(sent, flow)
        && sent.traffic_class == 0
        && message.kind == kind::DATA
        && message.attributes.len() == 2
        && message.address(attribute::XOR_PEER_ADDRESS) == Some(peer)
        && message.find(attribute::ICMP) == Some(&value[..])
}
