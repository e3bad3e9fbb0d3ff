//! Measures relays and nodes side by side: see `docs/BENCHMARKS.md` for the method.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use towpath_bench::node::{self, results::NodeResults};
use towpath_bench::results::Results;
use towpath_bench::timings::Micro;
use towpath_bench::{forwarder, kernel, relay, report};

#[derive(Parser)]
#[command(
    name = "towpath-bench",
    version,
    about = "Measures relays and nodes side by side"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure coturn, Towpath on both drivers, and the yardstick, in namespaces of their own
    Relay(relay::Options),
    /// Measure coturn, Towpath in userspace and in the kernel, and the minimal XDP program
    Kernel(kernel::Options),
    /// Measure nodes of Towpath beside quinn
    Node(node::Options),
    /// Gather what `cargo bench` and the program `instructions` found
    Micro {
        /// Where criterion left its estimates
        #[arg(long)]
        criterion: PathBuf,
        /// The counts of instructions
        #[arg(long)]
        instructions: PathBuf,
        /// Where the costs are written
        #[arg(long, default_value = "bench/results/micro.json")]
        out: PathBuf,
    },
    /// Write the page of the documentation from results
    Report {
        /// The results of the relays; not there: no such part
        #[arg(long, default_value = "bench/results/relay.json")]
        results: PathBuf,
        /// The results of the kernel path; not there: no such part
        #[arg(long, default_value = "bench/results/kernel.json")]
        kernel: PathBuf,
        /// The results of the nodes; not there: no such part
        #[arg(long, default_value = "bench/results/node.json")]
        node: PathBuf,
        /// The costs of the parts; not there: no such part
        #[arg(long, default_value = "bench/results/micro.json")]
        micro: PathBuf,
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
    /// An end of a pair of nodes, as a process
    #[command(hide = true)]
    NodeEnd(node::end::Arguments),
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Relay(options) => relay::run(&options),
        Command::Kernel(options) => kernel::run(&options),
        Command::Node(options) => node::run(&options),
        Command::NodeEnd(arguments) => node::end::run(&arguments),
        Command::Micro {
            criterion,
            instructions,
            out,
        } => Micro::gather(&criterion, &instructions)?.write(&out),
        Command::Report {
            results,
            kernel,
            node,
            micro,
            method,
            out,
        } => {
            let mut page = fs::read_to_string(&method)
                .with_context(|| format!("reading {}", method.display()))?;
            if results.exists() {
                page = report::page(&Results::read(&results)?, &page);
            }
            if kernel.exists() {
                report::kernel::page(&mut page, &Results::read(&kernel)?);
            }
            if node.exists() {
                report::node::page(&mut page, &NodeResults::read(&node)?);
            }
            if micro.exists() {
                report::micro_page(&mut page, &Micro::read(&micro)?);
            }
            fs::write(&out, page).with_context(|| format!("writing {}", out.display()))
        }
        Command::Forwarder(table) => forwarder::run(table),
    }
}
