//! The node's machine, one per shard: connections to other nodes, by whom they are with.
//!
//! ```text
//!   application ── connect, open, write, … ──▶ ┌──────┐ ──▶ Notice: connected, readable, closed, …
//!                                              │ Peer │
//!   socket ── datagram ──▶ who sent it? ──────▶│ quic │──▶ path: where does it go? ──▶ socket
//!                                              └──────┘
//! ```
//!
//! QUIC sees a made-up address of the other end that never changes while the connection stands. The
//! path below it knows the real ones.
//!
//! What an application asks for is a method here. From another thread it comes as a [`Call`].

mod call;
mod config;
mod counters;
mod follow;
mod metering;
mod path;
mod path_check;
mod pooling;
mod verbs;
mod watching;

pub use call::Call;
pub use config::{PeerConfig, PeerConfigError, PeerLimits};
pub use counters::PeerCounters;
pub use path::SHARD_MARKS;
pub use pooling::CLOSED_BY_POOL;
pub use verbs::ConnectError;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::breaker::BreakerChange;
use crate::health::HealthStatus;
use crate::identity::{Identity, PeerId};
use crate::machine::{Datagram, Prefix, ShardId, TrafficClass, Transmit};
use crate::pool::{GetError, PoolEvent, Ticket};
use crate::quic::{
    Arrival, CloseReason, Direction, Endpoint, Event, SecurityLevel, Settled, StreamId,
};
use crate::timer::{TimerId, Timers};
use crate::{Machine, Timestamp};
use follow::{Checks, Following};
use metering::{Metered, Metering};
use path::{Hop, MadeUp, Path};
use pooling::{Pooled, Pooling};
use watching::{Watch, Watching};

/// Timers looked at in one call of `handle_timeout`.
const TIMEOUT_BUDGET: u32 = 256;
/// Datagrams without a connection, and copies for further addresses, that wait to be sent.
const MAX_WAITING: usize = 1024;
/// QUIC's bit, and the bit of its long headers: what has neither is STUN or nothing of ours (RFC 9443).
const FIXED_BIT: u8 = 0x40;
/// The lower two bits of a traffic class (RFC 3168).
const ECN_BITS: u8 = 0b11;

/// A connection. It stays a safe value after the connection is over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnectionHandle {
    shard: ShardId,
    index: u32,
    generation: u32,
}

/// What an application is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A connection stands, and who is at the other end is proved.
    Connected {
        /// Which.
        connection: ConnectionHandle,
        /// With whom.
        peer: PeerId,
        /// What its keys rest upon.
        security: SecurityLevel,
        /// Whether it was the peer that called.
        incoming: bool,
    },
    /// A connection, or the attempt to make one, is over. The last notice of a connection.
    Closed {
        /// Which.
        connection: ConnectionHandle,
        /// Why.
        reason: CloseReason,
    },
    /// The peer has opened streams: [`Peer::accept`] gives them.
    Opened {
        /// On which connection.
        connection: ConnectionHandle,
        /// Of which kind.
        direction: Direction,
    },
    /// Streams can be opened again after [`Peer::open`] gave none.
    Available {
        /// On which connection.
        connection: ConnectionHandle,
        /// Of which kind.
        direction: Direction,
    },
    /// A stream has bytes, or its end, to be read.
    Readable {
        /// On which connection.
        connection: ConnectionHandle,
        /// Which.
        stream: StreamId,
    },
    /// A stream takes bytes again.
    Writable {
        /// On which connection.
        connection: ConnectionHandle,
        /// Which.
        stream: StreamId,
    },
    /// The peer has received all of a finished stream.
    Finished {
        /// On which connection.
        connection: ConnectionHandle,
        /// Which.
        stream: StreamId,
    },
    /// The peer wants no more of a stream.
    Stopped {
        /// On which connection.
        connection: ConnectionHandle,
        /// Which.
        stream: StreamId,
        /// The peer's reason.
        code: u64,
    },
    /// Datagrams have come: [`Peer::receive_datagram`] gives them, until there are none.
    Datagram {
        /// On which connection.
        connection: ConnectionHandle,
    },
    /// Datagrams can be sent again.
    DatagramsUnblocked {
        /// On which connection.
        connection: ConnectionHandle,
    },
    /// What came of a wait for a connection.
    Got {
        /// Whose wait.
        ticket: Ticket,
        /// The connection, with a reference that is to be [released](Peer::release).
        result: Result<ConnectionHandle, GetError>,
    },
    /// What an observer of the pool is told, where the configuration says that there is one.
    Pool(PoolEvent<ConnectionHandle>),
    /// A peer that could not be called too often is left alone for a while, or not any more.
    Breaker(BreakerChange),
    /// The shutdown is over: nothing is left of any connection.
    ShutDown,
    /// The peer is elsewhere now, which was proved. What was learned of the way to it is forgotten.
    PathChanged {
        /// Of which connection.
        connection: ConnectionHandle,
        /// Where it was.
        from: SocketAddr,
        /// Where it is.
        to: SocketAddr,
    },
    /// A peer is doing better or worse, as far as this shard knows.
    HealthChanged {
        /// Which.
        peer: PeerId,
        /// How it did before.
        from: HealthStatus,
        /// How it is doing now; unknown where nothing was heard of it for long.
        to: HealthStatus,
    },
}

