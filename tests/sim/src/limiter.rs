//! The node's limiter beside one that is written from scratch.
//!
//! The reference keeps, for every bucket, the time up to which what passed is paid for, as a fixed-point
//! number with 40 bits behind the nanosecond, and looks at nothing of the limiter but its answers.
//! Where an answer hangs on the limiter's rounding, either is right; everywhere else there is one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use towpath_proto::Timestamp;
use towpath_proto::bandwidth::{
    Account, Allowance, Bandwidth, BandwidthConfig, Bound, Depth, MAX_GRANT_BYTES, reserve,
};
use towpath_proto::common::rate::LimitWord;
use towpath_proto::identity::PeerId;
use towpath_proto::slots::Way;

use crate::dice::Dice;

/// Fixed-point: bits behind the nanosecond.
const FRACTION: u32 = 40;
/// A tick of the limiter, as fixed point.
const TICK: u128 = 1 << (FRACTION - 6);
const PEERS: u8 = 4;
const STEPS: usize = 400;
/// Peers are forgotten after so long.
const RETENTION: Duration = Duration::from_secs(300);

/// What came of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Charges that passed.
    pub passed: u64,
    /// Those that a peer's own limit refused.
    pub by_peer: u64,
    /// Those that the limit for all refused.
    pub by_all: u64,
    /// Of all, those where rounding decided.
    pub close: u64,
    /// Changes of limits.
    pub changes: u64,
    /// Peers that were forgotten.
    pub forgotten: u64,
}

impl Outcome {
    /// Adds another's numbers.
    pub fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.by_peer += other.by_peer;
        self.by_all += other.by_all;
        self.close += other.close;
        self.changes += other.changes;
        self.forgotten += other.forgotten;
    }
}

/// A limit: bits a second, and bytes at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Limit {
    rate: u64,
    burst: u64,
}

impl Limit {
    fn random(dice: &mut Dice) -> Option<Self> {
        if dice.one_in(4) {
            return None;
        }
        let rates = [64_000, 200_000, 3_000_000, 77_777_777, 10_000_000_000];
        let burst = *dice.pick(&[1500, 4096, 100_000, 1 << 20]) + dice.range(0..1000);
        Some(Self {
            rate: *dice.pick(&rates) + dice.range(0..10_000),
            burst: burst.next_multiple_of(64),
        })
    }

    fn word(limit: Option<Self>) -> LimitWord {
        limit.map_or(LimitWord::UNLIMITED, |Self { rate, burst }| {
            LimitWord::new(rate, burst).expect("the limits drawn are in range")
        })
    }

    fn time_of(&self, bytes: u64) -> u128 {
        ((u128::from(bytes) * 8_000_000_000) << FRACTION) / u128::from(self.rate)
    }

    /// What a pause earns at most, also for something longer than the burst.
    fn depth(&self, bytes: u64) -> u128 {
        self.time_of(self.burst.max(bytes))
    }

    /// What is left to others by who may not use all of a burst.
    fn kept(&self, bytes: u64, partial: bool) -> u128 {
        let burst = self.time_of(self.burst);
        if partial {
            (burst / 4).min(burst.saturating_sub(self.time_of(bytes)))
        } else {
            0
        }
    }
}

/// How far such a time may be off because a rate is: by less than 2^-31.
fn error(time: u128) -> u128 {
    time >> 31
}

#[derive(Clone, Debug, Default)]
struct Bucket {
    limit: Option<Limit>,
    paid_until: u128,
    /// How far the limiter's word may be from `paid_until`.
    rounding: u128,
    /// Since the limit is what it is, or the bucket is new: when that was, and what passed.
    window: (u128, u64),
    longest: u64,
}

/// Whether a bucket holds something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holds {
    Yes,
    No,
    Close,
}

impl Bucket {
    fn set(&mut self, now: u128, limit: Option<Limit>) {
        self.limit = limit;
        self.rounding += TICK;
        self.window = (now, 0);
        self.longest = 0;
    }

    /// From when on it holds so much.
    fn ready(&self, bytes: u64, partial: bool) -> u128 {
        self.limit.map_or(0, |limit| {
            self.paid_until + limit.time_of(bytes) + limit.kept(bytes, partial)
        })
    }

    /// How far the limiter may be off in what it finds out about so many bytes.
    fn slack(&self, bytes: u64) -> u128 {
        let depth = self.limit.map_or(0, |limit| limit.depth(bytes));
        self.rounding + error(depth) + 4 * TICK
    }

    fn holds(&self, now: u128, bytes: u64, partial: bool) -> Holds {
        if self.limit.is_none() {
            return Holds::Yes;
        }
        let (ready, slack) = (self.ready(bytes, partial), self.slack(bytes));
        if ready + slack < now {
            Holds::Yes
        } else if ready > now + slack {
            Holds::No
        } else {
            Holds::Close
        }
    }

