//! One kind of traffic through one server, measured for a while.

use std::fmt;
use std::net::SocketAddrV4;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::control::{CHANNEL, PEER_PORT};
use crate::frames::{FrameGenerator, Side};
use crate::generator::{self, Outcome, Schedule, Stream};
use crate::packet::{self, CHANNEL_DATA_HEADER_BYTES, Route, Stamp, UDP_PAYLOAD_OFFSET};
use crate::rig::Rig;
use crate::server::{Flow, Server};
use crate::sink::Sink;
use crate::sys;
use crate::usage::{Spent, Usage};

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// ChannelData in, UDP out.
    ClientToPeer,
    /// UDP in, ChannelData out.
    PeerToClient,
    /// Half of the packets each way.
    Both,
}

impl Direction {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ClientToPeer, Self::PeerToClient, Self::Both];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ClientToPeer => "c2p",
            Self::PeerToClient => "p2c",
            Self::Both => "both",
        })
    }
}

/// One kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// Length of what client and peer exchange.
    pub payload_bytes: usize,
    /// Which way.
    pub direction: Direction,
    /// Over how many flows, in turns.
    pub flows: usize,
    /// How many packets of a flow follow each other.
    pub burst: usize,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            payload_bytes,
            direction,
            flows,
            burst,
        } = self;
        match (flows, burst) {
            (1, _) => write!(f, "{payload_bytes} B {direction} one flow"),
            (_, 1) => write!(f, "{payload_bytes} B {direction} {flows} flows"),
            _ => write!(
                f,
                "{payload_bytes} B {direction} {flows} flows, bursts of {burst}"
            ),
        }
    }
}

/// The sinks at both ends.
pub struct Sinks {
    client: Sink,
    peer: Sink,
}

impl Sinks {
    /// Attaches both.
    pub fn attach(rig: &Rig) -> Result<Self> {
        let framed = UDP_PAYLOAD_OFFSET + CHANNEL_DATA_HEADER_BYTES;
        let client = rig
            .client
            .enter(|| Sink::attach(rig.client_end.index, framed))?;
        let peer = rig
            .peer
            .enter(|| Sink::attach(rig.peer_end.index, UDP_PAYLOAD_OFFSET))?;
        Ok(Self {
            client: client.context("attaching the client's sink")?,
            peer: peer.context("attaching the peer's sink")?,
        })
    }

    fn packets(&self) -> u64 {
        self.client.packets() + self.peer.packets()
    }
}

/// Where packets got lost, by the kernel's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// At full receive buffers of the server's sockets.
    pub sockets: u64,
    /// At full rings of the links, towards the relay.
    pub links_in: u64,
    /// At full rings of the links, towards the sinks.
    pub links_out: u64,
}

impl Drops {
    fn read(rig: &Rig) -> Result<Self> {
        let snmp = rig.relay.read_proc_net("snmp")?;
        let dropped = |namespace: &crate::rig::Namespace, interface: &str| -> Result<u64> {
            let text = namespace.read_proc_net("dev")?;
            Ok(sent_but_dropped(&text, interface).unwrap_or(0))
        };
        Ok(Self {
            sockets: receive_buffer_errors(&snmp).unwrap_or(0),
            links_in: dropped(&rig.client, &rig.client_end.interface)?
                + dropped(&rig.peer, &rig.peer_end.interface)?,
            links_out: dropped(&rig.relay, &rig.relay_client_end.interface)?
                + dropped(&rig.relay, &rig.relay_peer_end.interface)?,
        })
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            sockets: self.sockets - earlier.sockets,
            links_in: self.links_in - earlier.links_in,
            links_out: self.links_out - earlier.links_out,
        }
    }
}

fn receive_buffer_errors(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter(|line| line.starts_with("Udp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let column = names
        .split_whitespace()
        .position(|name| name == "RcvbufErrors")?;
    values.split_whitespace().nth(column)?.parse().ok()
}

fn sent_but_dropped(dev: &str, interface: &str) -> Option<u64> {
    let line = dev
        .lines()
        .find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))?;
    // Eight columns of reception, then bytes, packets, errors and drops of transmission.
    line.split_whitespace().nth(11)?.parse().ok()
}

/// What one measurement came to.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Round {
    /// Packets per second that were offered.
    pub offered_pps: f64,
    /// Packets sent.
    pub sent: u64,
    /// Packets that arrived, stragglers included.
    pub received: u64,
    /// Packets per second that arrived while packets were sent.
    pub relayed_pps: f64,
    /// CPU time, and who else took some.
    #[serde(flatten)]
    pub spent: Spent,
    /// Median delay from the scheduled time.
    pub p50_us: f64,
    /// 99th percentile of that delay.
    pub p99_us: f64,
    /// Share of clumps the generator sent late.
    pub late: f64,
    /// Whether the generator sent all that was due.
    pub generator_kept_up: bool,
    /// Where packets were lost.
    pub drops: Drops,
}

