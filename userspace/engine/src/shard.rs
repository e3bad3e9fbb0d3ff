//! What every driver does in the same way: hands datagrams to the machine, runs its commands, and
//! collects what it sends.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use towpath_proto::machine::{
    Datagram, ListenerId, PortId, ShardId, Socket, TRANSMIT_BUFFER_BYTES, TrafficClass, Transmit,
};
use towpath_proto::{Machine, Timestamp};

use crate::backlog::Backlog;
use crate::buffers::{BufferId, Buffers, Class, SLACK_BYTES};
use crate::counters::{Counter, EngineCounters};
use crate::governor::RunMeter;
use crate::icmp::Troubles;
use crate::mailbox::{Bell, Mailbox};
use crate::outbox::{Outbox, Place};
use crate::sockets::Sockets;
use crate::{Handover, Host, OpenError, Ports, Steering};

/// Messages and datagrams of other shards taken in one round.
const MAX_PER_ROUND: usize = 1024;

/// Commands run in one round. What the machine sends waits for the rest.
const MAX_COMMANDS_PER_ROUND: usize = 16_384;

/// Messages that are given to the kernel at once: what they point to is still in the cache then.
/// Flows that repeat within a round grow their messages instead of adding to these.
pub(crate) const BURST_MESSAGES: usize = 64;

/// Sockets that get their ordinary buffer back in one window.
const LIMITS_ENDED: u32 = 1024;

/// Datagrams of other shards that wait for a shard at most.
pub(crate) const MAX_HANDOVERS: usize = 1024;

/// The way into a shard for datagrams of its clients that arrived elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Neighbour {
    handovers: Arc<ArrayQueue<Handover>>,
    bell: Arc<Bell>,
}

impl Neighbour {
    pub(crate) fn new(bell: Arc<Bell>) -> Self {
        Self {
            handovers: Arc::new(ArrayQueue::new(MAX_HANDOVERS)),
            bell,
        }
    }

    /// Leaves a datagram for the shard, which has to be woken.
    fn leave(&self, datagram: Handover, counters: &EngineCounters) {
        let fits = datagram.payload.len() <= TRANSMIT_BUFFER_BYTES;
        let counter = if fits && self.handovers.push(datagram).is_ok() {
            Counter::HandedOver
        } else {
            Counter::DropHandoverFull
        };
        counters.add(counter, 1);
    }
}

/// What a host may ask for while it runs a command.
struct Desk<'a> {
    sockets: &'a mut Sockets,
    neighbours: &'a [Neighbour],
    counters: &'a EngineCounters,
}

impl Ports for Desk<'_> {
    fn open(&mut self, port: PortId, local: SocketAddr) -> Result<(), OpenError> {
        self.sockets.open(port, local)
    }

    fn close(&mut self, port: PortId) {
        self.sockets.close(port);
    }

    fn hand_over(&mut self, to: ShardId, datagram: Handover) {
        let Some(neighbour) = self.neighbours.get(usize::from(to.0)) else {
            self.counters.add(Counter::DropHandoverFull, 1);
            return;
        };
        neighbour.leave(datagram, self.counters);
        neighbour.bell.ring();
    }
}

/// A datagram, or several merged ones, in a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    pub(crate) buffer: BufferId,
    pub(crate) remote: SocketAddr,
    /// The address it was sent to, where the kernel told.
    pub(crate) local: Option<IpAddr>,
    /// Where its payload begins, counted from the buffer's kernel area.
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
    /// Length of the merged datagrams; 0 where it is one.
    pub(crate) segment_bytes: usize,
    /// Of the datagram, or of all that were merged.
    pub(crate) traffic_class: TrafficClass,
}

/// The driver-independent part of a shard.
pub(crate) struct Shard<M: Machine, H> {
    pub(crate) id: ShardId,
    pub(crate) machine: M,
    pub(crate) host: H,
    pub(crate) sockets: Sockets,
    pub(crate) outbox: Outbox,
    pub(crate) buffers: Buffers,
    pub(crate) mailbox: Mailbox<M::Event>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) neighbours: Arc<[Neighbour]>,
    pub(crate) steering: Steering,
    pub(crate) counters: Arc<EngineCounters>,
    pub(crate) now: Timestamp,
    /// Whether UDP GRO may be used.
    pub(crate) gro: bool,
    pub(crate) meter: RunMeter<(SocketAddr, usize)>,
    pub(crate) backlog: Backlog,
    pub(crate) troubles: Troubles,
    /// How often this thread had slept when the backlog was judged last.
    pub(crate) rests: i64,
    /// The shard is at ease, and sockets from this one on may still be limited.
    pub(crate) limited_from: Option<u32>,
}

