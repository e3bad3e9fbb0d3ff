//! What a relay is configured with: plain data, checked once by [`RelayConfig::validate`].

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use thiserror::Error;

use super::attempts::AttemptLimits;
use super::strangers::StrangerLimits;
use super::users::Users;
use crate::access::AccessRules;
use crate::auth::LONGEST_REALM_BYTES;
use crate::stun::{BehaviorAddressError, BehaviorAddresses};
use crate::turn::server::NewPeers;

/// Everything a [`Relay`](super::Relay) is told from outside.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// The authentication realm, 1 to [`RelayConfig::MAX_REALM_BYTES`] bytes.
    pub realm: String,
    /// What SOFTWARE says in answers to authenticated requests; `None` says nothing.
    pub software: Option<String>,
    /// Where clients reach the relay. A [`ListenerId`](crate::machine::ListenerId) is an index into
    /// this list.
    pub listeners: Vec<SocketAddr>,
    /// The addresses that allocations are given. An allocation gets the one whose `local` is the
    /// address its request came to, else the first of the family it asked for.
    pub relay_addresses: Vec<RelayAddress>,
    /// Every address of this host. Peers may not be there, but for relayed ports in use.
    pub own_addresses: Vec<IpAddr>,
    /// Listening addresses for NAT behaviour discovery (RFC 5780); `None` switches it off.
    pub behavior: Option<BehaviorAddresses>,
    /// Servers that clients are sent to while this one drains or is full, in turn.
    pub alternate_servers: Vec<SocketAddr>,
    /// The relayed ports, of all shards together.
    pub port_range: RangeInclusive<u16>,
    /// Number of shards, from 1.
    pub shards: u16,
    /// Who may use the relay.
    pub users: Users,
    /// Which peers may be reached.
    pub access: AccessRules,
    /// Limits on everything a client can make the relay keep.
    pub limits: RelayLimits,
    /// Whether an allocation may follow its client to another address (RFC 8016).
    pub mobility: bool,
    /// Whether the shell can let the kernel forward: without it no routes are asked for.
    pub offload: bool,
    /// The secret behind nonces, the same in all shards. Random; never shown.
    pub nonce_secret: [u8; 32],
}

impl RelayConfig {
    /// Longest realm, in bytes. RFC 8489 §14.9 allows "fewer than 128 characters"; here it is what
    /// keeps the answer to the shortest Allocate within three times its length.
    pub const MAX_REALM_BYTES: usize = LONGEST_REALM_BYTES;
    /// Longest SOFTWARE value.
    pub const MAX_SOFTWARE_BYTES: usize = 64;
    /// Most relay addresses of one relay.
    pub const MAX_RELAY_ADDRESSES: usize = 64;
    /// Most listening addresses of one relay.
    pub const MAX_LISTENERS: usize = 1024;
    /// Most servers that clients are sent to.
    pub const MAX_ALTERNATE_SERVERS: usize = 64;
    /// Most shards of one relay.
    pub const MAX_SHARDS: u16 = 1024;

    /// Checks every rule that ties fields together or bounds a value.
    pub fn validate(&self) -> Result<(), RelayConfigError> {
        if self.realm.is_empty() || self.realm.len() > Self::MAX_REALM_BYTES {
            return Err(RelayConfigError::RealmLength {
                bytes: self.realm.len(),
            });
        }
        if let Some(character) = self.realm.chars().find(|c| c.is_control() || *c == '"') {
            return Err(RelayConfigError::RealmCharacter { character });
        }
        if let Some(software) = &self.software
            && software.len() > Self::MAX_SOFTWARE_BYTES
        {
            return Err(RelayConfigError::SoftwareLength {
                bytes: software.len(),
            });
        }
        if self.shards == 0 || self.shards > Self::MAX_SHARDS {
            return Err(RelayConfigError::Shards {
                shards: self.shards,
            });
        }
        let secrets = self.users.rest_secrets().len();
        if secrets > Users::MAX_REST_SECRETS {
            return Err(RelayConfigError::RestSecrets { count: secrets });
        }
        self.validate_addresses()?;
        self.validate_ports()?;
        if let Some(behavior) = &self.behavior {
            behavior.validate(&self.listeners)?;
        }
        self.validate_alternates()?;
        self.limits.validate()
    }

