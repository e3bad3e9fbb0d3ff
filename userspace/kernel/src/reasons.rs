//! What the program decided, counted by reason.

use std::io;

use towpath_ebpf_common::reason::{Count, Reason};

use crate::map::{PerCpu, Table};

/// The counters of all CPUs.
#[derive(Debug)]
pub struct Reasons {
    table: Table<u32, PerCpu<Count>>,
    cpus: usize,
}

impl Reasons {
    pub(crate) fn new(table: Table<u32, PerCpu<Count>>) -> io::Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        Ok(Self { table, cpus })
    }

    /// How often each reason held, in all since the maps were made.
    pub fn read(&self) -> io::Result<Vec<(Reason, Count)>> {
        let sum = |reason: Reason| {
            let mut sum = Count::default();
            for count in self.table.per_cpu(reason as u32, self.cpus)? {
                sum.packets = sum.packets.wrapping_add(count.packets);
                sum.bytes = sum.bytes.wrapping_add(count.bytes);
            }
            Ok((reason, sum))
        };
        Reason::ALL.into_iter().map(sum).collect()
    }
}
