//! What a connection's datagrams travel over.

use std::fmt;

/// What a connection's datagrams travel over, the best first. The order is the preference among ways
/// that all work.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TransportType {
    /// Straight to an address of the peer.
    Direct,
    /// Straight to a port that the peer's router was asked to open.
    PortMapped,
    /// Straight through NATs, by a hole that both sides have made.
    Punched,
    /// By a circuit of a relay of ours.
    Circuit,
    /// By a TURN server.
    Turn,
}

impl TransportType {
    /// All of them, the best first.
    pub const ALL: [Self; 5] = [
        Self::Direct,
        Self::PortMapped,
        Self::Punched,
        Self::Circuit,
        Self::Turn,
    ];

    /// Its name in metrics, logs and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::PortMapped => "port-mapped",
            Self::Punched => "punched",
            Self::Circuit => "circuit",
            Self::Turn => "turn",
        }
    }
}

impl fmt::Display for TransportType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_preference_and_no_two_share_a_name() {
        assert!(TransportType::ALL.is_sorted());
        let mut names = TransportType::ALL.map(|kind| kind.to_string()).to_vec();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), TransportType::ALL.len());
    }
}
