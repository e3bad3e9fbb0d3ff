//! What a request may be answered with, and what follows from the answer.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use towpath_proto::Timestamp;
use towpath_proto::machine::ShardId;
use towpath_proto::ports::shard_of_port;
use towpath_proto::relay::DropReason;

use super::peers::Judged;
use super::time::{LONGEST_RESERVATION, RESERVATION_LIFETIME};
use super::{Alive, Allocation, Alternative, Expectation, Flow, Model, Reservation};
use crate::steering::shard_of;
use crate::stun::{self, Parsed, attribute, kind};

/// The outcomes that a request may have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Judgement {
    success: bool,
    codes: BTreeSet<u16>,
    silence: Option<&'static [DropReason]>,
    opening: bool,
}

/// Who sent a request, as far as the reference can tell.
enum Sender {
    /// This user.
    User(String),
    /// This user, if the nonce is still accepted.
    UserUnlessStale(String),
    /// Nobody: one of these codes is the answer.
    Nobody(BTreeSet<u16>),
}

impl Judgement {
    fn success() -> Self {
        Self {
            success: true,
            ..Self::default()
        }
    }

    pub(super) fn refused(codes: impl IntoIterator<Item = u16>) -> Self {
        Self {
            codes: codes.into_iter().collect(),
            ..Self::default()
        }
    }

    pub(super) fn silence(reasons: &'static [DropReason]) -> Self {
        Self {
            silence: Some(reasons),
            ..Self::default()
        }
    }

    pub(super) fn or_code(mut self, code: u16) -> Self {
        self.codes.insert(code);
        self
    }

    pub(super) fn or(mut self, other: Self) -> Self {
        self.success |= other.success;
        self.opening |= other.opening;
        self.codes.extend(other.codes);
        self.silence = self.silence.or(other.silence);
        self
    }

    fn into_expectation(self, flow: Flow, request: &Parsed) -> Expectation {
        let request = || Box::new(request.clone());
        let mut expected = Vec::new();
        if self.opening {
            expected.push(Alternative::Opening(flow, request()));
        }
        if self.success {
            expected.push(Alternative::Success(flow, request()));
        }
        for code in self.codes {
            expected.push(Alternative::Error(code, flow, request()));
        }
        expected.extend(self.silence.map(Alternative::Drop));
        expected
    }
}

impl Model {
    pub(super) fn request(&mut self, now: Timestamp, flow: Flow, request: Parsed) -> Expectation {
        use DropReason::{
            AnswerTooLong, TooManyFromNetwork, TooManyInAll, TooManyRequests, UnexpectedMessage,
            UnknownAttribute,
        };
        const STRANGER: &[DropReason] = &[
            TooManyRequests,
            TooManyFromNetwork,
            TooManyInAll,
            AnswerTooLong,
        ];
        if request.kind & 0x110 != 0 {
            return vec![Alternative::Drop(&[UnexpectedMessage, UnknownAttribute])];
        }
        if let Sender::Nobody(codes) = self.sender(now, flow, &request)
            && codes.contains(&401)
        {
            self.failures.note(now, flow, &request);
        }
        if matches!(
            request.kind,
            kind::REFRESH | kind::CREATE_PERMISSION | kind::CHANNEL_BIND
        ) && request.find(attribute::MOBILITY_TICKET).is_none()
            && let Sender::User(user) | Sender::UserUnlessStale(user) =
                self.sender(now, flow, &request)
        {
            self.expect_arrival(flow, Some(&user));
        }
        let mut judgement = match request.kind {
            kind::BINDING => {
                let mut judgement = Judgement::success();
                judgement.silence = Some(STRANGER);
                if request.attributes.iter().any(|(kind, _)| *kind < 0x8000) {
                    judgement = judgement.or_code(420);
                }
                judgement
            }
            kind::ALLOCATE | kind::REFRESH | kind::CREATE_PERMISSION | kind::CHANNEL_BIND => {
                self.judge_authenticated(now, flow, &request, STRANGER)
            }
            _ => Judgement {
                silence: Some(&[
                    UnexpectedMessage,
                    TooManyRequests,
                    TooManyFromNetwork,
                    TooManyInAll,
                ]),
                ..Judgement::refused([400, 401])
            },
        };
        if self.deleted.contains(&(flow, request.id)) && request.kind == kind::REFRESH {
            // The retransmission of a deletion may be answered from memory.
            judgement = judgement.or(Judgement::success());
        }
        judgement.into_expectation(flow, &request)
    }

