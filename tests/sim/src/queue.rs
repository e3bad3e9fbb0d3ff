//! What happens next: events ordered by time, and by the order of their making where times are equal.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use towpath_proto::Timestamp;

/// A queue of events with the clock that moves along it.
#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Entry<E>>,
    sequence: u64,
    now: Timestamp,
}

#[derive(Debug)]
struct Entry<E> {
    at: Timestamp,
    sequence: u64,
    event: E,
}

impl<E> Queue<E> {
    /// An empty queue whose clock stands at `start`.
    pub fn new(start: Timestamp) -> Self {
        Self {
            heap: BinaryHeap::new(),
            sequence: 0,
            now: start,
        }
    }

    /// The virtual time.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Adds an event; one in the past happens now.
    pub fn push(&mut self, at: Timestamp, event: E) {
        self.sequence += 1;
        self.heap.push(Entry {
            at: at.max(self.now),
            sequence: self.sequence,
            event,
        });
    }

    /// When the next event happens.
    pub fn next_at(&self) -> Option<Timestamp> {
        self.heap.peek().map(|entry| entry.at)
    }

    /// The next event; the clock moves to its time.
    pub fn pop(&mut self) -> Option<E> {
        let entry = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }

    /// Moves the clock forward to `to`, which is not later than the next event.
    pub fn advance(&mut self, to: Timestamp) {
        assert!(
            self.next_at().is_none_or(|at| to <= at),
            "an event would be skipped"
        );
        self.now = self.now.max(to);
    }

    /// How many events wait.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

impl<E> Ord for Entry<E> {
    /// The earliest entry is the greatest: `BinaryHeap` gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_by_the_order_of_their_making() {
        let at = Timestamp::from_nanos;
        let mut queue = Queue::new(at(5));
        for (time, event) in [(9, 'c'), (7, 'a'), (7, 'b'), (1, 'x')] {
            queue.push(at(time), event);
        }
        let mut order = Vec::new();
        while let Some(event) = queue.pop() {
            order.push((queue.now().as_nanos(), event));
        }
        assert_eq!(order, [(5, 'x'), (7, 'a'), (7, 'b'), (9, 'c')]);
    }
}
