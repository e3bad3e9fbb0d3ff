//! Load of many flows at rates of their own, counted where it leaves and where it arrives.
//!
//! Frames leave from packet sockets, so that a packet costs little; nothing waits for the relay.

use std::thread;
use std::time::{Duration, Instant};

use towpath_bench::generator::{BATCH, Stream};
use towpath_bench::packet::Stamp;
use towpath_bench::sys::{self, Scheduling};

use crate::frame::Datagram;
use crate::lab::Host;

/// How long the generator rests between two rounds.
const REST: Duration = Duration::from_micros(300);

/// Ahead of ordinary threads, behind those that watch.
const PRIORITY: u32 = 10;

/// The payload of a load's packets, which [`Arrivals`](crate::Arrivals) counts.
///
/// # Panics
///
/// Where it is shorter than 28 bytes.
pub fn payload(bytes: usize) -> Vec<u8> {
    let mut payload = vec![0x5A; bytes];
    Stamp::default().write(&mut payload);
    payload
}

/// One flow that is offered.
pub struct Source {
    stream: Stream,
    /// Packets per second.
    pub rate_pps: f64,
    sent: u64,
}

/// What was sent, and when.
#[derive(Clone, Copy, Debug)]
pub struct Offered {
    /// Packets that were to leave.
    pub due: u64,
    /// Packets that have left.
    pub sent: u64,
    /// Before the first one left, in nanoseconds of CLOCK_MONOTONIC.
    pub began_ns: u64,
    /// Before the last one left.
    pub ended_ns: u64,
    /// How much later than the first of several senders the last one began.
    pub apart_ns: u64,
}

impl Source {
    /// A source on `interface` of `host` that sends this datagram again and again. `data` is the part of
    /// its payload that [`payload`] made.
    pub fn new(
        host: &Host,
        interface: &str,
        datagram: &Datagram,
        data: &[u8],
        rate_pps: f64,
    ) -> Self {
        Self::of_many(
            host,
            interface,
            std::slice::from_ref(datagram),
            data,
            rate_pps,
        )
    }

    /// As [`new`](Self::new), with several datagrams of one length in turn.
    pub fn of_many(
        host: &Host,
        interface: &str,
        datagrams: &[Datagram],
        data: &[u8],
        rate_pps: f64,
    ) -> Self {
        let frames: Vec<_> = datagrams.iter().map(Datagram::frame).collect();
        let offset = frames[0]
            .windows(data.len())
            .position(|window| window == data)
            .expect("the datagram carries the data");
        let stream = host.inside(|| {
            let index = sys::interface_index(interface).expect("the interface exists");
            Stream::new(index, &frames, offset, 1).expect("root may open a packet socket")
        });
        Self {
            stream,
            rate_pps,
            sent: 0,
        }
    }

    /// Packets that have left.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends `count` packets, and gives way where the interface takes no more.
    pub fn send(&mut self, count: u64) {
        let mut left = count;
        while left > 0 {
            let taken = self.try_send(left);
            left -= taken;
            if taken == 0 {
                thread::sleep(REST);
            }
        }
    }

    /// Sends at most `count` packets, and no more than one system call takes.
    fn try_send(&mut self, count: u64) -> u64 {
        let some = count.min(BATCH as u64) as usize;
        let taken = self.stream.send(some, sys::now_ns());
        let taken = taken.expect("the interface is up") as u64;
        self.sent += taken;
        taken
    }
}

impl Offered {
    /// How long it took.
    pub fn seconds(&self) -> f64 {
        (self.ended_ns - self.began_ns) as f64 / 1e9
    }
}

/// Offers all sources at their rates for this long. Who is late catches up, in turn with the others.
pub fn offer(sources: &mut [Source], duration: Duration) -> Offered {
    let urgently = || {
        // Without the privilege the machine makes pauses.
        let _ = sys::schedule(0, Scheduling::Fifo(PRIORITY));
        offer_here(sources, duration)
    };
    thread::scope(|scope| scope.spawn(urgently).join()).expect("a sender does not panic")
}

fn offer_here(sources: &mut [Source], duration: Duration) -> Offered {
    let began_ns = sys::now_ns();
    let already: Vec<u64> = sources.iter().map(Source::sent).collect();
    let mut ended_ns = began_ns;
    loop {
        let now_ns = sys::now_ns();
        let elapsed = Duration::from_nanos(now_ns - began_ns).min(duration);
        let mut late = false;
        for (source, already) in sources.iter_mut().zip(&already) {
            let due = (elapsed.as_secs_f64() * source.rate_pps) as u64 + 1;
            let owed = due.saturating_sub(source.sent - already);
            if owed > 0 {
                let taken = source.try_send(owed);
                late |= 0 < taken && taken < owed;
                if taken > 0 {
                    ended_ns = now_ns;
                }
            }
        }
        if elapsed == duration && !late {
            break;
        }
        if !late {
            thread::sleep(REST);
        }
    }
    let sent = sources.iter().map(Source::sent).sum::<u64>() - already.iter().sum::<u64>();
    Offered {
        due: sent,
        sent,
        began_ns,
        ended_ns,
        apart_ns: 0,
    }
}

/// Looks at a number until it is `expected`, or has not changed for a while, in which what is under way
/// arrives; gives the last.
pub fn settled(expected: u64, mut look: impl FnMut() -> u64) -> u64 {
    const QUIET: Duration = Duration::from_millis(700);
    let (mut last, mut since) = (look(), Instant::now());
    while last != expected && since.elapsed() < QUIET {
        thread::sleep(Duration::from_millis(5));
        let now = look();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}
