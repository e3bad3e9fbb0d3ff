//! Mobility (RFC 8016): what the client asks for, what it waits with, and what it makes of the answers.

use super::*;

fn ticket_of(request: &[u8]) -> Option<Vec<u8>> {
    let message = Message::parse(request).unwrap();
    let ticket = message.get::<MobilityTicket<'_>>().unwrap();
    ticket.map(|MobilityTicket(ticket)| ticket.to_vec())
}

fn method_of(request: &[u8]) -> Method {
    Message::parse(request).unwrap().method()
}

fn with_ticket(request: &[u8], lifetime: u32, ticket: &[u8]) -> Vec<u8> {
    let is_allocate = method_of(request) == Method::ALLOCATE;
    response(request, Class::Success, |w| {
        if is_allocate {
            w.put(&XorRelayedAddress(relayed())).unwrap();
            w.put(&XorMappedAddress(mapped())).unwrap();
        }
        w.put(&Lifetime(lifetime)).unwrap();
        w.put(&MobilityTicket(ticket)).unwrap();
        w.integrity(&key(Algorithm::Md5)).unwrap();
    })
}

/// A client with a mobile allocation, made at second 0.
fn mobile() -> Client {
    let mut client = client_with(true);
    client.allocate(at(0), None).unwrap();
    let first = next_request(&mut client, at(0)).unwrap();
    assert_eq!(ticket_of(&first).as_deref(), Some(&[][..]), "an empty one");
    let nonce = challenge(&first, Code::UNAUTHENTICATED, b"nonce one");
    answer(&mut client, at(0), &nonce);
    let second = next_request(&mut client, at(0)).unwrap();
    answer(
        &mut client,
        at(0),
        &with_ticket(&second, 600, b"ticket one"),
    );
    assert!(matches!(client.poll_event(), Some(Event::Allocated(_))));
    assert!(client.is_mobile());
    client
}

/// Moves a client, through the 438 that its new address is answered with.
fn rebound(client: &mut Client, now: Timestamp, shown: &[u8], given: &[u8]) {
    client.rebind(now).unwrap();
    let first = next_request(client, now).unwrap();
    answer(client, now, &challenge(&first, Code::STALE_NONCE, b"fresh"));
    let second = next_request(client, now).unwrap();
    assert_eq!(ticket_of(&second).as_deref(), Some(shown));
    answer(client, now, &with_ticket(&second, 600, given));
}

// RFC 8016 §3.2.1: "the client includes the MOBILITY-TICKET attribute received in the Allocate success
// response in the Refresh request"; otherwise it "MUST NOT include" one.
#[test]
fn the_ticket_is_shown_from_a_new_address_only_and_each_one_once() {
    let mut client = mobile();
    let plain = next_request(&mut client, at(300)).unwrap();
    assert_eq!(
        (method_of(&plain), ticket_of(&plain)),
        (Method::REFRESH, None)
    );
    answer(&mut client, at(300), &success(&plain, Some(600)));
    rebound(&mut client, at(310), b"ticket one", b"ticket two");
    assert_eq!(
        client.poll_event(),
        None,
        "the server has not seen it there yet"
    );
    let confirming = next_request(&mut client, at(310)).unwrap();
    assert_eq!(method_of(&confirming), Method::REFRESH);
    assert_eq!(ticket_of(&confirming), None);
    answer(&mut client, at(310), &success(&confirming, Some(600)));
    assert_eq!(client.poll_event(), Some(Event::Moved));
    rebound(&mut client, at(320), b"ticket two", b"ticket three");
}

// RFC 8016 §3.2.2: "it is RECOMMENDED that the client avoid transmitting a Send indication or
// ChannelData message until it has received an acknowledgement for the Refresh request".
#[test]
fn everything_else_waits_until_the_server_knows_the_new_address() {
    let mut client = mobile();
    client.permit(at(1), peer().ip()).unwrap();
    let before = next_request(&mut client, at(1)).unwrap();
    client.rebind(at(1)).unwrap();
    let moving = client.send(peer(), b"data", &mut [0; 100]);
    assert_eq!(moving, Err(SendError::Moving));
    let first = next_request(&mut client, at(1)).unwrap();
    assert_eq!(method_of(&first), Method::REFRESH);
    assert_eq!(client.poll_transmit(at(1), &mut [0; 2048]), None);
    assert_eq!(
        method_of(&next_request(&mut client, at(2)).unwrap()),
        Method::REFRESH
    );
    answer(&mut client, at(2), &with_ticket(&first, 600, b"ticket two"));
    let after: Vec<_> = [0; 2]
        .iter()
        .map(|_| next_request(&mut client, at(2)).unwrap())
        .collect();
    let again = after
        .iter()
        .find(|request| method_of(request) == Method::CREATE_PERMISSION);
    let id = |request: &[u8]| Message::parse(request).unwrap().transaction_id();
    assert_ne!(id(again.unwrap()), id(&before), "a new transaction");
    answer(&mut client, at(2), &success(again.unwrap(), None));
    assert_eq!(
        client.poll_event(),
        Some(Event::PermissionCreated(peer().ip()))
    );
}

