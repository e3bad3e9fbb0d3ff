//! The ring itself: set-up with fallbacks, submission that never fails for want of room, and names
//! of operations.

use std::io;

use io_uring::{IoUring, cqueue, squeue};

/// Submissions that wait for the next system call at most.
const SUBMISSIONS: u32 = 1024;

/// Completions that wait for the shard before the kernel has to keep them elsewhere.
const COMPLETIONS: u32 = 8192;

/// `IORING_ENTER_GETEVENTS`: also runs what the kernel deferred to this thread.
const ENTER_GETEVENTS: u32 = 1;

/// What a completion belongs to, packed into its user data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    /// The standing receive of a socket slot, in one of its uses.
    Receive {
        /// The slot.
        slot: u32,
        /// Which use of the slot.
        generation: u16,
    },
    /// The wait for a first datagram at a quiet slot, in one of its uses.
    Poll {
        /// The slot.
        slot: u32,
        /// Which use of the slot.
        generation: u16,
    },
    /// A message of the outbox.
    Send(u16),
    /// The timer.
    Timer,
    /// A change of the timer.
    TimerUpdate,
    /// The read of the bell's descriptor.
    Bell,
    /// The end of another operation was asked for.
    Cancel,
}

impl Operation {
    pub(crate) const fn pack(self) -> u64 {
        match self {
            Self::Receive { slot, generation } => 1 << 56 | (generation as u64) << 32 | slot as u64,
            Self::Send(message) => 2 << 56 | message as u64,
            Self::Timer => 3 << 56,
            Self::TimerUpdate => 4 << 56,
            Self::Bell => 5 << 56,
            Self::Cancel => 6 << 56,
            Self::Poll { slot, generation } => 7 << 56 | (generation as u64) << 32 | slot as u64,
        }
    }

    pub(crate) const fn unpack(user_data: u64) -> Option<Self> {
        match user_data >> 56 {
            1 => Some(Self::Receive {
                slot: user_data as u32,
                generation: (user_data >> 32) as u16,
            }),
            2 => Some(Self::Send(user_data as u16)),
            3 => Some(Self::Timer),
            4 => Some(Self::TimerUpdate),
            5 => Some(Self::Bell),
            6 => Some(Self::Cancel),
            7 => Some(Self::Poll {
                slot: user_data as u32,
                generation: (user_data >> 32) as u16,
            }),
            _ => None,
        }
    }
}

/// An io_uring of one thread.
pub(crate) struct Ring {
    ring: IoUring,
}

impl Ring {
    /// Sets a ring up. Must run on the thread that will use it.
    pub(crate) fn new() -> io::Result<Self> {
        let build = |array: bool| {
            let mut builder = IoUring::builder();
            builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_submit_all()
                .setup_clamp()
                .setup_cqsize(COMPLETIONS);
            if !array {
                builder.setup_no_sqarray();
            }
            builder.build(SUBMISSIONS)
        };
        // Linux before 6.6 has the array, and calls the flag without it invalid.
        let ring = match build(false) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => build(true)?,
            other => other?,
        };
        Ok(Self { ring })
    }

    pub(crate) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.ring.submitter()
    }

    /// Queues an operation, submitting earlier ones where there is no room.
    ///
    /// # Safety
    /// What the operation points to must stay valid until it has completed for good.
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: the caller promises what the queue asks for.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.enter(0)?;
        }
    }

    /// Submits what is queued, runs deferred work, and waits for `completions`.
    pub(crate) fn enter(&mut self, completions: u32) -> io::Result<()> {
        self.enter_with(completions, ENTER_GETEVENTS)
    }

    fn enter_with(&mut self, completions: u32, flags: u32) -> io::Result<()> {
        let queued = self.ring.submission().len() as u32;
        // SAFETY: no argument structure is passed; whoever queued an entry promised its validity.
        let result = unsafe {
            self.ring
                .submitter()
                .enter::<libc::sigset_t>(queued, completions, flags, None)
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // A signal, or completions wait to be taken first: the caller's loop does that.
                Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Submits what is queued, and does nothing else.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        self.enter_with(0, 0)
    }

    /// Takes completions, up to the capacity `into` has. Returns how many the kernel has
    /// ever dropped.
    pub(crate) fn reap(&mut self, into: &mut Vec<cqueue::Entry>) -> u32 {
        into.clear();
        let mut queue = self.ring.completion();
        into.extend(queue.by_ref().take(into.capacity()));
        queue.overflow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_survive_their_packing() {
        let operations = [
            Operation::Receive {
                slot: u32::MAX,
                generation: 0x8001,
            },
            Operation::Receive {
                slot: 0,
                generation: 0,
            },
            Operation::Poll {
                slot: 70_000,
                generation: 3,
            },
            Operation::Send(65_534),
            Operation::Timer,
            Operation::TimerUpdate,
            Operation::Bell,
            Operation::Cancel,
        ];
        for operation in operations {
            assert_eq!(Operation::unpack(operation.pack()), Some(operation));
        }
        assert_eq!(Operation::unpack(0), None);
        assert_eq!(Operation::unpack(u64::MAX), None);
    }
}
