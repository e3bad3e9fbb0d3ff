//! Nodes in network namespaces: without privileges, on both drivers, killed, and moved elsewhere.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::Stdio;

use futures::executor::block_on;
use towpath::{CloseReason, Node, PeerAddr};
use towpath_net::{Calls, Driver, Host, Lab, NodeProcess, address, echo, node_on, pattern};

const PORT: u16 = 4433;
const CALLEE: &str = "10.77.2.1";

struct Network {
    callee: Host,
    caller: Host,
    lab: Lab,
}

impl Network {
    fn new(programs: &[&str]) -> Option<Self> {
        let lab = Lab::with(programs)?;
        Some(Self {
            callee: lab.host("callee", &["10.77.2.1/24", "fd77:2::1/64"]),
            caller: lab.host("caller", &["10.77.2.2/24", "fd77:2::2/64"]),
            lab,
        })
    }
}

fn at(ip: &str) -> SocketAddr {
    SocketAddr::new(address(ip), PORT)
}

/// All pings come back, and bytes go both ways.
fn talks(calls: Calls<'_>, node: &NodeProcess) {
    let pings = ["--count", "100", "--interval", "0", "--wait", "20000"];
    let report = calls.json("ping", node.address(), &pings);
    assert_eq!(
        (&report["received"], &report["lost"]),
        (&100.into(), &0.into())
    );
    assert_eq!(report["security"], "post-quantum");
    let bytes = ["--both", "--bytes", "2MB", "--streams", "4"];
    let report = calls.json("perf", node.address(), &bytes);
    assert_eq!(report["up"]["bytes"], 2_000_000, "{report}");
    assert_eq!(report["down"]["bytes"], 2_000_000, "{report}");
}

fn nodes_talk(listen: &str, callee: Driver, caller: Driver) {
    let Some(network) = Network::new(&["timeout"]) else {
        return;
    };
    let node = NodeProcess::start(&network.callee, at(listen), callee, &["--serve"]);
    let calls = Calls {
        host: &network.caller,
        driver: caller,
    };
    talks(calls, &node);
    assert!(node.stop().success());
}

#[test]
fn ordinary_users_nodes_talk_over_io_uring_and_v4() {
    nodes_talk(CALLEE, Driver::IoUring, Driver::IoUring);
}

#[test]
fn ordinary_users_nodes_talk_over_io_uring_and_v6() {
    nodes_talk("fd77:2::1", Driver::IoUring, Driver::IoUring);
}

#[test]
fn ordinary_users_nodes_talk_over_epoll_and_v4() {
    nodes_talk(CALLEE, Driver::Epoll, Driver::Epoll);
}

#[test]
fn ordinary_users_nodes_talk_over_epoll_and_v6() {
    nodes_talk("fd77:2::1", Driver::Epoll, Driver::Epoll);
}

#[test]
fn a_node_without_io_uring_talks_to_one_with_it() {
    let Some(network) = Network::new(&["timeout"]) else {
        return;
    };
    let node = NodeProcess::start_without_io_uring(&network.callee, at(CALLEE), &["--serve"]);
    let calls = Calls {
        host: &network.caller,
        driver: Driver::IoUring,
    };
    talks(calls, &node);
    assert!(node.stop().success());
}

#[test]
fn who_is_told_to_use_the_forbidden_io_uring_says_why_not() {
    let Some(network) = Network::new(&["timeout"]) else {
        return;
    };
    let calls = Calls {
        host: &network.caller,
        driver: Driver::IoUring,
    };
    let nobody = format!("{}@{CALLEE}:{PORT}", "a".repeat(52));
    let command = calls.command("ping", &nobody, &[]);
    let directory = network.lab.directory();
    let mut process = towpath_net::Process::start_without_io_uring("ping", command, directory);
    let ended = process.wait(std::time::Duration::from_secs(30));
    assert_eq!(ended.code(), Some(1));
    let said = process.output();
    assert!(
        said.contains("the node does not start") && said.contains("io_uring"),
        "{said}"
    );
}

