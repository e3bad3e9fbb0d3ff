//! How much strangers are answered: Binding responses and refusals before authentication.
//!
//! Somebody may forge a victim's address into such requests, so what leaves towards one address, one
//! network and in all is bounded. The memory is fixed: sources fall into slots by a keyed hash and
//! share the budget of their slot.

use std::net::IpAddr;
use std::time::Duration;

use ahash::RandomState;
use rand_chacha::rand_core::Rng;

use crate::Timestamp;

/// Answers to strangers per second and shard. [`StrangerLimits::UNLIMITED`] lifts a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StrangerLimits {
    /// To one address.
    pub per_source: u32,
    /// To one /24 of IPv4 or /56 of IPv6.
    pub per_network: u32,
    /// To everybody.
    pub in_total: u32,
}

impl StrangerLimits {
    /// No limit.
    pub const UNLIMITED: u32 = u32::MAX;
}

impl Default for StrangerLimits {
    fn default() -> Self {
        Self {
            per_source: 10_000,
            per_network: 20_000,
            in_total: 100_000,
        }
    }
}

/// What may be answered at once after a pause.
const BURST: Duration = Duration::from_secs(4);

const SLOTS: usize = 4096;

/// The budgets of a shard. Each is the time at which it would be full again (GCRA).
#[derive(Debug)]
pub(crate) struct Strangers {
    hasher: RandomState,
    sources: Box<[Timestamp; SLOTS]>,
    networks: Box<[Timestamp; SLOTS]>,
    all: Timestamp,
}

impl Strangers {
    pub(crate) fn new(rng: &mut impl Rng) -> Self {
        let mut seed = || rng.next_u64();
        Self {
            hasher: RandomState::with_seeds(seed(), seed(), seed(), seed()),
            sources: Box::new([Timestamp::ZERO; SLOTS]),
            networks: Box::new([Timestamp::ZERO; SLOTS]),
            all: Timestamp::ZERO,
        }
    }

    /// Charges one answer to `client` to all its budgets, or to none and says no.
    pub(crate) fn admit(
        &mut self,
        now: Timestamp,
        client: IpAddr,
        limits: &StrangerLimits,
    ) -> bool {
        let (source, network) = match client {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()), u128::from(v4.to_bits() >> 8)),
            IpAddr::V6(v6) => (v6.to_bits(), v6.to_bits() >> 72),
        };
        let source = &mut self.sources[self.hasher.hash_one(source) as usize % SLOTS];
        let network = &mut self.networks[self.hasher.hash_one(network) as usize % SLOTS];
        let budgets = [
            (source, limits.per_source),
            (network, limits.per_network),
            (&mut self.all, limits.in_total),
        ];
        let charged = |full_at: Timestamp, rate: u32| {
            let interval = Duration::from_secs(1) / rate.max(1);
            let full_at = full_at.max(now) + interval;
            (rate == StrangerLimits::UNLIMITED || full_at.saturating_since(now) <= BURST)
                .then_some(full_at)
        };
        let admitted = budgets
            .iter()
            .all(|(full_at, rate)| charged(**full_at, *rate).is_some());
        if admitted {
            for (full_at, rate) in budgets {
                *full_at = charged(*full_at, rate).unwrap_or(*full_at);
            }
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha12Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    const LIMITS: StrangerLimits = StrangerLimits {
        per_source: 10,
        per_network: 20,
        in_total: 1000,
    };

    fn strangers() -> Strangers {
        Strangers::new(&mut ChaCha12Rng::from_seed([3; 32]))
    }

    fn admitted(strangers: &mut Strangers, now: Timestamp, client: [u8; 4], tries: u32) -> u32 {
        let answers = (0..tries).filter(|_| strangers.admit(now, client.into(), &LIMITS));
        u32::try_from(answers.count()).unwrap()
    }

    #[test]
    fn one_source_is_answered_its_rate_after_its_burst() {
        let mut strangers = strangers();
        let mut now = Timestamp::ZERO + Duration::from_secs(50);
        assert_eq!(admitted(&mut strangers, now, [1, 2, 3, 4], 500), 40);
        for _ in 0..10 {
            now = now + Duration::from_secs(1);
            assert_eq!(admitted(&mut strangers, now, [1, 2, 3, 4], 500), 10);
        }
    }

    #[test]
    fn sources_of_one_network_share_its_budget_and_others_do_not() {
        let mut strangers = strangers();
        let now = Timestamp::ZERO + Duration::from_secs(50);
        let network = (0..250)
            .map(|n| admitted(&mut strangers, now, [1, 2, 3, n], 10))
            .sum::<u32>();
        assert_eq!(network, 80);
        assert!(admitted(&mut strangers, now, [9, 9, 9, 9], 10) == 10);
    }

    #[test]
    fn everybody_together_is_bounded() {
        let mut strangers = strangers();
        let now = Timestamp::ZERO + Duration::from_secs(50);
        let all: u32 = (0..=255)
            .flat_map(|a| (0..=255).map(move |b| [a, b, 1, 1]))
            .map(|client| admitted(&mut strangers, now, client, 1))
            .sum();
        assert_eq!(all, 4000);
    }

    #[test]
    fn limits_can_be_lifted() {
        let mut strangers = strangers();
        let limits = StrangerLimits {
            per_source: StrangerLimits::UNLIMITED,
            per_network: StrangerLimits::UNLIMITED,
            in_total: StrangerLimits::UNLIMITED,
        };
        let client = IpAddr::from([1, 1, 1, 1]);
        assert!((0..100_000).all(|_| strangers.admit(Timestamp::ZERO, client, &limits)));
    }
}
