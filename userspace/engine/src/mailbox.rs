//! Bounded queues into a shard, and the bell that wakes it.
//!
//! ```text
//!   sender                         shard, before it sleeps
//!   push message                   asleep = true
//!   fence                          fence
//!   asleep was true? ring          queue not empty? stay awake
//! ```
//!
//! Both sides write, fence, and then read what the other one writes, so at least one of them sees
//! the other: a message is never left behind a sleeping shard. `loom_` tests check it:
//! `RUSTFLAGS="--cfg loom" cargo test -p towpath-engine --release loom_`.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use self::atomic::{AtomicBool, Ordering, fence};

#[cfg(loom)]
use loom::sync::atomic;
#[cfg(not(loom))]
use std::sync::atomic;

/// The way into a shard for events, from any thread.
pub struct Mailbox<E> {
    events: Arc<ArrayQueue<E>>,
    bell: Arc<Bell>,
}

/// The mailbox holds as many messages as it may. The message comes back.
#[derive(thiserror::Error)]
#[error("the shard's mailbox is full")]
pub struct Full<E>(pub E);

impl<E> std::fmt::Debug for Full<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Full")
    }
}

impl<E> Mailbox<E> {
    /// A mailbox for `messages` events at most, and the bell it rings.
    pub(crate) fn new(messages: usize, bell: Arc<Bell>) -> Self {
        Self {
            events: Arc::new(ArrayQueue::new(messages.max(1))),
            bell,
        }
    }

    /// Leaves an event for the shard and wakes it where it sleeps.
    pub fn try_send(&self, event: E) -> Result<(), Full<E>> {
        self.events.push(event).map_err(Full)?;
        self.bell.ring();
        Ok(())
    }

    /// Drops what waits: for a machine that is about to end, so that nobody waits for what nobody does.
    pub fn clear(&self) {
        while self.events.pop().is_some() {}
    }

    /// Takes the oldest event. Only the shard calls this.
    pub(crate) fn take(&self) -> Option<E> {
        self.events.pop()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

impl<E> Clone for Mailbox<E> {
    fn clone(&self) -> Self {
        Self {
            events: Arc::clone(&self.events),
            bell: Arc::clone(&self.bell),
        }
    }
}

impl<E> std::fmt::Debug for Mailbox<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox")
            .field("waiting", &self.events.len())
            .finish_non_exhaustive()
    }
}

/// Wakes a shard that sleeps in the kernel.
#[derive(Debug)]
pub(crate) struct Bell {
    sleeper: Sleeper,
    stop: std::sync::atomic::AtomicBool,
    eventfd: OwnedFd,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no memory is handed over.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above made the descriptor and nobody else knows it.
        let eventfd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            sleeper: Sleeper::new(),
            stop: std::sync::atomic::AtomicBool::new(false),
            eventfd,
        })
    }

    /// Wakes the shard where it sleeps. To be called after the message was left.
    pub(crate) fn ring(&self) {
        if self.sleeper.must_wake() {
            let one = 1u64.to_ne_bytes();
            // SAFETY: the pointer is to eight bytes that outlive the call. It fails only where the
            // counter is at its end, and then the shard is being woken already.
            unsafe { libc::write(self.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }

    /// Asks the shard to end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        self.ring();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(std::sync::atomic::Ordering::SeqCst)
    }

    pub(crate) fn sleeper(&self) -> &Sleeper {
        &self.sleeper
    }

    /// Readable once the bell was rung; the shard reads eight bytes from it.
    pub(crate) fn fd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }

    /// Reads the descriptor, which must be readable.
    pub(crate) fn hush(&self) {
        let mut count = [0; 8];
        // SAFETY: the pointer is to eight bytes that outlive the call.
        unsafe { libc::read(self.fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

/// Whether a shard sleeps: the protocol of the module's picture without the system calls.
#[derive(Debug)]
pub(crate) struct Sleeper {
    asleep: AtomicBool,
}

impl Sleeper {
    fn new() -> Self {
        Self {
            asleep: AtomicBool::new(false),
        }
    }

    /// Sender, after a message was left: whether this sender has to wake the shard.
    fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed)
    }

    /// Shard, before it looks at its queues for the last time and sleeps.
    pub(crate) fn announce(&self) {
        // A swap like the senders': each reads the newest value, so the last of them decides. The
        // model of a plain store lets an earlier swap come out on top of it.
        self.asleep.swap(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Shard, awake again or not asleep after all.
    pub(crate) fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_full_mailbox_gives_the_message_back() {
        let mailbox = Mailbox::new(2, Arc::new(Bell::new().unwrap()));
        mailbox.try_send(1).unwrap();
        mailbox.try_send(2).unwrap();
        let Full(returned) = mailbox.try_send(3).unwrap_err();
        assert_eq!(returned, 3);
        assert_eq!(
            (mailbox.take(), mailbox.take(), mailbox.take()),
            (Some(1), Some(2), None)
        );
    }

    #[test]
    fn only_a_sleeping_shard_costs_a_system_call() {
        let sleeper = Sleeper::new();
        assert!(!sleeper.must_wake());
        sleeper.announce();
        assert!(sleeper.must_wake());
        assert!(!sleeper.must_wake());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    use super::Sleeper;

    /// A queue that orders nothing but itself, and an eventfd.
    struct Model {
        pushed: AtomicUsize,
        sleeper: Sleeper,
        rung: Mutex<bool>,
        bell: Condvar,
    }

    impl Model {
        fn send(&self) {
            self.pushed.fetch_add(1, Ordering::Relaxed);
            if self.sleeper.must_wake() {
                *self.rung.lock().unwrap() = true;
                self.bell.notify_one();
            }
        }

        /// Takes `messages`, sleeping whenever there is none. A lost wake-up is a deadlock here,
        /// which loom reports.
        fn receive(&self, messages: usize) {
            let mut taken = 0;
            while taken < messages {
                self.sleeper.announce();
                let pushed = self.pushed.load(Ordering::Relaxed);
                if pushed == taken {
                    let mut rung = self.rung.lock().unwrap();
                    while !*rung {
                        rung = self.bell.wait(rung).unwrap();
                    }
                    *rung = false;
                }
                self.sleeper.awake();
                taken = self.pushed.load(Ordering::Relaxed);
            }
        }
    }

    fn check(senders: usize) {
        loom::model(move || {
            let model = Arc::new(Model {
                pushed: AtomicUsize::new(0),
                sleeper: Sleeper::new(),
                rung: Mutex::new(false),
                bell: Condvar::new(),
            });
            let threads: Vec<_> = (0..senders)
                .map(|_| {
                    let model = Arc::clone(&model);
                    thread::spawn(move || model.send())
                })
                .collect();
            model.receive(senders);
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }

    #[test]
    fn loom_a_message_never_waits_behind_a_sleeping_shard() {
        check(1);
    }

    #[test]
    fn loom_two_senders_never_leave_the_shard_asleep() {
        check(2);
    }
}
