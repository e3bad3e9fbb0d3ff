//! Nodes beside quinn: pairs of processes on the loopback interface, in rounds in turn.
//!
//! ```text
//!   bench ── words ──▶ server process, CPU 0 ◀── loopback ──▶ client process, CPU 1 ◀── words ── bench
//! ```
//!
//! Every round of every contender has a fresh pair of processes, so that none inherits another's heap,
//! windows or sockets, and no contender runs while another is measured.

pub mod contender;
pub mod end;
pub mod memory;
pub mod pair;
mod quinn;
pub mod results;
pub mod round;
pub mod tally;
mod towpath;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use indicatif::ProgressBar;

use crate::node::contender::Contender;
use crate::node::results::{CellResults, NodeResults};
use crate::node::tally::Cell;
use crate::report;
use crate::sys;

/// Options of a run.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Fewer rounds and seconds: for development, not for figures.
    #[arg(long)]
    quick: bool,
    /// Rounds counted per cell and contender.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Length of a round.
    #[arg(long, value_name = "N")]
    seconds: Option<f64>,
    /// Only cells whose name contains one of these, such as "bulk" or "memory".
    #[arg(long, value_delimiter = ',', value_name = "TEXT")]
    cells: Vec<String>,
    /// Only these contenders.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    contenders: Vec<Contender>,
    /// The run ends within this many minutes; what is not measured by then is left out.
    #[arg(long, value_name = "N", default_value_t = 30)]
    minutes: u64,
    /// Where results are written.
    #[arg(long, value_name = "DIRECTORY", default_value = "bench/results")]
    out: PathBuf,
    /// Succeed although something was not measured.
    #[arg(long)]
    allow_skip: bool,
}

/// Time between the start of the load and the start of the count.
const WARM_UP: Duration = Duration::from_millis(700);
/// Rounds that something else disturbed are measured again this often.
const MAX_REPEATS: usize = 2;
/// Memory hardly varies: so many rounds of it are enough.
const MEMORY_ROUNDS: usize = 2;

/// Measures and writes what came out.
pub fn run(options: &Options) -> Result<()> {
    sys::catch_signals();
    let begin = Instant::now();
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { 7 });
    ensure!(rounds > 0, "--rounds must be at least 1");
    let seconds = options
        .seconds
        .unwrap_or(if options.quick { 1.0 } else { 3.0 });
    ensure!(
        (0.1..=600.0).contains(&seconds),
        "--seconds must be between 0.1 and 600"
    );
    let contenders = match options.contenders.as_slice() {
        [] => &Contender::ALL[..],
        some => some,
    };
    let mut run = Run {
        results: NodeResults::new(rounds, options.quick, contenders),
        contenders,
        length: Duration::from_secs_f64(seconds),
        end: begin + Duration::from_secs(options.minutes * 60),
    };
    let wanted = |name: &str| {
        options.cells.is_empty()
            || options
                .cells
                .iter()
                .any(|part| name.contains(part.as_str()))
    };
    let cells: Vec<Cell> = Cell::ALL
        .into_iter()
        .filter(|cell| wanted(&cell.to_string()))
        .collect();
    let with_memory = wanted(memory::NAME);
    ensure!(!cells.is_empty() || with_memory, "no cell has such a name");
    let outcome = run.measure(&cells, rounds, with_memory, options.quick);
    run.results.setting.seconds = begin.elapsed().as_secs();
    let concluded = report::node::conclude(&run.results, &options.out, options.allow_skip);
    outcome.and(concluded)
}

struct Run<'a> {
    results: NodeResults,
    contenders: &'a [Contender],
    length: Duration,
    end: Instant,
}

impl Run<'_> {
    fn measure(
        &mut self,
        cells: &[Cell],
        rounds: usize,
        with_memory: bool,
        quick: bool,
    ) -> Result<()> {
        for &cell in cells {
            let measured = self.cell(cell, rounds)?;
            print!("{}", report::node::cell_rows(&measured));
            self.results.cells.push(measured);
        }
        if with_memory {
            let steps = if quick {
                &memory::STEPS[..3]
            } else {
                &memory::STEPS[..]
            };
            for number in 0..rounds.min(MEMORY_ROUNDS) {
                for contender in in_turn(self.contenders, number) {
                    self.memory(contender, steps)?;
                }
            }
            print!("{}", report::node::memory_rows(&self.results));
        }
        Ok(())
    }

    fn cell(&mut self, cell: Cell, rounds: usize) -> Result<CellResults> {
        let mut measured = CellResults::new(cell);
        let bar = ProgressBar::new((rounds * self.contenders.len()) as u64);
        bar.println(cell.to_string());
        for number in 0..rounds {
            for contender in in_turn(self.contenders, number) {
                sys::check_interrupted()?;
                if Instant::now() > self.end {
                    self.skip(format!("{cell}, {contender}, round {number}: no time left"));
                    continue;
                }
                match self.round(cell, contender) {
                    Ok(round) => measured.add(contender, round),
                    Err(error) => {
                        sys::check_interrupted()?;
                        self.skip(format!("{cell}, {contender}, round {number}: {error:#}"));
                    }
                }
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(measured)
    }

    /// A round; the least disturbed of some where something else took the CPUs.
    fn round(&self, cell: Cell, contender: Contender) -> Result<round::Round> {
        let mut best = round::measure(cell, contender, WARM_UP, self.length)?;
        for _ in 0..MAX_REPEATS {
            if !best.is_disturbed() || Instant::now() > self.end {
                break;
            }
            let again = round::measure(cell, contender, WARM_UP, self.length)?;
            if again.disturbance() < best.disturbance() {
                best = again;
            }
        }
        Ok(best)
    }

    fn memory(&mut self, contender: Contender, steps: &[usize]) -> Result<()> {
        sys::check_interrupted()?;
        if Instant::now() > self.end {
            self.skip(format!("memory, {contender}: no time left"));
            return Ok(());
        }
        match memory::measure(contender, steps) {
            Ok(points) => {
                let rounds = self.results.memory.entry(contender.to_string());
                rounds.or_default().push(points);
            }
            Err(error) => {
                sys::check_interrupted()?;
                self.skip(format!("memory, {contender}: {error:#}"));
            }
        }
        Ok(())
    }

    fn skip(&mut self, what: String) {
        eprintln!("not measured: {what}");
        self.results.skipped.push(what);
    }
}

/// Every round begins with another contender, so that none always follows the same one.
fn in_turn(contenders: &[Contender], number: usize) -> impl Iterator<Item = Contender> {
    let first = number % contenders.len().max(1);
    let (before, from) = contenders.split_at(first);
    from.iter().chain(before).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_is_first_in_its_turn() {
        let all = &Contender::ALL;
        for number in 0..8 {
            let round: Vec<Contender> = in_turn(all, number).collect();
            assert_eq!(round[0], all[number % all.len()]);
            assert_eq!(round.len(), all.len());
        }
    }
}
