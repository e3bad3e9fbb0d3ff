use std::net::Ipv4Addr;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::relay::{RelayAddress, RelayConfig, RelayLimits, Users};

fn prefix(text: &str) -> IpPrefix {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn config(allow: &[&str], deny: &[&str]) -> RelayConfig {
    RelayConfig {
        realm: "example.org".to_owned(),
        software: None,
        listeners: vec![
            "0.0.0.0:3478".parse().unwrap(),
            "[::]:3478".parse().unwrap(),
        ],
        relay_addresses: vec![
            RelayAddress {
                local: ip("10.0.0.4"),
                public: ip("198.41.0.5"),
            },
            RelayAddress::direct(ip("2600::5")),
        ],
        own_addresses: vec![ip("10.0.0.4"), ip("198.41.0.9"), ip("2600::9")],
        behavior: None,
        alternate_servers: Vec::new(),
        port_range: 49_152..=65_535,
        shards: 1,
        users: Users::new(),
        access: AccessRules {
            allow: allow.iter().map(|text| prefix(text)).collect(),
            deny: deny.iter().map(|text| prefix(text)).collect(),
        },
        limits: RelayLimits::default(),
        mobility: false,
        offload: false,
        nonce_secret: [0; 32],
    }
}

fn policy(allow: &[&str], deny: &[&str]) -> PeerPolicy {
    PeerPolicy::new(&config(allow, deny))
}

static DEFAULT: LazyLock<PeerPolicy> = LazyLock::new(|| policy(&[], &[]));

fn assert_denied(addresses: &[&str]) {
    for text in addresses {
        assert!(
            matches!(DEFAULT.judge(ip(text)), Verdict::Denied(_)),
            "{text} is not denied"
        );
    }
}

#[test]
fn ordinary_addresses_are_allowed() {
    for text in [
        "1.1.1.1",
        "8.8.8.8",
        "100.128.0.1",
        "172.32.0.1",
        "198.17.255.255",
        "223.9.9.9",
    ] {
        assert_eq!(DEFAULT.judge(ip(text)), Verdict::Allowed, "{text}");
    }
    for text in [
        "2606:4700::1111",
        "2a00::1",
        "2001:200::1",
        "64:ff9b::808:808",
    ] {
        assert_eq!(DEFAULT.judge(ip(text)), Verdict::Allowed, "{text}");
    }
}

#[test]
fn special_use_ipv4_ranges_are_denied_from_their_first_to_their_last_address() {
    assert_denied(&[
        "0.0.0.0",
        "0.255.255.255",
        "10.0.0.0",
        "10.255.255.255",
        "100.64.0.0",
    ]);
    assert_denied(&[
        "100.127.255.255",
        "127.0.0.0",
        "127.0.0.1",
        "127.255.255.255",
    ]);
    assert_denied(&[
        "169.254.0.0",
        "169.254.169.254",
        "169.254.255.255",
        "172.16.0.0",
    ]);
    assert_denied(&[
        "172.31.255.255",
        "192.0.0.0",
        "192.0.0.255",
        "192.0.2.0",
        "192.0.2.255",
    ]);
    assert_denied(&["192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.0.0"]);
    assert_denied(&[
        "192.168.255.255",
        "192.175.48.1",
        "198.18.0.0",
        "198.19.255.255",
    ]);
    assert_denied(&[
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
    ]);
    assert_denied(&["240.0.0.1", "255.255.255.255"]);
}

#[test]
fn special_use_ipv6_ranges_are_denied() {
    assert_denied(&[
        "::",
        "::1",
        "100::1",
        "2001::1",
        "2001:1ff:ffff::1",
        "2001:db8::1",
    ]);
    assert_denied(&[
        "2001:20::1",
        "2620:4f:8000::1",
        "3fff::1",
        "3fff:fff::1",
        "5f00::1",
    ]);
    assert_denied(&[
        "fc00::1", "fd00::1", "fe80::1", "febf::1", "fec0::1", "ff02::1", "ff0e::1",
    ]);
    assert_denied(&["4000::1", "::2:0:0:0"]);
}

#[test]
fn ipv4_mapped_addresses_are_denied() {
    assert_denied(&[
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
    ]);
    assert_denied(&["::ffff:8.8.8.8"]);
}

#[test]
fn ipv4_compatible_addresses_are_denied() {
    assert_denied(&["::127.0.0.1", "::10.0.0.1", "::8.8.8.8"]);
}

#[test]
fn ipv4_translated_addresses_are_denied() {
    assert_denied(&["::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8"]);
}

#[test]
fn six_to_four_addresses_are_judged_by_the_address_they_carry() {
    assert_denied(&[
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2002:a9fe:a9fe::1",
        "2002:e000:1::",
    ]);
    assert_eq!(DEFAULT.judge(ip("2002:808:808::1")), Verdict::Allowed);
}

#[test]
fn nat64_addresses_are_judged_by_the_address_they_carry() {
    assert_denied(&["64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe"]);
    assert_eq!(DEFAULT.judge(ip("64:ff9b::808:808")), Verdict::Allowed);
}

#[test]
fn local_use_nat64_is_denied_unless_allowed_and_then_judged_by_both_forms_it_may_have() {
    assert_denied(&["64:ff9b:1::808:808", "64:ff9b:1::7f00:1"]);
    let policy = policy(&["64:ff9b:1::/48"], &[]);
    let slash_48_of_8888_and_low_8888 = ip("64:ff9b:1:808:8:800:808:808");
    assert_eq!(
        policy.judge(slash_48_of_8888_and_low_8888),
        Verdict::Allowed
    );
    let loopback_in_the_low_bits = ip("64:ff9b:1:808:8:800:7f00:1");
    assert_eq!(
        policy.judge(loopback_in_the_low_bits),
        Verdict::Denied(Denial::Embedded)
    );
    let loopback_as_slash_48 = ip("64:ff9b:1:7f00:0:100:808:808");
    assert_eq!(
        policy.judge(loopback_as_slash_48),
        Verdict::Denied(Denial::Embedded)
    );
}

#[test]
fn teredo_addresses_are_denied_also_where_allowed_but_carrying_a_denied_address() {
    assert_denied(&["2001:0:808:808::1"]);
    let policy = policy(&["2001::/32"], &[]);
    // Server 8.8.8.8, client 8.8.4.4 (inverted).
    assert_eq!(
        policy.judge(ip("2001:0:808:808:0:0:f7f7:fbfb")),
        Verdict::Allowed
    );
    // Client 127.0.0.1, inverted.
    let client = ip("2001:0:808:808:0:0:80ff:fffe");
    assert_eq!(policy.judge(client), Verdict::Denied(Denial::Embedded));
    // Server 10.0.0.1.
    let server = ip("2001:0:a00:1:0:0:f7f7:fbfb");
    assert_eq!(policy.judge(server), Verdict::Denied(Denial::Embedded));
}

#[test]
fn a_wide_ipv6_exception_does_not_open_the_ipv4_addresses_inside() {
    let policy = policy(&["::/0"], &[]);
    for text in [
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::7f00:1",
        "::",
    ] {
        assert!(
            matches!(policy.judge(ip(text)), Verdict::Denied(_)),
            "{text}"
        );
    }
    assert_eq!(policy.judge(ip("fd00::1")), Verdict::Allowed);
}

#[test]
fn allow_opens_a_special_use_range_and_deny_wins_over_it() {
    let policy = policy(&["10.77.0.0/16"], &["10.77.3.0/24", "9.0.0.0/8"]);
    assert_eq!(policy.judge(ip("10.77.2.9")), Verdict::Allowed);
    assert_eq!(policy.judge(ip("10.77.3.9")), Verdict::Denied(Denial::Rule));
    assert_eq!(
        policy.judge(ip("10.78.2.9")),
        Verdict::Denied(Denial::SpecialUse)
    );
    assert_eq!(policy.judge(ip("9.1.2.3")), Verdict::Denied(Denial::Rule));
    assert_eq!(
        policy.judge(ip("2002:901:203::1")),
        Verdict::Denied(Denial::Embedded)
    );
}

#[test]
fn multicast_broadcast_and_the_unspecified_address_are_never_opened() {
    let policy = policy(&["0.0.0.0/0", "::/0"], &[]);
    for text in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1"] {
        assert_eq!(
            policy.judge(ip(text)),
            Verdict::Denied(Denial::NoPeer),
            "{text}"
        );
    }
}

