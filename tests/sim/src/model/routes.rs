//! Which packets the kernel may forward by itself, and until when, by the reference's own state.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use towpath_ebpf_common::route::RouteKey;
use towpath_proto::Timestamp;
use towpath_proto::relay::RouteTarget;

use super::{Flow, Model};
use crate::kernel::Kernel;

/// A route may end so much earlier than what it stands for.
const ROUNDING: Duration = Duration::from_secs(9);

/// What the reference would forward, one way.
#[derive(Debug)]
struct Way {
    source: SocketAddr,
    destination: SocketAddr,
    channel: u16,
    /// Up to here it would.
    end: Timestamp,
}

impl Model {
    /// Compares the kernel's map with what the reference would forward: a live route leads where it
    /// would, none is left of what has ended, and none is missing where `complete` is set.
    pub fn check_routes(&self, now: Timestamp, kernel: &Kernel, complete: bool) {
        let ways = self.ways();
        for (key, route) in kernel.told() {
            let Some(way) = ways.get(key) else {
                let limit = route.expires + self.rules.slack;
                assert!(route.expires <= now, "nobody has {key:?}: {route:?}");
                assert!(now < limit, "left of what has ended: {key:?}: {route:?}");
                continue;
            };
            if route.expires > now {
                check_way(way, route);
            } else {
                let limit = route.expires + self.rules.slack;
                assert!(now < limit, "expired and not removed: {key:?}: {route:?}");
            }
        }
        for (key, route) in kernel.routes() {
            assert_eq!(kernel.told().get(key), Some(route), "{key:?}");
        }
        for (key, way) in ways {
            let missing = way.end > now + ROUNDING && !kernel.told().contains_key(&key);
            assert!(!(missing && complete), "no route has {key:?}: {way:?}");
        }
    }

    /// The packets that would be forwarded on channels, of allocations that exist.
    fn ways(&self) -> BTreeMap<RouteKey, Way> {
        let mut ways = BTreeMap::new();
        for (flow, allocation) in &self.allocations {
            if self.rules.own_addresses.contains(&flow.client.ip()) {
                continue;
            }
            for (number, (peer, until)) in &allocation.channels {
                let address = allocation.of_family(peer.is_ipv4());
                let Some(address) = address.filter(|address| !address.deleted) else {
                    continue;
                };
                let end = address.expires.min(*until);
                if !self.rules.own_addresses.contains(&peer.ip()) {
                    ways.extend(both_ways(flow, address.local, *number, *peer, end));
                }
            }
        }
        ways
    }
}

fn both_ways(
    flow: &Flow,
    relayed: SocketAddr,
    number: u16,
    peer: SocketAddr,
    end: Timestamp,
) -> [(RouteKey, Way); 2] {
    let to_peer = Way {
        source: relayed,
        destination: peer,
        channel: 0,
        end,
    };
    let to_client = Way {
        source: flow.server,
        destination: flow.client,
        channel: number,
        end,
    };
    [
        (RouteKey::new(flow.client, flow.server, number), to_peer),
        (RouteKey::new(peer, relayed, 0), to_client),
    ]
}

fn check_way(way: &Way, route: &RouteTarget) {
    let channel = route.channel.map_or(0, |channel| channel.number());
    assert_eq!(
        (route.source, route.destination, channel),
        (way.source, way.destination, way.channel),
        "{route:?} leads elsewhere: {way:?}"
    );
    assert!(
        route.expires <= way.end && route.expires + ROUNDING > way.end,
        "{route:?} ends at another time: {way:?}"
    );
}
