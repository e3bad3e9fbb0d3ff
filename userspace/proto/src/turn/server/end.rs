//! How allocations end, and what is remembered of them.

use ahash::RandomState;

use super::address::Flow;
use super::allocation::{Allocation, State};
use super::routes::Routes;
use crate::Timestamp;
use crate::machine::PortId;
use crate::relay::{AllocationOwner, EndReason, Notice, Relay, RelayCommand};
use crate::wire::TransactionId;

impl Relay {
    /// Ends an allocation: its port is closed and goes back to the pool.
    pub(crate) fn end(&mut self, now: Timestamp, id: PortId, reason: EndReason) {
        self.remove_routes(id);
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        debug_assert_eq!(
            allocation.state,
            State::Live,
            "the shell still owes an answer"
        );
        let notice = Notice::AllocationEnded {
            owner: self.owner(allocation),
            reason,
            traffic: allocation.traffic,
        };
        self.shared
            .set_live(usize::from(allocation.address), allocation.port, false);
        self.commands
            .push_back(RelayCommand::ClosePort { port: id });
        self.forget(now, id);
        self.notify(notice);
    }

    /// Removes an allocation whose port is not open, or is being closed.
    pub(crate) fn forget(&mut self, now: Timestamp, id: PortId) {
        let Some(allocation) = self.allocations.remove(id) else {
            return;
        };
        if let Some(timer) = allocation.timer {
            self.timers.cancel(timer);
        }
        if allocation.details.counted_for_user {
            self.shared.release_user(allocation.details.user.name(), 1);
        }
        self.slots.release(now, allocation.slot);
        self.release_port(allocation.address, allocation.port);
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
        let Some((allocation, hasher)) = self.allocations.get_mut(id) else {
            return;
        };
        if allocation.state != State::Live {
            return;
        }
        if allocation.expires <= now {
            self.end(now, id, EndReason::Expired);
            return;
        }
        allocation.sweep(now, hasher, &mut self.routes);
        self.follow_routes(now, id);
        self.start_timer(id);
    }

    /// Who has an allocation, for people to read.
    pub(crate) fn owner(&self, allocation: &Allocation) -> AllocationOwner {
        let listener = self
            .config
            .listeners
            .get(usize::from(allocation.flow.listener));
        let port = listener.map_or(0, std::net::SocketAddr::port);
        AllocationOwner {
            user: std::sync::Arc::clone(allocation.details.user.name()),
            client: allocation.flow.client(),
            server: (allocation.flow.server(), port).into(),
            relayed: self.relayed(allocation),
        }
    }
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
