//! What the simulator does not show: refusals before and during a handshake, and odd calls.

mod following;

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use rustls::NamedGroup;

use super::*;
use crate::identity::{PeerAddr, SecretKey};
use crate::machine::{ListenerId, Socket, TRANSMIT_BUFFER_BYTES};
use crate::quic::{SecurityPolicy, StreamError};

mod pooling;
mod watching;

struct Lab {
    now: Timestamp,
    /// Whether nothing passes between the nodes.
    cut: bool,
    peers: [(Peer, SocketAddr); 2],
    notices: [Vec<Notice>; 2],
    /// What was sent to where nobody is.
    lost: Vec<(SocketAddr, Vec<u8>)>,
}

impl Lab {
    fn new(configure: impl Fn(usize, &mut PeerConfig)) -> Self {
        let peer = |index: usize| {
            let address = SocketAddr::from(([192, 0, 2, index as u8 + 1], 9));
            let mut config = PeerConfig {
                listeners: vec![address],
                ..PeerConfig::default()
            };
            configure(index, &mut config);
            let identity = Identity::new(SecretKey::from_seed([index as u8; 32]));
            let seed = [index as u8 + 10; 32];
            let peer = Peer::new(Arc::new(config), &identity, ShardId(0), seed).unwrap();
            (peer, address)
        };
        Self {
            now: Timestamp::from_nanos(1_000_000_000_000),
            cut: false,
            peers: [peer(0), peer(1)],
            notices: [Vec::new(), Vec::new()],
            lost: Vec::new(),
        }
    }

    fn address(&self, of: usize) -> PeerAddr {
        let (peer, address) = &self.peers[of];
        PeerAddr::new(peer.id(), [*address]).unwrap()
    }

    fn share(&mut self, of: usize, permits: crate::pool::Permits) {
        let (peer, address) = &self.peers[of];
        let config = Arc::clone(&peer.config);
        let identity = Identity::new(SecretKey::from_seed([of as u8; 32]));
        let peer = Peer::new(config, &identity, ShardId(0), [of as u8 + 10; 32]).unwrap();
        self.peers[of] = (peer.sharing(permits), *address);
    }

    fn connect(&mut self) -> ConnectionHandle {
        let to = self.address(1);
        self.peers[0].0.connect(self.now, &to).unwrap()
    }

    /// Carries datagrams to and fro, a millisecond each, for so long.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + Duration::from_millis(1);
            for from in [0, 1] {
                self.step(from);
            }
        }
    }

    fn step(&mut self, from: usize) {
        let mut buffer = vec![0; TRANSMIT_BUFFER_BYTES];
        let source = self.peers[from].1;
        loop {
            let peer = &mut self.peers[from].0;
            if peer.poll_timeout().is_none_or(|at| at > self.now) {
                return;
            }
            peer.handle_timeout(self.now);
            while let Some(notice) = peer.poll_command() {
                self.notices[from].push(notice);
            }
            while let Some(sent) = self.peers[from].0.poll_transmit(self.now, &mut buffer) {
                let to = self
                    .peers
                    .iter()
                    .position(|(_, at)| *at == sent.destination);
                if self.cut {
                    continue;
                }
                let Some(to) = to else {
                    let bytes = buffer[sent.payload].to_vec();
                    self.lost.push((sent.destination, bytes));
                    continue;
                };
                self.deliver(to, source, sent.traffic_class, &mut buffer[sent.payload]);
            }
        }
    }

    fn deliver(&mut self, to: usize, from: SocketAddr, class: TrafficClass, payload: &mut [u8]) {
        let (peer, address) = &mut self.peers[to];
        let datagram = Datagram {
            socket: Socket::Listener(ListenerId(0)),
            local: address.ip(),
            remote: from,
            traffic_class: class,
            payload,
        };
        assert_eq!(peer.handle_datagram(self.now, datagram), None);
    }

    fn security(&self, of: usize) -> Option<SecurityLevel> {
        self.notices[of].iter().find_map(|notice| match notice {
            Notice::Connected { security, .. } => Some(*security),
            _ => None,
        })
    }

    fn close_reason(&self, of: usize) -> Option<CloseReason> {
        self.notices[of].iter().find_map(|notice| match notice {
            Notice::Closed { reason, .. } => Some(reason.clone()),
            _ => None,
        })
    }
}

