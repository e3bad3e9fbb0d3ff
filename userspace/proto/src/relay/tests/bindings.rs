use std::sync::Arc;

use super::lab::*;
use crate::relay::{DropReason, RelayAddress, RelayEvent};
use crate::wire::{AttributeType, Class, MessageType, Method};

fn lab() -> Lab {
    let mut lab = Lab::new(config());
    lab.allocate(CLIENT);
    lab
}

// RFC 8656 §10.2
#[test]
fn create_permission_without_a_peer_is_a_bad_request() {
    let mut lab = lab();
    assert_eq!(lab.permit(CLIENT, &[]), 400);
    let malformed = [(AttributeType::XOR_MAPPED_ADDRESS, vec![0; 8])];
    assert_eq!(
        code(&lab.request(CLIENT, Method::CREATE_PERMISSION, &malformed)),
        420
    );
}

// RFC 8656 §10.2 and §12.2
#[test]
fn a_peer_that_is_no_address_is_a_bad_request() {
    let mut lab = lab();
    let [peer, number] = [xor_peer(PEER), channel_number(0x4000)];
    let malformed = [vec![], vec![0, 1, 2, 3], vec![0, 3, 0, 1, 2, 3, 4, 5]];
    for value in malformed {
        // One that the lab does not XOR.
        let bad = (AttributeType::XOR_PEER_ADDRESS, value);
        for (method, attributes) in [
            (Method::CREATE_PERMISSION, vec![bad.clone()]),
            (Method::CREATE_PERMISSION, vec![peer.clone(), bad.clone()]),
            (Method::CHANNEL_BIND, vec![number.clone(), bad.clone()]),
        ] {
            let answer = lab.request(CLIENT, method, &attributes);
            assert_eq!(code(&answer), 400, "{attributes:?}");
        }
    }
    assert!(lab.peer_sends(0, b"x").is_none());
}

// RFC 8656 §10.2
#[test]
fn create_permission_permits_all_of_its_peers_or_none() {
    let mut lab = lab();
    assert_eq!(lab.permit(CLIENT, &[PEER, "127.0.0.1:1"]), 403);
    assert_eq!(lab.permit(CLIENT, &[PEER, "[2600::9]:1"]), 443);
    assert!(lab.peer_sends(0, b"x").is_none());
    assert_eq!(lab.permit(CLIENT, &[PEER, "8.8.8.8:1", "8.8.4.4:1"]), 0);
    for peer in [PEER, "8.8.8.8:9", "8.8.4.4:9"] {
        assert!(
            lab.client_sends(CLIENT, &send_indication(peer, b"x"))
                .is_some()
        );
    }
}

// RFC 8656 §5
#[test]
fn requests_without_an_allocation_are_refused_with_437() {
    let mut lab = Lab::new(config());
    assert_eq!(lab.permit(CLIENT, &[PEER]), 437);
    assert_eq!(lab.bind(CLIENT, 0x4000, PEER), 437);
    assert_eq!(code(&lab.request(CLIENT, Method::REFRESH, &[])), 437);
}

// RFC 8656 §10.2 and §12.2
#[test]
fn every_encoding_of_a_denied_address_is_refused_with_403() {
    let mut lab = Lab::new(config());
    let v6 = "[2600::77]:1";
    let family = (AttributeType::REQUESTED_ADDRESS_FAMILY, vec![2, 0, 0, 0]);
    assert_eq!(
        code(&lab.request(v6, Method::ALLOCATE, &[udp(), family])),
        0
    );
    lab.allocate(CLIENT);
    let v4_peers = [
        "127.0.0.1",
        "0.0.0.0",
        "10.0.0.1",
        "169.254.169.254",
        "224.0.0.1",
    ];
    for (client, peer) in v4_peers.map(|peer| (CLIENT, format!("{peer}:80"))) {
        assert_eq!(lab.permit(client, &[&peer]), 403, "{peer}");
        assert_eq!(lab.bind(client, 0x4000, &peer), 403, "{peer}");
    }
    let v6_peers = [
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "fd00::1",
        "fe80::1",
        "ff02::1",
    ];
    for peer in v6_peers.map(|peer| format!("[{peer}]:80")) {
        assert_eq!(lab.permit(v6, &[&peer]), 403, "{peer}");
        assert_eq!(lab.bind(v6, 0x4000, &peer), 403, "{peer}");
    }
    assert_eq!(lab.relay.counters.errors(403).unwrap().value(), 32);
}

