//! Mobility (RFC 8016): which allocation a ticket means, and when an allocation moves.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use towpath_proto::Timestamp;
use towpath_proto::relay::DropReason;

use super::requests::Judgement;
use super::{Alive, Allocation, Alternative, Flow, Model, Observed, PortChange};
use crate::stun::{Parsed, attribute, kind};

/// RFC 8016 §3.2.2: a retransmitted Refresh is recognized for so long at least; here, exactly.
const RETRANSMISSION: Duration = Duration::from_secs(30);

/// Whoever has moved stays for so long.
const STAY: Duration = Duration::from_secs(1);

/// What the reference knows of a mobile allocation beside the allocation.
#[derive(Debug)]
pub(super) struct Mobile {
    /// Every ticket it ever had.
    issued: BTreeSet<Vec<u8>>,
    /// The ticket that was given to where it is.
    current: Vec<u8>,
    /// Where it is going to be, and the ticket that was given to that place.
    heading: Option<(Flow, Vec<u8>)>,
    /// The ticket that was shown last, and when.
    shown: Option<(Vec<u8>, Timestamp)>,
    moved: Option<Timestamp>,
}

/// What a ticket from a 5-tuple means.
enum Move {
    Again,
    Back,
    Away,
    Refused,
    TooSoon,
}

impl Mobile {
    fn new(ticket: &[u8]) -> Self {
        Self {
            issued: [ticket.to_vec()].into(),
            current: ticket.to_vec(),
            heading: None,
            shown: None,
            moved: None,
        }
    }

    fn newest(&self) -> &[u8] {
        self.heading
            .as_ref()
            .map_or(&self.current, |(_, ticket)| ticket)
    }

    fn judge(&self, now: Timestamp, at: Flow, from: Flow, ticket: &[u8]) -> Move {
        let last_place = self.heading.as_ref().map_or(at, |(flow, _)| *flow);
        let is_newest = ticket == self.newest();
        let is_of_place = ticket == self.current;
        let is_repeated = self
            .shown
            .as_ref()
            .is_some_and(|(shown, at)| shown == ticket && now <= *at + RETRANSMISSION);
        if from == last_place {
            if !is_newest && (is_of_place || is_repeated) {
                Move::Again
            } else {
                Move::Refused
            }
        } else if !is_newest && !is_of_place {
            Move::Refused
        } else if from == at {
            if is_newest { Move::Back } else { Move::Refused }
        } else if self.moved.is_some_and(|moved| now < moved + STAY) {
            Move::TooSoon
        } else {
            Move::Away
        }
    }
}

impl Model {
    /// The allocation whose client is at `flow`, or is known to go there.
    pub(super) fn at(&self, flow: Flow) -> Option<&Allocation> {
        let known = self.allocations.get(&flow);
        known.or_else(|| self.allocations.get(&self.ports[&self.heading_for(flow)?]))
    }

    /// The local address of the allocation that is going to be at `flow`.
    fn heading_for(&self, flow: Flow) -> Option<SocketAddr> {
        let heads = |mobile: &Mobile| mobile.heading.as_ref().is_some_and(|(to, _)| *to == flow);
        let mut found = self.mobiles.iter().filter(|(_, mobile)| heads(mobile));
        found.next().map(|(local, _)| *local)
    }

    /// Whether somebody is going to be at a 5-tuple, so that nobody can allocate there.
    pub(super) fn is_awaited(&self, now: Timestamp, flow: Flow) -> Alive {
        let Some(local) = self.heading_for(flow) else {
            return Alive::No;
        };
        let allocation = &self.allocations[&self.ports[&local]];
        match self.rules.alive(now, allocation.expires()) {
            Alive::Yes => Alive::Yes,
            // It is there until the relay looks at it.
            Alive::Maybe | Alive::No => Alive::Maybe,
        }
    }

    /// What an Allocate is refused with for its ticket.
    pub(super) fn judge_wish_for_mobility(&self, request: &Parsed) -> Option<u16> {
        let ticket = request.find(attribute::MOBILITY_TICKET)?;
        if !ticket.is_empty() {
            Some(400)
        } else if self.rules.mobility {
            None
        } else {
            Some(405)
        }
    }

