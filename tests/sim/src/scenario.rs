//! A whole run from one seed: a relay, clients and peers drawn at random, until everything has ended.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use towpath_proto::Timestamp;
use towpath_proto::relay::{AttemptLimits, Relay};
use towpath_proto::slots::Way;

use crate::client::{Client, Plan};
use crate::dice::{Dice, PerMillion};
use crate::kernel::KernelPath;
use crate::model::{Limit, LimitChange};
use crate::network::{Edge, HostId, Link, Network, Packet};
use crate::peer::Peer;
use crate::probe::Probe;
use crate::relay_host::{Faults, RelayHost};
use crate::relay_spec::{REALM, RelaySpec, START_UNIX_S};
use crate::traffic::Ledger;
use crate::world::{Context, IcmpError, Node, World};

/// Everything that runs on a host of a scenario.
#[derive(Debug)]
pub enum Actor {
    /// A relay.
    Relay(Box<RelayHost<Relay>>),
    /// A client.
    Client(Box<Client>),
    /// A peer.
    Peer(Box<Peer>),
    /// A host that a test acts for.
    Probe(Probe),
}

/// What came of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// A hash over every datagram and its time.
    pub trace_hash: u64,
    /// How often what happened.
    pub coverage: BTreeMap<String, u64>,
    /// Payloads that reached their end.
    pub payloads: u64,
    /// How long the run took in virtual time.
    pub virtual_time: Duration,
    /// Datagrams that were sent.
    pub datagrams: u64,
}

/// Runs the scenario of a seed. Panics, and says how to replay it, where an invariant is broken.
pub fn run(seed: u64) -> Outcome {
    use KernelPath::{Off, Taken, Watched};
    let mut dice = Dice::new(seed).fork("kernel path", 0);
    let path = *dice.pick(&[Off, Watched, Watched, Taken, Taken, Taken]);
    run_with(seed, path)
}

/// Runs the scenario of a seed with another kernel path than it would have.
pub fn run_with(seed: u64, path: KernelPath) -> Outcome {
    let dice = Dice::new(seed);
    let mut run = Run::new(seed, &dice, path);
    run.play();
    run.finish()
}

struct Run {
    world: World<Actor>,
    relay: HostId,
    clients: Vec<HostId>,
    ledger: Ledger,
    start: Timestamp,
    dice: Dice,
    limits: Option<Dice>,
    spec: RelaySpec,
}

impl Run {
    fn new(seed: u64, dice: &Dice, path: KernelPath) -> Self {
        let mut choices = dice.fork("scenario", 0);
        let start = *choices.pick(&[0, 1, 77_000_000_000, 1 << 52, (1 << 62) + 12_345]);
        let start = Timestamp::from_nanos(start);
        let link = some_link(&mut choices);
        let ledger = Ledger::new(link.corruption == PerMillion(0));
        let network = Network::new(link, dice.fork("network", 0));
        let mut world = World::new(seed, start, network);
        let mut spec = some_relay(&mut choices);
        spec.programs = some_programs(&mut choices, &spec);
        spec.kernel_path = path;
        if dice.fork("secrets of credentials", 0).one_in(2) {
            spec.secrets = vec![SECRET.to_owned()];
        }
        let others = ["203.0.113.7:3478", "[2001:db8::7]:3478", "203.0.113.8:5000"];
        let some = dice.fork("alternate servers", 0).below(4);
        let others = others.into_iter().take(some);
        spec.alternate_servers = others
            .map(|text| text.parse().expect("an address"))
            .collect();
        spec.mobility = !dice.fork("mobility", 0).one_in(8);
        let mut kernel = dice.fork("routes", 0);
        spec.limits.max_routes = *kernel.pick(&[2, 6, 1 << 17, 1 << 17]);
        spec.faults.refused_routes = *kernel.pick(&[PerMillion(0), PerMillion(200_000)]);
        let relay = spec.add_to(&mut world, dice, |host| Actor::Relay(Box::new(host)));
        let peers = add_peers(&mut choices, &mut world, &ledger, &spec);
        let plan = Rc::new(plan(&mut choices, &spec, peers, start));
        let clients = add_clients(&mut choices, &mut world, &ledger, &plan);
        let mut limits = dice.fork("limits", 0);
        let limits = limits.one_in(2).then_some(limits);
        let dice = dice.fork("run", 0);
        let mut run = Self {
            world,
            relay,
            clients,
            ledger,
            start,
            dice,
            limits,
            spec,
        };
        run.change_limits();
        run
    }

