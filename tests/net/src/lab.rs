//! Hosts in network namespaces.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{Process, wait_for};
use crate::skip::skip;

/// First part of every namespace's name; the process id and a number follow.
const PREFIX: &str = "tp-net-";

/// Where `ip netns` keeps them.
const NAMESPACES: &str = "/run/netns";

/// Ample for a program to start and answer, also on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Where in a laboratory's directory its own bpffs is.
const BPFFS: &str = "bpf";

/// A network of hosts. Dropping it removes it.
#[derive(Debug)]
pub struct Lab {
    id: String,
    directory: PathBuf,
    hosts: AtomicU32,
}

/// One host: a namespace, usually with the interface `eth0` on the laboratory's switch.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: String,
    directory: PathBuf,
}

impl Lab {
    /// Makes an empty network; `None`, said loudly, where this machine cannot.
    pub fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            skip("network namespaces need root");
            return None;
        }
        if let Some(program) = ["ip", "setpriv"]
            .into_iter()
            .find(|program| !exists(program))
        {
            skip(&format!("{program} is not installed"));
            return None;
        }
        remove_leftovers();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("{PREFIX}{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(&id);
        fs::create_dir_all(&directory).expect("the temporary directory is writable");
        let lab = Self {
            id,
            directory,
            hosts: AtomicU32::new(0),
        };
        let switch = lab.namespace("switch");
        if let Err(error) = try_ip(&["netns", "add", &switch]) {
            skip(&format!("this machine has no network namespaces: {error}"));
            return None;
        }
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        Some(lab)
    }

    /// As [`Lab::new`], and `None` also where one of `programs` is not installed.
    pub fn with(programs: &[&str]) -> Option<Self> {
        if let Some(program) = programs.iter().find(|program| !exists(program)) {
            skip(&format!("{program} is not installed"));
            return None;
        }
        Self::new()
    }

    /// Adds a host with these addresses, prefix lengths included (`10.77.2.1/24`).
    pub fn host(&self, role: &str, addresses: &[&str]) -> Host {
        let host = self.island(role);
        let switch = self.namespace("switch");
        let port = format!("port{}", self.hosts.fetch_add(1, Ordering::Relaxed));
        ip(&[
            "link",
            "add",
            "eth0",
            "netns",
            &host.namespace,
            "type",
            "veth",
            "peer",
            "name",
            &port,
            "netns",
            &switch,
        ]);
        ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", &host.namespace, "link", "set", "eth0", "up"]);
        for address in addresses {
            host.add_address(address);
        }
        host
    }

    /// Adds a host without a network.
    pub fn island(&self, role: &str) -> Host {
        let namespace = self.namespace(role);
        ip(&["netns", "add", &namespace]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        Host {
            namespace,
            directory: self.directory.clone(),
        }
    }

    /// Joins two hosts by a cable of their own, with these names at its ends, and `options` of both
    /// ends' `ip link add`.
    pub fn cable(&self, one: (&Host, &str), other: (&Host, &str), options: &[&str]) {
        let mut arguments = vec!["link", "add", one.1, "netns", &one.0.namespace];
        arguments.extend_from_slice(options);
        arguments.extend_from_slice(&["type", "veth", "peer", "name", other.1]);
        arguments.extend_from_slice(&["netns", &other.0.namespace]);
        arguments.extend_from_slice(options);
        ip(&arguments);
        for (host, interface) in [one, other] {
            ip(&["-n", &host.namespace, "link", "set", interface, "up"]);
        }
    }

    /// Mounts a bpffs of this laboratory's own, and says where. Everything pinned there goes with the
    /// laboratory. An error says why this machine cannot.
    pub fn bpffs(&self) -> Result<PathBuf, String> {
        let directory = self.directory.join(BPFFS);
        fs::create_dir_all(&directory).expect("the laboratory's directory is writable");
        let path = directory.to_string_lossy();
        run_here("mount", &["-t", "bpf", "bpf", &path])?;
        Ok(directory)
    }

    /// A directory of this laboratory's own.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn namespace(&self, role: &str) -> String {
        format!("{}-{role}", self.id)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove_namespaces(&format!("{}-", self.id));
        remove_directory(&self.directory);
    }
}

