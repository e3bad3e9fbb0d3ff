//! A node: its shards, and what an application asks of it.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use async_channel::Receiver;
use futures::channel::oneshot;
use rand::TryRng as _;
use rand::rngs::SysRng;
use towpath_engine::{Driver, Engine, EngineConfig, Report, SteeringRule};
use towpath_proto::bandwidth::{Allowance, BandwidthError, Priority, Usage};
use towpath_proto::common::rate::LimitWord;
use towpath_proto::health::HealthReport;
use towpath_proto::identity::{Identity, KEY_BYTES, PeerAddr, PeerId, SecretKey};
use towpath_proto::machine::ShardId;
use towpath_proto::peer::{Peer, PeerConfig, SHARD_MARKS};
use towpath_proto::pool::{Permits, Ticket};
use towpath_proto::quic::SecurityPolicy;

use crate::connection::{Connection, Link};
use crate::core::{Core, Release};
use crate::error::{ConnectError, SpawnError};
use crate::events::{Events, subscribe};
use crate::gate::{Gate, Order, op};
use crate::key_file;
use crate::metrics::{Metrics, ShardCounters};
use crate::shard::{NoHost, Shard};
use crate::shared::{NodeCounters, Shared};

/// Incoming connections that wait to be accepted.
const MAX_ACCEPTS: usize = 1024;

/// Settings of a node that is not yet there. Each has a default.
#[derive(Clone, Debug)]
pub struct NodeBuilder {
    key: Key,
    listen: Vec<SocketAddr>,
    peer: PeerConfig,
    engine: EngineConfig,
}

#[derive(Clone, Debug)]
enum Key {
    Generated,
    File(PathBuf),
    Given(Box<SecretKey>),
}

/// A node of a peer-to-peer network. It is a handle: clones are the same node. It ends by
/// [`close`](Self::close), which tells its peers; with the last handle it ends at once, and they find out
/// by themselves.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    id: PeerId,
    config: Arc<PeerConfig>,
    shards: NonZeroU16,
    gates: Box<[Arc<Gate>]>,
    shared: Arc<Shared>,
    accepted: Receiver<Connection>,
    addresses: Vec<SocketAddr>,
    report: Report,
    metrics: Metrics,
    engine: Mutex<Option<Engine<Shard>>>,
}

impl NodeBuilder {
    fn new() -> Self {
        Self {
            key: Key::Generated,
            listen: Vec::new(),
            peer: PeerConfig::default(),
            engine: EngineConfig {
                shards: 1,
                steering: SteeringRule::Marks(SHARD_MARKS),
                max_ports_per_shard: 0,
                ..EngineConfig::default()
            },
        }
    }

    /// The node's key, which is who it is. Without one, a new one is made, and forgotten with the node.
    #[must_use]
    pub fn key(mut self, key: SecretKey) -> Self {
        self.key = Key::Given(Box::new(key));
        self
    }

