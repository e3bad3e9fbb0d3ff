//! Circuit breakers: who could not be reached of late is left alone for a while.
//!
//! ```text
//!            too many failures             the time is over
//!   Closed ────────────────────▶ Open ─────────────────────▶ HalfOpen
//!     ▲                           ▲   one of the trials fails   │ │
//!     │                           └─────────────────────────────┘ │
//!     └───────────────────────────────────────────────────────────┘
//!                 enough trials succeed, or nobody tries for long
//! ```
//!
//! One registry for the whole node, with a breaker per peer and way to it, per relay and per helper: a
//! direct way that is broken does not keep anybody from the relay.
//!
//! **It is asked before something new is dialled, and about nothing else.** A connection that stands is
//! used without asking, whatever its breaker says.
//!
//! [`Breakers::admit`] gives a [`Permit`], which comes back with what became of the attempt. It carries
//! the generation of the breaker's state: what was begun in an earlier state changes nothing in a
//! later one. A permit that is not back within [`BreakerConfig::permit_timeout`] counts as cancelled.
//!
//! A breaker is made when it is first asked and forgotten when it has been quiet for so long that a new one
//! would say the same. There are [`BreakerConfig::max_entries`] at most. If there are more, the
//! closed one that was used least recently is forgotten. While none is closed, further keys are
//! admitted without a breaker ([`Breakers::untracked`] counts them): who is not known to be broken is
//! not kept out.
//!
//! The registry dials nobody and knows nothing of connections.

mod config;

pub use config::{BreakerConfig, BreakerConfigError};

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use ahash::RandomState;
use hashbrown::HashMap;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use thiserror::Error;

use crate::Timestamp;
use crate::identity::PeerId;
use crate::transport_type::TransportType;
use crate::window::{Tally, Window};

/// Changes that wait to be told; of more, the oldest are lost.
const MAX_CHANGES: usize = 1024;

/// What a breaker is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum BreakerKey {
    /// Connections to a peer by one kind of way.
    Peer(PeerId, TransportType),
    /// A relay.
    Relay(SocketAddr),
    /// Another server that helps to connect: STUN, bootstrap, rendezvous.
    Helper(SocketAddr),
}

/// What a breaker does with attempts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BreakerState {
    /// It lets them pass.
    Closed,
    /// It refuses them.
    Open,
    /// It lets a few pass, as trials.
    HalfOpen,
}

/// What became of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// It went well.
    Success,
    /// It failed, and not by our fault.
    Failure,
    /// It was given up, or failed for a reason that says nothing about the other end.
    Cancelled,
}

/// Why a breaker has changed its state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BreakerCause {
    /// Too many attempts have failed.
    Failures,
    /// The time to leave it alone is over.
    TimeOver,
    /// A trial has failed.
    TrialFailed,
    /// Enough trials have succeeded.
    TrialsSucceeded,
    /// Nobody has tried for so long that what was known means nothing any more.
    Quiet,
}

/// A change of a breaker's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BreakerChange {
    /// Whose.
    pub key: BreakerKey,
    /// The state before.
    pub from: BreakerState,
    /// The state since.
    pub to: BreakerState,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub cause: BreakerCause,
    /// Where it is open now: until when.
    pub retry_at: Option<Timestamp>,
}

/// What is known of one breaker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BreakerReport {
    /// Its state.
    pub state: BreakerState,
    /// Where it is closed: what became of attempts within the window.
    pub recent: Tally,
    /// Where it is open: until when.
    pub retry_at: Option<Timestamp>,
}

/// An attempt is refused; not the fault of who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("it failed too often of late and is left alone until {retry_at:?}")]
pub struct StillOpen {
    /// Before this time another attempt is refused too.
    pub retry_at: Timestamp,
}

