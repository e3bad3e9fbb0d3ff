//! What the path layer and the application want to know of a connection, beside its streams.

use std::net::SocketAddr;
use std::time::Duration;

use quinn_proto::{ConnectionId, FrameStats};
use rand_chacha::rand_core::Rng;

use super::{Endpoint, handshake};
use crate::Timestamp;
use crate::machine::ShardId;
use crate::quic::cid::{self, CidBytes};
use crate::quic::config::SecurityLevel;
use crate::quic::stats::ConnectionStats;

impl Endpoint {
    /// The connection whose id a datagram was sent to. Whether it belongs to it is not known yet.
    pub(crate) fn named_by(&self, datagram: &[u8]) -> Option<u32> {
        self.by_cid.get(&cid::destination_of(datagram)?).copied()
    }

    /// The connection that an id of ours leads to.
    pub(crate) fn of_cid(&self, id: CidBytes) -> Option<u32> {
        self.by_cid.get(&ConnectionId::new(&id)).copied()
    }

    /// The id of the peer's that datagrams of a connection are sent to, and its shard, where it has the
    /// form of ours.
    pub(crate) fn peer_cid(&self, index: u32) -> Option<(CidBytes, ShardId)> {
        let id = self.entry_ref(index)?.peer_cid?;
        let shard = cid::shard_of(&id)?;
        Some(((*id).try_into().ok()?, shard))
    }

    /// The made-up address of a connection's other end.
    pub(crate) fn remote(&self, index: u32) -> Option<SocketAddr> {
        Some(self.entry_ref(index)?.remote)
    }

    /// The round trip of a connection, as it is estimated now.
    pub(crate) fn rtt(&self, index: u32) -> Option<Duration> {
        Some(self.entry_ref(index)?.connection.rtt())
    }

    /// Some random bytes.
    pub(crate) fn random<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    /// How a connection fares on a path.
    pub(crate) fn stats(&self, index: u32, path: SocketAddr) -> Option<ConnectionStats> {
        let stats = self.entry_ref(index)?.connection.stats();
        Some(ConnectionStats::new(path, &stats))
    }

    /// What the keys of a connection rest upon, once its handshake is over.
    pub(crate) fn security(&self, index: u32) -> Option<SecurityLevel> {
        handshake(&self.entry_ref(index)?.connection)?.security
    }

    /// Frames that have come. It grows with every datagram that nobody but the peer can have made, and
    /// that was not seen before.
    pub(crate) fn frames(&self, index: u32) -> u64 {
        let entry = self.entry_ref(index);
        entry.map_or(0, |entry| sum(&entry.connection.stats().frame_rx))
    }

    /// A secret that both ends of a connection know and nobody else (RFC 8446 §7.5).
    pub(crate) fn export(&self, index: u32, label: &[u8], context: &[u8]) -> Option<[u8; 32]> {
        let mut secret = [0; 32];
        let session = self.entry_ref(index)?.connection.crypto_session();
        session
            .export_keying_material(&mut secret, label, context)
            .ok()?;
        Some(secret)
    }

    /// A connection goes another way from now on: what was learned of the old one is forgotten.
    pub(crate) fn path_changed(&mut self, now: Timestamp, index: u32) {
        let now = self.clock.instant(now);
        if let Some(entry) = self.entry(index) {
            entry.connection.path_changed(now);
            // Nothing may be on its way to us that would have us send, and the peer waits.
            entry.connection.ping();
        }
    }
}

fn sum(frames: &FrameStats) -> u64 {
    let FrameStats {
        acks,
        ack_frequency,
        crypto,
        connection_close,
        data_blocked,
        datagram,
        handshake_done,
        immediate_ack,
        max_data,
        max_stream_data,
        max_streams_bidi,
        max_streams_uni,
        new_connection_id,
        new_token,
        path_challenge,
        path_response,
        ping,
        reset_stream,
        retire_connection_id,
        stream_data_blocked,
        streams_blocked_bidi,
        streams_blocked_uni,
        stop_sending,
        stream,
        ..
    } = *frames;
    let of_streams = max_data + max_stream_data + max_streams_bidi + max_streams_uni;
    let blocked = data_blocked + stream_data_blocked + streams_blocked_bidi + streams_blocked_uni;
    let of_ids = new_connection_id + retire_connection_id + new_token;
    let of_paths = path_challenge + path_response;
    let of_acks = acks + ack_frequency + immediate_ack;
    let ends = reset_stream + stop_sending + connection_close + u64::from(handshake_done);
    of_streams + blocked + of_ids + of_paths + of_acks + ends + crypto + datagram + ping + stream
}
