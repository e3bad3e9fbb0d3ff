//! Child processes that never outlive their test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(10);

/// A running program whose output goes to a file. Dropping it kills it; while the test panics, its
/// output is printed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    keeper: Option<Keeper>,
}

/// Keeps the thread alive that started a process, for the process dies with it.
#[derive(Debug)]
struct Keeper {
    _end: Sender<()>,
}

impl Process {
    /// Starts `command`; its output goes to `<directory>/<name>.log`.
    pub fn start(name: &str, mut command: Command, directory: &Path) -> Self {
        let log = directory.join(format!("{name}.log"));
        let output = File::create(&log).expect("the laboratory's directory is writable");
        let errors = output
            .try_clone()
            .expect("a file descriptor can be duplicated");
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log,
            keeper: None,
        }
    }

    /// As [`Process::start`], under a seccomp filter that refuses io_uring, as container runtimes
    /// have.
    pub fn start_without_io_uring(name: &str, command: Command, directory: &Path) -> Self {
        let (end, ended) = mpsc::channel();
        let (started, receive) = mpsc::channel();
        let (name, directory) = (name.to_owned(), directory.to_owned());
        thread::spawn(move || {
            apply_filter(&refuse_io_uring()).expect("root may filter its system calls");
            let _ = started.send(Self::start(&name, command, &directory));
            let _ = ended.recv();
        });
        let mut process = receive.recv().expect("the process starts");
        process.keeper = Some(Keeper { _end: end });
        process
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Memory that it has in use, in bytes.
    ///
    /// # Panics
    ///
    /// Where it has ended.
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kilobytes.unwrap_or_else(|| panic!("{path} has no VmRSS")) * 1024
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a process id is not 0");
        kill_process(pid, signal).expect("an own child can be signalled");
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child
            .try_wait()
            .expect("an own child can be waited for")
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// Where it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = self.name.clone();
        wait_for(&format!("the end of {name}"), limit, || self.ended())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- output of {} ---\n{}---", self.name, self.output());
        }
    }
}

/// Every system call of io_uring fails with EPERM, all others work.
fn refuse_io_uring() -> BpfProgram {
    /// `io_uring_setup`, `io_uring_enter` and `io_uring_register`, the same on every architecture.
    const IO_URING: [i64; 3] = [425, 426, 427];
    const EPERM: u32 = 1;
    let architecture = std::env::consts::ARCH
        .try_into()
        .expect("an architecture with seccomp");
    let rules = IO_URING
        .into_iter()
        .map(|call| (call, Vec::new()))
        .collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(EPERM),
        architecture,
    );
    filter
        .and_then(BpfProgram::try_from)
        .expect("the filter is well-formed")
}

/// Looks until `look` finds something.
///
/// # Panics
///
/// Where it has found nothing after `limit`.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            begin.elapsed() < limit,
            "waited {limit:?} in vain for {what}"
        );
        thread::sleep(POLL);
    }
}
