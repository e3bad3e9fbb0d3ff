//! The relay's machine, one per shard, and what it is configured with, asked and told.
//!
//! ```text
//!   listener ── ChannelData, Send ──▶ turn::server::data ──▶ relayed port     answered in place
//!            ── requests ───────────▶ turn::server::*, stun::server ──▶ outbox, commands
//!   relayed port ── anything ───────▶ turn::server::data ──▶ listener         answered in place
//! ```

mod attempts;
mod config;
mod counters;
mod event;
mod moved;
mod outbox;
mod quota;
mod request;
mod rest;
mod shared;
mod strangers;
mod users;

pub use attempts::AttemptLimits;
pub use config::{RelayAddress, RelayConfig, RelayConfigError, RelayLimits};
pub use counters::{Counter, DropReason, ERROR_CODES, RelayCounters, RequestKind};
pub use event::{
    AllocationOwner, EndReason, Metered, Notice, PortError, RelayCommand, RelayEvent, RouteTarget,
    Traffic,
};
pub use quota::{Quota, QuotaUse, Quotas};
pub use rest::{RestName, RestSecret, RestSecretError};
pub use shared::RelayShared;
pub use strangers::StrangerLimits;
pub use users::{Credential, User, Users};

pub use crate::turn::server::NewPeers;

pub(crate) use moved::Place;
pub(crate) use outbox::MAX_ANSWER_BYTES;
pub(crate) use quota::Network;
pub(crate) use request::{Endpoint, Envelope, Refusal, Request};
pub(crate) use shared::Reservation;
pub(crate) use strangers::Strangers;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;
use towpath_ebpf_common::lease::Lease;
use towpath_ebpf_common::meter::PacketSize;

use crate::access::PeerPolicy;
use crate::machine::{
    Datagram, IcmpError, ListenerId, PortId, ShardId, Socket, TrafficClass, Transmit,
};
use crate::nonce::NonceKey;
use crate::ports::PortPool;
use crate::slots::Slots;
use crate::stun::behavior::Discovery;
use crate::timer::Timers;
use crate::turn::server::{
    Allocations, Deleted, IcmpBudgets, Mobiles, Relayed, Routes, is_in_a_loop,
};
use crate::wire::{Class, Kind, Message, Method, ParseError, classify};
use crate::{Machine, Timestamp, WallClock};
use outbox::Outbox;

/// Notices and datagrams for other shards wait here while there are no more commands than this;
/// further ones are counted and lost.
const MAX_COMMANDS_THAT_WAIT: usize = 4096;

/// Timers and allocations looked at in one call of `handle_timeout`.
const TIMEOUT_BUDGET: u32 = 256;

/// A shard of the relay: STUN and TURN over UDP.
#[derive(Debug)]
pub struct Relay {
    pub(crate) shard: ShardId,
    pub(crate) config: Arc<RelayConfig>,
    pub(crate) shared: Arc<RelayShared>,
    pub(crate) counters: Arc<RelayCounters>,
    pub(crate) policy: PeerPolicy,
    /// Grows when users or rules change; allocations are looked at again one by one.
    pub(crate) policy_version: u32,
    pub(crate) nonces: NonceKey,
    /// For credentials that end at a time of day. Until it is known they are refused.
    pub(crate) clock: Option<WallClock>,
    pub(crate) rng: ChaCha12Rng,
    /// The free ports, by relay address.
    pub(crate) pools: Vec<PortPool>,
    pub(crate) allocations: Allocations,
    pub(crate) timers: Timers<PortId>,
    pub(crate) deleted: Deleted,
    pub(crate) mobiles: Mobiles,
    /// Tokens of reserved ports by the end of their time.
    pub(crate) reserved: VecDeque<(Timestamp, [u8; 8])>,
    pub(crate) outbox: Outbox,
    /// The limits on strangers as they are charged.
    stranger_paces: towpath_ebpf_common::strangers::StrangerLimits,
    /// The other addresses and ports, where there are any.
    pub(crate) discovery: Option<Box<Discovery>>,
    /// The alternate server of the next 300, as an index that wraps.
    pub(crate) next_alternate: usize,
    pub(crate) icmp_budgets: IcmpBudgets,
    pub(crate) commands: VecDeque<RelayCommand>,
    pub(crate) routes: Routes,
    pub(crate) draining: bool,
    pub(crate) slots: Arc<dyn Slots>,
    /// This shard's part of the limit on everybody.
    pub(crate) lease: Lease,
    /// Whether some relay address has another public address.
    pub(crate) translates: bool,
    /// The next allocation to apply changed rules to.
    rules_cursor: Option<u32>,
    ports_in_all: usize,
}

