//! Everything a run found out, as it is written to JSON.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cpu;
use crate::load::{Cell, Direction, Round};
use crate::programs::Programs;
use crate::search::Highest;
use crate::statistics::{self, Summary};
use crate::usage::Spent;

/// Where a run took place, and with what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setting {
    /// Model of the CPU.
    pub cpu: String,
    /// Number of CPUs.
    pub cpus: usize,
    /// Release of the kernel.
    pub kernel: String,
    /// Commit of the source; ends in "+" where files were changed since.
    pub commit: String,
    /// Seconds since 1970 at the start.
    pub started: u64,
    /// How long the run took, in seconds.
    pub seconds: u64,
    /// Rounds counted per cell and server.
    pub pairs: usize,
    /// Whether this was a short run for development.
    pub quick: bool,
    /// What each server is.
    pub servers: BTreeMap<String, String>,
}

/// Throughput of one cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Throughput {
    /// The traffic.
    pub cell: Cell,
    /// By server.
    pub servers: BTreeMap<String, Carried>,
    /// The commit this cell was measured again at, because something had disturbed it.
    #[serde(default)]
    pub again_at: Option<String>,
}

/// How one server carried a cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Carried {
    /// The highest rate found.
    pub highest: Highest,
    /// How often a rate was given up for a lower one because rounds did not carry it.
    #[serde(default)]
    pub steps_down: u32,
    /// Rounds at that rate.
    pub rounds: Vec<Round>,
    /// Rounds at twice that rate.
    pub overload: Vec<Round>,
    /// Rounds at the rate that is equal for all servers.
    #[serde(default)]
    pub equal: Vec<Round>,
}

impl Carried {
    /// Rounds at the highest rate that something else disturbed.
    pub fn disturbed_rounds(&self) -> usize {
        let disturbed = |round: &&Round| round.spent.is_disturbed();
        self.rounds.iter().filter(disturbed).count()
    }

    /// Packets per CPU second, round by round.
    pub fn packets_per_cpu_second(&self) -> Vec<f64> {
        self.rounds
            .iter()
            .map(Round::packets_per_cpu_second)
            .collect()
    }

    /// Relayed at twice the highest rate, as part of what was relayed at that rate.
    pub fn overload_share(&self) -> Option<Summary> {
        let normal = statistics::summary(self.rounds.iter().map(|round| round.relayed_pps))?.median;
        statistics::summary(self.overload.iter().map(|round| round.relayed_pps / normal))
    }
}

/// Delays in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Delays {
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Longest.
    pub max: f64,
    /// Share of packets the generator sent more than 50 µs late, which counts as delay.
    pub late: f64,
    /// Lost part.
    pub loss: f64,
    /// Disturbances.
    #[serde(flatten)]
    pub spent: Spent,
}

/// Latency of one direction and number of flows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// The traffic.
    pub cell: Cell,
    /// Packets per second.
    pub rate_pps: f64,
    /// Rounds by server.
    pub servers: BTreeMap<String, Vec<Delays>>,
}

/// One round of making and ending allocations.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct AllocationRound {
    /// How many allocations.
    pub count: usize,
    /// Allocations per second.
    pub made_per_second: f64,
    /// CPU microseconds for making one, the 401 round included.
    pub make_us: f64,
    /// CPU microseconds for a channel and its permission.
    pub bind_us: f64,
    /// CPU microseconds for ending one.
    pub end_us: f64,
    /// Requests sent again.
    pub retransmissions: u64,
    /// CPU time for making them, and disturbances.
    #[serde(flatten)]
    pub spent: Spent,
}

/// Memory of a server that holds a number of idle allocations.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct MemoryPoint {
    /// Allocations held.
    pub allocations: usize,
    /// Proportional set size of the process, in bytes.
    pub process_bytes: u64,
    /// Kernel memory, in bytes.
    pub kernel_bytes: u64,
    /// CPU microseconds per allocation since the point before.
    pub make_us: f64,
}

