//! Towpath's server: the configuration, the shards it starts, and the control plane beside them.
//!
//! Packets never pass through this crate: the engine's shards carry them. What is here runs once
//! (configuration, start, stop) or beside the shards (metrics, status, logs).
#![forbid(unsafe_code)]

pub mod config;
mod control;
pub mod directories;
pub mod generated;
pub mod host;
pub mod limit;
pub mod log;
mod metrics;
mod own_addresses;
pub mod plan;
pub mod server;
mod shard;
pub mod status;
pub mod units;
mod vitals;

pub use control::StopSignal;
pub use control::socket::{ControlSocketError, StatusError, read_status};
