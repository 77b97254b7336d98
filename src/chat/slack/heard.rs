//! What Slack brings, understood: taps from interaction payloads, words from events. Whatever else it brings is taken
//! and says nothing.
//!
//! The same thing may come twice: Slack repeats what was not acknowledged in time, and a mention comes as two events.
//! So each has an identity, made of what Slack gives it, and is heard once.

use std::collections::{HashSet, VecDeque};

use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::Value;
use url::{Url, form_urlencoded};

use super::{
    NAME, blocks, receipt,
    replying::{Back, is_direct},
};
use crate::chat::{Hook, Person, Said, What};

/// Identities and signatures that are remembered. Only what Slack has sent is among them.
const REMEMBERED: usize = 16_384;
/// What people do in a message's place that leaves words of theirs: a reply that is shown in the channel too, and words
/// beside a file. Every other subtype is about messages, or by a bot.
const SPOKEN_SUBTYPES: [&str; 2] = ["thread_broadcast", "file_share"];

/// Something for the desk, and where its reply goes.
pub(super) struct Heard {
    pub(super) said: Said,
    pub(super) back: Back,
}

pub(super) enum Came {
    /// Slack asks whether we are there.
    Challenge(String),
    Said {
        identity: Vec<String>,
        heard: Box<Heard>,
    },
    Nothing,
}

/// Reads a request whose signature is right. `own`: the bot's user, where it is known. `None`: malformed.
pub(super) fn request(request: &Hook, own: Option<&str>) -> Option<Came> {
    let kind = request.headers.get(CONTENT_TYPE)?.to_str().ok()?;
    match kind.split(';').next()?.trim() {
        "application/x-www-form-urlencoded" => {
            let (_, payload) = form_urlencoded::parse(&request.body).find(|(name, _)| name == "payload")?;
            interaction(&serde_json::from_str(&payload).ok()?)
        }
        "application/json" => event(&serde_json::from_slice(&request.body).ok()?, own),
        _ => None,
    }
}

#[derive(Deserialize)]
struct Interaction {
    user: User,
    team: Option<Id>,
    channel: Option<Id>,
    container: Option<Container>,
    message: Option<InMessage>,
    response_url: Option<String>,
    trigger_id: Option<String>,
    actions: Vec<Action>,
}

#[derive(Deserialize)]
struct Id {
    id: String,
}

#[derive(Deserialize)]
struct User {
    id: String,
    name: Option<String>,
    username: Option<String>,
    team_id: Option<String>,
}

#[derive(Deserialize)]
struct Container {
    message_ts: Option<String>,
    channel_id: Option<String>,
    #[serde(default)]
    is_ephemeral: bool,
}

#[derive(Deserialize)]
struct InMessage {
    ts: Option<String>,
    thread_ts: Option<String>,
}

#[derive(Deserialize)]
struct Action {
    #[serde(default)]
    action_id: String,
    value: Option<String>,
    action_ts: Option<String>,
}

/// Reads an interaction payload; `None`: malformed.
pub(super) fn interaction(payload: &Value) -> Option<Came> {
    if payload["type"].as_str()? != "block_actions" {
        return Some(Came::Nothing);
    }
    let tapped = Interaction::deserialize(payload).ok()?;
    let is_ephemeral = tapped.container.as_ref().is_some_and(|container| container.is_ephemeral);
    let Some(action) = tapped.actions.first().filter(|action| action.action_id.starts_with(blocks::TAP)) else {
        return Some(Came::Nothing);
    };
    let Some(mark) = action.value.clone().filter(|_| !is_ephemeral) else { return Some(Came::Nothing) };
    let (contained, message) = (tapped.container.as_ref(), tapped.message.as_ref());
    let channel = tapped.channel.as_ref().map(|channel| &channel.id);
    let channel = channel.or(contained.and_then(|contained| contained.channel_id.as_ref()))?.clone();
    let ts = contained.and_then(|contained| contained.message_ts.as_ref());
    let ts = ts.or(message.and_then(|message| message.ts.as_ref()))?;
    let user = tapped.user;
    let team = user.team_id.as_deref().or(tapped.team.as_ref().map(|team| team.id.as_str()));
    let once = action.action_ts.as_deref().or(tapped.trigger_id.as_deref())?;
    let identity = vec![format!("tap {} {channel} {ts} {once}", user.id)];
    let name = user.name.or(user.username).filter(|name| !name.is_empty()).unwrap_or_else(|| user.id.clone());
    let said = Said {
        connector: NAME,
        address: channel.clone(),
        by: Person { id: lasting(team, &user.id), name },
        what: What::Tapped { mark, on: receipt(&channel, ts) },
    };
    let thread = message.and_then(|message| message.thread_ts.clone());
    let response_url = tapped.response_url.and_then(|url| Url::parse(&url).ok());
    let back = Back { channel, user: user.id, thread, response_url };
    Some(Came::Said { identity, heard: Box::new(Heard { said, back }) })
}

