//! What strangers ask at a listening port: within their limits it passes, beyond them it ends here.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::Duration;

use towpath_ebpf_common::reason::Reason;
use towpath_ebpf_common::route::mapped;
use towpath_ebpf_common::strangers::{
    Admission, BUDGETS, SEEN, Source, StrangerLimits, Table, admit,
};
use towpath_ebpf_tests::packet::{Datagram, channel_data};
use towpath_ebpf_tests::{Program, Verdict, now};

const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

/// A program, and a listening port on the loopback whose socket is open.
struct Lab {
    program: Program,
    listening: SocketAddr,
    _socket: UdpSocket,
}

impl Lab {
    /// With these limits; a loud skip without root.
    fn new(limits: [Option<u32>; 3]) -> Option<Self> {
        let program = Program::load().expect("the program loads");
        if program.is_none() {
            towpath_net::skip("loading programs into the kernel needs root");
        }
        let mut program = program?;
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let listening = socket.local_addr().expect("its address");
        program.listen_alone(listening).expect("the settings");
        let [source, network, total] = limits;
        program
            .set_strangers(StrangerLimits::new(KEY, source, network, total))
            .expect("limits");
        Some(Self {
            program,
            listening,
            _socket: socket,
        })
    }

    fn run(&mut self, from: &str, payload: &[u8]) -> (Verdict, Reason) {
        let from = SocketAddr::new(from.parse().expect("an address"), 4000);
        let frame = Datagram::new(from, self.listening, payload).to_bytes();
        let outcome = self.program.run(&frame).expect("a run");
        assert_eq!(outcome.packet, frame, "it is as it was");
        (outcome.verdict, outcome.reason)
    }
}

const PASSED: (Verdict, Reason) = (Verdict::Pass, Reason::NotChannelData);

fn dropped(reason: Reason) -> (Verdict, Reason) {
    (Verdict::Drop, reason)
}

/// A STUN message of this type with so many bytes of attributes.
fn stun(kind: u16, length: u16) -> Vec<u8> {
    let mut message = kind.to_be_bytes().to_vec();
    message.extend(length.to_be_bytes());
    message.extend([0x21, 0x12, 0xa4, 0x42]);
    message.resize(20 + usize::from(length), 7);
    message
}

#[test]
fn a_source_over_its_limit_is_dropped_and_its_neighbour_is_not() {
    let Some(mut lab) = Lab::new([Some(1), None, None]) else {
        return;
    };
    let binding = stun(1, 0);
    for _ in 0..4 {
        assert_eq!(lab.run("192.0.2.1", &binding), PASSED);
    }
    for _ in 0..3 {
        let over = dropped(Reason::StrangerSource);
        assert_eq!(lab.run("192.0.2.1", &binding), over);
    }
    assert_eq!(lab.run("192.0.2.2", &binding), PASSED);
}

#[test]
fn a_network_over_its_limit_is_dropped_and_the_next_one_is_not() {
    let Some(mut lab) = Lab::new([Some(100), Some(1), None]) else {
        return;
    };
    for n in 0..8 {
        let expected = if n < 4 {
            PASSED
        } else {
            dropped(Reason::StrangerNetwork)
        };
        assert_eq!(lab.run(&format!("192.0.2.{n}"), &stun(1, 0)), expected);
    }
    assert_eq!(lab.run("192.0.3.1", &stun(1, 0)), PASSED);
}

#[test]
fn whoever_asks_again_is_served_when_newcomers_have_used_up_their_half() {
    let Some(mut lab) = Lab::new([None, None, Some(2)]) else {
        return;
    };
    let over = dropped(Reason::StrangerTotal);
    for n in 0..4 {
        assert_eq!(lab.run(&format!("192.0.{n}.1"), &stun(1, 0)), PASSED);
    }
    assert_eq!(lab.run("198.51.100.1", &stun(1, 0)), over);
    assert_eq!(lab.run("198.51.100.1", &stun(1, 0)), over, "not at once");
    // More than the generation it was noted in, and less than it is remembered.
    thread::sleep(Duration::from_millis(560));
    // One newcomer a second is admitted again.
    let newcomers = (0..3).filter(|n| lab.run(&format!("203.0.{n}.1"), &stun(1, 0)) == PASSED);
    assert!(newcomers.count() <= 1);
    assert_eq!(lab.run("198.51.100.1", &stun(1, 0)), PASSED);
}

