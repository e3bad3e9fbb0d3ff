//! Asks the kernel what it can do, once, and says what is used instead of what it cannot.

use std::io;

use io_uring::{Probe, opcode};

use crate::buffers::{Buffers, Class};
use crate::config::{Driver, EngineConfig};
use crate::engine::StartError;
use crate::socket::{set_gro, set_int};
use crate::uring::{ProvidedRing, Ring};

/// The driver that runs the shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DriverInUse {
    /// io_uring.
    IoUring,
    /// epoll, recvmmsg and sendmmsg.
    Epoll,
}

impl DriverInUse {
    /// Its name in configuration, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

/// Something a kernel may or may not be able to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capability {
    /// What it is.
    pub name: &'static str,
    /// Why it is not used; `None` where it is.
    pub missing: Option<String>,
    /// What is done without it.
    pub fallback: &'static str,
}

/// The driver in use, and what the kernel can do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The driver of all shards.
    pub driver: DriverInUse,
    /// Why it is that one.
    pub reason: String,
    /// Everything that was asked for.
    pub capabilities: Vec<Capability>,
}

impl Report {
    /// Whether a capability is used.
    pub fn has(&self, name: &str) -> bool {
        self.capabilities
            .iter()
            .any(|capability| capability.name == name && capability.missing.is_none())
    }

    /// Notes whether the kernel steers clients to their shards.
    pub(crate) fn steering(&mut self, attached: io::Result<()>) {
        self.add(
            "steering",
            attached,
            "shards pass each other datagrams that arrive at a wrong one",
        );
    }

    fn add(&mut self, name: &'static str, result: io::Result<()>, fallback: &'static str) {
        let missing = result.err().map(|error| error.to_string());
        self.capabilities.push(Capability {
            name,
            missing,
            fallback,
        });
    }
}

/// Chooses the driver, and asks for everything else that may be missing.
pub(crate) fn probe(config: &EngineConfig) -> Result<Report, StartError> {
    let mut report = Report {
        driver: DriverInUse::Epoll,
        reason: "chosen by the configuration".into(),
        capabilities: Vec::new(),
    };
    if config.driver != Driver::Epoll {
        // On a thread of its own: the end of a ring interrupts system calls of the thread it was on.
        let tried = std::thread::spawn(io_uring)
            .join()
            .unwrap_or_else(|_| Err("the probe of io_uring panicked".into()));
        match (tried, config.driver) {
            (Ok(()), driver) => {
                report.driver = DriverInUse::IoUring;
                if driver == Driver::Auto {
                    report.reason = "the kernel has all it needs".into();
                }
            }
            (Err(reason), Driver::IoUring) => return Err(StartError::NoIoUring { reason }),
            (Err(reason), Driver::Auto | Driver::Epoll) => report.reason = reason,
        }
        let used = match report.driver {
            DriverInUse::IoUring => Ok(()),
            DriverInUse::Epoll => Err(io::Error::other(report.reason.clone())),
        };
        report.add("io_uring", used, "epoll with recvmmsg and sendmmsg");
    }
    report.add("gro", gro(config), "datagrams are received one by one");
    report.add("gso", gso(config), "datagrams are sent one by one");
    Ok(report)
}

/// Sets up a ring with all the driver uses; the reason where that fails.
fn io_uring() -> Result<(), String> {
    let ring = Ring::new().map_err(|error| setup_reason(&error))?;
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error| format!("io_uring tells no operations: {error}"))?;
    let needed = [
        (opcode::RecvMsgMulti::CODE, "RECVMSG"),
        (opcode::Send::CODE, "SEND"),
        (opcode::SendMsg::CODE, "SENDMSG"),
        (opcode::Timeout::CODE, "TIMEOUT"),
        (opcode::TimeoutUpdate::CODE, "TIMEOUT_REMOVE"),
        (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
        (opcode::Read::CODE, "READ"),
        (opcode::PollAdd::CODE, "POLL_ADD"),
        // Came with Linux 6.0, as multishot receives of messages did.
        (
            opcode::SendZc::CODE,
            "SEND_ZC, the mark of a kernel with multishot receives",
        ),
    ];
    for (code, name) in needed {
        if !probe.is_supported(code) {
            return Err(format!("io_uring lacks {name}"));
        }
    }
    let mut buffers = Buffers::new(8, 2, 1).map_err(|error| format!("no memory: {error}"))?;
    let provided = ProvidedRing::new(&ring.submitter(), &mut buffers, Class::Small)
        .map_err(|error| format!("io_uring lacks buffer rings: {error}"));
    drop(ring);
    provided.map(drop)
}

fn setup_reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel or a seccomp profile has no io_uring (ENOSYS)".into(),
        Some(libc::EPERM) => {
            "io_uring is forbidden by kernel.io_uring_disabled or a seccomp profile (EPERM)".into()
        }
        Some(libc::EACCES) => "io_uring is forbidden by a security policy (EACCES)".into(),
        Some(libc::EINVAL) => {
            "io_uring lacks SINGLE_ISSUER or DEFER_TASKRUN (EINVAL): Linux before 6.1".into()
        }
        _ => format!("io_uring cannot be set up: {error}"),
    }
}

fn gro(config: &EngineConfig) -> io::Result<()> {
    if !config.gro {
        return Err(io::Error::other("switched off by the configuration"));
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    set_gro(std::os::fd::AsRawFd::as_raw_fd(&socket), true)
}

fn gso(config: &EngineConfig) -> io::Result<()> {
    if !config.gso {
        return Err(io::Error::other("switched off by the configuration"));
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    set_int(fd, libc::SOL_UDP, libc::UDP_SEGMENT, 1200)
}
