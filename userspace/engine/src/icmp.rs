//! ICMP errors about what left by relayed ports: from the error queues of their sockets to the
//! machine.
//!
//! The kernel queues such an error, and lets the next call on that socket fail with it, whatever
//! datagram that call is about. So a failed send is tried again, unless it was refused itself.
//!
//! Anybody may send such errors. A socket that has too many of them hears none until the window ends:
//!
//! ```text
//!   calm ── first error ──▶ troubled ── PER_SOCKET looks ──▶ muted
//!     ▲                        │                               │
//!     └──── the window ends ───┴───────────────────────────────┘
//! ```

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::Duration;

use towpath_proto::machine::{IcmpError, Socket};
use towpath_proto::{Machine, Timestamp};

use crate::Host;
use crate::address::{NAME_BYTES, next_cmsg, parse_name};
use crate::counters::Counter;
use crate::shard::Shard;
use crate::socket::{take_error, tell_icmp_errors};
use crate::sockets::{Slot, State};

/// Looks at one socket's error queue in a window, at most.
const PER_SOCKET: u8 = 64;

/// Looks at one socket's error queue at a time.
const AT_ONCE: u8 = 16;

/// Tries of a send on a socket with errors of the network: of several datagrams that leave together,
/// every second one may fail for the one before it.
const TRIES: u8 = 8;

/// How long errors are counted, and too many of them kept away.
const WINDOW: Duration = Duration::from_secs(1);

/// Sockets that are calm again in one round.
const CALMED: usize = 1024;

/// Room for the control data of an error: the error, its sender's address, and what is told of every
/// datagram.
const CONTROL_BYTES: usize = 256;

/// What a socket went through in this window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Trouble {
    looks: u8,
    /// There was an error that the network sent.
    heard: bool,
    muted: bool,
}

impl Trouble {
    /// Whether a send may fail because of an earlier one.
    pub(crate) fn is_any(self) -> bool {
        self.looks > 0
    }
}

/// The troubled sockets of a shard.
#[derive(Debug)]
pub(crate) struct Troubles {
    /// When the window ends; means nothing while there are none.
    ends: Timestamp,
    /// Slots and their generations.
    slots: Vec<(u32, u16)>,
}

impl Troubles {
    pub(crate) fn new() -> Self {
        Self {
            ends: Timestamp::ZERO,
            slots: Vec::new(),
        }
    }

    /// When the window ends; `None` where nobody waits for that.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        (!self.slots.is_empty()).then_some(self.ends)
    }
}

/// What was in an error queue.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// Errors that the network sent.
    icmp: u32,
    /// Datagrams that this host refused to send.
    local: u32,
}

impl<M: Machine, H: Host<M>> Shard<M, H> {
    /// Whether a failed send is tried once more: the failure may be an earlier datagram's.
    #[cold]
    pub(crate) fn tries_again(&mut self, message: u16, errno: i32) -> bool {
        let (socket, _) = self.outbox.way_out(message);
        let slot = self.sockets.slot(socket);
        let Some(slot) = slot.filter(|slot| is_icmp(errno) && slot.is_relayed()) else {
            return false;
        };
        let found = if hears_errors(slot) {
            self.read_queue(socket)
        } else {
            Found::default()
        };
        let slot = self.sockets.slot(socket);
        let was_heard = slot.is_some_and(|slot| slot.trouble.heard && slot.state == State::Open);
        let was_refused = found.icmp == 0 && found.local > 0;
        let most = if was_heard { TRIES } else { 1 };
        let again = !was_refused && self.outbox.try_again(message, most);
        self.counters
            .add(Counter::SendsTriedAgain, u64::from(again));
        again
    }

    /// Whether a failed receive was an ICMP error; it is with the machine then.
    pub(crate) fn takes_error(&mut self, socket: u32, errno: i32) -> bool {
        let is_error = is_icmp(errno) && self.sockets.slot(socket).is_some_and(hears_errors);
        if is_error {
            self.read_queue(socket);
        }
        is_error
    }

    /// Hands the errors that wait in a relayed socket to the machine.
    pub(crate) fn read_errors(&mut self, socket: u32) {
        if self.sockets.slot(socket).is_some_and(hears_errors) {
            self.read_queue(socket);
        }
    }

