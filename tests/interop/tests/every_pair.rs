//! Every client with every server: an allocation, data both ways in both forms, hours of refreshes, and
//! the end.

use std::net::SocketAddr;
use std::time::Duration;

use towpath_interop::ours::{OurClient, OurServer};
use towpath_interop::theirs::{TheirClient, TheirServer};
use towpath_interop::{Client, Server, Wish, World};
use towpath_proto::turn::client::{Ignored, RequestError};
use towpath_proto::wire::attribute::Family;

/// Header of ChannelData, and padding at most.
const CHANNEL_BYTES: std::ops::RangeInclusive<usize> = 4..=7;

fn peer(family: Family, number: u16) -> SocketAddr {
    let ip = match family {
        Family::V4 => "9.9.9.9",
        Family::V6 => "2620:fe::9",
    };
    SocketAddr::new(ip.parse().expect("an address"), 7_000 + number)
}

/// The whole life of an allocation.
fn live<C: Client, S: Server>(world: &mut World<C, S>, family: Family) {
    world.pass(Duration::from_secs(1));
    let relayed = world.client.relayed().expect("the server allocates");
    assert_eq!(Family::of(relayed.ip()), family);
    assert_eq!(world.server.ports(), 1);

    let peers = [peer(family, 0), peer(family, 1)];
    world.client.permit(world.now, peers[0].ip());
    world.pass(Duration::from_secs(1));
    for peer in peers {
        world.exchange(peer, b"by indication");
        assert!(world.data_bytes > b"by indication".len() + 20);
    }
    world.client.bind_channel(world.now, peers[0]);
    world.pass(Duration::from_secs(1));
    for len in [0, 1, 2, 3, 4, 5, 172, 1200] {
        world.exchange(peers[0], &vec![7; len]);
        assert!(CHANNEL_BYTES.contains(&(world.data_bytes - len)), "{len}");
        world.exchange(peers[1], &vec![8; len]);
    }
    for hour in 0..3 {
        for _ in 0..60 {
            world.pass(Duration::from_secs(60));
            world.exchange(peers[0], b"kept");
        }
        assert_eq!(world.client.relayed(), Some(relayed), "hour {hour}");
        assert_eq!(world.server.ports(), 1);
    }
    world.client.release(world.now);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.server.ports(), 0, "the port is free");
}

/// A peer without a permission is not heard.
fn strangers_are_not_heard<C: Client, S: Server>(world: &mut World<C, S>) {
    world.pass(Duration::from_secs(1));
    world.peer_sends(peer(Family::V4, 0), b"let me in");
    assert_eq!(world.at_client, []);
    world.client.permit(world.now, peer(Family::V4, 0).ip());
    world.pass(Duration::from_secs(1));
    world.exchange(peer(Family::V4, 0), b"come in");
}

macro_rules! pairs {
    ($($module:ident: $client:ty, $server:ty;)*) => {
        $(mod $module {
            use super::*;

            fn world(wish: Wish) -> World<$client, $server> {
                World::new(|now| <$client>::new(now, wish), <$server>::new)
            }

            #[test]
            fn an_ipv4_allocation_lives_for_hours() {
                let wish = Wish { family: Family::V4, sha256: false };
                live(&mut world(wish), Family::V4);
            }

            /// Key and integrity are of SHA-256 on both sides: their client takes nothing else for an answer.
            #[test]
            fn an_allocation_with_sha256_lives_for_hours() {
                let wish = Wish { family: Family::V4, sha256: true };
                live(&mut world(wish), Family::V4);
            }

            #[test]
            fn an_ipv6_allocation_lives_for_hours() {
                let wish = Wish { family: Family::V6, sha256: false };
                live(&mut world(wish), Family::V6);
            }

            #[test]
            fn a_peer_without_a_permission_is_not_heard() {
                let wish = Wish { family: Family::V4, sha256: false };
                strangers_are_not_heard(&mut world(wish));
            }
        })*
    };
}

// Where their client insists on SHA-1, as it does unless told otherwise, it takes MD5 from the list of
// password algorithms and signs with MESSAGE-INTEGRITY, against RFC 8489 §9.2.5: "all the subsequent requests
// MUST be authenticated using MESSAGE-INTEGRITY-SHA256 only". It checks no other attribute of an answer, so
// that it needs our relay's answers to have both.
pairs! {
    their_client_and_our_relay: TheirClient, OurServer;
    their_client_and_their_server: TheirClient, TheirServer;
}

/// RFC 8489 §9.2.5: "For all other responses, if the NONCE attribute starts with the "nonce cookie" with the
/// STUN Security Feature "Password algorithms" bit set to 1 but PASSWORD-ALGORITHMS is not present, the
/// response MUST be ignored." Their server takes our request, and its success is such a response: our client
/// asks again, is answered alike, and gives up.
#[test]
fn our_client_ignores_the_success_of_their_server() {
    let wish = Wish {
        family: Family::V4,
        sha256: true,
    };
    let client = |now| OurClient::new(now, wish);
    let mut world = World::new(client, TheirServer::new);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.server.ports(), 1, "the server allocated");
    assert_eq!(world.client.relayed(), None);
    let failure = world.client.failure();
    let Some(RequestError::TimedOut { transmissions }) = failure else {
        panic!("our client failed otherwise: {failure:?}");
    };
    let each = vec![Ignored::BidDown; usize::from(transmissions)];
    assert_eq!(world.client.ignored(), each);
}
