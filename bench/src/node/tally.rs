//! What is done in a cell, and the count of it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Bytes of a request and of its answer.
pub const MESSAGE_BYTES: usize = 64;
/// Bytes that a sender writes at a time.
pub const WRITE_BYTES: usize = 64 * 1024;
const LONGEST_NS: u64 = 10_000_000_000;

/// What the client does with the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cell {
    /// Sends as fast as it can, on so many streams of each of so many connections.
    Bulk {
        /// Connections.
        connections: usize,
        /// Streams of each.
        streams: usize,
    },
    /// Sends a request, waits for the answer, sends the next, on one stream.
    RoundTrips,
    /// Connects, waits until the server closes, connects, in so many places at a time.
    Handshakes {
        /// Handshakes at a time.
        parallel: usize,
    },
    /// Nothing, on connections that stand.
    Idle,
}

impl Cell {
    /// The cells in which something is done.
    pub const ALL: [Self; 6] = [
        Self::Bulk {
            connections: 1,
            streams: 1,
        },
        Self::Bulk {
            connections: 1,
            streams: 10,
        },
        Self::Bulk {
            connections: 1000,
            streams: 1,
        },
        Self::RoundTrips,
        Self::Handshakes { parallel: 1 },
        Self::Handshakes { parallel: 16 },
    ];

    /// Connections that stand before the load begins.
    pub fn connections(self) -> usize {
        match self {
            Self::Bulk { connections, .. } => connections,
            Self::RoundTrips => 1,
            Self::Handshakes { .. } | Self::Idle => 0,
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bulk {
                connections: 1,
                streams: 1,
            } => f.write_str("bulk, 1 stream"),
            Self::Bulk {
                connections: 1,
                streams,
            } => write!(f, "bulk, {streams} streams"),
            Self::Bulk {
                connections,
                streams: 1,
            } => write!(f, "bulk, {connections} connections"),
            Self::Bulk {
                connections,
                streams,
            } => write!(f, "bulk, {connections} connections of {streams} streams"),
            Self::RoundTrips => write!(f, "round trips of {MESSAGE_BYTES} B"),
            Self::Handshakes { parallel } => write!(f, "handshakes, {parallel} at a time"),
            Self::Idle => f.write_str("idle"),
        }
    }
}

/// Delays of operations, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Delays {
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// Longest.
    pub max_ns: u64,
}

/// What an end has counted so far.
pub struct Tally {
    bytes: AtomicU64,
    operations: AtomicU64,
    delays: Mutex<Histogram<u64>>,
    failure: Mutex<Option<String>>,
}

impl Tally {
    /// Nothing yet.
    pub fn new() -> Result<Self> {
        Ok(Self {
            bytes: AtomicU64::new(0),
            operations: AtomicU64::new(0),
            delays: Mutex::new(Histogram::new_with_bounds(1, LONGEST_NS, 3)?),
            failure: Mutex::new(None),
        })
    }

    /// So many bytes more have come.
    pub fn add_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// An operation more has been done, in so much time.
    pub fn add_operation(&self, took: Duration) {
        self.operations.fetch_add(1, Ordering::Relaxed);
        lock(&self.delays).saturating_record(took.as_nanos() as u64);
    }

    /// Something went wrong; the first is kept.
    pub fn fail(&self, why: impl fmt::Display) {
        lock(&self.failure).get_or_insert_with(|| why.to_string());
    }

    /// Fails where something went wrong.
    pub fn check(&self) -> Result<()> {
        match lock(&self.failure).as_deref() {
            Some(why) => bail!("{why}"),
            None => Ok(()),
        }
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Delays since this was asked last.
    pub fn take_delays(&self) -> Delays {
        let mut histogram = lock(&self.delays);
        let delays = Delays {
            p50_ns: histogram.value_at_quantile(0.5),
            p99_ns: histogram.value_at_quantile(0.99),
            p999_ns: histogram.value_at_quantile(0.999),
            max_ns: histogram.max(),
        };
        histogram.reset();
        delays
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_those_since_they_were_asked_for_last() {
        let tally = Tally::new().expect("a tally");
        tally.add_operation(Duration::from_millis(5));
        tally.take_delays();
        for us in 1..=100 {
            tally.add_operation(Duration::from_micros(us));
        }
        let delays = tally.take_delays();
        assert!(delays.p50_ns.abs_diff(50_000) < 100, "{}", delays.p50_ns);
        assert!(delays.p99_ns.abs_diff(99_000) < 100, "{}", delays.p99_ns);
        assert_eq!(tally.operations(), 101);
    }

    #[test]
    fn the_first_failure_is_told() {
        let tally = Tally::new().expect("a tally");
        tally.check().expect("nothing is wrong yet");
        tally.fail("one");
        tally.fail("two");
        assert_eq!(tally.check().expect_err("a failure").to_string(), "one");
    }

    #[test]
    fn no_two_cells_have_one_name() {
        let names: std::collections::BTreeSet<String> =
            Cell::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), Cell::ALL.len());
    }
}