/// Leave for one attempt, to be given back to [`Breakers::record`]. One that is dropped counts as
/// cancelled once its time is over.
#[derive(Debug)]
#[must_use = "what became of the attempt has to be recorded"]
pub struct Permit {
    key: BreakerKey,
    generation: u64,
    number: u64,
    expires_at: Timestamp,
}

impl Permit {
    /// Which breaker has given it.
    pub fn key(&self) -> BreakerKey {
        self.key
    }
}

/// All breakers of a node.
#[derive(Debug)]
pub struct Breakers {
    config: BreakerConfig,
    entries: HashMap<BreakerKey, Entry, RandomState>,
    /// When something changes by itself, and in which breaker. The number tells two of one time apart.
    deadlines: BTreeMap<(Timestamp, u64), BreakerKey>,
    changes: VecDeque<BreakerChange>,
    rng: ChaCha8Rng,
    /// Counts permits, generations and breakers: no two of them share a number.
    numbers: u64,
    untracked: u64,
    lost_changes: u64,
    /// The latest time that was ever said.
    now: Timestamp,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    generation: u64,
    /// When it was last used: asked with success, told a result that counts, or half opened.
    used_at: Timestamp,
    /// The order of uses; times may be the same.
    use_number: u64,
    /// Its key in `Breakers::deadlines`.
    deadline: Timestamp,
    state: State,
}

#[derive(Debug)]
enum State {
    Closed(Window),
    Open {
        retry_at: Timestamp,
        /// How often it was opened since it was last closed.
        streak: u32,
    },
    HalfOpen {
        streak: u32,
        successes: u32,
        trials: Vec<Trial>,
    },
}

/// A permit that is out while its breaker is half open.
#[derive(Debug)]
struct Trial {
    number: u64,
    expires_at: Timestamp,
}

impl Breakers {
    /// No breakers. `seed` decides by how much the times to leave others alone vary.
    pub fn new(config: BreakerConfig, seed: [u8; 32]) -> Result<Self, BreakerConfigError> {
        config.validate()?;
        let mut rng = ChaCha8Rng::from_seed(seed);
        let mut word = || rng.next_u64();
        let hasher = RandomState::with_seeds(word(), word(), word(), word());
        Ok(Self {
            config,
            entries: HashMap::with_hasher(hasher),
            deadlines: BTreeMap::new(),
            changes: VecDeque::new(),
            rng,
            numbers: 0,
            untracked: 0,
            lost_changes: 0,
            now: Timestamp::ZERO,
        })
    }

    /// Asks for leave to make one attempt now.
    pub fn admit(&mut self, now: Timestamp, key: BreakerKey) -> Result<Permit, StillOpen> {
        self.handle_timeout(now);
        let now = self.now;
        let number = self.next_number();
        let expires_at = now + self.config.permit_timeout;
        if !self.make_entry(key) {
            self.untracked += 1;
            return Ok(Permit {
                key,
                generation: number,
                number,
                expires_at,
            });
        }
        let entry = self
            .entries
            .get_mut(&key)
            .expect("it was there or was just made");
        match &mut entry.state {
            State::Closed(_) => {}
            State::Open { retry_at, .. } => {
                return Err(StillOpen {
                    retry_at: *retry_at,
                });
            }
            State::HalfOpen { trials, .. } => {
                if trials.len() >= self.config.half_open_permits as usize
                    && let Some(retry_at) = trials.iter().map(|trial| trial.expires_at).min()
                {
                    return Err(StillOpen { retry_at });
                }
                trials.push(Trial { number, expires_at });
            }
        }
        entry.used(now, number);
        let generation = entry.generation;
        self.reschedule(key);
        Ok(Permit {
            key,
            generation,
            number,
            expires_at,
        })
    }

