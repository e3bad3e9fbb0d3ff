use super::*;
use crate::bandwidth::{Bound, Depth, Refused, reserve};

fn peer(number: u8) -> PeerId {
    PeerId::from_bytes([number; 32])
}

fn limit(bits_per_second: u64, burst_bytes: u64) -> LimitWord {
    LimitWord::new(bits_per_second, burst_bytes).unwrap()
}

fn allowance(up: LimitWord) -> Allowance {
    Allowance {
        up,
        ..Allowance::UNLIMITED
    }
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_secs(seconds)
}

fn charge(bandwidth: &Bandwidth, account: &Account, now: Timestamp, bytes: u32) -> Option<Refused> {
    let (own, all) = (account.budget(Way::Up), bandwidth.budget(Way::Up));
    reserve(now, &own, &all, bytes, Depth::Whole).err()
}

#[test]
fn nobody_is_unlimited_where_there_is_a_default() {
    let config = BandwidthConfig {
        default: allowance(limit(1_000_000, 1500)),
        ..BandwidthConfig::default()
    };
    let bandwidth = Bandwidth::new(&config).unwrap();
    let account = bandwidth.enter(at(1), peer(1));
    assert_eq!(charge(&bandwidth, &account, at(1), 1500), None);
    let refused = charge(&bandwidth, &account, at(1), 1500).unwrap();
    assert_eq!(refused.by, Bound::Peer);
    assert!(refused.until > at(1));
    assert_eq!(charge(&bandwidth, &account, refused.until, 1500), None);
}

#[test]
fn who_waits_for_one_bucket_takes_nothing_from_the_other() {
    let config = BandwidthConfig {
        up: limit(1_000_000, 3000),
        ..BandwidthConfig::default()
    };
    let bandwidth = Bandwidth::new(&config).unwrap();
    bandwidth
        .set(peer(1), allowance(limit(64_000, 1500)))
        .unwrap();
    let (slow, fast) = (
        bandwidth.enter(at(1), peer(1)),
        bandwidth.enter(at(1), peer(2)),
    );
    assert_eq!(charge(&bandwidth, &slow, at(1), 1500), None);
    for _ in 0..100 {
        let refused = charge(&bandwidth, &slow, at(1), 1500).unwrap();
        assert_eq!(refused.by, Bound::Peer);
    }
    assert_eq!(charge(&bandwidth, &fast, at(1), 1500), None);
    let spent = slow.direction(Way::Up).spent_until.load(Ordering::Relaxed);
    bandwidth
        .set(peer(1), allowance(limit(100_000_000, 9000)))
        .unwrap();
    let soon = at(1) + Duration::from_millis(1);
    let refused = charge(&bandwidth, &slow, soon, 1500).unwrap();
    assert_eq!(refused.by, Bound::Everybody);
    let after = slow.direction(Way::Up).spent_until.load(Ordering::Relaxed);
    assert_eq!(spent, after);
}

#[test]
fn more_than_a_burst_passes_when_it_has_been_earned() {
    let bandwidth = Bandwidth::default();
    bandwidth
        .set(peer(1), allowance(limit(64_000, 1500)))
        .unwrap();
    let account = bandwidth.enter(at(9), peer(1));
    assert_eq!(charge(&bandwidth, &account, at(9), 9000), None);
    let refused = charge(&bandwidth, &account, at(9), 9000).unwrap();
    let earned = Duration::from_nanos(9000 * 8 * 1_000_000_000 / 64_000);
    assert_eq!(refused.until, at(9) + earned);
}

