//! Relayed ports are conserved: whatever clients ask of three shards that share one range, and however
//! their shells fail, no port is given out twice and none is lost.
//!
//! Clients allocate, with EVEN-PORT, reservations and tokens of their own and of others, in both
//! families; they refresh, delete, repeat themselves and go silent. Ports open late, not at all, or are
//! somebody else's. Users disappear and come back. `TOWPATH_PORT_OPERATIONS` sets how many operations
//! there are.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use towpath_proto::access::AccessRules;
use towpath_proto::credentials::LongTermKey;
use towpath_proto::machine::{
    Datagram, ListenerId, PortId, ShardId, Socket, TRANSMIT_BUFFER_BYTES, TrafficClass, Transmit,
};
use towpath_proto::ports::shard_of_port;
use towpath_proto::relay::{
    Credential, PortError, Relay, RelayAddress, RelayCommand, RelayConfig, RelayCounters,
    RelayEvent, RelayLimits, RelayShared, StrangerLimits,
};
use towpath_proto::wire::attribute::{
    AdditionalAddressFamily, Algorithm, ErrorCode, EvenPort, Family, Lifetime, Nonce, Realm,
    RequestedAddressFamily, RequestedTransport, ReservationToken, Username, XorRelayedAddress,
};
use towpath_proto::wire::{
    Class, IntegrityKey, Message, MessageType, MessageWriter, Method, TransactionId,
};
use towpath_proto::{Machine, Timestamp};

/// Operations in an ordinary run, over all worlds.
const OPERATIONS: u64 = 2_000_000;
/// Worlds of their own, one thread each.
const WORLDS: u64 = 2;
/// After so many operations everybody goes silent, and every port must be there.
const OPERATIONS_TO_SILENCE: u64 = 20_000;

const REALM: &str = "r";
const SHARDS: u16 = 3;
/// The ends are halves of pairs.
const FIRST_PORT: u16 = 50_001;
const LAST_PORT: u16 = 50_064;
const RELAY_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(5, 5, 5, 5));
const USERS: [&str; 3] = ["u0", "u1", "u2"];
/// What one user may have; together they may have more than there is.
const QUOTA: u32 = 50;
/// Clients of one shard: more than it has ports.
const CLIENTS: u16 = 60;
/// RFC 8656 §7.2 wants 30 s at least; nobody keeps a port for nothing for much longer.
const LONGEST_RESERVATION: Duration = Duration::from_secs(60);
/// Longer than anything the relay keeps.
const LONG_SILENCE: Duration = Duration::from_secs(3 * 3600);
/// More than a shard can have to do at one time.
const MAX_POLLS: usize = 100_000;

#[derive(Clone, Copy)]
enum Shell {
    Opens,
    Waits,
    Fails(PortError),
}

struct Shard {
    relay: Relay,
    counters: Arc<RelayCounters>,
    shell: Shell,
    open: BTreeMap<PortId, SocketAddr>,
    /// OpenPort commands that are not answered yet.
    opening: Vec<(PortId, SocketAddr)>,
}

struct Client {
    address: SocketAddr,
    shard: usize,
    user: usize,
    nonce: Vec<u8>,
    /// The last request.
    last: Vec<u8>,
    /// The token that the last request showed.
    shown: Option<[u8; 8]>,
    /// What it was answered.
    outcome: Option<Result<Option<SocketAddr>, u16>>,
}

struct World {
    now: Timestamp,
    rng: ChaCha8Rng,
    config: RelayConfig,
    shared: Arc<RelayShared>,
    shards: Vec<Shard>,
    clients: Vec<Client>,
    by_address: HashMap<SocketAddr, usize>,
    keys: [IntegrityKey; 3],
    /// Tokens that were given out and not claimed, with the time.
    tokens: Vec<([u8; 8], Timestamp)>,
    transactions: u64,
}

