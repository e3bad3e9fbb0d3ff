//! What only the machine can tell: its addresses, its cores, its limits.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

/// The machine that a server runs on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// Every address of its interfaces, as [`addresses`] gives them.
    pub addresses: Vec<IpAddr>,
    /// Cores this process may use.
    pub cores: u16,
}

impl Host {
    /// Asks the system.
    pub fn read() -> io::Result<Self> {
        let addresses = addresses()?;
        let cores = std::thread::available_parallelism()?.get();
        Ok(Self {
            addresses,
            cores: u16::try_from(cores).unwrap_or(u16::MAX),
        })
    }
}

/// Every address of the machine's interfaces, without scope; each once, in their order.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for (_, address) in towpath_engine::interface_addresses()? {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// Whether an address can be given to peers: a link-local one means nothing beyond its link.
pub fn is_relayable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4 != Ipv4Addr::UNSPECIFIED && !v4.is_link_local(),
        IpAddr::V6(v6) => v6 != Ipv6Addr::UNSPECIFIED && !v6.is_unicast_link_local(),
    }
}

/// How long a port that is in use is tried again: the kernel closes the sockets of a ring a moment
/// after its process has ended, so a server that restarts would meet its own past.
const IN_USE_PATIENCE: Duration = Duration::from_millis(1500);
/// Pause between two tries.
const IN_USE_PAUSE: Duration = Duration::from_millis(50);

/// Tries whether `address` can be listened on, for a while where it is in use.
pub fn await_listen(address: SocketAddr) -> io::Result<()> {
    let end = Instant::now() + IN_USE_PATIENCE;
    loop {
        match try_listen(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                std::thread::sleep(IN_USE_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// Tries whether `address` can be listened on by this process alone. Listening sockets share their
/// port between shards, and so would silently share it with another server: the first to come
/// tries without sharing.
pub fn try_listen(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())
}

/// How many descriptors the process may have, after asking for as many as it may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptors {
    /// The limit in force.
    pub limit: u64,
}

/// Raises the limit on descriptors as far as it goes without privileges.
pub fn raise_descriptors() -> io::Result<Descriptors> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(Descriptors { limit: hard })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn the_loopback_address_is_among_the_machines_addresses() {
        let host = Host::read().unwrap();
        assert!(host.addresses.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(host.cores > 0);
    }

    #[test]
    fn a_port_that_another_socket_shares_is_found_taken() {
        let shared = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        shared.set_reuse_port(true).unwrap();
        shared
            .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
            .unwrap();
        let address = UdpSocket::from(shared);
        let taken = try_listen(address.local_addr().unwrap()).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        let free = address.local_addr().unwrap();
        drop(address);
        try_listen(free).unwrap();
    }

    #[test]
    fn the_limit_on_descriptors_is_raised_to_the_hard_one() {
        let Descriptors { limit } = raise_descriptors().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((soft, hard), (limit, limit));
    }
}
