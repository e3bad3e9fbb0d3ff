//! How many allocations there are: of each user, of each network of clients, and in all. What is
//! refused because of a limit is counted by [`Quota`].

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use towpath_ebpf_common::route::mapped;
use towpath_ebpf_common::strangers::Source;

use super::Relay;
use super::config::RelayLimits;
use super::shared::lock;
use crate::wire::Code;

/// A limit that something was refused for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Quota {
    /// Allocations of one user.
    UserAllocations,
    /// Allocations of the clients of one network.
    NetworkAllocations,
    /// Allocations of everybody.
    TotalAllocations,
    /// Permissions of one allocation.
    Permissions,
    /// Channels of one allocation.
    Channels,
    /// New peers of one allocation in a time.
    NewPeers,
    /// Failed logins of one user from one source, or from one source at all.
    FailedLogins,
}

impl Quota {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::UserAllocations,
        Self::NetworkAllocations,
        Self::TotalAllocations,
        Self::Permissions,
        Self::Channels,
        Self::NewPeers,
        Self::FailedLogins,
    ];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UserAllocations => "user_allocations",
            Self::NetworkAllocations => "network_allocations",
            Self::TotalAllocations => "total_allocations",
            Self::Permissions => "permissions",
            Self::Channels => "channels",
            Self::NewPeers => "new_peers",
            Self::FailedLogins => "failed_logins",
        }
    }

    /// The code that requests are refused with.
    pub(crate) const fn code(self) -> Code {
        match self {
            // RFC 8656 §7.2: "a 486 (Allocation Quota Reached) error if it feels the client is trying to
            // exceed some locally defined allocation quota".
            Self::UserAllocations | Self::NetworkAllocations => Code::ALLOCATION_QUOTA_REACHED,
            // RFC 8656 §19: 508 is for "some capacity limit being reached".
            Self::TotalAllocations | Self::Permissions | Self::Channels | Self::NewPeers => {
                Code::INSUFFICIENT_CAPACITY
            }
            // Nobody learns whether the password was right.
            Self::FailedLogins => Code::UNAUTHENTICATED,
        }
    }
}

/// A /24 of IPv4 or a /56 of IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Network(u64);

impl Network {
    pub(crate) fn of(ip: IpAddr) -> Self {
        Self(Source::new(&mapped(ip)).network())
    }
}

/// Allocations and reserved ports by who has them, over all shards. It has an entry for each user and
/// each network that has any, so it is bounded as they are.
#[derive(Debug, Default)]
pub struct Quotas {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    users: HashMap<Arc<str>, u32>,
    networks: HashMap<Network, u32>,
    all: u32,
}

/// How much of the quotas is in use.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct QuotaUse {
    /// Allocations and reserved ports.
    pub allocations: u32,
    /// Users who have any.
    pub users: u32,
    /// Networks whose clients have any.
    pub networks: u32,
}

impl Quotas {
    /// How much is in use.
    pub fn in_use(&self) -> QuotaUse {
        let counts = lock(&self.counts);
        let entries = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        QuotaUse {
            allocations: counts.all,
            users: entries(counts.users.len()),
            networks: entries(counts.networks.len()),
        }
    }

    /// Counts `more` allocations, or none and says which limit does not allow them.
    pub(crate) fn charge(
        &self,
        user: &Arc<str>,
        network: Network,
        more: u32,
        limits: &RelayLimits,
    ) -> Result<(), Quota> {
        let mut counts = lock(&self.counts);
        let over = |used: Option<&u32>, limit: Option<u32>| {
            let used = used.copied().unwrap_or(0).saturating_add(more);
            limit.is_some_and(|limit| used > limit)
        };
        if over(counts.users.get(user), limits.allocations_per_user) {
            return Err(Quota::UserAllocations);
        }
        if over(
            counts.networks.get(&network),
            limits.allocations_per_network,
        ) {
            return Err(Quota::NetworkAllocations);
        }
        if over(Some(&counts.all), limits.allocations_in_total) {
            return Err(Quota::TotalAllocations);
        }
        counts.all += more;
        *counts.networks.entry(network).or_default() += more;
        match counts.users.get_mut(user) {
            Some(used) => *used += more,
            None => drop(counts.users.insert(Arc::clone(user), more)),
        }
        Ok(())
    }

    /// Takes back what [`charge`](Self::charge) counted, or a part of it.
    pub(crate) fn release(&self, user: &str, network: Network, less: u32) {
        let mut counts = lock(&self.counts);
        let Counts {
            users,
            networks,
            all,
        } = &mut *counts;
        *all = all
            .checked_sub(less)
            .expect("what is released was charged before");
        lessen(users, user, less);
        lessen(networks, &network, less);
    }
}

fn lessen<K, Q>(counts: &mut HashMap<K, u32>, key: &Q, less: u32)
where
    K: Hash + Eq + std::borrow::Borrow<Q>,
    Q: Hash + Eq + ?Sized,
{
    let used = counts
        .get_mut(key)
        .expect("what is released was charged before");
    *used = used
        .checked_sub(less)
        .expect("what is released was charged before");
    if *used == 0 {
        counts.remove(key);
    }
}

impl Relay {
    /// Counts a refusal, and gives its code.
    pub(crate) fn over_quota(&self, quota: Quota) -> Code {
        self.counters.refusals(quota).increment();
        quota.code()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_limit_refuses_is_counted_for_nobody() {
        let quotas = Quotas::default();
        let limits = RelayLimits {
            allocations_per_user: Some(3),
            allocations_per_network: Some(4),
            allocations_in_total: Some(5),
            ..RelayLimits::default()
        };
        let [alice, bob, carol] = ["alice", "bob", "carol"].map(Arc::<str>::from);
        let [near, far] = [[192, 0, 2, 1], [192, 0, 3, 1]].map(|ip| Network::of(ip.into()));
        let charge = |user, network, more| quotas.charge(user, network, more, &limits);
        assert_eq!(charge(&alice, near, 3), Ok(()));
        assert_eq!(charge(&alice, far, 1), Err(Quota::UserAllocations));
        assert_eq!(charge(&bob, near, 2), Err(Quota::NetworkAllocations));
        assert_eq!(charge(&bob, far, 3), Err(Quota::TotalAllocations));
        assert_eq!(charge(&bob, far, 2), Ok(()));
        assert_eq!(charge(&carol, far, 1), Err(Quota::TotalAllocations));
        let (allocations, users, networks) = (5, 2, 2);
        let expected = QuotaUse {
            allocations,
            users,
            networks,
        };
        assert_eq!(quotas.in_use(), expected);
        quotas.release(&alice, near, 1);
        assert_eq!(charge(&carol, near, 1), Ok(()));
        quotas.release(&alice, near, 2);
        quotas.release(&carol, near, 1);
        quotas.release(&bob, far, 2);
        assert_eq!(quotas.in_use(), QuotaUse::default());
    }
}
