//! A peer and where it may be reached, as one line of text.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use super::{PeerId, PeerIdError};

/// A peer has no more addresses than this: each costs a datagram when it is called.
pub const MAX_ADDRESSES: usize = 16;

/// A peer, and the addresses it may be reached at; all are tried at once.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PeerAddr {
    id: PeerId,
    addresses: Vec<SocketAddr>,
}

/// Why a text is no [`PeerAddr`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeerAddrError {
    /// There is nothing between the peer and its addresses.
    #[error("an address of a peer is <peer-id>@host:port,host:port…; the \"@\" is missing")]
    NoAt,
    /// What comes before the `@` is no peer.
    #[error("the peer id in front of the \"@\": {0}")]
    Id(#[from] PeerIdError),
    /// One of the addresses is none.
    #[error("{0:?} is no address and port, such as 192.0.2.1:4433 or [2001:db8::1]:4433")]
    Address(String),
    /// One of the addresses cannot be sent to.
    #[error("nothing can be sent to {0}")]
    Unusable(SocketAddr),
    /// There are too many addresses.
    #[error("{0} addresses are more than {MAX_ADDRESSES}")]
    TooMany(usize),
}

impl PeerAddr {
    /// A peer at these addresses. Repeated ones count once.
    pub fn new(
        id: PeerId,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) -> Result<Self, PeerAddrError> {
        let mut kept: Vec<SocketAddr> = Vec::new();
        for address in addresses {
            if address.port() == 0 || address.ip().is_unspecified() {
                return Err(PeerAddrError::Unusable(address));
            }
            if !kept.contains(&address) {
                kept.push(address);
            }
            if kept.len() > MAX_ADDRESSES {
                return Err(PeerAddrError::TooMany(kept.len()));
            }
        }
        Ok(Self {
            id,
            addresses: kept,
        })
    }

    /// This peer at its own addresses and then at those of `other`, as many as there may be.
    pub fn joined(&self, other: &Self) -> Self {
        let mut joined = self.clone();
        for address in other.addresses() {
            if joined.addresses.len() < MAX_ADDRESSES && !joined.addresses.contains(address) {
                joined.addresses.push(*address);
            }
        }
        joined
    }

    /// The peer.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Its addresses, at most [`MAX_ADDRESSES`], none twice.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.id)?;
        for (index, address) in self.addresses.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{address}")?;
        }
        Ok(())
    }
}

impl FromStr for PeerAddr {
    type Err = PeerAddrError;

    /// Hosts are addresses: a core resolves no names.
    fn from_str(text: &str) -> Result<Self, PeerAddrError> {
        let (id, addresses) = text.split_once('@').ok_or(PeerAddrError::NoAt)?;
        let id = id.parse()?;
        let mut parsed = Vec::new();
        for address in addresses.split(',').filter(|_| !addresses.is_empty()) {
            let address = address.trim();
            let address: SocketAddr = address
                .parse()
                .map_err(|_| PeerAddrError::Address(address.to_owned()))?;
            parsed.push(address);
            if parsed.len() > MAX_ADDRESSES {
                return Err(PeerAddrError::TooMany(addresses.split(',').count()));
            }
        }
        Self::new(id, parsed)
    }
}
