//! A server under test: a process in the relay's namespace, on the server's CPU.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::bpf::XdpLink;
use crate::control::Clients;
use crate::cpu::{self, Task};
use crate::rig::{Rig, SERVER_CPU, SERVER_NICE};
use crate::sys;

const START_PATIENCE: Duration = Duration::from_secs(10);
const STOP_PATIENCE: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// One way through a server.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// The client.
    pub client: SocketAddrV4,
    /// Where peers reach it.
    pub relayed: SocketAddrV4,
}

/// How flows through a server come to be.
pub enum Table {
    /// By TURN requests.
    Turn(Box<Clients>),
    /// They are there from the start.
    Fixed(Vec<Flow>),
}

/// A running server. It is stopped when dropped.
pub struct Server {
    /// Short name, unique in a run.
    pub name: &'static str,
    /// What exactly runs.
    pub version: String,
    /// Where clients send to.
    pub address: SocketAddrV4,
    /// Its flows.
    pub table: Table,
    /// Number of the place it is in.
    pub place: usize,
    body: Body,
}

/// What a server consists of.
pub enum Body {
    /// A process.
    Process(Process),
    /// Programs in the kernel.
    Programs(Vec<XdpLink>),
}

impl Server {
    /// Puts the parts together.
    pub fn new(
        name: &'static str,
        version: String,
        address: SocketAddrV4,
        table: Table,
        body: Body,
    ) -> Self {
        Self {
            name,
            version,
            address,
            table,
            place: 0,
            body,
        }
    }

    /// The same in another place than the first.
    pub fn at(self, place: usize) -> Self {
        Self { place, ..self }
    }

    /// The process id, where there is a process.
    pub fn pid(&self) -> Option<u32> {
        match &self.body {
            Body::Process(process) => Some(process.child.id()),
            Body::Programs(_) => None,
        }
    }

    /// Its threads, as of now.
    pub fn threads(&self) -> Result<Vec<Task>> {
        self.pid().map_or(Ok(Vec::new()), cpu::process_threads)
    }

    /// The first `count` flows, ready for data for the next minutes.
    pub fn flows(&mut self, peer: Ipv4Addr, count: usize) -> Result<Vec<Flow>> {
        match &mut self.table {
            Table::Fixed(flows) => {
                let flows = flows
                    .get(..count)
                    .with_context(|| format!("no {count} flows"))?;
                Ok(flows.to_vec())
            }
            Table::Turn(clients) => clients
                .flows(peer, count)
                .with_context(|| format!("preparing {}", self.name)),
        }
    }

    /// Fails where the process has ended by itself.
    pub fn check_alive(&mut self) -> Result<()> {
        match &mut self.body {
            Body::Process(process) => process
                .check_alive()
                .with_context(|| format!("server {}", self.name)),
            Body::Programs(_) => Ok(()),
        }
    }
}

/// A child process that is ended when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program in the relay's namespace on the server's CPU; what it prints goes to a file.
    pub fn start(rig: &Rig, mut command: Command, log: PathBuf) -> Result<Self> {
        let file = fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let namespace = rig.relay.file().as_raw_fd();
        // SAFETY: between fork and exec only system calls are made: no allocation, no lock.
        unsafe {
            command.pre_exec(move || sys::become_server(namespace, SERVER_CPU, SERVER_NICE));
        }
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        let process = Self { child, log };
        // Where sessions are scheduling groups, a nice value only counts within its session.
        let group = format!("/proc/{}/autogroup", process.child.id());
        if Path::new(&group).exists() {
            fs::write(&group, SERVER_NICE.to_string())
                .with_context(|| format!("writing {group}"))?;
        }
        Ok(process)
    }

    /// Waits until a UDP socket is bound to `address` in the relay's namespace.
    pub fn wait_for_socket(&mut self, rig: &Rig, address: SocketAddrV4) -> Result<()> {
        let mut waited = Duration::ZERO;
        loop {
            match rig.relay.enter(|| UdpSocket::bind(address))? {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(()),
                Err(error) => return Err(error).with_context(|| format!("trying {address}")),
                Ok(_unused) => {}
            }
            self.check_alive()?;
            sys::check_interrupted()?;
            if waited > START_PATIENCE {
                bail!(
                    "nothing listens on {address} after {} s",
                    START_PATIENCE.as_secs()
                );
            }
            thread::sleep(POLL_INTERVAL);
            waited += POLL_INTERVAL;
        }
    }

    fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("waiting for a server")? {
            bail!("ended with {status}; it said: {}", last_lines(&self.log));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut waited = Duration::ZERO;
        let _ = sys::terminate(self.child.id());
        while matches!(self.child.try_wait(), Ok(None)) {
            if waited > STOP_PATIENCE {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            thread::sleep(POLL_INTERVAL);
            waited += POLL_INTERVAL;
        }
    }
}

fn last_lines(log: &Path) -> String {
    let Ok(file) = fs::File::open(log) else {
        return String::new();
    };
    let lines: Vec<String> = BufReader::new(file.take(1 << 20))
        .lines()
        .map_while(Result::ok)
        .collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}
