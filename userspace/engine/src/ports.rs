//! Who owns relayed ports, and the way to other shards: what a [`Host`](crate::Host) may ask of the
//! shard's driver.
//!
//! Nothing here says that a relayed port has a socket of its own. Today it has; a range of ports
//! that is steered to one socket fits behind the same trait.

use std::net::{IpAddr, SocketAddr};

use towpath_proto::machine::{ListenerId, PortId, ShardId, TrafficClass};

/// Opens and closes the relayed ports of one shard, and passes datagrams on to other shards.
pub trait Ports {
    /// Binds `local` as the relayed port `port`; datagrams for it arrive from now on.
    fn open(&mut self, port: PortId, local: SocketAddr) -> Result<(), OpenError>;

    /// Closes `port`, which may be used again at once; its address is free a round later, when the
    /// kernel has ended what it does there. An unknown port is ignored.
    fn close(&mut self, port: PortId);

    /// Gives a datagram to another shard, whose machine gets it like one that arrived there. Where too
    /// many wait for that shard already it is dropped and counted.
    fn hand_over(&mut self, to: ShardId, datagram: Handover);
}

/// A datagram that arrived at another shard than the one whose it is.
#[derive(Debug)]
pub struct Handover {
    /// The listening address it arrived at.
    pub listener: ListenerId,
    /// The local address it was sent to.
    pub local: IpAddr,
    /// Who sent it.
    pub remote: SocketAddr,
    /// Its traffic class.
    pub traffic_class: TrafficClass,
    /// What it holds.
    pub payload: Box<[u8]>,
}

/// Why a relayed port could not be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// The address is bound already, here or by another process.
    #[error("{local} is in use")]
    InUse {
        /// The address asked for.
        local: SocketAddr,
    },
    /// The process or the system has no file descriptor left.
    #[error("no file descriptor is left for {local}")]
    NoDescriptors {
        /// The address asked for.
        local: SocketAddr,
    },
    /// The machine holds this port already, or its number is not below the configured maximum.
    #[error("relayed port number {} is open already or not below {limit}", port.0)]
    BadPort {
        /// The number asked for.
        port: PortId,
        /// How many ports a shard may hold.
        limit: u32,
    },
    /// The kernel refused for another reason.
    #[error("cannot open {local}: {}", std::io::Error::from_raw_os_error(*errno))]
    Other {
        /// The address asked for.
        local: SocketAddr,
        /// The kernel's error number.
        errno: i32,
    },
}
