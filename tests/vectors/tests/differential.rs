//! Our codec against stun-types and stun_codec, on messages that any of the three built, whole and
//! damaged.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};

use bytecodec::EncodeExt as _;
use proptest::prelude::*;
use stun_codec::rfc5389::attributes as codec;
use stun_codec::rfc5766::attributes as codec_turn;
use stun_types::attribute as types;
use stun_types::message::{self as types_message, MessageWrite as _, MessageWriteExt as _};
use towpath_proto::wire::attribute::{
    Attribute, ChannelNumberValue, Data, ErrorCode, Family, Lifetime, Nonce, Realm,
    RequestedAddressFamily, RequestedTransport, ReservationToken, Software, Userhash, Username,
    XorMappedAddress, XorPeerAddress, XorRelayedAddress,
};
use towpath_proto::wire::{
    AttributeType, ChannelNumber, Class, Code, IntegrityKey, Message, MessageType, MessageWriter,
    Method, TransactionId, WriteError,
};
use towpath_vectors::oracle::{Agreement, compare_with_stun_codec, compare_with_stun_types};

/// An attribute that all three codecs can build.
#[derive(Clone, Debug)]
enum Value {
    Username(String),
    Realm(String),
    Nonce(String),
    Software(String),
    Error(u16, String),
    Mapped(SocketAddr),
    Peer(SocketAddr),
    Relayed(SocketAddr),
    Lifetime(u32),
    Channel(u16),
    Data(Vec<u8>),
    Transport(u8),
    Userhash([u8; 32]),
    Family(bool),
    Token([u8; 8]),
}

