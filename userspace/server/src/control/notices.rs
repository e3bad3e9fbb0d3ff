//! Turns notices and alarming counters into log lines, a bounded number per second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath_engine::Counter;
use towpath_proto::relay::{AllocationOwner, Notice};

use crate::log::LineLimit;
use crate::vitals::Vitals;

/// Allocations logged in a second; the others are counted.
const LINES_PER_SECOND: u32 = 200;
/// How often an alarming counter is looked at.
const ALARM_PERIOD: Duration = Duration::from_secs(10);

/// Counters that an operator should hear of when they grow.
const ALARMS: &[(Counter, &str)] = &[
    (
        Counter::PortsNoDescriptors,
        "no descriptor was left for relayed ports",
    ),
    (Counter::PortsFailed, "the system refused relayed ports"),
    (
        Counter::DropHandoverFull,
        "datagrams for other shards were dropped",
    ),
    (
        Counter::DropSendNoBuffers,
        "the kernel had no memory for datagrams",
    ),
    (Counter::WaitErrors, "system calls of a shard's loop failed"),
];

/// The log of what the shards tell.
pub(crate) struct NoticeLog {
    vitals: Arc<Vitals>,
    limit: LineLimit,
    alarms_at: Instant,
    alarms_seen: Vec<u64>,
    lost_seen: u64,
}

impl NoticeLog {
    pub(crate) fn new(vitals: Arc<Vitals>, now: Instant) -> Self {
        Self {
            vitals,
            limit: LineLimit::new(LINES_PER_SECOND, now),
            alarms_at: now + ALARM_PERIOD,
            alarms_seen: vec![0; ALARMS.len()],
            lost_seen: 0,
        }
    }

    /// Logs everything that waits.
    pub(crate) fn drain(&mut self, now: Instant) {
        for (index, shard) in self.vitals.shards.iter().enumerate() {
            // A shard that notifies without end is left alone until the next round.
            for _ in 0..crate::shard::MAX_NOTICES {
                let Some(notice) = shard.notices.pop() else {
                    break;
                };
                if self.limit.admit(now) {
                    log(index, &notice);
                }
            }
        }
        if let Some(count) = self.limit.take_suppressed(now) {
            tracing::info!(
                count,
                "allocations made, moved or ended that are not logged one by one"
            );
        }
        if now >= self.alarms_at {
            self.alarms_at = now + ALARM_PERIOD;
            self.raise_alarms();
        }
    }

    fn raise_alarms(&mut self) {
        for ((counter, text), seen) in ALARMS.iter().zip(&mut self.alarms_seen) {
            let value = self.vitals.engine(*counter);
            if value > *seen {
                tracing::warn!(count = value - *seen, counter = counter.name(), "{text}");
            }
            *seen = value;
        }
        let lost = self
            .vitals
            .sum(|shard| shard.relay.notices_lost.value() + shard.notices.lost());
        if lost > self.lost_seen {
            tracing::warn!(count = lost - self.lost_seen, "allocations were not logged");
        }
        self.lost_seen = lost;
    }
}

/// Logs what became of an allocation, with what every such record has: whose it is.
macro_rules! log_of {
    ($owner:expr, $shard:expr, $what:literal, $($fields:tt)*) => {{
        let AllocationOwner { user, client, server, relayed, second: _ } = $owner;
        tracing::info!(
            user = &**user, %client, %server, %relayed, $($fields)* shard = $shard, $what
        );
    }};
}

/// The end of an allocation is its record: who relayed what, when and from where. What the kernel relayed
/// is counted for the user, so the record has what the user did on every path while the allocation was
/// there; with one allocation at a time that is the allocation's.
///
/// Names come from clients: as strings they are escaped in both formats.
fn log(shard: usize, notice: &Notice) {
    let second = |owner: &AllocationOwner| owner.second.map(tracing::field::display);
    match notice {
        Notice::AllocationMade { owner, lifetime } => log_of!(
            owner,
            shard,
            "allocation made",
            second = second(owner),
            lifetime_s = lifetime.as_secs(),
        ),
        Notice::AllocationMoved { owner, from } => log_of!(
            owner, shard, "allocation moved",
            %from,
        ),
        Notice::AddressEnded {
            owner,
            ended,
            reason,
        } => log_of!(
            owner, shard, "one of two relayed addresses ended",
            %ended,
            reason = reason.name(),
        ),
        Notice::AllocationEnded {
            owner,
            reason,
            lasted,
            traffic,
            metered,
        } => log_of!(
            owner,
            shard,
            "allocation ended",
            second = second(owner),
            reason = reason.name(),
            lasted_s = lasted.as_secs(),
            user_bytes_up = metered.up_bytes,
            user_bytes_down = metered.down_bytes,
            packets_to_peers = traffic.packets_to_peers,
            bytes_to_peers = traffic.bytes_to_peers,
            packets_to_client = traffic.packets_to_client,
            bytes_to_client = traffic.bytes_to_client,
        ),
    }
}
