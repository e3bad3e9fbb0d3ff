//! A user's secret as the configuration has it: a password, or the keys made from it.

use std::fmt;
use std::str::FromStr;

use towpath_proto::credentials::{CredentialError, LongTermKey};
use towpath_proto::relay::Credential;
use towpath_proto::wire::attribute::Algorithm;

/// What the configuration says about a user.
#[derive(Clone, PartialEq, Eq)]
pub enum UserSecret {
    /// `plain:PASSWORD`
    Plain(String),
    /// `key:md5:HEX,sha256:HEX`
    Keys(Credential),
}

/// Why a text is no secret. It never holds the text itself.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecretError {
    /// It starts with something else.
    #[error("must be \"plain:PASSWORD\" or \"key:md5:HEX,sha256:HEX\" (from `towpath user add`)")]
    Form,
    /// A key is made by another hash.
    #[error("a key must be named md5 or sha256")]
    KeyName,
    /// A key is there twice.
    #[error("the {0} key is there twice")]
    KeyTwice(&'static str),
    /// Clients of RFC 5389 know no other key.
    #[error("the md5 key is missing")]
    NoMd5Key,
    /// A key is not hexadecimal, or of the wrong length.
    #[error("the {name} key must be {digits} hexadecimal digits")]
    KeyDigits {
        /// The key's hash.
        name: &'static str,
        /// How many digits it has.
        digits: usize,
    },
    /// No key can be made of it.
    #[error("the {0}")]
    Credential(#[from] CredentialError),
}

/// The keys of a user who proves to know `password`.
pub fn credential(user: &str, realm: &str, password: &str) -> Result<Credential, CredentialError> {
    let LongTermKey::Md5(md5) = LongTermKey::derive(Algorithm::Md5, user, realm, password)? else {
        unreachable!("a key is of the algorithm that was asked for");
    };
    let sha256 = match LongTermKey::derive(Algorithm::Sha256, user, realm, password)? {
        LongTermKey::Sha256(key) => Some(key),
        LongTermKey::Md5(_) => None,
    };
    Ok(Credential { md5, sha256 })
}

impl FromStr for UserSecret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(password) = text.strip_prefix("plain:") {
            return Ok(Self::Plain(password.to_owned()));
        }
        let keys = text.strip_prefix("key:").ok_or(SecretError::Form)?;
        let (mut md5, mut sha256) = (None, None);
        for key in keys.split(',') {
            match key.trim().split_once(':') {
                Some(("md5", hex)) => put(&mut md5, "md5", hex)?,
                Some(("sha256", hex)) => put(&mut sha256, "sha256", hex)?,
                Some(_) | None => return Err(SecretError::KeyName),
            }
        }
        Ok(Self::Keys(Credential {
            md5: md5.ok_or(SecretError::NoMd5Key)?,
            sha256,
        }))
    }
}

impl UserSecret {
    /// The keys in `realm`.
    pub fn into_credential(self, user: &str, realm: &str) -> Result<Credential, SecretError> {
        match self {
            Self::Plain(password) => Ok(credential(user, realm, &password)?),
            Self::Keys(credential) => Ok(credential),
        }
    }
}

fn put<const N: usize>(
    slot: &mut Option<[u8; N]>,
    name: &'static str,
    hex: &str,
) -> Result<(), SecretError> {
    if slot.is_some() {
        return Err(SecretError::KeyTwice(name));
    }
    *slot = Some(from_hex(hex).ok_or(SecretError::KeyDigits {
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
impl fmt::Debug for UserSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "UserSecret::Plain(..)",
            Self::Keys(_) => "UserSecret::Keys(..)",
        })
    }
}

/// As the configuration has it.
impl fmt::Display for UserSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(password) => write!(f, "plain:{password}"),
            Self::Keys(Credential { md5, sha256 }) => {
                f.write_str("key:md5:")?;
                write_hex(f, md5)?;
                let Some(sha256) = sha256 else { return Ok(()) };
                f.write_str(",sha256:")?;
                write_hex(f, sha256)
            }
        }
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}
