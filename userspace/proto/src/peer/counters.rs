//! What a node's machine counts.

use crate::relay::Counter;

/// What was dropped, refused or answered without a connection. One shard writes, anybody reads.
#[derive(Debug, Default)]
pub struct PeerCounters {
    /// Datagrams that are not QUIC's.
    pub not_quic: Counter,
    /// Datagrams of no connection of this shard, or that make no sense.
    pub of_nobody: Counter,
    /// Datagrams that were answered without a connection: with a stateless reset, another version, or a
    /// refusal.
    pub answered: Counter,
    /// First datagrams that were ignored because there are too many connections or handshakes.
    pub ignored_handshakes: Counter,
    /// First datagrams whose sender was asked to show its address.
    pub retried_handshakes: Counter,
    /// First datagrams that were refused because there is no room for a connection, or the node is being
    /// shut down.
    pub refused_handshakes: Counter,
    /// Incoming handshakes that came to nothing.
    pub failed_handshakes: Counter,
    /// Peers that were asked whether they are where a datagram of them came from.
    pub path_checks: Counter,
    /// Those that did not answer there.
    pub failed_path_checks: Counter,
    /// Peers' questions of that kind that were answered.
    pub answered_path_checks: Counter,
    /// Questions and answers of that kind of nobody who may ask or was asked.
    pub refused_path_checks: Counter,
    /// Peers that were found elsewhere.
    pub path_changes: Counter,
    /// Answers and copies that were not sent because too many wait.
    pub dropped_answers: Counter,
    /// Unreliable datagrams that were dropped because the peer that sent them is over its limit.
    pub over_down: Counter,
    /// Unreliable datagrams that were dropped because all peers together are over the node's limit.
    pub over_global: Counter,
}

impl PeerCounters {
    /// All of them by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self {
            not_quic,
            of_nobody,
            answered,
            ignored_handshakes,
            retried_handshakes,
            refused_handshakes,
            failed_handshakes,
            path_checks,
            failed_path_checks,
            answered_path_checks,
            refused_path_checks,
            path_changes,
            dropped_answers,
            over_down,
            over_global,
        } = self;
        [
            ("not_quic", not_quic),
            ("of_nobody", of_nobody),
            ("answered", answered),
            ("ignored_handshakes", ignored_handshakes),
            ("retried_handshakes", retried_handshakes),
            ("refused_handshakes", refused_handshakes),
            ("failed_handshakes", failed_handshakes),
            ("path_checks", path_checks),
            ("failed_path_checks", failed_path_checks),
            ("answered_path_checks", answered_path_checks),
            ("refused_path_checks", refused_path_checks),
            ("path_changes", path_changes),
            ("dropped_answers", dropped_answers),
            ("over_down", over_down),
            ("over_global", over_global),
        ]
        .map(|(name, counter)| (name, counter.value()))
        .into_iter()
    }
}