#[test]
fn own_addresses_are_closed_but_for_relayed_ports_in_use() {
    let config = config(&[], &[]);
    let (policy, shared) = (PeerPolicy::new(&config), RelayShared::new(&config));
    shared.set_live(0, 50_000, true);
    let open = |text: &str| {
        let peer: SocketAddr = text.parse().unwrap();
        match policy.judge(peer.ip()) {
            Verdict::Own(own) => policy.is_own_port_open(own, peer, &shared),
            Verdict::Denied(denial) => {
                assert_eq!(denial, Denial::OwnHost, "{peer}");
                false
            }
            Verdict::Allowed => panic!("{peer} is not own"),
        }
    };
    assert!(open("198.41.0.5:50000"));
    assert!(!open("198.41.0.5:50001"));
    assert!(!open("198.41.0.5:3478"));
    // Clients know the public address only; the local one is an own address like any other.
    assert!(!open("10.0.0.4:50000"));
    assert!(!open("198.41.0.9:50000"));
    assert!(!open("[2600::5]:50000"));
    assert!(!open("[2600::9]:80"));
    shared.set_live(0, 50_000, false);
    assert!(!open("198.41.0.5:50000"));
}

#[test]
fn allow_opens_an_own_address_only_by_its_very_name_and_never_a_listening_port() {
    let config = config(&["10.0.0.0/8", "198.41.0.9", "127.0.0.0/8"], &[]);
    let (policy, shared) = (PeerPolicy::new(&config), RelayShared::new(&config));
    let open = |text: &str| {
        let peer: SocketAddr = text.parse().unwrap();
        match policy.judge(peer.ip()) {
            Verdict::Own(own) => policy.is_own_port_open(own, peer, &shared),
            Verdict::Denied(denial) => {
                assert_eq!(denial, Denial::OwnHost, "{peer}");
                false
            }
            Verdict::Allowed => panic!("{peer} is not own"),
        }
    };
    assert!(
        !open("10.0.0.4:7000"),
        "a wider prefix does not name the host"
    );
    assert!(open("198.41.0.9:7000"));
    assert!(!open("198.41.0.9:3478"));
    assert!(open("127.0.0.1:7000"));
    assert!(!open("127.0.0.1:3478"));
    assert!(!open("127.0.0.2:3478"), "all of 127.0.0.0/8 is this host");
    assert_eq!(policy.judge(ip("10.0.0.5")), Verdict::Allowed);
}

