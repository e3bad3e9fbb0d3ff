//! Send and Data indications around a payload that stays where it is.
//!
//! ```text
//!  header │ XOR-PEER-ADDRESS │ DATA type, length │ payload … │ 0 to 3 zero bytes
//!  └──────────── prefix ─────────────────────────┘           └── padding
//! ```
//!
//! Nothing but the prefix and the padding is written, so a received payload is forwarded in place.

use std::net::SocketAddr;

use super::attribute::{Attribute, XorPeerAddress};
use super::{AttributeType, Class, MessageType, MessageWriter, Method, TransactionId, padded};
use crate::machine::Prefix;

/// The bytes around a payload that make it an indication.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndicationPrefix {
    /// What goes in front.
    pub prefix: Prefix,
    /// How many zero bytes go behind.
    pub padding: u8,
}

/// A Data indication of `payload_bytes` bytes from `peer`; `None` where a length field cannot say it.
pub fn data_indication(
    id: TransactionId,
    peer: SocketAddr,
    payload_bytes: usize,
) -> Option<IndicationPrefix> {
    indication(Method::DATA, id, peer, payload_bytes)
}

/// A Send indication of `payload_bytes` bytes to `peer`; `None` where a length field cannot say it.
pub fn send_indication(
    id: TransactionId,
    peer: SocketAddr,
    payload_bytes: usize,
) -> Option<IndicationPrefix> {
    indication(Method::SEND, id, peer, payload_bytes)
}

fn indication(
    method: Method,
    id: TransactionId,
    peer: SocketAddr,
    payload_bytes: usize,
) -> Option<IndicationPrefix> {
    let mut bytes = [0; Prefix::MAX_BYTES];
    let message_type = MessageType::new(method, Class::Indication);
    let mut writer = MessageWriter::new(&mut bytes, message_type, id).ok()?;
    writer.put(&XorPeerAddress(peer)).ok()?;
    let data_at = writer.len();
    let [l0, l1] = u16::try_from(payload_bytes).ok()?.to_be_bytes();
    let padding = padded(payload_bytes) - payload_bytes;
    let attributes_len = XorPeerAddress(peer).value_len() + 4 + 4 + payload_bytes + padding;
    bytes[2..4].copy_from_slice(&u16::try_from(attributes_len).ok()?.to_be_bytes());
    let [t0, t1] = AttributeType::DATA.0.to_be_bytes();
    bytes[data_at..data_at + 4].copy_from_slice(&[t0, t1, l0, l1]);
    Some(IndicationPrefix {
        prefix: Prefix::new(&bytes[..data_at + 4])?,
        padding: padding as u8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Message;
    use crate::wire::attribute::Data;

    #[test]
    fn a_payload_between_prefix_and_padding_is_an_indication() {
        let id = TransactionId([3; 12]);
        for peer in ["192.0.2.1:5000", "[2001:db8::1]:6000"] {
            let peer: SocketAddr = peer.parse().unwrap();
            for payload_bytes in [0, 1, 2, 3, 4, 1200] {
                let payload = vec![0xa5; payload_bytes];
                let around = data_indication(id, peer, payload_bytes).unwrap();
                let mut message = around.prefix.as_bytes().to_vec();
                message.extend_from_slice(&payload);
                message.resize(message.len() + usize::from(around.padding), 0);
                let message = Message::parse(&message).unwrap();
                assert_eq!(message.message_type().bits(), 0x0017);
                assert_eq!(message.get(), Ok(Some(XorPeerAddress(peer))));
                assert_eq!(message.get(), Ok(Some(Data(&payload))));
            }
        }
    }

    #[test]
    fn a_payload_that_no_length_field_can_hold_is_refused() {
        let peer: SocketAddr = "192.0.2.1:5000".parse().unwrap();
        assert_eq!(send_indication(TransactionId([0; 12]), peer, 65_520), None);
        assert!(send_indication(TransactionId([0; 12]), peer, 65_516).is_some());
    }
}
