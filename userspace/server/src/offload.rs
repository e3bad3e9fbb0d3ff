//! A shard's routes on their way into the kernel's map.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use towpath_kernel::{NextHops, Routes};
use towpath_proto::common::route::{Route, RouteKey};
use towpath_proto::relay::RouteTarget;

/// Writes routes for one shard. What cannot be written leaves no route behind: its packets come to
/// the machine.
#[derive(Clone, Debug)]
pub(crate) struct Offload {
    routes: Routes,
    next_hops: NextHops,
    counts: Arc<OffloadCounts>,
    generation: u32,
}

/// What became of routes, over all shards.
#[derive(Debug, Default)]
pub(crate) struct OffloadCounts {
    /// Routes written, again or for the first time.
    pub(crate) written: AtomicU64,
    /// Routes removed that were there.
    pub(crate) removed: AtomicU64,
    /// Routes not written because there was no room for their next hop.
    pub(crate) no_next_hop: AtomicU64,
    /// Routes that the map did not take or give up.
    pub(crate) refused: AtomicU64,
}

impl Offload {
    pub(crate) fn new(routes: Routes, next_hops: NextHops, counts: Arc<OffloadCounts>) -> Self {
        Self {
            routes,
            next_hops,
            counts,
            generation: 0,
        }
    }

    /// The route is in the map when this returns, or no route is.
    pub(crate) fn set(&mut self, key: &RouteKey, target: &RouteTarget) {
        let (to, from) = (target.destination.ip(), target.source.ip());
        let Some(next_hop) = self.next_hops.resolve(to, from) else {
            count(&self.counts.no_next_hop);
            return self.remove(key);
        };
        self.generation = self.generation.wrapping_add(1);
        let route = Route::new(key, &target.in_maps(next_hop, self.generation));
        match self.routes.insert(key, &route) {
            Ok(()) => count(&self.counts.written),
            Err(_) => {
                count(&self.counts.refused);
                self.remove(key);
            }
        }
    }

    /// The route is not in the map when this returns.
    pub(crate) fn remove(&mut self, key: &RouteKey) {
        match self.routes.remove(key) {
            Ok(true) => count(&self.counts.removed),
            Ok(false) => {}
            Err(_) => count(&self.counts.refused),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
