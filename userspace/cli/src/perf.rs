//! `towpath perf`: how much goes through a connection to a peer, and what that costs this machine.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use futures::executor::block_on;
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use serde::Serialize;
use towpath::{Connection, RecvStream, SendStream};
use towpath_server::units::Size;

use crate::exit::{self, Failure};
use crate::node::{Call, Callee, Interrupt, Request, StreamFailure, UNBOUNDED, shown_security};
use crate::target::shown;

/// Bytes that are written at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// How often the progress bar moves.
const TICK: Duration = Duration::from_millis(100);

#[derive(Args)]
#[command(after_help = "\
The peer runs `towpath listen --serve`. What is sent counts once the peer has all of it; the time runs
until then. CPU time is that of this process, cryptography included.

Examples:
  towpath perf PEER-ID@192.0.2.1:4433
  towpath perf --ephemeral PEER-ID@192.0.2.1:4433 --down --time 10 --streams 4
  towpath perf PEER-ID@192.0.2.1:4433 --both --bytes 1GB --json")]
pub(crate) struct Arguments {
    #[command(flatten)]
    callee: Callee,
    /// Seconds to send for
    #[arg(short, long, value_name = "SECONDS", default_value_t = 5, conflicts_with = "bytes",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    time: u64,
    /// Bytes to send in each direction instead, such as 100MB
    #[arg(short, long, value_name = "SIZE")]
    bytes: Option<Size>,
    /// Send to the peer; the default
    #[arg(long)]
    up: bool,
    /// Have the peer send
    #[arg(long, conflicts_with = "up")]
    down: bool,
    /// Both at the same time
    #[arg(long, conflicts_with_all = ["up", "down"])]
    both: bool,
    /// Streams in each direction
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    streams: u8,
    /// Print the result as JSON, without a progress bar
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let interrupt = Interrupt::catch()?;
    let call = arguments.callee.call(&interrupt)?;
    let plan = Plan::new(&arguments);
    let bar = if arguments.json {
        ProgressBar::hidden()
    } else {
        plan.bar()
    };
    let outcome = measure(&call.connection, plan, &interrupt, &bar);
    bar.finish_and_clear();
    let outcome = outcome.map(|measured| Report::new(&call, &arguments, &measured));
    call.end();
    exit::print(outcome?.text(arguments.json)?.as_bytes())
}

/// What is to be done.
#[derive(Clone, Copy)]
struct Plan {
    up: bool,
    down: bool,
    streams: u8,
    amount: Amount,
}

/// How much.
#[derive(Clone, Copy)]
enum Amount {
    Time(Duration),
    Bytes(u64),
}

impl Plan {
    fn new(arguments: &Arguments) -> Self {
        Self {
            up: !arguments.down,
            down: arguments.down || arguments.both,
            streams: arguments.streams,
            amount: match arguments.bytes {
                Some(Size(bytes)) => Amount::Bytes(bytes),
                None => Amount::Time(Duration::from_secs(arguments.time)),
            },
        }
    }

    /// The bytes of one of the streams.
    fn share(&self, index: u8) -> u64 {
        match self.amount {
            Amount::Time(_) => UNBOUNDED,
            Amount::Bytes(bytes) => {
                let streams = u64::from(self.streams);
                bytes / streams + u64::from(u64::from(index) < bytes % streams)
            }
        }
    }

    fn bar(&self) -> ProgressBar {
        let directions = u64::from(self.up) + u64::from(self.down);
        let length = match self.amount {
            Amount::Time(time) => time.as_millis() as u64,
            Amount::Bytes(bytes) => bytes.saturating_mul(directions),
        };
        let style =
            ProgressStyle::with_template("{wide_bar} {msg}").expect("the template is right");
        ProgressBar::new(length).with_style(style)
    }
}

/// One direction, as it goes.
#[derive(Default)]
struct Progress {
    bytes: AtomicU64,
}

/// What one direction came to.
struct Direction {
    bytes: u64,
    took: Duration,
}

struct Measured {
    up: Option<Direction>,
    down: Option<Direction>,
    cpu: [Duration; 2],
}

/// What may come while it runs.
enum Arrival {
    /// A stream has ended: whether upwards, and when.
    Done(bool, Result<Instant, String>),
    Interrupted,
}

