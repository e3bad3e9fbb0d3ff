//! What limits let pass, on real links, in the kernel and in userspace, judged by the kernel's clock.
//!
//! Whoever is limited is offered more all the time, so what passes is the rate times the time, and the
//! burst. It may differ from that by 1 %, or by a packet for each CPU if that is more. Only a pause of the
//! machine in which a budget fills up to the brim makes it less; an attempt that may have had such a
//! pause says nothing, and is made again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use towpath_bench::sys;
use towpath_ebpf_common::meter::charged_bytes;
use towpath_ebpf_common::rate::LimitWord;
use towpath_net::load::{self, Offered, Source};
use towpath_net::{
    Addresses, Arrivals, Driver, Flow, KernelLab, KernelMode, Kind, Mac, Packet, Pinned, Server,
    ServerOptions, USER, Used, offer_live, payload_at, skip, watched,
};

const ATTEMPTS: usize = 5;

/// Most that is offered.
const MAX_OFFERED_PPS: f64 = 480_000.0;

/// These tests measure, so they run one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A server with the kernel path in some mode, and an eye on what reaches the peer.
struct Rig {
    at_peer: Arrivals,
    /// Of client and peer, and of the relay towards each.
    macs: [(Mac, Mac); 2],
    /// Where there is a kernel path.
    pinned: Option<Pinned>,
    _server: Server,
    lab: KernelLab,
    _alone: MutexGuard<'static, ()>,
}

impl Rig {
    fn start(mode: KernelMode, adjust: impl FnOnce(&mut ServerOptions)) -> Option<Self> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let lab = KernelLab::new(&[])?;
        // A queue for each CPU that sends.
        for host in [&lab.client, &lab.relay] {
            host.run("ethtool", &["-L", "eth0", "rx", "2", "tx", "2"]);
        }
        let mut options = lab.options(mode);
        adjust(&mut options);
        let server = Server::start(Kind::Towpath(Driver::Auto), &lab.relay, &options);
        server.wait_for_control();
        lab.peer.knock(Addresses::v4().relayed);
        let hosts = [(&lab.client, "eth0"), (&lab.peer, "eth1")];
        Some(Self {
            at_peer: Arrivals::at(&lab.peer, "eth0", &[payload_at::PLAIN]),
            macs: hosts.map(|(host, facing)| (host.mac("eth0"), lab.relay.mac(facing))),
            pinned: (mode != KernelMode::Off).then(|| Pinned::open(lab.pins())),
            _server: server,
            lab,
            _alone: alone,
        })
    }

    fn flow(&self, user: &str) -> Flow {
        let v4 = Addresses::v4();
        Flow::open(&self.lab, user, &v4, &v4)
    }

    fn pinned(&self) -> &Pinned {
        self.pinned.as_ref().expect("there is a kernel path")
    }

    /// What the client puts on its link.
    fn client_frame(&self, packet: Packet) -> Vec<u8> {
        let (client, relay) = self.macs[0];
        packet.on(client, relay).frame()
    }

    fn client_source(&self, packet: Packet, data: &[u8], rate_pps: f64) -> Source {
        let (client, relay) = self.macs[0];
        let datagram = packet.on(client, relay);
        Source::new(&self.lab.client, "eth0", &datagram, data, rate_pps)
    }

    fn peer_source(&self, packet: Packet, data: &[u8], rate_pps: f64) -> Source {
        let (peer, relay) = self.macs[1];
        let datagram = packet.on(peer, relay);
        Source::new(&self.lab.peer, "eth0", &datagram, data, rate_pps)
    }
}

/// A limit, and for how long it is tried.
#[derive(Clone, Copy, Debug)]
struct Limit {
    rate: &'static str,
    bits_per_second: u64,
    /// Earned in a sixteenth of a second or more, so that a machine that is busy does not spoil an attempt.
    burst_bytes: u64,
    time: Duration,
}

