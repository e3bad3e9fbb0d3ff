//! Mobility (RFC 8016): who may move an allocation, when it is moved, and what moves with it.

use std::sync::Arc;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;

use super::lab::*;
use crate::Machine;
use crate::machine::{Datagram, ListenerId, ShardId, Socket, TrafficClass};
use crate::relay::*;
use crate::turn::server::Mobiles;
use crate::wire::attribute::{Lifetime, MobilityTicket, XorRelayedAddress};
use crate::wire::{AttributeType, Message, Method};

/// Where clients go.
const THERE: &str = "198.18.0.2:41000";
const ELSEWHERE: &str = "198.18.0.3:42000";
const SERVER: &str = "5.5.5.5:3478";

type Ticket = Vec<u8>;

fn mobile() -> (AttributeType, Vec<u8>) {
    (AttributeType::MOBILITY_TICKET, Vec::new())
}

fn showing(ticket: &[u8]) -> (AttributeType, Vec<u8>) {
    (AttributeType::MOBILITY_TICKET, ticket.to_vec())
}

fn ticket_in(answer: &[u8]) -> Option<Ticket> {
    let message = Message::parse(answer).unwrap();
    let ticket = message.get::<MobilityTicket<'_>>().unwrap();
    ticket.map(|MobilityTicket(ticket)| ticket.to_vec())
}

/// Makes a mobile allocation.
fn allocate(lab: &mut Lab, client: &str) -> (String, Ticket) {
    let answer = lab.request(client, Method::ALLOCATE, &[udp(), mobile()]);
    assert_eq!(code(&answer), 0);
    let message = Message::parse(&answer).unwrap();
    let XorRelayedAddress(relayed) = message.get().unwrap().unwrap();
    (relayed.to_string(), ticket_in(&answer).unwrap())
}

/// A mobile allocation of `CLIENT`'s with a channel to `PEER`.
fn lab() -> (Lab, String, Ticket) {
    let mut lab = Lab::new(config());
    let (relayed, ticket) = allocate(&mut lab, CLIENT);
    assert_eq!(lab.bind(CLIENT, 0x4000, PEER), 0);
    (lab, relayed, ticket)
}

/// Shows a ticket; gives back the answer's code, and the new ticket.
fn resume(lab: &mut Lab, client: &str, ticket: &[u8]) -> (u16, Option<Ticket>) {
    let answer = lab.request(client, Method::REFRESH, &[showing(ticket)]);
    (code(&answer), ticket_in(&answer))
}

fn granted(lab: &mut Lab, client: &str, ticket: &[u8]) -> Ticket {
    let (code, ticket) = resume(lab, client, ticket);
    assert_eq!(code, 0);
    ticket.unwrap()
}

/// Where a peer's data goes now.
fn heard_at(lab: &mut Lab) -> String {
    let port = *lab.open.keys().next().unwrap();
    let (transmit, _) = lab.peer_sends(port, b"data").unwrap();
    transmit.destination.to_string()
}

/// Whether a client's data on the channel reaches the peer.
fn is_relayed(lab: &mut Lab, client: &str) -> bool {
    let sent = lab.client_sends(client, &channel_data(0x4000, b"data"));
    sent.is_some_and(|(transmit, _)| transmit.destination == address(PEER))
}

fn reload(lab: &mut Lab, change: impl FnOnce(&mut RelayConfig)) {
    let mut config = RelayConfig::clone(&lab.relay.config);
    change(&mut config);
    lab.event(RelayEvent::Reconfigured(Arc::new(config)));
}

// RFC 8016 §3.1.2: "the server replies with a success response that includes a STUN MOBILITY-TICKET
// attribute".
#[test]
fn who_asks_for_mobility_is_given_a_ticket_and_nobody_else() {
    let mut lab = Lab::new(config());
    let answer = lab.request(CLIENT, Method::ALLOCATE, &[udp()]);
    assert_eq!((code(&answer), ticket_in(&answer)), (0, None));
    let (_, ticket) = allocate(&mut lab, THERE);
    assert_eq!(ticket.len(), 32);
    let (_, other) = allocate(&mut lab, ELSEWHERE);
    assert_ne!(ticket, other);
}

