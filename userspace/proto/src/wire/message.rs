//! The checked view of a received STUN message.

use std::fmt;
use std::iter::FusedIterator;

use thiserror::Error;

use super::attribute::{Attribute, UnknownAttributes, ValueError};
use super::header::{Class, HEADER_BYTES, MAGIC_COOKIE, MessageType, Method, TransactionId};
use super::{AttributeType, padded};

/// A message with more attributes is refused, so that one datagram costs bounded time.
pub const MAX_ATTRIBUTES: usize = 128;

const ATTRIBUTE_HEADER_BYTES: usize = 4;
const INTEGRITY_BYTES: usize = 20;
const FINGERPRINT_BYTES: usize = 4;

/// A received STUN message: header and lengths are checked, values are read on demand.
///
/// ```text
///  header │ attributes a receiver acts on │ MESSAGE-INTEGRITY │ -SHA256 │ FINGERPRINT
///         └── attributes(), find(), get() └── check_integrity… └─        └── check_fingerprint
/// ```
#[derive(Clone, Copy)]
pub struct Message<'a> {
    bytes: &'a [u8],
    message_type: MessageType,
    /// Where the attributes a receiver acts on end.
    end: u32,
    /// Offsets of the attributes that are checked and not read; 0 for absent.
    integrity: u32,
    integrity_sha256: u32,
    fingerprint: u32,
}

/// Why bytes are no STUN message. The sender is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ParseError {
    /// Less than a header.
    #[error("{len} bytes are less than a STUN header")]
    Short {
        /// Bytes there are.
        len: usize,
    },
    /// The two highest bits are not zero.
    #[error("message type {bits:#06x} has its highest bits set")]
    Type {
        /// Bytes 0 and 1.
        bits: u16,
    },
    /// The magic cookie is missing: not STUN, or the STUN of RFC 3489.
    #[error("magic cookie is {cookie:#010x}")]
    Cookie {
        /// Bytes 4 to 8.
        cookie: u32,
    },
    /// The length is no multiple of four, or is not what follows the header.
    #[error("header says {claimed} bytes of attributes, {present} are there")]
    Length {
        /// The header's length field.
        claimed: usize,
        /// Bytes behind the header.
        present: usize,
    },
    /// An attribute reaches beyond the message.
    #[error("{kind} at offset {offset} claims {claimed} bytes beyond the message's end")]
    Overrun {
        /// The attribute.
        kind: AttributeType,
        /// Where it begins.
        offset: usize,
        /// Its length field.
        claimed: usize,
    },
    /// MESSAGE-INTEGRITY, -SHA256 or FINGERPRINT of a length that it cannot have.
    #[error("{kind} of {len} bytes")]
    CheckLength {
        /// The attribute.
        kind: AttributeType,
        /// Its length field.
        len: usize,
    },
    /// An attribute behind FINGERPRINT.
    #[error("{kind} follows FINGERPRINT")]
    AfterFingerprint {
        /// The attribute.
        kind: AttributeType,
    },
    /// More than [`MAX_ATTRIBUTES`].
    #[error("more than {MAX_ATTRIBUTES} attributes")]
    TooManyAttributes,
}

