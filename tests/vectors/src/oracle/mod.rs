//! Our codec held against others: what differs, and is meant to, is listed in one place per oracle.
//!
//! A comparison is a plain function of bytes, so the property tests and the fuzzers share it. It
//! returns what was compared, or a [`Disagreement`] that no rule explains.

mod codec;
mod types;

use std::fmt;

use towpath_proto::wire::attribute::{
    ChannelNumberValue, Data, ErrorCode, Lifetime, Nonce, Realm, RequestedTransport, Software,
    Username, XorMappedAddress, XorPeerAddress, XorRelayedAddress,
};
use towpath_proto::wire::{AttributeType, Message, ParseError};

pub use codec::compare_with_stun_codec;
pub use types::compare_with_stun_types;

/// Longest input that is compared: beyond it stun-types truncates lengths to 16 bits.
pub const MAX_INPUT_BYTES: usize = 4096;

/// What a comparison came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Agreement {
    /// Both accept, and see the same message.
    BothAccept,
    /// Both refuse.
    BothRefuse,
    /// One refuses for a reason in its oracle's list.
    Documented(&'static str),
    /// The input is too long to compare.
    NotCompared,
}

/// Two codecs see different things, and no listed difference explains it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disagreement {
    /// What differs.
    pub what: String,
    /// The bytes that show it.
    pub bytes: Vec<u8>,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.what)?;
        self.bytes
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::error::Error for Disagreement {}

fn same<T: PartialEq + fmt::Debug>(
    what: &str,
    ours: T,
    theirs: T,
    bytes: &[u8],
) -> Result<(), Disagreement> {
    if ours == theirs {
        return Ok(());
    }
    let what = format!("{what}: ours {ours:?}, theirs {theirs:?}");
    Err(Disagreement {
        what,
        bytes: bytes.to_vec(),
    })
}

/// Rules of ours that neither oracle has.
fn stricter(error: ParseError, bytes: &[u8]) -> Option<&'static str> {
    match error {
        ParseError::TooManyAttributes => Some("we bound the number of attributes"),
        ParseError::AfterFingerprint { .. } => Some("we want FINGERPRINT to be the last"),
        ParseError::CheckLength { .. } => Some("we check integrity's length when parsing"),
        ParseError::Length { claimed, .. } if claimed % 4 != 0 => {
            Some("we want a length that is a multiple of four")
        }
        ParseError::Length { claimed, present } if claimed < present => {
            Some("we want nothing behind the message")
        }
        ParseError::Overrun { offset, .. } if behind_integrity(bytes, offset) => {
            Some("we check the lengths of attributes that are ignored, too")
        }
        ParseError::Short { .. }
        | ParseError::Type { .. }
        | ParseError::Cookie { .. }
        | ParseError::Length { .. }
        | ParseError::Overrun { .. } => None,
    }
}

/// Whether the attribute at `offset` follows an integrity attribute or FINGERPRINT.
fn behind_integrity(bytes: &[u8], offset: usize) -> bool {
    let mut front = bytes[..offset].to_vec();
    front[2..4].copy_from_slice(&((offset - 20) as u16).to_be_bytes());
    Message::parse(&front)
        .is_ok_and(|m| m.has_integrity() || m.has_integrity_sha256() || m.has_fingerprint())
}

/// Whether a value of an attribute we know cannot be read: we say so when it is asked for, an eager
/// codec when it parses.
fn has_unreadable_value(message: &Message<'_>) -> bool {
    message
        .get_all::<Username<'_>>()
        .any(|value| value.is_err())
        || message.get_all::<Realm<'_>>().any(|value| value.is_err())
        || message
            .get_all::<Nonce<'_>>()
            .any(|v| !v.is_ok_and(|v| str::from_utf8(v.0).is_ok()))
        || message
            .get_all::<Software<'_>>()
            .any(|value| value.is_err())
        || message
            .get_all::<ErrorCode<'_>>()
            .any(|value| value.is_err())
        || message
            .get_all::<XorMappedAddress>()
            .any(|value| value.is_err())
        || message
            .get_all::<XorPeerAddress>()
            .any(|value| value.is_err())
        || message
            .get_all::<XorRelayedAddress>()
            .any(|value| value.is_err())
        || message
            .get_all::<ChannelNumberValue>()
            .any(|value| value.is_err())
        || message.get_all::<Lifetime>().any(|value| value.is_err())
        || message
            .get_all::<RequestedTransport>()
            .any(|value| value.is_err())
        || message.get_all::<Data<'_>>().any(|value| value.is_err())
}

/// Whether an attribute of this type ends those a receiver acts on.
fn is_check(kind: u16) -> bool {
    let kind = AttributeType(kind);
    kind == AttributeType::MESSAGE_INTEGRITY
        || kind == AttributeType::MESSAGE_INTEGRITY_SHA256
        || kind == AttributeType::FINGERPRINT
}
