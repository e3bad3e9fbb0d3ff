//! How a connection fares.

use std::net::SocketAddr;
use std::time::Duration;

/// How a connection fares. What is counted is counted from its beginning; what belongs to a path begins
/// anew with every path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionStats {
    /// Where its datagrams go.
    pub path: SocketAddr,
    /// The round trip as it is estimated now, of this path.
    pub rtt: Duration,
    /// The shortest round trip of this path.
    pub min_rtt: Duration,
    /// Bytes that may be under way on this path.
    pub congestion_window_bytes: u64,
    /// Length of the longest datagrams that this path is known to carry.
    pub mtu_bytes: u16,
    /// How often the congestion window was made smaller.
    pub congestion_events: u64,
    /// Packets that were lost, probes of the MTU aside.
    pub lost_packets: u64,
    /// Bytes of those.
    pub lost_bytes: u64,
    /// How often a path stopped carrying datagrams of a length that it had carried.
    pub black_holes: u64,
    /// Datagrams that were sent.
    pub sent_datagrams: u64,
    /// Bytes of their payload.
    pub sent_bytes: u64,
    /// Datagrams that were received; of an incoming connection without the first.
    pub received_datagrams: u64,
    /// Bytes of their payload.
    pub received_bytes: u64,
}

impl ConnectionStats {
    pub(super) fn new(path: SocketAddr, stats: &quinn_proto::ConnectionStats) -> Self {
        Self {
            path,
            rtt: stats.path.rtt,
            min_rtt: stats.path.min_rtt,
            congestion_window_bytes: stats.path.cwnd,
            mtu_bytes: stats.path.current_mtu,
            congestion_events: stats.path.congestion_events,
            lost_packets: stats.path.lost_packets,
            lost_bytes: stats.path.lost_bytes,
            black_holes: stats.path.black_holes_detected,
            sent_datagrams: stats.udp_tx.datagrams,
            sent_bytes: stats.udp_tx.bytes,
            received_datagrams: stats.udp_rx.datagrams,
            received_bytes: stats.udp_rx.bytes,
        }
    }
}
