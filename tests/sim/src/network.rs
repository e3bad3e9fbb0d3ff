//! A network of hosts: who has which address, which sockets are open, and what happens on the way.
//!
//! UDP alone, and whole datagrams. A host's loopback addresses, its own addresses and the
//! unspecified ones stay on the host, as in a kernel; everything else crosses the link between the
//! two hosts. What a host's [`Edge`] does to addresses is the seam for address translation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use towpath_proto::Timestamp;

use crate::dice::{Dice, PerMillion};
use crate::trace::{Trace, What};

/// The lower two bits of a traffic class; all of them say that congestion was met.
const ECN_BITS: u8 = 0b11;

/// One of the hosts, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostId(pub usize);

/// A datagram on its way, or arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Where it comes from, as the receiver sees it.
    pub source: SocketAddr,
    /// Where it goes, as the receiver's socket knows it.
    pub destination: SocketAddr,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// The UDP payload.
    pub payload: Vec<u8>,
    /// The host that sent it, whatever `source` says. Nobody on the network sees it.
    pub sender: HostId,
}

/// What a link does to datagrams.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// The time that every datagram takes.
    pub delay: Duration,
    /// What comes on top, drawn for each.
    pub jitter: Range<Duration>,
    /// Lost ones.
    pub loss: PerMillion,
    /// Ones that arrive twice.
    pub duplication: PerMillion,
    /// Ones that may arrive behind later ones, and the time they take longer.
    pub reordering: (PerMillion, Duration),
    /// Ones that arrive with a bit flipped and a checksum that fits.
    pub corruption: PerMillion,
    /// The longest payload that gets through.
    pub most_bytes: usize,
    /// Of those whose sender understands ECN, the ones that arrive marked (RFC 3168 §5).
    pub congestion: PerMillion,
}

impl Link {
    /// A link that delivers everything once, in order, after `delay`.
    pub const fn perfect(delay: Duration) -> Self {
        Self {
            delay,
            jitter: Duration::ZERO..Duration::ZERO,
            loss: PerMillion(0),
            duplication: PerMillion(0),
            reordering: (PerMillion(0), Duration::ZERO),
            corruption: PerMillion(0),
            most_bytes: usize::MAX,
            congestion: PerMillion(0),
        }
    }
}

/// What stands between a host and the network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Edge {
    /// Nothing: the host has the addresses that others know.
    Open,
    /// A cloud's 1:1 translation: pairs of a local address and the public one that stands for it.
    /// The host's local addresses cannot be reached from outside.
    OneToOne {
        /// Local address, public address.
        pairs: Vec<(IpAddr, IpAddr)>,
        /// Whether a datagram from the host to its own public address comes back to it.
        hairpin: bool,
    },
}

/// Why a socket could not be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BindError {
    /// Another socket has the port.
    InUse,
    /// The host does not have the address.
    NotLocal,
}

/// The hosts, their sockets and the links between them.
#[derive(Debug)]
pub struct Network {
    hosts: Vec<Host>,
    by_address: BTreeMap<IpAddr, HostId>,
    default_link: Link,
    links: BTreeMap<(HostId, HostId), Link>,
    last_arrival: BTreeMap<(HostId, HostId), Timestamp>,
    partitions: BTreeMap<(HostId, HostId), Timestamp>,
    dice: Dice,
    counts: Counts,
}

#[derive(Debug)]
struct Host {
    addresses: BTreeSet<IpAddr>,
    edge: Edge,
    sockets: BTreeSet<SocketAddr>,
}

/// What happened to datagrams so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Handed to the network.
    pub sent: u64,
    /// Made by the network.
    pub duplicated: u64,
    /// Lost, partitions and what is too long included.
    pub lost: u64,
    /// Without a host.
    pub no_host: u64,
    /// Arrived at a host.
    pub arrived: u64,
}

/// A datagram that will arrive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// When.
    pub at: Timestamp,
    /// Where.
    pub host: HostId,
    /// The datagram, with the addresses that the host's sockets know.
    pub packet: Packet,
}

impl Network {
    /// A network without hosts.
    pub fn new(default_link: Link, dice: Dice) -> Self {
        Self {
            hosts: Vec::new(),
            by_address: BTreeMap::new(),
            default_link,
            links: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            partitions: BTreeMap::new(),
            dice,
            counts: Counts::default(),
        }
    }

