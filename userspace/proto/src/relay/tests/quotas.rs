use std::sync::Arc;
use std::time::Duration;

use super::lab::*;
use crate::relay::{AttemptLimits, DropReason, EndReason, Notice, Quota, QuotaUse, RelayShared};
use crate::wire::Method;
use crate::wire::attribute::EvenPort;

fn refusals(lab: &Lab, quota: Quota) -> u64 {
    lab.relay.counters.refusals(quota).value()
}

/// Asks for an allocation as bob, and returns the code.
fn ask_as_bob(lab: &mut Lab, client: &str) -> u16 {
    let request = lab.signed_by("bob", "other", client, Method::ALLOCATE, &[udp()]);
    code(&lab.ask(client, &request).unwrap())
}

#[test]
fn a_networks_quota_is_refused_with_486_and_holds_for_all_its_users() {
    let mut config = config();
    config.limits.allocations_per_network = Some(2);
    let mut lab = Lab::new(config);
    lab.allocate("198.18.0.1:1");
    assert_eq!(ask_as_bob(&mut lab, "198.18.0.255:1"), 0);
    assert_eq!(ask_as_bob(&mut lab, "198.18.0.7:1"), 486);
    assert_eq!(ask_as_bob(&mut lab, "198.18.1.7:1"), 0, "the next network");
    assert_eq!(refusals(&lab, Quota::NetworkAllocations), 1);
    lab.request("198.18.0.1:1", Method::REFRESH, &[lifetime(0)]);
    assert_eq!(ask_as_bob(&mut lab, "198.18.0.7:1"), 0);
}

#[test]
fn the_total_is_refused_with_508_over_all_shards() {
    let mut config = config();
    config.shards = 2;
    config.limits.allocations_in_total = Some(3);
    let shared = Arc::new(RelayShared::new(&config));
    let mut labs = [0, 1].map(|shard| Lab::of_shard(config.clone(), Arc::clone(&shared), shard));
    labs[0].allocate("198.18.0.1:1");
    labs[0].allocate("198.18.0.1:2");
    labs[1].allocate("198.18.0.1:3");
    for (n, lab) in labs.iter_mut().enumerate() {
        assert_eq!(ask_as_bob(lab, &format!("198.18.9.9:{}", 10 + n)), 508);
        assert_eq!(refusals(lab, Quota::TotalAllocations), 1);
    }
    let (allocations, users, networks) = (3, 1, 1);
    let expected = QuotaUse {
        allocations,
        users,
        networks,
    };
    assert_eq!(shared.quotas().in_use(), expected);
    labs[0].request("198.18.0.1:1", Method::REFRESH, &[lifetime(0)]);
    assert_eq!(ask_as_bob(&mut labs[1], "198.18.9.9:11"), 0);
}

#[test]
fn quotas_are_empty_once_every_allocation_has_ended_one_way_or_another() {
    let mut lab = Lab::new(config());
    let pair = [udp(), raw(&EvenPort { reserve_next: true })];
    for n in 0..20 {
        let client = format!("198.18.{n}.1:1");
        match n % 3 {
            0 => drop(lab.allocate(&client)),
            1 => drop(lab.request(&client, Method::ALLOCATE, &pair)),
            _ => {
                lab.shell = Shell::Fails(crate::relay::PortError::Other);
                let refused = lab.request(&client, Method::ALLOCATE, &pair);
                assert_eq!(code(&refused), 508);
                lab.shell = Shell::Opens;
            }
        }
        if n % 2 == 0 {
            lab.request(&client, Method::REFRESH, &[lifetime(0)]);
        }
    }
    assert_ne!(lab.shared.quotas().in_use(), QuotaUse::default());
    lab.secs(3601);
    assert_eq!(lab.shared.quotas().in_use(), QuotaUse::default());
}

