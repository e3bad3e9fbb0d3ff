//! Two nodes that stay connected while nothing passes between them for a while, and how they are doing in
//! each other's eyes.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use towpath_proto::Timestamp;
use towpath_proto::health::HealthStatus;
use towpath_proto::identity::{Identity, PeerAddr, SecretKey};
use towpath_proto::machine::{ListenerId, ShardId, Socket};
use towpath_proto::peer::{Call, Notice, Peer, PeerConfig};
use towpath_proto::quic::CloseReason;

use crate::dice::Dice;
use crate::network::{Edge, Link, Network, Packet};
use crate::shell::{Outputs, Shell};
use crate::world::{Context, Node, World};

const PORT: u16 = 4433;
/// Outputs that one input may lead to.
const MAX_OUTPUTS: usize = 1024;

/// What happens to two nodes.
#[derive(Clone, Debug)]
pub struct Scene {
    /// What the network does.
    pub link: Link,
    /// How often the nodes probe each other.
    pub interval: Duration,
    /// How long the network works before nothing passes.
    pub before: Duration,
    /// For how long nothing passes: from the caller, or in both directions.
    pub cut: Duration,
    /// How long it works afterwards.
    pub after: Duration,
}

/// How the callee was doing in the eyes of the caller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Before nothing passed.
    pub before: HealthStatus,
    /// When nothing had passed for so long.
    pub cut: HealthStatus,
    /// At the end.
    pub after: HealthStatus,
    /// Why the connection was over, where it was.
    pub closed: Option<CloseReason>,
}

#[derive(Debug)]
struct Host {
    shell: Shell<Peer>,
    address: SocketAddr,
    status: HealthStatus,
    closed: Option<CloseReason>,
}

impl Host {
    fn new(index: u8, scene: &Scene, provider: &Arc<CryptoProvider>, dice: &mut Dice) -> Self {
        let address = SocketAddr::new(Ipv4Addr::new(192, 0, 2, index).into(), PORT);
        let mut config = PeerConfig {
            listeners: vec![address],
            health_check_interval: Some(scene.interval),
            ..PeerConfig::default()
        };
        config.quic.provider = provider.clone();
        // Longer than anything here takes: what the pool does is shown elsewhere.
        config.pool.idle_timeout = Duration::from_secs(3_600);
        let identity = Identity::new(SecretKey::from_seed(dice.array()));
        let peer = Peer::new(Arc::new(config), &identity, ShardId(0), dice.array());
        Self {
            shell: Shell::new(peer.expect("the configuration is right"), 1, MAX_OUTPUTS),
            address,
            status: HealthStatus::Unknown,
            closed: None,
        }
    }

    fn take(&mut self, context: &mut Context<'_>, outputs: Outputs<Notice>) {
        for sent in outputs.sent {
            context.send_in_class(
                self.address,
                sent.destination,
                &sent.payload,
                sent.traffic_class,
            );
        }
        for notice in outputs.commands {
            match notice {
                Notice::HealthChanged { peer, from, to } => {
                    assert_eq!(from, self.status, "a change is not told");
                    let report = self.shell.machine().health(peer);
                    assert_eq!(report.map(|report| report.status), Some(to));
                    self.status = to;
                }
                Notice::Closed { reason, .. } => self.closed = Some(reason),
                _ => {}
            }
        }
    }
}

impl Node for Host {
    fn handle_packet(&mut self, context: &mut Context<'_>, packet: Packet) {
        let outputs = self.shell.datagram(
            context.now,
            (Socket::Listener(ListenerId(0)), self.address.ip()),
            (packet.source, packet.traffic_class),
            &packet.payload,
        );
        self.take(context, outputs);
    }

    fn handle_wakeup(&mut self, context: &mut Context<'_>) {
        let outputs = self.shell.timeout(context.now);
        self.take(context, outputs);
    }

    fn wakeup(&self) -> Option<Timestamp> {
        self.shell.deadline()
    }
}

/// Runs a scene.
pub fn run(seed: u64, scene: &Scene, provider: &Arc<CryptoProvider>) -> Seen {
    let dice = Dice::new(seed);
    let network = Network::new(scene.link.clone(), dice.fork("network", 0));
    let start = Timestamp::from_nanos(dice.fork("start", 0).range(0..1 << 50));
    let mut world = World::new(seed, start, network);
    let mut dice = dice.fork("watch", 0);
    let [caller, callee] = [1, 2].map(|index| {
        let host = Host::new(index, scene, provider, &mut dice);
        let address = host.address;
        let id = world.add(&[address.ip()], Edge::Open, host);
        world.network.bind(id, address).expect("the port is free");
        id
    });
    let called = world.node(callee);
    let to = PeerAddr::new(called.shell.machine().id(), [called.address]).expect("one address");
    world.act(caller, |host, context| {
        let call = Call::new(move |peer, now| {
            peer.connect(now, &to).expect("there is room");
        });
        let outputs = host.shell.event(context.now, call);
        host.take(context, outputs);
    });
    world.run_until(start + scene.before);
    let before = world.node(caller).status;
    let until = world.now() + scene.cut;
    world.network.partition(caller, callee, until);
    if dice.one_in(2) {
        world.network.partition(callee, caller, until);
    }
    world.run_until(until);
    let cut = world.node(caller).status;
    world.run_until(until + scene.after);
    let host = world.node(caller);
    Seen {
        before,
        cut,
        after: host.status,
        closed: host.closed.clone(),
    }
}
