use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::lab::*;
use crate::Machine;
use crate::machine::{PortId, Socket, TrafficClass};
use crate::relay::*;
use crate::wire::attribute::{
    AdditionalAddressFamily, EvenPort, Family, Lifetime, RequestedAddressFamily,
    RequestedTransport, ReservationToken, UnknownAttributes, XorMappedAddress, XorRelayedAddress,
};
use crate::wire::{AttributeType, Message, Method};

fn lab() -> Lab {
    Lab::new(config())
}

fn even(reserve_next: bool) -> (AttributeType, Vec<u8>) {
    raw(&EvenPort { reserve_next })
}

fn family(family: Family) -> (AttributeType, Vec<u8>) {
    raw(&RequestedAddressFamily(family))
}

fn relayed(answer: &[u8]) -> std::net::SocketAddr {
    assert_eq!(code(answer), 0);
    Message::parse(answer)
        .unwrap()
        .get::<XorRelayedAddress>()
        .unwrap()
        .unwrap()
        .0
}

fn token(answer: &[u8]) -> Option<ReservationToken> {
    Message::parse(answer).unwrap().get().unwrap()
}

// RFC 8656 §7.2
#[test]
fn success_tells_the_relayed_address_the_lifetime_and_the_mapped_address() {
    let mut lab = lab();
    let answer = lab.request(CLIENT, Method::ALLOCATE, &[udp()]);
    let message = Message::parse(&answer).unwrap();
    let relayed = message.get::<XorRelayedAddress>().unwrap().unwrap().0;
    assert_eq!(relayed.ip(), address("5.5.5.5:1").ip());
    assert!((50_000..=50_999).contains(&relayed.port()));
    assert_eq!(message.get(), Ok(Some(XorMappedAddress(address(CLIENT)))));
    assert_eq!(message.get(), Ok(Some(Lifetime(600))));
    assert_eq!(lab.open[&0], relayed);
    assert!(lab.shared.is_live(0, relayed.port()));
    assert_eq!(lab.relay.counters.allocations.value(), 1);
    assert_eq!(
        lab.relay.counters.successes(RequestKind::Allocate).value(),
        1
    );
}

// RFC 8656 §7.2
#[test]
fn allocate_without_requested_transport_is_a_bad_request() {
    let mut lab = lab();
    assert_eq!(code(&lab.request(CLIENT, Method::ALLOCATE, &[])), 400);
    let malformed = (AttributeType::REQUESTED_TRANSPORT, vec![17]);
    assert_eq!(
        code(&lab.request(CLIENT, Method::ALLOCATE, &[malformed])),
        400
    );
    assert_eq!(lab.relay.counters.errors(400).unwrap().value(), 2);
}

// RFC 8656 §7.2
#[test]
fn transport_other_than_udp_is_refused_with_442() {
    let mut lab = lab();
    let tcp = raw(&RequestedTransport::TCP);
    assert_eq!(code(&lab.request(CLIENT, Method::ALLOCATE, &[tcp])), 442);
}

// RFC 8656 §7.2
#[test]
fn second_allocate_for_a_5_tuple_is_refused_with_437() {
    let mut lab = lab();
    lab.allocate(CLIENT);
    assert_eq!(code(&lab.request(CLIENT, Method::ALLOCATE, &[udp()])), 437);
    assert_eq!(lab.open.len(), 1);
}

// RFC 8656 §7.2: the 5-tuple is what counts, whoever asks: 437 and not 441.
#[test]
fn allocate_of_another_user_for_a_5_tuple_in_use_is_refused_with_437() {
    let mut lab = lab();
    lab.allocate(CLIENT);
    let request = lab.signed_by("bob", "other", CLIENT, Method::ALLOCATE, &[udp()]);
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 437);
    assert_eq!(code(&lab.request(CLIENT, Method::REFRESH, &[])), 0);
}

