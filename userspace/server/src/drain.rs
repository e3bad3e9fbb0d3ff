//! Ending without cutting anybody off: no new allocations, and the end with the last one.

use towpath_proto::machine::ShardId;
use towpath_proto::relay::RelayEvent;

/// A server that drains.
#[derive(Debug)]
pub(crate) struct Drain {
    /// Shards whose mailbox was full.
    untold: Vec<ShardId>,
    /// Whether every shard obeyed when it was looked at last.
    obeyed: bool,
}

impl Drain {
    /// Begins; the shards are still to be told.
    pub(crate) fn new(shards: u16) -> Self {
        Self {
            untold: (0..shards).map(ShardId).collect(),
            obeyed: false,
        }
    }

    /// Tells the shards that do not know yet; `tell` says whether a shard's mailbox took the event.
    pub(crate) fn tell(&mut self, mut tell: impl FnMut(ShardId, RelayEvent) -> bool) {
        self.untold.retain(|shard| !tell(*shard, RelayEvent::Drain));
    }

    /// Whether it is over: all shards drain and have no allocation. Shards count in no order that others
    /// could rely on, so what they have counts only when they drained the last time already.
    pub(crate) fn is_over(&mut self, all_drain: bool, allocations: u64) -> bool {
        std::mem::replace(&mut self.obeyed, all_drain) && all_drain && allocations == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_is_told_once_though_its_mailbox_is_full() {
        let mut drain = Drain::new(2);
        let mut told = Vec::new();
        for full in [true, false, false] {
            drain.tell(|shard, event| {
                assert!(matches!(event, RelayEvent::Drain));
                let took = shard == ShardId(0) || !full;
                told.extend(took.then_some(shard));
                took
            });
        }
        assert_eq!(told, [ShardId(0), ShardId(1)]);
    }

    #[test]
    fn it_is_over_when_shards_that_drain_have_no_allocation_left() {
        let mut drain = Drain::new(1);
        assert!(!drain.is_over(false, 0), "one may be made yet");
        assert!(!drain.is_over(true, 0), "one may be counted yet");
        assert!(!drain.is_over(true, 1));
        assert!(drain.is_over(true, 0));
    }
}
