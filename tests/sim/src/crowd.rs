//! Thousands of nodes: each calls some others and says something to each of them, once.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use towpath_proto::Timestamp;
use towpath_proto::identity::{Identity, PeerAddr, SecretKey};
use towpath_proto::machine::{ListenerId, ShardId, Socket};
use towpath_proto::peer::{ConnectionHandle, Notice, Peer, PeerConfig};
use towpath_proto::quic::{CloseReason, Direction, Read, StreamId};

use crate::dice::Dice;
use crate::network::{Edge, Link, Network, Packet};
use crate::null;
use crate::shell::{Outputs, Shell};
use crate::world::{Context, Node, World};

const PORT: u16 = 4433;
const MAX_OUTPUTS: usize = 1024;
/// Within this time all calls are made.
const CALLING: Duration = Duration::from_secs(10);
/// Everything is over by then, the longest timeout included.
const LIMIT: Duration = Duration::from_secs(120);

/// What came of a run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Messages that arrived, each once.
    pub delivered: usize,
    /// Connections that stood, at both ends.
    pub connected: usize,
    /// Datagrams on the network.
    pub datagrams: u64,
}

#[derive(Debug, Default)]
struct Ledger {
    sent: BTreeSet<[u8; 16]>,
    received: BTreeSet<[u8; 16]>,
    connected: usize,
}

/// Lets so many nodes call so many others each, on one kind of link.
pub fn run(seed: u64, nodes: usize, calls: usize, link: Link) -> Outcome {
    let dice = Dice::new(seed);
    let start = Timestamp::from_nanos(1 << 40);
    let mut world = World::new(seed, start, Network::new(link, dice.fork("network", 0)));
    let ledger = Rc::<RefCell<Ledger>>::default();
    let identities: Vec<Identity> = (0..nodes)
        .map(|index| {
            let mut secret = dice.fork("identity", index as u64);
            Identity::new(SecretKey::from_seed(secret.array()))
        })
        .collect();
    let mut hosts = Vec::new();
    for (index, identity) in identities.iter().enumerate() {
        let mut dice = dice.fork("node", index as u64);
        let mut to_call: Vec<(Timestamp, PeerAddr)> = (0..calls)
            .map(|_| {
                let other = (index + 1 + dice.below(nodes - 1)) % nodes;
                let at = start + dice.duration(Duration::ZERO..CALLING);
                let to = PeerAddr::new(identities[other].id(), [address(other)]);
                (at, to.expect("one address"))
            })
            .collect();
        to_call.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        let node = CrowdNode::new(identity, index, dice, to_call, ledger.clone());
        let local = node.address;
        let host = world.add(&[local.ip()], Edge::Open, node);
        world.network.bind(host, local).expect("the port is free");
        hosts.push(host);
    }
    world.run_until(start + LIMIT);
    for host in hosts {
        let node = world.node(host);
        let machine = node.shell.machine();
        assert!(machine.is_empty(), "something is left: {machine:?}");
        assert!(node.calls.is_empty() && node.to_call.is_empty());
    }
    let ledger = ledger.borrow();
    assert_eq!(ledger.sent, ledger.received);
    Outcome {
        delivered: ledger.received.len(),
        connected: ledger.connected,
        datagrams: world.network.counts().sent,
    }
}

fn address(index: usize) -> SocketAddr {
    let index = u32::try_from(index).expect("not so many");
    let ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 1).to_bits() + index);
    SocketAddr::new(ip.into(), PORT)
}

/// A host with a node on it.
#[derive(Debug)]
pub struct CrowdNode {
    shell: Shell<Peer>,
    address: SocketAddr,
    dice: Dice,
    /// The next one last.
    to_call: Vec<(Timestamp, PeerAddr)>,
    calls: BTreeSet<ConnectionHandle>,
    heard: BTreeMap<(ConnectionHandle, StreamId), Vec<u8>>,
    notices: Vec<Notice>,
    ledger: Rc<RefCell<Ledger>>,
}

