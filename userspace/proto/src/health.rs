//! How peers are doing: from what became of probes and connections of late, and how long answers took.
//!
//! ```text
//!   Unknown ──▶ Healthy ◀──▶ Degraded ◀──▶ Unhealthy
//!                  ▲                          ▲
//!                  └──────────────────────────┘
//! ```
//!
//! - **Unhealthy**: [`HealthConfig::misses_to_unhealthy`] failures in a row, or too high a rate of failures
//!   within the window, with two of them at least: one missed probe makes nobody unhealthy. It ends
//!   with [`HealthConfig::successes_to_recover`] successes in a row, when the rate is low enough too.
//! - **Degraded**: a noticeable rate of failures, or answers that take long.
//! - **Healthy**: none of these, and there was a success.
//! - **Unknown**: nothing that would say anything.
//!
//! The limits for getting worse and for getting better are different, so that nobody who lies between
//! them changes all the time. Rates and times mean something from
//! [`HealthConfig::minimum_volume`] on.
//!
//! What a status changes is said by [`HealthStatus::penalty`], for everybody who chooses between peers,
//! ways to them or relays: one who is degraded is taken where others are much busier, one who is
//! unhealthy where there is nobody else. Nothing is ever closed because of it.
//!
//! A peer of whom nothing was heard for [`HealthConfig::forget_after`] is forgotten, and so is the one of
//! whom nothing was heard for longest where there are more than [`HealthConfig::max_entries`]. This
//! module sends no probes.

mod config;

pub use config::{HealthConfig, HealthConfigError, Threshold};

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::Timestamp;
use crate::identity::PeerId;
use crate::window::{Tally, Window};

/// Changes that wait to be told; of more, the oldest are lost.
const MAX_CHANGES: usize = 1024;
/// A rate alone makes nobody unhealthy with fewer failures than this.
const LEAST_FAILURES: u32 = 2;

/// How a peer is doing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum HealthStatus {
    /// Nothing is known.
    #[default]
    Unknown,
    /// Well.
    Healthy,
    /// It works, but fails now and then, or is slow.
    Degraded,
    /// It does not work, or hardly.
    Unhealthy,
}

impl HealthStatus {
    /// Whose load counts how many times over, where one of several has to be chosen. It is a power of
    /// two, and the greater, the less one would choose it.
    pub const fn penalty(self) -> u32 {
        match self {
            Self::Healthy => 1,
            Self::Unknown => 2,
            Self::Degraded => 4,
            Self::Unhealthy => 16,
        }
    }

    /// Whether one would choose it at all while there is another.
    pub const fn is_usable(self) -> bool {
        match self {
            Self::Unknown | Self::Healthy | Self::Degraded => true,
            Self::Unhealthy => false,
        }
    }
}

/// What went wrong, by the peer's fault or on the way to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    /// A probe was not answered in time.
    NoAnswer,
    /// A connection that stood was lost.
    Lost,
    /// A connection could not be made.
    NotReached,
    /// The peer broke a rule.
    Misbehaved,
}

/// How long answers took within the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RttReport {
    /// Half of them took no longer.
    pub median: Duration,
    /// 95 in 100 of them took no longer.
    pub p95: Duration,
    /// How many there are.
    pub samples: usize,
}

/// What is known of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthReport {
    /// How it is doing.
    pub status: HealthStatus,
    /// Successes and failures within the window.
    pub recent: Tally,
    /// How long answers took within the window, where there were any.
    pub rtt: Option<RttReport>,
    /// Failures since the last success.
    pub misses: u32,
    /// What went wrong last, and when.
    pub last_fault: Option<(Fault, Timestamp)>,
    /// When something succeeded or failed last.
    pub last_check: Option<Timestamp>,
}

impl HealthReport {
    /// Successes in a thousand within the window; `None` where there was nothing.
    pub fn success_per_mille(&self) -> Option<u32> {
        (self.recent.volume() > 0).then(|| 1000 - self.recent.failures_per_mille())
    }
}

/// A change of a peer's status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthChange {
    /// Whose.
    pub peer: PeerId,
    /// The status before.
    pub from: HealthStatus,
    /// The status since; unknown where the peer was forgotten.
    pub to: HealthStatus,
    /// When.
    pub at: Timestamp,
}

