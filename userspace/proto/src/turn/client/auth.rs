//! Long-term credentials on the client's side (RFC 8489 §9.2).

use std::fmt;

use super::error::Ignored;
use crate::credentials::{CredentialError, LongTermKey, check_username, userhash};
use crate::wire::attribute::{
    Algorithm, Attribute, Nonce, PasswordAlgorithm, PasswordAlgorithms, Realm, Userhash, Username,
};
use crate::wire::{IntegrityKey, Message, MessageWriter, WriteError};

/// Longest nonce, realm and list of algorithms that are taken from a server: a request with all of
/// them at their longest fits into the 2,048 bytes that callers lend.
const MAX_NONCE_BYTES: usize = 512;
const MAX_REALM_BYTES: usize = 509;
const MAX_ALGORITHMS_BYTES: usize = 64;

/// RFC 8489 §9.2: what a nonce begins with whose next four characters say what the server can do.
const NONCE_COOKIE: &[u8] = b"obMatJos2";

/// A user's name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    username: String,
    password: String,
}

impl Credentials {
    /// Checks that name and password can be used at all.
    pub fn new(username: String, password: String) -> Result<Self, CredentialError> {
        check_username(&username)?;
        LongTermKey::derive(Algorithm::Md5, &username, "any", &password)?;
        Ok(Self { username, password })
    }

