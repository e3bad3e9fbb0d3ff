//! Merged and long datagrams, several shards, mail and the end of an engine.

#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

mod switchboard;

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use switchboard::*;
use towpath_engine::{Counter, Driver, EngineConfig, Full};
use towpath_proto::machine::ShardId;

fn set(socket: &UdpSocket, level: i32, option: i32, value: &[u8]) -> std::io::Result<()> {
    let bytes = value.len() as libc::socklen_t;
    let fd = socket.as_raw_fd();
    // SAFETY: the pointer is to as many bytes as named, read before the call returns.
    let result = unsafe { libc::setsockopt(fd, level, option, value.as_ptr().cast(), bytes) };
    if result < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sends runs of `segment` bytes, which arrive merged where the receiver has GRO on.
fn send_run(socket: &UdpSocket, datagrams: &[Vec<u8>]) {
    let segment = datagrams[0].len() as i32;
    set(
        socket,
        libc::SOL_UDP,
        libc::UDP_SEGMENT,
        &segment.to_ne_bytes(),
    )
    .unwrap();
    socket.send(&datagrams.concat()).unwrap();
}

#[test]
fn bulk_switches_gro_on_and_every_datagram_is_answered_unharmed_and_in_order() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let client = client(engine.listeners()[0]);
        for round in 0..200u32 {
            let kind = if round % 2 == 0 { b'e' } else { b'p' };
            let datagrams: Vec<Vec<u8>> = (0..30u32)
                .map(|place| {
                    // The last one is shorter, as the end of a run may be.
                    let mut datagram = vec![kind; if place == 29 { 77 } else { 300 }];
                    datagram[1..5].copy_from_slice(&(round * 30 + place).to_be_bytes());
                    datagram
                })
                .collect();
            send_run(&client, &datagrams);
            for datagram in &datagrams {
                let answer = receive(&client);
                let expected = match kind {
                    b'e' => datagram.clone(),
                    _ => {
                        let mut expected = [b"pre:", &datagram[..]].concat();
                        expected.resize(expected.len().next_multiple_of(4), 0);
                        expected
                    }
                };
                assert_eq!(answer, expected, "round {round}");
            }
        }
        let counters = counters(&engine);
        assert_eq!(counters.value(Counter::GroEnabled), 1);
        assert!(counters.value(Counter::Receives) < counters.value(Counter::DatagramsReceived) / 4);
        assert!(counters.value(Counter::GsoSends) > 100);
        assert_eq!(drops(&counters), []);
    }
}

#[test]
fn gro_is_switched_off_again_when_nothing_merges_any_more() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let client = client(engine.listeners()[0]);
        let counters = counters(&engine);
        eventually("GRO is on", || {
            let run = vec![vec![b'e'; 200]; 16];
            send_run(&client, &run);
            (0..16).for_each(|_| drop(receive(&client)));
            counters.value(Counter::GroEnabled) == 1
        });
        set(
            &client,
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            &0i32.to_ne_bytes(),
        )
        .unwrap();
        let mut length = 0;
        eventually("GRO is off", || {
            for _ in 0..64 {
                length = length % 1000 + 1;
                assert_eq!(ask(&client, &vec![b'e'; length]).len(), length);
            }
            counters.value(Counter::GroDisabled) == 1
        });
        assert_eq!(ask(&client, &[b'e'; 1400]).len(), 1400);
        assert_eq!(drops(&counters), []);
    }
}

#[test]
fn interleaved_flows_leave_as_runs_although_they_arrive_one_by_one() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let clients: Vec<_> = (0..8).map(|_| client(engine.listeners()[0])).collect();
        for round in 0..100u8 {
            for place in 0..8u8 {
                for client in &clients {
                    client.send(&[b'e', round, place]).unwrap();
                }
            }
            for client in &clients {
                for place in 0..8u8 {
                    assert_eq!(receive(client), [b'e', round, place]);
                }
            }
        }
        assert_eq!(drops(&counters(&engine)), []);
    }
}

#[test]
fn a_datagram_too_long_for_small_buffers_is_counted_and_the_next_one_fits() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let client = client(engine.listeners()[0]);
        client
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let request = vec![b'e'; 9000];
        eventually("a long datagram is answered", || {
            client.send(&request).unwrap();
            client.recv(&mut [0; 9001]).is_ok_and(|bytes| bytes == 9000)
        });
        let counters = counters(&engine);
        assert!((1..20).contains(&counters.value(Counter::DropTruncated)));
        assert_eq!(ask(&client, b"e short"), b"e short");
        assert_eq!(ask(&client, &[b'e'; 60_000]).len(), 60_000);
    }
}

