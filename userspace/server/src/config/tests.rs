mod counts;

use std::ffi::OsString;

use proptest::prelude::*;

use super::error::WarningKind;
use super::shape::KEYS;
use super::*;

fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let environment = environment
        .iter()
        .map(|(name, value)| (name.into(), value.into()));
    Config::from_text(Origin::File("t.toml".into()), text.to_owned(), environment)
}

/// The one error of `text`, as it is shown.
fn error(text: &str) -> String {
    error_with(text, &[])
}

fn error_with(text: &str, environment: &[(&str, &str)]) -> String {
    let errors = load(text, environment).unwrap_err();
    assert_eq!(errors.0.len(), 1, "{errors}");
    errors.to_string()
}

fn sections(config: Config) -> (RelaySection, AuthSection, AccessRules, ObserveSection) {
    (config.relay, config.auth, config.access, config.observe)
}

fn later_sections(config: &Config) -> (KernelSection, LimitsSection) {
    (config.kernel.clone(), config.limits.clone())
}

fn values<T: Clone>(list: &[Placed<T>]) -> Vec<T> {
    list.iter().map(|placed| placed.value.clone()).collect()
}

#[test]
fn the_printed_default_means_what_an_empty_file_means() {
    let (printed, empty) = (load(DEFAULT_FILE, &[]).unwrap(), load("", &[]).unwrap());
    assert_eq!(printed.stun, empty.stun);
    assert_eq!(later_sections(&printed), later_sections(&empty));
    let (printed, empty) = (sections(printed), sections(empty));
    assert_eq!(values(&printed.0.listen), values(&empty.0.listen));
    assert_eq!(printed.0.relay_addresses, empty.0.relay_addresses);
    let rest = |relay: &RelaySection| {
        (
            relay.port_range.clone(),
            relay.realm.clone(),
            relay.shards,
            relay.driver,
            relay.software,
            relay.alternate_servers.clone(),
            relay.mobility,
        )
    };
    assert_eq!(rest(&printed.0), rest(&empty.0));
    assert_eq!((&printed.1, &printed.2), (&empty.1, &empty.2));
    assert_eq!(
        printed.3.listen.map(|placed| placed.value),
        empty.3.listen.map(|placed| placed.value)
    );
}

#[test]
fn the_printed_default_names_every_key() {
    let table: toml::Table = DEFAULT_FILE.parse().unwrap();
    let mut printed: Vec<_> = table
        .iter()
        .flat_map(|(section, keys)| {
            keys.as_table()
                .unwrap()
                .keys()
                .map(move |key| format!("{section}.{key}"))
        })
        .collect();
    printed.sort();
    let mut known: Vec<_> = KEYS
        .iter()
        .map(|key| format!("{}.{}", key.section, key.key))
        .collect();
    known.sort();
    assert_eq!(printed, known);
}

