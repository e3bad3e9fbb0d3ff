//! Two nodes' machines that call each other and talk, on a network that the input is: it delivers,
//! repeats, reorders, damages and drops what they send, sends datagrams of its own, and passes time.
//!
//! They never panic, come to rest without time passing, deliver on streams nothing but what was
//! written and in its order, and keep nothing once they have heard nothing for long enough.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use towpath_proto::identity::{Identity, PeerAddr, SecretKey};
use towpath_proto::machine::{
    Datagram, ListenerId, ShardId, Socket, TRANSMIT_BUFFER_BYTES, TrafficClass,
};
use towpath_proto::peer::{ConnectionHandle, Notice, Peer, PeerConfig};
use towpath_proto::quic::{Direction, Read, StreamId};
use towpath_proto::{Machine, Timestamp};
use towpath_sim::crypto;

use crate::bytes::Bytes;

/// More than a machine can have to say at one time.
const MAX_POLLS: usize = 100_000;
/// Datagrams on the way; further ones are lost.
const MAX_IN_FLIGHT: usize = 512;
/// Longer than a connection lives without hearing of its peer, and than anybody remembers it afterwards.
const LONG_SILENCE: Duration = Duration::from_secs(1_800);
/// The longest time that one step of the input takes.
const STEP: Duration = Duration::from_millis(4);
/// Bytes of one write at most.
const MAX_WRITE: usize = 5_000;

struct World {
    now: Timestamp,
    nodes: [Node; 2],
    /// Datagrams, by whom they are for.
    in_flight: VecDeque<(usize, SocketAddr, u8, Vec<u8>)>,
}

struct Node {
    peer: Peer,
    address: SocketAddr,
    connections: Vec<ConnectionHandle>,
    streams: Vec<(ConnectionHandle, StreamId)>,
    written: BTreeMap<(ConnectionHandle, StreamId), usize>,
    read: BTreeMap<(ConnectionHandle, StreamId), usize>,
}

pub(crate) fn fuzz(data: &[u8]) {
    let mut input = Bytes(data);
    let mut world = World::new(input.byte());
    while !input.is_empty() {
        world.step(&mut input);
    }
    world.fall_silent();
}

impl World {
    fn new(seed: u8) -> Self {
        let provider = crypto::seeded(seed.into());
        let node = |index: u8| {
            let address = SocketAddr::from(([192, 0, 2, 1 + index], 9));
            let mut config = PeerConfig {
                listeners: vec![address],
                ..PeerConfig::default()
            };
            config.quic.provider = provider.clone();
            config.quic.max_streams = 4;
            config.limits.connections = 8;
            config.limits.retry_above = usize::from(seed % 3);
            let identity = Identity::new(SecretKey::from_seed([index; 32]));
            let peer = Peer::new(Arc::new(config), &identity, ShardId(0), [seed ^ index; 32]);
            Node {
                peer: peer.expect("the configuration is sound"),
                address,
                connections: Vec::new(),
                streams: Vec::new(),
                written: BTreeMap::new(),
                read: BTreeMap::new(),
            }
        };
        Self {
            now: Timestamp::from_nanos(1 << 40),
            nodes: [node(0), node(1)],
            in_flight: VecDeque::new(),
        }
    }

    fn step(&mut self, input: &mut Bytes<'_>) {
        let [action, which] = input.array();
        let at = usize::from(which >> 7);
        let which = usize::from(which & 0x7f);
        match action % 12 {
            0 => self.call(at),
            1 => self.nodes[at].open(self.now, which),
            2 => self.nodes[at].write(self.now, which, usize::from(input.number())),
            3 => self.nodes[at].finish(self.now, which),
            4 => self.nodes[at].give_up(self.now, which, input.byte()),
            5 => self.nodes[at].send_datagram(self.now, which, input.short()),
            6 => self.nodes[at].close(self.now, which),
            7 => self.damage(which, input.byte(), input.byte()),
            8 => self.repeat_or_drop(which, at == 0),
            9 => self.stranger(at, which, input.short()),
            10 => self.pass(STEP * u32::from(input.byte())),
            _ => self.exchange(which),
        }
        self.rest();
    }

