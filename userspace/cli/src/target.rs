//! The server a command talks to, and the clock its round trips are measured with.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::time::{Duration, Instant};

use clap::Args;
use towpath_proto::Timestamp;

use crate::exit::Failure;

/// STUN's and TURN's port over UDP (RFC 8489 §18.6).
const DEFAULT_PORT: u16 = 3478;

/// Which server, over which family.
#[derive(Args)]
pub(crate) struct Target {
    /// The server: an address or a name, with or without a port
    #[arg(value_name = "HOST[:PORT]")]
    host: String,
    /// Over IPv4 only
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Over IPv6 only
    #[arg(short = '6', long)]
    pub(crate) ipv6: bool,
}

impl Target {
    /// The first address of the server that fits.
    pub(crate) fn resolve(&self) -> Result<SocketAddr, Failure> {
        let (name, port) = split(&self.host).ok_or_else(|| {
            Failure::Usage(format!(
                "{:?} is no host, host:port or [address]:port",
                self.host
            ))
        })?;
        let addresses = (name, port)
            .to_socket_addrs()
            .map_err(|error| Failure::Runtime(format!("cannot resolve {name:?}: {error}")))?;
        let fits = |address: &SocketAddr| match (self.ipv4, self.ipv6) {
            (true, _) => address.is_ipv4(),
            (_, true) => address.is_ipv6(),
            (false, false) => true,
        };
        let family = if self.ipv4 {
            "IPv4 "
        } else if self.ipv6 {
            "IPv6 "
        } else {
            ""
        };
        addresses
            .into_iter()
            .find(fits)
            .ok_or_else(|| Failure::Runtime(format!("{name:?} has no {family}address")))
    }
}

/// `host`, `host:port`, `address`, `[address]` or `[address]:port`.
pub(crate) fn split(text: &str) -> Option<(&str, u16)> {
    if text.is_empty() {
        return None;
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        address.parse::<Ipv6Addr>().ok()?;
        return match port.strip_prefix(':') {
            Some(port) => Some((address, port.parse().ok()?)),
            None => port.is_empty().then_some((address, DEFAULT_PORT)),
        };
    }
    if text.parse::<IpAddr>().is_ok() {
        return Some((text, DEFAULT_PORT));
    }
    match text.split_once(':') {
        Some((name, port)) if !name.is_empty() => Some((name, port.parse().ok()?)),
        Some(_) => None,
        None => Some((text, DEFAULT_PORT)),
    }
}

/// A socket that talks to the server alone, and so hears of it where nobody listens there.
pub(crate) fn socket_to(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    Ok(socket)
}

/// What a refused datagram means to people.
pub(crate) fn explain(server: SocketAddr, error: &io::Error) -> Failure {
    Failure::Runtime(match error.kind() {
        io::ErrorKind::ConnectionRefused => format!("nothing listens on {server}"),
        _ => format!("cannot talk to {server}: {error}"),
    })
}

/// The machines' clock, from the start of the command on.
#[derive(Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Timestamp {
        Timestamp::ZERO + self.0.elapsed()
    }
}

/// A time in the unit that fits.
pub(crate) fn shown(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 1.0 {
        format!("{:.0} µs", ms * 1e3)
    } else if ms < 1000.0 {
        format!("{ms:.2} ms")
    } else {
        format!("{:.2} s", ms / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_with_or_without_a_port() {
        for (text, expected) in [
            ("a.test", Some(("a.test", 3478))),
            ("a.test:5", Some(("a.test", 5))),
            ("192.0.2.1", Some(("192.0.2.1", 3478))),
            ("192.0.2.1:5", Some(("192.0.2.1", 5))),
            ("2001:db8::1", Some(("2001:db8::1", 3478))),
            ("[2001:db8::1]", Some(("2001:db8::1", 3478))),
            ("[2001:db8::1]:5", Some(("2001:db8::1", 5))),
            ("", None),
            (":5", None),
            ("a.test:port", None),
            ("a.test:70000", None),
            ("[a.test]:5", None),
            ("[2001:db8::1]5", None),
        ] {
            assert_eq!(split(text), expected, "{text}");
        }
    }

    #[test]
    fn times_are_shown_in_the_unit_that_fits() {
        let shown = |us| shown(Duration::from_micros(us));
        assert_eq!(
            (shown(120), shown(1500)),
            ("120 µs".into(), "1.50 ms".into())
        );
        assert_eq!(shown(2_500_000), "2.50 s");
    }
}
