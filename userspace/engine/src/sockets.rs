//! The sockets of one shard: its listeners, and the owner of its relayed ports.
//!
//! A slot outlives its closing for as long as the driver has operations on it, so that neither its
//! number nor its descriptor is used again too early. Only [`Sockets::egress`] and
//! [`Sockets::ingress`] know that a relayed port has a socket of its own.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use towpath_proto::machine::{ListenerId, PortId, Socket, Transmit};

use crate::OpenError;
use crate::counters::{Counter, EngineCounters};
use crate::governor::Governor;
use crate::icmp::Trouble;
use crate::outbox::{Egress, Marks};
use crate::socket::{open_relayed, receive_buffer, set_dont_fragment, set_receive_buffer};

const NONE: u32 = u32::MAX;

/// One socket.
#[derive(Debug)]
pub(crate) struct Slot {
    fd: Option<OwnedFd>,
    /// Counts the uses of the slot, so that what was meant for an earlier one is recognised.
    pub(crate) generation: u16,
    /// Operations the kernel has on it, and queued messages.
    pub(crate) operations: u16,
    pub(crate) state: State,
    pub(crate) wildcard: bool,
    v6: bool,
    /// What leaves has the DF bit, because the machine wants it of a datagram.
    dont_fragment: bool,
    /// All that ever leaves has it.
    always_whole: bool,
    /// Index into the table of local addresses.
    local: u16,
    owner: Socket,
    pub(crate) governor: Governor,
    pub(crate) trouble: Trouble,
    pub(crate) receiving: Receiving,
}

/// How a socket receives at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Receiving {
    /// A standing receive, or the wait for one, is with the kernel.
    pub(crate) armed: bool,
    /// Only the wait for a first datagram is with the kernel: a quiet socket costs less that way.
    pub(crate) polling: bool,
    /// Something arrived since the last look for quiet sockets.
    pub(crate) active: bool,
    /// The standing receive is being cancelled because the socket is quiet.
    pub(crate) quiet: bool,
    /// It takes big buffers.
    pub(crate) big: bool,
    /// The kernel merges datagrams for this socket.
    pub(crate) gro: bool,
    /// A datagram was too long for a small buffer.
    pub(crate) needs_big: bool,
    /// The standing receive is being cancelled, to begin again in another way.
    pub(crate) changing: bool,
    /// The last window in which something arrived.
    pub(crate) window: u8,
    /// The logarithm of what may wait in it; 0 is the ordinary buffer.
    pub(crate) limit: u8,
}

/// Where a slot is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Holds no socket.
    Free,
    /// Has a socket.
    Open,
    /// Its socket is closed once no operation is left.
    Closing,
}

impl Slot {
    /// The descriptor; -1 where the slot is free.
    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Whether it is a relayed port's, of which there may be many.
    pub(crate) fn is_relayed(&self) -> bool {
        matches!(self.owner, Socket::Relayed(_))
    }

    /// Which of the machine's sockets it is.
    pub(crate) fn owner(&self) -> Socket {
        self.owner
    }

    pub(crate) fn is_v6(&self) -> bool {
        self.v6
    }

    pub(crate) fn sets_dont_fragment(&self) -> bool {
        self.dont_fragment
    }
}

/// A change of the table its driver has not followed yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// This slot was opened.
    Opened(u32),
    /// This slot is closing.
    Closing(u32),
}

/// The sockets of one shard.
#[derive(Debug)]
pub(crate) struct Sockets {
    slots: Vec<Slot>,
    free: Vec<u32>,
    listeners: u32,
    /// Slot of each relayed port, `NONE` where it is closed.
    ports: Vec<u32>,
    max_ports: u32,
    locals: Vec<IpAddr>,
    changes: Vec<Change>,
    receive_bytes: usize,
    /// What a relayed socket has that nobody limited; 0 until one was looked at.
    ordinary_bytes: usize,
    counters: Arc<EngineCounters>,
}

