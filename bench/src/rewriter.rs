//! The yardstick of the kernel path: a minimal XDP program that rewrites the packets of one static table
//! of flows and redirects them. It meters nothing, counts nothing, and no flow ever ends.
//!
//! ```text
//!   IPv4 without options, no fragment, UDP with a checksum, lengths agree      else PASS
//!   local port below RELAYED_PORTS → ChannelData with exactly its payload      else PASS
//!   FLOWS[source, destination, ports, channel or 0]                            none: PASS
//!   head moved by what the ChannelData header takes more or less
//!   Ethernet, IPv4, UDP and, where there is one, ChannelData header written
//!   REDIRECT to the flow's interface; TX where that is 0
//! ```
//!
//! Both checksums change by a constant of the flow, but for the length in a ChannelData header that comes or
//! goes. The time to live stays.

use std::io;
use std::net::SocketAddrV4;

use crate::assembler::{
    Assembler, FRAME, Instruction as I, Label, MAP_LOOKUP_ELEM, REDIRECT, XDP_ADJUST_HEAD, verdict,
};
use crate::bpf::{Table, XdpProgram};
use crate::packet::{CHANNEL_DATA_HEADER_BYTES, Mac};

/// From this local port on, packets are what peers send to relayed ports: plain UDP.
pub const RELAYED_PORTS: u16 = 49_152;

const KEY_BYTES: usize = 16;
const VALUE_BYTES: usize = 48;

/// A flow: packets that are recognised, and what becomes of them.
#[derive(Clone, Copy, Debug)]
pub struct RewrittenFlow {
    /// Who sends them.
    pub from: SocketAddrV4,
    /// Where they are sent to.
    pub to: SocketAddrV4,
    /// The channel they name, where `to` is not a relayed port.
    pub channel: u16,
    /// Where they leave from.
    pub source: SocketAddrV4,
    /// Where they go to.
    pub destination: SocketAddrV4,
    /// The channel they leave with; 0: as plain UDP.
    pub new_channel: u16,
    /// Link addresses they leave with.
    pub source_mac: Mac,
    /// See `source_mac`.
    pub destination_mac: Mac,
    /// Index of the interface they leave by; 0: that which they came by.
    pub interface: u32,
}

/// The program and its table.
pub struct Rewriter {
    table: Table,
    /// The program, to be attached or tested.
    pub program: XdpProgram,
}

impl Rewriter {
    /// Loads the program with room for `capacity` flows.
    pub fn load(capacity: u32) -> io::Result<Self> {
        let table = Table::new(KEY_BYTES, VALUE_BYTES, capacity)?;
        let program = XdpProgram::load(&program(&table))?;
        Ok(Self { table, program })
    }

    /// Adds a flow.
    pub fn insert(&self, flow: &RewrittenFlow) -> io::Result<()> {
        self.table.insert(&flow.key(), &flow.value())
    }
}

/// What a key consists of, in the order it is in a packet.
fn endpoints(source: SocketAddrV4, destination: SocketAddrV4) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[0..4].copy_from_slice(&source.ip().octets());
    bytes[4..8].copy_from_slice(&destination.ip().octets());
    bytes[8..10].copy_from_slice(&source.port().to_be_bytes());
    bytes[10..12].copy_from_slice(&destination.port().to_be_bytes());
    bytes
}

impl RewrittenFlow {
    fn old_channel(&self) -> u16 {
        if self.to.port() >= RELAYED_PORTS {
            0
        } else {
            self.channel
        }
    }

    /// By how many bytes packets grow.
    fn growth(&self) -> i64 {
        let header = |channel| {
            if channel == 0 {
                0
            } else {
                CHANNEL_DATA_HEADER_BYTES as i64
            }
        };
        header(self.new_channel) - header(self.old_channel())
    }

    fn key(&self) -> [u8; KEY_BYTES] {
        let mut key = [0; KEY_BYTES];
        key[..12].copy_from_slice(&endpoints(self.from, self.to));
        key[12..14].copy_from_slice(&self.old_channel().to_be_bytes());
        key
    }

