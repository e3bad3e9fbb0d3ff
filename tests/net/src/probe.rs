//! A TURN client that asks for anything, also for what it must not have: one request at a time, by
//! the project's own codec, with the server's whole answer.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use towpath_proto::wire::attribute::{
    AlternateServer, ChannelNumberValue, Data, DontFragment, ErrorCode, Family, Icmp, Lifetime,
    Nonce, RequestedAddressFamily, RequestedTransport, XorMappedAddress, XorPeerAddress,
    XorRelayedAddress,
};
use towpath_proto::wire::{
    ChannelData, ChannelNumber, Class, Kind, Message, MessageType, Method, TransactionId, classify,
};

use crate::lab::Host;
use crate::server::{PASSWORD, USER};
use crate::stranger::{Fill, Login, message};

/// A request without an answer is sent again after this long.
const RETRANSMIT: Duration = Duration::from_millis(500);
/// And given up after this long.
const GIVE_UP: Duration = Duration::from_secs(20);
/// UDP's number, as REQUESTED-TRANSPORT has it.
const UDP: u8 = 17;

/// A client with one 5-tuple.
#[derive(Debug)]
pub struct Probe {
    socket: UdpSocket,
    server: SocketAddr,
    login: Login,
    nonce: Vec<u8>,
    transactions: u64,
    alternate: Option<SocketAddr>,
    backlog: Vec<Relayed>,
}

/// What a success response says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// XOR-RELAYED-ADDRESS.
    pub relayed: Option<SocketAddr>,
    /// XOR-MAPPED-ADDRESS.
    pub mapped: Option<SocketAddr>,
    /// LIFETIME, in seconds.
    pub lifetime: Option<u32>,
}

/// A refusal: the number of ERROR-CODE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub u16);

/// Data that came through the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Relayed {
    /// In a Data indication.
    Indication {
        /// XOR-PEER-ADDRESS.
        peer: SocketAddr,
        /// DATA.
        data: Vec<u8>,
    },
    /// On a channel.
    Channel {
        /// The channel's number.
        number: u16,
        /// Application data.
        data: Vec<u8>,
    },
    /// No data, but an ICMP error about what went to a peer.
    Icmp {
        /// XOR-PEER-ADDRESS.
        peer: SocketAddr,
        /// ICMP.
        icmp: Icmp,
    },
}

impl Probe {
    /// A client on `host`, sending from `local` to `server`.
    pub fn new(host: &Host, local: IpAddr, server: SocketAddr) -> Self {
        Self::of_user(host, local, server, USER)
    }

    /// As [`Probe::new`], of another user with the same password.
    pub fn of_user(host: &Host, local: IpAddr, server: SocketAddr, user: &str) -> Self {
        Self::with_password(host, local, server, (user, PASSWORD))
    }

    /// As [`Probe::new`], with these credentials.
    pub fn with_password(
        host: &Host,
        local: IpAddr,
        server: SocketAddr,
        (user, password): (&str, &str),
    ) -> Self {
        Self {
            socket: host.bind_any(local),
            server,
            login: Login::new(user, password),
            nonce: Vec::new(),
            transactions: 0,
            alternate: None,
            backlog: Vec::new(),
        }
    }

    /// Signs with other credentials from now on.
    pub fn change_credentials(&mut self, (user, password): (&str, &str)) {
        self.login = Login::new(user, password);
    }

    /// The server that the last answer names in place of its own.
    pub fn alternate(&self) -> Option<SocketAddr> {
        self.alternate
    }

    /// Where it sends from.
    pub fn local(&self) -> SocketAddr {
        self.socket
            .local_addr()
            .expect("a bound socket has an address")
    }

    /// Where it sends to.
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// Asks for its own address, without credentials. Gives the answer's source too.
    pub fn binding(&mut self) -> Result<(Granted, SocketAddr), Refused> {
        self.exchange(Method::BINDING, false, &|_| Ok(()))
    }

    /// Asks for an allocation.
    pub fn allocate(&mut self, family: Option<Family>) -> Result<Granted, Refused> {
        self.request(Method::ALLOCATE, &|message| {
            message.put(&RequestedTransport(UDP))?;
            message.put_some(family.map(RequestedAddressFamily).as_ref())?;
            Ok(())
        })
    }

