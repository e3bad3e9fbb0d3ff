//! NAT behaviour discovery (RFC 5780) and clients of RFC 3489, behind NATs of nftables and without one:
//! coturn's clients, Debian's `stun`, and our own.
//!
//! ```text
//!   ┌ client ┐        ┌ router ┐         ┌ server ┐
//!   └─eth0───┘        └lan─eth0┘         └─eth0───┘
//!   10.1.0.2 ──cable── 10.1.0.1, 10.77.2.11 ──switch── 10.77.2.1, 10.77.2.5, ports 3478 and 3479
//! ```

use std::net::SocketAddr;

use towpath_net::{Driver, Host, Kind, Lab, PASSWORD, Probe, Server, ServerOptions, USER, address};

const SERVER: &str = "10.77.2.1";
const OTHER: &str = "10.77.2.5";
const OUTSIDE: &str = "10.77.2.11";

/// What stands between client and server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Nat {
    None,
    FullCone,
    AddressRestricted,
    PortRestricted,
    Symmetric,
    AddressDependent,
}

impl Nat {
    /// Mapping, filtering, and the name of RFC 3489.
    fn expected(self) -> [&'static str; 3] {
        let (independent, address, port) = (
            "endpoint-independent",
            "address-dependent",
            "address-and-port-dependent",
        );
        match self {
            Self::None => [independent, independent, "none"],
            Self::FullCone => [independent, independent, "full cone"],
            Self::AddressRestricted => [independent, address, "restricted cone"],
            Self::PortRestricted => [independent, port, "port-restricted cone"],
            Self::Symmetric => [port, port, "symmetric"],
            Self::AddressDependent => [address, port, "symmetric"],
        }
    }

    fn rules(self) -> String {
        let outside = format!("oifname \"eth0\" snat to {OUTSIDE}");
        let known = "iifname \"eth0\" meta l4proto udp";
        let post = match self {
            Self::None => return String::new(),
            Self::FullCone | Self::AddressRestricted => outside,
            Self::PortRestricted => "oifname \"eth0\" masquerade".to_owned(),
            Self::Symmetric => "oifname \"eth0\" masquerade random".to_owned(),
            Self::AddressDependent => format!(
                "oifname \"eth0\" meta l4proto udp snat to {OUTSIDE} : \
                 jhash ip saddr . udp sport . ip daddr mod 20000 seed 0x1 offset 40000"
            ),
        };
        let pre = match self {
            Self::FullCone => format!("{known} dnat to udp dport map @in"),
            Self::AddressRestricted => {
                format!("{known} ip saddr . udp dport @perm dnat to udp dport map @in")
            }
            Self::None | Self::PortRestricted | Self::Symmetric | Self::AddressDependent => {
                String::new()
            }
        };
        format!(
            "table ip guard {{
               chain input {{
                 type filter hook input priority 0; policy drop;
                 iif lo accept
                 iifname \"lan\" accept
                 ct state established,related accept
               }}
             }}
             table ip nat {{
               map in {{
                 type inet_service : ipv4_addr . inet_service
                 flags dynamic,timeout
                 timeout 120s
                 size 65536
               }}
               set perm {{
                 type ipv4_addr . inet_service
                 flags dynamic,timeout
                 timeout 120s
                 size 65536
               }}
               chain pre {{
                 type nat hook prerouting priority dstnat;
                 {pre}
               }}
               chain post {{
                 type nat hook postrouting priority srcnat;
                 {post}
               }}
               chain learn {{
                 type filter hook postrouting priority 110;
                 oifname \"eth0\" meta l4proto udp ct direction original \
                   update @in {{ ct reply proto-dst timeout 120s : ct original ip saddr . ct original proto-src }} \
                   update @perm {{ ip daddr . ct reply proto-dst timeout 120s }}
               }}
             }}"
        )
    }
}

struct Net {
    lab: Lab,
    server: Host,
    client: Host,
}

