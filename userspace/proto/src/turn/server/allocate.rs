//! Allocate (RFC 8656 §7): from a request to an open relayed port.
//!
//! ```text
//!   request ─▶ checks ─▶ a port is taken ─▶ OpenPort ─▶ PortOpened ─▶ success response, Live
//!                                             ▲   └──▶ PortFailed ─▶ another port, or 508
//!                                             └──────────────────────┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use rand_chacha::rand_core::Rng;

use super::allocation::{Allocation, Details, State};
use super::channels::Channels;
use super::permissions::Permissions;
use super::unknown_attributes;
use crate::Timestamp;
use crate::auth::Authenticated;
use crate::machine::PortId;
use crate::ports::shard_of_port;
use crate::relay::{
    DropReason, Endpoint, Envelope, MAX_ANSWER_BYTES, Notice, PortError, Refusal, Relay,
    RelayCommand, RelayLimits, Request, RequestKind, Reservation, Traffic,
};
use crate::slots::Identity;
use crate::wire::attribute::{
    AdditionalAddressFamily, AddressErrorCode, EvenPort, Family, Lifetime, RequestedAddressFamily,
    RequestedTransport, ReservationToken, ValueError, XorMappedAddress, XorRelayedAddress,
};
use crate::wire::{Code, Message};

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