const KBIT_64: Limit = Limit::new("64kbit", 64_000, 8 << 10, 2000);
const MBIT_1: Limit = Limit::new("1Mbit", 1_000_000, 32 << 10, 1500);
const MBIT_20: Limit = Limit::new("20Mbit", 20_000_000, 512 << 10, 1000);
const MBIT_400: Limit = Limit::new("400Mbit", 400_000_000, 3 << 20, 600);

const SMALL: usize = 100;
const LARGE: usize = 1400;

impl Limit {
    const fn new(rate: &'static str, bits_per_second: u64, burst_bytes: u64, ms: u64) -> Self {
        Self {
            rate,
            bits_per_second,
            burst_bytes,
            time: Duration::from_millis(ms),
        }
    }

    /// Sets it on what a user sends, or receives.
    fn set(&self, lab: &KernelLab, user: &str, way: &str) {
        let burst = format!("{}B", self.burst_bytes);
        lab.limits(&["set", user, way, self.rate, "--burst", &burst]);
    }

    fn word(&self) -> LimitWord {
        LimitWord::new(self.bits_per_second, self.burst_bytes).expect("a limit")
    }

    /// Bytes in so many nanoseconds, without the burst.
    fn bytes_in(&self, ns: u64) -> f64 {
        self.bits_per_second as f64 / 8e9 * ns as f64
    }

    /// The nanoseconds that so many bytes take.
    fn ns_of(&self, bytes: u64) -> u64 {
        (bytes as f64 * 8e9 / self.bits_per_second as f64) as u64
    }

    /// Three times what may pass, as far as that is offered at all.
    fn offered_pps(&self, packet_bytes: u64) -> f64 {
        let passing = self.bits_per_second as f64 / 8.0 / packet_bytes as f64;
        (3.0 * passing).clamp(200.0, MAX_OFFERED_PPS)
    }
}

/// What happened to one budget.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    offered: Offered,
    /// Packets that somebody let pass or dropped.
    decided: u64,
    /// What passed.
    bytes: u64,
    /// When the last one passed.
    until_ns: u64,
    /// The longest time in which nothing may have been decided.
    pause_ns: u64,
}

impl Attempt {
    /// By how much what passed differs from what should; an error where the attempt says nothing.
    ///
    /// # Panics
    ///
    /// Where it differs too much, or nothing passed any more while something could.
    fn judge(&self, what: &str, limit: &Limit, packet_bytes: u64, cpus: u64) -> Result<(), String> {
        let brim_ns = limit.ns_of(limit.burst_bytes - packet_bytes);
        if self.pause_ns > brim_ns * 4 / 5 {
            let [pause_ms, brim_ms] = [self.pause_ns, brim_ns].map(|ns| ns / 1_000_000);
            return Err(format!("a pause of {pause_ms} ms, of {brim_ms} ms at most"));
        }
        // What is left out towards the end leaves a budget unspent.
        let Offered { due, .. } = self.offered;
        if self.decided * 1000 < due * 998 {
            return Err(format!("{due} packets were due, {} came", self.decided));
        }
        let ran_ns = self.until_ns.saturating_sub(self.offered.began_ns);
        let unasked = self.unasked(limit, packet_bytes, cpus);
        let expected = limit.bytes_in(ran_ns) + limit.burst_bytes as f64 - unasked;
        if unasked > expected / 10.0 {
            let apart_ms = self.offered.apart_ns / 1_000_000;
            return Err(format!("senders began {apart_ms} ms apart"));
        }
        let decided = self.decided * packet_bytes;
        if (decided as f64) < 1.05 * expected {
            return Err(format!(
                "{decided} bytes were offered, {expected:.0} may pass"
            ));
        }
        let allowed = (expected / 100.0).max((cpus * packet_bytes) as f64);
        let idle_ns = self.offered.ended_ns.saturating_sub(self.until_ns);
        let patience_ns = limit.ns_of(packet_bytes) + self.pause_ns;
        assert!(
            idle_ns <= patience_ns,
            "{what}: nothing passed in the last {idle_ns} ns: {self:?}"
        );
        let off = self.bytes as f64 - expected;
        eprintln!(
            "{what}: {} bytes of {expected:.0}: {off:+.0} ({:+.3} %), allowed {allowed:.0}; pause {} ms",
            self.bytes,
            off / expected * 100.0,
            self.pause_ns / 1_000_000
        );
        assert!(off.abs() <= allowed, "{what}: {self:?}");
        Ok(())
    }