#[derive(Clone, Debug)]
struct Sample {
    method: u16,
    class: Class,
    id: [u8; 12],
    values: Vec<Value>,
    password: String,
    integrity: bool,
    integrity_sha256: bool,
    fingerprint: bool,
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn value() -> impl Strategy<Value = Value> {
    let text = || "[ -~äé漢]{1,40}";
    prop_oneof![
        text().prop_map(Value::Username),
        text().prop_map(Value::Realm),
        text().prop_map(Value::Nonce),
        text().prop_map(Value::Software),
        (300..600_u16, text()).prop_map(|(code, reason)| Value::Error(code, reason)),
        address().prop_map(Value::Mapped),
        address().prop_map(Value::Peer),
        address().prop_map(Value::Relayed),
        any::<u32>().prop_map(Value::Lifetime),
        (0x4000..=0x4fff_u16).prop_map(Value::Channel),
        prop::collection::vec(any::<u8>(), 0..90).prop_map(Value::Data),
        any::<u8>().prop_map(Value::Transport),
        any::<[u8; 32]>().prop_map(Value::Userhash),
        any::<bool>().prop_map(Value::Family),
        any::<[u8; 8]>().prop_map(Value::Token),
    ]
}

fn sample() -> impl Strategy<Value = Sample> {
    let class = prop_oneof![
        Just(Class::Request),
        Just(Class::Indication),
        Just(Class::Success),
        Just(Class::Error)
    ];
    (
        prop_oneof![0..=0xf_u16, 0..=0xfff_u16],
        class,
        any::<[u8; 12]>(),
        prop::collection::vec(value(), 0..8),
        "[!-~]{1,80}",
        any::<[bool; 3]>(),
    )
        .prop_map(|(method, class, id, values, password, flags)| Sample {
            method,
            class,
            id,
            values,
            password,
            integrity: flags[0],
            integrity_sha256: flags[1],
            fingerprint: flags[2],
        })
}

fn family(v6: bool) -> Family {
    if v6 { Family::V6 } else { Family::V4 }
}

fn put(writer: &mut MessageWriter<'_>, value: &Value) -> Result<(), WriteError> {
    match value {
        Value::Username(text) => writer.put(&Username(text)),
        Value::Realm(text) => writer.put(&Realm(text)),
        Value::Nonce(text) => writer.put(&Nonce(text.as_bytes())),
        Value::Software(text) => writer.put(&Software(text)),
        Value::Error(code, reason) => writer.put(&ErrorCode {
            code: Code::new(*code).unwrap(),
            reason,
        }),
        Value::Mapped(address) => writer.put(&XorMappedAddress(*address)),
        Value::Peer(address) => writer.put(&XorPeerAddress(*address)),
        Value::Relayed(address) => writer.put(&XorRelayedAddress(*address)),
        Value::Lifetime(seconds) => writer.put(&Lifetime(*seconds)),
        Value::Channel(number) => {
            writer.put(&ChannelNumberValue(ChannelNumber::new(*number).unwrap()))
        }
        Value::Data(data) => writer.put(&Data(data)),
        Value::Transport(protocol) => writer.put(&RequestedTransport(*protocol)),
        Value::Userhash(hash) => writer.put(&Userhash(*hash)),
        Value::Family(v6) => writer.put(&RequestedAddressFamily(family(*v6))),
        Value::Token(token) => writer.put(&ReservationToken(*token)),
    }
    .map(|_| ())
}

fn built_by_us(sample: &Sample) -> Vec<u8> {
    let mut buffer = [0xcc; 4096];
    let message_type = MessageType::new(Method::new(sample.method).unwrap(), sample.class);
    let mut writer =
        MessageWriter::new(&mut buffer, message_type, TransactionId(sample.id)).unwrap();
    sample
        .values
        .iter()
        .for_each(|value| put(&mut writer, value).unwrap());
    let key = IntegrityKey::new(sample.password.as_bytes());
    if sample.integrity {
        writer.integrity(&key).unwrap();
    }
    if sample.integrity_sha256 {
        writer.integrity_sha256(&key, 32).unwrap();
    }
    if sample.fingerprint {
        writer.fingerprint().unwrap();
    }
    writer.finish().to_vec()
}

fn their_id(id: [u8; 12]) -> types_message::TransactionId {
    let mut wide = [0; 16];
    wide[4..].copy_from_slice(&id);
    u128::from_be_bytes(wide).into()
}

fn short_term(password: &str) -> types_message::MessageIntegrityCredentials {
    types_message::ShortTermCredentials::new(password.to_owned()).into()
}

fn built_by_stun_types(sample: &Sample) -> Vec<u8> {
    use types_message::{MessageClass, MessageWriteVec};
    let class = match sample.class {
        Class::Request => MessageClass::Request,
        Class::Indication => MessageClass::Indication,
        Class::Success => MessageClass::Success,
        Class::Error => MessageClass::Error,
    };
    let method = types_message::Method::new(sample.method);
    let message_type = types_message::MessageType::from_class_method(class, method);
    let id = their_id(sample.id);
    let mut message = types_message::Message::builder(message_type, id, MessageWriteVec::new());
    let raw = |kind: AttributeType, value: &[u8]| {
        let kind = types::AttributeType::new(kind.0);
        types::RawAttribute::new_owned(kind, value.to_vec().into_boxed_slice())
    };
    for value in &sample.values {
        match value {
            Value::Username(text) => message.add_attribute(&types::Username::new(text).unwrap()),
            Value::Realm(text) => message.add_attribute(&types::Realm::new(text).unwrap()),
            Value::Nonce(text) => message.add_attribute(&types::Nonce::new(text).unwrap()),
            Value::Software(text) => message.add_attribute(&types::Software::new(text).unwrap()),
            Value::Error(code, reason) => {
                message.add_attribute(&types::ErrorCode::new(*code, reason).unwrap())
            }
            Value::Mapped(address) => {
                message.add_attribute(&types::XorMappedAddress::new(*address, id))
            }
            Value::Userhash(hash) => message.add_attribute(&types::Userhash::new(*hash)),
            Value::Data(data) => message.add_attribute(&raw(AttributeType::DATA, data)),
            Value::Token(token) => {
                message.add_attribute(&raw(AttributeType::RESERVATION_TOKEN, token))
            }
            Value::Lifetime(seconds) => {
                message.add_attribute(&raw(AttributeType::LIFETIME, &seconds.to_be_bytes()))
            }
            Value::Peer(_)
            | Value::Relayed(_)
            | Value::Channel(_)
            | Value::Transport(_)
            | Value::Family(_) => Ok(()),
        }
        .unwrap();
    }
    let credentials = short_term(&sample.password);
    for (wanted, algorithm) in [
        (sample.integrity, types_message::IntegrityAlgorithm::Sha1),
        (
            sample.integrity_sha256,
            types_message::IntegrityAlgorithm::Sha256,
        ),
    ] {
        if wanted {
            message
                .add_message_integrity(&credentials, algorithm)
                .unwrap();
        }
    }
    if sample.fingerprint {
        message.add_fingerprint().unwrap();
    }
    message.finish()
}

stun_codec::define_attribute_enums!(
    Built,
    BuiltDecoder,
    BuiltEncoder,
    [
        Username2,
        Realm2,
        Nonce2,
        Software2,
        ErrorCode2,
        Mapped2,
        Peer2,
        Relayed2,
        Lifetime2,
        Channel2,
        Data2,
        Transport2,
        Token2,
        Integrity2,
        Fingerprint2
    ]
);
use codec::{
    ErrorCode as ErrorCode2, Fingerprint as Fingerprint2, MessageIntegrity as Integrity2,
    Nonce as Nonce2, Realm as Realm2, Software as Software2, Username as Username2,
    XorMappedAddress as Mapped2,
};
use codec_turn::{
    ChannelNumber as Channel2, Data as Data2, Lifetime as Lifetime2,
    RequestedTransport as Transport2, ReservationToken as Token2, XorPeerAddress as Peer2,
    XorRelayAddress as Relayed2,
};

/// stun_codec shifts the higher bits of a method to the wrong place when it encodes one, also in order
/// to compute a checksum.
const STUN_CODEC_METHODS: u16 = 0xf;

fn built_by_stun_codec(sample: &Sample) -> Vec<u8> {
    let class = match sample.class {
        Class::Request => stun_codec::MessageClass::Request,
        Class::Indication => stun_codec::MessageClass::Indication,
        Class::Success => stun_codec::MessageClass::SuccessResponse,
        Class::Error => stun_codec::MessageClass::ErrorResponse,
    };
    let method = stun_codec::Method::new(sample.method).unwrap();
    let id = stun_codec::TransactionId::new(sample.id);
    let mut message = stun_codec::Message::<Built>::new(class, method, id);
    for value in sample.values.clone() {
        message.add_attribute(match value {
            Value::Username(text) => Built::from(Username2::new(text).unwrap()),
            Value::Realm(text) => Realm2::new(text).unwrap().into(),
            Value::Nonce(text) => Nonce2::new(text).unwrap().into(),
            Value::Software(text) => Software2::new(text).unwrap().into(),
            Value::Error(code, reason) => ErrorCode2::new(code, reason).unwrap().into(),
            Value::Mapped(address) => Mapped2::new(address).into(),
            Value::Peer(address) => Peer2::new(address).into(),
            Value::Relayed(address) => Relayed2::new(address).into(),
            Value::Lifetime(seconds) => Lifetime2::from_u32(seconds).into(),
            Value::Channel(number) => Channel2::new(number).unwrap().into(),
            Value::Data(data) => Data2::new(data).unwrap().into(),
            Value::Transport(protocol) => Transport2::new(protocol).into(),
            Value::Token(token) => Token2::new(u64::from_be_bytes(token)).into(),
            Value::Userhash(_) | Value::Family(_) => continue,
        });
    }
    if sample.integrity {
        let integrity = Integrity2::new_short_term_credential(&message, &sample.password).unwrap();
        message.add_attribute(integrity);
    }
    if sample.fingerprint {
        let fingerprint = Fingerprint2::new(&message).unwrap();
        message.add_attribute(fingerprint);
    }
    stun_codec::MessageEncoder::new()
        .encode_into_bytes(message)
        .unwrap()
}

/// The first value of each kind, as a receiver sees it.
fn firsts<'a, A: Attribute<'a>, V: PartialEq>(
    message: &Message<'a>,
    wanted: Option<V>,
    read: impl Fn(A) -> V,
) -> bool {
    message.get::<A>().unwrap().map(read) == wanted
}

fn check_first_values(sample: &Sample, bytes: &[u8], has_all: bool) {
    let message = Message::parse(bytes).unwrap();
    macro_rules! first {
        ($variant:ident) => {
            sample.values.iter().find_map(|value| match value {
                Value::$variant(value) => Some(value.clone()),
                _ => None,
            })
        };
    }
    assert!(firsts::<Username<'_>, _>(&message, first!(Username), |a| a
        .0
        .to_owned()));
    assert!(firsts::<Realm<'_>, _>(&message, first!(Realm), |a| a
        .0
        .to_owned()));
    assert!(firsts::<Software<'_>, _>(&message, first!(Software), |a| a
        .0
        .to_owned()));
    assert!(firsts::<XorMappedAddress, _>(
        &message,
        first!(Mapped),
        |a| a.0
    ));
    assert!(firsts::<Lifetime, _>(&message, first!(Lifetime), |a| a.0));
    assert!(firsts::<Data<'_>, _>(&message, first!(Data), |a| a
        .0
        .to_vec()));
    assert!(firsts::<ReservationToken, _>(
        &message,
        first!(Token),
        |a| a.0
    ));
    if has_all {
        assert!(firsts::<XorPeerAddress, _>(&message, first!(Peer), |a| a.0));
        assert!(firsts::<XorRelayedAddress, _>(
            &message,
            first!(Relayed),
            |a| a.0
        ));
        assert!(firsts::<ChannelNumberValue, _>(
            &message,
            first!(Channel),
            |a| a.0.number()
        ));
        assert!(firsts::<RequestedTransport, _>(
            &message,
            first!(Transport),
            |a| a.0
        ));
    }
}

