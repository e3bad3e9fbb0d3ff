//! Datagrams on their way between quinn-proto and a shell, and the memory they lie in meanwhile.

use bytes::BytesMut;

/// Datagrams that quinn-proto builds at once (docs/decisions/0015).
pub(super) const MAX_DATAGRAMS: usize = 16;
/// What received datagrams are copied into. A block is used again once nothing of it is left, so that a
/// stream's bytes that wait to be read may keep this much from being used.
const BLOCK_BYTES: usize = 16 * 1024;

/// Datagrams of one connection that have not been sent yet.
#[derive(Default)]
pub(super) struct Batch {
    /// The connection.
    pub(super) of: u32,
    /// All of them, also those that were taken.
    pub(super) bytes: Vec<u8>,
    taken: usize,
    segment: usize,
    ecn: u8,
}

impl Batch {
    /// Forgets what it holds.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.taken = 0;
    }

    /// `bytes` was filled with datagrams of one length, of which the last may be shorter.
    pub(super) fn begin(&mut self, of: u32, size: usize, segment: Option<usize>, ecn: u8) {
        self.bytes.truncate(size);
        self.of = of;
        self.taken = 0;
        self.segment = segment.unwrap_or(size).max(1);
        self.ecn = ecn;
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.taken >= self.bytes.len()
    }

    /// The first datagram, also where it was taken.
    pub(super) fn first(&self) -> &[u8] {
        &self.bytes[..self.segment.min(self.bytes.len())]
    }

    /// Copies the next datagram into `buffer`: its length and ECN bits. One that does not fit is
    /// dropped, as is what follows it.
    pub(super) fn take(&mut self, buffer: &mut [u8]) -> Option<(usize, u8)> {
        let rest = self.bytes.get(self.taken..)?;
        let next = &rest[..self.segment.min(rest.len())];
        if next.is_empty() {
            return None;
        }
        let Some(room) = buffer.get_mut(..next.len()) else {
            self.clear();
            return None;
        };
        room.copy_from_slice(next);
        self.taken += next.len();
        Some((next.len(), self.ecn))
    }
}

/// Gives received datagrams memory of their own: quinn-proto decrypts them in place, and streams keep
/// parts of them until they are read.
#[derive(Default)]
pub(super) struct Arena(BytesMut);

impl Arena {
    /// A copy of a datagram.
    pub(super) fn copy(&mut self, datagram: &[u8]) -> BytesMut {
        if self.0.capacity() < datagram.len() {
            self.0.reserve(BLOCK_BYTES.max(datagram.len()));
        }
        self.0.extend_from_slice(datagram);
        self.0.split()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_gives_its_datagrams_one_by_one_and_the_last_may_be_shorter() {
        let mut batch = Batch::default();
        let mut buffer = [0; 10];
        assert!(batch.is_empty());
        assert_eq!(batch.take(&mut buffer), None);
        batch.bytes.extend([1, 1, 1, 2, 2, 2, 3]);
        batch.begin(5, 7, Some(3), 2);
        assert_eq!(batch.first(), [1, 1, 1]);
        for (expected, len) in [(1, 3), (2, 3), (3, 1)] {
            assert!(!batch.is_empty());
            assert_eq!(batch.take(&mut buffer), Some((len, 2)));
            assert_eq!(buffer[..len], vec![expected; len]);
        }
        assert!(batch.is_empty());
        assert_eq!(batch.take(&mut buffer), None);
    }

    #[test]
    fn a_datagram_without_room_is_dropped() {
        let mut batch = Batch::default();
        batch.bytes.extend([7; 12]);
        batch.begin(5, 12, None, 0);
        assert_eq!(batch.take(&mut [0; 11]), None);
        assert!(batch.is_empty());
    }

    #[test]
    fn datagrams_share_a_block_and_the_block_is_used_again() {
        let mut arena = Arena::default();
        let mut starts = std::collections::BTreeSet::new();
        for round in 0..1000 {
            let copy = arena.copy(&[round as u8; 1200]);
            assert_eq!(copy[..], [round as u8; 1200]);
            starts.insert(copy.as_ptr() as usize);
        }
        assert!(starts.len() <= BLOCK_BYTES / 1200, "{}", starts.len());
        let kept: Vec<_> = (0..100_u8).map(|byte| arena.copy(&[byte; 1000])).collect();
        for (byte, copy) in kept.iter().enumerate() {
            assert_eq!(copy[..], [byte as u8; 1000]);
        }
        assert_eq!(arena.copy(&[1; 3 * BLOCK_BYTES]).len(), 3 * BLOCK_BYTES);
    }
}
