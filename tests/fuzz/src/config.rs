//! A configuration's text: any is refused with lines that can be printed, or gives values that keep the
//! rules. What stands behind zero bytes are overrides of the environment, `RELAY__REALM=text`.

use towpath_proto::relay::{RelayConfig, RelayLimits, Users};
use towpath_server::config::{Config, ENVIRONMENT_PREFIX, Origin};

pub(crate) fn fuzz(data: &[u8]) {
    let input = String::from_utf8_lossy(data);
    let mut parts = input.split('\0');
    let text = parts.next().unwrap_or_default().to_owned();
    let environment = parts
        .filter_map(|part| part.split_once('='))
        .map(|(key, value)| {
            let name = format!("{ENVIRONMENT_PREFIX}{key}");
            (name.into(), value.into())
        });
    match Config::from_text(Origin::File("towpath.toml".into()), text, environment) {
        Ok(config) => {
            check(&config);
            for warning in &config.warnings {
                assert!(!warning.kind.to_string().is_empty());
            }
        }
        Err(errors) => {
            assert!(!errors.0.is_empty(), "refused without a reason");
            for error in &errors.0 {
                assert!(error.excerpt.line_number > 0 && error.excerpt.column > 0);
                assert!(error.to_string().contains('^'), "{error}");
            }
        }
    }
}

/// The machine takes what the check lets through, but for what the host has to say about it.
fn check(config: &Config) {
    let limits = &config.limits;
    for limit in limits.users.values() {
        assert_eq!(limit.check(), Ok(()));
    }
    let relay = RelayConfig {
        realm: config.relay.realm.clone(),
        software: None,
        listeners: config
            .relay
            .listen
            .iter()
            .map(|placed| placed.value)
            .collect(),
        relay_addresses: config
            .relay
            .relay_addresses
            .iter()
            .map(|placed| placed.value)
            .collect(),
        own_addresses: Vec::new(),
        behavior: None,
        alternate_servers: Vec::new(),
        mobility: false,
        port_range: config.relay.port_range.clone(),
        shards: config.relay.shards.max(1),
        users: Users::new(),
        access: config.access.clone(),
        limits: RelayLimits::default(),
        offload: false,
        nonce_secret: [0; 32],
    };
    if relay.relay_addresses.is_empty() {
        return;
    }
    assert_eq!(relay.validate(), Ok(()), "{relay:?}");
}
