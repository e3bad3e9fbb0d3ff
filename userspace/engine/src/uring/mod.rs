//! The io_uring driver: multishot receives into provided buffers, sends straight out of them, and
//! one system call per round for everything.
//!
//! ```text
//!   enter: submit sends of the last round, run deferred receives, wait where there is nothing to do
//!   reap:  receives ─▶ machine ─▶ outbox          sends ─▶ buffers free again
//!   then:  mail, timers, commands, the machine's own transmits ─▶ outbox ─▶ submission queue
//! ```
//!
//! The kernel owns a buffer from the receive that names it to the last completion of a send from
//! it; only then it goes back to its ring.

mod provided;
mod receive;
mod ring;

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, Fixed, Timespec};
use io_uring::{cqueue, opcode, squeue};
use towpath_proto::{Machine, Timestamp};

pub(crate) use self::provided::ProvidedRing;
use self::receive::Templates;
use self::ring::Operation;
pub(crate) use self::ring::Ring;
use crate::Host;
use crate::buffers::Class;
use crate::counters::Counter;
use crate::outbox::Message;
use crate::shard::{BURST_MESSAGES, Shard, monotonic};
use crate::sockets::{Change, State};

/// Completions taken from the ring at once.
const REAPED: usize = 1024;

/// A round that received this many looks for more before it sends: longer runs are cheaper.
const BUSY_RECEIVES: u32 = 32;

/// What one round receives before it sends, at most. Bounds the time a datagram waits for others.
const ROUND_RECEIVES: u32 = 256;

/// How long a send by a relayed port may have failed before the shard looks.
const UNHEARD: Duration = Duration::from_millis(5);

/// How long an ending shard waits for the kernel to let go of its memory.
const CLOSE_NANOS: u64 = 2_000_000_000;

/// A shard on io_uring. The ring is dropped before the memory the kernel knows of.
pub(crate) struct Uring<M: Machine, H> {
    ring: Ring,
    small: ProvidedRing,
    big: ProvidedRing,
    templates: Box<Templates>,
    shared: Box<SharedWithKernel>,
    shard: Shard<M, H>,
    completions: Vec<cqueue::Entry>,
    messages: Vec<u16>,
    changes: Vec<Change>,
    /// Slots whose receive ended and begins again when there are buffers.
    starved: Vec<u32>,
    /// Slots whose receive ended for another reason and begins again in this round.
    ended: Vec<u32>,
    /// Slots whose receive ended because they are quiet.
    quiet: Vec<u32>,
    /// The next slot to look at for being quiet, and when.
    looked: u32,
    next_look: Timestamp,
    fixed_files: u32,
    timer: Option<Timestamp>,
    /// Operations besides those of sockets: the bell's read and the timer.
    standing: u32,
    received: u32,
    /// Sends whose completions were not taken yet.
    sending: u32,
    /// Some of them left by relayed ports, where they may have failed for an earlier one's ICMP error.
    relayed_sends: bool,
    /// Completions the kernel has ever dropped.
    overflows: u32,
    /// One of those sent in this round may be refused, and has to be sent again then.
    awaits_sends: bool,
}

/// What the kernel reads and writes besides datagrams.
#[derive(Default)]
struct SharedWithKernel {
    bell: [u8; 8],
    timer: Timespec,
}

impl<M: Machine, H: Host<M>> Uring<M, H> {
    /// Sets up the ring of this thread and starts to receive.
    pub(crate) fn new(mut shard: Shard<M, H>) -> io::Result<Self> {
        let ring = Ring::new()?;
        let small = ProvidedRing::new(&ring.submitter(), &mut shard.buffers, Class::Small)?;
        let big = ProvidedRing::new(&ring.submitter(), &mut shard.buffers, Class::Big)?;
        let listeners: Vec<RawFd> = (0..shard.sockets.len())
            .filter_map(|index| shard.sockets.slot(index))
            .map(|slot| slot.fd())
            .collect();
        // Registered descriptors save a look-up per send; plain ones do as well.
        let registered = ring.submitter().register_files(&listeners).is_ok();
        let mut uring = Self {
            ring,
            small,
            big,
            templates: Box::new(Templates::new()),
            shared: Box::default(),
            shard,
            completions: Vec::with_capacity(REAPED),
            messages: Vec::new(),
            changes: Vec::new(),
            starved: Vec::new(),
            ended: Vec::new(),
            quiet: Vec::new(),
            looked: 0,
            next_look: monotonic(),
            fixed_files: if registered {
                listeners.len() as u32
            } else {
                0
            },
            timer: None,
            standing: 0,
            received: 0,
            sending: 0,
            relayed_sends: false,
            overflows: 0,
            awaits_sends: false,
        };
        uring.arm_bell()?;
        uring.follow_changes()?;
        uring.ring.enter(0)?;
        Ok(uring)
    }

    /// Runs the shard until it is asked to stop.
    pub(crate) fn run(mut self) {
        while !self.shard.bell.is_stopped() {
            if self.round().is_err() {
                self.shard.counters.add(Counter::WaitErrors, 1);
            }
        }
        self.close();
    }

