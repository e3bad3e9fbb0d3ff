use core::hash::Hasher;
use core::sync::atomic::AtomicU64;
use std::collections::hash_map::DefaultHasher;
use std::net::IpAddr;
use std::vec::Vec;

use super::*;

/// Both tables, in ordinary memory.
struct Memory {
    budgets: Vec<AtomicU64>,
    seen: Vec<AtomicU64>,
}

impl Memory {
    fn new() -> Self {
        let words = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            budgets: words(BUDGETS),
            seen: words(SEEN),
        }
    }
}

impl Table for Memory {
    type Word = AtomicU64;

    fn budget(&self, index: u32) -> Option<&AtomicU64> {
        Some(&self.budgets[index as usize])
    }

    fn seen(&self, index: u32) -> Option<&AtomicU64> {
        Some(&self.seen[index as usize])
    }
}

const SECOND: u64 = 1_000_000_000;
const START: u64 = 50 * SECOND;
const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

fn source(address: impl Into<IpAddr>) -> Source {
    Source::new(&crate::route::mapped(address.into()))
}

fn limits(per_source: u32, per_network: u32, in_total: u32) -> StrangerLimits {
    StrangerLimits::new(KEY, Some(per_source), Some(per_network), Some(in_total))
}

fn admitted(memory: &Memory, limits: &StrangerLimits, source: Source, now: u64, tries: u32) -> u32 {
    let all =
        (0..tries).filter(|_| admit(memory, limits, source, false, now) == Admission::Admitted);
    all.count() as u32
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn address(&mut self) -> Source {
        source((self.next() as u32).to_be_bytes())
    }
}

#[test]
fn the_hash_is_siphash_1_3() {
    for words in [[0, 0], [1, 2], [u64::MAX, 0x1234_5678_9abc_def0]] {
        // The standard library's hasher is SipHash-1-3 with a key of zeros.
        let mut other = DefaultHasher::new();
        words.iter().for_each(|word| other.write_u64(*word));
        assert_eq!(hash([0, 0], words), other.finish());
        assert_ne!(hash(KEY, words), other.finish());
    }
}

#[test]
fn what_cannot_be_signed_is_a_strangers() {
    const COOKIE: u32 = 0x2112_a442;
    let of = |kind: u32, length: u32| is_strangers(kind << 16 | length, COOKIE);
    // Binding in every class, and what a server sends.
    for kind in [
        0x0001, 0x0011, 0x0101, 0x0111, 0x0103, 0x0113, 0x0017, 0x8003, 0xc003,
    ] {
        assert!(of(kind, 100), "{kind:#06x}");
    }
    // Allocate, Refresh, CreatePermission, ChannelBind.
    for kind in [0x0003, 0x0004, 0x0008, 0x0009] {
        assert!(of(kind, 44) && !of(kind, 48), "{kind:#06x}");
    }
    assert!(!of(0x0016, 0), "a Send indication");
    assert!(is_strangers(0x0003_0064, COOKIE ^ 1), "no STUN");
}

#[test]
fn a_network_is_24_bits_of_ipv4_and_56_of_ipv6() {
    let network = |text: &str| source(text.parse::<IpAddr>().unwrap()).network();
    assert_eq!(network("192.0.2.1"), network("192.0.2.255"));
    assert_ne!(network("192.0.2.1"), network("192.0.3.1"));
    assert_eq!(network("2001:db8:1:1ff::1"), network("2001:db8:1:100::2"));
    assert_ne!(network("2001:db8:1:1ff::1"), network("2001:db8:1:200::1"));
    assert_ne!(network("::"), network("0.0.0.0"));
}

#[test]
fn one_source_is_answered_its_rate_after_its_burst() {
    let (memory, limits) = (Memory::new(), limits(10, 20, 1000));
    let client = source([1, 2, 3, 4]);
    assert_eq!(admitted(&memory, &limits, client, START, 500), 40);
    for second in 1..10 {
        let now = START + second * SECOND;
        assert_eq!(admitted(&memory, &limits, client, now, 500), 10);
    }
    assert_eq!(
        admit(&memory, &limits, client, true, START + 9 * SECOND),
        Admission::OverSource,
        "also one that is known"
    );
}

#[test]
fn sources_of_one_network_share_its_budget_and_others_do_not() {
    let (memory, limits) = (Memory::new(), limits(10, 20, 1000));
    let network = (0..250).map(|n| admitted(&memory, &limits, source([1, 2, 3, n]), START, 10));
    assert_eq!(network.sum::<u32>(), 80);
    let outcome = admit(&memory, &limits, source([1, 2, 3, 251]), false, START);
    assert_eq!(outcome, Admission::OverNetwork);
    assert_eq!(
        admitted(&memory, &limits, source([9, 9, 9, 9]), START, 10),
        10
    );
}

