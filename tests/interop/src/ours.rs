//! Our client and our relay.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use towpath_proto::access::AccessRules;
use towpath_proto::credentials::LongTermKey;
use towpath_proto::machine::{
    self, ListenerId, PortId, ShardId, Socket, TRANSMIT_BUFFER_BYTES, Transmit,
};
use towpath_proto::relay::{
    Credential, Relay, RelayAddress, RelayCommand, RelayConfig, RelayEvent, RelayLimits,
    RelayShared,
};
use towpath_proto::stun::Schedule;
use towpath_proto::turn::client::{
    Client, ClientConfig, Credentials, Event, Ignored, Received, RequestError,
};
use towpath_proto::wire::attribute::Algorithm;
use towpath_proto::{Machine, Timestamp};

use crate::{CLIENT, Datagram, PASSWORD, REALM, RELAY_V4, RELAY_V6, SERVER, USER, Wish};

/// Our client.
pub struct OurClient {
    client: Client,
    failure: Option<RequestError>,
    ignored: Vec<Ignored>,
}

impl OurClient {
    /// A client that asks for an allocation. It signs with what the server offers.
    ///
    /// # Panics
    ///
    /// Never.
    pub fn new(now: Timestamp, wish: Wish) -> Self {
        let credentials = Credentials::new(USER.to_owned(), PASSWORD.to_owned());
        let config = ClientConfig {
            server: SERVER,
            credentials: Arc::new(credentials.expect("a user may have them")),
            lifetime: None,
            mobility: false,
            schedule: Schedule::STANDARD,
        };
        let mut client = Client::new(config, [2; 32]);
        let asked = client.allocate(now, Some(wish.family));
        asked.expect("a new client may ask");
        Self {
            client,
            failure: None,
            ignored: Vec::new(),
        }
    }

    /// Why there is no allocation.
    pub fn failure(&self) -> Option<RequestError> {
        self.failure
    }

    /// Why datagrams of the server's were ignored.
    pub fn ignored(&self) -> &[Ignored] {
        &self.ignored
    }
}

impl crate::Client for OurClient {
    fn advance(&mut self, now: Timestamp) -> Option<Timestamp> {
        self.client.handle_timeout(now);
        while let Some(event) = self.client.poll_event() {
            if let Event::AllocateFailed(error) = event {
                self.failure = Some(error);
            }
        }
        self.client.poll_timeout()
    }

    fn transmit(&mut self, now: Timestamp) -> Option<Vec<u8>> {
        let mut buffer = [0; TRANSMIT_BUFFER_BYTES];
        let len = self.client.poll_transmit(now, &mut buffer)?;
        Some(buffer[..len].to_vec())
    }

    fn receive(&mut self, now: Timestamp, bytes: &[u8]) -> Option<(SocketAddr, Vec<u8>)> {
        match self.client.handle_datagram(now, SERVER, bytes) {
            Received::Data { peer, payload } => Some((peer, payload.to_vec())),
            Received::Icmp { .. } | Received::Response => None,
            Received::Ignored(why) => {
                self.ignored.push(why);
                None
            }
        }
    }

    fn relayed(&self) -> Option<SocketAddr> {
        self.client
            .allocation()
            .map(|allocation| allocation.relayed)
    }

    fn permit(&mut self, now: Timestamp, peer: IpAddr) {
        self.client
            .permit(now, peer)
            .expect("there is an allocation");
    }

    fn bind_channel(&mut self, now: Timestamp, peer: SocketAddr) {
        let asked = self.client.bind_channel(now, peer);
        asked.expect("there is an allocation");
    }

    fn data(&mut self, _: Timestamp, peer: SocketAddr, data: &[u8]) -> Vec<u8> {
        let mut buffer = [0; TRANSMIT_BUFFER_BYTES];
        let len = self.client.send(peer, data, &mut buffer);
        buffer[..len.expect("the peer is permitted")].to_vec()
    }

    fn release(&mut self, now: Timestamp) {
        self.client.release(now);
    }
}

/// Our relay, with one shard, whose ports open when asked for.
pub struct OurServer {
    relay: Relay,
    ports: BTreeMap<PortId, SocketAddr>,
    sent: VecDeque<Datagram>,
}