#[test]
fn a_file_is_read() {
    let config = load(
        r#"
        [relay]
        listen = ["192.0.2.1:3478", "[2001:db8::1]:3478"]
        relay_addresses = ["192.0.2.1", { local = "10.0.0.4", public = "203.0.113.5" }]
        port_range = "40000-40099"
        realm = "example.org"
        shards = 2
        driver = "epoll"
        alternate_servers = ["203.0.113.7:3478", "[2001:db8::7]:3478"]
        mobility = true
        [stun]
        behavior_addresses = ["192.0.2.1", { local = "10.0.0.4", public = "203.0.113.5" }]
        behavior_ports = [3478, 3480]
        [auth]
        users = { alice = "plain:secret", bob = "key:md5:000102030405060708090a0b0c0d0e0f" }
        rest_secrets = ["a secret that is long", "short"]
        [access]
        allow = ["10.77.2.0/24", "2001:db8::/32"]
        deny = ["198.51.100.7"]
        [kernel]
        mode = "generic"
        interfaces = ["eth0", "wan.7"]
        max_peers = 1000
        max_routes = 2000
        pins = "/sys/fs/bpf/here"
        [limits]
        default = { up = "20Mbit", burst = "64KiB" }
        global = "1 Gbit/s"
        classes = { control = 10 }
        users = { alice = { down = "64kbit", class = "bulk" } }
        persist = true
        [observe]
        listen = "off"
        "#,
        &[],
    )
    .unwrap();
    let (kernel, limits) = later_sections(&config);
    assert_eq!(values(&kernel.interfaces), ["eth0", "wan.7"]);
    assert_eq!(kernel.mode, KernelMode::Generic);
    assert_eq!((kernel.max_peers, kernel.max_routes), (1000, 2000));
    assert_eq!(kernel.pins, PathBuf::from("/sys/fs/bpf/here"));
    let rate = |bits| Rate::BitsPerSecond(bits);
    assert_eq!(limits.default.up, rate(20_000_000));
    assert_eq!(
        (limits.default.down, limits.default.burst.0),
        (Rate::Unlimited, 65_536)
    );
    assert_eq!((limits.global, limits.persist), (rate(1_000_000_000), true));
    assert_eq!((limits.classes.control, limits.classes.bulk), (10, 1));
    assert_eq!(limits.users["alice"].down, Some(rate(64_000)));
    assert_eq!(limits.users["alice"].class, Some(crate::limit::Class::Bulk));
    assert_eq!(limits.users["alice"].up, None);
    assert_eq!(config.relay.listen.len(), 2);
    assert_eq!(
        config.relay.relay_addresses[1].value,
        RelayAddress {
            local: "10.0.0.4".parse().unwrap(),
            public: "203.0.113.5".parse().unwrap()
        }
    );
    let alternates: Vec<_> = config
        .relay
        .alternate_servers
        .iter()
        .map(SocketAddr::port)
        .collect();
    assert_eq!(alternates, [3478, 3478]);
    assert_eq!(config.stun.behavior_ports, [3478, 3480]);
    assert_eq!(
        values(&config.stun.behavior_addresses),
        values(&config.relay.relay_addresses)
    );
    assert_eq!(config.relay.port_range, 40000..=40099);
    assert_eq!(config.relay.realm, "example.org");
    assert_eq!(
        (config.relay.shards, config.relay.driver),
        (2, DriverChoice::Epoll)
    );
    assert!(config.relay.mobility);
    let alice = credential("alice", "example.org", "secret").unwrap();
    assert_eq!(config.auth.users["alice"], alice);
    let md5 = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    assert_eq!(config.auth.users["bob"], Credential { md5, sha256: None });
    let secrets = ["a secret that is long", "short"].map(|text| RestSecret::new(text).unwrap());
    assert_eq!(config.auth.rest_secrets, secrets);
    let shown: Vec<_> = config
        .access
        .allow
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(shown, ["10.77.2.0/24", "2001:db8::/32"]);
    assert_eq!(config.access.deny[0].to_string(), "198.51.100.7/32");
    assert_eq!(config.observe.listen, None);
    let warned: Vec<_> = config
        .warnings
        .iter()
        .map(|warning| warning.kind.clone())
        .collect();
    assert_eq!(
        warned,
        [
            WarningKind::PlainPassword {
                user: "alice".into()
            },
            WarningKind::NoSha256Key { user: "bob".into() },
            WarningKind::ShortRestSecret { bytes: 5 },
        ]
    );
}

#[test]
fn an_error_shows_its_line_with_a_caret() {
    assert_eq!(
        error("[relay]\nport_range = \"600-50\"\n"),
        "relay.port_range: 600-50: the first port must be at least 1 and at most the last\n \
         --> t.toml:2:14\n  \
         |\n\
         2 | port_range = \"600-50\"\n  \
         |              ^^^^^^^^"
    );
}

