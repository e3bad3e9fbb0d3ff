//! The examples, as a user runs them: two processes, over the addresses of this machine.
#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// An example. `cargo test` and nextest build them with the tests; where they were told to build less,
/// they are built here.
fn example(name: &str) -> Command {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let directory = test.ancestors().nth(2).unwrap().join("examples");
        let names = ["echo", "send_file", "chat"];
        if !names.iter().all(|name| directory.join(name).exists()) {
            let built = Command::new(env!("CARGO"))
                .args(["build", "--quiet", "--package", "towpath", "--examples"])
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status();
            assert!(built.unwrap().success(), "the examples do not build");
        }
        directory
    });
    let mut command = Command::new(directory.join(name));
    command.stdin(Stdio::null());
    command
}

/// An example that goes on, and ends with the value.
struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    fn start(mut command: Command) -> (Self, ChildStdin) {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        (Self { child, lines }, input)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory that is removed with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("towpath-examples-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[test]
fn echo_gives_back_every_byte() {
    let scratch = Scratch::new();
    let mut serve = example("echo");
    serve.arg("serve");
    let (mut server, _input) = Running::start(serve);
    let address = server.line();
    let sent = pattern(3_000_000);
    let file = scratch.0.join("input");
    fs::write(&file, &sent).unwrap();
    let mut call = example("echo");
    call.arg(&address).stdin(File::open(&file).unwrap());
    let output = call.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(output.stdout == sent, "{said}");
    let wrong = example("echo").arg("nonsense").output().unwrap();
    assert!(!wrong.status.success());
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(said.contains("the \"@\" is missing"), "{said}");
}

/// What lies in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().into_owned()
    };
    entries.map(name).collect()
}

/// Sends a file to a receiver that writes it to `place`; gives how both ended, and what the sender said.
fn send(file: &Path, place: &Path) -> (ExitStatus, ExitStatus, String) {
    let mut receive = example("send_file");
    receive.arg("receive").arg(place);
    let (mut receiver, _input) = Running::start(receive);
    let address = receiver.line();
    let mut send = example("send_file");
    let sent = send.args(["send", &address]).arg(file).output().unwrap();
    let said = String::from_utf8(sent.stderr).unwrap();
    (sent.status, receiver.child.wait().unwrap(), said)
}

#[test]
fn send_file_brings_the_whole_file_and_replaces_nothing() {
    let scratch = Scratch::new();
    let [file, empty] = ["file", "empty"].map(|name| scratch.0.join(name));
    let there = scratch.0.join("there");
    fs::create_dir(&there).unwrap();
    let [place, other] = ["place", "other"].map(|name| there.join(name));
    let content = pattern(2_000_001);
    fs::write(&file, &content).unwrap();
    fs::write(&empty, b"").unwrap();
    let (sent, received, said) = send(&file, &place);
    assert!(sent.success() && received.success(), "{said}");
    assert!(fs::read(&place).unwrap() == content);
    let (sent, received, said) = send(&empty, &place);
    assert!(!sent.success() && !received.success());
    assert!(said.contains("there is such a file already"), "{said}");
    assert!(fs::read(&place).unwrap() == content);
    let (sent, received, said) = send(&empty, &other);
    assert!(sent.success() && received.success(), "{said}");
    assert_eq!(fs::read(&other).unwrap(), b"");
    let mut left = names(&there);
    left.sort();
    assert_eq!(left, ["other", "place"], "nothing else is left behind");
}

#[test]
fn chat_brings_lines_to_everybody_in_order() {
    let address = |chat: &mut Running| {
        let errors = chat.child.stderr.take().unwrap();
        let mut lines = BufReader::new(errors).lines().map(Result::unwrap);
        let address = lines.find(|line| line.contains('@')).unwrap();
        (address, lines)
    };
    let start = |peers: &[&str]| {
        let mut chat = example("chat");
        chat.args(peers).stderr(Stdio::piped());
        Running::start(chat)
    };
    let (mut first, mut first_input) = start(&[]);
    let (first_address, mut first_errors) = address(&mut first);
    let (mut second, mut second_input) = start(&[&first_address]);
    let (second_address, mut second_errors) = address(&mut second);
    let (mut third, third_input) = start(&[&first_address, &second_address]);
    let (third_address, mut third_errors) = address(&mut third);
    for errors in [&mut first_errors, &mut second_errors, &mut third_errors] {
        let here = errors.filter(|line| line.ends_with("is here"));
        assert_eq!(here.take(2).count(), 2);
    }
    let short = |address: &str| address[..8].to_owned();
    let (one, two) = (short(&first_address), short(&second_address));
    first_input
        .write_all(b"hello\nall\x1b[31m of you\n")
        .unwrap();
    for chat in [&mut second, &mut third] {
        assert_eq!(chat.line(), format!("{one}: hello"));
        assert_eq!(chat.line(), format!("{one}: all[31m of you"));
    }
    second_input.write_all(b"hi\n").unwrap();
    for chat in [&mut first, &mut third] {
        assert_eq!(chat.line(), format!("{two}: hi"));
    }
    drop(third_input);
    assert!(third.child.wait().unwrap().success());
    let gone = format!("* {} has gone", short(&third_address));
    for errors in [&mut first_errors, &mut second_errors] {
        errors.find(|line| line.starts_with(&gone)).unwrap();
    }
}
