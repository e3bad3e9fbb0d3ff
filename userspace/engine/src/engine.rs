//! Starts shards and ends them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use towpath_proto::Machine;
use towpath_proto::machine::ShardId;

use crate::Ports;
use crate::backlog::Backlog;
use crate::buffers::Buffers;
use crate::config::{EngineConfig, MAX_LISTENERS, MAX_PORTS_PER_SHARD, MAX_SHARDS};
use crate::counters::EngineCounters;
use crate::epoll::Epoll;
use crate::governor::RunMeter;
use crate::icmp::Troubles;
use crate::mailbox::{Bell, Mailbox};
use crate::outbox::Outbox;
use crate::probe::{DriverInUse, Report, probe};
use crate::shard::{Neighbour, Shard, monotonic};
use crate::socket::open_listener;
use crate::sockets::Sockets;
use crate::steering::Steering;
use crate::uring::Uring;

/// Buffers lent to a machine for what it builds itself, in each shard.
const OWN_BUFFERS: u16 = 512;

/// Messages of several parts in flight, in each shard.
const RUN_BLOCKS: u16 = 512;

/// Tries to bind a listening address that is in use.
const LISTEN_TRIES: u32 = 25;

/// The time between two tries.
const LISTEN_PAUSE: Duration = Duration::from_millis(20);