    /// Adds a host with these addresses of its own; no two hosts share one.
    pub fn add_host(&mut self, addresses: &[IpAddr], edge: Edge) -> HostId {
        let id = HostId(self.hosts.len());
        let known: Vec<IpAddr> = match &edge {
            Edge::Open => addresses.to_vec(),
            Edge::OneToOne { pairs, .. } => pairs.iter().map(|(_, public)| *public).collect(),
        };
        for address in known {
            let other = self.by_address.insert(address, id);
            assert_eq!(other, None, "{address} belongs to two hosts");
        }
        let addresses = addresses.iter().copied().collect();
        self.hosts.push(Host {
            addresses,
            edge,
            sockets: BTreeSet::new(),
        });
        id
    }

    /// Sets the link from one host to another, in this direction.
    pub fn set_link(&mut self, from: HostId, to: HostId, link: Link) {
        self.links.insert((from, to), link);
    }

    /// Gives a translated host another public address in place of one that it has, without a word to it.
    /// What is under way to the old one still arrives; what is sent there from now on has no host.
    pub fn renumber(&mut self, host: HostId, from: IpAddr, to: IpAddr) {
        assert_eq!(
            self.by_address.remove(&from),
            Some(host),
            "{from} is its own"
        );
        let other = self.by_address.insert(to, host);
        assert_eq!(other, None, "{to} belongs to two hosts");
        let Edge::OneToOne { pairs, .. } = &mut self.hosts[host.0].edge else {
            panic!("an open host has the addresses that others know");
        };
        for (_, public) in pairs.iter_mut().filter(|(_, public)| *public == from) {
            *public = to;
        }
    }

    /// Lets nothing pass from one host to another until a time.
    pub fn partition(&mut self, from: HostId, to: HostId, until: Timestamp) {
        self.partitions.insert((from, to), until);
    }

    /// Opens a socket. An unspecified address stands for all of the host's of its family.
    pub fn bind(&mut self, host: HostId, local: SocketAddr) -> Result<(), BindError> {
        let host = &mut self.hosts[host.0];
        let ip = local.ip();
        if !ip.is_unspecified() && !ip.is_loopback() && !host.addresses.contains(&ip) {
            return Err(BindError::NotLocal);
        }
        let clash = host.sockets.iter().any(|open| {
            open.port() == local.port()
                && open.is_ipv4() == local.is_ipv4()
                && (open.ip() == ip || ip.is_unspecified() || open.ip().is_unspecified())
        });
        if clash {
            return Err(BindError::InUse);
        }
        host.sockets.insert(local);
        Ok(())
    }

    /// Closes a socket; false where it was not open.
    pub fn close(&mut self, host: HostId, local: SocketAddr) -> bool {
        self.hosts[host.0].sockets.remove(&local)
    }

    /// The open sockets of a host.
    pub fn sockets(&self, host: HostId) -> &BTreeSet<SocketAddr> {
        &self.hosts[host.0].sockets
    }

