//! aioice, a TURN client in Python, as the tests' Python has it.

use std::ffi::OsString;
use std::net::SocketAddr;

use crate::lab::Host;
use crate::skip::skip;

/// Names the interpreter that has aioice.
const PYTHON: &str = "TOWPATH_TEST_PYTHON";

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts/aioice_relay.py");

const DATAGRAMS: &str = "200";

/// The client.
#[derive(Clone, Debug)]
pub struct Aioice {
    python: OsString,
}

impl Aioice {
    /// The client of this machine; `None`, said loudly, where there is none.
    pub fn find() -> Option<Self> {
        let python = std::env::var_os(PYTHON);
        if python.is_none() {
            skip(&format!("{PYTHON} names no interpreter with aioice"));
        }
        Some(Self { python: python? })
    }

    /// Relays 200 datagrams from `host` to an echoing peer and back, and loses none.
    ///
    /// # Panics
    ///
    /// Where something is lost, or the client fails.
    pub fn loses_nothing_on(
        &self,
        host: &Host,
        server: SocketAddr,
        (user, password): (&str, &str),
        peer: SocketAddr,
    ) {
        let output = host
            .command("timeout")
            .arg("60")
            .arg(&self.python)
            .arg(SCRIPT)
            .args([server.ip().to_string(), server.port().to_string()])
            .args([user, password])
            .args([peer.ip().to_string(), peer.port().to_string()])
            .arg(DATAGRAMS)
            .output()
            .expect("timeout can be started");
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n{said}{errors}", output.status);
        let relayed = format!("relayed {} ", server.ip());
        assert!(said.contains(&relayed), "{said}");
        assert!(said.contains(&format!("echoed {DATAGRAMS}\n")), "{said}");
    }
}
