//! A small relay of its own, for tests of the engine. Requests to a listener:
//!
//! ```text
//!   'e' ...                          the same bytes back, in place
//!   'p' ...                          back with the prefix "pre:" and padded to four bytes
//!   'q' ...                          back, copied into the machine's own buffer
//!   'o' address-as-text              opens a relayed port; answer "o" id, or "x" reason
//!   'c' id                           closes it; answer "c"
//!   'f' id ip port ...               the rest leaves from the relayed port to ip:port (IPv4)
//!   't' milliseconds                 answer "t" after that time
//!   'h' shard ...                    the rest goes to that shard as if it had arrived there
//!   'n' number                       asks the host for nothing so many times; answer "n"
//! ```
//! What arrives at a relayed port goes to the client that opened it, behind its id.
#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "shared by test files that each use a part of it"
)]

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use towpath_engine::{
    Counter, Driver, Engine, EngineConfig, EngineCounters, Handover, Host, OpenError, Ports,
    StartError,
};
use towpath_proto::machine::{
    Datagram, IcmpError, ListenerId, PortId, Prefix, ShardId, Socket, TrafficClass, Transmit,
};
use towpath_proto::{Machine, Timestamp};

/// Where an answer goes and leaves from.
#[derive(Clone, Copy)]
struct Client {
    listener: ListenerId,
    local: IpAddr,
    remote: SocketAddr,
    traffic_class: TrafficClass,
}

#[derive(Default)]
pub struct Switchboard {
    answers: VecDeque<(Client, Vec<u8>)>,
    commands: VecDeque<Command>,
    clients: HashMap<u32, Client>,
    next_port: u32,
    timers: Vec<(Timestamp, Client)>,
    last: Option<Client>,
    /// How many datagrams arrived at relayed ports: one-way tests read it by an event.
    shard: u16,
}

pub enum Command {
    Open(PortId, SocketAddr),
    Close(PortId),
    HandOver(ShardId, Handover),
    Nothing,
}

pub enum Event {
    Opened(PortId),
    Refused(PortId, OpenError),
    /// Sends this to the last client.
    Say(Vec<u8>),
    /// Panics the shard.
    Die,
}

impl Switchboard {
    pub fn of_shard(shard: ShardId) -> Self {
        Self {
            shard: shard.0,
            ..Self::default()
        }
    }

    fn answer(&mut self, client: Client, bytes: Vec<u8>) {
        let client = Client {
            traffic_class: TrafficClass::ORDINARY,
            ..client
        };
        self.answers.push_back((client, bytes));
    }

    fn transmit(client: Client, prefix: Prefix, payload: std::ops::Range<usize>) -> Transmit {
        Transmit {
            socket: Socket::Listener(client.listener),
            source: Some(client.local),
            destination: client.remote,
            prefix,
            payload,
            padding: 0,
            traffic_class: client.traffic_class,
            dont_fragment: false,
        }
    }

