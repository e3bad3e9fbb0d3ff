//! The binary under test, in a directory of its own, ended with the test.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a server may take to start or stop on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);
/// Free ports are taken by others now and then, between being found and being used.
const ATTEMPTS: usize = 5;

/// The binary, without this machine's settings.
pub(crate) fn towpath() -> Command {
    wrapped(&[])
}

/// The binary, started by `wrapper`.
pub(crate) fn wrapped(wrapper: &[&str]) -> Command {
    let binary = env!("CARGO_BIN_EXE_towpath");
    let mut command = match wrapper.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(binary);
            command
        }
        None => Command::new(binary),
    };
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOWPATH") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// What a finished command said on standard output and standard error.
pub(crate) fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

/// A directory that is removed with the value.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "towpath-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        // Socket paths are short, and other users have to reach it: no target directory.
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A copy of the binary for other users, who may not reach the original. Another process
    /// writes it: while this one had it open for writing, children of other tests would inherit
    /// that and nobody could run it.
    pub(crate) fn binary(&self) -> PathBuf {
        let copy = self.join("towpath");
        let cp = Command::new("cp")
            .arg(env!("CARGO_BIN_EXE_towpath"))
            .arg(&copy)
            .status();
        assert!(cp.unwrap().success());
        copy
    }

    /// Writes a file.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A UDP port that nothing has just now.
pub(crate) fn free_udp_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A TCP port that nothing has just now.
pub(crate) fn free_tcp_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// How a server is started.
#[derive(Default)]
pub(crate) struct Options<'a> {
    /// What starts the binary.
    pub(crate) wrapper: &'a [&'a str],
    /// Lines of `[relay]` besides the address.
    pub(crate) relay: &'a str,
    /// Other sections; without any, `alice` with the password `secret` is the user.
    pub(crate) sections: Option<&'a str>,
    /// More arguments.
    pub(crate) arguments: &'a [&'a str],
    /// Where state lies; without it, in the scratch directory.
    pub(crate) state: Option<PathBuf>,
}

/// A running server on 127.0.0.1.
pub(crate) struct Server {
    child: Child,
    pub(crate) scratch: Scratch,
    pub(crate) port: u16,
    pub(crate) observe: u16,
}

impl Server {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(options: &Options<'_>) -> Self {
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            let (mut server, config) = Self::prepare(options);
            server.child = Self::spawn(options, &server.scratch, &config);
            match server.wait_until_ready() {
                Ok(()) => return server,
                Err(error) => last = error,
            }
            assert!(last.contains("in use"), "{last}");
        }
        panic!("no port stayed free: {last}");
    }

    /// Starts it once more, as it was started without options.
    pub(crate) fn restart(&mut self) {
        let config = self.scratch.join("towpath.toml");
        self.child = Self::spawn(&Options::default(), &self.scratch, &config);
        self.wait_until_ready().unwrap();
    }

    fn prepare(options: &Options<'_>) -> (Self, PathBuf) {
        let scratch = Scratch::new();
        let (port, observe) = (free_udp_port(), free_tcp_port());
        // Ephemeral ports lie above.
        let text = format!(
            "[relay]\nlisten = [\"127.0.0.1:{port}\"]\nport_range = \"10000-19999\"\n{}\n{}\n\
             [observe]\nlisten = \"127.0.0.1:{observe}\"\n",
            options.relay,
            options
                .sections
                .unwrap_or("[auth]\nusers = { alice = \"plain:secret\" }")
        );
        let config = scratch.file("towpath.toml", &text);
        // Replaced at once; a value is needed.
        let child = Command::new("true").spawn().unwrap();
        (
            Self {
                child,
                scratch,
                port,
                observe,
            },
            config,
        )
    }

    fn spawn(options: &Options<'_>, scratch: &Scratch, config: &Path) -> Child {
        let state = options
            .state
            .clone()
            .unwrap_or_else(|| scratch.join("state"));
        let mut command = wrapped(options.wrapper);
        command
            .arg("serve")
            .arg("--config")
            .arg(config)
            .arg("--state-dir")
            .arg(state);
        command
            .arg("--runtime-dir")
            .arg(scratch.join("run"))
            .args(options.arguments);
        command.stdout(File::create(scratch.join("out")).unwrap());
        command.stderr(File::create(scratch.join("log")).unwrap());
        command.spawn().unwrap()
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Err(format!("the server ended with {status}:\n{}", self.log()));
            }
            if self.status(&[]).status.success() {
                return Ok(());
            }
            assert!(
                Instant::now() < end,
                "the server is not ready:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `towpath status` of this server.
    pub(crate) fn status(&self, arguments: &[&str]) -> Output {
        towpath()
            .arg("status")
            .arg("--runtime-dir")
            .arg(self.scratch.join("run"))
            .args(arguments)
            .output()
            .unwrap()
    }

    /// The server's status as JSON.
    pub(crate) fn status_json(&self) -> serde_json::Value {
        let output = self.status(&["--json"]);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// `towpath turn` through this server.
    pub(crate) fn turn(&self, arguments: &[&str]) -> Output {
        towpath()
            .arg("turn")
            .arg(self.address())
            .args(arguments)
            .output()
            .unwrap()
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.scratch.join("log")).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < end,
                "the server does not end:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A second server with this one's configuration, until it ends by itself.
    pub(crate) fn start_again(&self, runtime: &str, environment: &[(&str, String)]) -> Output {
        towpath()
            .arg("serve")
            .arg("--config")
            .arg(self.scratch.join("towpath.toml"))
            .arg("--state-dir")
            .arg(self.scratch.join("state-2"))
            .arg("--runtime-dir")
            .arg(self.scratch.join(runtime))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended; it is this test's own child in any case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says loudly that `test` did nothing, and why: past the runner's capture, and in the file that
/// `TOWPATH_SKIP_LOG` names.
pub(crate) fn skip(test: &str, why: &str) {
    let line = format!("SKIPPED: {test}: {why}\n");
    let _ = io::stderr().lock().write_all(line.as_bytes());
    if let Some(log) = std::env::var_os("TOWPATH_SKIP_LOG") {
        let file = OpenOptions::new().create(true).append(true).open(log);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap();
    }
}
