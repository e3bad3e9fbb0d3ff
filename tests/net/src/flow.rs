//! One client, its allocation, and a peer it has bound a channel to; data of any shape between them.

use std::net::{SocketAddr, UdpSocket};

use towpath_proto::wire::attribute::Family;

use crate::frame::{Datagram, Mac};
use crate::kernel_lab::{Addresses, KernelLab};
use crate::probe::{Probe, on_channel};

/// Time to live of frames that a flow makes.
const HOPS: u8 = 64;

/// A way through the relay.
#[derive(Debug)]
pub struct Flow {
    /// The client.
    pub probe: Probe,
    /// Its channel to the peer.
    pub channel: u16,
    /// Its relayed address.
    pub relayed: SocketAddr,
    /// The peer.
    pub peer: SocketAddr,
    /// The peer's socket.
    pub socket: UdpSocket,
}

impl Flow {
    /// The channel every flow uses.
    pub const CHANNEL: u16 = 0x4001;

    /// A client that reaches the server by addresses of one family and its peer by those of another.
    ///
    /// # Panics
    ///
    /// Where the server refuses.
    pub fn open(lab: &KernelLab, user: &str, client: &Addresses, peer: &Addresses) -> Self {
        let socket = lab.peer.bind_any(peer.peer);
        let local = socket.local_addr().expect("a bound socket has an address");
        Self::to(lab, user, client, local, socket)
    }

    /// As [`Flow::open`], to this peer, whose socket is kept with it.
    ///
    /// # Panics
    ///
    /// Where the server refuses.
    pub fn to(
        lab: &KernelLab,
        user: &str,
        client: &Addresses,
        peer: SocketAddr,
        socket: UdpSocket,
    ) -> Self {
        let mut probe = Probe::of_user(&lab.client, client.client, client.server(), user);
        let granted = probe
            .allocate(Some(Family::of(peer.ip())))
            .unwrap_or_else(|error| panic!("{user}: {error:?}"));
        probe
            .bind_channel(Self::CHANNEL, peer)
            .unwrap_or_else(|error| panic!("{user}, channel to {peer}: {error:?}"));
        Self {
            probe,
            channel: Self::CHANNEL,
            relayed: granted.relayed.expect("an allocation has an address"),
            peer,
            socket,
        }
    }

    /// What the client sends on its channel.
    pub fn from_client(&self, data: &[u8]) -> Packet {
        Packet {
            source: self.probe.local(),
            destination: self.probe.server(),
            payload: on_channel(self.channel, data),
        }
    }

    /// What the peer sends.
    pub fn from_peer(&self, data: &[u8]) -> Packet {
        Packet {
            source: self.peer,
            destination: self.relayed,
            payload: data.to_vec(),
        }
    }

    /// What the peer gets of [`from_client`](Self::from_client).
    pub fn at_peer(&self, data: &[u8]) -> Packet {
        Packet {
            source: self.relayed,
            destination: self.peer,
            payload: data.to_vec(),
        }
    }

    /// What the client gets of [`from_peer`](Self::from_peer).
    pub fn at_client(&self, data: &[u8]) -> Packet {
        Packet {
            source: self.probe.server(),
            destination: self.probe.local(),
            payload: on_channel(self.channel, data),
        }
    }
}

/// A datagram without a link under it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// The sender.
    pub source: SocketAddr,
    /// The receiver.
    pub destination: SocketAddr,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Packet {
    /// The datagram on a link, with a time to live of its own and no traffic class.
    pub fn on(self, source_mac: Mac, destination_mac: Mac) -> Datagram {
        Datagram {
            source_mac,
            destination_mac,
            source: self.source,
            destination: self.destination,
            hops: HOPS,
            traffic_class: 0,
            dont_fragment: self.source.is_ipv4(),
            payload: self.payload,
        }
    }

    /// Whether this datagram is it.
    pub fn is(&self, datagram: &Datagram) -> bool {
        self.source == datagram.source
            && self.destination == datagram.destination
            && self.payload == datagram.payload
    }
}
