//! Clients that do anything at any time: what they should and what they should not.
//!
//! A client has a view of what it was granted, from the answers that reached it, and acts on it
//! mostly; the rest of the time it retransmits, lies, mangles, vanishes and comes back on the same
//! port. Whether the relay is right is not judged here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use towpath_proto::Timestamp;

use crate::dice::Dice;
use crate::network::Packet;
use crate::stun::{self, Builder, Parsed, TransactionId, attribute, kind};
use crate::traffic::{Ledger, Mobile, some_len};
use crate::world::{Context, Node};

/// What the clients of a run know.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The relay's listening addresses.
    pub servers: Vec<SocketAddr>,
    /// The realm.
    pub realm: String,
    /// Names and passwords.
    pub users: Vec<(String, String)>,
    /// A secret that usernames and passwords may be made with.
    pub secret: Option<String>,
    /// A time, and which second of Unix time it is.
    pub wall: (Timestamp, u64),
    /// Peers that may be reached.
    pub peers: Vec<SocketAddr>,
    /// Addresses that nobody may reach.
    pub forbidden: Vec<SocketAddr>,
    /// The relay's addresses and ports, where relayed ports may or may not be.
    pub relay: Vec<SocketAddr>,
    /// What a session does before it goes silent.
    pub actions: u32,
}

/// A client: one session per socket.
#[derive(Debug)]
pub struct Client {
    plan: Rc<Plan>,
    ledger: Ledger,
    dice: Dice,
    sessions: Vec<Session>,
}

/// What a client thinks of one 5-tuple.
#[derive(Debug)]
struct Session {
    local: SocketAddr,
    server: SocketAddr,
    user: usize,
    sha256: bool,
    /// Uses usernames that end, and this one now.
    time_limited: bool,
    username: Option<(u64, String)>,
    nonce: Option<Vec<u8>>,
    algorithms: Option<Vec<u8>>,
    relayed: Vec<SocketAddr>,
    permitted: Vec<SocketAddr>,
    channels: Vec<(u16, SocketAddr)>,
    sent: BTreeMap<TransactionId, Vec<u8>>,
    history: Vec<Vec<u8>>,
    /// Times at which something ends, if nothing refreshes it.
    edges: Vec<Timestamp>,
    next: Timestamp,
    left: u32,
}

/// Datagrams that a session may send again.
const HISTORY: usize = 8;

impl Client {
    /// A client with these sockets, which have to be bound by the caller, that begins at `start`.
    pub fn new(
        plan: Rc<Plan>,
        ledger: Ledger,
        mut dice: Dice,
        sockets: &[SocketAddr],
        start: Timestamp,
    ) -> Self {
        let sessions = sockets
            .iter()
            .map(|local| {
                let same_family = |server: &&SocketAddr| server.is_ipv4() == local.is_ipv4();
                let servers: Vec<&SocketAddr> = plan.servers.iter().filter(same_family).collect();
                let pause = dice.duration(Duration::ZERO..Duration::from_secs(5));
                Session {
                    local: *local,
                    server: **dice.pick(&servers),
                    user: dice.below(plan.users.len()),
                    sha256: dice.one_in(3),
                    time_limited: plan.secret.is_some() && dice.one_in(2),
                    username: None,
                    nonce: None,
                    algorithms: None,
                    relayed: Vec::new(),
                    permitted: Vec::new(),
                    channels: Vec::new(),
                    sent: BTreeMap::new(),
                    history: Vec::new(),
                    edges: Vec::new(),
                    next: start + pause,
                    left: plan.actions,
                }
            })
            .collect();
        Self {
            plan,
            ledger,
            dice,
            sessions,
        }
    }
}

impl Node for Client {
    fn handle_packet(&mut self, context: &mut Context<'_>, packet: Packet) {
        let session = self
            .sessions
            .iter()
            .position(|s| s.local == packet.destination);
        let index = session.expect("every socket of a client has a session");
        let Self {
            plan,
            ledger,
            dice,
            sessions,
        } = self;
        let session = &mut sessions[index];
        let now = context.now;
        let mut turn = Turn {
            plan,
            ledger,
            dice,
            now,
        };
        if packet.source != session.server {
            return;
        }
        for datagram in session.receive(&mut turn, &packet.payload) {
            context.send(session.local, session.server, &datagram);
        }
    }

