//! Our client of RFC 5780 against our relay, with modelled NATs between them, under virtual time.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use towpath_proto::access::AccessRules;
use towpath_proto::machine::{
    Datagram, ListenerId, ShardId, Socket, TRANSMIT_BUFFER_BYTES, TrafficClass,
};
use towpath_proto::nat::{
    Behavior, BehaviorClient, BehaviorConfig, BehaviorError, Filtering, Mapping, NatType, TestError,
};
use towpath_proto::relay::{Relay, RelayAddress, RelayConfig, RelayLimits, RelayShared, Users};
use towpath_proto::stun::{BehaviorAddresses, Schedule};
use towpath_proto::{Machine, Timestamp};

const LOCAL: &str = "10.0.0.9:4000";
const OUTSIDE: &str = "198.51.100.9";
const SERVER: &str = "5.5.5.5:3478";
const OTHER: &str = "6.6.6.6:3479";
const ONE_WAY: Duration = Duration::from_millis(10);

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A NAT with every mapping and filtering of RFC 4787, or none.
struct Nat {
    translates: bool,
    mapping: Mapping,
    filtering: Option<Filtering>,
    mappings: BTreeMap<(SocketAddr, Option<IpAddr>, Option<u16>), SocketAddr>,
    sent_to: BTreeSet<(SocketAddr, SocketAddr)>,
}

impl Nat {
    fn new(mapping: Mapping, filtering: Filtering) -> Self {
        Self {
            translates: true,
            mapping,
            filtering: Some(filtering),
            mappings: BTreeMap::new(),
            sent_to: BTreeSet::new(),
        }
    }

    fn none(filtering: Option<Filtering>) -> Self {
        let nat = Self::new(Mapping::EndpointIndependent, Filtering::EndpointIndependent);
        Self {
            translates: false,
            filtering,
            ..nat
        }
    }

    /// The source that the destination sees.
    fn out(&mut self, local: SocketAddr, to: SocketAddr) -> SocketAddr {
        let key = match self.mapping {
            Mapping::EndpointIndependent => (local, None, None),
            Mapping::AddressDependent => (local, Some(to.ip()), None),
            Mapping::AddressAndPortDependent => (local, Some(to.ip()), Some(to.port())),
        };
        let port = 20_000 + self.mappings.len() as u16;
        let fresh = if self.translates {
            SocketAddr::new(OUTSIDE.parse().unwrap(), port)
        } else {
            local
        };
        let mapped = *self.mappings.entry(key).or_insert(fresh);
        self.sent_to.insert((mapped, to));
        mapped
    }

    /// Whether what comes from `from` for `mapped` passes.
    fn passes(&self, from: SocketAddr, mapped: SocketAddr) -> bool {
        let mut sent = self.sent_to.iter().filter(|(source, _)| *source == mapped);
        match self.filtering {
            None => true,
            Some(Filtering::EndpointIndependent) => sent.next().is_some(),
            Some(Filtering::AddressDependent) => sent.any(|(_, to)| to.ip() == from.ip()),
            Some(Filtering::AddressAndPortDependent) => sent.any(|(_, to)| *to == from),
        }
    }
}

fn relay(behavior: bool) -> Relay {
    let listeners = [
        "5.5.5.5:3478",
        "5.5.5.5:3479",
        "6.6.6.6:3478",
        "6.6.6.6:3479",
    ];
    let direct = |ip: [u8; 4]| RelayAddress::direct(ip.into());
    let config = RelayConfig {
        realm: "example.org".to_owned(),
        software: None,
        listeners: listeners.map(address).into(),
        relay_addresses: vec![direct([5, 5, 5, 5])],
        own_addresses: Vec::new(),
        behavior: behavior.then(|| BehaviorAddresses {
            pairs: vec![[direct([5, 5, 5, 5]), direct([6, 6, 6, 6])]],
            ports: [3478, 3479],
        }),
        alternate_servers: Vec::new(),
        port_range: 50_000..=50_009,
        shards: 1,
        users: Users::new(),
        access: AccessRules::default(),
        limits: RelayLimits::default(),
        mobility: false,
        offload: false,
        nonce_secret: [3; 32],
    };
    config.validate().unwrap();
    let shared = Arc::new(RelayShared::new(&config));
    Relay::new(Arc::new(config), shared, ShardId(0), [1; 32])
}