/// A server's host with two addresses, and a client behind `nat`.
fn net(nat: Nat, programs: &[&str]) -> Option<Net> {
    let lab = Lab::with(&[&["turnserver", "nft", "sysctl"], programs].concat())?;
    let server = lab.host("server", &["10.77.2.1/24", "fd77:2::1/64"]);
    server.add_address("10.77.2.5/24");
    server.add_address("fd77:2::5/64");
    if nat == Nat::None {
        let client = lab.host("client", &["10.77.2.2/24", "fd77:2::2/64"]);
        return Some(Net {
            lab,
            server,
            client,
        });
    }
    let router = lab.host("router", &["10.77.2.11/24"]);
    let client = lab.island("client");
    lab.cable((&client, "eth0"), (&router, "lan"), &[]);
    router.add_address_to("lan", "10.1.0.1/24");
    router.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
    client.add_address("10.1.0.2/24");
    client.run("ip", &["route", "add", "default", "via", "10.1.0.1"]);
    router.run("nft", &[&nat.rules()]);
    Some(Net {
        lab,
        server,
        client,
    })
}

fn start(kind: Kind, net: &Net) -> Server {
    let v4 = [SERVER, OTHER].map(address);
    let mut options = ServerOptions::on(&v4);
    if let Kind::Towpath(_) = kind {
        options.listen.truncate(1);
        let all = [SERVER, OTHER, "fd77:2::1", "fd77:2::5"].map(address);
        options.behavior = all.map(Into::into).into();
    }
    Server::start(kind, &net.server, &options)
}

fn run(host: &Host, program: &str, arguments: &[&str]) -> String {
    let arguments = [&["60", program], arguments].concat();
    host.run("timeout", &arguments)
}

/// `turnutils_natdiscovery -m -f` comes to the right end, padded and not.
fn natdiscovery(kind: Kind, nat: Nat) {
    let Some(net) = net(nat, &["turnutils_natdiscovery"]) else {
        return;
    };
    let _server = start(kind, &net);
    for padded in [false, true] {
        let local = if nat == Nat::None {
            "10.77.2.2"
        } else {
            "10.1.0.2"
        };
        let mut arguments = vec!["-m", "-f", "-L", local];
        if padded {
            arguments.push("-P");
        }
        arguments.push(SERVER);
        let report = run(&net.client, "turnutils_natdiscovery", &arguments);
        let word = |name: &str| match name {
            "endpoint-independent" => "Endpoint Independent",
            "address-dependent" => "Address Dependent",
            _ => "Address and Port Dependent",
        };
        let [mapping, filtering, _] = nat.expected();
        // It takes the last of three mappings to be of the first address, whose port is another.
        let mapping = match nat {
            Nat::AddressDependent => "Address and Port Dependent",
            _ => word(mapping),
        };
        let mapping = format!("NAT with {mapping} Mapping!");
        let filtering = format!("NAT with {} Filtering!", word(filtering));
        assert!(report.contains(&mapping), "no `{mapping}` in:\n{report}");
        assert!(
            report.contains(&filtering),
            "no `{filtering}` in:\n{report}"
        );
        let none = report.contains("No NAT!");
        assert_eq!(none, nat == Nat::None, "{report}");
        assert!(!report.contains("error"), "{report}");
    }
}

/// Our own client names mapping and filtering.
fn our_client(kind: Kind, nat: Nat) {
    let Some(net) = net(nat, &[]) else {
        return;
    };
    let _server = start(kind, &net);
    let servers = if nat == Nat::None {
        &[SERVER, "fd77:2::1"][..]
    } else {
        &[SERVER]
    };
    for server in servers {
        let program = net.lab.directory().join("towpath");
        let arguments = ["stun", server, "--behavior", "--json"];
        let report = run(&net.client, &program.to_string_lossy(), &arguments);
        let report: serde_json::Value = serde_json::from_str(&report).expect("it is JSON");
        let [mapping, filtering, nat_type] = nat.expected();
        assert_eq!(report["mapping"], mapping, "{report}");
        assert_eq!(report["filtering"], filtering, "{report}");
        assert_eq!(report["nat_type"], nat_type, "{report}");
        assert_eq!(report["translated"], nat != Nat::None, "{report}");
        let other = if server.contains(':') {
            "[fd77:2::5]:3479".to_owned()
        } else {
            format!("{OTHER}:3479")
        };
        assert_eq!(report["other_address"], other, "{report}");
    }
}

