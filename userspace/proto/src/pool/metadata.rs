//! What is known about a connection in the pool.

use std::time::Duration;

use crate::Timestamp;
use crate::identity::PeerId;
use crate::quic::SecurityLevel;
use crate::transport_type::TransportType;

/// Half of the quality is lost at a round trip of this length.
const HALF_QUALITY_RTT: Duration = Duration::from_millis(200);
/// So many times the loss is lost of the quality: at 20 % nothing is left.
const LOSS_WEIGHT: f64 = 5.0;
/// One result moves the success rate by this part of the distance: it remembers some 16 of them.
const SUCCESS_STEP: f64 = 1.0 / 16.0;

/// What is known of a connection when it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Established {
    /// What its keys rest upon.
    pub security: SecurityLevel,
    /// What it travels over.
    pub transport: TransportType,
}

/// What becomes of a connection, or of all of those with a peer.
///
/// ```text
///   Closed ──get──▶ Connecting ──▶ Connected ──unhealthy──▶ Draining ──last reference──▶ Closed
///                    ▲      │          └──────── idle, lost, evicted ─────────────────▶
///                    └ pause┘ after a failed attempt
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ConnectionState {
    /// It is being dialled, or a pause before the next attempt runs.
    Connecting,
    /// It stands, and is given to callers.
    Connected,
    /// It stands, but nobody gets it any more: it is closed when the last reference to it goes.
    Draining,
    /// There is none.
    Closed,
}

/// A connection as an observer sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct ConnectionMetadata {
    /// Who is at the other end.
    pub peer: PeerId,
    /// Whether it was the peer that called.
    pub incoming: bool,
    /// Since when it stands.
    pub established_at: Timestamp,
    /// When something of an application went over it last.
    pub last_activity: Timestamp,
    /// What it travels over.
    pub transport: TransportType,
    /// What its keys rest upon.
    pub security: SecurityLevel,
    /// Whether callers get it.
    pub state: ConnectionState,
    /// How many have it.
    pub references: u32,
    /// How good it is.
    pub properties: ConnectionProperties,
    /// What went over it.
    pub stats: ConnectionStats,
}

/// What was measured on a connection.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Measured {
    /// The round trip.
    pub rtt: Option<Duration>,
    /// Which part of the packets is lost, from 0 to 1.
    pub loss: f64,
    /// What it carries, in bytes per second, as far as that is known.
    pub bandwidth: Option<u64>,
}

/// How good a connection is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ConnectionProperties {
    /// What was measured last.
    pub measured: Measured,
    /// Which part of the latest attempts to use it succeeded, from 0 to 1: an exponentially weighted
    /// mean over some 16 of them.
    pub success_rate: f64,
}

impl Default for ConnectionProperties {
    fn default() -> Self {
        Self {
            measured: Measured::default(),
            success_rate: 1.0,
        }
    }
}

impl ConnectionProperties {
    /// How good it is in one number, from 0 (worthless) to 1:
    ///
    /// ```text
    ///   200 ms / (200 ms + rtt)  ×  max(0, 1 − 5 · loss)  ×  success rate
    /// ```
    ///
    /// Where the round trip is not known, 200 ms are taken.
    pub fn quality(&self) -> f64 {
        let half = HALF_QUALITY_RTT.as_secs_f64();
        let rtt = self.measured.rtt.unwrap_or(HALF_QUALITY_RTT).as_secs_f64();
        let kept = (1.0 - LOSS_WEIGHT * self.measured.loss).clamp(0.0, 1.0);
        half / (half + rtt) * kept * self.success_rate
    }

    pub(super) fn record(&mut self, success: bool) {
        let result = if success { 1.0 } else { 0.0 };
        self.success_rate += (result - self.success_rate) * SUCCESS_STEP;
    }
}

/// What went over a connection, as the application sees it. What failed is not in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ConnectionStats {
    /// Of what was accepted for sending.
    pub sent: Traffic,
    /// Of what was given to the application.
    pub received: Traffic,
}

/// An amount of something sent or received.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Bytes of the application.
    pub bytes: u64,
    /// Datagrams, and streams that were sent or read to their end.
    pub messages: u64,
}

impl Traffic {
    pub(super) fn add(&mut self, more: Self) {
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.messages = self.messages.saturating_add(more.messages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quality(rtt_ms: u64, loss: f64) -> f64 {
        let properties = ConnectionProperties {
            measured: Measured {
                rtt: Some(Duration::from_millis(rtt_ms)),
                loss,
                bandwidth: None,
            },
            ..ConnectionProperties::default()
        };
        properties.quality()
    }

    #[test]
    fn quality_is_one_for_a_perfect_connection_and_falls_with_rtt_loss_and_failures() {
        let close = |left: f64, right: f64| (left - right).abs() < 1e-9;
        assert!(close(quality(0, 0.0), 1.0));
        assert!(close(quality(200, 0.0), 0.5));
        assert!(close(quality(200, 0.1), 0.25));
        assert!(close(quality(0, 0.2), 0.0));
        assert!(close(quality(0, 1.0), 0.0));
        assert!(close(ConnectionProperties::default().quality(), 0.5));
        let mut failing = ConnectionProperties::default();
        let mut last = failing.quality();
        for _ in 0..100 {
            failing.record(false);
            assert!(failing.quality() < last);
            last = failing.quality();
        }
        assert!(last < 0.01);
        for _ in 0..100 {
            failing.record(true);
        }
        assert!(failing.quality() > 0.49, "old failures are forgotten");
    }
}
