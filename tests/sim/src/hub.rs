//! A node with limits, and others that it talks with: who gets how much of what there is.
//!
//! ```text
//!            ┌── spoke 0        the hub calls all spokes; streams go out from it (up) and come in
//!   hub ─────┼── spoke 1        from them (down), as much as one likes; the hub has the limits
//!            └── spoke 2        and the network counts what really passes
//! ```
//!
//! What is sent on a stream follows from the place in it, and every byte that arrives is compared.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use towpath_proto::Timestamp;
use towpath_proto::bandwidth::Bandwidth;
use towpath_proto::identity::{Identity, PeerAddr, PeerId, SecretKey};
use towpath_proto::machine::{ListenerId, ShardId, Socket};
use towpath_proto::peer::{ConnectionHandle, Notice, Peer, PeerConfig};
use towpath_proto::quic::{Direction, Read, StreamId};

use crate::dice::Dice;
use crate::network::{Edge, HostId, Link, Network, Packet};
use crate::shell::{Outputs, Shell};
use crate::world::{Context, Node, World};

const PORT: u16 = 4433;
const MAX_OUTPUTS: usize = 65_536;
const READ_BYTES: usize = 64 * 1024;
const WRITE_BYTES: usize = 16 * 1024;
/// IPv4 and UDP.
const HEADER_BYTES: u64 = 28;

/// A hub and its spokes.
#[derive(Debug)]
pub struct Hub {
    world: World<Host>,
    hub: HostId,
    spokes: Vec<HostId>,
    /// Streams that were begun.
    begun: usize,
}

impl Hub {
    /// A hub with these limits, connected to so many spokes without any.
    pub fn new(
        seed: u64,
        spokes: usize,
        link: Link,
        limits: Bandwidth,
        provider: &Arc<CryptoProvider>,
    ) -> Self {
        let dice = Dice::new(seed);
        let network = Network::new(link, dice.fork("network", 0));
        let start = Timestamp::from_nanos(dice.fork("start", 0).range(1 << 40..1 << 50));
        let mut world = World::new(seed, start, network);
        let mut add = |index: usize, limits: Bandwidth| {
            let host = Host::new(&dice, index, limits, provider);
            let address = host.address;
            let id = world.add(&[address.ip()], Edge::Open, host);
            world.network.bind(id, address).expect("the port is free");
            id
        };
        let hub = add(0, limits);
        let spokes = (1..=spokes)
            .map(|index| add(index, Bandwidth::default()))
            .collect::<Vec<_>>();
        let mut lab = Self {
            world,
            hub,
            spokes,
            begun: 0,
        };
        for spoke in 0..lab.spokes.len() {
            let to = lab.spoke(spoke).peer_addr();
            lab.world.act(hub, |node, context| node.call(context, to));
        }
        lab
    }

    /// The virtual time.
    pub fn now(&self) -> Timestamp {
        self.world.now()
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let until = self.now() + time;
        self.world.run_until(until);
    }

    /// Lets time pass until all that was begun has arrived, or so much has passed; how long it took.
    pub fn run_until_done(&mut self, most: Duration) -> Option<Duration> {
        let begin = self.now();
        while self.now().saturating_since(begin) < most {
            self.run(Duration::from_millis(10));
            let hosts = self.spokes.iter().chain([&self.hub]);
            let over = hosts.map(|host| self.world.node(*host).over.len());
            if over.sum::<usize>() == self.begun {
                return Some(self.now().saturating_since(begin));
            }
        }
        None
    }

