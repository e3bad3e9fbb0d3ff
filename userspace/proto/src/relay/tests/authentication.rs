use std::time::Duration;

use super::lab::*;
use crate::auth::{BINDING_TENTHS, STRANGER_BYTES, STRANGER_FACTOR};
use crate::credentials::userhash;
use crate::nonce::{NONCE_LIFETIME, Offer};
use crate::relay::{DropReason, RelayConfig, RelayEvent};
use crate::wire::attribute::{
    Algorithm, Nonce, PasswordAlgorithm, PasswordAlgorithms, Realm, Software, UnknownAttributes,
    Userhash, Username, XorMappedAddress,
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

/// What is offered where every user has both keys and no secret is shared.
const FULL: Offer = Offer::Algorithms {
    sha256: true,
    userhash: true,
};

/// Writes a signed Allocate whose attributes the test decides.
fn allocate(
    lab: &Lab,
    write: impl FnOnce(&mut MessageWriter<'_>, &[u8]),
    sign: impl FnOnce(&mut MessageWriter<'_>),
) -> Vec<u8> {
    let nonce = lab.nonce(CLIENT);
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
        let offered = lab.relay.nonces.check(lab.now, address(CLIENT), nonce.0);
        assert_eq!(offered, Some(FULL));
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
    let name: Write = |w, _| assert!(w.put(&Username("alice")).is_ok());
    let realm: Write = |w, _| assert!(w.put(&Realm(REALM)).is_ok());
    let nonce: Write = |w, nonce| assert!(w.put(&Nonce(nonce)).is_ok());
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
    lab.pass(NONCE_LIFETIME + Duration::from_secs(16));
    let answer = lab.ask(CLIENT, &request).unwrap();
    assert_eq!(code(&answer), 438);
    let message = Message::parse(&answer).unwrap();
    let nonce = message.get::<Nonce<'_>>().unwrap().unwrap();
    let offered = lab.relay.nonces.check(lab.now, address(CLIENT), nonce.0);
    assert_eq!(offered, Some(FULL));
    assert_eq!(message.get(), Ok(Some(Realm(REALM))));
    assert_eq!(message.get(), Ok(Some(PasswordAlgorithms::SHA256_MD5)));
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

type Write = fn(&mut MessageWriter<'_>, &[u8]);
type Sign = fn(&mut MessageWriter<'_>);

fn sign_sha1(writer: &mut MessageWriter<'_>) {
    writer.integrity(&md5()).unwrap();
}

fn sign_sha256(writer: &mut MessageWriter<'_>) {
    writer.integrity_sha256(&sha256(), 32).unwrap();
}

/// The credentials, the list, and a choice from it.
fn chosen(algorithm: Algorithm) -> impl FnOnce(&mut MessageWriter<'_>, &[u8]) {
    move |writer, nonce| {
        credentials(writer, nonce);
        writer.put(&PasswordAlgorithms::SHA256_MD5).unwrap();
        writer.put(&PasswordAlgorithm(algorithm)).unwrap();
    }
}

// RFC 8489 §9.2.4: "unless the request was processed as though PASSWORD-ALGORITHM was MD5 …. In that case,
// the MESSAGE-INTEGRITY attribute MUST be used".
#[test]
fn a_request_that_names_no_algorithm_is_answered_with_message_integrity() {
    let with_sha256: Sign = |w| {
        w.integrity_sha256(&md5(), 32).unwrap();
    };
    for sign in [sign_sha1 as Sign, with_sha256] {
        let mut lab = Lab::new(config());
        let request = allocate(&lab, credentials, sign);
        let answer = lab.ask(CLIENT, &request).unwrap();
        assert_eq!(code(&answer), 0);
        let message = Message::parse(&answer).unwrap();
        message.check_integrity(&md5()).unwrap();
        assert!(!message.has_integrity_sha256());
    }
}

// RFC 8489 §9.2.4: "Any response generated by the server MUST include the MESSAGE-INTEGRITY-SHA256
// attribute, computed using the username and password utilized to authenticate the request".
#[test]
fn a_request_that_names_an_algorithm_is_answered_with_message_integrity_sha256() {
    let sha256_of_md5: Sign = |w| {
        w.integrity_sha256(&md5(), 32).unwrap();
    };
    let both_of_md5: Sign = |w| {
        w.integrity(&md5()).unwrap();
        w.integrity_sha256(&md5(), 32).unwrap();
    };
    for (algorithm, sign, key) in [
        (Algorithm::Sha256, sign_sha256 as Sign, sha256()),
        (Algorithm::Md5, sha256_of_md5, md5()),
        (Algorithm::Md5, both_of_md5, md5()),
    ] {
        let mut lab = Lab::new(config());
        let request = allocate(&lab, chosen(algorithm), sign);
        let answer = lab.ask(CLIENT, &request).unwrap();
        assert_eq!(code(&answer), 0);
        let message = Message::parse(&answer).unwrap();
        message.check_integrity_sha256(&key, 32).unwrap();
        assert!(!message.has_integrity());
    }
}

// RFC 8489 §9.2.4 has such requests checked as they are, though §9.2.5 forbids them: "all the subsequent
// requests MUST be authenticated using MESSAGE-INTEGRITY-SHA256 only".
#[test]
fn a_request_that_names_an_algorithm_and_has_message_integrity_alone_is_answered_with_both() {
    let sha1_of_sha256: Sign = |w| {
        w.integrity(&sha256()).unwrap();
    };
    for (algorithm, sign, key) in [
        (Algorithm::Md5, sign_sha1 as Sign, md5()),
        (Algorithm::Sha256, sha1_of_sha256, sha256()),
    ] {
        let mut lab = Lab::new(config());
        let request = allocate(&lab, chosen(algorithm), sign);
        let answer = lab.ask(CLIENT, &request).unwrap();
        assert_eq!(code(&answer), 0);
        let message = Message::parse(&answer).unwrap();
        message.check_integrity(&key).unwrap();
        message.check_integrity_sha256(&key, 32).unwrap();
    }
}

#[test]
fn password_algorithm_chooses_the_key() {
    let mut lab = Lab::new(config());
    let request = allocate(&lab, chosen(Algorithm::Sha256), |w| {
        w.integrity_sha256(&md5(), 32).unwrap();
    });
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 401);
    let request = allocate(&lab, chosen(Algorithm::Md5), sign_sha256);
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 401);
}

// RFC 8489 §9.2.4: "If the server adds a PASSWORD-ALGORITHMS attribute, it MUST set the STUN Security
// Feature "Password algorithms" bit to 1."
#[test]
fn a_challenge_lists_algorithms_and_its_nonce_says_so() {
    let mut lab = Lab::new(config());
    let answer = lab.ask(CLIENT, &plain(Method::ALLOCATE, &[udp()])).unwrap();
    let message = Message::parse(&answer).unwrap();
    assert_eq!(message.get(), Ok(Some(PasswordAlgorithms::SHA256_MD5)));
    let Nonce(nonce) = message.get().unwrap().unwrap();
    assert!(nonce.starts_with(b"obMatJos2wAAA"), "{nonce:?}");
}

#[test]
fn sha256_is_offered_where_every_user_has_a_key_for_it() {
    let mut config = config();
    let mut weak = credential("weak", "secret");
    weak.sha256 = None;
    config.users.insert("weak", weak.clone());
    let mut lab = Lab::new(config.clone());
    let list = |lab: &mut Lab| {
        let answer = lab.ask(CLIENT, &plain(Method::ALLOCATE, &[udp()])).unwrap();
        let message = Message::parse(&answer).unwrap();
        message
            .find(AttributeType::PASSWORD_ALGORITHMS)
            .map(<[u8]>::to_vec)
    };
    let md5_alone = Some(PasswordAlgorithms::MD5.as_bytes().to_vec());
    assert_eq!(list(&mut lab), md5_alone);
    config.users.insert("weak", credential("weak", "secret"));
    lab.event(RelayEvent::Reconfigured(config.clone().into()));
    let both = Some(PasswordAlgorithms::SHA256_MD5.as_bytes().to_vec());
    assert_eq!(list(&mut lab), both);
    config.users.insert("weak", weak);
    lab.event(RelayEvent::Reconfigured(config.into()));
    assert_eq!(list(&mut lab), md5_alone);
}

// RFC 8489 §9.2.4: "(1) PASSWORD-ALGORITHM and PASSWORD-ALGORITHMS are both present".
#[test]
fn one_of_the_two_algorithm_attributes_without_the_other_is_a_bad_request() {
    let mut lab = Lab::new(config());
    let list: Write = |w, _| assert!(w.put(&PasswordAlgorithms::SHA256_MD5).is_ok());
    let choice: Write = |w, _| assert!(w.put(&PasswordAlgorithm(Algorithm::Sha256)).is_ok());
    for put in [list, choice] {
        let write = |w: &mut MessageWriter<'_>, nonce: &[u8]| {
            credentials(w, nonce);
            put(w, nonce);
        };
        let request = allocate(&lab, write, sign_sha256);
        assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 400);
    }
}

// RFC 8489 §9.2.4: "(2) PASSWORD-ALGORITHMS matches the value sent in the response that sent this NONCE".
#[test]
fn a_list_of_algorithms_that_was_changed_on_the_way_is_a_bad_request() {
    let mut lab = Lab::new(config());
    for list in [
        &[0, 1, 0, 0][..],
        &[0, 1, 0, 0, 0, 2, 0, 0],
        &[0, 2, 0, 0],
        &[0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0],
        &[],
    ] {
        let write = |w: &mut MessageWriter<'_>, nonce: &[u8]| {
            credentials(w, nonce);
            w.put_raw(AttributeType::PASSWORD_ALGORITHMS, list).unwrap();
            w.put(&PasswordAlgorithm(Algorithm::Md5)).unwrap();
        };
        let request = allocate(&lab, write, sign_sha1);
        assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 400, "{list:?}");
    }
}

