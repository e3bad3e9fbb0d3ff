//! Limits from outside: by way of the running server, or in the pinned maps where none runs.

use std::path::Path;
use std::sync::Arc;

use towpath_kernel::{MappedSlots, PinError, Pins};

use super::kept::{KeptError, KeptFile};
use super::table::{LimitTable, SetError};
use super::{Change, Changed, LimitsView, SlotView, Target};
use crate::clock;
use crate::control::socket::{ControlClient, ControlError};
use crate::directories::Directories;
use crate::limit::{DEFAULT_BURST, Limit};

/// A way to the limits in force.
#[derive(Debug)]
pub struct LimitAccess(Way);

#[derive(Debug)]
enum Way {
    Server(ControlClient),
    Maps(Arc<MappedSlots>, KeptFile),
}

/// Why limits cannot be read or changed.
#[derive(thiserror::Error, Debug)]
pub enum AccessError {
    /// The server did not answer, or refused.
    #[error(transparent)]
    Server(#[from] ControlError),
    /// There is neither a server nor maps.
    #[error("{server}, and {maps}")]
    Nothing {
        /// Why there is no server.
        server: ControlError,
        /// Why there are no maps.
        maps: PinError,
    },
    /// It cannot be set.
    #[error(transparent)]
    Set(#[from] SetError),
}

impl LimitAccess {
    /// By way of the server of `directories`, or by the maps pinned under `pins` where none runs.
    pub fn open(directories: &Directories, pins: &Path) -> Result<Self, AccessError> {
        let client = ControlClient::new(directories.control_socket());
        let server = match client.limits(0) {
            Ok(_) => return Ok(Self(Way::Server(client))),
            Err(error @ ControlError::NoServer { .. }) => error,
            Err(error) => return Err(error.into()),
        };
        match Pins::open(pins) {
            Ok(pins) => {
                let file = KeptFile::new(&directories.state);
                Ok(Self(Way::Maps(pins.slots(), file)))
            }
            Err(maps) => Err(AccessError::Nothing { server, maps }),
        }
    }

    /// Whether a server runs.
    pub fn is_running(&self) -> bool {
        matches!(self.0, Way::Server(_))
    }

    /// What is limited and counted, with at most `peers` peers.
    pub fn view(&self, peers: usize) -> Result<LimitsView, AccessError> {
        match &self.0 {
            Way::Server(server) => Ok(server.limits(peers)?),
            Way::Maps(slots, _) => Ok(table(slots).view(clock::now(), false, peers)),
        }
    }

    /// The slots that this names.
    pub fn find(&self, target: &Target) -> Result<Vec<SlotView>, AccessError> {
        match &self.0 {
            Way::Server(server) => Ok(server.find_limits(target)?),
            Way::Maps(slots, _) => Ok(table(slots).find(target)),
        }
    }

    /// Sets or unsets a limit.
    pub fn change(&self, change: &Change) -> Result<Changed, AccessError> {
        match &self.0 {
            Way::Server(server) => Ok(server.change_limits(change)?),
            Way::Maps(slots, file) => change_in_maps(slots, file, change),
        }
    }
}

fn table(slots: &MappedSlots) -> LimitTable<'_> {
    LimitTable::of_maps(slots, DEFAULT_BURST)
}

/// Sets a limit where no server runs. What the next one would find in its file changes with it.
fn change_in_maps(
    slots: &MappedSlots,
    file: &KeptFile,
    change: &Change,
) -> Result<Changed, AccessError> {
    let table = table(slots);
    let target = table.resolved(&change.target)?;
    match change.set {
        Some(set) => table.set(clock::now(), &target, set, true)?,
        None => table.unset(&target, Limit::default())?,
    }
    let kept = (|| -> Result<bool, KeptError> {
        let Some(mut kept) = file.read()? else {
            return Ok(false);
        };
        kept.put(&target, "", change.set);
        file.write(&kept)?;
        Ok(true)
    })();
    Ok(Changed {
        slot: table.find(&target).into_iter().next(),
        global: table.global(),
        kept: kept.as_ref().is_ok_and(|kept| *kept),
        trouble: kept.err().map(|error| error.to_string()),
    })
}