#[test]
fn a_listening_port_inside_port_range_is_refused_where_it_stands() {
    assert_eq!(
        error("[relay]\nlisten = [\n  \"0.0.0.0:3478\",\n  \"192.0.2.1:50000\",\n]\n"),
        "relay.listen: port 50000 lies inside relay.port_range 49152-65535; listening ports and \
         relayed ports must differ\n \
         --> t.toml:4:3\n  \
         |\n\
         4 |   \"192.0.2.1:50000\",\n  \
         |   ^^^^^^^^^^^^^^^^^"
    );
}

#[test]
fn an_override_that_is_wrong_names_its_variable() {
    assert_eq!(
        error_with("", &[("TOWPATH__RELAY__LISTEN", "0.0.0.0:3478, nowhere")]),
        "relay.listen: \"nowhere\" is no address with a port, such as \"0.0.0.0:3478\" or \
         \"[::]:3478\"\n\
         --> environment variable TOWPATH__RELAY__LISTEN\n \
         |\n \
         | TOWPATH__RELAY__LISTEN=0.0.0.0:3478, nowhere\n \
         |                                      ^^^^^^^"
    );
}

/// Every rule: a file that breaks it, what the error says, and the line and text it marks.
const BROKEN: &[(&str, &str, usize, &str)] = &[
    (
        "[stun]\nbehavior_addresses = [\"192.0.2.1\"]",
        "two addresses of a family; of IPv4 there are 1",
        2,
        "\"192.0.2.1\"",
    ),
    (
        "[stun]\nbehavior_addresses = [\"0.0.0.0\", \"192.0.2.1\", \"192.0.2.2\"]",
        "0.0.0.0 is no single address; name two of them",
        2,
        "\"0.0.0.0\"",
    ),
    (
        "[stun]\nbehavior_addresses = [\"::1\", \"::1\"]",
        "stun.behavior_addresses: ::1 is there twice",
        2,
        "\"::1\"",
    ),
    (
        "[stun]\nbehavior_ports = [3478]",
        "takes two different ports",
        2,
        "[3478]",
    ),
    (
        "[stun]\nbehavior_ports = [3478, 3478]",
        "takes two different ports",
        2,
        "",
    ),
    (
        "[stun]\nbehavior_ports = [3478, 65536]",
        "65536 is not between 1 and 65535",
        2,
        "65536",
    ),
    (
        "[stun]\nbehavior_ports = [3478, 50000]",
        "50000 lies inside relay.port_range 49152-65535",
        2,
        "50000",
    ),
    (
        "[relay]\nalternate_servers = [\"turn.example.org\"]",
        "relay.alternate_servers: \"turn.example.org\" is no address with a port",
        2,
        "\"turn.example.org\"",
    ),
    (
        "[relay]\nalternate_servers = [\"0.0.0.0:3478\"]",
        "0.0.0.0 is no address of a server",
        2,
        "",
    ),
    (
        "[relay]\nlisten = [\"192.0.2.1:3478\"]\nalternate_servers = [\"192.0.2.1:3478\"]",
        "192.0.2.1:3478 is this server",
        3,
        "\"192.0.2.1:3478\"",
    ),
    (
        "[auth.users]\n\"\" = \"plain:x\"",
        "username is empty",
        2,
        "",
    ),
    (
        "[auth.users]\nalice = \"plain:\"",
        "\"alice\": the password is empty",
        2,
        "",
    ),
    (
        "[auth.users]\nalice = \"secret\"",
        "must be \"plain:PASSWORD\" or",
        2,
        "",
    ),
    (
        "[auth.users]\nalice = \"key:md5:12\"",
        "md5 key must be 32 hexadecimal digits",
        2,
        "",
    ),
    (
        "[auth.users]\nalice = \"key:sha1:12\"",
        "must be named md5 or sha256",
        2,
        "",
    ),
    (
        "[auth.users]\nalice = \"key:md5:000102030405060708090a0b0c0d0e0f,\
         md5:000102030405060708090a0b0c0d0e0f\"",
        "the md5 key is there twice",
        2,
        "",
    ),
    (
        "[auth.users]\nalice = \"key:sha256:000102030405060708090a0b0c0d0e0f\
         000102030405060708090a0b0c0d0e0f\"",
        "the md5 key is missing",
        2,
        "",
    ),
    (
        "[auth]\nrest_secrets = [\"\"]",
        "auth.rest_secrets: a secret must not be empty",
        2,
        "",
    ),
    (
        "[auth]\nrest_secrets = [\"a\",\n\"a\"]",
        "this secret is there twice",
        3,
        "",
    ),
    (
        "[auth]\nrest_secrets = [\"a\\n\"]",
        "must not have blanks around it nor control characters",
        2,
        "",
    ),
    (
        "[auth]\nrest_secrets = [\"1\", \"2\", \"3\", \"4\", \"5\", \"6\", \"7\", \"8\", \"9\"]",
        "9 entries; at most 8 are possible",
        2,
        "",
    ),
    (
        "[relay]\nshards = \n",
        "string values must be quoted",
        2,
        "",
    ),
    ("[relay]\nrelm = \"x\"", "unknown field `relm`", 2, "relm"),
    ("[rely]\n", "unknown field `rely`", 1, "rely"),
    (
        "[relay]\nrealm = 7",
        "invalid type: integer `7`, expected a string",
        2,
        "7",
    ),
    (
        "[relay]\nshards = -1",
        "-1 is not between 0 (one per core) and 256",
        2,
        "-1",
    ),
    ("[relay]\nshards = 300", "300 is not between", 2, "300"),
    ("[relay]\nlisten = []", "at least one address", 2, "[]"),
    (
        "[relay]\nlisten = [\"0.0.0.0\"]",
        "no address with a port",
        2,
        "\"0.0.0.0\"",
    ),
    (
        "[relay]\nlisten = [\"0.0.0.0:0\"]",
        "port 0",
        2,
        "\"0.0.0.0:0\"",
    ),
    (
        "[relay]\nlisten = [\"224.0.0.1:5\"]",
        "multicast",
        2,
        "\"224.0.0.1:5\"",
    ),
    (
        "[relay]\nlisten = [\"[::ffff:1.2.3.4]:5\"]",
        "IPv4-mapped",
        2,
        "\"[::ffff:1.2.3.4]:5\"",
    ),
    (
        "[relay]\nlisten = [\"[::]:5\",\n\"[::]:5\"]",
        "[::]:5 is there twice",
        3,
        "\"[::]:5\"",
    ),
    (
        "[relay]\nrelay_addresses = [\"10.0.0.1:5\"]",
        "no address",
        2,
        "\"10.0.0.1:5\"",
    ),
    (
        "[relay]\nrelay_addresses = [\"0.0.0.0\"]",
        "leave the key out",
        2,
        "\"0.0.0.0\"",
    ),
    (
        "[relay]\nrelay_addresses = [3]",
        "expected an address or { local",
        2,
        "3",
    ),
    (
        "[relay]\nrelay_addresses = [{ local = \"10.0.0.1\" }]",
        "missing field `public`",
        2,
        "{ local = \"10.0.0.1\" }",
    ),
    (
        "[relay]\nrelay_addresses = [{ local = \"10.0.0.1\", public = \"::2\" }]",
        "different families",
        2,
        "{ local = \"10.0.0.1\", public = \"::2\" }",
    ),
    (
        "[relay]\nrelay_addresses = [{ local = \"10.0.0.1\", public = \"10.0\" }]",
        "\"10.0\" is no address",
        2,
        "\"10.0\"",
    ),
    (
        "[relay]\nport_range = \"1-\"",
        "no range of ports",
        2,
        "\"1-\"",
    ),
    ("[relay]\nport_range = \"0-9\"", "at least 1", 2, "\"0-9\""),
    (
        "[relay]\nport_range = \"50000-50001\"\nshards = 3",
        "1 pairs of an even and the next odd port are too few for 3",
        2,
        "\"50000-50001\"",
    ),
    ("[relay]\nrealm = \"\"", "must not be empty", 2, "\"\""),
    (
        "[relay]\nrealm = \"a\\\"b\"",
        "must not contain '\"'",
        2,
        "\"a\\\"b\"",
    ),
    (
        "[relay]\nrealm = \"a\\nb\"",
        "must not contain '\\n'",
        2,
        "\"a\\nb\"",
    ),
    (
        "[relay]\ndriver = \"uring\"",
        "\"uring\" is none of",
        2,
        "\"uring\"",
    ),
    (
        "[access]\nallow = [\"10.0.0.0/33\"]",
        "prefix",
        2,
        "\"10.0.0.0/33\"",
    ),
    (
        "[access]\ndeny = [\"10.0.0.1/8\"]",
        "10.0.0.1/8 has bits set behind the prefix",
        2,
        "\"10.0.0.1/8\"",
    ),
    (
        "[observe]\nlisten = \"9478\"",
        "no address with a port",
        2,
        "\"9478\"",
    ),
    (
        "[kernel]\nmode = \"on\"\n",
        "\"on\" is none of \"auto\", \"native\", \"generic\", \"off\"",
        2,
        "\"on\"",
    ),
    (
        "[kernel]\ninterfaces = [\"eth0\", \"eth0 1\"]\n",
        "no name of an interface",
        2,
        "\"eth0 1\"",
    ),
    (
        "[kernel]\ninterfaces = [\"eth0\", \"eth0\"]\n",
        "eth0 is there twice",
        2,
        "\"eth0\"",
    ),
    (
        "[kernel]\nmax_peers = 5\n",
        "kernel.max_peers: 5 is not between 64 and 4194304",
        2,
        "5",
    ),
    (
        "[kernel]\nmax_routes = 5000000\n",
        "kernel.max_routes: 5000000 is not between",
        2,
        "5000000",
    ),
    (
        "[kernel]\npins = \"bpf\"\n",
        "no absolute path",
        2,
        "\"bpf\"",
    ),
    (
        "[limits]\ndefault = { up = \"20\" }\n",
        "limits.default: up: \"20\" is no rate, such as",
        2,
        "\"20\"",
    ),
    (
        "[limits]\ndefault = { down = \"20Mbps\" }\n",
        "can mean bits or bytes; write \"Mbit\" or \"MB/s\"",
        2,
        "\"20Mbps\"",
    ),
    (
        "[limits]\ndefault = { burst = \"100B\" }\n",
        "limits.default: burst: the burst 100B is not between 1.5kB and",
        2,
        "\"100B\"",
    ),
    (
        "[limits]\nglobal = \"1kbit\"\n",
        "limits.global: the rate 1kbit is not between 64kbit and 400Gbit",
        2,
        "\"1kbit\"",
    ),
    (
        "[limits.users]\nbob = { up = \"1kbit\" }\n",
        "limits.users: \"bob\": up: the rate 1kbit is not",
        2,
        "\"1kbit\"",
    ),
    (
        "[limits.users]\nbob = { class = \"fast\" }\n",
        "limits.users: \"bob\": class: \"fast\" is none of",
        2,
        "\"fast\"",
    ),
    (
        "[limits.users]\n\"\" = { up = \"1Mbit\" }\n",
        "limits.users: \"\": username is empty",
        2,
        "\"\"",
    ),
    (
        "[limits]\nclasses = { bulk = 0 }\n",
        "the weight 0 of bulk is not between 1 and 1000",
        2,
        "0",
    ),
    (
        "[limits]\nusers = { bob = { rate = \"1Mbit\" } }\n",
        "unknown field `rate`",
        2,
        "rate",
    ),
    (
        "bootstrap.listen = []",
        "has no [bootstrap] section yet",
        1,
        "bootstrap",
    ),
    (
        "[relay]\n\n[fleet]\n",
        "has no [fleet] section yet",
        3,
        "fleet",
    ),
];

