//! Circuit breakers and health beside their reference models.
//!
//! `TOWPATH_SIM_SEEDS=100000` runs more seeds, `TOWPATH_SIM_SEED=7` runs one.

use towpath_sim::policies::{Outcome, breaker, health};
use towpath_sim::seeds;

fn all(what: &str, run: fn(u64) -> Outcome) -> Outcome {
    let mut sum = Outcome::default();
    for seed in seeds::from_environment() {
        let outcome = std::panic::catch_unwind(|| run(seed));
        let outcome = outcome.unwrap_or_else(|_| panic!("{what}: TOWPATH_SIM_SEED={seed}"));
        sum.answers += outcome.answers;
        sum.changes += outcome.changes;
        sum.refused += outcome.refused;
        sum.without_room += outcome.without_room;
    }
    println!("{what}: {sum:?}");
    sum
}

/// Whether all of the usual seeds were run, so that anything can be expected to have happened.
fn is_whole() -> bool {
    let seeds = seeds::from_environment();
    seeds.end - seeds.start >= seeds::DEFAULT_COUNT
}

#[test]
fn breakers_do_exactly_what_the_model_says() {
    let sum = all("breakers", breaker::run);
    if is_whole() {
        assert!(sum.changes > 3_000 && sum.refused > 3_000, "{sum:?}");
        assert!(sum.without_room > 100, "{sum:?}");
    }
}

#[test]
fn health_is_exactly_what_the_model_says() {
    let sum = all("health", health::run);
    if is_whole() {
        assert!(
            sum.changes > sum.answers / 50 && sum.without_room > 100,
            "{sum:?}"
        );
    }
}
