//! What outlives a process, and what the next one makes of it.

mod lab;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lab::{Lab, ip, on_a_host, xdp};
use towpath_ebpf_common::rate::LimitWord;
use towpath_ebpf_common::route::{LAYOUT, Route, RouteKey, Target};
use towpath_kernel::{
    Kernel, KernelConfig, KernelError, MappedSlots, Mode, PinError, Pins, RouteError, Rung,
};
use towpath_proto::Timestamp;
use towpath_proto::slots::{Identity, PeerSlot, Slot, Slots};

/// Names the directory of pins for the process that is killed.
const VICTIM: &str = "TOWPATH_TEST_PIN_DIRECTORY";

/// Twelve maps, and the link of one interface.
const PINS: usize = 13;

fn route(port: u16) -> (RouteKey, Route) {
    let address = |text: &str| text.parse().expect("an address");
    let mut source: std::net::SocketAddr = address("10.77.9.2:1");
    source.set_port(port);
    let key = RouteKey::new(source, address("10.77.9.1:3478"), 0x4000);
    let target = Target {
        destination: address("10.77.9.2:6000"),
        source: address("10.77.9.1:50000"),
        channel: 0,
        up_slot: 0,
        down_slot: 0,
        next_hop: 0,
        generation: 1,
        expires: u64::MAX,
    };
    (key, Route::new(&key, &target))
}

fn memory(slots: &MappedSlots, slot: PeerSlot) -> Slot<'_> {
    slots.slot(slot).expect("there is such a slot")
}

fn limit() -> LimitWord {
    LimitWord::new(20_000_000, 65_536).expect("a limit in range")
}

fn start(lab: &Lab, mode: Mode) -> Kernel {
    Kernel::start(&lab.config(mode, &["near"])).expect("it starts")
}

#[test]
fn the_next_process_takes_maps_and_program_over() {
    on_a_host("the_next_process_takes_over", |lab| {
        let alice = Identity::user("example.org", "alice");
        let first = start(lab, Mode::Native);
        let slots = first.slots().expect("there are maps");
        let slot = slots
            .acquire(Timestamp::ZERO, &alice)
            .expect("there is room");
        slots
            .configure(&alice, |limits| {
                limits.flags.fetch_or(1, Ordering::SeqCst);
                limits.set_up(limit());
            })
            .expect("she has a slot");
        let packets = &memory(&slots, slot).meter.up.packets;
        packets.store(7, Ordering::Relaxed);
        let routes = first.routes().expect("it forwards");
        let (key, value) = route(5000);
        routes.insert(&key, &value).expect("there is room");
        drop((slots, first));

        let (mode, program) = xdp("near").expect("the program is there without a process");
        let kept = routes.get(&key).expect("the map is there");
        assert_eq!(kept.map(|kept| kept.destination), Some(value.destination));

        let second = start(lab, Mode::Auto);
        let rung = &second.rungs()[0];
        assert_eq!((rung.rung, rung.reason.as_deref()), (Rung::Native, None));
        let (mode_now, program_now) = xdp("near").expect("a program is there");
        assert_eq!(mode_now, mode);
        assert_ne!(program_now, program, "the old program is replaced");
        assert_eq!(routes.get(&key).expect("the same map"), None);
        let slots = second.slots().expect("there are maps");
        assert_eq!(slots.find(&alice), Some(slot));
        assert_eq!(
            slots.acquire(Timestamp::ZERO, &alice),
            Some(slot),
            "the slot, limit and counters are kept"
        );
        let kept = memory(&slots, slot).limits;
        assert_eq!(kept.up_in_force().to_bits(), limit().to_bits());
        let packets = &memory(&slots, slot).meter.up.packets;
        assert_eq!(packets.load(Ordering::Relaxed), 7);
    });
}