// RFC 8016 §3.1.2: "If the MOBILITY-TICKET attribute is included and has non-zero length, then the
// server will generate an error response with an error code of 400".
#[test]
fn an_allocate_with_a_ticket_that_is_not_empty_is_refused_with_400() {
    let (mut lab, _, ticket) = lab();
    for ticket in [&ticket[..], &[0]] {
        let answer = lab.request(THERE, Method::ALLOCATE, &[udp(), showing(ticket)]);
        assert_eq!(code(&answer), 400);
    }
    assert_eq!(lab.open.len(), 1);
}

// RFC 8016 §3.1.2: "… but TURN session mobility is forbidden by local policy, the server will reject
// the request with the new error code 405"; §3.2.2 says the same of a Refresh.
#[test]
fn where_mobility_is_forbidden_every_ticket_is_refused_with_405() {
    let (mut lab, _, ticket) = lab();
    reload(&mut lab, |config| config.mobility = false);
    let answer = lab.request(THERE, Method::ALLOCATE, &[udp(), mobile()]);
    assert_eq!(code(&answer), 405);
    assert_eq!(resume(&mut lab, THERE, &ticket), (405, None));
    assert_eq!(code(&lab.request(THERE, Method::ALLOCATE, &[udp()])), 0);
    assert_eq!(lab.relay.counters.errors(405).unwrap().value(), 2);
    reload(&mut lab, |config| config.mobility = true);
    granted(&mut lab, ELSEWHERE, &ticket);
}

#[test]
fn a_retransmitted_allocate_is_answered_with_the_same_ticket() {
    let mut lab = Lab::new(config());
    let request = lab.signed(CLIENT, Method::ALLOCATE, &[udp(), mobile()]);
    let first = lab.ask(CLIENT, &request).unwrap();
    assert!(ticket_in(&first).is_some());
    assert_eq!(lab.ask(CLIENT, &request), Some(first));
}

// RFC 8016 §3.2.2: "The TURN server MUST continue receiving and processing data on the old 5-tuple and
// MUST continue transmitting data on the old 5-tuple until it receives a Send Indication or
// ChannelData message from the client on the new 5-tuple".
#[test]
fn data_goes_by_the_old_5_tuple_until_the_client_sends_from_the_new_one() {
    let (mut lab, relayed, ticket) = lab();
    let new = granted(&mut lab, THERE, &ticket);
    assert_ne!(new, ticket);
    assert_eq!(heard_at(&mut lab), CLIENT);
    assert!(is_relayed(&mut lab, CLIENT));
    assert!(lab.route(CLIENT, SERVER, 0x4000).is_some());
    assert!(lab.route(THERE, SERVER, 0x4000).is_none());
    assert_eq!(lab.check_routes(), 2);

    assert!(is_relayed(&mut lab, THERE), "the first one is relayed, too");
    assert_eq!(heard_at(&mut lab), THERE);
    assert!(!is_relayed(&mut lab, CLIENT));
    assert_eq!(lab.drops(DropReason::NoAllocation), 1);
    assert!(lab.route(CLIENT, SERVER, 0x4000).is_none());
    let there = lab.route(THERE, SERVER, 0x4000).unwrap();
    assert_eq!(there.source.to_string(), relayed);
    assert_eq!(
        lab.route(PEER, &relayed, 0).unwrap().destination,
        address(THERE)
    );
    assert_eq!((lab.check_routes(), lab.routes.len()), (2, 2));
    assert_eq!(lab.relay.counters.allocations_moved.value(), 1);
    let moved = lab.notices.iter().any(|notice| {
        matches!(notice, Notice::AllocationMoved { owner, from }
            if *from == address(CLIENT) && owner.client == address(THERE))
    });
    assert!(moved, "{:?}", lab.notices);
}

#[test]
fn a_send_indication_from_the_new_5_tuple_moves_the_allocation() {
    let (mut lab, _, ticket) = lab();
    granted(&mut lab, THERE, &ticket);
    let sent = lab.client_sends(THERE, &send_indication(PEER, b"data"));
    assert_eq!(sent.unwrap().1, b"data");
    assert_eq!(heard_at(&mut lab), THERE);
}

