//! The connections of a shard, by index, in this project's words.

mod paths;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use bytes::Bytes;
use hashbrown::HashMap;
pub(crate) use quinn_proto::Incoming;
use quinn_proto::{
    Connection, ConnectionError, ConnectionHandle, ConnectionId, DatagramEvent, Dir, EcnCodepoint,
    SendDatagramError, StreamEvent, TransportErrorCode, VarInt,
};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::batch::{Arena, Batch, MAX_DATAGRAMS, Spares};
use super::cid::{self, Issued};
use super::clock::Clock;
use super::config::{Configs, QuicConfig, QuicConfigError, SecurityLevel};
use super::confirmed;
use super::session::{Handshake, HandshakeFailure, Sessions};
use super::stream::{
    CloseReason, DatagramError, Direction, Read, ReadError, StreamError, StreamId, WriteError,
};
use super::verifier::IdentityError;
use crate::Timestamp;
use crate::identity::{Identity, PeerId};
use crate::machine::ShardId;
use crate::pool::Measured;

/// Length of the id that a first packet is sent to; QUIC wants 8 at least and that it cannot be guessed.
const INITIAL_CID_BYTES: usize = 12;
/// Ids of one connection that are known at a time. quinn-proto has no more than 8 in force; a peer
/// that retires them one after the other makes it issue others.
const MAX_CIDS: usize = 32;
/// A TLS alert as a code of QUIC (RFC 9001 §4.8).
const CRYPTO_ERRORS: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;
/// CONNECTION_REFUSED (RFC 9000 §20.1).
const CONNECTION_REFUSED: u64 = 0x02;

/// A shard's QUIC. A connection is known by its index, which may be another connection's once this one
/// is [`gone`](Settled::Gone).
pub(crate) struct Endpoint {
    inner: quinn_proto::Endpoint,
    client: quinn_proto::ClientConfig,
    clock: Clock,
    issued: Issued,
    by_cid: HashMap<ConnectionId, u32, RandomState>,
    connections: Vec<Option<Box<Entry>>>,
    rng: ChaCha12Rng,
    outgoing: Spares,
    incoming: Arena,
    max_transmit: usize,
}

struct Entry {
    connection: Connection,
    cids: VecDeque<ConnectionId>,
    /// The made-up address of the other end.
    remote: SocketAddr,
    /// The peer's id that was sent to last, where it has the form of ours.
    peer_cid: Option<ConnectionId>,
    /// What was built and not sent yet: others may have their turn meanwhile.
    built: Option<Batch>,
}

/// What a datagram was.
pub(crate) enum Arrival {
    /// Nothing that has consequences.
    Nothing,
    /// Something for a connection.
    Connection(u32),
    /// Something to be answered at once; the answer has been written.
    Answered,
    /// The first of a connection. It has to be given to `accept`, `retry` or `ignore`.
    New(Box<Incoming>),
}

/// What happened on a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    Connected {
        peer: PeerId,
        security: SecurityLevel,
    },
    Lost(CloseReason),
    Opened(Direction),
    Available(Direction),
    Readable(StreamId),
    Writable(StreamId),
    Finished(StreamId),
    Stopped(StreamId, u64),
    DatagramReceived,
    DatagramsUnblocked,
}

/// How the other end of a connection is heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pulse {
    /// When the latest packet was sent whose receipt it has confirmed.
    pub(crate) confirmed: Option<Timestamp>,
    /// The round trip, as QUIC estimates it.
    pub(crate) rtt: Duration,
}

/// Whether a connection is still there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Settled {
    /// It is.
    Here,
    /// It is over, and nothing is left of it.
    Gone,
}

impl Endpoint {
    pub(crate) fn new(
        config: &QuicConfig,
        identity: &Identity,
        shard: ShardId,
        seed: [u8; 32],
    ) -> Result<Self, QuicConfigError> {
        let sessions = config.sessions(identity)?;
        Self::with_sessions(config, identity, shard, seed, sessions)
    }