// RFC 8656 §18: LIFETIME has 4 bytes, EVEN-PORT 1, RESERVATION-TOKEN 8, the families 4.
#[test]
fn attributes_of_a_wrong_length_are_a_bad_request() {
    let mut lab = lab();
    for kind in [
        AttributeType::LIFETIME,
        AttributeType::EVEN_PORT,
        AttributeType::RESERVATION_TOKEN,
        AttributeType::REQUESTED_ADDRESS_FAMILY,
        AttributeType::ADDITIONAL_ADDRESS_FAMILY,
    ] {
        let malformed = (kind, vec![2; 3]);
        let answer = lab.request(CLIENT, Method::ALLOCATE, &[udp(), malformed]);
        assert_eq!(code(&answer), 400, "{kind}");
    }
    lab.allocate(CLIENT);
    for kind in [
        AttributeType::LIFETIME,
        AttributeType::REQUESTED_ADDRESS_FAMILY,
    ] {
        let answer = lab.request(CLIENT, Method::REFRESH, &[(kind, vec![2; 3])]);
        assert_eq!(code(&answer), 400, "{kind}");
    }
    let unknown = (AttributeType(0x7001), vec![]);
    assert_eq!(code(&lab.request(CLIENT, Method::REFRESH, &[unknown])), 420);
    assert_eq!(lab.open.len(), 1);
}

#[test]
fn retransmitted_allocate_gets_the_same_answer_and_no_second_port() {
    let mut lab = lab();
    let request = lab.signed(CLIENT, Method::ALLOCATE, &[udp(), lifetime(1200)]);
    let first = lab.ask(CLIENT, &request).unwrap();
    lab.secs(2);
    let second = lab.ask(CLIENT, &request).unwrap();
    assert_eq!(first, second);
    assert_eq!(lab.open.len(), 1);
    assert_eq!(lab.relay.counters.retransmissions.value(), 1);
}

#[test]
fn retransmission_while_the_port_is_being_opened_gets_one_answer_in_the_end() {
    let mut lab = lab();
    lab.shell = Shell::Waits;
    let request = lab.signed(CLIENT, Method::ALLOCATE, &[udp()]);
    assert_eq!(lab.ask(CLIENT, &request), None);
    assert_eq!(lab.ask(CLIENT, &request), None);
    assert_eq!(lab.asked, [PortId(0)]);
    assert_eq!(lab.drops(DropReason::StillOpening), 1);
    lab.event(RelayEvent::PortOpened { port: PortId(0) });
    lab.run();
    assert_eq!(lab.sent.len(), 1);
}

// RFC 8656 §7.2
#[test]
fn lifetime_is_never_less_than_the_default_or_more_than_the_longest() {
    let granted = |wish| {
        let mut lab = lab();
        let answer = lab.request(CLIENT, Method::ALLOCATE, &[udp(), lifetime(wish)]);
        Message::parse(&answer)
            .unwrap()
            .get::<Lifetime>()
            .unwrap()
            .unwrap()
            .0
    };
    assert_eq!(granted(0), 600);
    assert_eq!(granted(1), 600);
    assert_eq!(granted(601), 601);
    assert_eq!(granted(3600), 3600);
    assert_eq!(granted(u32::MAX), 3600);
}

// RFC 8656 §7.2
#[test]
fn requested_family_decides_the_relayed_address() {
    let mut lab = lab();
    let v6 = lab.request(CLIENT, Method::ALLOCATE, &[udp(), family(Family::V6)]);
    assert_eq!(relayed(&v6).ip(), address("[2600::5]:1").ip());
    let v4 = lab.request(
        "198.18.0.9:1",
        Method::ALLOCATE,
        &[udp(), family(Family::V4)],
    );
    assert_eq!(relayed(&v4).ip(), address("5.5.5.5:1").ip());
    let default = lab.request("[2600::77]:1", Method::ALLOCATE, &[udp()]);
    assert_eq!(
        relayed(&default).ip(),
        address("5.5.5.5:1").ip(),
        "IPv4 unless asked otherwise"
    );
}

// RFC 8656 §7.2
#[test]
fn family_without_a_relay_address_is_refused_with_440() {
    let mut config = config();
    config.relay_addresses.truncate(1);
    let mut lab = Lab::new(config);
    let v6 = [udp(), family(Family::V6)];
    assert_eq!(code(&lab.request(CLIENT, Method::ALLOCATE, &v6)), 440);
    let unknown = (AttributeType::REQUESTED_ADDRESS_FAMILY, vec![3, 0, 0, 0]);
    assert_eq!(
        code(&lab.request(CLIENT, Method::ALLOCATE, &[udp(), unknown])),
        440
    );
}