    fn judge_authenticated(
        &self,
        now: Timestamp,
        flow: Flow,
        request: &Parsed,
        stranger: &'static [DropReason],
    ) -> Judgement {
        let (user, stale) = match self.sender(now, flow, request) {
            Sender::User(user) => (user, false),
            Sender::UserUnlessStale(user) => (user, true),
            Sender::Nobody(codes) => {
                return Judgement {
                    silence: Some(stranger),
                    ..Judgement::refused(codes)
                };
            }
        };
        let mut judgement = match request.kind {
            kind::ALLOCATE => {
                let mut judgement = self.judge_allocate(now, flow, request, &user);
                if judgement.codes.remove(&508) {
                    judgement.codes.insert(self.code_for_full(flow, request));
                }
                judgement
            }
            _ => self.judge_within(now, flow, request, &user),
        };
        if has_malformed_attributes(request) {
            judgement = judgement.or_code(400);
        }
        let unknown = has_unknown_attributes(request);
        let again = request.kind == kind::ALLOCATE && self.allocations.contains_key(&flow);
        if unknown != Alive::No {
            judgement = judgement.or_code(420);
        }
        if unknown == Alive::Yes && !again {
            judgement.success = false;
            judgement.opening = false;
        }
        let mut codes = BTreeSet::new();
        codes.extend(stale.then_some(438));
        codes.extend(
            self.may_be_locked_out(now, flow, request, &user)
                .then_some(401),
        );
        if codes.is_empty() {
            return judgement;
        }
        let refused = Judgement {
            silence: Some(stranger),
            ..Judgement::refused(codes)
        };
        judgement.or(refused)
    }

    /// RFC 8489 §10: a relay that is full sends clients to another server of their family, if there is
    /// one, but not those who want a port that is reserved here.
    pub(super) fn code_for_full(&self, flow: Flow, request: &Parsed) -> u16 {
        let servers = &self.rules.alternate_servers;
        let alternate = servers.iter().any(|s| s.is_ipv4() == flow.client.is_ipv4());
        let reserved = request.find(attribute::RESERVATION_TOKEN).is_some();
        if alternate && !reserved { 300 } else { 508 }
    }

    /// RFC 8489 §9.2.4, without the order of the checks where more than one fails.
    fn sender(&self, now: Timestamp, flow: Flow, request: &Parsed) -> Sender {
        if !request.is_protected() {
            return Sender::Nobody([401].into());
        }
        let text = |kind| request.find(kind).map(String::from_utf8_lossy);
        let hash = request.find(attribute::USERHASH);
        let (true, Some(realm), Some(nonce)) = (
            request.find(attribute::USERNAME).is_some() || hash.is_some(),
            text(attribute::REALM),
            request.find(attribute::NONCE),
        ) else {
            return Sender::Nobody([400].into());
        };
        let issued = self.nonces.get(&(flow.client, nonce.to_vec()));
        let fresh = issued.map_or(Alive::No, |issued| {
            let sure = issued.at + self.rules.nonce_lifetime;
            if now < sure {
                Alive::Yes
            } else if now < sure + self.rules.nonce_slack {
                Alive::Maybe
            } else {
                Alive::No
            }
        });
        let mut codes = BTreeSet::new();
        let claim = self.rules.claim(request).filter(|claim| {
            *realm == self.rules.realm
                && !self.rules.has_ended(now, claim)
                && claim.signed(request, algorithm(request), &realm)
        });
        let right = claim.is_some();
        if !right {
            codes.insert(401);
        }
        if fresh == Alive::No {
            codes.insert(438);
        }
        if !right && fresh == Alive::Maybe {
            codes.insert(438);
        }
        let readable = |kind| {
            request
                .find(kind)
                .is_some_and(|v| std::str::from_utf8(v).is_ok())
        };
        let has_name = request.find(attribute::USERNAME).is_some();
        if (has_name && !readable(attribute::USERNAME)) || !readable(attribute::REALM) {
            codes.insert(400);
        }
        if hash.is_some_and(|hash| hash.len() != 32) {
            codes.insert(400);
        }
        if names_algorithm(request) {
            // RFC 8489 §9.2.4: both attributes, the list as it was sent with the nonce, and one of it.
            let list = request.find(attribute::PASSWORD_ALGORITHMS);
            let sent = issued.and_then(|issued| issued.algorithms.as_deref());
            let choice = request.find(attribute::PASSWORD_ALGORITHM);
            let listed = choice.is_some_and(|choice| {
                choice.len() == 4
                    && list.is_some_and(|list| list.chunks(4).any(|one| one == choice))
            });
            if list.is_none() || list != sent || !listed {
                codes.insert(400);
            }
        }
        match (claim, fresh) {
            (Some(claim), Alive::Yes) if codes.is_empty() => Sender::User(claim.user),
            (Some(claim), _) if codes.is_empty() => Sender::UserUnlessStale(claim.user),
            _ => Sender::Nobody(codes),
        }
    }

