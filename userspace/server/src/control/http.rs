//! HTTP/1 for a router on any stream listener, with a limit on everything a client could hold.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Connections of one listener at a time; others wait in the backlog.
const MAX_CONNECTIONS: usize = 32;
/// How long a client may take to send a request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may stay.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of a request's header.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// Pause after a failed accept, which a lack of descriptors repeats at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener of streams.
pub(crate) trait Listener {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    async fn accept(&self) -> io::Result<Self::Stream>;

    /// Why this client is not served, if so.
    fn refusal(&self, stream: &Self::Stream) -> Option<&'static str>;
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        Ok(Self::accept(self).await?.0)
    }

    fn refusal(&self, _: &Self::Stream) -> Option<&'static str> {
        None
    }
}

/// A Unix socket that serves root and the processes of one user and one group.
pub(crate) struct Guarded {
    pub(crate) listener: UnixListener,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Guarded {
    fn admits(&self, uid: u32, gid: u32) -> bool {
        is_admitted((self.uid, self.gid), (uid, gid))
    }
}

/// Whether a process of another user and group may use the socket of this user and group.
fn is_admitted((own_uid, own_gid): (u32, u32), (uid, gid): (u32, u32)) -> bool {
    uid == 0 || uid == own_uid || gid == own_gid
}

impl Listener for Guarded {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        Ok(self.listener.accept().await?.0)
    }

    fn refusal(&self, stream: &Self::Stream) -> Option<&'static str> {
        match stream.peer_cred() {
            Ok(peer) if self.admits(peer.uid(), peer.gid()) => None,
            Ok(_) => Some("this socket serves root, and the server's own user and group\n"),
            Err(_) => Some("the system does not say who is connecting\n"),
        }
    }
}

/// Serves until dropped.
pub(crate) async fn serve(listener: impl Listener, router: Router) -> Infallible {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = Arc::clone(&permits)
            .acquire_owned()
            .await
            .expect("it is never closed");
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let router = match listener.refusal(&stream) {
            Some(reason) => {
                let forbidden = (axum::http::StatusCode::FORBIDDEN, reason);
                Router::new().fallback(async move || forbidden)
            }
            None => router.clone(),
        };
        tokio::spawn(async move {
            // A client that is too slow or breaks HTTP harms nobody but itself.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection(stream, router)).await;
            drop(permit);
        });
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
) -> hyper::Result<()> {
    let service = TowerToHyperService::new(router);
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_the_servers_user_and_its_group_are_admitted() {
        let own = (1000, 100);
        for (peer, admitted) in [
            ((0, 0), true),
            ((1000, 7), true),
            ((7, 100), true),
            ((7, 7), false),
            ((100, 1000), false),
            // A group of root's does not make a user root.
            ((7, 0), false),
        ] {
            assert_eq!(is_admitted(own, peer), admitted, "{peer:?}");
        }
    }
}
