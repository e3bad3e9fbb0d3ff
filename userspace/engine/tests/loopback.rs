//! The engine on loopback, on both drivers.

mod switchboard;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use switchboard::*;
use towpath_engine::{Counter, Driver, DriverInUse};

#[test]
fn a_datagram_is_answered_in_place_and_from_the_machines_own_buffer() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let client = client(engine.listeners()[0]);
        assert_eq!(ask(&client, b"e hello"), b"e hello");
        assert_eq!(ask(&client, b"q hello"), b"q hello");
        assert_eq!(ask(&client, b"p hello"), b"pre:p hello\0");
        assert!(engine.is_running());
        engine.shutdown();
    }
}

#[test]
fn the_report_names_the_driver_and_why() {
    for (driver, in_use) in DRIVERS
        .into_iter()
        .zip([DriverInUse::IoUring, DriverInUse::Epoll])
    {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        assert_eq!(engine.report().driver, in_use);
        assert!(!engine.report().reason.is_empty());
    }
}

#[test]
fn ipv6_listeners_answer_beside_ipv4_ones_on_the_same_port() {
    for driver in DRIVERS {
        // Another test may hold the IPv6 twin of a free IPv4 port, so a few are tried.
        let (engine, port) = (0..20)
            .find_map(|_| {
                let port = UdpSocket::bind("0.0.0.0:0").ok()?.local_addr().ok()?.port();
                let both = [&*format!("0.0.0.0:{port}"), &*format!("[::]:{port}")];
                Some((try_start(config(driver, &both)).ok()?, port))
            })
            .expect("one of twenty free ports is free for both families");
        let v4 = client(SocketAddr::from(([127, 0, 0, 1], port)));
        let v6 = client(format!("[::1]:{port}").parse().unwrap());
        assert_eq!(ask(&v4, b"e four"), b"e four");
        assert_eq!(ask(&v6, b"e six"), b"e six");
        assert_eq!(ask(&v6, b"q six"), b"q six");
        assert_eq!(engine.listeners().len(), 2);
    }
}

#[test]
fn a_wildcard_listener_answers_from_the_address_it_was_asked_at() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["0.0.0.0:0"]));
        let port = engine.listeners()[0].port();
        for host in [1, 2, 77] {
            let target = SocketAddr::from(([127, 0, 0, host], port));
            // A connected socket only takes what comes from the address it sent to.
            let client = client(target);
            assert_eq!(ask(&client, b"e in place"), b"e in place");
            assert_eq!(ask(&client, b"q queued"), b"q queued");
        }
    }
}

#[test]
fn relayed_ports_carry_datagrams_both_ways() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let client = client(engine.listeners()[0]);
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let id = open(&client, "127.0.0.2:0").unwrap();
        client
            .send(&forward(id, peer.local_addr().unwrap(), b"to the peer"))
            .unwrap();
        let mut buffer = [0; 2048];
        let (bytes, relayed) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..bytes], b"to the peer");
        assert_eq!(
            relayed.ip(),
            "127.0.0.2".parse::<std::net::IpAddr>().unwrap()
        );
        for payload in [&b"to the client"[..], b"", &[7; 1472]] {
            peer.send_to(payload, relayed).unwrap();
            let mut expected = id.to_be_bytes().to_vec();
            expected.extend(payload);
            assert_eq!(receive(&client), expected);
        }
        assert_eq!(drops(&counters(&engine)), []);
    }
}

#[test]
fn timeouts_fire_in_order_also_when_an_earlier_one_comes_later() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let (slow, fast) = (client(engine.listeners()[0]), client(engine.listeners()[0]));
        slow.send(&[b't', 1, 0]).unwrap();
        assert_eq!(ask(&slow, b"e"), b"e");
        assert_eq!(ask(&fast, &[b't', 0, 30]), b"t");
        assert_eq!(receive(&slow), b"t");
        for _ in 0..3 {
            assert_eq!(ask(&fast, &[b't', 0, 1]), b"t");
        }
    }
}

#[test]
fn timeouts_fire_in_a_time_namespace_of_its_own() {
    const INSIDE: &str = "TOWPATH_ENGINE_TEST_TIME_NAMESPACE";
    let name = "timeouts_fire_in_a_time_namespace_of_its_own";
    if std::env::var_os(INSIDE).is_some() {
        for driver in DRIVERS {
            let engine = start(config(driver, &["127.0.0.1:0"]));
            assert_eq!(ask(&client(engine.listeners()[0]), &[b't', 0, 1]), b"t");
        }
        return;
    }
    let in_namespace = |program: &std::path::Path| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--time", "--monotonic", "100000", "--fork"]);
        command.arg(program).env(INSIDE, "1");
        command
    };
    let tried = in_namespace("true".as_ref()).output();
    if !tried.is_ok_and(|output| output.status.success()) {
        skip(
            name,
            "cannot make time namespaces as this user or with this kernel",
        );
        return;
    }
    let status = in_namespace(&std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .status();
    assert!(status.unwrap().success(), "{name} failed in its namespace");
}

#[test]
fn a_burst_of_one_flow_is_sent_as_runs_and_arrives_in_order() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let client = client(engine.listeners()[0]);
        for round in 0..50u32 {
            for place in 0..40u32 {
                let mut request = vec![b'e'; 172];
                request[1..5].copy_from_slice(&(round * 40 + place).to_be_bytes());
                client.send(&request).unwrap();
            }
            for place in 0..40u32 {
                let answer = receive(&client);
                assert_eq!(answer.len(), 172);
                assert_eq!(answer[1..5], (round * 40 + place).to_be_bytes());
            }
        }
        // A shard counts what it sent when it wakes the next time.
        assert_eq!(ask(&client, b"e"), b"e");
        let counters = counters(&engine);
        assert!((2000..=2001).contains(&counters.value(Counter::DatagramsSent)));
        assert_eq!(drops(&counters), []);
    }
}

#[test]
fn epoll_sends_what_holds_its_buffers_before_it_receives_more() {
    let mut config = config(Driver::Epoll, &["127.0.0.1:0"]);
    config.small_buffers = 8;
    config.big_buffers = 2;
    let engine = start(config);
    let client = client(engine.listeners()[0]);
    for _ in 0..50 {
        for place in 0..40u8 {
            client.send(&[b'e', place]).unwrap();
        }
        for place in 0..40u8 {
            assert_eq!(receive(&client), [b'e', place]);
        }
    }
    assert_eq!(drops(&counters(&engine)), []);
}

#[test]
fn an_answer_leaves_after_the_commands_queued_before_it_however_many() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let client = client(engine.listeners()[0]);
        for number in [1, 1024, 50_000_u32] {
            let mut request = b"n".to_vec();
            request.extend(number.to_be_bytes());
            // The machine panics where its answer is fetched too early.
            assert_eq!(ask(&client, &request), b"n");
        }
        assert!(engine.is_running());
    }
}
