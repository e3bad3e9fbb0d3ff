//! Streams and datagrams of a connection, and why it or they end.

use bytes::Bytes;

use crate::identity::PeerId;

/// A stream of a connection (RFC 9000 §2.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamId(pub u64);

/// Who sends on a stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// Both ends.
    Bidirectional,
    /// The end that opened it.
    Unidirectional,
}

/// What reading from a stream gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Read {
    /// The next bytes.
    Data(Bytes),
    /// Nothing yet; the stream becomes readable again.
    Blocked,
    /// The peer finished the stream, and everything was read.
    Finished,
}

/// Why a call about a stream had no effect; the caller's mistake, or the stream is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection is not open.
    #[error("the connection is not open")]
    NotConnected,
    /// There is no such stream, or its half in this direction is over.
    #[error("there is no such stream, or it is over")]
    NoStream,
}

/// Why nothing can be written to a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WriteError {
    /// The connection is not open.
    #[error("the connection is not open")]
    NotConnected,
    /// There is no such stream, or it was finished or reset.
    #[error("there is no such stream, or it was finished or reset")]
    NoStream,
    /// The peer wants no more of it.
    #[error("the peer stopped the stream with code {0}")]
    Stopped(u64),
}

/// Why nothing can be read from a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection is not open.
    #[error("the connection is not open")]
    NotConnected,
    /// There is no such stream, or it was read to its end.
    #[error("there is no such stream, or it was read to its end")]
    NoStream,
    /// The peer gave it up.
    #[error("the peer reset the stream with code {0}")]
    Reset(u64),
}

/// Why a datagram is not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DatagramError {
    /// The connection is not open.
    #[error("the connection is not open")]
    NotConnected,
    /// The peer takes none.
    #[error("the peer takes no datagrams")]
    Unsupported,
    /// It does not fit into a packet.
    #[error("at most {max_bytes} bytes fit into a datagram")]
    TooLarge {
        /// What fits now; it changes with the path.
        max_bytes: usize,
    },
    /// Too many wait to be sent.
    #[error("too many datagrams wait to be sent")]
    Blocked,
}

/// Why a connection is over.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CloseReason {
    /// We closed it.
    #[error("closed here")]
    Here,
    /// The peer closed it.
    #[error("closed by the peer with code {code}")]
    Peer {
        /// The application's code.
        code: u64,
        /// What the application says about it.
        reason: Bytes,
    },
    /// Another peer than the one called has answered.
    #[error("{0} answered, who was not called")]
    WrongPeer(PeerId),
    /// The other end shows no key of the kind that nodes have.
    #[error("the other end has no Ed25519 key")]
    NoIdentity,
    /// There is no key exchange that both ends allow: one of them insists on a post-quantum one.
    #[error("no key exchange that both ends allow")]
    NoCommonKeyExchange,
    /// The peer broke the handshake off.
    #[error("the peer refused the handshake with TLS alert {0}")]
    Refused(u8),
    /// The peer takes no connections now.
    #[error("the peer takes no connections now")]
    Busy,
    /// The peer speaks no version of QUIC that we do.
    #[error("the peer speaks no version of QUIC that we do")]
    Version,
    /// The peer knows nothing of the connection: it was started anew, or what it said when it closed the
    /// connection was lost.
    #[error("the peer knows the connection no more")]
    Forgotten,
    /// Nothing came for too long.
    #[error("timed out")]
    TimedOut,
    /// The peer broke a rule of QUIC.
    #[error("the peer broke a rule of QUIC, code {0:#x}")]
    PeerMisbehaved(u64),
    /// The peer says that we broke a rule of QUIC, or had an error of its own.
    #[error("the peer gave up with QUIC's code {0:#x}")]
    PeerGaveUp(u64),
    /// We have no connection ids left.
    #[error("no connection ids left")]
    NoConnectionIds,
}
