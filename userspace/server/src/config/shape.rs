//! The shape of the configuration: which sections and keys there are, and of which type.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use toml::Spanned;
use toml::de::{DeTable, Deserializer};

use super::document::Document;
use super::error::{ConfigErrors, Problem};

/// A key that an environment variable can set.
pub(super) struct Key {
    pub(super) section: &'static str,
    pub(super) key: &'static str,
    pub(super) kind: Kind,
}

/// How the text of an environment variable is read.
pub(super) enum Kind {
    /// As it stands.
    Text,
    /// As a TOML array, or as texts with commas between them.
    List,
    /// As a TOML value.
    Toml,
}

/// Every key there is.
pub(super) const KEYS: &[Key] = &[
    Key {
        section: "relay",
        key: "listen",
        kind: Kind::List,
    },
    Key {
        section: "relay",
        key: "relay_addresses",
        kind: Kind::List,
    },
    Key {
        section: "relay",
        key: "port_range",
        kind: Kind::Text,
    },
    Key {
        section: "relay",
        key: "realm",
        kind: Kind::Text,
    },
    Key {
        section: "relay",
        key: "shards",
        kind: Kind::Toml,
    },
    Key {
        section: "relay",
        key: "driver",
        kind: Kind::Text,
    },
    Key {
        section: "relay",
        key: "software",
        kind: Kind::Toml,
    },
    Key {
        section: "relay",
        key: "alternate_servers",
        kind: Kind::List,
    },
    Key {
        section: "relay",
        key: "mobility",
        kind: Kind::Toml,
    },
    Key {
        section: "stun",
        key: "behavior_addresses",
        kind: Kind::List,
    },
    Key {
        section: "stun",
        key: "behavior_ports",
        kind: Kind::Toml,
    },
    Key {
        section: "auth",
        key: "users",
        kind: Kind::Toml,
    },
    Key {
        section: "auth",
        key: "rest_secrets",
        kind: Kind::List,
    },
    Key {
        section: "access",
        key: "allow",
        kind: Kind::List,
    },
    Key {
        section: "access",
        key: "deny",
        kind: Kind::List,
    },
    Key {
        section: "kernel",
        key: "mode",
        kind: Kind::Text,
    },
    Key {
        section: "kernel",
        key: "interfaces",
        kind: Kind::List,
    },
    Key {
        section: "kernel",
        key: "max_peers",
        kind: Kind::Toml,
    },
    Key {
        section: "kernel",
        key: "max_routes",
        kind: Kind::Toml,
    },
    Key {
        section: "kernel",
        key: "pins",
        kind: Kind::Text,
    },
    Key {
        section: "limits",
        key: "default",
        kind: Kind::Toml,
    },
    Key {
        section: "limits",
        key: "users",
        kind: Kind::Toml,
    },
    Key {
        section: "limits",
        key: "global",
        kind: Kind::Text,
    },
    Key {
        section: "limits",
        key: "classes",
        kind: Kind::Toml,
    },
    Key {
        section: "limits",
        key: "persist",
        kind: Kind::Toml,
    },
    Key {
        section: "limits",
        key: "allocations",
        kind: Kind::Toml,
    },
    Key {
        section: "limits",
        key: "lifetime",
        kind: Kind::Toml,
    },
    Key {
        section: "limits",
        key: "permissions_per_allocation",
        kind: Kind::Toml,
    },
    Key {
        section: "limits",
        key: "channels_per_allocation",
        kind: Kind::Toml,
    },
    Key {
        section: "limits",
        key: "new_peers",
        kind: Kind::Toml,
    },
    Key {
        section: "limits",
        key: "strangers",
        kind: Kind::Toml,
    },
    Key {
        section: "limits",
        key: "failed_logins",
        kind: Kind::Toml,
    },
    Key {
        section: "observe",
        key: "listen",
        kind: Kind::Text,
    },
];

