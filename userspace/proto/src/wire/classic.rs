//! Messages of RFC 3489, which had no magic cookie: the transaction id is 16 bytes long.
//!
//! ```text
//! |0 0|  message type (14 bits)   |        length (attributes)    |
//! |                    transaction id (128 bits) …                |
//! ```

use super::attribute::{Attribute, UnknownAttributes, ValueError};
use super::header::{Class, HEADER_BYTES, MAGIC_COOKIE, Method};
use super::{AttributeType, Message, ParseError};

/// Ties a response of RFC 3489 to its request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ClassicId(pub [u8; 16]);

/// A received message of RFC 3489: header and lengths are checked, values are read on demand.
#[derive(Clone, Copy, Debug)]
pub struct ClassicMessage<'a>(Message<'a>);

impl<'a> ClassicMessage<'a> {
    /// Checks that `bytes` are one whole message without the magic cookie.
    ///
    /// RFC 5389 §12.2: "A STUN server can detect when a given Binding Request message was sent from an
    /// RFC 3489 client by the absence of the correct value in the magic cookie field."
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        Message::read(bytes, |cookie| cookie != MAGIC_COOKIE).map(Self)
    }

    /// The whole message.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0.as_bytes()
    }

    /// The transaction.
    pub fn id(&self) -> ClassicId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0.as_bytes()[4..HEADER_BYTES]);
        ClassicId(id)
    }

    /// What the message is about.
    pub fn method(&self) -> Method {
        self.0.method()
    }

    /// Request, success or error.
    pub fn class(&self) -> Class {
        self.0.class()
    }

    /// The first attribute of type `A`, read; `None` where there is none. XORed ones have no meaning
    /// here.
    pub fn get<A: Attribute<'a>>(&self) -> Result<Option<A>, ValueError> {
        self.0.get()
    }

    /// As [`Message::unknown_required`].
    pub fn unknown_required(&self, is_known: impl Fn(AttributeType) -> bool) -> UnknownAttributes {
        self.0.unknown_required(is_known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::attribute::MappedAddress;
    use crate::wire::{MessageType, MessageWriter, TransactionId};

    #[test]
    fn a_message_without_the_cookie_is_written_and_read_with_its_long_id() {
        let id = ClassicId(*b"sixteen bytes id");
        let mapped = MappedAddress("192.0.2.9:4000".parse().unwrap());
        let mut buffer = [0; 64];
        let success = MessageType::new(Method::BINDING, Class::Success);
        let mut writer = MessageWriter::classic(&mut buffer, success, id).unwrap();
        writer.put(&mapped).unwrap();
        let bytes = writer.finish();
        assert!(Message::parse(bytes).is_err());
        let message = ClassicMessage::parse(bytes).unwrap();
        assert_eq!((message.id(), message.class()), (id, Class::Success));
        assert_eq!(message.get(), Ok(Some(mapped)));
    }

    #[test]
    fn a_message_with_the_cookie_is_none_of_rfc_3489() {
        let mut buffer = [0; 64];
        let request = MessageType::new(Method::BINDING, Class::Request);
        let id = TransactionId([1; 12]);
        let writer = MessageWriter::new(&mut buffer, request, id).unwrap();
        let refused = ClassicMessage::parse(writer.finish());
        let cookie = MAGIC_COOKIE;
        assert_eq!(refused.unwrap_err(), ParseError::Cookie { cookie });
    }
}
