//! The yardstick: a forwarder without protocol, as a process of its own.
//!
//! One socket towards the clients and one socket per flow towards the peers, as a relay has them;
//! `recvmmsg` and `sendmmsg` of 32 under epoll; a static table. It strips the ChannelData header from
//! what clients send and puts it in front of what peers send. It checks nothing, counts nothing and
//! knows no time: the least that a relay on plain sockets can do.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::batch::Batch;
use crate::control::{CHANNEL, CLIENT_PORT, PEER_PORT};
use crate::packet::CHANNEL_DATA_HEADER_BYTES;
use crate::rig::Rig;
use crate::server::{Body, Flow, Process, Server, Table as ServerTable};
use crate::sys::{self, Epoll};

/// Port towards the clients.
pub const LISTEN_PORT: u16 = 3478;
/// Port of the first flow towards its peer.
pub const FLOW_PORT: u16 = 10_000;

const BATCH: usize = 32;
const BUFFER_BYTES: usize = 2048;
const SOCKET_BUFFER_BYTES: i32 = 512 << 10;
/// A busy socket may not keep the others waiting for longer.
const MAX_BATCHES_IN_A_ROW: usize = 8;
const CLIENT_SOCKET: u64 = u64::MAX;

/// The forwarder's static table, as arguments.
#[derive(Args, Clone, Debug)]
pub struct Table {
    /// Address towards the clients.
    #[arg(long)]
    pub listen: Ipv4Addr,
    /// Address towards the peers.
    #[arg(long)]
    pub relay: Ipv4Addr,
    /// Where all clients are.
    #[arg(long)]
    pub client: Ipv4Addr,
    /// Where all peers are.
    #[arg(long)]
    pub peer: Ipv4Addr,
    /// Number of flows.
    #[arg(long)]
    pub flows: u16,
}

struct Forwarder {
    clients: RawFd,
    flows: Vec<RawFd>,
    table: Table,
    from_clients: Batch,
    /// Which flow each datagram of `from_clients` belongs to; `None` once it is queued.
    flow_of: [Option<usize>; BATCH],
    from_peers: Batch,
    filled: usize,
}

/// Forwards until killed. Says "ready" on its standard output first.
pub fn run(table: Table) -> Result<()> {
    sys::raise_descriptor_limit()?;
    let clients = socket(SocketAddrV4::new(table.listen, LISTEN_PORT))?;
    let flow_address = |flow| SocketAddrV4::new(table.relay, FLOW_PORT + flow);
    let flows = (0..table.flows)
        .map(|flow| socket(flow_address(flow)))
        .collect::<Result<Vec<_>>>()?;
    let mut epoll = Epoll::new(64)?;
    epoll.add(clients.as_raw_fd(), CLIENT_SOCKET)?;
    for (flow, socket) in flows.iter().enumerate() {
        epoll.add(socket.as_raw_fd(), flow as u64)?;
    }
    let mut forwarder = Forwarder {
        clients: clients.as_raw_fd(),
        flows: flows.iter().map(AsRawFd::as_raw_fd).collect(),
        table,
        from_clients: Batch::new(BATCH, BUFFER_BYTES, 0),
        flow_of: [None; BATCH],
        from_peers: Batch::new(BATCH, BUFFER_BYTES, CHANNEL_DATA_HEADER_BYTES),
        filled: 0,
    };
    println!("ready");
    loop {
        for number in epoll.wait()? {
            if number == CLIENT_SOCKET {
                forwarder.forward_from_clients()?;
            } else {
                forwarder.forward_from_peer(number as usize)?;
            }
        }
        forwarder.flush_to_clients();
    }
}

fn socket(address: SocketAddrV4) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("binding {address}"))?;
    sys::set_option(
        socket.as_raw_fd(),
        libc::SOL_SOCKET,
        libc::SO_RCVBUF,
        SOCKET_BUFFER_BYTES,
    )?;
    sys::set_option(
        socket.as_raw_fd(),
        libc::SOL_SOCKET,
        libc::SO_SNDBUF,
        SOCKET_BUFFER_BYTES,
    )?;
    Ok(socket)
}

