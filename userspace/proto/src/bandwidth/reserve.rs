//! One charge for two buckets: a peer's, and that of everybody together. Both pay, or neither.
//!
//! ```text
//!   own bucket ──▶ holds it? ─┐              spend own ─▶ spend all ─▶ Reservation
//!   all bucket ──▶ holds it? ─┴─ both: ──▶                   │ somebody was faster
//!                                no: Refused, until when     └─▶ own is given back, Refused
//! ```
//!
//! Both are looked at before either is touched, so whoever waits for one bucket takes nothing from the
//! other: nobody starves others by trying. It never blocks and knows no clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use towpath_ebpf_common::gcra::{Charge, refund, spend};
use towpath_ebpf_common::rate::{LimitWord, TICKS_PER_NANOSECOND_LOG2};

use crate::Timestamp;

/// So long nobody tries again, if the bucket does not run over meanwhile: a fast limit wakes a shard
/// a thousand times a second, not for every packet.
const PAUSE: Duration = Duration::from_millis(1);

/// What can wait leaves a part of the burst to what cannot: a quarter, as a power of two.
const KEPT_OF_BURST_LOG2: u32 = 2;

/// A bucket and its limit.
#[derive(Clone, Copy, Debug)]
pub struct Budget<'a> {
    /// The limit in force.
    pub limit: LimitWord,
    /// The word of [`gcra`](towpath_ebpf_common::gcra).
    pub spent_until: &'a AtomicU64,
}

/// How much of a bucket may be used up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// All of it.
    Whole,
    /// Three quarters: the rest is for what cannot wait.
    Partial,
}

/// Whose bucket it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    /// The peer's.
    Peer,
    /// That of everybody together.
    Everybody,
}

/// A bucket does not hold that much. Nothing was charged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Which one; the peer's where it is both.
    pub by: Bound,
    /// When it is worth to try again: later than now, if nothing else is charged meanwhile.
    pub until: Timestamp,
}

/// What was charged, and by which limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Reservation {
    own: LimitWord,
    all: LimitWord,
}

/// Charges `bytes`, at most 2^17 of them, to both buckets or to none. More than a burst passes too,
/// once a bucket has been left alone for as long as that many bytes take: a limit delays every packet
/// and stops none.
#[inline]
pub fn reserve(
    now: Timestamp,
    own: &Budget<'_>,
    all: &Budget<'_>,
    bytes: u32,
    depth: Depth,
) -> Result<Reservation, Refused> {
    if own.limit.is_unlimited() && all.limit.is_unlimited() {
        return Ok(Reservation::FREE);
    }
    reserve_limited(now, own, all, bytes, depth)
}

#[inline(never)]
fn reserve_limited(
    now: Timestamp,
    own: &Budget<'_>,
    all: &Budget<'_>,
    bytes: u32,
    depth: Depth,
) -> Result<Reservation, Refused> {
    let refused = |by: Bound, until: Timestamp| Refused { by, until };
    own.holds(now, bytes, depth)
        .map_err(|until| refused(Bound::Peer, until))?;
    all.holds(now, bytes, depth)
        .map_err(|until| refused(Bound::Everybody, until))?;
    own.spend(now, bytes, depth)
        .map_err(|until| refused(Bound::Peer, until))?;
    if let Err(until) = all.spend(now, bytes, depth) {
        refund(own.spent_until, own.limit, bytes);
        return Err(refused(Bound::Everybody, until));
    }
    Ok(Reservation {
        own: own.limit,
        all: all.limit,
    })
}

impl Reservation {
    /// Nothing charged.
    pub const FREE: Self = Self {
        own: LimitWord::UNLIMITED,
        all: LimitWord::UNLIMITED,
    };

    /// Gives `unused` of the bytes back to the two buckets they were taken from.
    pub fn give_back(self, own: &AtomicU64, all: &AtomicU64, unused: u32) {
        refund(own, self.own, unused);
        refund(all, self.all, unused);
    }
}

impl Budget<'_> {
    /// Bytes that may be charged now, [`MAX_GRANT_BYTES`] at most; without limit all of those.
    pub fn left(&self, now: Timestamp, depth: Depth) -> u32 {
        let Some(rate) = self.limit.bits_per_second() else {
            return MAX_GRANT_BYTES;
        };
        let spent = self.spent_until.load(Ordering::Relaxed);
        let kept = self.kept(0, depth);
        let ticks = ticks(now)
            .saturating_sub(spent)
            .min(self.limit.tolerance())
            .saturating_sub(kept);
        let bytes = u128::from(ticks) * u128::from(rate) / TICKS_TIMES_RATE_PER_BYTE;
        let mut bytes = bytes.min(u128::from(MAX_GRANT_BYTES)) as u32;
        // The rate that people see is rounded; what is charged is not.
        while bytes > 0 && self.limit.cost(bytes) > ticks {
            bytes -= 1;
        }
        bytes
    }

    /// Whether so much is there; else when to look again.
    fn holds(&self, now: Timestamp, bytes: u32, depth: Depth) -> Result<(), Timestamp> {
        if self.limit.is_unlimited() {
            return Ok(());
        }
        let spent = self.spent_until.load(Ordering::Relaxed);
        let cost = self.limit.cost(bytes);
        let needed = spent
            .saturating_add(cost)
            .saturating_add(self.kept(cost, depth));
        if needed <= ticks(now) {
            return Ok(());
        }
        let half_full = spent.saturating_add(self.limit.tolerance() / 2);
        let convenient = not_before(half_full).min(now + PAUSE);
        Err(not_before(needed).max(convenient))
    }

    fn spend(&self, now: Timestamp, bytes: u32, depth: Depth) -> Result<(), Timestamp> {
        if self.limit.is_unlimited() {
            return Ok(());
        }
        let cost = self.limit.cost(bytes);
        let kept = self.kept(cost, depth);
        let tolerance = self.limit.tolerance().max(cost) - kept;
        let clock = ticks(now).saturating_sub(kept);
        match spend(self.spent_until, cost, tolerance, clock) {
            Charge::Passed => Ok(()),
            Charge::Over | Charge::Contended => Err(now + PAUSE),
        }
    }

    /// Ticks of the burst that are left alone; never so many that the rest does not hold the cost.
    fn kept(&self, cost: u64, depth: Depth) -> u64 {
        let tolerance = self.limit.tolerance();
        match depth {
            Depth::Whole => 0,
            Depth::Partial => (tolerance >> KEPT_OF_BURST_LOG2).min(tolerance.saturating_sub(cost)),
        }
    }
}

/// The most that [`Budget::left`] gives: costs of so many bytes are exact.
pub const MAX_GRANT_BYTES: u32 = 1 << 16;

/// At one bit a second.
const TICKS_TIMES_RATE_PER_BYTE: u128 = (8 * 1_000_000_000) << TICKS_PER_NANOSECOND_LOG2;

fn ticks(at: Timestamp) -> u64 {
    at.as_nanos() << TICKS_PER_NANOSECOND_LOG2
}

/// The first nanosecond that begins at this tick or later.
fn not_before(tick: u64) -> Timestamp {
    Timestamp::from_nanos(tick.div_ceil(1 << TICKS_PER_NANOSECOND_LOG2))
}
