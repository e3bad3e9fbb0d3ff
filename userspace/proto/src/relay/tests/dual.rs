//! Dual allocations: an IPv4 and an IPv6 relayed address under one 5-tuple.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::lab::*;
use crate::machine::{PortId, Socket};
use crate::relay::*;
use crate::wire::attribute::{
    AdditionalAddressFamily, AddressErrorCode, EvenPort, Family, Lifetime, RequestedAddressFamily,
    XorRelayedAddress,
};
use crate::wire::{AttributeType, Message, Method};

const SERVER: &str = "5.5.5.5:3478";
const PEER6: &str = "[2620::9]:7000";

fn both() -> [(AttributeType, Vec<u8>); 2] {
    [udp(), raw(&AdditionalAddressFamily(Family::V6))]
}

fn only(family: Family) -> (AttributeType, Vec<u8>) {
    raw(&RequestedAddressFamily(family))
}

/// What a success says: the relayed addresses, and the family that was refused.
fn granted(answer: &[u8]) -> (Vec<SocketAddr>, Option<(Family, u16)>) {
    assert_eq!(code(answer), 0);
    let message = Message::parse(answer).unwrap();
    let relayed = message.get_all::<XorRelayedAddress>();
    let refused = message.get::<AddressErrorCode<'_>>().unwrap();
    (
        relayed.map(|relayed| relayed.unwrap().0).collect(),
        refused.map(|refused| (refused.family, refused.code.number())),
    )
}

/// A client with a dual allocation; gives back its relayed addresses.
fn dual_lab() -> (Lab, [SocketAddr; 2]) {
    let mut lab = Lab::new(config());
    let (relayed, refused) = granted(&lab.request(CLIENT, Method::ALLOCATE, &both()));
    assert_eq!(refused, None);
    (lab, relayed.try_into().unwrap())
}

fn port_at(lab: &Lab, relayed: SocketAddr) -> PortId {
    let mut ports = lab.open.iter();
    PortId(*ports.find(|(_, open)| **open == relayed).unwrap().0)
}

fn from_peer(lab: &mut Lab, relayed: SocketAddr, peer: &str) -> Option<Vec<u8>> {
    let socket = Socket::Relayed(port_at(lab, relayed));
    let sent = lab.arrive(socket, &relayed.ip().to_string(), address(peer), b"in");
    sent.map(|(transmit, bytes)| {
        assert_eq!(transmit.destination, address(CLIENT));
        bytes
    })
}

/// Where data to a peer leaves, if it does.
fn source_to(lab: &mut Lab, bytes: &[u8]) -> Option<SocketAddr> {
    let (transmit, _) = lab.client_sends(CLIENT, bytes)?;
    let Socket::Relayed(port) = transmit.socket else {
        panic!("{transmit:?} is not for a peer");
    };
    Some(lab.open[&port.0])
}

fn refresh(lab: &mut Lab, attributes: &[(AttributeType, Vec<u8>)]) -> u16 {
    code(&lab.request(CLIENT, Method::REFRESH, attributes))
}

fn assert_nothing_is_left(lab: &Lab) {
    assert!(lab.open.is_empty(), "{:?}", lab.open);
    assert!(lab.routes.is_empty(), "{:?}", lab.routes);
    assert_eq!(lab.relay.counters.ports_in_use.value(), 0);
    assert_eq!(lab.relay.counters.allocations.value(), 0);
    assert_eq!((lab.shared.live_ports(0), lab.shared.live_ports(1)), (0, 0));
    assert_eq!(lab.relay.allocations.ports(), 0);
}

