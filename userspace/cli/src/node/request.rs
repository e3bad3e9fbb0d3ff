//! What the commands say to each other: the first line of a stream says what it is for.
//!
//! ```text
//!   pipe             the caller's standard input; back comes the other's
//!   take             bytes to be thrown away; back comes how many there were, as 8 bytes
//!   send <number>    so many bytes are to come back
//! ```
//!
//! A stream that is not served is reset, and stopped, with [`UNSERVED`]. Datagrams are sent back.

use std::fmt;
use std::str::FromStr;

use towpath::{CloseReason, OpenError, ReadError, RecvStream, SendStream, WriteError};

use super::shown_reason;

/// The code of a stream that is not served.
pub(crate) const UNSERVED: u32 = 1;
/// No request is longer.
const MAX_REQUEST_BYTES: usize = 32;
/// What nobody ever receives: the caller stops the stream when it has enough.
pub(crate) const UNBOUNDED: u64 = u64::MAX;

/// What a stream is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Request {
    /// Join it with standard input and output.
    Pipe,
    /// Throw away what comes, and say how much it was.
    Take,
    /// Send so many bytes.
    Send(u64),
}

/// The first line of a stream is no request.
#[derive(Debug)]
pub(crate) struct BadRequest;

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipe => f.write_str("pipe"),
            Self::Take => f.write_str("take"),
            Self::Send(bytes) => write!(f, "send {bytes}"),
        }
    }
}

impl FromStr for Request {
    type Err = BadRequest;

    fn from_str(line: &str) -> Result<Self, BadRequest> {
        match line.split_once(' ') {
            None if line == "pipe" => Ok(Self::Pipe),
            None if line == "take" => Ok(Self::Take),
            Some(("send", bytes)) => bytes.parse().map(Self::Send).map_err(|_| BadRequest),
            None | Some(_) => Err(BadRequest),
        }
    }
}

impl Request {
    /// Begins a stream with it.
    pub(crate) async fn write(self, stream: &mut SendStream) -> Result<(), WriteError> {
        stream.write_all(format!("{self}\n").as_bytes()).await
    }

    /// Reads it from a stream.
    pub(crate) async fn read(stream: &mut RecvStream) -> Result<Self, BadRequest> {
        let (mut line, mut next) = (Vec::new(), [0]);
        while line.len() < MAX_REQUEST_BYTES {
            stream.read_exact(&mut next).await.map_err(|_| BadRequest)?;
            if next == *b"\n" {
                let line = std::str::from_utf8(&line).map_err(|_| BadRequest)?;
                return line.parse();
            }
            line.extend_from_slice(&next);
        }
        Err(BadRequest)
    }
}

/// Why a stream came to nothing.
#[derive(Debug)]
pub(crate) enum StreamFailure {
    /// The peer does not serve such streams.
    Unserved,
    /// The connection is over.
    Closed(CloseReason),
    /// Something else, on either end.
    Other(String),
}

impl StreamFailure {
    /// What it means to people, of a stream with this request.
    pub(crate) fn explain(&self, request: Request) -> String {
        match (self, request) {
            (Self::Unserved, Request::Pipe) => {
                "the peer joins no streams: it listens with --serve".to_owned()
            }
            (Self::Unserved, Request::Take | Request::Send(_)) => {
                "the peer does not measure throughput: it listens without --serve".to_owned()
            }
            (Self::Closed(reason), _) => shown_reason(reason),
            (Self::Other(text), _) => text.clone(),
        }
    }
}

impl From<ReadError> for StreamFailure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Closed(reason) => Self::Closed(reason),
            ReadError::Reset(code) if code == u64::from(UNSERVED) => Self::Unserved,
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<WriteError> for StreamFailure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Closed(reason) => Self::Closed(reason),
            WriteError::Stopped(code) if code == u64::from(UNSERVED) => Self::Unserved,
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<OpenError> for StreamFailure {
    fn from(OpenError::Closed(reason): OpenError) -> Self {
        Self::Closed(reason)
    }
}

impl From<CloseReason> for StreamFailure {
    fn from(reason: CloseReason) -> Self {
        Self::Closed(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_they_were_written() {
        for request in [
            Request::Pipe,
            Request::Take,
            Request::Send(0),
            Request::Send(UNBOUNDED),
        ] {
            let line = request.to_string();
            assert!(line.len() < MAX_REQUEST_BYTES);
            assert_eq!(line.parse::<Request>().unwrap(), request);
        }
        for line in [
            "", "pipe ", "take 1", "send", "send -1", "send 1 2", "GET /",
        ] {
            assert!(line.parse::<Request>().is_err(), "{line}");
        }
    }
}