    /// What could have passed before the last of two senders began and after the first ended, and was not
    /// offered: one of them may offer less than the limit, so the budget is full then or fills up.
    fn unasked(&self, limit: &Limit, packet_bytes: u64, cpus: u64) -> f64 {
        let Offered { sent, apart_ns, .. } = self.offered;
        let each_ran = self.offered.seconds() - apart_ns as f64 / 1e9;
        let one = (sent / cpus * packet_bytes) as f64 / each_ran;
        let more = (limit.bytes_in(1_000_000_000) - one).max(0.0);
        more * 2.0 * apart_ns as f64 / 1e9
    }
}

/// The first attempt that says something. That there was none is said loudly.
fn first_steady<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> Option<T> {
    let mut spoilt = Vec::new();
    while spoilt.len() < ATTEMPTS {
        match attempt() {
            Ok(value) => return Some(value),
            Err(why) => spoilt.push(why),
        }
    }
    let why = spoilt.join("; ");
    skip(&format!(
        "{what}: the machine is not steady enough to measure: {why}"
    ));
    None
}

/// Who offers.
#[derive(Clone, Copy, Debug)]
enum Sender {
    /// One thread, by a packet socket.
    Socket,
    /// The kernel, on so many CPUs at once.
    Live(usize),
}

/// One client over its limit.
struct Case<'a> {
    rig: &'a Rig,
    flow: Flow,
    slot: usize,
    limit: Limit,
    data: Vec<u8>,
    sender: Sender,
}

impl Case<'_> {
    fn packet_bytes(&self) -> u64 {
        let payload = u32::try_from(self.data.len()).expect("a packet's length");
        u64::from(charged_bytes(false, payload))
    }

    fn offer(&self) -> Offered {
        let rate_pps = self.limit.offered_pps(self.packet_bytes());
        let packet = self.flow.from_client(&self.data);
        match self.sender {
            Sender::Socket => {
                let mut sources = [self.rig.client_source(packet, &self.data, rate_pps)];
                load::offer(&mut sources, self.limit.time)
            }
            Sender::Live(cpus) => {
                let frames = [self.rig.client_frame(packet)];
                let client = &self.rig.lab.client;
                offer_live(client, "eth0", &frames, rate_pps, self.limit.time, cpus)
            }
        }
    }

    /// What the slot says, where it can be read.
    fn used(&self) -> Used {
        let pinned = self.rig.pinned.as_ref();
        pinned.map_or_else(Used::default, |pinned| pinned.up(self.slot))
    }

    /// Packets that were decided about; without a kernel path, those that passed.
    fn decided(&self) -> u64 {
        match &self.rig.pinned {
            Some(pinned) => {
                let used = pinned.up(self.slot);
                used.packets + used.dropped_packets
            }
            None => self.rig.at_peer.all_packets(),
        }
    }

    fn attempt(&self) -> Attempt {
        // Whatever there was before, the budget is full.
        thread::sleep(Duration::from_nanos(
            self.limit.ns_of(self.limit.burst_bytes),
        ));
        self.rig.at_peer.clear();
        let (before, decided) = (self.used(), self.decided());
        let lost = self.rig.lab.relay.lost_in_sending("eth1");
        let (offered, pause_ns) = watched(|| self.decided(), || self.offer());
        let decided = load::settled(decided + offered.sent, || self.decided()) - decided;
        let at_peer = &self.rig.at_peer;
        if self.rig.pinned.is_none() {
            return Attempt {
                offered,
                decided: offered.sent,
                bytes: at_peer.all_packets() * self.packet_bytes(),
                until_ns: at_peer.last_ns(),
                pause_ns,
            };
        }
        let used = self.used();
        let passed = used.packets - before.packets;
        let arrived = load::settled(passed, || at_peer.all_packets());
        let lost = self.rig.lab.relay.lost_in_sending("eth1") - lost;
        assert_eq!(passed, arrived + lost, "what passed arrives");
        Attempt {
            offered,
            decided,
            bytes: used.bytes - before.bytes,
            until_ns: used.last_seen,
            pause_ns,
        }
    }
}

