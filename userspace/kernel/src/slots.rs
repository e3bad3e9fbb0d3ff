//! Peers' slots in the program's maps: limits and meters as memory that the program, this process and
//! others share, and who has which slot.
//!
//! ```text
//!   IDENTITIES  hash ─▶ { slot, kind, realm, name }
//!                          │
//!   LIMITS      [slot]  ◀──┤  owner: the first eight bytes of the hash, claimed by compare-and-swap
//!   METERS      [slot]  ◀──┘
//! ```
//!
//! A slot is taken in this order: owner, limits, record. Where the taker dies on the way, the owner
//! has no record, and [`MappedSlots::recover`] frees the slot.
//!
//! The daemon takes slots that are free, and those whose peer is gone and has no limits of its own.
//! Whoever sets limits, in whatever process, takes free ones only. That the daemon does not give a
//! slot away while somebody sets limits in it, two bits of the slot's flags see to.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use towpath_ebpf_common::meter::{FIRST_PEER_SLOT, IdentityHash, IdentityRecord, Limits, Meter};
use towpath_proto::Timestamp;
use towpath_proto::slots::{Acquired, Identity, PeerSlot, Slot, SlotBook, Slots};

use crate::map::{Mapped, Table};
use crate::settings::SettingsMap;

/// Flag of [`Limits`]: somebody is setting them.
const SETTING: u64 = 1 << 63;
/// Flag of [`Limits`]: the slot is changing hands.
const TAKING: u64 = 1 << 62;

/// How often, and how far apart, a slot that somebody else is at is tried. Whoever is at it for longer
/// is dead.
const TRIES: (u32, Duration) = (50, Duration::from_millis(2));

/// How often a slot may change hands while limits are set in it: slots are that scarce then.
const MAX_MOVES: u32 = 16;

/// The slots, mapped into memory.
#[derive(Debug)]
pub struct MappedSlots {
    limits: Mapped<Limits<AtomicU64>>,
    meters: Mapped<Meter<AtomicU64>>,
    identities: Table<IdentityHash, IdentityRecord>,
    settings: Arc<SettingsMap>,
    slots: u32,
    taken: Mutex<Taken>,
}

/// Who has which slot, as far as this process knows.
#[derive(Debug)]
struct Taken {
    book: SlotBook,
    /// The owners of the slots in the book, by slot; 0 for others.
    owners: Vec<u64>,
}

impl Taken {
    /// Enters a slot that an identity has already; `false` where the book has either.
    fn restore(&mut self, now: Timestamp, slot: PeerSlot, identity: &Identity) -> bool {
        let restored = self.book.restore(now, slot, identity);
        if restored {
            self.owners[slot.0 as usize] = identity.owner();
        }
        restored
    }
}

/// Why limits cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// Every slot has a peer.
    #[error("all {0} slots have a peer already")]
    Full(u32),
    /// The kernel refused.
    #[error("the map of identities: {0}")]
    Refused(#[from] io::Error),
}

/// What [`MappedSlots::recover`] found.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Recovered {
    /// Identities whose slot, limits and counters are as they were.
    pub(crate) kept: usize,
    /// Slots whose taker died before it wrote the record.
    pub(crate) freed: usize,
    /// Records that led to a slot of somebody else's, or could not be read.
    pub(crate) forgotten: usize,
}

impl MappedSlots {
    /// Maps `slots` entries of both arrays.
    pub(crate) fn new(
        limits: OwnedFd,
        meters: OwnedFd,
        identities: Table<IdentityHash, IdentityRecord>,
        settings: Arc<SettingsMap>,
        slots: u32,
    ) -> io::Result<Self> {
        Ok(Self {
            limits: Mapped::new(limits, slots as usize)?,
            meters: Mapped::new(meters, slots as usize)?,
            identities,
            settings,
            slots,
            taken: Mutex::new(Taken {
                book: SlotBook::new(slots),
                owners: vec![0; slots as usize],
            }),
        })
    }

    /// Sets limits of an identity, which gets a slot if it has none. `change` writes them, and may be
    /// called more than once.
    ///
    /// # Errors
    ///
    /// Where every slot has a peer, or the kernel refuses.
    pub fn configure(
        &self,
        identity: &Identity,
        change: impl Fn(&Limits<AtomicU64>),
    ) -> Result<PeerSlot, SlotError> {
        for _ in 0..MAX_MOVES {
            let slot = match self.recorded(identity)? {
                Some(slot) => slot,
                None => self.claim(identity)?,
            };
            let limits = &self.limits[slot.0 as usize];
            begin_setting(limits);
            let is_owner = limits.owner.load(Ordering::SeqCst) == identity.owner();
            if is_owner {
                change(limits);
            }
            limits.flags.fetch_and(!SETTING, Ordering::SeqCst);
            if is_owner {
                return Ok(slot);
            }
            // It changed hands before we were at it: its record is gone too.
        }
        Err(SlotError::Full(self.slots.saturating_sub(FIRST_PEER_SLOT)))
    }

