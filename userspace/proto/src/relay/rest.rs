//! Time-limited credentials from a secret that the relay shares with whoever hands them out, as coturn
//! and web applications know them (draft-uberti-behave-turn-rest):
//!
//! ```text
//!   username = Unix time of the end [":" id]      password = base64(HMAC-SHA1(secret, username))
//! ```

use std::fmt;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::credentials::{CredentialError, check_username};

/// A secret that credentials are made with. A clone shares it.
#[derive(Clone)]
pub struct RestSecret(Arc<Shared>);

struct Shared {
    text: Box<str>,
    mac: Hmac<Sha1>,
}

/// Why a text is no secret. It never shows the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RestSecretError {
    /// There is nothing.
    #[error("a secret must not be empty")]
    Empty,
    /// Longer than anybody needs.
    #[error(
        "a secret of {bytes} bytes is too long; at most {} are possible",
        RestSecret::MAX_BYTES
    )]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A line's end or a blank that came along, or something that cannot be typed.
    #[error("a secret must not have blanks around it nor control characters in it")]
    Character,
}

impl RestSecret {
    /// Longest secret.
    pub const MAX_BYTES: usize = 256;

    /// Checks the rules of a secret.
    pub fn new(secret: &str) -> Result<Self, RestSecretError> {
        if secret.is_empty() {
            return Err(RestSecretError::Empty);
        }
        if secret.len() > Self::MAX_BYTES {
            return Err(RestSecretError::TooLong {
                bytes: secret.len(),
            });
        }
        if secret.trim() != secret || secret.chars().any(char::is_control) {
            return Err(RestSecretError::Character);
        }
        let mac = Hmac::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
        Ok(Self(Arc::new(Shared {
            text: secret.into(),
            mac,
        })))
    }

    /// The password that belongs to a username.
    pub fn password(&self, username: &str) -> String {
        let mut mac = self.0.mac.clone();
        mac.update(username.as_bytes());
        base64(&mac.finalize().into_bytes())
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.0.text.len()
    }
}

impl PartialEq for RestSecret {
    /// Takes the same time wherever they differ.
    fn eq(&self, other: &Self) -> bool {
        self.0.text.as_bytes().ct_eq(other.0.text.as_bytes()).into()
    }
}

impl Eq for RestSecret {}

impl fmt::Debug for RestSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RestSecret(…)")
    }
}

/// What a time-limited username says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestName<'a> {
    /// When the credential ends, in seconds of Unix time.
    pub ends_unix_s: u64,
    /// Whose it is, if it says so.
    pub id: Option<&'a str>,
}

impl<'a> RestName<'a> {
    /// Reads a username; `None` where it is another kind of name.
    pub fn read(username: &'a str) -> Option<Self> {
        let (end, id) = match username.split_once(':') {
            Some((end, id)) => (end, Some(id).filter(|id| !id.is_empty())),
            None => (username, None),
        };
        let is_number = !end.is_empty() && end.bytes().all(|byte| byte.is_ascii_digit());
        Some(Self {
            ends_unix_s: end.parse().ok().filter(|_| is_number)?,
            id,
        })
    }

    /// The username that says this.
    pub fn username(&self) -> Result<String, CredentialError> {
        let end = self.ends_unix_s;
        let username = match self.id {
            Some(id) => format!("{end}:{id}"),
            None => end.to_string(),
        };
        check_username(&username).map(|()| username)
    }
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |bytes: &[u8]| {
        let mut three = [0; 3];
        three[..bytes.len()].copy_from_slice(bytes);
        let [a, b, c] = three.map(u32::from);
        let bits = a << 16 | b << 8 | c;
        let digits = bytes.len() + 1;
        [0, 1, 2, 3].map(|place| {
            if place < digits {
                char::from(ALPHABET[(bits >> (18 - 6 * place)) as usize & 63])
            } else {
                '='
            }
        })
    };
    bytes.chunks(3).flat_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        // RFC 4648 §10.
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn a_password_is_the_one_that_coturn_computes() {
        // printf '1700000000:alice' | openssl dgst -sha1 -hmac north -binary | base64
        let secret = RestSecret::new("north").unwrap();
        assert_eq!(
            secret.password("1700000000:alice"),
            "Cd/49soE35ICqcJF/bCTn8Z4OyE="
        );
        assert_eq!(
            secret.password("1700000000"),
            "CWyHi3zCeWqXBir9thl4m+iZPRY="
        );
    }

    #[test]
    fn a_time_limited_username_says_when_it_ends_and_whose_it_is() {
        let read = |username| RestName::read(username).map(|name| (name.ends_unix_s, name.id));
        assert_eq!(
            read("1700000000:alice"),
            Some((1_700_000_000, Some("alice")))
        );
        assert_eq!(read("1700000000:a:b"), Some((1_700_000_000, Some("a:b"))));
        assert_eq!(read("1700000000"), Some((1_700_000_000, None)));
        assert_eq!(read("1700000000:"), Some((1_700_000_000, None)));
        for other in [
            "",
            ":alice",
            "alice",
            "17x:alice",
            "+17:alice",
            "-1:alice",
            " 17:alice",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
        assert_eq!(read("99999999999999999999:alice"), None, "no such time");
        for username in ["1700000000:alice", "1700000000"] {
            let name = RestName::read(username).unwrap();
            assert_eq!(name.username().as_deref(), Ok(username));
        }
        let long = "x".repeat(500);
        let name = RestName {
            ends_unix_s: 1_700_000_000,
            id: Some(&long),
        };
        assert!(name.username().is_err());
    }

    #[test]
    fn what_is_no_secret_is_refused_and_never_shown() {
        let refused = |text: &str| RestSecret::new(text).unwrap_err();
        assert_eq!(refused(""), RestSecretError::Empty);
        assert_eq!(
            refused(&"x".repeat(257)),
            RestSecretError::TooLong { bytes: 257 }
        );
        for text in ["north\n", " north", "no\0rth"] {
            assert_eq!(refused(text), RestSecretError::Character);
        }
        let secret = RestSecret::new("north star").unwrap();
        assert_eq!(format!("{secret:?}"), "RestSecret(…)");
        assert!(secret == RestSecret::new("north star").unwrap());
        assert!(secret != RestSecret::new("north").unwrap());
    }
}
