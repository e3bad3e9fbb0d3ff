//! A pair of processes, as the bench sees it. They end with the pair.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use ::towpath::PeerAddr;
use anyhow::{Context, Result, bail};

use crate::node::contender::Contender;
use crate::node::end::{Answer, Memory, Reading, peer_addr};
use crate::node::tally::Cell;
use crate::sys;

/// CPU of the servers.
pub const SERVER_CPU: usize = 0;
/// CPU of the clients.
pub const CLIENT_CPU: usize = 1;

/// Nothing that an end is asked for takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server and a client of it.
pub struct Pair {
    /// Dropped first: a client may say farewell to a server that is still there.
    pub client: Process,
    /// The server.
    pub server: Process,
}

/// A process that is one of the ends.
pub struct Process {
    child: Child,
    input: ChildStdin,
    answers: Receiver<Answer>,
    name: String,
}

impl Pair {
    /// Starts both.
    pub fn start(cell: Cell, contender: Contender) -> Result<Self> {
        let (mut server, at) = Process::start(cell, contender, SERVER_CPU, None)?;
        let (client, _) = Process::start(cell, contender, CLIENT_CPU, Some(&at))
            .inspect_err(|_| server.kill())?;
        Ok(Self { client, server })
    }
}

impl Process {
    fn start(
        cell: Cell,
        contender: Contender,
        cpu: usize,
        server: Option<&PeerAddr>,
    ) -> Result<(Self, PeerAddr)> {
        let role = if server.is_some() { "client" } else { "server" };
        let program = env::current_exe().context("finding the own program")?;
        let mut command = Command::new(program);
        command
            .arg("node-end")
            .args(["--contender", &contender.to_string()])
            .args(["--cpu", &cpu.to_string()])
            .args(["--cell", &serde_json::to_string(&cell)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(server) = server {
            command.args(["--server", &server.to_string()]);
        }
        if cell == Cell::Idle {
            // Without caches of threads, what the heap says is exact.
            command.env("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0");
        }
        // SAFETY: between fork and exec a single system call is made: no allocation, no lock.
        unsafe {
            command.pre_exec(sys::die_with_parent);
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {contender}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("a process was started without its pipes");
        };
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let answer = serde_json::from_str(&line);
                let answer = answer.unwrap_or_else(|_| Answer::Failed(format!("it said {line:?}")));
                if sender.send(answer).is_err() {
                    return;
                }
            }
        });
        let mut process = Self {
            child,
            input,
            answers,
            name: format!("{role} of {contender}"),
        };
        match process.answer()? {
            Answer::Listening(address, id) => Ok((process, peer_addr(address, &id)?)),
            other => bail!("the {} said {other:?} first", process.name),
        }
    }

    /// Has it make connections until so many stand.
    pub fn connect(&mut self, count: usize) -> Result<Reading> {
        self.reading(&format!("connect {count}"))
    }

    /// Has it begin the load.
    pub fn begin(&mut self) -> Result<Reading> {
        self.reading("begin")
    }

    /// What it has used and done.
    pub fn read(&mut self) -> Result<Reading> {
        self.reading("read")
    }

    /// The memory it holds.
    pub fn memory(&mut self) -> Result<Memory> {
        match self.ask("memory")? {
            Answer::Memory(memory) => Ok(memory),
            other => bail!("the {} said {other:?}", self.name),
        }
    }

    fn reading(&mut self, what: &str) -> Result<Reading> {
        match self.ask(what)? {
            Answer::Reading(reading) => Ok(reading),
            Answer::Failed(why) => bail!("the {} failed: {why}", self.name),
            other => bail!("the {} said {other:?}", self.name),
        }
    }

    fn ask(&mut self, what: &str) -> Result<Answer> {
        writeln!(self.input, "{what}").with_context(|| format!("telling the {}", self.name))?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Answer> {
        let answer = self.answers.recv_timeout(PATIENCE);
        answer.with_context(|| format!("the {} does not answer", self.name))
    }

    fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
