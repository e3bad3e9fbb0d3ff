//! The load balancer: which of several takes the next piece of work.
//!
//! It never knows what the candidates are: relays, ways to a peer, connections. Whoever asks says of
//! each how busy it is, how it is doing and how much it is worth.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::health::HealthStatus;

/// How one of several is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Strategy {
    /// Two at random, and of these the less busy one, in proportion to its weight and with its load
    /// multiplied by the [penalty](HealthStatus::penalty) of its health. The busiest gets nothing,
    /// and nobody is overrun because everybody saw that it was idle.
    #[default]
    PowerOfTwoChoices,
    /// At random, in proportion to weight over penalty.
    Weighted,
    /// One after the other; weight and health matter only as in all strategies.
    RoundRobin,
}

/// One who can be chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// How busy it is, in any unit that is the same for all.
    pub load: u32,
    /// How it is doing. In every strategy an unhealthy one is chosen only where all are.
    pub health: HealthStatus,
    /// How much it can take, compared to the others. One of weight 0 is never chosen.
    pub weight: u32,
}

impl Candidate {
    /// Whether it would do, if the unhealthy ones are considered or not.
    fn would_do(&self, with_unhealthy: bool) -> bool {
        self.weight > 0 && (with_unhealthy || self.health.is_usable())
    }

    /// Whether it is less busy than another.
    fn is_better_than(&self, other: &Self) -> bool {
        let cost = |candidate: &Self, weight: u32| {
            let load = u128::from(candidate.load) + 1;
            load * u128::from(candidate.health.penalty()) * u128::from(weight)
        };
        cost(self, other.weight) < cost(other, self.weight)
    }

    /// Its part of the work when it is dealt out by weights.
    fn share(&self) -> u64 {
        const WORST: u32 = HealthStatus::Unhealthy.penalty();
        u64::from(self.weight) * u64::from(WORST / self.health.penalty())
    }
}

/// Chooses.
#[derive(Debug)]
pub struct Balancer {
    strategy: Strategy,
    rng: ChaCha8Rng,
    /// Whose turn it is.
    next: usize,
}

impl Balancer {
    /// A balancer; what it draws follows from `seed`.
    pub fn new(strategy: Strategy, seed: [u8; 32]) -> Self {
        Self {
            strategy,
            rng: ChaCha8Rng::from_seed(seed),
            next: 0,
        }
    }

    /// Which of the candidates it is; `None` where there are none, or all weigh nothing. For
    /// [`Strategy::RoundRobin`] their order should be the same every time.
    pub fn choose(&mut self, candidates: &[Candidate]) -> Option<usize> {
        let any_usable = candidates.iter().any(|candidate| candidate.would_do(false));
        let pool = || {
            candidates
                .iter()
                .enumerate()
                .filter(move |(_, candidate)| candidate.would_do(!any_usable))
        };
        match self.strategy {
            Strategy::PowerOfTwoChoices => {
                let len = pool().count();
                let first = self.below(len as u64)? as usize;
                let (first, one) = pool().nth(first)?;
                // Among those that are left once the first is taken out.
                let others = || pool().filter(|(index, _)| *index != first);
                let Some(second) = self.below(len as u64 - 1) else {
                    return Some(first);
                };
                let (second, other) = others().nth(second as usize)?;
                Some(if other.is_better_than(one) {
                    second
                } else {
                    first
                })
            }
            Strategy::Weighted => {
                let total = pool().map(|(_, candidate)| candidate.share()).sum();
                let mut left = self.below(total)?;
                pool()
                    .find(|(_, candidate)| {
                        let here = left < candidate.share();
                        left = left.saturating_sub(candidate.share());
                        here
                    })
                    .map(|(index, _)| index)
            }
            Strategy::RoundRobin => {
                let (index, _) = pool()
                    .find(|(index, _)| *index >= self.next)
                    .or_else(|| pool().next())?;
                self.next = index + 1;
                Some(index)
            }
        }
    }