/// What passes of each size at each rate.
fn what_passes_is_rate_and_burst(mode: KernelMode, sender: Sender, cases: &[(Limit, usize)]) {
    let user = |number: usize| format!("peer{number}");
    let Some(rig) = Rig::start(mode, |options| {
        options.users = (0..cases.len()).map(user).collect();
    }) else {
        return;
    };
    for (number, &(limit, payload)) in cases.iter().enumerate() {
        let user = user(number);
        limit.set(&rig.lab, &user, "--up");
        let flow = rig.flow(&user);
        let case = Case {
            slot: rig.pinned.as_ref().map_or(0, |pinned| pinned.slot(&user)),
            rig: &rig,
            flow,
            limit,
            data: load::payload(payload),
            sender,
        };
        let cpus = match sender {
            Sender::Socket => 1,
            Sender::Live(cpus) => cpus as u64,
        };
        let what = format!("{mode:?}, {sender:?}, {}, {payload} B", limit.rate);
        first_steady(&what, || {
            let attempt = case.attempt();
            attempt.judge(&what, &limit, case.packet_bytes(), cpus)
        });
    }
}

const EVERY_RATE_AND_SIZE: [(Limit, usize); 8] = [
    (KBIT_64, SMALL),
    (KBIT_64, LARGE),
    (MBIT_1, SMALL),
    (MBIT_1, LARGE),
    (MBIT_20, SMALL),
    (MBIT_20, LARGE),
    (MBIT_400, SMALL),
    (MBIT_400, LARGE),
];

#[test]
fn in_the_driver_one_cpu_lets_rate_and_burst_pass() {
    what_passes_is_rate_and_burst(KernelMode::Native, Sender::Live(1), &EVERY_RATE_AND_SIZE);
}

#[test]
fn in_the_driver_two_cpus_charge_one_budget() {
    if thread::available_parallelism().map_or(1, usize::from) < 2 {
        skip("the machine has one CPU");
        return;
    }
    what_passes_is_rate_and_burst(KernelMode::Native, Sender::Live(2), &EVERY_RATE_AND_SIZE);
}

#[test]
fn before_the_stack_rate_and_burst_pass() {
    let cases = [(KBIT_64, SMALL), (MBIT_1, LARGE), (MBIT_20, SMALL)];
    what_passes_is_rate_and_burst(KernelMode::Generic, Sender::Socket, &cases);
}

#[test]
fn in_userspace_rate_and_burst_pass() {
    let cases = [(KBIT_64, LARGE), (MBIT_1, SMALL), (MBIT_20, LARGE)];
    what_passes_is_rate_and_burst(KernelMode::Off, Sender::Socket, &cases);
}

