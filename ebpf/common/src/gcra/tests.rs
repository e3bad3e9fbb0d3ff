use super::*;
use core::sync::atomic::AtomicU64;
use proptest::prelude::*;
use std::vec::Vec;

const SECOND: u64 = 1_000_000_000;

fn limit(bits_per_second: u64, burst_bytes: u64) -> LimitWord {
    LimitWord::new(bits_per_second, burst_bytes).unwrap()
}

/// The same bucket in exact arithmetic: time is kept in ticks times the rate, so that the time of a
/// byte is a whole number.
struct Exact {
    rate: u128,
    burst: u128,
    /// In ticks times `rate`.
    spent: u128,
    /// How far, in ticks, rounding may have moved the word away from this by now.
    rounding: u128,
}

const TICKS_TIMES_RATE_PER_BYTE: u128 = 8 * 1_000_000_000 * 64;

impl Exact {
    fn new(rate: u64, limit: LimitWord) -> Self {
        Self {
            rate: rate.into(),
            burst: limit.burst_bytes().into(),
            spent: 0,
            rounding: 2,
        }
    }

    fn change(&mut self, rate: u64, limit: LimitWord) {
        self.spent = self.spent / self.rate * u128::from(rate);
        self.rate = rate.into();
        self.burst = limit.burst_bytes().into();
        self.rounding += 2;
    }

    /// How many ticks are left, or missing, after a packet of `bytes` at `now`; and what would then
    /// be spent.
    fn after(&self, now: u64, bytes: u32) -> (i128, u128) {
        let now = u128::from(now) * 64 * self.rate;
        let earliest = now.saturating_sub(self.burst * TICKS_TIMES_RATE_PER_BYTE);
        let spent = self.spent.max(earliest) + u128::from(bytes) * TICKS_TIMES_RATE_PER_BYTE;
        ((now as i128 - spent as i128) / self.rate as i128, spent)
    }

    /// Takes what the word decided, and whether that was right.
    fn follow(&mut self, now: u64, bytes: u32, decided: Charge) -> bool {
        let (left, spent) = self.after(now, bytes);
        // The word's rate is off by less than 2^-31.
        let allowed = (self.rounding + ((u128::from(now) * 64) >> 31)) as i128;
        match decided {
            Charge::Passed => {
                self.spent = spent;
                self.rounding += 1;
                left >= -allowed
            }
            Charge::Over => left <= allowed,
            Charge::Contended => false,
        }
    }
}

