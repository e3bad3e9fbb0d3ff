use towpath_ebpf_common::gcra::Charge;
use towpath_ebpf_common::lease::Lease;
use towpath_ebpf_common::meter::PacketSize;

use super::*;
use crate::slots::{Identity, MemorySlots};

const PACKET_BYTES: u64 = 1028;
const TICK_US: u64 = 100;

/// Peers that send at steady rates, up, through one global limit.
struct Link {
    slots: MemorySlots,
    adaptation: Adaptation,
    now: Timestamp,
    lease: Lease,
    peers: Vec<Sender>,
}

struct Sender {
    slot: PeerSlot,
    bits_per_second: u64,
    /// Bits it has not sent yet.
    owed: u64,
    passed_bytes: u64,
}

impl Link {
    fn new(global: u64, peers: &[(Class, u64)]) -> Self {
        let slots = MemorySlots::new(2000);
        let now = Timestamp::from_nanos(1_000_000_000_000);
        slots.set_global(LimitWord::new(global, (global / 8 / 50).max(10_000)).unwrap());
        let sender = |(n, (class, bits_per_second)): (usize, &(Class, u64))| {
            let identity = Identity::user("example.org", &n.to_string());
            let slot = slots.acquire(now, &identity).unwrap();
            let limits = slots.slot(slot).unwrap().limits;
            limits.class.store(class.slot().into(), Ordering::Relaxed);
            Sender {
                slot,
                bits_per_second: *bits_per_second,
                // They do not all begin with the same tick.
                owed: n as u64 * 7919 % (PACKET_BYTES * 8),
                passed_bytes: 0,
            }
        };
        Self {
            peers: peers.iter().enumerate().map(sender).collect(),
            adaptation: Adaptation::new(Sharing::default()),
            lease: Lease::EMPTY,
            slots,
            now,
        }
    }

    fn run(&mut self, millis: u64) -> State {
        for peer in &mut self.peers {
            peer.passed_bytes = 0;
        }
        let size = PacketSize::new(false, 1000);
        for tick in 0..millis * 1000 / TICK_US {
            self.now = self.now + Duration::from_micros(TICK_US);
            let count = self.peers.len();
            for turn in 0..count {
                // In turns, so that nobody is always the first.
                let peer = &mut self.peers[(turn + tick as usize) % count];
                peer.owed += peer.bits_per_second * TICK_US / 1_000_000;
                while peer.owed >= PACKET_BYTES * 8 {
                    peer.owed -= PACKET_BYTES * 8;
                    let lease = &mut self.lease;
                    let charged = self.slots.charge(self.now, peer.slot, Way::Up, size, lease);
                    if charged == Charge::Passed {
                        peer.passed_bytes += PACKET_BYTES;
                    }
                }
            }
            if tick.is_multiple_of(Adaptation::INTERVAL.as_micros() as u64 / TICK_US) {
                self.adaptation.step(self.now, &self.slots);
            }
        }
        self.adaptation.state()
    }

    /// Bits a second that passed in the last run.
    fn rates(&self, millis: u64) -> Vec<f64> {
        let rate = |peer: &Sender| peer.passed_bytes as f64 * 8e3 / millis as f64;
        self.peers.iter().map(rate).collect()
    }

    fn share(&self, peer: usize) -> LimitWord {
        let slot = self.slots.slot(self.peers[peer].slot).unwrap();
        LimitWord::from_bits(slot.limits.up_share.load(Ordering::Relaxed))
    }
}

fn within(rate: f64, expected: f64, percent: f64) -> bool {
    (rate - expected).abs() <= expected * percent / 100.0
}

#[test]
fn under_a_saturated_limit_peers_get_their_weights_parts() {
    let classes = [Class::Control, Class::Interactive, Class::Bulk];
    // What they offer has nothing to do with what they get.
    let mut link = Link::new(
        70_000_000,
        &[
            (classes[0], 50_000_000),
            (classes[1], 90_000_000),
            (classes[2], 200_000_000),
        ],
    );
    link.run(500);
    assert_eq!(link.run(4000), State::Shared { flows: 3 });
    for (rate, part) in link.rates(4000).iter().zip([40e6, 20e6, 10e6]) {
        assert!(within(*rate, part, 3.0), "{rate} bit/s instead of {part}");
    }
}

