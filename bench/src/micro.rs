//! The parts of the packet path by themselves: each an operation that can be run any number of times, for
//! criterion and for counting instructions.

mod node;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use towpath_proto::access::{AccessRules, IpPrefix};
use towpath_proto::machine::{
    Datagram, ListenerId, PortId, ShardId, Socket, TrafficClass, Transmit,
};
use towpath_proto::relay::{
    Credential, Relay, RelayAddress, RelayCommand, RelayConfig, RelayEvent, RelayLimits,
    RelayShared, Users,
};
use towpath_proto::timer::Timers;
use towpath_proto::wire::{IntegrityKey, Message};
use towpath_proto::{Machine, Timestamp};

use crate::control::{CHANNEL, PASSWORD, REALM, USERNAME};
use crate::packet::CHANNEL_DATA_HEADER_BYTES;
use crate::turn::{Credentials, Request, Response};

const PAYLOAD_BYTES: usize = 172;
const TIMERS: usize = 100_000;
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 1, 11), 3478);
const RELAYED: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 11);
const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 2, 2), 30_000);

/// Something that is measured.
pub trait Operation {
    /// Makes ready for the next run; not measured.
    fn prepare(&mut self) {}
    /// Runs once. Never inlined, so that its instructions can be told from those around it.
    fn run_once(&mut self);
}

/// Names of all operations.
pub const NAMES: [&str; 10] = [
    "parse",
    "integrity",
    "forward_to_peer",
    "forward_to_client",
    "timer_restart",
    "timer_expire",
    "node_pool_lookup",
    "node_limiter",
    "node_limiter_unlimited",
    "node_datagram",
];

/// An operation by its name.
pub fn operation(name: &str) -> Result<Box<dyn Operation>> {
    Ok(match name {
        "parse" => Box::new(Parse::new()),
        "integrity" => Box::new(Integrity::new()),
        "forward_to_peer" => Box::new(ForwardToPeer(Forward::new()?)),
        "forward_to_client" => Box::new(ForwardToClient(Forward::new()?)),
        "timer_restart" => Box::new(TimerRestart::new()),
        "timer_expire" => Box::new(TimerExpire::new()),
        "node_pool_lookup" => Box::new(node::PoolLookup::new()?),
        "node_limiter" => Box::new(node::Limiter::new(true)?),
        "node_limiter_unlimited" => Box::new(node::Limiter::new(false)?),
        "node_datagram" => Box::new(node::PeerDatagram::new()?),
        _ => anyhow::bail!(
            "no operation is called {name}; there are {}",
            NAMES.join(", ")
        ),
    })
}

fn authenticated_request() -> Vec<u8> {
    let credentials = Credentials::new(USERNAME, PASSWORD, REALM.as_bytes(), &[b'n'; 32]);
    Request::ChannelBind(CHANNEL, PEER).build([7; 12], Some(&credentials))
}

/// Reads a ChannelBind request with credentials.
struct Parse(Vec<u8>);

impl Parse {
    fn new() -> Self {
        Self(authenticated_request())
    }
}

impl Operation for Parse {
    #[inline(never)]
    fn run_once(&mut self) {
        let message = Message::parse(std::hint::black_box(&self.0));
        std::hint::black_box(&message)
            .as_ref()
            .expect("the request is well formed");
    }
}

/// Reads a request with credentials and checks its MESSAGE-INTEGRITY.
struct Integrity {
    request: &'static [u8],
    key: IntegrityKey,
}

impl Integrity {
    fn new() -> Self {
        let credentials = Credentials::new(USERNAME, PASSWORD, REALM.as_bytes(), b"n");
        let request = authenticated_request().leak();
        Self {
            request,
            key: IntegrityKey::new(credentials.key()),
        }
    }
}

impl Operation for Integrity {
    #[inline(never)]
    fn run_once(&mut self) {
        let message = Message::parse(self.request).expect("the request is well formed");
        let checked = message.check_integrity(std::hint::black_box(&self.key));
        checked.expect("the request was made with this key");
    }
}

