//! The control plane: metrics, health, status, logs and signals, on a thread of its own beside the
//! shards. It reads their counters and drains their notices; a shard never waits for it.

mod http;
mod notices;
pub(crate) mod orders;
mod routes;
mod runtime;
pub(crate) mod socket;

use std::io;
use std::net::TcpListener;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use towpath_proto::bandwidth::Adaptation;

use crate::clock;
use crate::control::http::Guarded;
use crate::control::notices::NoticeLog;
use crate::control::orders::{Order, Signals};
use crate::control::routes::State;
use crate::control::runtime::Runtime;
use crate::control::socket::ControlSocket;
use crate::limits::LimitKeeper;
use crate::status::RateWindow;
use crate::vitals::Vitals;

/// How often notices are drained. Their queues hold what a shard makes in that time.
const DRAIN_PERIOD: Duration = Duration::from_millis(100);
/// How often totals are taken for rates.
const SAMPLE_PERIOD: Duration = Duration::from_secs(1);

/// What ended a server's wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopSignal {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
    /// SIGHUP, where there is no file to read again.
    Hangup,
}

impl StopSignal {
    /// Its name in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Hangup => "SIGHUP",
        }
    }
}

/// What the control plane serves.
pub(crate) struct Options {
    pub(crate) vitals: Arc<Vitals>,
    pub(crate) limits: Arc<LimitKeeper>,
    /// Where metrics and health are served.
    pub(crate) observe: Option<TcpListener>,
    /// Where status is served.
    pub(crate) socket: Option<ControlSocket>,
    /// Whether a ring may be used.
    pub(crate) ring: bool,
}

/// A running control plane. Dropping it ends its thread.
pub(crate) struct Control {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    runtime: &'static str,
}

impl Control {
    /// Starts the thread. What the server is asked for goes to `orders`; a second signal to stop ends the
    /// process at once.
    pub(crate) fn start(options: Options, orders: SyncSender<Order>) -> io::Result<Self> {
        let (stop, stopping) = oneshot::channel();
        let (ready, started) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                let runtime = match Runtime::new(options.ring) {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                if let Runtime::Plain(_, Some(reason)) = &runtime {
                    tracing::debug!(%reason, "the control plane has no ring");
                }
                let kind = runtime.kind().name();
                runtime.block_on(async {
                    match Plane::new(options, orders, kind) {
                        Ok(plane) => {
                            // The starter waits for this.
                            let _ = ready.send(Ok(kind));
                            plane.run(stopping).await;
                        }
                        Err(error) => drop(ready.send(Err(error))),
                    }
                });
            })?;
        let ended = || io::Error::other("the control thread ended");
        let runtime = started.recv().map_err(|_| ended())??;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
            runtime,
        })
    }

    /// The name of the runtime in use.
    pub(crate) fn runtime(&self) -> &'static str {
        self.runtime
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // It fails only where the thread has ended already.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

/// Everything the control thread's runtime runs.
struct Plane {
    state: Arc<State>,
    observe: Option<tokio::net::TcpListener>,
    socket: Option<(Guarded, ControlSocket)>,
    signals: Signals,
    orders: SyncSender<Order>,
}

impl Plane {
    fn new(options: Options, orders: SyncSender<Order>, runtime: &'static str) -> io::Result<Self> {
        let observe = match options.observe {
            Some(listener) => {
                listener.set_nonblocking(true)?;
                Some(tokio::net::TcpListener::from_std(listener)?)
            }
            None => None,
        };
        let socket = match options.socket {
            Some(socket) => Some((socket.guarded()?, socket)),
            None => None,
        };
        let state = Arc::new(State::new(
            options.vitals,
            options.limits,
            orders.clone(),
            runtime,
        ));
        Ok(Self {
            state,
            observe,
            socket,
            signals: Signals::new()?,
            orders,
        })
    }

    async fn run(mut self, stopping: oneshot::Receiver<()>) {
        if let Some(listener) = self.observe.take() {
            tokio::spawn(http::serve(
                listener,
                routes::observe(Arc::clone(&self.state)),
            ));
        }
        // The socket's file lives until this function ends.
        let _socket = self.socket.take().map(|(listener, socket)| {
            tokio::spawn(http::serve(
                listener,
                routes::control(Arc::clone(&self.state)),
            ));
            socket
        });
        let limits = Arc::clone(&self.state.limits);
        tokio::spawn(async move { share(&limits).await });
        let vitals = Arc::clone(&self.state.vitals);
        let state = Arc::clone(&self.state);
        tokio::spawn(async move { sample(&state).await });
        let log = Mutex::new(NoticeLog::new(vitals, Instant::now()));
        let path = Arc::clone(&self.state.vitals);
        let drain = || {
            path.kernel.beat();
            log.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .drain(Instant::now())
        };
        tokio::select! {
            _ = stopping => {}
            () = self.signals.pass_on(self.orders) => {}
            () = async { loop { drain(); tokio::time::sleep(DRAIN_PERIOD).await; } } => {}
        }
        drain();
    }
}

async fn sample(state: &State) {
    loop {
        state.sample(Instant::now());
        tokio::time::sleep(SAMPLE_PERIOD).await;
    }
}

async fn share(limits: &LimitKeeper) {
    let mut adaptation = limits.adaptation();
    loop {
        limits.share(clock::now(), &mut adaptation);
        tokio::time::sleep(Adaptation::INTERVAL).await;
    }
}

/// The rates, shared between the sampler and those who ask.
#[derive(Debug, Default)]
pub(crate) struct SharedRates(Mutex<RateWindow>);

impl SharedRates {
    pub(crate) fn with<T>(&self, run: impl FnOnce(&mut RateWindow) -> T) -> T {
        run(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