#[test]
fn clients_are_served_by_the_shard_their_address_hashes_to() {
    for driver in DRIVERS {
        let engine = start(EngineConfig {
            shards: 3,
            ..config(driver, &["0.0.0.0:0", "[::]:0"])
        });
        assert_eq!(engine.shards(), 3);
        for listener in engine.listeners() {
            let host = if listener.is_ipv4() {
                "127.0.0.1"
            } else {
                "::1"
            };
            let target = SocketAddr::new(host.parse().unwrap(), listener.port());
            for _ in 0..40 {
                let client = client(target);
                let shard = engine.steering().shard_of(client.local_addr().unwrap());
                assert_eq!(ask(&client, b"s"), shard.0.to_be_bytes());
            }
        }
        assert!(engine.report().has("steering"));
        let handed: u64 = (0..3)
            .map(|shard| {
                engine
                    .counters(ShardId(shard))
                    .unwrap()
                    .value(Counter::HandedOver)
            })
            .sum();
        assert_eq!(handed, 0);
    }
}

#[test]
fn what_arrives_at_a_wrong_shard_is_handed_to_the_right_one() {
    for driver in DRIVERS {
        let engine = start(EngineConfig {
            shards: 4,
            ..config(driver, &["[::1]:0"])
        });
        // The kernel's hash reads the port behind the fixed header; with an option there it reads
        // something else, and most clients land on a wrong shard.
        let options = [17, 0, 1, 4, 0, 0, 0, 0];
        for _ in 0..40 {
            let client = client(engine.listeners()[0]);
            if let Err(error) = set(&client, libc::IPPROTO_IPV6, IPV6_DSTOPTS, &options) {
                let test = "what_arrives_at_a_wrong_shard_is_handed_to_the_right_one";
                skip(
                    test,
                    &format!("cannot send IPv6 options as this user: {error}"),
                );
                return;
            }
            let shard = engine.steering().shard_of(client.local_addr().unwrap());
            assert_eq!(ask(&client, b"s"), shard.0.to_be_bytes());
        }
        let handed: u64 = (0..4)
            .map(|shard| {
                engine
                    .counters(ShardId(shard))
                    .unwrap()
                    .value(Counter::HandedOver)
            })
            .sum();
        assert!(handed > 10, "{handed} of 40");
    }
}

#[test]
fn a_machine_hands_a_datagram_to_another_shard_which_answers_it() {
    for driver in DRIVERS {
        let engine = start(EngineConfig {
            shards: 3,
            ..config(driver, &["127.0.0.1:0"])
        });
        let client = client(engine.listeners()[0]);
        let hand_to = |shard: u16, rest: &[u8]| {
            let mut request = b"h".to_vec();
            request.extend(shard.to_be_bytes());
            request.extend(rest);
            request
        };
        for shard in 0..3_u16 {
            assert_eq!(ask(&client, &hand_to(shard, b"s")), shard.to_be_bytes());
        }
        let sum = |counter| -> u64 {
            let value = |shard| engine.counters(ShardId(shard)).unwrap().value(counter);
            (0..3).map(value).sum()
        };
        assert_eq!(sum(Counter::HandedOver), 3);
        client.send(&hand_to(3, b"s")).unwrap();
        eventually("there is no such shard", || {
            sum(Counter::DropHandoverFull) == 1
        });
        assert_eq!(ask(&client, b"e"), b"e");
    }
}

/// Destination options of everything a socket sends.
const IPV6_DSTOPTS: i32 = 59;

#[test]
fn mail_wakes_a_sleeping_shard() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let client = client(engine.listeners()[0]);
        assert_eq!(ask(&client, b"e"), b"e");
        let mailbox = engine.mailbox(ShardId(0)).unwrap();
        for round in 0..200u32 {
            if round % 10 == 0 {
                // Long enough that the shard sleeps, whatever it did before.
                std::thread::sleep(Duration::from_millis(5));
            }
            mailbox
                .try_send(Event::Say(round.to_be_bytes().to_vec()))
                .unwrap();
            assert_eq!(receive(&client), round.to_be_bytes());
        }
        assert!(engine.mailbox(ShardId(1)).is_none());
        engine.shutdown();
        // Nobody takes mail any more: it fills up, and is refused then.
        let refused = (0..100_000).find_map(|_| mailbox.try_send(Event::Say(Vec::new())).err());
        assert!(matches!(refused, Some(Full(Event::Say(_)))));
    }
}

#[test]
fn shutdown_frees_every_address_at_once() {
    for driver in DRIVERS {
        let mut listener: SocketAddr = "127.0.0.1:0".parse().unwrap();
        for _ in 0..20 {
            let engine = start(config(driver, &[&listener.to_string()]));
            listener = engine.listeners()[0];
            let client = client(listener);
            open(&client, "127.0.0.1:0").unwrap();
            let address = "127.0.0.9:17171";
            open(&client, address).unwrap();
            client.send(&[b't', 0, 200]).unwrap();
            engine.shutdown();
            drop(UdpSocket::bind(address).expect("the relayed address is free"));
            drop(UdpSocket::bind(listener).expect("the listening address is free"));
        }
    }
}