#[test]
fn who_wants_less_than_its_part_gets_all_of_it_and_the_others_the_rest() {
    let i = Class::Interactive;
    let mut link = Link::new(
        60_000_000,
        &[(i, 4_000_000), (i, 80_000_000), (Class::Bulk, 80_000_000)],
    );
    link.run(500);
    link.run(4000);
    let rates = link.rates(4000);
    assert!(within(rates[0], 4e6, 1.0), "{rates:?}");
    assert!(within(rates[1], 55e6 * 2.0 / 3.0, 3.0), "{rates:?}");
    assert!(within(rates[2], 55e6 / 3.0, 3.0), "{rates:?}");
    let sum: f64 = rates.iter().sum();
    assert!(within(sum, 60e6, 2.0), "{sum} bit/s in all");
}

#[test]
fn five_hundred_equal_peers_get_equal_parts() {
    let peers: Vec<_> = (0..500_u64)
        .map(|n| (Class::Interactive, 500_000 + n * 3_000))
        .collect();
    let mut link = Link::new(100_000_000, &peers);
    link.run(3000);
    link.run(10_000);
    for rate in link.rates(10_000) {
        assert!(within(rate, 200e3, 3.0), "{rate} bit/s instead of 200,000");
    }
}

#[test]
fn shares_are_lifted_when_there_is_enough_again() {
    let mut link = Link::new(
        10_000_000,
        &[(Class::Bulk, 20_000_000), (Class::Bulk, 20_000_000)],
    );
    link.run(200);
    assert!(!link.share(0).is_unlimited() && !link.share(1).is_unlimited());
    link.peers[0].bits_per_second = 1_000_000;
    link.peers[1].bits_per_second = 6_000_000;
    assert_eq!(link.run(100), State::Shared { flows: 2 }, "not at once");
    assert_eq!(link.run(1000), State::Open);
    assert!(link.share(0).is_unlimited() && link.share(1).is_unlimited());
    link.run(1000);
    assert!(within(link.rates(1000)[1], 6e6, 1.0));
}

#[test]
fn far_below_the_limit_nothing_is_shared_out() {
    let mut link = Link::new(
        100_000_000,
        &[(Class::Bulk, 20_000_000), (Class::Bulk, 20_000_000)],
    );
    assert_eq!(link.run(1000), State::Open);
    assert!(link.share(0).is_unlimited());
}

#[test]
fn shares_left_by_an_earlier_daemon_are_lifted() {
    let mut link = Link::new(100_000_000, &[(Class::Bulk, 1_000_000)]);
    let slot = link.slots.slot(link.peers[0].slot).unwrap();
    let left = LimitWord::new(64_000, 1500).unwrap();
    slot.limits
        .up_share
        .store(left.to_bits(), Ordering::Relaxed);
    slot.limits
        .down_share
        .store(left.to_bits(), Ordering::Relaxed);
    assert_eq!(link.run(1000), State::Open);
    assert!(link.share(0).is_unlimited());
    let slot = link.slots.slot(link.peers[0].slot).unwrap();
    assert_eq!(slot.limits.down_share.load(Ordering::Relaxed), 0);
}

#[test]
fn a_peers_own_limit_is_its_ceiling() {
    let i = Class::Interactive;
    let mut link = Link::new(40_000_000, &[(i, 80_000_000), (i, 80_000_000)]);
    let slot = link.slots.slot(link.peers[0].slot).unwrap();
    slot.limits
        .set_up(LimitWord::new(5_000_000, 10_000).unwrap());
    link.run(500);
    link.run(2000);
    let rates = link.rates(2000);
    assert!(
        within(rates[0], 5e6, 1.0) && within(rates[1], 35e6, 3.0),
        "{rates:?}"
    );
    assert!(link.share(0).is_unlimited(), "its limit says it all");
}

#[test]
fn without_a_global_limit_shares_are_lifted_at_once() {
    let mut link = Link::new(10_000_000, &[(Class::Bulk, 20_000_000)]);
    link.run(200);
    link.peers.push(Sender {
        slot: PeerSlot(FIRST_PEER_SLOT + 9),
        bits_per_second: 0,
        owed: 0,
        passed_bytes: 0,
    });
    link.slots.set_global(LimitWord::UNLIMITED);
    assert_eq!(link.run(20), State::Open);
    assert!(link.share(0).is_unlimited());
}
