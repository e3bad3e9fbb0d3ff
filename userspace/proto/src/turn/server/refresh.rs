//! Refresh (RFC 8656 §8): longer life, or the end; with a ticket, also another 5-tuple.

use super::allocate::{granted_lifetime, seconds};
use super::allocation::State;
use super::mobility::Refreshed;
use super::unknown_attributes;
use crate::Timestamp;
use crate::auth::Authenticated;
use crate::machine::PortId;
use crate::relay::{EndReason, Refusal, Relay, Request};
use crate::wire::attribute::{Lifetime, MobilityTicket, RequestedAddressFamily, ValueError};
use crate::wire::{AttributeType, Code, Message};

impl Relay {
    pub(crate) fn refresh(&mut self, now: Timestamp, request: &Request<'_>) {
        let Some(sender) = self.authenticate(now, request) else {
            return;
        };
        let envelope = request.envelope(&sender);
        let (flow, transaction) = (request.from.flow(), request.message.transaction_id());
        // RFC 8656 §8.2: a retransmitted deletion finds nothing to delete; answering it like the first
        // spares the client an error, and an allocation made since then its end.
        if self.deleted.contains(&flow, transaction) {
            self.counters.retransmissions.increment();
            self.succeed(&envelope, |writer| writer.put(&Lifetime(0)).map(|_| ()));
            return;
        }
        match self.try_refresh(now, request, &sender) {
            Ok(Some(Refreshed { lifetime, ticket })) => {
                let ticket = ticket.as_ref().map(|ticket| MobilityTicket(ticket));
                self.succeed(&envelope, |writer| {
                    writer
                        .put(&Lifetime(lifetime))?
                        .put_some(ticket.as_ref())
                        .map(|_| ())
                });
            }
            Ok(None) => {}
            Err(refusal) => self.refuse(&envelope, refusal),
        }
    }

    /// Refreshes or deletes; `None` where nothing is to be answered.
    fn try_refresh(
        &mut self,
        now: Timestamp,
        request: &Request<'_>,
        sender: &Authenticated,
    ) -> Result<Option<Refreshed>, Refusal> {
        let message = &request.message;
        // RFC 8016 §3.2.2: with a ticket "the server will not retrieve the 5-tuple from the packet to
        // identify an associated allocation".
        let ticket = message.find(AttributeType::MOBILITY_TICKET);
        if let Some(ticket) = ticket {
            check_attributes(message)?;
            return self.resume(now, request, sender, ticket);
        }
        let id = self.allocation_of(now, request, sender)?;
        check_attributes(message)?;
        let lifetime = self.renew(now, id, request, sender)?;
        Ok(Some(Refreshed {
            lifetime,
            ticket: None,
        }))
    }

    /// Gives an allocation the lifetime that a Refresh asks for, or ends it; gives back what is left,
    /// in seconds.
    pub(super) fn renew(
        &mut self,
        now: Timestamp,
        id: PortId,
        request: &Request<'_>,
        sender: &Authenticated,
    ) -> Result<u32, Refusal> {
        let message = &request.message;
        let (allocation, _) = self
            .allocations
            .get_mut(id)
            .ok_or(Code::ALLOCATION_MISMATCH)?;
        // RFC 8656 §8.2: "If the server receives a Refresh Request with a REQUESTED-ADDRESS-FAMILY
        // attribute and the attribute's value does not match the address family of the allocation,
        // the server MUST reply with a 443". §8.1: without the attribute "the request should be
        // treated as applying to all current allocations".
        let family = match message.get::<RequestedAddressFamily>() {
            Ok(None) => None,
            Ok(Some(wish)) if allocation.relayed_in(wish.0).is_some() => Some(wish.0),
            Ok(Some(_)) | Err(ValueError::Family { .. }) => {
                return Err(Code::PEER_ADDRESS_FAMILY_MISMATCH.into());
            }
            Err(_) => return Err(Code::BAD_REQUEST.into()),
        };
        let limits = &self.config.limits;
        let deletes = message.get::<Lifetime>().ok().flatten() == Some(Lifetime(0));
        let lifetime = granted_lifetime(message, limits)?.unwrap_or(limits.default_lifetime);
        if deletes {
            self.deleted
                .remember(request.from.flow(), message.transaction_id());
            match family {
                Some(family) => self.end_family(now, id, family, EndReason::Deleted),
                None => self.end(now, id, EndReason::Deleted),
            }
            return Ok(0);
        }
        let lifetime = sender.within(now, lifetime);
        // The allocation lasts as long as the credential that it was last refreshed with.
        allocation.details.user = std::sync::Arc::clone(&sender.user);
        let sooner = allocation.set_expires(family, now + lifetime);
        self.follow_routes(now, id);
        if sooner {
            // The timer stands later than the new end; everything else it finds out itself.
            self.allocation_timer(now, id);
        }
        Ok(seconds(lifetime))
    }

    /// The allocation a request is about.
    pub(super) fn allocation_of(
        &mut self,
        now: Timestamp,
        request: &Request<'_>,
        sender: &Authenticated,
    ) -> Result<PortId, Refusal> {
        // RFC 8656 §5: a request other than Allocate for a 5-tuple without allocation is refused with
        // 437.
        let flow = request.from.flow();
        let id = self
            .allocations
            .find(&flow)
            .or_else(|| self.arriving(&flow))
            .ok_or(Code::ALLOCATION_MISMATCH)?;
        self.judge_again(id, now);
        self.end_expired_family(now, id);
        let (allocation, _) = self
            .allocations
            .get_mut(id)
            .ok_or(Code::ALLOCATION_MISMATCH)?;
        let opening = matches!(allocation.state, State::Opening { .. });
        if allocation.expires <= now || opening {
            return Err(Code::ALLOCATION_MISMATCH.into());
        }
        // RFC 8656 §5: "the server … MUST reject any … request … with a different username" by 441. A new
        // time-limited username of the same user is not a different one.
        if allocation.details.user.account() != sender.user.account() {
            return Err(Code::WRONG_CREDENTIALS.into());
        }
        self.arrived(now, id, &flow);
        Ok(id)
    }
}

fn check_attributes(message: &Message<'_>) -> Result<(), Refusal> {
    let unknown = unknown_attributes(message);
    if unknown.is_empty() {
        Ok(())
    } else {
        Err(Refusal::Unknown(unknown))
    }
}
