//! What the pool means for a node: one connection for all who want a peer, in both directions.

use super::*;
use crate::breaker::{BreakerKey, BreakerState};
use crate::pool::{Cause, ConnectionState, DialError, Got, Permits};
use crate::transport_type::TransportType;

impl Lab {
    fn get(&mut self, from: usize, ticket: u64) -> Result<Got<ConnectionHandle>, GetError> {
        let to = self.address(1 - from);
        self.peers[from].0.get(self.now, &to, Ticket(ticket))
    }

    /// What was told about waits.
    fn answers(&self, of: usize) -> Vec<(u64, Result<ConnectionHandle, GetError>)> {
        let got = |notice: &Notice| match notice {
            Notice::Got { ticket, result } => Some((ticket.0, result.clone())),
            _ => None,
        };
        self.notices[of].iter().filter_map(got).collect()
    }

    fn connected(&self, of: usize) -> Vec<ConnectionHandle> {
        let stands = |notice: &Notice| match notice {
            Notice::Connected { connection, .. } => Some(*connection),
            _ => None,
        };
        self.notices[of].iter().filter_map(stands).collect()
    }

    fn got(&mut self, from: usize) -> ConnectionHandle {
        assert_eq!(self.get(from, 1), Ok(Got::Waiting));
        self.run(SECOND);
        let answers = self.answers(from);
        answers.last().unwrap().1.clone().expect("it is there")
    }
}

#[test]
fn all_who_ask_at_once_get_one_connection_and_who_asks_later_gets_it_at_once() {
    let mut lab = Lab::new(|_, _| {});
    for ticket in 1..=3 {
        assert_eq!(lab.get(0, ticket), Ok(Got::Waiting));
    }
    let them = lab.peers[1].0.id();
    assert_eq!(lab.peers[0].0.state(them), ConnectionState::Connecting);
    lab.run(SECOND);
    let connection = lab.connected(0)[0];
    assert_eq!((lab.connected(0).len(), lab.connected(1).len()), (1, 1));
    let all: Vec<_> = (1..=3).map(|ticket| (ticket, Ok(connection))).collect();
    assert_eq!(lab.answers(0), all);
    assert_eq!(lab.get(0, 4), Ok(Got::Live(connection)));
    let metadata = lab.peers[0].0.metadata(connection).unwrap();
    assert_eq!((metadata.references, metadata.peer), (4, them));
    assert_eq!(metadata.transport, TransportType::Direct);
    let rtt = metadata.properties.measured.rtt.unwrap();
    assert!(rtt < SECOND / 10);
    assert!(metadata.properties.quality() > 0.9);
}

#[test]
fn who_was_called_uses_the_same_connection_to_call_back() {
    let mut lab = Lab::new(|_, _| {});
    lab.got(0);
    let theirs = lab.connected(1)[0];
    assert_eq!(lab.get(1, 1), Ok(Got::Live(theirs)));
    assert!(lab.peers[1].0.metadata(theirs).unwrap().incoming);
}

#[test]
fn a_connection_stays_while_either_end_has_it_and_ends_when_neither_does() {
    for holder in [0, 1] {
        let mut lab = Lab::new(|_, _| {});
        let ours = lab.got(0);
        let theirs = lab.connected(1)[0];
        if holder == 1 {
            assert!(lab.peers[1].0.retain(lab.now, theirs));
            assert!(lab.peers[0].0.release(lab.now, ours));
        }
        lab.run(100 * SECOND);
        assert_eq!((lab.close_reason(0), lab.close_reason(1)), (None, None));
        let last = if holder == 0 { ours } else { theirs };
        assert!(lab.peers[holder].0.release(lab.now, last));
        lab.run(40 * SECOND);
        assert!(lab.close_reason(0).is_some() && lab.close_reason(1).is_some());
        assert!(lab.peers.iter().all(|(peer, _)| peer.is_empty()));
        let idle: u64 = (lab.peers.iter())
            .map(|(peer, _)| peer.pool_counters().idle.value())
            .sum();
        assert!(idle > 0, "in good order");
    }
}