#[test]
fn a_pipe_loses_nothing_on_a_network_that_does() {
    let Some(network) = Network::new(&["timeout", "nft"]) else {
        return;
    };
    // One of 25 packets, each way.
    let rules = "add table inet loss; \
        add chain inet loss in { type filter hook input priority 0; }; \
        add chain inet loss out { type filter hook output priority 0; }; \
        add rule inet loss in udp dport 4433 numgen random mod 25 0 drop; \
        add rule inet loss out udp sport 4433 numgen random mod 25 0 drop;";
    network.callee.run("nft", &[rules]);
    let (there, sent) = (network.lab.directory().join("sent"), pattern(1_000_003));
    fs::write(&there, &sent).expect("the laboratory's directory is writable");
    let node = NodeProcess::start(&network.callee, at(CALLEE), Driver::Auto, &[]);
    let calls = Calls {
        host: &network.caller,
        driver: Driver::Auto,
    };
    let input = File::open(&there).expect("it was written");
    let mut connect = calls.command("connect", node.address(), &[]);
    let connect = connect.stdin(input).stdout(Stdio::null());
    assert!(connect.status().expect("it can be started").success());
    let log = network.lab.directory().join("node.log");
    let written = fs::read(log).expect("the node has a log");
    let end = written.len() - sent.len();
    assert!(written[end..] == sent, "{} bytes", written.len());
}

#[test]
fn a_killed_peer_is_missed_at_once_when_it_is_back_and_connected_to_anew() {
    let Some(network) = Network::new(&["timeout"]) else {
        return;
    };
    let start = |driver| NodeProcess::start(&network.callee, at(CALLEE), driver, &["--serve"]);
    let first = start(Driver::Auto);
    let address: PeerAddr = first.address().parse().expect("it prints an address");
    let node = node_on(&network.caller, Node::builder());
    let connection = block_on(node.connect(&address)).expect("the peer is there");
    first.kill();
    network.callee.wait_until_free(at(CALLEE));
    let second = start(Driver::Epoll);
    assert_eq!(second.address(), address.to_string(), "it has the same key");
    // What it is sent on a connection that it knows nothing of, it answers with a reset.
    block_on(connection.send_datagram(&b"still there?"[..])).expect("nothing is known yet");
    assert_eq!(block_on(connection.closed()), CloseReason::Forgotten);
    let anew = block_on(async {
        let connection = node.connect(&address).await.expect("the peer is back");
        connection
            .send_datagram(&b"hello"[..])
            .await
            .expect("it stands");
        connection.receive_datagram().await
    });
    assert_eq!(anew.as_deref(), Ok(&b"hello"[..]));
    block_on(node.close());
}

/// Sends megabytes through a node that sends them back, and has `change` happen to the network meanwhile.
fn a_transfer_survives(change: impl FnOnce(&Network)) {
    const BYTES: usize = 3_000_000;
    let Some(network) = Network::new(&["nft"]) else {
        return;
    };
    let callee = node_on(&network.callee, Node::builder().listen(at(CALLEE)));
    callee.serve(echo);
    let caller = node_on(&network.caller, Node::builder());
    let address = callee.peer_addr().expect("it listens on one address");
    let connection = block_on(caller.connect(&address)).expect("the peer is there");
    let (mut send, mut receive) = block_on(connection.open_bi()).expect("streams are allowed");
    let message = pattern(BYTES);
    let sent = message.clone();
    let sender = std::thread::spawn(move || {
        block_on(async {
            send.write_all(&sent).await?;
            send.finish().await
        })
    });
    let mut echo = vec![0; 100_000];
    block_on(receive.read_exact(&mut echo)).expect("it comes back");
    change(&network);
    let rest = block_on(receive.read_to_end(BYTES)).expect("the rest comes back too");
    echo.extend_from_slice(&rest);
    assert!(echo == message, "{} bytes came back", echo.len());
    let sent = sender.join().expect("the sender does not panic");
    sent.expect("all of it could be sent");
    assert_eq!(connection.close_reason(), None, "it is the same connection");
    block_on(caller.close());
    block_on(callee.close());
}

#[test]
fn a_transfer_goes_on_when_the_caller_gets_another_address() {
    a_transfer_survives(|network| {
        let address = ["addr", "del", "10.77.2.2/24", "dev", "eth0"];
        network.caller.run("ip", &address);
        network.caller.add_address("10.77.2.9/24");
    });
}

#[test]
fn a_transfer_goes_on_when_a_nat_chooses_another_port() {
    a_transfer_survives(|network| {
        let rules = "add table ip nat; \
            add chain ip nat out { type nat hook postrouting priority 100; }; \
            add rule ip nat out udp dport 4433 snat to 10.77.2.2:5555;";
        network.caller.run("nft", &[rules]);
    });
}
