//! What may be read, and when.
//!
//! Streams of a connection that wait take turns: who was granted nothing stays first in line, who was
//! granted something goes to its end. Nothing here drops what belongs to a stream.

use std::time::Duration;

use bytes::Bytes;
use towpath_ebpf_common::meter::PacketSize;

use super::super::path::Hop;
use super::super::{ConnectionHandle, Notice, Peer};
use super::{Metering, charged};
use crate::Timestamp;
use crate::bandwidth::{Bound, Depth, MAX_GRANT_BYTES, Reservation, reserve};
use crate::quic::{Read, ReadError, StreamId};
use crate::slots::Way;

/// What a datagram carries that is not read: QUIC's header and tag, the header of a frame. Exact to
/// some bytes; IP and UDP come on top.
const QUIC_OVERHEAD_BYTES: u32 = 35;
/// A read that is granted anything is granted so much, if it asks for it.
const MIN_READ_BYTES: usize = 1024;
/// A read is granted so much at most.
const MAX_READ_BYTES: usize = MAX_GRANT_BYTES as usize;
/// Who waits to read gets its turn so long after the one before.
const READER_TURN: Duration = Duration::from_millis(1);

/// What may be read, and what was charged for it.
struct Grant {
    bytes: usize,
    charged: u32,
    owed: u32,
    reservation: Reservation,
}

impl Peer {
    /// A datagram came, of a connection or of nobody's.
    pub(in crate::peer) fn arrived(
        &mut self,
        now: Timestamp,
        index: Option<u32>,
        hop: Hop,
        payload: usize,
    ) {
        let Metering {
            bandwidth,
            strangers,
            nobody,
            ..
        } = &mut self.metering;
        let link = index.and_then(|index| self.links.get_mut(index as usize)?.link.as_mut());
        let meter = link.map_or(strangers, |link| &mut link.meter);
        let charged = charged(hop, payload);
        meter.down.count(now, charged, payload);
        let account = meter.account(nobody);
        let (own, all) = (account.budget(Way::Down), bandwidth.budget(Way::Down));
        if own.limit.is_unlimited() && all.limit.is_unlimited() {
            return;
        }
        let headers = charged - payload as u32 + QUIC_OVERHEAD_BYTES;
        let due = if meter.account.is_some() {
            charged.min(headers)
        } else {
            charged
        };
        // Many headers come at once where a window has opened: they leave room for unreliable datagrams.
        match reserve(now, &own, &all, due, Depth::Partial) {
            Ok(_) => account.take(due),
            Err(_) => account.owe(due),
        }
    }

    pub(in crate::peer) fn read_within_limits(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        stream: StreamId,
        max_bytes: usize,
    ) -> Result<Read, ReadError> {
        let index = self.opened(connection).ok_or(ReadError::NotConnected)?;
        let Some(grant) = self.grant(now, index, stream, max_bytes)? else {
            self.now = now;
            return Ok(Read::Blocked);
        };
        let read = self.on(now, connection, ReadError::NotConnected, |quic, index| {
            quic.read(index, stream, grant.bytes)
        })?;
        self.settle_read(now, index, stream, &grant, &read);
        read
    }

    /// What a stream may be read of now; `None` where it has to wait.
    fn grant(
        &mut self,
        now: Timestamp,
        index: u32,
        stream: StreamId,
        max_bytes: usize,
    ) -> Result<Option<Grant>, ReadError> {
        let meter = self.meter(index).ok_or(ReadError::NotConnected)?;
        let free = meter.readers.is_empty() && self.is_unlimited(index, Way::Down);
        if free {
            return Ok(Some(Grant {
                bytes: max_bytes,
                charged: 0,
                owed: 0,
                reservation: Reservation::FREE,
            }));
        }
        let turn = meter.turn.is_some_and(|(of, _)| of == stream);
        let others_first = !turn && !meter.readers.is_empty();
        if !self.endpoint.can_be_read(index, stream) {
            return Err(ReadError::NoStream);
        }
        if others_first {
            self.queue_reader(index, stream);
            return Ok(None);
        }
        let account = self.account(index);
        let owed = account.owed();
        let own = account.budget(Way::Down).left(now, Depth::Partial);
        let all = self.metering.bandwidth.budget(Way::Down);
        let left = own.min(all.left(now, Depth::Partial)).saturating_sub(owed);
        let most = max_bytes.min(MAX_READ_BYTES);
        let bytes = most.min((left as usize).max(MIN_READ_BYTES));
        let charged = u32::try_from(bytes).expect("at most 2^16") + owed;
        match self.reserve(now, index, Way::Down, charged, Depth::Partial) {
            Ok(reservation) => Ok(Some(Grant {
                bytes,
                charged,
                owed,
                reservation,
            })),
            Err(refused) => {
                self.account(index).set_waited(Way::Down);
                if refused.by == Bound::Everybody {
                    self.metering.saturated(now, Way::Down);
                }
                let served = self.queue_reader(index, stream);
                self.read_later(index, refused.until, served);
                Ok(None)
            }
        }
    }

