use std::time::Duration;

use super::lab::*;
use crate::auth::{BINDING_TENTHS, STRANGER_BYTES, STRANGER_FACTOR};
use crate::nonce::NONCE_LIFETIME;
use crate::relay::{DropReason, RelayConfig};
use crate::wire::attribute::{
    Algorithm, Nonce, PasswordAlgorithm, PasswordAlgorithms, Realm, Software, UnknownAttributes,
    Username, XorMappedAddress,
};
use crate::wire::{
    AttributeType, Class, IntegrityKey, Message, MessageType, MessageWriter, Method, TransactionId,
};

const METHODS: [Method; 4] = [
    Method::ALLOCATE,
    Method::REFRESH,
    Method::CREATE_PERMISSION,
    Method::CHANNEL_BIND,
];

/// Writes a signed Allocate whose attributes the test decides.
fn allocate(
    lab: &Lab,
    write: impl FnOnce(&mut MessageWriter<'_>, &[u8]),
    sign: impl FnOnce(&mut MessageWriter<'_>),
) -> Vec<u8> {
    let nonce = lab.relay.nonces.issue(lab.now, address(CLIENT));
    let mut buffer = [0; 1500];
    let message_type = MessageType::new(Method::ALLOCATE, Class::Request);
    let mut writer = MessageWriter::new(&mut buffer, message_type, TransactionId([1; 12])).unwrap();
    writer
        .put_raw(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
        .unwrap();
    write(&mut writer, &nonce);
    sign(&mut writer);
    writer.finish().to_vec()
}

fn credentials(writer: &mut MessageWriter<'_>, nonce: &[u8]) {
    writer
        .put(&Username("alice"))
        .unwrap()
        .put(&Realm(REALM))
        .unwrap();
    writer.put(&Nonce(nonce)).unwrap();
}

fn md5() -> IntegrityKey {
    IntegrityKey::new(&credential("alice", "secret").md5)
}

fn sha256() -> IntegrityKey {
    IntegrityKey::new(&credential("alice", "secret").sha256.unwrap())
}

// RFC 8489 §9.2.4
#[test]
fn request_without_integrity_is_challenged_with_401_realm_and_nonce() {
    let mut lab = Lab::new(config());
    for method in METHODS {
        let answer = lab.ask(CLIENT, &plain(method, &[udp()])).unwrap();
        let message = Message::parse(&answer).unwrap();
        assert_eq!(code(&answer), 401);
        assert_eq!(message.get(), Ok(Some(Realm(REALM))));
        let nonce = message.get::<Nonce<'_>>().unwrap().unwrap();
        assert!(lab.relay.nonces.is_valid(lab.now, address(CLIENT), nonce.0));
        assert!(!message.has_integrity());
    }
    assert_eq!(lab.relay.counters.errors(401).unwrap().value(), 4);
}

#[test]
fn unauthenticated_requests_leave_no_state() {
    let mut lab = Lab::new(config());
    for n in 0..1000_u16 {
        let client = format!("198.18.0.1:{}", 1000 + n);
        lab.ask(&client, &plain(Method::ALLOCATE, &[udp()]))
            .unwrap();
        let forged = lab.signed_by("alice", "wrong", &client, Method::ALLOCATE, &[udp()]);
        assert_eq!(code(&lab.ask(&client, &forged).unwrap()), 401);
    }
    assert_eq!(lab.relay.allocations.slots(), 0);
    assert!(lab.relay.timers.is_empty());
    assert_eq!(lab.relay.counters.ports_in_use.value(), 0);
}

// RFC 8489 §9.2.4
#[test]
fn request_without_username_realm_or_nonce_is_a_bad_request() {
    let mut lab = Lab::new(config());
    let sign = |writer: &mut MessageWriter<'_>| {
        writer.integrity(&md5()).unwrap();
    };
    type Put = fn(&mut MessageWriter<'_>, &[u8]);
    let name: Put = |w, _| assert!(w.put(&Username("alice")).is_ok());
    let realm: Put = |w, _| assert!(w.put(&Realm(REALM)).is_ok());
    let nonce: Put = |w, nonce| assert!(w.put(&Nonce(nonce)).is_ok());
    let requests = [[realm, nonce], [name, nonce], [name, realm]].map(|puts| {
        allocate(
            &lab,
            |w, nonce| puts.iter().for_each(|put| put(w, nonce)),
            sign,
        )
    });
    for request in requests {
        let answer = lab.ask(CLIENT, &request).unwrap();
        assert_eq!(code(&answer), 400);
        assert!(!Message::parse(&answer).unwrap().has_integrity());
    }
}

// RFC 8489 §9.2.4
#[test]
fn stale_nonce_is_answered_with_438_and_a_fresh_one() {
    let mut lab = Lab::new(config());
    let request = lab.signed(CLIENT, Method::ALLOCATE, &[udp()]);
    lab.pass(NONCE_LIFETIME + Duration::from_secs(1));
    let answer = lab.ask(CLIENT, &request).unwrap();
    assert_eq!(code(&answer), 438);
    let message = Message::parse(&answer).unwrap();
    let nonce = message.get::<Nonce<'_>>().unwrap().unwrap();
    assert!(lab.relay.nonces.is_valid(lab.now, address(CLIENT), nonce.0));
    assert_eq!(message.get(), Ok(Some(Realm(REALM))));
}

#[test]
fn nonce_of_another_source_address_or_port_is_stale() {
    let mut lab = Lab::new(config());
    let request = lab.signed(CLIENT, Method::ALLOCATE, &[udp()]);
    for client in ["198.18.0.1:40001", "198.18.0.2:40000"] {
        assert_eq!(code(&lab.ask(client, &request).unwrap()), 438);
    }
}

// RFC 8489 §9.2.4
#[test]
fn unknown_user_and_wrong_password_are_answered_alike_with_401() {
    let mut lab = Lab::new(config());
    let mut answers = Vec::new();
    for (name, password) in [("alice", "wrong"), ("mallo", "secret")] {
        let request = lab.signed_by(name, password, CLIENT, Method::ALLOCATE, &[udp()]);
        let mut answer = lab.ask(CLIENT, &request).unwrap();
        assert_eq!(code(&answer), 401);
        answer[8..20].fill(0);
        answers.push(answer);
    }
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn changed_message_is_refused() {
    let mut lab = Lab::new(config());
    let mut request = lab.signed(CLIENT, Method::ALLOCATE, &[udp(), lifetime(600)]);
    request[35] ^= 1;
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 401);
}

// RFC 8489 §14.5, §14.6: the answer is protected like the request.
#[test]
fn answers_are_signed_with_the_key_and_hash_of_the_request() {
    let mut lab = Lab::new(config());
    let sign = |w: &mut MessageWriter<'_>| {
        w.integrity(&md5()).unwrap();
    };
    let request = allocate(&lab, credentials, sign);
    let answer = lab.ask(CLIENT, &request).unwrap();
    assert_eq!(code(&answer), 0);
    let message = Message::parse(&answer).unwrap();
    message.check_integrity(&md5()).unwrap();
    assert!(!message.has_integrity_sha256());

    let mut lab = Lab::new(config());
    let sign = |w: &mut MessageWriter<'_>| {
        w.integrity_sha256(&md5(), 32).unwrap();
    };
    let request = allocate(&lab, credentials, sign);
    let answer = lab.ask(CLIENT, &request).unwrap();
    assert_eq!(code(&answer), 0);
    let message = Message::parse(&answer).unwrap();
    message.check_integrity_sha256(&md5(), 32).unwrap();
    assert!(!message.has_integrity());
}

// RFC 8489 §9.2.4: PASSWORD-ALGORITHM names the key.
#[test]
fn password_algorithm_chooses_the_key() {
    let mut lab = Lab::new(config());
    let with_algorithm = |w: &mut MessageWriter<'_>, nonce: &[u8]| {
        credentials(w, nonce);
        w.put(&PasswordAlgorithms::SHA256_MD5).unwrap();
        w.put(&PasswordAlgorithm(Algorithm::Sha256)).unwrap();
    };
    let wrong = |w: &mut MessageWriter<'_>| {
        w.integrity_sha256(&md5(), 32).unwrap();
    };
    let request = allocate(&lab, with_algorithm, wrong);
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 401);
    let right = |w: &mut MessageWriter<'_>| {
        w.integrity_sha256(&sha256(), 32).unwrap();
    };
    let request = allocate(&lab, with_algorithm, right);
    let answer = lab.ask(CLIENT, &request).unwrap();
    assert_eq!(code(&answer), 0);
    Message::parse(&answer)
        .unwrap()
        .check_integrity_sha256(&sha256(), 32)
        .unwrap();
}

