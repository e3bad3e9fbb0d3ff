//! Nodes that call each other, talk and hang up, on any network; and what must have come of it.
//!
//! The caller opens a stream of each kind and sends datagrams; who is called echoes the first, keeps
//! the second and sends datagrams back. The caller hangs up when it has all of its echo.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use towpath_proto::identity::{Identity, PeerAddr, PeerId, SecretKey};
use towpath_proto::machine::{ListenerId, ShardId, Socket};
use towpath_proto::peer::{Call, ConnectionHandle, Notice, Peer, PeerConfig};
use towpath_proto::quic::{CloseReason, Direction, Read, SecurityLevel, StreamId};
use towpath_proto::{Machine, Timestamp};

use crate::dice::{Dice, PerMillion};
use crate::network::{Edge, HostId, Link, Network, Packet};
use crate::shell::{Outputs, Shell};
use crate::world::{Context, Node, World};

/// The port of every node.
const PORT: u16 = 4433;
/// Outputs that one input may lead to: a window's worth of datagrams.
const MAX_OUTPUTS: usize = 1024;
/// Everything is over by then, the longest timeout included.
const LIMIT: Duration = Duration::from_secs(600);
/// Bytes read at a time.
const READ_BYTES: usize = 3_000;
/// Datagrams that a caller sends.
const DATAGRAMS: u64 = 8;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Nodes.
    pub nodes: usize,
    /// Calls from random nodes to others.
    pub calls: usize,
    /// Of the calls, one in so many is for a peer that is not there, but somebody else is.
    pub wrong_peer_one_in: usize,
    /// Longest message on a stream.
    pub max_message_bytes: usize,
    /// What the network does.
    pub link: Link,
    /// Handshakes above which strangers are asked to show their address.
    pub retry_above: usize,
    /// Before one call in so many, nothing passes between two nodes for up to a minute.
    pub partition_one_in: usize,
    /// Before one call in so many, a node is started anew.
    pub restart_one_in: usize,
}

impl Plan {
    /// Two nodes and one call.
    pub fn pair(link: Link) -> Self {
        Self {
            nodes: 2,
            calls: 1,
            wrong_peer_one_in: usize::MAX,
            max_message_bytes: 20_000,
            link,
            retry_above: 64,
            partition_one_in: usize::MAX,
            restart_one_in: usize::MAX,
        }
    }

    /// Some nodes and calls on some network, from a seed.
    pub fn random(dice: &mut Dice) -> Self {
        let ms = Duration::from_millis;
        let mut link = Link::perfect(dice.duration(ms(1)..ms(120)));
        link.jitter = ms(0)..dice.duration(ms(0)..ms(20));
        link.loss = PerMillion(*dice.pick(&[0, 5_000, 50_000, 150_000]));
        link.duplication = PerMillion(*dice.pick(&[0, 20_000]));
        link.reordering = (PerMillion(*dice.pick(&[0, 50_000, 200_000])), ms(60));
        let nodes = 2 + dice.below(5);
        Self {
            nodes,
            calls: 1 + dice.below(2 * nodes),
            wrong_peer_one_in: 6,
            max_message_bytes: *dice.pick(&[10, 5_000, 60_000]),
            link,
            retry_above: *dice.pick(&[0, 64]),
            partition_one_in: *dice.pick(&[5, usize::MAX]),
            restart_one_in: *dice.pick(&[5, usize::MAX]),
        }
    }
}

/// What came of a run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Everything that happened on the network.
    pub trace_hash: u64,
    /// Datagrams on the network.
    pub datagrams: u64,
    /// When the last thing happened.
    pub ended: Timestamp,
    /// Calls that were answered by whom they were for, and all said.
    pub completed: u64,
    /// Calls that were refused because somebody else answered.
    pub wrong_peer: u64,
    /// Calls that came to nothing on a bad network.
    pub timed_out: u64,
    /// Calls of nodes that were started anew before the end.
    pub abandoned: u64,
    /// Datagrams that arrived inside of connections.
    pub arrived: u64,
    /// Handshakes that were begun again with a proof of the address.
    pub retried: u64,
    /// The longest datagrams that a call's way was found to carry.
    pub mtu_bytes: u16,
    /// Times that a caller had to send less, because something was lost or marked.
    pub congestion_events: u64,
}

#[derive(Debug, Default)]
struct Ledger {
    outcome: Outcome,
    /// One-way messages that were sent, by their content.
    expected: BTreeSet<Vec<u8>>,
    received: BTreeSet<Vec<u8>>,
    datagrams: BTreeSet<Vec<u8>>,
}

