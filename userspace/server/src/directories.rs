//! Where state and sockets lie on disk, and how files there are written.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Where a server keeps what outlives it, and where it can be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directories {
    /// What outlives a restart: mode 0700.
    pub state: PathBuf,
    /// The control socket and its lock: mode 0750.
    pub runtime: PathBuf,
}

/// No place for state could be named.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("neither XDG_STATE_HOME nor HOME is set; name a directory with --state-dir")]
pub struct NoStateDirectory;

impl Directories {
    /// The name of the control socket in [`Directories::runtime`].
    pub const CONTROL_SOCKET: &str = "control.sock";

    /// What was asked for, else `/var/lib/towpath` and `/run/towpath` for root, and
    /// `$XDG_STATE_HOME/towpath` and `$XDG_RUNTIME_DIR/towpath` for others.
    pub fn choose(
        state: Option<PathBuf>,
        runtime: Option<PathBuf>,
    ) -> Result<Self, NoStateDirectory> {
        let root = nix::unistd::geteuid().is_root();
        Self::choose_for(root, state, runtime, |name| {
            std::env::var_os(name).map(PathBuf::from)
        })
    }

    fn choose_for(
        root: bool,
        state: Option<PathBuf>,
        runtime: Option<PathBuf>,
        variable: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self, NoStateDirectory> {
        // The XDG base directory specification: "If an implementation encounters a relative path
        // in any of these variables it should consider the path invalid and ignore it."
        let variable = |name: &str| variable(name).filter(|path| path.is_absolute());
        let state = match state {
            Some(state) => state,
            None if root => "/var/lib/towpath".into(),
            None => variable("XDG_STATE_HOME")
                .or_else(|| Some(variable("HOME")?.join(".local/state")))
                .ok_or(NoStateDirectory)?
                .join("towpath"),
        };
        let runtime = match runtime {
            Some(runtime) => runtime,
            None if root => "/run/towpath".into(),
            None => match variable("XDG_RUNTIME_DIR") {
                Some(directory) => directory.join("towpath"),
                None => state.join("run"),
            },
        };
        Ok(Self { state, runtime })
    }

    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join(Self::CONTROL_SOCKET)
    }
}

/// Makes a directory and those above it. One that is there keeps its mode.
pub fn create(directory: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(directory)
}

/// Replaces a file as a whole: readers see the old or the new content, also after a crash.
pub fn replace_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let name = path
        .file_name()
        .ok_or(io::ErrorKind::InvalidInput)?
        .to_string_lossy();
    let temporary = directory.join(format!(".{name}.{:016x}", rand::random::<u64>()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The error that counts is the one above.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    fs::File::open(directory)?.sync_all()
}

/// A random secret that outlives restarts.
#[derive(Clone)]
pub struct KeptSecret<const N: usize> {
    /// The secret.
    pub bytes: [u8; N],
    /// Why it is a new one, where that is not because there was none.
    pub trouble: Option<SecretTrouble>,
}

/// Why a secret could not be taken over or kept. Sessions survive a restart worse, nothing else.
#[derive(thiserror::Error, Debug, Clone)]
pub enum SecretTrouble {
    /// What was there is not a secret of this length.
    #[error("{} was not a secret of {expected} bytes and was replaced", path.display())]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// The length it should have.
        expected: usize,
    },
    /// Others could have read it.
    #[error("{} could be read by others and was replaced", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// It could not be read or written.
    #[error("cannot keep {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::sync::Arc<io::Error>,
    },
}

impl<const N: usize> KeptSecret<N> {
    /// The secret in `directory`, or a new one that is written there.
    pub fn load(directory: &Path, name: &str) -> Self {
        let path = directory.join(name);
        let (found, mut trouble) = match Self::read(&path) {
            Ok(found) => (found, None),
            Err(trouble) => (None, Some(trouble)),
        };
        let bytes = found.unwrap_or_else(|| {
            let new: [u8; N] = rand::random();
            let written = create(directory, 0o700).and_then(|()| replace_file(&path, &new, 0o600));
            if let Err(error) = written {
                trouble = Some(SecretTrouble::Io {
                    path: path.clone(),
                    error: error.into(),
                });
            }
            new
        });
        Self { bytes, trouble }
    }

