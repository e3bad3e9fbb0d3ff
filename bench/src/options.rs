//! What the runs of the relays and of the kernel path are told alike.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use crate::again;
use crate::load::Cell;
use crate::results::{self, Results};

/// What one cell may take at most.
const ONE_CELL: Duration = Duration::from_secs(60);

/// Options of every run.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Fewer cells, pairs and seconds: for development, not for figures.
    #[arg(long)]
    pub quick: bool,
    /// Rounds counted per cell and server.
    #[arg(long, value_name = "N")]
    pub pairs: Option<usize>,
    /// Only cells whose name contains one of these, such as "172 B c2p 16 flows".
    #[arg(long, value_delimiter = ',', value_name = "TEXT")]
    pub cells: Vec<String>,
    /// The run ends within this many minutes. Where they are short, rates that do not hold are not
    /// corrected and disturbed rounds not repeated, and in the end cells are left out.
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub minutes: u64,
    /// Measure the traffic that the results in `--out` lack, and again what something else disturbed
    /// there; of two measurements the less disturbed one is kept, whatever came out.
    #[arg(long)]
    pub again: bool,
    /// Where results are written.
    #[arg(long, value_name = "DIRECTORY", default_value = "bench/results")]
    pub out: PathBuf,
    /// The towpath binary; by default the one beside this program.
    #[arg(long, env = "TOWPATH_BINARY", value_name = "FILE")]
    pub towpath: Option<PathBuf>,
    /// Succeed although something was not measured.
    #[arg(long)]
    pub allow_skip: bool,
}

impl Options {
    /// Rounds to count.
    pub fn pairs(&self) -> Result<usize> {
        let pairs = self.pairs.unwrap_or(if self.quick { 2 } else { 7 });
        ensure!(pairs > 0, "--pairs must be at least 1");
        Ok(pairs)
    }

    /// When the last cell has to begin.
    pub fn end(&self, begin: Instant) -> Instant {
        let limit = Duration::from_secs(self.minutes * 60);
        begin + limit - ONE_CELL.min(limit / 2)
    }

    /// Which of the cells to measure; `quick` says which a quick run takes.
    pub fn choose(&self, cells: Vec<Cell>, quick: impl Fn(&Cell) -> bool) -> Result<Vec<Cell>> {
        let wanted = |cell: &Cell| {
            let name = cell.to_string();
            let asked = self.cells.iter().any(|part| name.contains(part.as_str()));
            asked || (self.cells.is_empty() && (!self.quick || quick(cell)))
        };
        let chosen: Vec<Cell> = cells.into_iter().filter(wanted).collect();
        ensure!(!chosen.is_empty(), "no cell has such a name");
        Ok(chosen)
    }

    /// What the run starts with: nothing, or with `--again` what there is, and of the cells those that are
    /// worth another measurement.
    pub fn begin(
        &self,
        name: &str,
        cells: Vec<Cell>,
        pairs: usize,
    ) -> Result<(Results, Vec<Cell>)> {
        if !self.again {
            return Ok((Results::new(results::setting(pairs, self.quick)), cells));
        }
        let mut results = Results::read(&self.out.join(name).with_extension("json"))?;
        let cells = again::worth_repeating(&results, cells);
        again::forget_skips(&mut results, &cells);
        Ok((results, cells))
    }
}
