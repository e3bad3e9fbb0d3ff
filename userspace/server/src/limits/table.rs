//! Limits in the slots' memory.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use towpath_kernel::{MappedSlots, SlotError};
use towpath_proto::Timestamp;
use towpath_proto::common::meter::{FIRST_PEER_SLOT, Limits, OWN_CLASS, OWN_DOWN, OWN_UP};
use towpath_proto::common::rate::{LimitError, LimitWord};
use towpath_proto::slots::{Identity, PeerSlot, Slot, Slots};

use super::Target;
use super::view::{self, LimitsView, SlotView};
use crate::limit::{Class, Limit, LimitChange, LimitRule};
use crate::units::{Rate, Size};

/// Flag of a slot: its limits were set by `towpath limits`, so that a server which starts leaves them.
/// Beside `OWN_UP`, `OWN_DOWN` and `OWN_CLASS` of the maps' layout.
pub(super) const BY_HAND: u64 = 1 << 8;
/// The flags that say whose the limits are; others are of those who give out slots.
const OURS: u64 = BY_HAND | OWN_UP | OWN_DOWN | OWN_CLASS;
const _: () = assert!(BY_HAND & (OWN_UP | OWN_DOWN | OWN_CLASS) == 0);

/// Reads and changes the limits in slots, whosever memory they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LimitTable<'a> {
    slots: &'a dyn Slots,
    /// The same slots where another process may give them out at the same time.
    maps: Option<&'a MappedSlots>,
    /// The burst of a rate that is set without one where there was none.
    default_burst: Size,
}

/// Why a limit was not set.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum SetError {
    /// A value that cannot be set.
    #[error(transparent)]
    Rule(#[from] LimitRule),
    /// A value that the maps cannot hold.
    #[error("{0}")]
    Word(LimitError),
    /// There is nothing that a burst could belong to.
    #[error("a burst without a rate means nothing: both directions of {0} are unlimited")]
    BurstWithoutRate(String),
    /// Only users are in a class.
    #[error("{0} has no class")]
    NoClass(String),
    /// There is one global rate.
    #[error("the global limit is one rate for both directions")]
    GlobalIsOne,
    /// Nothing to do.
    #[error("nothing to set: name at least one of --up, --down, --burst, --class")]
    Nothing,
    /// All slots are taken.
    #[error("no slot is free: {0} peers are the most (kernel.max_peers)")]
    NoSlot(u32),
    /// The maps refuse.
    #[error("no slot can be had: {0}")]
    Maps(String),
    /// The realm is not known.
    #[error("the realm of {0} is not known without the server: write REALM/{0}")]
    NoRealm(String),
}

impl From<SlotError> for SetError {
    fn from(error: SlotError) -> Self {
        match error {
            SlotError::Full(slots) => Self::NoSlot(slots),
            refused @ SlotError::Refused(_) => Self::Maps(refused.to_string()),
        }
    }
}

impl<'a> LimitTable<'a> {
    /// A view of `slots`.
    pub(crate) fn new(slots: &'a dyn Slots, default_burst: Size) -> Self {
        Self {
            slots,
            maps: None,
            default_burst,
        }
    }

    /// A view of slots that this process does not give out.
    pub(crate) fn of_maps(maps: &'a MappedSlots, default_burst: Size) -> Self {
        Self {
            slots: maps,
            maps: Some(maps),
            default_burst,
        }
    }

    /// Everything, with at most `most` peers. Of a `running` server, or of maps without one.
    pub(crate) fn view(&self, now: Timestamp, running: bool, most: usize) -> LimitsView {
        let mut peers: Vec<_> = self
            .slots
            .identities()
            .iter()
            .filter_map(|(slot, identity)| self.peer(*slot, identity))
            .collect();
        let peers_in_all = peers.len() as u64;
        let first = |a: &SlotView, b: &SlotView| {
            (b.last_seen_ns(), &a.name).cmp(&(a.last_seen_ns(), &b.name))
        };
        if peers.len() > most {
            peers.select_nth_unstable_by(most, first);
            peers.truncate(most);
        }
        peers.sort_unstable_by(first);
        LimitsView {
            running,
            realm: None,
            read_at_ns: now.as_nanos(),
            default: SlotView::of_default(&self.fixed(PeerSlot::DEFAULT)),
            global: self.global(),
            weights: None,
            classes: Class::ALL
                .into_iter()
                .map(|class| SlotView::of_class(class, &self.fixed(class.slot())))
                .collect(),
            peers_in_all,
            peers,
        }
    }

    /// The slots that this names, with their limits and counters.
    pub(crate) fn find(&self, target: &Target) -> Vec<SlotView> {
        match target {
            Target::User { .. } => self
                .slots
                .identities()
                .iter()
                .filter(|(_, identity)| target.names(identity))
                .filter_map(|(slot, identity)| self.peer(*slot, identity))
                .collect(),
            Target::Class(class) => vec![SlotView::of_class(*class, &self.fixed(class.slot()))],
            Target::Default => vec![SlotView::of_default(&self.fixed(PeerSlot::DEFAULT))],
            Target::Global => Vec::new(),
        }
    }

