//! Single elements of maps, read and written by system call, and arrays that are mapped into memory.
//!
//! Maps are shared with the kernel and with other processes, so everything takes `&self`.

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use towpath_ebpf_common::meter::{IdentityRecord, Limits, Meter};
use towpath_ebpf_common::reason::Count;
use towpath_ebpf_common::route::{LocalKey, NextHop, Route, RouteKey, Settings};

/// Values whose bytes are their meaning.
///
/// # Safety
///
/// The type has no padding, and every pattern of bytes is a value of it.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: byte arrays alone, 40 bytes as asserted beside its definition.
unsafe impl Plain for RouteKey {}
// SAFETY: integers and byte arrays, 64 bytes as asserted beside its definition.
unsafe impl Plain for Route {}
// SAFETY: integers and byte arrays, 24 bytes as asserted beside its definition.
unsafe impl Plain for NextHop {}
// SAFETY: byte arrays alone, 20 bytes as asserted beside its definition.
unsafe impl Plain for LocalKey {}
// SAFETY: integers alone, 64 bytes as asserted beside its definition.
unsafe impl Plain for Settings {}
// SAFETY: two u64.
unsafe impl Plain for Count {}
// SAFETY: integers and bytes, 112 bytes as asserted beside its definition.
unsafe impl Plain for IdentityRecord {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}
// SAFETY: bytes.
unsafe impl<const N: usize> Plain for [u8; N] {}

/// `BPF_MAP_LOOKUP_ELEM` and its neighbours in linux/bpf.h.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    Lookup = 1,
    Update = 2,
    Delete = 3,
    NextKey = 4,
}

/// `union bpf_attr` as those commands read it.
#[repr(C)]
struct ElementAttributes {
    map: u32,
    padding: u32,
    key: u64,
    value_or_next_key: u64,
    flags: u64,
}

