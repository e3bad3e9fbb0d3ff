//! Who a slot belongs to.

use std::fmt;
use std::net::SocketAddr;

use sha2::{Digest, Sha256};
use towpath_ebpf_common::meter::{IDENTITY_TEXT_BYTES, IdentityHash, IdentityRecord};

/// What kind of identity it is. Its number is in the maps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum IdentityKind {
    /// A user of a realm.
    User = 1,
    /// One allocation.
    Allocation = 2,
    /// A node, by its key.
    PeerId = 3,
}

impl IdentityKind {
    /// The kind of this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::User),
            2 => Some(Self::Allocation),
            3 => Some(Self::PeerId),
            _ => None,
        }
    }
}

/// Whoever has limits and counters of its own. Two identities are the same if their hashes are.
#[derive(Clone, Debug)]
pub struct Identity {
    kind: IdentityKind,
    realm: String,
    name: String,
    truncated: bool,
    hash: IdentityHash,
}

impl Identity {
    /// A user of a realm. Of a time-limited username, `timestamp:user`, the user counts.
    pub fn user(realm: &str, username: &str) -> Self {
        Self::new(IdentityKind::User, realm, user_id(username))
    }

    /// A single allocation, by the two ends of its 5-tuple.
    pub fn allocation(client: SocketAddr, server: SocketAddr) -> Self {
        Self::new(IdentityKind::Allocation, "", &format!("{client} {server}"))
    }

    /// A node, by its PeerId as people write it.
    pub fn peer_id(peer_id: &str) -> Self {
        Self::new(IdentityKind::PeerId, "", peer_id)
    }

    fn new(kind: IdentityKind, realm: &str, name: &str) -> Self {
        // The length of the realm keeps "a" of realm "b:c" apart from "c:a" of realm "b".
        let digest = Sha256::new()
            .chain_update([kind as u8])
            .chain_update((realm.len() as u64).to_le_bytes())
            .chain_update(realm)
            .chain_update(name)
            .finalize();
        let mut hash = IdentityHash::default();
        let bytes = hash.len();
        hash.copy_from_slice(&digest[..bytes]);
        Self {
            kind,
            realm: realm.to_owned(),
            name: name.to_owned(),
            truncated: false,
            hash,
        }
    }

    /// What it is.
    pub fn kind(&self) -> IdentityKind {
        self.kind
    }

    /// The realm of a user; empty for others.
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// The name: user, client's and server's address, or PeerId.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether [`name`](Self::name) is only the beginning of the name.
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// What it is found by.
    pub fn hash(&self) -> &IdentityHash {
        &self.hash
    }

    /// What stands in [`Limits::owner`](towpath_ebpf_common::meter::Limits::owner); never 0.
    pub fn owner(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.hash;
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]).max(1)
    }

    /// The entry of the map of identities. A name that is too long is cut.
    pub fn record(&self, slot: u32) -> IdentityRecord {
        let mut text = [0; IDENTITY_TEXT_BYTES];
        let realm = prefix(&self.realm, IDENTITY_TEXT_BYTES);
        let name = prefix(&self.name, IDENTITY_TEXT_BYTES - realm.len());
        text[..realm.len()].copy_from_slice(realm.as_bytes());
        text[realm.len()..][..name.len()].copy_from_slice(name.as_bytes());
        IdentityRecord {
            slot,
            kind: self.kind as u8,
            realm_bytes: realm.len() as u8,
            name_bytes: name.len() as u8,
            truncated: u8::from(self.truncated || name.len() < self.name.len()),
            text,
        }
    }

    /// The identity of an entry of the map of identities; `None` for one that breaks the layout.
    pub fn from_record(hash: IdentityHash, record: &IdentityRecord) -> Option<Self> {
        let realm_end = usize::from(record.realm_bytes);
        let realm = record.text.get(..realm_end)?;
        let name = record
            .text
            .get(realm_end..realm_end + usize::from(record.name_bytes))?;
        Some(Self {
            kind: IdentityKind::from_number(record.kind)?,
            realm: str::from_utf8(realm).ok()?.to_owned(),
            name: str::from_utf8(name).ok()?.to_owned(),
            truncated: record.truncated != 0,
            hash,
        })
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for Identity {}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        f.write_str(if self.truncated { "…" } else { "" })
    }
}

/// The longest beginning of `text` within `bytes`.
fn prefix(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// The user in a username: of `timestamp:user`, as servers hand it out that share a secret with the
/// relay, what follows the colon.
fn user_id(username: &str) -> &str {
    match username.split_once(':') {
        Some((timestamp, user))
            if !timestamp.is_empty()
                && timestamp.bytes().all(|byte| byte.is_ascii_digit())
                && !user.is_empty() =>
        {
            user
        }
        _ => username,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_limited_usernames_of_one_user_are_one_identity() {
        let name = |username| Identity::user("example.org", username).name().to_owned();
        assert_eq!(name("1900000000:alice"), "alice");
        assert_eq!(name("1900000000:a:b"), "a:b");
        for whole in [
            "alice",
            "alice:1900000000",
            "1900000000",
            "190:",
            ":x",
            "19x:y",
        ] {
            assert_eq!(name(whole), whole);
        }
        let first = Identity::user("example.org", "1900000000:alice");
        assert_eq!(first, Identity::user("example.org", "1900000600:alice"));
        assert_eq!(first, Identity::user("example.org", "alice"));
    }

    #[test]
    fn identities_of_other_realms_kinds_and_names_differ() {
        let all = [
            Identity::user("a", "bc"),
            Identity::user("ab", "c"),
            Identity::user("", "abc"),
            Identity::peer_id("abc"),
            Identity::allocation(
                "192.0.2.1:50000".parse().unwrap(),
                "192.0.2.2:3478".parse().unwrap(),
            ),
        ];
        for (index, one) in all.iter().enumerate() {
            assert_ne!(one.owner(), 0);
            assert!(all[..index].iter().all(|other| other != one));
        }
    }

    #[test]
    fn an_identity_survives_its_record() {
        let identity = Identity::user("example.org", "alice");
        let record = identity.record(77);
        let read = Identity::from_record(*identity.hash(), &record).unwrap();
        assert_eq!((read.realm(), read.name()), ("example.org", "alice"));
        assert_eq!((record.slot, read.kind()), (77, IdentityKind::User));
        assert!(!read.is_truncated() && read == identity);
    }

    #[test]
    fn a_name_that_is_too_long_is_cut_between_characters() {
        let long = "é".repeat(250);
        let identity = Identity::user("example.org", &long);
        let record = identity.record(9);
        let read = Identity::from_record(*identity.hash(), &record).unwrap();
        assert_eq!(read.name(), "é".repeat((IDENTITY_TEXT_BYTES - 11) / 2));
        assert!(read.is_truncated() && read == identity);
        assert!(read.to_string().ends_with("é…"));
        let other = Identity::user("example.org", &(long + "x"));
        assert_ne!(other, identity, "the hash is of the whole name");
    }

    #[test]
    fn a_record_that_breaks_the_layout_is_no_identity() {
        let good = Identity::user("example.org", "alice").record(9);
        let hash = IdentityHash::default();
        for bad in [
            IdentityRecord { kind: 0, ..good },
            IdentityRecord {
                realm_bytes: 105,
                ..good
            },
            IdentityRecord {
                name_bytes: 255,
                ..good
            },
            IdentityRecord {
                text: [0xff; IDENTITY_TEXT_BYTES],
                ..good
            },
        ] {
            assert!(Identity::from_record(hash, &bad).is_none());
        }
    }
}
