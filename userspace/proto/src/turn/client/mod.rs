//! A TURN client (RFC 8656) without I/O: one allocation on one server.
//!
//! ```text
//!            allocate                 success               release
//!   Idle ──────────────▶ Allocating ──────────▶ Allocated ───────────▶ Releasing ──▶ Ended
//!                            │ refused, timed out   │ lost                             ▲
//!                            └──────────────────────┴──────────────────────────────────┘
//! ```
//!
//! The caller sends what [`Client::poll_transmit`] and [`Client::send`] write to the server, hands over
//! what comes back, and calls [`Client::handle_timeout`] when [`Client::poll_timeout`] says. The 401
//! round, retransmissions, and the renewal of allocation, permissions and channels happen by
//! themselves.
//!
//! An allocation that was made with [`ClientConfig::mobility`] follows the client to another address
//! (RFC 8016): the caller says [`Client::rebind`] and sends from there.

mod auth;
mod error;
mod peers;
mod redirect;
mod transaction;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use self::auth::{Session, takes_out_algorithms};
use self::peers::{Peers, Renewal};
use self::redirect::Servers;
use self::transaction::{Request, Transaction};
use crate::Timestamp;
use crate::stun::{Due, Schedule};
use crate::wire::attribute::{
    Data, ErrorCode, Family, Icmp, Lifetime, MobilityTicket, XorMappedAddress, XorPeerAddress,
    XorRelayedAddress,
};
use crate::wire::{
    AttributeType, ChannelData, ChannelNumber, Class, Code, Kind, Message, Method, TransactionId,
    WriteError, classify, send_indication,
};

pub use self::auth::Credentials;
pub use self::error::{AllocateError, Ignored, MoveError, PeerError, RequestError, SendError};

/// Most transactions at a time.
pub const MAX_TRANSACTIONS: usize = 64;
/// Most peers with a permission or a channel.
pub const MAX_PEERS: usize = 1024;
/// Most events that wait to be polled; the oldest goes first.
const MAX_EVENTS: usize = 4 * MAX_PEERS;
/// RFC 8656 §9: a permission lasts for 300 seconds; it is renewed a minute before.
const PEER_RENEWAL: Duration = Duration::from_secs(240);
/// How long after a failed renewal of the allocation the next is tried.
const REFRESH_RETRY: Duration = Duration::from_secs(5);
/// How often one request is sent with another nonce before it is given up.
const MAX_CHALLENGES: u8 = 3;
/// Longest ticket that is kept: with the longest of everything else a request still fits into the
/// 2,048 bytes that callers lend. A server with longer ones is one without mobility.
const MAX_TICKET_BYTES: usize = 256;

/// What a client is made for.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The server.
    pub server: SocketAddr,
    /// Name and password there. Shared by all clients that use them.
    pub credentials: Arc<Credentials>,
    /// The lifetime to ask for; `None` leaves it to the server.
    pub lifetime: Option<Duration>,
    /// Whether to ask that the allocation may follow the client to other addresses. Where the server
    /// forbids it there is an allocation without that.
    pub mobility: bool,
    /// When requests are sent again.
    pub schedule: Schedule,
}

/// What happened, for the caller to act on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The server sent us to another one: everything goes there from now on.
    Redirected(SocketAddr),
    /// There is an allocation.
    Allocated(Allocation),
    /// There is none.
    AllocateFailed(RequestError),
    /// The allocation ended against our will.
    Lost(RequestError),
    /// The allocation ended as asked.
    Released,
    /// The allocation followed the client to its new address: what peers send arrives there.
    Moved,
    /// Data may flow to and from this address.
    PermissionCreated(IpAddr),
    /// It may not, or no longer.
    PermissionFailed(IpAddr, RequestError),
    /// Data to this peer goes by ChannelData from now on.
    ChannelBound(SocketAddr, ChannelNumber),
    /// It does not, or no longer.
    ChannelFailed(SocketAddr, RequestError),
}

