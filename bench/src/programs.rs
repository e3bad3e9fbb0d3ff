//! What the programs in the kernel cost by themselves, in test runs: Towpath's, with metering and counting
//! on, beside the minimal one, and beside one that does the same look-ups and nothing else.
//!
//! A test run hands a program the frame it left behind. So routes make a circle: each packet leaves as one
//! that the next route knows, in random order.
//!
//! ```text
//!   client 17, ChannelData ─▶ plain, to peer 17 ─▶ client 4, ChannelData ─▶ plain, to peer 4 ─▶ …
//! ```

mod lookups;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, ensure};
use aya::maps::Map;
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use serde::{Deserialize, Serialize};
use towpath_ebpf_common::rate::LimitWord;
use towpath_ebpf_common::route::{
    LAYOUT, NextHop, PROGRAM, Route, RouteKey, Settings, Target, flag, map,
};

use crate::assembler::verdict;
use crate::bpf::{self, Tested, XdpProgram};
use crate::control::CHANNEL;
use crate::packet::{self, Mac};
use crate::rewriter::{RELAYED_PORTS, Rewriter, RewrittenFlow};

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/dist/towpath.bpf.o");

/// Routes and slots of a large relay.
const MANY_ROUTES: usize = 60_000;
const MANY_SLOTS: u32 = 1_000_000;
/// Routes that packets really take in it.
const ACTIVE_ROUTES: usize = 1000;
const REPEAT: u32 = 400_000;
const PAYLOAD_BYTES: usize = 172;
/// High enough that no packet is over it: it is charged all the same.
const LIMIT_BITS_PER_SECOND: u64 = 400_000_000_000;
const LIMIT_BURST_BYTES: u64 = 1 << 20;
const FIRST_SLOT: u32 = 8;

const LISTENER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 1, 11), 3478);
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 11);
const INTERFACE: u32 = 1;
const MTU: u32 = 1500;
const OWN_MAC: Mac = [2, 0x77, 0, 0, 1, 1];
const NEXT_MAC: Mac = [2, 0x77, 0, 0, 1, 2];

/// What was measured. Times are nanoseconds per run, round by round.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Programs {
    /// Instructions after the verifier's rewriting.
    pub instructions: BTreeMap<String, u32>,
    /// Memory of the maps of a large relay, in bytes.
    pub map_bytes: BTreeMap<String, u64>,
    /// Towpath's program, two routes installed.
    pub pair: Vec<f64>,
    /// The minimal program, the same two flows.
    pub minimal_pair: Vec<f64>,
    /// Towpath's program, the active routes alone.
    pub active_alone: Vec<f64>,
    /// The same routes within a large relay.
    pub active_among_many: Vec<f64>,
    /// All routes of a large relay, at random.
    pub all: Vec<f64>,
    /// The look-ups alone, of the same keys.
    pub lookups_of_all: Vec<f64>,
}

/// Measures `rounds` rounds, in turn.
pub fn measure(rounds: usize) -> Result<Programs> {
    let mut pair = Loaded::new(2, FIRST_SLOT + 1, 1)?;
    let mut alone = Loaded::new(ACTIVE_ROUTES, FIRST_SLOT + ACTIVE_ROUTES as u32, 1)?;
    let mut among = Loaded::new(MANY_ROUTES, MANY_SLOTS, MANY_ROUTES / ACTIVE_ROUTES)?;
    let mut all = Loaded::new(MANY_ROUTES, MANY_SLOTS, 1)?;
    let minimal = minimal_pair()?;
    let lookups = lookups::load(&all)?;
    let mut programs = Programs {
        instructions: BTreeMap::from([
            ("kernel".to_owned(), pair.program.instructions()?),
            ("minimal".to_owned(), minimal.program.instructions()?),
        ]),
        map_bytes: all.map_bytes()?,
        ..Programs::default()
    };
    // The first round warms up.
    for number in 0..=rounds {
        let frame = pair.first_frame();
        let minimal_ns = minimal.program.test(&frame, REPEAT)?.duration_ns;
        let lookups_ns = lookups.test(&all.first_frame(), REPEAT)?.duration_ns;
        let costs = [
            (&mut programs.pair, pair.run()?),
            (&mut programs.minimal_pair, f64::from(minimal_ns)),
            (&mut programs.active_alone, alone.run()?),
            (&mut programs.active_among_many, among.run()?),
            (&mut programs.all, all.run()?),
            (&mut programs.lookups_of_all, f64::from(lookups_ns)),
        ];
        if number > 0 {
            for (list, cost) in costs {
                list.push(cost);
            }
        }
    }
    Ok(programs)
}

