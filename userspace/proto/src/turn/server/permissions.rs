//! The permissions of one allocation (RFC 8656 §9).

use ahash::RandomState;

use super::address::CompactIp;
use super::table::{Entry, Key, Table};
use crate::Timestamp;
use crate::access::OwnAddress;

/// A permission: peers at this address may exchange data with the client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permission {
    pub(crate) ip: CompactIp,
    /// Set where this is an address of this host: ports are checked packet by packet.
    pub(crate) own: Option<OwnAddress>,
    pub(crate) expires: Timestamp,
}

/// Permissions by address.
pub(crate) type Permissions = Table<Permission, 1>;

const _: () = assert!(size_of::<Permissions>() <= 40);

impl Entry for Permission {
    fn hash(&self, _: usize, hasher: &RandomState) -> u64 {
        self.ip.hash(hasher)
    }
}

impl Key<Permission> for CompactIp {
    const INDEX: usize = 0;

    #[inline]
    fn is_of(self, permission: &Permission) -> bool {
        permission.ip == self
    }

    #[inline]
    fn hash(self, hasher: &RandomState) -> u64 {
        hasher.hash_one(self.bits())
    }
}
