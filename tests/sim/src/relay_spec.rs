//! How a relay and its reference are made from one description.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use towpath_proto::access::{AccessRules, IpPrefix};
use towpath_proto::machine::ShardId;
use towpath_proto::relay::{
    Credential, Relay, RelayAddress, RelayConfig, RelayEvent, RelayLimits, RelayShared, RestSecret,
    Users,
};
use towpath_proto::{Machine, Timestamp, WallClock};

use crate::dice::Dice;
use crate::kernel::KernelPath;
use crate::model::{Model, Rules};
use crate::network::{Edge, HostId};
use crate::relay_host::{Faults, RelayHost, RelayHostConfig};
use crate::stun::{md5_key, sha256_key};
use crate::world::{Context, Node, World};

/// How late a relay may end something: a tick of its timers, and the latest wake-up of a host.
const SLACK: Duration = Duration::from_millis(8);

/// A relay, described.
#[derive(Clone, Debug)]
pub struct RelaySpec {
    /// Its addresses: local and public ones.
    pub addresses: Vec<(IpAddr, IpAddr)>,
    /// Further addresses of its host.
    pub other_addresses: Vec<IpAddr>,
    /// Whether it listens on all addresses, or on each of its own.
    pub wildcard: bool,
    /// The relayed ports.
    pub port_range: RangeInclusive<u16>,
    /// Number of shards.
    pub shards: u16,
    /// Names and passwords.
    pub users: Vec<(String, String)>,
    /// Secrets of time-limited credentials.
    pub secrets: Vec<String>,
    /// Special-use addresses that are allowed as peers.
    pub allowed: Vec<IpAddr>,
    /// Addresses that are denied as peers.
    pub denied: Vec<IpAddr>,
    /// Servers that clients are sent to while it is full.
    pub alternate_servers: Vec<SocketAddr>,
    /// Its limits.
    pub limits: RelayLimits,
    /// Sockets of other programs on its host.
    pub programs: Vec<SocketAddr>,
    /// What goes wrong on its host.
    pub faults: Faults,
    /// What becomes of packets that the kernel could forward.
    pub kernel_path: KernelPath,
    /// Whether allocations may follow their clients.
    pub mobility: bool,
}

/// The port every relay listens on.
pub const LISTENING_PORT: u16 = 3478;
/// Unix time at the beginning of every run.
pub const START_UNIX_S: u64 = 1_800_000_000;
/// The realm of every relay.
pub const REALM: &str = "towpath.example";

impl RelaySpec {
    /// A relay of one shard, at these addresses, on a host where nothing goes wrong.
    pub fn simple(addresses: Vec<(IpAddr, IpAddr)>) -> Self {
        Self {
            addresses,
            other_addresses: Vec::new(),
            wildcard: false,
            port_range: 50_000..=50_999,
            shards: 1,
            users: vec![("alice".into(), "secret".into())],
            secrets: Vec::new(),
            allowed: Vec::new(),
            denied: Vec::new(),
            alternate_servers: Vec::new(),
            limits: RelayLimits::default(),
            programs: Vec::new(),
            faults: Faults::none(),
            kernel_path: KernelPath::Off,
            mobility: false,
        }
    }

    /// The listening addresses, as clients know them.
    pub fn servers(&self) -> Vec<SocketAddr> {
        let publics = self.addresses.iter().map(|(_, public)| *public);
        publics
            .map(|ip| SocketAddr::new(ip, LISTENING_PORT))
            .collect()
    }

    /// Adds the relay to a world.
    pub fn add_to<N: Node>(
        &self,
        world: &mut World<N>,
        dice: &Dice,
        node: impl FnOnce(RelayHost<Relay>) -> N,
    ) -> HostId {
        let mut secrets = dice.fork("secrets", 0);
        let wall = (world.now(), START_UNIX_S);
        let rules = self.rules(secrets.number(), wall);
        let config = Arc::new(self.config(secrets.array()));
        config
            .validate()
            .expect("the simulator's configurations are valid");
        let shared = Arc::new(RelayShared::new(&config));
        let machines = (0..self.shards).map(|shard| {
            let seed = secrets.array();
            let (config, shared) = (Arc::clone(&config), Arc::clone(&shared));
            let mut machine = Relay::new(config, shared, ShardId(shard), seed);
            let clock = WallClock::new(wall.0, Duration::from_secs(wall.1));
            machine.handle_event(wall.0, RelayEvent::WallClock(clock));
            let counters = machine.counters();
            (machine, counters)
        });
        let host = RelayHostConfig {
            machines: machines.collect(),
            shared: Arc::clone(&shared),
            max_ports: config.ports_per_shard() as usize,
            max_channels: usize::from(self.limits.max_channels),
            kernel_path: self.kernel_path,
            faults: self.faults.clone(),
        };
        let host = RelayHost::new(host, Model::new(rules.clone()), dice.fork("host", 0));
        let mut addresses: Vec<IpAddr> = self.addresses.iter().map(|(local, _)| *local).collect();
        addresses.extend(&self.other_addresses);
        let translated = self.addresses.iter().any(|(local, public)| local != public);
        let edge = if translated {
            let mut pairs = self.addresses.clone();
            pairs.extend(self.other_addresses.iter().map(|ip| (*ip, *ip)));
            Edge::OneToOne {
                pairs,
                hairpin: secrets.one_in(2),
            }
        } else {
            Edge::Open
        };
        let id = world.add(&addresses, edge, node(host));
        for socket in rules.listeners.iter().chain(&self.programs) {
            world.network.bind(id, *socket).expect("the ports differ");
        }
        id
    }

