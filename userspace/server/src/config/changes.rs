//! What another configuration changes in the one in force, key by key.

use towpath_proto::access::AccessRules;

use super::{
    AuthSection, Config, KernelSection, LimitsSection, ObserveSection, Placed, RelaySection,
    StunSection,
};

/// The sections in force. Not their text: it may hold passwords.
#[derive(Clone, Debug)]
pub(crate) struct Sections {
    relay: RelaySection,
    stun: StunSection,
    auth: AuthSection,
    access: AccessRules,
    kernel: KernelSection,
    pub(crate) limits: LimitsSection,
    observe: ObserveSection,
}

/// The keys that another configuration has other values for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Changes {
    /// Those that hold from now on.
    pub(crate) applied: Vec<&'static str>,
    /// Those that keep the value the server was started with.
    pub(crate) needs_restart: Vec<&'static str>,
}

/// When a key's new value holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Effect {
    AtOnce,
    AfterRestart,
}

impl From<Config> for Sections {
    fn from(config: Config) -> Self {
        let Config {
            relay,
            stun,
            auth,
            access,
            kernel,
            limits,
            observe,
            warnings: _,
            document: _,
        } = config;
        Self {
            relay,
            stun,
            auth,
            access,
            kernel,
            limits,
            observe,
        }
    }
}

impl Sections {
    /// Takes over what may change while the server runs, and says what that is and what is left.
    pub(crate) fn take_over(&mut self, config: Config) -> Changes {
        let new = Self::from(config);
        let mut changes = Changes::default();
        let compared = self.compare(&new).into_iter();
        for (key, effect, _) in compared.filter(|(_, _, is_other)| *is_other) {
            match effect {
                Effect::AtOnce => changes.applied.push(key),
                Effect::AfterRestart => changes.needs_restart.push(key),
            }
        }
        let RelaySection {
            realm,
            software,
            alternate_servers,
            mobility,
            ..
        } = new.relay;
        self.relay.realm = realm;
        self.relay.software = software;
        self.relay.alternate_servers = alternate_servers;
        self.relay.mobility = mobility;
        self.auth = new.auth;
        self.access = new.access;
        self.limits = LimitsSection {
            persist: self.limits.persist,
            ..new.limits
        };
        changes
    }

    /// Every key, when its value holds, and whether the other value is another.
    fn compare(&self, new: &Self) -> Vec<(&'static str, Effect, bool)> {
        use Effect::{AfterRestart, AtOnce};
        let (relay, other) = (&self.relay, &new.relay);
        let mut keys = vec![
            (
                "relay.listen",
                AfterRestart,
                differ(&relay.listen, &other.listen),
            ),
            (
                "relay.relay_addresses",
                AfterRestart,
                differ(&relay.relay_addresses, &other.relay_addresses),
            ),
            (
                "relay.port_range",
                AfterRestart,
                relay.port_range != other.port_range,
            ),
            ("relay.realm", AtOnce, relay.realm != other.realm),
            ("relay.shards", AfterRestart, relay.shards != other.shards),
            ("relay.driver", AfterRestart, relay.driver != other.driver),
            ("relay.software", AtOnce, relay.software != other.software),
            (
                "relay.alternate_servers",
                AtOnce,
                relay.alternate_servers != other.alternate_servers,
            ),
            ("relay.mobility", AtOnce, relay.mobility != other.mobility),
        ];
        let (stun, other) = (&self.stun, &new.stun);
        keys.extend([
            (
                "stun.behavior_addresses",
                AfterRestart,
                differ(&stun.behavior_addresses, &other.behavior_addresses),
            ),
            (
                "stun.behavior_ports",
                AfterRestart,
                stun.behavior_ports != other.behavior_ports,
            ),
        ]);
        let (auth, other) = (&self.auth, &new.auth);
        keys.extend([
            ("auth.users", AtOnce, auth.users != other.users),
            (
                "auth.rest_secrets",
                AtOnce,
                auth.rest_secrets != other.rest_secrets,
            ),
            (
                "access.allow",
                AtOnce,
                self.access.allow != new.access.allow,
            ),
            ("access.deny", AtOnce, self.access.deny != new.access.deny),
        ]);
        let (kernel, other) = (&self.kernel, &new.kernel);
        keys.extend([
            ("kernel.mode", AfterRestart, kernel.mode != other.mode),
            (
                "kernel.interfaces",
                AfterRestart,
                differ(&kernel.interfaces, &other.interfaces),
            ),
            (
                "kernel.max_peers",
                AfterRestart,
                kernel.max_peers != other.max_peers,
            ),
            (
                "kernel.max_routes",
                AfterRestart,
                kernel.max_routes != other.max_routes,
            ),
            ("kernel.pins", AfterRestart, kernel.pins != other.pins),
        ]);
        keys.extend(compare_limits(&self.limits, &new.limits));
        let listen = |section: &ObserveSection| section.listen.as_ref().map(|at| at.value);
        let is_other = listen(&self.observe) != listen(&new.observe);
        keys.push(("observe.listen", AfterRestart, is_other));
        keys
    }
}