fn measure(
    connection: &Connection,
    plan: Plan,
    interrupt: &Interrupt,
    bar: &ProgressBar,
) -> Result<Measured, Failure> {
    let (up, down) = <(Arc<Progress>, Arc<Progress>)>::default();
    let (sender, arrivals) = mpsc::channel();
    let (interrupt, interrupted) = (interrupt.clone(), sender.clone());
    thread::spawn(move || {
        block_on(interrupt.wait());
        // Where nobody waits any more, the process ends.
        let _ = interrupted.send(Arrival::Interrupted);
    });
    let (cpu, begun) = (cpu_time(), Instant::now());
    let until = match plan.amount {
        Amount::Time(time) => Some(begun + time),
        Amount::Bytes(_) => None,
    };
    let mut streams = 0;
    for index in 0..plan.streams {
        let bytes = plan.share(index);
        for upwards in [true, false] {
            let wanted = if upwards { plan.up } else { plan.down };
            if !wanted {
                continue;
            }
            let progress = Arc::clone(if upwards { &up } else { &down });
            let (own, done) = (connection.clone(), sender.clone());
            // On the connection's own thread nothing has to be handed over.
            connection.spawn(async move {
                let (request, outcome) = if upwards {
                    (Request::Take, send(&own, bytes, until, &progress).await)
                } else {
                    let request = Request::Send(bytes);
                    (request, receive(&own, bytes, until, &progress).await)
                };
                let outcome = outcome.map_err(|failure| failure.explain(request));
                // Where nobody waits any more, the process ends.
                let _ = done.send(Arrival::Done(upwards, outcome.map(|()| Instant::now())));
            });
            streams += 1;
        }
    }
    drop(sender);
    let ends = wait(&arrivals, streams, || {
        let bytes = [&up, &down].map(|progress| progress.bytes.load(Ordering::Relaxed));
        let elapsed = begun.elapsed();
        bar.set_position(match plan.amount {
            Amount::Time(_) => elapsed.as_millis() as u64,
            Amount::Bytes(_) => bytes.iter().sum(),
        });
        bar.set_message(rate(bytes.iter().sum(), elapsed));
    })?;
    let now = cpu_time();
    let direction = |wanted: bool, progress: &Progress, end: Option<Instant>| {
        wanted.then(|| Direction {
            bytes: progress.bytes.load(Ordering::Relaxed),
            took: end.map_or(Duration::ZERO, |end| end - begun),
        })
    };
    Ok(Measured {
        up: direction(plan.up, &up, ends[0]),
        down: direction(plan.down, &down, ends[1]),
        cpu: [now[0] - cpu[0], now[1] - cpu[1]],
    })
}

/// Waits for all streams; gives when the last of each direction ended.
fn wait(
    arrivals: &Receiver<Arrival>,
    mut streams: usize,
    show: impl Fn(),
) -> Result<[Option<Instant>; 2], Failure> {
    let mut ends = [None; 2];
    while streams > 0 {
        match arrivals.recv_timeout(TICK) {
            Ok(Arrival::Done(upwards, Ok(at))) => {
                let end = &mut ends[usize::from(!upwards)];
                *end = (*end).max(Some(at));
                streams -= 1;
            }
            Ok(Arrival::Done(_, Err(why))) => return Err(Failure::Runtime(why)),
            Ok(Arrival::Interrupted) => return Err(Failure::Runtime("interrupted".into())),
            Err(RecvTimeoutError::Timeout) => show(),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::Runtime("the node has ended".into()));
            }
        }
    }
    Ok(ends)
}

/// Sends so many bytes, or until then, and waits until the peer says that it has them.
async fn send(
    connection: &Connection,
    bytes: u64,
    until: Option<Instant>,
    progress: &Progress,
) -> Result<(), StreamFailure> {
    let (mut stream, mut answer) = connection.open_bi().await?;
    let sent = fill(&mut stream, bytes, until, progress).await;
    if let Err(StreamFailure::Other(_) | StreamFailure::Unserved) = sent {
        // What the peer says about it is more than that it stopped the stream.
        answer.read_exact(&mut [0]).await?;
    }
    let sent = sent?;
    let mut said = [0; 8];
    answer.read_exact(&mut said).await?;
    match u64::from_be_bytes(said) {
        taken if taken == sent => Ok(()),
        taken => Err(StreamFailure::Other(format!(
            "the peer has {taken} of {sent} bytes"
        ))),
    }
}

async fn fill(
    stream: &mut SendStream,
    bytes: u64,
    until: Option<Instant>,
    progress: &Progress,
) -> Result<u64, StreamFailure> {
    Request::Take.write(stream).await?;
    let (chunk, mut sent) = (vec![0; CHUNK_BYTES], 0);
    while sent < bytes && until.is_none_or(|until| Instant::now() < until) {
        let most = (bytes - sent).min(chunk.len() as u64) as usize;
        stream.write_all(&chunk[..most]).await?;
        sent += most as u64;
        progress.bytes.fetch_add(most as u64, Ordering::Relaxed);
    }
    stream.finish().await?;
    Ok(sent)
}

