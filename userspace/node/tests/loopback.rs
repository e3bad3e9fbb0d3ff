//! Nodes of one process that talk over loopback.
#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use futures::{AsyncReadExt as _, AsyncWriteExt};
use towpath::{
    Allowance, CloseReason, Connection, Driver, Ended, Event, HealthStatus, LimitWord, Node,
    Priority, ReadError, SecretKey, WriteError,
};

fn node(driver: Driver) -> Node {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Node::builder().driver(driver).listen(any).spawn().unwrap()
}

/// A node that calls, one that is called, and both ends of the connection between them.
fn pair(driver: Driver) -> (Node, Node, Connection, Connection) {
    let (caller, callee) = (node(driver), node(driver));
    let address = callee.peer_addr().unwrap();
    let (out, into) = block_on(async {
        let out = caller.connect(&address).await.unwrap();
        (out, callee.accept().await.unwrap())
    });
    assert_eq!((out.peer(), into.peer()), (callee.id(), caller.id()));
    assert!(into.is_incoming() && !out.is_incoming());
    (caller, callee, out, into)
}

/// Sends back all streams and datagrams.
async fn echo(connection: Connection) {
    let datagrams = connection.clone();
    connection.spawn(async move {
        while let Ok(datagram) = datagrams.receive_datagram().await {
            if datagrams.send_datagram(datagram).await.is_err() {
                return;
            }
        }
    });
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        connection.spawn(async move {
            while let Ok(Some(bytes)) = receive.read().await {
                if send.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            let _ = send.finish().await;
        });
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[test]
fn streams_and_datagrams_come_back_from_a_node_that_serves() {
    for driver in [Driver::Auto, Driver::Epoll] {
        let (caller, callee) = (node(driver), node(driver));
        assert!(callee.serve(echo));
        assert!(!callee.serve(echo), "one handler is enough");
        let address = callee.peer_addr().unwrap();
        block_on(async {
            let connection = caller.connect(&address).await.unwrap();
            let message = pattern(3_000_000);
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            let sender = {
                let message = message.clone();
                thread::spawn(move || {
                    block_on(async {
                        send.write_all(&message).await.unwrap();
                        send.finish().await.unwrap();
                        assert_eq!(send.ended().await.unwrap(), Ended::Received);
                    })
                })
            };
            let echo = receive.read_to_end(message.len()).await.unwrap();
            assert!(echo == message, "{} bytes came back", echo.len());
            sender.join().unwrap();
            connection.send_datagram(&b"ping"[..]).await.unwrap();
            assert_eq!(connection.receive_datagram().await.unwrap(), "ping");
            caller.close().await;
            callee.close().await;
        });
    }
}

#[test]
fn the_traits_of_futures_read_and_write_streams() {
    let (_caller, _callee, out, into) = pair(Driver::Auto);
    block_on(async {
        let mut send = out.open_uni().await.unwrap();
        send.set_priority(Priority::Bulk).await.unwrap();
        AsyncWriteExt::write_all(&mut send, b"one line\nand another")
            .await
            .unwrap();
        send.close().await.unwrap();
        send.ended().await.unwrap();
        let late = send.set_priority(Priority::Control).await;
        assert_eq!(late, Err(WriteError::Finished));
        let mut receive = into.accept_uni().await.unwrap();
        let mut text = String::new();
        receive.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "one line\nand another");
    });
}

#[test]
fn a_stream_that_is_dropped_early_is_reset_and_never_looks_complete() {
    let (_caller, _callee, out, into) = pair(Driver::Auto);
    block_on(async {
        let mut send = out.open_uni().await.unwrap();
        send.write_all(b"half").await.unwrap();
        send.flush().await.unwrap();
        let mut receive = into.accept_uni().await.unwrap();
        assert_eq!(receive.read().await.unwrap().unwrap(), "half");
        drop(send);
        assert_eq!(receive.read().await, Err(ReadError::Reset(0)));
    });
}

#[test]
fn a_receiver_that_wants_no_more_stops_the_sender() {
    let (_caller, _callee, out, into) = pair(Driver::Auto);
    block_on(async {
        let mut send = out.open_uni().await.unwrap();
        send.write_all(b"something").await.unwrap();
        into.accept_uni().await.unwrap().stop(7);
        assert_eq!(send.ended().await.unwrap(), Ended::Stopped(7));
        let mut written = Ok(());
        while written.is_ok() {
            written = send.write_all(&[0; 1000]).await;
        }
        assert_eq!(written, Err(WriteError::Stopped(7)));
    });
}

#[test]
fn a_close_tells_the_peer_and_ends_all_that_waits() {
    let (caller, callee, out, into) = pair(Driver::Auto);
    let mut events = callee.events();
    block_on(async {
        let mut send = out.open_uni().await.unwrap();
        send.write_all(b"x").await.unwrap();
        let mut receive = into.accept_uni().await.unwrap();
        assert_eq!(receive.read().await.unwrap().unwrap(), "x");
        out.close(9, "enough");
        let reason = CloseReason::Peer {
            code: 9,
            reason: "enough".into(),
        };
        assert_eq!(receive.read().await, Err(ReadError::Closed(reason.clone())));
        assert_eq!(into.closed().await, reason);
        assert_eq!(into.accept_bi().await.err(), Some(reason.clone()));
        assert_eq!(out.closed().await, CloseReason::Here);
        let expected = Event::Closed {
            peer: caller.id(),
            reason,
        };
        assert_eq!(events.next().await, Some(expected));
    });
}

#[test]
fn a_closed_node_ends_its_connections_and_takes_no_calls() {
    let (caller, callee, out, into) = pair(Driver::Auto);
    let address = callee.peer_addr().unwrap();
    block_on(async {
        callee.close().await;
        assert_eq!(into.closed().await, CloseReason::Here);
        assert!(matches!(
            out.closed().await,
            CloseReason::Peer { code: 0, .. }
        ));
        assert!(callee.accept().await.is_none());
        let refused = callee.connect(&address).await.unwrap_err();
        assert_eq!(refused, towpath::ConnectError::NodeClosed);
        assert!(into.open_bi().await.is_err());
        drop(caller);
        assert_eq!(out.closed().await, out.close_reason().unwrap());
    });
}

#[test]
fn a_panicking_handler_harms_its_own_connection_only() {
    let (caller, callee) = (node(Driver::Auto), node(Driver::Auto));
    let victim = caller.id();
    callee.serve(move |connection| async move {
        if connection.peer() == victim {
            panic!("a defect of the application");
        }
        echo(connection).await;
    });
    let address = callee.peer_addr().unwrap();
    block_on(async {
        let victims = caller.connect(&address).await.unwrap();
        // Its handler has dropped it.
        assert!(matches!(victims.closed().await, CloseReason::Peer { .. }));
        let other = node(Driver::Auto);
        let connection = other.connect(&address).await.unwrap();
        connection.send_datagram(&b"still there"[..]).await.unwrap();
        assert_eq!(connection.receive_datagram().await.unwrap(), "still there");
        assert_eq!(callee.counters().panics.value(), 1);
    });
}

#[test]
fn many_threads_share_a_connection() {
    let (caller, callee) = (node(Driver::Auto), node(Driver::Auto));
    callee.serve(echo);
    let address = callee.peer_addr().unwrap();
    let connection = block_on(caller.connect(&address)).unwrap();
    let threads: Vec<_> = (0..8)
        .map(|index| {
            let connection = connection.clone();
            thread::spawn(move || {
                block_on(async {
                    for round in 0..20 {
                        let (mut send, mut receive) = connection.open_bi().await.unwrap();
                        let message = pattern(1 + index * 1000 + round);
                        send.write_all(&message).await.unwrap();
                        send.finish().await.unwrap();
                        assert_eq!(receive.read_to_end(1 << 20).await.unwrap(), message);
                    }
                })
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_dropped_read_loses_nothing() {
    let (_caller, _callee, out, into) = pair(Driver::Auto);
    block_on(async {
        let mut send = out.open_uni().await.unwrap();
        send.write_all(b"a").await.unwrap();
        let mut receive = into.accept_uni().await.unwrap();
        assert_eq!(receive.read().await.unwrap().unwrap(), "a");
        for _ in 0..50 {
            // Begun, and given up before anything could come.
            assert!(futures::poll!(Box::pin(receive.read())).is_pending());
            send.write_all(b"b").await.unwrap();
            let mut next = [0];
            receive.read_exact(&mut next).await.unwrap();
            assert_eq!(next, *b"b");
        }
    });
}

#[test]
fn a_call_to_nobody_times_out_and_says_whose_fault_it_is() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let caller = Node::builder()
        .listen(any)
        .configure(|config| {
            config.quic.idle_timeout = Duration::from_millis(200);
            config.pool.retry.max_attempts = 2;
        })
        .spawn()
        .unwrap();
    let silent = std::net::UdpSocket::bind(any).unwrap();
    let to = towpath::PeerAddr::new(
        towpath::PeerId::from_bytes([7; 32]),
        [silent.local_addr().unwrap()],
    )
    .unwrap();
    let error = block_on(caller.connect(&to)).unwrap_err();
    assert_eq!(error.fault(), towpath::Fault::Network, "{error}");
    let myself = towpath::PeerAddr::new(caller.id(), [silent.local_addr().unwrap()]).unwrap();
    let error = block_on(caller.connect(&myself)).unwrap_err();
    assert_eq!(error.fault(), towpath::Fault::Caller, "{error}");
}

#[test]
fn connections_of_a_node_with_several_shards_are_on_all_of_them() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    for driver in [Driver::Auto, Driver::Epoll] {
        let spawn = || Node::builder().driver(driver).shards(3).listen(any).spawn();
        let callee = spawn().unwrap();
        callee.serve(echo);
        let address = callee.peer_addr().unwrap();
        let callers: Vec<_> = (0..8).map(|_| spawn().unwrap()).collect();
        block_on(async {
            for caller in &callers {
                // Called from the shard where the callee is at home, which its answers know by their ids.
                let connection = caller.connect(&address).await.unwrap();
                let (mut send, mut receive) = connection.open_bi().await.unwrap();
                let message = pattern(100_000);
                send.write_all(&message).await.unwrap();
                send.finish().await.unwrap();
                assert!(receive.read_to_end(1 << 20).await.unwrap() == message);
            }
        });
    }
}

#[test]
fn all_who_ask_for_a_peer_share_one_connection() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    for shards in [1, 3] {
        let spawn = || Node::builder().shards(shards).listen(any).spawn().unwrap();
        let (caller, callee) = (spawn(), spawn());
        let address = callee.peer_addr().unwrap();
        let threads: Vec<_> = (0..16)
            .map(|_| {
                let (caller, address) = (caller.clone(), address.clone());
                thread::spawn(move || block_on(caller.connect(&address)).unwrap())
            })
            .collect();
        let connections: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        assert!(connections.iter().all(|one| *one == connections[0]));
        block_on(async {
            let into = callee.accept().await.unwrap();
            // The way back is the same connection.
            let back = callee.connect(&caller.peer_addr().unwrap()).await.unwrap();
            assert!(back == into && back.is_incoming());
            let metadata = connections[0].metadata().await.unwrap();
            assert_eq!((metadata.peer, metadata.references), (callee.id(), 1));
            assert!(connections[0].stats().await.unwrap().sent_datagrams > 0);
        });
    }
}

#[test]
fn a_connection_that_nobody_has_waits_in_the_pool_for_the_next_one() {
    let (caller, callee, out, into) = pair(Driver::Auto);
    let address = callee.peer_addr().unwrap();
    let established = block_on(out.metadata()).unwrap().established_at;
    drop(out);
    block_on(async {
        let again = caller.connect(&address).await.unwrap();
        assert_eq!(again.metadata().await.unwrap().established_at, established);
        // It works as before.
        let mut send = again.open_uni().await.unwrap();
        send.write_all(b"again").await.unwrap();
        send.finish().await.unwrap();
        let mut receive = into.accept_uni().await.unwrap();
        assert_eq!(receive.read_to_end(9).await.unwrap(), b"again");
    });
}

#[test]
fn a_connection_of_nobody_ends_when_it_was_idle_for_long_enough() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let caller = Node::builder()
        .listen(any)
        .configure(|config| {
            config.pool.idle_timeout = Duration::from_millis(20);
            config.pool.keep_alive_interval = Duration::from_millis(10);
        })
        .spawn()
        .unwrap();
    let callee = node(Driver::Auto);
    let address = callee.peer_addr().unwrap();
    block_on(async {
        drop(caller.connect(&address).await.unwrap());
        let into = callee.accept().await.unwrap();
        assert!(matches!(into.closed().await, CloseReason::Peer { .. }));
    });
}

#[test]
fn a_call_that_nobody_waits_for_is_given_up() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (caller, callee) = (node(Driver::Auto), node(Driver::Auto));
    let silent = std::net::UdpSocket::bind(any).unwrap();
    let to = towpath::PeerAddr::new(
        towpath::PeerId::from_bytes([7; 32]),
        [silent.local_addr().unwrap()],
    )
    .unwrap();
    block_on(async {
        assert!(futures::poll!(Box::pin(caller.connect(&to))).is_pending());
        // Orderly, and not after the time that a call takes.
        caller.close().await;
        let refused = callee.connect(&callee.peer_addr().unwrap()).await;
        assert_eq!(refused.unwrap_err().fault(), towpath::Fault::Caller);
    });
}

#[test]
fn a_reason_that_was_given_before_the_nodes_end_is_the_one_that_is_told() {
    for _ in 0..10 {
        let (caller, _callee, out, into) = pair(Driver::Auto);
        block_on(async {
            out.close(9, "enough");
            caller.close().await;
            let reason = CloseReason::Peer {
                code: 9,
                reason: "enough".into(),
            };
            assert_eq!(into.closed().await, reason);
        });
    }
}

#[test]
fn further_connections_with_a_peer_are_given_as_soon_as_they_stand() {
    const CONNECTIONS: usize = 50;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let several = || {
        let builder = Node::builder().listen(any).configure(|config| {
            config.pool.max_connections_per_peer = CONNECTIONS;
            config.pool.references_per_connection = 1;
        });
        builder.spawn().unwrap()
    };
    let (caller, callee) = (several(), several());
    assert!(callee.serve(echo));
    let address = callee.peer_addr().unwrap();
    let mut connections: Vec<Connection> = Vec::new();
    let patience = Instant::now() + Duration::from_secs(60);
    while connections.len() < CONNECTIONS {
        assert!(Instant::now() < patience, "{} stand", connections.len());
        let connection = block_on(caller.connect(&address)).unwrap();
        if !connections.contains(&connection) {
            connections.push(connection);
        }
    }
}

#[test]
fn a_limit_holds_a_transfer_back_and_goes_away_again() {
    let (caller, callee, out, into) = pair(Driver::Auto);
    let megabit = LimitWord::new(1_000_000, 16_000).unwrap();
    let allowance = Allowance {
        up: megabit,
        ..Allowance::UNLIMITED
    };
    caller.set_limit(callee.id(), allowance).unwrap();
    block_on(async {
        let mut send = out.open_uni().await.unwrap();
        // Half a minute's worth, which no test waits for.
        let message = pattern(4_000_000);
        let sender = thread::spawn(move || {
            block_on(async {
                send.write_all(&message).await.unwrap();
                send.finish().await.unwrap();
            })
        });
        let mut receive = into.accept_uni().await.unwrap();
        receive.read().await.unwrap();
        let used = caller.usage(callee.id()).unwrap();
        assert!(used.up.bytes > 0 && used.up.bytes < 1_000_000, "{used:?}");
        assert_eq!(used.up.limit, megabit);
        caller.set_limit(callee.id(), Allowance::UNLIMITED).unwrap();
        receive.read_to_end(4_000_000).await.unwrap();
        sender.join().unwrap();
    });
}

#[test]
fn what_a_node_does_is_counted_and_said_in_prometheus_words() {
    let (caller, callee, out, _into) = pair(Driver::Auto);
    let snapshot = caller.metrics().snapshot();
    assert_eq!(snapshot.connections, 1);
    assert!(snapshot.sent.bytes > 1200 && snapshot.received.bytes > 1200);
    let count = |family, name| {
        let mut rows = snapshot.counters.iter();
        rows.find(|(of, what, _)| (*of, *what) == (family, name))
            .map(|(_, _, value)| *value)
    };
    assert_eq!(count("pool", "dialled"), Some(1));
    assert_eq!(count("node", "failed_handshakes"), Some(0));
    let text = caller.metrics().to_text().unwrap();
    for line in [
        "towpath_node_connections 1",
        "towpath_pool_total{shard=\"0\",what=\"dialled\"} 1",
        "towpath_application_total{what=\"panics\"} 0",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    let health = block_on(caller.health(callee.id())).unwrap();
    assert!(health.last_fault.is_none());
    assert_eq!(out.peer(), callee.id());
}

#[test]
fn whoever_asks_while_a_node_ends_is_answered() {
    for _ in 0..20 {
        let (caller, _callee, out, _into) = pair(Driver::Auto);
        let asking: Vec<_> = (0..4)
            .map(|_| {
                let out = out.clone();
                thread::spawn(move || block_on(async { while out.stats().await.is_some() {} }))
            })
            .collect();
        drop(caller);
        for thread in asking {
            thread.join().unwrap();
        }
    }
}

#[test]
fn a_peer_that_answers_no_more_is_called_anew_by_whoever_asks_next() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let caller = Node::builder()
        .listen(any)
        .configure(|config| {
            config.pool.keep_alive_interval = Duration::from_millis(20);
            config.health_check_timeout = Duration::from_millis(20);
        })
        .spawn()
        .unwrap();
    let key = SecretKey::from_seed([42; 32]);
    let called = || {
        Node::builder()
            .key(key.clone())
            .listen(any)
            .spawn()
            .unwrap()
    };
    let callee = called();
    let address = callee.peer_addr().unwrap();
    let mut events = caller.events();
    block_on(async {
        let old = caller.connect(&address).await.unwrap();
        // It tells nobody.
        drop(callee);
        loop {
            let event = events.next().await.unwrap();
            let unhealthy =
                matches!(event, Event::HealthChanged { to, .. } if to == HealthStatus::Unhealthy);
            if unhealthy {
                break;
            }
        }
        // The same peer, somewhere else.
        let again = called();
        let new = caller.connect(&again.peer_addr().unwrap()).await.unwrap();
        assert!(new != old && new.peer() == old.peer());
        assert_eq!(old.close_reason(), None, "who has it keeps it");
    });
}
