//! The contract between cores and shells.
//!
//! A [`Machine`] decides, a shell (io_uring, epoll, the simulator) does. A shell
//! 1. hands over what arrived: `handle_datagram`, `handle_event`, and `handle_timeout` once
//!    `poll_timeout() <= now`;
//! 2. then polls `poll_command` until it returns `None`, and carries each command out;
//! 3. only then polls `poll_transmit`, and both again until neither has anything left;
//! 4. then sleeps until something arrives or `poll_timeout()`.
//!
//! The order of 2 and 3 is a promise: when an answer leaves, what it tells of is done. A port that a
//! response names is open, a route stands before the success that the client acts upon, and none is
//! left that a deletion's success denies. What `handle_datagram` returns is data, not an answer, and
//! may leave before commands that were queued with it.
//!
//! A machine never blocks, and never learns which shell it runs under.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::Timestamp;

/// A protocol core without I/O.
pub trait Machine {
    /// What only a shell can do, such as opening a socket. One that can fail comes back as an event.
    type Command;
    /// What a shell reports back: a command's outcome, a message from another thread.
    type Event;

    /// Takes one datagram. What can be forwarded at once is answered in place: the returned
    /// [`Transmit`] names a part of `datagram.payload`. Everything else is queued for
    /// [`poll_transmit`](Self::poll_transmit).
    fn handle_datagram(&mut self, now: Timestamp, datagram: Datagram<'_>) -> Option<Transmit>;

    /// Takes a command's outcome or a message from another thread.
    fn handle_event(&mut self, now: Timestamp, event: Self::Event);

    /// Takes an ICMP error that the network sent about a datagram of this machine. Few come, and
    /// anybody may forge them. A machine that has no use for them leaves this as it is.
    fn handle_icmp(&mut self, now: Timestamp, error: IcmpError) {
        let _ = (now, error);
    }

    /// Does what is due at `now`. Calling it early does nothing.
    fn handle_timeout(&mut self, now: Timestamp);

    /// Writes the next queued datagram into `buffer` (at least [`TRANSMIT_BUFFER_BYTES`] long);
    /// the returned [`Transmit`] names a part of it.
    fn poll_transmit(&mut self, now: Timestamp, buffer: &mut [u8]) -> Option<Transmit>;

    /// The next thing for the shell to do, to be carried out before anything that
    /// [`poll_transmit`](Self::poll_transmit) gives from now on leaves.
    fn poll_command(&mut self) -> Option<Self::Command>;

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next; `None` for never.
    /// Not later than now while a transmit or a command is queued. O(1).
    fn poll_timeout(&self) -> Option<Timestamp>;
}

/// Length of the buffer a shell lends to [`Machine::poll_transmit`]: the longest message a machine
/// builds itself fits into it.
pub const TRANSMIT_BUFFER_BYTES: usize = 2048;

/// Number of a listening address, in the order of the configuration. Every shard has a socket for
/// each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ListenerId(pub u16);

/// A relayed port of one shard: an index below the number of ports its machine may hold. The
/// machine chooses it and may use it again once it has closed the port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortId(pub u32);

/// One of the shards of a process, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShardId(pub u16);

/// Where a datagram says in the clear which shard it is for: a node's protocols put the number there
/// themselves. What says nothing belongs to a shard by its source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardMark {
    /// What has to hold for the number to be there.
    pub tests: &'static [ByteTest],
    /// Where the number is: two bytes, the upper one first.
    pub offset: u8,
}

/// Something that holds for a byte of a datagram's payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByteTest {
    /// Which byte.
    pub offset: u8,
    /// The bits that count.
    pub mask: u8,
    /// What they are.
    pub value: u8,
}

impl ShardMark {
    /// The shard that a datagram is marked for, if it is.
    pub fn shard(&self, payload: &[u8]) -> Option<ShardId> {
        let holds = |test: &ByteTest| {
            let byte = payload.get(usize::from(test.offset));
            byte.is_some_and(|byte| byte & test.mask == test.value)
        };
        let at = usize::from(self.offset);
        let number = payload.get(at..)?.first_chunk()?;
        let marked = self.tests.iter().all(holds);
        marked.then(|| ShardId(u16::from_be_bytes(*number)))
    }

    /// Datagrams that are shorter are not marked.
    pub fn least_bytes(&self) -> usize {
        let tested = self.tests.iter().map(|test| usize::from(test.offset) + 1);
        tested.fold(usize::from(self.offset) + 2, usize::max)
    }
}

/// Where a datagram enters or leaves: a listening address or a relayed port. Whether a relayed port
/// has a kernel socket of its own is the shell's business.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Socket {
    /// A listening address, shared with clients.
    Listener(ListenerId),
    /// A relayed port of this shard.
    Relayed(PortId),
}