    /// An endpoint whose handshakes are not of TLS.
    pub(crate) fn with_sessions(
        config: &QuicConfig,
        identity: &Identity,
        shard: ShardId,
        seed: [u8; 32],
        sessions: Sessions,
    ) -> Result<Self, QuicConfigError> {
        let mut rng = ChaCha12Rng::from_seed(seed);
        let clock = Clock::new();
        let Configs {
            endpoint,
            server,
            client,
            issued,
        } = config.build(identity, shard, &clock, &mut rng, sessions)?;
        let hasher = random_state(&mut rng);
        Ok(Self {
            inner: quinn_proto::Endpoint::new(endpoint, Some(server), true, None),
            client,
            clock,
            issued,
            by_cid: HashMap::with_hasher(hasher),
            connections: Vec::new(),
            rng,
            outgoing: Spares::default(),
            incoming: Arena::default(),
            max_transmit: config.max_mtu_bytes.into(),
        })
    }

    /// Connections that something is left of.
    pub(crate) fn len(&self) -> usize {
        self.inner.open_connections()
    }

    /// Connection ids that lead somewhere.
    pub(crate) fn known_cids(&self) -> usize {
        self.by_cid.len()
    }

    /// Bytes of handshakes that nobody has decided about.
    pub(crate) fn buffered_bytes(&self) -> u64 {
        self.inner.incoming_buffer_bytes()
    }

    /// Whether a datagram can be the first of a connection.
    pub(crate) fn may_begin(datagram: &[u8]) -> bool {
        cid::has_long_header(datagram)
    }

    /// Begins a connection to a peer at a made-up address.
    pub(crate) fn connect(
        &mut self,
        now: Timestamp,
        peer: PeerId,
        remote: SocketAddr,
    ) -> Result<u32, quinn_proto::ConnectError> {
        let mut first = [0; INITIAL_CID_BYTES];
        self.rng.fill_bytes(&mut first);
        let first = ConnectionId::new(&first);
        let mut config = self.client.clone();
        config.initial_dst_cid_provider(Arc::new(move || first));
        let now = self.clock.instant(now);
        let (handle, connection) = self.inner.connect(now, config, remote, &peer.to_string())?;
        Ok(self.insert(handle, connection, remote))
    }

