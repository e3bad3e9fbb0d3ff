//! Sends a file to another machine, with a progress bar.
//!
//! ```text
//! cargo run -p towpath --example send_file -- receive FILE         prints an address, and waits for a file
//! cargo run -p towpath --example send_file -- send ADDRESS FILE    sends a file there
//! ```
//!
//! A file is one stream: its length (8 bytes), its content and its SHA-256. It is written under another
//! name, and gets its own once the hash is right; a file that is there already is never replaced. The
//! receiver answers with one line. It takes what the first caller sends: `connection.peer()` is what a
//! real program would ask for first.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use futures::executor::block_on;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest as _, Sha256};
use towpath::{Node, PeerAddr, RecvStream};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["receive", file] => receive(Path::new(file)),
        ["send", address, file] => send(address, Path::new(file)),
        _ => Err("say `receive FILE` or `send ADDRESS FILE`".into()),
    };
    if let Err(error) = outcome {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn send(address: &str, path: &Path) -> Outcome<()> {
    let address: PeerAddr = address.parse()?;
    let mut file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let length = file.metadata()?.len();
    let node = Node::builder().spawn()?;
    let connection = block_on(node.connect(&address))
        .map_err(|error| format!("no connection to {address}: {error}"))?;
    let (mut stream, mut answer) = block_on(connection.open_bi())?;
    block_on(stream.write_all(&length.to_be_bytes()))?;
    let (bar, mut hash, mut buffer) = (bar(length), Sha256::new(), vec![0; 256 * 1024]);
    let mut left = length;
    while left > 0 {
        let most = left.min(buffer.len() as u64) as usize;
        let bytes = file.read(&mut buffer[..most])?;
        if bytes == 0 {
            return Err(format!("{} became shorter meanwhile", path.display()).into());
        }
        hash.update(&buffer[..bytes]);
        if block_on(stream.write_all(&buffer[..bytes])).is_err() {
            // The receiver wants no more of it, and says why.
            break;
        }
        left -= bytes as u64;
        bar.inc(bytes as u64);
    }
    if left == 0 {
        block_on(stream.write_all(&hash.finalize()))?;
        block_on(stream.finish())?;
    }
    let answer = String::from_utf8(block_on(answer.read_to_end(1000))?)?;
    bar.finish_and_clear();
    block_on(node.close());
    match answer.as_str() {
        "ok" => {
            println!("{length} bytes, taken by {}", address.id());
            Ok(())
        }
        why => Err(format!("the receiver did not take the file: {why}").into()),
    }
}

fn receive(place: &Path) -> Outcome<()> {
    let node = Node::builder().spawn()?;
    println!("{}", node.peer_addr()?);
    let connection = block_on(node.accept()).ok_or("the node has ended")?;
    let (mut answer, mut stream) = block_on(connection.accept_bi())?;
    let taken = take(&mut stream, place);
    drop(stream);
    let said = match &taken {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.to_string(),
    };
    block_on(answer.write_all(said.as_bytes()))?;
    block_on(answer.finish())?;
    // Who has the answer hangs up.
    block_on(connection.closed());
    taken.map(|()| println!("{} from {}", place.display(), connection.peer()))
}

fn take(stream: &mut RecvStream, place: &Path) -> Outcome<()> {
    if place.exists() {
        return Err("there is such a file already".into());
    }
    let mut name = place
        .file_name()
        .ok_or("this is no file's name")?
        .to_owned();
    name.push(".part");
    let temporary = place.with_file_name(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)?;
    // Unlike a rename, a link fails where somebody else has put a file there meanwhile.
    let outcome =
        copy(stream, &mut file).and_then(|()| fs::hard_link(&temporary, place).map_err(Into::into));
    fs::remove_file(&temporary)?;
    outcome
}

/// Writes a file's content; an error where it is not what was sent.
fn copy(stream: &mut RecvStream, file: &mut File) -> Outcome<()> {
    let (mut length, mut sent_hash) = ([0; 8], [0; 32]);
    block_on(stream.read_exact(&mut length))?;
    let mut left = u64::from_be_bytes(length);
    let (bar, mut hash, mut buffer) = (bar(left), Sha256::new(), vec![0; 256 * 1024]);
    while left > 0 {
        let bytes = left.min(buffer.len() as u64) as usize;
        block_on(stream.read_exact(&mut buffer[..bytes]))?;
        hash.update(&buffer[..bytes]);
        file.write_all(&buffer[..bytes])?;
        left -= bytes as u64;
        bar.inc(bytes as u64);
    }
    bar.finish_and_clear();
    block_on(stream.read_exact(&mut sent_hash))?;
    if sent_hash != *hash.finalize() {
        return Err("what arrived is not what was sent".into());
    }
    Ok(file.sync_all()?)
}

fn bar(length: u64) -> ProgressBar {
    let style = "{wide_bar} {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta}";
    let style = ProgressStyle::with_template(style).expect("the template is right");
    ProgressBar::new(length).with_style(style)
}
