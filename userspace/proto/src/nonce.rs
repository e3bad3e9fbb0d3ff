//! Nonces that need no memory: what was offered with it, when, and a MAC over that and the client's address.
//!
//! ```text
//!   "obMatJos2" and 4 characters: what the server can do (RFC 8489 §9.2, §18.1), unless nothing is offered
//!   11 characters of base64url, 66 bits:
//!     offer (3) │ issued at, units of 16 s, the lowest 8 bits │ HMAC-SHA256 of offer, time, address and port (55)
//! ```
//!
//! A nonce is thus good for one source address and port, on every shard, for [`NONCE_LIFETIME`] and at
//! most 16 s longer. Of the time so many bits are there as tell apart what is still good; the MAC is over
//! all of it, so that an old nonce does not come alive again. Somebody who forges one (one chance in
//! 2^55) has gained a packet's worth of HMAC. It is short because answers to strangers are.

use std::net::SocketAddr;
use std::ops::Deref;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::Timestamp;
use crate::wire::attribute::PasswordAlgorithms;

/// How long a nonce is accepted.
pub const NONCE_LIFETIME: Duration = Duration::from_secs(3600);

/// Length of a nonce in bytes, all of them printable: of one with a cookie, and of one without.
pub const NONCE_BYTES: usize = COOKIE_BYTES + PLAIN_NONCE_BYTES;
/// See [`NONCE_BYTES`].
pub const PLAIN_NONCE_BYTES: usize = 11;

/// RFC 8489 §9.2: "\"obMatJos2\" concatenated with the (4-character) base64 [RFC4648] encoding of the
/// 24-bit STUN Security Features".
const COOKIE_BYTES: usize = 13;
const COOKIE_ALGORITHMS: &[u8; COOKIE_BYTES] = b"obMatJos2gAAA";
const COOKIE_ALGORITHMS_AND_USERHASH: &[u8; COOKIE_BYTES] = b"obMatJos2wAAA";

const UNIT_SECS: u64 = 16;
const OFFER_BITS: u32 = 3;
const TIME_BITS: u32 = 8;
const MAC_BITS: u32 = 55;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

const _: () = assert!(PLAIN_NONCE_BYTES as u32 * 6 == OFFER_BITS + TIME_BITS + MAC_BITS);
const _: () = assert!(NONCE_LIFETIME.as_secs() / UNIT_SECS < (1 << TIME_BITS) - 1);

/// What a server offers with a nonce; the nonce says it again where nobody on the way can change it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offer {
    /// Nothing: names in the clear and MD5 keys, as in RFC 5389.
    Nothing,
    /// PASSWORD-ALGORITHMS.
    Algorithms {
        /// Whether SHA-256 is among them, before MD5.
        sha256: bool,
        /// Whether USERHASH is understood: "Username anonymity".
        userhash: bool,
    },
}

impl Offer {
    /// What stands in front of the nonce.
    fn cookie(self) -> &'static [u8] {
        match self {
            Self::Nothing => &[],
            Self::Algorithms { userhash, .. } if userhash => COOKIE_ALGORITHMS_AND_USERHASH,
            Self::Algorithms { .. } => COOKIE_ALGORITHMS,
        }
    }

    /// The list that the challenge has.
    pub fn algorithms(self) -> Option<PasswordAlgorithms<'static>> {
        match self {
            Self::Nothing => None,
            Self::Algorithms { sha256, .. } if sha256 => Some(PasswordAlgorithms::SHA256_MD5),
            Self::Algorithms { .. } => Some(PasswordAlgorithms::MD5),
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Algorithms { sha256, userhash } => {
                0b100 | u8::from(sha256) << 1 | u8::from(userhash)
            }
        }
    }

    fn of_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Nothing),
            0b100..=0b111 => Some(Self::Algorithms {
                sha256: number & 0b10 != 0,
                userhash: number & 1 != 0,
            }),
            _ => None,
        }
    }
}

/// A nonce that was made.
#[derive(Clone, Copy, Debug)]
pub struct IssuedNonce {
    bytes: [u8; NONCE_BYTES],
    len: u8,
}

