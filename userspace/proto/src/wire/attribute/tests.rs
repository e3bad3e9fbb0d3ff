use std::fmt::Debug;

use super::*;
use crate::wire::Code;

const ID: TransactionId = TransactionId(*b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae");

fn written<'a, A: Attribute<'a>>(attribute: &A) -> Vec<u8> {
    let mut value = vec![0; attribute.value_len()];
    attribute.write(&ID, &mut value);
    value
}

fn survives<A: for<'a> Attribute<'a> + PartialEq + Debug>(attribute: A) {
    assert_eq!(A::read(&written(&attribute), &ID), Ok(attribute));
}

#[test]
fn every_fixed_attribute_reads_what_it_writes() {
    let v4: SocketAddr = "192.0.2.1:32853".parse().unwrap();
    let v6: SocketAddr = "[2001:db8:1234:5678:11:2233:4455:6677]:32853"
        .parse()
        .unwrap();
    for address in [v4, v6] {
        survives(XorMappedAddress(address));
        survives(XorPeerAddress(address));
        survives(XorRelayedAddress(address));
        survives(MappedAddress(address));
        survives(AlternateServer(address));
    }
    survives(Lifetime(u32::MAX));
    survives(ChannelNumberValue(ChannelNumber::FIRST));
    survives(RequestedTransport::UDP);
    survives(RequestedAddressFamily(Family::V6));
    survives(AdditionalAddressFamily(Family::V6));
    survives(EvenPort { reserve_next: true });
    survives(EvenPort {
        reserve_next: false,
    });
    survives(ReservationToken(*b"8 bytes!"));
    survives(Userhash([7; 32]));
    survives(ConnectionId(77));
    survives(Priority(0x6e00_01ff));
    survives(IceControlled(1 << 63));
    survives(IceControlling(5));
    survives(Icmp {
        icmp_type: 3,
        code: 0x104,
        error_data: 1400,
    });
    survives(DontFragment);
    survives(UseCandidate);
    survives(PasswordAlgorithm(Algorithm::Sha256));
}

#[test]
fn xor_addresses_are_xored_with_cookie_and_transaction_id() {
    // The values of RFC 5769 §2.2 and §2.3.
    let v4 = XorMappedAddress("192.0.2.1:32853".parse().unwrap());
    assert_eq!(
        written(&v4),
        [0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]
    );
    let v6 = XorMappedAddress(
        "[2001:db8:1234:5678:11:2233:4455:6677]:32853"
            .parse()
            .unwrap(),
    );
    let hidden = [
        0x00, 0x02, 0xa1, 0x47, 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79, 0xbc, 0x25, 0xf4,
        0xb5, 0xbe, 0xd2, 0xb9, 0xd9,
    ];
    assert_eq!(written(&v6), hidden);
}

#[test]
fn addresses_of_a_wrong_length_or_family_are_refused() {
    let kind = AttributeType::XOR_PEER_ADDRESS;
    for len in [0, 3, 7, 9, 20] {
        let mut value = vec![0; len];
        if len > 1 {
            value[1] = 1;
        }
        assert_eq!(
            XorPeerAddress::read(&value, &ID),
            Err(ValueError::Length { kind, len })
        );
    }
    let family = ValueError::Family { kind, family: 3 };
    assert_eq!(
        XorPeerAddress::read(&[0, 3, 0, 0, 1, 2, 3, 4], &ID),
        Err(family)
    );
}

#[test]
fn error_codes_are_300_to_699_with_a_number_below_100() {
    let code = ErrorCode::new(Code::STALE_NONCE);
    assert_eq!(written(&code), *b"\0\0\x04\x26Stale Nonce");
    assert_eq!(ErrorCode::read(&written(&code), &ID), Ok(code));
    // The reserved bits in front of the class are ignored.
    let read = ErrorCode::read(b"\xff\xff\xfc\x26", &ID).unwrap();
    assert_eq!((read.code, read.reason), (Code::STALE_NONCE, ""));
    let kind = AttributeType::ERROR_CODE;
    for (value, number) in [
        ([0, 0, 2, 99], 299),
        ([0, 0, 7, 0], 700),
        ([0, 0, 4, 100], 500),
    ] {
        assert_eq!(
            ErrorCode::read(&value, &ID),
            Err(ValueError::Number { kind, number })
        );
    }
    assert_eq!(
        ErrorCode::read(&[0; 3], &ID),
        Err(ValueError::Length { kind, len: 3 })
    );
    assert_eq!(
        ErrorCode::read(b"\0\0\x04\x00\xff", &ID),
        Err(ValueError::Text { kind })
    );
    let v6 = AddressErrorCode {
        family: Family::V6,
        code: Code::FORBIDDEN,
        reason: "no",
    };
    assert_eq!(AddressErrorCode::read(&written(&v6), &ID), Ok(v6));
}

#[test]
fn reserved_bits_are_ignored_when_read_and_zero_when_written() {
    assert_eq!(
        EvenPort::read(&[0x7f], &ID),
        Ok(EvenPort {
            reserve_next: false
        })
    );
    let channel = ChannelNumberValue(ChannelNumber::FIRST);
    assert_eq!(
        ChannelNumberValue::read(&[0x40, 0, 0xff, 0xff], &ID),
        Ok(channel)
    );
    assert_eq!(
        RequestedTransport::read(&[17, 1, 2, 3], &ID),
        Ok(RequestedTransport::UDP)
    );
    assert_eq!(written(&RequestedTransport::UDP), [17, 0, 0, 0]);
}

#[test]
fn a_channel_number_outside_the_range_is_refused() {
    let refused = ValueError::Number {
        kind: AttributeType::CHANNEL_NUMBER,
        number: 0x3fff,
    };
    assert_eq!(
        ChannelNumberValue::read(&[0x3f, 0xff, 0, 0], &ID),
        Err(refused)
    );
}

#[test]
fn password_algorithms_keep_the_bytes_they_came_in() {
    let value = written(&PasswordAlgorithms::SHA256_MD5);
    let algorithms = PasswordAlgorithms::read(&value, &ID).unwrap();
    assert!(algorithms.iter().eq([Algorithm::Sha256, Algorithm::Md5]));
    // An unknown algorithm with three bytes of parameters, then MD5.
    let value = [0, 9, 0, 3, 1, 2, 3, 0, 0, 1, 0, 0];
    let algorithms = PasswordAlgorithms::read(&value, &ID).unwrap();
    assert!(algorithms.iter().eq([Algorithm::Md5]));
    assert_eq!(algorithms.as_bytes(), value);
    assert!(PasswordAlgorithms::read(&[0, 1, 0], &ID).is_err());
    assert!(PasswordAlgorithms::read(&[0, 1, 0, 4, 0], &ID).is_err());
    assert!(PasswordAlgorithm::read(&[0, 3, 0, 0], &ID).is_err());
}

#[test]
fn names_longer_than_the_rfc_allows_are_refused() {
    let name = "n".repeat(MAX_USERNAME_BYTES);
    assert_eq!(Username::read(name.as_bytes(), &ID), Ok(Username(&name)));
    let kind = AttributeType::USERNAME;
    let length = ValueError::Length {
        kind,
        len: MAX_USERNAME_BYTES + 1,
    };
    assert_eq!(
        Username::read(&[b'n'; MAX_USERNAME_BYTES + 1], &ID),
        Err(length)
    );
    assert_eq!(Username::read(b"\xff", &ID), Err(ValueError::Text { kind }));
}
