//! Towpath itself, started from its binary with a configuration file, on either driver.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::control::{CLIENT_PORT, Clients, PASSWORD, REALM, USERNAME};
use crate::rig::Rig;
use crate::server::{Process, Server, Table};

const PORT: u16 = 3478;

/// The version of a binary, or why there is none.
pub fn version(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{} --version failed",
        program.display()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Starts one shard with `driver` on these addresses, with its files in `directory`.
pub fn start(
    rig: &Rig,
    directory: &Path,
    program: &Path,
    driver: &'static str,
    listen: Ipv4Addr,
    relay: Ipv4Addr,
) -> Result<Server> {
    let address = SocketAddrV4::new(listen, PORT);
    let peers = rig.peer_end.address;
    let config = format!(
        "[relay]\nlisten = [\"{address}\"]\nrelay_addresses = [\"{relay}\"]\n\
         port_range = \"49152-65535\"\nrealm = \"{REALM}\"\nshards = 1\ndriver = \"{driver}\"\n\
         [auth]\nusers = {{ {USERNAME} = \"plain:{PASSWORD}\" }}\n\
         [access]\nallow = [\"{peers}/32\"]\n\
         [kernel]\nmode = \"off\"\n\
         [observe]\nlisten = \"{listen}:9478\"\n"
    );
    let home = directory.join(driver);
    fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
    let path = home.join("towpath.toml");
    fs::write(&path, config).with_context(|| format!("writing {}", path.display()))?;
    let mut command = Command::new(program);
    command
        .arg("serve")
        .arg("--config")
        .arg(&path)
        .args(["--log-level", "off"]);
    command.arg("--state-dir").arg(home.join("state"));
    command.arg("--runtime-dir").arg(home.join("run"));
    let mut process = Process::start(rig, command, home.join("towpath.log"))?;
    process
        .wait_for_socket(rig, address)
        .with_context(|| format!("towpath on {driver}"))?;
    let clients = Clients::new(rig, address, CLIENT_PORT)?;
    let version = format!("{}, {driver} driver, one shard", version(program)?);
    Ok(Server::new(
        driver,
        version,
        address,
        Table::Turn(Box::new(clients)),
        process,
    ))
}