/// Runs a plan. Panics where something is not as it must be; see [`World`] for how it is replayed.
pub fn run(seed: u64, plan: &Plan, provider: Arc<CryptoProvider>) -> Outcome {
    let dice = Dice::new(seed);
    let network = Network::new(plan.link.clone(), dice.fork("network", 0));
    let start = Timestamp::from_nanos(dice.fork("start", 0).range(0..1 << 50));
    let mut world = World::new(seed, start, network);
    let ledger = Rc::<RefCell<Ledger>>::default();
    let mut hosts = Vec::new();
    for index in 0..plan.nodes {
        let host = NodeHost::new(&dice, index, plan, &provider, ledger.clone());
        let address = host.address;
        let id = world.add(&[address.ip()], Edge::Open, host);
        world.network.bind(id, address).expect("the port is free");
        hosts.push(id);
    }
    let mut calls = dice.fork("calls", 0);
    for _ in 0..plan.calls {
        world.run_until(world.now() + calls.duration(Duration::ZERO..Duration::from_secs(2)));
        if happens(plan.partition_one_in, &mut calls) {
            partition(&mut world, &hosts, &mut calls);
        }
        if happens(plan.restart_one_in, &mut calls) {
            let host = *calls.pick(&hosts);
            world.act(host, |node, _| node.restart());
        }
        call(&mut world, &hosts, plan, &mut calls);
    }
    world.run_until(start + LIMIT);
    assert_eq!(world.in_flight(), 0, "datagrams still fly");
    for host in hosts {
        let node = world.node(host);
        let machine = node.shell.machine();
        assert!(machine.is_empty(), "something is left: {machine:?}");
        assert_eq!(machine.poll_timeout(), None);
        assert!(node.talks.is_empty(), "never told: {:?}", node.talks);
        let retried = machine.counters().retried_handshakes.value();
        ledger.borrow_mut().outcome.retried += retried;
    }
    let mut ledger = ledger.borrow_mut();
    let lost = ledger.received.difference(&ledger.expected).count();
    assert_eq!(lost, 0, "messages came that nobody sent");
    ledger.outcome.trace_hash = world.trace_hash();
    ledger.outcome.datagrams = world.network.counts().sent;
    let outcome = ledger.outcome.clone();
    let ends = outcome.completed + outcome.wrong_peer + outcome.timed_out + outcome.abandoned;
    assert_eq!(ends, plan.calls as u64, "every call ends once: {outcome:?}");
    outcome
}

fn call(world: &mut World<NodeHost>, hosts: &[HostId], plan: &Plan, dice: &mut Dice) {
    let from = dice.below(hosts.len());
    let to = (from + 1 + dice.below(hosts.len() - 1)) % hosts.len();
    let callee = world.node(hosts[to]);
    let (id, address) = (callee.shell.machine().id(), callee.address);
    let wanted = if happens(plan.wrong_peer_one_in, dice) {
        identity(dice.number()).id()
    } else {
        id
    };
    let call = Outgoing {
        expected: id,
        wanted,
        message: some_bytes(dice, plan.max_message_bytes),
        one_way: some_bytes(dice, plan.max_message_bytes),
    };
    let to = PeerAddr::new(wanted, [address]).expect("one address");
    world.act(hosts[from], |node, context| node.call(context, to, call));
}

/// Once in so many times; never where that is the greatest number there is.
fn happens(one_in: usize, dice: &mut Dice) -> bool {
    one_in < usize::MAX && dice.one_in(one_in)
}

/// Cuts the way between two nodes for a while, in one direction or in both.
fn partition(world: &mut World<NodeHost>, hosts: &[HostId], dice: &mut Dice) {
    let from = dice.below(hosts.len());
    let to = (from + 1 + dice.below(hosts.len() - 1)) % hosts.len();
    let until = world.now() + dice.duration(Duration::from_millis(100)..Duration::from_secs(60));
    world.network.partition(hosts[from], hosts[to], until);
    if dice.one_in(2) {
        world.network.partition(hosts[to], hosts[from], until);
    }
}

fn some_bytes(dice: &mut Dice, max: usize) -> Vec<u8> {
    // Different from all others.
    let mut bytes = dice.bytes(16);
    let len = dice.below(max + 1);
    bytes.extend(dice.bytes(len));
    bytes
}

fn identity(seed: u64) -> Identity {
    Identity::new(SecretKey::from_seed(Dice::new(seed).array()))
}

