//! How many connections a node may have: one permit each, from the dial to the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The connections that a node may have, dials included. All shards of a node share one of these.
#[derive(Clone, Debug)]
pub struct Permits(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    limit: usize,
    taken: AtomicUsize,
}

/// The right to one connection. It goes back where it came from when it is dropped, so it is given
/// back exactly once.
#[derive(Debug)]
pub(super) struct Permit(Arc<Counts>);

impl Permits {
    /// So many.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Counts {
            limit,
            taken: AtomicUsize::new(0),
        }))
    }

    /// How many there are.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// How many are in use.
    pub fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self) -> Option<Permit> {
        let more = |taken| (taken < self.0.limit).then_some(taken + 1);
        let taken = &self.0.taken;
        taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        Some(Permit(self.0.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_taken_than_there_are_and_each_comes_back_once() {
        let permits = Permits::new(2);
        let other_shard = permits.clone();
        let first = permits.take().unwrap();
        let second = other_shard.take().unwrap();
        assert!(permits.take().is_none());
        drop(first);
        assert_eq!(permits.taken(), 1);
        let third = permits.take().unwrap();
        assert!(other_shard.take().is_none());
        drop((second, third));
        assert_eq!((permits.taken(), permits.limit()), (0, 2));
    }
}
