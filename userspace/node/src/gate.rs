//! The way into a shard, from any thread.
//!
//! ```text
//!   another thread ── order ──▶ mailbox ─┐
//!   a waker ────────── woken ───────────▶├─▶ shard: runs orders, lets go, polls the tasks that were woken
//!   a dropped handle ─ released ────────▶┘
//! ```
//!
//! What an application does on a shard's own thread, in a task of it, goes straight to its [`Core`].

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam::queue::SegQueue;
use futures::FutureExt as _;
use futures::channel::oneshot;
use futures::future::poll_fn;
use towpath_engine::Mailbox;

use crate::core::{Core, Release, Task};

/// What another thread has a shard do.
pub(crate) enum Order {
    /// Poll the tasks that were woken.
    Wake,
    /// Do this.
    Run(Box<dyn FnOnce(&mut Core) + Send>),
}

/// The shard has ended, and its node with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gone;

/// A shard's gate.
pub(crate) struct Gate {
    mailbox: OnceLock<Mailbox<Order>>,
    /// Whether tasks were woken, or handles dropped, since the shard looked last.
    woken: AtomicBool,
    /// What handles were for that exist no more. As many as there were handles, so it needs no bound of
    /// its own, and a drop never fails.
    released: SegQueue<Release>,
    gone: AtomicBool,
}

