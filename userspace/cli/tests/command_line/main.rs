//! The `towpath` binary as its users run it: commands, exit codes, and servers on loopback.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

mod commands;
mod nodes;
mod running;
mod serve;
