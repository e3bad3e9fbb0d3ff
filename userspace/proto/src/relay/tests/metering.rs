use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use towpath_ebpf_common::meter::{Class, Direction, Meter};
use towpath_ebpf_common::rate::LimitWord;

use super::lab::*;
use crate::machine::{PortId, Socket};
use crate::relay::{DropReason, PortError, RelayShared};
use crate::slots::{Identity, MemorySlots, PeerSlot, Slot, Way};
use crate::wire::Method;
use crate::wire::attribute::Lifetime;

const OTHER: &str = "198.18.0.2:50";

/// A client with a channel, and what it may in bits a second with a burst of 1500 bytes.
fn limited(way: Way, bits_per_second: u64) -> Lab {
    let mut lab = Lab::new(config());
    lab.allocate(CLIENT);
    assert_eq!(lab.bind(CLIENT, 0x4000, PEER), 0);
    let limit = LimitWord::new(bits_per_second, 1500).unwrap();
    let alice = slot_of(&lab, "alice");
    match way {
        Way::Up => alice.limits.set_up(limit),
        Way::Down => alice.limits.set_down(limit),
    }
    lab
}

fn slot_of<'a>(lab: &'a Lab, name: &str) -> Slot<'a> {
    let slots = lab.shared.slots();
    let slot = slots.find(&Identity::user(REALM, name)).unwrap();
    slots.slot(slot).unwrap()
}

