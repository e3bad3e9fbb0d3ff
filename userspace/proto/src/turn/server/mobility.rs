//! Mobility (RFC 8016): an allocation follows its client to another address.
//!
//! ```text
//!              Refresh with ticket T                      data, or any request,
//!              from another 5-tuple                       from there
//!   settled ─────────────────────────▶ moving: T, T' good ─────────────────────▶ settled: T' good
//!      ▲    T' is the answer             data still goes to where it went         routes moved
//!      └── with T' from where it was: back ──┘
//! ```
//!
//! What moves an allocation is always a request with its user's message integrity and a nonce that
//! was issued to the very address and port it comes from: whoever resumes an allocation has shown the
//! credentials and that it receives what is sent there. A ticket alone opens nothing.
//!
//! RFC 8016 names data as what shows that the client has arrived. Here a further request from there
//! does so too: it proves more, and a client that only receives has nothing else to send.
//!
//! One move of an allocation is under way at a time; a further one takes its place. The allocation
//! itself stays what and where it is: its port, its slot, what it counts for its user.

use std::collections::HashMap;
use std::time::Duration;

use ahash::RandomState;
use rand_chacha::rand_core::Rng;

use super::address::Flow;
use super::allocation::Allocation;
use super::ticket::{TICKET_BYTES, Ticket, TicketKey};
use crate::Timestamp;
use crate::auth::Authenticated;
use crate::machine::{Datagram, ListenerId, PortId, ShardId, Transmit};
use crate::relay::{
    DropReason, Endpoint, Notice, Place, Refusal, Relay, RelayConfig, Request, RequestKind,
};
use crate::wire::attribute::MobilityTicket;
use crate::wire::{AttributeType, Code, Kind, Message, classify};

/// RFC 8016 §3.2.2: the old ticket is kept "for a period of at least 30 seconds to be able to
/// recognize a retransmission of the Refresh request".
const RETRANSMISSION_TIME: Duration = Duration::from_secs(30);

/// An allocation moves once in this time. Each move rewrites all its routes, and a client could
/// otherwise keep a shard busy with nothing else.
const LEAST_STAY: Duration = Duration::from_secs(1);

/// The mobile allocations of a shard.
#[derive(Debug)]
pub(crate) struct Mobiles {
    key: TicketKey,
    shard: ShardId,
    /// The number of the next ticket. It begins anywhere, so that no ticket of an earlier process
    /// means anything by chance.
    next_number: u64,
    table: HashMap<PortId, Mobility, RandomState>,
}

/// What a mobile allocation has beside its 5-tuple.
#[derive(Debug)]
struct Mobility {
    /// The number of its first ticket: earlier ones were others'.
    first: u64,
    /// The ticket that belongs to the allocation's 5-tuple.
    current: u64,
    heading: Option<Heading>,
    /// The ticket that was shown last.
    used: Option<Used>,
    /// When it moved last.
    settled: Option<Timestamp>,
}

/// Where a client said it has moved to, without having been seen there since.
#[derive(Clone, Copy, Debug)]
struct Heading {
    flow: Flow,
    /// The ticket it was given there.
    number: u64,
}

#[derive(Clone, Copy, Debug)]
struct Used {
    number: u64,
    until: Timestamp,
}

/// What a Refresh with a good ticket means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// The last one again: its answer may have been lost.
    Again,
    /// The client is back where it was before its last move.
    Back,
    /// The client is somewhere else.
    Away,
}

/// Why a Refresh with a ticket is not granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum NotMoved {
    /// An error response with this code.
    Code(Code),
    /// It came too soon after the last move: nobody answers, and the client tries again.
    TooSoon,
}

impl From<Code> for NotMoved {
    fn from(code: Code) -> Self {
        Self::Code(code)
    }
}

/// A Refresh that is to be answered with success.
#[derive(Debug)]
pub(super) struct Refreshed {
    /// The lifetime left, in seconds.
    pub(super) lifetime: u32,
    /// The ticket of the client's new 5-tuple, where it has one.
    pub(super) ticket: Option<[u8; TICKET_BYTES]>,
}