impl CrowdNode {
    fn new(
        identity: &Identity,
        index: usize,
        mut dice: Dice,
        to_call: Vec<(Timestamp, PeerAddr)>,
        ledger: Rc<RefCell<Ledger>>,
    ) -> Self {
        let address = address(index);
        let config = PeerConfig {
            listeners: vec![address],
            ..PeerConfig::default()
        };
        let peer = Peer::without_cryptography(
            Arc::new(config),
            identity,
            ShardId(0),
            dice.array(),
            null::sessions(identity.id()),
        );
        Self {
            shell: Shell::new(peer.expect("the configuration is right"), 1, MAX_OUTPUTS),
            address,
            dice,
            to_call,
            calls: BTreeSet::new(),
            heard: BTreeMap::new(),
            notices: Vec::new(),
            ledger,
        }
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
            let class = sent.traffic_class;
            context.send_in_class(self.address, sent.destination, &sent.payload, class);
        }
        self.notices.extend(outputs.commands);
    }

    fn react(&mut self, context: &mut Context<'_>) {
        while !self.notices.is_empty() {
            for notice in std::mem::take(&mut self.notices) {
                self.heed(context, notice);
            }
        }
    }

    fn heed(&mut self, context: &mut Context<'_>, notice: Notice) {
        match notice {
            Notice::Connected {
                connection,
                incoming,
                ..
            } => {
                self.ledger.borrow_mut().connected += 1;
                if !incoming {
                    self.say(context, connection);
                }
            }
            Notice::Opened { connection, .. } => loop {
                let accepted = self.ask(context, move |peer, now| {
                    peer.accept(now, connection, Direction::Unidirectional)
                });
                let Ok(Some(stream)) = accepted else { return };
                self.heard.insert((connection, stream), Vec::new());
                self.hear(context, connection, stream);
            },
            Notice::Readable { connection, stream } => self.hear(context, connection, stream),
            Notice::Finished { connection, .. } => {
                let closed = self.ask(context, move |peer, now| {
                    peer.close(now, connection, 7, b"")
                });
                assert!(closed);
            }
            Notice::Closed { connection, reason } => {
                let was_call = self.calls.remove(&connection);
                match reason {
                    CloseReason::Here => assert!(was_call),
                    // What the caller says when it hangs up may be lost.
                    CloseReason::Peer { code: 7, .. } | CloseReason::TimedOut => {
                        assert!(!was_call);
                    }
                    other => panic!("closed for another reason: {other:?}"),
                }
            }
            Notice::HealthChanged { .. } => {}
            other => panic!("nobody asked for {other:?}"),
        }
    }

    fn say(&mut self, context: &mut Context<'_>, connection: ConnectionHandle) {
        let message = self.dice.array();
        self.ledger.borrow_mut().sent.insert(message);
        self.ask(context, move |peer, now| {
            let stream = peer.open(now, connection, Direction::Unidirectional);
            let stream = stream.expect("it stands").expect("the peer allows streams");
            let written = peer.write(now, connection, stream, &message);
            assert_eq!(written, Ok(message.len()));
            assert_eq!(peer.finish(now, connection, stream), Ok(()));
        });
    }

    fn hear(&mut self, context: &mut Context<'_>, connection: ConnectionHandle, stream: StreamId) {
        while self.heard.contains_key(&(connection, stream)) {
            let read = self.ask(context, move |peer, now| {
                peer.read(now, connection, stream, 1000)
            });
            match read {
                Ok(Read::Data(bytes)) => {
                    let heard = self.heard.entry((connection, stream)).or_default();
                    heard.extend_from_slice(&bytes);
                }
                Ok(Read::Finished) => {
                    let heard = self.heard.remove(&(connection, stream));
                    let message = heard.and_then(|heard| heard.try_into().ok());
                    let message = message.expect("messages have 16 bytes");
                    let new = self.ledger.borrow_mut().received.insert(message);
                    assert!(new, "a message came twice");
                }
                Ok(Read::Blocked) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Node for CrowdNode {
    fn handle_packet(&mut self, context: &mut Context<'_>, packet: Packet) {
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
        let outputs = self.shell.timeout(context.now);
        self.take(context, outputs);
        self.react(context);
        while self
            .to_call
            .last()
            .is_some_and(|(at, _)| *at <= context.now)
        {
            let Some((_, to)) = self.to_call.pop() else {
                return;
            };
            let call = self.ask(context, move |peer, now| peer.connect(now, &to));
            self.calls
                .insert(call.expect("there is room for a connection"));
            self.react(context);
        }
    }

    fn wakeup(&self) -> Option<Timestamp> {
        let call = self.to_call.last().map(|(at, _)| *at);
        [call, self.shell.deadline()].into_iter().flatten().min()
    }
}