/// A shard of a node.
#[derive(Debug)]
pub struct Peer {
    id: PeerId,
    shard: ShardId,
    config: Arc<PeerConfig>,
    counters: Arc<PeerCounters>,
    endpoint: Endpoint,
    made_up: MadeUp,
    links: Vec<Slot>,
    timers: Timers<u32>,
    metering: Metering,
    watching: Watching,
    waiting: VecDeque<(Hop, u8, Vec<u8>)>,
    checks: Checks,
    notices: VecDeque<Notice>,
    /// Incoming connections whose handshake is not over.
    handshakes: usize,
    pooling: Pooling,
    /// What `Endpoint` writes its answers into.
    answer: Vec<u8>,
    /// The time of the last input.
    now: Timestamp,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    link: Option<Link>,
}

/// What this layer knows of a connection.
#[derive(Debug)]
struct Link {
    path: Path,
    state: State,
    incoming: bool,
    timer: Option<(TimerId, Timestamp)>,
    meter: Metered,
    pooled: Pooled,
    /// Where `Peer::made_up` has it.
    known_at: Option<SocketAddr>,
    following: Option<Box<Following>>,
    watch: Watch,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// The handshake is not over.
    Handshaking,
    /// It is.
    Connected(PeerId),
    /// The application was told that it is over, or was never told of it; QUIC still answers for a
    /// while.
    Closed,
}

impl Peer {
    /// A shard of a node. `seed` comes from the operating system (or from a test) and is different for
    /// every shard; what QUIC draws at random follows from it, keys do not.
    pub fn new(
        config: Arc<PeerConfig>,
        identity: &Identity,
        shard: ShardId,
        seed: [u8; 32],
    ) -> Result<Self, PeerConfigError> {
        config.validate()?;
        let endpoint = Endpoint::new(&config.quic, identity, shard, seed)?;
        Self::with_endpoint(config, identity, shard, seed, endpoint)
    }

    /// A shard of a node whose connections are neither secret nor authentic, for simulations alone.
    #[cfg(feature = "simulation")]
    pub fn without_cryptography(
        config: Arc<PeerConfig>,
        identity: &Identity,
        shard: ShardId,
        seed: [u8; 32],
        sessions: crate::quic::simulation::Sessions,
    ) -> Result<Self, PeerConfigError> {
        config.validate()?;
        let endpoint = Endpoint::with_sessions(&config.quic, identity, shard, seed, sessions)?;
        Self::with_endpoint(config, identity, shard, seed, endpoint)
    }

    fn with_endpoint(
        config: Arc<PeerConfig>,
        identity: &Identity,
        shard: ShardId,
        seed: [u8; 32],
        endpoint: Endpoint,
    ) -> Result<Self, PeerConfigError> {
        let metering = Metering::new(Arc::clone(&config.bandwidth));
        let pooling = Pooling::new(identity.id(), &config, seed)?;
        let watching = Watching::new(&config, seed)?;
        Ok(Self {
            id: identity.id(),
            shard,
            config,
            counters: Arc::default(),
            endpoint,
            made_up: MadeUp::new(identity),
            links: Vec::new(),
            timers: Timers::new(),
            metering,
            watching,
            waiting: VecDeque::new(),
            checks: Checks::default(),
            notices: VecDeque::new(),
            handshakes: 0,
            pooling,
            answer: Vec::new(),
            now: Timestamp::ZERO,
        })
    }

