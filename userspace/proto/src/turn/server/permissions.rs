//! The permissions of one allocation (RFC 8656 §9).

use ahash::RandomState;
use hashbrown::HashTable;

use super::address::CompactIp;
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

/// Permissions by address: the first in place, a few in a list, many hashed.
#[derive(Debug, Default)]
pub(crate) struct Permissions {
    first: Option<Permission>,
    more: Option<Box<More>>,
}

const _: () = assert!(size_of::<Permissions>() <= 40);

#[derive(Debug, Default)]
struct More {
    list: Vec<Permission>,
    /// Indexes into `list`; empty up to [`LINEAR`] permissions.
    by_ip: HashTable<u16>,
}

/// Up to this many a list is searched faster than a hash is computed.
const LINEAR: usize = 8;

impl Permissions {
    #[inline]
    pub(crate) fn find(&self, ip: CompactIp, hasher: &RandomState) -> Option<&Permission> {
        match &self.first {
            Some(first) if first.ip == ip => Some(first),
            _ => self.more.as_ref()?.find(ip, hasher),
        }
    }

    /// Number of permissions, expired ones included until they are swept.
    pub(crate) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.as_ref().map_or(0, |more| more.list.len())
    }

    /// Adds a permission, or replaces the one for the same address.
    pub(crate) fn insert(&mut self, permission: Permission, hasher: &RandomState) {
        let same = |known: &&mut Permission| known.ip == permission.ip;
        if let Some(known) = self.iter_mut().find(same) {
            *known = permission;
            return;
        }
        if self.first.is_none() {
            self.first = Some(permission);
            return;
        }
        let more = self.more.get_or_insert_default();
        more.list.push(permission);
        if more.list.len() == LINEAR + 1 {
            more.index_all(hasher);
        } else if more.list.len() > LINEAR {
            more.index(more.list.len() - 1, hasher);
        }
    }

    /// Keeps the permissions for which `keep` says so; it may change all but the address.
    pub(crate) fn retain(
        &mut self,
        hasher: &RandomState,
        mut keep: impl FnMut(&mut Permission) -> bool,
    ) {
        self.first.take_if(|first| !keep(first));
        if let Some(more) = &mut self.more {
            more.list.retain_mut(keep);
            if self.first.is_none() {
                self.first = more.list.pop();
            }
            more.index_all(hasher);
            if more.list.is_empty() {
                self.more = None;
            }
        }
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Permission> {
        self.first
            .iter_mut()
            .chain(self.more.iter_mut().flat_map(|more| more.list.iter_mut()))
    }
}

impl More {
    #[inline]
    fn find(&self, ip: CompactIp, hasher: &RandomState) -> Option<&Permission> {
        if self.list.len() <= LINEAR {
            return self.list.iter().find(|permission| permission.ip == ip);
        }
        let index = self.by_ip.find(hasher.hash_one(ip.bits()), |index| {
            self.list[usize::from(*index)].ip == ip
        })?;
        Some(&self.list[usize::from(*index)])
    }

    /// Builds the index anew.
    fn index_all(&mut self, hasher: &RandomState) {
        self.by_ip.clear();
        if self.list.len() > LINEAR {
            (0..self.list.len()).for_each(|index| self.index(index, hasher));
        }
    }

    fn index(&mut self, index: usize, hasher: &RandomState) {
        let Self { list, by_ip } = self;
        let ip = |index: &u16| hasher.hash_one(list[usize::from(*index)].ip.bits());
        let index = u16::try_from(index).expect("max_permissions is a u16");
        by_ip.insert_unique(ip(&index), index, ip);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn ip(last: u8) -> CompactIp {
        CompactIp::new(IpAddr::from([192, 0, 2, last]))
    }

    proptest! {
        #[test]
        fn permissions_are_found_by_address_like_in_a_map(
            steps in prop::collection::vec((0..40_u8, 0..4_u8), 1..120),
        ) {
            let hasher = RandomState::with_seeds(1, 2, 3, 4);
            let (mut permissions, mut model) = (Permissions::default(), BTreeMap::new());
            for (time, (last, action)) in steps.into_iter().enumerate() {
                if action == 0 {
                    permissions.retain(&hasher, |known| known.ip != ip(last));
                    model.remove(&last);
                } else {
                    let expires = Timestamp::ZERO + Duration::from_secs(time as u64);
                    let permission = Permission { ip: ip(last), own: None, expires };
                    permissions.insert(permission, &hasher);
                    model.insert(last, expires);
                }
                prop_assert_eq!(permissions.len(), model.len());
                for last in 0..40 {
                    let found = permissions.find(ip(last), &hasher).map(|found| found.expires);
                    prop_assert_eq!(found, model.get(&last).copied());
                }
            }
        }
    }
}
