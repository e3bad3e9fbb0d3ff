//! The run that measures the kernel path: coturn, Towpath in userspace, Towpath's kernel path, and the
//! minimal XDP program, in rounds in turn.
//!
//! Servers on sockets share a place; each of those in the kernel has its own, because an interface takes
//! one program.

use std::net::SocketAddrV4;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;

use crate::control::{CHANNEL, CLIENT_PORT, PEER_PORT};
use crate::load::{Cell, Direction, Generator};
use crate::place::{self, Place};
use crate::report;
use crate::results::{self, KERNEL_PATH, MINIMAL, Results, USERSPACE};
use crate::rewriter::{RELAYED_PORTS, Rewriter, RewrittenFlow};
use crate::rig::{self, Moderation, Rig};
use crate::scratch::Scratch;
use crate::server::{Body, Flow, Server, Table};
use crate::statistics;
use crate::sys;
use crate::throughput::{self, Guesses, Pace, Stage};
use crate::towpath::Variant;
use crate::{again, coturn, options, programs, towpath};

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// What every run is told.
    #[command(flatten)]
    pub common: options::Options,
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_enum)]
    pub parts: Vec<Part>,
    /// Only these servers.
    #[arg(long, value_delimiter = ',', value_enum)]
    pub servers: Vec<Contestant>,
    /// The relay's interfaces are looked at every so many microseconds, as a network card that coalesces
    /// its interrupts has it; 0: whenever packets arrive.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub moderation_us: u32,
}

/// A part of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The programs by themselves, in test runs.
    Programs,
    /// Packets per CPU second.
    Throughput,
}

/// A server to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Contestant {
    /// coturn as installed.
    Coturn,
    /// Towpath on io_uring, without its kernel path.
    Userspace,
    /// Towpath's kernel path, native XDP.
    Kernel,
    /// The minimal XDP program.
    Minimal,
}

const ALL: [Contestant; 4] = [
    Contestant::Coturn,
    Contestant::Userspace,
    Contestant::Kernel,
    Contestant::Minimal,
];

impl Contestant {
    fn name(self) -> &'static str {
        match self {
            Self::Coturn => "coturn",
            Self::Userspace => USERSPACE,
            Self::Kernel => KERNEL_PATH,
            Self::Minimal => MINIMAL,
        }
    }

    fn place(self) -> usize {
        match self {
            Self::Coturn | Self::Userspace => 0,
            Self::Kernel => 1,
            Self::Minimal => 2,
        }
    }
}

const PLACES: usize = 3;
const FLOWS: u16 = 1000;
const SINK_MODERATION: Moderation = Moderation::Microseconds(100);
/// A relay whose own threads spend more per packet did not leave the packets to the kernel.
const OFFLOADED_NS_PER_PACKET: f64 = 500.0;

fn pace(options: &options::Options) -> Result<Pace> {
    let (probe_ms, round_ms, equal_rounds) = if options.quick {
        (150, 250, 1)
    } else {
        (250, 400, 3)
    };
    Ok(Pace {
        pairs: options.pairs()?,
        probe: Duration::from_millis(probe_ms),
        round: Duration::from_millis(round_ms),
        overload_rounds: 0,
        equal_rounds,
    })
}

fn all_cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for payload_bytes in [172, 1200] {
        for direction in Direction::ALL {
            for flows in [1, 16, 256, 1000] {
                cells.push(Cell {
                    payload_bytes,
                    direction,
                    flows,
                    burst: 1,
                });
            }
        }
    }
    cells
}

