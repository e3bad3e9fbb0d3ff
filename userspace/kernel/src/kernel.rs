//! Loads the program, attaches it, and gives access to its maps.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aya::maps::{Map, MapData};
use aya::programs::Xdp;
use aya::programs::links::FdLink;
use aya::{Ebpf, EbpfLoader};
use towpath_ebpf_common::reason::{Count, Reason};
use towpath_ebpf_common::route::{LocalKey, PROGRAM, entries, map};
use towpath_ebpf_common::strangers::StrangerLimits;
use towpath_proto::Timestamp;

use crate::attach::{Attached, InterfaceRung, Rung, attach};
use crate::config::{KernelConfig, Mode};
use crate::layout::{Layout, Shape};
use crate::map::Table;
use crate::netlink::{Link, Requests};
use crate::next_hops::{Follower, NextHops};
use crate::pin_directory::{self, Opened, PinDirectory};
use crate::probe::{check_capabilities, check_clock};
use crate::reasons::Reasons;
use crate::refusal::{KernelError, Refusal, chain};
use crate::routes::Routes;
use crate::settings::SettingsMap;
use crate::slots::MappedSlots;
use crate::strangers::StrangersMap;
use crate::xdp_features::takes_frames;

/// Most peers and routes one process is configured for.
const MAX_ENTRIES: u32 = 1 << 24;

/// The kernel path of a daemon: everything of it that works here, and why the rest does not.
///
/// Dropping it leaves pinned maps and programs where they are: the kernel goes on relaying. Without
/// pins the program leaves its interfaces.
#[derive(Debug)]
pub struct Kernel {
    rungs: Vec<InterfaceRung>,
    maps: Option<Maps>,
    next_hops: Option<NextHops>,
    unpinned: Option<String>,
    /// Keep the program on interfaces whose link is not pinned.
    _links: Vec<FdLink>,
    _follower: Option<Follower>,
    _ebpf: Option<Ebpf>,
    /// Last, so that nobody else takes the pins before all else is gone.
    pins: Option<PinDirectory>,
}

/// Typed access to all maps of the program.
#[derive(Debug)]
struct Maps {
    routes: Routes,
    slots: Arc<MappedSlots>,
    settings: Arc<SettingsMap>,
    strangers: StrangersMap,
    reasons: Reasons,
    locals: Mutex<Locals>,
}

#[derive(Debug)]
struct Locals {
    table: Table<LocalKey, u32>,
    written: HashSet<LocalKey>,
}

/// What came of loading.
struct Loaded {
    ebpf: Ebpf,
    pins: Option<PinDirectory>,
    unpinned: Option<String>,
}

impl Kernel {
    /// Loads and attaches the program that is built in.
    ///
    /// Pinned maps of an earlier process are used again; its routes are removed, as its allocations
    /// are gone. Links it pinned are taken over without a gap.
    ///
    /// # Errors
    ///
    /// Where the configuration is wrong, or asks for a rung that cannot be had. With
    /// [`Mode::Auto`] what cannot be had is a reason of [`rungs`](Self::rungs), not an error.
    pub fn start(config: &KernelConfig) -> Result<Self, KernelError> {
        Self::start_with(config, crate::OBJECT)
    }

    /// As [`start`](Self::start), with another object.
    pub(crate) fn start_with(config: &KernelConfig, object: &[u8]) -> Result<Self, KernelError> {
        check(config)?;
        if config.mode == Mode::Off {
            return Ok(Self::in_userspace(config, &Refusal::Off));
        }
        let links = match find_links(config) {
            Ok(links) => Ok(links?),
            Err(error) => Err(Refusal::Io("the interfaces cannot be read", error)),
        };
        let started = links.and_then(|links| {
            let loaded = load(config, object)?;
            Self::attach_all(config, &links, loaded)
        });
        match started {
            Ok(Ok(kernel)) => Ok(kernel),
            Ok(Err(error)) => Err(error),
            Err(refusal) if config.mode == Mode::Auto => Ok(Self::in_userspace(config, &refusal)),
            Err(refusal) => Err(KernelError::Impossible {
                mode: config.mode,
                reason: refusal.to_string(),
            }),
        }
    }

    /// Nothing in the kernel.
    fn in_userspace(config: &KernelConfig, refusal: &Refusal) -> Self {
        let rungs = config.interfaces.iter().map(|interface| InterfaceRung {
            interface: interface.clone(),
            rung: Rung::Userspace,
            reason: Some(refusal.to_string()),
        });
        Self {
            rungs: rungs.collect(),
            maps: None,
            next_hops: None,
            unpinned: Some(refusal.to_string()),
            _links: Vec::new(),
            _follower: None,
            _ebpf: None,
            pins: None,
        }
    }

