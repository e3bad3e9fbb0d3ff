//! What TOML cannot say: every rule between and inside the values. All that is wrong is reported
//! at once.

mod auth;
mod kernel;
mod limits;
mod quotas;
mod stun;

use std::collections::HashSet;
use std::fmt::Display;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use toml::Spanned;
use towpath_proto::access::{AccessRules, IpPrefix};
use towpath_proto::relay::{RelayAddress, RelayConfig};

use super::document::{Document, Span};
use super::error::{ConfigError, ConfigErrors, Problem, RealmRule, Warning, WarningKind};
use super::shape::{RelayAddressShape, RelayShape, Shape};
use super::{Config, DriverChoice, ObserveSection, Placed, RelaySection};

/// The most listening addresses: each costs a socket per shard.
const MAX_LISTENERS: usize = towpath_engine::MAX_LISTENERS;
/// The most relay addresses.
const MAX_RELAY_ADDRESSES: usize = RelayConfig::MAX_RELAY_ADDRESSES;
/// The most servers that clients are sent to.
const MAX_ALTERNATE_SERVERS: usize = RelayConfig::MAX_ALTERNATE_SERVERS;
/// The most shards.
pub const MAX_SHARDS: u16 = towpath_engine::MAX_SHARDS;
pub use auth::MAX_USERS;
pub use kernel::{DEFAULT_PINS, MAX_KERNEL_PEERS, MAX_KERNEL_ROUTES};
pub use quotas::default_relay_limits;

/// The most prefixes in each list of `[access]`.
pub const MAX_PREFIXES: usize = 4096;
/// The realm without one in the configuration.
pub const REALM: &str = "towpath";

const DEFAULT_LISTEN: [&str; 2] = ["0.0.0.0:3478", "[::]:3478"];
const DEFAULT_PORT_RANGE: RangeInclusive<u16> = 49152..=65535;
const DEFAULT_OBSERVE: &str = "127.0.0.1:9478";
/// Switches an address off where that is possible.
const OFF: &str = "off";

pub(super) fn check(document: Document, shape: Shape) -> Result<Config, ConfigErrors> {
    let mut checker = Checker {
        document: &document,
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    let relay = checker.relay(shape.relay);
    let stun = checker.stun(shape.stun, &relay.port_range);
    let auth = checker.auth(shape.auth, &relay.realm);
    let access = AccessRules {
        allow: checker.prefixes("access.allow", shape.access.allow),
        deny: checker.prefixes("access.deny", shape.access.deny),
    };
    let kernel = checker.kernel(shape.kernel);
    let limits = checker.limits(shape.limits, &auth);
    let observe = ObserveSection {
        listen: checker.observe_listen(shape.observe.listen),
    };
    let Checker {
        errors, warnings, ..
    } = checker;
    if !errors.is_empty() {
        return Err(ConfigErrors(errors));
    }
    Ok(Config {
        relay,
        stun,
        auth,
        access,
        kernel,
        limits,
        observe,
        warnings,
        document,
    })
}

struct Checker<'a> {
    document: &'a Document,
    errors: Vec<ConfigError>,
    warnings: Vec<Warning>,
}

