//! Prometheus metrics: read from the shards' counters when somebody asks. Labels are shards,
//! reasons, methods, codes, interfaces and ranks, never users or addresses: their number is bounded,
//! and they tell nobody who is served.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use towpath_engine::Counter;
use towpath_proto::common::reason::{Count, Fate};
use towpath_proto::relay::{DropReason, ERROR_CODES, Quota, RequestKind};

use crate::limits::{DirectionTotal, DirectionTotals, LimitKeeper, Totals};
use crate::vitals::{ShardVitals, VERSION, Vitals};

/// Engine counters that start with this are drops.
const ENGINE_DROP: &str = "drop_";

/// Peers that have metrics of their own, by rank.
const TOP_PEERS: usize = 10;

/// Something that is counted for peers.
struct PeerMeasure {
    class_name: &'static str,
    class_help: &'static str,
    peer_name: &'static str,
    peer_help: &'static str,
    value: fn(&DirectionTotal) -> u64,
}

impl PeerMeasure {
    const ALL: [Self; 3] = [
        Self {
            class_name: "class_bytes",
            class_help: "Bytes that peers of a class sent and received, headers included",
            peer_name: "top_peer_bytes",
            peer_help: "Bytes of the peers that sent and received the most, headers included",
            value: |total| total.bytes,
        },
        Self {
            class_name: "class_packets",
            class_help: "Packets that peers of a class sent and received",
            peer_name: "top_peer_packets",
            peer_help: "Packets of the peers that sent and received the most",
            value: |total| total.packets,
        },
        Self {
            class_name: "class_dropped_packets",
            class_help: "Packets of a class dropped over a limit",
            peer_name: "top_peer_dropped_packets",
            peer_help: "Packets over a limit of the peers that sent and received the most",
            value: |total| total.dropped_packets,
        },
    ];
}

/// The media type of [`render`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of a server.
pub(crate) fn registry(vitals: Arc<Vitals>, limits: Arc<LimitKeeper>) -> Registry {
    let mut registry = Registry::with_prefix("towpath");
    registry.register_collector(Box::new(ServerCollector { vitals, limits }));
    registry
}

/// The metrics as text.
pub(crate) fn render(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(text)
}

#[derive(Debug)]
struct ServerCollector {
    vitals: Arc<Vitals>,
    limits: Arc<LimitKeeper>,
}

impl Collector for ServerCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out {
            encoder,
            vitals: &self.vitals,
            limits: &self.limits,
        };
        out.server()?;
        out.traffic()?;
        out.allocations()?;
        out.quotas()?;
        out.requests()?;
        out.drops()?;
        out.kernel()?;
        out.limits()?;
        out.engine()
    }
}

struct Out<'e, 'v> {
    encoder: DescriptorEncoder<'e>,
    vitals: &'v Vitals,
    limits: &'v LimitKeeper,
}

impl Out<'_, '_> {
    fn server(&mut self) -> fmt::Result {
        let vitals = self.vitals;
        let build = [("version", VERSION.to_owned())];
        self.family(
            "build",
            "What is running",
            MetricType::Info,
            |mut encoder| encoder.encode_info(&build),
        )?;
        let driver = [("driver", vitals.report.driver.name().to_owned())];
        self.family(
            "driver",
            "What carries the packets",
            MetricType::Info,
            |mut encoder| encoder.encode_info(&driver),
        )?;
        self.gauge(
            "start_time_seconds",
            "When the server started",
            vitals.started_unix_s(),
        )?;
        self.gauge(
            "users",
            "Users that are configured",
            vitals.in_force().relay.users.len() as u64,
        )?;
        self.gauge(
            "draining",
            "1 where no new allocations are made and the server ends with the last one",
            vitals.is_draining().into(),
        )?;
        self.gauge(
            "relay_ports",
            "Relayed ports there can be",
            vitals.relayed_ports,
        )
    }

    fn traffic(&mut self) -> fmt::Result {
        self.directions(
            "relay_packets",
            "Datagrams relayed",
            |shard| shard.relay.packets_to_peers.value(),
            |shard| shard.relay.packets_to_clients.value(),
        )?;
        self.directions(
            "relay_bytes",
            "Payload bytes relayed",
            |shard| shard.relay.bytes_to_peers.value(),
            |shard| shard.relay.bytes_to_clients.value(),
        )?;
        self.directions(
            "relay_indications",
            "Of the datagrams relayed, those in Send or Data indications",
            |shard| shard.relay.send_indications.value(),
            |shard| shard.relay.data_indications.value(),
        )?;
        self.shard_counter(
            "relay_icmp_indications",
            "ICMP errors that clients were told of",
            |shard| shard.relay.icmp_indications.value(),
        )
    }

    fn allocations(&mut self) -> fmt::Result {
        self.shard_gauge("allocations", "Allocations that exist", |shard| {
            shard.relay.allocations.value()
        })?;
        self.shard_gauge("relay_ports_in_use", "Relayed ports in use", |shard| {
            shard.relay.ports_in_use.value()
        })?;
        self.shard_counter("allocations_made", "Allocations made", |shard| {
            shard.relay.allocations_made.value()
        })?;
        self.shard_counter(
            "allocations_moved",
            "Times that an allocation followed its client to another address",
            |shard| shard.relay.allocations_moved.value(),
        )
    }