impl Deref for IssuedNonce {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// What makes and recognises nonces.
#[derive(Clone, Debug)]
pub struct NonceKey(Hmac<Sha256>);

impl NonceKey {
    /// Nonces made with the same secret are accepted by all shards.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"))
    }

    /// A nonce for this client, with this offer.
    ///
    /// RFC 8489 §9.2.4: "The server MUST NOT choose the same NONCE for two requests unless they have the
    /// same source IP address and port."
    pub fn issue(&self, now: Timestamp, client: SocketAddr, offer: Offer) -> IssuedNonce {
        let cookie = offer.cookie();
        let mut bytes = [0; NONCE_BYTES];
        bytes[..cookie.len()].copy_from_slice(cookie);
        let body = self.body(unit_of(now), client, offer);
        bytes[cookie.len()..][..PLAIN_NONCE_BYTES].copy_from_slice(&body);
        IssuedNonce {
            bytes,
            len: (cookie.len() + PLAIN_NONCE_BYTES) as u8,
        }
    }

    /// What was offered with a nonce; `None` where it was not issued to this client, or too long ago.
    pub fn check(&self, now: Timestamp, client: SocketAddr, nonce: &[u8]) -> Option<Offer> {
        let (cookie, body) = nonce.split_at_checked(nonce.len().checked_sub(PLAIN_NONCE_BYTES)?)?;
        let bits = decode(body)? >> MAC_BITS;
        let offer = Offer::of_number((bits >> TIME_BITS) as u8)?;
        if cookie != offer.cookie() {
            return None;
        }
        let unit = unit_of(now);
        let age = u64::from((unit as u8).wrapping_sub(bits as u8));
        if age > NONCE_LIFETIME.as_secs() / UNIT_SECS {
            return None;
        }
        let issued = unit.checked_sub(age)?;
        bool::from(self.body(issued, client, offer).ct_eq(body)).then_some(offer)
    }

    fn body(&self, unit: u64, client: SocketAddr, offer: Offer) -> [u8; PLAIN_NONCE_BYTES] {
        let mut mac = self.0.clone();
        let mut input = [0; 8 + 1 + 2 + 16];
        input[..8].copy_from_slice(&unit.to_be_bytes());
        input[8] = offer.number();
        input[9..11].copy_from_slice(&client.port().to_be_bytes());
        let ip = match client.ip() {
            std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            std::net::IpAddr::V6(v6) => v6,
        };
        input[11..].copy_from_slice(&ip.octets());
        mac.update(&input);
        let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(mac.finalize().into_bytes());
        let mac = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> (64 - MAC_BITS);
        let head = u128::from(offer.number()) << TIME_BITS | u128::from(unit as u8);
        let bits = head << MAC_BITS | u128::from(mac);
        std::array::from_fn(|place| {
            let shift = 6 * (PLAIN_NONCE_BYTES - 1 - place);
            ALPHABET[(bits >> shift) as usize & 63]
        })
    }
}

/// Units of the clock.
fn unit_of(now: Timestamp) -> u64 {
    now.as_secs() / UNIT_SECS
}

