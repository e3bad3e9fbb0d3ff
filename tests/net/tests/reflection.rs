//! What strangers draw from a server, measured on the wire: for every kind of message, how much comes
//! back for how much, also towards forged sources.

use std::net::SocketAddr;
use std::time::Duration;

use towpath_net::{
    Content, Driver, Fill, Kind, Login, PASSWORD, Scene, Stranger, USER, Wire, address, error_of,
    on_channel, paced,
};
use towpath_proto::wire::attribute::{
    ChannelNumberValue, Data, Lifetime, RequestedTransport, XorPeerAddress,
};
use towpath_proto::wire::{AttributeType, ChannelNumber, Class, IntegrityKey, Method};

/// How long an answer may be.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Most {
    /// 1.6 times the request.
    Binding,
    /// Three times the request, and 200 bytes.
    Challenge,
    /// The request.
    Request,
    /// There is none.
    Nothing,
}

/// What strangers can draw from a server: every kind of message, and the longest answer it may get.
fn reflections(stranger: &mut Stranger, nonce: &[u8]) -> Vec<(&'static str, Most, Vec<u8>)> {
    let mut request = |method, fill: &Fill<'_>| stranger.request(method, fill);
    let peer = SocketAddr::new(address("9.9.9.9"), 7000);
    let channel = ChannelNumber::new(0x4001).expect("a channel's number");
    let wrong = Login::new(USER, "wrong");
    let nobody = Login::new("nobody", PASSWORD);
    let binding = Method::BINDING;
    let mut cases = vec![
        ("Binding", Most::Binding, request(binding, &|_| Ok(()))),
        (
            "Binding with FINGERPRINT",
            Most::Binding,
            request(binding, &|writer| writer.fingerprint().map(drop)),
        ),
        (
            "Binding with an unknown attribute",
            Most::Binding,
            request(binding, &|writer| {
                writer.put_raw(AttributeType(0x7001), &[]).map(drop)
            }),
        ),
        (
            "Binding with many unknown attributes",
            Most::Binding,
            request(binding, &|writer| {
                (0x7001..0x7020)
                    .try_for_each(|kind| writer.put_raw(AttributeType(kind), &[]).map(drop))
            }),
        ),
        (
            "Binding that asks for another address and port (RFC 5780)",
            Most::Binding,
            request(binding, &|writer| {
                let both = [0, 0, 0, 6];
                writer.put_raw(AttributeType(3), &both).map(drop)
            }),
        ),
        (
            "Binding that asks for another port and padding (RFC 5780)",
            Most::Binding,
            request(binding, &|writer| {
                writer.put_raw(AttributeType(0x27), &[0x1f, 0x90, 0, 0])?;
                writer.put_raw(AttributeType(0x26), &[0; 64]).map(drop)
            }),
        ),
        (
            "Allocate without attributes",
            Most::Challenge,
            request(Method::ALLOCATE, &|_| Ok(())),
        ),
        (
            "Refresh",
            Most::Challenge,
            request(Method::REFRESH, &|writer| {
                writer.put(&Lifetime(0)).map(drop)
            }),
        ),
        (
            "CreatePermission",
            Most::Challenge,
            request(Method::CREATE_PERMISSION, &|writer| {
                writer.put(&XorPeerAddress(peer)).map(drop)
            }),
        ),
        (
            "ChannelBind",
            Most::Challenge,
            request(Method::CHANNEL_BIND, &|writer| {
                writer.put(&ChannelNumberValue(channel))?;
                writer.put(&XorPeerAddress(peer)).map(drop)
            }),
        ),
        (
            "Allocate with a made-up nonce",
            Most::Challenge,
            request(Method::ALLOCATE, &|writer| {
                writer.put(&RequestedTransport::UDP)?;
                wrong.sign(writer, b"made up")
            }),
        ),
        (
            "Allocate with a wrong password",
            Most::Challenge,
            request(Method::ALLOCATE, &|writer| {
                writer.put(&RequestedTransport::UDP)?;
                wrong.sign(writer, nonce)
            }),
        ),
        (
            "Allocate of nobody",
            Most::Challenge,
            request(Method::ALLOCATE, &|writer| {
                writer.put(&RequestedTransport::UDP)?;
                nobody.sign(writer, nonce)
            }),
        ),
        (
            "Allocate with an integrity and no name",
            Most::Request,
            request(Method::ALLOCATE, &|writer| {
                writer.put(&RequestedTransport::UDP)?;
                let key = IntegrityKey::new(b"key");
                writer.integrity(&key).map(drop)
            }),
        ),
        (
            "Connect (RFC 6062)",
            Most::Request,
            request(Method::CONNECT, &|_| Ok(())),
        ),
    ];
    let mut other = |method, class| stranger.message(method, class, &|_| Ok(()));
    cases.extend([
        (
            "Binding indication",
            Most::Nothing,
            other(binding, Class::Indication),
        ),
        (
            "Binding success",
            Most::Nothing,
            other(binding, Class::Success),
        ),
        ("Binding error", Most::Nothing, other(binding, Class::Error)),
        (
            "Data indication",
            Most::Nothing,
            other(Method::DATA, Class::Indication),
        ),
        (
            "Send indication",
            Most::Nothing,
            stranger.message(Method::SEND, Class::Indication, &|writer| {
                writer.put(&XorPeerAddress(peer))?;
                writer.put(&Data(b"data")).map(drop)
            }),
        ),
        ("ChannelData", Most::Nothing, on_channel(0x4001, b"data")),
        ("an empty datagram", Most::Nothing, Vec::new()),
        ("one byte", Most::Nothing, vec![0]),
        ("text", Most::Nothing, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a QUIC packet", Most::Nothing, vec![0xc3; 1200]),
    ]);
    let mut wrong_length = stranger.request(binding, &|_| Ok(()));
    wrong_length[3] = 8;
    cases.push((
        "Binding that is longer than it is",
        Most::Nothing,
        wrong_length,
    ));
    let mut damaged = stranger.request(binding, &|writer| writer.fingerprint().map(drop));
    damaged[27] ^= 1;
    cases.push(("Binding with a wrong FINGERPRINT", Most::Nothing, damaged));
    cases.push(("Allocate", Most::Challenge, stranger.allocate()));
    cases
}

/// What leaves for what strangers send, measured on the wire: at most 1.6 times as much for Binding, at
/// most three times and 200 bytes for a challenge, and nothing longer than the request otherwise.
fn reflection_stays_within_its_factors(driver: Driver) {
    let Some(mut scene) = Scene::start(Kind::Towpath(driver), &[], |_| {}) else {
        return;
    };
    for (local, server, headers) in [
        ("10.77.2.4", "10.77.2.1", 20 + 8),
        ("fd77:2::4", "fd77:2::1", 40 + 8),
    ] {
        let server = SocketAddr::new(address(server), 3478);
        let mut stranger = Stranger::new(&scene.attacker, address(local), server);
        let nonce = stranger.nonce();
        let mut answered = 0;
        for (name, most, request) in reflections(&mut stranger, &nonce) {
            let answers = stranger.ask(&request);
            let bytes: usize = answers.iter().map(Vec::len).sum();
            let codes: Vec<_> = answers.iter().map(|answer| error_of(answer)).collect();
            let (sent, factor) = (request.len(), bytes as f64 / request.len().max(1) as f64);
            let on_wire = if answers.is_empty() {
                0.0
            } else {
                (bytes + headers) as f64 / (sent + headers) as f64
            };
            println!(
                "{local}: {name}: {sent} bytes, {bytes} back ({factor:.2}), {codes:?}, {on_wire:.2} as packets"
            );
            assert!(answers.len() <= 1, "{name}: {} answers", answers.len());
            let within = match most {
                // An IPv6 address is 12 bytes longer: there the packets are compared.
                Most::Binding if server.is_ipv6() => on_wire <= 1.6,
                Most::Binding => factor <= 1.6,
                Most::Challenge => factor <= 3.0 && bytes <= 200,
                Most::Request => bytes <= sent,
                Most::Nothing => bytes == 0,
            };
            assert!(
                within,
                "{local}: {name}: {sent} bytes were answered with {bytes}"
            );
            answered += answers.len();
        }
        assert!(answered >= 9, "{answered} answers only");
    }
    scene.is_alive();
}

/// What leaves towards forged sources is seen where they would be: no more than the factors allow.
fn forged_sources_draw_little(driver: Driver) {
    const PACKETS: u64 = 2_000;
    let Some(mut scene) = Scene::start(Kind::Towpath(driver), &[], |_| {}) else {
        return;
    };
    let mac = scene.server.host().mac("eth0");
    let mut stranger = scene.stranger();
    let binding = stranger.request(Method::BINDING, &|_| Ok(()));
    let challenge = stranger.allocate();
    for (name, request, most) in [("Binding", binding, 1.6), ("Allocate", challenge, 3.0)] {
        let wire = Wire::open(&scene.attacker, "eth0");
        let mut sent = 0;
        paced(4_000, Duration::from_secs(1), |number| {
            // Those far away, whose answers the server's route brings here.
            let number = number * 4 + 2;
            if sent < PACKETS as usize * request.len() {
                wire.send(&Scene::forged(&wire, mac, number, &request).frame());
                sent += request.len();
            }
        });
        stranger.ask(&request);
        let own = stranger.local();
        let received: usize = wire
            .received()
            .into_iter()
            .map(|content| match content {
                Ok(Content::Udp(datagram)) if datagram.destination != own => datagram.payload.len(),
                Ok(Content::Udp(_) | Content::Fragment | Content::Icmp(..) | Content::Other) => 0,
                Err(error) => panic!("{error}"),
            })
            .sum();
        let factor = received as f64 / sent as f64;
        println!("{name}: {sent} bytes with forged sources, {received} back ({factor:.2})");
        assert!(factor <= most, "{name}: {factor}");
        assert!(received > 0, "{name}: no answer is seen at all");
    }
    scene.is_alive();
}

macro_rules! drivers {
    ($($module:ident: $driver:expr;)*) => {
        $(mod $module {
            use super::*;

            #[test]
            fn reflection_is_within_its_factors() {
                reflection_stays_within_its_factors($driver);
            }

            #[test]
            fn forged_sources_draw_little_from_the_server() {
                forged_sources_draw_little($driver);
            }
        })*
    };
}

drivers! {
    io_uring: Driver::IoUring;
    epoll: Driver::Epoll;
}
