//! The packet path: what is forwarded between clients and peers.
//!
//! ```text
//!   client → peer    ChannelData: 5-tuple → allocation → channel → peer      the header is left off
//!                    Send indication: … → permission → peer                  DATA's value goes on
//!   peer → client    relayed port → allocation → peer's channel              a header goes in front
//!                                              → else its permission         as a Data indication
//! ```
//!
//! Expiry is a comparison here and nothing else; tables are swept by the allocation's timer.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use rand_chacha::rand_core::Rng;
use towpath_ebpf_common::gcra::Charge;
use towpath_ebpf_common::meter::PacketSize;

use super::address::{Flow, PeerAddr};
use crate::Timestamp;
use crate::access::OwnAddress;
use crate::machine::{ListenerId, PortId, Prefix, Socket, TrafficClass, Transmit};
use crate::relay::{DropReason, Endpoint, Quota, Relay};
use crate::slots::Way;
use crate::turn::server::unknown_attributes;
use crate::wire::attribute::{Data, Family, XorPeerAddress};
use crate::wire::{
    AttributeType, CHANNEL_DATA_HEADER_BYTES, ChannelData, ChannelNumber, Message, TransactionId,
    data_indication,
};

/// What a UDP datagram over IPv4 holds; what is longer no socket sends.
const MAX_UDP_PAYLOAD_BYTES: usize = 65_535 - 20 - 8;

/// A part of a client's datagram that goes to a peer.
#[derive(Debug)]
pub(crate) struct ToPeer {
    port: PortId,
    destination: SocketAddr,
    payload: Range<usize>,
    dont_fragment: bool,
}

impl ToPeer {
    /// The datagram that leaves, in the class of the one that brought it.
    // RFC 8656 §15, DSCP and ECN, preferred: "Set the outgoing value to the incoming value".
    #[inline]
    pub(crate) fn transmit(self, traffic_class: TrafficClass) -> Transmit {
        Transmit {
            socket: Socket::Relayed(self.port),
            source: None,
            destination: self.destination,
            prefix: Prefix::EMPTY,
            payload: self.payload,
            padding: 0,
            traffic_class,
            dont_fragment: self.dont_fragment,
        }
    }
}

/// How a peer's data reaches the client.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FromPeer {
    /// As ChannelData on this channel.
    Bound(ChannelNumber),
    /// As a Data indication that names the peer.
    Permitted(PeerAddr),
}

impl Relay {
    /// ChannelData from a client (RFC 8656 §12.6).
    #[inline]
    pub(crate) fn channel_data(
        &mut self,
        now: Timestamp,
        listener: ListenerId,
        server: IpAddr,
        client: SocketAddr,
        payload: &[u8],
    ) -> Result<ToPeer, DropReason> {
        let message = ChannelData::parse(payload).map_err(|_| DropReason::BadChannelData)?;
        let (number, len) = (message.channel, message.data.len());
        let flow = Flow::new(listener.0, server, client);
        let id = self
            .allocations
            .find(&flow)
            .ok_or(DropReason::NoAllocation)?;
        self.judge_again(id, now);
        let (allocation, hasher) = self
            .allocations
            .get_mut(id)
            .ok_or(DropReason::NoAllocation)?;
        let channel = allocation
            .channels
            .find(number, hasher)
            .filter(|channel| channel.expires > now)
            .ok_or(DropReason::ChannelNotBound)?;
        let (peer, own) = (channel.peer(), channel.own);
        let start = CHANNEL_DATA_HEADER_BYTES;
        self.send_to_peer(now, id, peer, own, start..start + len)
    }

    /// A Send indication from a client (RFC 8656 §11.2).
    pub(crate) fn send_indication(
        &mut self,
        now: Timestamp,
        message: &Message<'_>,
        from: Endpoint,
    ) -> Result<ToPeer, DropReason> {
        if !unknown_attributes(message).is_empty() {
            return Err(DropReason::UnknownAttribute);
        }
        let id = self
            .allocations
            .find(&from.flow())
            .ok_or(DropReason::NoAllocation)?;
        self.judge_again(id, now);
        // RFC 8656 §11.2: "If the XOR-PEER-ADDRESS or DATA attribute is missing …, then the entire
        // message is silently discarded."
        let peer = message.get::<XorPeerAddress>().ok().flatten();
        let data = message.get::<Data<'_>>().ok().flatten();
        let (Some(XorPeerAddress(peer)), Some(Data(data))) = (peer, data) else {
            return Err(DropReason::BadSendIndication);
        };
        let (allocation, hasher) = self
            .allocations
            .get_mut(id)
            .ok_or(DropReason::NoAllocation)?;
        let family = Family::of(peer.ip());
        if allocation.relayed_in(family).is_none() || peer.port() == 0 {
            return Err(DropReason::BadSendIndication);
        }
        let peer = PeerAddr::new(peer);
        // RFC 8656 §11.2: "the server checks that there is a permission installed for the
        // destination IP address".
        let own = allocation
            .permissions
            .find(peer.ip, hasher)
            .filter(|permission| permission.expires > now)
            .ok_or(DropReason::NoPermissionToPeer)?
            .own;
        let pace = self.config.limits.new_peers.pace();
        let destinations = &mut allocation.details.destinations;
        if !destinations.admit_sent(now, pace, peer, hasher) {
            self.counters.refusals(Quota::NewPeers).increment();
            return Err(DropReason::TooManyNewPeers);
        }
        let start = data.as_ptr() as usize - message.as_bytes().as_ptr() as usize;
        let mut out = self.send_to_peer(now, id, peer, own, start..start + data.len())?;
        self.counters.send_indications.increment();
        // RFC 8656 §15, preferred: "When the server sends a packet to a peer in response to a Send
        // indication containing the DONT-FRAGMENT attribute, then set the DF bit". §14: between other
        // families than IPv4 and IPv4 the attribute "MUST be ignored by the server".
        out.dont_fragment = message.contains(AttributeType::DONT_FRAGMENT)
            && from.client.is_ipv4()
            && out.destination.is_ipv4();
        Ok(out)
    }