thread_local! {
    /// The gate of the shard that runs on this thread, as its address.
    static HERE: Cell<usize> = const { Cell::new(0) };
    /// The core of that shard while it polls its tasks.
    static CORE: RefCell<Option<Box<Core>>> = const { RefCell::new(None) };
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            mailbox: OnceLock::new(),
            woken: AtomicBool::new(false),
            released: SegQueue::new(),
            gone: AtomicBool::new(false),
        }
    }

    /// Opens the gate for other threads.
    pub(crate) fn open(&self, mailbox: Mailbox<Order>) {
        // A gate is opened once, by who made it.
        let _ = self.mailbox.set(mailbox);
    }

    /// Has the shard run `order`. Given back where the mailbox is full.
    pub(crate) fn send(&self, order: Order) -> Result<Result<(), Order>, Gone> {
        if self.gone.load(Ordering::Acquire) {
            return Err(Gone);
        }
        let mailbox = self.mailbox.get().ok_or(Gone)?;
        let sent = mailbox.try_send(order).map_err(|full| full.0);
        // A shard that has ended meanwhile has dropped the order, or will never see it.
        if self.gone.load(Ordering::SeqCst) {
            return Err(Gone);
        }
        Ok(sent)
    }

    /// Lets go of what a handle was for.
    pub(crate) fn release(&self, what: Release) {
        if !self.gone.load(Ordering::Acquire) {
            self.released.push(what);
            self.ring();
        }
    }

    /// What is to be let go of next.
    pub(crate) fn next_released(&self) -> Option<Release> {
        self.released.pop()
    }

    /// Whether the shard has to look at its tasks.
    pub(crate) fn is_woken(&self) -> bool {
        self.woken.load(Ordering::Acquire)
    }

    /// The same, and the shard looks.
    pub(crate) fn take_woken(&self) -> bool {
        self.woken.load(Ordering::Acquire) && self.woken.swap(false, Ordering::AcqRel)
    }

    /// The shard is over: nothing that is sent from now on is done.
    pub(crate) fn close(&self) {
        self.gone.store(true, Ordering::SeqCst);
        while self.released.pop().is_some() {}
        if let Some(mailbox) = self.mailbox.get() {
            mailbox.clear();
        }
    }

    /// Has the shard look at what it has to do.
    pub(crate) fn ring(&self) {
        if self.woken.swap(true, Ordering::AcqRel) || self.is_here() {
            return;
        }
        if let Some(mailbox) = self.mailbox.get() {
            // A full mailbox belongs to a shard that is awake, and looks when it has emptied it.
            let _ = mailbox.try_send(Order::Wake);
        }
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn is_here(&self) -> bool {
        HERE.get() == self.address()
    }

    /// This thread is the shard's from now on.
    pub(crate) fn settle(&self) {
        HERE.set(self.address());
    }

    /// Whether the thread is that of any shard.
    pub(crate) fn on_any_shard() -> bool {
        HERE.get() != 0
    }

    /// Does something with the core where this is its thread and a task of it is running; else gives
    /// `act` back.
    pub(crate) fn here<T, F: FnOnce(&mut Core) -> T>(&self, act: F) -> Result<T, F> {
        if !self.is_here() {
            return Err(act);
        }
        CORE.with(|core| match core.try_borrow_mut() {
            Ok(mut core) => match core.as_deref_mut() {
                Some(core) => Ok(act(core)),
                None => Err(act),
            },
            Err(_) => Err(act),
        })
    }
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

/// Lends the core to the tasks of this thread while `poll` runs.
pub(crate) fn lend<T>(core: Box<Core>, poll: impl FnOnce() -> T) -> (Box<Core>, T) {
    CORE.set(Some(core));
    let outcome = poll();
    let core = CORE.take();
    (core.expect("nobody but this function takes it"), outcome)
}

/// Tasks that were begun on the lent core.
pub(crate) fn take_spawned() -> Vec<Task> {
    CORE.with_borrow_mut(|core| {
        core.as_mut()
            .map_or_else(Vec::new, |core| core.take_spawned())
    })
}

/// Whether tasks were begun on the lent core.
pub(crate) fn is_anything_spawned() -> bool {
    CORE.with_borrow(|core| core.as_ref().is_some_and(|core| core.has_spawned()))
}

/// Something that a shard does for a handle, in one step or after waiting: `op` is called until it is
/// ready, and sees to it that it is woken.
///
/// On the shard's thread it is called in place. From elsewhere it becomes a task of the shard, whose
/// answer is in `pending` from then on: who drops the future and comes again with the same `pending`
/// loses nothing.
pub(crate) fn poll_op<T: Send + 'static>(
    gate: &Gate,
    pending: &mut Option<oneshot::Receiver<T>>,
    cx: &mut Context<'_>,
    mut op: impl FnMut(&mut Core, &mut Context<'_>) -> Poll<T> + Send + 'static,
) -> Poll<Result<T, Gone>> {
    if pending.is_none() {
        match gate.here(|core| op(core, cx)) {
            Ok(polled) => return polled.map(Ok),
            Err(_unused) => {}
        }
        let (sender, receiver) = oneshot::channel();
        let order = Order::Run(Box::new(move |core| core.begin(op, sender)));
        match gate.send(order) {
            Ok(Ok(())) => *pending = Some(receiver),
            Ok(Err(_full)) => {
                // It has room again in a moment: the shard is at work on what is in it.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Err(gone) => return Poll::Ready(Err(gone)),
        }
    }
    let Some(receiver) = pending else {
        return Poll::Pending;
    };
    receiver.poll_unpin(cx).map(|answer| {
        *pending = None;
        answer.map_err(|_| Gone)
    })
}

/// The same for a task of the shard, while it is polled.
pub(crate) fn poll_here<T>(gate: &Gate, op: impl FnOnce(&mut Core) -> Poll<T>) -> Poll<T> {
    gate.here(op).unwrap_or(Poll::Pending)
}

/// The same as a future.
pub(crate) async fn op<T: Send + 'static>(
    gate: &Gate,
    op: impl FnMut(&mut Core, &mut Context<'_>) -> Poll<T> + Clone + Send + 'static,
) -> Result<T, Gone> {
    let mut pending = None;
    poll_fn(|cx| poll_op(gate, &mut pending, cx, op.clone())).await
}

/// Adds a waker, unless it is there.
pub(crate) fn register(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|known| known.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}
