//! Counts the instructions of each operation of `towpath_bench::micro` with callgrind: repeatable on any
//! machine, however busy.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use towpath_bench::micro;

/// Counts instructions per operation.
#[derive(Parser)]
struct Arguments {
    /// Where the counts are written as JSON
    #[arg(long)]
    out: Option<PathBuf>,
    /// Run one operation this often instead, under callgrind
    #[arg(long, hide = true, requires = "operation")]
    times: Option<u64>,
    /// Which
    #[arg(long, hide = true)]
    operation: Option<String>,
}

/// Two runs of different length: their difference is free of what only happens once.
const FEW: u64 = 1_000;
const MANY: u64 = 11_000;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let (Some(times), Some(name)) = (arguments.times, &arguments.operation) {
        let mut operation = micro::operation(name)?;
        for _ in 0..times {
            operation.prepare();
            operation.run_once();
        }
        return Ok(());
    }
    let mut counts = BTreeMap::new();
    for name in micro::NAMES {
        let count = (count(name, MANY)? - count(name, FEW)?) as f64 / (MANY - FEW) as f64;
        println!("{name:24} {count:8.1} instructions");
        counts.insert(name, count);
    }
    let Some(out) = arguments.out else {
        return Ok(());
    };
    if let Some(directory) = out.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
    }
    let text = serde_json::to_string_pretty(&counts)? + "\n";
    fs::write(&out, text).with_context(|| format!("writing {}", out.display()))
}

/// Instructions inside the operation, of all its runs.
fn count(name: &str, times: u64) -> Result<u64> {
    let file = std::env::temp_dir().join(format!("tp-bench-{}.callgrind", std::process::id()));
    let program = std::env::current_exe().context("finding the own program")?;
    let output = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--collect-atstart=no",
            "--toggle-collect=*run_once*",
        ])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(program)
        .args(["--operation", name, "--times", &times.to_string()])
        .output()
        .context("running valgrind")?;
    let total = total(&file);
    // Not there where valgrind failed, which is reported below.
    let _ = fs::remove_file(&file);
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind failed on {name}: {said}");
    let total = total.with_context(|| format!("no count for {name}; valgrind said: {said}"))?;
    ensure!(
        total > times,
        "{name} was not found by callgrind: {total} instructions in {times} runs"
    );
    Ok(total)
}

fn total(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("summary:"))?;
    line.split_whitespace().next()?.parse().ok()
}