fn compare_limits(
    limits: &LimitsSection,
    other: &LimitsSection,
) -> [(&'static str, Effect, bool); 12] {
    use Effect::{AfterRestart, AtOnce};
    let (relay, new) = (&limits.relay, &other.relay);
    let allocations = (
        relay.allocations_per_user,
        relay.allocations_per_network,
        relay.allocations_in_total,
    );
    let new_allocations = (
        new.allocations_per_user,
        new.allocations_per_network,
        new.allocations_in_total,
    );
    let lifetime = (relay.default_lifetime, relay.max_lifetime);
    let new_lifetime = (new.default_lifetime, new.max_lifetime);
    [
        ("limits.default", AtOnce, limits.default != other.default),
        ("limits.users", AtOnce, limits.users != other.users),
        ("limits.global", AtOnce, limits.global != other.global),
        ("limits.classes", AtOnce, limits.classes != other.classes),
        (
            "limits.persist",
            AfterRestart,
            limits.persist != other.persist,
        ),
        ("limits.allocations", AtOnce, allocations != new_allocations),
        ("limits.lifetime", AtOnce, lifetime != new_lifetime),
        (
            "limits.permissions_per_allocation",
            AtOnce,
            relay.max_permissions != new.max_permissions,
        ),
        (
            "limits.channels_per_allocation",
            AtOnce,
            relay.max_channels != new.max_channels,
        ),
        ("limits.new_peers", AtOnce, relay.new_peers != new.new_peers),
        ("limits.strangers", AtOnce, relay.strangers != new.strangers),
        (
            "limits.failed_logins",
            AtOnce,
            relay.attempts != new.attempts,
        ),
    ]
}

/// Whether values differ, wherever they stand in their files.
fn differ<T: PartialEq>(old: &[Placed<T>], new: &[Placed<T>]) -> bool {
    let old = old.iter().map(|placed| &placed.value);
    old.ne(new.iter().map(|placed| &placed.value))
}

#[cfg(test)]
mod tests {
    use super::super::shape::KEYS;
    use super::super::{Origin, UserSecret};
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_text(Origin::Embedded, text.to_owned(), [])
            .unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn changes(old: &str, new: &str) -> Changes {
        Sections::from(config(old)).take_over(config(new))
    }

    #[test]
    fn every_key_of_the_configuration_is_compared() {
        let sections = Sections::from(config(""));
        let mut compared: Vec<_> = sections
            .compare(&sections)
            .iter()
            .map(|(key, _, is_other)| (key.to_string(), *is_other))
            .collect();
        let mut keys: Vec<_> = KEYS
            .iter()
            .map(|key| (format!("{}.{}", key.section, key.key), false))
            .collect();
        compared.sort();
        keys.sort();
        assert_eq!(compared, keys);
    }

    #[test]
    fn what_can_change_is_applied_and_what_cannot_is_named() {
        let found = changes(
            "[relay]\nrealm = \"a.test\"",
            "[relay]\nrealm = \"b.test\"\nport_range = \"50000-50999\"\nshards = 2\n\
             [auth]\nrest_secrets = [\"a secret of some length\"]\n[access]\ndeny = [\"9.9.9.0/24\"]\n\
             [limits]\nglobal = \"1Gbit\"\npersist = true\nstrangers = { total = 7 }\n\
             [observe]\nlisten = \"off\"",
        );
        assert_eq!(
            found.applied,
            [
                "relay.realm",
                "auth.rest_secrets",
                "access.deny",
                "limits.global",
                "limits.strangers"
            ]
        );
        assert_eq!(
            found.needs_restart,
            [
                "relay.port_range",
                "relay.shards",
                "limits.persist",
                "observe.listen"
            ]
        );
    }

    #[test]
    fn what_needs_a_restart_is_named_until_the_server_has_it_or_the_file_has_it_no_more() {
        let other = "[relay]\nport_range = \"50000-50999\"";
        let mut sections = Sections::from(config(""));
        for _ in 0..2 {
            let found = sections.take_over(config(other));
            assert_eq!(found.needs_restart, ["relay.port_range"]);
        }
        assert_eq!(sections.take_over(config("")), Changes::default());
    }

    #[test]
    fn a_comment_or_a_blank_line_changes_nothing() {
        let text = "[relay]\nlisten = [\"192.0.2.1:3478\"]\nrelay_addresses = [\"192.0.2.1\"]\n\
                    [kernel]\ninterfaces = [\"eth0\"]";
        let found = changes(text, &format!("# the same\n\n{text}"));
        assert_eq!(found, Changes::default());
    }

    #[test]
    fn a_password_written_as_its_keys_is_the_same_user() {
        let keys = super::super::credential("alice", "a.test", "secret").unwrap();
        let users = |secret: &str| {
            format!("[relay]\nrealm = \"a.test\"\n[auth]\nusers = {{ alice = \"{secret}\" }}")
        };
        let plain = users("plain:secret");
        let hashed = users(&UserSecret::Keys(keys).to_string());
        assert_eq!(changes(&plain, &hashed), Changes::default());
        let other = users("plain:another");
        assert_eq!(changes(&plain, &other).applied, ["auth.users"]);
    }
}