/// Memory by number of allocations, and what a packet costs with few and with many.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Scale {
    /// How the kernel's part was read.
    pub kernel_source: String,
    /// In growing order.
    pub points: Vec<MemoryPoint>,
    /// CPU nanoseconds per packet, over the same flows, while few allocations were held.
    pub packet_ns_few: Vec<f64>,
    /// The same while many were held.
    pub packet_ns_many: Vec<f64>,
}

impl Scale {
    /// Bytes per allocation between the points nearest to two numbers of allocations: process, kernel.
    pub fn bytes_each(&self, from: usize, to: usize) -> Option<(f64, f64)> {
        let at = |count: usize| self.points.iter().find(|point| point.allocations >= count);
        let (first, last) = (at(from)?, at(to)?);
        let count = last
            .allocations
            .checked_sub(first.allocations)
            .filter(|&count| count > 0)? as f64;
        let each = |first: u64, last: u64| (last as f64 - first as f64) / count;
        Some((
            each(first.process_bytes, last.process_bytes),
            each(first.kernel_bytes, last.kernel_bytes),
        ))
    }

    /// What a packet costs with many allocations, as a multiple of what it costs with few.
    pub fn packet_cost_growth(&self) -> Option<f64> {
        let few = statistics::summary(self.packet_ns_few.iter().copied())?;
        let many = statistics::summary(self.packet_ns_many.iter().copied())?;
        Some(many.median / few.median)
    }
}

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// Where and with what.
    pub setting: Setting,
    /// Throughput by cell.
    pub throughput: Vec<Throughput>,
    /// Latency by cell.
    pub latency: Vec<Latency>,
    /// Allocations by server.
    pub allocations: BTreeMap<String, Vec<AllocationRound>>,
    /// Memory by server.
    pub scale: BTreeMap<String, Scale>,
    /// What programs in the kernel cost by themselves.
    #[serde(default)]
    pub programs: Option<Programs>,
    /// What should have been measured and was not, and why.
    pub skipped: Vec<String>,
}

impl Results {
    /// Nothing yet.
    pub fn new(setting: Setting) -> Self {
        Self {
            setting,
            throughput: Vec::new(),
            latency: Vec::new(),
            allocations: BTreeMap::new(),
            scale: BTreeMap::new(),
            programs: None,
            skipped: Vec::new(),
        }
    }

    /// Reads results.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// Writes results, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("writing results")?;
        let draft = path.with_extension("json.draft");
        fs::write(&draft, text + "\n").with_context(|| format!("writing {}", draft.display()))?;
        fs::rename(&draft, path).with_context(|| format!("writing {}", path.display()))
    }
}

/// The machine and the source.
pub fn setting(pairs: usize, quick: bool) -> Setting {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // The digits tell the kernel; what follows them may name a machine.
    let kernel = release
        .trim()
        .split('-')
        .next()
        .unwrap_or_default()
        .to_owned();
    let started = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    Setting {
        cpu: cpu::model(),
        cpus: cpu::count(),
        kernel,
        commit: commit(),
        started,
        seconds: 0,
        pairs,
        quick,
        servers: BTreeMap::new(),
    }
}

/// Commit of the source; ends in "+" where files were changed since.
pub fn commit() -> String {
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"]).is_empty();
    git(&["rev-parse", "--short=12", "HEAD"]) + if changed { "+" } else { "" }
}

fn git(arguments: &[&str]) -> String {
    let output = Command::new("git").args(arguments).output();
    output.map_or(String::new(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}

/// A figure that has to hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// What came out.
    pub value: f64,
    /// What should.
    pub target: Target,
}

/// A bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Not less.
    AtLeast(f64),
    /// Not more.
    AtMost(f64),
}

impl Figure {
    /// Whether it holds.
    pub fn is_met(&self) -> bool {
        match self.target {
            Target::AtLeast(bound) => self.value >= bound,
            Target::AtMost(bound) => self.value <= bound,
        }
    }
}

