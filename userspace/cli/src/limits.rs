//! `towpath limits`: what users may send and receive, read and changed while it is in force.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use towpath_server::config::DEFAULT_PINS;
use towpath_server::limit::{Class, LimitChange};
use towpath_server::limits::{
    Change, Changed, LimitAccess, LimitsView, SlotKind, SlotView, Target,
};
use towpath_server::units::{Rate, Size};

use crate::exit::{self, Failure};
use crate::serve::Places;
use crate::status::Scaled;
use crate::table::{Side, Table, printable};

const HELP: &str = "\
NAME is a user, also one who never connected; REALM/NAME where there are several realms; or
class:control, class:interactive, class:bulk for all users of a class together.
Rates: 20Mbit, 64kbit, 2.5MB/s, unlimited. Sizes: 256KiB, 64kB.

Examples:
  towpath limits list
  towpath limits set alice --up 20Mbit --down 50Mbit --burst 256KiB
  towpath limits set alice --class bulk
  towpath limits set class:bulk --up 200Mbit
  towpath limits unset alice
  towpath limits default --up 10Mbit --down 10Mbit
  towpath limits global 1Gbit

A limit holds from the next packet on. It is set by way of the server, or in the pinned maps of the
kernel path where no server runs.";

#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    how: How,
}

#[derive(Args)]
struct How {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

/// Where limits are reached.
#[derive(Args)]
pub(crate) struct Reach {
    #[command(flatten)]
    places: Places,
    /// Where the kernel path's maps are pinned, for when no server runs
    #[arg(long, global = true, value_name = "DIR", env = "TOWPATH__KERNEL__PINS", default_value = DEFAULT_PINS)]
    pins: PathBuf,
}

impl Reach {
    pub(crate) fn open(&self) -> Result<LimitAccess, Failure> {
        let directories = self.places.clone().choose()?;
        LimitAccess::open(&directories, &self.pins)
            .map_err(|error| Failure::Runtime(error.to_string()))
    }
}

#[derive(Subcommand)]
enum Command {
    /// Show limits and counters: default, global, classes, users
    List {
        /// At most so many users, the last active first
        #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
        peers: usize,
    },
    /// Show one user's or class's limits and counters
    Get {
        #[command(flatten)]
        name: Name,
    },
    /// Set limits; what is not named stays
    #[command(after_help = HELP)]
    Set {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        values: Values,
        /// Whose traffic goes first when the global limit is reached: control, interactive, bulk
        #[arg(long)]
        class: Option<Class>,
    },
    /// Take limits away: the configuration's hold again, or the default
    Unset {
        #[command(flatten)]
        name: Name,
    },
    /// Show or set the limit of all users without one of their own
    Default {
        #[command(flatten)]
        values: Values,
        /// Back to the configuration's
        #[arg(long, conflicts_with_all = ["up", "down", "burst"])]
        reset: bool,
    },
    /// Show or set the limit of all users together, both directions
    Global {
        /// The rate
        rate: Option<Rate>,
        /// Back to the configuration's
        #[arg(long, conflicts_with = "rate")]
        reset: bool,
    },
}

#[derive(Args)]
struct Name {
    /// Whom it is for
    name: String,
    /// The realm of the user; all of NAME is the user's name then
    #[arg(long)]
    realm: Option<String>,
}

impl Name {
    fn target(&self) -> Result<Target, Failure> {
        Target::parse(&self.name, self.realm.as_deref())
            .map_err(|error| Failure::Usage(error.to_string()))
    }
}

#[derive(Args)]
struct Values {
    /// Rate from the user to peers
    #[arg(long, value_name = "RATE")]
    up: Option<Rate>,
    /// Rate from peers to the user
    #[arg(long, value_name = "RATE")]
    down: Option<Rate>,
    /// Bytes that may pass at once, in each direction
    #[arg(long, value_name = "SIZE")]
    burst: Option<Size>,
}

impl Values {
    fn change(&self, class: Option<Class>) -> LimitChange {
        LimitChange {
            up: self.up,
            down: self.down,
            burst: self.burst,
            class,
        }
    }
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments {
        command,
        how: How { json, reach },
    } = arguments;
    let nothing = LimitChange::default();
    match command {
        Command::List { peers } => {
            let view = view(&reach.open()?, peers)?;
            show(json, &view, list)
        }
        Command::Get { name } => {
            let target = name.target()?;
            let slots = reach
                .open()?
                .find(&target)
                .map_err(|error| Failure::Runtime(error.to_string()))?;
            if slots.is_empty() {
                return Err(Failure::Runtime(format!(
                    "\"{target}\" has no limits of its own and was not seen; the default holds"
                )));
            }
            show(json, &slots, |slots| table(slots, None))
        }
        Command::Set {
            name,
            values,
            class,
        } => change(json, reach, name.target()?, Some(values.change(class))),
        Command::Unset { name } => change(json, reach, name.target()?, None),
        Command::Default { values, reset } => match (values.change(None), reset) {
            (_, true) => change(json, reach, Target::Default, None),
            (set, false) if set != nothing => change(json, reach, Target::Default, Some(set)),
            (_, false) => {
                let default = view(&reach.open()?, 0)?.default;
                show(json, &default, |slot| {
                    table(std::slice::from_ref(slot), None)
                })
            }
        },
        Command::Global { rate, reset } => match (rate, reset) {
            (_, true) => change(json, reach, Target::Global, None),
            (Some(rate), false) => {
                let set = LimitChange {
                    up: Some(rate),
                    ..nothing
                };
                change(json, reach, Target::Global, Some(set))
            }
            (None, false) => {
                let global = view(&reach.open()?, 0)?.global;
                show(json, &global, |global| format!("global  {global}\n"))
            }
        },
    }
}

fn view(access: &LimitAccess, peers: usize) -> Result<LimitsView, Failure> {
    access
        .view(peers)
        .map_err(|error| Failure::Runtime(error.to_string()))
}

fn change(
    json: bool,
    reach: Reach,
    target: Target,
    set: Option<LimitChange>,
) -> Result<(), Failure> {
    if let Some(set) = set {
        set.check()
            .map_err(|error| Failure::Usage(error.to_string()))?;
        if set == LimitChange::default() {
            return Err(Failure::Usage(
                "nothing to set: name at least one of --up, --down, --burst, --class".into(),
            ));
        }
    }
    let access = reach.open()?;
    let changed = access
        .change(&Change { target, set })
        .map_err(|error| Failure::Runtime(error.to_string()))?;
    show(json, &changed, |changed| confirm(&access, changed))?;
    match changed.trouble {
        Some(trouble) => Err(Failure::Runtime(format!(
            "the limit is in force, but could not be kept: {trouble}"
        ))),
        None => Ok(()),
    }
}

fn confirm(access: &LimitAccess, changed: &Changed) -> String {
    let mut text = match &changed.slot {
        Some(slot) => table(std::slice::from_ref(slot), None),
        None => format!("global  {}\n", changed.global),
    };
    if changed.trouble.is_none() && !changed.kept {
        text.push_str(if access.is_running() {
            "in force until it is changed or the maps are gone; limits.persist = true keeps it\n"
        } else {
            "in force in the pinned maps; no server runs\n"
        });
    }
    text
}

fn show<T: serde::Serialize>(
    json: bool,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    let text = if json {
        let mut text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::Runtime(error.to_string()))?;
        text.push('\n');
        text
    } else {
        text(value)
    };
    exit::print(text.as_bytes())
}