    fn charge(&mut self, now: u128, bytes: u64) {
        let Some(limit) = self.limit else {
            return;
        };
        let earliest = now.saturating_sub(limit.depth(bytes));
        if self.paid_until < earliest {
            // Whatever was off before counts no more.
            self.paid_until = earliest;
            self.rounding = TICK + error(limit.depth(bytes));
        }
        self.paid_until += limit.time_of(bytes);
        self.rounding += TICK + error(limit.time_of(bytes));
        self.window.1 += bytes;
        self.longest = self.longest.max(bytes);
    }

    fn give_back(&mut self, bytes: u64) {
        if let Some(limit) = self.limit {
            self.paid_until -= limit.time_of(bytes);
            self.rounding += TICK + error(limit.time_of(bytes));
            self.window.1 -= bytes;
        }
    }

    /// What a limit promises: never more than its rate and one burst.
    fn check_window(&self, now: u128) {
        let Some(limit) = self.limit else {
            return;
        };
        let (begin, passed) = self.window;
        let time = now - begin + self.slack(self.longest);
        let earned = (time * u128::from(limit.rate)) / (8_000_000_000 << FRACTION);
        let most = earned + u128::from(limit.burst.max(self.longest)) + 1;
        assert!(u128::from(passed) <= most, "{passed} of {most} bytes");
    }
}

#[derive(Debug, Default)]
struct Peer {
    bucket: Bucket,
    own: bool,
    connections: Vec<Arc<Account>>,
    idle_since: Option<Timestamp>,
}

struct Run {
    now: Timestamp,
    dice: Dice,
    limiter: Bandwidth,
    all: Bucket,
    default: Option<Limit>,
    peers: BTreeMap<u8, Peer>,
    outcome: Outcome,
}

/// Runs a seed. Panics where the limiter and the reference differ.
pub fn run(seed: u64) -> Outcome {
    let mut dice = Dice::new(seed).fork("limiter", 0);
    let (default, all) = (Limit::random(&mut dice), Limit::random(&mut dice));
    let config = BandwidthConfig {
        up: Limit::word(all),
        default: allowance(default),
        ..BandwidthConfig::default()
    };
    let mut run = Run {
        now: Timestamp::from_nanos(dice.range(1 << 40..1 << 50)),
        limiter: Bandwidth::new(&config).expect("the limits drawn are in range"),
        all: Bucket::default(),
        default,
        peers: BTreeMap::new(),
        dice,
        outcome: Outcome::default(),
    };
    run.all.set(run.clock(), all);
    for _ in 0..STEPS {
        run.step();
    }
    run.outcome
}

fn allowance(up: Option<Limit>) -> Allowance {
    Allowance {
        up: Limit::word(up),
        ..Allowance::UNLIMITED
    }
}

fn id(peer: u8) -> PeerId {
    PeerId::from_bytes([peer; 32])
}

impl Run {
    fn clock(&self) -> u128 {
        u128::from(self.now.as_nanos()) << FRACTION
    }

    fn step(&mut self) {
        let peer = self.dice.range(0..u64::from(PEERS)) as u8;
        match self.dice.weighted(&[60, 20, 5, 5, 3, 2, 2, 3]) {
            0 => self.charge(peer),
            1 => self.wait(),
            2 => self.enter(peer),
            3 => self.leave(peer),
            4 => self.set(peer),
            5 => self.unset(peer),
            6 => self.set_default(),
            _ => self.set_global(),
        }
        let now = self.clock();
        self.all.check_window(now);
        for peer in self.peers.values() {
            peer.bucket.check_window(now);
        }
        assert_eq!(self.limiter.len(), self.peers.len());
    }

    fn wait(&mut self) {
        let longest = [1, 100, 10_000, 1_000_000, 200_000_000, 10_000_000_000];
        let longest = *self.dice.pick(&longest);
        let nanos = if self.dice.one_in(50) {
            RETENTION.as_nanos() as u64
        } else {
            self.dice.range(0..longest) + 1
        };
        self.now = self.now + Duration::from_nanos(nanos);
    }

    fn enter(&mut self, peer: u8) {
        self.forget();
        let account = self.limiter.enter(self.now, id(peer));
        let entry = self.entry(peer);
        entry.idle_since = None;
        assert!(
            entry
                .connections
                .iter()
                .all(|one| Arc::ptr_eq(one, &account))
        );
        entry.connections.push(account);
    }

    fn leave(&mut self, peer: u8) {
        let Some(entry) = self.peers.get_mut(&peer) else {
            return;
        };
        if entry.connections.pop().is_none() {
            return;
        }
        if entry.connections.is_empty() && !entry.own {
            entry.idle_since = Some(self.now);
        }
        self.limiter.leave(self.now, id(peer));
        self.forget();
    }

    fn set(&mut self, peer: u8) {
        let limit = Limit::random(&mut self.dice);
        self.limiter
            .set(id(peer), allowance(limit))
            .expect("the limits drawn are in range");
        let now = self.clock();
        let entry = self.entry(peer);
        entry.own = true;
        entry.idle_since = None;
        entry.bucket.set(now, limit);
        self.outcome.changes += 1;
    }

