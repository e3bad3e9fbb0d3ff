//! The kernel path of a server: started as configured, told of routes, asked what it did.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use towpath_kernel::{Kernel, KernelConfig, KernelError, Mode};
use towpath_proto::common::reason::{Count, Reason};
use towpath_proto::relay::{RelayConfig, StrangerLimits};
use towpath_proto::slots::{MemorySlots, Slots};

use crate::clock;
use crate::config::{KernelMode, KernelSection};
use crate::offload::{Offload, OffloadCounts};

/// The kernel path, and the slots that it and the shards charge.
#[derive(Debug)]
pub(crate) struct KernelPath {
    pub(crate) mode: KernelMode,
    pub(crate) kernel: Kernel,
    pub(crate) slots: Arc<dyn Slots>,
    pub(crate) counts: Arc<OffloadCounts>,
    pub(crate) max_routes: u64,
    /// By it the program finds strangers' budgets.
    stranger_key: [u64; 2],
    /// Whether there is no interface to be on.
    nowhere: bool,
}

impl KernelPath {
    /// Goes as far up the ladder as the section asks for and this machine allows.
    pub(crate) fn start(section: &KernelSection, relay: &RelayConfig) -> Result<Self, KernelError> {
        let listeners = specific(&relay.listeners, &relay.own_addresses);
        let relay_addresses: Vec<IpAddr> = relay.relay_addresses.iter().map(|a| a.local).collect();
        let interfaces = match section.interfaces.as_slice() {
            [] => interfaces(&listeners, &relay_addresses),
            named => named.iter().map(|name| name.value.clone()).collect(),
        };
        // Without interfaces there is nothing to load a program for.
        let nowhere = interfaces.is_empty() && section.mode == KernelMode::Auto;
        let stranger_key = rand::random();
        let kernel = Kernel::start(&KernelConfig {
            mode: if nowhere {
                Mode::Off
            } else {
                mode(section.mode)
            },
            interfaces,
            max_peers: section.max_peers,
            max_routes: section.max_routes,
            relay_ports: relay.port_range.clone(),
            listeners,
            relay_addresses,
            strangers: relay.limits.strangers.paces(stranger_key),
            pin_directory: section.pins.clone(),
        })?;
        let slots: Arc<dyn Slots> = match kernel.slots() {
            Some(mapped) => mapped,
            None => Arc::new(MemorySlots::new(section.max_peers)),
        };
        let path = Self {
            mode: section.mode,
            kernel,
            slots,
            counts: Arc::default(),
            max_routes: u64::from(section.max_routes),
            stranger_key,
            nowhere,
        };
        path.log();
        Ok(path)
    }

    /// Why nothing outlives this process; `None` where maps and links are pinned.
    pub(crate) fn unpinned(&self) -> Option<String> {
        if self.nowhere {
            return Some("listening and relay addresses are on the loopback alone".to_owned());
        }
        self.kernel.unpinned().map(str::to_owned)
    }

    /// What a shard writes routes with, where the kernel forwards.
    pub(crate) fn offload(&self) -> Option<Offload> {
        let (routes, next_hops) = (self.kernel.routes()?, self.kernel.next_hops()?);
        Some(Offload::new(routes, next_hops, Arc::clone(&self.counts)))
    }

    /// What the program decided; nothing where it cannot be read.
    pub(crate) fn reasons(&self) -> Vec<(Reason, Count)> {
        self.kernel.reasons().unwrap_or_else(|error| {
            tracing::debug!(%error, "the kernel path's reasons cannot be read");
            Vec::new()
        })
    }

    /// Says that the server lives.
    pub(crate) fn beat(&self) {
        if let Some(settings) = self.kernel.settings() {
            settings.beat(clock::now().as_nanos());
        }
    }

    /// Limits what strangers are answered from the next packet on.
    pub(crate) fn set_strangers(&self, limits: &StrangerLimits) {
        self.kernel.set_strangers(&limits.paces(self.stranger_key));
    }

    /// Follows the addresses of this machine.
    pub(crate) fn follow(&self, relay: &RelayConfig, own_addresses: &[IpAddr]) {
        let listeners = specific(&relay.listeners, own_addresses);
        let relay_addresses: Vec<IpAddr> = relay.relay_addresses.iter().map(|a| a.local).collect();
        if let Err(error) = self.kernel.set_locals(&listeners, &relay_addresses) {
            tracing::warn!(%error, "the kernel path was not told this machine's addresses");
        }
    }

    fn log(&self) {
        if self.mode == KernelMode::Off {
            return;
        }
        for rung in self.kernel.rungs() {
            let (interface, reason) = (&rung.interface, rung.reason.as_deref());
            tracing::info!(interface, rung = rung.rung.name(), reason, "kernel path");
        }
        if let Some(pins) = self.kernel.pins() {
            tracing::info!(pins = %pins.display(), "maps and links are pinned");
        } else if self.kernel.forwards() {
            let reason = self.kernel.unpinned();
            tracing::info!(reason, "the kernel path ends with this process");
        }
    }
}

fn mode(mode: KernelMode) -> Mode {
    match mode {
        KernelMode::Auto => Mode::Auto,
        KernelMode::Native => Mode::Native,
        KernelMode::Generic => Mode::Generic,
        KernelMode::Off => Mode::Off,
    }
}

/// The listening addresses, wildcards spelt out.
fn specific(listeners: &[SocketAddr], own_addresses: &[IpAddr]) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for listener in listeners {
        if !listener.ip().is_unspecified() {
            all.push(*listener);
            continue;
        }
        let family = |ip: &&IpAddr| ip.is_ipv4() == listener.is_ipv4() && !ip.is_loopback();
        let spelt_out = own_addresses.iter().filter(family);
        all.extend(spelt_out.map(|ip| SocketAddr::new(*ip, listener.port())));
    }
    all
}

/// The interfaces that have one of these addresses, but for the loopback: nothing is routed there.
fn interfaces(listeners: &[SocketAddr], relay_addresses: &[IpAddr]) -> Vec<String> {
    let named = match towpath_engine::interface_addresses() {
        Ok(named) => named,
        Err(error) => {
            tracing::warn!(%error, "cannot read the interfaces of this machine");
            return Vec::new();
        }
    };
    let wanted = |ip: &IpAddr| {
        let listened = listeners.iter().any(|listener| listener.ip() == *ip);
        !ip.is_loopback() && (listened || relay_addresses.contains(ip))
    };
    let mut names: Vec<String> = Vec::new();
    for (name, ip) in named {
        if wanted(&ip) && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_spelt_out_by_the_addresses_of_its_family() {
        let own = ["127.0.0.1", "192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap());
        let listeners = ["0.0.0.0:3478", "[2001:db8::9]:5"].map(|at| at.parse().unwrap());
        let expected = ["192.0.2.1:3478", "[2001:db8::9]:5"].map(|at| at.parse().unwrap());
        assert_eq!(specific(&listeners, &own), expected);
    }

    #[test]
    fn the_loopback_is_no_interface_of_the_kernel_path() {
        let loopback = "127.0.0.1:3478".parse().unwrap();
        assert_eq!(interfaces(&[loopback], &[loopback.ip()]), [""; 0]);
    }
}
