//! One allocation, and all allocations of a shard.
//!
//! An allocation has one relayed port, or one of each address family (RFC 8656 §7.2). Its number among
//! the shard's ports is that of its first port; a second port has a number that leads to the first.
//!
//! ```text
//!   PortId   0: Allocation   one relayed port
//!            1: Allocation   two relayed ports, 1 and 3
//!            2: Free
//!            3: Second of 1
//! ```

use std::sync::Arc;

use ahash::RandomState;
use hashbrown::HashTable;
use rand_chacha::rand_core::Rng;

use super::address::{CompactIp, Flow};
use super::channels::Channels;
use super::destinations::Destinations;
use super::permissions::Permissions;
use crate::Timestamp;
use crate::auth::Integrity;
use crate::machine::PortId;
use crate::relay::{Metered, Network, Traffic, User};
use crate::slots::PeerSlot;
use crate::timer::TimerId;
use crate::wire::attribute::Family;
use crate::wire::{Code, TransactionId};

/// An allocation (RFC 8656 §5). What packets need comes first.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) flow: Flow,
    /// The end of its last relayed address.
    pub(crate) expires: Timestamp,
    pub(crate) channels: Channels,
    pub(crate) permissions: Permissions,
    pub(crate) traffic: Traffic,
    /// The rules that permissions and channels were last judged by.
    pub(crate) policy_version: u32,
    /// Who pays for what is relayed.
    pub(crate) slot: PeerSlot,
    pub(crate) state: State,
    pub(crate) timer: Option<TimerId>,
    pub(crate) details: Box<Details>,
}

/// An idle allocation costs this, its details, and what `Allocations` keeps per entry.
const _: () = assert!(size_of::<Allocation>() <= 208);
const _: () = assert!(size_of::<Details>() <= 128);

/// Whether the relayed ports are there yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// The shell was asked for the second port where there is one, else for the first.
    Opening {
        /// Ports that may still be tried if this one is taken.
        tries_left: u8,
        /// IPv6 is to be asked for next.
        then_v6: bool,
    },
    /// The client knows its relayed port, which has the allocation's own number.
    Live,
    /// The client knows its relayed ports, or the one of two that is left: their numbers are with
    /// them.
    Dual,
}

/// A relayed transport address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Relayed {
    /// The number of its port.
    pub(crate) id: PortId,
    pub(crate) port: u16,
    /// Index of the relay address.
    pub(crate) address: u8,
    pub(crate) family: Family,
    pub(crate) expires: Timestamp,
}

/// Until when the relayed addresses of an allocation last. A family without one has the other's end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetimes {
    v4: Timestamp,
    v6: Timestamp,
}

