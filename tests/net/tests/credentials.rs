//! Time-limited credentials: coturn's client and aioice come in with them, and what they made ends with
//! them.

use std::net::SocketAddr;
use std::process::Output;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use towpath_net::{
    Aioice, Driver, EchoPeer, Host, Kind, Lab, Probe, Refused, Server, ServerOptions, Uclient,
    address,
};
use towpath_proto::relay::{RestName, RestSecret};

const SECRET: &str = "a secret that nobody guesses";
const OLD_SECRET: &str = "another one that is on its way out";

fn options() -> ServerOptions {
    let mut options = ServerOptions::on(&[address("10.77.2.1")]);
    options.secrets = vec![SECRET.to_owned(), OLD_SECRET.to_owned()];
    options
}

fn server_address() -> SocketAddr {
    SocketAddr::new(address("10.77.2.1"), 3478)
}

/// A username that ends so many seconds from now, or did, and its password.
fn credential(secret: &str, seconds: i64) -> (String, String) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("1970 is over");
    let name = RestName {
        ends_unix_s: now
            .as_secs()
            .checked_add_signed(seconds)
            .expect("a year near this one"),
        id: Some("alice"),
    };
    let username = name.username().expect("a short name");
    let secret = RestSecret::new(secret).expect("it is not empty");
    let password = secret.password(&username);
    (username, password)
}

/// Runs the program beside the server.
fn towpath(host: &Host, arguments: &[&str]) -> Output {
    let program = host.directory().join("towpath");
    let mut command = host.command(program);
    command
        .args(arguments)
        .output()
        .expect("towpath can be started")
}

fn uclient_relays(kind: Kind, secret: &str) {
    let Some(lab) = Lab::with(&["turnutils_uclient", "turnutils_peer", "timeout"]) else {
        return;
    };
    let server_host = lab.host("server", &["10.77.2.1/24"]);
    let client_host = lab.host("client", &["10.77.2.2/24"]);
    let peer_host = lab.host("peer", &["10.77.2.3/24"]);
    let peer = SocketAddr::new(address("10.77.2.3"), 3480);
    let _server = Server::start(kind, &server_host, &options());
    let _peer = EchoPeer::start(&peer_host, &[peer]);
    let client = Uclient {
        flags: &["-W", secret],
        server: server_address(),
        peer: Some(peer),
        clients: 2,
        messages: 100,
    };
    client.loses_nothing_on(&client_host);
}

#[test]
fn uclient_relays_with_the_secret_on_io_uring() {
    uclient_relays(Kind::Towpath(Driver::IoUring), SECRET);
}

#[test]
fn uclient_relays_with_the_secret_on_epoll() {
    uclient_relays(Kind::Towpath(Driver::Epoll), SECRET);
}

#[test]
fn uclient_relays_with_a_secret_that_is_to_be_replaced() {
    uclient_relays(Kind::Towpath(Driver::Auto), OLD_SECRET);
}

#[test]
fn aioice_relays_with_what_towpath_credentials_prints() {
    let Some(lab) = Lab::with(&["turnutils_peer", "timeout"]) else {
        return;
    };
    let Some(aioice) = Aioice::find() else {
        return;
    };
    let host = lab.host("server", &["10.77.2.1/24"]);
    let client_host = lab.host("client", &["10.77.2.2/24"]);
    let peer_host = lab.host("peer", &["10.77.2.3/24"]);
    let peer = SocketAddr::new(address("10.77.2.3"), 3480);
    let _server = Server::start(Kind::Towpath(Driver::Auto), &host, &options());
    let _peer = EchoPeer::start(&peer_host, &[peer]);
    let configuration = host.directory().join("towpath.toml");
    let configuration = configuration.to_string_lossy();
    let arguments = [
        "credentials",
        "--json",
        "--user",
        "x",
        "--config",
        &configuration,
    ];
    let made = towpath(&host, &arguments);
    assert!(made.status.success(), "{made:?}");
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).expect("it is JSON");
    assert_eq!(made["urls"][0], "turn:10.77.2.1?transport=udp");
    assert_eq!(made["ttl"], 3600);
    let text = |key: &str| made[key].as_str().expect("it is text");
    let credentials = (text("username"), text("credential"));
    aioice.loses_nothing_on(&client_host, server_address(), credentials, peer);
}

