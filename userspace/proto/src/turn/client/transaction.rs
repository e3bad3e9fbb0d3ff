//! One request of the client, from its first transmission to its response.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::Timestamp;
use crate::stun::{Due, Retransmission, Schedule};
use crate::wire::attribute::{
    ChannelNumberValue, Family, Lifetime, MobilityTicket, RequestedAddressFamily,
    RequestedTransport, XorPeerAddress,
};
use crate::wire::{
    ChannelNumber, Class, MessageType, MessageWriter, Method, TransactionId, WriteError,
};

/// What is asked for. The message is written from it for each transmission, so none is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Request {
    Allocate {
        family: Option<Family>,
        /// A ticket is asked for.
        mobile: bool,
    },
    Refresh {
        release: bool,
        /// It shows the ticket: the client is somewhere else.
        moves: bool,
    },
    Permission {
        peer: IpAddr,
    },
    Channel {
        peer: SocketAddr,
        channel: ChannelNumber,
    },
}

impl Request {
    pub(super) fn method(self) -> Method {
        match self {
            Self::Allocate { .. } => Method::ALLOCATE,
            Self::Refresh { .. } => Method::REFRESH,
            Self::Permission { .. } => Method::CREATE_PERMISSION,
            Self::Channel { .. } => Method::CHANNEL_BIND,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Transaction {
    pub(super) id: TransactionId,
    pub(super) request: Request,
    pub(super) retransmission: Retransmission,
    /// How often a challenge made it begin again.
    pub(super) challenges: u8,
    /// Whether it was sent with credentials.
    pub(super) is_signed: bool,
}

impl Transaction {
    pub(super) fn new(
        now: Timestamp,
        id: TransactionId,
        request: Request,
        schedule: Schedule,
    ) -> Self {
        let retransmission = Retransmission::new(now, schedule);
        Self {
            id,
            request,
            retransmission,
            challenges: 0,
            is_signed: false,
        }
    }

    /// The same request as a new transaction: its credentials have changed.
    pub(super) fn restarted(self, now: Timestamp, id: TransactionId, schedule: Schedule) -> Self {
        Self {
            id,
            retransmission: Retransmission::new(now, schedule),
            is_signed: false,
            ..self
        }
    }

    pub(super) fn is_failed(&self, now: Timestamp) -> bool {
        self.retransmission.due(now) == Due::Failed
    }

    /// The request without credentials; `ticket` is the client's.
    pub(super) fn writer<'b>(
        &self,
        buffer: &'b mut [u8],
        lifetime: Option<Duration>,
        ticket: Option<&[u8]>,
    ) -> Result<MessageWriter<'b>, WriteError> {
        let message_type = MessageType::new(self.request.method(), Class::Request);
        let mut writer = MessageWriter::new(buffer, message_type, self.id)?;
        let lifetime = lifetime.map(|l| Lifetime(u32::try_from(l.as_secs()).unwrap_or(u32::MAX)));
        match self.request {
            Request::Allocate { family, mobile } => {
                writer
                    .put(&RequestedTransport::UDP)?
                    .put_some(lifetime.as_ref())?;
                writer.put_some(family.map(RequestedAddressFamily).as_ref())?;
                // RFC 8016 §3.1.1: "the MOBILITY-TICKET attribute with a length of zero".
                writer.put_some(mobile.then_some(MobilityTicket(&[])).as_ref())?;
            }
            Request::Refresh { release, moves } => {
                let lifetime = if release { Some(Lifetime(0)) } else { lifetime };
                let ticket = ticket.filter(|_| moves).map(MobilityTicket);
                writer
                    .put_some(lifetime.as_ref())?
                    .put_some(ticket.as_ref())?;
            }
            Request::Permission { peer } => {
                writer.put(&XorPeerAddress(SocketAddr::new(peer, 0)))?;
            }
            Request::Channel { peer, channel } => {
                writer
                    .put(&ChannelNumberValue(channel))?
                    .put(&XorPeerAddress(peer))?;
            }
        }
        Ok(writer)
    }
}
