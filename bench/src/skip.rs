//! A test that cannot run says so, loudly.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};

/// What came of `made`; `None` where this process lacks the privileges, which is said to be skipped.
pub(crate) fn unless_refused<T>(made: anyhow::Result<T>) -> Option<T> {
    match made {
        Ok(made) => Some(made),
        Err(error) if is_refusal(&error) => {
            skip("loading a program needs CAP_BPF and CAP_NET_ADMIN");
            None
        }
        Err(error) => panic!("{error:#}"),
    }
}

fn is_refusal(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let cause = cause.downcast_ref::<std::io::Error>();
        cause.is_some_and(|cause| cause.kind() == ErrorKind::PermissionDenied)
    })
}

fn skip(why: &str) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let line = format!("SKIPPED: {name}: {why}\n");
    eprint!("{line}");
    if let Ok(path) = std::env::var("TOWPATH_SKIP_LOG") {
        let log = OpenOptions::new().append(true).create(true).open(path);
        log.and_then(|mut log| log.write_all(line.as_bytes()))
            .expect("the log of skipped tests can be written");
    }
}
