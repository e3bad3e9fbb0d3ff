//! The kernel's program and the machine, given one frame each time: an ordinary one, damaged.
//!
//! What the program relays, the machine relays just so, to the last byte; what it does not relay it
//! passes as it came. Needs root, and says so where it has to do without.

use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use towpath_ebpf_tests::packet::{
    Checksum, Datagram, SERVICE_VLAN, VLAN, channel_data, fill_ipv4_checksum,
};
use towpath_ebpf_tests::twin::{Disagreement, Twin};

use crate::bytes::Bytes;

/// The machine's channels last for ten minutes.
const MAX_AGE: Duration = Duration::from_secs(300);

struct Bench {
    twin: Twin,
    made: Instant,
}

impl Bench {
    fn new() -> Option<Mutex<Self>> {
        let twin = Twin::new().expect("program and machine start");
        if twin.is_none() {
            towpath_net::skip("loading programs into the kernel needs root");
        }
        let made = Instant::now();
        twin.map(|twin| Mutex::new(Self { twin, made }))
    }
}

static BENCH: LazyLock<Option<Mutex<Bench>>> = LazyLock::new(Bench::new);

pub(crate) fn fuzz(data: &[u8]) {
    let Some(bench) = BENCH.as_ref() else { return };
    let mut bench = bench.lock().expect("no disagreement so far");
    if bench.made.elapsed() > MAX_AGE {
        let again = Twin::new().expect("program and machine start");
        bench.twin = again.expect("still root");
        bench.made = Instant::now();
    }
    let frame = frame(&bench.twin, &mut Bytes(data));
    if let Err(Disagreement(how)) = bench.twin.compare(&frame) {
        panic!("{how}");
    }
}

fn frame(twin: &Twin, input: &mut Bytes<'_>) -> Vec<u8> {
    let choice = input.byte();
    let flow = twin.flows[usize::from(choice & 3)];
    let to_peer = choice & 4 != 0;
    let edits = input.byte();
    let header = input.byte();
    let ordinary = flow.datagram(to_peer, &[]);
    let mut datagram = Datagram {
        tags: match choice >> 3 & 3 {
            0 | 1 => Vec::new(),
            2 => vec![(VLAN, u16::from(header))],
            _ => vec![(SERVICE_VLAN, u16::from(header))],
        },
        checksum: match choice >> 5 & 3 {
            0 | 1 => Checksum::Right,
            2 => Checksum::None,
            _ => Checksum::WrongBy(u16::from(header)),
        },
        traffic_class: header,
        identification: u16::from(header) << 5,
        dont_fragment: header & 1 != 0,
        trailer: vec![0xee; usize::from(edits >> 6)],
        ..ordinary
    };
    let edits: Vec<[u8; 3]> = (0..edits & 7).map(|_| input.array()).collect();
    let padding = usize::from(header >> 6);
    let data = input.take(1500);
    datagram.payload = if to_peer {
        let padding = padding.min(data.len().next_multiple_of(4) - data.len());
        channel_data(0x4001, data, &vec![header; padding])
    } else {
        data.to_vec()
    };
    let mut frame = datagram.to_bytes();
    for [how, at, value] in edits {
        let at = usize::from(at) % frame.len();
        match how & 3 {
            0 => frame[at] = value,
            1 => frame[at] ^= 1 << (value & 7),
            2 => frame[at] = frame[at].wrapping_add(value),
            // The kernel runs no program on less than an Ethernet header.
            _ => frame.truncate(at.max(14)),
        }
    }
    let ip = datagram.ip_offset();
    if choice & 0x80 != 0 && datagram.source.is_ipv4() && frame.len() >= ip + 20 {
        fill_ipv4_checksum(&mut frame[ip..ip + 20]);
    }
    frame
}
