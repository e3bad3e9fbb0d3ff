//! Measuring again what something else disturbed: which cells, and which measurement is kept.

use crate::load::Cell;
use crate::results::{self, Results, Throughput};

/// The cells that the results lack, and those of which a server had most rounds disturbed.
pub fn worth_repeating(results: &Results, cells: Vec<Cell>) -> Vec<Cell> {
    let is_sound = |cell: &Cell| {
        let known = results.throughput.iter().find(|known| known.cell == *cell);
        known.is_some_and(|known| !is_spoilt(known))
    };
    cells.into_iter().filter(|cell| !is_sound(cell)).collect()
}

/// Drops the notes of what is about to be measured again.
pub fn forget_skips(results: &mut Results, cells: &[Cell]) {
    let names: Vec<String> = cells.iter().map(|cell| format!("{cell}:")).collect();
    let is_old = |skipped: &str| names.iter().any(|name| skipped.contains(name.as_str()));
    results.skipped.retain(|skipped| !is_old(skipped));
}

/// Adds a measurement. Where there is one of the same cell, the less disturbed one stays: what came out
/// has no say in it.
pub fn keep(results: &mut Results, measured: Throughput) {
    let same = |known: &&mut Throughput| known.cell == measured.cell;
    match results.throughput.iter_mut().find(same) {
        None => results.throughput.push(measured),
        Some(known) => {
            let is_whole = measured.servers.len() >= known.servers.len();
            if is_whole && disturbed_rounds(&measured) < disturbed_rounds(known) {
                *known = Throughput {
                    again_at: Some(results::commit()),
                    ..measured
                };
            }
        }
    }
}

fn is_spoilt(throughput: &Throughput) -> bool {
    let mut servers = throughput.servers.values();
    servers.any(|carried| carried.disturbed_rounds() * 2 > carried.rounds.len())
}

fn disturbed_rounds(throughput: &Throughput) -> usize {
    let servers = throughput.servers.values();
    servers.map(results::Carried::disturbed_rounds).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Direction, Round};
    use crate::results::Carried;
    use crate::search::Highest;
    use crate::usage::{MAX_STEAL, Spent};

    fn cell(flows: usize) -> Cell {
        Cell {
            payload_bytes: 172,
            direction: Direction::Both,
            flows,
            burst: 1,
        }
    }

    /// Seven rounds, the first of them disturbed, that carried `sent` packets each.
    fn measured(flows: usize, disturbed: usize, sent: u64) -> Throughput {
        let round = |number| Round {
            sent,
            spent: Spent {
                steal: if number < disturbed {
                    2.0 * MAX_STEAL
                } else {
                    0.0
                },
                ..Spent::default()
            },
            ..Round::default()
        };
        let carried = Carried {
            highest: Highest {
                rate_pps: 1.0,
                generator_limited: false,
            },
            steps_down: 0,
            rounds: (0..7).map(round).collect(),
            overload: Vec::new(),
            equal: Vec::new(),
        };
        Throughput {
            cell: cell(flows),
            servers: [("coturn".to_owned(), carried)].into(),
            again_at: None,
        }
    }

    fn results(throughput: Vec<Throughput>) -> Results {
        Results {
            throughput,
            ..Results::new(results::setting(7, false))
        }
    }

    #[test]
    fn cells_that_are_missing_or_mostly_disturbed_are_worth_repeating() {
        let results = results(vec![measured(1, 3, 0), measured(16, 4, 0)]);
        let cells = vec![cell(1), cell(16), cell(256)];
        assert_eq!(worth_repeating(&results, cells), [cell(16), cell(256)]);
    }

    #[test]
    fn the_less_disturbed_measurement_stays_whatever_came_out() {
        let mut results = results(vec![measured(1, 5, 100)]);
        keep(&mut results, measured(1, 5, 200));
        assert_eq!(results.throughput[0].servers["coturn"].rounds[0].sent, 100);
        keep(&mut results, measured(1, 4, 50));
        assert_eq!(results.throughput[0].servers["coturn"].rounds[0].sent, 50);
        assert!(results.throughput[0].again_at.is_some());
        keep(&mut results, measured(16, 7, 1));
        assert_eq!(results.throughput.len(), 2);
    }

    #[test]
    fn notes_of_what_is_measured_again_are_dropped_and_others_stay() {
        let mut results = results(Vec::new());
        results.skipped = vec![
            format!("{}: 30 minutes were over", cell(16)),
            "memory".into(),
        ];
        forget_skips(&mut results, &[cell(16)]);
        assert_eq!(results.skipped, ["memory"]);
    }
}