#[test]
fn a_move_that_nobody_answers_is_tried_until_the_allocation_ends() {
    let mut client = mobile();
    client.rebind(at(1)).unwrap();
    let (mut now, mut shown) = (at(1), 0);
    while client.poll_event().is_none() {
        now = client.poll_timeout().unwrap().max(now);
        client.handle_timeout(now);
        let mut buffer = [0; 2048];
        while let Some(len) = client.poll_transmit(now, &mut buffer) {
            assert_eq!(
                ticket_of(&buffer[..len]).as_deref(),
                Some(&b"ticket one"[..])
            );
            shown += 1;
        }
    }
    assert!(now >= at(600), "{now:?}");
    assert!((50..200).contains(&shown), "{shown}");
    assert!(!client.is_mobile());
}

#[test]
fn a_refused_move_loses_the_allocation() {
    for code in [
        Code::BAD_REQUEST,
        Code::MOBILITY_FORBIDDEN,
        Code::ALLOCATION_MISMATCH,
    ] {
        let mut client = mobile();
        client.rebind(at(1)).unwrap();
        let request = next_request(&mut client, at(1)).unwrap();
        answer(&mut client, at(1), &refusal(&request, code));
        assert!(
            matches!(client.poll_event(), Some(Event::Lost(_))),
            "{code}"
        );
        assert_eq!(client.rebind(at(2)), Err(MoveError::NoAllocation));
    }
}

// RFC 8016 §3.1.4.
#[test]
fn a_405_is_followed_by_an_allocate_without_mobility() {
    let mut client = client_with(true);
    client.allocate(at(0), Some(Family::V6)).unwrap();
    let first = next_request(&mut client, at(0)).unwrap();
    let nonce = challenge(&first, Code::UNAUTHENTICATED, b"nonce");
    answer(&mut client, at(0), &nonce);
    let second = next_request(&mut client, at(0)).unwrap();
    answer(
        &mut client,
        at(0),
        &refusal(&second, Code::MOBILITY_FORBIDDEN),
    );
    let third = next_request(&mut client, at(0)).unwrap();
    assert_eq!(ticket_of(&third), None);
    let message = Message::parse(&third).unwrap();
    assert_eq!(message.get(), Ok(Some(RequestedAddressFamily(Family::V6))));
    answer(&mut client, at(0), &allocated(&third, 600));
    assert!(!client.is_mobile());
    assert_eq!(client.rebind(at(1)), Err(MoveError::NotMobile));
}

#[test]
fn a_server_that_does_not_know_mobility_gives_an_allocation_that_stays() {
    let mut client = client_with(true);
    client.allocate(at(0), None).unwrap();
    let first = next_request(&mut client, at(0)).unwrap();
    let nonce = challenge(&first, Code::UNAUTHENTICATED, b"nonce");
    answer(&mut client, at(0), &nonce);
    let second = next_request(&mut client, at(0)).unwrap();
    answer(&mut client, at(0), &with_ticket(&second, 600, &[7; 257]));
    assert!(client.allocation().is_some() && !client.is_mobile());
}

#[test]
fn an_allocation_is_released_from_a_new_address_by_its_ticket() {
    let mut client = mobile();
    client.rebind(at(1)).unwrap();
    client.release(at(1));
    let request = next_request(&mut client, at(1)).unwrap();
    assert_eq!(ticket_of(&request).as_deref(), Some(&b"ticket one"[..]));
    assert_eq!(
        Message::parse(&request).unwrap().get(),
        Ok(Some(Lifetime(0)))
    );
    answer(&mut client, at(1), &success(&request, Some(0)));
    assert_eq!(client.poll_event(), Some(Event::Released));
}
