use super::*;
use crate::wire::attribute::{Lifetime, Username};
use crate::wire::{Class, MessageType, MessageWriter, Method, TransactionId};

fn signed(write: impl FnOnce(&mut MessageWriter<'_>)) -> Vec<u8> {
    let mut buffer = [0; 256];
    let message_type = MessageType::new(Method::REFRESH, Class::Request);
    let mut writer = MessageWriter::new(&mut buffer, message_type, TransactionId([1; 12])).unwrap();
    writer
        .put(&Username("alice"))
        .unwrap()
        .put(&Lifetime(600))
        .unwrap();
    write(&mut writer);
    writer.finish().to_vec()
}

#[test]
fn all_checks_hold_on_an_untouched_message_and_fail_on_any_changed_byte() {
    let key = IntegrityKey::new(b"some key");
    let bytes = signed(|w| {
        w.integrity(&key)
            .unwrap()
            .integrity_sha256(&key, 32)
            .unwrap()
            .fingerprint()
            .unwrap();
    });
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.check_integrity(&key), Ok(()));
    assert_eq!(message.check_integrity_sha256(&key, 32), Ok(()));
    assert_eq!(message.check_fingerprint(), Ok(()));
    let protected = bytes.len() - 8 - 36 - 24;
    for at in 0..protected {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let Ok(message) = Message::parse(&changed) else {
            continue;
        };
        assert!(message.check_integrity(&key).is_err(), "byte {at}");
        assert!(
            message.check_integrity_sha256(&key, 32).is_err(),
            "byte {at}"
        );
        assert!(message.check_fingerprint().is_err(), "byte {at}");
    }
}

#[test]
fn another_key_does_not_match() {
    let key = IntegrityKey::new(b"some key");
    let bytes = signed(|w| {
        w.integrity(&key).unwrap();
    });
    let message = Message::parse(&bytes).unwrap();
    let mismatch = IntegrityError::Mismatch(AttributeType::MESSAGE_INTEGRITY);
    assert_eq!(
        message.check_integrity(&IntegrityKey::new(b"some kez")),
        Err(mismatch)
    );
    let missing = IntegrityError::Missing(AttributeType::MESSAGE_INTEGRITY_SHA256);
    assert_eq!(message.check_integrity_sha256(&key, 32), Err(missing));
    let missing = IntegrityError::Missing(AttributeType::FINGERPRINT);
    assert_eq!(message.check_fingerprint(), Err(missing));
}

#[test]
fn a_truncated_message_integrity_sha256_holds_only_where_the_usage_allows_it() {
    let key = IntegrityKey::new(b"some key");
    for len in [16, 20, 24, 28, 32] {
        let bytes = signed(|w| {
            w.integrity_sha256(&key, len).unwrap();
        });
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.check_integrity_sha256(&key, 16), Ok(()));
        let kind = AttributeType::MESSAGE_INTEGRITY_SHA256;
        let full_only = message.check_integrity_sha256(&key, 32);
        if len == 32 {
            assert_eq!(full_only, Ok(()));
        } else {
            assert_eq!(full_only, Err(IntegrityError::Truncated { kind, len }));
        }
    }
}

#[test]
fn a_key_is_not_printed() {
    assert_eq!(
        format!("{:?}", IntegrityKey::new(b"secret")),
        "IntegrityKey(…)"
    );
}
