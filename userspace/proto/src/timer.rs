//! Timers by the million: a hierarchical timing wheel on slab indexes.
//!
//! A timer is due at a tick, the first one not before its deadline, so it never fires early and up
//! to [`TICK`] late. Level 0 has a slot per tick, each further level slots that are 64 times as
//! long; a timer lies on the level of the highest bits in which its tick differs from the wheel's
//! position, and moves down when the position reaches its slot.
//!
//! ```text
//!   level 0   |·|·|·|… 64 slots of one tick
//!   level 1   |·······|·······|… 64 slots of 64 ticks
//!   level 2   |···············…
//! ```
//!
//! Starting, cancelling and asking for the next deadline take constant time and, once the slab has
//! grown, no memory.

use std::time::Duration;

use crate::Timestamp;

const TICK_SHIFT: u32 = 20;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Ticks have 64 - 20 bits, so no timer lies beyond the top level.
const LEVELS: usize = 8;
const NONE: u32 = u32::MAX;
/// A slot number that no slot has: the entry is not in the wheel.
const UNLINKED: u16 = u16::MAX;

const _: () = assert!(LEVELS * SLOT_BITS as usize >= 64 - TICK_SHIFT as usize);
const _: () = assert!(size_of::<Entry<u32>>() == 32);

/// How late a timer may fire: about a millisecond.
pub const TICK: Duration = Duration::from_nanos(1 << TICK_SHIFT);

/// A timer that was started. It stays a safe value after the timer has fired or was cancelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimerId {
    index: u32,
    generation: u32,
}

/// A set of timers, each with a value to give back when it fires.
#[derive(Debug)]
pub struct Timers<T> {
    entries: Vec<Entry<T>>,
    first_free: u32,
    heads: Box<[[u32; SLOTS]; LEVELS]>,
    occupied: [u64; LEVELS],
    /// The tick the wheel has come to. No timer in it is due before.
    position: u64,
    len: usize,
}

#[derive(Debug)]
struct Entry<T> {
    /// The tick it is due at.
    due: u64,
    previous: u32,
    next: u32,
    generation: u32,
    slot: u16,
    value: T,
}

