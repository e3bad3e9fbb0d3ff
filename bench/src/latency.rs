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

/// Measures one round. Every packet is a sample.
pub fn measure(
    rig: &Rig,
    sinks: &Sinks,
    server: &mut Server,
    load: &mut Load,
    duration: Duration,
) -> Result<Delays> {
    let (round, delays) = load.measure(rig, sinks, server, RATE_PPS, duration, Duration::ZERO)?;
    ensure!(
        round.received > 0,
        "nothing of {} packets arrived",
        round.sent
    );
    summarise(&round, &delays)
}

fn summarise(round: &Round, delays_ns: &[u64]) -> Result<Delays> {
    let mut histogram = Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3)?;
    for &delay in delays_ns {
        histogram.saturating_record(delay);
    }
    let quantile = |part: f64| histogram.value_at_quantile(part) as f64 / 1000.0;
    Ok(Delays {
        p50: quantile(0.5),
        p90: quantile(0.9),
        p99: quantile(0.99),
        p999: quantile(0.999),
        max: histogram.max() as f64 / 1000.0,
        late: round.late,
        loss: round.loss(),
        spent: round.spent,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_delays_within_the_histograms_precision() {
        let delays: Vec<u64> = (1..=1000).map(|us| us * 1000).collect();
        let round = Round {
            sent: 1000,
            received: 990,
            ..Round::default()
        };
        let delays = summarise(&round, &delays).expect("a histogram");
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