/// The bits of a nonce's body.
fn decode(body: &[u8]) -> Option<u128> {
    body.iter().try_fold(0, |bits, character| {
        let digit = ALPHABET.iter().position(|known| known == character)?;
        Some(bits << 6 | digit as u128)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERS: [Offer; 5] = [
        Offer::Nothing,
        Offer::Algorithms {
            sha256: false,
            userhash: false,
        },
        Offer::Algorithms {
            sha256: false,
            userhash: true,
        },
        Offer::Algorithms {
            sha256: true,
            userhash: false,
        },
        Offer::Algorithms {
            sha256: true,
            userhash: true,
        },
    ];
    const FULL: Offer = OFFERS[4];
    const UNIT: Duration = Duration::from_secs(UNIT_SECS);

    fn client(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn nonce_is_accepted_for_its_lifetime_and_not_much_longer() {
        let key = NonceKey::new(&[7; 32]);
        let client = client("192.0.2.1:4000");
        for secs in [0, 15, 1_000_000, 1_000_015] {
            let issued = Timestamp::ZERO + Duration::from_secs(secs);
            let nonce = key.issue(issued, client, FULL);
            let at = |later| key.check(issued + later, client, &nonce);
            assert_eq!(at(Duration::ZERO), Some(FULL));
            assert_eq!(at(NONCE_LIFETIME), Some(FULL));
            for units in 1..2000 {
                let late = NONCE_LIFETIME + UNIT * units;
                assert_eq!(at(late), None, "after {late:?}");
            }
            if let Some(early) = secs.checked_sub(UNIT_SECS) {
                let early = Timestamp::ZERO + Duration::from_secs(early);
                let before = key.check(early, client, &nonce);
                assert_eq!(before, None, "a nonce from the future is forged");
            }
        }
    }

    #[test]
    fn nonce_is_good_for_one_address_and_port_and_one_secret() {
        let key = NonceKey::new(&[7; 32]);
        let now = Timestamp::ZERO;
        let mine = client("192.0.2.1:4000");
        let nonce = key.issue(now, mine, FULL);
        for other in ["192.0.2.1:4001", "192.0.2.2:4000", "[2001:db8::1]:4000"] {
            assert_eq!(key.check(now, client(other), &nonce), None);
        }
        assert_eq!(NonceKey::new(&[8; 32]).check(now, mine, &nonce), None);
    }

    #[test]
    fn changed_or_cut_nonces_are_refused() {
        let key = NonceKey::new(&[7; 32]);
        let client = client("192.0.2.1:4000");
        let now = Timestamp::from_nanos(5_000_000_000);
        for offer in OFFERS {
            let nonce = key.issue(now, client, offer);
            for place in 0..nonce.len() {
                for character in [b'A', b'B', b'!', 0, 0xff] {
                    let mut changed = nonce.to_vec();
                    changed[place] = character;
                    let expected = (changed == *nonce).then_some(offer);
                    assert_eq!(key.check(now, client, &changed), expected);
                }
            }
            assert_eq!(key.check(now, client, &nonce[..nonce.len() - 1]), None);
            assert_eq!(key.check(now, client, &nonce[1..]), None);
        }
        assert_eq!(key.check(now, client, &[]), None);
    }

    // RFC 8489 §9.2.1: bid-down attacks are noticed by the nonce.
    #[test]
    fn the_cookie_of_a_nonce_cannot_be_taken_off_or_exchanged() {
        let key = NonceKey::new(&[7; 32]);
        let client = client("192.0.2.1:4000");
        let now = Timestamp::ZERO;
        for offer in OFFERS {
            let nonce = key.issue(now, client, offer);
            let body = &nonce[nonce.len() - PLAIN_NONCE_BYTES..];
            for other in OFFERS {
                let mut forged = other.cookie().to_vec();
                forged.extend_from_slice(body);
                let expected = (other.cookie() == offer.cookie()).then_some(offer);
                assert_eq!(key.check(now, client, &forged), expected);
            }
        }
    }

    // RFC 8489 §9.2 and §18.1: bit 0, "Password algorithms", is the most significant bit of the first
    // byte, bit 1 is "Username anonymity".
    #[test]
    fn the_cookie_says_what_is_offered() {
        let key = NonceKey::new(&[7; 32]);
        let issue = |offer| {
            let nonce = key.issue(Timestamp::ZERO, client("[::1]:1"), offer);
            let body = &nonce[nonce.len() - PLAIN_NONCE_BYTES..];
            assert!(
                body.iter()
                    .all(|c| c.is_ascii_alphanumeric() || b"-_".contains(c))
            );
            String::from_utf8(nonce[..nonce.len() - PLAIN_NONCE_BYTES].to_vec()).unwrap()
        };
        let cookies = OFFERS.map(issue);
        let (algorithms, both) = ("obMatJos2gAAA", "obMatJos2wAAA");
        assert_eq!(cookies, ["", algorithms, both, algorithms, both]);
    }
}