// RFC 8656 §7.2: "then the server allocates one IPv4 and one IPv6 relay address and returns an Allocate
// success response containing the relayed transport addresses assigned to the dual allocation in two
// XOR-RELAYED-ADDRESS attributes".
#[test]
fn an_additional_family_gives_a_relayed_address_of_each_in_one_allocation() {
    let mut config = config();
    config.limits.allocations_per_user = Some(1);
    let mut lab = Lab::new(config);
    let answer = lab.request(CLIENT, Method::ALLOCATE, &both());
    let (relayed, refused) = granted(&answer);
    let ips: Vec<_> = relayed.iter().map(SocketAddr::ip).collect();
    assert_eq!(
        ips,
        ["5.5.5.5", "2600::5"].map(|ip| ip.parse::<IpAddr>().unwrap())
    );
    assert_eq!(refused, None);
    assert!(lab.open.values().eq(&relayed));
    for (index, relayed) in relayed.iter().enumerate() {
        assert!(lab.shared.is_live(index, relayed.port()));
    }
    let counters = &lab.relay.counters;
    assert_eq!(counters.allocations.value(), 1);
    assert_eq!(counters.allocations_made.value(), 1);
    assert_eq!(counters.ports_in_use.value(), 2);
    let Some(Notice::AllocationMade { owner, .. }) = lab.notices.pop() else {
        panic!("no notice of the allocation");
    };
    assert_eq!(
        (owner.relayed, owner.second),
        (relayed[0], Some(relayed[1]))
    );
    assert_eq!(
        code(&lab.request("198.18.0.1:2", Method::ALLOCATE, &[udp()])),
        486,
        "it is one allocation"
    );
    assert_eq!(refresh(&mut lab, &[lifetime(0)]), 0);
    assert_nothing_is_left(&lab);
    assert_eq!(
        granted(&lab.request(CLIENT, Method::ALLOCATE, &both()))
            .0
            .len(),
        2
    );
}

// coturn's client asks by the number that the attribute had before RFC 8656.
#[test]
fn an_additional_family_is_understood_by_its_early_number_too() {
    let mut lab = Lab::new(config());
    let early = |family| (AttributeType(0x8032), vec![family, 0, 0, 0]);
    let v4 = lab.request(CLIENT, Method::ALLOCATE, &[udp(), early(1)]);
    assert_eq!(code(&v4), 400);
    let (relayed, refused) = granted(&lab.request(CLIENT, Method::ALLOCATE, &[udp(), early(2)]));
    assert_eq!((relayed.len(), refused), (2, None));
}

// RFC 8656 §7.2: a retransmission is answered like the first.
#[test]
fn a_retransmitted_allocate_is_told_both_addresses_again() {
    let mut lab = Lab::new(config());
    let request = lab.signed(CLIENT, Method::ALLOCATE, &both());
    let first = lab.ask(CLIENT, &request).unwrap();
    assert_eq!(lab.ask(CLIENT, &request).unwrap(), first);
    assert_eq!(lab.open.len(), 2);
}

// RFC 8656 §7.2: "If the server can partially meet the request, i.e., if it can only allocate one
// relayed transport address of a specific address type, then it includes ADDRESS-ERROR-CODE attribute
// in the success response to inform the client the reason for partial failure of the request."
#[test]
fn a_family_without_a_relay_address_is_refused_with_440_beside_the_other() {
    for (left, refused) in [(0, Family::V6), (1, Family::V4)] {
        let mut config = config();
        config.relay_addresses = vec![config.relay_addresses[left]];
        let mut lab = Lab::new(config);
        let (relayed, said) = granted(&lab.request(CLIENT, Method::ALLOCATE, &both()));
        assert_eq!(relayed.len(), 1);
        assert_eq!(said, Some((refused, 440)));
        assert_ne!(Family::of(relayed[0].ip()), refused);
        let peer = if left == 0 { PEER } else { PEER6 };
        assert_eq!(lab.bind(CLIENT, 0x4000, peer), 0);
        assert_eq!(
            source_to(&mut lab, &channel_data(0x4000, b"x")),
            Some(relayed[0])
        );
        assert!(from_peer(&mut lab, relayed[0], peer).is_some());
        let other = if left == 0 { PEER6 } else { PEER };
        assert_eq!(lab.bind(CLIENT, 0x4001, other), 443);
        lab.secs(700);
        assert_nothing_is_left(&lab);
    }
}