impl Relay {
    /// One shard of a relay. The configuration must have passed [`RelayConfig::validate`]; `seed`
    /// comes from the operating system (or from a test), is different for every shard, and is what
    /// ports, tokens and hash tables are random by.
    pub fn new(
        config: Arc<RelayConfig>,
        shared: Arc<RelayShared>,
        shard: ShardId,
        seed: [u8; 32],
    ) -> Self {
        config.users.prepare(&config.realm);
        let mut rng = ChaCha12Rng::from_seed(seed);
        let pool = |_| PortPool::new(config.port_range.clone(), shard, config.shards);
        let pools: Vec<_> = config.relay_addresses.iter().map(pool).collect();
        let discovery = config
            .behavior
            .as_ref()
            .map(|addresses| Box::new(Discovery::new(addresses, &config.listeners, &mut rng)));
        Self {
            shard,
            counters: Arc::default(),
            policy: PeerPolicy::new(&config),
            policy_version: 0,
            nonces: NonceKey::new(&config.nonce_secret),
            clock: None,
            allocations: Allocations::new(&mut rng),
            mobiles: Mobiles::new(&config, shard, &mut rng),
            stranger_paces: shared.strangers().paces(&config.limits.strangers),
            discovery,
            next_alternate: usize::from(shard.0),
            icmp_budgets: IcmpBudgets::new(),
            rng,
            ports_in_all: pools.iter().map(PortPool::len).sum(),
            pools,
            timers: Timers::new(),
            deleted: Deleted::new(),
            reserved: VecDeque::new(),
            outbox: Outbox::default(),
            commands: VecDeque::new(),
            routes: Routes::new(&config),
            draining: false,
            slots: Arc::clone(shared.slots()),
            lease: Lease::EMPTY,
            translates: config.relay_addresses.iter().any(|a| a.local != a.public),
            rules_cursor: None,
            shared,
            config,
        }
    }

    /// What this shard counts, for any thread to read.
    pub fn counters(&self) -> Arc<RelayCounters> {
        Arc::clone(&self.counters)
    }

    /// What came to a listening address and is not ChannelData.
    #[inline(never)]
    fn listener_datagram(
        &mut self,
        now: Timestamp,
        listener: ListenerId,
        datagram: &Datagram<'_>,
    ) -> Option<Transmit> {
        let from = Endpoint::sender(listener, datagram);
        let outcome = match classify(datagram.payload) {
            Kind::Stun => self.stun(now, from, datagram.payload, datagram.traffic_class),
            Kind::ChannelData | Kind::Other => Err(DropReason::Unrecognized),
        };
        outcome.unwrap_or_else(|reason| match reason {
            DropReason::NoAllocation => self.data_without_allocation(now, listener, datagram),
            reason => self.dropped(reason),
        })
    }

    pub(crate) fn stun(
        &mut self,
        now: Timestamp,
        from: Endpoint,
        payload: &[u8],
        class: TrafficClass,
    ) -> Result<Option<Transmit>, DropReason> {
        let message = match Message::parse(payload) {
            Ok(message) => message,
            Err(ParseError::Cookie { .. }) => {
                return self.classic_binding(now, from, payload).map(|()| None);
            }
            Err(ParseError::Short { .. } | ParseError::Type { .. }) => {
                return Err(DropReason::Unrecognized);
            }
            Err(
                ParseError::Length { .. }
                | ParseError::Overrun { .. }
                | ParseError::CheckLength { .. }
                | ParseError::AfterFingerprint { .. }
                | ParseError::TooManyAttributes,
            ) => return Err(DropReason::MalformedStun),
        };
        if from.client.port() == 0 {
            return Err(DropReason::UnusableDatagram);
        }
        // RFC 8489 §6.3: a message whose FINGERPRINT is wrong is silently discarded.
        if message.has_fingerprint() && message.check_fingerprint().is_err() {
            return Err(DropReason::WrongFingerprint);
        }
        match (message.class(), message.method()) {
            (Class::Indication, Method::SEND) => self
                .send_indication(now, &message, from)
                .map(|out| Some(out.transmit(class))),
            (Class::Indication, Method::BINDING) => {
                self.counters.binding_indications.increment();
                Ok(None)
            }
            (Class::Request, method) => {
                let kind = request_kind(method).ok_or(DropReason::UnexpectedMessage)?;
                self.request(
                    now,
                    &Request {
                        kind,
                        message,
                        from,
                    },
                );
                Ok(None)
            }
            (Class::Indication | Class::Success | Class::Error, _) => {
                Err(DropReason::UnexpectedMessage)
            }
        }
    }