fn machine(config: &Arc<PeerConfig>, identity: &Identity, dice: &mut Dice) -> Shell<Peer> {
    let peer = Peer::new(config.clone(), identity, ShardId(3), dice.array());
    Shell::new(peer.expect("the configuration is right"), 1, MAX_OUTPUTS)
}

/// A call that a node makes.
#[derive(Clone, Debug)]
struct Outgoing {
    /// Who is there.
    expected: PeerId,
    /// Who is asked for.
    wanted: PeerId,
    message: Vec<u8>,
    one_way: Vec<u8>,
}

/// A host with a node on it.
#[derive(Debug)]
pub struct NodeHost {
    shell: Shell<Peer>,
    config: Arc<PeerConfig>,
    identity: Identity,
    /// Where the seeds of the machines come from.
    dice: Dice,
    address: SocketAddr,
    talks: BTreeMap<ConnectionHandle, Talk>,
    ledger: Rc<RefCell<Ledger>>,
    /// Notices that were not looked at yet.
    notices: VecDeque<Notice>,
}

/// What a node knows of one of its connections.
#[derive(Debug, Default)]
struct Talk {
    call: Option<Outgoing>,
    connected: bool,
    flows: BTreeMap<StreamId, Flow>,
    echoed: bool,
    delivered: bool,
    hung_up: bool,
}

#[derive(Debug, Default)]
struct Flow {
    to_send: Vec<u8>,
    sent: usize,
    /// Whether nothing will be added to `to_send`.
    complete: bool,
    finished: bool,
    received: Vec<u8>,
    over: bool,
}

impl NodeHost {
    fn new(
        dice: &Dice,
        index: usize,
        plan: &Plan,
        provider: &Arc<CryptoProvider>,
        ledger: Rc<RefCell<Ledger>>,
    ) -> Self {
        let mut dice = dice.fork("node", index as u64);
        let last = u8::try_from(index + 1).expect("fewer than 255 nodes");
        let address = SocketAddr::new(Ipv4Addr::new(192, 0, 2, last).into(), PORT);
        let mut config = PeerConfig {
            listeners: vec![address],
            ..PeerConfig::default()
        };
        config.quic.provider = provider.clone();
        config.limits.retry_above = plan.retry_above;
        let config = Arc::new(config);
        let identity = identity(dice.number());
        Self {
            shell: machine(&config, &identity, &mut dice),
            config,
            identity,
            dice,
            address,
            talks: BTreeMap::new(),
            ledger,
            notices: VecDeque::new(),
        }
    }

    /// The node ends without a word, and is there again at once.
    fn restart(&mut self) {
        let calls = self.talks.values().filter(|talk| talk.call.is_some());
        self.ledger.borrow_mut().outcome.abandoned += calls.count() as u64;
        self.talks.clear();
        self.shell = machine(&self.config, &self.identity, &mut self.dice);
    }