    /// The limit on all together.
    pub(crate) fn global(&self) -> Rate {
        let word = self.slots.global_limit().load(Ordering::Relaxed);
        view::rate(LimitWord::from_bits(word))
    }

    /// Whether this was set by hand.
    pub(crate) fn is_by_hand(&self, target: &Target) -> bool {
        self.slot_of(target)
            .and_then(|slot| self.slots.slot(slot))
            .is_some_and(|slot| flags(&slot) & BY_HAND != 0)
    }

    /// Sets what `change` says and leaves the rest. A user's slot is made where there is none.
    pub(crate) fn set(
        &self,
        now: Timestamp,
        target: &Target,
        change: LimitChange,
        by_hand: bool,
    ) -> Result<(), SetError> {
        change.check()?;
        if change == LimitChange::default() {
            return Err(SetError::Nothing);
        }
        let mark = if by_hand { BY_HAND } else { 0 };
        match target {
            Target::User { .. } => {
                let identity = self.identity(target)?;
                if let Some(maps) = self.maps {
                    let outcome = Cell::new(Ok(()));
                    maps.configure(&identity, |limits| {
                        outcome.set(self.set_slot(limits, target, change, mark));
                    })?;
                    return outcome.into_inner();
                }
                let held = self.slots.acquire(now, &identity);
                let peers = self.slots.len().saturating_sub(FIRST_PEER_SLOT);
                let slot = held.ok_or(SetError::NoSlot(peers))?;
                let outcome = self.set_slot(self.fixed(slot).limits, target, change, mark);
                self.slots.release(now, slot);
                outcome
            }
            Target::Class(class) => {
                self.without_class(target, change)?;
                self.set_slot(self.fixed(class.slot()).limits, target, change, mark)
            }
            Target::Default => {
                self.without_class(target, change)?;
                let limits = self.fixed(PeerSlot::DEFAULT).limits;
                let [up, down] = self.words(limits, target, change)?;
                let word =
                    |new: Option<LimitWord>, up| new.unwrap_or_else(|| view::word(limits, up));
                self.slots.set_defaults(word(up, true), word(down, false));
                limits.flags.fetch_or(mark, Ordering::SeqCst);
                Ok(())
            }
            Target::Global => self.set_global(change, mark),
        }
    }

