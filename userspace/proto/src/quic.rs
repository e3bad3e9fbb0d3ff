//! QUIC between nodes: quinn-proto and rustls, bent to the rules of this project. No other file of
//! this crate names either of them.
//!
//! - Both ends show a certificate of their Ed25519 key, and nothing about it counts but the key. The
//!   caller says which peer it expects; the called one learns who called.
//! - The key exchange is X25519MLKEM768; X25519 alone only where [`SecurityPolicy`] says so. Which it
//!   was is known afterwards ([`SecurityLevel`]).
//! - No resumption, no early data, no tokens for later: every connection is a handshake, and no two of
//!   them can be linked by what they carry.
//! - Connection ids carry the shard and never look like ChannelData.
//! - QUIC knows made-up addresses only. Where a datagram goes is decided above, by the path layer.
//! - Time is [`Timestamp`](crate::Timestamp); it becomes an `Instant` here and nowhere else.

mod batch;
mod certificate;
mod cid;
mod clock;
mod config;
mod confirmed;
mod endpoint;
mod session;
#[cfg(feature = "simulation")]
pub mod simulation;
mod stats;
mod stock;
mod stream;
mod verifier;

pub use config::{QuicConfig, QuicConfigError, SecurityLevel, SecurityPolicy};
pub use stats::ConnectionStats;
pub use stock::StockConfigs;
pub use stream::{
    CloseReason, DatagramError, Direction, Read, ReadError, StreamError, StreamId, WriteError,
};

pub(crate) use batch::MAX_DATAGRAMS;
pub(crate) use cid::{CID_BYTES, CidBytes, SHARD_MARKS};
pub(crate) use endpoint::{Arrival, Endpoint, Event, Incoming, Settled};