    /// Asks something of the hub's machine.
    pub fn ask<R: Send + 'static>(
        &mut self,
        ask: impl FnOnce(&mut Peer, Timestamp) -> R + Send + 'static,
    ) -> R {
        self.world.act(self.hub, |node, context| {
            let answer = node.ask(context, ask);
            node.react(context);
            answer
        })
    }

    /// Who a spoke is.
    pub fn id(&self, spoke: usize) -> PeerId {
        self.spoke(spoke).id
    }

    /// The hub's connection to a spoke.
    pub fn connection(&self, spoke: usize) -> ConnectionHandle {
        self.world.node(self.hub).connections[&self.id(spoke)]
    }

    /// The hub sends so many bytes to a spoke.
    pub fn upload(&mut self, spoke: usize, bytes: u64) -> StreamId {
        self.begun += 1;
        let to = self.id(spoke);
        self.world
            .act(self.hub, |node, context| node.send(context, to, bytes))
    }

    /// A spoke sends so many bytes to the hub.
    pub fn download(&mut self, spoke: usize, bytes: u64) -> StreamId {
        self.begun += 1;
        let to = self.world.node(self.hub).id;
        self.world.act(self.spokes[spoke], |node, context| {
            node.send(context, to, bytes)
        })
    }

    /// A spoke sends a datagram to the hub.
    pub fn datagram(&mut self, spoke: usize, bytes: Vec<u8>) {
        let to = self.world.node(self.hub).id;
        self.world.act(self.spokes[spoke], |node, context| {
            let connection = node.connections[&to];
            node.ask(context, move |peer, now| {
                peer.send_datagram(now, connection, &bytes)
            })
            .expect("there is room for a datagram");
        });
    }

    /// Bytes of packets that the hub has sent to a spoke.
    pub fn sent_to(&self, spoke: usize) -> u64 {
        let traffic = &self.world.node(self.hub).sent;
        let to = self.spoke(spoke).address;
        traffic.get(&to).copied().unwrap_or(0)
    }

    /// Bytes of packets that came to the hub from a spoke.
    pub fn came_from(&self, spoke: usize) -> u64 {
        let traffic = &self.world.node(self.hub).came;
        let from = self.spoke(spoke).address;
        traffic.get(&from).copied().unwrap_or(0)
    }

    /// Bytes of streams that a spoke's application has read.
    pub fn delivered_to(&self, spoke: usize) -> u64 {
        self.spoke(spoke).read.values().sum()
    }

    /// Bytes of the streams of a spoke that the hub's application has read.
    pub fn delivered_from(&self, spoke: usize) -> u64 {
        let connection = self.connection(spoke);
        let streams = &self.world.node(self.hub).read;
        let of = |((of, _), bytes): (&(ConnectionHandle, StreamId), &u64)| {
            (*of == connection).then_some(*bytes)
        };
        streams.iter().filter_map(of).sum()
    }

    /// Bytes that the hub's application has read of each stream.
    pub fn read_of_streams(&self) -> Vec<u64> {
        self.world.node(self.hub).read.values().copied().collect()
    }

    /// When a stream of the hub's had arrived whole.
    pub fn arrived(&self, spoke: usize, stream: StreamId) -> Option<Timestamp> {
        let mut over = self.spoke(spoke).over.iter();
        over.find_map(|((_, of), at)| (*of == stream).then_some(*at))
    }

    /// Datagrams that the hub's application was given.
    pub fn datagrams(&self) -> u64 {
        self.world.node(self.hub).datagrams
    }

    /// Times that the hub was woken because something was due.
    pub fn wakeups(&self) -> u64 {
        self.world.node(self.hub).wakeups
    }

    fn spoke(&self, spoke: usize) -> &Host {
        self.world.node(self.spokes[spoke])
    }
}

/// The byte at a place of a stream.
fn byte_at(place: u64) -> u8 {
    (place ^ (place >> 7) ^ (place >> 15)) as u8
}

/// A host with a node on it.
#[derive(Debug)]
pub struct Host {
    shell: Shell<Peer>,
    id: PeerId,
    address: SocketAddr,
    notices: VecDeque<Notice>,
    connections: BTreeMap<PeerId, ConnectionHandle>,
    /// How much of each stream was written, and how long it is.
    writing: BTreeMap<(ConnectionHandle, StreamId), (u64, u64)>,
    read: BTreeMap<(ConnectionHandle, StreamId), u64>,
    reading: BTreeSet<(ConnectionHandle, StreamId)>,
    over: BTreeMap<(ConnectionHandle, StreamId), Timestamp>,
    /// Bytes of packets by where they went and where they came from.
    sent: BTreeMap<SocketAddr, u64>,
    came: BTreeMap<SocketAddr, u64>,
    datagrams: u64,
    wakeups: u64,
}

impl Host {
    fn new(dice: &Dice, index: usize, limits: Bandwidth, provider: &Arc<CryptoProvider>) -> Self {
        let mut dice = dice.fork("node", index as u64);
        let last = u8::try_from(index + 1).expect("fewer than 255 nodes");
        let address = SocketAddr::new(Ipv4Addr::new(192, 0, 2, last).into(), PORT);
        let mut config = PeerConfig {
            listeners: vec![address],
            bandwidth: Arc::new(limits),
            ..PeerConfig::default()
        };
        config.quic.provider = provider.clone();
        let identity = Identity::new(SecretKey::from_seed(dice.array()));
        let peer = Peer::new(Arc::new(config), &identity, ShardId(0), dice.array());
        let peer = peer.expect("the configuration is right");
        Self {
            id: peer.id(),
            shell: Shell::new(peer, 1, MAX_OUTPUTS),
            address,
            notices: VecDeque::new(),
            connections: BTreeMap::new(),
            writing: BTreeMap::new(),
            read: BTreeMap::new(),
            reading: BTreeSet::new(),
            over: BTreeMap::new(),
            sent: BTreeMap::new(),
            came: BTreeMap::new(),
            datagrams: 0,
            wakeups: 0,
        }
    }

    fn peer_addr(&self) -> PeerAddr {
        PeerAddr::new(self.id, [self.address]).expect("one address")
    }

