//! What a shard sends and reads, within the limits of its [`Bandwidth`].
//!
//! ```text
//!   connections that may send ──▶ Scheduler ──▶ whose turn? ──▶ reserve(own, all) ──▶ QUIC ──▶ socket
//!                                     ▲                          │ own is empty: parked until …
//!                                     └──────────────────────────┘ all is empty: nobody sends until …
//!
//!   socket ──▶ QUIC ──▶ stream buffers ──▶ read: reserve(own, all) ──▶ application
//!                             │                    │ empty: Blocked, and Readable when it allows
//!                             └ full: the peer's window stays closed
//! ```
//!
//! **Sending.** Nothing is dropped: a connection over its limit is not asked for datagrams, so that its
//! buffers fill and [`Peer::write`] takes nothing more. All datagrams are charged their IP length and all
//! of them wait, acknowledgements and handshakes too: QUIC puts acknowledgements in front of whatever it
//! sends next, and the next datagram is never further away than one datagram's time. Letting them pass
//! would let a peer that sends a lot decide about what is sent to it.
//!
//! **Receiving.** What came cannot be undone, so bytes of streams are charged when they are read, and what
//! is not read keeps the window closed. Headers, and datagrams that carry nothing to be read, are charged
//! when they come; what the bucket does not hold then is owed, and paid with the next read. Unreliable
//! datagrams cannot wait: streams leave a quarter of the burst to them, and what is still over the limit
//! is dropped and counted.
//!
//! Without limits none of this costs more than a look at two words. It knows no clock.

mod reading;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use towpath_ebpf_common::meter::charged_bytes;

use super::path::Hop;
use super::{ConnectionHandle, Peer, transmit};
use crate::Timestamp;
use crate::bandwidth::{
    Account, Allowance, Bandwidth, BandwidthError, Bound, Depth, Priority, Refused, Reservation,
    Scheduler, Sharing, Tally, Usage, reserve,
};
use crate::common::rate::LimitWord;
use crate::identity::PeerId;
use crate::machine::Transmit;
use crate::quic::{MAX_DATAGRAMS, StreamError, StreamId};
use crate::slots::Way;

/// The place of answers without a connection in the order of sending; connections follow.
const ANSWERS: u32 = 0;
/// What a turn is worth for each unit of weight while there is a limit for all: one datagram, so that
/// somebody with little to say waits for few of the others.
const LIMITED_QUANTUM_BYTES: u32 = 1500;
/// The same without a limit, where turns are over at once and long ones make long batches.
const QUANTUM_BYTES: u32 = 8 * LIMITED_QUANTUM_BYTES;

/// A shard's part of it.
#[derive(Debug)]
pub(super) struct Metering {
    bandwidth: Arc<Bandwidth>,
    sharing: Sharing,
    schedule: Scheduler,
    /// Until when nobody sends, because of the limit for all.
    blocked: Option<Timestamp>,
    /// By [`Way`]: when shares are made anew; only while somebody waits for the limit for all.
    adapt_at: [Option<Timestamp>; 2],
    /// Connections whose streams wait to be read, by when; at the same time, who got nothing comes first.
    readers: BTreeSet<(Timestamp, bool, u32)>,
    /// Whether all of them may try at once, because limits have changed.
    readers_try: bool,
    /// What [`Bandwidth::changes`] was when it was looked at.
    changes: u64,
    /// Answers without a connection and handshakes: limited together with everybody alone.
    strangers: Metered,
    nobody: Arc<Account>,
}

/// A connection's part of it.
#[derive(Debug, Default)]
pub(super) struct Metered {
    /// Whose limits; nobody's until it is known who is at the other end.
    account: Option<(PeerId, Arc<Account>)>,
    up: Tally,
    down: Tally,
    /// Streams that were asked for more than may be read now.
    readers: VecDeque<StreamId>,
    /// Whose turn it is of those, and whether it has read something.
    turn: Option<(StreamId, bool)>,
    /// Its place in [`Metering::readers`].
    reads_at: Option<(Timestamp, bool)>,
}

impl Metering {
    pub(super) fn new(bandwidth: Arc<Bandwidth>) -> Self {
        Self {
            sharing: bandwidth.sharing(),
            changes: bandwidth.changes(),
            bandwidth,
            schedule: Scheduler::default(),
            blocked: None,
            adapt_at: [None; 2],
            readers: BTreeSet::new(),
            readers_try: false,
            strangers: Metered::default(),
            nobody: Arc::default(),
        }
    }

