//! The rules of `[limits]`.

use std::collections::BTreeMap;

use toml::Spanned;
use towpath_proto::credentials::check_username;

use super::Checker;
use crate::config::error::{Problem, WarningKind};
use crate::config::shape::{ClassesShape, LimitsShape, UserLimitShape};
use crate::config::{AuthSection, LimitsSection};
use crate::limit::{self, Class, ClassWeights, Limit, LimitChange, LimitRule};
use crate::units::{Rate, Size, UnitError};

/// The most users with a limit of their own in the configuration.
const MAX_LIMITED_USERS: usize = super::MAX_USERS;

impl Checker<'_> {
    pub(super) fn limits(&mut self, mut shape: LimitsShape, auth: &AuthSection) -> LimitsSection {
        let relay = self.quotas(&mut shape);
        let default = LimitChange {
            up: self.rate("limits.default: up", shape.default.up),
            down: self.rate("limits.default: down", shape.default.down),
            burst: self.burst("limits.default: burst", shape.default.burst),
            class: None,
        };
        LimitsSection {
            default: default.over(Limit::default()),
            users: self.user_limits(shape.users, auth),
            global: self
                .rate("limits.global", shape.global)
                .unwrap_or(Rate::Unlimited),
            classes: self.weights(shape.classes),
            persist: shape.persist.unwrap_or(false),
            relay,
        }
    }

    fn user_limits(
        &mut self,
        shape: BTreeMap<Spanned<String>, UserLimitShape>,
        auth: &AuthSection,
    ) -> BTreeMap<String, LimitChange> {
        const KEY: &str = "limits.users";
        if let Some(first) = shape.keys().next() {
            self.limit(KEY, first.span(), shape.len(), MAX_LIMITED_USERS);
        }
        let mut limits = BTreeMap::new();
        for (name, values) in shape {
            let user = name.get_ref().clone();
            if let Err(error) = check_username(&user) {
                let problem = Problem::LimitUserName { name: user, error };
                self.error(name.span(), problem);
                continue;
            }
            // With a shared secret users are named elsewhere.
            if !auth.users.contains_key(&user) && auth.rest_secrets.is_empty() {
                let user = user.clone();
                self.warn(name.span(), WarningKind::LimitOfNobody { user });
            }
            let key = |value: &str| format!("{KEY}: {user:?}: {value}");
            let change = LimitChange {
                up: self.rate(key("up"), values.up),
                down: self.rate(key("down"), values.down),
                burst: self.burst(key("burst"), values.burst),
                class: self.class(key("class"), values.class),
            };
            limits.insert(user, change);
        }
        limits
    }

    fn rate(&mut self, key: impl Into<String>, text: Option<Spanned<String>>) -> Option<Rate> {
        self.value(key, text?, limit::check_rate)
    }

    fn burst(&mut self, key: impl Into<String>, text: Option<Spanned<String>>) -> Option<Size> {
        self.value(key, text?, limit::check_burst)
    }

    fn value<T: Copy + std::str::FromStr<Err = UnitError>>(
        &mut self,
        key: impl Into<String>,
        text: Spanned<String>,
        check: impl Fn(T) -> Result<(), LimitRule>,
    ) -> Option<T> {
        let key = key.into();
        let problem = match text.get_ref().parse::<T>() {
            Ok(value) => match check(value) {
                Ok(()) => return Some(value),
                Err(rule) => Problem::Limit { key, rule },
            },
            Err(error) => Problem::Unit {
                key,
                error: Box::new(error),
            },
        };
        self.error(text.span(), problem);
        None
    }

    fn class(&mut self, key: String, text: Option<Spanned<String>>) -> Option<Class> {
        let text = text?;
        match text.get_ref().parse() {
            Ok(class) => Some(class),
            Err(error) => {
                self.error(text.span(), Problem::Class { key, error });
                None
            }
        }
    }

    fn weights(&mut self, shape: ClassesShape) -> ClassWeights {
        let default = ClassWeights::default();
        ClassWeights {
            control: self.weight(Class::Control, shape.control, default),
            interactive: self.weight(Class::Interactive, shape.interactive, default),
            bulk: self.weight(Class::Bulk, shape.bulk, default),
        }
    }

    fn weight(&mut self, class: Class, number: Option<Spanned<i64>>, default: ClassWeights) -> u32 {
        let Some(number) = number else {
            return default.of(class);
        };
        let value = *number.get_ref();
        match u32::try_from(value) {
            Ok(weight) if (1..=ClassWeights::MAX).contains(&weight) => weight,
            Ok(_) | Err(_) => {
                let class_name = class.name();
                let problem = Problem::Weight {
                    class: class_name,
                    value,
                };
                self.error(number.span(), problem);
                default.of(class)
            }
        }
    }
}
