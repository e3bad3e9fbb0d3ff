//! What a configuration means on this machine: which addresses are listened on and relayed from.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nix::errno::Errno;
use towpath_engine::{Driver, EngineConfig};
use towpath_proto::access::AccessRules;
use towpath_proto::relay::{
    Credential, RelayAddress, RelayConfig, RelayConfigError, RelayLimits, Users,
};
use towpath_proto::stun::BehaviorAddresses;

use crate::config::{Config, ConfigErrors, DriverChoice, MAX_SHARDS, Placed, Problem};
use crate::host::{self, Host};

/// What SOFTWARE says.
const SOFTWARE: &str = concat!("towpath ", env!("CARGO_PKG_VERSION"));

/// What the engine and the machines are started with.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the machines are told.
    pub relay: Arc<RelayConfig>,
    /// What the engine is told; its steering key is the caller's to set.
    pub engine: EngineConfig,
    /// What is not as the configuration says, and why.
    pub notes: Vec<Note>,
}

/// A difference between configuration and machine that does not stop the start.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// The machine has no IPv6.
    #[error("this machine has no IPv6: {0} is not listened on")]
    NoIpv6(SocketAddr),
    /// More addresses than allocations can be given.
    #[error("this machine has {count} addresses; allocations are given the first {limit} of them")]
    ManyAddresses {
        /// How many there are.
        count: usize,
        /// How many are used.
        limit: usize,
    },
    /// One shard per core would be more than there are relayed ports.
    #[error("relay.port_range has ports for {0} shards only")]
    FewerShards(u16),
    /// Nobody can ask for an allocation.
    #[error(
        "auth.users and auth.rest_secrets are empty: only Binding requests are answered; see \
         `towpath user add`"
    )]
    NoUsers,
    /// What was read again has other values for these keys.
    #[error("needs a restart: {}", .0.join(", "))]
    NeedsRestart(Vec<&'static str>),
}

/// Why a configuration cannot be served on this machine.
#[derive(thiserror::Error, Debug)]
pub enum PlanError {
    /// The configuration does not fit this machine.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// Something listens there already.
    #[error("{0} is in use already: another server, or another towpath, listens there")]
    InUse(SocketAddr),
    /// Listening there takes a privilege.
    #[error(
        "listening on {0} takes a privilege that is missing; give the program CAP_NET_BIND_SERVICE \
         or use a port from 1024"
    )]
    Privilege(SocketAddr),
    /// The system refuses for another reason.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// No interface has an address that allocations could be given.
    #[error("no address of this machine can be given to allocations; set relay.relay_addresses")]
    NoRelayAddress,
    /// The machine refuses what the checks let through.
    #[error("the relay refuses this configuration: {0}")]
    Relay(#[from] RelayConfigError),
}

impl Plan {
    /// Settles everything the machine decides. `more_users` are those that the configuration does
    /// not name.
    pub fn new<'a>(
        config: &'a Config,
        host: &Host,
        nonce_secret: [u8; 32],
        more_users: impl IntoIterator<Item = (&'a str, Credential)>,
    ) -> Result<Self, PlanError> {
        let mut notes = Vec::new();
        let mut listeners = listeners(config, &mut notes)?;
        let relay_addresses = relay_addresses(config, host, &listeners, &mut notes)?;
        let behavior = behavior(config, &mut listeners)?;
        let shards = shards(config, host, &mut notes);
        let bare = RelayConfig {
            realm: String::new(),
            software: None,
            listeners: listeners.clone(),
            relay_addresses,
            own_addresses: host.addresses.clone(),
            behavior,
            alternate_servers: Vec::new(),
            port_range: config.relay.port_range.clone(),
            shards,
            users: Users::new(),
            access: AccessRules::default(),
            limits: RelayLimits::default(),
            mobility: false,
            offload: false,
            nonce_secret,
        };
        let relay = reconfigured(&bare, config, more_users)?;
        if has_no_users(&relay) {
            notes.push(Note::NoUsers);
        }
        let engine = EngineConfig {
            listeners,
            shards,
            driver: match config.relay.driver {
                DriverChoice::Auto => Driver::Auto,
                DriverChoice::IoUring => Driver::IoUring,
                DriverChoice::Epoll => Driver::Epoll,
            },
            max_ports_per_shard: relay.ports_per_shard(),
            ..EngineConfig::default()
        };
        Ok(Self {
            relay: Arc::new(relay),
            engine,
            notes,
        })
    }

