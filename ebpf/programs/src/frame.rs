//! A packet's bytes: every access is behind a comparison with the end, which the kernel's verifier
//! checks again.

use aya_ebpf::programs::XdpContext;

/// Where a packet lies now. Moving its head or tail makes it void.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Frame {
    #[inline(always)]
    pub(crate) fn of(ctx: &XdpContext) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
        }
    }

    /// Whether the bytes before `end` are there.
    #[inline(always)]
    pub(crate) fn reaches(self, end: usize) -> bool {
        end <= self.end
    }

    #[inline(always)]
    pub(crate) fn bytes(self) -> usize {
        self.end - self.start
    }
}

/// Reads from a packet or a map's value, as it lies in memory.
///
/// # Safety
///
/// `size_of::<T>()` bytes from `at` on are there, and make a `T` whatever they are. They need not be
/// aligned: the kernel offers this target only where unaligned access is one instruction, and a read
/// byte by byte would cost more than the rest of the program.
#[inline(always)]
pub(crate) unsafe fn load<T: Copy>(at: usize) -> T {
    // SAFETY: the caller's promise.
    unsafe { *(at as *const T) }
}

/// Writes into a packet.
///
/// # Safety
///
/// As for [`load`].
#[inline(always)]
pub(crate) unsafe fn store<T: Copy>(at: usize, value: T) {
    // SAFETY: the caller's promise.
    unsafe { *(at as *mut T) = value }
}
