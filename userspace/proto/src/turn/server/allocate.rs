//! Allocate (RFC 8656 §7): from a request to an open relayed port, or one of each family.
//!
//! ```text
//!   request ─▶ checks ─▶ a port is taken ─▶ OpenPort ─▶ PortOpened ─▶ success response, Live
//!                                           ▲ ▲   └──▶ PortFailed ─▶ another port, or 508
//!                                           │ └──────────────────────┘
//!                                           └── once more, if IPv6 is wanted beside IPv4
//! ```
//!
//! Of two families one suffices: IPv6 is asked for whether or not IPv4 was to be had, and what was
//! refused is said in the success response.

use std::sync::Arc;
use std::time::Duration;

use rand_chacha::rand_core::Rng;

use super::allocation::{Allocation, Details, Relayed, State};
use super::channels::Channels;
use super::destinations::Destinations;
use super::end::metered;
use super::mobility::wants_mobility;
use super::permissions::Permissions;
use super::unknown_attributes;
use crate::Timestamp;
use crate::auth::Authenticated;
use crate::machine::PortId;
use crate::ports::shard_of_port;
use crate::relay::{
    DropReason, Endpoint, Envelope, MAX_ANSWER_BYTES, Network, Notice, PortError, Refusal, Relay,
    RelayCommand, RelayLimits, Request, RequestKind, Reservation, Traffic,
};
use crate::wire::attribute::{
    AdditionalAddressFamily, AddressErrorCode, EarlyAdditionalAddressFamily, EvenPort, Family,
    Lifetime, MobilityTicket, RequestedAddressFamily, RequestedTransport, ReservationToken,
    ValueError, XorMappedAddress, XorRelayedAddress,
};
use crate::wire::{AttributeType, Code, Message};

/// How many ports are tried where somebody else holds them.
const PORT_TRIES: u8 = 8;

/// RFC 8656 §7.2: a reserved port is kept "for at least 30 seconds".
const RESERVATION_LIFETIME: Duration = Duration::from_secs(30);

/// What an Allocate request asks for, once it is known to be sound.
#[derive(Debug)]
struct Wish {
    family: Family,
    port: PortWish,
    lifetime: Duration,
    second_family: bool,
}

#[derive(Clone, Copy, Debug)]
enum PortWish {
    Any,
    Even { reserve_next: bool },
    Reserved([u8; 8]),
}

/// A port that was taken for an allocation.
#[derive(Debug)]
struct TakenPort {
    address: u8,
    port: u16,
    token: Option<[u8; 8]>,
    network: Network,
    /// The family that comes before this port's, and why it could not be had.
    refused: Option<(Family, Code)>,
}

impl Relay {
    pub(crate) fn allocate(&mut self, now: Timestamp, request: &Request<'_>) {
        let Some(sender) = self.authenticate(now, request) else {
            return;
        };
        let envelope = request.envelope(&sender);
        // RFC 8656 §7.2: a 5-tuple in use is refused with 437, unless the request is a
        // retransmission, which is answered like the first.
        if let Some(id) = self.allocations.find(&request.from.flow())
            && self
                .allocations
                .get(id)
                .is_some_and(|known| known.expires > now)
        {
            self.allocate_again(id, &envelope);
            return;
        }
        self.end_expired(now, &request.from.flow());
        // A client that has moved here has its allocation elsewhere, or under another 5-tuple still.
        if self.shared.moved().find(&request.from.flow()).is_some() {
            self.refuse(&envelope, Code::ALLOCATION_MISMATCH.into());
            return;
        }
        if self.allocations.find(&request.from.flow()).is_some() {
            // The shell has owed an answer for a whole lifetime.
            self.counters.drops(DropReason::StillOpening).increment();
            return;
        }
        match self.try_allocate(now, request, sender) {
            Ok(()) => {}
            Err(refusal) => {
                let reserved = request.message.contains(AttributeType::RESERVATION_TOKEN);
                let refusal = self.or_alternate(refusal, request.from.client, reserved);
                self.refuse(&envelope, refusal);
            }
        }
    }

