//! What a run of the nodes found out, as it is written to JSON, and the figures that have to hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::node::contender::{Contender, quinn_version};
use crate::node::end::Memory;
use crate::node::memory::{self, Point};
use crate::node::round::Round;
use crate::node::tally::Cell;
use crate::results::{self, Figure, Setting, Target};
use crate::statistics::{self, Summary};

const BULK: f64 = 1.1;
const ROUND_TRIP: f64 = 0.9;
const HANDSHAKES: f64 = 1.0;
const MEMORY: f64 = 1.0;

/// The rounds of a cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CellResults {
    /// What was done.
    pub cell: Cell,
    /// By contender, in the order in which they were measured: the n-th of each belong together.
    pub contenders: BTreeMap<String, Vec<Round>>,
}

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeResults {
    /// Where and with what.
    pub setting: Setting,
    /// By cell.
    pub cells: Vec<CellResults>,
    /// Memory by contender, by round.
    pub memory: BTreeMap<String, Vec<Vec<Point>>>,
    /// What should have been measured and was not, and why.
    pub skipped: Vec<String>,
}

/// Ratios of rounds that belong together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratios {
    /// Half are not above it.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

/// What of a round is compared.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// In words.
    pub name: &'static str,
    /// The unit it is shown in.
    pub unit: &'static str,
    /// In that unit.
    pub of: fn(&Round) -> f64,
    /// What it has to be, as a multiple of quinn's.
    pub target: Target,
}

impl CellResults {
    /// Nothing yet.
    pub fn new(cell: Cell) -> Self {
        Self {
            cell,
            contenders: BTreeMap::new(),
        }
    }

    /// A round more.
    pub fn add(&mut self, contender: Contender, round: Round) {
        let rounds = self.contenders.entry(contender.to_string());
        rounds.or_default().push(round);
    }

    /// What counts in this cell.
    pub fn measure(&self) -> Option<Measure> {
        match self.cell {
            Cell::Bulk { .. } => Some(Measure {
                name: "bytes per CPU-second",
                unit: "MB",
                of: |round| round.bytes_per_cpu_second() / 1e6,
                target: Target::AtLeast(BULK),
            }),
            Cell::RoundTrips => Some(Measure {
                name: "median of the round trip",
                unit: "µs",
                of: |round| round.delays.p50_ns as f64 / 1e3,
                target: Target::AtMost(ROUND_TRIP),
            }),
            Cell::Handshakes { .. } => Some(Measure {
                name: "handshakes per CPU-second",
                unit: "handshakes",
                of: Round::operations_per_cpu_second,
                target: Target::AtLeast(HANDSHAKES),
            }),
            Cell::Idle => None,
        }
    }

    /// Summary of something, of one contender.
    pub fn summary(&self, contender: &str, of: impl Fn(&Round) -> f64) -> Option<Summary> {
        statistics::summary(self.contenders.get(contender)?.iter().map(of))
    }

    /// The better of the two manners of a library, in what counts.
    pub fn best(&self, towpath: bool) -> Option<Contender> {
        let measure = self.measure()?;
        let mut medians: Vec<(f64, Contender)> = Contender::ALL
            .into_iter()
            .filter(|contender| contender.is_towpath() == towpath)
            .filter_map(|contender| {
                let summary = self.summary(&contender.to_string(), measure.of)?;
                Some((summary.median, contender))
            })
            .collect();
        medians.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        match measure.target {
            Target::AtLeast(_) => medians.last(),
            Target::AtMost(_) => medians.first(),
        }
        .map(|&(_, contender)| contender)
    }

    /// Ratios of one contender to another, round by round.
    pub fn ratios(&self, of: &str, to: &str, value: fn(&Round) -> f64) -> Option<Ratios> {
        let pairs = self
            .contenders
            .get(of)?
            .iter()
            .zip(self.contenders.get(to)?);
        ratios(pairs.map(|(of, to)| value(of) / value(to)))
    }

    /// Towpath's best manner to quinn's best.
    pub fn best_to_best(&self, value: fn(&Round) -> f64) -> Option<Ratios> {
        let (own, other) = (self.best(true)?, self.best(false)?);
        self.ratios(&own.to_string(), &other.to_string(), value)
    }
}

fn ratios(values: impl Iterator<Item = f64> + Clone) -> Option<Ratios> {
    Some(Ratios {
        median: statistics::summary(values.clone())?.median,
        least: values.clone().reduce(f64::min)?,
        most: values.reduce(f64::max)?,
    })
}

impl NodeResults {
    /// Nothing yet.
    pub fn new(rounds: usize, quick: bool, contenders: &[Contender]) -> Self {
        let mut setting = results::setting(rounds, quick);
        for contender in contenders {
            let mut what = contender.description().to_owned();
            if !contender.is_towpath() {
                what += &format!(" (quinn {})", quinn_version());
            }
            setting.servers.insert(contender.to_string(), what);
        }
        Self {
            setting,
            cells: Vec::new(),
            memory: BTreeMap::new(),
            skipped: Vec::new(),
        }
    }

