//! The clock that machines, engine and the kernel's packet path share.

use nix::time::{ClockId, clock_gettime};
use towpath_proto::Timestamp;

/// Now, by CLOCK_MONOTONIC.
pub fn now() -> Timestamp {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has this clock");
    let (seconds, nanoseconds) = (time.tv_sec().unsigned_abs(), time.tv_nsec().unsigned_abs());
    Timestamp::from_nanos(seconds * 1_000_000_000 + nanoseconds)
}

#[cfg(test)]
mod tests {
    #[test]
    fn time_does_not_run_backwards() {
        let first = super::now();
        assert!(super::now() >= first && first.as_nanos() > 0);
    }
}
