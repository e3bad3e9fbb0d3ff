//! Whom a limit is for, as it is written on the command line.

use std::fmt;

use serde::{Deserialize, Serialize};
use towpath_proto::credentials::check_username;
use towpath_proto::slots::{Identity, IdentityKind, PeerSlot};

use crate::limit::Class;

/// Stands before the name of a class.
const CLASS: &str = "class:";

/// Whom a limit is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A user, of the named realm or of the server's.
    User {
        /// The realm.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        realm: Option<String>,
        /// The name.
        name: String,
    },
    /// All users of a class together.
    Class(Class),
    /// Every user without a limit of their own.
    Default,
    /// All users together.
    Global,
}

/// Why a text names nobody.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum NotTarget {
    /// Not a class.
    #[error(transparent)]
    Class(#[from] crate::limit::NoClass),
    /// Not a name that a user can have.
    #[error("{name:?}: {error}")]
    User {
        /// The name.
        name: String,
        /// The rule it breaks.
        error: towpath_proto::credentials::CredentialError,
    },
}

impl Target {
    /// Reads `NAME`, `REALM/NAME` or `class:CLASS`. With `realm` given, all of the text is the name.
    pub fn parse(text: &str, realm: Option<&str>) -> Result<Self, NotTarget> {
        if realm.is_none()
            && let Some(class) = text.strip_prefix(CLASS)
        {
            return Ok(Self::Class(class.parse()?));
        }
        let (realm, name) = match (realm, text.split_once('/')) {
            (None, Some((realm, name))) if !realm.is_empty() => (Some(realm), name),
            (realm, _) => (realm, text),
        };
        check_username(name).map_err(|error| NotTarget::User {
            name: name.to_owned(),
            error,
        })?;
        Ok(Self::User {
            realm: realm.map(str::to_owned),
            name: name.to_owned(),
        })
    }

    /// The slot of what is no user.
    pub fn fixed_slot(&self) -> Option<PeerSlot> {
        match self {
            Self::User { .. } => None,
            Self::Class(class) => Some(class.slot()),
            Self::Default => Some(PeerSlot::DEFAULT),
            Self::Global => Some(PeerSlot::GLOBAL),
        }
    }

    /// The identity of a user, of `realm` where none is named; `None` for what is no user, and where
    /// neither names a realm.
    pub fn identity(&self, default_realm: Option<&str>) -> Option<Identity> {
        let Self::User { realm, name } = self else {
            return None;
        };
        Some(Identity::user(realm.as_deref().or(default_realm)?, name))
    }

    /// Whether this names a slot's identity.
    pub fn names(&self, identity: &Identity) -> bool {
        match self {
            Self::User { realm, .. } => {
                identity.kind() == IdentityKind::User
                    && realm.as_ref().is_none_or(|realm| realm == identity.realm())
                    && self.identity(Some(identity.realm())).as_ref() == Some(identity)
            }
            Self::Class(_) | Self::Default | Self::Global => false,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User {
                realm: Some(realm),
                name,
            } => write!(f, "{realm}/{name}"),
            Self::User { realm: None, name } => f.write_str(name),
            Self::Class(class) => write!(f, "{CLASS}{class}"),
            Self::Default => f.write_str("default"),
            Self::Global => f.write_str("global"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(realm: Option<&str>, name: &str) -> Target {
        Target::User {
            realm: realm.map(str::to_owned),
            name: name.to_owned(),
        }
    }

    #[test]
    fn users_realms_and_classes_are_told_apart() {
        let parse = |text| Target::parse(text, None).unwrap();
        assert_eq!(parse("alice"), user(None, "alice"));
        assert_eq!(parse("a.test/alice"), user(Some("a.test"), "alice"));
        assert_eq!(parse("class:bulk"), Target::Class(Class::Bulk));
        let whole = Target::parse("class:a/b", Some("a.test")).unwrap();
        assert_eq!(whole, user(Some("a.test"), "class:a/b"));
        assert!(Target::parse("class:fast", None).is_err());
        assert!(Target::parse("", None).is_err());
        for text in ["alice", "a.test/alice", "class:bulk"] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn a_name_without_a_realm_names_the_user_of_any() {
        let alice = Identity::user("a.test", "alice");
        assert!(user(None, "alice").names(&alice));
        assert!(user(Some("a.test"), "alice").names(&alice));
        assert!(!user(Some("b.test"), "alice").names(&alice));
        assert!(!user(None, "bob").names(&alice));
        assert!(!Target::Default.names(&alice));
    }
}