#[test]
fn what_is_set_for_a_peer_stays_and_what_others_used_is_forgotten() {
    let bandwidth = Bandwidth::default();
    bandwidth
        .set(peer(1), allowance(limit(64_000, 1500)))
        .unwrap();
    bandwidth.set_priority(peer(2), Priority::Bulk).unwrap();
    for number in 1..=3 {
        bandwidth.enter(at(1), peer(number));
        bandwidth.leave(at(2), peer(number));
    }
    assert_eq!(bandwidth.len(), 3);
    assert!(bandwidth.usage(peer(3)).is_some(), "still remembered");
    bandwidth.enter(at(1000), peer(9));
    assert!(bandwidth.usage(peer(3)).is_none());
    assert_eq!(bandwidth.len(), 3);
    let kept = bandwidth.enter(at(2000), peer(1));
    assert_eq!(kept.limit(Way::Up), limit(64_000, 1500));
    bandwidth.leave(at(2000), peer(1));
    bandwidth.leave(at(2000), peer(9));
    bandwidth.unset(at(2000), peer(1));
    bandwidth.unset(at(2000), peer(2));
    bandwidth.enter(at(9000), peer(4));
    assert_eq!(bandwidth.len(), 1);
    assert_eq!(bandwidth.allowance(peer(1)), Allowance::UNLIMITED);
}

#[test]
fn hanging_up_does_not_fill_a_bucket() {
    let config = BandwidthConfig {
        default: allowance(limit(64_000, 1500)),
        ..BandwidthConfig::default()
    };
    let bandwidth = Bandwidth::new(&config).unwrap();
    let account = bandwidth.enter(at(1), peer(1));
    assert_eq!(charge(&bandwidth, &account, at(1), 1500), None);
    bandwidth.leave(at(1), peer(1));
    let account = bandwidth.enter(at(1), peer(1));
    assert!(charge(&bandwidth, &account, at(1), 1500).is_some());
}

#[test]
fn those_without_connections_are_bounded() {
    let bandwidth = Bandwidth::default();
    for number in 0..2 * MAX_IDLE as u64 {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&number.to_be_bytes());
        bandwidth.enter(at(1), PeerId::from_bytes(id));
        bandwidth.leave(at(1), PeerId::from_bytes(id));
    }
    assert_eq!(bandwidth.len(), MAX_IDLE);
}

#[test]
fn a_peer_that_comes_and_goes_is_remembered_from_when_it_went_last() {
    let bandwidth = Bandwidth::default();
    for second in 0..3000 {
        bandwidth.enter(at(second), peer(1));
        bandwidth.leave(at(second), peer(1));
    }
    bandwidth.enter(at(3200), peer(2));
    assert!(bandwidth.usage(peer(1)).is_some());
    bandwidth.enter(at(3300), peer(2));
    assert!(bandwidth.usage(peer(1)).is_none());
}

#[test]
fn shards_that_charge_at_once_charge_one_budget() {
    const BYTES: u32 = 1000;
    let config = BandwidthConfig {
        up: limit(64_000, 64_000),
        ..BandwidthConfig::default()
    };
    let bandwidth = Bandwidth::new(&config).unwrap();
    let passed: usize = std::thread::scope(|scope| {
        let shard = |number: u8| {
            let bandwidth = &bandwidth;
            scope.spawn(move || {
                let account = bandwidth.enter(at(9), peer(number % 2));
                let tries = 0..1000;
                let refused = |_: &i32| charge(bandwidth, &account, at(9), BYTES).is_some();
                tries.filter(|one| !refused(one)).count()
            })
        };
        let shards: Vec<_> = (0..4).map(shard).collect();
        let join = |shard: std::thread::ScopedJoinHandle<'_, usize>| shard.join().unwrap();
        shards.into_iter().map(join).sum()
    });
    assert_eq!(passed, 64);
}

