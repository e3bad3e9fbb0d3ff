//! The relayed ports of one relay address that one shard may give out.
//!
//! Whose a port is can be computed: pairs of ports (even, odd) go round the shards, so that the two
//! ports of an EVEN-PORT pair lie in one shard. Every port of the shard is either in the pool or
//! taken; none is both, none is lost.

use std::ops::RangeInclusive;

use rand_chacha::rand_core::Rng;

use crate::machine::ShardId;

/// Which shard a relayed port belongs to.
pub fn shard_of_port(port: u16, shards: u16) -> ShardId {
    ShardId((port / 2) % shards)
}

/// The free relayed ports of one shard at one relay address.
#[derive(Debug)]
pub struct PortPool {
    /// The free ports, in no order.
    free: Vec<u16>,
    /// For each port of the shard: its place in `free`, or [`TAKEN`].
    places: Vec<u16>,
    range: RangeInclusive<u16>,
    shard: ShardId,
    shards: u16,
}

const TAKEN: u16 = u16::MAX;

/// How often a pair or an even port is looked for at random before the pool is searched.
const RANDOM_TRIES: usize = 16;

impl PortPool {
    /// All ports of `range` that belong to `shard`, free. Port 0 is never among them.
    pub fn new(range: RangeInclusive<u16>, shard: ShardId, shards: u16) -> Self {
        let mut pool = Self {
            free: Vec::new(),
            places: Vec::new(),
            range,
            shard,
            shards,
        };
        let ports = pool
            .range
            .clone()
            .filter(|port| *port != 0 && pool.owns(*port));
        pool.free = ports.collect();
        let last = *pool.range.end();
        pool.places = vec![TAKEN; pool.ordinal(last | 1) + 2];
        for (place, port) in pool.free.iter().enumerate() {
            let ordinal = pool.ordinal(*port);
            pool.places[ordinal] = place as u16;
        }
        pool
    }

    /// Number of free ports.
    pub fn len(&self) -> usize {
        self.free.len()
    }

    /// Whether all ports are taken.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// Takes a random port.
    pub fn take(&mut self, rng: &mut impl Rng) -> Option<u16> {
        let port = *self.free.get(below(rng, self.free.len())?)?;
        self.remove(port);
        Some(port)
    }

    /// Takes a random even port; with `with_next`, also the odd port above it, which has to be free
    /// too.
    pub fn take_even(&mut self, rng: &mut impl Rng, with_next: bool) -> Option<u16> {
        let mut found = None;
        for _ in 0..RANDOM_TRIES {
            let port = self.free[below(rng, self.free.len())?] & !1;
            if self.is_free(port) && (!with_next || self.is_free(port | 1)) {
                found = Some(port);
                break;
            }
        }
        if found.is_none() {
            let start = below(rng, self.free.len())?;
            let (before, after) = self.free.split_at(start);
            let mut ports = after.iter().chain(before).copied();
            found = ports.find(|p| p % 2 == 0 && (!with_next || self.is_free(p | 1)));
        }
        let port = found?;
        self.remove(port);
        if with_next {
            self.remove(port | 1);
        }
        Some(port)
    }

    /// Puts a port back. `false` where it is free already or was never in this pool; nothing
    /// changes then.
    #[must_use]
    pub fn give_back(&mut self, port: u16) -> bool {
        if !self.range.contains(&port) || port == 0 || !self.owns(port) || self.is_free(port) {
            return false;
        }
        let ordinal = self.ordinal(port);
        self.places[ordinal] = self.free.len() as u16;
        self.free.push(port);
        true
    }

    /// Whether the port is in the pool now.
    pub fn is_free(&self, port: u16) -> bool {
        self.range.contains(&port) && self.owns(port) && self.places[self.ordinal(port)] != TAKEN
    }

    fn owns(&self, port: u16) -> bool {
        shard_of_port(port, self.shards) == self.shard
    }

    /// Numbers the ports of this shard from the begin of the range.
    fn ordinal(&self, port: u16) -> usize {
        let round = |port: u16| usize::from(port / 2 / self.shards);
        (round(port) - round(*self.range.start())) * 2 + usize::from(port % 2)
    }

    fn remove(&mut self, port: u16) {
        let ordinal = self.ordinal(port);
        let place = usize::from(std::mem::replace(&mut self.places[ordinal], TAKEN));
        self.free.swap_remove(place);
        if let Some(moved) = self.free.get(place) {
            let ordinal = self.ordinal(*moved);
            self.places[ordinal] = place as u16;
        }
    }
}

