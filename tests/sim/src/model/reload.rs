//! What a changed configuration does to what there is.

use towpath_proto::Timestamp;

use super::peers::Judged;
use super::{Model, Rules};

impl Model {
    /// Whether some allocation waits for its port: what becomes of it in a reload is open.
    pub fn is_opening(&self) -> bool {
        !self.opening.is_empty()
    }

    /// Takes over new rules: allocations of users who are gone or have another password end, those
    /// made with a secret that is gone, and what was granted for peers that are denied now.
    pub fn reload(&mut self, now: Timestamp, rules: Rules) {
        let before = std::mem::replace(&mut self.rules, rules);
        let mut allocations = std::mem::take(&mut self.allocations);
        for allocation in allocations.values_mut() {
            let user = &allocation.user;
            let end = if let Some(limit) = &allocation.time_limit {
                Some(self.rules.end_of(now, limit))
            } else {
                let is_other = before.users.get(user) != self.rules.users.get(user);
                is_other.then_some(now)
            };
            for address in &mut allocation.addresses {
                address.expires = end.map_or(address.expires, |end| address.expires.min(end));
            }
            let stays = |ip| self.judge_peer(ip) != Judged::Denied;
            allocation.permissions.retain(|ip, _| stays(*ip));
            allocation.channels.retain(|_, (peer, _)| stays(peer.ip()));
        }
        self.allocations = allocations;
    }
}