// A client that only receives has nothing to send but requests.
#[test]
fn a_request_from_the_new_5_tuple_moves_the_allocation() {
    let requests = [
        (Method::REFRESH, vec![]),
        (Method::CREATE_PERMISSION, vec![xor_peer(PEER)]),
        (
            Method::CHANNEL_BIND,
            vec![channel_number(0x4001), xor_peer("9.9.9.9:7001")],
        ),
    ];
    for (method, attributes) in requests {
        let (mut lab, _, ticket) = lab();
        granted(&mut lab, THERE, &ticket);
        assert_eq!(code(&lab.request(THERE, method, &attributes)), 0);
        assert_eq!(heard_at(&mut lab), THERE, "{method:?}");
        assert_eq!(lab.check_routes(), lab.routes.len());
    }
}

#[test]
fn a_strangers_request_from_the_new_5_tuple_moves_nothing() {
    let (mut lab, _, ticket) = lab();
    granted(&mut lab, THERE, &ticket);
    let unsigned = plain(Method::REFRESH, &[lifetime(600)]);
    assert_eq!(code(&lab.ask(THERE, &unsigned).unwrap()), 401);
    let bobs = lab.signed_by("bob", "other", THERE, Method::REFRESH, &[]);
    assert_eq!(code(&lab.ask(THERE, &bobs).unwrap()), 441);
    assert!(
        lab.client_sends(THERE, &[0x40, 0, 0, 9]).is_none(),
        "cut short"
    );
    assert_eq!(heard_at(&mut lab), CLIENT);
}

#[test]
fn routes_are_moved_before_an_answer_to_the_new_5_tuple_leaves() {
    let (mut lab, _, ticket) = lab();
    granted(&mut lab, THERE, &ticket);
    let mut request = lab.signed(THERE, Method::REFRESH, &[]);
    let datagram = Datagram {
        socket: Socket::Listener(ListenerId(0)),
        local: address(SERVER).ip(),
        remote: address(THERE),
        traffic_class: TrafficClass::ORDINARY,
        payload: &mut request,
    };
    assert!(lab.relay.handle_datagram(lab.now, datagram).is_none());
    let commands: Vec<_> = std::iter::from_fn(|| lab.relay.poll_command()).collect();
    let removed = |c: &&RelayCommand| matches!(c, RelayCommand::RemoveRoute { .. });
    let set = |c: &&RelayCommand| matches!(c, RelayCommand::SetRoute { .. });
    assert_eq!(
        commands.iter().take_while(removed).count(),
        2,
        "{commands:?}"
    );
    assert_eq!(commands.iter().filter(set).count(), 2, "{commands:?}");
}

// RFC 8016 §3.2.2: "After receiving any of those messages, a TURN server discards the old ticket".
#[test]
fn a_ticket_is_good_for_one_move() {
    let (mut lab, _, first) = lab();
    let second = granted(&mut lab, THERE, &first);
    assert!(is_relayed(&mut lab, THERE));
    lab.secs(2);
    assert_eq!(resume(&mut lab, ELSEWHERE, &first), (400, None));
    assert_eq!(resume(&mut lab, CLIENT, &first), (400, None));
    let third = granted(&mut lab, ELSEWHERE, &second);
    assert!(is_relayed(&mut lab, ELSEWHERE));
    lab.secs(2);
    assert_eq!(resume(&mut lab, THERE, &second), (400, None));
    granted(&mut lab, CLIENT, &third);
    assert!(is_relayed(&mut lab, CLIENT), "back where it began");
}

// RFC 8016 §3.2.2: "a server must retain the old STUN MOBILITY-TICKET attribute for a period of at
// least 30 seconds to be able to recognize a retransmission".
#[test]
fn a_retransmitted_move_is_answered_with_the_same_new_ticket_for_30_seconds() {
    let (mut lab, _, first) = lab();
    let request = lab.signed(THERE, Method::REFRESH, &[showing(&first)]);
    let answer = lab.ask(THERE, &request).unwrap();
    assert_eq!(lab.ask(THERE, &request).as_ref(), Some(&answer));
    assert!(is_relayed(&mut lab, THERE));
    lab.secs(29);
    assert_eq!(lab.ask(THERE, &request), Some(answer));
    lab.secs(2);
    assert_eq!(code(&lab.ask(THERE, &request).unwrap()), 400);
    assert_eq!(heard_at(&mut lab), THERE);
}

