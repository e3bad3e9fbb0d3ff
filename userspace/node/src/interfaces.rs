//! What a node's listeners are called by others.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use towpath_proto::identity::MAX_ADDRESSES;

use crate::error::SpawnError;

/// The addresses that listeners stand for: an unspecified one for all of the machine's of its family,
/// the loopback ones only where there are no others. Link-local ones mean nothing beyond their link.
pub(crate) fn concrete(listeners: &[SocketAddr]) -> Result<Vec<SocketAddr>, SpawnError> {
    let mut concrete = Vec::new();
    for listener in listeners {
        if listener.ip().is_unspecified() {
            let same = |ip: &IpAddr| ip.is_ipv4() == listener.is_ipv4();
            let own: Vec<_> = own_addresses()?.into_iter().filter(same).collect();
            let (loopback, others): (Vec<_>, Vec<_>) =
                own.into_iter().partition(|ip| ip.is_loopback());
            let chosen = if others.is_empty() { loopback } else { others };
            concrete.extend(
                chosen
                    .iter()
                    .map(|ip| SocketAddr::new(*ip, listener.port())),
            );
        } else {
            concrete.push(*listener);
        }
    }
    concrete.truncate(MAX_ADDRESSES);
    Ok(concrete)
}

fn own_addresses() -> Result<BTreeSet<IpAddr>, SpawnError> {
    let beyond_link = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    let named = towpath_engine::interface_addresses().map_err(SpawnError::Addresses)?;
    let addresses = named.into_iter().map(|(_, address)| address);
    Ok(addresses.filter(beyond_link).collect())
}
