//! A limit in one word: a rate and a burst, so that an update is never torn.
//!
//! ```text
//!   63            32 31      26 25                         0
//!  ┌────────────────┬──────────┬────────────────────────────┐
//!  │    mantissa    │ exponent │   burst, in 64-byte units  │     0 as a whole: no limit
//!  └────────────────┴──────────┴────────────────────────────┘
//!    mantissa / 2^exponent = ticks that one byte takes; 64 ticks are one nanosecond
//! ```
//!
//! What the packet path asks of it (how long some bytes take) is a multiplication and a shift. What
//! people ask of it (bits per second) needs a division and is meant for userspace.

use core::fmt;

/// Ticks of one nanosecond, as a power of two. A tick is the unit of the words that
/// [`gcra`](crate::gcra) charges; they last for nine years of uptime.
pub const TICKS_PER_NANOSECOND_LOG2: u32 = 6;

/// Units of the burst, as a power of two.
const BURST_UNIT_LOG2: u32 = 6;
const BURST_BITS: u32 = 26;
const EXPONENT_BITS: u32 = 6;
/// Of the highest rates.
const MAX_EXPONENT: u32 = 31;
const MANTISSA_SHIFT: u32 = BURST_BITS + EXPONENT_BITS;
const _: () = assert!(MANTISSA_SHIFT == 32);

/// Ticks that one byte takes at one bit per second.
const TICKS_PER_BYTE_AT_1_BIT: u128 = (8 * 1_000_000_000) << TICKS_PER_NANOSECOND_LOG2;

/// A rate with a burst: what a peer, a class or everybody together may send or receive.
///
/// The rate's error is below one in four thousand million. The time of a packet is rounded to half a
/// tick, which is 0.1 % of the smallest packet at 28 Gbit/s, and of one of 400 bytes at 400 Gbit/s.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct LimitWord(u64);

impl LimitWord {
    /// No limit.
    pub const UNLIMITED: Self = Self(0);

    /// Lowest rate: 64 kbit/s.
    pub const MIN_BITS_PER_SECOND: u64 = 64_000;
    /// Highest rate: 400 Gbit/s.
    pub const MAX_BITS_PER_SECOND: u64 = 400_000_000_000;
    /// Smallest burst: one MTU of Ethernet. A packet longer than the burst never passes.
    pub const MIN_BURST_BYTES: u64 = 1500;
    /// Largest burst: 4 GiB less one unit.
    pub const MAX_BURST_BYTES: u64 = ((1 << BURST_BITS) - 1) << BURST_UNIT_LOG2;

    /// A limit of `bits_per_second` that lets `burst_bytes` pass at once after a pause. The burst is
    /// rounded up to a multiple of 64 bytes.
    pub const fn new(bits_per_second: u64, burst_bytes: u64) -> Result<Self, LimitError> {
        if bits_per_second < Self::MIN_BITS_PER_SECOND
            || bits_per_second > Self::MAX_BITS_PER_SECOND
        {
            return Err(LimitError::Rate { bits_per_second });
        }
        if burst_bytes < Self::MIN_BURST_BYTES || burst_bytes > Self::MAX_BURST_BYTES {
            return Err(LimitError::Burst { burst_bytes });
        }
        // The largest exponent that leaves the mantissa within 32 bits; rounding up may cost one more.
        let rate = bits_per_second as u128;
        let whole = (TICKS_PER_BYTE_AT_1_BIT << MAX_EXPONENT) / rate;
        let excess_bits = (u128::BITS - whole.leading_zeros()).saturating_sub(u32::BITS);
        let mut exponent = (MAX_EXPONENT - excess_bits) as u64;
        let mut mantissa = rounded_quotient(TICKS_PER_BYTE_AT_1_BIT << exponent, rate);
        if mantissa > u32::MAX as u128 {
            exponent -= 1;
            mantissa = rounded_quotient(TICKS_PER_BYTE_AT_1_BIT << exponent, rate);
        }
        let burst = burst_bytes.div_ceil(1 << BURST_UNIT_LOG2);
        Ok(Self(
            (mantissa as u64) << MANTISSA_SHIFT | exponent << BURST_BITS | burst,
        ))
    }

    /// The limit that these bits of a map mean. Every value means something; one that
    /// [`new`](Self::new) did not make may mean a rate out of range.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits to put into a map.
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// Whether there is no limit: a word without a rate.
    #[inline(always)]
    pub const fn is_unlimited(self) -> bool {
        self.mantissa() == 0
    }

    /// Ticks that `bytes` take, at most 2^17 of them for an exact result.
    #[inline(always)]
    pub const fn cost(self, bytes: u32) -> u64 {
        let exponent = self.exponent();
        let half = (1u64 << exponent) >> 1;
        (bytes as u64)
            .wrapping_mul(self.mantissa())
            .wrapping_add(half)
            >> exponent
    }

    /// Ticks that a whole burst takes: how far the budget of a peer that pauses reaches back.
    #[inline(always)]
    pub const fn tolerance(self) -> u64 {
        let units = self.0 & ((1 << BURST_BITS) - 1);
        // 26 and 32 bits: the product fits. The exponents that `new` gives are 9 and more.
        let shift = self.exponent().saturating_sub(BURST_UNIT_LOG2);
        units.wrapping_mul(self.mantissa()) >> shift
    }

    /// The burst in bytes; 0 where there is no limit.
    #[inline(always)]
    pub const fn burst_bytes(self) -> u64 {
        (self.0 & ((1 << BURST_BITS) - 1)) << BURST_UNIT_LOG2
    }

    /// The rate; `None` where there is no limit. For people, not for the packet path.
    pub const fn bits_per_second(self) -> Option<u64> {
        if self.mantissa() == 0 {
            return None;
        }
        let ticks = TICKS_PER_BYTE_AT_1_BIT << self.exponent();
        let rate = rounded_quotient(ticks, self.mantissa() as u128);
        Some(if rate > u64::MAX as u128 {
            u64::MAX
        } else {
            rate as u64
        })
    }

    #[inline(always)]
    const fn mantissa(self) -> u64 {
        self.0 >> MANTISSA_SHIFT
    }

    /// Below 64, whatever the bits are.
    #[inline(always)]
    const fn exponent(self) -> u32 {
        (self.0 >> BURST_BITS) as u32 & ((1 << EXPONENT_BITS) - 1)
    }
}

impl fmt::Debug for LimitWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bits_per_second() {
            None => f.write_str("unlimited"),
            Some(rate) => write!(f, "{rate} bit/s, burst {} bytes", self.burst_bytes()),
        }
    }
}

const fn rounded_quotient(dividend: u128, divisor: u128) -> u128 {
    (dividend + divisor / 2) / divisor
}

/// Why something is no limit. The caller is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LimitError {
    /// The rate is out of range.
    Rate {
        /// The rate.
        bits_per_second: u64,
    },
    /// The burst is out of range.
    Burst {
        /// The burst.
        burst_bytes: u64,
    },
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate { bits_per_second } => write!(
                f,
                "rate of {bits_per_second} bit/s, it must be {} (64 kbit/s) to {} (400 Gbit/s)",
                LimitWord::MIN_BITS_PER_SECOND,
                LimitWord::MAX_BITS_PER_SECOND
            ),
            Self::Burst { burst_bytes } => write!(
                f,
                "burst of {burst_bytes} bytes, it must be {} (one packet) to {}",
                LimitWord::MIN_BURST_BYTES,
                LimitWord::MAX_BURST_BYTES
            ),
        }
    }
}

impl core::error::Error for LimitError {}

#[cfg(test)]
mod tests;
