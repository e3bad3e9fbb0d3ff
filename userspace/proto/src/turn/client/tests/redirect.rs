//! 300 (Try Alternate) on the client's side: RFC 8489 §10.

use super::*;
use crate::wire::attribute::AlternateServer;

fn elsewhere() -> SocketAddr {
    "192.0.2.99:3478".parse().unwrap()
}

fn redirection(request: &[u8], to: SocketAddr, signed: bool) -> Vec<u8> {
    response(request, Class::Error, |w| {
        w.put(&ErrorCode::new(Code::TRY_ALTERNATE)).unwrap();
        w.put(&AlternateServer(to)).unwrap();
        if signed {
            w.integrity(&key(Algorithm::Md5)).unwrap();
        }
    })
}

/// A client whose second request, with credentials, is under way.
fn challenged() -> (Client, Vec<u8>) {
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    let first = next_request(&mut client, at(0)).unwrap();
    let refused = challenge(&first, Code::UNAUTHENTICATED, b"nonce of the first");
    answer(&mut client, at(0), &refused);
    let second = next_request(&mut client, at(0)).unwrap();
    (client, second)
}

// RFC 8489 §10: "reattempts the request with the server specified in the attribute …. That request, if
// authenticated, MUST utilize the same credentials".
#[test]
fn a_client_asks_the_server_it_is_sent_to_with_the_same_credentials() {
    let (mut client, second) = challenged();
    answer(&mut client, at(0), &redirection(&second, elsewhere(), true));
    assert_eq!(client.poll_event(), Some(Event::Redirected(elsewhere())));
    assert_eq!(client.server(), elsewhere());

    let third = next_request(&mut client, at(0)).unwrap();
    let message = Message::parse(&third).unwrap();
    assert_eq!(message.method(), Method::ALLOCATE);
    assert!(!message.has_integrity(), "the nonce is not this server's");
    let refused = challenge(&third, Code::UNAUTHENTICATED, b"nonce of the second");
    assert_eq!(
        client.handle_datagram(at(0), server(), &refused),
        Received::Ignored(Ignored::Stranger)
    );
    let taken = client.handle_datagram(at(0), elsewhere(), &refused);
    assert_eq!(taken, Received::Response);
    let fourth = next_request(&mut client, at(0)).unwrap();
    let message = Message::parse(&fourth).unwrap();
    message.check_integrity(&key(Algorithm::Md5)).unwrap();
    assert_eq!(message.get(), Ok(Some(Nonce(b"nonce of the second"))));
    let granted = allocated(&fourth, 600);
    let taken = client.handle_datagram(at(0), elsewhere(), &granted);
    assert_eq!(taken, Received::Response);
    assert!(matches!(client.poll_event(), Some(Event::Allocated(_))));
}

// RFC 8489 §10: the response may be unauthenticated where the request was.
#[test]
fn a_server_may_send_on_whom_it_did_not_ask_for_credentials() {
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    let first = next_request(&mut client, at(0)).unwrap();
    answer(&mut client, at(0), &redirection(&first, elsewhere(), false));
    assert_eq!(client.poll_event(), Some(Event::Redirected(elsewhere())));
}

// RFC 8489 §9.2.5
#[test]
fn an_unsigned_redirection_of_a_signed_request_is_not_followed() {
    let (mut client, second) = challenged();
    answer(
        &mut client,
        at(0),
        &redirection(&second, elsewhere(), false),
    );
    let error = RequestError::TryAlternate {
        server: elsewhere(),
    };
    assert_eq!(client.poll_event(), Some(Event::AllocateFailed(error)));
    assert_eq!(client.server(), server());

    let (mut client, second) = challenged();
    let mut forged = redirection(&second, elsewhere(), true);
    *forged.last_mut().unwrap() ^= 1;
    let ignored = Received::Ignored(Ignored::BadIntegrity);
    assert_eq!(client.handle_datagram(at(0), server(), &forged), ignored);
    assert_eq!((client.poll_event(), client.server()), (None, server()));
    answer(&mut client, at(0), &allocated(&second, 600));
}

// RFC 8489 §10: "If a client has been redirected to a server to which it has already sent this request
// within the last five minutes, it MUST ignore the redirection and consider the transaction to have
// failed."
#[test]
fn two_servers_that_send_a_client_to_each_other_end_its_request() {
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    let first = next_request(&mut client, at(0)).unwrap();
    answer(&mut client, at(0), &redirection(&first, elsewhere(), false));
    assert_eq!(client.poll_event(), Some(Event::Redirected(elsewhere())));
    let second = next_request(&mut client, at(0)).unwrap();
    let back = redirection(&second, server(), false);
    client.handle_datagram(at(0), elsewhere(), &back);
    let error = RequestError::TryAlternate { server: server() };
    assert_eq!(client.poll_event(), Some(Event::AllocateFailed(error)));
    // The next allocation begins where the configuration says.
    client.allocate(at(400), None).unwrap();
    assert_eq!(client.server(), server());
}

#[test]
fn a_chain_of_redirections_ends() {
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    for port in 1..100 {
        let request = next_request(&mut client, at(0)).unwrap();
        let next = SocketAddr::from(([192, 0, 2, 50], port));
        let from = client.server();
        client.handle_datagram(at(0), from, &redirection(&request, next, false));
        match client.poll_event() {
            Some(Event::Redirected(to)) => assert_eq!(to, next),
            Some(Event::AllocateFailed(error)) => {
                assert_eq!(error, RequestError::TryAlternate { server: next });
                assert_eq!(port, 4, "three are followed");
                return;
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("it went on");
}

#[test]
fn an_allocation_that_there_is_cannot_be_had_elsewhere() {
    let mut client = with_allocation(600);
    let refresh = next_request(&mut client, at(300)).unwrap();
    answer(
        &mut client,
        at(300),
        &redirection(&refresh, elsewhere(), true),
    );
    let error = RequestError::TryAlternate {
        server: elsewhere(),
    };
    assert_eq!(client.poll_event(), Some(Event::Lost(error)));
    assert_eq!(client.server(), server());
}