/// A relay with one allocation and one channel.
struct Forward {
    relay: Relay,
    now: Timestamp,
    client: SocketAddr,
    port: PortId,
    channel_data: Vec<u8>,
    plain: Vec<u8>,
}

struct ForwardToPeer(Forward);
struct ForwardToClient(Forward);

impl Operation for ForwardToPeer {
    #[inline(never)]
    fn run_once(&mut self) {
        let Forward {
            relay,
            now,
            client,
            channel_data,
            ..
        } = &mut self.0;
        let transmit = relay.handle_datagram(
            *now,
            Datagram {
                socket: Socket::Listener(ListenerId(0)),
                local: IpAddr::V4(*SERVER.ip()),
                remote: *client,
                traffic_class: TrafficClass::ORDINARY,
                payload: std::hint::black_box(channel_data),
            },
        );
        std::hint::black_box(&transmit)
            .as_ref()
            .expect("the channel is bound");
    }
}

impl Operation for ForwardToClient {
    #[inline(never)]
    fn run_once(&mut self) {
        let Forward {
            relay,
            now,
            port,
            plain,
            ..
        } = &mut self.0;
        let transmit = relay.handle_datagram(
            *now,
            Datagram {
                socket: Socket::Relayed(*port),
                local: IpAddr::V4(RELAYED),
                remote: SocketAddr::V4(PEER),
                traffic_class: TrafficClass::ORDINARY,
                payload: std::hint::black_box(plain),
            },
        );
        std::hint::black_box(&transmit)
            .as_ref()
            .expect("the peer has a channel");
    }
}

impl Forward {
    fn new() -> Result<Self> {
        let config = relay_config()?;
        config
            .validate()
            .context("the configuration of the micro benchmark")?;
        let shared = Arc::new(RelayShared::new(&config));
        let relay = Relay::new(Arc::new(config), shared, ShardId(0), [5; 32]);
        let mut channel_data = CHANNEL.to_be_bytes().to_vec();
        channel_data.extend_from_slice(&(PAYLOAD_BYTES as u16).to_be_bytes());
        channel_data.resize(CHANNEL_DATA_HEADER_BYTES + PAYLOAD_BYTES, 0x5a);
        let mut forward = Self {
            relay,
            now: Timestamp::from_nanos(1_000_000_000),
            client: "10.77.1.2:10000".parse().context("an address")?,
            port: PortId(0),
            channel_data,
            plain: vec![0x5a; PAYLOAD_BYTES],
        };
        forward.allocate()?;
        Ok(forward)
    }

    fn allocate(&mut self) -> Result<()> {
        let allocate = Request::Allocate(600);
        let refused = self.ask(&allocate.build([1; 12], None))?;
        let refusal = Response::parse(&refused).context("no response")?;
        ensure!(
            refusal.error == 401,
            "401 was expected, not {}",
            refusal.error
        );
        let credentials = Credentials::new(USERNAME, PASSWORD, refusal.realm, refusal.nonce);
        let bind = Request::ChannelBind(CHANNEL, PEER);
        for (id, request) in [([2; 12], allocate), ([3; 12], bind)] {
            let answer = self.ask(&request.build(id, Some(&credentials)))?;
            let response = Response::parse(&answer).context("no response")?;
            ensure!(
                response.error == 0,
                "{request:?} was refused with {}",
                response.error
            );
        }
        Ok(())
    }

