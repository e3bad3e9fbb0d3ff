//! One allocation, and all allocations of a shard.

use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use hashbrown::HashTable;
use rand_chacha::rand_core::Rng;

use super::address::Flow;
use super::channels::Channels;
use super::permissions::Permissions;
use crate::Timestamp;
use crate::auth::Integrity;
use crate::machine::PortId;
use crate::relay::{Traffic, User};
use crate::slots::PeerSlot;
use crate::timer::TimerId;
use crate::wire::TransactionId;
use crate::wire::attribute::Family;

/// An allocation (RFC 8656 §5). What packets need comes first.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) flow: Flow,
    pub(crate) expires: Timestamp,
    pub(crate) channels: Channels,
    pub(crate) permissions: Permissions,
    pub(crate) traffic: Traffic,
    /// The rules that permissions and channels were last judged by.
    pub(crate) policy_version: u32,
    /// Who pays for what is relayed.
    pub(crate) slot: PeerSlot,
    pub(crate) port: u16,
    /// Index of the relay address.
    pub(crate) address: u8,
    pub(crate) state: State,
    pub(crate) timer: Option<TimerId>,
    pub(crate) details: Box<Details>,
}

/// An idle allocation costs this, its details, and what `Allocations` keeps per entry.
const _: () = assert!(size_of::<Allocation>() <= 208);
const _: () = assert!(size_of::<Details>() <= 64);

/// Whether the relayed port is there yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// The shell was asked for the port. Tries that are left if it is taken.
    Opening {
        /// Ports that may still be tried.
        tries_left: u8,
    },
    /// The port is open and the client knows it.
    Live,
}

/// What only requests need.
#[derive(Debug)]
pub(crate) struct Details {
    pub(crate) user: Arc<User>,
    /// The Allocate request, to answer it again.
    pub(crate) transaction: TransactionId,
    pub(crate) integrity: Integrity,
    pub(crate) fingerprint: bool,
    pub(crate) counted_for_user: bool,
    pub(crate) family: Family,
    /// The port was asked to be even.
    pub(crate) even: bool,
    /// The wish for a second family was refused.
    pub(crate) no_second_family: bool,
    /// The lifetime granted first.
    pub(crate) lifetime: Duration,
    /// Names the port that EVEN-PORT reserved.
    pub(crate) token: Option<[u8; 8]>,
}

/// The allocations of a shard: a slab, indexed by [`PortId`], and an index by 5-tuple.
#[derive(Debug)]
pub(crate) struct Allocations {
    slots: Vec<Option<Allocation>>,
    free: Vec<u32>,
    by_flow: HashTable<u32>,
    hasher: RandomState,
    /// The one found last: datagrams of a flow come in runs.
    last: u32,
}

impl Allocations {
    pub(crate) fn new(rng: &mut impl Rng) -> Self {
        let mut seed = || rng.next_u64();
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_flow: HashTable::new(),
            hasher: RandomState::with_seeds(seed(), seed(), seed(), seed()),
            last: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Number of slots ever used: all [`PortId`]s are below it.
    pub(crate) fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The allocation of a 5-tuple.
    #[inline]
    pub(crate) fn find(&mut self, flow: &Flow) -> Option<PortId> {
        if let Some(Some(last)) = self.slots.get(self.last as usize)
            && last.flow == *flow
        {
            return Some(PortId(self.last));
        }
        let slots = &self.slots;
        let index = *self.by_flow.find(hash(&self.hasher, flow), |index| {
            slots[*index as usize]
                .as_ref()
                .is_some_and(|allocation| allocation.flow == *flow)
        })?;
        self.last = index;
        Some(PortId(index))
    }

    #[inline]
    pub(crate) fn get(&self, id: PortId) -> Option<&Allocation> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    /// The allocation, and the hasher for its tables.
    #[inline]
    pub(crate) fn get_mut(&mut self, id: PortId) -> Option<(&mut Allocation, &RandomState)> {
        Some((self.slots.get_mut(id.0 as usize)?.as_mut()?, &self.hasher))
    }

    /// Adds an allocation whose 5-tuple has none yet.
    pub(crate) fn insert(&mut self, allocation: Allocation) -> PortId {
        let hash_of = hash(&self.hasher, &allocation.flow);
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("max_allocations is a u32")
        });
        self.slots[index as usize] = Some(allocation);
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.by_flow.insert_unique(hash_of, index, |index| {
            let known = slots[*index as usize].as_ref();
            hash(
                hasher,
                &known.expect("the index names allocations only").flow,
            )
        });
        PortId(index)
    }

    pub(crate) fn remove(&mut self, id: PortId) -> Option<Allocation> {
        let allocation = self.slots.get_mut(id.0 as usize)?.take()?;
        let hash_of = hash(&self.hasher, &allocation.flow);
        if let Ok(entry) = self.by_flow.find_entry(hash_of, |index| *index == id.0) {
            entry.remove();
        }
        self.free.push(id.0);
        Some(allocation)
    }
}

#[inline]
fn hash(hasher: &RandomState, flow: &Flow) -> u64 {
    hasher.hash_one(flow.hash_input())
}