impl Checker<'_> {
    fn error(&mut self, span: Span, problem: Problem) {
        self.errors.push(self.document.error(span, problem));
    }

    fn warn(&mut self, span: Span, kind: WarningKind) {
        self.warnings.push(Warning {
            kind,
            excerpt: self.document.excerpt(span),
        });
    }

    fn relay(&mut self, shape: RelayShape) -> RelaySection {
        let shards = self.shards(shape.shards);
        let port_range = self.port_range(shape.port_range, shards);
        let listen = self.listen(shape.listen, &port_range);
        let alternate_servers = self.alternate_servers(shape.alternate_servers, &listen);
        let (key, any) = (
            "relay.relay_addresses",
            "no address that peers could send to; leave the key out for all of them",
        );
        RelaySection {
            listen,
            relay_addresses: self.address_pairs(key, any, shape.relay_addresses),
            alternate_servers,
            port_range,
            realm: self.realm(shape.realm),
            shards,
            driver: self.driver(shape.driver),
            software: shape.software.unwrap_or(false),
            mobility: shape.mobility.unwrap_or(false),
        }
    }

    fn listen(
        &mut self,
        list: Option<Spanned<Vec<Spanned<String>>>>,
        port_range: &RangeInclusive<u16>,
    ) -> Vec<Placed<SocketAddr>> {
        const KEY: &str = "relay.listen";
        let Some(list) = list else {
            let default = |text: &str| text.parse().expect("the default is an address");
            return DEFAULT_LISTEN
                .into_iter()
                .map(|text| Placed {
                    value: default(text),
                    span: 0..0,
                })
                .collect();
        };
        let span = list.span();
        let list = list.into_inner();
        if list.is_empty() {
            self.error(span.clone(), Problem::NoListener);
        }
        self.limit(KEY, span, list.len(), MAX_LISTENERS);
        let mut addresses = Vec::new();
        for text in list.into_iter().take(MAX_LISTENERS) {
            let Some(address) = self.socket_address(KEY, &text) else {
                continue;
            };
            if port_range.contains(&address.port()) {
                let port_range = port_range.clone();
                self.error(
                    text.span(),
                    Problem::ListenerInPortRange {
                        address,
                        port_range,
                    },
                );
            }
            addresses.push(Placed {
                value: address,
                span: text.span(),
            });
        }
        self.distinct(KEY, &addresses);
        addresses
    }

    fn socket_address(&mut self, key: &'static str, text: &Spanned<String>) -> Option<SocketAddr> {
        let value = text.get_ref();
        let Ok(address) = value.parse::<SocketAddr>() else {
            self.error(
                text.span(),
                Problem::NotSocketAddress {
                    key,
                    value: value.clone(),
                },
            );
            return None;
        };
        if address.port() == 0 {
            self.error(text.span(), Problem::PortZero { key, address });
            return None;
        }
        self.usable(key, text.span(), address.ip())
            .then_some(address)
    }

    /// Whether sockets can be bound to `address`; an unspecified one is a matter of the key.
    fn usable(&mut self, key: &'static str, span: Span, address: IpAddr) -> bool {
        let what = if address.is_multicast() {
            "a multicast address"
        } else if address == IpAddr::from([255; 4]) {
            "the broadcast address"
        } else if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            "an IPv4-mapped address; write the IPv4 address itself"
        } else {
            return true;
        };
        self.error(span, Problem::UnusableAddress { key, address, what });
        false
    }

    /// Addresses of this machine and how others know them. `any` says what is wrong with an unspecified
    /// one.
    fn address_pairs(
        &mut self,
        key: &'static str,
        any: &'static str,
        list: Vec<Spanned<RelayAddressShape>>,
    ) -> Vec<Placed<RelayAddress>> {
        if let Some(first) = list.first() {
            self.limit(key, first.span(), list.len(), MAX_RELAY_ADDRESSES);
        }
        let mut addresses = Vec::new();
        for entry in list.into_iter().take(MAX_RELAY_ADDRESSES) {
            let span = entry.span();
            let (local, public) = match entry.into_inner() {
                RelayAddressShape::Same(address) => {
                    let address = Spanned::new(span.clone(), address);
                    let local = self.address(key, any, &address);
                    (local, local)
                }
                RelayAddressShape::Mapped { local, public } => (
                    self.address(key, any, &local),
                    self.address(key, any, &public),
                ),
            };
            let (Some(local), Some(public)) = (local, public) else {
                continue;
            };
            if local.is_ipv4() != public.is_ipv4() {
                self.error(span.clone(), Problem::MixedFamilies { key, local, public });
            }
            addresses.push(Placed {
                value: RelayAddress { local, public },
                span,
            });
        }
        let side = |address: fn(&RelayAddress) -> IpAddr| {
            let placed = |entry: &Placed<RelayAddress>| Placed {
                value: address(&entry.value),
                span: entry.span.clone(),
            };
            addresses.iter().map(placed).collect::<Vec<_>>()
        };
        self.distinct(key, &side(|address| address.local));
        if addresses
            .iter()
            .any(|entry| entry.value.local != entry.value.public)
        {
            self.distinct(key, &side(|address| address.public));
        }
        addresses
    }

    fn address(
        &mut self,
        key: &'static str,
        any: &'static str,
        text: &Spanned<String>,
    ) -> Option<IpAddr> {
        let value = text.get_ref();
        let Ok(address) = value.parse::<IpAddr>() else {
            self.error(
                text.span(),
                Problem::NotAddress {
                    key,
                    value: value.clone(),
                },
            );
            return None;
        };
        if address.is_unspecified() {
            let what = any;
            self.error(text.span(), Problem::UnusableAddress { key, address, what });
            return None;
        }
        self.usable(key, text.span(), address).then_some(address)
    }

    fn alternate_servers(
        &mut self,
        list: Vec<Spanned<String>>,
        listen: &[Placed<SocketAddr>],
    ) -> Vec<SocketAddr> {
        const KEY: &str = "relay.alternate_servers";
        if let Some(first) = list.first() {
            self.limit(KEY, first.span(), list.len(), MAX_ALTERNATE_SERVERS);
        }
        let mut servers = Vec::new();
        for text in list.into_iter().take(MAX_ALTERNATE_SERVERS) {
            let Some(address) = self.socket_address(KEY, &text) else {
                continue;
            };
            let span = text.span();
            if address.ip().is_unspecified() {
                let (key, address, what) = (KEY, address.ip(), "no address of a server");
                self.error(span, Problem::UnusableAddress { key, address, what });
            } else if listen.iter().any(|own| own.value == address) {
                self.error(span, Problem::AlternateIsSelf(address));
            } else {
                servers.push(Placed {
                    value: address,
                    span,
                });
            }
        }
        self.distinct(KEY, &servers);
        servers.into_iter().map(|placed| placed.value).collect()
    }

    fn port_range(&mut self, text: Option<Spanned<String>>, shards: u16) -> RangeInclusive<u16> {
        let Some(text) = text else {
            return DEFAULT_PORT_RANGE;
        };
        let parsed = text.get_ref().split_once('-').and_then(|(start, end)| {
            Some((
                start.trim().parse::<u16>().ok()?,
                end.trim().parse::<u16>().ok()?,
            ))
        });
        let Some((start, end)) = parsed else {
            self.error(text.span(), Problem::NotPortRange(text.get_ref().clone()));
            return DEFAULT_PORT_RANGE;
        };
        if start == 0 || start > end {
            self.error(text.span(), Problem::PortRangeOrder { start, end });
            return DEFAULT_PORT_RANGE;
        }
        // A shard owns whole pairs of an even and the next odd port.
        let pairs = end / 2 - start / 2 + 1;
        if pairs < shards {
            self.error(text.span(), Problem::PortRangeTooSmall { pairs, shards });
        }
        start..=end
    }

    fn realm(&mut self, text: Option<Spanned<String>>) -> String {
        let Some(text) = text else {
            return REALM.to_owned();
        };
        if let Err(rule) = realm_rule(text.get_ref()) {
            self.error(text.span(), Problem::Realm(rule));
        }
        text.into_inner()
    }

    fn shards(&mut self, number: Option<Spanned<i64>>) -> u16 {
        let Some(number) = number else { return 0 };
        let value = *number.get_ref();
        match u16::try_from(value) {
            Ok(shards) if shards <= MAX_SHARDS => shards,
            Ok(_) | Err(_) => {
                self.error(
                    number.span(),
                    Problem::Shards {
                        value,
                        limit: MAX_SHARDS,
                    },
                );
                0
            }
        }
    }

    fn driver(&mut self, text: Option<Spanned<String>>) -> DriverChoice {
        let Some(text) = text else {
            return DriverChoice::Auto;
        };
        match text.get_ref().as_str() {
            "auto" => DriverChoice::Auto,
            "io_uring" => DriverChoice::IoUring,
            "epoll" => DriverChoice::Epoll,
            other => {
                self.error(text.span(), Problem::Driver(other.to_owned()));
                DriverChoice::Auto
            }
        }
    }

    fn prefixes(&mut self, key: &'static str, list: Vec<Spanned<String>>) -> Vec<IpPrefix> {
        if let Some(first) = list.first() {
            self.limit(key, first.span(), list.len(), MAX_PREFIXES);
        }
        let mut prefixes = Vec::new();
        for text in list.into_iter().take(MAX_PREFIXES) {
            match text.get_ref().parse() {
                Ok(prefix) => prefixes.push(prefix),
                Err(error) => self.error(text.span(), Problem::Prefix { key, error }),
            }
        }
        prefixes
    }

    fn observe_listen(&mut self, text: Option<Spanned<String>>) -> Option<Placed<SocketAddr>> {
        let Some(text) = text else {
            let value = DEFAULT_OBSERVE.parse().expect("the default is an address");
            return Some(Placed { value, span: 0..0 });
        };
        if text.get_ref() == OFF {
            return None;
        }
        let address = self.socket_address("observe.listen", &text)?;
        if !address.ip().is_loopback() {
            self.warn(text.span(), WarningKind::PublicMetrics { address });
        }
        Some(Placed {
            value: address,
            span: text.span(),
        })
    }

    /// A number within a range; the default where there is none, or it is outside.
    fn number(
        &mut self,
        key: &'static str,
        number: Option<Spanned<i64>>,
        range: RangeInclusive<u32>,
        default: u32,
    ) -> u32 {
        let Some(number) = number else { return default };
        let value = *number.get_ref();
        match u32::try_from(value) {
            Ok(number) if range.contains(&number) => number,
            Ok(_) | Err(_) => {
                let (min, max) = range.into_inner();
                let problem = Problem::OutOfRange {
                    key,
                    value,
                    min,
                    max,
                };
                self.error(number.span(), problem);
                default
            }
        }
    }

    fn limit(&mut self, key: &'static str, span: Span, count: usize, limit: usize) {
        if count > limit {
            self.error(span, Problem::TooMany { key, count, limit });
        }
    }

    fn distinct<T: Copy + Eq + Hash + Display>(&mut self, key: &'static str, list: &[Placed<T>]) {
        let mut seen = HashSet::new();
        for entry in list {
            if !seen.insert(entry.value) {
                let value = entry.value.to_string();
                self.error(entry.span.clone(), Problem::Duplicate { key, value });
            }
        }
    }
}

/// Whether a realm can be sent.
fn realm_rule(realm: &str) -> Result<(), RealmRule> {
    if realm.is_empty() {
        return Err(RealmRule::Empty);
    }
    if realm.len() > RelayConfig::MAX_REALM_BYTES {
        return Err(RealmRule::TooLong { bytes: realm.len() });
    }
    // RFC 8489 §14.9: a realm is sent as a quoted string without its quotes, so both of these would
    // need an escape.
    match realm
        .chars()
        .find(|char| char.is_control() || matches!(char, '"' | '\\'))
    {
        Some(character) => Err(RealmRule::Character(character)),
        None => Ok(()),
    }
}