/// Runs what the options ask for, writes the results, and fails where something is missing.
pub fn run(options: &Options) -> Result<()> {
    let begin = Instant::now();
    let common = &options.common;
    let pace = pace(common)?;
    let quick = |cell: &Cell| cell.payload_bytes == 172 && cell.flows == 16;
    let cells = common.choose(all_cells(), quick)?;
    let (mut results, cells) = common.begin("kernel", cells, pace.pairs)?;
    sys::catch_signals();
    sys::raise_descriptor_limit()?;
    let wanted = |part| match common.again {
        true => part == Part::Throughput,
        false => options.parts.is_empty() || options.parts.contains(&part),
    };
    if wanted(Part::Programs) {
        // Before this thread has real-time priority, which the kernel would interrupt.
        match programs::measure(pace.pairs) {
            Ok(programs) => {
                print!("{}", report::kernel::programs_rows(&programs));
                results.programs = Some(programs);
            }
            Err(error) => results.skipped.push(format!("test runs: {error:#}")),
        }
    }
    if wanted(Part::Throughput) {
        measure_throughput(options, pace, &cells, begin, &mut results)?;
    }
    results.setting.seconds += begin.elapsed().as_secs();
    report::conclude_kernel(&results, &common.out, common.allow_skip)
}

fn measure_throughput(
    options: &Options,
    pace: Pace,
    cells: &[Cell],
    begin: Instant,
    results: &mut Results,
) -> Result<()> {
    let files = Scratch::for_files()?;
    let pins = Scratch::for_pins()?;
    let mut places = (0..PLACES).map(Place::build).collect::<Result<Vec<_>>>()?;
    let asked = &options.servers;
    let contestants: Vec<Contestant> = ALL
        .into_iter()
        .filter(|contestant| asked.is_empty() || asked.contains(contestant))
        .collect();
    let mut bench = Bench {
        files: files.path(),
        pins: pins.path(),
        options,
        pace,
        end: options.common.end(begin),
        servers: Vec::new(),
        results,
        progress: place::progress_bar(),
    };
    bench.start(&contestants, &places);
    for place in &mut places {
        // Attaching a program may have made NAPI anew.
        place.rig.thread_napi()?;
        let relay = match options.moderation_us {
            0 => Moderation::Off,
            us => Moderation::Microseconds(us),
        };
        place.rig.moderate(relay, SINK_MODERATION)?;
    }
    place::become_generator()?;
    if let Err(error) = bench.measure(cells, &places) {
        bench.skip(format!("the rest: {error:#}"));
    }
    bench.progress.finish_and_clear();
    Ok(())
}

struct Bench<'a> {
    files: &'a Path,
    pins: &'a Path,
    options: &'a Options,
    pace: Pace,
    /// When the run should be over.
    end: Instant,
    servers: Vec<Server>,
    results: &'a mut Results,
    progress: ProgressBar,
}

