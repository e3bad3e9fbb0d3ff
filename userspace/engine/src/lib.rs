//! Towpath's engine: runs a [`Machine`](towpath_proto::Machine) per core on UDP sockets.
//!
//! The engine moves datagrams and knows no protocol. Each shard is one thread with its own machine,
//! sockets, buffers and either an io_uring or an epoll descriptor; shards share nothing but bounded
//! queues. See [`Engine`].
//!
//! ```text
//!  listeners ─┐                    ┌─ in place ──────────────┐
//!  relayed   ─┴▶ driver ─▶ shard ─▶ machine ─▶ poll_transmit ─┴▶ outbox (runs, GSO) ─▶ driver
//!  ports                  ▲  │        │
//!                mailbox ─┘  └─ host ◀┴─ commands: open and close relayed ports, hand datagrams over
//! ```
//!
//! The wake protocol of the mailboxes is checked with loom:
//! `RUSTFLAGS="--cfg loom" cargo test -p towpath-engine --release loom_`.

mod address;
mod backlog;
mod buffers;
mod config;
mod counters;
mod engine;
mod epoll;
mod governor;
mod gro;
mod gso_limits;
mod icmp;
mod interfaces;
mod mailbox;
mod outbox;
mod ports;
mod probe;
mod shard;
mod socket;
mod sockets;
mod steering;
mod uring;

pub use config::{Driver, EngineConfig, MAX_LISTENERS, MAX_PORTS_PER_SHARD, MAX_SHARDS};
pub use counters::{Counter, EngineCounters};
pub use engine::{Engine, Host, StartError};
pub use interfaces::interface_addresses;
pub use mailbox::{Full, Mailbox};
pub use ports::{Handover, OpenError, Ports};
pub use probe::{Capability, DriverInUse, Report};
pub use steering::{Steering, SteeringRule};
