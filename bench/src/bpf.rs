//! bpf(2) by hand: maps, XDP programs given as instructions, test runs. Enough for the bench's own
//! programs.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use towpath_ebpf_common::route::{NextHop, Route, RouteKey, Settings};

use crate::assembler::Instruction;

const MAP_CREATE: i32 = 0;
const MAP_UPDATE_ELEM: i32 = 2;
const PROG_LOAD: i32 = 5;
const PROG_TEST_RUN: i32 = 10;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const LINK_CREATE: i32 = 28;
const MAP_TYPE_HASH: u32 = 1;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_DEVICES: u32 = 14;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
const MMAPABLE: u32 = 1 << 10;
const DRIVER_MODE: u32 = 1 << 2;
const LIVE_FRAMES: u32 = 1 << 1;
/// A tested program may lengthen its frame by this.
const TEST_HEADROOM: usize = 256;

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

#[repr(C)]
struct MapElement {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    verdict: u32,
    data_in_bytes: u32,
    data_out_bytes: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration_ns: u32,
    context_in_bytes: u32,
    context_out_bytes: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    padding: u32,
}

#[repr(C)]
struct ObjectInfo {
    fd: u32,
    info_bytes: u32,
    info: u64,
}

/// The beginning of what the kernel tells of a program.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    program_type: u32,
    id: u32,
    tag: [u8; 8],
    compiled_bytes: u32,
    rewritten_bytes: u32,
}

fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<RawFd> {
    let size = size_of::<T>();
    // SAFETY: the attributes live through the call and have the size given; pointers in them come from
    // live borrows of the callers below.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as RawFd)
}

fn bpf_object<T>(command: i32, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the commands given here return a new descriptor that belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
        let mut attributes = MapCreate {
            map_type: MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: (count * 8) as u32,
            max_entries: 1,
            map_flags: MMAPABLE,
        };
        let fd = bpf_object(MAP_CREATE, &mut attributes)?;
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

impl AsFd for SharedValue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SharedValue {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; no borrow of the words outlives `self`.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.count * 8) };
    }
}

/// A hash map of fixed size, filled by the bench and read by a program.
pub struct Table {
    fd: OwnedFd,
    key_bytes: usize,
    value_bytes: usize,
}

impl Table {
    /// An empty map.
    pub fn new(key_bytes: usize, value_bytes: usize, capacity: u32) -> io::Result<Self> {
        let mut attributes = MapCreate {
            map_type: MAP_TYPE_HASH,
            key_size: key_bytes as u32,
            value_size: value_bytes as u32,
            max_entries: capacity,
            map_flags: 0,
        };
        Ok(Self {
            fd: bpf_object(MAP_CREATE, &mut attributes)?,
            key_bytes,
            value_bytes,
        })
    }

    /// Adds an entry, or replaces it.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert!(
            (key.len(), value.len()) == (self.key_bytes, self.value_bytes),
            "entries have the size the map was made for"
        );
        update(&self.fd, key, value)
    }
}

