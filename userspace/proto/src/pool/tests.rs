use super::*;
use crate::quic::SecurityLevel;
use crate::transport_type::TransportType;

const ME: u8 = 100;
const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const DIRECT: Established = Established {
    security: SecurityLevel::PostQuantum,
    transport: TransportType::Direct,
};

struct Lab {
    pool: Pool<u32>,
    now: Timestamp,
    tickets: u64,
    connections: u32,
    answers: Vec<(Ticket, Result<u32, GetError>)>,
    dials: Vec<(DialId, PeerAddr, u32)>,
    cancelled: Vec<DialId>,
    closed: Vec<(u32, Cause)>,
    kept_alive: Vec<u32>,
    events: Vec<PoolEvent<u32>>,
    /// When something came on a connection.
    heard: Vec<(u32, Timestamp)>,
}

impl Lab {
    fn new(change: impl FnOnce(&mut PoolConfig)) -> Self {
        let mut config = PoolConfig {
            observe: true,
            ..PoolConfig::default()
        };
        config.retry.jitter = 0.0;
        change(&mut config);
        let permits = Permits::new(config.max_total_connections);
        Self {
            pool: Pool::new(peer(ME), config, permits, [1; 32]).unwrap(),
            now: Timestamp::ZERO + 1_000 * SECOND,
            tickets: 0,
            connections: 0,
            answers: Vec::new(),
            dials: Vec::new(),
            cancelled: Vec::new(),
            closed: Vec::new(),
            kept_alive: Vec::new(),
            events: Vec::new(),
            heard: Vec::new(),
        }
    }

    fn collect(&mut self) {
        while let Some(action) = self.pool.poll_action() {
            match action {
                Action::Dial { dial, to, attempt } => self.dials.push((dial, to, attempt)),
                Action::Cancel { dial, .. } => self.cancelled.push(dial),
                Action::Close { connection, cause } => self.closed.push((connection, cause)),
                Action::KeepAlive { connection } => self.kept_alive.push(connection),
                Action::Answer { ticket, result } => self.answers.push((ticket, result)),
            }
        }
        while let Some(event) = self.pool.poll_event() {
            self.events.push(event);
        }
    }

    /// Lets the time pass, doing what is due.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.pool.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let heard = &self.heard;
            let last = |connection| {
                let of = heard.iter().filter(|(of, _)| *of == connection);
                of.map(|(_, at)| *at).max().unwrap_or_default()
            };
            self.pool.handle_timeout(self.now, last);
            self.collect();
        }
        self.now = end;
    }

    fn get(&mut self, of: u8) -> Result<Got<u32>, GetError> {
        self.tickets += 1;
        let got = self.pool.get(self.now, &addr(of), Ticket(self.tickets));
        self.collect();
        got
    }

    fn live(&mut self, of: u8) -> u32 {
        match self.get(of) {
            Ok(Got::Live(connection)) => connection,
            other => panic!("{other:?}"),
        }
    }

    fn last_dial(&self) -> DialId {
        self.dials.last().expect("there was a dial").0
    }

    fn dialled(&mut self) -> u32 {
        self.connections += 1;
        let dial = self.last_dial();
        let wanted = self.pool.dialled(self.now, dial, self.connections, DIRECT);
        assert!(wanted, "nobody wants it");
        self.collect();
        self.connections
    }

    /// Has a connection with a peer dialled, and a reference to it.
    fn connect(&mut self, of: u8) -> u32 {
        assert_eq!(self.get(of), Ok(Got::Waiting));
        let connection = self.dialled();
        assert_eq!(self.answers.last().unwrap().1, Ok(connection));
        connection
    }

    fn incoming(&mut self, from: u8) -> Result<u32, Refusal> {
        self.connections += 1;
        let taken = self
            .pool
            .incoming(self.now, self.connections, peer(from), DIRECT);
        self.collect();
        taken.map(|()| self.connections)
    }

    fn release(&mut self, connection: u32) {
        assert!(self.pool.release(self.now, connection));
        self.collect();
    }

    fn fail(&mut self, reason: CloseReason) {
        let dial = self.last_dial();
        self.pool.dial_failed(self.now, dial, reason.into());
        self.collect();
    }

    fn assert_over(&mut self) {
        assert!(self.pool.is_empty(), "{:?}", self.pool);
        assert_eq!(self.pool.permits().taken(), 0);
        assert_eq!(self.pool.poll_timeout(), None);
    }
}

