//! Multishot receives: how they begin, what they bring, and how they begin again.
//!
//! A standing receive takes about 600 bytes of kernel memory more than a wait for readiness. So a
//! relayed port begins with such a wait, gets a standing receive with its first datagram, and goes
//! back to waiting when it has been quiet.
//!
//! ```text
//!   opened ─▶ polling ── readable ──▶ receiving ── quiet for QUIET ──▶ polling
//! ```

use std::io;
use std::time::Duration;

use io_uring::types::Fd;
use io_uring::{cqueue, opcode};
use towpath_proto::Machine;

use super::Uring;
use super::ring::Operation;
use crate::Host;
use crate::address::{
    Control, GRO_CONTROL_BYTES, NAME_BYTES, PKTINFO_V4_BYTES, PKTINFO_V6_BYTES,
    TRAFFIC_CLASS_BYTES, parse_name,
};
use crate::buffers::{BufferId, Buffers, Class};
use crate::counters::Counter;
use crate::governor::Advice;
use crate::shard::Received;
use crate::sockets::{Slot, State};

/// Length of the kernel's header in front of what a multishot receive brings: the lengths of name,
/// control data and payload, and flags.
const HEADER_BYTES: usize = 16;

/// How long a relayed port receives nothing before it waits again, at least.
const QUIET: Duration = Duration::from_secs(10);

/// Slots looked at in one round.
const LOOKED_AT: u32 = 64;

/// The message headers multishot receives are started with: they only say how much room name and
/// control data have.
pub(super) struct Templates([libc::msghdr; 6]);

impl Templates {
    pub(super) fn new() -> Self {
        let kinds = [(false, false), (true, false), (true, true)];
        let of = |gro: bool| {
            kinds.map(|(wildcard, v6)| libc::msghdr {
                msg_name: std::ptr::null_mut(),
                msg_namelen: NAME_BYTES as u32,
                msg_iov: std::ptr::null_mut(),
                msg_iovlen: 0,
                msg_control: std::ptr::null_mut(),
                msg_controllen: control_bytes(wildcard, v6, gro),
                msg_flags: 0,
            })
        };
        let ([a, b, c], [d, e, f]) = (of(false), of(true));
        Self([a, b, c, d, e, f])
    }

    fn of(&self, slot: &Slot) -> &libc::msghdr {
        let kind = usize::from(slot.wildcard) + usize::from(slot.wildcard && slot.is_v6());
        &self.0[kind + if slot.receiving.big { 3 } else { 0 }]
    }
}

/// Room for control data. Big buffers always have room for a segment size.
const fn control_bytes(wildcard: bool, v6: bool, gro: bool) -> usize {
    let source = match (wildcard, v6) {
        (false, _) => 0,
        (true, false) => PKTINFO_V4_BYTES,
        (true, true) => PKTINFO_V6_BYTES,
    };
    TRAFFIC_CLASS_BYTES + source + if gro { GRO_CONTROL_BYTES } else { 0 }
}

impl<M: Machine, H: Host<M>> Uring<M, H> {
    /// Begins to wait for the first datagram of a relayed port, or to receive at a listener.
    pub(super) fn arm_quiet(&mut self, index: u32) -> io::Result<()> {
        let Some(slot) = self.shard.sockets.slot_mut(index) else {
            return Ok(());
        };
        if !slot.is_relayed() {
            return self.arm(index);
        }
        if slot.state != State::Open || slot.receiving.armed {
            return Ok(());
        }
        slot.receiving.armed = true;
        slot.receiving.polling = true;
        slot.receiving.changing = false;
        let operation = Operation::Poll {
            slot: index,
            generation: slot.generation,
        };
        let entry = opcode::PollAdd::new(Fd(slot.fd()), libc::POLLIN as u32)
            .build()
            .user_data(operation.pack());
        self.shard.sockets.hold(index);
        // SAFETY: the operation points to nothing; the socket is kept while it is held.
        unsafe { self.ring.push(&entry) }
    }

    /// A quiet slot has something to read or an error, or its wait was ended.
    pub(super) fn on_poll(&mut self, index: u32, generation: u16, result: i32) {
        let slot = self
            .shard
            .sockets
            .slot_mut(index)
            .expect("completions name slots there are");
        assert_eq!(
            slot.generation, generation,
            "a slot is kept until its last completion"
        );
        slot.receiving.armed = false;
        slot.receiving.polling = false;
        slot.receiving.changing = false;
        let has = |events: i16| result >= 0 && result & i32::from(events) != 0;
        let only_failed = has(libc::POLLERR) && !has(libc::POLLIN);
        slot.receiving.active = !only_failed;
        if has(libc::POLLERR) {
            self.shard.read_errors(index);
        }
        if only_failed {
            self.quiet.push(index);
        } else {
            self.ended.push(index);
        }
        self.shard.sockets.release(index);
    }