    fn allocate_again(&mut self, id: PortId, envelope: &Envelope) {
        let Some(known) = self.allocations.get(id) else {
            return;
        };
        if known.details.transaction != envelope.transaction {
            self.refuse(envelope, Code::ALLOCATION_MISMATCH.into());
        } else if matches!(known.state, State::Opening { .. }) {
            self.counters.drops(DropReason::StillOpening).increment();
        } else {
            self.counters.retransmissions.increment();
            self.send_success(id, envelope);
        }
    }

    fn try_allocate(
        &mut self,
        now: Timestamp,
        request: &Request<'_>,
        sender: Authenticated,
    ) -> Result<(), Refusal> {
        let unknown = unknown_attributes(&request.message);
        if !unknown.is_empty() {
            return Err(Refusal::Unknown(unknown));
        }
        let mut wish = read_wish(&request.message, &self.config.limits)?;
        wish.lifetime = sender.within(now, wish.lifetime);
        let is_mobile = wants_mobility(&request.message, &self.config)?;
        // A shard that drains, or is full, has no capacity for new allocations.
        if self.draining || self.is_full() {
            return Err(Code::INSUFFICIENT_CAPACITY.into());
        }
        let user = sender.user.account();
        let identity = self.identity_of(&sender.user, request.from);
        // Without a slot its traffic would not be limited.
        let slot = self
            .slots
            .acquire(now, &identity)
            .ok_or(Code::INSUFFICIENT_CAPACITY)?;
        let taken = self
            .take_port(now, &wish, request.from, user)
            .inspect_err(|_| self.slots.release(now, slot))?;
        // Another port would not be the one that was reserved.
        let reserved = matches!(wish.port, PortWish::Reserved(_));
        let tries_left = if reserved { 0 } else { PORT_TRIES };
        let family = Family::of(self.config.relay_addresses[usize::from(taken.address)].local);
        let expires = now + wish.lifetime;
        let id = self.allocations.insert(|id| Allocation {
            flow: request.from.flow(),
            expires,
            channels: Channels::default(),
            permissions: Permissions::default(),
            traffic: Traffic::default(),
            policy_version: self.policy_version,
            slot,
            state: State::Opening {
                tries_left,
                then_v6: wish.second_family && family == Family::V4,
            },
            timer: None,
            details: Box::new(Details {
                integrity: sender.integrity,
                user: sender.user,
                transaction: request.message.transaction_id(),
                fingerprint: request.message.has_fingerprint(),
                network: taken.network,
                destinations: Destinations::default(),
                made: now,
                metered: metered(&*self.slots, slot),
                even: matches!(wish.port, PortWish::Even { .. }),
                refused: taken.refused,
                lifetime_s: seconds(wish.lifetime),
                token: taken.token,
                relayed: Relayed {
                    id,
                    port: taken.port,
                    address: taken.address,
                    family,
                    expires,
                },
                second: None,
                reserved,
            }),
        });
        if is_mobile {
            self.mobiles.add(id);
        }
        self.open_port(id);
        self.count_allocations();
        Ok(())
    }

    /// Whether this shard has no room for another relayed port. The second limit binds where it holds
    /// ports that other shards reserved.
    fn is_full(&self) -> bool {
        let most = self
            .config
            .limits
            .max_allocations
            .min(self.config.ports_per_shard());
        self.allocations.ports() >= most as usize
    }

    fn take_port(
        &mut self,
        now: Timestamp,
        wish: &Wish,
        from: Endpoint,
        user: &Arc<str>,
    ) -> Result<TakenPort, Code> {
        let reserve_next = match wish.port {
            PortWish::Any => false,
            PortWish::Even { reserve_next } => reserve_next,
            PortWish::Reserved(token) => {
                // RFC 8656 §7.2: a token that is "not valid (e.g., no longer available)" is refused
                // with 508. Its port was counted for the user when it was reserved.
                let reserved = self
                    .shared
                    .claim(token, user, now)
                    .ok_or(Code::INSUFFICIENT_CAPACITY)?;
                return Ok(TakenPort {
                    address: reserved.address,
                    port: reserved.port,
                    token: None,
                    network: reserved.network,
                    refused: None,
                });
            }
        };
        let count = 1 + u32::from(reserve_next);
        let network = Network::of(from.client.ip());
        let quotas = self.shared.quotas();
        quotas
            .charge(user, network, count, &self.config.limits)
            .map_err(|quota| self.over_quota(quota))?;
        self.collect_returned_ports();
        let taken = self.take_first_port(wish, from).and_then(|taken| {
            let (address, port) = (taken.address, taken.port);
            let token = reserve_next
                .then(|| self.reserve_next(now, address, port, user, network))
                .transpose()?;
            Ok(TakenPort { token, ..taken })
        });
        if taken.is_err() {
            self.shared.quotas().release(user, network, count);
        }
        taken
    }