#[test]
fn a_family_without_free_ports_is_refused_with_508_beside_the_other_and_both_with_508() {
    for (taken, refused) in [(Family::V6, Family::V6), (Family::V4, Family::V4)] {
        let mut config = config();
        config.port_range = 50_000..=50_001;
        let mut lab = Lab::new(config);
        for n in 0..2 {
            let client = format!("198.18.0.2:{}", 1000 + n);
            lab.request(&client, Method::ALLOCATE, &[udp(), only(taken)]);
        }
        assert_eq!(lab.open.len(), 2);
        for n in 0..2 {
            let client = format!("198.18.0.3:{}", 1000 + n);
            let (relayed, said) = granted(&lab.request(&client, Method::ALLOCATE, &both()));
            assert_eq!((relayed.len(), said), (1, Some((refused, 508))));
        }
        assert_eq!(
            code(&lab.request(CLIENT, Method::ALLOCATE, &both())),
            508,
            "neither family is left"
        );
        assert_eq!(lab.open.len(), 4);
        lab.secs(700);
        assert_nothing_is_left(&lab);
    }
}

#[test]
fn a_second_family_that_would_exceed_the_shards_limit_is_refused_with_508() {
    let mut config = config();
    config.limits.max_allocations = 3;
    let mut lab = Lab::new(config);
    let [first, second] = ["198.18.0.1:1", "198.18.0.1:2"]
        .map(|client| granted(&lab.request(client, Method::ALLOCATE, &both())));
    assert_eq!((first.0.len(), first.1), (2, None));
    assert_eq!((second.0.len(), second.1), (1, Some((Family::V6, 508))));
    assert!(lab.open.keys().all(|port| *port < 3));
    assert_eq!(
        code(&lab.request("198.18.0.1:3", Method::ALLOCATE, &both())),
        508
    );
}

// RFC 8656 §7.2: EVEN-PORT with the R bit and ADDITIONAL-ADDRESS-FAMILY contradict each other (see
// `contradicting_wishes_are_a_bad_request`); without the bit both ports are even.
#[test]
fn even_port_beside_an_additional_family_gives_two_even_ports() {
    let mut lab = Lab::new(config());
    for n in 0..50 {
        let client = format!("198.18.0.1:{}", 1000 + n);
        let even = raw(&EvenPort {
            reserve_next: false,
        });
        let [udp, additional] = both();
        let answer = lab.request(&client, Method::ALLOCATE, &[udp, additional, even]);
        let (relayed, _) = granted(&answer);
        let ports = relayed.iter().map(|relayed| relayed.port() % 2);
        assert_eq!(ports.collect::<Vec<_>>(), [0, 0]);
    }
}

/// What the shell says to each OpenPort, in order.
const OUTCOMES: [Option<PortError>; 3] = [None, Some(PortError::InUse), Some(PortError::Other)];