    /// Takes the result of an attempt. It changes nothing where the breaker has changed its state
    /// since, or the permit's time is over.
    pub fn record(&mut self, now: Timestamp, permit: Permit, outcome: Outcome) {
        self.handle_timeout(now);
        let now = self.now;
        let use_number = self.next_number();
        let key = permit.key;
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        if entry.generation != permit.generation || permit.expires_at <= now {
            return;
        }
        entry.used(now, use_number);
        let success = match outcome {
            Outcome::Success => true,
            Outcome::Failure => false,
            Outcome::Cancelled => {
                entry.release(permit.number);
                self.reschedule(key);
                return;
            }
        };
        match &mut entry.state {
            State::Closed(window) => {
                window.record(now, self.config.window, success);
                let recent = window.tally(now, self.config.window);
                if self.config.is_too_much(recent) {
                    self.open(key, BreakerCause::Failures, 0);
                }
            }
            State::HalfOpen {
                streak, successes, ..
            } => {
                if !success {
                    let streak = streak.saturating_add(1);
                    self.open(key, BreakerCause::TrialFailed, streak);
                } else if *successes + 1 >= self.config.successes_to_close {
                    let closed = State::Closed(Window::default());
                    self.change(key, now, closed, BreakerCause::TrialsSucceeded);
                } else {
                    *successes += 1;
                    entry.release(permit.number);
                }
            }
            State::Open { .. } => {}
        }
        self.reschedule(key);
    }

    /// The state of a breaker; closed where nothing is known.
    pub fn state(&self, now: Timestamp, key: BreakerKey) -> BreakerState {
        self.report(now, key).state
    }

    /// What is known of a breaker.
    pub fn report(&self, now: Timestamp, key: BreakerKey) -> BreakerReport {
        let now = self.now.max(now);
        let mut report = BreakerReport {
            state: BreakerState::Closed,
            recent: Tally::default(),
            retry_at: None,
        };
        let Some(entry) = self.entries.get(&key) else {
            return report;
        };
        let quiet = self.config.quiet();
        match &entry.state {
            State::Closed(window) => report.recent = window.tally(now, self.config.window),
            State::Open { retry_at, .. } if now < *retry_at => {
                report.state = BreakerState::Open;
                report.retry_at = Some(*retry_at);
            }
            State::Open { retry_at, .. } if now < *retry_at + quiet => {
                report.state = BreakerState::HalfOpen;
            }
            State::HalfOpen { .. } if now < entry.used_at + quiet => {
                report.state = BreakerState::HalfOpen;
            }
            State::Open { .. } | State::HalfOpen { .. } => {}
        }
        report
    }

    /// Breakers that are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Attempts that were admitted without a breaker because there are too many that are not closed.
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    /// Changes that nobody took in time.
    pub fn lost_changes(&self) -> u64 {
        self.lost_changes
    }

    /// The next change of a breaker's state, in the order in which they happened.
    pub fn poll_change(&mut self) -> Option<BreakerChange> {
        self.changes.pop_front()
    }

