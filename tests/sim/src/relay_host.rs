//! The relay's host: several shards of one relay machine, a shell around each, and the reference
//! beside them.
//!
//! ```text
//!   packet ─▶ steering ─▶ shard's shell ─▶ Outputs ─▶ Model::conclude ─▶ routes, sockets, network
//!      │          └─▶ mailbox, where the kernel chose another shard
//!      └────▶ the kernel's route, where there is one ─▶ Model::conclude ─▶ network
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use towpath_proto::machine::{IcmpError as Told, ListenerId, PortId, ShardId, Socket};
use towpath_proto::relay::{
    DropReason, Notice, PortError, RelayCommand, RelayConfig, RelayCounters, RelayEvent,
    RelayShared, Traffic,
};
use towpath_proto::{Machine, Timestamp, WallClock};

use crate::dice::{Dice, PerMillion};
use crate::kernel::{Forwarded, Kernel, KernelPath};
use crate::model::special_use::{self, Verdict};
use crate::model::{
    Expectation, Flow, LimitChange, Model, Observed, PortChange, Rules, Sent, Totals, is_in_a_loop,
};
use crate::network::{BindError, Packet};
use crate::shell::{Outputs, Shell};
use crate::steering::shard_of;
use crate::world::{Context, IcmpError, Node};

/// What goes wrong on a relay's host, and how late it is.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Ports that cannot be opened because somebody else has them.
    pub in_use: PerMillion,
    /// Ports that cannot be opened because there are no descriptors.
    pub no_descriptors: PerMillion,
    /// Datagrams that the kernel gives to another shard.
    pub misdirected: PerMillion,
    /// Answers to commands that come later than at once.
    pub slow_answers: PerMillion,
    /// Routes that the kernel does not take.
    pub refused_routes: PerMillion,
    /// How late the host wakes up, at most.
    pub lateness: Duration,
}

impl Faults {
    /// Nothing goes wrong.
    pub const fn none() -> Self {
        Self {
            in_use: PerMillion(0),
            no_descriptors: PerMillion(0),
            misdirected: PerMillion(0),
            slow_answers: PerMillion(0),
            refused_routes: PerMillion(0),
            lateness: Duration::ZERO,
        }
    }

    /// Whether a port may fail to open.
    pub fn ports_fail(&self) -> bool {
        self.in_use > PerMillion(0) || self.no_descriptors > PerMillion(0)
    }
}

/// A relay of several shards on one host.
#[derive(Debug)]
pub struct RelayHost<M: Machine> {
    shards: Vec<Shard<M>>,
    shared: Arc<RelayShared>,
    listeners: Vec<SocketAddr>,
    max_ports: usize,
    owners: BTreeMap<SocketAddr, (ShardId, PortId)>,
    mailbox: BTreeMap<(Timestamp, u64), Message>,
    messages: u64,
    model: Model,
    kernel: Kernel,
    /// What the kernel would send for the datagram that is looked at.
    awaited: Option<Sent>,
    faults: Faults,
    dice: Dice,
    lateness: Duration,
    notices: Notices,
}

#[derive(Debug)]
struct Shard<M: Machine> {
    shell: Shell<M>,
    counters: Arc<RelayCounters>,
    drops_seen: Vec<u64>,
    ports: BTreeMap<PortId, SocketAddr>,
}

/// What comes later than at once.
#[derive(Debug)]
enum Message {
    /// A datagram that another shard's socket received.
    HandedOver(ShardId, Packet),
    /// Whether a port could be opened.
    PortAnswer(ShardId, PortId, Result<(), PortError>),
}

/// What the notices told.
#[derive(Clone, Copy, Default, Debug)]
pub struct Notices {
    /// Allocations made.
    pub made: u64,
    /// Allocations that followed their clients.
    pub moved: u64,
    /// Allocations ended.
    pub ended: u64,
    /// What the ended ones relayed.
    pub traffic: Traffic,
}

/// What [`RelayHost::new`] is told.
#[derive(Debug)]
pub struct RelayHostConfig<M> {
    /// The machines, by shard, with their counters.
    pub machines: Vec<(M, Arc<RelayCounters>)>,
    /// What they share.
    pub shared: Arc<RelayShared>,
    /// Ports that one machine may hold.
    pub max_ports: usize,
    /// Channels that one allocation may have.
    pub max_channels: usize,
    /// What becomes of packets that have a route.
    pub kernel_path: KernelPath,
    /// What goes wrong.
    pub faults: Faults,
}

