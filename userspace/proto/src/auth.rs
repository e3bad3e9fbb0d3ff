//! The server's side of long-term credentials (RFC 8489 §9.2.4).
//!
//! Nothing is kept about anybody who has not shown a valid message integrity, and what a stranger is
//! answered is bounded by what it sent.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::Timestamp;
use crate::nonce::{NONCE_BYTES, NonceKey};
use crate::relay::{RelayConfig, User};
use crate::wire::attribute::{Algorithm, Nonce, PasswordAlgorithm, Realm, Username};
use crate::wire::{AttributeType, Code, HEADER_BYTES, IntegrityKey, Message};

/// An answer to a stranger is at most this many times as long as the request…
pub(crate) const STRANGER_FACTOR: usize = 3;
/// … and at most this long.
pub(crate) const STRANGER_BYTES: usize = 200;
/// A Binding response is at most this many tenths of its request.
pub(crate) const BINDING_TENTHS: usize = 16;

/// Longest realm for which the answer to the shortest Allocate keeps within [`STRANGER_FACTOR`].
pub(crate) const LONGEST_REALM_BYTES: usize = 32;

const SHORTEST_ALLOCATE_BYTES: usize = HEADER_BYTES + 8;
const CHALLENGE_BYTES: usize =
    HEADER_BYTES + (4 + 4) + (4 + LONGEST_REALM_BYTES) + (4 + NONCE_BYTES);
const _: () = assert!(CHALLENGE_BYTES <= STRANGER_FACTOR * SHORTEST_ALLOCATE_BYTES);

/// Which message integrity a request had; its answer gets the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Integrity {
    /// MESSAGE-INTEGRITY with the MD5 key.
    Sha1,
    /// MESSAGE-INTEGRITY with the SHA-256 key.
    Sha1WithSha256Key,
    /// MESSAGE-INTEGRITY-SHA256 with the MD5 key.
    Sha256,
    /// MESSAGE-INTEGRITY-SHA256 with the SHA-256 key.
    Sha256WithSha256Key,
}

impl Integrity {
    /// Whether it is MESSAGE-INTEGRITY-SHA256.
    pub(crate) fn is_sha256(self) -> bool {
        matches!(self, Self::Sha256 | Self::Sha256WithSha256Key)
    }

    /// The user's key for it.
    pub(crate) fn key(self, user: &User) -> Option<&IntegrityKey> {
        match self {
            Self::Sha1 | Self::Sha256 => Some(user.md5()),
            Self::Sha1WithSha256Key | Self::Sha256WithSha256Key => user.sha256(),
        }
    }
}

/// Who sent a request.
#[derive(Clone, Debug)]
pub(crate) struct Authenticated {
    pub(crate) user: Arc<User>,
    pub(crate) integrity: Integrity,
}

/// Finds out who sent a request; the error is the answer's code.
pub(crate) fn authenticate(
    now: Timestamp,
    config: &RelayConfig,
    nonces: &NonceKey,
    message: &Message<'_>,
    client: SocketAddr,
) -> Result<Authenticated, Code> {
    // RFC 8489 §9.2.4: "If the message does not contain a MESSAGE-INTEGRITY or
    // MESSAGE-INTEGRITY-SHA256 attribute, the server MUST generate an error response with an error
    // code of 401".
    if !message.has_integrity() && !message.has_integrity_sha256() {
        return Err(Code::UNAUTHENTICATED);
    }
    // RFC 8489 §9.2.4: without USERNAME, REALM or NONCE, "the server MUST generate an error response
    // with an error code of 400".
    let bad = |_| Code::BAD_REQUEST;
    let name = message
        .get::<Username<'_>>()
        .map_err(bad)?
        .ok_or(Code::BAD_REQUEST)?;
    let realm = message
        .get::<Realm<'_>>()
        .map_err(bad)?
        .ok_or(Code::BAD_REQUEST)?;
    let nonce = message
        .get::<Nonce<'_>>()
        .map_err(bad)?
        .ok_or(Code::BAD_REQUEST)?;
    // Before the message is hashed: a stranger with a made-up nonce costs the least.
    if !nonces.is_valid(now, client, nonce.0) {
        return Err(Code::STALE_NONCE);
    }
    let integrity = integrity_of(message)?;
    let user = config.users.find(name.0).ok_or(Code::UNAUTHENTICATED)?;
    let key = integrity.key(user).ok_or(Code::UNAUTHENTICATED)?;
    // RFC 8489 §14.6: no truncation, as TURN specifies none.
    let checked = if integrity.is_sha256() {
        message.check_integrity_sha256(key, 32)
    } else {
        message.check_integrity(key)
    };
    if checked.is_err() || realm.0 != config.realm {
        return Err(Code::UNAUTHENTICATED);
    }
    Ok(Authenticated {
        user: Arc::clone(user),
        integrity,
    })
}

/// RFC 8489 §9.2.4: a request with PASSWORD-ALGORITHM is checked with the key of that algorithm, one
/// without it with the MD5 key; MESSAGE-INTEGRITY-SHA256 counts where both are there.
fn integrity_of(message: &Message<'_>) -> Result<Integrity, Code> {
    let algorithm = match message.get::<PasswordAlgorithm>() {
        Ok(None) if message.contains(AttributeType::PASSWORD_ALGORITHMS) => {
            return Err(Code::BAD_REQUEST);
        }
        Ok(None) => Algorithm::Md5,
        Ok(Some(PasswordAlgorithm(algorithm))) => algorithm,
        Err(_) => return Err(Code::BAD_REQUEST),
    };
    Ok(match (message.has_integrity_sha256(), algorithm) {
        (false, Algorithm::Md5) => Integrity::Sha1,
        (false, Algorithm::Sha256) => Integrity::Sha1WithSha256Key,
        (true, Algorithm::Md5) => Integrity::Sha256,
        (true, Algorithm::Sha256) => Integrity::Sha256WithSha256Key,
    })
}