impl<T: Copy> Timers<T> {
    /// No timers.
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
            first_free: NONE,
            heads: Box::new([[NONE; SLOTS]; LEVELS]),
            occupied: [0; LEVELS],
            position: 0,
            len: 0,
        }
    }

    /// Number of timers that have neither fired nor been cancelled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Starts a timer. One whose deadline has passed fires at the next
    /// [`expire`](Self::expire).
    pub fn start(&mut self, deadline: Timestamp, value: T) -> TimerId {
        let due = tick_not_before(deadline).max(self.position);
        let entry = Entry {
            due,
            previous: NONE,
            next: NONE,
            generation: 0,
            slot: UNLINKED,
            value,
        };
        let index = if self.first_free == NONE {
            let index = u32::try_from(self.entries.len()).expect("memory holds fewer than 2^32");
            self.entries.push(entry);
            index
        } else {
            let index = self.first_free;
            let free = &mut self.entries[index as usize];
            self.first_free = free.next;
            *free = Entry {
                generation: free.generation,
                ..entry
            };
            index
        };
        self.len += 1;
        self.link(index);
        TimerId {
            index,
            generation: self.entries[index as usize].generation,
        }
    }

    /// Stops a timer and gives its value back; `None` where it has fired or was cancelled before.
    pub fn cancel(&mut self, id: TimerId) -> Option<T> {
        let entry = self.entries.get(id.index as usize)?;
        if entry.generation != id.generation || entry.slot == UNLINKED {
            return None;
        }
        self.unlink(id.index);
        Some(self.free(id.index))
    }

    /// When to call [`expire`](Self::expire) next: not after the next timer is due. It may be
    /// earlier, when timers only move to a lower level.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let (_, _, start) = self.next_slot()?;
        Some(Timestamp::from_nanos(start << TICK_SHIFT))
    }

    /// Takes out one timer that is due, in the order of ticks. `None` where there is none, or when
    /// `budget` is used up: one unit is spent per timer touched. In that case
    /// [`next_deadline`](Self::next_deadline) has already passed.
    pub fn expire(&mut self, now: Timestamp, budget: &mut u32) -> Option<T> {
        let now = now.as_nanos() >> TICK_SHIFT;
        loop {
            let Some((level, slot, start)) = self.next_slot().filter(|next| next.2 <= now) else {
                self.position = self.position.max(now);
                return None;
            };
            *budget = budget.checked_sub(1)?;
            self.position = self.position.max(start);
            let index = self.heads[level][slot];
            self.unlink(index);
            if level == 0 {
                return Some(self.free(index));
            }
            self.link(index);
        }
    }

    /// Level, number and first tick of the slot that is reached first.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        let mut next: Option<(usize, usize, u64)> = None;
        for (level, occupied) in self.occupied.iter().enumerate() {
            if *occupied == 0 {
                continue;
            }
            let shift = SLOT_BITS * level as u32;
            let position = self.position >> shift;
            let here = (position % SLOTS as u64) as u32;
            let distance = occupied.rotate_right(here).trailing_zeros();
            let start = (position + u64::from(distance)) << shift;
            if next.is_none_or(|(_, _, earliest)| start < earliest) {
                next = Some((level, (here + distance) as usize % SLOTS, start));
            }
        }
        next
    }

    fn link(&mut self, index: u32) {
        let due = self.entries[index as usize].due;
        let differing = (due ^ self.position) | (SLOTS as u64 - 1);
        let level = ((63 - differing.leading_zeros()) / SLOT_BITS) as usize;
        let slot = (due >> (SLOT_BITS * level as u32)) as usize % SLOTS;
        let head = std::mem::replace(&mut self.heads[level][slot], index);
        self.occupied[level] |= 1 << slot;
        let entry = &mut self.entries[index as usize];
        entry.previous = NONE;
        entry.next = head;
        entry.slot = (level * SLOTS + slot) as u16;
        if head != NONE {
            self.entries[head as usize].previous = index;
        }
    }

    fn unlink(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        let (previous, next) = (entry.previous, entry.next);
        let (level, slot) = (
            usize::from(entry.slot) / SLOTS,
            usize::from(entry.slot) % SLOTS,
        );
        entry.slot = UNLINKED;
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
            return;
        }
        self.heads[level][slot] = next;
        if next == NONE {
            self.occupied[level] &= !(1 << slot);
        }
    }

    fn free(&mut self, index: u32) -> T {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.next = self.first_free;
        self.first_free = index;
        self.len -= 1;
        entry.value
    }
}

