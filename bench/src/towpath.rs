//! Towpath itself, started from its binary with a configuration file, on either driver, with its kernel
//! path or without.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::control::{CLIENT_PORT, Clients, PASSWORD, REALM, USERNAME};
use crate::rig::Rig;
use crate::server::{Body, Process, Server, Table};

/// One user with as many allocations as a bench makes, from one address: others do not limit that.
const UNLIMITED: &str = "allocations = { per_user = \"unlimited\", per_network = \"unlimited\" }\n\
     strangers = { per_source = \"unlimited\", per_network = \"unlimited\", total = \"unlimited\" }\n";

/// Where it listens.
pub const PORT: u16 = 3478;

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

/// The binary asked for, else the one beside this program.
pub fn program(asked: Option<&Path>) -> Result<PathBuf> {
    if let Some(program) = asked {
        return Ok(program.to_path_buf());
    }
    let own = std::env::current_exe().context("finding the own program")?;
    Ok(own.with_file_name("towpath"))
}

/// Which Towpath.
#[derive(Clone, Copy, Debug)]
pub struct Variant<'a> {
    /// What its server is called.
    pub name: &'static str,
    /// Its driver.
    pub driver: &'static str,
    /// Where its kernel path, native XDP, is pinned; `None`: userspace only.
    pub pins: Option<&'a Path>,
}

impl Variant<'_> {
    /// Towpath without its kernel path.
    pub const fn in_userspace(name: &'static str, driver: &'static str) -> Self {
        Self {
            name,
            driver,
            pins: None,
        }
    }
}

/// Starts one shard on these addresses, with its files in `directory`.
pub fn start(
    rig: &Rig,
    directory: &Path,
    program: &Path,
    variant: &Variant<'_>,
    listen: Ipv4Addr,
    relay: Ipv4Addr,
) -> Result<Server> {
    let Variant { name, driver, pins } = *variant;
    let kernel = pins.map_or("mode = \"off\"\n".to_owned(), |pins| {
        format!("mode = \"native\"\npins = \"{}\"\n", pins.display())
    });
    let address = SocketAddrV4::new(listen, PORT);
    let peers = rig.peer_end.address;
    let config = format!(
        "[relay]\nlisten = [\"{address}\"]\nrelay_addresses = [\"{relay}\"]\n\
         port_range = \"49152-65535\"\nrealm = \"{REALM}\"\nshards = 1\ndriver = \"{driver}\"\n\
         [auth]\nusers = {{ {USERNAME} = \"plain:{PASSWORD}\" }}\n\
         [access]\nallow = [\"{peers}/32\"]\n\
         [limits]\n{UNLIMITED}\
         [kernel]\n{kernel}\
         [observe]\nlisten = \"{listen}:9478\"\n"
    );
    let home = directory.join(name);
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
        .with_context(|| format!("towpath as {name}"))?;
    let clients = Clients::new(rig, address, CLIENT_PORT)?;
    let path = if pins.is_some() { ", native XDP" } else { "" };
    let version = format!("{}, {driver} driver, one shard{path}", version(program)?);
    Ok(Server::new(
        name,
        version,
        address,
        Table::Turn(Box::new(clients)),
        Body::Process(process),
    ))
}
