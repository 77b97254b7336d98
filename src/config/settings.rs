//! The one table of settings: a name, how its value is read, and the field it sets. The file, the environment and
//! flags all go through it, so that a name means the same everywhere.
//!
//! A setting `limits.sessions` is `sessions` under `[limits]` in the file and `ONLOOKER_LIMITS_SESSIONS` in the
//! environment.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use onlooker_protocol::view::GuardrailKind;
use url::Url;

use super::{
    Config, Durability, NotifyWebhook,
    secret::{Secret, SecretUrl},
    units,
};

/// A value as it was found, not yet read.
pub(super) enum Raw<'a> {
    Text(&'a str),
    Integer(i64),
    Boolean(bool),
    List(Vec<&'a str>),
    /// Of a type that no setting has.
    Other,
}

pub(super) struct Setting {
    pub name: &'static str,
    pub set: fn(&mut Config, &Raw<'_>) -> Result<(), String>,
}

macro_rules! settings {
    ($($name:literal $read:ident $($field:ident).+;)+) => {
        pub(super) const SETTINGS: &[Setting] = &[$(Setting {
            name: $name,
            set: |config, raw| {
                config.$($field).+ = $read(raw)?;
                Ok(())
            },
        },)+
        Setting { name: "notify_webhook", set: webhook_url },
        Setting { name: "notify_webhook.url", set: webhook_url },
        Setting { name: "notify_webhook.secret", set: webhook_secret },
        ];
    };
}

settings! {
    "listen" address listen.address;
    "tls_cert" path listen.tls_cert;
    "tls_key" path listen.tls_key;
    "plaintext_behind_proxy" flag listen.plaintext_behind_proxy;
    "public_url" public_url listen.public_url;
    "origins" origins listen.origins;
    "data_dir" path data.dir;
    "ephemeral" flag data.ephemeral;
    "durability" durability data.durability;
    "allow_default_answer" kinds guardrails.allow_default_answer;
    "pools" list pools;

    "telegram.token" secret telegram.token;
    "telegram.api" api telegram.api;
    "slack.bot_token" secret slack.bot_token;
    "slack.signing_secret" secret slack.signing_secret;
    "slack.app_token" secret slack.app_token;
    "slack.api" api slack.api;

    "webrun.require_key" flag webrun.require_key;
    "webrun.inline_wait" time_or_zero webrun.inline_wait;
    "webrun.requests_per_minute" count webrun.requests_per_minute;
    "webrun.failed_joins_per_minute" count webrun.failed_joins_per_minute;
    "webrun.trusted_proxies" proxies webrun.trusted_proxies;
    "webrun.private_webhooks" flag webrun.private_webhooks;
    "webrun.file_bytes" bytes webrun.file_bytes;
    "webrun.files_bytes_total" bytes webrun.files_bytes_total;
    "webrun.orphan_file" time webrun.orphan_file;

    "limits.client_frame_bytes" bytes limits.client_frame_bytes;
    "limits.runtime_frame_bytes" bytes limits.runtime_frame_bytes;
    "limits.event_payload_bytes" bytes limits.event_payload_bytes;
    "limits.batch_events" count limits.batch_events;
    "limits.auth_frame_bytes" bytes limits.auth_frame_bytes;
    "limits.subscriptions_per_connection" count limits.subscriptions_per_connection;
    "limits.log_events" count limits.log_events;
    "limits.log_bytes" bytes limits.log_bytes;
    "limits.log_bytes_total" bytes limits.log_bytes_total;
    "limits.send_queue_bytes" bytes limits.send_queue_bytes;
    "limits.open_guardrails" count limits.open_guardrails;
    "limits.guardrail_items" count limits.guardrail_items;
    "limits.guardrail_text_bytes" bytes limits.guardrail_text_bytes;
    "limits.queued_tasks" count limits.queued_tasks;
    "limits.pictures" count limits.pictures;
    "limits.picture_bytes" bytes limits.picture_bytes;
    "limits.connections" count limits.connections;
    "limits.sessions" count limits.sessions;
    "limits.http_body_bytes" bytes limits.http_body_bytes;
    "limits.events_body_bytes" bytes limits.events_body_bytes;

    "times.auth_within" time times.auth_within;
    "times.ping_every" time times.ping_every;
    "times.live_window" time times.live_window;
    "times.attention_lease" time times.attention_lease;
    "times.poll_window" time times.poll_window;
    "times.grace" time_or_zero times.grace;
    "times.first_look" time_or_zero times.first_look;
    "times.start_grace" time_or_zero times.start_grace;
    "times.offer" time times.offer;
    "times.notice_timeout" time times.notice_timeout;
    "times.runtime_grace" time times.runtime_grace;
    "times.http_runtime_away" time times.http_runtime_away;
    "times.inactivity" time times.inactivity;
    "times.task_slack" time_or_zero times.task_slack;
    "times.guardrail_max_wait" time times.guardrail_max_wait;
    "times.claim" time times.claim;
    "times.claim_max" time times.claim_max;
    "times.control_lease" time times.control_lease;
    "times.control_grace" time_or_zero times.control_grace;
    "times.sensitive_window" time times.sensitive_window;
    "times.retention" time_or_zero times.retention;
    "times.log_age" time times.log_age;
    "times.send_stall" time times.send_stall;
    "times.header_read" time times.header_read;
    "times.body_read" time times.body_read;
    "times.tls_handshake" time times.tls_handshake;
    "times.keep_alive" time times.keep_alive;
    "times.drain" time_or_zero times.drain;
}

fn text<'a>(raw: &Raw<'a>) -> Result<&'a str, String> {
    match raw {
        Raw::Text(text) => Ok(text),
        _ => Err("must be text".to_owned()),
    }
}

