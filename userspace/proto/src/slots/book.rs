//! Who holds which slot: bookkeeping without the slots' memory.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use towpath_ebpf_common::meter::{FIRST_PEER_SLOT, IdentityHash};

use super::{Identity, PeerSlot};
use crate::Timestamp;

/// How long a slot belongs to nobody else after its peer has left it: packets on their way through
/// the kernel are counted in it still.
pub const REST: Duration = Duration::from_secs(1);

/// Which identity has which slot, how many hold it, and which slots rest.
///
/// ```text
///   never used ──acquire──▶ held ──last release──▶ resting ──acquire by the same──▶ held
///                                                     └──REST──▶ may be another's
/// ```
///
/// Slots that were never used go first, then the one that rests longest: a peer that comes back
/// nearly always finds its slot as it left it.
#[derive(Debug)]
pub struct SlotBook {
    by_hash: HashMap<IdentityHash, u32>,
    /// By slot less [`FIRST_PEER_SLOT`]; as many as were ever used.
    entries: Vec<Option<Entry>>,
    /// Of those, slots that have no peer and may get one.
    vacant: VecDeque<u32>,
    /// Slots in the order they began to rest; one that was held again since is found by its number.
    resting: VecDeque<(u32, u64)>,
    rests: u64,
    capacity: usize,
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    holders: u32,
    since: Timestamp,
    /// The number of the rest it is in, or of its last.
    rest: u64,
}

/// A slot that was acquired.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Acquired {
    /// It was the identity's already.
    Known(PeerSlot),
    /// It is the identity's now, and was this one's before.
    New(PeerSlot, Option<Identity>),
}

impl SlotBook {
    /// `slots` in all, those below [`FIRST_PEER_SLOT`] included.
    pub fn new(slots: u32) -> Self {
        Self {
            by_hash: HashMap::new(),
            entries: Vec::new(),
            vacant: VecDeque::new(),
            resting: VecDeque::new(),
            rests: 0,
            capacity: slots.saturating_sub(FIRST_PEER_SLOT) as usize,
        }
    }

    /// The slot of `identity`, held once more. `may_take` is asked of a slot that would change hands
    /// or get its first peer; what it refuses stays as it is.
    pub fn acquire(
        &mut self,
        now: Timestamp,
        identity: &Identity,
        mut may_take: impl FnMut(PeerSlot) -> bool,
    ) -> Option<Acquired> {
        if let Some(slot) = self.find(identity) {
            self.entry_mut(slot)?.holders += 1;
            return Some(Acquired::Known(slot));
        }
        let vacant = self.take_vacant(&mut may_take);
        let slot = vacant.or_else(|| self.take_rested(now, may_take))?;
        let before = self.entries[index(slot)].take().map(|entry| entry.identity);
        if let Some(before) = &before {
            self.by_hash.remove(before.hash());
        }
        self.put(slot, identity, now, 1);
        Some(Acquired::New(slot, before))
    }

    /// A slot that has no peer, if one may be taken.
    fn take_vacant(&mut self, may_take: &mut impl FnMut(PeerSlot) -> bool) -> Option<PeerSlot> {
        for _ in 0..self.vacant.len() {
            let slot = self.vacant.pop_front()?;
            if self.entries[index(PeerSlot(slot))].is_some() {
                continue;
            }
            if may_take(PeerSlot(slot)) {
                return Some(PeerSlot(slot));
            }
            self.vacant.push_back(slot);
        }
        while self.entries.len() < self.capacity {
            let slot = PeerSlot(FIRST_PEER_SLOT + self.entries.len() as u32);
            self.entries.push(None);
            if may_take(slot) {
                return Some(slot);
            }
            self.vacant.push_back(slot.0);
        }
        None
    }

