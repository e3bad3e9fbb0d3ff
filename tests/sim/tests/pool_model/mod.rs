//! What a pool has to do, said as plainly as possible.

mod actions;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use towpath_proto::Timestamp;
use towpath_proto::identity::{PeerAddr, PeerId};
use towpath_proto::pool::{
    Cause, DialError, DialId, EVICTION_CANDIDATES, EXTRA_PER_PEER, Established, GetError, Got,
    Measured, Pool, PoolConfig, Refusal, SIMULTANEOUS, Ticket, Traffic,
};
use towpath_proto::quic::{CloseReason, SecurityLevel};
use towpath_proto::transport_type::TransportType;
use towpath_sim::dice::Dice;

/// Peers that there are.
pub(crate) const PEERS: u8 = 6;

const DIRECT: Established = Established {
    security: SecurityLevel::PostQuantum,
    transport: TransportType::Direct,
};

pub(crate) fn peer(number: u8) -> PeerId {
    PeerId::from_bytes([number; 32])
}

fn addr(id: PeerId) -> PeerAddr {
    PeerAddr::new(id, [([192, 0, 2, 1], 9).into()]).expect("one address")
}

#[derive(Debug)]
struct Connection {
    peer: PeerId,
    incoming: bool,
    since: Timestamp,
    references: u32,
    busy: bool,
    draining: bool,
    rtt: Option<Duration>,
    /// When something was sent on it.
    activity: Timestamp,
    heard: Timestamp,
    /// When its use began, or ended.
    changed: Timestamp,
    kept_alive: Timestamp,
    surplus_since: Option<Timestamp>,
}

impl Connection {
    fn in_use(&self) -> bool {
        self.references > 0 || self.busy
    }

    /// Of one that is idle.
    fn last_used(&self) -> Timestamp {
        self.changed.max(self.activity).max(self.heard)
    }
}

#[derive(Debug)]
struct Dial {
    id: DialId,
    attempts: u32,
    further: bool,
    waiters: BTreeMap<Ticket, Timestamp>,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Phase {
    Trying(Timestamp),
    /// Until then, at the latest.
    Pause(Timestamp),
}

#[derive(Debug)]
enum Expected {
    Connection(u32),
    Failed,
    Held,
    Shutdown,
}

#[derive(Debug)]
pub(crate) struct Model {
    me: PeerId,
    config: PoolConfig,
    now: Timestamp,
    free: usize,
    connections: BTreeMap<u32, Connection>,
    /// The connections of each peer that are not draining, as they are preferred.
    live: BTreeMap<PeerId, Vec<u32>>,
    /// In the order in which they became idle.
    idle: Vec<u32>,
    dials: BTreeMap<PeerId, Dial>,
    further_after: BTreeMap<PeerId, Timestamp>,
    expected_dial: Option<(PeerId, bool)>,
    expected_cancels: BTreeSet<DialId>,
    expected_closes: Vec<(u32, Cause)>,
    expected_answers: BTreeMap<Ticket, Expected>,
    /// What connections and tickets are numbered by.
    numbers: u32,
}

impl Model {
    pub(crate) fn new(me: PeerId, config: PoolConfig) -> Self {
        Self {
            me,
            config,
            now: Timestamp::ZERO,
            free: 0,
            connections: BTreeMap::new(),
            live: BTreeMap::new(),
            idle: Vec::new(),
            dials: BTreeMap::new(),
            further_after: BTreeMap::new(),
            expected_dial: None,
            expected_cancels: BTreeSet::new(),
            expected_closes: Vec::new(),
            expected_answers: BTreeMap::new(),
            numbers: 0,
        }
    }

    /// The time of what comes next, and permits that nobody has.
    pub(crate) fn at(&mut self, now: Timestamp, free: usize) {
        self.now = now;
        self.free = free;
    }

    pub(crate) fn permits(&self) -> usize {
        self.connections.len() + self.dials.len()
    }

    pub(crate) fn heard(&self, connection: u32) -> Timestamp {
        self.connections[&connection].heard
    }

    fn some_connection(&self, dice: &mut Dice) -> Option<u32> {
        let all: Vec<_> = self.connections.keys().copied().collect();
        (!all.is_empty()).then(|| *dice.pick(&all))
    }