/// A thousand users at once, each with a budget of its own, in turn packet by packet.
#[test]
fn each_of_a_thousand_peers_gets_its_rate() {
    const PEERS: usize = 1000;
    /// Of what should pass.
    const ALLOWED: f64 = 0.02;
    const LIMIT: Limit = Limit::new("64kbit", 64_000, 4 << 10, 2500);
    let user = |number: usize| format!("peer{number}");
    sys::raise_descriptor_limit().expect("a process may use its limit");
    let Some(rig) = Rig::start(KernelMode::Native, |options| {
        options.users = (0..PEERS).map(user).collect();
        let (rate, burst) = (LIMIT.rate, LIMIT.burst_bytes);
        options.limits = vec![format!(
            "default = {{ up = \"{rate}\", down = \"{rate}\", burst = \"{burst}B\" }}"
        )];
    }) else {
        return;
    };
    let (v4, data) = (Addresses::v4(), load::payload(SMALL));
    let socket = rig.lab.peer.bind_any(v4.peer);
    let peer = socket.local_addr().expect("a bound socket has an address");
    let flows: Vec<Flow> = (0..PEERS)
        .map(|number| {
            let socket = socket.try_clone().expect("there are descriptors left");
            Flow::to(&rig.lab, &user(number), &v4, peer, socket)
        })
        .collect();
    let frames: Vec<_> = flows
        .iter()
        .map(|flow| rig.client_frame(flow.from_client(&data)))
        .collect();
    let pinned = rig.pinned();
    let slots: Vec<_> = (0..PEERS)
        .map(|number| pinned.slot(&user(number)))
        .collect();
    let decided = |used: &Used| used.packets + used.dropped_packets;
    let packet_bytes = u64::from(charged_bytes(false, SMALL as u32));
    let rate_pps = PEERS as f64 * LIMIT.offered_pps(packet_bytes).min(150.0);
    first_steady("a thousand peers", || {
        thread::sleep(Duration::from_nanos(LIMIT.ns_of(LIMIT.burst_bytes)));
        let before: Vec<_> = slots.iter().map(|&slot| pinned.up(slot)).collect();
        let some = || decided(&pinned.up(slots[0]));
        let (offered, pause_ns) = watched(some, || {
            offer_live(&rig.lab.client, "eth0", &frames, rate_pps, LIMIT.time, 1)
        });
        let all = || {
            let decided = slots.iter().map(|&slot| decided(&pinned.up(slot)));
            decided.sum::<u64>()
        };
        let already = before.iter().map(decided).sum::<u64>();
        load::settled(already + offered.sent, all);
        let brim_ns = LIMIT.ns_of(LIMIT.burst_bytes - packet_bytes);
        if pause_ns > brim_ns * 4 / 5 {
            return Err(format!("a pause of {} ms", pause_ns / 1_000_000));
        }
        let mut worst = 0.0_f64;
        for (number, (&slot, before)) in slots.iter().zip(&before).enumerate() {
            let used = pinned.up(slot);
            let ran_ns = used.last_seen.saturating_sub(offered.began_ns);
            let expected = LIMIT.bytes_in(ran_ns) + LIMIT.burst_bytes as f64;
            let decided = (decided(&used) - decided(before)) * packet_bytes;
            if (decided as f64) < 1.1 * expected {
                return Err(format!("user {number} was offered {decided} bytes only"));
            }
            let idle_ns = offered.ended_ns.saturating_sub(used.last_seen);
            let patience_ns = LIMIT.ns_of(packet_bytes) + pause_ns;
            assert!(idle_ns <= patience_ns, "user {number}: {used:?}");
            let off = ((used.bytes - before.bytes) as f64 - expected) / expected;
            assert!(off.abs() <= ALLOWED, "user {number}: {off:+.4}, {used:?}");
            worst = if off.abs() > worst.abs() { off } else { worst };
        }
        eprintln!(
            "a thousand peers: worst {:+.3} %, pause {} ms, {} packets offered",
            worst * 100.0,
            pause_ns / 1_000_000,
            offered.sent
        );
        Ok(())
    });
}

