//! Memory of idle allocations, the process's and the kernel's, and whether packets cost more with many.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::control::{CLIENT_PORT, Clients};
use crate::load::{Cell, Direction, Load, Sinks};
use crate::results::{MemoryPoint, Scale};
use crate::rig::Rig;
use crate::server::Server;
use crate::usage::Usage;

/// Numbers of allocations that memory is read at.
pub const STEPS: [usize; 6] = [1, 1000, 2000, 4000, 8000, 15_000];

const SETTLE: Duration = Duration::from_millis(300);

/// A memory control group for one server: the kernel's own account of what it holds for it.
pub struct MemoryGroup {
    directory: PathBuf,
    counter: &'static str,
}

impl MemoryGroup {
    /// Makes a group and puts the server into it; `None` where the kernel offers none.
    pub fn around(server: &Server) -> Option<Self> {
        let name = format!("tp-bench-{}-{}", std::process::id(), server.name);
        let old = ("/sys/fs/cgroup/memory", "memory.kmem.usage_in_bytes");
        let new = ("/sys/fs/cgroup", "memory.stat");
        for (root, counter) in [old, new] {
            let directory = Path::new(root).join(&name);
            if !Path::new(root).join("cgroup.procs").exists() || fs::create_dir(&directory).is_err()
            {
                continue;
            }
            let group = Self { directory, counter };
            let joined = fs::write(
                group.directory.join("cgroup.procs"),
                server.pid()?.to_string(),
            );
            if joined.is_ok() && group.kernel_bytes().is_ok() {
                return Some(group);
            }
        }
        None
    }

    fn kernel_bytes(&self) -> Result<u64> {
        let path = self.directory.join(self.counter);
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let line = match self.counter {
            "memory.stat" => text.lines().find_map(|line| line.strip_prefix("kernel ")),
            _ => text.lines().next(),
        };
        let number = line.and_then(|line| line.trim().parse().ok());
        number.with_context(|| format!("{} has no kernel memory", path.display()))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A group is removed once the processes in it are gone; those still there move up first.
        let processes = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        if let Some(parent) = self.directory.parent() {
            for pid in processes.lines() {
                let _ = fs::write(parent.join("cgroup.procs"), pid);
            }
        }
        if let Err(error) = fs::remove_dir(&self.directory) {
            eprintln!("could not remove {}: {error}", self.directory.display());
        }
    }
}

fn slab_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Slab:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes
        .map(|kilobytes| kilobytes * 1024)
        .context("/proc/meminfo has no Slab")
}

fn process_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes
        .map(|kilobytes| kilobytes * 1024)
        .with_context(|| format!("{path} has no Pss"))
}

/// How packets are measured while allocations are held.
#[derive(Clone, Copy, Debug)]
pub struct PacketProbe {
    /// Packets per second.
    pub rate_pps: f64,
    /// Length of a round.
    pub duration: Duration,
    /// Clump distance.
    pub quantum: Duration,
    /// Rounds.
    pub rounds: usize,
}

/// Fills a fresh server step by step. The server should do nothing else meanwhile.
pub fn measure(rig: &Rig, sinks: &Sinks, server: &mut Server, probe: PacketProbe) -> Result<Scale> {
    let group = MemoryGroup::around(server);
    let mut scale = Scale {
        kernel_source: match &group {
            Some(group) => format!("memory control group, {}", group.counter),
            None => "Slab of the whole machine".to_owned(),
        },
        ..Scale::default()
    };
    let kernel_bytes = || {
        group
            .as_ref()
            .map_or_else(slab_bytes, MemoryGroup::kernel_bytes)
    };
    let mut clients = Clients::new(rig, server.address, CLIENT_PORT)?;
    let mut point = |server: &Server, allocations, make_us| -> Result<()> {
        thread::sleep(SETTLE);
        scale.points.push(MemoryPoint {
            allocations,
            process_bytes: process_bytes(server.pid().context("no process to measure")?)?,
            kernel_bytes: kernel_bytes()?,
            make_us,
        });
        Ok(())
    };
    point(server, 0, 0.0)?;
    let mut held = 0;
    for count in STEPS {
        let before = Usage::take(rig, server)?;
        clients
            .allocate(count)
            .with_context(|| format!("{count} allocations on {}", server.name))?;
        let spent = Usage::take(rig, server)?.since(&before);
        point(
            server,
            count,
            spent.total_ns() as f64 / 1000.0 / (count - held) as f64,
        )?;
        held = count;
    }
    scale.packet_ns_many = packet_costs(rig, sinks, server, &mut clients, probe)?;
    Ok(scale)
}

/// What a packet costs a fresh server that holds nothing else.
pub fn packet_costs_alone(
    rig: &Rig,
    sinks: &Sinks,
    server: &mut Server,
    probe: PacketProbe,
) -> Result<Vec<f64>> {
    let mut clients = Clients::new(rig, server.address, CLIENT_PORT)?;
    packet_costs(rig, sinks, server, &mut clients, probe)
}

/// CPU nanoseconds per packet over 16 flows, both ways.
fn packet_costs(
    rig: &Rig,
    sinks: &Sinks,
    server: &mut Server,
    clients: &mut Clients,
    probe: PacketProbe,
) -> Result<Vec<f64>> {
    const FLOWS: usize = 16;
    let cell = Cell {
        payload_bytes: 172,
        direction: Direction::Both,
        flows: FLOWS,
        burst: 1,
    };
    let flows = clients.flows(rig.peer_end.address, FLOWS)?;
    let mut load = Load::over(rig, server, cell, &flows)?;
    let mut costs = Vec::new();
    // The first round warms up.
    for number in 0..=probe.rounds {
        let (rate, duration) = (probe.rate_pps, probe.duration);
        let (round, _) = load.measure(rig, sinks, server, rate, duration, probe.quantum)?;
        if number > 0 {
            costs.push(round.spent.total_ns() as f64 / round.received.max(1) as f64);
        }
    }
    Ok(costs)
}
