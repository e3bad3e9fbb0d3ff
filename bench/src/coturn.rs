//! coturn as the distribution installs it, without logging, TLS and command line, with one relay thread.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::control::{CLIENT_PORT, Clients, PASSWORD, REALM, USERNAME};
use crate::rig::Rig;
use crate::server::{Body, Process, Server, Table};

const PROGRAM: &str = "turnserver";
const PORT: u16 = 3478;

/// The version installed, or why there is none.
pub fn version() -> Result<String> {
    let output = Command::new(PROGRAM)
        .arg("--version")
        .output()
        .context("running turnserver")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default()
        .trim();
    ensure!(!version.is_empty(), "turnserver --version says nothing");
    Ok(format!("coturn {version}"))
}

/// Starts coturn on these addresses, with its files in `directory`.
pub fn start(rig: &Rig, directory: &Path, listen: Ipv4Addr, relay: Ipv4Addr) -> Result<Server> {
    let address = SocketAddrV4::new(listen, PORT);
    let path = directory.join("coturn.conf");
    let state = directory.display();
    let config = format!(
        "listening-ip={listen}\nlistening-port={PORT}\nrelay-ip={relay}\n\
         min-port=49152\nmax-port=65535\nrelay-threads=1\n\
         lt-cred-mech\nrealm={REALM}\nuser={USERNAME}:{PASSWORD}\n\
         no-cli\nno-tls\nno-dtls\nno-tcp\nno-stdout-log\nlog-file=/dev/null\nsimple-log\n\
         pidfile={state}/coturn.pid\nuserdb={state}/coturn.db\n"
    );
    fs::write(&path, config).with_context(|| format!("writing {}", path.display()))?;
    let mut command = Command::new(PROGRAM);
    command.arg("-c").arg(&path);
    let mut process = Process::start(rig, command, directory.join("coturn.log"))?;
    process.wait_for_socket(rig, address).context("coturn")?;
    let clients = Clients::new(rig, address, CLIENT_PORT)?;
    Ok(Server::new(
        "coturn",
        version()?,
        address,
        Table::Turn(Box::new(clients)),
        Body::Process(process),
    ))
}
