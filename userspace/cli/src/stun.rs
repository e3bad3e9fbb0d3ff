//! `towpath stun`: Binding round trips with a STUN server, and how the NAT in between behaves.

mod behavior;

use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use towpath_proto::stun::{Binding, BindingClient, BindingError, Schedule};
use towpath_proto::wire::TransactionId;

use crate::exit::{self, Failure};
use crate::target::{self, Clock, Target, explain, shown};

/// A shorter wait for a response would not even wait for the response.
const MIN_WAIT: Duration = Duration::from_millis(1);

#[derive(Args)]
#[command(after_help = "\
Every request is sent once, so that losses show. Exits 1 where nothing came back.

With --behavior the server must have a second address and port (RFC 5780). Requests are sent again
until an answer comes, and a test that a NAT or firewall filters takes 3 seconds.

Examples:
  towpath stun 127.0.0.1
  towpath stun stun.example.org --behavior
  towpath stun stun.example.org:3478 -6 --count 20")]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Find out how the NAT in between maps addresses and filters packets (RFC 5780)
    #[arg(long, conflicts_with_all = ["count", "interval", "timeout"])]
    behavior: bool,
    /// How many requests
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// Milliseconds between a response and the next request
    #[arg(long, value_name = "MS", default_value_t = 100,
          value_parser = clap::value_parser!(u64).range(0..=60_000))]
    interval: u64,
    /// Milliseconds to wait for a response
    #[arg(long, value_name = "MS", default_value_t = 1000,
          value_parser = clap::value_parser!(u64).range(1..=60_000))]
    timeout: u64,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Serialize)]
struct Report {
    server: SocketAddr,
    /// The address of this machine as it sees itself.
    local: SocketAddr,
    /// The address the server saw last.
    mapped: Option<SocketAddr>,
    sent: u32,
    received: u32,
    /// Round trips in microseconds.
    min_us: Option<f64>,
    median_us: Option<f64>,
    max_us: Option<f64>,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let server = arguments.target.resolve()?;
    if arguments.behavior {
        return behavior::run(server, arguments.json);
    }
    let failed = |error: io::Error| explain(server, &error);
    let socket = target::socket_to(server).map_err(failed)?;
    let local = socket.local_addr().map_err(failed)?;
    let schedule = Schedule::new(Duration::from_millis(arguments.timeout), 1, 1)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let clock = Clock::start();
    let mut mapped = None;
    let mut round_trips = Vec::new();
    for request in 0..arguments.count {
        if request > 0 {
            std::thread::sleep(Duration::from_millis(arguments.interval));
        }
        match ask(&socket, server, schedule, clock).map_err(failed)? {
            Ok(binding) => {
                mapped = Some(binding.mapped);
                round_trips.push(binding.round_trip);
            }
            Err(BindingError::TimedOut { .. }) => {}
            Err(error) => return Err(Failure::Runtime(format!("{server}: {error}"))),
        }
    }
    round_trips.sort_unstable();
    let at = |index: usize| round_trips.get(index).map(|time| time.as_secs_f64() * 1e6);
    let report = Report {
        server,
        local,
        mapped,
        sent: arguments.count,
        received: round_trips.len() as u32,
        min_us: at(0),
        median_us: at(round_trips.len() / 2),
        max_us: at(round_trips.len().saturating_sub(1)),
    };
    exit::print(report.text(arguments.json)?.as_bytes())?;
    if report.received == 0 {
        return Err(Failure::Runtime(format!("no response from {server}")));
    }
    Ok(())
}

/// One request and what came of it.
fn ask(
    socket: &UdpSocket,
    server: SocketAddr,
    schedule: Schedule,
    clock: Clock,
) -> io::Result<Result<Binding, BindingError>> {
    let id = TransactionId(rand::random());
    let mut client = BindingClient::new(clock.now(), server, id, schedule);
    let mut buffer = [0; 2048];
    loop {
        let now = clock.now();
        client.handle_timeout(now);
        if let Some(outcome) = client.outcome() {
            return Ok(outcome);
        }
        if let Some(len) = client.poll_transmit(now, &mut buffer) {
            socket.send(&buffer[..len])?;
        }
        let wait = client
            .poll_timeout()
            .map_or(MIN_WAIT, |due| due.saturating_since(now));
        socket.set_read_timeout(Some(wait.max(MIN_WAIT)))?;
        match socket.recv(&mut buffer) {
            Ok(len) => drop(client.handle_datagram(clock.now(), server, &buffer[..len])),
            Err(error) if is_nothing(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether nothing came in time.
fn is_nothing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

impl Report {
    fn text(&self, json: bool) -> Result<String, Failure> {
        if json {
            return exit::json(self);
        }
        let mut text = format!("stun {}\n", self.server);
        if let Some(mapped) = self.mapped {
            let port = if mapped.port() == self.local.port() {
                "the same"
            } else {
                "another"
            };
            let _ = writeln!(text, "  mapped      {mapped} ({port} port as here)");
        }
        let lost = self.sent - self.received;
        let _ = writeln!(
            text,
            "  responses   {} of {}, {lost} lost",
            self.received, self.sent
        );
        if let (Some(min), Some(median), Some(max)) = (self.min_us, self.median_us, self.max_us) {
            let time = |us: f64| shown(Duration::from_secs_f64(us / 1e6));
            let (min, median, max) = (time(min), time(median), time(max));
            let _ = writeln!(text, "  round trip  min {min}, median {median}, max {max}");
        }
        Ok(text)
    }
}
