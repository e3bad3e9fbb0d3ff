//! What happens in a node, for whoever wants to know.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_channel::{Receiver, Sender, TrySendError};
use futures::Stream;
use towpath_proto::breaker::BreakerChange;
use towpath_proto::health::HealthStatus;
use towpath_proto::identity::PeerId;
use towpath_proto::pool::DialError;
use towpath_proto::quic::{CloseReason, SecurityLevel};

/// Events that wait for one who listens.
const MAX_WAITING: usize = 1024;

/// What happens in a node.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection stands.
    Connected {
        /// With whom.
        peer: PeerId,
        /// What its keys rest upon.
        security: SecurityLevel,
        /// Whether the peer called.
        incoming: bool,
    },
    /// A connection that stood is over.
    Closed {
        /// With whom.
        peer: PeerId,
        /// Why.
        reason: CloseReason,
    },
    /// A peer was called and did not answer; it is called again.
    Retry {
        /// Whom.
        peer: PeerId,
        /// The attempt that failed, from 1.
        attempt: u32,
        /// The pause before the next one.
        after: Duration,
        /// Why it failed.
        error: DialError,
    },
    /// A peer cannot be reached.
    Failed {
        /// Whom.
        peer: PeerId,
        /// Attempts that were made.
        attempts: u32,
        /// Why the last one failed.
        error: DialError,
    },
    /// There was no room for a connection.
    Full {
        /// With whom.
        peer: PeerId,
    },
    /// Something is called no more for a while because it did not answer too often, or is called again.
    Breaker(BreakerChange),
    /// A peer is doing better or worse, as far as one of the node's shards knows.
    HealthChanged {
        /// Which.
        peer: PeerId,
        /// How it did before.
        from: HealthStatus,
        /// How it is doing now.
        to: HealthStatus,
    },
}

/// The events of a node, from when it was asked for; ends with the node. One who does not keep up loses
/// the newest, and how many is counted.
#[derive(Debug)]
pub struct Events {
    queue: Pin<Box<Receiver<Event>>>,
    lost: Arc<AtomicU64>,
}

/// The node's end of [`Events`].
#[derive(Debug)]
pub(crate) struct Listener {
    queue: Sender<Event>,
    lost: Arc<AtomicU64>,
}

/// A queue of events, and its end for the node.
pub(crate) fn subscribe() -> (Listener, Events) {
    let (sender, receiver) = async_channel::bounded(MAX_WAITING);
    let lost = Arc::<AtomicU64>::default();
    let listener = Listener {
        queue: sender,
        lost: Arc::clone(&lost),
    };
    let events = Events {
        queue: Box::pin(receiver),
        lost,
    };
    (listener, events)
}

impl Listener {
    /// Tells an event. Returns whether anybody listens.
    pub(crate) fn tell(&self, event: &Event) -> bool {
        match self.queue.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }
}

impl Events {
    /// The next event; `None` once the node is closed.
    pub async fn next(&mut self) -> Option<Event> {
        self.queue.recv().await.ok()
    }

    /// How many were lost because too many waited.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.queue.as_mut().poll_next(cx)
    }
}
