//! Sends back what it gets: a server and its client.
//!
//! ```text
//! cargo run -p towpath --example echo -- serve           prints the server's address, and serves until Ctrl-C
//! cargo run -p towpath --example echo -- ADDRESS         sends standard input there, prints what comes back
//!
//! echo hello | cargo run -p towpath --example echo -- …@192.0.2.1:40123
//! ```
//!
//! Needs no privilege and no runtime: the server's futures run on the node's own threads, the client's
//! in `block_on`.

use std::error::Error;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;
use std::thread;

use futures::executor::block_on;
use towpath::{Connection, Ended, Node, PeerAddr, RecvStream, SendStream};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.as_slice() {
        [word] if word == "serve" => serve(),
        [address] => call(address),
        _ => Err("say `serve`, or the address that `echo serve` has printed".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn Error>> {
    let node = Node::builder().spawn()?;
    node.serve(|connection| async move {
        eprintln!("{} is here", connection.peer());
        while let Ok((send, receive)) = connection.accept_bi().await {
            // Streams do not wait for each other.
            connection.spawn(echo(send, receive));
        }
    });
    println!("{}", node.peer_addr()?);
    loop {
        thread::park();
    }
}

/// Sends all of a stream back. Where it comes to nothing, both halves are dropped early, which resets
/// them: the other end never takes a part for the whole.
async fn echo(mut send: SendStream, mut receive: RecvStream) {
    while let Ok(Some(bytes)) = receive.read().await {
        if send.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = send.finish().await;
}

fn call(address: &str) -> Result<(), Box<dyn Error>> {
    let address: PeerAddr = address
        .parse()
        .map_err(|error| format!("{address:?} is no peer's address: {error}"))?;
    let node = Node::builder().spawn()?;
    let connection = block_on(node.connect(&address))
        .map_err(|error| format!("no connection to {address}: {error}"))?;
    eprintln!("connected, security {:?}", connection.security());
    let bytes = through(&connection)?;
    eprintln!("{bytes} bytes came back");
    block_on(node.close());
    Ok(())
}

/// Sends standard input on a stream and prints what comes back; says how much that was.
fn through(connection: &Connection) -> Result<usize, Box<dyn Error>> {
    let (send, mut receive) = block_on(connection.open_bi())?;
    // Sending waits while nobody reads, so it has a thread of its own.
    let sender = thread::spawn(move || send_input(send));
    let mut output = io::stdout().lock();
    let mut bytes = 0;
    while let Some(chunk) = block_on(receive.read())? {
        output.write_all(&chunk)?;
        bytes += chunk.len();
    }
    output.flush()?;
    sender.join().map_err(|_| "the sender has panicked")??;
    Ok(bytes)
}

fn send_input(mut send: SendStream) -> Result<(), String> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let bytes = io::stdin()
            .read(&mut buffer)
            .map_err(|error| format!("cannot read standard input: {error}"))?;
        let sent = match bytes {
            0 => block_on(send.finish()),
            bytes => block_on(send.write_all(&buffer[..bytes])),
        };
        sent.map_err(|error| error.to_string())?;
        if bytes == 0 {
            break;
        }
    }
    match block_on(send.ended()) {
        Ok(Ended::Received) => Ok(()),
        Ok(Ended::Stopped(code)) => Err(format!("the server wants no more, code {code}")),
        Err(error) => Err(error.to_string()),
    }
}
