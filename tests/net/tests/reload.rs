//! What an operator changes while the server runs: a configuration that is read again, and an end that
//! cuts nobody off.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use towpath_ebpf_common::reason::Reason;
use towpath_net::{
    Addresses, Driver, Flow, Host, KernelLab, KernelMode, Kind, Lab, PASSWORD, Pinned, Probe,
    Refused, Relayed, Server, ServerOptions, USER, address,
};
use towpath_proto::relay::{RestName, RestSecret};
use towpath_proto::wire::attribute::Family;

const PATIENCE: Duration = Duration::from_secs(20);
/// Within this, what is relayed has arrived.
const SILENCE: Duration = Duration::from_millis(300);
const AUTO: Kind = Kind::Towpath(Driver::Auto);

const SERVER: &str = "10.77.2.1";
const CLIENT: &str = "10.77.2.2";
/// Two addresses of one host.
const PEERS: [&str; 2] = ["10.77.2.3", "10.77.2.4"];
const CHANNELS: [u16; 2] = [0x4001, 0x4002];
/// Where metrics and health are by default.
const OBSERVE: &str = "127.0.0.1:9478";

struct Network {
    server: Host,
    client: Host,
    peer: Host,
    _lab: Lab,
}

impl Network {
    fn new() -> Option<Self> {
        let lab = Lab::new()?;
        Some(Self {
            server: lab.host("server", &["10.77.2.1/24"]),
            client: lab.host("client", &["10.77.2.2/24"]),
            peer: lab.host("peer", &["10.77.2.3/24", "10.77.2.4/24"]),
            _lab: lab,
        })
    }

    fn start(&self, kind: Kind, options: &ServerOptions) -> Server {
        let server = Server::start(kind, &self.server, options);
        server.wait_for_control();
        server
    }

    fn probe(&self, credentials: (&str, &str)) -> Probe {
        let server = SocketAddr::new(address(SERVER), 3478);
        Probe::with_password(&self.client, address(CLIENT), server, credentials)
    }

    /// A client of this user, with an allocation and a channel to each peer.
    fn talk(&self, user: &str) -> Talk {
        let mut probe = self.probe((user, PASSWORD));
        let relayed = probe.allocate(None).expect("the server allocates").relayed;
        let peers = PEERS.map(|ip| self.peer.bind_any(address(ip)));
        for (number, peer) in CHANNELS.into_iter().zip(&peers) {
            let peer = peer.local_addr().expect("a bound socket has an address");
            probe.bind_channel(number, peer).expect("it is allowed");
        }
        Talk {
            probe,
            relayed: relayed.expect("an allocation has an address"),
            peers,
        }
    }
}

fn options() -> ServerOptions {
    ServerOptions::on(&[address(SERVER)])
}

/// A client and its peers.
struct Talk {
    probe: Probe,
    relayed: SocketAddr,
    peers: [UdpSocket; 2],
}

impl Talk {
    /// Whether data goes both ways between the client and this peer; where it goes one way only, it is
    /// an error of the server.
    fn relays(&mut self, peer: usize, data: &[u8]) -> bool {
        let (number, socket) = (CHANNELS[peer], &self.peers[peer]);
        self.probe.send_on_channel(number, data);
        let there = receives(socket, data);
        socket
            .send_to(data, self.relayed)
            .expect("the relayed address has a route");
        let expected = Relayed::Channel {
            number,
            data: data.to_vec(),
        };
        let back = self.probe.receive(SILENCE) == Some(expected);
        assert_eq!(there, back, "one way only");
        there
    }
}

