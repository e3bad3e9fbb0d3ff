//! A ring of provided buffers: from here the kernel takes the buffer for each receive.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::buffers::{BufferId, Buffers, Class, Mapping};

/// What the kernel may have at once, until that was not enough.
const FEW: u16 = 256;

/// A registered buffer ring of one class of buffers.
pub(crate) struct ProvidedRing {
    memory: Mapping,
    class: Class,
    entries: u16,
    tail: u16,
    /// Buffers the kernel may take now.
    available: u16,
    /// How many it may have at once. Fewer than there are, so that the same few are used again and
    /// again while they are in the cache: the kernel takes the one that was given back longest ago.
    offered: u16,
}

impl ProvidedRing {
    /// Registers a ring for all buffers of `class` and fills it. Their number is a power of two.
    pub(crate) fn new(
        submitter: &Submitter<'_>,
        buffers: &mut Buffers,
        class: Class,
    ) -> io::Result<Self> {
        let entries = buffers.count(class);
        assert!(
            entries.is_power_of_two(),
            "{entries} buffers are no power of two"
        );
        let memory = Mapping::new(usize::from(entries) * std::mem::size_of::<BufRingEntry>())?;
        // SAFETY: the memory is page-aligned, holds as many entries, and lives as long as the ring:
        // the driver drops its io_uring before its buffer rings.
        unsafe {
            submitter.register_buf_ring_with_flags(memory.as_ptr() as u64, entries, class as u16, 0)
        }?;
        let mut ring = Self {
            memory,
            class,
            entries,
            tail: 0,
            available: 0,
            offered: entries.min(FEW),
        };
        ring.refill(buffers);
        Ok(ring)
    }

    /// Number by which receives name this ring.
    pub(crate) fn group(&self) -> u16 {
        self.class as u16
    }

    /// Notes that the kernel took a buffer.
    pub(crate) fn taken(&mut self) {
        self.available -= 1;
    }

    /// Whether enough buffers are there for a receive that ran out of them to begin again.
    pub(crate) fn has_recovered(&self) -> bool {
        self.available >= self.offered.div_ceil(4)
    }

    /// The kernel found a ring empty: it gets more from now on.
    pub(crate) fn offer_more(&mut self) {
        self.offered = self.offered.saturating_mul(2).min(self.entries);
    }

    /// Tries with fewer again.
    pub(crate) fn offer_less(&mut self) {
        self.offered = (self.offered / 2).max(FEW.min(self.entries));
    }

    /// Gives released buffers of this class back to the kernel, as many as it may have.
    pub(crate) fn refill(&mut self, buffers: &mut Buffers) {
        if buffers.released(self.class) == 0 || self.available >= self.offered {
            return;
        }
        while self.available < self.offered
            && let Some(id) = buffers.take_released(self.class)
        {
            self.write_entry(id, buffers);
            self.available += 1;
        }
        let base = self.memory.as_ptr().cast::<BufRingEntry>();
        // SAFETY: the base is that of a ring in page-aligned memory of this process.
        let tail = unsafe { BufRingEntry::tail(base) }.cast_mut();
        // SAFETY: the tail is an aligned 16-bit word the kernel only reads.
        let tail = unsafe { AtomicU16::from_ptr(tail) };
        // The kernel must see the entries before the tail that covers them.
        tail.store(self.tail, Ordering::Release);
    }

    fn write_entry(&mut self, id: BufferId, buffers: &Buffers) {
        let index = usize::from(self.tail & (self.entries - 1));
        let base = self.memory.as_ptr().cast::<BufRingEntry>();
        // SAFETY: the index is below the number of entries the memory was made for.
        let entry = unsafe { base.add(index) };
        // SAFETY: the entry is outside what the kernel may read until the tail moves, and any bytes
        // are a valid entry. Its reserved field (the tail's place in entry 0) is not written.
        let entry = unsafe { &mut *entry };
        entry.set_addr(buffers.kernel_area(id) as u64);
        entry.set_len(Buffers::kernel_bytes(self.class) as u32);
        entry.set_bid(id.index);
        self.tail = self.tail.wrapping_add(1);
    }
}
