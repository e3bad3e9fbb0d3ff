//! The epoll driver: the same machines where io_uring is forbidden, with recvmmsg and sendmmsg.
//!
//! Sockets are watched edge-triggered. One that is ready stays in a queue until a receive brings
//! less than it asked for, and every socket gets one receive in turn, so none starves another.

mod receive;
mod send;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use towpath_proto::{Machine, Timestamp};

use self::receive::Inlet;
use self::send::Outlet;
use crate::Host;
use crate::buffers::Class;
use crate::counters::Counter;
use crate::shard::{BURST_MESSAGES, Shard};
use crate::sockets::{Change, State};

/// Events taken from the kernel at once.
const EVENTS: usize = 256;

/// What one round receives before it sends, at most. Bounds the time a datagram waits for others.
const ROUND_RECEIVES: usize = 256;

/// The watch's name for the bell's descriptor; sockets are named by their slots.
const BELL: u64 = u64::MAX;

/// The watch's name for the timer.
const TIMER: u64 = u64::MAX - 1;

/// A shard on epoll.
pub(crate) struct Epoll<M: Machine, H> {
    epoll: OwnedFd,
    timer: OwnedFd,
    shard: Shard<M, H>,
    events: Vec<libc::epoll_event>,
    changes: Vec<Change>,
    ready: VecDeque<u32>,
    /// Slots with errors, as the kernel just said.
    failed: Vec<u32>,
    small: Inlet,
    big: Inlet,
    outlet: Outlet,
    deadline: Option<Timestamp>,
}