impl Mobiles {
    pub(crate) fn new(config: &RelayConfig, shard: ShardId, rng: &mut impl Rng) -> Self {
        let mut seed = || rng.next_u64();
        Self {
            key: TicketKey::new(&config.nonce_secret),
            shard,
            // Half of the range is more than any process gets through.
            next_number: seed() >> 1,
            table: HashMap::with_hasher(RandomState::with_seeds(seed(), seed(), seed(), seed())),
        }
    }

    /// Makes an allocation mobile.
    pub(super) fn add(&mut self, id: PortId) {
        let number = self.number(id);
        let mobility = Mobility {
            first: number,
            current: number,
            heading: None,
            used: None,
            settled: None,
        };
        self.table.insert(id, mobility);
    }

    /// The ticket that belongs to the 5-tuple of an allocation, if it is mobile.
    pub(super) fn ticket(&self, id: PortId) -> Option<[u8; TICKET_BYTES]> {
        Some(self.seal(id, self.table.get(&id)?.current))
    }

    /// The number of a new ticket. coturn's client keeps tickets as C strings, so that one with a zero
    /// byte would come back cut short: none has one.
    fn number(&mut self, id: PortId) -> u64 {
        loop {
            let number = self.next_number;
            self.next_number = number.wrapping_add(1);
            if !self.seal(id, number).contains(&0) {
                return number;
            }
        }
    }

    fn seal(&self, port: PortId, number: u64) -> [u8; TICKET_BYTES] {
        self.key.seal(&Ticket {
            shard: self.shard,
            port,
            number,
        })
    }

    fn place(&self, port: PortId) -> Place {
        Place {
            shard: self.shard,
            port,
        }
    }
}

impl Mobility {
    /// What a Refresh with this ticket from `from` means for an allocation that is at `at`.
    fn step(&self, now: Timestamp, at: &Flow, from: &Flow, number: u64) -> Result<Step, NotMoved> {
        let (newest, newest_at) = match &self.heading {
            Some(heading) => (heading.number, &heading.flow),
            None => (self.current, at),
        };
        // While the client was not seen at its new place, the answer with the new ticket may be lost.
        let is_good = number == self.current || number == newest;
        if from == newest_at {
            // RFC 8016 §3.2.2: "The old ticket can only be used for the purposes of retransmission."
            let is_used = |used: &Used| used.number == number && now <= used.until;
            let again = number != newest && (is_good || self.used.as_ref().is_some_and(is_used));
            // "If the source IP address and port of the Refresh request … is the same as the stored
            // 5-tuple allocation, then the TURN server rejects the request with a 400".
            return again.then_some(Step::Again).ok_or(Code::BAD_REQUEST.into());
        }
        if !is_good {
            return Err(Code::BAD_REQUEST.into());
        }
        if from == at {
            let is_back = number == newest;
            return is_back
                .then_some(Step::Back)
                .ok_or(Code::BAD_REQUEST.into());
        }
        if self.settled.is_some_and(|at| now < at + LEAST_STAY) {
            return Err(NotMoved::TooSoon);
        }
        Ok(Step::Away)
    }
}

/// Whether an Allocate asks for mobility (RFC 8016 §3.1.2).
pub(super) fn wants_mobility(message: &Message<'_>, config: &RelayConfig) -> Result<bool, Code> {
    let Ok(Some(MobilityTicket(ticket))) = message.get() else {
        return Ok(false);
    };
    // "If the MOBILITY-TICKET attribute is included and has non-zero length, then the server will
    // generate an error response with an error code of 400".
    if !ticket.is_empty() {
        return Err(Code::BAD_REQUEST);
    }
    // "… but TURN session mobility is forbidden by local policy, the server will reject the request
    // with the new error code 405 (Mobility Forbidden)."
    if !config.mobility {
        return Err(Code::MOBILITY_FORBIDDEN);
    }
    Ok(true)
}

