//! The control socket: a Unix socket next to a lock that tells whether its server lives.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::control::http::Guarded;
use crate::control::routes::{DRAIN_PATH, FIND_LIMITS_PATH, LIMITS_PATH, RELOAD_PATH, STATUS_PATH};
use crate::directories::{self, Directories};
use crate::limits::{Change, Changed, LimitsView, SlotView, Target};
use crate::reload::Reloaded;
use crate::status::Status;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is read.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// Why there is no control socket.
#[derive(thiserror::Error, Debug)]
pub enum ControlSocketError {
    /// Somebody has it.
    #[error(
        "another towpath runs with the control socket {}; give this one another --runtime-dir",
        path.display()
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// It could not be made.
    #[error("cannot make the control socket {}: {error}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// A control socket that is listened on. Dropping it removes its file.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Held as long as the server lives.
    _lock: File,
}

impl ControlSocket {
    /// Takes the lock, removes the socket of a server that is gone, and listens.
    pub(crate) fn bind(directories: &Directories) -> Result<Self, ControlSocketError> {
        let path = directories.control_socket();
        let failed = |error| ControlSocketError::Io {
            path: path.clone(),
            error,
        };
        directories::create(&directories.runtime, 0o750).map_err(failed)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directories.runtime.join("lock"))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ControlSocketError::InUse { path }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        if UnixStream::connect(&path).is_ok() {
            return Err(ControlSocketError::InUse { path });
        }
        remove_stale(&path).map_err(failed)?;
        let listener = UnixListener::bind(&path).map_err(failed)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            listener,
            path,
            _lock: lock,
        })
    }

    /// The socket for the runtime of the calling thread.
    pub(crate) fn guarded(&self) -> io::Result<Guarded> {
        let listener = tokio::net::UnixListener::from_std(self.listener.try_clone()?)?;
        let (uid, gid) = (
            nix::unistd::geteuid().as_raw(),
            nix::unistd::getegid().as_raw(),
        );
        Ok(Guarded { listener, uid, gid })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Where it is gone already, somebody did this for us.
        let _ = fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt as _;
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "something that is no socket is in its place",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Why a server did not answer.
#[derive(thiserror::Error, Debug)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no towpath answers on {}: {error}", path.display())]
    NoServer {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The caller may not connect.
    #[error("{} may be used by the server's user, its group and root only", path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// What was asked for cannot be done.
    #[error("{0}")]
    Refused(String),
    /// The answer is none.
    #[error("{} gave no answer: {reason}", path.display())]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with the answer.
        reason: String,
    },
}

/// A server behind its control socket. Every call blocks for some seconds at most.
#[derive(Clone, Debug)]
pub struct ControlClient {
    path: PathBuf,
}

impl ControlClient {
    /// The server behind this socket; nothing is sent yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What the server does.
    pub fn status(&self) -> Result<Status, ControlError> {
        self.ask("GET", STATUS_PATH, "")
    }

    /// What is limited and counted, with at most `peers` peers.
    pub fn limits(&self, peers: usize) -> Result<LimitsView, ControlError> {
        self.ask("GET", &format!("{LIMITS_PATH}?peers={peers}"), "")
    }

    /// The slots that this names.
    pub fn find_limits(&self, target: &Target) -> Result<Vec<SlotView>, ControlError> {
        self.ask("POST", FIND_LIMITS_PATH, &self.json(target)?)
    }

    /// Sets or unsets a limit.
    pub fn change_limits(&self, change: &Change) -> Result<Changed, ControlError> {
        self.ask("POST", LIMITS_PATH, &self.json(change)?)
    }

    /// Has the server read its configuration again.
    pub fn reload(&self) -> Result<Reloaded, ControlError> {
        self.ask("POST", RELOAD_PATH, "")
    }

    /// Has the server make no new allocations and end with the last one. Gives their number.
    pub fn drain(&self) -> Result<u64, ControlError> {
        self.ask("POST", DRAIN_PATH, "")
    }

