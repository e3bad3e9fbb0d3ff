//! The limits of a running server: what the configuration says, what is kept, what is in force.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towpath_proto::Timestamp;
use towpath_proto::bandwidth::{self, Adaptation, Sharing};
use towpath_proto::slots::{IdentityKind, Slots};

use super::Target;
use super::kept::{KeptError, KeptFile, KeptLimits};
use super::table::{LimitTable, SetError};
use super::totals::{ClassTotals, Totals};
use super::view::{Change, Changed, LimitsView, SlotView};
use crate::config::LimitsSection;
use crate::limit::{Class, ClassWeights, LimitChange};
use crate::units::Rate;

/// Changes limits for whoever asks on the control socket, and keeps them where that is configured.
#[derive(Debug)]
pub(crate) struct LimitKeeper {
    slots: Arc<dyn Slots>,
    file: KeptFile,
    state: Mutex<State>,
    totals: Mutex<ClassTotals>,
    shares: AtomicU64,
    /// Whether the weights of classes are others than the adaptation was told.
    reweighed: AtomicBool,
}

#[derive(Debug)]
struct State {
    realm: String,
    section: LimitsSection,
    kept: KeptLimits,
    /// Why the file is neither read nor written.
    broken: Option<KeptError>,
}

impl LimitKeeper {
    /// Puts the limits in force: what is configured, above it what is kept; what was set by hand and
    /// is in the slots still stays.
    pub(crate) fn start(
        now: Timestamp,
        slots: Arc<dyn Slots>,
        section: LimitsSection,
        realm: String,
        file: KeptFile,
    ) -> Self {
        let (kept, broken) = match section.persist.then(|| file.read()).transpose() {
            Ok(kept) => (kept.flatten().unwrap_or_default(), None),
            Err(error) => {
                tracing::error!("the limits that were kept are not in force: {error}");
                (KeptLimits::default(), Some(error))
            }
        };
        let keeper = Self {
            slots,
            file,
            state: Mutex::new(State {
                realm,
                section,
                kept,
                broken,
            }),
            totals: Mutex::default(),
            shares: AtomicU64::new(0),
            reweighed: AtomicBool::new(false),
        };
        keeper.apply(now);
        keeper
    }

    /// Puts the limits of another section in force, in this realm from now on. What was set by hand stays;
    /// whether that is kept is as it was at the start.
    pub(crate) fn reconfigure(&self, now: Timestamp, section: LimitsSection, realm: String) {
        {
            let mut state = self.state();
            let old = &state.section;
            let section = LimitsSection {
                persist: old.persist,
                ..section
            };
            let is_same = (old.default, old.global, old.classes)
                == (section.default, section.global, section.classes)
                && old.users == section.users
                && state.realm == realm;
            state.section = section;
            state.realm = realm;
            // A limit that is put in force again is lifted for a moment.
            if is_same {
                return;
            }
        }
        self.reweighed.store(true, Ordering::Relaxed);
        self.apply(now);
    }

    /// Begins to share the global limit out.
    pub(crate) fn adaptation(&self) -> Adaptation {
        Adaptation::new(self.sharing())
    }

    fn sharing(&self) -> Sharing {
        let ClassWeights {
            control,
            interactive,
            bulk,
        } = self.state().section.classes;
        Sharing {
            weights: [control, interactive, bulk],
            ..Sharing::default()
        }
    }

    /// Gives peers their shares, and remembers how many have one.
    pub(crate) fn share(&self, now: Timestamp, adaptation: &mut Adaptation) {
        if self.reweighed.swap(false, Ordering::Relaxed) {
            adaptation.set_sharing(self.sharing());
        }
        let flows = match adaptation.step(now, &*self.slots) {
            bandwidth::State::Open => 0,
            bandwidth::State::Shared { flows } => flows as u64,
        };
        let before = self.shares.swap(flows, Ordering::Relaxed);
        match (before, flows) {
            (0, 1..) => tracing::debug!(flows, "the global limit is reached and shared out"),
            (1.., 0) => tracing::debug!("the global limit is not reached any more"),
            _ => {}
        }
    }

    /// How many directions of peers have a share of the global limit now; 0 while it is not reached.
    pub(crate) fn shares(&self) -> u64 {
        self.shares.load(Ordering::Relaxed)
    }

    /// The limit on all together.
    pub(crate) fn global(&self) -> Rate {
        self.table(&self.state()).global()
    }

    /// What is limited and counted, with at most `most` peers.
    pub(crate) fn view(&self, now: Timestamp, most: usize) -> LimitsView {
        let state = self.state();
        LimitsView {
            realm: Some(state.realm.clone()),
            weights: Some(state.section.classes),
            ..self.table(&state).view(now, true, most)
        }
    }

    /// What peers did in all, and the `most` who did the most.
    pub(crate) fn totals(&self, most: usize) -> Totals {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.take(&*self.slots, most)
    }

    /// The slots that this names.
    pub(crate) fn find(&self, target: &Target) -> Vec<SlotView> {
        let state = self.state();
        self.table(&state).find(&state.resolved(target))
    }