/// What the network does to a datagram between these two.
type Fate = fn(from: SocketAddr, to: SocketAddr, number: u32) -> bool;

fn everything_arrives(_: SocketAddr, _: SocketAddr, _: u32) -> bool {
    true
}

/// Runs the tests behind `nat`; how they end, and after what time.
fn run(
    mut nat: Nat,
    mut relay: Relay,
    arrives: Fate,
) -> (Result<Behavior, BehaviorError>, Duration) {
    let listeners = [
        "5.5.5.5:3478",
        "5.5.5.5:3479",
        "6.6.6.6:3478",
        "6.6.6.6:3479",
    ]
    .map(address);
    let start = Timestamp::ZERO + Duration::from_secs(100);
    let mut now = start;
    let config = BehaviorConfig {
        server: address(SERVER),
        local: address(LOCAL),
        schedule: Schedule::new(Duration::from_millis(200), 3, 4).unwrap(),
    };
    let mut client = BehaviorClient::new(now, config, [5; 32]);
    let mut on_the_way: BTreeMap<(Timestamp, u32), (SocketAddr, Vec<u8>)> = BTreeMap::new();
    let mut number = 0;
    loop {
        client.handle_timeout(now);
        let mut buffer = [0; TRANSMIT_BUFFER_BYTES];
        while let Some((to, len)) = client.poll_transmit(now, &mut buffer) {
            let mapped = nat.out(address(LOCAL), to);
            number += 1;
            if !arrives(mapped, to, number) {
                continue;
            }
            let listener = listeners
                .iter()
                .position(|listener| *listener == to)
                .unwrap();
            let mut payload = buffer[..len].to_vec();
            let datagram = Datagram {
                socket: Socket::Listener(ListenerId(listener as u16)),
                local: to.ip(),
                remote: mapped,
                traffic_class: TrafficClass::ORDINARY,
                payload: &mut payload,
            };
            assert!(relay.handle_datagram(now, datagram).is_none());
            let mut buffer = [0; TRANSMIT_BUFFER_BYTES];
            while let Some(transmit) = relay.poll_transmit(now, &mut buffer) {
                let Socket::Listener(ListenerId(index)) = transmit.socket else {
                    panic!("{transmit:?}")
                };
                let from = listeners[usize::from(index)];
                let answer = &buffer[transmit.payload.clone()];
                assert!(answer.len() * 10 <= len * 16, "{} to {len}", answer.len());
                number += 1;
                let to = transmit.destination;
                if arrives(from, to, number) && nat.passes(from, to) {
                    let arrival = (now + ONE_WAY * 2, number);
                    on_the_way.insert(arrival, (from, answer.to_vec()));
                }
            }
        }
        if let Some(outcome) = client.outcome() {
            assert_eq!(client.poll_timeout(), None);
            return (outcome, now.saturating_since(start));
        }
        let arrival = on_the_way.keys().next().map(|(at, _)| *at);
        now = [client.poll_timeout(), arrival]
            .into_iter()
            .flatten()
            .min()
            .unwrap();
        while let Some(first) = on_the_way.first_entry()
            && first.key().0 <= now
        {
            let (from, bytes) = first.remove();
            client.handle_datagram(now, from, &bytes);
        }
    }
}

const MAPPINGS: [Mapping; 3] = [
    Mapping::EndpointIndependent,
    Mapping::AddressDependent,
    Mapping::AddressAndPortDependent,
];
const FILTERINGS: [Filtering; 3] = [
    Filtering::EndpointIndependent,
    Filtering::AddressDependent,
    Filtering::AddressAndPortDependent,
];

