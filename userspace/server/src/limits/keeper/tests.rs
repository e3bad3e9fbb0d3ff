use std::path::PathBuf;

use towpath_proto::slots::MemorySlots;

use super::*;
use crate::units::Size;

const NOW: Timestamp = Timestamp::from_nanos(1);
const REALM: &str = "a.test";

struct Lab {
    slots: Arc<MemorySlots>,
    state: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let name = format!("towpath-test-keeper-{:016x}", rand::random::<u64>());
        Self {
            slots: Arc::new(MemorySlots::new(16)),
            state: std::env::temp_dir().join(name),
        }
    }

    /// A server with this section, on maps that outlived the one before.
    fn start(&self, section: &str) -> LimitKeeper {
        let slots: Arc<dyn Slots> = Arc::clone(&self.slots) as _;
        let file = KeptFile::new(&self.state);
        let limits = Self::limits(section);
        LimitKeeper::start(NOW, slots, limits, REALM.to_owned(), file)
    }

    fn limits(section: &str) -> LimitsSection {
        let text = format!("[limits]\n{section}");
        let origin = crate::config::Origin::Embedded;
        let config = crate::config::Config::from_text(origin, text, []).unwrap();
        config.limits
    }

    /// The machine starts anew: maps are gone, files are not.
    fn reboot(&mut self) {
        self.slots = Arc::new(MemorySlots::new(16));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

fn set(keeper: &LimitKeeper, name: &str, up: &str) -> Changed {
    let change = LimitChange {
        up: Some(rate(up)),
        ..LimitChange::default()
    };
    change_of(keeper, name, Some(change))
}

fn change_of(keeper: &LimitKeeper, name: &str, set: Option<LimitChange>) -> Changed {
    let target = match name {
        "default" => Target::Default,
        "global" => Target::Global,
        name => Target::parse(name, None).unwrap(),
    };
    keeper.change(NOW, &Change { target, set }).unwrap()
}

fn up(keeper: &LimitKeeper, name: &str) -> Rate {
    let found = keeper.find(&Target::parse(name, None).unwrap());
    found.first().map_or(Rate::Unlimited, |slot| slot.up.limit)
}

#[test]
fn the_configuration_is_in_force_from_the_start() {
    let lab = Lab::new();
    let keeper = lab.start(
        "default = { up = \"5Mbit\" }\nglobal = \"1Gbit\"\n\
         users = { alice = { up = \"20Mbit\", class = \"bulk\" } }",
    );
    let alice = keeper
        .find(&Target::parse("alice", None).unwrap())
        .remove(0);
    assert_eq!((alice.up.limit, alice.class), (rate("20Mbit"), Class::Bulk));
    assert!(!alice.by_hand);
    let view = keeper.view(NOW, 10);
    assert_eq!(view.default.up.limit, rate("5Mbit"));
    assert_eq!(
        (view.global, view.realm.as_deref()),
        (rate("1Gbit"), Some(REALM))
    );
}

#[test]
fn what_was_set_by_hand_is_above_the_configuration_until_it_is_unset() {
    let lab = Lab::new();
    let section = "users = { alice = { up = \"20Mbit\" } }";
    let keeper = lab.start(section);
    let changed = set(&keeper, "alice", "1Mbit");
    assert!(!changed.kept && changed.trouble.is_none());
    assert_eq!(changed.slot.unwrap().up.limit, rate("1Mbit"));
    // The server is restarted; the maps are pinned.
    let keeper = lab.start("users = { alice = { up = \"30Mbit\" } }");
    assert_eq!(up(&keeper, "alice"), rate("1Mbit"));
    let changed = change_of(&keeper, "alice", None);
    assert_eq!(changed.slot.unwrap().up.limit, rate("30Mbit"));
    assert!(
        !lab.state.exists(),
        "nothing is kept unless it is asked for"
    );
}

#[test]
fn a_changed_configuration_is_in_force_after_a_restart() {
    let lab = Lab::new();
    lab.start("users = { alice = { up = \"20Mbit\" }, bob = { up = \"2Mbit\" } }");
    let keeper =
        lab.start("default = { up = \"9Mbit\" }\nusers = { alice = { down = \"3Mbit\" } }");
    assert_eq!(up(&keeper, "alice"), rate("9Mbit"));
    assert_eq!(up(&keeper, "bob"), rate("9Mbit"));
}

#[test]
fn what_is_kept_is_in_force_after_a_reboot() {
    let mut lab = Lab::new();
    let section = "persist = true\nglobal = \"1Gbit\"\nusers = { alice = { up = \"20Mbit\" } }";
    let keeper = lab.start(section);
    assert!(set(&keeper, "alice", "1Mbit").kept);
    assert!(set(&keeper, "b.test/bob", "2Mbit").kept);
    assert!(set(&keeper, "default", "3Mbit").kept);
    assert!(set(&keeper, "global", "4Gbit").kept);
    assert!(set(&keeper, "class:bulk", "5Mbit").kept);
    lab.reboot();
    let keeper = lab.start(section);
    assert_eq!(up(&keeper, "alice"), rate("1Mbit"));
    assert_eq!(up(&keeper, "b.test/bob"), rate("2Mbit"));
    assert_eq!(up(&keeper, "class:bulk"), rate("5Mbit"));
    let view = keeper.view(NOW, 10);
    assert_eq!(
        (view.default.up.limit, view.global),
        (rate("3Mbit"), rate("4Gbit"))
    );
    assert!(change_of(&keeper, "alice", None).kept);
    lab.reboot();
    assert_eq!(up(&lab.start(section), "alice"), rate("20Mbit"));
}

#[test]
fn what_was_set_without_a_server_is_kept_by_the_next_one() {
    let mut lab = Lab::new();
    let table = LimitTable::new(&*lab.slots, Size(65_536));
    let alice = Target::parse("a.test/alice", None).unwrap();
    let change = LimitChange {
        up: Some(rate("1Mbit")),
        ..LimitChange::default()
    };
    table.set(NOW, &alice, change, true).unwrap();
    lab.start("persist = true");
    lab.reboot();
    assert_eq!(up(&lab.start("persist = true"), "alice"), rate("1Mbit"));
}

#[test]
fn a_limit_that_cannot_be_kept_is_in_force_and_says_so() {
    let lab = Lab::new();
    let keeper = lab.start("persist = true");
    std::fs::create_dir_all(lab.state.join("limits.json")).unwrap();
    let changed = set(&keeper, "alice", "1Mbit");
    assert!(!changed.kept);
    assert!(changed.trouble.unwrap().contains("cannot write"));
    assert_eq!(up(&keeper, "alice"), rate("1Mbit"));
}

#[test]
fn a_broken_file_is_neither_obeyed_nor_overwritten() {
    let lab = Lab::new();
    std::fs::create_dir_all(&lab.state).unwrap();
    let path = lab.state.join("limits.json");
    std::fs::write(&path, "{ \"version\": 1, \"us").unwrap();
    let keeper = lab.start("persist = true\nusers = { alice = { up = \"20Mbit\" } }");
    assert_eq!(up(&keeper, "alice"), rate("20Mbit"));
    let changed = set(&keeper, "alice", "1Mbit");
    assert!(!changed.kept);
    assert!(changed.trouble.unwrap().contains("mend it or remove it"));
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        "{ \"version\": 1, \"us"
    );
}

