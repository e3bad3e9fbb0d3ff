//! MESSAGE-INTEGRITY, MESSAGE-INTEGRITY-SHA256 and FINGERPRINT.
//!
//! All three are computed over the message up to themselves with the header's length field set as if
//! they were the last attribute. The header is fed apart with that length, so that a received message
//! is neither copied nor written to.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use thiserror::Error;

use super::{AttributeType, HEADER_BYTES, Message};

/// RFC 8489 §14.7: "XOR'ed with the 32-bit value 0x5354554e".
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// A key with both HMAC states computed, kept per user: checking a message hashes the message alone.
#[derive(Clone)]
pub struct IntegrityKey {
    sha1: Hmac<Sha1>,
    sha256: Hmac<Sha256>,
}

/// Why a message's integrity or fingerprint does not hold. The sender is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum IntegrityError {
    /// The attribute is not there.
    #[error("{0} is missing")]
    Missing(AttributeType),
    /// It is shorter than the caller allows.
    #[error("{kind} is truncated to {len} bytes")]
    Truncated {
        /// The attribute.
        kind: AttributeType,
        /// Its length.
        len: usize,
    },
    /// It was made with another key, or the message was changed.
    #[error("{0} does not match")]
    Mismatch(AttributeType),
}

impl IntegrityKey {
    /// A key of these bytes: a long-term key (16 or 32 bytes) or a short-term password.
    pub fn new(key: &[u8]) -> Self {
        Self {
            sha1: Hmac::new_from_slice(key).expect("HMAC takes keys of any length"),
            sha256: Hmac::new_from_slice(key).expect("HMAC takes keys of any length"),
        }
    }

    /// MESSAGE-INTEGRITY's value for a message of these bytes in front of it.
    pub(super) fn sign_sha1(&self, before: &[u8]) -> [u8; 20] {
        sign(self.sha1.clone(), before, 20)
            .finalize()
            .into_bytes()
            .into()
    }

    /// MESSAGE-INTEGRITY-SHA256's value, of which `len` bytes will be used.
    pub(super) fn sign_sha256(&self, before: &[u8], len: usize) -> [u8; 32] {
        sign(self.sha256.clone(), before, len)
            .finalize()
            .into_bytes()
            .into()
    }
}

impl fmt::Debug for IntegrityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IntegrityKey(…)")
    }
}

/// The header's length field as if an attribute of `value_len` bytes behind `before` were the last.
fn length_with(before: &[u8], value_len: usize) -> [u8; 2] {
    ((before.len() - HEADER_BYTES + 4 + value_len) as u16).to_be_bytes()
}

fn sign<M: Mac>(mut mac: M, before: &[u8], value_len: usize) -> M {
    let (header, attributes) = before.split_at(HEADER_BYTES);
    let mut adjusted = [0; HEADER_BYTES];
    adjusted.copy_from_slice(header);
    adjusted[2..4].copy_from_slice(&length_with(before, value_len));
    mac.update(&adjusted);
    mac.update(attributes);
    mac
}

/// FINGERPRINT's value for a message of these bytes in front of it.
pub(super) fn fingerprint(before: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&before[..2]);
    crc.update(&length_with(before, 4));
    crc.update(&before[4..]);
    crc.finalize() ^ FINGERPRINT_XOR
}

impl Message<'_> {
    /// Checks MESSAGE-INTEGRITY in constant time.
    pub fn check_integrity(&self, key: &IntegrityKey) -> Result<(), IntegrityError> {
        let kind = AttributeType::MESSAGE_INTEGRITY;
        let (offset, value) = self.integrity().ok_or(IntegrityError::Missing(kind))?;
        let expected = key.sign_sha1(&self.as_bytes()[..offset]);
        if bool::from(expected.ct_eq(value)) {
            Ok(())
        } else {
            Err(IntegrityError::Mismatch(kind))
        }
    }

    /// Checks MESSAGE-INTEGRITY-SHA256 in constant time; at least `min_bytes` of it must be there.
    ///
    /// RFC 8489 §14.6: "The value must be the full 32 bytes unless the STUN Usage explicitly specifies
    /// that truncation is allowed." TURN does not, so its `min_bytes` is 32.
    pub fn check_integrity_sha256(
        &self,
        key: &IntegrityKey,
        min_bytes: usize,
    ) -> Result<(), IntegrityError> {
        let kind = AttributeType::MESSAGE_INTEGRITY_SHA256;
        let (offset, value) = self
            .integrity_sha256()
            .ok_or(IntegrityError::Missing(kind))?;
        if value.len() < min_bytes {
            return Err(IntegrityError::Truncated {
                kind,
                len: value.len(),
            });
        }
        let expected = key.sign_sha256(&self.as_bytes()[..offset], value.len());
        if bool::from(expected[..value.len()].ct_eq(value)) {
            Ok(())
        } else {
            Err(IntegrityError::Mismatch(kind))
        }
    }

    /// Checks FINGERPRINT.
    pub fn check_fingerprint(&self) -> Result<(), IntegrityError> {
        let kind = AttributeType::FINGERPRINT;
        let (offset, value) = self.fingerprint().ok_or(IntegrityError::Missing(kind))?;
        if fingerprint(&self.as_bytes()[..offset]).to_be_bytes() == value {
            Ok(())
        } else {
            Err(IntegrityError::Mismatch(kind))
        }
    }
}

#[cfg(test)]
mod tests;
