//! What an application asks of a node.

use bytes::Bytes;

use super::path::{Hop, Path};
use super::{ConnectionHandle, Peer, State};
use crate::Timestamp;
use crate::identity::{PeerAddr, PeerId};
use crate::machine::{ListenerId, Socket};
use crate::quic::{
    CloseReason, DatagramError, Direction, Read, ReadError, StreamError, StreamId, WriteError,
};

/// Why a connection cannot even be begun; the caller's fault, or ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The peer is this node.
    #[error("a node does not connect to itself")]
    Myself,
    /// The peer has no address of a family that this node has.
    #[error("none of the peer's {0} addresses can be reached from this node's")]
    NoAddress(usize),
    /// There are too many connections.
    #[error("there are {0} connections already, and no more are allowed")]
    Full(usize),
    /// QUIC takes no further connection.
    #[error("no further connection can be begun")]
    Exhausted,
}

impl Peer {
    /// Calls a peer, at all of its addresses at once. A [`Connected`](super::Notice::Connected) or a
    /// [`Closed`](super::Notice::Closed) follows.
    pub fn connect(
        &mut self,
        now: Timestamp,
        to: &PeerAddr,
    ) -> Result<ConnectionHandle, ConnectError> {
        self.now = now;
        if to.id() == self.id {
            return Err(ConnectError::Myself);
        }
        if self.connections() >= self.config.limits.connections {
            return Err(ConnectError::Full(self.connections()));
        }
        let mut hops = self.hops_to(to).into_iter();
        let first = hops
            .next()
            .ok_or(ConnectError::NoAddress(to.addresses().len()))?;
        let made_up = self.made_up.of_peer(to.id());
        let index = self
            .endpoint
            .connect(now, to.id(), made_up)
            .map_err(|_| ConnectError::Exhausted)?;
        self.insert(index, Path::Racing(first, hops.collect()), false);
        self.attend(index, None);
        Ok(self.handle_of(index))
    }

    /// Who is at the other end of an open connection.
    pub fn peer(&self, connection: ConnectionHandle) -> Option<PeerId> {
        let slot = self.links.get(connection.index as usize)?;
        if connection != self.handle_of(connection.index) {
            return None;
        }
        match slot.link.as_ref()?.state {
            State::Connected(peer) => Some(peer),
            State::Handshaking | State::Closed => None,
        }
    }

    /// Opens a stream; `None` until the peer allows one more.
    pub fn open(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        direction: Direction,
    ) -> Result<Option<StreamId>, StreamError> {
        let index = self.opened(connection).ok_or(StreamError::NotConnected)?;
        let stream = self.endpoint.open(index, direction);
        self.touched(now, index);
        Ok(stream)
    }

    /// The next stream that the peer has opened.
    pub fn accept(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        direction: Direction,
    ) -> Result<Option<StreamId>, StreamError> {
        let index = self.opened(connection).ok_or(StreamError::NotConnected)?;
        let stream = self.endpoint.accept_stream(index, direction);
        self.touched(now, index);
        Ok(stream)
    }

    /// Writes to a stream as much as it takes: 0 bytes until it is
    /// [writable](super::Notice::Writable).
    pub fn write(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        stream: StreamId,
        bytes: &[u8],
    ) -> Result<usize, WriteError> {
        let index = self.opened(connection).ok_or(WriteError::NotConnected)?;
        let written = self.endpoint.write(index, stream, bytes);
        self.touched(now, index);
        written
    }

    /// Says that nothing more is written to a stream.
    pub fn finish(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        stream: StreamId,
    ) -> Result<(), WriteError> {
        let index = self.opened(connection).ok_or(WriteError::NotConnected)?;
        let finished = self.endpoint.finish(index, stream);
        self.touched(now, index);
        finished
    }

    /// Gives a stream up; what has not arrived may never do.
    pub fn reset(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        stream: StreamId,
        code: u32,
    ) -> Result<(), StreamError> {
        let index = self.opened(connection).ok_or(StreamError::NotConnected)?;
        let reset = self.endpoint.reset(index, stream, code);
        self.touched(now, index);
        reset
    }

    /// Reads the next bytes of a stream.
    pub fn read(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        stream: StreamId,
        max_bytes: usize,
    ) -> Result<Read, ReadError> {
        let index = self.opened(connection).ok_or(ReadError::NotConnected)?;
        let read = self.endpoint.read(index, stream, max_bytes);
        self.touched(now, index);
        read
    }

    /// Asks the peer to send no more of a stream.
    pub fn stop(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        stream: StreamId,
        code: u32,
    ) -> Result<(), StreamError> {
        let index = self.opened(connection).ok_or(StreamError::NotConnected)?;
        let stopped = self.endpoint.stop(index, stream, code);
        self.touched(now, index);
        stopped
    }

    /// Sends a datagram, which may be lost or overtaken.
    pub fn send_datagram(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        bytes: &[u8],
    ) -> Result<(), DatagramError> {
        let index = self.opened(connection).ok_or(DatagramError::NotConnected)?;
        let sent = self.endpoint.send_datagram(index, bytes);
        self.touched(now, index);
        sent
    }

    /// The next datagram that has come.
    pub fn receive_datagram(&mut self, connection: ConnectionHandle) -> Option<Bytes> {
        let index = self.opened(connection)?;
        self.endpoint.receive_datagram(index)
    }

    /// Closes a connection, or gives up the attempt to make one. What has not arrived may never do.
    /// False where it was over before.
    pub fn close(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        code: u32,
        reason: &[u8],
    ) -> bool {
        let index = connection.index;
        let live = connection == self.handle_of(index)
            && self
                .link(index)
                .is_some_and(|link| link.state != State::Closed);
        if live {
            self.endpoint.close(now, index, code, reason);
            self.close_link(index, CloseReason::Here);
            self.touched(now, index);
        }
        live
    }

    /// The index of a connection that stands.
    fn opened(&self, connection: ConnectionHandle) -> Option<u32> {
        self.peer(connection).map(|_| connection.index)
    }

    fn touched(&mut self, now: Timestamp, index: u32) {
        self.now = now;
        self.attend(index, None);
    }

    /// The ways to those of a peer's addresses that have the family of one of our sockets.
    fn hops_to(&self, to: &PeerAddr) -> Vec<Hop> {
        let from = |destination: &std::net::SocketAddr| {
            let same = |own: &std::net::SocketAddr| own.is_ipv4() == destination.is_ipv4();
            let listener = self.config.listeners.iter().position(same)?;
            let listener = u16::try_from(listener).ok()?;
            Some(Hop {
                socket: Socket::Listener(ListenerId(listener)),
                source: None,
                destination: *destination,
            })
        };
        to.addresses().iter().filter_map(from).collect()
    }
}
