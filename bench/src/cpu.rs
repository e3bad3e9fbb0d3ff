//! Who used how much CPU: exact nanoseconds per thread, and what the whole CPU says about it.

use std::fs;

use anyhow::{Context, Result, bail};

/// A thread, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its thread id.
    pub tid: i32,
}

/// Threads of the kernel whose name begins with `prefix`.
pub fn kernel_threads(prefix: &str) -> Result<Vec<Task>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("listing /proc")? {
        let name = entry?.file_name();
        let Some(tid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let comm = fs::read_to_string(format!("/proc/{tid}/comm")).unwrap_or_default();
        if comm.starts_with(prefix) {
            found.push(Task { tid });
        }
    }
    Ok(found)
}

/// The threads of a process, workers of its io_uring included.
pub fn process_threads(pid: u32) -> Result<Vec<Task>> {
    let directory = format!("/proc/{pid}/task");
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("listing {directory}"))? {
        if let Some(tid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            found.push(Task { tid });
        }
    }
    Ok(found)
}

/// Nanoseconds that a thread has run; 0 once it is gone.
pub fn run_time_ns(task: Task) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/schedstat", task.tid)).unwrap_or_default();
    text.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0)
}

/// Sum of [`run_time_ns`].
pub fn total_run_time_ns(tasks: &[Task]) -> u64 {
    tasks.iter().map(|&task| run_time_ns(task)).sum()
}

/// A line of /proc/stat, in its ticks.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuTicks {
    /// All time, idle and stolen time included.
    pub total: u64,
    /// Idle and waiting for storage.
    pub idle: u64,
    /// Taken by the hypervisor.
    pub steal: u64,
}

impl CpuTicks {
    /// Reads the line of one CPU.
    pub fn read(cpu: usize) -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        Self::parse(&text, cpu)
    }

    fn parse(text: &str, cpu: usize) -> Result<Self> {
        let label = format!("cpu{cpu}");
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some(&label) {
                continue;
            }
            // user nice system idle iowait irq softirq steal; guest time is part of user.
            let ticks: Vec<u64> = words.take(8).filter_map(|word| word.parse().ok()).collect();
            if ticks.len() == 8 {
                let total = ticks.iter().sum();
                return Ok(Self {
                    total,
                    idle: ticks[3] + ticks[4],
                    steal: ticks[7],
                });
            }
        }
        bail!("/proc/stat has no line for {label}")
    }

    /// What passed since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            total: self.total.saturating_sub(earlier.total),
            idle: self.idle.saturating_sub(earlier.idle),
            steal: self.steal.saturating_sub(earlier.steal),
        }
    }

    /// Stolen part of all time.
    pub fn steal_share(self) -> f64 {
        share(self.steal, self.total)
    }

    /// Part of all time in which the CPU did something.
    pub fn busy_share(self) -> f64 {
        share(
            self.total.saturating_sub(self.idle + self.steal),
            self.total,
        )
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// CPUs of the machine, also those this process is not pinned to.
pub fn count() -> usize {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let starts = |line: &&str| line.starts_with("processor");
    text.lines().filter(starts).count()
}

/// Model name of the machine's CPU.
pub fn model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':'))
        .map_or("unknown", |(_, name)| name.trim())
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_cpu_asked_for_is_read() {
        let text =
            "cpu  1 1 1 1 1 1 1 1 0 0\ncpu0 9 9 9 9 9 9 9 9 0 0\ncpu1 10 0 20 60 5 0 4 1 0 0\n";
        let ticks = CpuTicks::parse(text, 1).expect("a line");
        assert_eq!((ticks.total, ticks.idle, ticks.steal), (100, 65, 1));
        assert!((ticks.steal_share() - 0.01).abs() < 1e-9);
        assert!((ticks.busy_share() - 0.34).abs() < 1e-9);
        assert!(CpuTicks::parse(text, 2).is_err());
    }

    #[test]
    fn a_running_thread_gathers_run_time() {
        let tid = std::fs::read_link("/proc/thread-self").expect("the own thread");
        let tid = tid
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a number");
        let task = Task {
            tid: tid.parse().expect("a number"),
        };
        // The kernel brings the figure up to date at its next tick.
        while run_time_ns(task) == 0 {
            std::hint::spin_loop();
        }
        assert_eq!(
            run_time_ns(Task { tid: i32::MAX }),
            0,
            "no thread has this number"
        );
    }
}