fn peer(number: u8) -> PeerId {
    PeerId::from_bytes([number; 32])
}

fn addr(of: u8) -> PeerAddr {
    PeerAddr::new(peer(of), [([192, 0, 2, of], 9).into()]).unwrap()
}

#[test]
fn any_number_of_callers_wait_for_one_dial_and_each_is_answered_once() {
    let mut lab = Lab::new(|_| {});
    for _ in 0..10 {
        assert_eq!(lab.get(1), Ok(Got::Waiting));
    }
    assert_eq!(lab.dials.len(), 1);
    let connection = lab.dialled();
    let tickets: Vec<_> = lab.answers.iter().map(|(ticket, _)| ticket.0).collect();
    assert_eq!(tickets, (1..=10).collect::<Vec<_>>());
    assert!(lab.answers.iter().all(|(_, got)| *got == Ok(connection)));
    assert_eq!(lab.pool.metadata(connection).unwrap().references, 10);
    assert_eq!(lab.live(1), connection);
    assert_eq!((lab.dials.len(), lab.pool.permits().taken()), (1, 1));
}

#[test]
fn when_the_last_caller_gives_up_the_dial_does_too() {
    let mut lab = Lab::new(|_| {});
    lab.get(1).unwrap();
    lab.get(1).unwrap();
    assert!(lab.pool.cancel(lab.now, Ticket(1)));
    assert!(!lab.pool.cancel(lab.now, Ticket(1)), "it waits no more");
    lab.collect();
    assert_eq!(lab.cancelled, []);
    assert!(lab.pool.cancel(lab.now, Ticket(2)));
    lab.collect();
    assert_eq!(lab.cancelled, [lab.last_dial()]);
    assert_eq!(lab.answers, []);
    let dial = lab.last_dial();
    assert!(!lab.pool.dialled(lab.now, dial, 9, DIRECT), "it comes late");
    lab.assert_over();
}

#[test]
fn a_ticket_waits_once() {
    let mut lab = Lab::new(|config| config.max_waiters = 2);
    lab.get(1).unwrap();
    let again = lab.pool.get(lab.now, &addr(2), Ticket(1));
    assert_eq!(again, Err(GetError::TicketInUse(Ticket(1))));
    lab.get(1).unwrap();
    assert_eq!(lab.get(1), Err(GetError::TooManyWaiters(2)));
    assert_eq!(lab.pool.permits().taken(), 1, "who may not wait dials not");
}

#[test]
fn a_failure_that_may_pass_is_tried_again_after_doubling_pauses() {
    let mut lab = Lab::new(|config| {
        config.retry.base_delay = SECOND;
        config.retry.max_delay = 2 * SECOND;
    });
    lab.get(1).unwrap();
    for (attempt, pause) in [(1, SECOND), (2, 2 * SECOND), (3, 2 * SECOND)] {
        assert_eq!(lab.dials.len(), attempt);
        lab.fail(CloseReason::Busy);
        lab.pass(pause - 10 * MS);
        assert_eq!(lab.dials.len(), attempt);
        assert_eq!(lab.pool.permits().taken(), 1, "a pause keeps the permit");
        lab.pass(20 * MS);
    }
    assert_eq!(lab.dials.len(), 4);
    lab.fail(CloseReason::Busy);
    let error = GetError::Failed {
        attempts: 4,
        error: DialError::Ended(CloseReason::Busy),
    };
    assert_eq!(lab.answers, [(Ticket(1), Err(error))]);
    let retries = |event: &&PoolEvent<u32>| matches!(event, PoolEvent::Retry { .. });
    assert_eq!(lab.events.iter().filter(retries).count(), 3);
    lab.assert_over();
}

