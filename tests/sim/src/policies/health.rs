//! The model of health.

use std::time::Duration;

use towpath_proto::Timestamp;
use towpath_proto::health::{
    Fault, Health, HealthChange, HealthConfig, HealthReport, HealthStatus, Threshold,
};
use towpath_proto::identity::PeerId;

use super::breaker::recent;
use super::{Outcome, some_time, step};
use crate::dice::Dice;

/// Steps of a run.
const STEPS: usize = 300;

/// Something that was heard of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum News {
    Good,
    Bad(Fault),
    Took(Duration),
}

/// All that was heard, and what was concluded from it each time.
#[derive(Debug)]
struct Model {
    config: HealthConfig,
    heard: Vec<(Timestamp, PeerId, News, HealthStatus)>,
    changes: Vec<HealthChange>,
    forgotten: u64,
}

impl Model {
    /// What was heard of a peer since it was forgotten last.
    fn known(&self, peer: PeerId) -> Vec<(Timestamp, News, HealthStatus)> {
        let mut known: Vec<(Timestamp, News, HealthStatus)> = Vec::new();
        for (at, _, news, status) in self.heard.iter().filter(|(_, of, ..)| *of == peer) {
            if known
                .last()
                .is_some_and(|(last, ..)| *last + self.config.forget_after <= *at)
            {
                known.clear();
            }
            known.push((*at, *news, *status));
        }
        known
    }

    /// The peers of whom something is known, the one heard of last at the end.
    fn peers(&self, now: Timestamp) -> Vec<PeerId> {
        let mut peers: Vec<PeerId> = Vec::new();
        for (at, peer, ..) in &self.heard {
            peers.retain(|other| other != peer);
            if *at + self.config.forget_after > now {
                peers.push(*peer);
            }
        }
        peers
    }

    fn hear(&mut self, now: Timestamp, peer: PeerId, news: News) {
        let before = self.status(now, peer);
        let peers = self.peers(now);
        if !peers.contains(&peer) && peers.len() == self.config.max_entries {
            self.change(
                peers[0],
                self.status(now, peers[0]),
                HealthStatus::Unknown,
                now,
            );
            self.heard.retain(|(_, other, ..)| *other != peers[0]);
            self.forgotten += 1;
        }
        self.heard.push((now, peer, news, before));
        let after = self.judge(now, peer, before);
        self.heard.last_mut().expect("it was just heard").3 = after;
        self.change(peer, before, after, now);
    }

    fn change(&mut self, peer: PeerId, from: HealthStatus, to: HealthStatus, at: Timestamp) {
        if from != to {
            self.changes.push(HealthChange { peer, from, to, at });
        }
    }

    /// Forgets who was not heard of for long.
    fn forget(&mut self, now: Timestamp) {
        let peers = self.peers(now);
        let mut gone: Vec<(Timestamp, PeerId, HealthStatus)> = Vec::new();
        for (at, peer, _, status) in self.heard.iter().rev() {
            let told = gone.iter().any(|(_, other, _)| other == peer);
            if !peers.contains(peer) && !told {
                gone.push((*at + self.config.forget_after, *peer, *status));
            }
        }
        gone.reverse();
        for (at, peer, status) in gone {
            self.change(peer, status, HealthStatus::Unknown, at);
        }
        self.heard.retain(|(_, peer, ..)| peers.contains(peer));
    }

    fn status(&self, now: Timestamp, peer: PeerId) -> HealthStatus {
        let known = self.known(peer);
        known
            .last()
            .filter(|(at, ..)| *at + self.config.forget_after > now)
            .map_or(HealthStatus::Unknown, |(.., status)| *status)
    }

    fn results(&self, peer: PeerId) -> Vec<(Timestamp, bool)> {
        let known = self.known(peer).into_iter();
        known
            .filter_map(|(at, news, _)| match news {
                News::Good => Some((at, true)),
                News::Bad(_) => Some((at, false)),
                News::Took(_) => None,
            })
            .collect()
    }

