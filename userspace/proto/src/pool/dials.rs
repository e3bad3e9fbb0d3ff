//! Dials, and who waits for them.
//!
//! ```text
//!             ┌──────────── pause over ───────────┐
//!             ▼                                   │
//!   ──▶ ┌────────┐ ── may pass, or refused ──▶ ┌───────┐
//!       │ Trying │                             │ Pause │
//!       └────────┘ ◀ the last waiter goes ▶    └───────┘
//!            │ dialled, or hopeless: all waiters are answered
//! ```

use std::fmt::Debug;
use std::hash::Hash;

use super::event::{Action, DialId, GetError, PoolEvent, Ticket};
use super::metadata::Established;
use super::permits::Permit;
use super::retry::{DialError, ErrorClass, pause};
use super::slab::Key;
use super::{Due, New, Pool};
use crate::Timestamp;
use crate::identity::{PeerAddr, PeerId};
use crate::timer::TimerId;

#[derive(Debug)]
pub(super) struct Dial {
    to: PeerAddr,
    permit: Permit,
    waiters: Vec<Key>,
    attempts: u32,
    phase: Phase,
    timer: Option<TimerId>,
    /// Why the last attempt failed.
    last: Option<DialError>,
    /// Whether it is for one connection more than there are; nobody waits for it then.
    further: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Trying,
    Pause,
}

#[derive(Debug)]
pub(super) struct Waiter {
    ticket: Ticket,
    dial: Key,
    timer: TimerId,
    /// It waits no longer.
    until: Timestamp,
}

impl<C: Copy + Eq + Hash + Debug> Pool<C> {
    /// A caller waits no more. False where it did not: its answer is on the way, or was none.
    pub fn cancel(&mut self, now: Timestamp, ticket: Ticket) -> bool {
        self.now = now;
        let Some(key) = self.tickets.get(&ticket).copied() else {
            return false;
        };
        if let Some(dial) = self.leave(key) {
            self.give_up_if_unwanted(dial);
        }
        true
    }

    /// A dial has led to a connection. False where nobody wants it any more; it has to be closed then.
    pub fn dialled(
        &mut self,
        now: Timestamp,
        dial: DialId,
        connection: C,
        established: Established,
    ) -> bool {
        self.now = now;
        if !self.is_trying(dial) {
            return false;
        }
        let Some(dial) = self.end(dial.0) else {
            return false;
        };
        self.counters.dialled.increment();
        let new = New {
            connection,
            peer: dial.to.id(),
            incoming: false,
            established,
            permit: dial.permit,
            waiters: dial.waiters,
        };
        self.insert(now, new);
        true
    }

    /// An attempt has failed.
    pub fn dial_failed(&mut self, now: Timestamp, dial: DialId, error: DialError) {
        self.now = now;
        if self.is_trying(dial) {
            self.failed(now, dial.0, error);
        }
    }

    /// The attempt was not made: nothing is tried before `retry_at`. Who does not wait so long is told
    /// so at once.
    pub fn dial_refused(&mut self, now: Timestamp, dial: DialId, retry_at: Timestamp) {
        self.now = now;
        if !self.is_trying(dial) {
            return;
        }
        let Some(refused) = self.dials.get_mut(dial.0) else {
            return;
        };
        refused.attempts -= 1;
        let waiters = &self.waiters;
        let impatient = |key: &mut Key| {
            let waiter = waiters.get(*key);
            waiter.is_some_and(|waiter| waiter.until <= retry_at)
        };
        let impatient = refused.waiters.extract_if(.., impatient).collect();
        let nobody_left = refused.waiters.is_empty();
        self.answer(impatient, &Err(GetError::Held { retry_at }));
        if nobody_left {
            self.end_unwanted(dial.0, retry_at);
        } else {
            self.pause(dial.0, retry_at);
        }
    }