impl Host {
    /// Gives `eth0` one more address; it can be used at once.
    pub fn add_address(&self, address: &str) {
        self.add_address_to("eth0", address);
    }

    /// As [`Host::add_address`], on another interface.
    pub fn add_address_to(&self, interface: &str, address: &str) {
        let mut arguments = vec!["-n", &self.namespace];
        arguments.extend_from_slice(&["addr", "add", address, "dev", interface]);
        if address.contains(':') {
            arguments.push("nodad");
        }
        ip(&arguments);
    }

    /// The hardware address of one of its interfaces.
    ///
    /// # Panics
    ///
    /// Where there is no such interface.
    pub fn mac(&self, interface: &str) -> [u8; 6] {
        let link = self.run("ip", &["-j", "link", "show", "dev", interface]);
        let links: serde_json::Value = serde_json::from_str(&link).expect("ip prints JSON");
        let text = links[0]["address"].as_str().expect("a link has an address");
        let mut bytes = text
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).expect("ip prints hexadecimal bytes"));
        std::array::from_fn(|_| bytes.next().expect("an address has six bytes"))
    }

    /// Packets that one of its interfaces should have sent and did not.
    ///
    /// # Panics
    ///
    /// Where there is no such interface.
    pub fn lost_in_sending(&self, interface: &str) -> u64 {
        let link = self.run("ip", &["-j", "-s", "link", "show", "dev", interface]);
        let links: serde_json::Value = serde_json::from_str(&link).expect("ip prints JSON");
        let lost = links[0]["stats64"]["tx"]["dropped"].as_u64();
        lost.expect("a link has statistics")
    }

    /// A command that will run on this host, and die with the thread that starts it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args([
                "--pdeathsig",
                "KILL",
                "ip",
                "netns",
                "exec",
                &self.namespace,
            ])
            .arg(program);
        command.current_dir(&self.directory).stdin(Stdio::null());
        command
    }

    /// Runs a command on this host to its end.
    ///
    /// # Panics
    ///
    /// Where it fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self
            .command(program)
            .args(arguments)
            .output()
            .unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
        succeeded(program, arguments, output).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A UDP socket on this host, bound to `address`.
    ///
    /// # Panics
    ///
    /// Where the address cannot be bound.
    pub fn bind(&self, address: SocketAddr) -> UdpSocket {
        self.inside(move || {
            UdpSocket::bind(address)
                .unwrap_or_else(|error| panic!("cannot bind {address}: {error}"))
        })
    }

    /// Sends to a closed port of `address` until its ICMP error is there: from then on both sides know
    /// each other, and what was sent before has passed the interfaces.
    ///
    /// # Panics
    ///
    /// Where none comes.
    pub fn knock(&self, address: IpAddr) {
        /// Nobody serves there.
        const CLOSED: u16 = 9;
        let any = match address {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        self.knock_from(any, SocketAddr::new(address, CLOSED));
    }

    /// As [`Host::knock`], from one of several addresses of its own, at a port.
    ///
    /// # Panics
    ///
    /// Where no error comes.
    pub fn knock_from(&self, local: IpAddr, closed: SocketAddr) {
        let socket = self.bind_any(local);
        let connected = self.inside(|| socket.connect(closed));
        connected.unwrap_or_else(|error| panic!("no route to {closed}: {error}"));
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("100 ms is not zero");
        wait_for(&format!("an error from {closed}"), START_LIMIT, || {
            let refused = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
            if socket.send(b"knock").is_err_and(refused) {
                return Some(());
            }
            let answer = socket.recv(&mut [0; 16]);
            answer.is_err_and(refused).then_some(())
        });
    }

    /// Waits until nobody has `address` any more: the kernel takes a ring of io_uring down, and lets
    /// go of its sockets, a little after the process has ended.
    ///
    /// # Panics
    ///
    /// Where somebody keeps it.
    pub fn wait_until_free(&self, address: SocketAddr) {
        wait_for(&format!("{address} to be free"), START_LIMIT, || {
            self.inside(|| UdpSocket::bind(address)).ok()
        });
    }

    /// A UDP socket on this host, bound to a port the kernel chooses.
    pub fn bind_any(&self, address: IpAddr) -> UdpSocket {
        self.bind(SocketAddr::new(address, 0))
    }

    /// Where processes of this host write.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Sends `request` to `server`, an address of this host or the wildcard, again and again until
    /// `process` answers there.
    ///
    /// # Panics
    ///
    /// Where it ends, or does not answer within a time that is ample for a start.
    pub fn wait_for_answer(&self, process: &mut Process, server: SocketAddr, request: &[u8]) {
        let server = match server.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, server.port()).into(),
            IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, server.port()).into(),
            _ => server,
        };
        let socket = self.bind_any(server.ip());
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("50 ms is not zero");
        wait_for(&format!("an answer from {server}"), START_LIMIT, || {
            assert_eq!(process.ended(), None, "the process has ended");
            // A refused port is an error of the next call: the server is not there yet.
            let _ = socket.send_to(request, server);
            socket
                .recv_from(&mut [0; 2048])
                .ok()
                .filter(|(_, from)| *from == server)
        });
    }

    /// Calls `action` on a thread of its own that is inside this host's namespace. Sockets it makes
    /// stay there.
    pub fn inside<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let path = Path::new(NAMESPACES).join(&self.namespace);
        let enter = || {
            let namespace = File::open(&path).expect("the namespace exists");
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(rustix::fd::AsFd::as_fd(&namespace), network)
                .expect("root may enter a network namespace");
            action()
        };
        thread::scope(|scope| match scope.spawn(enter).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

/// Whether a program is on the search path.
pub(crate) fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory: PathBuf| directory.join(program).is_file())
}

