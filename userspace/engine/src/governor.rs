//! Decides per socket whether UDP GRO pays: a policy without I/O.
//!
//! GRO makes a stream of equal datagrams from one source several times cheaper, and interleaved
//! flows dearer than no GRO at all. So a socket starts without it, and its runs are watched: how
//! many datagrams in a row came from one source with one length.
//!
//! ```text
//!   Off ── LONG_RUNS runs of LONG_RUN in a row ──▶ On
//!   On ── SAMPLES receives with fewer than SHORT_RUN datagrams each on average ──▶ Off
//! ```
//!
//! Each time GRO is switched off again, twice as many long runs are wanted before the next try, up
//! to `1 << MAX_BACKOFF` times as many.

/// A run this long would have been worth merging.
pub(crate) const LONG_RUN: u32 = 8;

/// Long runs that switch GRO on the first time.
const LONG_RUNS: u16 = 4;

/// Receives looked at before GRO is judged.
const SAMPLES: u16 = 256;

/// Datagrams per receive under which GRO does not pay.
const SHORT_RUN: u32 = 2;

/// Doublings of the wanted runs, at most.
const MAX_BACKOFF: u8 = 8;

/// What to do about a socket's GRO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Advice {
    /// Leave it as it is.
    Keep,
    /// Switch GRO on.
    Enable,
    /// Switch GRO off.
    Disable,
}

/// The policy's memory about one socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Governor {
    /// Off: long runs seen. On: receives seen since the last judgement.
    samples: u16,
    backoff: u8,
    on: bool,
    /// On: datagrams seen since the last judgement.
    datagrams: u32,
}

impl Governor {
    /// Whether GRO is meant to be on.
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// Without GRO: a run of `datagrams` from one source with one length has ended.
    pub(crate) fn run_ended(&mut self, datagrams: u32) -> Advice {
        if self.on {
            return Advice::Keep;
        }
        if datagrams < LONG_RUN {
            // Interleaving wears the evidence down, so rare bursts among other traffic do not add up.
            self.samples = self.samples.saturating_sub(1);
            return Advice::Keep;
        }
        self.samples = self.samples.saturating_add(2);
        if self.samples < (LONG_RUNS * 2) << self.backoff {
            return Advice::Keep;
        }
        *self = Self {
            samples: 0,
            datagrams: 0,
            on: true,
            backoff: self.backoff,
        };
        Advice::Enable
    }

    /// With GRO: one receive brought `datagrams`.
    pub(crate) fn merged(&mut self, datagrams: u32) -> Advice {
        if !self.on {
            return Advice::Keep;
        }
        self.samples += 1;
        self.datagrams += datagrams;
        if self.samples < SAMPLES {
            return Advice::Keep;
        }
        let pays = self.datagrams >= u32::from(SAMPLES) * SHORT_RUN;
        self.samples = 0;
        self.datagrams = 0;
        if pays {
            self.backoff = self.backoff.saturating_sub(1);
            return Advice::Keep;
        }
        self.on = false;
        self.backoff = (self.backoff + 1).min(MAX_BACKOFF);
        Advice::Disable
    }

    /// GRO could not be switched off now: it stays on and is judged again.
    pub(crate) fn keep_on(&mut self) {
        self.on = true;
    }

    /// The kernel refused to switch GRO on: do not ask again.
    pub(crate) fn refuse(&mut self) {
        *self = Self {
            on: false,
            backoff: MAX_BACKOFF,
            samples: 0,
            datagrams: 0,
        };
    }
}

const _: () = assert!((LONG_RUNS as u32 * 2) << MAX_BACKOFF <= u16::MAX as u32);

/// Finds runs in the datagrams of a shard: same socket, source and length in a row.
#[derive(Debug)]
pub(crate) struct RunMeter<K> {
    current: Option<(u32, K)>,
    datagrams: u32,
}

impl<K> Default for RunMeter<K> {
    fn default() -> Self {
        Self {
            current: None,
            datagrams: 0,
        }
    }
}

