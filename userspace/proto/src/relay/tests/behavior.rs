//! NAT behaviour discovery (RFC 5780) on the server.

use std::net::SocketAddr;
use std::time::Duration;

use super::lab::*;
use crate::machine::{ListenerId, Socket};
use crate::relay::{DropReason, RelayAddress, RelayConfig};
use crate::stun::BehaviorAddresses;
use crate::wire::attribute::{
    Attribute, ChangeRequest, MappedAddress, OtherAddress, ResponseOrigin, ResponsePort, Software,
    UnknownAttributes, XorMappedAddress,
};
use crate::wire::{AttributeType, Message, MessageType, Method};

/// Four addresses, the second of each family behind a 1:1 NAT, and two ports on wildcards.
fn behavior_config() -> RelayConfig {
    let nat = |local: &str, public: &str| RelayAddress {
        local: local.parse().unwrap(),
        public: public.parse().unwrap(),
    };
    let mut config = config();
    config.listeners = ["0.0.0.0:3478", "[::]:3478", "0.0.0.0:3479", "[::]:3479"]
        .map(address)
        .into();
    config.behavior = Some(BehaviorAddresses {
        pairs: vec![
            [nat("5.5.5.5", "5.5.5.5"), nat("10.0.0.6", "6.6.6.6")],
            [nat("2600::5", "2600::5"), nat("fd00::6", "2600::6")],
        ],
        ports: [3478, 3479],
    });
    config
}

fn lab() -> Lab {
    Lab::new(behavior_config())
}

fn binding(attributes: &[(AttributeType, Vec<u8>)]) -> Vec<u8> {
    plain(Method::BINDING, attributes)
}

fn change(address: bool, port: bool) -> (AttributeType, Vec<u8>) {
    raw(&ChangeRequest { address, port })
}

/// Sends to one of the relay's local addresses and takes the answer and where it came from.
fn ask_at(lab: &mut Lab, listener: u16, local: &str, bytes: &[u8]) -> (SocketAddr, Vec<u8>) {
    let client = if local.contains(':') {
        "[2600::9]:7"
    } else {
        CLIENT
    };
    lab.sent.clear();
    let socket = Socket::Listener(ListenerId(listener));
    assert!(lab.arrive(socket, local, address(client), bytes).is_none());
    let (transmit, answer) = lab.sent.pop().expect("an answer");
    assert_eq!(transmit.destination, address(client));
    let Socket::Listener(ListenerId(listener)) = transmit.socket else {
        panic!("{transmit:?}")
    };
    let port = lab.relay.config.listeners[usize::from(listener)].port();
    (SocketAddr::new(transmit.source.unwrap(), port), answer)
}

fn told<'a, A: Attribute<'a>>(answer: &'a [u8]) -> Option<A> {
    Message::parse(answer).unwrap().get().unwrap()
}

// RFC 5780 §6.1, table 1
#[test]
fn change_request_is_answered_from_the_other_address_port_or_both() {
    let cases = [
        (
            0,
            "5.5.5.5",
            [
                "5.5.5.5:3478",
                "5.5.5.5:3479",
                "10.0.0.6:3478",
                "10.0.0.6:3479",
            ],
        ),
        (
            2,
            "10.0.0.6",
            [
                "10.0.0.6:3479",
                "10.0.0.6:3478",
                "5.5.5.5:3479",
                "5.5.5.5:3478",
            ],
        ),
        (
            1,
            "fd00::6",
            [
                "[fd00::6]:3478",
                "[fd00::6]:3479",
                "[2600::5]:3478",
                "[2600::5]:3479",
            ],
        ),
    ];
    for (listener, local, expected) in cases {
        let mut lab = lab();
        for (flags, source) in expected.into_iter().enumerate() {
            let request = binding(&[change(flags & 2 != 0, flags & 1 != 0)]);
            let (from, answer) = ask_at(&mut lab, listener, local, &request);
            assert_eq!(from, address(source));
            assert_eq!(code(&answer), 0);
            // RFC 5780 §6.1: OTHER-ADDRESS does not depend on what was asked; the public side is told.
            let public = |text: &str| {
                address(
                    &text
                        .replace("10.0.0.6", "6.6.6.6")
                        .replace("fd00::6", "2600::6"),
                )
            };
            let OtherAddress(other) = told(&answer).unwrap();
            assert_eq!(other, public(expected[3]));
            let ResponseOrigin(origin) = told(&answer).unwrap();
            assert_eq!(origin, public(source));
        }
    }
}

