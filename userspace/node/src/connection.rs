//! Connections, as an application holds them.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use async_channel::{Receiver, Sender};
use bytes::Bytes;
use towpath_proto::identity::PeerId;
use towpath_proto::peer::ConnectionHandle;
use towpath_proto::pool::ConnectionMetadata;
use towpath_proto::quic::{
    CloseReason, ConnectionStats, DatagramError, Direction, SecurityLevel, StreamId,
};

use crate::core::Release;
use crate::error::{OpenError, SendDatagramError};
use crate::gate::{Gate, Order, op};
use crate::stream::{RecvStream, SendStream};

/// Datagrams of a connection that wait for the application.
const MAX_DATAGRAMS: usize = 1024;

/// A connection to a peer: streams of both kinds and datagrams on one encrypted connection.
///
/// It is a handle: clones are the same connection. Everything on it can be done from any thread and
/// under any executor.
#[derive(Clone)]
pub struct Connection(Arc<Link>);

/// What all handles of a connection share: a reference of the pool, given back with the last of them.
pub(crate) struct Link {
    gate: Arc<Gate>,
    parts: Arc<Parts>,
}

/// A connection as long as it stands, whether anybody has it or not.
pub(crate) struct Parts {
    handle: ConnectionHandle,
    peer: PeerId,
    security: SecurityLevel,
    incoming: bool,
    bidirectional: Queue<StreamId>,
    unidirectional: Queue<StreamId>,
    datagrams: Queue<Bytes>,
    /// Closed once the connection is over.
    over: Queue<Infallible>,
    reason: OnceLock<CloseReason>,
}

/// What waits for the application.
type Queue<T> = (Sender<T>, Receiver<T>);

impl Link {
    pub(crate) fn new(gate: &Arc<Gate>, parts: &Arc<Parts>) -> Arc<Self> {
        Arc::new(Self {
            gate: Arc::clone(gate),
            parts: Arc::clone(parts),
        })
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    pub(crate) fn handle(&self) -> ConnectionHandle {
        self.parts.handle
    }

    /// Why the connection is over; the node's end where nothing else is known.
    pub(crate) fn reason(&self) -> CloseReason {
        let reason = self.parts.reason.get();
        reason.cloned().unwrap_or(CloseReason::Here)
    }

    /// Whether the connection stands.
    pub(crate) fn stands(&self) -> bool {
        self.parts.reason.get().is_none()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.gate.release(Release::Connection(self.parts.handle));
    }
}

impl Parts {
    pub(crate) fn new(
        handle: ConnectionHandle,
        peer: PeerId,
        security: SecurityLevel,
        incoming: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            handle,
            peer,
            security,
            incoming,
            // QUIC bounds how many streams a peer may have open, and with it what can wait here.
            bidirectional: async_channel::unbounded(),
            unidirectional: async_channel::unbounded(),
            // Bounded by who fills it: a queue that is made with a bound holds memory for all of it.
            datagrams: async_channel::unbounded(),
            over: async_channel::bounded(1),
            reason: OnceLock::new(),
        })
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.peer
    }

    pub(crate) fn is_incoming(&self) -> bool {
        self.incoming
    }

    /// The connection is over: tells everybody who waits.
    pub(crate) fn close(&self, reason: CloseReason) {
        // It is over once.
        let _ = self.reason.set(reason);
        self.bidirectional.0.close();
        self.unidirectional.0.close();
        self.datagrams.0.close();
        self.over.0.close();
    }

    pub(crate) fn accepted(&self, direction: Direction, stream: StreamId) {
        let (queue, _) = match direction {
            Direction::Bidirectional => &self.bidirectional,
            Direction::Unidirectional => &self.unidirectional,
        };
        // A connection that is over has no streams.
        let _ = queue.try_send(stream);
    }

    /// Whether there was room.
    pub(crate) fn datagram(&self, datagram: Bytes) -> bool {
        let (queue, _) = &self.datagrams;
        queue.len() < MAX_DATAGRAMS && queue.try_send(datagram).is_ok()
    }
}

