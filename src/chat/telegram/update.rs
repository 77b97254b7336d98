//! What Telegram says has happened, and what of it is for us.
//!
//! Of an update only the members are read that mean something here; one of them with another form makes the update
//! malformed. Channels, bots (among them groups' anonymous administrators), edits, and whatever is said in a group that
//! is neither a command of ours nor a reply to us, are not heard.

use serde::{Deserialize, de::IgnoredAny};

use super::{
    draw::visible,
    place::{Form, Place},
};
use crate::chat::{Person, card::cut};

/// The kinds of updates that are asked for.
pub(super) const KINDS: &[&str] = &["message", "callback_query"];
/// Of a person's name, in characters.
const NAME: usize = 64;
/// Of what a button carries, in bytes: what is longer was not carried by one.
const MARK: usize = 64;
/// Commands that bring a code: the first is what a link to the bot makes (`t.me/bot?start=CODE`).
const WITH_CODE: &[&str] = &["start", "link"];
/// Those that are heard in groups beside them.
const OTHERS: &[&str] = &["links", "status", "unlink", "stop"];

#[derive(Deserialize)]
pub(super) struct Update {
    pub(super) update_id: i64,
    message: Option<Message>,
    callback_query: Option<CallbackQuery>,
}

#[derive(Deserialize)]
struct Message {
    message_id: i64,
    /// 0 where the message is not accessible any more.
    date: i64,
    chat: Chat,
    from: Option<User>,
    text: Option<String>,
    photo: Option<IgnoredAny>,
    reply_to_message: Option<Box<Message>>,
}

#[derive(Deserialize)]
struct Chat {
    id: i64,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct User {
    id: i64,
    #[serde(default)]
    is_bot: bool,
    #[serde(default)]
    first_name: String,
    #[serde(default)]
    last_name: String,
}

#[derive(Deserialize)]
struct CallbackQuery {
    id: String,
    from: User,
    message: Option<Message>,
    data: Option<String>,
}

/// The bot itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Me {
    pub(super) id: i64,
    /// Empty until Telegram has said it.
    pub(super) username: String,
}

/// What is for us. May hold what somebody typed: no `Debug`.
pub(super) enum Event {
    Tap(Tap),
    Words(Words),
}

pub(super) struct Tap {
    /// What the answer to it names.
    pub(super) query: String,
    pub(super) by: Person,
    /// `None`: the button is no button of ours, or its message is out of reach.
    pub(super) on: Option<Tapped>,
}

pub(super) struct Tapped {
    pub(super) mark: String,
    pub(super) chat: i64,
    pub(super) message: Place,
}

pub(super) struct Words {
    pub(super) by: Person,
    pub(super) chat: i64,
    pub(super) message_id: i64,
    /// The message of ours that they answer.
    pub(super) to: Option<Place>,
    /// `None`: an answer to ours without words (a picture, a voice).
    pub(super) text: Option<String>,
}

impl Update {
    /// `None`: nothing that is heard.
    pub(super) fn event(self, me: &Me) -> Option<Event> {
        match (self.callback_query, self.message) {
            (Some(query), _) => Some(Event::Tap(query.tap())),
            (None, Some(message)) => message.words(me).map(Event::Words),
            (None, None) => None,
        }
    }
}

impl CallbackQuery {
    fn tap(self) -> Tap {
        let mark = self.data.filter(|data| data.len() <= MARK);
        let message = self.message.filter(|message| message.date != 0);
        let on =
            mark.zip(message).map(|(mark, message)| Tapped { mark, chat: message.chat.id, message: message.place() });
        Tap { query: self.id, by: self.from.person(), on }
    }
}

impl Message {
    fn place(&self) -> Place {
        let form = if self.photo.is_some() { Form::Photo } else { Form::Text };
        Place { message_id: self.message_id, form }
    }

    fn words(self, me: &Me) -> Option<Words> {
        let by = self.from.as_ref().filter(|user| !user.is_bot)?.person();
        let ours = |message: &&Message| message.from.as_ref().is_some_and(|from| from.is_bot && from.id == me.id);
        let to = self.reply_to_message.as_deref().filter(ours).map(Message::place);
        let text = match self.chat.kind.as_str() {
            _ if to.is_some() => self.text,
            "private" => Some(self.text.map(|text| command(&text, me).unwrap_or(text))?),
            "group" | "supergroup" => Some(command(&self.text?, me)?),
            _ => return None,
        };
        Some(Words { by, chat: self.chat.id, message_id: self.message_id, to, text })
    }
}

/// One of our commands: itself, or the code that it brings. `None` for other texts, and for commands to another bot.
fn command(text: &str, me: &Me) -> Option<String> {
    let (command, rest) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
    let (name, bot) = command.strip_prefix('/')?.split_once('@').unwrap_or((&command[1..], ""));
    let for_us = bot.is_empty() || me.username.is_empty() || bot.eq_ignore_ascii_case(&me.username);
    let is_of = |known: &[&str]| known.iter().any(|known| name.eq_ignore_ascii_case(known));
    match rest.trim() {
        _ if !for_us => None,
        code if is_of(WITH_CODE) => Some(code.to_owned()),
        "" if is_of(OTHERS) => Some(format!("/{name}")),
        _ => None,
    }
}

