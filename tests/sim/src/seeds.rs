//! Which seeds a test runs.
//!
//! ```text
//!   TOWPATH_SIM_SEED=7           that one: how a failed run is replayed
//!   TOWPATH_SIM_SEEDS=100000     so many, counted from 0 or from
//!   TOWPATH_SIM_FIRST_SEED=5000  this one
//! ```

use std::ops::Range;

/// Seeds of a run that says nothing else.
pub const DEFAULT_COUNT: u64 = 1_000;

/// The seeds that the environment asks for. Panics where a variable is no number.
pub fn from_environment() -> Range<u64> {
    if let Some(seed) = number("TOWPATH_SIM_SEED") {
        return seed..seed.saturating_add(1);
    }
    let first = number("TOWPATH_SIM_FIRST_SEED").unwrap_or(0);
    let count = number("TOWPATH_SIM_SEEDS").unwrap_or(DEFAULT_COUNT);
    first..first.saturating_add(count)
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is \"{value}\", it must be a number")),
    )
}
