//! The section `[auth]`: users, and the secrets behind time-limited credentials.

use std::collections::BTreeMap;

use toml::Spanned;
use towpath_proto::credentials::check_username;
use towpath_proto::relay::{Credential, RestSecret, Users};

use super::{Checker, realm_rule};
use crate::config::AuthSection;
use crate::config::credential::{SecretError, UserSecret};
use crate::config::error::{Problem, WarningKind};
use crate::config::shape::AuthShape;

/// The most users.
pub const MAX_USERS: usize = 100_000;

/// Who has one credential can try secrets on it without asking anybody: shorter ones are warned about.
const SHORT_REST_SECRET_BYTES: usize = 16;

impl Checker<'_> {
    pub(super) fn auth(&mut self, shape: AuthShape, realm: &str) -> AuthSection {
        AuthSection {
            users: self.users(shape.users, realm),
            rest_secrets: self.rest_secrets(shape.rest_secrets),
        }
    }

    fn rest_secrets(&mut self, list: Vec<Spanned<String>>) -> Vec<RestSecret> {
        const KEY: &str = "auth.rest_secrets";
        if let Some(first) = list.first() {
            self.limit(KEY, first.span(), list.len(), Users::MAX_REST_SECRETS);
        }
        let mut secrets = Vec::new();
        for text in list.into_iter().take(Users::MAX_REST_SECRETS) {
            match RestSecret::new(text.get_ref()) {
                Ok(secret) if secrets.contains(&secret) => {
                    self.error(text.span(), Problem::RestSecretTwice);
                }
                Ok(secret) => {
                    let bytes = secret.bytes();
                    if bytes < SHORT_REST_SECRET_BYTES {
                        self.warn(text.span(), WarningKind::ShortRestSecret { bytes });
                    }
                    secrets.push(secret);
                }
                Err(error) => self.error(text.span(), Problem::RestSecret(error)),
            }
        }
        secrets
    }

    fn users(
        &mut self,
        shape: BTreeMap<Spanned<String>, Spanned<String>>,
        realm: &str,
    ) -> BTreeMap<String, Credential> {
        if let Some(first) = shape.keys().next() {
            self.limit("auth.users", first.span(), shape.len(), MAX_USERS);
        }
        let mut users = BTreeMap::new();
        for (name, secret) in shape {
            let user = name.get_ref().clone();
            if let Err(error) = check_username(&user) {
                self.error(name.span(), Problem::UserName { name: user, error });
                continue;
            }
            let parsed: Result<UserSecret, _> = secret.get_ref().parse();
            if let Ok(UserSecret::Plain(_)) = parsed {
                self.warn(
                    name.span(),
                    WarningKind::PlainPassword { user: user.clone() },
                );
            }
            match parsed.and_then(|secret| secret.into_credential(&user, realm)) {
                Ok(credential) => {
                    if credential.sha256.is_none() {
                        let user = user.clone();
                        self.warn(name.span(), WarningKind::NoSha256Key { user });
                    }
                    users.insert(user, credential);
                }
                // A wrong realm is reported once, where it stands.
                Err(SecretError::Credential(_)) if realm_rule(realm).is_err() => {}
                Err(error) => self.error(secret.span(), Problem::UserSecret { user, error }),
            }
        }
        users
    }
}
