//! Nodes: the program's, as processes of an ordinary user, and the library's, in the test itself.

use std::net::SocketAddr;
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use rustix::process::Signal;
use towpath::{Connection, Node, NodeBuilder};

use crate::lab::Host;
use crate::process::{Process, wait_for};
use crate::server::{Driver, as_ordinary_user, install};

/// Ample for a start or an end.
const PATIENCE: Duration = Duration::from_secs(30);
/// In seconds: no command takes longer.
const COMMAND_LIMIT: &str = "60";

/// `towpath listen`.
#[derive(Debug)]
pub struct NodeProcess {
    process: Process,
    address: String,
}

/// Who calls a node, and how.
#[derive(Clone, Copy, Debug)]
pub struct Calls<'a> {
    /// From where.
    pub host: &'a Host,
    /// How it talks to the kernel.
    pub driver: Driver,
}

impl NodeProcess {
    /// Starts it with a key that stays the same in a laboratory, and waits until it says what it is
    /// called by.
    ///
    /// # Panics
    ///
    /// Where it does not.
    pub fn start(host: &Host, listen: SocketAddr, driver: Driver, arguments: &[&str]) -> Self {
        let command = Self::command(host, listen, driver, arguments);
        Self::ready(Process::start("node", command, host.directory()))
    }

    /// As [`NodeProcess::start`], where io_uring is forbidden.
    ///
    /// # Panics
    ///
    /// Where it does not start.
    pub fn start_without_io_uring(host: &Host, listen: SocketAddr, arguments: &[&str]) -> Self {
        let command = Self::command(host, listen, Driver::Auto, arguments);
        Self::ready(Process::start_without_io_uring(
            "node",
            command,
            host.directory(),
        ))
    }

    fn command(host: &Host, listen: SocketAddr, driver: Driver, arguments: &[&str]) -> Command {
        let mut command = program(host);
        command.args(["listen", "--listen", &listen.to_string(), "--key"]);
        command.arg(host.directory().join("node.key"));
        command.args(["--driver", name(driver)]).args(arguments);
        command
    }

    fn ready(mut process: Process) -> Self {
        let address = wait_for("the node's address", PATIENCE, || {
            let said = process.output();
            let line = said.lines().find(|line| line.contains('@'));
            let line = line.filter(|_| said.ends_with('\n')).map(str::to_owned);
            assert!(line.is_some() || process.ended().is_none(), "{said}");
            line
        });
        Self { process, address }
    }

    /// What others call it by.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// Ends it without a warning.
    ///
    /// # Panics
    ///
    /// Where it does not end.
    pub fn kill(mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait(PATIENCE);
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Panics
    ///
    /// Where it does not end.
    pub fn stop(mut self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        self.process.wait(PATIENCE)
    }
}

impl Calls<'_> {
    /// A command that calls the node with this address, as an ordinary user with a key of its own.
    pub fn command(&self, command: &str, address: &str, arguments: &[&str]) -> Command {
        let mut called = program(self.host);
        called.args([command, address, "--ephemeral"]);
        called.args(["--driver", name(self.driver)]).args(arguments);
        called
    }

    /// Runs it to its end.
    ///
    /// # Panics
    ///
    /// Where it cannot be started.
    pub fn run(&self, command: &str, address: &str, arguments: &[&str]) -> Output {
        let mut command = self.command(command, address, arguments);
        command.output().expect("the command can be started")
    }

    /// Runs one that prints JSON.
    ///
    /// # Panics
    ///
    /// Where it fails.
    pub fn json(&self, command: &str, address: &str, arguments: &[&str]) -> serde_json::Value {
        let output = self.run(command, address, &[arguments, &["--json"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {said}");
        serde_json::from_slice(&output.stdout).expect("it prints JSON")
    }
}

/// The program, as an ordinary user.
fn program(host: &Host) -> Command {
    let mut command = as_ordinary_user(host);
    command.args(["timeout", COMMAND_LIMIT]);
    // timeout's own child has to be told too to die with it.
    command.args(["setpriv", "--pdeathsig", "KILL"]);
    command.arg(install(host));
    command
}

fn name(driver: Driver) -> &'static str {
    match driver {
        Driver::Auto => "auto",
        Driver::IoUring => "io_uring",
        Driver::Epoll => "epoll",
    }
}

/// A node of this process on a host: its threads and sockets are there.
///
/// # Panics
///
/// Where it does not start.
pub fn node_on(host: &Host, builder: NodeBuilder) -> Node {
    let spawned = host.inside(move || builder.spawn());
    spawned.unwrap_or_else(|error| panic!("the node does not start: {error}"))
}

/// Sends back all streams and datagrams of a connection.
pub async fn echo(connection: Connection) {
    let datagrams = connection.clone();
    connection.spawn(async move {
        while let Ok(datagram) = datagrams.receive_datagram().await {
            if datagrams.send_datagram(datagram).await.is_err() {
                return;
            }
        }
    });
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        connection.spawn(async move {
            while let Ok(Some(bytes)) = receive.read().await {
                if send.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            // Who has gone needs no end.
            let _ = send.finish().await;
        });
    }
}

/// So many bytes, none of which can stand for another unnoticed.
pub fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 + at / 251) as u8).collect()
}
