//! The committed object, loaded into the kernel with maps of its own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{ProgramInfo, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use towpath_ebpf_common::meter::{Limits, Meter};
use towpath_ebpf_common::reason::{Count, Reason};
use towpath_ebpf_common::route::{
    self, LAYOUT, LocalKey, NextHop, PROGRAM, Route, RouteKey, Settings, Target, flag,
};
use towpath_ebpf_common::strangers::StrangerLimits;

/// The program as built by `cargo xtask ebpf`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/dist/towpath.bpf.o");

/// Names a file with another object to test.
const OBJECT_VARIABLE: &str = "TOWPATH_EBPF_OBJECT";

/// The interface packets come in by: loopback, which every network namespace has.
pub const RUN_INTERFACE: u32 = 1;

/// Entries of the large maps.
const ENTRIES: u32 = 4096;

/// A value of a map as its bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Bytes<T>(T);

// SAFETY: the layouts of ebpf/common are `repr(C)`, have no padding, and any bytes are a value.
unsafe impl<T: Copy + 'static> Pod for Bytes<T> {}

/// What a program says about a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The program failed.
    Aborted,
    /// The packet goes no further.
    Drop,
    /// The stack gets it.
    Pass,
    /// It leaves by the interface it came in by.
    Transmit,
    /// It leaves by another.
    Redirect,
}

impl Verdict {
    fn new(code: u32) -> Result<Self> {
        Ok(match code {
            0 => Self::Aborted,
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Transmit,
            4 => Self::Redirect,
            code => anyhow::bail!("{code} is no verdict"),
        })
    }
}

/// What became of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// What the program said.
    pub verdict: Verdict,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// The reason that was counted.
    pub reason: Reason,
}

/// The loaded program and its maps.
pub struct Program {
    ebpf: Ebpf,
    /// What was counted when a packet was last looked at.
    counted: Vec<Count>,
}

impl Program {
    /// Loads the object; an error names what the kernel did not like. `None` without root.
    pub fn load() -> Result<Option<Self>> {
        if !may_load() {
            return Ok(None);
        }
        Self::with_entries(ENTRIES).map(Some)
    }

