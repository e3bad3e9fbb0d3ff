//! Open-loop load from within the kernel: an XDP program that a test run with live frames executes over and
//! over writes packets of many flows into fresh frames, at their time, and redirects them onto the links.
//!
//! The links then carry frames, as network cards hand them to their drivers, and no socket buffers that
//! every XDP program would first have to be given a copy of.
//!
//! ```text
//!   clump sent, and the next not due                       → DROP
//!   past the deadline                                      → DROP
//!   row = ROWS[position]; a packet of a peer begins later
//!   headers, and the stamp of every eighth packet, written
//!   REDIRECT to LINKS[row's side]
//! ```

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::assembler::{
    Assembler, Instruction as I, KTIME_GET_NS, Label, REDIRECT_MAP, XDP_ADJUST_HEAD, verdict,
};
use crate::bpf::{DeviceMap, SharedValue, XdpProgram};
use crate::generator::{LATE_NS, Outcome, Schedule};
use crate::packet::{CHANNEL_DATA_HEADER_BYTES, Stamp, UDP_PAYLOAD_OFFSET};
use crate::rig::{BENCH_CPU, Rig};
use crate::sink::SAMPLE_CAPACITY;
use crate::sys::{self, Scheduling};

/// Most packets of a cycle: a thousand flows both ways.
const MAX_ROWS: usize = 2048;
/// What is written of a packet: its headers and its stamp, in whole words.
const ROW_BYTES: usize = 80;
/// The side follows the bytes.
const ROW_STRIDE: usize = ROW_BYTES + 8;
/// One packet of so many is a sample.
const SAMPLED: u64 = 8;
/// How far behind the schedule the generator may end before what is still due is given up.
const GRACE_NS: u64 = 2_000_000;
/// The time between clumps counts in this part of a nanosecond.
const FRACTION_BITS: i32 = 16;
const WATCH_INTERVAL: Duration = Duration::from_millis(4);
/// Ahead of the generator, behind the sinks.
const WATCH_PRIORITY: u32 = 20;

const FRAMED_PAYLOAD: usize = UDP_PAYLOAD_OFFSET + CHANNEL_DATA_HEADER_BYTES;
const _: () = assert!(
    FRAMED_PAYLOAD + Stamp::BYTES <= ROW_BYTES,
    "a row has room for headers and stamp"
);

// Words that program and bench share.
const START: usize = 0;
const INTERVAL: usize = 1;
const TOTAL: usize = 2;
const QUANTUM: usize = 3;
const LENGTH: usize = 4;
const SENT: usize = 5;
const DUE: usize = 6;
const TICK: usize = 7;
const POSITION: usize = 8;
const ROW_COUNT: usize = 9;
const ENDED: usize = 10;
const CLUMPS: usize = 11;
const LATE: usize = 12;
const ROWS: usize = 16;
const WORDS: usize = ROWS + MAX_ROWS * ROW_STRIDE / 8;

/// Which link a packet is put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// That of the clients.
    Client,
    /// That of the peers.
    Peer,
}

/// Prepared packets, and the program that sends them.
pub struct FrameGenerator {
    shared: SharedValue,
    program: XdpProgram,
    frame: Vec<u8>,
}

impl FrameGenerator {
    /// Packets in the order they are sent in, over and over. All carry payloads of the same length.
    pub fn new(rig: &Rig, packets: &[(Side, Vec<u8>)]) -> Result<Self> {
        let links = DeviceMap::new(2).context("making the map of the links")?;
        // An index counts in the namespace of whoever writes it.
        let (client, peer) = (&rig.client_end, &rig.peer_end);
        rig.client
            .enter(|| links.set(Side::Client as u32, client.index))??;
        rig.peer
            .enter(|| links.set(Side::Peer as u32, peer.index))??;
        Self::with_links(&links, packets)
    }

