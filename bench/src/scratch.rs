//! Directories that are gone with the run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const PREFIX: &str = "tp-bench-";
const BPF_FILE_SYSTEM: &str = "/sys/fs/bpf";

/// A directory of this process that is removed with all that is in it.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A directory for files of the servers.
    pub fn for_files() -> Result<Self> {
        let root = std::env::temp_dir();
        remove_leftovers(&root)?;
        let path = root.join(own_name());
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self(path))
    }

    /// A directory that a server may make to pin its maps in.
    pub fn for_pins() -> Result<Self> {
        let root = Path::new(BPF_FILE_SYSTEM);
        remove_leftovers(root)?;
        Ok(Self(root.join(own_name())))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Removes directories of processes that were killed.
fn remove_leftovers(root: &Path) -> Result<()> {
    let context = || format!("listing {}", root.display());
    for entry in fs::read_dir(root).with_context(context)? {
        let entry = entry.with_context(context)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            drop(Scratch(entry.path()));
        }
    }
    Ok(())
}

fn own_name() -> String {
    format!("{PREFIX}{}", std::process::id())
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                eprintln!("could not remove {}: {error}", self.0.display());
            }
            _ => {}
        }
    }
}
