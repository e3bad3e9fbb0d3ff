//! Sums of what peers did, and those who did the most.

use towpath_proto::slots::Slots;

use super::view::{DirectionView, SlotView};
use crate::limit::Class;

/// What peers did, in few numbers.
pub(crate) struct Totals {
    /// Over the peers of each class. A peer that gives up its slot takes its counts along, so these
    /// are carried on by [`ClassTotals`].
    pub(crate) classes: Vec<(Class, DirectionTotals)>,
    /// The peers with the most bytes.
    pub(crate) top: Vec<SlotView>,
    /// How many peers there are.
    pub(crate) peers: u64,
}

impl Totals {
    /// Over all classes: up, down.
    pub(crate) fn sum(&self) -> [DirectionTotal; 2] {
        let mut sum = DirectionTotals::default();
        for (_, total) in &self.classes {
            sum.add(*total);
        }
        [sum.up, sum.down]
    }
}

/// Counts of both directions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct DirectionTotals {
    up: DirectionTotal,
    down: DirectionTotal,
}

/// Counts of one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct DirectionTotal {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) dropped_packets: u64,
}

impl DirectionTotals {
    pub(crate) fn of(slot: &SlotView) -> Self {
        Self {
            up: DirectionTotal::of(&slot.up),
            down: DirectionTotal::of(&slot.down),
        }
    }

    /// A count with the name of its direction.
    pub(crate) fn both(&self, value: fn(&DirectionTotal) -> u64) -> [(&'static str, u64); 2] {
        [("up", value(&self.up)), ("down", value(&self.down))]
    }

    fn add(&mut self, other: Self) {
        self.up.add(other.up);
        self.down.add(other.down);
    }

    fn grown_since(&self, before: Self) -> Self {
        Self {
            up: self.up.grown_since(before.up),
            down: self.down.grown_since(before.down),
        }
    }
}

impl DirectionTotal {
    fn of(view: &DirectionView) -> Self {
        Self {
            packets: view.packets,
            bytes: view.bytes,
            dropped_packets: view.dropped_packets,
        }
    }

    fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.dropped_packets += other.dropped_packets;
    }

    fn grown_since(self, before: Self) -> Self {
        // Less than before: the slot is somebody else's now, whose counts began at nothing.
        let grown = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        Self {
            packets: grown(self.packets, before.packets),
            bytes: grown(self.bytes, before.bytes),
            dropped_packets: grown(self.dropped_packets, before.dropped_packets),
        }
    }
}

/// The sums over classes, which never shrink though peers come and go.
#[derive(Debug, Default)]
pub(crate) struct ClassTotals {
    sums: [DirectionTotals; Class::ALL.len()],
    /// By slot: whose it was and what was counted when it was looked at last.
    seen: Vec<Option<(u64, DirectionTotals)>>,
}

impl ClassTotals {
    /// Adds what was counted since the last time; gives the sums, and the `most` peers with the most
    /// bytes.
    pub(crate) fn take(&mut self, slots: &dyn Slots, most: usize) -> Totals {
        let identities = slots.identities();
        let mut top: Vec<(u64, usize)> = Vec::with_capacity(identities.len());
        for (index, (slot, identity)) in identities.iter().enumerate() {
            let Some(memory) = slots.slot(*slot) else {
                continue;
            };
            let view = SlotView::of_peer(*slot, identity, &memory);
            let now = DirectionTotals::of(&view);
            let at = slot.0 as usize;
            if self.seen.len() <= at {
                self.seen.resize(at + 1, None);
            }
            let before = match self.seen[at] {
                Some((owner, before)) if owner == identity.owner() => before,
                Some(_) | None => DirectionTotals::default(),
            };
            self.seen[at] = Some((identity.owner(), now));
            self.sums[view.class as usize].add(now.grown_since(before));
            top.push((view.up.bytes + view.down.bytes, index));
        }
        top.sort_unstable_by(|a, b| b.cmp(a));
        top.truncate(most);
        let top = top.into_iter().filter_map(|(_, index)| {
            let (slot, identity) = &identities[index];
            Some(SlotView::of_peer(*slot, identity, &slots.slot(*slot)?))
        });
        Totals {
            classes: Class::ALL.into_iter().zip(self.sums).collect(),
            top: top.collect(),
            peers: identities.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use towpath_proto::Timestamp;
    use towpath_proto::slots::{Identity, MemorySlots, PeerSlot};

    use super::*;

    fn send(slots: &MemorySlots, slot: PeerSlot, bytes: u64) {
        let meter = slots.slot(slot).unwrap().meter;
        meter.up.bytes.fetch_add(bytes, Ordering::Relaxed);
        meter.up.packets.fetch_add(1, Ordering::Relaxed);
    }

    #[test]
    fn sums_of_classes_do_not_shrink_when_a_slot_gets_another_peer() {
        let slots = MemorySlots::new(1);
        let mut totals = ClassTotals::default();
        let second = |s: u64| Timestamp::from_nanos(s * 1_000_000_000);
        let slot = slots.acquire(second(1), &Identity::user("a", "x")).unwrap();
        send(&slots, slot, 100);
        let sum = |totals: &Totals| totals.classes[1].1.up.bytes;
        assert_eq!(sum(&totals.take(&slots, 1)), 100);
        send(&slots, slot, 10);
        slots.release(second(1), slot);
        assert_eq!(sum(&totals.take(&slots, 1)), 110);
        let again = slots.acquire(second(9), &Identity::user("a", "y")).unwrap();
        assert_eq!(again, slot);
        send(&slots, slot, 500);
        let taken = totals.take(&slots, 5);
        assert_eq!(sum(&taken), 610);
        assert_eq!((taken.top.len(), taken.peers), (1, 1));
        assert_eq!(
            (taken.top[0].name.as_str(), taken.top[0].up.bytes),
            ("y", 500)
        );
    }
}
