//! A shard of a node: its [`Peer`], and who waits for what on its connections.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::channel::oneshot;
use towpath_proto::bandwidth::Priority;
use towpath_proto::health::HealthStatus;
use towpath_proto::identity::{PeerAddr, PeerId};
use towpath_proto::peer::{ConnectionHandle, Notice, Peer};
use towpath_proto::pool::{Got, PoolEvent, Ticket};
use towpath_proto::quic::{
    CloseReason, DatagramError, Direction, Read, ReadError, StreamError, StreamId, WriteError,
};
use towpath_proto::{Machine as _, Timestamp};

use crate::connection::{Connection, Link, Parts};
use crate::error::ConnectError;
use crate::events::Event;
use crate::gate::{Gate, poll_here, register};
use crate::shared::Shared;

/// Bytes that one answer to a reader on another thread has at most.
const MAX_READ_BYTES: usize = 256 * 1024;
/// The code of a connection that nobody accepted in time.
const NOT_ACCEPTED: u32 = 1;

/// A task of a shard.
pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a handle was for that exists no more, or asks for without an answer.
#[derive(Debug)]
pub(crate) enum Release {
    /// The last handle of a connection.
    Connection(ConnectionHandle),
    /// The sending half of a stream; `true` where it was given up before its end.
    Sending(ConnectionHandle, StreamId, bool),
    /// The receiving half of a stream; `true` where it was given up before its end.
    Receiving(ConnectionHandle, StreamId, bool),
    /// Reset a stream with a code.
    Reset(ConnectionHandle, StreamId, u32),
    /// Stop a stream with a code.
    Stop(ConnectionHandle, StreamId, u32),
    /// An answer that nobody waits for any more.
    Get(Ticket),
    /// Close the connection.
    Close(ConnectionHandle, u32, Bytes),
}

/// A shard's machine and the handles of its connections.
pub(crate) struct Core {
    pub(crate) peer: Peer,
    now: Timestamp,
    gate: Arc<Gate>,
    shared: Arc<Shared>,
    connections: HashMap<ConnectionHandle, Entry>,
    /// Who waits for a connection.
    asking: HashMap<Ticket, Asker>,
    spawned: Vec<Task>,
    /// Who is told when nothing is left of any connection.
    closing: Vec<oneshot::Sender<()>>,
    is_shut_down: bool,
}

type Asker = oneshot::Sender<Result<Connection, ConnectError>>;

/// A connection, and who waits for something on it.
struct Entry {
    parts: Arc<Parts>,
    /// The handle that there is, where there is one.
    link: Weak<Link>,
    streams: HashMap<StreamId, Waiting>,
    /// For streams to be opened, by direction.
    openers: [Vec<Waker>; 2],
    /// For room for datagrams.
    datagram_senders: Vec<Waker>,
}

/// Who waits on a stream, and what is known of its end.
struct Waiting {
    /// Handles of it: one for each half.
    halves: u8,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// For the stream to be taken or refused by the peer.
    end: Option<Waker>,
    ended: Option<Ended>,
}

/// What was read at once, and how the stream ended behind it, if it did.
pub(crate) type ReadAll = (Vec<Bytes>, Option<Result<(), ReadError>>);

/// How the sending half of a stream has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The peer has received all of it.
    Received,
    /// The peer wanted no more of it, for the reason of this code.
    Stopped(u64),
}

impl Core {
    pub(crate) fn new(peer: Peer, gate: Arc<Gate>, shared: Arc<Shared>) -> Self {
        Self {
            peer,
            now: Timestamp::ZERO,
            gate,
            shared,
            connections: HashMap::default(),
            asking: HashMap::default(),
            spawned: Vec::new(),
            closing: Vec::new(),
            is_shut_down: false,
        }
    }

    pub(crate) fn tick(&mut self, now: Timestamp) {
        self.now = now;
    }

    pub(crate) fn spawn(&mut self, task: Task) {
        self.spawned.push(task);
    }

    pub(crate) fn has_spawned(&self) -> bool {
        !self.spawned.is_empty()
    }

    pub(crate) fn take_spawned(&mut self) -> Vec<Task> {
        std::mem::take(&mut self.spawned)
    }

