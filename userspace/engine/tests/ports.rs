//! Relayed ports in large numbers, and what happens when something runs out.

#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

mod switchboard;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use switchboard::*;
use towpath_engine::{Counter, Driver, EngineConfig, StartError};

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Runs one test of this file in a process of its own, so that its limits are nobody else's.
fn in_a_process_of_its_own(test: &str, body: impl FnOnce()) {
    const MARK: &str = "TOWPATH_ENGINE_TEST_CHILD";
    if std::env::var_os(MARK).is_some() {
        return body();
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed in its own process");
}

fn limit_descriptors(limit: u64) {
    let limit = libc::rlimit {
        rlim_cur: limit,
        rlim_max: limit,
    };
    // SAFETY: the pointer is to a limit that outlives the call.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(result, 0);
}

#[test]
fn two_thousand_ports_open_and_close_again_and_again_without_a_leak() {
    in_a_process_of_its_own(
        "two_thousand_ports_open_and_close_again_and_again_without_a_leak",
        || {
            for driver in DRIVERS {
                let engine = start(config(driver, &["127.0.0.1:0"]));
                let client = client(engine.listeners()[0]);
                let before = descriptors();
                for _ in 0..3 {
                    let ids: Vec<u32> = (0..2000)
                        .map(|_| open(&client, "127.0.0.1:0").unwrap())
                        .collect();
                    assert_eq!(descriptors(), before + 2000);
                    for id in ids {
                        close(&client, id);
                    }
                    eventually("all descriptors are closed", || {
                        ask(&client, b"e");
                        descriptors() == before
                    });
                }
                let counters = counters(&engine);
                assert_eq!(counters.value(Counter::PortsOpened), 6000);
                assert_eq!(counters.value(Counter::PortsClosed), 6000);
            }
        },
    );
}

#[test]
fn an_address_in_use_is_refused_and_free_again_after_its_port_was_closed() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let client = client(engine.listeners()[0]);
        let taken = UdpSocket::bind("127.0.0.3:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let reason = open(&client, &address).unwrap_err();
        assert_eq!(reason, format!("{address} is in use"));
        drop(taken);
        for _ in 0..10 {
            let mut id = None;
            eventually("the address is free", || {
                id = open(&client, &address).ok();
                id.is_some()
            });
            close(&client, id.unwrap());
        }
    }
}

#[test]
fn closed_ports_are_silent_and_unknown_ones_are_counted() {
    for driver in DRIVERS {
        let engine = start(config(driver, &["127.0.0.1:0"]));
        let client = client(engine.listeners()[0]);
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let id = open(&client, "127.0.0.1:0").unwrap();
        let request = forward(id, peer.local_addr().unwrap(), b"x");
        client.send(&request).unwrap();
        peer.recv_from(&mut [0; 8]).unwrap();
        close(&client, id);
        client.send(&request).unwrap();
        assert_eq!(ask(&client, b"e"), b"e");
        assert!(peer.recv_from(&mut [0; 8]).is_err());
        assert_eq!(counters(&engine).value(Counter::DropNoSocket), 1);
    }
}

#[test]
fn without_descriptors_ports_are_refused_and_everything_else_goes_on() {
    in_a_process_of_its_own(
        "without_descriptors_ports_are_refused_and_everything_else_goes_on",
        || {
            for driver in DRIVERS {
                let engine = start(config(driver, &["127.0.0.1:0"]));
                let client = client(engine.listeners()[0]);
                limit_descriptors(200);
                let mut ids = Vec::new();
                let reason = loop {
                    match open(&client, "127.0.0.1:0") {
                        Ok(id) => ids.push(id),
                        Err(reason) => break reason,
                    }
                };
                assert!(reason.starts_with("no file descriptor is left"), "{reason}");
                assert!((100..200).contains(&ids.len()), "{} ports", ids.len());
                assert_eq!(ask(&client, b"e still here"), b"e still here");
                for id in ids {
                    close(&client, id);
                }
                eventually("there are descriptors again", || {
                    open(&client, "127.0.0.1:0").is_ok()
                });
                assert!(counters(&engine).value(Counter::PortsNoDescriptors) >= 1);
            }
        },
    );
}