    /// Times of answers that count, the shortest first.
    fn times(&self, now: Timestamp, peer: PeerId) -> Vec<Duration> {
        let took = |(at, news, _)| match news {
            News::Took(time) => Some((at, time)),
            News::Good | News::Bad(_) => None,
        };
        let all: Vec<(Timestamp, Duration)> =
            self.known(peer).into_iter().filter_map(took).collect();
        let latest = &all[all.len().saturating_sub(self.config.max_samples)..];
        let mut times: Vec<Duration> = latest
            .iter()
            .filter(|(at, _)| now < *at + self.config.window)
            .map(|(_, time)| *time)
            .collect();
        times.sort();
        times
    }

    fn judge(&self, now: Timestamp, peer: PeerId, before: HealthStatus) -> HealthStatus {
        let config = &self.config;
        let results = self.results(peer);
        let (good, bad) = recent(&results, now, config.window);
        let in_a_row = |which: bool| {
            let last = results.iter().rev();
            last.take_while(|(_, good)| *good == which).count() as u64
        };
        let volume = u64::from(config.minimum_volume);
        let at_least =
            |rate: u32| good + bad >= volume && bad * 1000 >= u64::from(rate) * (good + bad);
        let limit = config.unhealthy_per_mille;
        let unhealthy = if before == HealthStatus::Unhealthy {
            in_a_row(true) < u64::from(config.successes_to_recover)
                || at_least(limit.better_up_to + 1)
        } else {
            in_a_row(false) >= u64::from(config.misses_to_unhealthy)
                || (bad >= 2 && at_least(limit.worse_from))
        };
        if unhealthy {
            return HealthStatus::Unhealthy;
        }
        let times = self.times(now, peer);
        let enough = times.len() as u64 >= volume;
        // 95 in 100 of them take less than that, or not.
        let slow = |is_slow: &dyn Fn(Duration) -> bool| {
            let slow = times.iter().filter(|time| is_slow(**time)).count();
            enough && (times.len() - slow) * 100 < times.len() * 95
        };
        let limit = config.degraded_per_mille;
        let degraded = match before {
            HealthStatus::Unknown | HealthStatus::Healthy => {
                at_least(limit.worse_from) || slow(&|time| time >= config.slow.worse_from)
            }
            HealthStatus::Degraded | HealthStatus::Unhealthy => {
                at_least(limit.better_up_to + 1) || slow(&|time| time > config.slow.better_up_to)
            }
        };
        match (degraded, before) {
            (true, _) => HealthStatus::Degraded,
            (false, HealthStatus::Unknown) if good == 0 => HealthStatus::Unknown,
            (false, _) => HealthStatus::Healthy,
        }
    }

    /// Compares a report with what follows from all that was heard.
    fn check(&self, now: Timestamp, peer: PeerId, report: Option<HealthReport>) {
        let results = self.results(peer);
        let Some(report) = report else {
            assert!(!self.peers(now).contains(&peer), "{peer:?} is known");
            return;
        };
        assert_eq!(
            report.status,
            self.status(now, peer),
            "of {peer:?} at {now:?}"
        );
        let (good, bad) = recent(&results, now, self.config.window);
        let told = (report.recent.successes, report.recent.failures);
        assert_eq!((u64::from(told.0), u64::from(told.1)), (good, bad));
        let rate = (1000 * bad).checked_div(good + bad);
        assert_eq!(
            report.success_per_mille().map(u64::from),
            rate.map(|bad| 1000 - bad)
        );
        let misses = results.iter().rev().take_while(|(_, good)| !good).count();
        assert_eq!(report.misses as usize, misses);
        assert_eq!(report.last_check, results.last().map(|(at, _)| *at));
        let known = self.known(peer);
        let fault = known.iter().rev().find_map(|(at, news, _)| match news {
            News::Bad(fault) => Some((*fault, *at)),
            News::Good | News::Took(_) => None,
        });
        assert_eq!(report.last_fault, fault);
        let times = self.times(now, peer);
        let Some(rtt) = report.rtt else {
            assert!(times.is_empty());
            return;
        };
        assert_eq!(rtt.samples, times.len());
        // The least that so many do not exceed.
        let least = |percent: usize| {
            let enough = |limit: &&Duration| {
                let within = times.iter().filter(|time| *time <= *limit).count();
                within * 100 >= percent * times.len()
            };
            *times.iter().find(enough).expect("the greatest is enough")
        };
        assert_eq!((rtt.median, rtt.p95), (least(50), least(95)));
    }
}

