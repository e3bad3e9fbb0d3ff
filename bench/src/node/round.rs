//! One round of one contender.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::cpu::CpuTicks;
use crate::node::contender::Contender;
use crate::node::end::Reading;
use crate::node::pair::{CLIENT_CPU, Pair, SERVER_CPU};
use crate::node::tally::{Cell, Delays};
use crate::usage::{MAX_FOREIGN, MAX_STEAL};

/// What was used and done in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Length of the count.
    pub seconds: f64,
    /// Bytes of streams that arrived.
    pub bytes: u64,
    /// Operations that the client finished.
    pub operations: u64,
    /// How long they took.
    pub delays: Delays,
    /// CPU time of the server.
    pub server_ns: u64,
    /// CPU time of the client.
    pub client_ns: u64,
    /// The worst share of time that the hypervisor took from one of the two CPUs.
    pub steal: f64,
    /// The worst share of one of the two CPUs that something else used.
    pub foreign: f64,
}

impl Round {
    /// CPU time of both ends, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        (self.server_ns + self.client_ns) as f64 / 1e9
    }

    /// Bytes per CPU second.
    pub fn bytes_per_cpu_second(&self) -> f64 {
        self.bytes as f64 / self.cpu_seconds()
    }

    /// Bytes per second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }

    /// Operations per CPU second.
    pub fn operations_per_cpu_second(&self) -> f64 {
        self.operations as f64 / self.cpu_seconds()
    }

    /// Operations per second.
    pub fn operations_per_second(&self) -> f64 {
        self.operations as f64 / self.seconds
    }

    /// How much it was disturbed; above 1, too much.
    pub fn disturbance(&self) -> f64 {
        (self.steal / MAX_STEAL).max(self.foreign / MAX_FOREIGN)
    }

    /// Whether something else took too much of the CPUs.
    pub fn is_disturbed(&self) -> bool {
        self.disturbance() > 1.0
    }
}

/// A server accepts what the client has made, but for what is on its way at the ends of a round.
const PART_ACCEPTED: f64 = 0.9;

struct Moment {
    client: Reading,
    server: Reading,
    cpus: [CpuTicks; 2],
}

/// Measures a round on a fresh pair.
pub fn measure(
    cell: Cell,
    contender: Contender,
    warm_up: Duration,
    length: Duration,
) -> Result<Round> {
    let mut pair = Pair::start(cell, contender)?;
    let connections = cell.connections();
    let connected = pair.client.connect(connections);
    connected.with_context(|| format!("making {connections} connections"))?;
    pair.client.begin()?;
    thread::sleep(warm_up);
    let before = Moment::now(&mut pair)?;
    thread::sleep(length);
    let after = Moment::now(&mut pair)?;
    let round = after.since(&before);
    ensure!(
        round.bytes > 0 || round.operations > 0,
        "nothing was done in {:.1} s",
        round.seconds
    );
    if let Cell::Handshakes { .. } = cell {
        let accepted = after.server.operations - before.server.operations;
        ensure!(
            accepted as f64 > round.operations as f64 * PART_ACCEPTED,
            "of {} connections made, {accepted} were accepted",
            round.operations
        );
    }
    Ok(round)
}

impl Moment {
    fn now(pair: &mut Pair) -> Result<Self> {
        Ok(Self {
            client: pair.client.read()?,
            server: pair.server.read()?,
            cpus: [CpuTicks::read(SERVER_CPU)?, CpuTicks::read(CLIENT_CPU)?],
        })
    }

    fn since(&self, earlier: &Self) -> Round {
        let used = |now: Reading, then: Reading| now.cpu_ns.saturating_sub(then.cpu_ns);
        let span = |now: Reading, then: Reading| now.at_ns.saturating_sub(then.at_ns).max(1);
        let (server_ns, client_ns) = (
            used(self.server, earlier.server),
            used(self.client, earlier.client),
        );
        let spans = [
            span(self.server, earlier.server),
            span(self.client, earlier.client),
        ];
        let mut round = Round {
            seconds: spans[0] as f64 / 1e9,
            bytes: self.server.bytes - earlier.server.bytes,
            operations: self.client.operations - earlier.client.operations,
            delays: self.client.delays,
            server_ns,
            client_ns,
            steal: 0.0,
            foreign: 0.0,
        };
        let of_cpus = self.cpus.iter().zip(earlier.cpus);
        for ((cpu, (now, then)), own_ns) in spans.iter().zip(of_cpus).zip([server_ns, client_ns]) {
            let ticks = now.since(then);
            let own = own_ns as f64 / *cpu as f64;
            round.steal = round.steal.max(ticks.steal_share());
            round.foreign = round.foreign.max(ticks.busy_share() - own);
        }
        round
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at_ns: u64, cpu_ns: u64, bytes: u64, operations: u64) -> Reading {
        Reading {
            at_ns,
            cpu_ns,
            bytes,
            operations,
            delays: Delays::default(),
        }
    }

    #[test]
    fn a_round_is_the_difference_of_two_moments() {
        let ticks = |total, idle| CpuTicks {
            total,
            idle,
            steal: 0,
        };
        let before = Moment {
            client: reading(0, 1_000_000_000, 0, 10),
            server: reading(0, 2_000_000_000, 100, 0),
            cpus: [ticks(0, 0), ticks(0, 0)],
        };
        let after = Moment {
            client: reading(2_000_000_000, 2_000_000_000, 0, 30),
            server: reading(2_000_000_000, 4_000_000_000, 400, 0),
            // The client's CPU is busy for 70 % of the time, and the client for 50 %.
            cpus: [ticks(200, 0), ticks(200, 60)],
        };
        let round = after.since(&before);
        assert_eq!(
            (round.seconds, round.bytes, round.operations),
            (2.0, 300, 20)
        );
        assert_eq!(round.cpu_seconds(), 3.0);
        assert_eq!(round.bytes_per_cpu_second(), 100.0);
        assert!((round.foreign - 0.2).abs() < 1e-9, "{}", round.foreign);
        assert!(round.is_disturbed());
    }
}