/// Client `number`.
fn client(number: usize) -> SocketAddrV4 {
    let [_, high, middle, low] = (number as u32).to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(100, 64 + high, middle, low), 10_000)
}

/// Where client `number` is relayed from.
fn relayed(number: usize) -> SocketAddrV4 {
    let port = RELAYED_PORTS + (number % 16_384) as u16;
    let [.., last] = RELAY.octets();
    let address = Ipv4Addr::new(10, 77, 2 + (number / 16_384) as u8, last);
    SocketAddrV4::new(address, port)
}

/// Its peer. Packets to it are looked up as if its port were a relayed one, which leaves them plain.
fn peer(number: usize) -> SocketAddrV4 {
    let [_, high, middle, low] = (number as u32).to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(198, 18 + high, middle, low), 60_000)
}

/// A packet of a client, ChannelData.
fn frame_of(client: SocketAddrV4) -> Vec<u8> {
    let mut message = CHANNEL.to_be_bytes().to_vec();
    message.extend_from_slice(&(PAYLOAD_BYTES as u16).to_be_bytes());
    message.resize(message.len() + PAYLOAD_BYTES, 0x5a);
    let route = packet::Route {
        source_mac: OWN_MAC,
        destination_mac: NEXT_MAC,
        source: client,
        destination: LISTENER,
    };
    packet::udp_frame(&route, &message)
}

fn minimal_pair() -> Result<Rewriter> {
    let rewriter = Rewriter::load(2).context("loading the minimal program")?;
    let there = RewrittenFlow {
        from: client(0),
        to: LISTENER,
        channel: CHANNEL,
        source: relayed(0),
        destination: peer(0),
        new_channel: 0,
        source_mac: OWN_MAC,
        destination_mac: NEXT_MAC,
        interface: INTERFACE,
    };
    let back = RewrittenFlow {
        from: relayed(0),
        to: peer(0),
        channel: 0,
        source: client(0),
        destination: LISTENER,
        new_channel: CHANNEL,
        ..there
    };
    rewriter.insert(&there)?;
    rewriter.insert(&back)?;
    check_circle(&rewriter.program, &frame_of(client(0)), 2)?;
    Ok(rewriter)
}

/// Towpath's program with routes that make circles.
struct Loaded {
    ebpf: Ebpf,
    program: XdpProgram,
    /// Routes of the circle that is run.
    circle: usize,
}

