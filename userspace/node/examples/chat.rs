//! Lines of text between any number of peers.
//!
//! ```text
//! cargo run -p towpath --example chat                        the first: prints its address
//! cargo run -p towpath --example chat -- ADDRESS [ADDRESS…]  further ones: call those who are there already
//! ```
//!
//! What is typed goes to everybody this peer is connected with; what they type is printed behind the
//! first letters of their ids. Ctrl-D leaves.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, BufRead as _};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::executor::block_on;
use towpath::{Connection, Node, PeerAddr, PeerId};

/// No line is longer; one who sends more is not listened to.
const MAX_LINE_BYTES: usize = 10_000;

/// Whom this peer talks with. Two who call each other at the same time have two connections, and use the
/// newest.
type Room = Arc<Mutex<HashMap<PeerId, Connection>>>;

fn main() -> ExitCode {
    match chat() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn chat() -> Result<(), Box<dyn Error>> {
    let peers = std::env::args().skip(1).map(|text| {
        let peer: Result<PeerAddr, _> = text.parse();
        peer.map_err(|error| format!("{text:?} is no peer's address: {error}"))
    });
    let peers = peers.collect::<Result<Vec<_>, _>>()?;
    // A peer that says nothing is still there: something is sent now and then.
    let node = Node::builder()
        .configure(|config| config.quic.keep_alive = Some(config.quic.idle_timeout / 3))
        .spawn()?;
    eprintln!("others call this peer by:\n{}", node.peer_addr()?);
    let room = Room::default();
    let callers = Arc::clone(&room);
    node.serve(move |connection| listen(connection, Arc::clone(&callers)));
    for peer in &peers {
        match block_on(node.connect(peer)) {
            Ok(connection) => {
                let own = connection.clone();
                own.spawn(listen(connection, Arc::clone(&room)));
            }
            Err(error) => eprintln!("no connection to {}: {error}", short(peer.id())),
        }
    }
    for line in io::stdin().lock().lines() {
        let line = line?;
        let everybody: Vec<_> = lock(&room).values().cloned().collect();
        for connection in everybody {
            // Who has left is told of where it is listened to.
            let _ = block_on(say(&connection, line.as_bytes()));
        }
    }
    block_on(node.close());
    Ok(())
}

/// Sends a line, as a stream of its own: streams are accepted in the order in which they were opened.
async fn say(connection: &Connection, line: &[u8]) -> Result<(), Box<dyn Error>> {
    let mut stream = connection.open_uni().await?;
    stream.write_all(line).await?;
    Ok(stream.finish().await?)
}

/// Prints what a peer says until it leaves.
async fn listen(connection: Connection, room: Room) {
    let peer = connection.peer();
    lock(&room).insert(peer, connection.clone());
    eprintln!("* {} is here", short(peer));
    while let Ok(mut stream) = connection.accept_uni().await {
        let Ok(line) = stream.read_to_end(MAX_LINE_BYTES).await else {
            break;
        };
        // Nothing that a terminal would obey.
        let line: String = String::from_utf8_lossy(&line)
            .chars()
            .filter(|character| !character.is_control())
            .collect();
        println!("{}: {line}", short(peer));
    }
    connection.close(0, "");
    eprintln!("* {} has gone: {}", short(peer), connection.closed().await);
    let mut room = lock(&room);
    if room.get(&peer) == Some(&connection) {
        room.remove(&peer);
    }
}

fn lock(room: &Room) -> MutexGuard<'_, HashMap<PeerId, Connection>> {
    room.lock().unwrap_or_else(PoisonError::into_inner)
}

fn short(peer: PeerId) -> String {
    peer.to_string().chars().take(8).collect()
}
