//! Answers waiting to be sent.

use std::collections::VecDeque;

use crate::machine::{Prefix, TRANSMIT_BUFFER_BYTES, Transmit};

/// Longest answer a relay builds, but for one that is padded because its request was.
pub(crate) const MAX_ANSWER_BYTES: usize = 512;

/// Most answers that wait at a time. A shell fetches them after every datagram or batch of them.
const MAX_WAITING: usize = 4096;

const _: () = assert!(MAX_ANSWER_BYTES <= TRANSMIT_BUFFER_BYTES);

/// A bounded queue of answers that uses its buffers again.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<(Transmit, Buffer)>,
    spare: Vec<Buffer>,
}

/// [`MAX_ANSWER_BYTES`] long, or [`TRANSMIT_BUFFER_BYTES`] where an answer may be longer.
type Buffer = Box<[u8]>;

impl Outbox {
    /// A buffer to build an answer of at most `longest` bytes in; `None` when too many are waiting.
    pub(crate) fn begin(&mut self, longest: usize) -> Option<Buffer> {
        if self.waiting.len() >= MAX_WAITING {
            return None;
        }
        if longest > MAX_ANSWER_BYTES {
            return Some(Box::new([0; TRANSMIT_BUFFER_BYTES]));
        }
        let spare = self.spare.pop();
        Some(spare.unwrap_or_else(|| Box::new([0; MAX_ANSWER_BYTES])))
    }

    /// Queues an answer; `transmit.payload` is its part of the buffer.
    pub(crate) fn push(&mut self, transmit: Transmit, buffer: Buffer) {
        debug_assert!(transmit.prefix == Prefix::EMPTY && transmit.padding == 0);
        self.waiting.push_back((transmit, buffer));
    }

    /// Gives a buffer back unused.
    pub(crate) fn discard(&mut self, buffer: Buffer) {
        if buffer.len() == MAX_ANSWER_BYTES {
            self.spare.push(buffer);
        }
    }

    /// Moves the oldest answer into `target`.
    pub(crate) fn pop(&mut self, target: &mut [u8]) -> Option<Transmit> {
        let (mut transmit, buffer) = self.waiting.pop_front()?;
        let answer = &buffer[transmit.payload.clone()];
        transmit.payload = 0..answer.len();
        target[..answer.len()].copy_from_slice(answer);
        self.discard(buffer);
        Some(transmit)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
