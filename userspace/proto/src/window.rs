//! How often things went well of late: successes and failures of a stretch of time that moves along.
//!
//! ```text
//!              latest
//!   |··|··|··|··|··|··|··|··|··|·>      a tenth of the window each
//!   └── a bucket that is left behind is forgotten as a whole
//! ```
//!
//! What happened counts for nine tenths of the window at least, and never longer than the window.

use std::time::Duration;

use crate::Timestamp;

const BUCKETS: usize = 10;

/// How often something went well, and how often it did not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// How often it went well.
    pub successes: u32,
    /// How often it did not.
    pub failures: u32,
}

impl Tally {
    /// How often something was tried.
    pub fn volume(&self) -> u32 {
        self.successes.saturating_add(self.failures)
    }

    /// Failures in a thousand, rounded down; 0 where nothing was tried.
    pub fn failures_per_mille(&self) -> u32 {
        let volume = u64::from(self.successes) + u64::from(self.failures);
        let per_mille = (u64::from(self.failures) * 1000).checked_div(volume);
        per_mille.unwrap_or(0) as u32
    }
}

/// The tallies of the last while.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    buckets: [Tally; BUCKETS],
    /// The number of the bucket that was written to last.
    latest: u64,
}

impl Window {
    /// Notes an outcome. `length` is always the same, and `now` never an earlier time.
    pub(crate) fn record(&mut self, now: Timestamp, length: Duration, success: bool) {
        let number = bucket_at(now, length);
        let stale = number.saturating_sub(self.latest).min(BUCKETS as u64);
        for passed in 0..stale {
            self.buckets[index_of(number - passed)] = Tally::default();
        }
        self.latest = self.latest.max(number);
        let bucket = &mut self.buckets[index_of(self.latest)];
        let count = if success {
            &mut bucket.successes
        } else {
            &mut bucket.failures
        };
        *count = count.saturating_add(1);
    }

    /// What was noted within the window that ends now.
    pub(crate) fn tally(&self, now: Timestamp, length: Duration) -> Tally {
        let number = bucket_at(now, length).max(self.latest);
        let left_behind = (number - self.latest).min(BUCKETS as u64);
        let mut sum = Tally::default();
        for age in 0..BUCKETS as u64 - left_behind {
            let Some(number) = self.latest.checked_sub(age) else {
                break;
            };
            let bucket = self.buckets[index_of(number)];
            sum.successes = sum.successes.saturating_add(bucket.successes);
            sum.failures = sum.failures.saturating_add(bucket.failures);
        }
        sum
    }
}

fn bucket_at(now: Timestamp, length: Duration) -> u64 {
    let nanos = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
    now.as_nanos() / (nanos / BUCKETS as u64).max(1)
}

fn index_of(number: u64) -> usize {
    (number % BUCKETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(millis)
    }

    fn failures(window: &Window, millis: u64) -> u32 {
        window.tally(at(millis), LENGTH).failures
    }

    #[test]
    fn what_happened_counts_for_nine_tenths_of_the_window_and_never_longer_than_it() {
        for first in [0, 5_000, 5_999, 1_234_567] {
            let mut window = Window::default();
            window.record(at(first), LENGTH, false);
            assert_eq!(failures(&window, first), 1);
            assert_eq!(failures(&window, first + 9_000), 1);
            assert_eq!(failures(&window, first + 10_000), 0);
            assert_eq!(failures(&window, u64::MAX / 2_000_000), 0);
        }
    }

    #[test]
    fn a_bucket_that_comes_round_again_begins_empty() {
        let mut window = Window::default();
        window.record(at(500), LENGTH, false);
        window.record(at(10_500), LENGTH, true);
        let tally = window.tally(at(10_500), LENGTH);
        assert_eq!((tally.successes, tally.failures), (1, 0));
    }

    #[test]
    fn the_rate_of_nothing_is_nothing() {
        assert_eq!(Tally::default().failures_per_mille(), 0);
        let most = Tally {
            successes: u32::MAX,
            failures: u32::MAX,
        };
        assert_eq!(most.failures_per_mille(), 500);
        assert_eq!(most.volume(), u32::MAX);
    }
}
