//! `cargo xtask ci`: everything that guards the main branch.

use std::time::Instant;

use anyhow::Result;

use crate::{coverage, dependencies, ebpf, process, test};

#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct Arguments {
    /// Leaves the tests out: format, lints, documentation, dependencies, coverage and the kernel's programs only.
    #[arg(long)]
    no_tests: bool,
    #[command(flatten)]
    test: test::Arguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let begin = Instant::now();
    process::run(process::cargo().args(["fmt", "--all", "--check"]))?;
    dependencies::check()?;
    coverage::check()?;
    ebpf::check()?;
    process::run(process::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))?;
    process::run(
        process::cargo()
            .args(["doc", "--workspace", "--no-deps", "--locked"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    println!("\nguards passed in {:.0} s", begin.elapsed().as_secs_f64());
    if arguments.no_tests {
        Ok(())
    } else {
        test::run(&arguments.test)
    }
}
