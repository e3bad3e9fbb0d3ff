//! The far end of relayed traffic.

use std::net::SocketAddr;

use crate::lab::Host;
use crate::process::Process;

/// coturn's `turnutils_peer`: sends back what it gets.
#[derive(Debug)]
pub struct EchoPeer {
    _process: Process,
}

impl EchoPeer {
    /// Starts it on `host`, listening on these addresses, which share one port.
    pub fn start(host: &Host, addresses: &[SocketAddr]) -> Self {
        let mut command = host.command("turnutils_peer");
        for address in addresses {
            command.args([
                "-L",
                &address.ip().to_string(),
                "-p",
                &address.port().to_string(),
            ]);
        }
        let mut process = Process::start("peer", command, host.directory());
        for &address in addresses {
            host.wait_for_answer(&mut process, address, b"are you there?");
        }
        Self { _process: process }
    }
}