impl Sockets {
    pub(crate) fn new(max_ports: u32, receive_bytes: usize, counters: Arc<EngineCounters>) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            listeners: 0,
            ports: Vec::new(),
            max_ports,
            locals: Vec::new(),
            changes: Vec::new(),
            receive_bytes,
            ordinary_bytes: 0,
            counters,
        }
    }

    /// Adds the next listener. All listeners come before the first relayed port.
    pub(crate) fn add_listener(&mut self, socket: OwnedFd, local: SocketAddr, always_whole: bool) {
        assert_eq!(
            self.listeners as usize,
            self.slots.len(),
            "listeners come first"
        );
        let id = ListenerId(self.listeners as u16);
        self.listeners += 1;
        let index = self.place(socket, local, Socket::Listener(id));
        self.slots[index as usize].always_whole = always_whole;
    }

    pub(crate) fn slot(&self, index: u32) -> Option<&Slot> {
        self.slots.get(index as usize)
    }

    pub(crate) fn slot_mut(&mut self, index: u32) -> Option<&mut Slot> {
        self.slots.get_mut(index as usize)
    }

    pub(crate) fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Where a transmit leaves; the reason to drop it where it cannot.
    pub(crate) fn egress(&self, transmit: &Transmit) -> Result<Egress, Counter> {
        let index = match transmit.socket {
            Socket::Listener(id) => u32::from(id.0),
            Socket::Relayed(port) => self.ports.get(port.0 as usize).copied().unwrap_or(NONE),
        };
        let slot = self
            .slots
            .get(index as usize)
            .ok_or(Counter::DropNoSocket)?;
        if slot.v6 != transmit.destination.is_ipv6() {
            return Err(Counter::DropWrongFamily);
        }
        let source = transmit
            .source
            .filter(|source| slot.wildcard && source.is_ipv6() == slot.v6);
        Ok(Egress {
            socket: index,
            source,
            marks: Marks {
                traffic_class: transmit.traffic_class,
                dont_fragment: transmit.dont_fragment && !slot.v6 && !slot.always_whole,
            },
        })
    }

    /// Lets what leaves a slot from now on have the DF bit or not. What was given to the kernel before
    /// is not changed, so it must have left.
    pub(crate) fn set_dont_fragment(&mut self, index: u32, on: bool) {
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return;
        };
        if set_dont_fragment(slot.fd(), on).is_ok() {
            slot.dont_fragment = on;
        }
    }

    /// Which of the machine's sockets a slot is, and its local address.
    pub(crate) fn ingress(&self, index: u32, told: Option<IpAddr>) -> Option<(Socket, IpAddr)> {
        let slot = self
            .slots
            .get(index as usize)
            .filter(|slot| slot.state == State::Open)?;
        Some((
            slot.owner,
            told.unwrap_or(self.locals[usize::from(slot.local)]),
        ))
    }

    /// Takes the oldest change its driver has not followed yet.
    pub(crate) fn take_changes(&mut self, into: &mut Vec<Change>) {
        into.clear();
        into.append(&mut self.changes);
    }

    pub(crate) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Notes one more operation of the kernel on a slot.
    pub(crate) fn hold(&mut self, index: u32) {
        self.slots[index as usize].operations += 1;
    }

    /// Notes one operation less; a closing slot without any is freed and its socket closed.
    pub(crate) fn release(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.operations = slot
            .operations
            .checked_sub(1)
            .expect("held as often as released");
        self.free_if_done(index);
    }

    /// Frees a closing slot without operations.
    pub(crate) fn free_if_done(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.state == State::Closing && slot.operations == 0 {
            slot.state = State::Free;
            slot.fd = None;
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(index);
        }
    }

    /// Lets as much wait in a socket as the logarithm `limit` says; 0 is its ordinary buffer.
    pub(crate) fn limit_backlog(&mut self, index: u32, limit: u8) {
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return;
        };
        let fd = slot.fd();
        if slot.receiving.limit == limit || fd < 0 {
            return;
        }
        if self.ordinary_bytes == 0 {
            self.ordinary_bytes = receive_buffer(fd);
        }
        slot.receiving.limit = limit;
        set_receive_buffer(
            fd,
            match limit {
                0 => self.ordinary_bytes,
                limit => 1 << limit,
            },
        );
    }

    /// Puts all relayed ports and listeners into closing.
    pub(crate) fn close_all(&mut self) {
        for index in 0..self.slots.len() {
            if self.slots[index].state == State::Open {
                self.slots[index].state = State::Closing;
                self.changes.push(Change::Closing(index as u32));
            }
        }
        self.ports.fill(NONE);
    }

    fn place(&mut self, socket: OwnedFd, local: SocketAddr, owner: Socket) -> u32 {
        let known = self.locals.iter().position(|&ip| ip == local.ip());
        let local_index = known.unwrap_or_else(|| {
            self.locals.push(local.ip());
            self.locals.len() - 1
        });
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                fd: None,
                generation: 0,
                operations: 0,
                state: State::Free,
                wildcard: false,
                v6: false,
                dont_fragment: false,
                always_whole: false,
                local: 0,
                owner,
                governor: Governor::default(),
                trouble: Trouble::default(),
                receiving: Receiving::default(),
            });
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.fd = Some(socket);
        slot.state = State::Open;
        slot.wildcard = local.ip().is_unspecified();
        slot.v6 = local.is_ipv6();
        slot.dont_fragment = false;
        slot.always_whole = false;
        slot.local = u16::try_from(local_index).expect("few local addresses");
        slot.owner = owner;
        slot.governor = Governor::default();
        slot.trouble = Trouble::default();
        slot.receiving = Receiving::default();
        self.changes.push(Change::Opened(index));
        index
    }

    fn count_failure(&self, error: &OpenError) {
        let counter = match error {
            OpenError::InUse { .. } => Counter::PortsInUse,
            OpenError::NoDescriptors { .. } => Counter::PortsNoDescriptors,
            OpenError::BadPort { .. } | OpenError::Other { .. } => Counter::PortsFailed,
        };
        self.counters.add(counter, 1);
    }

    /// See [`Ports::open`](crate::Ports::open).
    pub(crate) fn open(&mut self, port: PortId, local: SocketAddr) -> Result<(), OpenError> {
        let place = port.0 as usize;
        let taken = self.ports.get(place).is_some_and(|&index| index != NONE);
        if port.0 >= self.max_ports || taken {
            let error = OpenError::BadPort {
                port,
                limit: self.max_ports,
            };
            self.count_failure(&error);
            return Err(error);
        }
        let socket = open_relayed(local, self.receive_bytes)
            .inspect_err(|error| self.count_failure(error))?;
        if self.ports.len() <= place {
            self.ports.resize(place + 1, NONE);
        }
        self.ports[place] = self.place(socket, local, Socket::Relayed(port));
        self.counters.add(Counter::PortsOpened, 1);
        Ok(())
    }

    /// See [`Ports::close`](crate::Ports::close).
    pub(crate) fn close(&mut self, port: PortId) {
        let Some(index) = self.ports.get_mut(port.0 as usize) else {
            return;
        };
        let closed = std::mem::replace(index, NONE);
        if let Some(slot) = self.slots.get_mut(closed as usize) {
            slot.state = State::Closing;
            self.changes.push(Change::Closing(closed));
            self.counters.add(Counter::PortsClosed, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::receive_buffer;

    #[test]
    fn a_limited_socket_gets_its_ordinary_buffer_back() {
        for ordinary in [0, 1 << 16] {
            let mut sockets = Sockets::new(4, ordinary, Arc::default());
            sockets
                .open(PortId(1), "127.0.0.1:0".parse().unwrap())
                .unwrap();
            let bytes = |sockets: &Sockets| receive_buffer(sockets.slots[0].fd());
            let before = bytes(&sockets);
            assert!(ordinary == 0 || before == ordinary, "{before}");
            sockets.limit_backlog(0, 13);
            assert_eq!(bytes(&sockets), 1 << 13);
            sockets.limit_backlog(0, 11);
            assert!((1 << 11..1 << 13).contains(&bytes(&sockets)));
            sockets.limit_backlog(0, 0);
            assert_eq!(bytes(&sockets), before);
            sockets.limit_backlog(7, 11);
        }
    }
}
