//! eBPF instructions, and an assembler that finds the distances of jumps. Enough for the bench's own
//! programs, and no eBPF toolchain is needed to build them.

use std::os::fd::{AsFd, AsRawFd};

/// Helper number of `bpf_map_lookup_elem`.
pub const MAP_LOOKUP_ELEM: i32 = 1;
/// Helper number of `bpf_ktime_get_ns`.
pub const KTIME_GET_NS: i32 = 5;
/// Helper number of `bpf_redirect`.
pub const REDIRECT: i32 = 23;
/// Helper number of `bpf_xdp_adjust_head`.
pub const XDP_ADJUST_HEAD: i32 = 44;

/// Helper number of `bpf_redirect_map`.
pub const REDIRECT_MAP: i32 = 51;

/// Verdicts of an XDP program.
pub mod verdict {
    /// The packet is dropped.
    pub const DROP: i32 = 1;
    /// The stack gets it.
    pub const PASS: i32 = 2;
    /// It leaves by the interface it came by.
    pub const TX: i32 = 3;
    /// It leaves by the interface `bpf_redirect` was told.
    pub const REDIRECT: i32 = 4;
}

/// One instruction.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const _: () = assert!(
    size_of::<Instruction>() == 8,
    "the kernel's instruction has eight bytes"
);

const PSEUDO_MAP: u8 = 1;
const PSEUDO_MAP_VALUE: u8 = 2;

/// Register 10: end of the stack frame.
pub const FRAME: u8 = 10;

impl Instruction {
    const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        Self {
            code,
            registers: source << 4 | destination,
            offset,
            immediate,
        }
    }

    /// `destination = immediate`
    pub const fn set(destination: u8, immediate: i32) -> Self {
        Self::new(0xb7, destination, 0, 0, immediate)
    }

    /// `destination = source`
    pub const fn copy(destination: u8, source: u8) -> Self {
        Self::new(0xbf, destination, source, 0, 0)
    }

    /// `destination += immediate`
    pub const fn add(destination: u8, immediate: i32) -> Self {
        Self::new(0x07, destination, 0, 0, immediate)
    }

    /// `destination += source`
    pub const fn add_register(destination: u8, source: u8) -> Self {
        Self::new(0x0f, destination, source, 0, 0)
    }

    /// `destination -= source`
    pub const fn subtract_register(destination: u8, source: u8) -> Self {
        Self::new(0x1f, destination, source, 0, 0)
    }

    /// `destination *= immediate`
    pub const fn multiply(destination: u8, immediate: i32) -> Self {
        Self::new(0x27, destination, 0, 0, immediate)
    }

    /// `destination *= source`
    pub const fn multiply_register(destination: u8, source: u8) -> Self {
        Self::new(0x2f, destination, source, 0, 0)
    }

    /// `destination /= source`, unsigned; 0 where the source is.
    pub const fn divide_register(destination: u8, source: u8) -> Self {
        Self::new(0x3f, destination, source, 0, 0)
    }

    /// `destination &= immediate`
    pub const fn and(destination: u8, immediate: i32) -> Self {
        Self::new(0x57, destination, 0, 0, immediate)
    }

    /// `destination ^= immediate`
    pub const fn exclusive_or(destination: u8, immediate: i32) -> Self {
        Self::new(0xa7, destination, 0, 0, immediate)
    }

    /// `destination <<= immediate`
    pub const fn shift_left(destination: u8, immediate: i32) -> Self {
        Self::new(0x67, destination, 0, 0, immediate)
    }

    /// `destination >>= immediate`
    pub const fn shift_right(destination: u8, immediate: i32) -> Self {
        Self::new(0x77, destination, 0, 0, immediate)
    }

    /// `destination =` its low 16 bits, from the machine's byte order to the network's or back.
    pub const fn big_endian_16(destination: u8) -> Self {
        Self::new(0xdc, destination, 0, 0, 16)
    }

    /// `destination = *(u8 *)(source + offset)`
    pub const fn load_u8(destination: u8, source: u8, offset: i16) -> Self {
        Self::new(0x71, destination, source, offset, 0)
    }

    /// `destination = *(u16 *)(source + offset)`
    pub const fn load_u16(destination: u8, source: u8, offset: i16) -> Self {
        Self::new(0x69, destination, source, offset, 0)
    }

    /// `destination = *(u32 *)(source + offset)`
    pub const fn load_u32(destination: u8, source: u8, offset: i16) -> Self {
        Self::new(0x61, destination, source, offset, 0)
    }

    /// `destination = *(u64 *)(source + offset)`
    pub const fn load_u64(destination: u8, source: u8, offset: i16) -> Self {
        Self::new(0x79, destination, source, offset, 0)
    }

    /// `*(u16 *)(destination + offset) = source`
    pub const fn store_u16(destination: u8, offset: i16, source: u8) -> Self {
        Self::new(0x6b, destination, source, offset, 0)
    }

    /// `*(u32 *)(destination + offset) = source`
    pub const fn store_u32(destination: u8, offset: i16, source: u8) -> Self {
        Self::new(0x63, destination, source, offset, 0)
    }

    /// `*(u64 *)(destination + offset) = source`
    pub const fn store_u64(destination: u8, offset: i16, source: u8) -> Self {
        Self::new(0x7b, destination, source, offset, 0)
    }

    /// Jumps always.
    pub const fn jump() -> Self {
        Self::new(0x05, 0, 0, 0, 0)
    }

    /// Jumps where `left > right`.
    pub const fn jump_if_greater(left: u8, right: u8) -> Self {
        Self::new(0x2d, left, right, 0, 0)
    }

    /// Jumps where `left <= right`.
    pub const fn jump_if_not_greater(left: u8, right: u8) -> Self {
        Self::new(0xbd, left, right, 0, 0)
    }

    /// Jumps where `left == immediate`.
    pub const fn jump_if_equal(left: u8, immediate: i32) -> Self {
        Self::new(0x15, left, 0, 0, immediate)
    }

    /// Jumps where `left != immediate`.
    pub const fn jump_if_not_equal(left: u8, immediate: i32) -> Self {
        Self::new(0x55, left, 0, 0, immediate)
    }

    /// Jumps where `left != right`.
    pub const fn jump_if_registers_differ(left: u8, right: u8) -> Self {
        Self::new(0x5d, left, right, 0, 0)
    }

    /// Jumps where `left >= immediate`.
    pub const fn jump_if_at_least(left: u8, immediate: i32) -> Self {
        Self::new(0x35, left, 0, 0, immediate)
    }

    /// Jumps where the low half of `left` is not `immediate`.
    pub const fn jump_if_low_not_equal(left: u8, immediate: i32) -> Self {
        Self::new(0x56, left, 0, 0, immediate)
    }

    /// Calls a helper.
    pub const fn call(helper: i32) -> Self {
        Self::new(0x85, 0, 0, 0, helper)
    }

    /// Ends the program with the verdict in register 0.
    pub const fn exit() -> Self {
        Self::new(0x95, 0, 0, 0, 0)
    }
}

