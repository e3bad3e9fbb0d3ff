//! The clock that machines, engine and the kernel's packet path share, and which time of day it is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use towpath_proto::machine::ShardId;
use towpath_proto::relay::RelayEvent;
use towpath_proto::{Timestamp, WallClock};

/// A clock that differs by no more from what the shards were told is the same: it is only made to run a
/// little faster or slower.
const TOLERANCE: Duration = Duration::from_secs(1);

/// Now, by CLOCK_MONOTONIC.
pub fn now() -> Timestamp {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has this clock");
    let (seconds, nanoseconds) = (time.tv_sec().unsigned_abs(), time.tv_nsec().unsigned_abs());
    Timestamp::from_nanos(seconds * 1_000_000_000 + nanoseconds)
}

/// Which time of day it is.
pub fn wall_clock() -> WallClock {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    WallClock::new(now(), unix.unwrap_or(Duration::ZERO))
}

/// Tells shards the time of day, and again when it was set to another.
#[derive(Debug)]
pub(crate) struct ClockFollower {
    told: WallClock,
    /// Shards that have not been told, as their mailbox was full.
    untold: Vec<ShardId>,
    shards: u16,
}

impl ClockFollower {
    /// The shards were told `told`.
    pub(crate) fn new(told: WallClock, shards: u16) -> Self {
        Self {
            told,
            untold: Vec::new(),
            shards,
        }
    }

    /// Has every shard told of `clock` where it differs. `tell` says whether a shard's mailbox took the
    /// event; where it did not, it is tried again the next time.
    pub(crate) fn follow(
        &mut self,
        clock: WallClock,
        mut tell: impl FnMut(ShardId, RelayEvent) -> bool,
    ) {
        let difference = clock.difference(self.told);
        if difference > TOLERANCE {
            tracing::info!(
                ?difference,
                "the clock of this machine was set to another time"
            );
            self.told = clock;
            self.untold = (0..self.shards).map(ShardId).collect();
        }
        let told = self.told;
        self.untold
            .retain(|shard| !tell(*shard, RelayEvent::WallClock(told)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_told_to_every_shard_once() {
        let start = WallClock::new(Timestamp::ZERO, Duration::from_secs(1_000_000));
        let later = |millis| {
            let unix = Duration::from_secs(1_000_000) + Duration::from_millis(millis);
            WallClock::new(Timestamp::ZERO, unix)
        };
        let mut follower = ClockFollower::new(start, 2);
        follower.follow(later(900), |_, _| panic!("it was not set"));
        let mut told = Vec::new();
        let mut full = true;
        for _ in 0..3 {
            follower.follow(later(3_600_000), |shard, event| {
                let RelayEvent::WallClock(clock) = event else {
                    panic!("{event:?}")
                };
                assert_eq!(clock, later(3_600_000));
                let took = shard == ShardId(0) || !full;
                told.extend(took.then_some(shard));
                took
            });
            full = false;
        }
        assert_eq!(told, [ShardId(0), ShardId(1)]);
    }

    #[test]
    fn the_time_of_day_is_this_centurys() {
        let end_of_2000 = 978_307_200;
        assert!(wall_clock().at_unix(end_of_2000) < now());
        assert!(wall_clock().at_unix(end_of_2000 + 3_000_000_000) > now());
    }

    #[test]
    fn time_does_not_run_backwards() {
        let first = super::now();
        assert!(super::now() >= first && first.as_nanos() > 0);
    }
}