    /// Looks at the next few slots, and lets those that were quiet since the last look wait.
    pub(super) fn quieten(&mut self) -> io::Result<()> {
        let slots = self.shard.sockets.len();
        if self.shard.now < self.next_look {
            return Ok(());
        }
        for _ in 0..LOOKED_AT.min(slots) {
            if self.looked >= slots {
                self.looked = 0;
                self.small.offer_less();
                self.big.offer_less();
                self.next_look = self.shard.now + QUIET;
                return Ok(());
            }
            let index = self.looked;
            self.looked += 1;
            let Some(slot) = self.shard.sockets.slot_mut(index) else {
                continue;
            };
            let was_active = std::mem::take(&mut slot.receiving.active);
            let receives = slot.receiving.armed && !slot.receiving.polling;
            let keeps = slot.receiving.gro || slot.receiving.needs_big;
            if slot.is_relayed() && receives && !was_active && !keeps {
                slot.receiving.quiet = true;
                self.cancel_receive(index)?;
            }
        }
        Ok(())
    }

    /// Begins the standing receive of an open slot that has none.
    pub(super) fn arm(&mut self, index: u32) -> io::Result<()> {
        let Some(slot) = self.shard.sockets.slot(index) else {
            return Ok(());
        };
        if slot.state != State::Open || slot.receiving.armed {
            return Ok(());
        }
        if slot.governor.is_on() && !slot.receiving.gro {
            self.shard.enable_gro(index);
        }
        let Some(slot) = self.shard.sockets.slot_mut(index) else {
            return Ok(());
        };
        slot.receiving.big = slot.receiving.gro || slot.receiving.needs_big;
        slot.receiving.armed = true;
        slot.receiving.changing = false;
        let group = if slot.receiving.big {
            self.big.group()
        } else {
            self.small.group()
        };
        let operation = Operation::Receive {
            slot: index,
            generation: slot.generation,
        };
        let template = &raw const *self.templates.of(slot);
        let entry = opcode::RecvMsgMulti::new(Fd(slot.fd()), template, group)
            .build()
            .user_data(operation.pack());
        self.shard.sockets.hold(index);
        // SAFETY: the template lives as long as the ring; the socket is kept while it is held.
        unsafe { self.ring.push(&entry) }
    }

    /// Asks the kernel to end the standing receive of a slot.
    pub(super) fn cancel_receive(&mut self, index: u32) -> io::Result<()> {
        let Some(slot) = self.shard.sockets.slot_mut(index) else {
            return Ok(());
        };
        if !slot.receiving.armed || slot.receiving.changing {
            return Ok(());
        }
        slot.receiving.changing = true;
        let generation = slot.generation;
        let target = match slot.receiving.polling {
            true => Operation::Poll {
                slot: index,
                generation,
            },
            false => Operation::Receive {
                slot: index,
                generation,
            },
        };
        let entry = opcode::AsyncCancel::new(target.pack())
            .build()
            .user_data(Operation::Cancel.pack());
        // SAFETY: the operation points to nothing.
        unsafe { self.ring.push(&entry) }
    }

    /// Begins receives again that have ended: where buffers lacked, once there are some.
    pub(super) fn begin_again(&mut self) -> io::Result<()> {
        while let Some(index) = self.ended.pop() {
            self.arm(index)?;
        }
        while let Some(index) = self.quiet.pop() {
            self.arm_quiet(index)?;
        }
        if self.starved.is_empty() || !self.small.has_recovered() || !self.big.has_recovered() {
            return Ok(());
        }
        self.small.offer_more();
        self.big.offer_more();
        while let Some(index) = self.starved.pop() {
            self.arm(index)?;
        }
        Ok(())
    }

    /// Takes one completion of a standing receive.
    pub(super) fn on_receive(&mut self, index: u32, generation: u16, result: i32, flags: u32) {
        let slot = self
            .shard
            .sockets
            .slot_mut(index)
            .expect("completions name slots there are");
        assert_eq!(
            slot.generation, generation,
            "a slot is kept until its last completion"
        );
        let is_big = slot.receiving.big;
        slot.receiving.active = true;
        if let Some(buffer) = cqueue::buffer_select(flags) {
            let class = if is_big { Class::Big } else { Class::Small };
            let ring = if is_big {
                &mut self.big
            } else {
                &mut self.small
            };
            ring.taken();
            let id = BufferId {
                class,
                index: buffer,
            };
            self.received += 1;
            match self.parse(index, id, result) {
                Some(received) => {
                    self.follow_governor(index, &received);
                    self.shard.deliver(index, &received);
                }
                None => {
                    self.shard.buffers.hold_first(id);
                    self.shard.buffers.release(id);
                }
            }
        }
        if !cqueue::more(flags) {
            self.on_receive_ended(index, result);
        }
    }

    fn on_receive_ended(&mut self, index: u32, result: i32) {
        let Some(slot) = self.shard.sockets.slot_mut(index) else {
            return;
        };
        slot.receiving.armed = false;
        slot.receiving.changing = false;
        let is_quiet = std::mem::take(&mut slot.receiving.quiet);
        match -result {
            libc::ENOBUFS => {
                self.shard.counters.add(Counter::ReceivesStarved, 1);
                self.starved.push(index);
            }
            libc::ECANCELED if is_quiet => self.quiet.push(index),
            libc::ECANCELED => self.ended.push(index),
            errno => {
                if errno > 0 && !self.shard.takes_error(index, errno) {
                    self.shard.counters.add(Counter::ReceiveErrors, 1);
                }
                self.ended.push(index);
            }
        }
        self.shard.sockets.release(index);
    }