    fn handle_wakeup(&mut self, context: &mut Context<'_>) {
        let Self {
            plan,
            ledger,
            dice,
            sessions,
        } = self;
        let now = context.now;
        for session in sessions.iter_mut().filter(|s| s.left > 0 && s.next <= now) {
            let mut turn = Turn {
                plan,
                ledger,
                dice,
                now,
            };
            session.left -= 1;
            for datagram in session.act(&mut turn) {
                session.remember(&datagram);
                context.send(session.local, session.server, &datagram);
            }
            session.next = now + session.pause(&mut turn);
        }
    }

    fn wakeup(&self) -> Option<Timestamp> {
        let active = self.sessions.iter().filter(|session| session.left > 0);
        active.map(|session| session.next).min()
    }
}

/// What a session needs while it acts.
struct Turn<'a> {
    plan: &'a Plan,
    ledger: &'a Ledger,
    dice: &'a mut Dice,
    now: Timestamp,
}

impl Session {
    fn act(&mut self, turn: &mut Turn<'_>) -> Vec<Vec<u8>> {
        let weights = if !self.relayed.is_empty() {
            [2, 6, 14, 12, 24, 30, 6, 2, 1, 1, 5, 2, 1]
        } else {
            [60, 2, 2, 2, 2, 2, 8, 2, 1, 1, 5, 6, 40]
        };
        match turn.dice.weighted(&weights) {
            0 => vec![self.allocate(turn)],
            1 => {
                let lifetime = *turn
                    .dice
                    .pick(&[None, Some(600), Some(1200), Some(1), Some(7200)]);
                vec![self.refresh(turn, lifetime)]
            }
            2 => vec![self.create_permission(turn)],
            3 => vec![self.channel_bind(turn)],
            4 => in_bursts(turn, |turn| self.send_indication(turn)),
            5 => in_bursts(turn, |turn| self.channel_data(turn)),
            6 if !self.history.is_empty() => {
                let times = turn.dice.below(3) + 1;
                vec![turn.dice.pick(&self.history).clone(); times]
            }
            7 => vec![self.refresh(turn, Some(0))],
            8 => {
                self.left = self.left.min(3);
                Vec::new()
            }
            9 => {
                self.forget();
                Vec::new()
            }
            10 => vec![self.mangled(turn)],
            12 => self.resume(turn).into_iter().collect(),
            _ => vec![binding(turn)],
        }
    }

    /// How long until the next action: mostly short, sometimes to where something ends.
    fn pause(&self, turn: &mut Turn<'_>) -> Duration {
        let mut millis = |range| turn.dice.range(range);
        match millis(0..100) {
            0..55 => Duration::from_millis(millis(0..60)),
            55..80 => Duration::from_millis(millis(0..2_000)),
            80..90 => Duration::from_millis(millis(0..60_000)),
            90..94 => Duration::from_millis(millis(0..700_000)),
            _ => {
                let soon = turn.now..turn.now + Duration::from_secs(7200);
                let ahead = self.edges.iter().filter(|edge| soon.contains(edge));
                let ahead: Vec<Timestamp> = ahead.copied().collect();
                if ahead.is_empty() {
                    return Duration::from_millis(100);
                }
                let edge = turn.dice.pick(&ahead).saturating_since(turn.now);
                let around = turn
                    .dice
                    .duration(Duration::ZERO..Duration::from_millis(80));
                (edge + Duration::from_millis(20)).saturating_sub(around)
            }
        }
    }

    fn forget(&mut self) {
        self.nonce = None;
        self.relayed.clear();
        self.permitted.clear();
        self.channels.clear();
        self.sent.clear();
    }

    fn remember(&mut self, datagram: &[u8]) {
        if self.history.len() == HISTORY {
            self.history.remove(0);
        }
        self.history.push(datagram.to_vec());
        if let Some(message) = stun::parse(datagram)
            && message.kind & 0x110 == 0
        {
            self.sent.insert(message.id, datagram.to_vec());
        }
    }

