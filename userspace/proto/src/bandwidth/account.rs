//! What one peer may send and receive, and what it did: words that all shards of a node share.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use towpath_ebpf_common::meter::{Class as Priority, Direction, Limits, Meter};
use towpath_ebpf_common::rate::LimitWord;

use super::reserve::Budget;
use crate::Timestamp;
use crate::slots::Way;

/// What is owed is never more than this: what came anyway and could not be paid is forgiven.
const MAX_OWED_BYTES: u32 = 16 * 1024;

/// What a peer may.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Allowance {
    /// What may be sent to it.
    pub up: LimitWord,
    /// What it may send.
    pub down: LimitWord,
    /// What it gets of the global limits in each direction, in bits a second, however many others there
    /// are and as far as it wants it. `None`: as [`Sharing`](super::Sharing) says.
    pub floor: Option<u64>,
}

impl Allowance {
    /// No limits.
    pub const UNLIMITED: Self = Self {
        up: LimitWord::UNLIMITED,
        down: LimitWord::UNLIMITED,
        floor: None,
    };
}

/// What was sent to a peer and what came, as far as it has been counted together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// What was sent to it.
    pub up: Used,
    /// What came from it.
    pub down: Used,
}

/// What passed in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Used {
    /// Datagrams of the network.
    pub packets: u64,
    /// Their bytes, each with its IP and UDP header.
    pub bytes: u64,
    /// The limit in force: the configured one, or a share of the global one.
    pub limit: LimitWord,
    /// When the last datagram passed.
    pub last: Option<Timestamp>,
    /// Unreliable datagrams that were dropped.
    pub dropped_packets: u64,
    /// Their bytes.
    pub dropped_bytes: u64,
}

/// A peer's buckets and counters.
#[derive(Debug, Default)]
pub struct Account {
    limits: Limits<AtomicU64>,
    meter: Meter<AtomicU64>,
    /// Bytes that came and are not paid for: headers and acknowledgements.
    owed: AtomicU32,
    /// Bytes that were charged for what came, while there was a limit.
    taken: AtomicU64,
    /// By [`Way`]: whether something had to wait since the adaptation looked last.
    waited: [AtomicBool; 2],
}

impl Account {
    pub(super) fn new(allowance: &Allowance, priority: Priority) -> Self {
        let account = Self::default();
        account.set(allowance);
        account.set_priority(priority);
        account
    }

    /// The limit in force.
    #[inline]
    pub fn limit(&self, way: Way) -> LimitWord {
        match way {
            Way::Up => self.limits.up_in_force(),
            Way::Down => self.limits.down_in_force(),
        }
    }

    /// The bucket, with the limit in force.
    #[inline]
    pub fn budget(&self, way: Way) -> Budget<'_> {
        Budget {
            limit: self.limit(way),
            spent_until: &self.direction(way).spent_until,
        }
    }

    /// Its priority.
    pub fn priority(&self) -> Priority {
        let slot = self.limits.class.load(Ordering::Relaxed);
        let class = u32::try_from(slot).ok().and_then(Priority::from_slot);
        class.unwrap_or_default()
    }

    /// What was counted.
    pub fn usage(&self) -> Usage {
        Usage {
            up: self.used(Way::Up),
            down: self.used(Way::Down),
        }
    }

    fn used(&self, way: Way) -> Used {
        Used {
            limit: self.limit(way),
            ..used(self.direction(way))
        }
    }

    pub(crate) fn direction(&self, way: Way) -> &Direction<AtomicU64> {
        match way {
            Way::Up => &self.meter.up,
            Way::Down => &self.meter.down,
        }
    }

    pub(crate) fn set_waited(&self, way: Way) {
        self.waited[index_of(way)].store(true, Ordering::Relaxed);
    }

    pub(super) fn take_waited(&self, way: Way) -> bool {
        self.waited[index_of(way)].swap(false, Ordering::Relaxed)
    }

    /// So much was charged for what came.
    pub(crate) fn take(&self, bytes: u32) {
        self.taken.fetch_add(bytes.into(), Ordering::Relaxed);
    }

    /// What was used in one direction, as far as it tells what is wanted: what comes does so in lumps, as
    /// windows open, and is read evenly.
    pub(super) fn measured(&self, way: Way) -> u64 {
        let bytes = match way {
            Way::Up => &self.meter.up.bytes,
            Way::Down => &self.taken,
        };
        bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn owed(&self) -> u32 {
        self.owed.load(Ordering::Relaxed)
    }

    pub(crate) fn owe(&self, bytes: u32) {
        let more = |owed: u32| Some(owed.saturating_add(bytes).min(MAX_OWED_BYTES));
        // Never refused: the closure always gives a value.
        let _ = self
            .owed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    pub(crate) fn paid(&self, bytes: u32) {
        let less = |owed: u32| Some(owed.saturating_sub(bytes));
        let _ = self
            .owed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    pub(super) fn set(&self, allowance: &Allowance) {
        self.limits.set_up(allowance.up);
        self.limits.set_down(allowance.down);
    }

    pub(super) fn set_priority(&self, priority: Priority) {
        let slot = u64::from(priority.slot());
        self.limits.class.store(slot, Ordering::Relaxed);
    }

    pub(super) fn share(&self, way: Way) -> &AtomicU64 {
        match way {
            Way::Up => &self.limits.up_share,
            Way::Down => &self.limits.down_share,
        }
    }
}

/// What a direction says, with no limit.
pub(super) fn used(direction: &Direction<AtomicU64>) -> Used {
    let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
    let packets = load(&direction.packets);
    Used {
        packets,
        bytes: load(&direction.bytes),
        limit: LimitWord::UNLIMITED,
        last: (packets > 0).then(|| Timestamp::from_nanos(load(&direction.last_seen))),
        dropped_packets: load(&direction.dropped_packets),
        dropped_bytes: load(&direction.dropped_bytes),
    }
}

impl Used {
    /// Adds what another counted.
    pub(super) fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.last = self.last.max(other.last);
        self.dropped_packets += other.dropped_packets;
        self.dropped_bytes += other.dropped_bytes;
    }
}

pub(super) fn index_of(way: Way) -> usize {
    match way {
        Way::Up => 0,
        Way::Down => 1,
    }
}

/// Datagrams that one shard has not counted into shared words yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tally {
    packets: u64,
    bytes: u64,
    payload_bytes: u64,
    last: Timestamp,
}

impl Tally {
    pub(crate) fn count(&mut self, now: Timestamp, charged: u32, payload: usize) {
        self.packets += 1;
        self.bytes += u64::from(charged);
        self.payload_bytes += payload as u64;
        self.last = now;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.packets == 0
    }

    pub(crate) fn add_to(&self, direction: &Direction<AtomicU64>) {
        direction.packets.fetch_add(self.packets, Ordering::Relaxed);
        direction.bytes.fetch_add(self.bytes, Ordering::Relaxed);
        let payload = &direction.payload_bytes;
        payload.fetch_add(self.payload_bytes, Ordering::Relaxed);
        let last = self.last.as_nanos();
        direction.last_seen.fetch_max(last, Ordering::Relaxed);
    }
}