impl Round {
    /// Lost part of what was sent.
    pub fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.sent.max(1) as f64
    }

    /// Packets relayed per second of CPU, the server's and the kernel's.
    pub fn packets_per_cpu_second(&self) -> f64 {
        self.received as f64 * 1e9 / self.spent.total_ns().max(1) as f64
    }

    /// CPU time of the server's own threads per packet.
    pub fn server_ns_per_packet(&self) -> f64 {
        self.spent.server_ns as f64 / self.received.max(1) as f64
    }
}

/// How packets get onto the links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generator {
    /// From packet sockets.
    Sockets,
    /// By a program in the kernel.
    Frames,
}

/// Prepared traffic of one cell through one server.
pub struct Load {
    source: Source,
    unit: usize,
}

enum Source {
    Sockets(Vec<Stream>),
    Frames(Box<FrameGenerator>),
}

impl Load {
    /// Prepares the packets. The flows are allocated, or their permissions renewed.
    pub fn prepare(
        rig: &Rig,
        server: &mut Server,
        cell: Cell,
        generator: Generator,
    ) -> Result<Self> {
        let flows = server.flows(rig.peer_end.address, cell.flows)?;
        match generator {
            Generator::Sockets => Self::over(rig, server, cell, &flows),
            Generator::Frames => Self::of_frames(rig, server, cell, &flows),
        }
    }

    fn of_frames(rig: &Rig, server: &Server, cell: Cell, flows: &[Flow]) -> Result<Self> {
        ensure!(cell.burst == 1, "frames are sent one by one");
        let bytes = cell.payload_bytes;
        let there = frames_from_clients(rig, server.address, flows, bytes);
        let back = frames_from_peers(rig, flows, bytes);
        let mut packets = Vec::new();
        for (there, back) in there.into_iter().zip(back) {
            if cell.direction != Direction::PeerToClient {
                packets.push((Side::Client, there));
            }
            if cell.direction != Direction::ClientToPeer {
                packets.push((Side::Peer, back));
            }
        }
        Ok(Self {
            source: Source::Frames(Box::new(FrameGenerator::new(rig, &packets)?)),
            unit: 1,
        })
    }

    /// Prepares the packets of a cell over flows that are there already.
    pub fn over(rig: &Rig, server: &Server, cell: Cell, flows: &[Flow]) -> Result<Self> {
        let mut streams = Vec::new();
        if cell.direction != Direction::PeerToClient {
            let frames = frames_from_clients(rig, server.address, flows, cell.payload_bytes);
            let offset = UDP_PAYLOAD_OFFSET + CHANNEL_DATA_HEADER_BYTES;
            let stream = || Stream::new(rig.client_end.index, &frames, offset, cell.burst);
            streams.push(rig.client.enter(stream)??);
        }
        if cell.direction != Direction::ClientToPeer {
            let frames = frames_from_peers(rig, flows, cell.payload_bytes);
            let stream =
                || Stream::new(rig.peer_end.index, &frames, UDP_PAYLOAD_OFFSET, cell.burst);
            streams.push(rig.peer.enter(stream)??);
        }
        Ok(Self {
            source: Source::Sockets(streams),
            unit: cell.burst,
        })
    }

    /// Offers `rate_pps` for a while and looks at what happens.
    pub fn measure(
        &mut self,
        rig: &Rig,
        sinks: &Sinks,
        server: &mut Server,
        rate_pps: f64,
        duration: Duration,
        quantum: Duration,
    ) -> Result<(Round, Vec<u64>)> {
        sinks.client.clear();
        sinks.peer.clear();
        let (before, dropped) = (Usage::take(rig, server)?, Drops::read(rig)?);
        let schedule = Schedule {
            rate_pps,
            duration_ns: duration.as_nanos() as u64,
            quantum_ns: quantum.as_nanos() as u64,
            unit: self.unit,
        };
        let outcome = match &mut self.source {
            Source::Sockets(streams) => {
                streams.iter_mut().for_each(Stream::reset);
                generator::run(streams, schedule)?
            }
            Source::Frames(frames) => frames.run(schedule)?,
        };
        let received_in_time = sinks.packets();
        wait_for_stragglers(sinks)?;
        let spent = Usage::take(rig, server)?.since(&before);
        let drops = Drops::read(rig)?.since(dropped);
        server.check_alive()?;
        let mut delays = self.source.delays_ns(sinks);
        delays.sort_unstable();
        let received = sinks.packets();
        let round = round(spent, drops, &outcome, received_in_time, received, &delays);
        Ok((round, delays))
    }
}

impl Source {
    fn delays_ns(&self, sinks: &Sinks) -> Vec<u64> {
        let mut delays = Vec::new();
        match self {
            Self::Sockets(streams) => {
                for stream in streams {
                    // A stream's samples end in the sink of the other side; number ranges are per stream.
                    let sink = if stream.payload_offset() == UDP_PAYLOAD_OFFSET {
                        &sinks.client
                    } else {
                        &sinks.peer
                    };
                    delays.extend(sink.delays_ns(stream.samples()));
                }
            }
            Self::Frames(frames) => {
                delays.extend(sinks.client.delays_ns(frames.samples()));
                delays.extend(sinks.peer.delays_ns(frames.samples()));
            }
        }
        delays
    }
}