// RFC 8016 §3.2.2: "If the source IP address and port of the Refresh request … is the same as the
// stored 5-tuple allocation, then the TURN server rejects the request with a 400".
#[test]
fn a_ticket_from_where_the_allocation_is_is_refused_with_400() {
    let (mut lab, _, first) = lab();
    assert_eq!(resume(&mut lab, CLIENT, &first), (400, None));
    let second = granted(&mut lab, THERE, &first);
    assert_eq!(resume(&mut lab, THERE, &second), (400, None));
    assert!(is_relayed(&mut lab, THERE));
    assert_eq!(resume(&mut lab, THERE, &second), (400, None));
}

// RFC 8016 §3.2.2: "If the ticket is invalid, then the server MUST reject the request with a 400".
#[test]
fn a_made_up_ticket_is_refused_with_400() {
    let (mut lab, _, mut ticket) = lab();
    for made_up in [&[][..], &[0; 32], &[1; 4], &[7; 400]] {
        assert_eq!(resume(&mut lab, THERE, made_up), (400, None));
    }
    ticket[31] ^= 1;
    assert_eq!(resume(&mut lab, THERE, &ticket), (400, None));
    let foreign = {
        let mut other = Lab::new(RelayConfig {
            nonce_secret: [8; 32],
            ..config()
        });
        allocate(&mut other, CLIENT).1
    };
    assert_eq!(resume(&mut lab, THERE, &foreign), (400, None));
}

// RFC 8016 §3.2.2: where the ticket "does not identify an existing allocation, then the server MUST
// reject the request with a 437".
#[test]
fn a_ticket_of_an_allocation_that_has_ended_is_refused_with_437() {
    let (mut lab, _, ticket) = lab();
    lab.secs(601);
    assert_eq!(resume(&mut lab, THERE, &ticket), (437, None));
    // Its place in the tables is taken by others now.
    let (_, second) = allocate(&mut lab, CLIENT);
    assert_eq!(resume(&mut lab, THERE, &ticket), (437, None));
    assert_eq!(
        code(&lab.request(CLIENT, Method::REFRESH, &[lifetime(0)])),
        0
    );
    lab.allocate(ELSEWHERE);
    for ticket in [ticket, second] {
        assert_eq!(resume(&mut lab, THERE, &ticket), (437, None));
    }
}

// The seal outlives a restart, since nonces do; the numbers must not meet again.
#[test]
fn a_ticket_of_an_earlier_process_means_nothing() {
    let (_, _, ticket) = lab();
    let config = config();
    let shared = Arc::new(RelayShared::new(&config));
    let mut lab = Lab::of_shard(config, shared, 0);
    lab.relay.mobiles = Mobiles::new(
        &lab.relay.config,
        lab.relay.shard,
        &mut ChaCha12Rng::from_seed([77; 32]),
    );
    allocate(&mut lab, CLIENT);
    let (code, _) = resume(&mut lab, THERE, &ticket);
    assert!(matches!(code, 400 | 437), "{code}");
}

// Hijacking: the ticket alone, from anywhere.
#[test]
fn a_stolen_ticket_without_credentials_is_challenged_and_moves_nothing() {
    let (mut lab, _, ticket) = lab();
    let unsigned = plain(Method::REFRESH, &[showing(&ticket)]);
    assert_eq!(code(&lab.ask(THERE, &unsigned).unwrap()), 401);
    let wrong = lab.signed_by(
        "alice",
        "guess",
        THERE,
        Method::REFRESH,
        &[showing(&ticket)],
    );
    assert_eq!(code(&lab.ask(THERE, &wrong).unwrap()), 401);
    assert!(!is_relayed(&mut lab, THERE));
    assert_eq!(heard_at(&mut lab), CLIENT);
    granted(&mut lab, ELSEWHERE, &ticket);
}

