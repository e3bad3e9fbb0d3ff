//! The whole system in one thread, under virtual time, from one seed.
//!
//! A [`World`] is a [`Network`](network::Network) and one [`Node`](world::Node) per host. Everything
//! that happens follows from a `u64`: the same seed gives the same packets at the same nanoseconds,
//! which [`World::trace_hash`] makes visible.
//!
//! ```text
//!   Dice (seed) ──▶ World ──▶ Queue (time, sequence) ──▶ Node::handle_packet / handle_wakeup
//!                     ▲                                              │
//!                     └── Network: delay, loss, duplicates, … ◀── Context::send
//! ```
//!
//! The relay under test is the machine that the engine runs. [`relay_host`] is its shell: several
//! shards, injected failures, and beside them the reference [`model`], which says for every datagram
//! what may come of it. [`shell`] checks the contract between machine and shell at every step.
//! [`kernel`] is the map of routes beside it: it is compared with the reference at every step, and in
//! half of the runs packets take it. Half of the runs have limits that change at any time. [`client`]s do anything at any time; [`scenario::run`] puts it all together.
//!
//! [`swarm`] is nodes that call each other: the machine of the library, with a key exchange from a seed.
//! [`crowd`] is thousands of them, without cryptography ([`null`]).
//! [`hub`] is a node with limits among others, [`limiter`] its limits alone beside a reference.
//!
//! ```text
//!   cargo test -p towpath-sim                                  1,000 seeds
//!   TOWPATH_SIM_SEEDS=100000 cargo test -p towpath-sim         more of them
//!   TOWPATH_SIM_FIRST_SEED=5000 cargo test -p towpath-sim      others
//!   TOWPATH_SIM_SEED=893 cargo test -p towpath-sim             the one that failed, byte for byte
//! ```
//!
//! A run that fails prints what differs, the last datagrams and its seed.
#![forbid(unsafe_code)]

pub mod client;
pub mod crowd;
pub mod crypto;
pub mod dice;
pub mod hub;
pub mod kernel;
pub mod limiter;
pub mod model;
pub mod network;
pub mod null;
pub mod peer;
pub mod policies;
pub mod probe;
pub mod queue;
pub mod relay_host;
pub mod relay_spec;
pub mod scenario;
pub mod seeds;
pub mod shell;
pub mod steering;
pub mod stun;
pub mod swarm;
pub mod trace;
pub mod traffic;
pub mod watch;
pub mod world;

pub use dice::Dice;
pub use world::World;