    /// Loads the object with this many routes and slots.
    pub fn with_entries(entries: u32) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for map in [
            route::map::ROUTES,
            route::map::LIMITS,
            route::map::METERS,
            route::map::IDENTITIES,
        ] {
            loader.map_max_entries(map, entries);
        }
        let mut ebpf = match std::env::var_os(OBJECT_VARIABLE) {
            Some(path) => loader.load_file(path),
            None => loader.load(OBJECT),
        }
        .context("the object")?;
        let program: &mut Xdp = ebpf.program_mut(PROGRAM).context(PROGRAM)?.try_into()?;
        program.load().context("the verifier")?;
        let mut program = Self {
            ebpf,
            counted: vec![Count::default(); Reason::ALL.len()],
        };
        program.set_settings(Settings {
            layout: LAYOUT,
            ports: Settings::ports(49_152, 65_535),
            flags: flag::FORWARD,
            ..Settings::default()
        })?;
        Ok(program)
    }

    /// What the kernel says about the program.
    pub fn info(&self) -> Result<ProgramInfo> {
        Ok(self.ebpf.program(PROGRAM).context(PROGRAM)?.info()?)
    }

    /// Hands a packet to the program, once.
    pub fn run(&mut self, packet: &[u8]) -> Result<Outcome> {
        let (verdict, packet, _) = self.repeat(packet, 1)?;
        let after = self.reasons()?;
        let before = std::mem::replace(&mut self.counted, after);
        let mut counted = Reason::ALL
            .into_iter()
            .zip(before.iter().zip(&self.counted));
        let (reason, _) = counted
            .find(|(_, (before, after))| before.packets != after.packets)
            .context("no reason was counted")?;
        Ok(Outcome {
            verdict,
            packet,
            reason,
        })
    }

    /// Hands a packet to the program many times, each time as the last left it. Returns the last
    /// verdict, the packet, and how long one run took.
    pub fn repeat(&self, packet: &[u8], times: u32) -> Result<(Verdict, Vec<u8>, Duration)> {
        let program: &Xdp = self
            .ebpf
            .program(PROGRAM)
            .context(PROGRAM)?
            .try_into()
            .context("not XDP")?;
        run(program, packet, times)
    }

    /// Sets a route.
    pub fn set_route(&mut self, key: &RouteKey, target: &Target) -> Result<()> {
        let mut routes: HashMap<_, Bytes<RouteKey>, Bytes<Route>> =
            HashMap::try_from(self.map(route::map::ROUTES)?)?;
        routes.insert(Bytes(*key), Bytes(Route::new(key, target)), 0)?;
        Ok(())
    }

    /// Removes a route.
    pub fn remove_route(&mut self, key: &RouteKey) -> Result<()> {
        let mut routes: HashMap<_, Bytes<RouteKey>, Bytes<Route>> =
            HashMap::try_from(self.map(route::map::ROUTES)?)?;
        routes.remove(&Bytes(*key))?;
        Ok(())
    }

    /// Sets a next hop.
    pub fn set_next_hop(&mut self, index: u32, next_hop: NextHop) -> Result<()> {
        self.set(route::map::NEXT_HOPS, index, next_hop)
    }

    /// Names an address of the relay's own.
    pub fn add_local(&mut self, key: LocalKey) -> Result<()> {
        let mut locals: HashMap<_, Bytes<LocalKey>, u32> =
            HashMap::try_from(self.map(route::map::LOCALS)?)?;
        locals.insert(Bytes(key), 1, 0)?;
        Ok(())
    }

    /// Changes the settings.
    pub fn set_settings(&mut self, settings: Settings) -> Result<()> {
        self.set(route::map::SETTINGS, 0, settings)
    }

    /// The settings.
    pub fn settings(&mut self) -> Result<Settings> {
        self.get(route::map::SETTINGS, 0)
    }

    /// Has the relay listen at this address, and have no relayed ports.
    pub fn listen_alone(&mut self, address: SocketAddr) -> Result<()> {
        let settings = self.settings()?;
        self.set_settings(Settings {
            ports: 0,
            ..settings
        })?;
        self.add_local(LocalKey::listening(address))
    }

    /// Sets what a slot is limited to.
    pub fn set_limits(&mut self, slot: u32, limits: Limits<u64>) -> Result<()> {
        self.set(route::map::LIMITS, slot, limits)
    }

    /// Sets what strangers are answered.
    pub fn set_strangers(&mut self, limits: StrangerLimits) -> Result<()> {
        self.set(route::map::STRANGER_LIMITS, 0, limits)
    }

    /// What a slot did.
    pub fn meter(&mut self, slot: u32) -> Result<Meter<u64>> {
        self.get(route::map::METERS, slot)
    }

    /// Sets what a slot did.
    pub fn set_meter(&mut self, slot: u32, meter: Meter<u64>) -> Result<()> {
        self.set(route::map::METERS, slot, meter)
    }

    /// What was counted for each reason, all CPUs together.
    pub fn reasons(&self) -> Result<Vec<Count>> {
        let map = self.ebpf.map(route::map::REASONS);
        let map = map.context(route::map::REASONS)?;
        let reasons: PerCpuArray<_, Bytes<Count>> = PerCpuArray::try_from(map)?;
        let sum = |reason: Reason| {
            let mut sum = Count::default();
            for Bytes(count) in reasons.get(&(reason as u32), 0)?.iter() {
                sum.packets += count.packets;
                sum.bytes += count.bytes;
            }
            Ok(sum)
        };
        Reason::ALL.into_iter().map(sum).collect()
    }

    fn set<T: Copy + 'static>(&mut self, map: &str, index: u32, value: T) -> Result<()> {
        let mut array: Array<_, Bytes<T>> = Array::try_from(self.map(map)?)?;
        array.set(index, Bytes(value), 0)?;
        Ok(())
    }

    fn get<T: Copy + 'static>(&mut self, map: &str, index: u32) -> Result<T> {
        let array: Array<&mut MapData, Bytes<T>> = Array::try_from(self.map(map)?)?;
        Ok(array.get(&index, 0)?.0)
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf
            .map_mut(name)
            .with_context(|| format!("the map {name}"))
    }
}

/// Hands a packet to a program, which sees it come in by [`RUN_INTERFACE`].
fn run(program: &Xdp, packet: &[u8], times: u32) -> Result<(Verdict, Vec<u8>, Duration)> {
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&u32::try_from(packet.len())?.to_ne_bytes());
    context[12..16].copy_from_slice(&RUN_INTERFACE.to_ne_bytes());
    let mut out = vec![0; packet.len() + 64];
    let result = program.test_run(TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        repeat: times,
        ..TestRunOptions::default()
    })?;
    out.truncate(result.data_size_out as usize);
    Ok((Verdict::new(result.return_value)?, out, result.duration))
}

/// Now, by the clock routes expire by.
pub fn now() -> u64 {
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    uptime.tv_sec as u64 * 1_000_000_000 + uptime.tv_nsec as u64
}

fn may_load() -> bool {
    rustix::process::geteuid().is_root()
}
