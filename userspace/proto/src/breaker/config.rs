//! What breakers are configured with.

use std::time::Duration;

use thiserror::Error;

use crate::window::Tally;

/// No time of a configuration is longer.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// Times to leave somebody alone are drawn between half of the full one and all of it, at the most.
const MAX_JITTER_PER_MILLE: u32 = 500;
/// More than these at a time are no trials.
const MAX_HALF_OPEN_PERMITS: u32 = 64;

/// What breakers are configured with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BreakerConfig {
    /// Results count for so long, in steps of a tenth of it.
    pub window: Duration,
    /// Results within the window before they mean anything.
    pub minimum_volume: u32,
    /// A closed breaker opens with so many failures in a thousand results, or more.
    pub failure_per_mille: u32,
    /// Attempts that a half open breaker lets pass at a time.
    pub half_open_permits: u32,
    /// Trials that must succeed, with none failing in between, before a half open breaker closes.
    pub successes_to_close: u32,
    /// An attempt without a result is taken for cancelled after this time. It is longer than any
    /// attempt takes.
    pub permit_timeout: Duration,
    /// How long a breaker stays open the first time. It doubles every time a trial fails.
    pub open_for: Duration,
    /// How long it stays open at the most.
    pub open_for_max: Duration,
    /// By up to so many thousandths these times are shortened at random, so that not everybody comes back
    /// at once.
    pub jitter_per_mille: u32,
    /// Breakers that are kept.
    pub max_entries: usize,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(60),
            minimum_volume: 5,
            failure_per_mille: 500,
            half_open_permits: 1,
            successes_to_close: 2,
            permit_timeout: Duration::from_secs(60),
            open_for: Duration::from_secs(5),
            open_for_max: Duration::from_secs(300),
            jitter_per_mille: 200,
            max_entries: 4096,
        }
    }
}

/// What is wrong with a [`BreakerConfig`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BreakerConfigError {
    /// A time is too short or too long.
    #[error("{name} is {value:?}, it must be between a microsecond and 30 days")]
    Time {
        /// The field.
        name: &'static str,
        /// What it says.
        value: Duration,
    },
    /// A number is too small or too great.
    #[error("{name} is {value}, it must be between {least} and {most}")]
    Number {
        /// The field.
        name: &'static str,
        /// What it says.
        value: u64,
        /// The least that it may be.
        least: u64,
        /// The most that it may be.
        most: u64,
    },
    /// The cap of a time lies below the time.
    #[error("open_for_max is {most:?}, less than open_for with {first:?}")]
    CapBelowFirst {
        /// `open_for`.
        first: Duration,
        /// `open_for_max`.
        most: Duration,
    },
}

impl BreakerConfig {
    /// Whether the values make sense.
    pub fn validate(&self) -> Result<(), BreakerConfigError> {
        let times = [
            ("window", self.window),
            ("permit_timeout", self.permit_timeout),
            ("open_for", self.open_for),
            ("open_for_max", self.open_for_max),
        ];
        for (name, value) in times {
            if value < Duration::from_micros(1) || value > LONGEST {
                return Err(BreakerConfigError::Time { name, value });
            }
        }
        let any = u64::from(u32::MAX);
        let permits = u64::from(MAX_HALF_OPEN_PERMITS);
        let jitter = u64::from(MAX_JITTER_PER_MILLE);
        let numbers = [
            ("minimum_volume", self.minimum_volume.into(), 1, any),
            ("failure_per_mille", self.failure_per_mille.into(), 1, 1000),
            (
                "half_open_permits",
                self.half_open_permits.into(),
                1,
                permits,
            ),
            ("successes_to_close", self.successes_to_close.into(), 1, any),
            ("jitter_per_mille", self.jitter_per_mille.into(), 0, jitter),
            ("max_entries", self.max_entries as u64, 1, any),
        ];
        for (name, value, least, most) in numbers {
            if !(least..=most).contains(&value) {
                return Err(BreakerConfigError::Number {
                    name,
                    value,
                    least,
                    most,
                });
            }
        }
        if self.open_for_max < self.open_for {
            return Err(BreakerConfigError::CapBelowFirst {
                first: self.open_for,
                most: self.open_for_max,
            });
        }
        Ok(())
    }

    /// Whether a closed breaker opens.
    pub(super) fn is_too_much(&self, recent: Tally) -> bool {
        recent.volume() >= self.minimum_volume
            && recent.failures_per_mille() >= self.failure_per_mille
    }

    /// How long a breaker stays open at the most that was opened again so often.
    pub(super) fn open_for_after(&self, streak: u32) -> Duration {
        let factor = 2_u32.saturating_pow(streak);
        self.open_for.saturating_mul(factor).min(self.open_for_max)
    }

    /// After so long without use nothing is left of what a breaker knew: its results are out of the
    /// window, its permits are over, and being half open means nothing any more.
    pub fn quiet(&self) -> Duration {
        self.window.max(self.open_for_max) + self.permit_timeout
    }
}
