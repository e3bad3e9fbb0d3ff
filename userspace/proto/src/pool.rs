//! The connections of a shard, kept and shared: who wants one with a peer gets the one there is, or
//! waits with all others for the one dial that makes it.
//!
//! ```text
//!   get ──▶ is there one? ── yes ──▶ the least loaded one, with a reference
//!             │ no
//!             ▼
//!           is it being dialled? ── no ──▶ permit ──▶ Action::Dial ──▶ dialled, dial_failed, …
//!             │                              ▲ none: the least useful idle one goes, else Full
//!             ▼                              └ pause ◀─ a failure that may pass
//!           wait ──▶ Action::Answer, once for every ticket
//! ```
//!
//! - **A permit** is held by every dial, from its first attempt to its end, and then by the connection
//!   that it has made. An incoming connection takes one too.
//! - **A connection is in use** while somebody has a reference to it, or streams of the peer are open on it. One that is in use is
//!   kept alive; one that is not, and on which nothing is heard either, ends after `idle_timeout`. What is
//!   heard tells that the other end uses it: its pool keeps alive only what is in use there.
//! - **More than one connection with a peer** stand when both ends called at once, or one was started anew. Both ends then prefer
//!   the same one (see [`Pool::incoming`]). Those beyond `max_connections_per_peer` are surplus: nobody gets them any more, and they
//!   end after two keep-alive intervals without use at either end.
//! - **A further connection** is dialled, where more than one is allowed, when each of those there are
//!   has `references_per_connection` references. Nobody waits for it.
//! - **When there is no room**, of the [`EVICTION_CANDIDATES`] connections that have been idle longest
//!   that one goes that is worth least: a surplus one, else the one with the lowest
//!   [`quality`](ConnectionProperties::quality) / (1 + idle time / `idle_timeout`).
//!
//! The pool does no I/O and dials nothing: it says what is to be done ([`Action`]), and is told what
//! came of it. What a connection is, is up to whoever does it.

mod config;
mod dials;
mod entries;
mod event;
mod metadata;
mod permits;
mod retry;
mod room;
mod slab;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use hashbrown::HashMap;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

pub use config::{PoolConfig, PoolConfigError, RetryConfig};
pub use event::{
    Action, Cause, Closing, DialId, GetError, Got, PoolCounters, PoolEvent, Refusal, Ticket,
};
pub use metadata::{
    ConnectionMetadata, ConnectionProperties, ConnectionState, ConnectionStats, Established,
    Measured, Traffic,
};
pub use permits::Permits;
pub use retry::{DialError, ErrorClass};

use crate::Timestamp;
use crate::identity::{PeerAddr, PeerId};
use crate::quic::CloseReason;
use crate::timer::Timers;
use dials::{Dial, Waiter};
use entries::{Entries, Entry};
use permits::Permit;
use slab::{Key, Slab};

/// Idle connections that are looked at when one has to go.
pub const EVICTION_CANDIDATES: usize = 16;
/// Connections of one peer beyond `max_connections_per_peer` that it may have made: what is left of
/// before a restart, and what waits to be drained.
pub const EXTRA_PER_PEER: usize = 4;
/// Connections that began within so long of each other were made by both ends at once.
pub const SIMULTANEOUS: Duration = Duration::from_secs(5);

/// Timers looked at in one call of `handle_timeout`.
const TIMEOUT_BUDGET: u32 = 256;
/// Events that may wait to be fetched.
const MAX_EVENTS: usize = 4096;
/// Keep-alive intervals after which a surplus connection is not in use at the other end.
const SURPLUS_INTERVALS: u32 = 2;

/// The connections of a shard.
#[derive(Debug)]
pub struct Pool<C> {
    me: PeerId,
    config: PoolConfig,
    permits: Permits,
    counters: Arc<PoolCounters>,
    groups: HashMap<PeerId, Group, RandomState>,
    entries: Entries<C>,
    dials: Slab<Dial>,
    waiters: Slab<Waiter>,
    tickets: HashMap<Ticket, Key, RandomState>,
    timers: Timers<Due>,
    rng: ChaCha12Rng,
    actions: VecDeque<Action<C>>,
    events: VecDeque<PoolEvent<C>>,
    shutting_down: bool,
    /// The time of the last input.
    now: Timestamp,
}

