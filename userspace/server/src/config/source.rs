//! Where a server's configuration comes from, so that it can be read again.

use std::path::PathBuf;

use super::{Config, KernelMode, ReadError};

/// A file or none, the `TOWPATH__*` variables of this process above it, and the command line above both.
#[derive(Clone, Debug, Default)]
pub struct ConfigSource {
    /// The file; without one, the embedded default.
    pub file: Option<PathBuf>,
    /// How far up the ladder the kernel path goes, where the command line says it.
    pub kernel_mode: Option<KernelMode>,
}

impl ConfigSource {
    /// Reads all of it and checks it.
    pub fn load(&self) -> Result<Config, ReadError> {
        let mut config = Config::load(self.file.as_deref(), std::env::vars_os())?;
        if let Some(mode) = self.kernel_mode {
            config.kernel.mode = mode;
        }
        Ok(config)
    }
}
