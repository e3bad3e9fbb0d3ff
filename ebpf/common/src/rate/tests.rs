use super::*;
use proptest::prelude::*;
use std::string::ToString;

/// Ticks that `bytes` take at this rate, as a fraction: numerator and denominator.
fn exact_ticks(bits_per_second: u64, bytes: u64) -> (u128, u128) {
    (
        TICKS_PER_BYTE_AT_1_BIT * u128::from(bytes),
        bits_per_second.into(),
    )
}

/// Evenly over the orders of magnitude.
fn rates() -> impl Strategy<Value = u64> {
    (16_u32..39, any::<u64>()).prop_map(|(magnitude, random)| {
        (1 << magnitude | random & ((1 << magnitude) - 1)).clamp(
            LimitWord::MIN_BITS_PER_SECOND,
            LimitWord::MAX_BITS_PER_SECOND,
        )
    })
}

fn bursts() -> impl Strategy<Value = u64> {
    (10_u32..32, any::<u64>()).prop_map(|(magnitude, random)| {
        (1 << magnitude | random & ((1 << magnitude) - 1))
            .clamp(LimitWord::MIN_BURST_BYTES, LimitWord::MAX_BURST_BYTES)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn rate_and_burst_survive_the_word(rate in rates(), burst in bursts()) {
        let word = LimitWord::new(rate, burst).unwrap();
        let read = word.bits_per_second().unwrap();
        prop_assert!(read.abs_diff(rate) <= rate >> 31, "{rate} reads {read}");
        prop_assert!(word.burst_bytes() >= burst && word.burst_bytes() < burst + 64);
        prop_assert_eq!(LimitWord::from_bits(word.to_bits()), word);
        prop_assert!(!word.is_unlimited());
        // What was read is written as the same word: nothing creeps when settings are copied.
        let again = LimitWord::new(read.clamp(
            LimitWord::MIN_BITS_PER_SECOND, LimitWord::MAX_BITS_PER_SECOND), word.burst_bytes());
        prop_assert!(again.unwrap().bits_per_second().unwrap().abs_diff(read) <= read >> 31);
    }

    #[test]
    fn cost_is_the_exact_time_but_for_half_a_tick(rate in rates(), bytes in 0_u32..=65_575) {
        let word = LimitWord::new(rate, 1500).unwrap();
        let (ticks, per) = exact_ticks(rate, bytes.into());
        let exact = ticks as f64 / per as f64;
        let error = (word.cost(bytes) as f64 - exact).abs();
        prop_assert!(error <= 0.5 + exact * 1e-9, "{rate} bit/s, {bytes} bytes: {error} ticks");
    }

    #[test]
    fn tolerance_is_the_time_of_the_burst(rate in rates(), burst in bursts()) {
        let word = LimitWord::new(rate, burst).unwrap();
        let (ticks, per) = exact_ticks(rate, word.burst_bytes());
        let exact = ticks as f64 / per as f64;
        let error = (word.tolerance() as f64 - exact).abs();
        prop_assert!(error <= 1.0 + exact * 1e-9, "{rate} bit/s, {burst} bytes: {error} ticks");
    }

    #[test]
    fn faster_never_costs_more(rate in rates(), bytes in 0_u32..=65_575) {
        let slow = LimitWord::new(rate, 1500).unwrap();
        let fast = LimitWord::new((rate + rate / 1000).min(LimitWord::MAX_BITS_PER_SECOND), 1500);
        prop_assert!(fast.unwrap().cost(bytes) <= slow.cost(bytes));
    }

    /// The kernel reads whatever somebody wrote into the map.
    #[test]
    fn any_bits_can_be_read(bits in any::<u64>(), bytes in any::<u32>()) {
        let word = LimitWord::from_bits(bits);
        let _ = (word.cost(bytes), word.tolerance(), word.burst_bytes(), word.is_unlimited());
        prop_assert_eq!(word.bits_per_second().is_none(), word.is_unlimited());
        let _ = std::format!("{word:?}");
    }
}

#[test]
fn common_rates_are_read_as_they_were_written() {
    for rate in [
        64_000,
        1_000_000,
        20_000_000,
        50_000_000,
        123_456_789,
        1_000_000_000,
        2_000_000_000,
    ] {
        let word = LimitWord::new(rate, 262_144).unwrap();
        assert_eq!(word.bits_per_second(), Some(rate));
        assert_eq!(word.burst_bytes(), 262_144);
    }
}

#[test]
fn a_byte_at_64_kbit_takes_125_microseconds() {
    let word = LimitWord::new(64_000, 1500).unwrap();
    assert_eq!(word.cost(1) >> TICKS_PER_NANOSECOND_LOG2, 125_000);
    assert_eq!(word.cost(1500) >> TICKS_PER_NANOSECOND_LOG2, 187_500_000);
}

#[test]
fn zero_is_no_limit() {
    assert!(LimitWord::UNLIMITED.is_unlimited());
    assert_eq!(LimitWord::default(), LimitWord::UNLIMITED);
    assert_eq!(LimitWord::UNLIMITED.cost(1500), 0);
    assert_eq!(LimitWord::UNLIMITED.bits_per_second(), None);
}

#[test]
fn what_is_out_of_range_is_refused_with_the_range() {
    let rate = |bits_per_second| LimitError::Rate { bits_per_second };
    assert_eq!(LimitWord::new(63_999, 1500), Err(rate(63_999)));
    assert_eq!(LimitWord::new(0, 1500), Err(rate(0)));
    let too_fast = LimitWord::MAX_BITS_PER_SECOND + 1;
    assert_eq!(LimitWord::new(too_fast, 1500), Err(rate(too_fast)));
    let burst = |burst_bytes| LimitError::Burst { burst_bytes };
    assert_eq!(LimitWord::new(64_000, 1499), Err(burst(1499)));
    assert_eq!(LimitWord::new(64_000, 1 << 32), Err(burst(1 << 32)));
    assert_eq!(
        rate(63_999).to_string(),
        "rate of 63999 bit/s, it must be 64000 (64 kbit/s) to 400000000000 (400 Gbit/s)"
    );
}
