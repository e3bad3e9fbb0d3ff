//! Follows a peer whose address changes: a NAT forgot it, or it is in another network now.
//!
//! ```text
//!   datagram that only the peer can have made,        ┌───────────┐  right answer from there
//!   from where it was not before ────────────────────▶│ one check │────────────────────────▶ the path
//!                                                     └───────────┘
//!                                                           └─▶ none comes: all stays as it is
//! ```
//!
//! A source proves nothing: whoever sees a datagram can send it from a victim's address. So the peer is
//! asked there, with less than three times the bytes that came from there (RFC 9000 §8.1).

use std::net::SocketAddr;
use std::time::Duration;

use super::path::{Hop, Path};
use super::path_check::{self, REQUEST_BYTES, Said};
use super::{Notice, Peer, State};
use crate::Timestamp;
use crate::stun::{Due, Retransmission, Schedule};
use crate::wire::{IntegrityKey, Message, TransactionId};

/// Checks of a shard under way at a time.
const MAX_CHECKS: usize = 64;
/// Checks that a shard begins within a second.
const MAX_CHECKS_PER_SECOND: u32 = 64;
/// RFC 9000 §8.1: three times what was received is what an address may get that is not proved.
const AMPLIFICATION: u64 = 3;
/// A request is sent so often, the time between two doubling, and then so many of the first are waited.
const TRANSMISSIONS: u8 = 5;
const LAST_RTOS: u32 = 4;
/// The first time that is waited, at least and at most; between them it is twice the round trip.
const MIN_RTO: Duration = Duration::from_millis(100);
const MAX_RTO: Duration = Duration::from_secs(1);
/// What still comes from where the peer was says nothing for so long after it was found elsewhere.
const HOLD_DOWN: Duration = Duration::from_secs(3);
/// After a check that failed none is begun for the connection for so long, and twice as long after every
/// further one, up to 64 times.
const PAUSE: Duration = Duration::from_secs(1);
const MAX_DOUBLINGS: u32 = 6;

/// What a connection keeps once a datagram of it has come from elsewhere, or a question about it.
#[derive(Debug)]
pub(super) struct Following {
    /// Of requests that we make, and of answers to them.
    own: IntegrityKey,
    /// Of those that the peer makes.
    peers: IntegrityKey,
    check: Option<Check>,
    /// Where the peer was until not long ago, and when that is long ago.
    left: Option<(SocketAddr, Timestamp)>,
    failures: u32,
    not_before: Timestamp,
}

#[derive(Debug)]
struct Check {
    hop: Hop,
    request: Vec<u8>,
    id: TransactionId,
    retransmission: Retransmission,
    /// Bytes that only the peer can have made, from there.
    received: u64,
    sent: u64,
}

/// A shard's checks.
#[derive(Debug, Default)]
pub(super) struct Checks {
    under_way: Vec<(TransactionId, u32)>,
    second: u64,
    begun: u32,
}

/// A datagram from where its connection's peer was not before, before QUIC has seen it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stray {
    index: u32,
    frames: u64,
}

impl Following {
    /// When something is due.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        Some(self.check.as_ref()?.retransmission.next())
    }
}

impl Checks {
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    fn forget(&mut self, index: u32) {
        self.under_way.retain(|(_, of)| *of != index);
    }

    fn has_room(&mut self, now: Timestamp) -> bool {
        let second = now.as_nanos() / 1_000_000_000;
        if second != self.second {
            self.second = second;
            self.begun = 0;
        }
        self.under_way.len() < MAX_CHECKS && self.begun < MAX_CHECKS_PER_SECOND
    }
}

impl Peer {
    /// The addresses of this machine have changed: the peers of all open connections are told by a
    /// datagram each, by whatever way there is now.
    pub fn network_changed(&mut self, now: Timestamp) {
        self.now = now;
        for index in 0..self.links.len() as u32 {
            let Some(link) = self.link(index) else {
                continue;
            };
            let (State::Connected(_), Path::Direct(hop)) = (link.state, &mut link.path) else {
                continue;
            };
            hop.source = None;
            self.endpoint.path_changed(now, index);
            self.attend(index, None);
        }
    }

    /// Whether a datagram to `named` comes from where its peer was not before.
    pub(super) fn stray(&mut self, named: Option<u32>, hop: Hop) -> Option<Stray> {
        let index = named?;
        let link = self.link(index)?;
        let (State::Connected(_), Path::Direct(path)) = (link.state, &link.path) else {
            return None;
        };
        let elsewhere = path.destination != hop.destination;
        elsewhere.then(|| Stray {
            index,
            frames: self.endpoint.frames(index),
        })
    }

    /// QUIC has seen it: where the peer made it, the peer is asked whether it is there.
    pub(super) fn strayed(&mut self, now: Timestamp, stray: Stray, hop: Hop, bytes: usize) {
        let Stray { index, frames } = stray;
        if self.endpoint.frames(index) <= frames || self.following(index).is_none() {
            return;
        }
        let has_room = self.checks.has_room(now);
        let Some(following) = self.following(index) else {
            return;
        };
        let left = following.left;
        let held = left.is_some_and(|(at, until)| at == hop.destination && now < until);
        match &mut following.check {
            Some(check) if check.hop.destination == hop.destination => {
                check.received += bytes as u64;
            }
            Some(_) => return,
            None if held || now < following.not_before || !has_room => return,
            None => self.begin_check(now, index, hop, bytes),
        }
        self.drive_check(now, index);
    }