    /// Reads the header, name and control data the kernel put in front of the payload.
    fn parse(&mut self, index: u32, id: BufferId, result: i32) -> Option<Received> {
        let slot = self.shard.sockets.slot(index)?;
        let bytes = usize::try_from(result).ok()?;
        assert!(
            bytes <= Buffers::kernel_bytes(id.class),
            "{bytes} bytes in a buffer"
        );
        let area = self.shard.buffers.kernel_area(id).cast_const();
        // SAFETY: the kernel wrote as many bytes there and gave the buffer back with this completion.
        let written = unsafe { std::slice::from_raw_parts(area, bytes) };
        let parsed = Output::parse(written, self.templates.of(slot).msg_controllen);
        let Some(output) = parsed else {
            self.shard.counters.add(Counter::DropMalformedReceive, 1);
            return None;
        };
        if output.is_truncated {
            self.shard.counters.add(Counter::DropTruncated, 1);
            self.use_big_buffers(index);
            return None;
        }
        Some(Received {
            buffer: id,
            remote: output.remote,
            local: output.control.local,
            offset: output.offset,
            bytes: bytes - output.offset,
            segment_bytes: output.control.segment_bytes,
            traffic_class: output.control.traffic_class,
        })
    }

    /// Moves a socket that gets longer datagrams than expected to big buffers, for good.
    fn use_big_buffers(&mut self, index: u32) {
        let Some(slot) = self.shard.sockets.slot_mut(index) else {
            return;
        };
        if !slot.receiving.needs_big && !slot.receiving.big {
            slot.receiving.needs_big = true;
            self.restart_receive(index);
        }
    }

    fn restart_receive(&mut self, index: u32) {
        if self.cancel_receive(index).is_err() {
            self.shard.counters.add(Counter::WaitErrors, 1);
        }
    }

    fn follow_governor(&mut self, index: u32, received: &Received) {
        match self.shard.observe(index, received) {
            // Big buffers first: a merged datagram would not fit into a small one.
            Some((advised, Advice::Enable)) => self.restart_receive(advised),
            Some((advised, Advice::Disable)) => {
                if self.shard.disable_gro(advised) {
                    self.restart_receive(advised);
                }
            }
            Some((_, Advice::Keep)) | None => {}
        }
    }
}

/// What a multishot receive brought.
#[derive(Debug, PartialEq, Eq)]
struct Output {
    remote: std::net::SocketAddr,
    control: Control,
    /// Where the payload begins.
    offset: usize,
    is_truncated: bool,
}

impl Output {
    /// Parses the bytes written into a buffer, with `room` bytes for control data.
    fn parse(written: &[u8], room: usize) -> Option<Self> {
        let word = |at: usize| {
            written
                .get(at..)?
                .first_chunk::<4>()
                .map(|&bytes| u32::from_ne_bytes(bytes))
        };
        let control_bytes = word(4)? as usize;
        let flags = word(12)? as i32;
        let name = written.get(HEADER_BYTES..HEADER_BYTES + NAME_BYTES)?;
        let control_start = HEADER_BYTES + NAME_BYTES;
        let control = written.get(control_start..control_start + control_bytes.min(room))?;
        let offset = control_start + room;
        (written.len() >= offset && flags & libc::MSG_CTRUNC == 0).then_some(())?;
        Some(Self {
            remote: parse_name(name)?,
            control: Control::parse(control),
            offset,
            is_truncated: flags & libc::MSG_TRUNC != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Name;

    fn written(flags: i32, control: usize, room: usize, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [16, control as u32, payload.len() as u32, flags as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(Name::new("192.0.2.1:5".parse().unwrap()).bytes());
        bytes.extend(vec![0; room]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn the_payload_begins_behind_the_room_for_control_data() {
        let bytes = written(0, 0, 24, b"hello");
        let output = Output::parse(&bytes, 24).unwrap();
        assert_eq!(&bytes[output.offset..], b"hello");
        assert_eq!(output.remote, "192.0.2.1:5".parse().unwrap());
        assert!(!output.is_truncated);
    }

    #[test]
    fn cut_off_payloads_are_noticed_and_cut_off_control_data_is_refused() {
        let output = Output::parse(&written(libc::MSG_TRUNC, 0, 0, b"x"), 0).unwrap();
        assert!(output.is_truncated);
        assert_eq!(
            Output::parse(&written(libc::MSG_CTRUNC, 0, 0, b"x"), 0),
            None
        );
    }

    #[test]
    fn whatever_is_too_short_is_no_output() {
        let bytes = written(0, 24, 24, b"");
        for cut in 0..bytes.len() {
            assert_eq!(Output::parse(&bytes[..cut], 24), None);
        }
    }
}