impl<M: Machine<Command = RelayCommand, Event = RelayEvent>> RelayHost<M> {
    /// A relay that was just started; its listening addresses have to be bound by the caller.
    pub fn new(config: RelayHostConfig<M>, model: Model, dice: Dice) -> Self {
        let shard = |(machine, counters)| Shard {
            shell: Shell::new(machine, config.max_ports, config.max_channels),
            counters,
            drops_seen: vec![0; DropReason::ALL.len()],
            ports: BTreeMap::new(),
        };
        let kernel = Kernel::new(
            config.kernel_path,
            model.rules.port_range.clone(),
            config.faults.refused_routes,
            dice.fork("kernel", 0),
        );
        Self {
            kernel,
            awaited: None,
            shards: config.machines.into_iter().map(shard).collect(),
            shared: config.shared,
            listeners: model.rules.listeners.clone(),
            max_ports: config.max_ports,
            owners: BTreeMap::new(),
            mailbox: BTreeMap::new(),
            messages: 0,
            model,
            faults: config.faults,
            dice,
            lateness: Duration::ZERO,
            notices: Notices::default(),
        }
    }

    /// The reference.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The kernel's routes.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The counters of all shards.
    pub fn counters(&self) -> impl Iterator<Item = &RelayCounters> {
        self.shards.iter().map(|shard| &*shard.counters)
    }

    /// Relayed ports that are open on this host.
    pub fn open_ports(&self) -> usize {
        self.owners.len()
    }

    /// Sets limits, in the relay and in the reference.
    pub fn change_limits(&mut self, change: &LimitChange) {
        self.model.change_limits(&**self.shared.slots(), change);
        self.model.count("limit change");
    }

    /// Compares the reference's view of ports, counters and notices with the relay's.
    pub fn check(&self, context: &Context<'_>) {
        self.model.check_meters(&**self.shared.slots());
        let open: BTreeSet<SocketAddr> = self.owners.keys().copied().collect();
        let unanswered = self
            .mailbox
            .values()
            .filter(|message| matches!(message, Message::PortAnswer(_, _, Err(_))));
        let expected = self.model.ports();
        assert_eq!(
            open.len() + unanswered.count(),
            expected.len(),
            "{open:?} {expected:?}"
        );
        assert!(open.is_subset(&expected), "{open:?} {expected:?}");
        let bound = context.network.sockets(context.host);
        assert!(open.is_subset(bound), "a relayed port has no socket");
        let live: u32 = (0..self.model.rules.relay_addresses.len())
            .map(|address| self.shared.live_ports(address))
            .sum();
        let allocations = self.model.allocations().len();
        let live = usize::try_from(live).expect("ports are counted in 16 bits");
        assert!(
            (allocations..=expected.len()).contains(&live),
            "{live} ports are marked as live, there are {allocations} allocations"
        );
        let sum = |of: fn(&RelayCounters) -> u64| self.counters().map(of).sum::<u64>();
        assert_eq!(
            sum(|c| c.routes.value()),
            self.kernel.told().len() as u64,
            "routes are counted as they are told"
        );
        let totals = self.machine_totals();
        assert_eq!(sum(|c| c.packets_to_peers.value()), totals.packets_to_peers);
        assert_eq!(sum(|c| c.bytes_to_peers.value()), totals.bytes_to_peers);
        assert_eq!(
            sum(|c| c.packets_to_clients.value()),
            totals.packets_to_clients
        );
        assert_eq!(sum(|c| c.bytes_to_clients.value()), totals.bytes_to_clients);
        let counted = sum(|c| c.allocations.value());
        let range = allocations as u64..=expected.len() as u64;
        assert!(
            range.contains(&counted),
            "{counted} allocations are counted, not {range:?}"
        );
    }

    /// What passed, but for what took a route.
    fn machine_totals(&self) -> Totals {
        let (all, taken) = (self.model.totals(), self.kernel.taken());
        Totals {
            packets_to_peers: all.packets_to_peers - taken.packets_to_peers,
            bytes_to_peers: all.bytes_to_peers - taken.bytes_to_peers,
            packets_to_clients: all.packets_to_clients - taken.packets_to_clients,
            bytes_to_clients: all.bytes_to_clients - taken.bytes_to_clients,
        }
    }

