//! All randomness of a run: independent streams that follow from one seed.

use std::ops::Range;
use std::time::Duration;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::trace::Fnv;

/// A stream of random numbers.
///
/// A stream belongs to one purpose; [`Dice::fork`] makes another one, so that a draw more in one
/// part of the simulation leaves the other parts as they were.
#[derive(Clone, Debug)]
pub struct Dice {
    seed: u64,
    rng: ChaCha8Rng,
}

/// How often something happens: so many times in a million.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct PerMillion(pub u32);

impl Dice {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// Another stream, which depends on this one's seed and on `purpose` and `index` alone.
    pub fn fork(&self, purpose: &str, index: u64) -> Self {
        let mut hash = Fnv::new();
        hash.write(&self.seed.to_be_bytes());
        hash.write(purpose.as_bytes());
        hash.write(&index.to_be_bytes());
        Self::new(hash.finish())
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.rng.random_range(0..end)
    }

    /// A number of the range, which is not empty.
    pub fn range(&mut self, range: Range<u64>) -> u64 {
        self.rng.random_range(range)
    }

    /// A time of the range; its start where it is empty.
    pub fn duration(&mut self, range: Range<Duration>) -> Duration {
        if range.start >= range.end {
            return range.start;
        }
        let span = range.end - range.start;
        range.start + Duration::from_nanos(self.range(0..nanos(span)))
    }

    /// Whether something of this frequency happens now.
    pub fn happens(&mut self, frequency: PerMillion) -> bool {
        frequency.0 > 0 && self.rng.random_range(0..1_000_000) < frequency.0
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of the items, which are not empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// The index of one of the weights, as often as its weight says. Not all weights are 0.
    pub fn weighted(&mut self, weights: &[u32]) -> usize {
        let total: u32 = weights.iter().sum();
        let mut left = self.rng.random_range(0..total);
        for (index, weight) in weights.iter().enumerate() {
            if left < *weight {
                return index;
            }
            left -= weight;
        }
        unreachable!("the number drawn is below the sum of the weights")
    }

    /// So many random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    /// A random array.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_depends_on_the_seed_and_its_purpose_and_not_on_earlier_draws() {
        let fresh = Dice::new(7);
        let mut used = Dice::new(7);
        used.number();
        assert_eq!(
            fresh.fork("links", 1).number(),
            used.fork("links", 1).number()
        );
        assert_ne!(
            fresh.fork("links", 1).number(),
            fresh.fork("links", 2).number()
        );
        assert_ne!(
            fresh.fork("links", 1).number(),
            fresh.fork("clients", 1).number()
        );
        assert_ne!(
            fresh.fork("links", 1).number(),
            Dice::new(8).fork("links", 1).number()
        );
    }

    #[test]
    fn a_weight_of_zero_is_never_drawn() {
        let mut dice = Dice::new(1);
        let mut counts = [0; 3];
        for _ in 0..1000 {
            counts[dice.weighted(&[1, 0, 3])] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!(counts[2] > 2 * counts[0] && counts[0] > 0, "{counts:?}");
    }
}