    fn request(&mut self, now: Timestamp, client: Client, bytes: &mut [u8]) -> Option<Transmit> {
        let all = 0..bytes.len();
        match *bytes.first()? {
            b'e' => return Some(Self::transmit(client, Prefix::EMPTY, all)),
            b'p' => {
                let mut transmit = Self::transmit(client, Prefix::channel_data(*b"pre:"), all);
                transmit.padding = (transmit.len().next_multiple_of(4) - transmit.len()) as u8;
                return Some(transmit);
            }
            b'q' => self.answer(client, bytes.to_vec()),
            b's' => self.answer(client, self.shard.to_be_bytes().to_vec()),
            b'o' => {
                let text = std::str::from_utf8(&bytes[1..]).unwrap();
                let port = PortId(self.next_port);
                self.next_port += 1;
                self.clients.insert(port.0, client);
                self.commands
                    .push_back(Command::Open(port, text.parse().unwrap()));
            }
            b'c' => {
                let id = u32::from_be_bytes(bytes[1..5].try_into().unwrap());
                self.commands.push_back(Command::Close(PortId(id)));
                self.answer(client, b"c".to_vec());
            }
            b'f' | b'F' => {
                let id = u32::from_be_bytes(bytes[1..5].try_into().unwrap());
                let ip: [u8; 4] = bytes[5..9].try_into().unwrap();
                let port = u16::from_be_bytes(bytes[9..11].try_into().unwrap());
                return Some(Transmit {
                    socket: Socket::Relayed(PortId(id)),
                    source: None,
                    destination: SocketAddr::from((Ipv4Addr::from(ip), port)),
                    prefix: Prefix::EMPTY,
                    payload: 11..bytes.len(),
                    padding: 0,
                    traffic_class: client.traffic_class,
                    dont_fragment: bytes[0] == b'F',
                });
            }
            b't' => {
                let millis = u64::from(u16::from_be_bytes(bytes[1..3].try_into().unwrap()));
                self.timers
                    .push((now + Duration::from_millis(millis), client));
            }
            b'h' => {
                let to = ShardId(u16::from_be_bytes(bytes[1..3].try_into().unwrap()));
                let Client {
                    listener,
                    local,
                    remote,
                    traffic_class,
                } = client;
                let datagram = Handover {
                    listener,
                    local,
                    remote,
                    traffic_class,
                    payload: bytes[3..].into(),
                };
                self.commands.push_back(Command::HandOver(to, datagram));
            }
            b'n' => {
                let number = u32::from_be_bytes(bytes[1..5].try_into().unwrap());
                self.commands.extend((0..number).map(|_| Command::Nothing));
                self.answer(client, b"n".to_vec());
            }
            _ => {}
        }
        None
    }
}

impl Machine for Switchboard {
    type Command = Command;
    type Event = Event;

    fn handle_datagram(&mut self, now: Timestamp, datagram: Datagram<'_>) -> Option<Transmit> {
        match datagram.socket {
            Socket::Listener(listener) => {
                let client = Client {
                    listener,
                    local: datagram.local,
                    remote: datagram.remote,
                    traffic_class: datagram.traffic_class,
                };
                self.last = Some(client);
                self.request(now, client, datagram.payload)
            }
            Socket::Relayed(port) => {
                let client = Client {
                    traffic_class: datagram.traffic_class,
                    ..*self.clients.get(&port.0)?
                };
                let prefix = Prefix::channel_data(port.0.to_be_bytes());
                Some(Self::transmit(client, prefix, 0..datagram.payload.len()))
            }
        }
    }

    fn handle_event(&mut self, _now: Timestamp, event: Event) {
        match event {
            Event::Opened(port) => {
                let client = self.clients[&port.0];
                let mut bytes = b"o".to_vec();
                bytes.extend(port.0.to_be_bytes());
                self.answer(client, bytes);
            }
            Event::Refused(port, error) => {
                let client = self.clients.remove(&port.0).unwrap();
                self.answer(client, format!("x{error}").into_bytes());
            }
            Event::Say(bytes) => {
                if let Some(client) = self.last {
                    self.answer(client, bytes);
                }
            }
            Event::Die => panic!("a machine with a defect"),
        }
    }

    fn handle_icmp(&mut self, _now: Timestamp, error: IcmpError) {
        let Socket::Relayed(port) = error.socket else {
            panic!("{error:?}")
        };
        let (kind, code, to) = (error.icmp_type, error.code, error.destination);
        let text = format!("i{} {kind} {code} {to} {}", port.0, error.mtu);
        if let Some(client) = self.clients.get(&port.0) {
            self.answer(*client, text.into_bytes());
        }
    }

    fn handle_timeout(&mut self, now: Timestamp) {
        let (due, later) = self.timers.drain(..).partition(|(at, _)| *at <= now);
        self.timers = later;
        for (_, client) in due as Vec<_> {
            self.answer(client, b"t".to_vec());
        }
    }

    fn poll_transmit(&mut self, _now: Timestamp, buffer: &mut [u8]) -> Option<Transmit> {
        let (client, bytes) = self.answers.pop_front()?;
        assert!(
            self.commands.is_empty(),
            "an answer is fetched before what it tells of is done"
        );
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Some(Self::transmit(client, Prefix::EMPTY, 0..bytes.len()))
    }

    fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    fn poll_timeout(&self) -> Option<Timestamp> {
        if !self.answers.is_empty() || !self.commands.is_empty() {
            return Some(Timestamp::ZERO);
        }
        self.timers.iter().map(|(at, _)| *at).min()
    }
}

pub struct SwitchboardHost;

impl Host<Switchboard> for SwitchboardHost {
    fn execute(&mut self, command: Command, ports: &mut dyn Ports) -> Option<Event> {
        match command {
            Command::Open(port, local) => Some(match ports.open(port, local) {
                Ok(()) => Event::Opened(port),
                Err(error) => Event::Refused(port, error),
            }),
            Command::Close(port) => {
                ports.close(port);
                None
            }
            Command::HandOver(to, datagram) => {
                ports.hand_over(to, datagram);
                None
            }
            Command::Nothing => None,
        }
    }
}

/// Both drivers: every test runs on each.
pub const DRIVERS: [Driver; 2] = [Driver::IoUring, Driver::Epoll];

pub fn config(driver: Driver, listeners: &[&str]) -> EngineConfig {
    EngineConfig {
        listeners: listeners.iter().map(|text| text.parse().unwrap()).collect(),
        shards: 1,
        driver,
        steering_key: *b"a key for tests!",
        ..EngineConfig::default()
    }
}

pub fn try_start(config: EngineConfig) -> Result<Engine<Switchboard>, StartError> {
    Engine::start(config, |shard| {
        (Switchboard::of_shard(shard), SwitchboardHost)
    })
}

pub fn start(config: EngineConfig) -> Engine<Switchboard> {
    try_start(config).unwrap()
}

pub fn client(to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() {
        "127.0.0.1:0"
    } else {
        "[::1]:0"
    };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(to).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    socket
}

pub fn ask(socket: &UdpSocket, request: &[u8]) -> Vec<u8> {
    socket.send(request).unwrap();
    receive(socket)
}

pub fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let bytes = socket
        .recv(&mut buffer)
        .expect("an answer within ten seconds");
    buffer.truncate(bytes);
    buffer
}

/// Opens a relayed port on any free port of 127.0.0.1 and returns its id.
pub fn open(socket: &UdpSocket, local: &str) -> Result<u32, String> {
    let answer = ask(socket, format!("o{local}").as_bytes());
    match answer[0] {
        b'o' => Ok(u32::from_be_bytes(answer[1..5].try_into().unwrap())),
        _ => Err(String::from_utf8(answer[1..].to_vec()).unwrap()),
    }
}

pub fn close(socket: &UdpSocket, id: u32) {
    let mut request = b"c".to_vec();
    request.extend(id.to_be_bytes());
    assert_eq!(ask(socket, &request), b"c");
}

/// A request to send `payload` from a relayed port.
pub fn forward(id: u32, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let IpAddr::V4(ip) = to.ip() else {
        panic!("IPv4 only")
    };
    let mut request = b"f".to_vec();
    request.extend(id.to_be_bytes());
    request.extend(ip.octets());
    request.extend(to.port().to_be_bytes());
    request.extend(payload);
    request
}

pub fn counters(engine: &Engine<Switchboard>) -> std::sync::Arc<EngineCounters> {
    engine.counters(ShardId(0)).unwrap()
}

/// Waits until a condition holds; tests fail after ten seconds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("not within ten seconds: {what}");
}

/// All drops of a shard, by name.
pub fn drops(counters: &EngineCounters) -> Vec<(&'static str, u64)> {
    counters
        .iter()
        .filter(|(counter, value)| counter.name().starts_with("drop_") && *value > 0)
        .map(|(counter, value)| (Counter::name(counter), value))
        .collect()
}

/// Says that the rest of a test is left out, to the reader and to whoever collects it.
pub fn skip(test: &str, why: &str) {
    let line = format!("SKIPPED: {test}: {why}\n");
    eprint!("{line}");
    let Some(log) = std::env::var_os("TOWPATH_SKIP_LOG") else {
        return;
    };
    let log = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(log);
    std::io::Write::write_all(&mut log.unwrap(), line.as_bytes()).unwrap();
}
