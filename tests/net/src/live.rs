//! Load at rates that no socket reaches: frames that the kernel itself makes and puts on a link, on one
//! CPU or on several at once.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use towpath_bench::bpf::DeviceMap;
use towpath_bench::frames::{FrameGenerator, Side};
use towpath_bench::generator::{Outcome, Schedule};
use towpath_bench::sys::{self, Scheduling};

use crate::lab::Host;
use crate::load::Offered;

/// Ahead of ordinary threads, behind those that watch.
const PRIORITY: u32 = 10;
/// At more packets a second than this, a generator that has to wait for its CPU does not keep up.
const URGENT_PPS: f64 = 100_000.0;

/// Sends these frames in turn from `interface` of `host` for this long. The rate is divided among so many
/// CPUs, and each sends all frames. Every frame carries [`payload`](crate::load::payload) on a channel.
///
/// # Panics
///
/// Where the kernel does not run such programs, or the CPUs are not there.
pub fn offer_live(
    host: &Host,
    interface: &str,
    frames: &[Vec<u8>],
    rate_pps: f64,
    duration: Duration,
    cpus: usize,
) -> Offered {
    let links = DeviceMap::new(2).expect("root may make a map");
    host.inside(|| {
        let index = sys::interface_index(interface).expect("the interface exists");
        links.set(Side::Client as u32, index)
    })
    .expect("an interface can be sent to");
    let frames: Vec<_> = frames
        .iter()
        .map(|frame| (Side::Client, frame.clone()))
        .collect();
    let schedule = Schedule {
        rate_pps: rate_pps / cpus as f64,
        duration_ns: u64::try_from(duration.as_nanos()).expect("a short time"),
        quantum_ns: 0,
        unit: 1,
    };
    let together = Barrier::new(cpus);
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let send = |cpu| {
            let (links, frames, together) = (&links, &frames, &together);
            move || {
                let generator = FrameGenerator::with_links(links, frames);
                let pinned = sys::pin_to_cpu(0, cpu);
                if rate_pps > URGENT_PPS {
                    // Without the privilege the machine makes pauses.
                    let _ = sys::schedule(0, Scheduling::Fifo(PRIORITY));
                }
                together.wait();
                let mut generator = generator.expect("the generator's program loads");
                pinned.expect("the CPU is there");
                generator.run(schedule).expect("the generator runs")
            }
        };
        let senders: Vec<_> = (0..cpus).map(|cpu| scope.spawn(send(cpu))).collect();
        let outcomes = senders.into_iter().map(|sender| sender.join());
        outcomes
            .map(|outcome| outcome.expect("a generator does not panic"))
            .collect()
    });
    let began = || outcomes.iter().map(|outcome| outcome.started_ns);
    let ended_ns = outcomes.iter().map(|outcome| outcome.ended_ns).max();
    let began_ns = began().min().expect("somebody sends");
    Offered {
        due: outcomes.iter().map(|outcome| outcome.due).sum(),
        sent: outcomes.iter().map(|outcome| outcome.sent).sum(),
        began_ns,
        ended_ns: ended_ns.expect("somebody sends"),
        apart_ns: began().max().expect("somebody sends") - began_ns,
    }
}
