//! What `towpath status` shows: one snapshot, as the control socket gives it.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use towpath_proto::common::reason;
use towpath_proto::relay::{DropReason, ERROR_CODES, Quota, QuotaUse, RelayLimits, RequestKind};

use crate::limits::{LimitKeeper, SlotView};
use crate::units::Rate;
use crate::vitals::{InForce, Relayed, VERSION, Vitals};

/// Users in a snapshot.
const TOP_PEERS: usize = 10;

/// A snapshot of a server. Counts are since its start unless they say otherwise.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct Status {
    /// The version of the server.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// Whether new allocations can be made, and why not.
    pub unready: Vec<String>,
    /// Whether new allocations are refused until the last one has ended.
    pub draining: bool,
    /// Which driver carries the packets, and why.
    pub driver: DriverStatus,
    /// Where packets are relayed, and what the kernel path did.
    pub kernel: KernelStatus,
    /// What the kernel can do for the engine.
    pub capabilities: Vec<CapabilityStatus>,
    /// Which runtime carries the control plane.
    pub control_runtime: String,
    /// Addresses listened on.
    pub listen: Vec<SocketAddr>,
    /// Addresses that allocations are given.
    pub relay_addresses: Vec<RelayAddressStatus>,
    /// First and last relayed port.
    pub port_range: (u16, u16),
    /// The realm.
    pub realm: String,
    /// Number of users.
    pub users: u64,
    /// Allocations that exist now.
    pub allocations: u64,
    /// Allocations made.
    pub allocations_made: u64,
    /// Times that an allocation followed its client to another address.
    pub allocations_moved: u64,
    /// Relayed ports in use now.
    pub ports_in_use: u64,
    /// Relayed ports there can be.
    pub ports: u64,
    /// What there is of what quotas limit.
    pub quotas: QuotaStatus,
    /// Requests and datagrams refused because of a limit; limits without any are left out.
    pub refusals: BTreeMap<String, u64>,
    /// What was relayed.
    pub relayed: RelayedStatus,
    /// What is relayed per second.
    pub rates: RateStatus,
    /// The limit of all users together.
    pub global_limit: Rate,
    /// Directions of users that have a share of it now; 0 while it is not reached.
    pub shares: u64,
    /// What users sent, on every path, the kernel's included.
    pub metered_up: MeteredStatus,
    /// What users received, on every path.
    pub metered_down: MeteredStatus,
    /// The users who sent and received the most since they came.
    pub top_peers: Vec<SlotView>,
    /// Requests by method.
    pub requests: BTreeMap<String, RequestStatus>,
    /// Error responses by code.
    pub errors: BTreeMap<u16, u64>,
    /// Datagrams dropped by the relay, by reason; reasons without any are left out.
    pub drops: BTreeMap<String, u64>,
    /// What the engine counted, its own drops included.
    pub engine: BTreeMap<String, u64>,
    /// What each shard does.
    pub shards: Vec<ShardStatus>,
    /// What is not as configured.
    pub notes: Vec<String>,
}

/// The driver in use.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct DriverStatus {
    /// What the configuration asks for.
    pub configured: String,
    /// What is in use.
    pub in_use: String,
    /// Why.
    pub reason: String,
}

/// The kernel path.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct KernelStatus {
    /// What the configuration asks for.
    pub configured: String,
    /// The rung of each interface.
    pub interfaces: Vec<InterfaceStatus>,
    /// Where maps and links are pinned.
    pub pins: Option<String>,
    /// Why they are not.
    pub unpinned: Option<String>,
    /// Routes that the shards have in the kernel.
    pub routes: u64,
    /// Routes there is room for.
    pub max_routes: u64,
    /// Times that a channel got no routes because there were too many.
    pub routes_over_limit: u64,
    /// Routes that could not be written or removed.
    pub route_failures: u64,
    /// Next hops that packets are handed to.
    pub next_hops: u64,
    /// Destinations whose packets are passed to userspace, by reason.
    pub unusable_next_hops: BTreeMap<String, u64>,
    /// What the program decided, by reason, since the maps were made; reasons without any are left out.
    pub reasons: BTreeMap<String, ReasonStatus>,
}

