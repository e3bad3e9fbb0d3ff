//! Where relayed packets end: an XDP program at the receiving end of a link that counts them exactly,
//! notes the delay of the sampled ones, and drops them. What is not a packet of the bench passes.

use std::io;
use std::sync::atomic::Ordering;

use crate::assembler::{Assembler, Instruction as I, KTIME_GET_NS, verdict};
use crate::bpf::{SharedValue, XdpLink, XdpProgram};
use crate::packet::{MAGIC, Stamp};

/// Delay samples of one run; sample numbers go from 1 to below this.
pub const SAMPLE_CAPACITY: u32 = 1 << 18;

const PACKETS_WORD: usize = 0;
const HEADER_WORDS: usize = 8;

/// A counting sink on one interface.
pub struct Sink {
    memory: SharedValue,
    _link: XdpLink,
}

impl Sink {
    /// Attaches a sink to an interface of the caller's namespace. `payload_offset`: where in the frame
    /// the bench's payload begins.
    pub fn attach(interface: u32, payload_offset: usize) -> io::Result<Self> {
        let memory = SharedValue::new(HEADER_WORDS + SAMPLE_CAPACITY as usize)?;
        let program = XdpProgram::load(&program(&memory, payload_offset))?;
        let link = program.attach(interface)?;
        Ok(Self {
            memory,
            _link: link,
        })
    }

    /// Forgets everything counted.
    pub fn clear(&self) {
        self.memory.clear();
    }

    /// Packets counted since the last clearing.
    pub fn packets(&self) -> u64 {
        self.memory.words()[PACKETS_WORD].load(Ordering::Relaxed)
    }

    /// The delays, in nanoseconds, of the samples that arrived among the first `count`.
    pub fn delays_ns(&self, count: u32) -> Vec<u64> {
        let first = HEADER_WORDS + 1;
        let end = HEADER_WORDS + (count.min(SAMPLE_CAPACITY - 1) as usize) + 1;
        let words = &self.memory.words()[first..end];
        words
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .filter(|&delay| delay != 0)
            .collect()
    }
}

/// ```text
///   frame too short or without the magic word → PASS
///   count it; sample number in 1..SAMPLE_CAPACITY → delay[number] = now − scheduled time
///   DROP
/// ```
fn program(memory: &SharedValue, payload_offset: usize) -> Vec<I> {
    const VERDICT: u8 = 0;
    const CONTEXT: u8 = 1;
    const DATA: u8 = 2;
    const END: u8 = 3;
    const SCRATCH: u8 = 4;
    const VALUE: u8 = 7;
    const NUMBER: u8 = 8;
    const SCHEDULED: u8 = 9;

    let offset = payload_offset as i16;
    let samples_offset = (HEADER_WORDS * 8) as i16;
    let mut sink = Assembler::default();
    let (drop, pass) = (sink.label(), sink.label());
    sink.then([
        I::load_u32(DATA, CONTEXT, 0),
        I::load_u32(END, CONTEXT, 4),
        I::copy(SCRATCH, DATA),
        I::add(SCRATCH, (payload_offset + Stamp::BYTES) as i32),
    ]);
    sink.jump(I::jump_if_greater(SCRATCH, END), pass);
    sink.then([I::load_u32(
        SCRATCH,
        DATA,
        offset + Stamp::MAGIC_OFFSET as i16,
    )]);
    let magic = i32::from_ne_bytes(MAGIC);
    sink.jump(I::jump_if_low_not_equal(SCRATCH, magic), pass);
    sink.map_value(VALUE, memory);
    sink.then([
        I::load_u64(SCRATCH, VALUE, (PACKETS_WORD * 8) as i16),
        I::add(SCRATCH, 1),
        I::store_u64(VALUE, (PACKETS_WORD * 8) as i16, SCRATCH),
        I::load_u32(NUMBER, DATA, offset + Stamp::NUMBER_OFFSET as i16),
    ]);
    sink.jump(I::jump_if_equal(NUMBER, 0), drop);
    sink.jump(I::jump_if_at_least(NUMBER, SAMPLE_CAPACITY as i32), drop);
    sink.then([
        I::load_u64(SCHEDULED, DATA, offset + Stamp::SCHEDULED_OFFSET as i16),
        I::call(KTIME_GET_NS),
        I::subtract_register(VERDICT, SCHEDULED),
        I::shift_left(NUMBER, 3),
        I::add_register(VALUE, NUMBER),
        I::store_u64(VALUE, samples_offset, VERDICT),
    ]);
    sink.place(drop);
    sink.then([I::set(VERDICT, verdict::DROP), I::exit()]);
    sink.place(pass);
    sink.then([I::set(VERDICT, verdict::PASS), I::exit()]);
    sink.finish()
}