    /// When `handle_timeout` wants to be called; at once while there are changes to be taken.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        if !self.changes.is_empty() {
            return Some(self.now);
        }
        Some(self.deadlines.first_key_value()?.0.0)
    }

    /// Does what is due. Answers are the same however late it is called.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        while let Some((&(at, number), &key)) = self.deadlines.first_key_value()
            && at <= self.now
        {
            self.deadlines.remove(&(at, number));
            self.pass(at, key);
        }
    }

    /// The deadline of a breaker has come.
    fn pass(&mut self, at: Timestamp, key: BreakerKey) {
        let quiet = self.config.quiet();
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        match &mut entry.state {
            State::Closed(_) => {
                self.entries.remove(&key);
                return;
            }
            State::Open { streak, .. } => {
                entry.used_at = at;
                let half_open = State::HalfOpen {
                    streak: *streak,
                    successes: 0,
                    trials: Vec::new(),
                };
                self.change(key, at, half_open, BreakerCause::TimeOver);
            }
            State::HalfOpen { trials, .. } => {
                trials.retain(|trial| trial.expires_at > at);
                if entry.used_at + quiet <= at {
                    let closed = State::Closed(Window::default());
                    self.change(key, at, closed, BreakerCause::Quiet);
                    self.entries.remove(&key);
                    return;
                }
            }
        }
        self.reschedule(key);
    }

    /// Sees to it that there is a breaker. False where there is no room for one.
    fn make_entry(&mut self, key: BreakerKey) -> bool {
        if self.entries.contains_key(&key) {
            return true;
        }
        if self.entries.len() >= self.config.max_entries && !self.forget_one() {
            return false;
        }
        let number = self.next_number();
        let entry = Entry {
            number,
            generation: number,
            used_at: self.now,
            use_number: number,
            deadline: Timestamp::MAX,
            state: State::Closed(Window::default()),
        };
        self.entries.insert(key, entry);
        true
    }

    /// Forgets the closed breaker that was used least recently. False where none is closed.
    fn forget_one(&mut self) -> bool {
        let closed = self
            .entries
            .iter()
            .filter(|(_, entry)| matches!(entry.state, State::Closed(_)));
        let Some((&key, _)) = closed.min_by_key(|(_, entry)| entry.use_number) else {
            return false;
        };
        if let Some(entry) = self.entries.remove(&key) {
            self.deadlines.remove(&(entry.deadline, entry.number));
        }
        true
    }

    fn open(&mut self, key: BreakerKey, cause: BreakerCause, streak: u32) {
        let now = self.now;
        let retry_at = now + self.time_to_wait(streak);
        self.change(key, now, State::Open { retry_at, streak }, cause);
    }

    /// How long a breaker stays open.
    fn time_to_wait(&mut self, streak: u32) -> Duration {
        let longest = nanos(self.config.open_for_after(streak));
        let spread = u128::from(longest) * u128::from(self.config.jitter_per_mille) / 1000;
        let less = (u128::from(self.rng.next_u64()) * (spread + 1)) >> 64;
        Duration::from_nanos(longest - less as u64)
    }

    fn change(&mut self, key: BreakerKey, at: Timestamp, state: State, cause: BreakerCause) {
        let generation = self.next_number();
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let from = entry.state.name();
        entry.state = state;
        entry.generation = generation;
        let retry_at = match entry.state {
            State::Open { retry_at, .. } => Some(retry_at),
            State::Closed(_) | State::HalfOpen { .. } => None,
        };
        if self.changes.len() >= MAX_CHANGES {
            self.changes.pop_front();
            self.lost_changes += 1;
        }
        self.changes.push_back(BreakerChange {
            key,
            from,
            to: entry.state.name(),
            at,
            cause,
            retry_at,
        });
    }

    /// Brings the deadline of a breaker up to date.
    fn reschedule(&mut self, key: BreakerKey) {
        let quiet = self.config.quiet();
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let forgotten_at = entry.used_at + quiet;
        let deadline = match &entry.state {
            State::Closed(_) => forgotten_at,
            State::Open { retry_at, .. } => *retry_at,
            State::HalfOpen { trials, .. } => trials
                .iter()
                .map(|trial| trial.expires_at)
                .fold(forgotten_at, Timestamp::min),
        };
        self.deadlines.remove(&(entry.deadline, entry.number));
        self.deadlines.insert((deadline, entry.number), key);
        entry.deadline = deadline;
    }

    fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

impl Entry {
    fn used(&mut self, now: Timestamp, use_number: u64) {
        self.used_at = now;
        self.use_number = use_number;
    }

    /// Gives back what a trial has taken.
    fn release(&mut self, number: u64) {
        match &mut self.state {
            State::HalfOpen { trials, .. } => trials.retain(|trial| trial.number != number),
            State::Closed(_) | State::Open { .. } => {}
        }
    }
}

impl State {
    fn name(&self) -> BreakerState {
        match self {
            Self::Closed(_) => BreakerState::Closed,
            Self::Open { .. } => BreakerState::Open,
            Self::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
