//! The relay's machine, fed arbitrary sequences of datagrams, requests signed and unsigned, failing
//! ports, and time.
//!
//! It never panics, comes to rest without time passing, answers strangers with little, sends only from
//! ports that are open, and gives every port back once its clients have been silent for long enough.
//! What the kernel is told to forward by itself, the machine would forward just so.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use towpath_ebpf_common::route::RouteKey;
use towpath_proto::access::AccessRules;
use towpath_proto::credentials::LongTermKey;
use towpath_proto::machine::{
    Datagram, IcmpError, ListenerId, PortId, ShardId, Socket, TRANSMIT_BUFFER_BYTES, TrafficClass,
    Transmit,
};
use towpath_proto::relay::{
    Credential, PortError, Relay, RelayAddress, RelayCommand, RelayConfig, RelayEvent, RelayLimits,
    RelayShared, RouteTarget,
};
use towpath_proto::wire::attribute::{
    AdditionalAddressFamily, Algorithm, ChannelNumberValue, Data, DontFragment, EvenPort, Family,
    Lifetime, MobilityTicket, Nonce, Realm, RequestedAddressFamily, RequestedTransport,
    ReservationToken, Username, XorPeerAddress,
};
use towpath_proto::wire::{
    AttributeType, ChannelNumber, Class, IntegrityKey, Message, MessageType, MessageWriter, Method,
    TransactionId, WriteError,
};
use towpath_proto::{Machine, Timestamp};

use crate::bytes::Bytes;

const REALM: &str = "r";
const FIRST_PORT: u16 = 50_000;
const LAST_PORT: u16 = 50_007;
/// More than the machine can have to say at one time.
const MAX_POLLS: usize = 100_000;
/// Longer than anything the relay keeps: allocations (an hour at most), reservations, nonces.
const LONG_SILENCE: Duration = Duration::from_secs(3 * 3600);

struct World {
    now: Timestamp,
    relay: Relay,
    config: RelayConfig,
    key: IntegrityKey,
    ports: BTreeMap<PortId, SocketAddr>,
    /// What the kernel would forward by itself.
    routes: BTreeMap<RouteKey, RouteTarget>,
    /// OpenPort commands that were not answered yet.
    waiting: Vec<(PortId, SocketAddr)>,
    shell: Shell,
    nonces: BTreeMap<SocketAddr, Vec<u8>>,
    token: [u8; 8],
    /// The mobility ticket that was given last.
    ticket: Vec<u8>,
    /// The longest answer since the last datagram.
    answer_bytes: usize,
}

#[derive(Clone, Copy)]
enum Shell {
    Opens,
    Waits,
    Fails(PortError),
}

pub(crate) fn fuzz(data: &[u8]) {
    let mut input = Bytes(data);
    let key = LongTermKey::derive(Algorithm::Md5, "u", REALM, "p").expect("they are credentials");
    let md5 = key.as_bytes().try_into().expect("MD5 is 16 bytes long");
    let config = RelayConfig {
        realm: REALM.to_owned(),
        software: None,
        listeners: vec![SocketAddr::from(([5, 5, 5, 5], 3478))],
        relay_addresses: vec![
            RelayAddress::direct(IpAddr::from([5, 5, 5, 5])),
            RelayAddress::direct(IpAddr::from([0x2600, 0, 0, 0, 0, 0, 0, 5])),
        ],
        own_addresses: Vec::new(),
        behavior: None,
        alternate_servers: Vec::new(),
        port_range: FIRST_PORT..=LAST_PORT,
        shards: 1,
        users: [("u", Credential { md5, sha256: None })]
            .into_iter()
            .collect(),
        access: AccessRules::default(),
        limits: RelayLimits::default(),
        mobility: true,
        offload: true,
        nonce_secret: [3; 32],
    };
    config.validate().expect("the configuration is sound");
    let shared = Arc::new(RelayShared::new(&config));
    let mut world = World {
        now: Timestamp::ZERO + Duration::from_secs(1),
        relay: Relay::new(Arc::new(config.clone()), shared, ShardId(0), [1; 32]),
        config,
        key: IntegrityKey::new(key.as_bytes()),
        ports: BTreeMap::new(),
        routes: BTreeMap::new(),
        waiting: Vec::new(),
        shell: Shell::Opens,
        nonces: BTreeMap::new(),
        token: [0; 8],
        ticket: Vec::new(),
        answer_bytes: 0,
    };
    while !input.is_empty() {
        world.step(&mut input);
        world.run();
        world.check_routes();
    }
    world.be_silent();
}

