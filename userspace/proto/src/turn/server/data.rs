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

use rand_chacha::rand_core::Rng;

use super::address::{Flow, PeerAddr};
use super::allocation::{Allocation, State};
use crate::Timestamp;
use crate::access::OwnAddress;
use crate::machine::{ListenerId, PortId, Prefix, Socket, Transmit};
use crate::relay::{DropReason, Endpoint, Relay};
use crate::turn::server::unknown_attributes;
use crate::wire::attribute::{Data, XorPeerAddress};
use crate::wire::{
    CHANNEL_DATA_HEADER_BYTES, ChannelData, Message, TransactionId, data_indication,
};

/// What a UDP datagram over IPv4 holds; what is longer no socket sends.
const MAX_UDP_PAYLOAD_BYTES: usize = 65_535 - 20 - 8;

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
    ) -> Result<Transmit, DropReason> {
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
            .by_number(number, hasher)
            .filter(|channel| channel.usable_until > now)
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
    ) -> Result<Transmit, DropReason> {
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
        if !allocation.is_of_family(peer.ip()) || peer.port() == 0 {
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
        let start = data.as_ptr() as usize - message.as_bytes().as_ptr() as usize;
        let transmit = self.send_to_peer(now, id, peer, own, start..start + data.len())?;
        self.counters.send_indications.increment();
        Ok(transmit)
    }

    /// A datagram from a peer (RFC 8656 §11.3 and §12.7).
    #[inline]
    pub(crate) fn peer_data(
        &mut self,
        now: Timestamp,
        id: PortId,
        remote: SocketAddr,
        len: usize,
    ) -> Result<Transmit, DropReason> {
        self.judge_again(id, now);
        let peer = PeerAddr::new(if self.translates {
            self.seen_from_outside(remote)
        } else {
            remote
        });
        let (allocation, hasher) = self.allocations.get_mut(id).ok_or(DropReason::NoSuchPort)?;
        if !allocation.is_live(now) {
            return Err(DropReason::NoSuchPort);
        }
        let channel = allocation.channels.by_peer(peer, hasher);
        let (channel, own) = match channel.filter(|channel| channel.usable_until > now) {
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
        let (prefix, padding) = match channel {
            Some(number) => {
                // RFC 8656 §12.5: "Over UDP, the padding is not required".
                let header = ChannelData::header(number, len);
                (
                    Prefix::channel_data(header.ok_or(DropReason::UnusableDatagram)?),
                    0,
                )
            }
            None => {
                let mut transaction = TransactionId([0; 12]);
                self.rng.fill_bytes(&mut transaction.0);
                let around = data_indication(transaction, peer.socket(), len)
                    .ok_or(DropReason::UnusableDatagram)?;
                (around.prefix, around.padding)
            }
        };
        if prefix.as_bytes().len() + len + usize::from(padding) > MAX_UDP_PAYLOAD_BYTES {
            return Err(DropReason::UnusableDatagram);
        }
        if channel.is_none() {
            self.counters.data_indications.increment();
        }
        allocation.traffic.packets_to_client += 1;
        allocation.traffic.bytes_to_client += len as u64;
        self.counters.packets_to_clients.increment();
        self.counters.bytes_to_clients.add(len as u64);
        Ok(Transmit {
            socket: Socket::Listener(ListenerId(allocation.flow.listener)),
            source: Some(allocation.flow.server()),
            destination: allocation.flow.client(),
            prefix,
            payload: 0..len,
            padding,
        })
    }

    #[inline]
    fn send_to_peer(
        &mut self,
        now: Timestamp,
        id: PortId,
        peer: PeerAddr,
        own: Option<OwnAddress>,
        payload: std::ops::Range<usize>,
    ) -> Result<Transmit, DropReason> {
        let destination = match own {
            None => peer.socket(),
            Some(own) => self.own_destination(own, peer.socket())?,
        };
        let (allocation, _) = self
            .allocations
            .get_mut(id)
            .ok_or(DropReason::NoAllocation)?;
        if !allocation.is_live(now) {
            return Err(DropReason::NoAllocation);
        }
        allocation.traffic.packets_to_peers += 1;
        allocation.traffic.bytes_to_peers += payload.len() as u64;
        self.counters.packets_to_peers.increment();
        self.counters.bytes_to_peers.add(payload.len() as u64);
        Ok(Transmit {
            socket: Socket::Relayed(id),
            source: None,
            destination,
            prefix: Prefix::EMPTY,
            payload,
            padding: 0,
        })
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

impl Allocation {
    /// Whether data may flow now.
    #[inline]
    pub(crate) fn is_live(&self, now: Timestamp) -> bool {
        self.expires > now && self.state == State::Live
    }

    /// Whether the relayed address is of this family.
    pub(crate) fn is_of_family(&self, ip: IpAddr) -> bool {
        crate::wire::attribute::Family::of(ip) == self.details.family
    }
}