fn check_integrity(sample: &Sample, bytes: &[u8]) {
    let message = Message::parse(bytes).unwrap();
    let key = IntegrityKey::new(sample.password.as_bytes());
    assert_eq!(message.has_integrity(), sample.integrity);
    if sample.integrity {
        message.check_integrity(&key).unwrap();
    }
    if message.has_integrity_sha256() {
        message.check_integrity_sha256(&key, 32).unwrap();
    }
    assert_eq!(message.has_fingerprint(), sample.fingerprint);
    if sample.fingerprint {
        message.check_fingerprint().unwrap();
    }
}

#[derive(Clone, Debug)]
enum Damage {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Truncate(prop::sample::Index),
    Append(Vec<u8>),
    Insert(prop::sample::Index, [u8; 4]),
    /// Corrects the header's length, so that damage reaches what lies behind that check.
    Length,
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let one = prop_oneof![
        4 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, v)| Damage::Set(at, v)),
        4 => (any::<prop::sample::Index>(), 0..8_u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        1 => any::<prop::sample::Index>().prop_map(Damage::Truncate),
        1 => prop::collection::vec(any::<u8>(), 1..9).prop_map(Damage::Append),
        2 => (any::<prop::sample::Index>(), any::<[u8; 4]>())
            .prop_map(|(at, word)| Damage::Insert(at, word)),
        2 => Just(Damage::Length),
    ];
    prop::collection::vec(one, 1..6)
}

