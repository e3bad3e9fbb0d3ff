//! One end of a pair, as a process that is told what to do by words on its standard input:
//!
//! ```text
//!   (start)    ─▶ {"listening": …}     it is there
//!   connect N  ─▶ {"reading": …}       until N connections stand
//!   begin      ─▶ {"reading": …}       the load begins
//!   read       ─▶ {"reading": …}       what was used and done so far
//!   memory     ─▶ {"memory": …}        what memory is held
//!   (end)                              the process ends
//! ```

use std::fs;
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::towpath::{Identity, PeerAddr, PeerId, QuicConfig, SecretKey};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::node::contender::Contender;
use crate::node::tally::{Cell, Delays, Tally};
use crate::node::{quinn, towpath};
use crate::sys;

/// Longer than any round: idle connections stay.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(1800);
/// Connections that one end may have, the closed ones that still answer included.
const MAX_CONNECTIONS: usize = 1 << 20;
/// Connections that are made at a time before a load begins.
pub(super) const MAKE_AT_A_TIME: usize = 16;

/// How an end is started.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Which library, in which manner
    #[arg(long)]
    contender: Contender,
    /// The cell, as JSON
    #[arg(long)]
    cell: String,
    /// The CPU
    #[arg(long)]
    cpu: usize,
    /// Whom to call; without it, the end is the server
    #[arg(long)]
    server: Option<PeerAddr>,
}

/// What an end says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is there: its address and id.
    Listening(SocketAddr, String),
    /// What was used and done so far.
    Reading(Reading),
    /// What memory is held.
    Memory(Memory),
    /// It could not.
    Failed(String),
}

/// What an end has used and done.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Reading {
    /// When this was.
    pub at_ns: u64,
    /// CPU time of all its threads so far, in user space and in the kernel.
    pub cpu_ns: u64,
    /// Bytes of streams received so far.
    pub bytes: u64,
    /// Operations done so far.
    pub operations: u64,
    /// Delays of operations since the reading before.
    pub delays: Delays,
}

/// The memory an end holds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Bytes of the heap in use, what the C of the cryptography library holds included.
    pub heap_bytes: u64,
    /// Resident set size.
    pub rss_bytes: u64,
    /// Proportional set size.
    pub pss_bytes: u64,
}

/// An end of either library.
pub(super) trait End {
    /// Where it listens.
    fn listens_on(&self) -> SocketAddr;
    /// Makes connections until so many stand.
    fn connect(&mut self, count: usize) -> Result<()>;
    /// Begins the load.
    fn begin(&mut self) -> Result<()>;
}

/// What both libraries are made with.
pub(super) struct Setup {
    pub(super) cell: Cell,
    pub(super) tally: Arc<Tally>,
    pub(super) secret: SecretKey,
    pub(super) quic: QuicConfig,
    pub(super) max_connections: usize,
    pub(super) server: Option<PeerAddr>,
}

/// Is an end until its standard input ends.
pub fn run(arguments: &Arguments) -> Result<()> {
    sys::pin_to_cpu(0, arguments.cpu).context("pinning an end")?;
    sys::raise_descriptor_limit().context("raising the limit on descriptors")?;
    let tally = Arc::new(Tally::new()?);
    // Any key will do; that of a server and that of a client differ.
    let secret = SecretKey::from_seed([if arguments.server.is_some() { 2 } else { 1 }; 32]);
    let id = Identity::new(secret.clone()).id();
    let setup = Setup {
        cell: serde_json::from_str(&arguments.cell).context("reading the cell")?,
        tally: Arc::clone(&tally),
        secret,
        quic: QuicConfig {
            idle_timeout: IDLE_TIMEOUT,
            ..QuicConfig::default()
        },
        max_connections: MAX_CONNECTIONS,
        server: arguments.server.clone(),
    };
    let mut end: Box<dyn End> = match arguments.contender {
        Contender::Towpath => Box::new(towpath::Node::start(setup, false)?),
        Contender::TowpathThread => Box::new(towpath::Node::start(setup, true)?),
        Contender::Quinn => Box::new(quinn::Endpoint::start(setup, false)?),
        Contender::QuinnMulti => Box::new(quinn::Endpoint::start(setup, true)?),
    };
    say(&Answer::Listening(end.listens_on(), id.to_string()))?;
    for line in io::stdin().lock().lines() {
        let answer = follow(&line.context("reading what to do")?, end.as_mut(), &tally);
        say(&answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}"))))?;
    }
    // What stands ends with the process: nothing waits for farewells.
    std::process::exit(0);
}

fn follow(line: &str, end: &mut dyn End, tally: &Tally) -> Result<Answer> {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("connect", count) => end.connect(count.parse().context("a number of connections")?)?,
        ("begin", "") => end.begin()?,
        ("read", "") => {}
        ("memory", "") => return Ok(Answer::Memory(memory()?)),
        _ => bail!("{line:?} is nothing to do"),
    }
    tally.check()?;
    Ok(Answer::Reading(Reading {
        at_ns: sys::now_ns(),
        cpu_ns: sys::process_cpu_ns().context("reading the CPU time")?,
        bytes: tally.bytes(),
        operations: tally.operations(),
        delays: tally.take_delays(),
    }))
}

fn say(answer: &Answer) -> Result<()> {
    let mut line = serde_json::to_string(answer).context("writing an answer")?;
    line.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.flush().context("answering")
}

fn memory() -> Result<Memory> {
    let text = fs::read_to_string("/proc/self/smaps_rollup").context("reading smaps_rollup")?;
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes
            .map(|kilobytes| kilobytes * 1024)
            .with_context(|| format!("smaps_rollup has no {name}"))
    };
    Ok(Memory {
        heap_bytes: sys::heap_bytes(),
        rss_bytes: bytes("Rss:")?,
        pss_bytes: bytes("Pss:")?,
    })
}

/// A server's address and id as an address of a peer.
pub(super) fn peer_addr(address: SocketAddr, id: &str) -> Result<PeerAddr> {
    let id: PeerId = id.parse().context("reading a peer's id")?;
    PeerAddr::new(id, [address]).context("an address of a peer")
}