// RFC 8489 §14.6
#[test]
fn truncated_message_integrity_sha256_is_refused() {
    let mut lab = Lab::new(config());
    let sign = |w: &mut MessageWriter<'_>| {
        w.integrity_sha256(&md5(), 16).unwrap();
    };
    let request = allocate(&lab, credentials, sign);
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 401);
}

// RFC 8489 §14.7
#[test]
fn fingerprint_is_checked_and_answered_in_kind() {
    let mut lab = Lab::new(config());
    let sign = |w: &mut MessageWriter<'_>| {
        w.integrity(&md5()).unwrap().fingerprint().unwrap();
    };
    let mut request = allocate(&lab, credentials, sign);
    let answer = lab.ask(CLIENT, &request).unwrap();
    Message::parse(&answer)
        .unwrap()
        .check_fingerprint()
        .unwrap();
    let last = request.len() - 1;
    request[last] ^= 1;
    assert_eq!(lab.ask(CLIENT, &request), None);
    assert_eq!(lab.drops(DropReason::WrongFingerprint), 1);
}

#[test]
fn attributes_behind_the_integrity_are_not_acted_on() {
    let mut lab = Lab::new(config());
    let mut request = lab.signed(CLIENT, Method::ALLOCATE, &[udp()]);
    // An unknown attribute that would be refused with 420 in front of the integrity.
    request.extend_from_slice(&[0x70, 0x01, 0, 0]);
    let len = u16::try_from(request.len() - 20).unwrap();
    request[2..4].copy_from_slice(&len.to_be_bytes());
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 0);
}

