//! `towpath status`: what the server of this machine does.

use std::fmt::{self, Display, Write as _};

use clap::Args;
use towpath_server::ControlClient;
use towpath_server::status::{Fate, InterfaceStatus, Status};

use crate::exit::{self, Failure};
use crate::serve::Places;

#[derive(Args)]
#[command(after_help = "\
Examples:
  towpath status
  towpath status --json | jq .rates")]
pub(crate) struct Arguments {
    /// Print everything, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    places: Places,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { json, places } = arguments;
    let directories = places.choose()?;
    let status = ControlClient::new(directories.control_socket())
        .status()
        .map_err(|error| Failure::Runtime(error.to_string()))?;
    let text = if json {
        let mut text = serde_json::to_string_pretty(&status)
            .map_err(|error| Failure::Runtime(error.to_string()))?;
        text.push('\n');
        text
    } else {
        Shown(&status).to_string()
    };
    exit::print(text.as_bytes())
}

/// A status for people.
struct Shown<'a>(&'a Status);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.0;
        let state = if status.draining {
            "draining: it ends with the last allocation".to_owned()
        } else if status.unready.is_empty() {
            "ready".to_owned()
        } else {
            format!("not ready: {}", status.unready.join("; "))
        };
        writeln!(f, "towpath {}, process {}", status.version, status.pid)?;
        line(
            f,
            "state",
            format_args!("{state}, up {}", Span(status.uptime_s)),
        )?;
        let driver = &status.driver;
        line(
            f,
            "driver",
            format_args!("{} ({})", driver.in_use, driver.reason),
        )?;
        self.kernel(f)?;
        for capability in &status.capabilities {
            if let Some(missing) = &capability.missing {
                let (name, fallback) = (&capability.name, &capability.fallback);
                line(
                    f,
                    "",
                    format_args!("without {name} ({missing}): {fallback}"),
                )?;
            }
        }
        let listen: Vec<_> = status.listen.iter().map(ToString::to_string).collect();
        line(f, "listening", listen.join(", "))?;
        line(f, "relaying from", relay_addresses(status))?;
        line(
            f,
            "realm",
            format_args!("{}, {} users", status.realm, status.users),
        )?;
        line(
            f,
            "allocations",
            format_args!(
                "{} ({} made{})",
                status.allocations,
                status.allocations_made,
                match status.allocations_moved {
                    0 => String::new(),
                    moved => format!(", {moved} moves"),
                }
            ),
        )?;
        let (first, last) = status.port_range;
        let free = status.ports.saturating_sub(status.ports_in_use);
        line(
            f,
            "relayed ports",
            format_args!(
                "{} in use, {free} free ({first}-{last})",
                status.ports_in_use
            ),
        )?;
        self.quotas(f)?;
        self.traffic(f)?;
        self.requests(f)?;
        for (index, note) in status.notes.iter().enumerate() {
            line(f, if index == 0 { "notes" } else { "" }, note)?;
        }
        Ok(())
    }
}