    /// A connection may have something to send.
    pub(super) fn ready(&mut self, index: u32) {
        self.schedule.add(key_of(index));
    }

    /// An answer waits to be sent.
    pub(super) fn answer_ready(&mut self) {
        self.schedule.add(ANSWERS);
    }

    /// When something of this is due; `now` where something may be sent.
    pub(super) fn deadline(&self, now: Timestamp) -> Option<Timestamp> {
        let sends = (!self.schedule.is_empty()).then(|| self.blocked.unwrap_or(now));
        let reads = self.readers.first().map(|(at, _, _)| *at);
        let reads = reads.map(|at| if self.readers_try { now } else { at });
        let [up, down] = self.adapt_at;
        [sends, self.schedule.next_wake(), reads, up, down]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether nobody waits for anything.
    pub(super) fn is_empty(&self) -> bool {
        self.schedule.is_empty() && self.schedule.next_wake().is_none() && self.readers.is_empty()
    }

    /// Whether something may be sent, after those were woken whose time has come.
    fn may_send(&mut self, now: Timestamp) -> bool {
        self.refresh();
        self.schedule.wake(now);
        if self.blocked.is_some_and(|until| until > now) {
            return false;
        }
        self.blocked = None;
        true
    }

    /// Where limits have changed, all who wait for them look again.
    fn refresh(&mut self) {
        let changes = self.bandwidth.changes();
        if changes != self.changes {
            self.changes = changes;
            self.blocked = None;
            self.schedule.wake_all();
            self.readers_try = true;
        }
    }

    /// The connections whose time to read has come.
    fn due_readers(&mut self, now: Timestamp) -> BTreeSet<(Timestamp, bool, u32)> {
        if std::mem::take(&mut self.readers_try) {
            return std::mem::take(&mut self.readers);
        }
        if self.readers.first().is_none_or(|(at, _, _)| *at > now) {
            return BTreeSet::new();
        }
        let later = self.readers.split_off(&(now, true, u32::MAX));
        std::mem::replace(&mut self.readers, later)
    }

    /// Somebody waits for the limit for all.
    fn saturated(&mut self, now: Timestamp, way: Way) {
        let at = match way {
            Way::Up => &mut self.adapt_at[0],
            Way::Down => &mut self.adapt_at[1],
        };
        if at.is_none() {
            *at = Some(self.bandwidth.saturated(now, way));
        }
    }
}

impl Metered {
    fn account<'a>(&'a self, nobody: &'a Arc<Account>) -> &'a Arc<Account> {
        self.account.as_ref().map_or(nobody, |(_, account)| account)
    }

    /// Counts what was tallied into the words of all shards.
    fn flush(&mut self, bandwidth: &Bandwidth) {
        let account = self.account.as_ref().map(|(_, account)| &**account);
        for (way, tally) in [(Way::Up, &mut self.up), (Way::Down, &mut self.down)] {
            if !tally.is_empty() {
                bandwidth.count(account, way, tally);
                *tally = Tally::default();
            }
        }
    }
}

/// Limits, and what was used of them.
impl Peer {
    /// The limits of the node, which all of its shards share.
    pub fn bandwidth(&self) -> &Arc<Bandwidth> {
        &self.metering.bandwidth
    }

    /// Sets what a peer may, from the next datagram and read on. It stays for later connections.
    pub fn set_limit(
        &mut self,
        now: Timestamp,
        peer: PeerId,
        allowance: Allowance,
    ) -> Result<(), BandwidthError> {
        self.metering.bandwidth.set(peer, allowance)?;
        self.limits_changed(now);
        Ok(())
    }

    /// Sets what all peers together may, from the next datagram and read on.
    pub fn set_global_limit(&mut self, now: Timestamp, up: LimitWord, down: LimitWord) {
        self.metering.bandwidth.set_global(up, down);
        self.limits_changed(now);
    }

    /// Sets what a peer counts for when there is not enough for all.
    pub fn set_priority(
        &mut self,
        now: Timestamp,
        peer: PeerId,
        priority: Priority,
    ) -> Result<(), BandwidthError> {
        self.metering.bandwidth.set_priority(peer, priority)?;
        self.limits_changed(now);
        Ok(())
    }

    /// Sets which streams of a connection go first. Unreliable datagrams go before all of them.
    pub fn set_stream_priority(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        stream: StreamId,
        priority: Priority,
    ) -> Result<(), StreamError> {
        let rank = match priority {
            Priority::Control => 1,
            Priority::Interactive => 0,
            Priority::Bulk => -1,
        };
        self.on(now, connection, StreamError::NotConnected, |quic, index| {
            quic.set_priority(index, stream, rank)
        })?
    }