impl OurServer {
    /// A relay that knows the user.
    ///
    /// # Panics
    ///
    /// Never.
    pub fn new(_: Timestamp) -> Self {
        let key = |algorithm| {
            let key = LongTermKey::derive(algorithm, USER, REALM, PASSWORD);
            key.expect("a user may have them")
        };
        let (md5, sha256) = (key(Algorithm::Md5), key(Algorithm::Sha256));
        let credential = Credential {
            md5: md5.as_bytes().try_into().expect("MD5 has 16 bytes"),
            sha256: Some(sha256.as_bytes().try_into().expect("SHA-256 has 32 bytes")),
        };
        let config = RelayConfig {
            realm: REALM.to_owned(),
            software: Some("towpath".to_owned()),
            listeners: vec![SERVER],
            relay_addresses: vec![
                RelayAddress::direct(RELAY_V4),
                RelayAddress::direct(RELAY_V6),
            ],
            own_addresses: Vec::new(),
            behavior: None,
            alternate_servers: Vec::new(),
            mobility: false,
            port_range: 50_000..=50_999,
            shards: 1,
            users: [(USER, credential)].into_iter().collect(),
            access: AccessRules::default(),
            limits: RelayLimits::default(),
            offload: false,
            nonce_secret: [3; 32],
        };
        config.validate().expect("the configuration is sound");
        let shared = Arc::new(RelayShared::new(&config));
        Self {
            relay: Relay::new(Arc::new(config), shared, ShardId(0), [1; 32]),
            ports: BTreeMap::new(),
            sent: VecDeque::new(),
        }
    }

    fn carry_out(&mut self, now: Timestamp) {
        while let Some(command) = self.relay.poll_command() {
            match command {
                RelayCommand::OpenPort { port, local } => {
                    self.ports.insert(port, local);
                    self.relay
                        .handle_event(now, RelayEvent::PortOpened { port });
                }
                RelayCommand::ClosePort { port } => {
                    self.ports.remove(&port);
                }
                RelayCommand::SetRoute { .. }
                | RelayCommand::RemoveRoute { .. }
                | RelayCommand::HandOver { .. }
                | RelayCommand::Notify(_) => {}
            }
        }
        let mut buffer = [0; TRANSMIT_BUFFER_BYTES];
        while let Some(transmit) = self.relay.poll_transmit(now, &mut buffer) {
            self.send(&transmit, &buffer);
        }
    }

    fn send(&mut self, transmit: &Transmit, buffer: &[u8]) {
        let mut payload = transmit.prefix.as_bytes().to_vec();
        payload.extend_from_slice(&buffer[transmit.payload.clone()]);
        payload.resize(payload.len() + usize::from(transmit.padding), 0);
        let source = match transmit.socket {
            Socket::Listener(_) => SERVER,
            Socket::Relayed(port) => self.ports[&port],
        };
        self.sent.push_back(Datagram {
            source,
            destination: transmit.destination,
            payload,
        });
    }
}

impl crate::Server for OurServer {
    fn advance(&mut self, now: Timestamp) -> Option<Timestamp> {
        self.relay.handle_timeout(now);
        self.carry_out(now);
        self.relay.poll_timeout()
    }

    fn receive(&mut self, now: Timestamp, datagram: &Datagram) {
        let socket = if datagram.source == CLIENT {
            Socket::Listener(ListenerId(0))
        } else {
            let mut ports = self.ports.iter();
            let port = ports.find(|(_, local)| **local == datagram.destination);
            // A port that is closed hears nothing.
            let Some((port, _)) = port else { return };
            Socket::Relayed(*port)
        };
        let mut payload = datagram.payload.clone();
        let arrived = machine::Datagram {
            socket,
            local: datagram.destination.ip(),
            remote: datagram.source,
            traffic_class: machine::TrafficClass::ORDINARY,
            payload: &mut payload,
        };
        if let Some(transmit) = self.relay.handle_datagram(now, arrived) {
            self.send(&transmit, &payload);
        }
        self.carry_out(now);
    }

    fn transmit(&mut self) -> Option<Datagram> {
        self.sent.pop_front()
    }

    fn ports(&self) -> usize {
        self.ports.len()
    }
}
