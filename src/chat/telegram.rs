//! Telegram, by its Bot API (core.telegram.org/bots/api).
//!
//! A notice is a message, under the session's picture where there is one; its update edits that message and takes the
//! buttons away. What Telegram refuses about a picture or about the message that it belongs under does not hold the
//! question up: it is sent once more without both.
//!
//! An edit of a message that is gone, or that can no longer be edited, counts as taken: nothing is left there that
//! could be set right, and its buttons lead to an answer that names the winner.
//!
//! With a public address Telegram calls the gateway ([`hearing`]); without one, or with one that Telegram cannot call,
//! the gateway asks for updates.

mod api;
mod draw;
mod hearing;
mod limits;
mod place;
#[cfg(test)]
mod tests;
mod update;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use futures::future::BoxFuture;
use hmac::{Hmac, KeyInit as _, Mac as _};
use onlooker_protocol::notice::{Notice, NoticeType};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;
use zeroize::Zeroizing;

use self::{
    api::{Api, Failed, Told, Upload},
    draw::Drawn,
    hearing::Heard,
    limits::Limits,
    place::{Form, Place},
    update::Me,
};
use super::{Connector, Desk, Health, Hook, HookAnswer};
use crate::{
    config,
    images::Picture,
    notifier::{Delivery, Message, Notifier, Pace},
};

pub const NAME: &str = "telegram";
/// What Telegram asks bots to keep to (core.telegram.org/bots/faq): a message a second in one chat, 30 in all.
const PACE: Pace = Pace { address: Duration::from_secs(1), overall: Duration::from_millis(34) };
/// Of a picture, in bytes.
const PICTURE: usize = 10 * 1024 * 1024;
/// Telegram's own servers call these ports and no others.
const WEBHOOK_PORTS: &[u16] = &[443, 80, 88, 8443];
const TOKEN_REFUSED: &str = "Telegram does not accept the bot's token: it was revoked or is not complete. Ask @BotFather \
                             for it, set `telegram.token` and start the gateway anew; with a server of your own, look \
                             at `telegram.api` too";

/// One bot.
pub struct Telegram {
    api: Api,
    limits: Limits,
    /// Where Telegram calls; `None`: it is asked for updates.
    webhook: Option<Url>,
    /// Shows that a call comes from Telegram.
    secret: Zeroizing<String>,
    me: Mutex<Me>,
    heard: Heard,
    health: Mutex<Health>,
}

