//! Watching the peers of connections: probes with a timeout, and what their answers and the ends of
//! connections say about health.
//!
//! ```text
//!   connected ──▶ waiting ──interval──▶ probing ──answer──▶ success, a time, waiting again
//!                    ▲                   │   ▲
//!                    │                timeout: a miss
//!                    └── unhealthy ──────┘   └── not yet: at once again
//! ```
//!
//! A probe is a PING (RFC 9000 §19.2), which the peer acknowledges within its `max_ack_delay`. It goes
//! before the data of streams in the next packet, so that it does not queue behind them. It is answered
//! when the peer confirms the receipt of any packet that was sent after it was asked for: what was on its way
//! before is no answer.
//!
//! While a probe is not answered, nothing is closed because of it. QUIC ends a connection after its idle timeout.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::config::{PeerConfig, PeerConfigError};
use super::{ConnectionHandle, Notice, Peer, State};
use crate::Timestamp;
use crate::health::{Fault, Health, HealthReport, HealthStatus};
use crate::identity::PeerId;
use crate::quic::CloseReason;
use crate::timer::{TimerId, Timers};

/// Intervals are up to one part in so many shorter, at random: probes of many connections spread out.
const JITTER: u64 = 4;
/// How long a peer may wait with an acknowledgement (RFC 9000 §18.2, the default).
const MAX_ACK_DELAY: Duration = Duration::from_millis(25);

/// What a shard knows about the health of its peers.
#[derive(Debug)]
pub(super) struct Watching {
    health: Health,
    timers: Timers<u32>,
    rng: ChaCha8Rng,
    interval: Option<Duration>,
    timeout: Duration,
}

/// The watch over one connection.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Whom we called, until it has answered.
    called: Option<PeerId>,
    /// For the next probe, or for the answer to this one.
    timer: Option<TimerId>,
    /// When the probe was asked for that may still be answered in time.
    probe: Option<Timestamp>,
    /// Whether the latest probe was not answered, be there time or not.
    unanswered: bool,
}

impl Watching {
    pub(super) fn new(config: &PeerConfig, seed: [u8; 32]) -> Result<Self, PeerConfigError> {
        Ok(Self {
            health: Health::new(config.health)?,
            timers: Timers::new(),
            rng: ChaCha8Rng::from_seed(seed),
            interval: config.health_check_interval,
            timeout: config.health_check_timeout,
        })
    }

    /// Whether no connection is watched.
    pub(super) fn is_empty(&self) -> bool {
        self.timers.is_empty()
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        let deadlines = [self.timers.next_deadline(), self.health.poll_timeout()];
        deadlines.into_iter().flatten().min()
    }

    /// When the next probe is sent, if any is.
    fn next_probe(&mut self, now: Timestamp) -> Option<Timestamp> {
        let interval = self.interval?;
        let spread = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX) / JITTER;
        let less = (u128::from(self.rng.next_u64()) * u128::from(spread)) >> 64;
        Some(now + (interval - Duration::from_nanos(less as u64)))
    }
}

impl Peer {
    /// What is known of a peer's health, from the connections of this shard and the attempts to make
    /// them; `None` where nothing is.
    pub fn health(&self, peer: PeerId) -> Option<HealthReport> {
        self.watching.health.report(self.now, peer)
    }

    /// Has the peer show that it is there, however idle the connection is; the answer, or that there was
    /// none within [`PeerConfig::health_check_timeout`], counts for its health. False where the
    /// connection is not open.
    pub fn probe(&mut self, now: Timestamp, connection: ConnectionHandle) -> bool {
        self.now = now;
        if self.peer(connection).is_none() {
            return false;
        }
        self.send_probe(now, connection.index);
        true
    }

    /// A call to a peer was begun.
    pub(super) fn watch_call(&mut self, index: u32, peer: PeerId) {
        if let Some(link) = self.link(index) {
            link.watch.called = Some(peer);
        }
    }

    /// A peer that was called has not answered in the time that it had.
    pub(super) fn watch_too_slow(&mut self, index: u32) {
        let called = self.link(index).and_then(|link| link.watch.called);
        if let Some(peer) = called {
            let health = &mut self.watching.health;
            health.record_fault(self.now, peer, Fault::NotReached);
        }
        self.tell_health();
    }

    /// A handshake is over.
    pub(super) fn watch_connected(&mut self, index: u32, peer: PeerId) {
        let now = self.now;
        let rtt = self.endpoint.pulse(index).map(|pulse| pulse.rtt);
        self.note_answer(peer, rtt);
        self.wait_for_probe(now, index);
    }

    /// A connection, or the attempt to make one, is over.
    pub(super) fn watch_closed(&mut self, index: u32, state: State, reason: &CloseReason) {
        let Some(link) = self.link(index) else {
            return;
        };
        let Watch {
            called,
            timer,
            unanswered,
            probe: _,
        } = std::mem::take(&mut link.watch);
        if let Some(timer) = timer {
            self.watching.timers.cancel(timer);
        }
        let fault = match state {
            State::Handshaking => called.zip(fault_of_call(reason)),
            State::Connected(peer) => {
                fault_of_connection(reason, unanswered).map(|fault| (peer, fault))
            }
            State::Closed => None,
        };
        if let Some((peer, fault)) = fault {
            self.watching.health.record_fault(self.now, peer, fault);
        }
        self.tell_health();
    }