#[test]
fn a_failure_that_cannot_pass_is_told_at_once() {
    let mut lab = Lab::new(|_| {});
    lab.get(1).unwrap();
    lab.get(1).unwrap();
    lab.fail(CloseReason::WrongPeer(peer(7)));
    assert_eq!((lab.answers.len(), lab.dials.len()), (2, 1));
    lab.assert_over();
}

#[test]
fn an_attempt_that_takes_too_long_is_given_up_and_made_again() {
    let mut lab = Lab::new(|config| config.retry.max_attempts = 2);
    lab.get(1).unwrap();
    lab.pass(11 * SECOND);
    assert_eq!((lab.cancelled.len(), lab.dials.len()), (1, 2));
    assert_eq!(lab.dials[1].2, 2);
    lab.pass(11 * SECOND);
    let error = GetError::Failed {
        attempts: 2,
        error: DialError::TooSlow(10 * SECOND),
    };
    assert_eq!(lab.answers, [(Ticket(1), Err(error))]);
    lab.assert_over();
}

#[test]
fn a_caller_waits_no_longer_than_its_own_deadline() {
    let mut lab = Lab::new(|config| config.retry.deadline = 5 * SECOND);
    lab.get(1).unwrap();
    lab.pass(3 * SECOND);
    lab.get(1).unwrap();
    lab.pass(2 * SECOND + 2 * MS);
    let error = GetError::Deadline {
        deadline: 5 * SECOND,
        attempts: 1,
        last: None,
    };
    assert_eq!(lab.answers, [(Ticket(1), Err(error))]);
    assert_eq!(lab.cancelled, []);
    lab.pass(3 * SECOND);
    assert_eq!((lab.answers.len(), lab.cancelled.len()), (2, 1));
    lab.assert_over();
}

#[test]
fn who_would_wait_for_a_breaker_in_vain_is_told_at_once() {
    let mut lab = Lab::new(|_| {});
    lab.get(1).unwrap();
    lab.pass(20 * SECOND - MS);
    assert_eq!(lab.dials.len(), 2, "the first attempt was too slow");
    lab.get(1).unwrap();
    let (dial, retry_at) = (lab.last_dial(), lab.now + 20 * SECOND);
    lab.pool.dial_refused(lab.now, dial, retry_at);
    lab.collect();
    assert_eq!(lab.answers, [(Ticket(1), Err(GetError::Held { retry_at }))]);
    lab.pass(20 * SECOND - MS);
    assert_eq!(lab.dials.len(), 2);
    lab.pass(2 * MS);
    assert_eq!(lab.dials[2].2, 2, "it was no attempt");
    lab.dialled();
    assert_eq!(lab.answers.len(), 2);
}

#[test]
fn addresses_of_all_callers_are_tried() {
    let mut lab = Lab::new(|_| {});
    lab.get(1).unwrap();
    let other = "198.51.100.1:7".parse().unwrap();
    let elsewhere = PeerAddr::new(peer(1), [other]).unwrap();
    lab.pool.get(lab.now, &elsewhere, Ticket(50)).unwrap();
    lab.fail(CloseReason::TimedOut);
    lab.pass(SECOND);
    let both = [other, addr(1).addresses()[0]];
    assert_eq!(lab.dials[1].1.addresses(), both);
}

#[test]
fn a_connection_is_closed_when_nobody_has_used_it_for_the_idle_timeout() {
    let mut lab = Lab::new(|_| {});
    let connection = lab.connect(1);
    assert!(lab.pool.retain(lab.now, connection));
    lab.release(connection);
    lab.pass(100 * SECOND);
    assert_eq!(lab.closed, [], "somebody has it");
    lab.release(connection);
    assert!(!lab.pool.release(lab.now, connection), "nobody has it");
    lab.pass(20 * SECOND);
    assert_eq!(lab.live(1), connection);
    lab.release(connection);
    lab.pass(25 * SECOND - MS);
    assert_eq!(lab.closed, []);
    lab.pass(3 * MS);
    assert_eq!(lab.closed, [(connection, Cause::Idle)]);
    lab.assert_over();
    assert!(!lab.pool.retain(lab.now, connection));
    assert!(!lab.pool.closed(lab.now, connection, CloseReason::Here));
}

