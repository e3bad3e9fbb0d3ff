//! What the commands that are nodes share: the key, the sockets, the call, and the end.

mod interrupt;
mod pipe;
mod request;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use futures::executor::block_on;
use futures::future::{Either, select};
use towpath::{
    CloseReason, ConnectError, Connection, Driver, Fault, Identity, Node, NodeBuilder, PeerAddr,
    SecretKey, SecurityLevel, SecurityPolicy, key_file,
};
use towpath_proto::peer::ConnectError as NotBegun;
use towpath_proto::pool::{DialError, GetError};
use towpath_server::directories::{self, Directories};

use crate::exit::Failure;
use crate::table::printable;

pub(crate) use interrupt::{Interrupt, after};
pub(crate) use pipe::{Pipe, join};
pub(crate) use request::{Request, StreamFailure, UNBOUNDED, UNSERVED};

/// The key's name in the directory for state.
const KEY_FILE: &str = "node.key";
/// How often something is sent on a connection on which nothing is said.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long the end waits for peers to have heard of it. One who has not notices by itself.
const FAREWELL: Duration = Duration::from_secs(1);

/// TLS's alert where there is no common key exchange (RFC 8446 §6.2).
const HANDSHAKE_FAILURE: u8 = 40;
/// And that where there is no common protocol (RFC 7301 §3.2).
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// What connections are closed with, besides 0 for the end of a node.
pub(crate) mod code {
    /// All of both directions was delivered.
    pub(crate) const DELIVERED: u32 = 2;
    /// The node talks with another peer.
    pub(crate) const BUSY: u32 = 3;
    /// The node takes calls from others only.
    pub(crate) const NOT_ALLOWED: u32 = 4;
    /// Whoever sat there pressed Ctrl-C.
    pub(crate) const INTERRUPTED: u32 = 5;
    /// What was to be delivered could not be.
    pub(crate) const FAILED: u32 = 6;
}

/// Where the key is.
#[derive(Args)]
pub(crate) struct KeyOption {
    /// The file with the key: PKCS #8 in PEM, which nobody else may read
    #[arg(short, long, value_name = "FILE")]
    key: Option<PathBuf>,
}

impl KeyOption {
    /// The key; made where there is none.
    pub(crate) fn read(&self) -> Result<SecretKey, Failure> {
        let path = match &self.key {
            Some(path) => path.clone(),
            None => default_path()?,
        };
        let (key, _) =
            key_file::read_or_create(&path).map_err(|error| Failure::Runtime(error.to_string()))?;
        Ok(key)
    }
}

fn default_path() -> Result<PathBuf, Failure> {
    let state = Directories::choose(None, None)
        .map_err(|_| {
            Failure::Usage("neither XDG_STATE_HOME nor HOME is set; name a file with --key".into())
        })?
        .state;
    directories::create(&state, 0o700).map_err(|error| {
        Failure::Runtime(format!(
            "cannot make the directory {}: {error}",
            state.display()
        ))
    })?;
    Ok(state.join(KEY_FILE))
}

/// What drives the sockets.
#[derive(Clone, Copy, ValueEnum)]
enum DriverOption {
    /// io_uring, and epoll where that is forbidden
    Auto,
    /// io_uring or nothing
    #[value(name = "io_uring")]
    IoUring,
    /// epoll
    Epoll,
}

/// What a node is made of.
#[derive(Args)]
pub(crate) struct NodeOptions {
    #[command(flatten)]
    key: KeyOption,
    /// Use a new key, and forget it at the end
    #[arg(short, long, conflicts_with = "key")]
    ephemeral: bool,
    /// An address to listen on and to send from; port 0 is one that the system chooses. Several times
    /// for several
    #[arg(short, long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// Allow connections without a post-quantum key exchange
    #[arg(long)]
    allow_classical: bool,
    /// What drives the sockets
    #[arg(long, value_enum, default_value = "auto")]
    driver: DriverOption,
}

/// Whom a command calls.
#[derive(Args)]
pub(crate) struct Callee {
    /// The peer and where it is, as `towpath listen` prints it: PEER-ID@ADDRESS:PORT,…
    #[arg(value_name = "PEER-ADDR")]
    to: PeerAddr,
    /// Seconds to wait until the connection stands
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    #[command(flatten)]
    node: NodeOptions,
}

/// A connection that was made, and the node that has it.
pub(crate) struct Call {
    pub(crate) node: Node,
    pub(crate) connection: Connection,
    /// How long it took.
    pub(crate) took: Duration,
}

impl NodeOptions {
    /// Starts a node that listens where it was told to, else on any port of all IPv4 addresses.
    pub(crate) fn spawn(&self) -> Result<Node, Failure> {
        self.start(self.builder()?, &self.listen)
    }

    /// As [`spawn`](Self::spawn), of every family that the peer has addresses of.
    fn spawn_to_call(&self, to: &PeerAddr, timeout: Duration) -> Result<Node, Failure> {
        let builder = self.builder()?.configure(|config| {
            let retry = &mut config.pool.retry;
            retry.deadline = timeout;
            retry.attempt_timeout = retry.attempt_timeout.min(timeout);
        });
        if !self.listen.is_empty() {
            return self.start(builder, &self.listen);
        }
        let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let (has_v4, has_v6) = (
            to.addresses().iter().any(SocketAddr::is_ipv4),
            to.addresses().iter().any(SocketAddr::is_ipv6),
        );
        match (has_v4, has_v6) {
            // A machine without IPv6 still reaches the other addresses.
            (true, true) => self
                .start(builder.clone(), &[v4, v6])
                .or_else(|_| self.start(builder, &[v4])),
            (false, true) => self.start(builder, &[v6]),
            (_, false) => self.start(builder, &[v4]),
        }
    }

