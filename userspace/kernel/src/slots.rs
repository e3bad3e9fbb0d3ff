//! Peers' slots in the pinned maps: limits and meters as memory that the program, this process and
//! others share, and who has which slot.
//!
//! ```text
//!   IDENTITIES  hash ─▶ { slot, kind, realm, name }
//!                          │
//!   LIMITS      [slot]  ◀──┤  owner: the first eight bytes of the hash, claimed by compare-and-swap
//!   METERS      [slot]  ◀──┘
//! ```
//!
//! A slot is taken in this order: owner, then record. Where the taker dies in between, the owner has
//! no record; [`MappedSlots::recover`] frees such slots.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use towpath_ebpf_common::meter::{FIRST_PEER_SLOT, IdentityHash, IdentityRecord, Limits, Meter};

use crate::map::{Mapped, Table};

/// The slots, mapped into memory.
#[derive(Debug)]
pub struct MappedSlots {
    limits: Mapped<Limits<AtomicU64>>,
    meters: Mapped<Meter<AtomicU64>>,
    identities: Table<IdentityHash, IdentityRecord>,
}

impl MappedSlots {
    /// Maps `slots` entries of both arrays.
    pub(crate) fn new(
        limits: OwnedFd,
        meters: OwnedFd,
        identities: Table<IdentityHash, IdentityRecord>,
        slots: u32,
    ) -> io::Result<Self> {
        Ok(Self {
            limits: Mapped::new(limits, slots as usize)?,
            meters: Mapped::new(meters, slots as usize)?,
            identities,
        })
    }

    /// What each slot may.
    pub fn limits(&self) -> &[Limits<AtomicU64>] {
        &self.limits
    }

    /// What each slot did.
    pub fn meters(&self) -> &[Meter<AtomicU64>] {
        &self.meters
    }

    /// Whose slot it is, by the hash of the identity.
    pub fn find(&self, hash: &IdentityHash) -> io::Result<Option<IdentityRecord>> {
        self.identities.lookup(hash)
    }

    /// All identities that have a slot, in no order. One that is taken or given up meanwhile may or
    /// may not be among them.
    pub fn identities(&self) -> io::Result<Vec<(IdentityHash, IdentityRecord)>> {
        let mut found = Vec::new();
        let mut hash = None;
        // A removed key sends the walk back to the first one: twice the size is enough, and ends it.
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

    /// Writes the record of an identity whose slot is claimed; `false` where it has one already, which
    /// then holds instead.
    pub fn record(&self, hash: &IdentityHash, record: &IdentityRecord) -> io::Result<bool> {
        self.identities.insert_new(hash, record)
    }

    /// Removes an identity's record; returns whether there was one.
    pub fn forget(&self, hash: &IdentityHash) -> io::Result<bool> {
        self.identities.remove(hash)
    }

    /// Frees the slots whose taker died before it wrote the record, and removes the records of slots
    /// that belong to others. Only the daemon calls it, before it gives out slots. Returns how many
    /// of both there were.
    pub fn recover(&self) -> io::Result<(usize, usize)> {
        let mut recorded = vec![false; self.limits.len()];
        let mut orphans = 0;
        for (hash, record) in self.identities()? {
            let slot = record.slot as usize;
            let is_owner = record.slot >= FIRST_PEER_SLOT
                && self
                    .limits
                    .get(slot)
                    .is_some_and(|limits| limits.owner.load(Ordering::Relaxed) == owner(&hash));
            if is_owner {
                recorded[slot] = true;
            } else {
                self.identities.remove(&hash)?;
                orphans += 1;
            }
        }
        let mut freed = 0;
        let peers = self
            .limits
            .iter()
            .zip(recorded)
            .skip(FIRST_PEER_SLOT as usize);
        for (limits, recorded) in peers {
            if !recorded && limits.owner.swap(0, Ordering::AcqRel) != 0 {
                freed += 1;
            }
        }
        Ok((freed, orphans))
    }
}

/// The word that says a slot belongs to the identity with this hash; never 0.
pub fn owner(hash: &IdentityHash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash;
    u64::from_ne_bytes([a, b, c, d, e, f, g, h]).max(1)
}