// RFC 8656 §7.2: "If the REQUESTED-ADDRESS-FAMILY attribute is absent and the server does not support
// the IPv4 address family, the server MUST include … 440".
#[test]
fn ipv4_is_what_is_meant_without_a_family_also_where_there_is_none() {
    let mut config = config();
    config.relay_addresses.remove(0);
    let mut lab = Lab::new(config);
    for client in [CLIENT, "[2600::77]:1"] {
        assert_eq!(code(&lab.request(client, Method::ALLOCATE, &[udp()])), 440);
        let v6 = [udp(), family(Family::V6)];
        assert_eq!(code(&lab.request(client, Method::ALLOCATE, &v6)), 0);
    }
}

#[test]
fn allocation_prefers_the_relay_address_its_request_came_to() {
    let mut config = config();
    config
        .relay_addresses
        .insert(0, RelayAddress::direct([5, 5, 5, 6].into()));
    let mut lab = Lab::new(config);
    assert_eq!(lab.allocate(CLIENT).ip(), address("5.5.5.5:1").ip());
}

// RFC 8656 §7.2
#[test]
fn unknown_comprehension_required_attributes_are_refused_with_420_and_listed() {
    let mut lab = lab();
    let attributes = [
        udp(),
        (AttributeType(0x7001), vec![]),
        (AttributeType(0x7002), vec![]),
    ];
    let answer = lab.request(CLIENT, Method::ALLOCATE, &attributes);
    assert_eq!(code(&answer), 420);
    let unknown = Message::parse(&answer)
        .unwrap()
        .get::<UnknownAttributes>()
        .unwrap()
        .unwrap();
    let listed: Vec<_> = unknown.iter().collect();
    assert_eq!(listed, [AttributeType(0x7001), AttributeType(0x7002)]);
    let optional = [udp(), (AttributeType(0xf001), vec![1, 2, 3])];
    assert_eq!(code(&lab.request(CLIENT, Method::ALLOCATE, &optional)), 0);
}

// RFC 8656 §7.2
#[test]
fn even_port_gives_an_even_port() {
    let mut lab = lab();
    for n in 0..200 {
        let client = format!("198.18.0.1:{}", 1000 + n);
        let answer = lab.request(&client, Method::ALLOCATE, &[udp(), even(false)]);
        assert_eq!(relayed(&answer).port() % 2, 0);
        assert_eq!(token(&answer), None);
    }
}

// RFC 8656 §7.2: "If the server cannot satisfy the request, then the server rejects the request with a
// 508 (Insufficient Capacity) error."
#[test]
fn even_port_without_a_free_even_port_or_pair_is_refused_with_508() {
    let mut config = config();
    config.port_range = 50_000..=50_003;
    let mut lab = Lab::new(config);
    let client = |n: u16| format!("198.18.0.1:{n}");
    let first = lab.request(&client(1), Method::ALLOCATE, &[udp(), even(true)]);
    assert_eq!(code(&first), 0);
    let second = lab.request(&client(2), Method::ALLOCATE, &[udp(), even(false)]);
    assert_eq!(code(&second), 0);
    for reserve_next in [false, true] {
        let attributes = [udp(), even(reserve_next)];
        let answer = lab.request(&client(3), Method::ALLOCATE, &attributes);
        assert_eq!(code(&answer), 508, "the free port is odd");
    }
    assert_eq!(lab.relay.counters.ports_in_use.value(), 3);
    lab.allocate(&client(3));
}

// RFC 8656 §7.2
#[test]
fn reserved_port_is_given_to_who_shows_its_token() {
    let mut lab = lab();
    let first = lab.request(CLIENT, Method::ALLOCATE, &[udp(), even(true)]);
    let reserved = raw(&token(&first).unwrap());
    let second = lab.request(
        "198.18.0.1:40001",
        Method::ALLOCATE,
        &[udp(), reserved.clone()],
    );
    assert_eq!(relayed(&second).port(), relayed(&first).port() + 1);
    let third = lab.request("198.18.0.1:40002", Method::ALLOCATE, &[udp(), reserved]);
    assert_eq!(code(&third), 508, "a token is good once");
}

#[test]
fn reservation_ends_after_30_seconds_and_the_port_goes_back() {
    let mut lab = lab();
    let first = lab.request(CLIENT, Method::ALLOCATE, &[udp(), even(true)]);
    assert_eq!(lab.relay.counters.ports_in_use.value(), 2);
    lab.secs(29);
    assert_eq!(lab.relay.counters.ports_in_use.value(), 2);
    lab.secs(1);
    assert_eq!(lab.relay.counters.ports_in_use.value(), 1);
    let late = [udp(), raw(&token(&first).unwrap())];
    assert_eq!(
        code(&lab.request("198.18.0.1:2", Method::ALLOCATE, &late)),
        508
    );
}

