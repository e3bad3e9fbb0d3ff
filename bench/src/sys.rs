//! The few system calls the bench makes itself, as safe functions. Nothing here knows what is measured.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_signal(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Makes SIGINT and SIGTERM set a flag instead of ending the process, so that guards get to clean up.
pub fn catch_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let handler: extern "C" fn(libc::c_int) = note_signal;
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, handler as *const () as libc::sighandler_t) };
    }
}

extern "C" fn ignore_signal(_: libc::c_int) {}

/// Number of the calling thread, which [`wake`] may end waits of from now on.
pub fn own_thread() -> i32 {
    let handler: extern "C" fn(libc::c_int) = ignore_signal;
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGALRM, handler as *const () as libc::sighandler_t) };
    // SAFETY: takes nothing.
    unsafe { libc::gettid() }
}

/// Ends the system call that a thread of this process is in.
pub fn wake(tid: i32) -> io::Result<()> {
    let process = std::process::id() as i32;
    // SAFETY: takes plain integers.
    check(unsafe { libc::tgkill(process, tid, libc::SIGALRM) }).map(drop)
}

/// Fails once a signal asked the bench to stop.
pub fn check_interrupted() -> io::Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err(io::Error::new(
            io::ErrorKind::Interrupted,
            "stopped by a signal",
        ));
    }
    Ok(())
}

/// Nanoseconds of CLOCK_MONOTONIC, the clock that `bpf_ktime_get_ns` reads.
pub fn now_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// CPU time of this process so far, all its threads, in nanoseconds.
pub fn process_cpu_ns() -> io::Result<u64> {
    // SAFETY: all zero is a valid value of this C structure.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: `usage` is a valid place for the result.
    check(unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) })?;
    let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    Ok(ns(usage.ru_utime) + ns(usage.ru_stime))
}

/// Bytes of the C library's heap that are in use, in all its arenas and in mappings of their own.
///
/// Blocks that threads keep for themselves count as used, unless glibc.malloc.tcache_count is 0.
pub fn heap_bytes() -> u64 {
    // SAFETY: takes nothing.
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}

/// Asks for the death of this process together with the one that started it.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: takes plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }).map(drop)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn check_long(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Moves the calling thread into a network namespace.
pub fn enter_network_namespace(namespace: &File) -> io::Result<()> {
    // SAFETY: takes a descriptor and flags only.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Pins a thread (0: the caller) to one CPU.
pub fn pin_to_cpu(tid: i32, cpu: usize) -> io::Result<()> {
    // SAFETY: an all-zero set is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `cpu` indexes the fixed-size set; the macro's function checks the bound.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    let size = mem::size_of::<libc::cpu_set_t>();
    // SAFETY: the set lives through the call and has the size given.
    check(unsafe { libc::sched_setaffinity(tid, size, &set) }).map(drop)
}

/// How a thread is scheduled.
#[derive(Clone, Copy, Debug)]
pub enum Scheduling {
    /// SCHED_OTHER with a nice value and, where not 0, a slice in nanoseconds.
    Fair {
        /// From -20 to 19.
        nice: i32,
        /// A short slice lets a thread that wakes up run ahead of those with longer ones.
        slice_ns: u64,
    },
    /// SCHED_FIFO with a priority, not inherited by children.
    Fifo(u32),
}

#[repr(C)]
struct SchedulingAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Sets how a thread (0: the caller) is scheduled.
pub fn schedule(tid: i32, scheduling: Scheduling) -> io::Result<()> {
    const RESET_ON_FORK: u64 = 1;
    let (policy, flags, nice, priority, runtime) = match scheduling {
        Scheduling::Fair { nice, slice_ns } => (libc::SCHED_OTHER, 0, nice, 0, slice_ns),
        Scheduling::Fifo(priority) => (libc::SCHED_FIFO, RESET_ON_FORK, 0, priority, 0),
    };
    let attributes = SchedulingAttributes {
        size: mem::size_of::<SchedulingAttributes>() as u32,
        policy: policy as u32,
        flags,
        nice,
        priority,
        runtime,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the structure has the layout of the kernel's first version and states its size.
    check_long(unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attributes, 0) })
        .map(drop)
}

