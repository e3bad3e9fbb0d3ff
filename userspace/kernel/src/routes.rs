//! The routes of the program.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use towpath_ebpf_common::route::{Route, RouteKey};

use crate::map::Table;

/// Writes and removes routes. Clones share map and counters.
#[derive(Clone, Debug)]
pub struct Routes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    table: Table<RouteKey, Route>,
    capacity: u32,
    generation: AtomicU32,
    full: AtomicU64,
    failed: AtomicU64,
}

/// Why a route was not written or removed. Packets of its kind are passed to userspace, as without a
/// route.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// There are as many routes as the map has room for.
    #[error("all {0} routes are taken")]
    Full(u32),
    /// The kernel refused for another reason.
    #[error("the kernel refused: {0}")]
    Refused(#[source] io::Error),
}

/// What went wrong so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RouteFailures {
    /// Routes not written because the map was full.
    pub full: u64,
    /// Routes not written or not removed for another reason.
    pub refused: u64,
}

impl Routes {
    pub(crate) fn new(table: Table<RouteKey, Route>, capacity: u32) -> Self {
        Self {
            shared: Arc::new(Shared {
                table,
                capacity,
                generation: AtomicU32::new(0),
                full: AtomicU64::new(0),
                failed: AtomicU64::new(0),
            }),
        }
    }

    /// Writes a route, new or in the place of the one with the same key. It holds from the next
    /// packet on. Its generation is chosen here: the memory of a route that is replaced or removed
    /// becomes another's at once, and the program, which may be at it, tells them apart by it.
    pub fn insert(&self, key: &RouteKey, route: &Route) -> Result<(), RouteError> {
        let next = self.shared.generation.fetch_add(1, Ordering::Relaxed);
        let route = Route {
            generation: next.wrapping_add(1),
            ..*route
        };
        self.shared.table.insert(key, &route).map_err(|error| {
            if error.raw_os_error() == Some(libc::E2BIG) {
                self.shared.full.fetch_add(1, Ordering::Relaxed);
                RouteError::Full(self.shared.capacity)
            } else {
                self.shared.failed.fetch_add(1, Ordering::Relaxed);
                RouteError::Refused(error)
            }
        })
    }

    /// Removes a route; returns whether it was there. Packets pass to userspace from the next one on.
    pub fn remove(&self, key: &RouteKey) -> Result<bool, RouteError> {
        self.shared.table.remove(key).map_err(|error| {
            self.shared.failed.fetch_add(1, Ordering::Relaxed);
            RouteError::Refused(error)
        })
    }

    /// The route with this key.
    pub fn get(&self, key: &RouteKey) -> Result<Option<Route>, RouteError> {
        self.shared.table.lookup(key).map_err(RouteError::Refused)
    }

    /// Removes all routes, and returns how many there were.
    pub fn flush(&self) -> Result<u32, RouteError> {
        // Twice its size, should somebody write beside us.
        let limit = self.shared.capacity.saturating_mul(2);
        self.shared.table.clear(limit).map_err(RouteError::Refused)
    }

    /// What went wrong so far, in this process.
    pub fn failures(&self) -> RouteFailures {
        RouteFailures {
            full: self.shared.full.load(Ordering::Relaxed),
            refused: self.shared.failed.load(Ordering::Relaxed),
        }
    }
}
