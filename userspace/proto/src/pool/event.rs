//! What a pool wants done, what it tells callers and observers, and what it counts.

use std::time::Duration;

use super::retry::DialError;
use super::slab::Key;
use crate::Timestamp;
use crate::identity::{PeerAddr, PeerId};
use crate::quic::CloseReason;
use crate::relay::Counter;

/// What a caller knows its wait by. The caller chooses it, different from all others that wait.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// A peer being dialled, with all attempts. It stays a safe value after the dial is over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DialId(pub(super) Key);

/// What came of asking for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Got<C> {
    /// There is one. The caller has a reference to it, which it has to release.
    Live(C),
    /// It is being made; an [`Action::Answer`] follows.
    Waiting,
}

/// Why a caller gets no connection.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GetError {
    /// The node has all the connections that it may have, and all are in use.
    #[error("all {limit} connections are in use, and no more are allowed")]
    Full {
        /// `max_total_connections`.
        limit: usize,
    },
    /// Too many callers wait.
    #[error("{0} callers wait already, and no more may")]
    TooManyWaiters(usize),
    /// The caller chose a ticket that waits already.
    #[error("{0:?} waits already")]
    TicketInUse(Ticket),
    /// The peer cannot be reached, and trying again would not help or was done often enough.
    #[error("attempt {attempts} to reach the peer failed: {error}")]
    Failed {
        /// Attempts that were made.
        attempts: u32,
        /// Why the last one failed.
        error: DialError,
    },
    /// The peer was not reached in the time that a caller waits.
    #[error("the peer was not reached within {deadline:?}, in {attempts} attempts")]
    Deadline {
        /// How long the caller waited.
        deadline: Duration,
        /// Attempts that were begun.
        attempts: u32,
        /// Why the last one that is over failed.
        last: Option<DialError>,
    },
    /// The peer could not be reached so often that nobody tries before a time that the caller does not
    /// wait for.
    #[error("the peer is not called before {retry_at:?}, because it did not answer too often")]
    Held {
        /// When it may be tried again.
        retry_at: Timestamp,
    },
    /// The node is being shut down.
    #[error("the node is being shut down")]
    ShuttingDown,
}

/// Why a connection that the peer made is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The node has all the connections that it may have, and all are in use.
    #[error("all {limit} connections are in use, and no more are allowed")]
    Full {
        /// `max_total_connections`.
        limit: usize,
    },
    /// The peer has too many, and all are in use.
    #[error("the peer has {0} connections, and no more are allowed")]
    TooManyOfPeer(usize),
    /// The node is being shut down.
    #[error("the node is being shut down")]
    ShuttingDown,
}

/// What a pool wants done. Whoever does it reports back as said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action<C> {
    /// Call a peer. [`dialled`](super::Pool::dialled), [`dial_failed`](super::Pool::dial_failed) or
    /// [`dial_refused`](super::Pool::dial_refused) follows.
    Dial {
        /// Which dial.
        dial: DialId,
        /// Whom, and where.
        to: PeerAddr,
        /// Which attempt it is, from 1.
        attempt: u32,
    },
    /// Give the present attempt of a dial up. Nothing has to be reported.
    Cancel {
        /// Which dial.
        dial: DialId,
        /// Whether it took too long. Else nobody wants it any more.
        too_slow: bool,
    },
    /// Close a connection, which the pool knows no more. Nothing has to be reported.
    Close {
        /// Which.
        connection: C,
        /// Why.
        cause: Cause,
    },
    /// Send something on a connection, so that it does not look idle.
    KeepAlive {
        /// Which.
        connection: C,
    },
    /// Tell a caller what came of its wait. With a connection it has a reference, which it has to
    /// release.
    Answer {
        /// Which caller.
        ticket: Ticket,
        /// What came of it.
        result: Result<C, GetError>,
    },
}

/// Why a pool closes a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cause {
    /// Nobody used it for too long.
    Idle,
    /// Another one with the same peer is used instead.
    Surplus,
    /// It was told to be unhealthy, and nobody uses it any more.
    Drained,
    /// There was no room for another one.
    Evicted,
    /// The node is being shut down.
    Shutdown,
}

/// Why a connection is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Closing {
    /// The pool closed it.
    Pool(Cause),
    /// It ended otherwise.
    Ended(CloseReason),
}

/// What an observer is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PoolEvent<C> {
    /// There is one more connection.
    Opened {
        /// Which.
        connection: C,
        /// With whom.
        peer: PeerId,
        /// Whether it was the peer that called.
        incoming: bool,
    },
    /// A caller got a connection that was there.
    Reused {
        /// Which.
        connection: C,
        /// With whom.
        peer: PeerId,
    },
    /// A connection is over.
    Closed {
        /// Which.
        connection: C,
        /// With whom.
        peer: PeerId,
        /// Why.
        why: Closing,
    },
    /// An attempt to reach a peer failed, and another one follows.
    Retry {
        /// Whom.
        peer: PeerId,
        /// The attempt that failed.
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
    /// There was no room for a connection, of our caller or of the peer.
    Full {
        /// With whom.
        peer: PeerId,
    },
}

/// What a pool counts. One shard writes, anybody reads.
#[derive(Debug, Default)]
pub struct PoolCounters {
    /// Callers that got a connection that was there.
    pub reused: Counter,
    /// Callers that had to wait.
    pub waited: Counter,
    /// Attempts to reach a peer.
    pub attempts: Counter,
    /// Attempts that failed and were followed by another one.
    pub retries: Counter,
    /// Dials that came to nothing.
    pub failed: Counter,
    /// Connections that were dialled.
    pub dialled: Counter,
    /// Connections that peers made.
    pub incoming: Counter,
    /// Connections that ended otherwise than by the pool.
    pub lost: Counter,
    /// Connections that were closed because nobody used them.
    pub idle: Counter,
    /// Connections that were closed because another one with the same peer is used.
    pub surplus: Counter,
    /// Unhealthy connections that were closed.
    pub drained: Counter,
    /// Connections that were closed to make room.
    pub evicted: Counter,
    /// Callers and connections that were refused for want of room.
    pub full: Counter,
    /// Events that nobody fetched in time.
    pub lost_events: Counter,
}

impl PoolCounters {
    /// All of them by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self {
            reused,
            waited,
            attempts,
            retries,
            failed,
            dialled,
            incoming,
            lost,
            idle,
            surplus,
            drained,
            evicted,
            full,
            lost_events,
        } = self;
        [
            ("reused", reused),
            ("waited", waited),
            ("attempts", attempts),
            ("retries", retries),
            ("failed", failed),
            ("dialled", dialled),
            ("incoming", incoming),
            ("lost", lost),
            ("idle", idle),
            ("surplus", surplus),
            ("drained", drained),
            ("evicted", evicted),
            ("full", full),
            ("lost_events", lost_events),
        ]
        .map(|(name, counter)| (name, counter.value()))
        .into_iter()
    }
}