    /// Everything has ended: nothing is left of any allocation.
    pub fn check_empty(&self, context: &Context<'_>) {
        self.check(context);
        assert_eq!(self.model.allocations().len(), 0);
        assert_eq!(self.open_ports(), 0);
        assert_eq!(self.kernel.told().len(), 0, "{:?}", self.kernel);
        for (index, shard) in self.shards.iter().enumerate() {
            assert_eq!(shard.counters.ports_in_use.value(), 0, "shard {index}");
            assert_eq!(
                shard.shell.deadline(),
                None,
                "shard {index} still waits for something"
            );
        }
        if self
            .counters()
            .all(|counters| counters.notices_lost.value() == 0)
        {
            let Notices {
                made,
                moved,
                ended,
                traffic,
            } = self.notices;
            let counted = self.counters().map(|c| c.allocations_moved.value());
            assert_eq!(moved, counted.sum::<u64>());
            assert_eq!(
                moved,
                self.model.coverage.get("moved").copied().unwrap_or(0)
            );
            let totals = self.machine_totals();
            assert_eq!(made, ended, "allocations made and ended");
            assert_eq!(traffic.packets_to_peers, totals.packets_to_peers);
            assert_eq!(traffic.bytes_to_peers, totals.bytes_to_peers);
            assert_eq!(traffic.packets_to_client, totals.packets_to_clients);
            assert_eq!(traffic.bytes_to_client, totals.bytes_to_clients);
        }
    }

    fn client_datagram(&mut self, context: &mut Context<'_>, shard: ShardId, packet: &Packet) {
        let Packet {
            source,
            destination,
            traffic_class,
            payload,
            ..
        } = packet;
        let relayed = packet.sender == context.host && self.owners.contains_key(source);
        assert!(
            !relayed,
            "{destination} was reached from a relayed port: {packet:?}"
        );
        let listener = self.listener_of(*destination);
        let flow = Flow {
            client: *source,
            server: *destination,
        };
        self.model.arrives_in_class(*traffic_class);
        let at = (Socket::Listener(listener), destination.ip());
        let outputs = self.shards[usize::from(shard.0)].shell.datagram(
            context.now,
            at,
            (*source, *traffic_class),
            payload,
        );
        if let [RelayCommand::HandOver { to, .. }] = outputs.commands[..] {
            self.hand_over(context, (shard, to), flow, packet, &outputs);
            return;
        }
        let expected = self.model.client_datagram(context.now, flow, payload);
        self.conclude(context, shard, expected, outputs);
    }

    /// Lets another shard answer a datagram: at once, or after a while.
    fn hand_over(
        &mut self,
        context: &mut Context<'_>,
        (from, to): (ShardId, ShardId),
        flow: Flow,
        packet: &Packet,
        outputs: &Outputs<RelayCommand>,
    ) {
        let [
            RelayCommand::HandOver {
                listener,
                local,
                remote,
                payload,
                ..
            },
        ] = &outputs.commands[..]
        else {
            unreachable!("the caller saw it");
        };
        assert!(outputs.sent.is_empty() && self.new_drops(from).is_empty());
        assert!(from != to && usize::from(to.0) < self.shards.len());
        assert_eq!(*listener, self.listener_of(packet.destination));
        assert_eq!((*local, *remote), (packet.destination.ip(), packet.source));
        assert_eq!(payload[..], packet.payload[..]);
        let may = self.model.may_be_handed_over(flow, &packet.payload);
        assert!(may, "{packet:?} is {from:?}'s");
        // What the kernel would do is compared with what the relay does at the same time.
        if self.awaited.is_none() && self.dice.happens(self.faults.misdirected) {
            let later = self
                .dice
                .duration(Duration::ZERO..Duration::from_micros(300));
            self.post(context.now + later, Message::HandedOver(to, packet.clone()));
        } else {
            self.client_datagram(context, to, packet);
        }
    }

