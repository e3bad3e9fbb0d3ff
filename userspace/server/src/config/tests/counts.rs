//! Limits that are counts.

use towpath_proto::relay::{AttemptLimits, StrangerLimits};

use super::*;

#[test]
fn counts_in_limits_are_read() {
    let limits = load(
        r#"
        [limits]
        allocations = { per_user = 8, per_network = "unlimited", total = 500 }
        lifetime = { default_s = 120, max_s = 240 }
        permissions_per_allocation = 10
        channels_per_allocation = 16384
        new_peers = { per_second = 5, burst = 7 }
        strangers = { per_source = 1, per_network = 2, total = "unlimited" }
        failed_logins = { per_user = 3, per_source = "unlimited" }
        "#,
        &[],
    )
    .unwrap()
    .limits
    .relay;
    assert_eq!(
        (
            limits.allocations_per_user,
            limits.allocations_per_network,
            limits.allocations_in_total
        ),
        (Some(8), None, Some(500))
    );
    assert_eq!((limits.max_permissions, limits.max_channels), (10, 16_384));
    assert_eq!(limits.default_lifetime.as_secs(), 120);
    assert_eq!(limits.max_lifetime.as_secs(), 240);
    let new_peers = (limits.new_peers.per_second, limits.new_peers.at_once);
    assert_eq!(new_peers, (5, 7));
    let strangers = limits.strangers;
    assert_eq!((strangers.per_source, strangers.per_network), (1, 2));
    assert_eq!(strangers.in_total, StrangerLimits::UNLIMITED);
    let attempts = (limits.attempts.per_user, limits.attempts.per_source);
    assert_eq!(attempts, (3, AttemptLimits::UNLIMITED));
}

#[test]
fn a_count_that_is_left_out_is_as_in_the_default() {
    let limits = load("[limits]\nallocations = { per_user = 8 }", &[]).unwrap();
    let expected = RelayLimits {
        allocations_per_user: Some(8),
        ..default_relay_limits()
    };
    assert_eq!(limits.limits.relay, expected);
}

#[test]
fn counts_can_be_set_by_the_environment() {
    let value = "{ total = 9 }";
    let limits = load("", &[("TOWPATH__LIMITS__ALLOCATIONS", value)]).unwrap();
    assert_eq!(limits.limits.relay.allocations_in_total, Some(9));
}

#[test]
fn counts_that_are_none_are_errors_with_their_place() {
    for (text, parts) in [
        (
            "allocations = { per_user = 0 }",
            ["limits.allocations: per_user", "0 is not between 1 and"],
        ),
        (
            "allocations = { total = \"many\" }",
            [
                "limits.allocations: total",
                "\"many\" is neither a number nor",
            ],
        ),
        (
            "allocations = { total = true }",
            ["a number or \"unlimited\"", ":2:"],
        ),
        (
            "channels_per_allocation = 16385",
            ["limits.channels_per_allocation", "not between 1 and 16384"],
        ),
        (
            "lifetime = { default_s = 59 }",
            ["limits.lifetime: default_s", "not between 60 and"],
        ),
        (
            "lifetime = { default_s = 7200 }",
            ["limits.lifetime", "7200 is longer than max_s 3600"],
        ),
        (
            "failed_logins = { per_user = -1 }",
            ["limits.failed_logins: per_user", "-1 is not between"],
        ),
    ] {
        let shown = error(&format!("[limits]\n{text}"));
        for part in parts {
            assert!(shown.contains(part), "{part:?} in {shown}");
        }
        assert!(shown.contains('^'), "{shown}");
    }
}
