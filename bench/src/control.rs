//! Many TURN clients behind one packet socket: allocations, channels and deletions, with a fixed number
//! of transactions outstanding.
//!
//! Clients have no kernel sockets, so that fifteen thousand of them cost the machine nothing that could
//! be mistaken for the server's memory.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};

use crate::batch::Batch;
use crate::packet::{self, Route};
use crate::rig::Rig;
use crate::server::Flow;
use crate::sys;
use crate::turn::{Credentials, Request, Response, TransactionId};

/// First port of the clients.
pub const CLIENT_PORT: u16 = 10_000;
/// First port of the peers.
pub const PEER_PORT: u16 = 30_000;
/// Channel number of every client.
pub const CHANNEL: u16 = 0x4000;
/// Most clients there can be.
pub const MAX_CLIENTS: usize = 16_000;
/// Transactions in flight at a time.
pub const OUTSTANDING: usize = 64;
/// The user all servers know.
pub const USERNAME: &str = "bench";
/// The user's password.
pub const PASSWORD: &str = "bench-password";
/// The realm of all servers.
pub const REALM: &str = "bench.test";

const ALLOCATION_SECONDS: u32 = 3600;
const RETRANSMIT_NS: u64 = 250_000_000;
const MAX_SENDS: u32 = 7;
const ETHERNET_IPV4: u16 = 0x0800;
const RECEIVE_BUFFER_BYTES: i32 = 16 << 20;

/// A client, and the allocation it holds.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its own address.
    pub address: SocketAddrV4,
    /// Where it is reached by peers, while it has an allocation.
    pub relayed: Option<SocketAddrV4>,
    credentials: Option<Credentials>,
    transaction: TransactionId,
    sent_at: u64,
    sends: u32,
}

/// What a series of transactions took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Effort {
    /// Wall-clock time.
    pub elapsed_ns: u64,
    /// Requests that had to be sent again.
    pub retransmissions: u64,
}

/// All clients of one server.
pub struct Clients {
    socket: OwnedFd,
    batch: Batch,
    server: SocketAddrV4,
    first_port: u16,
    route: Route,
    clients: Vec<Client>,
    transactions: u64,
}

impl Clients {
    /// Clients of the server at `server`, on the rig's client link, with ports from `first_port` on.
    ///
    /// A server may keep an address and port for a while after its allocation has ended, so those of
    /// clients that are gone are better not used again at once.
    pub fn new(rig: &Rig, server: SocketAddrV4, first_port: u16) -> Result<Self> {
        let index = rig.client_end.index;
        let socket = rig
            .client
            .enter(|| sys::packet_socket(index, ETHERNET_IPV4))??;
        let (level, name) = (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE);
        sys::set_option(socket.as_raw_fd(), level, name, RECEIVE_BUFFER_BYTES)?;
        let nobody = SocketAddrV4::new(rig.client_end.address, 0);
        Ok(Self {
            socket,
            batch: Batch::new(OUTSTANDING, 2048, 0),
            server,
            first_port,
            route: Route {
                source_mac: rig.client_end.mac,
                destination_mac: rig.relay_client_end.mac,
                source: nobody,
                destination: server,
            },
            clients: Vec::new(),
            transactions: 0,
        })
    }

    /// The clients made so far.
    pub fn clients(&self) -> &[Client] {
        &self.clients
    }

    /// Makes allocations until `count` clients have one.
    pub fn allocate(&mut self, count: usize) -> Result<Effort> {
        let ports = usize::from(u16::MAX - self.first_port);
        ensure!(
            count <= MAX_CLIENTS.min(ports),
            "no {count} clients from {}",
            self.first_port
        );
        for number in self.clients.len()..count {
            let port = self.first_port + number as u16;
            self.clients.push(Client {
                address: SocketAddrV4::new(*self.route.source.ip(), port),
                relayed: None,
                credentials: None,
                transaction: [0; 12],
                sent_at: 0,
                sends: 0,
            });
        }
        let needed = (0..count)
            .filter(|&number| self.clients[number].relayed.is_none())
            .collect();
        self.transact(needed, |_| Request::Allocate(ALLOCATION_SECONDS))
    }

    /// Binds, or binds again, the channel of the first `count` clients to their peers.
    pub fn bind_channels(&mut self, peer: Ipv4Addr, count: usize) -> Result<Effort> {
        let bind = |number| {
            Request::ChannelBind(CHANNEL, SocketAddrV4::new(peer, PEER_PORT + number as u16))
        };
        self.transact((0..count).collect(), bind)
    }

    /// The first `count` flows, ready for data for the next minutes.
    pub fn flows(&mut self, peer: Ipv4Addr, count: usize) -> Result<Vec<Flow>> {
        self.allocate(count).context("allocating")?;
        self.bind_channels(peer, count)
            .context("binding channels")?;
        let flow = |client: &Client| {
            Some(Flow {
                client: client.address,
                relayed: client.relayed?,
            })
        };
        let flows = self.clients[..count].iter().map(flow);
        flows
            .collect::<Option<_>>()
            .context("a client without an allocation")
    }

    /// Ends all allocations.
    pub fn delete_all(&mut self) -> Result<Effort> {
        let held = (0..self.clients.len()).filter(|&number| self.clients[number].relayed.is_some());
        let effort = self.transact(held.collect(), |_| Request::Refresh(0))?;
        self.clients.clear();
        Ok(effort)
    }