fn config() -> (RelayConfig, [IntegrityKey; 3]) {
    let keys = USERS.map(|user| LongTermKey::derive(Algorithm::Md5, user, REALM, "p").unwrap());
    let users = USERS.iter().zip(&keys).map(|(user, key)| {
        let md5 = key.as_bytes().try_into().unwrap();
        (*user, Credential { md5, sha256: None })
    });
    let unlimited = StrangerLimits::UNLIMITED;
    let config = RelayConfig {
        realm: REALM.to_owned(),
        software: None,
        listeners: vec![SocketAddr::new(RELAY_V4, 3478)],
        relay_addresses: vec![
            RelayAddress::direct(RELAY_V4),
            RelayAddress::direct("2600::5".parse().unwrap()),
        ],
        own_addresses: Vec::new(),
        behavior: None,
        alternate_servers: Vec::new(),
        mobility: false,
        port_range: FIRST_PORT..=LAST_PORT,
        shards: SHARDS,
        users: users.collect(),
        access: AccessRules::default(),
        limits: RelayLimits {
            allocations_per_user: Some(QUOTA),
            strangers: StrangerLimits {
                per_source: unlimited,
                per_network: unlimited,
                in_total: unlimited,
            },
            ..RelayLimits::default()
        },
        offload: false,
        nonce_secret: [3; 32],
    };
    config.validate().unwrap();
    (config, keys.map(|key| IntegrityKey::new(key.as_bytes())))
}

impl World {
    fn new(seed: u64) -> Self {
        let (config, keys) = config();
        let shared = Arc::new(RelayShared::new(&config));
        let shard = |number| {
            let seed = [number as u8 + 1; 32];
            let (config, shared) = (Arc::new(config.clone()), Arc::clone(&shared));
            let relay = Relay::new(config, shared, ShardId(number), seed);
            Shard {
                counters: relay.counters(),
                relay,
                shell: Shell::Opens,
                open: BTreeMap::new(),
                opening: Vec::new(),
            }
        };
        let mut world = Self {
            now: Timestamp::ZERO + Duration::from_secs(1_000),
            rng: ChaCha8Rng::seed_from_u64(seed),
            shards: (0..SHARDS).map(shard).collect(),
            config,
            shared,
            clients: Vec::new(),
            by_address: HashMap::new(),
            keys,
            tokens: Vec::new(),
            transactions: 0,
        };
        for client in 0..CLIENTS * SHARDS {
            world.add_client(
                usize::from(client % SHARDS),
                usize::from(client / SHARDS % 3),
            );
        }
        world
    }

    fn add_client(&mut self, shard: usize, user: usize) -> usize {
        let number = self.clients.len();
        let port = u16::try_from(1_024 + number).unwrap();
        let address = SocketAddr::from(([9, 9, 9, 9], port));
        self.by_address.insert(address, number);
        self.clients.push(Client {
            address,
            shard,
            user,
            nonce: Vec::new(),
            last: Vec::new(),
            shown: None,
            outcome: None,
        });
        number
    }

    fn below(&mut self, end: u32) -> u32 {
        ((u64::from(self.rng.next_u32()) * u64::from(end)) >> 32) as u32
    }

    fn one_in(&mut self, chances: u32) -> bool {
        self.below(chances) == 0
    }

    fn operate(&mut self) {
        let client = self.below(u32::from(CLIENTS * SHARDS)) as usize;
        let shard = self.below(u32::from(SHARDS)) as usize;
        match self.below(1_000) {
            0..450 => self.allocate_anything(client),
            450..700 => {
                let lifetime = [0, 0, 600, 3_000][self.below(4) as usize];
                self.refresh(client, lifetime);
            }
            700..800 => self.repeat(client),
            800..900 => {
                let answers = self.below(4);
                (0..answers).for_each(|_| self.answer_waiting(shard));
            }
            900..950 => {
                self.shards[shard].shell = match self.below(10) {
                    0 => Shell::Fails(PortError::InUse),
                    1 => Shell::Fails(PortError::NoDescriptors),
                    2 | 3 => Shell::Waits,
                    _ => Shell::Opens,
                };
            }
            950..985 => {
                let passed = Duration::from_millis(self.below(2_000).into());
                self.pass(passed);
            }
            985..997 => {
                let passed = Duration::from_secs(self.below(50).into());
                self.pass(passed);
            }
            997..999 => {
                let passed = Duration::from_secs(self.below(1_000).into());
                self.pass(passed);
            }
            _ => self.change_users(),
        }
    }

