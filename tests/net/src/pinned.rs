//! The maps a server has pinned: what the kernel decided, and what it charged to whom.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use towpath_ebpf_common::meter::{Direction, Limits, Meter};
use towpath_ebpf_common::reason::{Fate, Reason};
use towpath_kernel::{MappedSlots, Pins};
use towpath_proto::slots::{Identity, PeerSlot, Slot, Slots as _};

use crate::server::REALM;

/// A server's maps.
#[derive(Debug)]
pub struct Pinned {
    pins: Pins,
    slots: Arc<MappedSlots>,
}

/// What a peer did in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Used {
    /// Packets that passed.
    pub packets: u64,
    /// Bytes that passed, as charged.
    pub bytes: u64,
    /// Bytes of payload that passed.
    pub payload_bytes: u64,
    /// Packets over the limit.
    pub dropped_packets: u64,
    /// When the last one passed, in nanoseconds of CLOCK_MONOTONIC.
    pub last_seen: u64,
}

impl Pinned {
    /// Opens what is pinned under `directory`.
    ///
    /// # Panics
    ///
    /// Where nothing is.
    pub fn open(directory: &Path) -> Self {
        let pins = Pins::open(directory).unwrap_or_else(|error| panic!("{error}"));
        let slots = pins.slots();
        Self { pins, slots }
    }

    /// How many packets met this end.
    pub fn count(&self, reason: Reason) -> u64 {
        self.total(|other| other == reason)
    }

    /// How many packets the kernel relayed.
    pub fn relayed(&self) -> u64 {
        self.total(|reason| reason.fate() == Fate::Relayed)
    }

    /// All that is not zero, for a failing test to print.
    pub fn reasons(&self) -> Vec<(&'static str, u64)> {
        let counts = self.pins.reasons().read().expect("the map can be read");
        let counts = counts.into_iter().filter(|(_, count)| count.packets != 0);
        counts
            .map(|(reason, count)| (reason.name(), count.packets))
            .collect()
    }

    fn total(&self, which: impl Fn(Reason) -> bool) -> u64 {
        let counts = self.pins.reasons().read().expect("the map can be read");
        let counts = counts.into_iter().filter(|(reason, _)| which(*reason));
        counts.map(|(_, count)| count.packets).sum()
    }

    /// The slot of a user.
    ///
    /// # Panics
    ///
    /// Where the user has none.
    pub fn slot(&self, user: &str) -> usize {
        let identity = Identity::user(REALM, user);
        let slot = self
            .slots
            .find(&identity)
            .map(|PeerSlot(slot)| slot as usize);
        slot.unwrap_or_else(|| panic!("{user} has no slot"))
    }

    /// What a slot may.
    pub fn limits(&self, slot: usize) -> &Limits<AtomicU64> {
        self.memory(slot).limits
    }

    /// What a slot's peer sent.
    pub fn up(&self, slot: usize) -> Used {
        used(&self.meter(slot).up)
    }

    /// What a slot's peer received.
    pub fn down(&self, slot: usize) -> Used {
        used(&self.meter(slot).down)
    }

    fn meter(&self, slot: usize) -> &Meter<AtomicU64> {
        self.memory(slot).meter
    }

    fn memory(&self, slot: usize) -> Slot<'_> {
        let number = u32::try_from(slot).expect("a slot's number");
        let memory = self.slots.slot(PeerSlot(number));
        memory.expect("the slot is one of the map's")
    }
}

fn used(direction: &Direction<AtomicU64>) -> Used {
    Used {
        packets: direction.packets.load(Ordering::Relaxed),
        bytes: direction.bytes.load(Ordering::Relaxed),
        payload_bytes: direction.payload_bytes.load(Ordering::Relaxed),
        dropped_packets: direction.dropped_packets.load(Ordering::Relaxed),
        last_seen: direction.last_seen.load(Ordering::Relaxed),
    }
}
