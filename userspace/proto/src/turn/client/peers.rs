//! Permissions and channels, and when they are renewed.
//!
//! A channel is rebound as often as a permission is renewed: one ChannelBind renews the channel (10
//! minutes) and the peer's permission (5 minutes) together (RFC 8656 §12.3).

use std::net::{IpAddr, SocketAddr};

use super::MAX_PEERS;
use super::error::PeerError;
use crate::Timestamp;
use crate::wire::ChannelNumber;

/// Both lists are short in practice and looked through; [`MAX_PEERS`] bounds them.
#[derive(Default, Debug)]
pub(super) struct Peers {
    permissions: Vec<Permission>,
    channels: Vec<Channel>,
    channels_issued: u16,
}

#[derive(Debug)]
struct Permission {
    peer: IpAddr,
    standing: Standing,
}

#[derive(Debug)]
struct Channel {
    peer: SocketAddr,
    number: ChannelNumber,
    standing: Standing,
}

/// How a permission or channel stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// Asked for.
    Requested,
    /// In force until long after this time, when it is to be renewed.
    Granted { renew: Timestamp },
    /// In force, and asked for again.
    Renewing,
}

impl Standing {
    fn is_granted(self) -> bool {
        match self {
            Self::Granted { .. } | Self::Renewing => true,
            Self::Requested => false,
        }
    }

    fn renewal(self) -> Option<Timestamp> {
        match self {
            Self::Granted { renew } => Some(renew),
            Self::Requested | Self::Renewing => None,
        }
    }

    /// Whether it is due; then it is being renewed.
    fn begin_renewal(&mut self, now: Timestamp) -> bool {
        let is_due = self.renewal().is_some_and(|renew| renew <= now);
        if is_due {
            *self = Self::Renewing;
        }
        is_due
    }

    /// Grants it; returns whether that is news.
    fn grant(&mut self, renew: Timestamp) -> bool {
        let is_news = !self.is_granted();
        *self = Self::Granted { renew };
        is_news
    }
}

/// What is to be renewed.
#[derive(Debug)]
pub(super) enum Renewal {
    Permission(IpAddr),
    Channel(SocketAddr, ChannelNumber),
}

impl Peers {
    /// Notes a permission; returns whether it has to be asked for.
    pub(super) fn add_permission(&mut self, peer: IpAddr) -> Result<bool, PeerError> {
        if self
            .permissions
            .iter()
            .any(|permission| permission.peer == peer)
        {
            return Ok(false);
        }
        if self.permissions.len() >= MAX_PEERS {
            return Err(PeerError::TooManyPeers { peers: MAX_PEERS });
        }
        self.permissions.push(Permission {
            peer,
            standing: Standing::Requested,
        });
        Ok(true)
    }

    /// Notes a channel; returns it, and whether it has to be asked for. A number is never given to
    /// another peer while the allocation lasts.
    ///
    /// RFC 8656 §12.1: a channel that expired must rest for five minutes before it is bound again.
    pub(super) fn add_channel(
        &mut self,
        peer: SocketAddr,
    ) -> Result<(ChannelNumber, bool), PeerError> {
        if let Some(channel) = self.channels.iter().find(|channel| channel.peer == peer) {
            return Ok((channel.number, false));
        }
        let too_many = PeerError::TooManyPeers { peers: MAX_PEERS };
        if self.channels.len() >= MAX_PEERS {
            return Err(too_many);
        }
        let number = ChannelNumber::new(ChannelNumber::FIRST.number() + self.channels_issued)
            .filter(|number| *number <= ChannelNumber::LAST_ISSUED)
            .ok_or(too_many)?;
        self.channels_issued += 1;
        self.channels.push(Channel {
            peer,
            number,
            standing: Standing::Requested,
        });
        Ok((number, true))
    }

    /// Returns whether that is news.
    pub(super) fn permission_granted(&mut self, peer: IpAddr, renew: Timestamp) -> bool {
        let permission = self
            .permissions
            .iter_mut()
            .find(|permission| permission.peer == peer);
        permission.is_some_and(|permission| permission.standing.grant(renew))
    }

    /// Returns whether that is news.
    pub(super) fn channel_bound(&mut self, peer: SocketAddr, renew: Timestamp) -> bool {
        let channel = self
            .channels
            .iter_mut()
            .find(|channel| channel.peer == peer);
        channel.is_some_and(|channel| channel.standing.grant(renew))
    }

    pub(super) fn remove_permission(&mut self, peer: IpAddr) {
        self.permissions
            .retain(|permission| permission.peer != peer);
    }

    pub(super) fn remove_channel(&mut self, peer: SocketAddr) {
        self.channels.retain(|channel| channel.peer != peer);
    }

    pub(super) fn is_permitted(&self, peer: IpAddr) -> bool {
        let permitted = |p: &Permission| p.peer == peer && p.standing.is_granted();
        let bound = |c: &Channel| c.peer.ip() == peer && c.standing.is_granted();
        self.permissions.iter().any(permitted) || self.channels.iter().any(bound)
    }

    pub(super) fn bound_channel(&self, peer: SocketAddr) -> Option<ChannelNumber> {
        let bound = |c: &&Channel| c.peer == peer && c.standing.is_granted();
        self.channels
            .iter()
            .find(bound)
            .map(|channel| channel.number)
    }

    /// The peer of a channel. Also of one that is only asked for: the server may have bound it, and
    /// its response may come after the first data.
    pub(super) fn peer_of(&self, number: ChannelNumber) -> Option<SocketAddr> {
        self.channels
            .iter()
            .find(|channel| channel.number == number)
            .map(|channel| channel.peer)
    }

    pub(super) fn next_renewal(&self) -> Option<Timestamp> {
        let permissions = self.permissions.iter().filter_map(|p| p.standing.renewal());
        permissions
            .chain(self.channels.iter().filter_map(|c| c.standing.renewal()))
            .min()
    }

    /// Something that is due, which is taken to be asked for from now on.
    pub(super) fn begin_renewal(&mut self, now: Timestamp) -> Option<Renewal> {
        for permission in &mut self.permissions {
            if permission.standing.begin_renewal(now) {
                return Some(Renewal::Permission(permission.peer));
            }
        }
        for channel in &mut self.channels {
            if channel.standing.begin_renewal(now) {
                return Some(Renewal::Channel(channel.peer, channel.number));
            }
        }
        None
    }
}
