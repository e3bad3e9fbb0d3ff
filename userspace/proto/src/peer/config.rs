//! What a node's machine is configured with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::bandwidth::Bandwidth;
use crate::breaker::{BreakerConfig, BreakerConfigError};
use crate::health::{HealthConfig, HealthConfigError};
use crate::pool::{PoolConfig, PoolConfigError};
use crate::quic::{QuicConfig, QuicConfigError};

/// What makes sense for the times of health checks.
const HEALTH_CHECK_TIMES: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(86_400);

/// What a node's machine is configured with.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// The addresses of the node's sockets; their order numbers the listeners.
    pub listeners: Vec<SocketAddr>,
    /// How connections are made.
    pub quic: QuicConfig,
    /// How many connections are kept, and for how long, and how peers are called.
    pub pool: PoolConfig,
    /// When peers that cannot be called are left alone.
    pub breaker: BreakerConfig,
    /// How much there may be of everything, per shard.
    pub limits: PeerLimits,
    /// What may be sent and received, by all shards that have this configuration together.
    pub bandwidth: Arc<Bandwidth>,
    /// Every open connection is probed after this time, or up to a quarter less, which keeps idle ones
    /// alive at both ends. `None` for only when the pool keeps a connection in use alive, or
    /// [`Peer::probe`](super::Peer::probe) is called.
    pub health_check_interval: Option<Duration>,
    /// A probe without an answer within this time was missed. The next one is sent at once, until the
    /// peer is unhealthy.
    pub health_check_timeout: Duration,
    /// What the health of peers is judged by.
    pub health: HealthConfig,
}

impl Default for PeerConfig {
    fn default() -> Self {
        Self {
            listeners: Vec::new(),
            quic: QuicConfig::default(),
            pool: PoolConfig::default(),
            breaker: BreakerConfig::default(),
            limits: PeerLimits::default(),
            bandwidth: Arc::default(),
            health_check_interval: None,
            health_check_timeout: Duration::from_secs(5),
            health: HealthConfig::default(),
        }
    }
}

/// How much there may be, per shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerLimits {
    /// Connections, handshakes and closed ones that still answer included.
    pub connections: usize,
    /// Incoming connections whose handshake is not over.
    pub handshakes: usize,
    /// With more incoming handshakes than this, a stranger has to show first that it is where it says
    /// it is (RFC 9000 §8.1.2), which costs it a round trip and us nothing.
    pub retry_above: usize,
}

impl Default for PeerLimits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            handshakes: 1024,
            retry_above: 64,
        }
    }
}

/// What is wrong with a [`PeerConfig`].
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum PeerConfigError {
    /// There is nothing to send from.
    #[error("a node needs an address to send from")]
    NoListener,
    /// There are more listeners than can be numbered.
    #[error("{0} listeners are too many")]
    TooManyListeners(usize),
    /// No connection could be made.
    #[error("a limit of 0 connections allows none")]
    NoConnections,
    /// A time of health checks is nothing, or longer than anybody waits.
    #[error("{name} is {value:?}, it must be between a millisecond and a day")]
    HealthCheck {
        /// The field.
        name: &'static str,
        /// What it says.
        value: Duration,
    },
    /// Health cannot be judged like this.
    #[error(transparent)]
    Health(#[from] HealthConfigError),
    /// QUIC cannot be used like this.
    #[error(transparent)]
    Quic(#[from] QuicConfigError),
    /// The pool cannot be like this.
    #[error(transparent)]
    Pool(#[from] PoolConfigError),
    /// The breakers cannot be like this.
    #[error(transparent)]
    Breaker(#[from] BreakerConfigError),
}

impl PeerConfig {
    pub(super) fn validate(&self) -> Result<(), PeerConfigError> {
        if self.listeners.is_empty() {
            return Err(PeerConfigError::NoListener);
        }
        if u16::try_from(self.listeners.len()).is_err() {
            return Err(PeerConfigError::TooManyListeners(self.listeners.len()));
        }
        if self.limits.connections == 0 {
            return Err(PeerConfigError::NoConnections);
        }
        let interval = self.health_check_interval;
        let times = [
            ("health_check_interval", interval),
            ("health_check_timeout", Some(self.health_check_timeout)),
        ];
        for (name, value) in times {
            if let Some(value) = value
                && !HEALTH_CHECK_TIMES.contains(&value)
            {
                return Err(PeerConfigError::HealthCheck { name, value });
            }
        }
        Ok(())
    }
}
