use proptest::prelude::*;

use super::*;

const MTU: u32 = 1200;

/// Lets whoever's turn it is send packets of this length for so many packets; who sent how many bytes.
fn serve(schedule: &mut Scheduler, weights: &[u32], packet: u32, packets: usize) -> Vec<u64> {
    let mut sent = vec![0; weights.len()];
    for _ in 0..packets {
        let key = schedule
            .front(|key| 1500 * weights[key as usize])
            .expect("somebody wants to send");
        sent[key as usize] += u64::from(packet);
        schedule.sent(packet);
    }
    sent
}

#[test]
fn shares_are_as_weights_are() {
    let weights = [4, 2, 1];
    let mut schedule = Scheduler::default();
    for key in 0..3 {
        schedule.add(key);
    }
    let sent = serve(&mut schedule, &weights, MTU, 70_000);
    for (bytes, weight) in sent.iter().zip(weights) {
        let expected = 10_000 * u64::from(weight * MTU);
        assert!(bytes.abs_diff(expected) < 20_000, "{sent:?}");
    }
}

#[test]
fn long_packets_do_not_get_more_than_short_ones() {
    let mut schedule = Scheduler::default();
    schedule.add(0);
    schedule.add(1);
    let mut sent = [0u64; 2];
    for _ in 0..50_000 {
        let key = schedule.front(|_| 1500).expect("both want to send");
        let packet = [60, 9000][key as usize];
        sent[key as usize] += u64::from(packet);
        schedule.sent(packet);
    }
    assert!(sent[0].abs_diff(sent[1]) < 20_000, "{sent:?}");
}

#[test]
fn who_has_little_to_say_waits_for_one_turn_of_each_other() {
    let mut schedule = Scheduler::default();
    for key in 0..10 {
        schedule.add(key);
    }
    serve(&mut schedule, &[1; 11], MTU, 1000);
    schedule.add(10);
    let mut before = 0;
    while schedule.front(|_| 1500) != Some(10) {
        schedule.sent(MTU);
        before += 1;
    }
    assert!(before <= 20, "{before} packets of ten others came first");
}

#[test]
fn who_is_parked_comes_back_when_its_time_has_come_and_in_order() {
    let at = Timestamp::from_nanos;
    let mut schedule = Scheduler::default();
    schedule.add(0);
    schedule.add(1);
    assert_eq!(schedule.front(|_| 1500), Some(0));
    schedule.sent(MTU);
    schedule.park(at(10));
    assert_eq!(schedule.front(|_| 1500), Some(1));
    schedule.park(at(10));
    assert!(schedule.is_empty() && schedule.wants(0) && schedule.wants(1));
    schedule.add(0);
    assert!(schedule.is_empty(), "it still has to wait");
    assert_eq!(schedule.next_wake(), Some(at(10)));
    schedule.wake(at(9));
    assert_eq!(schedule.front(|_| 1500), None);
    schedule.wake(at(10));
    assert_eq!(
        schedule.front(|_| 1500),
        Some(1),
        "it got nothing last time"
    );
}

#[test]
fn a_key_may_be_somebody_elses_at_once() {
    let mut schedule = Scheduler::default();
    schedule.add(0);
    schedule.add(1);
    schedule.remove(0);
    schedule.add(0);
    schedule.remove(0);
    assert!(!schedule.is_empty());
    assert_eq!(schedule.front(|_| 1500), Some(1));
    schedule.add(0);
    schedule.drained();
    assert_eq!(schedule.front(|_| 1500), Some(0));
    schedule.drained();
    assert!(schedule.is_empty());
    assert_eq!(schedule.front(|_| 1500), None);
}

#[derive(Clone, Debug)]
enum Step {
    Add(u32),
    Remove(u32),
    Send(u32),
    Drain,
    Park(u64),
    Wait(u64),
    WakeAll,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6u32).prop_map(Step::Add),
        (0..6u32).prop_map(Step::Remove),
        (1..20_000u32).prop_map(Step::Send),
        Just(Step::Drain),
        (1..50u64).prop_map(Step::Park),
        (1..50u64).prop_map(Step::Wait),
        Just(Step::WakeAll),
    ]
}

proptest! {
    /// Whoever wants to send is asked within a bounded time, whatever the others do; nobody else is.
    #[test]
    fn whoever_wants_is_asked_and_nobody_else(steps in proptest::collection::vec(steps(), 0..400)) {
        let mut schedule = Scheduler::default();
        let mut ready = BTreeSet::new();
        let mut parked = std::collections::BTreeMap::new();
        let mut now = 0;
        for step in steps {
            let front = schedule.front(|_| 1500);
            prop_assert_eq!(front.is_none(), ready.is_empty());
            if let Some(key) = front {
                prop_assert!(ready.contains(&key));
            }
            match step {
                Step::Add(key) => {
                    schedule.add(key);
                    if !parked.contains_key(&key) {
                        ready.insert(key);
                    }
                }
                Step::Remove(key) => {
                    schedule.remove(key);
                    ready.remove(&key);
                    parked.remove(&key);
                }
                Step::Send(bytes) => {
                    if front.is_some() {
                        schedule.sent(bytes);
                    }
                }
                Step::Drain => {
                    schedule.drained();
                    ready.remove(&front.unwrap_or(u32::MAX));
                }
                Step::Park(time) => {
                    schedule.park(Timestamp::from_nanos(now + time));
                    if let Some(key) = front {
                        ready.remove(&key);
                        parked.insert(key, now + time);
                    }
                }
                Step::Wait(time) => {
                    now += time;
                    schedule.wake(Timestamp::from_nanos(now));
                    ready.extend(parked.iter().filter(|(_, at)| **at <= now).map(|(key, _)| *key));
                    parked.retain(|_, at| *at > now);
                }
                Step::WakeAll => {
                    schedule.wake_all();
                    ready.extend(std::mem::take(&mut parked).into_keys());
                }
            }
            prop_assert_eq!(schedule.is_empty(), ready.is_empty());
            let first = parked.values().min().map(|at| Timestamp::from_nanos(*at));
            prop_assert_eq!(schedule.next_wake(), first);
        }
        // Everybody who wants to is asked, one after the other.
        while let Some(key) = schedule.front(|_| 1500) {
            prop_assert!(ready.remove(&key));
            schedule.drained();
        }
        prop_assert!(ready.is_empty());
    }
}
