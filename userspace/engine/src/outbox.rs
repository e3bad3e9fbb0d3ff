//! Collects what a round sends and groups it into runs for UDP GSO.
//!
//! Datagrams of one batch that leave by the same socket to the same destination and have the same
//! length (the last may be shorter) become one message of at most [`MAX_SEGMENTS`] segments, also
//! when flows are interleaved. The order within a flow is kept: a run that cannot take a datagram
//! is closed, and a later run is sent later.
//!
//! Datagrams that lie in one buffer (a merged receive) are moved together there, headers written
//! between them, so that the kernel copies one long piece instead of many short ones:
//!
//! ```text
//!   received   [ room        ][ payload 0 ][ payload 1 ][ payload 2 ]
//!   sent           [h][ payload 0 ][h][ payload 1 ][h][ payload 2 ]
//! ```
//!
//! The memory a message points to (its header, addresses, iovecs, prefixes) lives in slots at fixed
//! places; a slot and the buffers it holds are free again only after [`Outbox::complete`].
//!
//! This module makes no system call.

use std::net::{IpAddr, SocketAddr};

use towpath_proto::Timestamp;
use towpath_proto::machine::{Prefix, TrafficClass, Transmit};

use crate::address::{ControlWriter, Name, SEND_CONTROL_BYTES};
use crate::buffers::{BufferId, Buffers};
use crate::counters::{Counter, EngineCounters};
use crate::gso_limits::GsoLimits;

/// The kernel cuts a message into at most this many datagrams.
const MAX_SEGMENTS: u16 = 64;

/// The most bytes of a run: the kernel builds it as one IPv4 packet first.
const MAX_RUN_BYTES: u32 = 65_507;

/// Parts of a run: a prefix, a payload and padding for each of several datagrams.
const MAX_IOVECS: usize = 128;

/// Different prefixes in a run; all headers of a ChannelData run of one length are the same.
const MAX_PREFIXES: usize = 4;

/// Open runs are found by a hash of their flow in a table of this many places.
const TABLE_PLACES: usize = 1024;

const NONE: u16 = u16::MAX;

/// Zero bytes to send where a payload has no room behind it.
static PADDING: [u8; 4] = [0; 4];

/// Where a transmit's payload lies and what may be overwritten around the lent bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The first byte that was lent to the machine.
    pub(crate) lent: *mut u8,
    /// Bytes in front of `lent` that nobody needs any more.
    pub(crate) room_before: usize,
    /// Where the bytes of the lent area and behind it that nobody needs end, from its start.
    pub(crate) end_of_room: usize,
    /// The buffer it lies in.
    pub(crate) buffer: BufferId,
    /// Datagrams that lie behind it in the same buffer.
    pub(crate) following: usize,
}

/// What became of a datagram that was queued.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queued {
    /// Whether it started a message.
    pub(crate) starts: bool,
    /// Behind its last byte in its buffer.
    pub(crate) end: *mut u8,
}

/// Where a datagram leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Egress {
    /// Number of the socket in the shard's table.
    pub(crate) socket: u32,
    /// The address to leave from, where the socket has several.
    pub(crate) source: Option<IpAddr>,
    /// How it is treated on its way.
    pub(crate) marks: Marks,
}

/// What the IP headers of all datagrams of a message have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Marks {
    pub(crate) traffic_class: TrafficClass,
    pub(crate) dont_fragment: bool,
}

/// What a driver gives to the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    pub(crate) socket: u32,
    /// The message with all its parts.
    pub(crate) header: *const libc::msghdr,
    /// The same where it is one piece without control data.
    pub(crate) plain: Option<libc::iovec>,
    pub(crate) name: *const u8,
    pub(crate) name_bytes: u32,
    /// The socket must set the DF bit.
    pub(crate) dont_fragment: bool,
    /// Its answer may put datagrams into the queue again: it is to be taken before a sleep.
    pub(crate) is_awaited: bool,
}

