//! Whose traffic is limited and counted where: the peers' slots.
//!
//! ```text
//!   Identity ──acquire──▶ PeerSlot ──▶ Limits   read here, written by whoever sets limits
//!                            │     └──▶ Meter    bucket and counters, written here and by the kernel
//!                            └ shared by all allocations of the identity; rests when they are gone
//! ```
//!
//! The memory is behind [`Slots`]: ordinary memory ([`MemorySlots`]), or maps that the kernel's
//! packet path charges too. Nothing here knows which.

mod book;
mod identity;
mod memory;

pub use book::{Acquired, REST, SlotBook};
pub use identity::{Identity, IdentityKind};
pub use memory::MemorySlots;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use towpath_ebpf_common::gcra::Charge;
use towpath_ebpf_common::lease::Lease;
use towpath_ebpf_common::meter::{
    Class, DEFAULT_SLOT, Direction, FIRST_PEER_SLOT, GLOBAL_SLOT, Limits, Meter, NOBODY_SLOT,
    OWN_DOWN, OWN_UP, PacketSize, Payer,
};
use towpath_ebpf_common::rate::LimitWord;

use crate::Timestamp;

/// The number of a slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerSlot(pub u32);

impl PeerSlot {
    /// Neither charged nor counted.
    pub const NOBODY: Self = Self(NOBODY_SLOT);
    /// Everybody together.
    pub const GLOBAL: Self = Self(GLOBAL_SLOT);
    /// What peers without limits of their own may.
    pub const DEFAULT: Self = Self(DEFAULT_SLOT);
}

/// The memory of one slot.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    /// What the peer may.
    pub limits: &'a Limits<AtomicU64>,
    /// What it did.
    pub meter: &'a Meter<AtomicU64>,
}

/// Which way a packet goes, from the view of the peer that pays.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Way {
    /// From the peer: client to peer, in TURN's words.
    Up,
    /// To the peer: peer to client.
    Down,
}

impl<'a> Slot<'a> {
    /// Bucket and counters of one way.
    #[inline]
    pub fn direction(&self, way: Way) -> &'a Direction<AtomicU64> {
        match way {
            Way::Up => &self.meter.up,
            Way::Down => &self.meter.down,
        }
    }

    /// The limit in force on one way.
    #[inline]
    pub fn limit(&self, way: Way) -> LimitWord {
        match way {
            Way::Up => self.limits.up_in_force(),
            Way::Down => self.limits.down_in_force(),
        }
    }

    /// Whether a limit was set for this very peer. Such a slot stays its peer's when it rests.
    pub fn has_own_limits(&self) -> bool {
        self.limits.flags.load(Ordering::Relaxed) != 0
    }

    /// Makes the slot a new peer's: without a past, and with the limits that all have.
    /// `owner` is [`Identity::owner`].
    pub fn begin(&self, owner: u64, defaults: &Limits<AtomicU64>) {
        self.meter.up.clear();
        self.meter.down.clear();
        self.limits.flags.store(0, Ordering::Relaxed);
        self.limits.class.store(0, Ordering::Relaxed);
        self.limits.owner.store(owner, Ordering::SeqCst);
        let default = |word: &AtomicU64| LimitWord::from_bits(word.load(Ordering::SeqCst));
        self.limits.set_up(default(&defaults.up));
        self.limits.set_down(default(&defaults.down));
    }
}

/// The slots of a relay, shared by all its shards.
///
/// [`acquire`](Self::acquire) and [`release`](Self::release) may lock: they are called when an
/// allocation is made or ends. The rest must not.
pub trait Slots: Send + Sync + fmt::Debug {
    /// The slot of `identity`, held once more; `None` where every slot is in use or has not rested
    /// for [`REST`].
    fn acquire(&self, now: Timestamp, identity: &Identity) -> Option<PeerSlot>;

    /// Gives back what [`acquire`](Self::acquire) gave. With the last holder gone the slot rests, its
    /// limits, bucket and counters kept for when the peer comes back.
    fn release(&self, now: Timestamp, slot: PeerSlot);