    fn judge_allocate(
        &self,
        now: Timestamp,
        flow: Flow,
        request: &Parsed,
        user: &str,
    ) -> Judgement {
        if let Some(opening) = self.opening.get(&flow) {
            let silence = Some(&[DropReason::StillOpening][..]);
            let same = opening.request.id == request.id;
            let codes = if same { vec![] } else { vec![437] };
            return Judgement {
                silence,
                ..Judgement::refused(codes)
            };
        }
        let Some(allocation) = self.allocations.get(&flow) else {
            let mismatch = Judgement::refused([437]);
            return match self.is_awaited(now, flow) {
                Alive::Yes => mismatch,
                Alive::Maybe => mismatch.or(self.judge_new(now, flow, request, user)),
                Alive::No => self.judge_new(now, flow, request, user),
            };
        };
        let existing = if allocation.made_by == request.id {
            Judgement::success()
        } else {
            Judgement::refused([437])
        };
        match self.rules.alive(now, allocation.expires()) {
            Alive::Yes => existing,
            Alive::Maybe | Alive::No => existing.or(self.judge_new(now, flow, request, user)),
        }
    }

    fn judge_new(&self, now: Timestamp, flow: Flow, request: &Parsed, user: &str) -> Judgement {
        let mut codes = BTreeSet::new();
        match request.find(attribute::REQUESTED_TRANSPORT) {
            Some([17, _, _, _]) => {}
            Some([_, _, _, _]) => codes.extend([442]),
            _ => codes.extend([400]),
        }
        let family = request.find(attribute::REQUESTED_ADDRESS_FAMILY);
        let wants_v4 = match family {
            None | Some([1, ..]) => true,
            Some([2, ..]) => false,
            Some(_) => {
                codes.extend([400, 440]);
                true
            }
        };
        let token = request.find(attribute::RESERVATION_TOKEN);
        let even = request.find(attribute::EVEN_PORT);
        let pair = even.is_some_and(|value| value.first().is_some_and(|r| r & 0x80 != 0));
        let additional = request.find(attribute::ADDITIONAL_ADDRESS_FAMILY);
        // RFC 8656 §7.2: these contradict each other, and IPv4 is never the additional family.
        let contradiction = (token.is_some() && (even.is_some() || family.is_some()))
            || additional.is_some_and(|value| value.first() != Some(&2))
            || (additional.is_some() && (token.is_some() || family.is_some() || pair));
        if contradiction {
            codes.insert(400);
        }
        codes.extend(self.judge_wish_for_mobility(request));
        let families = match additional {
            Some(_) => vec![true, false],
            None => vec![wants_v4],
        };
        let locals = families.into_iter();
        let locals = locals.filter_map(|v4| Some(self.relay_address_for(flow, v4)?.0));
        let locals: Vec<IpAddr> = locals.collect();
        if locals.is_empty() {
            codes.insert(440);
        }
        let may_be_empty = |pair| {
            let mut locals = locals.iter();
            locals.all(|local| self.pool_may_be_empty(now, flow, *local, pair))
        };
        if !codes.is_empty() {
            return Judgement::refused(codes).or_code(508).or_code(486);
        }
        let mut judgement = Judgement {
            opening: true,
            ..Judgement::default()
        };
        if let Some(token) = token {
            judgement = self.judge_token(now, token, user);
            if may_be_empty(false) {
                // The shard holds as many ports as it may, its own and others'.
                judgement = judgement.or_code(508);
            }
        } else if may_be_empty(even.is_some()) {
            judgement = judgement.or_code(508);
        }
        // A reserved port was counted when it was reserved.
        if token.is_none() {
            let asked = 1 + usize::from(pair);
            let network = network(flow.client.ip());
            let rules = &self.rules;
            judgement = self.judge_quota(
                now,
                asked,
                judgement,
                486,
                rules.allocations_per_user,
                |of, _| of == user,
            );
            judgement = self.judge_quota(
                now,
                asked,
                judgement,
                486,
                rules.allocations_per_network,
                |_, ip| self::network(ip) == network,
            );
            judgement = self.judge_quota(
                now,
                asked,
                judgement,
                508,
                rules.allocations_in_total,
                |_, _| true,
            );
        }
        judgement
    }

