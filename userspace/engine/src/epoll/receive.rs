//! Receives up to a batch of datagrams from one socket with one system call.

use towpath_proto::Machine;

use super::Epoll;
use crate::Host;
use crate::address::{Control, NAME_BYTES, RECEIVE_CONTROL_BYTES, parse_name};
use crate::buffers::{BufferId, Buffers, Class};
use crate::counters::Counter;
use crate::governor::Advice;
use crate::shard::Received;
use crate::socket::last_errno;
use crate::sockets::State;

/// Datagrams asked for with one system call.
const BATCH: usize = 32;

/// Merged datagrams asked for with one system call: each is up to 64 KiB.
const BIG_BATCH: usize = 8;

/// Buffers of one class, set up to receive into.
pub(super) struct Inlet {
    class: Class,
    batch: usize,
    buffers: Vec<BufferId>,
    /// How many of them, from the first on, were filled and belong to others now.
    gone: usize,
    headers: Box<[libc::mmsghdr]>,
    /// Where the headers point to, in boxes that never move.
    iovecs: Box<[libc::iovec]>,
    names: Box<[[u8; NAME_BYTES]]>,
    controls: Box<[ControlRoom]>,
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct ControlRoom([u8; RECEIVE_CONTROL_BYTES]);

impl Inlet {
    pub(super) fn new(class: Class) -> Self {
        let batch = if class == Class::Big {
            BIG_BATCH
        } else {
            BATCH
        };
        let iovec = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let header = libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: std::ptr::null_mut(),
            msg_iovlen: 1,
            msg_control: std::ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        Self {
            class,
            batch,
            buffers: Vec::with_capacity(batch),
            gone: 0,
            headers: vec![
                libc::mmsghdr {
                    msg_hdr: header,
                    msg_len: 0
                };
                batch
            ]
            .into(),
            iovecs: vec![iovec; batch].into(),
            names: vec![[0; NAME_BYTES]; batch].into(),
            controls: vec![ControlRoom([0; RECEIVE_CONTROL_BYTES]); batch].into(),
        }
    }

    /// Takes buffers for a whole batch where there are that many, and points the headers to them.
    fn fill(&mut self, buffers: &mut Buffers) -> usize {
        while self.gone > 0
            && let Some(id) = buffers.take_released(self.class)
        {
            self.gone -= 1;
            self.buffers[self.gone] = id;
            self.point(self.gone, buffers);
        }
        if self.gone > 0 {
            self.buffers.drain(..self.gone);
            self.gone = 0;
            (0..self.buffers.len()).for_each(|index| self.point(index, buffers));
        }
        while self.buffers.len() < self.batch
            && let Some(id) = buffers.take_released(self.class)
        {
            self.buffers.push(id);
            self.point(self.buffers.len() - 1, buffers);
        }
        self.buffers.len()
    }

    /// Points a header to its buffer, and forgets what the kernel last wrote there.
    fn point(&mut self, index: usize, buffers: &Buffers) {
        self.iovecs[index] = libc::iovec {
            iov_base: buffers.kernel_area(self.buffers[index]).cast(),
            iov_len: Buffers::kernel_bytes(self.class),
        };
        let header = &mut self.headers[index].msg_hdr;
        header.msg_name = self.names[index].as_mut_ptr().cast();
        header.msg_namelen = NAME_BYTES as u32;
        header.msg_iov = &raw mut self.iovecs[index];
        header.msg_control = self.controls[index].0.as_mut_ptr().cast();
        header.msg_controllen = RECEIVE_CONTROL_BYTES;
        header.msg_flags = 0;
    }