/// Users of three classes who want more than there is, and one who wants little: that one gets it, and
/// the others share the rest as 4 : 2 : 1.
#[test]
fn a_saturated_limit_of_all_is_shared_by_weight() {
    const GLOBAL_BITS: f64 = 40e6;
    const WISHES: [(&str, &str, f64, f64); 4] = [
        ("first", "control", 4.0, 30e6),
        ("second", "interactive", 2.0, 30e6),
        ("third", "bulk", 1.0, 30e6),
        ("modest", "bulk", 0.0, 2e6),
    ];
    const ALLOWED: f64 = 0.03;
    /// Until shares are made, and what users had saved up is gone.
    const SETTLING: Duration = Duration::from_millis(1000);
    const MEASURED: Duration = Duration::from_millis(2000);
    const TIME: Duration = Duration::from_millis(3300);
    let Some(rig) = Rig::start(KernelMode::Native, |options| {
        options.users = WISHES.map(|(user, ..)| user.to_owned()).into();
    }) else {
        return;
    };
    rig.lab.limits(&["global", "40Mbit"]);
    let data = load::payload(LARGE);
    let packet_bytes = f64::from(charged_bytes(false, LARGE as u32));
    let flows = WISHES.map(|(user, class, ..)| {
        rig.lab.limits(&["set", user, "--class", class]);
        rig.flow(user)
    });
    let pinned = rig.pinned();
    let slots = WISHES.map(|(user, ..)| pinned.slot(user));
    let mut number = 0;
    let mut sources = flows.each_ref().map(|flow| {
        let rate_pps = WISHES[number].3 / 8.0 / packet_bytes;
        number += 1;
        rig.client_source(flow.from_client(&data), &data, rate_pps)
    });
    let used = || slots.map(|slot| pinned.up(slot));
    let decided = || {
        let Used {
            packets,
            dropped_packets,
            ..
        } = pinned.up(slots[0]);
        packets + dropped_packets
    };
    first_steady("shares by weight", || {
        let ((offered, before, after), pause_ns) = watched(decided, || {
            thread::scope(|scope| {
                let sender = scope.spawn(|| load::offer(&mut sources, TIME));
                thread::sleep(SETTLING);
                let before = (sys::now_ns(), used());
                thread::sleep(MEASURED);
                let after = (sys::now_ns(), used());
                let offered = sender.join().expect("a sender does not panic");
                (offered, before, after)
            })
        });
        if after.0 > offered.ended_ns {
            return Err("the test slept longer than it was to".to_owned());
        }
        // A share holds a burst of 50 ms.
        if pause_ns > 40_000_000 {
            return Err(format!("a pause of {} ms", pause_ns / 1_000_000));
        }
        let seconds = (after.0 - before.0) as f64 / 1e9;
        let mut passed = [0.0; 4];
        for (user, passed) in passed.iter_mut().enumerate() {
            *passed = (after.1[user].bytes - before.1[user].bytes) as f64 * 8.0 / seconds;
        }
        let rest: f64 = passed[..3].iter().sum();
        let all = rest + passed[3];
        eprintln!("shares by weight: {passed:.0?} bit/s, together {all:.0}");
        // A part of the limit is kept back on purpose.
        assert!((0.95 * GLOBAL_BITS..=1.01 * GLOBAL_BITS).contains(&all));
        for ((user, _, weight, _), passed) in WISHES[..3].iter().zip(passed) {
            let off = passed / (rest * weight / 7.0) - 1.0;
            eprintln!("{user}: {:+.3} % of its share", off * 100.0);
            assert!(off.abs() <= ALLOWED, "{user}: {off:+.4}");
        }
        let modest = passed[3] / WISHES[3].3 - 1.0;
        assert!(modest.abs() <= ALLOWED, "{modest:+.4}");
        Ok(())
    });
}