    /// The socket of `host` that receives what is sent to `destination`.
    pub fn socket_for(&self, host: HostId, destination: SocketAddr) -> Option<SocketAddr> {
        let sockets = &self.hosts[host.0].sockets;
        let any = SocketAddr::new(unspecified_like(destination.ip()), destination.port());
        [destination, any]
            .into_iter()
            .find(|socket| sockets.contains(socket))
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The sockets of all hosts, for a size that must return to where it began.
    pub fn socket_count(&self) -> usize {
        self.hosts.iter().map(|host| host.sockets.len()).sum()
    }

    /// Sends a datagram: what arrives of it, and when.
    pub fn send(&mut self, now: Timestamp, packet: Packet, trace: &mut Trace) -> Vec<Arrival> {
        let from = packet.sender;
        self.counts.sent += 1;
        let record = |trace: &mut Trace, what, packet: &Packet| {
            trace.add(
                now,
                what,
                (packet.source, packet.destination),
                &packet.payload,
            );
        };
        record(trace, What::Sent, &packet);
        let Some((to, packet)) = self.route(packet.clone()) else {
            self.counts.no_host += 1;
            record(trace, What::NoHost, &packet);
            return Vec::new();
        };
        if to == from {
            self.counts.arrived += 1;
            let at = now
                + self
                    .dice
                    .duration(Duration::from_micros(2)..Duration::from_micros(40));
            let at = self.in_order(from, to, at);
            return vec![Arrival {
                at,
                host: to,
                packet,
            }];
        }
        let link = self
            .links
            .get(&(from, to))
            .unwrap_or(&self.default_link)
            .clone();
        if self
            .partitions
            .get(&(from, to))
            .is_some_and(|until| now < *until)
        {
            self.counts.lost += 1;
            record(trace, What::Partitioned, &packet);
            return Vec::new();
        }
        if packet.payload.len() > link.most_bytes || self.dice.happens(link.loss) {
            self.counts.lost += 1;
            record(trace, What::Lost, &packet);
            return Vec::new();
        }
        let mut copies = 1;
        if self.dice.happens(link.duplication) {
            self.counts.duplicated += 1;
            record(trace, What::Duplicated, &packet);
            copies = 2;
        }
        let mut arrivals = Vec::with_capacity(copies);
        for _ in 0..copies {
            let mut packet = packet.clone();
            if !packet.payload.is_empty() && self.dice.happens(link.corruption) {
                let bit = self.dice.below(packet.payload.len() * 8);
                packet.payload[bit / 8] ^= 1 << (bit % 8);
                record(trace, What::Corrupted, &packet);
            }
            if packet.traffic_class & ECN_BITS != 0 && self.dice.happens(link.congestion) {
                packet.traffic_class |= ECN_BITS;
            }
            self.counts.arrived += 1;
            let at = self.arrival_time(now, from, to, &link);
            arrivals.push(Arrival {
                at,
                host: to,
                packet,
            });
        }
        arrivals
    }

    /// The host that a datagram reaches, and the datagram as it is there.
    fn route(&self, packet: Packet) -> Option<(HostId, Packet)> {
        let Packet {
            source,
            destination,
            traffic_class,
            payload,
            sender: from,
        } = packet;
        let sender = &self.hosts[from.0];
        let target = unmapped(destination.ip());
        let stays =
            target.is_loopback() || target.is_unspecified() || sender.addresses.contains(&target);
        if stays {
            let ip = if target.is_unspecified() {
                loopback_like(target)
            } else {
                target
            };
            let destination = SocketAddr::new(ip, destination.port());
            return Some((
                from,
                Packet {
                    source,
                    destination,
                    traffic_class,
                    payload,
                    sender: from,
                },
            ));
        }
        let source = SocketAddr::new(sender.edge.outbound(source.ip()), source.port());
        let to = *self.by_address.get(&target)?;
        let receiver = &self.hosts[to.0];
        if to == from && !matches!(receiver.edge, Edge::OneToOne { hairpin: true, .. }) {
            return None;
        }
        let destination = SocketAddr::new(receiver.edge.inbound(target), destination.port());
        Some((
            to,
            Packet {
                source,
                destination,
                traffic_class,
                payload,
                sender: from,
            },
        ))
    }

    /// How the sender of a datagram that arrived at `host` knows its source and its destination.
    pub fn as_sent(&self, host: HostId, packet: &Packet) -> (SocketAddr, SocketAddr) {
        let sender = &self.hosts[packet.sender.0].edge;
        let receiver = &self.hosts[host.0].edge;
        let (source, destination) = (packet.source, packet.destination);
        (
            SocketAddr::new(sender.inbound(source.ip()), source.port()),
            SocketAddr::new(receiver.outbound(destination.ip()), destination.port()),
        )
    }

    fn arrival_time(&mut self, now: Timestamp, from: HostId, to: HostId, link: &Link) -> Timestamp {
        let at = now + link.delay + self.dice.duration(link.jitter.clone());
        let (frequency, longer) = link.reordering;
        if self.dice.happens(frequency) {
            return at + self.dice.duration(Duration::ZERO..longer);
        }
        self.in_order(from, to, at)
    }

    fn in_order(&mut self, from: HostId, to: HostId, at: Timestamp) -> Timestamp {
        let last = self.last_arrival.entry((from, to)).or_insert(at);
        *last = at.max(*last);
        *last
    }
}

impl Edge {
    fn outbound(&self, local: IpAddr) -> IpAddr {
        match self {
            Self::Open => local,
            Self::OneToOne { pairs, .. } => pairs
                .iter()
                .find(|pair| pair.0 == local)
                .map_or(local, |pair| pair.1),
        }
    }

    fn inbound(&self, public: IpAddr) -> IpAddr {
        match self {
            Self::Open => public,
            Self::OneToOne { pairs, .. } => pairs
                .iter()
                .find(|pair| pair.1 == public)
                .map_or(public, |pair| pair.0),
        }
    }
}

/// A kernel sends what is addressed to an IPv4-mapped address over IPv4.
fn unmapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
    }
}

fn unspecified_like(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

fn loopback_like(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

#[cfg(test)]
mod tests;