    /// As [`new`](Self::new), onto these links: an interface at the number of each [`Side`] that has packets.
    pub fn with_links(links: &DeviceMap, packets: &[(Side, Vec<u8>)]) -> Result<Self> {
        ensure!(
            (1..=MAX_ROWS).contains(&packets.len()),
            "no cycle of {} packets",
            packets.len()
        );
        let shared = SharedValue::new(WORDS).context("making the generator's memory")?;
        let mut frame = Vec::new();
        for (number, (side, packet)) in packets.iter().enumerate() {
            let missing = match side {
                Side::Client => 0,
                Side::Peer => CHANNEL_DATA_HEADER_BYTES,
            };
            if number == 0 {
                frame = vec![0; missing + packet.len()];
                frame[missing..].copy_from_slice(packet);
            }
            ensure!(
                packet.len() + missing == frame.len() && packet.len() >= ROW_BYTES,
                "packets of different lengths, or shorter than {ROW_BYTES} bytes"
            );
            let row = ROWS + number * ROW_STRIDE / 8;
            let words = &shared.words()[row..row + ROW_STRIDE / 8];
            for (word, bytes) in words.iter().zip(packet[..ROW_BYTES].chunks_exact(8)) {
                let bytes = bytes.try_into().expect("chunks of eight bytes");
                word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
            }
            words[ROW_BYTES / 8].store(*side as u64, Ordering::Relaxed);
        }
        shared.words()[ROW_COUNT].store(packets.len() as u64, Ordering::Relaxed);
        let program = XdpProgram::load(&program(&shared, links))
            .context("loading the generator's program")?;
        Ok(Self {
            shared,
            program,
            frame,
        })
    }

    /// Sends at the scheduled times. Blocks.
    pub fn run(&mut self, schedule: Schedule) -> Result<Outcome> {
        let total = self.set(&schedule);
        self.run_until_sent(total)?;
        let words = self.shared.words();
        let word = |word: usize| words[word].load(Ordering::Relaxed);
        Ok(Outcome {
            sent: word(SENT),
            due: total,
            started_ns: word(START),
            ended_ns: word(ENDED),
            late_clumps: word(LATE),
            clumps: word(CLUMPS),
        })
    }

    /// Returns how many packets there are to send.
    fn set(&self, schedule: &Schedule) -> u64 {
        let words = self.shared.words();
        let total = (schedule.rate_pps * schedule.duration_ns as f64 / 1e9) as u64;
        let interval = 1e9 / schedule.rate_pps * f64::from(1 << FRACTION_BITS);
        let settings = [
            (START, 0),
            (INTERVAL, interval as u64),
            (TOTAL, total),
            (QUANTUM, schedule.quantum_ns),
            (LENGTH, schedule.duration_ns + GRACE_NS),
        ];
        for (word, value) in settings {
            words[word].store(value, Ordering::Relaxed);
        }
        for word in [SENT, DUE, TICK, ENDED, CLUMPS, LATE] {
            words[word].store(0, Ordering::Relaxed);
        }
        total
    }

    /// A test run ends by a signal only: another thread sends it.
    fn run_until_sent(&self, total: u64) -> Result<()> {
        let words = self.shared.words();
        let over = || {
            let start = words[START].load(Ordering::Relaxed);
            let end = start + words[LENGTH].load(Ordering::Relaxed);
            let all = words[SENT].load(Ordering::Relaxed) >= total;
            all || (start != 0 && sys::now_ns() > end)
        };
        let ended = Arc::new(AtomicBool::new(false));
        let generator = sys::own_thread();
        thread::scope(|scope| {
            let watcher = {
                let ended = Arc::clone(&ended);
                move || -> Result<()> {
                    sys::pin_to_cpu(0, BENCH_CPU)?;
                    sys::schedule(0, Scheduling::Fifo(WATCH_PRIORITY))?;
                    while !ended.load(Ordering::Relaxed) {
                        thread::sleep(WATCH_INTERVAL);
                        if over() || sys::check_interrupted().is_err() {
                            sys::wake(generator)?;
                        }
                    }
                    Ok(())
                }
            };
            let watcher = scope.spawn(watcher);
            let mut result = Ok(());
            while result.is_ok() && !over() && sys::check_interrupted().is_ok() {
                result = self.program.run_live(&self.frame);
            }
            ended.store(true, Ordering::Relaxed);
            let watched = watcher.join().expect("the watcher does not panic");
            result.context("running the generator's program")?;
            watched
        })?;
        Ok(sys::check_interrupted()?)
    }

