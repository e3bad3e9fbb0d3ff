//! The model of the circuit breakers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use towpath_proto::Timestamp;
use towpath_proto::breaker::{
    BreakerCause, BreakerChange, BreakerConfig, BreakerKey, BreakerState, Breakers,
    Outcome as Result, Permit,
};
use towpath_proto::identity::PeerId;
use towpath_proto::transport_type::TransportType;

use super::{Outcome, some_time, step};
use crate::dice::Dice;

/// Steps of a run.
const STEPS: usize = 200;

/// Something that was done.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// An attempt was asked for; the number is its permit's where it gets one.
    Ask(BreakerKey, usize),
    /// A permit came back.
    Tell(usize, Result),
}

/// What a breaker is in after some deeds.
#[derive(Clone, Debug)]
struct Breaker {
    phase: Phase,
    /// Deeds or times that began the phase; a permit belongs to one of them.
    epoch: usize,
    /// When it was used last, and by which deed.
    used: (Timestamp, usize),
}

#[derive(Clone, Debug)]
enum Phase {
    /// Results: when, and whether they were good.
    Closed(Vec<(Timestamp, bool)>),
    Open {
        until: Timestamp,
        times: u32,
    },
    /// Permits that are out: which, and until when.
    HalfOpen {
        times: u32,
        good: u32,
        out: Vec<(usize, Timestamp)>,
    },
}

#[derive(Clone, Copy, Debug)]
struct Pass {
    key: BreakerKey,
    /// `None` where it was admitted without a breaker.
    epoch: Option<usize>,
    until: Timestamp,
}

/// Everything that was done, and what the model was told of chance.
#[derive(Debug)]
struct Model {
    config: BreakerConfig,
    deeds: Vec<(Timestamp, Deed)>,
    /// Until when a breaker was opened, in the order in which it was: the one thing that is drawn.
    drawn: BTreeMap<BreakerKey, Vec<Timestamp>>,
}

/// What follows from all deeds.
#[derive(Debug, Default)]
struct World {
    breakers: BTreeMap<BreakerKey, Breaker>,
    passes: BTreeMap<usize, Pass>,
    changes: Vec<BreakerChange>,
    openings: BTreeMap<BreakerKey, usize>,
    epochs: usize,
    untracked: u64,
    /// What the last deed was answered, where it was refused.
    refused_until: Option<Timestamp>,
}

impl Model {
    /// Goes through everything from the beginning.
    fn world(&self, now: Timestamp) -> World {
        let mut world = World::default();
        for (number, (at, deed)) in self.deeds.iter().enumerate() {
            self.pass(&mut world, *at);
            world.refused_until = None;
            match *deed {
                Deed::Ask(key, permit) => self.ask(&mut world, *at, key, permit, number),
                Deed::Tell(permit, result) => self.tell(&mut world, *at, permit, result, number),
            }
        }
        self.pass(&mut world, now);
        world
    }

    fn quiet(&self) -> Duration {
        let longest = self.config.window.max(self.config.open_for_max);
        longest + self.config.permit_timeout
    }

    /// What happens by itself until then, the earliest first.
    fn pass(&self, world: &mut World, now: Timestamp) {
        loop {
            let due = |breaker: &Breaker| match breaker.phase {
                Phase::Closed(_) | Phase::HalfOpen { .. } => breaker.used.0 + self.quiet(),
                Phase::Open { until, .. } => until,
            };
            let all = world.breakers.iter();
            let Some((at, key)) = all.map(|(key, breaker)| (due(breaker), *key)).min() else {
                return;
            };
            if at > now {
                return;
            }
            match world.breakers[&key].phase.clone() {
                Phase::Closed(_) => {}
                Phase::HalfOpen { .. } => {
                    self.change(
                        world,
                        key,
                        at,
                        Phase::Closed(Vec::new()),
                        BreakerCause::Quiet,
                    );
                }
                Phase::Open { times, .. } => {
                    let half_open = Phase::HalfOpen {
                        times,
                        good: 0,
                        out: Vec::new(),
                    };
                    self.change(world, key, at, half_open, BreakerCause::TimeOver);
                    let breaker = world.breakers.get_mut(&key).expect("it is there");
                    breaker.used.0 = at;
                    continue;
                }
            }
            world.breakers.remove(&key);
        }
    }