#[test]
fn allow_never_opens_a_listening_port_by_the_public_side_of_its_address() {
    let mut config = config(&["198.41.0.5"], &[]);
    config.listeners = vec!["10.0.0.4:3478".parse().unwrap()];
    let (policy, shared) = (PeerPolicy::new(&config), RelayShared::new(&config));
    let Verdict::Own(own) = policy.judge(ip("198.41.0.5")) else {
        panic!("it is an own address")
    };
    let open = |port| {
        let peer = SocketAddr::new(ip("198.41.0.5"), port);
        policy.is_own_port_open(own, peer, &shared)
    };
    assert!(open(7000));
    assert!(!open(3478), "it would arrive at 10.0.0.4:3478");
}

#[test]
fn a_relayed_address_on_the_loopback_is_a_peer_for_others_of_the_loopback_only() {
    let mut config = config(&[], &[]);
    let loopback = RelayAddress::direct(ip("127.0.0.1"));
    config.relay_addresses.push(loopback);
    let policy = PeerPolicy::new(&config);
    let from = |local: &str| policy.judge_from(ip(local), ip("127.0.0.1"));
    assert!(matches!(from("127.0.0.1"), Verdict::Own(_)));
    assert_eq!(from("10.0.0.4"), Verdict::Denied(Denial::OwnHost));
    config.access.allow = vec![prefix("127.0.0.0/8")];
    let policy = PeerPolicy::new(&config);
    let opened = policy.judge_from(ip("10.0.0.4"), ip("127.0.0.1"));
    assert!(matches!(opened, Verdict::Own(_)));
}

