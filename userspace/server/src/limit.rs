//! What a peer is limited to, as operators write and read it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use towpath_proto::common::meter;
use towpath_proto::common::rate::LimitWord;
use towpath_proto::slots::PeerSlot;

use crate::units::{Rate, Size};

/// The lowest rate that can be set.
pub const MIN_RATE: u64 = LimitWord::MIN_BITS_PER_SECOND;
/// The highest rate that can be set; above it there is "unlimited".
pub const MAX_RATE: u64 = LimitWord::MAX_BITS_PER_SECOND;
/// The smallest burst: one packet of the common MTU always fits.
pub const MIN_BURST: u64 = LimitWord::MIN_BURST_BYTES;
/// The largest burst.
pub const MAX_BURST: u64 = 1 << 30;
const _: () = assert!(MAX_BURST <= LimitWord::MAX_BURST_BYTES);
/// The burst without one in the configuration.
pub const DEFAULT_BURST: Size = Size(256 << 10);

/// A limit for both directions of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Limit {
    /// From the client to its peers.
    pub up: Rate,
    /// From peers to the client.
    pub down: Rate,
    /// Bytes that may pass at once, in each direction.
    pub burst: Size,
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            up: Rate::Unlimited,
            down: Rate::Unlimited,
            burst: DEFAULT_BURST,
        }
    }
}

/// A limit in which what is not said stays as it is elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitChange {
    /// From the client to its peers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up: Option<Rate>,
    /// From peers to the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub down: Option<Rate>,
    /// Bytes that may pass at once, in each direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<Size>,
    /// Whose traffic goes first when the global limit is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
}

impl LimitChange {
    /// `limit` with what this says.
    pub fn over(self, limit: Limit) -> Limit {
        Limit {
            up: self.up.unwrap_or(limit.up),
            down: self.down.unwrap_or(limit.down),
            burst: self.burst.unwrap_or(limit.burst),
        }
    }

    /// This with what `newer` says.
    pub fn with(self, newer: Self) -> Self {
        Self {
            up: newer.up.or(self.up),
            down: newer.down.or(self.down),
            burst: newer.burst.or(self.burst),
            class: newer.class.or(self.class),
        }
    }

    /// Whether every value can be set.
    pub fn check(self) -> Result<(), LimitRule> {
        [self.up, self.down]
            .into_iter()
            .flatten()
            .try_for_each(check_rate)?;
        self.burst.map_or(Ok(()), check_burst)
    }
}

/// A rule that a limit breaks.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum LimitRule {
    /// Beyond the rates that can be counted.
    #[error(
        "the rate {0} is not between {min} and {max}; \"unlimited\" is no limit",
        min = Rate::BitsPerSecond(MIN_RATE),
        max = Rate::BitsPerSecond(MAX_RATE)
    )]
    Rate(Rate),
    /// Beyond the bursts that can be counted.
    #[error("the burst {0} is not between {min} and {max}", min = Size(MIN_BURST), max = Size(MAX_BURST))]
    Burst(Size),
}

/// Whether a rate can be set.
pub fn check_rate(rate: Rate) -> Result<(), LimitRule> {
    match rate {
        Rate::BitsPerSecond(bits) if !(MIN_RATE..=MAX_RATE).contains(&bits) => {
            Err(LimitRule::Rate(rate))
        }
        Rate::Unlimited | Rate::BitsPerSecond(_) => Ok(()),
    }
}

/// Whether a burst can be set.
pub fn check_burst(burst: Size) -> Result<(), LimitRule> {
    if (MIN_BURST..=MAX_BURST).contains(&burst.0) {
        Ok(())
    } else {
        Err(LimitRule::Burst(burst))
    }
}

/// Whose traffic goes first when the global limit is reached.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// What keeps the rest going: small, and wanted first.
    Control,
    /// Calls and whatever people wait for.
    #[default]
    Interactive,
    /// What can take its time.
    Bulk,
}

impl Class {
    /// Every class, the first first.
    pub const ALL: [Self; 3] = [Self::Control, Self::Interactive, Self::Bulk];

    /// Its name in configuration, metrics and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
        }
    }
}

impl Class {
    /// The slot that all its users are charged to.
    pub const fn slot(self) -> PeerSlot {
        let class = match self {
            Self::Control => meter::Class::Control,
            Self::Interactive => meter::Class::Interactive,
            Self::Bulk => meter::Class::Bulk,
        };
        PeerSlot(class.slot())
    }
}

impl From<meter::Class> for Class {
    fn from(class: meter::Class) -> Self {
        match class {
            meter::Class::Control => Self::Control,
            meter::Class::Interactive => Self::Interactive,
            meter::Class::Bulk => Self::Bulk,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Not the name of a class.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("{0:?} is none of \"control\", \"interactive\", \"bulk\"")]
pub struct NoClass(pub String);

impl FromStr for Class {
    type Err = NoClass;

    fn from_str(text: &str) -> Result<Self, NoClass> {
        Self::ALL
            .into_iter()
            .find(|class| class.name() == text)
            .ok_or_else(|| NoClass(text.to_owned()))
    }
}

/// How the global limit is shared between the classes when it is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClassWeights {
    /// Of [`Class::Control`].
    pub control: u32,
    /// Of [`Class::Interactive`].
    pub interactive: u32,
    /// Of [`Class::Bulk`].
    pub bulk: u32,
}

impl ClassWeights {
    /// The largest weight.
    pub const MAX: u32 = 1000;

    /// The weight of a class.
    pub const fn of(self, class: Class) -> u32 {
        match class {
            Class::Control => self.control,
            Class::Interactive => self.interactive,
            Class::Bulk => self.bulk,
        }
    }
}

impl Default for ClassWeights {
    fn default() -> Self {
        Self {
            control: 4,
            interactive: 2,
            bulk: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_change_does_not_say_stays() {
        let change = LimitChange {
            up: Some(Rate::BitsPerSecond(64_000)),
            ..LimitChange::default()
        };
        let limit = change.over(Limit::default());
        assert_eq!(limit.up, Rate::BitsPerSecond(64_000));
        assert_eq!((limit.down, limit.burst), (Rate::Unlimited, DEFAULT_BURST));
        let newer = LimitChange {
            class: Some(Class::Bulk),
            ..LimitChange::default()
        };
        assert_eq!(change.with(newer).up, change.up);
        assert_eq!(change.with(newer).class, Some(Class::Bulk));
    }

    #[test]
    fn values_that_cannot_be_counted_are_named_with_the_rule() {
        let shown = |change: LimitChange| change.check().unwrap_err().to_string();
        let rate = |bits| LimitChange {
            down: Some(Rate::BitsPerSecond(bits)),
            ..LimitChange::default()
        };
        assert!(shown(rate(63_999)).contains("63.999kbit is not between 64kbit and 400Gbit"));
        assert!(shown(rate(MAX_RATE + 1)).contains("\"unlimited\" is no limit"));
        let burst = LimitChange {
            burst: Some(Size(1499)),
            ..LimitChange::default()
        };
        assert!(shown(burst).contains("1.499kB is not between 1.5kB and 1GiB"));
        assert_eq!(rate(MIN_RATE).check(), Ok(()));
    }
}
