//! `cargo xtask fuzz`: drives the fuzz targets with libFuzzer, for a limited time each.
//!
//! No nightly is needed: coverage comes from LLVM's own pass, which the stable compiler hands on.
//! What libFuzzer learns is kept below `target/fuzz/corpus`; the committed corpus is read and never
//! written.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{prerequisites, process};

/// The coverage that libFuzzer is guided by.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Ccodegen-units=1 --cfg fuzzing \
    -Cdebug-assertions=yes -Coverflow-checks=yes";

/// Longest input libFuzzer makes up: a little more than the longest datagram that is not a jumbogram
/// on common links.
const MAX_INPUT_BYTES: u32 = 2048;

#[derive(Args)]
pub(crate) struct Arguments {
    /// How long each target is fuzzed, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Shrinks what libFuzzer has learnt so far into the committed corpus, and fuzzes nothing.
    #[arg(long)]
    merge: bool,
    /// The target: a directory of `tests/fuzz/corpus`. All of them where none is named.
    target: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let committed = process::root().join("tests/fuzz/corpus");
    let targets = match &arguments.target {
        Some(target) => vec![target.clone()],
        None => directories(&committed)?,
    };
    if let Some(unknown) = targets
        .iter()
        .find(|target| !committed.join(target).is_dir())
    {
        bail!(
            "no fuzz target {unknown:?}; there are {}",
            directories(&committed)?.join(", ")
        );
    }
    prerequisites::install(prerequisites::FUZZ)?;
    let binary = build()?;
    for target in targets {
        let learnt = process::root().join("target/fuzz/corpus").join(&target);
        let artifacts = process::root().join("target/fuzz/artifacts").join(&target);
        for directory in [&learnt, &artifacts] {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let mut fuzzer = Command::new(&binary);
        fuzzer.env("TOWPATH_FUZZ_TARGET", &target);
        fuzzer.arg(format!("-max_len={MAX_INPUT_BYTES}"));
        if arguments.merge {
            fuzzer
                .arg("-merge=1")
                .arg(committed.join(&target))
                .arg(&learnt);
        } else {
            fuzzer
                .arg(format!("-max_total_time={}", arguments.seconds))
                .arg("-timeout=10")
                .arg("-print_final_stats=1")
                .arg(format!("-artifact_prefix={}/", artifacts.display()))
                .args([&learnt, &committed.join(&target)]);
        }
        process::run(&mut fuzzer).with_context(|| found(&target, &artifacts, &committed))?;
    }
    Ok(())
}

fn found(target: &str, artifacts: &Path, committed: &Path) -> String {
    format!(
        "the fuzzer found something in {target}: its input is in {}; once it is fixed, copy the \
         input into {}, where `cargo test -p towpath-fuzz` replays it",
        artifacts.display(),
        committed.join(target).display()
    )
}

fn directories(directory: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Builds the fuzzer apart from everything else. The target is named, so that build scripts and
/// macros, which run without libFuzzer, are not instrumented.
fn build() -> Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = process::output(Command::new(rustc).arg("-vV")).context("rustc does not run")?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc -vV names no host")?;
    let directory = process::root().join("target/fuzz");
    process::run(
        process::cargo()
            .args([
                "build",
                "--release",
                "--package",
                "towpath-fuzz",
                "--features",
                "libfuzzer",
            ])
            .args(["--bin", "towpath-fuzz", "--target", host, "--target-dir"])
            .arg(&directory)
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("RUSTFLAGS", INSTRUMENTATION),
    )?;
    Ok(directory.join(host).join("release/towpath-fuzz"))
}
