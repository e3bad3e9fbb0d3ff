//! Where the clients are that have moved, for all shards to see.
//!
//! A client's shard follows from its address, and an allocation stays with the shard that made it. So
//! a client that has moved (RFC 8016) may send to a shard that knows nothing of it; that shard asks
//! here whose the datagram is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::machine::{PortId, ShardId};
use crate::turn::server::Flow;

/// Locks that the 5-tuples are spread over: shards that ask at the same time seldom wait.
const STRIPES: usize = 64;

/// The 5-tuples that allocations have moved to or are about to. An allocation has two of them at
/// most, and nobody else puts any in, so their number is bounded by that of the allocations.
///
/// Only datagrams from 5-tuples that have no allocation on their shard are looked up, and without a
/// lock where nobody has moved.
#[derive(Debug)]
pub(crate) struct Moved {
    entries: AtomicUsize,
    stripes: [Mutex<HashMap<Flow, Place>>; STRIPES],
}

/// Which allocation a 5-tuple belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) shard: ShardId,
    pub(crate) port: PortId,
}

impl Moved {
    pub(crate) fn new() -> Self {
        Self {
            entries: AtomicUsize::new(0),
            stripes: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Gives a 5-tuple to an allocation; `false` where it belongs to one already.
    pub(crate) fn claim(&self, flow: Flow, place: Place) -> bool {
        let mut stripe = self.stripe(&flow);
        let is_free = !stripe.contains_key(&flow);
        if is_free {
            stripe.insert(flow, place);
            self.entries.fetch_add(1, Ordering::Release);
        }
        is_free
    }

    /// The allocation a 5-tuple was given to.
    pub(crate) fn find(&self, flow: &Flow) -> Option<Place> {
        if self.is_empty() {
            return None;
        }
        self.stripe(flow).get(flow).copied()
    }

    /// Takes a 5-tuple back from this allocation, if it has it.
    pub(crate) fn release(&self, flow: &Flow, place: Place) {
        if self.is_empty() {
            return;
        }
        let mut stripe = self.stripe(flow);
        if stripe.get(flow) == Some(&place) {
            stripe.remove(flow);
            self.entries.fetch_sub(1, Ordering::Release);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.load(Ordering::Acquire) == 0
    }

    fn stripe(&self, flow: &Flow) -> MutexGuard<'_, HashMap<Flow, Place>> {
        let stripe = &self.stripes[usize::from(flow.client().port()) % STRIPES];
        stripe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(client: &str) -> Flow {
        Flow::new(0, [5, 5, 5, 5].into(), client.parse().unwrap())
    }

    fn place(shard: u16, port: u32) -> Place {
        Place {
            shard: ShardId(shard),
            port: PortId(port),
        }
    }

    #[test]
    fn a_5_tuple_belongs_to_one_allocation_until_that_one_gives_it_back() {
        let moved = Moved::new();
        let here = flow("192.0.2.1:4000");
        assert!(moved.claim(here, place(1, 7)));
        assert!(!moved.claim(here, place(2, 7)));
        moved.release(&here, place(2, 7));
        moved.release(&flow("192.0.2.1:4064"), place(1, 7));
        assert_eq!(moved.find(&here), Some(place(1, 7)));
        moved.release(&here, place(1, 7));
        assert_eq!(moved.find(&here), None);
        assert!(moved.is_empty());
        assert!(moved.claim(here, place(2, 7)));
    }
}
