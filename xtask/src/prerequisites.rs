//! What tests and benchmarks need beside Rust: Debian packages, and Python packages in a virtual
//! environment below the target directory. Nothing is installed that is there already.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// A Debian package and what it is for.
pub(crate) type Package = (&'static str, &'static str);

/// What the tests in network namespaces need.
pub(crate) const NET: &[Package] = &[
    ("iproute2", "network namespaces"),
    ("util-linux", "setpriv, mount"),
    ("nftables", "address translation"),
    ("procps", "sysctl"),
    ("ethtool", "offloads of virtual links"),
    (
        "coturn",
        "turnserver, turnutils_uclient, _stunclient, _natdiscovery, _peer",
    ),
    ("stun-client", "a client of RFC 3489"),
    ("ngtcp2-client", "gtlsclient, a QUIC client with GnuTLS"),
    ("ngtcp2-server", "gtlsserver, its server"),
    ("python3", "aioice, aioquic"),
    ("python3-venv", "aioice, aioquic"),
];

/// What the benchmarks need.
pub(crate) const BENCH: &[Package] = &[
    ("iproute2", "network namespaces"),
    ("ethtool", "offloads of the virtual links"),
    ("coturn", "turnserver, the relay compared with"),
    ("valgrind", "instruction counts"),
];

/// What the fuzzer needs.
pub(crate) const FUZZ: &[Package] = &[("g++", "libFuzzer, which is C++")];

/// The Python packages of the tests, exact.
const PYTHON: &[&str] = &["aioice==0.13.0", "aioquic==1.7.2"];

/// Installs the packages that are missing. An error says which are missing and why they could not
/// be installed.
pub(crate) fn install(packages: &[Package]) -> Result<()> {
    anyhow::ensure!(
        process::find("dpkg-query").is_some() && process::find("apt-get").is_some(),
        "this is not a Debian system; install by hand: {}",
        names(packages)
    );
    let missing: Vec<Package> = packages
        .iter()
        .copied()
        .filter(|(name, _)| !is_installed(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    anyhow::ensure!(
        process::is_root(),
        "these packages are missing and only root can install them: apt-get install {}",
        names(&missing)
    );
    println!("Installing with apt-get:");
    for (name, purpose) in &missing {
        println!("  {name:<16} for {purpose}");
    }
    let without_coturn = !is_installed("coturn");
    if apt_install(&missing).is_err() {
        println!("The package lists may be missing or old: refreshing them.");
        process::run(apt_get().arg("update"))?;
        apt_install(&missing)?;
    }
    if without_coturn && is_installed("coturn") {
        stop_coturn_service()?;
    }
    Ok(())
}

/// Makes the virtual environment and returns its interpreter.
pub(crate) fn python() -> Result<PathBuf> {
    let directory = process::target_directory()?.join("xtask").join("python");
    let interpreter = directory.join("bin").join("python");
    let stamp = directory.join("packages.txt");
    let wanted = PYTHON.join("\n");
    if interpreter.exists() && fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(interpreter);
    }
    println!(
        "Installing with pip into {}: {}",
        directory.display(),
        PYTHON.join(", ")
    );
    let system = Path::new("/usr/bin/python3");
    let system = if system.exists() {
        system
    } else {
        Path::new("python3")
    };
    process::run(
        Command::new(system)
            .args(["-m", "venv", "--clear"])
            .arg(&directory),
    )?;
    process::run(
        Command::new(&interpreter)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(PYTHON),
    )?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(interpreter)
}

fn is_installed(package: &str) -> bool {
    process::output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]))
        .is_some_and(|status| status == "installed")
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-q", "-y"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn apt_install(packages: &[Package]) -> Result<()> {
    let names = packages.iter().map(|(name, _)| *name);
    process::run(
        apt_get()
            .args(["install", "--no-install-recommends"])
            .args(names),
    )
}

/// Debian starts a service it installs; coturn's would hold the very port a relay wants.
fn stop_coturn_service() -> Result<()> {
    if !Path::new("/run/systemd/system").exists() {
        return Ok(());
    }
    println!("Stopping the coturn service that was just installed: only its programs are used.");
    process::run(Command::new("systemctl").args(["disable", "--now", "coturn"]))
}

fn names(packages: &[Package]) -> String {
    packages
        .iter()
        .map(|(name, _)| *name)
        .collect::<Vec<_>>()
        .join(" ")
}
