//! The whole run: starts the servers, goes through the measurements in alternating rounds, and notes
//! whatever could not be measured.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;

use crate::load::{Cell, Generator, Load, Round, Sinks};
use crate::memory::PacketProbe;
use crate::place::{self, Place};
use crate::results::{self, DRIVERS, IDLE_ALLOCATIONS, Latency, Results, Scale};
use crate::rig::{self, Moderation, Rig};
use crate::scratch::Scratch;
use crate::server::Server;
use crate::sys;
use crate::throughput::{self, Failure, Guesses, QUANTUM, Stage, each};
use crate::towpath::Variant;
use crate::{again, allocations, coturn, forwarder, latency, memory, options, report, towpath};

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// What every run is told.
    #[command(flatten)]
    pub common: options::Options,
    /// Only these servers.
    #[arg(long, value_delimiter = ',', value_enum)]
    pub servers: Vec<ServerKind>,
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_enum)]
    pub parts: Vec<Part>,
}

/// A server to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServerKind {
    /// coturn as installed.
    Coturn,
    /// The yardstick.
    Forwarder,
    /// Towpath on io_uring.
    #[value(name = "io_uring")]
    IoUring,
    /// Towpath on epoll.
    Epoll,
}

impl ServerKind {
    /// What its server is called.
    fn name(self) -> &'static str {
        match self {
            Self::Coturn => "coturn",
            Self::Forwarder => "forwarder",
            Self::IoUring => DRIVERS[0],
            Self::Epoll => DRIVERS[1],
        }
    }
}

/// A part of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Packets per CPU second, and what twice the highest rate does.
    Throughput,
    /// Delays at 10,000 packets per second.
    Latency,
    /// CPU per allocation.
    Allocations,
    /// Memory per idle allocation, and packets among many of them.
    Memory,
}

const ALL_SERVERS: [ServerKind; 4] = [
    ServerKind::Coturn,
    ServerKind::Forwarder,
    ServerKind::IoUring,
    ServerKind::Epoll,
];
/// In the order they are measured in: the first has servers of its own, the last takes longest.
const ALL_PARTS: [Part; 4] = [
    Part::Memory,
    Part::Latency,
    Part::Allocations,
    Part::Throughput,
];

const URING: Variant<'_> = Variant::in_userspace(DRIVERS[0], DRIVERS[0]);
const EPOLL: Variant<'_> = Variant::in_userspace(DRIVERS[1], DRIVERS[1]);
const FLOWS_OF_FORWARDER: u16 = 1000;
const SINK_MODERATION: Moderation = Moderation::Microseconds(100);
/// The yardstick is one only below this.
const YARDSTICK_NS_PER_PACKET: f64 = 5000.0;
const NO_YARDSTICK: &str = "a yardstick for";
/// What the smaller parts usually take for each round, or each server, on a machine of today.
const ALLOCATION_ROUND: Duration = Duration::from_millis(1500);
const MEMORY_OF_ONE: Duration = Duration::from_secs(15);
/// Short rounds, and more of them: medians of a round differ more than what is in it.
const LATENCY_ROUNDS_PER_PAIR: usize = 2;

#[derive(Clone, Copy)]
struct Pace {
    throughput: throughput::Pace,
    latency_rounds: usize,
    latency_round: Duration,
    allocation_count: usize,
}

impl Pace {
    fn of(options: &options::Options) -> Result<Self> {
        let (probe_ms, round_ms, overload_rounds, latency_ms) = if options.quick {
            (150, 250, 1, 250)
        } else {
            (250, 400, 3, 500)
        };
        let pairs = options.pairs()?;
        Ok(Self {
            throughput: throughput::Pace {
                pairs,
                probe: Duration::from_millis(probe_ms),
                round: Duration::from_millis(round_ms),
                overload_rounds,
                equal_rounds: 0,
            },
            latency_rounds: pairs * LATENCY_ROUNDS_PER_PAIR,
            latency_round: Duration::from_millis(latency_ms),
            allocation_count: if options.quick {
                1000
            } else {
                IDLE_ALLOCATIONS
            },
        })
    }