    /// The local and public address that an allocation of this family is given.
    pub(super) fn relay_address_for(&self, flow: Flow, v4: bool) -> Option<(IpAddr, IpAddr)> {
        let addresses = &self.rules.relay_addresses;
        let same = addresses
            .iter()
            .find(|(local, _)| *local == flow.server.ip());
        let first = addresses.iter().find(|(local, _)| local.is_ipv4() == v4);
        same.filter(|(local, _)| local.is_ipv4() == v4)
            .or(first)
            .copied()
    }

    fn judge_token(&self, now: Timestamp, token: &[u8], user: &str) -> Judgement {
        let Some(reservation) = self.reservations.get(token) else {
            return Judgement::refused([508]);
        };
        let age = now.saturating_since(reservation.made);
        let granted = Judgement {
            opening: true,
            ..Judgement::default()
        };
        if reservation.user != user || age >= LONGEST_RESERVATION {
            Judgement::refused([508])
        } else if age < RESERVATION_LIFETIME {
            granted
        } else {
            granted.or_code(508)
        }
    }

    /// Whether the shard of a flow may have no port left.
    pub(super) fn pool_may_be_empty(
        &self,
        now: Timestamp,
        flow: Flow,
        local: IpAddr,
        pair: bool,
    ) -> bool {
        let rules = &self.rules;
        let shard = self.shard_of(flow);
        let in_shard = |local_port: &&SocketAddr| {
            let home = shard_of_port(local_port.port(), rules.shards);
            let made_in = self.made_in.get(local_port);
            local_port.ip() == local && (made_in == Some(&shard) || home == shard)
        };
        let used = self.ports.keys().filter(in_shard).count();
        let (first, last) = (*rules.port_range.start(), *rules.port_range.end());
        let whole_pairs = usize::from(last).div_ceil(2) - usize::from(first).div_ceil(2);
        let share = whole_pairs / usize::from(rules.shards) * 2;
        let recent = |reservation: &&Reservation| {
            now.saturating_since(reservation.made) <= LONGEST_RESERVATION + rules.slack
        };
        let reserved = self.reservations.values().filter(recent).count();
        // A pair is free for sure while fewer ports than pairs are taken.
        let sure = if pair { share / 2 } else { share };
        rules.ports_fail || used + reserved >= sure
    }

    pub(super) fn shard_of(&self, flow: Flow) -> ShardId {
        shard_of(self.rules.steering_key, flow.client, self.rules.shards)
    }

