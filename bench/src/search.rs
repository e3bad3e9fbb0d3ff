//! The highest rate a server carries: a bracket around it by growing steps, then bisection. One lucky
//! probe proves nothing, and one burst of loss disproves nothing: two of three probes decide. A probe
//! that failed while something else took the server's CPU says nothing about the server.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::load::Round;

/// Most of the packets that may be lost.
pub const MAX_LOSS: f64 = 0.001;
/// Longest 99th percentile of the delay.
pub const MAX_P99_US: f64 = 10_000.0;

const FIRST_PPS: f64 = 40_000.0;
/// First step away from a guess, and from nothing at all. Each further step is the square of the one before.
const STEP_FROM_GUESS: f64 = 1.15;
const STEP_FROM_NOTHING: f64 = 1.5;
const LONGEST_STEP: f64 = 2.0;
const PRECISION: f64 = 1.05;
const MAX_RATES: u32 = 24;
/// Equal probes that decide about a rate.
const MAJORITY: u32 = 2;
/// Disturbed probes of one rate that are left out; further ones count like the others.
const MAX_LEFT_OUT: u32 = 6;

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
    let mut step = guess.map_or(STEP_FROM_NOTHING, |_| STEP_FROM_GUESS);
    for _ in 0..MAX_RATES {
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
            (Some(low), None) => low * step,
            (None, Some(high)) => high / step,
            (None, None) => unreachable!("an attempt passes or fails"),
        };
        step = (step * step).min(LONGEST_STEP);
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
    let (mut passed, mut failed, mut left_out) = (0, 0, 0);
    let mut slowest = f64::INFINITY;
    while passed < MAJORITY && failed < MAJORITY {
        let round = measure(rate)?;
        if passes(&round) {
            passed += 1;
            if !round.generator_kept_up {
                slowest = slowest.min(round.offered_pps);
            }
        } else if round.spent.is_disturbed() && left_out < MAX_LEFT_OUT {
            left_out += 1;
        } else {
            failed += 1;
        }
    }
    Ok(match (passed == MAJORITY, slowest.is_finite()) {
        (false, _) => Verdict::Failed,
        (true, false) => Verdict::Passed,
        (true, true) => Verdict::GeneratorLimited(slowest),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Spent;

    fn disturbed() -> Spent {
        Spent {
            steal: 1.0,
            ..Spent::default()
        }
    }

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
            Ok(if calls % 3 == 1 {
                round(rate, 1.0, 1e9)
            } else {
                round(rate, 100_000.0, 1e9)
            })
        });
        assert!(found.expect("no error").expect("a rate").rate_pps > 90_000.0);
    }

    #[test]
    fn what_something_else_spoilt_is_not_the_servers_failure() {
        let mut calls = 0;
        let found = highest_rate(Some(90_000.0), |rate| {
            calls += 1;
            let mut round = round(rate, 100_000.0, 1e9);
            if calls % 4 != 0 {
                round.received = 0;
                round.spent = disturbed();
            }
            Ok(round)
        });
        assert!(found.expect("no error").expect("a rate").rate_pps > 90_000.0);
    }

    #[test]
    fn a_machine_that_is_always_disturbed_does_not_hold_the_search_up() {
        let found = highest_rate(None, |rate| {
            let mut round = round(rate, 0.0, 1e9);
            round.spent = disturbed();
            Ok(round)
        });
        assert_eq!(found.expect("no error"), None);
    }

    #[test]
    fn one_lucky_probe_does_not_prove_a_rate() {
        let mut lucky = std::collections::BTreeSet::new();
        let found = highest_rate(Some(80_000.0), |rate| {
            let first_time = lucky.insert(rate as u64);
            Ok(round(rate, if first_time { 1e9 } else { 100_000.0 }, 1e9))
        });
        assert!(found.expect("no error").expect("a rate").rate_pps <= 100_000.0 * 1.002);
    }

    #[test]
    fn a_good_guess_shortens_the_search() {
        let probes = |guess| {
            let mut calls = 0;
            highest_rate(guess, |rate| {
                calls += 1;
                Ok(round(rate, 400_000.0, 1e9))
            })
            .expect("no error");
            calls
        };
        assert!(probes(Some(380_000.0)) <= 10);
        assert!(probes(Some(380_000.0)) < probes(None));
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