    fn some_peer(dice: &mut Dice) -> PeerId {
        let number = dice.below(usize::from(PEERS)) as u8;
        // The peer in the middle is the node itself.
        peer(if number >= PEERS / 2 {
            number + 1
        } else {
            number
        })
    }

    pub(crate) fn get(&mut self, pool: &mut Pool<u32>, dice: &mut Dice) {
        let to = Self::some_peer(dice);
        self.numbers += 1;
        let ticket = Ticket(self.numbers.into());
        let got = pool.get(self.now, &addr(to), ticket);
        let most = self.config.max_connections_per_peer;
        let live = self.live.get(&to).cloned().unwrap_or_default();
        let references = |of: &u32| self.connections[of].references;
        let given = live.iter().take(most).min_by_key(|of| references(of));
        if let Some(given) = given.copied() {
            assert_eq!(got, Ok(Got::Live(given)));
            let loaded = references(&given) >= self.config.references_per_connection;
            self.refer(given, 1);
            let after = self.further_after.get(&to).copied().unwrap_or_default();
            let idle = live.len() < most && !self.dials.contains_key(&to) && self.now >= after;
            if loaded && idle && self.free > 0 {
                self.expected_dial = Some((to, true));
            }
            return;
        }
        let waiting: usize = self.dials.values().map(|dial| dial.waiters.len()).sum();
        if waiting >= self.config.max_waiters {
            assert_eq!(got, Err(GetError::TooManyWaiters(waiting)));
            return;
        }
        let until = self.now + self.config.retry.deadline;
        if let Some(dial) = self.dials.get_mut(&to) {
            assert_eq!(got, Ok(Got::Waiting));
            dial.waiters.insert(ticket, until);
            dial.further = false;
            return;
        }
        if !self.make_room() {
            let limit = self.config.max_total_connections;
            assert_eq!(got, Err(GetError::Full { limit }));
            return;
        }
        assert_eq!(got, Ok(Got::Waiting));
        self.expected_dial = Some((to, false));
        // The dial is known with its action; its first waiter until then by its ticket.
        while let Some(action) = pool.poll_action() {
            self.act(action);
        }
        let dial = self.dials.get_mut(&to).expect("it is dialled");
        dial.waiters.insert(ticket, until);
    }

    /// Whether there is a permit, if need be that of an idle connection.
    fn make_room(&mut self) -> bool {
        if self.free > 0 {
            return true;
        }
        let worth = |of: &u32| {
            let connection = &self.connections[of];
            let rtt = connection.rtt.unwrap_or(Duration::from_millis(200));
            let idle = self.now.saturating_since(self.idle_since(*of));
            let quality = 0.2 / (0.2 + rtt.as_secs_f64());
            quality / (1.0 + idle.as_secs_f64() / self.config.idle_timeout.as_secs_f64())
        };
        let mut least: Option<(u32, bool, f64)> = None;
        for of in self.idle.iter().take(EVICTION_CANDIDATES) {
            let (surplus, worth) = (self.is_surplus(*of), worth(of));
            let less = least.is_none_or(|(_, before, lowest)| match (surplus, before) {
                (true, false) => true,
                (false, true) => false,
                (true, true) | (false, false) => worth < lowest,
            });
            if less {
                least = Some((*of, surplus, worth));
            }
        }
        let Some((least, ..)) = least else {
            return false;
        };
        self.expected_closes.push((least, Cause::Evicted));
        true
    }

    fn idle_since(&self, of: u32) -> Timestamp {
        // Nothing but becoming idle moves it while it is in the list.
        self.connections[&of].changed
    }

    fn is_surplus(&self, of: u32) -> bool {
        let live = self.live.get(&self.connections[&of].peer);
        let place = live.and_then(|live| live.iter().position(|other| *other == of));
        place.is_some_and(|place| place >= self.config.max_connections_per_peer)
    }

    /// So many more, or less, have a connection.
    fn refer(&mut self, of: u32, by: i64) {
        let connection = self.connections.get_mut(&of).expect("it is there");
        let references = i64::from(connection.references) + by;
        connection.references = u32::try_from(references).expect("not below nothing");
        self.settle(of);
    }

