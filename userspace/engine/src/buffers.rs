//! Fixed pools of datagram buffers, filled once at the start of a shard.
//!
//! ```text
//!   |<- HEADROOM ->|<- what the kernel writes: header, name, control data, payload ->| slack |
//!   prefix goes here or over header, name and control data once they were read
//! ```
//!
//! A buffer is counted: its receiver holds it once, and every queued message that points into it
//! holds it once more. At zero it is listed as released, and its driver gives it back to where
//! receives take buffers from.

use std::io;
use std::ptr::NonNull;

use towpath_proto::machine::TRANSMIT_BUFFER_BYTES;

use crate::address::{NAME_BYTES, RECEIVE_CONTROL_BYTES};

/// Free bytes in front of everything: the longest prefix fits in.
const HEADROOM_BYTES: usize = 64;

/// The same for merged datagrams: with what the kernel writes in front of them, a ChannelData header
/// for each of 64 datagrams fits in.
const BIG_HEADROOM_BYTES: usize = 256;

/// Free bytes behind everything: the longest padding fits in.
pub(crate) const SLACK_BYTES: usize = 4;

/// Header, name and control data in front of a received payload, at most.
pub(crate) const RECEIVE_OVERHEAD_BYTES: usize = 16 + NAME_BYTES + RECEIVE_CONTROL_BYTES;

/// The longest datagram a small buffer takes: more than an Ethernet frame carries.
pub(crate) const SMALL_PAYLOAD_BYTES: usize = 2048;

/// The longest UDP payload there is.
pub(crate) const BIG_PAYLOAD_BYTES: usize = 65_535;

const _: () = assert!(towpath_proto::machine::Prefix::MAX_BYTES <= HEADROOM_BYTES);

/// Which pool a buffer is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// Receives single datagrams.
    Small = 0,
    /// Receives merged datagrams.
    Big = 1,
    /// Lent to the machine for what it builds itself.
    Own = 2,
}

impl Class {
    /// Free bytes in front of what the kernel writes.
    pub(crate) const fn headroom(self) -> usize {
        match self {
            Self::Small | Self::Own => HEADROOM_BYTES,
            Self::Big => BIG_HEADROOM_BYTES,
        }
    }

    const fn capacity(self) -> usize {
        match self {
            Self::Small => SMALL_PAYLOAD_BYTES + RECEIVE_OVERHEAD_BYTES,
            Self::Big => BIG_PAYLOAD_BYTES + RECEIVE_OVERHEAD_BYTES,
            Self::Own => TRANSMIT_BUFFER_BYTES,
        }
    }
}

/// One buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BufferId {
    pub(crate) class: Class,
    pub(crate) index: u16,
}

impl BufferId {
    /// A place that holds no buffer yet.
    pub(crate) const NONE: Self = Self {
        class: Class::Small,
        index: u16::MAX,
    };
}

/// The buffers of a shard.
pub(crate) struct Buffers {
    pools: [Pool; 3],
}

impl Buffers {
    /// Pools of as many buffers as given for each class.
    pub(crate) fn new(small: u16, big: u16, own: u16) -> io::Result<Self> {
        let [small, big, own] = [(Class::Small, small), (Class::Big, big), (Class::Own, own)]
            .map(|(class, count)| Pool::new(class, count));
        Ok(Self {
            pools: [small?, big?, own?],
        })
    }

    /// Number of buffers of a class.
    pub(crate) fn count(&self, class: Class) -> u16 {
        self.pools[class as usize].count
    }

    /// Where the kernel writes to.
    pub(crate) fn kernel_area(&self, id: BufferId) -> *mut u8 {
        let pool = &self.pools[id.class as usize];
        assert!(
            id.index < pool.count,
            "buffer {id:?} is not one of {}",
            pool.count
        );
        // SAFETY: the index was checked, so the result lies inside the pool's memory.
        unsafe {
            pool.memory
                .base
                .add(usize::from(id.index) * pool.stride + id.class.headroom())
        }
        .as_ptr()
    }

    /// How many bytes the kernel may write there.
    pub(crate) fn kernel_bytes(class: Class) -> usize {
        class.capacity()
    }

    /// Marks a buffer as held once: the kernel has filled it.
    pub(crate) fn hold_first(&mut self, id: BufferId) {
        let references = &mut self.pools[id.class as usize].references[usize::from(id.index)];
        debug_assert_eq!(*references, 0, "{id:?} was filled while it was held");
        *references = 1;
    }

    /// Holds a buffer once more.
    pub(crate) fn hold(&mut self, id: BufferId) {
        self.pools[id.class as usize].references[usize::from(id.index)] += 1;
    }

    /// Holds a buffer once less; at zero it is released.
    pub(crate) fn release(&mut self, id: BufferId) {
        let pool = &mut self.pools[id.class as usize];
        let references = &mut pool.references[usize::from(id.index)];
        *references = references
            .checked_sub(1)
            .expect("a buffer is released as often as held");
        if *references == 0 {
            pool.released.push(id.index);
        }
    }

    /// Takes a released buffer of a class.
    pub(crate) fn take_released(&mut self, class: Class) -> Option<BufferId> {
        let index = self.pools[class as usize].released.pop()?;
        Some(BufferId { class, index })
    }

    /// Number of released buffers of a class.
    pub(crate) fn released(&self, class: Class) -> usize {
        self.pools[class as usize].released.len()
    }
}

struct Pool {
    memory: Mapping,
    stride: usize,
    count: u16,
    references: Box<[u16]>,
    released: Vec<u16>,
}

impl Pool {
    fn new(class: Class, count: u16) -> io::Result<Self> {
        let stride = (class.headroom() + class.capacity() + SLACK_BYTES).next_multiple_of(64);
        let memory = Mapping::new(stride * usize::from(count).max(1))?;
        // Taken from the end, so the lowest buffers are the busiest.
        let released = (0..count).rev().collect();
        Ok(Self {
            memory,
            stride,
            count,
            references: vec![0; usize::from(count)].into_boxed_slice(),
            released,
        })
    }
}

/// Page-aligned, zeroed memory of this process, all of it there from the start: no page fault waits
/// on the packet path, and what a shard uses does not creep up with its traffic.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).expect("a mapping is never at address zero");
        Ok(Self { base, bytes })
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length and is unmapped once.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_released_when_its_last_holder_lets_go() {
        let mut buffers = Buffers::new(2, 1, 1).unwrap();
        let id = buffers.take_released(Class::Small).unwrap();
        assert_eq!(buffers.released(Class::Small), 1);
        buffers.hold_first(id);
        buffers.hold(id);
        buffers.release(id);
        assert_eq!(buffers.released(Class::Small), 1);
        buffers.release(id);
        assert_eq!(buffers.released(Class::Small), 2);
    }

    #[test]
    fn buffers_of_a_pool_do_not_overlap() {
        let buffers = Buffers::new(3, 2, 2).unwrap();
        for class in [Class::Small, Class::Big, Class::Own] {
            let area = |index| buffers.kernel_area(BufferId { class, index }) as usize;
            let need = class.headroom() + Buffers::kernel_bytes(class) + SLACK_BYTES;
            assert!(area(1) - area(0) >= need);
        }
    }
}
