//! Connection ids, as this node gives them to its peers.
//!
//! ```text
//!    0        1        2        3        4                 7
//!   +--------+--------+--------+--------+--------+ … +--------+
//!   | random |  0xFF  |      shard      |       random        |
//!   +--------+--------+--------+--------+--------+ … +--------+
//! ```
//!
//! A short header's first byte can fall into ChannelData's range (RFC 9443). Behind it the id's second
//! byte is where ChannelData has the upper half of its length, so such a datagram claims at least
//! 65,280 bytes and is never taken for ChannelData.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::Rng;

use crate::machine::{ByteTest, ShardId, ShardMark};

/// Length of the ids of this node.
pub(crate) const CID_BYTES: usize = 8;
/// An id of the length of those of this node.
pub(crate) type CidBytes = [u8; CID_BYTES];
/// What the second byte of all of them is.
const MARK: u8 = 0xFF;
/// A long header: this bit of the first byte (RFC 8999 §5.1).
const LONG_HEADER: u8 = 0x80;

/// What the upper two bits of QUIC's first byte are (RFC 9443 §3): a short header, a long one.
const SHORT: ByteTest = ByteTest {
    offset: 0,
    mask: 0xc0,
    value: 0x40,
};
const LONG: ByteTest = ByteTest {
    value: 0xc0,
    ..SHORT
};

/// The shard in the id that a datagram is sent to, behind a short header and behind a long one.
pub(crate) const SHARD_MARKS: [ShardMark; 2] = [
    ShardMark {
        tests: &[SHORT, mark_at(2)],
        offset: 3,
    },
    ShardMark {
        // RFC 8999 §5.1: first byte, version, and the length of the id in front of it.
        tests: &[
            LONG,
            ByteTest {
                offset: 5,
                mask: 0xff,
                value: CID_BYTES as u8,
            },
            mark_at(7),
        ],
        offset: 8,
    },
];

/// A byte that says that a shard's number follows.
pub(crate) const fn mark_at(offset: u8) -> ByteTest {
    ByteTest {
        offset,
        mask: 0xff,
        value: MARK,
    }
}

/// The ids that were made since they were last taken. quinn-proto does not say which it issues.
#[derive(Clone, Debug, Default)]
pub(super) struct Issued(Arc<Mutex<Vec<ConnectionId>>>);

impl Issued {
    pub(super) fn take(&self) -> Vec<ConnectionId> {
        mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, id: ConnectionId) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(id);
    }
}

/// Makes the ids of one shard.
pub(super) struct ShardCids {
    pub(super) shard: ShardId,
    pub(super) rng: ChaCha12Rng,
    pub(super) issued: Issued,
}

impl ConnectionIdGenerator for ShardCids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CID_BYTES];
        self.rng.fill_bytes(&mut id);
        id[1] = MARK;
        id[2..4].copy_from_slice(&self.shard.0.to_be_bytes());
        let id = ConnectionId::new(&id);
        self.issued.add(id);
        id
    }

    /// No stateless reset for an id that this shard cannot have made.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match shard_of(id) {
            Some(shard) if shard == self.shard => Ok(()),
            Some(_) | None => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The shard that made an id; `None` where no shard of any node did.
pub(super) fn shard_of(id: &[u8]) -> Option<ShardId> {
    let id: &[u8; CID_BYTES] = id.try_into().ok()?;
    (id[1] == MARK).then(|| ShardId(u16::from_be_bytes([id[2], id[3]])))
}

/// Whether a datagram begins with a long header.
pub(super) fn has_long_header(datagram: &[u8]) -> bool {
    datagram
        .first()
        .is_some_and(|first| first & LONG_HEADER != 0)
}

/// The id that a datagram was sent to, where it is as long as those of this node.
pub(super) fn destination_of(datagram: &[u8]) -> Option<ConnectionId> {
    let start = if has_long_header(datagram) {
        // RFC 8999 §5.1: first byte, version, and the length of the id in front of it.
        let length = *datagram.get(5)?;
        (usize::from(length) == CID_BYTES).then_some(6)?
    } else {
        1
    };
    let id = datagram.get(start..start + CID_BYTES)?;
    Some(ConnectionId::new(id))
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn generator(shard: u16) -> ShardCids {
        ShardCids {
            shard: ShardId(shard),
            rng: ChaCha12Rng::from_seed([3; 32]),
            issued: Issued::default(),
        }
    }

    #[test]
    fn an_id_carries_its_shard_and_other_shards_refuse_it() {
        let (mut one, two) = (generator(0x102), generator(0x103));
        let id = one.generate_cid();
        assert_eq!(shard_of(&id), Some(ShardId(0x102)));
        assert!(one.validate(&id).is_ok());
        assert!(two.validate(&id).is_err());
        assert_eq!(one.issued.take(), [id]);
        assert_eq!(one.issued.take(), []);
    }

    #[test]
    fn a_short_header_never_fits_as_channel_data() {
        let mut generator = generator(1);
        for first in 0x40..=0x4f {
            let mut datagram = vec![first];
            datagram.extend_from_slice(&generator.generate_cid());
            datagram.resize(65_507, 0);
            let claimed = u16::from_be_bytes([datagram[2], datagram[3]]);
            assert!(usize::from(claimed) >= 65_280);
            assert!(usize::from(claimed) + 4 > 1472);
        }
    }

    #[test]
    fn a_datagram_is_marked_for_the_shard_of_the_id_it_is_sent_to() {
        let id = generator(0x102).generate_cid();
        let marked = |datagram: &[u8]| SHARD_MARKS.iter().find_map(|mark| mark.shard(datagram));
        let short = [&[0x41], &id[..]].concat();
        assert_eq!(marked(&short), Some(ShardId(0x102)));
        let long = [&[0xc3, 0, 0, 0, 1, 8], &id[..], &[0]].concat();
        assert_eq!(marked(&long), Some(ShardId(0x102)));
        // What a stranger has chosen, or another protocol's.
        assert_eq!(
            marked(&[&[0xc3, 0, 0, 0, 1, 12], &id[..], &[0; 9]].concat()),
            None
        );
        assert_eq!(marked(&[&[0x01], &id[..]].concat()), None);
        assert_eq!(marked(&[&[0x81], &id[..]].concat()), None);
        assert_eq!(marked(&short[..4]), None);
        assert_eq!(marked(&[0x41; 20]), None);
    }

    #[test]
    fn the_destination_is_found_behind_both_headers() {
        let id = generator(1).generate_cid();
        let short = [&[0x41], &id[..], &[1, 2, 3]].concat();
        assert_eq!(destination_of(&short), Some(id));
        let long = [&[0xc3, 0, 0, 0, 1, 8], &id[..], &[0]].concat();
        assert_eq!(destination_of(&long), Some(id));
        assert_eq!(destination_of(&long[..13]), None);
        assert_eq!(destination_of(&[0xc3, 0, 0, 0, 1, 20, 1, 2, 3, 4]), None);
        assert_eq!(destination_of(&[]), None);
    }
}