impl<M: Machine, H: Host<M>> Shard<M, H> {
    /// Reads the clock; the time holds for a whole round.
    pub(crate) fn tick(&mut self) {
        self.now = monotonic();
        if self.backlog.is_over(self.now) {
            self.judge_backlog();
        }
        self.calm();
    }

    /// Looks whether this thread has slept since the last look.
    fn judge_backlog(&mut self) {
        let rests = rests_of_thread();
        let was = self.backlog.limit();
        self.backlog.next_window(self.now, rests != self.rests);
        self.rests = rests;
        match (was, self.backlog.limit()) {
            (0, 0) => {}
            (0, _) => self.counters.add(Counter::BacklogsLimited, 1),
            (_, 0) => self.limited_from = Some(0),
            (_, _) => {}
        }
        if self.backlog.limit() == 0 {
            self.end_limits();
        }
    }

    /// Gives the next few sockets their ordinary buffers back.
    fn end_limits(&mut self) {
        let Some(from) = self.limited_from else {
            return;
        };
        let end = from.saturating_add(LIMITS_ENDED);
        for index in from..end.min(self.sockets.len()) {
            self.sockets.limit_backlog(index, 0);
        }
        self.limited_from = (end < self.sockets.len()).then_some(end);
    }

    /// When this shard has to do something again: what its machine waits for, or limits and troubles
    /// to end.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        let limits = match self.limited_from {
            Some(_) => Some(self.backlog.ends()),
            None => self.backlog.poll_timeout(),
        };
        let troubles = self.troubles.poll_timeout();
        [self.machine.poll_timeout(), limits, troubles]
            .into_iter()
            .flatten()
            .min()
    }

    /// Lets no more wait in a relayed socket than the shard can bear.
    fn follow_backlog(&mut self, index: u32) {
        let Some(slot) = self.sockets.slot_mut(index) else {
            return;
        };
        self.backlog.saw(&mut slot.receiving.window);
        let limit = self.backlog.limit();
        if slot.receiving.limit != limit {
            self.sockets.limit_backlog(index, limit);
        }
    }

    /// Hands what was received to the machine, and its buffer back unless it is being sent from.
    pub(crate) fn deliver(&mut self, slot: u32, received: &Received) {
        self.buffers.hold_first(received.buffer);
        if let Some((socket, local)) = self.sockets.ingress(slot, received.local) {
            let home = || self.steering.shard_of(received.remote);
            match socket {
                Socket::Listener(listener) if self.steering.looks_inside() => {
                    self.split(socket, local, received, Some(listener));
                }
                Socket::Listener(listener) if home() != self.id => {
                    self.hand_all_over(home(), listener, local, received);
                }
                Socket::Listener(_) => self.split(socket, local, received, None),
                Socket::Relayed(_) => {
                    self.follow_backlog(slot);
                    self.split(socket, local, received, None);
                }
            }
        }
        self.buffers.release(received.buffer);
    }

    /// Hands the datagrams of a buffer to the machine one by one. Those of a listener whose datagrams
    /// have to be looked at, to tell their shards, may go to others.
    fn split(
        &mut self,
        socket: Socket,
        local: IpAddr,
        received: &Received,
        looked_at: Option<ListenerId>,
    ) {
        let segment = match received.segment_bytes {
            0 => received.bytes.max(1),
            bytes => bytes,
        };
        let area = self.buffers.kernel_area(received.buffer);
        // Behind the last byte of the buffer that is still needed.
        let mut used = area.wrapping_sub(received.buffer.class.headroom());
        let total = received.bytes.div_ceil(segment).max(1);
        let (mut taken, mut taken_bytes) = (0_u64, 0);
        for index in 0..total {
            let begin = index * segment;
            let bytes = segment.min(received.bytes - begin);
            let following = total - index - 1;
            // SAFETY: the driver checked that the payload lies in the kernel area.
            let lent = unsafe { area.add(received.offset + begin) };
            // SAFETY: the buffer is held by this shard alone, and datagrams do not overlap.
            let payload = unsafe { std::slice::from_raw_parts_mut(lent, bytes) };
            if let Some(listener) = looked_at {
                let home = self.steering.shard_of_datagram(received.remote, payload);
                if home != self.id {
                    self.hand_over(home, listener, local, received, payload);
                    self.neighbours[usize::from(home.0)].bell.ring();
                    continue;
                }
            }
            taken += 1;
            taken_bytes += bytes;
            let datagram = Datagram {
                socket,
                local,
                remote: received.remote,
                traffic_class: received.traffic_class,
                payload,
            };
            let Some(transmit) = self.machine.handle_datagram(self.now, datagram) else {
                continue;
            };
            let place = Place {
                lent,
                room_before: lent as usize - used as usize,
                end_of_room: bytes + if following == 0 { SLACK_BYTES } else { 0 },
                buffer: received.buffer,
                following,
            };
            if let Some(end) = self.send(&transmit, bytes, place) {
                used = end;
            }
        }
        if taken > 0 {
            self.counters.add(Counter::Receives, 1);
            self.counters.add(Counter::DatagramsReceived, taken);
            self.counters
                .add(Counter::BytesReceived, taken_bytes as u64);
        }
    }

    /// Queues a transmit whose payload is a part of the `lent` bytes at `place`. Returns where its
    /// last byte in the buffer is; `None` where it was dropped.
    fn send(&mut self, transmit: &Transmit, lent: usize, place: Place) -> Option<*mut u8> {
        assert!(
            transmit.payload.end <= lent,
            "{:?} of {lent} bytes",
            transmit.payload
        );
        let egress = match self.sockets.egress(transmit) {
            Ok(egress) => egress,
            Err(reason) => {
                self.counters.add(reason, 1);
                return None;
            }
        };
        let queued = self
            .outbox
            .push(self.now, egress, transmit, place, &mut self.buffers);
        match queued {
            Some(queued) if queued.starts => self.sockets.hold(egress.socket),
            Some(_) => {}
            None => self.counters.add(Counter::DropNoSendSlot, 1),
        }
        queued.map(|queued| queued.end)
    }

    /// Takes the kernel's answer to a message of the outbox.
    pub(crate) fn sent(&mut self, message: u16, result: i32) {
        if result < 0 && self.tries_again(message, -result) {
            return;
        }
        let done =
            self.outbox
                .complete(self.now, message, result, &mut self.buffers, &self.counters);
        if let Some(slot) = done {
            self.sockets.release(slot);
        }
    }

    /// Takes what waits in the queues into this shard. Returns whether some is left.
    pub(crate) fn take_mail(&mut self) -> bool {
        let mut taken = 0;
        while taken < MAX_PER_ROUND
            && let Some(event) = self.mailbox.take()
        {
            self.counters.add(Counter::Events, 1);
            self.machine.handle_event(self.now, event);
            taken += 1;
        }
        let own = usize::from(self.id.0);
        while taken < MAX_PER_ROUND
            && self.buffers.released(Class::Own) > 0
            && let Some(handover) = self.neighbours[own].handovers.pop()
        {
            self.take_handover(&handover);
            taken += 1;
        }
        !self.mailbox.is_empty() || !self.neighbours[own].handovers.is_empty()
    }

    /// Whether nothing waits in the queues into this shard.
    pub(crate) fn mail_is_empty(&self) -> bool {
        self.mailbox.is_empty()
            && self.neighbours[usize::from(self.id.0)].handovers.is_empty()
            && !self.bell.is_stopped()
    }

    /// Tells the machine the time where it wants to know, runs its commands and queues what it
    /// sends. Returns whether it has more to send than there was room for.
    pub(crate) fn run_machine(&mut self) -> bool {
        if self
            .machine
            .poll_timeout()
            .is_some_and(|deadline| deadline <= self.now)
        {
            self.machine.handle_timeout(self.now);
        }
        let mut commands = 0;
        loop {
            let mut idle = true;
            // All commands first: what the machine sends may tell of what they do.
            while let Some(command) = self.machine.poll_command() {
                idle = false;
                commands += 1;
                let mut desk = Desk {
                    sockets: &mut self.sockets,
                    neighbours: &self.neighbours,
                    counters: &self.counters,
                };
                if let Some(event) = self.host.execute(command, &mut desk) {
                    self.machine.handle_event(self.now, event);
                }
                if commands >= MAX_COMMANDS_PER_ROUND {
                    return true;
                }
            }
            loop {
                let Some(buffer) = self.buffers.take_released(Class::Own) else {
                    return true;
                };
                if !self.poll_transmit(buffer) {
                    break;
                }
                idle = false;
            }
            if idle {
                return false;
            }
        }
    }

    /// Lets the machine write one datagram into `buffer`. Returns whether it had one.
    fn poll_transmit(&mut self, buffer: BufferId) -> bool {
        self.buffers.hold_first(buffer);
        let lent = self.buffers.kernel_area(buffer);
        // SAFETY: the buffer has this length, and was free until this shard took it.
        let bytes = unsafe { std::slice::from_raw_parts_mut(lent, TRANSMIT_BUFFER_BYTES) };
        let transmit = self.machine.poll_transmit(self.now, bytes);
        if let Some(transmit) = &transmit {
            let place = Place {
                lent,
                room_before: Class::Own.headroom(),
                end_of_room: TRANSMIT_BUFFER_BYTES + SLACK_BYTES,
                buffer,
                following: 0,
            };
            self.send(transmit, TRANSMIT_BUFFER_BYTES, place);
        }
        self.buffers.release(buffer);
        transmit.is_some()
    }

    /// Gives all datagrams of a buffer to another shard.
    fn hand_all_over(
        &self,
        home: ShardId,
        listener: ListenerId,
        local: IpAddr,
        received: &Received,
    ) {
        let segment = match received.segment_bytes {
            0 => received.bytes.max(1),
            bytes => bytes,
        };
        // SAFETY: the driver checked that the payload lies in the kernel area.
        let start = unsafe {
            self.buffers
                .kernel_area(received.buffer)
                .add(received.offset)
        };
        // SAFETY: the buffer is held by this shard alone.
        let bytes = unsafe { std::slice::from_raw_parts(start, received.bytes) };
        for payload in bytes.chunks(segment) {
            self.hand_over(home, listener, local, received, payload);
        }
        self.neighbours[usize::from(home.0)].bell.ring();
    }

    /// Leaves a datagram for another shard, whose bell is still to be rung.
    fn hand_over(
        &self,
        home: ShardId,
        listener: ListenerId,
        local: IpAddr,
        received: &Received,
        payload: &[u8],
    ) {
        let handover = Handover {
            listener,
            local,
            remote: received.remote,
            traffic_class: received.traffic_class,
            payload: payload.into(),
        };
        self.neighbours[usize::from(home.0)].leave(handover, &self.counters);
    }

    /// Takes a datagram another shard received for this one.
    fn take_handover(&mut self, handover: &Handover) {
        let buffer = self
            .buffers
            .take_released(Class::Own)
            .expect("the caller saw a free one");
        self.buffers.hold_first(buffer);
        let area = self.buffers.kernel_area(buffer);
        let bytes = handover.payload.len();
        assert!(
            bytes <= TRANSMIT_BUFFER_BYTES,
            "a longer datagram is not handed over"
        );
        // SAFETY: the buffer is as long as was just checked, and held by this shard alone.
        unsafe { std::ptr::copy_nonoverlapping(handover.payload.as_ptr(), area, bytes) };
        let received = Received {
            buffer,
            remote: handover.remote,
            local: Some(handover.local),
            offset: 0,
            bytes,
            segment_bytes: 0,
            traffic_class: handover.traffic_class,
        };
        self.split(
            Socket::Listener(handover.listener),
            handover.local,
            &received,
            None,
        );
        self.buffers.release(buffer);
    }
}

/// How often this thread has given up its CPU because there was nothing to do.
fn rests_of_thread() -> i64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to memory for the structure that outlives the call.
    let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    assert_eq!(result, 0, "a thread may always ask for its own usage");
    // SAFETY: zeroed bytes are a valid value, and the kernel has written the rest.
    unsafe { usage.assume_init() }.ru_nvcsw
}

/// The time now.
pub(crate) fn monotonic() -> Timestamp {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec that outlives the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    assert_eq!(result, 0, "the monotonic clock is always there");
    Timestamp::from_nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
