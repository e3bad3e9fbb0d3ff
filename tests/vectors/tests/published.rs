//! The published messages: parsed, checked, and built again.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use towpath_proto::credentials::{LongTermKey, userhash};
use towpath_proto::wire::attribute::{
    Algorithm, IceControlled, Nonce, PasswordAlgorithm, Priority, Realm, Software, Userhash,
    Username, XorMappedAddress,
};
use towpath_proto::wire::{Class, IntegrityKey, Message, MessageType, MessageWriter, Method};
use towpath_vectors::*;

const REQUEST: MessageType = MessageType::new(Method::BINDING, Class::Request);
const RESPONSE: MessageType = MessageType::new(Method::BINDING, Class::Success);

fn short_term_key() -> IntegrityKey {
    IntegrityKey::new(SHORT_TERM_PASSWORD.as_bytes())
}

fn long_term_key(algorithm: Algorithm) -> IntegrityKey {
    let key = LongTermKey::derive(
        algorithm,
        LONG_TERM_USERNAME,
        LONG_TERM_REALM,
        LONG_TERM_PASSWORD,
    );
    IntegrityKey::new(key.unwrap().as_bytes())
}

fn rebuilt(original: &Message<'_>, write: impl FnOnce(&mut MessageWriter<'_>)) -> Vec<u8> {
    let mut buffer = [0xaa; 256];
    let id = original.transaction_id();
    let mut writer = MessageWriter::new(&mut buffer, original.message_type(), id).unwrap();
    write(&mut writer);
    writer.finish().to_vec()
}

/// Both messages have the same attributes with the same values; padding and checks may differ.
fn assert_same_attributes(left: &[u8], right: &[u8]) {
    let left = Message::parse(left).unwrap();
    let right = Message::parse(right).unwrap();
    assert!(
        left.attributes().eq(right.attributes()),
        "{left:?} {right:?}"
    );
    assert_eq!(left.as_bytes().len(), right.as_bytes().len());
    assert_eq!(left.as_bytes()[..20], right.as_bytes()[..20]);
}

#[test]
fn the_sample_request_is_parsed_checked_and_built() {
    let bytes = bytes(SAMPLE_REQUEST);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.message_type(), REQUEST);
    assert_eq!(message.get(), Ok(Some(Software(REQUEST_SOFTWARE))));
    assert_eq!(message.get(), Ok(Some(Priority(0x6e00_01ff))));
    assert_eq!(
        message.get(),
        Ok(Some(IceControlled(0x932f_f9b1_5126_3b36)))
    );
    assert_eq!(message.get(), Ok(Some(Username(SHORT_TERM_USERNAME))));
    message.check_integrity(&short_term_key()).unwrap();
    message.check_fingerprint().unwrap();

    let built = rebuilt(&message, |w| {
        w.put(&Software(REQUEST_SOFTWARE)).unwrap();
        w.put(&Priority(0x6e00_01ff)).unwrap();
        w.put(&IceControlled(0x932f_f9b1_5126_3b36)).unwrap();
        w.put(&Username(SHORT_TERM_USERNAME)).unwrap();
        w.integrity(&short_term_key())
            .unwrap()
            .fingerprint()
            .unwrap();
    });
    assert_same_attributes(&bytes, &built);
    let built = Message::parse(&built).unwrap();
    built.check_integrity(&short_term_key()).unwrap();
    built.check_fingerprint().unwrap();
}

fn check_response(hex: &str, address: &str) {
    let bytes = bytes(hex);
    let address = XorMappedAddress(address.parse::<SocketAddr>().unwrap());
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.message_type(), RESPONSE);
    assert_eq!(message.get(), Ok(Some(Software(RESPONSE_SOFTWARE))));
    assert_eq!(message.get(), Ok(Some(address)));
    message.check_integrity(&short_term_key()).unwrap();
    message.check_fingerprint().unwrap();

    let built = rebuilt(&message, |w| {
        w.put(&Software(RESPONSE_SOFTWARE))
            .unwrap()
            .put(&address)
            .unwrap();
        w.integrity(&short_term_key())
            .unwrap()
            .fingerprint()
            .unwrap();
    });
    assert_same_attributes(&bytes, &built);
}

