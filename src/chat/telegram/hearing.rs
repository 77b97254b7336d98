//! How the connector hears: calls of Telegram's, or updates that it asks for.
//!
//! An update is heard once, also where Telegram brings it again; one whose hearing was broken off is heard when it
//! comes back. Telegram is told that a page of updates was heard only after the last of them was.

use std::{
    collections::{HashSet, VecDeque},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    NAME, Telegram, add,
    api::Failed,
    draw, no_preview, reason, reply_parameters,
    update::{Event, KINDS, Me, Tap, Update, Words},
};
use crate::{
    chat::{Desk, Hook, HookAnswer, Reply, Said, What, card::cut},
    ids::up_to,
};

/// Comes with every call of Telegram's.
const SECRET_HEADER: &str = "x-telegram-bot-api-secret-token";
/// Of a call.
const CALL_BYTES_MAX: usize = 64 * 1024;
/// How many updates are remembered as heard.
const HEARD_MAX: usize = 4096;
/// How long Telegram holds a question for updates open when there are none.
const HOLD: Duration = Duration::from_secs(50);
/// Updates that are asked for at a time.
const PAGE: usize = 20;
/// Updates of a page that are heard at once.
const AT_ONCE: usize = 8;
/// The shortest time between two questions that bring nothing.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the desk may think. Telegram shows a tap as under way for not much longer.
const DESK: Duration = Duration::from_secs(15);
/// How long a stop waits for updates that are being heard …
const STOP_HEARING: Duration = Duration::from_secs(2);
/// … and for Telegram to know that they were.
const STOP_CONFIRMING: Duration = Duration::from_secs(1);
/// Of what is shown above the chat after a tap, in characters.
const TOAST: usize = 200;
/// What a person is told is tried this often, as long as it cannot have arrived …
const TRIES: u32 = 3;
/// … with waits up to this.
const TRY_WAIT: Duration = Duration::from_secs(5);
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_LONGEST: Duration = Duration::from_secs(60);

const OUT_OF_REACH: &str = "This button no longer works. Answer in the console.";
const NO_ANSWER: &str = "The gateway does not get an answer now. Try again in a moment, or use the console.";
const ONLY_WORDS: &str = "Only words are understood here: this was not taken as an answer.";
const NOT_ERASED: &str = "Your message could not be deleted here: please delete it yourself.";

impl Telegram {
    /// A request that claims to be Telegram's.
    pub(super) async fn called(&self, request: Hook, desk: &dyn Desk) -> HookAnswer {
        let shown = request.headers.get(SECRET_HEADER).map_or(&[][..], |value| value.as_bytes());
        if !bool::from(shown.ct_eq(self.secret.as_bytes())) {
            return HookAnswer::refused(401, "signature");
        }
        if request.body.len() > CALL_BYTES_MAX {
            return HookAnswer::refused(413, "too_large");
        }
        let Ok(update) = serde_json::from_slice(&request.body) else {
            return HookAnswer::refused(400, "malformed");
        };
        self.hear(update, desk).await;
        HookAnswer::empty()
    }

