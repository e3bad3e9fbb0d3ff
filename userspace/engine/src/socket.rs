//! Makes and sets up sockets.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use socket2::{Domain, Protocol, Type};

use crate::OpenError;
use crate::address::Name;

/// Opens a listening socket. One that does not join others has to be the first at its address; when
/// it allows sharing only then, those that join it are a group of this process in a known order.
pub(crate) fn open_listener(
    address: SocketAddr,
    joins: bool,
    receive_bytes: usize,
    dont_fragment: bool,
) -> io::Result<socket2::Socket> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = socket2::Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if joins {
        socket.set_reuse_port(true)?;
    }
    let fd = socket.as_raw_fd();
    tell_traffic_class(fd, address.is_ipv6())?;
    match address {
        SocketAddr::V4(_) => set_dont_fragment(fd, dont_fragment)?,
        SocketAddr::V6(_) if dont_fragment => set_int(
            fd,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_PROBE,
        )?,
        SocketAddr::V6(_) => {}
    }
    if address.ip().is_unspecified() {
        // What arrives tells the address it was sent to, and the answer leaves from there.
        match address {
            SocketAddr::V4(_) => set_int(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?,
            SocketAddr::V6(_) => set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?,
        }
    }
    set_buffer(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, receive_bytes);
    set_buffer(
        fd,
        libc::SO_SNDBUFFORCE,
        libc::SO_SNDBUF,
        LISTENER_SEND_BYTES,
    );
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Everything that goes to clients leaves through a listening socket, so it may hold more than the
/// system's default.
const LISTENER_SEND_BYTES: usize = 4 << 20;

/// Opens the socket of a relayed port with as few system calls as there can be.
pub(crate) fn open_relayed(local: SocketAddr, receive_bytes: usize) -> Result<OwnedFd, OpenError> {
    let family = if local.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is handed over.
    let fd = unsafe { libc::socket(family, kind, 0) };
    if fd < 0 {
        return Err(open_error(local, last_errno()));
    }
    // SAFETY: the call above made the descriptor and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    if receive_bytes > 0 {
        set_buffer(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, receive_bytes);
    }
    let prepared = tell_traffic_class(fd, local.is_ipv6())
        .and_then(|()| tell_icmp_errors(fd, local.is_ipv6(), true));
    let prepared = prepared.and_then(|()| match local {
        SocketAddr::V4(_) => set_dont_fragment(fd, false),
        SocketAddr::V6(_) => Ok(()),
    });
    if let Err(error) = prepared {
        return Err(open_error(local, error.raw_os_error().unwrap_or(0)));
    }
    let name = Name::new(local);
    // SAFETY: `name` holds `len` bytes of a socket address and outlives the call.
    let bound = unsafe { libc::bind(fd, name.as_ptr().cast(), name.len()) };
    if bound < 0 {
        return Err(open_error(local, last_errno()));
    }
    Ok(socket)
}

fn open_error(local: SocketAddr, errno: i32) -> OpenError {
    match errno {
        libc::EADDRINUSE => OpenError::InUse { local },
        libc::EMFILE | libc::ENFILE => OpenError::NoDescriptors { local },
        _ => OpenError::Other { local, errno },
    }
}

/// Lets the kernel tell the traffic class of what arrives.
fn tell_traffic_class(fd: RawFd, is_v6: bool) -> io::Result<()> {
    match is_v6 {
        true => set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1),
        false => set_int(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1),
    }
}

/// Switches whether the kernel keeps ICMP errors about what left by a socket. What it kept is dropped
/// when this is switched off.
pub(crate) fn tell_icmp_errors(fd: RawFd, is_v6: bool, on: bool) -> io::Result<()> {
    match is_v6 {
        true => set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, i32::from(on)),
        false => set_int(fd, libc::IPPROTO_IP, libc::IP_RECVERR, i32::from(on)),
    }
}

/// Switches the DF bit of what leaves an IPv4 socket from now on.
///
/// Without it, what is too long is fragmented, here or by a router. With it, what is longer than the
/// interface carries is refused, and what is longer than the path carries is lost there. Both pay no
/// heed to the kernel's memory of paths, which anybody may change by forged ICMP errors.
pub(crate) fn set_dont_fragment(fd: RawFd, on: bool) -> io::Result<()> {
    let mode = match on {
        true => libc::IP_PMTUDISC_PROBE,
        false => libc::IP_PMTUDISC_OMIT,
    };
    set_int(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, mode)
}

/// Switches UDP GRO of a socket.
pub(crate) fn set_gro(fd: RawFd, on: bool) -> io::Result<()> {
    set_int(fd, libc::SOL_UDP, libc::UDP_GRO, i32::from(on))
}

/// Takes the error that is noted in a socket, if there is one.
pub(crate) fn take_error(fd: RawFd) {
    let mut value: i32 = 0;
    let mut bytes = std::mem::size_of::<i32>() as libc::socklen_t;
    let value = (&raw mut value).cast();
    // SAFETY: the pointers are to an integer and its length, both of which outlive the call. Its
    // failure would leave the error where it is.
    let _ =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, value, &raw mut bytes) };
}

/// Whether a datagram waits in a socket.
pub(crate) fn is_readable(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the pointer is to one entry that outlives the call; it does not wait.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready != 0
}

/// Sets a buffer's size, beyond the system's limit where that is allowed. A smaller buffer than
/// asked for is no failure: the kernel counts what it drops.
fn set_buffer(fd: RawFd, forced: i32, limited: i32, bytes: usize) {
    // The kernel doubles what it is given, for its own bookkeeping.
    let value = i32::try_from(bytes / 2).unwrap_or(i32::MAX / 2);
    if set_int(fd, libc::SOL_SOCKET, forced, value).is_err() {
        let _ = set_int(fd, libc::SOL_SOCKET, limited, value);
    }
}

/// Bytes of kernel memory that may wait in a socket; 0 where the kernel does not say.
pub(crate) fn receive_buffer(fd: RawFd) -> usize {
    let mut value: i32 = 0;
    let mut bytes = std::mem::size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointers are to an integer and its length, both of which outlive the call.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            (&raw mut value).cast(),
            &raw mut bytes,
        )
    };
    if result < 0 {
        return 0;
    }
    usize::try_from(value).unwrap_or(0)
}

/// Sets how many bytes of kernel memory may wait in a socket.
pub(crate) fn set_receive_buffer(fd: RawFd, bytes: usize) {
    set_buffer(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, bytes);
}

/// Sets an integer option.
pub(crate) fn set_int(fd: RawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let bytes = std::mem::size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointer is to an integer of the length given, read before the call returns.
    let result = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), bytes) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The error number of the system call that failed last on this thread.
pub(crate) fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