    /// Has the shards ask for routes in the kernel, of which there is room for `max_routes` in all.
    pub fn offload(&mut self, offload: bool, max_routes: u32) {
        let relay = Arc::make_mut(&mut self.relay);
        relay.offload = offload;
        relay.limits.max_routes = (max_routes / u32::from(relay.shards)).max(2);
        if offload {
            leave_total_to_the_kernel(&mut relay.limits);
        }
    }

    /// How many relayed ports there can be at a time.
    pub fn relayed_ports(&self) -> u64 {
        let ports = u64::from(self.relay.port_range.end() - self.relay.port_range.start()) + 1;
        ports * self.relay.relay_addresses.len() as u64
    }
}

/// A relay's configuration with what `config` and `more_users` say about all that may change while it runs.
pub(crate) fn reconfigured<'a>(
    running: &RelayConfig,
    config: &'a Config,
    more_users: impl IntoIterator<Item = (&'a str, Credential)>,
) -> Result<RelayConfig, RelayConfigError> {
    let named = config.auth.users.iter();
    let named = named.map(|(name, keys)| (name.as_str(), keys.clone()));
    let mut users: Users = named.chain(more_users).collect();
    for secret in &config.auth.rest_secrets {
        users.add_rest_secret(secret.clone());
    }
    users.prepare(&config.relay.realm);
    let mut limits = RelayLimits {
        max_routes: running.limits.max_routes,
        ..config.limits.relay.clone()
    };
    if running.offload {
        leave_total_to_the_kernel(&mut limits);
    }
    let relay = RelayConfig {
        realm: config.relay.realm.clone(),
        software: config.relay.software.then(|| SOFTWARE.to_owned()),
        alternate_servers: config.relay.alternate_servers.clone(),
        users,
        access: config.access.clone(),
        limits,
        mobility: config.relay.mobility,
        ..running.clone()
    };
    relay.validate()?;
    Ok(relay)
}

/// Whether nobody can ask for an allocation.
pub(crate) fn has_no_users(relay: &RelayConfig) -> bool {
    relay.users.is_empty() && relay.users.rest_secrets().is_empty()
}

/// The program keeps the total for what comes by it, and picks who is answered: twice as much lets that
/// pass whole, and bounds what comes by other ways.
fn leave_total_to_the_kernel(limits: &mut RelayLimits) {
    let strangers = &mut limits.strangers;
    strangers.in_total = strangers.in_total.saturating_mul(2);
}

fn listeners(config: &Config, notes: &mut Vec<Note>) -> Result<Vec<SocketAddr>, PlanError> {
    let mut listeners = Vec::new();
    let mut no_ipv6 = None;
    for Placed { value: address, .. } in &config.relay.listen {
        match host::await_listen(*address) {
            Ok(()) => listeners.push(*address),
            Err(error) if is_without_ipv6(*address, &error) => {
                notes.push(Note::NoIpv6(*address));
                no_ipv6 = Some((*address, error));
            }
            Err(error) => return Err(refused(*address, error)),
        }
    }
    match no_ipv6 {
        Some((address, error)) if listeners.is_empty() => Err(PlanError::Listen { address, error }),
        Some(_) | None => Ok(listeners),
    }
}

/// Whether `[::]` failed because there is no IPv6 at all. A single IPv6 address that cannot be had
/// is an error: somebody named it.
fn is_without_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    let missing = [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL].map(|errno| Some(errno as i32));
    address.is_ipv6() && address.ip().is_unspecified() && missing.contains(&error.raw_os_error())
}

fn refused(address: SocketAddr, error: io::Error) -> PlanError {
    match error.kind() {
        io::ErrorKind::AddrInUse => PlanError::InUse(address),
        io::ErrorKind::PermissionDenied => PlanError::Privilege(address),
        _ => PlanError::Listen { address, error },
    }
}