// RFC 8656 §12.2
#[test]
fn channel_bind_without_number_or_peer_is_a_bad_request() {
    let mut lab = lab();
    let number = channel_number(0x4000);
    for attributes in [vec![number.clone()], vec![xor_peer(PEER)], vec![]] {
        assert_eq!(
            code(&lab.request(CLIENT, Method::CHANNEL_BIND, &attributes)),
            400
        );
    }
    assert_eq!(lab.bind(CLIENT, 0x3fff, PEER), 400);
    assert_eq!(lab.bind(CLIENT, 0x8000, PEER), 400);
    assert_eq!(lab.bind(CLIENT, 0x4000, "9.9.9.9:0"), 400);
}

// RFC 8656 §12.2
#[test]
fn channel_is_bound_to_one_peer_and_a_peer_to_one_channel() {
    let mut lab = lab();
    assert_eq!(lab.bind(CLIENT, 0x4000, PEER), 0);
    assert_eq!(lab.bind(CLIENT, 0x4000, "9.9.9.9:7001"), 400);
    assert_eq!(lab.bind(CLIENT, 0x4001, PEER), 400);
    assert_eq!(
        lab.bind(CLIENT, 0x4000, PEER),
        0,
        "binding it again refreshes it"
    );
    assert_eq!(lab.bind(CLIENT, 0x4001, "9.9.9.9:7001"), 0);
}

// RFC 8656 §12
#[test]
fn channel_and_peer_are_free_again_when_the_binding_has_expired() {
    let mut lab = lab();
    lab.bind(CLIENT, 0x4000, PEER);
    lab.bind(CLIENT, 0x4001, "9.9.9.9:7001");
    lab.secs(400);
    lab.request(CLIENT, Method::REFRESH, &[]);
    lab.secs(199);
    assert_eq!(lab.bind(CLIENT, 0x4001, PEER), 400);
    lab.secs(1);
    assert_eq!(lab.bind(CLIENT, 0x4001, PEER), 0);
    assert_eq!(lab.bind(CLIENT, 0x4000, "9.9.9.9:7001"), 0);
    let (transmit, _) = lab
        .client_sends(CLIENT, &channel_data(0x4001, b"x"))
        .unwrap();
    assert_eq!(transmit.destination, address(PEER));
}

#[test]
fn peer_of_another_family_is_refused_with_443() {
    let mut lab = lab();
    assert_eq!(lab.permit(CLIENT, &["[2600::9]:1"]), 443);
    assert_eq!(lab.bind(CLIENT, 0x4000, "[2600::9]:1"), 443);
}

#[test]
fn limits_of_permissions_and_channels_are_refused_with_508_and_expired_ones_make_room() {
    let mut config = config();
    config.limits.max_permissions = 3;
    config.limits.max_channels = 2;
    let mut lab = Lab::new(config);
    lab.allocate(CLIENT);
    assert_eq!(lab.bind(CLIENT, 0x4000, "9.9.9.1:1"), 0);
    assert_eq!(lab.bind(CLIENT, 0x4001, "9.9.9.1:2"), 0);
    assert_eq!(lab.bind(CLIENT, 0x4002, "9.9.9.1:3"), 508);
    assert_eq!(
        lab.permit(CLIENT, &["9.9.9.2:1", "9.9.9.3:1", "9.9.9.4:1"]),
        508
    );
    assert_eq!(lab.permit(CLIENT, &["9.9.9.2:1", "9.9.9.3:1"]), 0);
    assert_eq!(lab.permit(CLIENT, &["9.9.9.4:1"]), 508);
    assert_eq!(
        lab.permit(CLIENT, &["9.9.9.3:7"]),
        0,
        "a refresh needs no room"
    );
    lab.secs(301);
    assert_eq!(lab.permit(CLIENT, &["9.9.9.4:1", "9.9.9.5:1"]), 0);
    lab.secs(298);
    lab.request(CLIENT, Method::REFRESH, &[]);
    lab.secs(2);
    assert_eq!(lab.bind(CLIENT, 0x4002, "9.9.9.4:3"), 0);
}

#[test]
fn an_address_named_twice_takes_the_room_of_one_permission() {
    let mut config = config();
    config.limits.max_permissions = 2;
    let mut lab = Lab::new(config);
    lab.allocate(CLIENT);
    let peers = ["9.9.9.1:1", "9.9.9.1:1", "9.9.9.1:2", "9.9.9.2:1"];
    assert_eq!(lab.permit(CLIENT, &peers), 0);
    assert_eq!(lab.permit(CLIENT, &["9.9.9.3:1"]), 508);
}

