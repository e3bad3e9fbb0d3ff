//! The servers under test: coturn, which shows that a test is right, and Towpath on each driver.

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::unix;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::Signal;

use crate::lab::Host;
use crate::process::{Process, wait_for};

/// The user every server knows.
pub const USER: &str = "alice";
/// The user's password.
pub const PASSWORD: &str = "secret";
/// The realm.
pub const REALM: &str = "example.org";

/// A Binding request without attributes, to see whether a server is up.
const BINDING_REQUEST: [u8; 20] = [
    0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
];

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Debian's coturn.
    Coturn,
    /// Our own.
    Towpath(Driver),
}

/// How Towpath talks to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// As it finds best.
    Auto,
    /// By the ring.
    IoUring,
    /// By epoll.
    Epoll,
}

/// An address allocations are given: where the server binds, and what it tells.
#[derive(Clone, Copy, Debug)]
pub struct RelayAddress {
    /// The host's own.
    pub local: IpAddr,
    /// What others see, such as a cloud's 1:1 NAT.
    pub public: IpAddr,
}

impl From<IpAddr> for RelayAddress {
    fn from(address: IpAddr) -> Self {
        Self {
            local: address,
            public: address,
        }
    }
}

/// Which way of relaying in the kernel Towpath may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelMode {
    /// The best there is.
    Auto,
    /// In the driver, or no start.
    Native,
    /// Before the network stack, or no start.
    Generic,
    /// None.
    Off,
}

impl KernelMode {
    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
        }
    }
}

/// What a server is told about the kernel path.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// Which rungs it may use.
    pub mode: KernelMode,
    /// Where maps are pinned.
    pub pins: PathBuf,
    /// Interfaces, if others than by default.
    pub interfaces: Vec<String>,
}

/// What a server is told.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where clients come.
    pub listen: Vec<SocketAddr>,
    /// What allocations are given.
    pub relay: Vec<RelayAddress>,
    /// The relayed ports.
    pub ports: RangeInclusive<u16>,
    /// Prefixes that are allowed as peers although they are special.
    pub allow: Vec<String>,
    /// Prefixes that are refused as peers in any case.
    pub deny: Vec<String>,
    /// Whether it runs as an ordinary user.
    pub unprivileged: bool,
    /// Shards; 0 for one per core.
    pub shards: u16,
    /// Users besides [`USER`], with the same password.
    pub users: Vec<String>,
    /// Secrets of time-limited credentials.
    pub secrets: Vec<String>,
    /// The kernel path; off where there is none, as the switch of a laboratory takes nothing from it.
    pub kernel: Option<KernelOptions>,
    /// Lines of the section `[limits]`.
    pub limits: Vec<String>,
    /// Two addresses for NAT behaviour discovery; coturn takes the listening ones.
    pub behavior: Vec<RelayAddress>,
    /// Servers that clients are sent to while it is full.
    pub alternates: Vec<SocketAddr>,
    /// Whether allocations may follow their clients to other addresses.
    pub mobility: bool,
}

impl ServerOptions {
    /// Listens and relays on these addresses, and allows the laboratory's networks as peers.
    pub fn on(addresses: &[IpAddr]) -> Self {
        Self {
            listen: addresses
                .iter()
                .map(|&address| SocketAddr::new(address, 3478))
                .collect(),
            relay: addresses.iter().copied().map(RelayAddress::from).collect(),
            ports: 50_000..=51_999,
            allow: vec!["10.77.2.0/24".into(), "fd77:2::/64".into()],
            deny: Vec::new(),
            unprivileged: false,
            shards: 0,
            users: Vec::new(),
            secrets: Vec::new(),
            kernel: None,
            limits: Vec::new(),
            behavior: Vec::new(),
            alternates: Vec::new(),
            mobility: false,
        }
    }

    fn kernel(&self) -> String {
        let Some(kernel) = &self.kernel else {
            return "[kernel]\nmode = \"off\"\n".to_owned();
        };
        let (mode, pins, interfaces) = (kernel.mode.name(), &kernel.pins, &kernel.interfaces);
        format!("[kernel]\nmode = {mode:?}\npins = {pins:?}\ninterfaces = {interfaces:?}\n")
    }

