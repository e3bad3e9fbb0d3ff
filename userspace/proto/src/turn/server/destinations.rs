//! How fast an allocation comes by new peers. Who relays for a program that searches for hosts or ports
//! would otherwise search for it.

use std::sync::atomic::AtomicU64;

use ahash::RandomState;
use towpath_ebpf_common::gcra::Charge;
use towpath_ebpf_common::strangers::Pace;

use super::address::PeerAddr;
use crate::Timestamp;

/// How many new peers one allocation may have: permissions and channels that are not there yet, and
/// addresses and ports that Send indications did not go to lately.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewPeers {
    /// In a second; [`NewPeers::UNLIMITED`] for no limit.
    pub per_second: u32,
    /// At once after a pause.
    pub at_once: u32,
}

impl NewPeers {
    /// No limit.
    pub const UNLIMITED: u32 = u32::MAX;

    pub(super) fn pace(self) -> Pace {
        match self.per_second {
            Self::UNLIMITED => Pace::UNLIMITED,
            per_second => Pace::new(per_second, self.at_once),
        }
    }
}

impl Default for NewPeers {
    /// All permissions and channels that there may be, and as many destinations of Send again.
    fn default() -> Self {
        Self {
            per_second: 100,
            at_once: 1024,
        }
    }
}

/// Destinations of Send indications that are remembered: ICE checks a few dozen in turn. They lie in
/// sets, in each of which the one used longest ago is forgotten.
const SETS: usize = 32;
const SET: usize = 4;

/// The budget of an allocation, and where its Send indications went.
#[derive(Debug, Default)]
pub(crate) struct Destinations {
    budget: AtomicU64,
    /// Hashes, each in the set that it names; 0 is nobody. There once a Send indication came.
    recent: Option<Box<[[u32; SET]; SETS]>>,
}

impl Destinations {
    /// Charges `count` new peers, or none where there would be too many.
    pub(super) fn admit(&mut self, now: Timestamp, pace: Pace, count: u32) -> bool {
        count == 0 || pace.charge(&self.budget, now.as_nanos(), count) == Charge::Passed
    }

    /// Charges the peer of a Send indication where it is new.
    pub(super) fn admit_sent(
        &mut self,
        now: Timestamp,
        pace: Pace,
        peer: PeerAddr,
        hasher: &RandomState,
    ) -> bool {
        if pace == Pace::UNLIMITED {
            return true;
        }
        let hash = hasher.hash_one((peer.ip.bits(), peer.port));
        let (place, tag) = (hash as usize % SETS, (hash >> 32) as u32 | 1);
        let recent = self
            .recent
            .get_or_insert_with(|| Box::new([[0; SET]; SETS]));
        let set = &mut recent[place];
        let known = set.iter().position(|known| *known == tag);
        if known.is_none() && pace.charge(&self.budget, now.as_nanos(), 1) != Charge::Passed {
            return false;
        }
        set[..=known.unwrap_or(SET - 1)].rotate_right(1);
        set[0] = tag;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NEW_PEERS: NewPeers = NewPeers {
        per_second: 10,
        at_once: 20,
    };

    fn peer(port: u16) -> PeerAddr {
        PeerAddr::new(([9, 9, 9, 9], port).into())
    }

    #[test]
    fn an_allocation_gets_its_burst_of_new_peers_and_then_its_rate() {
        let mut destinations = Destinations::default();
        let mut now = Timestamp::ZERO + Duration::from_secs(50);
        let pace = NEW_PEERS.pace();
        assert!(!destinations.admit(now, pace, 21));
        assert!(destinations.admit(now, pace, 20));
        for _ in 0..5 {
            assert!(!destinations.admit(now, pace, 1));
            now = now + Duration::from_secs(1);
            assert!(destinations.admit(now, pace, 10));
        }
        assert!(destinations.admit(now, pace, 0), "nobody is new");
    }

    #[test]
    fn sending_on_to_the_same_peers_costs_nothing_and_searching_ports_does() {
        let mut destinations = Destinations::default();
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        let now = Timestamp::ZERO + Duration::from_secs(50);
        let pace = NEW_PEERS.pace();
        let mut sent = |port| destinations.admit_sent(now, pace, peer(port), &hasher);
        for _ in 0..1000 {
            assert!((7000..7015).all(&mut sent));
        }
        let reached = (1..=1000).filter(|port| sent(*port)).count();
        assert_eq!(reached, 5);
        assert!((7010..7015).all(&mut sent), "those are known still");
    }

    #[test]
    fn the_limit_can_be_lifted() {
        let mut destinations = Destinations::default();
        let pace = Pace::UNLIMITED;
        assert!(destinations.admit(Timestamp::ZERO, pace, u32::MAX));
        assert!(destinations.recent.is_none());
    }
}
