//! What people say in chats, understood: answers, claims, codes that link.
//!
//! Whoever says something hears what came of it and what to do next, and nobody else does. Only people who are linked to
//! a session's project and environment act; to everybody else nothing here says whether a session or a question exists.
//! What is refused changes nothing and is counted. Cards are drawn elsewhere, from outcomes.

mod linking;
mod words;

use std::time::Duration;

use futures::future::BoxFuture;
use onlooker_protocol::{
    code::{Code, Refusal},
    subscriber::{Answer, AnswerAction},
    view::{GuardrailKind, GuardrailView},
};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tokio::time::timeout;

use super::{Desk, Person, Reply, Said, What, card, marks::Tap};
use crate::{
    control::{Holder, HolderKey},
    guardrail::Actor,
    links::Links,
    notifier::Receipt,
    outbox::{Found, NoticeSubject},
    session::{Directory, Services, Session},
    tries::Tries,
};

/// What is said takes no longer than this; a session whose store does not answer takes longer, and is not waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Of a person's name, in characters.
const NAME: usize = 48;
/// Texts without a meaning that one chat gets an answer to …
const HELPS: usize = 5;
/// … within this time.
const HELPS_WITHIN: Duration = Duration::from_secs(60);
/// Chats whose texts without a meaning are counted.
const CHATS: usize = 4096;

/// The desk over the sessions of this node.
pub struct ChatDesk {
    directory: Directory,
    helps: Tries<String>,
}

impl Desk for ChatDesk {
    fn hear(&self, mut said: Said) -> BoxFuture<'_, Reply> {
        said.by.name = plain_name(&said.by);
        Box::pin(async move {
            match timeout(ANSWER_WITHIN, self.understand(&said)).await {
                Ok(Ok(reply) | Err(reply)) => reply,
                Err(_) => self.refuse(&said, "unavailable", words::NOT_NOW),
            }
        })
    }
}

/// A question that whoever speaks may answer.
struct Asked {
    session: Session,
    guardrail: String,
    revision: u32,
    notice: String,
}

/// `Err` is a refusal as well, made where it was found.
type Heard = Result<Reply, Reply>;

impl ChatDesk {
    pub fn new(directory: Directory) -> Self {
        Self { directory, helps: Tries::new(HELPS, HELPS_WITHIN, CHATS) }
    }

    fn services(&self) -> &Services {
        self.directory.services()
    }

    fn links(&self) -> &Links {
        &self.services().targets.links
    }

    /// Nothing changes, and it is counted.
    fn refuse(&self, said: &Said, why: &'static str, text: impl Into<String>) -> Reply {
        self.services().metrics.callback_refused(said.connector, why);
        tracing::info!(chat = said.connector, why, "what was said in a chat was refused");
        Reply::refused(text)
    }

    async fn understand(&self, said: &Said) -> Heard {
        match &said.what {
            What::Tapped { mark, on } => self.tapped(said, mark, on).await,
            What::Replied { to, text } => self.replied(said, to, text).await,
            What::Told { text } => self.told(said, text).await,
        }
    }

    async fn tapped(&self, said: &Said, mark: &str, on: &Receipt) -> Heard {
        let read = self.services().marks.read(mark);
        let (notice, tap) = read.ok_or_else(|| self.refuse(said, "forged", words::FORGED))?;
        // Before anything is looked up: strangers cost nothing.
        if !self.links().knows(said.connector, &said.by) {
            return Err(self.refuse(said, "foreign", words::NOT_LINKED));
        }
        let found = self.services().outbox.find(&notice).await.map_err(|_| self.unavailable(said))?;
        let found = found.ok_or_else(|| self.refuse(said, "gone", words::GONE))?;
        let asked = self.asked(said, &found).await?;
        if !lies_there(&found, said, on) {
            return Err(self.refuse(said, "wrong_message", words::WRONG_MESSAGE));
        }
        match tap {
            Tap::Approve => self.approve(said, &asked).await,
            Tap::Decline => self.decline(said, &asked).await,
            Tap::Choice(nth) => self.choose(said, &asked, usize::from(nth)).await,
            Tap::Claim => self.claim(said, &asked).await,
            Tap::Form => self.form(said, &asked).await,
        }
    }

    async fn replied(&self, said: &Said, to: &Receipt, text: &str) -> Heard {
        // Before anything is looked up, as above; a code may come as a reply to whatever the bot said last.
        if !self.links().knows(said.connector, &said.by) {
            return self.told(said, text).await;
        }
        let target = target_of(said);
        let found = self.services().outbox.find_message(&target, to).await.map_err(|_| self.unavailable(said))?;
        let Some(found) = found else { return self.told(said, text).await };
        let asked = self.asked(said, &found).await?;
        let view = self.seen(said, &asked).await?;
        if !view.fields.is_empty() {
            return Err(self.not_in_a_chat(said, &asked, &view));
        }
        let reply = self.say(said, &asked, &view, text.trim()).await;
        // A login may be asked for without naming its fields: words that answer it are as secret.
        let erase = matches!(view.kind, GuardrailKind::Login | GuardrailKind::TwoFactor);
        let erasing = |reply: Reply| Reply { erase, ..reply };
        reply.map(erasing).map_err(erasing)
    }

