//! Where packets to a destination go next: interface, hardware addresses, MTU, in the array that the
//! program reads.
//!
//! Each pair of destination and source has an entry of its own, so that a change of routes for some
//! destinations leaves the others alone. An entry is written when somebody asks for it, and a thread
//! follows the kernel's notices and writes it again whenever the stack would send elsewhere.
//!
//! ```text
//!            asked for             neighbour known, link up, route unicast
//!   (none) ───────────▶ INVALID ──────────────────────────────────────────▶ VALID
//!     ▲                  │   ▲     route or neighbour gone, link down,        │
//!     └──────────────────┘   └──────────── about to be another ───────────────┘
//!      nobody asked for IDLE
//! ```
//!
//! Packets to an invalid entry are passed to the stack. The stack alone sends ARP and neighbour
//! solicitations; here it is only told to, when somebody asks for a destination whose neighbour it
//! does not know, and when it has not heard of a neighbour in use for a while: the program's packets
//! do not tell it that the neighbour is in use.

mod follower;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::{MembarrierCommand, membarrier};
use towpath_ebpf_common::route::NextHop;

use crate::map::Table;
use crate::netlink::{Change, Link, Neighbour, Requests, RouteAnswer};
pub(crate) use follower::Follower;

/// How long an entry is kept that nobody asked for. Routes are asked for again whenever they are
/// refreshed and none lives longer than a channel's 600 seconds after that, so that no route that is
/// still in force names an entry that has become somebody else's.
const IDLE: Duration = Duration::from_secs(20 * 60);

/// How long an invalid entry is believed to be invalid before a question is asked again.
const RECHECK: Duration = Duration::from_secs(1);

/// How long to wait before the kernel is told again that a neighbour is in use.
const USE_AGAIN: Duration = Duration::from_secs(1);

/// Entries looked at before the lock is free for others.
const BATCH: usize = 64;

/// Resolves destinations into indices of the array of next hops. Clones share it.
#[derive(Clone, Debug)]
pub struct NextHops {
    state: Arc<Mutex<State>>,
}

/// Why packets to a destination are passed to the stack.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum Unusable {
    /// No route, or one that is not to another machine.
    #[error("no route to another machine")]
    NoRoute,
    /// The route leaves by an interface that packets cannot be handed to.
    #[error("it leaves by an interface the program is not on")]
    OtherInterface,
    /// The interface is down or has no carrier.
    #[error("the interface is down")]
    Down,
    /// The interface is not Ethernet, or puts tags of its own on frames.
    #[error("the interface is not plain Ethernet")]
    NotEthernet,
    /// The neighbour's hardware address is not known.
    #[error("the neighbour does not answer yet")]
    NoNeighbour,
    /// The kernel did not answer a question.
    #[error("the kernel's tables cannot be read")]
    Unreadable,
}

/// How many destinations are known, and why some of them are passed.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NextHopCounts {
    /// Destinations whose packets are relayed in the kernel.
    pub valid: usize,
    /// Destinations whose packets are passed, by reason.
    pub unusable: BTreeMap<Unusable, usize>,
    /// Questions refused because the array was full.
    pub refused: u64,
}

#[derive(Debug)]
struct State {
    requests: Requests,
    table: Table<u32, NextHop>,
    /// Interfaces the program can hand packets to.
    egress: HashSet<u32>,
    links: HashMap<u32, Option<Link>>,
    by_address: HashMap<(IpAddr, IpAddr), u32>,
    neighbours: HashMap<(u32, IpAddr), InUse>,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    capacity: usize,
    refused: u64,
    /// The entry that is looked at next though nothing was heard of it.
    cursor: usize,
}

/// A neighbour that entries lead to.
#[derive(Default, Debug)]
struct InUse {
    entries: HashSet<u32>,
    known: Option<Neighbour>,
    told: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    destination: IpAddr,
    source: IpAddr,
    /// The route to another machine, where there is one.
    route: Option<RouteAnswer>,
    written: NextHop,
    unusable: Option<Unusable>,
    asked: Instant,
    checked: Instant,
    /// It was made invalid and will be written again when no packet can still see the old one.
    settling: bool,
}

/// An entry that must be looked at, and whether its route may have changed too.
type Affected = (u32, bool);

