//! A user that is made up for a server without any, so that it can be tried at once.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use towpath_proto::relay::Credential;

use crate::config;
use crate::directories::{self, Directories};

/// Letters and digits that cannot be mistaken for each other.
const ALPHABET: &[u8; 55] = b"abcdefghjkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
/// 20 of 55 characters: 115 bits.
const PASSWORD_CHARACTERS: usize = 20;

/// A user that nobody chose. Its file is readable by the server's user alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratedUser {
    /// The name.
    pub name: String,
    /// The password.
    pub password: String,
}

/// Where a generated user can be read by those who may read the state.
#[derive(Debug)]
pub enum Kept {
    /// In this file.
    File(PathBuf),
    /// Nowhere.
    Nowhere {
        /// Where it should have been.
        path: PathBuf,
        /// Why it is not.
        error: io::Error,
    },
}

impl GeneratedUser {
    /// A new one.
    pub fn new() -> Self {
        Self {
            name: format!("guest-{:04x}", rand::random::<u16>()),
            password: random_password(),
        }
    }

    /// What the last server that made up a user left for its own user to read.
    pub fn read(directories: &Directories) -> io::Result<Self> {
        let text = fs::read_to_string(Self::path(directories))?;
        toml::from_str(&text).map_err(io::Error::other)
    }

    pub(crate) fn credential(&self, realm: &str) -> Credential {
        config::credential(&self.name, realm, &self.password)
            .expect("a generated user obeys every rule, and the realm was checked")
    }

    /// Leaves it for [`GeneratedUser::read`].
    pub(crate) fn keep(&self, directories: &Directories) -> Kept {
        let path = Self::path(directories);
        let text = format!(
            "name = \"{}\"\npassword = \"{}\"\n",
            self.name, self.password
        );
        let written = directories::create(&directories.state, 0o700)
            .and_then(|()| directories::replace_file(&path, text.as_bytes(), 0o600));
        match written {
            Ok(()) => Kept::File(path),
            Err(error) => Kept::Nowhere { path, error },
        }
    }

    fn path(directories: &Directories) -> PathBuf {
        directories.state.join("generated-user.toml")
    }
}

impl Default for GeneratedUser {
    fn default() -> Self {
        Self::new()
    }
}

/// Shows the name, never the password.
impl fmt::Debug for GeneratedUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GeneratedUser")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Kept {
    /// The file.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Nowhere { .. } => None,
        }
    }

    pub(crate) fn remove(self) {
        if let Self::File(path) = self {
            // A user that is no more opens nothing.
            let _ = fs::remove_file(path);
        }
    }
}

/// A password that no one could guess.
pub fn random_password() -> String {
    (0..PASSWORD_CHARACTERS)
        .map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_user_is_read_as_it_was_kept() {
        let path = std::env::temp_dir().join(format!(
            "towpath-test-generated-{:016x}",
            rand::random::<u64>()
        ));
        let directories = Directories {
            state: path.clone(),
            runtime: path.clone(),
        };
        let user = GeneratedUser::new();
        let kept = user.keep(&directories);
        assert!(kept.file().is_some());
        assert!(GeneratedUser::read(&directories).unwrap() == user);
        kept.remove();
        assert_eq!(
            GeneratedUser::read(&directories).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert!(!format!("{user:?}").contains(&user.password));
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn passwords_differ() {
        assert_ne!(random_password(), random_password());
        assert_eq!(random_password().len(), PASSWORD_CHARACTERS);
    }
}
