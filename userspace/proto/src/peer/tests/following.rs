//! A peer whose address changes is followed, and nobody else decides where its datagrams go.

use super::*;
use crate::peer::path_check::REQUEST_BYTES;

const ELSEWHERE: ([u8; 4], u16) = ([198, 51, 100, 7], 4444);
/// Where an attacker is, or a victim.
const THIRD: ([u8; 4], u16) = ([203, 0, 113, 9], 9);

struct Pair {
    lab: Lab,
    handles: [ConnectionHandle; 2],
}

impl Pair {
    fn connected() -> Self {
        let mut lab = Lab::new(|_, _| {});
        let caller = lab.connect();
        lab.run(SECOND);
        let handles = [caller, lab.peers[1].0.handle_of(0)];
        lab.notices = [Vec::new(), Vec::new()];
        Self { lab, handles }
    }

    fn say(&mut self, from: usize, byte: u8) {
        let (now, handle) = (self.lab.now, self.handles[from]);
        let sent = self.lab.peers[from]
            .0
            .send_datagram(now, handle, &[byte; 200]);
        assert_eq!(sent, Ok(()));
    }

    fn hears(&mut self, at: usize, byte: u8) {
        let handle = self.handles[at];
        let heard = self.lab.peers[at].0.receive_datagram(handle);
        assert_eq!(heard.as_deref(), Some(&[byte; 200][..]));
    }

    fn path_of(&self, at: usize) -> SocketAddr {
        self.lab.peers[at].0.remote(self.handles[at]).unwrap()
    }

    /// The next datagram of a node, which does not arrive.
    fn intercept(&mut self, from: usize) -> Vec<u8> {
        let mut buffer = vec![0; TRANSMIT_BUFFER_BYTES];
        let sent = self.lab.peers[from]
            .0
            .poll_transmit(self.lab.now, &mut buffer);
        buffer[sent.unwrap().payload].to_vec()
    }

    fn deliver(&mut self, to: usize, from: SocketAddr, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        self.lab
            .deliver(to, from, TrafficClass::ORDINARY, &mut bytes);
    }