    /// What message `index` brought; the reason where it is no use.
    fn parse(&self, index: usize) -> Result<Received, Counter> {
        let message = &self.headers[index];
        let header = &message.msg_hdr;
        if header.msg_flags & libc::MSG_TRUNC != 0 {
            return Err(Counter::DropTruncated);
        }
        if header.msg_flags & libc::MSG_CTRUNC != 0 {
            return Err(Counter::DropMalformedReceive);
        }
        let name = &self.names[index][..(header.msg_namelen as usize).min(NAME_BYTES)];
        let control = &self.controls[index].0;
        let control = Control::parse(&control[..header.msg_controllen.min(control.len())]);
        Ok(Received {
            buffer: self.buffers[index],
            remote: parse_name(name).ok_or(Counter::DropMalformedReceive)?,
            local: control.local,
            offset: 0,
            bytes: message.msg_len as usize,
            segment_bytes: control.segment_bytes,
            traffic_class: control.traffic_class,
        })
    }
}

impl<M: Machine, H: Host<M>> Epoll<M, H> {
    /// One receive from a ready slot. Returns the number of buffers it filled; `None` where there was
    /// no buffer to receive into, so that what holds them has to be sent first.
    pub(super) fn receive_from(&mut self, index: u32) -> Option<usize> {
        let Some(slot) = self.shard.sockets.slot_mut(index) else {
            return Some(0);
        };
        slot.receiving.armed = false;
        if slot.state != State::Open {
            return Some(0);
        }
        let fd = slot.fd();
        let is_big = slot.receiving.big;
        let inlet = if is_big {
            &mut self.big
        } else {
            &mut self.small
        };
        let asked = inlet.fill(&mut self.shard.buffers);
        if asked == 0 {
            self.shard.counters.add(Counter::ReceivesStarved, 1);
            self.queue(index);
            return None;
        }
        let headers = inlet.headers.as_mut_ptr();
        let none = std::ptr::null_mut();
        // SAFETY: as many headers were set up, and what they point to outlives the call.
        let got = unsafe { libc::recvmmsg(fd, headers, asked as u32, libc::MSG_DONTWAIT, none) };
        let Ok(got) = usize::try_from(got) else {
            self.on_error(index);
            return Some(0);
        };
        for message in 0..got {
            self.take(index, is_big, message);
        }
        let inlet = if is_big {
            &mut self.big
        } else {
            &mut self.small
        };
        inlet.gone = got;
        if got == asked {
            self.queue(index);
        }
        Some(got)
    }

    fn on_error(&mut self, index: u32) {
        let errno = last_errno();
        if errno != libc::EAGAIN {
            if !self.shard.takes_error(index, errno) {
                self.shard.counters.add(Counter::ReceiveErrors, 1);
            }
            // An error that waited in the socket is gone now; what arrived is still there.
            self.queue(index);
        }
    }

    fn queue(&mut self, index: u32) {
        if let Some(slot) = self.shard.sockets.slot_mut(index)
            && !slot.receiving.armed
        {
            slot.receiving.armed = true;
            self.ready.push_back(index);
        }
    }

    fn take(&mut self, index: u32, is_big: bool, message: usize) {
        let inlet = if is_big { &self.big } else { &self.small };
        let buffer = inlet.buffers[message];
        match inlet.parse(message) {
            Ok(received) => {
                self.follow_governor(index, &received);
                self.shard.deliver(index, &received);
            }
            Err(reason) => {
                if reason == Counter::DropTruncated
                    && let Some(slot) = self.shard.sockets.slot_mut(index)
                {
                    slot.receiving.needs_big = true;
                    slot.receiving.big = true;
                }
                self.shard.counters.add(reason, 1);
                self.shard.buffers.hold_first(buffer);
                self.shard.buffers.release(buffer);
            }
        }
    }

    /// Follows the governor's advice at once: between two receives of a socket its buffers may change.
    fn follow_governor(&mut self, index: u32, received: &Received) {
        let Some((advised, advice)) = self.shard.observe(index, received) else {
            return;
        };
        match advice {
            Advice::Keep => {}
            Advice::Enable => self.shard.enable_gro(advised),
            Advice::Disable => {
                self.shard.disable_gro(advised);
            }
        }
        if let Some(slot) = self.shard.sockets.slot_mut(advised) {
            slot.receiving.big = slot.receiving.gro || slot.receiving.needs_big;
        }
    }
}