    fn transact(
        &mut self,
        mut waiting: VecDeque<usize>,
        request: impl Fn(usize) -> Request,
    ) -> Result<Effort> {
        self.discard_received()?;
        let start = sys::now_ns();
        let mut effort = Effort::default();
        let mut outstanding: Vec<usize> = Vec::with_capacity(OUTSTANDING);
        while !waiting.is_empty() || !outstanding.is_empty() {
            sys::check_interrupted()?;
            let room = OUTSTANDING - outstanding.len();
            let fresh: Vec<usize> = waiting.drain(..room.min(waiting.len())).collect();
            for &number in &fresh {
                self.begin_transaction(number);
            }
            self.send(&fresh, &request)?;
            outstanding.extend_from_slice(&fresh);
            if !sys::wait_readable(self.socket.as_raw_fd(), 50)? {
                effort.retransmissions += self.retransmit(&outstanding, &request)?;
            }
            let received = self.batch.receive(self.socket.as_raw_fd(), 0)?;
            for slot in 0..received {
                let Some(number) = self.take_response(slot, &request)? else {
                    continue;
                };
                outstanding.retain(|&other| other != number.0);
                if number.1 == Step::Again {
                    waiting.push_front(number.0);
                }
            }
        }
        effort.elapsed_ns = sys::now_ns() - start;
        Ok(effort)
    }

    fn begin_transaction(&mut self, number: usize) {
        self.transactions += 1;
        let client = &mut self.clients[number];
        client.transaction[..8].copy_from_slice(&self.transactions.to_be_bytes());
        client.transaction[8..].copy_from_slice(&(sys::now_ns() as u32).to_be_bytes());
        client.sends = 0;
    }

    fn send(&mut self, numbers: &[usize], request: &impl Fn(usize) -> Request) -> Result<()> {
        for (slot, &number) in numbers.iter().enumerate() {
            let client = &mut self.clients[number];
            client.sent_at = sys::now_ns();
            client.sends += 1;
            let message = request(number).build(client.transaction, client.credentials.as_ref());
            let route = Route {
                source: client.address,
                ..self.route
            };
            let frame = packet::udp_frame(&route, &message);
            self.batch.buffer(slot)[..frame.len()].copy_from_slice(&frame);
            self.batch.queue(slot, 0..frame.len(), None);
        }
        if numbers.is_empty() {
            return Ok(());
        }
        let sent = self
            .batch
            .send(self.socket.as_raw_fd())
            .context("sending requests")?;
        let count = numbers.len();
        ensure!(
            sent == count,
            "the packet socket took {sent} of {count} requests"
        );
        Ok(())
    }

    fn retransmit(
        &mut self,
        numbers: &[usize],
        request: &impl Fn(usize) -> Request,
    ) -> Result<u64> {
        let now = sys::now_ns();
        let due = |&number: &usize| now - self.clients[number].sent_at > RETRANSMIT_NS;
        let due: Vec<usize> = numbers.iter().copied().filter(due).collect();
        if let Some(&number) = due
            .iter()
            .find(|&&number| self.clients[number].sends >= MAX_SENDS)
        {
            bail!(
                "{} did not answer {:?} of client {number}",
                self.server,
                request(number)
            );
        }
        self.send(&due, request)?;
        Ok(due.len() as u64)
    }

    /// Which client a received frame answers, and what follows for it.
    fn take_response(
        &mut self,
        slot: usize,
        request: &impl Fn(usize) -> Request,
    ) -> Result<Option<(usize, Step)>> {
        let Some((source, destination, payload)) = packet::parse_udp(self.batch.received(slot))
        else {
            return Ok(None);
        };
        let number = usize::from(destination.port().wrapping_sub(self.first_port));
        let Some(client) = self
            .clients
            .get_mut(number)
            .filter(|_| source == self.server)
        else {
            return Ok(None);
        };
        let Some(response) = Response::parse(payload) else {
            return Ok(None);
        };
        if response.id != client.transaction {
            return Ok(None);
        }
        match (response.error, &mut client.credentials) {
            (0, _) => match request(number) {
                Request::Allocate(_) => {
                    ensure!(
                        response.relayed.is_some(),
                        "an allocation without a relayed address"
                    );
                    client.relayed = response.relayed;
                }
                Request::Refresh(0) => client.relayed = None,
                Request::Refresh(_) | Request::ChannelBind(..) => {}
            },
            (401, credentials @ None) => {
                let new = Credentials::new(USERNAME, PASSWORD, response.realm, response.nonce);
                *credentials = Some(new);
                return Ok(Some((number, Step::Again)));
            }
            (438, Some(credentials)) => {
                credentials.renew(response.nonce);
                return Ok(Some((number, Step::Again)));
            }
            (error, _) => {
                bail!(
                    "{} answered {:?} of client {number} with {error}",
                    self.server,
                    request(number)
                )
            }
        }
        Ok(Some((number, Step::Done)))
    }

    /// The socket sees every frame of the interface, also those meant for clients of other servers.
    fn discard_received(&mut self) -> Result<()> {
        while self.batch.receive(self.socket.as_raw_fd(), 0)? > 0 {}
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Done,
    Again,
}