#[test]
fn limits_of_one_allocation_are_counted_by_what_was_refused() {
    let mut config = config();
    config.limits.max_permissions = 2;
    config.limits.max_channels = 1;
    let mut lab = Lab::new(config);
    lab.allocate(CLIENT);
    assert_eq!(lab.bind(CLIENT, 0x4000, "9.9.9.1:1"), 0);
    assert_eq!(lab.bind(CLIENT, 0x4001, "9.9.9.1:2"), 508);
    assert_eq!(lab.permit(CLIENT, &["9.9.9.2:1", "9.9.9.3:1"]), 508);
    assert_eq!(refusals(&lab, Quota::Channels), 1);
    assert_eq!(refusals(&lab, Quota::Permissions), 1);
}

#[test]
fn an_allocation_comes_by_new_peers_at_its_rate_only() {
    let mut config = config();
    config.limits.new_peers.per_second = 2;
    config.limits.new_peers.at_once = 4;
    let mut lab = Lab::new(config);
    lab.allocate(CLIENT);
    assert_eq!(lab.permit(CLIENT, &["9.9.9.1:1", "9.9.9.2:1"]), 0);
    assert_eq!(lab.bind(CLIENT, 0x4000, "9.9.9.1:1"), 0);
    lab.client_sends(CLIENT, &send_indication("9.9.9.2:1", b"x"))
        .unwrap();
    // What is known already goes on.
    assert_eq!(lab.permit(CLIENT, &["9.9.9.1:1", "9.9.9.2:1"]), 0);
    assert_eq!(lab.bind(CLIENT, 0x4000, "9.9.9.1:1"), 0);
    lab.client_sends(CLIENT, &send_indication("9.9.9.2:1", b"x"))
        .unwrap();
    // What is new has to wait.
    assert_eq!(lab.permit(CLIENT, &["9.9.9.3:1"]), 508);
    assert_eq!(lab.bind(CLIENT, 0x4001, "9.9.9.1:2"), 508);
    let search = send_indication("9.9.9.2:2", b"x");
    assert!(lab.client_sends(CLIENT, &search).is_none());
    assert!(lab.client_sends(CLIENT, &search).is_none());
    assert_eq!(lab.drops(DropReason::TooManyNewPeers), 2);
    assert_eq!(refusals(&lab, Quota::NewPeers), 4);
    lab.secs(1);
    assert_eq!(lab.permit(CLIENT, &["9.9.9.3:1"]), 0);
    lab.client_sends(CLIENT, &search).unwrap();
}

#[test]
fn whoever_guesses_a_password_is_locked_out_there_and_learns_nothing() {
    let mut config = config();
    config.limits.attempts.per_user = 1;
    let mut lab = Lab::new(config);
    let guess = |lab: &mut Lab, password: &str, client: &str| {
        let request = lab.signed_by("alice", password, client, Method::ALLOCATE, &[udp()]);
        lab.ask(client, &request).unwrap()
    };
    // An allocation that exists goes on.
    lab.allocate("198.18.0.1:9");
    for n in 0..30 {
        let answer = guess(&mut lab, &format!("guess {n}"), "198.18.0.1:1");
        assert_eq!(code(&answer), 401);
    }
    assert_eq!(refusals(&lab, Quota::FailedLogins), 20);
    let [wrong, right] =
        ["wrong", "secret"].map(|password| guess(&mut lab, password, "198.18.0.1:1"));
    assert_eq!((code(&wrong), code(&right)), (401, 401));
    assert_eq!(wrong.len(), right.len());
    assert_eq!(
        code(&lab.request("198.18.0.1:9", Method::REFRESH, &[])),
        0,
        "its own client is known"
    );
    // Other users there, and the same user elsewhere, are not concerned.
    assert_eq!(ask_as_bob(&mut lab, "198.18.0.1:2"), 0);
    assert_eq!(code(&guess(&mut lab, "secret", "198.18.0.2:1")), 0);
    lab.secs(2);
    assert_eq!(code(&guess(&mut lab, "secret", "198.18.0.1:1")), 0);
}