impl Shown<'_> {
    fn kernel(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernel = &self.0.kernel;
        if kernel.interfaces.is_empty() {
            let reason = kernel
                .unpinned
                .as_deref()
                .unwrap_or("no interface to be on");
            return line(f, "kernel path", format_args!("none: {reason}"));
        }
        for (index, interface) in kernel.interfaces.iter().enumerate() {
            let name = if index == 0 { "kernel path" } else { "" };
            let InterfaceStatus {
                name: on,
                rung,
                reason,
            } = interface;
            match reason {
                Some(reason) => line(f, name, format_args!("{on}: {rung} ({reason})"))?,
                None => line(f, name, format_args!("{on}: {rung}"))?,
            }
        }
        if kernel.interfaces.iter().all(|on| on.rung == "userspace") {
            return Ok(());
        }
        match (&kernel.pins, &kernel.unpinned) {
            (Some(pins), _) => line(f, "", format_args!("pinned in {pins}"))?,
            (None, Some(reason)) => line(f, "", format_args!("not pinned: {reason}"))?,
            (None, None) => {}
        }
        let (routes, room, failures) = (kernel.routes, kernel.max_routes, kernel.route_failures);
        line(
            f,
            "kernel routes",
            format_args!("{routes} of {room}, {failures} failed"),
        )?;
        for fate in [Fate::Relayed, Fate::Passed, Fate::Dropped] {
            let of_fate = kernel
                .reasons
                .iter()
                .filter(|(_, count)| count.fate == fate);
            let counts: Vec<_> = of_fate
                .map(|(name, count)| format!("{name}: {}", count.packets))
                .collect();
            let name = match fate {
                Fate::Relayed => "kernel relayed",
                Fate::Passed => "kernel passed",
                Fate::Dropped => "kernel dropped",
            };
            line(f, name, or_none(&counts))?;
        }
        Ok(())
    }

    fn quotas(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quotas = &self.0.quotas;
        let limit = |limit: Option<u32>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
        line(
            f,
            "quotas",
            format_args!(
                "{} of {} in all; {} users, {} each; {} networks, {} each",
                quotas.allocations,
                limit(quotas.total),
                quotas.users,
                limit(quotas.per_user),
                quotas.networks,
                limit(quotas.per_network)
            ),
        )?;
        let refusals = self.0.refusals.iter();
        let refusals: Vec<_> = refusals
            .map(|(name, count)| format!("{name}: {count}"))
            .collect();
        line(f, "refused by limit", or_none(&refusals))
    }

    fn traffic(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rates, relayed) = (&self.0.rates, &self.0.relayed);
        line(
            f,
            "rate",
            format_args!(
                "{:.0} packets/s, {}bit/s over the last {:.0} s",
                rates.packets_per_s,
                Scaled(rates.bytes_per_s * 8.0),
                rates.window_s
            ),
        )?;
        let shared = match self.0.shares {
            0 => String::new(),
            shares => format!(", reached and shared between {shares}"),
        };
        line(
            f,
            "global limit",
            format_args!("{}{shared}", self.0.global_limit),
        )?;
        for (name, metered) in [
            ("users sent", self.0.metered_up),
            ("users received", self.0.metered_down),
        ] {
            let (packets, dropped) = (metered.packets, metered.dropped_packets);
            let bytes = Scaled(metered.bytes as f64);
            line(
                f,
                name,
                format_args!("{packets} packets, {bytes}B; {dropped} over limits"),
            )?;
        }
        for (name, packets, bytes) in [
            ("to peers", relayed.packets_to_peers, relayed.bytes_to_peers),
            (
                "to clients",
                relayed.packets_to_clients,
                relayed.bytes_to_clients,
            ),
        ] {
            line(
                f,
                name,
                format_args!("{packets} packets, {}B", Scaled(bytes as f64)),
            )?;
        }
        let shards: Vec<_> = self
            .0
            .shards
            .iter()
            .map(|shard| shard.allocations.to_string())
            .collect();
        line(
            f,
            "shards",
            format_args!("{}, allocations {}", shards.len(), shards.join(" ")),
        )
    }

    fn requests(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let requests = self
            .0
            .requests
            .iter()
            .filter(|(_, counts)| counts.requests > 0);
        let requests: Vec<_> = requests
            .map(|(name, counts)| format!("{name} {}/{}", counts.successes, counts.requests))
            .collect();
        line(f, "requests", or_none(&requests))?;
        let errors: Vec<_> = self
            .0
            .errors
            .iter()
            .map(|(code, count)| format!("{code}: {count}"))
            .collect();
        line(f, "error responses", or_none(&errors))?;
        let engine = self.0.engine.iter().filter_map(|(name, count)| {
            Some((name.strip_prefix("drop_")?, *count)).filter(|(_, count)| *count > 0)
        });
        let drops: Vec<_> = self
            .0
            .drops
            .iter()
            .map(|(name, count)| (name.as_str(), *count))
            .chain(engine)
            .map(|(name, count)| format!("{name}: {count}"))
            .collect();
        line(f, "drops", or_none(&drops))
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, value: impl Display) -> fmt::Result {
    writeln!(f, "  {name:<16} {value}")
}

fn or_none(list: &[String]) -> String {
    if list.is_empty() {
        "none".to_owned()
    } else {
        list.join(", ")
    }
}

fn relay_addresses(status: &Status) -> String {
    let mut text = String::new();
    for (index, address) in status.relay_addresses.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        let _ = write!(text, "{separator}{}", address.local);
        if address.public != address.local {
            let _ = write!(text, " (public {})", address.public);
        }
    }
    text
}

/// Seconds as days, hours, minutes and seconds; the two largest that are there.
struct Span(u64);

impl Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, hours) = (self.0 / 86_400, self.0 / 3600 % 24);
        let (minutes, seconds) = (self.0 / 60 % 60, self.0 % 60);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{seconds} s"),
            (0, 0, _) => write!(f, "{minutes} min {seconds} s"),
            (0, _, _) => write!(f, "{hours} h {minutes} min"),
            (_, _, _) => write!(f, "{days} d {hours} h"),
        }
    }
}

/// A number with a decimal prefix, and room for a unit behind it.
pub(crate) struct Scaled(pub(crate) f64);

impl Display for Scaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0;
        for prefix in ["", "k", "M", "G"] {
            if value < 1000.0 {
                let digits = if prefix.is_empty() { 0 } else { 1 };
                return write!(f, "{value:.digits$} {prefix}");
            }
            value /= 1000.0;
        }
        write!(f, "{value:.1} T")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_with_the_prefix_that_fits() {
        let shown: Vec<_> = [0.0, 999.0, 1500.0, 2.5e9, 3e15]
            .map(|value| Scaled(value).to_string())
            .into();
        assert_eq!(shown, ["0 ", "999 ", "1.5 k", "2.5 G", "3000.0 T"]);
    }

    #[test]
    fn spans_are_shown_by_their_two_largest_parts() {
        let shown: Vec<_> = [5, 61, 3_660, 90_000]
            .map(|span| Span(span).to_string())
            .into();
        assert_eq!(shown, ["5 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
    }
}