    // --- which question, and may they ------------------------------------------------------------------------------

    /// The question of a notice, for those who are linked to its session.
    async fn asked(&self, said: &Said, found: &Found) -> Result<Asked, Reply> {
        let foreign = || self.refuse(said, "foreign", words::NOT_LINKED_HERE);
        let Some(session) = self.directory.get_any(found.key.session) else {
            let links = self.links().of_person(said.connector, &said.by);
            let theirs = links.iter().any(|link| link.project == found.project);
            return Err(if theirs { self.refuse(said, "gone", words::GONE) } else { foreign() });
        };
        let state = session.snapshot().await.map_err(|_| foreign())?.state;
        let environment = state.environment_id.as_deref();
        if !self.links().may_answer(&session.project, environment, said.connector, &said.by) {
            return Err(foreign());
        }
        match &found.key.subject {
            NoticeSubject::Guardrail { id, revision } => {
                Ok(Asked { session, guardrail: id.clone(), revision: *revision, notice: found.id.clone() })
            }
            NoticeSubject::Result { .. } => Err(self.refuse(said, "result", words::RESULT)),
        }
    }

    /// What is asked; refused if it is no longer what the card says.
    async fn seen(&self, said: &Said, asked: &Asked) -> Result<GuardrailView, Reply> {
        match asked.session.guardrail(asked.guardrail.clone()).await {
            Ok(view) if view.revision == asked.revision => Ok(view),
            Ok(view) if view.revision > asked.revision => Err(self.refuse(said, "stale", words::ASKED_AGAIN)),
            Ok(_) | Err(_) => Err(self.refuse(said, "gone", words::GONE)),
        }
    }

    // --- what they say ---------------------------------------------------------------------------------------------

    async fn approve(&self, said: &Said, asked: &Asked) -> Heard {
        let view = self.seen(said, asked).await?;
        if !view.fields.is_empty() || !view.choices.is_empty() {
            return Err(self.refuse(said, "incomplete", words::MORE_THAN_YES));
        }
        self.answer(said, asked, "approve", AnswerAction::Submit, Saying::Nothing).await?;
        Ok(Reply::text(words::APPROVED))
    }

    async fn decline(&self, said: &Said, asked: &Asked) -> Heard {
        self.answer(said, asked, "decline", AnswerAction::Decline, Saying::Nothing).await?;
        Ok(Reply::text(words::REJECTED))
    }

    async fn choose(&self, said: &Said, asked: &Asked, nth: usize) -> Heard {
        let view = self.seen(said, asked).await?;
        let choice = view.choices.get(nth).ok_or_else(|| self.refuse(said, "incomplete", words::NO_SUCH_CHOICE))?;
        if !view.fields.is_empty() {
            return Err(self.not_in_a_chat(said, asked, &view));
        }
        let tap = format!("choice {nth}");
        self.answer(said, asked, &tap, AnswerAction::Submit, Saying::Choice(choice.id.clone())).await?;
        Ok(Reply::text(words::chosen(choice)))
    }

    /// Words. What is one of the choices, chooses it.
    async fn say(&self, said: &Said, asked: &Asked, view: &GuardrailView, text: &str) -> Heard {
        if text.is_empty() {
            return Err(self.refuse(said, "incomplete", words::NO_WORDS));
        }
        let same = |name: &str| name.trim().to_lowercase() == text.to_lowercase();
        let choice = view.choices.iter().find(|choice| same(&choice.id) || choice.label.as_deref().is_some_and(same));
        let saying = match choice {
            Some(choice) => Saying::Choice(choice.id.clone()),
            None => Saying::Text(text.to_owned()),
        };
        self.answer(said, asked, "reply", AnswerAction::Submit, saying).await?;
        Ok(Reply::text(choice.map_or_else(|| words::SENT.to_owned(), words::chosen)))
    }

    async fn answer(
        &self,
        said: &Said,
        asked: &Asked,
        what: &str,
        action: AnswerAction,
        saying: Saying,
    ) -> Result<GuardrailView, Reply> {
        let (text, choice) = match saying {
            Saying::Nothing => (None, None),
            Saying::Choice(choice) => (None, Some(choice)),
            Saying::Text(text) => (Some(text), None),
        };
        let answer = Answer {
            revision: asked.revision,
            idempotency_key: idempotency_key(&asked.notice, what, said),
            action,
            text,
            choice,
            values: Default::default(),
        };
        match asked.session.answer(asked.guardrail.clone(), answer, actor(said)).await {
            Ok(view) => Ok(view),
            Err(refusal) => Err(self.refused(said, asked, &refusal).await),
        }
    }

    async fn claim(&self, said: &Said, asked: &Asked) -> Heard {
        match asked.session.claim(asked.guardrail.clone(), asked.revision, None, actor(said)).await {
            Ok(claim) => Ok(Reply::text(words::claimed(&claim))),
            Err(refusal) => Err(self.refused(said, asked, &refusal).await),
        }
    }

