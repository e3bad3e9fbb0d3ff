//! Follows the addresses of this machine while it serves: peers must not be there, and a machine
//! gets new ones at any time (temporary IPv6 addresses, leases, containers).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath_proto::machine::ShardId;
use towpath_proto::relay::{RelayConfig, RelayEvent};

/// How often the system is asked; so long a new address may be reached like any other machine's.
const PERIOD: Duration = Duration::from_secs(1);

/// What the shards know of this machine's addresses.
#[derive(Debug)]
pub(crate) struct OwnAddresses {
    relay: Arc<RelayConfig>,
    /// Shards whose mailbox was full.
    untold: Vec<ShardId>,
    due: Instant,
}

impl OwnAddresses {
    /// The shards were started with `relay`.
    pub(crate) fn new(relay: Arc<RelayConfig>, now: Instant) -> Self {
        Self {
            relay,
            untold: Vec::new(),
            due: now + PERIOD,
        }
    }

    /// Whether the system should be asked again; says so once per period.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.due;
        if due {
            self.due = now + PERIOD;
        }
        due
    }

    /// Has every shard told of `addresses` where they are others than before. `tell` says whether a
    /// shard's mailbox took the event; where it did not, it is tried again the next time.
    pub(crate) fn follow(
        &mut self,
        mut addresses: Vec<IpAddr>,
        mut tell: impl FnMut(ShardId, RelayEvent) -> bool,
    ) {
        addresses.sort_unstable();
        let mut known = self.relay.own_addresses.clone();
        known.sort_unstable();
        if addresses != known {
            tracing::info!(?addresses, "the addresses of this machine changed");
            self.relay = Arc::new(RelayConfig {
                own_addresses: addresses,
                ..RelayConfig::clone(&self.relay)
            });
            self.untold = (0..self.relay.shards).map(ShardId).collect();
        }
        let relay = &self.relay;
        self.untold
            .retain(|shard| !tell(*shard, RelayEvent::Reconfigured(Arc::clone(relay))));
    }
}

#[cfg(test)]
mod tests {
    use towpath_proto::access::{Denial, PeerPolicy, Verdict};
    use towpath_proto::relay::{RelayAddress, RelayLimits, Users};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn own_addresses() -> OwnAddresses {
        let relay = RelayConfig {
            realm: "example.org".to_owned(),
            software: None,
            listeners: vec!["[::]:3478".parse().unwrap()],
            relay_addresses: vec![RelayAddress::direct(ip("2600::5"))],
            own_addresses: vec![ip("2600::5"), ip("::1")],
            behavior: None,
            alternate_servers: Vec::new(),
            port_range: 49_152..=65_535,
            shards: 2,
            users: Users::new(),
            access: Default::default(),
            limits: RelayLimits::default(),
            mobility: false,
            offload: false,
            nonce_secret: [0; 32],
        };
        OwnAddresses::new(Arc::new(relay), Instant::now())
    }

    #[test]
    fn an_address_that_comes_while_serving_is_denied_to_peers() {
        let mut own = own_addresses();
        let mut told = Vec::new();
        let fresh = ip("2600::a1b2");
        own.follow(vec![ip("::1"), fresh, ip("2600::5")], |shard, event| {
            let RelayEvent::Reconfigured(relay) = event else {
                panic!("{event:?}")
            };
            let verdict = PeerPolicy::new(&relay).judge_from(ip("2600::5"), fresh);
            assert_eq!(verdict, Verdict::Denied(Denial::OwnHost));
            told.push(shard);
            true
        });
        assert_eq!(told, [ShardId(0), ShardId(1)]);
    }

    #[test]
    fn the_same_addresses_in_another_order_are_no_news() {
        own_addresses().follow(vec![ip("::1"), ip("2600::5")], |_, _| {
            panic!("nothing changed")
        });
    }

    #[test]
    fn a_shard_whose_mailbox_is_full_is_told_the_next_time() {
        let mut own = own_addresses();
        let addresses = vec![ip("2600::5")];
        own.follow(addresses.clone(), |shard, _| shard == ShardId(0));
        let mut told = Vec::new();
        let mut tell = |shard, _| {
            told.push(shard);
            true
        };
        own.follow(addresses.clone(), &mut tell);
        own.follow(addresses, &mut tell);
        assert_eq!(told, [ShardId(1)]);
    }
}
