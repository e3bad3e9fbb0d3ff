//! `towpath serve`: the server.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use towpath_server::config::{ConfigSource, KernelMode};
use towpath_server::directories::Directories;
use towpath_server::generated::{GeneratedUser, Kept};
use towpath_server::log::{self, LogFormat};
use towpath_server::plan::PlanError;
use towpath_server::server::{ServeOptions, Server, StartError};

use crate::exit::{self, Failure};

const DEFAULT_PORT: u16 = 3478;

#[derive(Args)]
#[command(after_help = "\
Examples:
  towpath serve                                           the embedded default
  towpath serve --config /etc/towpath/towpath.toml
  TOWPATH__RELAY__LISTEN=192.0.2.1:3478 towpath serve     one key set by the environment

SIGTERM and Ctrl-C stop it; a second one ends it at once. SIGHUP has it read its configuration again,
SIGUSR1 has it make no new allocations and end with the last one.")]
pub(crate) struct Arguments {
    /// The configuration; without one, the embedded default and a user made up at the start
    #[arg(short, long, value_name = "FILE", env = "TOWPATH_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    places: Places,
    /// Where packets are relayed: in the kernel as far as this machine allows (auto), by native or
    /// generic XDP or not at all (native, generic), or in userspace only (off) [default: kernel.mode]
    #[arg(long, value_enum, value_name = "MODE")]
    kernel: Option<Kernel>,
    /// How log lines look
    #[arg(long, value_enum, default_value = "text", env = "TOWPATH_LOG_FORMAT")]
    log_format: Format,
    /// error, warn, info, debug, trace or off
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "info",
        env = "TOWPATH_LOG"
    )]
    log_level: String,
}

/// Where a server's state and socket lie.
#[derive(Args, Clone)]
pub(crate) struct Places {
    /// What outlives a restart [default: /var/lib/towpath, or $XDG_STATE_HOME/towpath]
    #[arg(long, global = true, value_name = "DIR", env = "TOWPATH_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// The control socket [default: /run/towpath, or $XDG_RUNTIME_DIR/towpath]
    #[arg(long, global = true, value_name = "DIR", env = "TOWPATH_RUNTIME_DIR")]
    runtime_dir: Option<PathBuf>,
}

impl Places {
    pub(crate) fn choose(self) -> Result<Directories, Failure> {
        Directories::choose(self.state_dir, self.runtime_dir)
            .map_err(|error| Failure::Runtime(error.to_string()))
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kernel {
    Auto,
    Native,
    Generic,
    Off,
}

impl From<Kernel> for KernelMode {
    fn from(kernel: Kernel) -> Self {
        match kernel {
            Kernel::Auto => Self::Auto,
            Kernel::Native => Self::Native,
            Kernel::Generic => Self::Generic,
            Kernel::Off => Self::Off,
        }
    }
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments {
        config: file,
        places,
        kernel,
        log_format,
        log_level,
    } = arguments;
    let format = match log_format {
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    };
    log::start(format, &log_level).map_err(|error| Failure::Usage(error.to_string()))?;
    let source = ConfigSource {
        file,
        kernel_mode: kernel.map(KernelMode::from),
    };
    let config = source.load().map_err(Failure::Config)?;
    let has_users = !config.auth.users.is_empty() || !config.auth.rest_secrets.is_empty();
    let generated_user = (source.file.is_none() && !has_users).then(GeneratedUser::new);
    let realm = config.relay.realm.clone();
    let observe = config.observe.listen.as_ref().map(|listen| listen.value);
    let options = ServeOptions {
        config,
        source,
        directories: places.choose()?,
        generated_user,
    };
    let server = Server::start(options).map_err(failure)?;
    if let Some((user, kept)) = server.generated_user() {
        introduce(user, kept, &realm, server.listeners(), observe)?;
    }
    server
        .run()
        .map_err(|error| Failure::Runtime(error.to_string()))?;
    Ok(())
}

fn failure(error: StartError) -> Failure {
    match error {
        StartError::Plan(PlanError::Config(errors)) => Failure::Config(errors.into()),
        StartError::Plan(error @ PlanError::Privilege(_)) => Failure::Privilege(error.to_string()),
        error => Failure::Runtime(error.to_string()),
    }
}

/// Shows a generated user on a terminal, and only there: what goes elsewhere may be kept.
fn introduce(
    user: &GeneratedUser,
    kept: &Kept,
    realm: &str,
    listeners: &[SocketAddr],
    observe: Option<SocketAddr>,
) -> Result<(), Failure> {
    if !io::stdout().is_terminal() {
        match kept {
            Kept::File(path) => {
                tracing::info!(file = %path.display(), "no user is configured: one was made up");
            }
            Kept::Nowhere { path, error } => tracing::warn!(
                file = %path.display(),
                %error,
                "no user is configured, and one that was made up could not be written"
            ),
        }
        return Ok(());
    }
    let GeneratedUser { name, password } = user;
    let mut text = format!(
        "\nNo user is configured; this one was made up and lasts until the server stops:\n\n  \
         user      {name}\n  password  {password}\n  realm     {realm}\n\nTry it:\n"
    );
    let program = program();
    if let Some(address) = listeners.first().map(|listener| reachable(*listener)) {
        let (ip, port) = (address.ip(), address.port());
        let host = if port == DEFAULT_PORT {
            ip.to_string()
        } else {
            address.to_string()
        };
        let _ = write!(
            text,
            "  {program} turn {host} --user {name} --password {password}\n  \
             turnutils_uclient -y -c -u {name} -w {password} -p {port} {ip}\n"
        );
    }
    let _ = writeln!(text, "  {program} status");
    if let Some(observe) = observe {
        let _ = writeln!(text, "  curl http://{observe}/metrics");
    }
    text.push_str("\nCtrl-C stops it.\n\n");
    exit::print(text.as_bytes())
}

/// How this program was called: what is not installed is called by its path.
fn program() -> String {
    std::env::args()
        .next()
        .unwrap_or_else(|| "towpath".to_owned())
}

/// The listening address as a client on this machine can use it.
fn reachable(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listener.port())
}
