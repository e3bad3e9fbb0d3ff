//! What the model says of the actions of a pool.

use std::collections::BTreeMap;
use std::time::Duration;

use towpath_proto::Timestamp;
use towpath_proto::identity::PeerId;
use towpath_proto::pool::{Action, Cause, ConnectionState, DialId, GetError, Pool, Ticket};
use towpath_proto::timer::TICK;

use super::{Dial, Expected, Model, Phase};

impl Model {
    /// Looks whether an action had to come.
    pub(crate) fn act(&mut self, action: Action<u32>) {
        match action {
            Action::Dial { dial, to, attempt } => self.dial(dial, to.id(), attempt),
            Action::Cancel { dial, too_slow } => self.cancelled(dial, too_slow),
            Action::Close { connection, cause } => self.closed(connection, cause),
            Action::KeepAlive { connection } => {
                let interval = self.config.keep_alive_interval;
                let of = self.connections.get_mut(&connection).expect("it is there");
                assert!(of.in_use());
                assert!(self.now >= of.activity.max(of.kept_alive) + interval);
                of.kept_alive = self.now;
            }
            Action::Answer { ticket, result } => self.answered(ticket, &result),
        }
    }

    fn dial(&mut self, id: DialId, peer: PeerId, attempt: u32) {
        let phase = Phase::Trying(self.now);
        if let Some(dial) = self.dials.get_mut(&peer) {
            assert_eq!(
                (dial.id, dial.attempts + 1),
                (id, attempt),
                "one dial of a peer"
            );
            assert!(
                matches!(dial.phase, Phase::Pause(_)),
                "one attempt at a time"
            );
            dial.attempts = attempt;
            dial.phase = phase;
            return;
        }
        let (wanted, further) = self.expected_dial.take().expect("nobody wants this");
        assert_eq!((wanted, 1), (peer, attempt));
        let dial = Dial {
            id,
            attempts: attempt,
            further,
            waiters: BTreeMap::new(),
            phase,
        };
        self.dials.insert(peer, dial);
    }

    fn cancelled(&mut self, id: DialId, too_slow: bool) {
        if self.expected_cancels.remove(&id) {
            assert!(!too_slow);
            return;
        }
        let of = |(_, dial): &(&PeerId, &Dial)| dial.id == id;
        let (peer, dial) = self.dials.iter().find(of).expect("it is dialled");
        let Phase::Trying(since) = dial.phase else {
            panic!("nothing is tried");
        };
        assert!(too_slow && self.now >= since + self.config.retry.attempt_timeout);
        self.failed(*peer, false);
    }

    fn closed(&mut self, of: u32, cause: Cause) {
        let expected = self
            .expected_closes
            .iter()
            .position(|close| *close == (of, cause));
        match cause {
            Cause::Idle | Cause::Surplus => {
                let connection = &self.connections[&of];
                assert!(!connection.in_use() && !connection.draining);
                let surplus = self.is_surplus(of);
                assert_eq!(surplus, cause == Cause::Surplus);
                let used = connection.last_used();
                assert!(self.now >= used + self.idle_limit(surplus));
            }
            Cause::Drained | Cause::Evicted | Cause::Shutdown => {
                let at = expected.unwrap_or_else(|| panic!("{of} is closed for {cause:?}"));
                self.expected_closes.swap_remove(at);
            }
        }
        self.remove(of);
    }

    fn idle_limit(&self, surplus: bool) -> Duration {
        if surplus {
            2 * self.config.keep_alive_interval
        } else {
            self.config.idle_timeout
        }
    }

    fn answered(&mut self, ticket: Ticket, result: &Result<u32, GetError>) {
        if let Some(expected) = self.expected_answers.remove(&ticket) {
            let as_expected = match (&expected, result) {
                (Expected::Connection(of), Ok(got)) => of == got,
                (Expected::Failed, Err(GetError::Failed { .. }))
                | (Expected::Held, Err(GetError::Held { .. }))
                | (Expected::Shutdown, Err(GetError::ShuttingDown)) => true,
                _ => false,
            };
            assert!(as_expected, "{expected:?}, but {result:?}");
            return;
        }
        assert!(
            matches!(result, Err(GetError::Deadline { .. })),
            "{result:?}"
        );
        let waits = |(_, dial): &(&PeerId, &mut Dial)| dial.waiters.contains_key(&ticket);
        let (peer, dial) = self.dials.iter_mut().find(waits).expect("it waits");
        let until = dial.waiters.remove(&ticket).expect("it waits");
        assert!(self.now >= until);
        let peer = *peer;
        self.abandon_if_unwanted(peer);
    }

    /// Nothing that had to come has not come, and the pool knows what the model knows.
    pub(crate) fn compare(&self, pool: &Pool<u32>) {
        assert_eq!(self.expected_dial, None);
        assert!(self.expected_cancels.is_empty());
        assert_eq!(self.expected_closes, []);
        assert!(
            self.expected_answers.is_empty(),
            "{:?}",
            self.expected_answers
        );
        assert_eq!(pool.connections(), self.connections.len());
        assert_eq!(pool.dials(), self.dials.len());
        let waiting: usize = self.dials.values().map(|dial| dial.waiters.len()).sum();
        assert_eq!(pool.waiting(), waiting);
        for (of, connection) in &self.connections {
            let metadata = pool.metadata(*of).expect("it is there");
            assert_eq!(metadata.references, connection.references);
            assert_eq!(metadata.peer, connection.peer);
            assert_eq!(metadata.incoming, connection.incoming);
            let draining = metadata.state == ConnectionState::Draining;
            assert_eq!(draining, connection.draining);
        }
    }

    /// What is due was done, but for the length of a timer's tick.
    pub(crate) fn assert_nothing_overdue(&self) {
        let late = 2 * TICK;
        let assert_not_past = |due: Timestamp, what: &dyn std::fmt::Debug| {
            assert!(
                self.now <= due + late,
                "overdue at {:?}: {what:?}",
                self.now
            );
        };
        for (of, connection) in &self.connections {
            let interval = self.config.keep_alive_interval;
            if connection.in_use() {
                let quiet = connection.activity.max(connection.kept_alive);
                assert_not_past(quiet.max(connection.changed) + interval, connection);
                continue;
            }
            let used = connection.last_used();
            let mut due = used + self.idle_limit(self.is_surplus(*of));
            if let Some(since) = connection.surplus_since {
                due = due.max(since + 2 * interval);
            }
            assert_not_past(due, connection);
        }
        for dial in self.dials.values() {
            let due = match dial.phase {
                Phase::Trying(since) => since + self.config.retry.attempt_timeout,
                Phase::Pause(until) => until,
            };
            assert_not_past(due, dial);
            for until in dial.waiters.values() {
                assert_not_past(*until, dial);
            }
        }
    }
}