    fn value(&self) -> [u8; VALUE_BYTES] {
        let mut value = [0; VALUE_BYTES];
        let (old, new) = (
            endpoints(self.from, self.to),
            endpoints(self.source, self.destination),
        );
        let growth = match self.growth() {
            growth if growth < 0 => !(growth.unsigned_abs() as u16),
            growth => growth as u16,
        };
        let growth = growth.to_be_bytes();
        let old_channel = self.old_channel().to_be_bytes();
        let new_channel = self.new_channel.to_be_bytes();
        // The length is in the IPv4 header once, and in what UDP sums up twice.
        let ip = change(&[&old[..8]], &[&new[..8], &growth]);
        let udp = change(
            &[&old, &old_channel],
            &[&new, &new_channel, &growth, &growth],
        );
        value[SOURCE..SOURCE + 12].copy_from_slice(&new);
        value[CHANNEL..CHANNEL + 2].copy_from_slice(&new_channel);
        value[IP_CHANGE..IP_CHANGE + 2].copy_from_slice(&ip.to_ne_bytes());
        value[UDP_CHANGE..UDP_CHANGE + 2].copy_from_slice(&udp.to_ne_bytes());
        value[INTERFACE..INTERFACE + 4].copy_from_slice(&self.interface.to_ne_bytes());
        value[MACS..MACS + 6].copy_from_slice(&self.destination_mac);
        value[MACS + 6..MACS + 12].copy_from_slice(&self.source_mac);
        value[GROWTH..GROWTH + 8].copy_from_slice(&self.growth().to_ne_bytes());
        value
    }
}

// Where things are in a value.
const SOURCE: usize = 0;
const PORTS: usize = 8;
const CHANNEL: usize = 12;
const IP_CHANGE: usize = 14;
const UDP_CHANGE: usize = 16;
const INTERFACE: usize = 20;
const MACS: usize = 24;
const GROWTH: usize = 40;

