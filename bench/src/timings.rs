//! What the parts of the packet path cost by themselves: criterion's timings and callgrind's instruction
//! counts, gathered into one file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::results::{self, Setting};

/// File of the gathered costs.
pub const RESULTS_FILE: &str = "micro.json";

/// Time of one operation, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Median of the samples.
    pub median_ns: f64,
    /// Where the median lies with a confidence of 95 %.
    pub low_ns: f64,
    /// See `low_ns`.
    pub high_ns: f64,
}

/// All costs, and where they were found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Micro {
    /// The machine and the source.
    pub setting: Setting,
    /// Timings by name.
    pub timings: BTreeMap<String, Timing>,
    /// Instructions by name.
    pub instructions: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

impl Micro {
    /// Gathers what criterion left in a directory and the counts in a file.
    pub fn gather(criterion: &Path, instructions: &Path) -> Result<Self> {
        let mut timings = BTreeMap::new();
        gather_timings(criterion, &mut timings)?;
        ensure!(
            !timings.is_empty(),
            "criterion left nothing in {}",
            criterion.display()
        );
        Ok(Self {
            setting: results::setting(0, false),
            timings,
            instructions: read(instructions)?,
        })
    }

    /// Reads what [`write`](Self::write) wrote.
    pub fn read(path: &Path) -> Result<Self> {
        read(path)
    }

    /// Writes the costs.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("writing costs")? + "\n";
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
}

/// Criterion keeps the latest samples of a benchmark in a directory `new`, at any depth.
fn gather_timings(directory: &Path, timings: &mut BTreeMap<String, Timing>) -> Result<()> {
    let context = || format!("listing {}", directory.display());
    for entry in fs::read_dir(directory).with_context(context)? {
        let entry = entry.with_context(context)?;
        if !entry.file_type().with_context(context)?.is_dir() {
            continue;
        }
        let path = entry.path();
        if entry.file_name() != "new" {
            gather_timings(&path, timings)?;
            continue;
        }
        let benchmark: Benchmark = read(&path.join("benchmark.json"))?;
        let Estimates { median } = read(&path.join("estimates.json"))?;
        let timing = Timing {
            median_ns: median.point_estimate,
            low_ns: median.confidence_interval.lower_bound,
            high_ns: median.confidence_interval.upper_bound,
        };
        timings.insert(benchmark.full_id, timing);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timings_are_found_at_any_depth_and_only_the_latest() {
        let root = std::env::temp_dir().join(format!("tp-bench-timings-{}", std::process::id()));
        let estimates = r#"{"median":{"point_estimate":2.5,"confidence_interval":
            {"confidence_level":0.95,"lower_bound":2.0,"upper_bound":3.0},"standard_error":0.1}}"#;
        for (directory, name) in [
            ("parse/new", "parse"),
            ("a/b/new", "a/b"),
            ("a/b/base", "x"),
        ] {
            let path = root.join(directory);
            fs::create_dir_all(&path).expect("a directory");
            let benchmark = format!(r#"{{"group_id":"g","full_id":"{name}"}}"#);
            fs::write(path.join("benchmark.json"), benchmark).expect("a file");
            fs::write(path.join("estimates.json"), estimates).expect("a file");
        }
        let mut timings = BTreeMap::new();
        let gathered = gather_timings(&root, &mut timings);
        fs::remove_dir_all(&root).expect("what was just made");
        gathered.expect("sound files");
        assert_eq!(timings.keys().collect::<Vec<_>>(), ["a/b", "parse"]);
        assert_eq!(timings["parse"].median_ns, 2.5);
        assert_eq!((timings["a/b"].low_ns, timings["a/b"].high_ns), (2.0, 3.0));
    }
}
