//! Whose turn it is to send: weighted deficit round robin over whoever has something, and a place for
//! those who have to wait for their own limit.
//!
//! ```text
//!            ┌───────────── turn over ─────────────┐
//!            ▼                                     │
//!   add ──▶ queue: a, b, c ──▶ front ──▶ sends, until its deficit is used up
//!            ▲                   │
//!            │                   ├──▶ drained: out, until it has something again
//!        its time ◀── parked ◀───┘    over its own limit
//! ```
//!
//! A turn adds a quantum to the deficit of who is at the front; what it sends is taken from it. The size
//! of what is sent is known afterwards only, so a deficit may end below zero; that much less is sent at
//! the next turn. Who has nothing to send saves nothing up, and keeps its debt.
//!
//! It knows no limits, bytes or connections: keys are the caller's, small numbers.

use std::collections::{BTreeSet, VecDeque};

use crate::Timestamp;

/// The order in which flows send.
#[derive(Debug, Default)]
pub struct Scheduler {
    flows: Vec<Flow>,
    queue: VecDeque<u32>,
    /// Of those that wait for the same time, who got nothing at its last turn comes first.
    parked: BTreeSet<(Timestamp, bool, u32)>,
    /// Whether who is at the front has been given the quantum of its turn.
    serving: bool,
    /// Whether it has sent something since.
    served: bool,
    /// Of those in the queue.
    wanting: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    deficit: i64,
    place: Place,
    /// Whether its key is in the queue: also one that wants nothing any more may still be.
    queued: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Place {
    /// It has nothing to send.
    #[default]
    Out,
    /// It is in the queue.
    In,
    /// It waits for a time, and whether it sent something at its last turn.
    Parked(Timestamp, bool),
}

impl Scheduler {
    /// Whether nobody is in the queue.
    pub fn is_empty(&self) -> bool {
        self.wanting == 0
    }

    /// Whether a flow has something to send, in the queue or parked.
    pub fn wants(&self, key: u32) -> bool {
        self.flow(key).place != Place::Out
    }

    /// The first of the times that parked flows wait for.
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.parked.first().map(|(at, _, _)| *at)
    }

    /// A flow may have something to send. Does nothing where it is in the queue or parked.
    pub fn add(&mut self, key: u32) {
        if self.flow(key).place == Place::Out {
            self.enqueue(key);
        }
    }

    /// Puts those into the queue whose time has come.
    pub fn wake(&mut self, now: Timestamp) {
        while let Some((at, _, key)) = self.parked.first().copied()
            && at <= now
        {
            self.parked.pop_first();
            self.enqueue(key);
        }
    }

    /// Puts all that are parked into the queue: limits have changed.
    pub fn wake_all(&mut self) {
        self.wake(Timestamp::MAX);
    }

    /// Whose turn it is. `quantum` says what a turn of a flow is worth: bytes, at least 1.
    pub fn front(&mut self, mut quantum: impl FnMut(u32) -> u32) -> Option<u32> {
        loop {
            let key = *self.queue.front()?;
            let place = self.flow(key).place;
            if place != Place::In {
                self.leave_queue();
                continue;
            }
            if !self.serving {
                self.serving = true;
                self.flow_mut(key).deficit += i64::from(quantum(key).max(1));
            }
            if self.flow(key).deficit > 0 {
                return Some(key);
            }
            self.rotate();
        }
    }

    /// Who is at the front has sent so much; whether its turn is over by that.
    pub fn sent(&mut self, bytes: u32) -> bool {
        let Some(&key) = self.queue.front() else {
            return false;
        };
        let flow = self.flow_mut(key);
        flow.deficit -= i64::from(bytes);
        let over = flow.deficit <= 0;
        self.served = true;
        if over {
            self.rotate();
        }
        over
    }

    /// Who is at the front has nothing more to send.
    pub fn drained(&mut self) {
        self.take_front(Place::Out);
    }

    /// Who is at the front has to wait.
    pub fn park(&mut self, until: Timestamp) {
        let served = self.served;
        if let Some(key) = self.take_front(Place::Parked(until, served)) {
            self.parked.insert((until, served, key));
        }
    }

    /// A flow is no more.
    pub fn remove(&mut self, key: u32) {
        match self.flow(key).place {
            Place::Out => {}
            Place::In => self.wanting -= 1,
            Place::Parked(at, served) => {
                self.parked.remove(&(at, served, key));
            }
        }
        if let Some(flow) = self.flows.get_mut(key as usize) {
            flow.place = Place::Out;
            flow.deficit = 0;
        }
    }

    fn enqueue(&mut self, key: u32) {
        let flow = self.flow_mut(key);
        flow.place = Place::In;
        let queued = std::mem::replace(&mut flow.queued, true);
        if !queued {
            self.queue.push_back(key);
        }
        self.wanting += 1;
    }

    fn take_front(&mut self, place: Place) -> Option<u32> {
        let key = self.leave_queue()?;
        let flow = self.flow_mut(key);
        flow.deficit = flow.deficit.min(0);
        if flow.place == Place::In {
            flow.place = place;
            self.wanting -= 1;
        }
        Some(key)
    }

    fn leave_queue(&mut self) -> Option<u32> {
        let key = self.queue.pop_front()?;
        self.serving = false;
        self.served = false;
        self.flow_mut(key).queued = false;
        Some(key)
    }

    fn rotate(&mut self) {
        self.serving = false;
        self.served = false;
        self.queue.rotate_left(1);
    }

    fn flow(&self, key: u32) -> Flow {
        self.flows.get(key as usize).copied().unwrap_or_default()
    }

    fn flow_mut(&mut self, key: u32) -> &mut Flow {
        let at = key as usize;
        if self.flows.len() <= at {
            self.flows.resize(at + 1, Flow::default());
        }
        &mut self.flows[at]
    }
}

#[cfg(test)]
mod tests;