    /// A number below `end`; `None` where there is none.
    fn below(&mut self, end: u64) -> Option<u64> {
        let drawn = (u128::from(self.rng.next_u64()) * u128::from(end)) >> 64;
        (end > 0).then_some(drawn as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Strategy; 3] = [
        Strategy::PowerOfTwoChoices,
        Strategy::Weighted,
        Strategy::RoundRobin,
    ];
    const ROUNDS: usize = 10_000;

    fn candidate(load: u32, health: HealthStatus, weight: u32) -> Candidate {
        Candidate {
            load,
            health,
            weight,
        }
    }

    fn counts(strategy: Strategy, candidates: &[Candidate]) -> Vec<usize> {
        let mut balancer = Balancer::new(strategy, [7; 32]);
        let mut counts = vec![0; candidates.len()];
        for _ in 0..ROUNDS {
            counts[balancer.choose(candidates).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn of_nobody_nobody_is_chosen() {
        for strategy in ALL {
            let mut balancer = Balancer::new(strategy, [7; 32]);
            assert_eq!(balancer.choose(&[]), None);
            let without_weight = candidate(0, HealthStatus::Healthy, 0);
            assert_eq!(balancer.choose(&[without_weight; 3]), None);
            let unhealthy = candidate(0, HealthStatus::Unhealthy, 1);
            assert_eq!(balancer.choose(&[without_weight, unhealthy]), Some(1));
        }
    }

    #[test]
    fn an_unhealthy_one_is_chosen_only_where_all_are() {
        for strategy in ALL {
            let bad = candidate(0, HealthStatus::Unhealthy, 100);
            let busy = candidate(u32::MAX, HealthStatus::Degraded, 1);
            assert_eq!(counts(strategy, &[bad, busy, bad]), [0, ROUNDS, 0]);
            assert!(
                counts(strategy, &[bad, bad])
                    .iter()
                    .all(|count| *count > ROUNDS / 3)
            );
        }
    }

    #[test]
    fn of_two_the_less_busy_one_is_chosen_and_the_busiest_of_many_never() {
        let healthy = |load| candidate(load, HealthStatus::Healthy, 1);
        let strategy = Strategy::PowerOfTwoChoices;
        assert_eq!(counts(strategy, &[healthy(3), healthy(2)]), [0, ROUNDS]);
        let many = counts(strategy, &[healthy(9), healthy(0), healthy(1), healthy(2)]);
        assert_eq!(many[0], 0);
        assert!(
            many[1] > many[2] && many[2] > many[3] && many[3] > 0,
            "{many:?}"
        );
    }

    #[test]
    fn a_degraded_one_is_chosen_where_others_are_much_busier() {
        let degraded = candidate(1, HealthStatus::Degraded, 1);
        let strategy = Strategy::PowerOfTwoChoices;
        let equally_busy = candidate(1, HealthStatus::Healthy, 1);
        assert_eq!(counts(strategy, &[degraded, equally_busy]), [0, ROUNDS]);
        let much_busier = candidate(8, HealthStatus::Healthy, 1);
        assert_eq!(counts(strategy, &[degraded, much_busier]), [ROUNDS, 0]);
        let much_greater = candidate(8, HealthStatus::Healthy, 2);
        assert_eq!(counts(strategy, &[degraded, much_greater]), [0, ROUNDS]);
    }

    #[test]
    fn weights_and_health_decide_about_the_shares() {
        let candidates = [
            candidate(9, HealthStatus::Healthy, 1),
            candidate(0, HealthStatus::Healthy, 3),
            candidate(0, HealthStatus::Degraded, 4),
            candidate(0, HealthStatus::Healthy, 0),
        ];
        let counts = counts(Strategy::Weighted, &candidates);
        for (count, expected) in counts
            .iter()
            .zip([ROUNDS / 5, 3 * ROUNDS / 5, ROUNDS / 5, 0])
        {
            assert!(count.abs_diff(expected) < ROUNDS / 50, "{counts:?}");
        }
    }

    #[test]
    fn everybody_gets_a_turn_and_who_drops_out_is_skipped() {
        let healthy = candidate(0, HealthStatus::Healthy, 1);
        let mut candidates = [healthy; 3];
        let mut balancer = Balancer::new(Strategy::RoundRobin, [7; 32]);
        let mut turns = |candidates: &[Candidate], rounds: usize| -> Vec<usize> {
            (0..rounds)
                .map(|_| balancer.choose(candidates).unwrap())
                .collect()
        };
        assert_eq!(turns(&candidates, 5), [0, 1, 2, 0, 1]);
        candidates[2].health = HealthStatus::Unhealthy;
        assert_eq!(turns(&candidates, 3), [0, 1, 0]);
        assert_eq!(turns(&candidates[..1], 2), [0, 0]);
    }

    #[test]
    fn the_greatest_numbers_are_no_trouble() {
        let most = candidate(u32::MAX, HealthStatus::Unhealthy, u32::MAX);
        for strategy in ALL {
            assert!(counts(strategy, &[most; 4]).iter().all(|count| *count > 0));
        }
    }
}
