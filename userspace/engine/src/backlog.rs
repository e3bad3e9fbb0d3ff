//! Decides how much may wait in the relayed sockets of a shard: a policy without I/O.
//!
//! Each relayed socket has a receive buffer of its own, large enough for a burst. A thousand of them
//! that are full hold seconds of traffic. So a shard that does not keep up gives them less: all those
//! in use share [`SHARED_BYTES`], and what is beyond is dropped by the kernel before it costs more.
//!
//! ```text
//!   at ease ── SATURATED windows in a row without a rest ──▶ short of time: a share for each socket
//!   short of time ── a rest in every window for CALM ──▶ at ease: the ordinary buffer again
//! ```

use std::time::Duration;

use towpath_proto::Timestamp;

/// How long a shard is watched before it is judged. Everything that arrived before it last rested has
/// been relayed, so a shard that rests in every window delays nothing by much more than this.
const WINDOW: Duration = Duration::from_millis(5);

/// Windows in a row without a rest that make a shard short of time.
const SATURATED: u8 = 2;

/// How long every window must have had a rest before the shard is at ease again.
const CALM: Duration = Duration::from_millis(200);

/// Kernel memory that may wait in all relayed sockets together: 1365 short datagrams.
const SHARED_BYTES: u32 = 1 << 20;

/// The logarithm of the least a socket gets. The kernel makes three short datagrams or a long one of it.
const LEAST: u8 = 11;

/// A share grows again only by this factor (a logarithm), so that it does not swing.
const GROWTH: u8 = 2;

/// The policy's memory about one shard.
#[derive(Debug)]
pub(crate) struct Backlog {
    window: u8,
    ends: Timestamp,
    /// Relayed sockets that received something in this window.
    sockets: u32,
    saturated: u8,
    last_saturated: Timestamp,
    limit: u8,
}

impl Backlog {
    pub(crate) fn new() -> Self {
        Self {
            window: 1,
            ends: Timestamp::ZERO,
            sockets: 0,
            saturated: 0,
            last_saturated: Timestamp::ZERO,
            limit: 0,
        }
    }

    /// Whether the window has ended, and [`next_window`](Self::next_window) is due.
    #[inline]
    pub(crate) fn is_over(&self, now: Timestamp) -> bool {
        now >= self.ends
    }

    /// When the window ends.
    pub(crate) fn ends(&self) -> Timestamp {
        self.ends
    }

    /// Judges the window that has ended: whether the shard `rested` in it.
    pub(crate) fn next_window(&mut self, now: Timestamp, rested: bool) {
        if rested {
            self.saturated = 0;
            if self.limit != 0 && now >= self.last_saturated + CALM {
                self.limit = 0;
            }
        } else {
            self.saturated = self.saturated.saturating_add(1);
            self.last_saturated = now;
            if self.saturated >= SATURATED {
                self.share_out();
            }
        }
        // Zero marks a socket that was never seen.
        self.window = self.window.checked_add(1).unwrap_or(1);
        self.ends = now + WINDOW;
        self.sockets = 0;
    }

    /// Takes note of a relayed socket that received something; `mark` is its memory of that.
    #[inline]
    pub(crate) fn saw(&mut self, mark: &mut u8) {
        if *mark != self.window {
            *mark = self.window;
            self.sockets += 1;
        }
    }

    /// The logarithm of the bytes a relayed socket may hold; 0 is the ordinary buffer.
    #[inline]
    pub(crate) fn limit(&self) -> u8 {
        self.limit
    }

    /// When a calm time has passed, at the earliest; `None` where nothing is limited.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        (self.limit != 0).then(|| (self.last_saturated + CALM).max(self.ends))
    }

    fn share_out(&mut self) {
        let share = SHARED_BYTES / self.sockets.max(1);
        let share = (share.max(1).ilog2() as u8).max(LEAST);
        if self.limit == 0 || share < self.limit || share >= self.limit + GROWTH {
            self.limit = share;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Windows one after the other, with as many sockets in each.
    fn pass(backlog: &mut Backlog, now: &mut Timestamp, windows: u32, sockets: usize, rest: bool) {
        for _ in 0..windows {
            let mut marks = vec![0; sockets];
            marks.iter_mut().for_each(|mark| backlog.saw(mark));
            // Seen again, a socket counts once.
            marks.iter_mut().for_each(|mark| backlog.saw(mark));
            *now = *now + WINDOW;
            assert!(backlog.is_over(*now));
            backlog.next_window(*now, rest);
            assert!(!backlog.is_over(*now));
        }
    }

    #[test]
    fn a_shard_that_rests_leaves_its_sockets_the_ordinary_buffer() {
        let (mut backlog, mut now) = (Backlog::new(), Timestamp::from_nanos(1));
        for _ in 0..100 {
            pass(&mut backlog, &mut now, 1, 1000, false);
            pass(&mut backlog, &mut now, 1, 1000, true);
        }
        assert_eq!(backlog.limit(), 0);
    }

    #[test]
    fn a_shard_without_rest_shares_one_budget_out_among_the_sockets_in_use() {
        for (sockets, limit) in [
            (0, 20),
            (1, 20),
            (16, 16),
            (256, 12),
            (1000, 11),
            (15_000, 11),
        ] {
            let (mut backlog, mut now) = (Backlog::new(), Timestamp::from_nanos(1));
            pass(&mut backlog, &mut now, 3, sockets, false);
            assert_eq!(backlog.limit(), limit, "{sockets} sockets");
        }
    }

    #[test]
    fn a_share_shrinks_at_once_and_grows_only_by_much() {
        let (mut backlog, mut now) = (Backlog::new(), Timestamp::from_nanos(1));
        let mut after = |sockets| {
            pass(&mut backlog, &mut now, 2, sockets, false);
            backlog.limit()
        };
        assert_eq!(after(64), 14);
        assert_eq!(after(65), 13);
        assert_eq!(after(60), 13);
        assert_eq!(after(32), 15);
    }

    #[test]
    fn the_ordinary_buffer_is_back_after_a_calm_time() {
        let (mut backlog, mut now) = (Backlog::new(), Timestamp::from_nanos(1));
        pass(&mut backlog, &mut now, 2, 1000, false);
        let calm = (CALM.as_millis() / WINDOW.as_millis()) as u32;
        pass(&mut backlog, &mut now, calm - 1, 1000, true);
        assert_eq!(backlog.limit(), 11);
        pass(&mut backlog, &mut now, 1, 1000, false);
        pass(&mut backlog, &mut now, calm - 1, 1000, true);
        assert_eq!(backlog.limit(), 11);
        pass(&mut backlog, &mut now, 1, 0, true);
        assert_eq!(backlog.limit(), 0);
    }
}
