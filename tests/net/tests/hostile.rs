//! What hostile clients do to a server and to its neighbours: nothing that lasts. Whatever is sent, the
//! server stays up, its memory stays flat, strangers draw little from it, and a well-behaved client
//! keeps its rate.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use towpath_net::{
    Driver, EchoPeer, Kind, Login, Mac, Neighbour, PASSWORD, Probe, Refused, Scene, Stranger, USER,
    Uclient, Wire, address, error_of, on_channel, paced,
};
use towpath_proto::wire::attribute::{
    ChannelNumberValue, Data, Lifetime, RequestedTransport, XorPeerAddress,
};
use towpath_proto::wire::{ChannelNumber, Class, Method};

/// The neighbour's packets per second.
const NEIGHBOUR_PPS: u32 = 500;
/// How long the neighbour is watched at a time.
const WATCH: Duration = Duration::from_millis(600);
/// What it keeps of the rate it has when nothing happens.
const KEPT_SHARE: f64 = 0.9;
/// A busy machine is given this many chances.
const TRIES: usize = 4;

/// One way to trouble a server: sends a little of it each time.
struct Flood<'a> {
    name: &'static str,
    rate_pps: u32,
    send: Box<dyn FnMut(u64) + Send + 'a>,
}

impl Flood<'_> {
    /// Floods until told to end.
    fn run(&mut self, end: &AtomicBool) {
        while !end.load(Ordering::Relaxed) {
            paced(self.rate_pps, Duration::from_millis(50), &mut self.send);
        }
    }

    /// The neighbour's share before, during and after are compared.
    fn leaves_its_rate_to(&mut self, neighbour: &mut Neighbour) {
        let mut seen = Vec::new();
        for _ in 0..TRIES {
            let before = neighbour.delivered_share(NEIGHBOUR_PPS, WATCH);
            let end = AtomicBool::new(false);
            let during = std::thread::scope(|scope| {
                scope.spawn(|| self.run(&end));
                let share = neighbour.delivered_share(NEIGHBOUR_PPS, WATCH);
                end.store(true, Ordering::Relaxed);
                share
            });
            let after = neighbour.delivered_share(NEIGHBOUR_PPS, WATCH);
            seen.push((before, during, after));
            let quiet = (before + after) / 2.0;
            if quiet >= KEPT_SHARE && during >= KEPT_SHARE * quiet {
                return;
            }
        }
        panic!("{}: the neighbour's shares were {seen:?}", self.name);
    }
}

/// Requests from many ports of one address, so that every shard gets its part.
fn from_many_ports(
    name: &'static str,
    scene: &Scene,
    request: impl Fn(&mut Stranger) -> Vec<u8>,
) -> Flood<'static> {
    let mut sources: Vec<(Stranger, Vec<u8>)> = (0..32)
        .map(|_| {
            let mut stranger = scene.stranger();
            let bytes = request(&mut stranger);
            (stranger, bytes)
        })
        .collect();
    Flood {
        name,
        rate_pps: 8_000,
        send: Box::new(move |number| {
            let many = sources.len();
            let (stranger, bytes) = &mut sources[number as usize % many];
            stranger.send(bytes);
        }),
    }
}

/// An Allocate request with these credentials.
fn signed_allocate(stranger: &mut Stranger, login: &Login, nonce: &[u8]) -> Vec<u8> {
    stranger.request(Method::ALLOCATE, &|writer| {
        writer.put(&RequestedTransport::UDP)?;
        login.sign(writer, nonce)
    })
}

/// Requests of strangers, guessed passwords, noise and forged sources, each at a rate that leaves the
/// machine room: the neighbour keeps its rate, the memory is what it was, and nobody got in.
fn floods_harm_nobody(driver: Driver) {
    let Some(mut scene) = Scene::start(Kind::Towpath(driver), &[], |_| {}) else {
        return;
    };
    let wire = Wire::open(&scene.attacker, "eth0");
    let mac = scene.server.host().mac("eth0");
    let mut neighbour = scene.neighbour();
    let mut floods = floods(&scene, &wire, mac);
    let mut before = 0;
    // The first round fills what is filled once.
    for round in 0..2 {
        for flood in &mut floods {
            if round == 0 {
                paced(flood.rate_pps, WATCH / 2, &mut flood.send);
            } else {
                flood.leaves_its_rate_to(&mut neighbour);
            }
        }
        if round == 0 {
            before = scene.memory();
        }
    }
    scene.has_grown_little_since(before);
    scene.is_alive();
    let status = scene.server.status_json();
    assert_eq!(
        (&status["allocations"], &status["allocations_made"]),
        (&1.into(), &1.into()),
        "somebody got in"
    );
}