/// Makes the cryptography of a node know nothing of ML-KEM.
fn classical(config: &mut PeerConfig) {
    config.quic.security = SecurityPolicy::AllowClassical;
    let provider = Arc::make_mut(&mut config.quic.provider);
    provider
        .kx_groups
        .retain(|group| group.name() == NamedGroup::X25519);
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_key_exchange_is_post_quantum_unless_both_ends_say_otherwise() {
    let mut lab = Lab::new(|_, _| {});
    lab.connect();
    lab.run(SECOND);
    let post_quantum = Some(SecurityLevel::PostQuantum);
    assert_eq!(
        (lab.security(0), lab.security(1)),
        (post_quantum, post_quantum)
    );

    let mut lab = Lab::new(|_, config| config.quic.security = SecurityPolicy::AllowClassical);
    lab.connect();
    lab.run(SECOND);
    assert_eq!(
        (lab.security(0), lab.security(1)),
        (post_quantum, post_quantum)
    );

    let mut lab = Lab::new(|index, config| {
        config.quic.security = SecurityPolicy::AllowClassical;
        if index == 1 {
            classical(config);
        }
    });
    lab.connect();
    lab.run(SECOND);
    let classical = Some(SecurityLevel::Classical);
    assert_eq!((lab.security(0), lab.security(1)), (classical, classical));
}

#[test]
fn a_peer_that_is_classical_only_is_refused_by_either_end() {
    for classical_one in [0, 1] {
        let mut lab = Lab::new(|index, config| {
            if index == classical_one {
                classical(config);
            }
        });
        lab.connect();
        lab.run(SECOND);
        assert_eq!((lab.security(0), lab.security(1)), (None, None));
        // handshake_failure (RFC 8446 §6.2), as the called one says it.
        assert_eq!(lab.close_reason(0), Some(CloseReason::Refused(40)));
        assert_eq!(lab.close_reason(1), None, "who was called tells nobody");
        assert_eq!(lab.peers[1].0.counters().failed_handshakes.value(), 1);
        lab.run(10 * SECOND);
        assert!(lab.peers.iter().all(|(peer, _)| peer.is_empty()));
    }
}

#[test]
fn a_policy_without_a_key_exchange_is_a_wrong_configuration() {
    let mut config = PeerConfig {
        listeners: vec![SocketAddr::from(([192, 0, 2, 1], 9))],
        ..PeerConfig::default()
    };
    classical(&mut config);
    config.quic.security = SecurityPolicy::RequirePostQuantum;
    let identity = Identity::new(SecretKey::from_seed([0; 32]));
    let made = Peer::new(Arc::new(config), &identity, ShardId(0), [1; 32]);
    let expected = PeerConfigError::Quic(crate::quic::QuicConfigError::NoKeyExchange);
    assert_eq!(made.err(), Some(expected));
}

#[test]
fn calls_that_lead_nowhere_are_refused_at_once() {
    let mut lab = Lab::new(|_, config| config.limits.connections = 1);
    let (me, now) = (lab.address(0), lab.now);
    assert_eq!(lab.peers[0].0.connect(now, &me), Err(ConnectError::Myself));
    let other = lab.peers[1].0.id();
    let v6 = PeerAddr::new(other, ["[2001:db8::1]:9".parse().unwrap()]).unwrap();
    assert_eq!(
        lab.peers[0].0.connect(now, &v6),
        Err(ConnectError::NoAddress(1))
    );
    lab.connect();
    let to = lab.address(1);
    assert_eq!(lab.peers[0].0.connect(now, &to), Err(ConnectError::Full(1)));
}

#[test]
fn a_handle_is_worth_nothing_once_its_connection_is_over() {
    let mut lab = Lab::new(|_, _| {});
    let first = lab.connect();
    lab.run(SECOND);
    let now = lab.now;
    assert!(lab.peers[0].0.peer(first).is_some());
    assert!(lab.peers[0].0.close(now, first, 0, b""));
    assert!(!lab.peers[0].0.close(now, first, 0, b""));
    lab.run(10 * SECOND);
    assert!(lab.peers.iter().all(|(peer, _)| peer.is_empty()));
    let second = lab.connect();
    lab.run(SECOND);
    assert_ne!(first, second);
    assert_eq!(lab.peers[0].0.peer(first), None);
    let opened = lab.peers[0]
        .0
        .open(lab.now, first, Direction::Bidirectional);
    assert_eq!(opened, Err(StreamError::NotConnected));
}

#[test]
fn a_call_tries_all_addresses_at_once_and_stays_with_the_one_that_answers() {
    let mut lab = Lab::new(|_, _| {});
    let (id, there) = (lab.peers[1].0.id(), lab.peers[1].1);
    let nowhere = SocketAddr::from(([192, 0, 2, 99], 9));
    let to = PeerAddr::new(id, [nowhere, there]).unwrap();
    let connection = lab.peers[0].0.connect(lab.now, &to).unwrap();
    lab.run(SECOND);
    assert_eq!(lab.peers[0].0.peer(connection), Some(id));
    let link = lab.peers[0].0.link(0).unwrap();
    assert!(matches!(link.path, Path::Direct(hop) if hop.destination == there));
}

#[test]
fn a_peer_that_was_started_anew_says_so_to_who_called_it_and_to_whom_it_called() {
    for restarted in [0, 1] {
        let mut lab = Lab::new(|_, _| {});
        let connection = lab.connect();
        lab.run(SECOND);
        let (_, address) = lab.peers[restarted];
        let config = PeerConfig {
            listeners: vec![address],
            ..PeerConfig::default()
        };
        let identity = Identity::new(SecretKey::from_seed([restarted as u8; 32]));
        let anew = Peer::new(Arc::new(config), &identity, ShardId(0), [99; 32]).unwrap();
        lab.peers[restarted].0 = anew;
        let other = 1 - restarted;
        let still = match other {
            0 => connection,
            _ => lab.peers[1].0.handle_of(0),
        };
        let now = lab.now;
        lab.peers[other]
            .0
            .send_datagram(now, still, &[1; 100])
            .unwrap();
        lab.run(SECOND);
        assert_eq!(lab.close_reason(other), Some(CloseReason::Forgotten));
    }
}

#[test]
fn a_connection_that_is_paced_sleeps_until_it_may_send() {
    let mut lab = Lab::new(|_, _| {});
    let connection = lab.connect();
    lab.run(SECOND);
    let mut now = lab.now;
    let peer = &mut lab.peers[0].0;
    let stream = peer.open(now, connection, Direction::Unidirectional);
    let stream = stream.unwrap().unwrap();
    assert_eq!(
        peer.write(now, connection, stream, &[7; 100_000]),
        Ok(100_000)
    );
    let mut buffer = vec![0; TRANSMIT_BUFFER_BYTES];
    let (mut wakes, mut sent) = (0, 0);
    // Nothing ever comes back.
    let end = now + Duration::from_millis(200);
    while let Some(at) = peer.poll_timeout().filter(|at| *at < end) {
        now = now.max(at);
        peer.handle_timeout(now);
        while peer.poll_transmit(now, &mut buffer).is_some() {
            sent += 1;
        }
        assert!(peer.poll_timeout().is_none_or(|at| at > now));
        wakes += 1;
    }
    assert!(
        sent >= 12 && wakes <= sent,
        "{wakes} wakes for {sent} datagrams"
    );
}

#[test]
fn connections_that_send_in_turns_lose_nothing_that_was_built() {
    let mut lab = Lab::new(|_, _| {});
    let connections: Vec<_> = (0..5).map(|_| lab.connect()).collect();
    lab.run(SECOND);
    for (count, connection) in connections.iter().enumerate() {
        let (now, peer) = (lab.now, &mut lab.peers[0].0);
        let stream = peer.open(now, *connection, Direction::Unidirectional);
        let stream = stream.unwrap().unwrap();
        let bytes = vec![count as u8; 500_000 + 777 * count];
        assert_eq!(
            peer.write(now, *connection, stream, &bytes),
            Ok(bytes.len())
        );
        assert_eq!(peer.finish(now, *connection, stream), Ok(()));
    }
    lab.run(2 * SECOND);
    let finished = |notice: &&Notice| matches!(notice, Notice::Finished { .. });
    assert_eq!(lab.notices[0].iter().filter(finished).count(), 5);
    for connection in connections {
        let stats = lab.peers[0].0.stats(connection).unwrap();
        assert_eq!((stats.lost_packets, stats.congestion_events), (0, 0));
    }
}

#[test]
fn an_open_connection_says_how_it_fares() {
    let mut lab = Lab::new(|_, _| {});
    let connection = lab.connect();
    assert_eq!(lab.peers[0].0.stats(connection), None);
    assert_eq!(lab.peers[0].0.remote(connection), None);
    assert_eq!(lab.peers[0].0.security(connection), None);
    lab.run(SECOND);
    let there = lab.peers[1].1;
    let peer = &lab.peers[0].0;
    let stats = peer.stats(connection).unwrap();
    assert_eq!(peer.remote(connection), Some(there));
    assert_eq!(peer.security(connection), Some(SecurityLevel::PostQuantum));
    assert_eq!((stats.path, stats.mtu_bytes), (there, 1452));
    assert!(stats.rtt < Duration::from_millis(30) && stats.min_rtt <= stats.rtt);
    assert!(stats.congestion_window_bytes >= 12_000);
    assert_eq!((stats.lost_packets, stats.congestion_events), (0, 0));
    let other = lab.peers[1].0.stats(lab.peers[1].0.handle_of(0)).unwrap();
    assert_eq!(stats.received_datagrams, other.sent_datagrams);
    assert_eq!(stats.received_bytes, other.sent_bytes);
    // What a call begins with was received before there was a connection.
    assert_eq!(stats.sent_datagrams, other.received_datagrams + 1);
    let now = lab.now;
    assert!(lab.peers[0].0.close(now, connection, 0, b""));
    assert_eq!(lab.peers[0].0.stats(connection), None);
}

#[test]
fn a_length_that_no_path_or_no_shell_carries_is_refused() {
    for bytes in [1199, 2049] {
        let mut config = PeerConfig {
            listeners: vec![SocketAddr::from(([192, 0, 2, 1], 9))],
            ..PeerConfig::default()
        };
        config.quic.max_mtu_bytes = bytes;
        let identity = Identity::new(SecretKey::from_seed([0; 32]));
        let made = Peer::new(Arc::new(config), &identity, ShardId(0), [1; 32]);
        let expected = crate::quic::QuicConfigError::Mtu(bytes);
        assert_eq!(made.err(), Some(PeerConfigError::Quic(expected)));
    }
}

#[test]
fn what_is_not_quic_is_dropped_and_counted() {
    let mut lab = Lab::new(|_, _| {});
    let remote = lab.peers[1].1;
    let peer = &mut lab.peers[0].0;
    for first in [0x00, 0x01, 0x3f, 0x80, 0xbf] {
        let datagram = Datagram {
            socket: Socket::Listener(ListenerId(0)),
            local: [192, 0, 2, 1].into(),
            remote,
            traffic_class: TrafficClass::ORDINARY,
            payload: &mut [first; 100],
        };
        assert_eq!(peer.handle_datagram(lab.now, datagram), None);
    }
    assert_eq!(peer.counters().not_quic.value(), 5);
    assert!(peer.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_datagram_of_a_stranger_makes_a_node_panic_or_keep_anything(
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..1500), 1..20),
        long in any::<bool>(),
    ) {
        let mut lab = Lab::new(|_, _| {});
        let remote = lab.peers[1].1;
        let peer = &mut lab.peers[0].0;
        for mut payload in payloads {
            // Half of them begin like an Initial packet of version 1.
            if long && payload.len() > 5 {
                payload[..5].copy_from_slice(&[0xc0, 0, 0, 0, 1]);
            }
            let datagram = Datagram {
                socket: Socket::Listener(ListenerId(0)),
                local: [192, 0, 2, 1].into(),
                remote,
                traffic_class: TrafficClass::ORDINARY,
                payload: &mut payload,
            };
            peer.handle_datagram(lab.now, datagram);
        }
        // What is answered is short, and gone once it is sent.
        while peer.poll_transmit(lab.now, &mut [0; TRANSMIT_BUFFER_BYTES]).is_some() {}
        prop_assert!(peer.is_empty());
    }
}