#[test]
fn directories_and_pins_are_for_their_owner_only() {
    on_a_host("directories_and_pins_are_for_their_owner_only", |lab| {
        fs::create_dir(lab.pins()).expect("a bpffs has directories");
        fs::set_permissions(lab.pins(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        let kernel = start(lab, Mode::Native);
        let mode = |path: &std::path::Path| {
            fs::metadata(path)
                .expect("it is there")
                .permissions()
                .mode()
                & 0o777
        };
        let versioned = kernel.pins().expect("it is pinned");
        assert_eq!((mode(&lab.pins()), mode(versioned)), (0o700, 0o700));
        let pins: Vec<_> = fs::read_dir(versioned)
            .expect("it is ours")
            .map(|pin| pin.expect("it is ours").path())
            .collect();
        assert_eq!(pins.len(), PINS, "{pins:?}");
        for pin in pins {
            assert_eq!(mode(&pin), 0o600, "{}", pin.display());
        }
    });
}

#[test]
fn pins_of_another_size_are_left_alone_and_named() {
    on_a_host("pins_of_another_size", |lab| {
        drop(start(lab, Mode::Native));
        let program = xdp("near");
        let mut config = lab.config(Mode::Auto, &["near"]);
        config.max_routes = 512;
        let kernel = Kernel::start(&config).expect("auto never fails");
        let reason = kernel.rungs()[0].reason.as_deref().expect("a reason");
        let map = format!("v{LAYOUT}/ROUTES is");
        for part in [&*map, "of 256 entries", "not Hash of 512 entries"] {
            assert!(reason.contains(part), "{part} is not in: {reason}");
        }
        assert_eq!(xdp("near"), program, "what is there is left alone");
        drop(kernel);
        config.mode = Mode::Native;
        let error = Kernel::start(&config).expect_err("the pins do not fit");
        assert!(matches!(error, KernelError::Impossible { .. }), "{error}");
    });
}

#[test]
fn another_mode_detaches_and_attaches_anew() {
    on_a_host("another_mode_detaches", |lab| {
        drop(start(lab, Mode::Generic));
        assert_eq!(xdp("near").map(|(mode, _)| mode), Some(2));
        let kernel = start(lab, Mode::Auto);
        assert_eq!(kernel.rungs()[0].rung, Rung::Generic);
        let reason = kernel.rungs()[0].reason.as_deref();
        assert!(reason.is_some_and(|reason| reason.contains("taken over as it was")));
        drop(kernel);
        let kernel = start(lab, Mode::Native);
        assert_eq!(kernel.rungs()[0].rung, Rung::Native);
        assert_eq!(xdp("near").map(|(mode, _)| mode), Some(1));
    });
}

#[test]
fn a_link_of_an_interface_that_is_gone_is_cleared_away() {
    on_a_host("a_link_of_an_interface_that_is_gone", |lab| {
        drop(start(lab, Mode::Native));
        let index = |json: &str| -> u64 {
            let links: serde_json::Value = serde_json::from_str(json).expect("ip writes JSON");
            links[0]["ifindex"].as_u64().expect("it has an index")
        };
        let old = index(&ip("-j link show dev near"));
        ip("link del near");
        // The same name and the same index: only the link's program says that it is another.
        ip(&format!(
            "link add near index {old} type veth peer name elsewhere"
        ));
        ip("link set near up");
        ip("link set elsewhere up");
        for end in ["near", "elsewhere"] {
            lab::receive_by_gro(end, "on");
        }
        let kernel = start(lab, Mode::Native);
        assert_eq!(kernel.rungs()[0].rung, Rung::Native);
        assert_eq!(xdp("near").map(|(mode, _)| mode), Some(1));
        drop(kernel);
        // An interface that is no longer named is left.
        let kernel =
            Kernel::start(&lab.config(Mode::Native, &["elsewhere"])).expect("native works");
        assert_eq!((xdp("near"), kernel.rungs().len()), (None, 1));
    });
}

#[test]
fn removing_pins_takes_the_program_away_but_not_from_a_running_process() {
    on_a_host("removing_pins_takes_the_program_away", |lab| {
        let kernel = start(lab, Mode::Native);
        let error = Kernel::remove_pins(&lab.pins()).expect_err("they are in use");
        assert!(
            error.to_string().contains("another process holds"),
            "{error}"
        );
        assert!(xdp("near").is_some());
        drop(kernel);
        let removed = Kernel::remove_pins(&lab.pins()).expect("nobody uses them");
        assert_eq!(removed, PINS);
        lab::wait_until("the program to leave", || xdp("near").is_none());
        assert!(!lab.pins().exists());
        assert_eq!(Kernel::remove_pins(&lab.pins()).expect("none are left"), 0);
    });
}

#[test]
fn limits_are_set_beside_the_daemon_and_without_it() {
    on_a_host("limits_are_set_beside_the_daemon", |lab| {
        let missing = Pins::open(&lab.pins()).expect_err("no daemon has run");
        assert!(matches!(missing, PinError::Missing(_)), "{missing}");
        let kernel = start(lab, Mode::Native);
        let daemon = kernel.slots().expect("there are maps");
        let beside = Pins::open(&lab.pins()).expect("they are there").slots();
        let set = |name: &str| {
            let identity = Identity::user("example.org", name);
            let own = |limits: &towpath_ebpf_common::meter::Limits<AtomicU64>| {
                limits.flags.fetch_or(1, Ordering::SeqCst);
                limits.set_up(limit());
            };
            beside.configure(&identity, own).expect("there is room")
        };
        let alice = Identity::user("example.org", "alice");
        let slot = daemon
            .acquire(Timestamp::ZERO, &alice)
            .expect("there is room");
        assert_eq!(set("alice"), slot, "the slot she has");
        let known_before = set("bob");
        let bob = Identity::user("example.org", "bob");
        assert_eq!(daemon.acquire(Timestamp::ZERO, &bob), Some(known_before));
        drop((daemon, kernel));
        let later = set("carol");
        let kernel = start(lab, Mode::Native);
        let daemon = kernel.slots().expect("there are maps");
        let carol = Identity::user("example.org", "carol");
        assert_eq!(daemon.acquire(Timestamp::ZERO, &carol), Some(later));
        let limits = memory(&daemon, later).limits;
        assert_eq!(limits.up_in_force().to_bits(), limit().to_bits());
        assert_eq!(daemon.identities().len(), 3);
    });
}

#[test]
fn two_processes_never_get_the_same_slot() {
    on_a_host("two_processes_never_get_the_same_slot", |lab| {
        let kernel = start(lab, Mode::Native);
        let daemon = kernel.slots().expect("there are maps");
        let beside = Pins::open(&lab.pins()).expect("they are there").slots();
        let (acquired, configured) = std::thread::scope(|scope| {
            let acquired = scope.spawn(|| {
                let users = (0..32).map(|n| Identity::user("r", &format!("a{n}")));
                let slots = users.map(|user| daemon.acquire(Timestamp::ZERO, &user));
                slots.collect::<Vec<_>>()
            });
            let configured = scope.spawn(|| {
                let users = (0..32).map(|n| Identity::user("r", &format!("b{n}")));
                let slots = users.map(|user| beside.configure(&user, |_| ()).ok());
                slots.collect::<Vec<_>>()
            });
            (
                acquired.join().expect("no panic"),
                configured.join().expect("no panic"),
            )
        });
        let slots: HashSet<_> = acquired.into_iter().chain(configured).flatten().collect();
        assert_eq!(slots.len(), 64, "every slot is somebody's");
        let one_more = Identity::user("r", "one more");
        assert!(beside.configure(&one_more, |_| ()).is_err());
        // Those set beside the daemon have no limits of their own, and rest.
        let later = Timestamp::ZERO + Duration::from_secs(3600);
        assert_eq!(daemon.acquire(Timestamp::ZERO, &one_more), None);
        let slot = daemon.acquire(later, &one_more).expect("one has rested");
        assert_eq!(daemon.find(&one_more), Some(slot));
        assert_eq!(daemon.identities().len(), 64);
    });
}

#[test]
fn slots_of_takers_that_died_are_free_again() {
    on_a_host("slots_of_takers_that_died", |lab| {
        let kernel = start(lab, Mode::Native);
        let slots = kernel.slots().expect("there are maps");
        let alice = Identity::user("r", "alice");
        let kept = slots.acquire(Timestamp::ZERO, &alice).expect("room");
        // As if killed between the owner and the record.
        let dead = PeerSlot(kept.0 + 1);
        memory(&slots, dead)
            .limits
            .owner
            .store(99, Ordering::SeqCst);
        memory(&slots, dead)
            .limits
            .flags
            .store(1 << 62, Ordering::SeqCst);
        // As if killed while setting limits.
        let flags = &memory(&slots, kept).limits.flags;
        flags.store(1 | 1 << 63, Ordering::SeqCst);
        drop((slots, kernel));
        let kernel = start(lab, Mode::Native);
        let slots = kernel.slots().expect("there are maps");
        let owner = &memory(&slots, dead).limits.owner;
        assert_eq!(owner.load(Ordering::SeqCst), 0);
        let flags = &memory(&slots, kept).limits.flags;
        assert_eq!(flags.load(Ordering::SeqCst), 1);
        assert_eq!(slots.find(&alice), Some(kept));
    });
}

#[test]
fn a_full_map_of_routes_is_survived_and_counted() {
    on_a_host("a_full_map_of_routes", |lab| {
        let kernel = start(lab, Mode::Native);
        let routes = kernel.routes().expect("it forwards");
        for port in 1..=256 {
            let (key, value) = route(port);
            routes.insert(&key, &value).expect("there is room");
        }
        let (key, value) = route(257);
        let error = routes.insert(&key, &value).expect_err("it is full");
        assert!(matches!(error, RouteError::Full(256)), "{error}");
        assert_eq!(routes.failures().full, 1);
        let (known, value) = route(1);
        routes.insert(&known, &value).expect("it is there already");
        assert!(routes.remove(&known).expect("the map is there"));
        assert!(!routes.remove(&known).expect("it is gone already"));
        routes.insert(&key, &value).expect("there is room again");
        assert_eq!(routes.flush().expect("the map is there"), 256);
    });
}

#[test]
fn a_process_killed_at_any_time_leaves_what_the_next_one_can_use() {
    on_a_host("a_process_killed_at_any_time", |lab| {
        let victim = |delay: Duration| {
            let mut child = Command::new(std::env::current_exe().expect("we run"))
                .args(["--exact", "victim", "--ignored"])
                .env(VICTIM, lab.pins())
                .stdout(std::process::Stdio::null())
                .spawn()
                .expect("we can be started");
            std::thread::sleep(delay);
            child.kill().expect("it is our own");
            child.wait().expect("it is our own");
        };
        // How far a process comes in a time is the machine's business: the steps reach from before
        // the first pin to after the last wherever we are.
        let pins = || {
            let pins = fs::read_dir(lab.pins().join(format!("v{LAYOUT}")));
            pins.map_or(0, |pins| pins.count())
        };
        let mut delay = Duration::from_millis(4);
        let mut cut_short = 0;
        while pins() < PINS {
            victim(delay);
            cut_short += 1;
            delay = delay * 4 / 3;
            assert!(cut_short < 100, "it never gets as far as the link");
        }
        assert!(xdp("near").is_some(), "the pinned link holds the program");
        let kernel = start(lab, Mode::Native);
        assert_eq!(kernel.rungs()[0].rung, Rung::Native);
        drop(kernel);
        // And while a program is taken over.
        for millis in [20, 60, 120, 240] {
            victim(Duration::from_millis(millis));
            assert!(xdp("near").is_some(), "there is a program all the time");
        }
        let kernel = start(lab, Mode::Native);
        assert_eq!(kernel.rungs()[0].reason, None);
        assert_eq!(kernel.unpinned(), None);
    });
}

/// Run by the test above in a process of its own.
#[test]
#[ignore = "another test runs it, to kill it"]
fn victim() {
    let Some(directory) = std::env::var_os(VICTIM) else {
        return;
    };
    let config = KernelConfig {
        max_peers: 64,
        max_routes: 256,
        pin_directory: directory.into(),
        ..KernelConfig::new(Mode::Native, vec!["near".to_owned()])
    };
    let _kernel = Kernel::start(&config).expect("it starts");
    std::thread::sleep(Duration::from_secs(60));
}
