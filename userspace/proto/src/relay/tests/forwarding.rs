use super::lab::*;
use crate::machine::{ListenerId, PortId, Prefix, Socket, TrafficClass, Transmit};
use crate::relay::{DropReason, RelayAddress};
use crate::wire::attribute::{Data, XorPeerAddress};
use crate::wire::{AttributeType, Class, Message, MessageType, Method};

fn lab() -> Lab {
    let mut lab = Lab::new(config());
    lab.allocate(CLIENT);
    lab
}

// RFC 8656 §12.5, §12.6
#[test]
fn channel_data_is_forwarded_to_the_peer_without_its_header() {
    let mut lab = lab();
    assert_eq!(lab.bind(CLIENT, 0x4000, PEER), 0);
    let (transmit, bytes) = lab
        .client_sends(CLIENT, &channel_data(0x4000, b"hello"))
        .unwrap();
    let expected = Transmit {
        socket: Socket::Relayed(PortId(0)),
        source: None,
        destination: address(PEER),
        prefix: Prefix::EMPTY,
        payload: 4..9,
        padding: 0,
        traffic_class: TrafficClass::ORDINARY,
        dont_fragment: false,
    };
    assert_eq!((transmit, &bytes[..]), (expected, &b"hello"[..]));
    assert_eq!(lab.relay.counters.packets_to_peers.value(), 1);
    assert_eq!(lab.relay.counters.bytes_to_peers.value(), 5);
}

#[test]
fn padding_behind_channel_data_is_not_forwarded() {
    let mut lab = lab();
    lab.bind(CLIENT, 0x4000, PEER);
    let mut message = channel_data(0x4000, b"hello");
    message.extend_from_slice(&[1, 2, 3]);
    assert_eq!(lab.client_sends(CLIENT, &message).unwrap().1, b"hello");
}

// RFC 8656 §12.7
#[test]
fn data_of_a_bound_peer_reaches_the_client_as_channel_data() {
    let mut lab = lab();
    lab.bind(CLIENT, 0x4001, PEER);
    let (transmit, bytes) = lab.peer_sends(0, b"answer").unwrap();
    assert_eq!(transmit.socket, Socket::Listener(ListenerId(0)));
    assert_eq!(transmit.source, Some(address("5.5.5.5:1").ip()));
    assert_eq!(transmit.destination, address(CLIENT));
    assert_eq!(transmit.payload, 0..6);
    assert_eq!(bytes, channel_data(0x4001, b"answer"));
    assert_eq!(lab.relay.counters.packets_to_clients.value(), 1);
    assert_eq!(lab.relay.counters.bytes_to_clients.value(), 6);
}

// RFC 8656 §11.3
#[test]
fn data_of_a_permitted_peer_reaches_the_client_as_a_data_indication() {
    let mut lab = lab();
    lab.permit(CLIENT, &["9.9.9.9:1"]);
    let (transmit, bytes) = lab.peer_sends(0, b"hello").unwrap();
    assert_eq!(transmit.payload, 0..5);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(
        message.message_type(),
        MessageType::new(Method::DATA, Class::Indication)
    );
    assert_eq!(message.get(), Ok(Some(XorPeerAddress(address(PEER)))));
    assert_eq!(message.get(), Ok(Some(Data(b"hello"))));
    assert_eq!(lab.relay.counters.data_indications.value(), 1);
}

// RFC 8656 §11.2
#[test]
fn send_indication_is_forwarded_from_where_its_data_stands() {
    let mut lab = lab();
    lab.permit(CLIENT, &[PEER]);
    let message = send_indication(PEER, b"abc");
    let (transmit, bytes) = lab.client_sends(CLIENT, &message).unwrap();
    assert_eq!(transmit.socket, Socket::Relayed(PortId(0)));
    assert_eq!(transmit.destination, address(PEER));
    assert_eq!(bytes, b"abc");
}

#[test]
fn send_indication_to_any_port_of_a_permitted_address_is_forwarded() {
    let mut lab = lab();
    lab.permit(CLIENT, &["9.9.9.9:1"]);
    assert!(
        lab.client_sends(CLIENT, &send_indication("9.9.9.9:65535", b"x"))
            .is_some()
    );
}

