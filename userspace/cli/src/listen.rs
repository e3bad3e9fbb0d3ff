//! `towpath listen`: a node that is called.

use std::io::{self, Write as _};
use std::pin::pin;
use std::sync::Arc;
use std::thread;

use async_channel::{Receiver, Sender};
use clap::Args;
use futures::executor::block_on;
use futures::future::{Either, select};
use towpath::{Connection, Event, Events, PeerId, RecvStream, SendStream};

use crate::exit::{self, Failure};
use crate::node::{
    self, Interrupt, NodeOptions, Pipe, Request, UNSERVED, code, join, shown_reason, shown_security,
};

/// Bytes that are sent at a time.
const CHUNK_BYTES: usize = 64 * 1024;

#[derive(Args)]
#[command(after_help = "\
Prints the address that others call this node by, on standard error where standard output is the
peer's. The first stream of `towpath connect` is joined with standard input and output; when both
have ended, so does the command. It exits 0 where everything was delivered in both directions. A
terminal as standard input ends with the other end's.

With --serve it answers `towpath perf` of any number of peers until Ctrl-C. `towpath ping` is
answered in both cases. Peers are told when it ends.

Examples:
  towpath listen > received.tar
  towpath listen --listen 0.0.0.0:4433 --listen '[::]:4433' --serve
  towpath listen --from 52LETTERS < /dev/null | tar x")]
pub(crate) struct Arguments {
    /// Answer `towpath perf` of many peers, until Ctrl-C
    #[arg(short, long)]
    serve: bool,
    /// A peer that may call; several times for several. Without it, everybody may
    #[arg(short, long, value_name = "PEER-ID")]
    from: Vec<PeerId>,
    #[command(flatten)]
    node: NodeOptions,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { serve, from, node } = arguments;
    let interrupt = Interrupt::catch()?;
    let node = node.spawn()?;
    let events = node.events();
    let (pipes, joined) = async_channel::bounded(1);
    let service = Arc::new(Service {
        pipes: (!serve).then_some(pipes),
        from,
    });
    node.serve(move |connection| Arc::clone(&service).answer(connection));
    let address = node
        .peer_addr()
        .map_err(|error| Failure::Runtime(error.to_string()))?;
    let outcome = if serve {
        thread::spawn(move || tell(events));
        exit::print(format!("{address}\n").as_bytes()).map(|()| block_on(interrupt.wait()))
    } else {
        say(&address);
        take_one(&joined, &interrupt)
    };
    node::close(&node);
    outcome
}

/// Joins the first stream.
fn take_one(joined: &Receiver<Pipe>, interrupt: &Interrupt) -> Result<(), Failure> {
    let first = block_on(async {
        match select(pin!(joined.recv()), pin!(interrupt.wait())).await {
            Either::Left((pipe, _)) => pipe.ok(),
            Either::Right(_) => None,
        }
    });
    let Some(pipe) = first else {
        return Err(Failure::Runtime("interrupted before anybody called".into()));
    };
    // From here on others are told that this node is busy.
    joined.close();
    let connection = &pipe.connection;
    say(&format!(
        "joined with {} ({})",
        connection.peer(),
        shown_security(connection.security())
    ));
    join(pipe, interrupt)
}

/// What a node does for who calls it.
struct Service {
    /// Where streams go that are to be joined.
    pipes: Option<Sender<Pipe>>,
    /// Who may call; empty for everybody.
    from: Vec<PeerId>,
}

impl Service {
    async fn answer(self: Arc<Self>, connection: Connection) {
        if !self.from.is_empty() && !self.from.contains(&connection.peer()) {
            connection.close(code::NOT_ALLOWED, "this peer may not call");
            return;
        }
        connection.spawn(echo(connection.clone()));
        while let Ok((send, receive)) = connection.accept_bi().await {
            let (service, own) = (Arc::clone(&self), connection.clone());
            connection.spawn(async move { service.stream(own, send, receive).await });
        }
    }

    async fn stream(&self, connection: Connection, mut send: SendStream, mut receive: RecvStream) {
        let request = Request::read(&mut receive).await;
        match (request, &self.pipes) {
            (Ok(Request::Pipe), Some(pipes)) => {
                let pipe = Pipe {
                    connection: connection.clone(),
                    send,
                    receive,
                };
                if pipes.try_send(pipe).is_err() {
                    connection.close(code::BUSY, "busy with another peer");
                }
            }
            (Ok(Request::Take), None) => take(send, receive).await,
            (Ok(Request::Send(bytes)), None) => send_bytes(&mut send, bytes).await,
            (Ok(Request::Pipe), None)
            | (Ok(Request::Take | Request::Send(_)), Some(_))
            | (Err(_), _) => {
                send.reset(UNSERVED);
                receive.stop(UNSERVED);
            }
        }
    }
}

/// Sends datagrams back.
async fn echo(connection: Connection) {
    while let Ok(datagram) = connection.receive_datagram().await {
        // One that does not fit back is lost, as datagrams are.
        let _ = connection.send_datagram(datagram).await;
    }
}

/// Reads a stream to its end, and says how long it was.
async fn take(mut send: SendStream, mut receive: RecvStream) {
    let mut bytes: u64 = 0;
    loop {
        match receive.read().await {
            Ok(Some(chunk)) => bytes += chunk.len() as u64,
            Ok(None) => break,
            Err(_) => return,
        }
    }
    if send.write_all(&bytes.to_be_bytes()).await.is_ok() {
        // Who has gone does not need it.
        let _ = send.finish().await;
    }
}

/// Sends so many bytes, or as many as are wanted.
async fn send_bytes(send: &mut SendStream, mut left: u64) {
    let chunk = vec![0; CHUNK_BYTES];
    while left > 0 {
        let most = left.min(chunk.len() as u64) as usize;
        if send.write_all(&chunk[..most]).await.is_err() {
            return;
        }
        left -= most as u64;
    }
    let _ = send.finish().await;
}

/// Says who comes and goes.
fn tell(mut events: Events) {
    while let Some(event) = block_on(events.next()) {
        match event {
            Event::Connected { peer, security, .. } => {
                say(&format!("{peer} has come ({})", shown_security(security)));
            }
            Event::Closed { peer, reason } => {
                say(&format!("{peer} has gone: {}", shown_reason(&reason)));
            }
            _ => {}
        }
    }
}

fn say(what: &dyn std::fmt::Display) {
    // Nobody is left to be told when standard error is closed.
    let _ = writeln!(io::stderr(), "{what}");
}