/// A limit is raised out of deep debt, in the maps, and lowered, by the command: ten milliseconds later
/// the new one rules, seen by when packets reach the peer.
#[test]
fn a_changed_limit_rules_within_ten_milliseconds() {
    const TEN_MS: u64 = 10_000_000;
    // At this rate the burst is a debt of half a minute.
    const SLOW: Limit = Limit::new("64kbit", 64_000, 256 << 10, 500);
    const FAST: Limit = Limit::new("20Mbit", 20_000_000, 128 << 10, 700);
    const LESS: Limit = Limit::new("1Mbit", 1_000_000, 128 << 10, 800);
    /// Spends SLOW's burst within 70 ms, and FAST's within as much.
    const OFFERED_BITS: f64 = 40e6;
    let Some(rig) = Rig::start(KernelMode::Native, |_| {}) else {
        return;
    };
    let data = load::payload(SMALL);
    let packet_bytes = u64::from(charged_bytes(false, SMALL as u32));
    let flow = rig.flow(USER);
    let (pinned, slot) = (rig.pinned(), rig.pinned().slot(USER));
    let rate_pps = OFFERED_BITS / 8.0 / packet_bytes as f64;
    let decided = || {
        let used = pinned.up(slot);
        used.packets + used.dropped_packets
    };
    let time = SLOW.time + FAST.time + LESS.time;
    first_steady("a change", || {
        SLOW.set(&rig.lab, USER, "--up");
        rig.at_peer.clear();
        let mut sources = [rig.client_source(flow.from_client(&data), &data, rate_pps)];
        let ((offered, raised, lowering, lowered), pause_ns) = watched(decided, || {
            thread::scope(|scope| {
                let sender = scope.spawn(|| load::offer(&mut sources, time));
                thread::sleep(SLOW.time);
                pinned.limits(slot).set_up(FAST.word());
                let raised = sys::now_ns();
                thread::sleep(FAST.time);
                let lowering = sys::now_ns();
                LESS.set(&rig.lab, USER, "--up");
                let lowered = sys::now_ns();
                let offered = sender.join().expect("a sender does not panic");
                (offered, raised, lowering, lowered)
            })
        });
        if pause_ns > TEN_MS / 2 {
            return Err(format!("a pause of {} us", pause_ns / 1000));
        }
        if offered.ended_ns < lowered + 300_000_000 {
            return Err("the command took too long".to_owned());
        }
        let times = rig.at_peer.times_ns();
        let passed = |from: u64, until: u64| {
            let passed = times.iter().filter(|time| (from..until).contains(time));
            (passed.count() as u64 * packet_bytes) as f64
        };
        let rules = |what: &str, limit: &Limit, from: u64, until: u64, burst_bytes: u64| {
            let (bytes, expected) = (passed(from, until), limit.bytes_in(until - from));
            // What is decided on at either end may arrive a little later.
            let margin = (expected / 100.0).max(2.0 * packet_bytes as f64)
                + limit.bytes_in(pause_ns)
                + packet_bytes as f64;
            let off = bytes - expected;
            eprintln!(
                "{what}: {bytes} bytes of {expected:.0}: {:+.3} %, allowed {:.3} %, pause {} us",
                off / expected * 100.0,
                margin / expected * 100.0,
                pause_ns / 1000
            );
            assert!(off >= -margin, "{what}: {bytes} of {expected:.0}");
            assert!(
                off <= margin + burst_bytes as f64,
                "{what}: {bytes} of {expected:.0}"
            );
        };
        let begun = raised - 200_000_000;
        rules("before", &SLOW, begun, raised - TEN_MS, 0);
        // The time that a packet had to wait at the old rate counts as one of the new.
        let from = raised + TEN_MS;
        rules("raised", &FAST, from, from + 250_000_000, FAST.burst_bytes);
        rules(
            "raised, and its burst spent",
            &FAST,
            from + 250_000_000,
            lowering,
            0,
        );
        rules("lowered", &LESS, lowered + TEN_MS, offered.ended_ns, 0);
        Ok(())
    });
}

