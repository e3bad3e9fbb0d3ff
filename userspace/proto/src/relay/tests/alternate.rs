use std::sync::Arc;

use super::lab::*;
use crate::relay::RelayEvent;
use crate::wire::attribute::{AlternateServer, EvenPort};
use crate::wire::{AttributeType, Message, Method};

const OTHERS: [&str; 3] = ["203.0.113.7:3478", "[2600::77]:3478", "203.0.113.8:5000"];

fn lab() -> Lab {
    let mut config = config();
    config.alternate_servers = OTHERS.map(address).into();
    Lab::new(config)
}

/// Where a client is sent, which a signed 300 says.
fn sent_to(answer: &[u8]) -> String {
    let message = Message::parse(answer).unwrap();
    assert_eq!(code(answer), 300, "{message:?}");
    assert!(message.has_integrity(), "the request was authenticated");
    let AlternateServer(server) = message.get().unwrap().expect("RFC 8489 §10: exactly one");
    server.to_string()
}

// RFC 8489 §10 and §14.15
#[test]
fn a_relay_that_drains_sends_clients_to_servers_of_their_family_in_turn() {
    let mut lab = lab();
    lab.allocate(CLIENT);
    lab.event(RelayEvent::Drain);
    let mut ask = |client: &str| {
        let answer = lab.request(client, Method::ALLOCATE, &[udp()]);
        sent_to(&answer)
    };
    let turns: Vec<String> = (1..5).map(|n| ask(&format!("198.18.0.2:{n}"))).collect();
    assert_eq!(turns, [OTHERS[0], OTHERS[2], OTHERS[0], OTHERS[2]]);
    assert_eq!(ask("[2600::1]:5"), OTHERS[1]);
    assert_eq!(lab.relay.counters.errors(300).unwrap().value(), 5);
    assert_eq!(code(&lab.request(CLIENT, Method::REFRESH, &[])), 0);
    assert_eq!(lab.permit(CLIENT, &[PEER]), 0);
}

#[test]
fn nobody_is_sent_on_before_authentication() {
    let mut lab = lab();
    lab.event(RelayEvent::Drain);
    let request = plain(Method::ALLOCATE, &[udp()]);
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 401);
    let forged = lab.signed_by("alice", "wrong", CLIENT, Method::ALLOCATE, &[udp()]);
    assert_eq!(code(&lab.ask(CLIENT, &forged).unwrap()), 401);
}

#[test]
fn a_full_relay_sends_clients_on_and_goes_on_when_there_is_room() {
    let mut config = config();
    config.alternate_servers = vec![address(OTHERS[0])];
    config.port_range = 50_000..=50_001;
    let mut lab = Lab::new(config);
    lab.allocate("198.18.0.1:1");
    lab.allocate("198.18.0.1:2");
    let answer = lab.request("198.18.0.1:3", Method::ALLOCATE, &[udp()]);
    assert_eq!(sent_to(&answer), OTHERS[0]);
    lab.request("198.18.0.1:1", Method::REFRESH, &[lifetime(0)]);
    lab.allocate("198.18.0.1:3");
}

#[test]
fn a_relay_whose_ports_cannot_be_opened_sends_clients_on() {
    let mut lab = lab();
    lab.shell = Shell::Fails(crate::relay::PortError::NoDescriptors);
    let answer = lab.request(CLIENT, Method::ALLOCATE, &[udp()]);
    assert_eq!(sent_to(&answer), OTHERS[0]);
}

#[test]
fn without_a_server_of_the_clients_family_it_stays_508() {
    let mut config = config();
    config.alternate_servers = vec![address(OTHERS[0])];
    let mut lab = Lab::new(config);
    lab.event(RelayEvent::Drain);
    let answer = lab.request("[2600::1]:5", Method::ALLOCATE, &[udp()]);
    assert_eq!(code(&answer), 508);
}

#[test]
fn other_refusals_and_reserved_ports_are_not_sent_on() {
    let mut lab = lab();
    lab.event(RelayEvent::Drain);
    assert_eq!(code(&lab.request(CLIENT, Method::ALLOCATE, &[])), 400);
    let token = (AttributeType::RESERVATION_TOKEN, vec![7; 8]);
    let answer = lab.request(CLIENT, Method::ALLOCATE, &[udp(), token]);
    assert_eq!(code(&answer), 508);
    let even = raw(&EvenPort { reserve_next: true });
    let answer = lab.request(CLIENT, Method::ALLOCATE, &[udp(), even]);
    assert_eq!(sent_to(&answer), OTHERS[0]);
}

#[test]
fn alternate_servers_may_change_while_the_relay_runs() {
    let mut lab = lab();
    lab.event(RelayEvent::Drain);
    let mut changed = config();
    changed.alternate_servers = vec![address("203.0.113.9:1")];
    lab.event(RelayEvent::Reconfigured(Arc::new(changed)));
    let answer = lab.request(CLIENT, Method::ALLOCATE, &[udp()]);
    assert_eq!(sent_to(&answer), "203.0.113.9:1");
}

#[test]
fn a_relay_does_not_send_clients_to_itself_or_nowhere() {
    for useless in [
        "0.0.0.0:3478",
        "203.0.113.7:0",
        "224.0.0.1:5",
        "[::ffff:1.2.3.4]:5",
    ] {
        let mut config = config();
        config.alternate_servers = vec![address(useless)];
        assert!(config.validate().is_err(), "{useless}");
    }
    let mut config = config();
    config.listeners = vec![address("5.5.5.5:3478")];
    config.alternate_servers = vec![address("5.5.5.5:3478")];
    assert!(config.validate().is_err());
}
