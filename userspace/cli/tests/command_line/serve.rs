//! The server, started as an operator starts it, on loopback.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use crate::running::{
    Options, Scratch, Server, free_tcp_port, free_udp_port, said, skip, towpath, wrapped,
};
use nix::sys::signal::Signal;

const ALICE: [&str; 4] = ["--user", "alice", "--password", "secret"];
const SHORT: [&str; 4] = ["--count", "50", "--rate", "500"];

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_server_relays_shows_what_it_did_and_stops_cleanly() {
    let mut server = Server::start(&Options::default());
    let output = towpath()
        .args(["stun", &server.address()])
        .output()
        .unwrap();
    let (stdout, stderr) = said(&output);
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.contains("5 of 5, 0 lost") && stdout.contains("mapped      127.0.0.1:"));

    let output = server.turn(&[ALICE.as_slice(), &SHORT, &["--json"]].concat());
    let (stdout, stderr) = said(&output);
    assert!(output.status.success(), "{stdout}{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&report["received"], &report["lost"]),
        (&50.into(), &0.into())
    );
    assert!(
        report["round_trip"]["p50_us"].as_f64().unwrap() > 1.0,
        "{stdout}"
    );

    let status = server.status_json();
    assert_eq!(status["relayed"]["packets_to_peers"], 100);
    assert_eq!(status["relayed"]["bytes_to_clients"], 100 * 172);
    assert_eq!(status["allocations_made"], 2);
    assert_eq!(status["ports"], 10_000);
    assert_eq!(status["requests"]["binding"]["successes"], 5);
    assert_eq!(status["errors"]["401"], 2);
    assert!(!status["driver"]["reason"].as_str().unwrap().is_empty());
    let (shown, _) = said(&server.status(&[]));
    assert!(shown.contains("100 packets, 17.2 kB"), "{shown}");

    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    let log = server.log();
    for expected in [
        "allocation made user=\"alice\"",
        "reason=\"deleted\"",
        "stopped uptime_s=",
    ] {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    assert!(!server.scratch.join("run/control.sock").exists());
}