/// Whether this, and nothing else, comes.
fn receives(socket: &UdpSocket, data: &[u8]) -> bool {
    socket
        .set_read_timeout(Some(SILENCE))
        .expect("it is not zero");
    let mut buffer = [0; 2048];
    match socket.recv(&mut buffer) {
        Ok(bytes) => {
            assert_eq!(&buffer[..bytes], data);
            true
        }
        Err(_) => false,
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn until_logged(server: &mut Server, line: &str) {
    until(line, || server.process().output().contains(line));
}

fn a_denied_peer_is_cut_off_and_others_keep_their_flow(driver: Driver) {
    let Some(network) = Network::new() else {
        return;
    };
    let mut options = options();
    let mut server = network.start(Kind::Towpath(driver), &options);
    let mut talk = network.talk(USER);
    assert!(talk.relays(0, b"before") && talk.relays(1, b"before"));
    options.deny.push(format!("{}/32", PEERS[0]));
    assert_eq!(server.reload(&options), "applied: access.deny\n");
    until("the shard to know", || {
        talk.probe.create_permission(&[address(PEERS[0])]) == Err(Refused(403))
    });
    assert!(!talk.relays(0, b"denied"));
    assert!(talk.relays(1, b"allowed as before"));
    // And back: what was denied may be asked for again.
    options.deny.clear();
    server.configure(&options);
    server.process().signal(Signal::HUP);
    until("the peer to be allowed", || {
        talk.probe.create_permission(&[address(PEERS[0])]).is_ok()
    });
    assert!(talk.relays(1, b"allowed all the time"));
    let log = server.process().output();
    assert_eq!(log.matches("configuration reloaded").count(), 2, "{log}");
}

#[test]
fn a_reload_cuts_a_denied_peer_off_on_io_uring() {
    a_denied_peer_is_cut_off_and_others_keep_their_flow(Driver::IoUring);
}

#[test]
fn a_reload_cuts_a_denied_peer_off_on_epoll() {
    a_denied_peer_is_cut_off_and_others_keep_their_flow(Driver::Epoll);
}

/// Data goes both ways through the kernel, or not at all.
fn relays_in_the_kernel(flow: &mut Flow, pinned: &Pinned, data: &[u8]) -> bool {
    let before = pinned.relayed();
    flow.probe.send_on_channel(flow.channel, data);
    let there = receives(&flow.socket, data);
    flow.socket
        .send_to(data, flow.relayed)
        .expect("the relayed address has a route");
    let back = flow.probe.receive(SILENCE).is_some();
    let relayed = pinned.relayed() - before;
    let expected = if there { 2 } else { 0 };
    assert_eq!((there, relayed), (back, expected), "{:?}", pinned.reasons());
    there
}

#[test]
fn a_reload_cuts_a_denied_peer_off_in_the_kernel_and_limits_strangers_there() {
    let Some(lab) = KernelLab::new(&[]) else {
        return;
    };
    let mut options = lab.options(KernelMode::Native);
    let server = Server::start(AUTO, &lab.relay, &options);
    server.wait_for_control();
    let pinned = Pinned::open(lab.pins());
    let (v4, v6) = (Addresses::v4(), Addresses::v6());
    let [mut denied, mut allowed] = [v4, v6].map(|peer| {
        lab.peer.knock(peer.relayed);
        Flow::open(&lab, USER, &v4, &peer)
    });
    assert!(relays_in_the_kernel(&mut denied, &pinned, b"before"));
    assert!(relays_in_the_kernel(&mut allowed, &pinned, b"before"));
    options.deny.push(format!("{}/32", v4.peer));
    options
        .limits
        .push("strangers = { per_source = 1 }\ndefault = { up = \"64Mbit\" }".to_owned());
    assert_eq!(
        server.reload(&options),
        "applied: access.deny, limits.default, limits.strangers\n"
    );
    // No packet tells the shard: it looks at all of them by itself.
    until("the denied routes to end", || {
        server.status_json()["kernel"]["routes"] == 2
    });
    assert!(!relays_in_the_kernel(&mut denied, &pinned, b"denied"));
    assert!(relays_in_the_kernel(&mut allowed, &pinned, b"as before"));
    let shown = lab.limits(&["list"]);
    assert!(shown.contains("64Mbit"), "{shown}");
    let stranger = lab.client.bind_any(v4.client);
    for number in 0..200_u8 {
        let mut request = [
            0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        request[19] = number;
        stranger
            .send_to(&request, v4.server())
            .expect("the relay has a route");
    }
    until("the program to drop strangers", || {
        pinned.count(Reason::StrangerSource) > 0
    });
}

#[test]
fn a_reload_ends_the_allocation_of_a_user_who_is_removed_and_no_others() {
    let Some(network) = Network::new() else {
        return;
    };
    let mut options = options();
    options.users = vec!["bob".to_owned()];
    let mut server = network.start(AUTO, &options);
    let (mut alice, mut bob) = (network.talk(USER), network.talk("bob"));
    assert!(alice.relays(0, b"alice's") && bob.relays(0, b"bob's"));
    options.users.clear();
    assert_eq!(server.reload(&options), "applied: auth.users\n");
    until_logged(&mut server, "user_removed");
    assert!(!bob.relays(0, b"bob's"));
    assert_eq!(bob.probe.refresh(600), Err(Refused(401)));
    assert!(alice.relays(0, b"alice's"));
    let status = server.status_json();
    assert_eq!(
        (&status["allocations"], &status["users"]),
        (&1.into(), &1.into()),
        "{status}"
    );
}

/// A time-limited username and its password.
fn credential(secret: &str) -> (String, String) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let name = RestName {
        ends_unix_s: now.expect("1970 is over").as_secs() + 3600,
        id: Some("carol"),
    };
    let username = name.username().expect("a short name");
    let secret = RestSecret::new(secret).expect("it is not empty");
    let password = secret.password(&username);
    (username, password)
}

#[test]
fn a_secret_is_rotated_by_two_reloads() {
    const OLD: &str = "the secret on its way out";
    const NEW: &str = "the secret that takes its place";
    let Some(network) = Network::new() else {
        return;
    };
    let mut options = options();
    options.secrets = vec![OLD.to_owned()];
    let mut server = network.start(AUTO, &options);
    let [old, new] = [OLD, NEW].map(credential);
    let with = |credential: &(String, String)| network.probe((&credential.0, &credential.1));
    let mut before = with(&old);
    before.allocate(None).expect("the secret is in force");
    assert_eq!(with(&new).allocate(None), Err(Refused(401)));

    options.secrets = vec![NEW.to_owned(), OLD.to_owned()];
    assert_eq!(server.reload(&options), "applied: auth.rest_secrets\n");
    let mut after = with(&new);
    until("the new secret to open", || after.allocate(None).is_ok());
    with(&old).allocate(None).expect("both are in force");
    before.refresh(600).expect("what was made goes on");

    options.secrets = vec![NEW.to_owned()];
    assert_eq!(server.reload(&options), "applied: auth.rest_secrets\n");
    until_logged(&mut server, "user_removed");
    assert_eq!(with(&old).allocate(None), Err(Refused(401)));
    assert_eq!(before.refresh(600), Err(Refused(401)));
    after.refresh(600).expect("the new secret stays");
    let log = server.process().output();
    assert!(!log.contains(OLD) && !log.contains(NEW), "{log}");
}

#[test]
fn a_configuration_that_is_wrong_changes_nothing_and_says_where() {
    let Some(network) = Network::new() else {
        return;
    };
    let mut options = options();
    options.users = vec!["bob".to_owned()];
    let mut server = network.start(AUTO, &options);
    let mut bob = network.talk("bob");
    let mut wrong = options.clone();
    wrong.users.clear();
    wrong.deny = vec![format!("{}/32", PEERS[0]), "10.77.2.300/32".to_owned()];
    server.configure(&wrong);
    server.process().signal(Signal::HUP);
    until_logged(&mut server, "nothing changed: access.deny");
    let log = server.process().output();
    assert!(log.contains("towpath.toml:20:"), "{log}");
    assert!(log.contains("^^^^^^"), "{log}");
    assert!(!log.contains("configuration reloaded"), "{log}");
    // Who asks on the socket is told the same.
    let directory = network.server.directory();
    let mut command = network.server.command(directory.join("towpath"));
    let asked = command
        .arg("reload")
        .arg("--runtime-dir")
        .arg(directory.join("run"))
        .output()
        .expect("towpath can be started");
    let said = String::from_utf8_lossy(&asked.stderr);
    assert!(!asked.status.success() && said.contains("^^^^^^"), "{said}");
    assert!(bob.relays(0, b"not denied") && bob.relays(1, b"not denied"));
    bob.probe.refresh(600).expect("not removed");
    // A file that is not there is no empty one.
    std::fs::remove_file(directory.join("towpath.toml")).expect("it was written");
    server.process().signal(Signal::HUP);
    until_logged(&mut server, "nothing changed: cannot read");
    bob.probe.refresh(600).expect("not removed");
}

#[test]
fn what_needs_a_restart_is_named_and_stays_as_it_was() {
    let Some(network) = Network::new() else {
        return;
    };
    let mut options = options();
    let mut server = network.start(AUTO, &options);
    options.ports = 40_000..=40_999;
    options.listen = vec![SocketAddr::new(address(SERVER), 3479)];
    options.limits.push("allocations = { per_user = 1 }".into());
    let said = server.reload(&options);
    assert_eq!(
        said,
        "applied: limits.allocations\nneeds a restart: relay.listen, relay.port_range\n"
    );
    let needs = "needs a restart: relay.listen, relay.port_range";
    until_logged(&mut server, needs);
    assert!(server.status().contains(needs));
    let mut probe = network.probe((USER, PASSWORD));
    let granted = probe.allocate(Some(Family::V4)).expect("it listens there");
    let port = granted
        .relayed
        .expect("an allocation has an address")
        .port();
    assert!((50_000..=51_999).contains(&port), "{port}");
    let second = network.probe((USER, PASSWORD)).allocate(None);
    assert_eq!(second, Err(Refused(486)), "the rest holds");
}

/// The server's answer about its health, from its own host.
fn readyz(host: &Host) -> String {
    let mut answer = String::new();
    let asked = host.inside(|| {
        let mut stream = TcpStream::connect(OBSERVE)?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
        stream.read_to_string(&mut answer)
    });
    asked.expect("health is served");
    answer
}

fn a_draining_server_sends_newcomers_on_and_ends_with_its_last_allocation(driver: Driver) {
    let Some(network) = Network::new() else {
        return;
    };
    let other = SocketAddr::new(address("10.77.2.9"), 3478);
    let mut options = options();
    options.alternates = vec![other];
    let mut server = network.start(Kind::Towpath(driver), &options);
    let mut talk = network.talk(USER);
    assert!(readyz(&network.server).contains("200 OK"));
    server.process().signal(Signal::USR1);
    until("the server to drain", || {
        server.status_json()["draining"] == true
    });
    let health = readyz(&network.server);
    assert!(
        health.contains("503") && health.contains("the server drains"),
        "{health}"
    );
    assert!(server.status().contains("draining"));
    let mut newcomer = network.probe((USER, PASSWORD));
    assert_eq!(newcomer.allocate(None), Err(Refused(300)));
    assert_eq!(newcomer.alternate(), Some(other));
    // A draining server can still be told of other servers, or of none.
    options.alternates.clear();
    assert_eq!(
        server.reload(&options),
        "applied: relay.alternate_servers\n"
    );
    until("the other server to be forgotten", || {
        newcomer.allocate(None) == Err(Refused(508))
    });
    talk.probe.refresh(600).expect("what there is goes on");
    assert!(talk.relays(0, b"as before") && talk.relays(1, b"as before"));
    assert_eq!(server.process().ended(), None);
    talk.probe.refresh(0).expect("an allocation can be ended");
    let status = server.process().wait(PATIENCE);
    assert!(status.success(), "{status}");
    let log = server.process().output();
    for line in [
        "draining: new allocations are refused",
        "drained",
        "stopped",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
}

#[test]
fn a_draining_server_ends_with_its_last_allocation_on_io_uring() {
    a_draining_server_sends_newcomers_on_and_ends_with_its_last_allocation(Driver::IoUring);
}

#[test]
fn a_draining_server_ends_with_its_last_allocation_on_epoll() {
    a_draining_server_sends_newcomers_on_and_ends_with_its_last_allocation(Driver::Epoll);
}

#[test]
fn a_server_without_allocations_that_is_to_drain_ends_at_once() {
    let Some(network) = Network::new() else {
        return;
    };
    let mut server = network.start(AUTO, &options());
    let said = towpath_net::tool(&network.server, &["drain"]);
    assert!(said.contains("the last of 0 allocations"), "{said}");
    let status = server.process().wait(PATIENCE);
    assert!(status.success(), "{status}");
}
