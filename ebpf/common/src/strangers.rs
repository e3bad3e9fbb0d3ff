//! How much strangers are answered: those who have not shown who they are, and whose address may be
//! forged. The same arithmetic on both sides of the kernel's border, over tables of each side's own.
//!
//! ```text
//!   source, /24 or /56 ─▶ keyed hash ─▶ a budget each          what one address, one network may ask
//!                                    ─▶ newcomers' budget      half of the total
//!                                       └ spent ─▶ did the source ask a second ago?
//!                                                  yes ─▶ the other half
//!                                                  no  ─▶ noted, not answered
//! ```
//!
//! A forged address that is drawn at random does not ask twice; a client does, as RFC 8489 §6.2.1
//! tells it to. So a flood of forged requests spends the newcomers' half, and who asks again is served
//! from the other one. What is noted is a filter of bits that forgets within seconds: no flood can fill
//! more memory than there is, and where it sets every bit, both halves are simply shared.

use crate::gcra::{Charge, Word, spend};

/// Budgets of sources, and as many of networks.
pub const SLOTS: u32 = 1 << 14;
/// Words of the budgets: the two halves of the total, sources, networks.
pub const BUDGETS: u32 = SOURCES_AT + 2 * SLOTS;
/// Words of one generation of what is noted.
pub const BLOCKS: u32 = 1 << 17;
/// Words of what is noted.
pub const SEEN: u32 = GENERATIONS * BLOCKS;

const NEWCOMERS_AT: u32 = 0;
const RETURNING_AT: u32 = 8;
const SOURCES_AT: u32 = 16;
const NETWORKS_AT: u32 = SOURCES_AT + SLOTS;

/// One is written, the others are looked at.
const GENERATIONS: u32 = 3;
/// A generation lasts 2^29 ns, which is 0.54 s: a client asks again after 0.5 s, then after 1 s more.
const GENERATION_NS_LOG2: u32 = 29;
/// Bits of a word that note sources; those above say of which generation they are.
const NOTE_BITS: u32 = 48;

/// So many a second, and so many at once after a pause, in one word. 0 is no limit.
///
/// ```text
///   63              32 31               0
///  ┌──────────────────┬─────────────────┐
///  │ nanoseconds each │ at once         │
///  └──────────────────┴─────────────────┘
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Pace(u64);

impl Pace {
    /// No limit.
    pub const UNLIMITED: Self = Self(0);

    /// `per_second`, of which `at_once` may come together; at least one of each.
    pub const fn new(per_second: u32, at_once: u32) -> Self {
        let per_second = if per_second == 0 { 1 } else { per_second };
        let at_once = if at_once == 0 { 1 } else { at_once };
        let interval = 1_000_000_000_u64.div_ceil(per_second as u64);
        Self(interval << 32 | at_once as u64)
    }

    /// What these bits of a map mean.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits to put into a map.
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// Charges `count` at `now`, in nanoseconds, or nothing.
    #[inline(always)]
    pub fn charge<W: Word>(self, budget: &W, now: u64, count: u32) -> Charge {
        let interval = self.interval();
        if interval == 0 {
            return Charge::Passed;
        }
        let cost = interval.wrapping_mul(count as u64);
        spend(budget, cost, self.tolerance(), now)
    }

    /// Takes back a charge that passed.
    #[inline(always)]
    pub fn refund<W: Word>(self, budget: &W) {
        if self.interval() != 0 {
            budget.add(self.interval().wrapping_neg());
        }
    }

    /// Whether one could be charged at `now`.
    #[inline(always)]
    pub fn has_room<W: Word>(self, budget: &W, now: u64) -> bool {
        let interval = self.interval();
        let (earliest, known) = (now.saturating_sub(self.tolerance()), budget.load());
        let from = if known > earliest { known } else { earliest };
        interval == 0 || from.wrapping_add(interval) <= now
    }

    #[inline(always)]
    const fn interval(self) -> u64 {
        self.0 >> 32
    }

    /// How far back a pause is remembered.
    #[inline(always)]
    const fn tolerance(self) -> u64 {
        self.interval().wrapping_mul(self.0 & 0xffff_ffff)
    }
}

