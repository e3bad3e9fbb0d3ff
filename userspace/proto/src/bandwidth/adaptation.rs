//! Shares as peers come, go, and want more or less.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use towpath_ebpf_common::meter::{Class, Direction, FIRST_PEER_SLOT};
use towpath_ebpf_common::rate::{LimitWord, TICKS_PER_NANOSECOND_LOG2};

use super::{Level, Wish, fair_level};
use crate::Timestamp;
use crate::slots::{PeerSlot, Slot, Slots, Way, class_of};

/// How the global limit is shared out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sharing {
    /// Weights of [`Class::Control`], [`Class::Interactive`] and [`Class::Bulk`], from 1.
    pub weights: [u32; 3],
    /// What every peer gets, in bits a second, as far as it wants it.
    pub floor: u64,
}

impl Default for Sharing {
    fn default() -> Self {
        Self {
            weights: [4, 2, 1],
            floor: LimitWord::MIN_BITS_PER_SECOND,
        }
    }
}

impl Sharing {
    pub(crate) fn weight(&self, class: Class) -> u32 {
        let [control, interactive, bulk] = self.weights;
        match class {
            Class::Control => control,
            Class::Interactive => interactive,
            Class::Bulk => bulk,
        }
    }
}

/// Whether shares are in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// There is enough for all: peers are limited as configured.
    Open,
    /// The global limit is reached; this many directions of peers were given shares last.
    Shared {
        /// How many.
        flows: usize,
    },
}

/// Gives peers their shares while the global limit is reached.
///
/// What a peer wants is what it sent, passed or dropped, smoothed over a few steps. A peer that is
/// silent has no share; one that begins to send is held by the global limit alone until the next
/// step. While nothing is near the limit a step reads two words.
///
/// Limits on classes are not looked at: they hold beside the shares.
#[derive(Debug)]
pub struct Adaptation {
    sharing: Sharing,
    /// By slot less [`FIRST_PEER_SLOT`]: up, down.
    flows: Vec<[Flow; 2]>,
    scanned: Option<Timestamp>,
    shared: Option<Calm>,
    /// Who wants something, and what: two lists of one order.
    active: Vec<(PeerSlot, Way)>,
    wishes: Vec<Wish>,
}

/// What is known of one direction of one peer.
#[derive(Clone, Copy, Default, Debug)]
struct Flow {
    /// Bytes passed and dropped when it was looked at last.
    bytes: u64,
    /// Bits a second it wants.
    demand: u64,
}

/// For how many steps there has been enough again, and how many flows were given shares last.
#[derive(Clone, Copy, Default, Debug)]
struct Calm {
    steps: u32,
    flows: usize,
}

const WAYS: [Way; 2] = [Way::Up, Way::Down];

/// Steps after which shares are lifted, where all together wanted less than [`CALM_PERCENT`].
const CALM_STEPS: u32 = 10;
/// Of the limit.
const CALM_PERCENT: u128 = 90;
/// Of the limit: what all together have to want for shares to be made.
const FULL_PERCENT: u128 = 97;

/// This part of the limit is not shared out, so that the global bucket, which drops from all alike, is
/// not what limits.
const HEADROOM_PART: u64 = 64;

/// What a share lets pass at once: this long at its rate, within these bytes.
const SHARE_BURST: Duration = Duration::from_millis(50);
const MIN_SHARE_BURST_BYTES: u64 = 16 * 1024;

impl Adaptation {
    /// How often [`step`](Self::step) should be called.
    pub const INTERVAL: Duration = Duration::from_millis(20);

    /// Begins as if the limit were reached, so that the shares that an earlier daemon left are made
    /// anew or lifted.
    pub fn new(sharing: Sharing) -> Self {
        Self {
            sharing,
            flows: Vec::new(),
            scanned: None,
            shared: Some(Calm::default()),
            active: Vec::new(),
            wishes: Vec::new(),
        }
    }

    /// Shares out in another way from the next step on.
    pub fn set_sharing(&mut self, sharing: Sharing) {
        self.sharing = sharing;
    }