#[test]
fn nothing_is_forwarded_without_a_permission() {
    let mut lab = lab();
    assert!(
        lab.client_sends(CLIENT, &send_indication(PEER, b"x"))
            .is_none()
    );
    assert!(lab.peer_sends(0, b"x").is_none());
    assert!(
        lab.client_sends(CLIENT, &channel_data(0x4000, b"x"))
            .is_none()
    );
    assert_eq!(lab.drops(DropReason::NoPermissionToPeer), 1);
    assert_eq!(lab.drops(DropReason::NoPermissionFromPeer), 1);
    assert_eq!(lab.drops(DropReason::ChannelNotBound), 1);
}

// RFC 8656 §9
#[test]
fn permission_ends_after_300_seconds() {
    let mut lab = lab();
    lab.permit(CLIENT, &[PEER]);
    lab.secs(299);
    assert!(lab.peer_sends(0, b"x").is_some());
    assert!(
        lab.client_sends(CLIENT, &send_indication(PEER, b"x"))
            .is_some()
    );
    lab.secs(1);
    assert!(lab.peer_sends(0, b"x").is_none());
    assert!(
        lab.client_sends(CLIENT, &send_indication(PEER, b"x"))
            .is_none()
    );
}

// RFC 8656 §12: channel bindings last "10 minutes unless refreshed", §9: the permission that came with
// one "MUST be 300 seconds".
#[test]
fn channel_carries_data_while_it_is_bound_although_its_permission_has_ended() {
    let mut lab = lab();
    lab.bind(CLIENT, 0x4000, PEER);
    lab.secs(250);
    lab.request(CLIENT, Method::REFRESH, &[]);
    for seconds in [49, 1, 200, 99] {
        lab.secs(seconds);
        assert!(
            lab.client_sends(CLIENT, &channel_data(0x4000, b"x"))
                .is_some()
        );
        assert_eq!(
            lab.peer_sends(0, b"x").unwrap().1,
            channel_data(0x4000, b"x")
        );
    }
    // The permission has ended for everything else.
    let send = send_indication(PEER, b"x");
    assert!(lab.client_sends(CLIENT, &send).is_none());
    let (socket, neighbour) = (Socket::Relayed(PortId(0)), address("9.9.9.9:7001"));
    assert!(lab.arrive(socket, "5.5.5.5", neighbour, b"x").is_none());
    lab.secs(1);
    assert!(
        lab.client_sends(CLIENT, &channel_data(0x4000, b"x"))
            .is_none()
    );
    assert!(lab.peer_sends(0, b"x").is_none());
}

// RFC 8656 §12
#[test]
fn channel_ends_after_600_seconds_and_data_goes_on_as_indications() {
    let mut lab = lab();
    lab.bind(CLIENT, 0x4000, PEER);
    lab.secs(200);
    lab.permit(CLIENT, &[PEER]);
    lab.secs(200);
    lab.permit(CLIENT, &[PEER]);
    lab.request(CLIENT, Method::REFRESH, &[]);
    lab.secs(199);
    assert!(
        lab.client_sends(CLIENT, &channel_data(0x4000, b"x"))
            .is_some()
    );
    lab.secs(1);
    assert!(
        lab.client_sends(CLIENT, &channel_data(0x4000, b"x"))
            .is_none()
    );
    assert_eq!(lab.drops(DropReason::ChannelNotBound), 1);
    let (_, bytes) = lab.peer_sends(0, b"x").unwrap();
    assert_eq!(Message::parse(&bytes).unwrap().method(), Method::DATA);
}

#[test]
fn channel_data_of_others_is_dropped() {
    let mut lab = lab();
    lab.bind(CLIENT, 0x4000, PEER);
    assert!(
        lab.client_sends("198.18.0.1:40001", &channel_data(0x4000, b"x"))
            .is_none()
    );
    assert!(
        lab.client_sends("198.18.0.2:40000", &channel_data(0x4000, b"x"))
            .is_none()
    );
    assert_eq!(lab.drops(DropReason::NoAllocation), 2);
}

#[test]
fn data_of_another_port_of_a_bound_peer_is_no_channel_data() {
    let mut lab = lab();
    lab.bind(CLIENT, 0x4000, PEER);
    let socket = Socket::Relayed(PortId(0));
    let (_, bytes) = lab
        .arrive(socket, "5.5.5.5", address("9.9.9.9:7001"), b"x")
        .unwrap();
    assert_eq!(Message::parse(&bytes).unwrap().method(), Method::DATA);
    assert!(
        lab.arrive(socket, "5.5.5.5", address("9.9.9.8:7000"), b"x")
            .is_none()
    );
}