/// Every order in which ports open and fail: the client is told what there is, and of all else
/// nothing is kept.
#[test]
fn ports_are_conserved_in_every_order_of_openings_and_failures() {
    const STEPS: u32 = 5;
    for case in 0..3_usize.pow(STEPS) {
        let mut config = config();
        config.port_range = 50_000..=50_005;
        let mut lab = Lab::new(config);
        lab.shell = Shell::Waits;
        let request = lab.signed(CLIENT, Method::ALLOCATE, &both());
        assert_eq!(lab.ask(CLIENT, &request), None);
        let mut rest = case;
        while let Some(port) = lab.asked.pop() {
            assert!(lab.asked.is_empty(), "one port is asked for at a time");
            assert!(lab.sent.is_empty(), "the answer waits for the ports");
            assert_eq!(lab.ask(CLIENT, &request), None, "it is still opening");
            match OUTCOMES[rest % 3] {
                None => {
                    lab.open.insert(port.0, lab.locals[&port.0]);
                    lab.event(RelayEvent::PortOpened { port });
                }
                Some(error) => lab.event(RelayEvent::PortFailed { port, error }),
            }
            rest /= 3;
            lab.run();
        }
        let answer = lab.sent.pop().expect("an answer").1;
        if code(&answer) == 0 {
            let (relayed, refused) = granted(&answer);
            assert_eq!(relayed.len(), lab.open.len());
            assert!(
                relayed
                    .iter()
                    .all(|told| lab.open.values().any(|open| open == told))
            );
            assert_eq!(relayed.len() == 2, refused.is_none(), "case {case}");
            assert_eq!(
                lab.relay.counters.ports_in_use.value(),
                relayed.len() as u64
            );
            if let Some((family, code)) = refused {
                assert_eq!(code, 508);
                assert_ne!(Family::of(relayed[0].ip()), family);
            }
            for told in relayed {
                let peer = if told.is_ipv4() { PEER } else { PEER6 };
                assert_eq!(lab.permit(CLIENT, &[peer]), 0);
                assert_eq!(
                    source_to(&mut lab, &send_indication(peer, b"x")),
                    Some(told)
                );
                assert!(from_peer(&mut lab, told, peer).is_some());
            }
            assert_eq!(refresh(&mut lab, &[lifetime(0)]), 0);
        } else {
            assert_eq!(code(&answer), 508);
        }
        assert_nothing_is_left(&lab);
    }
}

// RFC 8656 §9 to §12: a peer is reached from the relayed address of its family.
#[test]
fn peers_of_either_family_are_reached_from_the_address_of_that_family() {
    let (mut lab, [v4, v6]) = dual_lab();
    assert_eq!(lab.permit(CLIENT, &[PEER, PEER6]), 0);
    for (number, peer, relayed) in [(0x4000, PEER, v4), (0x4001, PEER6, v6)] {
        assert_eq!(
            source_to(&mut lab, &send_indication(peer, b"x")),
            Some(relayed)
        );
        let data = from_peer(&mut lab, relayed, peer).unwrap();
        assert_eq!(Message::parse(&data).unwrap().method(), Method::DATA);
        assert_eq!(lab.bind(CLIENT, number, peer), 0);
        assert_eq!(
            source_to(&mut lab, &channel_data(number, b"x")),
            Some(relayed)
        );
        assert_eq!(
            from_peer(&mut lab, relayed, peer),
            Some(channel_data(number, b"in"))
        );
    }
    assert_eq!(from_peer(&mut lab, v6, "[2620::8]:1"), None);
    assert_eq!(lab.drops(DropReason::NoPermissionFromPeer), 1);
}

#[test]
fn both_addresses_have_routes_in_the_kernel() {
    let (mut lab, [v4, v6]) = dual_lab();
    assert_eq!(lab.bind(CLIENT, 0x4000, PEER), 0);
    assert_eq!(lab.bind(CLIENT, 0x4001, PEER6), 0);
    assert_eq!(lab.check_routes(), 4);
    assert_eq!(lab.route(CLIENT, SERVER, 0x4000).unwrap().source, v4);
    assert_eq!(lab.route(CLIENT, SERVER, 0x4001).unwrap().source, v6);
    assert!(lab.route(PEER6, &v6.to_string(), 0).is_some());
    assert_eq!(refresh(&mut lab, &[only(Family::V6), lifetime(0)]), 0);
    assert_eq!(lab.check_routes(), 2);
    assert!(lab.route(CLIENT, SERVER, 0x4000).is_some());
    assert_eq!(lab.relay.counters.routes.value(), 2);
}

