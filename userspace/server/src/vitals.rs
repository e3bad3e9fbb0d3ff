//! What can be read of a running server, from any thread and without asking a shard.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
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
    pub(crate) in_force: RwLock<InForce>,
    pub(crate) shared: Arc<RelayShared>,
    pub(crate) shards: Vec<ShardVitals>,
    pub(crate) driver: DriverChoice,
    pub(crate) report: Report,
    pub(crate) relayed_ports: u64,
    pub(crate) kernel: KernelPath,
    pub(crate) draining: AtomicBool,
    pub(crate) stopping: AtomicBool,
    pub(crate) shard_ended: AtomicBool,
}

/// What another reading of the configuration may change.
#[derive(Clone, Debug)]
pub(crate) struct InForce {
    pub(crate) relay: Arc<RelayConfig>,
    /// What is not as configured.
    pub(crate) notes: Vec<String>,
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
    pub(crate) fn in_force(&self) -> InForce {
        let in_force = self.in_force.read();
        in_force.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn put_in_force(&self, new: InForce) {
        *self
            .in_force
            .write()
            .unwrap_or_else(PoisonError::into_inner) = new;
    }

    /// Whether new allocations are refused until the last one has ended.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn allocations(&self) -> u64 {
        self.sum(|shard| shard.relay.allocations.value())
    }

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
            (self.is_draining(), "the server drains"),
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
