//! `towpath credentials`: a time-limited username and password from a shared secret.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;
use towpath_proto::relay::{RestName, RestSecret};
use towpath_server::config::Config;

use crate::exit::{self, Failure};

/// The port that a URL without one means (RFC 7065 §3.1).
const DEFAULT_PORT: u16 = 3478;
/// Longest time: a credential that outlives its secret says more than it holds.
const MAX_TTL: Duration = Duration::from_secs(366 * 86_400);

#[derive(Args)]
#[command(after_help = "\
The secret is the first of auth.rest_secrets in the configuration, or the first line of a file. Servers
that have it there accept the credential until it ends; their clocks count.

Examples:
  towpath credentials --config towpath.toml --user alice
  towpath credentials --config towpath.toml --user alice --ttl 10m --json
  pass show turn/secret | towpath credentials --secret-file - --server turn.example.org --json")]
pub(crate) struct Arguments {
    /// The configuration that has the secret, with the TOWPATH__* variables above it
    #[arg(short, long, value_name = "FILE", env = "TOWPATH_CONFIG")]
    config: Option<PathBuf>,
    /// Take the secret from the first line of this file, or of standard input (-)
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    secret_file: Option<PathBuf>,
    /// Whose it is: limits and quotas are this user's
    #[arg(short, long, value_name = "ID")]
    user: Option<String>,
    /// How long it is accepted: 90s, 30m, 12h, 7d
    #[arg(long, default_value = "1h", value_parser = ttl)]
    ttl: Duration,
    /// The server's name or address, for the URLs [default: the configuration's addresses]
    #[arg(long, value_name = "HOST[:PORT]")]
    server: Option<String>,
    /// Print an entry of WebRTC's iceServers, with the time it is good for in seconds
    #[arg(long)]
    json: bool,
}

/// An entry of `RTCConfiguration.iceServers`, and how long it is good for.
#[derive(Serialize, PartialEq, Eq, Debug)]
struct IceServer {
    urls: Vec<String>,
    username: String,
    credential: String,
    /// Seconds.
    ttl: u64,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments {
        config,
        secret_file,
        user,
        ttl,
        server,
        json,
    } = arguments;
    let server = server.as_deref().map(url).transpose()?;
    let source = match secret_file {
        Some(path) => Source::read(&path)?,
        None => Source::of_config(config.as_deref())?,
    };
    let urls = server.map_or(source.urls, |url| vec![url]);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|_| Failure::Runtime("the clock of this machine is set before 1970".into()))?;
    let ends_unix_s = now.as_secs() + ttl.as_secs();
    let name = RestName {
        ends_unix_s,
        id: user.as_deref(),
    };
    let username = name
        .username()
        .map_err(|error| Failure::Usage(format!("--user {:?}: {error}", name.id.unwrap_or(""))))?;
    let made = IceServer {
        credential: source.secret.password(&username),
        username,
        urls,
        ttl: ttl.as_secs(),
    };
    if !json {
        return exit::print(text(&made, ends_unix_s, &source.accepted).as_bytes());
    }
    if made.urls.is_empty() {
        return Err(Failure::Usage(
            "which server it is for cannot be told: the configuration has no listening address that \
             clients could send to; give --server HOST[:PORT]"
                .into(),
        ));
    }
    let text =
        serde_json::to_string_pretty(&made).map_err(|error| Failure::Runtime(error.to_string()))?;
    exit::print((text + "\n").as_bytes())
}

fn text(made: &IceServer, ends_unix_s: u64, accepted: &str) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "username  {}", made.username);
    let _ = writeln!(text, "password  {}", made.credential);
    let _ = writeln!(text, "ends      {}", utc(ends_unix_s));
    let _ = writeln!(text, "accepted  {accepted}");
    for url in &made.urls {
        let _ = writeln!(text, "url       {url}");
    }
    text
}

/// A secret, and what is known about the servers that have it.
#[derive(Debug)]
struct Source {
    secret: RestSecret,
    accepted: String,
    urls: Vec<String>,
}

