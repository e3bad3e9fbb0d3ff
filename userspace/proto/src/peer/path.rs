//! Where datagrams go: below QUIC, which knows made-up addresses only.
//!
//! A call goes to all addresses of the peer at once, until the handshake is over; the one that brought
//! its end is the path. An answer goes to where the call came from.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ahash::RandomState;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::path_check;
use crate::identity::{Identity, PeerId};
use crate::machine::{ShardMark, Socket};
use crate::quic;

/// Where what arrives at a node says which of its shards it is for; what does not say so may go to any.
/// This is what a shell with several shards steers by.
pub const SHARD_MARKS: &[ShardMark] = &{
    let ([short, long], [request, response]) = (quic::SHARD_MARKS, path_check::SHARD_MARKS);
    [short, long, request, response]
};

/// The network of made-up addresses: unique local (RFC 4193), never seen outside.
const MADE_UP_NETWORK: [u8; 8] = [0xfd, b't', b'o', b'w', b'p', b'a', b't', b'h'];
/// The port of all of them; QUIC wants one.
const MADE_UP_PORT: u16 = 1;

/// A way out of this machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Hop {
    pub(super) socket: Socket,
    /// The address it leaves from, where that is known.
    pub(super) source: Option<IpAddr>,
    pub(super) destination: SocketAddr,
}

/// Where a connection's datagrams go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Path {
    /// To all of these, of which there is one at least.
    Racing(Hop, Vec<Hop>),
    /// Straight to the peer.
    Direct(Hop),
}

impl Path {
    /// Where the next datagram goes, and where copies of it go.
    pub(super) fn hops(&self) -> (Hop, Vec<Hop>) {
        match self {
            Self::Racing(first, further) => (*first, further.clone()),
            Self::Direct(hop) => (*hop, Vec::new()),
        }
    }
}

/// The addresses that QUIC sees. They are hashes, so that nothing has to be kept to get the same one
/// again: of the peer where we called it, of the source where somebody called us, since who it is comes
/// out later. Two that collide share a path in the eyes of QUIC, which costs nothing.
#[derive(Debug)]
pub(super) struct MadeUp {
    hasher: RandomState,
    /// Where peers are that we called or that have moved, and the connections to each. A stateless reset has no id that
    /// would tell the connection (RFC 9000 §10.3).
    known: HashMap<SocketAddr, (SocketAddr, u32), RandomState>,
}

impl MadeUp {
    /// The key follows from the identity: a Retry token is bound to a made-up address, and is good for
    /// the node that was started anew meanwhile.
    pub(super) fn new(identity: &Identity) -> Self {
        let key = identity.secret().derive("quic made-up addresses");
        let mut words = key
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_be_bytes(*word));
        let mut word = || words.next().expect("32 bytes are four words");
        let hasher = RandomState::with_seeds(word(), word(), word(), word());
        Self {
            known: HashMap::with_hasher(hasher.clone()),
            hasher,
        }
    }

    pub(super) fn of_peer(&self, peer: PeerId) -> SocketAddr {
        address(self.hasher.hash_one(peer))
    }

    pub(super) fn of_source(&self, source: SocketAddr) -> SocketAddr {
        address(self.hasher.hash_one(source))
    }

    /// The address of whom we know to be there; else that of the source.
    pub(super) fn of_known(&self, source: SocketAddr) -> SocketAddr {
        self.known
            .get(&source)
            .map_or_else(|| self.of_source(source), |(address, _)| *address)
    }

    /// The peer of a connection is there.
    pub(super) fn found(&mut self, address: SocketAddr, at: SocketAddr) {
        let (latest, connections) = self.known.entry(at).or_insert((address, 0));
        *latest = address;
        *connections += 1;
    }

    /// A connection to a peer there is over.
    pub(super) fn left(&mut self, at: SocketAddr) {
        let Entry::Occupied(mut known) = self.known.entry(at) else {
            return;
        };
        known.get_mut().1 -= 1;
        if known.get().1 == 0 {
            known.remove();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

fn address(hash: u64) -> SocketAddr {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&MADE_UP_NETWORK);
    octets[8..].copy_from_slice(&hash.to_be_bytes());
    SocketAddr::new(Ipv6Addr::from(octets).into(), MADE_UP_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SecretKey;

    #[test]
    fn a_reset_is_for_whom_we_called_there_as_long_as_a_connection_stands() {
        let mut made_up = MadeUp::new(&Identity::new(SecretKey::from_seed([1; 32])));
        let (peer, at) = (PeerId::from_bytes([7; 32]), "192.0.2.1:9".parse().unwrap());
        assert_eq!(made_up.of_known(at), made_up.of_source(at));
        let address = made_up.of_peer(peer);
        made_up.found(address, at);
        made_up.found(address, at);
        made_up.left(at);
        assert_eq!(made_up.of_known(at), made_up.of_peer(peer));
        made_up.left(at);
        assert_eq!(made_up.of_known(at), made_up.of_source(at));
        assert!(made_up.is_empty());
    }
}
