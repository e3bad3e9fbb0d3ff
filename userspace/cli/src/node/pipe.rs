//! A stream joined with standard input and output, so that both ends know whether all was delivered.
//!
//! That a peer's QUIC has received everything says nothing about its program, and a connection that is
//! closed takes with it what the program has not read. So each end says on a stream of its own how many
//! bytes it has written to its standard output, once that is all of them; who knows this from the other
//! end, and has told it, closes the connection with [`code::DELIVERED`].

use std::convert::Infallible;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::pin::pin;
use std::thread;

use async_channel::{Receiver, Sender};
use bytes::Bytes;
use futures::channel::oneshot;
use futures::executor::block_on;
use futures::future::{Either, select, try_join};
use towpath::{CloseReason, Connection, RecvStream, SendStream};

use super::{Interrupt, Request, StreamFailure, code};
use crate::exit::Failure;

/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks that wait on their way to or from the network.
const MAX_CHUNKS: usize = 4;

/// A stream that is to be joined, behind its request.
pub(crate) struct Pipe {
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
}

/// Joins a stream with standard input and output until both have ended and everything was delivered.
/// The connection is closed afterwards, whatever comes of it.
pub(crate) fn join(pipe: Pipe, interrupt: &Interrupt) -> Result<(), Failure> {
    let Pipe {
        connection,
        send,
        receive,
    } = pipe;
    let (ended, other_end) = async_channel::bounded(1);
    let outcome = block_on(async {
        let input = send_input(&connection, send, other_end);
        let output = receive_output(&connection, receive, ended);
        let both = pin!(try_join(input, output));
        match select(both, pin!(interrupt.wait())).await {
            Either::Left((outcome, _)) => Some(outcome),
            Either::Right(_) => None,
        }
    });
    match outcome {
        Some(Ok(_)) => {
            connection.close(code::DELIVERED, "all was delivered");
            Ok(())
        }
        Some(Err(failure)) => {
            connection.close(code::FAILED, "not all could be delivered");
            let why = failure.explain(Request::Pipe);
            Err(Failure::Runtime(format!("not all was delivered: {why}")))
        }
        None => {
            connection.close(code::INTERRUPTED, "interrupted");
            Err(Failure::Runtime(
                "interrupted before all was delivered".into(),
            ))
        }
    }
}

/// Sends standard input to its end, and waits until the peer has written all of it.
async fn send_input(
    connection: &Connection,
    mut send: SendStream,
    other_end: Receiver<Infallible>,
) -> Result<(), StreamFailure> {
    let input = read_input();
    // Who sits at a terminal has nothing more to say to one who has left.
    let stays = !io::stdin().is_terminal();
    let mut sent = 0;
    loop {
        let chunk = {
            let left = pin!(async {
                match other_end.recv().await {
                    Err(_) if stays => std::future::pending().await,
                    Err(_) => {}
                    Ok(never) => match never {},
                }
            });
            match select(pin!(input.recv()), left).await {
                Either::Left((Ok(chunk), _)) => chunk,
                Either::Left((Err(_), _)) | Either::Right(_) => break,
            }
        };
        let chunk = chunk.map_err(|error| {
            StreamFailure::Other(format!("cannot read standard input: {error}"))
        })?;
        send.write_all(&chunk).await?;
        sent += chunk.len() as u64;
    }
    send.finish().await?;
    match delivered(connection).await {
        Ok(received) if received == sent => Ok(()),
        Ok(received) => Err(StreamFailure::Other(format!(
            "the peer has written {received} of {sent} bytes"
        ))),
        // The peer closes like this when it has all, and has said so.
        Err(StreamFailure::Closed(CloseReason::Peer { code, .. }))
            if code == u64::from(code::DELIVERED) =>
        {
            Ok(())
        }
        Err(failure) => Err(failure),
    }
}

/// How much the peer has written.
async fn delivered(connection: &Connection) -> Result<u64, StreamFailure> {
    let mut said = [0; 8];
    connection.accept_uni().await?.read_exact(&mut said).await?;
    Ok(u64::from_be_bytes(said))
}

/// Writes what comes to standard output, to its end, and tells the peer.
async fn receive_output(
    connection: &Connection,
    mut receive: RecvStream,
    ended: Sender<Infallible>,
) -> Result<(), StreamFailure> {
    let (output, written) = write_output();
    while let Some(chunk) = receive.read().await? {
        if output.send(chunk).await.is_err() {
            break;
        }
    }
    drop(output);
    let written = written
        .await
        .unwrap_or_else(|_| Err(io::Error::other("its thread has ended")))
        .map_err(|error| StreamFailure::Other(format!("cannot write standard output: {error}")))?;
    ended.close();
    let mut confirm = connection.open_uni().await?;
    confirm.write_all(&written.to_be_bytes()).await?;
    confirm.finish().await?;
    // For the peer's sake: everything that it has sent is here, whatever comes of it.
    let _ = confirm.ended().await;
    Ok(())
}

/// Standard input, read by a thread that ends with the process.
fn read_input() -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = async_channel::bounded(MAX_CHUNKS);
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let read = match io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(bytes) => Ok(buffer[..bytes].to_vec()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = read.is_err();
            if sender.send_blocking(read).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

/// Standard output, written by a thread; it says how much it was once its queue is closed.
fn write_output() -> (Sender<Bytes>, oneshot::Receiver<io::Result<u64>>) {
    let (sender, receiver) = async_channel::bounded::<Bytes>(MAX_CHUNKS);
    let (done, written) = oneshot::channel();
    thread::spawn(move || {
        let mut output = io::stdout().lock();
        let mut write = || {
            let mut bytes = 0;
            while let Ok(chunk) = receiver.recv_blocking() {
                output.write_all(&chunk)?;
                bytes += chunk.len() as u64;
                if receiver.is_empty() {
                    output.flush()?;
                }
            }
            Ok(bytes)
        };
        // Where nobody waits any more, the process ends.
        let _ = done.send(write());
    });
    (sender, written)
}
