//! The program and the machine side by side: whatever the program relays, the machine relays just so.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use towpath_ebpf_common::route::{NextHop, Settings, Target};
use towpath_proto::access::AccessRules;
use towpath_proto::credentials::LongTermKey;
use towpath_proto::machine::{
    Datagram as Arrived, ListenerId, PortId, ShardId, Socket, TRANSMIT_BUFFER_BYTES, TrafficClass,
};
use towpath_proto::relay::{
    Credential, Relay, RelayAddress, RelayCommand, RelayConfig, RelayEvent, RelayLimits,
    RelayShared,
};
use towpath_proto::wire::attribute::{
    Algorithm, ChannelNumberValue, Family, Nonce, Realm, RequestedAddressFamily,
    RequestedTransport, Username, XorPeerAddress, XorRelayedAddress,
};
use towpath_proto::wire::{
    ChannelNumber, Class, IntegrityKey, Message, MessageType, MessageWriter, Method, TransactionId,
};
use towpath_proto::{Machine, Timestamp};

use crate::packet::{Datagram, channel_data};
use crate::{Outcome, Program, RUN_INTERFACE, Verdict, model, now};

const REALM: &str = "example.org";
const OWN: [&str; 2] = ["5.5.5.5", "2600::5"];
const CLIENTS: [&str; 2] = ["198.18.0.1", "2600::77"];
const PEERS: [&str; 2] = ["9.9.9.9", "2600::9"];
const LISTENER_PORT: u16 = 3478;
const CHANNEL: u16 = 0x4001;
const PORTS: [u16; 2] = [50_000, 50_999];

/// A packet the two did not agree about, and how.
#[derive(Debug)]
pub struct Disagreement(pub String);

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Agreed {
    /// Both relay it, to the last byte.
    Relayed,
    /// The program left it to the machine, as it came.
    Passed,
}

/// A client's allocation with one channel, to a peer of either family.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// The client.
    pub client: SocketAddr,
    /// Where it reaches the relay.
    pub listener: SocketAddr,
    /// Its relayed address.
    pub relayed: SocketAddr,
    /// The peer its channel is bound to.
    pub peer: SocketAddr,
}

impl Flow {
    /// A packet that carries `data` to the peer, or to the client.
    pub fn datagram(&self, to_peer: bool, data: &[u8]) -> Datagram {
        if to_peer {
            let payload = channel_data(CHANNEL, data, &[]);
            Datagram::new(self.client, self.listener, &payload)
        } else {
            Datagram::new(self.peer, self.relayed, data)
        }
    }
}

/// The program with the routes that the machine asked for.
pub struct Twin {
    program: Program,
    relay: Relay,
    ports: BTreeMap<SocketAddr, PortId>,
    /// One for each pair of families.
    pub flows: Vec<Flow>,
    next_hop: NextHop,
    key: IntegrityKey,
    answers: Vec<Vec<u8>>,
    generation: u32,
}

impl Twin {
    /// Loads the program, makes the allocations and sets their routes. `None` without root.
    pub fn new() -> Result<Option<Self>> {
        let Some(mut program) = Program::load()? else {
            return Ok(None);
        };
        let settings = program.settings()?;
        program.set_settings(Settings {
            ports: Settings::ports(PORTS[0], PORTS[1]),
            ..settings
        })?;
        let next_hop = NextHop {
            interface: RUN_INTERFACE,
            mtu: 1500,
            destination_mac: [2, 3, 4, 5, 6, 7],
            source_mac: [2, 7, 6, 5, 4, 3],
            vlan: 0,
            state: NextHop::VALID,
        };
        program.set_next_hop(0, next_hop)?;
        let key = LongTermKey::derive(Algorithm::Md5, "u", REALM, "p")?;
        let config = config(&key)?;
        config.validate()?;
        let shared = Arc::new(RelayShared::new(&config));
        let mut twin = Self {
            program,
            relay: Relay::new(Arc::new(config), shared, ShardId(0), [1; 32]),
            ports: BTreeMap::new(),
            flows: Vec::new(),
            next_hop,
            key: IntegrityKey::new(key.as_bytes()),
            answers: Vec::new(),
            generation: 0,
        };
        for from in [0, 1] {
            for to in [0, 1] {
                let flow = twin.allocate(from, to)?;
                twin.flows.push(flow);
            }
        }
        Ok(Some(twin))
    }