#[test]
fn token_of_another_user_is_refused() {
    let mut lab = lab();
    let first = lab.request(CLIENT, Method::ALLOCATE, &[udp(), even(true)]);
    let attributes = [udp(), raw(&token(&first).unwrap())];
    let client = "198.18.0.1:2";
    let request = lab.signed_by("bob", "other", client, Method::ALLOCATE, &attributes);
    assert_eq!(code(&lab.ask(client, &request).unwrap()), 508);
}

#[test]
fn token_is_good_on_every_shard_and_its_port_returns_to_the_shard_it_is_from() {
    let mut config = config();
    config.shards = 2;
    let shared = Arc::new(RelayShared::new(&config));
    let mut home = Lab::of_shard(config.clone(), Arc::clone(&shared), 0);
    let mut away = Lab::of_shard(config, shared, 1);
    let first = home.request(CLIENT, Method::ALLOCATE, &[udp(), even(true)]);
    let reserved = raw(&token(&first).unwrap());
    let client = "198.18.0.1:40001";
    let second = away.request(client, Method::ALLOCATE, &[udp(), reserved]);
    assert_eq!(relayed(&second).port(), relayed(&first).port() + 1);
    home.secs(60);
    assert_eq!(
        home.relay.counters.ports_in_use.value(),
        2,
        "the port is in use elsewhere"
    );
    away.request(client, Method::REFRESH, &[lifetime(0)]);
    assert!(home.relay.poll_timeout().unwrap() <= home.now);
    home.secs(0);
    assert_eq!(home.relay.counters.ports_in_use.value(), 1);
    home.allocate("198.18.0.1:40002");
    assert_eq!(home.relay.counters.ports_in_use.value(), 2);
    assert_eq!(away.relay.counters.ports_in_use.value(), 0);
}

#[test]
fn a_pair_whose_even_port_somebody_else_holds_is_given_back_whole() {
    let mut lab = lab();
    lab.shell = Shell::Fails(PortError::InUse);
    let answer = lab.request(CLIENT, Method::ALLOCATE, &[udp(), even(true)]);
    assert_eq!(code(&answer), 508);
    assert_eq!(lab.relay.counters.ports_in_use.value(), 0);
    lab.secs(60);
    assert_eq!(lab.relay.counters.ports_in_use.value(), 0);
}

#[test]
fn a_pair_whose_even_port_somebody_else_holds_is_replaced_whole() {
    let mut lab = lab();
    lab.shell = Shell::Waits;
    let request = lab.signed(CLIENT, Method::ALLOCATE, &[udp(), even(true)]);
    assert_eq!(lab.ask(CLIENT, &request), None);
    let (port, error) = (PortId(0), PortError::InUse);
    let taken = lab.locals[&0].port();
    lab.event(RelayEvent::PortFailed { port, error });
    lab.shell = Shell::Opens;
    lab.run();
    let first = lab.sent.pop().unwrap().1;
    assert_ne!(relayed(&first).port(), taken);
    assert_eq!(lab.relay.counters.ports_in_use.value(), 2);
    let claim = [udp(), raw(&token(&first).unwrap())];
    let second = lab.request("198.18.0.1:2", Method::ALLOCATE, &claim);
    assert_eq!(relayed(&second).port(), relayed(&first).port() + 1);
    lab.secs(700);
    assert_eq!(lab.relay.counters.ports_in_use.value(), 0);
}

#[test]
fn a_pair_that_is_replaced_after_its_token_has_ended_is_a_single_port() {
    let mut lab = lab();
    lab.shell = Shell::Waits;
    let request = lab.signed(CLIENT, Method::ALLOCATE, &[udp(), even(true)]);
    assert_eq!(lab.ask(CLIENT, &request), None);
    lab.secs(31);
    let (port, error) = (PortId(0), PortError::InUse);
    lab.event(RelayEvent::PortFailed { port, error });
    lab.shell = Shell::Opens;
    lab.run();
    assert_eq!(lab.relay.counters.ports_in_use.value(), 1);
    let claim = [udp(), raw(&token(&lab.sent.pop().unwrap().1).unwrap())];
    assert_eq!(
        code(&lab.request("198.18.0.1:2", Method::ALLOCATE, &claim)),
        508
    );
    lab.secs(700);
    assert_eq!(lab.relay.counters.ports_in_use.value(), 0);
}