// RFC 8489 §9.2.4: "(3) PASSWORD-ALGORITHM matches one of the entries in PASSWORD-ALGORITHMS".
#[test]
fn an_algorithm_that_is_not_on_the_list_is_a_bad_request() {
    let mut config = config();
    let mut weak = credential("weak", "secret");
    weak.sha256 = None;
    config.users.insert("weak", weak);
    let mut lab = Lab::new(config);
    for choice in [[0, 2, 0, 0], [0, 3, 0, 0]] {
        let write = |w: &mut MessageWriter<'_>, nonce: &[u8]| {
            credentials(w, nonce);
            w.put(&PasswordAlgorithms::MD5).unwrap();
            w.put_raw(AttributeType::PASSWORD_ALGORITHM, &choice)
                .unwrap();
        };
        let request = allocate(&lab, write, sign_sha256);
        assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 400);
    }
}

#[test]
fn what_was_offered_with_a_nonce_holds_for_it_when_the_offer_has_changed() {
    let mut config = config();
    let mut lab = Lab::new(config.clone());
    let request = allocate(&lab, chosen(Algorithm::Sha256), sign_sha256);
    let mut weak = credential("weak", "secret");
    weak.sha256 = None;
    config.users.insert("weak", weak);
    lab.event(RelayEvent::Reconfigured(config.into()));
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 0);
}

