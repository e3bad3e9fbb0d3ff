//! What an application asks of a node.

use std::net::SocketAddr;

use bytes::Bytes;

use super::path::{Hop, Path};
use super::{ConnectionHandle, Peer, State};
use crate::Timestamp;
use crate::identity::{PeerAddr, PeerId};
use crate::machine::{ListenerId, Socket};
use crate::quic::{
    CloseReason, ConnectionStats, DatagramError, Direction, Endpoint, Read, ReadError,
    SecurityLevel, StreamError, StreamId, WriteError,
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
    /// The node is being shut down.
    #[error("the node is being shut down")]
    ShuttingDown,
    /// QUIC takes no further connection.
    #[error("no further connection can be begun")]
    Exhausted,
}

impl Peer {
    /// Calls a peer, at all of its addresses at once, whether there is a connection or not; such a call
    /// is not shared, not tried again and not kept alive ([`get`](Self::get) is). A [`Connected`](super::Notice::Connected) or a
    /// [`Closed`](super::Notice::Closed) follows.
    pub fn connect(
        &mut self,
        now: Timestamp,
        to: &PeerAddr,
    ) -> Result<ConnectionHandle, ConnectError> {
        let index = self.call(now, to)?;
        self.attend(index, None);
        Ok(self.handle_of(index))
    }

    /// Begins a call. The connection has to be attended.
    pub(super) fn call(&mut self, now: Timestamp, to: &PeerAddr) -> Result<u32, ConnectError> {
        self.now = now;
        if !self.pooling.is_running() {
            return Err(ConnectError::ShuttingDown);
        }
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
        self.watch_call(index, to.id());
        self.begin_metering(now, index, to.id());
        Ok(index)
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

    /// What the keys of an open connection rest upon.
    pub fn security(&self, connection: ConnectionHandle) -> Option<SecurityLevel> {
        self.endpoint.security(self.opened(connection)?)
    }

    /// Where the datagrams of an open connection go.
    pub fn remote(&self, connection: ConnectionHandle) -> Option<SocketAddr> {
        let index = self.opened(connection)?;
        let link = self.links.get(index as usize)?.link.as_ref()?;
        Some(link.path.hops().0.destination)
    }

    /// How an open connection fares.
    pub fn stats(&self, connection: ConnectionHandle) -> Option<ConnectionStats> {
        let path = self.remote(connection)?;
        self.endpoint.stats(connection.index, path)
    }

    /// Opens a stream; `None` until the peer allows one more.
    pub fn open(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        direction: Direction,
    ) -> Result<Option<StreamId>, StreamError> {
        self.on(now, connection, StreamError::NotConnected, |quic, index| {
            quic.open(index, direction)
        })
    }

    /// The next stream that the peer has opened.
    pub fn accept(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        direction: Direction,
    ) -> Result<Option<StreamId>, StreamError> {
        self.on(now, connection, StreamError::NotConnected, |quic, index| {
            quic.accept_stream(index, direction)
        })
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
        let written = self.on(now, connection, WriteError::NotConnected, |quic, index| {
            quic.write(index, stream, bytes)
        })??;
        if written > 0 {
            self.record_sent(now, connection, written, 0);
        }
        Ok(written)
    }

    /// Says that nothing more is written to a stream.
    pub fn finish(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        stream: StreamId,
    ) -> Result<(), WriteError> {
        self.on(now, connection, WriteError::NotConnected, |quic, index| {
            quic.finish(index, stream)
        })??;
        self.record_sent(now, connection, 0, 1);
        Ok(())
    }

    /// Gives a stream up; what has not arrived may never do.
    pub fn reset(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        stream: StreamId,
        code: u32,
    ) -> Result<(), StreamError> {
        self.on(now, connection, StreamError::NotConnected, |quic, index| {
            quic.reset(index, stream, code)
        })?
    }

    /// Reads the next bytes of a stream. Where limits do not allow it now it is
    /// [`Blocked`](Read::Blocked) until it is [readable](super::Notice::Readable).
    pub fn read(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        stream: StreamId,
        max_bytes: usize,
    ) -> Result<Read, ReadError> {
        let read = self.read_within_limits(now, connection, stream, max_bytes)?;
        match &read {
            Read::Data(bytes) => self.record_received(now, connection, bytes.len(), 0),
            Read::Finished => self.record_received(now, connection, 0, 1),
            Read::Blocked => {}
        }
        Ok(read)
    }

    /// Asks the peer to send no more of a stream.
    pub fn stop(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        stream: StreamId,
        code: u32,
    ) -> Result<(), StreamError> {
        self.on(now, connection, StreamError::NotConnected, |quic, index| {
            quic.stop(index, stream, code)
        })?
    }

    /// Sends a datagram, which may be lost or overtaken.
    pub fn send_datagram(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        bytes: &[u8],
    ) -> Result<(), DatagramError> {
        self.on(
            now,
            connection,
            DatagramError::NotConnected,
            |quic, index| quic.send_datagram(index, bytes),
        )??;
        self.record_sent(now, connection, bytes.len(), 1);
        Ok(())
    }

    /// The next datagram that has come.
    pub fn receive_datagram(&mut self, connection: ConnectionHandle) -> Option<Bytes> {
        let index = self.opened(connection)?;
        let datagram = self.receive_within_limits(index)?;
        self.record_received(self.now, connection, datagram.len(), 1);
        Some(datagram)
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

    /// Does something on a connection that stands, and sees to what follows from it.
    pub(super) fn on<T, E>(
        &mut self,
        now: Timestamp,
        connection: ConnectionHandle,
        not_connected: E,
        act: impl FnOnce(&mut Endpoint, u32) -> T,
    ) -> Result<T, E> {
        let index = self.opened(connection).ok_or(not_connected)?;
        let outcome = act(&mut self.endpoint, index);
        self.touched(now, index);
        Ok(outcome)
    }

    /// The index of a connection that stands.
    pub(super) fn opened(&self, connection: ConnectionHandle) -> Option<u32> {
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