    fn call(&mut self, from: usize) {
        let to = &self.nodes[1 - from];
        let to = PeerAddr::new(to.peer.id(), [to.address]).expect("one address");
        let caller = &mut self.nodes[from];
        if let Ok(connection) = caller.peer.connect(self.now, &to) {
            caller.connections.push(connection);
        }
    }

    fn damage(&mut self, which: usize, at: u8, with: u8) {
        let count = self.in_flight.len().max(1);
        if let Some((_, _, _, bytes)) = self.in_flight.get_mut(which % count) {
            let at = usize::from(at) % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= with;
            }
        }
    }

    fn repeat_or_drop(&mut self, which: usize, repeat: bool) {
        let which = which % self.in_flight.len().max(1);
        if !repeat {
            self.in_flight.remove(which);
        } else if let Some(datagram) = self.in_flight.get(which) {
            // Its copy comes last, behind what was sent after it.
            self.in_flight.push_back(datagram.clone());
        }
    }

    /// A datagram that neither node has sent: from a stranger, or as if from the other one.
    fn stranger(&mut self, to: usize, which: usize, bytes: &[u8]) {
        let source = match which % 2 {
            0 => self.nodes[1 - to].address,
            _ => SocketAddr::from(([198, 51, 100, 7], 7)),
        };
        self.deliver(to, source, 0, bytes.to_vec());
    }

    /// Delivers what is on the way, and what follows from it, for some rounds of a millisecond.
    fn exchange(&mut self, rounds: usize) {
        for _ in 0..rounds % 32 {
            self.now = self.now + Duration::from_millis(1);
            for _ in 0..self.in_flight.len() {
                if let Some((to, from, class, bytes)) = self.in_flight.pop_front() {
                    self.deliver(to, from, class, bytes);
                }
            }
            self.rest();
        }
    }

    fn deliver(&mut self, to: usize, remote: SocketAddr, class: u8, mut payload: Vec<u8>) {
        let node = &mut self.nodes[to];
        let datagram = Datagram {
            socket: Socket::Listener(ListenerId(0)),
            local: node.address.ip(),
            remote,
            traffic_class: TrafficClass(class),
            payload: &mut payload,
        };
        let answer = node.peer.handle_datagram(self.now, datagram);
        assert_eq!(answer, None, "nodes answer by their queue");
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Lets both nodes do what is due, and collects what they send.
    fn rest(&mut self) {
        let addresses = self.nodes.each_ref().map(|node| node.address);
        let mut buffer = vec![0; TRANSMIT_BUFFER_BYTES];
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let mut polls = 0;
            while node.peer.poll_timeout().is_some_and(|at| at <= self.now) {
                polls += 1;
                assert!(polls < MAX_POLLS, "node {index} does not come to rest");
                node.peer.handle_timeout(self.now);
                node.follow(self.now);
                while let Some(sent) = node.peer.poll_transmit(self.now, &mut buffer) {
                    polls += 1;
                    assert!(polls < MAX_POLLS, "node {index} never stops to send");
                    let to = addresses.iter().position(|at| *at == sent.destination);
                    let full = self.in_flight.len() >= MAX_IN_FLIGHT;
                    if let Some(to) = to.filter(|_| !full) {
                        let bytes = buffer[sent.payload].to_vec();
                        let class = sent.traffic_class.0;
                        self.in_flight
                            .push_back((to, addresses[index], class, bytes));
                    }
                }
            }
        }
    }

    /// Nothing arrives any more.
    fn fall_silent(&mut self) {
        let end = self.now + LONG_SILENCE;
        loop {
            self.rest();
            self.in_flight.clear();
            let next = self
                .nodes
                .iter()
                .filter_map(|node| node.peer.poll_timeout());
            match next.min() {
                Some(next) if next <= end => self.now = next,
                Some(_) | None => break,
            }
        }
        for node in &self.nodes {
            assert!(node.peer.is_empty(), "something is left: {:?}", node.peer);
            assert_eq!(node.peer.poll_timeout(), None);
        }
    }
}