    /// What a part usually takes.
    fn usual_duration(&self, part: Part, cells: usize, servers: usize) -> Duration {
        let servers = servers as u32;
        match part {
            Part::Throughput => self.throughput.usual_duration() * cells as u32 * servers,
            Part::Latency => {
                let rounds = (self.latency_rounds + 1) as u32 * latency::cells().len() as u32;
                (self.latency_round + latency::overhead(self.latency_round)) * rounds * servers
            }
            Part::Allocations => ALLOCATION_ROUND * (self.throughput.pairs + 1) as u32 * servers,
            Part::Memory => MEMORY_OF_ONE * servers,
        }
    }
}

struct Bench<'a> {
    places: &'a [Place],
    rig: &'a Rig,
    sinks: &'a Sinks,
    directory: &'a Path,
    options: &'a Options,
    pace: Pace,
    /// When the run should be over.
    end: Instant,
    servers: Vec<Server>,
    results: Results,
    progress: ProgressBar,
}

/// Runs what the options ask for, writes the results, and fails where something is missing.
pub fn run(options: &Options) -> Result<()> {
    let begin = Instant::now();
    let common = &options.common;
    let pace = Pace::of(common)?;
    let quick = |cell: &Cell| cell.payload_bytes == 172 && cell.flows <= 16;
    let cells = common.choose(results::all_cells(), quick)?;
    let (results, cells) = common.begin("relay", cells, pace.throughput.pairs)?;
    sys::catch_signals();
    sys::raise_descriptor_limit()?;
    let directory = Scratch::for_files()?;
    let places = [Place::build(0)?];
    place::become_generator()?;
    let mut bench = Bench {
        places: &places,
        rig: &places[0].rig,
        sinks: &places[0].sinks,
        directory: directory.path(),
        options,
        pace,
        end: common.end(begin),
        servers: Vec::new(),
        results,
        progress: place::progress_bar(),
    };
    if let Err(error) = bench.measure_all(&cells) {
        bench.skip(format!("the rest: {error:#}"));
    }
    bench.progress.finish_and_clear();
    let mut results = bench.results;
    results.setting.seconds += begin.elapsed().as_secs();
    report::conclude_relay(&results, &common.out, common.allow_skip)
}