    /// Lets the clients do what they do, with a partition now and then.
    fn play(&mut self) {
        while self
            .clients
            .iter()
            .any(|client| self.world.node(*client).wakeup().is_some())
        {
            let slice = self
                .dice
                .duration(Duration::from_secs(1)..Duration::from_secs(400));
            self.world.run_until(self.world.now() + slice);
            if self.dice.one_in(4) {
                let client = *self.dice.pick(&self.clients);
                let length = self
                    .dice
                    .duration(Duration::from_secs(1)..Duration::from_secs(900));
                let until = self.world.now() + length;
                let (from, to) = (client, self.relay);
                let (from, to) = if self.dice.one_in(2) {
                    (from, to)
                } else {
                    (to, from)
                };
                self.world.network.partition(from, to, until);
            }
            if self.dice.one_in(4) {
                self.reload();
            }
            if self.dice.one_in(8) {
                self.set_clock();
            }
            self.change_limits();
        }
    }

    /// Changes what users may send and receive, where this run has limits at all.
    fn change_limits(&mut self) {
        let Some(dice) = &mut self.limits else {
            return;
        };
        let way = *dice.pick(&[Way::Up, Way::Down]);
        let change = match dice.below(5) {
            0 | 1 => LimitChange::Defaults(some_limit(dice), some_limit(dice)),
            2 => LimitChange::Class(way, some_limit(dice)),
            _ => {
                let (user, _) = dice.pick(&self.spec.users).clone();
                LimitChange::User(user, way, some_limit(dice))
            }
        };
        self.world.act(self.relay, |node, _| {
            let Actor::Relay(host) = node else {
                unreachable!("the relay's host has a relay")
            };
            host.change_limits(&change);
        });
    }

    /// Sets the clock of the day on the relay's host, mostly to what it is.
    fn set_clock(&mut self) {
        let passed = self.world.now().saturating_since(self.start).as_secs();
        let wrong = *self.dice.pick(&[0, 0, 5, 100, 700]);
        let unix_s = START_UNIX_S + passed;
        let unix_s = if self.dice.one_in(2) {
            unix_s + wrong
        } else {
            unix_s - wrong
        };
        self.world.act(self.relay, |node, context| {
            let Actor::Relay(host) = node else {
                unreachable!("the relay's host has a relay")
            };
            host.set_clock(context, unix_s);
        });
    }

    /// Changes who may use the relay and which peers they may reach.
    fn reload(&mut self) {
        let mut spec = self.spec.clone();
        match self.dice.below(8) {
            7 => spec.mobility = !spec.mobility,
            0 => spec.denied.push(ip("7.1.0.1")),
            1 => spec.denied.extend([ip("2a00:7::1"), ip("10.77.0.1")]),
            2 => drop(spec.users.remove(self.dice.below(spec.users.len()))),
            3 => {
                let user = self.dice.below(spec.users.len());
                spec.users[user].1.push('!');
            }
            4 if !spec.secrets.is_empty() => spec.secrets.insert(0, "another".to_owned()),
            5 => spec.secrets.clear(),
            _ => {}
        }
        self.world.act(self.relay, |node, context| {
            let Actor::Relay(host) = node else {
                unreachable!("the relay's host has a relay")
            };
            spec.reload(host, context);
        });
    }

    /// Lets everything expire; nothing may be left.
    fn finish(mut self) -> Outcome {
        let longest = self.spec.limits.max_lifetime.max(Duration::from_secs(3600));
        self.world
            .run_until(self.world.now() + longest + Duration::from_secs(60));
        let Self {
            mut world,
            relay,
            ledger,
            start,
            ..
        } = self;
        assert_eq!(world.in_flight(), 0, "datagrams are still under way");
        let coverage = world.act(relay, |node, context| {
            let Actor::Relay(host) = node else {
                unreachable!("the relay's host has a relay")
            };
            host.check_empty(context);
            host.model().coverage.clone()
        });
        Outcome {
            trace_hash: world.trace_hash(),
            coverage,
            payloads: ledger.count(),
            virtual_time: world.now().saturating_since(start),
            datagrams: world.network.counts().sent,
        }
    }
}

/// What some relays and the clients that use them share.
const SECRET: &str = "the clients' secret";

/// A limit, mostly a low one: the clients of a run send little.
fn some_limit(dice: &mut Dice) -> Option<Limit> {
    let rate = *dice.pick(&[64_000, 64_000, 100_000, 1_000_000, 20_000_000]);
    let burst = *dice.pick(&[1536, 1536, 3008, 20_032, 262_144]);
    (!dice.one_in(4)).then_some(Limit { rate, burst })
}

fn some_link(dice: &mut Dice) -> Link {
    let millis = Duration::from_millis;
    let mut link = Link::perfect(millis(dice.range(0..120)));
    if dice.one_in(4) {
        return link;
    }
    let often = |dice: &mut Dice, most: usize| {
        let most = u32::try_from(dice.below(most) + 1).expect("it is small");
        if dice.one_in(2) {
            PerMillion(most)
        } else {
            PerMillion(0)
        }
    };
    link.jitter = Duration::ZERO..millis(dice.range(0..50));
    link.loss = often(dice, 150_000);
    link.duplication = often(dice, 100_000);
    link.reordering = (often(dice, 200_000), millis(300));
    link.corruption = often(dice, 20_000);
    link
}