    /// One round: wait, receive, let the machine work, queue what it sends.
    fn round(&mut self) -> io::Result<()> {
        self.shard.counters.add(Counter::Rounds, 1);
        self.shard.tick();
        self.receive()?;
        let mut busy = self.shard.take_mail();
        self.flush()?;
        busy |= self.shard.run_machine();
        self.follow_changes()?;
        self.flush()?;
        self.refill();
        self.quieten()?;
        self.begin_again()?;
        busy |= std::mem::take(&mut self.awaits_sends);
        if busy || self.is_due() {
            return self.ring.enter(0);
        }
        self.arm_timer()?;
        self.shard.bell.sleeper().announce();
        let result = if self.shard.mail_is_empty() {
            self.shard.counters.add(Counter::Sleeps, 1);
            // Sends complete as they are submitted; they are no reason to wake, but where receives
            // wait for the buffers they hold.
            let reason = if self.starved.is_empty() {
                self.sending
            } else {
                0
            };
            self.ring.enter(reason + 1)
        } else {
            self.ring.enter(0)
        };
        self.shard.bell.sleeper().awake();
        result
    }

    /// Takes completions, and looks for more while they come in large numbers.
    fn receive(&mut self) -> io::Result<()> {
        self.received = 0;
        loop {
            let before = self.received;
            self.reap()?;
            let is_busy = self.received - before >= BUSY_RECEIVES;
            let has_room = self.received < ROUND_RECEIVES
                && self.shard.outbox.free() > ROUND_RECEIVES as usize;
            if !is_busy || !has_room {
                return Ok(());
            }
            self.refill();
            self.ring.enter(0)?;
        }
    }

    fn refill(&mut self) {
        self.small.refill(&mut self.shard.buffers);
        self.big.refill(&mut self.shard.buffers);
    }