impl User {
    fn person(&self) -> Person {
        let name = visible(&format!("{} {}", self.first_name, self.last_name));
        let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
        let name = if name.is_empty() { format!("user {}", self.id) } else { cut(&name, NAME).0 };
        Person { id: self.id.to_string(), name }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn me() -> Me {
        Me { id: 42, username: "watch_bot".to_owned() }
    }

    fn event(update: Value) -> Option<Event> {
        serde_json::from_value::<Update>(update).unwrap().event(&me())
    }

    fn words(kind: &str, text: &str) -> Option<Words> {
        let message = json!({
            "message_id": 5, "date": 1, "chat": {"id": 9, "type": kind}, "text": text,
            "from": {"id": 7, "is_bot": false, "first_name": "Ann", "last_name": "Lee"},
        });
        match event(json!({"update_id": 1, "message": message}))? {
            Event::Words(words) => Some(words),
            Event::Tap(_) => None,
        }
    }

    fn told(kind: &str, text: &str) -> Option<String> {
        words(kind, text)?.text
    }

    #[test]
    fn codes_come_with_commands_or_alone_and_groups_are_heard_for_commands_only() {
        for text in ["/start K7", "/link K7", "/LINK@Watch_Bot  K7 ", "/start@watch_bot\nK7"] {
            assert_eq!(told("private", text).as_deref(), Some("K7"), "{text}");
            assert_eq!(told("supergroup", text).as_deref(), Some("K7"), "{text}");
        }
        for text in ["/unlink", "/Links"] {
            assert_eq!(told("group", &format!("{text}@watch_bot")).as_deref(), Some(text));
        }
        for text in ["K7", "/help", "/start@other_bot K7", "/unlink@other_bot", "/stop it", "/started K7", "/"] {
            assert_eq!(told("private", text).as_deref(), Some(text));
            assert_eq!(told("group", text), None, "{text}");
        }
        assert_eq!(told("private", "/start").as_deref(), Some(""));
        assert_eq!(told("channel", "/start K7"), None);
    }

    #[test]
    fn bots_edits_and_channels_are_not_heard() {
        let message = |from: Value, kind: &str| json!({"message_id": 5, "date": 1, "chat": {"id": 9, "type": kind}, "text": "/start K", "from": from});
        let person = json!({"id": 7, "is_bot": false, "first_name": "Ann"});
        let bot = json!({"id": 8, "is_bot": true, "first_name": "Group"});
        assert!(event(json!({"update_id": 1, "message": message(bot, "group")})).is_none());
        for kind in ["edited_message", "channel_post", "edited_channel_post", "business_message"] {
            assert!(event(json!({"update_id": 1, kind: message(person.clone(), "private")})).is_none(), "{kind}");
        }
        assert!(event(json!({"update_id": 1, "message": message(Value::Null, "private")})).is_none());
    }

    #[test]
    fn only_replies_to_this_bot_are_answers() {
        let reply = |from: i64, is_bot: bool, kind: &str| {
            let to = json!({
                "message_id": 4, "date": 1, "chat": {"id": 9, "type": kind}, "photo": [{"file_id": "x"}],
                "from": {"id": from, "is_bot": is_bot, "first_name": "x"},
            });
            let message = json!({
                "message_id": 5, "date": 1, "chat": {"id": 9, "type": kind}, "text": "the blue one",
                "from": {"id": 7, "is_bot": false, "first_name": "Ann"}, "reply_to_message": to,
            });
            event(json!({"update_id": 1, "message": message}))
        };
        let Some(Event::Words(words)) = reply(42, true, "group") else { panic!("an answer") };
        assert_eq!(words.to, Some(Place { message_id: 4, form: Form::Photo }));
        assert_eq!(words.text.as_deref(), Some("the blue one"));
        assert!(reply(43, true, "group").is_none(), "another bot's message");
        let Some(Event::Words(words)) = reply(7, false, "private") else { panic!("words") };
        assert_eq!(words.to, None);
    }

    #[test]
    fn names_are_what_can_be_seen_of_them_and_not_longer_than_64_characters() {
        let name = |first: &str, last: &str| {
            User { id: 7, is_bot: false, first_name: first.to_owned(), last_name: last.to_owned() }.person().name
        };
        assert_eq!(name("Ann", "Lee"), "Ann Lee");
        assert_eq!(name("\u{202e}Ann\n", ""), "Ann");
        assert_eq!(name("\u{200b}", " "), "user 7");
        assert_eq!(name(&"ä".repeat(100), "b").chars().count(), 64);
    }

    #[test]
    fn buttons_out_of_reach_and_foreign_data_name_nothing() {
        let query = |message: Value, data: &str| {
            let from = json!({"id": 7, "is_bot": false, "first_name": "Ann"});
            let mut query = json!({"id": "q", "from": from, "chat_instance": "1", "data": data});
            query["message"] = message;
            match event(json!({"update_id": 1, "callback_query": query})) {
                Some(Event::Tap(tap)) => tap,
                _ => panic!("a tap"),
            }
        };
        let message = |date: i64| json!({"message_id": 4, "date": date, "chat": {"id": 9, "type": "private"}});
        let tapped = query(message(1), "mark").on.unwrap();
        assert_eq!((tapped.mark.as_str(), tapped.chat, tapped.message.message_id), ("mark", 9, 4));
        assert!(query(message(0), "mark").on.is_none(), "inaccessible");
        assert!(query(Value::Null, "mark").on.is_none(), "sent inline");
        assert!(query(message(1), &"x".repeat(65)).on.is_none());
    }
}