fn ip(text: &str) -> IpAddr {
    text.parse()
        .expect("the scenario's addresses are addresses")
}

fn some_relay(dice: &mut Dice) -> RelaySpec {
    let translated = dice.one_in(3);
    let first = if translated {
        ip("10.9.0.1")
    } else {
        ip("9.1.0.1")
    };
    let mut addresses = vec![(first, ip("9.1.0.1"))];
    if dice.one_in(3) {
        let second = if translated {
            ip("10.9.0.2")
        } else {
            ip("9.1.0.2")
        };
        addresses.push((second, ip("9.1.0.2")));
    }
    if !dice.one_in(3) {
        addresses.push((ip("2a00:9::1"), ip("2a00:9::1")));
    }
    let mut spec = RelaySpec::simple(addresses);
    spec.other_addresses = vec![ip("9.7.7.7"), ip("192.168.7.7")];
    spec.wildcard = dice.one_in(2);
    spec.shards = *dice.pick(&[1, 1, 2, 3, 4]);
    if dice.one_in(3) {
        let ports = spec.shards * 2 * u16::try_from(dice.below(3) + 1).expect("it is small");
        spec.port_range = 50_001..=50_001 + ports;
    }
    spec.users = ["alice", "bob", "carol"]
        .map(|name| (name.into(), format!("{name}'s")))
        .to_vec();
    spec.allowed = vec![ip("10.77.0.1")];
    spec.denied = vec![ip("7.6.6.6")];
    let minutes = |n: u64| Duration::from_secs(60 * n);
    spec.limits.default_lifetime = *dice.pick(&[minutes(1), minutes(10), minutes(10)]);
    spec.limits.max_lifetime = *dice.pick(&[minutes(10), minutes(20), minutes(60)]);
    spec.limits.max_permissions = *dice.pick(&[2, 5, 256]);
    spec.limits.max_channels = *dice.pick(&[1, 3, 256]);
    spec.limits.allocations_per_user = *dice.pick(&[None, None, Some(2), Some(5)]);
    spec.limits.allocations_per_network = *dice.pick(&[None, None, Some(3), Some(8)]);
    spec.limits.allocations_in_total = *dice.pick(&[None, None, Some(6)]);
    spec.limits.attempts.per_user = *dice.pick(&[1, 2, AttemptLimits::UNLIMITED]);
    spec.faults = some_faults(dice);
    spec
}

fn some_faults(dice: &mut Dice) -> Faults {
    let sometimes = |dice: &mut Dice, per_million| {
        if dice.one_in(3) {
            PerMillion(per_million)
        } else {
            PerMillion(0)
        }
    };
    Faults {
        in_use: sometimes(dice, 200_000),
        no_descriptors: sometimes(dice, 100_000),
        refused_routes: PerMillion(0),
        misdirected: sometimes(dice, 300_000),
        slow_answers: sometimes(dice, 500_000),
        lateness: *dice.pick(&[
            Duration::ZERO,
            Duration::from_micros(100),
            Duration::from_millis(4),
        ]),
    }
}

/// Other programs have sockets on the relay's host: on loopback, and among the relayed ports.
fn some_programs(dice: &mut Dice, spec: &RelaySpec) -> Vec<SocketAddr> {
    let local = spec.addresses[0].0;
    let mut programs = vec![
        SocketAddr::new(ip("127.0.0.1"), 22),
        SocketAddr::new(local, 22),
    ];
    if dice.one_in(3) {
        let (first, last) = (*spec.port_range.start(), *spec.port_range.end());
        let port = dice.range(u64::from(first)..u64::from(last) + 1);
        programs.push(SocketAddr::new(
            local,
            u16::try_from(port).expect("it is a port"),
        ));
    }
    programs
}

fn add_peers(
    dice: &mut Dice,
    world: &mut World<Actor>,
    ledger: &Ledger,
    spec: &RelaySpec,
) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for index in 0..dice.below(3) + 1 {
        let mut addresses = vec![ip(&format!("7.1.0.{}", index + 1))];
        addresses.push(ip(&format!("2a00:7::{}", index + 1)));
        if index == 0 {
            addresses.extend(&spec.allowed);
        }
        let sockets: Vec<SocketAddr> = addresses
            .iter()
            .flat_map(|ip| [SocketAddr::new(*ip, 4000), SocketAddr::new(*ip, 4001)])
            .collect();
        let sends = u32::try_from(dice.below(40)).expect("it is small");
        let peer = Peer::new(
            sockets.clone(),
            ledger.clone(),
            dice.fork("peer", index as u64),
            sends,
        );
        let host = world.add(&addresses, Edge::Open, Actor::Peer(Box::new(peer)));
        bind(world, host, &sockets);
        all.extend(sockets);
    }
    all
}