    fn lost_bytes(&self) -> usize {
        self.lab.lost.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    fn count(&self, at: usize, of: impl Fn(&PeerCounters) -> &crate::relay::Counter) -> u64 {
        of(self.lab.peers[at].0.counters()).value()
    }
}

#[test]
fn a_peer_that_moves_is_followed_by_who_called_it_and_by_whom_it_called() {
    for mover in [0, 1] {
        let mut pair = Pair::connected();
        let other = 1 - mover;
        let from = std::mem::replace(&mut pair.lab.peers[mover].1, ELSEWHERE.into());
        pair.say(mover, 1);
        pair.lab.run(SECOND);
        pair.hears(other, 1);
        let moved = Notice::PathChanged {
            connection: pair.handles[other],
            from,
            to: ELSEWHERE.into(),
        };
        assert!(pair.lab.notices[other].contains(&moved));
        assert_eq!(pair.path_of(other), ELSEWHERE.into());
        pair.say(other, 2);
        pair.lab.run(SECOND);
        pair.hears(mover, 2);
        // Moved back again, once what may still have been under way from there is gone.
        pair.lab.peers[mover].1 = from;
        pair.lab.run(4 * SECOND);
        pair.say(mover, 3);
        pair.lab.run(SECOND);
        assert_eq!(pair.path_of(other), from);
        assert_eq!(pair.count(other, |counters| &counters.path_changes), 2);
        assert_eq!(
            pair.count(other, |counters| &counters.failed_path_checks),
            0
        );
        let now = pair.lab.now;
        assert!(
            pair.lab.peers[mover]
                .0
                .close(now, pair.handles[mover], 0, b"")
        );
        pair.lab.run(10 * SECOND);
        assert!(pair.lab.peers.iter().all(|(peer, _)| peer.is_empty()));
    }
}

#[test]
fn a_node_that_knows_of_its_new_address_tells_all_of_its_peers() {
    for mover in [0, 1] {
        let mut pair = Pair::connected();
        pair.lab.peers[mover].1 = ELSEWHERE.into();
        let now = pair.lab.now;
        pair.lab.peers[mover].0.network_changed(now);
        pair.lab.run(SECOND);
        assert_eq!(pair.path_of(1 - mover), ELSEWHERE.into());
    }
}

#[test]
fn a_peer_that_moved_and_was_started_anew_says_so() {
    for mover in [0, 1] {
        let mut pair = Pair::connected();
        pair.lab.peers[mover].1 = ELSEWHERE.into();
        pair.say(mover, 1);
        pair.lab.run(SECOND);
        let config = PeerConfig {
            listeners: vec![SocketAddr::from(ELSEWHERE)],
            ..PeerConfig::default()
        };
        let identity = Identity::new(SecretKey::from_seed([mover as u8; 32]));
        let anew = Peer::new(Arc::new(config), &identity, ShardId(0), [99; 32]).unwrap();
        pair.lab.peers[mover].0 = anew;
        pair.say(1 - mover, 2);
        pair.lab.run(SECOND);
        let reason = pair.lab.close_reason(1 - mover);
        assert_eq!(reason, Some(CloseReason::Forgotten));
    }
}

#[test]
fn a_forged_datagram_with_the_right_id_draws_nothing() {
    for victim in [0, 1] {
        let mut pair = Pair::connected();
        let (path, other) = (pair.path_of(victim), 1 - victim);
        pair.say(other, 1);
        let genuine = pair.intercept(other);
        for at in 0..40 {
            let mut forged = genuine.clone();
            let place = forged.len() - 1 - at;
            forged[place] ^= 1;
            pair.deliver(victim, THIRD.into(), &forged);
        }
        // What has arrived already proves nothing either.
        pair.deliver(victim, path, &genuine);
        pair.deliver(victim, THIRD.into(), &genuine);
        pair.lab.run(SECOND);
        pair.hears(victim, 1);
        assert_eq!(pair.path_of(victim), path);
        assert_eq!(pair.lost_bytes(), 0);
        assert_eq!(pair.count(victim, |counters| &counters.path_checks), 0);
    }
}

#[test]
fn who_sends_a_peers_datagrams_from_a_victims_address_draws_three_times_their_bytes_at_most() {
    for victim in [0, 1] {
        let mut pair = Pair::connected();
        let (path, other) = (pair.path_of(victim), 1 - victim);
        let mut spent = 0;
        for round in 0..200 {
            pair.say(other, round);
            let genuine = pair.intercept(other);
            spent += genuine.len();
            pair.deliver(victim, THIRD.into(), &genuine);
            pair.lab.run(Duration::from_millis(50));
            assert!(pair.lost_bytes() <= 3 * spent);
            assert_eq!(pair.path_of(victim), path);
        }
        let third = SocketAddr::from(THIRD);
        assert!(pair.lab.lost.iter().all(|(to, _)| *to == third));
        // Ten seconds, in which one check after the other fails and the pauses grow.
        let checks = pair.count(victim, |counters| &counters.path_checks);
        assert!((2..=5).contains(&checks), "{checks}");
        assert!(pair.lost_bytes() <= checks as usize * 5 * REQUEST_BYTES);
        assert_eq!(pair.count(victim, |counters| &counters.path_changes), 0);
    }
}

#[test]
fn a_question_sent_back_to_who_asked_answers_nothing() {
    for victim in [0, 1] {
        let mut pair = Pair::connected();
        let (path, other) = (pair.path_of(victim), 1 - victim);
        pair.say(other, 1);
        let genuine = pair.intercept(other);
        pair.deliver(victim, THIRD.into(), &genuine);
        let question = pair.intercept(victim);
        assert_eq!(question.len(), REQUEST_BYTES);
        pair.deliver(victim, THIRD.into(), &question);
        // Nor does a change of what it is, and another id.
        let mut as_answer = question.clone();
        as_answer[0] = 1;
        pair.deliver(victim, THIRD.into(), &as_answer);
        let refused = pair.count(victim, |counters| &counters.refused_path_checks);
        assert_eq!(refused, 2);
        // The peer answers, but not from there.
        pair.deliver(other, path, &question);
        let answer = pair.intercept(other);
        assert!(answer.len() * 10 <= question.len() * 16);
        pair.deliver(victim, path, &answer);
        assert_eq!(pair.path_of(victim), path);
        let refused = pair.count(victim, |counters| &counters.refused_path_checks);
        assert_eq!(refused, 3);
        let mut broken = answer.clone();
        broken[60] ^= 1;
        pair.deliver(victim, THIRD.into(), &broken);
        assert_eq!(pair.path_of(victim), path);
        // This is how it is done right.
        pair.deliver(victim, THIRD.into(), &answer);
        assert_eq!(pair.path_of(victim), THIRD.into());
        pair.deliver(victim, THIRD.into(), &answer);
        assert_eq!(pair.count(victim, |counters| &counters.path_changes), 1);
    }
}

#[test]
fn a_question_of_somebody_else_is_not_answered() {
    let mut pair = Pair::connected();
    let key = crate::wire::IntegrityKey::new(&[7; 32]);
    pair.say(0, 1);
    let datagram = pair.intercept(0);
    let id: [u8; 8] = datagram[1..9].try_into().unwrap();
    let transaction = crate::wire::TransactionId([1; 12]);
    let known = crate::peer::path_check::request(transaction, id, &key);
    let unknown = crate::peer::path_check::request(transaction, [7; 8], &key);
    let answer = crate::peer::path_check::response(transaction, THIRD.into(), &key);
    for bytes in [known, unknown, answer] {
        pair.deliver(1, THIRD.into(), &bytes);
    }
    assert_eq!(pair.count(1, |counters| &counters.refused_path_checks), 3);
    assert_eq!(pair.count(1, |counters| &counters.answered_path_checks), 0);
    pair.lab.run(SECOND);
    assert_eq!(pair.lost_bytes(), 0);
}
