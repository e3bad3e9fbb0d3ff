//! How allocations end, and what is remembered of them.

use std::sync::atomic::Ordering;

use ahash::RandomState;

use super::address::Flow;
use super::allocation::{Allocation, Relayed, State};
use super::routes::Routes;
use crate::Timestamp;
use crate::machine::PortId;
use crate::relay::{AllocationOwner, EndReason, Metered, Notice, Relay, RelayCommand};
use crate::slots::{PeerSlot, Slots, Way};
use crate::wire::TransactionId;
use crate::wire::attribute::Family;

impl Relay {
    /// Ends an allocation: its ports are closed and go back to the pool.
    pub(crate) fn end(&mut self, now: Timestamp, id: PortId, reason: EndReason) {
        self.remove_routes(id);
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        debug_assert!(
            !matches!(allocation.state, State::Opening { .. }),
            "the shell still owes an answer"
        );
        let notice = Notice::AllocationEnded {
            owner: self.owner(allocation),
            reason,
            lasted: now.saturating_since(allocation.details.made),
            traffic: allocation.traffic,
            metered: self.metered_since(allocation),
        };
        for relayed in allocation.relayed() {
            self.close(&relayed);
        }
        self.forget(now, id);
        self.notify(notice);
    }

    /// Ends the relayed address of one family, and with it what goes through it; the allocation too
    /// if it has no other.
    pub(super) fn end_family(
        &mut self,
        now: Timestamp,
        id: PortId,
        family: Family,
        reason: EndReason,
    ) {
        let Some((allocation, hasher)) = self.allocations.get_mut(id) else {
            return;
        };
        if allocation.details.second.is_none() {
            self.end(now, id, reason);
            return;
        }
        // RFC 8656 §8.1: "Deleting a single allocation destroys any permissions or channels
        // associated with that particular allocation; it MUST NOT affect any permissions or channels
        // associated with allocations for the other address family."
        let ends = self.routes.ends(allocation);
        let routes = &mut self.routes;
        allocation
            .permissions
            .retain(hasher, |permission| permission.ip.family() != family);
        allocation.channels.retain(hasher, |channel| {
            let keep = channel.peer_ip.family() != family;
            if !keep {
                routes.remove(&ends, channel);
            }
            keep
        });
        let Some(relayed) = allocation.take_relayed(family, id) else {
            return;
        };
        self.close(&relayed);
        self.give_back(id, &relayed);
        self.count_allocations();
        self.counters.routes.set(self.routes.len());
        self.start_timer(id);
        if let Some(allocation) = self.allocations.get(id) {
            let owner = self.owner(allocation);
            let ended = self.public(&relayed);
            self.notify(Notice::AddressEnded {
                owner,
                ended,
                reason,
            });
        }
    }

    /// Has the shell close a port that a client knows.
    fn close(&mut self, relayed: &Relayed) {
        self.shared
            .set_live(usize::from(relayed.address), relayed.port, false);
        self.commands
            .push_back(RelayCommand::ClosePort { port: relayed.id });
    }

    /// Puts a port of the allocation `id` back into its pool, and its number if it has one of its
    /// own.
    pub(super) fn give_back(&mut self, id: PortId, relayed: &Relayed) {
        if relayed.id != id {
            self.allocations.remove_second(relayed.id);
        }
        self.release_port(relayed.address, relayed.port);
    }

    /// What the user of an allocation did since it was made.
    fn metered_since(&self, allocation: &Allocation) -> Metered {
        let (now, then) = (
            metered(&*self.slots, allocation.slot),
            allocation.details.metered,
        );
        Metered {
            up_bytes: now.up_bytes.saturating_sub(then.up_bytes),
            down_bytes: now.down_bytes.saturating_sub(then.down_bytes),
        }
    }

    /// Removes an allocation whose ports are not open, or are being closed.
    pub(crate) fn forget(&mut self, now: Timestamp, id: PortId) {
        let Some(allocation) = self.allocations.remove(id) else {
            return;
        };
        self.end_mobility(id, &allocation);
        if let Some(timer) = allocation.timer {
            self.timers.cancel(timer);
        }
        let details = &allocation.details;
        self.shared
            .quotas()
            .release(details.user.account(), details.network, 1);
        self.slots.release(now, allocation.slot);
        for relayed in allocation.relayed() {
            self.give_back(id, &relayed);
        }
        self.count_allocations();
    }

