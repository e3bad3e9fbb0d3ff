mod mobility;

use super::*;
use crate::credentials::{LongTermKey, userhash};
use crate::wire::attribute::{
    Algorithm, ChannelNumberValue, Nonce, PasswordAlgorithm, PasswordAlgorithms, Realm,
    RequestedAddressFamily, RequestedTransport, Userhash, Username,
};
use crate::wire::{IntegrityKey, MessageType, MessageWriter, data_indication};

mod redirect;

const REALM: &str = "example.org";

fn server() -> SocketAddr {
    "192.0.2.1:3478".parse().unwrap()
}

fn relayed() -> SocketAddr {
    "192.0.2.1:50000".parse().unwrap()
}

fn mapped() -> SocketAddr {
    "198.51.100.7:4000".parse().unwrap()
}

fn peer() -> SocketAddr {
    "203.0.113.5:9000".parse().unwrap()
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_secs(seconds)
}

fn key(algorithm: Algorithm) -> IntegrityKey {
    let key = LongTermKey::derive(algorithm, "alice", REALM, "secret").unwrap();
    IntegrityKey::new(key.as_bytes())
}

fn client() -> Client {
    client_with(false)
}

fn client_with(mobility: bool) -> Client {
    let credentials = Credentials::new("alice".into(), "secret".into()).unwrap();
    let config = ClientConfig {
        server: server(),
        credentials: Arc::new(credentials),
        lifetime: None,
        mobility,
        schedule: Schedule::STANDARD,
    };
    Client::new(config, [7; 32])
}

fn next_request(client: &mut Client, now: Timestamp) -> Option<Vec<u8>> {
    assert!(
        client
            .poll_timeout()
            .is_some_and(|deadline| deadline <= now),
        "nothing is due"
    );
    client.handle_timeout(now);
    let mut buffer = [0; 2048];
    client
        .poll_transmit(now, &mut buffer)
        .map(|len| buffer[..len].to_vec())
}