impl World {
    fn step(&mut self, input: &mut Bytes<'_>) {
        match input.byte() % 16 {
            0 => self.now = self.now + Duration::from_secs(input.number().into()),
            1 => self.now = self.now + Duration::from_millis(input.byte().into()),
            2 => {
                self.shell = match input.byte() % 5 {
                    0 => Shell::Waits,
                    1 => Shell::Fails(PortError::InUse),
                    2 => Shell::Fails(PortError::NoDescriptors),
                    _ => Shell::Opens,
                };
            }
            3 => self.answer_waiting(input.byte()),
            4 => {
                let len = usize::from(input.number());
                let (client, mut bytes) = (client(input), input.take(len).to_vec());
                self.arrive_from_client(client, &mut bytes);
            }
            5 => {
                let channel = 0x4000 + u16::from(input.byte() & 3);
                let (client, payload) = (client(input), input.short());
                let mut bytes = channel.to_be_bytes().to_vec();
                bytes.extend_from_slice(&(payload.len() as u16).to_be_bytes());
                bytes.extend_from_slice(payload);
                self.arrive_from_client(client, &mut bytes);
            }
            6 | 7 => {
                let place = usize::from(input.byte());
                let (peer, mut payload) = (peer(input), input.short().to_vec());
                let port = self
                    .ports
                    .keys()
                    .nth(place % self.ports.len().max(1))
                    .copied();
                if let Some(port) = port {
                    self.datagram(Socket::Relayed(port), peer, &mut payload);
                }
            }
            8 if input.byte() == 0 => self.relay.handle_event(self.now, RelayEvent::Drain),
            9 if input.byte() & 7 == 0 => {
                let config = Arc::new(self.config.clone());
                self.relay
                    .handle_event(self.now, RelayEvent::Reconfigured(config));
            }
            10 if input.byte() & 7 == 0 => self.icmp(input),
            _ => self.request(input),
        }
    }

    fn icmp(&mut self, input: &mut Bytes<'_>) {
        let error = IcmpError {
            socket: match input.byte() & 15 {
                15 => Socket::Listener(ListenerId(0)),
                port => Socket::Relayed(PortId(port.into())),
            },
            destination: peer(input),
            icmp_type: input.byte(),
            code: input.byte(),
            mtu: input.number().into(),
        };
        self.relay.handle_icmp(self.now, error);
    }

    fn answer_waiting(&mut self, choice: u8) {
        if self.waiting.is_empty() {
            return;
        }
        let (port, local) = self
            .waiting
            .swap_remove(usize::from(choice >> 1) % self.waiting.len());
        if choice & 1 == 0 {
            self.opened(port, local);
        } else {
            let failed = RelayEvent::PortFailed {
                port,
                error: PortError::Other,
            };
            self.relay.handle_event(self.now, failed);
        }
    }

    fn opened(&mut self, port: PortId, local: SocketAddr) {
        assert!((FIRST_PORT..=LAST_PORT).contains(&local.port()));
        assert!(
            !self.ports.values().any(|open| *open == local),
            "{local} was opened twice"
        );
        assert_eq!(
            self.ports.insert(port, local),
            None,
            "{port:?} was opened twice"
        );
        self.relay
            .handle_event(self.now, RelayEvent::PortOpened { port });
    }

    /// Polls the machine as a shell does, until it has nothing more to do now.
    fn run(&mut self) {
        let mut buffer = [0; TRANSMIT_BUFFER_BYTES];
        for _ in 0..MAX_POLLS {
            while let Some(command) = self.relay.poll_command() {
                match (command, self.shell) {
                    (RelayCommand::OpenPort { port, local }, Shell::Opens) => {
                        self.opened(port, local);
                    }
                    (RelayCommand::OpenPort { port, local }, Shell::Waits) => {
                        self.waiting.push((port, local));
                    }
                    (RelayCommand::OpenPort { port, .. }, Shell::Fails(error)) => {
                        let failed = RelayEvent::PortFailed { port, error };
                        self.relay.handle_event(self.now, failed);
                    }
                    (RelayCommand::ClosePort { port }, _) => {
                        assert!(self.ports.remove(&port).is_some(), "{port:?} is not open");
                    }
                    (RelayCommand::SetRoute { key, route }, _) => self.set(key, &route),
                    (RelayCommand::RemoveRoute { key }, _) => {
                        assert!(self.routes.remove(&key).is_some(), "no route has {key:?}");
                    }
                    (RelayCommand::HandOver { to, .. }, _) => {
                        panic!("a relay of one shard hands over to {to:?}");
                    }
                    (RelayCommand::Notify(_), _) => {}
                }
            }
            if let Some(transmit) = self.relay.poll_transmit(self.now, &mut buffer) {
                self.sent(&transmit, &buffer);
            } else if self
                .relay
                .poll_timeout()
                .is_some_and(|deadline| deadline <= self.now)
            {
                self.relay.handle_timeout(self.now);
            } else {
                return;
            }
        }
        panic!("the relay does not come to rest at {:?}", self.now);
    }

