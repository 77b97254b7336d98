//! Answers that name no question.
//!
//! A WebRun client answers "the guardrail": what it means is what it was last shown, on its socket or in a poll. So who
//! shows a question remembers which one, and an answer that comes too late for it is told so instead of closing
//! another question.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use onlooker_protocol::{
    code::{Code, Refusal},
    subscriber::{Answer, AnswerAction},
    view::{GuardrailState, GuardrailView},
};
use zeroize::Zeroizing;

use super::owner::{Owner, OwnershipLost};
use crate::{clock, guardrail::Actor};

/// Who was shown nothing may mean a question that closed within this time before its answer came.
const JUST_CLOSED: Duration = Duration::from_secs(5);
/// Tasks whose pollers are remembered.
const TASKS: usize = 32;

/// A question as somebody was shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub guardrail: String,
    /// `None`: as it stands now.
    pub revision: Option<u32>,
}

/// An answer in free words. Its text is a secret.
pub struct Unnamed {
    /// What its sender was last shown.
    pub shown: Option<Shown>,
    pub text: Zeroizing<String>,
    pub decline: bool,
}

/// What became of it.
#[derive(Clone, Debug)]
pub enum Heard {
    /// It won.
    Applied(Box<GuardrailView>),
    /// The question that it was for is closed.
    TooLate(Box<GuardrailView>),
}

/// What the pollers of a session were last shown, by task. A poller has no connection that could remember it.
#[derive(Default)]
pub struct ShownToPollers(Mutex<VecDeque<(String, Shown)>>);

impl ShownToPollers {
    /// A poll of this task carried the question.
    pub fn set(&self, task: &str, shown: Shown) {
        let mut tasks = self.lock();
        tasks.retain(|(known, _)| known != task);
        if tasks.len() == TASKS {
            tasks.pop_front();
        }
        tasks.push_back((task.to_owned(), shown));
    }

