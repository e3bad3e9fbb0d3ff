//! A test that cannot run says so, loudly.

use std::io::Write;

/// Says that the running test is skipped and why: on standard error, past the runner's capture, and
/// in the file `TOWPATH_SKIP_LOG` names, which `cargo xtask test` turns into a failure.
pub fn skip(why: &str) {
    let line = format!("SKIPPED: {}: {why}\n", test_name());
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
    if let Some(log) = std::env::var_os("TOWPATH_SKIP_LOG") {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("the log of skipped tests can be written");
    }
}

/// The running test's name: that of its thread, or what the runner says.
fn test_name() -> String {
    let thread = std::thread::current();
    match thread.name() {
        Some(name) if name != "main" => name.to_owned(),
        _ => std::env::var("NEXTEST_TEST_NAME").unwrap_or_else(|_| "a test".to_owned()),
    }
}