/// An interface of the kernel path.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Where its packets are relayed: native, generic or userspace.
    pub rung: String,
    /// Why not on a better rung.
    pub reason: Option<String>,
}

/// What became of packets for one reason.
#[derive(Clone, Copy, Serialize, Deserialize, Debug)]
pub struct ReasonStatus {
    /// Packets.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// What became of them.
    pub fate: Fate,
}

/// What becomes of a packet in the kernel path.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It went on to where its route leads.
    Relayed,
    /// It came to userspace.
    Passed,
    /// Nobody got it.
    Dropped,
}

impl From<reason::Fate> for Fate {
    fn from(fate: reason::Fate) -> Self {
        match fate {
            reason::Fate::Relayed => Self::Relayed,
            reason::Fate::Passed => Self::Passed,
            reason::Fate::Dropped => Self::Dropped,
        }
    }
}

/// Something the kernel can or cannot do.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct CapabilityStatus {
    /// What.
    pub name: String,
    /// Why it is not used; `None` where it is.
    pub missing: Option<String>,
    /// What is done without it.
    pub fallback: String,
}

/// An address that allocations are given.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct RelayAddressStatus {
    /// Where sockets are bound.
    pub local: IpAddr,
    /// What clients are told.
    pub public: IpAddr,
}

/// What there is of what quotas limit, over all shards; `None` is no limit.
#[derive(Clone, Copy, Serialize, Deserialize, Debug)]
pub struct QuotaStatus {
    /// Allocations, and ports reserved for one.
    pub allocations: u32,
    /// How many there may be.
    pub total: Option<u32>,
    /// Users who have any.
    pub users: u32,
    /// How many one may have.
    pub per_user: Option<u32>,
    /// Networks (/24 of IPv4, /56 of IPv6) whose clients have any.
    pub networks: u32,
    /// How many those of one may have.
    pub per_network: Option<u32>,
}

/// Packets and payload bytes in both directions.
#[derive(Clone, Copy, Serialize, Deserialize, Debug)]
pub struct RelayedStatus {
    /// Datagrams from clients to peers.
    pub packets_to_peers: u64,
    /// Payload bytes from clients to peers.
    pub bytes_to_peers: u64,
    /// Datagrams from peers to clients.
    pub packets_to_clients: u64,
    /// Payload bytes from peers to clients.
    pub bytes_to_clients: u64,
}

/// What users did in one direction.
#[derive(Clone, Copy, Serialize, Deserialize, Debug)]
pub struct MeteredStatus {
    /// Packets that passed.
    pub packets: u64,
    /// Bytes that passed, IP and UDP headers included.
    pub bytes: u64,
    /// Packets dropped over a limit.
    pub dropped_packets: u64,
}

/// Rates over the last seconds.
#[derive(Clone, Copy, Serialize, Deserialize, Debug, Default, PartialEq)]
pub struct RateStatus {
    /// Seconds that the rates are of.
    pub window_s: f64,
    /// Datagrams per second, both directions.
    pub packets_per_s: f64,
    /// Payload bytes per second, both directions.
    pub bytes_per_s: f64,
}

/// Requests of one method.
#[derive(Clone, Copy, Serialize, Deserialize, Debug)]
pub struct RequestStatus {
    /// Those that arrived.
    pub requests: u64,
    /// Those that succeeded.
    pub successes: u64,
}

/// What one shard does.
#[derive(Clone, Copy, Serialize, Deserialize, Debug)]
pub struct ShardStatus {
    /// Allocations that exist now.
    pub allocations: u64,
    /// Datagrams relayed, both directions.
    pub packets: u64,
}