    /// Does something for a handle on another thread, and tells it what came of it.
    pub(crate) fn begin<T: Send + 'static>(
        &mut self,
        mut op: impl FnMut(&mut Self, &mut Context<'_>) -> Poll<T> + Send + 'static,
        answer: oneshot::Sender<T>,
    ) {
        // Most can be done at once, and need no task.
        if let Poll::Ready(done) = op(self, &mut Context::from_waker(Waker::noop())) {
            // Who asked may have gone.
            let _ = answer.send(done);
            return;
        }
        let gate = Arc::clone(&self.gate);
        let mut answer = Some(answer);
        self.spawned.push(Box::pin(std::future::poll_fn(move |cx| {
            let asker_is_gone = answer
                .as_mut()
                .is_none_or(|answer| answer.poll_canceled(cx).is_ready());
            if asker_is_gone {
                return Poll::Ready(());
            }
            poll_here(&gate, |core| op(core, cx)).map(|done| {
                if let Some(answer) = answer.take() {
                    let _ = answer.send(done);
                }
            })
        })));
    }

    /// Asks the pool for a connection with a peer.
    pub(crate) fn connect(&mut self, to: &PeerAddr, ticket: Ticket, answer: Asker) {
        // The pool may know a connection of which only a notice tells so far.
        self.follow_notices();
        let outcome = match self.peer.get(self.now, to, ticket) {
            Ok(Got::Waiting) => {
                self.asking.insert(ticket, answer);
                return;
            }
            Ok(Got::Live(connection)) => self.hand_out(connection),
            Err(error) => Err(error.into()),
        };
        // Who asked may have gone; the connection is dropped then.
        let _ = answer.send(outcome);
    }

    /// A handle of a connection, for a reference that the pool has given.
    fn hand_out(&mut self, handle: ConnectionHandle) -> Result<Connection, ConnectError> {
        let gate = Arc::clone(&self.gate);
        let Some(entry) = self.connections.get_mut(&handle) else {
            self.peer.release(self.now, handle);
            return Err(ConnectError::NodeClosed);
        };
        if let Some(link) = entry.link.upgrade() {
            // All handles together have one reference.
            self.peer.release(self.now, handle);
            return Ok(Connection::new(link));
        }
        let link = Link::new(&gate, &entry.parts);
        entry.link = Arc::downgrade(&link);
        self.shared.directory.add(entry.parts.peer(), &link);
        Ok(Connection::new(link))
    }

