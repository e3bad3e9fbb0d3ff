//! The kernel's part of a relay's host: a map of routes, and the packets that take them.
//!
//! ```text
//!   packet ─▶ key ─▶ route, not expired ─▶ out          relay's shards never see it
//!               └──▶ anything else      ─▶ passed to the shards' sockets
//! ```
//!
//! It knows no TURN: whether a route is right is for [`Model::check_routes`] to say.
//!
//! [`Model::check_routes`]: crate::model::Model::check_routes

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use towpath_ebpf_common::gcra::Charge;
use towpath_ebpf_common::lease::Lease;
use towpath_ebpf_common::meter::PacketSize;
use towpath_ebpf_common::route::RouteKey;
use towpath_proto::Timestamp;
use towpath_proto::relay::{RelayCommand, RouteTarget};
use towpath_proto::slots::{PeerSlot, Slots, Way};

use crate::dice::{Dice, PerMillion};
use crate::model::{Sent, Totals};
use crate::network::Packet;
use crate::stun;

/// What becomes of packets that have a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelPath {
    /// The relay is told that there is no kernel path.
    Off,
    /// They go to the relay, which has to do what the route says.
    Watched,
    /// They take the route.
    Taken,
}

/// The longest UDP payload that leaves on a link of 1500 bytes, over IPv6 and with a header in front.
const LONGEST_PAYLOAD: usize = 1500 - 40 - 8 - 4;

/// The map of routes, with what userspace believes to be in it.
#[derive(Debug)]
pub struct Kernel {
    path: KernelPath,
    port_range: RangeInclusive<u16>,
    routes: BTreeMap<RouteKey, RouteTarget>,
    told: BTreeMap<RouteKey, RouteTarget>,
    refused: PerMillion,
    dice: Dice,
    taken: Totals,
    lease: Lease,
}

/// What a packet becomes, and who pays for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forwarded {
    /// The packet that leaves.
    pub sent: Sent,
    payer: PeerSlot,
    way: Way,
    size: PacketSize,
}

impl Kernel {
    /// An empty map that refuses a route now and then.
    pub fn new(
        path: KernelPath,
        port_range: RangeInclusive<u16>,
        refused: PerMillion,
        dice: Dice,
    ) -> Self {
        Self {
            path,
            port_range,
            routes: BTreeMap::new(),
            told: BTreeMap::new(),
            refused,
            dice,
            taken: Totals::default(),
            lease: Lease::EMPTY,
        }
    }

    /// What becomes of packets that have a route.
    pub fn path(&self) -> KernelPath {
        self.path
    }

    /// What is in the map.
    pub fn routes(&self) -> &BTreeMap<RouteKey, RouteTarget> {
        &self.routes
    }

    /// What the relay has asked for and not taken back: the map, and what it refused.
    pub fn told(&self) -> &BTreeMap<RouteKey, RouteTarget> {
        &self.told
    }

    /// What took a route.
    pub fn taken(&self) -> Totals {
        self.taken
    }

    /// Does what the relay asks for, if it is about routes.
    pub fn execute(&mut self, command: &RelayCommand) {
        match command {
            RelayCommand::SetRoute { key, route } => {
                assert_ne!(self.path, KernelPath::Off, "nobody can do {command:?}");
                self.told.insert(*key, *route);
                if self.dice.happens(self.refused) {
                    self.routes.remove(key);
                } else {
                    self.routes.insert(*key, *route);
                }
            }
            RelayCommand::RemoveRoute { key } => {
                let told = self.told.remove(key);
                assert!(told.is_some(), "{key:?} was not set or is removed twice");
                self.routes.remove(key);
            }
            RelayCommand::OpenPort { .. }
            | RelayCommand::ClosePort { .. }
            | RelayCommand::HandOver { .. }
            | RelayCommand::Notify(_) => {}
        }
    }

    /// What a packet becomes that has a route now.
    pub fn forward(&self, now: Timestamp, packet: &Packet) -> Option<Forwarded> {
        let Packet {
            source,
            destination,
            traffic_class,
            payload,
            ..
        } = packet;
        let (channel, data) = self.parse(*destination, payload)?;
        let key = RouteKey::new(*source, *destination, channel);
        let route = self.routes.get(&key).filter(|route| route.expires > now)?;
        let payload = match route.channel {
            Some(number) => stun::channel_data(number.number(), data, false),
            None => data.to_vec(),
        };
        let sent = Sent {
            source: route.source,
            destination: route.destination,
            traffic_class: *traffic_class,
            // No datagram of a simulated host has the bit that it would copy.
            dont_fragment: false,
            payload,
        };
        // What pays for both ways has peers on both sides, and none of these routes does.
        let (payer, way, over_ipv6) = if route.up_slot != PeerSlot::NOBODY {
            (route.up_slot, Way::Up, route.destination.is_ipv6())
        } else {
            (route.down_slot, Way::Down, source.is_ipv6())
        };
        let len = u32::try_from(data.len()).expect("a datagram is short");
        Some(Forwarded {
            sent,
            payer,
            way,
            size: PacketSize::new(over_ipv6, len),
        })
    }

    /// Charges a packet that takes its route; whether it may.
    pub fn charge(&mut self, now: Timestamp, slots: &dyn Slots, packet: &Forwarded) -> bool {
        let Forwarded {
            payer, way, size, ..
        } = packet;
        slots.charge(now, *payer, *way, *size, &mut self.lease) == Charge::Passed
    }

    /// A packet's channel, 0 for plain UDP, and its data; `None` where it is passed in any case.
    fn parse<'a>(&self, destination: SocketAddr, payload: &'a [u8]) -> Option<(u16, &'a [u8])> {
        if payload.len() > LONGEST_PAYLOAD {
            return None;
        }
        if self.port_range.contains(&destination.port()) {
            return (!is_nested(payload)).then_some((0, payload));
        }
        let [high @ 0x40..=0x7f, low, rest @ ..] = payload else {
            return None;
        };
        let (len, data) = rest.split_first_chunk()?;
        let len = usize::from(u16::from_be_bytes(*len));
        is_whole(data, len).then(|| (u16::from_be_bytes([*high, *low]), &data[..len]))
    }

    /// Counts a packet that took its route.
    pub fn count(&mut self, sent: &Sent) {
        if self.port_range.contains(&sent.source.port()) {
            self.taken.packets_to_peers += 1;
            self.taken.bytes_to_peers += sent.payload.len() as u64;
        } else {
            self.taken.packets_to_clients += 1;
            self.taken.bytes_to_clients += sent.payload.len() as u64 - 4;
        }
    }
}

/// Whether `data` is `len` bytes and, at most, their padding.
fn is_whole(data: &[u8], len: usize) -> bool {
    (len..=len.next_multiple_of(4)).contains(&data.len())
}

/// Whether data is ChannelData in ChannelData more often than it can be without a loop. Data
/// indications in between are not looked for: such a loop ends where another host sees it, or where
/// it has grown too long for its links.
fn is_nested(payload: &[u8]) -> bool {
    let mut inner = payload;
    for _ in 0..=4 {
        let [0x40..=0x7f, _, high, low, data @ ..] = inner else {
            return false;
        };
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        if !is_whole(data, len) {
            return false;
        }
        inner = &data[..len];
    }
    true
}