    fn allocate(&mut self, turn: &mut Turn<'_>) -> Vec<u8> {
        let mut request = Builder::new(kind::ALLOCATE, turn.dice.array());
        let transport = if turn.dice.one_in(40) { 6 } else { 17 };
        request.put(attribute::REQUESTED_TRANSPORT, &[transport, 0, 0, 0]);
        let token = turn
            .ledger
            .last_token(self.user)
            .filter(|_| turn.dice.one_in(3));
        if let Some(token) = token {
            request.put(attribute::RESERVATION_TOKEN, &token);
        } else {
            wish_for_a_port(turn.dice, &mut request);
        }
        if turn.dice.one_in(2) {
            let ticket: &[u8] = if turn.dice.one_in(40) { &[7; 32] } else { &[] };
            request.put(attribute::MOBILITY_TICKET, ticket);
        }
        if turn.dice.one_in(4) {
            let lifetime = turn
                .dice
                .pick(&[0_u32, 60, 900, 3600, 100_000])
                .to_be_bytes();
            request.put(attribute::LIFETIME, &lifetime);
        }
        self.sign(turn, request)
    }

    /// Takes a mobile allocation over: mostly with its newest ticket and its user's credentials.
    fn resume(&mut self, turn: &mut Turn<'_>) -> Option<Vec<u8>> {
        let mobile = turn.ledger.some_mobile(turn.dice)?;
        let ticket = if turn.dice.one_in(6) {
            turn.dice.pick(&mobile.tickets)
        } else {
            mobile.tickets.last()?
        };
        let mut ticket = ticket.clone();
        if turn.dice.one_in(40) {
            let byte = turn.dice.below(ticket.len());
            ticket[byte] ^= 1;
        }
        let mut request = Builder::new(kind::REFRESH, turn.dice.array());
        request.put(attribute::MOBILITY_TICKET, &ticket);
        if turn.dice.one_in(3) {
            let lifetime = turn.dice.pick(&[0_u32, 600, 900]).to_be_bytes();
            request.put(attribute::LIFETIME, &lifetime);
        }
        if turn.dice.one_in(30) {
            request.put(attribute::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
        }
        if turn.dice.one_in(12) {
            self.nonce = mobile.nonce;
        }
        if !turn.dice.one_in(12) {
            self.user = mobile.user;
        }
        // A session without an allocation acts as if it had this one.
        if self.relayed.is_empty() {
            self.relayed = mobile.relayed;
            self.permitted = mobile.permitted;
            self.channels = mobile.channels;
        }
        Some(self.sign(turn, request))
    }

    fn refresh(&mut self, turn: &mut Turn<'_>, lifetime: Option<u32>) -> Vec<u8> {
        let mut request = Builder::new(kind::REFRESH, turn.dice.array());
        if let Some(lifetime) = lifetime {
            request.put(attribute::LIFETIME, &lifetime.to_be_bytes());
        }
        let sides = if self.relayed.len() == 2 { 2 } else { 20 };
        if turn.dice.one_in(sides) {
            let family = *turn.dice.pick(&[1, 2]);
            request.put(attribute::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0]);
        }
        self.sign(turn, request)
    }

    fn create_permission(&mut self, turn: &mut Turn<'_>) -> Vec<u8> {
        let mut request = Builder::new(kind::CREATE_PERMISSION, turn.dice.array());
        let peers = turn.dice.weighted(&[1, 20, 4, 2]);
        for _ in 0..peers {
            let peer = self.some_peer(turn);
            request.put_address(attribute::XOR_PEER_ADDRESS, peer);
        }
        self.sign(turn, request)
    }

    fn channel_bind(&mut self, turn: &mut Turn<'_>) -> Vec<u8> {
        let mut request = Builder::new(kind::CHANNEL_BIND, turn.dice.array());
        let again = !self.channels.is_empty() && turn.dice.one_in(2);
        let (mut number, mut peer) = if again {
            *turn.dice.pick(&self.channels)
        } else {
            let number = 0x4000 + u16::try_from(turn.dice.below(12)).expect("it is small");
            (number, self.some_peer(turn))
        };
        match turn.dice.below(20) {
            0 => number = u16::try_from(turn.dice.below(0x10000)).expect("it has 16 bits"),
            1 => peer = self.some_peer(turn),
            _ => {}
        }
        let [high, low] = number.to_be_bytes();
        if !turn.dice.one_in(50) {
            request.put(attribute::CHANNEL_NUMBER, &[high, low, 0, 0]);
        }
        if !turn.dice.one_in(50) {
            request.put_address(attribute::XOR_PEER_ADDRESS, peer);
        }
        self.sign(turn, request)
    }

