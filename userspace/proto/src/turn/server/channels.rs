//! The channel bindings of one allocation (RFC 8656 §12).

use ahash::RandomState;
use hashbrown::HashTable;

use super::address::{CompactIp, PeerAddr};
use super::routes::RouteState;
use crate::Timestamp;
use crate::access::OwnAddress;
use crate::wire::ChannelNumber;

/// A channel binding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channel {
    pub(crate) peer_ip: CompactIp,
    pub(crate) peer_port: u16,
    pub(crate) number: ChannelNumber,
    /// Set where the peer is an address of this host: its port is checked packet by packet.
    pub(crate) own: Option<OwnAddress>,
    /// The end of the binding: up to here data flows.
    pub(crate) expires: Timestamp,
    /// What the shell knows about its routes.
    pub(crate) route: RouteState,
}

impl Channel {
    #[inline]
    pub(crate) fn peer(&self) -> PeerAddr {
        PeerAddr {
            ip: self.peer_ip,
            port: self.peer_port,
        }
    }
}

/// Channel bindings by number and by peer: the first in place, a few in a list, many hashed.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    first: Option<Channel>,
    more: Option<Box<More>>,
}

const _: () = assert!(size_of::<Option<Channel>>() <= 32);
const _: () = assert!(size_of::<Channels>() <= 40);

#[derive(Debug, Default)]
struct More {
    list: Vec<Channel>,
    /// Indexes into `list`; empty up to [`LINEAR`] channels.
    by_number: HashTable<u16>,
    by_peer: HashTable<u16>,
}

/// Up to this many a list is searched faster than a hash is computed.
const LINEAR: usize = 8;

impl Channels {
    #[inline]
    pub(crate) fn by_number(
        &self,
        number: ChannelNumber,
        hasher: &RandomState,
    ) -> Option<&Channel> {
        match &self.first {
            Some(first) if first.number == number => Some(first),
            _ => self.more.as_ref()?.by_number(number, hasher),
        }
    }

    #[inline]
    pub(crate) fn by_peer(&self, peer: PeerAddr, hasher: &RandomState) -> Option<&Channel> {
        match &self.first {
            Some(first) if first.peer() == peer => Some(first),
            _ => self.more.as_ref()?.by_peer(peer, hasher),
        }
    }

    /// Number of bindings, expired ones included until they are swept.
    pub(crate) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.as_ref().map_or(0, |more| more.list.len())
    }

    /// Adds a binding, or replaces the one of the same number and peer.
    pub(crate) fn insert(&mut self, channel: Channel, hasher: &RandomState) {
        let same = |known: &&mut Channel| known.number == channel.number;
        if let Some(known) = self.iter_mut().find(same) {
            debug_assert_eq!(known.peer(), channel.peer());
            *known = channel;
            return;
        }
        if self.first.is_none() {
            self.first = Some(channel);
            return;
        }
        let more = self.more.get_or_insert_default();
        more.list.push(channel);
        if more.list.len() == LINEAR + 1 {
            more.index_all(hasher);
        } else if more.list.len() > LINEAR {
            more.index(more.list.len() - 1, hasher);
        }
    }

    /// Keeps the bindings for which `keep` says so; it may change all but number and peer.
    pub(crate) fn retain(
        &mut self,
        hasher: &RandomState,
        mut keep: impl FnMut(&mut Channel) -> bool,
    ) {
        self.first.take_if(|first| !keep(first));
        if let Some(more) = &mut self.more {
            more.list.retain_mut(keep);
            more.index_all(hasher);
            if self.first.is_none() {
                self.first = more.list.pop();
                more.index_all(hasher);
            }
            if more.list.is_empty() {
                self.more = None;
            }
        }
    }

    /// All bindings; number and peer must stay as they are.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Channel> {
        self.first
            .iter_mut()
            .chain(self.more.iter_mut().flat_map(|more| more.list.iter_mut()))
    }
}

impl More {
    #[inline]
    fn by_number(&self, number: ChannelNumber, hasher: &RandomState) -> Option<&Channel> {
        if self.list.len() <= LINEAR {
            return self.list.iter().find(|channel| channel.number == number);
        }
        let index = self
            .by_number
            .find(hasher.hash_one(number.number()), |index| {
                self.list[usize::from(*index)].number == number
            })?;
        Some(&self.list[usize::from(*index)])
    }

    #[inline]
    fn by_peer(&self, peer: PeerAddr, hasher: &RandomState) -> Option<&Channel> {
        if self.list.len() <= LINEAR {
            return self.list.iter().find(|channel| channel.peer() == peer);
        }
        let index = self.by_peer.find(hash_peer(hasher, peer), |index| {
            self.list[usize::from(*index)].peer() == peer
        })?;
        Some(&self.list[usize::from(*index)])
    }

    /// Builds the indexes anew.
    fn index_all(&mut self, hasher: &RandomState) {
        self.by_number.clear();
        self.by_peer.clear();
        if self.list.len() > LINEAR {
            (0..self.list.len()).for_each(|index| self.index(index, hasher));
        }
    }

    fn index(&mut self, index: usize, hasher: &RandomState) {
        let Self {
            list,
            by_number,
            by_peer,
        } = self;
        let number = |index: &u16| hasher.hash_one(list[usize::from(*index)].number.number());
        let peer = |index: &u16| hash_peer(hasher, list[usize::from(*index)].peer());
        let index = u16::try_from(index).expect("there are at most 2^14 channel numbers");
        by_number.insert_unique(number(&index), index, number);
        by_peer.insert_unique(peer(&index), index, peer);
    }
}

#[inline]
fn hash_peer(hasher: &RandomState, peer: PeerAddr) -> u64 {
    hasher.hash_one((peer.ip.bits(), peer.port))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn hasher() -> RandomState {
        RandomState::with_seeds(1, 2, 3, 4)
    }

    fn channel(number: u16, expires: u64) -> Channel {
        let expires = Timestamp::ZERO + Duration::from_secs(expires);
        Channel {
            peer_ip: CompactIp::new([192, 0, 2, 1].into()),
            peer_port: number,
            number: ChannelNumber::new(number).unwrap(),
            own: None,
            expires,
            route: RouteState::Absent,
        }
    }

    proptest! {
        #[test]
        fn channels_are_found_by_number_and_peer_like_in_a_map(
            steps in prop::collection::vec((0..40_u16, 0..4_u8), 1..120),
        ) {
            let (hasher, mut channels, mut model) = (hasher(), Channels::default(), BTreeMap::new());
            for (time, (number, action)) in steps.into_iter().enumerate() {
                let number = 0x4000 + number;
                if action == 0 {
                    channels.retain(&hasher, |channel| channel.number.number() % 7 != number % 7);
                    model.retain(|known: &u16, _| known % 7 != number % 7);
                } else {
                    channels.insert(channel(number, time as u64), &hasher);
                    model.insert(number, channel(number, time as u64).expires);
                }
                prop_assert_eq!(channels.len(), model.len());
                for number in 0x4000..0x4028 {
                    let sought = channel(number, 0);
                    let by_number = channels.by_number(sought.number, &hasher);
                    let by_peer = channels.by_peer(sought.peer(), &hasher);
                    let expected = model.get(&number).copied();
                    prop_assert_eq!(by_number.map(|channel| channel.expires), expected);
                    prop_assert_eq!(by_peer.map(|channel| channel.expires), expected);
                }
            }
        }
    }
}