    fn attach_all(
        config: &KernelConfig,
        links: &[Link],
        mut loaded: Loaded,
    ) -> Result<Result<Self, KernelError>, Refusal> {
        let maps = Maps::new(&loaded.ebpf, config)?;
        maps.prepare(config)?;
        let next_hops = Table::new(fd(&loaded.ebpf, map::NEXT_HOPS)?);
        let pins = loaded.pins.as_ref();
        if let Some(pins) = pins {
            let keep: Vec<u32> = links.iter().map(|link| link.index).collect();
            pins.remove_links_except(&keep)
                .map_err(|error| Refusal::Io("pinned links cannot be removed", error))?;
        }
        let program: &mut Xdp = loaded
            .ebpf
            .program_mut(PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or(Refusal::NoProgram)?;
        program
            .load()
            .map_err(|error| Refusal::Program(Box::new(error)))?;
        let mut rungs = Vec::new();
        let mut kept = Vec::new();
        let mut egress = Vec::new();
        for link in links {
            match attach(program, link, config.mode, pins) {
                Ok(attached) => {
                    egress.push((link.index, attached.rung));
                    rungs.push(on_rung(link, &attached));
                    kept.extend(attached.link);
                }
                Err(reason) if config.mode == Mode::Auto => rungs.push(InterfaceRung {
                    interface: link.name.clone(),
                    rung: Rung::Userspace,
                    reason: Some(reason),
                }),
                Err(reason) => {
                    // What was asked for is not there: nothing is left of it.
                    if let Some(pins) = pins {
                        let _ = pins.remove_links_except(&[]);
                    }
                    return Ok(Err(KernelError::Impossible {
                        mode: config.mode,
                        reason: format!("{}: {reason}", link.name),
                    }));
                }
            }
        }
        let (next_hops, follower) = if egress.is_empty() {
            (None, None)
        } else {
            let usable = usable_egress(&egress);
            let next_hops = NextHops::new(next_hops, config.max_routes, usable)
                .map_err(|error| Refusal::Io("next hops cannot be resolved", error))?;
            let follower = Follower::start(next_hops.clone())
                .map_err(|error| Refusal::Io("next hops cannot be followed", error))?;
            (Some(next_hops), Some(follower))
        };
        maps.settings.set_forwarding(!egress.is_empty());
        Ok(Ok(Self {
            rungs,
            maps: Some(maps),
            next_hops,
            unpinned: loaded.unpinned,
            _links: kept,
            _follower: follower,
            _ebpf: Some(loaded.ebpf),
            pins: loaded.pins,
        }))
    }

    /// The rung of each interface, and why it is not a better one.
    pub fn rungs(&self) -> &[InterfaceRung] {
        &self.rungs
    }

    /// Whether packets of any interface are relayed in the kernel.
    pub fn forwards(&self) -> bool {
        self.next_hops.is_some()
    }

    /// The program's routes; `None` where it is on no interface.
    pub fn routes(&self) -> Option<Routes> {
        let maps = self.maps.as_ref().filter(|_| self.forwards());
        maps.map(|maps| maps.routes.clone())
    }

    /// Where packets go next; `None` where the program is on no interface.
    pub fn next_hops(&self) -> Option<NextHops> {
        self.next_hops.clone()
    }

    /// The peers' slots; `None` where there are no maps.
    pub fn slots(&self) -> Option<Arc<MappedSlots>> {
        self.maps.as_ref().map(|maps| Arc::clone(&maps.slots))
    }

    /// What the program is told; `None` where there are no maps.
    pub fn settings(&self) -> Option<Arc<SettingsMap>> {
        self.maps.as_ref().map(|maps| Arc::clone(&maps.settings))
    }

    /// What the program decided, by reason; empty where there are no maps.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses to read them.
    pub fn reasons(&self) -> io::Result<Vec<(Reason, Count)>> {
        match &self.maps {
            Some(maps) => maps.reasons.read(),
            None => Ok(Vec::new()),
        }
    }

    /// Tells the program the relay's own addresses, specific ones: a packet to one of them that
    /// nobody listens for stays unanswered. At start they are those of the configuration.
    ///
    /// # Errors
    ///
    /// Where there are more of them than there is room for, or the kernel refuses.
    pub fn set_locals(
        &self,
        listeners: &[SocketAddr],
        relay_addresses: &[IpAddr],
    ) -> io::Result<()> {
        let Some(maps) = &self.maps else {
            return Ok(());
        };
        maps.set_locals(listeners, relay_addresses)
    }

    /// Limits what strangers are answered from the next packet on. At start the limits are those of the
    /// configuration.
    pub fn set_strangers(&self, limits: &StrangerLimits) {
        if let Some(maps) = &self.maps {
            maps.strangers.set(limits);
        }
    }

    /// Why nothing outlives this process; `None` where maps and links are pinned.
    pub fn unpinned(&self) -> Option<&str> {
        self.unpinned.as_deref()
    }

    /// Where maps and links are pinned.
    pub fn pins(&self) -> Option<&Path> {
        self.pins.as_ref().map(PinDirectory::path)
    }

    /// Removes every pin under `directory`: the program leaves its interfaces, and limits, counters
    /// and routes are gone. Returns how many pins there were.
    ///
    /// # Errors
    ///
    /// Where a process serves with them, or the kernel refuses.
    pub fn remove_pins(directory: &Path) -> io::Result<usize> {
        pin_directory::remove_all(directory)
    }
}

fn on_rung(link: &Link, attached: &Attached) -> InterfaceRung {
    tracing::debug!(
        interface = link.name,
        rung = attached.rung.name(),
        taken_over = attached.taken_over,
        "the program is attached"
    );
    InterfaceRung {
        interface: link.name.clone(),
        rung: attached.rung,
        reason: attached.reason.clone(),
    }
}

/// The interfaces that packets from every attached interface can be handed to. A native program
/// hands frames to drivers, and one that takes none loses them without a trace. So where rungs are
/// mixed, routes out of the generic ones are not for the kernel.
fn usable_egress(attached: &[(u32, Rung)]) -> HashSet<u32> {
    let any_native = attached.iter().any(|(_, rung)| *rung == Rung::Native);
    // What goes back out of the interface it came in by is not handed to anybody.
    let alone = attached.len() == 1;
    let usable = attached.iter().filter(|(index, rung)| {
        let is_native = *rung == Rung::Native;
        !any_native || (is_native && (alone || takes_frames(*index) != Some(false)))
    });
    usable.map(|(index, _)| *index).collect()
}

impl Maps {
    fn new(ebpf: &Ebpf, config: &KernelConfig) -> Result<Self, Refusal> {
        let mapping = |error| Refusal::Io("a map cannot be mapped", error);
        let settings = SettingsMap::new(fd(ebpf, map::SETTINGS)?).map_err(mapping)?;
        let settings = Arc::new(settings);
        let slots = MappedSlots::new(
            fd(ebpf, map::LIMITS)?,
            fd(ebpf, map::METERS)?,
            Table::new(fd(ebpf, map::IDENTITIES)?),
            Arc::clone(&settings),
            crate::layout::slots(config.max_peers),
        );
        let locals = Table::new(fd(ebpf, map::LOCALS)?);
        let written = locals
            .keys(entries::LOCALS)
            .map_err(|error| Refusal::Io("own addresses cannot be read", error))?;
        Ok(Self {
            routes: Routes::new(Table::new(fd(ebpf, map::ROUTES)?), config.max_routes),
            slots: Arc::new(slots.map_err(mapping)?),
            settings,
            strangers: StrangersMap::new(fd(ebpf, map::STRANGER_LIMITS)?).map_err(mapping)?,
            reasons: Reasons::new(Table::new(fd(ebpf, map::REASONS)?))
                .map_err(|error| Refusal::Io("the CPUs cannot be counted", error))?,
            locals: Mutex::new(Locals {
                table: locals,
                written: written.into_iter().collect(),
            }),
        })
    }

