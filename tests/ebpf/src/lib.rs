//! The relay's program on a bench: packets are handed to it by `BPF_PROG_TEST_RUN`, and what comes
//! out is compared byte for byte. No interface is touched and no packet leaves. Needs root.

pub mod model;
pub mod packet;
mod program;
pub mod shape;
pub mod twin;

pub use program::{OBJECT, Outcome, Program, RUN_INTERFACE, Verdict, now};