    fn ask(&self, world: &mut World, now: Timestamp, key: BreakerKey, permit: usize, deed: usize) {
        let until = now + self.config.permit_timeout;
        let mut pass = Pass {
            key,
            epoch: None,
            until,
        };
        if !world.breakers.contains_key(&key) {
            if world.breakers.len() == self.config.max_entries {
                let closed = world
                    .breakers
                    .iter()
                    .filter(|(_, breaker)| matches!(breaker.phase, Phase::Closed(_)))
                    .min_by_key(|(_, breaker)| breaker.used.1)
                    .map(|(key, _)| *key);
                let Some(closed) = closed else {
                    world.untracked += 1;
                    world.passes.insert(permit, pass);
                    return;
                };
                world.breakers.remove(&closed);
            }
            world.epochs += 1;
            let fresh = Breaker {
                phase: Phase::Closed(Vec::new()),
                epoch: world.epochs,
                used: (now, deed),
            };
            world.breakers.insert(key, fresh);
        }
        let breaker = world.breakers.get_mut(&key).expect("it was made");
        match &mut breaker.phase {
            Phase::Closed(_) => {}
            Phase::Open { until, .. } => {
                world.refused_until = Some(*until);
                return;
            }
            Phase::HalfOpen { out, .. } => {
                let still_out = out.iter().filter(|(_, until)| *until > now);
                if still_out.clone().count() == self.config.half_open_permits as usize {
                    world.refused_until = still_out.map(|(_, until)| *until).min();
                    return;
                }
                out.push((permit, until));
            }
        }
        breaker.used = (now, deed);
        pass.epoch = Some(breaker.epoch);
        world.passes.insert(permit, pass);
    }

    fn tell(&self, world: &mut World, now: Timestamp, permit: usize, result: Result, deed: usize) {
        let pass = world.passes[&permit];
        let Some(breaker) = world.breakers.get_mut(&pass.key) else {
            return;
        };
        if pass.epoch != Some(breaker.epoch) || pass.until <= now {
            return;
        }
        breaker.used = (now, deed);
        match (&mut breaker.phase, result) {
            (Phase::Open { .. }, _) => unreachable!("no permit is of this epoch"),
            (Phase::Closed(_), Result::Cancelled) => {}
            (Phase::Closed(results), Result::Success | Result::Failure) => {
                results.push((now, result == Result::Success));
                let (good, bad) = recent(results, now, self.config.window);
                let many = good + bad >= u64::from(self.config.minimum_volume);
                if many && bad * 1000 >= u64::from(self.config.failure_per_mille) * (good + bad) {
                    self.open(world, pass.key, now, 0, BreakerCause::Failures);
                }
            }
            (Phase::HalfOpen { out, .. }, Result::Cancelled) => {
                out.retain(|(number, _)| *number != permit);
            }
            (Phase::HalfOpen { times, .. }, Result::Failure) => {
                let times = *times + 1;
                self.open(world, pass.key, now, times, BreakerCause::TrialFailed);
            }
            (Phase::HalfOpen { out, good, .. }, Result::Success) => {
                *good += 1;
                out.retain(|(number, _)| *number != permit);
                if *good == self.config.successes_to_close {
                    let closed = Phase::Closed(Vec::new());
                    let cause = BreakerCause::TrialsSucceeded;
                    self.change(world, pass.key, now, closed, cause);
                }
            }
        }
    }

