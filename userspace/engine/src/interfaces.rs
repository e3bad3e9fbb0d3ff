//! The addresses of this machine's interfaces.

use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

/// Every address of the machine's interfaces, without scope, with the name of its interface.
pub fn interface_addresses() -> io::Result<Vec<(String, IpAddr)>> {
    let named = getifaddrs()?.filter_map(|interface| {
        let address = interface.address.as_ref().and_then(ip_address)?;
        Some((interface.interface_name, address))
    });
    Ok(named.collect())
}

fn ip_address(address: &SockaddrStorage) -> Option<IpAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
        (None, Some(v6)) => Some(IpAddr::V6(v6.ip())),
        (None, None) => None,
    }
}
