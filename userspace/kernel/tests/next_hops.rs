//! Next hops follow the kernel's tables.

mod lab;

use std::net::{IpAddr, UdpSocket};

use lab::{Lab, ip, on_a_host, wait_until};
use towpath_ebpf_common::route::NextHop;
use towpath_kernel::{Kernel, Mode, NextHops, Unusable};

const NEAR_MAC: [u8; 6] = [2, 0, 0, 0, 9, 1];
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 9, 2];

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A host whose cable has the program on it.
fn with_next_hops(name: &str, test: impl FnOnce(&Lab, &NextHops) + Send) {
    on_a_host(name, |lab| {
        let kernel = Kernel::start(&lab.config(Mode::Native, &["near"])).expect("native works");
        let next_hops = kernel.next_hops().expect("the program is attached");
        test(lab, &next_hops);
    });
}

/// Waits until an entry is valid and `condition` holds of it.
fn wait_for(
    next_hops: &NextHops,
    index: u32,
    what: &str,
    condition: impl Fn(&NextHop) -> bool,
) -> NextHop {
    let entry = || next_hops.entry(index).expect("it was asked for");
    wait_until(what, || {
        entry().state != NextHop::INVALID && condition(&entry())
    });
    entry()
}

fn wait_for_invalid(next_hops: &NextHops, index: u32, why: Unusable) {
    wait_until(&format!("{why}"), || {
        let invalid = next_hops.entry(index).expect("it was asked for").state == NextHop::INVALID;
        invalid && next_hops.counts().unusable.contains_key(&why)
    });
}

#[test]
fn a_neighbour_is_asked_for_and_becomes_a_next_hop() {
    with_next_hops("a_neighbour_is_asked_for", |_, next_hops| {
        for (far, near) in [("10.77.9.2", "10.77.9.1"), ("fd77:9::2", "fd77:9::1")] {
            let index = next_hops
                .resolve(address(far), address(near))
                .expect("there is room");
            let hop = wait_for(next_hops, index, "the neighbour's answer", |_| true);
            assert_eq!(hop.destination_mac, FAR_MAC);
            assert_eq!(hop.source_mac, NEAR_MAC);
            assert_eq!((hop.mtu, hop.vlan), (1500, 0));
            let json = ip("-j link show dev near");
            let links: serde_json::Value = serde_json::from_str(&json).expect("ip writes JSON");
            assert_eq!(links[0]["ifindex"].as_u64(), Some(hop.interface.into()));
            let again = next_hops.resolve(address(far), address(near));
            assert_eq!(again, Some(index), "the entry is kept");
        }
    });
}

#[test]
fn a_gateway_that_changes_its_address_is_followed() {
    with_next_hops("a_gateway_that_changes_its_address", |lab, next_hops| {
        ip("route add 192.0.2.0/24 via 10.77.9.2");
        let through = |host: &str| {
            let index = next_hops.resolve(address(host), address("10.77.9.1"));
            index.expect("there is room")
        };
        let hops = [through("192.0.2.7"), through("192.0.2.8")];
        for index in hops {
            let hop = wait_for(next_hops, index, "the gateway's answer", |_| true);
            assert_eq!(hop.destination_mac, FAR_MAC);
        }
        lab.far("link set far address 02:00:00:00:09:99");
        // It forgets what it knew, and asks with its new address.
        lab.inside_far(|| {
            let socket = UdpSocket::bind("10.77.9.2:0").expect("the address is there");
            let _ = socket.send_to(b"x", "10.77.9.1:9");
        });
        for index in hops {
            wait_for(next_hops, index, "the new address", |hop| {
                hop.destination_mac == [2, 0, 0, 0, 9, 0x99]
            });
        }
    });
}

#[test]
fn mtus_of_link_and_route_are_followed() {
    with_next_hops("mtus_of_link_and_route", |_, next_hops| {
        ip("route add 192.0.2.0/24 via 10.77.9.2");
        let index = next_hops
            .resolve(address("192.0.2.7"), address("10.77.9.1"))
            .expect("there is room");
        wait_for(next_hops, index, "the gateway's answer", |hop| {
            hop.mtu == 1500
        });
        ip("route change 192.0.2.0/24 via 10.77.9.2 mtu 1300");
        wait_for(next_hops, index, "the route's MTU", |hop| hop.mtu == 1300);
        ip("link set near mtu 1280");
        wait_for(next_hops, index, "the link's MTU", |hop| hop.mtu == 1280);
    });
}