// RFC 8016 §3.2.2: "… the same user that had previously created the TURN allocation. If the above
// check is not successful, then the server MUST reject the request with a 441".
#[test]
fn a_stolen_ticket_with_another_users_credentials_is_refused_with_441() {
    let (mut lab, _, ticket) = lab();
    let bobs = lab.signed_by("bob", "other", THERE, Method::REFRESH, &[showing(&ticket)]);
    assert_eq!(code(&lab.ask(THERE, &bobs).unwrap()), 441);
    let bobs = [showing(&ticket), lifetime(0)];
    let bobs = lab.signed_by("bob", "other", THERE, Method::REFRESH, &bobs);
    assert_eq!(code(&lab.ask(THERE, &bobs).unwrap()), 441);
    assert!(!is_relayed(&mut lab, THERE));
    assert_eq!(heard_at(&mut lab), CLIENT);
}

// The new address has to prove itself: a whole request that was overheard is worth nothing elsewhere.
#[test]
fn a_move_with_a_nonce_of_another_address_is_challenged_with_438() {
    let (mut lab, _, ticket) = lab();
    let overheard = lab.signed(THERE, Method::REFRESH, &[showing(&ticket)]);
    let at_home = lab.signed(CLIENT, Method::REFRESH, &[showing(&ticket)]);
    for stolen in [overheard, at_home] {
        assert_eq!(code(&lab.ask(ELSEWHERE, &stolen).unwrap()), 438);
        assert!(!is_relayed(&mut lab, ELSEWHERE));
    }
    assert_eq!(heard_at(&mut lab), CLIENT);
}

// Several moves without ever arriving: one is under way at a time, and nothing piles up.
#[test]
fn a_further_move_takes_the_place_of_one_under_way() {
    let (mut lab, _, first) = lab();
    let mut newest = first.clone();
    for port in 1..2000 {
        let there = format!("198.18.7.7:{port}");
        newest = granted(&mut lab, &there, &newest);
        assert!(!newest.contains(&0), "a C string");
    }
    assert!(!is_relayed(&mut lab, "198.18.7.7:1998"), "given up");
    assert_eq!(heard_at(&mut lab), CLIENT);
    assert!(is_relayed(&mut lab, "198.18.7.7:1999"));
    assert_eq!(lab.relay.counters.ports_in_use.value(), 1);
    assert_eq!(
        code(&lab.request("198.18.7.7:1999", Method::REFRESH, &[lifetime(0)])),
        0
    );
    assert!(lab.shared.moved().is_empty());
    assert!(lab.routes.is_empty());
}

// The answer with the new ticket may be lost together with the network it went to.
#[test]
fn a_client_that_never_heard_of_its_new_ticket_moves_on_with_the_old_one() {
    let (mut lab, _, first) = lab();
    let lost = granted(&mut lab, THERE, &first);
    lab.secs(100);
    let third = granted(&mut lab, ELSEWHERE, &first);
    assert_eq!(resume(&mut lab, THERE, &lost), (400, None));
    assert!(is_relayed(&mut lab, ELSEWHERE));
    lab.secs(2);
    granted(&mut lab, CLIENT, &third);
}

#[test]
fn a_client_that_goes_back_before_it_arrived_stays_where_it_was() {
    let (mut lab, _, first) = lab();
    let second = granted(&mut lab, THERE, &first);
    let third = granted(&mut lab, CLIENT, &second);
    assert!(lab.shared.moved().is_empty());
    assert!(!is_relayed(&mut lab, THERE));
    assert!(is_relayed(&mut lab, CLIENT));
    for used in [&first, &second] {
        assert_eq!(resume(&mut lab, THERE, used), (400, None));
    }
    granted(&mut lab, THERE, &third);
}

// RFC 8656 §5: "5-tuple"s have one allocation each.
#[test]
fn a_move_to_a_5_tuple_that_has_an_allocation_is_refused_with_437() {
    let (mut lab, _, ticket) = lab();
    let (_, others) = allocate(&mut lab, THERE);
    assert_eq!(resume(&mut lab, THERE, &ticket), (437, None));
    granted(&mut lab, ELSEWHERE, &ticket);
    assert_eq!(resume(&mut lab, ELSEWHERE, &others), (437, None));
    let answer = lab.request(ELSEWHERE, Method::ALLOCATE, &[udp()]);
    assert_eq!(code(&answer), 437, "it is taken before anybody has arrived");
    lab.secs(601);
    lab.allocate(ELSEWHERE);
}

