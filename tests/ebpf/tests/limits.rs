//! How far the program is from what the kernel's verifier allows.

use object::{Object, ObjectSection};
use towpath_ebpf_tests::{OBJECT, Program};

/// Instructions as loaded. The kernel allows a million; every one costs time.
const MAX_INSTRUCTIONS: u32 = 4500;
/// Instructions the verifier walks before it believes the program. It gives up after a million.
const MAX_VERIFIED: u32 = 100_000;
/// The kernel allows 512 bytes.
const MAX_STACK_BYTES: i32 = 384;

#[test]
fn the_verifier_believes_the_program_by_a_wide_margin() {
    let Some(program) = Program::load().expect("the program loads") else {
        return towpath_net::skip("loading programs into the kernel needs root");
    };
    let info = program.info().expect("what the kernel says");
    let instructions = info.size_translated().expect("Linux 4.15") / 8;
    assert!(instructions <= MAX_INSTRUCTIONS, "{instructions}");
    let verified = info.verified_instruction_count().expect("Linux 5.16");
    assert!(verified <= MAX_VERIFIED, "{verified}");
}

#[test]
fn the_program_uses_little_stack() {
    let object = object::File::parse(OBJECT).expect("an ELF object");
    let mut deepest = 0;
    for section in ["xdp", ".text"] {
        let section = object.section_by_name(section).expect("the section");
        let code = section.data().expect("its bytes");
        deepest = deepest.max(stack_bytes(code));
    }
    assert!((1..=MAX_STACK_BYTES).contains(&deepest), "{deepest}");
}

/// The deepest place below the frame pointer (register 10) that is read, written or pointed to.
fn stack_bytes(code: &[u8]) -> i32 {
    const FRAME_POINTER: u8 = 10;
    const MOVE: u8 = 0xbf;
    const ADD: u8 = 0x07;
    let mut deepest = 0;
    let mut pointer = None;
    for instruction in code.chunks_exact(8) {
        let [code, registers, o0, o1, i0, i1, i2, i3] = *instruction else {
            unreachable!("eight bytes");
        };
        let (destination, source) = (registers & 0xf, registers >> 4);
        let offset = i32::from(i16::from_le_bytes([o0, o1]));
        let value = i32::from_le_bytes([i0, i1, i2, i3]);
        // The last three bits are the class: 1 loads by the source, 2 and 3 store by the destination.
        let base = match code & 7 {
            1 => source,
            2 | 3 => destination,
            _ => FRAME_POINTER + 1,
        };
        if base == FRAME_POINTER {
            deepest = deepest.max(-offset);
        }
        if code == ADD && pointer == Some(destination) {
            deepest = deepest.max(-value);
        }
        pointer = (code == MOVE && source == FRAME_POINTER).then_some(destination);
    }
    deepest
}