    fn validate_addresses(&self) -> Result<(), RelayConfigError> {
        if self.listeners.is_empty() || self.listeners.len() > Self::MAX_LISTENERS {
            return Err(RelayConfigError::ListenerCount {
                count: self.listeners.len(),
            });
        }
        if self.relay_addresses.is_empty() || self.relay_addresses.len() > Self::MAX_RELAY_ADDRESSES
        {
            return Err(RelayConfigError::RelayAddressCount {
                count: self.relay_addresses.len(),
            });
        }
        for (index, address) in self.relay_addresses.iter().enumerate() {
            if address.local.is_ipv4() != address.public.is_ipv4() {
                return Err(RelayConfigError::MixedFamilies { address: *address });
            }
            for ip in [address.local, address.public] {
                if ip.is_unspecified() || ip.is_multicast() || ip.to_canonical() != ip {
                    return Err(RelayConfigError::UnusableRelayAddress { address: ip });
                }
            }
            let twice = |other: &&RelayAddress| {
                other.local == address.local || other.public == address.public
            };
            if self.relay_addresses[..index]
                .iter()
                .any(|other| twice(&other))
            {
                return Err(RelayConfigError::RelayAddressTwice { address: *address });
            }
        }
        Ok(())
    }

    fn validate_alternates(&self) -> Result<(), RelayConfigError> {
        let count = self.alternate_servers.len();
        if count > Self::MAX_ALTERNATE_SERVERS {
            return Err(RelayConfigError::AlternateServerCount { count });
        }
        let useless = |server: &&SocketAddr| {
            let ip = server.ip();
            let unusable = ip.is_unspecified() || ip.is_multicast() || ip.to_canonical() != ip;
            unusable || server.port() == 0 || self.listeners.contains(server)
        };
        match self.alternate_servers.iter().find(useless) {
            Some(server) => Err(RelayConfigError::AlternateServer { server: *server }),
            None => Ok(()),
        }
    }

    fn validate_ports(&self) -> Result<(), RelayConfigError> {
        let (first, last) = (*self.port_range.start(), *self.port_range.end());
        if first == 0 || first > last {
            return Err(RelayConfigError::PortRange { first, last });
        }
        for listener in &self.listeners {
            if self.port_range.contains(&listener.port()) {
                return Err(RelayConfigError::ListenerInPortRange {
                    listener: *listener,
                    first,
                    last,
                });
            }
        }
        // A shard owns pairs of ports, so that the pairs of EVEN-PORT lie in one shard.
        let pairs = (last / 2) - (first / 2) + 1;
        if pairs < self.shards {
            return Err(RelayConfigError::TooFewPorts {
                first,
                last,
                shards: self.shards,
            });
        }
        Ok(())
    }

    /// Upper bound on the relayed ports that one shard holds at a time: every
    /// [`PortId`](crate::machine::PortId) is below it.
    pub fn ports_per_shard(&self) -> u32 {
        let ports = u32::from(self.port_range.end() - self.port_range.start()) + 1;
        let share = ports.div_ceil(2).div_ceil(u32::from(self.shards)) * 2 + 2;
        let addresses = u32::try_from(self.relay_addresses.len()).unwrap_or(u32::MAX);
        share
            .saturating_mul(addresses)
            .min(self.limits.max_allocations)
    }
}

/// An address that allocations are given.
///
/// Behind a 1:1 NAT (most clouds) the two differ: sockets are bound to `local`, clients and peers
/// know `public`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RelayAddress {
    /// The address of this host that sockets are bound to.
    pub local: IpAddr,
    /// The address that responses give.
    pub public: IpAddr,
}