impl<K: PartialEq> RunMeter<K> {
    /// Takes the next datagram; returns the socket and length of a run that ended before it.
    pub(crate) fn next(&mut self, socket: u32, flow: K) -> Option<(u32, u32)> {
        let same = self
            .current
            .as_ref()
            .is_some_and(|(at, of)| *at == socket && *of == flow);
        if same {
            self.datagrams += 1;
            // A saturated flow's run never ends by itself.
            if self.datagrams < LONG_RUN * 4 {
                return None;
            }
            return Some((socket, std::mem::take(&mut self.datagrams)));
        }
        let ended = self
            .current
            .replace((socket, flow))
            .map(|(at, _)| (at, self.datagrams));
        self.datagrams = 1;
        ended.filter(|(_, datagrams)| *datagrams > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs_until_enabled(governor: &mut Governor, datagrams: u32, at_most: u32) -> Option<u32> {
        (1..=at_most).find(|_| governor.run_ended(datagrams) == Advice::Enable)
    }

    #[test]
    fn bulk_switches_gro_on_after_a_few_runs() {
        let mut governor = Governor::default();
        assert_eq!(
            runs_until_enabled(&mut governor, 16, 100),
            Some(u32::from(LONG_RUNS))
        );
        assert!(governor.is_on());
    }

    #[test]
    fn interleaved_flows_never_switch_gro_on() {
        let mut governor = Governor::default();
        assert_eq!(runs_until_enabled(&mut governor, 1, 1_000_000), None);
        assert_eq!(
            runs_until_enabled(&mut governor, LONG_RUN - 1, 1_000_000),
            None
        );
    }

    #[test]
    fn a_burst_now_and_then_among_interleaved_flows_does_not_add_up() {
        let mut governor = Governor::default();
        for _ in 0..1000 {
            for _ in 0..20 {
                assert_eq!(governor.run_ended(1), Advice::Keep);
            }
            assert_eq!(governor.run_ended(32), Advice::Keep);
        }
    }

    #[test]
    fn gro_that_merges_nothing_is_switched_off_and_probed_ever_more_rarely() {
        let mut governor = Governor::default();
        let mut wanted = Vec::new();
        for _ in 0..12 {
            wanted.push(runs_until_enabled(&mut governor, 16, 1_000_000).unwrap());
            let off = (1..=100_000).find(|_| governor.merged(1) == Advice::Disable);
            assert_eq!(off, Some(u32::from(SAMPLES)));
        }
        assert!(
            wanted.windows(2).all(|pair| pair[0] <= pair[1]),
            "{wanted:?}"
        );
        assert_eq!(wanted.last(), Some(&(u32::from(LONG_RUNS) << MAX_BACKOFF)));
    }

    #[test]
    fn gro_that_pays_stays_on() {
        let mut governor = Governor::default();
        runs_until_enabled(&mut governor, 16, 100).unwrap();
        assert!((0..100_000).all(|_| governor.merged(4) == Advice::Keep));
    }

    #[test]
    fn a_run_is_one_socket_one_source_and_one_length_in_a_row() {
        let mut meter = RunMeter::default();
        assert_eq!(meter.next(1, ("a", 100)), None);
        assert_eq!(meter.next(1, ("a", 100)), None);
        assert_eq!(meter.next(1, ("b", 100)), Some((1, 2)));
        assert_eq!(meter.next(1, ("b", 101)), Some((1, 1)));
        assert_eq!(meter.next(2, ("b", 101)), Some((1, 1)));
    }

    #[test]
    fn a_run_without_end_is_reported_in_pieces() {
        let mut meter = RunMeter::default();
        let reported: u32 = (0..1000)
            .filter_map(|_| meter.next(1, 7))
            .map(|(_, datagrams)| datagrams)
            .sum();
        assert!(reported >= 1000 - LONG_RUN * 4, "{reported}");
    }
}