/// Has the peer send so many bytes, or until then.
async fn receive(
    connection: &Connection,
    bytes: u64,
    until: Option<Instant>,
    progress: &Progress,
) -> Result<(), StreamFailure> {
    let (mut ask, mut stream): (SendStream, RecvStream) = connection.open_bi().await?;
    Request::Send(bytes).write(&mut ask).await?;
    ask.finish().await?;
    let mut received = 0;
    while until.is_none_or(|until| Instant::now() < until) {
        let Some(chunk) = stream.read().await? else {
            if received < bytes {
                let text = format!("the peer has sent {received} of {bytes} bytes");
                return Err(StreamFailure::Other(text));
            }
            return Ok(());
        };
        received += chunk.len() as u64;
        progress
            .bytes
            .fetch_add(chunk.len() as u64, Ordering::Relaxed);
    }
    stream.stop(0);
    Ok(())
}

/// What this process has used: for itself, and in the kernel.
fn cpu_time() -> [Duration; 2] {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return [Duration::ZERO; 2];
    };
    [usage.user_time(), usage.system_time()]
        .map(|time| Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or(0)))
}

/// What was found.
#[derive(Serialize)]
struct Report {
    peer: String,
    security: &'static str,
    /// Time until the connection stood, in microseconds.
    connect_us: f64,
    streams: u8,
    up: Option<Throughput>,
    down: Option<Throughput>,
    /// CPU seconds of this process, in userspace and in the kernel.
    cpu_user_s: f64,
    cpu_system_s: f64,
}

/// How much went in one direction.
#[derive(Serialize)]
struct Throughput {
    bytes: u64,
    seconds: f64,
    bits_per_s: f64,
}

impl Throughput {
    fn of(direction: &Direction) -> Self {
        let seconds = direction.took.as_secs_f64();
        Self {
            bytes: direction.bytes,
            seconds,
            bits_per_s: direction.bytes as f64 * 8.0 / seconds.max(f64::MIN_POSITIVE),
        }
    }
}

impl Report {
    fn new(call: &Call, arguments: &Arguments, measured: &Measured) -> Self {
        Self {
            peer: call.connection.peer().to_string(),
            security: shown_security(call.connection.security()),
            connect_us: call.took.as_secs_f64() * 1e6,
            streams: arguments.streams,
            up: measured.up.as_ref().map(Throughput::of),
            down: measured.down.as_ref().map(Throughput::of),
            cpu_user_s: measured.cpu[0].as_secs_f64(),
            cpu_system_s: measured.cpu[1].as_secs_f64(),
        }
    }

    fn text(&self, json: bool) -> Result<String, Failure> {
        if json {
            return exit::json(self);
        }
        let mut text = format!("perf {}\n", self.peer);
        let time = shown(Duration::from_secs_f64(self.connect_us / 1e6));
        let _ = writeln!(text, "  connected  in {time}, {}", self.security);
        for (name, direction) in [("up", &self.up), ("down", &self.down)] {
            if let Some(Throughput { bytes, seconds, .. }) = direction {
                let took = Duration::from_secs_f64(*seconds);
                let _ = writeln!(
                    text,
                    "  {name:<9}  {} ({bytes} B in {})",
                    rate(*bytes, took),
                    shown(took)
                );
            }
        }
        let (user, system) = (self.cpu_user_s, self.cpu_system_s);
        let _ = writeln!(
            text,
            "  CPU        {:.2} s here, {user:.2} s of them in userspace",
            user + system
        );
        Ok(text)
    }
}

/// So many bytes in so much time.
fn rate(bytes: u64, time: Duration) -> String {
    let bits = bytes as f64 * 8.0 / time.as_secs_f64().max(f64::MIN_POSITIVE);
    match bits {
        bits if bits >= 1e9 => format!("{:.2} Gbit/s", bits / 1e9),
        bits if bits >= 1e6 => format!("{:.2} Mbit/s", bits / 1e6),
        bits => format!("{:.2} kbit/s", bits / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_share_all_bytes() {
        for (bytes, streams) in [(0, 1), (10, 3), (1_000_001, 32)] {
            let plan = Plan {
                up: true,
                down: false,
                streams,
                amount: Amount::Bytes(bytes),
            };
            let shares: Vec<_> = (0..streams).map(|index| plan.share(index)).collect();
            assert_eq!(shares.iter().sum::<u64>(), bytes);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
        }
    }

    #[test]
    fn rates_are_shown_in_the_unit_that_fits() {
        let second = Duration::from_secs(1);
        assert_eq!(rate(1_000, second), "8.00 kbit/s");
        assert_eq!(rate(2_500_000, second), "20.00 Mbit/s");
        assert_eq!(rate(1_000_000_000, second), "8.00 Gbit/s");
    }
}
