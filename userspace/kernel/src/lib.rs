//! The kernel path of the relay: loads the XDP program, puts it on interfaces, keeps it there when the
//! process ends, and gives typed access to its maps. It knows no protocol.
//!
//! ```text
//!   Kernel ── rungs       where each interface's packets are relayed, and why not better
//!     ├────── routes      written and removed one by one
//!     ├────── next_hops   destination ─▶ index, followed live through the kernel's tables
//!     ├────── slots       limits and counters as shared memory
//!     ├────── settings    words the program reads with every packet
//!     └────── reasons     what became of packets
//!   Pins   ── slots, settings, reasons of a daemon, running or not, for another process
//! ```
//!
//! It needs `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`. Whatever is missing is a reason, and the
//! rest of the program goes on without.

mod attach;
mod config;
mod kernel;
mod layout;
mod map;
mod netlink;
mod next_hops;
mod pin_directory;
mod pins;
mod probe;
mod reasons;
mod refusal;
mod routes;
mod settings;
mod slots;
mod strangers;
mod xdp_features;

pub use attach::{InterfaceRung, Rung};
pub use config::{KernelConfig, Mode, PIN_DIRECTORY, UnknownMode};
pub use kernel::Kernel;
pub use next_hops::{NextHopCounts, NextHops, Unusable};
pub use pins::{PinError, Pins};
pub use reasons::Reasons;
pub use refusal::KernelError;
pub use routes::{RouteError, RouteFailures, Routes};
pub use settings::SettingsMap;
pub use slots::{MappedSlots, SlotError};

// The tests of this crate from within and from without use the same hosts.
#[cfg(test)]
extern crate self as towpath_kernel;
#[cfg(test)]
#[path = "../tests/lab/mod.rs"]
mod lab;

/// The program, as `ebpf/programs` was built.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/dist/towpath.bpf.o");