fn floods<'a>(scene: &Scene, wire: &'a Wire, mac: Mac) -> Vec<Flood<'a>> {
    let binding = |stranger: &mut Stranger| stranger.request(Method::BINDING, &|_| Ok(()));
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    let noisy = scene.stranger();
    let (ask, challenge) = {
        let mut stranger = scene.stranger();
        (binding(&mut stranger), Stranger::allocate(&mut stranger))
    };
    let mut floods = vec![
        from_many_ports("Binding requests", scene, binding),
        from_many_ports("Allocate requests", scene, Stranger::allocate),
        from_many_ports("ChannelData of nobody", scene, |_| on_channel(0x4001, b"x")),
        from_many_ports("guessed passwords", scene, |stranger| {
            let nonce = stranger.nonce();
            let guess = format!("guess {}", stranger.local().port());
            signed_allocate(stranger, &Login::new(USER, &guess), &nonce)
        }),
    ];
    floods.push(Flood {
        name: "noise",
        rate_pps: 4_000,
        send: Box::new(move |number| {
            let bytes: Vec<u8> = (0..number % 1400).map(|_| random(&mut noise)).collect();
            noisy.send(&bytes);
        }),
    });
    for (name, payload) in [
        ("forged Binding requests", ask),
        ("forged Allocate requests", challenge),
    ] {
        floods.push(Flood {
            name,
            rate_pps: 4_000,
            send: Box::new(move |number| {
                wire.send(&Scene::forged(wire, mac, number, &payload).frame());
            }),
        });
    }
    floods
}

fn random(state: &mut u64) -> u8 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1);
    (*state >> 56) as u8
}

/// A nonce that somebody else was given, and a whole request that somebody else signed, open nothing.
fn a_nonce_is_good_for_one_address_and_port(driver: Driver) {
    let Some(scene) = Scene::start(Kind::Towpath(driver), &[], |_| {}) else {
        return;
    };
    let login = Login::new(USER, PASSWORD);
    let mut owner = scene.stranger();
    let nonce = owner.nonce();
    let request = signed_allocate(&mut owner, &login, &nonce);
    let mut port_beside = scene.stranger();
    let elsewhere = address("10.77.2.2");
    let mut address_beside = Stranger::new(&scene.client, elsewhere, Scene::server());
    let codes = |answers: Vec<Vec<u8>>| -> Vec<Option<u16>> {
        answers.iter().map(|answer| error_of(answer)).collect()
    };
    // RFC 8489 §9.2.4: a nonce that is no longer valid is refused with 438 (Stale Nonce).
    for _ in 0..2 {
        for thief in [&mut port_beside, &mut address_beside] {
            assert_eq!(codes(thief.ask(&request)), [Some(438)], "before and after");
        }
        // The owner's own: a success, then the same success for the retransmission.
        assert_eq!(error_of(&owner.answer_to(&request)), None);
    }
    let delete = owner.request(Method::REFRESH, &|writer| {
        writer.put(&Lifetime(0))?;
        login.sign(writer, &nonce)
    });
    for thief in [&mut port_beside, &mut address_beside] {
        assert_eq!(codes(thief.ask(&delete)), [Some(438)]);
    }
    assert_eq!(scene.server.status_json()["allocations"], 1);
    assert_eq!(error_of(&owner.answer_to(&delete)), None, "the owner may");
    assert_eq!(scene.server.status_json()["allocations"], 0);
}

