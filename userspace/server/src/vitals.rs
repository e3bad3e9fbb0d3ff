//! What can be read of a running server, from any thread and without asking a shard.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use towpath_engine::{Counter, EngineCounters, Report};
use towpath_proto::relay::{RelayConfig, RelayCounters, RelayShared};

use crate::config::DriverChoice;
use crate::kernel_path::KernelPath;
use crate::shard::Notices;

/// A running server, as metrics and status see it.
#[derive(Debug)]
pub(crate) struct Vitals {
    pub(crate) started: Instant,
    pub(crate) started_at: SystemTime,
    pub(crate) relay: Arc<RelayConfig>,
    pub(crate) shared: Arc<RelayShared>,
    pub(crate) shards: Vec<ShardVitals>,
    pub(crate) driver: DriverChoice,
    pub(crate) report: Report,
    pub(crate) relayed_ports: u64,
    pub(crate) kernel: KernelPath,
    /// What is not as configured.
    pub(crate) notes: Vec<String>,
    pub(crate) stopping: AtomicBool,
    pub(crate) shard_ended: AtomicBool,
}

/// What one shard counts.
#[derive(Clone, Debug)]
pub(crate) struct ShardVitals {
    pub(crate) relay: Arc<RelayCounters>,
    pub(crate) engine: Arc<EngineCounters>,
    pub(crate) notices: Arc<Notices>,
}

/// What all shards relayed since the start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Relayed {
    pub(crate) packets_to_peers: u64,
    pub(crate) bytes_to_peers: u64,
    pub(crate) packets_to_clients: u64,
    pub(crate) bytes_to_clients: u64,
}

impl Vitals {
    pub(crate) fn uptime_s(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    pub(crate) fn started_unix_s(&self) -> u64 {
        self.started_at
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    }

    /// Sums a count over all shards.
    pub(crate) fn sum(&self, count: impl Fn(&ShardVitals) -> u64) -> u64 {
        self.shards.iter().map(count).sum()
    }

    pub(crate) fn relayed(&self) -> Relayed {
        Relayed {
            packets_to_peers: self.sum(|shard| shard.relay.packets_to_peers.value()),
            bytes_to_peers: self.sum(|shard| shard.relay.bytes_to_peers.value()),
            packets_to_clients: self.sum(|shard| shard.relay.packets_to_clients.value()),
            bytes_to_clients: self.sum(|shard| shard.relay.bytes_to_clients.value()),
        }
    }

    pub(crate) fn ports_in_use(&self) -> u64 {
        self.sum(|shard| shard.relay.ports_in_use.value())
    }

    /// Sums an engine counter over all shards.
    pub(crate) fn engine(&self, counter: Counter) -> u64 {
        self.sum(|shard| shard.engine.value(counter))
    }

    /// Every engine counter, summed over all shards.
    pub(crate) fn engine_totals(&self) -> BTreeMap<String, u64> {
        Counter::ALL
            .iter()
            .map(|&counter| (counter.name().to_owned(), self.engine(counter)))
            .collect()
    }

    /// Why no new allocation can be made here; empty where one can.
    pub(crate) fn unready(&self) -> Vec<&'static str> {
        let ports_left = self.ports_in_use() < self.relayed_ports;
        [
            (
                self.stopping.load(Ordering::Relaxed),
                "the server is stopping",
            ),
            (
                self.shard_ended.load(Ordering::Relaxed),
                "a shard has ended",
            ),
            (!ports_left, "no relayed port is free"),
        ]
        .into_iter()
        .filter_map(|(holds, reason)| holds.then_some(reason))
        .collect()
    }

    /// Whether all shards run.
    pub(crate) fn is_alive(&self) -> bool {
        !self.shard_ended.load(Ordering::Relaxed)
    }
}

/// The version of this build.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
