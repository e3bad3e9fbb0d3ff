//! The peers' slots: what each may send and receive, and what it did.
//!
//! ```text
//!   LIMITS  [slot] ── Limits: written by userspace alone, read by the packet path
//!   METERS  [slot] ── Meter: up, down ── each: bucket and counters, written by both sides
//!   IDENTITIES  [hash] ── IdentityRecord: whose slot it is
//!
//!   slot   0        nobody: not charged, not counted
//!          1 … 3    the classes, parents of all peers of theirs
//!          4        everybody together: the bucket of both directions is its `up`
//!          5        what a new peer may, unless it has limits of its own
//!          8 …      peers
//! ```
//!
//! A packet is charged to the slot of whoever pays, then to its class, then to everybody's slot by
//! way of a [`Lease`](crate::lease::Lease): to all of them or, with refunds, to none.

use crate::gcra::{Charge, Word, charge, refund};
use crate::rate::LimitWord;

/// Nobody: traffic of this slot is neither charged nor counted.
pub const NOBODY_SLOT: u32 = 0;
/// The slot of everybody together. The bucket of its `up` direction alone is used, for packets of both
/// directions; its limit is [`Settings::global`](crate::route::Settings::global).
pub const GLOBAL_SLOT: u32 = 4;
/// The limits that peers without their own have.
pub const DEFAULT_SLOT: u32 = 5;
/// The first slot of a peer.
pub const FIRST_PEER_SLOT: u32 = 8;

/// What a peer's traffic counts for when there is not enough for all. Its number is its parent's slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u32)]
pub enum Class {
    /// Signalling, and whatever must get through.
    Control = 1,
    /// Calls and the like.
    #[default]
    Interactive = 2,
    /// What may wait.
    Bulk = 3,
}

impl Class {
    /// All of them, in the order of their slots.
    pub const ALL: [Self; 3] = [Self::Control, Self::Interactive, Self::Bulk];

    /// The class of this slot.
    pub const fn from_slot(slot: u32) -> Option<Self> {
        match slot {
            1 => Some(Self::Control),
            2 => Some(Self::Interactive),
            3 => Some(Self::Bulk),
            _ => None,
        }
    }

    /// Its slot.
    pub const fn slot(self) -> u32 {
        self as u32
    }

    /// Its name in configuration, metrics and the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
        }
    }
}

/// What a slot may: an entry of LIMITS. Limits are [`LimitWord`]s.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C, align(64))]
pub struct Limits<W> {
    /// Limit on what the peer sends.
    pub up: W,
    /// Limit on what the peer receives.
    pub down: W,
    /// What the adaptation grants of `up` now; 0: all of it.
    pub up_share: W,
    /// What the adaptation grants of `down` now; 0: all of it.
    pub down_share: W,
    /// The first eight bytes of the identity's hash, in memory order; 0 for a free slot. Whoever takes
    /// a slot sets it by compare-and-swap.
    pub owner: W,
    /// The slot of the peer's [`Class`]; 0: [`Class::Interactive`].
    pub class: W,
    /// [`OWN_UP`], [`OWN_DOWN`] and [`OWN_CLASS`].
    pub flags: W,
    /// 0.
    pub reserved: W,
}

/// Flag of [`Limits`]: `up` was set for this peer, and does not follow [`DEFAULT_SLOT`].
pub const OWN_UP: u64 = 1;
/// Flag of [`Limits`]: `down` was set for this peer, and does not follow [`DEFAULT_SLOT`].
pub const OWN_DOWN: u64 = 2;
/// Flag of [`Limits`]: the class was set for this peer.
pub const OWN_CLASS: u64 = 4;

const _: () = assert!(size_of::<Limits<u64>>() == 64);

impl<W: Word> Limits<W> {
    /// The limit in force on what the peer sends.
    #[inline(always)]
    pub fn up_in_force(&self) -> LimitWord {
        in_force(self.up_share.load(), &self.up)
    }

    /// The limit in force on what the peer receives.
    #[inline(always)]
    pub fn down_in_force(&self) -> LimitWord {
        in_force(self.down_share.load(), &self.down)
    }

    /// Sets the limit on what the peer sends. The adaptation grants all of it until it has looked
    /// again.
    pub fn set_up(&self, limit: LimitWord) {
        self.up.store(limit.to_bits());
        self.up_share.store(0);
    }

    /// Sets the limit on what the peer receives, like [`set_up`](Self::set_up).
    pub fn set_down(&self, limit: LimitWord) {
        self.down.store(limit.to_bits());
        self.down_share.store(0);
    }

    /// The slot of the peer's class. Never out of the classes' range, whatever is written there.
    #[inline(always)]
    pub fn class_slot(&self) -> u32 {
        match self.class.load() {
            1 => Class::Control.slot(),
            3 => Class::Bulk.slot(),
            _ => Class::Interactive.slot(),
        }
    }
}

#[inline(always)]
fn in_force<W: Word>(share: u64, configured: &W) -> LimitWord {
    LimitWord::from_bits(if share != 0 { share } else { configured.load() })
}

