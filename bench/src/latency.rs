//! Delay at a modest rate, from the time a packet was due until it arrives.

use std::time::Duration;

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;

use crate::load::{Cell, Direction, Load, Round, Sinks};
use crate::results::Delays;
use crate::rig::Rig;
use crate::server::Server;

/// Packets per second.
pub const RATE_PPS: f64 = 10_000.0;

const LONGEST_NS: u64 = 10_000_000_000;
/// The generator spins with real-time priority. Where it did so for longer than the kernel allows (950 ms
/// of each second) it would be stopped for 50 ms, and every delay beyond the median would tell of that.
/// So a round has pauses: in the stretches between them packets leave on time.
const STRETCH: Duration = Duration::from_millis(250);
/// A stretch and the pause after it, longer than it needs to be.
const PAUSE: Duration = Duration::from_millis(45);

/// The traffic that is looked at.
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for direction in [Direction::ClientToPeer, Direction::PeerToClient] {
        for flows in [1, 16] {
            cells.push(Cell {
                payload_bytes: 172,
                direction,
                flows,
                burst: 1,
            });
        }
    }
    cells
}

/// What a round takes beside the traffic.
pub fn overhead(duration: Duration) -> Duration {
    PAUSE * stretches(duration)
}

fn stretches(duration: Duration) -> u32 {
    duration.as_nanos().div_ceil(STRETCH.as_nanos()) as u32
}

/// Measures one round. Every packet is a sample.
pub fn measure(
    rig: &Rig,
    sinks: &Sinks,
    server: &mut Server,
    load: &mut Load,
    duration: Duration,
) -> Result<Delays> {
    let stretches = stretches(duration);
    let mut rounds = Vec::new();
    let mut delays = Vec::new();
    for _ in 0..stretches {
        let length = duration / stretches;
        let (round, some) = load.measure(rig, sinks, server, RATE_PPS, length, Duration::ZERO)?;
        ensure!(
            round.received > 0,
            "nothing of {} packets arrived",
            round.sent
        );
        rounds.push(round);
        delays.extend(some);
    }
    summarise(&rounds, &delays)
}

fn summarise(rounds: &[Round], delays_ns: &[u64]) -> Result<Delays> {
    let mut histogram = Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3)?;
    for &delay in delays_ns {
        histogram.saturating_record(delay);
    }
    let quantile = |part: f64| histogram.value_at_quantile(part) as f64 / 1000.0;
    let sum = |of: fn(&Round) -> u64| rounds.iter().map(of).sum::<u64>() as f64;
    let late = rounds.iter().map(|round| round.late).sum::<f64>() / rounds.len() as f64;
    Ok(Delays {
        p50: quantile(0.5),
        p90: quantile(0.9),
        p99: quantile(0.99),
        p999: quantile(0.999),
        max: histogram.max() as f64 / 1000.0,
        late,
        loss: 1.0 - sum(|round| round.received) / sum(|round| round.sent),
        spent: rounds.iter().map(|round| round.spent).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_cut_into_stretches_the_kernel_lets_a_real_time_thread_run() {
        assert_eq!(stretches(Duration::from_millis(250)), 1);
        assert_eq!(stretches(Duration::from_millis(251)), 2);
        assert_eq!(stretches(Duration::from_millis(1500)), 6);
    }

    #[test]
    fn quantiles_are_those_of_the_delays_within_the_histograms_precision() {
        let delays: Vec<u64> = (1..=1000).map(|us| us * 1000).collect();
        let round = |received| Round {
            sent: 500,
            received,
            ..Round::default()
        };
        let delays = summarise(&[round(500), round(490)], &delays).expect("a histogram");
        for (value, expected) in [
            (delays.p50, 500.0),
            (delays.p90, 900.0),
            (delays.p99, 990.0),
            (delays.max, 1000.0),
        ] {
            assert!(
                (value - expected).abs() / expected < 0.003,
                "{value} for {expected}"
            );
        }
        assert!((delays.loss - 0.01).abs() < 1e-9);
    }
}