/// How all peers are doing.
#[derive(Debug)]
pub struct Health {
    config: HealthConfig,
    entries: BTreeMap<PeerId, Entry>,
    /// When something was last heard of whom. The number tells two of one time apart.
    uses: BTreeMap<(Timestamp, u64), PeerId>,
    changes: VecDeque<HealthChange>,
    numbers: u64,
    lost_changes: u64,
    /// The latest time that was ever said.
    now: Timestamp,
}

#[derive(Debug, Default)]
struct Entry {
    /// Its key in `Health::uses`.
    used: (Timestamp, u64),
    status: HealthStatus,
    window: Window,
    samples: VecDeque<Sample>,
    misses: u32,
    /// Successes since the last failure.
    successes: u32,
    last_fault: Option<(Fault, Timestamp)>,
    last_check: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Timestamp,
    rtt_us: u32,
}

/// What is to be noted.
#[derive(Clone, Copy)]
enum Finding {
    Success,
    Fault(Fault),
    Rtt(Duration),
}

impl Health {
    /// Nobody is known.
    pub fn new(config: HealthConfig) -> Result<Self, HealthConfigError> {
        config.validate()?;
        Ok(Self {
            config,
            entries: BTreeMap::new(),
            uses: BTreeMap::new(),
            changes: VecDeque::new(),
            numbers: 0,
            lost_changes: 0,
            now: Timestamp::ZERO,
        })
    }

    /// A probe was answered, or a connection was made.
    pub fn record_success(&mut self, now: Timestamp, peer: PeerId) {
        self.note(now, peer, Finding::Success);
    }

    /// Something went wrong by the peer's fault, or on the way to it.
    pub fn record_fault(&mut self, now: Timestamp, peer: PeerId, fault: Fault) {
        self.note(now, peer, Finding::Fault(fault));
    }

    /// How long an answer took.
    pub fn record_rtt(&mut self, now: Timestamp, peer: PeerId, rtt: Duration) {
        self.note(now, peer, Finding::Rtt(rtt));
    }

    /// How a peer is doing.
    pub fn status(&self, now: Timestamp, peer: PeerId) -> HealthStatus {
        let entry = self.entry(self.now.max(now), peer);
        entry.map_or(HealthStatus::Unknown, |entry| entry.status)
    }

    /// What is known of a peer; `None` where nothing is.
    pub fn report(&self, now: Timestamp, peer: PeerId) -> Option<HealthReport> {
        let now = self.now.max(now);
        let entry = self.entry(now, peer)?;
        Some(HealthReport {
            status: entry.status,
            recent: entry.window.tally(now, self.config.window),
            rtt: entry.rtt(now, &self.config),
            misses: entry.misses,
            last_fault: entry.last_fault,
            last_check: entry.last_check,
        })
    }

    /// Peers of whom something is known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Changes that nobody took in time.
    pub fn lost_changes(&self) -> u64 {
        self.lost_changes
    }

    /// The next change of a status, in the order in which they happened.
    pub fn poll_change(&mut self) -> Option<HealthChange> {
        self.changes.pop_front()
    }

    /// When `handle_timeout` wants to be called; at once while there are changes to be taken.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        if !self.changes.is_empty() {
            return Some(self.now);
        }
        let (used_at, _) = self.uses.first_key_value()?.0;
        Some(*used_at + self.config.forget_after)
    }

    /// Forgets whom it is time to forget. Answers are the same however late it is called.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        while let Some((&(used_at, _), _)) = self.uses.first_key_value()
            && used_at + self.config.forget_after <= self.now
        {
            self.forget_first(used_at + self.config.forget_after);
        }
    }

    fn entry(&self, now: Timestamp, peer: PeerId) -> Option<&Entry> {
        let entry = self.entries.get(&peer)?;
        (now < entry.used.0 + self.config.forget_after).then_some(entry)
    }

    fn note(&mut self, now: Timestamp, peer: PeerId, finding: Finding) {
        self.handle_timeout(now);
        let now = self.now;
        let config = self.config;
        if !self.entries.contains_key(&peer) && self.entries.len() >= config.max_entries {
            self.forget_first(now);
        }
        self.numbers += 1;
        let entry = self.entries.entry(peer).or_default();
        self.uses.remove(&entry.used);
        entry.used = (now, self.numbers);
        self.uses.insert(entry.used, peer);
        entry.note(now, finding, &config);
        let (from, to) = (entry.status, entry.next_status(now, &config));
        entry.status = to;
        self.tell(HealthChange {
            peer,
            from,
            to,
            at: now,
        });
    }

    /// Forgets the peer of whom nothing was heard for longest.
    fn forget_first(&mut self, at: Timestamp) {
        let Some((_, peer)) = self.uses.pop_first() else {
            return;
        };
        let Some(entry) = self.entries.remove(&peer) else {
            return;
        };
        self.tell(HealthChange {
            peer,
            from: entry.status,
            to: HealthStatus::Unknown,
            at,
        });
    }

    fn tell(&mut self, change: HealthChange) {
        if change.from == change.to {
            return;
        }
        if self.changes.len() >= MAX_CHANGES {
            self.changes.pop_front();
            self.lost_changes += 1;
        }
        self.changes.push_back(change);
    }
}

