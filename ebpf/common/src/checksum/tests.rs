use std::net::{IpAddr, SocketAddr};
use std::vec::Vec;

use proptest::prelude::*;

use super::{Change, fold, ipv4_header, ipv4_header_is_intact, padding, sum};
use crate::route::{Route, RouteKey, Target};

/// A UDP datagram's checksum as RFC 768 and RFC 8200 §8.1 define it, one byte at a time and in
/// network byte order.
fn recomputed(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> u16 {
    let length = (payload.len() + 8) as u16;
    let mut bytes = Vec::new();
    for address in [from.ip(), to.ip()] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend([0, 17]);
    bytes.extend(length.to_be_bytes());
    for port in [from.port(), to.port()] {
        bytes.extend(port.to_be_bytes());
    }
    bytes.extend(length.to_be_bytes());
    bytes.extend(payload);
    let mut total: u64 = 0;
    for (index, byte) in bytes.iter().enumerate() {
        total += u64::from(*byte) << if index % 2 == 0 { 8 } else { 0 };
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    match !(total as u16) {
        0 => 0xffff,
        sum => sum,
    }
}

fn framed(channel: u16, data: &[u8], tail: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    if channel != 0 {
        payload.extend(channel.to_be_bytes());
        payload.extend((data.len() as u16).to_be_bytes());
    }
    payload.extend(data);
    payload.extend(tail);
    payload
}

fn address(family: impl Strategy<Value = bool>) -> impl Strategy<Value = SocketAddr> {
    (family, any::<[u8; 16]>(), any::<u16>()).prop_map(|(is_ipv4, bytes, port)| {
        let ip = if is_ipv4 {
            IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])
        } else {
            IpAddr::from(bytes)
        };
        SocketAddr::new(ip, port)
    })
}

fn pair() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    any::<bool>().prop_flat_map(|is_ipv4| (address(Just(is_ipv4)), address(Just(is_ipv4))))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn an_updated_checksum_is_the_recomputed_one(
        (source, local) in pair(),
        (sender, destination) in pair(),
        old_channel in prop_oneof![Just(0), 0x4000_u16..0x5000],
        new_channel in prop_oneof![Just(0), 0x4000_u16..0x5000],
        data in prop::collection::vec(prop_oneof![Just(0), Just(0xff), any::<u8>()], 0..64),
        tail in prop::collection::vec(any::<u8>(), 0..=3),
    ) {
        let tail = if old_channel == 0 { Vec::new() } else { tail };
        let arrives = framed(old_channel, &data, &tail);
        let leaves = framed(new_channel, &data, &[]);
        let key = RouteKey::new(source, local, old_channel);
        let route = Route::new(&key, &Target {
            destination,
            source: sender,
            channel: new_channel,
            up_slot: 0,
            down_slot: 0,
            next_hop: 0,
            generation: 0,
            expires: 0,
        });
        let mut cut = [0; 3];
        cut[..tail.len()].copy_from_slice(&tail);
        let change = Change {
            constant: route.checksum,
            old_udp_bytes: arrives.len() as u16 + 8,
            new_udp_bytes: leaves.len() as u16 + 8,
            old_channel_bytes: if old_channel == 0 { 0 } else { data.len() as u16 },
            new_channel_bytes: if new_channel == 0 { 0 } else { data.len() as u16 },
            padding: padding((arrives.len() - tail.len()) as u16, cut),
        };
        let arrived = recomputed(source, local, &arrives);
        let expected = recomputed(sender, destination, &leaves);
        prop_assert_eq!(change.apply(arrived.to_be()), expected.to_be());
    }

    #[test]
    fn a_sum_of_parts_is_the_sum_of_the_whole(
        a in prop::collection::vec(any::<u8>(), 0..32),
        b in prop::collection::vec(any::<u8>(), 0..32),
    ) {
        let a = &a[..a.len() & !1];
        let whole: Vec<u8> = a.iter().chain(&b).copied().collect();
        let parts = fold(u32::from(sum(a)) + u32::from(sum(&b)));
        prop_assert_eq!(u32::from(sum(&whole)) % 0xffff, u32::from(parts) % 0xffff);
    }

    #[test]
    fn an_ipv4_header_with_its_checksum_is_intact_and_with_any_other_is_not(
        header in any::<[u8; 20]>(),
        wrong in 1_u16..0xffff,
    ) {
        let mut header = header;
        header[10..12].fill(0);
        let words = |header: &[u8; 20]| {
            let mut words = [0; 5];
            for (word, bytes) in words.iter_mut().zip(header.chunks_exact(4)) {
                *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            words
        };
        let right = ipv4_header(words(&header));
        header[10..12].copy_from_slice(&right.to_ne_bytes());
        prop_assert!(ipv4_header_is_intact(words(&header)));
        let other = right.wrapping_add(wrong);
        // The two forms of zero are one number in one's complement.
        prop_assume!(right % 0xffff != other % 0xffff);
        header[10..12].copy_from_slice(&other.to_ne_bytes());
        prop_assert!(!ipv4_header_is_intact(words(&header)));
    }
}

#[test]
fn the_example_of_an_ipv4_header_has_its_checksum() {
    let header: [u8; 20] = [
        0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7,
    ];
    let mut words = [0; 5];
    for (word, bytes) in words.iter_mut().zip(header.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    assert_eq!(ipv4_header(words).to_be(), 0xb861);
}

#[test]
fn rfc_768_a_checksum_of_zero_is_sent_as_all_ones() {
    let source: SocketAddr = "192.0.2.1:1".parse().expect("an address");
    let local: SocketAddr = "192.0.2.2:2".parse().expect("an address");
    let payload_for_zero = (0..=0xffff_u16)
        .map(u16::to_be_bytes)
        .find(|payload| recomputed(source, local, payload) == 0xffff)
        .expect("some payload has it");
    let unchanged = Change {
        constant: 0,
        old_udp_bytes: 10,
        new_udp_bytes: 10,
        old_channel_bytes: 0,
        new_channel_bytes: 0,
        padding: 0,
    };
    let checksum = recomputed(source, local, &payload_for_zero);
    assert_eq!(unchanged.apply(checksum.to_be()), 0xffff);
}