    /// What a peer used, where it is remembered: all that this shard knows, and what others have counted
    /// into it.
    pub fn usage(&mut self, peer: PeerId) -> Option<Usage> {
        self.flush_all();
        self.metering.bandwidth.usage(peer)
    }

    fn meter(&self, index: u32) -> Option<&Metered> {
        let slot = self.links.get(index as usize)?;
        Some(&slot.link.as_ref()?.meter)
    }

    /// Whose limits a connection has.
    fn account(&self, index: u32) -> &Account {
        let nobody = &self.metering.nobody;
        self.meter(index)
            .map_or(nobody, |meter| meter.account(nobody))
    }

    fn is_unlimited(&self, index: u32, way: Way) -> bool {
        self.account(index).limit(way).is_unlimited()
            && self.metering.bandwidth.budget(way).limit.is_unlimited()
    }

    fn reserve(
        &self,
        now: Timestamp,
        index: u32,
        way: Way,
        bytes: u32,
        depth: Depth,
    ) -> Result<Reservation, Refused> {
        let own = self.account(index).budget(way);
        let all = self.metering.bandwidth.budget(way);
        reserve(now, &own, &all, bytes, depth)
    }

    fn give_back(&self, index: u32, way: Way, reservation: Reservation, unused: u32) {
        if reservation != Reservation::FREE {
            let own = self.account(index).budget(way).spent_until;
            let all = self.metering.bandwidth.budget(way).spent_until;
            reservation.give_back(own, all, unused);
        }
    }

    fn limits_changed(&mut self, now: Timestamp) {
        self.now = now;
        self.metering.refresh();
    }

    fn flush_all(&mut self) {
        let bandwidth = &self.metering.bandwidth;
        self.metering.strangers.flush(bandwidth);
        for link in self.links.iter_mut().filter_map(|slot| slot.link.as_mut()) {
            link.meter.flush(bandwidth);
        }
    }
}

/// The connections of the machine.
impl Peer {
    /// Who is at the other end is known.
    pub(super) fn begin_metering(&mut self, now: Timestamp, index: u32, peer: PeerId) {
        let Some(link) = self
            .links
            .get_mut(index as usize)
            .and_then(|slot| slot.link.as_mut())
        else {
            return;
        };
        if link.meter.account.is_none() {
            let account = self.metering.bandwidth.enter(now, peer);
            link.meter.account = Some((peer, account));
        }
    }

    /// Nothing is left of a connection.
    pub(super) fn end_metering(&mut self, index: u32, mut meter: Metered) {
        meter.flush(&self.metering.bandwidth);
        self.metering.schedule.remove(key_of(index));
        if let Some((at, served)) = meter.reads_at {
            self.metering.readers.remove(&(at, served, index));
        }
        if let Some((peer, _)) = meter.account {
            self.metering.bandwidth.leave(self.now, peer);
        }
    }

    /// Does what is due.
    pub(super) fn meter_timeout(&mut self, now: Timestamp) {
        self.metering.refresh();
        for (_, _, index) in self.metering.due_readers(now) {
            self.give_turn(now, index);
        }
        let due = |at: &Option<Timestamp>| at.is_some_and(|at| at <= now);
        if self.metering.adapt_at.iter().any(due) {
            self.flush_all();
            self.note_who_waits();
            self.metering.adapt_at = self.metering.bandwidth.adapt(now);
            self.metering.refresh();
        }
    }

    fn note_who_waits(&mut self) {
        let links = self.links.iter().zip(0..);
        for (link, index) in links.filter_map(|(slot, index)| Some((slot.link.as_ref()?, index))) {
            let Some((_, account)) = &link.meter.account else {
                continue;
            };
            if self.metering.schedule.wants(key_of(index)) {
                account.set_waited(Way::Up);
            }
            if !link.meter.readers.is_empty() {
                account.set_waited(Way::Down);
            }
        }
    }
}

/// Sending.
impl Peer {
    pub(super) fn next_transmit(&mut self, now: Timestamp, buffer: &mut [u8]) -> Option<Transmit> {
        if !self.metering.may_send(now) {
            return None;
        }
        loop {
            let next = match self.whose_turn()? {
                ANSWERS => self.transmit_answer(now, buffer),
                key => self.transmit_of(now, key - 1, buffer),
            };
            if next.is_some() {
                return next;
            }
            if self.metering.blocked.is_some() {
                return None;
            }
        }
    }