fn relay_addresses(
    config: &Config,
    host: &Host,
    listeners: &[SocketAddr],
    notes: &mut Vec<Note>,
) -> Result<Vec<RelayAddress>, PlanError> {
    let configured = &config.relay.relay_addresses;
    for placed in configured {
        let local = placed.value.local;
        let Err(error) = host::try_listen(SocketAddr::new(local, 0)) else {
            continue;
        };
        return Err(not_local(config, placed, "relay.relay_addresses", error));
    }
    if !configured.is_empty() {
        return Ok(configured.iter().map(|placed| placed.value).collect());
    }
    let mut addresses = listened_on(host, listeners);
    let count = addresses.len();
    if count == 0 {
        return Err(PlanError::NoRelayAddress);
    }
    if count > RelayConfig::MAX_RELAY_ADDRESSES {
        addresses.truncate(RelayConfig::MAX_RELAY_ADDRESSES);
        notes.push(Note::ManyAddresses {
            count,
            limit: RelayConfig::MAX_RELAY_ADDRESSES,
        });
    }
    Ok(addresses.into_iter().map(RelayAddress::direct).collect())
}

/// Why an address that was named cannot be had.
fn not_local(
    config: &Config,
    placed: &Placed<RelayAddress>,
    key: &'static str,
    error: io::Error,
) -> PlanError {
    let address = placed.value.local;
    if error.kind() == io::ErrorKind::AddrNotAvailable {
        let problem = Problem::NotLocal { key, address };
        return config.error_at(placed, problem).into();
    }
    PlanError::Listen {
        address: SocketAddr::new(address, 0),
        error,
    }
}

/// The addresses of NAT behaviour discovery. What is not listened on yet is added to `listeners`.
fn behavior(
    config: &Config,
    listeners: &mut Vec<SocketAddr>,
) -> Result<Option<BehaviorAddresses>, PlanError> {
    let stun = &config.stun;
    for (placed, address) in stun.combinations() {
        host::try_listen(SocketAddr::new(address.ip(), 0))
            .map_err(|error| not_local(config, placed, "stun.behavior_addresses", error))?;
        let wildcard = |listener: &SocketAddr| {
            listener.ip().is_unspecified()
                && listener.is_ipv4() == address.is_ipv4()
                && listener.port() == address.port()
        };
        if !listeners
            .iter()
            .any(|listener| *listener == address || wildcard(listener))
        {
            host::await_listen(address).map_err(|error| refused(address, error))?;
            listeners.push(address);
        }
    }
    let addresses = stun.behavior_addresses.iter().map(|placed| placed.value);
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.partition(|address| address.local.is_ipv4());
    let pairs = [v4, v6].into_iter().filter_map(|pair| pair.try_into().ok());
    let pairs: Vec<[RelayAddress; 2]> = pairs.collect();
    Ok((!pairs.is_empty()).then_some(BehaviorAddresses {
        pairs,
        ports: stun.behavior_ports,
    }))
}

