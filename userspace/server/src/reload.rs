//! Reading the configuration again while the server runs: all of it is checked before anything changes,
//! and what changes does so in all shards by one event.
//!
//! ```text
//!   file, environment ─▶ Config ─▶ RelayConfig ─▶ shards
//!                          │    └▶ limits and strangers in the kernel's maps
//!                       wrong: nothing changes
//! ```

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use towpath_proto::relay::RelayConfigError;

use crate::clock;
use crate::config::{Config, ConfigSource, ReadError, Sections};
use crate::generated::GeneratedUser;
use crate::limits::LimitKeeper;
use crate::plan::{self, Note};
use crate::shard_config::ShardConfig;
use crate::vitals::{InForce, Vitals};

/// What reading the configuration again changed, by key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Reloaded {
    /// What holds from now on.
    pub applied: Vec<String>,
    /// What has another value in the configuration than in force, and needs a restart.
    pub needs_restart: Vec<String>,
}

/// Why nothing was changed.
#[derive(thiserror::Error, Debug)]
pub(crate) enum ReloadError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the running relay refuses this configuration: {0}")]
    Relay(#[from] RelayConfigError),
}

/// What it takes to read the configuration again.
#[derive(Debug)]
pub(crate) struct Reloader {
    pub(crate) source: ConfigSource,
    /// What is in force.
    pub(crate) sections: Sections,
    pub(crate) limits: Arc<LimitKeeper>,
    pub(crate) vitals: Arc<Vitals>,
    /// What the start found that no reading changes.
    pub(crate) notes: Vec<Note>,
}

impl Reloader {
    /// Reads it, and says in the log what came of it. `generated` is a user besides those it names.
    pub(crate) fn reload(
        &mut self,
        shards: &mut ShardConfig,
        generated: Option<&GeneratedUser>,
    ) -> Result<Reloaded, ReloadError> {
        let outcome = self.try_reload(shards, generated);
        match &outcome {
            Ok(Reloaded {
                applied,
                needs_restart,
            }) => {
                let relay = shards.relay();
                tracing::info!(
                    applied = or_nothing(applied),
                    users = relay.users.len(),
                    rest_secrets = relay.users.rest_secrets().len(),
                    "configuration reloaded"
                );
                if !needs_restart.is_empty() {
                    tracing::warn!("needs a restart: {}", needs_restart.join(", "));
                }
            }
            Err(error) => {
                tracing::error!("the configuration was not reloaded, nothing changed: {error}");
            }
        }
        outcome
    }

    fn try_reload(
        &mut self,
        shards: &mut ShardConfig,
        generated: Option<&GeneratedUser>,
    ) -> Result<Reloaded, ReloadError> {
        let config = self.source.load()?;
        let realm = config.relay.realm.clone();
        let generated = generated.map(|user| (user.name.as_str(), user.credential(&realm)));
        let relay = Arc::new(plan::reconfigured(shards.relay(), &config, generated)?);
        log_warnings(&config);
        let strangers = config.limits.relay.strangers;
        let changes = self.sections.take_over(config);
        shards.replace(Arc::clone(&relay));
        self.vitals.kernel.set_strangers(&strangers);
        let limits = self.sections.limits.clone();
        self.limits.reconfigure(clock::now(), limits, realm);
        let mut notes = self.notes.clone();
        if plan::has_no_users(&relay) {
            tracing::warn!("{}", Note::NoUsers);
            notes.push(Note::NoUsers);
        }
        if !changes.needs_restart.is_empty() {
            notes.push(Note::NeedsRestart(changes.needs_restart.clone()));
        }
        let notes = notes.iter().map(ToString::to_string).collect();
        self.vitals.put_in_force(InForce { relay, notes });
        let names = |keys: Vec<&str>| keys.into_iter().map(str::to_owned).collect();
        Ok(Reloaded {
            applied: names(changes.applied),
            needs_restart: names(changes.needs_restart),
        })
    }
}

/// Says what is allowed but deserves a look.
pub(crate) fn log_warnings(config: &Config) {
    for warning in &config.warnings {
        tracing::warn!(line = warning.excerpt.line_number, "{}", warning.kind);
    }
}

fn or_nothing(keys: &[String]) -> String {
    match keys {
        [] => "nothing".to_owned(),
        keys => keys.join(", "),
    }
}