    /// Announces itself, and listens until `stop`.
    pub(super) async fn listen(&self, desk: Arc<dyn Desk>, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = self.announce() => {}
        }
        if self.webhook.is_some() {
            tracing::info!(chat = NAME, "Telegram calls the gateway");
            stop.cancelled().await;
        } else {
            tracing::info!(chat = NAME, "Telegram is asked for what people say");
            self.ask_for_updates(&*desk, &stop).await;
        }
    }

    /// Tries until Telegram has taken it.
    async fn announce(&self) {
        let mut backoff = Backoff::default();
        while let Err(failed) = self.introduce().await {
            tracing::warn!(chat = NAME, error = self.text(&failed), "the bot could not be announced to Telegram yet");
            sleep(backoff.after(&failed)).await;
        }
    }

    async fn introduce(&self) -> Result<(), Failed> {
        let me = self.call("getMe", &json!({})).await?;
        self.lock_me().username = me["username"].as_str().unwrap_or_default().to_owned();
        let (method, parameters) = match &self.webhook {
            Some(url) => (
                "setWebhook",
                json!({
                    "url": url.as_str(),
                    "secret_token": *self.secret,
                    "allowed_updates": KINDS,
                    "drop_pending_updates": false,
                }),
            ),
            None => ("deleteWebhook", json!({ "drop_pending_updates": false })),
        };
        self.call(method, &parameters).await.map(drop)
    }

    async fn ask_for_updates(&self, desk: &dyn Desk, stop: &CancellationToken) {
        let mut backoff = Backoff::default();
        let mut next = Next::default();
        loop {
            let asked_at = Instant::now();
            let asked = tokio::select! {
                biased;
                () = stop.cancelled() => return self.confirm(&next).await,
                asked = self.updates(&next, HOLD) => asked,
            };
            let pause = match asked {
                Ok(updates) => {
                    backoff = Backoff::default();
                    next.is_confirmed = true;
                    if updates.is_empty() {
                        PAUSE.saturating_sub(asked_at.elapsed())
                    } else if self.hear_page(updates, &mut next, desk, stop).await {
                        Duration::ZERO
                    } else {
                        return;
                    }
                }
                Err(failed) => {
                    self.complain(&failed);
                    backoff.after(&failed)
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.confirm(&next).await,
                () = sleep(pause) => {}
            }
        }
    }

    fn complain(&self, failed: &Failed) {
        let error = self.text(failed);
        if matches!(failed, Failed::Told(told) if told.code == 409) {
            tracing::error!(
                chat = NAME,
                error,
                "another program listens to this bot, and only one can: give each gateway a bot of its own, and remove \
                 the webhook that another program has set"
            );
        } else {
            tracing::warn!(chat = NAME, error, "Telegram does not say what people said");
        }
    }

    async fn updates(&self, next: &Next, hold: Duration) -> Result<Vec<Value>, Failed> {
        let mut parameters = json!({ "limit": PAGE, "timeout": hold.as_secs(), "allowed_updates": KINDS });
        add(&mut parameters, "offset", next.offset.map(Value::from));
        match self.note(self.api.wait("getUpdates", &parameters, hold).await)? {
            Value::Array(updates) => Ok(updates),
            _ => Err(Failed::Unclear("Telegram's answer holds no updates")),
        }
    }

    /// `false`: broken off by the stop. Those of the page are heard again by the next process then.
    async fn hear_page(&self, updates: Vec<Value>, next: &mut Next, desk: &dyn Desk, stop: &CancellationToken) -> bool {
        let last = updates.iter().filter_map(|update| update["update_id"].as_i64()).max();
        let page = futures::stream::iter(updates).for_each_concurrent(AT_ONCE, |update| self.hear_listed(update, desk));
        tokio::select! {
            biased;
            () = page => {}
            () = async { stop.cancelled().await; sleep(STOP_HEARING).await } => return false,
        }
        if let Some(last) = last {
            *next = Next { offset: Some(last + 1), is_confirmed: false };
        }
        true
    }

    /// One that breaks, or is no update, does not keep the others from being heard.
    async fn hear_listed(&self, update: Value, desk: &dyn Desk) {
        match serde_json::from_value(update) {
            Ok(update) => {
                if AssertUnwindSafe(self.hear(update, desk)).catch_unwind().await.is_err() {
                    tracing::error!(chat = NAME, "something that was said in a chat broke its hearing");
                }
            }
            Err(_) => tracing::warn!(chat = NAME, "an update of Telegram's is malformed and was passed over"),
        }
    }

    /// Before a stop: what was heard is not to come again.
    async fn confirm(&self, next: &Next) {
        if !next.is_confirmed {
            let _ = timeout(STOP_CONFIRMING, self.updates(next, Duration::ZERO)).await;
        }
    }

    pub(super) async fn hear(&self, update: Update, desk: &dyn Desk) {
        let Some(hearing) = self.heard.begin(update.update_id) else { return };
        let me = self.lock_me().clone();
        match update.event(&me) {
            Some(Event::Tap(tap)) => self.hear_tap(tap, desk).await,
            Some(Event::Words(words)) => self.hear_words(words, desk).await,
            None => {}
        }
        hearing.done();
    }

    async fn hear_tap(&self, tap: Tap, desk: &dyn Desk) {
        let Some(on) = tap.on else { return self.toast(&tap.query, &Reply::refused(OUT_OF_REACH)).await };
        let what = What::Tapped { mark: on.mark, on: on.message.receipt() };
        let reply = ask(desk, Said { connector: NAME, address: on.chat.to_string(), by: tap.by, what }).await;
        self.toast(&tap.query, &reply).await;
        if reply.link.is_some() || reply.text.chars().count() > TOAST {
            self.say(on.chat, &reply, Some(on.message.message_id)).await;
        }
    }

    async fn hear_words(&self, words: Words, desk: &dyn Desk) {
        let Words { by, chat, message_id, to, text } = words;
        let what = match (to, text) {
            (Some(to), Some(text)) => What::Replied { to: to.receipt(), text },
            (None, Some(text)) => What::Told { text },
            (_, None) => return self.say(chat, &Reply::text(ONLY_WORDS), Some(message_id)).await,
        };
        let mut reply = ask(desk, Said { connector: NAME, address: chat.to_string(), by, what }).await;
        if reply.erase && !self.erase(chat, message_id).await {
            reply.text = format!("{} {NOT_ERASED}", reply.text).trim_start().to_owned();
        }
        self.say(chat, &reply, (!reply.erase).then_some(message_id)).await;
    }

    /// Every tap is answered, or Telegram shows it as under way for a minute.
    async fn toast(&self, query: &str, reply: &Reply) {
        let mut parameters = json!({ "callback_query_id": query });
        if !reply.text.is_empty() {
            parameters["text"] = cut(&reply.text, TOAST).0.into();
            parameters["show_alert"] = reply.refused.into();
        }
        self.insist("answerCallbackQuery", &parameters).await;
    }

    async fn say(&self, chat: i64, reply: &Reply, to: Option<i64>) {
        let drawn = draw::reply(&reply.text, reply.link.as_ref());
        if drawn.html.is_empty() {
            return;
        }
        let mut parameters = json!({
            "chat_id": chat,
            "text": drawn.html,
            "parse_mode": "HTML",
            "link_preview_options": no_preview(),
        });
        add(&mut parameters, "reply_parameters", to.map(reply_parameters));
        let keyboard = (!drawn.keyboard.is_empty()).then(|| json!({ "inline_keyboard": drawn.keyboard }));
        add(&mut parameters, "reply_markup", keyboard);
        self.insist("sendMessage", &parameters).await;
    }

    /// Whether the message is gone.
    async fn erase(&self, chat: i64, message_id: i64) -> bool {
        self.insist("deleteMessage", &json!({ "chat_id": chat, "message_id": message_id })).await
    }

    /// Tries a few times what cannot have been done. Whether it was.
    async fn insist(&self, method: &str, parameters: &Value) -> bool {
        for attempt in 1.. {
            let failed = match self.call(method, parameters).await {
                Ok(_) => return true,
                Err(failed) => failed,
            };
            let wait = match &failed {
                Failed::Unreachable(_) => Some(Duration::from_secs(1)),
                Failed::Told(told) if told.code == 429 || told.code >= 500 => {
                    Some(told.retry_after.unwrap_or(Duration::from_secs(1)))
                }
                Failed::Told(_) | Failed::Unclear(_) => None,
            };
            match wait.filter(|wait| attempt < TRIES && *wait <= TRY_WAIT) {
                Some(wait) => sleep(wait).await,
                None => {
                    let error = told_apart(&failed);
                    tracing::warn!(chat = NAME, method, error, "somebody in a chat could not be answered");
                    break;
                }
            }
        }
        false
    }

    /// For operators, of calls that carry nothing of a session's.
    fn text(&self, failed: &Failed) -> String {
        match failed {
            Failed::Told(told) => format!("HTTP {}: {}", told.code, self.api.without_token(&told.description)),
            Failed::Unreachable(text) | Failed::Unclear(text) => (*text).to_owned(),
        }
    }

    fn lock_me(&self) -> MutexGuard<'_, Me> {
        self.me.lock().expect("no holder panics")
    }
}