/// An allocation, as the server gave it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allocation {
    /// The address peers send to.
    pub relayed: SocketAddr,
    /// Our address, as the server sees it.
    pub mapped: SocketAddr,
    /// Its lifetime, as granted.
    pub lifetime: Duration,
}

/// What a datagram from the server held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received<'a> {
    /// Application data from a peer.
    Data {
        /// The peer.
        peer: SocketAddr,
        /// What it sent.
        payload: &'a [u8],
    },
    /// An ICMP message that the relay received about what we sent to a peer.
    Icmp {
        /// The peer.
        peer: SocketAddr,
        /// The message.
        icmp: Icmp,
    },
    /// A response to one of our requests: see [`Client::poll_event`].
    Response,
    /// Nothing for us.
    Ignored(Ignored),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Idle,
    Allocating,
    Allocated {
        allocation: Allocation,
        expires: Timestamp,
        refresh: Timestamp,
    },
    Releasing,
    Ended,
}

/// What the server knows of the client's address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// It sends there.
    Known,
    /// It knows another one: nothing but the request that tells it is sent.
    Unknown,
    /// It was told, and sends to the other one until it has seen the client here.
    Told,
}

/// The client. See the [module](self).
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    servers: Servers,
    rng: ChaCha8Rng,
    state: State,
    session: Option<Box<Session>>,
    /// What moves the allocation, where the server gave it.
    ticket: Option<Box<[u8]>>,
    place: Place,
    transactions: Vec<Transaction>,
    peers: Peers,
    events: VecDeque<Event>,
    deadline: Option<Timestamp>,
}

impl Client {
    /// A client that has not asked for anything. `seed` must be random: transaction ids come from it.
    pub fn new(config: ClientConfig, seed: [u8; 32]) -> Self {
        Self {
            servers: Servers::new(config.server),
            config,
            rng: ChaCha8Rng::from_seed(seed),
            state: State::Idle,
            session: None,
            ticket: None,
            place: Place::Known,
            transactions: Vec::new(),
            peers: Peers::default(),
            events: VecDeque::new(),
            deadline: None,
        }
    }

    /// Where everything is sent: the server of the configuration, or the one it sent us to.
    pub fn server(&self) -> SocketAddr {
        self.servers.current()
    }

    /// The allocation, while there is one.
    pub fn allocation(&self) -> Option<Allocation> {
        match self.state {
            State::Allocated { allocation, .. } => Some(allocation),
            State::Idle | State::Allocating | State::Releasing | State::Ended => None,
        }
    }

    /// Asks for an allocation; of the server's choice of family (IPv4) where none is given.
    pub fn allocate(
        &mut self,
        now: Timestamp,
        family: Option<Family>,
    ) -> Result<(), AllocateError> {
        match self.state {
            State::Idle | State::Ended => {}
            State::Allocating | State::Allocated { .. } | State::Releasing => {
                return Err(AllocateError::InUse);
            }
        }
        self.peers = Peers::default();
        self.transactions.clear();
        if self.servers.current() != self.config.server {
            self.servers = Servers::new(self.config.server);
            self.session = None;
        }
        (self.ticket, self.place) = (None, Place::Known);
        self.state = State::Allocating;
        let mobile = self.config.mobility;
        self.begin(now, Request::Allocate { family, mobile });
        Ok(())
    }

    /// Whether the allocation can follow the client to another address.
    pub fn is_mobile(&self) -> bool {
        self.ticket.is_some()
    }

    /// The client's address has changed: everything is sent from another socket from now on, or the
    /// network is another one. The allocation follows; [`Event::Moved`] says when it has.
    pub fn rebind(&mut self, now: Timestamp) -> Result<(), MoveError> {
        if self.allocation().is_none() {
            return Err(MoveError::NoAllocation);
        }
        if self.ticket.is_none() {
            return Err(MoveError::NotMobile);
        }
        self.place = Place::Unknown;
        let is_refresh = |t: &Transaction| matches!(t.request, Request::Refresh { .. });
        self.transactions.retain(|t| !is_refresh(t));
        self.begin_refresh(now);
        Ok(())
    }

