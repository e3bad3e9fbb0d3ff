//! Measures relays side by side: see `docs/BENCHMARKS.md` for the method.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use towpath_bench::results::Results;
use towpath_bench::{forwarder, relay, report};

#[derive(Parser)]
#[command(
    name = "towpath-bench",
    version,
    about = "Measures relays side by side"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure coturn, Towpath on both drivers, and the yardstick, in namespaces of their own
    Relay(relay::Options),
    /// Write the page of the documentation from results
    Report {
        /// The results
        #[arg(long, default_value = "bench/results/relay.json")]
        results: PathBuf,
        /// The hand-written part of the page
        #[arg(long, default_value = "bench/method.md")]
        method: PathBuf,
        /// The page
        #[arg(long, default_value = "docs/BENCHMARKS.md")]
        out: PathBuf,
    },
    /// The yardstick, as a process
    #[command(hide = true)]
    Forwarder(forwarder::Table),
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Relay(options) => relay::run(&options),
        Command::Report {
            results,
            method,
            out,
        } => {
            let results = Results::read(&results)?;
            let method = fs::read_to_string(&method)
                .with_context(|| format!("reading {}", method.display()))?;
            fs::write(&out, report::page(&results, &method))
                .with_context(|| format!("writing {}", out.display()))
        }
        Command::Forwarder(table) => forwarder::run(table),
    }
}