    fn quotas(&mut self) -> fmt::Result {
        let in_use = self.vitals.shared.quotas().in_use();
        for (name, help, value) in [
            (
                "quota_allocations",
                "Allocations and reserved ports, as quotas count them",
                in_use.allocations,
            ),
            ("quota_users", "Users who have allocations", in_use.users),
            (
                "quota_networks",
                "Networks (/24 or /56) whose clients have allocations",
                in_use.networks,
            ),
        ] {
            self.gauge(name, help, value.into())?;
        }
        let relay = self.vitals.in_force().relay;
        let limits = &relay.limits;
        let limits = [
            ("user", limits.allocations_per_user),
            ("network", limits.allocations_per_network),
            ("total", limits.allocations_in_total),
        ];
        self.family(
            "quota_limit",
            "Allocations that one user, one network and all may have; none where unlimited",
            MetricType::Gauge,
            |mut encoder| {
                for (of, limit) in limits {
                    let Some(limit) = limit else { continue };
                    ConstGauge::new(i64::from(limit))
                        .encode(encoder.encode_family(&[("of", of)])?)?;
                }
                Ok(())
            },
        )?;
        let quotas = Quota::ALL.map(|quota| (quota, quota.name()));
        self.labelled(
            "refusals",
            "Requests and datagrams refused because of a limit",
            "limit",
            &quotas,
            |shard, quota| shard.relay.refusals(quota).value(),
        )
    }

    fn requests(&mut self) -> fmt::Result {
        let kinds = RequestKind::ALL.map(|kind| (kind, kind.name()));
        self.labelled(
            "requests",
            "Requests that arrived",
            "method",
            &kinds,
            |shard, kind| shard.relay.requests(kind).value(),
        )?;
        self.labelled(
            "request_successes",
            "Requests that succeeded",
            "method",
            &kinds,
            |shard, kind| shard.relay.successes(kind).value(),
        )?;
        let names = ERROR_CODES.map(|code| code.to_string());
        let codes: Vec<_> = ERROR_CODES
            .into_iter()
            .zip(names.iter().map(String::as_str))
            .collect();
        self.labelled(
            "error_responses",
            "Error responses sent",
            "code",
            &codes,
            |shard, code| {
                shard
                    .relay
                    .errors(code)
                    .map_or(0, |counter| counter.value())
            },
        )?;
        self.shard_counter(
            "retransmissions",
            "Requests answered again because they were retransmitted",
            |shard| shard.relay.retransmissions.value(),
        )
    }

    fn drops(&mut self) -> fmt::Result {
        let relay: Vec<_> = DropReason::ALL
            .iter()
            .map(|&why| (why, why.name()))
            .collect();
        self.labelled(
            "relay_drops",
            "Datagrams the relay dropped",
            "reason",
            &relay,
            |shard, reason| shard.relay.drops(reason).value(),
        )?;
        let engine: Vec<_> = Counter::ALL
            .iter()
            .filter_map(|&counter| Some((counter, counter.name().strip_prefix(ENGINE_DROP)?)))
            .collect();
        self.labelled(
            "engine_drops",
            "Datagrams the engine dropped",
            "reason",
            &engine,
            |shard, counter| shard.engine.value(counter),
        )?;
        self.shard_counter(
            "notices_lost",
            "Log lines lost because too many waited",
            |shard| shard.relay.notices_lost.value() + shard.notices.lost(),
        )
    }

    fn kernel(&mut self) -> fmt::Result {
        let path = &self.vitals.kernel;
        let rungs = path.kernel.rungs();
        self.family(
            "kernel_rung",
            "Where packets of an interface are relayed: 1 for the rung it is on",
            MetricType::Gauge,
            |mut encoder| {
                for rung in rungs {
                    let labels = [
                        ("interface", rung.interface.clone()),
                        ("rung", rung.rung.name().to_owned()),
                    ];
                    ConstGauge::new(1_i64).encode(encoder.encode_family(&labels)?)?;
                }
                Ok(())
            },
        )?;
        self.shard_gauge("kernel_routes", "Routes in the kernel", |shard| {
            shard.relay.routes.value()
        })?;
        self.shard_counter(
            "kernel_routes_over_limit",
            "Times that a channel got no routes because there were too many",
            |shard| shard.relay.routes_over_limit.value(),
        )?;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &path.counts;
        let outcomes = [
            ("written", load(&counts.written)),
            ("removed", load(&counts.removed)),
            ("no_next_hop", load(&counts.no_next_hop)),
            ("refused", load(&counts.refused)),
        ];
        self.family(
            "kernel_route_changes",
            "Routes that the shards wrote and removed",
            MetricType::Counter,
            |mut encoder| {
                for (outcome, count) in outcomes {
                    let labels = [("outcome", outcome)];
                    ConstCounter::new(count).encode(encoder.encode_family(&labels)?)?;
                }
                Ok(())
            },
        )?;
        let reasons = path.reasons();
        let mut by_reason = |name: &str, help: &str, value: fn(&Count) -> u64| {
            self.family(name, help, MetricType::Counter, |mut encoder| {
                for (reason, count) in &reasons {
                    let fate = match reason.fate() {
                        Fate::Relayed => "relayed",
                        Fate::Passed => "passed",
                        Fate::Dropped => "dropped",
                    };
                    let labels = [("reason", reason.name()), ("fate", fate)];
                    ConstCounter::new(value(count)).encode(encoder.encode_family(&labels)?)?;
                }
                Ok(())
            })
        };
        by_reason(
            "kernel_packets",
            "Packets that the program saw, by what it decided",
            |count| count.packets,
        )?;
        by_reason(
            "kernel_frame_bytes",
            "Bytes of the frames that the program saw, by what it decided",
            |count| count.bytes,
        )
    }

