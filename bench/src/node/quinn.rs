//! An end that is an endpoint of quinn on tokio, with Towpath's cryptography and settings.

use std::future::{Future, pending};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use ::quinn::{
    ClientConfig, Connection, Endpoint as Inner, EndpointConfig, RecvStream, ServerConfig,
    TokioRuntime,
};
use ::towpath::{Identity, PeerAddr};
use anyhow::{Context, Result};
use bytes::Bytes;
use futures::stream::{StreamExt as _, iter};
use tokio::runtime::{self, Handle, Runtime};
use towpath_engine::EngineConfig;

use crate::node::end::{End, MAKE_AT_A_TIME, Setup};
use crate::node::tally::{Cell, MESSAGE_BYTES, Tally, WRITE_BYTES};
use crate::sys;

/// An endpoint and its connections.
pub(super) struct Endpoint {
    endpoint: Inner,
    cell: Cell,
    tally: Arc<Tally>,
    runtime: Handle,
    /// Where it has threads of its own; else a thread of ours runs it.
    _threads: Option<Runtime>,
    server: Option<PeerAddr>,
    connections: Vec<Connection>,
}

impl Endpoint {
    /// Starts an endpoint; a server begins to serve.
    pub(super) fn start(setup: Setup, multi_thread: bool) -> Result<Self> {
        let (runtime, threads) = if multi_thread {
            let runtime = runtime::Builder::new_multi_thread().enable_all().build()?;
            (runtime.handle().clone(), Some(runtime))
        } else {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let handle = runtime.handle().clone();
            std::thread::spawn(move || runtime.block_on(pending::<()>()));
            (handle, None)
        };
        let _inside = runtime.enter();
        let endpoint = open(&setup)?;
        if setup.server.is_none() {
            let (cell, tally) = (setup.cell, Arc::clone(&setup.tally));
            runtime.spawn(serve(endpoint.clone(), cell, tally));
        }
        Ok(Self {
            endpoint,
            cell: setup.cell,
            tally: setup.tally,
            runtime,
            _threads: threads,
            server: setup.server,
            connections: Vec::new(),
        })
    }
}

/// Settings are Towpath's, but for what quinn has that Towpath lacks or does by other means: it batches
/// what it sends by itself.
fn open(setup: &Setup) -> Result<Inner> {
    let mut stock = setup.quic.stock(&Identity::new(setup.secret.clone()))?;
    stock.transport.enable_segmentation_offload(true);
    let transport = Arc::new(stock.transport);
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(stock.server)?));
    server
        .transport_config(Arc::clone(&transport))
        .migration(false);
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(stock.client)?));
    client.transport_config(transport);
    let socket = UdpSocket::bind(("127.0.0.1", 0)).context("opening a socket")?;
    // The kernel doubles what it is given; the engine asks for half as well.
    let bytes = (EngineConfig::default().listener_receive_bytes / 2) as i32;
    let fd = socket.as_raw_fd();
    if sys::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).is_err() {
        sys::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes)
            .context("setting a receive buffer")?;
    }
    let mut endpoint = Inner::new(
        EndpointConfig::default(),
        Some(server),
        socket,
        Arc::new(TokioRuntime),
    )
    .context("starting an endpoint")?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

impl End for Endpoint {
    fn listens_on(&self) -> SocketAddr {
        self.endpoint
            .local_addr()
            .expect("the endpoint's socket is bound")
    }

    fn connect(&mut self, count: usize) -> Result<()> {
        let server = self.server.as_ref().context("a server does not call")?;
        let missing = self.connections.len()..count;
        let calls = missing.map(|_| connect(&self.endpoint, server));
        let made = iter(calls)
            .buffer_unordered(MAKE_AT_A_TIME)
            .collect::<Vec<_>>();
        for connection in self.runtime.block_on(made) {
            self.connections.push(connection.context("connecting")?);
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        let server = self.server.as_ref().context("a server has no load")?;
        if let Cell::Handshakes { parallel } = self.cell {
            for _ in 0..parallel {
                let (endpoint, tally) = (self.endpoint.clone(), Arc::clone(&self.tally));
                self.spawn(call(endpoint, server.clone(), tally));
            }
        }
        for connection in &self.connections {
            match self.cell {
                Cell::Bulk { streams, .. } => {
                    for _ in 0..streams {
                        self.spawn(send(connection.clone()));
                    }
                }
                Cell::RoundTrips => {
                    self.spawn(ask(connection.clone(), Arc::clone(&self.tally)));
                }
                Cell::Handshakes { .. } | Cell::Idle => {}
            }
        }
        Ok(())
    }
}

impl Endpoint {
    fn spawn(&self, job: impl Future<Output = Result<()>> + Send + 'static) {
        let tally = Arc::clone(&self.tally);
        self.runtime.spawn(told(tally, job));
    }
}

async fn connect(endpoint: &Inner, to: &PeerAddr) -> Result<Connection> {
    Ok(endpoint
        .connect(to.addresses()[0], &to.id().to_string())?
        .await?)
}

async fn serve(endpoint: Inner, cell: Cell, tally: Arc<Tally>) {
    while let Some(incoming) = endpoint.accept().await {
        let tally = Arc::clone(&tally);
        tokio::spawn(async move {
            // A caller that gave up is the caller's to tell of.
            if let Ok(connection) = incoming.await {
                accept(connection, cell, tally).await;
            }
        });
    }
}

/// Serves a connection: takes what comes on one-way streams, and sends back what comes on others.
async fn accept(connection: Connection, cell: Cell, tally: Arc<Tally>) {
    match cell {
        Cell::Bulk { .. } => {
            while let Ok(receive) = connection.accept_uni().await {
                tokio::spawn(told(Arc::clone(&tally), take(receive, Arc::clone(&tally))));
            }
        }
        Cell::RoundTrips => {
            told(Arc::clone(&tally), answer(connection)).await;
        }
        Cell::Handshakes { .. } => {
            tally.add_operation(Duration::ZERO);
            connection.close(0_u32.into(), b"");
        }
        Cell::Idle => {
            connection.closed().await;
        }
    }
}

async fn send(connection: Connection) -> Result<()> {
    let bytes = Bytes::from(vec![7; WRITE_BYTES]);
    let mut send = connection.open_uni().await?;
    loop {
        send.write_chunk(bytes.clone()).await?;
    }
}

async fn take(mut receive: RecvStream, tally: Arc<Tally>) -> Result<()> {
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        tally.add_bytes(chunk.bytes.len());
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

async fn answer(connection: Connection) -> Result<()> {
    let mut message = [0; MESSAGE_BYTES];
    let (mut send, mut receive) = connection.accept_bi().await?;
    loop {
        receive.read_exact(&mut message).await?;
        send.write_all(&message).await?;
    }
}

async fn call(endpoint: Inner, server: PeerAddr, tally: Arc<Tally>) -> Result<()> {
    loop {
        let begin = Instant::now();
        let connection = connect(&endpoint, &server).await?;
        tally.add_operation(begin.elapsed());
        connection.closed().await;
    }
}

/// The same, and the tally is told of an error.
async fn told(tally: Arc<Tally>, job: impl Future<Output = Result<()>>) {
    if let Err(error) = job.await {
        tally.fail(format_args!("{error:#}"));
    }
}
