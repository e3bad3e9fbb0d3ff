//! The pool of a node's machine: does what the pool wants done, and tells it what came of it.
//!
//! ```text
//!   get, cancel, release ──▶ ┌──────┐ ── Dial ──▶ breaker ── closed ──▶ a call ──▶ dialled, dial_failed
//!   connected, lost, idle ─▶ │ Pool │               └ open ──▶ dial_refused
//!   time ──────────────────▶ └──────┘ ── Close, KeepAlive, Answer ──▶ QUIC, and notices
//! ```
//!
//! A call that the pool makes is nobody's business until it stands: the application is told of
//! connections alone, and of what came of its own wish.

use std::sync::Arc;

use ahash::RandomState;
use hashbrown::HashMap;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::{ConnectionHandle, Notice, Peer, PeerConfig, PeerConfigError, State};
use crate::Timestamp;
use crate::breaker::{self, BreakerKey, BreakerReport, Breakers, Outcome};
use crate::identity::{PeerAddr, PeerId};
use crate::pool::{
    Action, Cause, ConnectionMetadata, ConnectionState, DialError, DialId, Established, GetError,
    Got, Permits, Pool, PoolCounters, Ticket, Traffic,
};
use crate::quic::{CloseReason, SecurityLevel};
use crate::transport_type::TransportType;

/// The application's code of connections that a pool closes because it has another use for the room, or
/// none for the connection.
pub const CLOSED_BY_POOL: u32 = 0;
/// The stream of random numbers that the pool and the breakers are seeded from; QUIC has stream 0.
const RANDOM_STREAM: u64 = 1;

/// The pool of a shard, and what goes with it.
#[derive(Debug)]
pub(super) struct Pooling {
    pool: Pool<ConnectionHandle>,
    breakers: Breakers,
    /// The calls that are attempts of the pool.
    calls: HashMap<DialId, u32, RandomState>,
    /// Whether the pool's actions are being carried out: what follows from one waits for its turn.
    acting: bool,
    life: Life,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Running,
    ShuttingDown,
    ShutDown,
}

/// What a link is for the pool.
#[derive(Debug, Default)]
pub(super) struct Pooled {
    attempt: Option<Attempt>,
    /// Whether the application knows nothing of it.
    pub(super) hidden: bool,
    /// When something came on it.
    pub(super) heard: Timestamp,
    busy: bool,
}

/// An attempt of a dial, and the leave for it.
#[derive(Debug)]
struct Attempt {
    dial: DialId,
    permit: breaker::Permit,
}

