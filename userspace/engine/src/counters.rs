//! What a shard counted. Written by its thread alone, readable by everyone, never locked.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal),+ $(,)?) => {
        /// One thing a shard counts.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Counter {
            $($(#[doc = $doc])+ $variant),+
        }

        impl Counter {
            /// Every counter, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its name in metrics: lower case, words joined by underscores.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }

            /// What it counts, in one sentence.
            pub const fn help(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+)),+
                }
            }
        }
    };
}

counters! {
    /// Datagrams handed to the machine.
    DatagramsReceived = "datagrams_received",
    /// Bytes of UDP payload handed to the machine.
    BytesReceived = "bytes_received",
    /// Buffers the kernel filled; one holds many datagrams where GRO is on.
    Receives = "receives",
    /// Datagrams the kernel took to send; a shard counts them when it wakes the next time.
    DatagramsSent = "datagrams_sent",
    /// Bytes of UDP payload the kernel took to send.
    BytesSent = "bytes_sent",
    /// Messages the kernel took to send; one holds many datagrams where GSO is used.
    Sends = "sends",
    /// Messages of more than one datagram the kernel took to send.
    GsoSends = "gso_sends",
    /// Messages of more than one datagram the kernel refused and that were sent one by one.
    GsoFallbacks = "gso_fallbacks",
    /// Times UDP GRO was switched on for a socket.
    GroEnabled = "gro_enabled",
    /// Times the shard had no rest, and let less wait in its relayed sockets.
    BacklogsLimited = "backlogs_limited",
    /// Times UDP GRO was switched off for a socket.
    GroDisabled = "gro_disabled",
    /// Rounds of the shard's loop.
    Rounds = "rounds",
    /// Rounds before which the shard slept.
    Sleeps = "sleeps",
    /// Messages taken from the mailbox.
    Events = "events",
    /// Relayed ports opened.
    PortsOpened = "ports_opened",
    /// Relayed ports closed.
    PortsClosed = "ports_closed",
    /// Relayed ports not opened because their address was in use.
    PortsInUse = "ports_in_use",
    /// Relayed ports not opened because no file descriptor was left.
    PortsNoDescriptors = "ports_no_descriptors",
    /// Relayed ports not opened for another reason.
    PortsFailed = "ports_failed",
    /// ICMP errors about what left by relayed ports.
    IcmpErrors = "icmp_errors",
    /// Times a relayed port heard no more ICMP errors for a while because too many came.
    IcmpMuted = "icmp_muted",
    /// Messages given to the kernel once more because an ICMP error about an earlier one had stopped them.
    SendsTriedAgain = "sends_tried_again",
    /// Datagrams that arrived at this shard and belong to another one, given to it.
    HandedOver = "handed_over",
    /// Datagrams for another shard dropped because its queue was full.
    DropHandoverFull = "drop_handover_full",
    /// Receives ended because no buffer was free; the datagrams wait in the socket.
    ReceivesStarved = "receives_starved",
    /// Receives that failed for another reason.
    ReceiveErrors = "receive_errors",
    /// Datagrams dropped because they were longer than the buffer of their socket.
    DropTruncated = "drop_truncated",
    /// Datagrams dropped because the kernel gave no usable source or segment size with them.
    DropMalformedReceive = "drop_malformed_receive",
    /// Datagrams dropped because the socket's send buffer was full.
    DropSendWouldBlock = "drop_send_would_block",
    /// Datagrams dropped because the kernel had no memory or device queue for them.
    DropSendNoBuffers = "drop_send_no_buffers",
    /// Datagrams the system's packet filter or policy forbade.
    DropSendForbidden = "drop_send_forbidden",
    /// Datagrams dropped because there is no route to their destination.
    DropSendUnreachable = "drop_send_unreachable",
    /// Datagrams dropped because they are longer than the path carries.
    DropSendTooLong = "drop_send_too_long",
    /// Datagrams dropped because the kernel refused to send them for another reason.
    DropSendOther = "drop_send_other",
    /// Datagrams dropped because no send slot was free.
    DropNoSendSlot = "drop_no_send_slot",
    /// Datagrams dropped because the socket the machine named is not open.
    DropNoSocket = "drop_no_socket",
    /// Datagrams dropped because their destination is not of their socket's address family.
    DropWrongFamily = "drop_wrong_family",
    /// Completions the kernel had to drop because the completion queue was full.
    CompletionOverflows = "completion_overflows",
    /// System calls of the shard's loop that failed for a reason other than an interruption.
    WaitErrors = "wait_errors",
}

/// The counters of one shard.
#[derive(Debug)]
#[repr(align(64))]
pub struct EngineCounters {
    values: [AtomicU64; Counter::ALL.len()],
}

impl Default for EngineCounters {
    fn default() -> Self {
        Self {
            values: [const { AtomicU64::new(0) }; Counter::ALL.len()],
        }
    }
}

impl EngineCounters {
    /// The value of one counter.
    pub fn value(&self, counter: Counter) -> u64 {
        self.values[counter as usize].load(Ordering::Relaxed)
    }

    /// Every counter with its value.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> + '_ {
        Counter::ALL
            .iter()
            .map(|&counter| (counter, self.value(counter)))
    }

    /// Adds `n`. Only the shard's own thread calls this, so a load and a store are enough.
    pub(crate) fn add(&self, counter: Counter, n: u64) {
        let value = &self.values[counter as usize];
        value.store(
            value.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_counter_has_a_name_of_its_own_and_a_place() {
        let names: HashSet<_> = Counter::ALL.iter().map(|counter| counter.name()).collect();
        assert_eq!(names.len(), Counter::ALL.len());
        let counters = EngineCounters::default();
        for (index, &counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(counter as usize, index);
            counters.add(counter, index as u64 + 1);
        }
        for (index, (_, value)) in counters.iter().enumerate() {
            assert_eq!(value, index as u64 + 1);
        }
    }
}
