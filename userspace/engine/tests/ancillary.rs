//! What travels beside the payload: traffic classes, and ICMP errors.

#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

mod switchboard;

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use switchboard::*;
use towpath_engine::Counter;

fn set_int(socket: &UdpSocket, level: i32, option: i32, value: i32) {
    let bytes = std::mem::size_of::<i32>() as libc::socklen_t;
    let value = (&raw const value).cast();
    // SAFETY: the pointer is to an integer, read before the call returns.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, bytes) };
    assert_eq!(result, 0);
}

/// Lets a socket send with a traffic class, and tell that of what it receives.
fn set_class(socket: &UdpSocket, class: u8) {
    let (level, own, told) = match socket.local_addr().unwrap() {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS, libc::IP_RECVTOS),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, libc::IPV6_RECVTCLASS),
    };
    set_int(socket, level, own, class.into());
    set_int(socket, level, told, 1);
}

/// A datagram and its traffic class.
fn receive_with_class(socket: &UdpSocket) -> (Vec<u8>, u8) {
    let mut bytes = vec![0; 2048];
    let mut control = [0u64; 8];
    let mut iovec = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let mut header = libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: &raw mut iovec,
        msg_iovlen: 1,
        msg_control: control.as_mut_ptr().cast(),
        msg_controllen: 64,
        msg_flags: 0,
    };
    // SAFETY: the header and what it points to outlive the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) };
    bytes.truncate(usize::try_from(got).expect("an answer within ten seconds"));
    assert!(header.msg_controllen > 0, "no traffic class was told");
    (bytes, control[2].to_ne_bytes()[0])
}

#[test]
fn what_is_forwarded_keeps_its_traffic_class_on_every_kind_of_listener() {
    for driver in DRIVERS {
        for listener in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
            let engine = start(config(driver, &[listener]));
            let mut to = engine.listeners()[0];
            if to.ip().is_unspecified() {
                to.set_ip(match to {
                    SocketAddr::V4(_) => "127.0.0.1".parse().unwrap(),
                    SocketAddr::V6(_) => "::1".parse().unwrap(),
                });
            }
            let client = client(to);
            for class in [0, 1, 2, 3, 0xb8, 0xb9, 0xff, 0] {
                set_class(&client, class);
                client.send(b"echo").unwrap();
                assert_eq!(receive_with_class(&client), (b"echo".to_vec(), class));
                client.send(b"q: an answer of the machine's own").unwrap();
                assert_eq!(receive_with_class(&client).1, 0);
            }
            assert_eq!(drops(&counters(&engine)), []);
        }
    }
}

#[test]
fn datagrams_of_different_classes_in_one_burst_keep_their_own() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let client = client(engine.listeners()[0]);
        for _ in 0..50 {
            let sent: Vec<(Vec<u8>, u8)> = (0..32u8)
                .map(|place| (vec![b'e', place], place / 5 * 8))
                .collect();
            for (bytes, class) in &sent {
                set_class(&client, *class);
                client.send(bytes).unwrap();
            }
            let mut got: Vec<_> = sent.iter().map(|_| receive_with_class(&client)).collect();
            got.sort();
            assert_eq!(got, sent);
        }
        assert_eq!(drops(&counters(&engine)), []);
    }
}

#[test]
fn traffic_classes_pass_relayed_ports_both_ways() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let client = client(engine.listeners()[0]);
        set_class(&client, 0);
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let id = open(&client, "127.0.0.1:0").unwrap();
        for class in [0xb9, 0, 0x2e] {
            set_class(&client, class);
            set_class(&peer, class);
            let request = forward(id, peer.local_addr().unwrap(), b"hello");
            client.send(&request).unwrap();
            assert_eq!(receive_with_class(&peer), (b"hello".to_vec(), class));
        }
    }
}

/// An address nobody listens at.
fn closed() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap()
}

#[test]
fn an_icmp_error_about_a_relayed_port_reaches_the_machine() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let client = client(engine.listeners()[0]);
        let id = open(&client, "127.0.0.1:0").unwrap();
        let closed = closed();
        for _ in 0..3 {
            client.send(&forward(id, closed, b"x")).unwrap();
            let told = String::from_utf8(receive(&client)).unwrap();
            assert_eq!(told, format!("i{id} 3 3 {closed} 0"));
        }
        assert_eq!(counters(&engine).value(Counter::IcmpErrors), 3);
        assert_eq!(counters(&engine).value(Counter::ReceiveErrors), 0);
    }
}

