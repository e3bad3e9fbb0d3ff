//! Which shard a client belongs to: a pure function of its address, so that it can be computed by
//! everybody who knows the key.

use std::net::SocketAddr;

use towpath_proto::machine::ShardId;

use crate::trace::Fnv;

/// The shard of a client.
pub fn shard_of(key: u64, client: SocketAddr, shards: u16) -> ShardId {
    let mut hash = Fnv::new();
    hash.write(&key.to_be_bytes());
    hash.write_address(client);
    let mixed = (hash.finish() ^ hash.finish() >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    ShardId(u16::try_from(mixed % u64::from(shards)).expect("it is below the number of shards"))
}