/// Thousands of guesses, with a nonce that is right: not one opens anything, and nobody's password is
/// changed by it.
fn guessed_passwords_open_nothing(driver: Driver) {
    const GUESSES: usize = 3_000;
    let Some(mut scene) = Scene::start(Kind::Towpath(driver), &[], |_| {}) else {
        return;
    };
    let mut neighbour = scene.neighbour();
    let mut stranger = scene.stranger();
    let nonce = stranger.nonce();
    let mut refused = 0;
    for guess in 0..GUESSES {
        let user = if guess % 2 == 0 { USER } else { "root" };
        let login = Login::new(user, &format!("{PASSWORD}{guess}"));
        let request = signed_allocate(&mut stranger, &login, &nonce);
        for answer in stranger.ask(&request) {
            let code = error_of(&answer);
            assert!(matches!(code, Some(401 | 438)), "guess {guess}: {code:?}");
            refused += 1;
        }
    }
    println!("{refused} of {GUESSES} guesses were answered");
    assert!(refused > 0);
    assert_eq!(scene.server.status_json()["allocations_made"], 1);
    neighbour.probe.refresh(600).expect("the neighbour stays");
    scene.is_alive();
}

/// Every message that a client with an allocation sends, cut at every length, with every byte changed,
/// and datagrams of every size beside: the allocation relays as before.
fn damaged_messages_change_nothing(driver: Driver) {
    let Some(mut scene) = Scene::start(Kind::Towpath(driver), &[], |_| {}) else {
        return;
    };
    let mut neighbour = scene.neighbour();
    let login = Login::new(Scene::MALLORY, PASSWORD);
    let mut mallory = scene.stranger();
    let nonce = mallory.nonce();
    let peer = SocketAddr::new(address("10.77.2.3"), 7000);
    let channel = ChannelNumber::new(0x4002).expect("a channel's number");
    let allocate = signed_allocate(&mut mallory, &login, &nonce);
    let messages = [
        mallory.request(Method::BINDING, &|_| Ok(())),
        mallory.request(Method::REFRESH, &|writer| {
            writer.put(&Lifetime(600))?;
            login.sign(writer, &nonce)
        }),
        mallory.request(Method::CREATE_PERMISSION, &|writer| {
            writer.put(&XorPeerAddress(peer))?;
            login.sign(writer, &nonce)
        }),
        mallory.request(Method::CHANNEL_BIND, &|writer| {
            writer.put(&ChannelNumberValue(channel))?;
            writer.put(&XorPeerAddress(peer))?;
            login.sign(writer, &nonce)
        }),
        mallory.message(Method::SEND, Class::Indication, &|writer| {
            writer.put(&XorPeerAddress(peer))?;
            writer.put(&Data(b"data")).map(drop)
        }),
        on_channel(0x4002, b"data"),
    ];
    assert_eq!(error_of(&mallory.answer_to(&allocate)), None);
    let before = scene.memory();
    for message in messages.iter().chain([&allocate]) {
        for at in 0..message.len() {
            mallory.send(&message[..at]);
            for change in [0x01, 0x80, 0xff] {
                let mut damaged = message.clone();
                damaged[at] ^= change;
                mallory.send(&damaged);
            }
            if at % 16 == 0 {
                mallory.ask(message);
            }
        }
    }
    for bytes in (0..9_000).step_by(7).chain([65_507]) {
        mallory.send(&vec![0; bytes]);
        mallory.send(&on_channel(0x4002, &vec![1; bytes.min(65_000)]));
    }
    mallory.ask(&messages[0]);
    scene.has_grown_little_since(before);
    scene.is_alive();
    neighbour.probe.refresh(600).expect("the neighbour stays");
    assert!(neighbour.delivered_share(NEIGHBOUR_PPS, WATCH) > KEPT_SHARE);
}

