//! What `towpath top` shows: rates between two looks, sorted and filtered. It draws nothing.

use std::cmp::Ordering;
use std::collections::HashMap;

use clap::ValueEnum;
use towpath_server::limit::Class;
use towpath_server::limits::{DirectionView, LimitsView, SlotView};
use towpath_server::units::Rate;

use crate::status::Scaled;

/// What comes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Sort {
    /// Both directions together
    Rate,
    /// From the user
    Up,
    /// To the user
    Down,
    /// Packets over a limit
    Drops,
    /// All bytes since the user came
    Total,
    /// The name
    Name,
}

impl Sort {
    const ALL: [Self; 6] = [
        Self::Rate,
        Self::Up,
        Self::Down,
        Self::Drops,
        Self::Total,
        Self::Name,
    ];

    pub(crate) fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Up => "up",
            Self::Down => "down",
            Self::Drops => "drops",
            Self::Total => "total",
            Self::Name => "name",
        }
    }
}

/// What rates are shown in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Unit {
    /// Bits per second
    Bits,
    /// Bytes per second
    Bytes,
    /// Packets per second
    Packets,
}

impl Unit {
    pub(crate) fn next(self) -> Self {
        match self {
            Self::Bits => Self::Bytes,
            Self::Bytes => Self::Packets,
            Self::Packets => Self::Bits,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bits => "bit/s",
            Self::Bytes => "B/s",
            Self::Packets => "packets/s",
        }
    }

    /// A limit; packets are not limited, so their unit shows bits.
    pub(crate) fn limit(self, limit: Rate) -> String {
        match (self, limit) {
            (Self::Bytes, Rate::BitsPerSecond(bits)) => format!("{}B/s", Scaled(bits as f64 / 8.0)),
            (Self::Bits | Self::Bytes | Self::Packets, limit) => limit.to_string(),
        }
    }

    /// The rate with its unit.
    pub(crate) fn show(self, flow: &Flow) -> String {
        match self {
            Self::Bits => format!("{}bit/s", Scaled(flow.bytes * 8.0)),
            Self::Bytes => format!("{}B/s", Scaled(flow.bytes)),
            Self::Packets => format!("{}/s", Scaled(flow.packets).to_string().trim_end()),
        }
    }
}

/// One direction between two looks; rates are per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) bytes: f64,
    pub(crate) packets: f64,
    pub(crate) drops: f64,
    /// What holds now: the share of the global limit, where there is one.
    pub(crate) limit: Rate,
}

impl Flow {
    fn new(now: &DirectionView, before: Option<&DirectionView>, seconds: f64) -> Self {
        let rate = |value: fn(&DirectionView) -> u64| {
            let now = value(now);
            let Some(before) = before else { return 0.0 };
            // Less than before: the slot is somebody else's now.
            let grown = now.checked_sub(value(before)).unwrap_or(now);
            grown as f64 / seconds
        };
        Self {
            bytes: rate(|view| view.bytes),
            packets: rate(|view| view.packets),
            drops: rate(|view| view.dropped_packets),
            limit: now.share.unwrap_or(now.limit),
        }
    }

    /// How much of the limit is used; 0 without one.
    pub(crate) fn used(&self) -> f64 {
        match self.limit {
            Rate::Unlimited | Rate::BitsPerSecond(0) => 0.0,
            Rate::BitsPerSecond(limit) => self.bytes * 8.0 / limit as f64,
        }
    }
}

/// One user between two looks.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) class: Class,
    pub(crate) up: Flow,
    pub(crate) down: Flow,
    pub(crate) total: u64,
}

impl Row {
    fn new(slot: &SlotView, before: Option<&SlotView>, seconds: f64, realm: Option<&str>) -> Self {
        Self {
            name: slot.full_name(realm),
            class: slot.class,
            up: Flow::new(&slot.up, before.map(|before| &before.up), seconds),
            down: Flow::new(&slot.down, before.map(|before| &before.down), seconds),
            total: slot.up.bytes + slot.down.bytes,
        }
    }

