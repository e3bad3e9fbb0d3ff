use super::*;
use crate::wire::attribute::{Data, Lifetime, Software, Username};
use crate::wire::{Class, Message, Method};

const TYPE: MessageType = MessageType::new(Method::REFRESH, Class::Request);
const ID: TransactionId = TransactionId([9; 12]);

#[test]
fn padding_is_zero_whatever_the_buffer_held() {
    let mut buffer = [0xaa; 64];
    let mut writer = MessageWriter::new(&mut buffer, TYPE, ID).unwrap();
    writer.put(&Username("alice")).unwrap();
    assert_eq!(writer.finish()[24..], *b"alice\0\0\0");
}

#[test]
fn a_full_buffer_is_an_error_and_leaves_a_whole_message() {
    assert!(MessageWriter::new(&mut [0; 19], TYPE, ID).is_err());
    let mut buffer = [0; 28];
    let mut writer = MessageWriter::new(&mut buffer, TYPE, ID).unwrap();
    writer.put(&Lifetime(600)).unwrap();
    let full = WriteError::Full {
        kind: Some(AttributeType::SOFTWARE),
        needed: 8,
        available: 0,
    };
    assert_eq!(writer.put(&Software("x")).unwrap_err(), full);
    assert!(writer.fingerprint().is_err());
    let message = Message::parse(writer.finish()).unwrap();
    assert_eq!(message.get(), Ok(Some(Lifetime(600))));
}

#[test]
fn a_message_longer_than_its_length_field_is_refused() {
    let mut buffer = vec![0; 80_000];
    let mut writer = MessageWriter::new(&mut buffer, TYPE, ID).unwrap();
    assert!(writer.put(&Data(&[0; 65_532])).is_err());
    assert!(writer.put(&Data(&[0; 70_000])).is_err());
    assert!(writer.put(&Data(&[0; 65_528])).is_ok());
    assert!(Message::parse(writer.finish()).is_ok());
}

#[test]
fn nothing_is_written_where_a_receiver_would_ignore_it() {
    let key = IntegrityKey::new(b"key");
    let mut buffer = [0; 256];
    let mut writer = MessageWriter::new(&mut buffer, TYPE, ID).unwrap();
    writer.integrity(&key).unwrap();
    let order = WriteError::Order {
        kind: AttributeType::LIFETIME,
    };
    assert_eq!(writer.put(&Lifetime(1)).unwrap_err(), order);
    assert!(writer.integrity(&key).is_err());
    writer.integrity_sha256(&key, 32).unwrap();
    assert!(writer.integrity(&key).is_err());
    writer.fingerprint().unwrap();
    assert!(writer.fingerprint().is_err());
    assert!(writer.integrity_sha256(&key, 32).is_err());
    assert!(
        Message::parse(writer.finish())
            .unwrap()
            .check_fingerprint()
            .is_ok()
    );
}

#[test]
fn message_integrity_sha256_is_16_to_32_bytes_in_steps_of_four() {
    let key = IntegrityKey::new(b"key");
    for len in 0..40 {
        let mut buffer = [0; 128];
        let mut writer = MessageWriter::new(&mut buffer, TYPE, ID).unwrap();
        let allowed = [16, 20, 24, 28, 32].contains(&len);
        assert_eq!(writer.integrity_sha256(&key, len).is_ok(), allowed, "{len}");
    }
}