    fn send_indication(&mut self, turn: &mut Turn<'_>) -> Option<Vec<u8>> {
        let peer = if self.permitted.is_empty() || turn.dice.one_in(8) {
            self.some_peer(turn)
        } else {
            let mut peer = *turn.dice.pick(&self.permitted);
            if turn.dice.one_in(10) {
                peer.set_port(u16::try_from(turn.dice.below(0x10000)).expect("it has 16 bits"));
            }
            peer
        };
        let len = some_len(turn.dice).min(60_000);
        let payload = turn.ledger.payload(turn.dice, Some(peer), len);
        let mut message = Builder::new(kind::SEND, turn.dice.array());
        message.put_address(attribute::XOR_PEER_ADDRESS, peer);
        if turn.dice.one_in(10) {
            message.put(attribute::DONT_FRAGMENT, &[]);
        }
        if !turn.dice.one_in(50) {
            message.put(attribute::DATA, &payload);
        }
        if turn.dice.one_in(100) {
            message.put(0x7777, &[]);
        }
        if turn.dice.one_in(4) {
            message.fingerprint();
        }
        Some(message.finish())
    }

    fn channel_data(&mut self, turn: &mut Turn<'_>) -> Option<Vec<u8>> {
        let number = if self.channels.is_empty() {
            0x4000
        } else {
            turn.dice.pick(&self.channels).0
        };
        let number = if turn.dice.one_in(40) {
            number ^ 1
        } else {
            number
        };
        let len = some_len(turn.dice).min(65_500);
        let payload = turn.ledger.payload(turn.dice, None, len);
        let mut bytes = stun::channel_data(number, &payload, turn.dice.one_in(2));
        match turn.dice.below(60) {
            0 => bytes.truncate(turn.dice.below(bytes.len())),
            1 => bytes.extend(turn.dice.bytes(5)),
            _ => {}
        }
        Some(bytes)
    }

    /// A peer: mostly one that may be reached.
    fn some_peer(&self, turn: &mut Turn<'_>) -> SocketAddr {
        let plan = turn.plan;
        let family = match self.relayed[..] {
            [] => true,
            [relayed] => relayed.is_ipv4(),
            [..] => turn.dice.one_in(2),
        };
        for _ in 0..4 {
            let peer = match turn.dice.weighted(&[12, 6, 2, 2, 1]) {
                0 => *turn.dice.pick(&plan.peers),
                1 => match turn.ledger.some_relayed(turn.dice) {
                    Some(relayed) => relayed,
                    None => continue,
                },
                2 => *turn.dice.pick(&plan.forbidden),
                3 => *turn.dice.pick(&plan.relay),
                _ => *turn.dice.pick(&plan.servers),
            };
            if peer.is_ipv4() == family || turn.dice.one_in(10) {
                return peer;
            }
        }
        *turn.dice.pick(&plan.peers)
    }

    /// Username and password: those of a user, or such as end.
    fn credentials(&mut self, turn: &mut Turn<'_>) -> (String, String) {
        let plan = turn.plan;
        let (user, password) = &plan.users[self.user];
        let Some(secret) = plan.secret.as_ref().filter(|_| self.time_limited) else {
            return (user.clone(), password.clone());
        };
        let (start, unix_start_s) = plan.wall;
        let now = unix_start_s + turn.now.saturating_since(start).as_secs();
        let used = self.username.take().filter(|(end, _)| *end > now);
        let (end, name) = used.filter(|_| !turn.dice.one_in(12)).unwrap_or_else(|| {
            let end = now + *turn.dice.pick(&[2, 40, 500, 1500, 9000]);
            self.edges
                .push(start + Duration::from_secs(end - unix_start_s));
            (end, format!("{end}:{user}"))
        });
        self.username = Some((end, name.clone()));
        let password = stun::rest_password(secret, &name);
        (name, password)
    }

