//! Nodes on the engine, on both drivers: connections of several shards, and bulk.

#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

mod switchboard;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use switchboard::DRIVERS;
use towpath_engine::{Counter, Driver, Engine, EngineConfig, Host, Ports, SteeringRule};
use towpath_proto::Timestamp;
use towpath_proto::identity::{Identity, PeerAddr, SecretKey};
use towpath_proto::machine::ShardId;
use towpath_proto::peer::{Call, ConnectionHandle, Notice, Peer, PeerConfig, SHARD_MARKS};
use towpath_proto::quic::{Direction, Read, StreamId};

/// Tells a test what happens, and who is told of it.
struct Teller {
    shard: ShardId,
    notices: mpsc::Sender<(ShardId, Notice)>,
}

impl Host<Peer> for Teller {
    fn execute(&mut self, notice: Notice, _: &mut dyn Ports) -> Option<Call> {
        // The test may be over.
        let _ = self.notices.send((self.shard, notice));
        None
    }
}

struct Node {
    engine: Engine<Peer>,
    notices: mpsc::Receiver<(ShardId, Notice)>,
    address: PeerAddr,
}

impl Node {
    fn start(driver: Driver, shards: u16, seed: u8, listener: &str) -> Self {
        let identity = Identity::new(SecretKey::from_seed([seed; 32]));
        let config = Arc::new(PeerConfig {
            listeners: vec![listener.parse().unwrap()],
            ..PeerConfig::default()
        });
        let (sender, notices) = mpsc::channel();
        let engine = EngineConfig {
            listeners: config.listeners.clone(),
            shards,
            driver,
            steering: SteeringRule::Marks(SHARD_MARKS),
            steering_key: *b"a key for tests!",
            listener_dont_fragment: true,
            ..EngineConfig::default()
        };
        let engine = Engine::start(engine, |shard| {
            let random = [seed ^ 0x80 ^ shard.0 as u8; 32];
            let peer = Peer::new(config.clone(), &identity, shard, random).unwrap();
            let notices = sender.clone();
            (peer, Teller { shard, notices })
        })
        .unwrap();
        let address = PeerAddr::new(identity.id(), engine.listeners().to_vec()).unwrap();
        Self {
            engine,
            notices,
            address,
        }
    }

    /// Does something on a shard.
    fn ask<R: Send + 'static>(
        &self,
        shard: ShardId,
        ask: impl FnOnce(&mut Peer, Timestamp) -> R + Send + 'static,
    ) -> R {
        let (answer, answered) = mpsc::channel();
        let call = Call::new(move |peer, now| drop(answer.send(ask(peer, now))));
        let mailbox = self.engine.mailbox(shard).unwrap();
        assert!(mailbox.try_send(call).is_ok());
        answered.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    /// The next notice that is of interest, and its shard.
    fn await_notice<R>(&self, mut wanted: impl FnMut(ShardId, Notice) -> Option<R>) -> R {
        loop {
            let (shard, notice) = self
                .notices
                .recv_timeout(Duration::from_secs(10))
                .expect("it happens within ten seconds");
            if let Some(found) = wanted(shard, notice) {
                return found;
            }
        }
    }

    fn connected(&self) -> (ShardId, ConnectionHandle) {
        self.await_notice(|shard, notice| match notice {
            Notice::Connected { connection, .. } => Some((shard, connection)),
            _ => None,
        })
    }

    fn sum(&self, counter: Counter) -> u64 {
        let value = |shard| {
            let counters = self.engine.counters(ShardId(shard)).unwrap();
            counters.value(counter)
        };
        (0..self.engine.shards()).map(value).sum()
    }
}

