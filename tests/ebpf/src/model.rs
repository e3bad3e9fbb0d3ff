//! What a relayed packet must look like: every header field, by rule.

use towpath_ebpf_common::route::{NextHop, Target};

use crate::packet::{Datagram, VLAN, channel_data};

/// The datagram that leaves for the one that arrived, when `data` is what it carries.
pub fn relayed(arrived: &Datagram, data: &[u8], target: &Target, next_hop: &NextHop) -> Datagram {
    let from_ipv4 = arrived.source.is_ipv4();
    let to_ipv4 = target.destination.is_ipv4();
    Datagram {
        destination_mac: next_hop.destination_mac,
        source_mac: next_hop.source_mac,
        tags: match next_hop.vlan {
            0 => Vec::new(),
            vlan => vec![(VLAN, vlan)],
        },
        source: target.source,
        destination: target.destination,
        traffic_class: arrived.traffic_class,
        flow_label: 0,
        identification: if from_ipv4 && to_ipv4 {
            arrived.identification
        } else {
            0
        },
        dont_fragment: !from_ipv4 || arrived.dont_fragment,
        time_to_live: arrived.time_to_live - 1,
        checksum: arrived.checksum,
        payload: match target.channel {
            0 => data.to_vec(),
            channel => channel_data(channel, data, &[]),
        },
        trailer: Vec::new(),
    }
}
