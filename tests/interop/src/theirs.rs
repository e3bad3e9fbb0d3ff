//! The client and the server of `turn-proto`.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use towpath_proto::Timestamp;
use towpath_proto::wire::attribute::Family;
use turn_client_proto::api::{Transmit, TurnClientApi, TurnConfig, TurnPollRet, TurnRecvRet};
use turn_client_proto::stun::Instant;
use turn_client_proto::types::stun::TransportType;
use turn_client_proto::types::stun::message::IntegrityAlgorithm;
use turn_client_proto::types::{AddressFamily, TurnCredentials};
use turn_client_proto::udp::TurnClientUdp;
use turn_server_proto::api::{TurnServerApi, TurnServerPollRet};
use turn_server_proto::server::TurnServer;

use crate::{CLIENT, Datagram, PASSWORD, REALM, RELAY_V4, RELAY_V6, SERVER, USER, Wish};

fn at(now: Timestamp) -> Instant {
    Instant::ZERO + Duration::from_nanos(now.as_nanos())
}

fn timestamp(instant: Instant) -> Timestamp {
    Timestamp::ZERO + instant.duration_since(Instant::ZERO)
}

/// Their client.
pub struct TheirClient {
    client: TurnClientUdp,
}

impl TheirClient {
    /// A client that asks for an allocation.
    pub fn new(_: Timestamp, wish: Wish) -> Self {
        let mut config = TurnConfig::new(TurnCredentials::new(USER, PASSWORD));
        config.set_address_family(match wish.family {
            Family::V4 => AddressFamily::IPV4,
            Family::V6 => AddressFamily::IPV6,
        });
        config.set_supported_integrity(if wish.sha256 {
            IntegrityAlgorithm::Sha256
        } else {
            IntegrityAlgorithm::Sha1
        });
        Self {
            client: TurnClientUdp::allocate(CLIENT, SERVER, config),
        }
    }
}

impl crate::Client for TheirClient {
    fn advance(&mut self, now: Timestamp) -> Option<Timestamp> {
        while self.client.poll_event().is_some() {}
        match self.client.poll(at(now)) {
            TurnPollRet::WaitUntil(next) => Some(timestamp(next)),
            TurnPollRet::Closed => None,
            other => panic!("their client wants {other:?}"),
        }
    }

    fn transmit(&mut self, now: Timestamp) -> Option<Vec<u8>> {
        let transmit = self.client.poll_transmit(at(now))?;
        assert_eq!((transmit.from, transmit.to), (CLIENT, SERVER));
        Some(transmit.data.to_vec())
    }

    fn receive(&mut self, now: Timestamp, bytes: &[u8]) -> Option<(SocketAddr, Vec<u8>)> {
        let transmit = Transmit::new(bytes.to_vec(), TransportType::Udp, SERVER, CLIENT);
        match self.client.recv(transmit, at(now)) {
            TurnRecvRet::Handled => None,
            TurnRecvRet::PeerData(data) => Some((data.peer, data.data().to_vec())),
            other => panic!("their client makes {other:?} of {bytes:02x?}"),
        }
    }

    fn relayed(&self) -> Option<SocketAddr> {
        let mut relayed = self.client.relayed_addresses();
        relayed.next().map(|(_, address)| address)
    }

    fn permit(&mut self, now: Timestamp, peer: IpAddr) {
        let asked = self
            .client
            .create_permission(TransportType::Udp, peer, at(now));
        asked.expect("there is an allocation");
    }

    fn bind_channel(&mut self, now: Timestamp, peer: SocketAddr) {
        let asked = self.client.bind_channel(TransportType::Udp, peer, at(now));
        asked.expect("there is an allocation");
    }

    fn data(&mut self, now: Timestamp, peer: SocketAddr, data: &[u8]) -> Vec<u8> {
        let sent = self
            .client
            .send_to(TransportType::Udp, peer, data.to_vec(), at(now));
        let transmit = sent.expect("the peer is permitted");
        transmit.expect("data is sent at once").build().data
    }

    fn release(&mut self, now: Timestamp) {
        self.client.delete(at(now)).expect("there is an allocation");
    }
}

/// Their server, whose ports open when asked for.
pub struct TheirServer {
    server: TurnServer,
    ports: Vec<SocketAddr>,
    next_port: u16,
    sent: VecDeque<Datagram>,
}

impl TheirServer {
    /// A server that knows the user.
    pub fn new(_: Timestamp) -> Self {
        let mut server = TurnServer::new(TransportType::Udp, SERVER, REALM.to_owned());
        server.add_user(USER.to_owned(), PASSWORD.to_owned());
        Self {
            server,
            ports: Vec::new(),
            next_port: 50_000,
            sent: VecDeque::new(),
        }
    }
}

impl crate::Server for TheirServer {
    fn advance(&mut self, now: Timestamp) -> Option<Timestamp> {
        loop {
            let next = match self.server.poll(at(now)) {
                TurnServerPollRet::WaitUntil(next) => Some(timestamp(next)),
                TurnServerPollRet::AllocateSocket {
                    transport,
                    listen_addr,
                    client_addr,
                    allocation_transport,
                    family,
                } => {
                    let ip = match family {
                        AddressFamily::IPV4 => RELAY_V4,
                        AddressFamily::IPV6 => RELAY_V6,
                    };
                    self.next_port += 1;
                    let address = SocketAddr::new(ip, self.next_port);
                    self.ports.push(address);
                    self.server.allocated_socket(
                        transport,
                        listen_addr,
                        client_addr,
                        allocation_transport,
                        family,
                        Ok(address),
                        at(now),
                    );
                    None
                }
                TurnServerPollRet::SocketClose { listen_addr, .. } => {
                    self.ports.retain(|port| *port != listen_addr);
                    None
                }
                other => panic!("their server wants {other:?}"),
            };
            while let Some(transmit) = self.server.poll_transmit(at(now)) {
                self.sent.push_back(Datagram {
                    source: transmit.from,
                    destination: transmit.to,
                    payload: transmit.data,
                });
            }
            if next.is_some() {
                return next;
            }
        }
    }

    fn receive(&mut self, now: Timestamp, datagram: &Datagram) {
        let Datagram {
            source,
            destination,
            payload,
        } = datagram.clone();
        let transmit = Transmit::new(payload, TransportType::Udp, source, destination);
        if let Some(transmit) = self.server.recv(transmit, at(now)) {
            let transmit = transmit.build();
            self.sent.push_back(Datagram {
                source: transmit.from,
                destination: transmit.to,
                payload: transmit.data,
            });
        }
    }

    fn transmit(&mut self) -> Option<Datagram> {
        self.sent.pop_front()
    }

    fn ports(&self) -> usize {
        self.ports.len()
    }
}