    /// A quota's part in the judgement of a request that asks for so many ports.
    fn judge_quota(
        &self,
        now: Timestamp,
        asked: usize,
        judgement: Judgement,
        code: u16,
        limit: Option<usize>,
        counts: impl Fn(&str, IpAddr) -> bool,
    ) -> Judgement {
        let (least, most) = self.counted(now, counts);
        match limit {
            Some(limit) if most + asked > limit => {
                let opening = judgement.opening && least + asked <= limit;
                Judgement {
                    opening,
                    ..judgement.or_code(code)
                }
            }
            Some(_) | None => judgement,
        }
    }

    /// How many ports there are at least and at most, of those users and clients that are asked about:
    /// those of allocations, and reserved ones.
    fn counted(&self, now: Timestamp, counts: impl Fn(&str, IpAddr) -> bool) -> (usize, usize) {
        let counted = |allocation: &&Allocation| counts(&allocation.user, allocation.client);
        let made = self.allocations.values().filter(counted).count();
        let reserved = |longest: Duration| {
            let kept = |reservation: &&Reservation| {
                counts(&reservation.user, reservation.client)
                    && now.saturating_since(reservation.made) < longest
            };
            self.reservations.values().filter(kept).count()
        };
        let least = made.saturating_sub(self.ended(now)) + reserved(RESERVATION_LIFETIME);
        // An allocation that is being made may have reserved a port as well.
        let making = 2 * self.opening.len();
        let most = made + making + reserved(LONGEST_RESERVATION + self.rules.slack);
        (least, most)
    }

    /// Allocations whose end the relay need not have noticed.
    fn ended(&self, now: Timestamp) -> usize {
        let ended = |allocation: &&Allocation| allocation.expires() <= now;
        self.allocations.values().filter(ended).count()
    }

    /// Refresh, CreatePermission and ChannelBind need an allocation of the same user.
    fn judge_within(&self, now: Timestamp, flow: Flow, request: &Parsed, user: &str) -> Judgement {
        if request.kind == kind::REFRESH
            && let Some(ticket) = request.find(attribute::MOBILITY_TICKET)
        {
            return self.judge_ticket(now, flow, request, user, ticket);
        }
        let mismatch = Judgement::refused([437]);
        let Some(allocation) = self.at(flow) else {
            return mismatch;
        };
        let judgement = if allocation.user != user {
            Judgement::refused([441])
        } else {
            match request.kind {
                kind::REFRESH => self.judge_refresh(now, allocation, request),
                kind::CREATE_PERMISSION => self.judge_permission(now, allocation, request),
                _ => self.judge_channel(now, allocation, request),
            }
        };
        match self.rules.alive(now, allocation.expires()) {
            Alive::Yes => judgement,
            Alive::Maybe => judgement.or(mismatch),
            Alive::No => mismatch,
        }
    }

    fn judge_permission(
        &self,
        now: Timestamp,
        allocation: &Allocation,
        request: &Parsed,
    ) -> Judgement {
        let mut codes = BTreeSet::new();
        let peers = request.addresses(attribute::XOR_PEER_ADDRESS);
        if peers.is_empty() || peers.contains(&None) {
            codes.insert(400);
        }
        let peers: BTreeSet<IpAddr> = peers.iter().flatten().map(SocketAddr::ip).collect();
        let mut unclear = false;
        for peer in &peers {
            unclear |= self.judge_peer_for(now, allocation, *peer, &mut codes);
        }
        if !codes.is_empty() {
            codes.extend(unclear.then_some(403));
            return Judgement::refused(codes);
        }
        let judgement = self.judge_room(now, allocation, &peers);
        if unclear {
            judgement.or_code(403)
        } else {
            judgement
        }
    }

    /// Adds the codes that refuse a peer; true where it may be refused or not.
    fn judge_peer_for(
        &self,
        now: Timestamp,
        allocation: &Allocation,
        peer: IpAddr,
        codes: &mut BTreeSet<u16>,
    ) -> bool {
        let judged = self.judge_peer(peer);
        if !self.has_family(now, allocation, peer.is_ipv4()) {
            codes.insert(443);
            if judged != Judged::Allowed {
                codes.insert(403);
            }
        } else if judged == Judged::Denied {
            codes.insert(403);
        }
        judged == Judged::Unclear
    }

