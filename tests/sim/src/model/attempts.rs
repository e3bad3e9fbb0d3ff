//! Who may be locked out for having failed to log in too often.

use std::collections::BTreeMap;
use std::net::IpAddr;

use towpath_proto::Timestamp;
use towpath_proto::relay::AttemptLimits;

use super::{Flow, Model};
use crate::stun::{Parsed, attribute};

/// Failed logins per second that one address may have, and how many times as many at once.
const PER_SOURCE: u32 = 50;
const BURST: u32 = 10;

/// When logins failed, by address and username; what may have failed is counted, too.
#[derive(Debug, Default)]
pub(super) struct Failures(BTreeMap<(IpAddr, Vec<u8>), Vec<Timestamp>>);

impl Failures {
    pub(super) fn note(&mut self, now: Timestamp, flow: Flow, request: &Parsed) {
        if request.is_protected() {
            self.0.entry(key(flow, request)).or_default().push(now);
        }
    }
}

impl Model {
    /// Whether a right password may be refused because there were too many wrong ones.
    pub(super) fn may_be_locked_out(
        &self,
        now: Timestamp,
        flow: Flow,
        request: &Parsed,
        user: &str,
    ) -> bool {
        let own = self.allocations.get(&flow);
        if own.is_some_and(|own| own.user == user && own.expires() > now) {
            return false;
        }
        let (ip, name) = key(flow, request);
        let failures = &self.failures.0;
        let of_user: Vec<_> = failures.get(&(ip, name)).cloned().unwrap_or_default();
        let of_source = failures.iter().filter(|((from, _), _)| *from == ip);
        let mut of_source: Vec<_> = of_source.flat_map(|(_, times)| times.clone()).collect();
        of_source.sort();
        may_be_spent(now, &of_user, self.rules.attempts_per_user)
            || may_be_spent(now, &of_source, PER_SOURCE)
    }
}

/// Whether there is a time since which more failed than it earned and what may come at once.
fn may_be_spent(now: Timestamp, failures: &[Timestamp], per_second: u32) -> bool {
    if per_second == AttemptLimits::UNLIMITED {
        return false;
    }
    let rate = f64::from(per_second);
    failures.iter().enumerate().any(|(index, since)| {
        let failed = (failures.len() - index) as f64;
        let earned = now.saturating_since(*since).as_secs_f64() * rate;
        // One more must fit for a login to be looked at.
        failed + 1.0 > f64::from(BURST) * rate + earned - 0.01
    })
}

fn key(flow: Flow, request: &Parsed) -> (IpAddr, Vec<u8>) {
    let name = request.find(attribute::USERNAME).unwrap_or_default();
    (flow.client.ip(), name.to_vec())
}
