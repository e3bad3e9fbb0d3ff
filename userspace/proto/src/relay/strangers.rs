//! How much strangers are answered: Binding responses and refusals before authentication.
//!
//! Somebody may forge a victim's address into such requests, so what leaves towards one address, one
//! network and in all is bounded, over all shards together. The arithmetic is
//! [`towpath_ebpf_common::strangers`]', which the kernel's program does too.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use towpath_ebpf_common::route::mapped;
use towpath_ebpf_common::strangers::{self, Admission, BUDGETS, SEEN, Source, Table};

use super::shared::derived_key;
use super::{DropReason, Endpoint, Relay};
use crate::Timestamp;

/// Answers to strangers per second, over all shards. [`StrangerLimits::UNLIMITED`] lifts a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StrangerLimits {
    /// To one address.
    pub per_source: u32,
    /// To one /24 of IPv4 or /56 of IPv6.
    pub per_network: u32,
    /// To everybody who has no allocation; one half of it is kept for those who asked before.
    pub in_total: u32,
}

impl StrangerLimits {
    /// No limit.
    pub const UNLIMITED: u32 = u32::MAX;

    /// As both sides of the kernel's border read it, with a random key.
    pub fn paces(&self, key: [u64; 2]) -> strangers::StrangerLimits {
        let limit = |rate| (rate != Self::UNLIMITED).then_some(rate);
        strangers::StrangerLimits::new(
            key,
            limit(self.per_source),
            limit(self.per_network),
            limit(self.in_total),
        )
    }
}

impl Default for StrangerLimits {
    fn default() -> Self {
        Self {
            per_source: 2000,
            per_network: 10_000,
            in_total: 100_000,
        }
    }
}

/// The budgets of all shards, and who was refused lately.
#[derive(Debug)]
pub(crate) struct Strangers {
    key: [u64; 2],
    budgets: Box<[AtomicU64]>,
    /// Three megabytes that are taken when the total is reached for the first time.
    seen: OnceLock<Box<[AtomicU64]>>,
}

impl Strangers {
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        Self {
            key: derived_key(secret, "strangers"),
            budgets: words(BUDGETS),
            seen: OnceLock::new(),
        }
    }

    /// The limits with the key of these budgets.
    pub(crate) fn paces(&self, limits: &StrangerLimits) -> strangers::StrangerLimits {
        limits.paces(self.key)
    }

    /// Charges one answer to `client`; for `known` see [`strangers::admit`].
    pub(crate) fn charge(
        &self,
        now: Timestamp,
        paces: &strangers::StrangerLimits,
        client: IpAddr,
        known: bool,
    ) -> Admission {
        let source = Source::new(&mapped(client));
        strangers::admit(self, paces, source, known, now.as_nanos())
    }
}

impl Table for Strangers {
    type Word = AtomicU64;

    fn budget(&self, index: u32) -> Option<&AtomicU64> {
        self.budgets.get(index as usize)
    }

    fn seen(&self, index: u32) -> Option<&AtomicU64> {
        self.seen.get_or_init(|| words(SEEN)).get(index as usize)
    }
}

fn words(count: u32) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

impl Relay {
    /// Charges the answer to a stranger; the error is why there is none.
    pub(crate) fn admit_stranger(
        &mut self,
        now: Timestamp,
        from: Endpoint,
    ) -> Result<(), DropReason> {
        // Whoever has an allocation was answered where it says it is.
        let known = self.allocations.find(&from.flow()).is_some();
        let strangers = self.shared.strangers();
        match strangers.charge(now, &self.stranger_paces, from.client.ip(), known) {
            Admission::Admitted => Ok(()),
            Admission::OverSource => Err(DropReason::TooManyRequests),
            Admission::OverNetwork => Err(DropReason::TooManyFromNetwork),
            Admission::OverTotal => Err(DropReason::TooManyInAll),
        }
    }

    /// As [`Relay::admit_stranger`]; counts where not.
    pub(crate) fn admits_stranger(&mut self, now: Timestamp, from: Endpoint) -> bool {
        let admitted = self.admit_stranger(now, from);
        if let Err(reason) = admitted {
            self.counters.drops(reason).increment();
        }
        admitted.is_ok()
    }
}