    fn settle(&mut self, of: u32) {
        let now = self.now;
        let connection = self.connections.get_mut(&of).expect("it is there");
        let was_idle = self.idle.contains(&of);
        if connection.in_use() && was_idle {
            self.idle.retain(|other| *other != of);
            connection.changed = now;
        } else if !connection.in_use() && connection.draining {
            self.expected_closes.push((of, Cause::Drained));
        } else if !connection.in_use() && !was_idle {
            self.idle.push(of);
            connection.changed = now;
        }
    }

    pub(crate) fn cancel(&mut self, pool: &mut Pool<u32>, dice: &mut Dice) {
        let tickets: Vec<_> = self
            .dials
            .values()
            .flat_map(|dial| dial.waiters.keys())
            .collect();
        if tickets.is_empty() {
            assert!(!pool.cancel(self.now, Ticket(u64::MAX)));
            return;
        }
        let ticket = **dice.pick(&tickets);
        self.cancel_ticket(pool, ticket);
    }

    fn cancel_ticket(&mut self, pool: &mut Pool<u32>, ticket: Ticket) {
        assert!(pool.cancel(self.now, ticket));
        let waits = |(_, dial): &(&PeerId, &mut Dial)| dial.waiters.contains_key(&ticket);
        let (peer, dial) = self.dials.iter_mut().find(waits).expect("it waits");
        dial.waiters.remove(&ticket);
        let peer = *peer;
        self.abandon_if_unwanted(peer);
    }

    fn abandon_if_unwanted(&mut self, peer: PeerId) {
        let dial = &self.dials[&peer];
        if dial.waiters.is_empty() && !dial.further {
            self.abandon(peer);
        }
    }

    fn abandon(&mut self, peer: PeerId) -> Dial {
        let dial = self.dials.remove(&peer).expect("it is dialled");
        if let Phase::Trying(_) = dial.phase {
            self.expected_cancels.insert(dial.id);
        }
        self.forget(peer);
        dial
    }

    /// Nothing is kept of a peer without connections and dial.
    fn forget(&mut self, peer: PeerId) {
        let connected = self.connections.values().any(|of| of.peer == peer);
        if !connected && !self.dials.contains_key(&peer) {
            self.further_after.remove(&peer);
            self.live.remove(&peer);
        }
    }

    fn some_attempt(&self, dice: &mut Dice) -> Option<(PeerId, DialId)> {
        let trying = |(peer, dial): (&PeerId, &Dial)| match dial.phase {
            Phase::Trying(_) => Some((*peer, dial.id)),
            Phase::Pause(_) => None,
        };
        let all: Vec<_> = self.dials.iter().filter_map(trying).collect();
        (!all.is_empty()).then(|| *dice.pick(&all))
    }

    pub(crate) fn finish_dial(&mut self, pool: &mut Pool<u32>, dice: &mut Dice) {
        let Some((peer, id)) = self.some_attempt(dice) else {
            return;
        };
        let error = match dice.below(5) {
            0 => CloseReason::WrongPeer(self.me),
            1 | 2 => CloseReason::TimedOut,
            _ => {
                self.numbers += 1;
                let connection = self.numbers;
                assert!(pool.dialled(self.now, id, connection, DIRECT));
                assert!(!pool.dialled(self.now, id, connection, DIRECT), "once");
                let dial = self.dials.remove(&peer).expect("it is dialled");
                self.connected(connection, peer, false, dial.waiters);
                return;
            }
        };
        let permanent = matches!(error, CloseReason::WrongPeer(_));
        pool.dial_failed(self.now, id, DialError::Ended(error));
        self.failed(peer, permanent);
    }

    fn failed(&mut self, peer: PeerId, permanent: bool) {
        let retry = &self.config.retry;
        let dial = self.dials.get_mut(&peer).expect("it is dialled");
        if !permanent && !dial.further && dial.attempts < retry.max_attempts {
            let doubled = retry.base_delay * 2_u32.pow(dial.attempts - 1);
            dial.phase = Phase::Pause(self.now + doubled.min(retry.max_delay));
            return;
        }
        let dial = self.dials.remove(&peer).expect("it is dialled");
        self.further_after.insert(peer, self.now + retry.max_delay);
        self.forget(peer);
        let failed = dial
            .waiters
            .keys()
            .map(|ticket| (*ticket, Expected::Failed));
        self.expected_answers.extend(failed);
    }