/// The queue between a machine and the kernel.
pub(crate) struct Outbox {
    slots: Box<[SendSlot]>,
    blocks: Box<[RunBlock]>,
    free_slots: Vec<u16>,
    free_blocks: Vec<u16>,
    pending: Vec<u16>,
    table: Box<[Bucket]>,
    epoch: u32,
    gso: bool,
    limits: GsoLimits,
}

#[derive(Clone, Copy)]
struct Bucket {
    epoch: u32,
    slot: u16,
}

/// One message: a datagram or a run of them.
#[repr(C, align(64))]
struct SendSlot {
    header: libc::msghdr,
    name: Name,
    single: libc::iovec,
    source: Option<IpAddr>,
    socket: u32,
    total_bytes: u32,
    buffer: BufferId,
    block: u16,
    segment_bytes: u16,
    segments: u16,
    iovecs: u16,
    marks: Marks,
    open: bool,
    /// Its answer is to be taken before a sleep.
    is_awaited: bool,
    /// How often it was given to the kernel again after an error that may have been another one's.
    tries: u8,
    /// Datagrams of a refused run that were sent again one by one; `NONE` before a refusal.
    resent: u16,
    control: ControlBytes,
    /// The datagram being sent again.
    pieces: [libc::iovec; 3],
}

#[repr(C, align(8))]
struct ControlBytes([u8; SEND_CONTROL_BYTES]);

/// What a message of several parts needs in addition.
struct RunBlock {
    iovecs: [libc::iovec; MAX_IOVECS],
    prefixes: [Prefix; MAX_PREFIXES],
    buffers: [BufferId; MAX_SEGMENTS as usize],
    prefix_count: u8,
    buffer_count: u8,
}

/// Up to three parts of one datagram.
struct Parts {
    iovecs: [libc::iovec; 3],
    count: usize,
    /// The first part is a prefix that still has to be copied to where it stays.
    loose_prefix: bool,
    /// The only part lies right behind the datagram before.
    joins: bool,
    /// Behind the last byte in the buffer.
    end: *mut u8,
}

const EMPTY_IOVEC: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

impl Outbox {
    /// Room for `slots` messages, `blocks` of them of several parts.
    pub(crate) fn new(slots: u16, blocks: u16, gso: bool) -> Self {
        assert!(
            slots < NONE && blocks < NONE,
            "slot numbers fit below the mark for none"
        );
        Self {
            slots: (0..slots).map(|_| SendSlot::empty()).collect(),
            blocks: (0..blocks).map(|_| RunBlock::empty()).collect(),
            free_slots: (0..slots).rev().collect(),
            free_blocks: (0..blocks).rev().collect(),
            pending: Vec::with_capacity(usize::from(slots)),
            table: vec![
                Bucket {
                    epoch: 0,
                    slot: NONE
                };
                TABLE_PLACES
            ]
            .into_boxed_slice(),
            epoch: 1,
            gso,
            limits: GsoLimits::default(),
        }
    }

    /// Number of messages that can still be started.
    pub(crate) fn free(&self) -> usize {
        self.free_slots.len()
    }

    /// Number of messages that wait to be given to the kernel.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether messages wait to be given to the kernel.
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Queues a datagram; `None` where there was no room.
    pub(crate) fn push(
        &mut self,
        now: Timestamp,
        egress: Egress,
        transmit: &Transmit,
        place: Place,
        buffers: &mut Buffers,
    ) -> Option<Queued> {
        let name = Name::new(transmit.destination);
        let home = table_place(egress.socket, transmit.destination);
        let entry = self.table[home];
        if entry.epoch == self.epoch && self.slots[usize::from(entry.slot)].is_flow(egress, &name) {
            if let Some(end) = self.append(now, entry.slot, transmit, place, buffers) {
                return Some(Queued { starts: false, end });
            }
            self.slots[usize::from(entry.slot)].open = false;
        }
        let (slot, end) = self.start(egress, name, transmit, place, buffers)?;
        self.table[home] = Bucket {
            epoch: self.epoch,
            slot,
        };
        self.pending.push(slot);
        Some(Queued { starts: true, end })
    }

