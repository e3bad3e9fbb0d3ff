//! What every map must look like: a pinned one that looks different is not used.

use std::fmt;

use aya::maps::{MapData, MapError, MapInfo, MapType};
use towpath_ebpf_common::meter::{FIRST_PEER_SLOT, IdentityHash, IdentityRecord, Limits, Meter};
use towpath_ebpf_common::reason::{Count, Reason};
use towpath_ebpf_common::route::{LocalKey, NextHop, Route, RouteKey, Settings, entries, map};
use towpath_ebpf_common::strangers::{self, StrangerLimits};

use crate::config::KernelConfig;

/// `BPF_F_MMAPABLE` of linux/bpf.h.
const MMAPABLE: u32 = 1 << 10;

/// The shape of a map.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Shape {
    pub(crate) kind: MapType,
    pub(crate) key_bytes: u32,
    pub(crate) value_bytes: u32,
    pub(crate) entries: u32,
    pub(crate) flags: u32,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} of {} entries, keys of {} and values of {} bytes, flags {:#x}",
            self.kind, self.entries, self.key_bytes, self.value_bytes, self.flags
        )
    }
}

impl Shape {
    const fn new(kind: MapType, key: usize, value: usize, entries: u32, flags: u32) -> Self {
        Self {
            kind,
            key_bytes: key as u32,
            value_bytes: value as u32,
            entries,
            flags,
        }
    }

    /// The shape of a map that exists.
    pub(crate) fn of(data: &MapData) -> Result<Self, MapError> {
        let info = data.info()?;
        Self::of_info(&info)
    }

    fn of_info(info: &MapInfo) -> Result<Self, MapError> {
        Ok(Self {
            kind: info.map_type()?,
            key_bytes: info.key_size(),
            value_bytes: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags(),
        })
    }
}

/// Slots that are made for this many peers.
pub(crate) const fn slots(max_peers: u32) -> u32 {
    max_peers.saturating_add(FIRST_PEER_SLOT)
}

/// The maps and how large they are made.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Layout {
    maps: Vec<(&'static str, Shape)>,
}

impl Layout {
    /// The maps for a configuration.
    pub(crate) fn new(config: &KernelConfig) -> Self {
        const KEY: usize = size_of::<u32>();
        let slots = slots(config.max_peers);
        let hash = |key, value, entries| Shape::new(MapType::Hash, key, value, entries, 0);
        let array = |value, entries, flags| Shape::new(MapType::Array, KEY, value, entries, flags);
        let per_cpu = |value, entries| Shape::new(MapType::PerCpuArray, KEY, value, entries, 0);
        Self {
            maps: vec![
                (
                    map::ROUTES,
                    hash(size_of::<RouteKey>(), size_of::<Route>(), config.max_routes),
                ),
                // Every route may lead to a destination of its own.
                (
                    map::NEXT_HOPS,
                    array(size_of::<NextHop>(), config.max_routes, 0),
                ),
                (
                    map::LOCALS,
                    hash(size_of::<LocalKey>(), KEY, entries::LOCALS),
                ),
                (map::SETTINGS, array(size_of::<Settings>(), 1, MMAPABLE)),
                (map::REASONS, per_cpu(size_of::<Count>(), Reason::COUNT)),
                (map::LEASES, per_cpu(size_of::<u64>(), 1)),
                (
                    map::LIMITS,
                    array(size_of::<Limits<u64>>(), slots, MMAPABLE),
                ),
                (map::METERS, array(size_of::<Meter<u64>>(), slots, MMAPABLE)),
                (
                    map::IDENTITIES,
                    hash(
                        size_of::<IdentityHash>(),
                        size_of::<IdentityRecord>(),
                        config.max_peers,
                    ),
                ),
                (
                    map::STRANGER_LIMITS,
                    array(size_of::<StrangerLimits>(), 1, MMAPABLE),
                ),
                (
                    map::STRANGERS,
                    array(size_of::<u64>(), strangers::BUDGETS, 0),
                ),
                (map::SEEN, array(size_of::<u64>(), strangers::SEEN, 0)),
            ],
        }
    }

    /// Names and shapes.
    pub(crate) fn maps(&self) -> impl Iterator<Item = (&'static str, Shape)> {
        self.maps.iter().copied()
    }

    /// The shape of a map by its name.
    pub(crate) fn shape(&self, name: &str) -> Option<Shape> {
        let found = self.maps.iter().find(|(known, _)| *known == name);
        found.map(|(_, shape)| *shape)
    }
}
