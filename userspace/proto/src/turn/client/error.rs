//! What can go wrong, and whose fault it is.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use crate::wire::attribute::AlternateServer;
use crate::wire::{Code, Message};

/// Why a request did not succeed. The server or the network is at fault, or the credentials.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RequestError {
    /// No response came.
    #[error("no response to {transmissions} requests")]
    TimedOut {
        /// How often the request was sent.
        transmissions: u8,
    },
    /// 300: the server asks to be left for another that was asked before, or cannot be, or is one too
    /// many.
    #[error("the server refers to {server}")]
    TryAlternate {
        /// The other server.
        server: SocketAddr,
    },
    /// 401 to a request that had the credentials, or 441.
    #[error("the server refuses the credentials")]
    WrongCredentials,
    /// 403: the peer, or everything, is forbidden.
    #[error("the server forbids it")]
    Forbidden,
    /// 437: the server has another allocation of this 5-tuple, or none.
    #[error("the server has another allocation for this address and port, or none")]
    AllocationMismatch,
    /// 440: no addresses of this family.
    #[error("the server has no address of this family")]
    FamilyNotSupported,
    /// 443: the peer's family is not the allocation's.
    #[error("the peer's address family is not the allocation's")]
    PeerFamilyMismatch,
    /// 486: too many allocations of this user.
    #[error("the user has too many allocations")]
    QuotaReached,
    /// 508: no port is free.
    #[error("the server has no capacity")]
    NoCapacity,
    /// Another error.
    #[error("the server answered {0}")]
    Refused(Code),
    /// The response lacks what it must have.
    #[error("the server's response is malformed")]
    Malformed,
    /// The allocation's lifetime ended before the server answered.
    #[error("the allocation's lifetime has ended")]
    Expired,
    /// The request does not fit into the caller's buffer.
    #[error("the request does not fit into {buffer} bytes")]
    TooLong {
        /// The buffer's length.
        buffer: usize,
    },
}

impl RequestError {
    pub(super) fn refused(code: Code, message: &Message<'_>) -> Self {
        match code {
            Code::TRY_ALTERNATE => match message.get() {
                Ok(Some(AlternateServer(server))) => Self::TryAlternate { server },
                Ok(None) | Err(_) => Self::Malformed,
            },
            Code::UNAUTHENTICATED | Code::WRONG_CREDENTIALS => Self::WrongCredentials,
            Code::FORBIDDEN => Self::Forbidden,
            Code::ALLOCATION_MISMATCH => Self::AllocationMismatch,
            Code::ADDRESS_FAMILY_NOT_SUPPORTED => Self::FamilyNotSupported,
            Code::PEER_ADDRESS_FAMILY_MISMATCH => Self::PeerFamilyMismatch,
            Code::ALLOCATION_QUOTA_REACHED => Self::QuotaReached,
            Code::INSUFFICIENT_CAPACITY => Self::NoCapacity,
            other => Self::Refused(other),
        }
    }
}

/// Why no allocation can be asked for. The caller is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AllocateError {
    /// There is one, or one is being made or released.
    #[error("the client has an allocation")]
    InUse,
}

/// Why a peer cannot be permitted or bound. The caller is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PeerError {
    /// There is no allocation.
    #[error("there is no allocation")]
    NoAllocation,
    /// The peer is of another family than the relayed address.
    #[error("{peer} is of another address family than {relayed}")]
    Family {
        /// The relayed address.
        relayed: IpAddr,
        /// The peer.
        peer: IpAddr,
    },
    /// Too many requests are waiting for their responses.
    #[error("{transactions} requests wait for a response")]
    Busy {
        /// How many.
        transactions: usize,
    },
    /// Too many peers.
    #[error("{peers} peers are the limit")]
    TooManyPeers {
        /// The limit.
        peers: usize,
    },
}

/// Why an allocation cannot follow its client. The caller is at fault, or the server does not do it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum MoveError {
    /// There is no allocation.
    #[error("there is no allocation")]
    NoAllocation,
    /// No ticket was asked for, or the server gave none.
    #[error("the server gave no mobility ticket")]
    NotMobile,
}

/// Why data cannot be sent. The caller is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SendError {
    /// There is no allocation.
    #[error("there is no allocation")]
    NoAllocation,
    /// The server has not agreed to the client's new address yet.
    #[error("the allocation is moving to another address")]
    Moving,
    /// The server would drop it.
    #[error("there is no permission for {peer}")]
    NotPermitted {
        /// The peer.
        peer: IpAddr,
    },
    /// It does not fit into the buffer, or into a length field.
    #[error("{payload_bytes} bytes do not fit into a message in {buffer} bytes")]
    Length {
        /// The payload's length.
        payload_bytes: usize,
        /// The buffer's.
        buffer: usize,
    },
}

/// Why a datagram was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ignored {
    /// It is not from the server.
    Stranger,
    /// It is neither STUN nor ChannelData.
    NotTurn,
    /// An attribute is missing or cannot be read.
    Malformed,
    /// A request, or an indication that is not Data.
    Unexpected,
    /// A response to no request of ours; a duplicate, mostly.
    NoTransaction,
    /// A response that is not signed as it must be.
    BadIntegrity,
    /// A response that offers less than its nonce promises (RFC 8489 §9.2.5), or than one before.
    BidDown,
    /// A challenge that offers only password algorithms we do not know.
    NoAlgorithm,
    /// Data from a peer without permission.
    NotPermitted,
    /// Data on a channel that is not bound.
    UnboundChannel,
}
