//! Starts everything in order, waits, and stops everything in order.
//!
//! ```text
//!   lock and sockets ─▶ plan ─▶ shards ─▶ control plane ─▶ (signal) ─▶ shards stop ─▶ control stops
//! ```

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant, SystemTime};

use towpath_engine::{Engine, StartError as EngineStartError};
use towpath_kernel::KernelError;
use towpath_proto::machine::ShardId;
use towpath_proto::relay::{Relay, RelayEvent, RelayShared};
use towpath_proto::{Machine as _, WallClock};

use crate::clock::{self, ClockFollower};
use crate::config::{Config, ConfigSource, DriverChoice, Sections};
use crate::control::orders::{self, Order};
use crate::control::socket::{ControlSocket, ControlSocketError};
use crate::control::{Control, Options, StopSignal};
use crate::directories::{Directories, KeptSecret};
use crate::drain::Drain;
use crate::generated::{GeneratedUser, Kept};
use crate::host::{self, Host};
use crate::kernel_path::KernelPath;
use crate::limits::{KeptFile, LimitKeeper};
use crate::plan::{Note, Plan, PlanError};
use crate::reload::{self, Reloader};
use crate::shard::{self, Notices};
use crate::shard_config::ShardConfig;
use crate::vitals::{InForce, Relayed, ShardVitals, VERSION, Vitals};

/// Descriptors that are not relayed ports: listeners, rings, sockets of the control plane.
const OTHER_DESCRIPTORS: u64 = 256;
/// How often a waiting server looks whether its shards still run.
const WATCH_PERIOD: Duration = Duration::from_millis(250);

/// What a server is started with.
#[derive(Debug)]
pub struct ServeOptions {
    /// The configuration.
    pub config: Config,
    /// Where it is from, and read again.
    pub source: ConfigSource,
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

/// Why a server ended in good order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// A signal asked for it.
    Signal(StopSignal),
    /// It drained, and the last allocation has ended.
    Drained,
}

/// A running server.
pub struct Server {
    engine: Engine<Relay>,
    control: Control,
    vitals: Arc<Vitals>,
    reloader: Reloader,
    shard_config: ShardConfig,
    clock: ClockFollower,
    drain: Option<Drain>,
    orders: Receiver<Order>,
    generated: Option<(GeneratedUser, Kept)>,
}