/// All about one peer.
#[derive(Debug, Default)]
struct Group {
    /// Connections that are not draining, the preferred one first. Callers get the first
    /// `max_connections_per_peer` of them.
    live: Vec<Key>,
    /// Connections, draining ones included.
    connections: usize,
    dial: Option<Key>,
    /// No further connection is dialled before.
    further_after: Timestamp,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.connections == 0 && self.dial.is_none()
    }
}

/// A connection that joins the others.
struct New<C> {
    connection: C,
    peer: PeerId,
    incoming: bool,
    established: Established,
    permit: Permit,
    /// Who gets it.
    waiters: Vec<Key>,
}

/// What a timer is for.
#[derive(Clone, Copy, Debug)]
enum Due {
    Entry(Key),
    Dial(Key),
    Waiter(Key),
}

impl<C: Copy + Eq + Hash + Debug> Pool<C> {
    /// The pool of a shard of the node `me`. `permits` are shared by all shards of the node; pauses
    /// follow from `seed`.
    pub fn new(
        me: PeerId,
        config: PoolConfig,
        permits: Permits,
        seed: [u8; 32],
    ) -> Result<Self, PoolConfigError> {
        config.validate()?;
        let mut rng = ChaCha12Rng::from_seed(seed);
        let mut word = || rng.next_u64();
        let hasher = RandomState::with_seeds(word(), word(), word(), word());
        Ok(Self {
            me,
            config,
            permits,
            counters: Arc::default(),
            groups: HashMap::with_hasher(hasher.clone()),
            entries: Entries::new(hasher.clone()),
            dials: Slab::new(),
            waiters: Slab::new(),
            tickets: HashMap::with_hasher(hasher),
            timers: Timers::new(),
            rng,
            actions: VecDeque::new(),
            events: VecDeque::new(),
            shutting_down: false,
            now: Timestamp::ZERO,
        })
    }

    /// What was counted; to be read at any time.
    pub fn counters(&self) -> &Arc<PoolCounters> {
        &self.counters
    }

    /// Has this pool share the permits of another one. For a pool that has no connection yet.
    pub fn share(&mut self, permits: Permits) {
        assert!(
            self.is_empty(),
            "what holds a permit would give it back where it is not from"
        );
        self.permits = permits;
    }

    /// The permits, which all shards share.
    pub fn permits(&self) -> &Permits {
        &self.permits
    }

    /// What it was made with.
    pub fn config(&self) -> &PoolConfig {
        &self.config
    }

    /// Connections, draining ones included.
    pub fn connections(&self) -> usize {
        self.entries.len()
    }

    /// Peers that are being dialled, pauses included.
    pub fn dials(&self) -> usize {
        self.dials.len()
    }

    /// Callers that wait.
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// Whether there is nothing left: no connection, no dial, no caller, no timer.
    pub fn is_empty(&self) -> bool {
        self.entries.len() == 0
            && self.dials.len() == 0
            && self.waiters.len() == 0
            && self.tickets.is_empty()
            && self.groups.is_empty()
            && self.timers.is_empty()
    }

    /// Whether one more connection could be had, if need be for an idle one.
    pub fn has_room(&self) -> bool {
        let free = self.permits.taken() < self.permits.limit();
        !self.shutting_down && (free || self.entries.idle().next().is_some())
    }

    /// Asks for a connection with a peer. A live one is given at once, with a reference; else the
    /// caller waits, with all others that want the same peer, and may [`cancel`](Self::cancel).
    /// `ticket` matters only where it has to wait.
    pub fn get(
        &mut self,
        now: Timestamp,
        to: &PeerAddr,
        ticket: Ticket,
    ) -> Result<Got<C>, GetError> {
        self.now = now;
        match self.take_live(now, to) {
            Some(connection) => Ok(Got::Live(connection)),
            None => self.wait(now, to, ticket).map(|()| Got::Waiting),
        }
    }