#[test]
fn the_place_an_allocation_has_left_can_be_used_again() {
    let (mut lab, _, ticket) = lab();
    granted(&mut lab, THERE, &ticket);
    assert!(is_relayed(&mut lab, THERE));
    lab.allocate(CLIENT);
    assert_eq!(lab.open.len(), 2);
    assert!(is_relayed(&mut lab, THERE));
}

// RFC 8016 §3.2.1: "… update its time-to-expiry or delete an existing allocation".
#[test]
fn an_allocation_is_deleted_from_a_new_address_by_its_ticket() {
    let (mut lab, _, ticket) = lab();
    let request = [showing(&ticket), lifetime(0)];
    let request = lab.signed(THERE, Method::REFRESH, &request);
    let answer = lab.ask(THERE, &request).unwrap();
    let told = Message::parse(&answer).unwrap().get::<Lifetime>().unwrap();
    assert_eq!((told, ticket_in(&answer)), (Some(Lifetime(0)), None));
    assert!(lab.open.is_empty() && lab.routes.is_empty());
    assert_eq!(code(&lab.ask(THERE, &request).unwrap()), 0, "retransmitted");
    assert!(lab.shared.moved().is_empty());
}

#[test]
fn a_move_that_is_refused_for_another_reason_moves_nothing() {
    let (mut lab, _, ticket) = lab();
    let v6 = (AttributeType::REQUESTED_ADDRESS_FAMILY, vec![2, 0, 0, 0]);
    let answer = lab.request(THERE, Method::REFRESH, &[showing(&ticket), v6]);
    assert_eq!(code(&answer), 443);
    let unknown = (AttributeType(0x7777), vec![]);
    let answer = lab.request(THERE, Method::REFRESH, &[showing(&ticket), unknown]);
    assert_eq!(code(&answer), 420);
    assert!(!is_relayed(&mut lab, THERE));
    assert!(lab.shared.moved().is_empty());
}

#[test]
fn a_move_renews_the_allocation() {
    let (mut lab, _, ticket) = lab();
    lab.secs(599);
    let request = [showing(&ticket), lifetime(1200)];
    let answer = lab.request(THERE, Method::REFRESH, &request);
    let told = Message::parse(&answer).unwrap().get::<Lifetime>().unwrap();
    assert_eq!(told, Some(Lifetime(1200)));
    lab.secs(1199);
    assert_eq!(lab.open.len(), 1);
    lab.secs(2);
    assert!(lab.open.is_empty());
    assert!(lab.shared.moved().is_empty(), "a move that was never ended");
}

// A move rewrites all routes of an allocation; alone it must not keep a shard busy.
#[test]
fn an_allocation_that_has_just_moved_moves_again_after_a_second() {
    let (mut lab, _, first) = lab();
    let second = granted(&mut lab, THERE, &first);
    assert!(is_relayed(&mut lab, THERE));
    let request = lab.signed(ELSEWHERE, Method::REFRESH, &[showing(&second)]);
    assert_eq!(lab.ask(ELSEWHERE, &request), None);
    assert_eq!(lab.drops(DropReason::MovesTooOften), 1);
    lab.secs(1);
    assert_eq!(code(&lab.ask(ELSEWHERE, &request).unwrap()), 0);
}

#[test]
fn a_client_may_move_to_the_other_address_family() {
    let (mut lab, relayed, ticket) = lab();
    let there = "[2600::77]:40000";
    granted(&mut lab, there, &ticket);
    assert!(is_relayed(&mut lab, there));
    assert_eq!(heard_at(&mut lab), there);
    let back = lab.route(PEER, &relayed, 0).unwrap();
    assert_eq!(back.source, address("[2600::5]:3478"));
    assert_eq!(lab.check_routes(), 2);
}

