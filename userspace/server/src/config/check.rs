//! What TOML cannot say: every rule between and inside the values. All that is wrong is reported
//! at once.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use toml::Spanned;

use super::credential::Secret;
use super::document::{Document, Span};
use super::error::{ConfigError, ConfigErrors, Problem, TextRule, Warning, WarningKind};
use super::shape::{RelayAddressShape, RelayShape, Shape};
use super::{
    AccessSection, AuthSection, Config, DriverChoice, IpPrefix, ObserveSection, Placed,
    RelayAddressPair, RelaySection,
};

/// The most listening addresses: each costs a socket per shard.
pub const MAX_LISTENERS: usize = 64;
/// The most relay addresses.
pub const MAX_RELAY_ADDRESSES: usize = 256;
/// The most shards.
pub const MAX_SHARDS: u16 = 256;
/// The most users.
pub const MAX_USERS: usize = 100_000;
/// The most prefixes in each list of `[access]`.
const MAX_PREFIXES: usize = 4096;

// RFC 8489 §14.9: "The REALM attribute … MUST be less than 128 characters".
const MAX_REALM_CHARS: usize = 127;
// RFC 8489 §14.3: "The value of USERNAME … MUST be less than 509 bytes".
const MAX_USER_NAME_BYTES: usize = 508;