#[test]
fn every_rule_points_at_the_value_that_breaks_it() {
    for (text, message, line, marked) in BROKEN {
        let errors = load(text, &[]).unwrap_err();
        assert_eq!(errors.0.len(), 1, "{text}: {errors}");
        let excerpt = &errors.0[0].excerpt;
        assert!(errors.to_string().contains(message), "{text}: {errors}");
        assert_eq!(excerpt.line_number, *line, "{text}: {errors}");
        if !marked.is_empty() {
            let shown: String = excerpt
                .line
                .chars()
                .skip(excerpt.column - 1)
                .take(excerpt.width)
                .collect();
            assert_eq!(shown, *marked, "{text}: {errors}");
        }
    }
}

#[test]
fn all_that_is_wrong_is_reported_at_once() {
    let errors = load(
        "[relay]\nrealm = \"\"\nshards = -1\n[access]\ndeny = [\"x\"]",
        &[],
    );
    assert_eq!(errors.unwrap_err().0.len(), 3);
}

#[test]
fn errors_about_credentials_do_not_show_them() {
    let broken = [
        "[auth]\nusers = { alice = \"hunter2\" }",
        "[auth]\nusers = { alice = \"plain:hunter2\", alice = \"plain:hunter2\" }",
        "[auth]\nusers = { alice = \"plain:hunter2 }",
        "[auth]\nusers = \"plain:hunter2\"",
        "[auth]\nuser = { alice = \"plain:hunter2\" }",
        "[auth.users]\nalice = \"key:md5:hunter2\"",
        "[auth.users]\nalice = { password = \"hunter2\" }",
        "[auth]\nrest_secrets = [\"hunter2\", \"hunter2\"]",
        "[auth]\nrest_secrets = [\n\"hunter2\",\n\"hunter2\"\n]",
        "[auth]\nrest_secrets = [\n\"hunter2\\n\"\n]",
        "[auth]\nrest_secrets = \"hunter2\"",
        "[auth]\nrest_secret = [\"hunter2\"]",
        "[auth]\nrest_secrets = [\"hunter2]",
        "auth.rest_secrets = [\"hunter2\", \"hunter2\"]",
        "auth = { rest_secrets = [\"hunter2\", \"hunter2\"] }",
        "auth = { users = { alice = \"hunter2\" } }",
        "auth.users.alice = \"hunter2\"",
    ];
    for text in broken {
        let shown = load(text, &[]).unwrap_err().to_string();
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains('^'), "{shown}");
    }
    let shown = error_with("", &[("TOWPATH__AUTH__USERS", "{ alice = \"hunter2\" }")]);
    assert!(
        !shown.contains("hunter2") && shown.contains("TOWPATH__AUTH__USERS"),
        "{shown}"
    );
    for value in ["hunter2,hunter2", "[\"hunter2\"", "[\"hunter2\", 5]"] {
        let shown = error_with("", &[("TOWPATH__AUTH__REST_SECRETS", value)]);
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("TOWPATH__AUTH__REST_SECRETS"), "{shown}");
    }
    let config = load("[auth]\nrest_secrets = [\n\"hunter2\"\n]", &[]).unwrap();
    assert!(!config.warnings[0].excerpt.to_string().contains("hunter2"));
    assert!(!format!("{config:?}").contains("hunter2"));
    let config = load("[auth]\nusers = { alice = \"plain:hunter2\" }", &[]).unwrap();
    assert!(!config.warnings[0].excerpt.to_string().contains("hunter2"));
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn every_key_has_an_environment_form_that_goes_above_the_file() {
    let file = "[relay]\nrealm = \"file\"\nshards = 1\n";
    let config = load(
        file,
        &[
            ("TOWPATH__RELAY__LISTEN", "[\"192.0.2.1:1\", \"[::1]:1\"]"),
            ("TOWPATH__RELAY__RELAY_ADDRESSES", "192.0.2.1,2001:db8::1"),
            ("TOWPATH__RELAY__PORT_RANGE", "2-9"),
            ("TOWPATH__RELAY__REALM", "123"),
            ("TOWPATH__RELAY__SHARDS", "4"),
            ("TOWPATH__RELAY__DRIVER", "\"io_uring\""),
            (
                "TOWPATH__RELAY__ALTERNATE_SERVERS",
                "203.0.113.7:3478,203.0.113.8:3478",
            ),
            ("TOWPATH__STUN__BEHAVIOR_ADDRESSES", "192.0.2.1,192.0.2.2"),
            ("TOWPATH__STUN__BEHAVIOR_PORTS", "[1, 10]"),
            ("TOWPATH__AUTH__USERS", "{ alice = \"plain:x\" }"),
            ("TOWPATH__AUTH__REST_SECRETS", "one,two"),
            ("TOWPATH__ACCESS__ALLOW", "10.0.0.0/8, fc00::/7"),
            ("TOWPATH__ACCESS__DENY", "[]"),
            ("TOWPATH__KERNEL__MODE", "off"),
            ("TOWPATH__KERNEL__INTERFACES", "eth0,eth1"),
            ("TOWPATH__KERNEL__MAX_PEERS", "100"),
            ("TOWPATH__KERNEL__MAX_ROUTES", "200"),
            ("TOWPATH__KERNEL__PINS", "/pins"),
            ("TOWPATH__LIMITS__DEFAULT", "{ up = \"1Mbit\" }"),
            ("TOWPATH__LIMITS__USERS", "{ alice = { down = \"2Mbit\" } }"),
            ("TOWPATH__LIMITS__GLOBAL", "3Mbit"),
            ("TOWPATH__LIMITS__CLASSES", "{ bulk = 7 }"),
            ("TOWPATH__LIMITS__PERSIST", "true"),
            ("TOWPATH__OBSERVE__LISTEN", "off"),
            ("TOWPATH_LOG", "debug"),
            ("HOME", "/"),
        ],
    )
    .unwrap();
    let (kernel, limits) = later_sections(&config);
    assert_eq!(kernel.mode, KernelMode::Off);
    assert_eq!(values(&kernel.interfaces), ["eth0", "eth1"]);
    assert_eq!((kernel.max_peers, kernel.max_routes), (100, 200));
    assert_eq!(kernel.pins, PathBuf::from("/pins"));
    let rate = |bits| Rate::BitsPerSecond(bits);
    assert_eq!(limits.default.up, rate(1_000_000));
    assert_eq!(limits.users["alice"].down, Some(rate(2_000_000)));
    assert_eq!((limits.global, limits.persist), (rate(3_000_000), true));
    assert_eq!(limits.classes.bulk, 7);
    let listen = ["192.0.2.1:1".parse().unwrap(), "[::1]:1".parse().unwrap()];
    assert_eq!(values(&config.relay.listen), listen);
    assert_eq!(config.relay.relay_addresses.len(), 2);
    assert_eq!(config.relay.port_range, 2..=9);
    assert_eq!(config.relay.alternate_servers.len(), 2);
    assert_eq!(config.stun.behavior_addresses.len(), 2);
    assert_eq!(config.stun.behavior_ports, [1, 10]);
    assert_eq!(config.relay.realm, "123");
    assert_eq!(
        (config.relay.shards, config.relay.driver),
        (4, DriverChoice::IoUring)
    );
    assert_eq!(config.auth.users.len(), 1);
    assert_eq!(config.auth.rest_secrets.len(), 2);
    assert_eq!(
        (config.access.allow.len(), config.access.deny.len()),
        (2, 0)
    );
    assert_eq!(config.observe.listen, None);
}