    fn json(&self, value: &impl serde::Serialize) -> Result<String, ControlError> {
        serde_json::to_string(value).map_err(|error| self.no_answer(error.to_string()))
    }

    fn no_answer(&self, reason: String) -> ControlError {
        ControlError::NoAnswer {
            path: self.path.clone(),
            reason,
        }
    }

    fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        target: &str,
        body: &str,
    ) -> Result<T, ControlError> {
        let forbidden = || ControlError::Forbidden {
            path: self.path.clone(),
        };
        let mut stream = UnixStream::connect(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => forbidden(),
            _ => ControlError::NoServer {
                path: self.path.clone(),
                error,
            },
        })?;
        let answer = exchange(&mut stream, method, target, body)
            .map_err(|error| self.no_answer(error.to_string()))?;
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text
            .split_once("\r\n\r\n")
            .ok_or_else(|| self.no_answer("the answer ends early".into()))?;
        let first = head.lines().next().unwrap_or_default();
        match first.split(' ').nth(1) {
            Some("200") => {
                serde_json::from_str(body).map_err(|error| self.no_answer(error.to_string()))
            }
            Some("403") => Err(forbidden()),
            Some("422") => Err(ControlError::Refused(body.to_owned())),
            Some(_) | None => Err(self.no_answer(first.to_owned())),
        }
    }
}

fn exchange(
    stream: &mut UnixStream,
    method: &str,
    target: &str,
    body: &str,
) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    // HTTP/1.0: the answer ends where the connection does.
    write!(
        stream,
        "{method} {target} HTTP/1.0\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> Directories {
        let path = std::env::temp_dir().join(format!(
            "towpath-test-{name}-{:016x}",
            rand::random::<u64>()
        ));
        Directories {
            state: path.clone(),
            runtime: path,
        }
    }

    #[test]
    fn a_second_server_is_refused_and_a_dead_ones_socket_replaced() {
        let directories = scratch("socket");
        let first = ControlSocket::bind(&directories).unwrap();
        let error = ControlSocket::bind(&directories).unwrap_err();
        assert!(matches!(error, ControlSocketError::InUse { .. }), "{error}");
        drop(first);
        assert!(!directories.control_socket().exists());
        // What a killed server leaves: a socket nobody listens on.
        drop(UnixListener::bind(directories.control_socket()).unwrap());
        assert!(directories.control_socket().exists());
        let second = ControlSocket::bind(&directories).unwrap();
        drop(second);
        fs::remove_dir_all(directories.runtime).unwrap();
    }

    #[test]
    fn a_socket_that_somebody_answers_on_is_not_taken_away() {
        let directories = scratch("answered");
        fs::create_dir_all(&directories.runtime).unwrap();
        let _other = UnixListener::bind(directories.control_socket()).unwrap();
        let error = ControlSocket::bind(&directories).unwrap_err();
        assert!(matches!(error, ControlSocketError::InUse { .. }), "{error}");
        assert!(directories.control_socket().exists());
        fs::remove_dir_all(directories.runtime).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_not_removed() {
        let directories = scratch("file");
        fs::create_dir_all(&directories.runtime).unwrap();
        fs::write(directories.control_socket(), b"precious").unwrap();
        let error = ControlSocket::bind(&directories).unwrap_err();
        assert!(matches!(error, ControlSocketError::Io { .. }), "{error}");
        assert_eq!(fs::read(directories.control_socket()).unwrap(), b"precious");
        fs::remove_dir_all(directories.runtime).unwrap();
    }

    #[test]
    fn status_without_a_server_names_the_socket() {
        let client = ControlClient::new("/nonexistent/control.sock".into());
        let error = client.status().unwrap_err();
        assert!(matches!(error, ControlError::NoServer { .. }));
        assert!(error.to_string().contains("/nonexistent/control.sock"));
    }
}
