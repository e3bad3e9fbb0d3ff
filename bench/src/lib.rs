//! Measures relays side by side: see `docs/BENCHMARKS.md` for the method.

pub mod allocations;
pub mod assembler;
pub mod batch;
pub mod bpf;
pub mod control;
pub mod coturn;
pub mod cpu;
pub mod forwarder;
pub mod frames;
pub mod generator;
pub mod kernel;
pub mod latency;
pub mod load;
pub mod memory;
pub mod micro;
pub mod packet;
pub mod place;
pub mod programs;
pub mod relay;
pub mod report;
pub mod results;
pub mod rewriter;
pub mod rig;
pub mod scratch;
pub mod search;
pub mod server;
pub mod sink;
#[cfg(test)]
mod skip;
pub mod statistics;
pub mod svg;
pub mod sys;
pub mod throughput;
pub mod timings;
pub mod towpath;
pub mod turn;
pub mod usage;