#[test]
fn own_addresses_are_reached_at_relayed_ports_in_use_only() {
    let mut config = config();
    config.own_addresses = vec![[7, 7, 7, 7].into()];
    config.access.allow = vec!["7.0.0.0/8".parse().unwrap()];
    let mut lab = Lab::new(config);
    let relayed = lab.allocate(CLIENT);
    assert_eq!(lab.bind(CLIENT, 0x4000, &relayed.to_string()), 0);
    let unused = format!("5.5.5.5:{}", relayed.port() ^ 1);
    assert_eq!(lab.bind(CLIENT, 0x4001, &unused), 403);
    assert_eq!(lab.bind(CLIENT, 0x4001, "7.7.7.7:7000"), 403);
    assert_eq!(lab.permit(CLIENT, &["7.7.7.7:7000"]), 403);
    assert!(
        lab.client_sends(CLIENT, &send_indication("7.7.7.7:7000", b"x"))
            .is_none()
    );
    assert_eq!(lab.permit(CLIENT, &["5.5.5.5:1"]), 0);
    assert!(
        lab.client_sends(CLIENT, &send_indication(&unused, b"x"))
            .is_none()
    );
    assert_eq!(lab.drops(DropReason::OwnAddress), 1);
}

#[test]
fn the_loopback_is_no_peer_although_it_is_a_relay_address_too() {
    let mut config = config();
    let loopback = RelayAddress::direct([127, 0, 0, 1].into());
    config.relay_addresses.push(loopback);
    let mut lab = Lab::new(config.clone());
    lab.allocate(CLIENT);
    assert_eq!(lab.permit(CLIENT, &["127.0.0.1:80"]), 403);
    assert_eq!(lab.bind(CLIENT, 0x4000, "127.0.0.1:50000"), 403);
    config.access.allow = vec!["127.0.0.0/8".parse().unwrap()];
    lab.event(RelayEvent::Reconfigured(Arc::new(config.clone())));
    assert_eq!(lab.permit(CLIENT, &["127.0.0.1:80"]), 0);
    let send = send_indication("127.0.0.1:80", b"x");
    assert!(lab.client_sends(CLIENT, &send).is_some());
    config.access.allow.clear();
    lab.event(RelayEvent::Reconfigured(Arc::new(config)));
    assert!(lab.client_sends(CLIENT, &send).is_none());
    assert_eq!(lab.drops(DropReason::NoPermissionToPeer), 1);
}

#[test]
fn local_side_of_a_relay_address_is_denied_like_the_listening_port_of_its_public_side() {
    let mut config = config();
    let nat = RelayAddress {
        local: [10, 0, 0, 4].into(),
        public: [6, 6, 6, 6].into(),
    };
    config.relay_addresses = vec![nat];
    let mut lab = Lab::new(config);
    let relayed = lab.allocate(CLIENT);
    assert_eq!(
        lab.bind(CLIENT, 0x4000, &format!("10.0.0.4:{}", relayed.port())),
        403
    );
    assert_eq!(lab.bind(CLIENT, 0x4000, "6.6.6.6:3478"), 403);
    assert_eq!(lab.bind(CLIENT, 0x4000, &relayed.to_string()), 0);
}

#[test]
fn channel_bind_with_an_unknown_attribute_changes_nothing() {
    let mut lab = lab();
    let attributes = [
        channel_number(0x4000),
        xor_peer(PEER),
        (AttributeType(0x7001), vec![]),
    ];
    assert_eq!(
        code(&lab.request(CLIENT, Method::CHANNEL_BIND, &attributes)),
        420
    );
    assert!(
        lab.client_sends(CLIENT, &channel_data(0x4000, b"x"))
            .is_none()
    );
    assert!(lab.peer_sends(0, b"x").is_none());
}

#[test]
fn responses_and_unknown_methods_are_dropped() {
    let mut lab = lab();
    let unknown = Method::new(0x0ff).unwrap();
    for (method, class) in [
        (Method::BINDING, Class::Success),
        (Method::ALLOCATE, Class::Error),
        (Method::DATA, Class::Indication),
        (unknown, Class::Request),
        (Method::SEND, Class::Request),
    ] {
        let message = unsigned(MessageType::new(method, class), &[], false);
        assert_eq!(lab.ask(CLIENT, &message), None);
    }
    assert_eq!(lab.drops(DropReason::UnexpectedMessage), 5);
    let keepalive = unsigned(
        MessageType::new(Method::BINDING, Class::Indication),
        &[],
        false,
    );
    assert_eq!(lab.ask(CLIENT, &keepalive), None);
    assert_eq!(lab.relay.counters.binding_indications.value(), 1);
}
