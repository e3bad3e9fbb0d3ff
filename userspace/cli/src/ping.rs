//! `towpath ping`: how long a connection to a peer takes, and round trips of datagrams on it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use futures::executor::block_on;
use hdrhistogram::Histogram;
use serde::Serialize;
use towpath::{CloseReason, Connection, SendDatagramError};

use crate::exit::{self, Failure};
use crate::node::{Call, Callee, Interrupt, shown_reason, shown_security};
use crate::round_trip::RoundTrip;
use crate::target::shown;

/// A datagram holds at least its number.
const MIN_SIZE: i64 = NUMBER_BYTES as i64;
const NUMBER_BYTES: usize = 8;
/// No round trip is longer.
const MAX_ROUND_TRIP_NS: u64 = 3_600_000_000_000;

#[derive(Args)]
#[command(after_help = "\
The peer runs `towpath listen`, with or without --serve. Every datagram is sent once, so that losses
show. Exits 1 where nothing came back. Ctrl-C ends it early, with what is known by then.

Examples:
  towpath ping PEER-ID@192.0.2.1:4433
  towpath ping --ephemeral PEER-ID@192.0.2.1:4433 --count 1000 --interval 10 --size 1000")]
pub(crate) struct Arguments {
    #[command(flatten)]
    callee: Callee,
    /// How many datagrams
    #[arg(short, long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// Milliseconds from one to the next; with 0 the next one leaves when one has come back
    #[arg(short, long, value_name = "MS", default_value_t = 100,
          value_parser = clap::value_parser!(u64).range(0..=60_000))]
    interval: u64,
    /// Bytes in each; what fits depends on the path
    #[arg(short, long, value_name = "BYTES", default_value_t = 64,
          value_parser = clap::value_parser!(u16).range(MIN_SIZE..))]
    size: u16,
    /// Milliseconds to wait for one
    #[arg(long, value_name = "MS", default_value_t = 1000,
          value_parser = clap::value_parser!(u64).range(1..=60_000))]
    wait: u64,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let interrupt = Interrupt::catch()?;
    let call = arguments.callee.call(&interrupt)?;
    let mut pings = Pings::new(&call.connection, interrupt, usize::from(arguments.size));
    let ended = pings.run(&arguments);
    let report = Report::new(&call, &pings);
    call.end();
    match ended {
        Ok(()) | Err(End::Interrupted) => {}
        Err(End::Refused(error)) => return Err(Failure::Usage(error)),
        Err(End::Over(reason)) => {
            exit::print(report.text(arguments.json)?.as_bytes())?;
            let why = shown_reason(&reason);
            return Err(Failure::Runtime(format!("the connection is over: {why}")));
        }
    }
    exit::print(report.text(arguments.json)?.as_bytes())?;
    match report.received {
        0 => Err(Failure::Runtime("no datagram came back".into())),
        _ => Ok(()),
    }
}

/// What may come.
enum Arrival {
    Datagram(Bytes, Instant),
    Over(CloseReason),
    Interrupted,
}

/// Why no more is sent.
enum End {
    Interrupted,
    Over(CloseReason),
    Refused(String),
}

/// Datagrams under way, and those that came back.
struct Pings<'a> {
    connection: &'a Connection,
    arrivals: Receiver<Arrival>,
    size: usize,
    /// When those were sent that have not come back.
    waiting: HashMap<u64, Instant>,
    sent: u64,
    received: u64,
    duplicates: u64,
    round_trips_ns: Histogram<u64>,
}

impl<'a> Pings<'a> {
    fn new(connection: &'a Connection, interrupt: Interrupt, size: usize) -> Self {
        let (sender, arrivals) = mpsc::channel();
        let (own, interrupted) = (connection.clone(), sender.clone());
        // On the connection's own thread, so that nothing lies between arrival and clock.
        connection.spawn(async move {
            loop {
                let arrival = match own.receive_datagram().await {
                    Ok(datagram) => Arrival::Datagram(datagram, Instant::now()),
                    Err(reason) => Arrival::Over(reason),
                };
                let over = matches!(arrival, Arrival::Over(_));
                if sender.send(arrival).is_err() || over {
                    return;
                }
            }
        });
        thread::spawn(move || {
            block_on(interrupt.wait());
            // Where nobody waits any more, the process ends.
            let _ = interrupted.send(Arrival::Interrupted);
        });
        Self {
            connection,
            arrivals,
            size,
            waiting: HashMap::new(),
            sent: 0,
            received: 0,
            duplicates: 0,
            round_trips_ns: Histogram::new_with_bounds(1, MAX_ROUND_TRIP_NS, 3)
                .expect("the bounds are right"),
        }
    }