    /// The user's name.
    pub fn username(&self) -> &str {
        &self.username
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// What a challenge (401, 438) gave, and the key that follows from it.
#[derive(Debug)]
pub(super) struct Session {
    realm: Box<str>,
    nonce: Box<[u8]>,
    /// The server's list, to be repeated as it is, and our choice from it. With it, requests carry
    /// MESSAGE-INTEGRITY-SHA256.
    algorithms: Option<(Box<[u8]>, Algorithm)>,
    /// Stands for the username where the server understands it.
    userhash: Option<Userhash>,
    key: IntegrityKey,
}

impl Session {
    pub(super) fn new(credentials: &Credentials, challenge: &Message<'_>) -> Result<Self, Ignored> {
        let (Ok(Some(Realm(realm))), Ok(Some(Nonce(nonce)))) = (challenge.get(), challenge.get())
        else {
            return Err(Ignored::Malformed);
        };
        let offered: Option<PasswordAlgorithms<'_>> =
            challenge.get().map_err(|_| Ignored::Malformed)?;
        let offered_bytes = offered.map_or(0, |offered| offered.as_bytes().len());
        if realm.len() > MAX_REALM_BYTES
            || nonce.len() > MAX_NONCE_BYTES
            || offered_bytes > MAX_ALGORITHMS_BYTES
        {
            return Err(Ignored::Malformed);
        }
        let algorithms = match offered {
            // RFC 8489 §9.2.5: "the first algorithm supported on the list", and without any "the client
            // MUST NOT retry the request".
            Some(offered) => {
                let chosen = offered.iter().next().ok_or(Ignored::NoAlgorithm)?;
                Some((offered.as_bytes().into(), chosen))
            }
            None => None,
        };
        let algorithm = algorithms
            .as_ref()
            .map_or(Algorithm::Md5, |(_, chosen)| *chosen);
        let Credentials { username, password } = credentials;
        let key = LongTermKey::derive(algorithm, username, realm, password)
            .map_err(|_| Ignored::Malformed)?;
        // RFC 8489 §9.2.5: where the nonce cookie has the bit "Username anonymity", "the USERHASH attribute
        // MUST be used; else, the USERNAME attribute MUST be used".
        let userhash = has_feature(nonce, USERNAME_ANONYMITY)
            .then(|| userhash(username, realm).map(Userhash))
            .transpose()
            .map_err(|_| Ignored::Malformed)?;
        Ok(Self {
            realm: realm.into(),
            nonce: nonce.into(),
            algorithms,
            userhash,
            key: IntegrityKey::new(key.as_bytes()),
        })
    }

    /// Whether a request with the other's credentials would be the same but for its nonce.
    pub(super) fn has_credentials_of(&self, other: &Self) -> bool {
        self.realm == other.realm
            && self.algorithms == other.algorithms
            && self.userhash == other.userhash
    }

    /// Whether the other, of the same realm, offers nothing where this one did: a server that goes back
    /// behind what it said is one that somebody stands in front of.
    pub(super) fn is_better_than(&self, other: &Self) -> bool {
        self.realm == other.realm && self.algorithms.is_some() && other.algorithms.is_none()
    }

    /// Adds what a request with credentials has.
    pub(super) fn sign(
        &self,
        credentials: &Credentials,
        writer: &mut MessageWriter<'_>,
    ) -> Result<(), WriteError> {
        match &self.userhash {
            Some(hash) => writer.put(hash)?,
            None => writer.put(&Username(&credentials.username))?,
        };
        writer.put(&Realm(&self.realm))?.put(&Nonce(&self.nonce))?;
        match &self.algorithms {
            Some((offered, chosen)) => {
                writer.put_raw(PasswordAlgorithms::TYPE, offered)?;
                writer.put(&PasswordAlgorithm(*chosen))?;
                writer.integrity_sha256(&self.key, 32)?;
            }
            None => {
                writer.integrity(&self.key)?;
            }
        }
        Ok(())
    }

    /// Checks a response to a request that [`sign`](Self::sign) signed.
    pub(super) fn check(&self, message: &Message<'_>) -> Result<(), Ignored> {
        match self.algorithms {
            Some(_) => message.check_integrity_sha256(&self.key, 32),
            None => message.check_integrity(&self.key),
        }
        .map_err(|_| Ignored::BadIntegrity)
    }
}

/// Whether somebody on the way took out what the nonce says is offered. RFC 8489 §9.2.5 of a 401 or 438:
/// "the client MUST NOT retry the request", and: "For all other responses, if the NONCE attribute starts
/// with the "nonce cookie" with the STUN Security Feature "Password algorithms" bit set to 1 but
/// PASSWORD-ALGORITHMS is not present, the response MUST be ignored." It makes no exception for a success
/// with a valid integrity; a server need not put a nonce into one.
pub(super) fn takes_out_algorithms(response: &Message<'_>) -> bool {
    let nonce = response.get::<Nonce<'_>>();
    matches!(nonce, Ok(Some(Nonce(nonce))) if has_feature(nonce, PASSWORD_ALGORITHMS))
        && !response.contains(PasswordAlgorithms::TYPE)
}

/// Bits of the first of four base64 characters behind the cookie. RFC 8489 §18.1: "Bits are assigned
/// starting from the most significant side".
const PASSWORD_ALGORITHMS: u8 = 1 << 5;
const USERNAME_ANONYMITY: u8 = 1 << 4;

/// Whether the nonce's security features have this bit.
fn has_feature(nonce: &[u8], bit: u8) -> bool {
    let Some([first, _, _, _, ..]) = nonce.strip_prefix(NONCE_COOKIE) else {
        return false;
    };
    let digit = match first {
        b'A'..=b'Z' => first - b'A',
        b'a'..=b'z' => first - b'a' + 26,
        b'0'..=b'9' => first - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return false,
    };
    digit & bit != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8489 §18.1
    #[test]
    fn the_first_two_feature_bits_of_a_nonce_are_algorithms_and_anonymity() {
        let features = |nonce: &[u8]| {
            [PASSWORD_ALGORITHMS, USERNAME_ANONYMITY].map(|bit| has_feature(nonce, bit))
        };
        assert_eq!(features(b"obMatJos2gAAA-rest"), [true, false]);
        assert_eq!(features(b"obMatJos2QAAA"), [false, true]);
        assert_eq!(features(b"obMatJos2wAAA"), [true, true]);
        assert_eq!(features(b"obMatJos2/AAA"), [true, true]);
        assert_eq!(features(b"obMatJos2AAAA-rest"), [false, false]);
        assert_eq!(features(b"obMatJos2PAAA"), [false, false]);
        assert_eq!(features(b"obMatJos2-AAA"), [false, false]);
        assert_eq!(features(b"obMatJos2gAA"), [false, false]);
        assert_eq!(features(b"gAAA"), [false, false]);
    }

    #[test]
    fn a_password_is_not_printed() {
        let credentials = Credentials::new("alice".into(), "secret".into()).unwrap();
        assert!(!format!("{credentials:?}").contains("secret"));
        assert!(Credentials::new(String::new(), "secret".into()).is_err());
        assert!(Credentials::new("alice".into(), String::new()).is_err());
    }
}
