//! Who may use a relay, and with which keys.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use super::rest::{RestName, RestSecret};
use crate::credentials::{LongTermKey, userhash};
use crate::slots::Identity;
use crate::wire::IntegrityKey;
use crate::wire::attribute::Algorithm;
use crate::{Timestamp, WallClock};

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

/// One user, or one time-limited credential of a user.
#[derive(Debug)]
pub struct User {
    name: Arc<str>,
    account: Arc<str>,
    keys: Keys,
}

#[derive(Debug)]
enum Keys {
    /// They are configured, and ready to check messages with.
    Configured(Box<Configured>),
    /// One was made from a shared secret for one request. Small, as every allocation keeps its own.
    Derived {
        key: LongTermKey,
        secret: RestSecret,
        ends_unix_s: u64,
        has_id: bool,
    },
}

#[derive(Debug)]
struct Configured {
    credential: Credential,
    md5: IntegrityKey,
    sha256: Option<IntegrityKey>,
}

impl User {
    fn configured(name: &str, credential: Credential) -> Self {
        let name = Arc::from(name);
        Self {
            account: Arc::clone(&name),
            name,
            keys: Keys::Configured(Box::new(Configured {
                md5: IntegrityKey::new(&credential.md5),
                sha256: credential.sha256.as_ref().map(|key| IntegrityKey::new(key)),
                credential,
            })),
        }
    }

    /// The user of a time-limited name, with the key that follows from the secret; `None` where the name
    /// can be nobody's.
    pub(crate) fn derived(
        username: &str,
        name: &RestName<'_>,
        secret: &RestSecret,
        algorithm: Algorithm,
        realm: &str,
    ) -> Option<Self> {
        let password = secret.password(username);
        let key = LongTermKey::derive(algorithm, username, realm, &password).ok()?;
        let username = Arc::from(username);
        Some(Self {
            account: name.id.map_or_else(|| Arc::clone(&username), Arc::from),
            name: username,
            keys: Keys::Derived {
                key,
                secret: secret.clone(),
                ends_unix_s: name.ends_unix_s,
                has_id: name.id.is_some(),
            },
        })
    }

    /// The username, as messages have it.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Who counts as the same user: the username, but of a time-limited one the part behind the time.
    pub fn account(&self) -> &Arc<str> {
        &self.account
    }

    /// Whose limits hold, and who is counted for: the account, or the allocation where a time-limited
    /// username names nobody.
    pub(crate) fn identity(&self, realm: &str, client: SocketAddr, server: SocketAddr) -> Identity {
        match self.keys {
            Keys::Derived { has_id: false, .. } => Identity::allocation(client, server),
            Keys::Configured(_) | Keys::Derived { has_id: true, .. } => {
                Identity::user(realm, &self.name)
            }
        }
    }

    /// The keys of a user who is configured.
    pub fn credential(&self) -> Option<&Credential> {
        match &self.keys {
            Keys::Configured(keys) => Some(&keys.credential),
            Keys::Derived { .. } => None,
        }
    }

    fn has_sha256(&self) -> bool {
        self.credential()
            .is_none_or(|credential| credential.sha256.is_some())
    }

    /// The key of this algorithm, where it is known.
    pub(crate) fn key(&self, algorithm: Algorithm) -> Option<Cow<'_, IntegrityKey>> {
        match (&self.keys, algorithm) {
            (Keys::Configured(keys), Algorithm::Md5) => Some(Cow::Borrowed(&keys.md5)),
            (Keys::Configured(keys), Algorithm::Sha256) => keys.sha256.as_ref().map(Cow::Borrowed),
            (Keys::Derived { key, .. }, _) => (key.algorithm() == algorithm)
                .then(|| Cow::Owned(IntegrityKey::new(key.as_bytes()))),
        }
    }

    /// When the credential ends: never, or at its time. Without a clock that time has come.
    pub(crate) fn ends(&self, clock: Option<WallClock>) -> Timestamp {
        match (&self.keys, clock) {
            (Keys::Configured(_), _) => Timestamp::MAX,
            (Keys::Derived { ends_unix_s, .. }, Some(clock)) => clock.at_unix(*ends_unix_s),
            (Keys::Derived { .. }, None) => Timestamp::ZERO,
        }
    }
}