#[test]
fn the_epoll_driver_comes_without_any_ring() {
    let mut server = Server::start(&Options {
        relay: "driver = \"epoll\"",
        ..Options::default()
    });
    let status = server.status_json();
    assert_eq!(status["driver"]["in_use"], "epoll");
    assert_eq!(status["control_runtime"], "tokio");
    let output = server.turn(&[ALICE.as_slice(), &SHORT].concat());
    assert!(output.status.success(), "{:?}", said(&output));
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn metrics_and_health_are_served() {
    let server = Server::start(&Options {
        relay: "shards = 2",
        ..Options::default()
    });
    assert!(
        server
            .turn(&[ALICE.as_slice(), &SHORT].concat())
            .status
            .success()
    );
    let metrics = get(server.observe, "/metrics");
    assert!(metrics.starts_with("HTTP/1.0 200"), "{metrics}");
    let (_, body) = metrics.split_once("\r\n\r\n").unwrap();
    assert!(body.ends_with("# EOF\n"));
    let value = |name: &str| -> u64 {
        body.lines()
            .filter(|line| line.starts_with(name))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    };
    assert_eq!(value("towpath_relay_packets_total{"), 200);
    assert_eq!(value("towpath_allocations_made_total{"), 2);
    assert_eq!(value("towpath_relay_ports "), 10_000);
    assert!(body.contains("towpath_relay_drops_total{shard=\"1\",reason=\"no_allocation\"} 0\n"));
    assert!(
        body.contains("towpath_engine_datagrams_received_total{shard=\"0\"}"),
        "{body}"
    );
    assert!(!body.contains("alice"), "no metric names a user");
    for path in ["/livez", "/readyz"] {
        let answer = get(server.observe, path);
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        assert!(answer.ends_with("{\"ok\":true,\"reasons\":[]}"), "{answer}");
    }
    assert!(get(server.observe, "/v1/status").starts_with("HTTP/1.0 404"));
}

#[test]
fn json_logs_are_one_object_per_line() {
    let mut server = Server::start(&Options {
        arguments: &["--log-format", "json"],
        ..Options::default()
    });
    assert!(
        server
            .turn(&[ALICE.as_slice(), &SHORT].concat())
            .status
            .success()
    );
    server.signal(Signal::SIGTERM);
    server.wait();
    let lines: Vec<serde_json::Value> = server
        .log()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let made = lines
        .iter()
        .find(|line| line["message"] == "allocation made")
        .unwrap();
    assert_eq!(made["user"], "alice");
    assert_eq!(made["lifetime_s"], 600);
}

#[test]
fn a_port_that_is_taken_is_named_and_not_shared() {
    let server = Server::start(&Options::default());
    let observe = (
        "TOWPATH__OBSERVE__LISTEN",
        format!("127.0.0.1:{}", free_tcp_port()),
    );
    let output = server.start_again("run-2", &[observe]);
    let (_, stderr) = said(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains(&format!("{} is in use", server.address())),
        "{stderr}"
    );
}

#[test]
fn a_second_server_with_the_same_control_socket_is_refused() {
    let server = Server::start(&Options::default());
    let output = server.start_again("run", &[]);
    let (_, stderr) = said(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("run/control.sock"), "{stderr}");
    assert!(server.status(&[]).status.success(), "the first one goes on");
}

#[test]
fn a_busy_observe_port_is_named() {
    let server = Server::start(&Options::default());
    let listen = (
        "TOWPATH__RELAY__LISTEN",
        format!("127.0.0.1:{}", free_udp_port()),
    );
    let output = server.start_again("run-2", &[listen]);
    let (_, stderr) = said(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let address = format!(
        "observe.listen: cannot listen on 127.0.0.1:{}",
        server.observe
    );
    assert!(stderr.contains(&address), "{stderr}");
}

#[test]
fn a_killed_server_is_followed_at_once_by_the_next() {
    let mut server = Server::start(&Options::default());
    server.signal(Signal::SIGKILL);
    server.wait();
    assert!(server.scratch.join("run/control.sock").exists());
    let output = server.status(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).1.contains("no towpath answers on"));
    // Its ring may hold the listening port for another moment.
    server.restart();
    let output = server.turn(&[ALICE.as_slice(), &SHORT].concat());
    assert!(output.status.success(), "{:?}", said(&output));
}

/// A child that ends with the test, and its directory.
struct Guard(std::process::Child, Scratch);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_made_up_user_is_kept_for_its_owner_and_never_logged() {
    let scratch = Scratch::new();
    let port = free_udp_port();
    let (state, run) = (scratch.join("state"), scratch.join("run"));
    let log = fs::File::create(scratch.join("log")).unwrap();
    let out = fs::File::create(scratch.join("out")).unwrap();
    let child = towpath()
        .args(["serve", "--state-dir"])
        .arg(&state)
        .arg("--runtime-dir")
        .arg(&run)
        .env("TOWPATH__RELAY__LISTEN", format!("127.0.0.1:{port}"))
        .env("TOWPATH__RELAY__PORT_RANGE", "10000-19999")
        .env("TOWPATH__OBSERVE__LISTEN", "off")
        .stdout(out)
        .stderr(log)
        .spawn()
        .unwrap();
    let mut child = Guard(child, scratch);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let turn = || {
        let mut command = towpath();
        command
            .args(["turn", &format!("127.0.0.1:{port}"), "--state-dir"])
            .arg(&state);
        command.args(SHORT).output().unwrap()
    };
    let mut output = turn();
    while !output.status.success() {
        assert!(std::time::Instant::now() < end, "{:?}", said(&output));
        std::thread::sleep(std::time::Duration::from_millis(50));
        output = turn();
    }
    let file = state.join("generated-user.toml");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&file).unwrap();
    let password = text.split('"').nth(3).unwrap().to_owned();
    for name in ["log", "out"] {
        let written = fs::read_to_string(child.1.join(name)).unwrap();
        assert!(!written.contains(&password), "{written}");
    }
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.0.id() as i32),
        Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
    assert!(!file.exists(), "a user that is no more");
}