    pub(super) fn wait(
        &mut self,
        now: Timestamp,
        to: &PeerAddr,
        ticket: Ticket,
    ) -> Result<(), GetError> {
        if self.shutting_down {
            return Err(GetError::ShuttingDown);
        }
        if self.tickets.contains_key(&ticket) {
            return Err(GetError::TicketInUse(ticket));
        }
        if self.waiters.len() >= self.config.max_waiters {
            return Err(GetError::TooManyWaiters(self.waiters.len()));
        }
        let dial = match self.groups.get(&to.id()).and_then(|group| group.dial) {
            Some(dial) => dial,
            None => self.dial_for_callers(now, to)?,
        };
        let until = now + self.config.retry.deadline;
        let timers = &mut self.timers;
        let waiter = self.waiters.insert_with(|key| Waiter {
            ticket,
            dial,
            timer: timers.start(until, Due::Waiter(key)),
            until,
        });
        self.tickets.insert(ticket, waiter);
        self.counters.waited.increment();
        if let Some(dial) = self.dials.get_mut(dial) {
            dial.waiters.push(waiter);
            dial.to = to.joined(&dial.to);
            dial.further = false;
        }
        Ok(())
    }

    /// Dials one connection more than there are, where there is room without closing another.
    pub(super) fn dial_further(&mut self, now: Timestamp, to: &PeerAddr) {
        if let Some(permit) = self.permits.take() {
            self.dial(now, to, permit, true);
        }
    }

    /// The peer has called meanwhile: what a dial of it held, and who waited for it.
    pub(super) fn overtake(&mut self, peer: PeerId) -> Option<(Permit, Vec<Key>)> {
        let dial = self.groups.get(&peer)?.dial?;
        let Dial {
            permit, waiters, ..
        } = self.give_up(dial)?;
        Some((permit, waiters))
    }

    /// The time of an attempt, or of a pause, is over.
    pub(super) fn dial_due(&mut self, now: Timestamp, key: Key) {
        let Some(dial) = self.dials.get_mut(key) else {
            return;
        };
        dial.timer = None;
        match dial.phase {
            Phase::Pause => self.attempt(now, key),
            Phase::Trying => {
                self.actions.push_back(Action::Cancel {
                    dial: DialId(key),
                    too_slow: true,
                });
                let timeout = self.config.retry.attempt_timeout;
                self.failed(now, key, DialError::TooSlow(timeout));
            }
        }
    }

    pub(super) fn waited_too_long(&mut self, key: Key) {
        let Some(dial) = self.waiters.get(key).map(|waiter| waiter.dial) else {
            return;
        };
        let (attempts, last) = match self.dials.get(dial) {
            Some(dial) => (dial.attempts, dial.last.clone()),
            None => (0, None),
        };
        let error = GetError::Deadline {
            deadline: self.config.retry.deadline,
            attempts,
            last,
        };
        if let Some(dial) = self.dials.get_mut(dial) {
            dial.waiters.retain(|waiter| *waiter != key);
        }
        self.answer(vec![key], &Err(error));
        self.give_up_if_unwanted(dial);
    }

    /// Ends all dials, for good.
    pub(super) fn end_dials(&mut self) {
        for key in self.dials.keys() {
            if let Some(dial) = self.give_up(key) {
                self.answer(dial.waiters, &Err(GetError::ShuttingDown));
            }
        }
    }

    /// Tells waiters what came of it.
    pub(super) fn answer(&mut self, waiters: Vec<Key>, result: &Result<C, GetError>) {
        for key in waiters {
            let Some(waiter) = self.waiters.remove(key) else {
                continue;
            };
            self.timers.cancel(waiter.timer);
            self.tickets.remove(&waiter.ticket);
            self.actions.push_back(Action::Answer {
                ticket: waiter.ticket,
                result: result.clone(),
            });
        }
    }

    fn dial_for_callers(&mut self, now: Timestamp, to: &PeerAddr) -> Result<Key, GetError> {
        let Some(permit) = self.permit(now) else {
            self.full(to.id());
            let limit = self.permits.limit();
            return Err(GetError::Full { limit });
        };
        Ok(self.dial(now, to, permit, false))
    }

    fn dial(&mut self, now: Timestamp, to: &PeerAddr, permit: Permit, further: bool) -> Key {
        let key = self.dials.insert_with(|_| Dial {
            to: to.clone(),
            permit,
            waiters: Vec::new(),
            attempts: 0,
            phase: Phase::Trying,
            timer: None,
            last: None,
            further,
        });
        self.groups.entry(to.id()).or_default().dial = Some(key);
        self.attempt(now, key);
        key
    }

