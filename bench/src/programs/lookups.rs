//! The look-ups of Towpath's program on Towpath's maps, and nothing else: what memory alone costs.
//!
//! ```text
//!   ROUTES[source, local, channel] ─▶ NEXT_HOPS, and for each slot: LIMITS, METERS, one packet counted
//!   addresses, ports and channel replaced by the route's, checksums and lengths left as they are
//! ```

use std::mem::offset_of;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use towpath_ebpf_common::route::{Route, map};

use super::{Loaded, check_circle};
use crate::assembler::{Assembler, FRAME, Instruction as I, Label, MAP_LOOKUP_ELEM, verdict};
use crate::bpf::XdpProgram;

const RESULT: u8 = 0;
const END: u8 = 3;
const A: u8 = 4;
const CONTEXT: u8 = 1;
const ROUTE: u8 = 7;
const DATA: u8 = 8;

const KEY: i16 = -40;
const INDEX: i16 = -48;

const SOURCE_ADDRESS: i16 = 26;
const DESTINATION_ADDRESS: i16 = 30;
const SOURCE_PORT: i16 = 34;
const DESTINATION_PORT: i16 = 36;
/// Behind the UDP header; of plain packets too, for this program alone.
const CHANNEL: i16 = 42;
const HEADERS: i32 = 46;
/// The words of a mapped address before the address.
const MAPPED: i32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]) as i32;
/// The address within a mapped address.
const LAST_WORD: usize = 12;
/// A direction's bytes, and its counter of packets.
const DIRECTION: i16 = 64;
const PACKETS: i16 = 8;

/// Loads it on the maps of `loaded`.
pub(super) fn load(loaded: &Loaded) -> Result<XdpProgram> {
    let maps = Maps {
        routes: loaded.map(map::ROUTES)?,
        next_hops: loaded.map(map::NEXT_HOPS)?,
        limits: loaded.map(map::LIMITS)?,
        meters: loaded.map(map::METERS)?,
    };
    let program = XdpProgram::load(&program(&maps)).context("loading the look-ups")?;
    check_circle(&program, &loaded.first_frame(), loaded.circle as u32)?;
    Ok(program)
}

struct Maps<'a> {
    routes: BorrowedFd<'a>,
    next_hops: BorrowedFd<'a>,
    limits: BorrowedFd<'a>,
    meters: BorrowedFd<'a>,
}

fn program(maps: &Maps<'_>) -> Vec<I> {
    let mut program = Assembler::default();
    let drop = program.label();
    program.then([
        I::load_u32(DATA, CONTEXT, 0),
        I::load_u32(END, CONTEXT, 4),
        I::copy(A, DATA),
        I::add(A, HEADERS),
    ]);
    program.jump(I::jump_if_greater(A, END), drop);
    write_key(&mut program);
    look_up(&mut program, &maps.routes, KEY, drop);
    program.then([
        I::copy(ROUTE, RESULT),
        I::load_u32(A, ROUTE, offset_of!(Route, next_hop) as i16),
        I::store_u32(FRAME, INDEX, A),
    ]);
    look_up(&mut program, &maps.next_hops, INDEX, drop);
    pay(&mut program, maps, offset_of!(Route, up_slot), 0, drop);
    pay(&mut program, maps, offset_of!(Route, down_slot), 1, drop);
    move_on(&mut program);
    program.then([I::set(RESULT, verdict::TX), I::exit()]);
    program.place(drop);
    program.then([I::set(RESULT, verdict::DROP), I::exit()]);
    program.finish()
}

fn write_key(program: &mut Assembler) {
    for (at, address) in [(KEY, SOURCE_ADDRESS), (KEY + 16, DESTINATION_ADDRESS)] {
        program.then([
            I::set(A, 0),
            I::store_u64(FRAME, at, A),
            I::set(A, MAPPED),
            I::store_u32(FRAME, at + 8, A),
            I::load_u32(A, DATA, address),
            I::store_u32(FRAME, at + 12, A),
        ]);
    }
    program.then([
        I::load_u32(A, DATA, SOURCE_PORT),
        I::store_u32(FRAME, KEY + 32, A),
        I::load_u16(A, DATA, CHANNEL),
        I::store_u32(FRAME, KEY + 36, A),
    ]);
}

fn look_up(program: &mut Assembler, map: &BorrowedFd<'_>, key: i16, missing: Label) {
    program.map(1, map);
    program.then([
        I::copy(2, FRAME),
        I::add(2, i32::from(key)),
        I::call(MAP_LOOKUP_ELEM),
    ]);
    program.jump(I::jump_if_equal(RESULT, 0), missing);
}

/// Reads the limit of a slot, and counts a packet in its direction.
fn pay(program: &mut Assembler, maps: &Maps<'_>, slot: usize, direction: i16, missing: Label) {
    let nobody = program.label();
    program.then([I::load_u32(A, ROUTE, slot as i16)]);
    program.jump(I::jump_if_equal(A, 0), nobody);
    program.then([I::store_u32(FRAME, INDEX, A)]);
    look_up(program, &maps.limits, INDEX, missing);
    program.then([I::load_u64(A, RESULT, direction * 8)]);
    look_up(program, &maps.meters, INDEX, missing);
    let packets = direction * DIRECTION + PACKETS;
    program.then([
        I::load_u64(A, RESULT, packets),
        I::add(A, 1),
        I::store_u64(RESULT, packets, A),
    ]);
    program.place(nobody);
}

/// Makes the packet that which the route sends.
fn move_on(program: &mut Assembler) {
    let words = [
        (offset_of!(Route, source) + LAST_WORD, SOURCE_ADDRESS),
        (
            offset_of!(Route, destination) + LAST_WORD,
            DESTINATION_ADDRESS,
        ),
    ];
    for (from, to) in words {
        program.then([
            I::load_u32(A, ROUTE, from as i16),
            I::store_u32(DATA, to, A),
        ]);
    }
    let halves = [
        (offset_of!(Route, source_port), SOURCE_PORT),
        (offset_of!(Route, destination_port), DESTINATION_PORT),
        (offset_of!(Route, channel), CHANNEL),
    ];
    for (from, to) in halves {
        program.then([
            I::load_u16(A, ROUTE, from as i16),
            I::store_u16(DATA, to, A),
        ]);
    }
}