    fn begin_check(&mut self, now: Timestamp, index: u32, hop: Hop, bytes: usize) {
        // What is no node has no shards, and nothing that it could answer with.
        let Some((asked, shard)) = self.endpoint.peer_cid(index) else {
            return;
        };
        let id = path_check::transaction(shard, self.shard, self.endpoint.random());
        let rtt = self.endpoint.rtt(index).unwrap_or(MAX_RTO);
        let rto = (2 * rtt).clamp(MIN_RTO, MAX_RTO);
        let schedule = Schedule::new(rto, TRANSMISSIONS, LAST_RTOS).unwrap_or(Schedule::STANDARD);
        let Some(following) = self.following(index) else {
            return;
        };
        following.check = Some(Check {
            hop,
            request: path_check::request(id, asked, &following.own),
            id,
            retransmission: Retransmission::new(now, schedule),
            received: bytes as u64,
            sent: 0,
        });
        self.checks.begun += 1;
        self.checks.under_way.push((id, index));
        self.counters.path_checks.increment();
    }

    /// Sends a request or gives up, if it is time to; after what may have changed that.
    pub(super) fn drive_check(&mut self, now: Timestamp, index: u32) {
        let Some(following) = self.link(index).and_then(|link| link.following.as_mut()) else {
            return;
        };
        let Some(check) = &mut following.check else {
            return;
        };
        match check.retransmission.due(now) {
            Due::Nothing => {}
            Due::Transmit => {
                check.retransmission.sent(now);
                if check.sent + REQUEST_BYTES as u64 <= AMPLIFICATION * check.received {
                    check.sent += REQUEST_BYTES as u64;
                    let (hop, request) = (check.hop, check.request.clone());
                    self.wait(hop, 0, request);
                }
            }
            Due::Failed => {
                following.not_before = now + PAUSE * (1 << following.failures.min(MAX_DOUBLINGS));
                following.failures += 1;
                following.check = None;
                self.checks.forget(index);
                self.counters.failed_path_checks.increment();
            }
        }
        self.rearm(index);
    }

    /// A STUN message. What is none of ours is counted, and not answered.
    pub(super) fn handle_stun(&mut self, now: Timestamp, hop: Hop, bytes: &[u8]) {
        let message = Message::parse(bytes).ok();
        let said = message.as_ref().and_then(path_check::said);
        let (Some(message), Some(said)) = (message, said) else {
            self.counters.not_quic.increment();
            return;
        };
        let taken = match said {
            Said::Request(asked) => self.answer(asked, hop, &message),
            Said::Response => self.answered(now, hop, &message),
        };
        if taken.is_none() {
            self.counters.refused_path_checks.increment();
        }
    }

    fn answer(
        &mut self,
        asked: crate::quic::CidBytes,
        hop: Hop,
        message: &Message<'_>,
    ) -> Option<()> {
        let index = self.endpoint.of_cid(asked)?;
        let following = self.following(index)?;
        if !path_check::is_genuine(message, &following.peers) {
            return None;
        }
        let id = message.transaction_id();
        let answer = path_check::response(id, hop.destination, &following.peers);
        self.counters.answered_path_checks.increment();
        self.wait(hop, 0, answer);
        Some(())
    }

    fn answered(&mut self, now: Timestamp, hop: Hop, message: &Message<'_>) -> Option<()> {
        let id = message.transaction_id();
        let mut under_way = self.checks.under_way.iter();
        let (_, index) = *under_way.find(|(of, _)| *of == id)?;
        let following = self.following(index)?;
        let check = following.check.as_ref().filter(|check| check.id == id)?;
        let there = check.hop.destination == hop.destination && check.hop.socket == hop.socket;
        if !there || !path_check::is_genuine(message, &following.own) {
            return None;
        }
        self.move_to(now, index, hop);
        Some(())
    }

    /// The peer is there.
    fn move_to(&mut self, now: Timestamp, index: u32, mut hop: Hop) {
        let connection = self.handle_of(index);
        let made_up = self.endpoint.remote(index);
        let Some(link) = self.links[index as usize].link.as_mut() else {
            return;
        };
        let (Some(following), Path::Direct(old), Some(made_up)) =
            (link.following.as_mut(), &link.path, made_up)
        else {
            return;
        };
        let (from, to) = (old.destination, hop.destination);
        following.check = None;
        following.failures = 0;
        following.left = Some((from, now + HOLD_DOWN));
        if !link.incoming {
            hop.source = None;
        }
        link.path = Path::Direct(hop);
        if let Some(at) = link.known_at.replace(to) {
            self.made_up.left(at);
        }
        self.made_up.found(made_up, to);
        self.checks.forget(index);
        self.endpoint.path_changed(now, index);
        self.counters.path_changes.increment();
        self.notices.push_back(Notice::PathChanged {
            connection,
            from,
            to,
        });
        self.attend(index, None);
    }

    /// Nothing is to be found out for a connection that is over.
    pub(super) fn stop_following(&mut self, index: u32) {
        let following = self.link(index).and_then(|link| link.following.take());
        if following.is_some_and(|following| following.check.is_some()) {
            self.checks.forget(index);
        }
    }

    /// What is kept of an open connection's peer; made when it is needed first.
    fn following(&mut self, index: u32) -> Option<&mut Following> {
        let link = self.links.get_mut(index as usize)?.link.as_mut()?;
        let State::Connected(_) = link.state else {
            return None;
        };
        if link.following.is_none() {
            let endpoint = &self.endpoint;
            let key = |who: &[u8]| {
                let secret = endpoint.export(index, path_check::LABEL, who)?;
                Some(IntegrityKey::new(&secret))
            };
            let (calls, is_called) = (key(b"caller")?, key(b"called")?);
            let (own, peers) = match link.incoming {
                true => (is_called, calls),
                false => (calls, is_called),
            };
            link.following = Some(Box::new(Following {
                own,
                peers,
                check: None,
                left: None,
                failures: 0,
                not_before: Timestamp::ZERO,
            }));
        }
        link.following.as_deref_mut()
    }
}
