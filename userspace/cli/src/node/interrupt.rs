//! What a command waits for besides the network: Ctrl-C, and time.

use std::convert::Infallible;
use std::thread;
use std::time::Duration;

use async_channel::Receiver;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::exit::Failure;

/// The first Ctrl-C or SIGTERM, for everybody who waits for it. The second ends the process at once.
#[derive(Clone)]
pub(crate) struct Interrupt(Moment);

/// A moment that comes once, and that any number of futures wait for.
#[derive(Clone)]
pub(crate) struct Moment(Receiver<Infallible>);

impl Interrupt {
    /// Catches the signals from now on.
    pub(crate) fn catch() -> Result<Self, Failure> {
        let mut signals = Signals::new([SIGINT, SIGTERM])
            .map_err(|error| Failure::Runtime(format!("cannot catch signals: {error}")))?;
        let (sender, receiver) = async_channel::bounded(1);
        thread::spawn(move || {
            for signal in signals.forever() {
                if !sender.close() {
                    // Where this fails there is nothing else to be done either.
                    let _ = emulate_default_handler(signal);
                }
            }
        });
        Ok(Self(Moment(receiver)))
    }

    /// Waits for it.
    pub(crate) async fn wait(&self) {
        self.0.wait().await;
    }
}

impl Moment {
    /// Waits for it.
    pub(crate) async fn wait(&self) {
        // Nothing is ever sent: the queue is closed.
        let _ = self.0.recv().await;
    }
}

/// The moment after so much time.
pub(crate) fn after(time: Duration) -> Moment {
    let (sender, receiver) = async_channel::bounded(1);
    thread::spawn(move || {
        thread::sleep(time);
        drop(sender);
    });
    Moment(receiver)
}
