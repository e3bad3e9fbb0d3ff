//! The directory maps and links are pinned in.
//!
//! ```text
//!   /sys/fs/bpf/towpath/          0700
//!     v1/                         0700, locked by whoever serves with it
//!       ROUTES, LIMITS, …         0600, one for each map
//!       link_3                    0600, the program on the interface with index 3
//! ```
//!
//! Pins keep maps and programs alive without a process. Everything in it is made in an order that
//! leaves something usable wherever the making is cut short: maps that are there are used again, and
//! a link that is not pinned yet is detached by the kernel when its process ends.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use towpath_ebpf_common::route::LAYOUT;

use crate::probe::is_bpffs;
use crate::refusal::Refusal;

/// What the name of a pinned link begins with; the interface's index follows.
const LINK: &str = "link_";

/// How often, and how far apart, the lock is tried: a process that was told to end, or killed, may
/// take a moment to let go of it.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// A directory for pins of this layout, held by this process.
#[derive(Debug)]
pub(crate) struct PinDirectory {
    path: PathBuf,
    /// The lock goes with it, also when the process is killed.
    _locked: File,
}

/// What came of it.
pub(crate) enum Opened {
    /// It can be used.
    Usable(PinDirectory),
    /// Nothing can be pinned, for this reason, but everything else works.
    Unusable(String),
}

/// Where pins of this version's layout are.
pub(crate) fn versioned(directory: &Path) -> PathBuf {
    directory.join(format!("v{LAYOUT}"))
}

impl PinDirectory {
    /// Makes and locks it. Fails where another process holds it.
    pub(crate) fn open(directory: &Path) -> Result<Opened, Refusal> {
        let path = versioned(directory);
        match is_bpffs(directory) {
            Ok(true) => {}
            Ok(false) => {
                return Ok(Opened::Unusable(format!(
                    "{} is not on a mounted bpffs",
                    directory.display()
                )));
            }
            Err(error) => return Ok(Opened::Unusable(unusable(directory, &error))),
        }
        let made = make(directory).and_then(|()| make(&path));
        let locked = match made.and_then(|()| File::open(&path)) {
            Ok(locked) => locked,
            Err(error) => return Ok(Opened::Unusable(unusable(&path, &error))),
        };
        for _ in 0..LOCK_TRIES {
            match flock(&locked, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    return Ok(Opened::Usable(Self {
                        path,
                        _locked: locked,
                    }));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
                Err(error) => return Ok(Opened::Unusable(unusable(&path, &error.into()))),
            }
        }
        Err(Refusal::InUse(path))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the map of this name is pinned.
    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where the link to an interface is pinned. By index, as names hold dots, which bpffs reserves.
    pub(crate) fn link(&self, interface: u32) -> PathBuf {
        self.path.join(format!("{LINK}{interface}"))
    }

    /// Lets nobody but the owner use a pin.
    pub(crate) fn protect(&self, pin: &Path) -> io::Result<()> {
        fs::set_permissions(pin, Permissions::from_mode(0o600))
    }

    /// Removes the links to all interfaces but those in `keep`: the program leaves them.
    pub(crate) fn remove_links_except(&self, keep: &[u32]) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let interface = name.strip_prefix(LINK).map(str::parse::<u32>);
            if let Some(interface) = interface
                && !interface.is_ok_and(|interface| keep.contains(&interface))
            {
                fs::remove_file(self.path.join(&name))?;
            }
        }
        Ok(())
    }
}

/// Removes every pin under `directory`, of all versions: programs leave their interfaces, maps are
/// freed when the last process lets go of them. Returns how many there were.
///
/// Links go first: a program that is still attached would otherwise go on with maps nobody can
/// reach.
pub(crate) fn remove_all(directory: &Path) -> io::Result<usize> {
    let versions = match fs::read_dir(directory) {
        Ok(versions) => versions,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    if !is_bpffs(directory)? {
        return Err(io::Error::other(format!(
            "{} is not on a bpffs",
            directory.display()
        )));
    }
    let mut removed = 0;
    for version in versions {
        let version = version?.path();
        let held = File::open(&version)?;
        if flock(&held, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                Refusal::InUse(version).to_string(),
            ));
        }
        let pins: Result<Vec<_>, _> = fs::read_dir(&version)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect();
        let (links, maps): (Vec<_>, Vec<_>) = pins?.into_iter().partition(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(LINK))
        });
        for pin in links.iter().chain(&maps) {
            fs::remove_file(pin)?;
            removed += 1;
        }
        fs::remove_dir(&version)?;
    }
    fs::remove_dir(directory)?;
    Ok(removed)
}

/// Makes a directory that is ours alone, or makes one that is there so.
fn make(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("it belongs to user {}", metadata.uid()),
        ));
    }
    if metadata.mode() & 0o777 != 0o700 {
        fs::set_permissions(path, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

fn unusable(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be used: {error}", path.display())
}