    /// Refreshes the allocation, from where it is or from the client's new address. Not again before
    /// this has ended, which sets the next.
    fn begin_refresh(&mut self, now: Timestamp) {
        if let State::Allocated {
            expires, refresh, ..
        } = &mut self.state
        {
            *refresh = *expires;
        }
        let (release, moves) = (false, self.is_moving());
        self.begin(now, Request::Refresh { release, moves });
    }

    /// Asks that data may flow to and from this address, until the allocation ends.
    pub fn permit(&mut self, now: Timestamp, peer: IpAddr) -> Result<(), PeerError> {
        self.check_peer(peer)?;
        if self.peers.add_permission(peer)? {
            self.begin(now, Request::Permission { peer });
        }
        Ok(())
    }

    /// Binds a channel to this peer, which also permits it. Data goes by Send indication until the
    /// channel is bound.
    pub fn bind_channel(
        &mut self,
        now: Timestamp,
        peer: SocketAddr,
    ) -> Result<ChannelNumber, PeerError> {
        self.check_peer(peer.ip())?;
        let (channel, is_new) = self.peers.add_channel(peer)?;
        if is_new {
            self.begin(now, Request::Channel { peer, channel });
        }
        Ok(channel)
    }

    fn check_peer(&self, peer: IpAddr) -> Result<(), PeerError> {
        let allocation = self.allocation().ok_or(PeerError::NoAllocation)?;
        // RFC 8656 §9.1: a peer of the other family is answered 443.
        if allocation.relayed.is_ipv4() != peer.is_ipv4() {
            return Err(PeerError::Family {
                relayed: allocation.relayed.ip(),
                peer,
            });
        }
        if self.transactions.len() >= MAX_TRANSACTIONS {
            return Err(PeerError::Busy {
                transactions: self.transactions.len(),
            });
        }
        Ok(())
    }

    /// Writes `payload` for `peer` into `buffer`; returns how many bytes to send to the server:
    /// ChannelData where a channel is bound, else a Send indication.
    pub fn send(
        &mut self,
        peer: SocketAddr,
        payload: &[u8],
        buffer: &mut [u8],
    ) -> Result<usize, SendError> {
        if self.allocation().is_none() {
            return Err(SendError::NoAllocation);
        }
        // RFC 8016 §3.2.2: "it is RECOMMENDED that the client avoid transmitting a Send indication or
        // ChannelData message until it has received an acknowledgement for the Refresh request".
        if self.is_moving() {
            return Err(SendError::Moving);
        }
        let too_long = SendError::Length {
            payload_bytes: payload.len(),
            buffer: buffer.len(),
        };
        if let Some(channel) = self.peers.bound_channel(peer) {
            let message = ChannelData {
                channel,
                data: payload,
            };
            return message.write(buffer).map(<[u8]>::len).ok_or(too_long);
        }
        if !self.peers.is_permitted(peer.ip()) {
            return Err(SendError::NotPermitted { peer: peer.ip() });
        }
        let id = self.transaction_id();
        let around = send_indication(id, peer, payload.len()).ok_or(too_long)?;
        let prefix = around.prefix.as_bytes();
        let padding = usize::from(around.padding);
        let len = prefix.len() + payload.len() + padding;
        let message = buffer.get_mut(..len).ok_or(too_long)?;
        message[..prefix.len()].copy_from_slice(prefix);
        message[prefix.len()..len - padding].copy_from_slice(payload);
        message[len - padding..].fill(0);
        Ok(len)
    }