    /// The peer called, or both ends did. The order of preference among connections with one peer is
    /// the same at both ends: what began within [`SIMULTANEOUS`] of each other is ordered by the
    /// callers, the smaller [`PeerId`] first; else the later one goes first, since a peer that calls
    /// although there is a connection has lost it.
    ///
    /// Callers that wait for this peer get the connection, and it takes the dial's permit.
    pub fn incoming(
        &mut self,
        now: Timestamp,
        connection: C,
        peer: PeerId,
        established: Established,
    ) -> Result<(), Refusal> {
        self.now = now;
        if self.shutting_down {
            return Err(Refusal::ShuttingDown);
        }
        let (permit, waiters) = match self.overtake(peer) {
            Some(overtaken) => overtaken,
            None => (self.permit_of_incoming(now, peer)?, Vec::new()),
        };
        self.counters.incoming.increment();
        let new = New {
            connection,
            peer,
            incoming: true,
            established,
            permit,
            waiters,
        };
        self.insert(now, new);
        Ok(())
    }

    /// One more has a connection. False where it is over.
    pub fn retain(&mut self, now: Timestamp, connection: C) -> bool {
        self.now = now;
        let Some(key) = self.entries.key_of(connection) else {
            return false;
        };
        self.refer(now, key);
        true
    }

    /// One less has a connection. False where it is over, or where nobody had it.
    pub fn release(&mut self, now: Timestamp, connection: C) -> bool {
        self.now = now;
        let Some(key) = self.entries.key_of(connection) else {
            return false;
        };
        let Some(entry) = self.entries.get_mut(key) else {
            return false;
        };
        let Some(left) = entry.references.checked_sub(1) else {
            return false;
        };
        entry.references = left;
        self.settle(now, key);
        true
    }

    /// Whether streams are open on a connection that nobody needs a reference for: those that the peer
    /// opened, and what was sent and is not acknowledged.
    pub fn set_busy(&mut self, now: Timestamp, connection: C, busy: bool) {
        self.now = now;
        let Some(key) = self.entries.key_of(connection) else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(key) {
            entry.busy = busy;
            self.settle(now, key);
        }
    }

    /// A connection works no more as it should. Nobody gets it any more, the next caller has another one
    /// dialled, and it is closed when nobody uses it.
    pub fn set_unhealthy(&mut self, now: Timestamp, connection: C) {
        self.now = now;
        let Some(key) = self.entries.key_of(connection) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.draining = true;
        let (peer, in_use) = (entry.peer, entry.in_use());
        if let Some(group) = self.groups.get_mut(&peer) {
            group.live.retain(|live| *live != key);
        }
        if !in_use {
            self.close(key, Cause::Drained);
        }
    }

    /// A connection is over, and not because the pool wanted it so.
    pub fn closed(&mut self, now: Timestamp, connection: C, reason: CloseReason) -> bool {
        self.now = now;
        let key = self.entries.key_of(connection);
        let Some(entry) = key.and_then(|key| self.remove(key)) else {
            return false;
        };
        self.counters.lost.increment();
        self.tell(|| PoolEvent::Closed {
            connection,
            peer: entry.peer,
            why: Closing::Ended(reason),
        });
        true
    }

    /// Something was taken for sending on a connection.
    pub fn record_sent(&mut self, now: Timestamp, connection: C, traffic: Traffic) {
        if let Some(entry) = self.entries.of_mut(connection) {
            entry.stats.sent.add(traffic);
            entry.last_activity = now;
            entry.properties.record(true);
        }
    }

    /// Something that came on a connection was given to the application.
    pub fn record_received(&mut self, now: Timestamp, connection: C, traffic: Traffic) {
        if let Some(entry) = self.entries.of_mut(connection) {
            entry.stats.received.add(traffic);
            entry.last_activity = now;
        }
    }

    /// Something could not be sent on a connection although it should have been.
    pub fn record_failure(&mut self, connection: C) {
        if let Some(entry) = self.entries.of_mut(connection) {
            entry.properties.record(false);
        }
    }

    /// What was measured on a connection.
    pub fn set_measured(&mut self, connection: C, measured: Measured) {
        if let Some(entry) = self.entries.of_mut(connection) {
            entry.properties.measured = measured;
        }
    }

