//! TURN clients and servers of two independent implementations, ours and `turn-proto`'s, in any pair:
//! one client, one server and as many peers as it takes, in one thread and in virtual time, over a
//! network that loses nothing.

#![forbid(unsafe_code)]

pub mod ours;
pub mod theirs;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use towpath_proto::Timestamp;
use towpath_proto::wire::attribute::Family;

/// The user that every server knows.
pub const USER: &str = "alice";
/// The user's password.
pub const PASSWORD: &str = "secret";
/// The realm.
pub const REALM: &str = "example.org";
/// Where every server listens.
pub const SERVER: SocketAddr = SocketAddr::new(RELAY_V4, 3478);
/// Where every client is.
pub const CLIENT: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 9)), 4000);

const RELAY_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(5, 5, 5, 5));
const RELAY_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0x2600, 0, 0, 0, 0, 0, 0, 5));

/// More than can happen at one time.
const MAX_ROUNDS: usize = 10_000;
/// A deadline that does not move is taken for one this much later.
const STEP: Duration = Duration::from_millis(1);

/// What a client asks for and signs with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wish {
    /// The family of the relayed address.
    pub family: Family,
    /// Whether the client insists on SHA-256, or on SHA-1.
    pub sha256: bool,
}

/// A datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// The sender.
    pub source: SocketAddr,
    /// The receiver.
    pub destination: SocketAddr,
    /// The payload.
    pub payload: Vec<u8>,
}

/// A TURN client with one allocation, which it asks for as soon as it exists.
pub trait Client {
    /// Does what is due; says when it is to be called next.
    fn advance(&mut self, now: Timestamp) -> Option<Timestamp>;
    /// The next datagram for the server.
    fn transmit(&mut self, now: Timestamp) -> Option<Vec<u8>>;
    /// Takes a datagram of the server's; gives the data of a peer that it held.
    fn receive(&mut self, now: Timestamp, bytes: &[u8]) -> Option<(SocketAddr, Vec<u8>)>;
    /// The relayed address, once there is one.
    fn relayed(&self) -> Option<SocketAddr>;
    /// Asks for a permission.
    fn permit(&mut self, now: Timestamp, peer: IpAddr);
    /// Asks for a channel.
    fn bind_channel(&mut self, now: Timestamp, peer: SocketAddr);
    /// The message that brings data to a peer.
    fn data(&mut self, now: Timestamp, peer: SocketAddr, data: &[u8]) -> Vec<u8>;
    /// Ends the allocation.
    fn release(&mut self, now: Timestamp);
}

/// A TURN server.
pub trait Server {
    /// Does what is due; says when it is to be called next.
    fn advance(&mut self, now: Timestamp) -> Option<Timestamp>;
    /// Takes a datagram: the client's, or a peer's for a relayed address.
    fn receive(&mut self, now: Timestamp, datagram: &Datagram);
    /// The next datagram for the client or for a peer.
    fn transmit(&mut self) -> Option<Datagram>;
    /// How many relayed ports are open.
    fn ports(&self) -> usize;
}

/// A client and a server, and what arrives.
pub struct World<C, S> {
    /// The time.
    pub now: Timestamp,
    /// The client.
    pub client: C,
    /// The server.
    pub server: S,
    /// What left for peers.
    pub at_peers: Vec<Datagram>,
    /// Data that reached the client, and of whom.
    pub at_client: Vec<(SocketAddr, Vec<u8>)>,
    /// How long the client's last message with data was.
    pub data_bytes: usize,
}

impl<C: Client, S: Server> World<C, S> {
    /// Both, made at the same time.
    pub fn new(client: impl FnOnce(Timestamp) -> C, server: impl FnOnce(Timestamp) -> S) -> Self {
        let now = Timestamp::ZERO + Duration::from_secs(1_000);
        Self {
            now,
            client: client(now),
            server: server(now),
            at_peers: Vec::new(),
            at_client: Vec::new(),
            data_bytes: 0,
        }
    }

    /// Delivers what is under way until both have nothing more to say now; says when one will have.
    ///
    /// # Panics
    ///
    /// Where they never come to rest.
    pub fn settle(&mut self) -> Option<Timestamp> {
        for _ in 0..MAX_ROUNDS {
            let client = self.client.advance(self.now);
            let server = self.server.advance(self.now);
            let mut quiet = true;
            while let Some(payload) = self.client.transmit(self.now) {
                self.send(payload);
                quiet = false;
            }
            while let Some(datagram) = self.server.transmit() {
                self.deliver(datagram);
                quiet = false;
            }
            if quiet {
                return client.into_iter().chain(server).min();
            }
        }
        panic!("they do not come to rest at {:?}", self.now);
    }

    /// Lets time pass from deadline to deadline.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.settle().filter(|next| *next <= end) {
            self.now = next.max(self.now + STEP);
        }
        self.now = self.now.max(end);
    }

    /// Sends data from the client to the peer and back.
    ///
    /// # Panics
    ///
    /// Where it does not arrive just so.
    pub fn exchange(&mut self, peer: SocketAddr, data: &[u8]) {
        let relayed = self.client.relayed().expect("there is an allocation");
        let message = self.client.data(self.now, peer, data);
        self.data_bytes = message.len();
        self.send(message);
        self.settle();
        let expected = Datagram {
            source: relayed,
            destination: peer,
            payload: data.to_vec(),
        };
        assert_eq!(self.at_peers, [expected], "what the peer got");
        self.at_peers.clear();
        self.peer_sends(peer, data);
        assert_eq!(
            self.at_client,
            [(peer, data.to_vec())],
            "what the client got"
        );
        self.at_client.clear();
    }

    /// Sends data from a peer to the relayed address.
    ///
    /// # Panics
    ///
    /// Where there is none.
    pub fn peer_sends(&mut self, peer: SocketAddr, data: &[u8]) {
        let datagram = Datagram {
            source: peer,
            destination: self.client.relayed().expect("there is an allocation"),
            payload: data.to_vec(),
        };
        self.server.receive(self.now, &datagram);
        self.settle();
    }

    fn send(&mut self, payload: Vec<u8>) {
        let datagram = Datagram {
            source: CLIENT,
            destination: SERVER,
            payload,
        };
        self.server.receive(self.now, &datagram);
    }

    fn deliver(&mut self, datagram: Datagram) {
        if datagram.destination != CLIENT {
            self.at_peers.push(datagram);
            return;
        }
        assert_eq!(datagram.source, SERVER);
        let data = self.client.receive(self.now, &datagram.payload);
        self.at_client.extend(data);
    }
}