/// What replacing `old` by `new` adds to a sum in ones' complement, of words in the machine's order.
fn change(old: &[&[u8]], new: &[&[u8]]) -> u16 {
    let words = |parts: &[&[u8]], invert: u16| -> u32 {
        parts
            .iter()
            .flat_map(|part| part.chunks_exact(2))
            .map(|word| u32::from(u16::from_ne_bytes([word[0], word[1]]) ^ invert))
            .sum()
    };
    let sum = words(old, 0xffff) + words(new, 0);
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

// Where things are in a frame.
const ETHER_TYPE: i16 = 12;
const IP: i16 = 14;
const TOTAL_LENGTH: i16 = IP + 2;
const FRAGMENT: i16 = IP + 6;
const TTL: i16 = IP + 8;
const PROTOCOL: i16 = IP + 9;
const IP_CHECKSUM: i16 = IP + 10;
const ADDRESSES: i16 = IP + 12;
const UDP: i16 = IP + 20;
const DESTINATION_PORT: i16 = UDP + 2;
const UDP_LENGTH: i16 = UDP + 4;
const UDP_CHECKSUM: i16 = UDP + 6;
const CHANNEL_NUMBER: i16 = UDP + 8;
const CHANNEL_LENGTH: i16 = CHANNEL_NUMBER + 2;
const HEADERS: i32 = CHANNEL_NUMBER as i32;
const CHANNEL_HEADERS: i32 = HEADERS + CHANNEL_DATA_HEADER_BYTES as i32;

// What is kept on the stack while the head moves.
const KEY: i16 = -16;
const KEY_CHANNEL: i16 = KEY + 12;
const OLD_IP: i16 = -32;
const OLD_TTL: i16 = -24;
const OLD_UDP: i16 = -20;
const OLD_CHANNEL_LENGTH: i16 = -40;

const RESULT: u8 = 0;
const DATA: u8 = 2;
const END: u8 = 3;
const A: u8 = 4;
const B: u8 = 5;
const CONTEXT: u8 = 6;
const FLOW: u8 = 7;
const GROWN: u8 = 8;
const SUM: u8 = 9;

fn program(table: &Table) -> Vec<I> {
    let mut program = Assembler::default();
    let pass = program.label();
    program.then([I::copy(CONTEXT, 1)]);
    load_bounds(&mut program, CHANNEL_HEADERS, pass);
    check(&mut program, pass);
    look_up(&mut program, table, pass);
    move_head(&mut program, pass);
    write_ip(&mut program);
    write_udp(&mut program, pass);
    hand_over(&mut program);
    program.place(pass);
    program.then([I::set(RESULT, verdict::PASS), I::exit()]);
    program.finish()
}

fn load_bounds(program: &mut Assembler, bytes: i32, otherwise: Label) {
    program.then([
        I::load_u32(DATA, CONTEXT, 0),
        I::load_u32(END, CONTEXT, 4),
        I::copy(A, DATA),
        I::add(A, bytes),
    ]);
    program.jump(I::jump_if_greater(A, END), otherwise);
}

/// Leaves the UDP length in `GROWN`.
fn check(program: &mut Assembler, pass: Label) {
    let network = |number: u16| i32::from(number.to_be());
    program.then([I::load_u16(A, DATA, ETHER_TYPE)]);
    program.jump(I::jump_if_not_equal(A, network(0x0800)), pass);
    program.then([I::load_u8(A, DATA, IP)]);
    program.jump(I::jump_if_not_equal(A, 0x45), pass);
    program.then([I::load_u8(A, DATA, PROTOCOL)]);
    program.jump(I::jump_if_not_equal(A, 17), pass);
    program.then([I::load_u16(A, DATA, FRAGMENT), I::and(A, network(0x3fff))]);
    program.jump(I::jump_if_not_equal(A, 0), pass);
    program.then([I::load_u16(A, DATA, UDP_CHECKSUM)]);
    program.jump(I::jump_if_equal(A, 0), pass);
    program.then([
        I::load_u16(GROWN, DATA, UDP_LENGTH),
        I::big_endian_16(GROWN),
        I::load_u16(A, DATA, TOTAL_LENGTH),
        I::big_endian_16(A),
        I::add(A, -20),
    ]);
    program.jump(I::jump_if_registers_differ(A, GROWN), pass);
}

/// Keeps the old headers and leaves the flow in `FLOW`.
fn look_up(program: &mut Assembler, table: &Table, pass: Label) {
    let plain = program.label();
    program.then([
        I::load_u64(A, DATA, ADDRESSES),
        I::store_u64(FRAME, KEY, A),
        I::load_u32(A, DATA, UDP),
        I::store_u32(FRAME, KEY + 8, A),
        I::load_u64(A, DATA, IP),
        I::store_u64(FRAME, OLD_IP, A),
        I::load_u32(A, DATA, TTL),
        I::store_u32(FRAME, OLD_TTL, A),
        I::load_u32(A, DATA, UDP_LENGTH),
        I::store_u32(FRAME, OLD_UDP, A),
        I::set(B, 0),
        I::store_u64(FRAME, OLD_CHANNEL_LENGTH, B),
        I::load_u16(A, DATA, DESTINATION_PORT),
        I::big_endian_16(A),
    ]);
    program.jump(I::jump_if_at_least(A, i32::from(RELAYED_PORTS)), plain);
    program.then([
        I::load_u16(A, DATA, CHANNEL_LENGTH),
        // Its complement is what the checksum needs.
        I::copy(B, A),
        I::exclusive_or(B, 0xffff),
        I::store_u64(FRAME, OLD_CHANNEL_LENGTH, B),
        I::big_endian_16(A),
        I::add(A, 8 + CHANNEL_DATA_HEADER_BYTES as i32),
    ]);
    program.jump(I::jump_if_registers_differ(A, GROWN), pass);
    program.then([I::load_u16(B, DATA, CHANNEL_NUMBER)]);
    program.place(plain);
    program.then([I::store_u32(FRAME, KEY_CHANNEL, B)]);
    program.map(1, table);
    program.then([
        I::copy(2, FRAME),
        I::add(2, i32::from(KEY)),
        I::call(MAP_LOOKUP_ELEM),
    ]);
    program.jump(I::jump_if_equal(RESULT, 0), pass);
    program.then([I::copy(FLOW, RESULT)]);
}

fn move_head(program: &mut Assembler, pass: Label) {
    let stays = program.label();
    program.then([I::load_u64(GROWN, FLOW, GROWTH as i16)]);
    program.jump(I::jump_if_equal(GROWN, 0), stays);
    program.then([
        I::copy(1, CONTEXT),
        I::set(2, 0),
        I::subtract_register(2, GROWN),
        I::call(XDP_ADJUST_HEAD),
    ]);
    program.jump(I::jump_if_not_equal(RESULT, 0), pass);
    program.place(stays);
    load_bounds(program, HEADERS, pass);
}

/// Ethernet and IPv4 header.
fn write_ip(program: &mut Assembler) {
    let ether_type = i32::from(0x0800_u16.to_be());
    program.then([
        I::load_u64(A, FLOW, MACS as i16),
        I::store_u64(DATA, 0, A),
        I::load_u32(A, FLOW, MACS as i16 + 8),
        I::store_u32(DATA, 8, A),
        I::set(A, ether_type),
        I::store_u16(DATA, ETHER_TYPE, A),
        I::load_u64(A, FRAME, OLD_IP),
        I::store_u64(DATA, IP, A),
        I::load_u16(A, FRAME, OLD_IP + 2),
        I::big_endian_16(A),
        I::add_register(A, GROWN),
        I::big_endian_16(A),
        I::store_u16(DATA, TOTAL_LENGTH, A),
        I::load_u16(A, FRAME, OLD_TTL),
        I::store_u16(DATA, TTL, A),
        I::load_u16(SUM, FRAME, OLD_TTL + 2),
        I::exclusive_or(SUM, 0xffff),
        I::load_u16(A, FLOW, IP_CHANGE as i16),
        I::add_register(SUM, A),
    ]);
    fold(program, 1);
    program.then([
        I::exclusive_or(SUM, 0xffff),
        I::store_u16(DATA, IP_CHECKSUM, SUM),
        I::load_u64(A, FLOW, SOURCE as i16),
        I::store_u64(DATA, ADDRESSES, A),
    ]);
}

/// UDP header, and the ChannelData header where there is one.
fn write_udp(program: &mut Assembler, pass: Label) {
    let (plain, written) = (program.label(), program.label());
    program.then([
        I::load_u32(A, FLOW, PORTS as i16),
        I::store_u32(DATA, UDP, A),
        I::load_u16(B, FRAME, OLD_UDP),
        I::big_endian_16(B),
        I::add_register(B, GROWN),
        I::copy(A, B),
        I::big_endian_16(A),
        I::store_u16(DATA, UDP_LENGTH, A),
        I::load_u16(SUM, FRAME, OLD_UDP + 2),
        I::exclusive_or(SUM, 0xffff),
        I::load_u16(A, FLOW, UDP_CHANGE as i16),
        I::add_register(SUM, A),
        I::load_u64(A, FRAME, OLD_CHANNEL_LENGTH),
        I::add_register(SUM, A),
        I::load_u16(A, FLOW, CHANNEL as i16),
    ]);
    program.jump(I::jump_if_equal(A, 0), plain);
    program.then([I::copy(1, DATA), I::add(1, CHANNEL_HEADERS)]);
    // Only the verifier does not know that the frame was long enough before it grew.
    program.jump(I::jump_if_greater(1, END), pass);
    program.then([
        I::store_u16(DATA, CHANNEL_NUMBER, A),
        I::add(B, -8 - CHANNEL_DATA_HEADER_BYTES as i32),
        I::big_endian_16(B),
        I::store_u16(DATA, CHANNEL_LENGTH, B),
        I::add_register(SUM, B),
    ]);
    program.place(plain);
    fold(program, 2);
    program.then([I::exclusive_or(SUM, 0xffff)]);
    // RFC 768: a checksum that comes to zero is sent as all ones.
    program.jump(I::jump_if_not_equal(SUM, 0), written);
    program.then([I::set(SUM, 0xffff)]);
    program.place(written);
    program.then([I::store_u16(DATA, UDP_CHECKSUM, SUM)]);
}

fn fold(program: &mut Assembler, times: usize) {
    for _ in 0..times {
        program.then([
            I::copy(A, SUM),
            I::shift_right(A, 16),
            I::and(SUM, 0xffff),
            I::add_register(SUM, A),
        ]);
    }
}

fn hand_over(program: &mut Assembler) {
    let back = program.label();
    program.then([I::load_u32(1, FLOW, INTERFACE as i16)]);
    program.jump(I::jump_if_equal(1, 0), back);
    program.then([I::set(2, 0), I::call(REDIRECT), I::exit()]);
    program.place(back);
    program.then([I::set(RESULT, verdict::TX), I::exit()]);
}

#[cfg(test)]
mod tests;
