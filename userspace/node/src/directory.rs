//! The connections that the application has, by peer: whoever asks for one of them gets it without a
//! message to its shard.
//!
//! It knows connections that somebody has; those that wait in a pool for somebody are their shard's
//! business, and so is making new ones.

use std::sync::{Arc, Weak};

use papaya::{HashMap, Operation};
use towpath_proto::identity::PeerId;
use towpath_proto::peer::ConnectionHandle;

use crate::connection::Link;

/// Who is connected, for all shards.
pub(crate) struct Directory(HashMap<PeerId, Weak<Link>, ahash::RandomState>);

impl Directory {
    pub(crate) fn new() -> Self {
        Self(HashMap::with_hasher(ahash::RandomState::new()))
    }

    /// A connection with the peer that stands and that somebody has.
    pub(crate) fn get(&self, peer: PeerId) -> Option<Arc<Link>> {
        let link = self.0.pin().get(&peer)?.upgrade()?;
        link.stands().then_some(link)
    }

    /// Adds a connection, unless there is one with this peer already.
    pub(crate) fn add(&self, peer: PeerId, link: &Arc<Link>) {
        self.0.pin().compute(peer, |known| match known {
            Some((_, known)) if known.upgrade().is_some_and(|known| known.stands()) => {
                Operation::Abort(())
            }
            Some(_) | None => Operation::Insert(Arc::downgrade(link)),
        });
    }

    /// A connection is over, or not to be given to anybody any more.
    pub(crate) fn remove(&self, peer: PeerId, connection: ConnectionHandle) {
        self.0.pin().compute(peer, |known| match known {
            Some((_, known))
                if known
                    .upgrade()
                    .is_none_or(|known| known.handle() == connection) =>
            {
                Operation::Remove
            }
            Some(_) | None => Operation::Abort(()),
        });
    }
}