    /// The slot of an identity by its record, if it is the slot's owner.
    fn recorded(&self, identity: &Identity) -> io::Result<Option<PeerSlot>> {
        let record = self.identities.lookup(identity.hash())?;
        Ok(record
            .map(|record| PeerSlot(record.slot))
            .filter(|slot| self.is_owner(*slot, identity.owner())))
    }

    fn is_owner(&self, slot: PeerSlot, owner: u64) -> bool {
        slot.0 >= FIRST_PEER_SLOT
            && self
                .limits
                .get(slot.0 as usize)
                .is_some_and(|limits| limits.owner.load(Ordering::SeqCst) == owner)
    }

    /// Takes a free slot.
    fn claim(&self, identity: &Identity) -> Result<PeerSlot, SlotError> {
        let owner = identity.owner();
        for slot in (FIRST_PEER_SLOT..self.slots).map(PeerSlot) {
            let limits = &self.limits[slot.0 as usize];
            let free = limits
                .owner
                .compare_exchange(0, owner, Ordering::SeqCst, Ordering::SeqCst);
            if free.is_err() {
                continue;
            }
            self.begin(slot, identity);
            if self
                .identities
                .insert_new(identity.hash(), &identity.record(slot.0))?
            {
                return Ok(slot);
            }
            // Somebody was faster with the same identity.
            limits.owner.store(0, Ordering::SeqCst);
            if let Some(slot) = self.recorded(identity)? {
                return Ok(slot);
            }
            // A record that leads nowhere: its slot changed hands while its process died.
            self.identities.remove(identity.hash())?;
        }
        Err(SlotError::Full(self.slots.saturating_sub(FIRST_PEER_SLOT)))
    }

    fn begin(&self, slot: PeerSlot, identity: &Identity) {
        let (Some(taken), Some(defaults)) = (self.slot(slot), self.slot(PeerSlot::DEFAULT)) else {
            return;
        };
        taken.begin(identity.owner(), defaults.limits);
    }

    /// Makes of the maps what the last daemon meant, and enters who has which slot into the book. The
    /// daemon calls it once, before it gives out slots.
    pub(crate) fn recover(&self, now: Timestamp) -> io::Result<Recovered> {
        let mut recovered = Recovered::default();
        let mut owned = vec![false; self.slots as usize];
        for (hash, record) in self.records()? {
            let identity = Identity::from_record(hash, &record);
            let slot = PeerSlot(record.slot);
            match identity.filter(|identity| self.is_owner(slot, identity.owner())) {
                Some(identity) if self.taken().restore(now, slot, &identity) => {
                    owned[slot.0 as usize] = true;
                    recovered.kept += 1;
                }
                _ => {
                    self.identities.remove(&hash)?;
                    recovered.forgotten += 1;
                }
            }
        }
        let slots = self.limits.iter().zip(owned).skip(FIRST_PEER_SLOT as usize);
        for (limits, owned) in slots {
            limits
                .flags
                .fetch_and(!(SETTING | TAKING), Ordering::SeqCst);
            if !owned && limits.owner.swap(0, Ordering::SeqCst) != 0 {
                limits.flags.store(0, Ordering::SeqCst);
                recovered.freed += 1;
            }
        }
        Ok(recovered)
    }

    /// Enters identities that other processes gave a slot. They rest, and those without limits of
    /// their own may be taken for others.
    fn adopt(&self, now: Timestamp, taken: &mut Taken) -> io::Result<()> {
        for (hash, record) in self.records()? {
            if let Some(identity) = Identity::from_record(hash, &record)
                && self.is_owner(PeerSlot(record.slot), identity.owner())
            {
                taken.restore(now, PeerSlot(record.slot), &identity);
            }
        }
        Ok(())
    }

    /// All records. One that is written or removed meanwhile may or may not be among them.
    fn records(&self) -> io::Result<Vec<(IdentityHash, IdentityRecord)>> {
        let mut found = Vec::new();
        let mut hash = None;
        // A key that is removed sends the walk back to the first one; twice the size ends it.
        for _ in 0..self.limits.len().saturating_mul(2) {
            hash = self.identities.next_key(hash.as_ref())?;
            let Some(hash) = hash else {
                break;
            };
            if let Some(record) = self.identities.lookup(&hash)? {
                found.push((hash, record));
            }
        }
        found.sort_unstable_by_key(|(hash, _)| *hash);
        found.dedup_by_key(|(hash, _)| *hash);
        Ok(found)
    }

