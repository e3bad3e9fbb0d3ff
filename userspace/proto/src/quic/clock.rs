//! `Instant`s that say what a [`Timestamp`] says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quinn_proto::TimeSource;

use crate::Timestamp;

/// One `Instant` stands for [`Timestamp::ZERO`]. An `Instant` can only be had from the system's clock;
/// which one it is makes no difference, since only differences between them count.
#[derive(Debug)]
pub(super) struct Clock {
    zero: Instant,
    now: Arc<AtomicU64>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            zero: Instant::now(),
            now: Arc::default(),
        }
    }

    /// The time as quinn-proto takes it.
    pub(super) fn instant(&self, at: Timestamp) -> Instant {
        self.now.store(at.as_nanos(), Ordering::Relaxed);
        self.zero + Duration::from_nanos(at.as_nanos())
    }

    /// The time as a deadline of quinn-proto says it.
    pub(super) fn timestamp(&self, at: Instant) -> Timestamp {
        Timestamp::ZERO + at.saturating_duration_since(self.zero)
    }

    /// What the time in tokens is taken from: seconds of the same clock, as if it had begun in 1970.
    /// Tokens live for seconds, on the machine that made them.
    pub(super) fn of_tokens(&self) -> Arc<dyn TimeSource> {
        Arc::new(TokenClock(self.now.clone()))
    }
}

struct TokenClock(Arc<AtomicU64>);

impl TimeSource for TokenClock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_survives_being_an_instant() {
        let clock = Clock::new();
        for nanos in [0, 1, 1_000_000_007, u64::MAX / 2] {
            let at = Timestamp::from_nanos(nanos);
            assert_eq!(clock.timestamp(clock.instant(at)), at);
        }
        clock.instant(Timestamp::from_nanos(5_000_000_000));
        let elapsed = clock.of_tokens().now().duration_since(UNIX_EPOCH);
        assert_eq!(elapsed.unwrap(), Duration::from_secs(5));
    }
}
