//! How the binary ends: its exit codes, and what it says on standard error.

use std::io::{self, Write as _};
use std::process::ExitCode;

use serde::Serialize;
use towpath_server::config::ReadError;

/// What clap ends with for wrong usage.
const USAGE: u8 = 2;
/// sysexits' EX_NOPERM.
const PRIVILEGE: u8 = 77;
/// sysexits' EX_CONFIG.
const CONFIG: u8 = 78;

/// Why a command failed; decides the exit code.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was asked for did not work.
    Runtime(String),
    /// The command line asks for something that cannot be.
    Usage(String),
    /// A privilege is missing.
    Privilege(String),
    /// The configuration is wrong.
    Config(ReadError),
}

impl Failure {
    /// Why, as text.
    pub(crate) fn text(self) -> String {
        match self {
            Self::Runtime(text) | Self::Usage(text) | Self::Privilege(text) => text,
            Self::Config(error) => error.to_string(),
        }
    }

    /// Says why on standard error.
    pub(crate) fn report(self) -> ExitCode {
        let (texts, code) = match self {
            Self::Runtime(text) => (vec![text], 1),
            Self::Usage(text) => (vec![text], USAGE),
            Self::Privilege(text) => (vec![text], PRIVILEGE),
            Self::Config(ReadError::Wrong(errors)) => {
                (errors.0.iter().map(ToString::to_string).collect(), CONFIG)
            }
            Self::Config(error) => (vec![error.to_string()], CONFIG),
        };
        for text in texts {
            // Nobody is left to be told when standard error is closed.
            let _ = writeln!(io::stderr(), "error: {text}");
        }
        ExitCode::from(code)
    }
}

/// A report for programs.
pub(crate) fn json(report: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(report);
    text.map(|text| text + "\n")
        .map_err(|error| Failure::Runtime(error.to_string()))
}

/// Writes to standard output; a reader that has seen enough, such as `head`, is no failure.
pub(crate) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Runtime(format!(
            "cannot write to standard output: {error}"
        ))),
        Ok(()) | Err(_) => Ok(()),
    }
}
