//! What an error response says.

use super::{Attribute, Family, MAX_TEXT_BYTES, ValueError, text};
use crate::wire::{AttributeType, Code, TransactionId};

/// Why a request was refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ErrorCode<'a> {
    /// The code.
    pub code: Code,
    /// The reason, for people to read. Longest that is read: [`MAX_TEXT_BYTES`].
    pub reason: &'a str,
}

impl ErrorCode<'static> {
    /// A code with the registry's reason phrase.
    pub const fn new(code: Code) -> Self {
        Self {
            code,
            reason: code.reason(),
        }
    }
}

fn read_code(kind: AttributeType, class: u8, number: u8) -> Result<Code, ValueError> {
    // RFC 8489 §14.8: "The value MUST be between 3 and 6. The Number … MUST be between 0 and 99."
    let refused = u32::from(class & 7) * 100 + u32::from(number);
    let refused = ValueError::Number {
        kind,
        number: refused,
    };
    if number > 99 {
        return Err(refused);
    }
    Code::new(u16::from(class & 7) * 100 + u16::from(number)).ok_or(refused)
}

fn write_code(code: Code) -> [u8; 2] {
    [(code.number() / 100) as u8, (code.number() % 100) as u8]
}

impl<'a> Attribute<'a> for ErrorCode<'a> {
    const TYPE: AttributeType = AttributeType::ERROR_CODE;

    fn read(value: &'a [u8], _: &TransactionId) -> Result<Self, ValueError> {
        let length = ValueError::Length {
            kind: Self::TYPE,
            len: value.len(),
        };
        let (&[_, _, class, number], reason) = value.split_first_chunk().ok_or(length)?;
        let code = read_code(Self::TYPE, class, number)?;
        Ok(Self {
            code,
            reason: text(Self::TYPE, reason, MAX_TEXT_BYTES)?,
        })
    }

    fn value_len(&self) -> usize {
        4 + self.reason.len()
    }

    fn write(&self, _: &TransactionId, value: &mut [u8]) {
        value[2..4].copy_from_slice(&write_code(self.code));
        value[4..].copy_from_slice(self.reason.as_bytes());
    }
}

/// Why one family of a dual allocation was refused (RFC 8656 §18.12).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AddressErrorCode<'a> {
    /// The family that was refused.
    pub family: Family,
    /// The code.
    pub code: Code,
    /// The reason, for people to read.
    pub reason: &'a str,
}

impl<'a> Attribute<'a> for AddressErrorCode<'a> {
    const TYPE: AttributeType = AttributeType::ADDRESS_ERROR_CODE;

    fn read(value: &'a [u8], _: &TransactionId) -> Result<Self, ValueError> {
        let length = ValueError::Length {
            kind: Self::TYPE,
            len: value.len(),
        };
        let (&[family, _, class, number], reason) = value.split_first_chunk().ok_or(length)?;
        Ok(Self {
            family: Family::read(Self::TYPE, family)?,
            code: read_code(Self::TYPE, class, number)?,
            reason: text(Self::TYPE, reason, MAX_TEXT_BYTES)?,
        })
    }

    fn value_len(&self) -> usize {
        4 + self.reason.len()
    }

    fn write(&self, _: &TransactionId, value: &mut [u8]) {
        value[0] = self.family.number();
        value[2..4].copy_from_slice(&write_code(self.code));
        value[4..].copy_from_slice(self.reason.as_bytes());
    }
}

/// The attributes a request had and the server did not know: the first [`UnknownAttributes::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct UnknownAttributes {
    kinds: [u16; Self::MAX],
    len: u8,
}

impl UnknownAttributes {
    /// How many are listed; a response must not grow with what the request held.
    pub const MAX: usize = 8;

    /// Lists one more; ignored once the list is full or where it is listed already.
    pub fn push(&mut self, kind: AttributeType) {
        let len = usize::from(self.len);
        if len < Self::MAX && !self.kinds[..len].contains(&kind.0) {
            self.kinds[len] = kind.0;
            self.len += 1;
        }
    }

    /// Whether none is listed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Those listed.
    pub fn iter(&self) -> impl Iterator<Item = AttributeType> + '_ {
        self.kinds[..usize::from(self.len)]
            .iter()
            .map(|&kind| AttributeType(kind))
    }
}

impl Attribute<'_> for UnknownAttributes {
    const TYPE: AttributeType = AttributeType::UNKNOWN_ATTRIBUTES;

    fn read(value: &[u8], _: &TransactionId) -> Result<Self, ValueError> {
        let (kinds, rest) = value.as_chunks();
        if !rest.is_empty() {
            return Err(ValueError::Length {
                kind: Self::TYPE,
                len: value.len(),
            });
        }
        let mut unknown = Self::default();
        kinds
            .iter()
            .for_each(|&kind| unknown.push(AttributeType(u16::from_be_bytes(kind))));
        Ok(unknown)
    }

    fn value_len(&self) -> usize {
        2 * usize::from(self.len)
    }

    fn write(&self, _: &TransactionId, value: &mut [u8]) {
        for (kind, out) in self.iter().zip(value.as_chunks_mut().0) {
            *out = kind.0.to_be_bytes();
        }
    }
}