    /// An Allocate request as somebody may make it up.
    fn allocate_anything(&mut self, client: usize) {
        let family = [None, Some(Family::V4), Some(Family::V6)][self.below(3) as usize];
        let even = [None, None, Some(false), Some(true)][self.below(4) as usize];
        let token = if self.one_in(4) && !self.tokens.is_empty() {
            let place = self.below(self.tokens.len() as u32) as usize;
            Some(self.tokens[place].0)
        } else {
            self.one_in(50).then_some([7; 8])
        };
        let both = self.one_in(10);
        // A token goes with no other wish; one in ten does not care.
        let careless = self.one_in(10);
        let lifetime = self.one_in(3).then(|| self.below(5_000));
        let wish = |writer: &mut MessageWriter<'_>| {
            writer.put(&RequestedTransport::UDP).unwrap();
            writer.put_some(lifetime.map(Lifetime).as_ref()).unwrap();
            let token = token.map(ReservationToken);
            writer.put_some(token.as_ref()).unwrap();
            if token.is_some() && !careless {
                return;
            }
            let even = even.map(|reserve_next| EvenPort { reserve_next });
            writer.put_some(even.as_ref()).unwrap();
            if both {
                writer.put(&AdditionalAddressFamily(Family::V6)).unwrap();
            } else {
                let family = family.map(RequestedAddressFamily);
                writer.put_some(family.as_ref()).unwrap();
            }
        };
        self.clients[client].shown = token;
        self.request(client, Method::ALLOCATE, &wish);
    }

    fn refresh(&mut self, client: usize, lifetime: u32) {
        self.clients[client].shown = None;
        self.request(client, Method::REFRESH, &|writer| {
            writer.put(&Lifetime(lifetime)).unwrap();
        });
    }

    /// A request; one that is refused for its nonce is made again with a new one.
    fn request(&mut self, client: usize, method: Method, fill: &dyn Fn(&mut MessageWriter<'_>)) {
        for _ in 0..2 {
            self.transactions += 1;
            let mut id = [0; 12];
            id[4..].copy_from_slice(&self.transactions.to_be_bytes());
            let mut buffer = [0; 512];
            let kind = MessageType::new(method, Class::Request);
            let mut writer = MessageWriter::new(&mut buffer, kind, TransactionId(id)).unwrap();
            fill(&mut writer);
            let known = &self.clients[client];
            writer
                .put(&Username(USERS[known.user]))
                .and_then(|writer| writer.put(&Realm(REALM)))
                .and_then(|writer| writer.put(&Nonce(&known.nonce)))
                .and_then(|writer| writer.integrity(&self.keys[known.user]))
                .unwrap();
            self.clients[client].last = writer.finish().to_vec();
            self.repeat(client);
            if !matches!(self.clients[client].outcome, Some(Err(401 | 438))) {
                return;
            }
        }
    }

    /// Sends the client's last request again.
    fn repeat(&mut self, client: usize) {
        let known = &mut self.clients[client];
        known.outcome = None;
        let mut bytes = known.last.clone();
        let datagram = Datagram {
            socket: Socket::Listener(ListenerId(0)),
            local: RELAY_V4,
            remote: known.address,
            traffic_class: TrafficClass::ORDINARY,
            payload: &mut bytes,
        };
        let relay = &mut self.shards[known.shard].relay;
        assert_eq!(relay.handle_datagram(self.now, datagram), None);
        self.settle();
    }

    fn answer_waiting(&mut self, shard: usize) {
        let waiting = self.shards[shard].opening.len() as u32;
        if waiting == 0 {
            return;
        }
        let place = self.below(waiting) as usize;
        let (port, local) = self.shards[shard].opening.swap_remove(place);
        match self.below(4) {
            0 => self.failed(shard, port, PortError::InUse),
            1 => self.failed(shard, port, PortError::Other),
            _ => self.opened(shard, port, local),
        }
        self.settle();
    }

    fn failed(&mut self, shard: usize, port: PortId, error: PortError) {
        let event = RelayEvent::PortFailed { port, error };
        self.shards[shard].relay.handle_event(self.now, event);
    }

    fn opened(&mut self, shard: usize, port: PortId, local: SocketAddr) {
        let before = self.shards[shard].open.insert(port, local);
        assert_eq!(before, None, "{port:?} of shard {shard} was opened twice");
        let event = RelayEvent::PortOpened { port };
        self.shards[shard].relay.handle_event(self.now, event);
    }

    /// The last user is removed from the configuration, or is there again.
    fn change_users(&mut self) {
        let (mut all, _) = config();
        if self.config.users.len() == USERS.len() {
            let known = |name: &&str| {
                let user = self.config.users.find(name).unwrap();
                (user.name().to_string(), user.credential().unwrap().clone())
            };
            let kept: Vec<_> = USERS[..2].iter().map(known).collect();
            let kept = kept.iter().map(|(name, key)| (name.as_str(), key.clone()));
            all.users = kept.collect();
        }
        self.config = all;
        self.tell_config();
    }

    fn tell_config(&mut self) {
        for shard in &mut self.shards {
            let event = RelayEvent::Reconfigured(Arc::new(self.config.clone()));
            shard.relay.handle_event(self.now, event);
        }
        self.settle();
    }

    /// Lets time pass as shells do: from deadline to deadline.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.deadline().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.settle();
        }
        self.now = end;
    }

    fn deadline(&self) -> Option<Timestamp> {
        let deadlines = self
            .shards
            .iter()
            .filter_map(|shard| shard.relay.poll_timeout());
        deadlines.min()
    }

    /// Does what the shards ask for, until none asks for anything more now.
    fn settle(&mut self) {
        for _ in 0..MAX_POLLS {
            for shard in 0..self.shards.len() {
                self.carry_out_commands(shard);
                self.deliver_answers(shard);
                let relay = &mut self.shards[shard].relay;
                if relay.poll_timeout().is_some_and(|next| next <= self.now) {
                    relay.handle_timeout(self.now);
                }
            }
            if self.deadline().is_none_or(|next| next > self.now) {
                return;
            }
        }
        panic!("the shards do not come to rest");
    }

    fn carry_out_commands(&mut self, shard: usize) {
        while let Some(command) = self.shards[shard].relay.poll_command() {
            match command {
                RelayCommand::OpenPort { port, local } => {
                    self.check_new(local);
                    match self.shards[shard].shell {
                        Shell::Opens => self.opened(shard, port, local),
                        Shell::Waits => self.shards[shard].opening.push((port, local)),
                        Shell::Fails(error) => self.failed(shard, port, error),
                    }
                }
                RelayCommand::ClosePort { port } => {
                    let closed = self.shards[shard].open.remove(&port);
                    assert!(closed.is_some(), "{port:?} of shard {shard} is not open");
                }
                RelayCommand::SetRoute { .. }
                | RelayCommand::RemoveRoute { .. }
                | RelayCommand::HandOver { .. }
                | RelayCommand::Notify(_) => {}
            }
        }
    }

    fn deliver_answers(&mut self, shard: usize) {
        let mut buffer = [0; TRANSMIT_BUFFER_BYTES];
        while let Some(transmit) = self.shards[shard]
            .relay
            .poll_transmit(self.now, &mut buffer)
        {
            self.answered(&transmit, &buffer);
        }
    }

    fn answered(&mut self, transmit: &Transmit, buffer: &[u8]) {
        let client = &mut self.clients[self.by_address[&transmit.destination]];
        let message = Message::parse(&buffer[transmit.payload.clone()]).unwrap();
        if let Some(Nonce(nonce)) = message.get().unwrap() {
            client.nonce = nonce.to_vec();
        }
        if let Some(ReservationToken(token)) = message.get().unwrap()
            && self.tokens.iter().all(|(known, _)| *known != token)
        {
            self.tokens.push((token, self.now));
        }
        let last = Message::parse(&client.last).unwrap();
        if last.transaction_id() != message.transaction_id() {
            return;
        }
        let error = message.get::<ErrorCode<'_>>().unwrap();
        let relayed = message.get::<XorRelayedAddress>().unwrap();
        client.outcome = Some(match error {
            Some(error) => Err(error.code.number()),
            None => Ok(relayed.map(|relayed| relayed.0)),
        });
        if error.is_none()
            && let Some(shown) = client.shown
        {
            self.tokens.retain(|(token, _)| *token != shown);
        }
    }

    /// What is to be opened is a port of this relay that nobody has.
    fn check_new(&self, local: SocketAddr) {
        assert!((FIRST_PORT..=LAST_PORT).contains(&local.port()), "{local}");
        let taken = |other: &SocketAddr| *other == local;
        for (number, shard) in self.shards.iter().enumerate() {
            let waits = shard.opening.iter().any(|(_, other)| taken(other));
            let open = shard.open.values().any(taken);
            assert!(
                !waits && !open,
                "{local} is given out twice, by shard {number} too"
            );
        }
    }

    /// Every port is free, in use, or reserved.
    fn check(&mut self) {
        let oldest = self.now - LONGEST_RESERVATION;
        self.tokens.retain(|(_, given)| *given >= oldest);
        let open: u64 = self
            .shards
            .iter()
            .map(|shard| shard.open.len() as u64)
            .sum();
        let opening: u64 = self
            .shards
            .iter()
            .map(|shard| shard.opening.len() as u64)
            .sum();
        let in_use: u64 = self
            .shards
            .iter()
            .map(|shard| shard.counters.ports_in_use.value())
            .sum();
        // A port that is being opened may have the next one reserved, which nobody was told of yet.
        let most = open + 2 * opening + self.tokens.len() as u64;
        assert!(
            (open + opening..=most).contains(&in_use),
            "{in_use} ports are in use, {open} are open, {opening} are being opened, {} reserved",
            self.tokens.len()
        );
        for address in 0..2 {
            let family = |local: &&SocketAddr| local.is_ipv4() == (address == 0);
            let ports = self.shards.iter().flat_map(|shard| shard.open.values());
            let open = ports.filter(family).count();
            let live = self.shared.live_ports(address) as usize;
            // The first port of a dual allocation is open before the allocation is there.
            assert!(
                (open.saturating_sub(opening as usize)..=open).contains(&live),
                "{live} ports are in use, {open} are open, {opening} are being opened"
            );
        }
    }

    /// Everybody is silent for long: every port is back, each can be given out once more, and every
    /// user may have as many as ever.
    fn check_in_silence(&mut self) {
        for shard in 0..self.shards.len() {
            self.shards[shard].shell = Shell::Opens;
            while !self.shards[shard].opening.is_empty() {
                self.answer_waiting(shard);
            }
        }
        if self.config.users.len() < USERS.len() {
            self.change_users();
        }
        self.pass(LONG_SILENCE);
        self.check_nothing_in_use();

        let ordinary = self.clients.len();
        let mut ports = BTreeSet::new();
        let mut of_user = [0; USERS.len()];
        for family in [Family::V4, Family::V6] {
            for shard in 0..self.shards.len() {
                let pool = (FIRST_PORT..=LAST_PORT)
                    .filter(|port| shard_of_port(*port, SHARDS) == ShardId(shard as u16));
                for _ in pool {
                    let user = of_user.iter().position(|ports| *ports < QUOTA).unwrap();
                    of_user[user] += 1;
                    let relayed = self.allocate_newly(shard, user, family);
                    assert!(ports.insert(relayed.unwrap().unwrap()));
                }
                let free = of_user.iter().position(|ports| *ports < QUOTA).unwrap();
                let one_more = self.allocate_newly(shard, free, family);
                assert_eq!(one_more, Err(508));
            }
        }
        assert_eq!(ports.len(), 2 * usize::from(LAST_PORT - FIRST_PORT + 1));
        // RFC 8656 §7.2: a user "who has reached their allocation quota" is refused with 486.
        assert_eq!(of_user[0], QUOTA);
        assert_eq!(self.allocate_newly(0, 0, Family::V4), Err(486));

        for client in ordinary..self.clients.len() {
            self.refresh(client, 0);
        }
        self.check_nothing_in_use();
        for client in self.clients.drain(ordinary..) {
            self.by_address.remove(&client.address);
        }
    }

    fn allocate_newly(
        &mut self,
        shard: usize,
        user: usize,
        family: Family,
    ) -> Result<Option<SocketAddr>, u16> {
        let client = self.add_client(shard, user);
        self.request(client, Method::ALLOCATE, &|writer| {
            writer.put(&RequestedTransport::UDP).unwrap();
            writer.put(&RequestedAddressFamily(family)).unwrap();
        });
        self.clients[client].outcome.expect("a request is answered")
    }

    fn check_nothing_in_use(&mut self) {
        self.tokens.clear();
        self.check();
        for shard in &self.shards {
            let counters = &shard.counters;
            assert_eq!(
                (counters.allocations.value(), counters.ports_in_use.value()),
                (0, 0)
            );
        }
    }
}

fn run(seed: u64, operations: u64) {
    let mut world = World::new(seed);
    let mut granted = 0;
    for operation in 1..=operations {
        world.operate();
        if operation % 16 == 0 {
            world.check();
        }
        if operation % OPERATIONS_TO_SILENCE == 0 {
            world.check_in_silence();
        }
    }
    world.check_in_silence();
    for shard in &world.shards {
        granted += shard.counters.allocations_made.value();
    }
    assert!(
        granted > operations / 50,
        "{granted} allocations in {operations} operations"
    );
}

#[test]
fn two_million_operations_lose_and_double_no_relayed_port() {
    let operations = std::env::var("TOWPATH_PORT_OPERATIONS").map_or(OPERATIONS, |operations| {
        operations.parse().expect("a number of operations")
    });
    std::thread::scope(|scope| {
        for seed in 0..WORLDS {
            scope.spawn(move || run(seed, operations / WORLDS));
        }
    });
}
