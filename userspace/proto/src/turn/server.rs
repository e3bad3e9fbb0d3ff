//! The server's side of TURN over UDP: one file for each method, and the tables behind them.

mod address;
mod allocate;
mod allocation;
mod alternate;
mod channel;
mod channels;
mod data;
mod destinations;
mod end;
mod icmp;
mod mobility;
mod nesting;
mod permission;
mod permissions;
mod refresh;
mod routes;
mod table;
mod ticket;

pub(crate) use address::Flow;
pub(crate) use allocation::{Allocations, Relayed};
pub use destinations::NewPeers;
pub(crate) use end::Deleted;
pub(crate) use icmp::IcmpBudgets;
pub(crate) use mobility::Mobiles;
pub(crate) use nesting::is_in_a_loop;
pub(crate) use routes::Routes;

use std::time::Duration;

use crate::wire::attribute::UnknownAttributes;
use crate::wire::{AttributeType, Message};

/// RFC 8656 §9: "The Permission Lifetime MUST be 300 seconds (= 5 minutes)."
pub(crate) const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);

/// RFC 8656 §12: channel bindings last "10 minutes unless refreshed".
pub(crate) const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);

/// The attributes of a TURN message that have to be understood and are not.
pub(crate) fn unknown_attributes(message: &Message<'_>) -> UnknownAttributes {
    message.unknown_required(|kind| {
        matches!(
            kind,
            AttributeType::USERNAME
                | AttributeType::USERHASH
                | AttributeType::REALM
                | AttributeType::NONCE
                | AttributeType::PASSWORD_ALGORITHM
                | AttributeType::CHANNEL_NUMBER
                | AttributeType::LIFETIME
                | AttributeType::XOR_PEER_ADDRESS
                | AttributeType::DATA
                | AttributeType::REQUESTED_ADDRESS_FAMILY
                | AttributeType::EVEN_PORT
                | AttributeType::DONT_FRAGMENT
                | AttributeType::REQUESTED_TRANSPORT
                | AttributeType::RESERVATION_TOKEN
        )
    })
}
