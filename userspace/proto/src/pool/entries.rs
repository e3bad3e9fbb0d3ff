//! The connections of a pool, and in which order those became idle that are.
//!
//! ```text
//!   oldest ─▶ entry ⇄ entry ⇄ entry ◀─ newest        entries in use are in no list
//! ```

use std::hash::Hash;

use ahash::RandomState;
use hashbrown::HashMap;

use super::metadata::{
    ConnectionMetadata, ConnectionProperties, ConnectionState, ConnectionStats, Established,
};
use super::permits::Permit;
use super::slab::{Key, Slab};
use crate::Timestamp;
use crate::identity::PeerId;
use crate::timer::TimerId;

#[derive(Debug)]
pub(super) struct Entry<C> {
    pub(super) connection: C,
    pub(super) peer: PeerId,
    pub(super) incoming: bool,
    pub(super) established: Established,
    pub(super) established_at: Timestamp,
    pub(super) last_activity: Timestamp,
    /// When it was kept alive last.
    pub(super) kept_alive_at: Timestamp,
    pub(super) references: u32,
    /// Whether streams are open on it that no reference stands for.
    pub(super) busy: bool,
    pub(super) draining: bool,
    pub(super) timer: (TimerId, Timestamp),
    pub(super) properties: ConnectionProperties,
    pub(super) stats: ConnectionStats,
    pub(super) permit: Permit,
    pub(super) idle: Option<Idle>,
}

/// Since when a connection is idle, and its neighbours in the list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle {
    pub(super) since: Timestamp,
    older: Option<Key>,
    newer: Option<Key>,
}

impl<C> Entry<C> {
    pub(super) fn in_use(&self) -> bool {
        self.references > 0 || self.busy
    }

    pub(super) fn metadata(&self) -> ConnectionMetadata {
        ConnectionMetadata {
            peer: self.peer,
            incoming: self.incoming,
            established_at: self.established_at,
            last_activity: self.last_activity,
            transport: self.established.transport,
            security: self.established.security,
            state: match self.draining {
                true => ConnectionState::Draining,
                false => ConnectionState::Connected,
            },
            references: self.references,
            properties: self.properties,
            stats: self.stats,
        }
    }
}

#[derive(Debug)]
pub(super) struct Entries<C> {
    slab: Slab<Entry<C>>,
    by_connection: HashMap<C, Key, RandomState>,
    oldest: Option<Key>,
    newest: Option<Key>,
}

impl<C: Copy + Eq + Hash> Entries<C> {
    pub(super) fn new(hasher: RandomState) -> Self {
        Self {
            slab: Slab::new(),
            by_connection: HashMap::with_hasher(hasher),
            oldest: None,
            newest: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        self.slab.keys()
    }

    pub(super) fn key_of(&self, connection: C) -> Option<Key> {
        self.by_connection.get(&connection).copied()
    }

    pub(super) fn get(&self, key: Key) -> Option<&Entry<C>> {
        self.slab.get(key)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Entry<C>> {
        self.slab.get_mut(key)
    }

    pub(super) fn of(&self, connection: C) -> Option<&Entry<C>> {
        self.get(self.key_of(connection)?)
    }

    pub(super) fn of_mut(&mut self, connection: C) -> Option<&mut Entry<C>> {
        self.get_mut(self.key_of(connection)?)
    }

    pub(super) fn insert_with(&mut self, make: impl FnOnce(Key) -> Entry<C>) -> Key {
        let mut connection = None;
        let key = self.slab.insert_with(|key| {
            let entry = make(key);
            connection = Some(entry.connection);
            entry
        });
        if let Some(connection) = connection {
            self.by_connection.insert(connection, key);
        }
        key
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Entry<C>> {
        self.unlink(key);
        let entry = self.slab.remove(key)?;
        self.by_connection.remove(&entry.connection);
        Some(entry)
    }

    /// Puts a connection that became idle at the end of the list.
    pub(super) fn link(&mut self, now: Timestamp, key: Key) {
        let older = self.newest.replace(key);
        match older.and_then(|older| self.idle_of(older)) {
            Some(idle) => idle.newer = Some(key),
            None => self.oldest = Some(key),
        }
        if let Some(entry) = self.slab.get_mut(key) {
            entry.idle = Some(Idle {
                since: now,
                older,
                newer: None,
            });
        }
    }

    /// Takes a connection out of the list, where it is in it.
    pub(super) fn unlink(&mut self, key: Key) {
        let Some(idle) = self.slab.get_mut(key).and_then(|entry| entry.idle.take()) else {
            return;
        };
        match idle.older.and_then(|older| self.idle_of(older)) {
            Some(older) => older.newer = idle.newer,
            None => self.oldest = idle.newer,
        }
        match idle.newer.and_then(|newer| self.idle_of(newer)) {
            Some(newer) => newer.older = idle.older,
            None => self.newest = idle.older,
        }
    }

    /// The idle connections, those first that have been idle longest.
    pub(super) fn idle(&self) -> impl Iterator<Item = (Key, &Entry<C>, Timestamp)> {
        let mut next = self.oldest;
        std::iter::from_fn(move || {
            let key = next?;
            let entry = self.slab.get(key)?;
            let idle = entry.idle?;
            next = idle.newer;
            Some((key, entry, idle.since))
        })
    }

    fn idle_of(&mut self, key: Key) -> Option<&mut Idle> {
        self.slab.get_mut(key)?.idle.as_mut()
    }
}
