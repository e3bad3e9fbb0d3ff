//! `cargo xtask test`: installs what the tests need, says what that is, and runs all of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::process;
use crate::skips::{self, Skips};
use crate::{prerequisites, prerequisites::NET};

/// Where the tests in namespaces find the program they test.
const BINARY_VARIABLE: &str = "TOWPATH_BINARY";
/// Where they find an interpreter that has aioice and aioquic.
const PYTHON_VARIABLE: &str = "TOWPATH_TEST_PYTHON";

#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct Arguments {
    /// Succeeds although something was skipped; it is listed all the same.
    #[arg(long)]
    allow_skip: bool,
    /// Runs this part only; may be given more than once.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Runs only tests whose name contains this.
    filter: Option<String>,
}

/// What belongs together, in the order it runs.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Unit tests, property tests, vectors, differential tests, the simulator.
    Unit,
    /// The examples in the documentation.
    Doc,
    /// Model checks of what threads share.
    Loom,
    /// Real clients against the real program, in network namespaces (root).
    Net,
}

/// Packages with tests under `--cfg loom`.
const LOOM_PACKAGES: &[&str] = &["towpath-engine"];

/// Bound on the switches loom forces on a thread: without one, two senders and a receiver take
/// hours. loom's authors find that two or three show practically everything.
const LOOM_PREEMPTIONS: &str = "3";

/// How many tests in namespaces run at once where cargo runs them; nextest has its own setting.
const NET_THREADS: &str = "4";

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut skips = Skips::new()?;
    let runner = Runner {
        nextest: has_nextest(),
        arguments,
        log: skips.log().to_path_buf(),
    };
    let mut failed = Vec::new();
    for part in Part::value_variants() {
        if !arguments.only.is_empty() && !arguments.only.contains(part) {
            continue;
        }
        let name = part
            .to_possible_value()
            .expect("no part is hidden")
            .get_name()
            .to_owned();
        let begin = Instant::now();
        println!("\n=== {name} ===");
        let outcome = match part {
            Part::Unit => runner.unit(),
            Part::Doc => runner.doc(),
            Part::Loom => runner.loom(),
            Part::Net => runner.net(&mut skips),
        };
        println!("=== {name}: {:.0} s ===", begin.elapsed().as_secs_f64());
        if let Err(error) = outcome {
            eprintln!("error: {name}: {error:#}");
            failed.push(name);
        }
    }
    let skipped = skips.finish(arguments.allow_skip);
    anyhow::ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    skipped
}

struct Runner<'a> {
    nextest: bool,
    arguments: &'a Arguments,
    log: PathBuf,
}

impl Runner<'_> {
    fn unit(&self) -> Result<()> {
        process::run(&mut self.tests(&["--workspace", "--exclude", "towpath-net"]))
    }

    /// Always by cargo: nextest does not run documentation tests.
    fn doc(&self) -> Result<()> {
        process::run(
            self.cargo_test()
                .args(["--doc", "--workspace"])
                .args(&self.arguments.filter),
        )
    }

    /// In a target directory of its own, so that the flag does not rebuild everything else twice.
    /// A package without a model to check is a mistake: the filter would find nothing, and pass.
    fn loom(&self) -> Result<()> {
        let target = process::target_directory()?.join("loom");
        for package in LOOM_PACKAGES {
            let tests = || {
                let mut tests = self.cargo_test();
                tests
                    .args(["--release", "--package", package, "--lib", "loom"])
                    .env("RUSTFLAGS", "--cfg loom")
                    .env("LOOM_MAX_PREEMPTIONS", LOOM_PREEMPTIONS)
                    .env("CARGO_PROFILE_RELEASE_LTO", "off")
                    .env("CARGO_TARGET_DIR", &target);
                tests
            };
            process::run(&mut tests())?;
            let listed = process::output(tests().args(["--", "--list"])).unwrap_or_default();
            anyhow::ensure!(
                listed.contains(": test"),
                "{package} has no test named loom"
            );
        }
        Ok(())
    }

    fn net(&self, skips: &mut Skips) -> Result<()> {
        if let Err(error) = prerequisites::install(NET) {
            skips.add("net", &format!("{error:#}"));
            return Ok(());
        }
        let python = prerequisites::python().inspect_err(|error| {
            skips.add("net: tests with aioice and aioquic", &format!("{error:#}"));
        });
        let mut tests = self.tests(&["--package", "towpath-net"]);
        tests.env(BINARY_VARIABLE, towpath(false)?);
        if let Ok(python) = python {
            tests.env(PYTHON_VARIABLE, python);
        }
        if !self.nextest {
            tests.args(["--", "--test-threads", NET_THREADS]);
        }
        process::run(&mut tests)
    }

    fn tests(&self, selection: &[&str]) -> Command {
        let mut command = if self.nextest {
            let mut command = process::cargo();
            command.args(["nextest", "run", "--no-fail-fast", "--no-tests", "pass"]);
            command.env(skips::LOG_VARIABLE, &self.log);
            command
        } else {
            let mut command = self.cargo_test();
            command.args(["--no-fail-fast", "--lib", "--bins", "--tests"]);
            command
        };
        command.args(selection).args(&self.arguments.filter);
        command
    }

    fn cargo_test(&self) -> Command {
        let mut command = process::cargo();
        command.arg("test").env(skips::LOG_VARIABLE, &self.log);
        command
    }
}

/// Builds the `towpath` program and returns where it lies.
pub(crate) fn towpath(release: bool) -> Result<PathBuf> {
    let mut build = process::cargo();
    build.args(["build", "--package", "towpath-cli"]);
    if release {
        build.arg("--release");
    }
    process::run(&mut build)?;
    let profile = if release { "release" } else { "debug" };
    let binary = process::target_directory()?.join(profile).join("towpath");
    Path::new(&binary)
        .canonicalize()
        .with_context(|| format!("the build left no {}", binary.display()))
}

fn has_nextest() -> bool {
    process::output(process::cargo().args(["nextest", "--version"])).is_some()
}