/// Somebody takes every port, permission and channel there is: whoever was there before stays, and
/// everything comes back.
fn an_exhausted_server_serves_those_it_has(driver: Driver) {
    let full = [Err(Refused(486)), Err(Refused(508))];
    let scene = Scene::start(Kind::Towpath(driver), &[], |options| {
        options.ports = 50_000..=50_031;
        options.shards = 1;
    });
    let Some(mut scene) = scene else { return };
    let mut neighbour = scene.neighbour();
    let mut greedy: Vec<Probe> = (0..40).map(|_| scene.mallory()).collect();
    let refused = |probe: &mut Probe| full.contains(&probe.allocate(None).map(drop));
    let refusals = greedy
        .iter_mut()
        .filter_map(|probe| refused(probe).then_some(()));
    let refusals = refusals.count();
    assert!(refusals >= 9, "{refusals} refusals of 40 for 31 ports");

    // The first was granted: everything one allocation can hold.
    let glutton = &mut greedy[0];
    let peers = (0..2_000_u32)
        .map(|number| IpAddr::from(0x0900_0001_u32.wrapping_add(number).to_be_bytes()));
    let granted = peers
        .clone()
        .take_while(|peer| glutton.create_permission(&[*peer]).is_ok())
        .count();
    assert!((1..2_000).contains(&granted), "{granted} permissions");
    let peer = SocketAddr::new(address("9.0.0.1"), 1);
    let channels = (0x4000..0x4fff)
        .take_while(|number| {
            let peer = SocketAddr::new(peer.ip(), number - 0x3fff);
            glutton.bind_channel(*number, peer).is_ok()
        })
        .count();
    assert!((1..0xfff).contains(&channels), "{channels} channels");

    assert!(neighbour.delivered_share(NEIGHBOUR_PPS, WATCH) > KEPT_SHARE);
    neighbour.probe.refresh(600).expect("the neighbour stays");
    for probe in &mut greedy {
        let _ = probe.refresh(0);
    }
    let local = address("10.77.2.2");
    let mut late = Probe::new(&scene.client, local, Scene::server());
    late.allocate(None).expect("what was taken is free again");
    scene.is_alive();
}

/// coturn's client in its modes for negative protocol tests (`-N`, `-R`), denial of service (`-O`) and
/// random disconnects (`-B`), then its ordinary mode, which loses nothing.
fn hostile_modes_of_coturns_client_change_nothing(kind: Kind) {
    let programs = ["turnutils_uclient", "turnutils_peer", "timeout"];
    let Some(mut scene) = Scene::start(kind, &programs, |_| {}) else {
        return;
    };
    let peer = SocketAddr::new(address("10.77.2.3"), 3480);
    let _peer = EchoPeer::start(&scene.peer, &[peer]);
    for mode in ["-N", "-R", "-O", "-B"] {
        // These modes end late or never, and report nothing.
        let _ = scene
            .attacker
            .command("timeout")
            .args(["3", "setpriv", "--pdeathsig", "KILL", "turnutils_uclient"])
            .args([
                "-u", USER, "-w", PASSWORD, "-c", "-m", "4", "-n", "1000", mode,
            ])
            .args(["-e", "10.77.2.3", "-r", "3480", "10.77.2.1"])
            .output()
            .expect("timeout can be started");
        assert_eq!(scene.server.process().ended(), None, "{mode}");
    }
    if kind != Kind::Coturn {
        scene.is_alive();
    }
    let client = Uclient {
        flags: &["-c"],
        server: Scene::server(),
        peer: Some(peer),
        clients: 2,
        messages: 100,
    };
    client.loses_nothing_on(&scene.client);
}

#[test]
fn coturn_survives_its_own_client_too() {
    hostile_modes_of_coturns_client_change_nothing(Kind::Coturn);
}

macro_rules! drivers {
    ($($module:ident: $driver:expr;)*) => {
        $(mod $module {
            use super::*;

            #[test]
            fn floods_leave_a_neighbour_its_rate_and_the_server_its_memory() {
                floods_harm_nobody($driver);
            }

            #[test]
            fn a_nonce_is_of_no_use_to_another_address_or_port() {
                a_nonce_is_good_for_one_address_and_port($driver);
            }

            #[test]
            fn thousands_of_guessed_passwords_open_nothing() {
                guessed_passwords_open_nothing($driver);
            }

            #[test]
            fn damaged_and_cut_messages_change_nothing() {
                damaged_messages_change_nothing($driver);
            }

            #[test]
            fn an_exhausted_server_still_serves_those_it_has() {
                an_exhausted_server_serves_those_it_has($driver);
            }

            #[test]
            fn hostile_modes_of_coturns_client_do_no_harm() {
                hostile_modes_of_coturns_client_change_nothing(Kind::Towpath($driver));
            }
        })*
    };
}

drivers! {
    io_uring: Driver::IoUring;
    epoll: Driver::Epoll;
}