    /// Does what is asked, at once; then keeps it.
    pub(crate) fn change(&self, now: Timestamp, change: &Change) -> Result<Changed, SetError> {
        let mut state = self.state();
        let target = state.resolved(&change.target);
        match change.set {
            Some(set) => self.table(&state).set(now, &target, set, true)?,
            None => {
                state.put_kept(&target, None);
                self.put_in_force(now, &state, &target)?;
            }
        }
        let (kept, trouble) = self.keep(&mut state, &target, change.set);
        let table = self.table(&state);
        Ok(Changed {
            slot: table.find(&target).into_iter().next(),
            global: table.global(),
            kept,
            trouble: trouble.map(|error| error.to_string()),
        })
    }

    /// Notes a change and writes the file; says whether it outlives a restart, and why not.
    fn keep(
        &self,
        state: &mut State,
        target: &Target,
        set: Option<LimitChange>,
    ) -> (bool, Option<KeptError>) {
        if !state.section.persist {
            return (false, None);
        }
        if let Some(broken) = &state.broken {
            return (false, Some(broken.clone()));
        }
        state.put_kept(target, set);
        match self.file.write(&state.kept) {
            Ok(()) => (true, None),
            Err(error) => (false, Some(error)),
        }
    }

    fn apply(&self, now: Timestamp) {
        let mut state = self.state();
        if state.section.persist && state.broken.is_none() {
            self.keep_what_was_set_by_hand(&mut state);
        }
        let table = self.table(&state);
        let fixed = [Target::Default, Target::Global].into_iter();
        let mut targets: BTreeSet<Target> = fixed.chain(Class::ALL.map(Target::Class)).collect();
        targets.extend(state.section.users.keys().map(|name| state.user(name)));
        targets.extend(state.kept.entries().into_iter().map(|(target, _)| target));
        // Those whom an earlier configuration limited.
        targets.extend(self.limited_users());
        // Defaults come first, for users follow them.
        let mut targets: Vec<_> = targets.into_iter().collect();
        targets.sort_by_key(|target| matches!(target, Target::User { .. }));
        for target in targets {
            if table.is_by_hand(&target) {
                continue;
            }
            if let Err(error) = self.put_in_force(now, &state, &target) {
                tracing::error!(%target, "a limit is not in force: {error}");
            }
        }
    }

    /// What was set on the maps while no server ran outlives their end from now on, too.
    fn keep_what_was_set_by_hand(&self, state: &mut State) {
        let table = self.table(state);
        let fixed = [Target::Default, Target::Global].into_iter();
        let targets = fixed
            .chain(Class::ALL.map(Target::Class))
            .chain(self.limited_users());
        let mut kept = state.kept.clone();
        for target in targets.filter(|target| table.is_by_hand(target)) {
            let change = match table.find(&target).first() {
                Some(slot) => slot.own_limits(),
                None => LimitChange {
                    up: Some(table.global()),
                    ..LimitChange::default()
                },
            };
            kept.put(&target, &state.realm, Some(change));
        }
        if kept != state.kept {
            if let Err(error) = self.file.write(&kept) {
                tracing::error!("limits that were set by hand are not kept: {error}");
            }
            state.kept = kept;
        }
    }

    /// Users whose slot has limits of its own.
    fn limited_users(&self) -> Vec<Target> {
        let limited = self.slots.identities().into_iter().filter(|(slot, _)| {
            let slot = self.slots.slot(*slot);
            slot.is_some_and(|slot| slot.has_own_limits())
        });
        limited
            .map(|(_, identity)| identity)
            .filter(|identity| identity.kind() == IdentityKind::User && !identity.is_truncated())
            .map(|identity| Target::User {
                realm: Some(identity.realm().to_owned()),
                name: identity.name().to_owned(),
            })
            .collect()
    }

    /// Has `target` what the configuration and the file say.
    fn put_in_force(&self, now: Timestamp, state: &State, target: &Target) -> Result<(), SetError> {
        let table = self.table(state);
        let nothing = LimitChange::default();
        let configured = match target {
            Target::User { realm, name } if realm.as_deref() == Some(&*state.realm) => {
                state.section.users.get(name).copied()
            }
            Target::Global => match state.section.global {
                Rate::Unlimited => None,
                rate @ Rate::BitsPerSecond(_) => Some(LimitChange {
                    up: Some(rate),
                    ..nothing
                }),
            },
            Target::User { .. } | Target::Class(_) | Target::Default => None,
        };
        table.unset(target, state.section.default)?;
        for (change, by_hand) in [
            (configured, false),
            (state.kept.get(target, &state.realm), true),
        ] {
            let Some(change) = change.filter(|change| *change != nothing) else {
                continue;
            };
            // A burst may stand in the configuration for rates that are set later.
            let set = table.set(now, target, change, by_hand);
            match set {
                Ok(()) | Err(SetError::BurstWithoutRate(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn table(&self, state: &State) -> LimitTable<'_> {
        LimitTable::new(&*self.slots, state.section.default.burst)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn user(&self, name: &str) -> Target {
        Target::User {
            realm: Some(self.realm.clone()),
            name: name.to_owned(),
        }
    }

    /// `target` with the server's realm where none is named.
    fn resolved(&self, target: &Target) -> Target {
        match target {
            Target::User { realm: None, name } => self.user(name),
            other => other.clone(),
        }
    }

    fn put_kept(&mut self, target: &Target, set: Option<LimitChange>) {
        self.kept.put(target, &self.realm, set);
    }
}

#[cfg(test)]
mod tests;
