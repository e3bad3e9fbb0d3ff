//! Datagrams on their way between quinn-proto and a shell, and the memory they lie in meanwhile.

use bytes::BytesMut;

/// Datagrams that quinn-proto builds at once (docs/decisions/0015).
pub(crate) const MAX_DATAGRAMS: usize = 16;
/// What received datagrams are copied into. A block is used again once nothing of it is left, so that a
/// stream's bytes that wait to be read may keep this much from being used.
const BLOCK_BYTES: usize = 16 * 1024;

/// Memory for batches that is kept while nothing is in it.
const MAX_SPARES: usize = 8;

/// Datagrams of one connection that have not been sent yet: of one length, but the last may be shorter.
pub(super) struct Batch {
    /// All of them, also those that were taken.
    bytes: Vec<u8>,
    taken: usize,
    segment: usize,
    ecn: u8,
}

impl Batch {
    /// Datagrams of `segment` bytes; one where there is no such length.
    pub(super) fn new(bytes: Vec<u8>, segment: Option<usize>, ecn: u8) -> Self {
        let segment = segment.unwrap_or(bytes.len()).max(1);
        Self {
            bytes,
            taken: 0,
            segment,
            ecn,
        }
    }

    /// The first datagram, also where it was taken.
    pub(super) fn first(&self) -> &[u8] {
        &self.bytes[..self.segment.min(self.bytes.len())]
    }

    /// Copies the next datagram into `buffer` and gives its length. One that does not fit is dropped.
    fn take(&mut self, buffer: &mut [u8]) -> Option<usize> {
        while self.taken < self.bytes.len() {
            let rest = &self.bytes[self.taken..];
            let next = &rest[..self.segment.min(rest.len())];
            self.taken += next.len();
            if let Some(room) = buffer.get_mut(..next.len()) {
                room.copy_from_slice(next);
                return Some(next.len());
            }
        }
        None
    }
}

/// The memory of batches that were sent.
#[derive(Default)]
pub(super) struct Spares(Vec<Vec<u8>>);

impl Spares {
    /// The next datagram of a batch: its length and ECN bits. A batch that is used up is gone.
    pub(super) fn take(
        &mut self,
        batch: &mut Option<Batch>,
        buffer: &mut [u8],
    ) -> Option<(usize, u8)> {
        let of = batch.as_mut()?;
        let sent = of.take(buffer).map(|len| (len, of.ecn));
        if of.taken == of.bytes.len()
            && let Some(Batch { bytes, .. }) = batch.take()
        {
            self.give_back(bytes);
        }
        sent
    }

    /// Memory to build a batch in.
    pub(super) fn memory(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_default()
    }

    /// Memory that is not needed now.
    pub(super) fn give_back(&mut self, mut memory: Vec<u8>) {
        if self.0.len() < MAX_SPARES {
            memory.clear();
            self.0.push(memory);
        }
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
        let mut spares = Spares::default();
        let mut buffer = [0; 10];
        let bytes = vec![1, 1, 1, 2, 2, 2, 3];
        let memory = bytes.as_ptr();
        let mut batch = Some(Batch::new(bytes, Some(3), 2));
        assert_eq!(batch.as_ref().unwrap().first(), [1, 1, 1]);
        for (expected, len) in [(1, 3), (2, 3), (3, 1)] {
            assert_eq!(spares.take(&mut batch, &mut buffer), Some((len, 2)));
            assert_eq!(buffer[..len], vec![expected; len]);
        }
        assert!(batch.is_none());
        assert_eq!(spares.take(&mut batch, &mut buffer), None);
        let again = spares.memory();
        assert!(again.is_empty() && again.as_ptr() == memory);
        assert_eq!(spares.memory().capacity(), 0);
    }

    #[test]
    fn a_datagram_without_room_is_dropped() {
        let mut spares = Spares::default();
        let mut batch = Some(Batch::new(vec![7; 23], Some(12), 0));
        assert_eq!(spares.take(&mut batch, &mut [0; 11]), Some((11, 0)));
        let mut batch = Some(Batch::new(vec![7; 12], None, 0));
        assert_eq!(spares.take(&mut batch, &mut [0; 11]), None);
        assert!(batch.is_none());
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