    /// Something has come on a connection.
    pub(super) fn watch_heard(&mut self, now: Timestamp, index: u32) {
        let Some(link) = self.link(index) else {
            return;
        };
        let (State::Connected(peer), Some(asked_at)) = (link.state, link.watch.probe) else {
            return;
        };
        let Some(pulse) = self.endpoint.pulse(index) else {
            return;
        };
        if pulse.confirmed.is_none_or(|sent_at| sent_at < asked_at) {
            return;
        }
        let Some(link) = self.link(index) else {
            return;
        };
        link.watch.probe = None;
        link.watch.unanswered = false;
        // What QUIC has measured, unless this probe or its answer was lost and sent again.
        let elapsed = now.saturating_since(asked_at);
        let rtt = pulse.rtt.max(elapsed.saturating_sub(MAX_ACK_DELAY));
        self.note_answer(peer, Some(rtt));
        self.wait_for_probe(now, index);
    }

    /// Sends the probes that are due, and notes those that were not answered.
    pub(super) fn watch_timeout(&mut self, now: Timestamp, budget: &mut u32) {
        self.watching.health.handle_timeout(now);
        while let Some(index) = self.watching.timers.expire(now, budget) {
            let Some(link) = self.link(index) else {
                continue;
            };
            link.watch.timer = None;
            let State::Connected(peer) = link.state else {
                continue;
            };
            if link.watch.probe.take().is_some() {
                let health = &mut self.watching.health;
                health.record_fault(now, peer, Fault::NoAnswer);
                if health.status(now, peer) == HealthStatus::Unhealthy {
                    self.wait_for_probe(now, index);
                    continue;
                }
            }
            self.send_probe(now, index);
        }
        self.tell_health();
    }

    /// Sends a probe; where one is not answered yet, its timeout stays.
    pub(super) fn send_probe(&mut self, now: Timestamp, index: u32) {
        self.endpoint.ping(index);
        if let Some(link) = self.link(index)
            && link.watch.probe.is_none()
        {
            link.watch.unanswered = true;
            link.watch.probe = Some(now);
            let deadline = now + self.watching.timeout;
            self.set_watch_timer(index, Some(deadline));
        }
        self.attend(index, None);
    }

    fn wait_for_probe(&mut self, now: Timestamp, index: u32) {
        let at = self.watching.next_probe(now);
        self.set_watch_timer(index, at);
    }

    fn set_watch_timer(&mut self, index: u32, at: Option<Timestamp>) {
        let Some(slot) = self.links.get_mut(index as usize) else {
            return;
        };
        let Some(link) = &mut slot.link else {
            return;
        };
        if let Some(timer) = link.watch.timer.take() {
            self.watching.timers.cancel(timer);
        }
        link.watch.timer = at.map(|at| self.watching.timers.start(at, index));
    }

    fn note_answer(&mut self, peer: PeerId, rtt: Option<Duration>) {
        self.watching.health.record_success(self.now, peer);
        if let Some(rtt) = rtt {
            self.watching.health.record_rtt(self.now, peer, rtt);
        }
        self.tell_health();
    }

    fn tell_health(&mut self) {
        while let Some(change) = self.watching.health.poll_change() {
            self.notices.push_back(Notice::HealthChanged {
                peer: change.peer,
                from: change.from,
                to: change.to,
            });
        }
    }
}

/// What the end of an attempt says about the peer that was called. That it does not want us, or
/// has nothing in common with us, is no fault of its health.
fn fault_of_call(reason: &CloseReason) -> Option<Fault> {
    match reason {
        CloseReason::WrongPeer(_)
        | CloseReason::NoIdentity
        | CloseReason::Busy
        | CloseReason::Forgotten
        | CloseReason::TimedOut
        | CloseReason::PeerMisbehaved(_)
        | CloseReason::PeerGaveUp(_) => Some(Fault::NotReached),
        CloseReason::Here
        | CloseReason::Peer { .. }
        | CloseReason::NoCommonKeyExchange
        | CloseReason::Refused(_)
        | CloseReason::Version
        | CloseReason::NoConnectionIds => None,
    }
}

/// What the end of a connection that stood says about the peer. One that was idle for long times out
/// without anybody's fault; if its peer owes an answer, it is gone.
fn fault_of_connection(reason: &CloseReason, owes_answer: bool) -> Option<Fault> {
    match reason {
        CloseReason::Forgotten | CloseReason::PeerGaveUp(_) => Some(Fault::Lost),
        CloseReason::TimedOut => owes_answer.then_some(Fault::Lost),
        CloseReason::PeerMisbehaved(_) => Some(Fault::Misbehaved),
        CloseReason::Here
        | CloseReason::Peer { .. }
        | CloseReason::WrongPeer(_)
        | CloseReason::NoIdentity
        | CloseReason::NoCommonKeyExchange
        | CloseReason::Refused(_)
        | CloseReason::Busy
        | CloseReason::Version
        | CloseReason::NoConnectionIds => None,
    }
}
