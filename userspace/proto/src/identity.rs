//! Who a node is: an Ed25519 key, and the text forms of its public half.
//!
//! ```text
//!   PeerId      52 letters and digits, base32 (RFC 4648 §6) in lower case, without padding
//!   PeerAddr    <peer-id>@host:port,[v6]:port,…
//! ```
//!
//! Base32 because 52 characters fit where 64 of hexadecimal do not: into a DNS label. This module
//! reads and writes no files.

mod peer_addr;
#[cfg(feature = "serde")]
mod serde;

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use aws_lc_rs::signature::{self, Ed25519KeyPair, KeyPair as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::machine::ShardId;
pub use peer_addr::{MAX_ADDRESSES, PeerAddr, PeerAddrError};

/// Length of both halves of a key.
pub const KEY_BYTES: usize = 32;
/// Length of a signature.
pub const SIGNATURE_BYTES: usize = 64;
/// Length of a [`PeerId`] as text.
pub const PEER_ID_CHARS: usize = 52;

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const _: () = assert!(PEER_ID_CHARS == (KEY_BYTES * 8).div_ceil(5));

/// A node's name: its Ed25519 public key. Who can sign with the other half is the node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId([u8; KEY_BYTES]);

/// Why a text is no [`PeerId`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeerIdError {
    /// It is too long or too short.
    #[error("a peer id has {PEER_ID_CHARS} characters, not {0}")]
    Length(usize),
    /// One of its characters is none of the alphabet's.
    #[error("{character:?} at position {position} is none of a-z and 2-7")]
    Character {
        /// The character.
        character: char,
        /// Where it is, from 1.
        position: usize,
    },
    /// Its last character says more than the 256 bits of a key.
    #[error("no peer id ends in {0:?}, only in \"a\" or \"q\"")]
    Ending(char),
}

impl PeerId {
    /// The peer with this public key.
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The public key.
    pub const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Which of a node's shards this peer is at home in: where all that ask for a connection with it
    /// meet. A key is as good as a random number, so all shards get as many.
    pub fn home(&self, shards: NonZeroU16) -> ShardId {
        let [.., a, b, c, d] = self.0;
        let number = u64::from(u32::from_be_bytes([a, b, c, d]));
        let scaled = (number * u64::from(shards.get())) >> 32;
        ShardId(u16::try_from(scaled).expect("the shard is below the number of shards"))
    }

    /// Whether this peer signed the message. False also where the bytes are no public key.
    pub fn verify(&self, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        signature::UnparsedPublicKey::new(&signature::ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; PEER_ID_CHARS];
        for (index, character) in text.iter_mut().enumerate() {
            let bit = |at: usize| {
                let byte = self.0.get(at / 8).copied().unwrap_or(0);
                usize::from(byte >> (7 - at % 8) & 1)
            };
            let value = (0..5).fold(0, |value, offset| value << 1 | bit(5 * index + offset));
            *character = ALPHABET[value];
        }
        f.pad(std::str::from_utf8(&text).expect("the alphabet is ASCII"))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PeerId {
    type Err = PeerIdError;

    /// Upper case is read as lower case: it survives a DNS name, a QR code and a dictation.
    fn from_str(text: &str) -> Result<Self, PeerIdError> {
        let length = text.chars().count();
        let (mut bytes, mut filled) = ([0; KEY_BYTES], 0);
        let (mut pending, mut pending_bits) = (0_u32, 0);
        for (index, character) in text.chars().enumerate() {
            let value = value_of(character).ok_or(PeerIdError::Character {
                character,
                position: index + 1,
            })?;
            pending = (pending << 5 | value) & 0xFFF;
            pending_bits += 5;
            if pending_bits >= 8 {
                pending_bits -= 8;
                if let Some(byte) = bytes.get_mut(filled) {
                    *byte = (pending >> pending_bits) as u8;
                }
                filled += 1;
            }
        }
        if length != PEER_ID_CHARS {
            return Err(PeerIdError::Length(length));
        }
        let spare = pending & ((1 << pending_bits) - 1);
        match text.chars().next_back() {
            Some(last) if spare != 0 => Err(PeerIdError::Ending(last)),
            _ => Ok(Self(bytes)),
        }
    }
}

fn value_of(character: char) -> Option<u32> {
    match character.to_ascii_lowercase() {
        letter @ 'a'..='z' => Some(letter as u32 - 'a' as u32),
        digit @ '2'..='7' => Some(digit as u32 - '2' as u32 + 26),
        _ => None,
    }
}

/// A node's secret: the seed of its Ed25519 key (RFC 8032 §5.1.5). Never shown.
#[derive(Clone)]
pub struct SecretKey([u8; KEY_BYTES]);

impl SecretKey {
    /// The key of a seed, which comes from the operating system or from a file.
    pub const fn from_seed(seed: [u8; KEY_BYTES]) -> Self {
        Self(seed)
    }

    /// The seed, to be kept in a file.
    pub const fn seed(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Other secrets follow from this one: a different one for every purpose, the same after a
    /// restart.
    pub(crate) fn derive(&self, purpose: &str) -> [u8; KEY_BYTES] {
        let mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.chain_update(purpose).finalize().into_bytes().into()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

/// A node's key, ready to sign.
pub struct Identity {
    secret: SecretKey,
    pair: Ed25519KeyPair,
    id: PeerId,
}

impl Identity {
    /// The identity of a secret.
    pub fn new(secret: SecretKey) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&secret.0)
            .expect("every 32 bytes are the seed of an Ed25519 key");
        let public = pair.public_key().as_ref();
        let id = PeerId(
            public
                .try_into()
                .expect("an Ed25519 public key is 32 bytes"),
        );
        Self { secret, pair, id }
    }

    /// The node's name.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// The secret.
    pub fn secret(&self) -> &SecretKey {
        &self.secret
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let signature = self.pair.sign(message);
        signature
            .as_ref()
            .try_into()
            .expect("an Ed25519 signature is 64 bytes")
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.id).finish()
    }
}

#[cfg(test)]
mod tests;