/// A map, by its file descriptor.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// The map behind `fd`, whose key and value sizes the caller has compared with `K` and `V`.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            types: PhantomData,
        }
    }

    /// Writes an element, there or not.
    pub(crate) fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        self.update(key, value, 0)
    }

    /// Writes an element that is not there yet; `false` where it is.
    pub(crate) fn insert_new(&self, key: &K, value: &V) -> io::Result<bool> {
        const BPF_NOEXIST: u64 = 1;
        match self.update(key, value, BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn update(&self, key: &K, value: &V, flags: u64) -> io::Result<()> {
        let value = std::ptr::from_ref(value).cast_mut().cast();
        self.call(Command::Update, Some(key), value, flags)
    }

    /// Takes an element away; `false` where it is not there.
    pub(crate) fn remove(&self, key: &K) -> io::Result<bool> {
        found(self.call(Command::Delete, Some(key), std::ptr::null_mut(), 0))
    }

    /// Reads an element.
    pub(crate) fn lookup(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        let call = self.call(Command::Lookup, Some(key), value.as_mut_ptr().cast(), 0);
        // SAFETY: where the call succeeds the kernel has written as many bytes as the map's values
        // have, which is the size of V, and V is Plain.
        Ok(found(call)?.then(|| unsafe { value.assume_init() }))
    }

    /// The key after this one, or the first; `None` after the last. A key that has gone is followed
    /// by the first one.
    pub(crate) fn next_key(&self, key: Option<&K>) -> io::Result<Option<K>> {
        let mut next = MaybeUninit::<K>::uninit();
        let call = self.call(Command::NextKey, key, next.as_mut_ptr().cast(), 0);
        // SAFETY: where the call succeeds the kernel has written as many bytes as the map's keys
        // have, which is the size of K, and K is Plain.
        Ok(found(call)?.then(|| unsafe { next.assume_init() }))
    }

    /// The keys there are, at most `limit`.
    pub(crate) fn keys(&self, limit: u32) -> io::Result<Vec<K>> {
        let mut keys = Vec::new();
        for _ in 0..limit {
            let Some(key) = self.next_key(keys.last())? else {
                break;
            };
            keys.push(key);
        }
        Ok(keys)
    }

    /// Takes every element away. At most `limit` of them, so that a writer beside us ends it too.
    pub(crate) fn clear(&self, limit: u32) -> io::Result<u32> {
        for removed in 0..limit {
            let Some(key) = self.next_key(None)? else {
                return Ok(removed);
            };
            self.remove(&key)?;
        }
        Ok(limit)
    }

    /// `out` points to a value or a key, or is null, as the command wants it.
    fn call(
        &self,
        command: Command,
        key: Option<&K>,
        out: *mut c_void,
        flags: u64,
    ) -> io::Result<()> {
        let attributes = ElementAttributes {
            map: self.fd.as_raw_fd().cast_unsigned(),
            padding: 0,
            key: key.map_or(0, |key| std::ptr::from_ref(key).expose_provenance() as u64),
            value_or_next_key: out.expose_provenance() as u64,
            flags,
        };
        // SAFETY: the attributes are as long as said and outlive the call; the kernel reads a key
        // and reads or writes a value of the map's sizes, which are those of K and V; `out` points
        // to one of them for as long as the call lasts.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command as libc::c_long,
                std::ptr::from_ref(&attributes),
                size_of::<ElementAttributes>() as libc::c_long,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl<V: Plain> Table<u32, PerCpu<V>> {
    /// Sums what all CPUs have of element `index`.
    pub(crate) fn per_cpu(&self, index: u32, cpus: usize) -> io::Result<Vec<V>> {
        const {
            assert!(size_of::<V>().is_multiple_of(8), "the kernel pads to 8");
        }
        let mut values = Vec::<V>::with_capacity(cpus);
        let out = values.as_mut_ptr().cast();
        self.call(Command::Lookup, Some(&index), out, 0)?;
        // SAFETY: the kernel has written one value for each possible CPU, V is Plain, and there is
        // room for as many.
        unsafe { values.set_len(cpus) };
        Ok(values)
    }
}

/// A value that every CPU has its own of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PerCpu<V>(PhantomData<V>);

// SAFETY: it has no bytes, and is never read as a value.
unsafe impl<V: Plain> Plain for PerCpu<V> {}

/// An element that is not there is no error.
fn found(call: io::Result<()>) -> io::Result<bool> {
    match call {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Values that may change under a shared reference, from other processes and the kernel too.
///
/// # Safety
///
/// The type consists of atomics alone, without padding, and every pattern of bytes is a value of it.
pub(crate) unsafe trait Shared: Sync {}

// SAFETY: eight words, 64 bytes as asserted beside its definition.
unsafe impl Shared for Limits<AtomicU64> {}
// SAFETY: two directions of eight words, 128 bytes as asserted beside its definition.
unsafe impl Shared for Meter<AtomicU64> {}

/// An mmapable array map, mapped: a slice of it.
#[derive(Debug)]
pub(crate) struct Mapped<T> {
    base: NonNull<T>,
    length: usize,
    bytes: usize,
    /// The mapping keeps the map alive; so does this, and it says whose it is.
    _fd: OwnedFd,
}

// SAFETY: the mapping stays where it is until it is dropped, and may be unmapped by any thread.
unsafe impl<T: Shared> Send for Mapped<T> {}
// SAFETY: it gives `&T` alone, and T is Sync.
unsafe impl<T: Shared> Sync for Mapped<T> {}

impl<T: Shared> Mapped<T> {
    /// Maps the first `length` values of an array whose value size the caller has compared with `T`.
    pub(crate) fn new(fd: OwnedFd, length: usize) -> io::Result<Self> {
        const {
            assert!(
                size_of::<T>().is_multiple_of(8),
                "the kernel pads values to 8 bytes"
            );
            assert!(align_of::<T>() <= 4096, "mappings begin at a page");
        }
        let bytes = length * size_of::<T>();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address the kernel chooses replaces nothing.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }?;
        Ok(Self {
            base: NonNull::new(base.cast()).expect("the kernel maps nothing at address 0"),
            length,
            bytes,
            _fd: fd,
        })
    }
}

impl<T> Deref for Mapped<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is that long, aligned to a page, lives as long as `self`, and holds
        // values of T, which is Shared: others write it by atomic operations only.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.length) }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