    fn peer_datagram(&mut self, context: &mut Context<'_>, packet: &Packet) {
        let Packet {
            source,
            destination,
            traffic_class,
            payload,
            ..
        } = packet;
        let Some((shard, port)) = self.owners.get(destination).copied() else {
            let own = packet.sender == context.host;
            assert!(
                !own,
                "the relay reached another program on its host: {packet:?}"
            );
            return;
        };
        self.model.arrives_in_class(*traffic_class);
        let expected = self
            .model
            .peer_datagram(context.now, *destination, *source, payload);
        let at = (Socket::Relayed(port), destination.ip());
        let outputs = self.shards[usize::from(shard.0)].shell.datagram(
            context.now,
            at,
            (*source, *traffic_class),
            payload,
        );
        self.conclude(context, shard, expected, outputs);
    }

    fn port_answer(
        &mut self,
        context: &mut Context<'_>,
        shard: ShardId,
        port: PortId,
        result: Result<(), PortError>,
        local: SocketAddr,
    ) {
        let expected = self.model.port_answer(local, result.is_ok());
        let event = match result {
            Ok(()) => RelayEvent::PortOpened { port },
            Err(error) => RelayEvent::PortFailed { port, error },
        };
        if result.is_err() {
            self.shards[usize::from(shard.0)].ports.remove(&port);
        }
        let outputs = self.shards[usize::from(shard.0)]
            .shell
            .event(context.now, event);
        self.conclude(context, shard, expected, outputs);
    }

    /// Tells a shard something from another thread; what comes of it has to be `expected`.
    pub fn tell(&mut self, context: &mut Context<'_>, event: RelayEvent) {
        for index in 0..self.shards.len() {
            let outputs = self.shards[index].shell.event(context.now, event.clone());
            let shard = ShardId(u16::try_from(index).expect("shards are counted in 16 bits"));
            self.conclude(context, shard, Vec::new(), outputs);
        }
    }

    /// Gives all shards another configuration, which `rules` describe; does nothing while a port is
    /// being opened.
    pub fn reload(&mut self, context: &mut Context<'_>, config: &Arc<RelayConfig>, rules: Rules) {
        if self.model.is_opening() {
            return;
        }
        self.model.reload(context.now, rules);
        self.model.count("reload");
        self.tell_and_settle(context, &RelayEvent::Reconfigured(Arc::clone(config)));
    }

    /// Sets the clock of the day on the relay's host; does nothing while a port is being opened.
    pub fn set_clock(&mut self, context: &mut Context<'_>, unix_s: u64) {
        if self.model.is_opening() {
            return;
        }
        self.model.set_clock(context.now, unix_s);
        self.model.count("clock set");
        let clock = WallClock::new(context.now, Duration::from_secs(unix_s));
        self.tell_and_settle(context, &RelayEvent::WallClock(clock));
    }

    /// Tells all shards something that changes what may be there.
    fn tell_and_settle(&mut self, context: &mut Context<'_>, event: &RelayEvent) {
        for index in 0..self.shards.len() {
            let shard = ShardId(u16::try_from(index).expect("shards are counted in 16 bits"));
            let event = event.clone();
            // A shell lets a machine work in the round in which it hands over a message.
            let shell = &mut self.shards[index].shell;
            let mut outputs = shell.event(context.now, event);
            let more = shell.timeout(context.now);
            outputs.sent.extend(more.sent);
            outputs.commands.extend(more.commands);
            self.carry_out(context, shard, Vec::new(), outputs);
        }
        self.check_routes(context.now);
    }

    /// Compares the kernel's routes with the reference.
    fn check_routes(&self, now: Timestamp) {
        if self.kernel.path() == KernelPath::Off {
            return;
        }
        let over_limit: u64 = self.counters().map(|c| c.routes_over_limit.value()).sum();
        self.model.check_routes(now, &self.kernel, over_limit == 0);
    }

    /// Lets a packet take its route. Nothing tells that it did not go through the machine.
    fn take_route(&mut self, context: &mut Context<'_>, packet: &Packet, route: Forwarded) {
        let (now, payload) = (context.now, &packet.payload);
        let passes = self.kernel.charge(now, &**self.shared.slots(), &route);
        let sent = route.sent;
        self.model.arrives_in_class(packet.traffic_class);
        let expected = if self.is_listening(packet.destination) {
            let flow = Flow {
                client: packet.source,
                server: packet.destination,
            };
            self.check_destination(sent.destination);
            self.model.client_datagram(now, flow, payload)
        } else {
            let (local, remote) = (packet.destination, packet.source);
            self.model
                .peer_datagram_in_kernel(now, local, remote, payload)
        };
        let mut observed = Observed::default();
        if passes {
            self.kernel.count(&sent);
            context.send_in_class(
                sent.source,
                sent.destination,
                &sent.payload,
                sent.traffic_class,
            );
            observed.sent.push(sent);
        } else {
            observed.drops.push(DropReason::OverLimit);
        }
        self.model.conclude(now, &expected, &observed);
        self.model.count("kernel path");
    }

