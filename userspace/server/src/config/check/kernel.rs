//! The rules of `[kernel]`.

use std::path::PathBuf;

use toml::Spanned;

use super::Checker;
use crate::config::error::Problem;
use crate::config::shape::KernelShape;
use crate::config::{KernelMode, KernelSection, Placed};

/// The most peers with a slot.
pub const MAX_KERNEL_PEERS: u32 = 1 << 22;
/// The most routes.
pub const MAX_KERNEL_ROUTES: u32 = 1 << 22;

const DEFAULT_MAX_PEERS: u32 = 65_536;
const DEFAULT_MAX_ROUTES: u32 = 131_072;
/// Room that a server with a handful of users has, too.
const MIN_ROOM: u32 = 64;
/// Where maps are pinned unless the configuration says otherwise.
pub const DEFAULT_PINS: &str = "/sys/fs/bpf/towpath";
/// The most interfaces: each costs a link.
const MAX_INTERFACES: usize = 64;
/// What the kernel keeps of an interface's name, its end included.
const INTERFACE_NAME_BYTES: usize = 16;

impl Checker<'_> {
    pub(super) fn kernel(&mut self, shape: KernelShape) -> KernelSection {
        KernelSection {
            mode: self.kernel_mode(shape.mode),
            interfaces: self.interfaces(shape.interfaces),
            max_peers: self.number(
                "kernel.max_peers",
                shape.max_peers,
                MIN_ROOM..=MAX_KERNEL_PEERS,
                DEFAULT_MAX_PEERS,
            ),
            max_routes: self.number(
                "kernel.max_routes",
                shape.max_routes,
                MIN_ROOM..=MAX_KERNEL_ROUTES,
                DEFAULT_MAX_ROUTES,
            ),
            pins: self.pins(shape.pins),
        }
    }

    fn kernel_mode(&mut self, text: Option<Spanned<String>>) -> KernelMode {
        let Some(text) = text else {
            return KernelMode::Auto;
        };
        text.get_ref().parse().unwrap_or_else(|problem| {
            self.error(text.span(), problem);
            KernelMode::Auto
        })
    }

    fn interfaces(&mut self, list: Vec<Spanned<String>>) -> Vec<Placed<String>> {
        const KEY: &str = "kernel.interfaces";
        if let Some(first) = list.first() {
            self.limit(KEY, first.span(), list.len(), MAX_INTERFACES);
        }
        let mut names: Vec<Placed<String>> = Vec::new();
        for name in list.into_iter().take(MAX_INTERFACES) {
            let (span, value) = (name.span(), name.into_inner());
            if !is_interface_name(&value) {
                self.error(span.clone(), Problem::InterfaceName(value.clone()));
            }
            if names.iter().any(|known| known.value == value) {
                let value = value.clone();
                self.error(span.clone(), Problem::Duplicate { key: KEY, value });
            }
            names.push(Placed { value, span });
        }
        names
    }

    fn pins(&mut self, text: Option<Spanned<String>>) -> PathBuf {
        let Some(text) = text else {
            return DEFAULT_PINS.into();
        };
        if !text.get_ref().starts_with('/') {
            let problem = Problem::PinsPath(text.get_ref().clone());
            self.error(text.span(), problem);
        }
        text.into_inner().into()
    }
}

fn is_interface_name(name: &str) -> bool {
    (1..INTERFACE_NAME_BYTES).contains(&name.len())
        && !name.contains(|char: char| char.is_whitespace() || char.is_control() || char == '/')
        && !matches!(name, "." | "..")
}

impl std::str::FromStr for KernelMode {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text {
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "generic" => Ok(Self::Generic),
            "off" => Ok(Self::Off),
            other => Err(Problem::KernelMode(other.to_owned())),
        }
    }
}
