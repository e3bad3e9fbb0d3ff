use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use towpath_ebpf_common::meter::OWN_CLASS;

use super::*;

fn at(millis: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_millis(1_000_000 + millis)
}

fn user(name: &str) -> Identity {
    Identity::user("example.org", name)
}

fn limit(bits_per_second: u64) -> LimitWord {
    LimitWord::new(bits_per_second, 10_000).unwrap()
}

fn value(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

fn charge(slots: &MemorySlots, millis: u64, slot: PeerSlot, way: Way) -> Charge {
    let size = PacketSize::new(false, 1000);
    slots.charge(at(millis), slot, way, size, &mut Lease::default())
}

#[test]
fn holders_of_one_identity_share_a_slot_until_the_last_has_gone() {
    let slots = MemorySlots::new(2);
    let alice = slots.acquire(at(0), &user("alice")).unwrap();
    assert_eq!(slots.acquire(at(0), &user("alice")), Some(alice));
    assert_ne!(slots.acquire(at(0), &user("bob")), Some(alice));
    slots.release(at(0), alice);
    assert_eq!(
        slots.acquire(at(5000), &user("carol")),
        None,
        "one holder is left"
    );
    slots.release(at(5000), alice);
    assert_eq!(
        slots.acquire(at(5999), &user("carol")),
        None,
        "the slot has to rest"
    );
    assert_eq!(slots.acquire(at(6000), &user("carol")), Some(alice));
}

#[test]
fn a_peer_that_comes_back_finds_its_slot_as_it_left_it() {
    let slots = MemorySlots::new(10);
    let alice = slots.acquire(at(0), &user("alice")).unwrap();
    slots.slot(alice).unwrap().limits.set_up(limit(1_000_000));
    assert_eq!(charge(&slots, 0, alice, Way::Up), Charge::Passed);
    slots.release(at(0), alice);
    assert_ne!(
        slots.acquire(at(9000), &user("bob")),
        Some(alice),
        "unused slots go first"
    );
    assert_eq!(slots.find(&user("alice")), Some(alice));
    assert_eq!(slots.acquire(at(9000), &user("alice")), Some(alice));
    let memory = slots.slot(alice).unwrap();
    assert_eq!(value(&memory.meter.up.packets), 1);
    assert_eq!(memory.limit(Way::Up), limit(1_000_000));
}

#[test]
fn a_new_peer_begins_without_the_past_of_its_slot() {
    let slots = MemorySlots::new(1);
    slots.set_defaults(limit(2_000_000), limit(3_000_000));
    let slot = slots.acquire(at(0), &user("alice")).unwrap();
    let memory = slots.slot(slot).unwrap();
    memory.limits.set_up(limit(100_000));
    memory.limits.class.store(3, Ordering::Relaxed);
    assert_eq!(charge(&slots, 0, slot, Way::Up), Charge::Passed);
    slots.release(at(0), slot);
    assert_eq!(slots.acquire(at(1000), &user("bob")), Some(slot));
    assert_eq!(value(&memory.meter.up.packets), 0);
    assert_eq!(value(&memory.meter.up.spent_until), 0);
    assert_eq!(class_of(memory.limits), Class::Interactive);
    assert_eq!(memory.limit(Way::Up), limit(2_000_000));
    assert_eq!(memory.limit(Way::Down), limit(3_000_000));
    assert_eq!(value(&memory.limits.owner), user("bob").owner());
    assert_eq!(slots.find(&user("alice")), None);
    assert_eq!(slots.identities(), [(slot, user("bob"))]);
}

#[test]
fn a_slot_with_limits_of_its_own_stays_its_peers() {
    let slots = MemorySlots::new(2);
    let alice = slots.acquire(at(0), &user("alice")).unwrap();
    let bob = slots.acquire(at(0), &user("bob")).unwrap();
    slots
        .slot(alice)
        .unwrap()
        .limits
        .flags
        .store(OWN_UP, Ordering::Relaxed);
    slots.release(at(0), alice);
    slots.release(at(1), bob);
    assert_eq!(slots.acquire(at(9000), &user("carol")), Some(bob));
    assert_eq!(slots.acquire(at(9000), &user("dave")), None);
    slots
        .slot(alice)
        .unwrap()
        .limits
        .flags
        .store(0, Ordering::Relaxed);
    assert_eq!(slots.acquire(at(9000), &user("dave")), Some(alice));
}

#[test]
fn defaults_reach_the_peers_that_are_there_but_for_their_own_limits() {
    let slots = MemorySlots::new(1000);
    let all: Vec<_> = (0..4)
        .map(|n| slots.acquire(at(0), &user(&n.to_string())).unwrap())
        .collect();
    for (slot, own) in all.iter().zip([0, OWN_UP, OWN_DOWN, OWN_CLASS]) {
        slots
            .slot(*slot)
            .unwrap()
            .limits
            .flags
            .store(own, Ordering::Relaxed);
    }
    slots.set_defaults(limit(1_000_000), limit(2_000_000));
    let unlimited = LimitWord::UNLIMITED;
    let (up, down) = (limit(1_000_000), limit(2_000_000));
    let expected = [(up, down), (unlimited, down), (up, unlimited), (up, down)];
    for (slot, expected) in all.iter().zip(expected) {
        let memory = slots.slot(*slot).unwrap();
        assert_eq!((memory.limit(Way::Up), memory.limit(Way::Down)), expected);
    }
}

#[test]
fn up_and_down_are_apart() {
    let slots = MemorySlots::new(1);
    let slot = slots.acquire(at(0), &user("alice")).unwrap();
    slots
        .slot(slot)
        .unwrap()
        .limits
        .set_up(LimitWord::new(1_000_000, 1500).unwrap());
    assert_eq!(charge(&slots, 0, slot, Way::Up), Charge::Passed);
    assert_eq!(charge(&slots, 0, slot, Way::Up), Charge::Over);
    assert_eq!(charge(&slots, 0, slot, Way::Down), Charge::Passed);
    let meter = slots.slot(slot).unwrap().meter;
    let counts = |direction: &Direction<AtomicU64>| {
        (
            value(&direction.packets),
            value(&direction.payload_bytes),
            value(&direction.dropped_bytes),
        )
    };
    assert_eq!(counts(&meter.up), (1, 1000, 1028));
    assert_eq!(counts(&meter.down), (1, 1000, 0));
}

#[test]
fn class_and_everybody_are_charged_too_and_a_refusal_charges_nobody() {
    let slots = MemorySlots::new(2);
    let alice = slots.acquire(at(0), &user("alice")).unwrap();
    let bob = slots.acquire(at(0), &user("bob")).unwrap();
    let memory = slots.slot(alice).unwrap();
    memory.limits.set_up(limit(1_000_000));
    let class = slots.slot(PeerSlot(Class::Interactive.slot())).unwrap();
    class
        .limits
        .set_up(LimitWord::new(1_000_000, 1500).unwrap());
    assert_eq!(charge(&slots, 0, bob, Way::Up), Charge::Passed);
    assert_eq!(
        charge(&slots, 0, alice, Way::Up),
        Charge::Over,
        "bob had what the class may"
    );
    let budget = (at(0).as_nanos() << 6) - value(&memory.meter.up.spent_until);
    let whole = memory.limit(Way::Up).tolerance();
    assert!(budget >= whole, "alice has her charge back");
    memory
        .limits
        .class
        .store(Class::Control.slot().into(), Ordering::Relaxed);
    assert_eq!(
        charge(&slots, 0, alice, Way::Up),
        Charge::Passed,
        "another class"
    );
    slots.set_global(LimitWord::new(1_000_000, 1600).unwrap());
    assert_eq!(charge(&slots, 0, alice, Way::Up), Charge::Passed);
    assert_eq!(
        charge(&slots, 0, alice, Way::Up),
        Charge::Over,
        "everybody's budget is gone"
    );
    assert_eq!(
        charge(&slots, 0, bob, Way::Down),
        Charge::Over,
        "in both directions"
    );
    slots.set_global(LimitWord::UNLIMITED);
    assert_eq!(charge(&slots, 0, bob, Way::Down), Charge::Passed);
}

#[test]
fn slots_that_are_not_there_charge_nothing() {
    let slots = MemorySlots::new(1);
    for missing in [PeerSlot(9), PeerSlot(600), PeerSlot(u32::MAX)] {
        assert!(slots.slot(missing).is_none());
        assert_eq!(charge(&slots, 0, missing, Way::Up), Charge::Over);
        slots.release(at(0), missing);
    }
    assert!(MemorySlots::new(0).acquire(at(0), &user("alice")).is_none());
}

#[test]
fn restored_slots_are_found_and_the_gaps_between_them_used() {
    let mut book = SlotBook::new(FIRST_PEER_SLOT + 4);
    let slot = |n| PeerSlot(FIRST_PEER_SLOT + n);
    assert!(book.restore(at(0), slot(2), &user("carol")));
    assert!(
        !book.restore(at(0), slot(2), &user("dave")),
        "the slot is taken"
    );
    assert!(!book.restore(at(0), slot(1), &user("carol")), "she has one");
    assert!(
        !book.restore(at(0), slot(4), &user("dave"))
            && !book.restore(at(0), PeerSlot(3), &user("dave"))
    );
    let new = |slot| Some(Acquired::New(slot, None));
    assert_eq!(book.acquire(at(0), &user("a"), |_| true), new(slot(0)));
    assert_eq!(
        book.acquire(at(0), &user("b"), |taken| taken != slot(1)),
        new(slot(3))
    );
    assert_eq!(
        book.acquire(at(0), &user("c"), |taken| taken != slot(1)),
        None
    );
    assert_eq!(
        book.acquire(at(0), &user("carol"), |_| true),
        Some(Acquired::Known(slot(2)))
    );
    assert_eq!(book.acquire(at(0), &user("d"), |_| true), new(slot(1)));
    book.release(at(0), slot(2));
    let taken = book.acquire(at(1000), &user("e"), |_| true);
    assert_eq!(taken, Some(Acquired::New(slot(2), Some(user("carol")))));
}

proptest! {
    /// Against a model that knows, of every slot, who has it, how many hold it and since when it rests.
    #[test]
    fn no_slot_is_anybodys_too_early_and_none_is_lost(
        steps in proptest::collection::vec((0..8_u8, any::<bool>(), 0..700_u64), 1..300),
    ) {
        let slots = MemorySlots::new(5);
        let mut held: HashMap<u8, (PeerSlot, u32)> = HashMap::new();
        let mut left: HashMap<PeerSlot, (u8, u64)> = HashMap::new();
        let mut now = 0;
        for (who, acquires, pause) in steps {
            now += pause;
            let identity = user(&who.to_string());
            if acquires {
                let got = slots.acquire(at(now), &identity);
                let rested = left.values().filter(|(last, since)| *last == who || now - since >= 1000);
                let unused = 5 - held.len() - left.len();
                let room = held.contains_key(&who) || unused + rested.count() > 0;
                prop_assert_eq!(got.is_some(), room);
                let Some(slot) = got else { continue };
                if let Some((last, since)) = left.remove(&slot) {
                    prop_assert!(last == who || now - since >= 1000);
                }
                prop_assert!(held.iter().all(|(other, (theirs, _))| *other == who || *theirs != slot));
                let entry = held.entry(who).or_insert((slot, 0));
                prop_assert_eq!(entry.0, slot);
                entry.1 += 1;
            } else if let Some((slot, holders)) = held.get_mut(&who) {
                slots.release(at(now), *slot);
                *holders -= 1;
                if *holders == 0 {
                    left.insert(*slot, (who, now));
                    held.remove(&who);
                }
            }
        }
    }
}

#[test]
fn shards_that_charge_one_slot_together_pass_exactly_its_budget() {
    let slots = MemorySlots::new(1);
    let slot = slots.acquire(at(0), &user("alice")).unwrap();
    let memory = slots.slot(slot).unwrap();
    memory
        .limits
        .set_up(LimitWord::new(8_000_000, 1_024_000).unwrap());
    let size = PacketSize::new(false, 100);
    let shard = || {
        let (mut passed, mut lease) = (0, Lease::EMPTY);
        for _ in 0..10_000 {
            while slots.charge(at(0), slot, Way::Up, size, &mut lease) == Charge::Contended {}
            passed += 1;
        }
        passed
    };
    let offered: u64 = std::thread::scope(|scope| {
        let shards: Vec<_> = (0..4).map(|_| scope.spawn(shard)).collect();
        shards.into_iter().map(|shard| shard.join().unwrap()).sum()
    });
    let up = &memory.meter.up;
    assert_eq!(offered, 40_000);
    assert_eq!(value(&up.packets), 1_024_000 / 128);
    assert_eq!(value(&up.bytes), 1_024_000);
    assert!(value(&up.packets) + value(&up.dropped_packets) >= offered);
}
