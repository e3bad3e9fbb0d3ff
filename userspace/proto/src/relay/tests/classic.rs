//! Clients of RFC 3489 (RFC 5389 §12.2).

use std::slice;

use super::lab::*;
use crate::machine::{ListenerId, Socket};
use crate::relay::{DropReason, RelayAddress, RequestKind};
use crate::stun::BehaviorAddresses;
use crate::wire::attribute::{
    ChangeRequest, ChangedAddress, ErrorCode, MappedAddress, SourceAddress,
};
use crate::wire::{
    AttributeType, Class, ClassicId, ClassicMessage, MessageType, MessageWriter, Method,
};

const ID: ClassicId = ClassicId(*b"no cookie in it!");

fn classic(class: Class, method: Method, attributes: &[(AttributeType, Vec<u8>)]) -> Vec<u8> {
    let mut buffer = [0; 512];
    let message_type = MessageType::new(method, class);
    let mut writer = MessageWriter::classic(&mut buffer, message_type, ID).unwrap();
    for (kind, value) in attributes {
        writer.put_raw(*kind, value).unwrap();
    }
    writer.finish().to_vec()
}

fn binding(attributes: &[(AttributeType, Vec<u8>)]) -> Vec<u8> {
    classic(Class::Request, Method::BINDING, attributes)
}

fn read(answer: &[u8]) -> ClassicMessage<'_> {
    let message = ClassicMessage::parse(answer).expect("there is no cookie in the answer either");
    assert_eq!((message.id(), message.method()), (ID, Method::BINDING));
    message
}

fn with_second_address() -> Lab {
    let mut config = config();
    config.listeners.push(address("0.0.0.0:3479"));
    let direct = |ip: [u8; 4]| RelayAddress::direct(ip.into());
    config.behavior = Some(BehaviorAddresses {
        pairs: vec![[direct([5, 5, 5, 5]), direct([6, 6, 6, 6])]],
        ports: [3478, 3479],
    });
    Lab::new(config)
}

// RFC 5389 §12.2
#[test]
fn a_binding_request_without_the_cookie_is_told_its_address_unhidden() {
    let mut lab = Lab::new(config());
    let request = binding(&[]);
    let answer = lab.ask(CLIENT, &request).unwrap();
    let message = read(&answer);
    assert_eq!(message.class(), Class::Success);
    assert_eq!(message.get(), Ok(Some(MappedAddress(address(CLIENT)))));
    assert_eq!(
        answer.len(),
        32,
        "1.6 times the request, and no FINGERPRINT"
    );
    assert_eq!(
        lab.relay.counters.successes(RequestKind::Binding).value(),
        1
    );
    let answer = lab.ask("[2600::9]:7", &request).unwrap();
    assert_eq!(
        read(&answer).get(),
        Ok(Some(MappedAddress(address("[2600::9]:7"))))
    );
}

#[test]
fn what_a_classic_client_sends_along_is_ignored_where_it_asks_for_nothing() {
    let mut lab = Lab::new(config());
    let request = binding(&[
        raw(&ChangeRequest::default()),
        (AttributeType::USERNAME, b"someone!".to_vec()),
        (AttributeType::MESSAGE_INTEGRITY, vec![0; 20]),
    ]);
    let answer = lab.ask(CLIENT, &request).unwrap();
    assert_eq!(
        read(&answer).get(),
        Ok(Some(MappedAddress(address(CLIENT))))
    );
}