impl RelayAddress {
    /// A relay address that needs no translation.
    pub const fn direct(address: IpAddr) -> Self {
        Self {
            local: address,
            public: address,
        }
    }
}

/// Limits on what clients can make a relay keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayLimits {
    /// Allocations of one shard; one with a relayed address of each family counts twice.
    pub max_allocations: u32,
    /// Allocations of one user over all shards, ports that wait reserved for another one included;
    /// `None` for no limit. One with a relayed address of each family is one.
    pub allocations_per_user: Option<u32>,
    /// Likewise, of the clients of one /24 of IPv4 or /56 of IPv6.
    pub allocations_per_network: Option<u32>,
    /// Likewise, of everybody.
    pub allocations_in_total: Option<u32>,
    /// Permissions of one allocation.
    pub max_permissions: u16,
    /// Channels of one allocation.
    pub max_channels: u16,
    /// How fast one allocation may come by new peers.
    pub new_peers: NewPeers,
    /// Lifetime of an allocation that asks for none.
    pub default_lifetime: Duration,
    /// Longest lifetime that is granted.
    pub max_lifetime: Duration,
    /// Routes of one shard that the kernel is told of, two for each channel; further channels are
    /// forwarded by the machine alone. It stays what it was when the relay was made.
    pub max_routes: u32,
    /// Answers to whoever has not authenticated.
    pub strangers: StrangerLimits,
    /// Failed logins.
    pub attempts: AttemptLimits,
}

impl RelayLimits {
    /// RFC 8656 §7.2: "a server SHOULD NOT" grant less than the default lifetime of ten minutes; the
    /// floor here only keeps clients from refreshing all the time.
    pub const MIN_LIFETIME: Duration = Duration::from_secs(60);

    fn validate(&self) -> Result<(), RelayConfigError> {
        if self.default_lifetime < Self::MIN_LIFETIME
            || self.default_lifetime > self.max_lifetime
            || self.max_lifetime > Duration::from_secs(u64::from(u32::MAX))
        {
            return Err(RelayConfigError::Lifetimes {
                default_s: self.default_lifetime.as_secs(),
                max_s: self.max_lifetime.as_secs(),
            });
        }
        let zero = if self.max_allocations == 0 {
            Some("max_allocations")
        } else if self.max_permissions == 0 {
            Some("max_permissions")
        } else if self.max_channels == 0 {
            Some("max_channels")
        } else if self.allocations_per_user == Some(0) {
            Some("allocations_per_user")
        } else if self.allocations_per_network == Some(0) {
            Some("allocations_per_network")
        } else if self.allocations_in_total == Some(0) {
            Some("allocations_in_total")
        } else if self.new_peers.per_second == 0 || self.new_peers.at_once == 0 {
            Some("new_peers")
        } else if self.attempts.per_user == 0 || self.attempts.per_source == 0 {
            Some("attempts")
        } else if self.strangers.per_source == 0 {
            Some("strangers.per_source")
        } else if self.strangers.per_network == 0 {
            Some("strangers.per_network")
        } else if self.strangers.in_total == 0 {
            Some("strangers.in_total")
        } else {
            None
        };
        zero.map_or(Ok(()), |limit| Err(RelayConfigError::ZeroLimit { limit }))
    }
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            max_allocations: 1 << 20,
            allocations_per_user: None,
            allocations_per_network: None,
            allocations_in_total: None,
            max_permissions: 256,
            max_channels: 256,
            new_peers: NewPeers::default(),
            max_routes: 1 << 17,
            default_lifetime: Duration::from_secs(600),
            max_lifetime: Duration::from_secs(3600),
            strangers: StrangerLimits::default(),
            attempts: AttemptLimits::default(),
        }
    }
}

