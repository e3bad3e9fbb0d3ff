//! Random clients against one relay: every seed is another network, relay and crowd.
//!
//! `TOWPATH_SIM_SEEDS=100000` runs more seeds, `TOWPATH_SIM_SEED=7` runs one.

use std::collections::BTreeMap;

use towpath_sim::kernel::KernelPath;
use towpath_sim::scenario::{Outcome, run, run_with};
use towpath_sim::seeds;

/// What must have happened in a run of [`seeds::DEFAULT_COUNT`] seeds, and how often at least: a
/// simulation in which nothing happens finds nothing.
const MUST_HAPPEN: &[(&str, u64)] = &[
    ("success 0x001", 1_000),
    ("success 0x003", 1_000),
    ("success 0x004", 1_000),
    ("success 0x008", 1_000),
    ("success 0x009", 1_000),
    ("to peer", 5_000),
    ("hairpin", 1_000),
    ("over limit", 1_000),
    ("limit change", 1_000),
    ("kernel path", 5_000),
    ("reload", 500),
    ("even port", 1_000),
    ("by token", 50),
    ("dual", 500),
    ("one family of two", 50),
    ("one of two addresses ended", 200),
    ("channel data to client", 1_000),
    ("data indication", 1_000),
    ("resumed", 500),
    ("resumed on another shard", 100),
    ("moved", 200),
    ("drop moves_too_often", 5),
    ("error 405 0x003", 100),
    ("icmp error", 100),
    ("dont fragment", 100),
    ("drop channel_not_bound", 1_000),
    ("drop no_permission_from_peer", 1_000),
    ("drop own_address", 500),
    ("drop wrong_fingerprint", 100),
    ("error 400 0x009", 20),
    ("error 401 0x003", 1_000),
    ("error 403 0x008", 100),
    ("error 403 0x009", 100),
    ("error 437 0x003", 100),
    ("error 437 0x004", 100),
    ("error 438 0x008", 20),
    ("error 440 0x003", 20),
    ("error 441 0x004", 20),
    ("error 442 0x003", 20),
    ("error 443 0x008", 20),
    ("error 486 0x003", 20),
    ("error 508 0x003", 20),
    ("error 508 0x008", 20),
];

#[test]
fn random_clients_get_what_the_reference_says_and_leave_nothing_behind() {
    let (mut coverage, mut runs) = (BTreeMap::<String, u64>::new(), 0);
    let (mut datagrams, mut payloads, mut virtual_s) = (0, 0, 0);
    for seed in seeds::from_environment() {
        let outcome = run(seed);
        for (what, count) in outcome.coverage {
            *coverage.entry(what).or_default() += count;
        }
        runs += 1;
        datagrams += outcome.datagrams;
        payloads += outcome.payloads;
        virtual_s += outcome.virtual_time.as_secs();
    }
    println!(
        "{runs} runs, {datagrams} datagrams, {payloads} payloads, {virtual_s} s: {coverage:#?}"
    );
    if runs >= seeds::DEFAULT_COUNT {
        for (what, at_least) in MUST_HAPPEN {
            let count = coverage.get(*what).copied().unwrap_or(0);
            assert!(
                count >= *at_least,
                "{what} happened {count} times, not {at_least}"
            );
        }
    }
}

#[test]
fn the_kernel_path_changes_nothing_that_anybody_can_see() {
    let mut forwarded = 0;
    for seed in 0..200 {
        let taken = run_with(seed, KernelPath::Taken);
        assert_eq!(taken, run_with(seed, KernelPath::Watched), "seed {seed}");
        forwarded += taken.coverage.get("kernel path").copied().unwrap_or(0);
    }
    assert!(forwarded > 2_000, "{forwarded} packets took a route");
}

#[test]
fn a_seed_gives_the_same_run_every_time() {
    for seed in [1, 2, 3, u64::MAX] {
        let outcome: Outcome = run(seed);
        assert_eq!(outcome, run(seed), "seed {seed}");
        assert!(outcome.datagrams > 0);
    }
}

#[test]
fn another_seed_gives_another_run() {
    assert_ne!(run(1).trace_hash, run(2).trace_hash);
}
