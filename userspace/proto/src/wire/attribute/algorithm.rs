//! How the long-term key is made, offered and chosen.

use super::{Attribute, ValueError};
use crate::wire::{AttributeType, TransactionId, padded};

/// How the long-term key is made of name, realm and password (RFC 8489 §18.5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Algorithm {
    /// 0x0001: a key of 16 bytes.
    Md5,
    /// 0x0002: a key of 32 bytes.
    Sha256,
}

impl Algorithm {
    const fn number(self) -> u16 {
        match self {
            Self::Md5 => 1,
            Self::Sha256 => 2,
        }
    }

    /// The algorithm of this number and parameters; both known ones have none.
    fn known(number: u16, parameters: &[u8]) -> Option<Self> {
        match (number, parameters) {
            (1, []) => Some(Self::Md5),
            (2, []) => Some(Self::Sha256),
            _ => None,
        }
    }
}

/// Splits `number, length, parameters, padding` off; `None` where the parameters are cut off. The last
/// entry's padding may be missing, as it is part of the attribute's own.
fn split_algorithm(value: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (&[n0, n1, l0, l1], rest) = value.split_first_chunk()?;
    let len = usize::from(u16::from_be_bytes([l0, l1]));
    let parameters = rest.get(..len)?;
    let rest = rest.get(padded(len)..).unwrap_or_default();
    Some((u16::from_be_bytes([n0, n1]), parameters, rest))
}

/// The algorithm the client chose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PasswordAlgorithm(pub Algorithm);

impl Attribute<'_> for PasswordAlgorithm {
    const TYPE: AttributeType = AttributeType::PASSWORD_ALGORITHM;

    fn read(value: &[u8], _: &TransactionId) -> Result<Self, ValueError> {
        let length = ValueError::Length {
            kind: Self::TYPE,
            len: value.len(),
        };
        let (number, parameters, rest) = split_algorithm(value).ok_or(length)?;
        if !rest.is_empty() {
            return Err(length);
        }
        let refused = ValueError::Number {
            kind: Self::TYPE,
            number: number.into(),
        };
        Algorithm::known(number, parameters)
            .map(Self)
            .ok_or(refused)
    }

    fn value_len(&self) -> usize {
        4
    }

    fn write(&self, _: &TransactionId, value: &mut [u8]) {
        value[..2].copy_from_slice(&self.0.number().to_be_bytes());
    }
}

/// The algorithms the server offers, the one it likes best first. As a request must repeat the list
/// bit by bit, the value is kept as it was received.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PasswordAlgorithms<'a>(&'a [u8]);

impl PasswordAlgorithms<'static> {
    /// SHA-256, then MD5.
    pub const SHA256_MD5: Self = Self(&[0, 2, 0, 0, 0, 1, 0, 0]);
    /// MD5 alone.
    pub const MD5: Self = Self(&[0, 1, 0, 0]);
}

impl<'a> PasswordAlgorithms<'a> {
    /// The known algorithms, in the server's order.
    pub fn iter(&self) -> impl Iterator<Item = Algorithm> + 'a {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (number, parameters, behind) = split_algorithm(rest)?;
            rest = behind;
            Some(Algorithm::known(number, parameters))
        })
        .flatten()
    }

    /// The list as it stands in the message.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

impl<'a> Attribute<'a> for PasswordAlgorithms<'a> {
    const TYPE: AttributeType = AttributeType::PASSWORD_ALGORITHMS;

    fn read(value: &'a [u8], _: &TransactionId) -> Result<Self, ValueError> {
        let mut rest = value;
        while !rest.is_empty() {
            let length = ValueError::Length {
                kind: Self::TYPE,
                len: value.len(),
            };
            rest = split_algorithm(rest).ok_or(length)?.2;
        }
        Ok(Self(value))
    }

    fn value_len(&self) -> usize {
        self.0.len()
    }

    fn write(&self, _: &TransactionId, value: &mut [u8]) {
        value.copy_from_slice(self.0);
    }
}
