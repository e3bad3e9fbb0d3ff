//! The reference: what a relay must do, written plainly and apart from the code under test.
//!
//! The model sees a relay from the outside: the datagrams that enter and leave its host, the ports
//! it opens and closes, and its drop counters. For each datagram that enters it says beforehand what
//! may happen, as a list of [`Alternative`]s; [`Model::conclude`] compares that with what happened
//! and keeps the state that follows from it. Mostly the list has one entry.
//!
//! It keeps absolute times in ordered maps and searches them; it has no timers.

mod answers;
mod attempts;
mod classic;
mod credentials;
mod icmp;
pub mod metering;
mod mobility;
pub mod peers;
mod reload;
pub mod requests;
mod routes;
pub mod special_use;
pub mod time;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use towpath_proto::Timestamp;
use towpath_proto::machine::ShardId;
use towpath_proto::relay::DropReason;

use attempts::Failures;
use metering::{Metering, Toll};
use mobility::Mobile;

use crate::stun::{self, Parsed, TransactionId, attribute, kind};

pub use metering::{Limit, LimitChange};
pub use requests::Judgement;
pub use time::{Alive, Rules};

/// A client's transport address and the server's that it talks to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Flow {
    /// The client's address.
    pub client: SocketAddr,
    /// The server's address.
    pub server: SocketAddr,
}

/// A datagram that leaves the relay's host.
#[derive(Clone, PartialEq, Eq)]
pub struct Sent {
    /// The local address it leaves from.
    pub source: SocketAddr,
    /// Where it goes.
    pub destination: SocketAddr,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Whether it has the DF bit.
    pub dont_fragment: bool,
    /// Its bytes.
    pub payload: Vec<u8>,
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source,
            destination,
            traffic_class,
            dont_fragment,
            payload,
        } = self;
        let head = &payload[..payload.len().min(40)];
        write!(
            f,
            "{source} > {destination}: {} B, class {traffic_class:#04x}{}, {head:02x?}",
            payload.len(),
            if *dont_fragment { ", DF" } else { "" }
        )
    }
}

/// What a relay asks of its host about a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortChange {
    /// Open it.
    Open(SocketAddr),
    /// Close it.
    Close(SocketAddr),
}

impl PortChange {
    /// Whether it is a closing.
    pub fn is_close(&self) -> bool {
        matches!(self, Self::Close(_))
    }
}

/// What came of one input.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Observed {
    /// Datagrams sent.
    pub sent: Vec<Sent>,
    /// Ports asked for and given up, in order.
    pub ports: Vec<PortChange>,
    /// Reasons of drops counted.
    pub drops: Vec<DropReason>,
}

/// Something that may come of one input.
#[derive(Clone, PartialEq, Debug)]
pub enum Alternative {
    /// Nothing is sent, and one drop is counted, for one of these reasons.
    Drop(&'static [DropReason]),
    /// Nothing is sent and no drop is counted: a Binding indication only keeps bindings alive.
    Noticed,
    /// Nothing is sent and no drop is counted: a port is being opened for this request.
    Opening(Flow, Box<Parsed>),
    /// This datagram, byte for byte.
    Datagram(Sent),
    /// The payload arrives at the client on this channel.
    OnChannel(u16, Flow, Vec<u8>),
    /// The payload arrives at the client in a Data indication from this peer.
    Indication(SocketAddr, Flow, Vec<u8>),
    /// The client is told of an ICMP error about what went to this peer, with this value.
    Icmp(SocketAddr, Flow, [u8; 8]),
    /// Nothing is sent, and one drop is counted: who pays for it is over a limit.
    OverLimit(Toll),
    /// The request succeeds.
    Success(Flow, Box<Parsed>),
    /// The request is refused with this code.
    Error(u16, Flow, Box<Parsed>),
}

/// What one input may lead to: one of these.
pub type Expectation = Vec<Alternative>;

/// An allocation, as the answers that were seen made it.
#[derive(Clone, Debug)]
pub struct Allocation {
    /// Who made it.
    pub user: String,
    /// Where the client was when it made it, or reserved its port: whose network it counts for.
    pub client: IpAddr,
    /// Its relayed addresses: one, or one of each family.
    pub addresses: Vec<Address>,
    /// The peers' IPs, and until when.
    pub permissions: BTreeMap<IpAddr, Timestamp>,
    /// The channels' peers, and until when.
    pub channels: BTreeMap<u16, (SocketAddr, Timestamp)>,
    made_by: TransactionId,
    time_limit: Option<credentials::TimeLimit>,
    answer: Vec<u8>,
    /// One of two addresses has ended: a retransmitted request is answered in another way.
    is_less: bool,
}

/// A relayed address of an allocation.
#[derive(Clone, Debug)]
pub struct Address {
    /// The local address its port is bound to.
    pub local: SocketAddr,
    /// When it ends unless it is refreshed.
    pub expires: Timestamp,
    deleted: bool,
}

impl Allocation {
    /// When it ends unless it is refreshed.
    pub fn expires(&self) -> Timestamp {
        let ends = self.addresses.iter().map(|address| address.expires);
        ends.max().expect("an allocation has an address")
    }

