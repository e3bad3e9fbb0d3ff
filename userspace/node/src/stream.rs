//! Streams, as an application holds them: the two halves, with the traits of `futures` and, with the
//! feature `tokio`, of tokio.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures::channel::oneshot;
use towpath_proto::bandwidth::Priority;
use towpath_proto::quic::{self, StreamId};

use crate::connection::Link;
use crate::core::{Ended, ReadAll, Release};
use crate::error::{ReadError, WriteError};
use crate::gate::{Gone, op, poll_op};

/// Bytes that one call to another thread takes along at most.
const MAX_WRITE_BYTES: usize = 256 * 1024;

type Answer<T, E> = Option<oneshot::Receiver<Result<T, E>>>;

/// The half of a stream that this node sends on. Dropping it before [`finish`](Self::finish) resets the
/// stream, so that the peer never takes a part for the whole.
pub struct SendStream {
    link: Arc<Link>,
    stream: StreamId,
    /// A write on another thread, whose bytes were said to be written.
    writing: Answer<(), quic::WriteError>,
    ending: Answer<Ended, quic::WriteError>,
    /// Whether nothing more is to be written: finished or reset.
    over: bool,
}

/// The half of a stream that the peer sends on. Dropping it before its end tells the peer to stop.
pub struct RecvStream {
    link: Arc<Link>,
    stream: StreamId,
    reading: Option<oneshot::Receiver<ReadAll>>,
    /// What was read and not yet asked for, the last first.
    chunks: Vec<Bytes>,
    /// How it ended, behind `chunks`.
    end: Option<Result<(), quic::ReadError>>,
}

impl SendStream {
    pub(crate) fn new(link: Arc<Link>, stream: StreamId) -> Self {
        Self {
            link,
            stream,
            writing: None,
            ending: None,
            over: false,
        }
    }

    /// The stream's number on its connection (RFC 9000 §2.1).
    pub fn id(&self) -> StreamId {
        self.stream
    }

    /// Writes some of `bytes`, and says how many; waits while the peer or the network takes none.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<usize, WriteError> {
        poll_fn(|cx| self.poll_write_some(cx, bytes)).await
    }

    /// Writes all of `bytes`.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let written = self.write(bytes).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Says that nothing more is written. What was written is still delivered;
    /// [`ended`](Self::ended) waits for that.
    pub async fn finish(&mut self) -> Result<(), WriteError> {
        poll_fn(|cx| self.poll_finish(cx)).await
    }

    /// Waits until the peer has received all of a finished stream, or says that it wants no more.
    pub async fn ended(&mut self) -> Result<Ended, WriteError> {
        let (handle, stream) = (self.link.handle(), self.stream);
        let ended = poll_fn(|cx| {
            poll_op(self.link.gate(), &mut self.ending, cx, move |core, cx| {
                core.poll_ended(handle, stream, cx)
            })
        });
        let ended = ended.await;
        self.outcome(ended)
    }

    /// Which streams of the connection go first; without it, a stream is
    /// [`Interactive`](Priority::Interactive).
    pub async fn set_priority(&self, priority: Priority) -> Result<(), WriteError> {
        let (handle, stream) = (self.link.handle(), self.stream);
        let set = op(self.link.gate(), move |core, _| {
            Poll::Ready(core.set_priority(handle, stream, priority))
        });
        match set.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(quic::StreamError::NoStream)) => Err(WriteError::Finished),
            Ok(Err(quic::StreamError::NotConnected)) | Err(Gone) => {
                Err(WriteError::Closed(self.link.reason()))
            }
        }
    }

    /// Gives the stream up: what has not arrived may never do. The peer is told `code`.
    pub fn reset(mut self, code: u32) {
        self.over = true;
        let reset = Release::Reset(self.link.handle(), self.stream, code);
        self.link.gate().release(reset);
    }

    fn poll_write_some(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, WriteError>> {
        ready!(self.poll_written(cx))?;
        if self.over {
            return Poll::Ready(Err(WriteError::Finished));
        }
        let (handle, stream) = (self.link.handle(), self.stream);
        let gate = self.link.gate();
        if let Ok(written) = gate.here(|core| core.poll_write(handle, stream, bytes, cx)) {
            let written = ready!(written);
            return Poll::Ready(self.outcome(Ok(written)));
        }
        let mut left = Bytes::copy_from_slice(&bytes[..bytes.len().min(MAX_WRITE_BYTES)]);
        let taken = left.len();
        let begun = poll_op(gate, &mut self.writing, cx, move |core, cx| {
            while !left.is_empty() {
                let written = ready!(core.poll_write(handle, stream, &left, cx))?;
                left.advance(written);
            }
            Poll::Ready(Ok(()))
        });
        match begun {
            // It was not even sent: the shard's mailbox is full, and the caller is woken.
            Poll::Pending if self.writing.is_none() => Poll::Pending,
            Poll::Pending | Poll::Ready(Ok(Ok(()))) => Poll::Ready(Ok(taken)),
            Poll::Ready(other) => Poll::Ready(self.outcome(other).map(|()| taken)),
        }
    }

    /// Waits for a write on another thread.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WriteError>> {
        let Some(writing) = &mut self.writing else {
            return Poll::Ready(Ok(()));
        };
        let written = ready!(Pin::new(writing).poll(cx));
        self.writing = None;
        Poll::Ready(self.outcome(written.map_err(|_| Gone)))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WriteError>> {
        ready!(self.poll_written(cx))?;
        if self.over {
            return Poll::Ready(Err(WriteError::Finished));
        }
        let (handle, stream) = (self.link.handle(), self.stream);
        let finished = poll_op(self.link.gate(), &mut self.writing, cx, move |core, _| {
            Poll::Ready(core.finish(handle, stream))
        });
        // Once the shard has been asked to, it is not to be reset by a drop.
        self.over = finished.is_ready() || self.writing.is_some();
        match finished {
            // Whether it could be is told by whoever waits for the end.
            Poll::Pending if self.over => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
            Poll::Ready(outcome) => Poll::Ready(self.outcome(outcome)),
        }
    }

    fn outcome<T>(
        &self,
        outcome: Result<Result<T, quic::WriteError>, Gone>,
    ) -> Result<T, WriteError> {
        outcome
            .unwrap_or(Err(quic::WriteError::NotConnected))
            .map_err(|error| match error {
                quic::WriteError::NotConnected => WriteError::Closed(self.link.reason()),
                quic::WriteError::NoStream => WriteError::Finished,
                quic::WriteError::Stopped(code) => WriteError::Stopped(code),
            })
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        let sending = Release::Sending(self.link.handle(), self.stream, !self.over);
        self.link.gate().release(sending);
    }
}