    fn builder(&self) -> Result<NodeBuilder, Failure> {
        let mut builder = Node::builder().configure(|config| {
            config.quic.keep_alive = Some(KEEP_ALIVE);
        });
        if !self.ephemeral {
            builder = builder.key(self.key.read()?);
        }
        if self.allow_classical {
            builder = builder.security(SecurityPolicy::AllowClassical);
        }
        Ok(builder.driver(match self.driver {
            DriverOption::Auto => Driver::Auto,
            DriverOption::IoUring => Driver::IoUring,
            DriverOption::Epoll => Driver::Epoll,
        }))
    }

    fn start(&self, builder: NodeBuilder, listen: &[SocketAddr]) -> Result<Node, Failure> {
        let builder = listen
            .iter()
            .fold(builder, |builder, address| builder.listen(*address));
        builder
            .spawn()
            .map_err(|error| Failure::Runtime(format!("the node does not start: {error}")))
    }
}

impl Callee {
    /// Starts a node and calls the peer.
    pub(crate) fn call(&self, interrupt: &Interrupt) -> Result<Call, Failure> {
        let timeout = Duration::from_secs(self.timeout);
        let node = self.node.spawn_to_call(&self.to, timeout)?;
        let begun = Instant::now();
        let called = block_on(async {
            match select(pin!(node.connect(&self.to)), pin!(interrupt.wait())).await {
                Either::Left((connected, _)) => connected.map_err(|error| self.explain(&error)),
                Either::Right(_) => Err(Failure::Runtime("interrupted".into())),
            }
        });
        let took = begun.elapsed();
        match called {
            Ok(connection) => Ok(Call {
                node,
                connection,
                took,
            }),
            Err(failure) => {
                close(&node);
                Err(failure)
            }
        }
    }

    /// Which step failed, and whose fault it is.
    fn explain(&self, error: &ConnectError) -> Failure {
        let hint = match last_attempt(error) {
            Some(DialError::NotBegun(NotBegun::Myself)) => {
                "this node has the same key; --ephemeral or --key gives it another"
            }
            Some(DialError::Ended(CloseReason::WrongPeer(_))) => {
                "the address belongs to somebody else, or the peer has a new key"
            }
            Some(DialError::Ended(CloseReason::Refused(HANDSHAKE_FAILURE)))
                if !self.node.allow_classical =>
            {
                "most likely it has no post-quantum key exchange; --allow-classical does without"
            }
            Some(DialError::Ended(CloseReason::Refused(NO_APPLICATION_PROTOCOL))) => {
                "who is there speaks another protocol than nodes do"
            }
            _ => match error.fault() {
                Fault::Caller => "this cannot be asked for",
                Fault::Here => "the fault is on this end",
                Fault::Peer => "the fault is on the peer's end",
                Fault::Network => "the peer is not there, or the network does not carry UDP to it",
            },
        };
        self.failure(&format!("{error}; {hint}"))
    }

    fn failure(&self, why: &str) -> Failure {
        let addresses: Vec<_> = self
            .to
            .addresses()
            .iter()
            .map(ToString::to_string)
            .collect();
        let places = match addresses.is_empty() {
            true => "no address".to_owned(),
            false => addresses.join(", "),
        };
        Failure::Runtime(format!(
            "no connection to {} at {places}: {why}",
            self.to.id()
        ))
    }
}

/// Why the last attempt failed, where there was one.
fn last_attempt(error: &ConnectError) -> Option<&DialError> {
    match error {
        ConnectError::Pool(GetError::Failed { error, .. }) => Some(error),
        ConnectError::Pool(GetError::Deadline { last, .. }) => last.as_ref(),
        ConnectError::Pool(_) | ConnectError::NodeClosed => None,
    }
}

impl Call {
    /// Ends the node; the peer is told.
    pub(crate) fn end(self) {
        drop(self.connection);
        close(&self.node);
    }
}

/// Ends a node; its peers are told.
pub(crate) fn close(node: &Node) {
    let late = after(FAREWELL);
    block_on(async {
        select(pin!(node.close()), pin!(late.wait())).await;
    });
}

/// Why a connection is over, with what the peer says about it.
pub(crate) fn shown_reason(reason: &CloseReason) -> String {
    match reason {
        CloseReason::Peer { reason, .. } if !reason.is_empty() => {
            let said = printable(&String::from_utf8_lossy(reason));
            format!("closed by the peer: {said}")
        }
        CloseReason::Peer { code: 0, .. } => "closed by the peer".to_owned(),
        other => other.to_string(),
    }
}

/// What a connection's keys rest upon, as a word.
pub(crate) fn shown_security(level: SecurityLevel) -> &'static str {
    match level {
        SecurityLevel::PostQuantum => "post-quantum",
        SecurityLevel::Classical => "classical",
    }
}

/// Who has a key.
pub(crate) fn id_of(key: SecretKey) -> towpath::PeerId {
    Identity::new(key).id()
}
