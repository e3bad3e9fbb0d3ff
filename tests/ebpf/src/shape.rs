//! The shapes a relayed packet can have: which way, which families, which tags and checksums.

use std::net::SocketAddr;

use towpath_ebpf_common::route::{NextHop, RouteKey, Target};

use crate::packet::{Checksum, Datagram, SERVICE_VLAN, VLAN, channel_data};
use crate::program::RUN_INTERFACE;

/// By family, IPv4 first.
const CLIENTS: [&str; 2] = ["192.0.2.7:40000", "[2001:db8:7::7]:40000"];
/// By family, IPv4 first.
const LISTENERS: [&str; 2] = ["198.51.100.1:3478", "[2001:db8:1::1]:3478"];
/// By family, IPv4 first.
const RELAYED: [&str; 2] = ["198.51.100.2:50000", "[2001:db8:1::2]:50000"];
/// By family, IPv4 first.
const PEERS: [&str; 2] = ["203.0.113.9:7000", "[2001:db8:9::9]:7000"];
const CHANNEL: u16 = 0x4abc;
const OTHER_CHANNEL: u16 = 0x4001;
/// The next hop that shapes use.
pub const NEXT_HOP: u32 = 3;

#[derive(Clone, Copy, Debug)]
/// Which way a packet goes.
#[derive(PartialEq, Eq)]
pub enum Way {
    /// ChannelData to UDP.
    ToPeer,
    /// UDP to ChannelData.
    ToClient,
    /// ChannelData to ChannelData.
    Between,
}

/// One shape of packet and what happens to it. Families are 0 for IPv4 and 1 for IPv6.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Which way it goes.
    pub way: Way,
    /// The family it comes by.
    pub from: usize,
    /// The family it leaves by.
    pub to: usize,
    /// EtherType of the tag it comes with.
    pub tag_in: Option<u16>,
    /// VLAN it leaves on; 0 for none.
    pub vlan_out: u16,
    /// Interface it leaves by.
    pub interface: u32,
    /// Its UDP checksum.
    pub checksum: Checksum,
}

/// Parses an address.
pub fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// All of them.
pub fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for way in [Way::ToPeer, Way::ToClient, Way::Between] {
        for (from, to) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            for tag_in in [None, Some(VLAN), Some(SERVICE_VLAN)] {
                for vlan_out in [0, 99] {
                    for checksum in [Checksum::Right, Checksum::None, Checksum::WrongBy(0x1234)] {
                        for interface in [RUN_INTERFACE, RUN_INTERFACE + 1] {
                            shapes.push(Shape {
                                way,
                                from,
                                to,
                                tag_in,
                                vlan_out,
                                interface,
                                checksum,
                            });
                        }
                    }
                }
            }
        }
    }
    shapes
}

impl Shape {
    /// IPv4, untagged, back where it came from.
    pub fn plain(way: Way) -> Self {
        Self {
            way,
            from: 0,
            to: 0,
            tag_in: None,
            vlan_out: 0,
            interface: RUN_INTERFACE,
            checksum: Checksum::Right,
        }
    }

    /// Where it comes from, where it arrives, and its channel.
    pub fn ends(&self) -> (SocketAddr, SocketAddr, u16) {
        match self.way {
            Way::ToPeer | Way::Between => (
                address(CLIENTS[self.from]),
                address(LISTENERS[self.from]),
                CHANNEL,
            ),
            Way::ToClient => (address(PEERS[self.from]), address(RELAYED[self.from]), 0),
        }
    }

    /// The key of its route.
    pub fn key(&self) -> RouteKey {
        let (source, local, channel) = self.ends();
        RouteKey::new(source, local, channel)
    }

    /// Its route.
    pub fn target(&self) -> Target {
        let (source, destination, channel) = match self.way {
            Way::ToPeer => (RELAYED[self.to], PEERS[self.to], 0),
            Way::ToClient => (LISTENERS[self.to], CLIENTS[self.to], CHANNEL),
            Way::Between => (LISTENERS[self.to], PEERS[self.to], OTHER_CHANNEL),
        };
        Target {
            destination: address(destination),
            source: address(source),
            channel,
            up_slot: 0,
            down_slot: 0,
            next_hop: NEXT_HOP,
            generation: 1,
            expires: u64::MAX,
        }
    }

    /// Its next hop.
    pub fn next_hop(&self) -> NextHop {
        NextHop {
            interface: self.interface,
            mtu: 1500,
            destination_mac: [0x02, 0xaa, 1, 2, 3, 4],
            source_mac: [0x02, 0xbb, 5, 6, 7, 8],
            vlan: self.vlan_out,
            state: NextHop::VALID,
        }
    }

    /// A packet of this shape that carries `data`, with `padding` behind the ChannelData message and
    /// `trailer` behind the IP packet. The other header fields follow from the length.
    pub fn datagram(&self, data: &[u8], padding: &[u8], trailer: &[u8]) -> Datagram {
        let (source, local, channel) = self.ends();
        let payload = match channel {
            0 => data.to_vec(),
            channel => channel_data(channel, data, padding),
        };
        Datagram {
            tags: self.tag_in.map(|tag| (tag, 0x2007)).into_iter().collect(),
            traffic_class: 0xb9,
            flow_label: 0x5_4321,
            identification: 0xbeef,
            dont_fragment: !data.len().is_multiple_of(3),
            time_to_live: 2 + data.len() as u8 % 200,
            checksum: self.checksum,
            trailer: trailer.to_vec(),
            ..Datagram::new(source, local, &payload)
        }
    }
}
