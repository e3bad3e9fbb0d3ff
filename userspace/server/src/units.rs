//! Rates and sizes as people write them: `20Mbit`, `64 kbit/s`, `256KiB`, `unlimited`. One reader and
//! one printer for the configuration, the command line and the state file; what is printed reads
//! back as the same value.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The word for no limit.
const UNLIMITED: &str = "unlimited";

/// Bits per second, or no limit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rate {
    /// No limit.
    Unlimited,
    /// This many bits per second, header bytes included.
    BitsPerSecond(u64),
}

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Size(pub u64);

/// Why a text is no rate or size.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum UnitError {
    /// Not a number with a unit of rates.
    #[error("{0:?} is no rate, such as \"20Mbit\", \"64 kbit/s\", \"2.5 MB/s\" or \"unlimited\"")]
    NotRate(String),
    /// A unit that some read as bits and some as bytes.
    #[error("{text:?}: {unit:?} can mean bits or bytes; write \"{bits}\" or \"{bytes}\"")]
    Ambiguous {
        /// The text.
        text: String,
        /// Its unit.
        unit: String,
        /// The unit for bits.
        bits: String,
        /// The unit for bytes.
        bytes: String,
    },
    /// Not a number with a unit of sizes.
    #[error("{0:?} is no size, such as \"256KiB\", \"64kB\" or \"1500B\"")]
    NotSize(String),
    /// A part of a bit or of a byte.
    #[error("{text:?} is not a whole number of {what}")]
    Fraction {
        /// The text.
        text: String,
        /// Bits or bytes.
        what: &'static str,
    },
    /// Beyond what is counted.
    #[error("{0:?} is too large")]
    TooLarge(String),
}

impl Rate {
    /// The bits per second; `None` where there is no limit.
    pub fn bits_per_second(self) -> Option<u64> {
        match self {
            Self::Unlimited => None,
            Self::BitsPerSecond(rate) => Some(rate),
        }
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::NotRate(text.to_owned());
        if text.trim().eq_ignore_ascii_case(UNLIMITED) {
            return Ok(Self::Unlimited);
        }
        let (number, unit) = split(text).ok_or_else(wrong)?;
        let (prefix, base) = prefix(unit);
        let bits = match base {
            "bit" | "bit/s" | "bits" | "bits/s" => 1,
            "B/s" | "byte/s" | "bytes/s" => 8,
            "b/s" | "b" | "B" | "bps" | "Bps" => {
                let shown = unit.strip_suffix(base).unwrap_or_default();
                return Err(UnitError::Ambiguous {
                    text: text.to_owned(),
                    unit: unit.to_owned(),
                    bits: format!("{shown}bit"),
                    bytes: format!("{shown}B/s"),
                });
            }
            _ => return Err(wrong()),
        };
        let factor = prefix.ok_or_else(wrong)? * bits;
        Ok(Self::BitsPerSecond(number.times(factor, text, "bits")?))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.pad(UNLIMITED),
            Self::BitsPerSecond(rate) => f.pad(&decimal(*rate, "bit")),
        }
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::NotSize(text.to_owned());
        let (number, unit) = split(text).ok_or_else(wrong)?;
        let (prefix, base) = prefix(unit);
        if !matches!(base, "B" | "byte" | "bytes") {
            return Err(wrong());
        }
        let factor = prefix.ok_or_else(wrong)?;
        Ok(Self(number.times(factor, text, "bytes")?))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (factor, unit) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return f.pad(&format!("{}{unit}", self.0 / factor));
            }
        }
        f.pad(&decimal(self.0, "B"))
    }
}

/// The value with the largest prefix that needs at most three decimals.
fn decimal(value: u64, unit: &str) -> String {
    for (factor, prefix) in [
        (1_000_000_000_000, "T"),
        (1_000_000_000, "G"),
        (1_000_000, "M"),
        (1_000, "k"),
    ] {
        if value < factor || !value.is_multiple_of(factor / 1000) {
            continue;
        }
        let (whole, thousandths) = (value / factor, value % factor / (factor / 1000));
        let decimals = format!("{thousandths:03}");
        let decimals = decimals.trim_end_matches('0');
        let point = if decimals.is_empty() { "" } else { "." };
        return format!("{whole}{point}{decimals}{prefix}{unit}");
    }
    format!("{value}{unit}")
}

/// A decimal number: `digits` divided by ten to the power of `decimals`.
struct Number {
    digits: u128,
    decimals: u32,
}

impl Number {
    fn times(&self, factor: u64, text: &str, what: &'static str) -> Result<u64, UnitError> {
        let value = self.digits * u128::from(factor);
        let divisor = 10_u128.pow(self.decimals);
        if !value.is_multiple_of(divisor) {
            let text = text.to_owned();
            return Err(UnitError::Fraction { text, what });
        }
        u64::try_from(value / divisor).map_err(|_| UnitError::TooLarge(text.to_owned()))
    }
}