#[test]
fn a_test_that_the_server_refuses_says_why() {
    let sections =
        "[auth]\nusers = { alice = \"plain:secret\" }\n[access]\ndeny = [\"127.0.0.0/8\"]";
    let server = Server::start(&Options {
        sections: Some(sections),
        ..Options::default()
    });
    let output = server.turn(&ALICE);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).1.contains("the server forbids it"),
        "{:?}",
        said(&output)
    );
    let output = server.turn(&["--user", "alice", "--password", "wrong"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).1.contains("refuses the credentials"),
        "{:?}",
        said(&output)
    );
}

#[test]
fn a_test_of_nothing_says_that_nothing_listens() {
    let address = format!("127.0.0.1:{}", free_udp_port());
    for command in [
        vec!["stun", &address],
        [&["turn", address.as_str()], ALICE.as_slice()].concat(),
    ] {
        let output = towpath().args(command).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let expected = format!("error: nothing listens on {address}\n");
        assert_eq!(said(&output).1, expected);
    }
}

#[test]
fn a_state_directory_that_cannot_be_written_is_said_and_survived() {
    let state = Some("/proc/nowhere".into());
    let server = Server::start(&Options {
        state,
        ..Options::default()
    });
    assert!(
        server
            .turn(&[ALICE.as_slice(), &SHORT].concat())
            .status
            .success()
    );
    assert!(
        server
            .log()
            .contains("cannot keep /proc/nowhere/nonce-secret"),
        "{}",
        server.log()
    );
}

#[test]
fn a_full_disk_is_said_and_survived() {
    if !nix::unistd::geteuid().is_root() {
        return skip(
            "a_full_disk_is_said_and_survived",
            "it takes root to mount a small file system",
        );
    }
    let full = Scratch::new();
    let script = format!(
        "mount -t tmpfs -o size=4k,nr_inodes=8 none {0} && head -c 4096 /dev/zero > {0}/filler; \
         exec \"$@\"",
        full.path().display()
    );
    let wrapper = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let state = Some(full.join("state"));
    let server = Server::start(&Options {
        wrapper: &wrapper,
        state,
        ..Options::default()
    });
    assert!(
        server
            .turn(&[ALICE.as_slice(), &SHORT].concat())
            .status
            .success()
    );
    let log = server.log();
    assert!(
        log.contains("cannot keep") && log.contains("No space left"),
        "{log}"
    );
}