    /// Adds a datagram to a run and returns its end; `None` where it does not fit.
    fn append(
        &mut self,
        now: Timestamp,
        index: u16,
        transmit: &Transmit,
        place: Place,
        buffers: &mut Buffers,
    ) -> Option<*mut u8> {
        let slot = &mut self.slots[usize::from(index)];
        let bytes = transmit.len() as u32;
        let segment = u32::from(slot.segment_bytes);
        let fits = slot.open
            && bytes > 0
            && bytes <= segment
            && slot.segments < MAX_SEGMENTS
            && slot.total_bytes + bytes <= MAX_RUN_BYTES
            && (slot.segments > 1
                || self.gso && !self.limits.forbids(now, &slot.name, slot.segment_bytes));
        if !fits {
            return None;
        }
        let last = match slot.block {
            NONE => &mut slot.single,
            block => &mut self.blocks[usize::from(block)].iovecs[usize::from(slot.iovecs) - 1],
        };
        let end = last.iov_base.cast::<u8>().wrapping_add(last.iov_len);
        let parts = Parts::behind(transmit, place, end);
        if parts.joins {
            last.iov_len += parts.iovecs[0].iov_len;
        } else {
            if !slot.move_to_block(&mut self.free_blocks, &mut self.blocks) {
                return None;
            }
            let block = &mut self.blocks[usize::from(slot.block)];
            if !block.add(usize::from(slot.iovecs), transmit, &parts) {
                return None;
            }
            slot.iovecs += parts.count as u16;
            block.hold(place.buffer, buffers);
        }
        slot.segments += 1;
        slot.total_bytes += bytes;
        slot.open = bytes == segment;
        Some(parts.end)
    }

    /// Starts a message with a datagram; returns its number and the datagram's end.
    fn start(
        &mut self,
        egress: Egress,
        name: Name,
        transmit: &Transmit,
        place: Place,
        buffers: &mut Buffers,
    ) -> Option<(u16, *mut u8)> {
        let bytes = transmit.len() as u32;
        let parts = Parts::first(transmit, place);
        if parts.count > 1 && self.free_blocks.is_empty() {
            return None;
        }
        let index = self.free_slots.pop()?;
        let slot = &mut self.slots[usize::from(index)];
        slot.name = name;
        slot.source = egress.source;
        slot.marks = egress.marks;
        slot.socket = egress.socket;
        slot.total_bytes = bytes;
        slot.segment_bytes = u16::try_from(bytes).unwrap_or(u16::MAX);
        slot.segments = 1;
        slot.open = true;
        slot.resent = NONE;
        slot.tries = 0;
        slot.buffer = place.buffer;
        slot.block = NONE;
        slot.iovecs = parts.count as u16;
        slot.single = parts.iovecs[0];
        if parts.count > 1 {
            slot.block = self.free_blocks.pop().expect("one was free above");
            let block = &mut self.blocks[usize::from(slot.block)];
            block.clear();
            let added = block.add(0, transmit, &parts);
            assert!(added, "an empty block takes one datagram");
            block.hold(place.buffer, buffers);
        } else {
            buffers.hold(place.buffer);
        }
        Some((index, parts.end))
    }

