//! Thousands of nodes, without cryptography.

use std::time::Duration;

use towpath_sim::crowd::run;
use towpath_sim::dice::PerMillion;
use towpath_sim::network::Link;

#[test]
fn ten_thousand_nodes_say_something_to_two_others_each() {
    let outcome = run(1, 10_000, 2, Link::perfect(Duration::from_millis(20)));
    println!("{outcome:?}");
    assert_eq!(outcome.delivered, 20_000);
    assert_eq!(outcome.connected, 40_000);
}

#[test]
fn a_crowd_gets_through_on_a_network_that_loses_and_corrupts() {
    let mut link = Link::perfect(Duration::from_millis(20));
    link.loss = PerMillion(10_000);
    link.corruption = PerMillion(10_000);
    link.reordering = (PerMillion(50_000), Duration::from_millis(30));
    let outcome = run(2, 300, 3, link.clone());
    assert_eq!(outcome.delivered, 900);
    assert_eq!(outcome, run(2, 300, 3, link));
}