#[test]
fn connections_of_all_shards_get_what_is_sent_to_them() {
    for driver in DRIVERS {
        for listener in ["127.0.0.1:0", "[::1]:0"] {
            let one = Node::start(driver, 3, 1, listener);
            let other = Node::start(driver, 3, 2, listener);
            let mut shards_called = [false; 3];
            for call in 0..12_u16 {
                let from = ShardId(call % 3);
                let to = other.address.clone();
                one.ask(from, move |peer, now| peer.connect(now, &to))
                    .unwrap();
                let (shard, connection) = one.connected();
                assert_eq!(shard, from);
                let (called, theirs) = other.connected();
                shards_called[usize::from(called.0)] = true;
                for (node, shard, connection) in
                    [(&one, shard, connection), (&other, called, theirs)]
                {
                    let sent = node.ask(shard, move |peer, now| {
                        peer.send_datagram(now, connection, &call.to_be_bytes())
                    });
                    assert_eq!(sent, Ok(()));
                }
                for node in [&one, &other] {
                    let (shard, connection) = node.await_notice(|shard, notice| match notice {
                        Notice::Datagram { connection } => Some((shard, connection)),
                        _ => None,
                    });
                    let got = node.ask(shard, move |peer, _| peer.receive_datagram(connection));
                    assert_eq!(got.unwrap(), call.to_be_bytes()[..]);
                }
            }
            // All come from one address, and only one shard of three is that address's.
            assert_eq!(shards_called.iter().filter(|called| **called).count(), 1);
            for node in [&one, &other] {
                assert!(node.engine.report().has("steering"));
                assert!(node.engine.is_running());
            }
        }
    }
}

#[test]
fn bulk_leaves_in_runs_and_finds_out_how_long_datagrams_may_be() {
    const BYTES: usize = 8 << 20;
    for driver in DRIVERS {
        let one = Node::start(driver, 1, 1, "127.0.0.1:0");
        let other = Node::start(driver, 1, 2, "127.0.0.1:0");
        let to = other.address.clone();
        let shard = ShardId(0);
        one.ask(shard, move |peer, now| peer.connect(now, &to))
            .unwrap();
        let (_, connection) = one.connected();
        let stream = one.ask(shard, move |peer, now| {
            peer.open(now, connection, Direction::Unidirectional)
        });
        let stream = stream.unwrap().unwrap();
        let bytes: Arc<[u8]> = (0..BYTES).map(|at| (at % 251) as u8).collect();
        let to_send = bytes.clone();
        let sender = std::thread::spawn(move || {
            send(&one, connection, stream, &to_send);
            one
        });
        receive(&other, &bytes);
        let one = sender.join().unwrap();
        let stats = one
            .ask(shard, move |peer, _| peer.stats(connection))
            .unwrap();
        assert_eq!(stats.mtu_bytes, 1452);
        assert!(one.sum(Counter::GsoSends) > 0, "{driver:?}");
        assert!(one.sum(Counter::DatagramsSent) > 4 * one.sum(Counter::Sends));
    }
}

fn send(node: &Node, connection: ConnectionHandle, stream: StreamId, bytes: &Arc<[u8]>) {
    let mut sent = 0;
    while sent < bytes.len() {
        let all = bytes.clone();
        let written = node.ask(ShardId(0), move |peer, now| {
            peer.write(now, connection, stream, &all[sent..])
        });
        sent += written.unwrap();
        if sent < bytes.len() {
            node.await_notice(|_, notice| matches!(notice, Notice::Writable { .. }).then_some(()));
        }
    }
    let finished = node.ask(ShardId(0), move |peer, now| {
        peer.finish(now, connection, stream)
    });
    assert_eq!(finished, Ok(()));
}

fn receive(node: &Node, expected: &[u8]) {
    let (_, connection) = node.connected();
    let mut stream = None;
    let mut received = 0;
    loop {
        node.await_notice(|_, notice| {
            let news = matches!(notice, Notice::Opened { .. } | Notice::Readable { .. });
            news.then_some(())
        });
        if stream.is_none() {
            let accepted = node.ask(ShardId(0), move |peer, now| {
                peer.accept(now, connection, Direction::Unidirectional)
            });
            stream = accepted.unwrap();
        }
        let stream = stream.expect("it was opened");
        loop {
            let read = node.ask(ShardId(0), move |peer, now| {
                peer.read(now, connection, stream, 1 << 20)
            });
            match read.unwrap() {
                Read::Data(bytes) => {
                    assert!(expected[received..].starts_with(&bytes));
                    received += bytes.len();
                }
                Read::Blocked => break,
                Read::Finished => {
                    assert_eq!(received, expected.len());
                    return;
                }
            }
        }
    }
}