// RFC 5780 §6.1: "If the Request contains the CHANGE-REQUEST attribute and the server does not have an
// alternate address and port …, the server MUST generate an error response of type 420."
#[test]
fn without_a_second_address_what_rfc_5780_asks_for_is_refused_with_420() {
    let asks = [
        (change(true, false), AttributeType::CHANGE_REQUEST),
        (change(false, true), AttributeType::CHANGE_REQUEST),
        (raw(&ResponsePort(5)), AttributeType::RESPONSE_PORT),
        (
            (AttributeType::PADDING, vec![0; 64]),
            AttributeType::PADDING,
        ),
    ];
    for (attribute, unknown) in asks {
        // Long enough for the refusal to have room.
        let request = binding(&[attribute, raw(&Software("a client that names itself"))]);
        let mut off = Lab::new(config());
        let answer = off.ask(CLIENT, &request).unwrap();
        assert_eq!(code(&answer), 420);
        let named: UnknownAttributes = told(&answer).unwrap();
        assert_eq!(named.iter().collect::<Vec<_>>(), [unknown]);
        // So it is at an address that has no other beside it.
        let mut on = lab();
        let (_, answer) = ask_at(&mut on, 0, "7.7.7.7", &request);
        assert_eq!(code(&answer), 420);
    }
}

#[test]
fn a_change_request_that_asks_for_nothing_is_answered_everywhere() {
    let request = binding(&[change(false, false)]);
    let answer = Lab::new(config()).ask(CLIENT, &request).unwrap();
    assert_eq!(code(&answer), 0);
    assert_eq!(told::<OtherAddress>(&answer), None);
    let answer = lab().ask(CLIENT, &request).unwrap();
    assert!(told::<OtherAddress>(&answer).is_some());
}

#[test]
fn a_malformed_change_request_is_a_bad_request() {
    let software = raw(&Software("a client that names itself"));
    let request = binding(&[(AttributeType::CHANGE_REQUEST, vec![0; 8]), software]);
    assert_eq!(code(&lab().ask(CLIENT, &request).unwrap()), 400);
}

/// What is told at all lengths of requests.
#[test]
fn answers_beyond_1_6_times_the_request_come_from_a_small_budget() {
    for client in [CLIENT, "[2600::9]:7"] {
        let mut lab = lab();
        let address_bytes = if client == CLIENT { 12 } else { 24 };
        let mut long = 0;
        for _ in 0..1000 {
            let request = binding(&[]);
            let answer = lab.ask(client, &request).unwrap();
            let XorMappedAddress(mapped) = told(&answer).unwrap();
            assert_eq!(mapped, address(client));
            if told::<OtherAddress>(&answer).is_some() {
                assert!(told::<ResponseOrigin>(&answer).is_some());
                assert_eq!(answer.len(), 20 + 3 * address_bytes);
                long += 1;
            } else {
                assert_eq!(
                    answer.len(),
                    20 + address_bytes,
                    "only what every answer has"
                );
            }
        }
        assert_eq!(long, 32, "a burst of four seconds at eight a second");
        lab.pass(Duration::from_secs(1));
        let answers = (0..1000).map(|_| lab.ask(client, &binding(&[])).unwrap());
        let long = answers.filter(|answer| told::<OtherAddress>(answer).is_some());
        assert_eq!(long.count(), 8);
    }
}

