use super::*;
use crate::skip::unless_refused;

const SLOTS: u32 = 1000;

#[test]
fn every_route_of_a_circle_is_taken_charged_and_counted() {
    let Some(loaded) = unless_refused(Loaded::new(200, SLOTS, 2)) else {
        return;
    };
    // Two circles of a hundred routes were installed, and one of them was run one and a half times.
    let reasons = loaded.map_bytes().expect("maps that are accounted for");
    assert!(reasons.values().all(|&bytes| bytes > 0));
    assert!(loaded.program.instructions().expect("a program") > 0);
    let frame = loaded.first_frame();
    let tested = loaded.program.test(&frame, 99).expect("a test run");
    assert!(leaves(&tested) && tested.frame != frame);
    let tested = loaded.program.test(&frame, 500).expect("a test run");
    assert!(leaves(&tested) && tested.frame == frame);
}

#[test]
fn the_look_ups_take_the_same_circle() {
    let Some(loaded) = unless_refused(Loaded::new(200, SLOTS, 1)) else {
        return;
    };
    let lookups = lookups::load(&loaded).expect("a program, and its circle");
    let odd = lookups.test(&loaded.first_frame(), 77).expect("a test run");
    let own = loaded
        .program
        .test(&loaded.first_frame(), 77)
        .expect("a test run");
    let endpoints = 26..38;
    assert_eq!(odd.frame[endpoints.clone()], own.frame[endpoints]);
}
