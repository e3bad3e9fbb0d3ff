//! A well-behaved client beside hostile ones: sends at a steady rate on a channel, and counts what
//! reaches its peer.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use towpath_bench::sys;

use crate::lab::Host;
use crate::probe::Probe;

const CHANNEL: u16 = 0x4001;
const PAYLOAD_BYTES: usize = 160;
/// How long packets may be under way.
const SETTLE: Duration = Duration::from_millis(300);
/// Room for what waits while the machine is busy.
const BUFFER_BYTES: i32 = 8 << 20;

/// A client with an allocation and a channel.
#[derive(Debug)]
pub struct Neighbour {
    /// The client.
    pub probe: Probe,
    socket: UdpSocket,
    round: u8,
}

impl Neighbour {
    /// A client at `local`, which binds a channel to a socket of the peer's.
    ///
    /// # Panics
    ///
    /// Where the server refuses.
    pub fn new(client: &Host, local: IpAddr, server: SocketAddr, peer: (&Host, IpAddr)) -> Self {
        let socket = peer.0.bind_any(peer.1);
        let (level, name) = (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE);
        sys::set_option(socket.as_raw_fd(), level, name, BUFFER_BYTES)
            .expect("root may have a large buffer");
        let address = socket.local_addr().expect("a bound socket has an address");
        let mut probe = Probe::new(client, local, server);
        probe.allocate(None).expect("the neighbour is served");
        probe
            .bind_channel(CHANNEL, address)
            .expect("the neighbour's peer is allowed");
        Self {
            probe,
            socket,
            round: 0,
        }
    }

    /// Sends for this long, and gives the share that arrived.
    pub fn delivered_share(&mut self, rate_pps: u32, duration: Duration) -> f64 {
        self.round = self.round.wrapping_add(1);
        let payload = [self.round; PAYLOAD_BYTES];
        let ended = AtomicBool::new(false);
        let (sent, received) = thread::scope(|scope| {
            let counter = scope.spawn(|| count(&self.socket, &payload, &ended));
            let sent = paced(rate_pps, duration, |_| {
                self.probe.send_on_channel(CHANNEL, &payload);
            });
            ended.store(true, Ordering::Relaxed);
            (sent, counter.join().expect("the counter does not panic"))
        });
        received as f64 / sent as f64
    }
}

/// Counts the datagrams with this payload until all is over, and nothing has come for a while.
fn count(socket: &UdpSocket, payload: &[u8], ended: &AtomicBool) -> u64 {
    socket
        .set_read_timeout(Some(SETTLE))
        .expect("the timeout is not zero");
    let mut buffer = [0; 2048];
    let mut received = 0;
    loop {
        match socket.recv(&mut buffer) {
            Ok(bytes) => received += u64::from(buffer[..bytes] == *payload),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if ended.load(Ordering::Relaxed) {
                    return received;
                }
            }
            Err(error) => panic!("the peer's socket: {error}"),
        }
    }
}

/// Calls `action` with growing numbers at this rate for this long; who is late catches up. Returns how
/// often.
pub fn paced(rate_pps: u32, duration: Duration, mut action: impl FnMut(u64)) -> u64 {
    let begin = Instant::now();
    let mut done = 0;
    loop {
        let elapsed = begin.elapsed().min(duration);
        let due = (elapsed.as_secs_f64() * f64::from(rate_pps)) as u64 + 1;
        while done < due {
            action(done);
            done += 1;
        }
        if elapsed == duration {
            return done;
        }
        thread::sleep(Duration::from_millis(1));
    }
}