    /// A success to an Allocate.
    pub(super) fn given_ticket(&mut self, local: SocketAddr, request: &Parsed, answer: &Parsed) {
        let ticket = answer.find(attribute::MOBILITY_TICKET);
        let asked = request.find(attribute::MOBILITY_TICKET).is_some();
        assert_eq!(ticket.is_some(), asked, "a ticket is given to who asks");
        if let Some(ticket) = ticket {
            self.check_fresh(ticket);
            self.mobiles.insert(local, Mobile::new(ticket));
        }
    }

    fn check_fresh(&self, ticket: &[u8]) {
        let known = |mobile: &Mobile| mobile.issued.contains(ticket);
        let is_known = self.mobiles.values().any(known) || self.ended_tickets.contains(ticket);
        assert!(!is_known && !ticket.is_empty(), "a ticket is given twice");
    }

    /// A Refresh with a ticket.
    pub(super) fn judge_ticket(
        &self,
        now: Timestamp,
        flow: Flow,
        request: &Parsed,
        user: &str,
        ticket: &[u8],
    ) -> Judgement {
        if !self.rules.mobility {
            return Judgement::refused([405]);
        }
        let known = |(_, mobile): &(&SocketAddr, &Mobile)| mobile.issued.contains(ticket);
        let Some((local, mobile)) = self.mobiles.iter().find(known) else {
            let has_ended = self.ended_tickets.contains(ticket);
            return Judgement::refused([if has_ended { 437 } else { 400 }]);
        };
        let at = self.ports[local];
        let allocation = &self.allocations[&at];
        let granted = self.judge_refresh(now, allocation, request);
        let judgement = if allocation.user == user {
            match mobile.judge(now, at, flow, ticket) {
                Move::Again | Move::Back => granted,
                Move::Refused => Judgement::refused([400]),
                Move::TooSoon => Judgement::silence(&[DropReason::MovesTooOften]),
                Move::Away => match self.is_taken(now, flow) {
                    Alive::No => granted,
                    Alive::Maybe => granted.or_code(437),
                    Alive::Yes => Judgement::refused([437]),
                },
            }
        } else {
            Judgement::refused([441])
        };
        let mismatch = Judgement::refused([437]);
        // Whose 5-tuple is in use is answered by its own shard, which may not have the allocation.
        let is_elsewhere = self.made_in[local] != self.shard_of(flow);
        let judgement = if is_elsewhere && self.is_in_use(flow) {
            judgement.or(mismatch.clone())
        } else {
            judgement
        };
        match self.rules.alive(now, allocation.expires()) {
            Alive::Yes => judgement,
            Alive::Maybe => judgement.or(mismatch),
            Alive::No => mismatch,
        }
    }

    fn is_in_use(&self, flow: Flow) -> bool {
        self.allocations.contains_key(&flow) || self.opening.contains_key(&flow)
    }

    fn is_taken(&self, now: Timestamp, flow: Flow) -> Alive {
        if self.opening.contains_key(&flow) {
            return Alive::Yes;
        }
        match self.allocations.get(&flow) {
            Some(allocation) if now < allocation.expires() => Alive::Yes,
            Some(_) => Alive::Maybe,
            None => self.is_awaited(now, flow),
        }
    }

    /// A success to a Refresh with a ticket.
    pub(super) fn resumed(
        &mut self,
        now: Timestamp,
        flow: Flow,
        request: &Parsed,
        answer: &Parsed,
        ticket: &[u8],
        closes: bool,
    ) {
        let told = answer.number(attribute::LIFETIME).map(u64::from);
        let known = |(_, mobile): &(&SocketAddr, &Mobile)| mobile.issued.contains(ticket);
        let Some((local, mobile)) = self.mobiles.iter().find(known) else {
            assert_eq!(told, Some(0), "a deletion may be confirmed twice");
            return;
        };
        let (local, at) = (*local, self.ports[local]);
        let step = mobile.judge(now, at, flow, ticket);
        let newest = mobile.newest().to_vec();
        let given = answer.find(attribute::MOBILITY_TICKET);
        if !self.refreshed(now, (at, flow), request, answer, closes) {
            assert_eq!(given, None, "what is deleted does not move");
            return;
        }
        let given = given.expect("whoever moves is given a ticket").to_vec();
        let heading = match step {
            Move::Again => {
                assert_eq!(given, newest, "a retransmission is answered the same");
                return;
            }
            Move::Back => None,
            Move::Away => Some((flow, given.clone())),
            Move::Refused | Move::TooSoon => panic!("{flow:?} must not resume {at:?}"),
        };
        self.check_fresh(&given);
        self.count("resumed");
        if self.made_in[&local] != self.shard_of(flow) {
            self.count("resumed on another shard");
        }
        let allocation = self.allocations.get_mut(&at).expect("its port is open");
        let mobile = self.mobiles.get_mut(&local).expect("it was found");
        mobile.issued.insert(given.clone());
        mobile.shown = Some((ticket.to_vec(), now));
        mobile.heading = heading;
        if mobile.heading.is_none() {
            mobile.current = given;
            allocation.answer.clear();
        }
    }

