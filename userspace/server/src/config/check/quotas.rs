//! The rules of the counts in `[limits]`: what clients can make the relay keep, and what strangers are
//! answered.

use std::time::Duration;

use toml::Spanned;
use towpath_proto::relay::{AttemptLimits, NewPeers, RelayLimits, StrangerLimits};

use super::Checker;
use crate::config::error::Problem;
use crate::config::shape::{CountShape, LimitsShape};

const UNLIMITED: &str = "unlimited";
/// The most of anything that is counted; beyond it stands "unlimited".
const MAX_COUNT: u32 = 1_000_000_000;
/// RFC 8656 §12: numbers 0x4000 to 0x4FFF, and those that RFC 5766 had above, make no more channels
/// than this.
const MAX_CHANNELS: u32 = 0x4000;
const MAX_PERMISSIONS: u32 = u16::MAX as u32;
/// A year.
const MAX_LIFETIME_S: u32 = 365 * 86_400;

/// The limits without any in the configuration: a quarter of the relayed ports of one address for one
/// user, and for one network.
pub fn default_relay_limits() -> RelayLimits {
    RelayLimits {
        allocations_per_user: Some(4096),
        allocations_per_network: Some(4096),
        ..RelayLimits::default()
    }
}

impl Checker<'_> {
    pub(super) fn quotas(&mut self, shape: &mut LimitsShape) -> RelayLimits {
        let default = default_relay_limits();
        let (default_lifetime, max_lifetime) = self.lifetimes(shape, &default);
        let allocations = &mut shape.allocations;
        let mut quota = |key, count: &mut Option<Spanned<CountShape>>, default| {
            self.count(key, count.take()).unwrap_or(default)
        };
        RelayLimits {
            allocations_per_user: quota(
                "limits.allocations: per_user",
                &mut allocations.per_user,
                default.allocations_per_user,
            ),
            allocations_per_network: quota(
                "limits.allocations: per_network",
                &mut allocations.per_network,
                default.allocations_per_network,
            ),
            allocations_in_total: quota(
                "limits.allocations: total",
                &mut allocations.total,
                default.allocations_in_total,
            ),
            max_permissions: self.small(
                "limits.permissions_per_allocation",
                shape.permissions_per_allocation.take(),
                MAX_PERMISSIONS,
                default.max_permissions,
            ),
            max_channels: self.small(
                "limits.channels_per_allocation",
                shape.channels_per_allocation.take(),
                MAX_CHANNELS,
                default.max_channels,
            ),
            new_peers: self.new_peers(shape, default.new_peers),
            default_lifetime,
            max_lifetime,
            strangers: self.strangers(shape, default.strangers),
            attempts: self.attempts(shape, default.attempts),
            ..default
        }
    }

    fn new_peers(&mut self, shape: &mut LimitsShape, default: NewPeers) -> NewPeers {
        let shape = &mut shape.new_peers;
        let per_second = self.count("limits.new_peers: per_second", shape.per_second.take());
        NewPeers {
            per_second: per_second.map_or(default.per_second, |rate| {
                rate.unwrap_or(NewPeers::UNLIMITED)
            }),
            at_once: self.number(
                "limits.new_peers: burst",
                shape.burst.take(),
                1..=MAX_COUNT,
                default.at_once,
            ),
        }
    }

    fn strangers(&mut self, shape: &mut LimitsShape, default: StrangerLimits) -> StrangerLimits {
        let shape = &mut shape.strangers;
        let mut rate = |key, count: &mut Option<Spanned<CountShape>>, default| {
            let rate = self.count(key, count.take());
            rate.map_or(default, |rate| rate.unwrap_or(StrangerLimits::UNLIMITED))
        };
        StrangerLimits {
            per_source: rate(
                "limits.strangers: per_source",
                &mut shape.per_source,
                default.per_source,
            ),
            per_network: rate(
                "limits.strangers: per_network",
                &mut shape.per_network,
                default.per_network,
            ),
            in_total: rate(
                "limits.strangers: total",
                &mut shape.total,
                default.in_total,
            ),
        }
    }

    fn attempts(&mut self, shape: &mut LimitsShape, default: AttemptLimits) -> AttemptLimits {
        let shape = &mut shape.failed_logins;
        let mut rate = |key, count: &mut Option<Spanned<CountShape>>, default| {
            let rate = self.count(key, count.take());
            rate.map_or(default, |rate| rate.unwrap_or(AttemptLimits::UNLIMITED))
        };
        AttemptLimits {
            per_user: rate(
                "limits.failed_logins: per_user",
                &mut shape.per_user,
                default.per_user,
            ),
            per_source: rate(
                "limits.failed_logins: per_source",
                &mut shape.per_source,
                default.per_source,
            ),
        }
    }

    /// The lifetime of an allocation that asks for none, and the longest that is granted.
    fn lifetimes(
        &mut self,
        shape: &mut LimitsShape,
        default: &RelayLimits,
    ) -> (Duration, Duration) {
        let shape = &mut shape.lifetime;
        let spans = [&shape.default_s, &shape.max_s];
        let span = spans.into_iter().flatten().map(Spanned::span).next();
        let range = RelayLimits::MIN_LIFETIME.as_secs() as u32..=MAX_LIFETIME_S;
        let mut seconds = |key, value: &mut Option<Spanned<i64>>, default: Duration| {
            let default = default.as_secs() as u32;
            u64::from(self.number(key, value.take(), range.clone(), default))
        };
        let default_s = seconds(
            "limits.lifetime: default_s",
            &mut shape.default_s,
            default.default_lifetime,
        );
        let max_s = seconds(
            "limits.lifetime: max_s",
            &mut shape.max_s,
            default.max_lifetime,
        );
        if default_s > max_s
            && let Some(span) = span
        {
            self.error(span, Problem::Lifetimes { default_s, max_s });
        }
        (Duration::from_secs(default_s), Duration::from_secs(max_s))
    }

    fn small(
        &mut self,
        key: &'static str,
        number: Option<Spanned<i64>>,
        max: u32,
        default: u16,
    ) -> u16 {
        let number = self.number(key, number, 1..=max, default.into());
        u16::try_from(number).expect("the most there may be is a u16")
    }

    /// A count of something, where it is there: `Some(None)` is for "unlimited".
    fn count(
        &mut self,
        key: &'static str,
        count: Option<Spanned<CountShape>>,
    ) -> Option<Option<u32>> {
        let count = count?;
        let span = count.span();
        match count.into_inner() {
            CountShape::Number(number) => {
                let number = Spanned::new(span, number);
                // Where it is out of range, 1 stands for it, and the error ends the start.
                Some(Some(self.number(key, Some(number), 1..=MAX_COUNT, 1)))
            }
            CountShape::Text(text) if text == UNLIMITED => Some(None),
            CountShape::Text(value) => {
                self.error(span, Problem::Count { key, value });
                None
            }
        }
    }
}
