//! An end that is a node of Towpath; where several connections are to be made at a time, one of several
//! nodes, because a node has one call to a peer at a time.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ::towpath::{Connection, Node as Inner, PeerAddr, RecvStream, SecretKey};
use anyhow::{Context, Result};
use futures::executor::{LocalPool, block_on};
use futures::task::LocalSpawnExt as _;

use crate::node::end::{End, IDLE_TIMEOUT, Setup};
use crate::node::tally::{Cell, MESSAGE_BYTES, Tally, WRITE_BYTES};

/// So long it takes about to make a connection.
const LOOK_AGAIN: Duration = Duration::from_micros(500);

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Nodes and their connections.
pub(super) struct Node {
    nodes: Vec<Inner>,
    cell: Cell,
    tally: Arc<Tally>,
    place: Place,
    server: Option<PeerAddr>,
    connections: Vec<Connection>,
}

/// Where the application runs.
#[derive(Clone)]
enum Place {
    /// On the thread of the connection's shard.
    Shard,
    /// On a thread of its own, which runs these.
    Thread(async_channel::Sender<Job>),
}

impl Place {
    fn thread() -> Self {
        let (jobs, to_do) = async_channel::unbounded::<Job>();
        thread::spawn(move || {
            let mut pool = LocalPool::new();
            let spawner = pool.spawner();
            pool.run_until(async move {
                while let Ok(job) = to_do.recv().await {
                    if spawner.spawn_local(job).is_err() {
                        return;
                    }
                }
            });
        });
        Self::Thread(jobs)
    }

    fn spawn(&self, connection: &Connection, job: impl Future<Output = ()> + Send + 'static) {
        match self {
            Self::Shard => connection.spawn(job),
            // The thread ends with the process.
            Self::Thread(jobs) => drop(jobs.try_send(Box::pin(job))),
        }
    }
}

impl Node {
    /// Starts a node; a server begins to serve.
    pub(super) fn start(setup: Setup, on_a_thread: bool) -> Result<Self> {
        let nodes = match (setup.cell, &setup.server) {
            (Cell::Handshakes { parallel }, Some(_)) => parallel,
            (_, _) => 1,
        };
        let nodes = (0..nodes).map(|number| spawn(&setup, number));
        let nodes = nodes.collect::<Result<Vec<_>>>()?;
        let (cell, tally) = (setup.cell, setup.tally);
        let place = if on_a_thread {
            Place::thread()
        } else {
            Place::Shard
        };
        if setup.server.is_none() {
            serve(&nodes[0], &place, cell, &tally);
        }
        Ok(Self {
            nodes,
            cell,
            tally,
            place,
            server: setup.server,
            connections: Vec::new(),
        })
    }
}

impl End for Node {
    fn listens_on(&self) -> SocketAddr {
        self.nodes[0].addresses()[0]
    }

