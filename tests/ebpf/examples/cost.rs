//! What the program costs: its size, and nanoseconds per packet by `BPF_PROG_TEST_RUN`.
//!
//! One packet goes round and round: it is stripped of its ChannelData header by one route and given
//! it back by another, with the time to live left alone. The harness's own cost is included.

use anyhow::{Context, Result};
use towpath_ebpf_common::meter::Limits;
use towpath_ebpf_common::rate::LimitWord;
use towpath_ebpf_common::route::{RouteKey, Settings, Target, flag};
use towpath_ebpf_tests::Program;
use towpath_ebpf_tests::packet::{Datagram, channel_data};
use towpath_ebpf_tests::shape::{NEXT_HOP, Shape, Way, address};

const ROUNDS: u32 = 5;
const RUNS: u32 = 1_000_000;

fn main() -> Result<()> {
    let mut program = Program::load()?.context("needs root")?;
    let info = program.info()?;
    let instructions = info.size_translated().unwrap_or(0) / 8;
    let verified = info.verified_instruction_count().unwrap_or(0);
    println!("{instructions} instructions, {verified} walked by the verifier");
    let settings = program.settings()?;
    program.set_settings(Settings {
        flags: flag::FORWARD | flag::KEEP_TTL,
        ports: Settings::ports(49_152, 50_000),
        ..settings
    })?;
    program.set_next_hop(NEXT_HOP, Shape::plain(Way::ToPeer).next_hop())?;
    let limit = LimitWord::new(400_000_000_000, 1 << 30)?.to_bits();
    let limits = Limits {
        up: limit,
        down: limit,
        ..Limits::default()
    };
    program.set_limits(8, limits)?;
    for (from, to) in [(0, 0), (0, 1), (1, 1)] {
        for (name, slot, global) in [
            ("counted by nobody", 0, 0),
            ("counted, unlimited", 9, 0),
            ("counted, limited", 8, 0),
            ("counted, limited, global limit", 8, limit),
        ] {
            let settings = program.settings()?;
            program.set_settings(Settings { global, ..settings })?;
            let frame = ping_pong(&mut program, from, to, slot)?;
            let mut best = u128::MAX;
            for _ in 0..ROUNDS {
                let (_, _, duration) = program.repeat(&frame, RUNS)?;
                best = best.min(duration.as_nanos());
            }
            println!("{} <-> {}: {best} ns, {name}", [4, 6][from], [4, 6][to]);
        }
    }
    Ok(())
}

/// Sets two routes that undo each other, and returns the packet for them.
fn ping_pong(program: &mut Program, from: usize, to: usize, slot: u32) -> Result<Vec<u8>> {
    let client = address(["192.0.2.7:40000", "[2001:db8:7::7]:40000"][from]);
    let listener = address(["198.51.100.1:3478", "[2001:db8:1::1]:3478"][from]);
    let relayed = address(["198.51.100.2:49500", "[2001:db8:1::2]:49500"][to]);
    let peer = address(["203.0.113.9:7000", "[2001:db8:9::9]:7000"][to]);
    let there = Target {
        destination: relayed,
        source: peer,
        channel: 0,
        up_slot: slot,
        down_slot: 0,
        next_hop: NEXT_HOP,
        generation: 1,
        expires: u64::MAX,
    };
    program.set_route(&RouteKey::new(client, listener, 0x4abc), &there)?;
    let back = Target {
        destination: listener,
        source: client,
        channel: 0x4abc,
        up_slot: 0,
        down_slot: slot,
        ..there
    };
    program.set_route(&RouteKey::new(peer, relayed, 0), &back)?;
    let payload = channel_data(0x4abc, &[0x5a; 160], &[]);
    Ok(Datagram::new(client, listener, &payload).to_bytes())
}