    /// Hands a frame to the program and, where it relays it, to the machine.
    pub fn compare(&mut self, frame: &[u8]) -> Result<Agreed, Disagreement> {
        let outcome = self
            .program
            .run(frame)
            .map_err(|error| disagree(frame, error))?;
        match outcome.verdict {
            Verdict::Pass if outcome.packet == frame => Ok(Agreed::Passed),
            Verdict::Transmit => self
                .machine_does(frame, &outcome)
                .map(|()| Agreed::Relayed)
                .map_err(|error| disagree(frame, format!("{error:#}, program: {outcome:02x?}"))),
            Verdict::Pass | Verdict::Aborted | Verdict::Drop | Verdict::Redirect => {
                Err(disagree(frame, format!("program: {outcome:02x?}")))
            }
        }
    }

    /// Fails where the machine would not have sent what the program did.
    fn machine_does(&mut self, frame: &[u8], outcome: &Outcome) -> Result<()> {
        let arrived = Datagram::parse(frame).context("no UDP datagram at all")?;
        let socket = match self.ports.get(&arrived.destination) {
            Some(port) => Socket::Relayed(*port),
            None => {
                anyhow::ensure!(arrived.destination.port() == LISTENER_PORT, "no socket");
                Socket::Listener(ListenerId(u16::from(arrived.destination.is_ipv6())))
            }
        };
        let mut payload = arrived.payload.clone();
        let transmit = self.relay.handle_datagram(
            Timestamp::from_nanos(now()),
            Arrived {
                socket,
                local: arrived.destination.ip(),
                remote: arrived.source,
                traffic_class: TrafficClass(arrived.traffic_class),
                payload: &mut payload,
            },
        );
        let transmit = transmit.context("the machine drops it")?;
        let source = match transmit.socket {
            Socket::Listener(_) => {
                let source = transmit.source.context("no source")?;
                SocketAddr::new(source, LISTENER_PORT)
            }
            Socket::Relayed(port) => {
                let mut ports = self.ports.iter();
                *ports.find(|(_, open)| **open == port).context("no port")?.0
            }
        };
        let channel = match *transmit.prefix.as_bytes() {
            [] => 0,
            [high, low, _, _] => u16::from_be_bytes([high, low]),
            ref prefix => anyhow::bail!("a prefix of {} bytes", prefix.len()),
        };
        let target = Target {
            destination: transmit.destination,
            source,
            channel,
            up_slot: 0,
            down_slot: 0,
            next_hop: 0,
            generation: 0,
            expires: 0,
        };
        let data = &payload[transmit.payload.clone()];
        let expected = Datagram {
            traffic_class: transmit.traffic_class.0,
            ..model::relayed(&arrived, data, &target, &self.next_hop)
        }
        .to_bytes();
        anyhow::ensure!(outcome.packet == expected, "machine: {expected:02x?}");
        Ok(())
    }

    fn allocate(&mut self, from: usize, to: usize) -> Result<Flow> {
        let client = SocketAddr::new(CLIENTS[from].parse()?, 40_000 + to as u16);
        let listener = SocketAddr::new(OWN[from].parse()?, LISTENER_PORT);
        let peer = SocketAddr::new(PEERS[to].parse()?, 7000);
        let refused = self.ask(client, listener, Method::ALLOCATE, None, peer)?;
        let Nonce(nonce) = Message::parse(&refused)?.get()?.context("no nonce")?;
        let nonce = nonce.to_vec();
        let granted = self.ask(client, listener, Method::ALLOCATE, Some(&nonce), peer)?;
        let granted = Message::parse(&granted)?;
        let relayed: XorRelayedAddress = granted.get()?.context("no relayed address")?;
        let relayed = relayed.0;
        let bound = self.ask(client, listener, Method::CHANNEL_BIND, Some(&nonce), peer)?;
        anyhow::ensure!(
            Message::parse(&bound)?.class() == Class::Success,
            "no channel"
        );
        Ok(Flow {
            client,
            listener,
            relayed,
            peer,
        })
    }