impl Source {
    fn of_config(path: Option<&Path>) -> Result<Self, Failure> {
        let config = Config::load(path, std::env::vars_os()).map_err(Failure::Config)?;
        let name = path.map_or_else(
            || "the environment".to_owned(),
            |path| path.display().to_string(),
        );
        let count = config.auth.rest_secrets.len();
        let Some(secret) = config.auth.rest_secrets.into_iter().next() else {
            return Err(Failure::Usage(match path {
                Some(_) => format!("auth.rest_secrets is empty in {name}: there is no secret"),
                None => "there is no secret: give --config or --secret-file".to_owned(),
            }));
        };
        let which = if count > 1 {
            format!("the first of {count} secrets")
        } else {
            "the secret".to_owned()
        };
        let published = config
            .relay
            .relay_addresses
            .iter()
            .map(|placed| placed.value);
        let published: Vec<_> = published
            .map(|address| (address.local, address.public))
            .collect();
        let listen = config.relay.listen.iter().map(|placed| placed.value);
        Ok(Self {
            secret,
            accepted: format!(
                "in realm {:?}, by servers that have {which} of {name}",
                config.relay.realm
            ),
            urls: listen
                .filter_map(|listen| public_url(listen, &published))
                .collect(),
        })
    }

    fn read(path: &Path) -> Result<Self, Failure> {
        let (name, text) = if path == Path::new("-") {
            ("standard input".to_owned(), first_line(io::stdin().lock()))
        } else {
            let file = File::open(path);
            (path.display().to_string(), file.and_then(first_line))
        };
        let failed = |error: &dyn std::fmt::Display| format!("cannot read {name}: {error}");
        let text = text.map_err(|error| Failure::Runtime(failed(&error)))?;
        let secret = RestSecret::new(&text)
            .map_err(|error| Failure::Usage(format!("the first line of {name}: {error}")))?;
        Ok(Self {
            secret,
            accepted: format!("in every realm, by servers that have the secret of {name}"),
            urls: Vec::new(),
        })
    }
}

/// The first line, without its end.
fn first_line(from: impl Read) -> io::Result<String> {
    // What is too long for a secret is not read to its end, and refused as one.
    let mut bytes = Vec::new();
    from.take(RestSecret::MAX_BYTES as u64 + 2)
        .read_to_end(&mut bytes)?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or(&[]);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8(line.to_vec()).map_err(|_| io::Error::other("it is not UTF-8"))
}

/// The URL of a listening address that clients can send to. Behind a 1:1 NAT they know the public one.
fn public_url(listen: SocketAddr, published: &[(IpAddr, IpAddr)]) -> Option<String> {
    let ip = listen.ip();
    let public = published.iter().find(|(local, _)| *local == ip);
    let ip = public.map_or(ip, |(_, public)| *public);
    let is_reachable = !ip.is_unspecified() && !ip.is_loopback();
    is_reachable.then(|| turn_url(&SocketAddr::new(ip, listen.port()).to_string()))
}

/// The URL of a server as people name it.
fn url(server: &str) -> Result<String, Failure> {
    let wrong = || {
        Failure::Usage(format!(
            "--server {server:?} is no host, host:port or [address]:port"
        ))
    };
    let (host, port) = crate::target::split(server).ok_or_else(wrong)?;
    let is_name = |name: &str| {
        name.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
    };
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => Ok(turn_url(&format!("[{ip}]:{port}"))),
        Ok(IpAddr::V4(_)) => Ok(turn_url(&format!("{host}:{port}"))),
        Err(_) if is_name(host) => Ok(turn_url(&format!("{host}:{port}"))),
        Err(_) => Err(wrong()),
    }
}

/// RFC 7065.
fn turn_url(host_and_port: &str) -> String {
    let default = format!(":{DEFAULT_PORT}");
    let host = host_and_port
        .strip_suffix(&default)
        .unwrap_or(host_and_port);
    format!("turn:{host}?transport=udp")
}

