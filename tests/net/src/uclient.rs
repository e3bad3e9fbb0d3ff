//! coturn's test client, `turnutils_uclient`, and what its report says.

use std::net::SocketAddr;
use std::process::Command;

use crate::lab::Host;
use crate::server::{PASSWORD, USER};

/// The client gives up after this long; a run takes about six seconds.
const LIMIT_SECONDS: &str = "60";

/// One run of the client: relays messages to an echoing peer, or between pairs of clients.
#[derive(Clone, Copy, Debug)]
pub struct Uclient<'a> {
    /// Its own flags, such as `-c` or `-s`.
    pub flags: &'a [&'a str],
    /// The server it uses.
    pub server: SocketAddr,
    /// The echoing peer; `None` with `-y`, where clients talk to each other.
    pub peer: Option<SocketAddr>,
    /// How many clients run at once.
    pub clients: u32,
    /// How many messages each client sends.
    pub messages: u32,
}

/// What the client's report says about all its clients together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UclientOutcome {
    /// Messages it sent.
    pub sent: u64,
    /// Messages that came back or through.
    pub received: u64,
    /// Messages that were lost.
    pub lost: u64,
}

impl Uclient<'_> {
    /// Runs the client on `host` to its end.
    ///
    /// # Errors
    ///
    /// Its whole output, where it fails or reports nothing.
    pub fn run(&self, host: &Host) -> Result<UclientOutcome, String> {
        let output = self
            .command(host)
            .output()
            .map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!("turnutils_uclient: {}\n{text}", output.status));
        }
        UclientOutcome::parse(&text).ok_or_else(|| format!("turnutils_uclient said:\n{text}"))
    }

    /// Runs the client on `host`: everything it sends comes back or through.
    ///
    /// # Panics
    ///
    /// Where something is lost, or the client fails.
    pub fn loses_nothing_on(&self, host: &Host) -> UclientOutcome {
        let outcome = self.run(host).unwrap_or_else(|output| panic!("{output}"));
        let UclientOutcome {
            sent,
            received,
            lost,
        } = outcome;
        assert_eq!((lost, received), (0, sent), "{outcome:?}");
        let least = u64::from(self.clients * self.messages);
        assert!(sent >= least, "{outcome:?}");
        outcome
    }

    fn command(&self, host: &Host) -> Command {
        let mut command = host.command("timeout");
        command.arg(LIMIT_SECONDS);
        // timeout's own child has to be told too to die with it.
        command.args(["setpriv", "--pdeathsig", "KILL", "turnutils_uclient"]);
        command.args(["-u", USER, "-w", PASSWORD]);
        command.args(["-l", "170", "-z", "5"]);
        command.args([
            "-m",
            &self.clients.to_string(),
            "-n",
            &self.messages.to_string(),
        ]);
        command
            .args(["-p", &self.server.port().to_string()])
            .args(self.flags);
        if let Some(peer) = self.peer {
            command.args(["-e", &peer.ip().to_string(), "-r", &peer.port().to_string()]);
        }
        command.arg(self.server.ip().to_string());
        command
    }
}

impl UclientOutcome {
    /// Reads the last totals of a report.
    fn parse(report: &str) -> Option<Self> {
        let last = |key: &str| report.rfind(key).map(|start| &report[start + key.len()..]);
        let number = |text: &str| -> Option<u64> {
            let end = text
                .find(|letter: char| !letter.is_ascii_digit())
                .unwrap_or(text.len());
            text[..end].parse().ok()
        };
        Some(Self {
            sent: number(last("tot_send_msgs=")?)?,
            received: number(last("tot_recv_msgs=")?)?,
            lost: number(last("Total lost packets ")?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::UclientOutcome;

    #[test]
    fn a_report_gives_its_last_totals() {
        let report = "
1: : start_mclient: msz=2, tot_send_msgs=69, tot_recv_msgs=68, tot_send_bytes ~ 11730
2: : start_mclient: tot_send_msgs=100, tot_recv_msgs=97
2: : Total transmit time is 1
2: : Total lost packets 3 (3.000000%), total send dropped 0 (0.000000%)
";
        let outcome = UclientOutcome {
            sent: 100,
            received: 97,
            lost: 3,
        };
        assert_eq!(UclientOutcome::parse(report), Some(outcome));
        assert_eq!(
            UclientOutcome::parse("0: : Cannot complete Allocation"),
            None
        );
    }
}