#[test]
fn a_limit_of_a_user_who_is_not_configured_is_allowed_with_a_warning() {
    let config = load("[limits.users]\nalcie = { up = \"1Mbit\" }", &[]).unwrap();
    assert_eq!(
        config.warnings[0].kind,
        WarningKind::LimitOfNobody {
            user: "alcie".into()
        }
    );
    assert_eq!(config.warnings[0].excerpt.line_number, 2);
    // Who has credentials made with a secret is not known here.
    let text =
        "[auth]\nrest_secrets = [\"0123456789abcdef\"]\n[limits.users]\nx = { up = \"1Mbit\" }";
    assert!(load(text, &[]).unwrap().warnings.is_empty());
}

#[test]
fn an_override_of_no_key_is_refused() {
    for name in [
        "TOWPATH__RELAY__RELM",
        "TOWPATH__RELAY",
        "TOWPATH__",
        "TOWPATH__AUTH__USERS__ALICE",
    ] {
        let shown = error_with("", &[(name, "x")]);
        assert!(
            shown.contains("no such key") && shown.contains(name),
            "{shown}"
        );
    }
}

#[cfg(unix)]
#[test]
fn an_override_that_is_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStringExt as _;
    let value = OsString::from_vec(vec![b'a', 0xFF]);
    let environment = [(OsString::from("TOWPATH__RELAY__REALM"), value)];
    let errors = Config::from_text(Origin::Embedded, String::new(), environment).unwrap_err();
    assert_eq!(errors.0[0].problem, Problem::VariableNotUtf8);
}