    /// Reads results.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// Writes results, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("writing results")?;
        let draft = path.with_extension("json.draft");
        fs::write(&draft, text + "\n").with_context(|| format!("writing {}", draft.display()))?;
        fs::rename(&draft, path).with_context(|| format!("writing {}", path.display()))
    }

    /// Bytes per idle connection, both ends together: the median of the rounds.
    pub fn bytes_each(
        &self,
        contender: &str,
        connections: usize,
        of: fn(&Memory) -> u64,
    ) -> Option<f64> {
        let rounds = self.memory.get(contender)?.iter();
        let each = rounds.filter_map(|points| memory::bytes_each(points, connections, of));
        Some(statistics::summary(each)?.median)
    }

    /// The least memory of the manners of a library.
    pub fn least_bytes_each(
        &self,
        towpath: bool,
        connections: usize,
        of: fn(&Memory) -> u64,
    ) -> Option<f64> {
        Contender::ALL
            .into_iter()
            .filter(|contender| contender.is_towpath() == towpath)
            .filter_map(|contender| self.bytes_each(&contender.to_string(), connections, of))
            .reduce(f64::min)
    }

    /// What has to hold: always the best manner of Towpath to the best of quinn.
    pub fn figures(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        for results in &self.cells {
            let Some(measure) = results.measure() else {
                continue;
            };
            if let Some(ratios) = results.best_to_best(measure.of) {
                figures.push(Figure {
                    name: format!("{}: {}, to quinn", results.cell, measure.name),
                    value: ratios.median,
                    target: measure.target,
                });
            }
        }
        for connections in memory::STEPS {
            let heap = |memory: &Memory| memory.heap_bytes;
            let own = self.least_bytes_each(true, connections, heap);
            let other = self.least_bytes_each(false, connections, heap);
            if let (Some(own), Some(other)) = (own, other) {
                figures.push(Figure {
                    name: format!("heap per idle connection, of {connections}, to quinn"),
                    value: own / other,
                    target: Target::AtMost(MEMORY),
                });
            }
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::tally::Delays;

    fn round(bytes: u64, p50_ns: u64) -> Round {
        Round {
            seconds: 1.0,
            bytes,
            operations: 1,
            delays: Delays {
                p50_ns,
                ..Delays::default()
            },
            server_ns: 500_000_000,
            client_ns: 500_000_000,
            ..Round::default()
        }
    }

    fn results(cell: Cell) -> NodeResults {
        let mut results = NodeResults::new(3, false, &Contender::ALL);
        let mut measured = CellResults::new(cell);
        for (contender, bytes, p50_ns) in [
            (Contender::Towpath, [300, 200, 400], [10, 20, 30]),
            (Contender::TowpathThread, [100, 100, 100], [100, 100, 100]),
            (Contender::Quinn, [100, 100, 100], [40, 40, 40]),
            (Contender::QuinnMulti, [90, 90, 90], [50, 50, 50]),
        ] {
            for (bytes, p50_ns) in bytes.into_iter().zip(p50_ns) {
                measured.add(contender, round(bytes, p50_ns));
            }
        }
        results.cells.push(measured);
        results
    }

    #[test]
    fn the_best_of_each_is_compared_round_by_round() {
        let bulk = Cell::Bulk {
            connections: 1,
            streams: 1,
        };
        let results = results(bulk);
        let cell = &results.cells[0];
        let best = (cell.best(true), cell.best(false));
        assert_eq!(best, (Some(Contender::Towpath), Some(Contender::Quinn)));
        let ratios = cell.best_to_best(Round::bytes_per_cpu_second);
        let expected = Ratios {
            median: 3.0,
            least: 2.0,
            most: 4.0,
        };
        assert_eq!(ratios, Some(expected));
        assert!(results.figures()[0].is_met());
    }

    #[test]
    fn of_round_trips_the_shorter_are_the_better() {
        let results = results(Cell::RoundTrips);
        let best = (results.cells[0].best(true), results.cells[0].best(false));
        assert_eq!(best, (Some(Contender::Towpath), Some(Contender::Quinn)));
        let figure = &results.figures()[0];
        assert_eq!((figure.value, figure.is_met()), (0.5, true));
    }

    #[test]
    fn memory_is_compared_at_every_number_of_connections() {
        let mut results = results(Cell::Idle);
        for (contender, each) in [(Contender::Towpath, 500), (Contender::Quinn, 400)] {
            let points = [0, 100, 1000].map(|connections| Point {
                connections,
                server: Memory {
                    heap_bytes: 7 + each * connections as u64,
                    ..Memory::default()
                },
                client: Memory::default(),
            });
            let rounds = vec![points.to_vec()];
            results.memory.insert(contender.to_string(), rounds);
        }
        let figures = results.figures();
        assert_eq!(figures.len(), 2);
        assert_eq!((figures[1].value, figures[1].is_met()), (1.25, false));
    }
}