const DEFAULT_LISTEN: [&str; 2] = ["0.0.0.0:3478", "[::]:3478"];
const DEFAULT_PORT_RANGE: RangeInclusive<u16> = 49152..=65535;
const DEFAULT_REALM: &str = "towpath";
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
    let users = checker.users(shape.auth.users);
    if let Some(secret) = shape.auth.rest_secrets.first() {
        checker.error(secret.span(), Problem::RestSecrets);
    }
    let access = AccessSection {
        allow: checker.prefixes("access.allow", shape.access.allow),
        deny: checker.prefixes("access.deny", shape.access.deny),
    };
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
        auth: AuthSection { users },
        access,
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
        RelaySection {
            listen,
            relay_addresses: self.relay_addresses(shape.relay_addresses),
            port_range,
            realm: self.realm(shape.realm),
            shards,
            driver: self.driver(shape.driver),
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

    fn relay_addresses(
        &mut self,
        list: Vec<Spanned<RelayAddressShape>>,
    ) -> Vec<Placed<RelayAddressPair>> {
        const KEY: &str = "relay.relay_addresses";
        if let Some(first) = list.first() {
            self.limit(KEY, first.span(), list.len(), MAX_RELAY_ADDRESSES);
        }
        let mut addresses = Vec::new();
        for entry in list.into_iter().take(MAX_RELAY_ADDRESSES) {
            let span = entry.span();
            let (local, public) = match entry.into_inner() {
                RelayAddressShape::Same(address) => {
                    let address = Spanned::new(span.clone(), address);
                    let local = self.relay_address(KEY, &address);
                    (local, local)
                }
                RelayAddressShape::Mapped { local, public } => (
                    self.relay_address(KEY, &local),
                    self.relay_address(KEY, &public),
                ),
            };
            let (Some(local), Some(public)) = (local, public) else {
                continue;
            };
            if local.is_ipv4() != public.is_ipv4() {
                self.error(span.clone(), Problem::MixedFamilies { local, public });
            }
            addresses.push(Placed {
                value: RelayAddressPair { local, public },
                span,
            });
        }
        let locals: Vec<_> = addresses
            .iter()
            .map(|entry| Placed {
                value: entry.value.local,
                span: entry.span.clone(),
            })
            .collect();
        self.distinct(KEY, &locals);
        addresses
    }

    fn relay_address(&mut self, key: &'static str, text: &Spanned<String>) -> Option<IpAddr> {
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
            let what = "no address that peers could send to; leave the key out for all of them";
            self.error(text.span(), Problem::UnusableAddress { key, address, what });
            return None;
        }
        self.usable(key, text.span(), address).then_some(address)
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
        let ports = usize::from(end - start) + 1;
        if ports < usize::from(shards) {
            self.error(text.span(), Problem::PortRangeTooSmall { ports, shards });
        }
        start..=end
    }

    fn realm(&mut self, text: Option<Spanned<String>>) -> String {
        let Some(text) = text else {
            return DEFAULT_REALM.to_owned();
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

    fn users(
        &mut self,
        shape: BTreeMap<Spanned<String>, Spanned<String>>,
    ) -> BTreeMap<String, Secret> {
        if let Some(first) = shape.keys().next() {
            self.limit("auth.users", first.span(), shape.len(), MAX_USERS);
        }
        let mut users = BTreeMap::new();
        for (name, secret) in shape {
            let user = name.get_ref().clone();
            if let Err(rule) = user_name_rule(&user) {
                self.error(
                    name.span(),
                    Problem::UserName {
                        name: user.clone(),
                        rule,
                    },
                );
            }
            match secret.get_ref().parse() {
                Ok(parsed) => {
                    if matches!(parsed, Secret::Plain(_)) {
                        self.warn(
                            name.span(),
                            WarningKind::PlainPassword { user: user.clone() },
                        );
                    }
                    users.insert(user, parsed);
                }
                Err(error) => self.error(secret.span(), Problem::UserSecret { user, error }),
            }
        }
        users
    }

    fn prefixes(&mut self, key: &'static str, list: Vec<Spanned<String>>) -> Vec<IpPrefix> {
        if let Some(first) = list.first() {
            self.limit(key, first.span(), list.len(), MAX_PREFIXES);
        }
        let mut prefixes = Vec::new();
        for text in list.into_iter().take(MAX_PREFIXES) {
            let value = text.get_ref().clone();
            match parse_prefix(&value) {
                Some((prefix, true)) => prefixes.push(prefix),
                Some((meant, false)) => {
                    self.error(text.span(), Problem::PrefixBits { key, value, meant });
                }
                None => self.error(text.span(), Problem::NotPrefix { key, value }),
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

/// Whether a realm can be sent, in a quoted string of fewer than 128 characters.
pub(super) fn realm_rule(realm: &str) -> Result<(), TextRule> {
    let chars = realm.chars().count();
    if chars > MAX_REALM_CHARS {
        return Err(TextRule::TooLong {
            length: chars,
            limit: MAX_REALM_CHARS,
            unit: "characters",
        });
    }
    printable_rule(realm)?;
    // RFC 3261 §25.1: inside quotes both would need an escape.
    if realm.contains(['"', '\\']) {
        Err(TextRule::Quote)
    } else {
        Ok(())
    }
}

/// Whether a name can be sent as USERNAME.
pub(super) fn user_name_rule(name: &str) -> Result<(), TextRule> {
    if name.len() > MAX_USER_NAME_BYTES {
        let length = name.len();
        return Err(TextRule::TooLong {
            length,
            limit: MAX_USER_NAME_BYTES,
            unit: "bytes",
        });
    }
    printable_rule(name)
}

fn printable_rule(text: &str) -> Result<(), TextRule> {
    if text.is_empty() {
        return Err(TextRule::Empty);
    }
    if text.chars().any(char::is_control) {
        Err(TextRule::Control)
    } else {
        Ok(())
    }
}

/// The prefix without bits beyond its length, and whether there were none.
fn parse_prefix(text: &str) -> Option<(IpPrefix, bool)> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address.parse::<IpAddr>().ok()?, Some(length)),
        None => (text.parse::<IpAddr>().ok()?, None),
    };
    let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        // `parse` alone would take "+8".
        Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok()?,
        Some(_) => return None,
        None => bits,
    };
    if length > bits {
        return None;
    }
    let first: IpAddr = match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(u32::from(bits - length)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(u32::from(bits - length)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    };
    Some((
        IpPrefix {
            address: first,
            length,
        },
        first == address,
    ))
}