    /// Takes the port that is opened first: of the family wished for, or of IPv6 where both are
    /// wished for and IPv4 is not to be had.
    fn take_first_port(&mut self, wish: &Wish, from: Endpoint) -> Result<TakenPort, Code> {
        let taken = |(address, port), refused| TakenPort {
            address,
            port,
            token: None,
            network: Network::of(from.client.ip()),
            refused,
        };
        let refused = match self.take_free_port(wish.family, wish.port, from) {
            Ok(port) => return Ok(taken(port, None)),
            Err(code) if !wish.second_family => return Err(code),
            Err(code) => (wish.family, code),
        };
        // RFC 8656 §7.2: where neither family is to be had, "the server rejects the request with a 508
        // (Insufficient Capacity) error".
        match self.take_free_port(Family::V6, wish.port, from) {
            Ok(port) => Ok(taken(port, Some(refused))),
            Err(_) => Err(Code::INSUFFICIENT_CAPACITY),
        }
    }

    fn take_free_port(
        &mut self,
        family: Family,
        wish: PortWish,
        from: Endpoint,
    ) -> Result<(u8, u16), Code> {
        let address = self.relay_address(family, from)?;
        let pool = &mut self.pools[usize::from(address)];
        let port = match wish {
            PortWish::Any => pool.take(&mut self.rng),
            PortWish::Even { reserve_next } => pool.take_even(&mut self.rng, reserve_next),
            PortWish::Reserved(_) => None,
        };
        Ok((address, port.ok_or(Code::INSUFFICIENT_CAPACITY)?))
    }

    /// Keeps the port above `port`, which was taken with it, under a token; gives both back where
    /// there are too many reservations.
    fn reserve_next(
        &mut self,
        now: Timestamp,
        address: u8,
        port: u16,
        user: &Arc<str>,
        network: Network,
    ) -> Result<[u8; 8], Code> {
        let mut token = [0; 8];
        self.rng.fill_bytes(&mut token);
        let expires = now + RESERVATION_LIFETIME;
        let reservation = Reservation {
            address,
            port: port | 1,
            user: Arc::clone(user),
            network,
            expires,
        };
        if !self.shared.reserve(token, reservation) {
            self.release_port(address, port);
            self.release_port(address, port | 1);
            return Err(Code::INSUFFICIENT_CAPACITY);
        }
        self.reserved.push_back((expires, token));
        Ok(token)
    }

    /// The relay address a request gets: the one it came to, else the first of the family.
    fn relay_address(&self, family: Family, from: Endpoint) -> Result<u8, Code> {
        let addresses = || {
            self.config
                .relay_addresses
                .iter()
                .map(|address| address.local)
        };
        let of_family = |local: &std::net::IpAddr| Family::of(*local) == family;
        addresses()
            .position(|local| local == from.server && of_family(&local))
            .or_else(|| addresses().position(|local| of_family(&local)))
            .and_then(|index| u8::try_from(index).ok())
            // RFC 8656 §7.2: a family "not supported by the server" is refused with 440.
            .ok_or(Code::ADDRESS_FAMILY_NOT_SUPPORTED)
    }

    /// Asks the shell for the relayed port that an allocation waits for.
    fn open_port(&mut self, id: PortId) {
        let Some((allocation, _)) = self.allocations.get_mut(id) else {
            return;
        };
        let Relayed {
            id: port,
            port: number,
            address,
            ..
        } = *allocation.asked_for();
        let address = self.config.relay_addresses[usize::from(address)];
        let local = (address.local, number).into();
        self.commands
            .push_back(RelayCommand::OpenPort { port, local });
    }

    pub(crate) fn port_opened(&mut self, now: Timestamp, port: PortId) {
        let Some(id) = self.allocations.owner_of(port) else {
            return;
        };
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        match allocation.state {
            State::Opening { then_v6: true, .. } => self.open_second(now, id),
            State::Opening { then_v6: false, .. } => self.begin(now, id),
            State::Live | State::Dual => {}
        }
    }