#[test]
fn an_ordinary_user_serves_and_is_refused_privileged_ports() {
    const NOBODY: &str = "65534";
    if !nix::unistd::geteuid().is_root() {
        return skip(
            "an_ordinary_user_serves_and_is_refused_privileged_ports",
            "it takes root to become one",
        );
    }
    let wrapper = [
        "setpriv",
        "--reuid",
        NOBODY,
        "--regid",
        NOBODY,
        "--clear-groups",
        "--no-new-privs",
    ];
    let home = Scratch::new();
    let binary = home.binary();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let serve = |listen: String| {
        let mut command = Command::new(wrapper[0]);
        command
            .args(&wrapper[1..])
            .arg(&binary)
            .args(["serve", "--state-dir"]);
        command
            .arg(home.join("state"))
            .arg("--runtime-dir")
            .arg(home.join("run"));
        command
            .env("TOWPATH__RELAY__LISTEN", listen)
            .env("TOWPATH__OBSERVE__LISTEN", "off");
        command.env("TOWPATH__RELAY__PORT_RANGE", "10000-19999");
        command.env("TOWPATH__AUTH__USERS", "{ alice = \"plain:secret\" }");
        command
    };
    let port = free_udp_port();
    let log = fs::File::create(home.join("log")).unwrap();
    let mut server = Guard(
        serve(format!("127.0.0.1:{port}"))
            .stderr(log)
            .spawn()
            .unwrap(),
        Scratch::new(),
    );
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let status = || {
        towpath()
            .arg("status")
            .arg("--runtime-dir")
            .arg(home.join("run"))
            .output()
            .unwrap()
    };
    while !status().status.success() {
        assert!(
            std::time::Instant::now() < end && server.0.try_wait().unwrap().is_none(),
            "{}",
            fs::read_to_string(home.join("log")).unwrap()
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let address = format!("127.0.0.1:{port}");
    let turn = [&["turn", address.as_str()], ALICE.as_slice(), &SHORT].concat();
    let output = towpath().args(turn).output().unwrap();
    assert!(output.status.success(), "{:?}", said(&output));
    drop(server);

    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if first.trim().parse::<u16>().unwrap() <= 99 {
        return skip(
            "privileged ports",
            "no port of this machine takes a privilege",
        );
    }
    let output = serve("127.0.0.1:99".into()).output().unwrap();
    let (_, stderr) = said(&output);
    assert_eq!(output.status.code(), Some(77), "{stderr}");
    assert!(stderr.contains("CAP_NET_BIND_SERVICE"), "{stderr}");
}

#[test]
fn status_is_refused_to_strangers_even_where_they_reach_the_socket() {
    if !nix::unistd::geteuid().is_root() {
        return skip(
            "status_is_refused_to_strangers_even_where_they_reach_the_socket",
            "it takes root to become a stranger",
        );
    }
    let server = Server::start(&Options::default());
    let home = Scratch::new();
    let binary = home.binary();
    let run = server.scratch.join("run");
    let stranger = || {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "64321", "--regid", "64321", "--clear-groups"])
            .arg(&binary);
        command
            .args(["status", "--runtime-dir"])
            .arg(&run)
            .output()
            .unwrap()
    };
    for mode in [0o750, 0o777] {
        fs::set_permissions(&run, fs::Permissions::from_mode(mode)).unwrap();
        fs::set_permissions(run.join("control.sock"), fs::Permissions::from_mode(mode)).unwrap();
        let output = stranger();
        assert_eq!(output.status.code(), Some(1), "{:?}", said(&output));
        assert!(
            said(&output).1.contains("may be used by the server's user"),
            "{mode:o}"
        );
    }
}

#[test]
fn a_relay_address_of_another_machine_is_an_error_of_the_configuration() {
    let output = towpath()
        .args([
            "serve",
            "--state-dir",
            "/proc/nowhere",
            "--runtime-dir",
            "/proc/nowhere",
        ])
        .env(
            "TOWPATH__RELAY__LISTEN",
            format!("127.0.0.1:{}", free_udp_port()),
        )
        .env("TOWPATH__RELAY__PORT_RANGE", "10000-19999")
        .env("TOWPATH__RELAY__RELAY_ADDRESSES", "192.0.2.77")
        .env("TOWPATH__OBSERVE__LISTEN", "off")
        .output()
        .unwrap();
    let (_, stderr) = said(&output);
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("no interface of this machine has the address 192.0.2.77"));
    assert!(
        stderr.contains("environment variable TOWPATH__RELAY__RELAY_ADDRESSES"),
        "{stderr}"
    );
}

#[test]
fn a_wrapped_command_is_the_binary() {
    let output = wrapped(&["env"]).arg("--version").output().unwrap();
    assert!(said(&output).0.starts_with("towpath "));
}

/// `towpath limits` of this server.
fn limits(server: &Server, arguments: &[&str]) -> std::process::Output {
    let (run, state) = (server.scratch.join("run"), server.scratch.join("state"));
    towpath()
        .arg("limits")
        .args(arguments)
        .arg("--runtime-dir")
        .arg(run)
        .arg("--state-dir")
        .arg(state)
        .args(["--pins", "/sys/fs/bpf/towpath-that-is-not-there"])
        .output()
        .unwrap()
}