impl<M: Machine, H: Host<M>> Epoll<M, H> {
    /// Sets up the descriptor of this thread and starts to receive.
    pub(crate) fn new(shard: Shard<M, H>) -> io::Result<Self> {
        // SAFETY: no memory is handed over.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: no memory is handed over.
        let timer = owned(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })?;
        let mut epoll = Self {
            epoll,
            timer,
            shard,
            events: Vec::with_capacity(EVENTS),
            changes: Vec::new(),
            ready: VecDeque::new(),
            failed: Vec::new(),
            small: Inlet::new(Class::Small),
            big: Inlet::new(Class::Big),
            outlet: Outlet::new(),
            deadline: None,
        };
        epoll.watch(epoll.shard.bell.fd(), BELL, libc::EPOLLIN as u32)?;
        let edge = (libc::EPOLLIN | libc::EPOLLET) as u32;
        epoll.watch(epoll.timer.as_raw_fd(), TIMER, edge)?;
        epoll.follow_changes();
        Ok(epoll)
    }

    /// Runs the shard until it is asked to stop.
    pub(crate) fn run(mut self) {
        while !self.shard.bell.is_stopped() {
            if self.round().is_err() {
                self.shard.counters.add(Counter::WaitErrors, 1);
            }
        }
    }

    fn round(&mut self) -> io::Result<()> {
        self.shard.counters.add(Counter::Rounds, 1);
        self.shard.tick();
        self.receive();
        let mut busy = self.shard.take_mail();
        self.flush();
        busy |= self.shard.run_machine();
        self.follow_changes();
        self.flush();
        busy |= !self.ready.is_empty() || self.is_due();
        if busy {
            return self.wait(false);
        }
        self.arm_timer()?;
        self.shard.bell.sleeper().announce();
        let sleep = self.shard.mail_is_empty();
        if sleep {
            self.shard.counters.add(Counter::Sleeps, 1);
        }
        let result = self.wait(sleep);
        self.shard.bell.sleeper().awake();
        result
    }

    /// Receives from sockets that are ready, each in turn.
    fn receive(&mut self) {
        let mut received = 0;
        while received < ROUND_RECEIVES
            && self.shard.outbox.pending() < BURST_MESSAGES
            && let Some(index) = self.ready.pop_front()
        {
            let Some(filled) = self.receive_from(index) else {
                break;
            };
            received += filled;
        }
    }

    fn flush(&mut self) {
        while self.shard.outbox.has_pending() {
            self.outlet.flush(&mut self.shard);
        }
    }

    fn is_due(&self) -> bool {
        self.shard
            .machine
            .poll_timeout()
            .is_some_and(|deadline| deadline <= self.shard.now)
    }

    /// Asks the kernel what is ready, and sleeps until something is where `sleep` is set.
    fn wait(&mut self, sleep: bool) -> io::Result<()> {
        let timeout = if sleep { -1 } else { 0 };
        let fd = self.epoll.as_raw_fd();
        self.events.clear();
        let room = self.events.as_mut_ptr();
        // SAFETY: the vector has room for as many events as named.
        let count = unsafe { libc::epoll_wait(fd, room, EVENTS as i32, timeout) };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted {
                Ok(())
            } else {
                Err(error)
            };
        }
        // SAFETY: the kernel has written as many events, and `count` is not negative.
        unsafe { self.events.set_len(count as usize) };
        for event in &self.events {
            match event.u64 {
                BELL => self.shard.bell.hush(),
                TIMER => self.deadline = None,
                named => {
                    let (index, generation) = (named as u32, (named >> 32) as u16);
                    let slot = self.shard.sockets.slot_mut(index);
                    let slot = slot.filter(|slot| slot.generation == generation);
                    if slot.is_some() && event.events & libc::EPOLLERR as u32 != 0 {
                        self.failed.push(index);
                    }
                    if let Some(slot) = slot.filter(|slot| !slot.receiving.armed) {
                        slot.receiving.armed = true;
                        self.ready.push_back(index);
                    }
                }
            }
        }
        while let Some(index) = self.failed.pop() {
            self.shard.read_errors(index);
        }
        Ok(())
    }

    /// Watches sockets that were opened; closes those that are closing.
    fn follow_changes(&mut self) {
        if !self.shard.sockets.has_changes() {
            return;
        }
        let mut changes = std::mem::take(&mut self.changes);
        self.shard.sockets.take_changes(&mut changes);
        for &change in &changes {
            match change {
                Change::Opened(index) => self.watch_slot(index),
                Change::Closing(index) => self.shard.sockets.free_if_done(index),
            }
        }
        self.changes = changes;
    }

    fn watch_slot(&mut self, index: u32) {
        let Some(slot) = self.shard.sockets.slot(index) else {
            return;
        };
        if slot.state != State::Open {
            return;
        }
        let name = u64::from(slot.generation) << 32 | u64::from(index);
        if self
            .watch(slot.fd(), name, (libc::EPOLLIN | libc::EPOLLET) as u32)
            .is_err()
        {
            // The port stays open and can send; that it cannot receive must be seen.
            self.shard.counters.add(Counter::ReceiveErrors, 1);
        }
    }

    fn watch(&self, fd: RawFd, name: u64, events: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: name };
        let epoll = self.epoll.as_raw_fd();
        // SAFETY: the pointer is to an event that outlives the call.
        let result = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Makes sure the timer goes off no later than the machine's deadline.
    fn arm_timer(&mut self) -> io::Result<()> {
        let Some(deadline) = self.shard.poll_timeout() else {
            return Ok(());
        };
        if self.deadline.is_some_and(|armed| armed <= deadline) {
            return Ok(());
        }
        // A time of zero would switch the timer off.
        let nanos = deadline.as_nanos().max(1);
        let time = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: (nanos / 1_000_000_000) as i64,
                tv_nsec: (nanos % 1_000_000_000) as i64,
            },
        };
        let fd = self.timer.as_raw_fd();
        let old = std::ptr::null_mut();
        // SAFETY: the new time outlives the call, and a null pointer stands for no old one.
        let result =
            unsafe { libc::timerfd_settime(fd, libc::TFD_TIMER_ABSTIME, &raw const time, old) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        self.deadline = Some(deadline);
        Ok(())
    }
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the caller passes what the kernel has just made, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
