//! Why something did not come about, and whose fault it is.

use std::io;
use std::net::SocketAddr;

use towpath_engine::StartError;
use towpath_proto::peer::{ConnectError as NotBegun, PeerConfigError};
use towpath_proto::pool::{DialError, GetError};
use towpath_proto::quic::{CloseReason, DatagramError};

use crate::key_file::KeyFileError;

/// Whose fault an error is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    /// What was asked for cannot be done, here or anywhere.
    Caller,
    /// This node: its limits, its configuration, or its end.
    Here,
    /// The peer, or whoever answered in its place.
    Peer,
    /// What lies between, or the peer is not there.
    Network,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// There is no key.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The system gives no random bytes, without which there is no secret.
    #[error("the system gives no random bytes")]
    NoRandomness,
    /// A setting breaks a rule.
    #[error(transparent)]
    Config(#[from] PeerConfigError),
    /// The sockets or threads could not be made.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The machine's addresses cannot be asked for.
    #[error("cannot read the machine's addresses: {0}")]
    Addresses(io::Error),
    /// An address is listed twice.
    #[error("{0} is listened on twice")]
    Twice(SocketAddr),
}

/// Why there is no connection: which step failed. [`fault`](Self::fault) says whose fault it is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The pool gives none, or could not make one.
    #[error(transparent)]
    Pool(#[from] GetError),
    /// The node has been closed.
    #[error("this node is closed")]
    NodeClosed,
}

impl ConnectError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        let error = match self {
            Self::NodeClosed => return Fault::Here,
            Self::Pool(error) => error,
        };
        match error {
            GetError::Full { .. }
            | GetError::TooManyWaiters(_)
            | GetError::TicketInUse(_)
            | GetError::ShuttingDown => Fault::Here,
            GetError::Held { .. } => Fault::Network,
            GetError::Failed { error, .. } => fault_of_dial(error),
            GetError::Deadline { last, .. } => last.as_ref().map_or(Fault::Network, fault_of_dial),
        }
    }
}

fn fault_of_dial(error: &DialError) -> Fault {
    match error {
        DialError::NotBegun(NotBegun::Myself | NotBegun::NoAddress(_)) => Fault::Caller,
        DialError::NotBegun(NotBegun::Full(_) | NotBegun::Exhausted | NotBegun::ShuttingDown) => {
            Fault::Here
        }
        DialError::Ended(reason) => fault_of(reason),
        DialError::TooSlow(_) => Fault::Network,
    }
}

/// Whose fault the end of a connection is.
pub fn fault_of(reason: &CloseReason) -> Fault {
    match reason {
        CloseReason::Here | CloseReason::NoConnectionIds | CloseReason::PeerGaveUp(_) => {
            Fault::Here
        }
        CloseReason::Peer { .. }
        | CloseReason::WrongPeer(_)
        | CloseReason::NoIdentity
        | CloseReason::NoCommonKeyExchange
        | CloseReason::Refused(_)
        | CloseReason::Busy
        | CloseReason::Version
        | CloseReason::Forgotten
        | CloseReason::PeerMisbehaved(_) => Fault::Peer,
        CloseReason::TimedOut => Fault::Network,
    }
}

/// Why no stream was opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// The connection is over.
    #[error("the connection is over: {0}")]
    Closed(CloseReason),
}

/// Why a datagram was not sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendDatagramError {
    /// The connection is over.
    #[error("the connection is over: {0}")]
    Closed(CloseReason),
    /// It cannot be sent.
    #[error(transparent)]
    Refused(DatagramError),
}

/// Why nothing can be read from a stream.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection is over.
    #[error("the connection is over: {0}")]
    Closed(CloseReason),
    /// The peer gave the stream up.
    #[error("the peer reset the stream with code {0}")]
    Reset(u64),
    /// The stream was stopped here before.
    #[error("the stream was stopped")]
    Stopped,
    /// The stream has more bytes than were asked for at most.
    #[error("the stream is longer than {0} bytes")]
    TooLong(usize),
    /// The stream ended before as many bytes as were asked for.
    #[error("the stream ended {0} bytes too early")]
    TooShort(usize),
}

/// Why nothing can be written to a stream.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WriteError {
    /// The connection is over.
    #[error("the connection is over: {0}")]
    Closed(CloseReason),
    /// The peer wants no more of it.
    #[error("the peer stopped the stream with code {0}")]
    Stopped(u64),
    /// The stream was finished or reset here before.
    #[error("the stream was finished or reset")]
    Finished,
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        let kind = match &error {
            ReadError::Closed(reason) => kind_of(reason),
            ReadError::Reset(_) => io::ErrorKind::ConnectionReset,
            ReadError::Stopped => io::ErrorKind::NotConnected,
            ReadError::TooLong(_) => io::ErrorKind::InvalidData,
            ReadError::TooShort(_) => io::ErrorKind::UnexpectedEof,
        };
        Self::new(kind, error)
    }
}

impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> Self {
        let kind = match &error {
            WriteError::Closed(reason) => kind_of(reason),
            WriteError::Stopped(_) => io::ErrorKind::ConnectionReset,
            WriteError::Finished => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}

fn kind_of(reason: &CloseReason) -> io::ErrorKind {
    match fault_of(reason) {
        Fault::Network => io::ErrorKind::TimedOut,
        Fault::Peer => io::ErrorKind::ConnectionAborted,
        Fault::Caller | Fault::Here => io::ErrorKind::NotConnected,
    }
}
