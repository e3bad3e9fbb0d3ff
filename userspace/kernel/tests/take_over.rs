//! A program is replaced by the next one while packets flow.

mod lab;

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lab::{on_a_host, wait_until};
use towpath_ebpf_common::reason::Reason;
use towpath_ebpf_common::route::{NextHop, Route, RouteKey, Target};
use towpath_kernel::{Kernel, Mode};

const CHANNEL: u16 = 0x4000;

fn address(text: &str) -> std::net::SocketAddr {
    text.parse().expect("an address")
}

/// The route of a client on the far host to a peer there. Its next hop is known when it returns.
fn insert_route(kernel: &Kernel) {
    let (peer, relayed) = (address("10.77.9.2:6000"), address("10.77.9.1:50000"));
    let next_hops = kernel.next_hops().expect("the program is attached");
    let mut next_hop = 0;
    wait_until("the next hop", || {
        let index = next_hops.resolve(peer.ip(), relayed.ip());
        let entry = index.and_then(|index| next_hops.entry(index));
        entry.is_some_and(|entry| entry.state != NextHop::INVALID)
    });
    if let Some(index) = next_hops.resolve(peer.ip(), relayed.ip()) {
        next_hop = index;
    }
    let key = RouteKey::new(
        address("10.77.9.2:5000"),
        address("10.77.9.1:3478"),
        CHANNEL,
    );
    let target = Target {
        destination: peer,
        source: relayed,
        channel: 0,
        up_slot: 0,
        down_slot: 0,
        next_hop,
        generation: 1,
        expires: u64::MAX,
    };
    let routes = kernel.routes().expect("the program is attached");
    routes
        .insert(&key, &Route::new(&key, &target))
        .expect("there is room");
}

/// Sends without UDP checksums: those of a virtual cable are left to a receiver that never looks.
fn without_checksums(socket: &UdpSocket) {
    let on: libc::c_int = 1;
    // SAFETY: the option is an int, which is what is passed, and outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "SO_NO_CHECK is an option of every UDP socket");
}

fn count(kernel: &Kernel, reasons: &[Reason]) -> u64 {
    let counts = kernel.reasons().expect("the map is there");
    let wanted = counts.iter().filter(|(reason, _)| reasons.contains(reason));
    wanted.map(|(_, count)| count.packets).sum()
}

/// Ends the threads of a test, also when it fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn no_packet_meets_an_interface_without_program_while_it_is_taken_over() {
    on_a_host("no_packet_meets_an_interface_without_program", |lab| {
        let config = lab.config(Mode::Native, &["near"]);
        let mut kernel = Kernel::start(&config).expect("native works");
        insert_route(&kernel);

        let (client, peer) = lab.inside_far(|| {
            let bind = |local| UdpSocket::bind(local).expect("the address is there");
            (bind("10.77.9.2:5000"), bind("10.77.9.2:6000"))
        });
        without_checksums(&client);
        // An ICMP error would show here.
        client.connect("10.77.9.1:3478").expect("there is a route");
        peer.set_read_timeout(Some(Duration::from_millis(200)))
            .expect("it is not zero");
        let message = [0x40, 0x00, 0x00, 0x04, b'p', b'i', b'n', b'g'];
        let stop = AtomicBool::new(false);
        let (sent, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        let received = AtomicU64::new(0);
        let kernel = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match client.send(&message) {
                        Ok(_) => sent.fetch_add(1, Ordering::Relaxed),
                        Err(_) => refused.fetch_add(1, Ordering::Relaxed),
                    };
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
            scope.spawn(|| {
                let mut bytes = [0; 64];
                // Until nothing has come for a while after the last was sent.
                loop {
                    match peer.recv_from(&mut bytes) {
                        Ok((length, from)) => {
                            assert_eq!(&bytes[..length], b"ping");
                            assert_eq!(from, address("10.77.9.1:50000"));
                            received.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(_) if stop.load(Ordering::Relaxed) => return,
                        Err(_) => {}
                    }
                }
            });
            let _stop = Stop(&stop);
            for _ in 0..3 {
                let before = received.load(Ordering::Relaxed);
                wait_until("packets to flow", || {
                    received.load(Ordering::Relaxed) > before + 300
                });
                drop(kernel);
                std::thread::sleep(Duration::from_millis(20));
                kernel = Kernel::start(&config).expect("native works");
                insert_route(&kernel);
            }
            let before = received.load(Ordering::Relaxed);
            wait_until("packets to flow again", || {
                received.load(Ordering::Relaxed) > before + 300
            });
            kernel
        });
        let sent = sent.into_inner();
        assert_eq!(refused.into_inner(), 0, "no ICMP error was ever sent");
        let relayed = count(&kernel, &[Reason::Redirected]);
        // Between the old routes and the new one nobody listens, and nobody answers.
        let silent = count(&kernel, &[Reason::Silent]);
        assert_eq!(relayed + silent, sent, "every packet met a program");
        assert_eq!(received.into_inner(), relayed);
    });
}