/// Names of Towpath's drivers among the servers.
pub const DRIVERS: [&str; 2] = ["io_uring", "epoll"];

/// Towpath without its kernel path, where both are measured.
pub const USERSPACE: &str = "userspace";
/// Towpath's kernel path.
pub const KERNEL_PATH: &str = "kernel";
/// The minimal XDP program.
pub const MINIMAL: &str = "minimal";

const KERNEL_TO_MINIMAL: f64 = 0.7;
const KERNEL_TO_COTURN_MEDIAN: f64 = 12.0;
const KERNEL_TO_COTURN_LEAST: f64 = 8.0;
const TEST_RUN_OVER_MINIMAL_NS: f64 = 150.0;
const AMONG_MANY: f64 = 1.15;
const TO_LOOKUPS: f64 = 1.25;
const INTERLEAVED_TO_FORWARDER: f64 = 0.95;
const INTERLEAVED_TO_COTURN: f64 = 1.2;
const BURSTS_TO_COTURN: f64 = 2.5;
const OVERLOAD_SHARE: f64 = 0.9;
const ALLOCATION_TO_COTURN: f64 = 0.33;
const IDLE_ALLOCATION_BYTES: f64 = 4500.0;
const PACKET_COST_GROWTH: f64 = 1.1;
/// Allocations over which the memory of an idle one is averaged.
pub const IDLE_ALLOCATIONS: usize = 4000;

/// All figures with a target that a run has values for.
pub fn figures(results: &Results) -> Vec<Figure> {
    let mut figures = Vec::new();
    for driver in DRIVERS {
        for throughput in &results.throughput {
            throughput_figures(&mut figures, driver, throughput);
        }
        for latency in &results.latency {
            let p50 = |server: &str| {
                Some(
                    latency
                        .servers
                        .get(server)?
                        .iter()
                        .map(|delays| delays.p50)
                        .collect::<Vec<_>>(),
                )
            };
            if let (Some(own), Some(coturn)) = (p50(driver), p50("coturn")) {
                let name = format!("{driver}, {}: p50 to coturn's", latency.cell);
                push(
                    &mut figures,
                    name,
                    statistics::ratio(own, coturn),
                    Target::AtMost(1.0),
                );
            }
        }
        let make = |server: &str| {
            let rounds = results.allocations.get(server)?;
            Some(rounds.iter().map(|round| round.make_us).collect::<Vec<_>>())
        };
        if let (Some(own), Some(coturn)) = (make(driver), make("coturn")) {
            let name = format!("{driver}: CPU per allocation to coturn's");
            let target = Target::AtMost(ALLOCATION_TO_COTURN);
            push(&mut figures, name, statistics::ratio(own, coturn), target);
        }
        if let Some(scale) = results.scale.get(driver) {
            if let Some((process, kernel)) = scale.bytes_each(0, IDLE_ALLOCATIONS) {
                let name = format!("{driver}: bytes of an idle allocation");
                let target = Target::AtMost(IDLE_ALLOCATION_BYTES);
                figures.push(Figure {
                    name,
                    value: process + kernel,
                    target,
                });
            }
            if let Some(value) = scale.packet_cost_growth() {
                let name = format!("{driver}: packet cost with many allocations to that with few");
                figures.push(Figure {
                    name,
                    value,
                    target: Target::AtMost(PACKET_COST_GROWTH),
                });
            }
        }
    }
    figures
}

fn push(figures: &mut Vec<Figure>, name: String, summary: Option<Summary>, target: Target) {
    figures.extend(summary.map(|summary| Figure {
        name,
        value: summary.median,
        target,
    }));
}