    fn connect(&mut self, count: usize) -> Result<()> {
        let server = self.server.as_ref().context("a server does not call")?;
        // A further connection with a peer is made where those there are have somebody who uses them, one
        // at a time; until it stands, one of the others is given.
        while self.connections.len() < count {
            let connection = block_on(self.nodes[0].connect(server)).context("connecting")?;
            if self.connections.contains(&connection) {
                thread::sleep(LOOK_AGAIN);
            } else {
                self.connections.push(connection);
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        let server = self.server.as_ref().context("a server has no load")?;
        let spawn = |connection: &Connection, job: Job| self.place.spawn(connection, job);
        if let Cell::Handshakes { .. } = self.cell {
            for node in &self.nodes {
                let first = block_on(node.connect(server)).context("connecting")?;
                let (node, tally) = (node.clone(), Arc::clone(&self.tally));
                let calling = call(node, server.clone(), first.clone(), tally);
                spawn(&first, told(&self.tally, calling));
            }
        }
        for connection in &self.connections {
            match self.cell {
                Cell::Bulk { streams, .. } => {
                    for _ in 0..streams {
                        spawn(connection, told(&self.tally, send(connection.clone())));
                    }
                }
                Cell::RoundTrips => {
                    let asking = ask(connection.clone(), Arc::clone(&self.tally));
                    spawn(connection, told(&self.tally, asking));
                }
                Cell::Handshakes { .. } | Cell::Idle => {}
            }
        }
        Ok(())
    }
}

/// A node with settings under which its pool lets all connections be.
fn spawn(setup: &Setup, number: usize) -> Result<Inner> {
    let mut seed = *setup.secret.seed();
    seed[31] = seed[31].wrapping_add(number as u8);
    Inner::builder()
        .key(SecretKey::from_seed(seed))
        .listen(SocketAddr::from(([127, 0, 0, 1], 0)))
        .configure(|config| {
            config.quic = setup.quic.clone();
            config.limits.connections = setup.max_connections;
            let pool = &mut config.pool;
            pool.max_total_connections = setup.max_connections;
            pool.max_connections_per_peer = match setup.cell {
                Cell::Bulk { connections, .. } => connections,
                Cell::RoundTrips | Cell::Handshakes { .. } => 1,
                Cell::Idle => setup.max_connections,
            };
            pool.references_per_connection = 1;
            pool.idle_timeout = IDLE_TIMEOUT;
            pool.keep_alive_interval = IDLE_TIMEOUT / 2;
        })
        .spawn()
        .context("starting a node")
}

fn serve(node: &Inner, place: &Place, cell: Cell, tally: &Arc<Tally>) {
    let (tally, place) = (Arc::clone(tally), place.clone());
    match &place {
        Place::Shard => {
            node.serve(move |connection| {
                accept(connection, place.clone(), cell, Arc::clone(&tally))
            });
        }
        Place::Thread(jobs) => {
            let (node, jobs) = (node.clone(), jobs.clone());
            let accepting = async move {
                while let Some(connection) = node.accept().await {
                    let serving = accept(connection, place.clone(), cell, Arc::clone(&tally));
                    if let Place::Thread(jobs) = &place {
                        // The thread ends with the process.
                        let _ = jobs.try_send(Box::pin(serving));
                    }
                }
            };
            let _ = jobs.try_send(Box::pin(accepting));
        }
    }
}

/// Serves a connection: takes what comes on one-way streams, and sends back what comes on others.
async fn accept(connection: Connection, place: Place, cell: Cell, tally: Arc<Tally>) {
    match cell {
        Cell::Bulk { .. } => {
            while let Ok(receive) = connection.accept_uni().await {
                let (told, tally) = (Arc::clone(&tally), Arc::clone(&tally));
                place.spawn(&connection, self::told(&told, take(receive, tally)));
            }
        }
        Cell::RoundTrips => {
            told_of(answer(&connection).await, &tally);
        }
        Cell::Handshakes { .. } => {
            tally.add_operation(Duration::ZERO);
            connection.close(0, Vec::new());
        }
        Cell::Idle => {
            connection.closed().await;
        }
    }
}

async fn send(connection: Connection) -> Result<()> {
    let bytes = vec![7; WRITE_BYTES];
    let mut send = connection.open_uni().await?;
    loop {
        send.write_all(&bytes).await?;
    }
}

async fn take(mut receive: RecvStream, tally: Arc<Tally>) -> Result<()> {
    while let Some(bytes) = receive.read().await? {
        tally.add_bytes(bytes.len());
    }
    Ok(())
}

async fn ask(connection: Connection, tally: Arc<Tally>) -> Result<()> {
    let mut message = [1; MESSAGE_BYTES];
    let (mut send, mut receive) = connection.open_bi().await?;
    loop {
        let begin = Instant::now();
        send.write_all(&message).await?;
        receive.read_exact(&mut message).await?;
        tally.add_operation(begin.elapsed());
    }
}

async fn answer(connection: &Connection) -> Result<()> {
    let mut message = [0; MESSAGE_BYTES];
    let (mut send, mut receive) = connection.accept_bi().await?;
    loop {
        receive.read_exact(&mut message).await?;
        send.write_all(&message).await?;
    }
}

async fn call(
    node: Inner,
    server: PeerAddr,
    mut connection: Connection,
    tally: Arc<Tally>,
) -> Result<()> {
    loop {
        connection.closed().await;
        let begin = Instant::now();
        connection = node.connect(&server).await?;
        tally.add_operation(begin.elapsed());
    }
}

/// The same, and the tally is told of an error.
fn told(tally: &Arc<Tally>, job: impl Future<Output = Result<()>> + Send + 'static) -> Job {
    let tally = Arc::clone(tally);
    Box::pin(async move { told_of(job.await, &tally) })
}

fn told_of(outcome: Result<()>, tally: &Tally) {
    if let Err(error) = outcome {
        tally.fail(format_args!("{error:#}"));
    }
}