    /// Whether an allocation has a relayed address of a family that has not expired.
    fn has_family(&self, now: Timestamp, allocation: &Allocation, v4: bool) -> bool {
        let address = allocation.of_family(v4);
        address.is_some_and(|address| self.rules.alive(now, address.expires) == Alive::Yes)
    }

    /// RFC 8656 §8.2: a family that "does not match the address family of the allocation" is a 443.
    pub(super) fn judge_refresh(
        &self,
        now: Timestamp,
        allocation: &Allocation,
        request: &Parsed,
    ) -> Judgement {
        let matches = match request.find(attribute::REQUESTED_ADDRESS_FAMILY) {
            None => true,
            Some([1, ..]) => self.has_family(now, allocation, true),
            Some([2, ..]) => self.has_family(now, allocation, false),
            Some(_) => false,
        };
        if matches {
            Judgement::success()
        } else {
            Judgement::refused([443])
        }
    }

    /// Whether permissions for all these peers fit.
    fn judge_room(
        &self,
        now: Timestamp,
        allocation: &Allocation,
        peers: &BTreeSet<IpAddr>,
    ) -> Judgement {
        let after = |at_least: Alive| {
            let counted = |until: &Timestamp| match self.rules.alive(now, *until) {
                Alive::Yes => true,
                Alive::Maybe => at_least == Alive::Maybe,
                Alive::No => false,
            };
            let mut all = peers.clone();
            let permissions = allocation.permissions.iter();
            all.extend(
                permissions
                    .filter(|(_, until)| counted(until))
                    .map(|(ip, _)| *ip),
            );
            all.len()
        };
        let limit = self.rules.max_permissions;
        let mut judgement = Judgement {
            success: after(Alive::Yes) <= limit,
            ..Default::default()
        };
        if after(Alive::Maybe) > limit {
            judgement = judgement.or_code(508);
        }
        judgement
    }

    fn judge_channel(
        &self,
        now: Timestamp,
        allocation: &Allocation,
        request: &Parsed,
    ) -> Judgement {
        let mut codes = BTreeSet::new();
        let number = request
            .find(attribute::CHANNEL_NUMBER)
            .and_then(|v| v.first_chunk::<2>());
        let peer = request.address(attribute::XOR_PEER_ADDRESS);
        let (Some(number), Some(peer)) = (number, peer) else {
            codes.insert(400);
            return Judgement::refused(codes);
        };
        let number = u16::from_be_bytes(*number);
        if !(0x4000..=0x7fff).contains(&number) || peer.port() == 0 {
            codes.insert(400);
        }
        let mut unclear = self.judge_peer_for(now, allocation, peer.ip(), &mut codes);
        unclear |= self.rules.own_addresses.contains(&peer.ip());
        let mut maybe_taken = false;
        for (other, (bound, until)) in &allocation.channels {
            // RFC 8656 §12.2: "The channel number is not currently bound to a different transport
            // address", "the transport address is not currently bound to a different channel".
            if (*other == number) != (*bound == peer) {
                match self.rules.alive(now, *until) {
                    Alive::Yes => drop(codes.insert(400)),
                    Alive::Maybe => maybe_taken = true,
                    Alive::No => {}
                }
            }
        }
        if !codes.is_empty() {
            codes.extend(unclear.then_some(403));
            return Judgement::refused(codes);
        }
        let mut judgement = self.judge_room(now, allocation, &[peer.ip()].into());
        let others = allocation
            .channels
            .iter()
            .filter(|(other, _)| **other != number);
        let alive = others.map(|(_, (_, until))| self.rules.alive(now, *until));
        let (sure, possible) = alive.fold((0, 0), |(sure, possible), alive| match alive {
            Alive::Yes => (sure + 1, possible + 1),
            Alive::Maybe => (sure, possible + 1),
            Alive::No => (sure, possible),
        });
        judgement.success &= sure < self.rules.max_channels;
        if possible >= self.rules.max_channels {
            judgement = judgement.or_code(508);
        }
        if maybe_taken {
            judgement = judgement.or_code(400);
        }
        if unclear {
            judgement.or_code(403)
        } else {
            judgement
        }
    }
}