#[test]
fn reserved_port_that_somebody_else_took_is_refused_and_not_replaced() {
    let mut lab = lab();
    let first = lab.request(CLIENT, Method::ALLOCATE, &[udp(), even(true)]);
    let reserved = raw(&token(&first).unwrap());
    lab.shell = Shell::Fails(PortError::InUse);
    let client = "198.18.0.1:40001";
    let second = lab.request(client, Method::ALLOCATE, &[udp(), reserved]);
    assert_eq!(code(&second), 508);
    assert_eq!(lab.asked.len(), 1);
}

#[test]
fn shard_holds_no_more_ports_than_it_says_even_if_others_reserved_them() {
    let mut config = config();
    config.shards = 2;
    config.relay_addresses.truncate(1);
    config.port_range = 50_000..=50_015;
    let most = config.ports_per_shard();
    let shared = Arc::new(RelayShared::new(&config));
    let mut home = Lab::of_shard(config.clone(), Arc::clone(&shared), 0);
    let mut away = Lab::of_shard(config, shared, 1);
    for client in 0..8 {
        let reserving = format!("198.18.0.1:{}", 40_000 + client);
        let first = home.request(&reserving, Method::ALLOCATE, &[udp(), even(true)]);
        let Some(token) = token(&first) else { continue };
        let claiming = format!("198.18.0.1:{}", 41_000 + client);
        away.request(&claiming, Method::ALLOCATE, &[udp(), raw(&token)]);
    }
    for client in 0..u16::try_from(most).unwrap() {
        let client = format!("198.18.0.1:{}", 42_000 + client);
        away.request(&client, Method::ALLOCATE, &[udp()]);
    }
    assert_eq!(away.open.len(), most as usize);
    assert!(away.open.keys().all(|port| *port < most));
}

// RFC 8656 §7.2
#[test]
fn contradicting_wishes_are_a_bad_request() {
    let mut lab = lab();
    let token = raw(&ReservationToken([1; 8]));
    let both = raw(&AdditionalAddressFamily(Family::V6));
    for attributes in [
        vec![udp(), token.clone(), even(false)],
        vec![udp(), token.clone(), family(Family::V4)],
        vec![udp(), token, both.clone()],
        vec![udp(), both.clone(), family(Family::V6)],
        vec![udp(), both, even(true)],
        vec![udp(), raw(&AdditionalAddressFamily(Family::V4))],
        vec![udp(), (AttributeType::ADDITIONAL_ADDRESS_FAMILY, vec![2])],
    ] {
        assert_eq!(
            code(&lab.request(CLIENT, Method::ALLOCATE, &attributes)),
            400
        );
    }
}

#[test]
fn port_that_somebody_else_holds_is_replaced_by_another() {
    let mut lab = lab();
    lab.shell = Shell::Waits;
    let request = lab.signed(CLIENT, Method::ALLOCATE, &[udp()]);
    assert_eq!(lab.ask(CLIENT, &request), None);
    lab.event(RelayEvent::PortFailed {
        port: PortId(0),
        error: PortError::InUse,
    });
    lab.shell = Shell::Opens;
    lab.run();
    assert_eq!(code(&lab.sent.pop().unwrap().1), 0);
    assert_eq!(lab.relay.counters.ports_in_use.value(), 1);
}

#[test]
fn allocation_is_refused_with_508_after_a_bounded_number_of_ports() {
    for error in [PortError::InUse, PortError::NoDescriptors, PortError::Other] {
        let mut lab = lab();
        lab.shell = Shell::Fails(error);
        assert_eq!(code(&lab.request(CLIENT, Method::ALLOCATE, &[udp()])), 508);
        assert!(lab.asked.len() <= 9, "{} ports tried", lab.asked.len());
        assert_eq!(lab.relay.counters.ports_in_use.value(), 0);
        assert_eq!(lab.relay.counters.allocations.value(), 0);
        lab.shell = Shell::Opens;
        lab.allocate(CLIENT);
    }
}