    /// Compares what a shard did with the reference, then does it.
    fn conclude(
        &mut self,
        context: &mut Context<'_>,
        shard: ShardId,
        expected: Expectation,
        outputs: Outputs<RelayCommand>,
    ) {
        self.carry_out(context, shard, expected, outputs);
        self.check_routes(context.now);
    }

    fn carry_out(
        &mut self,
        context: &mut Context<'_>,
        shard: ShardId,
        expected: Expectation,
        outputs: Outputs<RelayCommand>,
    ) {
        let drops = self.new_drops(shard);
        let ports = self.port_changes(shard, &outputs.commands);
        let mut sent = Vec::with_capacity(outputs.sent.len());
        for outgoing in outputs.sent {
            let source = self.source(shard, outgoing.socket, outgoing.source);
            if matches!(outgoing.socket, Socket::Relayed(_)) {
                self.check_destination(outgoing.destination);
            }
            sent.push(Sent {
                source,
                destination: outgoing.destination,
                traffic_class: outgoing.traffic_class,
                dont_fragment: outgoing.dont_fragment,
                payload: outgoing.payload,
            });
        }
        let observed = Observed { sent, ports, drops };
        let over_limit = observed.drops == [DropReason::OverLimit];
        if let Some(awaited) = self.awaited.take().filter(|_| !over_limit) {
            assert_eq!(observed.sent, [awaited], "the kernel would do otherwise");
        }
        self.model.conclude(context.now, &expected, &observed);
        for command in outputs.commands {
            self.execute(context, shard, command);
        }
        for sent in &observed.sent {
            let (source, destination) = (sent.source, sent.destination);
            context.send_in_class(source, destination, &sent.payload, sent.traffic_class);
        }
    }

    fn port_changes(&mut self, shard: ShardId, commands: &[RelayCommand]) -> Vec<PortChange> {
        let mut changes = Vec::new();
        let known = self.shards[usize::from(shard.0)].ports.clone();
        let mut known = known;
        for command in commands {
            match command {
                RelayCommand::OpenPort { port, local } => {
                    assert!(
                        (port.0 as usize) < self.max_ports,
                        "{port:?} is beyond the limit"
                    );
                    let before = known.insert(*port, *local);
                    assert_eq!(before, None, "{port:?} is open already");
                    changes.push(PortChange::Open(*local));
                }
                RelayCommand::ClosePort { port } => {
                    let local = known.remove(port);
                    let local = local.unwrap_or_else(|| panic!("{port:?} is not open"));
                    changes.push(PortChange::Close(local));
                }
                RelayCommand::SetRoute { .. } | RelayCommand::RemoveRoute { .. } => {}
                RelayCommand::HandOver { to, .. } => {
                    panic!("{shard:?} hands over to {to:?} what it has answered")
                }
                RelayCommand::Notify(notice) => self.notices.add(notice),
            }
        }
        changes
    }

    fn execute(&mut self, context: &mut Context<'_>, shard: ShardId, command: RelayCommand) {
        self.kernel.execute(&command);
        match command {
            RelayCommand::OpenPort { port, local } => {
                let result = self.open(context, local);
                self.shards[usize::from(shard.0)].ports.insert(port, local);
                if result.is_ok() {
                    self.owners.insert(local, (shard, port));
                }
                if self.dice.happens(self.faults.slow_answers) {
                    let later = self
                        .dice
                        .duration(Duration::ZERO..Duration::from_millis(20));
                    let message = Message::PortAnswer(shard, port, result);
                    self.post(context.now + later, message);
                } else {
                    self.port_answer(context, shard, port, result, local);
                }
            }
            RelayCommand::ClosePort { port } => {
                let local = self.shards[usize::from(shard.0)].ports.remove(&port);
                let local = local.expect("it was found to be open");
                assert_eq!(self.owners.remove(&local), Some((shard, port)));
                assert!(context.network.close(context.host, local));
            }
            RelayCommand::SetRoute { .. }
            | RelayCommand::RemoveRoute { .. }
            | RelayCommand::HandOver { .. }
            | RelayCommand::Notify(_) => {}
        }
    }