impl Relay {
    /// A Refresh with a ticket (RFC 8016 §3.2.2); `None` where it is not to be answered.
    pub(super) fn resume(
        &mut self,
        now: Timestamp,
        request: &Request<'_>,
        sender: &Authenticated,
        ticket: &[u8],
    ) -> Result<Option<Refreshed>, Refusal> {
        let from = request.from.flow();
        let (id, step, number) = match self.judge_ticket(now, &from, sender, ticket) {
            Ok(judged) => judged,
            Err(NotMoved::Code(code)) => return Err(code.into()),
            Err(NotMoved::TooSoon) => {
                self.counters.drops(DropReason::MovesTooOften).increment();
                return Ok(None);
            }
        };
        let lifetime = self.renew(now, id, request, sender)?;
        // What is deleted, and be it one of two addresses, is deleted from wherever that was asked.
        if lifetime == 0 {
            return Ok(Some(Refreshed {
                lifetime,
                ticket: None,
            }));
        }
        self.take_step(now, id, step, from, number)?;
        let mobility = self.mobiles.table.get(&id);
        let mobility = mobility.ok_or(Code::ALLOCATION_MISMATCH)?;
        let newest = mobility.heading.map_or(mobility.current, |h| h.number);
        let ticket = Some(self.mobiles.seal(id, newest));
        Ok(Some(Refreshed { lifetime, ticket }))
    }

    /// The allocation that a ticket from `from` is about, and what is to be done.
    fn judge_ticket(
        &mut self,
        now: Timestamp,
        from: &Flow,
        sender: &Authenticated,
        ticket: &[u8],
    ) -> Result<(PortId, Step, u64), NotMoved> {
        // RFC 8016 §3.2.2: where "the server configuration changed to forbid mobility", 405.
        if !self.config.mobility {
            return Err(Code::MOBILITY_FORBIDDEN.into());
        }
        // "If the ticket is invalid, then the server MUST reject the request with a 400".
        let ticket = self.mobiles.key.open(ticket).ok_or(Code::BAD_REQUEST)?;
        // "If this 5-tuple obtained does not identify an existing allocation, then the server MUST
        // reject the request with a 437". Another shard's ticket gets here from a 5-tuple in use.
        if ticket.shard != self.shard {
            return Err(Code::ALLOCATION_MISMATCH.into());
        }
        let id = ticket.port;
        self.judge_again(id, now);
        self.end_expired_family(now, id);
        let mobility = self.mobiles.table.get(&id);
        let mobility = mobility.filter(|mobility| mobility.first <= ticket.number);
        let allocation = self.allocations.get(id).filter(|a| a.is_known_until(now));
        let (Some(mobility), Some(allocation)) = (mobility, allocation) else {
            return Err(Code::ALLOCATION_MISMATCH.into());
        };
        // "… the same user that had previously created the TURN allocation. If the above check is not
        // successful, then the server MUST reject the request with a 441".
        if allocation.details.user.account() != sender.user.account() {
            return Err(Code::WRONG_CREDENTIALS.into());
        }
        let step = mobility.step(now, &allocation.flow, from, ticket.number)?;
        // RFC 8656 §5: a 5-tuple has one allocation.
        if step == Step::Away && self.is_taken(now, from) {
            return Err(Code::ALLOCATION_MISMATCH.into());
        }
        Ok((id, step, ticket.number))
    }

    /// Notes where a client is now, and gives that place a ticket.
    fn take_step(
        &mut self,
        now: Timestamp,
        id: PortId,
        step: Step,
        from: Flow,
        number: u64,
    ) -> Result<(), Code> {
        let place = self.mobiles.place(id);
        let moved = self.shared.moved();
        match step {
            Step::Again => return Ok(()),
            Step::Back => {}
            // Another shard may have given it away since it was looked at.
            Step::Away if !moved.claim(from, place) => return Err(Code::ALLOCATION_MISMATCH),
            Step::Away => {}
        }
        let fresh = self.mobiles.number(id);
        let Some(mobility) = self.mobiles.table.get_mut(&id) else {
            return Err(Code::ALLOCATION_MISMATCH);
        };
        if let Some(left) = mobility.heading.take() {
            moved.release(&left.flow, place);
        }
        mobility.used = Some(Used {
            number,
            until: now + RETRANSMISSION_TIME,
        });
        if step == Step::Back {
            mobility.current = fresh;
        } else {
            mobility.heading = Some(Heading {
                flow: from,
                number: fresh,
            });
        }
        Ok(())
    }

    /// The allocation that a 5-tuple of this shard's is heading for.
    pub(super) fn arriving(&self, flow: &Flow) -> Option<PortId> {
        let place = self.shared.moved().find(flow)?;
        (place.shard == self.shard).then_some(place.port)
    }

    /// Whether a 5-tuple belongs to an allocation, wherever that is.
    pub(super) fn is_taken(&mut self, now: Timestamp, flow: &Flow) -> bool {
        self.end_expired(now, flow);
        self.allocations.find(flow).is_some() || self.shared.moved().find(flow).is_some()
    }

