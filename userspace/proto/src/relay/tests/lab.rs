//! A relay shard with a shell of a few lines around it: ports open when asked for.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use towpath_ebpf_common::route::RouteKey;

use crate::access::AccessRules;
use crate::credentials::LongTermKey;
use crate::machine::{Datagram, ListenerId, PortId, ShardId, Socket, TrafficClass, Transmit};
use crate::nonce::IssuedNonce;
use crate::relay::*;
use crate::wire::attribute::{
    Algorithm, Attribute, ErrorCode, Nonce, Realm, RequestedTransport, Username, XorRelayedAddress,
};
use crate::wire::{
    AttributeType, Class, IntegrityKey, Message, MessageType, MessageWriter, Method, TransactionId,
};
use crate::{Machine, Timestamp};

pub(crate) const REALM: &str = "example.org";
pub(crate) const CLIENT: &str = "198.18.0.1:40000";
pub(crate) const PEER: &str = "9.9.9.9:7000";

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn credential(name: &str, password: &str) -> Credential {
    let key = |algorithm| LongTermKey::derive(algorithm, name, REALM, password).unwrap();
    Credential {
        md5: key(Algorithm::Md5).as_bytes().try_into().unwrap(),
        sha256: Some(key(Algorithm::Sha256).as_bytes().try_into().unwrap()),
    }
}

pub(crate) fn config() -> RelayConfig {
    let users = [
        ("alice", credential("alice", "secret")),
        ("bob", credential("bob", "other")),
    ];
    RelayConfig {
        realm: REALM.to_owned(),
        software: None,
        listeners: vec![address("0.0.0.0:3478"), address("[::]:3478")],
        relay_addresses: vec![
            RelayAddress::direct(IpAddr::from([5, 5, 5, 5])),
            RelayAddress::direct("2600::5".parse().unwrap()),
        ],
        own_addresses: Vec::new(),
        behavior: None,
        alternate_servers: Vec::new(),
        port_range: 50_000..=50_999,
        shards: 1,
        users: users.into_iter().collect(),
        access: AccessRules::default(),
        limits: RelayLimits::default(),
        mobility: true,
        offload: true,
        nonce_secret: [9; 32],
    }
}

/// How the shell answers OpenPort.
pub(crate) enum Shell {
    Opens,
    Waits,
    Fails(PortError),
}

/// A datagram for another shard: which, where it arrived, who sent it, and what it holds.
pub(crate) type HandedOver = (ShardId, ListenerId, IpAddr, SocketAddr, Box<[u8]>);

pub(crate) struct Lab {
    pub(crate) relay: Relay,
    pub(crate) shared: Arc<RelayShared>,
    pub(crate) now: Timestamp,
    pub(crate) shell: Shell,
    pub(crate) open: BTreeMap<u32, SocketAddr>,
    /// What the kernel would forward by itself.
    pub(crate) routes: BTreeMap<RouteKey, RouteTarget>,
    /// Route commands so far.
    pub(crate) route_commands: usize,
    pub(crate) notices: Vec<Notice>,
    pub(crate) sent: Vec<(Transmit, Vec<u8>)>,
    pub(crate) asked: Vec<PortId>,
    /// What was asked for last under each number.
    pub(crate) locals: BTreeMap<u32, SocketAddr>,
    /// Datagrams for other shards.
    pub(crate) handed_over: Vec<HandedOver>,
    next_transaction: u32,
    /// Of what arrives.
    pub(crate) traffic_class: TrafficClass,
}

impl Lab {
    pub(crate) fn new(config: RelayConfig) -> Self {
        config.validate().unwrap();
        let shared = Arc::new(RelayShared::new(&config));
        Self::of_shard(config, shared, 0)
    }

    pub(crate) fn of_shard(config: RelayConfig, shared: Arc<RelayShared>, shard: u16) -> Self {
        let seed = [shard as u8 + 1; 32];
        Self {
            relay: Relay::new(Arc::new(config), Arc::clone(&shared), ShardId(shard), seed),
            shared,
            now: Timestamp::ZERO + Duration::from_secs(1_000),
            shell: Shell::Opens,
            open: BTreeMap::new(),
            routes: BTreeMap::new(),
            route_commands: 0,
            notices: Vec::new(),
            sent: Vec::new(),
            asked: Vec::new(),
            locals: BTreeMap::new(),
            handed_over: Vec::new(),
            next_transaction: 0,
            traffic_class: TrafficClass::ORDINARY,
        }
    }