    fn unset(&mut self, peer: u8) {
        self.limiter.unset(self.now, id(peer));
        let (now, clock, default) = (self.now, self.clock(), self.default);
        if let Some(entry) = self.peers.get_mut(&peer)
            && entry.own
        {
            entry.own = false;
            entry.bucket.set(clock, default);
            entry.idle_since = entry.connections.is_empty().then_some(now);
        }
        self.outcome.changes += 1;
    }

    fn set_default(&mut self) {
        self.default = Limit::random(&mut self.dice);
        self.limiter
            .set_default(allowance(self.default))
            .expect("the limits drawn are in range");
        let now = self.clock();
        for peer in self.peers.values_mut().filter(|peer| !peer.own) {
            peer.bucket.set(now, self.default);
        }
        self.outcome.changes += 1;
    }

    fn set_global(&mut self) {
        let limit = Limit::random(&mut self.dice);
        self.limiter
            .set_global(Limit::word(limit), LimitWord::UNLIMITED);
        let now = self.clock();
        self.all.set(now, limit);
        self.outcome.changes += 1;
    }

    fn entry(&mut self, peer: u8) -> &mut Peer {
        let (now, default) = (self.clock(), self.default);
        self.peers.entry(peer).or_insert_with(|| {
            let mut peer = Peer::default();
            peer.bucket.set(now, default);
            peer
        })
    }

    fn forget(&mut self) {
        let before = self.peers.len();
        let now = self.now;
        let old = |since: Timestamp| now.saturating_since(since) >= RETENTION;
        self.peers
            .retain(|_, peer| !peer.idle_since.is_some_and(old));
        self.outcome.forgotten += (before - self.peers.len()) as u64;
    }

    fn charge(&mut self, peer: u8) {
        let clock = self.clock();
        let bytes = match self.dice.weighted(&[5, 3, 1]) {
            0 => self.dice.range(1..1501),
            1 => 1228,
            _ => self.dice.range(1..65_536),
        };
        let partial = self.dice.one_in(3);
        let depth = if partial {
            Depth::Partial
        } else {
            Depth::Whole
        };
        let Some(entry) = self.peers.get_mut(&peer) else {
            return;
        };
        let Some(account) = entry.connections.last() else {
            return;
        };
        let (own, all) = (account.budget(Way::Up), self.limiter.budget(Way::Up));
        let (own_bucket, all_bucket) = (&mut entry.bucket, &mut self.all);
        for (budget, bucket) in [(&own, &*own_bucket), (&all, &*all_bucket)] {
            check_left(budget.left(self.now, depth), bucket, clock, partial);
        }
        let by_own = own_bucket.holds(clock, bytes, partial);
        let by_all = all_bucket.holds(clock, bytes, partial);
        self.outcome.close += u64::from(by_own == Holds::Close || by_all == Holds::Close);
        let len = u32::try_from(bytes).expect("at most 65,535");
        match reserve(self.now, &own, &all, len, depth) {
            Ok(reservation) => {
                assert!(by_own != Holds::No && by_all != Holds::No, "{bytes} passed");
                own_bucket.charge(clock, bytes);
                all_bucket.charge(clock, bytes);
                self.outcome.passed += 1;
                if self.dice.one_in(3) {
                    let unused = self.dice.range(0..bytes + 1);
                    let less = u32::try_from(unused).expect("at most 65,535");
                    reservation.give_back(own.spent_until, all.spent_until, less);
                    own_bucket.give_back(unused);
                    all_bucket.give_back(unused);
                }
            }
            Err(refused) => {
                let bucket = match refused.by {
                    Bound::Peer => {
                        assert_ne!(by_own, Holds::Yes, "{bytes} are within the peer's limit");
                        self.outcome.by_peer += 1;
                        own_bucket
                    }
                    Bound::Everybody => {
                        assert_ne!(by_own, Holds::No, "the peer's limit is named first");
                        assert_ne!(by_all, Holds::Yes, "{bytes} are within the limit for all");
                        self.outcome.by_all += 1;
                        all_bucket
                    }
                };
                assert!(refused.until > self.now);
                let ready = bucket.ready(bytes, partial);
                let pause = clock + (1_000_000 << FRACTION);
                let until = u128::from(refused.until.as_nanos()) << FRACTION;
                let slack = bucket.slack(bytes) + (1 << FRACTION);
                assert!(until + slack >= ready, "woken too soon");
                assert!(until <= ready.max(pause) + slack, "woken too late");
            }
        }
    }
}

/// What may be read at once.
fn check_left(left: u32, bucket: &Bucket, now: u128, partial: bool) {
    let Some(limit) = bucket.limit else {
        assert_eq!(left, MAX_GRANT_BYTES);
        return;
    };
    let earned = now
        .saturating_sub(bucket.paid_until)
        .min(limit.time_of(limit.burst));
    let kept = limit.kept(0, partial);
    let slack = bucket.slack(0);
    let bytes = |time: u128| {
        let bytes = time * u128::from(limit.rate) / (8_000_000_000 << FRACTION);
        bytes.min(MAX_GRANT_BYTES.into())
    };
    let left = u128::from(left);
    assert!(left <= bytes((earned + slack).saturating_sub(kept)) + 1);
    assert!(left + 1 >= bytes(earned.saturating_sub(kept + slack)));
}