fn config(dice: &mut Dice) -> HealthConfig {
    let window = some_time(dice, 1..1 << 25);
    let (low, high) = (dice.range(0..500) as u32, dice.range(500..1000) as u32);
    let better = |dice: &mut Dice, worse: u32| dice.range(0..u64::from(worse)) as u32;
    let degraded = Threshold {
        worse_from: low + 1,
        better_up_to: better(dice, low + 1),
    };
    let unhealthy = Threshold {
        worse_from: high + 1,
        better_up_to: better(dice, high + 1).max(degraded.better_up_to),
    };
    HealthConfig {
        window,
        minimum_volume: 2 + dice.below(5) as u32,
        degraded_per_mille: degraded,
        unhealthy_per_mille: unhealthy,
        slow: Threshold {
            worse_from: Duration::from_millis(100),
            better_up_to: Duration::from_millis(60),
        },
        misses_to_unhealthy: 2 + dice.below(4) as u32,
        successes_to_recover: 1 + dice.below(4) as u32,
        max_samples: 1 + dice.below(20),
        forget_after: window + some_time(dice, 0..1 << 26),
        max_entries: 1 + dice.below(4),
    }
}

/// Hears anything at any time, and compares every answer. Panics where one differs.
pub fn run(seed: u64) -> Outcome {
    let mut dice = Dice::new(seed).fork("health", 0);
    let config = config(&mut dice);
    let mut health = Health::new(config).expect("the configuration is right");
    let mut model = Model {
        config,
        heard: Vec::new(),
        changes: Vec::new(),
        forgotten: 0,
    };
    let peers: Vec<PeerId> = (0..1 + dice.below(5))
        .map(|number| PeerId::from_bytes([number as u8; 32]))
        .collect();
    let mut changes = Vec::new();
    let mut outcome = Outcome::default();
    let start = dice.range(0..1 << 40);
    let (mut now, mut latest) = (Timestamp::from_nanos(start), Timestamp::ZERO);
    for _ in 0..STEPS {
        now = step(&mut dice, now, health.poll_timeout());
        // What time it is it learns from whoever tells something.
        let at = latest.max(now);
        // What comes often changes now and then.
        let often = *dice.pick(&[[6, 1, 1], [1, 6, 1], [2, 2, 4]]);
        for _ in 0..dice.below(4) {
            let peer = *dice.pick(&peers);
            latest = at;
            model.forget(at);
            match dice.weighted(&often) {
                0 => {
                    health.record_success(now, peer);
                    model.hear(at, peer, News::Good);
                }
                1 => {
                    let fault = *dice.pick(&[Fault::NoAnswer, Fault::Lost, Fault::NotReached]);
                    health.record_fault(now, peer, fault);
                    model.hear(at, peer, News::Bad(fault));
                }
                _ => {
                    let time = Duration::from_micros(dice.range(40_000..130_000));
                    health.record_rtt(now, peer, time);
                    model.hear(at, peer, News::Took(time));
                }
            }
        }
        if dice.one_in(4) {
            latest = at;
            health.handle_timeout(now);
        }
        changes.extend(std::iter::from_fn(|| health.poll_change()));
        for peer in &peers {
            assert_eq!(health.status(now, *peer), model.status(at, *peer));
            model.check(at, *peer, health.report(now, *peer));
            outcome.answers += 1;
        }
    }
    health.handle_timeout(latest);
    changes.extend(std::iter::from_fn(|| health.poll_change()));
    model.forget(latest);
    assert_eq!(changes, model.changes);
    assert_eq!(health.len(), model.peers(latest).len());
    assert_eq!(health.lost_changes(), 0);
    outcome.changes = changes.len() as u64;
    outcome.without_room = model.forgotten;
    outcome
}
