//! Guessing of passwords: who fails to log in too often is answered as if it had failed, whatever it
//! sent.
//!
//! A failure counts only with a nonce that was issued to its very source, so nobody can have another
//! one's source locked out. The memory is fixed: users at a source, and sources, fall into slots by a
//! keyed hash. An allocation's own client is never locked out of it.

use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ahash::RandomState;
use towpath_ebpf_common::gcra::Charge;
use towpath_ebpf_common::strangers::Pace;

use super::shared::derived_key;
use super::{Quota, Relay, Request};
use crate::Timestamp;
use crate::auth::Authenticated;
use crate::wire::{AttributeType, Code, Message};

/// Failed logins per second, over all shards. What may come at once is ten times as much.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttemptLimits {
    /// Of one username at one address.
    pub per_user: u32,
    /// Of one address. Many clients may share it, with passwords that have expired.
    pub per_source: u32,
}

impl AttemptLimits {
    /// No limit.
    pub const UNLIMITED: u32 = u32::MAX;
}

impl Default for AttemptLimits {
    fn default() -> Self {
        Self {
            per_user: 1,
            per_source: 50,
        }
    }
}

/// How many times a second's failures may come at once.
const BURST: u32 = 10;
/// The budgets' clock is ahead by what fills them: they begin full, however young the clock is.
const HEAD_START: Duration = Duration::from_secs(BURST as u64);

const SOURCES: usize = 1 << 14;
/// More than sources: a thousand addresses that all fail as fast as they may do not fill them.
const USERS: usize = 1 << 16;

/// The budgets of all shards.
#[derive(Debug)]
pub(crate) struct Attempts {
    hasher: RandomState,
    sources: Box<[AtomicU64]>,
    users: Box<[AtomicU64]>,
}

impl Attempts {
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        let [a, b] = derived_key(secret, "attempts");
        let [c, d] = derived_key(secret, "attempts, too");
        let words = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            hasher: RandomState::with_seeds(a, b, c, d),
            sources: words(SOURCES),
            users: words(USERS),
        }
    }

    /// Whether a user at a source is over its limit; a login that failed is charged.
    fn is_over(
        &self,
        now: Timestamp,
        limits: AttemptLimits,
        (source, user): (IpAddr, &[u8]),
        failed: bool,
    ) -> bool {
        let slot = |hash: u64, slots: usize| hash as usize % slots;
        let source_slot = slot(self.hasher.hash_one(source), SOURCES);
        let user_slot = slot(self.hasher.hash_one((source, user)), USERS);
        let now = (now + HEAD_START).as_nanos();
        // A source that is over its limit does not use up its users' ones.
        [
            (limits.per_source, &self.sources[source_slot]),
            (limits.per_user, &self.users[user_slot]),
        ]
        .into_iter()
        .any(|(rate, budget)| {
            let pace = match rate {
                AttemptLimits::UNLIMITED => Pace::UNLIMITED,
                rate => Pace::new(rate, rate.saturating_mul(BURST)),
            };
            if failed {
                pace.charge(budget, now, 1) != Charge::Passed
            } else {
                !pace.has_room(budget, now)
            }
        })
    }
}

impl Relay {
    /// What a request that was checked is taken for. The same work is done whether it is locked out or
    /// not, and the answer is the same.
    pub(crate) fn judge_attempt(
        &mut self,
        now: Timestamp,
        request: &Request<'_>,
        outcome: Result<Authenticated, Code>,
    ) -> Result<Authenticated, Code> {
        let message = &request.message;
        let signed = message.has_integrity() || message.has_integrity_sha256();
        let sender = match &outcome {
            Ok(sender) => Some(sender),
            Err(code) if *code == Code::UNAUTHENTICATED && signed => None,
            Err(_) => return outcome,
        };
        let who = (request.from.client.ip(), name(message));
        let limits = self.config.limits.attempts;
        let attempts = self.shared.attempts();
        let over = attempts.is_over(now, limits, who, sender.is_none());
        if !over || sender.is_some_and(|sender| self.owns_allocation(request, sender)) {
            return outcome;
        }
        Err(self.over_quota(Quota::FailedLogins))
    }

    fn owns_allocation(&mut self, request: &Request<'_>, sender: &Authenticated) -> bool {
        let id = self.allocations.find(&request.from.flow());
        id.and_then(|id| self.allocations.get(id))
            .is_some_and(|known| known.details.user.account() == sender.user.account())
    }
}

/// Who a request says it is from, by name or by hash.
fn name<'a>(message: &Message<'a>) -> &'a [u8] {
    [AttributeType::USERNAME, AttributeType::USERHASH]
        .into_iter()
        .find_map(|kind| message.find(kind))
        .unwrap_or_default()
}