/// Makes the kernel refuse runs, and nothing else, from an engine's socket bound to `address`: it
/// cuts up only what it may compute checksums for.
fn forbid_runs(address: SocketAddr) {
    let mut found = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let fd = name.parse().unwrap();
        // SAFETY: it is only asked for its address, and whose it is shows there.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let local = socket2::SockRef::from(&borrowed).local_addr();
        if local.ok().and_then(|local| local.as_socket()) != Some(address) {
            continue;
        }
        let on = 1i32;
        let (value, bytes) = ((&raw const on).cast(), size_of::<i32>() as libc::socklen_t);
        // SAFETY: the pointer is to an integer of the length given.
        let result =
            unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_NO_CHECK, value, bytes) };
        assert_eq!(result, 0);
        found += 1;
    }
    assert_eq!(found, 1, "sockets bound to {address}");
}

/// Eight requests of one length that are told apart.
fn eight_requests() -> Vec<Vec<u8>> {
    (0..8u8)
        .map(|place| [&[b'e', place][..], &[7; 98]].concat())
        .collect()
}

#[test]
fn a_refused_run_is_sent_again_without_waiting_for_anything_else() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        forbid_runs(engine.listeners()[0]);
        let counters = counters(&engine);
        // What arrives in pieces leaves in pieces, and then there may have been no run.
        eventually("a run was refused", || {
            let client = client(engine.listeners()[0]);
            let requests = eight_requests();
            send_run(&client, &requests);
            // Those of another round may overtake those of the refused run.
            let mut answers: Vec<_> = requests.iter().map(|_| receive(&client)).collect();
            answers.sort_unstable();
            assert_eq!(answers, requests);
            counters.value(Counter::GsoFallbacks) > 0
        });
        assert_eq!(drops(&counters), []);
    }
}

#[test]
fn shutdown_does_not_wait_for_a_refused_run() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let listener = engine.listeners()[0];
        forbid_runs(listener);
        let client = client(listener);
        send_run(&client, &eight_requests());
        eventually("the requests arrived", || {
            counters(&engine).value(Counter::DatagramsReceived) == 8
        });
        // The refusal may be on its way, taken, or followed by the datagrams alone.
        std::thread::sleep(Duration::from_millis(20));
        engine.shutdown();
        drop(UdpSocket::bind(listener).expect("the listening address is free"));
    }
}

#[test]
fn a_shard_that_panics_is_noticed_and_the_others_go_on() {
    for driver in DRIVERS {
        let engine = start(EngineConfig {
            shards: 2,
            ..config(driver, &["127.0.0.1:0"])
        });
        assert!(engine.is_running());
        engine
            .mailbox(ShardId(1))
            .unwrap()
            .try_send(Event::Die)
            .unwrap();
        eventually("the engine notices", || !engine.is_running());
        let survivor = std::iter::repeat_with(|| client(engine.listeners()[0]))
            .find(|client| engine.steering().shard_of(client.local_addr().unwrap()) == ShardId(0))
            .unwrap();
        assert_eq!(ask(&survivor, b"e"), b"e");
    }
}

#[test]
fn an_address_that_somebody_shares_is_in_use_whatever_the_number_of_shards() {
    let kind = socket2::Type::DGRAM;
    let other = socket2::Socket::new(socket2::Domain::IPV4, kind, None).unwrap();
    other.set_reuse_port(true).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    other.bind(&any.into()).unwrap();
    let address = other.local_addr().unwrap().as_socket().unwrap();
    let start = |shards| {
        try_start(EngineConfig {
            shards,
            ..config(Driver::Epoll, &[&address.to_string()])
        })
    };
    for shards in [1, 3] {
        let error = start(shards).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("cannot listen on {address}")),
            "{error}"
        );
    }
    drop(other);
    let first = start(3).unwrap();
    assert!(start(3).is_err());
    drop(first);
}

#[test]
fn settings_that_break_a_rule_are_refused_with_the_rule() {
    let refused = |change: &dyn Fn(&mut EngineConfig)| {
        let mut config = config(Driver::Epoll, &["127.0.0.1:0"]);
        change(&mut config);
        try_start(config).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&|config| config.shards = 257),
        "there are at most 256 shards"
    );
    assert_eq!(
        refused(&|config| config.small_buffers = 3),
        "small_buffers is from 8 to 16384"
    );
    assert_eq!(
        refused(&|config| config.big_buffers = 1),
        "big_buffers is from 2 to 512"
    );
    let taken = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let held = UdpSocket::bind(taken).unwrap();
    let error = refused(&|config| config.listeners = vec![taken]);
    assert!(
        error.starts_with(&format!("cannot listen on {taken}")),
        "{error}"
    );
    drop(held);
}