#[test]
fn only_what_cannot_be_signed_is_charged() {
    let Some(mut lab) = Lab::new([Some(1), None, None]) else {
        return;
    };
    let client = "192.0.2.1";
    while lab.run(client, &stun(1, 0)) == PASSED {}
    let over = dropped(Reason::StrangerSource);
    for strangers in [
        stun(0x0001, 100),
        stun(0x0011, 0),
        stun(0x0003, 8),
        stun(0x0101, 12),
        b"\x80 like RTP".to_vec(),
        vec![0; 1200],
        Vec::new(),
    ] {
        assert_eq!(lab.run(client, &strangers), over, "{strangers:02x?}");
    }
    for others in [
        stun(0x0003, 48),
        stun(0x0004, 100),
        stun(0x0016, 40),
        stun(0x0016, 0),
    ] {
        assert_eq!(lab.run(client, &others), PASSED, "{others:02x?}");
    }
    let no_route = (Verdict::Pass, Reason::NoRoute);
    assert_eq!(
        lab.run(client, &channel_data(0x4000, b"data", &[])),
        no_route
    );
    // Elsewhere on this machine nobody is a stranger.
    lab.listening.set_port(lab.listening.port() ^ 1);
    assert_eq!(lab.run(client, &stun(1, 0)), PASSED);
}

#[test]
fn without_limits_nothing_is_dropped() {
    let Some(mut lab) = Lab::new([None, None, None]) else {
        return;
    };
    assert!((0..200).all(|_| lab.run("192.0.2.1", &stun(1, 0)) == PASSED));
}

/// The tables in ordinary memory.
struct Memory([Vec<AtomicU64>; 2]);

impl Table for Memory {
    type Word = AtomicU64;

    fn budget(&self, index: u32) -> Option<&AtomicU64> {
        self.0[0].get(index as usize)
    }

    fn seen(&self, index: u32) -> Option<&AtomicU64> {
        self.0[1].get(index as usize)
    }
}

#[test]
fn the_program_and_userspace_admit_the_same() {
    // So slowly that no budget refills while the test runs.
    let limits = [Some(1), Some(2), Some(20)];
    let Some(mut lab) = Lab::new(limits) else {
        return;
    };
    let [source, network, total] = limits;
    let paces = StrangerLimits::new(KEY, source, network, total);
    let memory =
        Memory([BUDGETS, SEEN].map(|words| (0..words).map(|_| AtomicU64::new(0)).collect()));
    let mut outcomes = [0; 4];
    let started = now();
    for n in 0..400_u32 {
        // One source, one network, and then everybody.
        let text = match n {
            0..6 => "198.18.0.1".to_owned(),
            6..20 => format!("198.18.0.{n}"),
            _ => format!("198.19.{}.{}", n % 32, n % 11),
        };
        let address = text.parse().expect("an address");
        let admission = admit(&memory, &paces, Source::new(&mapped(address)), false, now());
        let (index, expected) = match admission {
            Admission::Admitted => (0, PASSED),
            Admission::OverSource => (1, dropped(Reason::StrangerSource)),
            Admission::OverNetwork => (2, dropped(Reason::StrangerNetwork)),
            Admission::OverTotal => (3, dropped(Reason::StrangerTotal)),
        };
        outcomes[index] += 1;
        let found = lab.run(&text, &stun(1, 0));
        // The newcomers' budget earns one in 100 ms: the two clocks may differ about that one.
        if now() - started < 90_000_000 {
            assert_eq!(found, expected, "{n}: {text}");
        }
    }
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
}