#[test]
fn a_carried_own_address_is_denied_whatever_its_port() {
    let policy = policy(&["198.41.0.9"], &[]);
    assert_eq!(
        policy.judge(ip("64:ff9b::198.41.0.9")),
        Verdict::Denied(Denial::Embedded)
    );
    assert_eq!(
        policy.judge(ip("2002:c629:5::1")),
        Verdict::Denied(Denial::Embedded)
    );
}

#[test]
fn prefixes_are_refused_with_the_value_and_the_rule() {
    let refusal = |text: &str| text.parse::<IpPrefix>().unwrap_err().to_string();
    assert_eq!(
        refusal("10.0.0.1/8"),
        "10.0.0.1/8 has bits set behind the prefix"
    );
    assert_eq!(
        refusal("10.0.0.0/33"),
        "10.0.0.0/33: a prefix of this family has at most 32 bits"
    );
    assert_eq!(
        refusal("ten/8"),
        "\"ten/8\" does not begin with an IP address"
    );
    assert_eq!(
        refusal("10.0.0.0/x"),
        "\"10.0.0.0/x\" does not end in a prefix length"
    );
    assert_eq!(prefix("::/0").to_string(), "::/0");
    assert!(prefix("10.1.2.3").is_host());
}

proptest! {
    #[test]
    fn a_prefix_contains_exactly_the_addresses_that_share_its_first_bits(
        network in any::<u128>(), bits in 0..=128u8, address in any::<u128>(), near in any::<bool>(),
    ) {
        let keep = if bits == 0 { 0 } else { u128::MAX << (128 - u32::from(bits)) };
        let network = network & keep;
        let address = if near { network | (address & !keep) } else { address };
        let prefix = IpPrefix::new(Ipv6Addr::from_bits(network).into(), bits).unwrap();
        let shared = (address ^ network).leading_zeros() >= u32::from(bits);
        prop_assert_eq!(prefix.contains(Ipv6Addr::from_bits(address).into()), shared);
    }

    #[test]
    fn an_ipv4_prefix_contains_exactly_the_addresses_that_share_its_first_bits(
        network in any::<u32>(), bits in 0..=32u8, address in any::<u32>(), near in any::<bool>(),
    ) {
        let keep = if bits == 0 { 0 } else { u32::MAX << (32 - u32::from(bits)) };
        let network = network & keep;
        let address = if near { network | (address & !keep) } else { address };
        let prefix = IpPrefix::new(Ipv4Addr::from_bits(network).into(), bits).unwrap();
        let shared = (address ^ network).leading_zeros() >= u32::from(bits);
        prop_assert_eq!(prefix.contains(Ipv4Addr::from_bits(address).into()), shared);
        prop_assert!(!prefix.contains(Ipv4Addr::from_bits(address).to_ipv6_mapped().into()));
    }

    #[test]
    fn no_encoding_of_a_denied_ipv4_address_is_allowed(bits in any::<u32>(), suffix in any::<u64>()) {
        let v4 = Ipv4Addr::from_bits(bits);
        let carried = u128::from(bits);
        let denied = matches!(DEFAULT.judge(v4.into()), Verdict::Denied(_));
        let encodings = [
            carried,
            0xffff << 32 | carried,
            0xffff_0000 << 32 | carried,
            0x2002 << 112 | carried << 80 | u128::from(suffix),
            0x0064_ff9b << 96 | carried,
            0x2001 << 112 | carried << 64 | u128::from(suffix),
            0x2001 << 112 | u128::from(!bits),
        ];
        for encoding in encodings {
            let verdict = DEFAULT.judge(Ipv6Addr::from_bits(encoding).into());
            prop_assert!(!denied || matches!(verdict, Verdict::Denied(_)), "{encoding:x}");
        }
    }

    #[test]
    fn nothing_under_deny_is_ever_reachable(address in any::<u128>(), bits in 1..=128u8) {
        let keep = u128::MAX << (128 - u32::from(bits));
        let rule = IpPrefix::new(Ipv6Addr::from_bits(address & keep).into(), bits).unwrap();
        let mut config = config(&["::/0"], &[]);
        config.access.deny.push(rule);
        let verdict = PeerPolicy::new(&config).judge(Ipv6Addr::from_bits(address).into());
        prop_assert!(matches!(verdict, Verdict::Denied(_)));
    }
}
