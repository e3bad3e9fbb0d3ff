//! What slots say, in words and numbers of this program: for JSON, tables and the terminal.

use serde::{Deserialize, Serialize};
use towpath_proto::common::meter::{Direction, Limits};
use towpath_proto::common::rate::LimitWord;
use towpath_proto::slots::{Identity, IdentityKind, PeerSlot, Slot, class_of};

use std::sync::atomic::{AtomicU64, Ordering};

use crate::limit::{Class, ClassWeights, LimitChange};
use crate::limits::Target;
use crate::units::{Rate, Size};

/// Everything that is limited and counted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LimitsView {
    /// Whether a running server gave this, or the pinned maps.
    pub running: bool,
    /// The server's realm, where a server gave this.
    pub realm: Option<String>,
    /// CLOCK_MONOTONIC when this was read.
    pub read_at_ns: u64,
    /// The limit of users without their own.
    pub default: SlotView,
    /// The limit of all together; its counters are the classes' to give.
    pub global: Rate,
    /// How the classes share the global limit, where a server gave this.
    pub weights: Option<ClassWeights>,
    /// The classes: limits and counters of all their users together.
    pub classes: Vec<SlotView>,
    /// Peers there are.
    pub peers_in_all: u64,
    /// Peers, the last active first; fewer than there are where that was asked for.
    pub peers: Vec<SlotView>,
}

/// What a slot is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotKind {
    /// A user of a realm.
    User,
    /// A single allocation.
    Allocation,
    /// A node.
    Peer,
    /// A class.
    Class,
    /// Users without a limit of their own.
    Default,
}

/// One slot.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SlotView {
    /// What it is for.
    pub kind: SlotKind,
    /// The user's realm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub realm: Option<String>,
    /// The name; one that is longer than what the maps hold ends with "…".
    pub name: String,
    /// The number of the slot, by which the maps are read.
    pub slot: u32,
    /// The class.
    pub class: Class,
    /// What was set for this very one: "up", "down", "class".
    pub own: Vec<String>,
    /// Whether that was done by `towpath limits`, and not by the configuration.
    pub by_hand: bool,
    /// From the client.
    pub up: DirectionView,
    /// To the client.
    pub down: DirectionView,
}

/// One direction of a slot.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct DirectionView {
    /// The rate that is set.
    pub limit: Rate,
    /// The burst; none without a rate.
    pub burst: Option<Size>,
    /// What is granted of the rate while the global limit is reached.
    pub share: Option<Rate>,
    /// Packets that passed.
    pub packets: u64,
    /// Bytes that passed, IP and UDP headers included.
    pub bytes: u64,
    /// Bytes of payload that passed.
    pub payload_bytes: u64,
    /// Packets dropped over the limit.
    pub dropped_packets: u64,
    /// Bytes dropped over the limit, headers included.
    pub dropped_bytes: u64,
    /// CLOCK_MONOTONIC of the last packet that passed; 0: there was none.
    pub last_seen_ns: u64,
}

impl SlotView {
    /// The slot of a peer.
    pub fn of_peer(slot: PeerSlot, identity: &Identity, memory: &Slot<'_>) -> Self {
        let kind = match identity.kind() {
            IdentityKind::User => SlotKind::User,
            IdentityKind::Allocation => SlotKind::Allocation,
            IdentityKind::PeerId => SlotKind::Peer,
        };
        let realm = (!identity.realm().is_empty()).then(|| identity.realm().to_owned());
        Self::new(kind, realm, identity.to_string(), slot, memory)
    }

    pub(super) fn of_class(class: Class, memory: &Slot<'_>) -> Self {
        let name = format!("class:{class}");
        let mut view = Self::new(SlotKind::Class, None, name, class.slot(), memory);
        view.class = class;
        view
    }

    pub(super) fn of_default(memory: &Slot<'_>) -> Self {
        let name = "default".to_owned();
        Self::new(SlotKind::Default, None, name, PeerSlot::DEFAULT, memory)
    }

    fn new(
        kind: SlotKind,
        realm: Option<String>,
        name: String,
        slot: PeerSlot,
        memory: &Slot<'_>,
    ) -> Self {
        let limits = memory.limits;
        let flags = limits.flags.load(Ordering::Relaxed);
        Self {
            kind,
            realm,
            name,
            slot: slot.0,
            class: class_of(limits).into(),
            own: own(flags),
            by_hand: flags & super::table::BY_HAND != 0,
            up: DirectionView::new(&limits.up, &limits.up_share, &memory.meter.up),
            down: DirectionView::new(&limits.down, &limits.down_share, &memory.meter.down),
        }
    }