impl Bench<'_> {
    fn start(&mut self, contestants: &[Contestant], places: &[Place]) {
        for &contestant in contestants {
            let place = contestant.place();
            match self.launch(contestant, &places[place].rig) {
                Ok(server) => {
                    let server = server.at(place);
                    let versions = &mut self.results.setting.servers;
                    versions.insert(server.name.to_owned(), server.version.clone());
                    self.servers.push(server);
                }
                Err(error) => self.skip(format!("{}: {error:#}", contestant.name())),
            }
        }
    }

    fn launch(&self, contestant: Contestant, rig: &Rig) -> Result<Server> {
        let (listen, relay) = rig::server_addresses(contestant as u8);
        let towpath = |pins| {
            let variant = Variant {
                pins,
                ..Variant::in_userspace(contestant.name(), results::DRIVERS[0])
            };
            let program = towpath::program(self.options.common.towpath.as_deref())?;
            towpath::start(rig, self.files, &program, &variant, listen, relay)
        };
        match contestant {
            Contestant::Coturn => coturn::start(rig, self.files, listen, relay),
            Contestant::Userspace => towpath(None),
            Contestant::Kernel => towpath(Some(self.pins)),
            Contestant::Minimal => {
                let listen = SocketAddrV4::new(listen, towpath::PORT);
                let relay = SocketAddrV4::new(relay, RELAYED_PORTS);
                start_minimal(rig, listen, relay)
            }
        }
    }

    fn skip(&mut self, what: String) {
        self.progress.println(format!("not measured: {what}"));
        self.results.skipped.push(what);
    }

    fn measure(&mut self, cells: &[Cell], places: &[Place]) -> Result<()> {
        let count = cells.len() * self.servers.len();
        self.progress.set_length((count * self.pace.steps()) as u64);
        let seconds = (self.pace.usual_duration() * count as u32).as_secs();
        println!(
            "{} kinds of traffic, {} servers: about {} minutes",
            cells.len(),
            self.servers.len(),
            seconds.div_ceil(60)
        );
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
            let rest = self.pace.rest() * self.servers.len() as u32;
            let patience = Instant::now() + share.saturating_sub(rest);
            let stage = Stage {
                places,
                generator: Generator::Frames,
                progress: &self.progress,
            };
            let servers = &mut self.servers;
            let measured =
                throughput::measure(&stage, self.pace, cell, servers, &mut guesses, patience);
            let (throughput, failures) = measured?;
            self.progress
                .suspend(|| print!("{}", report::throughput_rows(&throughput)));
            for (name, error) in failures {
                self.skip(format!("{name}, {cell}: {error:#}"));
            }
            self.check_offloaded(&throughput);
            again::keep(self.results, throughput);
        }
        Ok(())
    }

    /// Figures of a kernel path that took no packets would be those of the other one.
    fn check_offloaded(&mut self, throughput: &results::Throughput) {
        let Some(carried) = throughput.servers.get(KERNEL_PATH) else {
            return;
        };
        let costs = carried
            .rounds
            .iter()
            .map(|round| round.server_ns_per_packet());
        let cost = statistics::summary(costs).map_or(0.0, |summary| summary.median);
        if cost > OFFLOADED_NS_PER_PACKET {
            let cell = throughput.cell;
            self.skip(format!(
                "the kernel path at {cell}: towpath's own threads took {cost:.0} ns per packet"
            ));
        }
    }
}

/// Puts the minimal program on both of the relay's interfaces.
fn start_minimal(rig: &Rig, listen: SocketAddrV4, relay: SocketAddrV4) -> Result<Server> {
    let rewriter = Rewriter::load(u32::from(FLOWS) * 2).context("loading the minimal program")?;
    let mut flows = Vec::new();
    for number in 0..FLOWS {
        let client = SocketAddrV4::new(rig.client_end.address, CLIENT_PORT + number);
        let peer = SocketAddrV4::new(rig.peer_end.address, PEER_PORT + number);
        let relayed = SocketAddrV4::new(*relay.ip(), relay.port() + number);
        let there = RewrittenFlow {
            from: client,
            to: listen,
            channel: CHANNEL,
            source: relayed,
            destination: peer,
            new_channel: 0,
            source_mac: rig.relay_peer_end.mac,
            destination_mac: rig.peer_end.mac,
            interface: rig.relay_peer_end.index,
        };
        let back = RewrittenFlow {
            from: peer,
            to: relayed,
            channel: 0,
            source: listen,
            destination: client,
            new_channel: CHANNEL,
            source_mac: rig.relay_client_end.mac,
            destination_mac: rig.client_end.mac,
            interface: rig.relay_client_end.index,
        };
        for flow in [there, back] {
            rewriter.insert(&flow).context("adding a flow")?;
        }
        flows.push(Flow { client, relayed });
    }
    let attach = |end: &rig::LinkEnd| rig.relay.enter(|| rewriter.program.attach(end.index));
    let links = [&rig.relay_client_end, &rig.relay_peer_end]
        .into_iter()
        .map(|end| Ok(attach(end)??))
        .collect::<Result<Vec<_>>>()
        .context("attaching the minimal program")?;
    let version = "native XDP, one static table, no metering".to_owned();
    let (table, body) = (Table::Fixed(flows), Body::Programs(links));
    Ok(Server::new(MINIMAL, version, listen, table, body))
}
