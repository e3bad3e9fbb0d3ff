//! What travels beside the payload: DSCP and ECN, the DF bit, and ICMP errors.

use std::time::Duration;

use super::lab::*;
use crate::Machine;
use crate::machine::{IcmpError, ListenerId, PortId, Socket, TrafficClass, Transmit};
use crate::relay::DropReason;
use crate::wire::attribute::{Data, Icmp, XorPeerAddress};
use crate::wire::{AttributeType, Class, Message, MessageType, Method};

const CLIENT_V6: &str = "[2600::77]:40000";

fn lab() -> Lab {
    let mut lab = Lab::new(config());
    lab.allocate(CLIENT);
    lab
}

fn family(number: u8) -> (AttributeType, Vec<u8>) {
    (
        AttributeType::REQUESTED_ADDRESS_FAMILY,
        vec![number, 0, 0, 0],
    )
}

fn send_whole(peer: &str, data: &[u8]) -> Vec<u8> {
    let attributes = [
        xor_peer(peer),
        (AttributeType::DONT_FRAGMENT, vec![]),
        (AttributeType::DATA, data.to_vec()),
    ];
    let kind = MessageType::new(Method::SEND, Class::Indication);
    unsigned(kind, &attributes, false)
}

// RFC 8656 §15, preferred: "Set the outgoing value to the incoming value".
#[test]
fn dscp_and_ecn_of_a_datagram_are_those_of_what_it_is_relayed_as() {
    let mut lab = lab();
    lab.permit(CLIENT, &[PEER]);
    for class in [0, 0x03, 0xb9, 0xff].map(TrafficClass) {
        lab.traffic_class = class;
        let sent = lab.client_sends(CLIENT, &send_indication(PEER, b"x"));
        assert_eq!(sent.unwrap().0.traffic_class, class);
        assert_eq!(lab.peer_sends(0, b"x").unwrap().0.traffic_class, class);
    }
    lab.bind(CLIENT, 0x4000, PEER);
    for class in [0xff, 0x02, 0].map(TrafficClass) {
        lab.traffic_class = class;
        let sent = lab.client_sends(CLIENT, &channel_data(0x4000, b"x"));
        assert_eq!(sent.unwrap().0.traffic_class, class);
        assert_eq!(lab.peer_sends(0, b"x").unwrap().0.traffic_class, class);
    }
}

#[test]
fn answers_are_of_the_ordinary_class_whatever_the_request_was() {
    let mut lab = lab();
    lab.traffic_class = TrafficClass(0xb9);
    let request = lab.signed(CLIENT, Method::CREATE_PERMISSION, &[xor_peer(PEER)]);
    assert!(lab.client_sends(CLIENT, &request).is_none());
    let (answer, _) = lab.sent.pop().unwrap();
    assert_eq!(answer.traffic_class, TrafficClass::ORDINARY);
}

// RFC 8656 §7.2
#[test]
fn allocate_with_dont_fragment_succeeds() {
    let mut lab = Lab::new(config());
    let attributes = [udp(), (AttributeType::DONT_FRAGMENT, vec![])];
    assert_eq!(code(&lab.request(CLIENT, Method::ALLOCATE, &attributes)), 0);
}

// RFC 8656 §15, preferred: "When the server sends a packet to a peer in response to a Send indication
// containing the DONT-FRAGMENT attribute, then set the DF bit in the outgoing IP header to 1."
#[test]
fn data_of_a_send_indication_with_dont_fragment_leave_whole_and_others_as_they_can() {
    let mut lab = lab();
    lab.bind(CLIENT, 0x4000, PEER);
    let (whole, bytes) = lab.client_sends(CLIENT, &send_whole(PEER, b"abc")).unwrap();
    assert!(whole.dont_fragment);
    assert_eq!(bytes, b"abc");
    for message in [send_indication(PEER, b"x"), channel_data(0x4000, b"x")] {
        let (transmit, _) = lab.client_sends(CLIENT, &message).unwrap();
        assert!(!transmit.dont_fragment);
    }
    assert!(!lab.peer_sends(0, b"x").unwrap().0.dont_fragment);
}

// RFC 8656 §14: "the DONT-FRAGMENT attribute MUST be ignored by the server".
#[test]
fn dont_fragment_is_ignored_where_a_side_is_ipv6() {
    let mut lab = Lab::new(config());
    let asked = [
        (CLIENT_V6, family(2), "[2600::9]:7000"),
        (CLIENT, family(2), "[2600::9]:7000"),
        ("[2600::78]:40000", family(1), PEER),
    ];
    for (client, family, peer) in asked {
        let answer = lab.request(client, Method::ALLOCATE, &[udp(), family]);
        assert_eq!(code(&answer), 0);
        assert_eq!(lab.permit(client, &[peer]), 0);
        let (transmit, _) = lab.client_sends(client, &send_whole(peer, b"abc")).unwrap();
        assert!(!transmit.dont_fragment, "{client} to {peer}");
    }
}

fn error(icmp_type: u8, code: u8, mtu: u32) -> IcmpError {
    IcmpError {
        socket: Socket::Relayed(PortId(0)),
        destination: address(PEER),
        icmp_type,
        code,
        mtu,
    }
}