impl Telegram {
    /// `None` without a token. `timeout` is for one call. A default TLS provider must be installed.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn new(
        settings: &config::Telegram,
        public_url: Option<&Url>,
        timeout: Duration,
    ) -> Result<Option<Self>, reqwest::Error> {
        let Some(token) = &settings.token else { return Ok(None) };
        let id = token.expose().split(':').next().and_then(|id| id.parse().ok()).unwrap_or_default();
        Ok(Some(Self {
            api: Api::new(&settings.api, token, timeout)?,
            limits: Limits::default(),
            webhook: callback_url(&settings.api, public_url),
            secret: callback_secret(token.expose()),
            me: Mutex::new(Me { id, username: String::new() }),
            heard: Heard::default(),
            health: Mutex::new(Health::Working),
        }))
    }

    async fn deliver(&self, message: &Message) -> Delivery {
        let Ok(chat) = message.address.parse() else {
            return rejected("the target's address is no id of a Telegram chat");
        };
        let Some(notice) = message.notice() else {
            return rejected("the notice was written by another version of the gateway");
        };
        match message.card.as_ref().and_then(Place::read) {
            Some(place) => self.edit(chat, place, message, &notice).await,
            None => self.post(chat, message, &notice).await,
        }
    }

    async fn post(&self, chat: i64, message: &Message, notice: &Notice) -> Delivery {
        if let Err(wait) = self.limits.take(chat, Instant::now()) {
            return kept_back(wait);
        }
        let plain = || post_parameters(chat, notice, "text", draw::message(message, notice));
        let under = message.thread.as_ref().and_then(Place::read).map(|place| reply_parameters(place.message_id));
        let pictured = picture(message).and_then(|picture| Some((picture, draw::caption(message, notice)?)));
        let (form, sent) = match pictured {
            Some((picture, caption)) => {
                let mut parameters = post_parameters(chat, notice, "caption", caption);
                add(&mut parameters, "reply_parameters", under.clone());
                (Form::Photo, self.send_photo(&parameters, picture).await)
            }
            None => {
                let mut parameters = plain();
                add(&mut parameters, "reply_parameters", under.clone());
                (Form::Text, self.call("sendMessage", &parameters).await)
            }
        };
        let could_be_plainer = form == Form::Photo || under.is_some();
        let (form, sent) = match sent {
            Err(Failed::Told(told)) if could_be_plainer && is_about_the_message(&told) => {
                tracing::debug!(
                    code = told.code,
                    "Telegram refused a message, which is sent without picture and thread"
                );
                (Form::Text, self.call("sendMessage", &plain()).await)
            }
            sent => (form, sent),
        };
        match sent {
            Ok(result) => shown(&result, form),
            Err(failed) => self.judge(chat, &failed),
        }
    }

    async fn send_photo(&self, parameters: &Value, picture: &Picture) -> Result<Value, Failed> {
        let bytes = picture.bytes();
        let file = Upload { parameter: "photo", file_name: "picture", media: &picture.media, bytes: &bytes };
        self.note(self.api.upload("sendPhoto", parameters, &file).await)
    }

    async fn edit(&self, chat: i64, place: Place, message: &Message, notice: &Notice) -> Delivery {
        if let Some(wait) = self.limits.quiet(chat, Instant::now()) {
            return kept_back(wait);
        }
        let (method, words, drawn) = match place.form {
            Form::Text => ("editMessageText", "text", draw::message(message, notice)),
            Form::Photo => ("editMessageCaption", "caption", draw::changed_caption(message, notice)),
        };
        let mut parameters = json!({
            "chat_id": chat,
            "message_id": place.message_id,
            "parse_mode": "HTML",
            "reply_markup": { "inline_keyboard": drawn.keyboard },
        });
        add(&mut parameters, words, Some(drawn.html.into()));
        add(&mut parameters, "link_preview_options", (place.form == Form::Text).then(no_preview));
        match self.call(method, &parameters).await {
            Ok(_) => Delivery::Shown(place.receipt()),
            Err(Failed::Told(told)) if is_as_it_should_be(&told) => Delivery::Shown(place.receipt()),
            Err(Failed::Told(told)) if is_out_of_reach(&told) => Delivery::Confirmed,
            Err(failed) => self.judge(chat, &failed),
        }
    }

    async fn call(&self, method: &str, parameters: &impl Serialize) -> Result<Value, Failed> {
        self.note(self.api.call(method, parameters).await)
    }

    /// Learns from an outcome whether Telegram accepts the token.
    fn note<T>(&self, outcome: Result<T, Failed>) -> Result<T, Failed> {
        let mut health = self.lock_health();
        match (&outcome, &*health) {
            (Err(Failed::Told(Told { code: 401 | 404, .. })), Health::Working) => {
                tracing::error!(chat = NAME, "{TOKEN_REFUSED}");
                *health = Health::Disabled(TOKEN_REFUSED.to_owned());
            }
            (Ok(_), Health::Disabled(_)) => {
                tracing::info!(chat = NAME, "Telegram accepts the bot's token again");
                *health = Health::Working;
            }
            _ => {}
        }
        drop(health);
        outcome
    }

    /// What came of a message that Telegram has not taken, or may not have.
    fn judge(&self, chat: i64, failed: &Failed) -> Delivery {
        let told = match failed {
            Failed::Unreachable(error) => {
                return Delivery::Refused { error: (*error).to_owned(), retry_after: None };
            }
            Failed::Unclear(error) => return Delivery::Unknown { error: (*error).to_owned() },
            Failed::Told(told) => told,
        };
        let refused = |error: String| Delivery::Refused { error, retry_after: told.retry_after };
        match told.code {
            429 => {
                let wait = told.retry_after.unwrap_or_default();
                self.limits.told_to_wait(chat, wait, Instant::now());
                refused(format!("Telegram asks to wait for {} s", wait.as_secs()))
            }
            401 | 404 => rejected(TOKEN_REFUSED),
            408 | 425 | 500.. => refused(format!("Telegram answered HTTP {}", told.code)),
            _ => rejected(reason(told)),
        }
    }

    fn lock_health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().expect("no holder panics")
    }
}

impl Notifier for Telegram {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Delivery> {
        Box::pin(self.deliver(message))
    }

    fn pace(&self) -> Pace {
        PACE
    }
}

impl Connector for Telegram {
    fn name(&self) -> &'static str {
        NAME
    }

    fn hook<'a>(&'a self, request: Hook, desk: &'a dyn Desk) -> BoxFuture<'a, HookAnswer> {
        Box::pin(self.called(request, desk))
    }

    fn run<'a>(&'a self, desk: Arc<dyn Desk>, stop: CancellationToken) -> BoxFuture<'a, ()> {
        Box::pin(self.listen(desk, stop))
    }

    fn health(&self) -> Health {
        self.lock_health().clone()
    }
}