impl Lifetimes {
    /// Until when data may go to and come from a peer.
    pub(super) fn of(self, peer: CompactIp) -> Timestamp {
        match peer.family() {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    pub(super) fn earliest(self) -> Timestamp {
        self.v4.min(self.v6)
    }

    pub(super) fn latest(self) -> Timestamp {
        self.v4.max(self.v6)
    }
}

/// What only requests need.
#[derive(Debug)]
pub(crate) struct Details {
    pub(crate) user: Arc<User>,
    /// The Allocate request, to answer it again.
    pub(crate) transaction: TransactionId,
    pub(crate) integrity: Integrity,
    pub(crate) fingerprint: bool,
    /// The client's network that it counts for, wherever the client is now.
    pub(crate) network: Network,
    pub(crate) destinations: Destinations,
    pub(crate) made: Timestamp,
    /// What the user had done before.
    pub(crate) metered: Metered,
    /// The ports were asked to be even.
    pub(crate) even: bool,
    /// Of two families that were asked for, the one that was refused.
    pub(crate) refused: Option<(Family, Code)>,
    /// The lifetime granted first, in seconds.
    pub(crate) lifetime_s: u32,
    /// Names the port that EVEN-PORT reserved.
    pub(crate) token: Option<[u8; 8]>,
    /// Its port was reserved, and no other will do.
    pub(crate) reserved: bool,
    pub(crate) relayed: Relayed,
    /// The relayed address of the other family.
    pub(crate) second: Option<Relayed>,
}

impl Allocation {
    /// Whether the client knows of it and it has not ended.
    pub(super) fn is_known_until(&self, now: Timestamp) -> bool {
        self.expires > now && !matches!(self.state, State::Opening { .. })
    }

    /// The relayed addresses: one or two.
    pub(crate) fn relayed(&self) -> impl Iterator<Item = Relayed> + use<> {
        let both = [Some(self.details.relayed), self.details.second];
        both.into_iter().flatten()
    }

    /// The relayed address of a family.
    pub(crate) fn relayed_in(&self, family: Family) -> Option<Relayed> {
        self.relayed().find(|relayed| relayed.family == family)
    }

    /// Until when its relayed addresses last.
    pub(super) fn lifetimes(&self) -> Lifetimes {
        let end_in = |family| {
            self.relayed_in(family)
                .unwrap_or(self.details.relayed)
                .expires
        };
        Lifetimes {
            v4: end_in(Family::V4),
            v6: end_in(Family::V6),
        }
    }

    /// The relayed address that the shell was asked for last.
    pub(super) fn asked_for(&mut self) -> &mut Relayed {
        let Details {
            relayed, second, ..
        } = &mut *self.details;
        second.as_mut().unwrap_or(relayed)
    }

    /// The port through which data goes to and comes from peers of a family now; `own` is the
    /// allocation's number.
    #[inline]
    pub(crate) fn port_to(&self, now: Timestamp, own: PortId, to_v6: bool) -> Option<PortId> {
        if self.expires <= now {
            return None;
        }
        match self.state {
            State::Live => Some(own),
            State::Dual => self.port_of_family(now, to_v6),
            State::Opening { .. } => None,
        }
    }

    #[inline(never)]
    fn port_of_family(&self, now: Timestamp, to_v6: bool) -> Option<PortId> {
        let family = if to_v6 { Family::V6 } else { Family::V4 };
        let relayed = self.relayed_in(family)?;
        (relayed.expires > now).then_some(relayed.id)
    }

    /// Takes one of two relayed addresses away. What is left keeps its port's number.
    pub(super) fn take_relayed(&mut self, family: Family, own: PortId) -> Option<Relayed> {
        let details = &mut *self.details;
        let other = details.second?;
        let taken = if other.family == family {
            details.second = None;
            other
        } else {
            details.second = None;
            std::mem::replace(&mut details.relayed, other)
        };
        self.expires = details.relayed.expires;
        if details.relayed.id == own {
            self.state = State::Live;
        }
        Some(taken)
    }
}

/// The allocations of a shard: a slab, indexed by [`PortId`], and an index by 5-tuple.
#[derive(Debug)]
pub(crate) struct Allocations {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// How many of the slots are second ports.
    seconds: usize,
    by_flow: HashTable<u32>,
    hasher: RandomState,
    /// The one found last: datagrams of a flow come in runs.
    last: u32,
}

/// What a [`PortId`] stands for.
#[derive(Debug)]
enum Slot {
    Free,
    Allocation(Allocation),
    /// The second port of this allocation.
    Second(PortId),
}

const _: () = assert!(size_of::<Slot>() == size_of::<Allocation>());

impl Slot {
    #[inline]
    fn allocation(&self) -> Option<&Allocation> {
        match self {
            Self::Allocation(allocation) => Some(allocation),
            Self::Free | Self::Second(_) => None,
        }
    }
}

impl Allocations {
    pub(crate) fn new(rng: &mut impl Rng) -> Self {
        let mut seed = || rng.next_u64();
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            seconds: 0,
            by_flow: HashTable::new(),
            hasher: RandomState::with_seeds(seed(), seed(), seed(), seed()),
            last: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.ports() - self.seconds
    }

    /// Number of relayed ports, those included that are being opened.
    pub(crate) fn ports(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Number of slots ever used: all [`PortId`]s are below it.
    pub(crate) fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The allocation of a 5-tuple.
    #[inline]
    pub(crate) fn find(&mut self, flow: &Flow) -> Option<PortId> {
        if let Some(Slot::Allocation(last)) = self.slots.get(self.last as usize)
            && last.flow == *flow
        {
            return Some(PortId(self.last));
        }
        let slots = &self.slots;
        let index = *self.by_flow.find(hash(&self.hasher, flow), |index| {
            slots[*index as usize]
                .allocation()
                .is_some_and(|allocation| allocation.flow == *flow)
        })?;
        self.last = index;
        Some(PortId(index))
    }

    /// The allocation that a relayed port belongs to.
    pub(crate) fn owner_of(&self, port: PortId) -> Option<PortId> {
        match self.slots.get(port.0 as usize)? {
            Slot::Allocation(_) => Some(port),
            Slot::Second(of) => Some(*of),
            Slot::Free => None,
        }
    }

    #[inline]
    pub(crate) fn get(&self, id: PortId) -> Option<&Allocation> {
        self.slots.get(id.0 as usize)?.allocation()
    }

    /// The allocation, and the hasher for its tables.
    #[inline]
    pub(crate) fn get_mut(&mut self, id: PortId) -> Option<(&mut Allocation, &RandomState)> {
        match self.slots.get_mut(id.0 as usize)? {
            Slot::Allocation(allocation) => Some((allocation, &self.hasher)),
            Slot::Free | Slot::Second(_) => None,
        }
    }

    /// Adds an allocation whose 5-tuple has none yet. `make` is told its number.
    pub(crate) fn insert(&mut self, make: impl FnOnce(PortId) -> Allocation) -> PortId {
        let index = self.free_slot();
        self.slots[index as usize] = Slot::Allocation(make(PortId(index)));
        self.index(index);
        PortId(index)
    }

    /// Gives an allocation another 5-tuple, which must have none; gives back the one it had.
    pub(crate) fn move_to(&mut self, id: PortId, flow: Flow) -> Option<Flow> {
        let (allocation, _) = self.get_mut(id)?;
        let before = std::mem::replace(&mut allocation.flow, flow);
        if let Ok(entry) = self
            .by_flow
            .find_entry(hash(&self.hasher, &before), |index| *index == id.0)
        {
            entry.remove();
        }
        self.index(id.0);
        Some(before)
    }

    /// Enters an allocation into the index.
    fn index(&mut self, index: u32) {
        let (slots, hasher) = (&self.slots, &self.hasher);
        let hash_of = |index: &u32| {
            let known = slots[*index as usize].allocation();
            hash(
                hasher,
                &known.expect("the index names allocations only").flow,
            )
        };
        self.by_flow.insert_unique(hash_of(&index), index, hash_of);
    }

    /// A number for the second port of an allocation.
    pub(crate) fn add_second(&mut self, of: PortId) -> PortId {
        let index = self.free_slot();
        self.slots[index as usize] = Slot::Second(of);
        self.seconds += 1;
        PortId(index)
    }

    /// Gives the number of a second port back; that of a first port stays its allocation's.
    pub(crate) fn remove_second(&mut self, port: PortId) {
        let slot = self.slots.get_mut(port.0 as usize);
        if let Some(second @ Slot::Second(_)) = slot {
            *second = Slot::Free;
            self.free.push(port.0);
            self.seconds -= 1;
        }
    }

    /// Removes an allocation. The number of its second port is given back apart.
    pub(crate) fn remove(&mut self, id: PortId) -> Option<Allocation> {
        let slot = self.slots.get_mut(id.0 as usize)?;
        let allocation = match std::mem::replace(slot, Slot::Free) {
            Slot::Allocation(allocation) => allocation,
            other @ (Slot::Free | Slot::Second(_)) => {
                *slot = other;
                return None;
            }
        };
        let hash_of = hash(&self.hasher, &allocation.flow);
        if let Ok(entry) = self.by_flow.find_entry(hash_of, |index| *index == id.0) {
            entry.remove();
        }
        self.free.push(id.0);
        Some(allocation)
    }

    fn free_slot(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            u32::try_from(self.slots.len() - 1).expect("max_allocations is a u32")
        })
    }
}

#[inline]
fn hash(hasher: &RandomState, flow: &Flow) -> u64 {
    hasher.hash_one(flow.hash_input())
}
