use std::time::Duration;

use super::*;
use crate::config::ConfigError;

const DIGEST: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

fn read(text: &str) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    read_file(&mut config, Path::new("onlooker.toml"), text)?;
    Ok(config)
}

fn refusal(text: &str) -> String {
    read(text).expect_err("a refusal").to_string()
}

fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_file_sets_every_kind_of_value() {
    let config = read(&format!(
        r#"
        listen = "[::1]:9000"
        origins = ["https://Console.Example.com:443", "http://localhost:5173"]
        allow_default_answer = ["purchase"]
        plaintext_behind_proxy = true
        pools = ["k1"]
        [limits]
        client_frame_bytes = "128KiB"
        log_events = 20_000
        [times]
        ping_every = "2s"
        [notify_webhook]
        secret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"
        url = "https://chat.example/hook"
        [[keys]]
        id = "k1"
        project = "shop"
        scopes = ["publish", "watch"]
        sha256 = "{DIGEST}"
        pool = true
        "#
    ))
    .unwrap();
    assert_eq!(config.listen.address.to_string(), "[::1]:9000");
    assert_eq!(config.listen.origins, ["https://console.example.com", "http://localhost:5173"]);
    assert_eq!(config.limits.client_frame_bytes, 131_072);
    assert_eq!(config.limits.log_events, 20_000);
    assert_eq!(config.times.ping_every, Duration::from_secs(2));
    assert!(config.reach_out.notify_webhook.unwrap().secret.is_some());
    assert_eq!(config.keys[0].sha256.to_hex(), DIGEST);
    assert_eq!(config.keys[0].scopes, [Scope::Publish, Scope::Watch]);
    assert!(config.keys[0].pool);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_name_and_its_line() {
    let table = [
        (
            "\n[limits]\nlog_evnts = 5",
            "onlooker.toml:3: unknown key `limits.log_evnts`; did you mean `limits.log_events`?",
        ),
        ("lissen = \"\"", "onlooker.toml:1: unknown key `lissen`; did you mean `listen`?"),
        ("\nping_every = \"1s\"", "onlooker.toml:2: unknown key `ping_every`; did you mean `times.ping_every`?"),
        ("[limit]\nsessions = 1", "onlooker.toml:1: unknown key `limit`"),
        ("[[keys]]\nprojekt = \"a\"", "onlooker.toml:2: unknown key `projekt`; did you mean `project`?"),
    ];
    for (text, message) in table {
        assert!(refusal(text).starts_with(message), "{}", refusal(text));
    }
}

#[test]
fn wrong_values_are_named_with_their_line_and_what_is_wanted() {
    let table = [
        ("listen = 5", "onlooker.toml:1: `listen` must be text"),
        ("[times]\n\nping_every = 5", "onlooker.toml:3: `times.ping_every` must be a time in quotes"),
        ("[times]\nping_every = \"0s\"", "onlooker.toml:2: `times.ping_every` must be longer than nothing"),
        ("[limits]\nsessions = 0", "onlooker.toml:2: `limits.sessions` must be a whole number from 1"),
        ("[limits]\nsessions = -1", "onlooker.toml:2: `limits.sessions` must be a whole number"),
        ("limits = 3", "onlooker.toml:1: `limits` must be a table"),
        ("keys = 3", "onlooker.toml:1: `keys` must be a table"),
        ("allow_default_answer = [\"login\"]", "onlooker.toml:1: `allow_default_answer` may hold"),
        ("[[keys]]\nid = \"a b\"", "onlooker.toml:2: `keys.id` must be 1 to 64"),
        ("public_url = \"https://a.example/x\"", "onlooker.toml:1: `public_url` must be a URL without a path"),
        ("a = = 1", "onlooker.toml:1: this is not TOML"),
    ];
    for (text, message) in table {
        assert!(refusal(text).starts_with(message), "{}", refusal(text));
    }
}

#[test]
fn no_refusal_repeats_a_secret() {
    for text in [
        "[notify_webhook]\nurl = \"https://x\"\nsecret = \"hunter22\"",
        "notify_webhook = \"hunter22",
        "notify_webhook = \"ftp://hunter22\"",
    ] {
        let error = read(text).expect_err("a refusal");
        assert!(!format!("{error} {error:?}").contains("hunter22"), "{error:?}");
    }
}

#[test]
fn flags_win_over_the_environment_and_unknown_variables_are_only_warned_about() {
    let mut sources = Sources {
        environment: variables(&[
            ("ONLOOKER_LISTEN", "127.0.0.1:1"),
            ("ONLOOKER_LIMITS_SESSIONS", "7"),
            ("ONLOOKER_LIMITS_SESSION", "8"),
            ("ONLOOKER_PORT", "tcp://10.0.0.1:80"),
            ("HOME", "/"),
        ]),
        flags: vec![("listen", "localhost:2".to_owned())],
        ..Sources::default()
    };
    let loaded = load(&sources).unwrap();
    assert_eq!(loaded.config.listen.address.port(), 2);
    assert_eq!(loaded.config.limits.sessions, 7);
    let warning = "environment variable ONLOOKER_LIMITS_SESSION is not known; did you mean `ONLOOKER_LIMITS_SESSIONS`?";
    assert!(loaded.warnings.contains(&warning.to_owned()), "{:?}", loaded.warnings);
    assert_eq!(loaded.warnings.iter().filter(|warning| warning.contains("environment")).count(), 1);

    sources.flags.push(("listne", String::new()));
    assert!(matches!(load(&sources), Err(ConfigError::UnknownKey { nearest: Some(name), .. }) if name == "listen"));
}