    /// Does what the relay asks for, until it asks for nothing more.
    pub(crate) fn run(&mut self) {
        loop {
            while let Some(command) = self.relay.poll_command() {
                match command {
                    RelayCommand::OpenPort { port, local } => {
                        self.locals.insert(port.0, local);
                        match self.shell {
                            Shell::Opens => {
                                assert!(self.open.insert(port.0, local).is_none(), "opened twice");
                                self.event(RelayEvent::PortOpened { port });
                            }
                            Shell::Waits => self.asked.push(port),
                            Shell::Fails(error) => {
                                self.asked.push(port);
                                self.event(RelayEvent::PortFailed { port, error });
                            }
                        }
                    }
                    RelayCommand::ClosePort { port } => {
                        assert!(
                            self.open.remove(&port.0).is_some(),
                            "closed what is not open"
                        );
                    }
                    RelayCommand::SetRoute { key, route } => {
                        self.routes.insert(key, route);
                        self.route_commands += 1;
                    }
                    RelayCommand::RemoveRoute { key } => {
                        assert!(self.routes.remove(&key).is_some(), "removed twice: {key:?}");
                        self.route_commands += 1;
                    }
                    RelayCommand::HandOver {
                        to,
                        listener,
                        local,
                        remote,
                        payload,
                        ..
                    } => self
                        .handed_over
                        .push((to, listener, local, remote, payload)),
                    RelayCommand::Notify(notice) => self.notices.push(notice),
                }
            }
            let mut buffer = [0; crate::machine::TRANSMIT_BUFFER_BYTES];
            match self.relay.poll_transmit(self.now, &mut buffer) {
                Some(transmit) => {
                    let bytes = buffer[transmit.payload.clone()].to_vec();
                    self.sent.push((transmit, bytes));
                }
                None => break,
            }
        }
    }

    pub(crate) fn event(&mut self, event: RelayEvent) {
        self.relay.handle_event(self.now, event);
    }