    fn towpath(&self, driver: Driver) -> String {
        let quoted = |items: Vec<String>| {
            items
                .iter()
                .map(|item| format!("{item:?}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let pairs = |addresses: &[RelayAddress]| {
            let pair = |RelayAddress { local, public }: &RelayAddress| {
                format!("{{ local = \"{local}\", public = \"{public}\" }}")
            };
            addresses.iter().map(pair).collect::<Vec<_>>().join(", ")
        };
        let users = std::iter::once(USER).chain(self.users.iter().map(String::as_str));
        let users = users.map(|user| format!("{user} = \"plain:{PASSWORD}\""));
        format!(
            "[relay]\nlisten = [{listen}]\nrelay_addresses = [{relay}]\n\
             port_range = \"{first}-{last}\"\nrealm = \"{REALM}\"\nshards = {shards}\n\
             driver = \"{driver}\"\nalternate_servers = [{alternates}]\nmobility = {mobility}\n\n\
             [stun]\nbehavior_addresses = [{behavior}]\n\n\
             [auth]\nusers = {{ {users} }}\nrest_secrets = [{secrets}]\n\n\
             [access]\nallow = [{allow}]\ndeny = [{deny}]\n\n\
             {kernel}\n[limits]\n{limits}\n",
            listen = quoted(self.listen.iter().map(SocketAddr::to_string).collect()),
            relay = pairs(&self.relay),
            behavior = pairs(&self.behavior),
            alternates = quoted(self.alternates.iter().map(SocketAddr::to_string).collect()),
            first = self.ports.start(),
            last = self.ports.end(),
            shards = self.shards,
            mobility = self.mobility,
            users = users.collect::<Vec<_>>().join(", "),
            secrets = quoted(self.secrets.clone()),
            kernel = self.kernel(),
            limits = self.limits.join("\n"),
            driver = match driver {
                Driver::Auto => "auto",
                Driver::IoUring => "io_uring",
                Driver::Epoll => "epoll",
            },
            allow = quoted(self.allow.clone()),
            deny = quoted(self.deny.clone()),
        )
    }

    fn coturn(&self) -> String {
        let mut text = format!(
            "user={USER}:{PASSWORD}\nrealm={REALM}\nlt-cred-mech\nno-cli\nno-tls\nno-dtls\n\
             userdb=turn.db\npidfile=turn.pid\nlog-file=stdout\nmin-port={}\nmax-port={}\n",
            self.ports.start(),
            self.ports.end()
        );
        if self.mobility {
            text += "mobility\n";
        }
        for address in &self.listen {
            let _ = writeln!(text, "listening-ip={}", address.ip());
        }
        for RelayAddress { local, public } in &self.relay {
            let _ = writeln!(text, "relay-ip={local}");
            if local != public {
                let _ = writeln!(text, "external-ip={public}/{local}");
            }
        }
        text
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    process: Process,
    host: Host,
}

impl Server {
    /// Starts it on `host` and waits until it answers on every address it listens on.
    pub fn start(kind: Kind, host: &Host, options: &ServerOptions) -> Self {
        let process = Process::start("server", command(kind, host, options), host.directory());
        Self::ready(kind, process, host, options)
    }

    /// As [`Server::start`], where io_uring is forbidden.
    pub fn start_without_io_uring(kind: Kind, host: &Host, options: &ServerOptions) -> Self {
        let command = command(kind, host, options);
        let process = Process::start_without_io_uring("server", command, host.directory());
        Self::ready(kind, process, host, options)
    }

    fn ready(kind: Kind, mut process: Process, host: &Host, options: &ServerOptions) -> Self {
        for &address in &options.listen {
            host.wait_for_answer(&mut process, address, &BINDING_REQUEST);
        }
        Self {
            kind,
            process,
            host: host.clone(),
        }
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Panics
    ///
    /// Where it does not end.
    pub fn stop(mut self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        self.process.wait(Duration::from_secs(30))
    }

    /// Ends it without a warning.
    ///
    /// # Panics
    ///
    /// Where it does not end.
    pub fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait(Duration::from_secs(30));
    }

    /// Waits until Towpath's control plane has started too, which answers `towpath status`.
    ///
    /// # Panics
    ///
    /// Where it does not.
    pub fn wait_for_control(&self) {
        let socket = self.host.directory().join("run").join("control.sock");
        wait_for("the control socket", Duration::from_secs(30), || {
            socket.exists().then_some(())
        });
        self.status();
    }

    /// What `towpath status` says.
    ///
    /// # Panics
    ///
    /// Where it fails.
    pub fn status(&self) -> String {
        let directory = self.host.directory();
        let (program, runtime) = (directory.join("towpath"), directory.join("run"));
        let arguments = ["status", "--runtime-dir", &runtime.to_string_lossy()];
        self.host.run(&program.to_string_lossy(), &arguments)
    }

    /// As [`Server::status`], all of it.
    ///
    /// # Panics
    ///
    /// Where it fails.
    pub fn status_json(&self) -> serde_json::Value {
        let text = tool(&self.host, &["status", "--json"]);
        serde_json::from_str(&text).expect("status prints JSON")
    }

    /// Writes another configuration into its file; it takes effect when the server reads it.
    pub fn configure(&self, options: &ServerOptions) {
        write_configuration(self.kind, &self.host, options);
    }

    /// Has Towpath read another configuration; gives what `towpath reload` says.
    ///
    /// # Panics
    ///
    /// Where it fails.
    pub fn reload(&self, options: &ServerOptions) -> String {
        self.configure(options);
        tool(&self.host, &["reload"])
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }
}

/// Runs the program on `host`, as beside a server there, with the directories of its laboratory.
///
/// # Panics
///
/// Where it fails.
pub fn tool(host: &Host, arguments: &[&str]) -> String {
    let directory = host.directory();
    let (program, runtime, state) = (
        directory.join("towpath"),
        directory.join("run"),
        directory.join("state"),
    );
    let (runtime, state) = (runtime.to_string_lossy(), state.to_string_lossy());
    let places = ["--runtime-dir", &runtime, "--state-dir", &state];
    host.run(&program.to_string_lossy(), &[arguments, &places].concat())
}

/// An ordinary user's id: Debian's `nobody`.
const NOBODY: u32 = 65_534;

/// The program under test: what `TOWPATH_BINARY` names, else cargo is asked to build it.
fn binary() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(binary) = std::env::var_os("TOWPATH_BINARY") {
            return binary.into();
        }
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "towpath-cli"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "the towpath program does not build"
        );
        let test = std::env::current_exe().expect("a test knows where it lies");
        let target = test
            .ancestors()
            .nth(2)
            .expect("tests lie two levels below the profile");
        target.join("towpath")
    })
}