/// How a packet wants to be treated on its way, as its IP header says: six bits DSCP, two bits ECN.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TrafficClass(pub u8);

impl TrafficClass {
    /// Best effort, and without ECN.
    pub const ORDINARY: Self = Self(0);
}

/// An ICMP or ICMPv6 error about a datagram that left by a relayed port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcmpError {
    /// Where the datagram left.
    pub socket: Socket,
    /// Where it went; its port is 0 where the shell was not told. Its family says which ICMP it is.
    pub destination: SocketAddr,
    /// The type.
    pub icmp_type: u8,
    /// The code.
    pub code: u8,
    /// The MTU of the link that it did not fit through; 0 where that was not the reason.
    pub mtu: u32,
}

/// A datagram that arrived. The machine may overwrite its payload.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Where it arrived.
    pub socket: Socket,
    /// The local address it was sent to; never unspecified, also on a wildcard listener.
    pub local: IpAddr,
    /// Who sent it.
    pub remote: SocketAddr,
    /// How it was to be treated.
    pub traffic_class: TrafficClass,
    /// The UDP payload.
    pub payload: &'a mut [u8],
}

/// A datagram to send: `prefix`, then `payload`, then `padding` zero bytes.
///
/// ```text
///   ChannelData → UDP      payload = the received bytes behind the header        prefix empty
///   UDP → ChannelData      payload = all received bytes                          prefix = header
///   UDP → Data indication  payload = all received bytes      prefix = message up to DATA's value
/// ```
///
/// A shell writes the prefix in front of the payload where it has room there, and gathers the parts
/// where it has not: segments of one GRO super-frame lie back to back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where it leaves.
    pub socket: Socket,
    /// The address it leaves from: the one the peer knows. `None` where the socket has just one.
    pub source: Option<IpAddr>,
    /// Where it goes.
    pub destination: SocketAddr,
    /// Bytes in front of the payload.
    pub prefix: Prefix,
    /// Which bytes of the datagram's payload, or of the lent buffer, are sent.
    pub payload: Range<usize>,
    /// Zero bytes behind the payload, at most 3.
    pub padding: u8,
    /// How it is to be treated on its way.
    pub traffic_class: TrafficClass,
    /// Whether it has to leave whole, with the DF bit set: over IPv4 by a relayed port. Where it does
    /// not fit through, it is lost. A shell does as it likes with others.
    pub dont_fragment: bool,
}

impl Transmit {
    /// Length of the UDP payload that is sent.
    pub fn len(&self) -> usize {
        self.prefix.as_bytes().len() + self.payload.len() + usize::from(self.padding)
    }

    /// Whether the datagram sent has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Up to [`Prefix::MAX_BYTES`] bytes that go in front of a forwarded payload.
#[derive(Clone, Copy)]
pub struct Prefix {
    bytes: [u8; Self::MAX_BYTES],
    len: u8,
}

impl Prefix {
    /// Enough for a Data indication's header, its IPv6 XOR-PEER-ADDRESS and DATA's own header.
    pub const MAX_BYTES: usize = 20 + 24 + 4;

    /// No prefix.
    pub const EMPTY: Self = Self {
        bytes: [0; Self::MAX_BYTES],
        len: 0,
    };

    /// A prefix of these bytes; `None` where they are more than [`Prefix::MAX_BYTES`].
    pub fn new(prefix: &[u8]) -> Option<Self> {
        let mut bytes = [0; Self::MAX_BYTES];
        bytes.get_mut(..prefix.len())?.copy_from_slice(prefix);
        Some(Self {
            bytes,
            len: u8::try_from(prefix.len()).ok()?,
        })
    }

    /// A prefix of four bytes: a ChannelData header.
    pub const fn channel_data(header: [u8; 4]) -> Self {
        let mut bytes = [0; Self::MAX_BYTES];
        bytes[0] = header[0];
        bytes[1] = header[1];
        bytes[2] = header[2];
        bytes[3] = header[3];
        Self { bytes, len: 4 }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl PartialEq for Prefix {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Prefix {}

impl std::fmt::Debug for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Prefix").field(&self.as_bytes()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_refuses_more_than_it_holds() {
        assert_eq!(
            Prefix::new(&[7; Prefix::MAX_BYTES])
                .unwrap()
                .as_bytes()
                .len(),
            48
        );
        assert!(Prefix::new(&[7; Prefix::MAX_BYTES + 1]).is_none());
        assert_eq!(
            Prefix::new(&[1, 2, 3, 4]),
            Some(Prefix::channel_data([1, 2, 3, 4]))
        );
    }
}
