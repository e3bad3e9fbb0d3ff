//! The bucket: one word that both sides of the kernel's border move by compare-and-swap.
//!
//! It is the generic cell rate algorithm with its word shifted by the tolerance: kept is the time up
//! to which the budget is spent, and a packet passes where its cost fits between that and now.
//!
//! ```text
//!        now - tolerance          spent_until                      now
//!  ─────────────┼───────────────────────┼───────────────────────────┼────▶ time
//!   budget from │         spent         │         still there       │  not earned yet
//!   before this │                       ├────── cost ──────┤        │
//!   is lost     │                       │                  ▲ the new spent_until
//! ```
//!
//! The word never runs ahead of the clock of whoever charges it, so there is no debt for a raised
//! limit to wait for: it acts on the next packet. A late clock (a shard reads its own once per
//! batch) only refuses what an earlier one would have let pass.
//!
//! In every window of time T, what passes is at most rate · T + burst.

use crate::rate::{LimitWord, TICKS_PER_NANOSECOND_LOG2};

/// A 64-bit word of shared memory. Two implementations: `AtomicU64`, and the atomic instructions of
/// BPF. No operation orders other memory; every word stands for itself.
pub trait Word {
    /// Reads it.
    fn load(&self) -> u64;
    /// Writes it.
    fn store(&self, value: u64);
    /// Replaces `old` by `new`; the error is what was there instead.
    fn compare_exchange(&self, old: u64, new: u64) -> Result<u64, u64>;
    /// Adds, wrapping.
    fn add(&self, n: u64);
}

#[cfg(not(target_arch = "bpf"))]
impl Word for core::sync::atomic::AtomicU64 {
    #[inline(always)]
    fn load(&self) -> u64 {
        self.load(core::sync::atomic::Ordering::Relaxed)
    }

    #[inline(always)]
    fn store(&self, value: u64) {
        self.store(value, core::sync::atomic::Ordering::Relaxed);
    }

    #[inline(always)]
    fn compare_exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        use core::sync::atomic::Ordering::Relaxed;
        self.compare_exchange(old, new, Relaxed, Relaxed)
    }

    #[inline(always)]
    fn add(&self, n: u64) {
        self.fetch_add(n, core::sync::atomic::Ordering::Relaxed);
    }
}

/// How often a charge is tried while others charge the same word.
pub const CHARGE_TRIES: u32 = 8;

/// What became of a charge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Charge {
    /// Charged: the packet may pass.
    Passed,
    /// Nothing charged: the budget does not hold that much.
    Over,
    /// Nothing charged: others were faster [`CHARGE_TRIES`] times. The packet is dropped like one
    /// over the limit.
    Contended,
}

/// Charges `bytes` at `now`, nanoseconds of `CLOCK_MONOTONIC`, if the budget holds them.
#[inline(always)]
pub fn charge<W: Word>(spent_until: &W, limit: LimitWord, now: u64, bytes: u32) -> Charge {
    if limit.is_unlimited() {
        return Charge::Passed;
    }
    spend(
        spent_until,
        limit.cost(bytes),
        limit.tolerance(),
        now << TICKS_PER_NANOSECOND_LOG2,
    )
}

/// Spends `cost` at `now` if the budget holds it, where a pause earns at most `tolerance`. All three
/// are in the unit of the word, whatever that is.
#[inline(always)]
pub fn spend<W: Word>(spent_until: &W, cost: u64, tolerance: u64, now: u64) -> Charge {
    let earliest = now.saturating_sub(tolerance);
    let mut known = spent_until.load();
    let mut tries = 0;
    while tries < CHARGE_TRIES {
        let from = if known > earliest { known } else { earliest };
        let spent = from.wrapping_add(cost);
        if spent > now {
            return Charge::Over;
        }
        match spent_until.compare_exchange(known, spent) {
            Ok(_) => return Charge::Passed,
            Err(other) => known = other,
        }
        tries += 1;
    }
    Charge::Contended
}

/// Takes back a charge that passed, with the same limit and length.
#[inline(always)]
pub fn refund<W: Word>(spent_until: &W, limit: LimitWord, bytes: u32) {
    if !limit.is_unlimited() {
        spent_until.add(limit.cost(bytes).wrapping_neg());
    }
}

#[cfg(test)]
mod tests;
