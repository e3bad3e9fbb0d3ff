//! The commands that are nodes: two processes on 127.0.0.1.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::UdpSocket;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::running::{Scratch, said, towpath};

const LOOPBACK: [&str; 3] = ["--ephemeral", "--listen", "127.0.0.1:0"];

/// A listening node, ended with the value.
struct Listener {
    child: Child,
    /// What others call it by.
    address: String,
    /// Standard output, but for the address.
    output: Option<BufReader<ChildStdout>>,
    errors: BufReader<ChildStderr>,
}

impl Listener {
    fn start(arguments: &[&str]) -> Self {
        let mut command = towpath();
        command.arg("listen").args(LOOPBACK).args(arguments);
        Self::of(command)
    }

    fn of(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let serves = command.get_args().any(|argument| argument == "--serve");
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut address = String::new();
        if serves {
            output.read_line(&mut address).unwrap();
        } else {
            errors.read_line(&mut address).unwrap();
        }
        Self {
            child,
            address: address.trim_end().to_owned(),
            output: Some(output),
            errors,
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Reads standard output to its end.
    fn reader(&mut self) -> JoinHandle<Vec<u8>> {
        let mut output = self.output.take().unwrap();
        std::thread::spawn(move || {
            let mut all = Vec::new();
            output.read_to_end(&mut all).unwrap();
            all
        })
    }

    /// The next line on standard error with this in it.
    fn line(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            let bytes = self.errors.read_line(&mut line).unwrap();
            assert_ne!(bytes, 0, "no line with {text:?}");
            if line.contains(text) {
                return line;
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that calls `address`.
fn calling(command: &str, address: &str, arguments: &[&str]) -> Command {
    let mut towpath = towpath();
    towpath
        .arg(command)
        .arg(address)
        .args(LOOPBACK)
        .args(arguments);
    towpath
}

fn call(command: &str, address: &str, arguments: &[&str]) -> Output {
    calling(command, address, arguments).output().unwrap()
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// A call that fails: exits with this code, and says this.
#[track_caller]
fn fails(output: &Output, code: i32, texts: &[&str]) {
    let (_, error) = said(output);
    assert_eq!(output.status.code(), Some(code), "{error}");
    for text in texts {
        assert!(error.contains(text), "no {text:?} in {error}");
    }
}

#[test]
fn ping_measures_round_trips_to_a_node_that_listens() {
    let listener = Listener::start(&["--serve"]);
    let arguments = ["--count", "20", "--interval", "0", "--wait", "60000"];
    let output = call("ping", &listener.address, &arguments);
    let (text, error) = said(&output);
    assert_eq!(output.status.code(), Some(0), "{error}");
    for expected in ["post-quantum", "20 of 64 B sent, 20 came back", "p99"] {
        assert!(text.contains(expected), "{text}");
    }
    let arguments = [&arguments[..], &["--size", "1000", "--json"]].concat();
    let output = call("ping", &listener.address, &arguments);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["received"], 20, "{report}");
    assert_eq!(report["security"], "post-quantum");
    let (id, _) = listener.address.split_once('@').unwrap();
    assert_eq!(report["peer"], id);
    let trip = &report["round_trip"];
    let times = ["min_us", "p50_us", "p90_us", "p99_us", "max_us"].map(|key| trip[key].as_f64());
    assert!(times.is_sorted() && times[0] > Some(0.0), "{report}");
    let output = call("ping", &listener.address, &["--size", "60000"]);
    fails(&output, 2, &["bytes fit into a datagram"]);
}

#[test]
fn ping_sends_at_its_interval_too() {
    let listener = Listener::start(&[]);
    let arguments = [
        "--count",
        "5",
        "--interval",
        "1",
        "--wait",
        "60000",
        "--json",
    ];
    let output = call("ping", &listener.address, &arguments);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["received"], 5, "{report}");
}

#[test]
fn a_pipe_carries_megabytes_both_ways_to_the_last_byte() {
    let scratch = Scratch::new();
    let (there, back) = (pattern(5_000_001), pattern(2_000_003));
    let input = scratch.join("there");
    fs::write(&input, &there).unwrap();
    let mut command = towpath();
    command.arg("listen").args(LOOPBACK);
    fs::write(scratch.join("back"), &back).unwrap();
    command.stdin(File::open(scratch.join("back")).unwrap());
    let mut listener = Listener::of(command);
    let reader = listener.reader();
    let mut connect = calling("connect", &listener.address, &[]);
    let output = connect.stdin(File::open(&input).unwrap()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    assert!(output.stdout == back, "{} bytes", output.stdout.len());
    let received = reader.join().unwrap();
    assert!(received == there, "{} bytes", received.len());
    assert_eq!(listener.child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_empty_pipe_ends_by_itself() {
    let mut listener = Listener::start(&[]);
    let output = call("connect", &listener.address, &[]);
    assert_eq!(output.status.code(), Some(0), "{:?}", said(&output));
    assert_eq!(output.stdout, b"");
    assert_eq!(listener.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_listener_that_cannot_write_on_is_told_of_at_the_other_end() {
    let mut listener = Listener::start(&[]);
    drop(listener.output.take());
    let scratch = Scratch::new();
    let input = scratch.join("input");
    fs::write(&input, pattern(3_000_000)).unwrap();
    let mut connect = calling("connect", &listener.address, &[]);
    let output = connect.stdin(File::open(&input).unwrap()).output().unwrap();
    fails(&output, 1, &["not all was delivered"]);
    assert_eq!(listener.child.wait().unwrap().code(), Some(1));
    listener.line("cannot write standard output");
}

#[test]
fn a_second_peer_hears_that_the_listener_is_busy() {
    let mut listener = Listener::start(&[]);
    let mut first = calling("connect", &listener.address, &[]);
    let mut first = first.stdin(Stdio::piped()).spawn().unwrap();
    listener.line("joined with");
    let second = call("connect", &listener.address, &[]);
    fails(&second, 1, &["busy with another peer"]);
    drop(first.stdin.take());
    assert_eq!(first.wait().unwrap().code(), Some(0));
    assert_eq!(listener.child.wait().unwrap().code(), Some(0));
}

#[test]
fn only_peers_that_were_named_may_call() {
    let scratch = Scratch::new();
    let key = scratch.join("node.key");
    let key = key.to_str().unwrap();
    let (id, _) = said(&towpath().args(["id", "--key", key]).output().unwrap());
    let listener = Listener::start(&["--serve", "--from", id.trim_end()]);
    let mut known = towpath();
    known.args(["ping", &listener.address, "--key", key]);
    known.args(["--listen", "127.0.0.1:0", "--count", "1", "--wait", "60000"]);
    let output = known.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{:?}", said(&output));
    let output = call("ping", &listener.address, &["--wait", "60000"]);
    fails(&output, 1, &["this peer may not call"]);
}

#[test]
fn perf_moves_exactly_what_it_was_told_in_both_directions() {
    let listener = Listener::start(&["--serve"]);
    let arguments = ["--both", "--bytes", "3MB", "--streams", "3"];
    let output = call(
        "perf",
        &listener.address,
        &[&arguments[..], &["--json"]].concat(),
    );
    assert_eq!(output.status.code(), Some(0), "{:?}", said(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for direction in ["up", "down"] {
        assert_eq!(report[direction]["bytes"], 3_000_000, "{report}");
        assert!(report[direction]["bits_per_s"].as_f64() > Some(0.0));
    }
    assert!(report["cpu_user_s"].as_f64() > Some(0.0), "{report}");
    let output = call("perf", &listener.address, &["--down", "--time", "1"]);
    let (text, error) = said(&output);
    assert_eq!(output.status.code(), Some(0), "{error}");
    assert!(
        text.contains("  down ") && !text.contains("  up "),
        "{text}"
    );
}

#[test]
fn what_a_listener_does_not_serve_it_refuses_with_the_reason() {
    let (pipe, serve) = (Listener::start(&[]), Listener::start(&["--serve"]));
    for direction in ["--up", "--down", "--both"] {
        let output = call("perf", &pipe.address, &[direction]);
        fails(&output, 1, &["it listens without --serve"]);
    }
    let output = call("connect", &serve.address, &[]);
    fails(&output, 1, &["it listens with --serve"]);
}

#[test]
fn a_wrong_peer_is_named_and_not_spoken_to() {
    let (one, other) = (Listener::start(&["--serve"]), Listener::start(&["--serve"]));
    let (id, _) = one.address.split_once('@').unwrap();
    let (other_id, place) = other.address.split_once('@').unwrap();
    let output = call("ping", &format!("{id}@{place}"), &[]);
    let answered = format!("{other_id} answered, who was not called");
    fails(
        &output,
        1,
        &["attempt 1 to reach the peer failed", &answered, place],
    );
}

#[test]
fn where_nobody_listens_the_error_says_so() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listener = Listener::start(&["--serve"]);
    let (id, _) = listener.address.split_once('@').unwrap();
    let place = silent.local_addr().unwrap();
    let output = call("connect", &format!("{id}@{place}"), &["--timeout", "1"]);
    fails(&output, 1, &["not reached within 1s", &place.to_string()]);
    let output = call("ping", &format!("{id}@"), &[]);
    fails(&output, 1, &["at no address", "this cannot be asked for"]);
}

#[test]
fn a_node_that_calls_itself_is_told_what_to_do() {
    let scratch = Scratch::new();
    let key = scratch.join("node.key");
    let key = key.to_str().unwrap();
    let mut command = towpath();
    command.args(["listen", "--serve", "--listen", "127.0.0.1:0", "--key", key]);
    let listener = Listener::of(command);
    let output = towpath()
        .args(["ping", &listener.address, "--key", key])
        .output()
        .unwrap();
    fails(&output, 1, &["the same key", "--ephemeral"]);
}

#[test]
fn wrong_texts_are_wrong_usage() {
    for (arguments, expected) in [
        (vec!["ping", "nonsense"], "the \"@\" is missing"),
        (vec!["ping", "abc@127.0.0.1:1"], "52 characters, not 3"),
        (vec!["connect"], "PEER-ADDR"),
        (vec!["listen", "--listen", "localhost"], "localhost"),
        (vec!["listen", "--key", "x", "--ephemeral"], "--ephemeral"),
        (vec!["perf", "x@", "--up", "--down"], "x@"),
    ] {
        let output = towpath().args(&arguments).output().unwrap();
        fails(&output, 2, &[expected]);
    }
}

#[test]
fn ctrl_c_ends_a_node_that_serves_and_peers_are_told() {
    let mut listener = Listener::start(&["--serve"]);
    let mut ping = calling("ping", &listener.address, &["--count", "1000000"]);
    let ping = ping.stdout(Stdio::piped()).stderr(Stdio::piped());
    let ping = ping.spawn().unwrap();
    listener.line("has come (post-quantum)");
    listener.signal(Signal::SIGINT);
    assert_eq!(listener.child.wait().unwrap().code(), Some(0));
    let output = ping.wait_with_output().unwrap();
    fails(&output, 1, &["the connection is over: closed by the peer"]);
    assert!(said(&output).0.contains("came back"));
}

#[test]
fn ctrl_c_in_a_pipe_is_a_failure_on_both_ends() {
    let mut listener = Listener::start(&[]);
    let mut connect = calling("connect", &listener.address, &[]);
    connect.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut connect = connect.stderr(Stdio::piped()).spawn().unwrap();
    let input: &mut ChildStdin = connect.stdin.as_mut().unwrap();
    input.write_all(b"a part").unwrap();
    listener.line("joined with");
    listener.signal(Signal::SIGINT);
    assert_eq!(listener.child.wait().unwrap().code(), Some(1));
    listener.line("interrupted before all was delivered");
    let output = connect.wait_with_output().unwrap();
    fails(
        &output,
        1,
        &["not all was delivered: closed by the peer: interrupted"],
    );
}