#[test]
fn shares_are_made_while_somebody_waits_and_lifted_when_nobody_does() {
    let config = BandwidthConfig {
        up: limit(9_000_000, 64_000),
        ..BandwidthConfig::default()
    };
    let bandwidth = Bandwidth::new(&config).unwrap();
    bandwidth.set_priority(peer(1), Priority::Control).unwrap();
    bandwidth.set_priority(peer(2), Priority::Bulk).unwrap();
    let accounts = [1, 2, 3].map(|number| bandwidth.enter(at(1), peer(number)));
    let mut now = at(1);
    let begin = bandwidth.saturated(now, Way::Up);
    assert_eq!(begin, now + Duration::from_millis(20));
    assert_eq!(bandwidth.adapt(now), [Some(begin), None]);
    // The third sends 1 Mbit/s and never waits, the others take what they get.
    let mut rates = [4_000_000, 4_000_000, 1_000_000];
    for _ in 0..100 {
        for (account, rate) in accounts.iter().zip(rates) {
            let mut tally = Tally::default();
            tally.count(now, rate / 8 / 50, 0);
            bandwidth.count(Some(account), Way::Up, &tally);
        }
        for greedy in &accounts[..2] {
            greedy.set_waited(Way::Up);
        }
        now = now + Duration::from_millis(20);
        assert!(bandwidth.adapt(now)[0].is_some());
        let share = |account: &Arc<Account>| account.limit(Way::Up).bits_per_second();
        for (rate, account) in rates.iter_mut().zip(&accounts).take(2) {
            *rate = share(account).map_or(*rate, |share| share as u32);
        }
    }
    let near = |rate: u32, expected: u32| rate.abs_diff(expected) < 100_000;
    assert!(
        near(rates[0], 6_400_000) && near(rates[1], 1_600_000),
        "{rates:?}"
    );
    let most = accounts[2].limit(Way::Up).bits_per_second().unwrap();
    assert!(most > 3_000_000, "{most}: its whole part is open to it");
    let mut steps = 0;
    while bandwidth.adapt(now)[0].is_some() {
        now = now + Duration::from_millis(20);
        steps += 1;
    }
    assert!((10..60).contains(&steps), "{steps}");
    assert!(
        accounts
            .iter()
            .all(|account| account.limit(Way::Up).is_unlimited())
    );
}

#[test]
fn limits_that_make_no_sense_are_refused_with_the_value_and_the_rule() {
    let mut config = BandwidthConfig::default();
    config.sharing.weights = [4, 0, 1];
    let error = Bandwidth::new(&config).unwrap_err().to_string();
    assert_eq!(error, "a weight of 0 for interactive, it must be 1 to 256");
    let bandwidth = Bandwidth::new(&BandwidthConfig {
        max_own: 1,
        ..BandwidthConfig::default()
    });
    let bandwidth = bandwidth.unwrap();
    let high = Allowance {
        up: limit(64_000, 1500),
        down: LimitWord::UNLIMITED,
        floor: Some(65_000),
    };
    let error = bandwidth.set(peer(1), high).unwrap_err().to_string();
    let expected = "a floor of 65000 bit/s is above the limit of 64000 bit/s";
    assert_eq!(error, expected);
    bandwidth.set(peer(1), Allowance::UNLIMITED).unwrap();
    bandwidth.set(peer(1), Allowance::UNLIMITED).unwrap();
    let full = bandwidth.set(peer(2), Allowance::UNLIMITED);
    assert_eq!(full, Err(BandwidthError::TooManyPeers(1)));
    let full = bandwidth.set_priority(peer(2), Priority::Control);
    assert_eq!(full, Err(BandwidthError::TooManyPeers(1)));
}

#[test]
fn what_is_used_is_counted_by_peer_and_by_class() {
    let bandwidth = Bandwidth::default();
    bandwidth.set_priority(peer(1), Priority::Bulk).unwrap();
    let account = bandwidth.enter(at(1), peer(1));
    let mut tally = Tally::default();
    tally.count(at(3), 1228, 1200);
    tally.count(at(5), 128, 100);
    bandwidth.count(Some(&account), Way::Up, &tally);
    bandwidth.count(None, Way::Down, &tally);
    let usage = bandwidth.usage(peer(1)).unwrap();
    assert_eq!((usage.up.packets, usage.up.bytes), (2, 1356));
    assert_eq!((usage.up.last, usage.down.last), (Some(at(5)), None));
    assert_eq!(bandwidth.usage_of_class(Priority::Bulk).up.bytes, 1356);
    assert_eq!(bandwidth.usage_of_class(Priority::Control).down.packets, 2);
    let total = bandwidth.usage_in_total();
    assert_eq!((total.up.bytes, total.down.bytes), (1356, 1356));
}