impl Node {
    fn follow(&mut self, now: Timestamp) {
        while let Some(notice) = self.peer.poll_command() {
            match notice {
                Notice::Connected { connection, .. } if !self.connections.contains(&connection) => {
                    self.connections.push(connection);
                }
                Notice::Closed { connection, .. } => {
                    self.connections.retain(|known| *known != connection);
                }
                Notice::Opened {
                    connection,
                    direction,
                } => {
                    while let Ok(Some(stream)) = self.peer.accept(now, connection, direction) {
                        self.streams.push((connection, stream));
                        self.read(now, connection, stream);
                    }
                }
                Notice::Readable { connection, stream } => self.read(now, connection, stream),
                Notice::Datagram { connection } => {
                    while self.peer.receive_datagram(connection).is_some() {}
                }
                _ => {}
            }
        }
    }

    fn read(&mut self, now: Timestamp, connection: ConnectionHandle, stream: StreamId) {
        let read = self.read.entry((connection, stream)).or_default();
        while let Ok(Read::Data(bytes)) = self.peer.read(now, connection, stream, MAX_WRITE) {
            for byte in bytes {
                assert_eq!(byte, pattern(stream, *read), "byte {read} of {stream:?}");
                *read += 1;
            }
        }
    }

    fn connection(&self, which: usize) -> Option<ConnectionHandle> {
        let count = self.connections.len().max(1);
        self.connections.get(which % count).copied()
    }

    fn stream(&self, which: usize) -> Option<(ConnectionHandle, StreamId)> {
        let count = self.streams.len().max(1);
        self.streams.get(which % count).copied()
    }

    fn open(&mut self, now: Timestamp, which: usize) {
        let direction = match which % 2 {
            0 => Direction::Bidirectional,
            _ => Direction::Unidirectional,
        };
        if let Some(connection) = self.connection(which)
            && let Ok(Some(stream)) = self.peer.open(now, connection, direction)
        {
            self.streams.push((connection, stream));
        }
    }

    fn write(&mut self, now: Timestamp, which: usize, bytes: usize) {
        let Some((connection, stream)) = self.stream(which) else {
            return;
        };
        let written = self.written.entry((connection, stream)).or_default();
        let end = *written + bytes % MAX_WRITE;
        let bytes: Vec<_> = (*written..end).map(|at| pattern(stream, at)).collect();
        if let Ok(taken) = self.peer.write(now, connection, stream, &bytes) {
            *written += taken;
        }
    }

    fn finish(&mut self, now: Timestamp, which: usize) {
        if let Some((connection, stream)) = self.stream(which) {
            let _ = self.peer.finish(now, connection, stream);
        }
    }

    fn give_up(&mut self, now: Timestamp, which: usize, code: u8) {
        let Some((connection, stream)) = self.stream(which) else {
            return;
        };
        let _ = match code % 2 {
            0 => self.peer.reset(now, connection, stream, code.into()),
            _ => self.peer.stop(now, connection, stream, code.into()),
        };
    }

    fn send_datagram(&mut self, now: Timestamp, which: usize, bytes: &[u8]) {
        if let Some(connection) = self.connection(which) {
            let _ = self.peer.send_datagram(now, connection, bytes);
        }
    }

    fn close(&mut self, now: Timestamp, which: usize) {
        if let Some(connection) = self.connection(which) {
            self.peer.close(now, connection, 7, b"fuzz");
        }
    }
}

/// What is written at a place of a stream.
fn pattern(stream: StreamId, at: usize) -> u8 {
    (stream.0 as usize * 7 + at * 31 + at / 251) as u8
}
