//! Open-loop load: prepared frames of many flows, sent from packet sockets at scheduled times.
//!
//! The stack of the sending namespace is bypassed, so that a packet costs little on the bench's CPU. All
//! streams are served by one thread, which never waits for the server.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};

use crate::packet::Stamp;
use crate::sink::SAMPLE_CAPACITY;
use crate::sys;

/// Most packets sent in one system call.
pub const BATCH: usize = 64;
const SEND_BUFFER_BYTES: i32 = 64 << 20;

/// Frames of several flows that leave through one interface.
pub struct Stream {
    socket: OwnedFd,
    /// All frames, back to back. Not moved or resized while `headers` point into it.
    frames: Box<[u8]>,
    frame_bytes: usize,
    payload_offset: usize,
    vectors: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    cycle: usize,
    position: usize,
    scratch: Box<[u8]>,
    samples: u32,
    sent: u64,
}

// SAFETY: the raw pointers point into the stream's own boxes, which move with it.
unsafe impl Send for Stream {}

impl Stream {
    /// A stream on an interface of the caller's namespace. All `frames` have one length; `burst` packets
    /// of a flow follow each other before the next flow's turn.
    pub fn new(
        interface: u32,
        frames: &[Vec<u8>],
        payload_offset: usize,
        burst: usize,
    ) -> Result<Self> {
        let frame_bytes = frames.first().map_or(0, Vec::len);
        ensure!(
            frame_bytes >= payload_offset + Stamp::BYTES,
            "frames too short for a stamp"
        );
        ensure!(
            frames.iter().all(|frame| frame.len() == frame_bytes),
            "frames differ in length"
        );
        let socket = sys::packet_socket(interface, 0).context("opening a packet socket")?;
        let fd = socket.as_raw_fd();
        sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
        sys::set_option(
            fd,
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            SEND_BUFFER_BYTES,
        )?;
        let cycle = frames.len() * burst;
        let mut stream = Self {
            socket,
            frames: frames.concat().into_boxed_slice(),
            frame_bytes,
            payload_offset,
            vectors: Box::new([]),
            headers: Box::new([]),
            cycle,
            position: 0,
            scratch: vec![0; frame_bytes].into_boxed_slice(),
            samples: 0,
            sent: 0,
        };
        stream.point_headers(burst);
        Ok(stream)
    }

    /// One header for each packet of the cycle, and the first ones again behind it, so that every batch
    /// is one slice.
    fn point_headers(&mut self, burst: usize) {
        let count = self.cycle + BATCH;
        let frame_bytes = self.frame_bytes;
        let frames = self.frames.as_mut_ptr();
        let vector = |packet: usize| {
            let flow = packet % self.cycle / burst;
            // Not an access, only an address within the box: flow is below the number of frames.
            libc::iovec {
                iov_base: frames.wrapping_add(flow * frame_bytes).cast(),
                iov_len: frame_bytes,
            }
        };
        self.vectors = (0..count).map(vector).collect();
        let vectors = self.vectors.as_mut_ptr();
        let header = |packet: usize| {
            // SAFETY: all zero is a valid header: null pointers with zero lengths.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_iov = vectors.wrapping_add(packet);
            header.msg_hdr.msg_iovlen = 1;
            header
        };
        self.headers = (0..count).map(header).collect();
    }

    /// Starts counting packets and samples anew.
    pub fn reset(&mut self) {
        self.sent = 0;
        self.samples = 0;
    }

    /// Packets the kernel took since the last reset.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Samples among them.
    pub fn samples(&self) -> u32 {
        self.samples
    }

    /// Where in its frames the payload begins.
    pub fn payload_offset(&self) -> usize {
        self.payload_offset
    }

    /// Sends the next `count` packets, at most [`BATCH`]; one of them as a sample that was due at
    /// `scheduled_ns`. Returns how many the interface took.
    pub fn send(&mut self, count: usize, scheduled_ns: u64) -> io::Result<usize> {
        let first = self.position;
        let sampled = first + self.samples as usize % count;
        let ordinary = self.vectors[sampled].iov_base;
        let sample = self.samples + 1 < SAMPLE_CAPACITY;
        if sample {
            let flow_at = ordinary as usize - self.frames.as_ptr() as usize;
            self.scratch
                .copy_from_slice(&self.frames[flow_at..flow_at + self.frame_bytes]);
            Stamp {
                number: self.samples + 1,
                scheduled_ns,
            }
            .write(&mut self.scratch[self.payload_offset..]);
            self.vectors[sampled].iov_base = self.scratch.as_mut_ptr().cast();
        }
        let headers = &mut self.headers[first..first + count];
        let result = sys::send_messages(self.socket.as_raw_fd(), headers);
        self.vectors[sampled].iov_base = ordinary;
        let taken = match result {
            Ok(taken) => taken,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if sample && sampled < first + taken {
            self.samples += 1;
        }
        self.sent += taken as u64;
        self.position = (first + taken) % self.cycle;
        Ok(taken)
    }

    /// Gives up the next `count` packets: they count as sent, and are lost.
    fn lose(&mut self, count: u64) {
        self.sent += count;
        self.position = (self.position + count as usize) % self.cycle;
    }
}

/// When packets are due.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Packets per second, over all streams.
    pub rate_pps: f64,
    /// How long.
    pub duration_ns: u64,
    /// Packets are sent in clumps this far apart; 0: each at its own time.
    pub quantum_ns: u64,
    /// Packets of a stream are sent in multiples of this number.
    pub unit: usize,
}

