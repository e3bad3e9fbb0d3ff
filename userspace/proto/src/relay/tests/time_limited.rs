//! Time-limited credentials made with a shared secret, and what ends with them.

use std::sync::Arc;
use std::time::Duration;

use super::lab::*;
use crate::WallClock;
use crate::credentials::{LongTermKey, userhash};
use crate::relay::*;
use crate::slots::{Identity, PeerSlot};
use crate::wire::attribute::{
    Algorithm, Lifetime, Nonce, PasswordAlgorithm, PasswordAlgorithms, Realm, Userhash,
};
use crate::wire::{
    AttributeType, Class, IntegrityKey, Message, MessageType, MessageWriter, Method,
};

/// Unix time at the beginning of every test.
const START: u64 = 1_800_000_000;
const SECRET: &str = "north";

fn config_with(secrets: &[&str]) -> RelayConfig {
    let mut config = config();
    for secret in secrets {
        config
            .users
            .add_rest_secret(RestSecret::new(secret).unwrap());
    }
    config
}

fn lab_with(secrets: &[&str]) -> Lab {
    let mut lab = Lab::new(config_with(secrets));
    set_clock(&mut lab, START);
    lab
}

fn lab() -> Lab {
    lab_with(&[SECRET])
}

/// Sets the clock of the day.
fn set_clock(lab: &mut Lab, unix: u64) {
    let clock = WallClock::new(lab.now, Duration::from_secs(unix));
    lab.event(RelayEvent::WallClock(clock));
}

fn password(secret: &str, username: &str) -> String {
    RestSecret::new(secret).unwrap().password(username)
}

/// A request by a time-limited username; `secs` counts from [`START`].
fn ask(
    lab: &mut Lab,
    secs: u64,
    id: &str,
    method: Method,
    attributes: &[(AttributeType, Vec<u8>)],
) -> Vec<u8> {
    let username = format!("{}{id}", START + secs);
    let password = password(SECRET, &username);
    let request = lab.signed_by(&username, &password, CLIENT, method, attributes);
    lab.ask(CLIENT, &request).expect("an answer")
}

fn allocate(lab: &mut Lab, secs: u64, id: &str) -> Vec<u8> {
    ask(lab, secs, id, Method::ALLOCATE, &[udp()])
}

/// What a refresh for ten minutes is granted.
fn refresh(lab: &mut Lab, secs: u64, id: &str) -> Option<Lifetime> {
    let answer = ask(lab, secs, id, Method::REFRESH, &[lifetime(600)]);
    told_lifetime(&answer)
}

fn told_lifetime(answer: &[u8]) -> Option<Lifetime> {
    assert_eq!(code(answer), 0);
    Message::parse(answer).unwrap().get().unwrap()
}

fn last_end(lab: &Lab) -> Option<EndReason> {
    match lab.notices.last() {
        Some(Notice::AllocationEnded { reason, .. }) => Some(*reason),
        Some(
            Notice::AllocationMade { .. }
            | Notice::AllocationMoved { .. }
            | Notice::AddressEnded { .. },
        )
        | None => None,
    }
}

#[test]
fn a_username_with_a_time_is_accepted_with_the_password_that_the_secret_makes() {
    let mut lab = lab();
    assert_eq!(
        told_lifetime(&allocate(&mut lab, 3600, ":alice-2")),
        Some(Lifetime(600))
    );
    let Some(Notice::AllocationMade { owner, .. }) = lab.notices.last() else {
        panic!("no notice");
    };
    assert_eq!(&*owner.user, "alice-2");
}

#[test]
fn each_of_several_secrets_is_tried() {
    let mut lab = lab_with(&["south", "north", "east"]);
    for (port, secret) in ["north", "south", "east"].iter().enumerate() {
        let client = format!("198.18.0.1:{}", 1000 + port);
        let username = format!("{}:x", START + 60);
        let right = password(secret, &username);
        let request = lab.signed_by(&username, &right, &client, Method::ALLOCATE, &[udp()]);
        assert_eq!(code(&lab.ask(&client, &request).unwrap()), 0, "{secret}");
    }
    let username = format!("{}:x", START + 60);
    let wrong = password("west", &username);
    let request = lab.signed_by(&username, &wrong, CLIENT, Method::ALLOCATE, &[udp()]);
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 401);
}

#[test]
fn a_password_of_another_time_or_id_is_refused() {
    let mut lab = lab();
    let real = format!("{}:x", START + 60);
    let right = password(SECRET, &real);
    for forged in [
        format!("{}:x", START + 61),
        format!("{}:y", START + 60),
        format!("{}", START + 60),
        "x".to_owned(),
    ] {
        let request = lab.signed_by(&forged, &right, CLIENT, Method::ALLOCATE, &[udp()]);
        assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 401, "{forged}");
    }
}