    /// Asks for an IPv6 port beside the IPv4 port, which is open.
    fn open_second(&mut self, now: Timestamp, id: PortId) {
        let taken = if self.is_full() {
            Err(Code::INSUFFICIENT_CAPACITY)
        } else {
            self.take_v6_port(id)
        };
        let (address, port) = match taken {
            Ok(taken) => taken,
            Err(code) => {
                self.begin_without_v6(now, id, code);
                return;
            }
        };
        let number = self.allocations.add_second(id);
        let (allocation, _) = self
            .allocations
            .get_mut(id)
            .expect("its first port is open");
        allocation.details.second = Some(Relayed {
            id: number,
            port,
            address,
            family: Family::V6,
            expires: allocation.expires,
        });
        allocation.state = State::Opening {
            tries_left: PORT_TRIES,
            then_v6: false,
        };
        self.open_port(id);
        self.count_allocations();
    }

    /// Goes on without the IPv6 port, which is not to be had.
    fn begin_without_v6(&mut self, now: Timestamp, id: PortId, code: Code) {
        let Some((allocation, _)) = self.allocations.get_mut(id) else {
            return;
        };
        allocation.details.refused = Some((Family::V6, code));
        if let Some(second) = allocation.details.second.take() {
            self.give_back(id, &second);
            self.count_allocations();
        }
        self.begin(now, id);
    }

    fn take_v6_port(&mut self, id: PortId) -> Result<(u8, u16), Code> {
        let allocation = self
            .allocations
            .get(id)
            .ok_or(Code::INSUFFICIENT_CAPACITY)?;
        let wish = if allocation.details.even {
            PortWish::Even {
                reserve_next: false,
            }
        } else {
            PortWish::Any
        };
        let from = Endpoint::of(&allocation.flow);
        self.take_free_port(Family::V6, wish, from)
    }

    /// All ports that were to be had are open: the client is told.
    fn begin(&mut self, now: Timestamp, id: PortId) {
        let Some((allocation, _)) = self.allocations.get_mut(id) else {
            return;
        };
        allocation.state = match allocation.details.second {
            None => State::Live,
            Some(_) => State::Dual,
        };
        let expires = allocation.expires;
        allocation.timer = Some(self.timers.start(expires.max(now), id));
        for relayed in allocation.relayed() {
            let address = usize::from(relayed.address);
            self.shared.set_live(address, relayed.port, true);
        }
        self.counters.allocations_made.increment();
        if let Some(allocation) = self.allocations.get(id) {
            let envelope = Self::allocate_envelope(allocation);
            self.send_success(id, &envelope);
        }
        if let Some(allocation) = self.allocations.get(id) {
            let owner = self.owner(allocation);
            let lifetime = Duration::from_secs(allocation.details.lifetime_s.into());
            self.notify(Notice::AllocationMade { owner, lifetime });
        }
    }

    pub(crate) fn port_failed(&mut self, now: Timestamp, port: PortId, error: PortError) {
        let Some(id) = self.allocations.owner_of(port) else {
            return;
        };
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        let State::Opening {
            tries_left,
            then_v6,
        } = allocation.state
        else {
            return;
        };
        let is_second = allocation.details.second.is_some();
        if error == PortError::InUse && tries_left > 0 && self.try_another(id) {
            return;
        }
        if is_second {
            self.begin_without_v6(now, id, Code::INSUFFICIENT_CAPACITY);
        } else if !(then_v6 && self.try_v6_instead(id)) {
            self.give_up(now, id);
        }
    }

    /// Asks for another port in place of one that somebody else has, or for another pair.
    fn try_another(&mut self, id: PortId) -> bool {
        let Some((allocation, _)) = self.allocations.get_mut(id) else {
            return false;
        };
        let (even, token) = (allocation.details.even, allocation.details.token);
        let relayed = allocation.asked_for();
        let (address, refused) = (relayed.address, relayed.port);
        let pool = &mut self.pools[usize::from(address)];
        let another = if even {
            pool.take_even(&mut self.rng, token.is_some())
        } else {
            pool.take(&mut self.rng)
        };
        let Some(port) = another else {
            return false;
        };
        relayed.port = port;
        if let State::Opening { tries_left, .. } = &mut allocation.state {
            *tries_left -= 1;
        }
        self.release_port(address, refused);
        if let Some(token) = token {
            // Nobody was told of the token yet; where the shell took longer to answer than it is
            // good, nothing is kept under it.
            let unused = self.shared.move_reservation(token, port | 1);
            self.release_port(address, unused.unwrap_or(port | 1));
        }
        self.open_port(id);
        true
    }

