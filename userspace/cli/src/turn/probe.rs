//! The test itself: two TURN clients, their sockets and one clock in one loop.
//!
//! ```text
//!   A ──ChannelData──▶ server: A's port ──UDP──▶ B's port ──ChannelData──▶ B
//!   A ◀──────────────────────── the same way back ──────────────────────── B
//! ```

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use towpath_proto::Timestamp;
use towpath_proto::stun::Schedule;
use towpath_proto::turn::client::{Client, ClientConfig, Credentials, Event, Received};
use towpath_proto::wire::attribute::Family;

use crate::exit::Failure;
use crate::target::{self, Clock, explain};

/// A payload's run, number and the time it was to be sent.
pub(super) const HEADER_BYTES: usize = 24;

/// How long after the last packet sent, or the last that came back, others may still come.
const GRACE: Duration = Duration::from_secs(3);
/// The longest sleep: progress is shown meanwhile.
const MAX_SLEEP: Duration = Duration::from_millis(100);
/// Datagrams taken from one socket before the other has its turn.
const BATCH: usize = 64;
/// The longest round trip that is told from longer ones.
const MAX_ROUND_TRIP_NS: u64 = 60_000_000_000;
/// Runs that are shorter show no progress.
const PROGRESS_FROM: Duration = Duration::from_secs(1);

/// What to do.
pub(super) struct Plan {
    pub(super) server: SocketAddr,
    pub(super) credentials: Arc<Credentials>,
    /// Whether relayed addresses are to be IPv6.
    pub(super) ipv6: bool,
    /// Whether both clients go to other ports of this machine before they send.
    pub(super) moves: bool,
    pub(super) count: u32,
    pub(super) size: usize,
    pub(super) rate: u32,
}

/// What came of it.
pub(super) struct Run {
    /// Where the allocations are: the server asked, or the one it sent the client to.
    pub(super) servers: [SocketAddr; 2],
    pub(super) mapped: SocketAddr,
    pub(super) relayed: [SocketAddr; 2],
    pub(super) allocate: Duration,
    pub(super) channel: Duration,
    /// How long it took until both allocations had followed their clients.
    pub(super) moved: Option<Duration>,
    pub(super) sent: u32,
    pub(super) received: u32,
    pub(super) duplicates: u32,
    pub(super) round_trips_ns: Histogram<u64>,
}

pub(super) fn run(plan: &Plan) -> Result<Run, Failure> {
    let clock = Clock::start();
    let progress = ProgressBar::hidden();
    let mut test = Test {
        plan,
        clock,
        ends: [End::new(plan)?, End::new(plan)?],
        progress,
    };
    let (allocate, allocations) = test.allocate()?;
    let [a, b] = allocations.map(|(relayed, _)| relayed);
    let servers = test.ends.each_ref().map(|end| end.client.server());
    let channel = test.bind(a, b)?;
    let moved = plan.moves.then(|| test.rebind()).transpose()?;
    let mut flow = Flow::new(plan.count, [a, b]);
    test.flow(&mut flow)?;
    test.release()?;
    Ok(Run {
        servers,
        mapped: allocations[0].1,
        relayed: [a, b],
        allocate,
        channel,
        moved,
        sent: flow.sent,
        received: flow.received,
        duplicates: flow.duplicates,
        round_trips_ns: flow.round_trips_ns,
    })
}

/// One client with its socket, which is connected to this server.
struct End {
    client: Client,
    socket: UdpSocket,
    server: SocketAddr,
}

impl End {
    fn new(plan: &Plan) -> Result<Self, Failure> {
        // A server that is there answers within 5.5 s, or is of no use.
        let schedule = Schedule::new(Duration::from_millis(500), 4, 4)
            .expect("the numbers are within their limits");
        let config = ClientConfig {
            server: plan.server,
            credentials: Arc::clone(&plan.credentials),
            lifetime: None,
            mobility: plan.moves,
            schedule,
        };
        Ok(Self {
            client: Client::new(config, rand::random()),
            socket: socket(plan)?,
            server: plan.server,
        })
    }

    /// Goes where the server sent the client (RFC 8489 §10).
    fn follow(&mut self) -> io::Result<()> {
        if self.server != self.client.server() {
            self.server = self.client.server();
            self.socket.connect(self.server)?;
        }
        Ok(())
    }
}

