//! Each planted fault is found by its name, and a right run has none.

use std::sync::Arc;

use onlooker_protocol::{
    event::Event,
    view::{GuardrailKind, GuardrailView, OnTimeout},
};
use serde_json::{Value, json};

use super::*;

const SESSION: &str = "s0000000000000000000";
const SETTLED: &str = "2026-01-01T00:01:00.000Z";

fn position(offset: u64) -> Position {
    format!("k3v9x0aa:{offset}").parse().unwrap()
}

fn event(offset: u64, kind: &str, data: Value) -> EventFrame {
    EventFrame {
        session: SESSION.to_owned(),
        position: position(offset),
        id: format!("id-{offset}"),
        at: "2026-01-01T00:00:00.000Z".to_owned(),
        task: None,
        event: Event { kind: kind.to_owned(), data },
    }
}

fn question(revision: u32) -> Question {
    Question { session: SESSION.to_owned(), guardrail: "g".to_owned(), revision }
}

fn view(revision: u32, state: GuardrailState, expires_at: &str) -> GuardrailView {
    GuardrailView {
        session: SESSION.to_owned(),
        guardrail_id: "g".to_owned(),
        revision,
        asked: 1,
        task: None,
        kind: GuardrailKind::Other,
        value: "May I?".to_owned(),
        domain: None,
        fields: Vec::new(),
        choices: Vec::new(),
        website_error: None,
        state,
        opened_at: "2026-01-01T00:00:00.000Z".to_owned(),
        expires_at: expires_at.to_owned(),
        on_timeout: OnTimeout::KeepWaiting,
        position: position(3),
        claim: None,
        resolution: None,
    }
}

fn raised(offset: u64, revision: u32) -> EventFrame {
    event(offset, kind::GUARDRAIL_TRIGGER, json!({ "guardrailId": "g", "revision": revision, "asked": 1 }))
}

fn resolved(offset: u64, revision: u32, outcome: &str) -> EventFrame {
    event(offset, kind::GUARDRAIL_RESOLVED, json!({ "guardrailId": "g", "revision": revision, "outcome": outcome }))
}

fn delivered(id: &str, repeat: bool, reaction: Reaction) -> What {
    let about = ("g".to_owned(), 1);
    let (id, kind, session) = (id.to_owned(), "guardrail.opened".to_owned(), SESSION.to_owned());
    What::Delivered(Delivered { id, repeat, kind, session, about, reaction })
}

/// A short run that is right: two counts, a question, its answer, a notice that had to be repeated.
struct Run {
    whats: Vec<What>,
    events: Vec<EventFrame>,
    guardrails: Vec<GuardrailView>,
}

impl Run {
    fn right() -> Self {
        let session = || SESSION.to_owned();
        let taken = || Trace::Taken { guardrail: "g".to_owned(), revision: 1 };
        let trigger = || Trace::Trigger { guardrail: "g".to_owned(), asked: 1 };
        let events = vec![
            event(0, "session_started", json!({})),
            event(1, "x.count", json!({ "n": 1 })),
            event(2, "x.count", json!({ "n": 2 })),
            raised(3, 1),
            resolved(4, 1, "answered"),
            event(5, kind::GUARDRAIL_TAKEN, json!({ "guardrailId": "g", "revision": 1 })),
        ];
        let said = Said { outcome: Outcome::Answered, choice: None, secret: true };
        let mut whats = vec![
            What::GatewayUp,
            What::Opened { session: session() },
            What::Sent { session: session(), n: 1, trace: Trace::Numbered(1) },
            What::Sent { session: session(), n: 2, trace: Trace::Numbered(2) },
            What::Sent { session: session(), n: 3, trace: trigger() },
            What::Acknowledged { session: session(), n: 3, position: position(3) },
            What::Snapshot { session: session(), position: position(3), open: vec![("g".to_owned(), 1)] },
            What::Answered { key: "a".to_owned(), question: question(1), said },
            What::Replied { key: "a".to_owned(), reply: Reply::Accepted },
            What::Outcome { question: question(1), outcome: Outcome::Answered, choice: None },
            What::Sent { session: session(), n: 4, trace: taken() },
            What::TaskQueued { session: session(), task: "t".to_owned() },
            What::TaskReceived { session: session(), task: "t".to_owned() },
            delivered("notice", false, Reaction::Refused),
            delivered("notice", false, Reaction::Silent),
            delivered("notice", true, Reaction::Confirmed),
        ];
        let saw = |frame: &EventFrame| What::Saw { subscriber: "ada".to_owned(), frame: Arc::new(frame.clone()) };
        whats.extend(events.iter().map(saw));
        Self { whats, events, guardrails: vec![view(1, GuardrailState::Taken, "2026-01-01T00:00:30.000Z")] }
    }