    /// The file with the node's key, which is made where there is none.
    #[must_use]
    pub fn key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.key = Key::File(path.into());
        self
    }

    /// An address to listen on and to call from; port 0 lets the system choose one. May be given
    /// several times; the default is `0.0.0.0:0`.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen.push(address);
        self
    }

    /// Number of shards, each a thread with connections of its own; 0 for one per core. The default
    /// is 1.
    #[must_use]
    pub fn shards(mut self, shards: u16) -> Self {
        self.engine.shards = shards;
        self
    }

    /// What drives the sockets. The default is io_uring, and epoll where that is forbidden.
    #[must_use]
    pub fn driver(mut self, driver: Driver) -> Self {
        self.engine.driver = driver;
        self
    }

    /// Which key exchanges are allowed. The default is post-quantum alone.
    #[must_use]
    pub fn security(mut self, policy: SecurityPolicy) -> Self {
        self.peer.quic.security = policy;
        self
    }

    /// Changes anything else that there is to set; see [`PeerConfig`]. Its listeners are those of
    /// [`listen`](Self::listen).
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut PeerConfig)) -> Self {
        change(&mut self.peer);
        self
    }

    /// Starts the node.
    pub fn spawn(self) -> Result<Node, SpawnError> {
        let Self {
            key,
            mut listen,
            mut peer,
            mut engine,
        } = self;
        if listen.is_empty() {
            listen.push(SocketAddr::from(([0, 0, 0, 0], 0)));
        }
        check_listeners(&listen)?;
        let identity = Identity::new(key.read()?);
        peer.listeners.clone_from(&listen);
        engine.listeners = listen;
        engine.steering_key = random()?;
        let peer = Arc::new(peer);
        let (accepts, accepted) = async_channel::bounded(MAX_ACCEPTS);
        let shared = Arc::new(Shared::new(accepts));
        let shards = NonZeroU16::new(engine.shards).unwrap_or_else(one_per_core);
        engine.shards = shards.get();
        let permits = Permits::new(peer.pool.max_total_connections);
        let (mut parts, mut counters) = (Vec::new(), Vec::new());
        for index in 0..shards.get() {
            let gate = Arc::new(Gate::new());
            let machine = Peer::new(Arc::clone(&peer), &identity, ShardId(index), random()?)?;
            let machine = machine.sharing(permits.clone());
            counters.push((
                Arc::clone(machine.counters()),
                Arc::clone(machine.pool_counters()),
            ));
            parts.push(Some((machine, gate)));
        }
        let gates: Box<[_]> = parts
            .iter()
            .flatten()
            .map(|(_, gate)| Arc::clone(gate))
            .collect();
        let running = Engine::start(engine, |shard| {
            let (peer, gate) = parts
                .get_mut(usize::from(shard.0))
                .and_then(Option::take)
                .expect("there are as many parts as shards, and each is started once");
            let core = Core::new(peer, Arc::clone(&gate), Arc::clone(&shared));
            (Shard::new(core, gate, Arc::clone(&shared)), NoHost)
        })?;
        for (index, gate) in (0..).zip(&gates) {
            if let Some(mailbox) = running.mailbox(ShardId(index)) {
                gate.open(mailbox);
            }
        }
        let shard_counters = (0..).zip(counters).filter_map(|(index, (peer, pool))| {
            let engine = running.counters(ShardId(index))?;
            Some(ShardCounters { peer, pool, engine })
        });
        let metrics = Metrics {
            shards: shard_counters.collect(),
            shared: Arc::clone(&shared),
            bandwidth: Arc::clone(&peer.bandwidth),
            permits,
        };
        Ok(Node(Arc::new(Inner {
            metrics,
            id: identity.id(),
            config: peer,
            shards,
            gates,
            shared,
            accepted,
            addresses: running.listeners().to_vec(),
            report: running.report().clone(),
            engine: Mutex::new(Some(running)),
        })))
    }
}

impl Key {
    fn read(self) -> Result<SecretKey, SpawnError> {
        match self {
            Self::Generated => Ok(SecretKey::from_seed(random::<KEY_BYTES>()?)),
            Self::File(path) => Ok(key_file::read_or_create(&path)?.0),
            Self::Given(key) => Ok(*key),
        }
    }
}