    fn try_acquire(
        &self,
        now: Timestamp,
        taken: &mut Taken,
        identity: &Identity,
    ) -> io::Result<Option<PeerSlot>> {
        if taken.book.find(identity).is_none()
            && let Some(slot) = self.recorded(identity)?
        {
            // Another process gave it a slot since.
            taken.restore(now, slot, identity);
        }
        let Taken { book, owners } = taken;
        let may_take = |slot: PeerSlot| self.take(slot, owners[slot.0 as usize], identity.owner());
        let (slot, before) = match book.acquire(now, identity, may_take) {
            None => return Ok(None),
            Some(Acquired::Known(slot)) => return Ok(Some(slot)),
            Some(Acquired::New(slot, before)) => (slot, before),
        };
        owners[slot.0 as usize] = identity.owner();
        if let Some(before) = before {
            self.identities.remove(before.hash())?;
        }
        self.begin(slot, identity);
        self.identities
            .insert(identity.hash(), &identity.record(slot.0))?;
        Ok(Some(slot))
    }

    /// Makes a slot `owner`'s, if nobody has it, or `before`, without limits of its own.
    fn take(&self, slot: PeerSlot, before: u64, owner: u64) -> bool {
        let Some(limits) = self.limits.get(slot.0 as usize) else {
            return false;
        };
        let flags = &limits.flags;
        if flags
            .compare_exchange(0, TAKING, Ordering::SeqCst, Ordering::SeqCst)
            .is_err()
        {
            return false;
        }
        let from = |from| {
            let owners = &limits.owner;
            let taken = owners.compare_exchange(from, owner, Ordering::SeqCst, Ordering::SeqCst);
            taken.is_ok()
        };
        let taken = from(0) || (before != 0 && from(before));
        if !taken {
            flags.store(0, Ordering::SeqCst);
        }
        taken
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until nobody else is at a slot's limits, and is at them then.
fn begin_setting(limits: &Limits<AtomicU64>) {
    let (tries, apart) = TRIES;
    for _ in 0..tries {
        let flags = limits.flags.load(Ordering::SeqCst);
        if flags & (SETTING | TAKING) == 0
            && limits
                .flags
                .compare_exchange(flags, flags | SETTING, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        {
            return;
        }
        std::thread::sleep(apart);
    }
    limits.flags.fetch_or(SETTING, Ordering::SeqCst);
}

impl Slots for MappedSlots {
    fn acquire(&self, now: Timestamp, identity: &Identity) -> Option<PeerSlot> {
        let mut taken = self.taken();
        let acquired = match self.try_acquire(now, &mut taken, identity) {
            Ok(None) => self
                .adopt(now, &mut taken)
                .and_then(|()| self.try_acquire(now, &mut taken, identity)),
            acquired => acquired,
        };
        acquired.unwrap_or_else(|error| {
            tracing::error!(%error, "a peer's slot cannot be recorded");
            // What cannot be found again must not be given out.
            if let Some(slot) = taken.book.find(identity) {
                taken.book.release(now, slot);
            }
            None
        })
    }

    fn release(&self, now: Timestamp, slot: PeerSlot) {
        self.taken().book.release(now, slot);
    }

    #[inline]
    fn slot(&self, slot: PeerSlot) -> Option<Slot<'_>> {
        Some(Slot {
            limits: self.limits.get(slot.0 as usize)?,
            meter: self.meters.get(slot.0 as usize)?,
        })
    }

    fn global_limit(&self) -> &AtomicU64 {
        self.settings.global()
    }

    fn len(&self) -> u32 {
        self.slots
    }

    fn identities(&self) -> Vec<(PeerSlot, Identity)> {
        let records = self.records().unwrap_or_else(|error| {
            tracing::error!(%error, "the identities cannot be read");
            Vec::new()
        });
        records
            .into_iter()
            .filter_map(|(hash, record)| {
                let identity = Identity::from_record(hash, &record)?;
                let slot = PeerSlot(record.slot);
                self.is_owner(slot, identity.owner())
                    .then_some((slot, identity))
            })
            .collect()
    }

    fn find(&self, identity: &Identity) -> Option<PeerSlot> {
        self.recorded(identity).unwrap_or_else(|error| {
            tracing::error!(%error, "an identity cannot be looked up");
            None
        })
    }
}