    /// The memory of a slot, also of those that are no peer's; `None` where there is no such slot.
    fn slot(&self, slot: PeerSlot) -> Option<Slot<'_>>;

    /// The limit on everybody together, a [`LimitWord`].
    fn global_limit(&self) -> &AtomicU64;

    /// Number of slots: all are below it.
    fn len(&self) -> u32;

    /// Whether there are no peers' slots at all.
    fn is_empty(&self) -> bool {
        self.len() <= FIRST_PEER_SLOT
    }

    /// The slots that have a peer, held or at rest, in no order.
    fn identities(&self) -> Vec<(PeerSlot, Identity)>;

    /// The slot of this peer, if it has one.
    fn find(&self, identity: &Identity) -> Option<PeerSlot>;

    /// Charges a packet to the slot, its class and everybody, or to none of them, and counts it.
    /// `lease` is the caller's part of the global limit.
    #[inline]
    fn charge(
        &self,
        now: Timestamp,
        slot: PeerSlot,
        way: Way,
        size: PacketSize,
        lease: &mut Lease,
    ) -> Charge {
        let Some(peer) = self.slot(slot) else {
            return Charge::Over;
        };
        let direction = peer.direction(way);
        let charged = charge_all(self, now, &peer, way, size.charged, lease);
        match charged {
            Charge::Passed => direction.count(now.as_nanos(), size),
            Charge::Over | Charge::Contended => direction.count_dropped(size),
        }
        charged
    }

    /// Sets what peers without limits of their own may, also for those that are there.
    fn set_defaults(&self, up: LimitWord, down: LimitWord) {
        let Some(defaults) = self.slot(PeerSlot::DEFAULT) else {
            return;
        };
        defaults.limits.up.store(up.to_bits(), Ordering::SeqCst);
        defaults.limits.down.store(down.to_bits(), Ordering::SeqCst);
        for peer in (FIRST_PEER_SLOT..self.len()).filter_map(|slot| self.slot(PeerSlot(slot))) {
            if peer.limits.owner.load(Ordering::SeqCst) == 0 {
                continue;
            }
            let own = peer.limits.flags.load(Ordering::Relaxed);
            if own & OWN_UP == 0 {
                peer.limits.set_up(up);
            }
            if own & OWN_DOWN == 0 {
                peer.limits.set_down(down);
            }
        }
    }

    /// Sets the limit on everybody together.
    fn set_global(&self, limit: LimitWord) {
        self.global_limit()
            .store(limit.to_bits(), Ordering::Relaxed);
    }
}

#[inline(always)]
fn charge_all<S: Slots + ?Sized>(
    slots: &S,
    now: Timestamp,
    peer: &Slot<'_>,
    way: Way,
    bytes: u32,
    lease: &mut Lease,
) -> Charge {
    let now = now.as_nanos();
    let parent = |slot: u32| slots.slot(PeerSlot(slot));
    let Some(class) = parent(peer.limits.class_slot()) else {
        return Charge::Over;
    };
    let payer = Payer {
        peer: peer.direction(way),
        limit: peer.limit(way),
        class: class.direction(way),
        class_limit: class.limit(way),
    };
    match payer.charge(now, bytes) {
        Charge::Passed => {}
        refused @ (Charge::Over | Charge::Contended) => return refused,
    }
    let limit = LimitWord::from_bits(slots.global_limit().load(Ordering::Relaxed));
    if limit.is_unlimited() {
        return Charge::Passed;
    }
    let Some(everybody) = parent(GLOBAL_SLOT) else {
        return Charge::Over;
    };
    let by_all = lease.charge(&everybody.meter.up.spent_until, limit, now, bytes);
    if by_all != Charge::Passed {
        payer.refund(bytes);
    }
    by_all
}

/// The class of a slot's peer.
pub fn class_of(limits: &Limits<AtomicU64>) -> Class {
    Class::from_slot(limits.class_slot()).expect("a class's slot")
}

#[cfg(test)]
mod tests;