fn secret(raw: &Raw<'_>) -> Result<Option<Secret>, String> {
    let text = text(raw)?.trim();
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("must be one word without spaces".to_owned());
    }
    Ok((!text.is_empty()).then(|| Secret::new(text)))
}

/// An address to which paths are added.
fn api(raw: &Raw<'_>) -> Result<Url, String> {
    let mut url = Url::parse(text(raw)?.trim()).map_err(|_| "must be an http or https URL".to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
        return Err("must be an http or https URL without `?` and `#`".to_owned());
    }
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(url)
}

fn count(raw: &Raw<'_>) -> Result<usize, String> {
    let number = match raw {
        Raw::Integer(number) => usize::try_from(*number).ok(),
        Raw::Text(text) => text.trim().parse().ok(),
        _ => None,
    };
    // What counts things sizes tables and semaphores; four thousand million is more than any of them takes.
    let most = u32::MAX as usize;
    number.filter(|n| (1..=most).contains(n)).ok_or_else(|| format!("must be a whole number from 1 to {most}"))
}

fn bytes(raw: &Raw<'_>) -> Result<usize, String> {
    let bytes = match raw {
        Raw::Integer(number) => usize::try_from(*number).map_err(|_| "must not be negative".to_owned())?,
        Raw::Text(text) => units::bytes(text)?,
        _ => return Err("must be a size, such as \"64KiB\"".to_owned()),
    };
    if bytes == 0 { Err("must be at least 1 byte".to_owned()) } else { Ok(bytes) }
}

fn time_or_zero(raw: &Raw<'_>) -> Result<Duration, String> {
    match raw {
        Raw::Text(text) => units::time(text),
        _ => Err("must be a time in quotes and with a unit, such as \"5s\" or \"15min\"".to_owned()),
    }
}

fn time(raw: &Raw<'_>) -> Result<Duration, String> {
    time_or_zero(raw).and_then(|t| if t.is_zero() { Err("must be longer than nothing".to_owned()) } else { Ok(t) })
}