/// A random index below `len`; `None` for a length of zero.
fn below(rng: &mut impl Rng, len: usize) -> Option<usize> {
    let len = u64::try_from(len).ok().filter(|len| *len > 0)?;
    Some(((u64::from(rng.next_u32()) * len) >> 32) as usize)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rand_chacha::ChaCha12Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn rng() -> ChaCha12Rng {
        ChaCha12Rng::from_seed([7; 32])
    }

    #[test]
    fn every_port_is_given_out_once_by_the_shard_it_belongs_to() {
        for shards in [1, 2, 3, 7] {
            let mut all = BTreeSet::new();
            for shard in 0..shards {
                let mut pool = PortPool::new(50_001..=50_100, ShardId(shard), shards);
                while let Some(port) = pool.take(&mut rng()) {
                    assert_eq!(shard_of_port(port, shards), ShardId(shard));
                    assert!(all.insert(port));
                }
            }
            assert!(all.into_iter().eq(50_001..=50_100));
        }
    }

    #[test]
    fn the_full_range_of_ports_without_zero_fits() {
        let mut pool = PortPool::new(0..=65_535, ShardId(0), 1);
        assert_eq!(pool.len(), 65_535);
        let mut rng = rng();
        let taken: BTreeSet<u16> = std::iter::from_fn(|| pool.take(&mut rng)).collect();
        assert_eq!(taken.len(), 65_535);
        assert!(!pool.give_back(0));
        assert!(taken.into_iter().all(|port| pool.give_back(port)));
    }

    #[test]
    fn a_port_cannot_be_given_back_twice_or_to_a_pool_it_is_not_from() {
        let mut pool = PortPool::new(50_000..=50_099, ShardId(0), 2);
        let port = pool.take(&mut rng()).unwrap();
        assert!(pool.give_back(port));
        assert!(!pool.give_back(port));
        assert!(
            !pool.give_back(port ^ 2),
            "the neighbouring pair is the other shard's"
        );
        assert!(!pool.give_back(49_998));
        assert_eq!(pool.len(), 50);
    }

    #[test]
    fn an_even_port_is_found_while_there_is_one() {
        let mut pool = PortPool::new(50_001..=50_064, ShardId(0), 1);
        let mut rng = rng();
        let evens: BTreeSet<u16> = std::iter::from_fn(|| pool.take_even(&mut rng, false)).collect();
        assert!(evens.into_iter().eq((50_002..=50_064).step_by(2)));
        assert_eq!(pool.len(), 32);
    }

    #[test]
    fn a_pair_is_found_while_there_is_one_and_takes_both_ports() {
        let mut pool = PortPool::new(50_001..=50_064, ShardId(0), 1);
        let mut rng = rng();
        let pairs = std::iter::from_fn(|| pool.take_even(&mut rng, true)).count();
        assert_eq!(
            pairs, 31,
            "50001 has no even port below it and 50064 no odd one above"
        );
        assert_eq!(pool.len(), 2);
    }

    #[test]
    fn ports_are_spread_over_the_whole_range() {
        let mut rng = rng();
        let (mut low, mut in_order) = (0, 0);
        let mut last = 0;
        for _ in 0..1_000 {
            let mut pool = PortPool::new(49_152..=65_535, ShardId(0), 1);
            let port = pool.take(&mut rng).unwrap();
            low += u32::from(port < 57_344);
            in_order += u32::from(port == last + 1);
            last = port;
        }
        assert!((400..600).contains(&low), "{low} of 1000 in the lower half");
        assert!(in_order < 5);
    }

    proptest! {
        #[test]
        fn no_port_is_lost_or_doubled_by_any_sequence_of_operations(
            first in 1..=u16::MAX,
            span in 0..300u16,
            shards in 1..=4u16,
            operations in prop::collection::vec((0..5u8, any::<u16>()), 0..400),
        ) {
            let range = first..=first.saturating_add(span);
            let mut pool = PortPool::new(range.clone(), ShardId(0), shards);
            let total = pool.len();
            let mut taken = BTreeSet::new();
            let mut rng = rng();
            for (operation, choice) in operations {
                match operation {
                    0 | 1 => if let Some(port) = pool.take(&mut rng) {
                        prop_assert!(taken.insert(port));
                    },
                    2 => if let Some(port) = pool.take_even(&mut rng, false) {
                        prop_assert!(port % 2 == 0 && taken.insert(port));
                    },
                    3 => if let Some(port) = pool.take_even(&mut rng, true) {
                        prop_assert!(port % 2 == 0 && taken.insert(port) && taken.insert(port + 1));
                    },
                    _ => {
                        let known = taken.iter().nth(usize::from(choice) % taken.len().max(1));
                        let port = known.copied().unwrap_or(choice);
                        prop_assert_eq!(pool.give_back(port), taken.remove(&port));
                    }
                }
                prop_assert_eq!(pool.len() + taken.len(), total);
                for port in &taken {
                    prop_assert!(range.contains(port) && !pool.is_free(*port));
                }
            }
        }
    }
}
