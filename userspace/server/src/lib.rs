//! Towpath's server: the configuration, the shards it starts, and the control plane beside them.
//!
//! Packets never pass through this crate: the engine's shards carry them. What is here runs once
//! (configuration, start, stop) or beside the shards (metrics, status, logs).
#![forbid(unsafe_code)]

pub mod clock;
pub mod config;
mod control;
pub mod directories;
mod drain;
pub mod generated;
pub mod host;
mod kernel_path;
pub mod limit;
pub mod limits;
pub mod log;
mod metrics;
mod offload;
pub mod plan;
pub mod reload;
pub mod server;
mod shard;
mod shard_config;
pub mod status;
pub mod units;
mod vitals;

pub use control::StopSignal;
pub use control::socket::{ControlClient, ControlError, ControlSocketError};