#[test]
fn what_the_other_end_uses_is_not_idle() {
    let mut lab = Lab::new(|_| {});
    let connection = lab.incoming(1).unwrap();
    lab.pass(20 * SECOND);
    lab.heard.push((connection, lab.now));
    lab.pass(24 * SECOND);
    assert_eq!(lab.closed, []);
    lab.pass(2 * SECOND);
    assert_eq!(lab.closed, [(connection, Cause::Idle)]);

    let busy = lab.incoming(2).unwrap();
    lab.pool.set_busy(lab.now, busy, true);
    lab.pass(100 * SECOND);
    assert_eq!(lab.closed.len(), 1);
    lab.pool.set_busy(lab.now, busy, false);
    lab.pass(26 * SECOND);
    assert_eq!(lab.closed[1..], [(busy, Cause::Idle)]);
    lab.assert_over();
}

#[test]
fn a_connection_in_use_is_kept_alive_and_an_idle_one_is_not() {
    let mut lab = Lab::new(|_| {});
    let connection = lab.connect(1);
    lab.pass(35 * SECOND);
    assert_eq!(lab.kept_alive.len(), 3);
    let traffic = Traffic {
        bytes: 10,
        messages: 1,
    };
    lab.pool.record_sent(lab.now, connection, traffic);
    lab.pass(9 * SECOND);
    assert_eq!(lab.kept_alive.len(), 3, "traffic does it too");
    lab.pass(2 * SECOND);
    assert_eq!(lab.kept_alive.len(), 4);
    lab.release(connection);
    lab.pass(24 * SECOND);
    assert_eq!(lab.kept_alive.len(), 4);
    assert_eq!(lab.live(1), connection);
    lab.pass(11 * SECOND);
    assert_eq!(lab.kept_alive, [connection; 5]);
}

#[test]
fn when_full_the_least_useful_idle_connection_goes() {
    let mut lab = Lab::new(|config| config.max_total_connections = 3);
    let [used, good, bad] = [1, 2, 3].map(|of| lab.connect(of));
    lab.release(good);
    lab.release(bad);
    let slow = Measured {
        rtt: Some(SECOND),
        ..Measured::default()
    };
    lab.pool.set_measured(bad, slow);
    assert_eq!(lab.get(4), Ok(Got::Waiting));
    assert_eq!(lab.closed, [(bad, Cause::Evicted)]);
    assert_eq!(lab.pool.permits().taken(), 3);
    lab.dialled();
    assert!(lab.incoming(5).is_ok());
    assert_eq!(lab.closed[1..], [(good, Cause::Evicted)]);
    let in_use = lab.connections;
    assert_eq!(lab.live(5), in_use);
    let full = GetError::Full { limit: 3 };
    assert_eq!(lab.get(6), Err(full));
    assert_eq!(lab.incoming(6), Err(Refusal::Full { limit: 3 }));
    assert!(!lab.pool.has_room());
    assert_eq!(lab.live(1), used, "who has a connection needs no room");
    let told = lab.events.contains(&PoolEvent::Full { peer: peer(6) });
    assert!(told);
}

#[test]
fn of_equal_connections_the_one_idle_longest_goes() {
    let mut lab = Lab::new(|config| config.max_total_connections = 2);
    let [first, second] = [1, 2].map(|of| lab.connect(of));
    lab.release(second);
    lab.pass(SECOND);
    lab.release(first);
    lab.pass(SECOND);
    lab.get(3).unwrap();
    assert_eq!(lab.closed, [(second, Cause::Evicted)]);
}

#[test]
fn an_unhealthy_connection_is_given_to_nobody_and_closed_when_the_last_lets_go() {
    let mut lab = Lab::new(|_| {});
    let sick = lab.connect(1);
    lab.pool.set_unhealthy(lab.now, sick);
    let state = lab.pool.metadata(sick).unwrap().state;
    assert_eq!(state, ConnectionState::Draining);
    let sound = lab.connect(1);
    assert_ne!(sick, sound);
    assert_eq!(lab.live(1), sound);
    assert_eq!(lab.closed, []);
    lab.release(sick);
    assert_eq!(lab.closed, [(sick, Cause::Drained)]);
    lab.release(sound);
    lab.release(sound);
    lab.pool.set_unhealthy(lab.now, sound);
    lab.collect();
    assert_eq!(lab.closed[1..], [(sound, Cause::Drained)]);
    lab.assert_over();
}