#[test]
fn an_icmp_error_of_one_peer_takes_nothing_from_another() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let client = client(engine.listeners()[0]);
        let id = open(&client, "127.0.0.1:0").unwrap();
        let closed = closed();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        for round in 0..200u8 {
            for _ in 0..round % 4 {
                client.send(&forward(id, closed, b"x")).unwrap();
            }
            let request = forward(id, peer.local_addr().unwrap(), &[round]);
            client.send(&request).unwrap();
            // Whatever the errors do to the send, the next datagram brings it to its end.
            client.send(b".").unwrap();
        }
        let mut got: Vec<u8> = (0..200).map(|_| receive(&peer)[0]).collect();
        got.sort_unstable();
        assert_eq!(got, (0..200).collect::<Vec<u8>>());
        assert_eq!(drops(&counters(&engine)), []);
    }
}

#[test]
fn a_storm_of_icmp_errors_is_kept_away_until_it_is_over() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let client = client(engine.listeners()[0]);
        let id = open(&client, "127.0.0.1:0").unwrap();
        let closed = closed();
        let counters = counters(&engine);
        let (sent, other) = (
            counters.value(Counter::DatagramsSent),
            self::client(engine.listeners()[0]),
        );
        for round in 0..2000 {
            client.send(&forward(id, closed, b"x")).unwrap();
            if round % 100 == 0 {
                assert_eq!(ask(&other, b"echo"), b"echo");
            }
        }
        eventually("all are sent", || {
            assert_eq!(ask(&other, b"echo"), b"echo");
            counters.value(Counter::DatagramsSent) - sent >= 2000
        });
        let (errors, muted) = (Counter::IcmpErrors, Counter::IcmpMuted);
        assert!(counters.value(muted) >= 1);
        // A window is a second, and on a slow machine it takes some.
        assert!(counters.value(errors) < 1000, "{}", counters.value(errors));
        let before = counters.value(errors);
        eventually("errors are heard again", || {
            client.send(&forward(id, closed, b"x")).unwrap();
            std::thread::sleep(Duration::from_millis(5));
            counters.value(errors) > before
        });
    }
}

#[test]
fn what_leaves_a_listener_whole_is_dropped_and_counted_where_the_interface_carries_less() {
    const INSIDE: &str = "TOWPATH_ENGINE_TEST_SHORT_LOOPBACK";
    let name =
        "what_leaves_a_listener_whole_is_dropped_and_counted_where_the_interface_carries_less";
    if std::env::var_os(INSIDE).is_some() {
        for driver in DRIVERS {
            for listener in ["127.0.0.1:0", "[::1]:0"] {
                long_answers_are_dropped(driver, listener);
            }
        }
        return;
    }
    let in_namespace = |program: &str| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--net", "--map-root-user", "sh", "-c"]);
        let script = format!("ip link set lo mtu 1400 up && {program}");
        command.arg(script).env(INSIDE, "1");
        command
    };
    let tried = in_namespace("true").output();
    if !tried.is_ok_and(|output| output.status.success()) {
        skip(name, "cannot make network namespaces as this user");
        return;
    }
    let test = std::env::current_exe().unwrap();
    let again = format!(
        "exec {} --exact {name} --nocapture --test-threads=1",
        test.display()
    );
    let status = in_namespace(&again).status();
    assert!(status.unwrap().success(), "{name} failed in its namespace");
}

fn long_answers_are_dropped(driver: towpath_engine::Driver, listener: &str) {
    let headers = if listener.starts_with('[') { 48 } else { 28 };
    for whole in [true, false] {
        let mut config = config(driver, &[listener]);
        config.listener_dont_fragment = whole;
        let engine = start(config);
        let client = client(engine.listeners()[0]);
        let fits = vec![b'e'; 1400 - headers];
        // What the client sends is fragmented, and what comes back is not.
        let too_long = vec![b'e'; 1400 - headers + 1];
        assert_eq!(ask(&client, &fits), fits);
        client.send(&too_long).unwrap();
        if whole {
            eventually("it is counted", || {
                client.send(b"x").unwrap();
                counters(&engine).value(Counter::DropSendTooLong) == 1
            });
            assert_eq!(ask(&client, &fits), fits);
            // Of a run, that part leaves that fits.
            let answers = [b"q".repeat(1400 - headers + 1), b"q".repeat(100)];
            for answer in &answers {
                client.send(answer).unwrap();
            }
            assert_eq!(receive(&client), answers[1]);
        } else {
            assert_eq!(receive(&client), too_long);
            assert_eq!(drops(&counters(&engine)), []);
        }
        assert!(engine.is_running());
    }
}
