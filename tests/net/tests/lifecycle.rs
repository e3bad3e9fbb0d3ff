//! A server's life: start, exhaustion, restart, end; as an ordinary user, and where io_uring is
//! forbidden.

use std::net::SocketAddr;
use std::time::Duration;

use towpath_net::{
    Driver, EchoPeer, Host, Kind, Lab, Probe, Refused, Relayed, Server, ServerOptions, Uclient,
    address,
};

const PATIENCE: Duration = Duration::from_secs(20);

struct Network {
    server: Host,
    client: Host,
    peer: Host,
    lab: Lab,
}

impl Network {
    fn new(programs: &[&str]) -> Option<Self> {
        let lab = Lab::with(programs)?;
        Some(Self {
            server: lab.host("server", &["10.77.2.1/24"]),
            client: lab.host("client", &["10.77.2.2/24"]),
            peer: lab.host("peer", &["10.77.2.3/24"]),
            lab,
        })
    }

    fn options() -> ServerOptions {
        ServerOptions::on(&[address("10.77.2.1")])
    }

    fn probe(&self) -> Probe {
        let server = SocketAddr::new(address("10.77.2.1"), 3478);
        Probe::new(&self.client, address("10.77.2.2"), server)
    }

    /// The whole way by another's client: 200 messages, none lost.
    fn relays_without_loss(&self) {
        let peer = SocketAddr::new(address("10.77.2.3"), 3480);
        let _peer = EchoPeer::start(&self.peer, &[peer]);
        let server = SocketAddr::new(address("10.77.2.1"), 3478);
        let client = Uclient {
            flags: &["-c"],
            server,
            peer: Some(peer),
            clients: 2,
            messages: 100,
        };
        client.loses_nothing_on(&self.client);
    }
}

/// A range of four ports serves four allocations, refuses the fifth, and has a port again once one
/// ends; over and over.
fn relayed_ports_run_out_and_come_back(kind: Kind) {
    const PORTS: usize = 4;
    let Some(network) = Network::new(&["turnserver"]) else {
        return;
    };
    let mut options = Network::options();
    options.ports = 50_000..=50_003;
    options.shards = 1;
    let _server = Server::start(kind, &network.server, &options);
    for round in 0..25 {
        let mut probes: Vec<Probe> = (0..PORTS).map(|_| network.probe()).collect();
        let mut ports: Vec<u16> = probes
            .iter_mut()
            .map(|probe| {
                let granted = probe.allocate(None);
                let granted = granted.unwrap_or_else(|error| panic!("round {round}: {error:?}"));
                granted
                    .relayed
                    .expect("an allocation has an address")
                    .port()
            })
            .collect();
        ports.sort_unstable();
        assert_eq!(ports, [50_000, 50_001, 50_002, 50_003], "round {round}");
        let mut late = network.probe();
        assert_eq!(late.allocate(None), Err(Refused(508)), "round {round}");
        let granted = probes[0].refresh(0).expect("an allocation can be ended");
        assert_eq!(granted.lifetime, Some(0));
        late.allocate(None)
            .expect("the port that came back is given out");
        for probe in probes[1..].iter_mut().chain([&mut late]) {
            probe.refresh(0).expect("an allocation can be ended");
        }
    }
}

/// A second server on the same addresses serves the client of the first: its nonce is refused once
/// as stale, and every port is free again.
fn a_restarted_server_serves_the_same_client(kind: Kind) {
    let Some(network) = Network::new(&["turnserver"]) else {
        return;
    };
    let mut options = Network::options();
    options.ports = 50_000..=50_001;
    options.shards = 1;
    let mut probe = network.probe();
    let server = Server::start(kind, &network.server, &options);
    probe.allocate(None).expect("the first server allocates");
    server.stop();
    let _server = Server::start(kind, &network.server, &options);
    // RFC 8656 §5: a request for an allocation that does not exist is rejected with 437 (Allocation
    // Mismatch). coturn says 400.
    let mismatch = if kind == Kind::Coturn { 400 } else { 437 };
    let outcome = probe.create_permission(&[address("10.77.2.3")]);
    assert_eq!(outcome, Err(Refused(mismatch)));
    probe.allocate(None).expect("the second server allocates");
    network
        .probe()
        .allocate(None)
        .expect("the other port is free too");
}