    /// The relayed address of a family.
    pub fn of_family(&self, v4: bool) -> Option<&Address> {
        let mut addresses = self.addresses.iter();
        addresses.find(|address| address.local.is_ipv4() == v4)
    }

    fn at(&self, local: SocketAddr) -> Option<&Address> {
        let mut addresses = self.addresses.iter();
        addresses.find(|address| address.local == local)
    }
}

/// The state of the reference.
#[derive(Debug)]
pub struct Model {
    /// What the relay was configured with.
    pub rules: Rules,
    /// Counts of what was predicted and happened, for a look at what a run covered.
    pub coverage: BTreeMap<String, u64>,
    allocations: BTreeMap<Flow, Allocation>,
    opening: BTreeMap<Flow, Opening>,
    ports: BTreeMap<SocketAddr, Flow>,
    /// The shards that ports were opened by.
    made_in: BTreeMap<SocketAddr, ShardId>,
    /// The mobile allocations, by their ports.
    mobiles: BTreeMap<SocketAddr, Mobile>,
    ended_tickets: BTreeSet<Vec<u8>>,
    /// Where what arrived may show a client to be that was not there before.
    arriving: Option<Flow>,
    /// By client and nonce.
    nonces: BTreeMap<(SocketAddr, Vec<u8>), Issued>,
    deleted: BTreeSet<(Flow, TransactionId)>,
    reservations: BTreeMap<Vec<u8>, Reservation>,
    failures: Failures,
    latest: Timestamp,
    totals: Totals,
    metering: Metering,
    /// The traffic class of the datagram that arrives.
    class: u8,
}

/// What passed, each way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Datagrams forwarded to peers.
    pub packets_to_peers: u64,
    /// Their payload bytes.
    pub bytes_to_peers: u64,
    /// Datagrams forwarded to clients.
    pub packets_to_clients: u64,
    /// Their payload bytes.
    pub bytes_to_clients: u64,
}

/// A nonce that was issued.
#[derive(Clone, Debug)]
struct Issued {
    at: Timestamp,
    /// The list of password algorithms that came with it.
    algorithms: Option<Vec<u8>>,
}

/// A port that EVEN-PORT reserved.
#[derive(Clone, Debug)]
struct Reservation {
    local: SocketAddr,
    user: String,
    client: IpAddr,
    made: Timestamp,
}

/// An Allocate request that waits for its port.
#[derive(Clone, Debug)]
struct Opening {
    request: Parsed,
    /// When the request arrived: the lifetime begins here.
    since: Timestamp,
    /// The client whose network it counts for: the one who reserved the port, or this one.
    client: IpAddr,
}

