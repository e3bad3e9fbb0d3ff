//! What the program lets strangers ask, word by word.

use std::sync::atomic::{AtomicU64, Ordering};

use towpath_ebpf_common::strangers::StrangerLimits;

use crate::map::{Mapped, Shared};

/// [`StrangerLimits`] in memory that the program reads.
#[derive(Debug)]
#[repr(C)]
struct Words {
    key: [AtomicU64; 2],
    per_source: AtomicU64,
    per_network: AtomicU64,
    newcomers: AtomicU64,
    returning: AtomicU64,
    unused: [AtomicU64; 2],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Words>() == size_of::<StrangerLimits>());
    assert!(offset_of!(Words, key) == offset_of!(StrangerLimits, key));
    assert!(offset_of!(Words, per_source) == offset_of!(StrangerLimits, per_source));
    assert!(offset_of!(Words, per_network) == offset_of!(StrangerLimits, per_network));
    assert!(offset_of!(Words, newcomers) == offset_of!(StrangerLimits, newcomers));
    assert!(offset_of!(Words, returning) == offset_of!(StrangerLimits, returning));
};

// SAFETY: eight atomic words, without padding.
unsafe impl Shared for Words {}

/// The limits on strangers. What is written holds from the next packet on.
#[derive(Debug)]
pub(crate) struct StrangersMap {
    words: Mapped<Words>,
}

impl StrangersMap {
    pub(crate) fn new(fd: std::os::fd::OwnedFd) -> std::io::Result<Self> {
        Ok(Self {
            words: Mapped::new(fd, 1)?,
        })
    }

    /// A new key leaves what was charged to other budgets than it is charged to from now on.
    pub(crate) fn set(&self, limits: &StrangerLimits) {
        let words = &self.words[0];
        for (word, value) in [
            (&words.key[0], limits.key[0]),
            (&words.key[1], limits.key[1]),
            (&words.per_source, limits.per_source),
            (&words.per_network, limits.per_network),
            (&words.newcomers, limits.newcomers),
            (&words.returning, limits.returning),
        ] {
            word.store(value, Ordering::Relaxed);
        }
    }
}
