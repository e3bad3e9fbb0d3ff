//! A user's secret as the configuration has it: a password, or the keys made from it.

use std::fmt;
use std::str::FromStr;

/// Length of the long-term key that MD5 makes (RFC 8489 §9.2.2).
const MD5_KEY_BYTES: usize = 16;
/// Length of the long-term key that SHA-256 makes (RFC 8489 §9.2.2).
const SHA256_KEY_BYTES: usize = 32;

/// What a user proves to know.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// `plain:PASSWORD`
    Plain(String),
    /// `key:md5:HEX,sha256:HEX`
    Keys(KeyDigests),
}

/// The long-term keys of one user in one realm. At least one is there.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyDigests {
    /// `MD5(username ":" realm ":" password)`.
    pub md5: Option<[u8; MD5_KEY_BYTES]>,
    /// `SHA-256(username ":" realm ":" password)`.
    pub sha256: Option<[u8; SHA256_KEY_BYTES]>,
}

/// Why a text is no secret. It never holds the text itself.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ParseSecretError {
    /// It starts with something else.
    #[error("must be \"plain:PASSWORD\" or \"key:md5:HEX,sha256:HEX\" (from `towpath user add`)")]
    Form,
    /// There is no password.
    #[error("the password must not be empty")]
    EmptyPassword,
    /// A key is made by another hash.
    #[error("a key must be named md5 or sha256")]
    KeyName,
    /// A key is there twice.
    #[error("the {0} key is there twice")]
    KeyTwice(&'static str),
    /// A key is not hexadecimal, or of the wrong length.
    #[error("the {name} key must be {digits} hexadecimal digits")]
    KeyDigits {
        /// The key's hash.
        name: &'static str,
        /// How many digits it has.
        digits: usize,
    },
}

impl FromStr for Secret {
    type Err = ParseSecretError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(password) = text.strip_prefix("plain:") {
            if password.is_empty() {
                return Err(ParseSecretError::EmptyPassword);
            }
            return Ok(Self::Plain(password.to_owned()));
        }
        let keys = text.strip_prefix("key:").ok_or(ParseSecretError::Form)?;
        let (mut md5, mut sha256) = (None, None);
        for key in keys.split(',') {
            match key.trim().split_once(':') {
                Some(("md5", hex)) => put(&mut md5, "md5", hex)?,
                Some(("sha256", hex)) => put(&mut sha256, "sha256", hex)?,
                Some(_) | None => return Err(ParseSecretError::KeyName),
            }
        }
        Ok(Self::Keys(KeyDigests { md5, sha256 }))
    }
}

fn put<const N: usize>(
    slot: &mut Option<[u8; N]>,
    name: &'static str,
    hex: &str,
) -> Result<(), ParseSecretError> {
    if slot.is_some() {
        return Err(ParseSecretError::KeyTwice(name));
    }
    *slot = Some(from_hex(hex).ok_or(ParseSecretError::KeyDigits {
        name,
        digits: 2 * N,
    })?);
    Ok(())
}

fn from_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let digits = hex.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(bytes)
}

/// Shows the kind, never the secret.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Secret::Plain(..)",
            Self::Keys(_) => "Secret::Keys(..)",
        })
    }
}

impl fmt::Debug for KeyDigests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigests(..)")
    }
}

/// As the configuration has them: `key:md5:HEX,sha256:HEX`.
impl fmt::Display for KeyDigests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("key:")?;
        if let Some(md5) = &self.md5 {
            f.write_str("md5:")?;
            write_hex(f, md5)?;
        }
        if let Some(sha256) = &self.sha256 {
            f.write_str(if self.md5.is_some() {
                ",sha256:"
            } else {
                "sha256:"
            })?;
            write_hex(f, sha256)?;
        }
        Ok(())
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}
