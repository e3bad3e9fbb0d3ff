//! A limit that everybody shares, without a word that everybody writes.
//!
//! Every CPU (in the kernel) and every shard (in userspace) takes bytes from the shared word in
//! quanta and pays its packets from what it took.
//!
//! ```text
//!   shared word ──quantum──▶ lease of CPU 0 ──packet, packet, …
//!               ──quantum──▶ lease of CPU 1 ──packet, …
//! ```
//!
//! The shared word is charged like any other, so what is *taken* in a window of time T is at most
//! rate · T + burst. What *passes* differs from it by what leases hold at the window's two ends: less
//! than a quantum and a packet for each holder. The difference does not add up with time.

use crate::gcra::{Charge, Word, charge};
use crate::rate::LimitWord;

/// A quantum is this part of the burst, as a power of two: sixteen holders never hold more than
/// another burst.
const QUANTUM_OF_BURST_LOG2: u32 = 4;

/// Bytes that one holder has taken and not used. Only the holder touches it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(transparent)]
pub struct Lease(u64);

impl Lease {
    /// Nothing taken.
    pub const EMPTY: Self = Self(0);

    /// A lease of this many bytes, as [`bytes`](Self::bytes) gave them.
    #[inline(always)]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes left.
    #[inline(always)]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Pays for `bytes`, and takes a quantum from `spent_until` where the lease does not hold them.
    #[inline(always)]
    pub fn charge<W: Word>(
        &mut self,
        spent_until: &W,
        limit: LimitWord,
        now: u64,
        bytes: u32,
    ) -> Charge {
        if limit.is_unlimited() {
            // What was held of an earlier limit is of no use to a later one.
            self.0 = 0;
            return Charge::Passed;
        }
        let needed = bytes as u64;
        if self.0 < needed {
            let quantum = quantum(limit);
            let taken = if quantum > bytes { quantum } else { bytes };
            match charge(spent_until, limit, now, taken) {
                Charge::Passed => self.0 = self.0.wrapping_add(taken as u64),
                refused => return refused,
            }
        }
        self.0 = self.0.wrapping_sub(needed);
        Charge::Passed
    }

    /// Takes back what a packet paid.
    #[inline(always)]
    pub fn refund(&mut self, limit: LimitWord, bytes: u32) {
        if !limit.is_unlimited() {
            self.0 = self.0.wrapping_add(bytes as u64);
        }
    }
}

/// Bytes that a holder of this limit takes at a time, but for longer packets.
#[inline(always)]
pub const fn quantum(limit: LimitWord) -> u32 {
    let part = limit.burst_bytes() >> QUANTUM_OF_BURST_LOG2;
    if part > MAX_QUANTUM_BYTES {
        MAX_QUANTUM_BYTES as u32
    } else {
        part as u32
    }
}

/// Largest quantum, however large the burst.
pub const MAX_QUANTUM_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests;