    /// Notes whether what arrives from `flow` shows that an allocation's client is there.
    pub(super) fn expect_arrival(&mut self, flow: Flow, sender: Option<&str>) {
        let shows = |local: &SocketAddr| {
            sender.is_none_or(|user| self.allocations[&self.ports[local]].user == user)
        };
        self.arriving = self.heading_for(flow).filter(shows).map(|_| flow);
    }

    /// Moves an allocation where its client was seen: RFC 8016 §3.2.2, "until it receives a Send
    /// Indication or ChannelData message from the client on the new 5-tuple".
    pub(super) fn arrive(
        &mut self,
        now: Timestamp,
        found: Option<&Alternative>,
        observed: &Observed,
    ) {
        use DropReason::{
            BadSendIndication, ChannelNotBound, NoPermissionToPeer, OverLimit, OwnAddress,
        };
        let Some(flow) = self.arriving.take() else {
            return;
        };
        let was_seen = match (&observed.drops[..], found) {
            ([reason], _) => [
                BadSendIndication,
                ChannelNotBound,
                NoPermissionToPeer,
                OverLimit,
                OwnAddress,
            ]
            .contains(reason),
            (_, Some(Alternative::Error(code, ..))) => !matches!(code, 401 | 437 | 438),
            // A deletion that is confirmed again, from memory, shows nothing.
            (_, Some(Alternative::Success(flow, request))) => {
                let closes = observed.ports.iter().any(PortChange::is_close);
                closes || !self.deleted.contains(&(*flow, request.id))
            }
            (_, found) => found.is_some(),
        };
        let Some(local) = self.heading_for(flow).filter(|_| was_seen) else {
            return;
        };
        let mobile = self.mobiles.get_mut(&local).expect("it was found");
        let (_, ticket) = mobile.heading.take().expect("it was found by that");
        mobile.current = ticket;
        mobile.moved = Some(now);
        let before = self.ports[&local];
        let mut allocation = self.allocations.remove(&before).expect("it has a port");
        for address in &allocation.addresses {
            self.ports.insert(address.local, flow);
        }
        allocation.answer.clear();
        let replaced = self.allocations.insert(flow, allocation);
        assert!(replaced.is_none(), "{flow:?} has two allocations");
        self.count("moved");
    }

    /// One of two relayed addresses has ended.
    pub(super) fn keep_tickets(&mut self, ended: SocketAddr, other: SocketAddr) {
        if let Some(mobile) = self.mobiles.remove(&ended) {
            self.mobiles.insert(other, mobile);
        }
    }

    /// An allocation has ended.
    pub(super) fn forget_tickets(&mut self, local: SocketAddr) {
        if let Some(mobile) = self.mobiles.remove(&local) {
            self.ended_tickets.extend(mobile.issued);
        }
    }

    /// Whether another shard than the client's may have to answer a datagram.
    pub fn may_be_handed_over(&self, flow: Flow, payload: &[u8]) -> bool {
        let has_ticket = crate::stun::parse(payload).is_some_and(|message| {
            message.kind == kind::REFRESH && message.find(attribute::MOBILITY_TICKET).is_some()
        });
        let Some(allocation) = self.at(flow) else {
            return has_ticket;
        };
        has_ticket || self.made_in[&allocation.addresses[0].local] != self.shard_of(flow)
    }
}