    /// Who this node is.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// What was counted; to be read at any time.
    pub fn counters(&self) -> &Arc<PeerCounters> {
        &self.counters
    }

    /// Connections that anything is left of, handshakes and closed ones included.
    pub fn connections(&self) -> usize {
        self.endpoint.len()
    }

    /// Whether nothing is left of any connection: no timer, no id, no byte.
    pub fn is_empty(&self) -> bool {
        self.connections() == 0
            && self.endpoint.known_cids() == 0
            && self.endpoint.buffered_bytes() == 0
            && self.links.iter().all(|slot| slot.link.is_none())
            && self.made_up.is_empty()
            && self.timers.is_empty()
            && self.checks.is_empty()
            && self.metering.is_empty()
            && self.watching.is_empty()
            && self.handshakes == 0
            && self.pooling.is_empty()
    }

    fn link(&mut self, index: u32) -> Option<&mut Link> {
        self.links.get_mut(index as usize)?.link.as_mut()
    }

    fn handle_of(&self, index: u32) -> ConnectionHandle {
        let slot = self.links.get(index as usize);
        ConnectionHandle {
            shard: self.shard,
            index,
            generation: slot.map_or(0, |slot| slot.generation),
        }
    }

    fn insert(&mut self, index: u32, path: Path, incoming: bool) {
        let at = index as usize;
        if self.links.len() <= at {
            self.links.resize_with(at + 1, Slot::default);
        }
        self.handshakes += usize::from(incoming);
        self.links[at].link = Some(Link {
            path,
            state: State::Handshaking,
            incoming,
            timer: None,
            meter: Metered::default(),
            pooled: Pooled::default(),
            known_at: None,
            following: None,
            watch: Watch::default(),
        });
    }

    /// After anything that was done to a connection: tells what happened on it, and sees to it that
    /// what it has to send is sent and its timer runs.
    fn attend(&mut self, index: u32, arrived_by: Option<Hop>) {
        if arrived_by.is_some() {
            let now = self.now;
            if let Some(link) = self.link(index) {
                link.pooled.heard = now;
            }
        }
        self.follow(index, arrived_by);
        if self.link(index).is_some() {
            self.metering.ready(index);
        }
    }

    fn follow(&mut self, index: u32, arrived_by: Option<Hop>) {
        // A connection can be lost and gone at once: what happened is told first.
        while let Some(event) = self.endpoint.poll(index) {
            self.tell(index, event, arrived_by);
        }
        self.note_streams(index);
        match self.endpoint.settle(index) {
            Settled::Here => self.rearm(index),
            Settled::Gone => self.remove(index),
        }
        self.follow_pool();
    }

    fn tell(&mut self, index: u32, event: Event, arrived_by: Option<Hop>) {
        let of_handshake = matches!(event, Event::Connected { .. } | Event::Lost(_));
        if !of_handshake && !self.stands(index) {
            // It was queued when the application hung up.
            return;
        }
        let connection = self.handle_of(index);
        let notice = match event {
            Event::Connected { peer, security } => {
                let Some(incoming) = self.connected(index, peer, arrived_by) else {
                    return;
                };
                if !self.join_pool(index, peer, security, incoming) {
                    return;
                }
                Notice::Connected {
                    connection,
                    peer,
                    security,
                    incoming,
                }
            }
            Event::Lost(reason) => {
                self.close_link(index, reason);
                return;
            }
            Event::Opened(direction) => Notice::Opened {
                connection,
                direction,
            },
            Event::Available(direction) => Notice::Available {
                connection,
                direction,
            },
            Event::Readable(stream) => Notice::Readable { connection, stream },
            Event::Writable(stream) => Notice::Writable { connection, stream },
            Event::Finished(stream) => Notice::Finished { connection, stream },
            Event::Stopped(stream, code) => Notice::Stopped {
                connection,
                stream,
                code,
            },
            Event::DatagramReceived => Notice::Datagram { connection },
            Event::DatagramsUnblocked => Notice::DatagramsUnblocked { connection },
        };
        self.notices.push_back(notice);
    }