fn damaged(mut bytes: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for damage in damage {
        let len = bytes.len();
        match damage {
            Damage::Set(at, value) if len > 0 => bytes[at.index(len)] = *value,
            Damage::Flip(at, bit) if len > 0 => bytes[at.index(len)] ^= 1 << bit,
            Damage::Set(..) | Damage::Flip(..) => {}
            Damage::Truncate(at) => bytes.truncate(at.index(len + 1)),
            Damage::Append(tail) => bytes.extend_from_slice(tail),
            Damage::Insert(at, word) => {
                let at = at.index(len / 4 + 1) * 4;
                bytes.splice(at..at, *word);
            }
            Damage::Length if len >= 20 => {
                bytes.truncate(len & !3);
                let claimed = (bytes.len() - 20) as u16;
                bytes[2..4].copy_from_slice(&claimed.to_be_bytes());
            }
            Damage::Length => {}
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_we_build_both_others_read_the_same(sample in sample()) {
        let bytes = built_by_us(&sample);
        check_first_values(&sample, &bytes, true);
        check_integrity(&sample, &bytes);
        prop_assert_eq!(compare_with_stun_types(&bytes).unwrap(), Agreement::BothAccept);
        let theirs = types_message::Message::from_bytes(&bytes).unwrap();
        if sample.integrity || sample.integrity_sha256 {
            theirs.validate_integrity(&short_term(&sample.password)).unwrap();
        }
        if !sample.integrity_sha256 && sample.method <= STUN_CODEC_METHODS {
            let agreement = compare_with_stun_codec(&bytes).unwrap();
            prop_assert_eq!(agreement, Agreement::BothAccept);
        }
    }

    #[test]
    fn what_stun_types_builds_we_read_the_same(sample in sample()) {
        let bytes = built_by_stun_types(&sample);
        check_first_values(&sample, &bytes, false);
        check_integrity(&sample, &bytes);
        prop_assert_eq!(compare_with_stun_types(&bytes).unwrap(), Agreement::BothAccept);
    }

    #[test]
    fn what_stun_codec_builds_we_read_the_same(mut sample in sample()) {
        sample.method &= STUN_CODEC_METHODS;
        let bytes = built_by_stun_codec(&sample);
        check_first_values(&sample, &bytes, true);
        check_integrity(&sample, &bytes);
        prop_assert_eq!(compare_with_stun_codec(&bytes).unwrap(), Agreement::BothAccept);
    }

    #[test]
    fn damaged_messages_are_judged_as_stun_types_judges_them(
        sample in sample(),
        damage in damage(),
    ) {
        let bytes = damaged(built_by_us(&sample), &damage);
        prop_assert_eq!(compare_with_stun_types(&bytes).err(), None);
    }

    #[test]
    fn damaged_messages_are_judged_as_stun_codec_judges_them(
        sample in sample(),
        damage in damage(),
    ) {
        let bytes = damaged(built_by_us(&sample), &damage);
        prop_assert_eq!(compare_with_stun_codec(&bytes).err(), None);
    }
}