impl Model {
    /// A relay that was just started.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            coverage: BTreeMap::new(),
            allocations: BTreeMap::new(),
            opening: BTreeMap::new(),
            ports: BTreeMap::new(),
            made_in: BTreeMap::new(),
            mobiles: BTreeMap::new(),
            ended_tickets: BTreeSet::new(),
            arriving: None,
            nonces: BTreeMap::new(),
            deleted: BTreeSet::new(),
            reservations: BTreeMap::new(),
            failures: Failures::default(),
            latest: Timestamp::ZERO,
            totals: Totals::default(),
            metering: Metering::default(),
            class: 0,
        }
    }

    /// Counts something for a look at what a run covered.
    pub fn count(&mut self, what: &str) {
        *self.coverage.entry(what.to_owned()).or_default() += 1;
    }

    /// What passed so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The allocations that may exist.
    pub fn allocations(&self) -> &BTreeMap<Flow, Allocation> {
        &self.allocations
    }

    /// The ports that are open or being opened.
    pub fn ports(&self) -> BTreeSet<SocketAddr> {
        self.ports.keys().copied().collect()
    }

    /// The next datagram that arrives has this traffic class.
    pub fn arrives_in_class(&mut self, class: u8) {
        self.class = class;
    }

    /// A datagram from a client arrives at a listening address.
    pub fn client_datagram(&mut self, now: Timestamp, flow: Flow, payload: &[u8]) -> Expectation {
        use DropReason::{MalformedStun, Unrecognized, UnusableDatagram, WrongFingerprint};
        self.arriving = None;
        if flow.client.port() == 0 {
            return vec![Alternative::Drop(&[UnusableDatagram])];
        }
        match payload.first() {
            None | Some(0x80..) => return vec![Alternative::Drop(&[Unrecognized])],
            Some(0x40..=0x7f) => {
                self.expect_arrival(flow, None);
                let expected = self.channel_data(now, flow, payload);
                return self.metered(now, expected);
            }
            Some(0..=0x3f) => {}
        }
        let Some(message) = stun::parse(payload) else {
            let drop = || vec![Alternative::Drop(&[MalformedStun, Unrecognized])];
            return classic::expected(flow, payload).unwrap_or_else(drop);
        };
        if message.fingerprint == Some(false) {
            return vec![Alternative::Drop(&[WrongFingerprint])];
        }
        if message.kind == kind::BINDING_INDICATION {
            return vec![Alternative::Noticed];
        }
        if message.kind == kind::SEND {
            self.expect_arrival(flow, None);
            let expected = self.send_indication(now, flow, &message);
            return self.metered(now, expected);
        }
        self.request(now, flow, message)
    }

    /// A datagram from a peer arrives at a relayed port.
    pub fn peer_datagram(
        &self,
        now: Timestamp,
        local: SocketAddr,
        remote: SocketAddr,
        payload: &[u8],
    ) -> Expectation {
        let flow = self.ports.get(&local);
        let exists = flow.is_some_and(|flow| self.allocations.contains_key(flow));
        if exists && is_in_a_loop(payload) {
            return vec![Alternative::Drop(&[DropReason::Loop])];
        }
        self.peer_data(now, local, remote, payload)
    }

    /// A datagram from a peer takes its route in the kernel, which does not look for loops as
    /// carefully as the relay does.
    pub fn peer_datagram_in_kernel(
        &self,
        now: Timestamp,
        local: SocketAddr,
        remote: SocketAddr,
        payload: &[u8],
    ) -> Expectation {
        self.peer_data(now, local, remote, payload)
    }

    fn peer_data(
        &self,
        now: Timestamp,
        local: SocketAddr,
        remote: SocketAddr,
        payload: &[u8],
    ) -> Expectation {
        use DropReason::{NoPermissionFromPeer, NoSuchPort, OwnAddress, UnusableDatagram};
        let drop = Alternative::Drop(&[
            NoPermissionFromPeer,
            NoSuchPort,
            OwnAddress,
            UnusableDatagram,
        ]);
        let flow = self.ports.get(&local);
        let found = flow.and_then(|flow| {
            let allocation = self.allocations.get(flow)?;
            Some((*flow, allocation, allocation.at(local)?))
        });
        let (Some((flow, allocation, address)), (reachable, peer)) =
            (found, self.peer_of(now, remote))
        else {
            return vec![drop];
        };
        let bound = |(_, bound): &(&u16, &(SocketAddr, Timestamp))| {
            bound.0 == peer && self.rules.alive(now, bound.1) == Alive::Yes
        };
        let channel = allocation.channels.iter().find(bound);
        // A channel stands for itself; everything else needs a permission.
        let permission = allocation.permissions.get(&peer.ip());
        let permitted = permission.map_or(Alive::No, |until| self.rules.alive(now, *until));
        let may = self
            .rules
            .alive(now, address.expires)
            .and(channel.map_or(permitted, |_| Alive::Yes))
            .and(reachable);
        let around = if channel.is_some() {
            4
        } else {
            indication_overhead(peer, payload.len())
        };
        if may == Alive::No || payload.len() + around > LONGEST_PAYLOAD {
            return vec![drop];
        }
        let payload = payload.to_vec();
        let mut expected = vec![match channel {
            Some((number, _)) => Alternative::OnChannel(*number, flow, payload),
            None => Alternative::Indication(peer, flow, payload),
        }];
        if may == Alive::Maybe {
            expected.push(drop);
        }
        self.metered(now, expected)
    }

    /// The port of an allocation that is being made was opened, or could not be.
    pub fn port_answer(&mut self, local: SocketAddr, opened: bool) -> Expectation {
        let flow = self.ports[&local];
        let opening = self.opening.get(&flow).expect("a port was being opened");
        let request = opening.request.clone();
        let request = Box::new(request);
        let success = Alternative::Success(flow, request.clone());
        if opened {
            let has_v6 = self.relay_address_for(flow, false).is_some();
            let wants_v6 = requests::wants_both(&request) && local.is_ipv4() && has_v6;
            let then_v6 = wants_v6.then_some(Alternative::Opening(flow, request));
            return then_v6.into_iter().chain([success]).collect();
        }
        self.ports.remove(&local);
        if self.ports.values().any(|other| *other == flow) {
            // The other family's port is open.
            return vec![Alternative::Opening(flow, request), success];
        }
        let code = self.code_for_full(flow, &request);
        let refused = Alternative::Error(code, flow, request.clone());
        if request.find(attribute::RESERVATION_TOKEN).is_some() {
            // Another port would not be the reserved one.
            return vec![refused];
        }
        vec![Alternative::Opening(flow, request), refused]
    }

    fn channel_data(&self, now: Timestamp, flow: Flow, payload: &[u8]) -> Expectation {
        use DropReason::{BadChannelData, ChannelNotBound, NoAllocation, OwnAddress, Unrecognized};
        const NOT_BOUND: Alternative = Alternative::Drop(&[ChannelNotBound, NoAllocation]);
        const MALFORMED: Alternative =
            Alternative::Drop(&[BadChannelData, ChannelNotBound, NoAllocation, OwnAddress]);
        let Some(header) = payload.first_chunk::<4>() else {
            return vec![Alternative::Drop(&[BadChannelData, Unrecognized])];
        };
        let number = u16::from_be_bytes([header[0], header[1]]);
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        // RFC 8656 does not say what more bytes than announced and padded mean: they may be dropped.
        let overlong = payload.len() > 4 + len.next_multiple_of(4);
        let Some(data) = payload.get(4..4 + len) else {
            return vec![MALFORMED];
        };
        let not_bound = if overlong { MALFORMED } else { NOT_BOUND };
        let Some(allocation) = self.at(flow) else {
            return vec![not_bound];
        };
        let Some((peer, until)) = allocation.channels.get(&number) else {
            return vec![not_bound];
        };
        let Some(address) = allocation.of_family(peer.is_ipv4()) else {
            return vec![not_bound];
        };
        let may = self
            .rules
            .alive(now, address.expires)
            .and(self.rules.alive(now, *until));
        let mut expected = self.forward(now, may, address.local, *peer, data);
        if overlong || may != Alive::Yes {
            expected.push(not_bound);
        }
        expected
    }

    fn send_indication(&self, now: Timestamp, flow: Flow, message: &Parsed) -> Expectation {
        use DropReason::{
            BadSendIndication, NoAllocation, NoPermissionToPeer, OwnAddress, UnknownAttribute,
        };
        const REFUSED: &[DropReason] = &[
            BadSendIndication,
            NoAllocation,
            NoPermissionToPeer,
            UnknownAttribute,
            OwnAddress,
        ];
        let known = [
            attribute::XOR_PEER_ADDRESS,
            attribute::DATA,
            attribute::DONT_FRAGMENT,
        ];
        let required = |kind: &u16| *kind < 0x8000 && !known.contains(kind);
        let unknown = message.attributes.iter().any(|(kind, _)| required(kind));
        let refused = vec![Alternative::Drop(REFUSED)];
        let Some(allocation) = self.at(flow) else {
            return refused;
        };
        let peer = message.address(attribute::XOR_PEER_ADDRESS);
        let (Some(peer), Some(data)) = (peer, message.find(attribute::DATA)) else {
            return refused;
        };
        let Some(address) = allocation.of_family(peer.is_ipv4()) else {
            return refused;
        };
        let permission = allocation.permissions.get(&peer.ip());
        let may = self
            .rules
            .alive(now, address.expires)
            .and(permission.map_or(Alive::No, |until| self.rules.alive(now, *until)));
        let mut expected = self.forward(now, may, address.local, peer, data);
        // RFC 8656 §14: "the DONT-FRAGMENT attribute MUST be ignored" unless both sides are IPv4.
        let dont_fragment = message.find(attribute::DONT_FRAGMENT).is_some()
            && flow.client.is_ipv4()
            && address.local.is_ipv4();
        for alternative in &mut expected {
            if let Alternative::Datagram(sent) = alternative {
                sent.dont_fragment = dont_fragment;
            }
        }
        if unknown || peer.port() == 0 {
            expected = refused;
        } else if expected.is_empty() || may != Alive::Yes {
            expected.push(Alternative::Drop(REFUSED));
        }
        expected
    }

    /// What comes of data to a peer for which there may be a permission.
    fn forward(
        &self,
        now: Timestamp,
        may: Alive,
        source: SocketAddr,
        peer: SocketAddr,
        data: &[u8],
    ) -> Expectation {
        let (reachable, destination) = self.route(now, peer);
        let mut expected = Vec::new();
        if may.and(reachable) != Alive::No {
            let payload = data.to_vec();
            expected.push(Alternative::Datagram(Sent {
                source,
                destination,
                // RFC 8656 §15: "Set the outgoing value to the incoming value".
                traffic_class: self.class,
                dont_fragment: false,
                payload,
            }));
        }
        if reachable != Alive::Yes {
            expected.push(Alternative::Drop(&[DropReason::OwnAddress]));
        }
        expected
    }

    /// Compares what happened with what may happen, and keeps what follows from it.
    pub fn conclude(&mut self, now: Timestamp, expected: &[Alternative], observed: &Observed) {
        self.latest = now;
        let found = expected
            .iter()
            .find(|alternative| self.fits(alternative, observed))
            .cloned();
        let nothing = observed.sent.is_empty() && observed.drops.is_empty();
        assert!(
            found.is_some() || (expected.is_empty() && nothing),
            "expected one of {expected:?}\nbut there was {observed:?}\n{}",
            self.about(observed)
        );
        self.arrive(now, found.as_ref(), observed);
        if let Some(found) = &found {
            self.cover(found);
            self.meter(now, found);
            self.accept(now, found, observed);
        }
        for change in &observed.ports {
            match change {
                PortChange::Open(local) => self.check_open(found.as_ref(), *local),
                PortChange::Close(local) => self.check_close(now, *local),
            }
        }
    }

    /// What the reference knows that may explain a difference.
    fn about(&self, observed: &Observed) -> String {
        let mut text = String::new();
        for Sent { payload, .. } in &observed.sent {
            text += &format!("sent: {:?}\n", stun::parse(payload));
        }
        for (flow, allocation) in &self.allocations {
            text += &format!("{flow:?}: {allocation:?}\n");
        }
        text
    }

    /// Nothing that has ended for sure is still there.
    pub fn check_ended(&self, now: Timestamp) {
        for (flow, allocation) in &self.allocations {
            let ended =
                |address: &Address| address.deleted || now >= address.expires + self.rules.slack;
            assert!(
                !allocation.addresses.iter().any(ended),
                "a port of {flow:?} is open although its allocation has ended: {allocation:?}"
            );
        }
    }

    fn fits(&self, alternative: &Alternative, observed: &Observed) -> bool {
        let sent = observed.sent.as_slice();
        let opens = observed
            .ports
            .iter()
            .any(|change| matches!(change, PortChange::Open(_)));
        if let Alternative::Drop(reasons) = alternative {
            return sent.is_empty()
                && !opens
                && matches!(observed.drops[..], [reason] if reasons.contains(&reason));
        }
        if let Alternative::OverLimit(_) = alternative {
            return sent.is_empty() && !opens && observed.drops == [DropReason::OverLimit];
        }
        if !observed.drops.is_empty() || opens != matches!(alternative, Alternative::Opening(..)) {
            return false;
        }
        match (alternative, sent) {
            (Alternative::Opening(..) | Alternative::Noticed, []) => true,
            (Alternative::Datagram(wanted), [sent]) => sent == wanted,
            (Alternative::OnChannel(number, flow, data), [sent]) => {
                let plain = stun::channel_data(*number, data, false);
                let padded = stun::channel_data(*number, data, true);
                let same = sent.payload == plain || sent.payload == padded;
                travels(sent, *flow) && same && sent.traffic_class == self.class
            }
            (Alternative::Indication(peer, flow, data), [sent]) => {
                travels(sent, *flow)
                    && is_data_indication(&sent.payload, *peer, data)
                    && sent.traffic_class == self.class
            }
            (Alternative::Icmp(peer, flow, value), [sent]) => {
                icmp::tells(sent, *flow, *peer, *value)
            }
            (Alternative::Success(flow, request), [sent]) => {
                travels(sent, *flow)
                    && sent.traffic_class == 0
                    && is_answer(&sent.payload, request, kind::SUCCESS).is_some()
            }
            (Alternative::Error(code, flow, request), [sent]) => {
                travels(sent, *flow)
                    && sent.traffic_class == 0
                    && is_answer(&sent.payload, request, kind::ERROR)
                        .is_some_and(|answer| answer.error_code() == Some(*code))
            }
            _ => false,
        }
    }

    fn accept(&mut self, now: Timestamp, found: &Alternative, observed: &Observed) {
        match found {
            Alternative::Drop(_)
            | Alternative::Noticed
            | Alternative::Opening(..)
            | Alternative::Icmp(..)
            | Alternative::OverLimit(_) => {}
            Alternative::Datagram(sent) => {
                if self.ports.contains_key(&sent.source) {
                    self.totals.packets_to_peers += 1;
                    self.totals.bytes_to_peers += sent.payload.len() as u64;
                }
            }
            Alternative::OnChannel(_, _, data) | Alternative::Indication(_, _, data) => {
                self.totals.packets_to_clients += 1;
                self.totals.bytes_to_clients += data.len() as u64;
            }
            Alternative::Success(flow, request) => {
                let closes = observed.ports.iter().any(PortChange::is_close);
                self.succeeded(now, *flow, request, &observed.sent[0].payload, closes);
            }
            Alternative::Error(code, flow, request) => {
                self.failed(now, *code, *flow, request, &observed.sent[0].payload);
            }
        }
    }

    fn check_open(&mut self, found: Option<&Alternative>, local: SocketAddr) {
        let Some(Alternative::Opening(flow, request)) = found else {
            panic!("{local} is opened, but nobody asked for a port");
        };
        let rules = &self.rules;
        let own = rules
            .relay_addresses
            .iter()
            .any(|(own, _)| *own == local.ip());
        assert!(
            own && rules.port_range.contains(&local.port()),
            "{local} is not the relay's"
        );
        let before = self.ports.insert(local, *flow);
        assert_eq!(before, None, "{local} is opened although it is open");
        self.made_in.insert(local, self.shard_of(*flow));
        let token = request.find(attribute::RESERVATION_TOKEN);
        let reserved = token.map(|token| self.reservations.remove(token));
        if let Some(reserved) = &reserved {
            let reserved = reserved.as_ref().map(|reserved| reserved.local);
            assert_eq!(reserved, Some(local), "the reserved port is opened");
        }
        let reserver = reserved.flatten().map(|reserved| reserved.client);
        let opening = Opening {
            request: (**request).clone(),
            since: self.latest,
            client: reserver.unwrap_or(flow.client.ip()),
        };
        // Where another port is tried, the request is the one that came first.
        self.opening.entry(*flow).or_insert(opening);
        let ports = self.ports.iter().filter(|(_, other)| *other == flow);
        let families: Vec<bool> = ports.map(|(port, _)| port.is_ipv4()).collect();
        let both = requests::wants_both(request) && families == [true, false];
        assert!(
            both || families.len() == 1,
            "two ports are opened for {flow:?}"
        );
    }

    fn check_close(&mut self, now: Timestamp, local: SocketAddr) {
        let flow = self.ports.remove(&local);
        let flow = flow.unwrap_or_else(|| panic!("{local} is closed although it is not open"));
        self.made_in.remove(&local);
        let Some(allocation) = self.allocations.get_mut(&flow) else {
            panic!("{local} is closed while it is being opened for {flow:?}");
        };
        let address = allocation.at(local).expect("its ports are its own");
        assert!(
            address.deleted || address.expires <= now,
            "a port of {flow:?} is closed before its allocation ends: {allocation:?}"
        );
        allocation
            .addresses
            .retain(|address| address.local != local);
        if allocation.addresses.is_empty() {
            self.allocations.remove(&flow);
            self.forget_tickets(local);
            return;
        }
        let other = allocation.addresses[0].local;
        // RFC 8656 §8.1: what belongs to the other family stays.
        let stays = |ip: IpAddr| ip.is_ipv4() != local.is_ipv4();
        allocation.permissions.retain(|ip, _| stays(*ip));
        allocation.channels.retain(|_, (peer, _)| stays(peer.ip()));
        allocation.is_less = true;
        self.keep_tickets(local, other);
        self.count("one of two addresses ended");
    }

    fn cover(&mut self, found: &Alternative) {
        let name = match found {
            Alternative::Drop(reasons) => format!("drop {}", reasons[0].name()),
            Alternative::OverLimit(_) => "over limit".to_owned(),
            Alternative::Noticed => "binding indication".to_owned(),
            Alternative::Opening(..) => "opening".to_owned(),
            Alternative::Datagram(_) => "to peer".to_owned(),
            Alternative::OnChannel(..) => "channel data to client".to_owned(),
            Alternative::Indication(..) => "data indication".to_owned(),
            Alternative::Icmp(..) => "icmp error".to_owned(),
            Alternative::Success(_, request) => format!("success {:#05x}", request.kind),
            Alternative::Error(code, _, request) => format!("error {code} {:#05x}", request.kind),
        };
        *self.coverage.entry(name).or_default() += 1;
        let special = match found {
            Alternative::Success(_, request) if request.kind == kind::ALLOCATE => {
                let token = request
                    .find(attribute::RESERVATION_TOKEN)
                    .map(|_| "by token");
                token.or(request.find(attribute::EVEN_PORT).map(|_| "even port"))
            }
            Alternative::Datagram(sent) if self.ports.contains_key(&sent.destination) => {
                Some("hairpin")
            }
            Alternative::Datagram(sent) if sent.dont_fragment => Some("dont fragment"),
            _ => None,
        };
        if let Some(special) = special {
            *self.coverage.entry(special.to_owned()).or_default() += 1;
        }
    }
}