    /// What is known of a connection.
    pub fn metadata(&self, connection: C) -> Option<ConnectionMetadata> {
        self.entries.of(connection).map(Entry::metadata)
    }

    /// What becomes of the connections with a peer: the best that is true of one of them.
    pub fn state(&self, peer: PeerId) -> ConnectionState {
        let Some(group) = self.groups.get(&peer) else {
            return ConnectionState::Closed;
        };
        match (group.live.is_empty(), group.dial) {
            (false, _) => ConnectionState::Connected,
            (true, Some(_)) => ConnectionState::Connecting,
            (true, None) => ConnectionState::Draining,
        }
    }

    /// Closes everything, tells all who wait, and takes nothing any more.
    pub fn shutdown(&mut self, now: Timestamp) {
        self.now = now;
        self.shutting_down = true;
        self.end_dials();
        for key in self.entries.keys() {
            self.close(key, Cause::Shutdown);
        }
    }

    /// Does what is due. `heard` says when something was last received on a connection.
    pub fn handle_timeout(&mut self, now: Timestamp, heard: impl Fn(C) -> Timestamp) {
        self.now = now;
        let mut budget = TIMEOUT_BUDGET;
        while let Some(due) = self.timers.expire(now, &mut budget) {
            match due {
                Due::Entry(key) => self.look_at(now, key, &heard),
                Due::Dial(key) => self.dial_due(now, key),
                Due::Waiter(key) => self.waited_too_long(key),
            }
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action<C>> {
        self.actions.pop_front()
    }

    /// The next thing that an observer is told.
    pub fn poll_event(&mut self) -> Option<PoolEvent<C>> {
        self.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called; not later than now while there
    /// is an action or an event.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        if self.actions.is_empty() && self.events.is_empty() {
            self.timers.next_deadline()
        } else {
            Some(self.now)
        }
    }

    fn take_live(&mut self, now: Timestamp, to: &PeerAddr) -> Option<C> {
        let group = self.groups.get(&to.id())?;
        let most = self.config.max_connections_per_peer;
        let load = |key: &&Key| {
            let entry = self.entries.get(**key);
            entry.map_or(u32::MAX, |entry| entry.references)
        };
        let key = *group.live.iter().take(most).min_by_key(load)?;
        let may_grow = group.live.len() < most && group.dial.is_none();
        let may_grow = may_grow && now >= group.further_after;
        let entry = self.entries.get(key)?;
        let (connection, peer) = (entry.connection, entry.peer);
        let loaded = entry.references >= self.config.references_per_connection;
        self.refer(now, key);
        self.counters.reused.increment();
        self.tell(|| PoolEvent::Reused { connection, peer });
        if may_grow && loaded {
            self.dial_further(now, to);
        }
        Some(connection)
    }

    fn refer(&mut self, now: Timestamp, key: Key) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        entry.references += 1;
        if entry.idle.is_some() {
            self.settle(now, key);
        }
    }

    /// A connection joins those of its peer; who waits gets it.
    fn insert(&mut self, now: Timestamp, new: New<C>) {
        let New {
            connection,
            peer,
            incoming,
            established,
            permit,
            waiters,
        } = new;
        let timers = &mut self.timers;
        let wake_at = now + self.config.keep_alive_interval;
        let key = self.entries.insert_with(|key| Entry {
            connection,
            peer,
            incoming,
            established,
            established_at: now,
            last_activity: now,
            kept_alive_at: now,
            references: u32::try_from(waiters.len()).unwrap_or(u32::MAX),
            busy: false,
            draining: false,
            timer: (timers.start(wake_at, Due::Entry(key)), wake_at),
            properties: ConnectionProperties::default(),
            stats: ConnectionStats::default(),
            permit,
            idle: None,
        });
        let at = self.rank(now, peer, incoming);
        let group = self.groups.entry(peer).or_default();
        group.connections += 1;
        group.live.insert(at, key);
        self.tell(|| PoolEvent::Opened {
            connection,
            peer,
            incoming,
        });
        self.hurry_surplus(now, peer);
        self.settle(now, key);
        self.answer(waiters, &Ok(connection));
    }