    /// Lets sockets whose window has ended hear errors again.
    pub(crate) fn calm(&mut self) {
        if self.troubles.slots.is_empty() || self.now < self.troubles.ends {
            return;
        }
        for _ in 0..CALMED {
            let Some((index, generation)) = self.troubles.slots.pop() else {
                return;
            };
            let slot = self.sockets.slot_mut(index);
            let slot = slot.filter(|slot| slot.generation == generation);
            let Some(slot) = slot.filter(|slot| slot.state == State::Open) else {
                continue;
            };
            let was = std::mem::take(&mut slot.trouble);
            if was.muted && tell_icmp_errors(slot.fd(), slot.is_v6(), true).is_err() {
                self.counters.add(Counter::ReceiveErrors, 1);
            }
        }
    }

    fn read_queue(&mut self, index: u32) -> Found {
        let mut found = Found::default();
        for _ in 0..AT_ONCE {
            let Some((fd, socket)) = self.look(index) else {
                break;
            };
            let Some(queued) = read(fd) else {
                if found.icmp + found.local == 0 {
                    // The queue had no room for the error that is noted in the socket.
                    take_error(fd);
                }
                break;
            };
            match queued.map(|queued| queued.origin) {
                Some(libc::SO_EE_ORIGIN_LOCAL) => found.local += 1,
                Some(_) | None => found.icmp += 1,
            }
            if let Some(error) = queued.and_then(|queued| queued.about(socket)) {
                self.counters.add(Counter::IcmpErrors, 1);
                self.machine.handle_icmp(self.now, error);
            }
        }
        if let Some(slot) = self.sockets.slot_mut(index) {
            slot.trouble.heard |= found.icmp > 0;
        }
        found
    }

    /// Counts a look at a socket's queue; `None` where that was one too many.
    fn look(&mut self, index: u32) -> Option<(RawFd, Socket)> {
        let slot = self.sockets.slot_mut(index)?;
        if !slot.trouble.is_any() {
            if self.troubles.slots.is_empty() {
                self.troubles.ends = self.now + WINDOW;
            }
            self.troubles.slots.push((index, slot.generation));
        }
        if slot.trouble.looks < PER_SOCKET {
            slot.trouble.looks += 1;
            return Some((slot.fd(), slot.owner()));
        }
        slot.trouble.muted = true;
        self.counters.add(Counter::IcmpMuted, 1);
        if tell_icmp_errors(slot.fd(), slot.is_v6(), false).is_err() {
            self.counters.add(Counter::ReceiveErrors, 1);
        }
        take_error(slot.fd());
        None
    }
}

/// Whether a slot's socket has errors that nobody has looked at too often.
fn hears_errors(slot: &Slot) -> bool {
    slot.state == State::Open && slot.is_relayed() && !slot.trouble.muted
}

/// Whether the kernel gives an ICMP error this number.
fn is_icmp(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNREFUSED
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EMSGSIZE
            | libc::EPROTO
            | libc::EACCES
            | libc::ENOPROTOOPT
            | libc::EOPNOTSUPP
            | libc::EHOSTDOWN
            | libc::ENONET
    )
}

/// An entry of an error queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Queued {
    destination: SocketAddr,
    errno: i32,
    origin: u8,
    icmp_type: u8,
    code: u8,
    info: u32,
}

impl Queued {
    /// The entry as an ICMP error; `None` where it is about something else.
    ///
    /// What this host refused for its length is what the first router would have said.
    fn about(self, socket: Socket) -> Option<IcmpError> {
        let (icmp_type, code) = match self.origin {
            libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => (self.icmp_type, self.code),
            libc::SO_EE_ORIGIN_LOCAL if self.errno == libc::EMSGSIZE => {
                if self.destination.is_ipv4() {
                    (3, 4)
                } else {
                    (2, 0)
                }
            }
            _ => return None,
        };
        let is_too_big = self.errno == libc::EMSGSIZE;
        Some(IcmpError {
            socket,
            destination: self.destination,
            icmp_type,
            code,
            mtu: if is_too_big { self.info } else { 0 },
        })
    }

    /// Reads what the kernel wrote: the name of the datagram's destination, and control data.
    fn parse(name: &[u8], mut control: &[u8]) -> Option<Self> {
        let destination = parse_name(name)?;
        while let Some((level, kind, value, rest)) = next_cmsg(control) {
            control = rest;
            let is_error = matches!(
                (level, kind),
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            );
            // sock_extended_err: error number, origin, type, code, padding, information, data.
            if let Some(&[e0, e1, e2, e3, origin, icmp_type, code, _, i0, i1, i2, i3]) =
                value.first_chunk::<12>().filter(|_| is_error)
            {
                return Some(Self {
                    destination,
                    errno: i32::from_ne_bytes([e0, e1, e2, e3]),
                    origin,
                    icmp_type,
                    code,
                    info: u32::from_ne_bytes([i0, i1, i2, i3]),
                });
            }
        }
        None
    }
}