    fn set(&mut self, key: RouteKey, route: &RouteTarget) {
        let relayed = if route.channel.is_some() {
            key.sent_to()
        } else {
            route.source
        };
        let is_open = self.ports.values().any(|open| *open == relayed);
        assert!(is_open, "a route for {relayed}, which is not open");
        self.routes.insert(key, *route);
    }

    /// Lets the machine forward what the kernel would, and compares.
    fn check_routes(&mut self) {
        for (key, route) in self.routes.clone() {
            if route.expires <= self.now {
                continue;
            }
            let mut payload = b"data".to_vec();
            let socket = match key.channel {
                [0, 0] => {
                    let mut ports = self.ports.iter();
                    let port = ports.find(|(_, local)| **local == key.sent_to());
                    Socket::Relayed(*port.expect("the route's port is open").0)
                }
                [high, low] => {
                    payload.splice(..0, [high, low, 0, 4]);
                    Socket::Listener(ListenerId(0))
                }
            };
            let datagram = Datagram {
                socket,
                local: key.sent_to().ip(),
                remote: key.sent_from(),
                traffic_class: TrafficClass::ORDINARY,
                payload: &mut payload,
            };
            let transmit = self.relay.handle_datagram(self.now, datagram);
            let transmit = transmit.expect("the machine forwards what the kernel would");
            let source = match transmit.socket {
                Socket::Relayed(port) => self.ports[&port],
                Socket::Listener(_) => SocketAddr::new(transmit.source.expect("it is told"), 3478),
            };
            let header = route.channel.map(|channel| {
                let [high, low] = channel.number().to_be_bytes();
                [high, low, 0, 4]
            });
            assert_eq!(
                (source, transmit.destination, transmit.prefix.as_bytes()),
                (
                    route.source,
                    route.destination,
                    header.as_ref().map_or(&[][..], |header| &header[..])
                )
            );
            assert_eq!(payload[transmit.payload.clone()], *b"data");
        }
    }

    fn sent(&mut self, transmit: &Transmit, buffer: &[u8]) {
        let payload = &buffer[transmit.payload.clone()];
        match transmit.socket {
            Socket::Relayed(port) => assert!(self.ports.contains_key(&port), "{port:?} is closed"),
            Socket::Listener(_) => {
                self.answer_bytes = self.answer_bytes.max(transmit.len());
                if !transmit.prefix.as_bytes().is_empty() {
                    return;
                }
                let Ok(message) = Message::parse(payload) else {
                    return;
                };
                if let Ok(Some(Nonce(nonce))) = message.get() {
                    self.nonces.insert(transmit.destination, nonce.to_vec());
                }
                if let Ok(Some(ReservationToken(token))) = message.get() {
                    self.token = token;
                }
                if let Ok(Some(MobilityTicket(ticket))) = message.get() {
                    self.ticket = ticket.to_vec();
                }
            }
        }
    }

    fn arrive_from_client(&mut self, client: SocketAddr, bytes: &mut [u8]) {
        self.datagram(Socket::Listener(ListenerId(0)), client, bytes);
    }

    fn datagram(&mut self, socket: Socket, remote: SocketAddr, bytes: &mut [u8]) {
        let is_unsigned_request = matches!(socket, Socket::Listener(_))
            && Message::parse(bytes).is_ok_and(|m| {
                m.class() == Class::Request && !m.has_integrity() && !m.has_integrity_sha256()
            });
        let local = match socket {
            Socket::Listener(_) => IpAddr::from([5, 5, 5, 5]),
            Socket::Relayed(port) => self.ports[&port].ip(),
        };
        self.answer_bytes = 0;
        let datagram = Datagram {
            socket,
            local,
            remote,
            traffic_class: TrafficClass::ORDINARY,
            payload: bytes,
        };
        if let Some(transmit) = self.relay.handle_datagram(self.now, datagram) {
            self.sent(&transmit, bytes);
        }
        self.run();
        if is_unsigned_request {
            assert!(
                self.answer_bytes <= 200.min(3 * bytes.len()),
                "{} bytes were answered with {}",
                bytes.len(),
                self.answer_bytes
            );
        }
    }

