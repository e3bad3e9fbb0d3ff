//! Starts everything in order, waits, and stops everything in order.
//!
//! ```text
//!   lock and sockets ─▶ plan ─▶ shards ─▶ control plane ─▶ (signal) ─▶ shards stop ─▶ control stops
//! ```

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use towpath_engine::{Engine, StartError as EngineStartError};
use towpath_kernel::KernelError;
use towpath_proto::machine::ShardId;
use towpath_proto::relay::{Relay, RelayEvent, RelayShared};
use towpath_proto::{Machine as _, WallClock};

use crate::clock::{self, ClockFollower};
use crate::config::{Config, DriverChoice};
use crate::control::socket::{ControlSocket, ControlSocketError};
use crate::control::{Control, Options, StopSignal};
use crate::directories::{Directories, KeptSecret};
use crate::generated::{GeneratedUser, Kept};
use crate::host::{self, Host};
use crate::kernel_path::KernelPath;
use crate::limits::{KeptFile, LimitKeeper};
use crate::own_addresses::OwnAddresses;
use crate::plan::{Plan, PlanError};
use crate::shard::{self, Notices};
use crate::vitals::{Relayed, ShardVitals, VERSION, Vitals};

/// Descriptors that are not relayed ports: listeners, rings, sockets of the control plane.
const OTHER_DESCRIPTORS: u64 = 256;
/// How often a waiting server looks whether its shards still run.
const WATCH_PERIOD: Duration = Duration::from_millis(250);

/// What a server is started with.
#[derive(Debug)]
pub struct ServeOptions {
    /// The configuration.
    pub config: Config,
    /// Where state and the control socket lie.
    pub directories: Directories,
    /// A user besides those of the configuration.
    pub generated_user: Option<GeneratedUser>,
}

