//! stun_codec (RFC 5389, RFC 5766) as an oracle.

use std::net::SocketAddr;

use bytecodec::DecodeExt as _;
use stun_codec::rfc5389::attributes as stun;
use stun_codec::rfc5766::attributes as turn;
use stun_codec::{MessageClass, MessageDecoder, define_attribute_enums};
use towpath_proto::wire::attribute::{
    Attribute, ChannelNumberValue, Data, ErrorCode, Lifetime, Nonce, Realm, RequestedTransport,
    Software, Username, XorMappedAddress, XorPeerAddress, XorRelayedAddress,
};
use towpath_proto::wire::{AttributeType, Class, Message};

use self::stun::{
    Fingerprint, MessageIntegrity, Nonce as TheirNonce, Realm as TheirRealm,
    Software as TheirSoftware, Username as TheirUsername, XorMappedAddress as TheirMapped,
};
use self::turn::{
    ChannelNumber as TheirChannel, Data as TheirData, Lifetime as TheirLifetime,
    RequestedTransport as TheirTransport, XorPeerAddress as TheirPeer,
    XorRelayAddress as TheirRelayed,
};
use super::{Agreement, Disagreement, MAX_INPUT_BYTES, has_unreadable_value, same, stricter};

type TheirErrorCode = stun::ErrorCode;

define_attribute_enums!(
    Known,
    KnownDecoder,
    KnownEncoder,
    [
        Fingerprint,
        MessageIntegrity,
        TheirNonce,
        TheirRealm,
        TheirSoftware,
        TheirUsername,
        TheirMapped,
        TheirErrorCode,
        TheirChannel,
        TheirData,
        TheirLifetime,
        TheirTransport,
        TheirPeer,
        TheirRelayed
    ]
);

type Theirs = stun_codec::Message<Known>;

/// Parses `bytes` with both codecs and compares header and the values both can read.
pub fn compare_with_stun_codec(bytes: &[u8]) -> Result<Agreement, Disagreement> {
    if bytes.len() > MAX_INPUT_BYTES {
        return Ok(Agreement::NotCompared);
    }
    let theirs = MessageDecoder::<Known>::new().decode_from_bytes(bytes);
    match (Message::parse(bytes), theirs) {
        (Ok(ours), Ok(Ok(theirs))) => {
            compare_messages(&ours, &theirs)?;
            Ok(Agreement::BothAccept)
        }
        (Err(_), Ok(Err(_)) | Err(_)) => Ok(Agreement::BothRefuse),
        (Err(error), Ok(Ok(_))) => match stricter(error, bytes) {
            Some(reason) => Ok(Agreement::Documented(reason)),
            None => Err(Disagreement {
                what: format!("we refuse ({error}), stun_codec accepts"),
                bytes: bytes.to_vec(),
            }),
        },
        (Ok(ours), Ok(Err(_)) | Err(_)) => match laxer(&ours) {
            Some(reason) => Ok(Agreement::Documented(reason)),
            None => Err(Disagreement {
                what: "we accept, stun_codec refuses".to_owned(),
                bytes: bytes.to_vec(),
            }),
        },
    }
}