/// coturn's other client takes an answer for one of RFC 5780. Its next request has the answer sent to
/// another port (RESPONSE-PORT): Towpath wants to know who asks for that, and the client waits there.
fn stunclient(kind: Kind) {
    let Some(net) = net(Nat::None, &["turnutils_stunclient", "stdbuf"]) else {
        return;
    };
    let _server = start(kind, &net);
    for server in [SERVER, "fd77:2::1"] {
        if kind == Kind::Coturn && server.contains(':') {
            continue;
        }
        let output = net
            .client
            .command("timeout")
            .args(["5", "stdbuf", "-oL", "turnutils_stunclient", "-f", server])
            .output()
            .expect("timeout can be started");
        let report = String::from_utf8_lossy(&output.stdout);
        let responses = report.matches("RFC 5780 response").count();
        let least = if kind == Kind::Coturn { 2 } else { 1 };
        assert!(responses >= least, "{report}");
        assert!(!report.contains("error"), "{report}");
        assert_eq!(output.status.success(), kind == Kind::Coturn, "{report}");
    }
}

/// Debian's client of RFC 3489 names the NAT.
fn rfc_3489_client(kind: Kind, nat: Nat) {
    let Some(net) = net(nat, &["stun"]) else {
        return;
    };
    let _server = start(kind, &net);
    let output = net
        .client
        .command("timeout")
        .args(["60", "stun", SERVER])
        .output()
        .expect("timeout can be started");
    let report = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let expected = match nat {
        Nat::None => "Primary: Open",
        Nat::FullCone => "Primary: Independent Mapping, Independent Filter",
        Nat::AddressRestricted => "Primary: Independent Mapping, Address Dependent Filter",
        Nat::PortRestricted => "Primary: Independent Mapping, Port Dependent Filter",
        Nat::Symmetric | Nat::AddressDependent => "Primary: Dependent Mapping",
    };
    assert!(report.contains(expected), "no `{expected}` in:\n{report}");
}

/// `towpath turn` through the server on `first`, which sends it to the one on `second`.
fn is_sent_on(lab: &Lab, client: &Host) {
    let program = lab.directory().join("towpath");
    let arguments = ["turn", SERVER, "--user", USER, "--password", PASSWORD];
    let arguments = [&arguments[..], &["--count", "50", "--json"]].concat();
    let report = run(client, &program.to_string_lossy(), &arguments);
    let report: serde_json::Value = serde_json::from_str(&report).expect("it is JSON");
    let there = format!("{OTHER}:3478");
    assert_eq!(
        report["servers"],
        serde_json::json!([there, there]),
        "{report}"
    );
    assert_eq!(report["lost"], 0, "{report}");
}

fn two_servers() -> Option<(Lab, [Host; 3])> {
    let lab = Lab::with(&["turnserver"])?;
    let hosts = [
        ("first", SERVER),
        ("second", OTHER),
        ("client", "10.77.2.2"),
    ];
    let hosts = hosts.map(|(role, own)| lab.host(role, &[&format!("{own}/24")]));
    Some((lab, hosts))
}

