//! The channel bindings of one allocation (RFC 8656 §12).

use ahash::RandomState;

use super::address::{CompactIp, PeerAddr};
use super::routes::RouteState;
use super::table::{Entry, Key, Table};
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

/// Channel bindings by number and by peer.
pub(crate) type Channels = Table<Channel, 2>;

const _: () = assert!(size_of::<Option<Channel>>() <= 32);
const _: () = assert!(size_of::<Channels>() <= 40);

impl Channel {
    #[inline]
    pub(crate) fn peer(&self) -> PeerAddr {
        PeerAddr {
            ip: self.peer_ip,
            port: self.peer_port,
        }
    }
}

impl Entry for Channel {
    fn hash(&self, key: usize, hasher: &RandomState) -> u64 {
        match key {
            ChannelNumber::INDEX => self.number.hash(hasher),
            _ => self.peer().hash(hasher),
        }
    }
}

impl Key<Channel> for ChannelNumber {
    const INDEX: usize = 0;

    #[inline]
    fn is_of(self, channel: &Channel) -> bool {
        channel.number == self
    }

    #[inline]
    fn hash(self, hasher: &RandomState) -> u64 {
        hasher.hash_one(self.number())
    }
}

impl Key<Channel> for PeerAddr {
    const INDEX: usize = 1;

    #[inline]
    fn is_of(self, channel: &Channel) -> bool {
        channel.peer() == self
    }

    #[inline]
    fn hash(self, hasher: &RandomState) -> u64 {
        hasher.hash_one((self.ip.bits(), self.port))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

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
            let hasher = RandomState::with_seeds(1, 2, 3, 4);
            let (mut channels, mut model) = (Channels::default(), BTreeMap::new());
            for (time, (number, action)) in steps.into_iter().enumerate() {
                let number = 0x4000 + number;
                if action == 0 {
                    channels.retain(&hasher, |channel| channel.number.number() % 7 != number % 7);
                    model.retain(|known: &u16, _| known % 7 != number % 7);
                } else {
                    let channel = channel(number, time as u64);
                    model.insert(number, channel.expires);
                    channels.insert(channel.number, channel, &hasher);
                }
                prop_assert_eq!(channels.len(), model.len());
                prop_assert_eq!(channels.iter_mut().count(), model.len());
                for number in 0x4000..0x4028 {
                    let sought = channel(number, 0);
                    let by_number = channels.find(sought.number, &hasher);
                    let by_peer = channels.find(sought.peer(), &hasher);
                    let expected = model.get(&number).copied();
                    prop_assert_eq!(by_number.map(|channel| channel.expires), expected);
                    prop_assert_eq!(by_peer.map(|channel| channel.expires), expected);
                }
            }
        }
    }
}