    /// Takes a datagram. An answer is written into `answer`.
    pub(crate) fn handle(
        &mut self,
        now: Timestamp,
        remote: SocketAddr,
        ecn: u8,
        datagram: &[u8],
        answer: &mut Vec<u8>,
    ) -> Arrival {
        let now = self.clock.instant(now);
        let ecn = EcnCodepoint::from_bits(ecn);
        let bytes = self.incoming.copy(datagram);
        match self.inner.handle(now, remote, None, ecn, bytes, answer) {
            None => Arrival::Nothing,
            Some(DatagramEvent::Response(_)) => {
                // It may have come from an id that is nobody's.
                self.issued.take();
                Arrival::Answered
            }
            Some(DatagramEvent::NewConnection(incoming)) => Arrival::New(Box::new(incoming)),
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let index = index_of(handle);
                let Some(entry) = self.entry(index) else {
                    return Arrival::Nothing;
                };
                entry.connection.handle_event(event);
                Arrival::Connection(index)
            }
        }
    }

    /// Accepts a connection; `None` where its first packet was not what it seemed. An answer to that
    /// may have been written.
    pub(crate) fn accept(
        &mut self,
        now: Timestamp,
        incoming: Incoming,
        answer: &mut Vec<u8>,
    ) -> Option<u32> {
        let remote = incoming.remote_address();
        let now = self.clock.instant(now);
        match self.inner.accept(incoming, now, answer, None) {
            Ok((handle, connection)) => Some(self.insert(handle, connection, remote)),
            Err(_) => {
                // Ids were made for a connection that never was.
                self.issued.take();
                None
            }
        }
    }

    /// Whether the sender of a first packet has shown that it is where it says it is.
    pub(crate) fn is_validated(incoming: &Incoming) -> bool {
        incoming.remote_address_validated()
    }

    /// Has a connection begun again, with a proof of its address and without a trace of it here.
    pub(crate) fn retry(&mut self, now: Timestamp, incoming: Incoming, answer: &mut Vec<u8>) {
        self.clock.instant(now);
        if let Err(error) = self.inner.retry(incoming, answer) {
            self.inner.ignore(error.into_incoming());
        }
        self.issued.take();
    }

    /// Tells the sender of a first packet that there is no room for its connection.
    pub(crate) fn refuse(&mut self, incoming: Incoming, answer: &mut Vec<u8>) {
        let _ = self.inner.refuse(incoming, answer);
        self.issued.take();
    }

    /// Forgets a first packet, without an answer.
    pub(crate) fn ignore(&mut self, incoming: Incoming) {
        self.inner.ignore(incoming);
    }

    /// The next datagram of a connection, written into `buffer`: its length and ECN bits. Where none
    /// has been built yet, up to `batch` of them are.
    pub(crate) fn transmit(
        &mut self,
        now: Timestamp,
        index: u32,
        batch: usize,
        buffer: &mut [u8],
    ) -> Option<(usize, u8)> {
        let entry = self.connections.get_mut(index as usize)?.as_deref_mut()?;
        if let Some(sent) = self.outgoing.take(&mut entry.built, buffer) {
            return Some(sent);
        }
        let now = self.clock.instant(now);
        let batch = batch.clamp(1, MAX_DATAGRAMS);
        let mut bytes = self.outgoing.memory();
        let Some(built) = entry.connection.poll_transmit(now, batch, &mut bytes) else {
            self.outgoing.give_back(bytes);
            return None;
        };
        bytes.truncate(built.size);
        let ecn = built.ecn.map_or(0, |ecn| ecn as u8);
        let built = Batch::new(bytes, built.segment_size, ecn);
        if let Some(id) = cid::destination_of(built.first()) {
            entry.peer_cid = Some(id);
        }
        entry.built = Some(built);
        self.outgoing.take(&mut entry.built, buffer)
    }

    /// Length of the longest datagram that `transmit` may give, probes of the MTU included.
    pub(crate) fn max_transmit(&self) -> usize {
        self.max_transmit
    }

    /// When `handle_timeout` wants to be called.
    pub(crate) fn deadline(&mut self, index: u32) -> Option<Timestamp> {
        let deadline = self.entry(index)?.connection.poll_timeout()?;
        Some(self.clock.timestamp(deadline))
    }

    pub(crate) fn handle_timeout(&mut self, now: Timestamp, index: u32) {
        let now = self.clock.instant(now);
        if let Some(entry) = self.entry(index) {
            entry.connection.handle_timeout(now);
        }
    }

    /// Lets the connection and the endpoint tell each other what they have to; after anything that was
    /// done to the connection. What it has for the application is to be taken before: nothing of that
    /// comes of it, and the connection may be gone afterwards.
    pub(crate) fn settle(&mut self, index: u32) -> Settled {
        while let Some(event) = self
            .entry(index)
            .and_then(|entry| entry.connection.poll_endpoint_events())
        {
            let gone = event.is_drained();
            let back = self
                .inner
                .handle_event(ConnectionHandle(index as usize), event);
            self.learn(index);
            if let (Some(back), Some(entry)) = (back, self.entry(index)) {
                entry.connection.handle_event(back);
            }
            if gone {
                self.remove(index);
                return Settled::Gone;
            }
        }
        Settled::Here
    }

    /// What has happened on a connection since the last time.
    pub(crate) fn poll(&mut self, index: u32) -> Option<Event> {
        let connection = &mut self.entry(index)?.connection;
        loop {
            let event = match connection.poll()? {
                quinn_proto::Event::HandshakeDataReady => continue,
                quinn_proto::Event::Connected => connected(connection),
                quinn_proto::Event::ConnectionLost { reason } => {
                    Event::Lost(close_reason(reason, handshake(connection)))
                }
                quinn_proto::Event::Stream(event) => stream_event(event),
                quinn_proto::Event::DatagramReceived => Event::DatagramReceived,
                quinn_proto::Event::DatagramsUnblocked => Event::DatagramsUnblocked,
            };
            return Some(event);
        }
    }

    pub(crate) fn close(&mut self, now: Timestamp, index: u32, code: u32, reason: &[u8]) {
        let now = self.clock.instant(now);
        let reason = Bytes::copy_from_slice(reason);
        if let Some(entry) = self.entry(index) {
            entry.connection.close(now, VarInt::from_u32(code), reason);
        }
    }

    /// Has something sent that the peer answers, however idle the connection is (RFC 9000 §19.2).
    pub(crate) fn ping(&mut self, index: u32) {
        if let Some(connection) = self.connection(index) {
            connection.ping();
        }
    }

    /// Whether there are streams that the peer opened, or of which it has not received all.
    pub(crate) fn has_streams(&mut self, index: u32) -> bool {
        self.connection(index).is_some_and(|connection| {
            let streams = connection.streams();
            let of_peer = |dir| streams.remote_open_streams(dir) > 0;
            streams.send_streams() > 0 || of_peer(Dir::Bi) || of_peer(Dir::Uni)
        })
    }

    /// How good a connection is now.
    pub(crate) fn measured(&self, index: u32) -> Option<Measured> {
        let path = self.entry_ref(index)?.connection.stats().path;
        let rtt_s = path.rtt.as_secs_f64();
        Some(Measured {
            rtt: Some(path.rtt),
            loss: path.lost_packets as f64 / path.sent_packets.max(1) as f64,
            bandwidth: (rtt_s > 0.0).then_some((path.cwnd as f64 / rtt_s) as u64),
        })
    }

    pub(crate) fn open(&mut self, index: u32, direction: Direction) -> Option<StreamId> {
        let connection = self.connection(index)?;
        Some(stream_id(connection.streams().open(dir(direction))?))
    }

    pub(crate) fn accept_stream(&mut self, index: u32, direction: Direction) -> Option<StreamId> {
        let connection = self.connection(index)?;
        Some(stream_id(connection.streams().accept(dir(direction))?))
    }

    /// Bytes that were taken; 0 until the stream is writable again.
    pub(crate) fn write(
        &mut self,
        index: u32,
        stream: StreamId,
        bytes: &[u8],
    ) -> Result<usize, WriteError> {
        let connection = self.connection(index).ok_or(WriteError::NotConnected)?;
        let stream = sending(connection, stream).ok_or(WriteError::NoStream)?;
        match connection.send_stream(stream).write(bytes) {
            Ok(written) => Ok(written),
            Err(quinn_proto::WriteError::Blocked) => Ok(0),
            Err(quinn_proto::WriteError::Stopped(code)) => Err(WriteError::Stopped(code.into())),
            Err(quinn_proto::WriteError::ClosedStream) => Err(WriteError::NoStream),
        }
    }

    pub(crate) fn finish(&mut self, index: u32, stream: StreamId) -> Result<(), WriteError> {
        let connection = self.connection(index).ok_or(WriteError::NotConnected)?;
        let stream = sending(connection, stream).ok_or(WriteError::NoStream)?;
        match connection.send_stream(stream).finish() {
            Ok(()) => Ok(()),
            Err(quinn_proto::FinishError::Stopped(code)) => Err(WriteError::Stopped(code.into())),
            Err(quinn_proto::FinishError::ClosedStream) => Err(WriteError::NoStream),
        }
    }

    pub(crate) fn reset(
        &mut self,
        index: u32,
        stream: StreamId,
        code: u32,
    ) -> Result<(), StreamError> {
        let connection = self.connection(index).ok_or(StreamError::NotConnected)?;
        let stream = sending(connection, stream).ok_or(StreamError::NoStream)?;
        let reset = connection.send_stream(stream).reset(VarInt::from_u32(code));
        reset.map_err(|_| StreamError::NoStream)
    }

    pub(crate) fn stop(
        &mut self,
        index: u32,
        stream: StreamId,
        code: u32,
    ) -> Result<(), StreamError> {
        let connection = self.connection(index).ok_or(StreamError::NotConnected)?;
        let stream = receiving(connection, stream).ok_or(StreamError::NoStream)?;
        let stopped = connection.recv_stream(stream).stop(VarInt::from_u32(code));
        stopped.map_err(|_| StreamError::NoStream)
    }

    pub(crate) fn read(
        &mut self,
        index: u32,
        stream: StreamId,
        max_bytes: usize,
    ) -> Result<Read, ReadError> {
        let connection = self.connection(index).ok_or(ReadError::NotConnected)?;
        let stream = receiving(connection, stream).ok_or(ReadError::NoStream)?;
        let mut stream = connection.recv_stream(stream);
        let mut chunks = stream.read(true).map_err(|_| ReadError::NoStream)?;
        let read = chunks.next(max_bytes);
        // Whether this gives the peer room is found out by the poll for datagrams that follows.
        let _ = chunks.finalize();
        match read {
            Ok(Some(chunk)) => Ok(Read::Data(chunk.bytes)),
            Ok(None) => Ok(Read::Finished),
            Err(quinn_proto::ReadError::Blocked) => Ok(Read::Blocked),
            Err(quinn_proto::ReadError::Reset(code)) => Err(ReadError::Reset(code.into())),
        }
    }

    /// Whether a stream is one that may be read.
    pub(crate) fn can_be_read(&mut self, index: u32, stream: StreamId) -> bool {
        let Some(connection) = self.connection(index) else {
            return false;
        };
        let Some(stream) = receiving(connection, stream) else {
            return false;
        };
        let mut stream = connection.recv_stream(stream);
        stream.read(true).is_ok()
    }

    /// Of several streams that have something to send, those of the highest rank go first.
    pub(crate) fn set_priority(
        &mut self,
        index: u32,
        stream: StreamId,
        rank: i32,
    ) -> Result<(), StreamError> {
        let connection = self.connection(index).ok_or(StreamError::NotConnected)?;
        let stream = sending(connection, stream).ok_or(StreamError::NoStream)?;
        let set = connection.send_stream(stream).set_priority(rank);
        set.map_err(|_| StreamError::NoStream)
    }

    pub(crate) fn send_datagram(&mut self, index: u32, bytes: &[u8]) -> Result<(), DatagramError> {
        let connection = self.connection(index).ok_or(DatagramError::NotConnected)?;
        let mut datagrams = connection.datagrams();
        let max_bytes = datagrams.max_size().unwrap_or(0);
        match datagrams.send(Bytes::copy_from_slice(bytes), false) {
            Ok(()) => Ok(()),
            Err(SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled) => {
                Err(DatagramError::Unsupported)
            }
            Err(SendDatagramError::TooLarge) => Err(DatagramError::TooLarge { max_bytes }),
            Err(SendDatagramError::Blocked(_)) => Err(DatagramError::Blocked),
        }
    }

    pub(crate) fn receive_datagram(&mut self, index: u32) -> Option<Bytes> {
        self.connection(index)?.datagrams().recv()
    }

    /// How the other end of a connection is heard.
    pub(crate) fn pulse(&self, index: u32) -> Option<Pulse> {
        let connection = &self.entry_ref(index)?.connection;
        let confirmed = confirmed::sent_at(connection.congestion_state());
        Some(Pulse {
            confirmed: confirmed.map(|at| self.clock.timestamp(at)),
            rtt: connection.rtt(),
        })
    }

    fn entry_ref(&self, index: u32) -> Option<&Entry> {
        self.connections.get(index as usize)?.as_deref()
    }

    fn entry(&mut self, index: u32) -> Option<&mut Entry> {
        self.connections.get_mut(index as usize)?.as_deref_mut()
    }

    fn connection(&mut self, index: u32) -> Option<&mut Connection> {
        Some(&mut self.entry(index)?.connection)
    }

    fn insert(
        &mut self,
        handle: ConnectionHandle,
        connection: Connection,
        remote: SocketAddr,
    ) -> u32 {
        let index = index_of(handle);
        if self.connections.len() <= handle.0 {
            self.connections.resize_with(handle.0 + 1, || None);
        }
        self.connections[handle.0] = Some(Box::new(Entry {
            connection,
            cids: VecDeque::new(),
            remote,
            peer_cid: None,
            built: None,
        }));
        self.learn(index);
        index
    }

    /// Notes which ids were issued for a connection just now.
    fn learn(&mut self, index: u32) {
        for id in self.issued.take() {
            self.by_cid.insert(id, index);
            let Some(entry) = self.entry(index) else {
                continue;
            };
            entry.cids.push_back(id);
            if entry.cids.len() > MAX_CIDS
                && let Some(oldest) = entry.cids.pop_front()
            {
                self.forget(oldest, index);
            }
        }
    }

    fn forget(&mut self, id: ConnectionId, index: u32) {
        if self.by_cid.get(&id) == Some(&index) {
            self.by_cid.remove(&id);
        }
    }

    fn remove(&mut self, index: u32) {
        let slot = self.connections.get_mut(index as usize);
        let Some(entry) = slot.and_then(Option::take) else {
            return;
        };
        for id in entry.cids {
            self.forget(id, index);
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("connections", &self.len())
            .finish_non_exhaustive()
    }
}