    fn faults(&self) -> Vec<Rule> {
        let entry = |(i, what): (usize, &What)| Entry { at: Duration::from_secs(i as u64), what: what.clone() };
        let history: Vec<_> = self.whats.iter().enumerate().map(entry).collect();
        let read = SessionRead {
            status: SessionStatus::Active,
            events: self.events.clone(),
            guardrails: self.guardrails.clone(),
        };
        let sessions = [(SESSION.to_owned(), read)].into();
        let reading = Reading { settled_at: SETTLED.to_owned(), sessions };
        let faults = check(&history, &reading, Terms::default());
        faults.into_iter().map(|fault| fault.rule).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The log, renumbered after something was planted in it; nobody followed it.
    fn replant(&mut self) {
        self.unwatched();
        for (offset, event) in self.events.iter_mut().enumerate() {
            event.position = position(offset as u64);
        }
    }

    fn unwatched(&mut self) {
        self.whats.retain(|what| !matches!(what, What::Saw { .. } | What::Snapshot { .. }));
    }

    fn without(&mut self, fits: impl Fn(&What) -> bool) {
        self.whats.retain(|what| !fits(what));
    }
}

#[test]
fn a_right_run_has_no_fault() {
    assert_eq!(Run::right().faults(), []);
}

#[test]
fn an_event_that_nobody_acknowledged_may_be_missing_at_the_end() {
    let mut run = Run::right();
    run.whats.push(What::Sent { session: SESSION.to_owned(), n: 5, trace: Trace::Numbered(5) });
    assert_eq!(run.faults(), []);
}

#[test]
fn a_lost_event_is_found() {
    let mut run = Run::right();
    run.events.remove(2);
    run.replant();
    assert_eq!(run.faults(), [Rule::LostEvent], "in the middle");

    let mut run = Run::right();
    run.unwatched();
    run.events.truncate(3);
    run.guardrails.clear();
    run.without(|what| matches!(what, What::Replied { .. }));
    assert_eq!(run.faults(), [Rule::LostEvent], "at the end");
}

#[test]
fn an_acknowledged_event_that_is_expected_again_is_found() {
    let mut run = Run::right();
    run.whats.insert(6, What::Expected { session: SESSION.to_owned(), n: 3 });
    assert_eq!(run.faults(), [Rule::LostEvent]);
}

#[test]
fn a_doubled_event_is_found() {
    let mut run = Run::right();
    run.events.insert(2, run.events[1].clone());
    run.replant();
    assert_eq!(run.faults(), [Rule::DoubledEvent]);
}

#[test]
fn a_reordered_event_is_found() {
    let mut run = Run::right();
    run.events.swap(1, 2);
    run.replant();
    assert_eq!(run.faults(), [Rule::ReorderedEvent]);
}

#[test]
fn an_event_of_nobody_is_found() {
    let mut run = Run::right();
    run.events.push(event(6, "x.count", json!({ "n": 9 })));
    assert_eq!(run.faults(), [Rule::ForeignEvent]);
}

#[test]
fn a_hole_in_the_positions_is_found() {
    let mut run = Run::right();
    run.unwatched();
    run.events[5].position = position(7);
    assert_eq!(run.faults(), [Rule::HoleInPositions]);
}

#[test]
fn an_event_that_was_shown_and_is_another_one_now_is_found() {
    let mut run = Run::right();
    run.events[1].id = "another".to_owned();
    assert_eq!(run.faults(), [Rule::ShownOtherwise]);
}

#[test]
fn an_event_that_was_shown_and_is_gone_is_found() {
    let mut run = Run::right();
    let shown = Arc::new(event(6, "x.count", json!({ "n": 5 })));
    run.whats.push(What::Saw { subscriber: "ada".to_owned(), frame: shown });
    assert_eq!(run.faults(), [Rule::ShownOtherwise]);
}

#[test]
fn an_event_that_a_subscriber_missed_or_saw_twice_is_found() {
    for twice in [false, true] {
        let mut run = Run::right();
        let at = run.whats.len() - 3;
        if twice {
            run.whats.insert(at, run.whats[at].clone());
        } else {
            run.whats.remove(at);
        }
        assert_eq!(run.faults(), [Rule::BrokenResume]);
    }
}

#[test]
fn a_gap_where_nothing_was_trimmed_is_found() {
    let mut run = Run::right();
    let reason = onlooker_protocol::subscriber::GapReason::Ahead;
    run.whats.push(What::Gap { subscriber: "ada".to_owned(), session: SESSION.to_owned(), reason });
    assert_eq!(run.faults(), [Rule::UnexpectedGap]);
}

#[test]
fn a_lost_session_is_found() {
    let mut run = Run::right();
    run.whats.push(What::Opened { session: "another".to_owned() });
    assert_eq!(run.faults(), [Rule::LostSession]);
    let mut run = Run::right();
    run.whats.push(What::ClaimRefused { session: SESSION.to_owned(), code: Code::WrongClaim });
    assert_eq!(run.faults(), [Rule::LostSession]);
}

#[test]
fn a_revived_guardrail_is_found_in_the_log_in_the_list_and_in_a_snapshot() {
    let mut run = Run::right();
    run.events.push(raised(6, 1));
    assert_eq!(run.faults(), [Rule::DoubledEvent, Rule::RevivedGuardrail]);

    let mut run = Run::right();
    run.guardrails[0].state = GuardrailState::Open;
    run.guardrails[0].expires_at = "2026-01-02T00:00:00.000Z".to_owned();
    assert_eq!(run.faults(), [Rule::RevivedGuardrail]);

    let mut run = Run::right();
    let open = vec![("g".to_owned(), 1)];
    run.whats.push(What::Snapshot { session: SESSION.to_owned(), position: position(5), open });
    assert_eq!(run.faults(), [Rule::RevivedGuardrail]);
}

#[test]
fn a_lost_guardrail_is_found() {
    let mut run = Run::right();
    run.events.truncate(4);
    run.unwatched();
    run.guardrails.clear();
    run.without(|what| matches!(what, What::Replied { .. } | What::Outcome { .. }));
    assert_eq!(run.faults(), [Rule::LostGuardrail]);

    let mut run = Run::right();
    run.whats.push(What::Snapshot { session: SESSION.to_owned(), position: position(3), open: Vec::new() });
    assert_eq!(run.faults(), [Rule::LostGuardrail]);
}

#[test]
fn an_end_that_only_the_list_knows_is_found() {
    let mut run = Run::right();
    run.unwatched();
    run.events.truncate(4);
    run.without(|what| matches!(what, What::Replied { .. } | What::Outcome { .. }));
    assert_eq!(run.faults(), [Rule::UntoldEnd]);
}

#[test]
fn two_winners_of_a_revision_are_found() {
    let mut run = Run::right();
    let said = Said { outcome: Outcome::Answered, choice: None, secret: true };
    run.whats.push(What::Answered { key: "b".to_owned(), question: question(1), said });
    run.whats.push(What::Replied { key: "b".to_owned(), reply: Reply::Accepted });
    assert_eq!(run.faults(), [Rule::TwoWinners]);

    let mut run = Run::right();
    run.events.push(resolved(6, 1, "timed_out"));
    assert_eq!(run.faults(), [Rule::TwoWinners]);
}

#[test]
fn a_contradicted_answer_is_found() {
    let mut run = Run::right();
    run.whats.push(What::Outcome { question: question(1), outcome: Outcome::Declined, choice: None });
    assert_eq!(run.faults(), [Rule::ContradictedAnswer]);

    let mut run = Run::right();
    run.unwatched();
    run.events[4] = resolved(4, 1, "declined");
    assert_eq!(run.faults(), [Rule::ContradictedAnswer]);
}

#[test]
fn an_answer_that_lost_against_itself_is_found() {
    let mut run = Run::right();
    run.whats.push(What::Replied { key: "a".to_owned(), reply: Reply::Refused(Code::AlreadyAnswered) });
    assert_eq!(run.faults(), [Rule::DisownedAnswer]);
}

#[test]
fn a_swallowed_answer_is_found_and_one_that_is_asked_anew_is_none() {
    let swallowed = || {
        let mut run = Run::right();
        run.without(|what| matches!(what, What::Outcome { .. } | What::Sent { n: 4, .. }));
        run.unwatched();
        run.events.truncate(5);
        run
    };
    assert_eq!(swallowed().faults(), [Rule::SwallowedAnswer]);

    let mut lost = swallowed();
    lost.events.push(resolved(5, 1, "lost"));
    assert_eq!(lost.faults(), [Rule::SwallowedAnswer], "nobody is asked anew");

    lost.events.push(raised(6, 2));
    lost.guardrails = vec![view(2, GuardrailState::Open, "2026-01-02T00:00:00.000Z")];
    assert_eq!(lost.faults(), []);

    for what in &mut lost.whats {
        if let What::Answered { said, .. } = what {
            said.secret = false;
        }
    }
    assert_eq!(lost.faults(), [Rule::SwallowedAnswer], "it held nothing that had to die");
}

#[test]
fn an_ignored_deadline_is_found() {
    let mut run = Run::right();
    run.events.truncate(4);
    run.unwatched();
    run.without(|what| matches!(what, What::Replied { .. } | What::Outcome { .. }));
    run.guardrails[0].state = GuardrailState::Open;
    assert_eq!(run.faults(), [Rule::IgnoredDeadline]);
}

#[test]
fn a_doubled_notice_is_found() {
    for after in [delivered("notice", true, Reaction::Refused), delivered("another", false, Reaction::Confirmed)] {
        let mut run = Run::right();
        run.whats.push(after);
        assert_eq!(run.faults(), [Rule::DoubledNotice]);
    }
    let mut run = Run::right();
    run.without(|what| matches!(what, What::Delivered(_)));
    run.whats.push(delivered("notice", false, Reaction::Confirmed));
    run.whats.push(delivered("notice", true, Reaction::Confirmed));
    assert_eq!(run.faults(), [Rule::DoubledNotice], "the gateway knew");
    run.whats.insert(run.whats.len() - 1, What::GatewayKilled);
    assert_eq!(run.faults(), [], "the gateway died before it could write it down");
    let death = run.whats.len() - 2;
    run.whats.swap(death, 0);
    assert_eq!(run.faults(), [Rule::DoubledNotice], "it died long before");
}

#[test]
fn a_repeat_that_does_not_say_so_is_found() {
    let mut run = Run::right();
    run.without(|what| matches!(what, What::Delivered(Delivered { repeat: true, .. })));
    run.whats.push(delivered("notice", false, Reaction::Refused));
    assert_eq!(run.faults(), [Rule::UnmarkedRepeat]);
}

#[test]
fn a_lost_task_is_found() {
    let mut run = Run::right();
    run.without(|what| matches!(what, What::TaskReceived { .. }));
    assert_eq!(run.faults(), [Rule::LostTask]);
}
