//! The commands that need no server.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::{Output, Stdio};

use towpath_proto::relay::{RestName, RestSecret};

use crate::running::{Options, Scratch, Server, said, towpath};

fn run(arguments: &[&str]) -> Output {
    towpath().args(arguments).output().unwrap()
}

fn run_with_input(arguments: &[&str], input: &str) -> Output {
    let mut child = towpath()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its arguments ends without reading.
    match child.stdin.take().unwrap().write_all(input.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => panic!("{error}"),
        Ok(()) | Err(_) => {}
    }
    child.wait_with_output().unwrap()
}

#[test]
fn the_default_configuration_is_valid() {
    let scratch = Scratch::new();
    let (text, _) = said(&run(&["config", "default"]));
    let path = scratch.file("towpath.toml", &text);
    let output = run(&["config", "check", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    assert!(said(&output).0.ends_with("is valid\n"));
    assert_eq!(run(&["config", "check"]).status.code(), Some(0));
}

#[test]
fn a_wrong_configuration_is_shown_line_by_line_and_exits_78() {
    let scratch = Scratch::new();
    let path = scratch.file("t.toml", "[relay]\nrelm = \"x\"\n");
    for command in [["config", "check"], ["serve", "--config"]] {
        let output = run(&[command[0], command[1], path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(78));
        let expected = format!(
            "error: unknown field `relm`, expected one of `listen`, `relay_addresses`, \
             `port_range`, `realm`, `shards`, `driver`, `software`, `alternate_servers`, `mobility`\n \
             --> {}:2:1\n  |\n2 | relm = \"x\"\n  | ^^^^\n",
            path.display()
        );
        assert_eq!(said(&output).1, expected);
    }
}

#[test]
fn a_file_that_is_not_there_is_named_and_exits_78() {
    let output = run(&["serve", "--config", "/nonexistent/towpath.toml"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        said(&output)
            .1
            .contains("cannot read /nonexistent/towpath.toml")
    );
}

#[test]
fn wrong_usage_exits_2_and_says_what_is_wrong() {
    for (arguments, expected) in [
        (vec!["serve", "--confg", "x"], "--confg"),
        (
            vec!["serve", "--log-level", "loud=very=much"],
            "loud=very=much",
        ),
        (vec!["turn", "127.0.0.1", "--user", "a"], "--password"),
        (vec!["turn", "127.0.0.1", "--count", "0"], "--count"),
        (
            vec!["turn", "127.0.0.1", "--state-dir", "/proc/nowhere"],
            "--user and --password",
        ),
        (vec!["stun", "[::1"], "[::1"),
        (vec!["stun", "127.0.0.1", "-4", "-6"], "--ipv6"),
        (vec!["user", "add", "a\tb", "--password-stdin"], "U+0009"),
        (vec!["user", "add", "alice"], "--password-stdin"),
    ] {
        let output = run(&arguments);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {:?}",
            said(&output)
        );
        assert!(
            said(&output).1.contains(expected),
            "{arguments:?}: {:?}",
            said(&output)
        );
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut child = towpath()
        .args(["config", "default"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn completions_name_every_command() {
    let (script, _) = said(&run(&["completions", "bash"]));
    for command in [
        "serve",
        "status",
        "stun",
        "turn",
        "config",
        "user",
        "credentials",
    ] {
        assert!(script.contains(command), "{command}");
    }
}

#[test]
fn keys_are_printed_for_a_realm() {
    let output = run_with_input(
        &[
            "user",
            "add",
            "user",
            "--realm",
            "realm",
            "--password-stdin",
        ],
        "pass\n",
    );
    let (stdout, stderr) = said(&output);
    assert!(output.status.success(), "{stderr}");
    // RFC 8489 §9.2.2 gives this example.
    assert!(stdout.contains("user = \"key:md5:8493fbc53ba582fb4c044c456bdc40eb,sha256:"));
}

#[test]
fn a_user_added_to_a_file_can_use_the_server() {
    let scratch = Scratch::new();
    let path = scratch.file(
        "t.toml",
        "# mine\n[relay]\nrealm = \"a.test\"\n\n[auth] # who\n",
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let file = path.to_str().unwrap();
    let add = ["user", "add", "bob", "--password-stdin", "--config", file];
    let output = run_with_input(&add, "hunter2\n");
    assert!(output.status.success(), "{:?}", said(&output));
    let text = fs::read_to_string(&path).unwrap();
    assert!(
        text.starts_with("# mine\n") && text.contains("[auth] # who\n"),
        "{text}"
    );
    assert!(!text.contains("hunter2"));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);

    let output = run_with_input(&add, "other\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).1.contains("--replace"));
    assert_eq!(fs::read_to_string(&path).unwrap(), text);

    let other_realm = [&add[..], &["--realm", "b.test"]].concat();
    assert_eq!(run_with_input(&other_realm, "x\n").status.code(), Some(2));

    let sections = &text[text.find("[auth]").unwrap()..];
    let relay = "realm = \"a.test\"";
    let server = Server::start(&Options {
        relay,
        sections: Some(sections),
        ..Options::default()
    });
    let bob = ["--user", "bob", "--password", "hunter2", "--count", "20"];
    let output = server.turn(&bob);
    assert!(output.status.success(), "{:?}", said(&output));
}

const SECRET_CONFIG: &str = "[relay]\nlisten = [\"192.0.2.1:3478\", \"0.0.0.0:3479\"]\nrealm = \"a.test\"\n\
    [auth]\nrest_secrets = [\"north star at night\", \"the old one, still good\"]\n";

#[test]
fn credentials_are_made_with_the_first_secret_and_say_where_they_are_accepted() {
    let scratch = Scratch::new();
    let path = scratch.file("towpath.toml", SECRET_CONFIG);
    let path = path.to_str().unwrap();
    let output = run(&[
        "credentials",
        "--config",
        path,
        "--user",
        "alice",
        "--ttl",
        "2h",
    ]);
    let (text, _) = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let line = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        line[name.len()..].trim().to_owned()
    };
    let username = line("username");
    let secret = RestSecret::new("north star at night").unwrap();
    assert_eq!(line("password"), secret.password(&username));
    let name = RestName::read(&username).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let left = name.ends_unix_s - now.unwrap().as_secs();
    assert!((7100..=7200).contains(&left), "{username}");
    assert_eq!(name.id, Some("alice"));
    assert!(line("ends").ends_with("UTC"));
    let accepted = line("accepted");
    assert!(accepted.contains("a.test") && accepted.contains("the first of 2 secrets"));
    assert_eq!(line("url"), "turn:192.0.2.1?transport=udp");
    assert!(!text.contains("north star") && !text.contains("old one"));
}

#[test]
fn credentials_as_json_are_an_entry_of_ice_servers() {
    let arguments = [
        "credentials",
        "--secret-file",
        "-",
        "--server",
        "turn.a.test",
        "--json",
    ];
    let output = run_with_input(&arguments, "north\n");
    assert_eq!(output.status.code(), Some(0), "{:?}", said(&output));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let keys: Vec<_> = made.as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["credential", "ttl", "urls", "username"]);
    assert_eq!(
        made["urls"],
        serde_json::json!(["turn:turn.a.test?transport=udp"])
    );
    assert_eq!(made["ttl"], 3600);
    let username = made["username"].as_str().unwrap();
    let password = RestSecret::new("north").unwrap().password(username);
    assert_eq!(made["credential"], password);
}

#[test]
fn credentials_that_cannot_be_made_say_which_value_breaks_which_rule() {
    let scratch = Scratch::new();
    let none = scratch.file("none.toml", "[auth]\nrest_secrets = []\n");
    let wildcard = scratch.file(
        "wildcard.toml",
        "[auth]\nrest_secrets = [\"north star at night\"]\n",
    );
    let wrong = scratch.file(
        "wrong.toml",
        "[auth]\nrest_secrets = [\"hunter2\", \"hunter2\"]\n",
    );
    let (none, wildcard, wrong) = (
        none.to_str().unwrap(),
        wildcard.to_str().unwrap(),
        wrong.to_str().unwrap(),
    );
    for (arguments, code, expected) in [
        (vec!["--config", none], 2, "auth.rest_secrets is empty in"),
        (vec![], 2, "give --config or --secret-file"),
        (
            vec!["--config", wildcard, "--json"],
            2,
            "give --server HOST[:PORT]",
        ),
        (
            vec!["--config", wildcard, "--ttl", "1w"],
            2,
            "\"1w\" is no time",
        ),
        (
            vec!["--config", wildcard, "--ttl", "400d"],
            2,
            "is not between 1s and 366d",
        ),
        (vec!["--config", wildcard, "--user", "a\tb"], 2, "U+0009"),
        (
            vec!["--config", wildcard, "--server", "a b"],
            2,
            "\"a b\" is no host",
        ),
        (
            vec!["--secret-file", "/nonexistent/x"],
            1,
            "cannot read /nonexistent/x",
        ),
        (vec!["--secret-file", "-"], 2, "must not be empty"),
        (vec!["--config", wrong], 78, "this secret is there twice"),
    ] {
        let arguments = [vec!["credentials"], arguments].concat();
        let output = run_with_input(&arguments, "\n");
        let (text, error) = said(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(expected), "{arguments:?}: {error}");
        assert!(!(text + &error).contains("hunter2"));
    }
}

#[test]
fn an_id_is_made_once_and_a_key_that_others_can_read_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.file("unused", "").with_file_name("node.key");
    let arguments = ["id", "--key", path.to_str().unwrap()];
    let (id, _) = said(&run(&arguments));
    assert_eq!(id.trim_end().len(), 52, "{id}");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(said(&run(&arguments)).0, id);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let refused = run(&arguments);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).1.contains("(mode 0644)"));
}