    /// The slot that rests longest, if it may be taken.
    fn take_rested(
        &mut self,
        now: Timestamp,
        mut may_take: impl FnMut(PeerSlot) -> bool,
    ) -> Option<PeerSlot> {
        for _ in 0..self.resting.len() {
            let (slot, rest) = self.resting.pop_front()?;
            let slot = PeerSlot(slot);
            let Some(entry) = self.entry_mut(slot) else {
                continue;
            };
            if entry.holders > 0 || entry.rest != rest {
                continue;
            }
            if now.saturating_since(entry.since) < REST {
                self.resting.push_front((slot.0, rest));
                return None;
            }
            if may_take(slot) {
                return Some(slot);
            }
            self.resting.push_back((slot.0, rest));
        }
        None
    }

    /// Gives a slot back; with the last holder gone it rests. A slot that nobody holds stays as it is.
    pub fn release(&mut self, now: Timestamp, slot: PeerSlot) {
        let Some(entry) = self.entry_mut(slot).filter(|entry| entry.holders > 0) else {
            return;
        };
        entry.holders -= 1;
        if entry.holders == 0 {
            self.begin_rest(now, slot);
        }
    }

    /// Enters a slot that was an identity's before this book was begun. It rests from `now` on.
    /// `false` where there is no such slot, or slot or identity is in the book.
    pub fn restore(&mut self, now: Timestamp, slot: PeerSlot, identity: &Identity) -> bool {
        let in_range = slot.0 >= FIRST_PEER_SLOT && index(slot) < self.capacity;
        if !in_range || self.find(identity).is_some() || self.identity(slot).is_some() {
            return false;
        }
        while self.entries.len() <= index(slot) {
            self.vacant
                .push_back(FIRST_PEER_SLOT + self.entries.len() as u32);
            self.entries.push(None);
        }
        self.put(slot, identity, now, 0);
        self.begin_rest(now, slot);
        true
    }

    fn begin_rest(&mut self, now: Timestamp, slot: PeerSlot) {
        self.rests += 1;
        let rest = self.rests;
        if let Some(entry) = self.entry_mut(slot) {
            (entry.since, entry.rest) = (now, rest);
        }
        self.resting.push_back((slot.0, rest));
        // Peers that come and go leave rests that are over.
        if self.resting.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            self.resting.retain(|(slot, rest)| {
                let entry = entries[index(PeerSlot(*slot))].as_ref();
                entry.is_some_and(|entry| entry.holders == 0 && entry.rest == *rest)
            });
        }
    }

    fn put(&mut self, slot: PeerSlot, identity: &Identity, now: Timestamp, holders: u32) {
        self.by_hash.insert(*identity.hash(), slot.0);
        self.entries[index(slot)] = Some(Entry {
            identity: identity.clone(),
            holders,
            since: now,
            rest: 0,
        });
    }

    /// The slot of this identity, held or at rest.
    pub fn find(&self, identity: &Identity) -> Option<PeerSlot> {
        self.by_hash.get(identity.hash()).copied().map(PeerSlot)
    }

    /// Whose a slot is.
    pub fn identity(&self, slot: PeerSlot) -> Option<&Identity> {
        let entry = self
            .entries
            .get(slot.0.checked_sub(FIRST_PEER_SLOT)? as usize)?;
        Some(&entry.as_ref()?.identity)
    }

    /// All slots that have a peer.
    pub fn identities(&self) -> impl Iterator<Item = (PeerSlot, &Identity)> {
        let slots = self.entries.iter().zip(FIRST_PEER_SLOT..);
        slots.filter_map(|(entry, slot)| Some((PeerSlot(slot), &entry.as_ref()?.identity)))
    }

    fn entry_mut(&mut self, slot: PeerSlot) -> Option<&mut Entry> {
        let index = slot.0.checked_sub(FIRST_PEER_SLOT)?;
        self.entries.get_mut(index as usize)?.as_mut()
    }
}

/// Of a peer's slot.
fn index(slot: PeerSlot) -> usize {
    (slot.0 - FIRST_PEER_SLOT) as usize
}