#[test]
fn a_longer_request_is_told_everything_within_1_6_times_its_length() {
    let mut lab = lab();
    // The budget of long answers is used up.
    for _ in 0..100 {
        lab.ask(CLIENT, &binding(&[]));
    }
    let mut lengths = Vec::new();
    for words in 0..12 {
        let filler = (AttributeType::SOFTWARE, vec![b'x'; 4 * words]);
        let request = binding(&[filler]);
        let answer = lab.ask(CLIENT, &request).unwrap();
        assert!(answer.len() * 10 <= request.len() * 16);
        lengths.push((request.len(), answer.len()));
        let has = [
            told::<OtherAddress>(&answer).is_some(),
            told::<ResponseOrigin>(&answer).is_some(),
            told::<MappedAddress>(&answer).is_some(),
        ];
        let count = (answer.len() - 32) / 12;
        assert_eq!(has, [count > 0, count > 1, count > 2], "in this order");
    }
    assert!(
        lengths.contains(&(28, 44)) && lengths.contains(&(36, 56)) && lengths.contains(&(44, 68))
    );
    let MappedAddress(mapped) = {
        let filler = (AttributeType::SOFTWARE, vec![b'x'; 40]);
        let answer = lab.ask(CLIENT, &binding(&[filler])).unwrap();
        told(&answer).unwrap()
    };
    assert_eq!(mapped, address(CLIENT));
}

#[test]
fn answers_from_the_other_address_count_as_answers_to_strangers() {
    let mut config = behavior_config();
    config.limits.strangers.per_source = 5;
    let mut lab = Lab::new(config);
    let request = binding(&[change(true, true)]);
    let answers = (0..100).filter(|_| lab.ask(CLIENT, &request).is_some());
    assert_eq!(answers.count(), 20, "a burst of four seconds");
    assert_eq!(lab.drops(DropReason::TooManyRequests), 80);
}

// RFC 5780 §6.1, and never longer than the request
#[test]
fn padding_makes_the_answer_as_long_as_the_request_and_no_longer() {
    let mut lab = lab();
    for len in [0, 1, 8, 20, 48, 64, 300, 1000, 1500, 1950] {
        for fingerprint in [false, true] {
            let message_type = MessageType::new(Method::BINDING, crate::wire::Class::Request);
            let padding = (AttributeType::PADDING, vec![0; len]);
            let request = unsigned(message_type, &[padding], fingerprint);
            let answer = lab.ask(CLIENT, &request).unwrap();
            let message = Message::parse(&answer).unwrap();
            assert_eq!(code(&answer), 0);
            if fingerprint {
                message.check_fingerprint().unwrap();
            }
            if let Some(padding) = message.find(AttributeType::PADDING) {
                assert!(padding.iter().all(|byte| *byte == 0));
                assert_eq!(answer.len(), request.len(), "{len}");
            } else {
                assert!(len < 64, "{len}");
                assert!(answer.len() <= 20 + 4 * 12 + 8);
            }
        }
    }
}

#[test]
fn an_answer_to_another_port_is_for_users_only() {
    let mut lab = lab();
    let port = raw(&ResponsePort(4242));
    let request = binding(std::slice::from_ref(&port));
    let answer = lab.ask(CLIENT, &request).unwrap();
    assert_eq!(code(&answer), 401);
    assert!(answer.len() <= 3 * request.len());

    let request = lab.signed(CLIENT, Method::BINDING, &[port]);
    lab.sent.clear();
    assert!(lab.client_sends(CLIENT, &request).is_none());
    let (transmit, answer) = lab.sent.pop().unwrap();
    assert_eq!(transmit.destination, address("198.18.0.1:4242"));
    let message = Message::parse(&answer).unwrap();
    assert_eq!(code(&answer), 0);
    assert!(message.has_integrity());
    let XorMappedAddress(mapped) = told(&answer).unwrap();
    assert_eq!(mapped, address(CLIENT), "where the request came from");
    assert!(told::<OtherAddress>(&answer).is_some());
    assert!(answer.len() * 10 <= request.len() * 16);
}

// RFC 5780 §6.1: "If the Request also contains the RESPONSE-PORT attribute the server MUST return an
// error response of type 400."
#[test]
fn padding_and_response_port_together_are_a_bad_request() {
    let mut lab = lab();
    let padding = (AttributeType::PADDING, vec![0; 64]);
    let both = [raw(&ResponsePort(4242)), padding];
    assert_eq!(code(&lab.request(CLIENT, Method::BINDING, &both)), 400);
    let nowhere = [raw(&ResponsePort(0))];
    assert_eq!(code(&lab.request(CLIENT, Method::BINDING, &nowhere)), 400);
}

#[test]
fn discovery_needs_all_four_combinations_of_address_and_port() {
    let mut config = behavior_config();
    config.validate().unwrap();
    config.listeners.pop();
    assert!(config.validate().is_err());
}
