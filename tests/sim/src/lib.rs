//! The whole system in one thread, under virtual time, from one seed.
//!
//! A [`World`] is a [`Network`](network::Network) and one [`Node`](world::Node) per host. Everything
//! that happens follows from a `u64`: the same seed gives the same packets at the same nanoseconds,
//! which [`World::trace_hash`](world::World::trace_hash) makes visible.
//!
//! ```text
//!   Dice (seed) ──▶ World ──▶ Queue (time, sequence) ──▶ Node::handle_packet / handle_wakeup
//!                     ▲                                              │
//!                     └── Network: delay, loss, duplicates, … ◀── Context::send
//! ```
#![forbid(unsafe_code)]

pub mod client;
pub mod dice;
pub mod model;
pub mod network;
pub mod peer;
pub mod probe;
pub mod queue;
pub mod relay_host;
pub mod relay_spec;
pub mod scenario;
pub mod seeds;
pub mod shell;
pub mod steering;
pub mod stun;
pub mod trace;
pub mod traffic;
pub mod world;

pub use dice::Dice;
pub use world::World;
