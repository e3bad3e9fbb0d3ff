//! Limits set by hand that outlive a restart: one JSON file in the state directory, replaced as a
//! whole, readable by its owner alone.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Target;
use crate::directories;
use crate::limit::{Class, LimitChange};
use crate::units::Rate;

/// The file's name in the state directory.
const FILE: &str = "limits.json";
/// The version of its form.
const VERSION: u32 = 1;
/// The longest file that is read.
const MAX_BYTES: u64 = 256 << 20;

/// What is kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeptLimits {
    version: u32,
    /// Of users without a limit of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) default: Option<LimitChange>,
    /// Of all users together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) global: Option<Rate>,
    /// Of the classes.
    #[serde(default)]
    pub(crate) classes: BTreeMap<Class, LimitChange>,
    /// Of users, by realm and name.
    #[serde(default)]
    pub(crate) users: BTreeMap<String, BTreeMap<String, LimitChange>>,
}

impl Default for KeptLimits {
    fn default() -> Self {
        Self {
            version: VERSION,
            default: None,
            global: None,
            classes: BTreeMap::new(),
            users: BTreeMap::new(),
        }
    }
}

impl KeptLimits {
    /// What is kept for `target`.
    pub(crate) fn get(&self, target: &Target, realm: &str) -> Option<LimitChange> {
        match target {
            Target::User { realm: own, name } => {
                let realm = own.as_deref().unwrap_or(realm);
                self.users.get(realm)?.get(name).copied()
            }
            Target::Class(class) => self.classes.get(class).copied(),
            Target::Default => self.default,
            Target::Global => Some(LimitChange {
                up: Some(self.global?),
                ..LimitChange::default()
            }),
        }
    }

    /// Keeps `change` on top of what is kept for `target`; `None` forgets it.
    pub(crate) fn put(&mut self, target: &Target, realm: &str, change: Option<LimitChange>) {
        let merged = |old: Option<LimitChange>| change.map(|new| old.unwrap_or_default().with(new));
        let merged = merged(self.get(target, realm));
        match target {
            Target::User { realm: own, name } => {
                let realm = own.as_deref().unwrap_or(realm).to_owned();
                let users = self.users.entry(realm.clone()).or_default();
                match merged {
                    Some(merged) => drop(users.insert(name.clone(), merged)),
                    None => drop(users.remove(name)),
                }
                if users.is_empty() {
                    self.users.remove(&realm);
                }
            }
            Target::Class(class) => match merged {
                Some(merged) => drop(self.classes.insert(*class, merged)),
                None => drop(self.classes.remove(class)),
            },
            Target::Default => self.default = merged,
            Target::Global => self.global = merged.and_then(|merged| merged.up),
        }
    }

    /// Everything that is kept.
    pub(crate) fn entries(&self) -> Vec<(Target, LimitChange)> {
        let fixed = [Target::Default, Target::Global]
            .into_iter()
            .filter_map(|target| Some((target.clone(), self.get(&target, "")?)));
        let classes = self
            .classes
            .iter()
            .map(|(class, change)| (Target::Class(*class), *change));
        let users = self.users.iter().flat_map(|(realm, users)| {
            users.iter().map(|(name, change)| {
                let target = Target::User {
                    realm: Some(realm.clone()),
                    name: name.clone(),
                };
                (target, *change)
            })
        });
        fixed.chain(classes).chain(users).collect()
    }
}

/// The file.
#[derive(Clone, Debug)]
pub(crate) struct KeptFile {
    path: PathBuf,
}

/// Why the file could not be read or written.
#[derive(thiserror::Error, Debug, Clone)]
pub enum KeptError {
    /// It could not be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: Arc<io::Error>,
    },
    /// It holds no limits.
    #[error("{} holds no limits: {reason}; mend it or remove it", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It could not be written.
    #[error("cannot write {}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: Arc<io::Error>,
    },
}

impl KeptFile {
    /// The file in a state directory.
    pub(crate) fn new(state: &Path) -> Self {
        Self {
            path: state.join(FILE),
        }
    }

