//! What can be wrong with a configuration, and where.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use towpath_proto::access::IpPrefixError;
use towpath_proto::credentials::CredentialError;
use towpath_proto::relay::{RelayConfig, RestSecretError};

use super::credential::SecretError;
use super::document::{MAX_FILE_BYTES, Origin};
use crate::limit::{ClassWeights, LimitRule, NoClass};
use crate::units::UnitError;

/// Why a configuration could not be read.
#[derive(thiserror::Error, Debug)]
pub enum ReadError {
    /// The file could not be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is too long to be a configuration.
    #[error("{} is longer than {MAX_FILE_BYTES} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file is not text.
    #[error("{}:{line}: not UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line of the first byte that is wrong.
        line: usize,
    },
    /// The text is wrong.
    #[error(transparent)]
    Wrong(#[from] ConfigErrors),
}

/// Everything that is wrong with a configuration's text, in the order it was found.
#[derive(Debug)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

/// One thing that is wrong, and the line it is on.
#[derive(Clone, Debug)]
pub struct ConfigError {
    /// What is wrong.
    pub problem: Problem,
    /// Where.
    pub excerpt: Box<Excerpt>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.problem, self.excerpt)
    }
}

/// Something allowed that deserves a look, and the line it is on.
#[derive(Clone, Debug)]
pub struct Warning {
    /// What it is about.
    pub kind: WarningKind,
    /// Where.
    pub excerpt: Excerpt,
}

/// What is allowed but deserves a look.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum WarningKind {
    /// A password in the clear.
    #[error(
        "auth.users: the password of {user:?} is stored in the clear; `towpath user add` makes a \
         key from it"
    )]
    PlainPassword {
        /// The user.
        user: String,
    },
    /// A user without a key for SHA-256.
    #[error(
        "auth.users: {user:?} has no sha256 key, so no client is offered SHA-256; `towpath user add` \
         makes both"
    )]
    NoSha256Key {
        /// The user.
        user: String,
    },
    /// A secret that can be guessed.
    #[error(
        "auth.rest_secrets: a secret of {bytes} bytes can be guessed by who has a credential made \
         with it; take 16 or more that are random"
    )]
    ShortRestSecret {
        /// Its length.
        bytes: usize,
    },
    /// A limit that nobody has.
    #[error("limits.users: auth.users names no {user:?}")]
    LimitOfNobody {
        /// The user.
        user: String,
    },
    /// Metrics for everyone.
    #[error("observe.listen: {address} is not a loopback address, and metrics need no password")]
    PublicMetrics {
        /// The address.
        address: SocketAddr,
    },
}

/// A line of the configuration, with the range in question marked.
///
/// ```text
///  --> towpath.toml:5:14
///   |
/// 5 | port_range = "600-50"
///   |              ^^^^^^^^
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Excerpt {
    /// Where the text came from.
    pub origin: Origin,
    /// The line, counted from 1.
    pub line_number: usize,
    /// The column, counted in characters from 1.
    pub column: usize,
    /// How many characters are marked.
    pub width: usize,
    /// The line's text; the values of credentials are replaced.
    pub line: String,
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = match &self.origin {
            Origin::Variable(_) => String::new(),
            Origin::File(_) | Origin::Embedded => self.line_number.to_string(),
        };
        let margin = " ".repeat(number.len());
        match &self.origin {
            Origin::Variable(name) => writeln!(f, "{margin}--> environment variable {name}")?,
            Origin::File(_) | Origin::Embedded => {
                writeln!(
                    f,
                    "{margin}--> {}:{}:{}",
                    self.origin, self.line_number, self.column
                )?;
            }
        }
        // A tab stays a tab, so that the marks stand below what they mark.
        let indent: String = self
            .line
            .chars()
            .chain(std::iter::repeat(' '))
            .take(self.column - 1)
            .map(|char| if char == '\t' { '\t' } else { ' ' })
            .collect();
        writeln!(f, "{margin} |")?;
        writeln!(f, "{number} | {}", self.line)?;
        write!(f, "{margin} | {indent}{}", "^".repeat(self.width))
    }
}

