//! The configuration: one struct, read and checked once, before anything is opened.
//!
//! ```text
//!   TOML text ─┐
//!              ├─▶ document (one table, every value knows its place) ─▶ shape ─▶ check ─▶ Config
//!   TOWPATH__* ┘
//! ```
//!
//! Nothing here touches the network. What only the machine can tell (its addresses, its cores) is
//! settled at the start of the server.

mod changes;
mod check;
mod credential;
mod document;
mod error;
mod shape;
mod source;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use towpath_proto::access::AccessRules;
use towpath_proto::relay::{Credential, RelayAddress, RelayLimits, RestSecret};

pub(crate) use changes::Sections;
pub use check::{
    DEFAULT_PINS, MAX_KERNEL_PEERS, MAX_KERNEL_ROUTES, MAX_PREFIXES, MAX_SHARDS, MAX_USERS, REALM,
    default_relay_limits,
};
pub use credential::{SecretError, UserSecret, credential};
pub use document::{ENVIRONMENT_PREFIX, MAX_FILE_BYTES, Origin};
pub use error::{ConfigError, ConfigErrors, Excerpt, Problem, ReadError, Warning, WarningKind};
pub use source::ConfigSource;

use document::{Document, Span};

use crate::limit::{ClassWeights, Limit, LimitChange};
use crate::units::Rate;

/// The commented file that `towpath config default` prints. It says what a server without a file
/// does.
pub const DEFAULT_FILE: &str = include_str!("config/default.toml");

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is relayed, and where.
    pub relay: RelaySection,
    /// What Binding tells beside the client's address.
    pub stun: StunSection,
    /// Who may ask for allocations.
    pub auth: AuthSection,
    /// Which peers may be reached.
    pub access: AccessRules,
    /// Whether the kernel relays, and where.
    pub kernel: KernelSection,
    /// What peers are limited to.
    pub limits: LimitsSection,
    /// Where metrics and health are served.
    pub observe: ObserveSection,
    /// What is allowed but deserves a look.
    pub warnings: Vec<Warning>,
    document: Document,
}

/// The `[relay]` section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelaySection {
    /// UDP listening addresses.
    pub listen: Vec<Placed<SocketAddr>>,
    /// Addresses given to allocations; empty: those that are listened on.
    pub relay_addresses: Vec<Placed<RelayAddress>>,
    /// Ports given to allocations.
    pub port_range: RangeInclusive<u16>,
    /// The realm of the long-term credentials.
    pub realm: String,
    /// Number of shards; 0: one per core.
    pub shards: u16,
    /// Which driver carries the packets.
    pub driver: DriverChoice,
    /// Whether answers to users say which program and version this is.
    pub software: bool,
    /// Servers that clients are sent to while this one drains or is full.
    pub alternate_servers: Vec<SocketAddr>,
    /// Whether allocations may follow their clients to other addresses.
    pub mobility: bool,
}

/// The `[stun]` section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StunSection {
    /// Two addresses of a family or of both, for NAT behaviour discovery (RFC 5780); empty: none.
    pub behavior_addresses: Vec<Placed<RelayAddress>>,
    /// The port that clients know, and the other one.
    pub behavior_ports: [u16; 2],
}

/// The `[auth]` section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuthSection {
    /// Users by name.
    pub users: BTreeMap<String, Credential>,
    /// Secrets that time-limited credentials are made with; new ones with the first.
    pub rest_secrets: Vec<RestSecret>,
}

/// The `[observe]` section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObserveSection {
    /// Where `/metrics`, `/livez` and `/readyz` are served; `None`: nowhere.
    pub listen: Option<Placed<SocketAddr>>,
}

/// The `[kernel]` section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KernelSection {
    /// How far up the ladder the kernel path goes.
    pub mode: KernelMode,
    /// Interfaces it is attached to; empty: those with the listening and relay addresses.
    pub interfaces: Vec<Placed<String>>,
    /// Peers with a slot of their own.
    pub max_peers: u32,
    /// Routes that the kernel can hold.
    pub max_routes: u32,
    /// Where its maps and links are pinned.
    pub pins: PathBuf,
}

/// How far up the ladder the kernel path goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelMode {
    /// As far as this machine allows: native XDP, generic XDP, userspace.
    Auto,
    /// Native XDP, or no start.
    Native,
    /// Generic XDP, or no start.
    Generic,
    /// Userspace only.
    Off,
}

impl fmt::Display for KernelMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
        })
    }
}

/// The `[limits]` section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LimitsSection {
    /// Of peers without a limit of their own.
    pub default: Limit,
    /// Of all peers together, both directions.
    pub global: Rate,
    /// How the global limit is shared when it is reached.
    pub classes: ClassWeights,
    /// Of single users; what is not said is as in `default`.
    pub users: BTreeMap<String, LimitChange>,
    /// Whether limits set while the server runs outlive the machine's restart.
    pub persist: bool,
    /// What clients can make the relay keep, and what strangers are answered.
    pub relay: RelayLimits,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            default: Limit::default(),
            global: Rate::Unlimited,
            classes: ClassWeights::default(),
            users: BTreeMap::new(),
            persist: false,
            relay: default_relay_limits(),
        }
    }
}

/// A value that knows where it was written, so that what turns out wrong later still points there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed<T> {
    /// The value.
    pub value: T,
    span: Span,
}

/// Which driver carries the packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DriverChoice {
    /// io_uring where the kernel allows it, epoll elsewhere.
    Auto,
    /// io_uring, or no start.
    IoUring,
    /// epoll.
    Epoll,
}

impl fmt::Display for DriverChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

impl Config {
    /// Reads the file, or the embedded default without one, and puts the overrides of
    /// `environment` on top: of all its variables, those that start with [`ENVIRONMENT_PREFIX`].
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ReadError> {
        let (origin, text) = match file {
            Some(path) => (Origin::File(path.to_owned()), document::read(path)?),
            None => (Origin::Embedded, DEFAULT_FILE.to_owned()),
        };
        Ok(Self::from_text(origin, text, environment)?)
    }

    /// Checks a configuration's text, with overrides as in [`Config::load`].
    pub fn from_text(
        origin: Origin,
        text: String,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigErrors> {
        let document = Document::new(origin, text, environment);
        let shape = shape::Shape::read(&document, document.table()?)?;
        check::check(document, shape)
    }

    /// An error that points at `placed`, for what only the machine could tell.
    pub fn error_at<T>(&self, placed: &Placed<T>, problem: Problem) -> ConfigErrors {
        ConfigErrors(vec![self.document.error(placed.span.clone(), problem)])
    }
}
