//! `cargo xtask bench`: builds what is measured in release mode and measures it.

use std::process::Command;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::prerequisites::{self, BENCH};
use crate::{process, test};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// The relay on both drivers beside coturn and a plain forwarder (root).
    Relay(Relay),
    /// The parts of the packet path: criterion timings.
    Micro(Micro),
}

#[derive(Args)]
struct Relay {
    /// Handed to the benchmark as they are; `-- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

#[derive(Args)]
struct Micro {
    /// Handed to criterion as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.suite {
        Suite::Relay(relay) => run_relay(relay),
        Suite::Micro(micro) => process::run(
            process::cargo()
                .args(["bench", "--package", "towpath-bench", "--"])
                .args(&micro.options),
        ),
    }
}

fn run_relay(relay: &Relay) -> Result<()> {
    prerequisites::install(BENCH)?;
    let towpath = test::towpath(true)?;
    process::run(process::cargo().args(["build", "--release", "--package", "towpath-bench"]))?;
    let bench = towpath.with_file_name("towpath-bench");
    process::run(
        Command::new(bench)
            .current_dir(process::root())
            .env("TOWPATH_BINARY", &towpath)
            .arg("relay")
            .args(&relay.options),
    )
}
