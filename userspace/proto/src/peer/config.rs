//! What a node's machine is configured with.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::bandwidth::Bandwidth;
use crate::breaker::{BreakerConfig, BreakerConfigError};
use crate::pool::{PoolConfig, PoolConfigError};
use crate::quic::{QuicConfig, QuicConfigError};

/// What a node's machine is configured with.
#[derive(Clone, Debug, Default)]
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
        Ok(())
    }
}
