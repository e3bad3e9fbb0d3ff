//! What a relay asks of its shell and is told by it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use towpath_ebpf_common::route::{RouteKey, Target};

use super::config::RelayConfig;
use crate::machine::{ListenerId, PortId, ShardId, TrafficClass};
use crate::slots::PeerSlot;
use crate::wire::ChannelNumber;
use crate::{Timestamp, WallClock};

/// What only a shell can do for a relay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RelayCommand {
    /// Make `local` a relayed port. Answered by [`RelayEvent::PortOpened`] or
    /// [`RelayEvent::PortFailed`], exactly once.
    OpenPort {
        /// The number datagrams of this port carry from now on.
        port: PortId,
        /// The address and port to receive on and send from.
        local: SocketAddr,
    },
    /// Give up a relayed port. Not answered; the number may be opened again at once.
    ClosePort {
        /// The port.
        port: PortId,
    },
    /// Let the kernel forward the packets that `key` recognizes by itself, as `route` says; in place
    /// of what it was told about that key before. Not answered: where it cannot be done, the shell
    /// makes sure that no other route with this key is left, and the packets come to the machine.
    SetRoute {
        /// What the packets are recognized by.
        key: RouteKey,
        /// What becomes of them.
        route: RouteTarget,
    },
    /// Let the packets that `key` recognizes come to the machine again; there may be no such route.
    /// Not answered. The routes of a port are removed before its
    /// [`ClosePort`](Self::ClosePort).
    RemoveRoute {
        /// What the packets are recognized by.
        key: RouteKey,
    },
    /// Give a datagram to the shard that has its client's allocation: the client has moved here
    /// (RFC 8016). That shard's machine gets it like one that arrived there. Not answered; like any
    /// datagram it may be lost.
    HandOver {
        /// The shard.
        to: ShardId,
        /// The listening address it arrived at.
        listener: ListenerId,
        /// The local address it was sent to.
        local: IpAddr,
        /// Who sent it.
        remote: SocketAddr,
        /// Its traffic class.
        traffic_class: TrafficClass,
        /// What it holds.
        payload: Box<[u8]>,
    },
    /// Something an operator may want to read.
    Notify(Notice),
}

/// What the kernel does with packets by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteTarget {
    /// Where they go.
    pub destination: SocketAddr,
    /// The address and port of this host they leave from.
    pub source: SocketAddr,
    /// The channel whose header they leave with; `None` for plain UDP.
    pub channel: Option<ChannelNumber>,
    /// Who pays for them as what a client sends.
    pub up_slot: PeerSlot,
    /// Who pays for them as what a client receives.
    pub down_slot: PeerSlot,
    /// When the route ends: from then on the packets come to the machine.
    pub expires: Timestamp,
}

impl RouteTarget {
    /// The route as the kernel's maps have it.
    pub fn in_maps(&self, next_hop: u32, generation: u32) -> Target {
        Target {
            destination: self.destination,
            source: self.source,
            channel: self.channel.map_or(0, ChannelNumber::number),
            up_slot: self.up_slot.0,
            down_slot: self.down_slot.0,
            next_hop,
            generation,
            expires: self.expires.as_nanos(),
        }
    }
}

/// What a shell tells a relay.
#[derive(Clone, Debug)]
pub enum RelayEvent {
    /// The port of an [`RelayCommand::OpenPort`] is open.
    PortOpened {
        /// The port.
        port: PortId,
    },
    /// The port of an [`RelayCommand::OpenPort`] could not be opened.
    PortFailed {
        /// The port.
        port: PortId,
        /// Why not.
        error: PortError,
    },
    /// The configuration changed. Users, access rules, realm, SOFTWARE and limits take effect at
    /// once, also for existing allocations: permissions that the new rules deny end. Listeners,
    /// relay addresses, port range, shards, `offload` and `max_routes` stay as they were; changing
    /// those needs a new relay.
    ///
    /// Each packet that comes to the machine is judged by the new rules. The routes of packets that do
    /// not are brought in line by `handle_timeout`, which is due until it is done: in each call for 256
    /// allocations, or for as many as make a thousand commands about routes.
    Reconfigured(Arc<RelayConfig>),
    /// What time of day it is: told before the first request, and again when the clock was set to another
    /// time. Credentials that end at a time of day end by the new one, also those in use.
    WallClock(WallClock),
    /// Make no new allocations; those that exist go on.
    Drain,
}

/// Why a relayed port could not be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortError {
    /// Somebody else has the port: another one is tried.
    InUse,
    /// There are no more descriptors, or no more room in the shell.
    NoDescriptors,
    /// Anything else.
    Other,
}

/// Something an operator may want to read. Neither it nor its loss changes what a relay does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// An allocation was made.
    AllocationMade {
        /// Who has it.
        owner: AllocationOwner,
        /// How long it lasts unless it is refreshed.
        lifetime: Duration,
    },
    /// One of the two relayed addresses of an allocation ended.
    AddressEnded {
        /// Who had it, with what is left.
        owner: AllocationOwner,
        /// The address, as the client was told.
        ended: SocketAddr,
        /// Why it ended.
        reason: EndReason,
    },
    /// An allocation's client was seen at another address.
    AllocationMoved {
        /// Who has it, and where they are now.
        owner: AllocationOwner,
        /// The client's address before.
        from: SocketAddr,
    },
    /// An allocation ended.
    AllocationEnded {
        /// Who had it.
        owner: AllocationOwner,
        /// Why it ended.
        reason: EndReason,
        /// How long it was there.
        lasted: Duration,
        /// What it relayed through the machine.
        traffic: Traffic,
        /// What its user sent and received meanwhile on every path, the kernel's included.
        metered: Metered,
    },
}

/// What a user sent and received, by all its allocations together: payload bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Metered {
    /// Bytes to peers.
    pub up_bytes: u64,
    /// Bytes from peers.
    pub down_bytes: u64,
}

/// Whose an allocation is and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AllocationOwner {
    /// The authenticated user.
    pub user: Arc<str>,
    /// The client's address.
    pub client: SocketAddr,
    /// The server's address the client talks to.
    pub server: SocketAddr,
    /// The relayed transport address, as the client was told.
    pub relayed: SocketAddr,
    /// The one of the other family, if there are two.
    pub second: Option<SocketAddr>,
}

/// What an allocation relayed: datagrams and payload bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Traffic {
    /// Datagrams from the client to peers.
    pub packets_to_peers: u64,
    /// Bytes from the client to peers.
    pub bytes_to_peers: u64,
    /// Datagrams from peers to the client.
    pub packets_to_client: u64,
    /// Bytes from peers to the client.
    pub bytes_to_client: u64,
}

/// Why an allocation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndReason {
    /// The client asked for it: a Refresh with a lifetime of zero.
    Deleted,
    /// It was not refreshed in time.
    Expired,
    /// Its user was removed from the configuration, or given other keys; or the secret behind the
    /// credential was.
    UserRemoved,
    /// The credential ended that it was last refreshed with.
    CredentialExpired,
}

impl EndReason {
    /// Its name in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Expired => "expired",
            Self::UserRemoved => "user_removed",
            Self::CredentialExpired => "credential_expired",
        }
    }
}