    fn request(&mut self, input: &mut Bytes<'_>) {
        let method = [
            Method::ALLOCATE,
            Method::ALLOCATE,
            Method::CREATE_PERMISSION,
            Method::CHANNEL_BIND,
            Method::REFRESH,
            Method::SEND,
            Method::BINDING,
            Method::CONNECT,
        ][usize::from(input.byte() % 8)];
        let class = if method == Method::SEND {
            Class::Indication
        } else {
            Class::Request
        };
        let (client, flags) = (client(input), input.byte());
        let id = TransactionId([input.byte(); 12]);
        let mut buffer = [0; 1500];
        let Ok(mut writer) = MessageWriter::new(&mut buffer, MessageType::new(method, class), id)
        else {
            return;
        };
        if method == Method::ALLOCATE && flags & 1 == 0 {
            let _ = writer.put(&RequestedTransport::UDP);
        }
        for _ in 0..flags >> 4 & 3 {
            let _ = self.put(&mut writer, input);
        }
        if flags & 2 == 0 && class == Class::Request {
            let nonce = self.nonces.get(&client).map_or(&b"none"[..], Vec::as_slice);
            let _ = self.sign(&mut writer, nonce);
        }
        if flags & 4 != 0 {
            let _ = writer.fingerprint();
        }
        let len = writer.len();
        self.arrive_from_client(client, &mut buffer[..len]);
    }

    fn sign(&self, writer: &mut MessageWriter<'_>, nonce: &[u8]) -> Result<(), WriteError> {
        writer
            .put(&Username("u"))?
            .put(&Realm(REALM))?
            .put(&Nonce(nonce))?;
        writer.integrity(&self.key).map(|_| ())
    }

    fn put(&self, writer: &mut MessageWriter<'_>, input: &mut Bytes<'_>) -> Result<(), WriteError> {
        match input.byte() % 12 {
            0 | 1 => writer.put(&XorPeerAddress(peer(input))),
            2 => {
                let number = 0x4000 + u16::from(input.byte() & 3);
                let channel = ChannelNumber::new(number).expect("in the range");
                writer.put(&ChannelNumberValue(channel))
            }
            3 => writer.put(&Lifetime(input.number().into())),
            4 => writer.put(&EvenPort {
                reserve_next: input.byte() & 1 == 1,
            }),
            5 => writer.put(&ReservationToken(self.token)),
            6 => {
                let family = if input.byte() & 1 == 0 {
                    Family::V4
                } else {
                    Family::V6
                };
                writer.put(&RequestedAddressFamily(family))
            }
            7 => writer.put(&AdditionalAddressFamily(Family::V6)),
            8 => writer.put(&DontFragment),
            9 => writer.put(&Data(input.short())),
            10 if input.byte() & 1 == 0 => writer.put(&MobilityTicket(&[])),
            10 => writer.put(&MobilityTicket(&self.ticket)),
            _ => writer.put_raw(AttributeType(input.number()), input.short()),
        }
        .map(|_| ())
    }

    /// Nobody says anything any more: everything ends, and every port is given back.
    fn be_silent(&mut self) {
        self.shell = Shell::Opens;
        while !self.waiting.is_empty() {
            self.answer_waiting(0);
            self.run();
        }
        let end = self.now + LONG_SILENCE;
        self.run();
        while let Some(next) = self.relay.poll_timeout().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.relay.handle_timeout(self.now);
            self.run();
        }
        assert!(self.ports.is_empty(), "{:?} are still open", self.ports);
        assert!(self.routes.is_empty(), "{:?} are left", self.routes);
        let counters = self.relay.counters();
        assert_eq!(
            (counters.allocations.value(), counters.ports_in_use.value()),
            (0, 0)
        );
        assert_eq!(counters.routes.value(), 0);
    }
}

/// One of four clients.
fn client(input: &mut Bytes<'_>) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], 4000 + u16::from(input.byte() & 3)))
}

/// One of a few peers: ordinary ones, forbidden ones, and the relay's own ports.
fn peer(input: &mut Bytes<'_>) -> SocketAddr {
    let byte = input.byte();
    let low = u16::from(byte & 7);
    match byte >> 6 {
        0 => SocketAddr::from(([9, 9, 9, byte & 7], 7000 + u16::from(byte >> 3 & 1))),
        1 => SocketAddr::from(([5, 5, 5, 5], FIRST_PORT + low)),
        2 => SocketAddr::from(([0x2620, 0, 0, 0, 0, 0, 0, low], 7000)),
        _ => SocketAddr::from(([127, 0, 0, 1], low)),
    }
}
