//! Where servers are measured: namespaces, and the sinks in them.

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::load::Sinks;
use crate::rig::{BENCH_CPU, Rig};
use crate::sys::{self, Scheduling};

const GENERATOR_PRIORITY: u32 = 10;

/// Namespaces with sinks. Servers that cannot share interfaces have a place each.
pub struct Place {
    /// The namespaces.
    pub rig: Rig,
    /// The sinks at both ends.
    pub sinks: Sinks,
}

impl Place {
    /// Builds the namespaces and attaches the sinks. `number` tells the places of a process apart.
    pub fn build(number: usize) -> Result<Self> {
        let mut rig = Rig::build(number).context("building the namespaces (this needs root)")?;
        let sinks = Sinks::attach(&rig)?;
        rig.thread_napi()?;
        Ok(Self { rig, sinks })
    }
}

/// Makes the calling thread the generator: on the bench's CPU, ahead of everything but the sinks.
pub fn become_generator() -> Result<()> {
    sys::pin_to_cpu(0, BENCH_CPU)?;
    Ok(sys::schedule(0, Scheduling::Fifo(GENERATOR_PRIORITY))?)
}

/// A bar that draws on a terminal only.
pub fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} [{bar:30}] {eta} {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
