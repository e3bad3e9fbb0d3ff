//! Nodes that call each other, talk and let go, on any network; and what must have come of it.
//!
//! Several callers of a node may want the same peer at once; they share a connection of its pool, which
//! both ends use. A caller opens a stream of each kind and sends datagrams; who is called echoes the
//! first, keeps the second and sends datagrams back. The caller lets go when it has all of its echo.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use towpath_proto::health::HealthStatus;
use towpath_proto::identity::{Identity, PeerAddr, PeerId, SecretKey};
use towpath_proto::machine::{ListenerId, ShardId, Socket};
use towpath_proto::peer::{CLOSED_BY_POOL, ConnectionHandle, Notice, Peer, PeerConfig};
use towpath_proto::pool::{DialError, GetError, Got, Ticket};
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
/// Everything is over by then, and nobody is remembered any more.
const LIMIT: Duration = Duration::from_secs(1_800);
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
    /// As many callers on a node want the same peer at once, at most.
    pub callers: usize,
    /// In one call of so many, the peer calls back at the same time.
    pub mutual_one_in: usize,
    /// After one call of so many, a caller that waits goes away.
    pub cancel_one_in: usize,
    /// Connections that a node may have.
    pub connections: usize,
    /// Nodes that get another public address, and how long after the last call or move.
    pub moves: Vec<(Duration, usize)>,
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
            callers: 1,
            mutual_one_in: usize::MAX,
            cancel_one_in: usize::MAX,
            connections: usize::MAX,
            moves: Vec::new(),
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
            calls: 1 + dice.below(3 * nodes / 2),
            wrong_peer_one_in: 6,
            max_message_bytes: *dice.pick(&[10, 5_000, 60_000]),
            link,
            retry_above: *dice.pick(&[0, 64]),
            partition_one_in: *dice.pick(&[5, usize::MAX]),
            restart_one_in: *dice.pick(&[5, usize::MAX]),
            callers: *dice.pick(&[1, 1, 3]),
            mutual_one_in: *dice.pick(&[2, usize::MAX]),
            cancel_one_in: *dice.pick(&[3, usize::MAX]),
            connections: *dice.pick(&[1, 3, usize::MAX]),
            moves: (0..*dice.pick(&[0, 0, 1, 4]))
                .map(|_| (dice.duration(ms(0)..ms(8_000)), dice.below(nodes)))
                .collect(),
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
    /// Callers that did not wait for the answer.
    pub cancelled: u64,
    /// Calls for which there was no room, here or at the peer.
    pub full: u64,
    /// Calls that got a connection that was there.
    pub reused: u64,
    /// Connections that callers made.
    pub connected: u64,
    /// Calls of nodes that were started anew before the end.
    pub abandoned: u64,
    /// Datagrams that arrived inside of connections.
    pub arrived: u64,
    /// Handshakes that were begun again with a proof of the address.
    pub retried: u64,
    /// Times that a node found a peer elsewhere.
    pub moved: u64,
    /// The longest datagrams that a call's way was found to carry.
    pub mtu_bytes: u16,
    /// Times that a caller had to send less, because something was lost or marked.
    pub congestion_events: u64,
}

#[derive(Debug, Default)]
struct Ledger {
    outcome: Outcome,
    /// Calls that were begun.
    calls: u64,
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
        let (local, public) = (host.address, host.public);
        let edge = Edge::OneToOne {
            pairs: vec![(local.ip(), public.ip())],
            hairpin: false,
        };
        let id = world.add(&[local.ip()], edge, host);
        world.network.bind(id, local).expect("the port is free");
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
        if happens(plan.cancel_one_in, &mut calls) {
            let host = *calls.pick(&hosts);
            let soon = calls.duration(Duration::ZERO..Duration::from_millis(300));
            world.run_until(world.now() + soon);
            world.act(host, NodeHost::cancel);
        }
    }
    for (pause, index) in &plan.moves {
        world.run_until(world.now() + *pause);
        renumber(&mut world, hosts[*index]);
    }
    world.run_until(start + LIMIT);
    assert_eq!(world.in_flight(), 0, "datagrams still fly");
    for host in hosts {
        let node = world.node(host);
        let machine = node.shell.machine();
        assert!(machine.is_empty(), "something is left: {machine:?}");
        assert_eq!(machine.poll_timeout(), None);
        assert!(node.talks.is_empty(), "never told: {:?}", node.talks);
        assert!(node.waits.is_empty(), "never answered: {:?}", node.waits);
        node.assert_pool_is_empty();
        let forgotten = |status: &HealthStatus| *status == HealthStatus::Unknown;
        assert!(node.health.values().all(forgotten), "{:?}", node.health);
        let retried = machine.counters().retried_handshakes.value();
        ledger.borrow_mut().outcome.retried += retried;
        let moved = machine.counters().path_changes.value();
        ledger.borrow_mut().outcome.moved += moved;
    }
    let mut ledger = ledger.borrow_mut();
    let lost = ledger.received.difference(&ledger.expected).count();
    assert_eq!(lost, 0, "messages came that nobody sent");
    ledger.outcome.trace_hash = world.trace_hash();
    ledger.outcome.datagrams = world.network.counts().sent;
    let outcome = ledger.outcome.clone();
    let nothing = outcome.timed_out + outcome.abandoned + outcome.cancelled + outcome.full;
    let ends = outcome.completed + outcome.wrong_peer + nothing;
    assert_eq!(ends, ledger.calls, "every call ends once: {outcome:?}");
    outcome
}