/// A rule that a [`RelayConfig`] breaks.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RelayConfigError {
    /// The realm is empty or too long.
    #[error(
        "realm has {bytes} bytes, it must have 1 to {}",
        RelayConfig::MAX_REALM_BYTES
    )]
    RealmLength {
        /// Its length.
        bytes: usize,
    },
    /// The realm cannot be sent as a quoted string.
    #[error("realm contains {character:?}, which a realm may not contain")]
    RealmCharacter {
        /// The character.
        character: char,
    },
    /// The SOFTWARE value is too long.
    #[error(
        "software has {bytes} bytes, it may have {}",
        RelayConfig::MAX_SOFTWARE_BYTES
    )]
    SoftwareLength {
        /// Its length.
        bytes: usize,
    },
    /// The number of shards is out of range.
    #[error("{shards} shards, there must be 1 to {}", RelayConfig::MAX_SHARDS)]
    Shards {
        /// The number asked for.
        shards: u16,
    },
    /// Too many secrets: each costs every request with a wrong password.
    #[error(
        "{count} secrets of time-limited credentials, at most {} are possible",
        Users::MAX_REST_SECRETS
    )]
    RestSecrets {
        /// The number given.
        count: usize,
    },
    /// No listening address, or too many.
    #[error(
        "{count} listening addresses, there must be 1 to {}",
        RelayConfig::MAX_LISTENERS
    )]
    ListenerCount {
        /// The number given.
        count: usize,
    },
    /// No relay address, or too many.
    #[error(
        "{count} relay addresses, there must be 1 to {}",
        RelayConfig::MAX_RELAY_ADDRESSES
    )]
    RelayAddressCount {
        /// The number given.
        count: usize,
    },
    /// Local and public relay address are of two families.
    #[error("relay address {} is published as {}, which is of the other family", .address.local, .address.public)]
    MixedFamilies {
        /// The pair.
        address: RelayAddress,
    },
    /// An address that cannot be a relay address.
    #[error("{address} cannot be a relay address: it must be one IPv4 or IPv6 unicast address")]
    UnusableRelayAddress {
        /// The address.
        address: IpAddr,
    },
    /// Two relay addresses share an address.
    #[error("relay address {} (published as {}) is given twice", .address.local, .address.public)]
    RelayAddressTwice {
        /// The second of them.
        address: RelayAddress,
    },
    /// The port range is empty or contains port 0.
    #[error("port range {first}-{last} must begin above 0 and not end before it begins")]
    PortRange {
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// A listening port lies among the relayed ports.
    #[error("listening address {listener} lies in the port range {first}-{last}")]
    ListenerInPortRange {
        /// The listening address.
        listener: SocketAddr,
        /// First relayed port.
        first: u16,
        /// Last relayed port.
        last: u16,
    },
    /// Some shard would have no port.
    #[error("port range {first}-{last} is too small for {shards} shards: each needs a pair")]
    TooFewPorts {
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
        /// Number of shards.
        shards: u16,
    },
    /// The lifetimes contradict each other.
    #[error(
        "default lifetime {default_s} s must be at least {} s and at most the longest, {max_s} s",
        RelayLimits::MIN_LIFETIME.as_secs()
    )]
    Lifetimes {
        /// The default, in seconds.
        default_s: u64,
        /// The longest, in seconds.
        max_s: u64,
    },
    /// The addresses of NAT behaviour discovery.
    #[error(transparent)]
    Behavior(#[from] BehaviorAddressError),
    /// Too many servers that clients are sent to.
    #[error(
        "{count} alternate servers, there may be {}",
        RelayConfig::MAX_ALTERNATE_SERVERS
    )]
    AlternateServerCount {
        /// The number given.
        count: usize,
    },
    /// An address that no other server can have.
    #[error("{server} cannot be an alternate server: it must be another server's address and port")]
    AlternateServer {
        /// The address.
        server: SocketAddr,
    },
    /// A limit of zero would refuse everything.
    #[error("{limit} is 0, it must be at least 1")]
    ZeroLimit {
        /// The limit's name.
        limit: &'static str,
    },
}