/// Reads `90s`, `30m`, `12h`, `7d`.
fn ttl(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time, such as \"90s\", \"30m\", \"12h\" or \"7d\"");
    let unit = match text.bytes().last() {
        Some(b's') => 1,
        Some(b'm') => 60,
        Some(b'h') => 3600,
        Some(b'd') => 86_400,
        Some(_) | None => return Err(wrong()),
    };
    let digits = &text[..text.len() - 1];
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    let ttl = Duration::from_secs(count.saturating_mul(unit));
    if ttl.is_zero() || ttl > MAX_TTL {
        let days = MAX_TTL.as_secs() / 86_400;
        return Err(format!("{text:?} is not between 1s and {days}d"));
    }
    Ok(ttl)
}

/// A second of Unix time as people read it (RFC 3339).
fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    // Years that begin in March: the day that is not always there is the last one. Eras of 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year + next;
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        let secs = |text| ttl(text).map(|ttl| ttl.as_secs());
        assert_eq!(secs("90s"), Ok(90));
        assert_eq!(secs("30m"), Ok(1800));
        assert_eq!(secs("12h"), Ok(43_200));
        assert_eq!(secs("366d"), Ok(31_622_400));
        for wrong in ["", "s", "1", "1w", "-1s", "1.5h", "1 h", "é"] {
            assert!(secs(wrong).unwrap_err().contains("is no time"), "{wrong}");
        }
        for wrong in ["0s", "367d", "99999999999999999999d"] {
            assert!(secs(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            secs("367d"),
            Err("\"367d\" is not between 1s and 366d".into())
        );
    }

    #[test]
    fn seconds_are_shown_as_dates() {
        for (unix_s, shown) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_799, "2000-02-29 23:59:59 UTC"),
            (1_700_000_000, "2023-11-14 22:13:20 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(unix_s), shown);
        }
    }

    #[test]
    fn servers_are_written_as_urls() {
        for (server, shown) in [
            ("turn.example.org", "turn:turn.example.org?transport=udp"),
            (
                "turn.example.org:3478",
                "turn:turn.example.org?transport=udp",
            ),
            (
                "turn.example.org:13478",
                "turn:turn.example.org:13478?transport=udp",
            ),
            ("192.0.2.1:5000", "turn:192.0.2.1:5000?transport=udp"),
            ("2001:db8::1", "turn:[2001:db8::1]?transport=udp"),
            (
                "[2001:db8::1]:5000",
                "turn:[2001:db8::1]:5000?transport=udp",
            ),
        ] {
            assert_eq!(url(server).map_err(Failure::text), Ok(shown.to_owned()));
        }
        for wrong in ["", "a b", "turn:a.test", "a.test:x", "a/b"] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_listening_address_is_written_as_clients_know_it() {
        let nat = [("10.0.0.4".parse().unwrap(), "203.0.113.5".parse().unwrap())];
        let shown = |listen: &str| public_url(listen.parse().unwrap(), &nat);
        assert_eq!(
            shown("10.0.0.4:3478").as_deref(),
            Some("turn:203.0.113.5?transport=udp")
        );
        assert_eq!(
            shown("[2001:db8::1]:9").as_deref(),
            Some("turn:[2001:db8::1]:9?transport=udp")
        );
        assert_eq!(shown("0.0.0.0:3478"), None);
        assert_eq!(shown("127.0.0.1:3478"), None);
    }

    #[test]
    fn a_secret_is_the_first_line_of_its_file() {
        let line = |text: &[u8]| first_line(text).unwrap();
        assert_eq!(line(b"north\nsouth\n"), "north");
        assert_eq!(line(b"north\r\n"), "north");
        assert_eq!(line(b"north"), "north");
        assert_eq!(line(b""), "");
        assert!(RestSecret::new(&line(&[b'x'; 300])).is_err());
        assert!(first_line(&b"\xff"[..]).is_err());
    }
}
