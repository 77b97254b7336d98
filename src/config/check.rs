//! Checks a configuration as a whole, limits against each other, before any port is opened.

use super::{Config, ConfigError, Limits, Slack, Times};
use crate::auth::exposure::exposure;
use crate::chat::telegram;
use crate::config::key::Scope;

/// Files that a gateway has open beside its connections: logs, listeners, notifiers, the runtime's own.
const FILES_BESIDE_CONNECTIONS: u64 = 256;

impl Config {
    /// The first contradiction, or what the operator should know.
    pub fn check(&self) -> Result<Vec<String>, ConfigError> {
        self.check_beside(&[])
    }

    /// As [`Self::check`], for a gateway that has these chats as well.
    pub fn check_beside(&self, chats: &[&str]) -> Result<Vec<String>, ConfigError> {
        let refuse = ConfigError::DoNotFit;
        check_limits(&self.limits).map_err(refuse)?;
        check_times(&self.times).map_err(refuse)?;
        self.check_keys().map_err(refuse)?;
        self.check_ladder(chats).map_err(refuse)?;
        if self.listen.tls_cert.is_some() != self.listen.tls_key.is_some() {
            return Err(refuse("`tls_cert` and `tls_key` go together: set both or none".to_owned()));
        }
        if self.data.ephemeral && self.data.dir.is_some() {
            return Err(refuse("`ephemeral` and `data_dir` exclude each other: set one".to_owned()));
        }
        exposure(&self.listen, !self.keys.is_empty()).map_err(|error| refuse(error.to_string()))?;
        let slack = check_slack(&self.slack, self.listen.public_url.is_some()).map_err(refuse)?;
        let telegram = self.check_telegram().map_err(refuse)?;
        let open_files = open_files_warning(self.limits.connections, open_files());
        Ok(open_files.into_iter().chain(telegram).chain(slack).collect())
    }

    fn check_telegram(&self) -> Result<Option<String>, String> {
        let prefix = format!("{}:", telegram::NAME);
        let chats = self.reach_out.ladder.iter().flat_map(|step| &step.targets);
        for chat in chats.filter_map(|target| target.strip_prefix(&prefix)) {
            if chat.parse::<i64>().is_err() {
                return Err(format!("the ladder's target `{prefix}{chat}` is not the id of a Telegram chat, a number"));
            }
        }
        let Some(token) = &self.telegram.token else { return Ok(None) };
        if !is_bot_token(token.expose()) {
            let form = "must be as @BotFather gives it: digits, a colon, then letters, digits, `_` and `-`";
            return Err(format!("`telegram.token` {form}"));
        }
        let public_url = self.listen.public_url.as_ref();
        let unreachable = public_url.is_some() && telegram::callback_url(&self.telegram.api, public_url).is_none();
        Ok(unreachable.then(|| {
            "Telegram calls only https, a public name and port 443, 80, 88 or 8443, which `public_url` is not: it is \
             asked for what people say instead"
                .to_owned()
        }))
    }