impl Status {
    pub(crate) fn new(
        vitals: &Vitals,
        limits: &LimitKeeper,
        rates: RateStatus,
        control_runtime: &str,
    ) -> Self {
        let InForce { relay, notes } = vitals.in_force();
        let totals = limits.totals(TOP_PEERS);
        let [metered_up, metered_down] = totals.sum().map(|total| MeteredStatus {
            packets: total.packets,
            bytes: total.bytes,
            dropped_packets: total.dropped_packets,
        });
        let Relayed {
            packets_to_peers,
            bytes_to_peers,
            packets_to_clients,
            bytes_to_clients,
        } = vitals.relayed();
        Self {
            version: VERSION.to_owned(),
            pid: std::process::id(),
            uptime_s: vitals.uptime_s(),
            unready: vitals.unready().into_iter().map(str::to_owned).collect(),
            draining: vitals.is_draining(),
            driver: DriverStatus {
                configured: vitals.driver.to_string(),
                in_use: vitals.report.driver.name().to_owned(),
                reason: vitals.report.reason.clone(),
            },
            kernel: kernel(vitals),
            capabilities: capabilities(vitals),
            control_runtime: control_runtime.to_owned(),
            listen: relay.listeners.clone(),
            relay_addresses: relay
                .relay_addresses
                .iter()
                .map(|address| RelayAddressStatus {
                    local: address.local,
                    public: address.public,
                })
                .collect(),
            port_range: (*relay.port_range.start(), *relay.port_range.end()),
            realm: relay.realm.clone(),
            users: relay.users.len() as u64,
            allocations: vitals.allocations(),
            allocations_made: vitals.sum(|shard| shard.relay.allocations_made.value()),
            allocations_moved: vitals.sum(|shard| shard.relay.allocations_moved.value()),
            ports_in_use: vitals.ports_in_use(),
            ports: vitals.relayed_ports,
            quotas: quotas(vitals, &relay.limits),
            refusals: refusals(vitals),
            relayed: RelayedStatus {
                packets_to_peers,
                bytes_to_peers,
                packets_to_clients,
                bytes_to_clients,
            },
            rates,
            global_limit: limits.global(),
            shares: limits.shares(),
            metered_up,
            metered_down,
            top_peers: totals.top,
            requests: requests(vitals),
            errors: errors(vitals),
            drops: drops(vitals),
            engine: vitals.engine_totals(),
            shards: vitals
                .shards
                .iter()
                .map(|shard| ShardStatus {
                    allocations: shard.relay.allocations.value(),
                    packets: shard.relay.packets_to_peers.value()
                        + shard.relay.packets_to_clients.value(),
                })
                .collect(),
            notes,
        }
    }
}

fn kernel(vitals: &Vitals) -> KernelStatus {
    let path = &vitals.kernel;
    let kernel = &path.kernel;
    let next_hops = kernel.next_hops().map(|hops| hops.counts());
    let failures = kernel.routes().map(|routes| routes.failures());
    let interfaces = kernel.rungs().iter().map(|rung| InterfaceStatus {
        name: rung.interface.clone(),
        rung: rung.rung.name().to_owned(),
        reason: rung.reason.clone(),
    });
    let no_next_hop = path.counts.no_next_hop.load(Ordering::Relaxed);
    KernelStatus {
        configured: path.mode.to_string(),
        interfaces: interfaces.collect(),
        pins: kernel.pins().map(|pins| pins.display().to_string()),
        unpinned: path.unpinned(),
        routes: vitals.sum(|shard| shard.relay.routes.value()),
        max_routes: path.max_routes,
        routes_over_limit: vitals.sum(|shard| shard.relay.routes_over_limit.value()),
        route_failures: failures.map_or(0, |failures| failures.full + failures.refused)
            + no_next_hop,
        next_hops: next_hops.as_ref().map_or(0, |counts| counts.valid as u64),
        unusable_next_hops: next_hops.map_or_else(BTreeMap::new, |counts| {
            let unusable = counts.unusable.into_iter();
            unusable
                .map(|(why, count)| (why.to_string(), count as u64))
                .collect()
        }),
        reasons: path
            .reasons()
            .into_iter()
            .filter(|(_, count)| count.packets > 0)
            .map(|(reason, count)| {
                let status = ReasonStatus {
                    packets: count.packets,
                    bytes: count.bytes,
                    fate: reason.fate().into(),
                };
                (reason.name().to_owned(), status)
            })
            .collect(),
    }
}