#[test]
fn tabs_and_wide_text_before_a_value_keep_the_caret_below_it() {
    let shown = error("[relay]\n\t# é\n\tdriver =\t\"ü\"\n");
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines[3], "3 | \tdriver =\t\"ü\"");
    assert_eq!(lines[4], "  | \t        \t^^^");
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(
        at in 0..DEFAULT_FILE.len(),
        cut in 0..40_usize,
        put in "[\\[\\]{}=\",.#\n a-z0-9:é\t-]{0,12}",
        name in "TOWPATH__(RELAY|AUTH|X)__(LISTEN|USERS|SHARDS|X)",
        value in "[\\[\\]{}=\",.\n a-z0-9:é-]{0,20}",
    ) {
        let mut text = DEFAULT_FILE.to_owned();
        text.replace_range(at..(at + cut).min(DEFAULT_FILE.len()), &put);
        for environment in [vec![], vec![(name.as_str(), value.as_str())]] {
            if let Err(errors) = load(&text, &environment) {
                prop_assert!(!errors.0.is_empty());
                for error in &errors.0 {
                    prop_assert!(error.to_string().contains('^'));
                }
            }
        }
    }

    #[test]
    fn a_damaged_file_never_shows_a_password(at in 0..120_usize, put in "[\\[\\]{}=\",.\n a:-]{0,3}") {
        let mut text = "[relay]\nrealm = \"x\"\n[auth]\nusers = { alice = \"plain:Hunter2\", \
                        bob = \"plain:Hunter2\" }\n[access]\ndeny = []\n".to_owned();
        let at = at.min(text.len());
        text.insert_str(at, &put);
        if let Err(errors) = load(&text, &[]) {
            prop_assert!(!errors.to_string().contains("Hunter2"), "{}", errors);
        }
    }

    #[test]
    fn a_port_range_is_read_as_written(start in 1..=u16::MAX, end in 1..=u16::MAX) {
        let text = format!("[relay]\nlisten = [\"0.0.0.0:1\"]\nport_range = \"{start}-{end}\"");
        match load(&text, &[]) {
            Ok(config) => prop_assert_eq!(config.relay.port_range, start..=end),
            Err(_) => prop_assert!(start > end || start == 1),
        }
    }

    #[test]
    fn keys_are_read_as_they_are_printed(md5: [u8; 16], sha256: Option<[u8; 32]>) {
        let keys = UserSecret::Keys(Credential { md5, sha256 });
        prop_assert_eq!(keys.to_string().parse::<UserSecret>().unwrap(), keys);
    }
}