/// Runs the commands of a machine that need more than the engine knows.
pub trait Host<M: Machine>: 'static {
    /// Runs `command`, opening and closing relayed ports through `ports`. The event returned goes to
    /// the machine at once.
    fn execute(&mut self, command: M::Command, ports: &mut dyn Ports) -> Option<M::Event>;
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting breaks a rule.
    #[error("{0}")]
    Config(&'static str),
    /// A listening address cannot be bound.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// io_uring was asked for and is not to be had.
    #[error("io_uring is not available: {reason}")]
    NoIoUring {
        /// Why.
        reason: String,
    },
    /// A shard could not be set up.
    #[error("cannot start shard {}: {error}", shard.0)]
    Shard {
        /// The shard.
        shard: ShardId,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Running shards. Dropping it ends them as [`Engine::shutdown`] does.
pub struct Engine<M: Machine> {
    shards: Vec<Running<M::Event>>,
    listeners: Vec<SocketAddr>,
    steering: Steering,
    report: Report,
}

struct Running<E> {
    mailbox: Mailbox<E>,
    bell: Arc<Bell>,
    counters: Arc<EngineCounters>,
    thread: Option<JoinHandle<()>>,
}

impl<M> Engine<M>
where
    M: Machine + Send + 'static,
    M::Event: Send,
{
    /// Binds the listeners and starts a thread per shard, with the machine and host `make` returns
    /// for it. Returns once every shard receives.
    pub fn start<H: Host<M> + Send>(
        config: EngineConfig,
        mut make: impl FnMut(ShardId) -> (M, H),
    ) -> Result<Self, StartError> {
        let shards = checked_shards(&config)?;
        raise_descriptor_limit();
        let mut report = probe(&config)?;
        let steering = Steering::new(config.steering_key, shards, config.steering);
        let (sockets, listeners) = listen(&config, steering, shards, &mut report)?;
        let mut bells = Vec::new();
        for shard in 0..shards {
            let bell = Bell::new();
            let error = |error| StartError::Shard {
                shard: ShardId(shard),
                error,
            };
            bells.push(Arc::new(bell.map_err(error)?));
        }
        let neighbours: Arc<[Neighbour]> = bells
            .iter()
            .map(|bell| Neighbour::new(Arc::clone(bell)))
            .collect();
        let mut engine = Self {
            shards: Vec::new(),
            listeners,
            steering,
            report,
        };
        let (ready, started) = mpsc::channel();
        for (index, (own, bell)) in sockets.into_iter().zip(bells).enumerate() {
            let id = ShardId(index as u16);
            let (machine, host) = make(id);
            let counters = Arc::new(EngineCounters::default());
            let mailbox = Mailbox::new(config.mailbox_messages, Arc::clone(&bell));
            let mut table = Sockets::new(
                config.max_ports_per_shard,
                config.relayed_receive_bytes,
                Arc::clone(&counters),
            );
            for (socket, &local) in own.into_iter().zip(&engine.listeners) {
                table.add_listener(socket, local, config.listener_dont_fragment);
            }
            let parts = Parts {
                id,
                machine,
                host,
                sockets: table,
                mailbox: mailbox.clone(),
                bell: Arc::clone(&bell),
                neighbours: Arc::clone(&neighbours),
                steering,
                counters: Arc::clone(&counters),
                config: EngineConfig {
                    gro: engine.report.has("gro"),
                    gso: engine.report.has("gso"),
                    ..config.clone()
                },
                driver: engine.report.driver,
            };
            let ready = ready.clone();
            let thread = std::thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || parts.run(&ready))
                .map_err(|error| StartError::Shard { shard: id, error })?;
            engine.shards.push(Running {
                mailbox,
                bell,
                counters,
                thread: Some(thread),
            });
        }
        drop(ready);
        engine.await_start(&started)?;
        Ok(engine)
    }

    fn await_start(
        &mut self,
        started: &mpsc::Receiver<(ShardId, io::Result<()>)>,
    ) -> Result<(), StartError> {
        for _ in 0..self.shards.len() {
            let Ok((shard, result)) = started.recv() else {
                let error = io::Error::other("the shard's thread ended");
                return Err(StartError::Shard {
                    shard: ShardId(0),
                    error,
                });
            };
            result.map_err(|error| StartError::Shard { shard, error })?;
        }
        Ok(())
    }
}

impl<M: Machine> Engine<M> {
    /// Number of shards.
    pub fn shards(&self) -> u16 {
        self.shards.len() as u16
    }

    /// The addresses listened on, in the order of the configuration, with the ports in use.
    pub fn listeners(&self) -> &[SocketAddr] {
        &self.listeners
    }

    /// Which shard serves which client.
    pub fn steering(&self) -> Steering {
        self.steering
    }

    /// The way into a shard for events; `None` where there is no such shard.
    pub fn mailbox(&self, shard: ShardId) -> Option<Mailbox<M::Event>> {
        Some(self.shards.get(usize::from(shard.0))?.mailbox.clone())
    }

    /// What a shard counted; `None` where there is no such shard.
    pub fn counters(&self, shard: ShardId) -> Option<Arc<EngineCounters>> {
        Some(Arc::clone(&self.shards.get(usize::from(shard.0))?.counters))
    }

    /// The driver in use, and what the kernel can do.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Whether every shard still runs. A shard ends before its time only by a defect of its machine.
    pub fn is_running(&self) -> bool {
        self.shards.iter().all(|shard| {
            shard
                .thread
                .as_ref()
                .is_some_and(|thread| !thread.is_finished())
        })
    }

    /// Ends all shards, closes their sockets and waits for their threads.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl<M: Machine> Drop for Engine<M> {
    fn drop(&mut self) {
        for shard in &self.shards {
            shard.bell.stop();
        }
        for shard in &mut self.shards {
            if let Some(thread) = shard.thread.take() {
                // A panic of the shard was reported by the panic hook already.
                let _ = thread.join();
            }
        }
    }
}

impl<M: Machine> std::fmt::Debug for Engine<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("listeners", &self.listeners)
            .field("shards", &self.shards.len())
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

/// What goes to a shard's thread; what must not leave that thread is made there.
struct Parts<M: Machine, H> {
    id: ShardId,
    machine: M,
    host: H,
    sockets: Sockets,
    mailbox: Mailbox<M::Event>,
    bell: Arc<Bell>,
    neighbours: Arc<[Neighbour]>,
    steering: Steering,
    counters: Arc<EngineCounters>,
    config: EngineConfig,
    driver: DriverInUse,
}

impl<M: Machine, H: Host<M>> Parts<M, H> {
    fn run(self, ready: &mpsc::Sender<(ShardId, io::Result<()>)>) {
        let (id, driver) = (self.id, self.driver);
        // Where another shard failed, the starter is gone, and has asked this one to stop.
        let tell = |result| drop(ready.send((id, result)));
        let shard = match self.into_shard() {
            Ok(shard) => shard,
            Err(error) => return tell(Err(error)),
        };
        match driver {
            DriverInUse::IoUring => match Uring::new(shard) {
                Ok(uring) => {
                    tell(Ok(()));
                    uring.run();
                }
                Err(error) => tell(Err(error)),
            },
            DriverInUse::Epoll => match Epoll::new(shard) {
                Ok(epoll) => {
                    tell(Ok(()));
                    epoll.run();
                }
                Err(error) => tell(Err(error)),
            },
        }
    }

    fn into_shard(self) -> io::Result<Shard<M, H>> {
        let config = &self.config;
        let small = config.small_buffers.next_power_of_two();
        let big = config.big_buffers.next_power_of_two();
        // Every buffer can be the start of a message, and every datagram of a big one.
        let slots = (usize::from(small) + usize::from(OWN_BUFFERS) + usize::from(big) * 64)
            .min(usize::from(u16::MAX) - 1);
        Ok(Shard {
            outbox: Outbox::new(slots as u16, RUN_BLOCKS, config.gso),
            buffers: Buffers::new(small, big, OWN_BUFFERS)?,
            id: self.id,
            machine: self.machine,
            host: self.host,
            sockets: self.sockets,
            mailbox: self.mailbox,
            bell: self.bell,
            neighbours: self.neighbours,
            steering: self.steering,
            counters: self.counters,
            now: monotonic(),
            gro: config.gro,
            meter: RunMeter::default(),
            backlog: Backlog::new(),
            troubles: Troubles::new(),
            rests: 0,
            limited_from: None,
        })
    }
}

/// Checks the settings and says how many shards they mean.
fn checked_shards(config: &EngineConfig) -> Result<u16, StartError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let shards = match config.shards {
        0 => u16::try_from(cores).unwrap_or(MAX_SHARDS).min(MAX_SHARDS),
        shards => shards,
    };
    if shards > MAX_SHARDS {
        return Err(StartError::Config("there are at most 256 shards"));
    }
    if config.listeners.len() > MAX_LISTENERS {
        return Err(StartError::Config(
            "there are at most 64 listening addresses",
        ));
    }
    if config.max_ports_per_shard > MAX_PORTS_PER_SHARD {
        return Err(StartError::Config(
            "there are at most 1048576 relayed ports per shard",
        ));
    }
    if !config.steering.is_short() {
        return Err(StartError::Config(
            "there are at most 16 marks of shards, with 64 tests each",
        ));
    }
    if !(8..=16_384).contains(&config.small_buffers) {
        return Err(StartError::Config("small_buffers is from 8 to 16384"));
    }
    if !(2..=512).contains(&config.big_buffers) {
        return Err(StartError::Config("big_buffers is from 2 to 512"));
    }
    Ok(shards)
}

