//! Floods of strangers' requests, dropped by the kernel's program while a neighbour is served.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use towpath_ebpf_common::reason::Reason;
use towpath_net::load::{Source, offer, payload};
use towpath_net::{
    Addresses, Datagram, Driver, KernelLab, KernelMode, Kind, Packet, Pinned, Probe, Server,
};

const FLOOD_PPS: u64 = 20_000;
const FLOOD: Duration = Duration::from_secs(4);

/// A lab whose server answers few strangers.
fn lab(mode: KernelMode) -> Option<(KernelLab, Server)> {
    let lab = KernelLab::new(&[])?;
    let mut options = lab.options(mode);
    options
        .limits
        .push("strangers = { per_source = 100, per_network = 1000, total = 2000 }".into());
    let server = Server::start(Kind::Towpath(Driver::Auto), &lab.relay, &options);
    // Answers to forged addresses leave, so that they cost what they cost elsewhere.
    lab.relay
        .run("ip", &["route", "add", "default", "via", "10.77.2.2"]);
    Some((lab, server))
}

/// Binding requests from these addresses, with an attribute that nobody has to know, around `data`.
fn requests(
    lab: &KernelLab,
    data: &[u8],
    sources: impl Iterator<Item = Ipv4Addr>,
) -> Vec<Datagram> {
    let [client_mac, relay_mac] = [&lab.client, &lab.relay].map(|host| host.mac("eth0"));
    let mut request = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    request.extend([7; 12]);
    request.extend([0x80, 0x22]);
    let bytes = u16::try_from(data.len()).expect("it is short");
    request.extend(bytes.to_be_bytes());
    request.extend(data);
    request[2..4].copy_from_slice(&(bytes + 4).to_be_bytes());
    sources
        .map(|ip| {
            Packet {
                source: SocketAddr::new(ip.into(), 5000),
                destination: Addresses::v4().server(),
                payload: request.clone(),
            }
            .on(client_mac, relay_mac)
        })
        .collect()
}

/// Clients one after the other while the flood lasts; gives how long each took to get an allocation.
fn neighbours(lab: &KernelLab, until: Instant) -> Vec<Duration> {
    let addresses = Addresses::v4();
    let mut took = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        let mut probe = Probe::new(&lab.client, addresses.client, addresses.server());
        let granted = probe.allocate(None);
        assert!(granted.is_ok(), "{granted:?} after {:?}", began.elapsed());
        took.push(began.elapsed());
        assert!(probe.refresh(0).is_ok());
        thread::sleep(Duration::from_millis(100));
    }
    took
}

/// Lets the flood come, and clients beside it. Returns how many packets of the flood there were.
fn flood(lab: &KernelLab, requests: &[Datagram], data: &[u8]) -> (u64, Vec<Duration>) {
    let mut source = Source::of_many(&lab.client, "eth0", requests, data, FLOOD_PPS as f64);
    let until = Instant::now() + FLOOD - Duration::from_millis(500);
    let took = thread::scope(|scope| {
        scope.spawn(|| offer(std::slice::from_mut(&mut source), FLOOD));
        // By then every burst is spent.
        thread::sleep(Duration::from_secs(1));
        neighbours(lab, until)
    });
    (source.sent(), took)
}

fn one_source_is_dropped_in_the_kernel(mode: KernelMode) {
    let Some((lab, mut server)) = lab(mode) else {
        return;
    };
    let pinned = Pinned::open(lab.pins());
    let data = payload(28);
    let requests = requests(&lab, &data, std::iter::once(Ipv4Addr::new(198, 18, 5, 5)));
    let (sent, took) = flood(&lab, &requests, &data);
    let dropped = pinned.count(Reason::StrangerSource);
    // A burst of 400 and 100 a second are let through.
    let let_through = 400 + 100 * FLOOD.as_secs();
    assert!(
        dropped >= sent - let_through - 100,
        "{dropped} of {sent}: {:?}",
        pinned.reasons()
    );
    assert!(took.len() >= 10, "{took:?}");
    let slow = took
        .iter()
        .filter(|took| **took > Duration::from_millis(400));
    assert!(slow.count() * 10 <= took.len(), "{took:?}");
    assert_eq!(server.process().ended(), None);
}

fn many_sources_leave_room_for_who_asks_again(mode: KernelMode) {
    let Some((lab, mut server)) = lab(mode) else {
        return;
    };
    let pinned = Pinned::open(lab.pins());
    let data = payload(28);
    // Each from a network of its own, none twice.
    let count = u32::try_from(FLOOD_PPS * FLOOD.as_secs() + 64).expect("it is small");
    let forged = (0..count).map(|n| Ipv4Addr::from(0x0b00_0001 + (n << 8)));
    let requests = requests(&lab, &data, forged);
    let (sent, took) = flood(&lab, &requests, &data);
    let dropped = pinned.count(Reason::StrangerTotal);
    // Newcomers: a burst of 4000 and 1000 a second. Some of the filter's false hits come beside them.
    let let_through = 4000 + 1000 * FLOOD.as_secs();
    assert!(
        dropped >= sent - let_through - sent / 20,
        "{dropped} of {sent}: {:?}",
        pinned.reasons()
    );
    assert!(!took.is_empty());
    // Two of its requests wait for their second try at most, the first answer's and the allocation's.
    assert!(
        took.iter().all(|took| *took < Duration::from_secs(4)),
        "{took:?}"
    );
    assert_eq!(server.process().ended(), None);
}

#[test]
fn a_flood_from_one_source_costs_no_trip_to_userspace_on_the_native_rung() {
    one_source_is_dropped_in_the_kernel(KernelMode::Native);
}

#[test]
fn a_flood_from_one_source_costs_no_trip_to_userspace_on_the_generic_rung() {
    one_source_is_dropped_in_the_kernel(KernelMode::Generic);
}

#[test]
fn a_flood_from_forged_sources_leaves_room_for_clients_on_the_native_rung() {
    many_sources_leave_room_for_who_asks_again(KernelMode::Native);
}

#[test]
fn a_flood_from_forged_sources_leaves_room_for_clients_on_the_generic_rung() {
    many_sources_leave_room_for_who_asks_again(KernelMode::Generic);
}
