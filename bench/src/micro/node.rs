//! What a node does for every datagram, and for every wish for a connection.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use towpath_proto::bandwidth::{Budget, Depth, reserve};
use towpath_proto::common::rate::LimitWord;
use towpath_proto::identity::{Identity, KEY_BYTES, PeerAddr, PeerId, SecretKey};
use towpath_proto::machine::{
    Datagram, ListenerId, ShardId, Socket, TRANSMIT_BUFFER_BYTES, TrafficClass,
};
use towpath_proto::peer::{ConnectionHandle, Notice, Peer, PeerConfig};
use towpath_proto::pool::{Established, Got, Permits, Pool, PoolConfig, Ticket};
use towpath_proto::quic::{Direction, Read, SecurityLevel, StreamId};
use towpath_proto::transport_type::TransportType;
use towpath_proto::{Machine, Timestamp};

use super::Operation;

/// Peers that a pool has connections with.
const PEERS: usize = 10_000;
/// Datagrams that are charged to limits.
const DATAGRAM_BYTES: u32 = 1200;
/// What is written at a time, so that datagrams are full.
static WRITTEN: [u8; 64 * 1024] = [7; 64 * 1024];
/// Steps of two machines until something has happened, at most.
const MAX_STEPS: usize = 10_000;
const SENDER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
const RECEIVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), 9);

/// Takes a live connection among many from the pool, and gives it back.
pub(super) struct PoolLookup {
    pool: Pool<u32>,
    peers: Vec<PeerAddr>,
    next: usize,
    now: Timestamp,
}

impl PoolLookup {
    pub(super) fn new() -> Result<Self> {
        let config = PoolConfig::default();
        let me = peer_id(0);
        let mut pool = Pool::new(me, config, Permits::new(PEERS), [3; 32])?;
        let now = Timestamp::from_nanos(1_000_000_000);
        let mut peers = Vec::new();
        for number in 1..=PEERS {
            let id = peer_id(number);
            let established = Established {
                security: SecurityLevel::PostQuantum,
                transport: TransportType::Direct,
            };
            pool.incoming(now, number as u32, id, established)
                .map_err(|refusal| anyhow!("the pool refuses: {refusal:?}"))?;
            peers.push(PeerAddr::new(id, [SocketAddr::from(([192, 0, 2, 1], 9))])?);
        }
        Ok(Self {
            pool,
            peers,
            next: 0,
            now,
        })
    }
}

impl Operation for PoolLookup {
    #[inline(never)]
    fn run_once(&mut self) {
        // A step that is coprime to their number visits all.
        self.next = (self.next + 7919) % PEERS;
        let Ok(Got::Live(connection)) = self.pool.get(self.now, &self.peers[self.next], Ticket(0))
        else {
            panic!("every peer has a connection");
        };
        assert!(self.pool.release(self.now, black_box(connection)));
    }
}

/// Charges a datagram to a peer's limit and to that of everybody.
pub(super) struct Limiter {
    limit: LimitWord,
    own: AtomicU64,
    all: AtomicU64,
    now: Timestamp,
}

impl Limiter {
    /// With limits far above what is charged, or without any.
    pub(super) fn new(limited: bool) -> Result<Self> {
        let limit = match limited {
            true => LimitWord::new(100_000_000_000, 1 << 20).context("a limit")?,
            false => LimitWord::UNLIMITED,
        };
        Ok(Self {
            limit,
            own: AtomicU64::new(0),
            all: AtomicU64::new(0),
            now: Timestamp::from_nanos(1_000_000_000),
        })
    }
}

impl Operation for Limiter {
    #[inline(never)]
    fn run_once(&mut self) {
        self.now = self.now + Duration::from_micros(1);
        let budget = |spent_until| Budget {
            limit: black_box(self.limit),
            spent_until,
        };
        let (own, all) = (budget(&self.own), budget(&self.all));
        let reservation = reserve(self.now, &own, &all, DATAGRAM_BYTES, Depth::Whole);
        black_box(&reservation)
            .as_ref()
            .expect("the limits are far away");
    }
}

/// A datagram of bulk data as a node's machine takes it: the look-up of its connection, decryption, and who
/// is told. What the application reads, what the machine sends, and the sender are not counted.
pub(super) struct PeerDatagram {
    pair: Pair,
    stream: StreamId,
    datagram: Vec<u8>,
}

impl PeerDatagram {
    pub(super) fn new() -> Result<Self> {
        let mut pair = Pair::new()?;
        pair.connect()?;
        let stream = pair.sender.open(
            pair.now,
            pair.calling.context("no connection stands")?,
            Direction::Unidirectional,
        )?;
        Ok(Self {
            pair,
            stream: stream.context("no stream may be opened")?,
            datagram: Vec::new(),
        })
    }
}