#[test]
fn a_route_that_is_deleted_or_leads_elsewhere_is_followed() {
    with_next_hops("a_route_that_is_deleted", |lab, next_hops| {
        lab.far("addr add 10.77.9.3/24 dev far");
        ip("route add 192.0.2.0/24 via 10.77.9.2");
        let index = next_hops
            .resolve(address("192.0.2.7"), address("10.77.9.1"))
            .expect("there is room");
        wait_for(next_hops, index, "the gateway's answer", |_| true);
        ip("route del 192.0.2.0/24");
        wait_for_invalid(next_hops, index, Unusable::NoRoute);
        ip("neigh add 10.77.9.3 lladdr 02:00:00:00:09:03 dev near");
        ip("route add default via 10.77.9.3");
        wait_for(next_hops, index, "the other gateway", |hop| {
            hop.destination_mac == [2, 0, 0, 0, 9, 3]
        });
        ip("route add blackhole 192.0.2.7/32");
        wait_for_invalid(next_hops, index, Unusable::NoRoute);
    });
}

#[test]
fn a_neighbour_that_vanishes_is_no_next_hop_until_it_is_back() {
    with_next_hops("a_neighbour_that_vanishes", |_, next_hops| {
        let resolve = || {
            let index = next_hops.resolve(address("10.77.9.2"), address("10.77.9.1"));
            index.expect("there is room")
        };
        let index = resolve();
        wait_for(next_hops, index, "the neighbour's answer", |_| true);
        ip("neigh del 10.77.9.2 dev near");
        wait_for_invalid(next_hops, index, Unusable::NoNeighbour);
        wait_until("it is asked for again", || {
            assert_eq!(resolve(), index);
            next_hops.entry(index).expect("it is there").state != NextHop::INVALID
        });
    });
}

#[test]
fn a_link_that_is_down_is_no_next_hop() {
    with_next_hops("a_link_that_is_down", |lab, next_hops| {
        let index = next_hops
            .resolve(address("10.77.9.2"), address("10.77.9.1"))
            .expect("there is room");
        wait_for(next_hops, index, "the neighbour's answer", |_| true);
        lab.far("link set far down");
        wait_for_invalid(next_hops, index, Unusable::Down);
        lab.far("link set far up");
        wait_until("the link to be used again", || {
            let _ = next_hops.resolve(address("10.77.9.2"), address("10.77.9.1"));
            next_hops.entry(index).expect("it is there").state != NextHop::INVALID
        });
    });
}

#[test]
fn what_the_program_cannot_reach_is_passed_and_counted_by_reason() {
    with_next_hops("what_the_program_cannot_reach", |_, next_hops| {
        ip("link add other type veth peer name another");
        ip("addr add 10.77.8.1/24 dev other");
        ip("link set other up");
        ip("link set another up");
        for (destination, source, why) in [
            ("10.77.8.2", "10.77.8.1", Unusable::OtherInterface),
            ("10.77.9.1", "10.77.9.1", Unusable::NoRoute),
            ("203.0.113.1", "10.77.9.1", Unusable::NoRoute),
            ("10.77.9.255", "10.77.9.1", Unusable::NoRoute),
            ("10.77.9.2", "198.51.100.1", Unusable::NoRoute),
            ("10.77.9.77", "10.77.9.1", Unusable::NoNeighbour),
        ] {
            let before = next_hops.counts().unusable.get(&why).copied().unwrap_or(0);
            let index = next_hops
                .resolve(address(destination), address(source))
                .expect("there is room");
            let hop = next_hops.entry(index).expect("it was asked for");
            assert_eq!(hop, NextHop::default(), "{destination}");
            let after = next_hops.counts().unusable.get(&why).copied();
            assert_eq!(after, Some(before + 1), "{destination}: {why}");
        }
    });
}

#[test]
fn a_full_array_refuses_and_counts() {
    with_next_hops("a_full_array_refuses", |_, next_hops| {
        let resolve = |host: u32| {
            let destination = IpAddr::V4((u32::from_be_bytes([198, 18, 0, 0]) + host).into());
            next_hops.resolve(destination, address("10.77.9.1"))
        };
        for host in 0..256 {
            assert_eq!(resolve(host), Some(host));
        }
        assert_eq!(resolve(256), None);
        assert_eq!(resolve(3), Some(3), "those that are known are answered");
        assert_eq!(next_hops.counts().refused, 1);
    });
}