/// The /24 or /56 of a client.
fn network(ip: IpAddr) -> (bool, u128) {
    match ip {
        IpAddr::V4(ip) => (true, u128::from(u32::from(ip) / 256)),
        IpAddr::V6(ip) => (false, u128::from(ip) >> 72),
    }
}

/// Whether a relayed address of each family is asked for.
pub(super) fn wants_both(request: &Parsed) -> bool {
    request.find(attribute::ADDITIONAL_ADDRESS_FAMILY).is_some()
}

/// Whether an attribute has a length that its type never has. The RFCs say little about it: such a
/// request may be refused.
fn has_malformed_attributes(request: &Parsed) -> bool {
    request.attributes.iter().any(|(kind, value)| match *kind {
        attribute::EVEN_PORT => value.len() != 1,
        attribute::RESERVATION_TOKEN => value.len() != 8,
        attribute::XOR_PEER_ADDRESS => !matches!(value.len(), 8 | 20),
        attribute::LIFETIME
        | attribute::CHANNEL_NUMBER
        | attribute::REQUESTED_TRANSPORT
        | attribute::REQUESTED_ADDRESS_FAMILY
        | attribute::ADDITIONAL_ADDRESS_FAMILY => value.len() != 4,
        _ => false,
    })
}

/// Attributes that a TURN server knows; where they are not expected they are ignored.
const KNOWN: [u16; 14] = [
    attribute::USERNAME,
    attribute::USERHASH,
    attribute::REALM,
    attribute::NONCE,
    attribute::PASSWORD_ALGORITHM,
    attribute::CHANNEL_NUMBER,
    attribute::LIFETIME,
    attribute::XOR_PEER_ADDRESS,
    attribute::DATA,
    attribute::REQUESTED_ADDRESS_FAMILY,
    attribute::EVEN_PORT,
    attribute::DONT_FRAGMENT,
    attribute::REQUESTED_TRANSPORT,
    attribute::RESERVATION_TOKEN,
];

/// Whether a request has an attribute that must be understood and is not. Numbers that the
/// registry knows for something else are left open.
fn has_unknown_attributes(request: &Parsed) -> Alive {
    let mut unknown = Alive::No;
    for (kind, _) in &request.attributes {
        match kind {
            0x8000.. => {}
            kind if KNOWN.contains(kind) => {}
            0..0x40 => {
                unknown = if unknown == Alive::Yes {
                    Alive::Yes
                } else {
                    Alive::Maybe
                }
            }
            _ => unknown = Alive::Yes,
        }
    }
    unknown
}

/// Whether a request says something about password algorithms.
pub(super) fn names_algorithm(request: &Parsed) -> bool {
    [
        attribute::PASSWORD_ALGORITHM,
        attribute::PASSWORD_ALGORITHMS,
    ]
    .iter()
    .any(|kind| request.find(*kind).is_some())
}

/// The number of the password algorithm that a request uses: 1 is MD5, 2 is SHA-256.
pub(super) fn algorithm(request: &Parsed) -> u16 {
    let value = request
        .find(attribute::PASSWORD_ALGORITHM)
        .and_then(|v| v.first_chunk::<2>());
    value.map_or(1, |number| u16::from_be_bytes(*number))
}

pub(super) fn verify_by(
    message: &Parsed,
    algorithm: u16,
    name: &str,
    realm: &str,
    password: &str,
) -> bool {
    let key = match algorithm {
        1 => stun::md5_key(name, realm, password).to_vec(),
        2 => stun::sha256_key(name, realm, password).to_vec(),
        _ => return false,
    };
    if message.integrity_sha256.is_some() {
        message.verify_integrity_sha256(&key)
    } else {
        message.verify_integrity(&key)
    }
}
