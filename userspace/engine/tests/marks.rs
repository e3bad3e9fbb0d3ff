//! Datagrams that name their shard, on both drivers.

#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

mod switchboard;

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use switchboard::*;
use towpath_engine::{Counter, Driver, Engine, EngineConfig, SteeringRule};
use towpath_proto::machine::{ByteTest, ShardId, ShardMark};

/// The second byte says that the shard follows.
const RULE: SteeringRule = SteeringRule::Marks(&[ShardMark {
    tests: &[ByteTest {
        offset: 1,
        mask: 0xff,
        value: 0xff,
    }],
    offset: 2,
}]);

fn two_shards(driver: Driver, listeners: &[&str]) -> Engine<Switchboard> {
    start(EngineConfig {
        shards: 2,
        steering: RULE,
        ..config(driver, listeners)
    })
}

fn marked(kind: u8, shard: u16, rest: &[u8]) -> Vec<u8> {
    [&[kind, 0xff], &shard.to_be_bytes()[..], rest].concat()
}

fn sum(engine: &Engine<Switchboard>, counter: Counter) -> u64 {
    (0..2)
        .map(|shard| engine.counters(ShardId(shard)).unwrap().value(counter))
        .sum()
}

#[test]
fn a_marked_datagram_is_served_by_the_shard_it_names_wherever_it_comes_from() {
    for driver in DRIVERS {
        let engine = two_shards(driver, &["0.0.0.0:0", "[::]:0"]);
        for listener in engine.listeners() {
            let host = if listener.is_ipv4() {
                "127.0.0.1"
            } else {
                "::1"
            };
            let target = SocketAddr::new(host.parse().unwrap(), listener.port());
            for _ in 0..20 {
                let client = client(target);
                let hashed = engine.steering().shard_of(client.local_addr().unwrap());
                for shard in [0_u16, 1] {
                    assert_eq!(ask(&client, &marked(b's', shard, b"")), shard.to_be_bytes());
                }
                // There is no such shard.
                assert_eq!(ask(&client, &marked(b's', 2, b"")), hashed.0.to_be_bytes());
                assert_eq!(ask(&client, b"s"), hashed.0.to_be_bytes());
            }
        }
        assert!(engine.report().has("steering"));
        assert_eq!(
            sum(&engine, Counter::HandedOver),
            0,
            "the kernel knew them all"
        );
    }
}

#[test]
fn datagrams_of_one_run_are_parted_by_what_they_name() {
    for driver in DRIVERS {
        let engine = two_shards(driver, &["127.0.0.1:0"]);
        let client = client(engine.listeners()[0]);
        for round in 0..100_u32 {
            let run: Vec<Vec<u8>> = (0..30_u32)
                .map(|place| {
                    let number = (round * 30 + place).to_be_bytes();
                    let kind = [b'e', b'p'][(round % 2) as usize];
                    let mut datagram = marked(kind, (place % 2) as u16, &number);
                    datagram.resize(300, place as u8);
                    datagram
                })
                .collect();
            send_run(&client, &run);
            let answers: BTreeSet<Vec<u8>> = run.iter().map(|_| receive(&client)).collect();
            let expected = run.into_iter().map(|datagram| match round % 2 {
                0 => datagram,
                _ => [b"pre:", &datagram[..]].concat(),
            });
            assert_eq!(answers, expected.collect(), "round {round}");
        }
        for shard in [0, 1] {
            let counters = engine.counters(ShardId(shard)).unwrap();
            assert_eq!(counters.value(Counter::DatagramsReceived), 1500);
            assert_eq!(counters.value(Counter::BytesReceived), 1500 * 300);
            assert_eq!(drops(&counters), []);
        }
        assert_eq!(sum(&engine, Counter::HandedOver), 1500);
        assert!(sum(&engine, Counter::GroEnabled) > 0);
    }
}

#[test]
fn a_rule_that_is_too_long_is_refused() {
    const TEST: ByteTest = ByteTest {
        offset: 0,
        mask: 0,
        value: 0,
    };
    const LONG: ShardMark = ShardMark {
        tests: &[TEST; 65],
        offset: 0,
    };
    let refused = try_start(EngineConfig {
        steering: SteeringRule::Marks(&[LONG]),
        ..config(Driver::Epoll, &["127.0.0.1:0"])
    });
    let error = refused.unwrap_err().to_string();
    assert_eq!(
        error,
        "there are at most 16 marks of shards, with 64 tests each"
    );
}

/// Sends datagrams of one length as one message, which arrives as one where the receiver has GRO on.
fn send_run(socket: &UdpSocket, datagrams: &[Vec<u8>]) {
    let segment = datagrams[0].len() as i32;
    // SAFETY: the pointer is to an integer of the length given, read before the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const segment).cast(),
            4,
        )
    };
    assert_eq!(result, 0);
    socket.send(&datagrams.concat()).unwrap();
}
