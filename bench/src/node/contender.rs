//! Who is compared: the two libraries, each in the two manners in which an application may use it.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::ValueEnum;

/// A library and the manner of its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Contender {
    /// Towpath, with the application on the shard's thread.
    Towpath,
    /// Towpath, with the application on a thread of its own.
    TowpathThread,
    /// quinn, endpoint and application on one thread (a `current_thread` runtime of tokio).
    Quinn,
    /// quinn on a `multi_thread` runtime of tokio.
    QuinnMulti,
}

impl Contender {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Towpath,
        Self::Quinn,
        Self::TowpathThread,
        Self::QuinnMulti,
    ];

    /// Whether it is a manner of Towpath's.
    pub fn is_towpath(self) -> bool {
        match self {
            Self::Towpath | Self::TowpathThread => true,
            Self::Quinn | Self::QuinnMulti => false,
        }
    }

    /// What it is, in words.
    pub fn description(self) -> &'static str {
        match self {
            Self::Towpath => "Towpath, one shard, application on the shard's thread",
            Self::TowpathThread => "Towpath, one shard, application on a thread of its own",
            Self::Quinn => "quinn, tokio current_thread, endpoint and application on one thread",
            Self::QuinnMulti => "quinn, tokio multi_thread",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Towpath => "towpath",
            Self::TowpathThread => "towpath-thread",
            Self::Quinn => "quinn",
            Self::QuinnMulti => "quinn-multi",
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Contender {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|one| one.name() == text) {
            Some(contender) => Ok(contender),
            None => bail!("there is no contender {text:?}"),
        }
    }
}

/// The version of quinn that this was built with.
pub fn quinn_version() -> &'static str {
    let lock = include_str!("../../../Cargo.lock");
    let after = lock.split_once("name = \"quinn\"\nversion = \"");
    let version = after.and_then(|(_, rest)| rest.split_once('"'));
    version.map_or("unknown", |(version, _)| version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for contender in Contender::ALL {
            assert_eq!(
                contender.to_string().parse::<Contender>().expect("a name"),
                contender
            );
            let of_clap = contender.to_possible_value().expect("a value");
            assert_eq!(of_clap.get_name(), contender.to_string());
        }
        assert!("quin".parse::<Contender>().is_err());
    }

    #[test]
    fn the_version_of_quinn_is_found() {
        assert!(quinn_version().starts_with("0.11."));
    }
}