/// Data that was relayed to clients more often than this is going round.
const MOST_WRAPPINGS: usize = 4;

/// Whether a payload was relayed so often that it must be going round.
pub fn is_in_a_loop(payload: &[u8]) -> bool {
    wrappings(payload) > MOST_WRAPPINGS
}

/// How often a payload was relayed to a client, by the headers that this left.
fn wrappings(payload: &[u8]) -> usize {
    let inner = match payload {
        [0x40..=0x7f, _, high, low, inner @ ..] => {
            let len = usize::from(u16::from_be_bytes([*high, *low]));
            let fits = (len..=len.next_multiple_of(4)).contains(&inner.len());
            fits.then(|| inner[..len].to_vec())
        }
        [0, 0x17, ..] => {
            stun::parse(payload).and_then(|m| m.find(attribute::DATA).map(<[u8]>::to_vec))
        }
        [..] => None,
    };
    inner.map_or(0, |inner| 1 + wrappings(&inner))
}

/// The longest payload of a UDP datagram over IPv4.
const LONGEST_PAYLOAD: usize = 65_507;

/// What a Data indication has around its data: header, XOR-PEER-ADDRESS, DATA's header, padding.
fn indication_overhead(peer: SocketAddr, len: usize) -> usize {
    let address = if peer.is_ipv4() { 12 } else { 24 };
    20 + address + 4 + len.next_multiple_of(4) - len
}

/// Whether a datagram goes from the server's address of a flow to its client.
fn travels(sent: &Sent, flow: Flow) -> bool {
    sent.source == flow.server && sent.destination == flow.client
}

fn is_data_indication(payload: &[u8], peer: SocketAddr, data: &[u8]) -> bool {
    let Some(message) = stun::parse(payload) else {
        return false;
    };
    let only = |kind: &u16| matches!(*kind, attribute::XOR_PEER_ADDRESS | attribute::DATA);
    let at_data = payload
        .len()
        .checked_sub(data.len().next_multiple_of(4) - data.len());
    let padding = at_data.map_or(&[][..], |at| &payload[at..]);
    message.kind == kind::DATA
        && message.address(attribute::XOR_PEER_ADDRESS) == Some(peer)
        && message.find(attribute::DATA) == Some(data)
        && message.attributes.iter().all(|(kind, _)| only(kind))
        && padding.iter().all(|byte| *byte == 0)
}

fn is_answer(payload: &[u8], request: &Parsed, class: u16) -> Option<Parsed> {
    let answer = stun::parse(payload)?;
    let sound = answer.kind == request.kind | class
        && answer.id == request.id
        && answer.fingerprint != Some(false);
    sound.then_some(answer)
}
