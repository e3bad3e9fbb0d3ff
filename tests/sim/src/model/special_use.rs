//! Which addresses no peer may have: the reference for the relay's own denial, written from the IANA
//! special-purpose registries (RFC 6890 and its successors) as a list that is searched from its
//! start.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the registries say about an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// No host of the Internet: a relay must never send there.
    SpecialUse,
    /// An ordinary address: a relay must send there.
    Global,
    /// Globally reachable but of special use, or an embedding of an ordinary address: a relay may do
    /// either.
    Unclear,
}

const SPECIAL_V4: &[([u8; 4], u32)] = &[
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

const UNCLEAR_V4: &[([u8; 4], u32)] = &[
    ([192, 31, 196, 0], 24),
    ([192, 52, 193, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 175, 48, 0], 24),
];

const SPECIAL_V6: &[([u16; 8], u32)] = &[
    ([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
    ([0x100, 0, 0, 0, 0, 0, 0, 0], 64),
    ([0x100, 0, 0, 1, 0, 0, 0, 0], 64),
    ([0x2001, 2, 0, 0, 0, 0, 0, 0], 48),
    ([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28),
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
    ([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16),
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    ([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

const UNCLEAR_V6: &[([u16; 8], u32)] = &[
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
    ([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48),
];

/// What the registries say about `ip`, and about the IPv4 address inside it.
pub fn verdict(ip: IpAddr) -> Verdict {
    match ip {
        IpAddr::V4(v4) => verdict_v4(v4),
        IpAddr::V6(v6) => verdict_v6(v6),
    }
}

fn verdict_v4(v4: Ipv4Addr) -> Verdict {
    let within = |list: &[([u8; 4], u32)]| {
        list.iter()
            .any(|(prefix, len)| (u32::from(v4) ^ u32::from_be_bytes(*prefix)) >> (32 - len) == 0)
    };
    if within(SPECIAL_V4) {
        Verdict::SpecialUse
    } else if within(UNCLEAR_V4) {
        Verdict::Unclear
    } else {
        Verdict::Global
    }
}

fn verdict_v6(v6: Ipv6Addr) -> Verdict {
    if v6.is_unspecified() || v6.is_loopback() {
        return Verdict::SpecialUse;
    }
    if embedded_v4(v6).any(|v4| verdict_v4(v4) == Verdict::SpecialUse) {
        return Verdict::SpecialUse;
    }
    let within = |list: &[([u16; 8], u32)]| {
        list.iter().any(|(prefix, len)| {
            (u128::from(v6) ^ u128::from(Ipv6Addr::from(*prefix))) >> (128 - len) == 0
        })
    };
    if within(SPECIAL_V6) {
        Verdict::SpecialUse
    } else if embedded_v4(v6).next().is_some() || within(UNCLEAR_V6) || v6.segments()[0] >> 13 != 1
    {
        // Outside of 2000::/3 nothing is allocated for unicast.
        Verdict::Unclear
    } else {
        Verdict::Global
    }
}

/// The IPv4 addresses that an IPv6 address may lead to: mapped, compatible, NAT64, 6to4, and both of
/// Teredo.
pub fn embedded_v4(v6: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let words = v6.segments();
    let pair = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    let tail = pair(words[6], words[7]);
    let found = match words {
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => [Some(tail), None],
        [0x2002, high, low, ..] => [Some(pair(high, low)), None],
        [0x2001, 0, high, low, ..] => [Some(pair(high, low)), Some(pair(!words[6], !words[7]))],
        _ => [None, None],
    };
    found.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding_of_a_special_address_is_special() {
        for text in [
            "0.0.0.0",
            "10.0.0.1",
            "100.127.255.255",
            "169.254.169.254",
            "172.31.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:0:a00:1::",
            "2001:0:808:808:0:0:80ff:fffe",
            "fd00::1",
            "fe80::1",
            "ff02::1",
            "2001:db8::1",
        ] {
            assert_eq!(
                verdict(text.parse().unwrap()),
                Verdict::SpecialUse,
                "{text}"
            );
        }
    }

    #[test]
    fn ordinary_addresses_are_global() {
        for text in [
            "8.8.8.8",
            "100.128.0.1",
            "172.32.0.1",
            "223.255.255.255",
            "2a00:1450::1",
        ] {
            assert_eq!(verdict(text.parse().unwrap()), Verdict::Global, "{text}");
        }
        for text in ["2002:808:808::1", "64:ff9b::808:808", "192.88.99.1"] {
            assert_eq!(verdict(text.parse().unwrap()), Verdict::Unclear, "{text}");
        }
    }
}
