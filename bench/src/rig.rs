//! Three network namespaces in a row: client, relay, peer.
//!
//! ```text
//!   client ns            relay ns             peer ns
//!   10.77.1.2 ── veth ── 10.77.1.11 …
//!                        10.77.2.11 … ─ veth ─ 10.77.2.2
//!   CPU 0                CPU 1                CPU 0
//! ```
//!
//! Clients and peers are packet sockets only: their addresses are not configured, so that no stack but
//! the relay's ever answers anything.
//!
//! The NAPI of every end runs in a thread of its own, so that the kernel's work can be put on a CPU and
//! counted. Everything is removed when the rig is dropped.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cpu::{self, Task};
use crate::packet::Mac;
use crate::sys::{self, Scheduling};

/// CPU of generators, sinks and control.
pub const BENCH_CPU: usize = 0;
/// CPU of the server under test and of the kernel work done for it.
pub const SERVER_CPU: usize = 1;
/// The server's threads and the NAPI threads of its interfaces run at the same nice value: neither
/// starves the other, and stray tasks of the machine hardly disturb them.
pub const SERVER_NICE: i32 = -20;

/// A NAPI thread that wakes up gets its turn soon, like a soft interrupt; in the long run it gets no
/// more than its share, like ksoftirqd.
const NAPI_SLICE_NS: u64 = 100_000;
const SINK_PRIORITY: u32 = 50;
const NAMESPACE_DIRECTORY: &str = "/run/netns";
const NAMESPACE_PREFIX: &str = "tp-bench-";

/// A network namespace that lasts as long as this value.
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    fn create(number: usize, role: &str) -> Result<Self> {
        let name = format!("{NAMESPACE_PREFIX}{}-{number}-{role}", std::process::id());
        run("ip", &["netns", "add", &name])?;
        let path = Path::new(NAMESPACE_DIRECTORY).join(&name);
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()));
        let namespace = match file {
            Ok(file) => Self { name, file },
            Err(error) => {
                remove_namespace(&name);
                return Err(error);
            }
        };
        namespace.ip(&["link", "set", "lo", "up"])?;
        namespace.shell("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")?;
        Ok(namespace)
    }

    /// The namespace's handle.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs a function inside the namespace, on this thread.
    pub fn enter<T>(&self, action: impl FnOnce() -> T) -> Result<T> {
        let home = File::open("/proc/thread-self/ns/net").context("opening the own namespace")?;
        sys::enter_network_namespace(&self.file).context("entering a namespace")?;
        let result = action();
        sys::enter_network_namespace(&home).context("leaving a namespace")?;
        Ok(result)
    }

    /// Reads a file below `/proc/net` as it is inside the namespace.
    pub fn read_proc_net(&self, file: &str) -> Result<String> {
        let path = format!("/proc/thread-self/net/{file}");
        self.enter(|| fs::read_to_string(&path))?
            .with_context(|| format!("reading {path}"))
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        let mut all = vec!["-n", &self.name];
        all.extend_from_slice(arguments);
        run("ip", &all)
    }

    fn shell(&self, script: &str) -> Result<()> {
        run("ip", &["netns", "exec", &self.name, "sh", "-ec", script])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove_namespace(&self.name);
    }
}

/// One end of a link.
#[derive(Clone, Debug)]
pub struct LinkEnd {
    /// The interface's name.
    pub interface: String,
    /// The interface's number in its namespace.
    pub index: u32,
    /// Its link address.
    pub mac: Mac,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
}

/// Servers that fit into the rig at a time.
pub const MAX_SERVERS: u8 = 8;

/// The addresses of a server: towards its clients, and towards their peers.
pub fn server_addresses(server: u8) -> (Ipv4Addr, Ipv4Addr) {
    assert!(server < MAX_SERVERS, "a server number below {MAX_SERVERS}");
    (
        Ipv4Addr::new(10, 77, 1, 11 + server),
        Ipv4Addr::new(10, 77, 2, 11 + server),
    )
}

