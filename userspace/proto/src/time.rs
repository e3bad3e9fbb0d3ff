//! The one clock: nanoseconds of `CLOCK_MONOTONIC`, as kernel, shells and simulator read it, and which
//! time of day that is.
//!
//! This module never reads a clock; a shell passes `now` in.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point in time: nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The clock's origin.
    pub const ZERO: Self = Self(0);

    /// The end of the clock's range: never.
    pub const MAX: Self = Self(u64::MAX);

    /// A timestamp from nanoseconds of `CLOCK_MONOTONIC`.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Whole seconds since the clock's origin.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000_000_000
    }

    /// Time from `earlier` to `self`; zero where `earlier` is later.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    /// Saturates at the end of the clock's range (584 years).
    fn add(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    /// Saturates at the clock's origin.
    fn sub(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// Which time of day a [`Timestamp`] is. It holds until the clock of the day is set to another time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WallClock {
    /// Unix time at [`Timestamp::ZERO`], in nanoseconds; less than nothing where the machine has run
    /// longer than its calendar says.
    zero_nanos: i128,
}

impl WallClock {
    /// `now` is this long after the beginning of 1970, UTC.
    pub const fn new(now: Timestamp, unix: Duration) -> Self {
        Self {
            zero_nanos: unix.as_nanos() as i128 - now.0 as i128,
        }
    }

    /// When a second of Unix time begins; the nearest end of the clock's range where it lies outside.
    pub fn at_unix(self, unix_s: u64) -> Timestamp {
        let nanos = i128::from(unix_s) * 1_000_000_000 - self.zero_nanos;
        Timestamp(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX))
    }

    /// By how much the two differ.
    pub fn difference(self, other: Self) -> Duration {
        let nanos = self.zero_nanos.abs_diff(other.zero_nanos);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:09}s",
            self.0 / 1_000_000_000,
            self.0 % 1_000_000_000
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends_of_the_clock() {
        let second = Duration::from_secs(1);
        assert_eq!(Timestamp::ZERO - second, Timestamp::ZERO);
        assert_eq!(
            Timestamp::from_nanos(u64::MAX) + second,
            Timestamp::from_nanos(u64::MAX)
        );
        assert_eq!(
            Timestamp::ZERO.saturating_since(Timestamp::ZERO + second),
            Duration::ZERO
        );
        assert_eq!((Timestamp::ZERO + second).as_nanos(), 1_000_000_000);
    }

    #[test]
    fn a_wall_clock_finds_the_timestamp_of_a_second() {
        let now = Timestamp::ZERO + Duration::from_secs(500);
        let clock = WallClock::new(now, Duration::from_secs(1_800_000_000));
        assert_eq!(clock.at_unix(1_800_000_060), now + Duration::from_secs(60));
        assert_eq!(clock.at_unix(1_799_999_500), Timestamp::ZERO);
        assert_eq!(clock.at_unix(0), Timestamp::ZERO);
        assert_eq!(clock.at_unix(u64::MAX), Timestamp::MAX);
        let unset = WallClock::new(now, Duration::from_secs(3));
        assert_eq!(unset.at_unix(4), now + Duration::from_secs(1));
        let apart = Duration::from_secs(1_799_999_997);
        assert_eq!(
            (clock.difference(unset), unset.difference(clock)),
            (apart, apart)
        );
    }
}
