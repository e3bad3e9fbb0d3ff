//! Fuzz targets as plain functions of bytes: they return, or they panic and have found something.
//!
//! They are run two ways. `cargo test` replays the committed corpus (`corpus/<target>/`) and what
//! random bytes make of it; `cargo xtask fuzz [--seconds N] [TARGET]` drives the same functions with
//! libFuzzer, guided by coverage. A crash that libFuzzer finds is a file: copied into the corpus, it
//! is a test from then on.
#![forbid(unsafe_code)]

mod binding;
mod bytes;
mod channel_data;
mod client;
mod config;
mod credentials;
mod message;
mod node;
mod packet_path;
mod relay;
mod units;
mod writer;

use towpath_vectors::oracle::{compare_with_stun_codec, compare_with_stun_types};

/// A function to feed with arbitrary bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name on the command line, and its corpus's directory.
    pub name: &'static str,
    /// The function. Panics where an invariant does not hold.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "message",
        run: message::fuzz,
    },
    Target {
        name: "channel-data",
        run: channel_data::fuzz,
    },
    Target {
        name: "writer",
        run: writer::fuzz,
    },
    Target {
        name: "credentials",
        run: credentials::fuzz,
    },
    Target {
        name: "config",
        run: config::fuzz,
    },
    Target {
        name: "units",
        run: units::fuzz,
    },
    Target {
        name: "binding",
        run: binding::fuzz,
    },
    Target {
        name: "client",
        run: client::fuzz,
    },
    Target {
        name: "relay",
        run: relay::fuzz,
    },
    Target {
        name: "node",
        run: node::fuzz,
    },
    Target {
        name: "packet-path",
        run: packet_path::fuzz,
    },
    Target {
        name: "stun-types",
        run: fuzz_stun_types,
    },
    Target {
        name: "stun-codec",
        run: fuzz_stun_codec,
    },
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}

fn fuzz_stun_types(data: &[u8]) {
    if let Err(disagreement) = compare_with_stun_types(data) {
        panic!("{disagreement}");
    }
}

fn fuzz_stun_codec(data: &[u8]) {
    if let Err(disagreement) = compare_with_stun_codec(data) {
        panic!("{disagreement}");
    }
}