fn flag(raw: &Raw<'_>) -> Result<bool, String> {
    match raw {
        Raw::Boolean(flag) => Ok(*flag),
        Raw::Text("true" | "1" | "yes") => Ok(true),
        Raw::Text("false" | "0" | "no" | "") => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

fn durability(raw: &Raw<'_>) -> Result<Durability, String> {
    match text(raw)?.trim() {
        "fsync" => Ok(Durability::Fsync),
        "os" => Ok(Durability::Os),
        _ => Err("must be \"fsync\" (kept once it is on the disk) or \"os\" (once the system has it)".to_owned()),
    }
}

/// A list, in the environment and in flags one text with commas.
fn list(raw: &Raw<'_>) -> Result<Vec<String>, String> {
    match raw {
        Raw::List(items) => Ok(items.iter().map(|item| (*item).to_owned()).collect()),
        Raw::Text(text) => {
            Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
        }
        _ => Err("must be a list of texts".to_owned()),
    }
}

fn address(raw: &Raw<'_>) -> Result<SocketAddr, String> {
    let text = text(raw)?.trim();
    let local = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    local.as_deref().unwrap_or(text).parse().map_err(|_| {
        "must be an address with a port, such as \"127.0.0.1:8787\", \"[::1]:8787\" or \"0.0.0.0:8787\"".to_owned()
    })
}

fn proxies(raw: &Raw<'_>) -> Result<Vec<IpAddr>, String> {
    let read = |text: &String| text.parse().map_err(|_| "must hold IP addresses, such as \"10.0.0.5\"".to_owned());
    list(raw)?.iter().map(read).collect()
}

fn path(raw: &Raw<'_>) -> Result<Option<PathBuf>, String> {
    text(raw).map(|text| Some(PathBuf::from(text)).filter(|path| !path.as_os_str().is_empty()))
}

fn public_url(raw: &Raw<'_>) -> Result<Option<Url>, String> {
    let url = Url::parse(text(raw)?.trim()).ok().filter(|url| {
        let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.path() == "/"
            && bare
            && url.fragment().is_none()
    });
    url.map(Some).ok_or_else(|| "must be a URL without a path, such as \"https://onlooker.example.com\"".to_owned())
}

fn origins(raw: &Raw<'_>) -> Result<Vec<String>, String> {
    list(raw)?.iter().map(|text| origin(text)).collect()
}

/// Brings an origin into the form in which browsers send it.
fn origin(text: &str) -> Result<String, String> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.path() == "/");
    url.map(|url| url.origin().ascii_serialization()).ok_or_else(|| {
        "must hold origins, scheme and host and nothing more, such as \"https://console.example.com\"".to_owned()
    })
}

fn kinds(raw: &Raw<'_>) -> Result<Vec<GuardrailKind>, String> {
    use GuardrailKind::{Policy, Purchase, Security};
    let kind = |name: &String| match name.as_str() {
        "purchase" => Ok(Purchase),
        "security" => Ok(Security),
        "policy" => Ok(Policy),
        _ => Err("may hold \"purchase\", \"security\" and \"policy\"; the other kinds need no permission".to_owned()),
    };
    list(raw)?.iter().map(kind).collect()
}

/// Sets the URL and keeps a secret that an earlier source gave.
fn webhook_url(config: &mut Config, raw: &Raw<'_>) -> Result<(), String> {
    let url = SecretUrl::parse(text(raw)?.trim()).ok_or("must be an http or https URL")?;
    let secret = config.reach_out.notify_webhook.take().and_then(|webhook| webhook.secret);
    config.reach_out.notify_webhook = Some(NotifyWebhook { url, secret });
    Ok(())
}

/// Needs the URL to be set already; every source is read with the URL first.
fn webhook_secret(config: &mut Config, raw: &Raw<'_>) -> Result<(), String> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = text(raw)?.trim();
    let bytes = STANDARD.decode(text.strip_prefix("whsec_").unwrap_or_default()).map(zeroize::Zeroizing::new);
    if !bytes.is_ok_and(|bytes| (24..=64).contains(&bytes.len())) {
        return Err("must be `whsec_` and the base64 of 24 to 64 random bytes".to_owned());
    }
    let webhook = config.reach_out.notify_webhook.as_mut().ok_or("needs `notify_webhook.url` beside it")?;
    webhook.secret = Some(Secret::new(text));
    Ok(())
}
