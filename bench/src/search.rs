//! The highest rate a server carries: bisection between a rate that passes and one that does not.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::load::Round;

/// Most of the packets that may be lost.
pub const MAX_LOSS: f64 = 0.001;
/// Longest 99th percentile of the delay.
pub const MAX_P99_US: f64 = 10_000.0;

const FIRST_PPS: f64 = 40_000.0;
const GROWTH: f64 = 1.5;
const PRECISION: f64 = 1.04;
const MAX_STEPS: u32 = 24;
/// A burst of loss that has nothing to do with the rate must not end the search.
const TRIES: u32 = 2;

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Highest {
    /// Packets per second.
    pub rate_pps: f64,
    /// Whether the generator was the limit, not the server.
    pub generator_limited: bool,
}

/// Whether a round counts as carried.
pub fn passes(round: &Round) -> bool {
    round.loss() <= MAX_LOSS && round.p99_us <= MAX_P99_US
}

/// Searches from `guess` (where known); `measure` offers a rate and reports.
pub fn highest_rate(
    guess: Option<f64>,
    mut measure: impl FnMut(f64) -> Result<Round>,
) -> Result<Option<Highest>> {
    let mut passing: Option<f64> = None;
    let mut failing: Option<f64> = None;
    let mut rate = guess.unwrap_or(FIRST_PPS);
    for _ in 0..MAX_STEPS {
        match attempt(rate, &mut measure)? {
            Verdict::Passed => passing = Some(rate),
            Verdict::Failed => failing = Some(rate),
            Verdict::GeneratorLimited(reached) => {
                let rate_pps = reached.min(rate);
                return Ok(Some(Highest {
                    rate_pps,
                    generator_limited: true,
                }));
            }
        }
        rate = match (passing, failing) {
            (Some(low), Some(high)) if high / low <= PRECISION => break,
            (Some(low), Some(high)) => (low * high).sqrt(),
            (Some(low), None) => low * GROWTH,
            (None, Some(high)) => high / GROWTH,
            (None, None) => unreachable!("an attempt passes or fails"),
        };
    }
    Ok(passing.map(|rate_pps| Highest {
        rate_pps,
        generator_limited: false,
    }))
}

enum Verdict {
    Passed,
    Failed,
    GeneratorLimited(f64),
}

fn attempt(rate: f64, measure: &mut impl FnMut(f64) -> Result<Round>) -> Result<Verdict> {
    let mut limited = None;
    for _ in 0..TRIES {
        let round = measure(rate)?;
        if !passes(&round) {
            continue;
        }
        if round.generator_kept_up {
            return Ok(Verdict::Passed);
        }
        limited = Some(round.offered_pps);
    }
    Ok(limited.map_or(Verdict::Failed, Verdict::GeneratorLimited))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(rate: f64, capacity: f64, generator: f64) -> Round {
        let offered = rate.min(generator);
        let sent = offered as u64;
        Round {
            offered_pps: offered,
            sent,
            received: offered.min(capacity) as u64,
            generator_kept_up: rate <= generator,
            ..Round::default()
        }
    }

    #[test]
    fn the_search_ends_within_its_precision_below_the_capacity() {
        for guess in [None, Some(10_000.0), Some(123_000.0), Some(2_000_000.0)] {
            let found = highest_rate(guess, |rate| Ok(round(rate, 123_456.0, 1e9)));
            let found = found.expect("no error").expect("a rate");
            assert!(!found.generator_limited);
            assert!(found.rate_pps <= 123_456.0 * (1.0 + 2.0 * MAX_LOSS));
            assert!(found.rate_pps >= 123_456.0 / PRECISION / 1.001, "{found:?}");
        }
    }

    #[test]
    fn one_burst_of_loss_does_not_end_the_search() {
        let mut calls = 0;
        let found = highest_rate(None, |rate| {
            calls += 1;
            Ok(if calls % 2 == 1 {
                round(rate, 1.0, 1e9)
            } else {
                round(rate, 100_000.0, 1e9)
            })
        });
        assert!(found.expect("no error").expect("a rate").rate_pps > 90_000.0);
    }

    #[test]
    fn a_generator_that_falls_behind_is_reported() {
        let found = highest_rate(None, |rate| Ok(round(rate, 1e9, 700_000.0)));
        let found = found.expect("no error").expect("a rate");
        assert!(found.generator_limited);
        assert!((found.rate_pps - 700_000.0).abs() < 1.0);
    }

    #[test]
    fn a_server_that_carries_nothing_has_no_rate() {
        assert_eq!(
            highest_rate(None, |rate| Ok(round(rate, 0.0, 1e9))).expect("no error"),
            None
        );
    }
}
