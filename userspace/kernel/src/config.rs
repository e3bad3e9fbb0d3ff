//! What the kernel path is started with.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use towpath_ebpf_common::strangers::StrangerLimits;

/// Where pins are kept unless the configuration names another place.
pub const PIN_DIRECTORY: &str = "/sys/fs/bpf/towpath";

/// Which rungs of the ladder may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// The best that works, per interface; the reason for what does not is kept.
    #[default]
    Auto,
    /// Native XDP, or an error.
    Native,
    /// Generic XDP, or an error.
    Generic,
    /// Nothing in the kernel.
    Off,
}

impl Mode {
    /// Its name in configuration and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No mode has this name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("kernel mode {0:?} is none of auto, native, generic, off")]
pub struct UnknownMode(pub String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        [Self::Auto, Self::Native, Self::Generic, Self::Off]
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| UnknownMode(text.to_owned()))
    }
}

/// What [`Kernel::start`](crate::Kernel::start) is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KernelConfig {
    /// Which rungs may be used.
    pub mode: Mode,
    /// Names of the interfaces packets arrive on and leave by.
    pub interfaces: Vec<String>,
    /// Peers that can be metered at once: slots are made for all of them.
    pub max_peers: u32,
    /// Routes there is room for; a channel takes two.
    pub max_routes: u32,
    /// Ports that allocations are given. No listener's port lies within.
    pub relay_ports: RangeInclusive<u16>,
    /// Where clients send to: specific addresses, wildcards spelt out.
    pub listeners: Vec<SocketAddr>,
    /// Addresses that relayed ports are on.
    pub relay_addresses: Vec<IpAddr>,
    /// What strangers are answered, and a random key. The default lifts every limit.
    pub strangers: StrangerLimits,
    /// Directory on a bpffs that maps and links are pinned under.
    pub pin_directory: PathBuf,
}

impl KernelConfig {
    /// `mode` on `interfaces`, all else as by default.
    pub fn new(mode: Mode, interfaces: Vec<String>) -> Self {
        Self {
            mode,
            interfaces,
            max_peers: 65_536,
            max_routes: 131_072,
            relay_ports: 49_152..=65_535,
            listeners: Vec::new(),
            relay_addresses: Vec::new(),
            strangers: StrangerLimits::default(),
            pin_directory: Path::new(PIN_DIRECTORY).to_path_buf(),
        }
    }
}
