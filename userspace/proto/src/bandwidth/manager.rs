//! The node's limits: what each peer and all together may send and receive.
//!
//! ```text
//!   peers ── PeerId ──▶ Account: limits, buckets, counters ─┐
//!                                                           ├─ reserve: both buckets, or none
//!   everybody ────────▶ limits, buckets, counters ──────────┘
//! ```
//!
//! One [`Bandwidth`] is shared by all shards of a node. Packets only touch atomic words, which are
//! reached without looking anything up; the table of peers is behind a lock that is taken when a
//! connection begins or ends, when somebody changes or asks something, and by the adaptation.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use towpath_ebpf_common::meter::{Class as Priority, Limits, Meter};
use towpath_ebpf_common::rate::LimitWord;

use super::Sharing;
use super::account::{Account, Allowance, Tally, Usage, used};
use super::reserve::Budget;
use super::shares::{Demand, Shares};
use crate::Timestamp;
use crate::identity::PeerId;
use crate::slots::Way;

/// What a peer used is remembered for so long after its last connection. Meanwhile its buckets stay as
/// they are, so that nobody gets a full one by hanging up.
const RETENTION: Duration = Duration::from_secs(300);
/// Peers without connections that are remembered at a time.
const MAX_IDLE: usize = 4096;
/// Largest weight: turns get no longer than this many packets.
const MAX_WEIGHT: u32 = 256;

/// What a node may send and receive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BandwidthConfig {
    /// What all peers together are sent.
    pub up: LimitWord,
    /// What all peers together may send.
    pub down: LimitWord,
    /// What a peer may that nobody has set anything for.
    pub default: Allowance,
    /// How the global limits are shared out.
    pub sharing: Sharing,
    /// Peers that may have limits or a priority of their own.
    pub max_own: usize,
}

impl Default for BandwidthConfig {
    fn default() -> Self {
        Self {
            up: LimitWord::UNLIMITED,
            down: LimitWord::UNLIMITED,
            default: Allowance::UNLIMITED,
            sharing: Sharing::default(),
            max_own: 65_536,
        }
    }
}

/// Why limits are not set. The caller is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BandwidthError {
    /// The floor could never be reached.
    #[error("a floor of {floor} bit/s is above the limit of {limit} bit/s")]
    Floor {
        /// The floor.
        floor: u64,
        /// What it is above.
        limit: u64,
    },
    /// A weight is out of range.
    #[error("a weight of {weight} for {}, it must be 1 to {MAX_WEIGHT}", priority.name())]
    Weight {
        /// Whose weight.
        priority: Priority,
        /// The weight.
        weight: u32,
    },
    /// Too many peers have something of their own.
    #[error("{0} peers have limits of their own already, and no more are allowed")]
    TooManyPeers(usize),
}

impl BandwidthConfig {
    /// Whether it makes sense.
    pub fn validate(&self) -> Result<(), BandwidthError> {
        for priority in Priority::ALL {
            let weight = self.sharing.weight(priority);
            if weight == 0 || weight > MAX_WEIGHT {
                return Err(BandwidthError::Weight { priority, weight });
            }
        }
        reachable(self.sharing.floor, LimitWord::UNLIMITED)?;
        self.default.validate()
    }
}

impl Allowance {
    /// Whether it makes sense.
    pub fn validate(&self) -> Result<(), BandwidthError> {
        let Some(floor) = self.floor else {
            return Ok(());
        };
        reachable(floor, self.up)?;
        reachable(floor, self.down)
    }
}

fn reachable(floor: u64, limit: LimitWord) -> Result<(), BandwidthError> {
    let limit = limit.bits_per_second();
    let limit = limit.unwrap_or(LimitWord::MAX_BITS_PER_SECOND);
    if floor > limit {
        return Err(BandwidthError::Floor { floor, limit });
    }
    Ok(())
}

/// The limits of a node and what was used of them, for all of its shards.
#[derive(Debug)]
pub struct Bandwidth {
    limits: Limits<AtomicU64>,
    everybody: Meter<AtomicU64>,
    classes: [Meter<AtomicU64>; 3],
    /// How often limits, priorities or shares have changed.
    changes: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) sharing: Sharing,
    pub(super) shares: Shares,
    pub(super) peers: BTreeMap<PeerId, Entry>,
    default: Allowance,
    max_own: usize,
    own: usize,
    /// Who has no connection, and since when; also some who have one again.
    idle: VecDeque<(Timestamp, PeerId)>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) account: Arc<Account>,
    pub(super) demand: [Demand; 2],
    pub(super) floor: Option<u64>,
    /// What was set for this peer. It stays.
    own: Option<Allowance>,
    own_priority: bool,
    connections: u32,
    idle_since: Option<Timestamp>,
}