fn plan(dice: &mut Dice, spec: &RelaySpec, peers: Vec<SocketAddr>, start: Timestamp) -> Plan {
    let forbidden = [
        "127.0.0.1:22",
        "10.0.0.1:80",
        "169.254.169.254:80",
        "224.0.0.1:5000",
        "255.255.255.255:5000",
        "0.0.0.0:22",
        "7.6.6.6:4000",
        "[::1]:22",
        "[::]:22",
        "[::ffff:127.0.0.1]:22",
        "[::ffff:9.1.0.1]:3478",
        "[::9.1.0.1]:3478",
        "[64:ff9b::7f00:1]:22",
        "[64:ff9b::901:1]:3478",
        "[2002:901:1::1]:3478",
        "[2002:7f00:1::]:22",
        "[2001:0:a00:1::]:22",
        "[fe80::1]:22",
        "[fd00::1]:22",
        "[ff02::1]:5000",
    ];
    let forbidden = forbidden
        .map(|text| text.parse().expect("these are addresses"))
        .to_vec();
    let mut relay = Vec::new();
    let (first, last) = (*spec.port_range.start(), *spec.port_range.end());
    for (local, public) in &spec.addresses {
        for ip in [local, public] {
            let port = dice.range(u64::from(first)..u64::from(last) + 1);
            let port = u16::try_from(port).expect("it is a port");
            relay.extend([SocketAddr::new(*ip, port), SocketAddr::new(*ip, 22)]);
        }
    }
    relay.extend(
        spec.other_addresses
            .iter()
            .map(|ip| SocketAddr::new(*ip, first)),
    );
    Plan {
        servers: spec.servers(),
        realm: REALM.to_owned(),
        users: spec.users.clone(),
        secret: (!spec.secrets.is_empty()).then(|| SECRET.to_owned()),
        wall: (start, START_UNIX_S),
        peers,
        forbidden,
        relay,
        actions: u32::try_from(dice.below(80) + 20).expect("it is small"),
    }
}

fn add_clients(
    dice: &mut Dice,
    world: &mut World<Actor>,
    ledger: &Ledger,
    plan: &Rc<Plan>,
) -> Vec<HostId> {
    let v6 = plan.servers.iter().any(SocketAddr::is_ipv6);
    let mut all = Vec::new();
    for index in 0..dice.below(5) + 1 {
        let mut addresses = vec![ip(&format!("8.1.0.{}", index + 1))];
        if v6 {
            addresses.push(ip(&format!("2a00:8::{}", index + 1)));
        }
        let count = dice.below(3) + 1;
        let sockets: Vec<SocketAddr> = (0..count)
            .map(|socket| {
                let port = u16::try_from(2000 + socket).expect("it is a port");
                SocketAddr::new(*dice.pick(&addresses), port)
            })
            .collect();
        let own = dice.fork("client", index as u64);
        let start = world.now();
        let client = Client::new(Rc::clone(plan), ledger.clone(), own, &sockets, start);
        let host = world.add(&addresses, Edge::Open, Actor::Client(Box::new(client)));
        bind(world, host, &sockets);
        all.push(host);
    }
    all
}

fn bind(world: &mut World<Actor>, host: HostId, sockets: &[SocketAddr]) {
    for socket in sockets {
        world
            .network
            .bind(host, *socket)
            .expect("the host's ports are free");
    }
}

impl Node for Actor {
    fn handle_packet(&mut self, context: &mut Context<'_>, packet: Packet) {
        match self {
            Self::Relay(relay) => relay.handle_packet(context, packet),
            Self::Client(client) => client.handle_packet(context, packet),
            Self::Peer(peer) => peer.handle_packet(context, packet),
            Self::Probe(probe) => probe.handle_packet(context, packet),
        }
    }

    fn handle_icmp(&mut self, context: &mut Context<'_>, error: IcmpError) {
        match self {
            Self::Relay(relay) => relay.handle_icmp(context, error),
            Self::Client(_) | Self::Peer(_) | Self::Probe(_) => {}
        }
    }

    fn handle_wakeup(&mut self, context: &mut Context<'_>) {
        match self {
            Self::Relay(relay) => relay.handle_wakeup(context),
            Self::Client(client) => client.handle_wakeup(context),
            Self::Peer(peer) => peer.handle_wakeup(context),
            Self::Probe(probe) => probe.handle_wakeup(context),
        }
    }

    fn wakeup(&self) -> Option<Timestamp> {
        match self {
            Self::Relay(relay) => relay.wakeup(),
            Self::Client(client) => client.wakeup(),
            Self::Peer(peer) => peer.wakeup(),
            Self::Probe(probe) => probe.wakeup(),
        }
    }
}