    /// Gives the relay on a host what has changed in its description since; not everything can.
    /// Does nothing while a port is being opened.
    pub fn reload(&self, host: &mut RelayHost<Relay>, context: &mut Context<'_>) {
        let known = &host.model().rules;
        let rules = self.rules(known.steering_key, known.wall);
        // A machine keeps the secret it began with.
        let config = Arc::new(self.config([0; 32]));
        host.reload(context, &config, rules)
    }

    fn listeners(&self) -> Vec<SocketAddr> {
        let all: Vec<IpAddr> = if self.wildcard {
            let families: BTreeSet<bool> =
                self.addresses.iter().map(|(l, _)| l.is_ipv4()).collect();
            let any = |v4: bool| if v4 { "0.0.0.0" } else { "::" };
            families
                .into_iter()
                .map(|v4| any(v4).parse().expect("it is an address"))
                .collect()
        } else {
            self.addresses.iter().map(|(local, _)| *local).collect()
        };
        all.into_iter()
            .map(|ip| SocketAddr::new(ip, LISTENING_PORT))
            .collect()
    }

    fn own_addresses(&self) -> BTreeSet<IpAddr> {
        let pairs = self
            .addresses
            .iter()
            .flat_map(|(local, public)| [*local, *public]);
        pairs.chain(self.other_addresses.iter().copied()).collect()
    }

    fn config(&self, nonce_secret: [u8; 32]) -> RelayConfig {
        let mut users = Users::new();
        for (name, password) in &self.users {
            let md5 = md5_key(name, REALM, password);
            let sha256 = Some(sha256_key(name, REALM, password));
            users.insert(name, Credential { md5, sha256 });
        }
        for secret in &self.secrets {
            users.add_rest_secret(RestSecret::new(secret).expect("it is a secret"));
        }
        let relay_address = |(local, public): &(IpAddr, IpAddr)| RelayAddress {
            local: *local,
            public: *public,
        };
        let prefix = |ip: &IpAddr| {
            let bits = if ip.is_ipv4() { 32 } else { 128 };
            IpPrefix::new(*ip, bits).expect("a whole address is a prefix")
        };
        RelayConfig {
            realm: REALM.to_owned(),
            software: None,
            listeners: self.listeners(),
            relay_addresses: self.addresses.iter().map(relay_address).collect(),
            own_addresses: self.own_addresses().into_iter().collect(),
            behavior: None,
            alternate_servers: self.alternate_servers.clone(),
            port_range: self.port_range.clone(),
            shards: self.shards,
            users,
            access: AccessRules {
                allow: self.allowed.iter().map(prefix).collect(),
                deny: self.denied.iter().map(prefix).collect(),
            },
            limits: self.limits.clone(),
            mobility: self.mobility,
            offload: self.kernel_path != KernelPath::Off,
            nonce_secret,
        }
    }

    fn rules(&self, steering_key: u64, wall: (Timestamp, u64)) -> Rules {
        let limits = &self.limits;
        Rules {
            realm: REALM.to_owned(),
            users: self.users.iter().cloned().collect::<BTreeMap<_, _>>(),
            secrets: self.secrets.clone(),
            wall,
            relay_addresses: self.addresses.clone(),
            own_addresses: self.own_addresses(),
            allowed: self.allowed.iter().copied().collect(),
            denied: self.denied.iter().copied().collect(),
            listeners: self.listeners(),
            alternate_servers: self.alternate_servers.clone(),
            port_range: self.port_range.clone(),
            shards: self.shards,
            steering_key,
            max_permissions: usize::from(limits.max_permissions),
            max_channels: usize::from(limits.max_channels),
            allocations_per_user: limits.allocations_per_user.map(|limit| limit as usize),
            allocations_per_network: limits.allocations_per_network.map(|limit| limit as usize),
            allocations_in_total: limits.allocations_in_total.map(|limit| limit as usize),
            attempts_per_user: limits.attempts.per_user,
            default_lifetime: limits.default_lifetime,
            max_lifetime: limits.max_lifetime,
            nonce_lifetime: towpath_proto::nonce::NONCE_LIFETIME,
            nonce_slack: Duration::from_secs(16),
            slack: SLACK,
            mobility: self.mobility,
            ports_fail: self.faults.ports_fail()
                || self
                    .programs
                    .iter()
                    .any(|socket| self.port_range.contains(&socket.port())),
        }
    }
}