fn rates() -> impl Strategy<Value = u64> {
    prop_oneof![
        64_000..1_000_000_u64,
        1_000_000..1_000_000_000_u64,
        1_000_000_000..400_000_000_000_u64
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Packet { pause: u64, bytes: u32 },
    Limit { rate: u64, burst: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pause = prop_oneof![Just(0), 0..2_000_u64, 0..20_000_000_u64, 0..60 * SECOND];
    let packet = (pause, 28..1500_u32).prop_map(|(pause, bytes)| Step::Packet { pause, bytes });
    let change =
        (rates(), 1500..1_000_000_u64).prop_map(|(rate, burst)| Step::Limit { rate, burst });
    proptest::collection::vec(prop_oneof![40 => packet, 1 => change], 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_word_decides_like_an_exact_bucket_also_while_its_limit_changes(
        rate in rates(), burst in 1500..1_000_000_u64, steps in steps(),
    ) {
        let mut word = limit(rate, burst);
        let mut exact = Exact::new(rate, word);
        let spent = AtomicU64::new(0);
        let mut now = 5 * SECOND;
        for step in steps {
            match step {
                Step::Packet { pause, bytes } => {
                    now += pause;
                    let decided = charge(&spent, word, now, bytes);
                    prop_assert!(exact.follow(now, bytes, decided), "{decided:?} at {now}");
                    prop_assert!(spent.load(core::sync::atomic::Ordering::Relaxed) <= now * 64);
                }
                Step::Limit { rate, burst } => {
                    word = limit(rate, burst);
                    exact.change(rate, word);
                }
            }
        }
    }

    #[test]
    fn what_passes_in_any_window_is_at_most_rate_times_time_and_the_burst(
        rate in rates(),
        burst in 1500..100_000_u64,
        packets in proptest::collection::vec((0..200_000_u64, 28..1500_u32), 1..300),
    ) {
        let word = limit(rate, burst);
        let spent = AtomicU64::new(0);
        let mut now = SECOND;
        let mut passed: Vec<(u64, u64)> = Vec::new();
        for (pause, bytes) in packets {
            now += pause;
            if charge(&spent, word, now, bytes) == Charge::Passed {
                passed.push((now, bytes.into()));
            }
        }
        for (index, (start, _)) in passed.iter().enumerate() {
            let mut sum = 0.0;
            for (end, bytes) in &passed[index..] {
                sum += *bytes as f64;
                let most = (end - start) as f64 * rate as f64 / 8e9 + word.burst_bytes() as f64;
                // Half a tick is up to 0.4 bytes at 400 Gbit/s.
                let rounding = (passed.len() as f64 + 2.0) * rate as f64 / 8e9 / 64.0;
                prop_assert!(sum <= most * 1.000_000_001 + rounding, "{sum} of {most}");
            }
        }
    }

    #[test]
    fn a_refund_leaves_the_budget_as_it_was(
        rate in rates(), before in 0..1500_u32, bytes in 28..1500_u32, now in SECOND..1000 * SECOND,
    ) {
        let word = limit(rate, 3000);
        let spent = AtomicU64::new(0);
        let _ = charge(&spent, word, now, before);
        let held = spent.load(core::sync::atomic::Ordering::Relaxed);
        prop_assert_eq!(charge(&spent, word, now, bytes), Charge::Passed);
        refund(&spent, word, bytes);
        prop_assert_eq!(spent.load(core::sync::atomic::Ordering::Relaxed), held);
    }
}

/// Offers `bytes` every `every` ns for `time` ns from `now` on; what passed.
fn offer(
    spent: &AtomicU64,
    word: LimitWord,
    now: &mut u64,
    (bytes, every, time): (u32, u64, u64),
) -> u64 {
    let end = *now + time;
    let mut passed = 0;
    while *now < end {
        if charge(spent, word, *now, bytes) == Charge::Passed {
            passed += u64::from(bytes);
        }
        *now += every;
    }
    passed
}

#[test]
fn a_limit_raised_after_deep_debt_acts_on_the_next_packets() {
    let (spent, mut now) = (AtomicU64::new(0), 100 * SECOND);
    let slow = limit(64_000, 262_144);
    // The burst is gone and much more was offered: with 64 kbit/s the debt would be half a minute.
    offer(&spent, slow, &mut now, (1400, 10_000, SECOND));
    let fast = limit(100_000_000, 262_144);
    let passed = offer(&spent, fast, &mut now, (1400, 10_000, 10_000_000));
    // The pause the slow limit was just waiting out may count as a pause of the fast one.
    let rate = 10_000_000 * 100 / 8 / 1000;
    let most = rate + fast.burst_bytes();
    assert!(
        (rate - 1400..=most).contains(&passed),
        "{passed} of {rate} to {most} bytes in 10 ms"
    );
}

#[test]
fn a_lowered_limit_acts_on_the_next_packets() {
    let (spent, mut now) = (AtomicU64::new(0), 100 * SECOND);
    let fast = limit(100_000_000, 262_144);
    offer(&spent, fast, &mut now, (1400, 10_000, SECOND));
    let slow = limit(640_000, 262_144);
    let passed = offer(&spent, slow, &mut now, (1400, 10_000, SECOND));
    assert!(
        (78_000..=80_000).contains(&passed),
        "{passed} bytes at 80,000 a second"
    );
}

#[test]
fn a_pause_saves_up_one_burst_and_no_more() {
    let (spent, mut now) = (AtomicU64::new(0), 1000 * SECOND);
    let word = limit(8_000_000, 14_000);
    let burst = offer(&spent, word, &mut now, (1400, 1, 20));
    assert_eq!(burst, 14_000);
    now += 3600 * SECOND;
    assert_eq!(offer(&spent, word, &mut now, (1400, 1, 20)), 14_000);
}

#[test]
fn a_packet_longer_than_the_burst_never_passes() {
    let spent = AtomicU64::new(0);
    let word = limit(8_000_000, 1500);
    assert_eq!(charge(&spent, word, 1000 * SECOND, 1537), Charge::Over);
    assert_eq!(charge(&spent, word, 1000 * SECOND, 1536), Charge::Passed);
}

#[test]
fn without_a_limit_everything_passes_and_nothing_is_written() {
    let spent = AtomicU64::new(7);
    assert_eq!(
        charge(&spent, LimitWord::UNLIMITED, 0, u32::MAX),
        Charge::Passed
    );
    refund(&spent, LimitWord::UNLIMITED, u32::MAX);
    assert_eq!(spent.into_inner(), 7);
}

#[test]
fn a_late_clock_lets_nothing_pass_that_an_early_one_spent() {
    let spent = AtomicU64::new(0);
    let word = limit(8_000_000, 1500);
    let (late, early) = (1000 * SECOND - 5_000_000, 1000 * SECOND);
    // 5 ms are 5000 bytes at this rate, more than the burst.
    assert_eq!(charge(&spent, word, early, 1400), Charge::Passed);
    let held = spent.load(core::sync::atomic::Ordering::Relaxed);
    assert_eq!(charge(&spent, word, late, 100), Charge::Over);
    assert_eq!(spent.load(core::sync::atomic::Ordering::Relaxed), held);
    assert_eq!(charge(&spent, word, early, 100), Charge::Passed);
    assert_eq!(charge(&spent, word, early, 100), Charge::Over);
}

#[test]
fn threads_that_race_for_one_budget_spend_it_exactly() {
    let word = limit(8_000_000, 1_500_000);
    let now = 1000 * SECOND;
    let whole = word.tolerance() / word.cost(100);
    for round in 0..20 {
        let spent = AtomicU64::new(0);
        let racer = |_| {
            let mut passed = 0_u64;
            loop {
                match charge(&spent, word, now, 100) {
                    Charge::Passed => passed += 1,
                    Charge::Contended => {}
                    Charge::Over => return passed,
                }
            }
        };
        let passed: u64 = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..4).map(|n| scope.spawn(move || racer(n))).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).sum()
        });
        assert_eq!(passed, whole, "round {round}");
    }
}

#[test]
fn threads_that_charge_and_refund_leave_exactly_what_they_kept() {
    let word = limit(8_000_000, 150_000_000);
    let now = 1000 * SECOND;
    let spent = AtomicU64::new(0);
    let worker = |thread: u32| {
        let mut kept = 0;
        for n in 0..20_000_u32 {
            let bytes = 28 + (n * 31 + thread) % 1400;
            if charge(&spent, word, now, bytes) == Charge::Passed {
                if n % 3 == 0 {
                    refund(&spent, word, bytes);
                } else {
                    kept += word.cost(bytes);
                }
            }
        }
        kept
    };
    let kept: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|n| scope.spawn(move || worker(n))).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .sum()
    });
    let start = now * 64 - word.tolerance();
    assert_eq!(spent.into_inner(), start + kept);
}