/// A bucket and the counters of one direction: one cache line.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C, align(64))]
pub struct Direction<W> {
    /// The bucket; see [`gcra`](crate::gcra).
    pub spent_until: W,
    /// Packets that passed.
    pub packets: W,
    /// Bytes that passed, as charged; see [`charged_bytes`].
    pub bytes: W,
    /// Bytes of payload that passed.
    pub payload_bytes: W,
    /// Packets over the limit.
    pub dropped_packets: W,
    /// Bytes over the limit, as charged.
    pub dropped_bytes: W,
    /// When the last packet passed: nanoseconds of `CLOCK_MONOTONIC`.
    pub last_seen: W,
    /// 0.
    pub reserved: W,
}

/// What a slot did: an entry of METERS.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct Meter<W> {
    /// What the peer sent.
    pub up: Direction<W>,
    /// What the peer received.
    pub down: Direction<W>,
}

const _: () = assert!(size_of::<Direction<u64>>() == 64);
const _: () = assert!(size_of::<Meter<u64>>() == 128);

impl<W: Word> Direction<W> {
    /// Counts a packet that passed.
    #[inline(always)]
    pub fn count(&self, now: u64, packet: PacketSize) {
        self.packets.add(1);
        self.bytes.add(packet.charged as u64);
        self.payload_bytes.add(packet.payload as u64);
        self.last_seen.store(now);
    }

    /// Counts a packet over the limit.
    #[inline(always)]
    pub fn count_dropped(&self, packet: PacketSize) {
        self.dropped_packets.add(1);
        self.dropped_bytes.add(packet.charged as u64);
    }

    /// Forgets everything: the slot is somebody else's from now on.
    pub fn clear(&self) {
        for word in [
            &self.spent_until,
            &self.packets,
            &self.bytes,
            &self.payload_bytes,
            &self.dropped_packets,
            &self.dropped_bytes,
            &self.last_seen,
        ] {
            word.store(0);
        }
    }
}

/// One who pays for a packet: a peer's bucket and its class's, of the same direction.
#[derive(Clone, Copy, Debug)]
pub struct Payer<'a, W> {
    /// The peer's direction.
    pub peer: &'a Direction<W>,
    /// The peer's limit.
    pub limit: LimitWord,
    /// The class's direction.
    pub class: &'a Direction<W>,
    /// The class's limit.
    pub class_limit: LimitWord,
}

impl<W: Word> Payer<'_, W> {
    /// Charges peer and class, or neither.
    #[inline(always)]
    pub fn charge(&self, now: u64, bytes: u32) -> Charge {
        match charge(&self.peer.spent_until, self.limit, now, bytes) {
            Charge::Passed => {}
            refused => return refused,
        }
        let by_class = charge(&self.class.spent_until, self.class_limit, now, bytes);
        if by_class != Charge::Passed {
            refund(&self.peer.spent_until, self.limit, bytes);
        }
        by_class
    }

    /// Takes back what [`charge`](Self::charge) charged.
    #[inline(always)]
    pub fn refund(&self, bytes: u32) {
        refund(&self.peer.spent_until, self.limit, bytes);
        refund(&self.class.spent_until, self.class_limit, bytes);
    }
}

/// The sizes of a packet that are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketSize {
    /// Bytes that are charged.
    pub charged: u32,
    /// Bytes of payload.
    pub payload: u32,
}

impl PacketSize {
    /// The sizes of a packet with this payload, whose peer is reached by IPv6 or by IPv4.
    #[inline(always)]
    pub const fn new(peer_is_ipv6: bool, payload: u32) -> Self {
        Self {
            charged: charged_bytes(peer_is_ipv6, payload),
            payload,
        }
    }
}

/// What a packet is charged: the IP length of its leg between relay and peer, which is plain UDP, on
/// every transport and path. Without options and extension headers.
#[inline(always)]
pub const fn charged_bytes(peer_is_ipv6: bool, payload: u32) -> u32 {
    let ip = if peer_is_ipv6 { 40 } else { 20 };
    payload.wrapping_add(ip + UDP_HEADER_BYTES)
}

const UDP_HEADER_BYTES: u32 = 8;

/// Whose a slot is: an entry of IDENTITIES, whose key is the identity's hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct IdentityRecord {
    /// The slot.
    pub slot: u32,
    /// What the identity is: 1 a user of a realm, 2 an allocation, 3 a PeerId.
    pub kind: u8,
    /// How many bytes of `text` are the realm; the name follows it.
    pub realm_bytes: u8,
    /// How many bytes of `text` are the name.
    pub name_bytes: u8,
    /// 1 where the name is longer than what is shown of it.
    pub truncated: u8,
    /// Realm and name.
    pub text: [u8; IDENTITY_TEXT_BYTES],
}

/// Bytes of an identity that are shown.
pub const IDENTITY_TEXT_BYTES: usize = 104;

/// The key of IDENTITIES: the first bytes of the identity's SHA-256.
pub type IdentityHash = [u8; 16];

const _: () = assert!(size_of::<IdentityRecord>() == 112);

#[cfg(test)]
mod tests;