#[test]
fn every_combination_of_mapping_and_filtering_is_told() {
    for mapping in MAPPINGS {
        for filtering in FILTERINGS {
            let nat = Nat::new(mapping, filtering);
            let (outcome, took) = run(nat, relay(true), everything_arrives);
            let found = outcome.unwrap();
            assert_eq!(
                (found.mapping, found.filtering),
                (Ok(mapping), Ok(filtering))
            );
            assert_eq!(found.mapped, address("198.51.100.9:20000"));
            assert_eq!(found.other, address(OTHER));
            let nat_type = match (mapping, filtering) {
                (Mapping::EndpointIndependent, Filtering::EndpointIndependent) => NatType::FullCone,
                (Mapping::EndpointIndependent, Filtering::AddressDependent) => {
                    NatType::RestrictedCone
                }
                (Mapping::EndpointIndependent, Filtering::AddressAndPortDependent) => {
                    NatType::PortRestrictedCone
                }
                _ => NatType::Symmetric,
            };
            assert_eq!(found.nat_type(), nat_type);
            // Three round trips, and once the whole schedule where something is filtered.
            let quiet = match filtering {
                Filtering::EndpointIndependent => Duration::ZERO,
                _ => Duration::from_millis(200 + 400 + 800),
            };
            let round_trips = ONE_WAY * 2 * if quiet.is_zero() { 3 } else { 2 };
            assert_eq!(took, quiet + round_trips);
        }
    }
}

#[test]
fn without_a_nat_only_a_firewall_is_told() {
    for filtering in FILTERINGS {
        let nat = Nat::none(Some(filtering));
        let found = run(nat, relay(true), everything_arrives).0.unwrap();
        assert_eq!(
            (found.is_translated(), found.nat_type()),
            (false, NatType::None)
        );
        assert_eq!(found.filtering, Ok(filtering));
    }
    let found = run(Nat::none(None), relay(true), everything_arrives)
        .0
        .unwrap();
    assert_eq!(found.filtering, Ok(Filtering::EndpointIndependent));
}

#[test]
fn lost_packets_are_sent_again() {
    fn every_other_is_lost(_: SocketAddr, _: SocketAddr, number: u32) -> bool {
        number.is_multiple_of(2)
    }
    let nat = Nat::new(Mapping::AddressDependent, Filtering::EndpointIndependent);
    let (outcome, _) = run(nat, relay(true), |_, _, number| number % 3 != 1);
    let found = outcome.unwrap();
    assert_eq!(found.mapping, Ok(Mapping::AddressDependent));
    assert_eq!(found.filtering, Ok(Filtering::EndpointIndependent));
    let nat = Nat::new(Mapping::AddressDependent, Filtering::EndpointIndependent);
    let (outcome, _) = run(nat, relay(true), every_other_is_lost);
    let timed_out = BehaviorError::TimedOut { transmissions: 3 };
    assert_eq!(outcome, Err(timed_out), "no answer ever arrives");
}

#[test]
fn an_address_that_never_answers_shows_no_filter() {
    fn other_address_is_dead(from: SocketAddr, to: SocketAddr, _: u32) -> bool {
        let dead: IpAddr = [6, 6, 6, 6].into();
        from.ip() != dead && to.ip() != dead
    }
    let nat = Nat::new(Mapping::EndpointIndependent, Filtering::EndpointIndependent);
    let found = run(nat, relay(true), other_address_is_dead).0.unwrap();
    assert_eq!(found.mapping, Err(TestError::OtherSilent));
    assert_eq!(found.filtering, Err(TestError::OtherSilent));
    assert_eq!(found.nat_type(), NatType::Unknown);
}

#[test]
fn a_server_without_a_second_address_is_named_as_the_reason() {
    let nat = Nat::new(Mapping::EndpointIndependent, Filtering::EndpointIndependent);
    let mapped = address("198.51.100.9:20000");
    let outcome = run(nat, relay(false), everything_arrives).0;
    assert_eq!(outcome, Err(BehaviorError::NoOtherAddress { mapped }));
}

#[test]
fn a_server_that_is_not_there_is_told() {
    let nat = Nat::new(Mapping::EndpointIndependent, Filtering::EndpointIndependent);
    let (outcome, took) = run(nat, relay(true), |_, _, _| false);
    assert_eq!(outcome, Err(BehaviorError::TimedOut { transmissions: 3 }));
    assert_eq!(took, Duration::from_millis(200 + 400 + 800));
}