/// The most digits of a number.
const MAX_DIGITS: usize = 20;

/// The number at the start, and the unit behind it without blanks around it.
fn split(text: &str) -> Option<(Number, &str)> {
    let text = text.trim();
    let end = text
        .find(|char: char| !char.is_ascii_digit() && char != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = match number.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (number, ""),
    };
    if whole.is_empty() || whole.len() + fraction.len() > MAX_DIGITS || fraction.contains('.') {
        return None;
    }
    let number = Number {
        digits: format!("{whole}{fraction}").parse().ok()?,
        decimals: u32::try_from(fraction.len()).ok()?,
    };
    Some((number, unit.trim_start()))
}

/// The factor of a unit's prefix, `None` where it is none, and the unit without it.
fn prefix(unit: &str) -> (Option<u64>, &str) {
    const BASES: [&str; 12] = [
        "bits/s", "bytes/s", "byte/s", "bit/s", "bytes", "byte", "bits", "bit", "B/s", "b/s",
        "bps", "Bps",
    ];
    let base = BASES
        .into_iter()
        .chain(["B", "b"])
        .find(|base| unit.ends_with(base));
    let Some(base) = base else {
        return (None, unit);
    };
    let (prefix, base) = unit.split_at(unit.len() - base.len());
    let factor = match prefix.trim_end() {
        "" => Some(1),
        "k" | "K" => Some(1_000),
        "M" | "m" => Some(1_000_000),
        "G" | "g" => Some(1_000_000_000),
        "T" | "t" => Some(1_000_000_000_000),
        "Ki" | "ki" => Some(1 << 10),
        "Mi" | "mi" => Some(1 << 20),
        "Gi" | "gi" => Some(1 << 30),
        "Ti" | "ti" => Some(1 << 40),
        _ => None,
    };
    (factor, base)
}

macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

as_text!(Rate);
as_text!(Size);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_are_read_as_people_write_them() {
        for (text, bits) in [
            ("20Mbit", 20_000_000),
            ("64 kbit/s", 64_000),
            ("64kbits/s", 64_000),
            ("1.5Gbit", 1_500_000_000),
            ("2.5 MB/s", 20_000_000),
            ("1 MiB/s", 8 << 20),
            ("100mbit", 100_000_000),
            ("8000bit", 8_000),
            (" 1 Tbit ", 1_000_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Rate::BitsPerSecond(bits)), "{text}");
        }
        assert_eq!("Unlimited".parse(), Ok(Rate::Unlimited));
    }

    #[test]
    fn what_is_no_rate_is_named_with_the_rule() {
        let error = |text: &str| text.parse::<Rate>().unwrap_err().to_string();
        for text in [
            "", "20", "fast", "Mbit", "1.Mbit", "1..2Mbit", "-1Mbit", "1Xbit", "1e3bit",
        ] {
            assert!(error(text).contains("is no rate, such as"), "{text}");
        }
        assert_eq!(
            error("20 Mbps"),
            "\"20 Mbps\": \"Mbps\" can mean bits or bytes; write \"Mbit\" or \"MB/s\""
        );
        assert!(error("0.5bit").contains("whole number of bits"));
        assert!(error("99999999999999999999Tbit").contains("too large"));
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("256KiB", 256 << 10),
            ("64kB", 64_000),
            ("1500B", 1500),
            ("1.5 MiB", 3 << 19),
            ("2 bytes", 2),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "256", "256Kbit", "KiB", "unlimited", "2Bps"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn values_are_printed_with_the_unit_that_fits() {
        let rates = [64_000, 20_000_000, 1_500_000_000, 1_234_567, 999, 1_000_001];
        let shown: Vec<_> = rates
            .map(|rate| Rate::BitsPerSecond(rate).to_string())
            .into();
        assert_eq!(
            shown,
            [
                "64kbit",
                "20Mbit",
                "1.5Gbit",
                "1234.567kbit",
                "999bit",
                "1000.001kbit"
            ]
        );
        let shown: Vec<_> = [1500, 64_000, 256 << 10, 3 << 20, 0]
            .map(|size| Size(size).to_string())
            .into();
        assert_eq!(shown, ["1.5kB", "64kB", "256KiB", "3MiB", "0B"]);
    }

    proptest! {
        #[test]
        fn rates_are_read_as_they_are_printed(rate: u64, zeros in 0..12_u32) {
            let rate = Rate::BitsPerSecond(rate / 10_u64.pow(zeros) * 10_u64.pow(zeros));
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }

        #[test]
        fn sizes_are_read_as_they_are_printed(bytes: u64, shift in 0..40_u32) {
            let size = Size(bytes >> shift << shift);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "[0-9]{0,20}\\.?[0-9]{0,5} ?[a-zA-Zé/]{0,6}") {
            let _ = text.parse::<Rate>();
            let _ = text.parse::<Size>();
        }
    }
}