    /// Looks at what peers did, and writes what they may.
    pub fn step(&mut self, now: Timestamp, slots: &dyn Slots) -> State {
        let limit = LimitWord::from_bits(slots.global_limit().load(Ordering::Relaxed));
        let Some(capacity) = limit.bits_per_second() else {
            self.lift(slots);
            return State::Open;
        };
        if self.shared.is_none() && !is_half_spent(now, slots, limit) {
            return State::Open;
        }
        let Some(wanted) = self.scan(now, slots) else {
            return self.state();
        };
        let percent = |n: u128| u128::from(capacity) * n / 100;
        if wanted >= percent(FULL_PERCENT) {
            let flows = self.share_out(now, capacity, slots);
            self.shared = Some(Calm { steps: 0, flows });
        } else if let Some(calm) = &mut self.shared {
            calm.steps = if wanted < percent(CALM_PERCENT) {
                calm.steps + 1
            } else {
                0
            };
            if calm.steps >= CALM_STEPS {
                self.lift(slots);
            }
        }
        self.state()
    }

    /// Whether shares are in force.
    pub fn state(&self) -> State {
        self.shared
            .map_or(State::Open, |Calm { flows, .. }| State::Shared { flows })
    }

    /// Finds what each peer wants; gives back what all want together. `None` where it is the first
    /// look, or too soon after the last.
    fn scan(&mut self, now: Timestamp, slots: &dyn Slots) -> Option<u128> {
        let passed = self.scanned.map(|last| now.saturating_since(last));
        if passed.is_some_and(|passed| passed.is_zero()) {
            return None;
        }
        self.scanned = Some(now);
        let peers = slots.len().saturating_sub(FIRST_PEER_SLOT) as usize;
        self.flows.resize(peers, [Flow::default(); 2]);
        self.active.clear();
        self.wishes.clear();
        let mut wanted = 0;
        for (number, flows) in (FIRST_PEER_SLOT..).zip(&mut self.flows) {
            let slot = PeerSlot(number);
            let Some(peer) = slots.slot(slot).filter(is_owned) else {
                continue;
            };
            for (way, flow) in WAYS.into_iter().zip(flows) {
                flow.follow(peer.direction(way), passed);
                if flow.demand == 0 {
                    replace(share_of(&peer, way), 0);
                    continue;
                }
                let wish = self.sharing.wish(&peer, way, flow.demand);
                wanted += u128::from(wish.most());
                self.active.push((slot, way));
                self.wishes.push(wish);
            }
        }
        passed.map(|_| wanted)
    }

    /// Writes a share for everybody who wants something; how many those are. Leaves all as it is where
    /// there is just enough.
    fn share_out(&mut self, now: Timestamp, capacity: u64, slots: &dyn Slots) -> usize {
        let shared = capacity - capacity / HEADROOM_PART;
        let Some(level) = fair_level(shared, &self.wishes) else {
            return self.active.len();
        };
        for ((slot, way), wish) in self.active.iter().zip(&self.wishes) {
            if let Some(peer) = slots.slot(*slot) {
                let share = share_word(&level, wish, configured(&peer, *way));
                let before = replace(share_of(&peer, *way), share.to_bits());
                if before == 0 && !share.is_unlimited() {
                    forfeit(peer.direction(*way), share, now);
                }
            }
        }
        self.active.len()
    }

    /// Peers are limited as configured again.
    fn lift(&mut self, slots: &dyn Slots) {
        if self.shared.take().is_none() {
            return;
        }
        let all = (FIRST_PEER_SLOT..slots.len()).filter_map(|slot| slots.slot(PeerSlot(slot)));
        for peer in all.filter(is_owned) {
            for way in WAYS {
                share_of(&peer, way).store(0, Ordering::Relaxed);
            }
        }
    }
}

impl Sharing {
    fn wish(&self, peer: &Slot<'_>, way: Way, demand: u64) -> Wish {
        let ceiling = configured(peer, way).bits_per_second();
        let ceiling = ceiling.unwrap_or(LimitWord::MAX_BITS_PER_SECOND);
        Wish {
            demand,
            weight: self.weight(class_of(peer.limits)),
            floor: self.floor.min(ceiling),
            ceiling,
        }
    }
}

