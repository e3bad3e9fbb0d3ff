//! Who may use a relay, and with which keys.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::wire::IntegrityKey;

/// The keys of one user. They are what a password is hashed to; the password itself is not kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// RFC 8489 §9.2.2: MD5 of `username ":" realm ":" password`.
    pub md5: [u8; 16],
    /// RFC 8489 §9.2.2: SHA-256 of the same, where it is known.
    pub sha256: Option<[u8; 32]>,
}

impl fmt::Debug for Credential {
    /// Shows no key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("sha256", &self.sha256.is_some())
            .finish_non_exhaustive()
    }
}

/// One user: the keys are ready to check messages with.
#[derive(Debug)]
pub struct User {
    name: Arc<str>,
    credential: Credential,
    md5: IntegrityKey,
    sha256: Option<IntegrityKey>,
}

impl User {
    fn new(name: &str, credential: Credential) -> Self {
        Self {
            name: Arc::from(name),
            md5: IntegrityKey::new(&credential.md5),
            sha256: credential.sha256.as_ref().map(|key| IntegrityKey::new(key)),
            credential,
        }
    }

    /// The username.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The keys.
    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    /// The key made with MD5.
    pub(crate) fn md5(&self) -> &IntegrityKey {
        &self.md5
    }

    /// The key made with SHA-256, where it is known.
    pub(crate) fn sha256(&self) -> Option<&IntegrityKey> {
        self.sha256.as_ref()
    }
}

/// The users by name. A clone shares them.
#[derive(Clone, Debug, Default)]
pub struct Users {
    by_name: Arc<HashMap<Arc<str>, Arc<User>>>,
}

impl Users {
    /// Nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a user; gives back the one who had the name before.
    pub fn insert(&mut self, name: &str, credential: Credential) -> Option<Arc<User>> {
        let user = User::new(name, credential);
        Arc::make_mut(&mut self.by_name).insert(Arc::clone(&user.name), Arc::new(user))
    }

    /// The user of this name.
    pub fn find(&self, name: &str) -> Option<&Arc<User>> {
        self.by_name.get(name)
    }

    /// Number of users.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are no users.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

impl<'a> FromIterator<(&'a str, Credential)> for Users {
    fn from_iter<I: IntoIterator<Item = (&'a str, Credential)>>(users: I) -> Self {
        let mut all = Self::new();
        for (name, credential) in users {
            all.insert(name, credential);
        }
        all
    }
}
