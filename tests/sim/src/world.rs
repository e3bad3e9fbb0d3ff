//! The run itself: hosts with their nodes, the network between them, and the clock.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use towpath_proto::Timestamp;

use crate::network::{Arrival, Edge, HostId, Network, Packet};
use crate::queue::Queue;
use crate::trace::{Trace, What};

/// A run with more events than this is taken for one that never ends.
const MAX_STEPS: u64 = 2_000_000;

/// What runs on a host.
pub trait Node {
    /// Takes a datagram that one of the host's sockets received.
    fn handle_packet(&mut self, context: &mut Context<'_>, packet: Packet);

    /// Takes an ICMP error about a datagram this host sent.
    fn handle_icmp(&mut self, context: &mut Context<'_>, error: IcmpError) {
        let _ = (context, error);
    }

    /// Does what is due; called once [`Node::wakeup`] has come.
    fn handle_wakeup(&mut self, context: &mut Context<'_>);

    /// When the node wants to be woken.
    fn wakeup(&self) -> Option<Timestamp>;
}

/// What a node may do while it runs.
#[derive(Debug)]
pub struct Context<'a> {
    /// The virtual time.
    pub now: Timestamp,
    /// The host the node runs on.
    pub host: HostId,
    /// The network, for opening and closing sockets.
    pub network: &'a mut Network,
    trace: &'a mut Trace,
    queue: &'a mut Queue<Event>,
    in_flight: &'a mut usize,
}

impl Context<'_> {
    /// Sends a datagram, of a traffic class that its bytes choose. Nothing keeps a host from giving a
    /// source that is not its own.
    pub fn send(&mut self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
        let class = payload
            .iter()
            .fold(0, |class: u8, byte| class.rotate_left(3) ^ byte);
        self.send_in_class(source, destination, payload, class);
    }

    /// Sends a datagram of a traffic class.
    pub fn send_in_class(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
        payload: &[u8],
        traffic_class: u8,
    ) {
        let packet = Packet {
            source,
            destination,
            traffic_class,
            payload: payload.to_vec(),
            sender: self.host,
        };
        for arrival in self.network.send(self.now, packet, self.trace) {
            *self.in_flight += 1;
            self.queue.push(arrival.at, Event::Arrival(arrival));
        }
    }
}

/// The hosts of a run, with a node on each.
pub struct World<N> {
    /// The network between the hosts.
    pub network: Network,
    seed: u64,
    nodes: Vec<N>,
    wakeups: Vec<Option<Timestamp>>,
    queue: Queue<Event>,
    in_flight: usize,
    steps: u64,
    trace: Trace,
}

#[derive(Debug)]
enum Event {
    Arrival(Arrival),
    Icmp(HostId, IcmpError),
    Wakeup(HostId),
}

/// An ICMP error about a datagram, as it arrives at the host that sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcmpError {
    /// Where the datagram left.
    pub source: SocketAddr,
    /// Where it was sent to.
    pub destination: SocketAddr,
    /// The type.
    pub icmp_type: u8,
    /// The code.
    pub code: u8,
    /// The MTU of the link it did not fit through.
    pub mtu: u32,
}

/// The time an error takes.
const ICMP_DELAY: Duration = Duration::from_millis(3);

impl<N: Node> World<N> {
    /// A world without hosts, whose clock stands at `start`. A run that panics names `seed`.
    pub fn new(seed: u64, start: Timestamp, network: Network) -> Self {
        Self {
            network,
            seed,
            nodes: Vec::new(),
            wakeups: Vec::new(),
            queue: Queue::new(start),
            in_flight: 0,
            steps: 0,
            trace: Trace::new(),
        }
    }

    /// Adds a host and what runs on it.
    pub fn add(&mut self, addresses: &[IpAddr], edge: Edge, node: N) -> HostId {
        let host = self.network.add_host(addresses, edge);
        assert_eq!(
            host.0,
            self.nodes.len(),
            "hosts are added through the world alone"
        );
        self.nodes.push(node);
        self.wakeups.push(None);
        self.schedule(host);
        host
    }