    fn run(&mut self, plan: &Arguments) -> Result<(), End> {
        let (interval, patience) = (
            Duration::from_millis(plan.interval),
            Duration::from_millis(plan.wait),
        );
        for number in 0..u64::from(plan.count) {
            let begun = Instant::now();
            self.send(number)?;
            if plan.interval == 0 {
                self.wait(begun + patience, |pings| {
                    !pings.waiting.contains_key(&number)
                })?;
            } else if number + 1 < u64::from(plan.count) {
                self.wait(begun + interval, |_| false)?;
            }
        }
        self.wait(Instant::now() + patience, |pings| pings.waiting.is_empty())
    }

    fn send(&mut self, number: u64) -> Result<(), End> {
        let mut datagram = vec![0; self.size];
        datagram[..NUMBER_BYTES].copy_from_slice(&number.to_be_bytes());
        self.waiting.insert(number, Instant::now());
        match block_on(self.connection.send_datagram(datagram)) {
            Ok(()) => {
                self.sent += 1;
                Ok(())
            }
            Err(SendDatagramError::Closed(reason)) => Err(End::Over(reason)),
            Err(SendDatagramError::Refused(error)) => Err(End::Refused(error.to_string())),
        }
    }

    /// Takes what comes until then, or until it is enough.
    fn wait(&mut self, until: Instant, enough: impl Fn(&Self) -> bool) -> Result<(), End> {
        while !enough(self) {
            let left = until.saturating_duration_since(Instant::now());
            match self.arrivals.recv_timeout(left) {
                Ok(Arrival::Datagram(datagram, at)) => self.take(&datagram, at),
                Ok(Arrival::Over(reason)) => return Err(End::Over(reason)),
                Ok(Arrival::Interrupted) => return Err(End::Interrupted),
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    fn take(&mut self, datagram: &[u8], at: Instant) {
        let number = datagram
            .first_chunk()
            .map(|number| u64::from_be_bytes(*number));
        let Some(number) = number.filter(|number| *number < self.sent) else {
            return;
        };
        match self.waiting.remove(&number) {
            Some(sent) => {
                self.received += 1;
                let ns = at.saturating_duration_since(sent).as_nanos();
                let ns = u64::try_from(ns).unwrap_or(MAX_ROUND_TRIP_NS);
                self.round_trips_ns.saturating_record(ns);
            }
            None => self.duplicates += 1,
        }
    }
}

/// What was found.
#[derive(Serialize)]
struct Report {
    peer: String,
    security: &'static str,
    /// Time until the connection stood, in microseconds.
    connect_us: f64,
    size_bytes: usize,
    sent: u64,
    received: u64,
    lost: u64,
    duplicates: u64,
    round_trip: Option<RoundTrip>,
}

impl Report {
    fn new(call: &Call, pings: &Pings<'_>) -> Self {
        Self {
            peer: call.connection.peer().to_string(),
            security: shown_security(call.connection.security()),
            connect_us: call.took.as_secs_f64() * 1e6,
            size_bytes: pings.size,
            sent: pings.sent,
            received: pings.received,
            lost: pings.sent - pings.received,
            duplicates: pings.duplicates,
            round_trip: RoundTrip::of(&pings.round_trips_ns),
        }
    }

    fn text(&self, json: bool) -> Result<String, Failure> {
        if json {
            return exit::json(self);
        }
        let mut text = format!("ping {}\n", self.peer);
        let time = shown(Duration::from_secs_f64(self.connect_us / 1e6));
        let _ = writeln!(text, "  connected    in {time}, {}", self.security);
        let percent = self.lost as f64 * 100.0 / self.sent.max(1) as f64;
        let _ = writeln!(
            text,
            "  datagrams    {} of {} B sent, {} came back, {} lost ({percent:.2} %)",
            self.sent, self.size_bytes, self.received, self.lost
        );
        if self.duplicates > 0 {
            let _ = writeln!(text, "  duplicates   {}", self.duplicates);
        }
        if let Some(trip) = &self.round_trip {
            let _ = writeln!(text, "  round trip   {trip}");
        }
        Ok(text)
    }
}