#[test]
fn an_open_stream_of_the_peer_keeps_a_connection() {
    let mut lab = Lab::new(|_, _| {});
    let ours = lab.got(0);
    let now = lab.now;
    let stream = lab.peers[0].0.open(now, ours, Direction::Unidirectional);
    let stream = stream.unwrap().unwrap();
    lab.peers[0].0.write(now, ours, stream, b"hello").unwrap();
    assert!(lab.peers[0].0.release(lab.now, ours));
    lab.run(60 * SECOND);
    assert_eq!((lab.close_reason(0), lab.close_reason(1)), (None, None));
    let stats = lab.peers[0].0.metadata(ours).unwrap().stats;
    assert_eq!((stats.sent.bytes, stats.sent.messages), (5, 0));
    lab.peers[0].0.reset(lab.now, ours, stream, 1).unwrap();
    lab.run(SECOND);
    let theirs = lab.connected(1)[0];
    let now = lab.now;
    let accepted = lab.peers[1]
        .0
        .accept(now, theirs, Direction::Unidirectional);
    let accepted = accepted.unwrap().unwrap();
    let _ = lab.peers[1].0.read(now, theirs, accepted, 100);
    lab.run(60 * SECOND);
    assert!(lab.peers.iter().all(|(peer, _)| peer.is_empty()));
}

#[test]
fn two_that_call_each_other_at_once_use_the_same_connection_afterwards() {
    let mut lab = Lab::new(|_, _| {});
    assert_eq!(lab.get(0, 1), Ok(Got::Waiting));
    assert_eq!(lab.get(1, 1), Ok(Got::Waiting));
    lab.run(SECOND);
    assert_eq!((lab.answers(0).len(), lab.answers(1).len()), (1, 1));
    let (Ok(Got::Live(ours)), Ok(Got::Live(theirs))) = (lab.get(0, 2), lab.get(1, 2)) else {
        panic!("both have a connection");
    };
    let sent = lab.peers[0].0.send_datagram(lab.now, ours, b"same");
    assert_eq!(sent, Ok(()));
    lab.run(SECOND);
    let same = lab.peers[1].0.receive_datagram(theirs);
    assert_eq!(same.as_deref(), Some(&b"same"[..]));
    for of in [0, 1] {
        let (_, first) = lab.answers(of).remove(0);
        assert!(lab.peers[of].0.release(lab.now, first.unwrap()));
    }
    lab.run(60 * SECOND);
    let left = lab
        .peers
        .each_ref()
        .map(|(peer, _)| peer.pool().connections());
    assert_eq!(left, [1, 1]);
    assert_eq!(lab.peers[0].0.peer(ours), Some(lab.peers[1].0.id()));
}

#[test]
fn who_does_not_answer_is_called_again_and_left_alone_after_some_failures() {
    let mut lab = Lab::new(|_, config| {
        config.pool.retry.attempt_timeout = SECOND;
        config.pool.retry.max_attempts = 20;
        config.breaker.jitter_per_mille = 0;
    });
    let nobody = PeerId::from_bytes([9; 32]);
    let nowhere = SocketAddr::from(([192, 0, 2, 99], 9));
    let to = PeerAddr::new(nobody, [nowhere]).unwrap();
    assert_eq!(
        lab.peers[0].0.get(lab.now, &to, Ticket(1)),
        Ok(Got::Waiting)
    );
    lab.run(11 * SECOND);
    let key = BreakerKey::Peer(nobody, TransportType::Direct);
    let peer = &lab.peers[0].0;
    assert_eq!(peer.breaker(lab.now, key).state, BreakerState::Open);
    assert_eq!(peer.connections(), 0, "nothing is tried");
    let changed = |notice: &Notice| matches!(notice, Notice::Breaker(_));
    assert!(lab.notices[0].iter().any(changed));
    lab.run(30 * SECOND);
    let answers = lab.answers(0);
    assert!(matches!(
        answers[..],
        [(1, Err(GetError::Deadline { .. } | GetError::Held { .. }))]
    ));
    let attempts = lab.peers[0].0.pool_counters().attempts.value();
    assert!((5..15).contains(&attempts), "{attempts}");
    lab.run(5 * SECOND);
    assert!(lab.peers[0].0.is_empty());
    assert_eq!(lab.close_reason(0), None, "attempts are nobody's business");
}

