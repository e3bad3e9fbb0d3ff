//! Our own client, by `towpath turn`: two allocations on each server and data through both, over both
//! families, none lost. coturn shows that it gets on with others than our own server.

use towpath_net::{Driver, Kind, Lab, PASSWORD, Server, ServerOptions, USER, address, install};

/// Relays through the server's address of one family.
fn our_client_relays(kind: Kind, server: &str, family: &str) {
    const PACKETS: u32 = 500;
    let Some(lab) = Lab::with(&["turnserver", "timeout"]) else {
        return;
    };
    let host = lab.host("server", &["10.77.2.1/24", "fd77:2::1/64"]);
    let client = lab.host("client", &["10.77.2.2/24", "fd77:2::2/64"]);
    let options = ServerOptions::on(&[address("10.77.2.1"), address("fd77:2::1")]);
    let _server = Server::start(kind, &host, &options);
    let program = install(&client).to_string_lossy().into_owned();
    let packets = PACKETS.to_string();
    let mut arguments = vec!["60", &program, "turn", server, "--json"];
    arguments.extend(["--user", USER, "--password", PASSWORD, "--count", &packets]);
    let report = client.run("timeout", &arguments);
    let report: serde_json::Value = serde_json::from_str(&report).expect("it prints JSON");
    let counts = ["sent", "received", "lost", "duplicates"].map(|key| report[key].as_u64());
    let all = Some(u64::from(PACKETS));
    assert_eq!(counts, [all, all, Some(0), Some(0)], "{report:#}");
    let mapped = report["mapped"].as_str().expect("an address");
    assert!(mapped.starts_with(family), "{report:#}");
}

macro_rules! servers {
    ($($module:ident: $kind:expr;)*) => {
        $(mod $module {
            use super::*;

            #[test]
            fn our_client_relays_over_v4() {
                our_client_relays($kind, "10.77.2.1", "10.77.2.2:");
            }

            #[test]
            fn our_client_relays_over_v6() {
                our_client_relays($kind, "fd77:2::1", "[fd77:2::2]:");
            }
        })*
    };
}

servers! {
    coturn: Kind::Coturn;
    towpath_io_uring: Kind::Towpath(Driver::IoUring);
    towpath_epoll: Kind::Towpath(Driver::Epoll);
}
