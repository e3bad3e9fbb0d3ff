use super::*;
use crate::wire::attribute::{Lifetime, Nonce, Realm, Software, Username, XorPeerAddress};
use crate::wire::{IntegrityKey, MessageWriter};

const ID: TransactionId = TransactionId(*b"transaction!");

fn build(write: impl FnOnce(&mut MessageWriter<'_>)) -> Vec<u8> {
    let mut buffer = [0xff; 512];
    let message_type = MessageType::new(Method::ALLOCATE, Class::Request);
    let mut writer = MessageWriter::new(&mut buffer, message_type, ID).unwrap();
    write(&mut writer);
    writer.finish().to_vec()
}

/// Appends an attribute by hand, also where a writer would refuse it.
fn append(message: &mut Vec<u8>, kind: AttributeType, value: &[u8]) {
    message.extend_from_slice(&kind.0.to_be_bytes());
    message.extend_from_slice(&(value.len() as u16).to_be_bytes());
    message.extend_from_slice(value);
    message.resize(padded(message.len()), 0);
    let len = (message.len() - HEADER_BYTES) as u16;
    message[2..4].copy_from_slice(&len.to_be_bytes());
}

#[test]
fn a_message_gives_back_what_was_written() {
    let peers = ["192.0.2.1:1", "[2001:db8::7]:65535"].map(|text| text.parse().unwrap());
    let bytes = build(|w| {
        w.put(&Username("alice"))
            .unwrap()
            .put(&Lifetime(600))
            .unwrap();
        w.put(&XorPeerAddress(peers[0]))
            .unwrap()
            .put(&XorPeerAddress(peers[1]))
            .unwrap();
    });
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(
        (message.method(), message.class()),
        (Method::ALLOCATE, Class::Request)
    );
    assert_eq!(message.transaction_id(), ID);
    assert_eq!(message.get(), Ok(Some(Username("alice"))));
    assert_eq!(message.get(), Ok(Some(Lifetime(600))));
    assert_eq!(message.get::<Realm<'_>>(), Ok(None));
    let read: Result<Vec<_>, _> = message.get_all::<XorPeerAddress>().collect();
    assert_eq!(read.unwrap(), peers.map(XorPeerAddress));
}

#[test]
fn only_the_first_of_several_equal_attributes_is_read() {
    let bytes = build(|w| {
        w.put(&Lifetime(1)).unwrap().put(&Lifetime(2)).unwrap();
    });
    assert_eq!(Message::parse(&bytes).unwrap().get(), Ok(Some(Lifetime(1))));
}

#[test]
fn what_follows_message_integrity_is_ignored_save_sha256_and_fingerprint() {
    let key = IntegrityKey::new(b"key");
    let mut bytes = build(|w| {
        w.put(&Username("alice")).unwrap().integrity(&key).unwrap();
    });
    append(&mut bytes, AttributeType::LIFETIME, &600_u32.to_be_bytes());
    append(&mut bytes, AttributeType(0x7abc), b"unknown and required");
    append(&mut bytes, AttributeType::MESSAGE_INTEGRITY, &[0; 20]);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.get::<Lifetime>(), Ok(None));
    assert_eq!(message.attributes().count(), 1);
    assert!(
        message
            .unknown_required(|kind| kind == AttributeType::USERNAME)
            .is_empty()
    );
    assert_eq!(message.check_integrity(&key), Ok(()));

    append(
        &mut bytes,
        AttributeType::MESSAGE_INTEGRITY_SHA256,
        &[0; 32],
    );
    append(&mut bytes, AttributeType::FINGERPRINT, &[0; 4]);
    let message = Message::parse(&bytes).unwrap();
    assert!(message.has_integrity() && message.has_integrity_sha256());
    assert!(message.has_fingerprint());
    assert_eq!(message.attributes().count(), 1);
}

#[test]
fn what_follows_message_integrity_sha256_is_ignored_save_fingerprint() {
    let mut bytes = build(|w| {
        w.integrity_sha256(&IntegrityKey::new(b"key"), 32).unwrap();
    });
    append(&mut bytes, AttributeType::MESSAGE_INTEGRITY, &[0; 20]);
    append(&mut bytes, AttributeType::USERNAME, b"mallory");
    append(&mut bytes, AttributeType::FINGERPRINT, &[0; 4]);
    let message = Message::parse(&bytes).unwrap();
    assert!(!message.has_integrity());
    assert!(message.has_integrity_sha256() && message.has_fingerprint());
    assert_eq!(message.attributes().count(), 0);
}

#[test]
fn nothing_may_follow_fingerprint() {
    let mut bytes = build(|w| {
        w.fingerprint().unwrap();
    });
    append(&mut bytes, AttributeType::SOFTWARE, b"late");
    let after = ParseError::AfterFingerprint {
        kind: AttributeType::SOFTWARE,
    };
    assert_eq!(Message::parse(&bytes).unwrap_err(), after);
}

#[test]
fn integrity_of_an_impossible_length_is_refused() {
    for (kind, len) in [
        (AttributeType::MESSAGE_INTEGRITY, 16),
        (AttributeType::MESSAGE_INTEGRITY_SHA256, 12),
        (AttributeType::MESSAGE_INTEGRITY_SHA256, 18),
        (AttributeType::MESSAGE_INTEGRITY_SHA256, 36),
        (AttributeType::FINGERPRINT, 8),
    ] {
        let mut bytes = build(|_| {});
        append(&mut bytes, kind, &vec![0; len]);
        assert_eq!(
            Message::parse(&bytes).unwrap_err(),
            ParseError::CheckLength { kind, len }
        );
    }
}

#[test]
fn unknown_comprehension_required_attributes_are_listed_once_and_bounded() {
    let mut bytes = build(|_| {});
    for kind in [0x7f01, 0x7f01, 0x8f01, 0x7f02] {
        append(&mut bytes, AttributeType(kind), b"?");
    }
    let message = Message::parse(&bytes).unwrap();
    let unknown = message.unknown_required(|_| false);
    assert!(
        unknown
            .iter()
            .eq([AttributeType(0x7f01), AttributeType(0x7f02)])
    );
    for kind in 0x7000..0x7020 {
        append(&mut bytes, AttributeType(kind), b"");
    }
    let unknown = Message::parse(&bytes).unwrap().unknown_required(|_| false);
    assert_eq!(unknown.iter().count(), UnknownAttributes::MAX);
}

#[test]
fn a_damaged_header_is_refused_with_its_reason() {
    let sound = build(|w| {
        w.put(&Software("x")).unwrap();
    });
    assert!(Message::parse(&sound).is_ok());
    assert_eq!(
        Message::parse(&sound[..19]).unwrap_err(),
        ParseError::Short { len: 19 }
    );
    let broken = |at: usize, value: u8| {
        let mut bytes = sound.clone();
        bytes[at] = value;
        Message::parse(&bytes).unwrap_err()
    };
    assert_eq!(broken(0, 0x80), ParseError::Type { bits: 0x8003 });
    assert_eq!(
        broken(7, 0),
        ParseError::Cookie {
            cookie: 0x2112_a400
        }
    );
    assert_eq!(
        broken(3, 12),
        ParseError::Length {
            claimed: 12,
            present: 8
        }
    );
    assert_eq!(
        broken(3, 7),
        ParseError::Length {
            claimed: 7,
            present: 8
        }
    );
    let overrun = ParseError::Overrun {
        kind: AttributeType::SOFTWARE,
        offset: 20,
        claimed: 5,
    };
    assert_eq!(broken(23, 5), overrun);
    let mut trailing = sound.clone();
    trailing.push(0);
    assert_eq!(
        Message::parse(&trailing).unwrap_err(),
        ParseError::Length {
            claimed: 8,
            present: 9
        }
    );
}

#[test]
fn a_message_of_very_many_attributes_is_refused() {
    let mut bytes = build(|_| {});
    for _ in 0..MAX_ATTRIBUTES {
        append(&mut bytes, AttributeType::SOFTWARE, b"");
    }
    assert_eq!(
        Message::parse(&bytes).unwrap().attributes().count(),
        MAX_ATTRIBUTES
    );
    append(&mut bytes, AttributeType::SOFTWARE, b"");
    assert_eq!(
        Message::parse(&bytes).unwrap_err(),
        ParseError::TooManyAttributes
    );
}

#[test]
fn the_longest_message_a_length_field_can_hold_is_parsed() {
    let mut bytes = build(|_| {});
    append(&mut bytes, AttributeType::DATA, &vec![1; 65_500]);
    append(&mut bytes, AttributeType::MESSAGE_INTEGRITY, &[0; 20]);
    assert_eq!(bytes.len(), HEADER_BYTES + 65_528);
    assert!(Message::parse(&bytes).unwrap().has_integrity());
}

#[test]
fn an_overlong_nonce_is_no_nonce() {
    let mut bytes = build(|_| {});
    append(&mut bytes, AttributeType::NONCE, &[b'n'; 764]);
    let length = ValueError::Length {
        kind: AttributeType::NONCE,
        len: 764,
    };
    assert_eq!(
        Message::parse(&bytes).unwrap().get::<Nonce<'_>>(),
        Err(length)
    );
}
