//! The pinned maps of a daemon, for a process beside it: limits and counters, also while it is down.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::MapData;
use towpath_ebpf_common::route::map;

use crate::config::{KernelConfig, Mode};
use crate::layout::{Layout, Shape};
use crate::map::Table;
use crate::pin_directory::versioned;
use crate::reasons::Reasons;
use crate::refusal::chain;
use crate::settings::SettingsMap;
use crate::slots::MappedSlots;

/// Pinned maps, opened.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    slots: Arc<MappedSlots>,
    settings: Arc<SettingsMap>,
    reasons: Reasons,
}

/// Why they cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// There are none of this version's layout.
    #[error(
        "there are no pinned maps in {0}: no daemon has run with the kernel path since the last boot"
    )]
    Missing(PathBuf),
    /// This process may not use them.
    #[error("the pinned maps in {path} may be opened by their owner only: {error}")]
    Forbidden {
        /// Where they are.
        path: PathBuf,
        /// What the kernel says.
        error: String,
    },
    /// A map is not what this version makes.
    #[error("the pinned map {path} is {found}, not {expected}")]
    Layout {
        /// Which.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The kernel refused.
    #[error("the pinned map {path} cannot be opened: {error}")]
    Refused {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        error: String,
    },
}

impl Pins {
    /// Opens the maps pinned under `directory`, which is the configuration's, without the version.
    ///
    /// # Errors
    ///
    /// Where they are not there, not ours, or of another shape.
    pub fn open(directory: &Path) -> Result<Self, PinError> {
        let directory = versioned(directory);
        match std::fs::read_dir(&directory) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(PinError::Forbidden {
                    path: directory,
                    error: error.to_string(),
                });
            }
            Err(_) => return Err(PinError::Missing(directory)),
        }
        let (limits, slots) = open_map(&directory, map::LIMITS, None)?;
        let (meters, _) = open_map(&directory, map::METERS, Some(slots))?;
        let (identities, _) = open_map(&directory, map::IDENTITIES, None)?;
        let (settings, _) = open_map(&directory, map::SETTINGS, None)?;
        let (reasons, _) = open_map(&directory, map::REASONS, None)?;
        let refused = |name: &str, error: io::Error| PinError::Refused {
            path: directory.join(name),
            error: error.to_string(),
        };
        let settings = SettingsMap::new(settings).map_err(|error| refused(map::SETTINGS, error))?;
        let settings = Arc::new(settings);
        let identities = Table::new(identities);
        let slots = MappedSlots::new(limits, meters, identities, Arc::clone(&settings), slots)
            .map_err(|error| refused(map::LIMITS, error))?;
        Ok(Self {
            slots: Arc::new(slots),
            settings,
            reasons: Reasons::new(Table::new(reasons))
                .map_err(|error| refused(map::REASONS, error))?,
            directory,
        })
    }

    /// Where they are, version included.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The peers' slots.
    pub fn slots(&self) -> Arc<MappedSlots> {
        Arc::clone(&self.slots)
    }

    /// What the program is told.
    pub fn settings(&self) -> &SettingsMap {
        &self.settings
    }

    /// What the program decided.
    pub fn reasons(&self) -> &Reasons {
        &self.reasons
    }
}

/// Opens a map and compares it with this version's layout. The number of entries is the daemon's
/// choice, where `entries` names none.
fn open_map(
    directory: &Path,
    name: &'static str,
    entries: Option<u32>,
) -> Result<(OwnedFd, u32), PinError> {
    let path = directory.join(name);
    if !path.exists() {
        return Err(PinError::Missing(path));
    }
    let refused = |error: String| PinError::Refused {
        path: path.clone(),
        error,
    };
    let data = MapData::from_pin(&path).map_err(|error| refused(chain(&error)))?;
    let found = Shape::of(&data).map_err(|error| refused(chain(&error)))?;
    let layout = Layout::new(&KernelConfig::new(Mode::Auto, Vec::new()));
    let own = layout.shape(name).expect("it is a map of the layout");
    let sized = matches!(name, map::LIMITS | map::METERS | map::IDENTITIES);
    let expected = Shape {
        entries: entries.unwrap_or(if sized { found.entries } else { own.entries }),
        ..own
    };
    if found != expected {
        return Err(PinError::Layout {
            found: found.to_string(),
            expected: expected.to_string(),
            path,
        });
    }
    let fd = data.fd().as_fd().try_clone_to_owned();
    Ok((
        fd.map_err(|error| refused(error.to_string()))?,
        found.entries,
    ))
}
