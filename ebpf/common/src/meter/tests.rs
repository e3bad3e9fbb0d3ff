use super::*;
use core::sync::atomic::{AtomicU64, Ordering};

fn value(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

#[test]
fn layouts_are_what_other_programs_expect() {
    assert_eq!(core::mem::offset_of!(Limits<u64>, owner), 32);
    assert_eq!(core::mem::offset_of!(Limits<u64>, class), 40);
    assert_eq!(core::mem::offset_of!(Meter<u64>, down), 64);
    assert_eq!(core::mem::offset_of!(Direction<u64>, last_seen), 48);
    assert_eq!(core::mem::offset_of!(IdentityRecord, text), 8);
    assert_eq!(size_of::<Meter<AtomicU64>>(), size_of::<Meter<u64>>());
    for class in Class::ALL {
        assert_eq!(Class::from_slot(class.slot()), Some(class));
        assert!(class.slot() < GLOBAL_SLOT);
    }
    assert_eq!(Class::from_slot(GLOBAL_SLOT), None);
}

#[test]
fn a_share_is_in_force_until_the_limit_is_set_again() {
    let limits = Limits::<AtomicU64>::default();
    let limit = |rate| LimitWord::new(rate, 10_000).unwrap();
    assert!(limits.up_in_force().is_unlimited());
    limits.set_up(limit(1_000_000));
    limits
        .up_share
        .store(limit(500_000).to_bits(), Ordering::Relaxed);
    assert_eq!(limits.up_in_force(), limit(500_000));
    assert!(limits.down_in_force().is_unlimited());
    limits.set_up(limit(100_000));
    assert_eq!(limits.up_in_force(), limit(100_000));
    limits.set_down(limit(200_000));
    assert_eq!(limits.down_in_force(), limit(200_000));
}

#[test]
fn a_class_that_is_none_is_the_default_one() {
    let limits = Limits::<AtomicU64>::default();
    for (written, slot) in [(0, 2), (1, 1), (2, 2), (3, 3), (4, 2), (u64::MAX, 2)] {
        limits.class.store(written, Ordering::Relaxed);
        assert_eq!(limits.class_slot(), slot);
    }
}

#[test]
fn a_packet_is_charged_to_peer_and_class_or_to_neither() {
    let meters = [Meter::<AtomicU64>::default(), Meter::default()];
    let limit = |burst| LimitWord::new(1_000_000, burst).unwrap();
    let mut payer = Payer {
        peer: &meters[0].up,
        limit: limit(6400),
        class: &meters[1].up,
        class_limit: limit(3200),
    };
    let now = 1_000_000_000_000;
    assert_eq!(payer.charge(now, 3000), Charge::Passed);
    let held = (
        value(&meters[0].up.spent_until),
        value(&meters[1].up.spent_until),
    );
    assert_eq!(
        payer.charge(now, 3000),
        Charge::Over,
        "the class has no more"
    );
    assert_eq!(
        held.0,
        value(&meters[0].up.spent_until),
        "the peer has its charge back"
    );
    payer.class_limit = LimitWord::UNLIMITED;
    assert_eq!(payer.charge(now, 3000), Charge::Passed);
    assert_eq!(
        payer.charge(now, 3000),
        Charge::Over,
        "the peer has no more"
    );
    assert_eq!(held.1, value(&meters[1].up.spent_until));
    payer.refund(3000);
    assert_eq!(held.0, value(&meters[0].up.spent_until));
}

#[test]
fn counters_say_what_passed_and_what_did_not() {
    let direction = Direction::<AtomicU64>::default();
    direction.count(77, PacketSize::new(false, 100));
    direction.count(78, PacketSize::new(true, 0));
    direction.count_dropped(PacketSize::new(true, 100));
    assert_eq!(value(&direction.packets), 2);
    assert_eq!(value(&direction.bytes), 128 + 48);
    assert_eq!(value(&direction.payload_bytes), 100);
    assert_eq!(value(&direction.dropped_packets), 1);
    assert_eq!(value(&direction.dropped_bytes), 148);
    assert_eq!(value(&direction.last_seen), 78);
    direction.clear();
    assert_eq!(value(&direction.bytes) + value(&direction.dropped_bytes), 0);
}