// coturn released a user's quota while the allocation lived on (its advisory of 4.17).
#[test]
fn a_moved_allocation_counts_for_its_user_once_and_until_it_ends() {
    let mut config = config();
    config.limits.allocations_per_user = Some(1);
    let mut lab = Lab::new(config);
    let (_, first) = allocate(&mut lab, CLIENT);
    assert_eq!(lab.bind(CLIENT, 0x4000, PEER), 0);
    let refused = |lab: &mut Lab| code(&lab.request(ELSEWHERE, Method::ALLOCATE, &[udp()]));
    assert_eq!(refused(&mut lab), 486);
    let second = granted(&mut lab, THERE, &first);
    assert_eq!(refused(&mut lab), 486);
    assert!(is_relayed(&mut lab, THERE));
    assert_eq!(refused(&mut lab), 486);
    lab.secs(2);
    let request = [showing(&second), lifetime(0)];
    assert_eq!(code(&lab.request(ELSEWHERE, Method::REFRESH, &request)), 0);
    lab.allocate(CLIENT);
}

#[test]
fn a_user_who_is_removed_moves_nothing() {
    let (mut lab, _, ticket) = lab();
    reload(&mut lab, |config| {
        config.users = [("alice", credential("alice", "another"))]
            .into_iter()
            .collect();
    });
    let request = [showing(&ticket)];
    let request = lab.signed_by("alice", "another", THERE, Method::REFRESH, &request);
    assert_eq!(code(&lab.ask(THERE, &request).unwrap()), 437);
    assert!(lab.open.is_empty());
}

/// Two shards; clients are steered to the second one but for `CLIENT`.
struct Pair {
    home: Lab,
    away: Lab,
}

impl Pair {
    fn new() -> Self {
        let mut config = config();
        config.shards = 2;
        let shared = Arc::new(RelayShared::new(&config));
        Self {
            home: Lab::of_shard(config.clone(), Arc::clone(&shared), 0),
            away: Lab::of_shard(config, shared, 1),
        }
    }

    /// Hands over what the second shard wants to; gives back what that led to and the answers.
    fn hand_over(&mut self) -> (Option<Vec<u8>>, Vec<Vec<u8>>) {
        let mut relayed = None;
        self.home.sent.clear();
        for (to, listener, local, remote, payload) in self.away.handed_over.drain(..) {
            assert_eq!(to.0, 0);
            let socket = Socket::Listener(listener);
            let sent = self
                .home
                .arrive(socket, &local.to_string(), remote, &payload);
            relayed = sent.map(|(_, bytes)| bytes);
        }
        let answers = self.home.sent.drain(..).map(|(_, bytes)| bytes).collect();
        (relayed, answers)
    }

    /// A request of a client that is steered to the second shard.
    fn ask(
        &mut self,
        client: &str,
        method: Method,
        attributes: &[(AttributeType, Vec<u8>)],
    ) -> Vec<u8> {
        let request = self.home.signed(client, method, attributes);
        let answer = self.away.ask(client, &request);
        let (_, mut answers) = self.hand_over();
        answers.extend(answer);
        assert_eq!(answers.len(), 1, "one answer, from one shard");
        answers.pop().unwrap()
    }

    /// ChannelData of a client that is steered to the second shard.
    fn send(&mut self, client: &str) -> Option<Vec<u8>> {
        assert!(
            self.away
                .client_sends(client, &channel_data(0x4000, b"data"))
                .is_none()
        );
        self.hand_over().0
    }
}