/// Puts the program under test into the directory of a host's laboratory, as where it was built may be
/// closed to other users, and says where it is.
///
/// # Panics
///
/// Where it cannot be copied.
pub fn install(host: &Host) -> PathBuf {
    let program = host.directory().join("towpath");
    if !program.exists() {
        fs::copy(binary(), &program).expect("the program can be copied");
    }
    program
}

/// Writes what a server on `host` is configured with, and says where it is.
fn write_configuration(kind: Kind, host: &Host, options: &ServerOptions) -> PathBuf {
    let (file, text) = match kind {
        Kind::Coturn => ("turnserver.conf", options.coturn()),
        Kind::Towpath(driver) => ("towpath.toml", options.towpath(driver)),
    };
    let configuration = host.directory().join(file);
    fs::write(&configuration, text).expect("the laboratory's directory is writable");
    configuration
}

/// What starts a program on `host` as an ordinary user without any privilege, who may write into the
/// laboratory's directory.
pub(crate) fn as_ordinary_user(host: &Host) -> Command {
    let id = NOBODY.to_string();
    let mut command = host.command("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
    command.args(["--no-new-privs", "--bounding-set", "-all"]);
    command.args(["--pdeathsig", "KILL", "env"]);
    unix::fs::chown(host.directory(), Some(NOBODY), Some(NOBODY))
        .expect("root may give a directory away");
    command
}

/// What starts the server on `host`; writes its configuration.
fn command(kind: Kind, host: &Host, options: &ServerOptions) -> Command {
    let directory = host.directory();
    let configuration = write_configuration(kind, host, options);
    let mut command = if options.unprivileged {
        as_ordinary_user(host)
    } else {
        host.command("env")
    };
    match kind {
        Kind::Coturn => command.args(["turnserver", "-c"]).arg(&configuration),
        Kind::Towpath(_) => {
            command
                .arg(install(host))
                .args(["serve", "--config"])
                .arg(&configuration);
            // The places by default are the machine's own.
            command.arg("--state-dir").arg(directory.join("state"));
            command.arg("--runtime-dir").arg(directory.join("run"))
        }
    };
    command
}
