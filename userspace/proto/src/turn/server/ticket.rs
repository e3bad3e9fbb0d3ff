//! Mobility tickets (RFC 8016 §3.1.2): which allocation a client means that comes from elsewhere.
//!
//! ```text
//!   plain   0 0 | shard, 2 | port, 4 | number, 8            which ticket of which allocation
//!   tag     HMAC-SHA256(tag key, plain), the first 16 bytes
//!   body    plain XOR HMAC-SHA256(mask key, tag), 16 bytes
//!   ticket  tag | body
//! ```
//!
//! The tag is computed over what the body hides and hides it (the construction of SIV modes), so a
//! ticket tells nobody but a shard of this relay anything, cannot be made up, and needs no memory. A
//! number is given to one ticket only; whether it is still good is for the allocation to say.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::machine::{PortId, ShardId};

const TAG_BYTES: usize = 16;
const PLAIN_BYTES: usize = 16;

/// Length of a ticket.
pub(crate) const TICKET_BYTES: usize = TAG_BYTES + PLAIN_BYTES;

/// What makes and opens tickets; all shards have the same.
#[derive(Clone)]
pub(crate) struct TicketKey {
    tag: Hmac<Sha256>,
    mask: Hmac<Sha256>,
}

/// What a ticket says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    /// The shard that has the allocation.
    pub(crate) shard: ShardId,
    pub(crate) port: PortId,
    pub(crate) number: u64,
}

impl TicketKey {
    /// Both keys come from the secret behind nonces, by inputs that no nonce has.
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        let derived = |purpose: &[u8]| {
            let mut key = keyed(secret);
            key.update(purpose);
            keyed(&key.finalize().into_bytes())
        };
        Self {
            tag: derived(b"towpath: the tag of a mobility ticket"),
            mask: derived(b"towpath: the mask of a mobility ticket"),
        }
    }

    pub(crate) fn seal(&self, ticket: &Ticket) -> [u8; TICKET_BYTES] {
        let plain = ticket.plain();
        let tag = self.tag_of(&plain);
        let mut sealed = [0; TICKET_BYTES];
        sealed[..TAG_BYTES].copy_from_slice(&tag);
        sealed[TAG_BYTES..].copy_from_slice(&self.masked(&tag, &plain));
        sealed
    }

    /// What a ticket says; `None` where no shard of this relay made it.
    pub(crate) fn open(&self, sealed: &[u8]) -> Option<Ticket> {
        let sealed: &[u8; TICKET_BYTES] = sealed.try_into().ok()?;
        let (tag, body) = sealed.split_first_chunk::<TAG_BYTES>()?;
        let plain = self.masked(tag, body.try_into().ok()?);
        let is_ours = bool::from(self.tag_of(&plain).ct_eq(tag));
        is_ours.then(|| Ticket::read(&plain))
    }

    fn tag_of(&self, plain: &[u8; PLAIN_BYTES]) -> [u8; TAG_BYTES] {
        let mut mac = self.tag.clone();
        mac.update(plain);
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&mac.finalize().into_bytes()[..TAG_BYTES]);
        tag
    }

    fn masked(&self, tag: &[u8; TAG_BYTES], bytes: &[u8; PLAIN_BYTES]) -> [u8; PLAIN_BYTES] {
        let mut mask = self.mask.clone();
        mask.update(tag);
        let mut masked = *bytes;
        for (byte, mask) in masked.iter_mut().zip(mask.finalize().into_bytes()) {
            *byte ^= mask;
        }
        masked
    }
}

impl fmt::Debug for TicketKey {
    /// Shows no key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKey").finish_non_exhaustive()
    }
}

impl Ticket {
    fn plain(&self) -> [u8; PLAIN_BYTES] {
        let mut plain = [0; PLAIN_BYTES];
        plain[2..4].copy_from_slice(&self.shard.0.to_be_bytes());
        plain[4..8].copy_from_slice(&self.port.0.to_be_bytes());
        plain[8..].copy_from_slice(&self.number.to_be_bytes());
        plain
    }

    fn read(&[_, _, s0, s1, p0, p1, p2, p3, ref number @ ..]: &[u8; PLAIN_BYTES]) -> Self {
        Self {
            shard: ShardId(u16::from_be_bytes([s0, s1])),
            port: PortId(u32::from_be_bytes([p0, p1, p2, p3])),
            number: u64::from_be_bytes(*number),
        }
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKET: Ticket = Ticket {
        shard: ShardId(3),
        port: PortId(70_000),
        number: 0x0123_4567_89ab_cdef,
    };

    #[test]
    fn a_ticket_is_opened_by_the_key_that_sealed_it_and_by_no_other() {
        let key = TicketKey::new(&[7; 32]);
        let sealed = key.seal(&TICKET);
        assert_eq!(key.open(&sealed), Some(TICKET));
        assert_eq!(TicketKey::new(&[7; 32]).open(&sealed), Some(TICKET));
        assert_eq!(TicketKey::new(&[8; 32]).open(&sealed), None);
    }

    #[test]
    fn a_changed_or_cut_ticket_is_none() {
        let key = TicketKey::new(&[7; 32]);
        let sealed = key.seal(&TICKET);
        for bit in 0..TICKET_BYTES * 8 {
            let mut changed = sealed;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.open(&changed), None, "bit {bit}");
        }
        assert_eq!(key.open(&sealed[..TICKET_BYTES - 1]), None);
        assert_eq!(key.open(&[&sealed[..], &[0]].concat()), None);
        assert_eq!(key.open(&[]), None);
        assert_eq!(key.open(&[0; TICKET_BYTES]), None);
    }

    // Neighbouring allocations and tickets must not look alike.
    #[test]
    fn tickets_that_say_nearly_the_same_share_nothing() {
        let key = TicketKey::new(&[7; 32]);
        let next = Ticket {
            number: TICKET.number + 1,
            ..TICKET
        };
        let (one, other) = (key.seal(&TICKET), key.seal(&next));
        let same = one.iter().zip(other).filter(|(a, b)| **a == *b).count();
        assert!(same < 6, "{same} of {TICKET_BYTES} bytes are the same");
        let plain = TICKET.plain();
        assert!(
            !one.windows(4)
                .any(|four| plain.windows(4).any(|p| p == four))
        );
    }
}