    /// Ends the allocation of this 5-tuple if its time is over and its timer has not fired yet.
    pub(crate) fn end_expired(&mut self, now: Timestamp, flow: &Flow) {
        if let Some(id) = self.allocations.find(flow) {
            self.allocation_timer(now, id);
        }
    }

    /// The allocation's timer has fired: it ends, or has been refreshed since and waits again.
    pub(crate) fn allocation_timer(&mut self, now: Timestamp, id: PortId) {
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        if matches!(allocation.state, State::Opening { .. }) {
            return;
        }
        if allocation.expires <= now {
            let credential_ended = allocation.details.user.ends(self.clock) <= now;
            let reason = if credential_ended {
                EndReason::CredentialExpired
            } else {
                EndReason::Expired
            };
            self.end(now, id, reason);
            return;
        }
        if self.end_expired_family(now, id) {
            return;
        }
        let Some((allocation, hasher)) = self.allocations.get_mut(id) else {
            return;
        };
        allocation.sweep(now, hasher, &mut self.routes);
        self.follow_routes(now, id);
        self.start_timer(id);
    }

    /// Ends the one of two relayed addresses whose time is over before the other's.
    pub(super) fn end_expired_family(&mut self, now: Timestamp, id: PortId) -> bool {
        let Some(allocation) = self.allocations.get(id) else {
            return false;
        };
        let is_dual = allocation.state == State::Dual && allocation.expires > now;
        let mut relayed = allocation.relayed();
        let ended = relayed.find(|relayed| is_dual && relayed.expires <= now);
        if let Some(ended) = ended {
            self.end_family(now, id, ended.family, EndReason::Expired);
        }
        ended.is_some()
    }

    /// Who has an allocation, for people to read.
    pub(crate) fn owner(&self, allocation: &Allocation) -> AllocationOwner {
        let listener = self
            .config
            .listeners
            .get(usize::from(allocation.flow.listener));
        let port = listener.map_or(0, std::net::SocketAddr::port);
        AllocationOwner {
            user: std::sync::Arc::clone(allocation.details.user.account()),
            client: allocation.flow.client(),
            server: (allocation.flow.server(), port).into(),
            relayed: self.public(&allocation.details.relayed),
            second: allocation.details.second.map(|second| self.public(&second)),
        }
    }
}

/// What a slot's peer did since it came.
pub(super) fn metered(slots: &dyn Slots, slot: PeerSlot) -> Metered {
    slots.slot(slot).map_or_else(Metered::default, |slot| {
        let bytes = |way| slot.direction(way).payload_bytes.load(Ordering::Relaxed);
        Metered {
            up_bytes: bytes(Way::Up),
            down_bytes: bytes(Way::Down),
        }
    })
}

impl Allocation {
    /// Drops what has expired.
    pub(crate) fn sweep(&mut self, now: Timestamp, hasher: &RandomState, routes: &mut Routes) {
        self.permissions
            .retain(hasher, |permission| permission.expires > now);
        let ends = routes.ends(self);
        self.channels.retain(hasher, |channel| {
            let keep = channel.expires > now;
            if !keep {
                routes.remove(&ends, channel);
            }
            keep
        });
    }
}

/// Which allocations were deleted lately, so that a retransmitted deletion is answered like the
/// first. Bounded: a slot is overwritten by the next deletion that falls into it.
#[derive(Debug)]
pub(crate) struct Deleted {
    slots: Vec<Option<(Flow, TransactionId)>>,
}

/// About as many as are deleted while a client retransmits.
const DELETED_SLOTS: usize = 1024;

impl Deleted {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new() }
    }

    pub(crate) fn remember(&mut self, flow: Flow, transaction: TransactionId) {
        self.slots.resize(DELETED_SLOTS, None);
        self.slots[slot(transaction)] = Some((flow, transaction));
    }

    pub(crate) fn contains(&self, flow: &Flow, transaction: TransactionId) -> bool {
        self.slots.get(slot(transaction)) == Some(&Some((*flow, transaction)))
    }
}

/// Transaction ids are random; a client that chooses them badly overwrites its own memory at worst
/// and others' at the cost of an allocation each.
fn slot(TransactionId(id): TransactionId) -> usize {
    let [a, b, c, d, ..] = id;
    u32::from_be_bytes([a, b, c, d]) as usize % DELETED_SLOTS
}