fn list(view: &LimitsView) -> String {
    let source = if view.running {
        "by the server"
    } else {
        "by the pinned maps; no server runs"
    };
    let mut text = format!("global {}, {source}\n\n", view.global);
    let all: Vec<SlotView> = std::iter::once(&view.default)
        .chain(&view.classes)
        .chain(&view.peers)
        .cloned()
        .collect();
    text.push_str(&table(&all, view.realm.as_deref()));
    let more = view.peers_in_all.saturating_sub(view.peers.len() as u64);
    if more > 0 {
        text.push_str(&format!("and {more} more; --peers shows them\n"));
    }
    text
}

fn table(slots: &[SlotView], realm: Option<&str>) -> String {
    let mut table = Table::new(&[
        ("NAME", Side::Left),
        ("CLASS", Side::Left),
        ("UP", Side::Right),
        ("DOWN", Side::Right),
        ("BURST", Side::Right),
        ("SENT", Side::Right),
        ("RECEIVED", Side::Right),
        ("DROPPED", Side::Right),
        ("SET BY", Side::Left),
    ]);
    for slot in slots {
        let bursts = [slot.up.burst, slot.down.burst];
        let bursts: Vec<_> = bursts.iter().flatten().map(Size::to_string).collect();
        let burst = match bursts.as_slice() {
            [] => "-".to_owned(),
            [up, down] if up != down => format!("{up}/{down}"),
            [burst, ..] => burst.clone(),
        };
        let dropped = slot.up.dropped_packets + slot.down.dropped_packets;
        let counted = !matches!(slot.kind, SlotKind::Class | SlotKind::Default);
        let count = |text: String| if counted { text } else { "-".to_owned() };
        table.row(vec![
            printable(&slot.full_name(realm)),
            match slot.kind {
                SlotKind::Class | SlotKind::Default => "-".to_owned(),
                SlotKind::User | SlotKind::Allocation | SlotKind::Peer => slot.class.to_string(),
            },
            slot.up.limit.to_string(),
            slot.down.limit.to_string(),
            burst,
            count(format!("{}B", Scaled(slot.up.bytes as f64))),
            count(format!("{}B", Scaled(slot.down.bytes as f64))),
            count(dropped.to_string()),
            set_by(slot).to_owned(),
        ]);
    }
    table.render()
}

fn set_by(slot: &SlotView) -> &'static str {
    match (slot.by_hand, slot.own.is_empty(), slot.kind) {
        (true, _, _) => "hand",
        (false, false, _) => "configuration",
        (false, true, SlotKind::Class) => "-",
        (false, true, SlotKind::Default) => "configuration",
        (false, true, SlotKind::User | SlotKind::Allocation | SlotKind::Peer) => "default",
    }
}