/// SIGTERM ends the server in good order, with allocations alive.
fn sigterm_ends_the_server_with_success(driver: Driver) {
    let Some(network) = Network::new(&[]) else {
        return;
    };
    let options = Network::options();
    let server = Server::start(Kind::Towpath(driver), &network.server, &options);
    server.wait_for_control();
    let mut probe = network.probe();
    probe.allocate(None).expect("the server allocates");
    let status = server.stop();
    assert!(status.success(), "{status}");
    network
        .server
        .wait_until_free(SocketAddr::new(address("10.77.2.1"), 3478));
}

/// No capability, another user: relays all the same.
fn an_ordinary_user_can_serve(driver: Driver) {
    let Some(network) = Network::new(&["turnutils_uclient", "turnutils_peer"]) else {
        return;
    };
    let mut options = Network::options();
    options.unprivileged = true;
    let _server = Server::start(Kind::Towpath(driver), &network.server, &options);
    network.relays_without_loss();
}

/// Data relayed both ways on a channel while the allocation is refreshed.
fn a_channel_survives_a_refresh(kind: Kind) {
    let Some(network) = Network::new(&["turnserver"]) else {
        return;
    };
    let _server = Server::start(kind, &network.server, &Network::options());
    let mut probe = network.probe();
    let relayed = probe.allocate(None).expect("the server allocates").relayed;
    let socket = network.peer.bind_any(address("10.77.2.3"));
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("the patience is not zero");
    let peer = socket.local_addr().expect("a bound socket has an address");
    probe
        .bind_channel(0x4abc, peer)
        .expect("the peer is allowed");
    for round in 0_u8..20 {
        probe.refresh(600).expect("an allocation can be refreshed");
        let sent = vec![round; usize::from(round) * 60];
        probe.send_on_channel(0x4abc, &sent);
        let mut buffer = [0; 2048];
        let (bytes, source) = socket.recv_from(&mut buffer).expect("the peer is reached");
        assert_eq!((&buffer[..bytes], Some(source)), (&sent[..], relayed));
        socket
            .send_to(&sent, source)
            .expect("the relayed address has a route");
        let expected = Relayed::Channel {
            number: 0x4abc,
            data: sent,
        };
        assert_eq!(probe.receive(PATIENCE), Some(expected));
    }
    drop(network.lab);
}

mod coturn {
    use super::*;

    #[test]
    fn a_restart_serves_the_same_client() {
        a_restarted_server_serves_the_same_client(Kind::Coturn);
    }

    #[test]
    fn a_channel_outlives_refreshes() {
        a_channel_survives_a_refresh(Kind::Coturn);
    }
}

macro_rules! drivers {
    ($($module:ident: $driver:expr;)*) => {
        $(mod $module {
            use super::*;

            #[test]
            fn ports_run_out_and_come_back() {
                relayed_ports_run_out_and_come_back(Kind::Towpath($driver));
            }

            #[test]
            fn a_restart_serves_the_same_client() {
                a_restarted_server_serves_the_same_client(Kind::Towpath($driver));
            }

            #[test]
            fn a_channel_outlives_refreshes() {
                a_channel_survives_a_refresh(Kind::Towpath($driver));
            }

            #[test]
            fn sigterm_ends_it_with_success() {
                sigterm_ends_the_server_with_success($driver);
            }

            #[test]
            fn an_ordinary_user_serves() {
                an_ordinary_user_can_serve($driver);
            }
        })*
    };
}

drivers! {
    io_uring: Driver::IoUring;
    epoll: Driver::Epoll;
}

/// Where the kernel refuses io_uring, the server relays by epoll and says why.
#[test]
fn without_io_uring_epoll_relays_and_the_reason_is_said() {
    let programs = ["turnutils_uclient", "turnutils_peer"];
    let Some(network) = Network::new(&programs) else {
        return;
    };
    let kind = Kind::Towpath(Driver::Auto);
    let options = Network::options();
    let server = Server::start_without_io_uring(kind, &network.server, &options);
    network.relays_without_loss();
    let status = server.status();
    assert!(status.contains("epoll"), "{status}");
    assert!(status.contains("io_uring"), "{status}");
    assert!(
        status.contains("not permitted") || status.contains("EPERM"),
        "{status}"
    );
}