#[test]
fn the_sample_ipv4_response_is_parsed_checked_and_built() {
    check_response(SAMPLE_IPV4_RESPONSE, "192.0.2.1:32853");
}

#[test]
fn the_sample_ipv6_response_is_parsed_checked_and_built() {
    check_response(
        SAMPLE_IPV6_RESPONSE,
        "[2001:db8:1234:5678:11:2233:4455:6677]:32853",
    );
}

#[test]
fn the_long_term_request_is_parsed_checked_and_built_byte_for_byte() {
    let bytes = bytes(SAMPLE_LONG_TERM_REQUEST);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.get(), Ok(Some(Username(LONG_TERM_USERNAME))));
    assert_eq!(message.get(), Ok(Some(Nonce(LONG_TERM_NONCE.as_bytes()))));
    assert_eq!(message.get(), Ok(Some(Realm(LONG_TERM_REALM))));
    message
        .check_integrity(&long_term_key(Algorithm::Md5))
        .unwrap();
    assert!(!message.has_fingerprint());

    let built = rebuilt(&message, |w| {
        w.put(&Username(LONG_TERM_USERNAME)).unwrap();
        w.put(&Nonce(LONG_TERM_NONCE.as_bytes())).unwrap();
        w.put(&Realm(LONG_TERM_REALM)).unwrap();
        w.integrity(&long_term_key(Algorithm::Md5)).unwrap();
    });
    assert_eq!(built, bytes);
}

#[test]
fn the_sha256_request_is_parsed_checked_and_built_byte_for_byte() {
    let bytes = bytes(SAMPLE_SHA256_REQUEST);
    let message = Message::parse(&bytes).unwrap();
    let name = Userhash(userhash(LONG_TERM_USERNAME, LONG_TERM_REALM).unwrap());
    assert_eq!(message.get(), Ok(Some(name)));
    assert_eq!(message.get(), Ok(Some(Nonce(SHA256_NONCE.as_bytes()))));
    assert_eq!(message.get(), Ok(Some(Realm(LONG_TERM_REALM))));
    assert_eq!(
        message.get(),
        Ok(Some(PasswordAlgorithm(Algorithm::Sha256)))
    );
    message
        .check_integrity_sha256(&long_term_key(Algorithm::Sha256), 32)
        .unwrap();

    let built = rebuilt(&message, |w| {
        w.put(&name)
            .unwrap()
            .put(&Nonce(SHA256_NONCE.as_bytes()))
            .unwrap();
        w.put(&Realm(LONG_TERM_REALM)).unwrap();
        w.put(&PasswordAlgorithm(Algorithm::Sha256)).unwrap();
        w.integrity_sha256(&long_term_key(Algorithm::Sha256), 32)
            .unwrap();
    });
    assert_eq!(built, bytes);
}

#[test]
fn a_changed_byte_of_a_published_message_is_noticed() {
    for (hex, key) in [
        (SAMPLE_REQUEST, short_term_key()),
        (SAMPLE_IPV4_RESPONSE, short_term_key()),
        (SAMPLE_IPV6_RESPONSE, short_term_key()),
        (SAMPLE_LONG_TERM_REQUEST, long_term_key(Algorithm::Md5)),
    ] {
        let original = bytes(hex);
        let end = original.len()
            - if hex == SAMPLE_LONG_TERM_REQUEST {
                24
            } else {
                32
            };
        for at in 0..end + 24 {
            let mut changed = original.clone();
            changed[at] ^= 0x10;
            let noticed = match Message::parse(&changed) {
                Err(_) => true,
                Ok(message) => message.check_integrity(&key).is_err(),
            };
            assert!(noticed, "byte {at} of {hex}");
        }
    }
}