impl Operation for PeerDatagram {
    /// Has the sender make the next full datagram.
    fn prepare(&mut self) {
        for _ in 0..MAX_STEPS {
            self.pair.fill(self.stream);
            if let Some(datagram) = self.pair.next_of_sender()
                && datagram.len() >= DATAGRAM_BYTES as usize
            {
                self.datagram = datagram;
                return;
            }
            self.pair.read(self.stream);
            self.pair.step();
        }
        panic!("the sender sends nothing more");
    }

    #[inline(never)]
    fn run_once(&mut self) {
        let answer = self
            .pair
            .receiver
            .handle_datagram(self.pair.now, from(SENDER, black_box(&mut self.datagram)));
        assert!(black_box(answer).is_none(), "nodes answer later");
    }
}

/// Two machines that carry their datagrams to each other.
struct Pair {
    now: Timestamp,
    sender: Peer,
    receiver: Peer,
    calling: Option<ConnectionHandle>,
    called: Option<ConnectionHandle>,
    buffer: Vec<u8>,
}

impl Pair {
    fn new() -> Result<Self> {
        let machine = |number: u8, address: SocketAddr| -> Result<Peer> {
            let config = PeerConfig {
                listeners: vec![address],
                ..PeerConfig::default()
            };
            let identity = Identity::new(SecretKey::from_seed([number; KEY_BYTES]));
            Ok(Peer::new(
                Arc::new(config),
                &identity,
                ShardId(0),
                [number; 32],
            )?)
        };
        Ok(Self {
            now: Timestamp::from_nanos(1_000_000_000),
            sender: machine(1, SENDER)?,
            receiver: machine(2, RECEIVER)?,
            calling: None,
            called: None,
            buffer: vec![0; TRANSMIT_BUFFER_BYTES],
        })
    }

    fn connect(&mut self) -> Result<()> {
        let to = PeerAddr::new(self.receiver.id(), [RECEIVER])?;
        self.sender.connect(self.now, &to)?;
        for _ in 0..MAX_STEPS {
            while let Some(mut datagram) = self.next_of_sender() {
                let datagram = from(SENDER, &mut datagram);
                let _ = self.receiver.handle_datagram(self.now, datagram);
            }
            self.step();
            if self.calling.is_some() && self.called.is_some() {
                return Ok(());
            }
        }
        bail!("two machines do not connect")
    }

    /// Lets a little time pass, and carries what the receiver sends to the sender.
    fn step(&mut self) {
        self.now = self.now + Duration::from_micros(200);
        let Self {
            now,
            sender,
            receiver,
            buffer,
            ..
        } = self;
        receiver.handle_timeout(*now);
        while let Some(transmit) = receiver.poll_transmit(*now, buffer) {
            let _ = sender.handle_datagram(*now, from(RECEIVER, &mut buffer[transmit.payload]));
        }
        sender.handle_timeout(*now);
        while let Some(notice) = sender.poll_command() {
            if let Notice::Connected { connection, .. } = notice {
                self.calling = Some(connection);
            }
        }
        while let Some(notice) = receiver.poll_command() {
            if let Notice::Connected { connection, .. } = notice {
                self.called = Some(connection);
            }
        }
    }

    fn next_of_sender(&mut self) -> Option<Vec<u8>> {
        let transmit = self.sender.poll_transmit(self.now, &mut self.buffer)?;
        Some(self.buffer[transmit.payload].to_vec())
    }

    /// Sees to it that there is something to send.
    fn fill(&mut self, stream: StreamId) {
        let connection = self.calling.expect("it stands");
        let written = self.sender.write(self.now, connection, stream, &WRITTEN);
        written.expect("the stream is open");
    }

    /// Reads what lies there.
    fn read(&mut self, stream: StreamId) {
        let connection = self.called.expect("it stands");
        let _ = self
            .receiver
            .accept(self.now, connection, Direction::Unidirectional);
        while let Ok(Read::Data(_)) =
            self.receiver
                .read(self.now, connection, stream, WRITTEN.len())
        {}
    }
}

fn from(remote: SocketAddr, payload: &mut [u8]) -> Datagram<'_> {
    Datagram {
        socket: Socket::Listener(ListenerId(0)),
        local: if remote == SENDER {
            RECEIVER.ip()
        } else {
            SENDER.ip()
        },
        remote,
        traffic_class: TrafficClass::ORDINARY,
        payload,
    }
}

fn peer_id(number: usize) -> PeerId {
    let mut seed = [5; KEY_BYTES];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    Identity::new(SecretKey::from_seed(seed)).id()
}