#[test]
fn a_lost_connection_is_replaced_when_somebody_wants_one() {
    let mut lab = Lab::new(|_| {});
    let lost = lab.connect(1);
    assert!(lab.pool.closed(lab.now, lost, CloseReason::TimedOut));
    assert_eq!((lab.dials.len(), lab.pool.permits().taken()), (1, 0));
    assert!(!lab.pool.release(lab.now, lost));
    assert_ne!(lab.connect(1), lost);
    assert_eq!(lab.dials.len(), 2);
}

#[test]
fn a_connection_that_the_peer_made_is_used_in_the_other_direction() {
    let mut lab = Lab::new(|_| {});
    let connection = lab.incoming(1).unwrap();
    assert_eq!(lab.live(1), connection);
    assert_eq!(lab.dials, []);
}

#[test]
fn who_waits_gets_the_connection_that_the_peer_makes_meanwhile() {
    let mut lab = Lab::new(|config| config.max_total_connections = 1);
    lab.get(1).unwrap();
    lab.get(1).unwrap();
    let connection = lab.incoming(1).unwrap();
    assert_eq!(lab.cancelled, [lab.last_dial()]);
    assert!(lab.answers.iter().all(|(_, got)| *got == Ok(connection)));
    assert_eq!(lab.answers.len(), 2);
    assert_eq!(lab.pool.permits().taken(), 1, "the dial's became its own");
    assert_eq!(lab.pool.metadata(connection).unwrap().references, 2);
}

#[test]
fn of_two_simultaneous_calls_that_of_the_smaller_peer_is_preferred() {
    for (other, preferred) in [(ME - 1, "theirs"), (ME + 1, "ours")] {
        let mut lab = Lab::new(|_| {});
        let ours = lab.connect(other);
        lab.pass(100 * MS);
        let theirs = lab.incoming(other).unwrap();
        let (kept, surplus) = match preferred {
            "ours" => (ours, theirs),
            _ => (theirs, ours),
        };
        assert_eq!(lab.live(other), kept);
        lab.pass(60 * SECOND);
        if surplus == ours {
            assert_eq!(lab.closed, [], "somebody has it");
            lab.release(ours);
        }
        lab.pass(21 * SECOND);
        assert_eq!(lab.closed, [(surplus, Cause::Surplus)]);
        assert_eq!(lab.live(other), kept);
    }
}

#[test]
fn a_peer_that_calls_later_has_lost_what_there_was() {
    for other in [ME - 1, ME + 1] {
        let mut lab = Lab::new(|_| {});
        let old = lab.connect(other);
        lab.pass(6 * SECOND);
        let new = lab.incoming(other).unwrap();
        assert_eq!(lab.live(other), new);
        lab.release(old);
        lab.release(new);
        lab.pass(21 * SECOND);
        assert_eq!(lab.closed, [(old, Cause::Surplus)]);
    }
}

#[test]
fn what_is_preferred_and_lost_leaves_its_place_to_the_other() {
    let mut lab = Lab::new(|_| {});
    let ours = lab.connect(ME + 1);
    let theirs = lab.incoming(ME + 1).unwrap();
    assert_eq!(lab.live(ME + 1), ours);
    lab.pool.closed(lab.now, ours, CloseReason::Forgotten);
    assert_eq!(lab.live(ME + 1), theirs);
}

#[test]
fn a_peer_may_make_only_so_many_connections() {
    let mut lab = Lab::new(|_| {});
    let all: Vec<_> = (0..5).map(|_| lab.incoming(1).unwrap()).collect();
    for connection in &all[1..] {
        assert!(lab.pool.retain(lab.now, *connection));
    }
    let sixth = lab.incoming(1).unwrap();
    assert_eq!(lab.closed, [(all[0], Cause::Evicted)]);
    assert!(lab.pool.retain(lab.now, sixth));
    assert_eq!(lab.incoming(1), Err(Refusal::TooManyOfPeer(5)));
    assert_eq!(lab.pool.permits().taken(), 5);
}