/// Binds every listener once per shard. Returns the sockets of each shard and the addresses bound.
fn listen(
    config: &EngineConfig,
    steering: Steering,
    shards: u16,
    report: &mut Report,
) -> Result<(Vec<Vec<OwnedFd>>, Vec<SocketAddr>), StartError> {
    let mut sockets: Vec<Vec<OwnedFd>> = (0..shards).map(|_| Vec::new()).collect();
    let mut bound = Vec::new();
    for &configured in &config.listeners {
        let mut address = configured;
        for (index, of_shard) in sockets.iter_mut().enumerate() {
            let failed = |error| StartError::Listen {
                address: configured,
                error,
            };
            let open = || {
                let bytes = config.listener_receive_bytes;
                open_listener(address, index > 0, bytes, config.listener_dont_fragment)
            };
            let socket = patiently(open).map_err(failed)?;
            if index == 0 {
                let local = socket.local_addr().map_err(failed)?.as_socket();
                address = local.unwrap_or(address);
                bound.push(address);
                socket.set_reuse_port(shards > 1).map_err(failed)?;
            } else if index == 1 {
                // The second one makes them a group.
                report.steering(steering.attach(socket.as_raw_fd(), address.is_ipv6()));
            }
            of_shard.push(socket.into());
        }
    }
    Ok((sockets, bound))
}

/// Tries again for a while where an address is in use: the kernel lets go of the sockets of a killed
/// process's rings some time after its end.
fn patiently<T>(mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..LISTEN_TRIES {
        match open() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                std::thread::sleep(LISTEN_PAUSE)
            }
            other => return other,
        }
    }
    open()
}

/// A relayed port takes a descriptor, so the soft limit goes as far up as it may.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a limit that outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the pointer is to a limit that outlives the call. Where it fails, the old limit
        // stays, and ports beyond it are refused and counted.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}
