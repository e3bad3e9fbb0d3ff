//! The little that the shards of one relay see of each other.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::config::RelayConfig;

/// Which relayed ports are in use, over all shards, and how many allocations each user has.
///
/// The packet path only reads the port bits. The count per user is behind a lock that is taken when
/// an allocation is made or ends, and only where a limit per user is set.
#[derive(Debug)]
pub struct RelayShared {
    live: Vec<PortBits>,
    users: Mutex<HashMap<Arc<str>, u32>>,
}

impl RelayShared {
    /// Nothing in use yet. The relay addresses cannot change later; their number is taken from here.
    pub fn new(config: &RelayConfig) -> Self {
        Self {
            live: config
                .relay_addresses
                .iter()
                .map(|_| PortBits::new())
                .collect(),
            users: Mutex::default(),
        }
    }

    /// Whether this port of the relay address with this index belongs to an allocation.
    pub fn is_live(&self, address: usize, port: u16) -> bool {
        self.live
            .get(address)
            .is_some_and(|bits| bits.contains(port))
    }

    /// Number of relayed ports in use on the relay address with this index.
    pub fn live_ports(&self, address: usize) -> u32 {
        self.live.get(address).map_or(0, PortBits::count)
    }

    pub(crate) fn set_live(&self, address: usize, port: u16, live: bool) {
        if let Some(bits) = self.live.get(address) {
            bits.set(port, live);
        }
    }

    /// Counts one more allocation of `user`, unless it has `limit` already.
    pub(crate) fn charge_user(&self, user: &Arc<str>, limit: u32) -> bool {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let count = users.entry(Arc::clone(user)).or_insert(0);
        let granted = *count < limit;
        *count += u32::from(granted);
        granted
    }

    /// Takes back one [`charge_user`](Self::charge_user).
    pub(crate) fn release_user(&self, user: &Arc<str>) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = users.get_mut(user) else {
            return;
        };
        *count = count.saturating_sub(1);
        if *count == 0 {
            users.remove(user);
        }
    }
}

/// One bit per port.
#[derive(Debug)]
struct PortBits(Box<[AtomicU64]>);

impl PortBits {
    fn new() -> Self {
        Self((0..65_536 / 64).map(|_| AtomicU64::new(0)).collect())
    }

    fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port / 64)].load(Ordering::Relaxed) & (1 << (port % 64)) != 0
    }

    fn set(&self, port: u16, on: bool) {
        let (word, bit) = (&self.0[usize::from(port / 64)], 1 << (port % 64));
        if on {
            word.fetch_or(bit, Ordering::Relaxed);
        } else {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    fn count(&self) -> u32 {
        self.0
            .iter()
            .map(|word| word.load(Ordering::Relaxed).count_ones())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_bits_are_independent_of_each_other() {
        let bits = PortBits::new();
        for port in [0, 1, 63, 64, 65_535] {
            bits.set(port, true);
        }
        bits.set(63, false);
        assert_eq!(bits.count(), 4);
        assert!(bits.contains(64) && bits.contains(65_535) && !bits.contains(63));
    }
}