    /// Adds credentials: mostly the right ones.
    fn sign(&mut self, turn: &mut Turn<'_>, mut request: Builder) -> Vec<u8> {
        let Some(nonce) = &self.nonce else {
            return request.finish();
        };
        let mut nonce = nonce.clone();
        let plan = turn.plan;
        let own = self.credentials(turn);
        let (mut name, mut password) = pair(&own);
        let mut leave_out = 0;
        match turn.dice.below(60) {
            0 => password = "wrong",
            1 => name = "nobody",
            2 => (name, password) = pair(turn.dice.pick(&plan.users)),
            3 => nonce = turn.dice.bytes(24),
            4 => leave_out = *turn.dice.pick(&[1, 2, 3, 4]),
            5 => drop(request.put(0x7778, &[1, 2, 3])),
            _ => {}
        }
        let hidden = nonce.starts_with(b"obMatJos2w") && turn.dice.one_in(3);
        if leave_out != 1 && hidden {
            request.put(attribute::USERHASH, &stun::userhash(name, &plan.realm));
        } else if leave_out != 1 {
            request.put(attribute::USERNAME, name.as_bytes());
        }
        if leave_out != 2 {
            request.put(attribute::REALM, plan.realm.as_bytes());
        }
        if leave_out != 3 {
            request.put(attribute::NONCE, &nonce);
        }
        let algorithms = self.algorithms.as_ref().filter(|_| self.sha256);
        if let Some(algorithms) = algorithms {
            request.put(attribute::PASSWORD_ALGORITHMS, algorithms);
            request.put(attribute::PASSWORD_ALGORITHM, &[0, 2, 0, 0]);
        }
        if leave_out != 4 {
            let md5 = stun::md5_key(name, &plan.realm, password);
            match (algorithms, self.sha256) {
                (Some(_), _) => {
                    request.integrity_sha256(&stun::sha256_key(name, &plan.realm, password))
                }
                (None, true) => request.integrity_sha256(&md5),
                (None, false) => request.integrity(&md5),
            };
        }
        if turn.dice.one_in(3) {
            request.fingerprint();
        }
        request.finish()
    }