    fn whose_turn(&mut self) -> Option<u32> {
        let Metering {
            bandwidth,
            sharing,
            schedule,
            nobody,
            ..
        } = &mut self.metering;
        let unit = if bandwidth.budget(Way::Up).limit.is_unlimited() {
            QUANTUM_BYTES
        } else {
            LIMITED_QUANTUM_BYTES
        };
        let priority = |key: u32| {
            let at = key.checked_sub(1)? as usize;
            let link = self.links.get(at)?.link.as_ref()?;
            Some(link.meter.account(nobody).priority())
        };
        let weight = |key| sharing.weight(priority(key).unwrap_or_default());
        schedule.front(|key| weight(key).saturating_mul(unit))
    }

    fn transmit_answer(&mut self, now: Timestamp, buffer: &mut [u8]) -> Option<Transmit> {
        let Some((hop, ecn, bytes)) = self.waiting.front() else {
            self.metering.schedule.drained();
            self.metering.strangers.flush(&self.metering.bandwidth);
            return None;
        };
        let Some(room) = buffer.get_mut(..bytes.len()) else {
            self.counters.dropped_answers.increment();
            self.waiting.pop_front();
            return None;
        };
        let charged = charged(*hop, bytes.len());
        let own = self.metering.nobody.budget(Way::Up);
        let all = self.metering.bandwidth.budget(Way::Up);
        match reserve(now, &own, &all, charged, Depth::Whole) {
            // All of it is used.
            Ok(_) => {}
            Err(refused) => {
                self.metering.blocked = Some(refused.until);
                self.metering.saturated(now, Way::Up);
                return None;
            }
        }
        room.copy_from_slice(bytes);
        let sent = transmit(*hop, bytes.len(), *ecn);
        self.metering.strangers.up.count(now, charged, bytes.len());
        self.waiting.pop_front();
        self.metering.schedule.sent(charged);
        Some(sent)
    }

    fn transmit_of(&mut self, now: Timestamp, index: u32, buffer: &mut [u8]) -> Option<Transmit> {
        let Some((first, further)) = self.link(index).map(|link| link.path.hops()) else {
            self.metering.schedule.remove(key_of(index));
            return None;
        };
        let most = charged(first, self.endpoint.max_transmit());
        let reservation = match self.reserve(now, index, Way::Up, most, Depth::Whole) {
            Ok(reservation) => reservation,
            Err(refused) => {
                self.hold_back(now, index, refused);
                return None;
            }
        };
        // What is built at once leaves at once, or QUIC would take the wait for the network's.
        let batch = if reservation == Reservation::FREE {
            MAX_DATAGRAMS
        } else {
            1
        };
        let sent = self.endpoint.transmit(now, index, batch, buffer);
        let used = sent.map_or(0, |(len, _)| charged(first, len));
        self.give_back(index, Way::Up, reservation, most.saturating_sub(used));
        let Some((len, ecn)) = sent else {
            self.metering.schedule.drained();
            self.turn_over(index);
            return None;
        };
        if let Some(link) = self.link(index) {
            link.meter.up.count(now, used, len);
        }
        for hop in further {
            self.wait(hop, ecn, buffer[..len].to_vec());
        }
        if self.metering.schedule.sent(used) {
            self.turn_over(index);
        }
        Some(transmit(first, len, ecn))
    }

    fn hold_back(&mut self, now: Timestamp, index: u32, refused: Refused) {
        self.account(index).set_waited(Way::Up);
        match refused.by {
            Bound::Peer => self.metering.schedule.park(refused.until),
            Bound::Everybody => {
                self.metering.blocked = Some(refused.until);
                self.metering.saturated(now, Way::Up);
            }
        }
        self.turn_over(index);
    }

    /// A connection sends nothing for a while: what it counted is counted for all, and its timers run.
    fn turn_over(&mut self, index: u32) {
        if let Some(slot) = self.links.get_mut(index as usize)
            && let Some(link) = &mut slot.link
        {
            link.meter.flush(&self.metering.bandwidth);
        }
        self.follow(index, None);
    }
}

fn key_of(index: u32) -> u32 {
    index + 1
}

/// What a datagram is charged.
fn charged(hop: Hop, payload: usize) -> u32 {
    charged_bytes(hop.destination.is_ipv6(), payload as u32)
}