/// What a server process is before it becomes the server: in a namespace, on a CPU, with a nice value,
/// and gone when the bench is. Only calls that are safe between fork and exec.
pub fn become_server(namespace: RawFd, cpu: usize, nice: i32) -> io::Result<()> {
    // SAFETY: takes plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    // SAFETY: takes a descriptor and flags only.
    check(unsafe { libc::setns(namespace, libc::CLONE_NEWNET) })?;
    // SAFETY: takes nothing. A session of its own is a scheduling group of its own.
    check(unsafe { libc::setsid() })?;
    pin_to_cpu(0, cpu)?;
    schedule(0, Scheduling::Fair { nice, slice_ns: 0 })
}

/// Raises the limit on open descriptors to the hard limit and returns it.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the result.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is valid for reading.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(limit.rlim_cur)
}

/// Index of an interface in the caller's namespace.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: the string is NUL-terminated and lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Makes a raw packet socket on an interface of the caller's namespace. With `protocol` 0 it only sends.
pub fn packet_socket(interface: u32, protocol: u16) -> io::Result<OwnedFd> {
    // SAFETY: takes plain integers. Protocol 0: receives nothing before it is bound.
    let fd =
        check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zero is a valid address of this type.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = interface as i32;
    // SAFETY: the address lives through the call and has the size given.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            mem::size_of::<libc::sockaddr_ll>() as u32,
        )
    })?;
    Ok(socket)
}

/// Sets an integer socket option.
pub fn set_option(socket: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value lives through the call and has the size given.
    check(unsafe {
        libc::setsockopt(
            socket,
            level,
            name,
            (&raw const value).cast(),
            mem::size_of::<libc::c_int>() as u32,
        )
    })
    .map(drop)
}

/// Sends messages; returns how many the kernel took.
///
/// The caller vouches that every header points to live memory: see [`crate::batch`].
pub fn send_messages(socket: RawFd, messages: &mut [libc::mmsghdr]) -> io::Result<usize> {
    let count = messages.len() as u32;
    // SAFETY: the slice has `count` headers; `batch` keeps what they point to alive.
    check(unsafe { libc::sendmmsg(socket, messages.as_mut_ptr(), count, libc::MSG_DONTWAIT) })
        .map(|sent| sent as usize)
}

/// Receives messages that are there; returns how many.
///
/// The caller vouches that every header points to live memory: see [`crate::batch`].
pub fn receive_messages(socket: RawFd, messages: &mut [libc::mmsghdr]) -> io::Result<usize> {
    let count = messages.len() as u32;
    let flags = libc::MSG_DONTWAIT;
    let no_timeout = std::ptr::null_mut();
    // SAFETY: the slice has `count` headers; `batch` keeps what they point to alive.
    match check(unsafe { libc::recvmmsg(socket, messages.as_mut_ptr(), count, flags, no_timeout) })
    {
        Ok(received) => Ok(received as usize),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error),
    }
}

/// Waits until a descriptor can be read, or the time is over; whether it can.
pub fn wait_readable(fd: RawFd, milliseconds: i32) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry is passed and one is announced.
    match check(unsafe { libc::poll(&mut poll, 1, milliseconds) }) {
        Ok(ready) => Ok(ready > 0),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            check_interrupted().map(|()| false)
        }
        Err(error) => Err(error),
    }
}

/// Asks a process of ours to end.
pub fn terminate(pid: u32) -> io::Result<()> {
    // SAFETY: takes plain integers; the pid is that of a child not yet waited for.
    check(unsafe { libc::kill(pid as i32, libc::SIGTERM) }).map(drop)
}

/// An epoll instance that reports readable descriptors by a number of the caller's.
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    /// An instance that reports up to `capacity` descriptors at a time.
    pub fn new(capacity: usize) -> io::Result<Self> {
        // SAFETY: takes flags only.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            fd,
            events: vec![libc::epoll_event { events: 0, u64: 0 }; capacity],
        })
    }

    /// Reports `number` while `fd` is readable.
    pub fn add(&self, fd: RawFd, number: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: number,
        };
        let add = libc::EPOLL_CTL_ADD;
        // SAFETY: the event is valid for reading; both descriptors are open.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), add, fd, &mut event) }).map(drop)
    }

    /// Waits; the numbers of what is readable, in the kernel's order.
    pub fn wait(&mut self) -> io::Result<impl Iterator<Item = u64> + '_> {
        let capacity = self.events.len() as i32;
        // SAFETY: the vector has `capacity` events.
        let ready = match check(unsafe {
            libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), capacity, -1)
        }) {
            Ok(ready) => ready as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(self.events[..ready].iter().map(|event| event.u64))
    }
}
