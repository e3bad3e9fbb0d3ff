//! What one relay shard counts. It alone writes; any thread may read.

use std::sync::atomic::{AtomicU64, Ordering};

use super::quota::Quota;

/// A number that only grows, with one writer.
///
/// The writer loads and stores, which costs no locked instruction; readers see each value whole.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the count. Only the machine that owns the counter may do this.
    pub(crate) fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    /// Adds one.
    pub(crate) fn increment(&self) {
        self.add(1);
    }

    /// Sets a value that may also fall.
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The count.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a relay shard counts.
#[derive(Debug, Default)]
pub struct RelayCounters {
    /// Datagrams forwarded from clients to peers.
    pub packets_to_peers: Counter,
    /// Payload bytes forwarded from clients to peers.
    pub bytes_to_peers: Counter,
    /// Datagrams forwarded from peers to clients.
    pub packets_to_clients: Counter,
    /// Payload bytes forwarded from peers to clients.
    pub bytes_to_clients: Counter,
    /// Of [`packets_to_peers`](Self::packets_to_peers): those that came as Send indications.
    pub send_indications: Counter,
    /// Of [`packets_to_clients`](Self::packets_to_clients): those that left as Data indications.
    pub data_indications: Counter,
    /// ICMP errors that clients were told of, in Data indications without data.
    pub icmp_indications: Counter,
    /// Allocations that exist now.
    pub allocations: Counter,
    /// 1 where no new ones are made.
    pub draining: Counter,
    /// Allocations made since the start.
    pub allocations_made: Counter,
    /// Times that an allocation followed its client to another address.
    pub allocations_moved: Counter,
    /// Relayed ports taken from the pool now, reserved ones included.
    pub ports_in_use: Counter,
    /// Binding indications, which clients send to keep NAT mappings alive.
    pub binding_indications: Counter,
    /// Requests that were answered from memory because they were retransmissions.
    pub retransmissions: Counter,
    /// Routes that the shell was told of, two for each channel that the kernel may forward.
    pub routes: Counter,
    /// Times that a channel got no routes because there were too many.
    pub routes_over_limit: Counter,
    /// Notices that nobody fetched in time.
    pub notices_lost: Counter,
    requests: [Counter; RequestKind::ALL.len()],
    successes: [Counter; RequestKind::ALL.len()],
    errors: [Counter; ERROR_CODES.len()],
    drops: [Counter; DropReason::ALL.len()],
    refusals: [Counter; Quota::ALL.len()],
}

impl RelayCounters {
    /// Requests of this method that arrived, well-formed or not.
    pub fn requests(&self, kind: RequestKind) -> &Counter {
        &self.requests[kind as usize]
    }

    /// Requests of this method that succeeded.
    pub fn successes(&self, kind: RequestKind) -> &Counter {
        &self.successes[kind as usize]
    }

    /// Error responses with this code; `None` for a code that a relay never sends.
    pub fn errors(&self, code: u16) -> Option<&Counter> {
        Some(&self.errors[ERROR_CODES.iter().position(|known| *known == code)?])
    }

    pub(crate) fn count_error(&self, code: u16) {
        self.errors(code)
            .expect("a relay sends the codes of ERROR_CODES only")
            .increment();
    }

    /// Times that a request or a datagram was refused because of this limit.
    pub fn refusals(&self, quota: Quota) -> &Counter {
        &self.refusals[quota as usize]
    }

    /// Datagrams dropped for this reason.
    pub fn drops(&self, reason: DropReason) -> &Counter {
        &self.drops[reason as usize]
    }
}

/// The error codes a relay sends.
pub const ERROR_CODES: [u16; 15] = [
    400, 401, 403, 405, 420, 437, 438, 440, 441, 442, 443, 486, 500, 508, 300,
];

/// The requests a relay answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RequestKind {
    /// Binding, RFC 8489 §2.
    Binding,
    /// Allocate, RFC 8656 §7.
    Allocate,
    /// Refresh, RFC 8656 §8.
    Refresh,
    /// CreatePermission, RFC 8656 §10.
    CreatePermission,
    /// ChannelBind, RFC 8656 §12.
    ChannelBind,
}