// RFC 8656 §12.6
#[test]
fn truncated_and_overlong_channel_data_is_dropped() {
    let mut lab = lab();
    lab.bind(CLIENT, 0x4000, PEER);
    let mut message = channel_data(0x4000, b"hello");
    assert!(lab.client_sends(CLIENT, &message[..8]).is_none());
    message.extend_from_slice(&[0; 4]);
    assert!(lab.client_sends(CLIENT, &message).is_none());
    assert!(lab.client_sends(CLIENT, &message[..3]).is_none());
    assert_eq!(lab.drops(DropReason::BadChannelData), 3);
}

// RFC 8656 §11.2
#[test]
fn send_indication_without_peer_or_data_is_dropped() {
    let mut lab = lab();
    lab.permit(CLIENT, &[PEER]);
    let send = MessageType::new(Method::SEND, Class::Indication);
    assert!(
        lab.client_sends(CLIENT, &unsigned(send, &[xor_peer(PEER)], false))
            .is_none()
    );
    let data = (AttributeType::DATA, vec![1]);
    assert!(
        lab.client_sends(CLIENT, &unsigned(send, &[data], false))
            .is_none()
    );
    assert!(
        lab.client_sends(CLIENT, &send_indication("[2600::9]:1", b"x"))
            .is_none()
    );
    assert!(
        lab.client_sends(CLIENT, &send_indication("9.9.9.9:0", b"x"))
            .is_none()
    );
    assert_eq!(lab.drops(DropReason::BadSendIndication), 4);
}

#[test]
fn send_indication_may_carry_no_bytes_at_all() {
    let mut lab = lab();
    lab.permit(CLIENT, &[PEER]);
    assert_eq!(
        lab.client_sends(CLIENT, &send_indication(PEER, b""))
            .unwrap()
            .1,
        b""
    );
    lab.bind(CLIENT, 0x4000, PEER);
    assert_eq!(
        lab.client_sends(CLIENT, &channel_data(0x4000, b""))
            .unwrap()
            .1,
        b""
    );
    assert_eq!(lab.peer_sends(0, b"").unwrap().1, channel_data(0x4000, b""));
}

#[test]
fn bytes_that_are_no_protocol_of_ours_are_dropped() {
    let mut lab = lab();
    for bytes in [&[][..], &[0x80; 30], &[0xff], &[0x00; 19], &[0x00; 40]] {
        assert!(lab.client_sends(CLIENT, bytes).is_none());
    }
    assert_eq!(lab.drops(DropReason::Unrecognized), 5);
    let mut binding = plain(Method::BINDING, &[]);
    binding.push(0);
    assert!(lab.client_sends(CLIENT, &binding).is_none());
    assert_eq!(lab.drops(DropReason::MalformedStun), 1);
    assert!(lab.sent.is_empty());
}

#[test]
fn data_that_would_outgrow_a_udp_datagram_with_its_header_is_dropped() {
    let mut lab = lab();
    assert_eq!(lab.permit(CLIENT, &[PEER]), 0);
    let longest = 65_507 - 36;
    assert!(lab.peer_sends(0, &vec![7; longest - longest % 4]).is_some());
    assert!(lab.peer_sends(0, &vec![7; longest]).is_none());
    assert_eq!(lab.bind(CLIENT, 0x4000, PEER), 0);
    assert_eq!(lab.peer_sends(0, &[7; 65_507 - 4]).unwrap().0.len(), 65_507);
    assert!(lab.peer_sends(0, &[7; 65_507 - 3]).is_none());
    assert_eq!(lab.drops(DropReason::UnusableDatagram), 2);
    assert_eq!(lab.relay.counters.packets_to_clients.value(), 2);
    assert_eq!(lab.relay.counters.data_indications.value(), 1);
}

#[test]
fn datagram_for_a_port_that_is_not_in_use_is_dropped() {
    let mut lab = Lab::new(config());
    assert!(lab.peer_sends(0, b"x").is_none());
    assert!(lab.peer_sends(u32::MAX, b"x").is_none());
    assert_eq!(lab.drops(DropReason::NoSuchPort), 2);
}

#[test]
fn allocation_that_has_expired_carries_nothing_even_before_its_timer_fires() {
    let mut lab = lab();
    lab.bind(CLIENT, 0x4000, PEER);
    lab.now = lab.now + std::time::Duration::from_secs(600);
    assert!(
        lab.client_sends(CLIENT, &channel_data(0x4000, b"x"))
            .is_none()
    );
    assert!(lab.peer_sends(0, b"x").is_none());
    assert!(
        lab.client_sends(CLIENT, &send_indication(PEER, b"x"))
            .is_none()
    );
}