/// Sections of capabilities that this version does not have: refused by name, because a limit that
/// is silently not applied is worse than no start.
const LATER_SECTIONS: [&str; 2] = ["bootstrap", "fleet"];

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Shape {
    pub(super) relay: RelayShape,
    pub(super) stun: StunShape,
    pub(super) auth: AuthShape,
    pub(super) access: AccessShape,
    pub(super) kernel: KernelShape,
    pub(super) limits: LimitsShape,
    pub(super) observe: ObserveShape,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RelayShape {
    pub(super) listen: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) relay_addresses: Vec<Spanned<RelayAddressShape>>,
    pub(super) port_range: Option<Spanned<String>>,
    pub(super) realm: Option<Spanned<String>>,
    pub(super) shards: Option<Spanned<i64>>,
    pub(super) driver: Option<Spanned<String>>,
    pub(super) software: Option<bool>,
    pub(super) alternate_servers: Vec<Spanned<String>>,
    pub(super) mobility: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StunShape {
    pub(super) behavior_addresses: Vec<Spanned<RelayAddressShape>>,
    pub(super) behavior_ports: Option<Spanned<Vec<Spanned<i64>>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AuthShape {
    pub(super) users: BTreeMap<Spanned<String>, Spanned<String>>,
    pub(super) rest_secrets: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AccessShape {
    pub(super) allow: Vec<Spanned<String>>,
    pub(super) deny: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ObserveShape {
    pub(super) listen: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct KernelShape {
    pub(super) mode: Option<Spanned<String>>,
    pub(super) interfaces: Vec<Spanned<String>>,
    pub(super) max_peers: Option<Spanned<i64>>,
    pub(super) max_routes: Option<Spanned<i64>>,
    pub(super) pins: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsShape {
    pub(super) default: DefaultLimitShape,
    pub(super) users: BTreeMap<Spanned<String>, UserLimitShape>,
    pub(super) global: Option<Spanned<String>>,
    pub(super) classes: ClassesShape,
    pub(super) persist: Option<bool>,
    pub(super) allocations: AllocationsShape,
    pub(super) lifetime: LifetimeShape,
    pub(super) permissions_per_allocation: Option<Spanned<i64>>,
    pub(super) channels_per_allocation: Option<Spanned<i64>>,
    pub(super) new_peers: NewPeersShape,
    pub(super) strangers: StrangersShape,
    pub(super) failed_logins: FailedLoginsShape,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AllocationsShape {
    pub(super) per_user: Option<Spanned<CountShape>>,
    pub(super) per_network: Option<Spanned<CountShape>>,
    pub(super) total: Option<Spanned<CountShape>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LifetimeShape {
    pub(super) default_s: Option<Spanned<i64>>,
    pub(super) max_s: Option<Spanned<i64>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NewPeersShape {
    pub(super) per_second: Option<Spanned<CountShape>>,
    pub(super) burst: Option<Spanned<i64>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StrangersShape {
    pub(super) per_source: Option<Spanned<CountShape>>,
    pub(super) per_network: Option<Spanned<CountShape>>,
    pub(super) total: Option<Spanned<CountShape>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FailedLoginsShape {
    pub(super) per_user: Option<Spanned<CountShape>>,
    pub(super) per_source: Option<Spanned<CountShape>>,
}

/// `64` or `"unlimited"`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a number or \"unlimited\"")]
pub(super) enum CountShape {
    Number(i64),
    Text(String),
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DefaultLimitShape {
    pub(super) up: Option<Spanned<String>>,
    pub(super) down: Option<Spanned<String>>,
    pub(super) burst: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UserLimitShape {
    pub(super) up: Option<Spanned<String>>,
    pub(super) down: Option<Spanned<String>>,
    pub(super) burst: Option<Spanned<String>>,
    pub(super) class: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ClassesShape {
    pub(super) control: Option<Spanned<i64>>,
    pub(super) interactive: Option<Spanned<i64>>,
    pub(super) bulk: Option<Spanned<i64>>,
}

/// `"10.0.0.4"` or `{ local = "10.0.0.4", public = "203.0.113.5" }`.
pub(super) enum RelayAddressShape {
    Same(String),
    Mapped {
        local: Spanned<String>,
        public: Spanned<String>,
    },
}

impl Shape {
    pub(super) fn read(
        document: &Document,
        table: Spanned<DeTable<'_>>,
    ) -> Result<Self, ConfigErrors> {
        let later: Vec<_> = table
            .get_ref()
            .keys()
            .filter_map(|key| {
                let section = LATER_SECTIONS
                    .into_iter()
                    .find(|later| later == key.get_ref())?;
                Some(document.error(key.span(), Problem::LaterSection { section }))
            })
            .collect();
        if !later.is_empty() {
            return Err(ConfigErrors(later));
        }
        Self::deserialize(Deserializer::from(table))
            .map_err(|error| ConfigErrors(vec![document.toml_error(&error)]))
    }
}

impl<'de> Deserialize<'de> for RelayAddressShape {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RelayAddressVisitor)
    }
}

struct RelayAddressVisitor;

impl<'de> Visitor<'de> for RelayAddressVisitor {
    type Value = RelayAddressShape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address or { local = \"ADDRESS\", public = \"ADDRESS\" }")
    }

    fn visit_str<E>(self, address: &str) -> Result<Self::Value, E> {
        Ok(RelayAddressShape::Same(address.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Mapped {
            local: Spanned<String>,
            public: Spanned<String>,
        }
        let Mapped { local, public } = Mapped::deserialize(MapAccessDeserializer::new(map))?;
        Ok(RelayAddressShape::Mapped { local, public })
    }
}