    /// Samples of the last run: their numbers go from 1 to this, over both sides.
    pub fn samples(&self) -> u32 {
        let sent = self.shared.words()[SENT].load(Ordering::Relaxed);
        sent.div_ceil(SAMPLED).min(u64::from(SAMPLE_CAPACITY - 1)) as u32
    }
}

const RESULT: u8 = 0;
const DATA: u8 = 2;
const END: u8 = 3;
const A: u8 = 4;
const B: u8 = 5;
const CONTEXT: u8 = 6;
const SHARED: u8 = 7;
const NOW: u8 = 8;
const ROW: u8 = 9;

const fn at(word: usize) -> i16 {
    (word * 8) as i16
}

fn program(shared: &SharedValue, links: &DeviceMap) -> Vec<I> {
    let mut program = Assembler::default();
    let drop = program.label();
    program.then([I::copy(CONTEXT, 1)]);
    program.map_value(SHARED, shared);
    program.then([I::call(KTIME_GET_NS), I::copy(NOW, RESULT)]);
    begin(&mut program, drop);
    pick_row(&mut program, drop);
    write(&mut program, drop);
    hand_over(&mut program, links);
    program.place(drop);
    program.then([I::set(RESULT, verdict::DROP), I::exit()]);
    program.finish()
}

/// Decides whether a packet is sent now.
fn begin(program: &mut Assembler, drop: Label) {
    let (started, send, counted) = (program.label(), program.label(), program.label());
    program.then([I::load_u64(A, SHARED, at(START))]);
    program.jump(I::jump_if_not_equal(A, 0), started);
    program.then([I::store_u64(SHARED, at(START), NOW), I::copy(A, NOW)]);
    program.place(started);
    // Past the deadline?
    program.then([I::load_u64(B, SHARED, at(LENGTH)), I::add_register(B, A)]);
    program.jump(I::jump_if_greater(NOW, B), drop);
    program.then([
        I::load_u64(ROW, SHARED, at(SENT)),
        I::load_u64(B, SHARED, at(DUE)),
    ]);
    program.jump(I::jump_if_greater(B, ROW), send);
    program.then([I::load_u64(B, SHARED, at(TICK))]);
    program.jump(I::jump_if_greater(B, NOW), drop);
    // The next clump: all that is due by now.
    program.then([
        I::load_u64(B, SHARED, at(QUANTUM)),
        I::add_register(B, NOW),
        I::store_u64(SHARED, at(TICK), B),
        I::copy(B, NOW),
        I::subtract_register(B, A),
        I::shift_left(B, FRACTION_BITS),
        I::load_u64(DATA, SHARED, at(INTERVAL)),
        I::divide_register(B, DATA),
        I::add(B, 1),
        I::load_u64(DATA, SHARED, at(TOTAL)),
    ]);
    let within = program.label();
    program.jump(I::jump_if_greater(DATA, B), within);
    program.then([I::copy(B, DATA)]);
    program.place(within);
    program.then([I::store_u64(SHARED, at(DUE), B)]);
    program.jump(I::jump_if_not_greater(B, ROW), drop);
    program.then([
        I::load_u64(B, SHARED, at(CLUMPS)),
        I::add(B, 1),
        I::store_u64(SHARED, at(CLUMPS), B),
    ]);
    scheduled(program, B, DATA);
    program.then([
        I::load_u64(DATA, SHARED, at(QUANTUM)),
        I::add_register(B, DATA),
        I::add(B, LATE_NS as i32),
    ]);
    program.jump(I::jump_if_greater(B, NOW), counted);
    program.then([
        I::load_u64(B, SHARED, at(LATE)),
        I::add(B, 1),
        I::store_u64(SHARED, at(LATE), B),
    ]);
    program.place(counted);
    program.place(send);
    program.then([I::store_u64(SHARED, at(ENDED), NOW)]);
}