    fn request(&mut self, now: Timestamp, request: &Request<'_>) {
        if let Some(shard) = self.shard_of_request(request) {
            // Answers leave in the ordinary class, whatever the request's.
            let class = TrafficClass::ORDINARY;
            self.hand_over(shard, request.from, class, request.message.as_bytes());
            return;
        }
        self.counters.requests(request.kind).increment();
        match request.kind {
            RequestKind::Binding => self.binding(now, request),
            RequestKind::Allocate => self.allocate(now, request),
            RequestKind::Refresh => self.refresh(now, request),
            RequestKind::CreatePermission => self.create_permission(now, request),
            RequestKind::ChannelBind => self.channel_bind(now, request),
        }
    }

    /// Takes over what may change while the relay runs.
    fn reconfigure(&mut self, config: &RelayConfig) {
        let limits = RelayLimits {
            max_routes: self.config.limits.max_routes,
            ..config.limits.clone()
        };
        let config = RelayConfig {
            limits,
            listeners: self.config.listeners.clone(),
            behavior: self.config.behavior.clone(),
            relay_addresses: self.config.relay_addresses.clone(),
            port_range: self.config.port_range.clone(),
            shards: self.config.shards,
            offload: self.config.offload,
            nonce_secret: self.config.nonce_secret,
            ..config.clone()
        };
        config.users.prepare(&config.realm);
        self.policy = PeerPolicy::new(&config);
        self.stranger_paces = self.shared.strangers().paces(&config.limits.strangers);
        self.config = Arc::new(config);
        self.judge_all_again();
    }

    fn drain(&mut self) {
        self.draining = true;
        self.counters.draining.set(1);
    }

    /// Users' credentials end at other times by our clock than before.
    fn set_clock(&mut self, clock: WallClock) {
        self.clock = Some(clock);
        self.judge_all_again();
    }

    /// Has every allocation looked at again: with its next packet, or by and by.
    fn judge_all_again(&mut self) {
        self.policy_version = self.policy_version.wrapping_add(1);
        self.rules_cursor = Some(0);
    }

    /// Applies changed rules to allocations that no packet has come for.
    fn apply_rules_to_all(&mut self, now: Timestamp, budget: u32) {
        let Some(start) = self.rules_cursor else {
            return;
        };
        let end = self.allocations.slots().min(start.saturating_add(budget));
        let mut next = start;
        while next < end && !self.routes.is_busy() {
            self.judge_again(PortId(next), now);
            next += 1;
        }
        self.rules_cursor = (next < self.allocations.slots()).then_some(next);
    }

    /// The relayed transport address that clients and peers know.
    pub(crate) fn public(&self, relayed: &Relayed) -> SocketAddr {
        let address = self.config.relay_addresses[usize::from(relayed.address)];
        SocketAddr::new(address.public, relayed.port)
    }

    pub(crate) fn notify(&mut self, notice: Notice) {
        if self.commands.len() < MAX_COMMANDS_THAT_WAIT {
            self.commands.push_back(RelayCommand::Notify(notice));
        } else {
            self.counters.notices_lost.increment();
        }
    }

    /// Gives a datagram from a client to another shard.
    #[cold]
    pub(crate) fn hand_over(
        &mut self,
        to: ShardId,
        from: Endpoint,
        traffic_class: TrafficClass,
        payload: &[u8],
    ) {
        if self.commands.len() >= MAX_COMMANDS_THAT_WAIT {
            self.dropped(DropReason::OutputFull);
            return;
        }
        self.commands.push_back(RelayCommand::HandOver {
            to,
            listener: from.listener,
            local: from.server,
            remote: from.client,
            traffic_class,
            payload: payload.into(),
        });
    }