#[test]
fn pool_without_ports_is_refused_with_508_and_all_ports_come_back() {
    let mut config = config();
    config.port_range = 50_000..=50_009;
    let mut lab = Lab::new(config);
    let client = |n: u16| format!("198.18.0.1:{}", 1000 + n);
    for _ in 0..3 {
        let ports: BTreeSet<_> = (0..10).map(|n| lab.allocate(&client(n)).port()).collect();
        assert_eq!(ports.len(), 10);
        assert_eq!(
            code(&lab.request(&client(10), Method::ALLOCATE, &[udp()])),
            508
        );
        (0..10).for_each(|n| drop(lab.request(&client(n), Method::REFRESH, &[lifetime(0)])));
        assert_eq!(lab.relay.counters.ports_in_use.value(), 0);
        assert!(lab.open.is_empty());
        assert_eq!(lab.shared.live_ports(0), 0);
    }
}

#[test]
fn limit_of_allocations_is_refused_with_508_and_of_one_user_with_486() {
    let mut config = config();
    config.limits.max_allocations = 3;
    config.limits.allocations_per_user = Some(2);
    let mut lab = Lab::new(config);
    lab.allocate("198.18.0.1:1");
    lab.allocate("198.18.0.1:2");
    assert_eq!(
        code(&lab.request("198.18.0.1:3", Method::ALLOCATE, &[udp()])),
        486
    );
    for (n, expected) in [(4, 0), (5, 508)] {
        let client = format!("198.18.0.1:{n}");
        let request = lab.signed_by("bob", "other", &client, Method::ALLOCATE, &[udp()]);
        assert_eq!(code(&lab.ask(&client, &request).unwrap()), expected);
    }
    lab.request("198.18.0.1:1", Method::REFRESH, &[lifetime(0)]);
    lab.allocate("198.18.0.1:3");
}

#[test]
fn a_reserved_port_counts_for_its_user_until_it_is_claimed_or_free() {
    let mut config = config();
    config.limits.allocations_per_user = Some(3);
    let mut lab = Lab::new(config);
    let client = |n: u16| format!("198.18.0.1:{n}");
    let pair = [udp(), even(true)];
    let first = lab.request(&client(1), Method::ALLOCATE, &pair);
    assert_eq!(code(&first), 0);
    assert_eq!(
        code(&lab.request(&client(2), Method::ALLOCATE, &pair)),
        486,
        "two ports are in use and two more are too many"
    );
    assert_eq!(lab.relay.counters.ports_in_use.value(), 2);
    lab.allocate(&client(2));
    let claim = [udp(), raw(&token(&first).unwrap())];
    let second = lab.request(&client(3), Method::ALLOCATE, &claim);
    assert_eq!(code(&second), 0, "it was counted when it was reserved");
    assert_eq!(
        code(&lab.request(&client(4), Method::ALLOCATE, &[udp()])),
        486
    );
    for n in [1, 2, 3] {
        lab.request(&client(n), Method::REFRESH, &[lifetime(0)]);
    }
    lab.request(&client(1), Method::ALLOCATE, &pair);
    lab.request(&client(1), Method::REFRESH, &[lifetime(0)]);
    lab.request(&client(1), Method::ALLOCATE, &pair);
    assert_eq!(
        code(&lab.request(&client(2), Method::ALLOCATE, &[udp()])),
        486
    );
    lab.secs(30);
    lab.allocate(&client(2));
    lab.allocate(&client(3));
    assert_eq!(
        code(&lab.request(&client(4), Method::ALLOCATE, &[udp()])),
        486
    );
}

#[test]
fn draining_refuses_new_allocations_while_others_go_on() {
    let mut lab = lab();
    lab.allocate(CLIENT);
    lab.event(RelayEvent::Drain);
    assert_eq!(
        code(&lab.request("198.18.0.1:2", Method::ALLOCATE, &[udp()])),
        508
    );
    assert_eq!(code(&lab.request(CLIENT, Method::REFRESH, &[])), 0);
    assert_eq!(lab.permit(CLIENT, &[PEER]), 0);
}