#[test]
fn whoever_tries_one_password_on_many_users_is_locked_out_too() {
    let mut config = config();
    config.limits.attempts.per_source = 2;
    let mut lab = Lab::new(config);
    for n in 0..25 {
        let name = format!("user{n}");
        let request = lab.signed_by(&name, "123456", CLIENT, Method::ALLOCATE, &[udp()]);
        assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 401);
    }
    assert_eq!(refusals(&lab, Quota::FailedLogins), 5);
    assert_eq!(ask_as_bob(&mut lab, "198.18.0.1:2"), 401);
    lab.secs(1);
    assert_eq!(ask_as_bob(&mut lab, "198.18.0.1:2"), 0);
}

#[test]
fn nobody_is_locked_out_by_requests_without_a_nonce_of_their_own() {
    let mut config = config();
    config.limits.attempts = AttemptLimits {
        per_user: 1,
        per_source: 1,
    };
    let mut lab = Lab::new(config);
    // Signed for another client: the nonce is not this one's.
    let stolen = lab.signed_by("alice", "wrong", "198.18.7.7:7", Method::ALLOCATE, &[udp()]);
    for _ in 0..100 {
        assert_eq!(code(&lab.ask(CLIENT, &stolen).unwrap()), 438);
        let unsigned = plain(Method::ALLOCATE, &[udp()]);
        assert_eq!(code(&lab.ask(CLIENT, &unsigned).unwrap()), 401);
    }
    lab.allocate(CLIENT);
}

#[test]
fn clients_with_an_allocation_are_answered_when_strangers_have_used_up_the_total() {
    let mut config = config();
    config.limits.strangers.in_total = 2;
    let mut lab = Lab::new(config);
    lab.allocate(CLIENT);
    let binding = plain(Method::BINDING, &[]);
    for n in 0..200 {
        lab.ask(&format!("198.19.{n}.1:1"), &binding);
    }
    assert!(lab.drops(DropReason::TooManyInAll) > 150);
    assert!(lab.ask("198.19.201.1:1", &binding).is_none());
    assert!(lab.ask(CLIENT, &binding).is_some());
}

#[test]
fn strangers_budgets_are_those_of_all_shards_together() {
    let mut config = config();
    config.shards = 2;
    config.limits.strangers.per_source = 10;
    let shared = Arc::new(RelayShared::new(&config));
    let mut labs = [0, 1].map(|shard| Lab::of_shard(config.clone(), Arc::clone(&shared), shard));
    let binding = plain(Method::BINDING, &[]);
    let answers = (0..100).filter(|n| labs[n % 2].ask(CLIENT, &binding).is_some());
    assert_eq!(answers.count(), 40);
}

#[test]
fn the_end_of_an_allocation_tells_how_long_it_lasted_and_what_its_user_did() {
    let mut lab = Lab::new(config());
    lab.allocate(CLIENT);
    lab.bind(CLIENT, 0x4000, PEER);
    lab.client_sends(CLIENT, &channel_data(0x4000, b"12345"));
    lab.peer_sends(0, b"1234567");
    lab.secs(5);
    lab.allocate("198.18.0.1:2");
    lab.client_sends(CLIENT, &channel_data(0x4000, b"123"));
    for client in [CLIENT, "198.18.0.1:2"] {
        lab.request(client, Method::REFRESH, &[lifetime(0)]);
    }
    let ended: Vec<_> = lab
        .notices
        .into_iter()
        .filter_map(|notice| match notice {
            Notice::AllocationEnded {
                reason,
                lasted,
                metered,
                ..
            } => Some((reason, lasted, metered.up_bytes, metered.down_bytes)),
            Notice::AllocationMade { .. }
            | Notice::AllocationMoved { .. }
            | Notice::AddressEnded { .. } => None,
        })
        .collect();
    let seconds = Duration::from_secs;
    assert_eq!(
        ended,
        [
            (EndReason::Deleted, seconds(5), 8, 7),
            (EndReason::Deleted, seconds(0), 3, 0),
        ]
    );
}