    /// Makes maps that an earlier process may have left say what this one means. Its routes go first.
    /// Its program, if it is on an interface, goes on: packets for the relay that nobody listens for
    /// yet stay unanswered.
    fn prepare(&self, config: &KernelConfig) -> Result<(), Refusal> {
        self.routes.flush().map_err(|error| {
            let error = io::Error::other(chain(&error));
            Refusal::Io("old routes cannot be removed", error)
        })?;
        let recovered = self
            .slots
            .recover(now())
            .map_err(|error| Refusal::Io("the slots' owners cannot be read", error))?;
        tracing::debug!(?recovered, "peers' slots");
        self.settings
            .set_ports(*config.relay_ports.start(), *config.relay_ports.end());
        self.strangers.set(&config.strangers);
        self.set_locals(&config.listeners, &config.relay_addresses)
            .map_err(|error| Refusal::Io("own addresses cannot be written", error))
    }

    fn set_locals(&self, listeners: &[SocketAddr], relay: &[IpAddr]) -> io::Result<()> {
        let listeners = listeners.iter().copied().map(LocalKey::listening);
        let relay = relay.iter().copied().map(LocalKey::relaying);
        let wanted: HashSet<LocalKey> = listeners.chain(relay).collect();
        let mut locals = self.locals.lock().unwrap_or_else(PoisonError::into_inner);
        let Locals { table, written } = &mut *locals;
        for gone in written.difference(&wanted).copied().collect::<Vec<_>>() {
            table.remove(&gone)?;
            written.remove(&gone);
        }
        for new in wanted {
            if !written.contains(&new) {
                table.insert(&new, &1)?;
                written.insert(new);
            }
        }
        Ok(())
    }
}

/// The clock of the program and of the machines.
fn now() -> Timestamp {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let since_boot = Duration::new(
        now.tv_sec.try_into().unwrap_or(0),
        now.tv_nsec.try_into().unwrap_or(0),
    );
    Timestamp::ZERO + since_boot
}

fn check(config: &KernelConfig) -> Result<(), KernelError> {
    for (name, value) in [
        ("max_peers", config.max_peers),
        ("max_routes", config.max_routes),
    ] {
        if value == 0 || value > MAX_ENTRIES {
            return Err(KernelError::Size {
                name,
                value,
                max: MAX_ENTRIES,
            });
        }
    }
    let among = |listener: &&SocketAddr| config.relay_ports.contains(&listener.port());
    if let Some(listener) = config.listeners.iter().find(among) {
        return Err(KernelError::ListenerAmongRelayedPorts {
            listener: *listener,
            port: listener.port(),
            min: *config.relay_ports.start(),
            max: *config.relay_ports.end(),
        });
    }
    match config.mode {
        Mode::Native | Mode::Generic if config.interfaces.is_empty() => {
            Err(KernelError::NoInterfaces)
        }
        Mode::Auto | Mode::Native | Mode::Generic | Mode::Off => Ok(()),
    }
}

fn find_links(config: &KernelConfig) -> io::Result<Result<Vec<Link>, KernelError>> {
    let mut requests = Requests::new()?;
    let mut links: Vec<Link> = Vec::new();
    for name in &config.interfaces {
        let Some(link) = requests.link_named(name)? else {
            return Ok(Err(KernelError::UnknownInterface(name.clone())));
        };
        if !links.iter().any(|known| known.index == link.index) {
            links.push(link);
        }
    }
    Ok(Ok(links))
}

/// Makes or opens the maps, and checks all of them.
fn load(config: &KernelConfig, object: &[u8]) -> Result<Loaded, Refusal> {
    check_clock()?;
    check_capabilities()?;
    let (pins, unpinned) = match PinDirectory::open(&config.pin_directory)? {
        Opened::Usable(pins) => (Some(pins), None),
        Opened::Unusable(reason) => (None, Some(reason)),
    };
    let layout = Layout::new(config);
    let mut loader = EbpfLoader::new();
    for (name, expected) in layout.maps() {
        loader.map_max_entries(name, expected.entries);
        let Some(pins) = &pins else {
            continue;
        };
        let path = pins.map(name);
        if path.exists() {
            // The loader takes a pin as it is, whatever its shape.
            let found = MapData::from_pin(&path)
                .and_then(|data| Shape::of(&data))
                .map_err(Refusal::Map)?;
            if found != expected {
                return Err(Refusal::Pinned {
                    path,
                    found,
                    expected,
                });
            }
        }
        loader.map_pin_path(name, path);
    }
    let ebpf = loader
        .load(object)
        .map_err(|error| Refusal::Load(Box::new(error)))?;
    for (name, expected) in layout.maps() {
        let found = match ebpf.map(name) {
            Some(map) => {
                Some(Shape::of(data(map).ok_or(Refusal::NoProgram)?).map_err(Refusal::Map)?)
            }
            None => None,
        };
        if found != Some(expected) {
            return Err(Refusal::Object {
                map: name,
                found,
                expected,
            });
        }
        if let Some(pins) = &pins {
            pins.protect(&pins.map(name))
                .map_err(|error| Refusal::Io("a pin cannot be protected", error))?;
        }
    }
    Ok(Loaded {
        ebpf,
        pins,
        unpinned,
    })
}

/// A map's descriptor, whatever its type.
const fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::PerCpuArray(data) => Some(data),
        _ => None,
    }
}

fn fd(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, Refusal> {
    let map = ebpf.map(name).and_then(data).ok_or(Refusal::NoProgram)?;
    map.fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| Refusal::Io("a map's descriptor cannot be copied", error))
}
