//! What travels on the wire: STUN and TURN messages (RFC 8489, RFC 8656) and ChannelData.
//!
//! Views borrow the received bytes and are checked once, when they are made; builders write into a
//! buffer of the caller's. Nothing here allocates, keeps state or decides what a message means.
//!
//! ```
//! use std::net::SocketAddr;
//! use towpath_proto::wire::attribute::{Software, XorMappedAddress};
//! use towpath_proto::wire::{Class, Message, MessageType, MessageWriter, Method, TransactionId};
//!
//! let address: SocketAddr = "203.0.113.7:4242".parse()?;
//! let id = TransactionId([7; 12]);
//! let mut buffer = [0; 128];
//! let mut writer =
//!     MessageWriter::new(&mut buffer, MessageType::new(Method::BINDING, Class::Success), id)?;
//! writer.put(&XorMappedAddress(address))?.put(&Software("towpath"))?;
//! writer.fingerprint()?;
//! let bytes = writer.finish();
//!
//! let message = Message::parse(bytes)?;
//! assert_eq!(message.get::<XorMappedAddress>()?, Some(XorMappedAddress(address)));
//! message.check_fingerprint()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod attribute;
mod attribute_type;
mod channel;
mod classic;
mod error_code;
mod header;
mod integrity;
mod message;
mod prefix;
mod writer;

pub use attribute_type::AttributeType;
pub use channel::{CHANNEL_DATA_HEADER_BYTES, ChannelData, ChannelDataError, ChannelNumber};
pub use classic::{ClassicId, ClassicMessage};
pub use error_code::Code;
pub use header::{Class, HEADER_BYTES, MAGIC_COOKIE, MessageType, Method, TransactionId};
pub use integrity::{IntegrityError, IntegrityKey};
pub use message::{Attributes, MAX_ATTRIBUTES, Message, ParseError, RawAttribute};
pub use prefix::{IndicationPrefix, data_indication, send_indication};
pub use writer::{MessageWriter, WriteError};

/// What the first byte of a datagram says it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A STUN message, if its header holds.
    Stun,
    /// A ChannelData message, if its channel is bound.
    ChannelData,
    /// Neither.
    Other,
}

/// Tells STUN from ChannelData by the first byte alone.
///
/// RFC 8656 §12.4: the first two bits are 0b00 for STUN and 0b01 for ChannelData. The rest of a ChannelData header is checked by [`ChannelData::parse`].
#[inline]
pub fn classify(datagram: &[u8]) -> Kind {
    match datagram.first() {
        Some(0x00..=0x3f) => Kind::Stun,
        Some(0x40..=0x7f) => Kind::ChannelData,
        Some(0x80..=0xff) | None => Kind::Other,
    }
}

/// `len` rounded up to the next multiple of four.
pub(crate) const fn padded(len: usize) -> usize {
    (len + 3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_tells_stun_from_channel_data() {
        assert_eq!(classify(&[0x00]), Kind::Stun);
        assert_eq!(classify(&[0x3f, 0xff]), Kind::Stun);
        assert_eq!(classify(&[0x40]), Kind::ChannelData);
        assert_eq!(classify(&[0x7f]), Kind::ChannelData);
        assert_eq!(classify(&[0x80]), Kind::Other);
        assert_eq!(classify(&[]), Kind::Other);
    }
}
