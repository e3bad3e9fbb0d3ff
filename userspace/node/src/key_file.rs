//! A node's key on disk: PKCS #8 in PEM, as `openssl genpkey -algorithm ed25519` writes it, for its
//! owner alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::TryRng as _;
use rand::rngs::SysRng;
use towpath_proto::identity::{KEY_BYTES, SecretKey};

/// What comes before the seed in PKCS #8 (RFC 8410 §7).
const PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
/// No key file is longer.
const MAX_BYTES: u64 = 4096;
/// Permissions that nobody but the owner may have.
const OTHERS: u32 = 0o077;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("cannot read the key {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write the key {}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Others may read the file, or change it.
    #[error("others have access to the key {} (mode {mode:04o}): make another, or `chmod 600` it where nobody has", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// There is something else in the file.
    #[error("{} is no Ed25519 key in PEM", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The system has no randomness to make a key of.
    #[error("cannot make a key: the system gives no random bytes")]
    NoRandomness,
}

/// Reads a key. Refuses one that others could have read.
pub fn read(path: &Path) -> Result<SecretKey, KeyFileError> {
    let failed = |error| KeyFileError::Read {
        path: path.to_owned(),
        error,
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(KeyFileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = String::new();
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    decode(&text).ok_or_else(|| KeyFileError::NoKey {
        path: path.to_owned(),
    })
}

/// Reads a key, or makes one where there is no file; true where it was made. Of two that do so at a
/// time, both get the same key.
pub fn read_or_create(path: &Path) -> Result<(SecretKey, bool), KeyFileError> {
    match read(path) {
        Err(KeyFileError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other.map(|key| (key, false)),
    }
    let mut seed = [0; KEY_BYTES];
    SysRng
        .try_fill_bytes(&mut seed)
        .map_err(|_| KeyFileError::NoRandomness)?;
    let key = SecretKey::from_seed(seed);
    match write_new(path, &encode(&key)) {
        Ok(()) => Ok((key, true)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok((read(path)?, false)),
        Err(error) => Err(KeyFileError::Write {
            path: path.to_owned(),
            error,
        }),
    }
}

/// Puts a file in its place as a whole, unless there is one.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let name = name.to_string_lossy();
    let temporary = directory.join(format!(".{name}.{:016x}", rand::random::<u64>()));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        // A rename would replace what somebody else has put there meanwhile.
        .and_then(|()| fs::hard_link(&temporary, path));
    // The error that counts is the one above.
    let _ = fs::remove_file(&temporary);
    written?;
    File::open(directory)?.sync_all()
}

fn encode(key: &SecretKey) -> String {
    let der = [PREFIX.as_slice(), key.seed()].concat();
    format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(der))
}

fn decode(text: &str) -> Option<SecretKey> {
    let body = text.trim().strip_prefix(BEGIN)?.strip_suffix(END)?;
    let body: String = body.split_ascii_whitespace().collect();
    let der = STANDARD.decode(body).ok()?;
    let seed: [u8; KEY_BYTES] = der.strip_prefix(&PREFIX)?.try_into().ok()?;
    Some(SecretKey::from_seed(seed))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A directory of one test's own, gone afterwards.
    struct Directory(PathBuf);

    impl Directory {
        fn new() -> Self {
            let name = format!("towpath-key-{:016x}", rand::random::<u64>());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        let directory = Directory::new();
        let path = directory.0.join("node.key");
        let (made, new) = read_or_create(&path).unwrap();
        assert!(new);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let (kept, new) = read_or_create(&path).unwrap();
        assert!(!new);
        assert_eq!(made.seed(), kept.seed());
        assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_could_read_is_refused() {
        let directory = Directory::new();
        let path = directory.0.join("node.key");
        read_or_create(&path).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = read_or_create(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::Exposed { mode: found, .. } if found == mode));
        }
    }

    #[test]
    fn what_is_there_is_never_replaced() {
        let directory = Directory::new();
        let path = directory.0.join("node.key");
        fs::write(&path, "not a key").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let error = read_or_create(&path).unwrap_err();
        assert!(matches!(error, KeyFileError::NoKey { .. }));
        assert_eq!(fs::read(&path).unwrap(), b"not a key");
        assert!(write_new(&path, "x").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"not a key");
    }

    /// `openssl genpkey -algorithm ed25519` wrote it.
    #[test]
    fn keys_of_openssl_are_read() {
        let pem = "-----BEGIN PRIVATE KEY-----\n\
            MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
            -----END PRIVATE KEY-----\n";
        let key = decode(pem).unwrap();
        assert_eq!(key.seed()[..4], [0xd4, 0xee, 0x72, 0xdb]);
        assert_eq!(encode(&key), pem);
    }
}