    /// The name with its realm, where that is not `realm`.
    pub fn full_name(&self, realm: Option<&str>) -> String {
        match self.realm.as_deref() {
            Some(own) if Some(own) != realm => format!("{own}/{}", self.name),
            Some(_) | None => self.name.clone(),
        }
    }

    /// What was set for this very one.
    pub fn own_limits(&self) -> LimitChange {
        let own = |name| self.own.iter().any(|own| own == name);
        LimitChange {
            up: own("up").then_some(self.up.limit),
            down: own("down").then_some(self.down.limit),
            burst: [(own("up"), self.up.burst), (own("down"), self.down.burst)]
                .into_iter()
                .find_map(|(own, burst)| burst.filter(|_| own)),
            class: own("class").then_some(self.class),
        }
    }

    /// CLOCK_MONOTONIC of the last packet in either direction.
    pub fn last_seen_ns(&self) -> u64 {
        self.up.last_seen_ns.max(self.down.last_seen_ns)
    }
}

fn own(flags: u64) -> Vec<String> {
    use towpath_proto::common::meter::{OWN_CLASS, OWN_DOWN, OWN_UP};
    [(OWN_UP, "up"), (OWN_DOWN, "down"), (OWN_CLASS, "class")]
        .into_iter()
        .filter(|(flag, _)| flags & flag != 0)
        .map(|(_, name)| name.to_owned())
        .collect()
}

impl DirectionView {
    fn new(limit: &AtomicU64, share: &AtomicU64, meter: &Direction<AtomicU64>) -> Self {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let limit = LimitWord::from_bits(load(limit));
        let share = LimitWord::from_bits(load(share));
        Self {
            limit: rate(limit),
            burst: (!limit.is_unlimited()).then(|| Size(limit.burst_bytes())),
            share: (share.to_bits() != 0).then(|| rate(share)),
            packets: load(&meter.packets),
            bytes: load(&meter.bytes),
            payload_bytes: load(&meter.payload_bytes),
            dropped_packets: load(&meter.dropped_packets),
            dropped_bytes: load(&meter.dropped_bytes),
            last_seen_ns: load(&meter.last_seen),
        }
    }
}

/// The rate of a word, as it was most likely asked for: rounded to six digits where the word stands
/// for no other number of them.
pub(super) fn rate(word: LimitWord) -> Rate {
    let Some(rate) = word.bits_per_second() else {
        return Rate::Unlimited;
    };
    let mut unit = 1_u64;
    while rate / unit >= 1_000_000 {
        unit *= 10;
    }
    let rounded = (rate + unit / 2) / unit * unit;
    let same = LimitWord::new(rounded, word.burst_bytes().max(LimitWord::MIN_BURST_BYTES))
        .is_ok_and(|other| other.to_bits() >> 32 == word.to_bits() >> 32);
    Rate::BitsPerSecond(if same { rounded } else { rate })
}

/// The bytes that a limit's counters are read from besides.
pub(super) fn word(limits: &Limits<AtomicU64>, up: bool) -> LimitWord {
    let word = if up { &limits.up } else { &limits.down };
    LimitWord::from_bits(word.load(Ordering::Relaxed))
}

/// What is asked of a running server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Whom it is for.
    pub target: Target,
    /// What to set; `None`: back to what the configuration says.
    pub set: Option<LimitChange>,
}

/// What a change came to.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Changed {
    /// What is in force now; none for the global limit and for a user who has no slot.
    pub slot: Option<SlotView>,
    /// The global limit in force now.
    pub global: Rate,
    /// Whether it outlives a restart of the machine.
    pub kept: bool,
    /// Why it does not, although it should.
    pub trouble: Option<String>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rates_that_people_write_are_shown_as_written(digits in 1..1_000_000_u64, zeros in 0..6_u32) {
            let bits = digits * 10_u64.pow(zeros);
            if let Ok(word) = LimitWord::new(bits, 1 << 18) {
                prop_assert_eq!(rate(word), Rate::BitsPerSecond(bits));
            }
        }

        #[test]
        fn a_rate_that_is_shown_means_the_same_word(
            bits in LimitWord::MIN_BITS_PER_SECOND..=LimitWord::MAX_BITS_PER_SECOND
        ) {
            let word = LimitWord::new(bits, 1 << 18).unwrap();
            let shown = rate(word).bits_per_second().unwrap();
            prop_assert_eq!(LimitWord::new(shown, 1 << 18).unwrap(), word);
        }
    }
}
