//! ICMP errors about what clients sent to peers, as Data indications (RFC 8656 §11.5).
//!
//! Anybody may forge such an error, and a client may cause as many as it sends datagrams. They are
//! told in small numbers, beside data and never instead of it.

use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::rand_core::Rng;

use super::address::PeerAddr;
use crate::Timestamp;
use crate::machine::{IcmpError, PortId, Socket};
use crate::relay::{DropReason, Endpoint, MAX_ANSWER_BYTES, Relay};
use crate::wire::attribute::{Icmp, XorPeerAddress};
use crate::wire::{Class, MessageType, MessageWriter, Method, TransactionId, WriteError};

/// The time for which an allocation is told of one error.
const INTERVAL: Duration = Duration::from_millis(50);

/// What it is told of at once after a pause: a second's worth.
const BURST: Duration = Duration::from_secs(1);

/// Allocations whose numbers are this far apart share a budget.
const BUDGETS: usize = 256;

/// How many errors allocations are still told of: each the time at which it is full again (GCRA).
#[derive(Debug)]
pub(crate) struct IcmpBudgets(Box<[Timestamp; BUDGETS]>);

impl IcmpBudgets {
    pub(crate) fn new() -> Self {
        Self(Box::new([Timestamp::ZERO; BUDGETS]))
    }

    /// Whether an allocation is told of one more error now.
    fn admit(&mut self, now: Timestamp, id: PortId) -> bool {
        let budget = &mut self.0[id.0 as usize % BUDGETS];
        let full_at = (*budget).max(now) + INTERVAL;
        let admitted = full_at.saturating_since(now) <= BURST;
        if admitted {
            *budget = full_at;
        }
        admitted
    }
}

impl Relay {
    /// Tells the client of an ICMP error, where it may know.
    pub(crate) fn icmp_error(&mut self, now: Timestamp, error: &IcmpError) {
        match self.try_icmp_error(now, error) {
            Ok(()) => self.counters.icmp_indications.increment(),
            Err(reason) => self.counters.drops(reason).increment(),
        }
    }

    fn try_icmp_error(&mut self, now: Timestamp, error: &IcmpError) -> Result<(), DropReason> {
        let Socket::Relayed(port) = error.socket else {
            return Err(DropReason::IcmpUnusable);
        };
        let icmp = attribute(error).ok_or(DropReason::IcmpUnusable)?;
        let id = self
            .allocations
            .owner_of(port)
            .ok_or(DropReason::NoSuchPort)?;
        self.judge_again(id, now);
        let peer = PeerAddr::new(self.outside(error.destination));
        let (allocation, hasher) = self.allocations.get_mut(id).ok_or(DropReason::NoSuchPort)?;
        allocation
            .port_to(now, id, error.destination.is_ipv6())
            .ok_or(DropReason::NoSuchPort)?;
        // RFC 8656 §11.5: "the server extracts the destination IP address from the encapsulated IP
        // header. The server then compares this address with the IP address associated with each
        // permission … Note that only addresses are compared and port numbers are not considered."
        allocation
            .permissions
            .find(peer.ip, hasher)
            .filter(|permission| permission.expires > now)
            .ok_or(DropReason::IcmpNotPermitted)?;
        let client = Endpoint::of(&allocation.flow);
        if !self.icmp_budgets.admit(now, id) {
            return Err(DropReason::IcmpTooMany);
        }
        self.indicate_icmp(client, peer.socket(), icmp)
    }

    /// Queues a Data indication with an ICMP attribute in place of DATA.
    fn indicate_icmp(
        &mut self,
        to: Endpoint,
        peer: SocketAddr,
        icmp: Icmp,
    ) -> Result<(), DropReason> {
        let mut id = TransactionId([0; 12]);
        self.rng.fill_bytes(&mut id.0);
        self.queue(to, MAX_ANSWER_BYTES, |buffer| write(buffer, id, peer, icmp))
    }
}

fn write(
    buffer: &mut [u8],
    id: TransactionId,
    peer: SocketAddr,
    icmp: Icmp,
) -> Result<usize, WriteError> {
    let kind = MessageType::new(Method::DATA, Class::Indication);
    let mut writer = MessageWriter::new(buffer, kind, id)?;
    // RFC 8656 §11.5: "The Data indication MUST contain both an XOR-PEER-ADDRESS and an ICMP
    // attribute."
    writer.put(&XorPeerAddress(peer))?.put(&icmp)?;
    Ok(writer.len())
}

/// The attribute for an error; `None` for one that is not told.
// RFC 8656 §11.5: "the server verifies that the type is either 3 or 11 for an ICMPv4 packet or either
// 1, 2, or 3 for an ICMPv6 packet."
fn attribute(error: &IcmpError) -> Option<Icmp> {
    let is_v4 = error.destination.is_ipv4();
    let is_told = match is_v4 {
        true => matches!(error.icmp_type, 3 | 11),
        false => matches!(error.icmp_type, 1..=3),
    };
    // RFC 8656 §18.13: the error data are the MTU of "packet too big", and zero elsewhere.
    let is_too_big = match is_v4 {
        true => (error.icmp_type, error.code) == (3, 4),
        false => error.icmp_type == 2,
    };
    is_told.then_some(Icmp {
        icmp_type: error.icmp_type,
        code: error.code.into(),
        error_data: if is_too_big { error.mtu } else { 0 },
    })
}
