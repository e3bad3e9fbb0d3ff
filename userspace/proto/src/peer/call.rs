//! What other threads want of a node: one closure per call, which has the way to its answer in it.

use std::fmt;

use super::Peer;
use crate::Timestamp;

/// Something to be done on a shard's thread.
pub struct Call(Box<Closure>);

type Closure = dyn FnOnce(&mut Peer, Timestamp) + Send;

impl Call {
    /// A call of any of [`Peer`]'s methods. It must not block.
    pub fn new(call: impl FnOnce(&mut Peer, Timestamp) + Send + 'static) -> Self {
        Self(Box::new(call))
    }

    pub(super) fn make(self, peer: &mut Peer, now: Timestamp) {
        (self.0)(peer, now);
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Call(…)")
    }
}