#[test]
fn limits_are_set_shown_kept_and_taken_away() {
    let sections = "[auth]\nusers = { alice = \"plain:secret\" }\n\
                    [limits]\npersist = true\nusers = { alice = { up = \"9Mbit\" } }";
    let mut server = Server::start(&Options {
        sections: Some(sections),
        ..Options::default()
    });
    let json = |server: &Server, name: &str| -> serde_json::Value {
        let output = limits(server, &["get", name, "--json"]);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(json(&server, "alice")[0]["up"]["limit"], "9Mbit");
    for arguments in [
        ["set", "alice", "--up", "20Mbit"].as_slice(),
        &["set", "carol", "--down=64kbit", "--class=bulk"],
        &["global", "1Gbit"],
    ] {
        let output = limits(&server, arguments);
        assert!(output.status.success(), "{:?}", said(&output));
    }
    server.signal(Signal::SIGTERM);
    server.wait();
    let alone = limits(&server, &["list"]);
    assert_eq!(alone.status.code(), Some(1));
    let (_, error) = said(&alone);
    assert!(
        error.contains("no towpath answers") && error.contains("no pinned maps"),
        "{error}"
    );
    server.restart();
    assert_eq!(json(&server, "alice")[0]["up"]["limit"], "20Mbit");
    assert_eq!(json(&server, "carol")[0]["class"], "bulk");
    let (list, _) = said(&limits(&server, &["list"]));
    assert!(list.starts_with("global 1Gbit"), "{list}");
    assert!(limits(&server, &["unset", "alice"]).status.success());
    assert_eq!(json(&server, "alice")[0]["up"]["limit"], "9Mbit");
    let wrong = limits(&server, &["set", "alice", "--up", "1kbit"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(said(&wrong).1.contains("not between 64kbit and 400Gbit"));
}

#[test]
fn data_over_a_limit_is_dropped_and_counted() {
    let server = Server::start(&Options::default());
    let set = limits(&server, &["set", "alice", "--up=64kbit", "--burst=1500B"]);
    assert!(set.status.success(), "{:?}", said(&set));
    // A packet takes an eighth of a second at this rate.
    let many = ["--count", "50", "--rate", "500", "--size", "1000"];
    server.turn(&[ALICE.as_slice(), &many].concat());
    let status = server.status_json();
    let number = |way: &str, what: &str| status[way][what].as_u64().unwrap();
    let dropped =
        number("metered_up", "dropped_packets") + number("metered_down", "dropped_packets");
    assert!(dropped > 0, "{status}");
    assert_eq!(number("drops", "over_limit"), dropped);
    assert_eq!(
        number("relayed", "packets_to_peers"),
        number("metered_up", "packets")
    );
    assert_eq!(
        number("relayed", "packets_to_clients"),
        number("metered_down", "packets")
    );
}

#[test]
fn top_needs_a_terminal_unless_it_looks_once() {
    let server = Server::start(&Options::default());
    assert!(
        limits(&server, &["set", "carol", "--up=1Mbit"])
            .status
            .success()
    );
    let top = |arguments: &[&str]| {
        let run = server.scratch.join("run");
        let mut command = towpath();
        command
            .arg("top")
            .args(arguments)
            .arg("--runtime-dir")
            .arg(run);
        command.output().unwrap()
    };
    let none = top(&[]);
    assert_eq!(none.status.code(), Some(2));
    assert!(said(&none).1.contains("--once"));
    let once = top(&["--once", "--interval", "0.1"]);
    let (table, _) = said(&once);
    assert!(
        table.contains("carol") && table.contains("1Mbit"),
        "{table}"
    );
    assert!(!table.contains('\u{1b}'), "{table}");
}