    fn attempt(&mut self, now: Timestamp, key: Key) {
        let until = now + self.config.retry.attempt_timeout;
        let Some(dial) = self.dials.get_mut(key) else {
            return;
        };
        dial.attempts += 1;
        dial.phase = Phase::Trying;
        dial.timer = Some(self.timers.start(until, Due::Dial(key)));
        self.counters.attempts.increment();
        self.actions.push_back(Action::Dial {
            dial: DialId(key),
            to: dial.to.clone(),
            attempt: dial.attempts,
        });
    }

    fn is_trying(&self, dial: DialId) -> bool {
        let dial = self.dials.get(dial.0);
        dial.is_some_and(|dial| dial.phase == Phase::Trying)
    }

    /// The attempt has failed: another one follows after a pause, or all who wait are told.
    fn failed(&mut self, now: Timestamp, key: Key, error: DialError) {
        let Some(dial) = self.dials.get_mut(key) else {
            return;
        };
        let (peer, attempts, further) = (dial.to.id(), dial.attempts, dial.further);
        let retry = &self.config.retry;
        let again = match error.class() {
            ErrorClass::Transient => attempts < retry.max_attempts && !further,
            ErrorClass::Permanent => false,
        };
        if again {
            let after = pause(retry, attempts, &mut self.rng);
            dial.last = Some(error.clone());
            self.counters.retries.increment();
            self.tell(|| PoolEvent::Retry {
                peer,
                attempt: attempts,
                after,
                error,
            });
            self.pause(key, now + after);
            return;
        }
        let hold = now + retry.max_delay;
        let waiters = self
            .dials
            .get_mut(key)
            .map(|dial| std::mem::take(&mut dial.waiters));
        self.end_unwanted(key, hold);
        self.counters.failed.increment();
        self.tell(|| PoolEvent::Failed {
            peer,
            attempts,
            error: error.clone(),
        });
        let error = GetError::Failed { attempts, error };
        self.answer(waiters.unwrap_or_default(), &Err(error));
    }

    fn pause(&mut self, key: Key, until: Timestamp) {
        let Some(dial) = self.dials.get_mut(key) else {
            return;
        };
        dial.phase = Phase::Pause;
        if let Some(timer) = dial.timer.replace(self.timers.start(until, Due::Dial(key))) {
            self.timers.cancel(timer);
        }
    }

    /// A waiter goes, without an answer.
    fn leave(&mut self, key: Key) -> Option<Key> {
        let waiter = self.waiters.remove(key)?;
        self.timers.cancel(waiter.timer);
        self.tickets.remove(&waiter.ticket);
        let dial = self.dials.get_mut(waiter.dial)?;
        dial.waiters.retain(|other| *other != key);
        Some(waiter.dial)
    }

    fn give_up_if_unwanted(&mut self, key: Key) {
        let dial = self.dials.get(key);
        if dial.is_some_and(|dial| dial.waiters.is_empty() && !dial.further) {
            drop(self.give_up(key));
        }
    }

    /// Ends a dial, and its attempt where one runs.
    fn give_up(&mut self, key: Key) -> Option<Dial> {
        if self.is_trying(DialId(key)) {
            self.actions.push_back(Action::Cancel {
                dial: DialId(key),
                too_slow: false,
            });
        }
        self.end(key)
    }

    /// Ends a dial for which nobody waits any more; no further connection is dialled before a time.
    fn end_unwanted(&mut self, key: Key, further_after: Timestamp) {
        let Some(dial) = self.end(key) else {
            return;
        };
        if let Some(group) = self.groups.get_mut(&dial.to.id()) {
            group.further_after = further_after;
        }
    }

    fn end(&mut self, key: Key) -> Option<Dial> {
        let dial = self.dials.remove(key)?;
        if let Some(timer) = dial.timer {
            self.timers.cancel(timer);
        }
        let peer = dial.to.id();
        if let Some(group) = self.groups.get_mut(&peer) {
            group.dial = None;
        }
        self.forget_if_empty(peer);
        Some(dial)
    }
}
