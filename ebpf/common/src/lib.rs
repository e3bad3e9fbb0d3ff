//! What the kernel's programs and userspace agree on: the layout of every map, and the arithmetic
//! both sides do. Nothing here allocates, depends on anything, or knows who calls it.
//!
//! Multi-byte fields that come from a packet are byte arrays in network byte order; everything else
//! is in the machine's own order. Structures have no padding, so that their bytes are their value.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod checksum;
pub mod gcra;
pub mod lease;
pub mod meter;
pub mod rate;
pub mod reason;
pub mod route;
pub mod strangers;
