//! What an engine is told at its start, and what it says about itself.

use std::net::SocketAddr;

use crate::steering::SteeringRule;

/// How many shards an engine may have.
pub const MAX_SHARDS: u16 = 256;

/// How many listening addresses an engine may have.
pub const MAX_LISTENERS: usize = 64;

/// How many relayed ports a shard may hold at most.
pub const MAX_PORTS_PER_SHARD: u32 = 1 << 20;

/// The settings of an [`Engine`](crate::Engine).
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Addresses every shard listens on; port 0 lets the system choose one.
    pub listeners: Vec<SocketAddr>,
    /// Number of shards; 0 is one per core the process may use.
    pub shards: u16,
    /// Which driver runs them.
    pub driver: Driver,
    /// How many relayed ports one shard may hold.
    pub max_ports_per_shard: u32,
    /// What tells the shard of what arrives at a listener.
    pub steering: SteeringRule,
    /// Key of the hash that spreads clients over shards; secret, so that nobody can aim at one.
    pub steering_key: [u8; 16],
    /// How many messages wait for a shard at most.
    pub mailbox_messages: usize,
    /// Buffers for single datagrams in each shard, rounded up to a power of two.
    pub small_buffers: u16,
    /// Buffers for merged datagrams (64 KiB) in each shard, rounded up to a power of two.
    pub big_buffers: u16,
    /// Bytes of kernel memory that may wait in a listening socket. Bounds the queueing delay.
    pub listener_receive_bytes: usize,
    /// Whether all that leaves a listener has to leave whole. What is longer than the interface carries
    /// is dropped and counted, what is longer than the path carries is lost there: so a machine finds out
    /// what it carries. Else the kernel and routers fragment it.
    pub listener_dont_fragment: bool,
    /// Bytes of kernel memory that may wait in a relayed socket; 0 is the system's default.
    pub relayed_receive_bytes: usize,
    /// Whether UDP GRO is used where it pays.
    pub gro: bool,
    /// Whether UDP GSO is used where it pays.
    pub gso: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            listeners: Vec::new(),
            shards: 0,
            driver: Driver::Auto,
            max_ports_per_shard: 65_536,
            steering: SteeringRule::Client,
            steering_key: [0; 16],
            mailbox_messages: 4096,
            small_buffers: 1024,
            big_buffers: 64,
            listener_receive_bytes: 1 << 20,
            listener_dont_fragment: false,
            relayed_receive_bytes: 0,
            gro: true,
            gso: true,
        }
    }
}

/// Which driver runs the shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Driver {
    /// io_uring where the kernel allows it, else epoll with the reason in the report.
    #[default]
    Auto,
    /// io_uring, or an error.
    IoUring,
    /// epoll with recvmmsg and sendmmsg.
    Epoll,
}
