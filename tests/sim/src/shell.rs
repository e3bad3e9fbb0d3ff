//! The shell's half of the contract: drives one machine, and checks that it keeps its half.
//!
//! Every output of a machine passes here, so every run of every scenario checks the contract of
//! [`towpath_proto::machine`].

use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc;

use towpath_proto::machine::{
    Datagram, IcmpError, Socket, TRANSMIT_BUFFER_BYTES, TrafficClass, Transmit,
};
use towpath_proto::peer::{Call, Notice, Peer};
use towpath_proto::{Machine, Timestamp};

/// The longest payload of a UDP datagram over IPv4.
const MAX_UDP_PAYLOAD_BYTES: usize = 65_507;
/// Rounds of `handle_timeout` after which a machine's deadline has to lie in the future.
const MAX_TIMEOUT_ROUNDS: usize = 64;
/// What one datagram may lead to: an answer, and the end of an allocation that was due; for each
/// channel of an allocation, commands about its routes.
const MAX_OUTPUTS_PER_DATAGRAM: usize = 8;
/// Both routes of a channel may be removed and set.
const MAX_OUTPUTS_PER_CHANNEL: usize = 4;
/// What one event may lead to, for each port that a machine may hold.
const MAX_OUTPUTS_PER_PORT: usize = 8;

/// A machine and the shell's half of the contract.
#[derive(Debug)]
pub struct Shell<M: Machine> {
    machine: M,
    max_ports: usize,
    max_channels: usize,
    buffer: Box<[u8; TRANSMIT_BUFFER_BYTES]>,
}

/// What a machine wants after one input, in its order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outputs<C> {
    /// Datagrams to send.
    pub sent: Vec<Outgoing>,
    /// Things to do.
    pub commands: Vec<C>,
}

/// A datagram that a machine sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing {
    /// Where it leaves.
    pub socket: Socket,
    /// The address it leaves from, where the machine says so.
    pub source: Option<IpAddr>,
    /// Where it goes.
    pub destination: SocketAddr,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Whether it has the DF bit.
    pub dont_fragment: bool,
    /// Its bytes.
    pub payload: Vec<u8>,
    /// Whether it was forwarded in place.
    pub in_place: bool,
}

impl Shell<Peer> {
    /// Does something on a node's machine, as another thread would.
    pub fn ask<R: Send + 'static>(
        &mut self,
        now: Timestamp,
        ask: impl FnOnce(&mut Peer, Timestamp) -> R + Send + 'static,
    ) -> (R, Outputs<Notice>) {
        let (answer, answered) = mpsc::channel();
        let call = Call::new(move |peer, now| {
            answer.send(ask(peer, now)).expect("somebody waits");
        });
        let outputs = self.event(now, call);
        (answered.recv().expect("the call was made"), outputs)
    }
}

impl<M: Machine> Shell<M> {
    /// A shell for a machine that may hold so many relayed ports, with so many channels each.
    pub fn new(machine: M, max_ports: usize, max_channels: usize) -> Self {
        Self {
            machine,
            max_ports,
            max_channels,
            buffer: Box::new([0; TRANSMIT_BUFFER_BYTES]),
        }
    }

    /// The machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// Hands over a datagram.
    pub fn datagram(
        &mut self,
        now: Timestamp,
        (socket, local): (Socket, IpAddr),
        (remote, class): (SocketAddr, u8),
        payload: &[u8],
    ) -> Outputs<M::Command> {
        let mut bytes = payload.to_vec();
        let datagram = Datagram {
            socket,
            local,
            remote,
            traffic_class: TrafficClass(class),
            payload: &mut bytes,
        };
        let forwarded = self.machine.handle_datagram(now, datagram);
        let mut sent = Vec::new();
        if let Some(transmit) = forwarded {
            sent.push(outgoing(&transmit, &bytes, true));
        }
        let routes = MAX_OUTPUTS_PER_CHANNEL * self.max_channels;
        self.drain(now, sent, MAX_OUTPUTS_PER_DATAGRAM + routes)
    }

    /// Hands over an ICMP error.
    pub fn icmp(&mut self, now: Timestamp, error: IcmpError) -> Outputs<M::Command> {
        self.machine.handle_icmp(now, error);
        let routes = MAX_OUTPUTS_PER_CHANNEL * self.max_channels;
        self.drain(now, Vec::new(), MAX_OUTPUTS_PER_DATAGRAM + routes)
    }