/// What a run of the generator came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Packets sent, over all streams.
    pub sent: u64,
    /// Packets that were due.
    pub due: u64,
    /// When the first packet was due, and when the last was sent.
    pub started_ns: u64,
    /// See `started_ns`.
    pub ended_ns: u64,
    /// Clumps that left more than [`LATE_NS`] behind schedule.
    pub late_clumps: u64,
    /// All clumps.
    pub clumps: u64,
}

/// A clump later than this counts as late.
pub const LATE_NS: u64 = 50_000;

impl Outcome {
    /// Whether the generator kept the schedule; otherwise it was the bottleneck, not the server.
    pub fn kept_up(&self) -> bool {
        self.sent as f64 >= self.due as f64 * 0.995
    }

    /// Packets per second that were really offered.
    pub fn offered_pps(&self) -> f64 {
        let elapsed = self.ended_ns.saturating_sub(self.started_ns).max(1);
        self.sent as f64 * 1e9 / elapsed as f64
    }
}

/// How far behind the schedule the generator may end before it gives up on what is still due.
const GRACE_NS: u64 = 2_000_000;
/// The links' rings hold 256 packets, a network card's several times as many. So the generator holds
/// back what meets a full ring, as if the ring were longer by this, and loses only what goes beyond.
const RING_PACKETS: u64 = 768;
const LEAD_NS: u64 = 200_000;

/// Sends at the scheduled times. The rate is divided equally among the streams.
pub fn run(streams: &mut [Stream], schedule: Schedule) -> Result<Outcome> {
    let unit = schedule.unit.max(1) as u64;
    let rate_pps = schedule.rate_pps / streams.len() as f64;
    let interval_ns = 1e9 / rate_pps;
    let total = (rate_pps * schedule.duration_ns as f64 / 1e9) as u64 / unit * unit;
    let start = sys::now_ns() + LEAD_NS;
    let deadline = start + schedule.duration_ns + GRACE_NS;
    let before: u64 = streams.iter().map(Stream::sent).sum();
    let first: Vec<u64> = streams.iter().map(Stream::sent).collect();
    let mut outcome = Outcome {
        due: total * streams.len() as u64,
        started_ns: start,
        ..Outcome::default()
    };
    let mut tick = start;
    loop {
        let now = sys::now_ns();
        if now < tick {
            std::hint::spin_loop();
            continue;
        }
        tick = now + schedule.quantum_ns;
        let elapsed = (now - start) as f64;
        let due = ((elapsed / interval_ns) as u64 + 1) / unit * unit;
        let mut all_sent = true;
        for (stream, first) in streams.iter_mut().zip(&first) {
            let done = stream.sent() - first;
            let mut left = due.min(total).saturating_sub(done);
            if left > 0 {
                let scheduled = start + (done as f64 * interval_ns) as u64;
                outcome.clumps += 1;
                outcome.late_clumps += u64::from(now > scheduled + schedule.quantum_ns + LATE_NS);
            }
            while left > 0 && sys::now_ns() <= deadline {
                let done = stream.sent() - first;
                let scheduled = start + (done as f64 * interval_ns) as u64;
                let count = if schedule.quantum_ns == 0 {
                    1
                } else {
                    left.min(BATCH as u64)
                };
                let sent = stream.send(count as usize, scheduled).context("sending")? as u64;
                left -= sent;
                if sent == 0 {
                    stream.lose(left.saturating_sub(RING_PACKETS));
                    break;
                }
            }
            all_sent &= stream.sent() - first >= total;
        }
        if all_sent || sys::now_ns() > deadline {
            break;
        }
        sys::check_interrupted()?;
    }
    outcome.ended_ns = sys::now_ns();
    outcome.sent = streams.iter().map(Stream::sent).sum::<u64>() - before;
    Ok(outcome)
}