/// Data on a channel, which the kernel relays, and in indications, which userspace relays, both ways at
/// once and over the limit: slots say exactly what arrived, and both charged one budget.
#[test]
fn counters_are_what_the_peers_saw_where_kernel_and_userspace_relay() {
    const LIMIT: Limit = Limit::new("4Mbit", 4_000_000, 128 << 10, 2000);
    // Lengths tell who relayed; both are whole words, so indications have no padding.
    const BY_KERNEL: usize = 480;
    const BY_USERSPACE: usize = 484;
    let Some(rig) = Rig::start(KernelMode::Native, |_| {}) else {
        return;
    };
    LIMIT.set(&rig.lab, USER, "--up");
    LIMIT.set(&rig.lab, USER, "--down");
    let mut flow = rig.flow(USER);
    let other = rig.lab.peer.bind_any(flow.peer.ip());
    let other = other.local_addr().expect("a bound socket has an address");
    let (bound, loose) = (load::payload(BY_KERNEL), load::payload(BY_USERSPACE));
    let indication = Packet {
        payload: flow.probe.indication(other, &loose),
        ..flow.from_client(&[])
    };
    let from_other = Packet {
        source: other,
        ..flow.from_peer(&loose)
    };
    let offsets = [payload_at::CHANNEL, payload_at::INDICATION];
    let at_client = Arrivals::at(&rig.lab.client, "eth0", &offsets);
    let mut sources = [
        rig.client_source(flow.from_client(&bound), &bound, 700.0),
        rig.client_source(indication, &loose, 900.0),
        rig.peer_source(flow.from_peer(&bound), &bound, 700.0),
        rig.peer_source(from_other, &loose, 900.0),
    ];
    let (pinned, slot) = (rig.pinned(), rig.pinned().slot(USER));
    let ways = || [pinned.up(slot), pinned.down(slot)];
    let decided = |used: &Used| used.packets + used.dropped_packets;
    let lost = || ["eth1", "eth0"].map(|interface| rig.lab.relay.lost_in_sending(interface));
    first_steady("a mixed run", || {
        thread::sleep(Duration::from_nanos(LIMIT.ns_of(LIMIT.burst_bytes)));
        rig.at_peer.clear();
        at_client.clear();
        let (before, lost_before, relayed) = (ways(), lost(), pinned.relayed());
        let fewer = || ways().iter().map(decided).min().expect("two ways");
        let (offered, pause_ns) = watched(fewer, || load::offer(&mut sources, LIMIT.time));
        let sent = before.iter().map(decided).sum::<u64>() + offered.sent;
        load::settled(sent, || ways().iter().map(decided).sum());
        let (after, relayed) = (ways(), pinned.relayed() - relayed);
        let arrived = || rig.at_peer.all_packets() + at_client.all_packets();
        let passed = (0..2).map(|way| after[way].packets - before[way].packets);
        let passed = passed.sum::<u64>();
        load::settled(passed, arrived);
        let lost_after = lost();

        let mut by_kernel = 0;
        for (way, (name, arrivals)) in [("up", &rig.at_peer), ("down", &at_client)]
            .into_iter()
            .enumerate()
        {
            let (before, after) = (before[way], after[way]);
            let packets = after.packets - before.packets;
            let payload_bytes = after.payload_bytes - before.payload_bytes;
            let bytes = after.bytes - before.bytes;
            let lost = lost_after[way] - lost_before[way];
            let seen = arrivals.all_packets();
            eprintln!("{name}: {packets} packets, {seen} seen, {lost} lost by the device");
            assert_eq!(packets, seen + lost, "{name}");
            assert_eq!(bytes, payload_bytes + 28 * packets, "{name}");
            if lost == 0 {
                let seen: u64 = (0..offsets.len())
                    .map(|kind| arrivals.payload_bytes(kind))
                    .sum();
                assert_eq!(payload_bytes, seen, "{name}");
            }
            // packets = kernel's + userspace's, and bytes likewise, each with its length.
            let extra = (BY_USERSPACE - BY_KERNEL) as u64;
            let by_userspace = (payload_bytes - BY_KERNEL as u64 * packets) / extra;
            assert!(by_userspace > 0 && by_userspace < packets, "{name}");
            by_kernel += packets - by_userspace;
            assert!(after.dropped_packets > before.dropped_packets, "{name}");
        }
        assert_eq!(relayed, by_kernel, "{:?}", pinned.reasons());
        // As much was sent one way as the other.
        let offered = Offered {
            due: offered.due / 2,
            sent: offered.sent / 2,
            ..offered
        };
        for way in 0..2 {
            let attempt = Attempt {
                offered,
                decided: decided(&after[way]) - decided(&before[way]),
                bytes: after[way].bytes - before[way].bytes,
                until_ns: after[way].last_seen,
                pause_ns,
            };
            let what = ["mixed, up", "mixed, down"][way];
            let packet_bytes = u64::from(charged_bytes(false, BY_USERSPACE as u32));
            attempt.judge(what, &LIMIT, packet_bytes, 2)?;
        }
        Ok(())
    });
}
