//! Room for one more connection: whose permit it gets, and who has to go.

use std::fmt::Debug;
use std::hash::Hash;

use super::entries::Entry;
use super::event::{Action, Cause, Closing, PoolEvent, Refusal};
use super::permits::Permit;
use super::slab::Key;
use super::{EVICTION_CANDIDATES, EXTRA_PER_PEER, Pool};
use crate::Timestamp;
use crate::identity::PeerId;

impl<C: Copy + Eq + Hash + Debug> Pool<C> {
    /// A permit for a dial or a connection, if need be that of an idle connection.
    pub(super) fn permit(&mut self, now: Timestamp) -> Option<Permit> {
        if let Some(permit) = self.permits.take() {
            return Some(permit);
        }
        let idle_timeout = self.config.idle_timeout.as_secs_f64();
        let worth = |entry: &Entry<C>, since: Timestamp| {
            let idle = now.saturating_since(since).as_secs_f64();
            entry.properties.quality() / (1.0 + idle / idle_timeout)
        };
        let candidates = self.entries.idle().take(EVICTION_CANDIDATES);
        let (_, _, key) = candidates
            .map(|(key, entry, since)| (!self.is_surplus(key), worth(entry, since), key))
            .min_by(|left, right| (left.0.cmp(&right.0)).then(left.1.total_cmp(&right.1)))?;
        self.take_from(key, Cause::Evicted)
    }

    pub(super) fn permit_of_incoming(
        &mut self,
        now: Timestamp,
        peer: PeerId,
    ) -> Result<Permit, Refusal> {
        let group = self.groups.get(&peer);
        let connections = group.map_or(0, |group| group.connections);
        if connections >= self.config.max_connections_per_peer + EXTRA_PER_PEER {
            return self.least_of(peer).ok_or_else(|| {
                self.counters.full.increment();
                Refusal::TooManyOfPeer(connections)
            });
        }
        self.permit(now).ok_or_else(|| {
            self.full(peer);
            Refusal::Full {
                limit: self.permits.limit(),
            }
        })
    }

    /// Closes the least preferred idle connection of a peer, for its permit.
    fn least_of(&mut self, peer: PeerId) -> Option<Permit> {
        let live = &self.groups.get(&peer)?.live;
        let idle = |key: &&Key| {
            let entry = self.entries.get(**key);
            entry.is_some_and(|entry| entry.idle.is_some())
        };
        let key = *live.iter().rev().find(idle)?;
        self.take_from(key, Cause::Evicted)
    }

    pub(super) fn full(&mut self, peer: PeerId) {
        self.counters.full.increment();
        self.tell(|| PoolEvent::Full { peer });
    }

    pub(super) fn close(&mut self, key: Key, cause: Cause) {
        drop(self.take_from(key, cause));
    }

    /// Closes a connection and gives its permit.
    fn take_from(&mut self, key: Key, cause: Cause) -> Option<Permit> {
        let Entry {
            connection,
            peer,
            permit,
            ..
        } = self.remove(key)?;
        match cause {
            Cause::Idle => self.counters.idle.increment(),
            Cause::Surplus => self.counters.surplus.increment(),
            Cause::Drained => self.counters.drained.increment(),
            Cause::Evicted => self.counters.evicted.increment(),
            Cause::Shutdown => {}
        }
        self.actions.push_back(Action::Close { connection, cause });
        self.tell(|| PoolEvent::Closed {
            connection,
            peer,
            why: Closing::Pool(cause),
        });
        Some(permit)
    }
}