    /// Brings the counts of what exists up to date.
    pub(crate) fn count_allocations(&self) {
        let free: usize = self.pools.iter().map(PortPool::len).sum();
        self.counters.allocations.set(self.allocations.len() as u64);
        self.counters
            .ports_in_use
            .set((self.ports_in_all - free) as u64);
    }
}

impl Machine for Relay {
    type Command = RelayCommand;
    type Event = RelayEvent;

    #[inline]
    fn handle_datagram(&mut self, now: Timestamp, datagram: Datagram<'_>) -> Option<Transmit> {
        let (local, remote) = (datagram.local, datagram.remote);
        let class = datagram.traffic_class;
        match datagram.socket {
            Socket::Listener(listener) if classify(datagram.payload) == Kind::ChannelData => {
                match self.channel_data(now, listener, local, remote, datagram.payload) {
                    Ok(out) => Some(out.transmit(class)),
                    Err(DropReason::NoAllocation) => {
                        self.data_without_allocation(now, listener, &datagram)
                    }
                    Err(reason) => self.dropped(reason),
                }
            }
            Socket::Relayed(_) if is_in_a_loop(datagram.payload) => self.dropped(DropReason::Loop),
            Socket::Relayed(port) => match self.peer_data(now, port, remote) {
                Ok(from) => self.wrap(now, port, from, size_of_data(&datagram), class),
                Err(DropReason::NoSuchPort) => {
                    self.second_port_data(now, port, remote, size_of_data(&datagram), class)
                }
                Err(reason) => self.dropped(reason),
            },
            Socket::Listener(listener) => self.listener_datagram(now, listener, &datagram),
        }
    }

    fn handle_event(&mut self, now: Timestamp, event: RelayEvent) {
        match event {
            RelayEvent::PortOpened { port } => self.port_opened(now, port),
            RelayEvent::PortFailed { port, error } => self.port_failed(now, port, error),
            RelayEvent::Reconfigured(config) => self.reconfigure(&config),
            RelayEvent::WallClock(clock) => self.set_clock(clock),
            RelayEvent::Drain => self.drain(),
        }
    }

    fn handle_icmp(&mut self, now: Timestamp, error: IcmpError) {
        self.icmp_error(now, &error);
    }

    fn handle_timeout(&mut self, now: Timestamp) {
        let mut budget = TIMEOUT_BUDGET;
        // What is left stays due, and the shell calls again.
        while !self.routes.is_busy()
            && let Some(id) = self.timers.expire(now, &mut budget)
        {
            self.allocation_timer(now, id);
        }
        self.collect_returned_ports();
        self.end_reservations(now);
        self.apply_rules_to_all(now, TIMEOUT_BUDGET);
    }

    fn poll_transmit(&mut self, _now: Timestamp, buffer: &mut [u8]) -> Option<Transmit> {
        self.outbox.pop(buffer)
    }

    fn poll_command(&mut self) -> Option<RelayCommand> {
        // Routes first: those of a port go before it is closed.
        self.routes.pop().or_else(|| self.commands.pop_front())
    }

    fn poll_timeout(&self) -> Option<Timestamp> {
        let commands = !self.routes.is_idle() || !self.commands.is_empty();
        let output = commands || !self.outbox.is_empty();
        if output || self.rules_cursor.is_some() || self.shared.has_returned(self.shard) {
            return Some(Timestamp::ZERO);
        }
        let reservation = self.reserved.front().map(|(expires, _)| *expires);
        [self.timers.next_deadline(), reservation]
            .into_iter()
            .flatten()
            .min()
    }
}

/// What a peer's datagram counts for.
#[inline]
fn size_of_data(datagram: &Datagram<'_>) -> PacketSize {
    PacketSize::new(datagram.remote.is_ipv6(), datagram.payload.len() as u32)
}

fn request_kind(method: Method) -> Option<RequestKind> {
    match method {
        Method::BINDING => Some(RequestKind::Binding),
        Method::ALLOCATE => Some(RequestKind::Allocate),
        Method::REFRESH => Some(RequestKind::Refresh),
        Method::CREATE_PERMISSION => Some(RequestKind::CreatePermission),
        Method::CHANNEL_BIND => Some(RequestKind::ChannelBind),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