fn capabilities(vitals: &Vitals) -> Vec<CapabilityStatus> {
    vitals
        .report
        .capabilities
        .iter()
        .map(|capability| CapabilityStatus {
            name: capability.name.to_owned(),
            missing: capability.missing.clone(),
            fallback: capability.fallback.to_owned(),
        })
        .collect()
}

fn requests(vitals: &Vitals) -> BTreeMap<String, RequestStatus> {
    RequestKind::ALL
        .into_iter()
        .map(|kind| {
            let counts = RequestStatus {
                requests: vitals.sum(|shard| shard.relay.requests(kind).value()),
                successes: vitals.sum(|shard| shard.relay.successes(kind).value()),
            };
            (kind.name().to_owned(), counts)
        })
        .collect()
}

fn errors(vitals: &Vitals) -> BTreeMap<u16, u64> {
    let count = |code| {
        vitals.sum(|shard| {
            shard
                .relay
                .errors(code)
                .map_or(0, |counter| counter.value())
        })
    };
    ERROR_CODES
        .into_iter()
        .map(|code| (code, count(code)))
        .filter(|(_, n)| *n > 0)
        .collect()
}

fn quotas(vitals: &Vitals, limits: &RelayLimits) -> QuotaStatus {
    let QuotaUse {
        allocations,
        users,
        networks,
    } = vitals.shared.quotas().in_use();
    QuotaStatus {
        allocations,
        total: limits.allocations_in_total,
        users,
        per_user: limits.allocations_per_user,
        networks,
        per_network: limits.allocations_per_network,
    }
}

fn refusals(vitals: &Vitals) -> BTreeMap<String, u64> {
    Quota::ALL
        .into_iter()
        .map(|quota| {
            let count = vitals.sum(|shard| shard.relay.refusals(quota).value());
            (quota.name().to_owned(), count)
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn drops(vitals: &Vitals) -> BTreeMap<String, u64> {
    DropReason::ALL
        .iter()
        .map(|&reason| {
            let count = vitals.sum(|shard| shard.relay.drops(reason).value());
            (reason.name().to_owned(), count)
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// The last few totals, for rates.
#[derive(Debug, Default)]
pub(crate) struct RateWindow {
    samples: VecDeque<(Instant, Relayed)>,
}

impl RateWindow {
    /// How many samples make the window; one is taken each second.
    const SAMPLES: usize = 11;

    pub(crate) fn sample(&mut self, now: Instant, relayed: Relayed) {
        if self.samples.len() == Self::SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((now, relayed));
    }

    pub(crate) fn rates(&self) -> RateStatus {
        let (Some((start, first)), Some((end, last))) = (self.samples.front(), self.samples.back())
        else {
            return RateStatus::default();
        };
        let window_s = end.duration_since(*start).as_secs_f64();
        if window_s <= 0.0 {
            return RateStatus::default();
        }
        let packets = |relayed: &Relayed| relayed.packets_to_peers + relayed.packets_to_clients;
        let bytes = |relayed: &Relayed| relayed.bytes_to_peers + relayed.bytes_to_clients;
        RateStatus {
            window_s,
            packets_per_s: (packets(last) - packets(first)) as f64 / window_s,
            bytes_per_s: (bytes(last) - bytes(first)) as f64 / window_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rates_are_of_the_last_ten_seconds() {
        let mut window = RateWindow::default();
        assert_eq!(window.rates(), RateStatus::default());
        let start = Instant::now();
        for second in 0..30_u64 {
            let relayed = Relayed {
                packets_to_peers: if second < 15 { 0 } else { (second - 15) * 70 },
                packets_to_clients: if second < 15 { 0 } else { (second - 15) * 30 },
                bytes_to_peers: second * 1000,
                bytes_to_clients: 0,
            };
            window.sample(start + Duration::from_secs(second), relayed);
        }
        let expected = RateStatus {
            window_s: 10.0,
            packets_per_s: 100.0,
            bytes_per_s: 1000.0,
        };
        assert_eq!(window.rates(), expected);
    }
}