#[test]
fn without_a_secret_or_a_clock_no_time_limited_username_is_accepted() {
    let mut lab = Lab::new(config());
    set_clock(&mut lab, START);
    assert_eq!(code(&allocate(&mut lab, 3600, ":x")), 401);
    let mut lab = Lab::new(config_with(&[SECRET]));
    assert_eq!(code(&allocate(&mut lab, 3600, ":x")), 401);
    set_clock(&mut lab, START);
    assert_eq!(code(&allocate(&mut lab, 3600, ":x")), 0);
}

#[test]
fn a_credential_that_has_ended_is_answered_with_401() {
    let mut lab = lab();
    lab.secs(100);
    for (secs, expected) in [(99, 401), (100, 401), (102, 0)] {
        assert_eq!(code(&allocate(&mut lab, secs, ":x")), expected, "{secs}");
    }
}

#[test]
fn a_user_who_is_named_is_found_before_a_secret_is_tried() {
    let mut config = config_with(&[SECRET]);
    let name = format!("{}:x", START - 5);
    config.users.insert(&name, credential(&name, "own"));
    let mut lab = Lab::new(config);
    set_clock(&mut lab, START);
    let request = lab.signed_by(&name, "own", CLIENT, Method::ALLOCATE, &[udp()]);
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 0);
}

#[test]
fn an_allocation_ends_with_its_credential() {
    let mut lab = lab();
    assert_eq!(
        told_lifetime(&allocate(&mut lab, 70, ":x")),
        Some(Lifetime(70))
    );
    lab.secs(69);
    assert_eq!(lab.open.len(), 1);
    assert_eq!(refresh(&mut lab, 70, ":x"), Some(Lifetime(1)));
    lab.secs(2);
    assert!(lab.open.is_empty());
    assert_eq!(last_end(&lab), Some(EndReason::CredentialExpired));
}

#[test]
fn an_allocation_that_is_not_refreshed_ends_before_its_credential() {
    let mut lab = lab();
    allocate(&mut lab, 3600, ":x");
    lab.secs(601);
    assert!(lab.open.is_empty());
    assert_eq!(last_end(&lab), Some(EndReason::Expired));
}

#[test]
fn routes_end_with_the_credential_at_the_latest() {
    let mut lab = lab();
    allocate(&mut lab, 100, ":x");
    let bind = [channel_number(0x4000), xor_peer(PEER)];
    assert_eq!(
        code(&ask(&mut lab, 100, ":x", Method::CHANNEL_BIND, &bind)),
        0
    );
    let end = lab.now + Duration::from_secs(100);
    assert_eq!(lab.routes.len(), 2);
    for route in lab.routes.values() {
        assert!(route.expires <= end, "{route:?}");
        assert!(route.expires + Duration::from_secs(9) > end, "{route:?}");
    }
    assert_eq!(lab.check_routes(), 2);
    // A new credential makes them last longer.
    assert_eq!(refresh(&mut lab, 400, ":x"), Some(Lifetime(400)));
    let end = lab.now + Duration::from_secs(400);
    assert!(
        lab.routes
            .values()
            .all(|route| { route.expires <= end && route.expires + Duration::from_secs(9) > end })
    );
    lab.secs(401);
    assert!(lab.routes.is_empty() && lab.open.is_empty());
}

// RFC 8656 §5: the same username. A username that says another time is the same user's.
#[test]
fn a_new_username_of_the_same_user_refreshes_an_allocation_beyond_the_old_ones_end() {
    let mut lab = lab();
    allocate(&mut lab, 100, ":x");
    lab.secs(50);
    assert_eq!(refresh(&mut lab, 1000, ":x"), Some(Lifetime(600)));
    lab.secs(500);
    assert_eq!(lab.open.len(), 1);
    let peers = [xor_peer(PEER)];
    let permitted = ask(&mut lab, 1000, ":x", Method::CREATE_PERMISSION, &peers);
    assert_eq!(code(&permitted), 0);
}

#[test]
fn a_refresh_with_a_credential_that_ends_sooner_ends_the_allocation_sooner() {
    let mut lab = lab();
    allocate(&mut lab, 1000, ":x");
    assert_eq!(refresh(&mut lab, 50, ":x"), Some(Lifetime(50)));
    lab.secs(51);
    assert!(lab.open.is_empty());
}

#[test]
fn a_permission_by_a_new_username_does_not_make_the_allocation_last_longer() {
    let mut lab = lab();
    allocate(&mut lab, 100, ":x");
    let peers = [xor_peer(PEER)];
    let permitted = ask(&mut lab, 1000, ":x", Method::CREATE_PERMISSION, &peers);
    assert_eq!(code(&permitted), 0);
    lab.secs(101);
    assert!(lab.open.is_empty());
}

