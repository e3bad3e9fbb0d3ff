//! A certificate that says nothing but a key.
//!
//! X.509 rather than a raw public key (RFC 7250), because other QUIC stacks take part that know
//! certificates alone. Name and dates are the same in all of them; nobody looks at them.

use crate::identity::{Identity, KEY_BYTES, PeerId};

/// `AlgorithmIdentifier` of id-Ed25519, 1.3.101.112 (RFC 8410 §3).
const ED25519: &[u8] = &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];
/// A `SubjectPublicKeyInfo` up to the key (RFC 8410 §4).
const SPKI_PREFIX: &[u8] = &[
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// A PKCS #8 private key up to the seed (RFC 8410 §7).
const PKCS8_PREFIX: &[u8] = &[
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// `id-at-commonName`, 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const EXPLICIT_0: u8 = 0xa0;

/// The certificate of an identity, in DER; the same bytes every time.
pub(super) fn certificate(identity: &Identity) -> Vec<u8> {
    let body = to_be_signed(identity.id());
    let signature = identity.sign(&body);
    let signature = element(BIT_STRING, &[&[0], &signature]);
    element(SEQUENCE, &[&body, ED25519, &signature])
}

/// The private key of an identity, in DER.
pub(super) fn private_key(identity: &Identity) -> Vec<u8> {
    [PKCS8_PREFIX, identity.secret().seed()].concat()
}

/// The peer whose key a `SubjectPublicKeyInfo` is; `None` where it is a key of another kind.
pub(super) fn peer_of(subject_public_key_info: &[u8]) -> Option<PeerId> {
    let key = subject_public_key_info.strip_prefix(SPKI_PREFIX)?;
    let key: &[u8; KEY_BYTES] = key.try_into().ok()?;
    Some(PeerId::from_bytes(*key))
}

fn to_be_signed(id: PeerId) -> Vec<u8> {
    let version_3 = element(EXPLICIT_0, &[&element(INTEGER, &[&[2]])]);
    let serial = element(INTEGER, &[&[1]]);
    // RFC 5280 §4.1.2.4: "The issuer field MUST contain a non-empty distinguished name"
    let name = element(
        SEQUENCE,
        &[&element(
            SET,
            &[&element(
                SEQUENCE,
                &[COMMON_NAME, &element(UTF8_STRING, &[b"towpath"])],
            )],
        )],
    );
    // RFC 5280 §4.1.2.5: "To indicate that a certificate has no well-defined expiration date, the
    // notAfter SHOULD be assigned the GeneralizedTime value of 99991231235959Z."
    let validity = element(
        SEQUENCE,
        &[
            &element(UTC_TIME, &[b"700101000000Z"]),
            &element(GENERALIZED_TIME, &[b"99991231235959Z"]),
        ],
    );
    let key = [SPKI_PREFIX, id.as_bytes()].concat();
    element(
        SEQUENCE,
        &[&version_3, &serial, ED25519, &name, &validity, &name, &key],
    )
}

/// A DER element of less than 256 bytes.
fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u8::try_from(content.len()).expect("no part of a certificate has 256 bytes");
    let mut der = vec![tag];
    if length >= 0x80 {
        der.push(0x81);
    }
    der.push(length);
    der.extend_from_slice(&content);
    der
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::server::ParsedCertificate;

    use super::*;
    use crate::identity::SecretKey;

    #[test]
    fn a_certificate_is_read_by_others_and_gives_the_key_back() {
        let identity = Identity::new(SecretKey::from_seed([9; 32]));
        let der = CertificateDer::from(certificate(&identity));
        assert_eq!(der.as_ref(), certificate(&identity));
        let parsed = ParsedCertificate::try_from(&der).unwrap();
        let key = parsed.subject_public_key_info();
        assert_eq!(peer_of(&key), Some(identity.id()));
        assert_eq!(der.len(), 213);
    }

    #[test]
    fn a_key_of_another_kind_is_no_peer() {
        let identity = Identity::new(SecretKey::from_seed([9; 32]));
        let mut key = [SPKI_PREFIX, identity.id().as_bytes().as_slice()].concat();
        assert_eq!(peer_of(&key[1..]), None);
        assert_eq!(peer_of(&key[..43]), None);
        // X448 instead of Ed25519.
        key[8] = 0x6f;
        assert_eq!(peer_of(&key), None);
    }
}