impl NextHops {
    /// The array `table` of `capacity` entries, all of them made invalid. Packets may leave by the
    /// interfaces `egress`.
    pub(crate) fn new(
        table: Table<u32, NextHop>,
        capacity: u32,
        egress: HashSet<u32>,
    ) -> io::Result<Self> {
        for index in 0..capacity {
            let is_empty = |hop: NextHop| hop == NextHop::default();
            if !table.lookup(&index)?.is_some_and(is_empty) {
                table.insert(&index, &NextHop::default())?;
            }
        }
        Ok(Self {
            state: Arc::new(Mutex::new(State {
                requests: Requests::new()?,
                table,
                egress,
                links: HashMap::new(),
                by_address: HashMap::new(),
                neighbours: HashMap::new(),
                entries: Vec::new(),
                free: Vec::new(),
                capacity: capacity as usize,
                refused: 0,
                cursor: 0,
            })),
        })
    }

    /// The index of the entry for packets from `source`, an address of ours, to `destination`.
    /// `None` where the array is full. The entry may be invalid: packets are then passed until the
    /// kernel knows the way.
    ///
    /// Ask again whenever a route is written: an entry that nobody asked for in twenty minutes is
    /// given to another destination.
    pub fn resolve(&self, destination: IpAddr, source: IpAddr) -> Option<u32> {
        self.lock().resolve(destination, source, Instant::now())
    }

    /// The entry that the program reads at `index`.
    pub fn entry(&self, index: u32) -> Option<NextHop> {
        let state = self.lock();
        let entry = state.entries.get(index as usize)?.as_ref()?;
        Some(entry.written)
    }

    /// How many destinations are known, and why some of them are passed.
    pub fn counts(&self) -> NextHopCounts {
        let state = self.lock();
        let mut counts = NextHopCounts {
            refused: state.refused,
            ..NextHopCounts::default()
        };
        for entry in state.entries.iter().flatten() {
            match entry.unusable {
                None => counts.valid += 1,
                Some(why) => *counts.unusable.entry(why).or_default() += 1,
            }
        }
        counts
    }

    /// Writes again what `changes` may have changed.
    fn apply(&self, changes: &[Change]) {
        let mut affected = Vec::new();
        for change in changes {
            self.lock().affected(*change, &mut affected);
        }
        self.look_again(affected);
    }

    /// Looks at some of the entries though nothing was heard of them: the MTU that the stack learns
    /// from an ICMP error, for one, comes without notice.
    fn look_around(&self, count: usize) {
        let affected = self.lock().next_entries(count);
        self.look_again(affected);
    }

    fn look_again(&self, mut affected: Vec<Affected>) {
        // Of two that name the same entry, the one that asks for more stays.
        affected.sort_unstable_by_key(|(index, route)| (*index, !route));
        affected.dedup_by_key(|(index, _)| *index);
        // An element of the array is not written at once: a packet could see one address of the old
        // hop and another of the new one. So it is invalid until no packet sees the old one.
        let mut settling = Vec::new();
        for batch in affected.chunks(BATCH) {
            let mut state = self.lock();
            let moved = batch
                .iter()
                .filter(|(index, route)| state.recheck(*index, *route));
            settling.extend(moved.map(|(index, _)| *index));
        }
        if settling.is_empty() {
            return;
        }
        // It waits until every CPU has left the programs it was running.
        if membarrier(MembarrierCommand::Global).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        for batch in settling.chunks(BATCH) {
            let mut state = self.lock();
            for index in batch {
                state.settle(*index);
            }
        }
    }

    /// Gives up entries nobody asked for in a long time.
    fn sweep(&self, now: Instant) {
        self.lock().sweep(now);
    }