    /// Asks for another lifetime, in seconds; 0 ends the allocation.
    pub fn refresh(&mut self, lifetime: u32) -> Result<Granted, Refused> {
        self.request(Method::REFRESH, &|message| {
            message.put(&Lifetime(lifetime)).map(drop)
        })
    }

    /// Asks to let these peers in.
    pub fn create_permission(&mut self, peers: &[IpAddr]) -> Result<Granted, Refused> {
        self.request(Method::CREATE_PERMISSION, &|message| {
            for &peer in peers {
                message.put(&XorPeerAddress(SocketAddr::new(peer, 0)))?;
            }
            Ok(())
        })
    }

    /// Asks for a channel to a peer.
    pub fn bind_channel(&mut self, number: u16, peer: SocketAddr) -> Result<Granted, Refused> {
        self.request(Method::CHANNEL_BIND, &|message| {
            message.put(&ChannelNumberValue(channel(number)))?;
            message.put(&XorPeerAddress(peer))?;
            Ok(())
        })
    }

    /// Sends by a Send indication, which nobody answers.
    pub fn send(&mut self, peer: SocketAddr, data: &[u8]) {
        let bytes = self.indication(peer, data);
        self.transmit(&bytes);
    }

    /// The bytes of a Send indication.
    pub fn indication(&mut self, peer: SocketAddr, data: &[u8]) -> Vec<u8> {
        let kind = MessageType::new(Method::SEND, Class::Indication);
        let id = self.next_transaction();
        message(kind, id, &|message| {
            message.put(&XorPeerAddress(peer))?.put(&Data(data))?;
            Ok(())
        })
    }

    /// Sends by a Send indication with DONT-FRAGMENT.
    pub fn send_whole(&mut self, peer: SocketAddr, data: &[u8]) {
        let kind = MessageType::new(Method::SEND, Class::Indication);
        let id = self.next_transaction();
        let bytes = message(kind, id, &|message| {
            message.put(&XorPeerAddress(peer))?;
            message.put(&DontFragment)?.put(&Data(data))?;
            Ok(())
        });
        self.transmit(&bytes);
    }

    /// Sends on a channel.
    pub fn send_on_channel(&mut self, number: u16, data: &[u8]) {
        self.transmit(&on_channel(number, data));
    }

    /// The next data from a peer; `None` where nothing comes within `limit`.
    pub fn receive(&mut self, limit: Duration) -> Option<Relayed> {
        if !self.backlog.is_empty() {
            return Some(self.backlog.remove(0));
        }
        let deadline = Instant::now() + limit;
        let mut buffer = [0; 2048];
        while let Some((bytes, _)) = self.datagram(deadline, &mut buffer) {
            if let Some(relayed) = relayed(bytes) {
                return Some(relayed);
            }
        }
        None
    }

    /// A request with credentials; a 401 or 438 is answered with what it asks for, once.
    fn request(&mut self, method: Method, fill: &Fill<'_>) -> Result<Granted, Refused> {
        const CHALLENGES: [Refused; 2] = [Refused(401), Refused(438)];
        let first = self.exchange(method, !self.nonce.is_empty(), fill);
        let outcome = match first {
            Err(refused) if CHALLENGES.contains(&refused) => self.exchange(method, true, fill),
            outcome => outcome,
        };
        outcome.map(|(granted, _)| granted)
    }

