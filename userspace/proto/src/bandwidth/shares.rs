//! What peers may while a global limit of the node is reached.
//!
//! Between the two global buckets and those who wait for them stand shares: every
//! [`INTERVAL`], while there is too little for all, each peer's rate is set to its part of the weighted
//! max-min fair division, never below its floor and never above its own limit. What a peer wants is what
//! it used since the last step, and a quarter more where it had to wait. When there is enough again
//! shares are lifted, and nothing is looked at any more.
//!
//! It is the arithmetic of [`fair_level`], which the relay's [`Adaptation`](super::Adaptation) rests
//! upon too. There packets over a limit are dropped and counted; here they wait, which is told apart from
//! wanting no more by who had to wait.

use std::sync::atomic::Ordering;
use std::time::Duration;

use towpath_ebpf_common::rate::LimitWord;

use super::account::{Account, index_of};
use super::adaptation::{forfeit, rate, replace, share_word};
use super::manager::{Bandwidth, Entry, Table};
use super::{Adaptation, Wish, fair_level};
use crate::Timestamp;
use crate::slots::Way;

/// How often shares are made.
pub(crate) const INTERVAL: Duration = Adaptation::INTERVAL;

/// Steps after which shares are lifted, where all together wanted less than [`CALM_PERCENT`].
const CALM_STEPS: u32 = 10;
/// Of the limit.
const CALM_PERCENT: u128 = 90;
/// Of the limit: what all together have to want for shares to be made.
const FULL_PERCENT: u128 = 97;

/// By [`Way`].
#[derive(Debug, Default)]
pub(super) struct Shares([Side; 2]);

/// One direction.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    /// When peers were looked at last, while somebody waits for the global limit.
    scanned: Option<Timestamp>,
    calm_steps: u32,
    /// Whether shares were given that have not been lifted.
    given: bool,
}

/// What is known of one direction of one peer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Demand {
    /// Bytes passed when it was looked at last.
    bytes: u64,
    /// Bits a second it used, smoothed.
    used: u64,
}

impl Bandwidth {
    /// Somebody had to wait for the global limit: when to [`adapt`](Self::adapt).
    pub(crate) fn saturated(&self, now: Timestamp, way: Way) -> Timestamp {
        let mut table = self.table();
        let Shares(sides) = &mut table.shares;
        let side = &mut sides[index_of(way)];
        let scanned = match side.scanned {
            Some(scanned) => scanned,
            None => {
                side.scanned = Some(now);
                side.calm_steps = 0;
                table.look(way);
                now
            }
        };
        scanned + INTERVAL
    }

    /// Makes shares anew where a step is due; when the next ones are, up and down. `None` where there is
    /// enough for all.
    pub(crate) fn adapt(&self, now: Timestamp) -> [Option<Timestamp>; 2] {
        let mut table = self.table();
        [Way::Up, Way::Down].map(|way| {
            let Shares(sides) = &table.shares;
            let scanned = sides[index_of(way)].scanned?;
            let passed = now.saturating_since(scanned);
            if passed < INTERVAL {
                return Some(scanned + INTERVAL);
            }
            self.changed();
            let limit = self.budget(way).limit;
            let going_on = table.step(now, way, limit, passed);
            going_on.then(|| now + INTERVAL)
        })
    }
}

impl Table {
    /// Begins to count what peers use.
    fn look(&mut self, way: Way) {
        for entry in self.peers.values_mut() {
            let bytes = entry.account.measured(way);
            entry.demand[index_of(way)] = Demand { bytes, used: 0 };
            entry.account.take_waited(way);
        }
    }

    /// Whether there will be another step.
    fn step(&mut self, now: Timestamp, way: Way, limit: LimitWord, passed: Duration) -> bool {
        let wishes = self.wishes(way, passed);
        let wanted: u128 = wishes.iter().map(|wish| u128::from(wish.most())).sum();
        let Some(capacity) = limit.bits_per_second() else {
            self.lift(way);
            return false;
        };
        let percent = |n: u128| u128::from(capacity) * n / 100;
        if wanted >= percent(FULL_PERCENT) {
            self.share_out(now, way, capacity, &wishes);
        }
        let Shares(sides) = &mut self.shares;
        let side = &mut sides[index_of(way)];
        side.scanned = Some(now);
        side.calm_steps = if wanted < percent(CALM_PERCENT) {
            side.calm_steps + 1
        } else {
            0
        };
        if side.calm_steps >= CALM_STEPS {
            self.lift(way);
            return false;
        }
        true
    }

    /// What each peer wants, in the order of peers.
    fn wishes(&mut self, way: Way, passed: Duration) -> Vec<Wish> {
        let default = self.default_allowance();
        let sharing = self.sharing;
        let wish = |entry: &mut Entry| {
            let ceiling = entry.configured(&default, way).bits_per_second();
            let ceiling = ceiling.unwrap_or(LimitWord::MAX_BITS_PER_SECOND);
            let account = &entry.account;
            let demand = entry.demand[index_of(way)].follow(account, way, passed);
            Wish {
                demand,
                weight: sharing.weight(account.priority()),
                floor: entry.floor.unwrap_or(sharing.floor).min(ceiling),
                ceiling,
            }
        };
        self.peers.values_mut().map(wish).collect()
    }

    fn share_out(&mut self, now: Timestamp, way: Way, capacity: u64, wishes: &[Wish]) {
        let Some(level) = fair_level(capacity, wishes) else {
            return;
        };
        let default = self.default_allowance();
        for (entry, wish) in self.peers.values().zip(wishes) {
            let configured = entry.configured(&default, way);
            // Who wants nothing is held by the global limit alone until the next step.
            let share = if wish.demand == 0 {
                LimitWord::UNLIMITED
            } else {
                share_word(&level, wish, configured)
            };
            let before = replace(entry.account.share(way), share.to_bits());
            if before == 0 && !share.is_unlimited() {
                forfeit(entry.account.direction(way), share, now);
            }
        }
        let Shares(sides) = &mut self.shares;
        sides[index_of(way)].given = true;
    }

    /// Peers are limited as configured again.
    pub(super) fn lift(&mut self, way: Way) {
        let Shares(sides) = &mut self.shares;
        let given = std::mem::take(&mut sides[index_of(way)]).given;
        if given {
            for entry in self.peers.values() {
                entry.account.share(way).store(0, Ordering::Relaxed);
            }
        }
    }
}

impl Demand {
    /// What is wanted, as far as what was used since the last look tells.
    fn follow(&mut self, account: &Account, way: Way, passed: Duration) -> u64 {
        let bytes = account.measured(way);
        let new = bytes.wrapping_sub(self.bytes);
        self.bytes = bytes;
        let now = rate(new, passed);
        self.used = if passed > 5 * INTERVAL {
            now
        } else {
            self.used - self.used.div_ceil(4) + now / 4
        };
        if account.take_waited(way) {
            let used = self.used.max(now);
            used.saturating_add(used / 4)
                .saturating_add(LimitWord::MIN_BITS_PER_SECOND)
        } else {
            self.used
        }
    }
}
