//! The rules one by one. All together, against a naive model: `tests/sim/tests/policies.rs`.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const KEY: BreakerKey = BreakerKey::Peer(PeerId::from_bytes([1; 32]), TransportType::Direct);

struct Lab {
    now: Timestamp,
    breakers: Breakers,
}

impl Lab {
    fn new(configure: impl FnOnce(&mut BreakerConfig)) -> Self {
        let mut config = BreakerConfig {
            jitter_per_mille: 0,
            ..BreakerConfig::default()
        };
        configure(&mut config);
        Self {
            now: Timestamp::ZERO + 1_000 * SECOND,
            breakers: Breakers::new(config, [7; 32]).unwrap(),
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    fn admit(&mut self) -> Result<Permit, StillOpen> {
        self.breakers.admit(self.now, KEY)
    }

    fn attempt(&mut self, key: BreakerKey, outcome: Outcome) {
        let permit = self.breakers.admit(self.now, key).unwrap();
        self.breakers.record(self.now, permit, outcome);
    }

    fn fail(&mut self, times: u32) {
        for _ in 0..times {
            self.attempt(KEY, Outcome::Failure);
        }
    }

    /// Fails until it opens.
    fn open(&mut self) {
        self.fail(self.breakers.config.minimum_volume);
        assert_eq!(self.state(), BreakerState::Open);
    }

    fn state(&self) -> BreakerState {
        self.breakers.state(self.now, KEY)
    }

    fn retry_at(&self) -> Timestamp {
        self.breakers.report(self.now, KEY).retry_at.unwrap()
    }

    fn causes(&mut self) -> Vec<BreakerCause> {
        std::iter::from_fn(|| self.breakers.poll_change())
            .map(|change| change.cause)
            .collect()
    }
}

fn relay(number: u16) -> BreakerKey {
    BreakerKey::Relay(SocketAddr::from(([192, 0, 2, 1], number)))
}

#[test]
fn a_few_failures_mean_nothing_until_there_is_some_volume() {
    let mut lab = Lab::new(|_| {});
    lab.fail(4);
    assert_eq!(lab.state(), BreakerState::Closed);
    lab.fail(1);
    assert_eq!(lab.state(), BreakerState::Open);
    let refused = lab.admit().unwrap_err();
    assert_eq!(refused.retry_at, lab.now + 5 * SECOND);
    let change = lab.breakers.poll_change().unwrap();
    assert_eq!(
        (change.from, change.to),
        (BreakerState::Closed, BreakerState::Open)
    );
    assert_eq!((change.key, change.at), (KEY, lab.now));
    assert_eq!(change.retry_at, Some(refused.retry_at));
}

#[test]
fn failures_below_the_rate_open_nothing_however_many_they_are() {
    let mut lab = Lab::new(|_| {});
    for _ in 0..10_000 {
        lab.attempt(KEY, Outcome::Success);
        lab.attempt(KEY, Outcome::Success);
        lab.fail(1);
    }
    assert_eq!(lab.state(), BreakerState::Closed);
    assert_eq!(lab.breakers.report(lab.now, KEY).recent.failures, 10_000);
}

#[test]
fn failures_of_long_ago_count_no_more() {
    let mut lab = Lab::new(|_| {});
    for _ in 0..100 {
        lab.fail(4);
        lab.wait(60 * SECOND);
    }
    assert_eq!(lab.state(), BreakerState::Closed);
}

#[test]
fn successes_of_long_ago_hide_nothing() {
    let mut lab = Lab::new(|_| {});
    for _ in 0..10_000 {
        lab.attempt(KEY, Outcome::Success);
    }
    lab.wait(60 * SECOND);
    lab.open();
}

#[test]
fn what_was_cancelled_is_no_failure() {
    let mut lab = Lab::new(|_| {});
    for _ in 0..100 {
        lab.attempt(KEY, Outcome::Cancelled);
    }
    assert_eq!(lab.breakers.report(lab.now, KEY).recent, Tally::default());
    assert_eq!(lab.state(), BreakerState::Closed);
}

#[test]
fn a_half_open_breaker_lets_as_many_trials_pass_at_a_time_as_it_has_permits() {
    let mut lab = Lab::new(|config| config.half_open_permits = 2);
    lab.open();
    lab.wait(5 * SECOND);
    let first = lab.admit().unwrap();
    lab.wait(SECOND);
    let _second = lab.admit().unwrap();
    let refused = lab.admit().unwrap_err();
    assert_eq!(
        refused.retry_at,
        lab.now + 59 * SECOND,
        "the first is over then"
    );
    lab.breakers.record(lab.now, first, Outcome::Cancelled);
    assert_eq!(lab.state(), BreakerState::HalfOpen);
    assert!(lab.admit().is_ok());
    assert!(lab.admit().is_err());
}

#[test]
fn a_permit_that_never_comes_back_is_released_and_its_result_is_worth_nothing() {
    let mut lab = Lab::new(|_| {});
    lab.open();
    lab.wait(5 * SECOND);
    let lost = lab.admit().unwrap();
    lab.wait(60 * SECOND);
    let permit = lab.admit().unwrap();
    lab.breakers.record(lab.now, lost, Outcome::Failure);
    assert_eq!(lab.state(), BreakerState::HalfOpen);
    lab.breakers.record(lab.now, permit, Outcome::Failure);
    assert_eq!(lab.state(), BreakerState::Open);
}

#[test]
fn a_late_result_of_an_earlier_state_changes_nothing() {
    let mut lab = Lab::new(|config| config.successes_to_close = 1);
    let early = lab.admit().unwrap();
    let another = lab.admit().unwrap();
    lab.open();
    lab.breakers.record(lab.now, early, Outcome::Success);
    assert_eq!(lab.state(), BreakerState::Open);
    lab.wait(5 * SECOND);
    lab.breakers.record(lab.now, another, Outcome::Success);
    assert_eq!(lab.state(), BreakerState::HalfOpen);
    let trial = lab.admit().unwrap();
    lab.breakers.record(lab.now, trial, Outcome::Success);
    assert_eq!(lab.state(), BreakerState::Closed);
}

#[test]
fn enough_trials_close_it_and_it_begins_anew() {
    let mut lab = Lab::new(|_| {});
    lab.open();
    lab.wait(5 * SECOND);
    lab.attempt(KEY, Outcome::Success);
    assert_eq!(lab.state(), BreakerState::HalfOpen);
    lab.attempt(KEY, Outcome::Success);
    assert_eq!(lab.state(), BreakerState::Closed);
    assert_eq!(lab.breakers.report(lab.now, KEY).recent, Tally::default());
    use BreakerCause::{Failures, TimeOver, TrialsSucceeded};
    assert_eq!(lab.causes(), [Failures, TimeOver, TrialsSucceeded]);
    lab.open();
    assert_eq!(lab.retry_at(), lab.now + 5 * SECOND, "as the first time");
}

#[test]
fn every_failed_trial_doubles_the_time_up_to_the_cap() {
    let mut lab = Lab::new(|_| {});
    lab.open();
    for expected in [5, 10, 20, 40, 80, 160, 300, 300] {
        assert_eq!(lab.retry_at(), lab.now + expected * SECOND);
        lab.wait(expected * SECOND);
        lab.fail(1);
    }
    for _ in 0..100 {
        lab.wait(300 * SECOND);
        lab.fail(1);
    }
    assert_eq!(lab.retry_at(), lab.now + 300 * SECOND);
}

#[test]
fn the_times_vary_within_the_jitter() {
    let mut lab = Lab::new(|config| {
        config.jitter_per_mille = 200;
        config.open_for_max = config.open_for;
    });
    lab.open();
    let mut seen = Vec::new();
    for _ in 0..200 {
        let time = lab.retry_at().saturating_since(lab.now);
        assert!(time >= 4 * SECOND && time <= 5 * SECOND, "{time:?}");
        seen.push(time);
        lab.wait(time);
        lab.fail(1);
    }
    seen.sort();
    assert!(seen[0] < Duration::from_millis(4_050));
    assert!(seen[199] > Duration::from_millis(4_950));
}

#[test]
fn a_broken_way_keeps_nobody_from_another_way() {
    let mut lab = Lab::new(|_| {});
    lab.open();
    let peer = PeerId::from_bytes([1; 32]);
    for other in [
        BreakerKey::Peer(peer, TransportType::Circuit),
        BreakerKey::Peer(PeerId::from_bytes([2; 32]), TransportType::Direct),
        relay(1),
        BreakerKey::Helper(SocketAddr::from(([192, 0, 2, 1], 1))),
    ] {
        lab.attempt(other, Outcome::Success);
        assert_eq!(lab.breakers.state(lab.now, other), BreakerState::Closed);
    }
}

#[test]
fn what_is_quiet_for_long_is_forgotten() {
    let mut lab = Lab::new(|_| {});
    lab.attempt(relay(1), Outcome::Success);
    lab.open();
    assert_eq!(lab.breakers.len(), 2);
    lab.causes();
    let mut calls = 0;
    while let Some(at) = lab.breakers.poll_timeout() {
        assert!(at >= lab.now);
        lab.now = at;
        lab.breakers.handle_timeout(at);
        lab.causes();
        calls += 1;
        assert!(calls < 10);
    }
    assert!(lab.breakers.is_empty());
    assert!(lab.breakers.deadlines.is_empty());
}

#[test]
fn a_half_open_breaker_that_nobody_tries_closes_in_the_end_however_late_anybody_looks() {
    let mut lab = Lab::new(|_| {});
    lab.open();
    lab.causes();
    lab.wait(364 * SECOND);
    assert_eq!(lab.state(), BreakerState::HalfOpen);
    lab.wait(SECOND);
    assert_eq!(lab.state(), BreakerState::Closed);
    lab.attempt(KEY, Outcome::Success);
    assert_eq!(lab.causes(), [BreakerCause::TimeOver, BreakerCause::Quiet]);
}

#[test]
fn of_too_many_the_closed_one_that_was_used_least_recently_goes() {
    let mut lab = Lab::new(|config| config.max_entries = 3);
    lab.open();
    lab.attempt(relay(1), Outcome::Failure);
    lab.attempt(relay(2), Outcome::Failure);
    lab.attempt(relay(1), Outcome::Failure);
    lab.attempt(relay(3), Outcome::Failure);
    assert_eq!(lab.breakers.len(), 3);
    let failures = |lab: &Lab, key| lab.breakers.report(lab.now, key).recent.failures;
    assert_eq!(
        [1, 2, 3].map(|number| failures(&lab, relay(number))),
        [2, 0, 1]
    );
    assert_eq!(lab.state(), BreakerState::Open);
    assert_eq!(lab.breakers.deadlines.len(), 3);
}

#[test]
fn while_all_are_open_others_are_admitted_without_a_breaker() {
    let mut lab = Lab::new(|config| config.max_entries = 1);
    lab.open();
    for _ in 0..10 {
        lab.attempt(relay(1), Outcome::Failure);
    }
    assert_eq!(lab.breakers.untracked(), 10);
    assert_eq!(lab.breakers.len(), 1);
    assert_eq!(lab.breakers.state(lab.now, relay(1)), BreakerState::Closed);
}

#[test]
fn changes_that_nobody_takes_are_bounded_and_counted() {
    let mut lab = Lab::new(|config| {
        config.minimum_volume = 1;
        config.successes_to_close = 1;
    });
    for _ in 0..MAX_CHANGES {
        lab.fail(1);
        assert_eq!(lab.breakers.poll_timeout(), Some(lab.now));
        lab.wait(5 * SECOND);
        lab.attempt(KEY, Outcome::Success);
    }
    assert_eq!(lab.breakers.changes.len(), MAX_CHANGES);
    assert_eq!(lab.breakers.lost_changes(), 2 * MAX_CHANGES as u64);
}

#[test]
fn a_clock_that_runs_backwards_stands_still() {
    let mut lab = Lab::new(|_| {});
    lab.open();
    let retry_at = lab.retry_at();
    lab.now = Timestamp::ZERO;
    assert_eq!(lab.admit().unwrap_err().retry_at, retry_at);
    assert_eq!(lab.state(), BreakerState::Open);
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    let wrong: [fn(&mut BreakerConfig); 9] = [
        |config| config.window = Duration::ZERO,
        |config| config.window = Duration::MAX,
        |config| config.permit_timeout = Duration::ZERO,
        |config| config.minimum_volume = 0,
        |config| config.failure_per_mille = 1001,
        |config| config.half_open_permits = 0,
        |config| config.jitter_per_mille = 501,
        |config| config.max_entries = 0,
        |config| config.open_for_max = SECOND,
    ];
    for configure in wrong {
        let mut config = BreakerConfig::default();
        configure(&mut config);
        assert!(config.validate().is_err(), "{config:?}");
    }
    assert_eq!(BreakerConfig::default().validate(), Ok(()));
}
