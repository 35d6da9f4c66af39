//! The configuration's defaults, precedence and refusals.

use super::*;

const MACHINE: Machine = Machine { memory: Some(Bytes(8 << 30)), threads: 4 };

fn config(toml: &str) -> Result<Config, BadConfig> {
    let settings = toml::from_str(toml).unwrap();
    Config::try_from(Sources { settings, stored: None, machine: MACHINE })
}

fn refusal(toml: &str) -> String {
    config(toml).unwrap_err().to_string()
}

fn invite(name: &str, byte: u8) -> Invite {
    let address = "/ip4/192.0.2.7/tcp/2744".to_owned();
    Invite::new(name.to_owned(), Some(NetworkSecret::new([byte; 32])), vec![address]).unwrap()
}

fn texts(addresses: &[Multiaddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn without_settings_a_peer_is_on_this_lan_with_half_the_memory() {
    let config = config("").unwrap();

    assert_eq!(config.network, Network { name: "local".to_owned(), secret: None });
    assert_eq!((config.memory, config.threads), (Bytes(4 << 30), 4));
    assert_eq!(config.device, DeviceName::Cpu);
    assert_eq!(config.api.address.to_string(), API_ADDRESS);
    assert_eq!(config.serve, Serve::Catalogue(HoldPolicy::Automatic { max_units: None }));
    assert_eq!(config.trust, Trust::Known);
    assert_eq!(
        texts(&config.listen),
        ["/ip4/0.0.0.0/udp/2744/quic-v1", "/ip4/0.0.0.0/tcp/2744", "/ip6/::/udp/2744/quic-v1", "/ip6/::/tcp/2744"]
    );
}

#[test]
fn a_private_network_is_joined_by_its_invite_over_tcp_alone() {
    let config = config(&format!("invite = \"{}\"", invite("home", 1))).unwrap();

    assert_eq!(config.network, Network { name: "home".to_owned(), secret: Some(NetworkSecret::new([1; 32])) });
    assert_eq!(texts(&config.join), ["/ip4/192.0.2.7/tcp/2744"]);
    assert_eq!(texts(&config.listen), ["/ip4/0.0.0.0/tcp/2744", "/ip6/::/tcp/2744"]);
}

#[test]
fn a_network_that_was_joined_before_needs_its_name_only() {
    let settings = toml::from_str("network = \"home\"").unwrap();
    let stored = Some(invite("home", 1));

    let config = Config::try_from(Sources { settings, stored, machine: MACHINE }).unwrap();

    assert_eq!(config.network.kind(), NetworkKind::Private);
    assert_eq!(config.join.len(), 1);
}

#[test]
fn an_invite_with_another_key_than_the_kept_one_is_refused() {
    let settings = toml::from_str(&format!("invite = \"{}\"", invite("home", 2))).unwrap();

    let fault = Config::try_from(Sources { settings, stored: Some(invite("home", 1)), machine: MACHINE }).unwrap_err();

    assert!(matches!(fault, BadConfig::OtherKey { .. }), "{fault}");
}

#[test]
fn units_are_pinned_to_one_model() {
    let pinned = config("model = [\"./m.gguf\"]\nunits = \"0..3\"").unwrap().serve;

    let range = HoldPolicy::Pinned(UnitRange::new(0, 3).unwrap());
    assert_eq!(pinned, Serve::Models(vec![ModelSource::File("./m.gguf".into())], range));
    assert!(refusal("units = \"0..3\"").contains("0 models"));
    assert!(refusal("model = [\"abc\"]\nunits = \"3..3\"").starts_with("units: "));
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    assert!(refusal("no-serve = true\nmodel = [\"abc\"]").contains("model"));
    assert!(refusal("model = [\"a\"]\nunits = \"0..1\"\nunits-per-peer = 2").contains("units-per-peer"));
    assert!(refusal("listen = [\"127.0.0.1:1\"]\nport = 2").contains("port"));
    assert!(refusal(&format!("network = \"b\"\ninvite = \"{}\"", invite("a", 1))).contains("\"b\""));
}

#[test]
fn each_ill_formed_setting_is_named() {
    for (toml, name) in [
        ("memory = \"much\"", "memory"),
        ("memory = \"0\"", "memory"),
        ("threads = 0", "threads"),
        ("device = \"gpu\"", "device"),
        ("units-per-peer = 0", "units-per-peer"),
        ("network = \"a/b\"", "network"),
        ("invite = \"hello\"", "invite"),
        ("join = [\"::::\"]", "join"),
        ("announce = [\"/ip4/1\"]", "announce"),
        ("listen = [\"nowhere nohow\"]", "listen"),
        ("api = \"localhost\"", "api"),
        ("api-key = \"short\"", "api-key"),
        ("allow-origin = [\"example.org\"]", "allow-origin"),
        ("allow = [\"abc\"]", "allow"),
    ] {
        assert!(refusal(toml).starts_with(name), "{toml}: {}", refusal(toml));
    }
}

#[test]
fn memory_of_a_device_is_an_amount_and_not_the_machines() {
    for toml in ["device = \"cuda:1\"", "device = \"cuda:1\"\nmemory = \"50%\""] {
        assert!(matches!(config(toml), Err(BadConfig::DeviceMemory { device: DeviceName::Cuda(1) })), "{toml}");
    }
    let config = config("device = \"metal\"\nmemory = \"20GiB\"").unwrap();
    assert_eq!((config.device, config.memory), (DeviceName::Metal, Bytes(20 << 30)));
}

#[test]
fn an_api_that_others_can_reach_needs_a_key() {
    assert!(refusal("api = \"0.0.0.0:2745\"").contains("needs a key"));
    assert!(config("api = \"0.0.0.0:2745\"\napi-key = \"0123456789abcdef\"").is_ok());
}

#[test]
fn an_unknown_setting_is_refused_by_name_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, "threads = 2\nmemmory = \"4GiB\"\n").unwrap();

    let fault = Settings::read(&file).unwrap_err().to_string();

    assert!(fault.contains("memmory") && fault.contains("line 2"), "{fault}");
}

#[test]
fn flags_win_over_the_file_setting_by_setting() {
    let flags: Settings = toml::from_str("port = 0\nunits-per-peer = 2").unwrap();
    let file: Settings = toml::from_str("listen = [\"10.0.0.1:1\"]\nthreads = 3\nunits = \"0..1\"").unwrap();

    let merged = flags.over(file);

    assert_eq!((merged.port, merged.threads), (Some(0), Some(3)));
    assert!(merged.listen.is_empty() && merged.units.is_none(), "settings that exclude each other are one");
}

#[test]
fn a_flag_to_serve_overrides_a_file_that_does_not() {
    let flags: Settings = toml::from_str("model = [\"abc\"]").unwrap();
    let file: Settings = toml::from_str("no-serve = true").unwrap();

    assert!(!flags.over(file).no_serve);
}

#[test]
fn an_upload_limit_at_which_nothing_would_arrive_is_refused() {
    assert_eq!(config("upload-limit = \"10MiB\"").unwrap().upload_limit, Some(Bytes::mib(10)));
    assert_eq!(config("").unwrap().upload_limit, None);
    for text in ["0", "5", "63KiB", "fast", "25%"] {
        let refused = refusal(&format!("upload-limit = \"{text}\""));
        assert!(refused.contains("at least") && refused.contains(text), "{refused}");
    }
}