#[derive(Deserialize)]
struct EventCallback {
    team_id: Option<String>,
    event_id: Option<String>,
    #[serde(default)]
    authorizations: Vec<Authorization>,
    event: Event,
}

#[derive(Deserialize)]
struct Authorization {
    user_id: Option<String>,
    #[serde(default)]
    is_bot: bool,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    subtype: Option<String>,
    channel: Option<Value>,
    channel_type: Option<String>,
    user: Option<Value>,
    user_team: Option<String>,
    team: Option<String>,
    bot_id: Option<String>,
    text: Option<String>,
    ts: Option<String>,
    thread_ts: Option<String>,
    parent_user_id: Option<String>,
}

/// Reads a payload of the Events API; `None`: malformed.
pub(super) fn event(payload: &Value, own: Option<&str>) -> Option<Came> {
    match payload["type"].as_str()? {
        "url_verification" => return Some(Came::Challenge(payload["challenge"].as_str()?.to_owned())),
        "event_callback" => {}
        _ => return Some(Came::Nothing),
    }
    let callback = EventCallback::deserialize(payload).ok()?;
    let bot = callback.authorizations.iter().find(|authorization| authorization.is_bot);
    let own = bot.and_then(|bot| bot.user_id.as_deref()).or(own);
    Some(words(&callback, own).unwrap_or(Came::Nothing))
}

/// `None`: not for us.
fn words(callback: &EventCallback, own: Option<&str>) -> Option<Came> {
    let event = &callback.event;
    let is_mention = event.kind == "app_mention";
    let is_spoken = event.subtype.as_deref().is_none_or(|subtype| SPOKEN_SUBTYPES.contains(&subtype));
    if !(is_mention || event.kind == "message") || !is_spoken || event.bot_id.is_some() {
        return None;
    }
    let (user, channel) = (event.user.as_ref()?.as_str()?, event.channel.as_ref()?.as_str()?);
    let ts = event.ts.as_deref()?;
    if own == Some(user) {
        return None;
    }
    let text = typed(event.text.as_deref()?, own);
    let thread = event.thread_ts.as_deref().filter(|thread| *thread != ts);
    let is_direct = event.channel_type.as_deref() == Some("im") || is_direct(channel);
    let is_anothers = event.parent_user_id.as_deref().zip(own).is_some_and(|(parent, own)| parent != own);
    let what = match thread {
        // Of other people's threads, only what names us is for us.
        Some(_) if is_anothers && !is_direct && !is_mention => return None,
        Some(thread) if !is_anothers => What::Replied { to: receipt(channel, thread), text },
        _ if is_direct || is_mention => What::Told { text },
        _ => return None,
    };
    let team = event.user_team.as_deref().or(event.team.as_deref()).or(callback.team_id.as_deref());
    let identity = callback.event_id.iter().map(|id| format!("event {id}"));
    let identity = identity.chain([format!("message {channel} {ts}")]).collect();
    // Events hold no names.
    let by = Person { id: lasting(team, user), name: user.to_owned() };
    let said = Said { connector: NAME, address: channel.to_owned(), by, what };
    let (channel, user, thread) = (channel.to_owned(), user.to_owned(), thread.map(str::to_owned));
    let back = Back { channel, user, thread, response_url: None };
    Some(Came::Said { identity, heard: Box::new(Heard { said, back }) })
}