impl Default for Bandwidth {
    /// Without limits.
    fn default() -> Self {
        Self::new(&BandwidthConfig::default()).expect("what is the default makes sense")
    }
}

impl Bandwidth {
    /// Nothing used yet.
    pub fn new(config: &BandwidthConfig) -> Result<Self, BandwidthError> {
        config.validate()?;
        let limits = Limits::default();
        limits.set_up(config.up);
        limits.set_down(config.down);
        Ok(Self {
            limits,
            everybody: Meter::default(),
            classes: Default::default(),
            changes: AtomicU64::new(0),
            table: Mutex::new(Table {
                sharing: config.sharing,
                shares: Shares::default(),
                peers: BTreeMap::new(),
                default: config.default,
                max_own: config.max_own,
                own: 0,
                idle: VecDeque::new(),
            }),
        })
    }

    /// The bucket of everybody together.
    #[inline]
    pub fn budget(&self, way: Way) -> Budget<'_> {
        let (limit, direction) = match way {
            Way::Up => (&self.limits.up, &self.everybody.up),
            Way::Down => (&self.limits.down, &self.everybody.down),
        };
        Budget {
            limit: LimitWord::from_bits(limit.load(Ordering::Relaxed)),
            spent_until: &direction.spent_until,
        }
    }

    /// Sets what all peers together may. It holds for the next packet.
    pub fn set_global(&self, up: LimitWord, down: LimitWord) {
        let mut table = self.table();
        for way in [Way::Up, Way::Down] {
            table.lift(way);
        }
        self.limits.set_up(up);
        self.limits.set_down(down);
        self.changed();
    }

    /// Sets what a peer may, whether it is there or not. It holds for the next packet and stays until
    /// it is [unset](Self::unset).
    pub fn set(&self, peer: PeerId, allowance: Allowance) -> Result<(), BandwidthError> {
        allowance.validate()?;
        let mut table = self.table();
        let entry = table.own_entry(peer)?;
        entry.own = Some(allowance);
        entry.apply(&allowance);
        self.changed();
        Ok(())
    }

    /// Sets a peer's priority, whether it is there or not; it stays like limits do.
    pub fn set_priority(&self, peer: PeerId, priority: Priority) -> Result<(), BandwidthError> {
        let mut table = self.table();
        let entry = table.own_entry(peer)?;
        entry.own_priority = true;
        entry.account.set_priority(priority);
        self.changed();
        Ok(())
    }

    /// A peer has the limits and the priority of everybody else again.
    pub fn unset(&self, now: Timestamp, peer: PeerId) {
        let mut table = self.table();
        let default = table.default;
        let Some(entry) = table.peers.get_mut(&peer) else {
            return;
        };
        if !entry.is_own() {
            return;
        }
        entry.own = None;
        entry.own_priority = false;
        entry.apply(&default);
        entry.account.set_priority(Priority::default());
        let idle = entry.connections == 0;
        table.own -= 1;
        if idle {
            table.rest(now, peer);
        }
        self.changed();
    }

    /// Sets what peers may that nothing was set for. It holds for the next packet.
    pub fn set_default(&self, allowance: Allowance) -> Result<(), BandwidthError> {
        allowance.validate()?;
        let mut table = self.table();
        table.default = allowance;
        for entry in table.peers.values_mut() {
            if entry.own.is_none() {
                entry.apply(&allowance);
            }
        }
        self.changed();
        Ok(())
    }

    /// What was set for a peer, or what it may by default.
    pub fn allowance(&self, peer: PeerId) -> Allowance {
        let table = self.table();
        let own = table.peers.get(&peer).and_then(|entry| entry.own);
        own.unwrap_or(table.default)
    }

    /// What a peer used, where it is remembered: with a connection, for some minutes after its last one,
    /// or with limits of its own.
    pub fn usage(&self, peer: PeerId) -> Option<Usage> {
        Some(self.table().peers.get(&peer)?.account.usage())
    }

    /// What all peers of a priority used; what is sent before it is known who is at the other end
    /// counts as [`Priority::Control`].
    pub fn usage_of_class(&self, priority: Priority) -> Usage {
        let meter = self.class(priority);
        Usage {
            up: used(&meter.up),
            down: used(&meter.down),
        }
    }

    /// What everybody used together, with the global limits.
    pub fn usage_in_total(&self) -> Usage {
        let all = Priority::ALL.map(|priority| self.usage_of_class(priority));
        let mut total = Usage::default();
        for Usage { up, down } in all {
            total.up.add(&up);
            total.down.add(&down);
        }
        total.up.limit = self.budget(Way::Up).limit;
        total.down.limit = self.budget(Way::Down).limit;
        total
    }

    /// Peers that are remembered.
    pub fn len(&self) -> usize {
        self.table().peers.len()
    }

    /// Whether none are.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often limits, priorities or shares have changed: who waits for the old ones looks again.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Sending weights by priority.
    pub(crate) fn sharing(&self) -> Sharing {
        self.table().sharing
    }

    /// A connection to a peer begins: whose buckets it is charged to.
    pub fn enter(&self, now: Timestamp, peer: PeerId) -> Arc<Account> {
        let mut table = self.table();
        table.forget(now);
        let entry = table.entry(peer);
        entry.connections += 1;
        entry.idle_since = None;
        Arc::clone(&entry.account)
    }

    /// A connection to a peer is over.
    pub fn leave(&self, now: Timestamp, peer: PeerId) {
        let mut table = self.table();
        let Some(entry) = table.peers.get_mut(&peer) else {
            return;
        };
        entry.connections = entry.connections.saturating_sub(1);
        if entry.connections == 0 && !entry.is_own() {
            table.rest(now, peer);
        }
        table.forget(now);
    }

    /// Adds to what a peer and its class used.
    pub(crate) fn count(&self, account: Option<&Account>, way: Way, tally: &Tally) {
        let priority = account.map_or(Priority::Control, Account::priority);
        let class = self.class(priority);
        match way {
            Way::Up => tally.add_to(&class.up),
            Way::Down => tally.add_to(&class.down),
        }
        if let Some(account) = account {
            tally.add_to(account.direction(way));
        }
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn class(&self, priority: Priority) -> &Meter<AtomicU64> {
        match priority {
            Priority::Control => &self.classes[0],
            Priority::Interactive => &self.classes[1],
            Priority::Bulk => &self.classes[2],
        }
    }
}

