//! What a server and the kernel work done for it used between two moments, and who disturbed it.

use std::iter::Sum;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::cpu::{self, CpuTicks};
use crate::rig::{BENCH_CPU, Rig, SERVER_CPU};
use crate::server::Server;
use crate::sys;

/// More stolen time than this spoils a round.
pub const MAX_STEAL: f64 = 0.02;
/// More foreign work than this on the server's CPU spoils a round. Below it lies what the ticks of
/// /proc/stat cannot tell.
pub const MAX_FOREIGN: f64 = 0.06;

/// A moment.
pub struct Usage {
    at_ns: u64,
    server_ns: u64,
    kernel_ns: u64,
    server_cpu: CpuTicks,
    bench_cpu: CpuTicks,
}

/// The difference of two moments.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Spent {
    /// CPU time of the server's threads, those of its io_uring included.
    pub server_ns: u64,
    /// CPU time of the kernel work done for it: the NAPI threads of its interfaces, and soft interrupts
    /// left to a thread.
    pub kernel_ns: u64,
    /// Share of time the hypervisor took from one of the two CPUs.
    pub steal: f64,
    /// Share of the server's CPU that something else used.
    pub foreign: f64,
    /// Share of the server's CPU that was used for the server.
    pub busy: f64,
}

impl Usage {
    /// Now.
    pub fn take(rig: &Rig, server: &Server) -> Result<Self> {
        Ok(Self {
            at_ns: sys::now_ns(),
            server_ns: cpu::total_run_time_ns(&server.threads()?),
            kernel_ns: cpu::total_run_time_ns(rig.kernel_threads()),
            server_cpu: CpuTicks::read(SERVER_CPU)?,
            bench_cpu: CpuTicks::read(BENCH_CPU)?,
        })
    }

    /// What was used since `earlier`.
    pub fn since(&self, earlier: &Self) -> Spent {
        let server_ns = self.server_ns.saturating_sub(earlier.server_ns);
        let kernel_ns = self.kernel_ns.saturating_sub(earlier.kernel_ns);
        let server_cpu = self.server_cpu.since(earlier.server_cpu);
        let bench_cpu = self.bench_cpu.since(earlier.bench_cpu);
        let window_ns = (self.at_ns - earlier.at_ns).max(1);
        let busy = (server_ns + kernel_ns) as f64 / window_ns as f64;
        Spent {
            server_ns,
            kernel_ns,
            steal: server_cpu.steal_share().max(bench_cpu.steal_share()),
            foreign: (server_cpu.busy_share() - busy).max(0.0),
            busy,
        }
    }
}

/// Of stretches of equal length: times are added, of disturbances the worst counts.
impl Sum for Spent {
    fn sum<I: Iterator<Item = Self>>(stretches: I) -> Self {
        let mut count = 0;
        let mut all = Self::default();
        for one in stretches {
            count += 1;
            all.server_ns += one.server_ns;
            all.kernel_ns += one.kernel_ns;
            all.steal = all.steal.max(one.steal);
            all.foreign = all.foreign.max(one.foreign);
            all.busy += one.busy;
        }
        all.busy /= f64::from(count.max(1));
        all
    }
}

impl Spent {
    /// Server and kernel together.
    pub fn total_ns(&self) -> u64 {
        self.server_ns + self.kernel_ns
    }

    /// Whether something else than the server disturbed the measurement.
    pub fn is_disturbed(&self) -> bool {
        self.steal > MAX_STEAL || self.foreign > MAX_FOREIGN
    }
}