// RFC 8656 §5: "a different username" is refused with 441.
#[test]
fn the_username_of_another_user_or_of_nobody_is_refused_with_441() {
    let mut lab = lab();
    allocate(&mut lab, 100, ":x");
    for id in [":y", ""] {
        let refused = ask(&mut lab, 100, id, Method::REFRESH, &[]);
        assert_eq!(code(&refused), 441, "{id}");
    }
    let request = lab.signed(CLIENT, Method::REFRESH, &[]);
    assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), 441);
}

#[test]
fn a_username_that_names_nobody_stands_for_itself_alone() {
    let mut lab = lab();
    allocate(&mut lab, 100, "");
    assert_eq!(code(&ask(&mut lab, 100, "", Method::REFRESH, &[])), 0);
    assert_eq!(code(&ask(&mut lab, 200, "", Method::REFRESH, &[])), 441);
}

#[test]
fn limits_are_of_the_user_behind_the_time_and_of_the_allocation_where_there_is_none() {
    let mut lab = lab();
    allocate(&mut lab, 100, ":x");
    let slot = |identity: &Identity, lab: &Lab| lab.shared.slots().find(identity);
    let user = Identity::user(REALM, "x");
    let payer = slot(&user, &lab).expect("the user has a slot");
    assert_ne!(payer, PeerSlot::NOBODY);
    let other = "198.18.0.1:41000";
    let server = address("5.5.5.5:3478");
    for (client, id) in [(other, ""), ("198.18.0.1:42000", ":x")] {
        let username = format!("{}{id}", START + 100);
        let right = password(SECRET, &username);
        let request = lab.signed_by(&username, &right, client, Method::ALLOCATE, &[udp()]);
        assert_eq!(code(&lab.ask(client, &request).unwrap()), 0);
    }
    let alone = Identity::allocation(address(other), server);
    let found = slot(&alone, &lab).expect("the allocation has a slot");
    assert_ne!(found, payer);
}

#[test]
fn allocations_are_counted_for_the_user_behind_the_time() {
    let mut config = config_with(&[SECRET]);
    config.limits.allocations_per_user = Some(2);
    let mut lab = Lab::new(config);
    set_clock(&mut lab, START);
    let mut allocate_at = |port: u16, username: String| {
        let client = format!("198.18.0.1:{port}");
        let right = password(SECRET, &username);
        let request = lab.signed_by(&username, &right, &client, Method::ALLOCATE, &[udp()]);
        code(&lab.ask(&client, &request).unwrap())
    };
    assert_eq!(allocate_at(1, format!("{}:x", START + 60)), 0);
    assert_eq!(allocate_at(2, format!("{}:x", START + 61)), 0);
    assert_eq!(allocate_at(3, format!("{}:x", START + 62)), 486);
    assert_eq!(allocate_at(4, format!("{}:y", START + 62)), 0);
}

#[test]
fn a_secret_that_is_taken_away_ends_what_was_made_with_it() {
    let mut lab = lab_with(&["north", "south"]);
    allocate(&mut lab, 1000, ":x");
    let bind = [channel_number(0x4000), xor_peer(PEER)];
    assert_eq!(
        code(&ask(&mut lab, 1000, ":x", Method::CHANNEL_BIND, &bind)),
        0
    );
    let mut reload = |secrets: &[&str]| {
        let config = Arc::new(config_with(secrets));
        lab.event(RelayEvent::Reconfigured(config));
        lab.secs(0);
        (lab.open.len(), lab.routes.len(), last_end(&lab))
    };
    assert_eq!(reload(&["south", "north", "east"]), (1, 2, None));
    assert_eq!(reload(&["south"]), (0, 0, Some(EndReason::UserRemoved)));
}

#[test]
fn nothing_is_done_for_a_user_whose_secret_was_taken_away() {
    let mut lab = lab();
    allocate(&mut lab, 1000, ":x");
    lab.event(RelayEvent::Reconfigured(Arc::new(config_with(&["south"]))));
    // Before any timeout: the rules have not been applied to the allocation yet.
    let peers = [xor_peer(PEER)];
    let refused = ask(&mut lab, 1000, ":x", Method::CREATE_PERMISSION, &peers);
    assert_eq!(code(&refused), 401);
}

#[test]
fn a_clock_that_is_set_forward_ends_credentials_sooner() {
    let mut lab = lab();
    allocate(&mut lab, 500, ":x");
    let bind = [channel_number(0x4000), xor_peer(PEER)];
    assert_eq!(
        code(&ask(&mut lab, 500, ":x", Method::CHANNEL_BIND, &bind)),
        0
    );
    set_clock(&mut lab, START + 400);
    lab.secs(0);
    let end = lab.now + Duration::from_secs(100);
    assert!(lab.routes.values().all(|route| route.expires <= end));
    lab.secs(99);
    assert_eq!(lab.open.len(), 1);
    lab.secs(2);
    assert!(lab.open.is_empty() && lab.routes.is_empty());
    assert_eq!(last_end(&lab), Some(EndReason::CredentialExpired));
}