impl RecvStream {
    pub(crate) fn new(link: Arc<Link>, stream: StreamId) -> Self {
        Self {
            link,
            stream,
            reading: None,
            chunks: Vec::new(),
            end: None,
        }
    }

    /// The stream's number on its connection (RFC 9000 §2.1).
    pub fn id(&self) -> StreamId {
        self.stream
    }

    /// The next bytes, as they came; `None` at the end. Nothing is lost where the future is dropped.
    pub async fn read(&mut self) -> Result<Option<Bytes>, ReadError> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// Fills `buffer`.
    pub async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ReadError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let left = &mut buffer[filled..];
            let read = poll_fn(|cx| self.poll_fill(cx, left)).await?;
            if read == 0 {
                return Err(ReadError::TooShort(buffer.len() - filled));
            }
            filled += read;
        }
        Ok(())
    }

    /// Everything up to the end, which is at most `max_bytes` away.
    pub async fn read_to_end(&mut self, max_bytes: usize) -> Result<Vec<u8>, ReadError> {
        let mut all = Vec::new();
        while let Some(bytes) = self.read().await? {
            if all.len() + bytes.len() > max_bytes {
                return Err(ReadError::TooLong(max_bytes));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    /// Tells the peer that no more of the stream is wanted, for the reason of `code`.
    pub fn stop(mut self, code: u32) {
        self.end = Some(Err(quic::ReadError::NoStream));
        let stop = Release::Stop(self.link.handle(), self.stream, code);
        self.link.gate().release(stop);
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadError>> {
        loop {
            if let Some(chunk) = self.chunks.pop() {
                return Poll::Ready(Ok(Some(chunk)));
            }
            match &self.end {
                Some(Ok(())) => return Poll::Ready(Ok(None)),
                Some(Err(error)) => return Poll::Ready(Err(self.error(*error))),
                None => ready!(self.poll_more(cx)),
            }
        }
    }

    /// Waits until there are chunks, or an end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (handle, stream) = (self.link.handle(), self.stream);
        let gate = self.link.gate();
        if self.reading.is_none()
            && let Ok(read) = gate.here(|core| core.poll_read(handle, stream, cx))
        {
            match ready!(read) {
                Ok(Some(chunk)) => self.chunks.push(chunk),
                Ok(None) => self.end = Some(Ok(())),
                Err(error) => self.end = Some(Err(error)),
            }
            return Poll::Ready(());
        }
        let read = poll_op(gate, &mut self.reading, cx, move |core, cx| {
            core.poll_read_all(handle, stream, cx)
        });
        match ready!(read) {
            Ok((chunks, end)) => {
                self.chunks = chunks;
                self.chunks.reverse();
                self.end = end;
            }
            Err(Gone) => self.end = Some(Err(quic::ReadError::NotConnected)),
        }
        Poll::Ready(())
    }

    /// Reads into `buffer`; 0 bytes at the end, or where there is no room.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<Result<usize, ReadError>> {
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let Some(mut chunk) = ready!(self.poll_chunk(cx))? else {
            return Poll::Ready(Ok(0));
        };
        let bytes = chunk.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&chunk[..bytes]);
        chunk.advance(bytes);
        if !chunk.is_empty() {
            self.chunks.push(chunk);
        }
        Poll::Ready(Ok(bytes))
    }

    fn error(&self, error: quic::ReadError) -> ReadError {
        match error {
            quic::ReadError::NotConnected => ReadError::Closed(self.link.reason()),
            quic::ReadError::NoStream => ReadError::Stopped,
            quic::ReadError::Reset(code) => ReadError::Reset(code),
        }
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        let early = self.end.is_none();
        let receiving = Release::Receiving(self.link.handle(), self.stream, early);
        self.link.gate().release(receiving);
    }
}

impl futures::AsyncWrite for SendStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_write_some(cx, bytes)
            .map_err(Into::into)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_written(cx).map_err(Into::into)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_finish(cx).map_err(Into::into)
    }
}

impl futures::AsyncRead for RecvStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_fill(cx, buffer).map_err(Into::into)
    }
}

#[cfg(feature = "tokio")]
impl tokio::io::AsyncWrite for SendStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_write_some(cx, bytes)
            .map_err(Into::into)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_written(cx).map_err(Into::into)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_finish(cx).map_err(Into::into)
    }
}

#[cfg(feature = "tokio")]
impl tokio::io::AsyncRead for RecvStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(self.get_mut().poll_fill(cx, buffer.initialize_unfilled()))?;
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for SendStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendStream")
            .field("stream", &self.stream)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RecvStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvStream")
            .field("stream", &self.stream)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}