struct Test<'a> {
    plan: &'a Plan,
    clock: Clock,
    ends: [End; 2],
    progress: ProgressBar,
}

impl Test<'_> {
    /// Both allocations: how long they took, and what they are.
    fn allocate(&mut self) -> Result<(Duration, [(SocketAddr, SocketAddr); 2]), Failure> {
        let start = self.clock.now();
        let family = self.plan.ipv6.then_some(Family::V6);
        for end in &mut self.ends {
            end.client
                .allocate(start, family)
                .expect("a new client has no allocation");
        }
        let mut found = [None; 2];
        self.progress = spinner("allocating");
        self.until(|end, event| {
            match event {
                Event::Allocated(allocation) => {
                    found[end] = Some((allocation.relayed, allocation.mapped));
                }
                // The socket follows in the next step.
                Event::Redirected(_) => {}
                Event::AllocateFailed(error) => return Err(format!("no allocation: {error}")),
                other => return unexpected(&other),
            }
            Ok(found.iter().all(Option::is_some))
        })?;
        let took = self.clock.now().saturating_since(start);
        let [Some(a), Some(b)] = found else {
            unreachable!("the loop ends with both")
        };
        Ok((took, [a, b]))
    }

    /// Permissions and channels both ways.
    fn bind(&mut self, a: SocketAddr, b: SocketAddr) -> Result<Duration, Failure> {
        let start = self.clock.now();
        for (end, peer) in self.ends.iter_mut().zip([b, a]) {
            let failed = |error| Failure::Runtime(format!("peer {peer}: {error}"));
            end.client.permit(start, peer.ip()).map_err(failed)?;
            end.client.bind_channel(start, peer).map_err(failed)?;
        }
        let mut waiting = 4;
        self.progress = spinner("binding channels");
        self.until(|_, event| {
            match event {
                Event::PermissionCreated(_) | Event::ChannelBound(..) => waiting -= 1,
                Event::PermissionFailed(peer, error) => {
                    return Err(format!("no permission for {peer}: {error}"));
                }
                Event::ChannelFailed(peer, error) => {
                    return Err(format!("no channel to {peer}: {error}"));
                }
                other => return unexpected(&other),
            }
            Ok(waiting == 0)
        })?;
        Ok(self.clock.now().saturating_since(start))
    }

    /// Gives both clients other sockets, and the first ones up; their allocations follow.
    fn rebind(&mut self) -> Result<Duration, Failure> {
        let start = self.clock.now();
        for end in &mut self.ends {
            end.socket = socket(self.plan)?;
            let moving = end.client.rebind(start);
            moving.map_err(|error| Failure::Runtime(error.to_string()))?;
        }
        let mut waiting = 2;
        self.progress = spinner("moving");
        self.until(|_, event| {
            match event {
                Event::Moved => waiting -= 1,
                Event::Lost(error) => return Err(format!("the allocation was lost: {error}")),
                other => return unexpected(&other),
            }
            Ok(waiting == 0)
        })?;
        Ok(self.clock.now().saturating_since(start))
    }

    /// Ends both allocations.
    fn release(&mut self) -> Result<(), Failure> {
        let now = self.clock.now();
        for end in &mut self.ends {
            end.client.release(now);
        }
        let mut waiting = 2;
        self.progress = spinner("releasing");
        self.until(|_, event| {
            match event {
                Event::Released => waiting -= 1,
                Event::Lost(error) => return Err(format!("the allocation was lost: {error}")),
                // What was still under way when the release began.
                Event::Redirected(_)
                | Event::Allocated(_)
                | Event::AllocateFailed(_)
                | Event::Moved
                | Event::PermissionCreated(_)
                | Event::PermissionFailed(..)
                | Event::ChannelBound(..)
                | Event::ChannelFailed(..) => {}
            }
            Ok(waiting == 0)
        })
    }

    /// Runs both clients until `done` says so.
    fn until(
        &mut self,
        mut done: impl FnMut(usize, Event) -> Result<bool, String>,
    ) -> Result<(), Failure> {
        loop {
            self.step(None, &mut |_, _, _| {})?;
            for index in 0..self.ends.len() {
                while let Some(event) = self.ends[index].client.poll_event() {
                    if done(index, event).map_err(Failure::Runtime)? {
                        self.progress.finish_and_clear();
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Sends every packet at its time and waits for those that come back.
    fn flow(&mut self, flow: &mut Flow) -> Result<(), Failure> {
        let length = Duration::from_secs(1) * self.plan.count / self.plan.rate;
        self.progress = if length > PROGRESS_FROM {
            bar(self.plan.count)
        } else {
            ProgressBar::hidden()
        };
        let start = self.clock.now();
        let mut buffer = [0; 2048];
        loop {
            let now = self.clock.now();
            while flow.sent < self.plan.count && flow.due(start, self.plan.rate) <= now {
                let payload = flow.payload(flow.due(start, self.plan.rate), self.plan.size);
                self.send(0, flow.relayed[1], &payload, &mut buffer)?;
                flow.sent += 1;
            }
            let next = if flow.sent < self.plan.count {
                flow.due(start, self.plan.rate)
            } else {
                flow.due(start, self.plan.rate).max(flow.last_received) + GRACE
            };
            let over = flow.sent == self.plan.count && now >= next;
            if over || flow.received == self.plan.count {
                self.progress.finish_and_clear();
                return Ok(());
            }
            let clock = self.clock;
            let mut back = Vec::new();
            self.step(Some(next), &mut |end, peer, payload| match end {
                0 if peer == flow.relayed[1] => flow.take(clock.now(), payload),
                1 if peer == flow.relayed[0] => back.push(payload.to_vec()),
                _ => {}
            })?;
            for payload in back {
                self.send(1, flow.relayed[0], &payload, &mut buffer)?;
            }
            self.check_lost()?;
            self.progress.set_position(u64::from(flow.received));
        }
    }

    /// Whether both clients still have what they send through.
    fn check_lost(&mut self) -> Result<(), Failure> {
        for end in &mut self.ends {
            while let Some(event) = end.client.poll_event() {
                let (Event::Lost(error)
                | Event::PermissionFailed(_, error)
                | Event::ChannelFailed(_, error)) = event
                else {
                    continue;
                };
                return Err(Failure::Runtime(format!(
                    "the server ended the test: {error}"
                )));
            }
        }
        Ok(())
    }

    fn send(
        &mut self,
        end: usize,
        peer: SocketAddr,
        payload: &[u8],
        buffer: &mut [u8],
    ) -> Result<(), Failure> {
        let end = &mut self.ends[end];
        let len = end
            .client
            .send(peer, payload, buffer)
            .map_err(|error| Failure::Runtime(error.to_string()))?;
        self::send(&end.socket, &buffer[..len]).map_err(|error| explain(self.plan.server, &error))
    }

    /// Sends what the clients have, waits until `until` or until something arrives, and hands it
    /// over.
    fn step(
        &mut self,
        until: Option<Timestamp>,
        data: &mut dyn FnMut(usize, SocketAddr, &[u8]),
    ) -> Result<(), Failure> {
        let mut buffer = [0; 2048];
        let now = self.clock.now();
        let failed = |error: io::Error| explain(self.plan.server, &error);
        let mut wake = now + MAX_SLEEP;
        for end in &mut self.ends {
            end.follow().map_err(failed)?;
            let End { client, socket, .. } = end;
            client.handle_timeout(now);
            while let Some(len) = client.poll_transmit(now, &mut buffer) {
                send(socket, &buffer[..len]).map_err(failed)?;
            }
            wake = wake.min(client.poll_timeout().unwrap_or(wake));
        }
        wake = wake.min(until.unwrap_or(wake));
        self.wait(wake.saturating_since(self.clock.now()))
            .map_err(failed)?;
        for (index, end) in self.ends.iter_mut().enumerate() {
            let End {
                client,
                socket,
                server,
            } = end;
            for _ in 0..BATCH {
                let len = match socket.recv(&mut buffer) {
                    Ok(len) => len,
                    Err(error) if is_nothing(&error) => break,
                    Err(error) => return Err(failed(error)),
                };
                let now = self.clock.now();
                let received = client.handle_datagram(now, *server, &buffer[..len]);
                if let Received::Data { peer, payload } = received {
                    data(index, peer, payload);
                }
            }
        }
        self.progress.tick();
        Ok(())
    }

    fn wait(&self, time: Duration) -> io::Result<()> {
        let mut sockets =
            [0, 1].map(|end| PollFd::new(self.ends[end].socket.as_fd(), PollFlags::POLLIN));
        match ppoll(&mut sockets, Some(TimeSpec::from_duration(time)), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// A socket of a client's.
fn socket(plan: &Plan) -> Result<UdpSocket, Failure> {
    let failed = |error: io::Error| explain(plan.server, &error);
    let socket = target::socket_to(plan.server).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket)
}

/// A full send buffer loses the datagram, as the network may.
fn send(socket: &UdpSocket, datagram: &[u8]) -> io::Result<()> {
    match socket.send(datagram) {
        Err(error) if !is_nothing(&error) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn unexpected(event: &Event) -> Result<bool, String> {
    Err(format!("the server ended the test: {event:?}"))
}

/// The packets of a run.
struct Flow {
    relayed: [SocketAddr; 2],
    id: u64,
    sent: u32,
    received: u32,
    duplicates: u32,
    last_received: Timestamp,
    seen: Vec<bool>,
    round_trips_ns: Histogram<u64>,
}

impl Flow {
    fn new(count: u32, relayed: [SocketAddr; 2]) -> Self {
        Self {
            relayed,
            id: rand::random(),
            sent: 0,
            received: 0,
            duplicates: 0,
            last_received: Timestamp::ZERO,
            seen: vec![false; count as usize],
            round_trips_ns: Histogram::new_with_bounds(1, MAX_ROUND_TRIP_NS, 3)
                .expect("the bounds are in order"),
        }
    }

    /// When the next packet is to be sent; after the last, when it would have been.
    fn due(&self, start: Timestamp, rate: u32) -> Timestamp {
        let ns = u64::from(self.sent) * 1_000_000_000 / u64::from(rate);
        start + Duration::from_nanos(ns)
    }

    fn payload(&self, due: Timestamp, size: usize) -> Vec<u8> {
        let mut payload = vec![0; size];
        payload[..8].copy_from_slice(&self.id.to_be_bytes());
        payload[8..16].copy_from_slice(&u64::from(self.sent).to_be_bytes());
        payload[16..HEADER_BYTES].copy_from_slice(&due.as_nanos().to_be_bytes());
        payload
    }

    /// Takes a packet that came back.
    fn take(&mut self, now: Timestamp, payload: &[u8]) {
        let (words, _) = payload.as_chunks::<8>();
        let &[id, number, due, ..] = words else {
            return;
        };
        let number = u64::from_be_bytes(number);
        let seen = usize::try_from(number)
            .ok()
            .and_then(|number| self.seen.get_mut(number));
        let Some(seen) = seen.filter(|_| u64::from_be_bytes(id) == self.id) else {
            return;
        };
        if std::mem::replace(seen, true) {
            self.duplicates += 1;
            return;
        }
        self.received += 1;
        self.last_received = now;
        let due = Timestamp::from_nanos(u64::from_be_bytes(due));
        let ns = u64::try_from(now.saturating_since(due).as_nanos()).unwrap_or(u64::MAX);
        self.round_trips_ns.saturating_record(ns.max(1));
    }
}

fn spinner(what: &'static str) -> ProgressBar {
    ProgressBar::new_spinner().with_message(what)
}

fn bar(count: u32) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} came back, {eta} left")
        .expect("the template is right");
    ProgressBar::new(u64::from(count)).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_other_runs_and_repeated_ones_do_not_count() {
        let address = "192.0.2.1:1".parse().unwrap();
        let mut flow = Flow::new(2, [address; 2]);
        let start = Timestamp::from_nanos(1_000);
        let first = flow.payload(flow.due(start, 1000), 100);
        flow.sent = 1;
        assert_eq!(flow.due(start, 1000), Timestamp::from_nanos(1_001_000));
        let mut other = first.clone();
        other[0] ^= 1;
        let mut beyond = first.clone();
        beyond[15] = 2;
        for payload in [&first, &first, &other, &beyond, &vec![0; 23]] {
            flow.take(Timestamp::from_nanos(51_000), payload);
        }
        assert_eq!((flow.received, flow.duplicates), (1, 1));
        assert_eq!(flow.round_trips_ns.max() / 1000, 50);
    }
}