/// The users by name, and the secrets that more users' credentials are made with. A clone shares them.
#[derive(Clone, Debug, Default)]
pub struct Users(Arc<Inner>);

#[derive(Clone, Debug, Default)]
struct Inner {
    by_name: HashMap<Arc<str>, Arc<User>>,
    /// How many have no key for SHA-256.
    without_sha256: usize,
    secrets: Vec<RestSecret>,
    /// By USERHASH in one realm, made when it is first needed.
    by_hash: OnceLock<ByHash>,
}

/// Users by the USERHASH of their names in one realm.
#[derive(Clone, Debug)]
struct ByHash {
    realm: Box<str>,
    users: HashMap<[u8; 32], Arc<User>>,
}

impl Users {
    /// Most secrets: a request with a time-limited username is checked with each of them.
    pub const MAX_REST_SECRETS: usize = 8;

    /// Nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a user; gives back the one who had the name before.
    pub fn insert(&mut self, name: &str, credential: Credential) -> Option<Arc<User>> {
        let inner = Arc::make_mut(&mut self.0);
        inner.by_hash = OnceLock::new();
        inner.without_sha256 += usize::from(credential.sha256.is_none());
        let user = Arc::new(User::configured(name, credential));
        let before = inner.by_name.insert(Arc::clone(&user.name), user);
        if before.as_ref().is_some_and(|user| !user.has_sha256()) {
            inner.without_sha256 -= 1;
        }
        before
    }

    /// Accepts time-limited credentials made with this secret as well.
    pub fn add_rest_secret(&mut self, secret: RestSecret) {
        Arc::make_mut(&mut self.0).secrets.push(secret);
    }

    /// The user of this name.
    pub fn find(&self, name: &str) -> Option<&Arc<User>> {
        self.0.by_name.get(name)
    }

    /// The user of this USERHASH in a realm.
    pub(crate) fn find_hash(&self, realm: &str, hash: &[u8; 32]) -> Option<&Arc<User>> {
        let by_hash = self.by_hash(realm);
        by_hash.users.get(hash).filter(|_| *by_hash.realm == *realm)
    }

    /// Prepares the look-up by USERHASH in a realm beforehand, so that no request has to wait for it.
    pub fn prepare(&self, realm: &str) {
        self.by_hash(realm);
    }

    fn by_hash(&self, realm: &str) -> &ByHash {
        self.0.by_hash.get_or_init(|| {
            let hashed = |user: &Arc<User>| Some((userhash(&user.name, realm).ok()?, user.clone()));
            ByHash {
                realm: realm.into(),
                users: self.0.by_name.values().filter_map(hashed).collect(),
            }
        })
    }

    /// Secrets of time-limited credentials.
    pub fn rest_secrets(&self) -> &[RestSecret] {
        &self.0.secrets
    }

    /// Whether every user has a key for SHA-256, so that it can be offered to whoever comes.
    pub(crate) fn all_have_sha256(&self) -> bool {
        self.0.without_sha256 == 0
    }

    /// What has become of a user who was authenticated once: the same user as now configured, or `None`
    /// where these keys open nothing any more.
    pub(crate) fn keep(&self, known: &Arc<User>) -> Option<Arc<User>> {
        match &known.keys {
            Keys::Configured(_) => self
                .find(&known.name)
                .filter(|user| user.credential() == known.credential())
                .cloned(),
            Keys::Derived { secret, .. } => {
                let is_known = self.0.secrets.contains(secret);
                is_known.then(|| Arc::clone(known))
            }
        }
    }

    /// Number of users who are named.
    pub fn len(&self) -> usize {
        self.0.by_name.len()
    }

    /// Whether nobody is named.
    pub fn is_empty(&self) -> bool {
        self.0.by_name.is_empty()
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