    pub(crate) fn refuse_dial(&mut self, pool: &mut Pool<u32>, dice: &mut Dice) {
        let Some((peer, id)) = self.some_attempt(dice) else {
            return;
        };
        let ms = Duration::from_millis;
        let retry_at = self.now + dice.duration(ms(0)..ms(10_000));
        pool.dial_refused(self.now, id, retry_at);
        let dial = self.dials.get_mut(&peer).expect("it is dialled");
        dial.attempts -= 1;
        dial.phase = Phase::Pause(retry_at);
        let impatient: Vec<_> = dial
            .waiters
            .extract_if(.., |_, until| *until <= retry_at)
            .collect();
        for (ticket, _) in impatient {
            self.expected_answers.insert(ticket, Expected::Held);
        }
        if dial.waiters.is_empty() {
            self.dials.remove(&peer);
            self.further_after.insert(peer, retry_at);
            self.forget(peer);
        }
    }

    fn connected(
        &mut self,
        connection: u32,
        peer: PeerId,
        incoming: bool,
        waiters: BTreeMap<Ticket, Timestamp>,
    ) {
        let caller = |incoming: bool| if incoming { peer } else { self.me };
        let live = self.live.entry(peer).or_default();
        let before = |of: &u32| {
            let old = &self.connections[of];
            let at_once = self.now.saturating_since(old.since) <= SIMULTANEOUS;
            at_once && caller(old.incoming) < caller(incoming)
        };
        let place = live.iter().position(|of| !before(of)).unwrap_or(live.len());
        live.insert(place, connection);
        self.connections.insert(
            connection,
            Connection {
                peer,
                incoming,
                since: self.now,
                references: waiters.len() as u32,
                busy: false,
                draining: false,
                rtt: None,
                activity: self.now,
                heard: self.now,
                changed: self.now,
                kept_alive: self.now,
                surplus_since: None,
            },
        );
        self.note_surplus(peer);
        self.settle(connection);
        for ticket in waiters.into_keys() {
            self.expected_answers
                .insert(ticket, Expected::Connection(connection));
        }
    }

    fn note_surplus(&mut self, peer: PeerId) {
        let live = self.live.get(&peer).cloned().unwrap_or_default();
        for (place, of) in live.into_iter().enumerate() {
            let surplus = place >= self.config.max_connections_per_peer;
            let connection = self.connections.get_mut(&of).expect("it is there");
            let since = connection.surplus_since.unwrap_or(self.now);
            connection.surplus_since = surplus.then_some(since);
        }
    }

    pub(crate) fn incoming(&mut self, pool: &mut Pool<u32>, dice: &mut Dice) {
        let peer = Self::some_peer(dice);
        self.numbers += 1;
        let connection = self.numbers;
        let taken = pool.incoming(self.now, connection, peer, DIRECT);
        if self.dials.contains_key(&peer) {
            assert_eq!(taken, Ok(()));
            let dial = self.abandon(peer);
            self.connected(connection, peer, true, dial.waiters);
            return;
        }
        let all = self
            .connections
            .values()
            .filter(|of| of.peer == peer)
            .count();
        if all >= self.config.max_connections_per_peer + EXTRA_PER_PEER {
            let live = self.live.get(&peer).cloned().unwrap_or_default();
            let Some(least) = live.iter().rfind(|of| self.idle.contains(of)) else {
                assert_eq!(taken, Err(Refusal::TooManyOfPeer(all)));
                return;
            };
            self.expected_closes.push((*least, Cause::Evicted));
        } else if !self.make_room() {
            let limit = self.config.max_total_connections;
            assert_eq!(taken, Err(Refusal::Full { limit }));
            return;
        }
        assert_eq!(taken, Ok(()));
        // The one that has to go is gone before the order is made.
        while let Some(action) = pool.poll_action() {
            self.act(action);
        }
        self.connected(connection, peer, true, BTreeMap::new());
    }

    pub(crate) fn release(&mut self, pool: &mut Pool<u32>, dice: &mut Dice) {
        let Some(of) = self.some_connection(dice) else {
            assert!(!pool.release(self.now, u32::MAX));
            return;
        };
        let had = self.connections[&of].references > 0;
        assert_eq!(pool.release(self.now, of), had);
        if had {
            self.refer(of, -1);
        }
    }