    /// Takes a limit of one's own away: users follow the default, classes and all together have no
    /// limit, and the default is `default`.
    pub(crate) fn unset(&self, target: &Target, default: Limit) -> Result<(), SetError> {
        match target {
            Target::User { .. } => {
                let identity = self.identity(target)?;
                if let Some(slot) = self.slots.find(&identity) {
                    let defaults = self.fixed(PeerSlot::DEFAULT);
                    let slot = self.fixed(slot);
                    slot.limits.set_up(view::word(defaults.limits, true));
                    slot.limits.set_down(view::word(defaults.limits, false));
                    slot.limits.class.store(0, Ordering::Relaxed);
                    slot.limits.flags.fetch_and(!OURS, Ordering::SeqCst);
                }
            }
            Target::Class(class) => {
                let slot = self.fixed(class.slot());
                slot.limits.set_up(LimitWord::UNLIMITED);
                slot.limits.set_down(LimitWord::UNLIMITED);
                slot.limits.flags.fetch_and(!OURS, Ordering::SeqCst);
            }
            Target::Default => {
                let word = |rate| limit_word(rate, default.burst);
                self.slots
                    .set_defaults(word(default.up)?, word(default.down)?);
                let flags = &self.fixed(PeerSlot::DEFAULT).limits.flags;
                flags.fetch_and(!OURS, Ordering::SeqCst);
            }
            Target::Global => {
                self.slots.set_global(LimitWord::UNLIMITED);
                let flags = &self.fixed(PeerSlot::GLOBAL).limits.flags;
                flags.fetch_and(!OURS, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    fn set_global(&self, change: LimitChange, mark: u64) -> Result<(), SetError> {
        let LimitChange {
            up: Some(rate),
            down: None,
            burst,
            class: None,
        } = change
        else {
            return Err(SetError::GlobalIsOne);
        };
        let word = LimitWord::from_bits(self.slots.global_limit().load(Ordering::Relaxed));
        let burst = burst.unwrap_or_else(|| match word.is_unlimited() {
            true => global_burst(rate),
            false => Size(word.burst_bytes().max(global_burst(rate).0)),
        });
        self.slots.set_global(limit_word(rate, burst)?);
        let flags = &self.fixed(PeerSlot::GLOBAL).limits.flags;
        flags.fetch_or(mark, Ordering::SeqCst);
        Ok(())
    }

    fn set_slot(
        &self,
        limits: &Limits<AtomicU64>,
        target: &Target,
        change: LimitChange,
        mark: u64,
    ) -> Result<(), SetError> {
        let [up, down] = self.words(limits, target, change)?;
        let mut flags = mark;
        if let Some(up) = up {
            limits.set_up(up);
            flags |= OWN_UP;
        }
        if let Some(down) = down {
            limits.set_down(down);
            flags |= OWN_DOWN;
        }
        if let Some(class) = change.class {
            let slot_of_class = u64::from(class.slot().0);
            limits.class.store(slot_of_class, Ordering::Relaxed);
            flags |= OWN_CLASS;
        }
        limits.flags.fetch_or(flags, Ordering::SeqCst);
        Ok(())
    }

    /// The words for up and down that change.
    fn words(
        &self,
        limits: &Limits<AtomicU64>,
        target: &Target,
        change: LimitChange,
    ) -> Result<[Option<LimitWord>; 2], SetError> {
        let before = [true, false].map(|up| view::word(limits, up));
        let asked = [change.up, change.down];
        let burst_before = |index: usize| {
            [before[index], before[1 - index]]
                .into_iter()
                .find(|word| !word.is_unlimited())
                .map(|word| Size(word.burst_bytes()))
        };
        let mut words = [None; 2];
        for (index, word) in words.iter_mut().enumerate() {
            let rate = match asked[index] {
                Some(rate) => rate,
                // A burst alone changes the directions that have a rate.
                None if change.burst.is_some() && !before[index].is_unlimited() => {
                    view::rate(before[index])
                }
                None => continue,
            };
            let burst = change.burst.or_else(|| burst_before(index));
            *word = Some(limit_word(rate, burst.unwrap_or(self.default_burst))?);
        }
        let limits_nothing = words.iter().flatten().all(|word| word.is_unlimited());
        if change.burst.is_some() && limits_nothing {
            return Err(SetError::BurstWithoutRate(target.to_string()));
        }
        Ok(words)
    }

    fn without_class(&self, target: &Target, change: LimitChange) -> Result<(), SetError> {
        match change.class {
            None => Ok(()),
            Some(_) => Err(SetError::NoClass(target.to_string())),
        }
    }

    fn slot_of(&self, target: &Target) -> Option<PeerSlot> {
        let of_user = || self.slots.find(&target.identity(None)?);
        target.fixed_slot().or_else(of_user)
    }

    /// `target` with its realm: where none is named, the only one that any peer has.
    pub(crate) fn resolved(&self, target: &Target) -> Result<Target, SetError> {
        let Target::User { realm: None, name } = target else {
            return Ok(target.clone());
        };
        let no_realm = || SetError::NoRealm(target.to_string());
        let known = self.slots.identities();
        let mut realms: Vec<_> = known
            .iter()
            .map(|(_, identity)| identity.realm())
            .filter(|realm| !realm.is_empty())
            .collect();
        realms.sort_unstable();
        realms.dedup();
        match realms.as_slice() {
            [only] => Ok(Target::User {
                realm: Some((*only).to_owned()),
                name: name.clone(),
            }),
            _ => Err(no_realm()),
        }
    }

    /// The identity of a user.
    fn identity(&self, target: &Target) -> Result<Identity, SetError> {
        let no_realm = || SetError::NoRealm(target.to_string());
        self.resolved(target)?.identity(None).ok_or_else(no_realm)
    }

    fn peer(&self, slot: PeerSlot, identity: &Identity) -> Option<SlotView> {
        let memory = self.slots.slot(slot)?;
        Some(SlotView::of_peer(slot, identity, &memory))
    }

    /// A slot that every set of slots has, or that was just acquired.
    fn fixed(&self, slot: PeerSlot) -> Slot<'a> {
        self.slots.slot(slot).expect("such a slot is there")
    }
}

fn flags(slot: &Slot<'_>) -> u64 {
    slot.limits.flags.load(Ordering::Relaxed)
}

/// The word of a rate with a burst.
fn limit_word(rate: Rate, burst: Size) -> Result<LimitWord, SetError> {
    match rate {
        Rate::Unlimited => Ok(LimitWord::UNLIMITED),
        Rate::BitsPerSecond(bits) => LimitWord::new(bits, burst.0).map_err(SetError::Word),
    }
}

/// The burst of the global limit: 20 ms of it, which is how often shares are made anew, and no less
/// than what many peers need at once.
fn global_burst(rate: Rate) -> Size {
    const MIN: u64 = 256 << 10;
    let bits = rate.bits_per_second().unwrap_or(0);
    Size((bits / 8 / 50).clamp(MIN, crate::limit::MAX_BURST))
}

#[cfg(test)]
mod tests;
