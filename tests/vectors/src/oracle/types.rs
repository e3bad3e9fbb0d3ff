//! stun-types (RFC 8489) as an oracle.

use stun_types::attribute::{self as theirs, AttributeFromRaw, AttributeStaticType};
use stun_types::message as oracle;
use stun_types::prelude::Attribute as _;
use towpath_proto::wire::attribute::{
    Attribute, ErrorCode, Realm, Software, Userhash, Username, XorMappedAddress,
};
use towpath_proto::wire::{Class, Message};

use super::{Agreement, Disagreement, MAX_INPUT_BYTES, is_check, same, stricter};

/// Parses `bytes` with both codecs and compares header, attributes and the values both can read.
pub fn compare_with_stun_types(bytes: &[u8]) -> Result<Agreement, Disagreement> {
    if bytes.len() > MAX_INPUT_BYTES {
        return Ok(Agreement::NotCompared);
    }
    match (Message::parse(bytes), oracle::Message::from_bytes(bytes)) {
        (Ok(ours), Ok(theirs)) => {
            compare_messages(&ours, &theirs)?;
            Ok(Agreement::BothAccept)
        }
        (Err(_), Err(_)) => Ok(Agreement::BothRefuse),
        (Err(error), Ok(_)) => match stricter(error, bytes) {
            Some(reason) => Ok(Agreement::Documented(reason)),
            None => Err(Disagreement {
                what: format!("we refuse ({error}), stun-types accepts"),
                bytes: bytes.to_vec(),
            }),
        },
        (Ok(ours), Err(error)) => {
            if ours.has_fingerprint() && ours.check_fingerprint().is_err() {
                return Ok(Agreement::Documented("we check FINGERPRINT when asked to"));
            }
            Err(Disagreement {
                what: format!("we accept, stun-types refuses ({error})"),
                bytes: bytes.to_vec(),
            })
        }
    }
}

fn class(class: oracle::MessageClass) -> Class {
    match class {
        oracle::MessageClass::Request => Class::Request,
        oracle::MessageClass::Indication => Class::Indication,
        oracle::MessageClass::Success => Class::Success,
        oracle::MessageClass::Error => Class::Error,
    }
}

fn compare_messages(ours: &Message<'_>, theirs: &oracle::Message<'_>) -> Result<(), Disagreement> {
    let bytes = ours.as_bytes();
    same("class", ours.class(), class(theirs.class()), bytes)?;
    same(
        "method",
        ours.method().number(),
        theirs.method().value(),
        bytes,
    )?;
    let mut id = [0; 16];
    id[4..].copy_from_slice(&ours.transaction_id().0);
    let their_id = theirs.transaction_id();
    same(
        "transaction",
        oracle::TransactionId::from(u128::from_be_bytes(id)),
        their_id,
        bytes,
    )?;
    let ours_raw: Vec<_> = ours
        .attributes()
        .map(|a| (a.kind.0, a.value.to_vec()))
        .collect();
    let theirs_raw: Vec<_> = theirs
        .iter_attributes()
        .map(|(_, attribute)| (attribute.get_type().value(), attribute.value.to_vec()))
        .take_while(|(kind, _)| !is_check(*kind))
        .collect();
    same("attributes", ours_raw, theirs_raw, bytes)?;
    // It stops at the first attribute that is ignored behind MESSAGE-INTEGRITY, and so does not check
    // a FINGERPRINT that follows one.
    let fingerprint = theirs::Fingerprint::TYPE;
    if theirs
        .iter_attributes()
        .any(|(_, attribute)| attribute.get_type() == fingerprint)
    {
        same("fingerprint", ours.check_fingerprint().is_ok(), true, bytes)?;
    }
    compare_values(ours, theirs)
}

/// Compares one attribute's value where both codecs can read it, and that both can.
fn value<'a, O: Attribute<'a>, T: AttributeFromRaw<'a> + AttributeStaticType, V>(
    ours: &Message<'a>,
    theirs: &'a oracle::Message<'a>,
    our_value: impl Fn(O) -> V,
    their_value: impl Fn(T) -> V,
) -> Result<(), Disagreement>
where
    V: PartialEq + std::fmt::Debug,
{
    let left = ours.get::<O>().ok().flatten().map(our_value);
    let right = ours
        .contains(O::TYPE)
        .then(|| theirs.attribute::<T>().ok())
        .flatten();
    same(
        &O::TYPE.to_string(),
        left,
        right.map(their_value),
        ours.as_bytes(),
    )
}

fn compare_values<'a>(
    ours: &Message<'a>,
    theirs: &oracle::Message<'a>,
) -> Result<(), Disagreement> {
    let id = theirs.transaction_id();
    value::<Userhash, theirs::Userhash, _>(ours, theirs, |o| o.0, |t| *t.hash())?;
    value::<Username<'_>, theirs::Username, _>(
        ours,
        theirs,
        |o| o.0.to_owned(),
        |t| t.username().to_owned(),
    )?;
    value::<XorMappedAddress, theirs::XorMappedAddress, _>(ours, theirs, |o| o.0, |t| t.addr(id))?;
    value::<Realm<'_>, theirs::Realm, _>(
        ours,
        theirs,
        |o| o.0.to_owned(),
        |t| t.realm().to_owned(),
    )?;
    value::<Software<'_>, theirs::Software, _>(
        ours,
        theirs,
        |o| o.0.to_owned(),
        |t| t.software().to_owned(),
    )?;
    value::<ErrorCode<'_>, theirs::ErrorCode, _>(
        ours,
        theirs,
        |o| (o.code.number(), o.reason.to_owned()),
        |t| (t.code(), t.reason().to_owned()),
    )
}
