//! aioquic, a QUIC stack in Python, as a node: the tests' Python has it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use towpath::PeerId;

use crate::lab::Host;
use crate::process::{Process, wait_for};
use crate::skip::skip;

/// Names the interpreter that has aioquic.
const PYTHON: &str = "TOWPATH_TEST_PYTHON";

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts/aioquic_node.py");

/// Ample for a start.
const PATIENCE: Duration = Duration::from_secs(30);

/// The other stack.
#[derive(Clone, Debug)]
pub struct Aioquic {
    python: OsString,
}

impl Aioquic {
    /// That of this machine; `None`, said loudly, where there is none.
    pub fn find() -> Option<Self> {
        let python = std::env::var_os(PYTHON);
        if python.is_none() {
            skip(&format!("{PYTHON} names no interpreter with aioquic"));
        }
        Some(Self { python: python? })
    }

    /// Calls a node from `host`: a stream of so many bytes and a datagram that come back. Gives what it
    /// says, line by line.
    ///
    /// # Panics
    ///
    /// Where it cannot be started.
    pub fn call(&self, host: &Host, node: SocketAddr, bytes: usize) -> String {
        let mut command = host.command("timeout");
        command.arg("60").arg(&self.python).arg(SCRIPT).arg("call");
        command.args([node.ip().to_string(), node.port().to_string()]);
        let output = command.arg(bytes.to_string()).output();
        let output = output.expect("timeout can be started");
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    }

    /// Starts a node on `host` that sends back what it gets, and says who it is.
    ///
    /// # Panics
    ///
    /// Where it does not start.
    pub fn listen(&self, host: &Host, address: SocketAddr) -> (Process, PeerId) {
        let mut command: Command = host.command(&self.python);
        command.arg(SCRIPT).arg("listen");
        command.args([address.ip().to_string(), address.port().to_string()]);
        let mut process = Process::start("aioquic", command, host.directory());
        let key = wait_for("aioquic's key", PATIENCE, || {
            assert_eq!(process.ended(), None, "aioquic has ended");
            let said = process.output();
            let line = said
                .lines()
                .find_map(|line| line.strip_prefix("listening "));
            line.filter(|_| said.ends_with('\n')).map(str::to_owned)
        });
        (process, key.parse().expect("a peer id"))
    }
}