/// A hasher whose keys follow from the seed.
fn random_state(rng: &mut ChaCha12Rng) -> RandomState {
    RandomState::with_seeds(
        rng.next_u64(),
        rng.next_u64(),
        rng.next_u64(),
        rng.next_u64(),
    )
}

fn index_of(handle: ConnectionHandle) -> u32 {
    u32::try_from(handle.0).expect("memory holds fewer than 2^32 connections")
}

fn handshake(connection: &Connection) -> Option<Handshake> {
    let data = connection.crypto_session().handshake_data()?;
    data.downcast::<Handshake>().ok().map(|data| *data)
}

fn connected(connection: &Connection) -> Event {
    let known = handshake(connection).and_then(|known| Some((known.peer?, known.security?)));
    let (peer, security) =
        known.expect("both ends ask for a certificate and take none but an Ed25519 key's");
    Event::Connected { peer, security }
}

fn close_reason(reason: ConnectionError, handshake: Option<Handshake>) -> CloseReason {
    let failure = handshake.and_then(|handshake| handshake.failure);
    match reason {
        ConnectionError::TransportError(error) => match failure {
            Some(HandshakeFailure::Identity(IdentityError::WrongPeer(peer))) => {
                CloseReason::WrongPeer(peer)
            }
            Some(HandshakeFailure::Identity(IdentityError::NoIdentity)) => CloseReason::NoIdentity,
            Some(HandshakeFailure::NoCommonKeyExchange) => CloseReason::NoCommonKeyExchange,
            None => CloseReason::PeerMisbehaved(error.code.into()),
        },
        ConnectionError::ConnectionClosed(close) => closed_by_quic(close.error_code),
        ConnectionError::ApplicationClosed(close) => CloseReason::Peer {
            code: close.error_code.into(),
            reason: close.reason,
        },
        ConnectionError::VersionMismatch => CloseReason::Version,
        ConnectionError::Reset => CloseReason::Forgotten,
        ConnectionError::TimedOut => CloseReason::TimedOut,
        ConnectionError::LocallyClosed => CloseReason::Here,
        ConnectionError::CidsExhausted => CloseReason::NoConnectionIds,
    }
}