#[test]
fn with_several_connections_allowed_the_least_loaded_one_is_given_and_one_more_dialled_when_all_are_loaded()
 {
    let mut lab = Lab::new(|config| {
        config.max_connections_per_peer = 2;
        config.references_per_connection = 3;
    });
    let first = lab.connect(1);
    assert_eq!((lab.live(1), lab.live(1)), (first, first));
    assert_eq!(lab.dials.len(), 1);
    assert_eq!(lab.live(1), first, "nobody waits for the second");
    assert_eq!(lab.live(1), first);
    assert_eq!(lab.dials.len(), 2, "once");
    let second = lab.dialled();
    assert_eq!(lab.live(1), second);
    for _ in 0..20 {
        lab.live(1);
    }
    assert_eq!(lab.dials.len(), 2);
    let of = |connection| lab.pool.metadata(connection).unwrap().references;
    assert!(of(first).abs_diff(of(second)) <= 1);
}

#[test]
fn a_further_connection_that_fails_is_not_dialled_again_at_once() {
    let mut lab = Lab::new(|config| {
        config.max_connections_per_peer = 2;
        config.references_per_connection = 1;
    });
    lab.connect(1);
    lab.live(1);
    assert_eq!(lab.dials.len(), 2);
    lab.fail(CloseReason::Busy);
    lab.live(1);
    assert_eq!(lab.dials.len(), 2);
    lab.pass(6 * SECOND);
    lab.live(1);
    assert_eq!(lab.dials.len(), 3);
    assert_eq!(lab.pool.permits().taken(), 2);
}

#[test]
fn a_shutdown_tells_all_who_wait_and_closes_all_there_is() {
    let mut lab = Lab::new(|_| {});
    let connection = lab.connect(1);
    lab.get(2).unwrap();
    lab.get(2).unwrap();
    lab.answers.clear();
    lab.pool.shutdown(lab.now);
    lab.collect();
    assert_eq!(lab.closed, [(connection, Cause::Shutdown)]);
    let stopped = |(_, got): &(Ticket, _)| *got == Err(GetError::ShuttingDown);
    assert!(lab.answers.len() == 2 && lab.answers.iter().all(stopped));
    assert_eq!(lab.cancelled, [lab.last_dial()]);
    assert_eq!(lab.get(1), Err(GetError::ShuttingDown));
    assert_eq!(lab.incoming(3), Err(Refusal::ShuttingDown));
    lab.assert_over();
}

#[test]
fn statistics_and_states_are_those_of_the_connection() {
    let mut lab = Lab::new(|_| {});
    assert_eq!(lab.pool.state(peer(1)), ConnectionState::Closed);
    lab.get(1).unwrap();
    assert_eq!(lab.pool.state(peer(1)), ConnectionState::Connecting);
    let connection = lab.dialled();
    assert_eq!(lab.pool.state(peer(1)), ConnectionState::Connected);
    let established_at = lab.now;
    lab.pass(SECOND);
    let traffic = |bytes, messages| Traffic { bytes, messages };
    lab.pool.record_sent(lab.now, connection, traffic(100, 0));
    lab.pool.record_sent(lab.now, connection, traffic(20, 1));
    lab.pool.record_received(lab.now, connection, traffic(7, 1));
    lab.pool.record_failure(connection);
    let metadata = lab.pool.metadata(connection).unwrap();
    assert_eq!(metadata.stats.sent, traffic(120, 1));
    assert_eq!(metadata.stats.received, traffic(7, 1));
    assert_eq!(metadata.established_at, established_at);
    assert_eq!(metadata.last_activity, lab.now);
    assert!(metadata.properties.success_rate < 1.0);
    assert!(!metadata.incoming);
    lab.pool.set_unhealthy(lab.now, connection);
    assert_eq!(lab.pool.state(peer(1)), ConnectionState::Draining);
}