#[test]
fn shards_that_start_after_another_failed_end_without_a_panic() {
    static PANICKED: AtomicBool = AtomicBool::new(false);
    in_a_process_of_its_own(
        "shards_that_start_after_another_failed_end_without_a_panic",
        || {
            std::panic::set_hook(Box::new(|panic| {
                eprintln!("{panic}");
                PANICKED.store(true, Ordering::SeqCst);
            }));
            let before = descriptors();
            for driver in DRIVERS {
                // A bell and a listener for each shard, and then too few for their drivers.
                limit_descriptors(before as u64 + 32 * 2 + 12);
                for _ in 0..20 {
                    let error = try_start(EngineConfig {
                        shards: 32,
                        small_buffers: 8,
                        big_buffers: 2,
                        ..config(driver, &["127.0.0.1:0"])
                    })
                    .unwrap_err();
                    assert!(matches!(error, StartError::Shard { .. }), "{error}");
                }
                assert!(!PANICKED.load(Ordering::SeqCst), "a shard panicked");
                eventually("all descriptors are closed", || descriptors() == before);
            }
        },
    );
}

#[test]
fn tiny_buffer_rings_run_dry_and_recover() {
    for driver in DRIVERS {
        let engine = start(EngineConfig {
            small_buffers: 8,
            big_buffers: 2,
            ..config(driver, &["127.0.0.1:0"])
        });
        let client = client(engine.listeners()[0]);
        let ids: Vec<u32> = (0..50)
            .map(|_| open(&client, "127.0.0.1:0").unwrap())
            .collect();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        // Learn the ports' addresses.
        let mut buffer = [0; 64];
        let relayed: Vec<SocketAddr> = ids
            .iter()
            .map(|&id| {
                client
                    .send(&forward(id, peer.local_addr().unwrap(), b"x"))
                    .unwrap();
                peer.recv_from(&mut buffer).unwrap().1
            })
            .collect();
        for _ in 0..20 {
            for address in &relayed {
                peer.send_to(b"hello", address).unwrap();
                peer.send_to(b"again", address).unwrap();
            }
            let mut expected = 2 * relayed.len();
            while expected > 0 {
                let bytes = receive(&client);
                assert!(bytes.ends_with(b"hello") || bytes.ends_with(b"again"));
                expected -= 1;
            }
        }
        assert_eq!(drops(&counters(&engine)), []);
    }
}

#[test]
fn a_port_number_beyond_the_limit_is_refused() {
    for driver in DRIVERS {
        let engine = start(EngineConfig {
            max_ports_per_shard: 2,
            ..config(driver, &["127.0.0.1:0"])
        });
        let client = client(engine.listeners()[0]);
        open(&client, "127.0.0.1:0").unwrap();
        open(&client, "127.0.0.1:0").unwrap();
        let reason = open(&client, "127.0.0.1:0").unwrap_err();
        assert_eq!(
            reason,
            "relayed port number 2 is open already or not below 2"
        );
    }
}

/// Makes `io_uring_setup` fail with `errno` for this thread and those it starts.
fn forbid_io_uring(errno: i32) {
    // SAFETY: no memory is handed over.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(result, 0);
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let call = libc::SYS_io_uring_setup as u32;
    let mut program = [
        // The first word of what the filter sees is the number of the system call.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call),
        step(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | errno as u32,
        ),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the program outlives the call, which copies it.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn where_io_uring_is_forbidden_epoll_serves_and_the_report_says_why() {
    in_a_process_of_its_own(
        "where_io_uring_is_forbidden_epoll_serves_and_the_report_says_why",
        || {
            forbid_io_uring(libc::EPERM);
            let engine = start(config(Driver::Auto, &["127.0.0.1:0"]));
            let report = engine.report();
            assert_eq!(report.driver.name(), "epoll");
            assert!(report.reason.contains("EPERM"), "{}", report.reason);
            assert!(!report.has("io_uring"));
            assert_eq!(ask(&client(engine.listeners()[0]), b"e"), b"e");
            let error = try_start(config(Driver::IoUring, &["127.0.0.1:0"])).unwrap_err();
            assert!(
                error.to_string().contains("io_uring is not available"),
                "{error}"
            );
        },
    );
}