    /// Makes every entry invalid, and answers no question any more.
    fn disable(&self) {
        let mut state = self.lock();
        state.egress.clear();
        for index in 0..state.entries.len() {
            let index = u32::try_from(index).expect("there are at most u32::MAX entries");
            state.write(index, Err(Unusable::Unreadable), Instant::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change to the state leaves it usable, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn resolve(&mut self, destination: IpAddr, source: IpAddr, now: Instant) -> Option<u32> {
        if let Some(index) = self.by_address.get(&(destination, source)).copied() {
            let entry = self.entries[index as usize]
                .as_mut()
                .expect("an address leads to an entry that is taken");
            entry.asked = now;
            let recheck = entry.unusable.is_some()
                && !entry.settling
                && now.saturating_duration_since(entry.checked) >= RECHECK;
            if recheck {
                self.fill(index, now);
            }
            return Some(index);
        }
        let Some(index) = self.take_index() else {
            self.refused += 1;
            return None;
        };
        self.entries[index as usize] = Some(Entry {
            destination,
            source,
            route: None,
            written: NextHop::default(),
            unusable: Some(Unusable::NoRoute),
            asked: now,
            checked: now,
            settling: false,
        });
        self.by_address.insert((destination, source), index);
        self.fill(index, now);
        Some(index)
    }

    fn take_index(&mut self) -> Option<u32> {
        if let Some(index) = self.free.pop() {
            return Some(index);
        }
        if self.entries.len() >= self.capacity {
            return None;
        }
        self.entries.push(None);
        u32::try_from(self.entries.len() - 1).ok()
    }

    /// Looks the way up and writes it over an invalid entry.
    fn fill(&mut self, index: u32, now: Instant) {
        let hop = self
            .look_up_route(index)
            .and_then(|route| self.look_up_hop(route, now, true));
        self.write(index, hop, now);
    }

    fn look_up_route(&mut self, index: u32) -> Result<RouteAnswer, Unusable> {
        let Some(entry) = self.entries[index as usize] else {
            return Err(Unusable::NoRoute);
        };
        let answer = self.requests.route(entry.destination, entry.source);
        if let Err(error) = &answer {
            tracing::warn!(destination = %entry.destination, %error, "the route cannot be looked up");
        }
        let is_usable = |route: &RouteAnswer| route.unicast && route.interface != 0;
        let route = answer.as_ref().ok().copied().flatten().filter(is_usable);
        self.set_route(index, entry.route, route);
        match (answer, route) {
            (Err(_), _) => Err(Unusable::Unreadable),
            (Ok(_), route) => route.ok_or(Unusable::NoRoute),
        }
    }

    fn look_up_hop(
        &mut self,
        route: RouteAnswer,
        now: Instant,
        ask_neighbour: bool,
    ) -> Result<NextHop, Unusable> {
        if !self.egress.contains(&route.interface) {
            return Err(Unusable::OtherInterface);
        }
        let link = self.link(route.interface)?;
        let mac = self.neighbour(route, now, ask_neighbour)?;
        Ok(NextHop {
            interface: route.interface,
            mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
            destination_mac: mac,
            source_mac: link.mac,
            vlan: 0,
            state: if link.is_cable {
                NextHop::REDIRECT
            } else {
                NextHop::VALID
            },
        })
    }

    fn link(&mut self, index: u32) -> Result<Link, Unusable> {
        if !self.links.contains_key(&index) {
            let link = self.requests.link(index).map_err(|error| {
                tracing::warn!(index, %error, "the link cannot be looked up");
                Unusable::Unreadable
            })?;
            self.links.insert(index, link);
        }
        match self.links.get(&index).and_then(Option::as_ref) {
            None => Err(Unusable::Down),
            Some(link) if !link.running => Err(Unusable::Down),
            Some(link) if !link.plain_ethernet => Err(Unusable::NotEthernet),
            Some(link) => Ok(link.clone()),
        }
    }

    /// The hardware address of a route's neighbour. The kernel is told to ask for it where it is old,
    /// and where it is missing if `ask` says so.
    fn neighbour(
        &mut self,
        route: RouteAnswer,
        now: Instant,
        ask: bool,
    ) -> Result<[u8; 6], Unusable> {
        let key = (route.interface, route.neighbour);
        let in_use = self.neighbours.entry(key).or_default();
        if in_use.known.is_none_or(|known| known.mac.is_none()) {
            in_use.known = self.requests.neighbour(key.0, key.1).map_err(|error| {
                tracing::warn!(neighbour = %key.1, %error, "the neighbour cannot be looked up");
                Unusable::Unreadable
            })?;
        }
        let mac = in_use.known.and_then(|known| known.mac);
        let is_old = in_use.known.is_some_and(|known| known.stale);
        let told = in_use
            .told
            .is_some_and(|told| now.saturating_duration_since(told) < USE_AGAIN);
        if (is_old || (ask && mac.is_none())) && !told {
            in_use.told = Some(now);
            if let Err(error) = self.requests.use_neighbour(key.0, key.1) {
                tracing::debug!(neighbour = %key.1, %error, "the neighbour cannot be asked for");
            }
        }
        mac.ok_or(Unusable::NoNeighbour)
    }

    fn set_route(&mut self, index: u32, old: Option<RouteAnswer>, new: Option<RouteAnswer>) {
        let neighbour = |route: RouteAnswer| (route.interface, route.neighbour);
        let (before, after) = (old.map(neighbour), new.map(neighbour));
        if let Some(before) = before.filter(|before| Some(*before) != after)
            && let Some(in_use) = self.neighbours.get_mut(&before)
        {
            in_use.entries.remove(&index);
            if in_use.entries.is_empty() {
                self.neighbours.remove(&before);
            }
        }
        if let Some(after) = after {
            self.neighbours
                .entry(after)
                .or_default()
                .entries
                .insert(index);
        }
        if let Some(entry) = &mut self.entries[index as usize] {
            entry.route = new;
        }
    }

    fn write(&mut self, index: u32, hop: Result<NextHop, Unusable>, now: Instant) {
        let Some(entry) = &mut self.entries[index as usize] else {
            return;
        };
        entry.checked = now;
        entry.unusable = hop.err();
        let hop = hop.unwrap_or_default();
        if hop == entry.written {
            return;
        }
        match self.table.insert(&index, &hop) {
            Ok(()) => entry.written = hop,
            Err(error) => {
                tracing::error!(index, %error, "a next hop cannot be written");
                entry.unusable = Some(Unusable::Unreadable);
            }
        }
    }

    /// Appends the entries that `change` concerns, and forgets what it makes wrong.
    fn affected(&mut self, change: Change, affected: &mut Vec<Affected>) {
        match change {
            Change::Neighbour(interface, address) => {
                let Some(in_use) = self.neighbours.get_mut(&(interface, address)) else {
                    return;
                };
                let before = in_use.known.and_then(|known| known.mac);
                // Notices may be older than what is known already: the kernel is asked what holds.
                in_use.known = self.requests.neighbour(interface, address).ok().flatten();
                let is_old = in_use.known.is_some_and(|known| known.stale);
                if before != in_use.known.and_then(|known| known.mac) || is_old {
                    affected.extend(in_use.entries.iter().map(|index| (*index, false)));
                }
            }
            Change::Link(index) => {
                let before = self.links.remove(&index);
                // Wireless links and counters of carriers send notices that change nothing here.
                let _ = self.link(index);
                if before.is_none() || before.as_ref() != self.links.get(&index) {
                    self.add_entries(affected, |entry| {
                        entry.route.is_none_or(|route| route.interface == index)
                    });
                }
            }
            Change::Routes(prefix, length) => {
                self.add_entries(affected, |entry| {
                    is_within(entry.destination, prefix, length)
                });
            }
            Change::Anything => {
                self.links.clear();
                for in_use in self.neighbours.values_mut() {
                    in_use.known = None;
                }
                self.add_entries(affected, |_| true);
            }
        }
    }

    fn add_entries(&self, affected: &mut Vec<Affected>, matches: impl Fn(&Entry) -> bool) {
        let entries = (0u32..).zip(&self.entries);
        let matching = entries.filter(|(_, entry)| entry.as_ref().is_some_and(&matches));
        affected.extend(matching.map(|(index, _)| (index, true)));
    }

    /// The next `count` entries in turn.
    fn next_entries(&mut self, count: usize) -> Vec<Affected> {
        let length = self.entries.len();
        let from = if self.cursor < length { self.cursor } else { 0 };
        let until = length.min(from.saturating_add(count));
        self.cursor = until;
        let indices = from..until;
        indices
            .filter_map(|index| u32::try_from(index).ok())
            .map(|index| (index, true))
            .collect()
    }

    /// Looks an entry's way up again. Returns whether it was valid and leads elsewhere now: it is
    /// invalid then, until [`settle`](Self::settle).
    fn recheck(&mut self, index: u32, route_too: bool) -> bool {
        let Some(entry) = self.entries[index as usize] else {
            return false;
        };
        let now = Instant::now();
        let route = if route_too {
            self.look_up_route(index)
        } else {
            entry.route.ok_or(Unusable::NoRoute)
        };
        let hop = route.and_then(|route| self.look_up_hop(route, now, false));
        let moves = |hop: NextHop| entry.written.state != NextHop::INVALID && hop != entry.written;
        if !hop.is_ok_and(moves) {
            self.write(index, hop, now);
            return false;
        }
        self.write(index, Err(Unusable::NoNeighbour), now);
        if let Some(entry) = &mut self.entries[index as usize] {
            entry.settling = true;
        }
        true
    }

    fn settle(&mut self, index: u32) {
        if let Some(entry) = &mut self.entries[index as usize] {
            entry.settling = false;
            self.fill(index, Instant::now());
        }
    }

    fn sweep(&mut self, now: Instant) {
        for index in 0..self.entries.len() {
            let Some(entry) = self.entries[index] else {
                continue;
            };
            if now.saturating_duration_since(entry.asked) < IDLE || entry.settling {
                continue;
            }
            let index = u32::try_from(index).expect("there are at most u32::MAX entries");
            self.write(index, Err(Unusable::NoRoute), now);
            self.set_route(index, entry.route, None);
            self.by_address.remove(&(entry.destination, entry.source));
            self.entries[index as usize] = None;
            self.free.push(index);
        }
    }
}

/// Whether `address` lies within the prefix.
fn is_within(address: IpAddr, prefix: IpAddr, length: u8) -> bool {
    match (address, prefix) {
        (IpAddr::V4(address), IpAddr::V4(prefix)) => {
            let different = address.to_bits() ^ prefix.to_bits();
            different.leading_zeros() >= u32::from(length)
        }
        (IpAddr::V6(address), IpAddr::V6(prefix)) => {
            let different = address.to_bits() ^ prefix.to_bits();
            different.leading_zeros() >= u32::from(length)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::{Duration, Instant};

    use towpath_ebpf_common::route::NextHop;

    use super::{IDLE, is_within};
    use crate::lab::on_a_host;
    use crate::{Kernel, Mode};

    #[test]
    fn an_entry_that_nobody_asks_for_any_more_becomes_invalid_and_then_anothers() {
        on_a_host("an_entry_that_nobody_asks_for", |lab| {
            let kernel = Kernel::start(&lab.config(Mode::Native, &["near"])).expect("native works");
            let next_hops = kernel.next_hops().expect("the program is attached");
            let near: IpAddr = "10.77.9.1".parse().expect("an address");
            let resolve = |far: &str| {
                let far = far.parse().expect("an address");
                next_hops.resolve(far, near).expect("there is room")
            };
            let idle = resolve("10.77.9.2");
            next_hops.sweep(Instant::now() + IDLE - Duration::from_secs(600));
            assert!(next_hops.entry(idle).is_some(), "it is kept until then");
            next_hops.sweep(Instant::now() + IDLE);
            assert_eq!(next_hops.entry(idle), None);
            let written = next_hops.lock().table.lookup(&idle);
            assert_eq!(written.expect("the map is there"), Some(NextHop::default()));
            assert_eq!(resolve("10.77.9.77"), idle, "the index is free again");
            assert_ne!(resolve("10.77.9.2"), idle);
        });
    }

    fn within(address: &str, prefix: &str, length: u8) -> bool {
        is_within(
            address.parse().expect("an address"),
            prefix.parse().expect("an address"),
            length,
        )
    }

    #[test]
    fn a_prefix_holds_the_addresses_that_begin_with_it() {
        assert!(within("192.0.2.7", "192.0.2.0", 24));
        assert!(!within("192.0.3.7", "192.0.2.0", 24));
        assert!(within("192.0.2.7", "192.0.2.7", 32));
        assert!(!within("192.0.2.6", "192.0.2.7", 32));
        assert!(within("192.0.2.7", "0.0.0.0", 0));
        assert!(within("2001:db8::1", "2001:db8::", 32));
        assert!(!within("2001:db9::1", "2001:db8::", 32));
        assert!(within("2001:db8::1", "::", 0));
    }

    #[test]
    fn a_prefix_of_the_other_family_holds_nothing() {
        assert!(!within("192.0.2.7", "::", 0));
        assert!(!within("2001:db8::1", "0.0.0.0", 0));
    }
}