#[test]
fn a_caller_that_goes_takes_the_call_with_it() {
    let mut lab = Lab::new(|_, _| {});
    lab.get(0, 1).unwrap();
    lab.step(0);
    assert!(lab.peers[0].0.cancel(lab.now, Ticket(1)));
    lab.run(10 * SECOND);
    assert_eq!((lab.answers(0).len(), lab.connected(0).len()), (0, 0));
    assert!(lab.peers.iter().all(|(peer, _)| peer.is_empty()));
}

#[test]
fn another_peer_at_the_address_is_told_once_and_not_tried_again() {
    let mut lab = Lab::new(|_, _| {});
    let wanted = PeerId::from_bytes([9; 32]);
    let to = PeerAddr::new(wanted, [lab.peers[1].1]).unwrap();
    lab.peers[0].0.get(lab.now, &to, Ticket(1)).unwrap();
    lab.run(10 * SECOND);
    let error = DialError::Ended(CloseReason::WrongPeer(lab.peers[1].0.id()));
    let failed = GetError::Failed { attempts: 1, error };
    assert_eq!(lab.answers(0), [(1, Err(failed))]);
}

#[test]
fn a_node_that_has_all_the_connections_it_may_have_refuses_at_the_first_packet() {
    let mut lab = Lab::new(|_, config| config.pool.retry.max_attempts = 1);
    let permits = Permits::new(0);
    lab.share(1, permits);
    lab.get(0, 1).unwrap();
    lab.run(SECOND);
    let error = DialError::Ended(CloseReason::Busy);
    let failed = GetError::Failed { attempts: 1, error };
    assert_eq!(lab.answers(0), [(1, Err(failed))]);
    assert!(lab.peers[1].0.counters().refused_handshakes.value() > 0);
    assert!(lab.peers[1].0.is_empty());
    let full = GetError::Full { limit: 0 };
    assert_eq!(lab.get(1, 1), Err(full));
}

#[test]
fn an_unhealthy_connection_is_replaced_while_who_has_it_keeps_it() {
    let mut lab = Lab::new(|_, config| config.pool.observe = true);
    let sick = lab.got(0);
    lab.peers[0].0.set_unhealthy(lab.now, sick);
    let sound = lab.got(0);
    assert_ne!(sick, sound);
    assert!(lab.peers[0].0.peer(sick).is_some());
    assert!(lab.peers[0].0.release(lab.now, sick));
    assert_eq!(lab.peers[0].0.peer(sick), None);
    assert_eq!(lab.get(0, 5), Ok(Got::Live(sound)));
    lab.run(SECOND);
    let drained = |notice: &Notice| {
        let why = crate::pool::Closing::Pool(Cause::Drained);
        matches!(notice, Notice::Pool(PoolEvent::Closed { why: told, .. }) if *told == why)
    };
    assert!(lab.notices[0].iter().any(drained));
}

#[test]
fn a_shutdown_closes_everything_refuses_what_comes_and_says_when_it_is_over() {
    let mut lab = Lab::new(|_, config| config.pool.retry.max_attempts = 1);
    let ours = lab.got(0);
    let nobody = PeerAddr::new(PeerId::from_bytes([9; 32]), [lab.peers[1].1]).unwrap();
    let now = lab.now;
    lab.peers[0].0.get(now, &nobody, Ticket(7)).unwrap();
    lab.peers[0].0.shutdown(now);
    assert_eq!(lab.get(0, 8), Err(GetError::ShuttingDown));
    let to = lab.address(1);
    let connected = lab.peers[0].0.connect(now, &to);
    assert_eq!(connected, Err(ConnectError::ShuttingDown));
    lab.run(2 * SECOND / 1_000);
    assert_eq!(lab.get(1, 1), Ok(Got::Waiting), "it was told, and calls");
    lab.run(10 * SECOND);
    assert_eq!(lab.peers[0].0.peer(ours), None);
    assert_eq!(
        lab.answers(0).last(),
        Some(&(7, Err(GetError::ShuttingDown)))
    );
    let over = |notice: &&Notice| matches!(notice, Notice::ShutDown);
    assert_eq!(lab.notices[0].iter().filter(over).count(), 1);
    assert!(lab.peers[0].0.is_empty());
    let error = DialError::Ended(CloseReason::Busy);
    let failed = GetError::Failed { attempts: 1, error };
    assert_eq!(lab.answers(1), [(1, Err(failed))]);
    let reasons = lab.close_reason(1);
    assert!(matches!(reasons, Some(CloseReason::Peer { .. })));
}