/// Gives a node a public address that nobody had before.
fn renumber(world: &mut World<NodeHost>, host: HostId) {
    let (from, to) = world.act(host, |node, _| {
        let from = node.public.ip();
        node.moves += 1;
        let ip = Ipv4Addr::new(198, 51, node.moves, node.number);
        node.public.set_ip(ip.into());
        (from, node.public.ip())
    });
    world.network.renumber(host, from, to);
}

fn call(world: &mut World<NodeHost>, hosts: &[HostId], plan: &Plan, dice: &mut Dice) {
    let from = dice.below(hosts.len());
    let to = (from + 1 + dice.below(hosts.len() - 1)) % hosts.len();
    let wrong = happens(plan.wrong_peer_one_in, dice).then(|| identity(dice.number()).id());
    for _ in 0..=dice.below(plan.callers) {
        call_one(world, (hosts[from], hosts[to]), wrong, plan, dice);
    }
    if happens(plan.mutual_one_in, dice) {
        call_one(world, (hosts[to], hosts[from]), None, plan, dice);
    }
}

fn call_one(
    world: &mut World<NodeHost>,
    (from, to): (HostId, HostId),
    wrong: Option<PeerId>,
    plan: &Plan,
    dice: &mut Dice,
) {
    let callee = world.node(to);
    let (id, address) = (callee.shell.machine().id(), callee.public);
    let wanted = wrong.unwrap_or(id);
    let call = Outgoing {
        expected: id,
        wanted,
        message: some_bytes(dice, plan.max_message_bytes),
        one_way: some_bytes(dice, plan.max_message_bytes),
        echoed: false,
        delivered: false,
    };
    let to = PeerAddr::new(wanted, [address]).expect("one address");
    world.act(from, |node, context| node.call(context, to, call));
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
#[derive(Debug)]
struct Outgoing {
    /// Who is there.
    expected: PeerId,
    /// Who is asked for.
    wanted: PeerId,
    message: Vec<u8>,
    one_way: Vec<u8>,
    echoed: bool,
    delivered: bool,
}

/// A host with a node on it.
#[derive(Debug)]
pub struct NodeHost {
    shell: Shell<Peer>,
    config: Arc<PeerConfig>,
    identity: Identity,
    /// Where the seeds of the machines come from.
    dice: Dice,
    number: u8,
    address: SocketAddr,
    /// What others know it by.
    public: SocketAddr,
    moves: u8,
    talks: BTreeMap<ConnectionHandle, Talk>,
    /// Callers that wait for a connection.
    waits: BTreeMap<Ticket, Outgoing>,
    tickets: u64,
    /// How peers are doing, as far as the node was told.
    health: BTreeMap<PeerId, HealthStatus>,
    ledger: Rc<RefCell<Ledger>>,
    /// Notices that were not looked at yet.
    notices: VecDeque<Notice>,
}

/// What a node knows of one of its connections.
#[derive(Debug)]
struct Talk {
    peer: PeerId,
    /// The calls that go over it, each of which has a reference.
    calls: BTreeMap<Ticket, Outgoing>,
    flows: BTreeMap<StreamId, Flow>,
}

#[derive(Debug, Default)]
struct Flow {
    /// The call that it belongs to, where it is one of ours.
    call: Option<Ticket>,
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
        let address = SocketAddr::new(Ipv4Addr::new(10, 0, 0, last).into(), PORT);
        let public = SocketAddr::new(Ipv4Addr::new(192, 0, 2, last).into(), PORT);
        let mut config = PeerConfig {
            listeners: vec![address],
            ..PeerConfig::default()
        };
        config.quic.provider = provider.clone();
        config.limits.retry_above = plan.retry_above;
        let connections = &mut config.pool.max_total_connections;
        *connections = plan.connections.min(*connections);
        let config = Arc::new(config);
        let identity = identity(dice.number());
        Self {
            shell: machine(&config, &identity, &mut dice),
            config,
            identity,
            dice,
            number: last,
            address,
            public,
            moves: 0,
            talks: BTreeMap::new(),
            waits: BTreeMap::new(),
            tickets: 0,
            health: BTreeMap::new(),
            ledger,
            notices: VecDeque::new(),
        }
    }

    /// The node ends without a word, and is there again at once.
    fn restart(&mut self) {
        let calls: usize = self.talks.values().map(|talk| talk.calls.len()).sum();
        self.ledger.borrow_mut().outcome.abandoned += (calls + self.waits.len()) as u64;
        self.talks.clear();
        self.waits.clear();
        self.health.clear();
        self.shell = machine(&self.config, &self.identity, &mut self.dice);
    }

    /// Does something on the machine, as another thread would.
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
        self.ledger.borrow_mut().calls += 1;
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        match self.ask(context, move |peer, now| peer.get(now, &to, ticket)) {
            Ok(Got::Live(connection)) => {
                self.ledger.borrow_mut().outcome.reused += 1;
                self.begin(context, connection, ticket, call);
            }
            Ok(Got::Waiting) => assert!(self.waits.insert(ticket, call).is_none()),
            Err(error) => self.failed(&call, &error),
        }
        self.react(context);
    }

    /// One of the callers that wait goes away.
    fn cancel(&mut self, context: &mut Context<'_>) {
        let Some((ticket, _)) = self.waits.pop_last() else {
            return;
        };
        assert!(self.ask(context, move |peer, now| peer.cancel(now, ticket)));
        self.ledger.borrow_mut().outcome.cancelled += 1;
        self.react(context);
    }

    /// There is no connection for a call.
    fn failed(&mut self, call: &Outgoing, error: &GetError) {
        let outcome = &mut self.ledger.borrow_mut().outcome;
        match error {
            GetError::Failed {
                error: DialError::Ended(CloseReason::WrongPeer(found)),
                attempts,
            } => {
                // Others may have been lost before.
                assert!(*attempts >= 1);
                assert_eq!(*found, call.expected);
                assert_ne!(*found, call.wanted);
                outcome.wrong_peer += 1;
            }
            GetError::Failed {
                error: DialError::Ended(CloseReason::Busy),
                ..
            }
            | GetError::Full { .. } => outcome.full += 1,
            GetError::Failed {
                error:
                    DialError::TooSlow(_)
                    | DialError::Ended(
                        CloseReason::TimedOut | CloseReason::Forgotten | CloseReason::Peer { .. },
                    ),
                ..
            }
            | GetError::Deadline { .. }
            | GetError::Held { .. } => outcome.timed_out += 1,
            other => panic!("no connection for another reason: {other:?}"),
        }
    }

    fn assert_pool_is_empty(&self) {
        let machine = self.shell.machine();
        assert_eq!(machine.pool().permits().taken(), 0);
        let counters = machine.pool_counters();
        let made = counters.dialled.value() + counters.incoming.value();
        let ended = [
            &counters.lost,
            &counters.idle,
            &counters.surplus,
            &counters.evicted,
        ];
        let ended: u64 = ended.iter().map(|counter| counter.value()).sum();
        assert_eq!(made, ended, "every connection ends once: {counters:?}");
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
                    self.connected(connection, peer, incoming);
                }
                Notice::Got { ticket, result } => {
                    let call = self.waits.remove(&ticket).expect("answered once");
                    match result {
                        Ok(connection) => self.begin(context, connection, ticket, call),
                        Err(error) => self.failed(&call, &error),
                    }
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
                Notice::HealthChanged { peer, from, to } => {
                    let known = self.health.insert(peer, to).unwrap_or_default();
                    assert_eq!(known, from, "a change is not told");
                    assert_ne!(from, to, "nothing has changed");
                }
                Notice::Available { .. }
                | Notice::DatagramsUnblocked { .. }
                | Notice::PathChanged { .. }
                | Notice::Pool(_)
                | Notice::Breaker(_) => {}
                Notice::ShutDown => panic!("nobody shuts anything down"),
            }
        }
    }

    fn connected(&mut self, connection: ConnectionHandle, peer: PeerId, incoming: bool) {
        let talk = Talk {
            peer,
            calls: BTreeMap::new(),
            flows: BTreeMap::new(),
        };
        let before = self.talks.insert(connection, talk);
        assert!(before.is_none(), "{connection:?} connects twice");
        self.ledger.borrow_mut().outcome.connected += u64::from(!incoming);
    }

    /// A call has its connection.
    fn begin(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionHandle,
        ticket: Ticket,
        call: Outgoing,
    ) {
        let talk = self.talk(connection);
        assert_eq!(talk.peer, call.wanted, "somebody else answered");
        let (message, one_way) = (call.message.clone(), call.one_way.clone());
        talk.calls.insert(ticket, call);
        self.ledger.borrow_mut().expected.insert(one_way.clone());
        for (direction, message) in [
            (Direction::Bidirectional, message),
            (Direction::Unidirectional, one_way.clone()),
        ] {
            let opened = self.ask(context, move |peer, now| {
                peer.open(now, connection, direction)
            });
            let Ok(stream) = opened else {
                // It is lost, and the notice is on its way.
                return;
            };
            let stream = stream.expect("the peer allows streams");
            let flow = Flow {
                call: Some(ticket),
                to_send: message,
                complete: true,
                ..Flow::default()
            };
            self.talk(connection).flows.insert(stream, flow);
            self.write(context, connection, stream);
        }
        for number in 0..DATAGRAMS {
            let datagram = [&one_way[..16], &number.to_be_bytes()].concat();
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
            let flow = talk.flows.get_mut(&stream).expect("it was there just now");
            match read {
                Ok(Read::Data(bytes)) => {
                    flow.received.extend_from_slice(&bytes);
                    if flow.call.is_none() && !flow.finished {
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
        match flow.call {
            Some(ticket) => {
                let call = talk.calls.get_mut(&ticket).expect("it waits for its echo");
                assert_eq!(flow.received, call.message, "the echo is what was said");
                call.echoed = true;
                self.let_go_when_done(context, connection, ticket);
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
        let flow = &talk.flows[&stream];
        let Some(ticket) = flow.call else {
            return;
        };
        let Some(call) = talk.calls.get_mut(&ticket) else {
            return;
        };
        call.delivered |= flow.to_send == call.one_way;
        self.let_go_when_done(context, connection, ticket);
    }

    fn let_go_when_done(
        &mut self,
        context: &mut Context<'_>,
        connection: ConnectionHandle,
        ticket: Ticket,
    ) {
        let talk = self.talk(connection);
        let call = &talk.calls[&ticket];
        if call.echoed && call.delivered {
            let call = talk.calls.remove(&ticket).expect("it was there just now");
            let stats = self.ask(context, move |peer, _| peer.stats(connection));
            let mut ledger = self.ledger.borrow_mut();
            if let Some(stats) = &stats {
                let known = ledger.outcome.mtu_bytes;
                ledger.outcome.mtu_bytes = known.max(stats.mtu_bytes);
                ledger.outcome.congestion_events += stats.congestion_events;
            }
            ledger.outcome.completed += 1;
            assert!(ledger.received.contains(&call.one_way));
            drop(ledger);
            let had = self.ask(context, move |peer, now| peer.release(now, connection));
            // It may be over since, and the notice on its way.
            assert_eq!(had, stats.is_some(), "the call had it");
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
        let of_pool = u64::from(CLOSED_BY_POOL);
        match reason {
            CloseReason::Here => assert!(talk.calls.is_empty(), "closed while in use: {talk:?}"),
            // Who heard nothing of a use of it for long, or has another one, lets go.
            CloseReason::Peer { code, .. } => assert_eq!(*code, of_pool),
            CloseReason::TimedOut | CloseReason::Forgotten => {}
            other => panic!("closed for another reason: {other:?}"),
        }
        self.ledger.borrow_mut().outcome.timed_out += talk.calls.len() as u64;
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