    /// What was last shown of this task; of any task when none is named.
    pub fn last(&self, task: Option<&str>) -> Option<Shown> {
        let tasks = self.lock();
        let mut newest_first = tasks.iter().rev();
        newest_first.find(|(known, _)| task.is_none_or(|task| task == known)).map(|(_, shown)| shown.clone())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(String, Shown)>> {
        self.0.lock().expect("no holder panics")
    }
}

impl Owner {
    /// First answer wins here too.
    pub(super) async fn answer_unnamed(
        &mut self,
        unnamed: Unnamed,
        actor: &Actor,
    ) -> Result<Result<Heard, Refusal>, OwnershipLost> {
        let (id, revision) = match self.meant(unnamed.shown.as_ref()) {
            Ok(meant) => meant,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let view = self.book.get(&id).expect("just found").shown();
        if revision.is_some_and(|revision| revision != view.revision) {
            return Ok(Ok(Heard::TooLate(Box::new(view))));
        }
        let answer = in_the_terms_of(&view, &unnamed, actor);
        match self.answer(&id, answer, actor).await? {
            Ok(view) => Ok(Ok(Heard::Applied(Box::new(view)))),
            Err(refusal) if matches!(refusal.code, Code::AlreadyAnswered | Code::GuardrailClosed) => {
                let view = self.book.get(&id).expect("just answered").shown();
                Ok(Ok(Heard::TooLate(Box::new(view))))
            }
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// The question that is meant, and its revision if that is known.
    fn meant(&self, shown: Option<&Shown>) -> Result<(String, Option<u32>), Refusal> {
        if let Some(shown) = shown {
            let known = self.book.get(&shown.guardrail);
            return known
                .map(|_| (shown.guardrail.clone(), shown.revision))
                .ok_or_else(|| Refusal::plain(Code::UnknownGuardrail));
        }
        let mut open = self.book.open();
        let last_closed = self.last_closed();
        match (open.next(), open.next(), last_closed) {
            (Some(_), _, Some((closed, ago))) if ago < JUST_CLOSED => Ok((closed.guardrail_id.clone(), None)),
            (Some(only), None, _) => Ok((only.view.guardrail_id.clone(), Some(only.view.revision))),
            (Some(_), Some(_), _) => {
                let message = "several questions are open; name the one that is meant with `guardrailId`";
                Err(Refusal::new(Code::Ambiguous, message))
            }
            (None, _, Some((closed, _))) => Ok((closed.guardrail_id.clone(), None)),
            (None, _, None) => Err(Refusal::plain(Code::NoOpenGuardrail)),
        }
    }

    /// The question that closed last, and how long ago.
    fn last_closed(&self) -> Option<(&GuardrailView, Duration)> {
        let now = clock::now();
        let closed = self.book.iter().filter(|guardrail| guardrail.view.state != GuardrailState::Open);
        let timed = closed.filter_map(|guardrail| {
            let at = clock::parse(&guardrail.view.resolution.as_ref()?.at)?;
            Some((&guardrail.view, Duration::try_from(now - at).unwrap_or_default()))
        });
        timed.min_by_key(|(_, ago)| *ago)
    }
}

/// Free words as the question wants its answer: one of its choices where they name one, the value of its only field,
/// else a text that its runtime reads.
fn in_the_terms_of(view: &GuardrailView, unnamed: &Unnamed, actor: &Actor) -> Answer {
    let text = unnamed.text.as_str();
    let mut answer = Answer {
        revision: view.revision,
        // The same words again from the same sender are the same answer.
        idempotency_key: format!("unnamed:{:?}", actor.holder.by),
        action: if unnamed.decline { AnswerAction::Decline } else { AnswerAction::Submit },
        text: None,
        choice: None,
        values: Default::default(),
    };
    let said = text.trim();
    let names = |name: &str| name.trim().eq_ignore_ascii_case(said);
    let choice = view.choices.iter().find(|choice| names(&choice.id) || choice.label.as_deref().is_some_and(names));
    match (choice, view.fields.as_slice()) {
        _ if text.is_empty() => {}
        (Some(choice), _) => answer.choice = Some(choice.id.clone()),
        (None, [only]) if !unnamed.decline => {
            answer.values.insert(only.id.clone(), text.to_owned());
        }
        (None, _) => answer.text = Some(text.to_owned()),
    }
    answer
}

#[cfg(test)]
mod tests {
    use onlooker_protocol::{
        Position,
        event::Epoch,
        view::{Choice, Field, GuardrailKind, OnTimeout},
    };

    use super::*;
    use crate::control::{Holder, HolderKey};

    fn question(fields: &[&str], choices: &[(&str, &str)]) -> GuardrailView {
        let field = |id: &&str| Field {
            id: (*id).to_owned(),
            label: None,
            kind: None,
            required: true,
            secret: true,
            hint: None,
        };
        let choice = |(id, label): &(&str, &str)| Choice { id: (*id).to_owned(), label: Some((*label).to_owned()) };
        GuardrailView {
            session: "s".to_owned(),
            guardrail_id: "g".to_owned(),
            revision: 3,
            asked: 1,
            task: None,
            kind: GuardrailKind::Other,
            value: "What now?".to_owned(),
            domain: None,
            fields: fields.iter().map(field).collect(),
            choices: choices.iter().map(choice).collect(),
            website_error: None,
            state: GuardrailState::Open,
            opened_at: String::new(),
            expires_at: String::new(),
            on_timeout: OnTimeout::KeepWaiting,
            position: Position { epoch: Epoch::new("aaaaaaaa").unwrap(), offset: 0 },
            claim: None,
            resolution: None,
        }
    }

    fn answer(view: &GuardrailView, text: &str, decline: bool) -> Answer {
        let holder = Holder { who: "client".to_owned(), by: HolderKey::Credential("c".into()) };
        let unnamed = Unnamed { shown: None, text: text.to_owned().into(), decline };
        in_the_terms_of(view, &unnamed, &Actor { holder, via: "webrun" })
    }

    #[test]
    fn words_that_name_a_choice_are_that_choice() {
        let view = question(&[], &[("yes", "Buy it"), ("no", "Leave it")]);
        assert_eq!(answer(&view, "YES", false).choice.as_deref(), Some("yes"));
        assert_eq!(answer(&view, " leave it\n", false).choice.as_deref(), Some("no"));
        let other = answer(&view, "buy two", false);
        assert_eq!((other.choice, other.text.as_deref()), (None, Some("buy two")));
    }

    #[test]
    fn words_for_the_only_field_are_its_value_as_they_were_typed() {
        let only = answer(&question(&["code"], &[]), " 12 34 ", false);
        assert_eq!((only.values.get("code").map(String::as_str), only.text), (Some(" 12 34 "), None));
        let several = answer(&question(&["name", "code"], &[]), "ada 1234", false);
        assert_eq!((several.values.len(), several.text.as_deref()), (0, Some("ada 1234")));
    }

    #[test]
    fn who_declines_fills_in_nothing() {
        let declined = answer(&question(&["code"], &[]), "1234", true);
        assert_eq!((declined.action, declined.values.len()), (AnswerAction::Decline, 0));
        assert_eq!(answer(&question(&[], &[]), "", true).text, None);
    }

    #[test]
    fn the_last_poll_of_a_task_or_of_any_says_what_is_meant() {
        let shown = |id: &str| Shown { guardrail: id.to_owned(), revision: Some(1) };
        let polls = ShownToPollers::default();
        assert_eq!(polls.last(None), None);
        polls.set("a", shown("g1"));
        polls.set("b", shown("g2"));
        polls.set("a", shown("g3"));
        assert_eq!((polls.last(None), polls.last(Some("b"))), (Some(shown("g3")), Some(shown("g2"))));
        assert_eq!(polls.last(Some("c")), None);
        for task in 0..TASKS {
            polls.set(&format!("t{task}"), shown("g4"));
        }
        assert_eq!(polls.last(Some("b")), None);
        assert_eq!(polls.lock().len(), TASKS);
    }
}
