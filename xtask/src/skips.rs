//! What tests and benchmarks did not do, and why.
//!
//! A test that lacks something writes `SKIPPED: <test>: <why>` to standard error and appends the
//! same line to the file named by `TOWPATH_SKIP_LOG`, because runners hide the output of tests
//! that pass.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process;

/// The environment variable that names the file.
pub(crate) const LOG_VARIABLE: &str = "TOWPATH_SKIP_LOG";

/// Collects what was skipped during one command.
pub(crate) struct Skips {
    log: PathBuf,
    own: Vec<String>,
}

impl Skips {
    /// Starts with an empty log in the target directory.
    pub(crate) fn new() -> Result<Self> {
        let directory = process::target_directory()?.join("xtask");
        fs::create_dir_all(&directory)?;
        let log = directory.join(format!("skipped-{}.txt", std::process::id()));
        fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
        Ok(Self {
            log,
            own: Vec::new(),
        })
    }

    /// The file the started tests append to.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Notes something this command itself left out.
    pub(crate) fn add(&mut self, what: &str, why: &str) {
        let line = format!("SKIPPED: {what}: {why}");
        eprintln!("{line}");
        self.own.push(line);
    }

    /// Lists what was skipped. That is an error unless it was allowed.
    pub(crate) fn finish(self, allow_skip: bool) -> Result<()> {
        let logged = fs::read_to_string(&self.log).unwrap_or_default();
        let _ = fs::remove_file(&self.log);
        let lines: Vec<&str> = self
            .own
            .iter()
            .map(String::as_str)
            .chain(logged.lines())
            .collect();
        if lines.is_empty() {
            println!("\nNothing was skipped.");
            return Ok(());
        }
        println!("\n{} skipped:", lines.len());
        for line in &lines {
            println!("  {}", line.trim_start_matches("SKIPPED: "));
        }
        if allow_skip {
            return Ok(());
        }
        bail!("{} skipped (`--allow-skip` accepts that)", lines.len())
    }
}
