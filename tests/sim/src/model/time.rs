//! Until when things live, and what the relay under test was told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use towpath_proto::Timestamp;

/// What the relay under test was told, and the constants of RFC 8656.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The realm.
    pub realm: String,
    /// Passwords by name.
    pub users: BTreeMap<String, String>,
    /// Secrets of time-limited credentials.
    pub secrets: Vec<String>,
    /// A time, and which second of Unix time it is by the relay's clock.
    pub wall: (Timestamp, u64),
    /// Local and public relay addresses, in order.
    pub relay_addresses: Vec<(IpAddr, IpAddr)>,
    /// All addresses of the relay's host, public ones included.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Peers' networks that are allowed although they are of special use.
    pub allowed: BTreeSet<IpAddr>,
    /// Peers that are denied although they are not.
    pub denied: BTreeSet<IpAddr>,
    /// The listening addresses.
    pub listeners: Vec<SocketAddr>,
    /// Servers that clients are sent to while it is full.
    pub alternate_servers: Vec<SocketAddr>,
    /// The relayed ports.
    pub port_range: RangeInclusive<u16>,
    /// Number of shards.
    pub shards: u16,
    /// The key of the function that finds a client's shard.
    pub steering_key: u64,
    /// Permissions of one allocation.
    pub max_permissions: usize,
    /// Channels of one allocation.
    pub max_channels: usize,
    /// Allocations of one user.
    pub allocations_per_user: Option<usize>,
    /// Allocations of one network's clients.
    pub allocations_per_network: Option<usize>,
    /// Allocations of everybody.
    pub allocations_in_total: Option<usize>,
    /// Failed logins per second of one user at one address.
    pub attempts_per_user: u32,
    /// Lifetime of an allocation that asks for none.
    pub default_lifetime: Duration,
    /// Longest lifetime that is granted.
    pub max_lifetime: Duration,
    /// How long a nonce is accepted for sure.
    pub nonce_lifetime: Duration,
    /// How much longer it may be accepted.
    pub nonce_slack: Duration,
    /// How late a port may be closed.
    pub slack: Duration,
    /// Whether allocations may follow their clients.
    pub mobility: bool,
    /// Whether ports may fail to open.
    pub ports_fail: bool,
}

/// RFC 8656 §9: "a fixed permission lifetime of 300 seconds".
pub const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);
/// RFC 8656 §12: "channel bindings last for 10 minutes unless refreshed".
pub const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);

/// RFC 8656 §7.2: a reserved port is kept "for at least 30 seconds".
pub const RESERVATION_LIFETIME: Duration = Duration::from_secs(30);
/// A reserved port that nobody claimed is free again after this.
pub const LONGEST_RESERVATION: Duration = Duration::from_secs(40);

/// Whether something exists at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alive {
    /// It does.
    Yes,
    /// Either: it is just coming into being, or is just ending.
    Maybe,
    /// It does not.
    No,
}

impl Alive {
    /// Whether both exist.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yes, Self::Yes) => Self::Yes,
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Maybe, _) | (_, Self::Maybe) => Self::Maybe,
        }
    }
}

impl Rules {
    /// Whether what ends at `until` works at `now`. Ends are exact; only what costs the host
    /// something, an open port, may stay for [`Rules::slack`].
    pub fn alive(&self, now: Timestamp, until: Timestamp) -> Alive {
        if now < until { Alive::Yes } else { Alive::No }
    }
}