/// Sets an entry of a map. Key and value have the lengths that the map was made for.
pub fn update(map: impl AsFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attributes = MapElement {
        map: map.as_fd().as_raw_fd() as u32,
        padding: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    bpf(MAP_UPDATE_ELEM, &mut attributes).map(drop)
}

/// Interfaces that a program redirects to, of any namespace.
pub struct DeviceMap(OwnedFd);

impl DeviceMap {
    /// A map without interfaces.
    pub fn new(capacity: u32) -> io::Result<Self> {
        let mut attributes = MapCreate {
            map_type: MAP_TYPE_DEVICES,
            key_size: 4,
            value_size: 4,
            max_entries: capacity,
            map_flags: 0,
        };
        bpf_object(MAP_CREATE, &mut attributes).map(Self)
    }

    /// Puts an interface of the caller's namespace into a place of the map.
    pub fn set(&self, place: u32, interface: u32) -> io::Result<()> {
        update(&self.0, &place.to_ne_bytes(), &interface.to_ne_bytes())
    }
}

impl AsFd for DeviceMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Table {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a test run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tested {
    /// The program's verdict, of its last run.
    pub verdict: i32,
    /// The frame it left behind.
    pub frame: Vec<u8>,
    /// Nanoseconds per run, the kernel's own loop included.
    pub duration_ns: u32,
}

/// Values whose bytes are all there, as maps hold them.
///
/// # Safety
///
/// The type has no padding.
pub unsafe trait Plain: Copy {}

// SAFETY: `ebpf/common` says so of its structures: their bytes are their value.
unsafe impl Plain for RouteKey {}
// SAFETY: as above.
unsafe impl Plain for Route {}
// SAFETY: as above.
unsafe impl Plain for NextHop {}
// SAFETY: as above.
unsafe impl Plain for Settings {}
// SAFETY: integers.
unsafe impl Plain for [u64; 8] {}

/// The bytes of a value.
pub fn bytes<T: Plain>(value: &T) -> &[u8] {
    let start = std::ptr::from_ref(value).cast();
    // SAFETY: the bytes lie within the value, which is borrowed as long, and none of them is padding.
    unsafe { std::slice::from_raw_parts(start, size_of::<T>()) }
}

/// Bytes of memory that the kernel counts for a map.
pub fn map_bytes(map: impl AsFd) -> io::Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.and_then(|bytes| bytes.trim().parse().ok())
        .ok_or_else(|| io::Error::other(format!("{path} has no memlock")))
}

/// A loaded XDP program.
pub struct XdpProgram(OwnedFd);

impl XdpProgram {
    /// Loads a program. An error contains what the verifier said.
    pub fn load(instructions: &[Instruction]) -> io::Result<Self> {
        let mut log = vec![0_u8; 64 * 1024];
        let mut attributes = ProgramLoad {
            program_type: PROG_TYPE_XDP,
            instruction_count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 1,
            log_size: log.len() as u32,
            log_buffer: log.as_mut_ptr() as u64,
        };
        let program = bpf_object(PROG_LOAD, &mut attributes).map_err(|error| {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(0);
            io::Error::new(
                error.kind(),
                format!("{error}: {}", String::from_utf8_lossy(&log[..end])),
            )
        })?;
        Ok(Self(program))
    }

    /// Attaches it, in the driver, to an interface of the caller's namespace.
    pub fn attach(&self, interface: u32) -> io::Result<XdpLink> {
        let mut attributes = LinkCreate {
            program: self.0.as_raw_fd() as u32,
            target_interface: interface,
            attach_type: ATTACH_TYPE_XDP,
            flags: DRIVER_MODE,
        };
        Ok(XdpLink {
            _link: bpf_object(LINK_CREATE, &mut attributes)?,
        })
    }

    /// Runs it on a frame, `repeat` times. Each run after the first gets what the one before it left.
    pub fn test(&self, frame: &[u8], repeat: u32) -> io::Result<Tested> {
        let mut output = vec![0_u8; frame.len() + TEST_HEADROOM];
        let mut attributes = TestRun {
            program: self.0.as_raw_fd() as u32,
            data_in_bytes: frame.len() as u32,
            data_out_bytes: output.len() as u32,
            data_in: frame.as_ptr() as u64,
            data_out: output.as_mut_ptr() as u64,
            repeat,
            ..TestRun::default()
        };
        bpf(PROG_TEST_RUN, &mut attributes)?;
        output.truncate(attributes.data_out_bytes as usize);
        Ok(Tested {
            verdict: attributes.verdict as i32,
            frame: output,
            duration_ns: attributes.duration_ns,
        })
    }
}

impl From<OwnedFd> for XdpProgram {
    /// A program that somebody else loaded.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl XdpProgram {
    /// Its instructions, as the verifier left them.
    pub fn instructions(&self) -> io::Result<u32> {
        let mut info = ProgramInfo::default();
        let mut attributes = ObjectInfo {
            fd: self.0.as_raw_fd() as u32,
            info_bytes: size_of::<ProgramInfo>() as u32,
            info: std::ptr::from_mut(&mut info) as u64,
        };
        bpf(OBJ_GET_INFO_BY_FD, &mut attributes)?;
        Ok(info.rewritten_bytes / size_of::<Instruction>() as u32)
    }

    /// Runs it on frames that are really sent where it redirects them, until a signal arrives.
    pub fn run_live(&self, frame: &[u8]) -> io::Result<()> {
        let mut attributes = TestRun {
            program: self.0.as_raw_fd() as u32,
            data_in_bytes: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            repeat: i32::MAX as u32,
            flags: LIVE_FRAMES,
            ..TestRun::default()
        };
        match bpf(PROG_TEST_RUN, &mut attributes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            result => result.map(drop),
        }
    }
}

/// A program is attached to an interface until this is dropped.
pub struct XdpLink {
    _link: OwnedFd,
}