// RFC 8489 §9.2.1: bid-down attacks are noticed.
#[test]
fn a_nonce_without_its_cookie_is_refused_and_so_is_one_with_a_lesser() {
    let mut lab = Lab::new(config());
    let bare = lab
        .relay
        .nonces
        .issue(lab.now, address(CLIENT), Offer::Nothing);
    let full = lab.nonce(CLIENT);
    let mut lesser = full.to_vec();
    lesser[9] = b'A';
    for nonce in [&bare, &full[13..], &lesser] {
        let write = |w: &mut MessageWriter<'_>, _: &[u8]| credentials(w, nonce);
        let request = allocate(&lab, write, sign_sha1);
        assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 438);
    }
}

#[test]
fn where_the_realm_leaves_no_room_short_requests_are_offered_nothing_and_longer_ones_all() {
    let mut config = config();
    config.realm = "a.longer.example".to_owned();
    let mut lab = Lab::new(config);
    let cookie = |lab: &mut Lab, attributes: &[(AttributeType, Vec<u8>)]| {
        let request = plain(Method::ALLOCATE, attributes);
        let answer = lab.ask(CLIENT, &request).unwrap();
        assert_eq!(code(&answer), 401);
        let message = Message::parse(&answer).unwrap();
        let Nonce(nonce) = message.get().unwrap().unwrap();
        let has_list = message.contains(AttributeType::PASSWORD_ALGORITHMS);
        assert_eq!(nonce.starts_with(b"obMatJos2"), has_list, "{nonce:?}");
        has_list
    };
    assert!(!cookie(&mut lab, &[udp()]));
    assert!(cookie(&mut lab, &[udp(), lifetime(600)]));
}