#[test]
fn a_credential_that_has_ended_is_refused_and_one_that_lasts_is_not() {
    let Some(lab) = Lab::new() else {
        return;
    };
    let host = lab.host("server", &["10.77.2.1/24"]);
    let client_host = lab.host("client", &["10.77.2.2/24"]);
    let _server = Server::start(Kind::Towpath(Driver::Auto), &host, &options());
    let allocate = |(user, password): (String, String)| {
        let local = address("10.77.2.2");
        let credentials = (user.as_str(), password.as_str());
        Probe::with_password(&client_host, local, server_address(), credentials).allocate(None)
    };
    assert_eq!(allocate(credential(SECRET, -1)), Err(Refused(401)));
    assert_eq!(allocate(credential("a guess", 3600)), Err(Refused(401)));
    assert_eq!(
        allocate(credential(SECRET, 3600)).unwrap().lifetime,
        Some(600)
    );
    assert_eq!(
        allocate(credential(OLD_SECRET, 3600)).unwrap().lifetime,
        Some(600)
    );
    let short = allocate(credential(SECRET, 300)).unwrap().lifetime.unwrap();
    assert!((200..=300).contains(&short), "{short}");
}

#[test]
fn an_allocation_ends_with_its_credential_and_not_if_it_is_refreshed_with_a_new_one() {
    let Some(lab) = Lab::new() else {
        return;
    };
    let host = lab.host("server", &["10.77.2.1/24"]);
    let client_host = lab.host("client", &["10.77.2.2/24"]);
    let mut server = Server::start(Kind::Towpath(Driver::Auto), &host, &options());
    server.wait_for_control();
    let short = credential(SECRET, 6);
    let probe = || {
        let credentials = (short.0.as_str(), short.1.as_str());
        let local = address("10.77.2.2");
        Probe::with_password(&client_host, local, server_address(), credentials)
    };
    let (mut left_alone, mut refreshed) = (probe(), probe());
    assert!(left_alone.allocate(None).unwrap().lifetime.unwrap() <= 6);
    assert!(refreshed.allocate(None).is_ok());
    let long = credential(OLD_SECRET, 3600);
    refreshed.change_credentials((&long.0, &long.1));
    assert_eq!(refreshed.refresh(600).unwrap().lifetime, Some(600));
    let ended = std::time::Instant::now();
    while !server.process().output().contains("credential_expired") {
        assert!(ended.elapsed() < Duration::from_secs(60), "nothing ended");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(left_alone.refresh(600), Err(Refused(401)));
    assert!(refreshed.refresh(600).is_ok());
    let status = server.status_json();
    assert_eq!(status["allocations"], 1, "{status}");
}

#[test]
fn secrets_are_in_no_log() {
    let Some(lab) = Lab::new() else {
        return;
    };
    let host = lab.host("server", &["10.77.2.1/24"]);
    let client_host = lab.host("client", &["10.77.2.2/24"]);
    let mut server = Server::start(Kind::Towpath(Driver::Auto), &host, &options());
    let (user, password) = credential(SECRET, 3600);
    let credentials = (user.as_str(), password.as_str());
    let local = address("10.77.2.2");
    let mut probe = Probe::with_password(&client_host, local, server_address(), credentials);
    assert!(probe.allocate(None).is_ok());
    assert!(probe.refresh(0).is_ok());
    let said = server.process().output();
    for secret in [SECRET, OLD_SECRET, &password] {
        assert!(!said.contains(secret), "{said}");
    }
    let checked = towpath(
        &host,
        &[
            "config",
            "check",
            &host.directory().join("towpath.toml").to_string_lossy(),
        ],
    );
    assert!(checked.status.success(), "{checked:?}");
    let checked = String::from_utf8_lossy(&checked.stdout);
    assert!(
        !checked.contains(SECRET) && !checked.contains(OLD_SECRET),
        "{checked}"
    );
}
