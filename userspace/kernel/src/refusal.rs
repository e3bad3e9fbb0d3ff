//! Why something is not done in the kernel, and what stops the kernel path from starting.

use std::fmt;
use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

use crate::config::Mode;
use crate::layout::Shape;
use crate::probe::lockdown;

/// The kernel path could not be started as it was asked for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KernelError {
    /// The configuration asks for a rung that cannot be had.
    #[error("kernel mode {mode} is asked for, and cannot be had: {reason}")]
    Impossible {
        /// The rung.
        mode: Mode,
        /// The interface and why, or why on none of them.
        reason: String,
    },
    /// There is no interface of this name.
    #[error("there is no network interface {0:?}")]
    UnknownInterface(String),
    /// Something must be forwarded, but no interface is named.
    #[error("no network interface is named for the kernel path")]
    NoInterfaces,
    /// A size is out of its range.
    #[error("{name} is {value}, but must lie within 1 and {max}")]
    Size {
        /// Which.
        name: &'static str,
        /// What it is.
        value: u32,
        /// What it may be at most.
        max: u32,
    },
    /// A listening port would be taken for a relayed one.
    #[error("port {port} of listener {listener} lies within the relayed ports {min}-{max}")]
    ListenerAmongRelayedPorts {
        /// The listener.
        listener: std::net::SocketAddr,
        /// Its port.
        port: u16,
        /// First relayed port.
        min: u16,
        /// Last relayed port.
        max: u16,
    },
}

/// Why the maps or the program are not there at all.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The configuration says so.
    Off,
    /// What the process may do cannot be found out.
    Status(io::Error),
    /// Capabilities are missing.
    Capabilities(Vec<&'static str>),
    /// The clock differs from the program's.
    Clock { seconds: i64, nanoseconds: i64 },
    /// The clock may differ from the program's.
    UnknownClock,
    /// Somebody else uses these pins.
    InUse(PathBuf),
    /// A pinned map is not what this version makes.
    Pinned {
        path: PathBuf,
        found: Shape,
        expected: Shape,
    },
    /// A map of the object is not what this version expects, or is missing.
    Object {
        map: &'static str,
        found: Option<Shape>,
        expected: Shape,
    },
    /// The program is missing from the object.
    NoProgram,
    /// A map could not be opened.
    Map(MapError),
    /// Maps or program could not be made.
    Load(Box<EbpfError>),
    /// The program was not accepted.
    Program(Box<ProgramError>),
    /// A call failed.
    Io(&'static str, io::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("the configuration switches it off"),
            Self::Status(error) => write!(f, "cannot read this process's state: {error}"),
            Self::Capabilities(missing) => write!(f, "{} missing", list(missing)),
            Self::Clock {
                seconds,
                nanoseconds,
            } => write!(
                f,
                "this time namespace's CLOCK_MONOTONIC is {seconds} s and {nanoseconds} ns off the \
                 kernel's"
            ),
            Self::UnknownClock => f.write_str(
                "this process is in a time namespace whose offset to the kernel's clock is unknown",
            ),
            Self::InUse(path) => write!(f, "another process holds the pins in {}", path.display()),
            Self::Pinned {
                path,
                found,
                expected,
            } => write!(
                f,
                "the pinned map {} is {found}, not {expected}; pins that are no longer wanted must \
                 be removed",
                path.display()
            ),
            Self::Object {
                map,
                found: Some(found),
                expected,
            } => write!(f, "map {map} of the program is {found}, not {expected}"),
            Self::Object {
                map, found: None, ..
            } => write!(f, "the program has no map {map}"),
            Self::NoProgram => f.write_str("the object has no program of the expected name"),
            Self::Map(error) => write!(f, "a map cannot be opened: {}", chain(error)),
            Self::Load(error) => {
                write!(f, "the maps cannot be made: {}", chain(error.as_ref()))?;
                locked(f)
            }
            Self::Program(error) => {
                write!(f, "the program is not accepted: {}", program_error(error))?;
                locked(f)
            }
            Self::Io(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

fn locked(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match lockdown() {
        Some(mode) => write!(f, " (the kernel is locked down: {mode})"),
        None => Ok(()),
    }
}

/// `A is`, `A and B are`, `A, B and C are`.
fn list(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => format!("{only} is"),
        [first @ .., last] => format!("{} and {last} are", first.join(", ")),
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Some errors print their cause themselves.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

/// A program's error with the end of what the verifier said, where it said something.
fn program_error(error: &ProgramError) -> String {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return chain(error);
    };
    let log = verifier_log.to_string();
    let mut last = log.lines().rev().filter(|line| !line.trim().is_empty());
    // The last line is statistics; the one before it says what is wrong.
    let said: Vec<&str> = last.by_ref().take(2).collect();
    match said.as_slice() {
        [] => io_error.to_string(),
        [only] => format!("{io_error}: {only}"),
        [statistics, wrong, ..] => format!("{io_error}: {wrong}; {statistics}"),
    }
}

#[cfg(test)]
mod tests {
    use super::list;

    #[test]
    fn names_are_listed_as_one_would_say_them() {
        assert_eq!(list(&["A"]), "A is");
        assert_eq!(list(&["A", "B"]), "A and B are");
        assert_eq!(list(&["A", "B", "C"]), "A, B and C are");
    }
}