    fn stands(&mut self, index: u32) -> bool {
        self.link(index)
            .is_some_and(|link| matches!(link.state, State::Connected(_)))
    }

    /// The handshake is over: what brought its last message is the path. Gives whether the peer called.
    fn connected(&mut self, index: u32, peer: PeerId, arrived_by: Option<Hop>) -> Option<bool> {
        self.begin_metering(self.now, index, peer);
        let link = self.links.get_mut(index as usize)?.link.as_mut()?;
        link.state = State::Connected(peer);
        if link.incoming {
            self.handshakes -= 1;
        } else if let Some(hop) = arrived_by {
            // The peer takes a call's datagrams from anywhere, and this machine may move.
            link.path = Path::Direct(Hop {
                source: None,
                ..hop
            });
            link.known_at = Some(hop.destination);
            let address = self.made_up.of_peer(peer);
            self.made_up.found(address, hop.destination);
        }
        let incoming = link.incoming;
        self.watch_connected(index, peer);
        Some(incoming)
    }

    /// A connection is over for the application, which is told so once, if it knows of it.
    fn close_link(&mut self, index: u32, reason: CloseReason) {
        let connection = self.handle_of(index);
        let Some(link) = self.link(index) else {
            return;
        };
        let before = std::mem::replace(&mut link.state, State::Closed);
        let (incoming, hidden) = (link.incoming, link.pooled.hidden);
        let told = match before {
            State::Handshaking if incoming => {
                self.handshakes -= 1;
                self.counters.failed_handshakes.increment();
                false
            }
            State::Handshaking | State::Connected(_) => !hidden,
            State::Closed => false,
        };
        self.leave_pool(index, before, &reason);
        if let Some(at) = self.link(index).and_then(|link| link.known_at.take()) {
            self.made_up.left(at);
        }
        self.stop_following(index);
        self.watch_closed(index, before, &reason);
        if told {
            self.notices
                .push_back(Notice::Closed { connection, reason });
        }
    }

    fn remove(&mut self, index: u32) {
        self.close_link(index, CloseReason::Here);
        let Some(slot) = self.links.get_mut(index as usize) else {
            return;
        };
        slot.generation = slot.generation.wrapping_add(1);
        let Some(Link { timer, meter, .. }) = slot.link.take() else {
            return;
        };
        if let Some((timer, _)) = timer {
            self.timers.cancel(timer);
        }
        self.end_metering(index, meter);
        self.end_when_empty();
    }

    fn rearm(&mut self, index: u32) {
        let of_quic = self.endpoint.deadline(index);
        let Some(slot) = self.links.get_mut(index as usize) else {
            return;
        };
        let Some(link) = &mut slot.link else {
            return;
        };
        let following = link.following.as_ref();
        let of_check = following.and_then(|following| following.deadline());
        let deadline = [of_quic, of_check].into_iter().flatten().min();
        if link.timer.map(|(_, at)| at) == deadline {
            return;
        }
        if let Some((timer, _)) = link.timer.take() {
            self.timers.cancel(timer);
        }
        link.timer = deadline.map(|at| (self.timers.start(at, index), at));
    }

    /// Decides about the first datagram of a connection.
    fn begin(&mut self, now: Timestamp, incoming: Box<crate::quic::Incoming>, hop: Hop) {
        let limits = &self.config.limits;
        if self.connections() >= limits.connections || self.handshakes >= limits.handshakes {
            self.counters.ignored_handshakes.increment();
            self.endpoint.ignore(*incoming);
        } else if !self.pooling.has_room() {
            self.counters.refused_handshakes.increment();
            self.endpoint.refuse(*incoming, &mut self.answer);
        } else if self.handshakes >= limits.retry_above && !Endpoint::is_validated(&incoming) {
            self.counters.retried_handshakes.increment();
            self.endpoint.retry(now, *incoming, &mut self.answer);
        } else if let Some(index) = self.endpoint.accept(now, *incoming, &mut self.answer) {
            self.insert(index, Path::Direct(hop), true);
            self.attend(index, Some(hop));
        } else {
            self.counters.failed_handshakes.increment();
        }
    }