    fn read(path: &Path) -> Result<Option<[u8; N]>, SecretTrouble> {
        let failed = |error: io::Error| SecretTrouble::Io {
            path: path.to_owned(),
            error: error.into(),
        };
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
            return Err(SecretTrouble::Exposed {
                path: path.to_owned(),
            });
        }
        let mut content = Vec::with_capacity(N + 1);
        file.take(N as u64 + 1)
            .read_to_end(&mut content)
            .map_err(failed)?;
        match content.try_into() {
            Ok(bytes) => Ok(Some(bytes)),
            Err(_) => Err(SecretTrouble::WrongLength {
                path: path.to_owned(),
                expected: N,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!(
            "towpath-test-{name}-{:016x}",
            rand::random::<u64>()
        ));
        create(&path, 0o700).unwrap();
        path
    }

    #[test]
    fn root_and_others_have_their_own_places() {
        let none = |_: &str| None;
        let xdg = |name: &str| match name {
            "XDG_STATE_HOME" => Some(PathBuf::from("/s")),
            "XDG_RUNTIME_DIR" => Some(PathBuf::from("/r")),
            "HOME" => Some(PathBuf::from("/h")),
            _ => None,
        };
        let home = |name: &str| (name == "HOME").then(|| PathBuf::from("/h"));
        let chosen = |root, variables: &dyn Fn(&str) -> Option<PathBuf>| {
            Directories::choose_for(root, None, None, variables)
                .map(|found| (found.state, found.runtime))
        };
        let pair = |state: &str, runtime: &str| Ok((state.into(), runtime.into()));
        assert_eq!(chosen(true, &xdg), pair("/var/lib/towpath", "/run/towpath"));
        assert_eq!(chosen(false, &xdg), pair("/s/towpath", "/r/towpath"));
        assert_eq!(
            chosen(false, &home),
            pair("/h/.local/state/towpath", "/h/.local/state/towpath/run")
        );
        assert_eq!(chosen(false, &none), Err(NoStateDirectory));
        assert_eq!(
            chosen(false, &|_| Some("relative".into())),
            Err(NoStateDirectory)
        );
        let asked = Directories::choose_for(true, Some("/a".into()), Some("/b".into()), none);
        assert_eq!(
            asked.unwrap().control_socket(),
            PathBuf::from("/b/control.sock")
        );
    }

    #[test]
    fn a_secret_outlives_a_restart_and_only_its_owner_reads_it() {
        let directory = scratch("kept");
        let first = KeptSecret::<32>::load(&directory, "secret");
        assert!(first.trouble.is_none());
        let path = directory.join("secret");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let second = KeptSecret::<32>::load(&directory, "secret");
        assert_eq!(first.bytes, second.bytes);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_secret_that_others_could_read_is_replaced() {
        let directory = scratch("exposed");
        let path = directory.join("secret");
        let first = KeptSecret::<32>::load(&directory, "secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let second = KeptSecret::<32>::load(&directory, "secret");
        assert!(matches!(
            second.trouble,
            Some(SecretTrouble::Exposed { .. })
        ));
        assert_ne!(first.bytes, second.bytes);
        assert_eq!(second.bytes.as_slice(), fs::read(&path).unwrap());
        fs::write(&path, b"short").unwrap();
        let third = KeptSecret::<32>::load(&directory, "secret");
        assert!(matches!(
            third.trouble,
            Some(SecretTrouble::WrongLength { .. })
        ));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_secret_without_a_place_is_a_new_one_each_time() {
        let path = Path::new("/dev/null/nowhere");
        let secrets = [(); 2].map(|()| KeptSecret::<16>::load(path, "secret"));
        assert!(
            secrets
                .iter()
                .all(|kept| matches!(kept.trouble, Some(SecretTrouble::Io { .. })))
        );
        assert_ne!(secrets[0].bytes, secrets[1].bytes);
    }

    #[test]
    fn a_file_that_cannot_be_replaced_leaves_nothing_behind() {
        let directory = scratch("replace");
        fs::create_dir(directory.join("taken")).unwrap();
        assert!(replace_file(&directory.join("taken"), b"x", 0o600).is_err());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(directory).unwrap();
    }
}
