//! What the relay's machine costs per datagram, without any I/O: 1,000 flows in random order, so
//! that neither the last flow nor the cache helps more than it would in the field.

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use towpath_proto::access::AccessRules;
use towpath_proto::credentials::LongTermKey;
use towpath_proto::machine::{Datagram, ListenerId, PortId, ShardId, Socket, TrafficClass};
use towpath_proto::relay::{
    Credential, Relay, RelayAddress, RelayCommand, RelayConfig, RelayEvent, RelayLimits,
    RelayShared, StrangerLimits,
};
use towpath_proto::wire::attribute::{
    Algorithm, ChannelNumberValue, Lifetime, Nonce, Realm, RequestedTransport, Username,
    XorPeerAddress,
};
use towpath_proto::wire::{
    ChannelData, ChannelNumber, Class, IntegrityKey, Message, MessageType, MessageWriter, Method,
    TransactionId, send_indication,
};
use towpath_proto::{Machine, Timestamp};

const FLOWS: usize = 1000;
const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(5, 5, 5, 5));
const NOW: Timestamp = Timestamp::from_nanos(1_000_000_000_000);

/// A relay with an allocation per flow, each with one permission and one channel.
struct Lab {
    relay: Relay,
    key: IntegrityKey,
    transaction: u64,
    answer: Vec<u8>,
}

impl Lab {
    fn new(flows: usize) -> Self {
        let key = |algorithm| LongTermKey::derive(algorithm, "alice", "example.org", "secret");
        let md5 = key(Algorithm::Md5).expect("valid credentials");
        let md5: [u8; 16] = md5.as_bytes().try_into().expect("MD5 has 16 bytes");
        let config = RelayConfig {
            realm: "example.org".to_owned(),
            software: None,
            listeners: vec![SocketAddr::new(SERVER, 3478)],
            relay_addresses: vec![RelayAddress::direct(SERVER)],
            own_addresses: vec![SERVER],
            behavior: None,
            alternate_servers: Vec::new(),
            port_range: 10_000..=65_535,
            shards: 1,
            users: [("alice", Credential { md5, sha256: None })]
                .into_iter()
                .collect(),
            access: AccessRules::default(),
            limits: RelayLimits {
                strangers: StrangerLimits {
                    per_source: StrangerLimits::UNLIMITED,
                    per_network: StrangerLimits::UNLIMITED,
                    in_total: StrangerLimits::UNLIMITED,
                },
                ..RelayLimits::default()
            },
            mobility: false,
            offload: false,
            nonce_secret: [7; 32],
        };
        config.validate().expect("a valid configuration");
        let shared = Arc::new(RelayShared::new(&config));
        let relay = Relay::new(Arc::new(config), shared, ShardId(0), [1; 32]);
        let mut lab = Self {
            relay,
            key: IntegrityKey::new(&md5),
            transaction: 0,
            answer: Vec::new(),
        };
        (0..flows).for_each(|flow| lab.add(flow));
        lab
    }

    /// Allocate with its 401 round, and a channel to the flow's peer.
    fn add(&mut self, flow: usize) {
        let nonce = self.allocate(flow);
        self.ask(flow, Method::CHANNEL_BIND, Some(&nonce), |writer| {
            let channel = ChannelNumberValue(ChannelNumber::FIRST);
            let peer = XorPeerAddress(peer(flow));
            writer
                .put(&channel)
                .and_then(|writer| writer.put(&peer))
                .expect("room");
        });
        assert_eq!(self.class(), Class::Success);
    }

    fn allocate(&mut self, flow: usize) -> Vec<u8> {
        let transport = |writer: &mut MessageWriter<'_>| {
            writer.put(&RequestedTransport::UDP).expect("room");
        };
        self.ask(flow, Method::ALLOCATE, None, transport);
        let message = Message::parse(&self.answer).expect("a message");
        let nonce = message
            .get::<Nonce<'_>>()
            .expect("sound")
            .expect("a challenge")
            .0
            .to_vec();
        self.ask(flow, Method::ALLOCATE, Some(&nonce), transport);
        assert_eq!(self.class(), Class::Success);
        nonce
    }

    fn delete(&mut self, flow: usize, nonce: &[u8]) {
        self.ask(flow, Method::REFRESH, Some(nonce), |writer| {
            writer.put(&Lifetime(0)).expect("room");
        });
        assert_eq!(self.class(), Class::Success);
    }

    fn class(&self) -> Class {
        Message::parse(&self.answer).expect("a message").class()
    }

    /// Sends a request, does what the relay asks for, and keeps the answer.
    fn ask(
        &mut self,
        flow: usize,
        method: Method,
        nonce: Option<&[u8]>,
        put: impl FnOnce(&mut MessageWriter<'_>),
    ) {
        self.transaction += 1;
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.transaction.to_be_bytes());
        let mut buffer = [0; 512];
        let message_type = MessageType::new(method, Class::Request);
        let mut writer =
            MessageWriter::new(&mut buffer, message_type, TransactionId(id)).expect("room");
        put(&mut writer);
        if let Some(nonce) = nonce {
            writer
                .put(&Username("alice"))
                .expect("room")
                .put(&Realm("example.org"))
                .expect("room");
            writer
                .put(&Nonce(nonce))
                .expect("room")
                .integrity(&self.key)
                .expect("room");
        }
        let len = writer.len();
        let datagram = Datagram {
            socket: Socket::Listener(ListenerId(0)),
            local: SERVER,
            remote: client(flow),
            traffic_class: TrafficClass::ORDINARY,
            payload: &mut buffer[..len],
        };
        assert!(self.relay.handle_datagram(NOW, datagram).is_none());
        while let Some(command) = self.relay.poll_command() {
            if let RelayCommand::OpenPort { port, .. } = command {
                self.relay
                    .handle_event(NOW, RelayEvent::PortOpened { port });
            }
        }
        let mut buffer = [0; 2048];
        while let Some(transmit) = self.relay.poll_transmit(NOW, &mut buffer) {
            self.answer.clear();
            self.answer.extend_from_slice(&buffer[transmit.payload]);
        }
    }
}

