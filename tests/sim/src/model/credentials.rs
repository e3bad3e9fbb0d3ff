//! Who a request is from: users by name or by its hash, and time-limited usernames.

use std::time::Duration;

use towpath_proto::Timestamp;

use super::requests::{algorithm, verify_by};
use super::{Model, Rules};
use crate::stun::{self, Parsed, attribute};

/// Who a request says that it is from.
#[derive(Debug)]
pub(super) struct Claim {
    /// The username, as it goes into the key.
    name: String,
    /// Who is meant by it.
    pub(super) user: String,
    /// Passwords that it may have: of a time-limited username, with the secret of each.
    passwords: Vec<(String, Option<String>)>,
    /// Of a time-limited username, when it ends, in seconds of Unix time.
    ends_unix_s: Option<u64>,
}

/// A time-limited credential that an allocation was made or refreshed with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct TimeLimit {
    secret: String,
    ends_unix_s: u64,
}

impl Claim {
    /// Which of the passwords signed the message.
    fn password(&self, message: &Parsed, algorithm: u16, realm: &str) -> Option<usize> {
        let signed = |(password, _): &(String, Option<String>)| {
            verify_by(message, algorithm, &self.name, realm, password)
        };
        self.passwords.iter().position(signed)
    }

    /// Whether one of the passwords signed the message.
    pub(super) fn signed(&self, message: &Parsed, algorithm: u16, realm: &str) -> bool {
        self.password(message, algorithm, realm).is_some()
    }
}

impl Rules {
    /// When a second of Unix time begins.
    fn at_unix(&self, unix_s: u64) -> Timestamp {
        let (now, unix_now_s) = self.wall;
        if unix_s < unix_now_s {
            now - Duration::from_secs(unix_now_s - unix_s)
        } else {
            now + Duration::from_secs(unix_s - unix_now_s)
        }
    }

    /// Who a request says that it is from, where there may be such a user.
    pub(super) fn claim(&self, request: &Parsed) -> Option<Claim> {
        let name = match request.find(attribute::USERNAME) {
            Some(name) => String::from_utf8(name.to_vec()).ok()?,
            None => {
                let hash = request.find(attribute::USERHASH)?;
                let is_meant = |name: &&String| stun::userhash(name, &self.realm) == hash;
                self.users.keys().find(is_meant)?.clone()
            }
        };
        if let Some(password) = self.users.get(&name) {
            return Some(Claim {
                user: name.clone(),
                name,
                passwords: vec![(password.clone(), None)],
                ends_unix_s: None,
            });
        }
        let (end, user) = name.split_once(':')?;
        if end.is_empty() || !end.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let with = |secret: &String| (stun::rest_password(secret, &name), Some(secret.clone()));
        Some(Claim {
            user: user.to_owned(),
            passwords: self.secrets.iter().map(with).collect(),
            ends_unix_s: Some(end.parse().ok()?),
            name: name.clone(),
        })
    }

    /// Whether the claim has ended at `now`; one that ends in less than a second has.
    pub(super) fn has_ended(&self, now: Timestamp, claim: &Claim) -> bool {
        let end = claim.ends_unix_s.map(|end| self.at_unix(end));
        end.is_some_and(|end| now + Duration::from_secs(1) > end)
    }

    /// So much of a lifetime as the credential of a request lasts for.
    pub(super) fn within(&self, now: Timestamp, request: &Parsed, lifetime: Duration) -> Duration {
        let end = self.claim(request).and_then(|claim| claim.ends_unix_s);
        end.map_or(lifetime, |end| {
            lifetime.min(self.at_unix(end).saturating_since(now))
        })
    }

    /// The time-limited credential of a request.
    pub(super) fn time_limit(&self, request: &Parsed) -> Option<TimeLimit> {
        let claim = self.claim(request)?;
        let place = claim.password(request, algorithm(request), &self.realm)?;
        Some(TimeLimit {
            secret: claim.passwords[place].1.clone()?,
            ends_unix_s: claim.ends_unix_s?,
        })
    }

    /// When a credential ends by these rules: at once where its secret is gone.
    pub(super) fn end_of(&self, now: Timestamp, limit: &TimeLimit) -> Timestamp {
        if self.secrets.contains(&limit.secret) {
            self.at_unix(limit.ends_unix_s)
        } else {
            now
        }
    }
}

impl Model {
    /// The relay's clock of the day is set: what time-limited credentials made ends by the new one.
    pub fn set_clock(&mut self, now: Timestamp, unix_s: u64) {
        self.rules.wall = (now, unix_s);
        for allocation in self.allocations.values_mut() {
            if let Some(limit) = &allocation.time_limit {
                let end = self.rules.end_of(now, limit);
                for address in &mut allocation.addresses {
                    address.expires = address.expires.min(end);
                }
            }
        }
    }
}