    /// What is kept; `None` where there is no file.
    pub(crate) fn read(&self) -> Result<Option<KeptLimits>, KeptError> {
        let failed = |error: io::Error| KeptError::Read {
            path: self.path.clone(),
            error: error.into(),
        };
        let broken = |reason: String| KeptError::Broken {
            path: self.path.clone(),
            reason,
        };
        let file = match fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut text = Vec::new();
        file.take(MAX_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(failed)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(broken(format!("it is longer than {MAX_BYTES} bytes")));
        }
        let kept: KeptLimits =
            serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
        if kept.version != VERSION {
            let version = kept.version;
            return Err(broken(format!("its version is {version}, not {VERSION}")));
        }
        for (target, change) in kept.entries() {
            change
                .check()
                .map_err(|rule| broken(format!("{target}: {rule}")))?;
        }
        Ok(Some(kept))
    }

    /// Replaces the file.
    pub(crate) fn write(&self, kept: &KeptLimits) -> Result<(), KeptError> {
        let failed = |error: io::Error| KeptError::Write {
            path: self.path.clone(),
            error: error.into(),
        };
        let mut text = serde_json::to_vec_pretty(kept).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        if let Some(directory) = self.path.parent() {
            directories::create(directory, 0o700).map_err(failed)?;
        }
        directories::replace_file(&self.path, &text, 0o600).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn scratch() -> PathBuf {
        std::env::temp_dir().join(format!("towpath-test-kept-{:016x}", rand::random::<u64>()))
    }

    fn up(bits: u64) -> LimitChange {
        LimitChange {
            up: Some(Rate::BitsPerSecond(bits)),
            ..LimitChange::default()
        }
    }

    fn user(name: &str) -> Target {
        Target::parse(name, None).unwrap()
    }

    #[test]
    fn what_is_kept_is_read_back_and_only_its_owner_reads_it() {
        let directory = scratch();
        let file = KeptFile::new(&directory);
        assert_eq!(file.read().unwrap(), None);
        let mut kept = KeptLimits::default();
        kept.put(&user("alice"), "a.test", Some(up(64_000)));
        let class = LimitChange {
            class: Some(Class::Bulk),
            ..LimitChange::default()
        };
        kept.put(&user("alice"), "a.test", Some(class));
        kept.put(&user("b.test/bob"), "a.test", Some(up(70_000)));
        kept.put(&Target::Global, "a.test", Some(up(1_000_000)));
        kept.put(&Target::Class(Class::Bulk), "", Some(up(2_000_000)));
        file.write(&kept).unwrap();
        let read = file.read().unwrap().unwrap();
        assert_eq!(read, kept);
        assert_eq!(fs::metadata(&file.path).unwrap().mode() & 0o777, 0o600);
        let alice = read.get(&user("a.test/alice"), "x").unwrap();
        assert_eq!((alice.up, alice.class), (up(64_000).up, Some(Class::Bulk)));
        assert_eq!(read.entries().len(), 4);
        let mut less = read;
        less.put(&user("bob"), "b.test", None);
        assert_eq!(less.entries().len(), 3);
        assert!(!less.users.contains_key("b.test"));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_that_holds_no_limits_is_named_and_stays() {
        let directory = scratch();
        directories::create(&directory, 0o700).unwrap();
        let file = KeptFile::new(&directory);
        for text in [
            "",
            "{",
            "{\"version\": 2}",
            "{\"version\": 1, \"users\": {\"a\": {\"b\": {\"up\": \"1kbit\"}}}}",
            "{\"version\": 1, \"users\": {\"a\": {\"b\": {\"up\": \"fast\"}}}}",
        ] {
            fs::write(&file.path, text).unwrap();
            let error = file.read().unwrap_err().to_string();
            assert!(error.contains("limits.json holds no limits"), "{error}");
            assert_eq!(fs::read_to_string(&file.path).unwrap(), text);
        }
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_the_old_one() {
        // A directory in its place stands for everything that makes a rename fail.
        let directory = scratch();
        let file = KeptFile::new(&directory);
        fs::create_dir_all(&file.path).unwrap();
        let error = file.write(&KeptLimits::default()).unwrap_err();
        assert!(error.to_string().contains("cannot write"), "{error}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(directory).unwrap();
    }
}