fn told_apart(failed: &Failed) -> &'static str {
    match failed {
        Failed::Told(told) => reason(told),
        Failed::Unreachable(text) | Failed::Unclear(text) => text,
    }
}

async fn ask(desk: &dyn Desk, said: Said) -> Reply {
    timeout(DESK, desk.hear(said)).await.unwrap_or_else(|_| Reply::refused(NO_ANSWER))
}

/// Where the next page of updates begins.
struct Next {
    /// `None`: at the first that Telegram has.
    offset: Option<i64>,
    /// Whether Telegram knows that everything before was heard.
    is_confirmed: bool,
}

impl Default for Next {
    fn default() -> Self {
        Self { offset: None, is_confirmed: true }
    }
}

/// The updates that were heard last.
#[derive(Default)]
pub(super) struct Heard(Mutex<Ids>);

#[derive(Default)]
struct Ids {
    known: HashSet<i64>,
    order: VecDeque<i64>,
}

impl Heard {
    /// `None`: it was, or is being heard.
    fn begin(&self, id: i64) -> Option<Hearing<'_>> {
        let mut ids = self.lock();
        if !ids.known.insert(id) {
            return None;
        }
        ids.order.push_back(id);
        if ids.order.len() > HEARD_MAX
            && let Some(oldest) = ids.order.pop_front()
        {
            ids.known.remove(&oldest);
        }
        Some(Hearing { heard: self, id, done: false })
    }

    fn lock(&self) -> MutexGuard<'_, Ids> {
        self.0.lock().expect("no holder panics")
    }
}

/// One update's hearing. Broken off, the update counts as not heard.
struct Hearing<'a> {
    heard: &'a Heard,
    id: i64,
    done: bool,
}

impl Hearing<'_> {
    fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Hearing<'_> {
    fn drop(&mut self) {
        if !self.done {
            let mut ids = self.heard.lock();
            ids.known.remove(&self.id);
            ids.order.retain(|id| *id != self.id);
        }
    }
}

/// Waits between tries of what does not work: doubling, with jitter, and not before Telegram's own wish.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(BACKOFF_FIRST)
    }
}

impl Backoff {
    fn after(&mut self, failed: &Failed) -> Duration {
        let bound = self.0;
        self.0 = (bound * 2).min(BACKOFF_LONGEST);
        let wish = match failed {
            Failed::Told(told) => told.retry_after.unwrap_or_default(),
            Failed::Unreachable(_) | Failed::Unclear(_) => Duration::ZERO,
        };
        (bound / 2 + up_to(bound / 2)).max(wish)
    }
}
