//! What the kernel is told to forward by itself: two routes for each channel that can be used.
//!
//! ```text
//!   client ─▶ server, on the channel   becomes   relayed address ─▶ peer, the header left off
//!   peer ─▶ relayed address            becomes   server ─▶ client, on the channel
//! ```
//!
//! A route is the machine's own answer to the packets with its key, given beforehand: it stands only
//! while the machine would send them to the same place, and changes in the step that changes that.
//! Its end is the earlier end of channel and relayed address, so that nothing is forwarded longer
//! than the machine would, whatever becomes of the machine.
//!
//! Some packets always come to the machine:
//! - those of peers at an address of this host, whose ports are judged packet by packet;
//! - those of clients at an address of this host, which never were on a wire;
//! - those from or to loopback and link-local addresses: a route knows of no interface, and a
//!   loopback address on a wire is a forgery.
//!
//! Behind a 1:1 NAT all addresses of a route are those that packets have on this host.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use towpath_ebpf_common::route::RouteKey;

use super::allocation::Allocation;
use super::channels::Channel;
use crate::Timestamp;
use crate::machine::PortId;
use crate::relay::{Relay, RelayCommand, RelayConfig, RouteTarget};
use crate::slots::PeerSlot;
use crate::wire::attribute::Family;

/// The ends of routes are multiples of this many nanoseconds, about 9 s, rounded down. However often
/// a client refreshes, each of its routes is written once in that time.
const GRAIN_NANOS: u64 = 1 << 33;

/// Work that can wait does so while more commands than this are queued.
const MANY_COMMANDS: usize = 1024;

/// What the shell was told about a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RouteState {
    /// It has no routes.
    Absent,
    /// It has routes, and they are right.
    Told,
    /// It has routes whose end has changed.
    Outdated,
}

/// The routes of a shard, as far as they are not kept with the channels.
///
/// The queue is bounded: it holds commands about at most [`RelayLimits::max_routes`] routes, and
/// about each of them only what a request, a timer or changed rules made of it since the shell last
/// fetched all of them.
///
/// [`RelayLimits::max_routes`]: crate::relay::RelayLimits::max_routes
#[derive(Debug)]
pub(crate) struct Routes {
    offload: bool,
    queue: VecDeque<RelayCommand>,
    /// Channels that have routes.
    channels: u32,
    most_channels: u32,
    relay_addresses: Vec<IpAddr>,
    listening_ports: Vec<u16>,
}

/// The addresses that the routes of an allocation are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    client: SocketAddr,
    server: SocketAddr,
    relayed_v4: Option<SocketAddr>,
    relayed_v6: Option<SocketAddr>,
    /// Who pays both ways.
    slot: PeerSlot,
}

impl Routes {
    pub(crate) fn new(config: &RelayConfig) -> Self {
        let local = |address: &crate::relay::RelayAddress| address.local;
        Self {
            offload: config.offload,
            queue: VecDeque::new(),
            channels: 0,
            most_channels: config.limits.max_routes / 2,
            relay_addresses: config.relay_addresses.iter().map(local).collect(),
            listening_ports: config.listeners.iter().map(SocketAddr::port).collect(),
        }
    }

    pub(crate) fn pop(&mut self) -> Option<RelayCommand> {
        self.queue.pop_front()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether so many commands are queued that what can wait should.
    pub(crate) fn is_busy(&self) -> bool {
        self.queue.len() >= MANY_COMMANDS
    }

    /// Number of routes that the shell was told of and that were not removed.
    pub(crate) fn len(&self) -> u64 {
        u64::from(self.channels) * 2
    }

    pub(crate) fn ends(&self, allocation: &Allocation) -> Ends {
        let flow = &allocation.flow;
        let listening_port = self.listening_ports[usize::from(flow.listener)];
        let relayed_in = |family| {
            let relayed = allocation.relayed_in(family)?;
            let ip = self.relay_addresses[usize::from(relayed.address)];
            Some(SocketAddr::new(ip, relayed.port))
        };
        Ends {
            client: flow.client(),
            server: SocketAddr::new(flow.server(), listening_port),
            relayed_v4: relayed_in(Family::V4),
            relayed_v6: relayed_in(Family::V6),
            slot: allocation.slot,
        }
    }

    /// Sets both routes of a channel, or moves their end. The way back comes first, so that nobody is
    /// answered by another path than asked.
    fn set(&mut self, ends: &Ends, channel: &mut Channel, expires: Timestamp) {
        if channel.route == RouteState::Absent {
            self.channels += 1;
        }
        channel.route = RouteState::Told;
        let peer = channel.peer().socket();
        let [to_peer, to_client] = ends.keys(channel);
        let plain = RouteTarget {
            destination: peer,
            source: ends.relayed(peer.ip()),
            channel: None,
            up_slot: ends.slot,
            down_slot: PeerSlot::NOBODY,
            expires,
        };
        let wrapped = RouteTarget {
            destination: ends.client,
            source: ends.server,
            channel: Some(channel.number),
            up_slot: PeerSlot::NOBODY,
            down_slot: ends.slot,
            ..plain
        };
        for (key, route) in [(to_client, wrapped), (to_peer, plain)] {
            self.queue.push_back(RelayCommand::SetRoute { key, route });
        }
    }

    /// Removes both routes of a channel, if it has some.
    pub(crate) fn remove(&mut self, ends: &Ends, channel: &mut Channel) {
        if channel.route == RouteState::Absent {
            return;
        }
        channel.route = RouteState::Absent;
        self.channels -= 1;
        for key in ends.keys(channel) {
            self.queue.push_back(RelayCommand::RemoveRoute { key });
        }
    }
}

impl Ends {
    /// The keys of a channel's routes: to the peer, and to the client.
    fn keys(&self, channel: &Channel) -> [RouteKey; 2] {
        let peer = channel.peer().socket();
        [
            RouteKey::new(self.client, self.server, channel.number.number()),
            RouteKey::new(peer, self.relayed(peer.ip()), 0),
        ]
    }

