//! What two ends of a connection say to each other to find out whether one of them is where a datagram
//! came from: a STUN Binding request and its answer (RFC 8489), with keys that only they know.
//!
//! ```text
//!   transaction id    0        1        3        4        6                        12
//!                    +--------+--------+--------+--------+--------+ … +--------+
//!                    |  0xFF  | asked shard     |  0xFF  | asking shard | random  |
//!                    +--------+--------+--------+--------+--------+ … +--------+
//!   USERNAME          the connection id of the asked one, in hexadecimal
//! ```
//!
//! Each end asks with a key of its own: a request that somebody sends back to who made it is worth
//! nothing there, and gives no answer that could be taken for the other end's.

use std::net::SocketAddr;

use crate::machine::{ByteTest, ShardId, ShardMark};
use crate::quic::{self, CidBytes};
use crate::wire::attribute::{Username, XorMappedAddress};
use crate::wire::{
    Class, IntegrityKey, Message, MessageType, MessageWriter, Method, TransactionId, WriteError,
};

/// The label that keys are exported with (RFC 8446 §7.5).
pub(super) const LABEL: &[u8] = b"EXPORTER-towpath path check";
/// Header, a USERNAME of 16 bytes, and all of MESSAGE-INTEGRITY-SHA256.
pub(super) const REQUEST_BYTES: usize = 20 + (4 + 16) + (4 + 32);
/// Header, an IPv6 address, and all of MESSAGE-INTEGRITY-SHA256.
const MAX_RESPONSE_BYTES: usize = 20 + (4 + 20) + (4 + 32);
/// "At most 1.6 times the request" is what anybody may be answered.
const _: () = assert!(MAX_RESPONSE_BYTES * 10 <= REQUEST_BYTES * 16);
const INTEGRITY_BYTES: usize = 32;
const MARK: u8 = 0xFF;

const REQUEST: MessageType = MessageType::new(Method::BINDING, Class::Request);
const SUCCESS: MessageType = MessageType::new(Method::BINDING, Class::Success);

/// The shard that a request asks, and the one that an answer goes back to.
pub(super) const SHARD_MARKS: [ShardMark; 2] = [
    ShardMark {
        tests: &[
            is(0, 0x00),
            is(1, 0x01),
            is(4, 0x21),
            is(5, 0x12),
            is(6, 0xa4),
            is(7, 0x42),
            is(8, MARK),
        ],
        offset: 9,
    },
    ShardMark {
        tests: &[
            is(0, 0x01),
            is(1, 0x01),
            is(4, 0x21),
            is(5, 0x12),
            is(6, 0xa4),
            is(7, 0x42),
            is(11, MARK),
        ],
        offset: 12,
    },
];

const fn is(offset: u8, value: u8) -> ByteTest {
    ByteTest {
        offset,
        mask: 0xff,
        value,
    }
}

/// The id of a request from one shard to another.
pub(super) fn transaction(asked: ShardId, asking: ShardId, random: [u8; 6]) -> TransactionId {
    let mut id = [MARK; 12];
    id[1..3].copy_from_slice(&asked.0.to_be_bytes());
    id[4..6].copy_from_slice(&asking.0.to_be_bytes());
    id[6..].copy_from_slice(&random);
    TransactionId(id)
}

/// Asks the end that has this connection id.
pub(super) fn request(id: TransactionId, asked: CidBytes, key: &IntegrityKey) -> Vec<u8> {
    let name = format!("{:016x}", u64::from_be_bytes(asked));
    written(REQUEST, id, |writer| {
        writer
            .put(&Username(&name))?
            .integrity_sha256(key, INTEGRITY_BYTES)?;
        Ok(())
    })
}

/// Answers a request: where it came from.
pub(super) fn response(id: TransactionId, from: SocketAddr, key: &IntegrityKey) -> Vec<u8> {
    written(SUCCESS, id, |writer| {
        writer
            .put(&XorMappedAddress(from))?
            .integrity_sha256(key, INTEGRITY_BYTES)?;
        Ok(())
    })
}

fn written(
    kind: MessageType,
    id: TransactionId,
    write: impl FnOnce(&mut MessageWriter<'_>) -> Result<(), WriteError>,
) -> Vec<u8> {
    let mut buffer = [0; MAX_RESPONSE_BYTES];
    let mut writer = MessageWriter::new(&mut buffer, kind, id).expect("a header fits");
    write(&mut writer).expect("both messages fit, in this order");
    writer.finish().to_vec()
}

/// What a STUN message of a node says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Said {
    /// A request to the connection with this id.
    Request(CidBytes),
    /// An answer.
    Response,
}

/// What a message says, if it is one of these two. Its integrity has not been checked.
pub(super) fn said(message: &Message<'_>) -> Option<Said> {
    if message.message_type() == SUCCESS {
        return Some(Said::Response);
    }
    if message.message_type() != REQUEST {
        return None;
    }
    let Username(name) = message.get().ok()??;
    if name.len() != 2 * quic::CID_BYTES {
        return None;
    }
    let id = u64::from_str_radix(name, 16).ok()?;
    Some(Said::Request(id.to_be_bytes()))
}

/// Whether who wrote a message knew the key.
pub(super) fn is_genuine(message: &Message<'_>, key: &IntegrityKey) -> bool {
    message.check_integrity_sha256(key, INTEGRITY_BYTES).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_messages_are_read_back_and_name_their_shards() {
        let key = IntegrityKey::new(&[1; 32]);
        let id = transaction(ShardId(0x102), ShardId(0x304), [9; 6]);
        let asked = [7, 0xff, 1, 2, 5, 6, 7, 8];
        let bytes = request(id, asked, &key);
        assert_eq!(bytes.len(), REQUEST_BYTES);
        assert_eq!(SHARD_MARKS[0].shard(&bytes), Some(ShardId(0x102)));
        assert_eq!(SHARD_MARKS[1].shard(&bytes), None);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(said(&message), Some(Said::Request(asked)));
        assert!(is_genuine(&message, &key));
        assert!(!is_genuine(&message, &IntegrityKey::new(&[2; 32])));
        for from in ["192.0.2.1:9", "[2001:db8::1]:9"] {
            let bytes = response(id, from.parse().unwrap(), &key);
            assert!(bytes.len() * 10 <= REQUEST_BYTES * 16);
            assert_eq!(SHARD_MARKS[0].shard(&bytes), None);
            assert_eq!(SHARD_MARKS[1].shard(&bytes), Some(ShardId(0x304)));
            let message = Message::parse(&bytes).unwrap();
            assert_eq!(said(&message), Some(Said::Response));
            assert_eq!(message.transaction_id(), id);
            assert!(is_genuine(&message, &key));
        }
    }

    #[test]
    fn a_name_that_is_no_connection_id_says_nothing() {
        let key = IntegrityKey::new(&[1; 32]);
        for name in [
            "",
            "0123",
            "0123456789abcde",
            "0123456789abcdef0",
            "+123456789abcdeg",
        ] {
            let bytes = written(REQUEST, TransactionId([1; 12]), |writer| {
                writer.put(&Username(name))?.integrity_sha256(&key, 32)?;
                Ok(())
            });
            assert_eq!(said(&Message::parse(&bytes).unwrap()), None, "{name}");
        }
    }
}