/// A place in a program, known or not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// Puts a program together.
#[derive(Default)]
pub struct Assembler {
    instructions: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
    places: Vec<Option<usize>>,
}

impl Assembler {
    /// A place that jumps may name before it is known.
    pub fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// The label stands here.
    pub fn place(&mut self, label: Label) {
        let place = &mut self.places[label.0];
        assert!(place.is_none(), "a label stands at one place only");
        *place = Some(self.instructions.len());
    }

    /// Appends instructions that do not jump.
    pub fn then<const N: usize>(&mut self, instructions: [Instruction; N]) {
        self.instructions.extend(instructions);
    }

    /// Appends a jump.
    pub fn jump(&mut self, jump: Instruction, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.instructions.push(jump);
    }

    /// `destination =` address of the only value of an array.
    pub fn map_value(&mut self, destination: u8, map: &impl AsFd) {
        self.wide(destination, PSEUDO_MAP_VALUE, map);
    }

    /// `destination =` a map, for helpers.
    pub fn map(&mut self, destination: u8, map: &impl AsFd) {
        self.wide(destination, PSEUDO_MAP, map);
    }

    fn wide(&mut self, destination: u8, kind: u8, map: &impl AsFd) {
        let fd = map.as_fd().as_raw_fd();
        self.then([
            Instruction::new(0x18, destination, kind, 0, fd),
            Instruction::new(0, 0, 0, 0, 0),
        ]);
    }

    /// The program, with its jumps.
    pub fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let place = self.places[label.0].expect("every label is placed");
            let distance = place as i64 - at as i64 - 1;
            self.instructions[at].offset =
                i16::try_from(distance).expect("the programs here are short");
        }
        self.instructions
    }
}

#[cfg(test)]
mod tests {
    use super::Instruction as I;
    use super::*;

    #[test]
    fn jumps_skip_what_lies_between_them_and_their_label() {
        let mut assembler = Assembler::default();
        let (end, next) = (assembler.label(), assembler.label());
        assembler.jump(I::jump_if_equal(1, 0), end);
        assembler.jump(I::jump(), next);
        assembler.place(next);
        assembler.then([I::set(0, 1), I::set(0, 2)]);
        assembler.place(end);
        assembler.then([I::exit()]);
        let program = assembler.finish();
        assert_eq!((program[0].offset, program[1].offset), (3, 0));
    }
}
