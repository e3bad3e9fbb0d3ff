use proptest::prelude::*;

use super::*;

/// RFC 8032 §7.1, TEST 2.
const SEED: [u8; 32] = [
    0x4c, 0xcd, 0x08, 0x9b, 0x28, 0xff, 0x96, 0xda, 0x9d, 0xb6, 0xc3, 0x46, 0xec, 0x11, 0x4e, 0x0f,
    0x5b, 0x8a, 0x31, 0x9f, 0x35, 0xab, 0xa6, 0x24, 0xda, 0x8c, 0xf6, 0xed, 0x4f, 0xb8, 0xa6, 0xfb,
];
const PUBLIC: [u8; 32] = [
    0x3d, 0x40, 0x17, 0xc3, 0xe8, 0x43, 0x89, 0x5a, 0x92, 0xb7, 0x0a, 0xa7, 0x4d, 0x1b, 0x7e, 0xbc,
    0x9c, 0x98, 0x2c, 0xcf, 0x2e, 0xc4, 0x96, 0x8c, 0xc0, 0xcd, 0x55, 0xf1, 0x2a, 0xf4, 0x66, 0x0c,
];

/// What Python's `base64.b32encode` makes of it.
const TEXT: &str = "hvabpq7iioevvevxbktu2g36xsojqlgpf3cjndgazvk7ckxumyga";

#[test]
fn a_peer_is_the_public_key_of_its_seed() {
    let identity = Identity::new(SecretKey::from_seed(SEED));
    assert_eq!(identity.id(), PeerId::from_bytes(PUBLIC));
    assert_eq!(identity.id().to_string(), TEXT);
    assert_eq!(TEXT.parse(), Ok(identity.id()));
    let signature = identity.sign(&[0x72]);
    assert_eq!(signature[..4], [0x92, 0xa0, 0x09, 0xa9]);
    assert!(identity.id().verify(&[0x72], &signature));
    assert!(!identity.id().verify(&[0x73], &signature));
    let other = Identity::new(SecretKey::from_seed([7; 32]));
    assert!(!other.id().verify(&[0x72], &signature));
}

#[test]
fn secrets_derived_for_different_purposes_differ_and_neither_is_shown() {
    let secret = SecretKey::from_seed(SEED);
    assert_ne!(secret.derive("a"), secret.derive("b"));
    assert_eq!(secret.derive("a"), secret.derive("a"));
    assert_eq!(format!("{secret:?}"), "SecretKey(…)");
}

#[test]
fn a_peer_id_that_is_mistyped_is_refused_with_the_reason() {
    let parse = |text: &str| text.parse::<PeerId>().unwrap_err().to_string();
    assert_eq!(parse(""), "a peer id has 52 characters, not 0");
    let text = PeerId::from_bytes(PUBLIC).to_string();
    assert_eq!(parse(&text[1..]), "a peer id has 52 characters, not 51");
    assert_eq!(
        parse(&format!("{text}a")),
        "a peer id has 52 characters, not 53"
    );
    assert_eq!(
        parse(&text.replacen('b', "1", 1)),
        format!(
            "'1' at position {} is none of a-z and 2-7",
            text.find('b').unwrap() + 1
        )
    );
    assert_eq!(
        parse(&format!("{}b", &text[..51])),
        "no peer id ends in 'b', only in \"a\" or \"q\""
    );
}

#[test]
fn a_peers_address_is_one_line_and_says_what_is_wrong_with_it() {
    let id = PeerId::from_bytes(PUBLIC);
    let text = format!("{id}@192.0.2.1:4433,[2001:db8::1]:443");
    let address: PeerAddr = text.parse().unwrap();
    assert_eq!(address.id(), id);
    assert_eq!(address.addresses().len(), 2);
    assert_eq!(address.to_string(), text);
    let none: PeerAddr = format!("{id}@").parse().unwrap();
    assert_eq!(none.addresses(), []);

    let parse = |text: &str| text.parse::<PeerAddr>().unwrap_err();
    assert_eq!(parse(&id.to_string()), PeerAddrError::NoAt);
    assert_eq!(
        parse("me@192.0.2.1:1"),
        PeerAddrError::Id(PeerIdError::Length(2))
    );
    assert_eq!(
        parse(&format!("{id}@example.org:1")),
        PeerAddrError::Address("example.org:1".into())
    );
    assert_eq!(
        parse(&format!("{id}@192.0.2.1:0")),
        PeerAddrError::Unusable("192.0.2.1:0".parse().unwrap())
    );
    let many: Vec<_> = (1..=17).map(|port| format!("192.0.2.1:{port}")).collect();
    assert_eq!(
        parse(&format!("{id}@{}", many.join(","))),
        PeerAddrError::TooMany(17)
    );
}

#[test]
fn an_address_given_twice_counts_once() {
    let id = PeerId::from_bytes(PUBLIC);
    let address: PeerAddr = format!("{id}@192.0.2.1:1, 192.0.2.1:1").parse().unwrap();
    assert_eq!(address.addresses().len(), 1);
}

#[cfg(feature = "serde")]
#[test]
fn identities_are_text_in_other_formats() {
    use ::serde::Serialize;
    use ::serde::de::value::{Error, StrDeserializer};
    use ::serde::de::{Deserialize, IntoDeserializer as _};

    struct Text<T>(T);
    impl<T: Serialize> fmt::Display for Text<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.serialize(f)
        }
    }
    fn read<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, Error> {
        let deserializer: StrDeserializer<'de, Error> = text.into_deserializer();
        T::deserialize(deserializer)
    }

    let id = PeerId::from_bytes(PUBLIC);
    assert_eq!(Text(id).to_string(), TEXT);
    assert_eq!(read(TEXT), Ok(id));
    let address: PeerAddr = format!("{id}@192.0.2.1:1").parse().unwrap();
    let text = Text(address.clone()).to_string();
    assert_eq!(read(&text), Ok(address));
    let error = read::<PeerId>("x").unwrap_err().to_string();
    assert!(error.contains("52 characters"), "{error}");
}

proptest! {
    #[test]
    fn a_peer_id_survives_its_text_form_in_both_cases(bytes in any::<[u8; 32]>()) {
        let id = PeerId::from_bytes(bytes);
        let text = id.to_string();
        prop_assert_eq!(text.len(), PEER_ID_CHARS);
        prop_assert_eq!(text.parse(), Ok(id));
        prop_assert_eq!(text.to_uppercase().parse(), Ok(id));
    }

    #[test]
    fn no_text_makes_parsing_panic(text in ".{0,80}") {
        let _ = text.parse::<PeerId>();
        let _ = text.parse::<PeerAddr>();
    }
}

#[test]
fn peers_are_at_home_in_all_shards_alike() {
    for shards in [1, 2, 3, 64] {
        let mut homes = vec![0; usize::from(shards)];
        let shards = NonZeroU16::new(shards).unwrap();
        for seed in 0..1_000_u32 {
            let mut secret = [0; 32];
            secret[..4].copy_from_slice(&seed.to_be_bytes());
            let id = Identity::new(SecretKey::from_seed(secret)).id();
            assert_eq!(id.home(shards), id.home(shards));
            homes[usize::from(id.home(shards).0)] += 1;
        }
        let fair = 1_000 / homes.len();
        assert!(homes.iter().all(|home| *home > fair / 4), "{homes:?}");
    }
    let last = PeerId::from_bytes([0xff; 32]);
    assert_eq!(last.home(NonZeroU16::MAX), ShardId(u16::MAX - 1));
}