    /// Of peers, those who sent and received the most since they came, and sums over classes.
    fn limits(&mut self) -> fmt::Result {
        let Totals {
            classes,
            top,
            peers,
        } = self.limits.totals(TOP_PEERS);
        self.gauge(
            "limit_shares",
            "Directions of peers that have a share of the global limit; 0 while it is not reached",
            self.limits.shares(),
        )?;
        self.gauge("peers", "Peers with a slot of their own", peers)?;
        for measure in PeerMeasure::ALL {
            self.family(
                measure.class_name,
                measure.class_help,
                MetricType::Counter,
                |mut encoder| {
                    for (class, total) in &classes {
                        for (direction, count) in total.both(measure.value) {
                            let labels = [("class", class.name()), ("direction", direction)];
                            ConstCounter::new(count).encode(encoder.encode_family(&labels)?)?;
                        }
                    }
                    Ok(())
                },
            )?;
            self.family(
                measure.peer_name,
                measure.peer_help,
                MetricType::Gauge,
                |mut encoder| {
                    for (index, slot) in top.iter().enumerate() {
                        let rank = (index + 1).to_string();
                        let total = DirectionTotals::of(slot);
                        for (direction, count) in total.both(measure.value) {
                            let labels = [("rank", rank.as_str()), ("direction", direction)];
                            let gauge = ConstGauge::new(signed(count));
                            gauge.encode(encoder.encode_family(&labels)?)?;
                        }
                    }
                    Ok(())
                },
            )?;
        }
        Ok(())
    }

    fn engine(&mut self) -> fmt::Result {
        for &counter in Counter::ALL {
            if counter.name().starts_with(ENGINE_DROP) {
                continue;
            }
            let name = format!("engine_{}", counter.name());
            let help = counter.help().trim().trim_end_matches('.');
            self.shard_counter(&name, help, |shard| shard.engine.value(counter))?;
        }
        Ok(())
    }

    fn family(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        encode: impl FnOnce(MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        encode(self.encoder.encode_descriptor(name, help, None, kind)?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, |encoder| {
            ConstGauge::new(signed(value)).encode(encoder)
        })
    }

    fn shard_gauge(
        &mut self,
        name: &str,
        help: &str,
        value: impl Fn(&ShardVitals) -> u64,
    ) -> fmt::Result {
        let vitals = self.vitals;
        self.family(name, help, MetricType::Gauge, |mut encoder| {
            for (index, shard) in vitals.shards.iter().enumerate() {
                let labels = [("shard", index.to_string())];
                ConstGauge::new(signed(value(shard))).encode(encoder.encode_family(&labels)?)?;
            }
            Ok(())
        })
    }

    fn shard_counter(
        &mut self,
        name: &str,
        help: &str,
        value: impl Fn(&ShardVitals) -> u64,
    ) -> fmt::Result {
        let vitals = self.vitals;
        self.family(name, help, MetricType::Counter, |mut encoder| {
            for (index, shard) in vitals.shards.iter().enumerate() {
                let labels = [("shard", index.to_string())];
                ConstCounter::new(value(shard)).encode(encoder.encode_family(&labels)?)?;
            }
            Ok(())
        })
    }

    fn labelled<T: Copy>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: &[(T, &str)],
        count: impl Fn(&ShardVitals, T) -> u64,
    ) -> fmt::Result {
        let vitals = self.vitals;
        self.family(name, help, MetricType::Counter, |mut encoder| {
            for (index, shard) in vitals.shards.iter().enumerate() {
                for (value, value_name) in values {
                    let labels = [
                        ("shard", index.to_string()),
                        (label, (*value_name).to_owned()),
                    ];
                    let counter = ConstCounter::new(count(shard, *value));
                    counter.encode(encoder.encode_family(&labels)?)?;
                }
            }
            Ok(())
        })
    }

    fn directions(
        &mut self,
        name: &str,
        help: &str,
        to_peers: fn(&ShardVitals) -> u64,
        to_clients: fn(&ShardVitals) -> u64,
    ) -> fmt::Result {
        let directions = [(to_peers, "to_peers"), (to_clients, "to_clients")];
        self.labelled(name, help, "direction", &directions, |shard, count| {
            count(shard)
        })
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