// RFC 8656 §8.2
#[test]
fn allocation_ends_when_it_is_not_refreshed() {
    let mut lab = lab();
    let relayed = lab.allocate(CLIENT);
    lab.secs(599);
    assert_eq!(lab.open.len(), 1);
    lab.secs(2);
    assert!(lab.open.is_empty());
    assert!(!lab.shared.is_live(0, relayed.port()));
    assert_eq!(lab.relay.counters.allocations.value(), 0);
    let Some(Notice::AllocationEnded { owner, reason, .. }) = lab.notices.pop() else {
        panic!("no notice of the end")
    };
    assert_eq!(reason, EndReason::Expired);
    assert_eq!(
        (&*owner.user, owner.client, owner.relayed),
        ("alice", address(CLIENT), relayed)
    );
    assert_eq!(owner.server, address("5.5.5.5:3478"));
    assert_eq!(code(&lab.request(CLIENT, Method::REFRESH, &[])), 437);
}

#[test]
fn refreshed_allocation_lives_on_from_then() {
    let mut lab = lab();
    lab.allocate(CLIENT);
    for _ in 0..5 {
        lab.secs(500);
        let answer = lab.request(CLIENT, Method::REFRESH, &[lifetime(100)]);
        assert_eq!(
            Message::parse(&answer).unwrap().get(),
            Ok(Some(Lifetime(600)))
        );
    }
    lab.secs(599);
    assert_eq!(lab.open.len(), 1);
    lab.secs(2);
    assert!(lab.open.is_empty());
}

#[test]
fn refresh_may_shorten_a_long_lifetime() {
    let mut lab = lab();
    lab.request(CLIENT, Method::ALLOCATE, &[udp(), lifetime(3600)]);
    lab.request(CLIENT, Method::REFRESH, &[lifetime(600)]);
    lab.secs(601);
    assert!(lab.open.is_empty());
}

// RFC 8656 §8.2
#[test]
fn refresh_of_zero_deletes_and_its_retransmission_is_answered_the_same() {
    let mut lab = lab();
    lab.allocate(CLIENT);
    let request = lab.signed(CLIENT, Method::REFRESH, &[lifetime(0)]);
    let first = lab.ask(CLIENT, &request).unwrap();
    assert_eq!(Message::parse(&first).unwrap().get(), Ok(Some(Lifetime(0))));
    assert!(lab.open.is_empty());
    assert_eq!(lab.ask(CLIENT, &request).unwrap(), first);
    assert_eq!(
        code(&lab.request(CLIENT, Method::REFRESH, &[lifetime(0)])),
        437
    );
    lab.allocate(CLIENT);
}

// RFC 8656 §8.2
#[test]
fn refresh_for_another_family_is_refused_with_443() {
    let mut lab = lab();
    lab.allocate(CLIENT);
    assert_eq!(
        code(&lab.request(CLIENT, Method::REFRESH, &[family(Family::V6)])),
        443
    );
    assert_eq!(
        code(&lab.request(CLIENT, Method::REFRESH, &[family(Family::V4)])),
        0
    );
    let zero = [family(Family::V6), lifetime(0)];
    assert_eq!(code(&lab.request(CLIENT, Method::REFRESH, &zero)), 443);
    assert_eq!(lab.open.len(), 1);
}

// RFC 8656 §5
#[test]
fn requests_of_another_user_are_refused_with_441() {
    let mut lab = lab();
    lab.allocate(CLIENT);
    for method in [
        Method::REFRESH,
        Method::CREATE_PERMISSION,
        Method::CHANNEL_BIND,
    ] {
        let attributes = [channel_number(0x4000), xor_peer(PEER)];
        let request = lab.signed_by("bob", "other", CLIENT, method, &attributes);
        assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 441);
    }
}

#[test]
fn five_tuple_may_allocate_again_after_the_end() {
    let mut lab = lab();
    lab.allocate(CLIENT);
    lab.now = lab.now + Duration::from_secs(600);
    lab.allocate(CLIENT);
    assert_eq!(
        lab.open.len(),
        1,
        "the expired one was closed, although its timer had not fired"
    );
}

#[test]
fn removed_user_loses_allocations_with_the_next_packet_or_the_next_timeout() {
    let mut lab = lab();
    lab.allocate(CLIENT);
    lab.allocate("198.18.0.1:2");
    lab.bind(CLIENT, 0x4000, PEER);
    let mut changed = config();
    changed.users = [("bob", credential("bob", "other"))].into_iter().collect();
    lab.event(RelayEvent::Reconfigured(Arc::new(changed)));
    assert!(
        lab.client_sends(CLIENT, &channel_data(0x4000, b"x"))
            .is_none()
    );
    assert_eq!(lab.open.len(), 1);
    lab.secs(0);
    assert!(lab.open.is_empty());
    assert!(matches!(
        lab.notices.last(),
        Some(Notice::AllocationEnded {
            reason: EndReason::UserRemoved,
            ..
        })
    ));
}