    /// Sends a request, signed where there is a nonce, and returns the answer.
    fn ask(
        &mut self,
        client: SocketAddr,
        listener: SocketAddr,
        method: Method,
        nonce: Option<&[u8]>,
        peer: SocketAddr,
    ) -> Result<Vec<u8>> {
        let id = TransactionId([self.answers.len() as u8; 12]);
        let mut buffer = [0; 1500];
        let kind = MessageType::new(method, Class::Request);
        let mut writer = MessageWriter::new(&mut buffer, kind, id)?;
        if method == Method::ALLOCATE {
            writer.put(&RequestedTransport::UDP)?;
            let family = if peer.is_ipv4() {
                Family::V4
            } else {
                Family::V6
            };
            writer.put(&RequestedAddressFamily(family))?;
        } else {
            let channel = ChannelNumber::new(CHANNEL).context("a channel number")?;
            writer.put(&ChannelNumberValue(channel))?;
            writer.put(&XorPeerAddress(peer))?;
        }
        if let Some(nonce) = nonce {
            writer.put(&Username("u"))?.put(&Realm(REALM))?;
            writer.put(&Nonce(nonce))?.integrity(&self.key)?;
        }
        let len = writer.len();
        let arrived = Arrived {
            socket: Socket::Listener(ListenerId(u16::from(client.is_ipv6()))),
            local: listener.ip(),
            remote: client,
            traffic_class: TrafficClass::ORDINARY,
            payload: &mut buffer[..len],
        };
        let now = Timestamp::from_nanos(now());
        anyhow::ensure!(
            self.relay.handle_datagram(now, arrived).is_none(),
            "relayed"
        );
        let before = self.answers.len();
        self.run(now)?;
        anyhow::ensure!(self.answers.len() == before + 1, "one answer");
        self.answers.last().cloned().context("one answer")
    }

    /// Does what the machine asks for: ports open, routes are set in the program.
    fn run(&mut self, now: Timestamp) -> Result<()> {
        let mut buffer = [0; TRANSMIT_BUFFER_BYTES];
        loop {
            while let Some(command) = self.relay.poll_command() {
                match command {
                    RelayCommand::OpenPort { port, local } => {
                        self.ports.insert(local, port);
                        let opened = RelayEvent::PortOpened { port };
                        self.relay.handle_event(now, opened);
                    }
                    RelayCommand::ClosePort { port } => {
                        self.ports.retain(|_, open| *open != port);
                    }
                    RelayCommand::SetRoute { key, route } => {
                        self.generation += 1;
                        let target = Target {
                            up_slot: 0,
                            down_slot: 0,
                            ..route.in_maps(0, self.generation)
                        };
                        self.program.set_route(&key, &target)?;
                    }
                    RelayCommand::RemoveRoute { key } => self.program.remove_route(&key)?,
                    RelayCommand::HandOver { to, .. } => {
                        anyhow::bail!("a relay of one shard hands over to {to:?}")
                    }
                    RelayCommand::Notify(_) => {}
                }
            }
            match self.relay.poll_transmit(now, &mut buffer) {
                Some(transmit) => self.answers.push(buffer[transmit.payload].to_vec()),
                None => return Ok(()),
            }
        }
    }
}

fn disagree(frame: &[u8], how: impl std::fmt::Display) -> Disagreement {
    Disagreement(format!("frame: {frame:02x?}, {how}"))
}

fn config(key: &LongTermKey) -> Result<RelayConfig> {
    let md5 = key.as_bytes().try_into()?;
    let own = |index: usize| -> Result<IpAddr> { Ok(OWN[index].parse()?) };
    Ok(RelayConfig {
        realm: REALM.to_owned(),
        software: None,
        listeners: vec!["0.0.0.0:3478".parse()?, "[::]:3478".parse()?],
        relay_addresses: vec![RelayAddress::direct(own(0)?), RelayAddress::direct(own(1)?)],
        own_addresses: Vec::new(),
        behavior: None,
        alternate_servers: Vec::new(),
        port_range: PORTS[0]..=PORTS[1],
        shards: 1,
        users: [("u", Credential { md5, sha256: None })]
            .into_iter()
            .collect(),
        access: AccessRules::default(),
        limits: RelayLimits::default(),
        mobility: false,
        offload: true,
        nonce_secret: [3; 32],
    })
}