// RFC 8656 §8.1: "Deleting a single allocation destroys any permissions or channels associated with
// that particular allocation; it MUST NOT affect any permissions or channels associated with
// allocations for the other address family."
#[test]
fn deleting_one_family_leaves_the_other_as_it_was() {
    for (gone, kept) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
        let (mut lab, relayed) = dual_lab();
        let peer = |family| if family == Family::V4 { PEER } else { PEER6 };
        let at = |family| relayed[usize::from(family == Family::V6)];
        assert_eq!(lab.bind(CLIENT, 0x4000, peer(gone)), 0);
        assert_eq!(lab.bind(CLIENT, 0x4001, peer(kept)), 0);
        let request = lab.signed(CLIENT, Method::REFRESH, &[only(gone), lifetime(0)]);
        let answer = lab.ask(CLIENT, &request).unwrap();
        assert_eq!(
            Message::parse(&answer).unwrap().get(),
            Ok(Some(Lifetime(0)))
        );
        assert_eq!(
            lab.ask(CLIENT, &request).unwrap(),
            answer,
            "its retransmission"
        );
        assert!(lab.open.values().eq([&at(kept)]));
        assert_eq!(lab.relay.counters.ports_in_use.value(), 1);
        assert_eq!(lab.relay.counters.allocations.value(), 1);
        let index = usize::from(gone == Family::V6);
        assert!(!lab.shared.is_live(index, at(gone).port()));
        let Some(Notice::AddressEnded {
            owner,
            ended,
            reason,
        }) = lab.notices.pop()
        else {
            panic!("no notice of the end");
        };
        assert_eq!((owner.relayed, owner.second), (at(kept), None));
        assert_eq!((ended, reason), (at(gone), EndReason::Deleted));

        assert!(source_to(&mut lab, &channel_data(0x4000, b"x")).is_none());
        assert!(source_to(&mut lab, &send_indication(peer(gone), b"x")).is_none());
        assert_eq!(lab.bind(CLIENT, 0x4000, peer(gone)), 443);
        assert_eq!(lab.permit(CLIENT, &[peer(gone)]), 443);
        assert_eq!(
            source_to(&mut lab, &channel_data(0x4001, b"x")),
            Some(at(kept))
        );
        assert_eq!(
            from_peer(&mut lab, at(kept), peer(kept)),
            Some(channel_data(0x4001, b"in"))
        );
        assert_eq!(lab.check_routes(), 2);

        assert_eq!(refresh(&mut lab, &[only(gone)]), 443, "RFC 8656 §8.2");
        assert_eq!(refresh(&mut lab, &[only(gone), lifetime(0)]), 443);
        assert_eq!(refresh(&mut lab, &[only(kept)]), 0);
        // Its number is not another allocation's while this one lives.
        lab.allocate("198.18.0.2:1");
        assert_eq!(lab.open.len(), 2);
        assert_eq!(refresh(&mut lab, &[only(kept), lifetime(0)]), 0);
        assert_eq!(refresh(&mut lab, &[]), 437);
        lab.secs(700);
        assert_nothing_is_left(&lab);
    }
}

// RFC 8656 §8.1: "the client includes a REQUESTED-ADDRESS-FAMILY attribute with … the address family type
// that should be refreshed".
#[test]
fn refreshing_one_family_lets_the_other_expire_in_its_time() {
    for (refreshed, other) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
        let (mut lab, relayed) = dual_lab();
        let at = |family| relayed[usize::from(family == Family::V6)];
        let peer = |family| if family == Family::V4 { PEER } else { PEER6 };
        lab.secs(400);
        assert_eq!(refresh(&mut lab, &[only(refreshed)]), 0);
        assert_eq!(lab.bind(CLIENT, 0x4000, peer(other)), 0);
        assert_eq!(lab.bind(CLIENT, 0x4001, peer(refreshed)), 0);
        lab.check_routes();
        lab.secs(199);
        assert_eq!(lab.open.len(), 2);
        assert!(from_peer(&mut lab, at(other), peer(other)).is_some());
        // Its end is its end, although the timer is late.
        lab.now = lab.now + Duration::from_secs(1);
        assert!(from_peer(&mut lab, at(other), peer(other)).is_none());
        assert!(source_to(&mut lab, &channel_data(0x4000, b"x")).is_none());
        assert_eq!(lab.check_routes(), 2);
        lab.secs(1);
        assert!(lab.open.values().eq([&at(refreshed)]));
        assert!(matches!(
            lab.notices.last(),
            Some(Notice::AddressEnded {
                reason: EndReason::Expired,
                ..
            })
        ));
        assert_eq!(
            source_to(&mut lab, &channel_data(0x4001, b"x")),
            Some(at(refreshed))
        );
        lab.secs(398);
        assert_eq!(lab.open.len(), 1);
        lab.secs(2);
        assert_nothing_is_left(&lab);
    }
}