    /// Something that was sent before, with bits changed; or noise.
    fn mangled(&self, turn: &mut Turn<'_>) -> Vec<u8> {
        // Data with other bits would arrive with other bits, and the ends could not tell.
        let carries_data = |bytes: &&Vec<u8>| match bytes[..] {
            [0, 0x16, ..] | [0x40..=0x7f, ..] => true,
            [..] => false,
        };
        let exact = turn.ledger.is_exact();
        let candidates = self
            .history
            .iter()
            .filter(|bytes| !exact || !carries_data(bytes));
        let candidates: Vec<&Vec<u8>> = candidates.filter(|bytes| !bytes.is_empty()).collect();
        if candidates.is_empty() || turn.dice.one_in(4) {
            let len = turn.dice.below(64);
            return turn.dice.bytes(len);
        }
        let mut bytes = (*turn.dice.pick(&candidates)).clone();
        for _ in 0..turn.dice.below(4) + 1 {
            let bit = turn.dice.below(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        if turn.dice.one_in(4) {
            bytes.truncate(turn.dice.below(bytes.len()) + 1);
        }
        bytes
    }

    fn receive(&mut self, turn: &mut Turn<'_>, bytes: &[u8]) -> Vec<Vec<u8>> {
        if let Some(0x40..=0x7f) = bytes.first() {
            return self.receive_channel_data(turn, bytes).into_iter().collect();
        }
        let Some(message) = stun::parse(bytes) else {
            return Vec::new();
        };
        if message.kind == kind::DATA {
            return self
                .receive_indication(turn, &message)
                .into_iter()
                .collect();
        }
        let request = self
            .sent
            .remove(&message.id)
            .and_then(|bytes| stun::parse(&bytes));
        let Some(request) = request else {
            return Vec::new();
        };
        if message.kind == request.kind | kind::SUCCESS {
            self.granted(turn, &request, &message);
            return Vec::new();
        }
        self.refused(turn, &request, &message).into_iter().collect()
    }

    fn receive_channel_data(&mut self, turn: &mut Turn<'_>, bytes: &[u8]) -> Option<Vec<u8>> {
        let number = u16::from_be_bytes(*bytes.first_chunk::<2>()?);
        let len = u16::from_be_bytes(*bytes.get(2..)?.first_chunk::<2>()?);
        let payload = bytes.get(4..4 + usize::from(len))?;
        turn.ledger.received(payload, None);
        let answer = turn.ledger.answer(payload, None)?;
        Some(stun::channel_data(number, &answer, false))
    }

    fn receive_indication(&mut self, turn: &mut Turn<'_>, message: &Parsed) -> Option<Vec<u8>> {
        let peer = message.address(attribute::XOR_PEER_ADDRESS)?;
        let payload = message.find(attribute::DATA)?;
        turn.ledger.received(payload, None);
        let answer = turn.ledger.answer(payload, Some(peer))?;
        let mut message = Builder::new(kind::SEND, turn.dice.array());
        message.put_address(attribute::XOR_PEER_ADDRESS, peer);
        message.put(attribute::DATA, &answer);
        Some(message.finish())
    }

    fn granted(&mut self, turn: &mut Turn<'_>, request: &Parsed, answer: &Parsed) {
        let seconds = |seconds: u32| turn.now + Duration::from_secs(u64::from(seconds));
        match request.kind {
            kind::ALLOCATE => {
                if let Some(token) = answer.find(attribute::RESERVATION_TOKEN) {
                    turn.ledger.publish_token(self.user, token);
                }
                let relayed = answer.addresses(attribute::XOR_RELAYED_ADDRESS);
                self.relayed = relayed.into_iter().flatten().collect();
                for relayed in &self.relayed {
                    turn.ledger.publish(*relayed);
                }
                if let Some(ticket) = answer.find(attribute::MOBILITY_TICKET) {
                    turn.ledger.publish_mobile(Mobile {
                        user: self.user,
                        tickets: vec![ticket.to_vec()],
                        nonce: self.nonce.clone(),
                        relayed: self.relayed.clone(),
                        permitted: Vec::new(),
                        channels: Vec::new(),
                    });
                }
                self.edges
                    .extend(answer.number(attribute::LIFETIME).map(seconds));
            }
            kind::REFRESH => {
                let ticket = answer.find(attribute::MOBILITY_TICKET);
                if let (Some(relayed), Some(ticket)) = (self.relayed.first(), ticket) {
                    turn.ledger
                        .update_mobile(*relayed, |mobile| mobile.tickets.push(ticket.to_vec()));
                }
                if answer.number(attribute::LIFETIME) == Some(0) {
                    let family = request.find(attribute::REQUESTED_ADDRESS_FAMILY);
                    let stays = |address: &SocketAddr| {
                        family.is_some_and(|family| (family[0] == 1) != address.is_ipv4())
                    };
                    self.relayed.retain(stays);
                    self.permitted.retain(stays);
                    self.channels.retain(|(_, peer)| stays(peer));
                }
                self.edges
                    .extend(answer.number(attribute::LIFETIME).map(seconds));
            }
            kind::CREATE_PERMISSION => {
                let peers = request.addresses(attribute::XOR_PEER_ADDRESS);
                self.permitted.extend(peers.iter().flatten());
                self.edges.push(seconds(300));
            }
            kind::CHANNEL_BIND => {
                let number = request.find(attribute::CHANNEL_NUMBER);
                let number = number.and_then(|value| value.first_chunk::<2>());
                let peer = request.address(attribute::XOR_PEER_ADDRESS);
                if let (Some(number), Some(peer)) = (number, peer) {
                    let number = u16::from_be_bytes(*number);
                    self.channels
                        .retain(|bound| bound.0 != number && bound.1 != peer);
                    self.channels.push((number, peer));
                    self.permitted.push(peer);
                    self.edges.extend([seconds(300), seconds(600)]);
                }
            }
            _ => {}
        }
        if let Some(relayed) = self.relayed.first() {
            turn.ledger.update_mobile(*relayed, |mobile| {
                mobile.permitted.clone_from(&self.permitted);
                mobile.channels.clone_from(&self.channels);
            });
        }
        let surplus = self.edges.len().saturating_sub(HISTORY);
        self.edges.drain(..surplus);
    }

    /// Answers a challenge with the same request, signed.
    fn refused(
        &mut self,
        turn: &mut Turn<'_>,
        request: &Parsed,
        answer: &Parsed,
    ) -> Option<Vec<u8>> {
        let code = answer.error_code()?;
        if code == 437 && request.kind != kind::ALLOCATE {
            self.relayed.clear();
        }
        if !matches!(code, 401 | 438) {
            return None;
        }
        let first = self.nonce.is_none();
        self.nonce = Some(answer.find(attribute::NONCE)?.to_vec());
        self.algorithms = answer
            .find(attribute::PASSWORD_ALGORITHMS)
            .map(<[u8]>::to_vec);
        if !first && turn.dice.one_in(2) {
            return None;
        }
        let mut again = Builder::new(request.kind, turn.dice.array());
        let credentials = [
            attribute::USERNAME,
            attribute::USERHASH,
            attribute::REALM,
            attribute::NONCE,
            attribute::PASSWORD_ALGORITHM,
            attribute::PASSWORD_ALGORITHMS,
            attribute::XOR_PEER_ADDRESS,
        ];
        for (kind, value) in &request.attributes {
            if !credentials.contains(kind) {
                again.put(*kind, value);
            }
        }
        for peer in request
            .addresses(attribute::XOR_PEER_ADDRESS)
            .iter()
            .flatten()
        {
            again.put_address(attribute::XOR_PEER_ADDRESS, *peer);
        }
        let bytes = self.sign(turn, again);
        self.remember(&bytes);
        Some(bytes)
    }
}

fn wish_for_a_port(dice: &mut Dice, request: &mut Builder) {
    match dice.weighted(&[8, 3, 3, 1]) {
        0 => {}
        1 => drop(request.put(attribute::REQUESTED_ADDRESS_FAMILY, &[1, 0, 0, 0])),
        2 => drop(request.put(attribute::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0])),
        _ => drop(request.put(attribute::REQUESTED_ADDRESS_FAMILY, &[9, 0, 0, 0])),
    }
    if dice.one_in(4) {
        let family = if dice.one_in(12) { 1 } else { 2 };
        request.put(attribute::ADDITIONAL_ADDRESS_FAMILY, &[family, 0, 0, 0]);
    }
    if dice.one_in(4) {
        let reserve = if dice.one_in(2) { 0x80 } else { 0 };
        request.put(attribute::EVEN_PORT, &[reserve]);
    }
    if dice.one_in(8) {
        request.put(attribute::DONT_FRAGMENT, &[]);
    }
    if dice.one_in(60) {
        let token = dice.bytes(8);
        request.put(attribute::RESERVATION_TOKEN, &token);
    }
}

/// Mostly one datagram, sometimes more at once than a limit lets pass.
fn in_bursts(
    turn: &mut Turn<'_>,
    mut datagram: impl FnMut(&mut Turn<'_>) -> Option<Vec<u8>>,
) -> Vec<Vec<u8>> {
    let count = if turn.dice.one_in(12) {
        turn.dice.below(20) + 1
    } else {
        1
    };
    (0..count).filter_map(|_| datagram(turn)).collect()
}

fn binding(turn: &mut Turn<'_>) -> Vec<u8> {
    if turn.dice.one_in(4) {
        return classic_binding(turn);
    }
    let kind = if turn.dice.one_in(8) {
        kind::BINDING_INDICATION
    } else {
        kind::BINDING
    };
    let mut request = Builder::new(kind, turn.dice.array());
    if turn.dice.one_in(3) {
        request.put(0x8022, b"a client that names itself");
    }
    if turn.dice.one_in(8) {
        request.put(0x7779, &[]);
    }
    if turn.dice.one_in(2) {
        request.fingerprint();
    }
    request.finish()
}

/// As clients of RFC 3489 ask.
fn classic_binding(turn: &mut Turn<'_>) -> Vec<u8> {
    let mut request = Builder::classic(kind::BINDING, turn.dice.array());
    if turn.dice.one_in(2) {
        let flags = *turn.dice.pick(&[0, 0, 2, 4, 6]);
        request.put(attribute::CHANGE_REQUEST, &[0, 0, 0, flags]);
    }
    if turn.dice.one_in(8) {
        request.put(0x0002, &[0, 1, 0, 9, 9, 9, 9, 9]);
    }
    request.finish()
}

fn pair(user: &(String, String)) -> (&str, &str) {
    (&user.0, &user.1)
}