    /// Queues the answer that was written, where there is one.
    fn send_answer(&mut self, hop: Hop) {
        if self.answer.is_empty() {
            return;
        }
        let bytes = std::mem::take(&mut self.answer);
        self.wait(hop, 0, bytes);
    }

    fn wait(&mut self, hop: Hop, ecn: u8, bytes: Vec<u8>) {
        if self.waiting.len() >= MAX_WAITING {
            self.counters.dropped_answers.increment();
            return;
        }
        self.waiting.push_back((hop, ecn, bytes));
        self.metering.answer_ready();
    }

    /// The made-up address of a datagram's sender, `named` being the connection that it was sent to.
    fn sender(&self, from: SocketAddr, named: Option<u32>, datagram: &[u8]) -> SocketAddr {
        named
            .and_then(|index| self.endpoint.remote(index))
            .unwrap_or_else(|| match Endpoint::may_begin(datagram) {
                true => self.made_up.of_source(from),
                false => self.made_up.of_known(from),
            })
    }
}

impl Machine for Peer {
    type Command = Notice;
    type Event = Call;

    fn handle_datagram(&mut self, now: Timestamp, datagram: Datagram<'_>) -> Option<Transmit> {
        self.now = now;
        let hop = Hop {
            socket: datagram.socket,
            source: Some(datagram.local),
            destination: datagram.remote,
        };
        let payload = &*datagram.payload;
        if payload.first().is_none_or(|first| first & FIXED_BIT == 0) {
            self.handle_stun(now, hop, payload);
            return None;
        }
        let named = self.endpoint.named_by(payload);
        let stray = self.stray(named, hop);
        let sender = self.sender(hop.destination, named, payload);
        let ecn = datagram.traffic_class.0 & ECN_BITS;
        self.answer.clear();
        let arrival = self
            .endpoint
            .handle(now, sender, ecn, payload, &mut self.answer);
        let of = match &arrival {
            Arrival::Connection(index) => Some(*index),
            Arrival::Nothing | Arrival::Answered | Arrival::New(_) => None,
        };
        self.arrived(now, of, hop, datagram.payload.len());
        match arrival {
            Arrival::Nothing => self.counters.of_nobody.increment(),
            Arrival::Answered => self.counters.answered.increment(),
            Arrival::Connection(index) => {
                self.attend(index, Some(hop));
                if let Some(stray) = stray {
                    self.strayed(now, stray, hop, payload.len());
                }
                self.watch_heard(now, index);
            }
            Arrival::New(incoming) => self.begin(now, incoming, hop),
        }
        self.send_answer(hop);
        None
    }

    fn handle_event(&mut self, now: Timestamp, call: Call) {
        self.now = now;
        call.make(self, now);
    }

    fn handle_timeout(&mut self, now: Timestamp) {
        self.now = now;
        let mut budget = TIMEOUT_BUDGET;
        while let Some(index) = self.timers.expire(now, &mut budget) {
            if let Some(link) = self.link(index) {
                link.timer = None;
            }
            self.endpoint.handle_timeout(now, index);
            self.drive_check(now, index);
            self.attend(index, None);
        }
        self.meter_timeout(now);
        self.pool_timeout(now);
        self.watch_timeout(now, &mut budget);
    }

    fn poll_transmit(&mut self, now: Timestamp, buffer: &mut [u8]) -> Option<Transmit> {
        self.next_transmit(now, buffer)
    }

    fn poll_command(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    fn poll_timeout(&self) -> Option<Timestamp> {
        if !self.notices.is_empty() {
            return Some(self.now);
        }
        let limits = self.metering.deadline(self.now);
        let timers = self.timers.next_deadline();
        let pool = self.pooling.deadline();
        let watch = self.watching.next_deadline();
        let all = [limits, timers, pool, watch];
        all.into_iter().flatten().min()
    }
}

fn transmit(hop: Hop, len: usize, ecn: u8) -> Transmit {
    Transmit {
        socket: hop.socket,
        source: hop.source,
        destination: hop.destination,
        prefix: Prefix::EMPTY,
        payload: 0..len,
        padding: 0,
        traffic_class: TrafficClass(ecn),
        dont_fragment: false,
    }
}

#[cfg(test)]
mod tests;