#[test]
fn software_is_told_to_users_only() {
    let mut config = config();
    config.software = Some("towpath".to_owned());
    let mut lab = Lab::new(config);
    let answer = lab.ask(CLIENT, &plain(Method::ALLOCATE, &[udp()])).unwrap();
    assert_eq!(
        Message::parse(&answer).unwrap().get::<Software<'_>>(),
        Ok(None)
    );
    let answer = lab.ask(CLIENT, &plain(Method::BINDING, &[])).unwrap();
    assert_eq!(
        Message::parse(&answer).unwrap().get::<Software<'_>>(),
        Ok(None)
    );
    let answer = lab.request(CLIENT, Method::ALLOCATE, &[udp()]);
    assert_eq!(
        Message::parse(&answer).unwrap().get(),
        Ok(Some(Software("towpath")))
    );
}

// RFC 8489 §7.3.1
#[test]
fn binding_tells_the_client_its_address() {
    let mut lab = Lab::new(config());
    for client in [CLIENT, "[2600::7]:9"] {
        let answer = lab.ask(client, &plain(Method::BINDING, &[])).unwrap();
        assert_eq!(code(&answer), 0);
        let message = Message::parse(&answer).unwrap();
        assert_eq!(message.get(), Ok(Some(XorMappedAddress(address(client)))));
    }
}

#[test]
fn binding_over_ipv4_is_answered_with_at_most_1_6_times_its_length() {
    let mut lab = Lab::new(config());
    let binding = MessageType::new(Method::BINDING, Class::Request);
    let bare = unsigned(binding, &[], false);
    let with_fingerprint = unsigned(binding, &[], true);
    let unknown = unsigned(binding, &[(AttributeType(0x7001), vec![])], false);
    for request in [bare, with_fingerprint, unknown] {
        let answer = lab.ask(CLIENT, &request).unwrap();
        assert!(
            answer.len() * 10 <= request.len() * BINDING_TENTHS,
            "{} bytes",
            answer.len()
        );
    }
}

// RFC 8489 §6.3.1
#[test]
fn binding_with_an_unknown_attribute_is_refused_with_420() {
    let mut lab = Lab::new(config());
    let attributes: Vec<_> = (0..40)
        .map(|n| (AttributeType(0x7001 + n), vec![]))
        .collect();
    let answer = lab
        .ask(CLIENT, &plain(Method::BINDING, &attributes))
        .unwrap();
    assert_eq!(code(&answer), 420);
    let unknown = Message::parse(&answer)
        .unwrap()
        .get::<UnknownAttributes>()
        .unwrap()
        .unwrap();
    assert_eq!(unknown.iter().next(), Some(AttributeType(0x7001)));
}

#[test]
fn strangers_are_answered_with_at_most_three_times_their_request_and_200_bytes() {
    let mut config = config();
    config.realm = "r".repeat(RelayConfig::MAX_REALM_BYTES);
    let mut lab = Lab::new(config);
    let transport = [udp()];
    let long = [udp(), (AttributeType(0xf001), vec![0; 700])];
    let mut answered = 0;
    for attributes in [&transport[..], &long[..], &[]] {
        for fingerprint in [false, true] {
            let message_type = MessageType::new(Method::ALLOCATE, Class::Request);
            let request = unsigned(message_type, attributes, fingerprint);
            let Some(answer) = lab.ask(CLIENT, &request) else {
                continue;
            };
            assert!(answer.len() <= STRANGER_FACTOR * request.len());
            assert!(answer.len() <= STRANGER_BYTES);
            assert_eq!(code(&answer), 401);
            answered += 1;
        }
    }
    // The shortest possible Allocate is answered; one without REQUESTED-TRANSPORT may be too short.
    assert!(answered >= 4, "{answered} of 6 answered");
    assert_eq!(lab.drops(DropReason::AnswerTooLong), 6 - answered);
}

#[test]
fn strangers_beyond_the_limit_are_not_answered_and_users_are() {
    let mut config = config();
    config.limits.strangers.per_source = 1;
    let mut lab = Lab::new(config);
    let answered = (0..10).filter(|_| lab.ask(CLIENT, &plain(Method::BINDING, &[])).is_some());
    assert_eq!(answered.count(), 4);
    assert_eq!(lab.ask(CLIENT, &plain(Method::ALLOCATE, &[udp()])), None);
    assert_eq!(lab.drops(DropReason::TooManyRequests), 7);
    lab.allocate(CLIENT);
}