/// `result =` when packet number SENT is due.
fn scheduled(program: &mut Assembler, result: u8, scratch: u8) {
    program.then([
        I::load_u64(result, SHARED, at(SENT)),
        I::load_u64(scratch, SHARED, at(INTERVAL)),
        I::multiply_register(result, scratch),
        I::shift_right(result, FRACTION_BITS),
        I::load_u64(scratch, SHARED, at(START)),
        I::add_register(result, scratch),
    ]);
}

/// Leaves the packet's row in `ROW`, and moves on to the next.
fn pick_row(program: &mut Assembler, drop: Label) {
    let same_cycle = program.label();
    program.then([I::load_u64(A, SHARED, at(POSITION))]);
    program.jump(I::jump_if_at_least(A, MAX_ROWS as i32), drop);
    program.then([
        I::copy(ROW, A),
        I::multiply(ROW, ROW_STRIDE as i32),
        I::add(A, 1),
        I::load_u64(B, SHARED, at(ROW_COUNT)),
    ]);
    program.jump(I::jump_if_greater(B, A), same_cycle);
    program.then([I::set(A, 0)]);
    program.place(same_cycle);
    program.then([
        I::store_u64(SHARED, at(POSITION), A),
        I::copy(A, SHARED),
        I::add_register(A, ROW),
        I::copy(ROW, A),
    ]);
}

/// Fills in the frame, whatever the one before it left there.
fn write(program: &mut Assembler, drop: Label) {
    let (framed, written) = (program.label(), program.label());
    program.then([I::load_u64(A, ROW, at(ROWS) + ROW_BYTES as i16)]);
    program.jump(I::jump_if_equal(A, Side::Client as i32), framed);
    program.then([
        I::copy(1, CONTEXT),
        I::set(2, CHANNEL_DATA_HEADER_BYTES as i32),
        I::call(XDP_ADJUST_HEAD),
    ]);
    program.jump(I::jump_if_not_equal(RESULT, 0), drop);
    write_packet(program, UDP_PAYLOAD_OFFSET, drop);
    program.jump(I::jump(), written);
    program.place(framed);
    write_packet(program, FRAMED_PAYLOAD, drop);
    program.place(written);
    program.then([
        I::load_u64(A, SHARED, at(SENT)),
        I::add(A, 1),
        I::store_u64(SHARED, at(SENT), A),
    ]);
}

fn write_packet(program: &mut Assembler, payload: usize, drop: Label) {
    let plain = program.label();
    program.then([
        I::load_u32(DATA, CONTEXT, 0),
        I::load_u32(END, CONTEXT, 4),
        I::copy(A, DATA),
        I::add(A, ROW_BYTES as i32),
    ]);
    program.jump(I::jump_if_greater(A, END), drop);
    for offset in (0..ROW_BYTES as i16).step_by(8) {
        program.then([
            I::load_u64(A, ROW, at(ROWS) + offset),
            I::store_u64(DATA, offset, A),
        ]);
    }
    program.then([
        I::load_u64(A, SHARED, at(SENT)),
        I::copy(B, A),
        I::and(B, SAMPLED as i32 - 1),
    ]);
    program.jump(I::jump_if_not_equal(B, 0), plain);
    program.then([
        I::shift_right(A, SAMPLED.trailing_zeros() as i32),
        I::add(A, 1),
    ]);
    program.jump(I::jump_if_at_least(A, SAMPLE_CAPACITY as i32), plain);
    let number = (payload + Stamp::NUMBER_OFFSET) as i16;
    let due = (payload + Stamp::SCHEDULED_OFFSET) as i16;
    program.then([
        I::store_u32(DATA, number, A),
        I::exclusive_or(A, -1),
        I::store_u32(DATA, number + 4, A),
    ]);
    scheduled(program, A, B);
    program.then([
        I::store_u64(DATA, due, A),
        I::exclusive_or(A, -1),
        I::store_u64(DATA, due + 8, A),
    ]);
    program.place(plain);
}

fn hand_over(program: &mut Assembler, links: &impl AsFd) {
    program.map(1, links);
    program.then([
        I::load_u64(2, ROW, at(ROWS) + ROW_BYTES as i16),
        I::set(3, 0),
        I::call(REDIRECT_MAP),
        I::exit(),
    ]);
}

#[cfg(test)]
mod tests;