impl<'a> Message<'a> {
    /// Checks that `bytes` are one whole STUN message: header, cookie, lengths, and where integrity
    /// and fingerprint stand.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        Self::read(bytes, |cookie| cookie == MAGIC_COOKIE)
    }

    /// Checks everything but what stands in place of the cookie, which `is_right` judges.
    pub(super) fn read(
        bytes: &'a [u8],
        is_right: impl FnOnce(u32) -> bool,
    ) -> Result<Self, ParseError> {
        let Some((header, attributes)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(ParseError::Short { len: bytes.len() });
        };
        let bits = u16::from_be_bytes([header[0], header[1]]);
        let Some(message_type) = MessageType::from_bits(bits) else {
            return Err(ParseError::Type { bits });
        };
        let cookie = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        if !is_right(cookie) {
            return Err(ParseError::Cookie { cookie });
        }
        // RFC 8489 §5: "all STUN attributes are padded to a multiple of 4 bytes, the last 2 bits of
        // this field are always zero".
        let claimed = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if claimed != attributes.len() || claimed % 4 != 0 {
            return Err(ParseError::Length {
                claimed,
                present: attributes.len(),
            });
        }
        let mut message = Self {
            bytes,
            message_type,
            end: bytes.len() as u32,
            integrity: 0,
            integrity_sha256: 0,
            fingerprint: 0,
        };
        message.walk()?;
        Ok(message)
    }

    fn walk(&mut self) -> Result<(), ParseError> {
        let mut offset = HEADER_BYTES;
        let mut count = 0;
        while let Some(rest) = self.bytes.get(offset..)
            && let Some((&[t0, t1, l0, l1], value)) = rest.split_first_chunk()
        {
            let kind = AttributeType(u16::from_be_bytes([t0, t1]));
            let len = usize::from(u16::from_be_bytes([l0, l1]));
            count += 1;
            if count > MAX_ATTRIBUTES {
                return Err(ParseError::TooManyAttributes);
            }
            if padded(len) > value.len() {
                return Err(ParseError::Overrun {
                    kind,
                    offset,
                    claimed: len,
                });
            }
            if self.fingerprint != 0 {
                // RFC 8489 §14.7: "the FINGERPRINT attribute MUST be the last attribute in the
                // message".
                return Err(ParseError::AfterFingerprint { kind });
            }
            match kind {
                AttributeType::MESSAGE_INTEGRITY
                | AttributeType::MESSAGE_INTEGRITY_SHA256
                | AttributeType::FINGERPRINT => self.note_check(kind, offset, len)?,
                _ => {}
            }
            offset += ATTRIBUTE_HEADER_BYTES + padded(len);
        }
        Ok(())
    }

    fn note_check(
        &mut self,
        kind: AttributeType,
        offset: usize,
        len: usize,
    ) -> Result<(), ParseError> {
        let at = offset as u32;
        // RFC 8489 §14.5: "With the exception of the MESSAGE-INTEGRITY-SHA256 and FINGERPRINT
        // attributes, which appear after MESSAGE-INTEGRITY, agents MUST ignore all other attributes
        // that follow MESSAGE-INTEGRITY." §14.6 leaves FINGERPRINT alone behind -SHA256.
        let (place, sound) = match kind {
            AttributeType::MESSAGE_INTEGRITY => {
                if self.integrity != 0 || self.integrity_sha256 != 0 {
                    return Ok(());
                }
                (&mut self.integrity, len == INTEGRITY_BYTES)
            }
            AttributeType::MESSAGE_INTEGRITY_SHA256 => {
                if self.integrity_sha256 != 0 {
                    return Ok(());
                }
                // RFC 8489 §14.6: "at most 32 bytes, but it MUST be at least 16 bytes and MUST be a
                // multiple of 4 bytes".
                (
                    &mut self.integrity_sha256,
                    (16..=32).contains(&len) && len.is_multiple_of(4),
                )
            }
            _ => (&mut self.fingerprint, len == FINGERPRINT_BYTES),
        };
        if !sound {
            return Err(ParseError::CheckLength { kind, len });
        }
        *place = at;
        self.end = self.end.min(at);
        Ok(())
    }

    /// The whole message.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Method and class.
    pub fn message_type(&self) -> MessageType {
        self.message_type
    }

    /// What the message is about.
    pub fn method(&self) -> Method {
        self.message_type.method()
    }

    /// Request, indication, success or error.
    pub fn class(&self) -> Class {
        self.message_type.class()
    }

    /// The transaction.
    pub fn transaction_id(&self) -> TransactionId {
        let mut id = [0; 12];
        id.copy_from_slice(&self.bytes[8..HEADER_BYTES]);
        TransactionId(id)
    }

    /// The attributes a receiver acts on, in order: those in front of MESSAGE-INTEGRITY,
    /// MESSAGE-INTEGRITY-SHA256 and FINGERPRINT, which have methods of their own. What stands behind
    /// these is never shown.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes {
            rest: &self.bytes[HEADER_BYTES..self.end as usize],
        }
    }

    /// The value of the first attribute of this type among [`attributes`](Self::attributes).
    ///
    /// RFC 8489 §14: "only the first occurrence needs to be processed by a receiver".
    pub fn find(&self, kind: AttributeType) -> Option<&'a [u8]> {
        self.attributes()
            .find(|attribute| attribute.kind == kind)
            .map(|attribute| attribute.value)
    }

    /// The first attribute of type `A`, read; `None` where there is none.
    pub fn get<A: Attribute<'a>>(&self) -> Result<Option<A>, ValueError> {
        self.find(A::TYPE)
            .map(|value| A::read(value, &self.transaction_id()))
            .transpose()
    }

    /// Every attribute of type `A`, read: XOR-PEER-ADDRESS may stand more than once.
    pub fn get_all<A: Attribute<'a>>(&self) -> impl Iterator<Item = Result<A, ValueError>> + 'a {
        let id = self.transaction_id();
        self.attributes()
            .filter(|attribute| attribute.kind == A::TYPE)
            .map(move |attribute| A::read(attribute.value, &id))
    }

    /// Whether an attribute of this type is among [`attributes`](Self::attributes).
    pub fn contains(&self, kind: AttributeType) -> bool {
        self.find(kind).is_some()
    }

    /// The comprehension-required attributes for which `is_known` says no, for a 420 response.
    pub fn unknown_required(&self, is_known: impl Fn(AttributeType) -> bool) -> UnknownAttributes {
        let mut unknown = UnknownAttributes::default();
        for attribute in self.attributes() {
            if attribute.kind.is_comprehension_required() && !is_known(attribute.kind) {
                unknown.push(attribute.kind);
            }
        }
        unknown
    }

    /// Whether there is a MESSAGE-INTEGRITY.
    pub fn has_integrity(&self) -> bool {
        self.integrity != 0
    }

    /// Whether there is a MESSAGE-INTEGRITY-SHA256.
    pub fn has_integrity_sha256(&self) -> bool {
        self.integrity_sha256 != 0
    }

    /// Whether there is a FINGERPRINT.
    pub fn has_fingerprint(&self) -> bool {
        self.fingerprint != 0
    }

    /// The offset and value of MESSAGE-INTEGRITY.
    pub(super) fn integrity(&self) -> Option<(usize, &'a [u8])> {
        self.check_attribute(self.integrity)
    }

    /// The offset and value of MESSAGE-INTEGRITY-SHA256.
    pub(super) fn integrity_sha256(&self) -> Option<(usize, &'a [u8])> {
        self.check_attribute(self.integrity_sha256)
    }

    /// The offset and value of FINGERPRINT.
    pub(super) fn fingerprint(&self) -> Option<(usize, &'a [u8])> {
        self.check_attribute(self.fingerprint)
    }

    fn check_attribute(&self, offset: u32) -> Option<(usize, &'a [u8])> {
        let offset = offset as usize;
        let attribute = (offset != 0).then(|| {
            Attributes {
                rest: &self.bytes[offset..],
            }
            .next()
        })??;
        Some((offset, attribute.value))
    }
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("type", &self.message_type)
            .field("transaction_id", &self.transaction_id())
            .field(
                "attributes",
                &self.attributes().map(|a| a.kind).collect::<Vec<_>>(),
            )
            .field("integrity", &self.has_integrity())
            .field("integrity_sha256", &self.has_integrity_sha256())
            .field("fingerprint", &self.has_fingerprint())
            .finish()
    }
}

/// An attribute as it stands in the message, padding left off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawAttribute<'a> {
    /// Its type.
    pub kind: AttributeType,
    /// Its value.
    pub value: &'a [u8],
}

/// Iterator over a message's attributes.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Attributes<'a> {
    type Item = RawAttribute<'a>;

    #[inline]
    fn next(&mut self) -> Option<RawAttribute<'a>> {
        let (&[t0, t1, l0, l1], rest) = self.rest.split_first_chunk()?;
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        let value = rest.get(..len)?;
        self.rest = rest.get(padded(len)..)?;
        Some(RawAttribute {
            kind: AttributeType(u16::from_be_bytes([t0, t1])),
            value,
        })
    }
}

impl FusedIterator for Attributes<'_> {}

#[cfg(test)]
mod tests;