impl Node {
    /// The settings of a node, to be changed and spawned.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::new()
    }

    /// Who this node is.
    pub fn id(&self) -> PeerId {
        self.0.id
    }

    /// The addresses it listens on, with the ports in use.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.0.addresses
    }

    /// What others call this node by: its id, and the addresses it listens on. An unspecified one (as
    /// `0.0.0.0`) stands for all addresses of the machine's interfaces, the loopback ones only where
    /// there are no others.
    pub fn peer_addr(&self) -> Result<PeerAddr, SpawnError> {
        let concrete = crate::interfaces::concrete(&self.0.addresses)?;
        Ok(PeerAddr::new(self.0.id, concrete)
            .expect("these are concrete addresses with ports, and not too many"))
    }

    /// The driver in use, and what the kernel can do.
    pub fn report(&self) -> &Report {
        &self.0.report
    }

    /// What the node counts, for Prometheus and as numbers.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// What a peer may be sent and may send from now on, also on later connections. Whoever writes more
    /// waits; what comes faster is held back by QUIC's flow control.
    pub fn set_limit(&self, peer: PeerId, allowance: Allowance) -> Result<(), BandwidthError> {
        self.0.config.bandwidth.set(peer, allowance)?;
        self.wake();
        Ok(())
    }

    /// What all peers together may be sent and may send from now on, shared out by their priorities.
    pub fn set_global_limit(&self, up: LimitWord, down: LimitWord) {
        self.0.config.bandwidth.set_global(up, down);
        self.wake();
    }

    /// What a peer counts for while there is not enough for all.
    pub fn set_priority(&self, peer: PeerId, priority: Priority) -> Result<(), BandwidthError> {
        self.0.config.bandwidth.set_priority(peer, priority)?;
        self.wake();
        Ok(())
    }

    /// What a peer used, and the limits in force; `None` of one that is not remembered.
    pub fn usage(&self, peer: PeerId) -> Option<Usage> {
        self.0.config.bandwidth.usage(peer)
    }

    /// How a peer is doing, as the shard knows it that has heard of it last; `None` of one that nothing
    /// is known of.
    pub async fn health(&self, peer: PeerId) -> Option<HealthReport> {
        let mut latest: Option<HealthReport> = None;
        for gate in &self.0.gates {
            let report = op(gate, move |core, _| Poll::Ready(core.peer.health(peer)));
            if let Ok(Some(report)) = report.await
                && latest
                    .as_ref()
                    .is_none_or(|known| known.last_check < report.last_check)
            {
                latest = Some(report);
            }
        }
        latest
    }

    /// Has all shards look at what they may send now.
    fn wake(&self) {
        for gate in &self.0.gates {
            gate.ring();
        }
    }

    /// What was counted besides what connections did.
    pub fn counters(&self) -> &NodeCounters {
        &self.0.shared.counters
    }

    /// A connection with a peer: the one there is, whoever of the two has made it, or a new one. All who
    /// ask for the same peer at a time wait for the same call, and get the same connection.
    ///
    /// A peer that does not answer is called again, with growing pauses, until
    /// [`PoolConfig::retry`](towpath_proto::pool::PoolConfig::retry) says that it is enough. Who drops
    /// the future gives up waiting.
    pub async fn connect(&self, to: &PeerAddr) -> Result<Connection, ConnectError> {
        if let Some(link) = self.0.known(to.id()) {
            return Ok(Connection::new(link));
        }
        let (answer, answered) = oneshot::channel();
        let gate = self.home(to.id());
        let ticket = self.0.shared.ticket();
        let to = to.clone();
        let mut order = Order::Run(Box::new(move |core| core.connect(&to, ticket, answer)));
        loop {
            match gate.send(order) {
                Ok(Ok(())) => break,
                Ok(Err(full)) => order = full,
                Err(_) => return Err(ConnectError::NodeClosed),
            }
            yield_once().await;
        }
        let mut asking = Asking {
            gate,
            ticket: Some(ticket),
        };
        let answer = answered.await.unwrap_or(Err(ConnectError::NodeClosed));
        asking.ticket = None;
        answer
    }

    /// The next connection that a peer has made to this node; `None` once the node is closed. Not
    /// together with [`serve`](Self::serve).
    pub async fn accept(&self) -> Option<Connection> {
        self.0.accepted.recv().await.ok()
    }

    /// Has `handler` serve every incoming connection from now on. Its future runs on the connection's own
    /// thread, where everything on the connection is a plain call; it must not block. Returns `false`
    /// where there is a handler already.
    pub fn serve<F>(&self, handler: impl Fn(Connection) -> F + Send + Sync + 'static) -> bool
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let handler = Box::new(move |connection| Box::pin(handler(connection)) as _);
        self.0.shared.handler.set(handler).is_ok()
    }

    /// What happens from now on.
    pub fn events(&self) -> Events {
        let (listener, events) = subscribe();
        self.0.shared.listen(listener);
        events
    }

    /// Closes all connections, tells the peers, and ends the node: nothing of it runs afterwards.
    pub async fn close(&self) {
        for gate in &self.0.gates {
            let (done, ended) = oneshot::channel();
            let order = Order::Run(Box::new(move |core| core.close(done)));
            if let Ok(Ok(())) = gate.send(order) {
                let _ = ended.await;
            }
        }
        let engine = self.0.engine().take();
        if let Some(engine) = engine {
            end(engine);
        }
    }

    fn home(&self, peer: PeerId) -> &Gate {
        &self.0.gates[usize::from(peer.home(self.0.shards).0)]
    }
}

impl Inner {
    /// The connection with a peer that somebody has, where one is all there may be.
    fn known(&self, peer: PeerId) -> Option<Arc<Link>> {
        match self.config.pool.max_connections_per_peer {
            1 => self.shared.directory.get(peer),
            _ => None,
        }
    }

    fn engine(&self) -> std::sync::MutexGuard<'_, Option<Engine<Shard>>> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(engine) = self.engine().take() {
            end(engine);
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.0.id)
            .field("addresses", &self.0.addresses)
            .finish_non_exhaustive()
    }
}

/// A call that is waited for.
struct Asking<'a> {
    gate: &'a Gate,
    /// `None` once it was answered.
    ticket: Option<Ticket>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.gate.release(Release::Get(ticket));
        }
    }
}

/// Ends the shards and waits for them; elsewhere, where this is one of them.
fn end(engine: Engine<Shard>) {
    if Gate::on_any_shard() {
        std::thread::spawn(move || drop(engine));
    } else {
        drop(engine);
    }
}

fn one_per_core() -> NonZeroU16 {
    let cores = std::thread::available_parallelism().ok();
    cores
        .and_then(|cores| cores.try_into().ok())
        .unwrap_or(NonZeroU16::MIN)
}

fn check_listeners(listen: &[SocketAddr]) -> Result<(), SpawnError> {
    let mut seen = BTreeSet::new();
    match listen
        .iter()
        .find(|address| address.port() != 0 && !seen.insert(**address))
    {
        Some(address) => Err(SpawnError::Twice(*address)),
        None => Ok(()),
    }
}

fn random<const N: usize>() -> Result<[u8; N], SpawnError> {
    let mut bytes = [0; N];
    SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(|_| SpawnError::NoRandomness)?;
    Ok(bytes)
}

async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