    /// The virtual time.
    pub fn now(&self) -> Timestamp {
        self.queue.now()
    }

    /// What runs on a host.
    pub fn node(&self, host: HostId) -> &N {
        &self.nodes[host.0]
    }

    /// A hash over everything that happened on the network.
    pub fn trace_hash(&self) -> u64 {
        self.trace.hash()
    }

    /// Datagrams on their way.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Runs something on a host's node, and sends what it sends.
    pub fn act<R>(
        &mut self,
        host: HostId,
        action: impl FnOnce(&mut N, &mut Context<'_>) -> R,
    ) -> R {
        let mut context = Context {
            now: self.queue.now(),
            host,
            network: &mut self.network,
            trace: &mut self.trace,
            queue: &mut self.queue,
            in_flight: &mut self.in_flight,
        };
        let result = action(&mut self.nodes[host.0], &mut context);
        self.schedule(host);
        result
    }

    /// Lets one thing happen, at `until` at the latest; false where nothing is left until then, and
    /// the clock stands at `until`.
    pub fn step(&mut self, until: Timestamp) -> bool {
        if self.queue.next_at().is_none_or(|at| at > until) {
            self.queue.advance(until.max(self.queue.now()));
            return false;
        }
        self.steps += 1;
        assert!(
            self.steps < MAX_STEPS,
            "{MAX_STEPS} things happened, and there is no end in sight"
        );
        match self.queue.pop() {
            Some(Event::Arrival(arrival)) => self.deliver(arrival),
            Some(Event::Icmp(host, error)) => {
                self.act(host, |node, context| node.handle_icmp(context, error));
            }
            Some(Event::Wakeup(host)) => self.wake(host),
            None => unreachable!("the queue has a next event"),
        }
        true
    }

    /// Lets everything happen that happens until a time.
    pub fn run_until(&mut self, until: Timestamp) {
        while self.step(until) {}
    }

    fn deliver(&mut self, Arrival { host, packet, .. }: Arrival) {
        self.in_flight -= 1;
        let now = self.queue.now();
        let socket = self.network.socket_for(host, packet.destination);
        let what = if socket.is_some() {
            What::Delivered
        } else {
            What::NoSocket
        };
        self.trace.add(
            now,
            what,
            (packet.source, packet.destination),
            &packet.payload,
        );
        if socket.is_some() {
            self.act(host, |node, context| node.handle_packet(context, packet));
        } else if packet.sender != host {
            let (source, destination) = self.network.as_sent(host, &packet);
            let error = IcmpError {
                source,
                destination,
                icmp_type: if destination.is_ipv4() { 3 } else { 1 },
                code: if destination.is_ipv4() { 3 } else { 4 },
                mtu: 0,
            };
            self.queue
                .push(now + ICMP_DELAY, Event::Icmp(packet.sender, error));
        }
    }

    fn wake(&mut self, host: HostId) {
        let now = self.queue.now();
        if self.wakeups[host.0].is_some_and(|at| at <= now) {
            self.wakeups[host.0] = None;
        }
        if self.nodes[host.0].wakeup().is_some_and(|at| at <= now) {
            self.act(host, N::handle_wakeup);
        } else {
            self.schedule(host);
        }
    }

    /// Keeps one wakeup in the queue that is not later than what the node wants.
    fn schedule(&mut self, host: HostId) {
        let Some(wanted) = self.nodes[host.0].wakeup() else {
            return;
        };
        if self.wakeups[host.0].is_none_or(|at| wanted < at) {
            self.wakeups[host.0] = Some(wanted.max(self.queue.now()));
            self.queue.push(wanted, Event::Wakeup(host));
        }
    }
}

impl<N> Drop for World<N> {
    /// A run that failed says how to see it again.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.trace);
            eprintln!(
                "the run of seed {0} failed; TOWPATH_SIM_SEED={0} replays it",
                self.seed
            );
        }
    }
}

impl<N> fmt::Debug for World<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("seed", &self.seed)
            .field("trace", &self.trace)
            .finish()
    }
}