    fn open(&mut self, context: &mut Context<'_>, local: SocketAddr) -> Result<(), PortError> {
        if self.dice.happens(self.faults.no_descriptors) {
            return Err(PortError::NoDescriptors);
        }
        if self.dice.happens(self.faults.in_use) {
            return Err(PortError::InUse);
        }
        context
            .network
            .bind(context.host, local)
            .map_err(|error| match error {
                BindError::InUse => PortError::InUse,
                BindError::NotLocal => panic!("{local} is no address of this host"),
            })
    }

    fn post(&mut self, at: Timestamp, message: Message) {
        self.messages += 1;
        self.mailbox.insert((at, self.messages), message);
    }

    fn source(&self, shard: ShardId, socket: Socket, source: Option<IpAddr>) -> SocketAddr {
        match socket {
            Socket::Listener(ListenerId(id)) => {
                let listener = self.listeners[usize::from(id)];
                let ip = source.unwrap_or(listener.ip());
                assert!(
                    !ip.is_unspecified(),
                    "no source address is given on a wildcard listener"
                );
                SocketAddr::new(ip, listener.port())
            }
            Socket::Relayed(port) => {
                let local = self.shards[usize::from(shard.0)].ports.get(&port);
                let local = *local.unwrap_or_else(|| panic!("{port:?} is not open"));
                assert!(
                    source.is_none_or(|ip| ip == local.ip()),
                    "{source:?} is not {local}"
                );
                local
            }
        }
    }

    /// What no relayed port may ever send to, whatever the reference thinks.
    fn check_destination(&self, destination: SocketAddr) {
        let rules = &self.model.rules;
        let ip = destination.ip();
        if self.owners.contains_key(&destination) {
            return;
        }
        assert!(
            !rules.own_addresses.contains(&ip),
            "{destination} is reached on this host"
        );
        assert!(
            rules.allowed.contains(&ip) || special_use::verdict(ip) != Verdict::SpecialUse,
            "{destination} is of special use"
        );
        assert!(!rules.denied.contains(&ip), "{destination} is denied");
    }

    fn listener_of(&self, destination: SocketAddr) -> ListenerId {
        let exact = self
            .listeners
            .iter()
            .position(|listener| *listener == destination);
        let any = || {
            self.listeners.iter().position(|listener| {
                listener.ip().is_unspecified()
                    && listener.port() == destination.port()
                    && listener.is_ipv4() == destination.is_ipv4()
            })
        };
        let index = exact.or_else(any).expect("it is a listening address");
        ListenerId(u16::try_from(index).expect("listeners are counted in 16 bits"))
    }

    fn is_listening(&self, destination: SocketAddr) -> bool {
        self.listeners.iter().any(|listener| {
            listener.port() == destination.port()
                && listener.is_ipv4() == destination.is_ipv4()
                && (listener.ip() == destination.ip() || listener.ip().is_unspecified())
        })
    }

    fn new_drops(&mut self, shard: ShardId) -> Vec<DropReason> {
        let Shard {
            counters,
            drops_seen,
            ..
        } = &mut self.shards[usize::from(shard.0)];
        let mut drops = Vec::new();
        for (reason, seen) in DropReason::ALL.iter().zip(drops_seen) {
            let count = counters.drops(*reason).value();
            for _ in *seen..count {
                drops.push(*reason);
            }
            *seen = count;
        }
        drops
    }

    fn deliver(&mut self, context: &mut Context<'_>, message: Message) {
        match message {
            Message::HandedOver(shard, packet) => self.client_datagram(context, shard, &packet),
            Message::PortAnswer(shard, port, result) => {
                let local = self.shards[usize::from(shard.0)].ports[&port];
                self.port_answer(context, shard, port, result, local);
            }
        }
    }

    fn sometimes_early(&mut self, now: Timestamp) {
        if self.dice.one_in(16) {
            let shard = self.dice.below(self.shards.len());
            self.shards[shard].shell.early_timeout(now);
        }
    }
}