impl Table {
    fn entry(&mut self, peer: PeerId) -> &mut Entry {
        let default = self.default;
        self.peers.entry(peer).or_insert_with(|| Entry {
            account: Arc::new(Account::new(&default, Priority::default())),
            demand: Default::default(),
            floor: default.floor,
            own: None,
            own_priority: false,
            connections: 0,
            idle_since: None,
        })
    }

    /// The entry of a peer that is to have something of its own.
    fn own_entry(&mut self, peer: PeerId) -> Result<&mut Entry, BandwidthError> {
        let is_own = self.peers.get(&peer).is_some_and(Entry::is_own);
        if !is_own {
            if self.own >= self.max_own {
                return Err(BandwidthError::TooManyPeers(self.own));
            }
            self.own += 1;
        }
        let entry = self.entry(peer);
        entry.idle_since = None;
        Ok(entry)
    }

    /// A peer has neither a connection nor anything of its own.
    fn rest(&mut self, now: Timestamp, peer: PeerId) {
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.idle_since = Some(now);
            self.idle.push_back((now, peer));
        }
    }

    /// Forgets who has been idle for long, or longest of too many.
    fn forget(&mut self, now: Timestamp) {
        while let Some((since, peer)) = self.idle.front().copied()
            && (now.saturating_since(since) >= RETENTION || self.idle.len() > MAX_IDLE)
        {
            self.idle.pop_front();
            let entry = self.peers.get(&peer);
            if entry.is_some_and(|entry| entry.idle_since == Some(since)) {
                self.peers.remove(&peer);
            }
        }
    }
}

impl Entry {
    fn is_own(&self) -> bool {
        self.own.is_some() || self.own_priority
    }

    fn apply(&mut self, allowance: &Allowance) {
        self.floor = allowance.floor;
        self.account.set(allowance);
    }

    pub(super) fn configured(&self, default: &Allowance, way: Way) -> LimitWord {
        let allowance = self.own.as_ref().unwrap_or(default);
        match way {
            Way::Up => allowance.up,
            Way::Down => allowance.down,
        }
    }
}

impl Table {
    pub(super) fn default_allowance(&self) -> Allowance {
        self.default
    }
}

#[cfg(test)]
mod tests;
