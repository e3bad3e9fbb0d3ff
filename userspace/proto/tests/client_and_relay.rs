//! Our TURN client against our relay, both driven under virtual time: what one writes, the other
//! understands, for as long as an allocation lasts.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use towpath_proto::access::AccessRules;
use towpath_proto::credentials::LongTermKey;
use towpath_proto::machine::{
    Datagram, ListenerId, PortId, ShardId, Socket, TRANSMIT_BUFFER_BYTES, TrafficClass, Transmit,
};
use towpath_proto::relay::{
    Credential, PortError, Relay, RelayAddress, RelayCommand, RelayConfig, RelayEvent, RelayLimits,
    RelayShared,
};
use towpath_proto::stun::{BindingClient, Schedule};
use towpath_proto::turn::client::{
    Allocation, Client, ClientConfig, Credentials, Event, MoveError, Received, RequestError,
    SendError,
};
use towpath_proto::wire::TransactionId;
use towpath_proto::wire::attribute::{Algorithm, Family};
use towpath_proto::{Machine, Timestamp};

const REALM: &str = "example.org";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn relay_config() -> RelayConfig {
    let key = LongTermKey::derive(Algorithm::Md5, "alice", REALM, "secret").unwrap();
    let alice = Credential {
        md5: key.as_bytes().try_into().unwrap(),
        sha256: None,
    };
    RelayConfig {
        realm: REALM.to_owned(),
        software: None,
        listeners: vec![address("5.5.5.5:3478")],
        relay_addresses: vec![
            RelayAddress::direct(IpAddr::from([5, 5, 5, 5])),
            RelayAddress::direct("2600::5".parse().unwrap()),
        ],
        own_addresses: Vec::new(),
        behavior: None,
        alternate_servers: Vec::new(),
        port_range: 50_000..=50_009,
        shards: 1,
        users: [("alice", alice)].into_iter().collect(),
        access: AccessRules::default(),
        limits: RelayLimits::default(),
        mobility: true,
        offload: false,
        nonce_secret: [3; 32],
    }
}

/// One client, one relay, and a network without loss between them and one peer.
struct World {
    now: Timestamp,
    relay: Relay,
    client: Client,
    client_address: SocketAddr,
    ports: BTreeMap<PortId, SocketAddr>,
    fails_ports: bool,
    /// What left a relayed port: from, to, bytes.
    at_peers: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    at_client: Vec<(SocketAddr, Vec<u8>)>,
    /// What went to an address that the client has left.
    astray: Vec<Vec<u8>>,
    events: Vec<Event>,
}

impl World {
    fn new(password: &str) -> Self {
        Self::with(relay_config(), password)
    }

