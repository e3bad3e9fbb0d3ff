//! The builder: whatever is asked of it in whatever order and with whatever space, the buffer holds a
//! whole message with what was accepted, and zero padding.

use std::net::{IpAddr, SocketAddr};

use towpath_proto::wire::attribute::{
    ChannelNumberValue, Data, ErrorCode, EvenPort, Lifetime, Nonce, Realm, RequestedTransport,
    Software, Username, XorMappedAddress, XorPeerAddress,
};
use towpath_proto::wire::{
    AttributeType, ChannelNumber, Code, HEADER_BYTES, IntegrityKey, Message, MessageType,
    MessageWriter, TransactionId, WriteError,
};

use crate::bytes::Bytes;

const MAX_BUFFER_BYTES: usize = 2048;

pub(crate) fn fuzz(data: &[u8]) {
    let mut input = Bytes(data);
    let len = usize::from(input.number()) % MAX_BUFFER_BYTES;
    let mut buffer = vec![0xee; len];
    let message_type = MessageType::from_bits(input.number() & 0x3fff).expect("14 bits");
    let id = TransactionId(input.array());
    let key = IntegrityKey::new(input.short());
    let Ok(mut writer) = MessageWriter::new(&mut buffer, message_type, id) else {
        assert!(len < HEADER_BYTES);
        return;
    };
    let mut written = Vec::new();
    let mut checks = 0;
    while !input.is_empty() {
        match put(&mut writer, &mut input, &key) {
            Ok(Some(kind)) => written.push(kind),
            Ok(None) => checks += 1,
            Err(WriteError::Full { .. } | WriteError::Order { .. }) => {}
            Err(WriteError::IntegrityLength { len }) => {
                assert!(len % 4 != 0 || !(16..=32).contains(&len))
            }
        }
    }
    let bytes = writer.finish();
    let message = Message::parse(bytes);
    let Ok(message) = message else {
        assert!(
            written.len() + checks > towpath_proto::wire::MAX_ATTRIBUTES,
            "{message:?}"
        );
        return;
    };
    assert_eq!(
        (message.message_type(), message.transaction_id()),
        (message_type, id)
    );
    assert!(
        message
            .attributes()
            .map(|attribute| attribute.kind)
            .eq(written)
    );
    assert!(!message.has_integrity() || message.check_integrity(&key).is_ok());
    let sha256 = message.check_integrity_sha256(&key, 16);
    assert!(!message.has_integrity_sha256() || sha256.is_ok());
    assert!(!message.has_fingerprint() || message.check_fingerprint().is_ok());
    check_padding(bytes, &message);
}

/// Does one thing; says which attribute a receiver will see of it.
fn put(
    writer: &mut MessageWriter<'_>,
    input: &mut Bytes<'_>,
    key: &IntegrityKey,
) -> Result<Option<AttributeType>, WriteError> {
    let kind = match input.byte() % 16 {
        0 => {
            writer.put(&Username(&input.text()))?;
            AttributeType::USERNAME
        }
        1 => {
            writer.put(&Realm(&input.text()))?;
            AttributeType::REALM
        }
        2 => {
            writer.put(&Nonce(input.short()))?;
            AttributeType::NONCE
        }
        3 => {
            writer.put(&Software(&input.text()))?;
            AttributeType::SOFTWARE
        }
        4 => {
            let len = usize::from(input.number());
            writer.put(&Data(input.take(len)))?;
            AttributeType::DATA
        }
        5 => {
            writer.put(&XorPeerAddress(address(input)))?;
            AttributeType::XOR_PEER_ADDRESS
        }
        6 => {
            writer.put(&XorMappedAddress(address(input)))?;
            AttributeType::XOR_MAPPED_ADDRESS
        }
        7 => {
            writer.put(&Lifetime(u32::from_be_bytes(input.array())))?;
            AttributeType::LIFETIME
        }
        8 => {
            let number = 0x4000 | input.number() & 0x3fff;
            let channel = ChannelNumber::new(number).expect("in the range");
            writer.put(&ChannelNumberValue(channel))?;
            AttributeType::CHANNEL_NUMBER
        }
        9 => {
            let code = Code::new(300 + input.number() % 400).expect("in the range");
            writer.put(&ErrorCode {
                code,
                reason: &input.text(),
            })?;
            AttributeType::ERROR_CODE
        }
        10 => {
            writer.put(&RequestedTransport(input.byte()))?;
            AttributeType::REQUESTED_TRANSPORT
        }
        11 => {
            writer.put(&EvenPort {
                reserve_next: input.byte() & 1 == 1,
            })?;
            AttributeType::EVEN_PORT
        }
        12 => return writer.integrity(key).map(|_| None),
        13 => {
            return writer
                .integrity_sha256(key, usize::from(input.byte() % 40))
                .map(|_| None);
        }
        14 => return writer.fingerprint().map(|_| None),
        _ => {
            // Not one of those that are checked and not read.
            let kind = AttributeType(0xc000 | input.number());
            writer.put_raw(kind, input.short())?;
            kind
        }
    };
    Ok(Some(kind))
}

fn address(input: &mut Bytes<'_>) -> SocketAddr {
    let ip = if input.byte() & 1 == 0 {
        IpAddr::from(input.array::<4>())
    } else {
        IpAddr::from(input.array::<16>())
    };
    SocketAddr::new(ip, input.number())
}

fn check_padding(bytes: &[u8], message: &Message<'_>) {
    let mut offset = HEADER_BYTES;
    for attribute in message.attributes() {
        let end = offset + 4 + attribute.value.len();
        offset = end.next_multiple_of(4);
        assert!(
            bytes[end..offset].iter().all(|&byte| byte == 0),
            "padding is not zero"
        );
    }
}