    pub(crate) fn retain(&mut self, pool: &mut Pool<u32>, dice: &mut Dice) {
        if let Some(of) = self.some_connection(dice) {
            assert!(pool.retain(self.now, of));
            self.refer(of, 1);
        }
    }

    pub(crate) fn set_busy(&mut self, pool: &mut Pool<u32>, dice: &mut Dice) {
        let Some(of) = self.some_connection(dice) else {
            return;
        };
        let busy = dice.one_in(2);
        pool.set_busy(self.now, of, busy);
        self.connections.get_mut(&of).expect("it is there").busy = busy;
        self.settle(of);
    }

    /// Something is measured, sent or heard on a connection.
    pub(crate) fn use_it(&mut self, pool: &mut Pool<u32>, dice: &mut Dice) {
        let Some(of) = self.some_connection(dice) else {
            return;
        };
        let connection = self.connections.get_mut(&of).expect("it is there");
        match dice.below(3) {
            0 => connection.heard = self.now,
            1 => {
                let rtt = Duration::from_millis(dice.range(1..1_000));
                connection.rtt = Some(rtt);
                let measured = Measured {
                    rtt: connection.rtt,
                    ..Measured::default()
                };
                pool.set_measured(of, measured);
            }
            _ => {
                pool.record_sent(self.now, of, Traffic::default());
                connection.activity = self.now;
            }
        }
    }

    pub(crate) fn set_unhealthy(&mut self, pool: &mut Pool<u32>, dice: &mut Dice) {
        let Some(of) = self.some_connection(dice) else {
            return;
        };
        pool.set_unhealthy(self.now, of);
        let connection = self.connections.get_mut(&of).expect("it is there");
        connection.draining = true;
        let (peer, in_use) = (connection.peer, connection.in_use());
        if let Some(live) = self.live.get_mut(&peer) {
            live.retain(|other| *other != of);
        }
        self.note_surplus(peer);
        if !in_use {
            self.expected_closes.push((of, Cause::Drained));
        }
    }

    pub(crate) fn lose(&mut self, pool: &mut Pool<u32>, dice: &mut Dice) {
        let Some(of) = self.some_connection(dice) else {
            return;
        };
        assert!(pool.closed(self.now, of, CloseReason::TimedOut));
        assert!(!pool.closed(self.now, of, CloseReason::TimedOut));
        self.remove(of);
    }

    fn remove(&mut self, of: u32) {
        let connection = self.connections.remove(&of).expect("it is there");
        self.idle.retain(|other| *other != of);
        if let Some(live) = self.live.get_mut(&connection.peer) {
            live.retain(|other| *other != of);
        }
        self.note_surplus(connection.peer);
        self.forget(connection.peer);
    }

    pub(crate) fn shutdown(&mut self, pool: &mut Pool<u32>) {
        pool.shutdown(self.now);
        let peers: Vec<_> = self.dials.keys().copied().collect();
        for peer in peers {
            for ticket in self.abandon(peer).waiters.into_keys() {
                self.expected_answers.insert(ticket, Expected::Shutdown);
            }
        }
        let all = self.connections.keys();
        self.expected_closes
            .extend(all.map(|of| (*of, Cause::Shutdown)));
        let got = pool.get(self.now, &addr(peer(0)), Ticket(0));
        assert_eq!(got, Err(GetError::ShuttingDown));
    }

    /// Gives one thing up that keeps something from ending; false where there is none left.
    pub(crate) fn let_go(&mut self, pool: &mut Pool<u32>) -> bool {
        let ticket = self
            .dials
            .values()
            .find_map(|dial| dial.waiters.keys().next().copied());
        if let Some(ticket) = ticket {
            self.cancel_ticket(pool, ticket);
            return true;
        }
        let mut used = self.connections.iter().filter(|(_, of)| of.in_use());
        let Some((of, connection)) = used.next() else {
            return false;
        };
        let of = *of;
        if connection.busy {
            pool.set_busy(self.now, of, false);
            self.connections.get_mut(&of).expect("it is there").busy = false;
            self.settle(of);
        } else {
            assert!(pool.release(self.now, of));
            self.refer(of, -1);
        }
        true
    }
}
