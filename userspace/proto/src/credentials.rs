//! Long-term credentials: how name, realm and password become a key (RFC 8489 §9.2.2).
//!
//! Passwords never leave this module: what is kept is the key.

use std::fmt;

use md5::{Digest, Md5};
use sha2::Sha256;
use thiserror::Error;

use crate::wire::attribute::{Algorithm, MAX_USERNAME_BYTES};

/// Longest realm, in bytes (RFC 8489 §14.9).
pub const MAX_REALM_BYTES: usize = 509;

/// Longest password, in bytes: a limit of ours, far above what people and generators use.
pub const MAX_PASSWORD_BYTES: usize = 1024;

/// What messages of a user are signed with: 16 or 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LongTermKey {
    /// MD5 of `name:realm:password`.
    Md5([u8; 16]),
    /// SHA-256 of `name:realm:password`.
    Sha256([u8; 32]),
}

impl LongTermKey {
    /// The key of these credentials.
    ///
    /// RFC 8489 §18.5.1: key = MD5(username ":" OpaqueString(realm) ":" OpaqueString(password)), and
    /// §18.5.2 the same with SHA-256.
    pub fn derive(
        algorithm: Algorithm,
        username: &str,
        realm: &str,
        password: &str,
    ) -> Result<Self, CredentialError> {
        check_username(username)?;
        let realm = opaque_string(Field::Realm, realm, MAX_REALM_BYTES)?;
        let password = opaque_string(Field::Password, password, MAX_PASSWORD_BYTES)?;
        let parts = [username, ":", &realm, ":", &password];
        Ok(match algorithm {
            Algorithm::Md5 => Self::Md5(digest::<Md5>(&parts).into()),
            Algorithm::Sha256 => Self::Sha256(digest::<Sha256>(&parts).into()),
        })
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Md5(key) => key,
            Self::Sha256(key) => key,
        }
    }

    /// How the key was made.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Md5(_) => Algorithm::Md5,
            Self::Sha256(_) => Algorithm::Sha256,
        }
    }
}

impl fmt::Debug for LongTermKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LongTermKey::{:?}(…)", self.algorithm())
    }
}

/// USERHASH's value. RFC 8489 §14.4: SHA-256(OpaqueString(username) ":" OpaqueString(realm)).
pub fn userhash(username: &str, realm: &str) -> Result<[u8; 32], CredentialError> {
    check_username(username)?;
    let realm = opaque_string(Field::Realm, realm, MAX_REALM_BYTES)?;
    Ok(digest::<Sha256>(&[username, ":", &realm]).into())
}

fn digest<D: Digest>(parts: &[&str]) -> md5::digest::Output<D> {
    let mut digest = D::new();
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize()
}

/// A part of a credential.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// The user's name.
    Username,
    /// The realm.
    Realm,
    /// The password.
    Password,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Username => "username",
            Self::Realm => "realm",
            Self::Password => "password",
        })
    }
}

/// Why something is no credential. The caller is at fault. Never shows the value, as it may be secret.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum CredentialError {
    /// There is nothing.
    #[error("{0} is empty")]
    Empty(Field),
    /// Longer than a message can carry.
    #[error("{field} of {len} bytes, at most {most} are allowed")]
    Length {
        /// Which part.
        field: Field,
        /// Its length in bytes.
        len: usize,
        /// The limit.
        most: usize,
    },
    /// A character that RFC 8265 forbids.
    #[error("{field} has the forbidden character U+{:04X} at byte {at}", *.character as u32)]
    Character {
        /// Which part.
        field: Field,
        /// The character.
        character: char,
        /// Where it is.
        at: usize,
    },
}

/// Whether a name can be a user's: the rules of OpaqueString, applied without changing it. A name is
/// compared byte by byte with what clients send, so a spelling that would have to be changed first is
/// kept as it is.
pub fn check_username(username: &str) -> Result<(), CredentialError> {
    opaque_string(Field::Username, username, MAX_USERNAME_BYTES).map(|_| ())
}