fn throughput_figures(figures: &mut Vec<Figure>, driver: &str, throughput: &Throughput) {
    let Throughput { cell, servers, .. } = throughput;
    let rates = |server: &str| servers.get(server).map(Carried::packets_per_cpu_second);
    let Some(own) = rates(driver) else { return };
    let bulk = cell.burst > 1 || cell.flows == 1;
    if let Some(coturn) = rates("coturn") {
        let bound = if bulk {
            BURSTS_TO_COTURN
        } else {
            INTERLEAVED_TO_COTURN
        };
        let ratio = statistics::ratio(own.iter().copied(), coturn);
        push(
            figures,
            format!("{driver}, {cell}: to coturn"),
            ratio,
            Target::AtLeast(bound),
        );
    }
    if let Some(forwarder) = rates("forwarder").filter(|_| !bulk) {
        let ratio = statistics::ratio(own.iter().copied(), forwarder);
        let target = Target::AtLeast(INTERLEAVED_TO_FORWARDER);
        push(
            figures,
            format!("{driver}, {cell}: to the forwarder"),
            ratio,
            target,
        );
    }
    let share = servers.get(driver).and_then(Carried::overload_share);
    let target = Target::AtLeast(OVERLOAD_SHARE);
    push(
        figures,
        format!("{driver}, {cell}: at twice the highest rate"),
        share,
        target,
    );
}

/// The figures of the kernel path.
pub fn kernel_figures(results: &Results) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut to_coturn = Vec::new();
    for Throughput { cell, servers, .. } in &results.throughput {
        let rates = |server: &str| servers.get(server).map(Carried::packets_per_cpu_second);
        let Some(own) = rates(KERNEL_PATH) else {
            continue;
        };
        if let Some(minimal) = rates(MINIMAL) {
            let ratio = statistics::ratio(own.iter().copied(), minimal);
            let name = format!("{cell}: to the minimal program");
            push(
                &mut figures,
                name,
                ratio,
                Target::AtLeast(KERNEL_TO_MINIMAL),
            );
        }
        if let Some(coturn) = rates("coturn") {
            let ratio = statistics::ratio(own.iter().copied(), coturn);
            to_coturn.extend(ratio.map(|ratio| ratio.median));
            let name = format!("{cell}: to coturn");
            let target = Target::AtLeast(KERNEL_TO_COTURN_LEAST);
            push(&mut figures, name, ratio, target);
        }
    }
    let median = statistics::summary(to_coturn);
    let target = Target::AtLeast(KERNEL_TO_COTURN_MEDIAN);
    push(
        &mut figures,
        "median of all kinds of traffic: to coturn".to_owned(),
        median,
        target,
    );
    if let Some(programs) = &results.programs {
        program_figures(&mut figures, programs);
    }
    figures
}

fn program_figures(figures: &mut Vec<Figure>, programs: &Programs) {
    let over = programs.pair.iter().zip(&programs.minimal_pair);
    let over = statistics::summary(over.map(|(own, minimal)| own - minimal));
    push(
        figures,
        "test runs: ns above the minimal program".to_owned(),
        over,
        Target::AtMost(TEST_RUN_OVER_MINIMAL_NS),
    );
    let ratio =
        |of: &Vec<f64>, to: &Vec<f64>| statistics::ratio(of.iter().copied(), to.iter().copied());
    push(
        figures,
        "test runs: 1,000 routes among 60,000 and 1,000,000 slots, to the same alone".to_owned(),
        ratio(&programs.active_among_many, &programs.active_alone),
        Target::AtMost(AMONG_MANY),
    );
    push(
        figures,
        "test runs: 60,000 routes at random, to their look-ups alone".to_owned(),
        ratio(&programs.all, &programs.lookups_of_all),
        Target::AtMost(TO_LOOKUPS),
    );
}

/// All cells of a full run.
pub fn all_cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for payload_bytes in [172, 1200] {
        for direction in Direction::ALL {
            for flows in [16, 256, 1000] {
                cells.push(Cell {
                    payload_bytes,
                    direction,
                    flows,
                    burst: 1,
                });
            }
        }
        for direction in [Direction::ClientToPeer, Direction::PeerToClient] {
            for (flows, burst) in [(16, 16), (16, 32), (1, 1)] {
                cells.push(Cell {
                    payload_bytes,
                    direction,
                    flows,
                    burst,
                });
            }
        }
    }
    cells
}