    /// Whether a datagram from a peer may reach the client, and how (RFC 8656 §11.3 and §12.7).
    #[inline]
    pub(crate) fn peer_data(
        &mut self,
        now: Timestamp,
        id: PortId,
        remote: SocketAddr,
    ) -> Result<FromPeer, DropReason> {
        self.judge_again(id, now);
        let peer = PeerAddr::new(self.outside(remote));
        let (allocation, hasher) = self.allocations.get_mut(id).ok_or(DropReason::NoSuchPort)?;
        allocation
            .port_to(now, id, remote.is_ipv6())
            .ok_or(DropReason::NoSuchPort)?;
        let channel = allocation.channels.find(peer, hasher);
        let (channel, own) = match channel.filter(|channel| channel.expires > now) {
            Some(channel) => (Some(channel.number), channel.own),
            None => {
                // RFC 8656 §11.3: "If relaying is not permitted, then the UDP datagram is silently
                // discarded."
                let permission = allocation.permissions.find(peer.ip, hasher);
                let permission = permission.filter(|permission| permission.expires > now);
                (
                    None,
                    permission.ok_or(DropReason::NoPermissionFromPeer)?.own,
                )
            }
        };
        if let Some(own) = own
            && !self
                .policy
                .is_own_port_open(own, peer.socket(), &self.shared)
        {
            return Err(DropReason::OwnAddress);
        }
        Ok(channel.map_or(FromPeer::Permitted(peer), FromPeer::Bound))
    }

    /// Data of a peer, for the client of an allocation.
    #[inline]
    pub(crate) fn wrap(
        &mut self,
        now: Timestamp,
        id: PortId,
        from: FromPeer,
        size: PacketSize,
        class: TrafficClass,
    ) -> Option<Transmit> {
        match from {
            FromPeer::Bound(channel) => self.wrap_in_channel_data(now, id, channel, size, class),
            FromPeer::Permitted(peer) => self.wrap_in_indication(now, id, peer, size, class),
        }
    }

    /// A datagram from a peer at what is no allocation's first port.
    #[inline(never)]
    pub(crate) fn second_port_data(
        &mut self,
        now: Timestamp,
        port: PortId,
        remote: SocketAddr,
        size: PacketSize,
        class: TrafficClass,
    ) -> Option<Transmit> {
        let owner = self
            .allocations
            .owner_of(port)
            .filter(|owner| *owner != port);
        let Some(id) = owner else {
            return self.dropped(DropReason::NoSuchPort);
        };
        match self.peer_data(now, id, remote) {
            Ok(from) => self.wrap(now, id, from, size, class),
            Err(reason) => self.dropped(reason),
        }
    }

    /// Data of a bound peer, as ChannelData.
    #[inline]
    fn wrap_in_channel_data(
        &mut self,
        now: Timestamp,
        id: PortId,
        number: ChannelNumber,
        size: PacketSize,
        traffic_class: TrafficClass,
    ) -> Option<Transmit> {
        let len = size.payload as usize;
        // RFC 8656 §12.5: "Over UDP, the padding is not required".
        let header = ChannelData::header(number, len);
        let header = header.filter(|_| len <= MAX_UDP_PAYLOAD_BYTES - CHANNEL_DATA_HEADER_BYTES);
        let Some(header) = header else {
            return self.dropped(DropReason::UnusableDatagram);
        };
        let flow = self.count_to_client(now, id, size)?;
        Some(Transmit {
            socket: Socket::Listener(ListenerId(flow.listener)),
            source: Some(flow.server()),
            destination: flow.client(),
            prefix: Prefix::channel_data(header),
            payload: 0..len,
            padding: 0,
            traffic_class,
            dont_fragment: false,
        })
    }

