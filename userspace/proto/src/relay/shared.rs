//! The little that the shards of one relay see of each other.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::attempts::Attempts;
use super::config::RelayConfig;
use super::moved::Moved;
use super::quota::{Network, Quotas};
use super::strangers::Strangers;
use crate::Timestamp;
use crate::machine::ShardId;
use crate::slots::{MemorySlots, Slots};

/// Which relayed ports are in use, over all shards, how many allocations there are and whose, the ports
/// that EVEN-PORT reserved, where the clients are that have moved, what strangers were answered, who failed
/// to log in, and the peers' slots.
///
/// The packet path reads the port bits and charges the slots. Strangers and failed logins are words that
/// are charged without a lock. The rest is behind locks that are taken when an allocation is made, moves or
/// ends.
#[derive(Debug)]
pub struct RelayShared {
    live: Vec<PortBits>,
    quotas: Quotas,
    strangers: Strangers,
    attempts: Attempts,
    reservations: Mutex<HashMap<[u8; 8], Reservation>>,
    returned: Vec<Returned>,
    moved: Moved,
    slots: Arc<dyn Slots>,
}

/// A port kept for whoever shows its token (RFC 8656 §7.2).
#[derive(Clone, Debug)]
pub(crate) struct Reservation {
    /// Index of the relay address.
    pub(crate) address: u8,
    pub(crate) port: u16,
    pub(crate) user: Arc<str>,
    /// The client's network that it counts for.
    pub(crate) network: Network,
    pub(crate) expires: Timestamp,
}

/// Peers that are told apart where nobody says how many.
const DEFAULT_PEERS: u32 = 65_536;

/// Most reservations at a time, over all shards.
const MAX_RESERVATIONS: usize = 4096;

/// Ports of a shard that another shard had by a reservation and is done with.
#[derive(Debug, Default)]
struct Returned {
    any: AtomicBool,
    ports: Mutex<Vec<(u8, u16)>>,
}

impl RelayShared {
    /// Nothing in use yet, and nobody limited. The relay addresses cannot change later; their number
    /// is taken from here.
    pub fn new(config: &RelayConfig) -> Self {
        Self::with_slots(config, Arc::new(MemorySlots::new(DEFAULT_PEERS)))
    }

    /// Like [`new`](Self::new), with these slots, which may have peers and limits already.
    pub fn with_slots(config: &RelayConfig, slots: Arc<dyn Slots>) -> Self {
        Self {
            slots,
            live: config
                .relay_addresses
                .iter()
                .map(|_| PortBits::new())
                .collect(),
            quotas: Quotas::default(),
            strangers: Strangers::new(&config.nonce_secret),
            attempts: Attempts::new(&config.nonce_secret),
            reservations: Mutex::default(),
            returned: (0..config.shards).map(|_| Returned::default()).collect(),
            moved: Moved::new(),
        }
    }

    /// The peers' slots.
    pub fn slots(&self) -> &Arc<dyn Slots> {
        &self.slots
    }

    /// Where the clients are that have moved.
    pub(crate) fn moved(&self) -> &Moved {
        &self.moved
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

    /// How many allocations there are, and whose.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// What strangers were answered.
    pub(crate) fn strangers(&self) -> &Strangers {
        &self.strangers
    }

    /// Who failed to log in.
    pub(crate) fn attempts(&self) -> &Attempts {
        &self.attempts
    }

    /// Keeps a port under a token; `false` where there are too many.
    pub(crate) fn reserve(&self, token: [u8; 8], reservation: Reservation) -> bool {
        let mut reservations = lock(&self.reservations);
        let room = reservations.len() < MAX_RESERVATIONS && !reservations.contains_key(&token);
        if room {
            reservations.insert(token, reservation);
        }
        room
    }

    /// Takes a reserved port, if the token is this user's and still good.
    pub(crate) fn claim(&self, token: [u8; 8], user: &str, now: Timestamp) -> Option<Reservation> {
        let mut reservations = lock(&self.reservations);
        let found = reservations.get(&token)?;
        if *found.user != *user || found.expires <= now {
            return None;
        }
        reservations.remove(&token)
    }

    /// Keeps another port under a token; gives back the one before. `None` where the token has ended.
    pub(crate) fn move_reservation(&self, token: [u8; 8], port: u16) -> Option<u16> {
        let mut reservations = lock(&self.reservations);
        let reservation = reservations.get_mut(&token)?;
        Some(std::mem::replace(&mut reservation.port, port))
    }

    /// Ends a reservation nobody claimed.
    pub(crate) fn end_reservation(&self, token: [u8; 8]) -> Option<Reservation> {
        lock(&self.reservations).remove(&token)
    }

    /// Gives a port back to the shard it belongs to.
    pub(crate) fn return_port(&self, shard: ShardId, address: u8, port: u16) {
        let returned = &self.returned[usize::from(shard.0)];
        lock(&returned.ports).push((address, port));
        returned.any.store(true, Ordering::Release);
    }

    /// Whether other shards gave ports back.
    pub(crate) fn has_returned(&self, shard: ShardId) -> bool {
        self.returned[usize::from(shard.0)]
            .any
            .load(Ordering::Relaxed)
    }

    /// The ports that other shards gave back.
    pub(crate) fn take_returned(&self, shard: ShardId) -> Vec<(u8, u16)> {
        let returned = &self.returned[usize::from(shard.0)];
        if !returned.any.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        std::mem::take(&mut *lock(&returned.ports))
    }
}

/// A key for one purpose, which tells nothing about the secret or the keys for others.
pub(super) fn derived_key(secret: &[u8; 32], purpose: &str) -> [u64; 2] {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(purpose.as_bytes());
    let bytes = mac.finalize().into_bytes();
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
    [word(0), word(8)]
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
