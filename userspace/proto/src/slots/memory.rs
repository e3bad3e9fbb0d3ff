//! Slots in ordinary memory.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use towpath_ebpf_common::meter::{FIRST_PEER_SLOT, Limits, Meter};

use super::book::{Acquired, SlotBook};
use super::{Identity, PeerSlot, Slot, Slots};
use crate::Timestamp;

/// Slots that are made at a time, when the first of them is used.
const SEGMENT_SLOTS: usize = 256;

/// The slots of a relay without kernel maps. Memory is taken as slots are used, 192 bytes for each.
#[derive(Debug)]
pub struct MemorySlots {
    segments: Box<[OnceLock<Segment>]>,
    slots: u32,
    global_limit: AtomicU64,
    book: Mutex<SlotBook>,
}

type Segment = Box<[Memory; SEGMENT_SLOTS]>;

#[derive(Debug, Default)]
struct Memory {
    limits: Limits<AtomicU64>,
    meter: Meter<AtomicU64>,
}

const _: () = assert!(FIRST_PEER_SLOT <= SEGMENT_SLOTS as u32);

impl MemorySlots {
    /// Slots for this many peers; nobody is limited.
    pub fn new(peers: u32) -> Self {
        let slots = peers.saturating_add(FIRST_PEER_SLOT);
        let segments = (slots as usize).div_ceil(SEGMENT_SLOTS);
        let made = Self {
            segments: (0..segments).map(|_| OnceLock::new()).collect(),
            slots,
            global_limit: AtomicU64::new(0),
            book: Mutex::new(SlotBook::new(slots)),
        };
        made.make(PeerSlot::NOBODY);
        made
    }

    /// Makes the segment of a slot.
    fn make(&self, slot: PeerSlot) {
        let segment = || Box::new(std::array::from_fn(|_| Memory::default()));
        self.segments[slot.0 as usize / SEGMENT_SLOTS].get_or_init(segment);
    }

    fn book(&self) -> MutexGuard<'_, SlotBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots for MemorySlots {
    fn acquire(&self, now: Timestamp, identity: &Identity) -> Option<PeerSlot> {
        let mut book = self.book();
        let unlimited = |slot| {
            self.slot(slot)
                .is_none_or(|memory| !memory.has_own_limits())
        };
        match book.acquire(now, identity, unlimited)? {
            Acquired::Known(slot) => Some(slot),
            Acquired::New(slot, _) => {
                self.make(slot);
                let defaults = self.slot(PeerSlot::DEFAULT)?.limits;
                self.slot(slot)?.begin(identity.owner(), defaults);
                Some(slot)
            }
        }
    }

    fn release(&self, now: Timestamp, slot: PeerSlot) {
        self.book().release(now, slot);
    }

    #[inline]
    fn slot(&self, slot: PeerSlot) -> Option<Slot<'_>> {
        if slot.0 >= self.slots {
            return None;
        }
        let index = slot.0 as usize;
        let segment = self.segments.get(index / SEGMENT_SLOTS)?.get()?;
        let memory = &segment[index % SEGMENT_SLOTS];
        Some(Slot {
            limits: &memory.limits,
            meter: &memory.meter,
        })
    }

    fn global_limit(&self) -> &AtomicU64 {
        &self.global_limit
    }

    fn len(&self) -> u32 {
        self.slots
    }

    fn identities(&self) -> Vec<(PeerSlot, Identity)> {
        let book = self.book();
        let all = book.identities();
        all.map(|(slot, identity)| (slot, identity.clone()))
            .collect()
    }

    fn find(&self, identity: &Identity) -> Option<PeerSlot> {
        self.book().find(identity)
    }
}