/// Why a server did not start.
#[derive(thiserror::Error, Debug)]
pub enum StartError {
    /// The configuration cannot be served on this machine.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Another server runs.
    #[error(transparent)]
    ControlSocket(ControlSocketError),
    /// The kernel path is asked for and cannot be had.
    #[error("[kernel]: {0}")]
    Kernel(#[from] KernelError),
    /// Metrics and health cannot be served.
    #[error("observe.listen: cannot listen on {address}: {error}")]
    Observe {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The shards did not start.
    #[error(transparent)]
    Engine(#[from] EngineStartError),
    /// The system did not tell about itself.
    #[error("cannot read the addresses of this machine: {0}")]
    Host(io::Error),
    /// The control plane did not start.
    #[error("cannot start the control plane: {0}")]
    Control(io::Error),
}

/// A shard ended by itself, by a defect that its panic message tells of.
#[derive(thiserror::Error, Debug)]
#[error("a shard ended; the server stops, for its clients are better served by a new one")]
pub struct ShardEnded;

/// A running server.
pub struct Server {
    engine: Engine<Relay>,
    control: Control,
    vitals: Arc<Vitals>,
    /// What the shards were told at the start.
    clock: WallClock,
    stopped: Receiver<StopSignal>,
    generated: Option<(GeneratedUser, Kept)>,
}

impl Server {
    /// Starts it; returns once every shard receives.
    pub fn start(options: ServeOptions) -> Result<Self, StartError> {
        let ServeOptions {
            config,
            directories,
            generated_user,
        } = options;
        for warning in &config.warnings {
            tracing::warn!(line = warning.excerpt.line_number, "{}", warning.kind);
        }
        let socket = control_socket(&directories)?;
        let observe = observe(&config)?;
        let host = Host::read().map_err(StartError::Host)?;
        let nonce_secret = kept::<32>(&directories, "nonce-secret");
        let generated = generated_user.map(|user| {
            let kept = user.keep(&directories);
            (user, kept)
        });
        let credential = generated
            .as_ref()
            .map(|(user, _)| user.credential(&config.relay.realm));
        let names = generated.as_ref().map(|(user, _)| user.name.as_str());
        let mut plan = Plan::new(
            &config,
            &host,
            nonce_secret,
            names.into_iter().zip(credential),
        )?;
        plan.engine.steering_key = kept::<16>(&directories, "steering-key");
        check_descriptors(&plan);
        let kernel = KernelPath::start(&config.kernel, &plan.relay)?;
        plan.offload(kernel.kernel.forwards(), config.kernel.max_routes);
        let limits = Arc::new(LimitKeeper::start(
            clock::now(),
            Arc::clone(&kernel.slots),
            config.limits.clone(),
            config.relay.realm.clone(),
            KeptFile::new(&directories.state),
        ));
        let clock = clock::wall_clock();
        let (engine, vitals) = start_engine(&plan, &config, kernel, clock)?;
        let (stop, stopped) = mpsc::sync_channel(1);
        let options = Options {
            vitals: Arc::clone(&vitals),
            limits,
            observe,
            socket,
            ring: config.relay.driver != DriverChoice::Epoll,
        };
        let control = Control::start(options, stop).map_err(StartError::Control)?;
        let server = Self {
            engine,
            control,
            vitals,
            clock,
            stopped,
            generated,
        };
        server.log_start();
        Ok(server)
    }

    /// The addresses listened on.
    pub fn listeners(&self) -> &[SocketAddr] {
        self.engine.listeners()
    }

    /// The user that was made up, and where it can be read.
    pub fn generated_user(&self) -> Option<&(GeneratedUser, Kept)> {
        self.generated.as_ref()
    }

    /// Waits for a signal to stop, then stops.
    pub fn run(self) -> Result<StopSignal, ShardEnded> {
        let mut own = OwnAddresses::new(Arc::clone(&self.vitals.relay), Instant::now());
        let mut clock = ClockFollower::new(self.clock, self.vitals.relay.shards);
        let signal = loop {
            if own.is_due(Instant::now()) {
                self.follow_addresses(&mut own);
            }
            clock.follow(clock::wall_clock(), |shard, event| self.tell(shard, event));
            match self.stopped.recv_timeout(WATCH_PERIOD) {
                Ok(signal) => break Ok(signal),
                Err(RecvTimeoutError::Disconnected) => break Err(ShardEnded),
                Err(RecvTimeoutError::Timeout) if self.engine.is_running() => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.vitals.shard_ended.store(true, Ordering::Relaxed);
                    break Err(ShardEnded);
                }
            }
        };
        self.stop();
        signal
    }

    fn follow_addresses(&self, own: &mut OwnAddresses) {
        match host::addresses() {
            Ok(addresses) => {
                self.vitals.kernel.follow(&self.vitals.relay, &addresses);
                own.follow(addresses, |shard, event| self.tell(shard, event));
            }
            // It is asked again soon; what the shards know stays in force.
            Err(error) => tracing::debug!(%error, "cannot read the addresses of this machine"),
        }
    }

    /// Whether the shard's mailbox took the event.
    fn tell(&self, shard: ShardId, event: RelayEvent) -> bool {
        let mailbox = self.engine.mailbox(shard);
        mailbox.is_none_or(|mailbox| mailbox.try_send(event).is_ok())
    }

    fn stop(self) {
        self.vitals.stopping.store(true, Ordering::Relaxed);
        self.engine.shutdown();
        // The control plane drains the last notices, and hears a second signal until here.
        drop(self.control);
        if let Some((_, kept)) = self.generated {
            kept.remove();
        }
        let vitals = &self.vitals;
        let Relayed {
            packets_to_peers,
            bytes_to_peers,
            packets_to_clients,
            bytes_to_clients,
        } = vitals.relayed();
        tracing::info!(
            uptime_s = vitals.uptime_s(),
            allocations_made = vitals.sum(|shard| shard.relay.allocations_made.value()),
            allocations_ended_by_stop = vitals.sum(|shard| shard.relay.allocations.value()),
            packets_to_peers,
            bytes_to_peers,
            packets_to_clients,
            bytes_to_clients,
            "stopped"
        );
    }

    fn log_start(&self) {
        let vitals = &self.vitals;
        for note in &vitals.notes {
            tracing::warn!("{note}");
        }
        for capability in &vitals.report.capabilities {
            if let Some(reason) = &capability.missing {
                let (missing, fallback) = (capability.name, capability.fallback);
                tracing::info!(missing, reason, fallback, "the kernel lacks something");
            }
        }
        tracing::info!(
            version = VERSION,
            listen = ?vitals.relay.listeners,
            relay_addresses = vitals.relay.relay_addresses.len(),
            ports = vitals.relayed_ports,
            realm = vitals.relay.realm,
            users = vitals.relay.users.len(),
            rest_secrets = vitals.relay.users.rest_secrets().len(),
            shards = vitals.shards.len(),
            driver = vitals.report.driver.name(),
            reason = vitals.report.reason,
            control = self.control.runtime(),
            "serving"
        );
    }
}

/// A control socket, or none where there is no place for one; another server is an error.
fn control_socket(directories: &Directories) -> Result<Option<ControlSocket>, StartError> {
    match ControlSocket::bind(directories) {
        Ok(socket) => Ok(Some(socket)),
        Err(error @ ControlSocketError::InUse { .. }) => Err(StartError::ControlSocket(error)),
        Err(error @ ControlSocketError::Io { .. }) => {
            tracing::warn!("{error}; `towpath status` will not work");
            Ok(None)
        }
    }
}

fn observe(config: &Config) -> Result<Option<TcpListener>, StartError> {
    let Some(listen) = &config.observe.listen else {
        return Ok(None);
    };
    let address = listen.value;
    match TcpListener::bind(address) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) => Err(StartError::Observe { address, error }),
    }
}