    /// The place of a new connection among those of its peer.
    fn rank(&self, now: Timestamp, peer: PeerId, incoming: bool) -> usize {
        let caller = |incoming: bool| if incoming { peer } else { self.me };
        let preferred = |key: &&Key| {
            self.entries.get(**key).is_some_and(|entry| {
                now.saturating_since(entry.established_at) <= SIMULTANEOUS
                    && caller(entry.incoming) < caller(incoming)
            })
        };
        let live = self.groups.get(&peer).map_or(&[][..], |group| &group.live);
        live.iter().take_while(preferred).count()
    }

    /// What is surplus now ends sooner than it would have.
    fn hurry_surplus(&mut self, now: Timestamp, peer: PeerId) {
        let at = now + self.config.keep_alive_interval * SURPLUS_INTERVALS;
        let mut place = self.config.max_connections_per_peer;
        while let Some(key) = self
            .groups
            .get(&peer)
            .and_then(|group| group.live.get(place))
            .copied()
        {
            self.wake_by(key, at);
            place += 1;
        }
    }

    /// After its references or streams have changed: puts a connection among the idle ones, or takes it
    /// out; closes it where it was only waited for that.
    fn settle(&mut self, now: Timestamp, key: Key) {
        let Some(entry) = self.entries.get(key) else {
            return;
        };
        match (entry.in_use(), entry.idle.is_some()) {
            (true, true) => {
                self.entries.unlink(key);
                self.wake_by(key, now + self.config.keep_alive_interval);
            }
            (false, _) if entry.draining => self.close(key, Cause::Drained),
            (false, false) => self.entries.link(now, key),
            (true, false) | (false, true) => {}
        }
    }

    /// Sees to it that a connection is looked at by then.
    fn wake_by(&mut self, key: Key, at: Timestamp) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if at < entry.timer.1 {
            self.timers.cancel(entry.timer.0);
            entry.timer = (self.timers.start(at, Due::Entry(key)), at);
        }
    }

    fn look_at(&mut self, now: Timestamp, key: Key, heard: &impl Fn(C) -> Timestamp) {
        let surplus = self.is_surplus(key);
        let interval = self.config.keep_alive_interval;
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let next = match entry.idle {
            None => {
                let mut quiet_since = entry.last_activity.max(entry.kept_alive_at);
                if now >= quiet_since + interval {
                    entry.kept_alive_at = now;
                    quiet_since = now;
                    self.actions.push_back(Action::KeepAlive {
                        connection: entry.connection,
                    });
                }
                quiet_since + interval
            }
            Some(idle) => {
                let used = idle.since.max(entry.last_activity);
                let used = used.max(heard(entry.connection));
                let (cause, limit) = match surplus {
                    true => (Cause::Surplus, interval * SURPLUS_INTERVALS),
                    false => (Cause::Idle, self.config.idle_timeout),
                };
                if now >= used + limit {
                    self.close(key, cause);
                    return;
                }
                used + limit
            }
        };
        entry.timer = (self.timers.start(next, Due::Entry(key)), next);
    }

    fn is_surplus(&self, key: Key) -> bool {
        let entry = self.entries.get(key);
        let group = entry.and_then(|entry| self.groups.get(&entry.peer));
        let surplus =
            group.and_then(|group| group.live.get(self.config.max_connections_per_peer..));
        surplus.is_some_and(|surplus| surplus.contains(&key))
    }

    fn remove(&mut self, key: Key) -> Option<Entry<C>> {
        let entry = self.entries.remove(key)?;
        self.timers.cancel(entry.timer.0);
        if let Some(group) = self.groups.get_mut(&entry.peer) {
            group.live.retain(|live| *live != key);
            group.connections -= 1;
        }
        self.forget_if_empty(entry.peer);
        Some(entry)
    }

    fn forget_if_empty(&mut self, peer: PeerId) {
        if self.groups.get(&peer).is_some_and(Group::is_empty) {
            self.groups.remove(&peer);
        }
    }

    fn tell(&mut self, event: impl FnOnce() -> PoolEvent<C>) {
        if !self.config.observe {
            return;
        }
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
            self.counters.lost_events.increment();
        }
        self.events.push_back(event());
    }
}

#[cfg(test)]
mod tests;