    pub(crate) fn packets(&self) -> f64 {
        self.up.packets + self.down.packets
    }

    pub(crate) fn drops(&self) -> f64 {
        self.up.drops + self.down.drops
    }
}

/// The last two looks, and how they are shown.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) sort: Sort,
    pub(crate) reversed: bool,
    pub(crate) unit: Unit,
    pub(crate) filter: String,
    last: Option<LimitsView>,
    rows: Vec<Row>,
}

impl Model {
    pub(crate) fn new(sort: Sort, unit: Unit, filter: String) -> Self {
        Self {
            sort,
            reversed: false,
            unit,
            filter,
            last: None,
            rows: Vec::new(),
        }
    }

    /// Takes the next look.
    pub(crate) fn add(&mut self, view: LimitsView) {
        let realm = view.realm.as_deref();
        let before = self.last.take();
        let nanoseconds = before.as_ref().map_or(0, |before| {
            view.read_at_ns.saturating_sub(before.read_at_ns)
        });
        let seconds = (nanoseconds as f64 / 1e9).max(1e-3);
        let known: HashMap<(u32, &str), &SlotView> = before
            .iter()
            .flat_map(|before| &before.peers)
            .map(|slot| ((slot.slot, slot.name.as_str()), slot))
            .collect();
        self.rows = view
            .peers
            .iter()
            .map(|slot| {
                let before = known.get(&(slot.slot, slot.name.as_str()));
                Row::new(slot, before.copied(), seconds, realm)
            })
            .collect();
        drop(known);
        self.last = Some(view);
    }

    /// The rows that pass the filter, in order.
    pub(crate) fn rows(&self) -> Vec<&Row> {
        let filter = self.filter.to_lowercase();
        let matches = |row: &&Row| row.name.to_lowercase().contains(&filter);
        let mut rows: Vec<_> = self.rows.iter().filter(matches).collect();
        rows.sort_by(|a, b| {
            let order = self.compare(a, b);
            let order = if self.reversed {
                order.reverse()
            } else {
                order
            };
            order.then_with(|| a.name.cmp(&b.name))
        });
        rows
    }

    /// The larger first; names in their own order.
    fn compare(&self, a: &Row, b: &Row) -> Ordering {
        let by = |value: fn(&Row) -> f64| value(b).total_cmp(&value(a));
        match self.sort {
            Sort::Rate => by(|row| row.up.bytes + row.down.bytes),
            Sort::Up => by(|row| row.up.bytes),
            Sort::Down => by(|row| row.down.bytes),
            Sort::Drops => by(Row::drops),
            Sort::Total => b.total.cmp(&a.total),
            Sort::Name => a.name.cmp(&b.name),
        }
    }