/// The limits, and the key that spreads addresses over the budgets: whoever does not know it cannot
/// choose addresses that share a budget. A map has this value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct StrangerLimits {
    /// Random.
    pub key: [u64; 2],
    /// A [`Pace`]: of one address.
    pub per_source: u64,
    /// Of one /24 of IPv4 or /56 of IPv6.
    pub per_network: u64,
    /// Of all that have not asked lately.
    pub newcomers: u64,
    /// Of all that have, once the newcomers' budget is spent.
    pub returning: u64,
    /// 0.
    pub unused: [u64; 2],
}

const _: () = assert!(size_of::<StrangerLimits>() == 64);

impl StrangerLimits {
    /// Limits per second; `None` lifts one. What may come at once is four times as much.
    pub fn new(
        key: [u64; 2],
        per_source: Option<u32>,
        per_network: Option<u32>,
        in_total: Option<u32>,
    ) -> Self {
        let pace = |rate: Option<u32>| match rate {
            None => Pace::UNLIMITED,
            Some(rate) => Pace::new(rate, rate.saturating_mul(4)),
        };
        let half = in_total.map(|rate| rate / 2);
        Self {
            key,
            per_source: pace(per_source).to_bits(),
            per_network: pace(per_network).to_bits(),
            newcomers: pace(half).to_bits(),
            returning: pace(half).to_bits(),
            unused: [0; 2],
        }
    }
}

/// An address as two words, the bytes of its IPv6 form in the order of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source(pub [u64; 2]);

impl Source {
    /// Of an address whose IPv6 form is this.
    pub fn new(address: &[u8; 16]) -> Self {
        let (first, last) = address.split_at(8);
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        Self([word(first), word(last)])
    }

    /// Names its /24 of IPv4 or /56 of IPv6, as a number that no other network has.
    #[inline(always)]
    pub const fn network(self) -> u64 {
        const SEVEN_BYTES: u64 = 0x00ff_ffff_ffff_ffff;
        let [first, last] = self.0;
        if first == 0 && last as u32 == 0xffff_0000 {
            last & SEVEN_BYTES | 4 << 56
        } else {
            first & SEVEN_BYTES | 6 << 56
        }
    }
}

/// Bytes of a STUN header (RFC 8489 §5).
pub const HEADER_BYTES: u16 = 20;
const COOKIE: u32 = 0x2112_a442;
/// The bits of a message's type that say what class it is of (RFC 8489 §5).
const CLASS: u16 = 0x0110;
const BINDING: u16 = 0x0001;
const SEND_INDICATION: u16 = 0x0016;
/// USERNAME, REALM and NONCE, each as short as can be, and MESSAGE-INTEGRITY: no request that holds them
/// is shorter, without its header.
const SHORTEST_SIGNED: u16 = 3 * 8 + 24;

/// Whether a datagram at a listening port that is not ChannelData, and has a header's bytes, cannot be
/// from somebody who shows who it is: no STUN, Binding, what servers send, or a request too short to be
/// signed. The first eight bytes tell, as two numbers in network byte order.
#[inline(always)]
pub const fn is_strangers(type_and_length: u32, cookie: u32) -> bool {
    let (kind, length) = ((type_and_length >> 16) as u16, type_and_length as u16);
    if cookie != COOKIE || kind & 0xc000 != 0 {
        return true;
    }
    // RFC 8656 §11.2: Send indications are not authenticated; that there is an allocation is.
    if kind == SEND_INDICATION {
        return false;
    }
    kind & CLASS != 0 || kind == BINDING || length < SHORTEST_SIGNED
}

/// Where budgets and notes are kept. An index that a table does not have has no budget, and its
/// requests are admitted.
pub trait Table {
    /// A word that others may read and write at the same time.
    type Word: Word;
    /// One of [`BUDGETS`] words.
    fn budget(&self, index: u32) -> Option<&Self::Word>;
    /// One of [`SEEN`] words.
    fn seen(&self, index: u32) -> Option<&Self::Word>;
}

/// What becomes of a stranger's request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Admission {
    /// It may be answered.
    Admitted,
    /// Its source has asked too much.
    OverSource,
    /// Its network has asked too much.
    OverNetwork,
    /// All together have asked too much.
    OverTotal,
}