// RFC 8489 §9.2.4: "If the value of the USERNAME or USERHASH attribute is not valid …".
#[test]
fn a_user_is_found_by_userhash_in_place_of_the_name() {
    let mut lab = Lab::new(config());
    let hashed = |name: &str| {
        let hash = userhash(name, REALM).unwrap();
        move |w: &mut MessageWriter<'_>, nonce: &[u8]| {
            w.put(&Userhash(hash)).unwrap().put(&Realm(REALM)).unwrap();
            w.put(&Nonce(nonce)).unwrap();
        }
    };
    let request = allocate(&lab, hashed("alice"), |w| {
        w.integrity(&IntegrityKey::new(b"wrong")).unwrap();
    });
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 401);
    let request = allocate(&lab, hashed("nobody"), sign_sha1);
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 401);
    let request = allocate(&lab, hashed("alice"), sign_sha1);
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 0);
    // What follows may have the name in the clear: it is the same user.
    assert_eq!(lab.permit(CLIENT, &[PEER]), 0);
}

#[test]
fn another_realm_is_answered_with_401_and_the_right_one() {
    let mut lab = Lab::new(config());
    let write = |w: &mut MessageWriter<'_>, nonce: &[u8]| {
        w.put(&Username("alice")).unwrap();
        w.put(&Realm("other.example")).unwrap();
        w.put(&Nonce(nonce)).unwrap();
    };
    let request = allocate(&lab, write, sign_sha1);
    let answer = lab.ask(CLIENT, &request).unwrap();
    assert_eq!(code(&answer), 401);
    assert_eq!(
        Message::parse(&answer).unwrap().get(),
        Ok(Some(Realm(REALM)))
    );
}

// RFC 8489 §6.3.1: "420 (Unknown Attribute) … and includes an UNKNOWN-ATTRIBUTES attribute in its response
// that lists the unknown comprehension-required attributes."
#[test]
fn unknown_attributes_of_a_request_with_credentials_are_listed_in_a_420() {
    let mut lab = Lab::new(config());
    for method in METHODS {
        // All but Allocate are about an allocation, and are refused for its sake first.
        let client = "198.18.0.1:41000";
        if method != Method::ALLOCATE {
            lab.request(client, Method::ALLOCATE, &[udp()]);
        }
        let unknown = [0x7001, 0x7002].map(|kind| (AttributeType(kind), vec![1, 2, 3]));
        let attributes = [udp(), unknown[0].clone(), unknown[1].clone()];
        let answer = lab.request(client, method, &attributes);
        assert_eq!(code(&answer), 420, "{method:?}");
        let message = Message::parse(&answer).unwrap();
        let listed: UnknownAttributes = message.get().unwrap().unwrap();
        let listed: Vec<_> = listed.iter().collect();
        assert_eq!(listed, [AttributeType(0x7001), AttributeType(0x7002)]);
        assert!(message.has_integrity());
    }
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
