//! Probes, and what counts for a peer's health.

use super::*;
use crate::health::{Fault, HealthReport};
use crate::quic::SecurityPolicy;

fn probing(_: usize, config: &mut PeerConfig) {
    config.health_check_interval = Some(5 * SECOND);
    config.health_check_timeout = 2 * SECOND;
}

fn report(lab: &Lab, of: usize) -> Option<HealthReport> {
    lab.peers[of].0.health(lab.peers[1 - of].0.id())
}

fn changes(lab: &mut Lab, of: usize) -> Vec<HealthStatus> {
    let notices = std::mem::take(&mut lab.notices[of]);
    notices
        .into_iter()
        .filter_map(|notice| match notice {
            Notice::HealthChanged { to, .. } => Some(to),
            _ => None,
        })
        .collect()
}

#[test]
fn an_idle_connection_is_probed_from_both_ends_and_stays() {
    let mut lab = Lab::new(probing);
    let connection = lab.connect();
    lab.run(100 * SECOND);
    assert!(lab.peers[0].0.peer(connection).is_some());
    for of in [0, 1] {
        let report = report(&lab, of).unwrap();
        assert_eq!(report.status, HealthStatus::Healthy);
        assert!(lab.now.saturating_since(report.last_check.unwrap()) <= 6 * SECOND);
        assert!((18..=28).contains(&report.recent.successes), "{report:?}");
        assert!(
            report.rtt.unwrap().p95 < Duration::from_millis(30),
            "{report:?}"
        );
        assert_eq!(changes(&mut lab, of), [HealthStatus::Healthy]);
    }
    lab.run(100 * SECOND);
    assert!(lab.peers[0].0.close(lab.now, connection, 0, b""));
    lab.run(SECOND);
    for of in [0, 1] {
        assert_eq!(
            report(&lab, of).unwrap().last_fault,
            None,
            "a close is no fault"
        );
    }
    lab.run(10 * SECOND);
    assert!(lab.peers.iter().all(|(peer, _)| peer.is_empty()));
}

#[test]
fn without_probes_an_idle_connection_ends_and_nobody_is_to_blame() {
    let mut lab = Lab::new(|_, config| config.pool.idle_timeout = 100 * SECOND);
    lab.connect();
    lab.run(40 * SECOND);
    assert_eq!(lab.close_reason(0), Some(CloseReason::TimedOut));
    let report = report(&lab, 0).unwrap();
    assert_eq!(
        (report.status, report.last_fault),
        (HealthStatus::Healthy, None)
    );
}

#[test]
fn a_peer_that_falls_silent_is_unhealthy_before_quic_gives_up_and_recovers_later() {
    let mut lab = Lab::new(probing);
    let connection = lab.connect();
    lab.run(20 * SECOND);
    changes(&mut lab, 0);
    lab.cut = true;
    lab.run(12 * SECOND);
    let down = report(&lab, 0).unwrap();
    assert_eq!((down.status, down.misses), (HealthStatus::Unhealthy, 3));
    assert_eq!(down.last_fault.unwrap().0, Fault::NoAnswer);
    lab.cut = false;
    lab.run(180 * SECOND);
    assert!(lab.peers[0].0.peer(connection).is_some());
    let back = changes(&mut lab, 0);
    assert!(back.contains(&HealthStatus::Unhealthy), "{back:?}");
    assert_eq!(back.last(), Some(&HealthStatus::Healthy));
}

#[test]
fn a_probe_that_is_missed_makes_nobody_unhealthy() {
    let mut lab = Lab::new(probing);
    let connection = lab.connect();
    lab.run(20 * SECOND);
    let now = lab.now;
    lab.cut = true;
    assert!(lab.peers[0].0.probe(now, connection));
    lab.run(3 * SECOND);
    lab.cut = false;
    assert_eq!(report(&lab, 0).unwrap().misses, 1);
    lab.run(60 * SECOND);
    assert!(!changes(&mut lab, 0).contains(&HealthStatus::Unhealthy));
    assert_eq!(report(&lab, 0).unwrap().misses, 0);
}

#[test]
fn a_peer_is_probed_on_demand_and_asking_often_does_not_put_the_timeout_off() {
    let mut lab = Lab::new(|_, config| config.health_check_timeout = 2 * SECOND);
    let connection = lab.connect();
    lab.run(SECOND);
    let now = lab.now;
    assert!(lab.peers[0].0.probe(now, connection));
    lab.run(SECOND);
    assert_eq!(report(&lab, 0).unwrap().recent.successes, 2);
    lab.cut = true;
    for _ in 0..3 {
        let now = lab.now;
        assert!(lab.peers[0].0.probe(now, connection));
        lab.run(SECOND);
    }
    assert_eq!(report(&lab, 0).unwrap().misses, 1);
    lab.run(60 * SECOND);
    let now = lab.now;
    assert!(!lab.peers[0].0.probe(now, connection), "it is over");
    let report = report(&lab, 0).unwrap();
    assert_eq!(
        (report.misses, report.last_fault.unwrap().0),
        (4, Fault::Lost)
    );
}

#[test]
fn a_connection_lost_while_an_answer_is_owed_is_the_peers_fault() {
    let mut lab = Lab::new(probing);
    lab.connect();
    lab.run(20 * SECOND);
    lab.cut = true;
    lab.run(60 * SECOND);
    assert_eq!(lab.close_reason(0), Some(CloseReason::TimedOut));
    let report = report(&lab, 0).unwrap();
    assert_eq!(report.status, HealthStatus::Unhealthy);
    assert!(report.misses >= 3, "{report:?}");
}

#[test]
fn a_peer_that_cannot_be_reached_counts_and_one_that_has_nothing_in_common_does_not() {
    let mut lab = Lab::new(|_, _| {});
    lab.cut = true;
    for _ in 0..3 {
        lab.connect();
        lab.run(40 * SECOND);
    }
    let unreached = report(&lab, 0).unwrap();
    assert_eq!(unreached.last_fault.unwrap().0, Fault::NotReached);
    assert_eq!(changes(&mut lab, 0), [HealthStatus::Unhealthy]);

    let mut lab = Lab::new(|index, config| match index {
        0 => classical(config),
        _ => config.quic.security = SecurityPolicy::RequirePostQuantum,
    });
    lab.connect();
    lab.run(SECOND);
    assert!(lab.close_reason(0).is_some());
    assert_eq!(report(&lab, 0), None);
}

#[test]
fn times_that_make_no_sense_are_refused() {
    let with = |configure: fn(&mut PeerConfig)| {
        let mut config = PeerConfig {
            listeners: vec![SocketAddr::from(([192, 0, 2, 1], 9))],
            ..PeerConfig::default()
        };
        configure(&mut config);
        let identity = Identity::new(SecretKey::from_seed([0; 32]));
        Peer::new(Arc::new(config), &identity, ShardId(0), [1; 32]).err()
    };
    assert_eq!(with(|_| {}), None);
    let wrong = with(|config| config.health_check_interval = Some(Duration::ZERO));
    assert!(matches!(wrong, Some(PeerConfigError::HealthCheck { .. })));
    let wrong = with(|config| config.health_check_timeout = Duration::MAX);
    assert!(matches!(wrong, Some(PeerConfigError::HealthCheck { .. })));
    let wrong = with(|config| config.health.max_samples = 0);
    assert!(matches!(wrong, Some(PeerConfigError::Health(_))));
}
