use towpath_proto::slots::MemorySlots;

use super::*;

const NOW: Timestamp = Timestamp::from_nanos(1);

fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

fn change(up: &str, down: &str, burst: &str) -> LimitChange {
    let rate = |text: &str| (!text.is_empty()).then(|| rate(text));
    LimitChange {
        up: rate(up),
        down: rate(down),
        burst: (!burst.is_empty()).then(|| burst.parse().unwrap()),
        class: None,
    }
}

fn target(text: &str) -> Target {
    Target::parse(text, None).unwrap()
}

struct Lab(MemorySlots);

impl Lab {
    fn new() -> Self {
        Self(MemorySlots::new(4))
    }

    fn table(&self) -> LimitTable<'_> {
        LimitTable::new(&self.0, Size(256 << 10))
    }

    fn set(&self, name: &str, change: LimitChange) -> Result<SlotView, SetError> {
        self.table().set(NOW, &target(name), change, true)?;
        Ok(self.table().find(&target(name)).remove(0))
    }
}

#[test]
fn a_user_is_limited_before_ever_connecting_and_keeps_the_slot() {
    let lab = Lab::new();
    let alice = lab.set("a.test/alice", change("20Mbit", "", "")).unwrap();
    assert_eq!(alice.up.limit, rate("20Mbit"));
    assert_eq!(alice.up.burst, Some(Size(256 << 10)));
    assert_eq!(
        (alice.down.limit, alice.down.burst),
        (Rate::Unlimited, None)
    );
    assert_eq!((alice.own, alice.by_hand), (vec!["up".to_owned()], true));
    let identity = Identity::user("a.test", "alice");
    let slot = lab.0.acquire(NOW, &identity).unwrap();
    assert_eq!(slot.0, alice.slot);
    assert_eq!(
        lab.0.slot(slot).unwrap().limits.up_in_force(),
        LimitWord::new(20_000_000, 256 << 10).unwrap()
    );
}

#[test]
fn what_is_not_said_stays() {
    let lab = Lab::new();
    lab.set("a.test/alice", change("20Mbit", "50Mbit", "64KiB"))
        .unwrap();
    let up = lab.set("alice", change("1Mbit", "", "")).unwrap();
    assert_eq!(
        (up.up.limit, up.up.burst),
        (rate("1Mbit"), Some(Size(65_536)))
    );
    assert_eq!(up.down.limit, rate("50Mbit"));
    let burst = lab.set("alice", change("", "", "1MiB")).unwrap();
    assert_eq!(
        (burst.up.limit, burst.up.burst),
        (rate("1Mbit"), Some(Size(1 << 20)))
    );
    assert_eq!(burst.down.burst, Some(Size(1 << 20)));
    let bulk = LimitChange {
        class: Some(Class::Bulk),
        ..LimitChange::default()
    };
    let bulk = lab.set("alice", bulk).unwrap();
    assert_eq!((bulk.class, bulk.down.limit), (Class::Bulk, rate("50Mbit")));
    assert_eq!(bulk.own, ["up", "down", "class"]);
}

#[test]
fn users_without_limits_of_their_own_follow_the_default() {
    let lab = Lab::new();
    lab.set("a.test/alice", change("20Mbit", "", "")).unwrap();
    let bob = Identity::user("a.test", "bob");
    lab.0.acquire(NOW, &bob).unwrap();
    lab.table()
        .set(
            NOW,
            &Target::Default,
            change("5Mbit", "6Mbit", "32KiB"),
            true,
        )
        .unwrap();
    let find = |name| lab.table().find(&target(name)).remove(0);
    assert_eq!(find("bob").up.limit, rate("5Mbit"));
    assert_eq!(find("bob").own, Vec::<String>::new());
    assert_eq!(find("alice").up.limit, rate("20Mbit"));
    assert_eq!(find("alice").down.limit, rate("6Mbit"));
    assert_eq!(find("alice").down.burst, Some(Size(32 << 10)));
    let default = Limit::default();
    lab.table().unset(&target("alice"), default).unwrap();
    assert_eq!(find("alice").up.limit, rate("5Mbit"));
    assert!(!find("alice").by_hand && find("alice").own.is_empty());
    lab.table().unset(&Target::Default, default).unwrap();
    assert_eq!(find("bob").up.limit, Rate::Unlimited);
}

