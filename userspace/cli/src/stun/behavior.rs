//! `towpath stun --behavior`: how the NAT in front of this machine maps and filters.

use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use serde::Serialize;
use towpath_proto::nat::{
    Behavior, BehaviorClient, BehaviorConfig, BehaviorError, Filtering, Mapping,
};
use towpath_proto::stun::Schedule;

use super::{MIN_WAIT, is_nothing};
use crate::exit::{self, Failure};
use crate::target::{self, Clock, explain};

/// Sent at 0, 250, 750 and 1750 ms; given up after 2750.
const RTO: Duration = Duration::from_millis(250);
const TRANSMISSIONS: u8 = 4;
const LAST_RTOS: u32 = 4;

/// What was found.
#[derive(Serialize)]
struct Report {
    server: SocketAddr,
    other_address: SocketAddr,
    /// The address of this machine as it sees itself.
    local: SocketAddr,
    /// The address the server saw.
    mapped: SocketAddr,
    translated: bool,
    port_preserved: bool,
    mapping: Option<&'static str>,
    filtering: Option<&'static str>,
    /// The name of RFC 3489.
    nat_type: &'static str,
    /// Why mapping or filtering is not known.
    errors: Vec<String>,
}

pub(super) fn run(server: SocketAddr, json: bool) -> Result<(), Failure> {
    let failed = |error: io::Error| explain(server, &error);
    let (socket, local) = open(server).map_err(failed)?;
    let found = test(&socket, server, local).map_err(failed)?;
    let found = found.map_err(|error| Failure::Runtime(format!("{server}: {error}")))?;
    let report = Report::new(server, &found);
    let text = if json {
        exit::json(&report)?
    } else {
        report.text(&found)
    };
    exit::print(text.as_bytes())?;
    match report.errors.first() {
        Some(error) => Err(Failure::Runtime(format!("{server}: {error}"))),
        None => Ok(()),
    }
}

/// A socket that hears of everybody, and its address. The one that talks to the server alone knows
/// which address of this machine leads there.
fn open(server: SocketAddr) -> io::Result<(UdpSocket, SocketAddr)> {
    let ip = target::socket_to(server)?.local_addr()?.ip();
    let socket = UdpSocket::bind((ip, 0))?;
    let local = socket.local_addr()?;
    Ok((socket, local))
}

fn test(
    socket: &UdpSocket,
    server: SocketAddr,
    local: SocketAddr,
) -> io::Result<Result<Behavior, BehaviorError>> {
    let clock = Clock::start();
    let schedule =
        Schedule::new(RTO, TRANSMISSIONS, LAST_RTOS).expect("the numbers are within their limits");
    let config = BehaviorConfig {
        server,
        local,
        schedule,
    };
    let mut client = BehaviorClient::new(clock.now(), config, rand::random());
    let mut buffer = [0; 2048];
    loop {
        let now = clock.now();
        client.handle_timeout(now);
        if let Some(outcome) = client.outcome() {
            return Ok(outcome);
        }
        while let Some((to, len)) = client.poll_transmit(now, &mut buffer) {
            socket.send_to(&buffer[..len], to)?;
        }
        let wait = client
            .poll_timeout()
            .map_or(MIN_WAIT, |due| due.saturating_since(now));
        socket.set_read_timeout(Some(wait.max(MIN_WAIT)))?;
        match socket.recv_from(&mut buffer) {
            Ok((len, remote)) => drop(client.handle_datagram(clock.now(), remote, &buffer[..len])),
            Err(error) if is_nothing(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

impl Report {
    fn new(server: SocketAddr, found: &Behavior) -> Self {
        let mapping = found.mapping.map_err(|error| format!("mapping: {error}"));
        let filtering = found
            .filtering
            .map_err(|error| format!("filtering: {error}"));
        Self {
            server,
            other_address: found.other,
            local: found.local,
            mapped: found.mapped,
            translated: found.is_translated(),
            port_preserved: found.mapped.port() == found.local.port(),
            mapping: mapping.as_ref().ok().map(|mapping| mapping.name()),
            filtering: filtering.as_ref().ok().map(|filtering| filtering.name()),
            nat_type: found.nat_type().name(),
            errors: mapping.err().into_iter().chain(filtering.err()).collect(),
        }
    }

    fn text(&self, found: &Behavior) -> String {
        let mut text = format!(
            "stun {}, other address {}\n",
            self.server, self.other_address
        );
        let port = if self.port_preserved {
            "the same"
        } else {
            "another"
        };
        let nat = if self.translated {
            "there is a NAT in between"
        } else {
            "no NAT in between"
        };
        let _ = writeln!(text, "  local       {}", self.local);
        let _ = writeln!(text, "  mapped      {} ({port} port as here)", self.mapped);
        let _ = writeln!(
            text,
            "  NAT         {nat}; as RFC 3489 says: {}",
            self.nat_type
        );
        let (name, meaning) = match found.mapping {
            Ok(mapping) => (mapping.name(), meaning_of_mapping(mapping)),
            Err(_) => ("not known", "the server's other address does not tell"),
        };
        let _ = writeln!(text, "  mapping     {name}: {meaning}");
        let (name, meaning) = match found.filtering {
            Ok(filtering) => (filtering.name(), meaning_of_filtering(filtering)),
            Err(_) => ("not known", "the server's other address does not tell"),
        };
        let _ = writeln!(text, "  filtering   {name}: {meaning}");
        text
    }
}

fn meaning_of_mapping(mapping: Mapping) -> &'static str {
    match mapping {
        Mapping::EndpointIndependent => "peers see one address and port of a socket",
        Mapping::AddressDependent => "each peer's address sees another port",
        Mapping::AddressAndPortDependent => "each peer's address and port sees another port",
    }
}

fn meaning_of_filtering(filtering: Filtering) -> &'static str {
    match filtering {
        Filtering::EndpointIndependent => "anybody may send to it",
        Filtering::AddressDependent => "an address may send to it once it was sent to",
        Filtering::AddressAndPortDependent => "an address and port may once it was sent to",
    }
}
