//! What a running server is asked for: by signals, and on the control socket.

use std::io;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal as Number};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::StopSignal;
use crate::reload::Reloaded;

/// How many may wait. The server takes the next one as soon as it has done the one before.
pub(crate) const MAX_WAITING: usize = 16;
/// How long a signal to stop waits for room.
const RETRY: Duration = Duration::from_millis(10);

/// What a server is asked for.
#[derive(Debug)]
pub(crate) enum Order {
    /// To end, with every allocation.
    Stop(StopSignal),
    /// To read its configuration again, and to answer.
    Reload(Option<Reply>),
    /// To make no new allocations, and to end with the last one.
    Drain,
}

/// The way of a reload's outcome to who asked for it.
pub(crate) type Reply = oneshot::Sender<Result<Reloaded, String>>;

/// The signals that would end a process that does not know them yet.
fn held() -> SigSet {
    [Number::SIGHUP, Number::SIGUSR1].into_iter().collect()
}

/// Has SIGHUP and SIGUSR1 wait until [`Signals::new`], in this thread and those it starts: who sends one
/// while a server starts does not end it.
pub(crate) fn hold_signals() {
    if let Err(error) = held().thread_block() {
        tracing::debug!(%error, "signals cannot be held back");
    }
}

/// The signals that a server knows.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
}

impl Signals {
    /// Hears them from now on, and what was held back.
    pub(crate) fn new() -> io::Result<Self> {
        let signals = Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
        };
        held().thread_unblock()?;
        Ok(signals)
    }

    /// Passes them on. A second signal to stop ends the process.
    pub(crate) async fn pass_on(mut self, orders: SyncSender<Order>) {
        let mut stopping = false;
        loop {
            let stop = tokio::select! {
                _ = self.terminate.recv() => StopSignal::Terminate,
                _ = self.interrupt.recv() => StopSignal::Interrupt,
                _ = self.hangup.recv() => {
                    offer(&orders, Order::Reload(None));
                    continue;
                }
                _ = self.user1.recv() => {
                    offer(&orders, Order::Drain);
                    continue;
                }
            };
            if stopping {
                tracing::warn!(signal = stop.name(), "ending at once");
                std::process::exit(1);
            }
            stopping = true;
            tracing::info!(signal = stop.name(), "stopping");
            // The receiver is gone only where the server stops already.
            while let Err(TrySendError::Full(_)) = orders.try_send(Order::Stop(stop)) {
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Whether the server will see to it. What waits already is done with what is there by then.
pub(crate) fn offer(orders: &SyncSender<Order>, order: Order) -> bool {
    let taken = orders.try_send(order).is_ok();
    if !taken {
        tracing::warn!("too many requests to reload or drain at once");
    }
    taken
}