impl<T: Copy> Default for Timers<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The first tick that does not begin before `deadline`.
fn tick_not_before(deadline: Timestamp) -> u64 {
    deadline.as_nanos().div_ceil(1 << TICK_SHIFT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn drain(timers: &mut Timers<u32>, now: Timestamp) -> Vec<u32> {
        std::iter::from_fn(|| timers.expire(now, &mut u32::MAX.clone())).collect()
    }

    #[test]
    fn timer_fires_within_a_tick_after_its_deadline_and_never_before() {
        let mut timers = Timers::new();
        let deadline = Timestamp::from_nanos(123_456_789);
        timers.start(deadline, 1);
        assert_eq!(drain(&mut timers, deadline - Duration::from_nanos(1)), []);
        assert_eq!(drain(&mut timers, deadline + TICK), [1]);
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn timer_whose_deadline_has_passed_fires_at_once() {
        let mut timers = Timers::new();
        let now = Timestamp::from_nanos(u64::MAX / 2);
        assert_eq!(drain(&mut timers, now), []);
        timers.start(Timestamp::ZERO, 1);
        assert!(timers.next_deadline().unwrap() <= now);
        assert_eq!(drain(&mut timers, now), [1]);
    }

    #[test]
    fn cancelled_and_fired_timers_cannot_be_cancelled_again() {
        let mut timers = Timers::new();
        let id = timers.start(Timestamp::ZERO + TICK, 1);
        assert_eq!(timers.cancel(id), Some(1));
        assert_eq!(timers.cancel(id), None);
        let reused = timers.start(Timestamp::ZERO + TICK, 2);
        assert_eq!(timers.cancel(id), None, "the slot is another timer's now");
        assert_eq!(drain(&mut timers, Timestamp::ZERO + TICK), [2]);
        assert_eq!(timers.cancel(reused), None);
    }

    #[test]
    fn work_per_call_is_bounded_and_the_rest_stays_due() {
        let mut timers = Timers::new();
        let deadline = Timestamp::ZERO + Duration::from_secs(600);
        for value in 0..1_000 {
            timers.start(deadline, value);
        }
        let (now, mut fired, mut calls) = (deadline + TICK, 0, 0);
        while !timers.is_empty() {
            assert!(timers.next_deadline().unwrap() <= now);
            let mut budget = 100;
            while timers.expire(now, &mut budget).is_some() {
                fired += 1;
            }
            calls += 1;
            assert!(calls < 100);
        }
        assert_eq!(fired, 1_000);
    }

    #[test]
    fn a_million_timers_fire_in_order_and_reuse_their_memory() {
        let mut timers = Timers::new();
        for (round, count) in [1_000_000, 100_000_u32].into_iter().enumerate() {
            let base = Timestamp::from_nanos((round as u64) << 50);
            for value in 0..count {
                let spread = u64::from(value.wrapping_mul(2_654_435_761)) * 1_000;
                timers.start(base + Duration::from_nanos(spread), value);
            }
            assert_eq!(timers.entries.len(), 1_000_000);
            let (mut fired, mut last) = (0, 0);
            let end = base + Duration::from_secs(5_000);
            while let Some(value) = timers.expire(end, &mut u32::MAX.clone()) {
                let due = (u64::from(value.wrapping_mul(2_654_435_761)) * 1_000) >> TICK_SHIFT;
                assert!(due + 1 >= last);
                (last, fired) = (due, fired + 1);
            }
            assert_eq!(fired, count);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Start(u64),
        Cancel(usize),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let nanos = prop_oneof![0..1u64 << 22, 0..1u64 << 30, 0..1u64 << 45, Just(u64::MAX)];
        prop_oneof![
            4 => nanos.clone().prop_map(Step::Start),
            1 => any::<usize>().prop_map(Step::Cancel),
            2 => nanos.prop_map(|nanos| Step::Pass(nanos >> 1)),
        ]
    }

    proptest! {
        #[test]
        fn wheel_behaves_like_a_sorted_map_of_ticks(steps in prop::collection::vec(step(), 1..200)) {
            let mut timers = Timers::new();
            let mut model: BTreeMap<(u64, u32), TimerId> = BTreeMap::new();
            let mut now = Timestamp::from_nanos(7);
            for (value, step) in steps.into_iter().enumerate() {
                let value = value as u32;
                match step {
                    Step::Start(delay) => {
                        let deadline = now + Duration::from_nanos(delay);
                        let id = timers.start(deadline, value);
                        model.insert((tick_not_before(deadline), value), id);
                    }
                    Step::Cancel(choice) => {
                        let Some((key, id)) = model.iter().nth(choice % model.len().max(1)) else {
                            continue;
                        };
                        let (key, id) = (*key, *id);
                        prop_assert_eq!(timers.cancel(id), Some(key.1));
                        model.remove(&key);
                    }
                    Step::Pass(time) => {
                        now = now + Duration::from_nanos(time);
                        let due = now.as_nanos() >> TICK_SHIFT;
                        let later = model.split_off(&(due + 1, 0));
                        let mut expected: Vec<u32> = model.keys().map(|key| key.1).collect();
                        model = later;
                        let mut fired = drain(&mut timers, now);
                        expected.sort_unstable();
                        fired.sort_unstable();
                        prop_assert_eq!(fired, expected);
                    }
                }
                prop_assert_eq!(timers.len(), model.len());
                let first = model.keys().next().map(|key| Timestamp::from_nanos(key.0 << TICK_SHIFT));
                match (timers.next_deadline(), first) {
                    (None, None) => {}
                    (Some(next), Some(first)) => prop_assert!(next <= first.max(now)),
                    (next, first) => prop_assert!(false, "{:?} {:?}", next, first),
                }
            }
        }
    }
}