    fn with(config: RelayConfig, password: &str) -> Self {
        config.validate().unwrap();
        let shared = Arc::new(RelayShared::new(&config));
        let credentials = Credentials::new("alice".into(), password.into()).unwrap();
        let client = ClientConfig {
            server: address("5.5.5.5:3478"),
            credentials: Arc::new(credentials),
            lifetime: None,
            mobility: true,
            schedule: Schedule::STANDARD,
        };
        Self {
            now: Timestamp::ZERO + Duration::from_secs(500),
            relay: Relay::new(Arc::new(config), shared, ShardId(0), [1; 32]),
            client: Client::new(client, [2; 32]),
            client_address: address("198.51.100.9:4000"),
            ports: BTreeMap::new(),
            fails_ports: false,
            at_peers: Vec::new(),
            at_client: Vec::new(),
            astray: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Lets both machines do what is due until neither has anything more to do now.
    fn run(&mut self) {
        loop {
            self.client.handle_timeout(self.now);
            let mut buffer = [0; TRANSMIT_BUFFER_BYTES];
            let sent = self.client.poll_transmit(self.now, &mut buffer);
            if let Some(len) = sent {
                self.send_to_relay(&mut buffer[..len]);
            }
            self.relay.handle_timeout(self.now);
            self.run_relay();
            self.events
                .extend(std::iter::from_fn(|| self.client.poll_event()));
            if sent.is_none() {
                return;
            }
        }
    }

    fn run_relay(&mut self) {
        while let Some(command) = self.relay.poll_command() {
            match command {
                RelayCommand::OpenPort { port, .. } if self.fails_ports => {
                    let failed = RelayEvent::PortFailed {
                        port,
                        error: PortError::NoDescriptors,
                    };
                    self.relay.handle_event(self.now, failed);
                }
                RelayCommand::OpenPort { port, local } => {
                    self.ports.insert(port, local);
                    self.relay
                        .handle_event(self.now, RelayEvent::PortOpened { port });
                }
                RelayCommand::ClosePort { port } => {
                    self.ports.remove(&port).unwrap();
                }
                RelayCommand::SetRoute { .. } | RelayCommand::RemoveRoute { .. } => {}
                RelayCommand::HandOver { to, .. } => {
                    panic!("a relay of one shard hands over to {to:?}")
                }
                RelayCommand::Notify(_) => {}
            }
        }
        let mut buffer = [0; TRANSMIT_BUFFER_BYTES];
        while let Some(transmit) = self.relay.poll_transmit(self.now, &mut buffer) {
            self.deliver(&transmit, &buffer);
        }
    }

    fn send_to_relay(&mut self, bytes: &mut [u8]) {
        let datagram = Datagram {
            socket: Socket::Listener(ListenerId(0)),
            local: IpAddr::from([5, 5, 5, 5]),
            remote: self.client_address,
            traffic_class: TrafficClass::ORDINARY,
            payload: bytes,
        };
        if let Some(transmit) = self.relay.handle_datagram(self.now, datagram) {
            self.deliver(&transmit, bytes);
        }
        self.run_relay();
    }

    fn arrive_from_peer(&mut self, peer: SocketAddr, relayed: SocketAddr, payload: &[u8]) {
        let port = self.ports.iter().find(|(_, local)| **local == relayed);
        let socket = Socket::Relayed(*port.unwrap().0);
        let mut bytes = payload.to_vec();
        let datagram = Datagram {
            socket,
            local: relayed.ip(),
            remote: peer,
            traffic_class: TrafficClass::ORDINARY,
            payload: &mut bytes,
        };
        if let Some(transmit) = self.relay.handle_datagram(self.now, datagram) {
            self.deliver(&transmit, &bytes);
        }
    }

    fn deliver(&mut self, transmit: &Transmit, buffer: &[u8]) {
        let mut bytes = transmit.prefix.as_bytes().to_vec();
        bytes.extend_from_slice(&buffer[transmit.payload.clone()]);
        bytes.resize(bytes.len() + usize::from(transmit.padding), 0);
        match transmit.socket {
            Socket::Relayed(port) => {
                self.at_peers
                    .push((self.ports[&port], transmit.destination, bytes));
            }
            Socket::Listener(_) => {
                if transmit.destination != self.client_address {
                    self.astray.push(bytes);
                    return;
                }
                let server = address("5.5.5.5:3478");
                if let Received::Data { peer, payload } =
                    self.client.handle_datagram(self.now, server, &bytes)
                {
                    self.at_client.push((peer, payload.to_vec()));
                }
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.run();
            let deadlines = [self.client.poll_timeout(), self.relay.poll_timeout()];
            match deadlines
                .into_iter()
                .flatten()
                .min()
                .filter(|next| *next <= end)
            {
                Some(next) => self.now = self.now.max(next),
                None => break,
            }
        }
        self.now = end;
    }

    fn allocate(&mut self, family: Option<Family>) -> Allocation {
        self.client.allocate(self.now, family).unwrap();
        self.run();
        let allocation = self.client.allocation().unwrap();
        assert_eq!(self.events, [Event::Allocated(allocation)]);
        self.events.clear();
        allocation
    }

    fn send(&mut self, peer: SocketAddr, payload: &[u8]) -> Result<usize, SendError> {
        let mut buffer = [0; 2048];
        let len = self.client.send(peer, payload, &mut buffer)?;
        self.send_to_relay(&mut buffer[..len]);
        Ok(len)
    }
}

/// Sends there and back; returns how long the message to the server was.
fn exchange(world: &mut World, relayed: SocketAddr, peer: SocketAddr) -> usize {
    let len = world.send(peer, b"to peer").unwrap();
    assert_eq!(
        world.at_peers.pop(),
        Some((relayed, peer, b"to peer".to_vec()))
    );
    world.arrive_from_peer(peer, relayed, b"from peer");
    assert_eq!(world.at_client.pop(), Some((peer, b"from peer".to_vec())));
    len
}

#[test]
fn an_allocation_carries_data_in_both_directions_and_both_forms_in_both_families() {
    for (family, peer) in [(Family::V4, "9.9.9.9:7000"), (Family::V6, "[2620::9]:7000")] {
        let mut world = World::new("secret");
        let peer = address(peer);
        let Allocation {
            relayed,
            mapped,
            lifetime,
        } = world.allocate(Some(family));
        assert_eq!(Family::of(relayed.ip()), family);
        assert_eq!(
            (mapped, lifetime),
            (world.client_address, Duration::from_secs(600))
        );

        world.client.permit(world.now, peer.ip()).unwrap();
        world.run();
        assert_eq!(
            world.events.pop(),
            Some(Event::PermissionCreated(peer.ip()))
        );
        assert!(
            exchange(&mut world, relayed, peer) > 40,
            "a Send indication"
        );

        let channel = world.client.bind_channel(world.now, peer).unwrap();
        world.run();
        assert_eq!(world.events.pop(), Some(Event::ChannelBound(peer, channel)));
        assert_eq!(exchange(&mut world, relayed, peer), 4 + 7, "ChannelData");
    }
}

#[test]
fn permissions_channels_and_the_allocation_last_for_hours_and_over_stale_nonces() {
    let mut world = World::new("secret");
    let (permitted, bound) = (address("9.9.9.9:7000"), address("9.9.9.10:7000"));
    let relayed = world.allocate(None).relayed;
    world.client.permit(world.now, permitted.ip()).unwrap();
    world.client.bind_channel(world.now, bound).unwrap();
    world.run();
    world.events.clear();
    // A nonce of the relay is good for one hour.
    for _ in 0..40 {
        world.pass(Duration::from_secs(301));
        exchange(&mut world, relayed, permitted);
        exchange(&mut world, relayed, bound);
    }
    assert_eq!(world.events, [], "renewals are no news");
}

#[test]
fn a_release_gives_the_port_back() {
    let mut world = World::new("secret");
    world.allocate(None);
    assert_eq!(world.ports.len(), 1);
    world.client.release(world.now);
    world.run();
    assert_eq!(world.events, [Event::Released]);
    assert!(world.ports.is_empty());
    world.events.clear();
    world.allocate(None);
}

#[test]
fn an_allocation_follows_its_client_from_address_to_address() {
    let mut world = World::new("secret");
    let (permitted, bound) = (address("9.9.9.9:7000"), address("9.9.9.10:7000"));
    let relayed = world.allocate(None).relayed;
    assert!(world.client.is_mobile());
    world.client.permit(world.now, permitted.ip()).unwrap();
    world.client.bind_channel(world.now, bound).unwrap();
    world.run();
    world.events.clear();
    let places = ["198.51.100.9:4001", "203.0.114.7:80", "198.51.100.9:4000"];
    for (round, place) in (1..).zip(places) {
        world.client_address = address(place);
        world.client.rebind(world.now).unwrap();
        // What was asked for meanwhile waits for the new address.
        let late = IpAddr::from([9, 9, 8, round]);
        world.client.permit(world.now, late).unwrap();
        world.run();
        let created = Event::PermissionCreated(late);
        assert!(world.events.contains(&created), "{:?}", world.events);
        assert!(world.events.contains(&Event::Moved), "{:?}", world.events);
        // The client has sent nothing but requests from there.
        world.arrive_from_peer(bound, relayed, b"from peer");
        assert_eq!(world.at_client.pop(), Some((bound, b"from peer".to_vec())));
        exchange(&mut world, relayed, permitted);
        exchange(&mut world, relayed, bound);
        world.events.clear();
        world.pass(Duration::from_secs(400));
    }
    assert!(world.astray.is_empty(), "{:?}", world.astray);
    assert_eq!(world.ports.len(), 1);
    world.client_address = address("198.51.100.9:4002");
    world.client.rebind(world.now).unwrap();
    world.client.release(world.now);
    world.run();
    assert!(world.ports.is_empty(), "released from the new address");
}

#[test]
fn where_mobility_is_forbidden_there_is_an_allocation_without_it() {
    let mut config = relay_config();
    config.mobility = false;
    let mut world = World::with(config, "secret");
    world.allocate(None);
    assert!(!world.client.is_mobile());
    assert_eq!(world.client.rebind(world.now), Err(MoveError::NotMobile));
}

#[test]
fn a_silent_client_loses_its_allocation_at_the_relay_and_knows() {
    let mut world = World::new("secret");
    world.allocate(None);
    // The relay goes on alone for longer than the lifetime.
    world.now = world.now + Duration::from_secs(700);
    world.relay.handle_timeout(world.now);
    world.run_relay();
    assert!(world.ports.is_empty());
    world.run();
    assert_eq!(world.events, [Event::Lost(RequestError::Expired)]);
}

#[test]
fn a_wrong_password_is_told_from_other_refusals() {
    let mut world = World::new("guess");
    world.client.allocate(world.now, None).unwrap();
    world.run();
    assert_eq!(
        world.events,
        [Event::AllocateFailed(RequestError::WrongCredentials)]
    );
}

#[test]
fn a_relay_without_descriptors_says_that_it_has_no_capacity() {
    let mut world = World::new("secret");
    world.fails_ports = true;
    world.client.allocate(world.now, None).unwrap();
    world.run();
    assert_eq!(
        world.events,
        [Event::AllocateFailed(RequestError::NoCapacity)]
    );
}

#[test]
fn a_peer_on_a_denied_address_is_forbidden() {
    let mut world = World::new("secret");
    world.allocate(None);
    let loopback = IpAddr::from([127, 0, 0, 1]);
    world.client.permit(world.now, loopback).unwrap();
    world.run();
    let failed = Event::PermissionFailed(loopback, RequestError::Forbidden);
    assert_eq!(world.events, [failed]);
}

#[test]
fn a_binding_request_is_answered_with_the_clients_address() {
    let world = World::new("secret");
    let (mut relay, server) = (world.relay, address("5.5.5.5:3478"));
    let id = TransactionId([8; 12]);
    let mut binding = BindingClient::new(world.now, server, id, Schedule::STANDARD);
    let mut buffer = [0; TRANSMIT_BUFFER_BYTES];
    let len = binding.poll_transmit(world.now, &mut buffer).unwrap();
    let datagram = Datagram {
        socket: Socket::Listener(ListenerId(0)),
        local: server.ip(),
        remote: world.client_address,
        traffic_class: TrafficClass::ORDINARY,
        payload: &mut buffer[..len],
    };
    assert!(relay.handle_datagram(world.now, datagram).is_none());
    let transmit = relay.poll_transmit(world.now, &mut buffer).unwrap();
    let later = world.now + Duration::from_millis(20);
    assert!(binding.handle_datagram(later, server, &buffer[transmit.payload]));
    let outcome = binding.outcome().unwrap().unwrap();
    assert_eq!(outcome.mapped, world.client_address);
    assert_eq!(outcome.round_trip, Duration::from_millis(20));
}