impl Forwarder {
    /// Datagrams of one batch that belong to one flow leave together, in their order.
    fn forward_from_clients(&mut self) -> Result<()> {
        for _ in 0..MAX_BATCHES_IN_A_ROW {
            let received = self.from_clients.receive(self.clients, 0)?;
            for slot in 0..received {
                let port = self.from_clients.source(slot).port();
                let flow = usize::from(port.wrapping_sub(CLIENT_PORT));
                let long_enough =
                    self.from_clients.received_bytes(slot) >= CHANNEL_DATA_HEADER_BYTES;
                self.flow_of[slot] =
                    Some(flow).filter(|&flow| flow < self.flows.len() && long_enough);
            }
            for first in 0..received {
                let Some(flow) = self.flow_of[first] else {
                    continue;
                };
                let peer = SocketAddrV4::new(self.table.peer, PEER_PORT + flow as u16);
                for slot in first..received {
                    if self.flow_of[slot] == Some(flow) {
                        self.flow_of[slot] = None;
                        let bytes =
                            CHANNEL_DATA_HEADER_BYTES..self.from_clients.received_bytes(slot);
                        self.from_clients.queue(slot, bytes, Some(peer));
                    }
                }
                // A full send buffer loses packets, as on any relay.
                let _ = self.from_clients.send(self.flows[flow]);
            }
            if received < BATCH {
                break;
            }
        }
        Ok(())
    }

    /// Datagrams of several flows leave together, once the batch is full or nothing more is there.
    fn forward_from_peer(&mut self, flow: usize) -> Result<()> {
        let client = SocketAddrV4::new(self.table.client, CLIENT_PORT + flow as u16);
        for _ in 0..MAX_BATCHES_IN_A_ROW {
            let received = self.from_peers.receive(self.flows[flow], self.filled)?;
            for slot in self.filled..self.filled + received {
                let bytes = self.from_peers.received_bytes(slot);
                let header = &mut self.from_peers.buffer(slot)[..CHANNEL_DATA_HEADER_BYTES];
                header[0..2].copy_from_slice(&CHANNEL.to_be_bytes());
                header[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
                self.from_peers
                    .queue(slot, 0..CHANNEL_DATA_HEADER_BYTES + bytes, Some(client));
            }
            self.filled += received;
            if self.filled < BATCH {
                break;
            }
            self.flush_to_clients();
        }
        Ok(())
    }

    fn flush_to_clients(&mut self) {
        if self.filled > 0 {
            // A full send buffer loses packets, as on any relay.
            let _ = self.from_peers.send(self.clients);
            self.filled = 0;
        }
    }
}

/// Starts the forwarder as a process of its own, with `count` flows.
pub fn start(
    rig: &Rig,
    directory: &Path,
    listen: Ipv4Addr,
    relay: Ipv4Addr,
    count: u16,
) -> Result<Server> {
    let address = SocketAddrV4::new(listen, LISTEN_PORT);
    let program = std::env::current_exe().context("finding the own program")?;
    let mut command = Command::new(program);
    let (client, peer) = (rig.client_end.address, rig.peer_end.address);
    command.arg("forwarder");
    for (name, address) in [
        ("--listen", listen),
        ("--relay", relay),
        ("--client", client),
        ("--peer", peer),
    ] {
        command.arg(name).arg(address.to_string());
    }
    command.arg("--flows").arg(count.to_string());
    let mut process = Process::start(rig, command, directory.join("forwarder.log"))?;
    let last = SocketAddrV4::new(relay, FLOW_PORT + count - 1);
    process.wait_for_socket(rig, last).context("forwarder")?;
    let flow = |number| Flow {
        client: SocketAddrV4::new(client, CLIENT_PORT + number),
        relayed: SocketAddrV4::new(relay, FLOW_PORT + number),
    };
    let version = "recvmmsg/sendmmsg of 32 under epoll, one socket per flow".to_owned();
    let table = ServerTable::Fixed((0..count).map(flow).collect());
    let body = Body::Process(process);
    Ok(Server::new("forwarder", version, address, table, body))
}
