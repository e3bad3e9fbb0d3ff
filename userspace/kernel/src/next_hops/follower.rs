//! The thread that follows the kernel's notices.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::NextHops;
use crate::netlink::Notices;

/// How often, and how many, entries are looked at though nothing was heard of them. Looking at one
/// takes two questions, some ten microseconds.
const LOOK_AROUND: (Duration, usize) = (Duration::from_secs(5), 1024);

/// How long notices are gathered: tables often change in bursts.
const GATHER: Duration = Duration::from_millis(1);

/// Follows the tables of the namespace it was started in, until it is dropped.
#[derive(Debug)]
pub(crate) struct Follower {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Starts the thread. It hears of every change from now on.
    pub(crate) fn start(next_hops: NextHops) -> io::Result<Self> {
        let notices = Notices::new()?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("tp-next-hops".to_owned())
            .spawn(move || {
                // What is not followed must not be believed, also after a panic.
                let unfollowed = Unfollowed(&next_hops);
                match follow(&next_hops, notices, &stopped) {
                    Ok(()) => std::mem::forget(unfollowed),
                    Err(error) => tracing::error!(%error, "the kernel's notices cannot be read"),
                }
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

/// Has no next hop used any more when it is dropped.
struct Unfollowed<'a>(&'a NextHops);

impl Drop for Unfollowed<'_> {
    fn drop(&mut self) {
        tracing::error!("next hops are no longer followed, nor used");
        self.0.disable();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if rustix::io::write(&self.stop, &1u64.to_ne_bytes()).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn follow(next_hops: &NextHops, mut notices: Notices, stop: &OwnedFd) -> io::Result<()> {
    let mut changes = Vec::new();
    let mut due = Instant::now() + LOOK_AROUND.0;
    loop {
        let now = Instant::now();
        if now >= due {
            next_hops.sweep(now);
            next_hops.look_around(LOOK_AROUND.1);
            due = Instant::now() + LOOK_AROUND.0;
        }
        if wait(&notices, stop, due.saturating_duration_since(now))? {
            return Ok(());
        }
        std::thread::sleep(GATHER);
        while notices.read(&mut changes)? {}
        next_hops.apply(&changes);
        changes.clear();
    }
}

/// Waits for a notice; returns whether to stop.
fn wait(notices: &Notices, stop: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let limit = Timespec::try_from(limit).unwrap_or(Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    });
    let mut fds = [
        PollFd::new(notices, PollFlags::IN),
        PollFd::new(stop, PollFlags::IN),
    ];
    match poll(&mut fds, Some(&limit)) {
        Ok(_) => Ok(!fds[1].revents().is_empty()),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