    /// The client of an allocation was seen at `from`: if that is where it was heading, the allocation
    /// is there from now on, with its routes, and what comes from its old place is nobody's.
    ///
    /// RFC 8016 §3.2.2: "The TURN server MUST continue receiving and processing data on the old
    /// 5-tuple and MUST continue transmitting data on the old 5-tuple until it receives a Send
    /// Indication or ChannelData message from the client on the new 5-tuple … After receiving any of
    /// those messages, a TURN server discards the old ticket and the old 5-tuple".
    pub(super) fn arrived(&mut self, now: Timestamp, id: PortId, from: &Flow) {
        let is_live = self
            .allocations
            .get(id)
            .is_some_and(|a| a.is_known_until(now));
        let Some(mobility) = self.mobiles.table.get_mut(&id).filter(|_| is_live) else {
            return;
        };
        let Some(heading) = mobility.heading.take_if(|heading| heading.flow == *from) else {
            return;
        };
        mobility.current = heading.number;
        mobility.settled = Some(now);
        self.remove_routes(id);
        let Some(before) = self.allocations.move_to(id, heading.flow) else {
            return;
        };
        self.shared.moved().release(&before, self.mobiles.place(id));
        self.follow_routes(now, id);
        self.counters.allocations_moved.increment();
        if let Some(allocation) = self.allocations.get(id) {
            let owner = self.owner(allocation);
            let from = before.client();
            self.notify(Notice::AllocationMoved { owner, from });
        }
    }

    /// An allocation is gone, and so are its tickets and its client's other 5-tuples.
    pub(super) fn end_mobility(&mut self, id: PortId, allocation: &Allocation) {
        let Some(mobility) = self.mobiles.table.remove(&id) else {
            return;
        };
        let place = self.mobiles.place(id);
        self.shared.moved().release(&allocation.flow, place);
        if let Some(heading) = mobility.heading {
            self.shared.moved().release(&heading.flow, place);
        }
    }

    /// ChannelData or a Send indication from a 5-tuple without an allocation on this shard: its
    /// client has moved here, or it is nobody's.
    #[cold]
    pub(crate) fn data_without_allocation(
        &mut self,
        now: Timestamp,
        listener: ListenerId,
        datagram: &Datagram<'_>,
    ) -> Option<Transmit> {
        let from = Endpoint::sender(listener, datagram);
        let flow = from.flow();
        let Some(place) = self.shared.moved().find(&flow) else {
            return self.dropped(DropReason::NoAllocation);
        };
        if place.shard != self.shard {
            let class = datagram.traffic_class;
            self.hand_over(place.shard, from, class, datagram.payload);
            return None;
        }
        self.arrived(now, place.port, &flow);
        let class = datagram.traffic_class;
        let outcome = match classify(datagram.payload) {
            Kind::ChannelData => self
                .channel_data(now, listener, from.server, from.client, datagram.payload)
                .map(|out| Some(out.transmit(class))),
            Kind::Stun => self.stun(now, from, datagram.payload, class),
            Kind::Other => Err(DropReason::Unrecognized),
        };
        outcome.unwrap_or_else(|reason| self.dropped(reason))
    }

    /// The other shard that has to answer a request: the one that a ticket names, or that has the
    /// allocation of a client that has moved. Whose 5-tuple is in use here is answered here.
    pub(crate) fn shard_of_request(&mut self, request: &Request<'_>) -> Option<ShardId> {
        let is_within = match request.kind {
            RequestKind::Binding | RequestKind::Allocate => false,
            RequestKind::Refresh | RequestKind::CreatePermission | RequestKind::ChannelBind => true,
        };
        let flow = request.from.flow();
        if self.config.shards == 1 || !is_within || self.allocations.find(&flow).is_some() {
            return None;
        }
        let has_ticket = request.kind == RequestKind::Refresh
            && request.message.contains(AttributeType::MOBILITY_TICKET);
        let shard = if has_ticket {
            let MobilityTicket(ticket) = request.message.get().ok()??;
            self.mobiles.key.open(ticket)?.shard
        } else {
            self.shared.moved().find(&flow)?.shard
        };
        (shard != self.shard && shard.0 < self.config.shards).then_some(shard)
    }
}
