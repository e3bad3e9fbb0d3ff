//! What arrives at a far end: an XDP program counts a load's packets by where their payload begins,
//! notes the kernel's time of each, and takes them away. All else passes.

use std::sync::atomic::Ordering;

use towpath_bench::assembler::{Assembler, Instruction as I, KTIME_GET_NS, verdict};
use towpath_bench::bpf::{SharedValue, XdpLink, XdpProgram};
use towpath_bench::packet::{MAGIC, Stamp};
use towpath_bench::sys;

use crate::lab::Host;

/// Kinds of packets that one interface tells apart.
const MAX_KINDS: usize = 2;
/// Packets whose time is noted; those that follow are only counted.
const MAX_TIMES: usize = 1 << 17;

/// Of each kind.
const PACKETS: usize = 0;
const PAYLOAD_BYTES: usize = 1;
const KIND_WORDS: usize = 2;
/// Of all.
const LAST: usize = MAX_KINDS * KIND_WORDS;
const NOTED: usize = LAST + 1;
const TIMES: usize = NOTED + 1;

/// Where a payload begins in a frame over IPv4.
pub mod payload_at {
    /// As plain UDP: behind the headers of Ethernet, IPv4 and UDP.
    pub const PLAIN: usize = 42;
    /// On a channel.
    pub const CHANNEL: usize = PLAIN + 4;
    /// In a Data indication: behind STUN's header, XOR-PEER-ADDRESS, and the type and length of DATA.
    pub const INDICATION: usize = PLAIN + 20 + 12 + 4;
}

/// The far end of one interface.
pub struct Arrivals {
    memory: SharedValue,
    _link: XdpLink,
}

impl Arrivals {
    /// Counts on `interface` of `host` from here on. `offsets`: where the payload begins in the packets
    /// of each kind.
    ///
    /// # Panics
    ///
    /// Where there are more kinds than are told apart, or no program can be attached.
    pub fn at(host: &Host, interface: &str, offsets: &[usize]) -> Self {
        assert!(offsets.len() <= MAX_KINDS, "{offsets:?}");
        let memory = SharedValue::new(TIMES + MAX_TIMES).expect("root may make a map");
        let program = XdpProgram::load(&program(&memory, offsets)).expect("the program loads");
        let link = host.inside(|| {
            let index = sys::interface_index(interface).expect("the interface exists");
            program.attach(index).expect("a program can be attached")
        });
        Self {
            memory,
            _link: link,
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.memory.clear();
    }

    /// Packets of a kind.
    pub fn packets(&self, kind: usize) -> u64 {
        self.word(kind * KIND_WORDS + PACKETS)
    }

    /// Bytes of payload of a kind.
    pub fn payload_bytes(&self, kind: usize) -> u64 {
        self.word(kind * KIND_WORDS + PAYLOAD_BYTES)
    }

    /// Packets of all kinds.
    pub fn all_packets(&self) -> u64 {
        (0..MAX_KINDS).map(|kind| self.packets(kind)).sum()
    }

    /// When the last one came, in nanoseconds of CLOCK_MONOTONIC.
    pub fn last_ns(&self) -> u64 {
        self.word(LAST)
    }

    /// When each came, in nanoseconds of CLOCK_MONOTONIC.
    ///
    /// # Panics
    ///
    /// Where more came than can be noted.
    pub fn times_ns(&self) -> Vec<u64> {
        let noted = self.word(NOTED);
        assert_eq!(noted, self.all_packets(), "more than {MAX_TIMES} packets");
        let times = &self.memory.words()[TIMES..][..noted as usize];
        times
            .iter()
            .map(|time| time.load(Ordering::Relaxed))
            .collect()
    }

    fn word(&self, word: usize) -> u64 {
        self.memory.words()[word].load(Ordering::Relaxed)
    }
}

/// ```text
///   for each kind: magic word at its offset → count packet and bytes, note the time, DROP
///   PASS
/// ```
fn program(memory: &SharedValue, offsets: &[usize]) -> Vec<I> {
    const RESULT: u8 = 0;
    const CONTEXT: u8 = 1;
    const A: u8 = 2;
    const B: u8 = 3;
    const DATA: u8 = 6;
    const END: u8 = 7;
    const MEMORY: u8 = 8;
    const LENGTH: u8 = 9;
    const fn at(word: usize) -> i16 {
        (word * 8) as i16
    }

    let mut program = Assembler::default();
    let (note, drop) = (program.label(), program.label());
    program.then([I::load_u32(DATA, CONTEXT, 0), I::load_u32(END, CONTEXT, 4)]);
    for (kind, &offset) in offsets.iter().enumerate() {
        let other = program.label();
        let end = offset + Stamp::MAGIC_OFFSET + MAGIC.len();
        program.then([I::copy(A, DATA), I::add(A, end as i32)]);
        program.jump(I::jump_if_greater(A, END), other);
        let magic = (offset + Stamp::MAGIC_OFFSET) as i16;
        program.then([I::load_u32(A, DATA, magic)]);
        program.jump(
            I::jump_if_low_not_equal(A, i32::from_ne_bytes(MAGIC)),
            other,
        );
        program.then([
            I::copy(LENGTH, END),
            I::subtract_register(LENGTH, DATA),
            I::add(LENGTH, -(offset as i32)),
        ]);
        program.map_value(MEMORY, memory);
        let word = kind * KIND_WORDS;
        program.then([
            I::load_u64(A, MEMORY, at(word + PACKETS)),
            I::add(A, 1),
            I::store_u64(MEMORY, at(word + PACKETS), A),
            I::load_u64(A, MEMORY, at(word + PAYLOAD_BYTES)),
            I::add_register(A, LENGTH),
            I::store_u64(MEMORY, at(word + PAYLOAD_BYTES), A),
        ]);
        program.jump(I::jump(), note);
        program.place(other);
    }
    program.then([I::set(RESULT, verdict::PASS), I::exit()]);
    program.place(note);
    program.then([
        I::call(KTIME_GET_NS),
        I::store_u64(MEMORY, at(LAST), RESULT),
        I::load_u64(A, MEMORY, at(NOTED)),
    ]);
    program.jump(I::jump_if_at_least(A, MAX_TIMES as i32), drop);
    program.then([
        I::copy(B, A),
        I::add(B, 1),
        I::store_u64(MEMORY, at(NOTED), B),
        I::shift_left(A, 3),
        I::add_register(MEMORY, A),
        I::store_u64(MEMORY, at(TIMES), RESULT),
    ]);
    program.place(drop);
    program.then([I::set(RESULT, verdict::DROP), I::exit()]);
    program.finish()
}