impl Server {
    /// Starts it; returns once every shard receives.
    pub fn start(options: ServeOptions) -> Result<Self, StartError> {
        let ServeOptions {
            config,
            source,
            directories,
            generated_user,
        } = options;
        orders::hold_signals();
        reload::log_warnings(&config);
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
        let (order, orders) = mpsc::sync_channel(orders::MAX_WAITING);
        let options = Options {
            vitals: Arc::clone(&vitals),
            limits: Arc::clone(&limits),
            observe,
            socket,
            ring: config.relay.driver != DriverChoice::Epoll,
        };
        let control = Control::start(options, order).map_err(StartError::Control)?;
        plan.notes.retain(|note| *note != Note::NoUsers);
        let server = Self {
            engine,
            control,
            shard_config: ShardConfig::new(Arc::clone(&plan.relay), Instant::now()),
            clock: ClockFollower::new(clock, plan.relay.shards),
            drain: None,
            reloader: Reloader {
                source,
                sections: Sections::from(config),
                limits,
                vitals: Arc::clone(&vitals),
                notes: plan.notes,
            },
            vitals,
            orders,
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

    /// Does what it is asked for until it is to end, then stops.
    pub fn run(mut self) -> Result<End, ShardEnded> {
        let end = loop {
            if self.shard_config.is_due(Instant::now()) {
                self.follow_addresses();
            }
            self.tell_shards();
            if self.has_drained() {
                tracing::info!("drained: the last allocation has ended");
                break Ok(End::Drained);
            }
            match self.orders.recv_timeout(WATCH_PERIOD) {
                Ok(Order::Stop(signal)) => break Ok(End::Signal(signal)),
                // A server for trying ends with the terminal it was started on.
                Ok(Order::Reload(None)) if self.generated.is_some() => {
                    let signal = StopSignal::Hangup;
                    tracing::info!(signal = signal.name(), "stopping");
                    break Ok(End::Signal(signal));
                }
                Ok(Order::Reload(reply)) => {
                    let generated = self.generated.as_ref().map(|(user, _)| user);
                    let outcome = self.reloader.reload(&mut self.shard_config, generated);
                    self.tell_shards();
                    if let Some(reply) = reply {
                        // Who asked may have gone.
                        let _ = reply.send(outcome.map_err(|error| error.to_string()));
                    }
                }
                Ok(Order::Drain) => self.begin_to_drain(),
                Err(RecvTimeoutError::Disconnected) => break Err(ShardEnded),
                Err(RecvTimeoutError::Timeout) if self.engine.is_running() => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.vitals.shard_ended.store(true, Ordering::Relaxed);
                    break Err(ShardEnded);
                }
            }
        };
        self.stop();
        end
    }

    fn follow_addresses(&mut self) {
        match host::addresses() {
            Ok(addresses) => {
                let relay = self.shard_config.relay();
                self.vitals.kernel.follow(relay, &addresses);
                self.shard_config.follow(addresses);
            }
            // It is asked again soon; what the shards know stays in force.
            Err(error) => tracing::debug!(%error, "cannot read the addresses of this machine"),
        }
    }

    /// Tells the shards what they do not know yet.
    fn tell_shards(&mut self) {
        let engine = &self.engine;
        // Whether the shard's mailbox took the event.
        let tell = |shard: ShardId, event: RelayEvent| {
            let mailbox = engine.mailbox(shard);
            mailbox.is_none_or(|mailbox| mailbox.try_send(event).is_ok())
        };
        self.clock.follow(clock::wall_clock(), tell);
        self.shard_config.tell(tell);
        if let Some(drain) = &mut self.drain {
            drain.tell(tell);
        }
    }

    fn begin_to_drain(&mut self) {
        let allocations = self.vitals.allocations();
        let relay = self.shard_config.relay();
        if self.drain.is_some() {
            tracing::info!(allocations, "draining already");
            return;
        }
        self.drain = Some(Drain::new(relay.shards));
        self.vitals.draining.store(true, Ordering::Relaxed);
        tracing::info!(
            allocations,
            alternate_servers = relay.alternate_servers.len(),
            "draining: new allocations are refused, and the server ends with the last one"
        );
    }

    fn has_drained(&mut self) -> bool {
        let Some(drain) = &mut self.drain else {
            return false;
        };
        let mut shards = self.vitals.shards.iter();
        let all_drain = shards.all(|shard| shard.relay.draining.value() != 0);
        drain.is_over(all_drain, self.vitals.allocations())
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
            allocations_ended_by_stop = vitals.allocations(),
            packets_to_peers,
            bytes_to_peers,
            packets_to_clients,
            bytes_to_clients,
            "stopped"
        );
    }

    fn log_start(&self) {
        let vitals = &self.vitals;
        let InForce { relay, notes } = vitals.in_force();
        for note in &notes {
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
            listen = ?relay.listeners,
            relay_addresses = relay.relay_addresses.len(),
            ports = vitals.relayed_ports,
            realm = relay.realm,
            users = relay.users.len(),
            rest_secrets = relay.users.rest_secrets().len(),
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
        in_force: RwLock::new(InForce {
            relay: Arc::clone(&plan.relay),
            notes: plan.notes.iter().map(ToString::to_string).collect(),
        }),
        shared,
        shards,
        driver: config.relay.driver,
        report: engine.report().clone(),
        relayed_ports: plan.relayed_ports(),
        kernel,
        draining: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
        shard_ended: AtomicBool::new(false),
    };
    Ok((engine, Arc::new(vitals)))
}