    /// Every target of the ladder reaches somebody, or stands for those who are linked.
    fn check_ladder(&self, chats: &[&str]) -> Result<(), String> {
        let telegram = self.telegram.token.as_ref().map(|_| "telegram");
        let slack = self.slack.bot_token.as_ref().map(|_| "slack");
        let chats: Vec<&str> = telegram.into_iter().chain(slack).chain(chats.iter().copied()).collect();
        let shortened = |target: &str| target.chars().take(64).collect::<String>();
        for target in self.reach_out.ladder.iter().flat_map(|step| &step.targets) {
            match target.split_once(':') {
                None if target == "linked" || target == "default" => {}
                None if target == "webhook" && self.reach_out.notify_webhook.is_some() => {}
                None if target == "webhook" => {
                    return Err("the ladder names `webhook`, but no `notify_webhook` is set".to_owned());
                }
                Some((chat, address)) if chats.contains(&chat) && !address.trim().is_empty() => {}
                Some(("telegram", _)) if telegram.is_none() => {
                    return Err(format!("the ladder's target `{}` needs `telegram.token`", shortened(target)));
                }
                Some(("slack", _)) if slack.is_none() => {
                    return Err(format!("the ladder's target `{}` needs `slack.bot_token`", shortened(target)));
                }
                _ => {
                    let known = chats.iter().map(|chat| format!(", `{chat}:<address>`")).collect::<String>();
                    return Err(format!(
                        "the ladder's target `{}` reaches nobody; a target is `linked`, `default`, `webhook`{known}, and \
                         other chats once they are configured",
                        shortened(target)
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_keys(&self) -> Result<(), String> {
        for (index, key) in self.keys.iter().enumerate() {
            if let Some(twin) = self.keys[..index].iter().find(|other| other.id == key.id) {
                return Err(format!("two keys have the id `{}`; give each its own", twin.id));
            }
            if let Some(twin) = self.keys[..index].iter().find(|other| other.sha256 == key.sha256) {
                return Err(format!("the keys `{}` and `{}` have the same `sha256`", twin.id, key.id));
            }
            let pool = key.pool || self.pools.contains(&key.id);
            if pool && !key.scopes.contains(&Scope::Publish) {
                return Err(format!("the key `{}` is a pool, but its scopes lack `publish`", key.id));
            }
        }
        match self.pools.iter().find(|id| !self.keys.iter().any(|key| key.id == **id)) {
            Some(id) => Err(format!("`pools` names the key `{id}`, which does not exist")),
            None => Ok(()),
        }
    }
}

/// The bot's id, a colon, and the secret.
fn is_bot_token(text: &str) -> bool {
    let secret = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    text.split_once(':').is_some_and(|(id, rest)| {
        id.parse::<i64>().is_ok_and(|id| id > 0) && !rest.is_empty() && rest.chars().all(secret)
    })
}

/// Which of the Slack app's tokens go together; a warning where nobody could answer.
fn check_slack(slack: &Slack, is_public: bool) -> Result<Option<String>, String> {
    let Slack { bot_token, signing_secret, app_token, .. } = slack;
    match (bot_token, is_public) {
        (None, _) if signing_secret.is_some() || app_token.is_some() => {
            Err("`slack.signing_secret` and `slack.app_token` need `slack.bot_token` beside them".to_owned())
        }
        (Some(_), true) if signing_secret.is_none() => Err(
            "with `public_url`, Slack brings answers by requests, and `slack.signing_secret` is needed to check them"
                .to_owned(),
        ),
        (Some(_), false) if app_token.is_none() => Ok(Some(
            "Slack gets messages, but nobody can answer there: set `slack.app_token` for Socket Mode, or `public_url` and \
             `slack.signing_secret`"
                .to_owned(),
        )),
        _ => Ok(None),
    }
}

fn check_limits(limits: &Limits) -> Result<(), String> {
    let l = limits;
    at_most([
        (("limits.auth_frame_bytes", l.auth_frame_bytes), ("limits.client_frame_bytes", l.client_frame_bytes)),
        (("limits.event_payload_bytes", l.event_payload_bytes), ("limits.runtime_frame_bytes", l.runtime_frame_bytes)),
        (("limits.event_payload_bytes", l.event_payload_bytes), ("limits.events_body_bytes", l.events_body_bytes)),
        (("limits.event_payload_bytes", l.event_payload_bytes), ("limits.log_bytes", l.log_bytes)),
        (
            ("limits.guardrail_text_bytes", l.guardrail_text_bytes),
            ("limits.event_payload_bytes", l.event_payload_bytes),
        ),
        (("limits.log_bytes", l.log_bytes), ("limits.log_bytes_total", l.log_bytes_total)),
    ])
}

fn check_times(times: &Times) -> Result<(), String> {
    let t = times;
    if t.ping_every >= t.live_window {
        return Err("`times.ping_every` must be shorter than `times.live_window`, or nobody stays live".to_owned());
    }
    at_most([
        (("times.claim", t.claim), ("times.claim_max", t.claim_max)),
        (("times.control_grace", t.control_grace), ("times.control_lease", t.control_lease)),
    ])
}

type Named<T> = (&'static str, T);

fn at_most<T: PartialOrd>(pairs: impl IntoIterator<Item = (Named<T>, Named<T>)>) -> Result<(), String> {
    match pairs.into_iter().find(|((_, low), (_, high))| low > high) {
        Some(((low, _), (high, _))) => Err(format!("`{low}` must not be larger than `{high}`")),
        None => Ok(()),
    }
}

fn open_files_warning(connections: usize, open_files: Option<u64>) -> Option<String> {
    let needed = connections as u64 + FILES_BESIDE_CONNECTIONS;
    let allowed = open_files.filter(|allowed| *allowed < needed)?;
    Some(format!(
        "`limits.connections` is {connections}, but this process may open only {allowed} files: raise its limit \
         (`ulimit -n {needed}`, or LimitNOFILE in systemd), or accept fewer connections"
    ))
}

/// The soft RLIMIT_NOFILE, read from /proc so that no unsafe call is needed. `None` where there is no such file.
fn open_files() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::{
            key::{KeyDigest, KeyEntry},
            secret::Secret,
        },
        reach_out::ladder::Step,
    };

    fn key(id: &str, digest: u8) -> KeyEntry {
        let (project, scopes) = ("shop".to_owned(), vec![Scope::Watch]);
        KeyEntry {
            id: id.to_owned(),
            project,
            scopes,
            sha256: KeyDigest([digest; 32]),
            pool: false,
            account: Default::default(),
            balance: None,
        }
    }

    fn secret() -> Option<Secret> {
        Some(Secret::new("word"))
    }

    fn public_url() -> Option<url::Url> {
        Some("https://onlooker.example/".parse().unwrap())
    }

    #[test]
    fn slack_without_a_way_to_answer_is_warned_about() {
        let warned = |change: fn(&mut Config)| {
            let mut config = Config::default();
            config.slack.bot_token = secret();
            change(&mut config);
            config.check().unwrap().iter().any(|warning| warning.contains("nobody can answer"))
        };
        assert!(warned(|_| {}));
        assert!(warned(|c| c.slack.signing_secret = secret()), "nobody reaches it");
        assert!(!warned(|c| c.slack.app_token = secret()));
        assert!(!warned(|c| (c.slack.signing_secret, c.listen.public_url) = (secret(), public_url())));
    }

    fn step(target: &str) -> Step {
        Step { after: Duration::from_secs(60), targets: vec![target.to_owned()], repeat: 0, project: None }
    }

    #[test]
    fn a_ladder_may_name_chats_that_are_configured() {
        let mut config = Config::default();
        config.telegram.token = Some(Secret::new("1:x"));
        config.reach_out.ladder = ["linked", "default", "telegram:-100", "other:a:b"].map(step).to_vec();
        assert!(config.check().unwrap_err().to_string().contains("`other:a:b`"));
        config.check_beside(&["other"]).unwrap();
        config.reach_out.ladder = vec![step("telegram:")];
        assert!(config.check().is_err());
    }

    #[test]
    fn the_defaults_fit_each_other() {
        Config::default().check().unwrap();
    }

    #[test]
    fn contradictions_are_named() {
        type Change = fn(&mut Config);
        let table: &[(Change, &str)] = &[
            (|c| c.limits.event_payload_bytes = 9 << 20, "`limits.event_payload_bytes` must not be larger"),
            (|c| c.limits.log_bytes = 2 << 30, "`limits.log_bytes` must not be larger"),
            (|c| c.times.live_window = Duration::from_secs(10), "`times.ping_every` must be shorter"),
            (|c| c.times.claim = Duration::from_secs(3600), "`times.claim` must not be larger than `times.claim_max`"),
            (|c| c.listen.tls_cert = Some("a.pem".into()), "`tls_cert` and `tls_key` go together"),
            (|c| c.keys = vec![key("a", 1), key("a", 2)], "two keys have the id `a`"),
            (|c| c.keys = vec![key("a", 1), key("b", 1)], "the keys `a` and `b` have the same"),
            (|c| c.pools = vec!["x".to_owned()], "`pools` names the key `x`"),
            (|c| (c.keys, c.pools) = (vec![key("a", 1)], vec!["a".to_owned()]), "the key `a` is a pool"),
            (|c| c.listen.address = ([0, 0, 0, 0], 1).into(), "without keys"),
            (|c| c.slack.app_token = secret(), "need `slack.bot_token`"),
            (|c| c.slack.signing_secret = secret(), "need `slack.bot_token`"),
            (
                |c| (c.slack.bot_token, c.slack.app_token, c.listen.public_url) = (secret(), secret(), public_url()),
                "`slack.signing_secret` is needed",
            ),
            (|c| c.reach_out.ladder = vec![step("webhook")], "no `notify_webhook` is set"),
            (|c| c.reach_out.ladder = vec![step("telegram:1")], "`telegram:1` needs `telegram.token`"),
            (|c| c.reach_out.ladder = vec![step("slack:C1")], "`slack:C1` needs `slack.bot_token`"),
            (|c| c.reach_out.ladder = vec![step("everybody")], "`everybody` reaches nobody"),
        ];
        for (change, message) in table {
            let mut config = Config::default();
            change(&mut config);
            let error = config.check().expect_err(message).to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn a_telegram_bot_is_checked_before_it_is_asked() {
        let mut config = Config::default();
        let mut step = crate::reach_out::ladder::Step {
            after: Duration::from_secs(60),
            targets: vec!["telegram:-100".to_owned()],
            repeat: 0,
            project: None,
        };
        config.reach_out.ladder = vec![step.clone()];
        let error = |config: &Config| config.check().expect_err("refused").to_string();
        assert!(error(&config).contains("needs `telegram.token`"));
        for wrong in ["123", "bot123:abc", "123:", "123:a/b", "-1:abc"] {
            config.telegram.token = Some(Secret::new(wrong));
            let error = error(&config);
            assert!(error.contains("`telegram.token` must be") && !error.contains(wrong), "{error}");
        }
        config.telegram.token = Some(Secret::new("123:aB_-9"));
        config.check().unwrap();
        step.targets = vec!["telegram:@ann".to_owned()];
        config.reach_out.ladder = vec![step];
        assert!(error(&config).contains("`telegram:@ann`"));
    }

    #[test]
    fn a_public_address_that_telegram_cannot_call_is_warned_about() {
        let mut config = Config::default();
        config.telegram.token = Some(Secret::new("123:abc"));
        let mut warns = |url: &str| {
            config.listen.public_url = Some(url.parse().unwrap());
            config.check().unwrap().iter().any(|warning| warning.contains("Telegram"))
        };
        assert!(!warns("https://gateway.example.com/"));
        assert!(!warns("https://gateway.example.com:8443/"));
        for url in ["http://gateway.example.com/", "https://gateway.example.com:8787/", "https://localhost/"] {
            assert!(warns(url), "{url}");
        }
        config.telegram.api = "http://127.0.0.1:8081/".parse().unwrap();
        config.listen.public_url = Some("http://localhost:8787/".parse().unwrap());
        assert!(config.check().unwrap().iter().all(|warning| !warning.contains("Telegram")), "a server of one's own");
    }

    #[test]
    fn more_connections_than_open_files_are_warned_about() {
        assert!(open_files_warning(10_240, Some(1024)).unwrap().contains("1024 files"));
        assert_eq!(open_files_warning(10_240, Some(65_536)), None);
        assert_eq!(open_files_warning(10_240, None), None);
    }
}
