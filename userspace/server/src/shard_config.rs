//! What the shards are configured with while they run: what was read last, with the addresses of this
//! machine. Peers must not be at those, and a machine gets new ones at any time (temporary IPv6
//! addresses, leases, containers).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath_proto::machine::ShardId;
use towpath_proto::relay::{RelayConfig, RelayEvent};

/// How often the system is asked; so long a new address may be reached like any other machine's.
const PERIOD: Duration = Duration::from_secs(1);

/// The configuration of all shards.
#[derive(Debug)]
pub(crate) struct ShardConfig {
    relay: Arc<RelayConfig>,
    /// Shards whose mailbox was full.
    untold: Vec<ShardId>,
    due: Instant,
}

impl ShardConfig {
    /// The shards were started with `relay`.
    pub(crate) fn new(relay: Arc<RelayConfig>, now: Instant) -> Self {
        Self {
            relay,
            untold: Vec::new(),
            due: now + PERIOD,
        }
    }

    /// What the shards are told.
    pub(crate) fn relay(&self) -> &Arc<RelayConfig> {
        &self.relay
    }

    /// Whether the system should be asked for addresses again; says so once per period.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.due;
        if due {
            self.due = now + PERIOD;
        }
        due
    }

    /// Has every shard told of another configuration.
    pub(crate) fn replace(&mut self, relay: Arc<RelayConfig>) {
        self.relay = relay;
        self.untold = (0..self.relay.shards).map(ShardId).collect();
    }

    /// Has every shard told of `addresses` where they are others than before.
    pub(crate) fn follow(&mut self, mut addresses: Vec<IpAddr>) {
        addresses.sort_unstable();
        let mut known = self.relay.own_addresses.clone();
        known.sort_unstable();
        if addresses != known {
            tracing::info!(?addresses, "the addresses of this machine changed");
            self.replace(Arc::new(RelayConfig {
                own_addresses: addresses,
                ..RelayConfig::clone(&self.relay)
            }));
        }
    }

    /// Tells the shards that do not know yet. `tell` says whether a shard's mailbox took the event; where
    /// it did not, it is tried again the next time.
    pub(crate) fn tell(&mut self, mut tell: impl FnMut(ShardId, RelayEvent) -> bool) {
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

    fn shard_config() -> ShardConfig {
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
        ShardConfig::new(Arc::new(relay), Instant::now())
    }

    #[test]
    fn an_address_that_comes_while_serving_is_denied_to_peers() {
        let mut config = shard_config();
        let mut told = Vec::new();
        let fresh = ip("2600::a1b2");
        config.follow(vec![ip("::1"), fresh, ip("2600::5")]);
        config.tell(|shard, event| {
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
        let mut config = shard_config();
        config.follow(vec![ip("::1"), ip("2600::5")]);
        config.tell(|_, _| panic!("nothing changed"));
    }

    #[test]
    fn a_shard_whose_mailbox_is_full_is_told_the_next_time() {
        let mut config = shard_config();
        config.follow(vec![ip("2600::5")]);
        config.tell(|shard, _| shard == ShardId(0));
        let mut told = Vec::new();
        let mut tell = |shard, _| {
            told.push(shard);
            true
        };
        config.tell(&mut tell);
        config.tell(&mut tell);
        assert_eq!(told, [ShardId(1)]);
    }

    #[test]
    fn what_is_read_again_and_the_machines_addresses_reach_the_shards_together() {
        let mut config = shard_config();
        config.follow(vec![ip("2600::7")]);
        let read = RelayConfig {
            realm: "another.example".to_owned(),
            ..RelayConfig::clone(config.relay())
        };
        config.replace(Arc::new(read));
        let mut told = Vec::new();
        config.tell(|shard, event| {
            let RelayEvent::Reconfigured(relay) = event else {
                panic!("{event:?}")
            };
            told.push((shard, relay.realm.clone(), relay.own_addresses.clone()));
            true
        });
        let expected = |shard| {
            (
                ShardId(shard),
                "another.example".to_owned(),
                vec![ip("2600::7")],
            )
        };
        assert_eq!(told, [expected(0), expected(1)]);
    }
}