fn kept<const N: usize>(directories: &Directories, name: &str) -> [u8; N] {
    let KeptSecret { bytes, trouble } = KeptSecret::load(&directories.state, name);
    if let Some(trouble) = trouble {
        tracing::warn!("{trouble}; a new one is used until the next start");
    }
    bytes
}

/// A relayed port takes a descriptor.
fn check_descriptors(plan: &Plan) {
    let needed = plan.relayed_ports() + OTHER_DESCRIPTORS;
    match host::raise_descriptors() {
        Ok(descriptors) if descriptors.limit < needed => tracing::warn!(
            limit = descriptors.limit,
            needed,
            "fewer descriptors than relayed ports: raise the hard limit (ulimit -Hn, LimitNOFILE=)"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit on descriptors"),
    }
}

fn start_engine(
    plan: &Plan,
    config: &Config,
    kernel: KernelPath,
    clock: WallClock,
) -> Result<(Engine<Relay>, Arc<Vitals>), StartError> {
    let started = Instant::now();
    let shared = Arc::new(RelayShared::with_slots(
        &plan.relay,
        Arc::clone(&kernel.slots),
    ));
    let mut counters = Vec::new();
    let engine = Engine::start(plan.engine.clone(), |id| {
        let mut relay = Relay::new(
            Arc::clone(&plan.relay),
            Arc::clone(&shared),
            id,
            rand::random(),
        );
        relay.handle_event(clock::now(), RelayEvent::WallClock(clock));
        let notices = Arc::new(Notices::new());
        counters.push((id, relay.counters(), Arc::clone(&notices)));
        let offload = kernel.offload();
        (relay, shard::Host { notices, offload })
    })?;
    let shards = counters
        .into_iter()
        .map(|(id, relay, notices)| ShardVitals {
            relay,
            engine: engine
                .counters(id)
                .expect("every shard that was made is there"),
            notices,
        })
        .collect();
    let vitals = Vitals {
        started,
        started_at: SystemTime::now(),
        relay: Arc::clone(&plan.relay),
        shared,
        shards,
        driver: config.relay.driver,
        report: engine.report().clone(),
        relayed_ports: plan.relayed_ports(),
        kernel,
        notes: plan.notes.iter().map(ToString::to_string).collect(),
        stopping: AtomicBool::new(false),
        shard_ended: AtomicBool::new(false),
    };
    Ok((engine, Arc::new(vitals)))
}