#[test]
fn a_request_finds_an_expired_family_gone_although_its_timer_is_late() {
    let (mut lab, [v4, _]) = dual_lab();
    lab.secs(400);
    assert_eq!(refresh(&mut lab, &[only(Family::V4)]), 0);
    lab.now = lab.now + Duration::from_secs(200);
    assert_eq!(lab.permit(CLIENT, &[PEER6]), 443);
    assert!(lab.open.values().eq([&v4]));
    assert_eq!(refresh(&mut lab, &[]), 0);
}

// RFC 8656 §8.1: "If no REQUESTED-ADDRESS-FAMILY is included, then the request should be treated as
// applying to all current allocations."
#[test]
fn a_refresh_without_family_is_for_both() {
    let (mut lab, _) = dual_lab();
    lab.secs(400);
    assert_eq!(refresh(&mut lab, &[]), 0);
    lab.secs(599);
    assert_eq!(lab.open.len(), 2);
    assert_eq!(refresh(&mut lab, &[lifetime(0)]), 0);
    assert_nothing_is_left(&lab);
}

#[test]
fn a_lifetime_that_one_family_is_shortened_to_is_its_end() {
    let mut config = config();
    config.limits.default_lifetime = Duration::from_secs(60);
    let mut lab = Lab::new(config);
    let [udp, additional] = both();
    lab.request(CLIENT, Method::ALLOCATE, &[udp, additional, lifetime(3600)]);
    assert_eq!(refresh(&mut lab, &[only(Family::V4), lifetime(60)]), 0);
    lab.secs(61);
    assert_eq!(lab.open.len(), 1);
    assert!(lab.open.values().all(SocketAddr::is_ipv6));
}

#[test]
fn changed_rules_end_what_they_deny_in_both_families() {
    let (mut lab, [v4, v6]) = dual_lab();
    lab.bind(CLIENT, 0x4000, PEER);
    lab.bind(CLIENT, 0x4001, PEER6);
    let mut changed = config();
    changed.access.deny = vec!["2620::/16".parse().unwrap()];
    lab.event(RelayEvent::Reconfigured(std::sync::Arc::new(changed)));
    lab.secs(1);
    assert_eq!(lab.check_routes(), 2);
    assert!(from_peer(&mut lab, v6, PEER6).is_none());
    assert!(from_peer(&mut lab, v4, PEER).is_some());
    assert_eq!(lab.bind(CLIENT, 0x4001, PEER6), 403);
    let mut changed = config();
    changed.users = [("bob", credential("bob", "other"))].into_iter().collect();
    lab.event(RelayEvent::Reconfigured(std::sync::Arc::new(changed)));
    lab.secs(1);
    assert_nothing_is_left(&lab);
}

// A retransmitted deletion that comes late must not end what was made since.
#[test]
fn a_late_retransmission_of_a_deletion_leaves_a_new_allocation_alone() {
    let (mut lab, _) = dual_lab();
    let deletion = lab.signed(CLIENT, Method::REFRESH, &[lifetime(0)]);
    let answer = lab.ask(CLIENT, &deletion).unwrap();
    lab.allocate(CLIENT);
    assert_eq!(lab.ask(CLIENT, &deletion).unwrap(), answer);
    assert_eq!(lab.open.len(), 1);
}