fn value(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

/// Packets, charged bytes, payload bytes, dropped packets, dropped bytes.
fn counts(direction: &Direction<AtomicU64>) -> [u64; 5] {
    [
        value(&direction.packets),
        value(&direction.bytes),
        value(&direction.payload_bytes),
        value(&direction.dropped_packets),
        value(&direction.dropped_bytes),
    ]
}

/// Sends until nothing passes; how many did.
fn passed(lab: &mut Lab, mut send: impl FnMut(&mut Lab) -> bool) -> u64 {
    let mut passed = 0;
    while send(lab) {
        passed += 1;
        assert!(passed < 10_000, "nothing is limited");
    }
    passed
}

#[test]
fn every_way_to_a_peer_is_charged_to_what_the_client_sends() {
    let ways: [fn(&mut Lab) -> bool; 2] = [
        |lab| {
            lab.client_sends(CLIENT, &channel_data(0x4000, &[7; 100]))
                .is_some()
        },
        |lab| {
            lab.client_sends(CLIENT, &send_indication(PEER, &[7; 100]))
                .is_some()
        },
    ];
    for way in ways {
        let mut lab = limited(Way::Up, 1_000_000);
        // The burst is 1536 bytes; each datagram counts 20 + 8 + 100.
        assert_eq!(passed(&mut lab, way), 12);
        assert_eq!(lab.drops(DropReason::OverLimit), 1);
        let alice = slot_of(&lab, "alice").meter;
        assert_eq!(counts(&alice.up), [12, 12 * 128, 1200, 1, 128]);
        assert_eq!(counts(&alice.down), [0; 5]);
        assert_eq!(value(&alice.up.last_seen), lab.now.as_nanos());
        assert_eq!(lab.relay.counters.packets_to_peers.value(), 12);
        // 128 bytes take 1.024 ms.
        lab.pass(Duration::from_micros(1023));
        assert!(!way(&mut lab));
        lab.pass(Duration::from_micros(1));
        assert!(way(&mut lab) && !way(&mut lab));
    }
}

#[test]
fn every_way_to_a_client_is_charged_to_what_it_receives() {
    // The second peer has a permission and no channel.
    for peer in [PEER, "9.9.9.9:7001"] {
        let mut lab = limited(Way::Down, 1_000_000);
        let way = |lab: &mut Lab| {
            let socket = Socket::Relayed(PortId(0));
            let sent = lab.arrive(socket, "5.5.5.5", address(peer), &[7; 100]);
            sent.is_some()
        };
        assert_eq!(passed(&mut lab, way), 12);
        assert_eq!(lab.drops(DropReason::OverLimit), 1);
        let alice = slot_of(&lab, "alice").meter;
        assert_eq!(counts(&alice.down), [12, 12 * 128, 1200, 1, 128]);
        assert_eq!(counts(&alice.up), [0; 5]);
        assert_eq!(lab.relay.counters.packets_to_clients.value(), 12);
    }
}

#[test]
fn peers_of_ipv6_are_charged_the_longer_header() {
    let mut lab = Lab::new(config());
    let client = "[2600::77]:5";
    let family = crate::wire::attribute::RequestedAddressFamily(crate::wire::attribute::Family::V6);
    let answer = lab.request(client, Method::ALLOCATE, &[udp(), raw(&family)]);
    assert_eq!(code(&answer), 0);
    let peer = "[2620::9]:7000";
    assert_eq!(lab.bind(client, 0x4000, peer), 0);
    assert!(
        lab.client_sends(client, &channel_data(0x4000, &[7; 100]))
            .is_some()
    );
    let socket = Socket::Relayed(PortId(0));
    assert!(
        lab.arrive(socket, "2600::5", address(peer), &[7; 10])
            .is_some()
    );
    let alice = slot_of(&lab, "alice").meter;
    assert_eq!(counts(&alice.up), [1, 148, 100, 0, 0]);
    assert_eq!(counts(&alice.down), [1, 58, 10, 0, 0]);
}

#[test]
fn what_is_not_forwarded_is_not_charged() {
    let mut lab = limited(Way::Up, 1_000_000);
    assert!(
        lab.client_sends(CLIENT, &channel_data(0x4001, &[7; 100]))
            .is_none()
    );
    assert!(
        lab.client_sends(CLIENT, &send_indication("9.9.9.8:1", b"x"))
            .is_none()
    );
    assert!(lab.peer_sends(0, &[7; 65_507]).is_none());
    let socket = Socket::Relayed(PortId(0));
    assert!(
        lab.arrive(socket, "5.5.5.5", address("9.9.9.8:1"), b"x")
            .is_none()
    );
    let alice = slot_of(&lab, "alice").meter;
    assert_eq!((counts(&alice.up), counts(&alice.down)), ([0; 5], [0; 5]));
    assert_eq!(value(&alice.up.spent_until), 0);
}

#[test]
fn allocations_of_one_user_share_a_limit_and_others_have_their_own() {
    let mut lab = limited(Way::Up, 1_000_000);
    lab.allocate(OTHER);
    assert_eq!(lab.bind(OTHER, 0x4000, PEER), 0);
    let third = "198.18.0.3:50";
    let request = lab.signed_by("bob", "other", third, Method::ALLOCATE, &[udp()]);
    assert_eq!(code(&lab.ask(third, &request).unwrap()), 0);
    let bind = [channel_number(0x4000), xor_peer(PEER)];
    let request = lab.signed_by("bob", "other", third, Method::CHANNEL_BIND, &bind);
    assert_eq!(code(&lab.ask(third, &request).unwrap()), 0);
    let sends = |lab: &mut Lab, client| {
        lab.client_sends(client, &channel_data(0x4000, &[7; 1000]))
            .is_some()
    };
    assert!(sends(&mut lab, CLIENT));
    assert!(!sends(&mut lab, OTHER), "the same user's");
    assert!(
        sends(&mut lab, third) && sends(&mut lab, third),
        "another user's"
    );
}

#[test]
fn between_two_clients_one_pays_for_sending_and_the_other_for_receiving() {
    let mut lab = Lab::new(config());
    let mine = lab.allocate(CLIENT);
    let request = lab.signed_by("bob", "other", OTHER, Method::ALLOCATE, &[udp()]);
    assert_eq!(code(&lab.ask(OTHER, &request).unwrap()), 0);
    let theirs = lab.open[&1];
    assert_eq!(lab.bind(CLIENT, 0x4000, &theirs.to_string()), 0);
    let permit = [xor_peer(&mine.to_string())];
    let request = lab.signed_by("bob", "other", OTHER, Method::CREATE_PERMISSION, &permit);
    assert_eq!(code(&lab.ask(OTHER, &request).unwrap()), 0);
    let (_, bytes) = lab
        .client_sends(CLIENT, &channel_data(0x4000, &[7; 100]))
        .unwrap();
    let socket = Socket::Relayed(PortId(1));
    assert!(lab.arrive(socket, "5.5.5.5", mine, &bytes).is_some());
    let meter = |name| -> &Meter<AtomicU64> { slot_of(&lab, name).meter };
    let once = [1, 128, 100, 0, 0];
    assert_eq!(
        (counts(&meter("alice").up), counts(&meter("alice").down)),
        (once, [0; 5])
    );
    assert_eq!(
        (counts(&meter("bob").up), counts(&meter("bob").down)),
        ([0; 5], once)
    );
}

#[test]
fn a_raised_limit_acts_on_the_next_packets() {
    let mut lab = limited(Way::Up, 64_000);
    let way = |lab: &mut Lab| {
        lab.client_sends(CLIENT, &channel_data(0x4000, &[7; 1000]))
            .is_some()
    };
    assert_eq!(passed(&mut lab, way), 1);
    slot_of(&lab, "alice")
        .limits
        .set_up(LimitWord::new(100_000_000, 1500).unwrap());
    lab.pass(Duration::from_millis(1));
    assert!(way(&mut lab), "1028 bytes take 0.08 ms now");
}

#[test]
fn class_and_relay_have_limits_too() {
    let mut lab = limited(Way::Down, 1_000_000_000);
    let way = |lab: &mut Lab| {
        lab.client_sends(CLIENT, &channel_data(0x4000, &[7; 1000]))
            .is_some()
    };
    let limit = LimitWord::new(64_000, 1500).unwrap();
    let slots = Arc::clone(lab.shared.slots());
    let class = slots.slot(PeerSlot(Class::Interactive.slot())).unwrap();
    class.limits.set_up(limit);
    assert_eq!(passed(&mut lab, way), 1);
    class.limits.set_up(LimitWord::UNLIMITED);
    slots.set_global(limit);
    assert_eq!(passed(&mut lab, way), 1);
    slots.set_global(LimitWord::UNLIMITED);
    assert!(way(&mut lab));
    assert_eq!(lab.drops(DropReason::OverLimit), 2);
}

#[test]
fn without_a_free_slot_an_allocate_is_refused_with_508() {
    let config = config();
    let slots = Arc::new(MemorySlots::new(1));
    let shared = Arc::new(RelayShared::with_slots(&config, slots));
    let mut lab = Lab::of_shard(config, shared, 0);
    lab.allocate(CLIENT);
    lab.allocate(OTHER);
    let allocate = |lab: &mut Lab, client: &str| {
        let request = lab.signed_by("bob", "other", client, Method::ALLOCATE, &[udp()]);
        code(&lab.ask(client, &request).unwrap())
    };
    let third = "198.18.0.3:50";
    assert_eq!(allocate(&mut lab, third), 508);
    for client in [CLIENT, OTHER] {
        lab.request(client, Method::REFRESH, &[raw(&Lifetime(0))]);
    }
    assert_eq!(allocate(&mut lab, third), 508, "the slot has to rest");
    lab.secs(1);
    assert_eq!(allocate(&mut lab, third), 0);
}

#[test]
fn a_refused_or_failed_allocation_holds_no_slot() {
    let mut config = config();
    config.port_range = 50_000..=50_001;
    let slots = Arc::new(MemorySlots::new(1));
    let shared = Arc::new(RelayShared::with_slots(&config, slots));
    let mut lab = Lab::of_shard(config, shared, 0);
    lab.shell = Shell::Fails(PortError::Other);
    assert_eq!(code(&lab.request(CLIENT, Method::ALLOCATE, &[udp()])), 508);
    lab.shell = Shell::Opens;
    let request = lab.signed_by("bob", "other", CLIENT, Method::ALLOCATE, &[udp()]);
    lab.secs(1);
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 0);
    // All ports are taken: the second of these two is refused, and its hold is given back.
    for (client, expected) in [("198.18.0.4:1", 0), ("198.18.0.5:1", 508)] {
        let request = lab.signed_by("bob", "other", client, Method::ALLOCATE, &[udp()]);
        assert_eq!(code(&lab.ask(client, &request).unwrap()), expected);
    }
    for client in [CLIENT, "198.18.0.4:1"] {
        let delete = [raw(&Lifetime(0))];
        let request = lab.signed_by("bob", "other", client, Method::REFRESH, &delete);
        assert_eq!(code(&lab.ask(client, &request).unwrap()), 0);
    }
    lab.secs(1);
    lab.allocate(CLIENT);
}

#[test]
fn a_user_that_allocates_anew_has_not_a_new_budget() {
    let mut lab = limited(Way::Up, 64_000);
    let way = |lab: &mut Lab| {
        lab.client_sends(CLIENT, &channel_data(0x4000, &[7; 1000]))
            .is_some()
    };
    assert_eq!(passed(&mut lab, way), 1);
    lab.request(CLIENT, Method::REFRESH, &[raw(&Lifetime(0))]);
    lab.allocate(CLIENT);
    assert_eq!(lab.bind(CLIENT, 0x4000, PEER), 0);
    assert_eq!(passed(&mut lab, way), 0);
    assert_eq!(counts(&slot_of(&lab, "alice").meter.up)[0], 1);
}