#[test]
fn all_newcomers_together_get_half_of_the_total_and_known_sources_are_not_charged_to_it() {
    let (memory, limits) = (Memory::new(), limits(10, 20, 1000));
    let mut random = Random(1);
    let all = (0..20_000).map(|_| admitted(&memory, &limits, random.address(), START, 1));
    assert_eq!(
        all.sum::<u32>(),
        2000,
        "500 a second, four seconds' at once"
    );
    let newcomer = random.address();
    let outcome = admit(&memory, &limits, newcomer, false, START);
    assert_eq!(outcome, Admission::OverTotal);
    assert_eq!(
        admit(&memory, &limits, newcomer, true, START),
        Admission::Admitted
    );
}

#[test]
fn what_is_refused_for_the_total_is_charged_to_nobody() {
    let memory = Memory::new();
    let few = limits(10, 20, 2);
    let client = source([1, 2, 3, 4]);
    assert_eq!(admitted(&memory, &few, client, START, 500), 4);
    let many = limits(10, 20, 1_000_000);
    let soon = START + SECOND / 1000;
    assert_eq!(admitted(&memory, &many, client, soon, 500), 36);
}

#[test]
fn limits_can_be_lifted() {
    let memory = Memory::new();
    let limits = StrangerLimits::new(KEY, None, None, None);
    assert_eq!(
        admitted(&memory, &limits, source([1; 4]), START, 100_000),
        100_000
    );
}

#[test]
fn room_is_what_could_be_charged() {
    let (budget, pace) = (AtomicU64::new(0), Pace::new(2, 3));
    for now in (START..START + 9 * SECOND).step_by(100_000_000) {
        let room = pace.has_room(&budget, now);
        assert_eq!(room, pace.charge(&budget, now, 1) == Charge::Passed);
    }
    assert!(Pace::UNLIMITED.has_room(&budget, 0));
}

/// A flood of forged sources beside clients that ask as RFC 8489 §6.2.1 says: at once, and again after
/// 0.5, 1 and 2 s more. Returns the part of the clients that were answered, by their try.
fn clients_beside_a_flood(in_total: u32, flood_per_second: u64, repeats: u64) -> [f64; 4] {
    const CLIENTS: usize = 200;
    const ASK_AT_MS: [u64; 4] = [0, 500, 1500, 3500];
    let memory = Memory::new();
    let limits = StrangerLimits::new(KEY, Some(10_000), Some(20_000), Some(in_total));
    let mut random = Random(7);
    let mut answered_at = [None; CLIENTS];
    let clients: [Source; CLIENTS] = core::array::from_fn(|_| random.address());
    // The flood runs long enough to have spent every burst before the first client comes.
    let first_client_ms = 12_000;
    let per_ms = flood_per_second / 1000;
    for ms in 0..first_client_ms + 2000 + 3501 {
        let start = START + ms * 1_000_000;
        let mut asking = Vec::new();
        for (client, answered) in answered_at.iter().enumerate() {
            let born = first_client_ms + client as u64 * 2000 / CLIENTS as u64;
            let attempt = ASK_AT_MS.iter().position(|at| born + at == ms);
            if let (Some(attempt), None) = (attempt, answered) {
                asking.push((random.next() % per_ms, client, attempt));
            }
        }
        for n in 0..per_ms {
            // At any time of its part of the millisecond.
            let now = start + n * 1_000_000 / per_ms + random.next() % (1_000_000 / per_ms);
            for (_, client, attempt) in asking.iter().filter(|(at, ..)| *at == n) {
                let outcome = admit(&memory, &limits, clients[*client], false, now);
                answered_at[*client] = (outcome == Admission::Admitted).then_some(*attempt);
            }
            // Every address again, half a second later, as often as said.
            let index = if repeats == 1 {
                ms * per_ms + n
            } else {
                (ms % 500) * per_ms + n + ms / (500 * repeats) * 1_000_000_000
            };
            let forged = Random(index ^ 0x5555_0000_0000).address();
            let _ = admit(&memory, &limits, forged, false, now);
        }
    }
    core::array::from_fn(|attempt| {
        let by = answered_at
            .iter()
            .filter(|at| at.is_some_and(|at| at <= attempt));
        by.count() as f64 / CLIENTS as f64
    })
}

#[test]
fn clients_are_answered_beside_forged_sources_that_ask_ten_times_the_total() {
    let answered = clients_beside_a_flood(10_000, 100_000, 1);
    assert!(answered[0] < 0.2, "the flood is one: {answered:?}");
    assert!(answered[1] > 0.8, "half a second later: {answered:?}");
    assert!(answered[2] > 0.99, "after 1.5 s: {answered:?}");
}

#[test]
fn where_forged_sources_ask_again_too_clients_still_get_their_part() {
    // Nobody can tell such sources from clients before they are answered.
    let answered = clients_beside_a_flood(10_000, 100_000, 8);
    assert!(answered[3] > 0.2, "{answered:?}");
}