    fn open(
        &self,
        world: &mut World,
        key: BreakerKey,
        now: Timestamp,
        times: u32,
        cause: BreakerCause,
    ) {
        let opening = world.openings.entry(key).or_default();
        let told = self.drawn.get(&key).and_then(|all| all.get(*opening));
        let until = *told.unwrap_or_else(|| panic!("{key:?} has to open at {now:?}"));
        *opening += 1;
        let mut most = self.config.open_for;
        for _ in 0..times {
            most = (most * 2).min(self.config.open_for_max);
        }
        let least = most - most * self.config.jitter_per_mille / 1000;
        let wait = until.saturating_since(now);
        // The thousandths are rounded.
        assert!(
            wait <= most && wait + Duration::from_nanos(1) >= least,
            "{wait:?} of {most:?}"
        );
        self.change(world, key, now, Phase::Open { until, times }, cause);
    }

    fn change(
        &self,
        world: &mut World,
        key: BreakerKey,
        at: Timestamp,
        phase: Phase,
        cause: BreakerCause,
    ) {
        world.epochs += 1;
        let breaker = world.breakers.get_mut(&key).expect("it is there");
        let from = name(&breaker.phase);
        breaker.phase = phase;
        breaker.epoch = world.epochs;
        world.changes.push(BreakerChange {
            key,
            from,
            to: name(&breaker.phase),
            at,
            cause,
            retry_at: match breaker.phase {
                Phase::Open { until, .. } => Some(until),
                Phase::Closed(_) | Phase::HalfOpen { .. } => None,
            },
        });
    }
}

fn name(phase: &Phase) -> BreakerState {
    match phase {
        Phase::Closed(_) => BreakerState::Closed,
        Phase::Open { .. } => BreakerState::Open,
        Phase::HalfOpen { .. } => BreakerState::HalfOpen,
    }
}

/// Good and bad results whose tenth of the window is one of the last ten.
pub(super) fn recent(
    results: &[(Timestamp, bool)],
    now: Timestamp,
    window: Duration,
) -> (u64, u64) {
    let tenth = |at: Timestamp| u128::from(at.as_nanos()) / (window.as_nanos() / 10);
    let counted = results
        .iter()
        .filter(|(at, _)| tenth(*at) + 10 > tenth(now));
    let good = counted.clone().filter(|(_, good)| *good).count();
    (good as u64, (counted.count() - good) as u64)
}

fn config(dice: &mut Dice) -> BreakerConfig {
    let open_for = some_time(dice, 1 << 10..1 << 22);
    BreakerConfig {
        window: some_time(dice, 1 << 15..1 << 24),
        minimum_volume: 1 + dice.below(4) as u32,
        failure_per_mille: *dice.pick(&[1, 300, 500, 501, 1000]),
        half_open_permits: 1 + dice.below(3) as u32,
        successes_to_close: 1 + dice.below(3) as u32,
        permit_timeout: some_time(dice, 1 << 15..1 << 24),
        open_for,
        open_for_max: open_for + some_time(dice, 0..1 << 25),
        jitter_per_mille: *dice.pick(&[0, 1, 200, 500]),
        max_entries: 1 + dice.below(4),
    }
}

fn key(dice: &mut Dice) -> BreakerKey {
    let peer = PeerId::from_bytes([dice.below(2) as u8; 32]);
    let address = SocketAddr::from(([192, 0, 2, 1], dice.below(2) as u16));
    match dice.below(3) {
        0 => BreakerKey::Peer(peer, *dice.pick(&TransportType::ALL[..2])),
        1 => BreakerKey::Relay(address),
        _ => BreakerKey::Helper(address),
    }
}

