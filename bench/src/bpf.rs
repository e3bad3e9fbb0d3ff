//! bpf(2) by hand: an array map mapped into memory and an XDP program given as instructions. Enough for
//! the sinks, and no eBPF toolchain is needed to build the bench.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

const MAP_CREATE: i32 = 0;
const PROG_LOAD: i32 = 5;
const LINK_CREATE: i32 = 28;
const MAP_TYPE_ARRAY: u32 = 2;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
const MMAPABLE: u32 = 1 << 10;
const DRIVER_MODE: u32 = 1 << 2;

/// Helper number of `bpf_ktime_get_ns`.
pub const KTIME_GET_NS: i32 = 5;

/// One instruction.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const _: () = assert!(
    size_of::<Instruction>() == 8,
    "the kernel's instruction has eight bytes"
);

impl Instruction {
    const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        Self {
            code,
            registers: source << 4 | destination,
            offset,
            immediate,
        }
    }

    /// `destination = immediate`
    pub const fn set(destination: u8, immediate: i32) -> Self {
        Self::new(0xb7, destination, 0, 0, immediate)
    }

    /// `destination = source`
    pub const fn copy(destination: u8, source: u8) -> Self {
        Self::new(0xbf, destination, source, 0, 0)
    }

    /// `destination += immediate`
    pub const fn add(destination: u8, immediate: i32) -> Self {
        Self::new(0x07, destination, 0, 0, immediate)
    }

    /// `destination += source`
    pub const fn add_register(destination: u8, source: u8) -> Self {
        Self::new(0x0f, destination, source, 0, 0)
    }

    /// `destination -= source`
    pub const fn subtract_register(destination: u8, source: u8) -> Self {
        Self::new(0x1f, destination, source, 0, 0)
    }

    /// `destination <<= immediate`
    pub const fn shift_left(destination: u8, immediate: i32) -> Self {
        Self::new(0x67, destination, 0, 0, immediate)
    }

    /// `destination = *(u32 *)(source + offset)`
    pub const fn load_u32(destination: u8, source: u8, offset: i16) -> Self {
        Self::new(0x61, destination, source, offset, 0)
    }

    /// `destination = *(u64 *)(source + offset)`
    pub const fn load_u64(destination: u8, source: u8, offset: i16) -> Self {
        Self::new(0x79, destination, source, offset, 0)
    }

    /// `*(u64 *)(destination + offset) = source`
    pub const fn store_u64(destination: u8, offset: i16, source: u8) -> Self {
        Self::new(0x7b, destination, source, offset, 0)
    }

    /// Skips `offset` instructions where `left > right`.
    pub const fn jump_if_greater(left: u8, right: u8, offset: i16) -> Self {
        Self::new(0x2d, left, right, offset, 0)
    }

    /// Skips `offset` instructions where `left == immediate`.
    pub const fn jump_if_equal(left: u8, immediate: i32, offset: i16) -> Self {
        Self::new(0x15, left, 0, offset, immediate)
    }

    /// Skips `offset` instructions where `left >= immediate`.
    pub const fn jump_if_at_least(left: u8, immediate: i32, offset: i16) -> Self {
        Self::new(0x35, left, 0, offset, immediate)
    }

    /// Skips `offset` instructions where the low half of `left` is not `immediate`.
    pub const fn jump_if_low_not_equal(left: u8, immediate: i32, offset: i16) -> Self {
        Self::new(0x56, left, 0, offset, immediate)
    }

    /// Calls a helper.
    pub const fn call(helper: i32) -> Self {
        Self::new(0x85, 0, 0, 0, helper)
    }

    /// Ends the program with the verdict in register 0.
    pub const fn exit() -> Self {
        Self::new(0x95, 0, 0, 0, 0)
    }

    /// `destination =` address of the only value of `map`. Two instructions long.
    pub fn map_value(destination: u8, map: &SharedValue) -> [Self; 2] {
        const PSEUDO_MAP_VALUE: u8 = 2;
        [
            Self::new(0x18, destination, PSEUDO_MAP_VALUE, 0, map.fd.as_raw_fd()),
            Self::new(0, 0, 0, 0, 0),
        ]
    }
}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target_interface: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<T>(command: i32, attributes: &T) -> io::Result<OwnedFd> {
    let size = size_of::<T>();
    // SAFETY: the attributes live through the call and have the size given; pointers in them come from
    // live borrows of the callers below.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all three commands return a new descriptor that belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// An array of 64-bit words that a program writes and the bench reads.
pub struct SharedValue {
    fd: OwnedFd,
    words: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the memory is only accessed through atomics and stays mapped as long as the value lives.
unsafe impl Send for SharedValue {}
// SAFETY: as above.
unsafe impl Sync for SharedValue {}

impl SharedValue {
    /// A map with one value of `count` words, all zero.
    pub fn new(count: usize) -> io::Result<Self> {
        let attributes = MapCreate {
            map_type: MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: (count * 8) as u32,
            max_entries: 1,
            map_flags: MMAPABLE,
        };
        let fd = bpf(MAP_CREATE, &attributes)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let null = std::ptr::null_mut();
        // SAFETY: asks for a new mapping anywhere; touches no existing memory.
        let memory = unsafe {
            libc::mmap(
                null,
                count * 8,
                protection,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(memory.cast()).expect("a successful mapping is not at null");
        Ok(Self { fd, words, count })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has `count` words, is aligned to a page, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.count) }
    }

    /// Sets all words to zero.
    pub fn clear(&self) {
        for word in self.words() {
            word.store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for SharedValue {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; no borrow of the words outlives `self`.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.count * 8) };
    }
}

/// A loaded XDP program, attached to an interface until dropped.
pub struct XdpLink {
    _link: OwnedFd,
}

impl XdpLink {
    /// Loads a program and attaches it, in the driver, to an interface of the caller's namespace.
    pub fn attach(instructions: &[Instruction], interface: u32) -> io::Result<Self> {
        let mut log = vec![0_u8; 64 * 1024];
        let attributes = ProgramLoad {
            program_type: PROG_TYPE_XDP,
            instruction_count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 1,
            log_size: log.len() as u32,
            log_buffer: log.as_mut_ptr() as u64,
        };
        let program = bpf(PROG_LOAD, &attributes).map_err(|error| {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(0);
            io::Error::new(
                error.kind(),
                format!("{error}: {}", String::from_utf8_lossy(&log[..end])),
            )
        })?;
        let attributes = LinkCreate {
            program: program.as_raw_fd() as u32,
            target_interface: interface,
            attach_type: ATTACH_TYPE_XDP,
            flags: DRIVER_MODE,
        };
        Ok(Self {
            _link: bpf(LINK_CREATE, &attributes)?,
        })
    }
}