#[test]
fn a_clock_that_is_set_beyond_the_end_ends_the_allocation_at_once() {
    let mut lab = lab();
    allocate(&mut lab, 500, ":x");
    set_clock(&mut lab, START + 500);
    let data = channel_data(0x4000, b"x");
    assert!(lab.client_sends(CLIENT, &data).is_none());
    lab.secs(0);
    assert!(lab.open.is_empty());
    assert_eq!(last_end(&lab), Some(EndReason::CredentialExpired));
}

#[test]
fn a_clock_that_is_set_back_gives_time_to_the_next_refresh() {
    let mut lab = lab();
    allocate(&mut lab, 100, ":x");
    set_clock(&mut lab, START - 1000);
    lab.secs(50);
    let refreshed = ask(&mut lab, 100, ":x", Method::REFRESH, &[]);
    assert_eq!(told_lifetime(&refreshed), Some(Lifetime(600)));
    lab.secs(599);
    assert_eq!(lab.open.len(), 1);
}

// RFC 8489 §9.2.4: "The server MAY support anonymous username": not where names are made elsewhere.
#[test]
fn userhash_is_not_offered_where_a_secret_is_shared() {
    let mut lab = lab();
    let answer = lab.ask(CLIENT, &plain(Method::ALLOCATE, &[udp()])).unwrap();
    let Nonce(nonce) = Message::parse(&answer).unwrap().get().unwrap().unwrap();
    assert!(nonce.starts_with(b"obMatJos2gAAA"), "{nonce:?}");
    // Who sends it all the same is found among the users who are named.
    let username = format!("{}:x", START + 60);
    let right = password(SECRET, &username);
    for (name, password, expected) in [(&username[..], &right[..], 401), ("alice", "secret", 0)] {
        let id = lab.transaction();
        let mut buffer = [0; 500];
        let request = MessageType::new(Method::ALLOCATE, Class::Request);
        let mut writer = MessageWriter::new(&mut buffer, request, id).unwrap();
        let (kind, transport) = udp();
        writer.put_raw(kind, &transport).unwrap();
        let hash = userhash(name, REALM).unwrap();
        writer
            .put(&Userhash(hash))
            .unwrap()
            .put(&Realm(REALM))
            .unwrap();
        writer.put(&Nonce(&lab.nonce(CLIENT))).unwrap();
        let key = LongTermKey::derive(Algorithm::Md5, name, REALM, password).unwrap();
        writer
            .integrity(&IntegrityKey::new(key.as_bytes()))
            .unwrap();
        let request = writer.finish().to_vec();
        assert_eq!(code(&lab.ask(CLIENT, &request).unwrap()), expected);
    }
}

#[test]
fn a_time_limited_password_may_be_used_with_sha256_and_then_with_md5() {
    let mut lab = lab();
    let username = format!("{}:x", START + 60);
    let right = password(SECRET, &username);
    let key = LongTermKey::derive(Algorithm::Sha256, &username, REALM, &right).unwrap();
    let key = IntegrityKey::new(key.as_bytes());
    let id = lab.transaction();
    let mut buffer = [0; 500];
    let request = MessageType::new(Method::ALLOCATE, Class::Request);
    let mut writer = MessageWriter::new(&mut buffer, request, id).unwrap();
    let (kind, transport) = udp();
    writer.put_raw(kind, &transport).unwrap();
    writer
        .put(&crate::wire::attribute::Username(&username))
        .unwrap();
    writer.put(&Realm(REALM)).unwrap();
    writer.put(&Nonce(&lab.nonce(CLIENT))).unwrap();
    writer.put(&PasswordAlgorithms::SHA256_MD5).unwrap();
    writer.put(&PasswordAlgorithm(Algorithm::Sha256)).unwrap();
    writer.integrity_sha256(&key, 32).unwrap();
    let request = writer.finish().to_vec();
    let first = lab.ask(CLIENT, &request).unwrap();
    let message = Message::parse(&first).unwrap();
    message.check_integrity_sha256(&key, 32).unwrap();
    assert_eq!(code(&ask(&mut lab, 60, ":x", Method::REFRESH, &[])), 0);
    // The allocation's user has the other key now, and a retransmission is answered like the first.
    assert_eq!(lab.ask(CLIENT, &request).unwrap(), first);
}

#[test]
fn more_secrets_than_are_allowed_are_no_valid_configuration() {
    let many: Vec<_> = (0..=Users::MAX_REST_SECRETS)
        .map(|n| format!("secret {n}"))
        .collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let refused = config_with(&many).validate().unwrap_err();
    assert_eq!(refused, RelayConfigError::RestSecrets { count: 9 });
    assert!(config_with(&many[1..]).validate().is_ok());
}