/// A full server sends clients on, to one of another kind.
fn a_full_server_sends_clients_on(driver: Driver) {
    let Some((lab, [first, second, client])) = two_servers() else {
        return;
    };
    let _second = Server::start(Kind::Coturn, &second, &ServerOptions::on(&[address(OTHER)]));
    let mut options = ServerOptions::on(&[address(SERVER)]);
    options.shards = 1;
    options.ports = 50_000..=50_001;
    options.alternates = vec![SocketAddr::new(address(OTHER), 3478)];
    let _first = Server::start(Kind::Towpath(driver), &first, &options);
    let server = SocketAddr::new(address(SERVER), 3478);
    let mut holders = [(); 2].map(|()| Probe::new(&client, address("10.77.2.2"), server));
    for holder in &mut holders {
        holder.allocate(None).expect("there are two ports");
    }
    let mut refused = Probe::new(&client, address("10.77.2.2"), server);
    let Err(refusal) = refused.allocate(None) else {
        panic!("there is no third port");
    };
    assert!(format!("{refusal:?}").contains("300"), "{refusal:?}");
    is_sent_on(&lab, &client);
}

mod coturn {
    use super::*;

    // The tests are right: coturn passes what it can.
    #[test]
    fn natdiscovery_without_a_nat() {
        natdiscovery(Kind::Coturn, Nat::None);
    }

    #[test]
    fn natdiscovery_behind_a_port_restricted_cone() {
        natdiscovery(Kind::Coturn, Nat::PortRestricted);
    }

    #[test]
    fn stunclient_without_a_nat() {
        stunclient(Kind::Coturn);
    }
}

macro_rules! drivers {
    ($($module:ident: $driver:expr;)*) => {
        $(mod $module {
            use super::*;

            const KIND: Kind = Kind::Towpath($driver);

            #[test]
            fn natdiscovery_without_a_nat() {
                natdiscovery(KIND, Nat::None);
            }

            #[test]
            fn natdiscovery_behind_a_full_cone() {
                natdiscovery(KIND, Nat::FullCone);
            }

            #[test]
            fn natdiscovery_behind_an_address_restricted_cone() {
                natdiscovery(KIND, Nat::AddressRestricted);
            }

            #[test]
            fn natdiscovery_behind_a_port_restricted_cone() {
                natdiscovery(KIND, Nat::PortRestricted);
            }

            #[test]
            fn natdiscovery_behind_a_symmetric_nat() {
                natdiscovery(KIND, Nat::Symmetric);
            }

            #[test]
            fn natdiscovery_behind_an_address_dependent_nat() {
                natdiscovery(KIND, Nat::AddressDependent);
            }

            #[test]
            fn stunclient_without_a_nat() {
                stunclient(KIND);
            }

            #[test]
            fn our_client_without_a_nat() {
                our_client(KIND, Nat::None);
            }

            #[test]
            fn our_client_behind_a_full_cone() {
                our_client(KIND, Nat::FullCone);
            }

            #[test]
            fn our_client_behind_an_address_restricted_cone() {
                our_client(KIND, Nat::AddressRestricted);
            }

            #[test]
            fn our_client_behind_a_port_restricted_cone() {
                our_client(KIND, Nat::PortRestricted);
            }

            #[test]
            fn our_client_behind_a_symmetric_nat() {
                our_client(KIND, Nat::Symmetric);
            }

            #[test]
            fn our_client_behind_an_address_dependent_nat() {
                our_client(KIND, Nat::AddressDependent);
            }

            #[test]
            fn rfc_3489_client_without_a_nat() {
                rfc_3489_client(KIND, Nat::None);
            }

            #[test]
            fn rfc_3489_client_behind_a_full_cone() {
                rfc_3489_client(KIND, Nat::FullCone);
            }

            #[test]
            fn rfc_3489_client_behind_an_address_restricted_cone() {
                rfc_3489_client(KIND, Nat::AddressRestricted);
            }

            #[test]
            fn rfc_3489_client_behind_a_port_restricted_cone() {
                rfc_3489_client(KIND, Nat::PortRestricted);
            }

            #[test]
            fn rfc_3489_client_behind_a_symmetric_nat() {
                rfc_3489_client(KIND, Nat::Symmetric);
            }

            #[test]
            fn a_full_server_sends_clients_on_and_they_follow() {
                a_full_server_sends_clients_on($driver);
            }
        })*
    };
}

drivers! {
    io_uring: Driver::IoUring;
    epoll: Driver::Epoll;
}