impl Lab {
    /// The Data indication that an error led to.
    fn told_of(&mut self, error: IcmpError) -> Option<(Transmit, Vec<u8>)> {
        self.sent.clear();
        self.relay.handle_icmp(self.now, error);
        if self.relay.poll_timeout().is_some_and(|at| at <= self.now) {
            self.run();
        }
        assert!(self.sent.len() <= 1);
        self.sent.pop()
    }
}

// RFC 8656 §11.5
#[test]
fn an_icmp_error_about_a_permitted_peer_is_told_in_a_data_indication_without_data() {
    let mut lab = lab();
    lab.permit(CLIENT, &["9.9.9.9:1"]);
    let (transmit, bytes) = lab.told_of(error(3, 3, 0)).unwrap();
    assert_eq!(transmit.socket, Socket::Listener(ListenerId(0)));
    assert_eq!(transmit.destination, address(CLIENT));
    assert_eq!(transmit.traffic_class, TrafficClass::ORDINARY);
    let message = Message::parse(&bytes).unwrap();
    let kind = MessageType::new(Method::DATA, Class::Indication);
    assert_eq!(message.message_type(), kind);
    assert_eq!(message.get(), Ok(Some(XorPeerAddress(address(PEER)))));
    assert_eq!(message.get::<Data<'_>>(), Ok(None));
    let icmp = Icmp {
        icmp_type: 3,
        code: 3,
        error_data: 0,
    };
    assert_eq!(message.get(), Ok(Some(icmp)));
    assert_eq!(lab.relay.counters.icmp_indications.value(), 1);
}

// RFC 8656 §18.13
#[test]
fn the_error_data_are_the_mtu_of_too_big_and_zero_elsewhere() {
    let mut lab = lab();
    lab.permit(CLIENT, &[PEER]);
    for (icmp_type, code, expected) in [(3, 4, 1280), (3, 3, 0), (11, 0, 0)] {
        let (_, bytes) = lab.told_of(error(icmp_type, code, 1280)).unwrap();
        let icmp: Icmp = Message::parse(&bytes).unwrap().get().unwrap().unwrap();
        assert_eq!((icmp.icmp_type, icmp.code), (icmp_type, code.into()));
        assert_eq!(icmp.error_data, expected);
    }
}

// RFC 8656 §11.5: "the type is either 3 or 11 for an ICMPv4 packet or either 1, 2, or 3 for an ICMPv6
// packet."
#[test]
fn icmp_errors_of_other_types_are_not_told() {
    let mut lab = Lab::new(config());
    lab.request(CLIENT, Method::ALLOCATE, &[udp(), family(2)]);
    lab.permit(CLIENT, &["[2600::9]:7000"]);
    let told: Vec<u8> = (0..=u8::MAX)
        .filter(|icmp_type| {
            lab.secs(1);
            let error = IcmpError {
                destination: address("[2600::9]:7000"),
                ..error(*icmp_type, 0, 0)
            };
            lab.told_of(error).is_some()
        })
        .collect();
    assert_eq!(told, [1, 2, 3]);
    let mut lab = self::lab();
    lab.permit(CLIENT, &[PEER]);
    for icmp_type in [0, 1, 2, 4, 5, 8, 12, 255] {
        assert!(lab.told_of(error(icmp_type, 0, 0)).is_none());
    }
    assert_eq!(
        lab.relay.counters.drops(DropReason::IcmpUnusable).value(),
        8
    );
}

// RFC 8656 §11.5: "If no match is found, relaying is not permitted, and the server silently discards
// the ICMP packet".
#[test]
fn an_icmp_error_is_not_told_without_a_permission_or_an_allocation() {
    let mut lab = lab();
    assert!(lab.told_of(error(3, 3, 0)).is_none());
    assert_eq!(lab.drops(DropReason::IcmpNotPermitted), 1);
    lab.permit(CLIENT, &[PEER]);
    assert!(lab.told_of(error(3, 3, 0)).is_some());
    lab.secs(301);
    assert!(lab.told_of(error(3, 3, 0)).is_none());
    assert_eq!(lab.drops(DropReason::IcmpNotPermitted), 2);
    let elsewhere = IcmpError {
        socket: Socket::Relayed(PortId(7)),
        ..error(3, 3, 0)
    };
    assert!(lab.told_of(elsewhere).is_none());
    assert_eq!(lab.drops(DropReason::NoSuchPort), 1);
    let listener = IcmpError {
        socket: Socket::Listener(ListenerId(0)),
        ..error(3, 3, 0)
    };
    assert!(lab.told_of(listener).is_none());
    assert_eq!(lab.drops(DropReason::IcmpUnusable), 1);
}

#[test]
fn a_client_is_told_of_a_few_icmp_errors_a_second_however_many_come() {
    let mut lab = lab();
    lab.permit(CLIENT, &[PEER]);
    let told = (0..1000).filter(|_| lab.told_of(error(3, 3, 0)).is_some());
    assert_eq!(told.count(), 20);
    assert_eq!(lab.drops(DropReason::IcmpTooMany), 980);
    lab.pass(Duration::from_millis(100));
    let told = (0..1000).filter(|_| lab.told_of(error(3, 3, 0)).is_some());
    assert_eq!(told.count(), 2);
    // Data go on.
    let sent = lab.client_sends(CLIENT, &send_indication(PEER, b"x"));
    assert!(sent.is_some());
}