    /// The relayed address that a channel's peer knows.
    fn relayed(&self, peer: IpAddr) -> SocketAddr {
        let relayed = match Family::of(peer) {
            Family::V4 => self.relayed_v4,
            Family::V6 => self.relayed_v6,
        };
        relayed.expect("a channel ends with the relayed address of its peer's family")
    }

    fn are_routable(&self) -> bool {
        let ends = [self.client, self.server];
        ends.iter().all(|end| is_routable(end.ip())) && self.server.port() != 0
    }
}

impl Relay {
    /// Tells the shell what has changed about the routes of an allocation.
    pub(super) fn follow_routes(&mut self, now: Timestamp, id: PortId) {
        if !self.routes.offload {
            return;
        }
        let Some((allocation, _)) = self.allocations.get_mut(id) else {
            return;
        };
        let ends = self.routes.ends(allocation);
        let routable = ends.are_routable() && !self.policy.is_own(ends.client.ip());
        let expires = allocation.lifetimes();
        let mut is_new = false;
        for channel in allocation.channels.iter_mut() {
            let until = channel.routed_until(expires.of(channel.peer_ip));
            let peer = channel.peer_ip.ip();
            let both_routable = is_routable(peer) && is_routable(ends.relayed(peer).ip());
            let wanted = routable && until > now && channel.own.is_none() && both_routable;
            match (wanted, channel.route) {
                (true, RouteState::Told) | (false, RouteState::Absent) => {}
                (true, RouteState::Outdated) => self.routes.set(&ends, channel, until),
                (true, RouteState::Absent) => {
                    if self.routes.channels < self.routes.most_channels {
                        self.routes.set(&ends, channel, until);
                        is_new = true;
                    } else {
                        self.counters.routes_over_limit.increment();
                    }
                }
                (false, RouteState::Told | RouteState::Outdated) => {
                    self.routes.remove(&ends, channel);
                }
            }
        }
        self.counters.routes.set(self.routes.len());
        if is_new {
            self.start_timer(id);
        }
    }

    /// Removes all routes of an allocation.
    pub(super) fn remove_routes(&mut self, id: PortId) {
        let Some((allocation, _)) = self.allocations.get_mut(id) else {
            return;
        };
        let ends = self.routes.ends(allocation);
        for channel in allocation.channels.iter_mut() {
            self.routes.remove(&ends, channel);
        }
        self.counters.routes.set(self.routes.len());
    }

    /// Starts an allocation's timer anew: at its end, or where routes end before.
    pub(super) fn start_timer(&mut self, id: PortId) {
        let Some((allocation, _)) = self.allocations.get_mut(id) else {
            return;
        };
        let expires = allocation.lifetimes();
        let routed = |channel: &&mut Channel| channel.route != RouteState::Absent;
        let ends = allocation.channels.iter_mut().filter(routed);
        let first = ends
            .map(|channel| channel.routed_until(expires.of(channel.peer_ip)))
            .min();
        let due = first.map_or(expires.earliest(), |first| first.min(expires.earliest()));
        if let Some(timer) = allocation.timer.take() {
            self.timers.cancel(timer);
        }
        allocation.timer = Some(self.timers.start(due, id));
    }
}

impl Channel {
    /// When the channel's routes end, given its relayed address's end.
    pub(super) fn routed_until(&self, relayed_until: Timestamp) -> Timestamp {
        let end = self.expires.min(relayed_until);
        Timestamp::from_nanos(end.as_nanos() & !(GRAIN_NANOS - 1))
    }

    /// Notes whether the routes' end is still what it was before a change.
    pub(super) fn compare_end(&mut self, before: Timestamp, relayed_until: Timestamp) {
        if self.route == RouteState::Told && self.routed_until(relayed_until) != before {
            self.route = RouteState::Outdated;
        }
    }
}

impl Allocation {
    /// Changes the end of the relayed address of one family, or of all. Returns whether one of them
    /// ends sooner now.
    pub(super) fn set_expires(&mut self, family: Option<Family>, expires: Timestamp) -> bool {
        let before = self.lifetimes();
        let details = &mut *self.details;
        let mut sooner = false;
        for relayed in std::iter::once(&mut details.relayed).chain(&mut details.second) {
            if family.is_none_or(|family| relayed.family == family) {
                sooner |= expires < relayed.expires;
                relayed.expires = expires;
            }
        }
        let after = self.lifetimes();
        self.expires = after.latest();
        for channel in self.channels.iter_mut() {
            let end = channel.routed_until(before.of(channel.peer_ip));
            channel.compare_end(end, after.of(channel.peer_ip));
        }
        sooner
    }
}

/// Whether an address means the same host on every interface, and can be on a wire.
fn is_routable(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !ip.is_loopback() && !is_link_local
}