    /// Lets time pass as a shell does: from deadline to deadline.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.run();
        while let Some(next) = self.relay.poll_timeout().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.relay.handle_timeout(self.now);
            self.run();
        }
        self.now = end;
    }

    pub(crate) fn secs(&mut self, secs: u64) {
        self.pass(Duration::from_secs(secs));
    }

    /// Hands over a datagram; what is forwarded in place comes back whole.
    pub(crate) fn arrive(
        &mut self,
        socket: Socket,
        local: &str,
        remote: SocketAddr,
        bytes: &[u8],
    ) -> Option<(Transmit, Vec<u8>)> {
        let mut payload = bytes.to_vec();
        let datagram = Datagram {
            socket,
            local: local.parse().unwrap(),
            remote,
            traffic_class: self.traffic_class,
            payload: &mut payload,
        };
        let transmit = self.relay.handle_datagram(self.now, datagram);
        self.run();
        transmit.map(|transmit| {
            let mut whole = transmit.prefix.as_bytes().to_vec();
            whole.extend_from_slice(&payload[transmit.payload.clone()]);
            whole.resize(whole.len() + usize::from(transmit.padding), 0);
            (transmit, whole)
        })
    }

    pub(crate) fn client_sends(
        &mut self,
        client: &str,
        bytes: &[u8],
    ) -> Option<(Transmit, Vec<u8>)> {
        let client = address(client);
        let (listener, local) = if client.is_ipv4() {
            (0, "5.5.5.5")
        } else {
            (1, "2600::5")
        };
        self.arrive(Socket::Listener(ListenerId(listener)), local, client, bytes)
    }

    pub(crate) fn peer_sends(&mut self, port: u32, bytes: &[u8]) -> Option<(Transmit, Vec<u8>)> {
        self.arrive(
            Socket::Relayed(PortId(port)),
            "5.5.5.5",
            address(PEER),
            bytes,
        )
    }

    /// Sends a request and takes the answer.
    pub(crate) fn ask(&mut self, client: &str, bytes: &[u8]) -> Option<Vec<u8>> {
        self.sent.clear();
        assert!(self.client_sends(client, bytes).is_none());
        assert!(self.sent.len() <= 1, "one answer at most");
        let (transmit, answer) = self.sent.pop()?;
        assert_eq!(transmit.destination, address(client));
        Some(answer)
    }

    /// A nonce that is good now, as a challenge with room for everything has it.
    pub(crate) fn nonce(&self, client: &str) -> IssuedNonce {
        let offer = crate::auth::offer(&self.relay.config);
        self.relay.nonces.issue(self.now, address(client), offer)
    }

    pub(crate) fn transaction(&mut self) -> TransactionId {
        self.next_transaction += 1;
        let mut id = [0xab; 12];
        id[..4].copy_from_slice(&self.next_transaction.to_be_bytes());
        TransactionId(id)
    }

    /// A request with credentials, with a nonce that is good now.
    pub(crate) fn signed(
        &mut self,
        client: &str,
        method: Method,
        attributes: &[(AttributeType, Vec<u8>)],
    ) -> Vec<u8> {
        self.signed_by("alice", "secret", client, method, attributes)
    }

    pub(crate) fn signed_by(
        &mut self,
        name: &str,
        password: &str,
        client: &str,
        method: Method,
        attributes: &[(AttributeType, Vec<u8>)],
    ) -> Vec<u8> {
        let id = self.transaction();
        let nonce = self.nonce(client);
        let key = LongTermKey::derive(Algorithm::Md5, name, REALM, password).unwrap();
        let mut buffer = [0; 1500];
        let message_type = MessageType::new(method, Class::Request);
        let mut writer = MessageWriter::new(&mut buffer, message_type, id).unwrap();
        for (kind, value) in attributes {
            let value = xored(*kind, value, &id);
            writer.put_raw(*kind, &value).unwrap();
        }
        writer
            .put(&Username(name))
            .unwrap()
            .put(&Realm(REALM))
            .unwrap();
        writer.put(&Nonce(&nonce)).unwrap();
        writer
            .integrity(&IntegrityKey::new(key.as_bytes()))
            .unwrap();
        writer.finish().to_vec()
    }

    pub(crate) fn request(
        &mut self,
        client: &str,
        method: Method,
        attributes: &[(AttributeType, Vec<u8>)],
    ) -> Vec<u8> {
        let request = self.signed(client, method, attributes);
        self.ask(client, &request).expect("an answer")
    }

    /// Makes an allocation over IPv4; gives back the relayed address.
    pub(crate) fn allocate(&mut self, client: &str) -> SocketAddr {
        let answer = self.request(client, Method::ALLOCATE, &[udp()]);
        let message = Message::parse(&answer).unwrap();
        assert_eq!(message.class(), Class::Success, "{message:?}");
        message.get::<XorRelayedAddress>().unwrap().unwrap().0
    }

    pub(crate) fn permit(&mut self, client: &str, peers: &[&str]) -> u16 {
        let peers: Vec<_> = peers.iter().map(|peer| xor_peer(peer)).collect();
        code(&self.request(client, Method::CREATE_PERMISSION, &peers))
    }

    pub(crate) fn bind(&mut self, client: &str, number: u16, peer: &str) -> u16 {
        let attributes = [channel_number(number), xor_peer(peer)];
        code(&self.request(client, Method::CHANNEL_BIND, &attributes))
    }

    /// The route of packets from one address to another, if there is one now.
    pub(crate) fn route(&self, from: &str, to: &str, channel: u16) -> Option<RouteTarget> {
        let key = RouteKey::new(address(from), address(to), channel);
        let route = self.routes.get(&key);
        route.filter(|route| route.expires > self.now).copied()
    }

    /// Lets the machine forward what the kernel would, and compares. Returns how many routes are live.
    pub(crate) fn check_routes(&mut self) -> usize {
        let live: Vec<_> = self
            .routes
            .iter()
            .filter(|(_, route)| route.expires > self.now)
            .map(|(key, route)| (*key, *route))
            .collect();
        for (key, route) in &live {
            let (local, channel) = (key.sent_to(), key.channel_number());
            let (socket, bytes) = if channel == 0 {
                let mut ports = self.open.iter();
                let port = ports.find(|(_, open)| **open == local).unwrap().0;
                (Socket::Relayed(PortId(*port)), b"data".to_vec())
            } else {
                let listener = ListenerId(u16::from(local.is_ipv6()));
                (Socket::Listener(listener), channel_data(channel, b"data"))
            };
            let local = local.ip().to_string();
            let sent = self.arrive(socket, &local, key.sent_from(), &bytes);
            let (transmit, sent) = sent.unwrap_or_else(|| panic!("{route:?} is not the machine's"));
            let source = match transmit.socket {
                Socket::Relayed(port) => self.open[&port.0],
                Socket::Listener(_) => SocketAddr::new(transmit.source.unwrap(), 3478),
            };
            let expected = match route.channel {
                Some(number) => channel_data(number.number(), b"data"),
                None => b"data".to_vec(),
            };
            assert_eq!(
                (source, transmit.destination, sent),
                (route.source, route.destination, expected)
            );
        }
        live.len()
    }

    pub(crate) fn drops(&self, reason: DropReason) -> u64 {
        self.relay.counters.drops(reason).value()
    }
}