#[derive(Debug)]
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
    counted_for_user: bool,
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
        if self.allocations.find(&request.from.flow()).is_some() {
            // The shell has owed an answer for a whole lifetime.
            self.counters.drops(DropReason::StillOpening).increment();
            return;
        }
        match self.try_allocate(now, request, sender) {
            Ok(()) => {}
            Err(refusal) => self.refuse(&envelope, refusal),
        }
    }

    fn allocate_again(&mut self, id: PortId, envelope: &Envelope) {
        let Some(known) = self.allocations.get(id) else {
            return;
        };
        if known.details.transaction != envelope.transaction {
            self.refuse(envelope, Code::ALLOCATION_MISMATCH.into());
        } else if known.state == State::Live {
            self.counters.retransmissions.increment();
            self.send_success(id);
        } else {
            self.counters.drops(DropReason::StillOpening).increment();
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
        let wish = read_wish(&request.message, &self.config.limits)?;
        // A shard that drains, or is full, has no capacity for new allocations.
        // The second limit binds where this shard holds ports that others reserved.
        let most = self
            .config
            .limits
            .max_allocations
            .min(self.config.ports_per_shard());
        let full = self.allocations.len() >= most as usize;
        if self.draining || full {
            return Err(Code::INSUFFICIENT_CAPACITY.into());
        }
        let user = sender.user.name();
        let identity = Identity::user(&self.config.realm, user);
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
        let id = self.allocations.insert(Allocation {
            flow: request.from.flow(),
            expires: now + wish.lifetime,
            channels: Channels::default(),
            permissions: Permissions::default(),
            traffic: Traffic::default(),
            policy_version: self.policy_version,
            slot,
            port: taken.port,
            address: taken.address,
            state: State::Opening { tries_left },
            timer: None,
            details: Box::new(Details {
                integrity: sender.integrity,
                user: sender.user,
                transaction: request.message.transaction_id(),
                fingerprint: request.message.has_fingerprint(),
                counted_for_user: taken.counted_for_user,
                family: Family::of(self.config.relay_addresses[usize::from(taken.address)].local),
                even: matches!(wish.port, PortWish::Even { .. }),
                no_second_family: wish.second_family,
                lifetime: wish.lifetime,
                token: taken.token,
            }),
        });
        self.open_port(id);
        self.count_allocations();
        Ok(())
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
                    counted_for_user: reserved.counted_for_user,
                });
            }
        };
        let count = 1 + u32::from(reserve_next);
        let counted_for_user = match self.config.limits.allocations_per_user {
            None => false,
            Some(limit) if self.shared.charge_user(user, count, limit) => true,
            Some(_) => return Err(Code::ALLOCATION_QUOTA_REACHED),
        };
        self.collect_returned_ports();
        let taken = self.take_free_port(wish, from).and_then(|(address, port)| {
            let token = reserve_next
                .then(|| self.reserve_next(now, address, port, user, counted_for_user))
                .transpose()?;
            Ok(TakenPort {
                address,
                port,
                token,
                counted_for_user,
            })
        });
        if taken.is_err() && counted_for_user {
            self.shared.release_user(user, count);
        }
        taken
    }

    fn take_free_port(&mut self, wish: &Wish, from: Endpoint) -> Result<(u8, u16), Code> {
        let address = self.relay_address(wish.family, from)?;
        let pool = &mut self.pools[usize::from(address)];
        let port = match wish.port {
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
        counted_for_user: bool,
    ) -> Result<[u8; 8], Code> {
        let mut token = [0; 8];
        self.rng.fill_bytes(&mut token);
        let expires = now + RESERVATION_LIFETIME;
        let reservation = Reservation {
            address,
            port: port | 1,
            user: Arc::clone(user),
            counted_for_user,
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

    /// Asks the shell for the relayed port of an allocation.
    fn open_port(&mut self, id: PortId) {
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        let address = self.config.relay_addresses[usize::from(allocation.address)];
        let local = (address.local, allocation.port).into();
        self.commands
            .push_back(RelayCommand::OpenPort { port: id, local });
    }

    pub(crate) fn port_opened(&mut self, now: Timestamp, id: PortId) {
        let Some((allocation, _)) = self.allocations.get_mut(id) else {
            return;
        };
        if !matches!(allocation.state, State::Opening { .. }) {
            return;
        }
        allocation.state = State::Live;
        let (address, port) = (usize::from(allocation.address), allocation.port);
        let expires = allocation.expires;
        self.shared.set_live(address, port, true);
        let timer = self.timers.start(expires.max(now), id);
        if let Some((allocation, _)) = self.allocations.get_mut(id) {
            allocation.timer = Some(timer);
        }
        self.counters.allocations_made.increment();
        self.send_success(id);
        if let Some(allocation) = self.allocations.get(id) {
            let owner = self.owner(allocation);
            let lifetime = allocation.details.lifetime;
            self.notify(Notice::AllocationMade { owner, lifetime });
        }
    }

    pub(crate) fn port_failed(&mut self, now: Timestamp, id: PortId, error: PortError) {
        let Some((allocation, _)) = self.allocations.get_mut(id) else {
            return;
        };
        let State::Opening { tries_left } = &mut allocation.state else {
            return;
        };
        let (address, refused) = (allocation.address, allocation.port);
        // A pair of ports has no equal once its token was made.
        let replaceable = allocation.details.token.is_none();
        if error == PortError::InUse && *tries_left > 0 && replaceable {
            *tries_left -= 1;
            let pool = &mut self.pools[usize::from(address)];
            let another = if allocation.details.even {
                pool.take_even(&mut self.rng, false)
            } else {
                pool.take(&mut self.rng)
            };
            if let Some(port) = another {
                allocation.port = port;
                self.release_port(address, refused);
                self.open_port(id);
                return;
            }
        }
        let envelope = Self::allocate_envelope(allocation);
        // Nobody was told of the port that was reserved with this one.
        if let Some(token) = allocation.details.token {
            self.end_reservation(token);
        }
        self.forget(now, id);
        self.refuse(&envelope, Code::INSUFFICIENT_CAPACITY.into());
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

    /// RFC 8656 §7.2: success carries XOR-RELAYED-ADDRESS, LIFETIME, RESERVATION-TOKEN where a port
    /// was reserved, and XOR-MAPPED-ADDRESS.
    fn send_success(&mut self, id: PortId) {
        let Some(allocation) = self.allocations.get(id) else {
            return;
        };
        let envelope = Self::allocate_envelope(allocation);
        let relayed = self.relayed(allocation);
        let details = &allocation.details;
        let (lifetime, token) = (
            seconds(details.lifetime),
            details.token.map(ReservationToken),
        );
        let mapped = allocation.flow.client();
        let refused = details.no_second_family.then_some(AddressErrorCode {
            family: Family::V6,
            code: Code::ADDRESS_FAMILY_NOT_SUPPORTED,
            reason: "",
        });
        self.succeed(&envelope, |writer| {
            writer
                .put(&XorRelayedAddress(relayed))?
                .put(&Lifetime(lifetime))?
                .put_some(token.as_ref())?
                .put(&XorMappedAddress(mapped))?
                .put_some(refused.as_ref())?;
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
            if unclaimed.counted_for_user {
                self.shared.release_user(&unclaimed.user, 1);
            }
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
    // RFC 8656 §7.2: ADDITIONAL-ADDRESS-FAMILY asks for IPv6 beside IPv4; IPv4 in it is a 400.
    let second_family = match message.get::<AdditionalAddressFamily>().map_err(bad)? {
        None => false,
        Some(AdditionalAddressFamily(Family::V6)) => true,
        Some(AdditionalAddressFamily(Family::V4)) => return Err(Code::BAD_REQUEST),
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
