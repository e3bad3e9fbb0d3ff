//! Towpath's protocol cores: every rule of the relay, and nothing that touches the world.
//!
//! A core takes bytes and a [`Timestamp`] and gives back bytes, commands and a deadline. There are
//! no sockets, clocks, threads or global state in this crate, so the same machine runs under the
//! io_uring driver, under the epoll driver and in the simulator.
#![forbid(unsafe_code)]

pub mod access;
mod auth;
pub mod bandwidth;
pub mod breaker;
pub mod credentials;
pub mod health;
pub mod identity;
pub mod machine;
pub mod nat;
pub mod nonce;
pub mod peer;
pub mod pool;
pub mod ports;
pub mod quic;
pub mod relay;
pub mod selection;
pub mod slots;
pub mod stun;
pub mod time;
pub mod timer;
pub mod transport_type;
pub mod turn;
pub mod window;
pub mod wire;

/// The maps' layouts and the arithmetic of limits, which the kernel's packet path shares.
pub use towpath_ebpf_common as common;

pub use machine::Machine;
pub use time::{Timestamp, WallClock};
