//! What this process may do, and whether its clock is the program's.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::refusal::Refusal;

/// Capabilities the kernel path needs, by their numbers in linux/capability.h.
const NEEDED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];

/// Stands for `CAP_PERFMON` and `CAP_BPF`, which were once part of it.
const SYS_ADMIN: u32 = 21;

/// `PROC_TIME_INIT_INO` of linux/proc_ns.h: the time namespace without offsets.
const FIRST_TIME_NAMESPACE: u64 = 0xEFFF_FFFA;

/// Fails where this process lacks a capability.
pub(crate) fn check_capabilities() -> Result<(), Refusal> {
    let status = fs::read_to_string("/proc/thread-self/status").map_err(Refusal::Status)?;
    let missing = missing_capabilities(&status);
    if missing.is_empty() {
        return Ok(());
    }
    Err(Refusal::Capabilities(missing))
}

fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let holds = |capability: u32| effective & (1 << capability) != 0;
    let has = |capability: u32| holds(capability) || (capability >= 38 && holds(SYS_ADMIN));
    NEEDED
        .into_iter()
        .filter(|(number, _)| !has(*number))
        .map(|(_, name)| name)
        .collect()
}

/// Fails where CLOCK_MONOTONIC of this process is not the clock the program reads: routes would
/// expire, and buckets fill, at other times than userspace means.
pub(crate) fn check_clock() -> Result<(), Refusal> {
    // Kernels without time namespaces have neither file.
    let Ok(own) = fs::metadata("/proc/thread-self/ns/time") else {
        return Ok(());
    };
    if own.ino() == FIRST_TIME_NAMESPACE {
        return Ok(());
    }
    let children =
        fs::metadata("/proc/thread-self/ns/time_for_children").map_err(Refusal::Status)?;
    if children.ino() != own.ino() {
        return Err(Refusal::UnknownClock);
    }
    let offsets = fs::read_to_string("/proc/self/timens_offsets").map_err(Refusal::Status)?;
    match monotonic_offset(&offsets) {
        Some((0, 0)) => Ok(()),
        Some((seconds, nanoseconds)) => Err(Refusal::Clock {
            seconds,
            nanoseconds,
        }),
        None => Err(Refusal::UnknownClock),
    }
}

/// The line `monotonic SECONDS NANOSECONDS`.
fn monotonic_offset(offsets: &str) -> Option<(i64, i64)> {
    let line = offsets
        .lines()
        .find_map(|line| line.strip_prefix("monotonic"))?;
    let mut numbers = line.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether the nearest directory above or at `path` that exists is on a bpffs.
pub(crate) fn is_bpffs(path: &Path) -> io::Result<bool> {
    const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
    let existing = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let magic = rustix::fs::statfs(existing)?.f_type;
    // The field is signed on some machines and 32 bits wide on others.
    Ok(magic as u64 & 0xffff_ffff == BPF_FS_MAGIC)
}

/// What a locked-down kernel says of itself; `None` where it is not.
pub(crate) fn lockdown() -> Option<String> {
    let modes = fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let chosen = modes.split_once('[')?.1.split_once(']')?.0;
    (chosen != "none").then(|| chosen.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{missing_capabilities, monotonic_offset};

    #[test]
    fn a_process_with_everything_lacks_nothing() {
        assert!(missing_capabilities("CapEff:\t000001ffffffffff\n").is_empty());
    }

    #[test]
    fn cap_sys_admin_stands_for_what_was_once_part_of_it() {
        let admin = 1u64 << 21;
        let network = 1u64 << 12;
        let status = |set: u64| format!("Name:\tx\nCapEff:\t{set:016x}\n");
        assert!(missing_capabilities(&status(admin | network)).is_empty());
        assert_eq!(missing_capabilities(&status(admin)), ["CAP_NET_ADMIN"]);
        assert_eq!(
            missing_capabilities(&status(network)),
            ["CAP_PERFMON", "CAP_BPF"]
        );
    }

    #[test]
    fn the_offset_of_the_monotonic_clock_is_read() {
        let file = "monotonic           -3         5\nboottime             7         0\n";
        assert_eq!(monotonic_offset(file), Some((-3, 5)));
        assert_eq!(monotonic_offset("boottime 1 2\n"), None);
    }
}