    pub(crate) fn poll_open(
        &mut self,
        connection: ConnectionHandle,
        direction: Direction,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamId, StreamError>> {
        match self.peer.open(self.now, connection, direction) {
            Ok(Some(stream)) => {
                self.add_stream(connection, stream, direction);
                Poll::Ready(Ok(stream))
            }
            Ok(None) => match self.connections.get_mut(&connection) {
                Some(entry) => {
                    register(&mut entry.openers[at(direction)], cx.waker());
                    Poll::Pending
                }
                None => Poll::Ready(Err(StreamError::NotConnected)),
            },
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Writes some of `bytes`.
    pub(crate) fn poll_write(
        &mut self,
        connection: ConnectionHandle,
        stream: StreamId,
        bytes: &[u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, WriteError>> {
        match self.peer.write(self.now, connection, stream, bytes) {
            Ok(0) if !bytes.is_empty() => match self.waiting(connection, stream) {
                Some(waiting) => {
                    waiting.writer = Some(cx.waker().clone());
                    Poll::Pending
                }
                None => Poll::Ready(Err(WriteError::NotConnected)),
            },
            other => Poll::Ready(other),
        }
    }

    /// Reads the next bytes, as many as lie there up to a bound: `None` at the stream's end.
    pub(crate) fn poll_read(
        &mut self,
        connection: ConnectionHandle,
        stream: StreamId,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, ReadError>> {
        match self
            .peer
            .read(self.now, connection, stream, MAX_READ_BYTES)?
        {
            Read::Data(bytes) => Poll::Ready(Ok(Some(bytes))),
            Read::Finished => Poll::Ready(Ok(None)),
            Read::Blocked => match self.waiting(connection, stream) {
                Some(waiting) => {
                    waiting.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
                None => Poll::Ready(Err(ReadError::NotConnected)),
            },
        }
    }

    /// Reads all that lies there, up to a bound.
    pub(crate) fn poll_read_all(
        &mut self,
        connection: ConnectionHandle,
        stream: StreamId,
        cx: &mut Context<'_>,
    ) -> Poll<ReadAll> {
        let mut chunks = Vec::new();
        let mut left = MAX_READ_BYTES;
        while left > 0 {
            match self.poll_read(connection, stream, cx) {
                Poll::Ready(Ok(Some(bytes))) => {
                    left = left.saturating_sub(bytes.len());
                    chunks.push(bytes);
                }
                // An end is told once: what comes before it goes with it.
                Poll::Ready(Ok(None)) => return Poll::Ready((chunks, Some(Ok(())))),
                Poll::Ready(Err(error)) => return Poll::Ready((chunks, Some(Err(error)))),
                Poll::Pending if chunks.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready((chunks, None))
    }

    pub(crate) fn finish(
        &mut self,
        connection: ConnectionHandle,
        stream: StreamId,
    ) -> Result<(), WriteError> {
        self.peer.finish(self.now, connection, stream)
    }

    pub(crate) fn set_priority(
        &mut self,
        connection: ConnectionHandle,
        stream: StreamId,
        priority: Priority,
    ) -> Result<(), StreamError> {
        self.peer
            .set_stream_priority(self.now, connection, stream, priority)
    }

    fn reset(&mut self, connection: ConnectionHandle, stream: StreamId, code: u32) {
        // It may be over, which is as good.
        let _ = self.peer.reset(self.now, connection, stream, code);
    }

    fn stop(&mut self, connection: ConnectionHandle, stream: StreamId, code: u32) {
        let _ = self.peer.stop(self.now, connection, stream, code);
    }

    pub(crate) fn poll_ended(
        &mut self,
        connection: ConnectionHandle,
        stream: StreamId,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Ended, WriteError>> {
        let Some(waiting) = self.waiting(connection, stream) else {
            return Poll::Ready(Err(WriteError::NotConnected));
        };
        if let Some(ended) = waiting.ended {
            return Poll::Ready(Ok(ended));
        }
        waiting.end = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn poll_send_datagram(
        &mut self,
        connection: ConnectionHandle,
        bytes: &[u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), DatagramError>> {
        match self.peer.send_datagram(self.now, connection, bytes) {
            Err(DatagramError::Blocked) => match self.connections.get_mut(&connection) {
                Some(entry) => {
                    register(&mut entry.datagram_senders, cx.waker());
                    Poll::Pending
                }
                None => Poll::Ready(Err(DatagramError::NotConnected)),
            },
            other => Poll::Ready(other),
        }
    }

    /// Lets go of what a handle was for.
    pub(crate) fn release(&mut self, what: Release) {
        match what {
            Release::Connection(connection) => self.release_connection(connection),
            Release::Get(ticket) => {
                // Where it was answered meanwhile, the answer is dropped with the connection in it.
                self.asking.remove(&ticket);
                self.peer.cancel(self.now, ticket);
            }
            Release::Sending(connection, stream, early) => {
                if early {
                    self.reset(connection, stream, 0);
                }
                self.drop_half(connection, stream);
            }
            Release::Receiving(connection, stream, early) => {
                if early {
                    self.stop(connection, stream, 0);
                }
                self.drop_half(connection, stream);
            }
            Release::Reset(connection, stream, code) => self.reset(connection, stream, code),
            Release::Stop(connection, stream, code) => self.stop(connection, stream, code),
            Release::Close(connection, code, reason) => {
                self.peer.close(self.now, connection, code, &reason);
            }
        }
    }

    /// Closes all connections; `done` is told when nothing is left of them.
    pub(crate) fn close(&mut self, done: oneshot::Sender<()>) {
        // A connection that was closed before with a reason of its own is not closed with this one.
        while let Some(what) = self.gate.next_released() {
            self.release(what);
        }
        self.closing.push(done);
        self.peer.shutdown(self.now);
        if self.is_shut_down {
            self.tell_closed();
        }
    }

    fn tell_closed(&mut self) {
        for done in self.closing.drain(..) {
            // Who closes the node may have gone.
            let _ = done.send(());
        }
    }

    /// The shard is over, and with it every connection.
    pub(crate) fn end(&mut self) {
        for (_, entry) in self.connections.drain() {
            entry.parts.close(CloseReason::Here);
            entry.wake_everybody();
        }
        for (_, answer) in self.asking.drain() {
            let _ = answer.send(Err(ConnectError::NodeClosed));
        }
        self.tell_closed();
    }

    /// Tells who waits what has happened. Returns whether anything has.
    pub(crate) fn follow_notices(&mut self) -> bool {
        let mut any = false;
        while let Some(notice) = self.peer.poll_command() {
            any = true;
            self.follow(notice);
        }
        any
    }

    fn follow(&mut self, notice: Notice) {
        match notice {
            Notice::Connected {
                connection,
                peer,
                security,
                incoming,
            } => {
                let parts = Parts::new(connection, peer, security, incoming);
                self.connections.insert(connection, Entry::new(parts));
                self.shared.tell(&Event::Connected {
                    peer,
                    security,
                    incoming,
                });
                if incoming {
                    self.give(connection);
                }
            }
            Notice::Closed { connection, reason } => self.closed(connection, reason),
            Notice::Opened {
                connection,
                direction,
            } => self.accept(connection, direction),
            Notice::Available {
                connection,
                direction,
            } => {
                if let Some(entry) = self.connections.get_mut(&connection) {
                    wake_all(&mut entry.openers[at(direction)]);
                }
            }
            Notice::Readable { connection, stream } => {
                self.wake(connection, stream, |waiting| waiting.reader.take());
            }
            Notice::Writable { connection, stream } => {
                self.wake(connection, stream, |waiting| waiting.writer.take());
            }
            Notice::Finished { connection, stream } => {
                self.end_stream(connection, stream, Ended::Received);
            }
            Notice::Stopped {
                connection,
                stream,
                code,
            } => {
                self.wake(connection, stream, |waiting| waiting.writer.take());
                self.end_stream(connection, stream, Ended::Stopped(code));
            }
            Notice::Datagram { connection } => self.take_datagrams(connection),
            // What is known of a way is asked for when it is needed.
            Notice::PathChanged { .. } => {}
            Notice::DatagramsUnblocked { connection } => {
                if let Some(entry) = self.connections.get_mut(&connection) {
                    wake_all(&mut entry.datagram_senders);
                }
            }
            Notice::Got { ticket, result } => {
                let outcome = match result {
                    Ok(connection) => self.hand_out(connection),
                    Err(error) => Err(error.into()),
                };
                if let Some(answer) = self.asking.remove(&ticket) {
                    let _ = answer.send(outcome);
                }
            }
            Notice::Pool(event) => self.tell_of_pool(event),
            Notice::Breaker(change) => self.shared.tell(&Event::Breaker(change)),
            Notice::ShutDown => {
                self.is_shut_down = true;
                self.tell_closed();
            }
            Notice::HealthChanged { peer, from, to } => {
                if to == HealthStatus::Unhealthy {
                    self.drain(peer);
                }
                self.shared.tell(&Event::HealthChanged { peer, from, to });
            }
        }
    }

    /// A peer does not answer any more: who has a connection with it keeps it, who asks from now on
    /// waits for a new one.
    fn drain(&mut self, peer: PeerId) {
        for (&connection, entry) in &self.connections {
            if entry.parts.peer() == peer {
                self.shared.directory.remove(peer, connection);
                self.peer.set_unhealthy(self.now, connection);
            }
        }
    }

    /// Gives a connection that a peer has made to whoever accepts.
    fn give(&mut self, handle: ConnectionHandle) {
        if !self.peer.retain(self.now, handle) {
            return;
        }
        let Ok(connection) = self.hand_out(handle) else {
            return;
        };
        match self.shared.serve(&connection) {
            Some(task) => self.spawned.push(task),
            None => {
                if self.shared.accepts.try_send(connection).is_err() {
                    self.shared.counters.not_accepted.add(1);
                    let now = self.now;
                    self.peer.close(now, handle, NOT_ACCEPTED, b"too many wait");
                }
            }
        }
    }

    /// The last handle is gone. One that this node has made stays in the pool for a while; one that a
    /// peer has made has nobody who would serve it.
    fn release_connection(&mut self, connection: ConnectionHandle) {
        let unserved = self
            .connections
            .get(&connection)
            .is_some_and(|entry| entry.parts.is_incoming() && entry.link.strong_count() == 0);
        self.peer.release(self.now, connection);
        if unserved {
            self.peer.close(self.now, connection, 0, b"");
        }
    }

    fn closed(&mut self, connection: ConnectionHandle, reason: CloseReason) {
        if let Some(entry) = self.connections.remove(&connection) {
            let peer = entry.parts.peer();
            entry.parts.close(reason.clone());
            self.shared.directory.remove(peer, connection);
            entry.wake_everybody();
            self.shared.tell(&Event::Closed { peer, reason });
        }
    }

    /// Tells what the pool did that the connections' own events do not say.
    fn tell_of_pool(&self, event: PoolEvent<ConnectionHandle>) {
        let event = match event {
            PoolEvent::Retry {
                peer,
                attempt,
                after,
                error,
            } => Event::Retry {
                peer,
                attempt,
                after,
                error,
            },
            PoolEvent::Failed {
                peer,
                attempts,
                error,
            } => Event::Failed {
                peer,
                attempts,
                error,
            },
            PoolEvent::Full { peer } => Event::Full { peer },
            PoolEvent::Opened { .. } | PoolEvent::Reused { .. } | PoolEvent::Closed { .. } => {
                return;
            }
        };
        self.shared.tell(&event);
    }

    /// Takes the streams that the peer has opened.
    fn accept(&mut self, connection: ConnectionHandle, direction: Direction) {
        while let Ok(Some(stream)) = self.peer.accept(self.now, connection, direction) {
            self.add_stream(connection, stream, direction);
            if let Some(entry) = self.connections.get(&connection) {
                entry.parts.accepted(direction, stream);
            }
        }
    }

    fn take_datagrams(&mut self, connection: ConnectionHandle) {
        while let Some(datagram) = self.peer.receive_datagram(connection) {
            let Some(entry) = self.connections.get(&connection) else {
                return;
            };
            if !entry.parts.datagram(datagram) {
                self.shared.counters.dropped_datagrams.add(1);
            }
        }
    }

    fn add_stream(&mut self, connection: ConnectionHandle, stream: StreamId, direction: Direction) {
        if let Some(entry) = self.connections.get_mut(&connection) {
            entry.streams.insert(stream, Waiting::new(direction));
        }
    }

    /// A half of a stream has no handle any more.
    fn drop_half(&mut self, connection: ConnectionHandle, stream: StreamId) {
        let Some(entry) = self.connections.get_mut(&connection) else {
            return;
        };
        if let Some(waiting) = entry.streams.get_mut(&stream) {
            waiting.halves = waiting.halves.saturating_sub(1);
            if waiting.halves == 0 {
                entry.streams.remove(&stream);
            }
        }
    }

    fn end_stream(&mut self, connection: ConnectionHandle, stream: StreamId, ended: Ended) {
        self.wake(connection, stream, |waiting| {
            waiting.ended = Some(ended);
            waiting.end.take()
        });
    }

    fn wake(
        &mut self,
        connection: ConnectionHandle,
        stream: StreamId,
        whom: impl FnOnce(&mut Waiting) -> Option<Waker>,
    ) {
        if let Some(waker) = self.waiting(connection, stream).and_then(whom) {
            waker.wake();
        }
    }

    fn waiting(&mut self, connection: ConnectionHandle, stream: StreamId) -> Option<&mut Waiting> {
        self.connections
            .get_mut(&connection)?
            .streams
            .get_mut(&stream)
    }
}

impl Entry {
    fn new(parts: Arc<Parts>) -> Self {
        Self {
            parts,
            link: Weak::new(),
            streams: HashMap::default(),
            openers: [Vec::new(), Vec::new()],
            datagram_senders: Vec::new(),
        }
    }

    fn wake_everybody(mut self) {
        for waiting in self.streams.into_values() {
            let wakers = [waiting.reader, waiting.writer, waiting.end];
            wakers.into_iter().flatten().for_each(Waker::wake);
        }
        self.openers.iter_mut().for_each(wake_all);
        wake_all(&mut self.datagram_senders);
    }
}

impl Waiting {
    fn new(direction: Direction) -> Self {
        Self {
            halves: match direction {
                Direction::Bidirectional => 2,
                Direction::Unidirectional => 1,
            },
            reader: None,
            writer: None,
            end: None,
            ended: None,
        }
    }
}

fn at(direction: Direction) -> usize {
    match direction {
        Direction::Bidirectional => 0,
        Direction::Unidirectional => 1,
    }
}

fn wake_all(wakers: &mut Vec<Waker>) {
    wakers.drain(..).for_each(Waker::wake);
}