impl Loaded {
    /// `routes` routes in `circles` circles of equal length, with room for `slots` slots.
    fn new(routes: usize, slots: u32, circles: usize) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(map::ROUTES, routes as u32)
            .map_max_entries(map::LIMITS, slots)
            .map_max_entries(map::METERS, slots)
            .load(OBJECT)
            .context("loading towpath's program")?;
        let xdp: &mut Xdp = ebpf
            .program_mut(PROGRAM)
            .context("towpath's object has no program")?
            .try_into()?;
        xdp.load().context("towpath's program is refused")?;
        let fd = xdp.fd()?.as_fd().try_clone_to_owned()?;
        let loaded = Self {
            ebpf,
            program: XdpProgram::from(fd),
            circle: routes / circles,
        };
        loaded.configure()?;
        loaded.fill(routes / 2, slots, circles)?;
        check_circle(&loaded.program, &loaded.first_frame(), loaded.circle as u32)?;
        Ok(loaded)
    }

    fn map(&self, name: &str) -> Result<BorrowedFd<'_>> {
        match self.ebpf.map(name) {
            Some(Map::HashMap(data) | Map::Array(data) | Map::PerCpuArray(data)) => {
                Ok(data.fd().as_fd())
            }
            _ => anyhow::bail!("towpath's object has no map {name}"),
        }
    }

    fn configure(&self) -> Result<()> {
        let settings = Settings {
            layout: LAYOUT,
            ports: Settings::ports(RELAYED_PORTS, u16::MAX),
            flags: flag::FORWARD | flag::KEEP_TTL,
            ..Settings::default()
        };
        let next_hop = NextHop {
            interface: INTERFACE,
            mtu: MTU,
            destination_mac: NEXT_MAC,
            source_mac: OWN_MAC,
            vlan: 0,
            state: NextHop::VALID,
        };
        let first = 0_u32.to_ne_bytes();
        bpf::update(self.map(map::SETTINGS)?, &first, bpf::bytes(&settings))?;
        bpf::update(self.map(map::NEXT_HOPS)?, &first, bpf::bytes(&next_hop))?;
        Ok(())
    }

    /// Clients `0..pairs` in random order, cut into circles; slots at random, one for each client.
    fn fill(&self, pairs: usize, slots: u32, circles: usize) -> Result<()> {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut order: Vec<usize> = (1..pairs).collect();
        random.shuffle(&mut order);
        // The first circle begins with client 0.
        order.insert(0, 0);
        let mut chosen: Vec<u32> = (FIRST_SLOT..slots).collect();
        random.shuffle(&mut chosen);
        let limit = LimitWord::new(LIMIT_BITS_PER_SECOND, LIMIT_BURST_BYTES)?.to_bits();
        let mut limits = [0_u64; 8];
        (limits[0], limits[1]) = (limit, limit);
        let (routes, limits_map) = (self.map(map::ROUTES)?, self.map(map::LIMITS)?);
        for circle in order.chunks(pairs / circles) {
            for (place, &number) in circle.iter().enumerate() {
                let next = circle[(place + 1) % circle.len()];
                let slot = chosen[number % chosen.len()];
                bpf::update(limits_map, &slot.to_ne_bytes(), bpf::bytes(&limits))?;
                for (key, target) in hops(number, next, slot) {
                    let route = Route::new(&key, &target);
                    bpf::update(routes, bpf::bytes(&key), bpf::bytes(&route))?;
                }
            }
        }
        Ok(())
    }

    fn first_frame(&self) -> Vec<u8> {
        frame_of(client(0))
    }

    fn run(&mut self) -> Result<f64> {
        let tested = self.program.test(&self.first_frame(), REPEAT)?;
        ensure!(
            leaves(&tested),
            "towpath's program ended with verdict {}",
            tested.verdict
        );
        Ok(f64::from(tested.duration_ns))
    }

    fn map_bytes(&self) -> Result<BTreeMap<String, u64>> {
        let names = [map::ROUTES, map::NEXT_HOPS, map::LIMITS, map::METERS];
        names
            .into_iter()
            .map(|name| Ok((name.to_owned(), bpf::map_bytes(self.map(name)?)?)))
            .collect()
    }
}

/// The route of a client's packets, and that of what becomes of them, which leads to client `next`.
fn hops(number: usize, next: usize, slot: u32) -> [(RouteKey, Target); 2] {
    let address = |address: SocketAddrV4| SocketAddr::V4(address);
    let target = |source, destination, channel, up_slot, down_slot| Target {
        destination: address(destination),
        source: address(source),
        channel,
        up_slot,
        down_slot,
        next_hop: 0,
        generation: 1,
        expires: u64::MAX,
    };
    [
        (
            RouteKey::new(address(client(number)), address(LISTENER), CHANNEL),
            target(relayed(number), peer(number), 0, slot, 0),
        ),
        (
            RouteKey::new(address(relayed(number)), address(peer(number)), 0),
            target(client(next), LISTENER, CHANNEL, 0, slot),
        ),
    ]
}

/// Every packet of the circle leaves, and the last one is the first.
fn check_circle(program: &XdpProgram, frame: &[u8], routes: u32) -> Result<()> {
    let half = program.test(frame, routes / 2)?;
    let whole = program.test(frame, routes)?;
    ensure!(
        leaves(&whole) && whole.frame == frame,
        "a circle of {routes} routes ends elsewhere, with verdict {}",
        whole.verdict
    );
    ensure!(
        half.frame != frame,
        "a circle of {routes} routes is shorter"
    );
    Ok(())
}

fn leaves(tested: &Tested) -> bool {
    tested.verdict == verdict::REDIRECT || tested.verdict == verdict::TX
}

/// xorshift: the same order in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests;