fn closed_by_quic(code: TransportErrorCode) -> CloseReason {
    let code = u64::from(code);
    if CRYPTO_ERRORS.contains(&code) {
        return CloseReason::Refused((code & 0xff) as u8);
    }
    match code {
        CONNECTION_REFUSED => CloseReason::Busy,
        other => CloseReason::PeerGaveUp(other),
    }
}

fn stream_event(event: StreamEvent) -> Event {
    match event {
        StreamEvent::Opened { dir } => Event::Opened(direction(dir)),
        StreamEvent::Available { dir } => Event::Available(direction(dir)),
        StreamEvent::Readable { id } => Event::Readable(stream_id(id)),
        StreamEvent::Writable { id } => Event::Writable(stream_id(id)),
        StreamEvent::Finished { id } => Event::Finished(stream_id(id)),
        StreamEvent::Stopped { id, error_code } => Event::Stopped(stream_id(id), error_code.into()),
    }
}

fn stream_id(id: quinn_proto::StreamId) -> StreamId {
    StreamId(VarInt::from(id).into_inner())
}

/// The stream where we may send on it.
fn sending(connection: &Connection, stream: StreamId) -> Option<quinn_proto::StreamId> {
    let stream = quinn_proto::StreamId::from(VarInt::from_u64(stream.0).ok()?);
    (stream.dir() == Dir::Bi || stream.initiator() == connection.side()).then_some(stream)
}

/// The stream where the peer may send on it.
fn receiving(connection: &Connection, stream: StreamId) -> Option<quinn_proto::StreamId> {
    let stream = quinn_proto::StreamId::from(VarInt::from_u64(stream.0).ok()?);
    (stream.dir() == Dir::Bi || stream.initiator() != connection.side()).then_some(stream)
}

fn dir(direction: Direction) -> Dir {
    match direction {
        Direction::Bidirectional => Dir::Bi,
        Direction::Unidirectional => Dir::Uni,
    }
}

fn direction(dir: Dir) -> Direction {
    match dir {
        Dir::Bi => Direction::Bidirectional,
        Dir::Uni => Direction::Unidirectional,
    }
}