    /// Ends the allocation: the server is asked to, and [`Event::Released`] says when it did.
    pub fn release(&mut self, now: Timestamp) {
        match self.state {
            State::Allocated { .. } => {
                self.transactions.clear();
                self.peers = Peers::default();
                self.state = State::Releasing;
                let (release, moves) = (true, self.is_moving());
                self.begin(now, Request::Refresh { release, moves });
            }
            State::Allocating => {
                self.transactions.clear();
                self.end(Event::Released);
            }
            State::Idle | State::Releasing | State::Ended => {}
        }
    }

    /// Takes a datagram that arrived on the client's socket.
    pub fn handle_datagram<'a>(
        &mut self,
        now: Timestamp,
        remote: SocketAddr,
        bytes: &'a [u8],
    ) -> Received<'a> {
        if remote != self.servers.current() {
            return Received::Ignored(Ignored::Stranger);
        }
        match classify(bytes) {
            Kind::ChannelData => self.receive_channel_data(bytes),
            Kind::Stun => self.receive_message(now, bytes),
            Kind::Other => Received::Ignored(Ignored::NotTurn),
        }
    }

    fn receive_channel_data<'a>(&self, bytes: &'a [u8]) -> Received<'a> {
        let Ok(message) = ChannelData::parse(bytes) else {
            return Received::Ignored(Ignored::NotTurn);
        };
        // RFC 8656 §12.6: data on a channel that is not bound is silently discarded.
        match self.peers.peer_of(message.channel) {
            Some(peer) => Received::Data {
                peer,
                payload: message.data,
            },
            None => Received::Ignored(Ignored::UnboundChannel),
        }
    }

    fn receive_message<'a>(&mut self, now: Timestamp, bytes: &'a [u8]) -> Received<'a> {
        let Ok(message) = Message::parse(bytes) else {
            return Received::Ignored(Ignored::NotTurn);
        };
        match (message.class(), message.method()) {
            (Class::Indication, Method::DATA) => self.receive_data(&message),
            (Class::Success | Class::Error, _) => match self.receive_response(now, &message) {
                Ok(()) => {
                    self.reschedule();
                    Received::Response
                }
                Err(reason) => Received::Ignored(reason),
            },
            (Class::Indication | Class::Request, _) => Received::Ignored(Ignored::Unexpected),
        }
    }

    fn receive_data<'a>(&self, message: &Message<'a>) -> Received<'a> {
        let Ok(Some(XorPeerAddress(peer))) = message.get() else {
            return Received::Ignored(Ignored::Malformed);
        };
        // RFC 8656 §11.4: the client checks that it believes to have a permission for the address.
        if !self.peers.is_permitted(peer.ip()) {
            return Received::Ignored(Ignored::NotPermitted);
        }
        match (message.get::<Data<'a>>(), message.get::<Icmp>()) {
            (Ok(Some(Data(payload))), _) => Received::Data { peer, payload },
            (Ok(None), Ok(Some(icmp))) => Received::Icmp { peer, icmp },
            (Ok(None) | Err(_), _) => Received::Ignored(Ignored::Malformed),
        }
    }

    fn receive_response(&mut self, now: Timestamp, message: &Message<'_>) -> Result<(), Ignored> {
        let id = message.transaction_id();
        let index = self
            .transactions
            .iter()
            .position(|t| t.id == id && t.request.method() == message.method())
            .ok_or(Ignored::NoTransaction)?;
        let transaction = self.transactions[index];
        if takes_out_algorithms(message) {
            return Err(Ignored::BidDown);
        }
        if message.class() == Class::Success {
            self.check_signature(message, true)?;
            self.transactions.swap_remove(index);
            self.succeeded(now, transaction.request, message);
            return Ok(());
        }
        let code = match message.get::<ErrorCode<'_>>() {
            Ok(Some(error)) => error.code,
            Ok(None) | Err(_) => return Err(Ignored::Malformed),
        };
        let is_challenge = code == Code::UNAUTHENTICATED || code == Code::STALE_NONCE;
        if is_challenge && let Some(again) = self.challenged(code, &transaction, message)? {
            let id = self.transaction_id();
            self.transactions[index] = again.restarted(now, id, self.config.schedule);
            return Ok(());
        }
        if code == Code::TRY_ALTERNATE
            && let Some(again) = self.redirected(now, &transaction, message)?
        {
            self.transactions[index] = again;
            return Ok(());
        }
        // RFC 8489 §9.2.5 discards what is not signed. Until there is an allocation, a refusal counts
        // without: nothing can be lost by it, and many servers refuse an Allocate unsigned.
        let must_be_signed = !is_challenge && transaction.request.method() != Method::ALLOCATE;
        self.check_signature(message, must_be_signed)?;
        self.transactions.swap_remove(index);
        self.failed(
            now,
            transaction.request,
            RequestError::refused(code, message),
        );
        Ok(())
    }

    fn check_signature(&self, message: &Message<'_>, required: bool) -> Result<(), Ignored> {
        let is_signed = message.has_integrity() || message.has_integrity_sha256();
        match &self.session {
            Some(session) if is_signed || required => session.check(message),
            Some(_) | None => Ok(()),
        }
    }

    /// Takes realm and nonce from a 401 or 438; returns the transaction to send again, or `None` where
    /// the credentials were refused.
    fn challenged(
        &mut self,
        code: Code,
        transaction: &Transaction,
        message: &Message<'_>,
    ) -> Result<Option<Transaction>, Ignored> {
        let session = Session::new(&self.config.credentials, message)?;
        if let Some(old) = &self.session
            && old.is_better_than(&session)
        {
            return Err(Ignored::BidDown);
        }
        // RFC 8489 §9.2.5: a 401 to a request that had these credentials is not tried again.
        let refused = code == Code::UNAUTHENTICATED
            && transaction.is_signed
            && self
                .session
                .as_ref()
                .is_some_and(|old| old.has_credentials_of(&session));
        if refused || transaction.challenges >= MAX_CHALLENGES {
            return Ok(None);
        }
        self.session = Some(Box::new(session));
        Ok(Some(Transaction {
            challenges: transaction.challenges + 1,
            ..*transaction
        }))
    }

    fn succeeded(&mut self, now: Timestamp, request: Request, message: &Message<'_>) {
        match request {
            Request::Allocate { .. } => match read_allocation(message) {
                Some(allocation) => {
                    self.ticket = read_ticket(message);
                    self.set_allocation(now, allocation);
                    self.push_event(Event::Allocated(allocation));
                }
                None => self.end(Event::AllocateFailed(RequestError::Malformed)),
            },
            Request::Refresh { release: true, .. } => self.end(Event::Released),
            Request::Refresh {
                release: false,
                moves,
            } => self.refreshed(now, moves, message),
            Request::Permission { peer } => {
                if self.peers.permission_granted(peer, now + PEER_RENEWAL) {
                    self.push_event(Event::PermissionCreated(peer));
                }
            }
            Request::Channel { peer, channel } => {
                if self.peers.channel_bound(peer, now + PEER_RENEWAL) {
                    self.push_event(Event::ChannelBound(peer, channel));
                }
            }
        }
    }

    fn refreshed(&mut self, now: Timestamp, moves: bool, message: &Message<'_>) {
        let State::Allocated { allocation, .. } = self.state else {
            return;
        };
        let lifetime = match message.get() {
            Ok(Some(Lifetime(seconds))) if seconds > 0 => Duration::from_secs(seconds.into()),
            Ok(Some(_) | None) | Err(_) => return self.end(Event::Lost(RequestError::Malformed)),
        };
        self.set_allocation(
            now,
            Allocation {
                lifetime,
                ..allocation
            },
        );
        if !moves {
            if self.place == Place::Told {
                self.place = Place::Known;
                self.push_event(Event::Moved);
            }
            return;
        }
        // RFC 8016 §3.2.3: the client stores the new ticket of the response in place of the old one.
        self.ticket = read_ticket(message);
        self.place = Place::Told;
        for index in 0..self.transactions.len() {
            let id = self.transaction_id();
            let waiting = self.transactions[index];
            self.transactions[index] = waiting.restarted(now, id, self.config.schedule);
        }
        // The server sends to the old address until it has seen the client at the new one, and the
        // caller may have nothing to send.
        self.begin_refresh(now);
    }

    fn failed(&mut self, now: Timestamp, request: Request, error: RequestError) {
        match request {
            // RFC 8016 §3.1.4: mobility is forbidden; an allocation without it may not be.
            Request::Allocate {
                family,
                mobile: true,
            } if error == RequestError::Refused(Code::MOBILITY_FORBIDDEN) => {
                let mobile = false;
                self.begin(now, Request::Allocate { family, mobile });
            }
            Request::Allocate { .. } => self.end(Event::AllocateFailed(error)),
            // Gone is gone, whatever the server says to a release.
            Request::Refresh { release: true, .. } => self.end(Event::Released),
            Request::Refresh { release: false, .. } => match (&mut self.state, error) {
                (
                    State::Allocated {
                        expires, refresh, ..
                    },
                    RequestError::TimedOut { .. },
                ) if now < *expires => {
                    *refresh = now + REFRESH_RETRY;
                }
                _ => self.end(Event::Lost(error)),
            },
            Request::Permission { peer } => {
                self.peers.remove_permission(peer);
                self.push_event(Event::PermissionFailed(peer, error));
            }
            Request::Channel { peer, .. } => {
                self.peers.remove_channel(peer);
                self.push_event(Event::ChannelFailed(peer, error));
            }
        }
    }

    fn set_allocation(&mut self, now: Timestamp, allocation: Allocation) {
        let (expires, refresh) = (now + allocation.lifetime, now + allocation.lifetime / 2);
        self.state = State::Allocated {
            allocation,
            expires,
            refresh,
        };
    }

    fn end(&mut self, event: Event) {
        self.state = State::Ended;
        (self.ticket, self.place) = (None, Place::Known);
        self.transactions.clear();
        self.peers = Peers::default();
        self.push_event(event);
        self.reschedule();
    }

    /// Does what is due at `now`: gives up requests, and begins those that renew.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        while let Some(index) = self
            .transactions
            .iter()
            .position(|t| self.may_be_sent(t) && t.is_failed(now))
        {
            let transaction = self.transactions.swap_remove(index);
            let transmissions = transaction.retransmission.transmissions();
            self.failed(
                now,
                transaction.request,
                RequestError::TimedOut { transmissions },
            );
        }
        self.renew(now);
        self.reschedule();
    }

    fn renew(&mut self, now: Timestamp) {
        let State::Allocated {
            expires, refresh, ..
        } = self.state
        else {
            return;
        };
        if expires <= now {
            return self.end(Event::Lost(RequestError::Expired));
        }
        let has_room = self.transactions.len() < MAX_TRANSACTIONS;
        if refresh <= now && (has_room || self.is_moving()) {
            self.begin_refresh(now);
        }
        while !self.is_moving()
            && self.transactions.len() < MAX_TRANSACTIONS
            && let Some(renewal) = self.peers.begin_renewal(now)
        {
            self.begin(
                now,
                match renewal {
                    Renewal::Permission(peer) => Request::Permission { peer },
                    Renewal::Channel(peer, channel) => Request::Channel { peer, channel },
                },
            );
        }
    }

    /// Writes the next due request into `buffer` (2,048 bytes are always enough); returns its length.
    /// It goes to the server.
    pub fn poll_transmit(&mut self, now: Timestamp, buffer: &mut [u8]) -> Option<usize> {
        loop {
            let index = self
                .transactions
                .iter()
                .position(|t| self.may_be_sent(t) && t.retransmission.due(now) == Due::Transmit)?;
            match self.write(index, buffer) {
                Ok(len) => {
                    self.transactions[index].retransmission.sent(now);
                    self.transactions[index].is_signed = self.session.is_some();
                    self.reschedule();
                    return Some(len);
                }
                Err(_) => {
                    let transaction = self.transactions.swap_remove(index);
                    let error = RequestError::TooLong {
                        buffer: buffer.len(),
                    };
                    self.failed(now, transaction.request, error);
                    self.reschedule();
                }
            }
        }
    }

    fn write(&self, index: usize, buffer: &mut [u8]) -> Result<usize, WriteError> {
        let transaction = &self.transactions[index];
        let ticket = self.ticket.as_deref();
        let mut writer = transaction.writer(buffer, self.config.lifetime, ticket)?;
        if let Some(session) = &self.session {
            session.sign(&self.config.credentials, &mut writer)?;
        }
        writer.fingerprint()?;
        Ok(writer.finish().len())
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) and [`poll_transmit`](Self::poll_transmit) want to
    /// be called next; `None` for never. O(1).
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.deadline
    }

    fn begin(&mut self, now: Timestamp, request: Request) {
        let id = self.transaction_id();
        self.transactions
            .push(Transaction::new(now, id, request, self.config.schedule));
        self.reschedule();
    }

    fn is_moving(&self) -> bool {
        self.place == Place::Unknown
    }

    /// Whether a request may leave now: one that waits for the allocation to move may not.
    fn may_be_sent(&self, transaction: &Transaction) -> bool {
        !self.is_moving() || matches!(transaction.request, Request::Refresh { moves: true, .. })
    }

    fn push_event(&mut self, event: Event) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn reschedule(&mut self) {
        let requests = self
            .transactions
            .iter()
            .filter(|t| self.may_be_sent(t))
            .map(|t| t.retransmission.next())
            .min();
        let has_room = self.transactions.len() < MAX_TRANSACTIONS;
        let renewals = match self.state {
            State::Allocated {
                expires, refresh, ..
            } if self.is_moving() => Some(expires.min(refresh)),
            State::Allocated {
                expires, refresh, ..
            } if has_room => Some(expires.min(refresh))
                .into_iter()
                .chain(self.peers.next_renewal())
                .min(),
            State::Allocated { expires, .. } => Some(expires),
            State::Idle | State::Allocating | State::Releasing | State::Ended => None,
        };
        self.deadline = requests.into_iter().chain(renewals).min();
    }

    fn transaction_id(&mut self) -> TransactionId {
        let mut id = [0; 12];
        self.rng.fill_bytes(&mut id);
        TransactionId(id)
    }
}

/// RFC 8656 §7.3: an Allocate success response has all three.
fn read_allocation(message: &Message<'_>) -> Option<Allocation> {
    let XorRelayedAddress(relayed) = message.get().ok()??;
    let XorMappedAddress(mapped) = message.get().ok()??;
    let Lifetime(seconds) = message.get().ok()??;
    let is_known = |kind| {
        [
            AttributeType::XOR_RELAYED_ADDRESS,
            AttributeType::XOR_MAPPED_ADDRESS,
            AttributeType::MAPPED_ADDRESS,
            AttributeType::LIFETIME,
            AttributeType::RESERVATION_TOKEN,
        ]
        .contains(&kind)
    };
    let is_understood = message.unknown_required(is_known).is_empty();
    (is_understood && seconds > 0).then_some(Allocation {
        relayed,
        mapped,
        lifetime: Duration::from_secs(seconds.into()),
    })
}

/// The ticket in a success response.
fn read_ticket(message: &Message<'_>) -> Option<Box<[u8]>> {
    let MobilityTicket(ticket) = message.get().ok()??;
    (1..=MAX_TICKET_BYTES)
        .contains(&ticket.len())
        .then(|| ticket.into())
}

#[cfg(test)]
mod tests;