impl Entry {
    fn note(&mut self, now: Timestamp, finding: Finding, config: &HealthConfig) {
        match finding {
            Finding::Success => {
                self.window.record(now, config.window, true);
                self.successes = self.successes.saturating_add(1);
                self.misses = 0;
                self.last_check = Some(now);
            }
            Finding::Fault(fault) => {
                self.window.record(now, config.window, false);
                self.misses = self.misses.saturating_add(1);
                self.successes = 0;
                self.last_check = Some(now);
                self.last_fault = Some((fault, now));
            }
            Finding::Rtt(rtt) => {
                if self.samples.len() >= config.max_samples {
                    self.samples.pop_front();
                }
                let rtt_us = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
                self.samples.push_back(Sample { at: now, rtt_us });
            }
        }
    }

    fn rtt(&self, now: Timestamp, config: &HealthConfig) -> Option<RttReport> {
        let recent = |sample: &&Sample| now < sample.at + config.window;
        let mut rtts: Vec<u32> = self
            .samples
            .iter()
            .filter(recent)
            .map(|sample| sample.rtt_us)
            .collect();
        rtts.sort_unstable();
        Some(RttReport {
            median: percentile(&rtts, 50)?,
            p95: percentile(&rtts, 95)?,
            samples: rtts.len(),
        })
    }

    /// What follows from all that is known, and from the status that it had.
    fn next_status(&self, now: Timestamp, config: &HealthConfig) -> HealthStatus {
        let recent = self.window.tally(now, config.window);
        if self.is_unhealthy(recent, config) {
            HealthStatus::Unhealthy
        } else if self.is_degraded(now, recent, config) {
            HealthStatus::Degraded
        } else if self.status == HealthStatus::Unknown && recent.successes == 0 {
            HealthStatus::Unknown
        } else {
            HealthStatus::Healthy
        }
    }

    fn is_unhealthy(&self, recent: Tally, config: &HealthConfig) -> bool {
        let rated = recent.volume() >= config.minimum_volume;
        let rate = recent.failures_per_mille();
        match self.status {
            HealthStatus::Unhealthy => {
                self.successes < config.successes_to_recover
                    || rated && rate > config.unhealthy_per_mille.better_up_to
            }
            HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded => {
                let failing = rated && rate >= config.unhealthy_per_mille.worse_from;
                self.misses >= config.misses_to_unhealthy
                    || failing && recent.failures >= LEAST_FAILURES
            }
        }
    }

    fn is_degraded(&self, now: Timestamp, recent: Tally, config: &HealthConfig) -> bool {
        let rate = (recent.volume() >= config.minimum_volume).then(|| recent.failures_per_mille());
        let p95 = self
            .rtt(now, config)
            .filter(|rtt| rtt.samples >= config.minimum_volume as usize)
            .map(|rtt| rtt.p95);
        match self.status {
            HealthStatus::Unknown | HealthStatus::Healthy => {
                rate.is_some_and(|rate| rate >= config.degraded_per_mille.worse_from)
                    || p95.is_some_and(|p95| p95 >= config.slow.worse_from)
            }
            HealthStatus::Degraded | HealthStatus::Unhealthy => {
                rate.is_some_and(|rate| rate > config.degraded_per_mille.better_up_to)
                    || p95.is_some_and(|p95| p95 > config.slow.better_up_to)
            }
        }
    }
}

/// The least of the sorted values that so many in a hundred do not exceed; `None` where there are none.
fn percentile(sorted_us: &[u32], percent: usize) -> Option<Duration> {
    let rank = (sorted_us.len() * percent).div_ceil(100);
    let value = sorted_us.get(rank.checked_sub(1)?)?;
    Some(Duration::from_micros((*value).into()))
}

#[cfg(test)]
mod tests;