/// Does anything at any time, and compares every answer. Panics where one differs.
pub fn run(seed: u64) -> Outcome {
    let mut dice = Dice::new(seed).fork("breaker", 0);
    let config = config(&mut dice);
    let mut breakers = Breakers::new(config, dice.array()).expect("the configuration is right");
    let mut model = Model {
        config,
        deeds: Vec::new(),
        drawn: BTreeMap::new(),
    };
    let keys: Vec<BreakerKey> = (0..1 + dice.below(5)).map(|_| key(&mut dice)).collect();
    let mut permits: Vec<(usize, Permit)> = Vec::new();
    let mut changes = Vec::new();
    let mut outcome = Outcome::default();
    let start = dice.range(0..1 << 40);
    let (mut now, mut latest) = (Timestamp::from_nanos(start), Timestamp::ZERO);
    // A run that tells more failures, or more successes.
    let weights = *dice.pick(&[[9, 1, 1], [2, 1, 1], [1, 3, 1]]);
    for number in 0..STEPS {
        now = step(&mut dice, now, breakers.poll_timeout());
        // What time it is they learn from whoever does something.
        let at = latest.max(now);
        let mut refused = None;
        match dice.below(10) {
            0..5 => {
                let key = *dice.pick(&keys);
                latest = at;
                model.deeds.push((at, Deed::Ask(key, number)));
                match breakers.admit(now, key) {
                    Ok(permit) => permits.push((number, permit)),
                    Err(still_open) => refused = Some(still_open.retry_at),
                }
                outcome.refused += u64::from(refused.is_some());
            }
            5..9 if !permits.is_empty() => {
                let (permit, value) = permits.swap_remove(dice.below(permits.len()));
                let result = [Result::Failure, Result::Success, Result::Cancelled];
                let result = result[dice.weighted(&weights)];
                latest = at;
                model.deeds.push((at, Deed::Tell(permit, result)));
                breakers.record(now, value, result);
            }
            _ if dice.one_in(2) => {
                latest = at;
                breakers.handle_timeout(now);
            }
            _ => {}
        }
        while let Some(change) = breakers.poll_change() {
            if let Some(retry_at) = change.retry_at {
                model.drawn.entry(change.key).or_default().push(retry_at);
            }
            changes.push(change);
        }
        let world = model.world(at);
        compare(&breakers, &world, &model, (now, at));
        let asked = model
            .deeds
            .last()
            .is_some_and(|(_, deed)| matches!(deed, Deed::Ask(_, asked) if *asked == number));
        if asked {
            assert_eq!(refused, world.refused_until);
        }
        outcome.answers += 1;
    }
    breakers.handle_timeout(latest);
    changes.extend(std::iter::from_fn(|| breakers.poll_change()));
    let world = model.world(latest);
    // Which of two that happen at the same time is told first is not said.
    let order = |change: &BreakerChange| (change.at, change.key);
    let mut expected = world.changes.clone();
    expected.sort_by_key(order);
    changes.sort_by_key(order);
    assert_eq!(changes, expected);
    assert_eq!(breakers.len(), world.breakers.len());
    assert_eq!(
        (breakers.untracked(), breakers.lost_changes()),
        (world.untracked, 0)
    );
    outcome.changes = changes.len() as u64;
    outcome.without_room = world.untracked;
    outcome
}

/// What can be asked without changing anything.
fn compare(
    breakers: &Breakers,
    world: &World,
    model: &Model,
    (now, latest): (Timestamp, Timestamp),
) {
    let asked = model.deeds.iter().filter_map(|(_, deed)| match deed {
        Deed::Ask(key, _) => Some(*key),
        Deed::Tell(..) => None,
    });
    for key in asked {
        let report = breakers.report(now, key);
        assert_eq!(report.state, breakers.state(now, key));
        let breaker = world.breakers.get(&key);
        let phase = breaker.map(|breaker| &breaker.phase);
        let (mut results, mut retry_at) = (&Vec::new(), None);
        match phase {
            Some(Phase::Closed(known)) => results = known,
            Some(Phase::Open { until, .. }) => retry_at = Some(*until),
            Some(Phase::HalfOpen { .. }) | None => {}
        }
        let state = phase.map_or(BreakerState::Closed, name);
        assert_eq!(
            (report.state, report.retry_at),
            (state, retry_at),
            "of {key:?}"
        );
        let (good, bad) = recent(results, latest, model.config.window);
        let told = (report.recent.successes, report.recent.failures);
        assert_eq!(
            (u64::from(told.0), u64::from(told.1)),
            (good, bad),
            "of {key:?}"
        );
    }
}