/// The addresses that requests can come to. The first of each family is what an allocation of the
/// other family than its request gets, so loopback comes last.
fn listened_on(host: &Host, listeners: &[SocketAddr]) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for listener in listeners {
        let ip = listener.ip();
        let all = host.addresses.iter().copied();
        let of_listener: Vec<IpAddr> = if ip.is_unspecified() {
            let same = |address: &IpAddr| address.is_ipv4() == ip.is_ipv4();
            all.filter(same)
                .filter(|address| host::is_relayable(*address))
                .collect()
        } else {
            vec![ip]
        };
        for address in of_listener {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    addresses.sort_by_key(IpAddr::is_loopback);
    addresses
}

fn shards(config: &Config, host: &Host, notes: &mut Vec<Note>) -> u16 {
    if config.relay.shards > 0 {
        return config.relay.shards;
    }
    let (start, end) = (
        config.relay.port_range.start(),
        config.relay.port_range.end(),
    );
    let pairs = end / 2 - start / 2 + 1;
    let cores = host.cores.min(MAX_SHARDS);
    if pairs < cores {
        notes.push(Note::FewerShards(pairs));
    }
    cores.min(pairs)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::config::Origin;

    fn config(text: &str) -> Config {
        Config::from_text(Origin::Embedded, text.to_owned(), []).unwrap()
    }

    fn host(addresses: &[&str]) -> Host {
        let addresses = addresses
            .iter()
            .map(|address| address.parse().unwrap())
            .collect();
        Host {
            addresses,
            cores: 4,
        }
    }

    fn plan(text: &str, host: &Host) -> Result<Plan, PlanError> {
        Plan::new(&config(text), host, [0; 32], [])
    }

    /// A port that nothing has just now.
    fn free_port() -> u16 {
        UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    }

    /// A port and a range of relayed ports without it.
    fn section(address: &str, more: &str) -> String {
        let port = free_port();
        let range = if port < 20_000 {
            "40000-40999"
        } else {
            "10000-10999"
        };
        format!("[relay]\nlisten = [\"{address}:{port}\"]\nport_range = \"{range}\"\n{more}")
    }

    #[test]
    fn a_wildcard_listener_relays_from_every_address_of_its_family_loopback_last() {
        let host = host(&[
            "127.0.0.1",
            "::1",
            "192.0.2.1",
            "169.254.0.1",
            "198.51.100.1",
        ]);
        let plan = plan(&section("0.0.0.0", ""), &host).unwrap();
        let locals: Vec<_> = plan
            .relay
            .relay_addresses
            .iter()
            .map(|address| address.local.to_string())
            .collect();
        assert_eq!(locals, ["192.0.2.1", "198.51.100.1", "127.0.0.1"]);
        assert_eq!(plan.relay.own_addresses, host.addresses);
        assert_eq!((plan.relay.shards, plan.engine.shards), (4, 4));
        assert_eq!(plan.relayed_ports(), 3000);
        assert_eq!(plan.notes, [Note::NoUsers]);
    }

    #[test]
    fn a_running_relay_takes_over_what_may_change_and_keeps_the_rest() {
        let mut plan = plan(&section("127.0.0.1", "shards = 1"), &host(&["192.0.2.1"])).unwrap();
        plan.offload(true, 1000);
        let new = config(
            "[relay]\nlisten = [\"127.0.0.2:9\"]\nport_range = \"2000-2999\"\nshards = 3\n\
             realm = \"b.test\"\nsoftware = true\nmobility = true\n\
             alternate_servers = [\"192.0.2.9:3478\"]\n[auth]\nusers = { bob = \"plain:x\" }\n\
             rest_secrets = [\"a secret of some length\"]\n[access]\ndeny = [\"9.9.9.0/24\"]\n\
             [limits]\npermissions_per_allocation = 3\nstrangers = { total = 70 }",
        );
        let relay = reconfigured(&plan.relay, &new, []).unwrap();
        let kept = |relay: &RelayConfig| {
            (
                relay.listeners.clone(),
                relay.relay_addresses.clone(),
                relay.own_addresses.clone(),
                relay.port_range.clone(),
                (relay.shards, relay.offload, relay.nonce_secret),
                relay.limits.max_routes,
            )
        };
        assert_eq!(kept(&relay), kept(&plan.relay));
        assert_eq!(relay.realm, "b.test");
        assert_eq!(relay.software.as_deref(), Some(SOFTWARE));
        assert!(relay.mobility && relay.users.find("bob").is_some());
        assert_eq!(relay.users.rest_secrets().len(), 1);
        assert_eq!(relay.alternate_servers.len(), 1);
        assert_eq!(relay.access, new.access);
        assert_eq!(relay.limits.max_permissions, 3);
        assert_eq!(
            relay.limits.strangers.in_total, 140,
            "the kernel keeps the 70"
        );
    }

    #[test]
    fn a_relay_is_not_sent_to_itself_by_what_is_read_again() {
        let plan = plan(&section("127.0.0.1", "shards = 1"), &host(&["192.0.2.1"])).unwrap();
        let own = plan.relay.listeners[0];
        let new = config(&format!(
            "[relay]\nlisten = [\"192.0.2.1:9\"]\nalternate_servers = [\"{own}\"]"
        ));
        let error = reconfigured(&plan.relay, &new, []).unwrap_err();
        assert_eq!(error, RelayConfigError::AlternateServer { server: own });
    }

    #[test]
    fn a_single_listener_relays_from_its_own_address() {
        let plan = plan(&section("127.0.0.1", "shards = 1"), &host(&["192.0.2.1"])).unwrap();
        let direct = RelayAddress::direct("127.0.0.1".parse().unwrap());
        assert_eq!(plan.relay.relay_addresses, [direct]);
        assert_eq!(plan.relay.shards, 1);
    }

    #[test]
    fn a_relay_address_of_another_machine_is_an_error_with_its_line() {
        let text = section("127.0.0.1", "relay_addresses = [\"192.0.2.77\"]");
        let error = plan(&text, &host(&[])).unwrap_err();
        assert!(matches!(error, PlanError::Config(_)), "{error}");
        let shown = error.to_string();
        assert!(
            shown.contains("192.0.2.77") && shown.contains(":4:"),
            "{shown}"
        );
    }

    #[test]
    fn behaviour_discovery_listens_on_what_relay_listen_leaves_out() {
        let known = free_port();
        let other = std::iter::repeat_with(free_port).find(|port| *port != known);
        let other = other.expect("ports are many");
        let text = format!(
            "[relay]\nlisten = [\"127.0.0.1:{known}\"]\nport_range = \"900-999\"\n[stun]\n\
             behavior_addresses = [\"127.0.0.1\", {{ local = \"127.0.0.2\", public = \
             \"203.0.113.6\" }}]\nbehavior_ports = [{known}, {other}]"
        );
        let plan = plan(&text, &host(&[])).unwrap();
        let listeners: Vec<_> = plan
            .relay
            .listeners
            .iter()
            .map(ToString::to_string)
            .collect();
        let expected = [
            format!("127.0.0.1:{known}"),
            format!("127.0.0.1:{other}"),
            format!("127.0.0.2:{known}"),
            format!("127.0.0.2:{other}"),
        ];
        assert_eq!(listeners, expected);
        assert_eq!(plan.engine.listeners, plan.relay.listeners);
        let behavior = plan.relay.behavior.as_ref().unwrap();
        assert_eq!(behavior.pairs[0][1].public.to_string(), "203.0.113.6");
        let direct = RelayAddress::direct("127.0.0.1".parse().unwrap());
        assert_eq!(
            plan.relay.relay_addresses,
            [direct],
            "allocations get what they got"
        );
    }

    #[test]
    fn an_address_of_behaviour_discovery_that_is_not_here_is_an_error_with_its_line() {
        let more = "[stun]\nbehavior_addresses = [\"127.0.0.1\", \"192.0.2.77\"]";
        let error = plan(&section("127.0.0.1", more), &host(&[])).unwrap_err();
        let shown = error.to_string();
        assert!(
            shown.contains("stun.behavior_addresses: no interface"),
            "{shown}"
        );
        assert!(
            shown.contains("192.0.2.77") && shown.contains(":5:"),
            "{shown}"
        );
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        let range = if address.port() < 20_000 {
            "40000-40999"
        } else {
            "10000-10999"
        };
        let text = format!("[relay]\nlisten = [\"{address}\"]\nport_range = \"{range}\"");
        let error = plan(&text, &host(&[])).unwrap_err();
        assert!(
            matches!(error, PlanError::InUse(taken) if taken == address),
            "{error}"
        );
    }

    #[test]
    fn few_ports_mean_few_shards_unless_shards_are_asked_for() {
        let text = format!(
            "[relay]\nlisten = [\"127.0.0.1:{}\"]\nport_range = \"900-903\"",
            free_port()
        );
        let plan = plan(&text, &host(&["127.0.0.1"])).unwrap();
        assert_eq!(plan.relay.shards, 2);
        assert_eq!(plan.notes, [Note::FewerShards(2), Note::NoUsers]);
    }

    #[test]
    fn a_missing_ipv6_stops_only_those_who_name_an_address() {
        let missing = io::Error::from_raw_os_error(Errno::EAFNOSUPPORT as i32);
        assert!(is_without_ipv6("[::]:3478".parse().unwrap(), &missing));
        assert!(!is_without_ipv6(
            "[2001:db8::1]:3478".parse().unwrap(),
            &missing
        ));
        assert!(!is_without_ipv6("0.0.0.0:3478".parse().unwrap(), &missing));
        let taken = io::Error::from_raw_os_error(Errno::EADDRINUSE as i32);
        assert!(!is_without_ipv6("[::]:3478".parse().unwrap(), &taken));
    }

    #[test]
    fn generated_users_count_as_users() {
        let keys = crate::config::credential("a", "towpath", "b").unwrap();
        let config = config(&section("127.0.0.1", ""));
        let plan = Plan::new(&config, &host(&[]), [0; 32], [("a", keys.clone())]).unwrap();
        assert_eq!(plan.notes, []);
        let found = plan
            .relay
            .users
            .find("a")
            .and_then(|user| user.credential().cloned());
        assert_eq!(found, Some(keys));
    }
}
