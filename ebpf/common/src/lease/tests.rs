use super::*;
use core::sync::atomic::AtomicU64;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const SECOND: u64 = 1_000_000_000;
const LONGEST_PACKET: u64 = 1500;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_passes_in_any_window_is_off_by_less_than_a_quantum_and_a_packet_per_holder(
        rate in 1_000_000..10_000_000_000_u64,
        burst in 10_000..2_000_000_u64,
        holders in 1..9_usize,
        packets in proptest::collection::vec((0..100_000_u64, 0..8_usize, 28..1500_u32), 50..400),
    ) {
        let limit = LimitWord::new(rate, burst).unwrap();
        let spent = AtomicU64::new(0);
        let mut leases = vec![Lease::EMPTY; holders];
        let mut now = SECOND;
        let mut passed: Vec<(u64, u64)> = Vec::new();
        for (pause, holder, bytes) in packets {
            now += pause;
            if leases[holder % holders].charge(&spent, limit, now, bytes) == Charge::Passed {
                passed.push((now, bytes.into()));
            }
        }
        let slack = holders as f64 * (f64::from(quantum(limit)) + LONGEST_PACKET as f64);
        for (index, (start, _)) in passed.iter().enumerate() {
            let mut sum = 0.0;
            for (end, bytes) in &passed[index..] {
                sum += *bytes as f64;
                let most = (end - start) as f64 * rate as f64 / 8e9 + limit.burst_bytes() as f64;
                prop_assert!(sum <= most * 1.000_000_001 + slack + 400.0, "{sum} of {most}");
            }
        }
    }
}

#[test]
fn in_the_long_run_holders_pass_what_the_limit_says_and_the_error_does_not_grow() {
    let rate = 80_000_000;
    let limit = LimitWord::new(rate, 262_144).unwrap();
    let spent = AtomicU64::new(0);
    let mut leases = [Lease::EMPTY; 8];
    for seconds in [1, 10, 60] {
        let begin = 100 * SECOND;
        // Without a burst at the start, which is not what is looked at.
        spent.store(begin << 6, core::sync::atomic::Ordering::Relaxed);
        leases.fill(Lease::EMPTY);
        let (mut now, mut passed, mut n) = (begin, 0, 0_usize);
        // Ten times as much as may pass, from holders of very unequal load.
        while now < begin + seconds * SECOND {
            let holder = if n.is_multiple_of(50) { n / 50 % 8 } else { 0 };
            if leases[holder].charge(&spent, limit, now, 1000) == Charge::Passed {
                passed += 1000;
            }
            (now, n) = (now + 10_000, n + 1);
        }
        let exact = seconds * rate / 8;
        let slack = 8 * (u64::from(quantum(limit)) + 1000);
        assert!(
            passed <= exact && exact - passed <= slack,
            "{passed} of {exact} bytes"
        );
    }
}

#[test]
fn a_packet_longer_than_a_quantum_is_paid_whole() {
    let limit = LimitWord::new(8_000_000, 16_000).unwrap();
    let spent = AtomicU64::new(0);
    let mut lease = Lease::EMPTY;
    assert_eq!(quantum(limit), 1000);
    assert_eq!(lease.charge(&spent, limit, SECOND, 1400), Charge::Passed);
    assert_eq!(lease.bytes(), 0);
    assert_eq!(lease.charge(&spent, limit, SECOND, 400), Charge::Passed);
    assert_eq!(lease.bytes(), 600);
    lease.refund(limit, 400);
    assert_eq!(lease.bytes(), 1000);
}

#[test]
fn without_a_limit_nothing_is_taken_and_what_was_held_is_forgotten() {
    let spent = AtomicU64::new(0);
    let mut lease = Lease::from_bytes(500);
    assert_eq!(
        lease.charge(&spent, LimitWord::UNLIMITED, SECOND, 1400),
        Charge::Passed
    );
    assert_eq!((lease, spent.into_inner()), (Lease::EMPTY, 0));
}