    /// Takes the messages to give to the kernel now, oldest first.
    pub(crate) fn take_pending(&mut self, into: &mut Vec<u16>) {
        into.clear();
        into.append(&mut self.pending);
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.table.fill(Bucket {
                epoch: 0,
                slot: NONE,
            });
            self.epoch = 1;
        }
    }

    /// The socket a message leaves by, and whether it sets the DF bit.
    pub(crate) fn way_out(&self, index: u16) -> (u32, bool) {
        let slot = &self.slots[usize::from(index)];
        (slot.socket, slot.marks.dont_fragment)
    }

    /// Queues a message once more whose failure may have been the fault of an earlier one; `false`
    /// where that was done `most` times.
    pub(crate) fn try_again(&mut self, index: u16, most: u8) -> bool {
        let slot = &mut self.slots[usize::from(index)];
        let again = slot.tries < most;
        if again {
            slot.tries += 1;
            self.pending.push(index);
        }
        again
    }

    /// Prepares a message for the kernel. The result points into this outbox and into buffers that
    /// stay where they are until [`complete`](Self::complete).
    pub(crate) fn message(&mut self, index: u16) -> Message {
        let slot = &mut self.slots[usize::from(index)];
        let whole = match slot.block {
            NONE => std::slice::from_mut(&mut slot.single),
            block => &mut self.blocks[usize::from(block)].iovecs[..usize::from(slot.iovecs)],
        };
        let (first, count) = match slot.resent {
            NONE => (whole.as_mut_ptr(), whole.len()),
            resent => {
                let skip = usize::from(resent) * usize::from(slot.segment_bytes);
                let count = clip(
                    whole,
                    skip,
                    usize::from(slot.segment_bytes),
                    &mut slot.pieces,
                );
                (slot.pieces.as_mut_ptr(), count)
            }
        };
        let mut control = ControlWriter::new(&mut slot.control.0);
        if let Some(source) = slot.source {
            control.source(source);
        }
        if slot.marks.traffic_class != TrafficClass::ORDINARY {
            control.traffic_class(slot.name.is_v6(), slot.marks.traffic_class);
        }
        if slot.segments > 1 && slot.resent == NONE {
            control.segment_bytes(slot.segment_bytes);
        }
        let control_bytes = control.len();
        slot.is_awaited = slot.resent != NONE
            || slot.tries > 0
            || slot.segments > 1 && !self.limits.is_proven(&slot.name, slot.segment_bytes);
        slot.header.msg_name = slot.name.as_ptr().cast_mut().cast();
        slot.header.msg_namelen = slot.name.len();
        slot.header.msg_iov = first;
        slot.header.msg_iovlen = count;
        slot.header.msg_control = match control_bytes {
            0 => std::ptr::null_mut(),
            _ => slot.control.0.as_mut_ptr().cast(),
        };
        slot.header.msg_controllen = control_bytes;
        Message {
            socket: slot.socket,
            header: &raw const slot.header,
            plain: (slot.block == NONE && control_bytes == 0 && slot.resent == NONE)
                .then_some(slot.single),
            name: slot.name.as_ptr(),
            name_bytes: slot.name.len(),
            dont_fragment: slot.marks.dont_fragment,
            is_awaited: slot.is_awaited,
        }
    }

    /// Takes the kernel's answer to a message: bytes sent, or a negative error number. Returns the
    /// socket the message was for once it is done with; `None` where its datagrams are queued again.
    pub(crate) fn complete(
        &mut self,
        now: Timestamp,
        index: u16,
        result: i32,
        buffers: &mut Buffers,
        counters: &EngineCounters,
    ) -> Option<u32> {
        let slot = &mut self.slots[usize::from(index)];
        let refused_run = slot.segments > 1 && slot.resent == NONE && is_gso_refusal(result);
        if refused_run {
            counters.add(Counter::GsoFallbacks, 1);
            self.limits
                .learn(now, &slot.name, slot.segment_bytes, -result);
            slot.resent = 0;
            slot.tries = 0;
            self.pending.push(index);
            return None;
        }
        if slot.resent == NONE {
            if slot.is_awaited && result >= 0 {
                self.limits.prove(&slot.name, slot.segment_bytes);
            }
            count_result(counters, result, u64::from(slot.segments));
        } else {
            count_result(counters, result, 1);
            slot.resent += 1;
            slot.tries = 0;
            if slot.resent < slot.segments {
                self.pending.push(index);
                return None;
            }
        }
        let socket = slot.socket;
        if slot.block == NONE {
            buffers.release(slot.buffer);
        } else {
            self.blocks[usize::from(slot.block)].release(buffers);
            self.free_blocks.push(slot.block);
            slot.block = NONE;
        }
        self.free_slots.push(index);
        Some(socket)
    }
}

