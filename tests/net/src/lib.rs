//! A laboratory for tests against real peers: hosts in network namespaces of their own, joined by a
//! switch, with the servers and clients under test as child processes.
//!
//! ```text
//!   ┌ server ┐   ┌ client ┐   ┌ peer ┐      one namespace each, addresses 10.77.2.x and fd77:2::x
//!   └──eth0──┘   └──eth0──┘   └─eth0─┘
//!       └───────────┬┴───────────┘
//!               ┌ switch ┐                  a namespace with a bridge
//! ```
//!
//! Everything a test makes goes with it, also when it panics or is killed: processes die with the
//! thread that started them, and namespaces left by a dead process are removed by the next test.
//! Nothing outside these namespaces is touched.

#![forbid(unsafe_code)]

mod aioice;
mod aioquic;
mod arrivals;
mod flow;
mod frame;
mod kernel_lab;
mod lab;
mod live;
pub mod load;
mod neighbour;
mod node;
mod peers;
mod pinned;
mod probe;
mod process;
mod scene;
mod server;
mod skip;
mod stranger;
mod uclient;
mod watch;
mod wire;

pub use aioice::Aioice;
pub use aioquic::Aioquic;
pub use arrivals::{Arrivals, payload_at};
pub use flow::{Flow, Packet};
pub use frame::{Content, Datagram, Mac, Shape};
pub use kernel_lab::{Addresses, KernelLab};
pub use lab::{Host, Lab};
pub use live::offer_live;
pub use neighbour::{Neighbour, paced};
pub use node::{Calls, NodeProcess, echo, node_on, pattern};
pub use peers::EchoPeer;
pub use pinned::{Pinned, Used};
pub use probe::{Granted, Probe, Refused, Relayed, on_channel};
pub use process::Process;
pub use scene::Scene;
pub use server::{
    Driver, KernelMode, KernelOptions, Kind, PASSWORD, REALM, RelayAddress, Server, ServerOptions,
    USER, install, tool,
};
pub use skip::skip;
pub use stranger::{Fill, Login, Stranger, error_of, message};
pub use uclient::{Uclient, UclientOutcome};
pub use watch::watched;
pub use wire::Wire;

/// An IP address as a test writes it down.
///
/// # Panics
///
/// Where it is none.
pub fn address(text: &str) -> std::net::IpAddr {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}