/// Removes what tests left behind whose process has gone.
fn remove_leftovers() {
    let is_leftover = |name: &String| {
        let process = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        process.is_some_and(|process| !Path::new("/proc").join(process).exists())
    };
    for name in entries(Path::new(NAMESPACES)).filter(is_leftover) {
        remove_namespaces(&name);
    }
    let directory = std::env::temp_dir();
    for name in entries(&directory).filter(is_leftover) {
        remove_directory(&directory.join(name));
    }
}

/// Removes a laboratory's directory; with its bpffs go the pins, and with them programs and maps.
fn remove_directory(directory: &Path) {
    let bpffs = directory.join(BPFFS);
    if bpffs.exists() {
        let _ = run_here("umount", &["--lazy", &bpffs.to_string_lossy()]);
    }
    let _ = fs::remove_dir_all(directory);
}

fn remove_namespaces(prefix: &str) {
    for name in entries(Path::new(NAMESPACES)).filter(|name| name.starts_with(prefix)) {
        let _ = try_ip(&["netns", "del", &name]);
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn ip(arguments: &[&str]) {
    if let Err(error) = try_ip(arguments) {
        panic!("{error}");
    }
}

fn try_ip(arguments: &[&str]) -> Result<String, String> {
    run_here("ip", arguments)
}

/// Runs a command in the namespaces of this process.
fn run_here(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    succeeded(
        program,
        arguments,
        output.map_err(|error| format!("cannot start {program}: {error}"))?,
    )
}

fn succeeded(program: &str, arguments: &[&str], output: Output) -> Result<String, String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{program} {}: {}: {}",
        arguments.join(" "),
        output.status,
        said.trim()
    ))
}