    /// Does something on the machine, as another thread would.
    fn ask<R: Send + 'static>(
        &mut self,
        context: &mut Context<'_>,
        ask: impl FnOnce(&mut Peer, Timestamp) -> R + Send + 'static,
    ) -> R {
        let (answer, answered) = mpsc::channel();
        let call = Call::new(move |peer, now| {
            answer.send(ask(peer, now)).expect("somebody waits");
        });
        let outputs = self.shell.event(context.now, call);
        self.take(context, outputs);
        answered.recv().expect("the call was made")
    }

    fn take(&mut self, context: &mut Context<'_>, outputs: Outputs<Notice>) {
        for sent in outputs.sent {
            assert_eq!(sent.socket, Socket::Listener(ListenerId(0)));
            context.send_in_class(
                self.address,
                sent.destination,
                &sent.payload,
                sent.traffic_class,
            );
        }
        self.notices.extend(outputs.commands);
    }

    fn call(&mut self, context: &mut Context<'_>, to: PeerAddr, call: Outgoing) {
        let handle = self
            .ask(context, move |peer, now| peer.connect(now, &to))
            .expect("there is room for a connection");
        let talk = Talk {
            call: Some(call),
            ..Talk::default()
        };
        assert!(self.talks.insert(handle, talk).is_none());
        self.react(context);
    }

    fn react(&mut self, context: &mut Context<'_>) {
        while let Some(notice) = self.notices.pop_front() {
            match notice {
                Notice::Connected {
                    connection,
                    peer,
                    security,
                    incoming,
                } => {
                    assert_eq!(security, SecurityLevel::PostQuantum);
                    self.connected(context, connection, peer, incoming);
                }
                Notice::Closed { connection, reason } => self.closed(connection, &reason),
                Notice::Opened {
                    connection,
                    direction,
                } => self.opened(context, connection, direction),
                Notice::Readable { connection, stream } => {
                    self.read(context, connection, stream);
                }
                Notice::Writable { connection, stream } => {
                    self.write(context, connection, stream);
                }
                Notice::Finished { connection, stream } => {
                    self.delivered(context, connection, stream);
                }
                Notice::Stopped { .. } => panic!("nobody stops a stream"),
                Notice::Datagram { connection } => self.datagrams(context, connection),
                Notice::Available { .. }
                | Notice::DatagramsUnblocked { .. }
                | Notice::PathChanged { .. } => {}
            }
        }
    }

    fn connected(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionHandle,
        peer: PeerId,
        incoming: bool,
    ) {
        let talk = self.talks.entry(connection).or_default();
        assert!(!talk.connected, "{connection:?} connects twice");
        talk.connected = true;
        assert_eq!(talk.call.is_none(), incoming);
        let Some(call) = talk.call.clone() else {
            return;
        };
        assert_eq!(peer, call.wanted, "somebody else answered");
        self.ledger
            .borrow_mut()
            .expected
            .insert(call.one_way.clone());
        for (direction, message) in [
            (Direction::Bidirectional, call.message),
            (Direction::Unidirectional, call.one_way.clone()),
        ] {
            let stream = self
                .ask(context, move |peer, now| {
                    peer.open(now, connection, direction)
                })
                .expect("it is connected")
                .expect("the peer allows streams");
            let flow = Flow {
                to_send: message,
                complete: true,
                ..Flow::default()
            };
            self.talk(connection).flows.insert(stream, flow);
            self.write(context, connection, stream);
        }
        for number in 0..DATAGRAMS {
            let datagram = [&call.one_way[..16], &number.to_be_bytes()].concat();
            let _ = self.ask(context, move |peer, now| {
                peer.send_datagram(now, connection, &datagram)
            });
        }
    }

    fn talk(&mut self, connection: ConnectionHandle) -> &mut Talk {
        self.talks
            .get_mut(&connection)
            .expect("notices are about connections that stand")
    }

    fn opened(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionHandle,
        direction: Direction,
    ) {
        loop {
            let accepted = self.ask(context, move |peer, now| {
                peer.accept(now, connection, direction)
            });
            let Ok(Some(stream)) = accepted else {
                return;
            };
            let flow = Flow {
                // Nothing goes back on a stream of one direction.
                finished: direction == Direction::Unidirectional,
                ..Flow::default()
            };
            let before = self.talk(connection).flows.insert(stream, flow);
            assert!(before.is_none(), "{stream:?} is accepted twice");
            self.read(context, connection, stream);
        }
    }

    fn read(&mut self, context: &mut Context<'_>, connection: ConnectionHandle, stream: StreamId) {
        loop {
            let known = self.talks.get(&connection);
            if known
                .and_then(|talk| talk.flows.get(&stream))
                .is_none_or(|flow| flow.over)
            {
                // Not accepted yet, or read to its end.
                return;
            }
            let read = self.ask(context, move |peer, now| {
                peer.read(now, connection, stream, READ_BYTES)
            });
            let talk = self.talk(connection);
            let calls = talk.call.is_some();
            let flow = talk.flows.get_mut(&stream).expect("it was there just now");
            match read {
                Ok(Read::Data(bytes)) => {
                    flow.received.extend_from_slice(&bytes);
                    if !calls && !flow.finished {
                        flow.to_send.extend_from_slice(&bytes);
                    }
                }
                Ok(Read::Finished) => {
                    flow.over = true;
                    flow.complete = true;
                    self.ended(context, connection, stream);
                    return;
                }
                Ok(Read::Blocked) => break,
                Err(_) => return,
            }
        }
        self.write(context, connection, stream);
    }

    /// All of a stream was read.
    fn ended(&mut self, context: &mut Context<'_>, connection: ConnectionHandle, stream: StreamId) {
        let ledger = self.ledger.clone();
        let talk = self.talk(connection);
        let flow = &talk.flows[&stream];
        match &talk.call {
            Some(call) => {
                assert_eq!(flow.received, call.message, "the echo is what was said");
                talk.echoed = true;
                self.hang_up_when_done(context, connection);
            }
            None if flow.finished => {
                let new = ledger.borrow_mut().received.insert(flow.received.clone());
                assert!(new, "a message came twice");
            }
            None => self.write(context, connection, stream),
        }
    }

    fn write(&mut self, context: &mut Context<'_>, connection: ConnectionHandle, stream: StreamId) {
        loop {
            let Some(flow) = self
                .talks
                .get_mut(&connection)
                .and_then(|talk| talk.flows.get_mut(&stream))
            else {
                return;
            };
            if flow.finished {
                return;
            }
            let rest = flow.to_send[flow.sent..].to_vec();
            if rest.is_empty() {
                if flow.complete {
                    flow.finished = true;
                    let _ = self.ask(context, move |peer, now| {
                        peer.finish(now, connection, stream)
                    });
                }
                return;
            }
            let written = self.ask(context, move |peer, now| {
                peer.write(now, connection, stream, &rest)
            });
            let Ok(written) = written else { return };
            if written == 0 {
                return;
            }
            let talk = self.talk(connection);
            talk.flows.entry(stream).or_default().sent += written;
        }
    }

    /// The peer has all of a stream.
    fn delivered(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionHandle,
        stream: StreamId,
    ) {
        let talk = self.talk(connection);
        let one_way = |flow: &Flow, call: &Outgoing| flow.to_send == call.one_way;
        if let Some(call) = &talk.call
            && one_way(&talk.flows[&stream], call)
        {
            talk.delivered = true;
        }
        self.hang_up_when_done(context, connection);
    }

    fn hang_up_when_done(&mut self, context: &mut Context<'_>, connection: ConnectionHandle) {
        let talk = self.talk(connection);
        if talk.echoed && talk.delivered && !talk.hung_up {
            talk.hung_up = true;
            let stats = self.ask(context, move |peer, _| peer.stats(connection));
            let stats = stats.expect("it stands");
            let mut ledger = self.ledger.borrow_mut();
            let known = ledger.outcome.mtu_bytes;
            ledger.outcome.mtu_bytes = known.max(stats.mtu_bytes);
            ledger.outcome.congestion_events += stats.congestion_events;
            drop(ledger);
            let open = self.ask(context, move |peer, now| {
                peer.close(now, connection, 7, b"done")
            });
            assert!(open, "it stood until now");
        }
    }

    fn datagrams(&mut self, context: &mut Context<'_>, connection: ConnectionHandle) {
        loop {
            let received = self.ask(context, move |peer, _| peer.receive_datagram(connection));
            let Some(bytes) = received else { return };
            let mut ledger = self.ledger.borrow_mut();
            ledger.outcome.arrived += 1;
            assert!(
                ledger.datagrams.insert(bytes.to_vec()),
                "a datagram is delivered twice"
            );
            drop(ledger);
            if bytes.len() == 24 {
                let back = [&bytes[..], b"back"].concat();
                let _ = self.ask(context, move |peer, now| {
                    peer.send_datagram(now, connection, &back)
                });
            }
        }
    }

    fn closed(&mut self, connection: ConnectionHandle, reason: &CloseReason) {
        let talk = self
            .talks
            .remove(&connection)
            .expect("a connection is closed once");
        let mut ledger = self.ledger.borrow_mut();
        let Some(call) = talk.call else {
            // What the caller says when it hangs up may be lost.
            let known = matches!(
                reason,
                CloseReason::Peer { code: 7, .. } | CloseReason::TimedOut | CloseReason::Forgotten
            );
            assert!(known, "{reason:?}");
            return;
        };
        match reason {
            CloseReason::Here => {
                assert!(ledger.received.contains(&call.one_way) && talk.hung_up);
                ledger.outcome.completed += 1;
            }
            CloseReason::WrongPeer(found) => {
                assert!(!talk.connected, "refused after it was accepted");
                assert_eq!(*found, call.expected);
                assert_ne!(*found, call.wanted);
                ledger.outcome.wrong_peer += 1;
            }
            CloseReason::TimedOut | CloseReason::Forgotten => ledger.outcome.timed_out += 1,
            other => panic!("closed for another reason: {other:?}"),
        }
    }
}

impl Node for NodeHost {
    fn handle_packet(&mut self, context: &mut Context<'_>, packet: Packet) {
        let outputs = self.shell.datagram(
            context.now,
            (Socket::Listener(ListenerId(0)), self.address.ip()),
            (packet.source, packet.traffic_class),
            &packet.payload,
        );
        self.take(context, outputs);
        self.react(context);
        self.ledger.borrow_mut().outcome.ended = context.now;
    }

    fn handle_wakeup(&mut self, context: &mut Context<'_>) {
        let outputs = self.shell.timeout(context.now);
        self.take(context, outputs);
        self.react(context);
        self.ledger.borrow_mut().outcome.ended = context.now;
    }

    fn wakeup(&self) -> Option<Timestamp> {
        self.shell.deadline()
    }
}