/// How often the kernel looks at an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moderation {
    /// Each arrival wakes the NAPI thread.
    Off,
    /// A timer does, every this many microseconds, as a network card's coalescing does.
    Microseconds(u32),
}

/// The namespaces, their links, and the NAPI threads behind them.
pub struct Rig {
    /// Where clients are.
    pub client: Namespace,
    /// Where the servers run.
    pub relay: Namespace,
    /// Where peers are.
    pub peer: Namespace,
    /// The client's end of its link.
    pub client_end: LinkEnd,
    /// The relay's end of the client's link.
    pub relay_client_end: LinkEnd,
    /// The relay's end of the peer's link.
    pub relay_peer_end: LinkEnd,
    /// The peer's end of its link.
    pub peer_end: LinkEnd,
    kernel_threads: Vec<Task>,
}

impl Rig {
    /// Builds namespaces and links, after removing those that ended processes left behind. `number`, of
    /// one digit, tells the rigs of a process apart.
    pub fn build(number: usize) -> Result<Self> {
        assert!(number < 10, "the names of interfaces are short");
        remove_leftovers()?;
        let client = Namespace::create(number, "client")?;
        let relay = Namespace::create(number, "relay")?;
        let peer = Namespace::create(number, "peer")?;
        let tag = format!("tb{}{number}", std::process::id());
        let (client_end, relay_client_end) = link(&tag, "c", 1, (&client, 2), (&relay, 1))?;
        let (peer_end, relay_peer_end) = link(&tag, "p", 2, (&peer, 2), (&relay, 1))?;
        for server in 0..MAX_SERVERS {
            let (listen, relayed) = server_addresses(server);
            for (address, end) in [(listen, &relay_client_end), (relayed, &relay_peer_end)] {
                relay.ip(&[
                    "address",
                    "add",
                    &format!("{address}/24"),
                    "dev",
                    &end.interface,
                ])?;
            }
        }
        Ok(Self {
            client,
            relay,
            peer,
            client_end,
            relay_client_end,
            relay_peer_end,
            peer_end,
            kernel_threads: Vec::new(),
        })
    }

    /// Puts NAPI into threads and on its CPUs. Comes after programs are attached: attaching the first
    /// one makes NAPI anew.
    pub fn thread_napi(&mut self) -> Result<()> {
        let mut kernel_threads = cpu::kernel_threads(&format!("ksoftirqd/{SERVER_CPU}"))?;
        for (namespace, end, cpu) in self.ends() {
            let name = &end.interface;
            namespace.shell(&format!("echo 1 > /sys/class/net/{name}/threaded"))?;
            let scheduling = if cpu == SERVER_CPU {
                Scheduling::Fair {
                    nice: SERVER_NICE,
                    slice_ns: NAPI_SLICE_NS,
                }
            } else {
                Scheduling::Fifo(SINK_PRIORITY)
            };
            for task in napi_threads(name)? {
                sys::pin_to_cpu(task.tid, cpu).context("pinning a NAPI thread")?;
                sys::schedule(task.tid, scheduling).context("scheduling a NAPI thread")?;
                if cpu == SERVER_CPU {
                    kernel_threads.push(task);
                }
            }
        }
        self.kernel_threads = kernel_threads;
        Ok(())
    }

    /// Sets how often the kernel looks at the relay's interfaces, and at those of the sinks.
    pub fn moderate(&self, relay: Moderation, sinks: Moderation) -> Result<()> {
        for (namespace, end, cpu) in self.ends() {
            let moderation = if cpu == SERVER_CPU { relay } else { sinks };
            let (timeout_ns, deferrals) = match moderation {
                Moderation::Off => (0, 0),
                Moderation::Microseconds(us) => (us * 1000, 1_000_000),
            };
            let directory = format!("/sys/class/net/{}", end.interface);
            namespace.shell(&format!(
                "echo {timeout_ns} > {directory}/gro_flush_timeout; \
                 echo {deferrals} > {directory}/napi_defer_hard_irqs"
            ))?;
        }
        Ok(())
    }

