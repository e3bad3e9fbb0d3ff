//! What a node counts: as numbers at one time, and for Prometheus. Labels are shards and names of
//! counters, never peers: their number is bounded, and they tell nobody who is talked to.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use towpath_engine::EngineCounters;
use towpath_proto::bandwidth::{Bandwidth, Used};
use towpath_proto::peer::PeerCounters;
use towpath_proto::pool::{Permits, PoolCounters};

use crate::shared::Shared;

/// The counters of one shard.
#[derive(Clone, Debug)]
pub(crate) struct ShardCounters {
    pub(crate) peer: Arc<PeerCounters>,
    pub(crate) pool: Arc<PoolCounters>,
    pub(crate) engine: Arc<EngineCounters>,
}

/// The counters of a node: a handle that is read at any time, and can be registered with any
/// [`Registry`].
#[derive(Clone)]
pub struct Metrics {
    pub(crate) shards: Vec<ShardCounters>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) bandwidth: Arc<Bandwidth>,
    pub(crate) permits: Permits,
}

/// The numbers of a node at one time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Connections and calls under way.
    pub connections: usize,
    /// What was sent to peers, headers included.
    pub sent: Used,
    /// What came from peers, headers included.
    pub received: Used,
    /// Counters, summed over all shards, by family and name.
    pub counters: Vec<(&'static str, &'static str, u64)>,
}

/// Something that is counted in every shard.
struct Family {
    name: &'static str,
    help: &'static str,
    rows: fn(&ShardCounters) -> Vec<(&'static str, u64)>,
}

const FAMILIES: [Family; 3] = [
    Family {
        name: "node",
        help: "What the machine of a shard answered, refused and dropped",
        rows: |shard| shard.peer.iter().collect(),
    },
    Family {
        name: "pool",
        help: "What the pool of a shard did",
        rows: |shard| shard.pool.iter().collect(),
    },
    Family {
        name: "engine",
        help: "What the sockets of a shard did",
        rows: |shard| {
            let rows = shard.engine.iter();
            rows.map(|(counter, value)| (counter.name(), value))
                .collect()
        },
    },
];

impl Metrics {
    /// The numbers now.
    pub fn snapshot(&self) -> Snapshot {
        let total = self.bandwidth.usage_in_total();
        let mut counters = Vec::new();
        for family in FAMILIES {
            let first = counters.len();
            for shard in &self.shards {
                for (at, (name, value)) in (family.rows)(shard).into_iter().enumerate() {
                    match counters.get_mut(first + at) {
                        Some((_, _, sum)) => *sum += value,
                        None => counters.push((family.name, name, value)),
                    }
                }
            }
        }
        let own = self.shared.counters.iter();
        counters.extend(own.map(|(name, value)| ("application", name, value)));
        Snapshot {
            connections: self.permits.taken(),
            sent: total.up,
            received: total.down,
            counters,
        }
    }

    /// The numbers now as OpenMetrics text, all names beginning with `towpath`.
    pub fn to_text(&self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("towpath");
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let connections = ConstGauge::new(self.permits.taken() as u64);
        let kind = connections.metric_type();
        let help = "Connections and calls under way";
        connections.encode(encoder.encode_descriptor("node_connections", help, None, kind)?)?;
        for family in FAMILIES {
            let kind = MetricType::Counter;
            let mut out = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for (index, shard) in self.shards.iter().enumerate() {
                for (name, value) in (family.rows)(shard) {
                    let labels = [("shard", index.to_string()), ("what", name.to_owned())];
                    ConstCounter::new(value).encode(out.encode_family(&labels)?)?;
                }
            }
        }
        let help = "What the application did not take in time, and what of it panicked";
        let mut out = encoder.encode_descriptor("application", help, None, MetricType::Counter)?;
        for (name, value) in self.shared.counters.iter() {
            let labels = [("what", name)];
            ConstCounter::new(value).encode(out.encode_family(&labels)?)?;
        }
        let total = self.bandwidth.usage_in_total();
        let help = "Bytes to and from peers, headers included";
        let mut out = encoder.encode_descriptor("peer_bytes", help, None, MetricType::Counter)?;
        for (way, used) in [("up", total.up), ("down", total.down)] {
            ConstCounter::new(used.bytes).encode(out.encode_family(&[("direction", way)])?)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("snapshot", &self.snapshot())
            .finish_non_exhaustive()
    }
}