fn round(
    spent: Spent,
    drops: Drops,
    outcome: &Outcome,
    received_in_time: u64,
    received: u64,
    delays: &[u64],
) -> Round {
    let elapsed_ns = outcome.ended_ns.saturating_sub(outcome.started_ns).max(1);
    Round {
        offered_pps: outcome.offered_pps(),
        sent: outcome.sent,
        received,
        relayed_pps: received_in_time as f64 * 1e9 / elapsed_ns as f64,
        spent,
        p50_us: percentile_us(delays, 0.5),
        p99_us: percentile_us(delays, 0.99),
        late: outcome.late_clumps as f64 / outcome.clumps.max(1) as f64,
        generator_kept_up: outcome.kept_up(),
        drops,
    }
}

fn percentile_us(sorted_ns: &[u64], part: f64) -> f64 {
    let at = (sorted_ns.len() as f64 * part) as usize;
    sorted_ns
        .get(at.min(sorted_ns.len().saturating_sub(1)))
        .map_or(0.0, |&ns| ns as f64 / 1000.0)
}

const STRAGGLER_INTERVAL: Duration = Duration::from_millis(10);
const STRAGGLER_PATIENCE: u32 = 100;
/// A server may be kept from its CPU for a while with packets still in its queues.
const QUIET_INTERVALS: u32 = 3;

/// Waits until nothing more arrives.
fn wait_for_stragglers(sinks: &Sinks) -> Result<()> {
    let mut seen = sinks.packets();
    let mut quiet = 0;
    for _ in 0..STRAGGLER_PATIENCE {
        thread::sleep(STRAGGLER_INTERVAL);
        sys::check_interrupted()?;
        let now = sinks.packets();
        quiet = if now == seen { quiet + 1 } else { 0 };
        if quiet == QUIET_INTERVALS {
            break;
        }
        seen = now;
    }
    Ok(())
}

fn payload(bytes: usize) -> Vec<u8> {
    let mut payload: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
    Stamp::default().write(&mut payload);
    payload
}

fn frames_from_clients(
    rig: &Rig,
    server: SocketAddrV4,
    flows: &[Flow],
    bytes: usize,
) -> Vec<Vec<u8>> {
    let mut message = Vec::with_capacity(CHANNEL_DATA_HEADER_BYTES + bytes);
    message.extend_from_slice(&CHANNEL.to_be_bytes());
    message.extend_from_slice(&(bytes as u16).to_be_bytes());
    message.extend_from_slice(&payload(bytes));
    let frame = |flow: &Flow| {
        let route = Route {
            source_mac: rig.client_end.mac,
            destination_mac: rig.relay_client_end.mac,
            source: flow.client,
            destination: server,
        };
        packet::udp_frame(&route, &message)
    };
    flows.iter().map(frame).collect()
}

fn frames_from_peers(rig: &Rig, flows: &[Flow], bytes: usize) -> Vec<Vec<u8>> {
    let message = payload(bytes);
    let frame = |(number, flow): (usize, &Flow)| {
        let route = Route {
            source_mac: rig.peer_end.mac,
            destination_mac: rig.relay_peer_end.mac,
            source: SocketAddrV4::new(rig.peer_end.address, PEER_PORT + number as u16),
            destination: flow.relayed,
        };
        packet::udp_frame(&route, &message)
    };
    flows.iter().enumerate().map(frame).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receive_buffer_errors_are_found_by_their_column() {
        let snmp =
            "Tcp: A\nTcp: 1\nUdp: InDatagrams NoPorts RcvbufErrors SndbufErrors\nUdp: 5 6 7 8\n";
        assert_eq!(receive_buffer_errors(snmp), Some(7));
        assert_eq!(receive_buffer_errors("Tcp: A\nTcp: 1\n"), None);
    }

    #[test]
    fn dropped_transmissions_of_an_interface_are_found() {
        let dev = "Inter-|\n face |\n  ab: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n abc: 0 0 0 0 0 0 0 0 0 0 0 99 0 0 0 0\n";
        assert_eq!(sent_but_dropped(dev, "ab"), Some(12));
        assert_eq!(sent_but_dropped(dev, "abc"), Some(99));
        assert_eq!(sent_but_dropped(dev, "zz"), None);
    }

    #[test]
    fn percentiles_come_from_the_sorted_delays() {
        let delays: Vec<u64> = (1..=100).map(|us| us * 1000).collect();
        assert_eq!(percentile_us(&delays, 0.5), 51.0);
        assert_eq!(percentile_us(&delays, 0.99), 100.0);
        assert_eq!(percentile_us(&[], 0.5), 0.0);
    }
}