fn client(flow: usize) -> SocketAddr {
    let [_, _, high, low] = (flow as u32 / 16).to_be_bytes();
    SocketAddr::from(([198, 51, high, low], 40_000 + (flow % 16) as u16))
}

fn peer(flow: usize) -> SocketAddr {
    let [_, _, high, low] = (flow as u32).to_be_bytes();
    SocketAddr::from(([9, 9, high, low], 7000))
}

/// A fixed random order of the flows, long enough not to be learned by a branch predictor.
fn order() -> Vec<usize> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..1 << 16)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize % FLOWS
        })
        .collect()
}

fn channel_message(bytes: usize) -> Vec<u8> {
    let header = ChannelData::header(ChannelNumber::FIRST, bytes).expect("short enough");
    let mut message = header.to_vec();
    message.resize(header.len() + bytes, 0x55);
    message
}

fn bench_forward(c: &mut Criterion) {
    let mut group = c.benchmark_group("forward");
    group.throughput(Throughput::Elements(1));
    let order = order();
    let mut turn = order.iter().copied().cycle();
    let mut lab = Lab::new(FLOWS);
    let mut message = channel_message(172);
    group.bench_function("channel_data_to_peer/1000_flows", |b| {
        b.iter(|| {
            let flow = turn.next().unwrap_or_default();
            let datagram = Datagram {
                socket: Socket::Listener(ListenerId(0)),
                local: SERVER,
                remote: client(flow),
                traffic_class: TrafficClass::ORDINARY,
                payload: &mut message,
            };
            black_box(lab.relay.handle_datagram(NOW, black_box(datagram))).expect("forwarded")
        });
    });
    group.bench_function("channel_data_to_peer/1_flow", |b| {
        b.iter(|| {
            let datagram = Datagram {
                socket: Socket::Listener(ListenerId(0)),
                local: SERVER,
                remote: client(7),
                traffic_class: TrafficClass::ORDINARY,
                payload: &mut message,
            };
            black_box(lab.relay.handle_datagram(NOW, black_box(datagram))).expect("forwarded")
        });
    });
    let mut payload = [0x55; 172];
    for (name, port) in [
        ("channel_data_to_client", 7000),
        ("data_indication_to_client", 7001),
    ] {
        group.bench_function(format!("{name}/1000_flows"), |b| {
            b.iter(|| {
                let flow = turn.next().unwrap_or_default();
                let datagram = Datagram {
                    socket: Socket::Relayed(PortId(flow as u32)),
                    local: SERVER,
                    remote: SocketAddr::new(peer(flow).ip(), port),
                    traffic_class: TrafficClass::ORDINARY,
                    payload: &mut payload,
                };
                black_box(lab.relay.handle_datagram(NOW, black_box(datagram))).expect("forwarded")
            });
        });
    }
    let mut sends: Vec<_> = (0..FLOWS).map(send_message).collect();
    group.bench_function("send_indication_to_peer/1000_flows", |b| {
        b.iter(|| {
            let flow = turn.next().unwrap_or_default();
            let datagram = Datagram {
                socket: Socket::Listener(ListenerId(0)),
                local: SERVER,
                remote: client(flow),
                traffic_class: TrafficClass::ORDINARY,
                payload: &mut sends[flow],
            };
            black_box(lab.relay.handle_datagram(NOW, black_box(datagram))).expect("forwarded")
        });
    });
    group.finish();
}

fn send_message(flow: usize) -> Vec<u8> {
    let around = send_indication(TransactionId([3; 12]), peer(flow), 172).expect("short enough");
    let mut message = around.prefix.as_bytes().to_vec();
    message.resize(message.len() + 172, 0x55);
    message
}

fn bench_allocate(c: &mut Criterion) {
    let mut group = c.benchmark_group("requests");
    group.throughput(Throughput::Elements(1));
    let mut lab = Lab::new(FLOWS);
    let mut flow = FLOWS;
    group.bench_function("allocate_with_401_and_delete", |b| {
        b.iter(|| {
            flow = FLOWS + (flow + 1) % 10_000;
            let nonce = lab.allocate(flow);
            lab.delete(flow, &nonce);
        });
    });
    group.finish();
}

criterion_group!(benches, bench_forward, bench_allocate);
criterion_main!(benches);