    /// Threads that do the kernel's work for the server: the NAPI of the relay's interfaces, and what
    /// soft interrupts of the server's CPU are left to.
    pub fn kernel_threads(&self) -> &[Task] {
        &self.kernel_threads
    }

    fn ends(&self) -> [(&Namespace, &LinkEnd, usize); 4] {
        [
            (&self.client, &self.client_end, BENCH_CPU),
            (&self.peer, &self.peer_end, BENCH_CPU),
            (&self.relay, &self.relay_client_end, SERVER_CPU),
            (&self.relay, &self.relay_peer_end, SERVER_CPU),
        ]
    }
}

fn link(
    tag: &str,
    role: &str,
    subnet: u8,
    outer: (&Namespace, u8),
    relay: (&Namespace, u8),
) -> Result<(LinkEnd, LinkEnd)> {
    let end = |side: &str, host: u8| LinkEnd {
        interface: format!("{tag}{side}{role}"),
        index: 0,
        mac: [2, 0x77, 0, 0, subnet, host],
        address: Ipv4Addr::new(10, 77, subnet, host),
    };
    let (mut outer_end, mut relay_end) = (end("e", outer.1), end("r", relay.1));
    outer.0.ip(&[
        "link",
        "add",
        &outer_end.interface,
        "address",
        &mac_text(outer_end.mac),
        "mtu",
        "1500",
        "numrxqueues",
        "1",
        "numtxqueues",
        "1",
        "type",
        "veth",
        "peer",
        "name",
        &relay_end.interface,
        "address",
        &mac_text(relay_end.mac),
        "mtu",
        "1500",
        "numrxqueues",
        "1",
        "numtxqueues",
        "1",
        "netns",
        &relay.0.name,
    ])?;
    let (outer_far, relay_far) = (relay_end.clone(), outer_end.clone());
    configure(outer.0, &mut outer_end, &outer_far)?;
    configure(relay.0, &mut relay_end, &relay_far)?;
    Ok((outer_end, relay_end))
}

fn configure(namespace: &Namespace, near: &mut LinkEnd, far: &LinkEnd) -> Result<()> {
    let name = near.interface.clone();
    namespace.ip(&[
        "address",
        "add",
        &format!("{}/24", near.address),
        "dev",
        &name,
    ])?;
    namespace.ip(&["link", "set", &name, "up"])?;
    let (address, mac) = (far.address.to_string(), mac_text(far.mac));
    namespace.ip(&[
        "neighbour",
        "add",
        &address,
        "lladdr",
        &mac,
        "dev",
        &name,
        "nud",
        "permanent",
    ])?;
    // A link without XDP takes the way through NAPI only with GRO at the receiving end and without TCP
    // segmentation at the sending one.
    namespace.shell(&format!("ethtool -K {name} gro on tso off"))?;
    near.index = namespace.enter(|| sys::interface_index(&name))??;
    Ok(())
}

fn napi_threads(interface: &str) -> Result<Vec<Task>> {
    let tasks = cpu::kernel_threads(&format!("napi/{interface}-"))?;
    if tasks.is_empty() {
        bail!("interface {interface} has no NAPI thread");
    }
    Ok(tasks)
}

fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), error.trim());
    }
    Ok(())
}

fn remove_namespace(name: &str) {
    if let Err(error) = run("ip", &["netns", "del", name]) {
        eprintln!("could not remove namespace {name}: {error}");
    }
}

/// Removes namespaces of bench processes that were killed.
fn remove_leftovers() -> Result<()> {
    let Ok(entries) = fs::read_dir(NAMESPACE_DIRECTORY) else {
        return Ok(());
    };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(NAMESPACE_PREFIX) else {
            continue;
        };
        let Some((pid, _)) = rest.split_once('-') else {
            continue;
        };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            remove_namespace(&name);
        }
    }
    Ok(())
}