/// What is wrong with a configuration.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum Problem {
    /// Not TOML, an unknown key, or a value of another type.
    #[error("{0}")]
    Toml(String),
    /// A section of a capability that is not there yet.
    #[error("this version of towpath has no [{section}] section yet; leave it out")]
    LaterSection {
        /// The section.
        section: &'static str,
    },
    /// An override of no key.
    #[error(
        "no such key; overrides are named TOWPATH__SECTION__KEY after the keys that `towpath \
         config default` prints"
    )]
    UnknownVariable,
    /// An override that is not text.
    #[error("the value is not UTF-8")]
    VariableNotUtf8,
    /// A secret that is none. It is not shown.
    #[error("auth.rest_secrets: {0}")]
    RestSecret(RestSecretError),
    /// The same secret twice. It is not shown.
    #[error("auth.rest_secrets: this secret is there twice")]
    RestSecretTwice,
    /// Not an address with a port.
    #[error(
        "{key}: {value:?} is no address with a port, such as \"0.0.0.0:3478\" or \"[::]:3478\""
    )]
    NotSocketAddress {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
    },
    /// Not an address.
    #[error("{key}: {value:?} is no address, such as \"192.0.2.1\" or \"2001:db8::1\"")]
    NotAddress {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
    },
    /// An address that cannot be listened on or relayed from.
    #[error("{key}: {address} is {what}")]
    UnusableAddress {
        /// The key.
        key: &'static str,
        /// The address.
        address: IpAddr,
        /// What kind of address it is.
        what: &'static str,
    },
    /// Port 0 is nowhere clients could send to.
    #[error("{key}: {address}: port 0 is no fixed port")]
    PortZero {
        /// The key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The same value twice.
    #[error("{key}: {value} is there twice")]
    Duplicate {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
    },
    /// Nothing to listen on.
    #[error("relay.listen: at least one address is needed")]
    NoListener,
    /// More entries than there may be.
    #[error("{key}: {count} entries; at most {limit} are possible")]
    TooMany {
        /// The key.
        key: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A listening port among the relayed ports.
    #[error(
        "relay.listen: port {} lies inside relay.port_range {}-{}; listening ports and relayed \
         ports must differ",
        address.port(), port_range.start(), port_range.end()
    )]
    ListenerInPortRange {
        /// The listening address.
        address: SocketAddr,
        /// The relayed ports.
        port_range: RangeInclusive<u16>,
    },
    /// Not a range of ports.
    #[error("relay.port_range: {0:?} is no range of ports, such as \"49152-65535\"")]
    NotPortRange(String),
    /// A range of ports that begins behind its end, or at 0.
    #[error(
        "relay.port_range: {start}-{end}: the first port must be at least 1 and at most the last"
    )]
    PortRangeOrder {
        /// The first port.
        start: u16,
        /// The last port.
        end: u16,
    },
    /// Relayed ports that the shards cannot share out.
    #[error(
        "relay.port_range: {pairs} pairs of an even and the next odd port are too few for {shards} \
         shards"
    )]
    PortRangeTooSmall {
        /// Pairs in the range, those at its ends counted whole.
        pairs: u16,
        /// Shards.
        shards: u16,
    },
    /// A realm that cannot be sent.
    #[error("relay.realm: {0}")]
    Realm(RealmRule),
    /// A user's name that cannot be sent.
    #[error("auth.users: {name:?}: {error}")]
    UserName {
        /// The name.
        name: String,
        /// The rule it breaks.
        error: CredentialError,
    },
    /// A user's secret that is none.
    #[error("auth.users: {user:?}: {error}")]
    UserSecret {
        /// The user.
        user: String,
        /// What is wrong with it.
        error: SecretError,
    },
    /// More shards than there may be.
    #[error("relay.shards: {value} is not between 0 (one per core) and {limit}")]
    Shards {
        /// The value.
        value: i64,
        /// The most there may be.
        limit: u16,
    },
    /// No such driver.
    #[error("relay.driver: {0:?} is none of \"auto\", \"io_uring\", \"epoll\"")]
    Driver(String),
    /// Addresses of different families cannot stand for each other.
    #[error("{key}: {local} and {public} are of different families")]
    MixedFamilies {
        /// The key.
        key: &'static str,
        /// The local address.
        local: IpAddr,
        /// The public address.
        public: IpAddr,
    },
    /// A relay address that no interface has.
    #[error("{key}: no interface of this machine has the address {address}")]
    NotLocal {
        /// The key.
        key: &'static str,
        /// The address.
        address: IpAddr,
    },
    /// One address, or more than two, of a family.
    #[error(
        "stun.behavior_addresses: behaviour discovery (RFC 5780) takes two addresses of a family; of \
         {family} there are {count}"
    )]
    BehaviorAddresses {
        /// The family.
        family: &'static str,
        /// How many there are.
        count: usize,
    },
    /// One port, or more than two.
    #[error(
        "stun.behavior_ports: behaviour discovery (RFC 5780) takes two different ports: the one that \
         clients know, and another"
    )]
    BehaviorPorts,
    /// A port of behaviour discovery among the relayed ports.
    #[error(
        "stun.behavior_ports: {port} lies inside relay.port_range {}-{}; listening ports and relayed \
         ports must differ",
        port_range.start(), port_range.end()
    )]
    BehaviorPortInPortRange {
        /// The port.
        port: u16,
        /// The relayed ports.
        port_range: RangeInclusive<u16>,
    },
    /// A server that would send clients to itself.
    #[error("relay.alternate_servers: {0} is this server; clients are sent to others only")]
    AlternateIsSelf(SocketAddr),
    /// No such mode of the kernel path.
    #[error("kernel.mode: {0:?} is none of \"auto\", \"native\", \"generic\", \"off\"")]
    KernelMode(String),
    /// A name that no interface can have.
    #[error(
        "kernel.interfaces: {0:?} is no name of an interface: 1 to 15 bytes without blanks and \
         slashes"
    )]
    InterfaceName(String),
    /// A number outside what is possible.
    #[error("{key}: {value} is not between {min} and {max}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// The value.
        value: i64,
        /// The least possible.
        min: u32,
        /// The most possible.
        max: u32,
    },
    /// A relative path is another one after every change of directory.
    #[error("kernel.pins: {0:?} is no absolute path")]
    PinsPath(String),
    /// Not a rate or size.
    #[error("{key}: {error}")]
    Unit {
        /// The key.
        key: String,
        /// What is wrong with it.
        error: Box<UnitError>,
    },
    /// A rate or burst that cannot be set.
    #[error("{key}: {rule}")]
    Limit {
        /// The key.
        key: String,
        /// The rule it breaks.
        rule: LimitRule,
    },
    /// A name that no user can have.
    #[error("limits.users: {name:?}: {error}")]
    LimitUserName {
        /// The name.
        name: String,
        /// The rule it breaks.
        error: CredentialError,
    },
    /// No such class.
    #[error("{key}: {error}")]
    Class {
        /// The key.
        key: String,
        /// What is wrong with it.
        error: NoClass,
    },
    /// A weight of nothing, or beyond what is possible.
    #[error(
        "limits.classes: the weight {value} of {class} is not between 1 and {}",
        ClassWeights::MAX
    )]
    Weight {
        /// The class.
        class: &'static str,
        /// The value.
        value: i64,
    },
    /// A count that is none.
    #[error("{key}: {value:?} is neither a number nor \"unlimited\"")]
    Count {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
    },
    /// Lifetimes that contradict each other.
    #[error("limits.lifetime: default_s {default_s} is longer than max_s {max_s}")]
    Lifetimes {
        /// The lifetime of an allocation that asks for none.
        default_s: u64,
        /// The longest that is granted.
        max_s: u64,
    },
    /// Not a prefix.
    #[error("{key}: {error}")]
    Prefix {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        error: IpPrefixError,
    },
}

/// A rule that a realm breaks.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum RealmRule {
    /// Nothing is no name.
    #[error("must not be empty")]
    Empty,
    /// Answers to strangers carry it and stay small.
    #[error(
        "{bytes} bytes are too long; at most {} are possible",
        RelayConfig::MAX_REALM_BYTES
    )]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It is sent as a quoted string and shown on terminals.
    #[error("must not contain {0:?}")]
    Character(char),
}
