//! A network of two hosts for one test, joined by a cable, each in a namespace that has no name and
//! goes with its thread. The test runs on the first of them, with a bpffs that nobody else sees.
//!
//! ```text
//!   ┌ test ────────────────┐      ┌ far ─────────────────┐
//!   │ near  10.77.9.1/24   ├──────┤ far   10.77.9.2/24   │
//!   │       fd77:9::1/64   │      │       fd77:9::2/64   │
//!   └──────────────────────┘      └──────────────────────┘
//! ```

#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use towpath_kernel::{KernelConfig, Mode};

/// First part of the name of every directory made here; the process id and a number follow.
const PREFIX: &str = "tp-kern-";

/// Ample for the kernel to do something it was told to.
const LIMIT: Duration = Duration::from_secs(20);

/// What a test has to itself.
pub(crate) struct Lab {
    directory: PathBuf,
    far: File,
}

/// Runs `test` on a host of its own; says loudly why not where this machine cannot.
pub(crate) fn on_a_host(name: &str, test: impl FnOnce(&Lab) + Send) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    if !rustix::process::geteuid().is_root() {
        skip(
            name,
            "network namespaces and programs in the kernel need root",
        );
        return;
    }
    for (program, argument) in [("ip", "-V"), ("ethtool", "--version")] {
        if Command::new(program).arg(argument).output().is_err() {
            skip(name, &format!("{program} is not installed"));
            return;
        }
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("{PREFIX}{}-{number}", std::process::id()));
    let (make, made) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let outcome = thread::scope(|scope| {
        scope.spawn(move || {
            let path = namespace(UnshareFlags::NEWNET);
            let far = File::open(path).expect("a thread's namespace can be opened");
            let _ = make.send(far);
            // It lasts as long as somebody is in it or has it open.
            let _ = ended.recv();
        });
        let directory = &directory;
        let far = made.recv().expect("the far host is made");
        let test = scope.spawn(move || {
            namespace(UnshareFlags::NEWNET | UnshareFlags::NEWNS);
            mount_change(
                "/",
                MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
            )
            .expect("root may change its own mounts");
            fs::create_dir_all(directory.join("bpf")).expect("the temporary directory is writable");
            let lab = Lab {
                directory: directory.clone(),
                far,
            };
            let flags = MountFlags::empty();
            mount("bpf", lab.bpffs(), "bpf", flags, None).expect("this kernel has bpffs");
            lab.connect();
            test(&lab);
        });
        let outcome = test.join();
        drop(end);
        outcome
    });
    let _ = fs::remove_dir_all(&directory);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Moves this thread into new namespaces; the path of its network namespace.
fn namespace(flags: UnshareFlags) -> PathBuf {
    // SAFETY: the thread shares no file descriptors or memory with others by way of what is unshared:
    // file descriptors stay shared, and mounts and networks are looked up by this thread alone.
    unsafe { unshare_unsafe(flags) }.expect("root may make namespaces");
    format!(
        "/proc/self/task/{}/ns/net",
        rustix::thread::gettid().as_raw_nonzero()
    )
    .into()
}

impl Lab {
    fn connect(&self) {
        let make = || {
            ip("link set lo up");
            ip(
                "link add near address 02:00:00:00:09:01 type veth peer name far address 02:00:00:00:09:02",
            );
        };
        make();
        // Children of a thread are in its namespaces, and a namespace can be named by a process in it.
        let mut holder = self.inside_far(|| {
            Command::new("sleep")
                .arg("600")
                .spawn()
                .expect("sleep is installed")
        });
        ip(&format!("link set far netns {}", holder.id()));
        holder.kill().expect("it is our own");
        holder.wait().expect("it is our own");
        for address in ["10.77.9.1/24", "fd77:9::1/64"] {
            ip(&format!("addr add {address} dev near{}", nodad(address)));
        }
        ip("link set near up");
        self.far("link set lo up");
        for address in ["10.77.9.2/24", "fd77:9::2/64"] {
            self.far(&format!("addr add {address} dev far{}", nodad(address)));
        }
        self.far("link set far up");
        // Without it a virtual cable loses what programs send.
        self.receive_by_gro("on");
        wait_until("the cable carries", || {
            ip("-o link show dev near").contains("LOWER_UP")
        });
    }

    /// Whether the far end of the cable receives by GRO: `on` or `off`.
    pub(crate) fn receive_by_gro(&self, how: &str) {
        self.inside_far(|| receive_by_gro("far", how));
    }

    /// A bpffs of this test's own.
    pub(crate) fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    /// An ordinary directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where pins go.
    pub(crate) fn pins(&self) -> PathBuf {
        self.bpffs().join("towpath")
    }

    /// A small kernel path on these interfaces, pinned.
    pub(crate) fn config(&self, mode: Mode, interfaces: &[&str]) -> KernelConfig {
        KernelConfig {
            max_peers: 64,
            max_routes: 256,
            pin_directory: self.pins(),
            listeners: vec!["10.77.9.1:3478".parse().expect("an address")],
            relay_addresses: vec!["10.77.9.1".parse().expect("an address")],
            ..KernelConfig::new(mode, interfaces.iter().map(|&name| name.into()).collect())
        }
    }

    /// Runs `ip` on the far host.
    pub(crate) fn far(&self, arguments: &str) -> String {
        self.inside_far(|| ip(arguments))
    }

    /// Runs `action` on the far host. Sockets it makes stay there.
    pub(crate) fn inside_far<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.far.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter a namespace");
                action()
            });
            inside.join().expect("what ran on the far host succeeded")
        })
    }
}

fn nodad(address: &str) -> &'static str {
    if address.contains(':') { " nodad" } else { "" }
}

/// Whether an interface receives by GRO: `on` or `off`.
pub(crate) fn receive_by_gro(interface: &str, how: &str) {
    let done = Command::new("ethtool")
        .args(["-K", interface, "gro", how])
        .status()
        .expect("ethtool is installed");
    assert!(done.success(), "gro {how} on {interface}: {done}");
}

/// Runs `ip` in this thread's namespaces.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("ip is installed");
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The ids of the programs on an interface, with how they are attached (1 native, 2 generic).
pub(crate) fn xdp(interface: &str) -> Option<(u64, u64)> {
    let json = ip(&format!("-j link show dev {interface}"));
    let links: serde_json::Value = serde_json::from_str(&json).expect("ip writes JSON");
    let xdp = links[0].get("xdp")?;
    Some((xdp["mode"].as_u64()?, xdp["prog"]["id"].as_u64()?))
}

/// Waits until `condition` holds; fails where it does not within a time that is ample.
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Says that a test did not run.
pub(crate) fn skip(test: &str, why: &str) {
    let line = format!("SKIPPED: {test}: {why}\n");
    eprint!("{line}");
    if let Some(log) = std::env::var_os("TOWPATH_SKIP_LOG") {
        let log = File::options().append(true).create(true).open(log);
        log.and_then(|mut log| log.write_all(line.as_bytes()))
            .expect("the log of skipped tests can be written");
    }
}