/// The OpaqueString profile of RFC 8265 §4.2, as far as it goes here: empty strings and control,
/// private-use, noncharacter and invisible (default-ignorable) code points are refused and non-ASCII spaces become U+0020. *Not* done
/// is the normalisation to NFC: who uses a decomposed "é" at one end only is refused, as with every
/// TURN server and browser in the field, which hash the bytes as typed.
fn opaque_string(field: Field, text: &str, most: usize) -> Result<String, CredentialError> {
    if text.is_empty() {
        return Err(CredentialError::Empty(field));
    }
    if text.len() > most {
        return Err(CredentialError::Length {
            field,
            len: text.len(),
            most,
        });
    }
    text.char_indices()
        .map(|(at, character)| match character {
            '\u{a0}'
            | '\u{1680}'
            | '\u{2000}'..='\u{200a}'
            | '\u{202f}'
            | '\u{205f}'
            | '\u{3000}' => Ok(' '),
            _ if is_forbidden(character) => Err(CredentialError::Character {
                field,
                character,
                at,
            }),
            _ => Ok(character),
        })
        .collect()
}

fn is_forbidden(character: char) -> bool {
    let code = character as u32;
    let is_noncharacter = code & 0xfffe == 0xfffe || (0xfdd0..=0xfdef).contains(&code);
    let is_private = matches!(
        character,
        '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{ffffd}' | '\u{100000}'..='\u{10fffd}'
    );
    let is_separator = matches!(character, '\u{2028}' | '\u{2029}');
    let is_invisible = matches!(
        character,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{e0000}'..='\u{e0fff}'
    );
    character.is_control() || is_noncharacter || is_private || is_separator || is_invisible
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_long_term_key_is_the_hash_of_name_realm_and_password() {
        // RFC 8489 §9.2.2 gives this example.
        let key = LongTermKey::derive(Algorithm::Md5, "user", "realm", "pass").unwrap();
        let hex: String = key
            .as_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, "8493fbc53ba582fb4c044c456bdc40eb");
        let key = LongTermKey::derive(Algorithm::Sha256, "user", "realm", "pass").unwrap();
        assert_eq!(
            (key.as_bytes().len(), key.algorithm()),
            (32, Algorithm::Sha256)
        );
    }

    #[test]
    fn credentials_with_control_characters_are_refused() {
        let refused = |password| LongTermKey::derive(Algorithm::Md5, "user", "realm", password);
        let character = |character, at| CredentialError::Character {
            field: Field::Password,
            character,
            at,
        };
        assert_eq!(refused("a\nb"), Err(character('\n', 1)));
        assert_eq!(refused("\u{7f}"), Err(character('\u{7f}', 0)));
        assert_eq!(refused("é\u{2028}"), Err(character('\u{2028}', 2)));
        assert_eq!(refused("The\u{ad}M"), Err(character('\u{ad}', 3)));
        assert_eq!(refused(""), Err(CredentialError::Empty(Field::Password)));
        let long = "x".repeat(MAX_USERNAME_BYTES + 1);
        let length = CredentialError::Length {
            field: Field::Username,
            len: 509,
            most: 508,
        };
        assert_eq!(check_username(&long), Err(length));
        assert_eq!(
            character('\n', 1).to_string(),
            "password has the forbidden character U+000A at byte 1"
        );
    }

    #[test]
    fn other_spaces_in_a_password_count_as_the_ascii_one() {
        let key = |password| LongTermKey::derive(Algorithm::Sha256, "u", "r", password).unwrap();
        assert_eq!(key("correct\u{a0}horse"), key("correct horse"));
        assert_ne!(key("correct horse"), key("correcthorse"));
    }

    #[test]
    fn a_key_is_not_printed() {
        let key = LongTermKey::derive(Algorithm::Md5, "user", "realm", "pass").unwrap();
        assert_eq!(format!("{key:?}"), "LongTermKey::Md5(…)");
    }
}
