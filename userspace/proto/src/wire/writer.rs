//! Builds STUN messages in a buffer of the caller's.

use thiserror::Error;

use super::attribute::Attribute;
use super::classic::ClassicId;
use super::header::{HEADER_BYTES, MAGIC_COOKIE, MessageType, TransactionId};
use super::integrity::{IntegrityKey, fingerprint};
use super::{AttributeType, padded};

/// Writes one message. After every call the buffer holds a whole message: the length field is right
/// and padding is zero.
#[derive(Debug)]
pub struct MessageWriter<'b> {
    buffer: &'b mut [u8],
    len: usize,
    id: TransactionId,
    stage: Stage,
}

/// How far the message is: what may still follow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stage {
    Attributes,
    Integrity,
    IntegritySha256,
    Fingerprint,
}

/// Why something cannot be written. The caller is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum WriteError {
    /// The buffer, or what a length field can say, is too short.
    #[error("{kind:?} needs {needed} bytes, {available} are left")]
    Full {
        /// The attribute; `None` for the header.
        kind: Option<AttributeType>,
        /// Bytes it needs.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// The attribute would be ignored there.
    #[error("{kind} behind an integrity attribute or FINGERPRINT")]
    Order {
        /// The attribute.
        kind: AttributeType,
    },
    /// MESSAGE-INTEGRITY-SHA256 of a length it cannot have.
    #[error("message integrity of {len} bytes is none of 16, 20, 24, 28, 32")]
    IntegrityLength {
        /// The length asked for.
        len: usize,
    },
}

impl<'b> MessageWriter<'b> {
    /// Begins a message of this type and transaction.
    pub fn new(
        buffer: &'b mut [u8],
        message_type: MessageType,
        id: TransactionId,
    ) -> Result<Self, WriteError> {
        let [c0, c1, c2, c3] = MAGIC_COOKIE.to_be_bytes();
        let mut behind_length = [c0, c1, c2, c3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        behind_length[4..].copy_from_slice(&id.0);
        Self::begin(buffer, message_type, behind_length)
    }

    /// Begins a message of RFC 3489, without the cookie. XORed addresses, integrity and FINGERPRINT
    /// have no meaning in it.
    pub fn classic(
        buffer: &'b mut [u8],
        message_type: MessageType,
        id: ClassicId,
    ) -> Result<Self, WriteError> {
        Self::begin(buffer, message_type, id.0)
    }

    fn begin(
        buffer: &'b mut [u8],
        message_type: MessageType,
        behind_length: [u8; 16],
    ) -> Result<Self, WriteError> {
        let available = buffer.len();
        let Some(header) = buffer.first_chunk_mut::<HEADER_BYTES>() else {
            return Err(WriteError::Full {
                kind: None,
                needed: HEADER_BYTES,
                available,
            });
        };
        header[..2].copy_from_slice(&message_type.bits().to_be_bytes());
        header[2..4].fill(0);
        header[4..].copy_from_slice(&behind_length);
        let mut id = [0; 12];
        id.copy_from_slice(&behind_length[4..]);
        Ok(Self {
            buffer,
            len: HEADER_BYTES,
            id: TransactionId(id),
            stage: Stage::Attributes,
        })
    }

    /// Adds an attribute.
    pub fn put<'a, A: Attribute<'a>>(&mut self, attribute: &A) -> Result<&mut Self, WriteError> {
        let id = self.id;
        let value = self.reserve(A::TYPE, attribute.value_len(), Stage::Attributes)?;
        attribute.write(&id, value);
        Ok(self)
    }

    /// Adds an attribute where there is one.
    pub fn put_some<'a, A: Attribute<'a>>(
        &mut self,
        attribute: Option<&A>,
    ) -> Result<&mut Self, WriteError> {
        match attribute {
            Some(attribute) => self.put(attribute),
            None => Ok(self),
        }
    }

    /// Adds an attribute whose value is given as bytes.
    pub fn put_raw(&mut self, kind: AttributeType, bytes: &[u8]) -> Result<&mut Self, WriteError> {
        self.reserve(kind, bytes.len(), Stage::Attributes)?
            .copy_from_slice(bytes);
        Ok(self)
    }

    /// Adds MESSAGE-INTEGRITY (HMAC-SHA1 over what is there).
    pub fn integrity(&mut self, key: &IntegrityKey) -> Result<&mut Self, WriteError> {
        let end = self.len;
        self.reserve(AttributeType::MESSAGE_INTEGRITY, 20, Stage::Integrity)?;
        let mac = key.sign_sha1(&self.buffer[..end]);
        self.buffer[end + 4..end + 24].copy_from_slice(&mac);
        Ok(self)
    }

    /// Adds MESSAGE-INTEGRITY-SHA256 of `len` bytes: 32, or down to 16 where the usage allows it.
    pub fn integrity_sha256(
        &mut self,
        key: &IntegrityKey,
        len: usize,
    ) -> Result<&mut Self, WriteError> {
        if !(16..=32).contains(&len) || !len.is_multiple_of(4) {
            return Err(WriteError::IntegrityLength { len });
        }
        let end = self.len;
        self.reserve(
            AttributeType::MESSAGE_INTEGRITY_SHA256,
            len,
            Stage::IntegritySha256,
        )?;
        let mac = key.sign_sha256(&self.buffer[..end], len);
        self.buffer[end + 4..end + 4 + len].copy_from_slice(&mac[..len]);
        Ok(self)
    }

    /// Adds FINGERPRINT, after which nothing may follow.
    pub fn fingerprint(&mut self) -> Result<&mut Self, WriteError> {
        let end = self.len;
        self.reserve(AttributeType::FINGERPRINT, 4, Stage::Fingerprint)?;
        let crc = fingerprint(&self.buffer[..end]);
        self.buffer[end + 4..end + 8].copy_from_slice(&crc.to_be_bytes());
        Ok(self)
    }

    /// Bytes written so far: the length of the message.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a message has a header at least.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The message.
    pub fn finish(self) -> &'b [u8] {
        &self.buffer[..self.len]
    }

    /// Writes an attribute's header and zeroes its value and padding; lends the value.
    fn reserve(
        &mut self,
        kind: AttributeType,
        value_len: usize,
        stage: Stage,
    ) -> Result<&mut [u8], WriteError> {
        let in_order = stage > self.stage || stage == Stage::Attributes;
        if !in_order || (stage == Stage::Attributes && self.stage != Stage::Attributes) {
            return Err(WriteError::Order { kind });
        }
        let needed = 4 + padded(value_len);
        let attributes_len = self.len - HEADER_BYTES + needed;
        let available = self.buffer.len() - self.len;
        let full = WriteError::Full {
            kind: Some(kind),
            needed,
            available,
        };
        let header_len = u16::try_from(attributes_len).map_err(|_| full)?;
        let attribute = self
            .buffer
            .get_mut(self.len..self.len + needed)
            .ok_or(full)?;
        attribute[..2].copy_from_slice(&kind.0.to_be_bytes());
        attribute[2..4].copy_from_slice(&(value_len as u16).to_be_bytes());
        attribute[4..].fill(0);
        self.buffer[2..4].copy_from_slice(&header_len.to_be_bytes());
        let value_at = self.len + 4;
        self.len += needed;
        self.stage = stage;
        Ok(&mut self.buffer[value_at..value_at + value_len])
    }
}

#[cfg(test)]
mod tests;