/// Where a flow's open run is looked up. A collision only costs a run its further growth.
fn table_place(socket: u32, destination: SocketAddr) -> usize {
    let ip = match destination.ip() {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => (v6.to_bits() as u64) ^ ((v6.to_bits() >> 64) as u64),
    };
    let flow = ip ^ (u64::from(destination.port()) << 32) ^ (u64::from(socket) << 40);
    let mixed = (flow ^ (flow >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 48) as usize % TABLE_PLACES
}

/// Whether the kernel refused a run because it is one, and would take its datagrams alone.
fn is_gso_refusal(result: i32) -> bool {
    matches!(
        -result,
        libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP
    )
}

fn count_result(counters: &EngineCounters, result: i32, datagrams: u64) {
    if let Ok(bytes) = u64::try_from(result) {
        counters.add(Counter::Sends, 1);
        counters.add(Counter::DatagramsSent, datagrams);
        counters.add(Counter::BytesSent, bytes);
        if datagrams > 1 {
            counters.add(Counter::GsoSends, 1);
        }
        return;
    }
    let reason = match -result {
        libc::EAGAIN => Counter::DropSendWouldBlock,
        libc::ENOBUFS | libc::ENOMEM => Counter::DropSendNoBuffers,
        libc::EPERM | libc::EACCES => Counter::DropSendForbidden,
        libc::ENETUNREACH
        | libc::EHOSTUNREACH
        | libc::ENETDOWN
        | libc::EHOSTDOWN
        | libc::EADDRNOTAVAIL => Counter::DropSendUnreachable,
        libc::EMSGSIZE => Counter::DropSendTooLong,
        _ => Counter::DropSendOther,
    };
    counters.add(reason, datagrams);
}

/// Cuts `bytes` bytes behind the first `skip` ones out of `whole`; returns the number of pieces.
/// A datagram has three parts at most, so its pieces always find room.
fn clip(
    whole: &[libc::iovec],
    mut skip: usize,
    mut bytes: usize,
    pieces: &mut [libc::iovec; 3],
) -> usize {
    let mut count = 0;
    for iovec in whole {
        let skipped = skip.min(iovec.iov_len);
        skip -= skipped;
        let taken = bytes.min(iovec.iov_len - skipped);
        if taken > 0 {
            let base = iovec.iov_base.cast::<u8>().wrapping_add(skipped);
            pieces[count] = libc::iovec {
                iov_base: base.cast(),
                iov_len: taken,
            };
            count += 1;
            bytes -= taken;
        }
    }
    count
}

impl Parts {
    /// The parts of a datagram that starts a message. Where others follow in its buffer, it is moved
    /// towards the front, so that there is room for their prefixes.
    fn first(transmit: &Transmit, place: Place) -> Self {
        let (start, room) = checked(transmit, &place);
        let prefix = transmit.prefix.as_bytes().len();
        let wanted = place.following * (prefix + usize::from(transmit.padding));
        match room.checked_sub(prefix) {
            Some(spare) if prefix > 0 => {
                Self::moved(transmit, &place, start, spare.min(wanted), false)
            }
            Some(_) => Self::moved(transmit, &place, start, 0, false),
            None => Self::gathered(transmit, &place, start),
        }
    }

    /// The parts of a datagram behind others whose last piece ends at `end`: joined to it where only
    /// free bytes lie between.
    fn behind(transmit: &Transmit, place: Place, end: *mut u8) -> Self {
        let (start, room) = checked(transmit, &place);
        let prefix = transmit.prefix.as_bytes().len();
        let is_next = std::ptr::eq(start.wrapping_sub(room), end);
        match room.checked_sub(prefix) {
            Some(spare) if is_next => Self::moved(transmit, &place, start, spare, true),
            Some(_) => Self::moved(transmit, &place, start, 0, false),
            None => Self::gathered(transmit, &place, start),
        }
    }

    /// One piece: payload moved to the front by `by`, prefix and padding written next to it.
    fn moved(transmit: &Transmit, place: &Place, start: *mut u8, by: usize, joins: bool) -> Self {
        let prefix = transmit.prefix.as_bytes();
        let bytes = transmit.payload.len();
        let padding = usize::from(transmit.padding);
        if place.end_of_room - transmit.payload.end + by < padding {
            return Self::gathered(transmit, place, start);
        }
        // SAFETY: as many bytes in front of the payload belong to its buffer and are free.
        let target = unsafe { start.sub(by) };
        if by > 0 {
            // SAFETY: both are in the buffer, and what lies between them is free.
            unsafe { std::ptr::copy(start, target, bytes) };
        }
        // SAFETY: the callers leave room for the prefix in front of the payload's new place.
        let front = unsafe { target.sub(prefix.len()) };
        // SAFETY: that room is free, and a prefix is no part of a buffer.
        unsafe { std::ptr::copy_nonoverlapping(prefix.as_ptr(), front, prefix.len()) };
        // SAFETY: the end of the payload is in its buffer.
        let tail = unsafe { target.add(bytes) };
        // SAFETY: the room for the padding was checked above.
        unsafe { std::ptr::write_bytes(tail, 0, padding) };
        let end = tail.wrapping_add(padding);
        let mut parts = Self::none(end);
        parts.joins = joins;
        parts.push(front, prefix.len() + bytes + padding);
        parts
    }

    /// Several pieces that leave the payload where it is.
    fn gathered(transmit: &Transmit, place: &Place, start: *mut u8) -> Self {
        let prefix = transmit.prefix.as_bytes();
        let (bytes, padding) = (transmit.payload.len(), usize::from(transmit.padding));
        let mut parts = Self::none(start.wrapping_add(bytes));
        if place.room_before + transmit.payload.start >= prefix.len() {
            // SAFETY: as many bytes in front of the payload belong to its buffer and are free.
            let front = unsafe { start.sub(prefix.len()) };
            // SAFETY: the same; a prefix is no part of a buffer.
            unsafe { std::ptr::copy_nonoverlapping(prefix.as_ptr(), front, prefix.len()) };
            parts.push(front, prefix.len() + bytes);
        } else {
            parts.loose_prefix = true;
            parts.push(prefix.as_ptr().cast_mut(), prefix.len());
            parts.push(start, bytes);
        }
        if padding > 0 {
            parts.push(PADDING.as_ptr().cast_mut(), padding);
        }
        parts
    }

    const fn none(end: *mut u8) -> Self {
        Self {
            iovecs: [EMPTY_IOVEC; 3],
            count: 0,
            loose_prefix: false,
            joins: false,
            end,
        }
    }

    fn push(&mut self, base: *mut u8, bytes: usize) {
        self.iovecs[self.count] = libc::iovec {
            iov_base: base.cast(),
            iov_len: bytes,
        };
        self.count += 1;
    }
}

/// Where a transmit's payload begins, and how many bytes in front of it are free.
fn checked(transmit: &Transmit, place: &Place) -> (*mut u8, usize) {
    let payload = &transmit.payload;
    assert!(
        payload.start <= payload.end && payload.end <= place.end_of_room,
        "a transmit names bytes {payload:?} that were not lent to it"
    );
    assert!(
        usize::from(transmit.padding) < PADDING.len(),
        "{} bytes of padding",
        transmit.padding
    );
    // SAFETY: the payload was just checked to lie in the lent area.
    let start = unsafe { place.lent.add(payload.start) };
    (start, place.room_before + payload.start)
}

impl SendSlot {
    fn empty() -> Self {
        Self {
            header: libc::msghdr {
                msg_name: std::ptr::null_mut(),
                msg_namelen: 0,
                msg_iov: std::ptr::null_mut(),
                msg_iovlen: 0,
                msg_control: std::ptr::null_mut(),
                msg_controllen: 0,
                msg_flags: 0,
            },
            name: Name::EMPTY,
            single: EMPTY_IOVEC,
            source: None,
            socket: 0,
            total_bytes: 0,
            buffer: BufferId::NONE,
            block: NONE,
            segment_bytes: 0,
            segments: 0,
            iovecs: 0,
            marks: Marks::default(),
            open: false,
            is_awaited: false,
            tries: 0,
            resent: NONE,
            control: ControlBytes([0; SEND_CONTROL_BYTES]),
            pieces: [EMPTY_IOVEC; 3],
        }
    }

    fn is_flow(&self, egress: Egress, name: &Name) -> bool {
        self.socket == egress.socket
            && self.marks == egress.marks
            && self.name == *name
            && self.source == egress.source
    }

    /// Makes room for a second datagram; `false` where no block is free.
    fn move_to_block(&mut self, free: &mut Vec<u16>, blocks: &mut [RunBlock]) -> bool {
        if self.block != NONE {
            return true;
        }
        let Some(index) = free.pop() else {
            return false;
        };
        let block = &mut blocks[usize::from(index)];
        block.clear();
        block.iovecs[0] = self.single;
        block.buffers[0] = self.buffer;
        block.buffer_count = 1;
        self.block = index;
        true
    }
}

impl RunBlock {
    fn empty() -> Self {
        Self {
            iovecs: [EMPTY_IOVEC; MAX_IOVECS],
            prefixes: [Prefix::EMPTY; MAX_PREFIXES],
            buffers: [BufferId::NONE; MAX_SEGMENTS as usize],
            prefix_count: 0,
            buffer_count: 0,
        }
    }

    fn clear(&mut self) {
        self.prefix_count = 0;
        self.buffer_count = 0;
    }

    /// Adds a datagram's parts behind `at` others; `false` where there is no place for them.
    fn add(&mut self, at: usize, transmit: &Transmit, parts: &Parts) -> bool {
        if at + parts.count > MAX_IOVECS {
            return false;
        }
        let mut iovecs = parts.iovecs;
        if parts.loose_prefix {
            let Some(prefix) = self.keep_prefix(&transmit.prefix) else {
                return false;
            };
            iovecs[0].iov_base = prefix.cast();
        }
        self.iovecs[at..at + parts.count].copy_from_slice(&iovecs[..parts.count]);
        true
    }

    /// A prefix's bytes at a place that outlives the call; equal ones next to each other share it.
    fn keep_prefix(&mut self, prefix: &Prefix) -> Option<*mut u8> {
        let count = usize::from(self.prefix_count);
        let last = count
            .checked_sub(1)
            .filter(|&last| self.prefixes[last] == *prefix);
        let index = last.unwrap_or(count);
        if last.is_none() {
            *self.prefixes.get_mut(count)? = *prefix;
            self.prefix_count += 1;
        }
        Some(self.prefixes[index].as_bytes().as_ptr().cast_mut())
    }

    /// Holds a buffer for the run, once however many datagrams of it lie in a row there.
    fn hold(&mut self, buffer: BufferId, buffers: &mut Buffers) {
        let count = usize::from(self.buffer_count);
        if count > 0 && self.buffers[count - 1] == buffer {
            return;
        }
        self.buffers[count] = buffer;
        self.buffer_count += 1;
        buffers.hold(buffer);
    }

    fn release(&mut self, buffers: &mut Buffers) {
        for &buffer in &self.buffers[..usize::from(self.buffer_count)] {
            buffers.release(buffer);
        }
        self.buffer_count = 0;
    }
}

#[cfg(test)]
#[path = "outbox/tests.rs"]
mod tests;