// RFC 5389 §12.2, and RFC 3489 §11.2.10: an odd number of unknown attributes repeats one.
#[test]
fn what_cannot_be_done_for_a_classic_client_is_refused_with_420() {
    /// Where to answer to: anybody else.
    const RESPONSE_ADDRESS: AttributeType = AttributeType(0x0002);
    let change = ChangeRequest {
        address: true,
        port: false,
    };
    let response_address = (RESPONSE_ADDRESS, vec![0, 1, 0, 9, 9, 9, 9, 9]);
    let cases: [(&[_], &[u8]); 3] = [
        (&[raw(&change)], &[0, 3, 0, 3]),
        (slice::from_ref(&response_address), &[0, 2, 0, 2]),
        (&[response_address.clone(), raw(&change)], &[0, 2, 0, 3]),
    ];
    for (attributes, unknown) in cases {
        let mut lab = Lab::new(config());
        let request = binding(attributes);
        let answer = lab.ask(CLIENT, &request).unwrap();
        assert_eq!(read(&answer).class(), Class::Error);
        let error: ErrorCode<'_> = read(&answer).get().unwrap().unwrap();
        assert_eq!((error.code.number(), error.reason), (420, ""));
        assert_eq!(answer[28..32], [0, 0x0a, 0, 4]);
        assert_eq!(&answer[32..], unknown);
        assert!(answer.len() * 10 <= request.len() * 16);
        assert_eq!(lab.relay.counters.errors(420).unwrap().value(), 1);
    }
}

#[test]
fn a_malformed_change_request_is_a_bad_request() {
    let mut lab = with_second_address();
    let request = binding(&[(AttributeType::CHANGE_REQUEST, vec![0; 8])]);
    let answer = lab.ask(CLIENT, &request).unwrap();
    let error: ErrorCode<'_> = read(&answer).get().unwrap().unwrap();
    assert_eq!(error.code.number(), 400);
}

// RFC 3489 §8.1
#[test]
fn with_a_second_address_a_classic_client_learns_of_it_and_is_answered_from_it() {
    let mut lab = with_second_address();
    let change = ChangeRequest {
        address: true,
        port: true,
    };
    for (change, source, listener) in [
        (ChangeRequest::default(), "5.5.5.5:3478", 0),
        (change, "6.6.6.6:3479", 2),
    ] {
        lab.sent.clear();
        assert!(
            lab.client_sends(CLIENT, &binding(&[raw(&change)]))
                .is_none()
        );
        let (transmit, answer) = lab.sent.pop().unwrap();
        assert_eq!(transmit.socket, Socket::Listener(ListenerId(listener)));
        assert_eq!(transmit.source, Some(address(source).ip()));
        let message = read(&answer);
        assert_eq!(message.get(), Ok(Some(MappedAddress(address(CLIENT)))));
        assert_eq!(
            message.get(),
            Ok(Some(ChangedAddress(address("6.6.6.6:3479"))))
        );
        assert_eq!(message.get(), Ok(Some(SourceAddress(address(source)))));
    }
    // With the budget of long answers used up, what keeps within 1.6 times is still said.
    for _ in 0..100 {
        lab.ask(CLIENT, &binding(&[]));
    }
    let answer = lab.ask(CLIENT, &binding(&[raw(&change)])).unwrap();
    assert_eq!(answer.len(), 44);
    assert_eq!(
        read(&answer).get(),
        Ok(Some(ChangedAddress(address("6.6.6.6:3479"))))
    );
    assert_eq!(lab.ask(CLIENT, &binding(&[])).unwrap().len(), 32);
}

#[test]
fn nothing_but_binding_requests_is_taken_without_the_cookie() {
    let mut lab = Lab::new(config());
    let allocate = [udp()];
    for message in [
        classic(Class::Request, Method::ALLOCATE, &allocate),
        classic(Class::Request, Method::new(2).unwrap(), &[]),
        classic(Class::Success, Method::BINDING, &[]),
        classic(Class::Indication, Method::BINDING, &[]),
        classic(Class::Indication, Method::SEND, &[]),
        [0, 1, 0, 4].iter().chain(&[0; 16]).copied().collect(),
        vec![0; 28],
    ] {
        assert_eq!(lab.ask(CLIENT, &message), None);
    }
    assert_eq!(lab.drops(DropReason::Unrecognized), 7);
}

#[test]
fn classic_answers_count_as_answers_to_strangers() {
    let mut config = config();
    config.limits.strangers.per_source = 5;
    let mut lab = Lab::new(config);
    let answers = (0..100).filter(|_| lab.ask(CLIENT, &binding(&[])).is_some());
    assert_eq!(answers.count(), 20, "a burst of four seconds");
    assert_eq!(lab.drops(DropReason::TooManyRequests), 80);
}
