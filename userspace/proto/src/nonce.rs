//! Nonces that need no memory: a time and a MAC over it and the client's address.
//!
//! ```text
//!   issued at, seconds (4 bytes) │ HMAC-SHA256 of it and the client's address and port (8 bytes)
//!   └──────────────────── 16 characters of base64url ───────────────────────────────────────┘
//! ```
//!
//! A nonce is thus good for one source address and port, on every shard, for [`NONCE_LIFETIME`].
//! Somebody who forges one (one chance in 2^64) has gained a packet's worth of HMAC.

use std::net::SocketAddr;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::Timestamp;

/// How long a nonce is accepted.
pub const NONCE_LIFETIME: Duration = Duration::from_secs(3600);

/// Length of a nonce in bytes, all of them printable.
pub const NONCE_BYTES: usize = 16;

const TIME_BYTES: usize = 4;
const MAC_BYTES: usize = 8;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

const _: () = assert!(NONCE_BYTES * 6 == (TIME_BYTES + MAC_BYTES) * 8);

/// What makes and recognises nonces.
#[derive(Clone, Debug)]
pub struct NonceKey(Hmac<Sha256>);

impl NonceKey {
    /// Nonces made with the same secret are accepted by all shards.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"))
    }

    /// A nonce for this client.
    pub fn issue(&self, now: Timestamp, client: SocketAddr) -> [u8; NONCE_BYTES] {
        self.encode(issued_at(now), client)
    }

    /// Whether the nonce was issued to this client, not too long ago.
    pub fn is_valid(&self, now: Timestamp, client: SocketAddr, nonce: &[u8]) -> bool {
        let Some(issued) = decode_time(nonce) else {
            return false;
        };
        let age = issued_at(now).wrapping_sub(issued);
        u64::from(age) <= NONCE_LIFETIME.as_secs()
            && bool::from(self.encode(issued, client).ct_eq(nonce))
    }

    fn encode(&self, issued: u32, client: SocketAddr) -> [u8; NONCE_BYTES] {
        let mut mac = self.0.clone();
        let mut input = [0; TIME_BYTES + 2 + 16];
        input[..4].copy_from_slice(&issued.to_be_bytes());
        input[4..6].copy_from_slice(&client.port().to_be_bytes());
        let ip = match client.ip() {
            std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            std::net::IpAddr::V6(v6) => v6,
        };
        input[6..].copy_from_slice(&ip.octets());
        mac.update(&input);
        let mac = mac.finalize().into_bytes();
        let mut bits = u128::from(issued);
        for byte in &mac[..MAC_BYTES] {
            bits = bits << 8 | u128::from(*byte);
        }
        let mut nonce = [0; NONCE_BYTES];
        for (place, character) in nonce.iter_mut().rev().enumerate() {
            *character = ALPHABET[(bits >> (6 * place)) as usize & 63];
        }
        nonce
    }
}

/// Seconds of the clock, modulo 136 years.
fn issued_at(now: Timestamp) -> u32 {
    now.as_secs() as u32
}

/// The time a nonce says it was issued at.
fn decode_time(nonce: &[u8]) -> Option<u32> {
    let nonce: &[u8; NONCE_BYTES] = nonce.try_into().ok()?;
    let mut bits = 0_u64;
    // Six characters are 36 bits: the 32 of the time and 4 of the MAC.
    for character in &nonce[..6] {
        let digit = ALPHABET.iter().position(|known| known == character)?;
        bits = bits << 6 | digit as u64;
    }
    Some((bits >> 4) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn nonce_is_accepted_for_its_lifetime_and_not_longer() {
        let key = NonceKey::new(&[7; 32]);
        let issued = Timestamp::ZERO + Duration::from_secs(1_000_000);
        let client = client("192.0.2.1:4000");
        let nonce = key.issue(issued, client);
        assert!(key.is_valid(issued, client, &nonce));
        assert!(key.is_valid(issued + NONCE_LIFETIME, client, &nonce));
        let late = issued + NONCE_LIFETIME + Duration::from_secs(1);
        assert!(!key.is_valid(late, client, &nonce));
        let early = issued - Duration::from_secs(1);
        assert!(
            !key.is_valid(early, client, &nonce),
            "a nonce from the future is forged"
        );
    }

    #[test]
    fn nonce_is_good_for_one_address_and_port_and_one_secret() {
        let key = NonceKey::new(&[7; 32]);
        let now = Timestamp::ZERO;
        let nonce = key.issue(now, client("192.0.2.1:4000"));
        assert!(!key.is_valid(now, client("192.0.2.1:4001"), &nonce));
        assert!(!key.is_valid(now, client("192.0.2.2:4000"), &nonce));
        assert!(!key.is_valid(now, client("[2001:db8::1]:4000"), &nonce));
        assert!(!NonceKey::new(&[8; 32]).is_valid(now, client("192.0.2.1:4000"), &nonce));
    }

    #[test]
    fn changed_or_cut_nonces_are_refused() {
        let key = NonceKey::new(&[7; 32]);
        let client = client("192.0.2.1:4000");
        let nonce = key.issue(Timestamp::from_nanos(5_000_000_000), client);
        for place in 0..NONCE_BYTES {
            for character in [b'A', b'B', b'!', 0, 0xff] {
                let mut changed = nonce;
                changed[place] = character;
                let same = changed == nonce;
                let now = Timestamp::from_nanos(5_000_000_000);
                assert_eq!(key.is_valid(now, client, &changed), same);
            }
        }
        assert!(!key.is_valid(Timestamp::ZERO, client, &nonce[..15]));
        assert!(!key.is_valid(Timestamp::ZERO, client, &[]));
    }

    #[test]
    fn nonce_characters_are_printable_and_need_no_quoting() {
        let key = NonceKey::new(&[7; 32]);
        let nonce = key.issue(Timestamp::ZERO, client("[::1]:1"));
        assert!(
            nonce
                .iter()
                .all(|c| c.is_ascii_alphanumeric() || b"-_".contains(c))
        );
    }
}