impl Connection {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self(link)
    }

    /// Who is at the other end, proved by its key.
    pub fn peer(&self) -> PeerId {
        self.0.parts.peer
    }

    /// What the connection's keys rest upon.
    pub fn security(&self) -> SecurityLevel {
        self.0.parts.security
    }

    /// Whether the peer called this node.
    pub fn is_incoming(&self) -> bool {
        self.0.parts.incoming
    }

    /// Opens a stream in both directions; waits while the peer allows no further one. The peer learns
    /// of it by the first bytes.
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), OpenError> {
        let link = Arc::clone(&self.0);
        let opened = op(&self.0.gate, move |core, cx| {
            let opened = core.poll_open(link.handle(), Direction::Bidirectional, cx);
            // Dropped on the way where nobody waits any more, and then reset.
            opened.map_ok(|stream| both(&link, stream))
        });
        self.opened(opened.await)
    }

    /// Opens a stream on which this node alone sends.
    pub async fn open_uni(&self) -> Result<SendStream, OpenError> {
        let link = Arc::clone(&self.0);
        let opened = op(&self.0.gate, move |core, cx| {
            let opened = core.poll_open(link.handle(), Direction::Unidirectional, cx);
            opened.map_ok(|stream| SendStream::new(Arc::clone(&link), stream))
        });
        self.opened(opened.await)
    }

    /// The next stream in both directions that the peer has opened. Nothing is lost where the future is
    /// dropped.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), CloseReason> {
        match self.0.parts.bidirectional.1.recv().await {
            Ok(stream) => Ok(both(&self.0, stream)),
            Err(_) => Err(self.0.reason()),
        }
    }

    /// The next stream that the peer has opened to send alone. Nothing is lost where the future is
    /// dropped.
    pub async fn accept_uni(&self) -> Result<RecvStream, CloseReason> {
        match self.0.parts.unidirectional.1.recv().await {
            Ok(stream) => Ok(RecvStream::new(Arc::clone(&self.0), stream)),
            Err(_) => Err(self.0.reason()),
        }
    }

    /// Sends a datagram, which may be lost or overtaken; waits while too many wait to be sent.
    pub async fn send_datagram(&self, bytes: impl Into<Bytes>) -> Result<(), SendDatagramError> {
        let (bytes, handle) = (bytes.into(), self.0.handle());
        let sent = op(&self.0.gate, move |core, cx| {
            core.poll_send_datagram(handle, &bytes, cx)
        });
        match sent.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(DatagramError::NotConnected)) | Err(_) => {
                Err(SendDatagramError::Closed(self.0.reason()))
            }
            Ok(Err(error)) => Err(SendDatagramError::Refused(error)),
        }
    }

    /// The next datagram that has come. Nothing is lost where the future is dropped.
    pub async fn receive_datagram(&self) -> Result<Bytes, CloseReason> {
        let datagram = self.0.parts.datagrams.1.recv().await;
        datagram.map_err(|_| self.0.reason())
    }

    /// How it fares: round trips, losses, the path and what went over it. `None` once it is over.
    pub async fn stats(&self) -> Option<ConnectionStats> {
        let handle = self.0.handle();
        let stats = op(&self.0.gate, move |core, _| {
            Poll::Ready(core.peer.stats(handle))
        });
        stats.await.ok().flatten()
    }

    /// What the pool knows of it: its age, who has it, how good it is. `None` once it is over.
    pub async fn metadata(&self) -> Option<ConnectionMetadata> {
        let handle = self.0.handle();
        let metadata = op(&self.0.gate, move |core, _| {
            Poll::Ready(core.peer.metadata(handle))
        });
        metadata.await.ok().flatten()
    }

    /// Runs a future on the connection's own thread, where everything on the connection is a plain
    /// call. It must not block, and ends where the node does.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let mut order = Order::Run(Box::new(move |core| core.spawn(Box::pin(future))));
        // Where the node has ended, so has the future, without having begun.
        while let Ok(Err(full)) = self.0.gate.send(order) {
            order = full;
            std::thread::yield_now();
        }
    }

    /// Closes the connection; what has not arrived may never do. The peer is told `code` and `reason`.
    pub fn close(&self, code: u32, reason: impl Into<Bytes>) {
        let close = Release::Close(self.0.handle(), code, reason.into());
        self.0.gate.release(close);
    }

    /// Waits until the connection is over, and says why.
    pub async fn closed(&self) -> CloseReason {
        // Nothing is ever sent: it ends when the shard closes it.
        let _ = self.0.parts.over.1.recv().await;
        self.0.reason()
    }

    /// Why the connection is over; `None` while it is not.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.0.parts.reason.get().cloned()
    }

    fn opened<T>(
        &self,
        outcome: Result<Result<T, towpath_proto::quic::StreamError>, crate::gate::Gone>,
    ) -> Result<T, OpenError> {
        match outcome {
            Ok(Ok(opened)) => Ok(opened),
            Ok(Err(_)) | Err(_) => Err(OpenError::Closed(self.0.reason())),
        }
    }
}

impl PartialEq for Connection {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Connection {}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.0.parts.peer)
            .field("security", &self.0.parts.security)
            .field("incoming", &self.0.parts.incoming)
            .field("over", &self.0.parts.reason.get())
            .finish_non_exhaustive()
    }
}

fn both(link: &Arc<Link>, stream: StreamId) -> (SendStream, RecvStream) {
    (
        SendStream::new(Arc::clone(link), stream),
        RecvStream::new(Arc::clone(link), stream),
    )
}