#[test]
fn another_section_is_in_force_at_once_below_what_was_set_by_hand() {
    let lab = Lab::new();
    let keeper = lab.start(
        "default = { up = \"9Mbit\" }\n\
         users = { alice = { up = \"20Mbit\" }, bob = { up = \"2Mbit\" } }",
    );
    set(&keeper, "bob", "1Mbit");
    set(&keeper, "class:bulk", "5Mbit");
    let new = Lab::limits(
        "default = { up = \"8Mbit\" }\nglobal = \"1Gbit\"\nclasses = { bulk = 3 }\n\
         users = { bob = { up = \"3Mbit\" }, carol = { up = \"4Mbit\" } }",
    );
    keeper.reconfigure(NOW, new, REALM.to_owned());
    assert_eq!(
        up(&keeper, "alice"),
        rate("8Mbit"),
        "the default is hers now"
    );
    assert_eq!(up(&keeper, "bob"), rate("1Mbit"));
    assert_eq!(up(&keeper, "carol"), rate("4Mbit"));
    assert_eq!(up(&keeper, "class:bulk"), rate("5Mbit"));
    let view = keeper.view(NOW, 10);
    assert_eq!(
        (view.global, view.weights.unwrap().bulk),
        (rate("1Gbit"), 3)
    );
    let unset = change_of(&keeper, "bob", None);
    assert_eq!(unset.slot.unwrap().up.limit, rate("3Mbit"));
}

#[test]
fn limits_follow_their_users_into_another_realm() {
    let lab = Lab::new();
    let section = "users = { alice = { up = \"20Mbit\" } }";
    let keeper = lab.start(section);
    keeper.reconfigure(NOW, Lab::limits(section), "b.test".to_owned());
    assert_eq!(up(&keeper, "a.test/alice"), Rate::Unlimited);
    assert_eq!(up(&keeper, "b.test/alice"), rate("20Mbit"));
    assert_eq!(keeper.view(NOW, 1).realm.as_deref(), Some("b.test"));
}