    /// Asks for an IPv6 port in place of the IPv4 port, which is not to be had.
    fn try_v6_instead(&mut self, id: PortId) -> bool {
        let Ok((address, port)) = self.take_v6_port(id) else {
            return false;
        };
        let Some((allocation, _)) = self.allocations.get_mut(id) else {
            return false;
        };
        allocation.details.refused = Some((Family::V4, Code::INSUFFICIENT_CAPACITY));
        allocation.state = State::Opening {
            tries_left: PORT_TRIES,
            then_v6: false,
        };
        let relayed = &mut allocation.details.relayed;
        let failed = std::mem::replace(
            relayed,
            Relayed {
                port,
                address,
                family: Family::V6,
                ..*relayed
            },
        );
        self.release_port(failed.address, failed.port);
        self.open_port(id);
        true
    }

    /// Refuses an Allocate request whose port could not be opened.
    fn give_up(&mut self, now: Timestamp, id: PortId) {
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        let envelope = Self::allocate_envelope(allocation);
        let reserved = allocation.details.reserved;
        // Nobody was told of the port that was reserved with this one.
        if let Some(token) = allocation.details.token {
            self.end_reservation(token);
        }
        self.forget(now, id);
        let full = Code::INSUFFICIENT_CAPACITY.into();
        let refusal = self.or_alternate(full, envelope.to.client, reserved);
        self.refuse(&envelope, refusal);
    }

    /// The envelope of the answer to the request that made an allocation.
    fn allocate_envelope(allocation: &Allocation) -> Envelope {
        let details = &allocation.details;
        Envelope {
            kind: RequestKind::Allocate,
            to: Endpoint::of(&allocation.flow),
            transaction: details.transaction,
            fingerprint: details.fingerprint,
            signed: Some((Arc::clone(&details.user), details.integrity)),
            limit: MAX_ANSWER_BYTES,
        }
    }

    /// RFC 8656 §7.2: success carries XOR-RELAYED-ADDRESS, two for a dual allocation, LIFETIME,
    /// RESERVATION-TOKEN where a port was reserved, and XOR-MAPPED-ADDRESS; and ADDRESS-ERROR-CODE
    /// where one of two families was refused; RFC 8016 §3.1.2: MOBILITY-TICKET where
    /// one was asked for.
    fn send_success(&mut self, id: PortId, envelope: &Envelope) {
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        let details = &allocation.details;
        let relayed = XorRelayedAddress(self.public(&details.relayed));
        let second = details
            .second
            .map(|second| XorRelayedAddress(self.public(&second)));
        let (lifetime, token) = (details.lifetime_s, details.token.map(ReservationToken));
        let mapped = allocation.flow.client();
        let refused = details.refused.map(|(family, code)| AddressErrorCode {
            family,
            code,
            reason: "",
        });
        let ticket = self.mobiles.ticket(id);
        let ticket = ticket.as_ref().map(|ticket| MobilityTicket(ticket));
        self.succeed(envelope, |writer| {
            writer
                .put(&relayed)?
                .put_some(second.as_ref())?
                .put(&Lifetime(lifetime))?
                .put_some(token.as_ref())?
                .put(&XorMappedAddress(mapped))?
                .put_some(refused.as_ref())?
                .put_some(ticket.as_ref())?;
            Ok(())
        });
    }

    /// Puts a port back where it belongs.
    pub(crate) fn release_port(&mut self, address: u8, port: u16) {
        let home = shard_of_port(port, self.config.shards);
        if home != self.shard {
            self.shared.return_port(home, address, port);
            return;
        }
        let given_back = self.pools[usize::from(address)].give_back(port);
        assert!(
            given_back,
            "a relayed port is given back once, by the allocation that had it"
        );
    }

    pub(crate) fn collect_returned_ports(&mut self) {
        for (address, port) in self.shared.take_returned(self.shard) {
            self.release_port(address, port);
        }
    }