#[test]
fn many_channels_and_peers_of_one_allocation_are_told_apart() {
    let mut lab = lab();
    for n in 0..100_u16 {
        assert_eq!(
            lab.bind(CLIENT, 0x4000 + n, &format!("9.9.9.{n}:{}", 7000 + n)),
            0
        );
    }
    for n in 0..100_u16 {
        let peer = address(&format!("9.9.9.{n}:{}", 7000 + n));
        let (transmit, _) = lab
            .client_sends(CLIENT, &channel_data(0x4000 + n, b"x"))
            .unwrap();
        assert_eq!(transmit.destination, peer);
        let socket = Socket::Relayed(PortId(0));
        let (_, bytes) = lab.arrive(socket, "5.5.5.5", peer, b"x").unwrap();
        assert_eq!(bytes, channel_data(0x4000 + n, b"x"));
    }
}

#[test]
fn two_clients_reach_each_other_through_their_relayed_addresses() {
    let mut lab = Lab::new(config());
    let other = "198.18.0.2:50";
    let (mine, theirs) = (lab.allocate(CLIENT), lab.allocate(other));
    assert_eq!(lab.bind(CLIENT, 0x4000, &theirs.to_string()), 0);
    assert_eq!(lab.permit(other, &[&mine.to_string()]), 0);
    let (transmit, bytes) = lab
        .client_sends(CLIENT, &channel_data(0x4000, b"hi"))
        .unwrap();
    assert_eq!(transmit.destination, theirs);
    let socket = Socket::Relayed(PortId(1));
    let (transmit, bytes) = lab.arrive(socket, "5.5.5.5", mine, &bytes).unwrap();
    assert_eq!(transmit.destination, address(other));
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.get(), Ok(Some(XorPeerAddress(mine))));
}

#[test]
fn behind_a_nat_relayed_addresses_reach_each_other_by_their_public_side() {
    let mut config = config();
    config.relay_addresses = vec![RelayAddress {
        local: [10, 0, 0, 4].into(),
        public: [6, 6, 6, 6].into(),
    }];
    let mut lab = Lab::new(config);
    let other = "198.18.0.2:50";
    let (mine, theirs) = (lab.allocate(CLIENT), lab.allocate(other));
    assert_eq!(
        theirs.ip(),
        address("6.6.6.6:1").ip(),
        "clients are told the public address"
    );
    assert_eq!(
        lab.open[&1].ip(),
        address("10.0.0.4:1").ip(),
        "sockets are bound to the local one"
    );
    assert_eq!(lab.bind(CLIENT, 0x4000, &theirs.to_string()), 0);
    assert_eq!(lab.bind(other, 0x4000, &mine.to_string()), 0);
    let (transmit, bytes) = lab
        .client_sends(CLIENT, &channel_data(0x4000, b"hi"))
        .unwrap();
    assert_eq!(
        transmit.destination, lab.open[&1],
        "out by the local address"
    );
    let sender = lab.open[&0];
    let socket = Socket::Relayed(PortId(1));
    let (_, bytes) = lab.arrive(socket, "10.0.0.4", sender, &bytes).unwrap();
    assert_eq!(
        bytes,
        channel_data(0x4000, b"hi"),
        "in as if from the public address"
    );
}

#[test]
fn data_to_a_relayed_address_stops_when_its_allocation_ends() {
    let mut lab = Lab::new(config());
    let other = "198.18.0.2:50";
    let (mine, theirs) = (lab.allocate(CLIENT), lab.allocate(other));
    lab.bind(CLIENT, 0x4000, &theirs.to_string());
    lab.permit(other, &[&mine.to_string()]);
    lab.request(other, Method::REFRESH, &[lifetime(0)]);
    assert!(
        lab.client_sends(CLIENT, &channel_data(0x4000, b"hi"))
            .is_none()
    );
    assert_eq!(lab.drops(DropReason::OwnAddress), 1);
}

#[test]
fn relayed_data_never_reaches_a_listening_address() {
    let mut lab = lab();
    assert_eq!(lab.bind(CLIENT, 0x4000, "5.5.5.5:3478"), 403);
    // A permission is for an address, whose relayed ports may be reached, but no other port.
    assert_eq!(lab.permit(CLIENT, &["5.5.5.5:3478"]), 0);
    assert!(
        lab.client_sends(CLIENT, &send_indication("5.5.5.5:3478", b"x"))
            .is_none()
    );
    assert_eq!(lab.drops(DropReason::OwnAddress), 1);
}