impl<M: Machine<Command = RelayCommand, Event = RelayEvent>> Node for RelayHost<M> {
    fn handle_packet(&mut self, context: &mut Context<'_>, packet: Packet) {
        self.sometimes_early(context.now);
        let is_listening = self.is_listening(packet.destination);
        let misdirected =
            is_listening && self.shards.len() > 1 && self.dice.happens(self.faults.misdirected);
        // What a host sends to itself was never on its interface.
        let is_on_wire = packet.sender != context.host;
        let route = self.kernel.forward(context.now, &packet);
        let route = route.filter(|_| is_on_wire);
        let has_route = route.is_some();
        match (self.kernel.path(), route) {
            (KernelPath::Taken, Some(route)) => {
                self.take_route(context, &packet, route);
                return;
            }
            (KernelPath::Watched, Some(_)) if is_in_a_loop(&packet.payload) => {}
            (KernelPath::Watched, Some(route)) => {
                self.awaited = Some(route.sent);
                self.model.count("kernel path");
            }
            (_, None) | (KernelPath::Off, Some(_)) => {}
        }
        if !is_listening {
            self.peer_datagram(context, &packet);
            return;
        }
        let rules = &self.model.rules;
        let shard = shard_of(rules.steering_key, packet.source, rules.shards);
        // What has a route is not late on the kernel's path, so it is not here.
        if misdirected && !has_route {
            let later = self
                .dice
                .duration(Duration::ZERO..Duration::from_micros(300));
            self.post(context.now + later, Message::HandedOver(shard, packet));
        } else {
            self.client_datagram(context, shard, &packet);
        }
    }

    fn handle_icmp(&mut self, context: &mut Context<'_>, mut error: IcmpError) {
        let Some((shard, port)) = self.owners.get(&error.source).copied() else {
            return;
        };
        // Routers have other things to say as well, and anybody may say anything.
        if self.dice.one_in(2) {
            error.icmp_type = *self.dice.pick(&[0, 1, 2, 3, 3, 3, 4, 5, 11, 12, 128]);
            error.code = *self.dice.pick(&[0, 1, 4, 4, 13, 255]);
            error.mtu = *self.dice.pick(&[0, 1280, 1500, u32::MAX]);
        }
        let expected = self.model.icmp_error(context.now, &error);
        let told = Told {
            socket: Socket::Relayed(port),
            destination: error.destination,
            icmp_type: error.icmp_type,
            code: error.code,
            mtu: error.mtu,
        };
        let outputs = self.shards[usize::from(shard.0)]
            .shell
            .icmp(context.now, told);
        self.conclude(context, shard, expected, outputs);
    }

    fn handle_wakeup(&mut self, context: &mut Context<'_>) {
        while let Some(entry) = self.mailbox.first_entry()
            && entry.key().0 <= context.now
        {
            let message = entry.remove();
            self.deliver(context, message);
        }
        for index in 0..self.shards.len() {
            let outputs = self.shards[index].shell.timeout(context.now);
            let shard = ShardId(u16::try_from(index).expect("shards are counted in 16 bits"));
            self.conclude(context, shard, Vec::new(), outputs);
        }
        self.model.check_ended(context.now);
        self.check_routes(context.now);
        self.check(context);
        self.lateness = self.dice.duration(Duration::ZERO..self.faults.lateness);
    }

    fn wakeup(&self) -> Option<Timestamp> {
        let deadlines = self
            .shards
            .iter()
            .filter_map(|shard| shard.shell.deadline());
        let deadline = deadlines.min().map(|at| at + self.lateness);
        let message = self.mailbox.keys().next().map(|key| key.0);
        deadline.into_iter().chain(message).min()
    }
}

impl Notices {
    fn add(&mut self, notice: &Notice) {
        match notice {
            Notice::AllocationMade { .. } => self.made += 1,
            Notice::AddressEnded { .. } => {}
            Notice::AllocationMoved { owner, from } => {
                assert_ne!(owner.client, *from, "nobody has moved");
                self.moved += 1;
            }
            Notice::AllocationEnded { traffic, .. } => {
                self.ended += 1;
                self.traffic.packets_to_peers += traffic.packets_to_peers;
                self.traffic.bytes_to_peers += traffic.bytes_to_peers;
                self.traffic.packets_to_client += traffic.packets_to_client;
                self.traffic.bytes_to_client += traffic.bytes_to_client;
            }
        }
    }
}
