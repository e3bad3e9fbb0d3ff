//! `towpath turn`: two allocations on a TURN server, and data from one to the other and back.

mod probe;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use towpath_proto::turn::client::Credentials;
use towpath_server::generated::GeneratedUser;

use crate::exit::{self, Failure};
use crate::round_trip::RoundTrip;
use crate::serve::Places;
use crate::target::{Target, shown};
use probe::{Plan, Run};

/// A payload holds at least what tells runs and packets apart.
const MIN_SIZE: i64 = probe::HEADER_BYTES as i64;
/// With the headers of ChannelData, UDP and IPv6 it still fits into an Ethernet frame.
const MAX_SIZE: i64 = 1400;

#[derive(Args)]
#[command(after_help = "\
Makes two allocations A and B, permissions and a channel each way, then sends packets from A's
client through both to B's, which sends them back. A round trip is measured from the time the
packet was to be sent. Exits 1 where anything failed or was lost.

Without --user it takes the user that `towpath serve` made up on this machine.

Examples:
  towpath turn 127.0.0.1
  TOWPATH_PASSWORD=secret towpath turn turn.example.org --user alice
  towpath turn 192.0.2.1 --user alice --password secret --count 10000 --rate 1000 --size 1200")]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// The user
    #[arg(short, long, requires = "password")]
    user: Option<String>,
    /// The password; other users of this machine can see it here, but not in the variable
    #[arg(
        short,
        long,
        env = "TOWPATH_PASSWORD",
        hide_env_values = true,
        requires = "user"
    )]
    password: Option<String>,
    /// How many packets
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// Bytes of payload in each
    #[arg(long, value_name = "BYTES", default_value_t = 172,
          value_parser = clap::value_parser!(u16).range(MIN_SIZE..=MAX_SIZE))]
    size: u16,
    /// Packets per second
    #[arg(long, value_name = "PER_SECOND", default_value_t = 500,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Have both clients send from other ports than they began with; their allocations follow (RFC 8016)
    #[arg(long)]
    mobility: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    places: Places,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments {
        target,
        user,
        password,
        count,
        size,
        rate,
        mobility,
        json,
        places,
    } = arguments;
    let server = target.resolve()?;
    let (user, password) = match (user, password) {
        (Some(user), Some(password)) => (user, password),
        (Some(_), None) | (None, Some(_)) | (None, None) => generated(places)?,
    };
    let credentials =
        Credentials::new(user, password).map_err(|error| Failure::Usage(error.to_string()))?;
    let plan = Plan {
        server,
        credentials: Arc::new(credentials),
        ipv6: target.ipv6,
        moves: mobility,
        count,
        size: usize::from(size),
        rate,
    };
    let run = probe::run(&plan)?;
    let report = Report::new(&plan, &run);
    let text = if json {
        exit::json(&report)?
    } else {
        report.text()
    };
    exit::print(text.as_bytes())?;
    match report.lost {
        0 => Ok(()),
        lost => Err(Failure::Runtime(format!(
            "{lost} of {count} packets were lost"
        ))),
    }
}

/// The user that a server on this machine made up.
fn generated(places: Places) -> Result<(String, String), Failure> {
    let user = GeneratedUser::read(&places.choose()?).map_err(|_| {
        Failure::Usage(
            "no server of this machine's user made up a user; give --user and --password".into(),
        )
    })?;
    Ok((user.name, user.password))
}

/// What was found.
#[derive(Serialize)]
struct Report {
    server: SocketAddr,
    /// Where A and B are: the server, or those it sent us to.
    servers: [SocketAddr; 2],
    mapped: SocketAddr,
    relayed: [SocketAddr; 2],
    /// Time for both allocations, the 401 round included, in microseconds.
    allocate_us: f64,
    /// Time for both permissions and both channels, in microseconds.
    channel_us: f64,
    /// Time until both allocations had followed their clients to other ports, in microseconds.
    moved_us: Option<f64>,
    size_bytes: usize,
    rate_per_s: u32,
    sent: u32,
    received: u32,
    lost: u32,
    duplicates: u32,
    round_trip: Option<RoundTrip>,
}

impl Report {
    fn new(plan: &Plan, run: &Run) -> Self {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        Self {
            server: plan.server,
            servers: run.servers,
            mapped: run.mapped,
            relayed: run.relayed,
            allocate_us: us(run.allocate),
            channel_us: us(run.channel),
            moved_us: run.moved.map(us),
            size_bytes: plan.size,
            rate_per_s: plan.rate,
            sent: run.sent,
            received: run.received,
            lost: plan.count - run.received,
            duplicates: run.duplicates,
            round_trip: RoundTrip::of(&run.round_trips_ns),
        }
    }

    fn text(&self) -> String {
        let mut text = format!("turn {}\n", self.server);
        let time = |us: f64| shown(Duration::from_secs_f64(us / 1e6));
        if self.servers != [self.server; 2] {
            let [a, b] = self.servers;
            let _ = writeln!(text, "  sent on to   A {a}, B {b}");
        }
        let [a, b] = self.relayed;
        let _ = writeln!(text, "  mapped       {}", self.mapped);
        let _ = writeln!(text, "  relayed      A {a}, B {b}");
        let _ = writeln!(text, "  allocations  {}", time(self.allocate_us));
        let _ = writeln!(text, "  channels     {}", time(self.channel_us));
        if let Some(us) = self.moved_us {
            let _ = writeln!(text, "  moved        {}", time(us));
        }
        let percent = f64::from(self.lost) * 100.0 / f64::from(self.lost + self.received).max(1.0);
        let _ = writeln!(
            text,
            "  packets      {} of {} B sent, {} came back, {} lost ({percent:.2} %)",
            self.sent, self.size_bytes, self.received, self.lost
        );
        if self.duplicates > 0 {
            let _ = writeln!(text, "  duplicates   {}", self.duplicates);
        }
        if let Some(trip) = &self.round_trip {
            let _ = writeln!(text, "  round trip   {trip}");
        }
        text
    }
}
