//! What nodes find out about each other's health, on networks that lose and fall apart.

use std::time::Duration;

use towpath_proto::health::HealthStatus::{Healthy, Unhealthy};
use towpath_proto::quic::CloseReason;
use towpath_sim::crypto;
use towpath_sim::dice::PerMillion;
use towpath_sim::network::Link;
use towpath_sim::watch::{Scene, run};

const SEEDS: u64 = 25;

fn scene(link: Link) -> Scene {
    let seconds = Duration::from_secs;
    Scene {
        link,
        interval: seconds(2),
        before: seconds(60),
        cut: seconds(20),
        after: seconds(180),
    }
}

fn perfect() -> Link {
    Link::perfect(Duration::from_millis(50))
}

fn lossy() -> Link {
    let ms = Duration::from_millis;
    let mut link = perfect();
    link.jitter = ms(0)..ms(5);
    link.loss = PerMillion(50_000);
    link.reordering = (PerMillion(100_000), ms(30));
    link
}

#[test]
fn a_partition_makes_a_peer_unhealthy_and_its_end_makes_it_healthy_again() {
    for link in [perfect(), lossy()] {
        let scene = scene(link);
        for seed in 0..SEEDS {
            let seen = run(seed, &scene, &crypto::seeded(seed));
            assert_eq!(
                (seen.before, seen.cut, seen.after, seen.closed),
                (Healthy, Unhealthy, Healthy, None),
                "seed {seed}"
            );
        }
    }
}

#[test]
fn a_short_interruption_makes_nobody_unhealthy() {
    for link in [perfect(), lossy()] {
        let mut scene = scene(link);
        scene.cut = Duration::from_secs(4);
        for seed in 0..SEEDS {
            let seen = run(seed, &scene, &crypto::seeded(seed));
            assert_ne!(seen.cut, Unhealthy, "seed {seed}");
            assert_eq!((seen.after, seen.closed), (Healthy, None), "seed {seed}");
        }
    }
}

#[test]
fn a_peer_that_never_answers_again_is_unhealthy_when_the_connection_is_given_up() {
    let mut scene = scene(lossy());
    scene.cut = Duration::from_secs(60);
    scene.after = Duration::from_secs(10);
    for seed in 0..SEEDS {
        let seen = run(seed, &scene, &crypto::seeded(seed));
        assert_eq!((seen.before, seen.cut), (Healthy, Unhealthy), "seed {seed}");
        let reason = seen.closed.expect("it is over");
        assert_eq!(reason, CloseReason::TimedOut, "seed {seed}");
    }
}