    /// Everything in one line.
    pub(crate) fn summary(&self) -> String {
        let Some(view) = &self.last else {
            return String::new();
        };
        let sum = |value: fn(&Row) -> f64| self.rows.iter().map(value).sum::<f64>();
        let flow = |bytes, packets| Flow {
            bytes,
            packets,
            drops: 0.0,
            limit: Rate::Unlimited,
        };
        let up = flow(sum(|row| row.up.bytes), sum(|row| row.up.packets));
        let down = flow(sum(|row| row.down.bytes), sum(|row| row.down.packets));
        let source = if view.running { "" } else { ", no server runs" };
        format!(
            "{} users{source}; up {}, down {}, {:.0} drops/s; global limit {}",
            view.peers_in_all,
            self.unit.show(&up),
            self.unit.show(&down),
            sum(Row::drops),
            view.global
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use towpath_server::limits::SlotKind;

    use super::*;

    fn direction(bytes: u64, dropped: u64, limit: Rate) -> DirectionView {
        DirectionView {
            limit,
            burst: None,
            share: None,
            packets: bytes / 100,
            bytes,
            payload_bytes: bytes,
            dropped_packets: dropped,
            dropped_bytes: dropped * 100,
            last_seen_ns: 1,
        }
    }

    pub(crate) fn view(seconds: u64, peers: &[(&str, u64, u64, u64)]) -> LimitsView {
        let slot = |(index, (name, up, down, dropped)): (usize, &(&str, u64, u64, u64))| SlotView {
            kind: SlotKind::User,
            realm: Some("a.test".to_owned()),
            name: (*name).to_owned(),
            slot: index as u32 + 8,
            class: Class::Interactive,
            own: Vec::new(),
            by_hand: false,
            up: direction(*up, *dropped, Rate::BitsPerSecond(1_000_000)),
            down: direction(*down, 0, Rate::Unlimited),
        };
        let peers: Vec<_> = peers.iter().enumerate().map(slot).collect();
        LimitsView {
            running: true,
            realm: Some("a.test".to_owned()),
            read_at_ns: seconds * 1_000_000_000,
            default: slot((0, &("default", 0, 0, 0))),
            global: Rate::Unlimited,
            weights: None,
            classes: Vec::new(),
            peers_in_all: peers.len() as u64,
            peers,
        }
    }

    pub(crate) fn model() -> Model {
        let mut model = Model::new(Sort::Rate, Unit::Bits, String::new());
        model.add(view(10, &[("alice", 0, 500, 0), ("Bob", 9_000, 0, 0)]));
        model.add(view(
            12,
            &[("alice", 250_000, 500, 8), ("Bob", 9_000, 200, 0)],
        ));
        model
    }

    fn names(model: &Model) -> Vec<&str> {
        model.rows().iter().map(|row| row.name.as_str()).collect()
    }

    #[test]
    fn rates_are_what_grew_between_two_looks() {
        let model = model();
        let alice = model.rows()[0];
        assert_eq!((alice.up.bytes, alice.down.bytes), (125_000.0, 0.0));
        assert_eq!((alice.drops(), alice.up.used()), (4.0, 1.0));
        assert_eq!(model.unit.show(&alice.up), "1.0 Mbit/s");
        assert_eq!(Unit::Bytes.show(&alice.up), "125.0 kB/s");
        assert_eq!(Unit::Packets.show(&alice.up), "1.2 k/s");
        assert_eq!(Unit::Bytes.limit(alice.up.limit), "125.0 kB/s");
        assert_eq!(Unit::Bits.limit(alice.up.limit), "1Mbit");
        assert_eq!(
            model.summary(),
            "2 users; up 1.0 Mbit/s, down 800 bit/s, 4 drops/s; global limit unlimited"
        );
    }

    #[test]
    fn a_slot_that_changed_hands_counts_from_nothing() {
        let mut model = model();
        model.add(view(13, &[("carol", 100, 0, 0), ("Bob", 100, 0, 0)]));
        let rows = model.rows();
        assert_eq!((rows[0].name.as_str(), rows[0].up.bytes), ("Bob", 100.0));
        assert_eq!((rows[1].name.as_str(), rows[1].up.bytes), ("carol", 0.0));
    }

    #[test]
    fn rows_are_sorted_and_filtered() {
        let mut model = model();
        assert_eq!(names(&model), ["alice", "Bob"]);
        model.sort = Sort::Down;
        assert_eq!(names(&model), ["Bob", "alice"]);
        model.reversed = true;
        assert_eq!(names(&model), ["alice", "Bob"]);
        model.filter = "BO".to_owned();
        assert_eq!(names(&model), ["Bob"]);
    }

    #[test]
    fn every_sort_and_unit_is_reached_by_its_key() {
        let mut sort = Sort::Rate;
        let sorts: Vec<_> = (0..6)
            .map(|_| {
                let next = sort.next();
                std::mem::replace(&mut sort, next)
            })
            .collect();
        assert_eq!(sorts, Sort::ALL);
        assert_eq!(sort, Sort::Rate);
        assert_eq!(Unit::Bits.next().next().next(), Unit::Bits);
    }
}
