//! What health is judged by.

use std::time::Duration;

use thiserror::Error;

/// No time of a configuration is longer.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// Samples are sorted at every judgement.
const MAX_SAMPLES: usize = 256;

/// A limit that is another one on the way back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Threshold<T> {
    /// From here on it is worse.
    pub worse_from: T,
    /// It is better again only down here. Less than `worse_from`.
    pub better_up_to: T,
}

/// What health is judged by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthConfig {
    /// Results count for so long, in steps of a tenth of it, and times of answers for exactly so long.
    pub window: Duration,
    /// Results, or times of answers, within the window before their rate or their percentile means
    /// anything. 2 at least.
    pub minimum_volume: u32,
    /// Failures in a thousand results that make a peer degraded.
    pub degraded_per_mille: Threshold<u32>,
    /// Failures in a thousand results that make a peer unhealthy.
    pub unhealthy_per_mille: Threshold<u32>,
    /// Times that 95 in 100 answers keep within and that make a peer degraded.
    pub slow: Threshold<Duration>,
    /// Failures in a row that make a peer unhealthy. 2 at least.
    pub misses_to_unhealthy: u32,
    /// Successes in a row before an unhealthy peer can be anything better.
    pub successes_to_recover: u32,
    /// Times of answers that are kept of a peer: the latest ones.
    pub max_samples: usize,
    /// A peer of whom nothing was heard for so long is forgotten. Not less than `window`.
    pub forget_after: Duration,
    /// Peers of whom something is kept.
    pub max_entries: usize,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(120),
            minimum_volume: 4,
            degraded_per_mille: Threshold {
                worse_from: 200,
                better_up_to: 100,
            },
            unhealthy_per_mille: Threshold {
                worse_from: 600,
                better_up_to: 400,
            },
            slow: Threshold {
                worse_from: Duration::from_millis(1000),
                better_up_to: Duration::from_millis(700),
            },
            misses_to_unhealthy: 3,
            successes_to_recover: 2,
            max_samples: 32,
            forget_after: Duration::from_secs(900),
            max_entries: 16_384,
        }
    }
}

/// What is wrong with a [`HealthConfig`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum HealthConfigError {
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
    /// There is nothing between getting worse and getting better.
    #[error("{name} must be less on the way back")]
    NoHysteresis {
        /// The field.
        name: &'static str,
    },
    /// What makes a peer unhealthy would not make it degraded.
    #[error("degraded_per_mille must not exceed unhealthy_per_mille")]
    Order,
    /// Peers would be forgotten while what they did still counts.
    #[error("forget_after is {forget_after:?}, less than the window of {window:?}")]
    ForgottenTooEarly {
        /// `forget_after`.
        forget_after: Duration,
        /// `window`.
        window: Duration,
    },
}

impl HealthConfig {
    /// Whether the values make sense.
    pub fn validate(&self) -> Result<(), HealthConfigError> {
        let times = [
            ("window", self.window),
            ("slow", self.slow.worse_from),
            ("forget_after", self.forget_after),
        ];
        for (name, value) in times {
            if value < Duration::from_micros(1) || value > LONGEST {
                return Err(HealthConfigError::Time { name, value });
            }
        }
        let any = u64::from(u32::MAX);
        let (degraded, unhealthy) = (self.degraded_per_mille, self.unhealthy_per_mille);
        let numbers = [
            ("minimum_volume", self.minimum_volume.into(), 2, any),
            ("degraded_per_mille", degraded.worse_from.into(), 1, 1000),
            ("unhealthy_per_mille", unhealthy.worse_from.into(), 1, 1000),
            (
                "misses_to_unhealthy",
                self.misses_to_unhealthy.into(),
                2,
                any,
            ),
            (
                "successes_to_recover",
                self.successes_to_recover.into(),
                1,
                any,
            ),
            (
                "max_samples",
                self.max_samples as u64,
                1,
                MAX_SAMPLES as u64,
            ),
            ("max_entries", self.max_entries as u64, 1, any),
        ];
        for (name, value, least, most) in numbers {
            if !(least..=most).contains(&value) {
                return Err(HealthConfigError::Number {
                    name,
                    value,
                    least,
                    most,
                });
            }
        }
        check(degraded, "degraded_per_mille")?;
        check(unhealthy, "unhealthy_per_mille")?;
        check(self.slow, "slow")?;
        if degraded.worse_from > unhealthy.worse_from
            || degraded.better_up_to > unhealthy.better_up_to
        {
            return Err(HealthConfigError::Order);
        }
        if self.forget_after < self.window {
            return Err(HealthConfigError::ForgottenTooEarly {
                forget_after: self.forget_after,
                window: self.window,
            });
        }
        Ok(())
    }
}

fn check<T: PartialOrd>(
    threshold: Threshold<T>,
    name: &'static str,
) -> Result<(), HealthConfigError> {
    if threshold.better_up_to < threshold.worse_from {
        Ok(())
    } else {
        Err(HealthConfigError::NoHysteresis { name })
    }
}