#[repr(C, align(8))]
struct ControlRoom([u8; CONTROL_BYTES]);

/// Takes the oldest entry of a socket's error queue: `None` where there is none, and in it `None` where
/// it makes no sense.
fn read(fd: RawFd) -> Option<Option<Queued>> {
    let mut name = [0; NAME_BYTES];
    let mut control = ControlRoom([0; CONTROL_BYTES]);
    let mut header = libc::msghdr {
        msg_name: name.as_mut_ptr().cast(),
        msg_namelen: NAME_BYTES as u32,
        // The datagram itself is not wanted.
        msg_iov: std::ptr::null_mut(),
        msg_iovlen: 0,
        msg_control: control.0.as_mut_ptr().cast(),
        msg_controllen: CONTROL_BYTES,
        msg_flags: 0,
    };
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the header and what it points to outlive the call.
    let result = unsafe { libc::recvmsg(fd, &raw mut header, flags) };
    if result < 0 {
        return None;
    }
    let name = &name[..(header.msg_namelen as usize).min(NAME_BYTES)];
    let written = &control.0[..header.msg_controllen.min(CONTROL_BYTES)];
    Some(Queued::parse(name, written))
}

#[cfg(test)]
mod tests {
    use towpath_proto::machine::PortId;

    use super::*;
    use crate::address::Name;

    fn control(level: i32, kind: i32, origin: u8, errno: i32, info: u32) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.extend(errno.to_ne_bytes());
        bytes.extend([origin, 3, 4, 0]);
        bytes.extend(info.to_ne_bytes());
        bytes.extend([0; 20]);
        let len = bytes.len();
        bytes[..8].copy_from_slice(&len.to_ne_bytes());
        bytes[8..12].copy_from_slice(&level.to_ne_bytes());
        bytes[12..16].copy_from_slice(&kind.to_ne_bytes());
        bytes
    }

    fn parsed(origin: u8, errno: i32, destination: &str) -> Option<IcmpError> {
        let name = Name::new(destination.parse().unwrap());
        let control = control(libc::IPPROTO_IP, libc::IP_RECVERR, origin, errno, 1400);
        let queued = Queued::parse(name.bytes(), &control).unwrap();
        queued.about(Socket::Relayed(PortId(7)))
    }

    #[test]
    fn an_entry_of_the_queue_names_the_datagram_and_the_error() {
        let error = parsed(libc::SO_EE_ORIGIN_ICMP, libc::EMSGSIZE, "192.0.2.1:7000");
        let expected = IcmpError {
            socket: Socket::Relayed(PortId(7)),
            destination: "192.0.2.1:7000".parse().unwrap(),
            icmp_type: 3,
            code: 4,
            mtu: 1400,
        };
        assert_eq!(error, Some(expected));
        let error = parsed(
            libc::SO_EE_ORIGIN_ICMP,
            libc::ECONNREFUSED,
            "192.0.2.1:7000",
        );
        assert_eq!(error.map(|error| error.mtu), Some(0));
    }

    #[test]
    fn what_this_host_refused_for_its_length_is_too_big_and_other_refusals_are_nothing() {
        let (local, length) = (libc::SO_EE_ORIGIN_LOCAL, libc::EMSGSIZE);
        let kind = |error: Option<IcmpError>| error.map(|error| (error.icmp_type, error.code));
        assert_eq!(kind(parsed(local, length, "192.0.2.1:0")), Some((3, 4)));
        assert_eq!(kind(parsed(local, length, "[2001:db8::1]:0")), Some((2, 0)));
        assert_eq!(kind(parsed(local, libc::EACCES, "192.0.2.1:0")), None);
        let stamp = libc::SO_EE_ORIGIN_TIMESTAMPING;
        assert_eq!(kind(parsed(stamp, libc::ENOMSG, "192.0.2.1:0")), None);
    }

    #[test]
    fn an_entry_that_is_cut_off_or_of_another_kind_makes_no_sense() {
        let name = Name::new("192.0.2.1:7000".parse().unwrap());
        let whole = control(libc::IPPROTO_IP, libc::IP_RECVERR, 2, libc::EMSGSIZE, 0);
        for cut in 0..whole.len() {
            assert_eq!(Queued::parse(name.bytes(), &whole[..cut]), None);
        }
        let other = control(libc::IPPROTO_IP, libc::IP_TOS, 2, libc::EMSGSIZE, 0);
        assert_eq!(Queued::parse(name.bytes(), &other), None);
        assert_eq!(Queued::parse(&[0; 4], &whole), None);
    }
}