    /// Data of a peer without a channel, as a Data indication.
    fn wrap_in_indication(
        &mut self,
        now: Timestamp,
        id: PortId,
        peer: PeerAddr,
        size: PacketSize,
        traffic_class: TrafficClass,
    ) -> Option<Transmit> {
        let len = size.payload as usize;
        let mut transaction = TransactionId([0; 12]);
        self.rng.fill_bytes(&mut transaction.0);
        let around = data_indication(transaction, peer.socket(), len).filter(|around| {
            let more = around.prefix.as_bytes().len() + usize::from(around.padding);
            len + more <= MAX_UDP_PAYLOAD_BYTES
        });
        let Some(around) = around else {
            return self.dropped(DropReason::UnusableDatagram);
        };
        let flow = self.count_to_client(now, id, size)?;
        self.counters.data_indications.increment();
        Some(Transmit {
            socket: Socket::Listener(ListenerId(flow.listener)),
            source: Some(flow.server()),
            destination: flow.client(),
            prefix: around.prefix,
            payload: 0..len,
            padding: around.padding,
            traffic_class,
            dont_fragment: false,
        })
    }

    /// Charges and counts a datagram to the client of an allocation, and says where that is.
    #[inline]
    fn count_to_client(&mut self, now: Timestamp, id: PortId, size: PacketSize) -> Option<Flow> {
        let (allocation, _) = self.allocations.get_mut(id)?;
        let charged = self
            .slots
            .charge(now, allocation.slot, Way::Down, size, &mut self.lease);
        if charged != Charge::Passed {
            return self.over_limit();
        }
        allocation.traffic.packets_to_client += 1;
        allocation.traffic.bytes_to_client += u64::from(size.payload);
        self.counters.packets_to_clients.increment();
        self.counters.bytes_to_clients.add(size.payload.into());
        Some(allocation.flow)
    }

    /// Counts a datagram that was not charged.
    #[cold]
    fn over_limit<T>(&self) -> Option<T> {
        self.dropped(DropReason::OverLimit);
        None
    }

    #[inline]
    fn send_to_peer(
        &mut self,
        now: Timestamp,
        id: PortId,
        peer: PeerAddr,
        own: Option<OwnAddress>,
        payload: Range<usize>,
    ) -> Result<ToPeer, DropReason> {
        let destination = match own {
            None => peer.socket(),
            Some(own) => self.own_destination(own, peer.socket())?,
        };
        let (allocation, _) = self
            .allocations
            .get_mut(id)
            .ok_or(DropReason::NoAllocation)?;
        let port = allocation
            .port_to(now, id, destination.is_ipv6())
            .ok_or(DropReason::NoAllocation)?;
        let size = PacketSize::new(destination.is_ipv6(), payload.len() as u32);
        let slot = allocation.slot;
        if self.slots.charge(now, slot, Way::Up, size, &mut self.lease) != Charge::Passed {
            return Err(DropReason::OverLimit);
        }
        allocation.traffic.packets_to_peers += 1;
        allocation.traffic.bytes_to_peers += payload.len() as u64;
        self.counters.packets_to_peers.increment();
        self.counters.bytes_to_peers.add(payload.len() as u64);
        Ok(ToPeer {
            port,
            destination,
            payload,
            dont_fragment: false,
        })
    }

    /// Counts a dropped datagram.
    #[cold]
    pub(crate) fn dropped(&self, reason: DropReason) -> Option<Transmit> {
        self.counters.drops(reason).increment();
        None
    }

    /// Where a datagram to an address of this host goes: relayed ports in use are reached by the
    /// local side of their address.
    #[cold]
    fn own_destination(&self, own: OwnAddress, peer: SocketAddr) -> Result<SocketAddr, DropReason> {
        if !self.policy.is_own_port_open(own, peer, &self.shared) {
            return Err(DropReason::OwnAddress);
        }
        let address = own
            .relay_address()
            .and_then(|index| self.config.relay_addresses.get(index));
        Ok(SocketAddr::new(
            address.map_or(peer.ip(), |address| address.local),
            peer.port(),
        ))
    }

    /// How clients know a peer.
    #[inline]
    pub(super) fn outside(&self, remote: SocketAddr) -> SocketAddr {
        if self.translates {
            self.seen_from_outside(remote)
        } else {
            remote
        }
    }

    /// How peers know the sender: a relayed port of ours by its public address.
    #[cold]
    fn seen_from_outside(&self, remote: SocketAddr) -> SocketAddr {
        let addresses = self.config.relay_addresses.iter().enumerate();
        for (index, address) in addresses.filter(|(_, address)| address.local == remote.ip()) {
            if self.shared.is_live(index, remote.port()) {
                return SocketAddr::new(address.public, remote.port());
            }
        }
        remote
    }
}
