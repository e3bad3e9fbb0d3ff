//! A server, a client of its with a peer, and somebody who means no good.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use crate::address;
use crate::frame::{Datagram, Mac};
use crate::lab::{Host, Lab};
use crate::neighbour::Neighbour;
use crate::probe::Probe;
use crate::server::{Kind, Server, ServerOptions};
use crate::stranger::Stranger;
use crate::wire::Wire;

/// What the server's memory may grow by while nothing new has to be kept.
const GROWTH_BYTES: u64 = 4 << 20;

/// A server, a client and its peer, and an attacker.
#[derive(Debug)]
pub struct Scene {
    /// The server, at 10.77.2.1 and fd77:2::1.
    pub server: Server,
    /// Who means no good, at .4.
    pub attacker: Host,
    /// A client, at .2.
    pub client: Host,
    /// Its peer, at .3.
    pub peer: Host,
    _lab: Lab,
}

impl Scene {
    /// A user of the server's whose credentials the attacker has.
    pub const MALLORY: &str = "mallory";

    /// Makes it, with a server that is told more by `tell`; `None`, said loudly, where this machine
    /// cannot or lacks one of `programs`.
    ///
    /// # Panics
    ///
    /// Where the server does not start.
    pub fn start(kind: Kind, programs: &[&str], tell: impl Fn(&mut ServerOptions)) -> Option<Self> {
        let lab = Lab::with(&[&["turnserver", "sysctl", "ethtool"], programs].concat())?;
        let host = lab.host("server", &["10.77.2.1/24", "fd77:2::1/64"]);
        let client = lab.host("client", &["10.77.2.2/24", "fd77:2::2/64"]);
        let peer = lab.host("peer", &["10.77.2.3/24", "fd77:2::3/64"]);
        let attacker = lab.host("attacker", &["10.77.2.4/24", "fd77:2::4/64"]);
        // Answers to sources that nobody has go to the attacker, where they are seen.
        host.run("ip", &["route", "add", "default", "via", "10.77.2.4"]);
        for interface in ["all", "default", "eth0"] {
            let setting = format!("net.ipv4.conf.{interface}.rp_filter=0");
            host.run("sysctl", &["-qw", &setting]);
        }
        // Checksums are made before the capture.
        host.run("ethtool", &["-K", "eth0", "tx", "off"]);
        let mut options = ServerOptions::on(&[address("10.77.2.1"), address("fd77:2::1")]);
        options.users.push(Self::MALLORY.to_owned());
        tell(&mut options);
        let server = Server::start(kind, &host, &options);
        if kind != Kind::Coturn {
            server.wait_for_control();
        }
        Some(Self {
            server,
            attacker,
            client,
            peer,
            _lab: lab,
        })
    }

    /// Where the server listens.
    pub fn server() -> SocketAddr {
        SocketAddr::new(address("10.77.2.1"), 3478)
    }

    /// A well-behaved client with its peer.
    pub fn neighbour(&self) -> Neighbour {
        let peer = (&self.peer, address("10.77.2.3"));
        Neighbour::new(&self.client, address("10.77.2.2"), Self::server(), peer)
    }

    /// The attacker, as somebody unknown.
    pub fn stranger(&self) -> Stranger {
        Stranger::new(&self.attacker, address("10.77.2.4"), Self::server())
    }

    /// The attacker, as a user.
    pub fn mallory(&self) -> Probe {
        let local = address("10.77.2.4");
        Probe::of_user(&self.attacker, local, Self::server(), Self::MALLORY)
    }

    /// The process runs, and says that it does.
    ///
    /// # Panics
    ///
    /// Otherwise.
    pub fn is_alive(&mut self) {
        assert_eq!(self.server.process().ended(), None, "the server has ended");
        let answer = self.server.host().inside(|| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 9478))?;
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        });
        let answer = answer.unwrap_or_else(|error| panic!("/livez: {error}"));
        assert!(answer.starts_with("HTTP/1.1 200"), "/livez: {answer}");
    }

    /// Memory of the server, in bytes.
    pub fn memory(&mut self) -> u64 {
        self.server.process().resident_bytes()
    }

    /// The server's memory is what it was, but for a little.
    ///
    /// # Panics
    ///
    /// Otherwise.
    pub fn has_grown_little_since(&mut self, before: u64) {
        let after = self.memory();
        assert!(
            after <= before + GROWTH_BYTES,
            "from {before} to {after} bytes of memory"
        );
    }

    /// A datagram to the server that says it comes from somewhere, by number: with an odd half of the
    /// number from far away, else from a neighbour that is not there, or from the peer.
    pub fn forged(wire: &Wire, server: Mac, number: u64, payload: &[u8]) -> Datagram {
        let number = u32::try_from(number % (1 << 20)).unwrap_or_default();
        let source = match number % 4 {
            0 => IpAddr::V4(Ipv4Addr::new(10, 77, 2, 100 + (number / 4 % 100) as u8)),
            1 => address("10.77.2.3"),
            _ => IpAddr::V4(Ipv4Addr::from_bits(0x0900_0000 + number)),
        };
        Datagram {
            source_mac: wire.mac(),
            destination_mac: server,
            source: SocketAddr::new(source, 1024 + (number % 60_000) as u16),
            destination: Self::server(),
            hops: 64,
            traffic_class: 0,
            dont_fragment: false,
            payload: payload.to_vec(),
        }
    }
}