    /// Ends the reservations whose time is over.
    pub(crate) fn end_reservations(&mut self, now: Timestamp) {
        while let Some((_, token)) = self.reserved.pop_front_if(|(expires, _)| *expires <= now) {
            self.end_reservation(token);
        }
        self.count_allocations();
    }

    /// Ends a reservation, unless its port was claimed.
    fn end_reservation(&mut self, token: [u8; 8]) {
        if let Some(unclaimed) = self.shared.end_reservation(token) {
            self.release_port(unclaimed.address, unclaimed.port);
            self.shared
                .quotas()
                .release(&unclaimed.user, unclaimed.network, 1);
        }
    }
}

/// Reads an Allocate request (RFC 8656 §7.2).
fn read_wish(message: &Message<'_>, limits: &RelayLimits) -> Result<Wish, Code> {
    let bad = |_: ValueError| Code::BAD_REQUEST;
    // "If the attribute is not included or is malformed, the server rejects the request with a 400
    // (Bad Request) error. … anything other than UDP …: 442."
    let transport = message
        .get::<RequestedTransport>()
        .map_err(bad)?
        .ok_or(Code::BAD_REQUEST)?;
    if transport != RequestedTransport::UDP {
        return Err(Code::UNSUPPORTED_TRANSPORT);
    }
    let lifetime = granted_lifetime(message, limits)?.unwrap_or(limits.default_lifetime);
    let even = message.get::<EvenPort>().map_err(bad)?;
    let token = message.get::<ReservationToken>().map_err(bad)?;
    // RFC 8656 §7.2: ADDITIONAL-ADDRESS-FAMILY asks for IPv6 beside IPv4; "if … the attribute value is
    // 0x01 (IPv4 address family), then the server rejects the request with a 400".
    let second_family = match additional_family(message).map_err(bad)? {
        None => false,
        Some(Family::V6) => true,
        Some(Family::V4) => return Err(Code::BAD_REQUEST),
    };
    let family = match message.get::<RequestedAddressFamily>() {
        Ok(family) => family.map(|family| family.0),
        Err(ValueError::Family { .. }) => return Err(Code::ADDRESS_FAMILY_NOT_SUPPORTED),
        Err(error) => return Err(bad(error)),
    };
    // "… also contains an EVEN-PORT, REQUESTED-ADDRESS-FAMILY or ADDITIONAL-ADDRESS-FAMILY
    // attribute", or both families' attributes, "… 400 (Bad Request)".
    let contradiction = (token.is_some() && (even.is_some() || family.is_some() || second_family))
        || (second_family && (family.is_some() || even.is_some_and(|even| even.reserve_next)));
    if contradiction {
        return Err(Code::BAD_REQUEST);
    }
    let port = match (token, even) {
        (Some(ReservationToken(token)), _) => PortWish::Reserved(token),
        (None, Some(EvenPort { reserve_next })) => PortWish::Even { reserve_next },
        (None, None) => PortWish::Any,
    };
    Ok(Wish {
        family: family.unwrap_or(Family::V4),
        port,
        lifetime,
        second_family,
    })
}

/// The additional family, by its number or by the one that it had in a draft.
fn additional_family(message: &Message<'_>) -> Result<Option<Family>, ValueError> {
    if let Some(AdditionalAddressFamily(family)) = message.get()? {
        return Ok(Some(family));
    }
    let early = message.get::<EarlyAdditionalAddressFamily>()?;
    Ok(early.map(|EarlyAdditionalAddressFamily(family)| family))
}

/// The lifetime that LIFETIME is granted: never less than the default, never more than the longest,
/// and zero for zero, which only Refresh takes for a deletion.
pub(super) fn granted_lifetime(
    message: &Message<'_>,
    limits: &RelayLimits,
) -> Result<Option<Duration>, Code> {
    let wish = message.get::<Lifetime>().map_err(|_| Code::BAD_REQUEST)?;
    Ok(wish.map(|Lifetime(wish)| {
        let wish = Duration::from_secs(wish.into());
        wish.clamp(limits.default_lifetime, limits.max_lifetime)
    }))
}

/// A lifetime as LIFETIME carries it.
pub(super) fn seconds(lifetime: Duration) -> u32 {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX)
}