#[test]
fn a_client_that_moves_to_another_shard_is_served_by_the_first_one() {
    let mut pair = Pair::new();
    let (_, ticket) = allocate(&mut pair.home, CLIENT);
    assert_eq!(pair.home.bind(CLIENT, 0x4000, PEER), 0);
    let answer = pair.ask(THERE, Method::REFRESH, &[showing(&ticket)]);
    assert_eq!(code(&answer), 0);
    assert!(ticket_in(&answer).is_some());
    assert_eq!(heard_at(&mut pair.home), CLIENT);
    assert_eq!(pair.send(THERE).as_deref(), Some(&b"data"[..]));
    assert_eq!(heard_at(&mut pair.home), THERE);
    // From now on as well: data, indications and requests.
    assert_eq!(pair.send(THERE).as_deref(), Some(&b"data"[..]));
    assert!(
        pair.away
            .client_sends(THERE, &send_indication(PEER, b"more"))
            .is_none()
    );
    assert_eq!(pair.hand_over().0.as_deref(), Some(&b"more"[..]));
    assert_eq!(
        code(&pair.ask(THERE, Method::CREATE_PERMISSION, &[xor_peer(PEER)])),
        0
    );
    assert_eq!(code(&pair.ask(THERE, Method::ALLOCATE, &[udp()])), 437);
    assert_eq!(pair.away.relay.counters.allocations.value(), 0);
    let requests = |lab: &Lab| lab.relay.counters.requests(RequestKind::Refresh).value();
    assert_eq!((requests(&pair.home), requests(&pair.away)), (1, 0));
    assert_eq!(pair.away.drops(DropReason::NoAllocation), 0);
}

#[test]
fn what_is_known_of_a_moved_client_ends_with_its_allocation() {
    let mut pair = Pair::new();
    let (_, ticket) = allocate(&mut pair.home, CLIENT);
    assert_eq!(pair.home.bind(CLIENT, 0x4000, PEER), 0);
    assert_eq!(
        code(&pair.ask(THERE, Method::REFRESH, &[showing(&ticket)])),
        0
    );
    assert!(pair.send(THERE).is_some());
    assert_eq!(code(&pair.ask(THERE, Method::REFRESH, &[lifetime(0)])), 0);
    assert!(pair.home.shared.moved().is_empty());
    assert!(pair.send(THERE).is_none());
    assert_eq!(pair.away.drops(DropReason::NoAllocation), 1);
    assert_eq!(code(&pair.ask(THERE, Method::REFRESH, &[])), 437);
    assert_eq!(code(&pair.ask(THERE, Method::ALLOCATE, &[udp()])), 0);
    assert_eq!(pair.away.relay.counters.allocations.value(), 1);
}

#[test]
fn a_ticket_from_a_5_tuple_that_has_an_allocation_on_another_shard_is_refused_with_437() {
    let mut pair = Pair::new();
    let (_, ticket) = allocate(&mut pair.home, CLIENT);
    assert_eq!(
        code(&pair.ask(THERE, Method::ALLOCATE, &[udp(), mobile()])),
        0
    );
    assert_eq!(
        code(&pair.ask(THERE, Method::REFRESH, &[showing(&ticket)])),
        437
    );
    assert_eq!(code(&pair.home.request(CLIENT, Method::REFRESH, &[])), 0);
}

#[test]
fn a_stranger_with_a_ticket_of_another_shard_is_challenged_there() {
    let mut pair = Pair::new();
    let (_, ticket) = allocate(&mut pair.home, CLIENT);
    let unsigned = plain(Method::REFRESH, &[showing(&ticket)]);
    assert_eq!(pair.away.ask(THERE, &unsigned), None);
    let (_, answers) = pair.hand_over();
    assert_eq!(code(&answers[0]), 401);
    // A ticket that nobody made is nobody else's business.
    let unsigned = plain(Method::REFRESH, &[showing(&[9; 32])]);
    assert_eq!(code(&pair.away.ask(THERE, &unsigned).unwrap()), 401);
}

#[test]
fn datagrams_for_other_shards_are_dropped_and_counted_where_too_many_wait() {
    let mut pair = Pair::new();
    let (_, ticket) = allocate(&mut pair.home, CLIENT);
    assert_eq!(
        code(&pair.ask(THERE, Method::REFRESH, &[showing(&ticket)])),
        0
    );
    let from = Endpoint {
        listener: ListenerId(0),
        server: address(SERVER).ip(),
        client: address(THERE),
    };
    for _ in 0..5000 {
        pair.away
            .relay
            .hand_over(ShardId(0), from, TrafficClass::ORDINARY, b"data");
    }
    assert_eq!(pair.away.drops(DropReason::OutputFull), 5000 - 4096);
    pair.away.run();
    assert_eq!(pair.away.handed_over.len(), 4096);
}
