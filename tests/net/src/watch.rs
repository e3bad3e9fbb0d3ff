//! How steadily something happened, seen from beside it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use towpath_bench::sys::{self, Scheduling};

const LOOK: Duration = Duration::from_micros(200);
/// Ahead of senders, which may take a whole CPU.
const PRIORITY: u32 = 30;

/// Runs `action`, and looks meanwhile at a number that grows. Gives also the longest time, in
/// nanoseconds, in which it may have stood still: no shorter than it was, and longer where the look
/// came late. What lies before the first growth and behind the last does not count.
pub fn watched<T>(number: impl Fn() -> u64 + Sync, action: impl FnOnce() -> T) -> (T, u64) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            // Without the privilege it looks less often, and the pauses seem longer.
            let _ = sys::schedule(0, Scheduling::Fifo(PRIORITY));
            let mut pauses = Pauses::default();
            while !over.load(Ordering::Relaxed) {
                let (before_ns, number) = (sys::now_ns(), number());
                pauses.look(before_ns, number, sys::now_ns());
                thread::sleep(LOOK);
            }
            pauses.longest_ns
        });
        let result = action();
        over.store(true, Ordering::Relaxed);
        let longest_ns = watcher.join().expect("the watcher does not panic");
        (result, longest_ns)
    })
}

/// ```text
///   looks     │      │      │      │      │
///   grows          ▲             (not)         ▲
///             ├──────────────────────────────┤     what the pause is at most
/// ```
#[derive(Default)]
struct Pauses {
    /// When the last look began, and what it saw.
    last: Option<(u64, u64)>,
    /// When the look began before the one that saw it grow last.
    grew_after_ns: Option<u64>,
    longest_ns: u64,
}

impl Pauses {
    /// A look that began and ended at these times.
    fn look(&mut self, began_ns: u64, number: u64, ended_ns: u64) {
        if let Some((last_ns, last)) = self.last
            && number != last
        {
            if let Some(grew_after_ns) = self.grew_after_ns {
                self.longest_ns = self.longest_ns.max(ended_ns - grew_after_ns);
            }
            self.grew_after_ns = Some(last_ns);
        }
        self.last = Some((began_ns, number));
    }
}

#[cfg(test)]
mod tests {
    use super::Pauses;

    fn longest(looks: &[(u64, u64)]) -> u64 {
        let mut pauses = Pauses::default();
        for &(now_ns, number) in looks {
            pauses.look(now_ns, number, now_ns);
        }
        pauses.longest_ns
    }

    #[test]
    fn a_pause_lies_between_two_growths() {
        // It grew after 10 and before 50.
        assert_eq!(longest(&[(0, 0), (10, 0), (20, 1), (40, 1), (50, 2)]), 40);
        assert_eq!(longest(&[(0, 0), (10, 1), (20, 2), (30, 3)]), 20);
    }

    #[test]
    fn what_lies_before_the_first_growth_and_behind_the_last_is_no_pause() {
        assert_eq!(longest(&[(0, 0), (900, 0), (901, 1)]), 0);
        assert_eq!(longest(&[(0, 0), (1, 1), (2, 2), (900, 2)]), 2);
    }
}
