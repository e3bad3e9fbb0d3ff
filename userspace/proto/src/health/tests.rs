//! The rules one by one. All together, against a naive model: `tests/sim/tests/policies.rs`.

use super::HealthStatus::{Degraded, Healthy, Unhealthy, Unknown};
use super::*;

const SECOND: Duration = Duration::from_secs(1);
const PEER: PeerId = PeerId::from_bytes([1; 32]);

struct Lab {
    now: Timestamp,
    health: Health,
}

impl Lab {
    fn new(configure: impl FnOnce(&mut HealthConfig)) -> Self {
        let mut config = HealthConfig::default();
        configure(&mut config);
        Self {
            now: Timestamp::ZERO + 1_000 * SECOND,
            health: Health::new(config).unwrap(),
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    fn succeed(&mut self, times: u32) {
        for _ in 0..times {
            self.wait(SECOND);
            self.health.record_success(self.now, PEER);
        }
    }

    fn fail(&mut self, times: u32) {
        for _ in 0..times {
            self.wait(SECOND);
            self.health.record_fault(self.now, PEER, Fault::NoAnswer);
        }
    }

    fn rtt(&mut self, millis: u64) {
        let rtt = Duration::from_millis(millis);
        self.health.record_rtt(self.now, PEER, rtt);
    }

    fn status(&self) -> HealthStatus {
        self.health.status(self.now, PEER)
    }

    fn report(&self) -> HealthReport {
        self.health.report(self.now, PEER).unwrap()
    }

    fn changes(&mut self) -> Vec<HealthStatus> {
        std::iter::from_fn(|| self.health.poll_change())
            .map(|change| change.to)
            .collect()
    }
}

#[test]
fn a_success_is_health_and_a_failure_alone_is_nothing() {
    let mut lab = Lab::new(|_| {});
    assert_eq!(lab.health.report(lab.now, PEER), None);
    assert_eq!(lab.status(), Unknown);
    lab.fail(1);
    assert_eq!(lab.status(), Unknown);
    lab.succeed(1);
    assert_eq!(lab.status(), Healthy);
}

#[test]
fn one_missed_probe_makes_nobody_unhealthy() {
    let least = |config: &mut HealthConfig| {
        config.minimum_volume = 2;
        config.misses_to_unhealthy = 2;
        config.unhealthy_per_mille.worse_from = 500;
        config.unhealthy_per_mille.better_up_to = 400;
    };
    for successes in 0..50 {
        let mut lab = Lab::new(least);
        lab.succeed(successes);
        lab.fail(1);
        assert_ne!(lab.status(), Unhealthy, "after {successes} successes");
        lab.fail(1);
        assert_eq!(lab.status(), Unhealthy);
    }
}

#[test]
fn three_misses_in_a_row_are_enough_after_any_number_of_successes() {
    let mut lab = Lab::new(|config| config.forget_after = 20_000 * SECOND);
    lab.succeed(10_000);
    lab.fail(2);
    assert_eq!(lab.status(), Healthy);
    lab.fail(1);
    assert_eq!(lab.status(), Unhealthy);
    assert_eq!(lab.report().misses, 3);
    assert_eq!(lab.report().last_fault, Some((Fault::NoAnswer, lab.now)));
}

#[test]
fn successes_of_long_ago_hide_no_failures() {
    let mut lab = Lab::new(|config| config.misses_to_unhealthy = 1_000);
    lab.succeed(10_000);
    lab.fail(120);
    assert_eq!(lab.report().success_per_mille(), Some(0));
    assert_eq!(lab.status(), Unhealthy);
}

#[test]
fn an_unhealthy_peer_recovers_with_successes_in_a_row_and_a_low_rate() {
    let mut lab = Lab::new(|config| config.minimum_volume = 100);
    lab.fail(3);
    lab.succeed(1);
    assert_eq!(lab.status(), Unhealthy);
    lab.fail(1);
    lab.succeed(1);
    assert_eq!(lab.status(), Unhealthy, "not in a row");
    lab.succeed(1);
    assert_eq!(lab.status(), Healthy);

    let mut lab = Lab::new(|_| {});
    lab.fail(10);
    lab.succeed(14);
    assert_eq!(lab.status(), Unhealthy, "10 of 24 failed");
    lab.succeed(1);
    assert_eq!(lab.status(), Degraded, "10 of 25 failed");
    lab.succeed(75);
    assert_eq!(lab.status(), Healthy, "10 of 100 failed");
    assert_eq!(lab.changes(), [Unhealthy, Degraded, Healthy]);
}

#[test]
fn whoever_lies_between_the_limits_stays_what_it_is() {
    let mut lab = Lab::new(|config| config.minimum_volume = 2);
    lab.succeed(100);
    for _ in 0..100 {
        lab.succeed(6);
        lab.fail(1);
    }
    assert_eq!(lab.status(), Healthy, "142 in a thousand fail");
    for _ in 0..10 {
        lab.succeed(1);
        lab.fail(1);
    }
    assert_eq!(lab.status(), Degraded);
    for _ in 0..100 {
        lab.succeed(6);
        lab.fail(1);
    }
    assert_eq!(lab.status(), Degraded, "142 in a thousand fail");
    assert_eq!(lab.changes(), [Healthy, Degraded]);
}

#[test]
fn a_slow_peer_is_degraded_until_it_is_clearly_faster() {
    let mut lab = Lab::new(|config| config.max_samples = 10);
    lab.succeed(1);
    for _ in 0..3 {
        lab.rtt(1_500);
    }
    assert_eq!(lab.status(), Healthy, "too few to say");
    lab.rtt(1_500);
    assert_eq!(lab.status(), Degraded);
    for _ in 0..10 {
        lab.rtt(800);
    }
    assert_eq!(lab.status(), Degraded);
    for _ in 0..10 {
        lab.rtt(600);
    }
    assert_eq!(lab.status(), Healthy);
}

#[test]
fn median_and_p95_are_of_the_latest_samples_within_the_window() {
    let mut lab = Lab::new(|config| config.max_samples = 100);
    lab.succeed(1);
    assert_eq!(lab.report().rtt, None);
    for millis in (1..=200).rev() {
        lab.rtt(millis);
    }
    let rtt = lab.report().rtt.unwrap();
    assert_eq!(rtt.samples, 100);
    assert_eq!(rtt.median, Duration::from_millis(50));
    assert_eq!(rtt.p95, Duration::from_millis(95));
    lab.wait(119 * SECOND);
    lab.rtt(7);
    lab.wait(SECOND);
    let rtt = lab.report().rtt.unwrap();
    assert_eq!((rtt.samples, rtt.median), (1, Duration::from_millis(7)));
    assert_eq!(rtt.p95, rtt.median);
    lab.wait(119 * SECOND);
    assert_eq!(lab.report().rtt, None);
}

#[test]
fn a_peer_of_whom_nothing_is_heard_is_forgotten() {
    let mut lab = Lab::new(|_| {});
    lab.succeed(1);
    lab.changes();
    let at = lab.health.poll_timeout().unwrap();
    assert_eq!(at, lab.now + 900 * SECOND);
    lab.now = at;
    assert_eq!(lab.status(), Unknown);
    assert_eq!(lab.health.report(lab.now, PEER), None);
    lab.health.handle_timeout(at);
    assert_eq!(lab.changes(), [Unknown]);
    assert!(lab.health.is_empty());
    assert_eq!(lab.health.poll_timeout(), None);
}

#[test]
fn of_too_many_the_one_of_whom_nothing_was_heard_for_longest_goes() {
    let mut lab = Lab::new(|config| config.max_entries = 2);
    let peer = |number| PeerId::from_bytes([number; 32]);
    for number in [1, 2, 1, 3] {
        lab.health.record_success(lab.now, peer(number));
    }
    let known = [1, 2, 3].map(|number| lab.health.status(lab.now, peer(number)));
    assert_eq!(known, [Healthy, Unknown, Healthy]);
    assert_eq!((lab.health.len(), lab.health.uses.len()), (2, 2));
    assert_eq!(lab.changes(), [Healthy, Healthy, Unknown, Healthy]);
}

#[test]
fn changes_that_nobody_takes_are_bounded_and_counted() {
    let mut lab = Lab::new(|config| config.max_entries = 1);
    for number in 0..MAX_CHANGES {
        let peer = PeerId::from_bytes([number as u8; 32]);
        lab.health.record_success(lab.now, peer);
    }
    assert_eq!(lab.health.poll_timeout(), Some(lab.now));
    assert_eq!(lab.health.changes.len(), MAX_CHANGES);
    assert_eq!(lab.health.lost_changes(), MAX_CHANGES as u64 - 1);
}

#[test]
fn the_worse_the_status_the_greater_the_penalty() {
    let penalties = [Healthy, Unknown, Degraded, Unhealthy].map(HealthStatus::penalty);
    assert!(penalties.is_sorted_by(|a, b| a < b));
    assert!(Degraded.is_usable() && !Unhealthy.is_usable());
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    let wrong: [fn(&mut HealthConfig); 11] = [
        |config| config.window = Duration::ZERO,
        |config| config.window = config.forget_after + SECOND,
        |config| config.forget_after = Duration::MAX,
        |config| config.minimum_volume = 1,
        |config| config.misses_to_unhealthy = 1,
        |config| config.successes_to_recover = 0,
        |config| config.max_samples = 0,
        |config| config.max_entries = 0,
        |config| config.degraded_per_mille.better_up_to = 200,
        |config| config.slow.better_up_to = config.slow.worse_from,
        |config| config.unhealthy_per_mille.better_up_to = 99,
    ];
    for configure in wrong {
        let mut config = HealthConfig::default();
        configure(&mut config);
        assert!(config.validate().is_err(), "{config:?}");
    }
    assert_eq!(HealthConfig::default().validate(), Ok(()));
}