impl Pooling {
    pub(super) fn new(
        me: PeerId,
        config: &PeerConfig,
        seed: [u8; 32],
    ) -> Result<Self, PeerConfigError> {
        let mut rng = ChaCha12Rng::from_seed(seed);
        rng.set_stream(RANDOM_STREAM);
        let mut word = || rng.next_u64();
        let hasher = RandomState::with_seeds(word(), word(), word(), word());
        let mut seed = || {
            let mut seed = [0; 32];
            rng.fill_bytes(&mut seed);
            seed
        };
        let permits = Permits::new(config.pool.max_total_connections);
        Ok(Self {
            pool: Pool::new(me, config.pool.clone(), permits, seed())?,
            breakers: Breakers::new(config.breaker, seed())?,
            calls: HashMap::with_hasher(hasher),
            acting: false,
            life: Life::Running,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pool.is_empty() && self.calls.is_empty()
    }

    pub(super) fn is_running(&self) -> bool {
        self.life == Life::Running
    }

    /// Whether a connection that a peer makes would be taken.
    pub(super) fn has_room(&self) -> bool {
        self.is_running() && self.pool.has_room()
    }

    pub(super) fn deadline(&self) -> Option<Timestamp> {
        let deadlines = [self.pool.poll_timeout(), self.breakers.poll_timeout()];
        deadlines.into_iter().flatten().min()
    }
}

impl Peer {
    /// Has the shards of a node share the connections that the node may have. For a shard that has
    /// none yet.
    pub fn sharing(mut self, permits: Permits) -> Self {
        self.pooling.pool.share(permits);
        self
    }

    /// Asks for a connection with a peer. Where there is one it is given at once, whoever made it;
    /// else the peer is called, once for all who ask, and a [`Notice::Got`] with the ticket follows,
    /// which may be queued already. With the connection comes a reference, to be
    /// [released](Self::release).
    ///
    /// All who ask for a peer have to ask the same shard ([`PeerId::home`]).
    pub fn get(
        &mut self,
        now: Timestamp,
        to: &PeerAddr,
        ticket: Ticket,
    ) -> Result<Got<ConnectionHandle>, GetError> {
        self.now = now;
        let got = self.pooling.pool.get(now, to, ticket);
        self.follow_pool();
        got
    }

    /// Asks no more. False where no answer is to come: it was given already (a connection that came
    /// with it has to be released), or it never was a ticket.
    pub fn cancel(&mut self, now: Timestamp, ticket: Ticket) -> bool {
        self.now = now;
        let cancelled = self.pooling.pool.cancel(now, ticket);
        self.follow_pool();
        cancelled
    }

    /// One more has a connection, which keeps it from being closed as idle. False where it is over, or
    /// was made by [`connect`](Self::connect).
    pub fn retain(&mut self, now: Timestamp, connection: ConnectionHandle) -> bool {
        self.now = now;
        let retained = self.pooling.pool.retain(now, connection);
        self.follow_pool();
        retained
    }

    /// One less has a connection. False where it is over, or where nobody had it.
    pub fn release(&mut self, now: Timestamp, connection: ConnectionHandle) -> bool {
        self.now = now;
        self.measure(connection);
        let released = self.pooling.pool.release(now, connection);
        self.follow_pool();
        released
    }

    /// A connection works no more as it should: nobody gets it any more, and it is closed when nobody
    /// has it.
    pub fn set_unhealthy(&mut self, now: Timestamp, connection: ConnectionHandle) {
        self.now = now;
        self.pooling.pool.set_unhealthy(now, connection);
        self.follow_pool();
    }

    /// What is known of a connection in the pool.
    pub fn metadata(&mut self, connection: ConnectionHandle) -> Option<ConnectionMetadata> {
        self.measure(connection);
        self.pooling.pool.metadata(connection)
    }

    /// What becomes of the connections with a peer.
    pub fn state(&self, peer: PeerId) -> ConnectionState {
        self.pooling.pool.state(peer)
    }

    /// What is known of whether peers could be called of late.
    pub fn breaker(&self, now: Timestamp, key: BreakerKey) -> BreakerReport {
        self.pooling.breakers.report(now, key)
    }

    /// What the pool counts.
    pub fn pool_counters(&self) -> &Arc<PoolCounters> {
        self.pooling.pool.counters()
    }

    /// The pool, to be looked at.
    pub fn pool(&self) -> &Pool<ConnectionHandle> {
        &self.pooling.pool
    }

    /// Closes all connections in good order, tells all who wait, and takes no new ones.
    /// [`Notice::ShutDown`] follows when nothing is left of any connection.
    pub fn shutdown(&mut self, now: Timestamp) {
        self.now = now;
        if !self.pooling.is_running() {
            return;
        }
        self.pooling.life = Life::ShuttingDown;
        self.pooling.pool.shutdown(now);
        self.follow_pool();
        for index in 0..self.links.len() {
            let index = u32::try_from(index).expect("links have 32-bit indexes");
            let connection = self.handle_of(index);
            self.close(now, connection, CLOSED_BY_POOL, b"shutting down");
        }
        self.end_when_empty();
    }

    /// After a connection has gone for good.
    pub(super) fn end_when_empty(&mut self) {
        if self.pooling.life == Life::ShuttingDown && self.connections() == 0 {
            self.pooling.life = Life::ShutDown;
            self.notices.push_back(Notice::ShutDown);
        }
    }

    /// A connection stands. False where there is no room for it; it is closed then.
    pub(super) fn join_pool(
        &mut self,
        index: u32,
        peer: PeerId,
        security: SecurityLevel,
        incoming: bool,
    ) -> bool {
        let (now, connection) = (self.now, self.handle_of(index));
        let established = Established {
            security,
            transport: TransportType::Direct,
        };
        let pooling = &mut self.pooling;
        let Some(link) = self
            .links
            .get_mut(index as usize)
            .and_then(|slot| slot.link.as_mut())
        else {
            return false;
        };
        let wanted = match link.pooled.attempt.take() {
            Some(Attempt { dial, permit }) => {
                pooling.calls.remove(&dial);
                pooling.breakers.record(now, permit, Outcome::Success);
                pooling.pool.dialled(now, dial, connection, established)
            }
            None if incoming => {
                let taken = pooling.pool.incoming(now, connection, peer, established);
                taken.is_ok()
            }
            None => true,
        };
        link.pooled.hidden = !wanted;
        if !wanted {
            self.endpoint.close(now, index, CLOSED_BY_POOL, b"no room");
            self.close_link(index, CloseReason::Here);
        }
        wanted
    }

    /// A connection that stood is over, or an attempt to make one.
    pub(super) fn leave_pool(&mut self, index: u32, before: State, reason: &CloseReason) {
        let (now, connection) = (self.now, self.handle_of(index));
        let attempt = self.link(index).and_then(|link| link.pooled.attempt.take());
        let pooling = &mut self.pooling;
        if let Some(Attempt { dial, permit }) = attempt {
            pooling.calls.remove(&dial);
            pooling.breakers.record(now, permit, outcome_of(reason));
            let error = DialError::Ended(reason.clone());
            pooling.pool.dial_failed(now, dial, error);
        } else if matches!(before, State::Connected(_)) {
            pooling.pool.closed(now, connection, reason.clone());
        }
    }

    /// Notes whether streams are open on a connection.
    pub(super) fn note_streams(&mut self, index: u32) {
        let connection = self.handle_of(index);
        let busy = self.endpoint.has_streams(index);
        let Some(link) = self.link(index) else {
            return;
        };
        if matches!(link.state, State::Connected(_)) && link.pooled.busy != busy {
            link.pooled.busy = busy;
            self.pooling.pool.set_busy(self.now, connection, busy);
        }
    }

    pub(super) fn pool_timeout(&mut self, now: Timestamp) {
        let links = &self.links;
        let heard = |connection: ConnectionHandle| {
            let link = links
                .get(connection.index as usize)
                .and_then(|slot| slot.link.as_ref());
            link.map_or(Timestamp::ZERO, |link| link.pooled.heard)
        };
        self.pooling.pool.handle_timeout(now, heard);
        self.pooling.breakers.handle_timeout(now);
        self.follow_pool();
    }

    /// Does what the pool wants done, and tells what it has to tell.
    pub(super) fn follow_pool(&mut self) {
        if std::mem::replace(&mut self.pooling.acting, true) {
            return;
        }
        while let Some(action) = self.pooling.pool.poll_action() {
            self.act(action);
        }
        self.pooling.acting = false;
        while let Some(event) = self.pooling.pool.poll_event() {
            self.notices.push_back(Notice::Pool(event));
        }
        while let Some(change) = self.pooling.breakers.poll_change() {
            self.notices.push_back(Notice::Breaker(change));
        }
    }

    fn act(&mut self, action: Action<ConnectionHandle>) {
        let now = self.now;
        match action {
            Action::Dial { dial, to, .. } => self.dial(now, dial, &to),
            Action::Cancel { dial, too_slow } => self.give_up(now, dial, too_slow),
            Action::Close { connection, cause } => {
                self.close(now, connection, CLOSED_BY_POOL, text_of(cause));
            }
            Action::KeepAlive { connection } => {
                self.measure(connection);
                self.send_probe(now, connection.index);
            }
            Action::Answer { ticket, result } => {
                self.notices.push_back(Notice::Got { ticket, result });
            }
        }
    }

    fn dial(&mut self, now: Timestamp, dial: DialId, to: &PeerAddr) {
        let key = BreakerKey::Peer(to.id(), TransportType::Direct);
        let permit = match self.pooling.breakers.admit(now, key) {
            Ok(permit) => permit,
            Err(open) => {
                let pool = &mut self.pooling.pool;
                pool.dial_refused(now, dial, open.retry_at);
                return;
            }
        };
        match self.call(now, to) {
            Ok(index) => {
                self.pooling.calls.insert(dial, index);
                if let Some(link) = self.link(index) {
                    link.pooled.hidden = true;
                    link.pooled.attempt = Some(Attempt { dial, permit });
                }
                self.attend(index, None);
            }
            Err(error) => {
                let pooling = &mut self.pooling;
                pooling.breakers.record(now, permit, Outcome::Cancelled);
                pooling.pool.dial_failed(now, dial, error.into());
            }
        }
    }

    fn give_up(&mut self, now: Timestamp, dial: DialId, too_slow: bool) {
        let Some(index) = self.pooling.calls.remove(&dial) else {
            return;
        };
        let attempt = self.link(index).and_then(|link| link.pooled.attempt.take());
        if let Some(Attempt { permit, .. }) = attempt {
            let outcome = match too_slow {
                true => Outcome::Failure,
                false => Outcome::Cancelled,
            };
            self.pooling.breakers.record(now, permit, outcome);
        }
        if too_slow {
            self.watch_too_slow(index);
        }
        let connection = self.handle_of(index);
        self.close(now, connection, CLOSED_BY_POOL, b"given up");
    }

    /// Has the pool know how good a connection is now.
    fn measure(&mut self, connection: ConnectionHandle) {
        if self.peer(connection).is_none() {
            return;
        }
        if let Some(measured) = self.endpoint.measured(connection.index) {
            self.pooling.pool.set_measured(connection, measured);
        }
    }

    pub(super) fn record_sent(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        bytes: usize,
        messages: u64,
    ) {
        let traffic = traffic(bytes, messages);
        self.pooling.pool.record_sent(now, connection, traffic);
    }

    pub(super) fn record_received(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        bytes: usize,
        messages: u64,
    ) {
        let traffic = traffic(bytes, messages);
        self.pooling.pool.record_received(now, connection, traffic);
    }
}

fn traffic(bytes: usize, messages: u64) -> Traffic {
    Traffic {
        bytes: bytes as u64,
        messages,
    }
}

/// What the end of an attempt says about whether the peer can be called.
fn outcome_of(reason: &CloseReason) -> Outcome {
    match reason {
        CloseReason::Here | CloseReason::NoConnectionIds => Outcome::Cancelled,
        CloseReason::Peer { .. }
        | CloseReason::WrongPeer(_)
        | CloseReason::NoIdentity
        | CloseReason::NoCommonKeyExchange
        | CloseReason::Refused(_)
        | CloseReason::Busy
        | CloseReason::Version
        | CloseReason::Forgotten
        | CloseReason::TimedOut
        | CloseReason::PeerMisbehaved(_)
        | CloseReason::PeerGaveUp(_) => Outcome::Failure,
    }
}

fn text_of(cause: Cause) -> &'static [u8] {
    match cause {
        Cause::Idle => b"idle",
        Cause::Surplus => b"surplus",
        Cause::Drained => b"drained",
        Cause::Evicted => b"evicted",
        Cause::Shutdown => b"shutting down",
    }
}
