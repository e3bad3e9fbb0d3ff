//! A relay between two links, with the kernel path allowed.
//!
//! ```text
//!   ┌ client ┐                ┌ relay ┐                ┌ peer ┐
//!   │ eth0   ├─── 10.77.2 ────┤ eth0  │                │      │
//!   │ .2     │    fd77:2      │ .1    │                │      │
//!   │        │                │  eth1 ├─── 10.77.3 ────┤ eth0 │
//!   │        │                │  .1   │    fd77:3      │ .3   │
//!   └────────┘                └───────┘                └──────┘
//! ```
//!
//! Nobody forwards: what crosses the relay was relayed. Checksums are real on every link, and the
//! far ends poll, so that they take what the relay's driver redirects.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use towpath_bench::bpf::SharedValue;

use crate::address;
use crate::lab::{Host, Lab};
use crate::server::{KernelMode, KernelOptions, RelayAddress, ServerOptions, tool};
use crate::skip::skip;

/// The addresses of one family.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The client's.
    pub client: IpAddr,
    /// The relay's, where it listens.
    pub relay: IpAddr,
    /// The relay's, where allocations are.
    pub relayed: IpAddr,
    /// The peer's.
    pub peer: IpAddr,
}

impl Addresses {
    /// Where the server listens.
    pub fn server(&self) -> SocketAddr {
        SocketAddr::new(self.relay, 3478)
    }

    /// IPv4.
    pub fn v4() -> Self {
        Self {
            client: address("10.77.2.2"),
            relay: address("10.77.2.1"),
            relayed: address("10.77.3.1"),
            peer: address("10.77.3.3"),
        }
    }

    /// IPv6.
    pub fn v6() -> Self {
        Self {
            client: address("fd77:2::2"),
            relay: address("fd77:2::1"),
            relayed: address("fd77:3::1"),
            peer: address("fd77:3::3"),
        }
    }
}

/// Client, relay and peer.
#[derive(Debug)]
pub struct KernelLab {
    /// The client.
    pub client: Host,
    /// The relay: `eth0` towards the client, `eth1` towards the peer.
    pub relay: Host,
    /// The peer.
    pub peer: Host,
    pins: PathBuf,
    lab: Lab,
}

impl KernelLab {
    /// Makes it; `None`, said loudly, where this machine cannot or lacks one of `programs`.
    pub fn new(programs: &[&str]) -> Option<Self> {
        let lab = Lab::with(&[&["ethtool", "mount", "sysctl"], programs].concat())?;
        if let Err(error) = SharedValue::new(1) {
            skip(&format!("the kernel gives no BPF map: {error}"));
            return None;
        }
        let pins = match lab.bpffs() {
            Ok(directory) => directory.join("towpath"),
            Err(error) => {
                skip(&format!("no bpffs can be mounted: {error}"));
                return None;
            }
        };
        let [client, relay, peer] = ["client", "relay", "peer"].map(|role| lab.island(role));
        for host in [&client, &relay, &peer] {
            host.run("sysctl", &["-qw", "net.ipv4.ip_forward=0"]);
            host.run("sysctl", &["-qw", "net.ipv6.conf.all.forwarding=0"]);
            // Errors answer every knock.
            host.run("sysctl", &["-qw", "net.ipv4.icmp_ratelimit=0"]);
            host.run("sysctl", &["-qw", "net.ipv6.icmp.ratelimit=0"]);
        }
        lab.cable((&client, "eth0"), (&relay, "eth0"), &[]);
        lab.cable((&relay, "eth1"), (&peer, "eth0"), &[]);
        for (host, interface) in [(&client, "eth0"), (&peer, "eth0")] {
            host.run("ethtool", &["-K", interface, "tx", "off", "gro", "on"]);
        }
        for interface in ["eth0", "eth1"] {
            relay.run("ethtool", &["-K", interface, "tx", "off"]);
        }
        let mut kernel_lab = Self {
            client,
            relay,
            peer,
            pins,
            lab,
        };
        kernel_lab.configure();
        Some(kernel_lab)
    }

    fn configure(&mut self) {
        for (addresses, prefix) in [(Addresses::v4(), 24), (Addresses::v6(), 64)] {
            let ends = [
                (&self.client, "eth0", addresses.client),
                (&self.relay, "eth0", addresses.relay),
                (&self.relay, "eth1", addresses.relayed),
                (&self.peer, "eth0", addresses.peer),
            ];
            for (host, interface, address) in ends {
                host.add_address_to(interface, &format!("{address}/{prefix}"));
            }
        }
    }

    /// A server with both families, and the kernel path in this mode.
    pub fn options(&self, mode: KernelMode) -> ServerOptions {
        let both = [Addresses::v4(), Addresses::v6()];
        let mut options = ServerOptions::on(&both.map(|addresses| addresses.relay));
        options.relay = both
            .map(|addresses| RelayAddress::from(addresses.relayed))
            .into();
        options.allow = vec!["10.77.3.0/24".into(), "fd77:3::/64".into()];
        options.kernel = Some(KernelOptions {
            mode,
            pins: self.pins.clone(),
            interfaces: Vec::new(),
        });
        options
    }

    /// Runs `towpath limits` on the relay, whether or not the server runs.
    ///
    /// # Panics
    ///
    /// Where it fails.
    pub fn limits(&self, arguments: &[&str]) -> String {
        let pins = self.pins.to_string_lossy();
        tool(
            &self.relay,
            &[&["limits"], arguments, &["--pins", &pins]].concat(),
        )
    }

    /// Where the server's maps are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// A directory of this laboratory's own.
    pub fn directory(&self) -> &Path {
        self.lab.directory()
    }
}