/// A response to `request`, unsigned.
fn response(request: &[u8], class: Class, write: impl FnOnce(&mut MessageWriter<'_>)) -> Vec<u8> {
    let request = Message::parse(request).unwrap();
    let mut buffer = [0; 1024];
    let message_type = MessageType::new(request.method(), class);
    let mut writer =
        MessageWriter::new(&mut buffer, message_type, request.transaction_id()).unwrap();
    write(&mut writer);
    writer.finish().to_vec()
}

fn challenge(request: &[u8], code: Code, nonce: &[u8]) -> Vec<u8> {
    challenge_with(request, code, nonce, None)
}

fn challenge_with(request: &[u8], code: Code, nonce: &[u8], algorithms: Option<&[u8]>) -> Vec<u8> {
    response(request, Class::Error, |w| {
        w.put(&ErrorCode::new(code)).unwrap();
        w.put(&Realm(REALM)).unwrap().put(&Nonce(nonce)).unwrap();
        if let Some(algorithms) = algorithms {
            w.put_raw(AttributeType::PASSWORD_ALGORITHMS, algorithms)
                .unwrap();
        }
    })
}

fn refusal(request: &[u8], code: Code) -> Vec<u8> {
    response(request, Class::Error, |w| {
        w.put(&ErrorCode::new(code))
            .unwrap()
            .integrity(&key(Algorithm::Md5))
            .unwrap();
    })
}

fn allocated(request: &[u8], lifetime: u32) -> Vec<u8> {
    response(request, Class::Success, |w| {
        w.put(&XorRelayedAddress(relayed()))
            .unwrap()
            .put(&XorMappedAddress(mapped()))
            .unwrap();
        w.put(&Lifetime(lifetime))
            .unwrap()
            .integrity(&key(Algorithm::Md5))
            .unwrap();
    })
}

fn success(request: &[u8], lifetime: Option<u32>) -> Vec<u8> {
    response(request, Class::Success, |w| {
        w.put_some(lifetime.map(Lifetime).as_ref()).unwrap();
        w.integrity(&key(Algorithm::Md5)).unwrap();
    })
}

fn answer(client: &mut Client, now: Timestamp, bytes: &[u8]) {
    assert_eq!(
        client.handle_datagram(now, server(), bytes),
        Received::Response
    );
}

/// A client with an allocation made at second 0.
fn with_allocation(lifetime: u32) -> Client {
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    let first = next_request(&mut client, at(0)).unwrap();
    answer(
        &mut client,
        at(0),
        &challenge(&first, Code::UNAUTHENTICATED, b"nonce one"),
    );
    let second = next_request(&mut client, at(0)).unwrap();
    answer(&mut client, at(0), &allocated(&second, lifetime));
    let lifetime = Duration::from_secs(lifetime.into());
    let allocation = Allocation {
        relayed: relayed(),
        mapped: mapped(),
        lifetime,
    };
    assert_eq!(client.poll_event(), Some(Event::Allocated(allocation)));
    client
}

fn with_permission() -> Client {
    let mut client = with_allocation(600);
    client.permit(at(0), peer().ip()).unwrap();
    let request = next_request(&mut client, at(0)).unwrap();
    answer(&mut client, at(0), &success(&request, None));
    assert_eq!(
        client.poll_event(),
        Some(Event::PermissionCreated(peer().ip()))
    );
    client
}

fn with_channel() -> (Client, ChannelNumber) {
    let mut client = with_allocation(600);
    let channel = client.bind_channel(at(0), peer()).unwrap();
    let request = next_request(&mut client, at(0)).unwrap();
    let message = Message::parse(&request).unwrap();
    assert_eq!(message.get(), Ok(Some(ChannelNumberValue(channel))));
    assert_eq!(message.get(), Ok(Some(XorPeerAddress(peer()))));
    answer(&mut client, at(0), &success(&request, None));
    assert_eq!(
        client.poll_event(),
        Some(Event::ChannelBound(peer(), channel))
    );
    (client, channel)
}

#[test]
fn the_first_allocate_is_without_credentials_and_the_second_with_them() {
    let mut client = client();
    client.allocate(at(0), Some(Family::V6)).unwrap();
    let first = next_request(&mut client, at(0)).unwrap();
    let message = Message::parse(&first).unwrap();
    assert_eq!(message.get(), Ok(Some(RequestedTransport::UDP)));
    assert_eq!(message.get(), Ok(Some(RequestedAddressFamily(Family::V6))));
    assert!(!message.has_integrity() && !message.contains(AttributeType::USERNAME));

    answer(
        &mut client,
        at(0),
        &challenge(&first, Code::UNAUTHENTICATED, b"nonce"),
    );
    let second = next_request(&mut client, at(0)).unwrap();
    let again = Message::parse(&second).unwrap();
    assert_ne!(again.transaction_id(), message.transaction_id());
    assert_eq!(again.get(), Ok(Some(Username("alice"))));
    assert_eq!(again.get(), Ok(Some(Realm(REALM))));
    assert_eq!(again.get(), Ok(Some(Nonce(b"nonce"))));
    assert_eq!(again.check_integrity(&key(Algorithm::Md5)), Ok(()));
    assert_eq!(again.check_fingerprint(), Ok(()));
}

#[test]
fn a_second_401_means_that_the_credentials_are_wrong() {
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    let first = next_request(&mut client, at(0)).unwrap();
    answer(
        &mut client,
        at(0),
        &challenge(&first, Code::UNAUTHENTICATED, b"one"),
    );
    let second = next_request(&mut client, at(0)).unwrap();
    answer(
        &mut client,
        at(0),
        &challenge(&second, Code::UNAUTHENTICATED, b"two"),
    );
    let failed = Event::AllocateFailed(RequestError::WrongCredentials);
    assert_eq!(client.poll_event(), Some(failed));
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn a_stale_nonce_is_replaced_a_bounded_number_of_times() {
    let mut client = with_allocation(600);
    client.permit(at(1), peer().ip()).unwrap();
    for round in 0..MAX_CHALLENGES {
        let request = next_request(&mut client, at(1)).unwrap();
        let nonce = [b'n', round];
        answer(
            &mut client,
            at(1),
            &challenge(&request, Code::STALE_NONCE, &nonce),
        );
        assert_eq!(client.poll_event(), None);
    }
    let request = next_request(&mut client, at(1)).unwrap();
    let message = Message::parse(&request).unwrap();
    assert_eq!(message.get(), Ok(Some(Nonce(&[b'n', MAX_CHALLENGES - 1]))));
    answer(
        &mut client,
        at(1),
        &challenge(&request, Code::STALE_NONCE, b"another"),
    );
    let stale = RequestError::Refused(Code::STALE_NONCE);
    assert_eq!(
        client.poll_event(),
        Some(Event::PermissionFailed(peer().ip(), stale))
    );
}

#[test]
fn sha256_is_used_where_the_server_offers_it() {
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    let first = next_request(&mut client, at(0)).unwrap();
    let offer = offer(&first, b"obMatJos2gAAAxyz", SHA256_MD5);
    answer(&mut client, at(0), &offer);
    let second = next_request(&mut client, at(0)).unwrap();
    let message = Message::parse(&second).unwrap();
    assert_eq!(
        message.get(),
        Ok(Some(PasswordAlgorithm(Algorithm::Sha256)))
    );
    let repeated = message.find(AttributeType::PASSWORD_ALGORITHMS);
    assert_eq!(repeated, Some(PasswordAlgorithms::SHA256_MD5.as_bytes()));
    assert!(!message.has_integrity());
    assert_eq!(
        message.check_integrity_sha256(&key(Algorithm::Sha256), 32),
        Ok(())
    );

    let sha1_only = allocated(&second, 600);
    let ignored = Received::Ignored(Ignored::BadIntegrity);
    assert_eq!(client.handle_datagram(at(0), server(), &sha1_only), ignored);
    let signed = response(&second, Class::Success, |w| {
        w.put(&XorRelayedAddress(relayed()))
            .unwrap()
            .put(&XorMappedAddress(mapped()))
            .unwrap();
        w.put(&Lifetime(600)).unwrap();
        w.integrity_sha256(&key(Algorithm::Sha256), 32).unwrap();
    });
    answer(&mut client, at(0), &signed);
    assert!(client.allocation().is_some());
}

#[test]
fn a_challenge_whose_offer_was_taken_out_on_the_way_is_ignored() {
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    let first = next_request(&mut client, at(0)).unwrap();
    let bid_down = challenge(&first, Code::UNAUTHENTICATED, b"obMatJos2gAAAxyz");
    let ignored = Received::Ignored(Ignored::BidDown);
    assert_eq!(client.handle_datagram(at(0), server(), &bid_down), ignored);
}

/// A 401 with this nonce and list.
fn offer(request: &[u8], nonce: &[u8], algorithms: &[u8]) -> Vec<u8> {
    challenge_with(request, Code::UNAUTHENTICATED, nonce, Some(algorithms))
}

const SHA256_MD5: &[u8] = &[0, 2, 0, 0, 0, 1, 0, 0];

// RFC 8489 §9.2.5: "If the "nonce cookie" is present and has the STUN Security Feature "Username anonymity"
// bit set to 1, then the USERHASH attribute MUST be used; else, the USERNAME attribute MUST be used."
#[test]
fn the_username_is_hidden_where_the_server_understands_its_hash() {
    for (nonce, hidden) in [(b"obMatJos2wAAAx", true), (b"obMatJos2gAAAx", false)] {
        let mut client = client();
        client.allocate(at(0), None).unwrap();
        let first = next_request(&mut client, at(0)).unwrap();
        answer(&mut client, at(0), &offer(&first, nonce, SHA256_MD5));
        let second = next_request(&mut client, at(0)).unwrap();
        let message = Message::parse(&second).unwrap();
        let hash = userhash("alice", REALM).unwrap();
        assert_eq!(message.get(), Ok(hidden.then_some(Userhash(hash))));
        assert_eq!(message.get(), Ok((!hidden).then_some(Username("alice"))));
        let key = key(Algorithm::Sha256);
        assert_eq!(message.check_integrity_sha256(&key, 32), Ok(()));
    }
}

// RFC 8489 §9.2.5: "the request MUST contain a PASSWORD-ALGORITHM attribute with the first algorithm
// supported on the list", and without one the client "MUST NOT retry".
#[test]
fn the_first_known_algorithm_of_the_list_is_used() {
    let unknown_first = [0, 9, 0, 2, 1, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0];
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    let first = next_request(&mut client, at(0)).unwrap();
    let none = offer(&first, b"obMatJos2gAAAx", &[0, 9, 0, 0]);
    let ignored = Received::Ignored(Ignored::NoAlgorithm);
    assert_eq!(client.handle_datagram(at(0), server(), &none), ignored);
    let some = offer(&first, b"obMatJos2gAAAx", &unknown_first);
    answer(&mut client, at(0), &some);
    let second = next_request(&mut client, at(0)).unwrap();
    let message = Message::parse(&second).unwrap();
    assert_eq!(message.get(), Ok(Some(PasswordAlgorithm(Algorithm::Md5))));
    let repeated = message.find(AttributeType::PASSWORD_ALGORITHMS);
    assert_eq!(repeated, Some(&unknown_first[..]));
    let key = key(Algorithm::Md5);
    assert_eq!(message.check_integrity_sha256(&key, 32), Ok(()));
}

// RFC 8489 §9.2.5: "For all other responses, if the NONCE attribute starts with the "nonce cookie" with the
// STUN Security Feature "Password algorithms" bit set to 1 but PASSWORD-ALGORITHMS is not present, the
// response MUST be ignored."
#[test]
fn any_response_whose_offer_was_taken_out_on_the_way_is_ignored() {
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    let request = next_request(&mut client, at(0)).unwrap();
    let refusal = response(&request, Class::Error, |w| {
        w.put(&ErrorCode::new(Code::ALLOCATION_QUOTA_REACHED))
            .unwrap()
            .put(&Nonce(b"obMatJos2gAAAx"))
            .unwrap();
    });
    let ignored = Received::Ignored(Ignored::BidDown);
    assert_eq!(client.handle_datagram(at(0), server(), &refusal), ignored);
    assert_eq!(client.poll_event(), None);
}

#[test]
fn a_server_that_offered_algorithms_is_not_believed_to_offer_none() {
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    let first = next_request(&mut client, at(0)).unwrap();
    answer(
        &mut client,
        at(0),
        &offer(&first, b"obMatJos2gAAAx", SHA256_MD5),
    );
    let second = next_request(&mut client, at(0)).unwrap();
    let forged = challenge(&second, Code::STALE_NONCE, b"plain");
    let ignored = Received::Ignored(Ignored::BidDown);
    assert_eq!(client.handle_datagram(at(0), server(), &forged), ignored);
    let stale = challenge_with(
        &second,
        Code::STALE_NONCE,
        b"obMatJos2gAAAy",
        Some(SHA256_MD5),
    );
    answer(&mut client, at(0), &stale);
    let third = next_request(&mut client, at(0)).unwrap();
    let message = Message::parse(&third).unwrap();
    assert_eq!(message.get(), Ok(Some(Nonce(b"obMatJos2gAAAy"))));
}

#[test]
fn an_unsigned_or_wrongly_signed_success_is_ignored() {
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    let first = next_request(&mut client, at(0)).unwrap();
    answer(
        &mut client,
        at(0),
        &challenge(&first, Code::UNAUTHENTICATED, b"nonce"),
    );
    let second = next_request(&mut client, at(0)).unwrap();
    let forged = |key: Option<&IntegrityKey>| {
        response(&second, Class::Success, |w| {
            w.put(&XorRelayedAddress(peer()))
                .unwrap()
                .put(&XorMappedAddress(mapped()))
                .unwrap();
            w.put(&Lifetime(600)).unwrap();
            key.map(|key| w.integrity(key).unwrap());
        })
    };
    let ignored = Received::Ignored(Ignored::BadIntegrity);
    let unsigned = forged(None);
    assert_eq!(client.handle_datagram(at(0), server(), &unsigned), ignored);
    let other_key = forged(Some(&IntegrityKey::new(b"guess")));
    assert_eq!(client.handle_datagram(at(0), server(), &other_key), ignored);
    assert_eq!(client.allocation(), None);
    answer(&mut client, at(0), &allocated(&second, 600));
    assert!(client.allocation().is_some());
}

#[test]
fn an_unsigned_refusal_ends_an_allocate_and_nothing_else() {
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    let request = next_request(&mut client, at(0)).unwrap();
    let unsigned = |request: &[u8], code| {
        response(request, Class::Error, |w| {
            w.put(&ErrorCode::new(code)).unwrap();
        })
    };
    answer(
        &mut client,
        at(0),
        &unsigned(&request, Code::INSUFFICIENT_CAPACITY),
    );
    assert_eq!(
        client.poll_event(),
        Some(Event::AllocateFailed(RequestError::NoCapacity))
    );

    let mut client = with_allocation(600);
    let request = next_request(&mut client, at(300)).unwrap();
    let forged = unsigned(&request, Code::ALLOCATION_MISMATCH);
    let ignored = Received::Ignored(Ignored::BadIntegrity);
    assert_eq!(client.handle_datagram(at(300), server(), &forged), ignored);
    assert!(client.allocation().is_some());
}

#[test]
fn refusals_of_an_allocate_are_told_apart() {
    for (code, error) in [
        (Code::FORBIDDEN, RequestError::Forbidden),
        (Code::ALLOCATION_MISMATCH, RequestError::AllocationMismatch),
        (
            Code::ADDRESS_FAMILY_NOT_SUPPORTED,
            RequestError::FamilyNotSupported,
        ),
        (Code::ALLOCATION_QUOTA_REACHED, RequestError::QuotaReached),
        (Code::INSUFFICIENT_CAPACITY, RequestError::NoCapacity),
        (Code::BAD_REQUEST, RequestError::Refused(Code::BAD_REQUEST)),
    ] {
        let mut client = client();
        client.allocate(at(0), None).unwrap();
        let first = next_request(&mut client, at(0)).unwrap();
        answer(
            &mut client,
            at(0),
            &challenge(&first, Code::UNAUTHENTICATED, b"nonce"),
        );
        let second = next_request(&mut client, at(0)).unwrap();
        answer(&mut client, at(0), &refusal(&second, code));
        assert_eq!(client.poll_event(), Some(Event::AllocateFailed(error)));
        assert_eq!(
            client.allocate(at(1), None),
            Ok(()),
            "it may be tried again"
        );
    }
}

#[test]
fn a_request_is_retransmitted_unchanged_until_it_times_out() {
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    let first = next_request(&mut client, at(0)).unwrap();
    let mut transmissions = 1;
    while let Some(next) = client.poll_timeout() {
        if let Some(again) = next_request(&mut client, next) {
            assert_eq!(again, first);
            transmissions += 1;
        }
    }
    assert_eq!(transmissions, 7);
    let timed_out = RequestError::TimedOut { transmissions: 7 };
    assert_eq!(client.poll_event(), Some(Event::AllocateFailed(timed_out)));
}

#[test]
fn responses_from_elsewhere_and_to_other_transactions_are_ignored() {
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    let request = next_request(&mut client, at(0)).unwrap();
    let bytes = challenge(&request, Code::UNAUTHENTICATED, b"nonce");
    let stranger = Received::Ignored(Ignored::Stranger);
    assert_eq!(client.handle_datagram(at(0), peer(), &bytes), stranger);
    answer(&mut client, at(0), &bytes);
    let late = Received::Ignored(Ignored::NoTransaction);
    assert_eq!(client.handle_datagram(at(0), server(), &bytes), late);
    assert_eq!(
        client.handle_datagram(at(0), server(), &[0xff]),
        Received::Ignored(Ignored::NotTurn)
    );
}

#[test]
fn an_allocation_is_refreshed_at_half_its_lifetime() {
    let mut client = with_allocation(600);
    assert_eq!(client.poll_timeout(), Some(at(300)));
    client.handle_timeout(at(299));
    assert_eq!(client.poll_transmit(at(299), &mut [0; 2048]), None);
    let request = next_request(&mut client, at(300)).unwrap();
    let message = Message::parse(&request).unwrap();
    assert_eq!(
        (message.method(), message.get::<Lifetime>()),
        (Method::REFRESH, Ok(None))
    );
    answer(&mut client, at(301), &success(&request, Some(100)));
    assert_eq!(client.poll_timeout(), Some(at(351)));
    assert_eq!(
        client.allocation().unwrap().lifetime,
        Duration::from_secs(100)
    );
}

#[test]
fn an_allocation_that_cannot_be_refreshed_is_lost_when_its_lifetime_ends() {
    let mut client = with_allocation(100);
    let mut requests = 0;
    while let Some(next) = client.poll_timeout() {
        assert!(next <= at(100));
        requests += usize::from(next_request(&mut client, next).is_some());
    }
    assert!(requests > 7, "a failed refresh is tried again");
    assert_eq!(
        client.poll_event(),
        Some(Event::Lost(RequestError::Expired))
    );
    assert_eq!(client.allocation(), None);
}

#[test]
fn a_refused_refresh_loses_the_allocation() {
    let mut client = with_allocation(600);
    let request = next_request(&mut client, at(300)).unwrap();
    answer(
        &mut client,
        at(300),
        &refusal(&request, Code::ALLOCATION_MISMATCH),
    );
    let lost = Event::Lost(RequestError::AllocationMismatch);
    assert_eq!(client.poll_event(), Some(lost));
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn a_permission_is_renewed_before_its_five_minutes_end() {
    let mut client = with_permission();
    assert_eq!(client.poll_timeout(), Some(at(240)));
    let request = next_request(&mut client, at(240)).unwrap();
    let message = Message::parse(&request).unwrap();
    assert_eq!(message.method(), Method::CREATE_PERMISSION);
    assert_eq!(
        message.get(),
        Ok(Some(XorPeerAddress(SocketAddr::new(peer().ip(), 0))))
    );
    answer(&mut client, at(240), &success(&request, None));
    assert_eq!(client.poll_event(), None, "a renewal is no news");
    assert_eq!(client.poll_timeout(), Some(at(300)));
}

#[test]
fn a_refused_permission_is_reported_and_forgotten() {
    let mut client = with_allocation(600);
    client.permit(at(0), peer().ip()).unwrap();
    let request = next_request(&mut client, at(0)).unwrap();
    answer(&mut client, at(0), &refusal(&request, Code::FORBIDDEN));
    let failed = Event::PermissionFailed(peer().ip(), RequestError::Forbidden);
    assert_eq!(client.poll_event(), Some(failed));
    let refused = SendError::NotPermitted { peer: peer().ip() };
    assert_eq!(client.send(peer(), b"x", &mut [0; 100]), Err(refused));
}

#[test]
fn data_without_a_channel_goes_and_comes_in_indications() {
    let mut client = with_permission();
    let mut buffer = [0xff; 256];
    let len = client.send(peer(), b"hello", &mut buffer).unwrap();
    let message = Message::parse(&buffer[..len]).unwrap();
    assert_eq!(
        (message.method(), message.class()),
        (Method::SEND, Class::Indication)
    );
    assert_eq!(message.get(), Ok(Some(XorPeerAddress(peer()))));
    assert_eq!(message.get(), Ok(Some(Data(b"hello"))));
    assert!(client.send(peer(), &[0; 300], &mut buffer).is_err());

    let indication = |from: SocketAddr| {
        let around = data_indication(TransactionId([1; 12]), from, 4).unwrap();
        [around.prefix.as_bytes(), b"back"].concat()
    };
    let received = Received::Data {
        peer: peer(),
        payload: b"back",
    };
    assert_eq!(
        client.handle_datagram(at(1), server(), &indication(peer())),
        received
    );
    let stranger = indication("203.0.113.6:9000".parse().unwrap());
    let ignored = Received::Ignored(Ignored::NotPermitted);
    assert_eq!(client.handle_datagram(at(1), server(), &stranger), ignored);
}

#[test]
fn data_on_a_channel_goes_and_comes_as_channel_data() {
    let (mut client, channel) = with_channel();
    assert_eq!(channel, ChannelNumber::FIRST);
    let mut buffer = [0; 64];
    let len = client.send(peer(), b"hello", &mut buffer).unwrap();
    assert_eq!(buffer[..len], *b"\x40\x00\x00\x05hello");
    let received = Received::Data {
        peer: peer(),
        payload: b"back",
    };
    let bytes = b"\x40\x00\x00\x04back";
    assert_eq!(client.handle_datagram(at(1), server(), bytes), received);
    let unbound = b"\x40\x01\x00\x04back";
    let ignored = Received::Ignored(Ignored::UnboundChannel);
    assert_eq!(client.handle_datagram(at(1), server(), unbound), ignored);
}

#[test]
fn a_channel_is_rebound_before_its_peers_permission_ends() {
    let (mut client, channel) = with_channel();
    assert_eq!(
        client.bind_channel(at(1), peer()),
        Ok(channel),
        "it is bound already"
    );
    let request = next_request(&mut client, at(240)).unwrap();
    let message = Message::parse(&request).unwrap();
    assert_eq!(message.method(), Method::CHANNEL_BIND);
    assert_eq!(message.get(), Ok(Some(ChannelNumberValue(channel))));
    let mut buffer = [0; 64];
    assert_eq!(
        client.send(peer(), b"x", &mut buffer),
        Ok(5),
        "it is in use meanwhile"
    );
    answer(&mut client, at(240), &refusal(&request, Code::BAD_REQUEST));
    let failed = Event::ChannelFailed(peer(), RequestError::Refused(Code::BAD_REQUEST));
    assert_eq!(client.poll_event(), Some(failed));
}

#[test]
fn a_channel_number_is_never_given_to_another_peer() {
    let (mut client, first) = with_channel();
    let request = next_request(&mut client, at(240)).unwrap();
    answer(&mut client, at(240), &refusal(&request, Code::BAD_REQUEST));
    let second = client
        .bind_channel(at(240), "203.0.113.6:1".parse().unwrap())
        .unwrap();
    assert_ne!(first, second);
}

#[test]
fn a_release_asks_for_a_lifetime_of_zero() {
    let mut client = with_permission();
    client.release(at(10));
    let request = next_request(&mut client, at(10)).unwrap();
    let message = Message::parse(&request).unwrap();
    assert_eq!(
        (message.method(), message.get()),
        (Method::REFRESH, Ok(Some(Lifetime(0))))
    );
    answer(&mut client, at(10), &success(&request, Some(0)));
    assert_eq!(client.poll_event(), Some(Event::Released));
    assert_eq!(client.poll_timeout(), None);
    assert_eq!(
        client.send(peer(), b"x", &mut [0; 64]),
        Err(SendError::NoAllocation)
    );
}

#[test]
fn what_needs_an_allocation_is_refused_without_one() {
    let mut client = client();
    assert_eq!(
        client.permit(at(0), peer().ip()),
        Err(PeerError::NoAllocation)
    );
    assert_eq!(
        client.bind_channel(at(0), peer()),
        Err(PeerError::NoAllocation)
    );
    let mut client = with_allocation(600);
    assert_eq!(client.allocate(at(0), None), Err(AllocateError::InUse));
    let v6: IpAddr = "2001:db8::1".parse().unwrap();
    assert!(matches!(
        client.permit(at(0), v6),
        Err(PeerError::Family { .. })
    ));
}

#[test]
fn the_number_of_waiting_requests_is_bounded() {
    let mut client = with_allocation(600);
    for last in 0..MAX_TRANSACTIONS {
        client
            .permit(at(0), IpAddr::from([203, 0, 113, last as u8]))
            .unwrap();
    }
    let busy = PeerError::Busy {
        transactions: MAX_TRANSACTIONS,
    };
    assert_eq!(
        client.permit(at(0), IpAddr::from([203, 0, 113, 200])),
        Err(busy)
    );
}

#[test]
fn a_request_that_does_not_fit_the_buffer_fails_instead_of_waiting_for_ever() {
    let mut client = client();
    client.allocate(at(0), None).unwrap();
    assert_eq!(client.poll_transmit(at(0), &mut [0; 16]), None);
    let failed = Event::AllocateFailed(RequestError::TooLong { buffer: 16 });
    assert_eq!(client.poll_event(), Some(failed));
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn a_client_is_small_enough_to_have_thousands_of() {
    let bytes = size_of::<Client>() + size_of::<Session>();
    assert!(bytes <= 1536, "{bytes} bytes");
}