impl Bench<'_> {
    fn measure_all(&mut self, cells: &[Cell]) -> Result<()> {
        let parts = self.parts();
        let kinds = self.kinds();
        self.plan(&parts, cells.len(), kinds.len());
        for part in parts {
            if part != Part::Memory && self.servers.is_empty() {
                kinds.iter().for_each(|&kind| self.start(kind));
            }
            match part {
                Part::Throughput => {
                    self.rig.moderate(Moderation::Off, SINK_MODERATION)?;
                    self.throughput(cells)?;
                }
                Part::Latency => {
                    self.rig.moderate(Moderation::Off, Moderation::Off)?;
                    self.latency()?;
                }
                Part::Allocations => {
                    self.rig.moderate(Moderation::Off, Moderation::Off)?;
                    self.allocations()?;
                }
                Part::Memory => {
                    self.rig.moderate(Moderation::Off, SINK_MODERATION)?;
                    for &kind in &kinds {
                        self.memory(kind)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn parts(&self) -> Vec<Part> {
        let asked = &self.options.parts;
        let wanted = |part: &Part| match self.options.common.again {
            true => *part == Part::Throughput,
            false => asked.is_empty() || asked.contains(part),
        };
        ALL_PARTS.into_iter().filter(wanted).collect()
    }

    fn kinds(&self) -> Vec<ServerKind> {
        let asked = &self.options.servers;
        ALL_SERVERS
            .into_iter()
            .filter(|kind| asked.is_empty() || asked.contains(kind))
            .collect()
    }

    /// Says how long the run will take.
    fn plan(&mut self, parts: &[Part], cells: usize, servers: usize) {
        let throughput = self.pace.throughput;
        let rounds = throughput.pairs + 1;
        let steps = |part: &Part| match part {
            Part::Throughput => cells * servers * throughput.steps(),
            Part::Latency => latency::cells().len() * servers * (self.pace.latency_rounds + 1),
            Part::Allocations => servers * rounds,
            Part::Memory => servers,
        };
        self.progress
            .set_length(parts.iter().map(steps).sum::<usize>() as u64);
        let usual = |part: &Part| self.pace.usual_duration(*part, cells, servers);
        let seconds = parts.iter().map(usual).sum::<Duration>().as_secs();
        self.progress.suspend(|| {
            println!(
                "{cells} kinds of traffic, {servers} servers: about {} minutes",
                seconds.div_ceil(60)
            );
        });
    }

    fn start(&mut self, kind: ServerKind) {
        match self.launch(kind) {
            Ok(server) => {
                let versions = &mut self.results.setting.servers;
                versions.insert(server.name.to_owned(), server.version.clone());
                self.servers.push(server);
            }
            Err(error) => self.skip(format!("{}: {error:#}", kind.name())),
        }
    }

    fn launch(&self, kind: ServerKind) -> Result<Server> {
        let (listen, relay) = rig::server_addresses(kind as u8);
        let (rig, directory) = (self.rig, self.directory);
        match kind {
            ServerKind::Coturn => coturn::start(rig, directory, listen, relay),
            ServerKind::Forwarder => {
                forwarder::start(rig, directory, listen, relay, FLOWS_OF_FORWARDER)
            }
            ServerKind::IoUring => {
                towpath::start(rig, directory, &self.program()?, &URING, listen, relay)
            }
            ServerKind::Epoll => {
                towpath::start(rig, directory, &self.program()?, &EPOLL, listen, relay)
            }
        }
    }

    fn program(&self) -> Result<PathBuf> {
        towpath::program(self.options.common.towpath.as_deref())
    }

    fn skip(&mut self, what: String) {
        self.progress.println(format!("not measured: {what}"));
        self.results.skipped.push(what);
    }

    fn throughput(&mut self, cells: &[Cell]) -> Result<()> {
        let mut guesses = Guesses::default();
        for (number, &cell) in cells.iter().enumerate() {
            // Time that a cell leaves over is for those after it.
            let left = self.end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let minutes = self.options.common.minutes;
                self.skip(format!("{cell}: {minutes} minutes were over"));
                continue;
            }
            let share = left / (cells.len() - number) as u32;
            let rest = self.pace.throughput.rest() * self.servers.len() as u32;
            let patience = Instant::now() + share.saturating_sub(rest);
            let mut servers = std::mem::take(&mut self.servers);
            let stage = Stage {
                places: self.places,
                generator: Generator::Sockets,
                progress: &self.progress,
            };
            let pace = self.pace.throughput;
            let measured =
                throughput::measure(&stage, pace, cell, &mut servers, &mut guesses, patience);
            self.servers = servers;
            let (throughput, failures) = measured?;
            self.replace_failed(&cell.to_string(), failures)?;
            self.progress
                .suspend(|| print!("{}", report::throughput_rows(&throughput)));
            again::keep(&mut self.results, throughput);
        }
        let slowest = self.results.throughput.iter().filter_map(|throughput| {
            let forwarder = throughput.servers.get("forwarder")?;
            let costs = forwarder.rounds.iter().map(Round::server_ns_per_packet);
            Some((throughput.cell, crate::statistics::summary(costs)?.median))
        });
        let too_slow: Vec<String> = slowest
            .filter(|(_, cost)| *cost >= YARDSTICK_NS_PER_PACKET)
            .map(|(cell, cost)| format!("{NO_YARDSTICK} {cell}: the forwarder took {cost:.0} ns"))
            .collect();
        let skipped = &mut self.results.skipped;
        skipped.retain(|skipped| !skipped.starts_with(NO_YARDSTICK));
        for what in too_slow {
            self.skip(what);
        }
        Ok(())
    }

    fn say(&self, what: String) {
        self.progress.set_message(what);
    }

    /// Notes failures, and puts fresh processes in the place of servers that failed.
    fn replace_failed(&mut self, during: &str, failures: Vec<Failure>) -> Result<()> {
        sys::check_interrupted()?;
        for (name, error) in failures {
            self.skip(format!("{name}, {during}: {error:#}"));
            let Some(index) = self.servers.iter().position(|server| server.name == name) else {
                continue;
            };
            drop(self.servers.remove(index));
            let Some(kind) = ALL_SERVERS.into_iter().find(|kind| kind.name() == name) else {
                continue;
            };
            match self.launch(kind) {
                Ok(server) => self.servers.insert(index, server),
                Err(error) => self.skip(format!("{name} from here on: {error:#}")),
            }
        }
        Ok(())
    }

    fn latency(&mut self) -> Result<()> {
        for cell in latency::cells() {
            let mut servers = std::mem::take(&mut self.servers);
            let mut failures = Vec::new();
            let mut contenders = Vec::new();
            for server in &mut servers {
                match Load::prepare(self.rig, server, cell, Generator::Sockets) {
                    Ok(load) => contenders.push((server, (load, Vec::new()))),
                    Err(error) => failures.push((server.name, error)),
                }
            }
            for number in 0..=self.pace.latency_rounds {
                each(&mut contenders, &mut failures, |server, (load, rounds)| {
                    self.say(format!("latency, {cell}: {}", server.name));
                    let (rig, sinks, duration) = (self.rig, self.sinks, self.pace.latency_round);
                    let delays = latency::measure(rig, sinks, server, load, duration)?;
                    if number > 0 {
                        rounds.push(delays);
                    }
                    self.progress.inc(1);
                    Ok(())
                })?;
            }
            let rounds = contenders.into_iter();
            let by_name = rounds
                .map(|(server, (_, rounds))| (server.name.to_owned(), rounds))
                .collect();
            let latency = Latency {
                cell,
                rate_pps: latency::RATE_PPS,
                servers: by_name,
            };
            self.progress
                .suspend(|| print!("{}", report::latency_rows(&latency)));
            self.results.latency.push(latency);
            self.servers = servers;
            self.replace_failed(&format!("latency, {cell}"), failures)?;
        }
        Ok(())
    }

    fn allocations(&mut self) -> Result<()> {
        let mut servers = std::mem::take(&mut self.servers);
        let mut failures = Vec::new();
        let servers_of_turn = servers
            .iter_mut()
            .filter(|server| allocations::applies_to(server));
        let mut contenders: Vec<_> = servers_of_turn.map(|server| (server, Vec::new())).collect();
        let peer = self.rig.peer_end.address;
        for number in 0..=self.pace.throughput.pairs {
            each(&mut contenders, &mut failures, |server, rounds| {
                self.say(format!("allocations: {}", server.name));
                let count = self.pace.allocation_count;
                let round = allocations::measure(self.rig, server, peer, count, number)?;
                if number > 0 {
                    rounds.push(round);
                }
                self.progress.inc(1);
                Ok(())
            })?;
        }
        let rounds = contenders.into_iter();
        self.results.allocations = rounds
            .map(|(server, rounds)| (server.name.to_owned(), rounds))
            .collect();
        self.servers = servers;
        self.replace_failed("allocations", failures)?;
        self.progress
            .suspend(|| print!("{}", report::allocation_rows(&self.results)));
        Ok(())
    }

    /// Measures on a fresh process, with no other server beside it.
    fn memory(&mut self, kind: ServerKind) -> Result<()> {
        if kind == ServerKind::Forwarder {
            return Ok(());
        }
        self.progress
            .set_message(format!("memory: {}", kind.name()));
        let probe = PacketProbe {
            rate_pps: 40_000.0,
            duration: self.pace.throughput.round,
            quantum: QUANTUM,
            rounds: self.pace.throughput.pairs,
        };
        let (rig, sinks) = (self.rig, self.sinks);
        let few = self
            .launch(kind)
            .and_then(|mut server| memory::packet_costs_alone(rig, sinks, &mut server, probe));
        let scale = few.and_then(|packet_ns_few| {
            let mut server = self.launch(kind)?;
            let scale = memory::measure(rig, sinks, &mut server, probe)?;
            Ok((
                server.name.to_owned(),
                Scale {
                    packet_ns_few,
                    ..scale
                },
            ))
        });
        match scale {
            Ok((name, scale)) => {
                self.progress
                    .suspend(|| print!("{}", report::scale_rows(&name, &scale)));
                self.results.scale.insert(name, scale);
            }
            Err(error) => {
                sys::check_interrupted()?;
                self.skip(format!("memory of {}: {error:#}", kind.name()));
            }
        }
        self.progress.inc(1);
        Ok(())
    }
}
