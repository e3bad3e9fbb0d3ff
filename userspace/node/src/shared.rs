//! What the shards of a node share: who accepts, who listens, what is counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use async_channel::Sender;
use towpath_proto::pool::Ticket;

use crate::connection::Connection;
use crate::core::Task;
use crate::directory::Directory;
use crate::events::{Event, Listener};

/// What is done with an incoming connection, on its own thread.
pub(crate) type Handler = Box<dyn Fn(Connection) -> Task + Send + Sync>;

/// What the shards of a node share. Nothing here is touched by a packet.
pub(crate) struct Shared {
    pub(crate) accepts: Sender<Connection>,
    pub(crate) counters: NodeCounters,
    pub(crate) handler: OnceLock<Handler>,
    pub(crate) directory: Directory,
    tickets: AtomicU64,
    listeners: Mutex<Vec<Listener>>,
}

/// What a node counts besides what its shards do.
#[derive(Debug, Default)]
pub struct NodeCounters {
    /// Incoming connections that were closed because nobody accepted them in time.
    pub not_accepted: Count,
    /// Datagrams that the application did not take in time.
    pub dropped_datagrams: Count,
    /// Tasks of connections that panicked.
    pub panics: Count,
}

impl NodeCounters {
    /// All of them by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self {
            not_accepted,
            dropped_datagrams,
            panics,
        } = self;
        [
            ("not_accepted", not_accepted),
            ("dropped_datagrams", dropped_datagrams),
            ("panics", panics),
        ]
        .map(|(name, count)| (name, count.value()))
        .into_iter()
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// The number.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}

impl Shared {
    pub(crate) fn new(accepts: Sender<Connection>) -> Self {
        Self {
            accepts,
            counters: NodeCounters::default(),
            handler: OnceLock::new(),
            directory: Directory::new(),
            tickets: AtomicU64::new(0),
            listeners: Mutex::new(Vec::new()),
        }
    }

    /// The task that serves a connection; `None` where it is to be accepted.
    pub(crate) fn serve(&self, connection: &Connection) -> Option<Task> {
        let handler = self.handler.get()?;
        Some(handler(connection.clone()))
    }

    /// A ticket that no other call of this node has.
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn listen(&self, listener: Listener) {
        self.listeners().push(listener);
    }

    /// Tells an event to all who listen.
    pub(crate) fn tell(&self, event: &Event) {
        self.listeners().retain(|listener| listener.tell(event));
    }

    /// The node is over: nobody is told anything any more.
    pub(crate) fn close(&self) {
        self.accepts.close();
        self.listeners().clear();
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, Vec<Listener>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
