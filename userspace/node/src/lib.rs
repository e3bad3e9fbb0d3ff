//! What a node of a peer-to-peer network links.
//!
//! A [`Node`] is a key, some sockets and the threads that serve them. It calls peers by their
//! [`PeerAddr`] and is called by them; a [`Connection`] is encrypted, proves who is at both ends, and
//! carries streams and datagrams. Any executor will do, and none is needed but to wait:
//!
//! ```
//! use futures::executor::block_on;
//! use towpath::Node;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let listen = || Node::builder().listen(([127, 0, 0, 1], 0).into()).spawn();
//! let (callee, caller) = (listen()?, listen()?);
//! // Who is called sends back what it gets, stream by stream.
//! callee.serve(|connection| async move {
//!     while let Ok((mut send, mut receive)) = connection.accept_bi().await {
//!         while let Ok(Some(bytes)) = receive.read().await {
//!             if send.write_all(&bytes).await.is_err() {
//!                 return;
//!             }
//!         }
//!         let _ = send.finish().await;
//!     }
//! });
//! block_on(async {
//!     let connection = caller.connect(&callee.peer_addr()?).await?;
//!     assert_eq!(connection.peer(), callee.id());
//!     let (mut send, mut receive) = connection.open_bi().await?;
//!     send.write_all(b"hello").await?;
//!     send.finish().await?;
//!     assert_eq!(receive.read_to_end(100).await?, b"hello");
//!     caller.close().await;
//!     Ok(())
//! })
//! # }
//! ```
//!
//! # Threads
//!
//! Each shard of a node is a thread with its own sockets and connections. A future that runs there
//! ([`Node::serve`], [`Connection::spawn`]) works on its connection by plain calls, without locks, queues
//! or wake-ups; it must not block. Everything can be done from other threads as well, at the price of a
//! message to the shard and one back.
#![forbid(unsafe_code)]

mod connection;
mod core;
mod directory;
mod error;
mod events;
mod gate;
mod interfaces;
pub mod key_file;
mod metrics;
mod node;
mod shard;
mod shared;
mod stream;

pub use connection::Connection;
pub use core::Ended;
pub use error::{
    ConnectError, Fault, OpenError, ReadError, SendDatagramError, SpawnError, WriteError, fault_of,
};
pub use events::{Event, Events};
pub use metrics::{Metrics, Snapshot};
pub use node::{Node, NodeBuilder};
pub use shared::{Count, NodeCounters};
pub use stream::{RecvStream, SendStream};
pub use towpath_engine::{Driver, Report};
pub use towpath_proto::bandwidth::{Allowance, BandwidthError, Priority, Usage, Used};
pub use towpath_proto::common::rate::LimitWord;
pub use towpath_proto::health::{HealthConfig, HealthReport, HealthStatus, Threshold};
pub use towpath_proto::identity::{Identity, PeerAddr, PeerId, SecretKey};
pub use towpath_proto::peer::{PeerConfig, PeerLimits};
pub use towpath_proto::quic::{
    CloseReason, DatagramError, QuicConfig, SecurityLevel, SecurityPolicy, StreamId,
};