    fn ask<R: Send + 'static>(
        &mut self,
        context: &mut Context<'_>,
        ask: impl FnOnce(&mut Peer, Timestamp) -> R + Send + 'static,
    ) -> R {
        let (answer, outputs) = self.shell.ask(context.now, ask);
        self.take(context, outputs);
        answer
    }

    fn take(&mut self, context: &mut Context<'_>, outputs: Outputs<Notice>) {
        for sent in outputs.sent {
            let bytes = self.sent.entry(sent.destination).or_default();
            *bytes += sent.payload.len() as u64 + HEADER_BYTES;
            context.send_in_class(
                self.address,
                sent.destination,
                &sent.payload,
                sent.traffic_class,
            );
        }
        self.notices.extend(outputs.commands);
    }

    fn call(&mut self, context: &mut Context<'_>, to: PeerAddr) {
        self.ask(context, move |peer, now| peer.connect(now, &to))
            .expect("there is room for a connection");
        self.react(context);
    }

    fn send(&mut self, context: &mut Context<'_>, to: PeerId, bytes: u64) -> StreamId {
        let connection = self.connections[&to];
        let open =
            move |peer: &mut Peer, now| peer.open(now, connection, Direction::Unidirectional);
        let stream = self.ask(context, open);
        let stream = stream.expect("it is connected").expect("streams are left");
        self.writing.insert((connection, stream), (0, bytes));
        self.write(context, connection, stream);
        self.react(context);
        stream
    }

    fn write(&mut self, context: &mut Context<'_>, connection: ConnectionHandle, stream: StreamId) {
        let key = (connection, stream);
        while let Some((written, bytes)) = self.writing.get(&key).copied() {
            if written == bytes {
                self.writing.remove(&key);
                self.ask(context, move |peer, now| {
                    peer.finish(now, connection, stream)
                })
                .expect("the stream is open");
                return;
            }
            let part = WRITE_BYTES.min(usize::try_from(bytes - written).unwrap_or(usize::MAX));
            let part = (written..).map(byte_at).take(part).collect::<Vec<_>>();
            let taken = self
                .ask(context, move |peer, now| {
                    peer.write(now, connection, stream, &part)
                })
                .expect("the stream is open");
            if taken == 0 {
                return;
            }
            self.writing.insert(key, (written + taken as u64, bytes));
        }
    }

    fn read(&mut self, context: &mut Context<'_>, connection: ConnectionHandle, stream: StreamId) {
        let key = (connection, stream);
        while self.reading.contains(&key) {
            let read = self.ask(context, move |peer, now| {
                peer.read(now, connection, stream, READ_BYTES)
            });
            match read.expect("the stream is open") {
                Read::Data(bytes) => {
                    let place = self.read.entry(key).or_default();
                    for byte in bytes {
                        assert_eq!(byte, byte_at(*place), "at {place} of {stream:?}");
                        *place += 1;
                    }
                }
                Read::Finished => {
                    self.reading.remove(&key);
                    self.over.insert(key, context.now);
                }
                Read::Blocked => return,
            }
        }
    }

    fn react(&mut self, context: &mut Context<'_>) {
        while let Some(notice) = self.notices.pop_front() {
            match notice {
                Notice::Connected {
                    connection, peer, ..
                } => {
                    self.connections.insert(peer, connection);
                }
                Notice::Opened {
                    connection,
                    direction,
                } => {
                    let accept =
                        move |peer: &mut Peer, now| peer.accept(now, connection, direction);
                    while let Ok(Some(stream)) = self.ask(context, accept) {
                        self.reading.insert((connection, stream));
                        self.read(context, connection, stream);
                    }
                }
                Notice::Readable { connection, stream } => self.read(context, connection, stream),
                Notice::Writable { connection, stream } => self.write(context, connection, stream),
                Notice::Datagram { connection } => {
                    let receive = move |peer: &mut Peer, _| peer.receive_datagram(connection);
                    while self.ask(context, receive).is_some() {
                        self.datagrams += 1;
                    }
                }
                Notice::Closed { reason, .. } => panic!("closed: {reason}"),
                Notice::Finished { .. }
                | Notice::Available { .. }
                | Notice::DatagramsUnblocked { .. }
                | Notice::PathChanged { .. }
                | Notice::HealthChanged { .. }
                | Notice::Pool(_)
                | Notice::Breaker(_) => {}
                Notice::Stopped { .. } => panic!("nobody stops a stream"),
                Notice::Got { .. } => panic!("nobody waits for a connection"),
                Notice::ShutDown => panic!("nobody shuts anything down"),
            }
        }
    }
}

impl Node for Host {
    fn handle_packet(&mut self, context: &mut Context<'_>, packet: Packet) {
        let bytes = self.came.entry(packet.source).or_default();
        *bytes += packet.payload.len() as u64 + HEADER_BYTES;
        let outputs = self.shell.datagram(
            context.now,
            (Socket::Listener(ListenerId(0)), self.address.ip()),
            (packet.source, packet.traffic_class),
            &packet.payload,
        );
        self.take(context, outputs);
        self.react(context);
    }

    fn handle_wakeup(&mut self, context: &mut Context<'_>) {
        self.wakeups += 1;
        let outputs = self.shell.timeout(context.now);
        self.take(context, outputs);
        self.react(context);
    }

    fn wakeup(&self) -> Option<Timestamp> {
        self.shell.deadline()
    }
}
