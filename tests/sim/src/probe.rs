//! A host that a test acts for: it keeps what arrives and sends what the test says, also under
//! addresses that are not its own.

use std::net::SocketAddr;
use std::time::Duration;

use towpath_proto::Timestamp;

use crate::dice::Dice;
use crate::network::{Edge, HostId, Packet};
use crate::relay_spec::REALM;
use crate::scenario::Actor;
use crate::stun::{self, Builder, Parsed, TransactionId, attribute, kind};
use crate::world::{Context, Node, World};

/// How long a test waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What runs on such a host.
#[derive(Debug, Default)]
pub struct Probe {
    /// What arrived and was not looked at.
    pub inbox: Vec<Packet>,
}

impl Node for Probe {
    fn handle_packet(&mut self, _: &mut Context<'_>, packet: Packet) {
        self.inbox.push(packet);
    }

    fn handle_wakeup(&mut self, _: &mut Context<'_>) {}

    fn wakeup(&self) -> Option<Timestamp> {
        None
    }
}

/// How a message gets from the tester to a server.
#[derive(Clone, Debug)]
pub enum Way {
    /// From this address, which need not be the tester's.
    Direct(SocketAddr),
    /// In a Send indication, by another allocation, to which this way leads.
    Through(Box<Way>, SocketAddr),
}

/// A user of relays with one host and any number of addresses.
#[derive(Debug)]
pub struct Tester {
    /// The host.
    pub host: HostId,
    dice: Dice,
    name: String,
    password: String,
}

impl Tester {
    /// A tester on a host of its own, with sockets at these addresses.
    pub fn new(world: &mut World<Actor>, dice: Dice, sockets: &[SocketAddr]) -> Self {
        let mut addresses: Vec<_> = sockets.iter().map(SocketAddr::ip).collect();
        addresses.dedup();
        let host = world.add(&addresses, Edge::Open, Actor::Probe(Probe::default()));
        for socket in sockets {
            world
                .network
                .bind(host, *socket)
                .expect("the sockets differ");
        }
        Self {
            host,
            dice,
            name: "alice".into(),
            password: "secret".into(),
        }
    }

    /// Sends bytes to `server` on this way.
    pub fn send(&mut self, world: &mut World<Actor>, way: &Way, to: SocketAddr, bytes: &[u8]) {
        match way {
            Way::Direct(source) => {
                world.act(self.host, |_, context| context.send(*source, to, bytes));
            }
            Way::Through(outer, server) => {
                let mut message = Builder::new(kind::SEND, self.dice.array());
                message.put_address(attribute::XOR_PEER_ADDRESS, to);
                message.put(attribute::DATA, bytes);
                self.send(world, outer, *server, &message.finish());
            }
        }
    }

    /// Everything that arrived since the last look.
    pub fn received(&mut self, world: &mut World<Actor>) -> Vec<Packet> {
        world.act(self.host, |node, _| match node {
            Actor::Probe(probe) => std::mem::take(&mut probe.inbox),
            Actor::Relay(_) | Actor::Client(_) | Actor::Peer(_) => {
                unreachable!("a tester's host has a probe")
            }
        })
    }

    /// A request without credentials, and the nonce in the answer. The answer may come wrapped in
    /// data of allocations.
    pub fn nonce(
        &mut self,
        world: &mut World<Actor>,
        way: &Way,
        server: SocketAddr,
    ) -> Option<Vec<u8>> {
        let id = self.dice.array();
        let mut request = Builder::new(kind::ALLOCATE, id);
        request.put(attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        let answer = self.exchange(world, way, server, id, &request.finish())?;
        Some(answer.find(attribute::NONCE)?.to_vec())
    }

    /// A request with credentials, which the tester may send without seeing the answer.
    pub fn request(
        &mut self,
        world: &mut World<Actor>,
        way: &Way,
        server: SocketAddr,
        nonce: &[u8],
        (kind, attributes): (u16, &[(u16, Value<'_>)]),
    ) -> Option<Parsed> {
        let id = self.dice.array();
        let mut request = Builder::new(kind, id);
        for (kind, value) in attributes {
            match value {
                Value::Bytes(bytes) => request.put(*kind, bytes),
                Value::Address(address) => request.put_address(*kind, *address),
            };
        }
        request.put(attribute::USERNAME, self.name.as_bytes());
        request.put(attribute::REALM, REALM.as_bytes());
        request.put(attribute::NONCE, nonce);
        request.integrity(&stun::md5_key(&self.name, REALM, &self.password));
        self.exchange(world, way, server, id, &request.finish())
    }

    /// Allocates; the relayed address.
    pub fn allocate(
        &mut self,
        world: &mut World<Actor>,
        way: &Way,
        server: SocketAddr,
    ) -> Option<SocketAddr> {
        let nonce = self.nonce(world, way, server)?;
        let transport = [(attribute::REQUESTED_TRANSPORT, Value::Bytes(&[17, 0, 0, 0]))];
        let answer = self.request(world, way, server, &nonce, (kind::ALLOCATE, &transport))?;
        answer.address(attribute::XOR_RELAYED_ADDRESS)
    }

    /// Asks for a permission; the error code, 0 for success, `None` without an answer.
    pub fn permit(
        &mut self,
        world: &mut World<Actor>,
        way: &Way,
        server: SocketAddr,
        peer: SocketAddr,
    ) -> Option<u16> {
        let nonce = self.nonce(world, way, server)?;
        let peers = [(attribute::XOR_PEER_ADDRESS, Value::Address(peer))];
        let answer = self.request(
            world,
            way,
            server,
            &nonce,
            (kind::CREATE_PERMISSION, &peers),
        )?;
        Some(answer.error_code().unwrap_or(0))
    }

    /// Binds a channel; the error code, 0 for success, `None` without an answer.
    pub fn bind_channel(
        &mut self,
        world: &mut World<Actor>,
        way: &Way,
        server: SocketAddr,
        (number, peer): (u16, SocketAddr),
    ) -> Option<u16> {
        let nonce = self.nonce(world, way, server)?;
        let [high, low] = number.to_be_bytes();
        let attributes = [
            (attribute::CHANNEL_NUMBER, Value::Bytes(&[high, low, 0, 0])),
            (attribute::XOR_PEER_ADDRESS, Value::Address(peer)),
        ];
        let answer = self.request(
            world,
            way,
            server,
            &nonce,
            (kind::CHANNEL_BIND, &attributes),
        )?;
        Some(answer.error_code().unwrap_or(0))
    }

    fn exchange(
        &mut self,
        world: &mut World<Actor>,
        way: &Way,
        server: SocketAddr,
        id: TransactionId,
        bytes: &[u8],
    ) -> Option<Parsed> {
        self.received(world);
        self.send(world, way, server, bytes);
        let until = world.now() + PATIENCE;
        while world.step(until) {}
        let received = self.received(world);
        received
            .iter()
            .find_map(|packet| find_answer(&packet.payload, id))
    }
}

/// The value of an attribute.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// As it is.
    Bytes(&'a [u8]),
    /// A XOR'd address.
    Address(SocketAddr),
}

/// The answer of this transaction in a datagram, behind any number of wrappings.
fn find_answer(bytes: &[u8], id: TransactionId) -> Option<Parsed> {
    if let Some(0x40..=0x7f) = bytes.first() {
        return find_answer(bytes.get(4..)?, id);
    }
    let message = stun::parse(bytes)?;
    if message.kind == kind::DATA {
        return find_answer(message.find(attribute::DATA)?, id);
    }
    (message.id == id && message.kind & 0x100 != 0).then_some(message)
}