/// User ids are unique in a workspace only.
fn lasting(team: Option<&str>, user: &str) -> String {
    team.map_or_else(|| user.to_owned(), |team| format!("{team}:{user}"))
}

/// What somebody typed, out of Slack's form of it: control characters are escaped, and addresses, mentions and
/// channels stand in angle brackets. Mentions of us are left out.
fn typed(text: &str, own: Option<&str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, tail)) = rest.split_once('<') {
        out.push_str(&unescaped(before));
        match tail.split_once('>') {
            Some((inner, after)) => {
                out.push_str(&shown(inner, own));
                rest = after;
            }
            None => {
                out.push('<');
                rest = tail;
            }
        }
    }
    out.push_str(&unescaped(rest));
    out.trim().to_owned()
}

/// What stands between angle brackets, as its writer sees it.
fn shown(inner: &str, own: Option<&str>) -> String {
    let (target, label) = inner.split_once('|').unwrap_or((inner, ""));
    let (target, label) = (unescaped(target), unescaped(label));
    match target.chars().next() {
        Some('@') if own.is_some_and(|own| target[1..] == *own) => String::new(),
        Some(sign @ ('@' | '#')) if !label.is_empty() => format!("{sign}{label}"),
        Some('!') if label.is_empty() => format!("@{}", &target[1..]),
        Some('!') => label,
        _ if label.is_empty() => target.trim_start_matches("mailto:").trim_start_matches("tel:").to_owned(),
        // Slack made a link of what was typed.
        _ if target.contains(&label) => label,
        _ => format!("{label} ({target})"),
    }
}

fn unescaped(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

/// What has been heard. The oldest is forgotten first.
#[derive(Default)]
pub(super) struct Seen {
    order: VecDeque<String>,
    known: HashSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    New,
    /// The very request that was heard: Slack signs each of its own anew.
    Replayed,
    /// The same thing, brought again.
    Redelivered,
}

impl Seen {
    pub(super) fn admit(&mut self, signature: Option<&str>, identity: Vec<String>) -> Admission {
        if signature.is_some_and(|signature| self.known.contains(signature)) {
            return Admission::Replayed;
        }
        let before = identity.iter().any(|key| self.known.contains(key));
        for key in identity.into_iter().chain(signature.map(str::to_owned)) {
            self.remember(key);
        }
        if before { Admission::Redelivered } else { Admission::New }
    }

    fn remember(&mut self, key: String) {
        if !self.known.insert(key.clone()) {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_comes_back_as_it_was_typed() {
        for (slacks, typed_by_somebody) in [
            ("a &lt;b&gt; &amp;&amp; c", "a <b> && c"),
            ("&amp;lt;", "&lt;"),
            ("<@U0BOT> 123456", "123456"),
            ("please ask <@U2|bob> or <@U3>", "please ask @bob or @U3"),
            ("<mailto:a@b.example|a@b.example>", "a@b.example"),
            ("<http://shop.example|shop.example> it is", "shop.example it is"),
            ("<https://shop.example/a?b=1&amp;c=2>", "https://shop.example/a?b=1&c=2"),
            ("<https://shop.example|this shop>", "this shop (https://shop.example)"),
            ("<!here> in <#C1|general>", "@here in #general"),
            ("<!subteam^S1|@ops>", "@ops"),
            ("an open < bracket", "an open < bracket"),
            ("", ""),
        ] {
            assert_eq!(typed(slacks, Some("U0BOT")), typed_by_somebody);
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut seen = Seen::default();
        for nth in 0..3 * REMEMBERED {
            assert_eq!(seen.admit(Some(&format!("v0={nth}")), vec![format!("tap {nth}")]), Admission::New);
        }
        assert_eq!((seen.known.len(), seen.order.len()), (REMEMBERED, REMEMBERED));
        let last = format!("v0={}", 3 * REMEMBERED - 1);
        assert_eq!(seen.admit(Some(&last), vec!["tap other".to_owned()]), Admission::Replayed);
    }
}
