//! Nodes that call each other on networks that lose, repeat and reorder.
//!
//! `TOWPATH_SIM_SEEDS=100000` runs more seeds, `TOWPATH_SIM_SEED=7` runs one.

use std::sync::Arc;
use std::time::Duration;

use towpath_sim::crypto;
use towpath_sim::dice::{Dice, PerMillion};
use towpath_sim::network::Link;
use towpath_sim::seeds;
use towpath_sim::swarm::{Outcome, Plan, run};

fn random(seed: u64) -> Outcome {
    let plan = Plan::random(&mut Dice::new(seed).fork("plan", 0));
    run(seed, &plan, crypto::seeded(seed))
}

fn lossy() -> Link {
    let ms = Duration::from_millis;
    let mut link = Link::perfect(ms(20));
    link.jitter = ms(0)..ms(5);
    link.loss = PerMillion(50_000);
    link.reordering = (PerMillion(100_000), ms(30));
    link
}

#[test]
fn two_nodes_talk_on_a_perfect_network() {
    let link = Link::perfect(Duration::from_millis(20));
    let outcome = run(1, &Plan::pair(link), crypto::seeded(1));
    assert_eq!(outcome.completed, 1);
    assert_eq!(outcome.arrived, 16, "eight datagrams, and eight back");
}

#[test]
fn two_nodes_talk_on_a_network_that_loses_and_reorders() {
    for seed in 0..10 {
        let outcome = run(seed, &Plan::pair(lossy()), crypto::seeded(seed));
        assert_eq!(outcome.completed, 1, "seed {seed}: {outcome:?}");
    }
}

#[test]
fn a_connection_finds_out_how_long_datagrams_may_be() {
    for (most_bytes, found) in [
        (1200, 1200..=1200),
        (1300, 1280..=1300),
        (9000, 1452..=1452),
    ] {
        let mut link = Link::perfect(Duration::from_millis(20));
        link.most_bytes = most_bytes;
        let mut plan = Plan::pair(link);
        plan.max_message_bytes = 400_000;
        let outcome = run(1, &plan, crypto::seeded(1));
        assert_eq!(outcome.completed, 1);
        assert!(found.contains(&outcome.mtu_bytes), "{outcome:?}");
        assert_eq!(
            outcome.congestion_events, 0,
            "a probe that is lost says nothing"
        );
    }
}

#[test]
fn a_transfer_goes_on_when_either_end_gets_another_address_in_the_middle_of_it() {
    for (seed, link) in [
        (1, Link::perfect(Duration::from_millis(20))),
        (2, lossy()),
        (3, lossy()),
    ] {
        for moves in [vec![0], vec![1], vec![0, 1], vec![1, 0, 0]] {
            let mut plan = Plan::pair(link.clone());
            plan.max_message_bytes = 4_000_000;
            plan.moves = moves
                .iter()
                .map(|mover| (Duration::from_millis(400), *mover))
                .collect();
            let outcome = run(seed, &plan, crypto::seeded(seed));
            assert_eq!(outcome.completed, 1, "{seed} {moves:?}: {outcome:?}");
            assert!(outcome.moved >= 1, "{seed} {moves:?}: {outcome:?}");
        }
    }
}

#[test]
fn a_mark_on_the_way_makes_the_sender_slow_down_although_nothing_is_lost() {
    let mut link = Link::perfect(Duration::from_millis(20));
    link.congestion = PerMillion(100_000);
    let mut plan = Plan::pair(link);
    plan.max_message_bytes = 400_000;
    let outcome = run(1, &plan, crypto::seeded(1));
    assert_eq!(outcome.completed, 1);
    assert!(outcome.congestion_events > 0, "{outcome:?}");
}

#[test]
fn a_peer_that_is_somebody_else_is_refused() {
    let mut plan = Plan::pair(Link::perfect(Duration::from_millis(20)));
    plan.wrong_peer_one_in = 1;
    let outcome = run(1, &plan, crypto::seeded(1));
    assert_eq!((outcome.wrong_peer, outcome.completed), (1, 0));
}

#[test]
fn under_load_a_stranger_shows_its_address_first() {
    let mut plan = Plan::pair(lossy());
    plan.retry_above = 0;
    for seed in 0..10 {
        let outcome = run(seed, &plan, crypto::seeded(seed));
        assert_eq!(outcome.completed, 1, "seed {seed}: {outcome:?}");
        assert!(outcome.retried >= 1);
    }
}

#[test]
fn random_nodes_get_through_what_they_say_and_leave_nothing_behind() {
    let mut all = Outcome::default();
    let mut runs = 0;
    for seed in seeds::from_environment() {
        let outcome = random(seed);
        runs += 1;
        all.datagrams += outcome.datagrams;
        all.completed += outcome.completed;
        all.wrong_peer += outcome.wrong_peer;
        all.timed_out += outcome.timed_out;
        all.cancelled += outcome.cancelled;
        all.full += outcome.full;
        all.reused += outcome.reused;
        all.connected += outcome.connected;
        all.abandoned += outcome.abandoned;
        all.arrived += outcome.arrived;
        all.retried += outcome.retried;
        all.moved += outcome.moved;
    }
    println!("{runs} runs: {all:?}");
    if runs >= seeds::DEFAULT_COUNT {
        assert!(all.completed > 5 * all.timed_out, "{all:?}");
        assert!(all.wrong_peer > 0 && all.retried > 0 && all.timed_out > 0 && all.abandoned > 0);
        assert!(all.cancelled > 0 && all.full > 0 && all.reused > 0);
        assert!(all.moved > 0);
    }
}

#[test]
fn a_seed_gives_the_same_run_every_time() {
    for seed in [1, 2, u64::MAX] {
        let outcome = random(seed);
        assert_eq!(outcome, random(seed), "seed {seed}");
    }
    assert_ne!(random(1).trace_hash, random(2).trace_hash);
}

#[test]
fn with_the_real_key_exchange_only_the_bytes_differ() {
    let plan = Plan::pair(lossy());
    let seeded = run(3, &plan, crypto::seeded(3));
    let real = run(3, &plan, Arc::new(crypto::real()));
    assert_ne!(real.trace_hash, seeded.trace_hash);
    let bytes_apart = Outcome {
        trace_hash: seeded.trace_hash,
        ..real
    };
    assert_eq!(bytes_apart, seeded);
}