#[test]
fn classes_and_all_together_are_limited_apart_from_users() {
    let lab = Lab::new();
    let bulk = lab.set("class:bulk", change("100Mbit", "", "")).unwrap();
    assert_eq!(
        (bulk.kind, bulk.class),
        (super::view::SlotKind::Class, Class::Bulk)
    );
    assert_eq!(bulk.slot, Class::Bulk.slot().0);
    let table = lab.table();
    table
        .set(NOW, &Target::Global, change("1Gbit", "", ""), true)
        .unwrap();
    assert_eq!(table.global(), rate("1Gbit"));
    assert!(table.is_by_hand(&Target::Global));
    let word = LimitWord::from_bits(lab.0.global_limit().load(Ordering::Relaxed));
    assert_eq!(
        word.burst_bytes(),
        2_500_032,
        "20 ms of it, in units of 64 bytes"
    );
    table.unset(&Target::Global, Limit::default()).unwrap();
    assert_eq!(table.global(), Rate::Unlimited);
    table
        .unset(&target("class:bulk"), Limit::default())
        .unwrap();
    assert_eq!(
        table.find(&target("class:bulk"))[0].up.limit,
        Rate::Unlimited
    );
}

#[test]
fn what_cannot_be_set_changes_nothing_and_names_the_rule() {
    let lab = Lab::new();
    let error = |name: &str, change| lab.set(name, change).unwrap_err().to_string();
    assert!(error("alice", change("1Mbit", "", "")).contains("write REALM/alice"));
    assert!(error("a/b", change("", "", "")).contains("nothing to set"));
    assert!(error("a/b", change("1kbit", "", "")).contains("not between 64kbit and 400Gbit"));
    assert!(error("a/b", change("", "", "64KiB")).contains("a burst without a rate"));
    let class = LimitChange {
        class: Some(Class::Bulk),
        ..LimitChange::default()
    };
    assert!(error("class:bulk", class).contains("class:bulk has no class"));
    let global = lab
        .table()
        .set(NOW, &Target::Global, change("1Mbit", "1Mbit", ""), true);
    assert_eq!(global, Err(SetError::GlobalIsOne));
    assert!(
        lab.table()
            .view(NOW, true, 9)
            .peers
            .iter()
            .all(|peer| peer.own.is_empty())
    );
}

#[test]
fn limits_hold_their_slots_until_none_is_left() {
    let lab = Lab::new();
    for name in ["a/1", "a/2", "a/3", "a/4"] {
        lab.set(name, change("1Mbit", "", "")).unwrap();
    }
    let error = lab.set("a/5", change("1Mbit", "", "")).unwrap_err();
    assert!(error.to_string().contains("kernel.max_peers"), "{error}");
}

#[test]
fn the_last_active_peers_are_shown_first_and_no_more_than_asked_for() {
    let lab = Lab::new();
    for (name, seen) in [("x", 5), ("y", 9), ("z", 0)] {
        let identity = Identity::user("a", name);
        let slot = lab.0.acquire(NOW, &identity).unwrap();
        let memory = lab.0.slot(slot).unwrap();
        memory.meter.down.last_seen.store(seen, Ordering::Relaxed);
    }
    let names = |most| {
        let view = lab.table().view(NOW, false, most);
        assert_eq!((view.peers_in_all, view.running), (3, false));
        view.peers
            .into_iter()
            .map(|peer| peer.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(9), ["y", "x", "z"]);
    assert_eq!(names(2), ["y", "x"]);
    assert_eq!(names(0), [""; 0]);
}