    fn exchange(
        &mut self,
        method: Method,
        signed: bool,
        fill: &Fill<'_>,
    ) -> Result<(Granted, SocketAddr), Refused> {
        let id = self.next_transaction();
        let kind = MessageType::new(method, Class::Request);
        let request = message(kind, id, &|message| {
            fill(message)?;
            if signed {
                self.login.sign(message, &self.nonce)?;
            }
            Ok(())
        });
        let begin = Instant::now();
        let mut answer = [0; 2048];
        while begin.elapsed() < GIVE_UP {
            self.transmit(&request);
            let deadline = Instant::now() + RETRANSMIT;
            while let Some((bytes, source)) = self.datagram(deadline, &mut answer) {
                match Message::parse(bytes) {
                    Ok(message) if message.transaction_id() == id => {
                        let nonce = message.get::<Nonce<'_>>().ok().flatten();
                        if let Some(Nonce(nonce)) = nonce {
                            nonce.clone_into(&mut self.nonce);
                        }
                        let alternate = message.get().ok().flatten();
                        self.alternate = alternate.map(|AlternateServer(server)| server);
                        return self
                            .outcome(&message, signed)
                            .map(|granted| (granted, source));
                    }
                    _ => self.backlog.extend(relayed(bytes)),
                }
            }
        }
        panic!("{} does not answer {method:?}", self.server);
    }

    fn outcome(&self, message: &Message<'_>, signed: bool) -> Result<Granted, Refused> {
        if message.class() == Class::Error {
            let error = message
                .get::<ErrorCode<'_>>()
                .expect("a well-formed ERROR-CODE");
            return Err(Refused(error.expect("an error has a code").code.number()));
        }
        if signed {
            message
                .check_integrity(self.login.key())
                .expect("a success is signed with the user's key");
        }
        let relayed = message.get().expect("a well-formed XOR-RELAYED-ADDRESS");
        let mapped = message.get().expect("a well-formed XOR-MAPPED-ADDRESS");
        let lifetime = message.get().expect("a well-formed LIFETIME");
        Ok(Granted {
            relayed: relayed.map(|XorRelayedAddress(address)| address),
            mapped: mapped.map(|XorMappedAddress(address)| address),
            lifetime: lifetime.map(|Lifetime(seconds)| seconds),
        })
    }

    fn transmit(&self, bytes: &[u8]) {
        // A closed port answers the previous datagram with an error that belongs to no one here.
        if self.socket.send_to(bytes, self.server).is_err() {
            self.socket
                .send_to(bytes, self.server)
                .expect("the laboratory's network is up");
        }
    }

    /// The next datagram of the server; `None` at the deadline.
    fn datagram<'b>(
        &self,
        deadline: Instant,
        buffer: &'b mut [u8],
    ) -> Option<(&'b [u8], SocketAddr)> {
        loop {
            let left = deadline.checked_duration_since(Instant::now())?;
            let timeout = left.max(Duration::from_millis(1));
            self.socket
                .set_read_timeout(Some(timeout))
                .expect("the timeout is not zero");
            match self.socket.recv_from(buffer) {
                Ok((bytes, source)) => return Some((&buffer[..bytes], source)),
                Err(_) => continue,
            }
        }
    }

    fn next_transaction(&mut self) -> TransactionId {
        self.transactions += 1;
        let mut id = [0; 12];
        let port = self
            .socket
            .local_addr()
            .map(|address| address.port())
            .unwrap_or_default();
        id[..2].copy_from_slice(&port.to_be_bytes());
        id[4..].copy_from_slice(&self.transactions.to_be_bytes());
        TransactionId(id)
    }
}

/// The bytes of a ChannelData message.
pub fn on_channel(number: u16, data: &[u8]) -> Vec<u8> {
    let header =
        ChannelData::header(channel(number), data.len()).expect("a datagram fits a channel");
    [&header, data].concat()
}

fn relayed(bytes: &[u8]) -> Option<Relayed> {
    match classify(bytes) {
        Kind::ChannelData => {
            let message = ChannelData::parse(bytes).ok()?;
            let (number, data) = (message.channel.number(), message.data.to_vec());
            Some(Relayed::Channel { number, data })
        }
        Kind::Stun => {
            let message = Message::parse(bytes).ok()?;
            let XorPeerAddress(peer) = message.get().ok()??;
            let Some(Data(data)) = message.get().ok()? else {
                let icmp = message.get().ok()??;
                return Some(Relayed::Icmp { peer, icmp });
            };
            Some(Relayed::Indication {
                peer,
                data: data.to_vec(),
            })
        }
        Kind::Other => None,
    }
}

fn channel(number: u16) -> ChannelNumber {
    ChannelNumber::new(number).unwrap_or_else(|| panic!("{number:#x} is no channel number"))
}
