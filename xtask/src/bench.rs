//! `cargo xtask bench`: builds what is measured in release mode and measures it.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
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
    Relay(System),
    /// The kernel path beside coturn, userspace and a minimal XDP program (root).
    Kernel(System),
    /// Nodes beside quinn: bulk, round trips, handshakes, memory.
    Node(System),
    /// The parts of the packet path: criterion timings and instruction counts.
    Micro(Micro),
}

#[derive(Args)]
struct System {
    /// Handed to the benchmark as they are; `-- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

#[derive(Args)]
struct Micro {
    /// Handed to criterion as they are; then nothing is written to the results.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.suite {
        Suite::Relay(system) => run_system("relay", system),
        Suite::Kernel(system) => run_system("kernel", system),
        Suite::Node(system) => run_node(system),
        Suite::Micro(micro) => run_micro(micro),
    }
}

fn run_system(suite: &str, system: &System) -> Result<()> {
    prerequisites::install(BENCH)?;
    let towpath = test::towpath(true)?;
    process::run(process::cargo().args(["build", "--release", "--package", "towpath-bench"]))?;
    let bench = towpath.with_file_name("towpath-bench");
    process::run(
        Command::new(bench)
            .current_dir(process::root())
            .env("TOWPATH_BINARY", &towpath)
            .arg(suite)
            .args(&system.options),
    )
}

fn run_node(node: &System) -> Result<()> {
    process::run(process::cargo().args(["build", "--release", "--package", "towpath-bench"]))?;
    let bench = process::target_directory()?.join("release/towpath-bench");
    process::run(
        Command::new(&bench)
            .current_dir(process::root())
            .arg("node")
            .args(&node.options),
    )?;
    process::run(
        Command::new(bench)
            .current_dir(process::root())
            .arg("report"),
    )
}

fn run_micro(micro: &Micro) -> Result<()> {
    prerequisites::install(BENCH)?;
    let release = process::target_directory()?.join("release");
    let scratch = process::target_directory()?.join("xtask").join("micro");
    // What earlier runs left there would pass for results of this one.
    if scratch.exists() {
        fs::remove_dir_all(&scratch)
            .with_context(|| format!("cannot remove {}", scratch.display()))?;
    }
    let (timings, instructions) = (scratch.join("criterion"), scratch.join("instructions.json"));
    process::run(
        process::cargo()
            .env("CRITERION_HOME", &timings)
            .args(["bench", "--package", "towpath-bench", "--"])
            .args(&micro.options),
    )?;
    if !micro.options.is_empty() {
        return Ok(());
    }
    process::run(process::cargo().args(["build", "--release", "--package", "towpath-bench"]))?;
    process::run(
        Command::new(release.join("instructions"))
            .arg("--out")
            .arg(&instructions),
    )?;
    let bench = |name: &str| {
        let mut command = Command::new(release.join("towpath-bench"));
        command.current_dir(process::root()).arg(name);
        command
    };
    process::run(
        bench("micro")
            .arg("--criterion")
            .arg(&timings)
            .arg("--instructions")
            .arg(&instructions),
    )?;
    process::run(&mut bench("report"))
}