    async fn form(&self, said: &Said, asked: &Asked) -> Heard {
        let view = self.seen(said, asked).await?;
        if view.state.is_closed() {
            return Err(self.refuse(said, "late", words::late(&view)));
        }
        match self.form_link(asked) {
            Some(link) => Ok(Reply { text: words::FORM.to_owned(), link: Some(link), ..Reply::default() }),
            None => Err(self.refuse(said, "no_public_url", words::NO_FORM)),
        }
    }

    fn form_link(&self, asked: &Asked) -> Option<(String, String)> {
        let link = self.services().forms.link(&asked.notice, OffsetDateTime::now_utc())?;
        Some((words::OPEN_FORM.to_owned(), link.url))
    }

    /// Whatever was typed should not stay in the chat, also when it comes too late.
    fn not_in_a_chat(&self, said: &Said, asked: &Asked, view: &GuardrailView) -> Reply {
        let reply = if view.state.is_closed() {
            self.refuse(said, "late", words::late(view))
        } else {
            let link = self.form_link(asked);
            let text = if link.is_some() { words::ONLY_BY_FORM } else { words::ONLY_BY_CONSOLE };
            Reply { link, ..self.refuse(said, "secret", text) }
        };
        Reply { erase: matches!(said.what, What::Replied { .. }), ..reply }
    }

    // --- what they are told ----------------------------------------------------------------------------------------

    fn unavailable(&self, said: &Said) -> Reply {
        self.refuse(said, "unavailable", words::NOT_NOW)
    }

    /// A refusal of the session's own.
    async fn refused(&self, said: &Said, asked: &Asked, refusal: &Refusal) -> Reply {
        match refusal.code {
            Code::StaleRevision => self.refuse(said, "stale", words::ASKED_AGAIN),
            Code::UnknownGuardrail | Code::UnknownSession => self.refuse(said, "gone", words::GONE),
            Code::AlreadyAnswered | Code::GuardrailClosed => match self.seen(said, asked).await {
                Ok(view) => self.refuse(said, "late", words::late(&view)),
                Err(reply) => reply,
            },
            Code::Claimed => self.refuse(said, "claimed", words::claimed_by_another(refusal)),
            Code::TooLarge => self.refuse(said, "too_large", words::TOO_LONG),
            _ => self.unavailable(said),
        }
    }
}

/// What an answer holds.
enum Saying {
    Nothing,
    Choice(String),
    Text(String),
}

fn target_of(said: &Said) -> String {
    format!("{}:{}", said.connector, said.address)
}

/// Whether the notice's message is the one that was tapped. Where it lies is not known until its sending has come to an
/// end, nor of a first attempt that was repeated.
fn lies_there(found: &Found, said: &Said, on: &Receipt) -> bool {
    let here = found.receipt.as_ref().is_none_or(|receipt| receipt == on);
    found.key.target == target_of(said) && (here || found.repeated)
}

fn actor(said: &Said) -> Actor {
    let by = HolderKey::Credential(format!("{}:{}", said.connector, said.by.id).into());
    let who = format!("{} ({})", said.by.name, card::channel(said.connector));
    Actor { holder: Holder { who, by }, via: said.connector }
}

/// A tap that comes twice is one answer; another person's is another one. Of a reply its text is left out: the key is
/// stored, and the text is not.
fn idempotency_key(notice: &str, what: &str, said: &Said) -> String {
    let mut hash = Sha256::new();
    for part in [notice, what, said.connector, &said.by.id] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(16).fold("chat-".to_owned(), |key, byte| format!("{key}{byte:02x}"))
}

/// A name that its owner chose, as others may be shown it: one short line, in one direction.
fn plain_name(person: &Person) -> String {
    let turns = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let shown = |c: char| if c.is_control() || turns(c) { ' ' } else { c };
    let name: String = person.name.chars().take(4 * NAME).map(shown).collect();
    let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
    let name = if name.is_empty() { &person.id } else { &name };
    card::cut(name, NAME).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(connector: &'static str, id: &str, name: &str) -> Said {
        let by = Person { id: id.to_owned(), name: name.to_owned() };
        Said { connector, address: "1".to_owned(), by, what: What::Told { text: String::new() } }
    }

    #[test]
    fn a_key_is_one_for_each_tap_of_each_person() {
        let ann = said("telegram", "1", "Ann");
        let key = idempotency_key("n", "approve", &ann);
        assert_eq!(key, idempotency_key("n", "approve", &said("telegram", "1", "Anna")));
        assert!(key.len() <= 128);
        for other in [
            idempotency_key("m", "approve", &ann),
            idempotency_key("n", "decline", &ann),
            idempotency_key("n", "approve", &said("telegram", "2", "Ann")),
            idempotency_key("n", "approve", &said("slack", "1", "Ann")),
        ] {
            assert_ne!(key, other);
        }
    }

    #[test]
    fn a_name_is_one_short_line_and_never_empty() {
        let name = |name: &str| plain_name(&said("telegram", "77", name).by);
        assert_eq!(name(" Ann\n\u{202e}Lee\t"), "Ann Lee");
        assert_eq!(name("\u{200b}\n"), "77");
        assert_eq!(name(&"x".repeat(1000)).chars().count(), NAME);
    }
}