/// Where Telegram can call the gateway. Its own servers want https, a port of theirs and a name that they can look up;
/// a server of the operator's own calls whatever it is told.
pub fn callback_url(api: &Url, public_url: Option<&Url>) -> Option<Url> {
    let url = public_url?.join("v1/hooks/telegram").ok()?;
    let port = url.port_or_known_default().is_some_and(|port| WEBHOOK_PORTS.contains(&port));
    let own_server = api.host_str() != config::Telegram::default().api.host_str();
    (own_server || url.scheme() == "https" && port && draw::is_public_name(&url)).then_some(url)
}

/// Only who has the token can make it, and it is the same after a restart.
fn callback_secret(token: &str) -> Zeroizing<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(token.as_bytes()).expect("any length is a key");
    mac.update(b"onlooker telegram callbacks 1");
    Zeroizing::new(BASE64.encode(mac.finalize().into_bytes()))
}

/// The session's picture, where it helps. The repeat goes without: a picture may be why the first was too slow.
fn picture(message: &Message) -> Option<&Picture> {
    message.extras.picture.as_deref().filter(|picture| !message.repeat && picture.bytes().len() <= PICTURE)
}

fn post_parameters(chat: i64, notice: &Notice, words: &str, drawn: Drawn) -> Value {
    let mut parameters = json!({ "chat_id": chat, "parse_mode": "HTML" });
    add(&mut parameters, words, Some(drawn.html.into()));
    add(&mut parameters, "link_preview_options", (words == "text").then(no_preview));
    let keyboard = (!drawn.keyboard.is_empty()).then(|| json!({ "inline_keyboard": drawn.keyboard }));
    add(&mut parameters, "reply_markup", keyboard);
    // That a question is closed wakes nobody.
    let closed = matches!(notice.kind, NoticeType::GuardrailUpdated | NoticeType::GuardrailResolved);
    add(&mut parameters, "disable_notification", closed.then(|| true.into()));
    parameters
}

fn add(parameters: &mut Value, name: &str, value: Option<Value>) {
    if let Some(value) = value {
        parameters[name] = value;
    }
}

/// Previews are made by fetching the links.
fn no_preview() -> Value {
    json!({ "is_disabled": true })
}

fn reply_parameters(message_id: i64) -> Value {
    json!({ "message_id": message_id, "allow_sending_without_reply": true })
}

/// Telegram has taken it; what it does not say about it then is worth no second message.
fn shown(result: &Value, form: Form) -> Delivery {
    match result["message_id"].as_i64().filter(|id| *id > 0) {
        Some(message_id) => Delivery::Shown(Place { message_id, form }.receipt()),
        None => Delivery::Confirmed,
    }
}

fn kept_back(wait: Duration) -> Delivery {
    let error = "the chat gets no more messages for now, as Telegram wishes".to_owned();
    Delivery::Refused { error, retry_after: Some(wait) }
}

fn rejected(error: &str) -> Delivery {
    Delivery::Rejected { error: error.to_owned() }
}

/// Whether another form of the same message may be taken.
fn is_about_the_message(told: &Told) -> bool {
    matches!(told.code, 400 | 413) && !told.migrated
}

fn is_as_it_should_be(told: &Told) -> bool {
    told.code == 400 && told.description.contains("message is not modified")
}

fn is_out_of_reach(told: &Told) -> bool {
    let gone = ["message to edit not found", "message can't be edited"];
    told.code == 400 && gone.iter().any(|gone| told.description.contains(gone))
}

/// Why Telegram will not take it, in our words: its own may repeat what was sent.
fn reason(told: &Told) -> &'static str {
    const KNOWN: &[(&str, &str)] = &[
        ("blocked by the user", "the person has blocked the bot"),
        ("user is deactivated", "the person's Telegram account is gone"),
        ("can't initiate conversation", "the person has to write to the bot first"),
        ("kicked from", "the bot was removed from the chat"),
        ("not a member", "the bot is no member of the chat"),
        ("chat was deleted", "the group is gone"),
        ("chat not found", "Telegram knows no such chat: link it again"),
        ("not enough rights", "the bot may not write in this chat"),
        ("have no rights", "the bot may not write in this chat"),
        ("CHAT_WRITE_FORBIDDEN", "the bot may not write in this chat"),
        ("parse entities", "Telegram does not understand the message's markup"),
        ("too long", "Telegram finds the message too long"),
    ];
    if told.migrated {
        return "the group has become a supergroup with another id: link it again";
    }
    let known = KNOWN.iter().find(|(theirs, _)| told.description.contains(theirs));
    known.map_or("Telegram refuses the message", |(_, ours)| *ours)
}
