//! The control plane's runtime: the only file that names tokio-uring.
//!
//! tokio-uring is a current-thread tokio whose files go through a ring; sockets and timers work as
//! ever. Where the ring is forbidden, a plain current-thread tokio runs the same futures.

use std::io;

/// Which runtime carries the control plane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    IoUring,
    Plain,
}

impl Kind {
    /// Its name in status and logs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::IoUring => "tokio-uring",
            Self::Plain => "tokio",
        }
    }
}

/// A runtime of the calling thread.
pub(crate) enum Runtime {
    IoUring(tokio_uring::Runtime),
    /// With the reason why it is not the other one.
    Plain(tokio::runtime::Runtime, Option<io::Error>),
}

impl Runtime {
    /// A runtime with a ring where `ring` is wanted and the kernel allows it.
    pub(crate) fn new(ring: bool) -> io::Result<Self> {
        let refused = if ring {
            let mut builder = tokio_uring::builder();
            // The control plane has few files open at a time.
            builder.entries(32);
            match tokio_uring::Runtime::new(&builder) {
                Ok(runtime) => return Ok(Self::IoUring(runtime)),
                Err(error) => Some(error),
            }
        } else {
            None
        };
        let plain = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self::Plain(plain, refused))
    }

    pub(crate) const fn kind(&self) -> Kind {
        match self {
            Self::IoUring(_) => Kind::IoUring,
            Self::Plain(..) => Kind::Plain,
        }
    }

    /// Runs a future to its end.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self {
            Self::IoUring(runtime) => runtime.block_on(future),
            Self::Plain(runtime, _) => runtime.block_on(future),
        }
    }
}