    /// Takes completions, and sends in between where many messages come together.
    fn reap(&mut self) -> io::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        let overflows = self.ring.reap(&mut completions);
        if overflows != self.overflows {
            let new = overflows.wrapping_sub(self.overflows);
            self.shard
                .counters
                .add(Counter::CompletionOverflows, u64::from(new));
            self.overflows = overflows;
        }
        let mut result = Ok(());
        for completion in &completions {
            self.dispatch(completion);
            if self.shard.outbox.pending() >= BURST_MESSAGES {
                // What has completed has to be taken in any case.
                result = result.and(self.flush().and_then(|()| self.ring.submit()));
            }
        }
        self.completions = completions;
        result
    }

    fn dispatch(&mut self, completion: &cqueue::Entry) {
        match Operation::unpack(completion.user_data()) {
            Some(Operation::Receive { slot, generation }) => {
                self.on_receive(slot, generation, completion.result(), completion.flags());
            }
            Some(Operation::Poll { slot, generation }) => {
                self.on_poll(slot, generation, completion.result());
            }
            Some(Operation::Send(message)) => {
                self.sending -= 1;
                self.shard.sent(message, completion.result());
            }
            Some(Operation::Timer) => {
                self.standing -= 1;
                self.timer = None;
            }
            Some(Operation::Bell) => {
                self.standing -= 1;
                if !self.shard.bell.is_stopped() && self.arm_bell().is_err() {
                    self.shard.counters.add(Counter::WaitErrors, 1);
                }
            }
            // The operation meant to be changed or ended completes by itself.
            Some(Operation::TimerUpdate | Operation::Cancel) => {}
            None => self.shard.counters.add(Counter::ReceiveErrors, 1),
        }
    }

    /// Gives the outbox to the kernel.
    fn flush(&mut self) -> io::Result<()> {
        if !self.shard.outbox.has_pending() {
            return Ok(());
        }
        let mut messages = std::mem::take(&mut self.messages);
        self.shard.outbox.take_pending(&mut messages);
        for &index in &messages {
            let message = self.shard.outbox.message(index);
            self.prepare_socket(&message)?;
            let entry = self
                .send_entry(&message)
                .user_data(Operation::Send(index).pack());
            // SAFETY: the message's slot, the buffers it points into and its socket are kept until
            // its completion is dispatched.
            unsafe { self.ring.push(&entry) }?;
            self.sending += 1;
            self.awaits_sends |= message.is_awaited;
        }
        self.messages = messages;
        Ok(())
    }

    /// Sets the DF bit of a message's socket as the message wants it, once what was queued before has
    /// left as it was meant to.
    #[inline]
    fn prepare_socket(&mut self, message: &Message) -> io::Result<()> {
        let Some(slot) = self.shard.sockets.slot(message.socket) else {
            return Ok(());
        };
        self.relayed_sends |= slot.is_relayed();
        // The kernel may refuse these, and says why in the socket.
        self.awaits_sends |= message.dont_fragment || slot.trouble.is_any();
        if slot.sets_dont_fragment() != message.dont_fragment {
            self.ring.submit()?;
            self.shard
                .sockets
                .set_dont_fragment(message.socket, message.dont_fragment);
        }
        Ok(())
    }

    fn send_entry(&self, message: &Message) -> squeue::Entry {
        // Without this flag a full send buffer would hold the datagram, and all later ones of the
        // socket, until there is room; a relay drops it instead.
        const FLAGS: i32 = libc::MSG_DONTWAIT;
        let is_fixed = message.socket < self.fixed_files;
        let slot = self.shard.sockets.slot(message.socket);
        let fd = slot.map_or(-1, |slot| slot.fd());
        if let Some(piece) = message.plain {
            let (base, bytes) = (piece.iov_base.cast_const().cast(), piece.iov_len as u32);
            let name = message.name.cast();
            let send = |send: opcode::Send| {
                send.flags(FLAGS)
                    .dest_addr(name)
                    .dest_addr_len(message.name_bytes)
                    .build()
            };
            return match is_fixed {
                true => send(opcode::Send::new(Fixed(message.socket), base, bytes)),
                false => send(opcode::Send::new(Fd(fd), base, bytes)),
            };
        }
        match is_fixed {
            true => opcode::SendMsg::new(Fixed(message.socket), message.header)
                .flags(FLAGS as u32)
                .build(),
            false => opcode::SendMsg::new(Fd(fd), message.header)
                .flags(FLAGS as u32)
                .build(),
        }
    }

    /// Begins and ends receives for sockets that were opened and closed.
    fn follow_changes(&mut self) -> io::Result<()> {
        if !self.shard.sockets.has_changes() {
            return Ok(());
        }
        let mut changes = std::mem::take(&mut self.changes);
        self.shard.sockets.take_changes(&mut changes);
        for &change in &changes {
            match change {
                Change::Opened(slot) => self.arm_quiet(slot)?,
                Change::Closing(slot) => {
                    self.cancel_receive(slot)?;
                    self.shard.sockets.free_if_done(slot);
                }
            }
        }
        self.changes = changes;
        Ok(())
    }

    fn is_due(&self) -> bool {
        self.shard
            .machine
            .poll_timeout()
            .is_some_and(|deadline| deadline <= self.shard.now)
    }

    /// Makes sure the ring wakes no later than the machine's deadline. A timer that is too early
    /// stays: it costs one round, and setting it anew would cost something in every round.
    fn arm_timer(&mut self) -> io::Result<()> {
        self.relayed_sends &= self.sending > 0;
        let unheard = self.relayed_sends.then(|| self.shard.now + UNHEARD);
        let deadline = [self.shard.poll_timeout(), unheard].into_iter().flatten();
        let Some(deadline) = deadline.min() else {
            return Ok(());
        };
        if self.timer.is_some_and(|armed| armed <= deadline) {
            return Ok(());
        }
        // Counted from now: the ring takes a point in time for one of the initial time namespace.
        let nanos = deadline.as_nanos().saturating_sub(monotonic().as_nanos());
        self.shared.timer = Timespec::new()
            .sec(nanos / 1_000_000_000)
            .nsec((nanos % 1_000_000_000) as u32);
        let timespec = &raw const self.shared.timer;
        let entry = if self.timer.is_some() {
            opcode::TimeoutUpdate::new(Operation::Timer.pack(), timespec)
                .build()
                .user_data(Operation::TimerUpdate.pack())
        } else {
            self.standing += 1;
            opcode::Timeout::new(timespec)
                .build()
                .user_data(Operation::Timer.pack())
        };
        self.timer = Some(deadline);
        // SAFETY: the time is in memory that lives as long as the ring.
        unsafe { self.ring.push(&entry) }
    }

    fn arm_bell(&mut self) -> io::Result<()> {
        let fd = Fd(self.shard.bell.fd());
        let entry = opcode::Read::new(fd, self.shared.bell.as_mut_ptr(), 8)
            .build()
            .user_data(Operation::Bell.pack());
        self.standing += 1;
        // SAFETY: the eight bytes are in memory that lives as long as the ring.
        unsafe { self.ring.push(&entry) }
    }

    /// Ends every operation, and keeps the memory the kernel knows of until it has let go of it.
    fn close(mut self) {
        self.shard.sockets.close_all();
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any().all())
            .build()
            .user_data(Operation::Cancel.pack());
        // SAFETY: the operation points to nothing.
        let _ = unsafe { self.ring.push(&entry) };
        let give_up = monotonic().as_nanos() + CLOSE_NANOS;
        let mut is_lost = false;
        while self.is_used_by_kernel() {
            // The datagrams of a refused run are queued again, and hold their socket until they left.
            is_lost |= self.flush().is_err() || self.follow_changes().is_err();
            if is_lost || monotonic().as_nanos() > give_up {
                // Never seen; memory the kernel may write to must not be used again.
                std::mem::forget(self);
                return;
            }
            let _ = self.ring.enter(0);
            is_lost = self.reap().is_err();
            std::thread::yield_now();
        }
        // Otherwise the kernel would keep the listeners' addresses until it has cleaned up the ring.
        let _ = self.ring.submitter().unregister_files();
    }

    fn is_used_by_kernel(&self) -> bool {
        let sockets = &self.shard.sockets;
        self.standing > 0
            || (0..sockets.len())
                .filter_map(|index| sockets.slot(index))
                .any(|slot| slot.state != State::Free)
    }
}