impl RequestKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Binding,
        Self::Allocate,
        Self::Refresh,
        Self::CreatePermission,
        Self::ChannelBind,
    ];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Binding => "binding",
            Self::Allocate => "allocate",
            Self::Refresh => "refresh",
            Self::CreatePermission => "create_permission",
            Self::ChannelBind => "channel_bind",
        }
    }
}

/// Declares [`DropReason`] with its names, so that the list cannot lose one.
macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// Why a datagram was dropped.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $variant,)* }

        impl DropReason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    /// Neither STUN nor ChannelData.
    Unrecognized => "unrecognized",
    /// A STUN message that breaks the format and cannot be answered.
    MalformedStun => "malformed_stun",
    /// A STUN message whose FINGERPRINT is wrong.
    WrongFingerprint => "wrong_fingerprint",
    /// A STUN method or class that a relay does not take.
    UnexpectedMessage => "unexpected_message",
    /// An indication with an unknown attribute that has to be understood.
    UnknownAttribute => "unknown_attribute",
    /// ChannelData that is shorter or longer than its header says, or not of a channel's number.
    BadChannelData => "bad_channel_data",
    /// ChannelData or a Send indication from somebody without an allocation.
    NoAllocation => "no_allocation",
    /// ChannelData on a channel that is not bound, or whose binding has expired.
    ChannelNotBound => "channel_not_bound",
    /// A Send indication to a peer without a permission.
    NoPermissionToPeer => "no_permission_to_peer",
    /// A datagram from a peer without a permission.
    NoPermissionFromPeer => "no_permission_from_peer",
    /// A peer at an address of this host that is not a relayed port in use.
    OwnAddress => "own_address",
    /// A Send indication without XOR-PEER-ADDRESS or DATA, or for another address family.
    BadSendIndication => "bad_send_indication",
    /// A datagram for a relayed port that is not in use.
    NoSuchPort => "no_such_port",
    /// A datagram from port 0, or longer than fits into a message.
    UnusableDatagram => "unusable_datagram",
    /// An answer to a stranger would have been too long for the request.
    AnswerTooLong => "answer_too_long",
    /// A peer's datagram that was relayed so often that it must be going round.
    Loop => "loop",
    /// Too many answers were waiting to be sent.
    OutputFull => "output_full",
    /// A retransmitted Allocate whose relayed port is still being opened.
    StillOpening => "still_opening",
    /// The sender asked more than strangers may.
    TooManyRequests => "too_many_requests",
    /// The sender's network asked more than strangers of one network may.
    TooManyFromNetwork => "too_many_from_network",
    /// Everybody together asked more than strangers may.
    TooManyInAll => "too_many_in_all",
    /// A Send indication to one more new peer than its allocation may have now.
    TooManyNewPeers => "too_many_new_peers",
    /// A Refresh that moves an allocation again right after it has moved.
    MovesTooOften => "moves_too_often",
    /// Data over the limit of the user, of its class, or of the relay as a whole.
    OverLimit => "over_limit",
    /// An ICMP error of a type that clients are not told of.
    IcmpUnusable => "icmp_unusable",
    /// An ICMP error about a datagram to a peer without a permission.
    IcmpNotPermitted => "icmp_not_permitted",
    /// An ICMP error of which there were too many for its client.
    IcmpTooMany => "icmp_too_many",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_reason_has_its_own_counter_and_name() {
        let counters = RelayCounters::default();
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            counters.drops(*reason).add(index as u64 + 1);
        }
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(counters.drops(*reason).value(), index as u64 + 1);
            assert!(
                DropReason::ALL[..index]
                    .iter()
                    .all(|other| other.name() != reason.name())
            );
        }
    }

    #[test]
    fn every_quota_has_its_own_counter_and_name() {
        let counters = RelayCounters::default();
        for (index, quota) in Quota::ALL.into_iter().enumerate() {
            counters.refusals(quota).add(index as u64 + 1);
            let earlier = &Quota::ALL[..index];
            assert!(earlier.iter().all(|other| other.name() != quota.name()));
        }
        for (index, quota) in Quota::ALL.into_iter().enumerate() {
            assert_eq!(counters.refusals(quota).value(), index as u64 + 1);
        }
    }

    #[test]
    fn codes_that_a_relay_never_sends_have_no_counter() {
        let counters = RelayCounters::default();
        for code in ERROR_CODES {
            assert!(counters.errors(code).is_some());
        }
        assert!(counters.errors(487).is_none());
    }
}