    fn settle_read(
        &mut self,
        now: Timestamp,
        index: u32,
        stream: StreamId,
        grant: &Grant,
        read: &Result<Read, ReadError>,
    ) {
        let used = match read {
            Ok(Read::Data(bytes)) => bytes.len() as u32 + grant.owed,
            Ok(Read::Blocked | Read::Finished) | Err(_) => grant.owed,
        };
        let unused = grant.charged.saturating_sub(used);
        if grant.charged > 0 {
            let account = self.account(index);
            account.paid(grant.owed);
            account.take(used);
        }
        self.give_back(index, Way::Down, grant.reservation, unused);
        let Some(link) = self.link(index) else {
            return;
        };
        let meter = &mut link.meter;
        if meter.turn.is_some_and(|(of, _)| of == stream) {
            let more = matches!(read, Ok(Read::Data(_)));
            meter.turn = more.then_some((stream, true));
            if !more && !meter.readers.is_empty() {
                self.read_later(index, now, false);
            }
        }
    }

    /// A stream waits to be read; before all others where its turn gave it nothing. Gives whether it
    /// has got something.
    fn queue_reader(&mut self, index: u32, stream: StreamId) -> bool {
        let Some(link) = self.link(index) else {
            return false;
        };
        let meter = &mut link.meter;
        let turn = meter.turn.filter(|(of, _)| *of == stream);
        if turn.is_some() {
            meter.turn = None;
        }
        let served = turn.is_none_or(|(_, read)| read);
        if !meter.readers.contains(&stream) {
            match served {
                true => meter.readers.push_back(stream),
                false => meter.readers.push_front(stream),
            }
        }
        served
    }

    fn read_later(&mut self, index: u32, at: Timestamp, served: bool) {
        let Some(link) = self.link(index) else {
            return;
        };
        let before = link.meter.reads_at.replace((at, served));
        if let Some((at, served)) = before {
            self.metering.readers.remove(&(at, served, index));
        }
        self.metering.readers.insert((at, served, index));
    }

    /// The next of a connection's streams that wait is told to be readable.
    pub(super) fn give_turn(&mut self, now: Timestamp, index: u32) {
        let connection = self.handle_of(index);
        let stands = self.stands(index);
        let Some(link) = self.link(index) else {
            return;
        };
        let meter = &mut link.meter;
        meter.reads_at = None;
        let Some(stream) = meter.readers.pop_front() else {
            return;
        };
        meter.turn = Some((stream, false));
        let others = !meter.readers.is_empty();
        if stands {
            self.notices
                .push_back(Notice::Readable { connection, stream });
        }
        if others {
            self.read_later(index, now + READER_TURN, false);
        }
    }

    /// The next unreliable datagram within the limits; those over them are dropped.
    pub(in crate::peer) fn receive_within_limits(&mut self, index: u32) -> Option<Bytes> {
        loop {
            let bytes = self.endpoint.receive_datagram(index)?;
            let len = bytes.len() as u32;
            let Err(refused) = self.reserve(self.now, index, Way::Down, len, Depth::Whole) else {
                self.account(index).take(len);
                return Some(bytes);
            };
            let account = self.account(index);
            account.set_waited(Way::Down);
            account.direction(Way::Down).count_dropped(PacketSize {
                charged: len,
                payload: len,
            });
            match refused.by {
                Bound::Peer => self.counters.over_down.increment(),
                Bound::Everybody => {
                    self.counters.over_global.increment();
                    self.metering.saturated(self.now, Way::Down);
                }
            }
        }
    }
}
