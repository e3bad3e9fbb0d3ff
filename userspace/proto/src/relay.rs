//! The relay's machine, one per shard, and what it is configured with, asked and told.

mod config;
#[expect(dead_code, reason = "written by the machine, which follows")]
mod counters;
mod event;
#[expect(dead_code, reason = "written by the machine, which follows")]
mod shared;

pub use config::{Credential, RelayAddress, RelayConfig, RelayConfigError, RelayLimits, Users};
pub use counters::{Counter, DropReason, ERROR_CODES, RelayCounters, RequestKind};
pub use event::{AllocationOwner, EndReason, Notice, PortError, RelayCommand, RelayEvent, Traffic};
pub use shared::RelayShared;