#[test]
fn changed_deny_rules_end_permissions_and_channels_at_once() {
    let mut lab = lab();
    lab.allocate(CLIENT);
    lab.bind(CLIENT, 0x4000, PEER);
    lab.bind(CLIENT, 0x4001, "8.8.8.8:1");
    let mut changed = config();
    changed.access.deny = vec!["9.9.9.0/24".parse().unwrap()];
    lab.event(RelayEvent::Reconfigured(Arc::new(changed)));
    assert!(lab.peer_sends(0, b"x").is_none());
    assert!(
        lab.client_sends(CLIENT, &channel_data(0x4000, b"x"))
            .is_none()
    );
    assert!(
        lab.client_sends(CLIENT, &send_indication(PEER, b"x"))
            .is_none()
    );
    assert!(
        lab.client_sends(CLIENT, &channel_data(0x4001, b"x"))
            .is_some()
    );
    assert_eq!(lab.bind(CLIENT, 0x4000, PEER), 403);
}

#[test]
fn reconfiguration_leaves_addresses_and_ports_as_they_were() {
    let mut lab = lab();
    let mut changed = config();
    changed.relay_addresses = vec![RelayAddress::direct([7, 7, 7, 7].into())];
    changed.port_range = 1..=2;
    lab.event(RelayEvent::Reconfigured(Arc::new(changed)));
    let relayed = lab.allocate(CLIENT);
    assert_eq!(relayed.ip(), address("5.5.5.5:1").ip());
    assert!((50_000..=50_999).contains(&relayed.port()));
}

#[test]
fn what_an_allocation_relayed_is_told_at_its_end() {
    let mut lab = lab();
    lab.allocate(CLIENT);
    lab.bind(CLIENT, 0x4000, PEER);
    lab.client_sends(CLIENT, &channel_data(0x4000, b"12345"));
    lab.client_sends(CLIENT, &send_indication(PEER, b"123"));
    lab.peer_sends(0, b"1234567");
    lab.arrive(
        Socket::Relayed(PortId(0)),
        "5.5.5.5",
        address("9.9.9.9:1"),
        b"1",
    );
    lab.request(CLIENT, Method::REFRESH, &[lifetime(0)]);
    let Some(Notice::AllocationEnded { traffic, .. }) = lab.notices.pop() else {
        panic!("no notice of the end")
    };
    let expected = Traffic {
        packets_to_peers: 2,
        bytes_to_peers: 8,
        packets_to_client: 2,
        bytes_to_client: 8,
    };
    assert_eq!(traffic, expected);
}

#[test]
fn notices_nobody_fetches_are_counted_and_lost() {
    let mut lab = lab();
    for n in 0..5_000_u16 {
        let client = format!("198.18.0.1:{}", 1000 + n % 900);
        let method = if n / 900 % 2 == 0 {
            Method::ALLOCATE
        } else {
            Method::REFRESH
        };
        let request = lab.signed(&client, method, &[udp(), lifetime(0)]);
        let mut payload = request.clone();
        let datagram = crate::machine::Datagram {
            socket: Socket::Listener(crate::machine::ListenerId(0)),
            local: address("5.5.5.5:1").ip(),
            remote: address(&client),
            traffic_class: TrafficClass::ORDINARY,
            payload: &mut payload,
        };
        lab.relay.handle_datagram(lab.now, datagram);
        let waiting: Vec<_> = lab.relay.commands.iter().cloned().collect();
        for command in waiting {
            if let RelayCommand::OpenPort { port, .. } = command {
                lab.relay
                    .handle_event(lab.now, RelayEvent::PortOpened { port });
            }
        }
        lab.relay
            .commands
            .retain(|command| matches!(command, RelayCommand::Notify(_)));
        while lab.relay.poll_transmit(lab.now, &mut [0; 2048]).is_some() {}
    }
    let waiting = lab.relay.commands.len() as u64;
    assert!((4_000..=4_096).contains(&waiting));
    assert_eq!(lab.relay.counters.notices_lost.value(), 5_000 - waiting);
}
