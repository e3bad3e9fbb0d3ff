//! When a request over UDP is sent again, and when it has failed (RFC 8489 §6.2.1).
//!
//! ```text
//!  0 ms   500   1500   3500     7500        15500            31500                39500
//!  send   send  send   send     send        send             send (Rc = 7)        failed
//!  └ RTO ─┴ 2RTO┴ 4RTO ┴ 8RTO ──┴ 16RTO ────┴ 32RTO ─────────┴ Rm = 16 × RTO ─────┘
//! ```

use std::time::Duration;

use thiserror::Error;

use crate::Timestamp;

/// The numbers of a schedule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Schedule {
    rto: Duration,
    transmissions: u8,
    last_rtos: u32,
}

/// Why numbers make no schedule. The caller is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ScheduleError {
    /// Zero would send everything at once, and more than a minute waits for hours in the end.
    #[error("a first timeout of {rto:?} is not within 1 ms and 60 s")]
    Rto {
        /// The timeout asked for.
        rto: Duration,
    },
    /// None would never ask, and more than 16 double the timeout too often.
    #[error("{transmissions} transmissions are not within 1 and 16")]
    Transmissions {
        /// The number asked for.
        transmissions: u8,
    },
    /// No time to answer the last transmission, or a very long one.
    #[error("waiting {last_rtos} timeouts after the last transmission is not within 1 and 64")]
    Last {
        /// The number asked for.
        last_rtos: u32,
    },
}

impl Schedule {
    /// RFC 8489 §6.2.1: an RTO of 500 ms, Rc = 7, Rm = 16.
    pub const STANDARD: Self = Self {
        rto: Duration::from_millis(500),
        transmissions: 7,
        last_rtos: 16,
    };

    /// A schedule that begins with `rto`, sends `transmissions` times (Rc) and waits `last_rtos` (Rm)
    /// times `rto` after the last.
    pub fn new(rto: Duration, transmissions: u8, last_rtos: u32) -> Result<Self, ScheduleError> {
        if !(Duration::from_millis(1)..=Duration::from_secs(60)).contains(&rto) {
            return Err(ScheduleError::Rto { rto });
        }
        if !(1..=16).contains(&transmissions) {
            return Err(ScheduleError::Transmissions { transmissions });
        }
        if !(1..=64).contains(&last_rtos) {
            return Err(ScheduleError::Last { last_rtos });
        }
        Ok(Self {
            rto,
            transmissions,
            last_rtos,
        })
    }
}

/// What a request needs at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// Nothing yet.
    Nothing,
    /// To be sent: [`Retransmission::sent`] says that it was.
    Transmit,
    /// It has failed.
    Failed,
}

/// One request's way through its schedule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retransmission {
    schedule: Schedule,
    sent: u8,
    next: Timestamp,
}

impl Retransmission {
    /// A request that is to be sent at `now` for the first time.
    pub fn new(now: Timestamp, schedule: Schedule) -> Self {
        Self {
            schedule,
            sent: 0,
            next: now,
        }
    }

    /// What is due at `now`.
    pub fn due(&self, now: Timestamp) -> Due {
        if now < self.next {
            Due::Nothing
        } else if self.sent < self.schedule.transmissions {
            Due::Transmit
        } else {
            Due::Failed
        }
    }

    /// The request was sent at `now`.
    pub fn sent(&mut self, now: Timestamp) {
        let Schedule {
            rto,
            transmissions,
            last_rtos,
        } = self.schedule;
        let doublings = u32::from(self.sent.min(transmissions));
        self.sent = self.sent.saturating_add(1);
        let wait = if self.sent < transmissions {
            rto * (1 << doublings)
        } else {
            rto * last_rtos
        };
        self.next = now + wait;
    }

    /// When something is due next.
    pub fn next(&self) -> Timestamp {
        self.next
    }

    /// How often it was sent.
    pub fn transmissions(&self) -> u8 {
        self.sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_sent_at_the_times_of_rfc_8489_and_then_fails() {
        let mut request = Retransmission::new(Timestamp::ZERO, Schedule::STANDARD);
        let mut times = Vec::new();
        while request.due(request.next()) == Due::Transmit {
            let now = request.next();
            times.push(now.as_nanos() / 1_000_000);
            request.sent(now);
            assert_eq!(request.due(now), Due::Nothing);
        }
        assert_eq!(times, [0, 500, 1500, 3500, 7500, 15_500, 31_500]);
        assert_eq!(request.next().as_nanos() / 1_000_000, 39_500);
        assert_eq!(request.due(request.next()), Due::Failed);
    }

    #[test]
    fn a_schedule_without_sense_is_refused() {
        let rto = Duration::from_millis(100);
        assert!(Schedule::new(rto, 1, 1).is_ok());
        assert_eq!(
            Schedule::new(Duration::ZERO, 7, 16),
            Err(ScheduleError::Rto {
                rto: Duration::ZERO
            })
        );
        let transmissions = ScheduleError::Transmissions { transmissions: 0 };
        assert_eq!(Schedule::new(rto, 0, 16), Err(transmissions));
        assert_eq!(
            Schedule::new(rto, 7, 0),
            Err(ScheduleError::Last { last_rtos: 0 })
        );
    }

    #[test]
    fn a_schedule_of_one_transmission_waits_and_fails() {
        let schedule = Schedule::new(Duration::from_millis(100), 1, 4).unwrap();
        let mut request = Retransmission::new(Timestamp::ZERO, schedule);
        request.sent(Timestamp::ZERO);
        assert_eq!(request.next(), Timestamp::ZERO + Duration::from_millis(400));
        assert_eq!(request.due(request.next()), Due::Failed);
    }
}