/// Charges a request of `source` at `now`, nanoseconds of `CLOCK_MONOTONIC`, to all its budgets, or to
/// none. `known` is for a source that has shown that it is where it says: it is not charged to the
/// total, which is there for forged ones.
#[inline(always)]
pub fn admit<T: Table>(
    table: &T,
    limits: &StrangerLimits,
    source: Source,
    known: bool,
    now: u64,
) -> Admission {
    let hash = hash(limits.key, source.0);
    let own = Pace::from_bits(limits.per_source);
    let networks = Pace::from_bits(limits.per_network);
    let own_budget = table.budget(SOURCES_AT + (hash as u32 & (SLOTS - 1)));
    if over(own, own_budget, now) {
        return Admission::OverSource;
    }
    let network_hash = self::hash(limits.key, [source.network(), 0]);
    let network_budget = table.budget(NETWORKS_AT + (network_hash as u32 & (SLOTS - 1)));
    if over(networks, network_budget, now) {
        give_back(own, own_budget);
        return Admission::OverNetwork;
    }
    if known || admit_to_total(table, limits, hash, now) {
        return Admission::Admitted;
    }
    give_back(own, own_budget);
    give_back(networks, network_budget);
    Admission::OverTotal
}

#[inline(always)]
fn admit_to_total<T: Table>(table: &T, limits: &StrangerLimits, hash: u64, now: u64) -> bool {
    let newcomers = Pace::from_bits(limits.newcomers);
    if !over(newcomers, table.budget(NEWCOMERS_AT), now) {
        return true;
    }
    let generation = now >> GENERATION_NS_LOG2;
    let returning = Pace::from_bits(limits.returning);
    if (has_asked(table, hash, generation.wrapping_sub(1))
        || has_asked(table, hash, generation.wrapping_sub(2)))
        && !over(returning, table.budget(RETURNING_AT), now)
    {
        return true;
    }
    note(table, hash, generation);
    false
}

#[inline(always)]
fn over<W: Word>(pace: Pace, budget: Option<&W>, now: u64) -> bool {
    budget.is_some_and(|budget| pace.charge(budget, now, 1) != Charge::Passed)
}

#[inline(always)]
fn give_back<W: Word>(pace: Pace, budget: Option<&W>) {
    if let Some(budget) = budget {
        pace.refund(budget);
    }
}

/// Whether a source was noted in this generation.
#[inline(always)]
fn has_asked<T: Table>(table: &T, hash: u64, generation: u64) -> bool {
    let Some(word) = table.seen(block(hash, generation)) else {
        return false;
    };
    let (word, marks) = (word.load(), marks(hash));
    word >> NOTE_BITS == generation & 0xffff && word & marks == marks
}

/// Notes a source. Where two are noted in one word at once, one may be lost: it asks again.
#[inline(always)]
fn note<T: Table>(table: &T, hash: u64, generation: u64) {
    let Some(word) = table.seen(block(hash, generation)) else {
        return;
    };
    let stamp = generation & 0xffff;
    let known = word.load();
    let kept = if known >> NOTE_BITS == stamp {
        known
    } else {
        stamp << NOTE_BITS
    };
    word.store(kept | marks(hash));
}

/// The word of a generation that a source is noted in, by 17 bits of the hash.
#[inline(always)]
const fn block(hash: u64, generation: u64) -> u32 {
    (generation % GENERATIONS as u64) as u32 * BLOCKS + ((hash >> 14) as u32 & (BLOCKS - 1))
}

/// Its bits there, by eleven bits of the hash each: three, or fewer where they fall together.
#[inline(always)]
const fn marks(hash: u64) -> u64 {
    1 << (((hash >> 31 & 0x7ff) * NOTE_BITS as u64) >> 11)
        | 1 << (((hash >> 42 & 0x7ff) * NOTE_BITS as u64) >> 11)
        | 1 << (((hash >> 53) * NOTE_BITS as u64) >> 11)
}

/// SipHash-1-3 of sixteen bytes.
#[inline(always)]
const fn hash(key: [u64; 2], words: [u64; 2]) -> u64 {
    const SIXTEEN_BYTES: u64 = 16 << 56;
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    v = absorb(v, words[0]);
    v = absorb(v, words[1]);
    v = absorb(v, SIXTEEN_BYTES);
    v[2] ^= 0xff;
    v = round(round(round(v)));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
const fn absorb(mut v: [u64; 4], word: u64) -> [u64; 4] {
    v[3] ^= word;
    v = round(v);
    v[0] ^= word;
    v
}

#[inline(always)]
const fn round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[cfg(test)]
mod tests;
