//! Logs: where they go, and that nobody outside can make them grow without bound.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// For people: values as `name=value`.
    #[default]
    Text,
    /// For programs: one JSON object per line.
    Json,
}

/// The level is none.
#[derive(thiserror::Error, Debug)]
#[error("log level {level:?}: {source}; one of error, warn, info, debug, trace, off is needed")]
pub struct LogLevelError {
    /// What was asked for.
    pub level: String,
    /// What is wrong with it.
    pub source: tracing_subscriber::filter::ParseError,
}

/// Sends the logs of this process to standard error. `level` is a level, or a list such as
/// `info,towpath_server=debug`.
pub fn start(format: LogFormat, level: &str) -> Result<(), LogLevelError> {
    let filter = EnvFilter::try_new(level).map_err(|source| LogLevelError {
        level: level.to_owned(),
        source,
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A log that is there already, as in a test, stays.
    let _ = match format {
        LogFormat::Text => log.with_target(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// Lets so many lines through in a second, and counts the others.
#[derive(Debug)]
pub(crate) struct LineLimit {
    per_second: u32,
    window_start: Instant,
    written: u32,
    suppressed: u64,
}

impl LineLimit {
    const WINDOW: Duration = Duration::from_secs(1);

    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        Self {
            per_second,
            window_start: now,
            written: 0,
            suppressed: 0,
        }
    }

    /// Whether one more line may be written now.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        if now.duration_since(self.window_start) >= Self::WINDOW {
            self.window_start = now;
            self.written = 0;
        }
        let admitted = self.written < self.per_second;
        if admitted {
            self.written += 1;
        } else {
            self.suppressed += 1;
        }
        admitted
    }

    /// How many lines were not written since this was asked last, once a window is over.
    pub(crate) fn take_suppressed(&mut self, now: Instant) -> Option<u64> {
        let over = now.duration_since(self.window_start) >= Self::WINDOW;
        (over && self.suppressed > 0).then(|| std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_above_the_limit_are_counted_not_written() {
        let start = Instant::now();
        let mut limit = LineLimit::new(3, start);
        let admitted = (0..10).filter(|_| limit.admit(start)).count();
        assert_eq!(admitted, 3);
        assert_eq!(limit.take_suppressed(start), None);
        let later = start + LineLimit::WINDOW;
        assert_eq!(limit.take_suppressed(later), Some(7));
        assert_eq!(limit.take_suppressed(later), None);
        assert!(limit.admit(later));
    }

    #[test]
    fn a_level_that_is_none_is_refused_by_name() {
        let error = start(LogFormat::Text, "towpath=loud").unwrap_err();
        assert!(error.to_string().contains("\"towpath=loud\""), "{error}");
    }
}