impl Flow {
    /// Takes over what was counted since the last look, `passed` ago.
    fn follow(&mut self, direction: &Direction<AtomicU64>, passed: Option<Duration>) {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let bytes = load(&direction.bytes).wrapping_add(load(&direction.dropped_bytes));
        // A slot that changed hands counts from zero.
        let new = bytes.checked_sub(self.bytes).unwrap_or(bytes);
        self.bytes = bytes;
        let Some(passed) = passed else {
            return;
        };
        let now = rate(new, passed);
        // What is older than a few steps says nothing any more.
        self.demand = if passed > 5 * Adaptation::INTERVAL {
            now
        } else {
            self.demand - self.demand.div_ceil(4) + now / 4
        };
    }
}

/// Writes a share, which nobody else does but to lift it; gives back what it was. What stays as it is
/// is not written: the packet path has it in its caches.
pub(super) fn replace(share: &AtomicU64, new: u64) -> u64 {
    let before = share.load(Ordering::Relaxed);
    if before != new {
        share.store(new, Ordering::Relaxed);
    }
    before
}

/// Bits a second of so many bytes in this time.
pub(super) fn rate(bytes: u64, time: Duration) -> u64 {
    const BITS_PER_BYTE_AND_SECOND: u64 = 8 * 1_000_000_000;
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1);
    match bytes.checked_mul(BITS_PER_BYTE_AND_SECOND) {
        Some(bits) => bits / nanos,
        None => (bytes / nanos).saturating_mul(BITS_PER_BYTE_AND_SECOND),
    }
}

/// Whether the budget of all together is used up to the half, which is when to look closer.
fn is_half_spent(now: Timestamp, slots: &dyn Slots, limit: LimitWord) -> bool {
    let Some(everybody) = slots.slot(PeerSlot::GLOBAL) else {
        return false;
    };
    let spent = everybody.meter.up.spent_until.load(Ordering::Relaxed);
    let left = (now.as_nanos() << TICKS_PER_NANOSECOND_LOG2).saturating_sub(spent);
    left < limit.tolerance() / 2
}

fn is_owned(peer: &Slot<'_>) -> bool {
    peer.limits.owner.load(Ordering::Relaxed) != 0
}

fn configured(peer: &Slot<'_>, way: Way) -> LimitWord {
    let word = match way {
        Way::Up => &peer.limits.up,
        Way::Down => &peer.limits.down,
    };
    LimitWord::from_bits(word.load(Ordering::Relaxed))
}

fn share_of<'a>(peer: &Slot<'a>, way: Way) -> &'a AtomicU64 {
    match way {
        Way::Up => &peer.limits.up_share,
        Way::Down => &peer.limits.down_share,
    }
}

/// Takes away what a peer had saved up before it was given a share: if all spent their savings at once,
/// all shares together would be more than there is for seconds.
pub(super) fn forfeit(direction: &Direction<AtomicU64>, share: LimitWord, now: Timestamp) {
    let now = now.as_nanos() << TICKS_PER_NANOSECOND_LOG2;
    let kept = share.cost(LimitWord::MIN_BURST_BYTES as u32);
    let spent = now.saturating_sub(kept);
    direction.spent_until.fetch_max(spent, Ordering::Relaxed);
}

/// A share as a limit; unlimited, which is "as configured", where it is all that is configured.
pub(super) fn share_word(level: &Level, wish: &Wish, configured: LimitWord) -> LimitWord {
    let rate = level.limit(wish);
    if rate >= wish.ceiling {
        return LimitWord::UNLIMITED;
    }
    let rate = rate.max(LimitWord::MIN_BITS_PER_SECOND);
    let burst = rate / 8 * SHARE_BURST.as_millis() as u64 / 1000;
    let burst = burst.clamp(MIN_SHARE_BURST_BYTES, LimitWord::MAX_BURST_BYTES);
    let most = if configured.is_unlimited() {
        LimitWord::MAX_BURST_BYTES
    } else {
        configured.burst_bytes()
    };
    LimitWord::new(rate, burst.min(most).max(LimitWord::MIN_BURST_BYTES))
        .expect("rate and burst were brought into range")
}

#[cfg(test)]
mod tests;