/// 0 for success, else the error code.
pub(crate) fn code(answer: &[u8]) -> u16 {
    let message = Message::parse(answer).unwrap();
    match message.class() {
        Class::Success => 0,
        Class::Error => message
            .get::<ErrorCode<'_>>()
            .unwrap()
            .unwrap()
            .code
            .number(),
        Class::Request | Class::Indication => panic!("{message:?} is no answer"),
    }
}

/// Addresses are given as they are and XORed when the transaction is known.
fn xored(kind: AttributeType, value: &[u8], id: &TransactionId) -> Vec<u8> {
    if kind != AttributeType::XOR_PEER_ADDRESS {
        return value.to_vec();
    }
    let text = std::str::from_utf8(value).unwrap();
    let Ok(peer) = text.parse() else {
        return value.to_vec();
    };
    let peer = crate::wire::attribute::XorPeerAddress(peer);
    let mut out = vec![0; peer.value_len()];
    peer.write(id, &mut out);
    out
}

pub(crate) fn raw<'a, A: Attribute<'a>>(attribute: &A) -> (AttributeType, Vec<u8>) {
    let mut value = vec![0; attribute.value_len()];
    attribute.write(&TransactionId([0; 12]), &mut value);
    (A::TYPE, value)
}

pub(crate) fn udp() -> (AttributeType, Vec<u8>) {
    raw(&RequestedTransport::UDP)
}

pub(crate) fn xor_peer(peer: &str) -> (AttributeType, Vec<u8>) {
    (AttributeType::XOR_PEER_ADDRESS, peer.as_bytes().to_vec())
}

pub(crate) fn channel_number(number: u16) -> (AttributeType, Vec<u8>) {
    let [high, low] = number.to_be_bytes();
    (AttributeType::CHANNEL_NUMBER, vec![high, low, 0, 0])
}

pub(crate) fn lifetime(secs: u32) -> (AttributeType, Vec<u8>) {
    (AttributeType::LIFETIME, secs.to_be_bytes().to_vec())
}

/// A request without credentials.
pub(crate) fn plain(method: Method, attributes: &[(AttributeType, Vec<u8>)]) -> Vec<u8> {
    unsigned(MessageType::new(method, Class::Request), attributes, false)
}

pub(crate) fn unsigned(
    message_type: MessageType,
    attributes: &[(AttributeType, Vec<u8>)],
    fingerprint: bool,
) -> Vec<u8> {
    let id = TransactionId([0x77; 12]);
    let mut buffer = [0; 2000];
    let mut writer = MessageWriter::new(&mut buffer, message_type, id).unwrap();
    for (kind, value) in attributes {
        writer.put_raw(*kind, &xored(*kind, value, &id)).unwrap();
    }
    if fingerprint {
        writer.fingerprint().unwrap();
    }
    writer.finish().to_vec()
}

pub(crate) fn send_indication(peer: &str, data: &[u8]) -> Vec<u8> {
    let attributes = [xor_peer(peer), (AttributeType::DATA, data.to_vec())];
    unsigned(
        MessageType::new(Method::SEND, Class::Indication),
        &attributes,
        false,
    )
}

pub(crate) fn channel_data(number: u16, data: &[u8]) -> Vec<u8> {
    let mut message = number.to_be_bytes().to_vec();
    message.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
    message.extend_from_slice(data);
    message
}