/// Rules that stun_codec has and we have not, or have later.
fn laxer(ours: &Message<'_>) -> Option<&'static str> {
    if ours.has_fingerprint() {
        // It also computes the checksum over its own encoding, which has other padding bytes.
        return Some("it checks FINGERPRINT when parsing");
    }
    if has_unreadable_value(ours) {
        return Some("it reads values when parsing");
    }
    if ours.has_integrity() || ours.has_integrity_sha256() {
        return Some("it reads what follows MESSAGE-INTEGRITY");
    }
    let text = |kind: AttributeType| {
        ours.attributes().any(|attribute| {
            attribute.kind == kind
                && str::from_utf8(attribute.value).is_ok_and(|text| text.chars().count() >= 128)
        })
    };
    if text(AttributeType::REALM) || text(AttributeType::NONCE) || text(AttributeType::SOFTWARE) {
        return Some("it counts characters where we count bytes");
    }
    if ours
        .get_all::<ChannelNumberValue>()
        .any(|c| c.is_ok_and(|c| c.0.number() > 0x4fff))
    {
        return Some("it has the channel numbers of RFC 8656 only");
    }
    if ours
        .get_all::<ErrorCode<'_>>()
        .any(|code| code.is_ok_and(|e| e.code.number() >= 600))
    {
        return Some("it has no error codes from 600");
    }
    None
}

fn class(class: MessageClass) -> Class {
    match class {
        MessageClass::Request => Class::Request,
        MessageClass::Indication => Class::Indication,
        MessageClass::SuccessResponse => Class::Success,
        MessageClass::ErrorResponse => Class::Error,
    }
}

fn compare_messages(ours: &Message<'_>, theirs: &Theirs) -> Result<(), Disagreement> {
    let bytes = ours.as_bytes();
    same("class", ours.class(), class(theirs.class()), bytes)?;
    same(
        "method",
        ours.method().number(),
        theirs.method().as_u16(),
        bytes,
    )?;
    let id = *theirs.transaction_id().as_bytes();
    same("transaction", ours.transaction_id().0, id, bytes)?;
    compare_values(ours, theirs)
}

/// Compares one attribute's value. Theirs is looked for only where ours may be seen, as stun_codec
/// shows what follows MESSAGE-INTEGRITY, too.
fn value<'a, O: Attribute<'a>, V: PartialEq + std::fmt::Debug>(
    ours: &Message<'a>,
    our_value: impl Fn(O) -> V,
    theirs: Option<V>,
) -> Result<(), Disagreement> {
    let our_value = ours.get::<O>().ok().flatten().map(our_value);
    let theirs = theirs.filter(|_| ours.contains(O::TYPE));
    same(&O::TYPE.to_string(), our_value, theirs, ours.as_bytes())
}

fn compare_values(ours: &Message<'_>, theirs: &Theirs) -> Result<(), Disagreement> {
    let text = |text: &str| text.to_owned();
    let name = theirs
        .get_attribute::<TheirUsername>()
        .map(|t| text(t.name()));
    value::<Username<'_>, _>(ours, |o| text(o.0), name)?;
    let realm = theirs.get_attribute::<TheirRealm>().map(|t| text(t.text()));
    value::<Realm<'_>, _>(ours, |o| text(o.0), realm)?;
    let nonce = theirs
        .get_attribute::<TheirNonce>()
        .map(|t| t.value().as_bytes().to_vec());
    value::<Nonce<'_>, _>(ours, |o| o.0.to_vec(), nonce)?;
    let software = theirs
        .get_attribute::<TheirSoftware>()
        .map(|t| text(t.description()));
    value::<Software<'_>, _>(ours, |o| text(o.0), software)?;
    let code = theirs.get_attribute::<TheirErrorCode>();
    let code = code.map(|t| (t.code(), text(t.reason_phrase())));
    value::<ErrorCode<'_>, _>(ours, |o| (o.code.number(), text(o.reason)), code)?;
    let address = theirs
        .get_attribute::<TheirMapped>()
        .map(TheirMapped::address);
    value::<XorMappedAddress, SocketAddr>(ours, |o| o.0, address)?;
    let address = theirs.get_attribute::<TheirPeer>().map(TheirPeer::address);
    value::<XorPeerAddress, SocketAddr>(ours, |o| o.0, address)?;
    let address = theirs
        .get_attribute::<TheirRelayed>()
        .map(TheirRelayed::address);
    value::<XorRelayedAddress, SocketAddr>(ours, |o| o.0, address)?;
    let channel = theirs.get_attribute::<TheirChannel>().map(|t| t.value());
    value::<ChannelNumberValue, _>(ours, |o| o.0.number(), channel)?;
    let lifetime = theirs
        .get_attribute::<TheirLifetime>()
        .map(|t| t.lifetime().as_secs());
    value::<Lifetime, _>(ours, |o| u64::from(o.0), lifetime)?;
    let protocol = theirs
        .get_attribute::<TheirTransport>()
        .map(TheirTransport::protocol);
    value::<RequestedTransport, _>(ours, |o| o.0, protocol)?;
    let data = theirs
        .get_attribute::<TheirData>()
        .map(|t| t.data().to_vec());
    value::<Data<'_>, _>(ours, |o| o.0.to_vec(), data)
}