    /// Hands a request over and opens whatever port the relay asks for.
    fn ask(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        let mut request = request.to_vec();
        let answered: Option<Transmit> = self.relay.handle_datagram(
            self.now,
            Datagram {
                socket: Socket::Listener(ListenerId(0)),
                local: IpAddr::V4(*SERVER.ip()),
                remote: self.client,
                traffic_class: TrafficClass::ORDINARY,
                payload: &mut request,
            },
        );
        ensure!(answered.is_none(), "a request was forwarded");
        while let Some(command) = self.relay.poll_command() {
            if let RelayCommand::OpenPort { port, .. } = command {
                self.port = port;
                self.relay
                    .handle_event(self.now, RelayEvent::PortOpened { port });
            }
        }
        let mut buffer = [0; towpath_proto::machine::TRANSMIT_BUFFER_BYTES];
        let transmit = self
            .relay
            .poll_transmit(self.now, &mut buffer)
            .context("no answer")?;
        Ok(buffer[transmit.payload].to_vec())
    }
}

fn relay_config() -> Result<RelayConfig> {
    let credentials = Credentials::new(USERNAME, PASSWORD, REALM.as_bytes(), b"");
    let mut users = Users::new();
    users.insert(
        USERNAME,
        Credential {
            md5: *credentials.key(),
            sha256: None,
        },
    );
    Ok(RelayConfig {
        realm: REALM.to_owned(),
        software: None,
        listeners: vec![SocketAddr::V4(SERVER)],
        relay_addresses: vec![RelayAddress::direct(IpAddr::V4(RELAYED))],
        own_addresses: vec![IpAddr::V4(*SERVER.ip()), IpAddr::V4(RELAYED)],
        behavior: None,
        alternate_servers: Vec::new(),
        port_range: 49_152..=65_535,
        shards: 1,
        users,
        access: AccessRules {
            allow: vec![IpPrefix::new(IpAddr::V4(*PEER.ip()), 32)?],
            deny: vec![],
        },
        limits: RelayLimits::default(),
        mobility: false,
        offload: false,
        nonce_secret: [9; 32],
    })
}

/// Stops a timer among many and starts it again, as a refresh does.
struct TimerRestart {
    timers: Timers<u32>,
    ids: Vec<towpath_proto::timer::TimerId>,
    next: usize,
}

impl TimerRestart {
    fn new() -> Self {
        let mut timers = Timers::new();
        let start = |number: usize| timers.start(deadline(number), number as u32);
        let ids = (0..TIMERS).map(start).collect();
        Self {
            timers,
            ids,
            next: 0,
        }
    }
}

impl Operation for TimerRestart {
    #[inline(never)]
    fn run_once(&mut self) {
        let value = self
            .timers
            .cancel(self.ids[self.next])
            .expect("the timer runs");
        self.ids[self.next] = self.timers.start(deadline(self.next), value);
        self.next = (self.next + 1) % TIMERS;
    }
}

/// Lets one timer among many fire and starts it again.
struct TimerExpire {
    timers: Timers<u32>,
    now: Timestamp,
}

impl TimerExpire {
    fn new() -> Self {
        let mut timers = Timers::new();
        for number in 0..TIMERS {
            timers.start(deadline(number), number as u32);
        }
        Self {
            timers,
            now: Timestamp::ZERO,
        }
    }
}

impl Operation for TimerExpire {
    #[inline(never)]
    fn run_once(&mut self) {
        loop {
            if let Some(value) = self.timers.expire(self.now, &mut u32::MAX.clone()) {
                self.timers.start(self.now + LONGEST, value);
                return;
            }
            let next = self.timers.next_deadline().expect("timers are running");
            self.now = self.now.max(next);
        }
    }
}

const LONGEST: Duration = Duration::from_secs(600);

/// Deadlines spread over ten minutes, as those of allocations are.
fn deadline(number: usize) -> Timestamp {
    let nanos = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % LONGEST.as_nanos() as u64;
    Timestamp::from_nanos(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_runs_again_and_again() {
        for name in NAMES {
            let mut operation = operation(name).expect("the name is known");
            for _ in 0..1000 {
                operation.prepare();
                operation.run_once();
            }
        }
    }

    #[test]
    fn unknown_operations_are_refused_by_name() {
        let error = operation("parsing").err().expect("an error").to_string();
        assert!(error.contains("parsing"), "{error}");
    }
}