    /// Hands over an event.
    pub fn event(&mut self, now: Timestamp, event: M::Event) -> Outputs<M::Command> {
        self.machine.handle_event(now, event);
        let limit = self.limit();
        self.drain(now, Vec::new(), limit)
    }

    /// What an event or the time may lead to.
    fn limit(&self) -> usize {
        let per_port = MAX_OUTPUTS_PER_PORT + MAX_OUTPUTS_PER_CHANNEL * self.max_channels;
        per_port * self.max_ports.max(1)
    }

    /// Lets the machine do what is due.
    pub fn timeout(&mut self, now: Timestamp) -> Outputs<M::Command> {
        let mut all = Outputs {
            sent: Vec::new(),
            commands: Vec::new(),
        };
        let limit = self.limit();
        for _ in 0..MAX_TIMEOUT_ROUNDS {
            if self.machine.poll_timeout().is_none_or(|at| at > now) {
                return all;
            }
            self.machine.handle_timeout(now);
            let outputs = self.drain(now, Vec::new(), limit);
            all.sent.extend(outputs.sent);
            all.commands.extend(outputs.commands);
        }
        panic!(
            "the deadline does not move past now, {now:?}: {:?}",
            self.machine.poll_timeout()
        );
    }

    /// Calls `handle_timeout` although nothing is due, which does nothing.
    pub fn early_timeout(&mut self, now: Timestamp) {
        let deadline = self.machine.poll_timeout();
        if deadline.is_some_and(|at| at <= now) {
            return;
        }
        self.machine.handle_timeout(now);
        assert_eq!(
            self.machine.poll_timeout(),
            deadline,
            "an early timeout moved the deadline"
        );
        self.assert_idle(now);
    }

    /// When the machine wants `timeout` to be called.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.machine.poll_timeout()
    }

    fn drain(
        &mut self,
        now: Timestamp,
        mut sent: Vec<Outgoing>,
        limit: usize,
    ) -> Outputs<M::Command> {
        let announced = self.machine.poll_timeout().is_some_and(|at| at <= now);
        let mut commands = Vec::new();
        let mut queued = 0;
        loop {
            let before = queued;
            while let Some(command) = self.machine.poll_command() {
                commands.push(command);
                queued += 1;
                assert!(queued <= limit, "more than {limit} outputs for one input");
            }
            while let Some(transmit) = self.machine.poll_transmit(now, &mut self.buffer[..]) {
                sent.push(outgoing(&transmit, &self.buffer[..], false));
                queued += 1;
                assert!(queued <= limit, "more than {limit} outputs for one input");
            }
            if queued == before {
                break;
            }
        }
        assert!(
            announced || queued == 0,
            "{queued} outputs were queued, but no deadline said so"
        );
        self.assert_idle(now);
        Outputs { sent, commands }
    }

    fn assert_idle(&mut self, now: Timestamp) {
        assert!(
            self.machine.poll_command().is_none(),
            "a command out of nothing"
        );
        let transmit = self.machine.poll_transmit(now, &mut self.buffer[..]);
        assert_eq!(transmit, None, "a datagram out of nothing");
    }
}

fn outgoing(transmit: &Transmit, bytes: &[u8], in_place: bool) -> Outgoing {
    assert!(
        !transmit.dont_fragment || matches!(transmit.socket, Socket::Relayed(_)),
        "what goes to clients may always be fragmented"
    );
    assert!(
        transmit.padding <= 3,
        "{} bytes of padding",
        transmit.padding
    );
    assert!(
        transmit.len() <= MAX_UDP_PAYLOAD_BYTES,
        "{} bytes do not fit",
        transmit.len()
    );
    let part = bytes.get(transmit.payload.clone());
    let part = part.unwrap_or_else(|| {
        panic!(
            "bytes {:?} of {} were to be sent",
            transmit.payload,
            bytes.len()
        );
    });
    let mut payload = transmit.prefix.as_bytes().to_vec();
    payload.extend_from_slice(part);
    payload.extend(std::iter::repeat_n(0, usize::from(transmit.padding)));
    Outgoing {
        socket: transmit.socket,
        source: transmit.source,
        destination: transmit.destination,
        traffic_class: transmit.traffic_class.0,
        dont_fragment: transmit.dont_fragment,
        payload,
        in_place,
    }
}
