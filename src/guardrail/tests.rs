//! Raising, answering and claiming on given times.

use onlooker_protocol::{event::Epoch, subscriber::AnswerAction};

use super::*;
use crate::control::HolderKey;

fn rules() -> GuardrailRules {
    GuardrailRules {
        open: 2,
        ids: 3,
        items: 4,
        text: 100,
        max_wait: Duration::from_secs(1000),
        default_answer_allowed: Vec::new(),
        claim: Duration::from_secs(120),
        claim_max: Duration::from_secs(900),
        claim_grace: Duration::from_secs(5),
    }
}

fn trigger(id: &str, more: serde_json::Value) -> Result<Trigger, Refusal> {
    let mut data = json!({ "value": "May I?", "guardrailId": id });
    let serde_json::Value::Object(more) = more else { panic!("members") };
    data.as_object_mut().unwrap().extend(more);
    Trigger::read(&data, "fallback", time::OffsetDateTime::UNIX_EPOCH, &rules())
}

/// Raises it as its owner does.
fn raise(book: &mut Book, id: &str, more: serde_json::Value, now: Instant) -> Raising {
    let trigger = trigger(id, more).unwrap();
    let raising = book.raising(&trigger).unwrap();
    if let Raising::New { revision, supersedes } = raising {
        if supersedes.is_some() {
            book.get_mut(id).unwrap().end(GuardrailState::Superseded, resolution(Outcome::Superseded));
        }
        let position = Position { epoch: Epoch::new("abcdefgh").unwrap(), offset: 0 };
        let wall = time::OffsetDateTime::UNIX_EPOCH;
        let raised = Raised { session: "s".to_owned(), task: None, revision, position, at: "", wall };
        let view = trigger.view(raised, &rules());
        book.opened(view, &trigger, BTreeMap::new(), now);
    }
    raising
}

fn resolution(outcome: Outcome) -> Resolution {
    Resolution { outcome, at: String::new(), by: None, via: "test".to_owned(), fields: Vec::new(), choice: None }
}

fn answer(key: &str, text: &str) -> Answer {
    Answer {
        revision: 1,
        idempotency_key: key.to_owned(),
        action: AnswerAction::Submit,
        text: Some(text.to_owned()),
        choice: None,
        values: BTreeMap::new(),
    }
}

fn person(who: &str, connection: u128) -> Actor {
    let holder = Holder { who: who.to_owned(), by: HolderKey::Connection(ConnectionId(connection)) };
    Actor { holder, via: "websocket" }
}

#[test]
fn revisions_seen_by_people_only_go_up_and_outcomes_carry_the_runtimes_own() {
    let (mut book, now) = (Book::new(rules()), Instant::now());
    assert_eq!(raise(&mut book, "g", json!({}), now), Raising::New { revision: 1, supersedes: None });
    assert_eq!(raise(&mut book, "g", json!({}), now), Raising::Repeat);
    assert_eq!(raise(&mut book, "g", json!({ "revision": 4 }), now), Raising::New { revision: 4, supersedes: Some(1) });
    let lower = book.raising(&trigger("g", json!({ "revision": 3 })).unwrap()).unwrap_err();
    assert_eq!((lower.code, &lower.details["last"]), (Code::LowerRevision, &json!(4)));
    // Asked anew by the gateway meanwhile: the next of the runtime's still comes after it.
    book.get_mut("g").unwrap().view.revision = 7;
    assert_eq!(raise(&mut book, "g", json!({ "revision": 5 }), now), Raising::New { revision: 8, supersedes: Some(7) });
    assert_eq!((book.get("g").unwrap().view.revision, book.get("g").unwrap().view.asked), (8, 5));
}

#[test]
fn open_questions_and_ids_are_bounded_and_a_repeat_needs_no_room() {
    let (mut book, now) = (Book::new(rules()), Instant::now());
    raise(&mut book, "a", json!({}), now);
    raise(&mut book, "b", json!({}), now);
    let refused =
        |book: &Book, id: &str| book.raising(&trigger(id, json!({})).unwrap()).map_err(|refusal| refusal.code);
    assert_eq!(refused(&book, "c"), Err(Code::TooManyGuardrails));
    assert_eq!(refused(&book, "a"), Ok(Raising::Repeat));
    assert!(book.raising(&trigger("a", json!({ "revision": 2 })).unwrap()).is_ok());
    book.get_mut("a").unwrap().end(GuardrailState::Cancelled, resolution(Outcome::Cancelled));
    raise(&mut book, "c", json!({}), now);
    book.get_mut("b").unwrap().end(GuardrailState::Cancelled, resolution(Outcome::Cancelled));
    assert_eq!(refused(&book, "d"), Err(Code::TooManyGuardrails), "a fourth id in this session's life");
}

#[test]
fn the_first_answer_wins_and_only_its_own_repetition_succeeds_again() {
    let (mut book, now) = (Book::new(rules()), Instant::now());
    raise(&mut book, "g", json!({}), now);
    let (ada, bob) = (person("ada", 1), person("bob", 2));
    let guardrail = book.get_mut("g").unwrap();
    let Ok(Answering::Wins(won)) = guardrail.answering(&answer("k", "yes"), &ada, "now") else { panic!("it wins") };
    guardrail.accept(answer("k", "yes"), won, |_| true);
    assert!(matches!(guardrail.answering(&answer("k", "yes"), &bob, ""), Ok(Answering::Again)));
    for other in [answer("k", "no"), answer("l", "yes")] {
        let refusal = guardrail.answering(&other, &bob, "").unwrap_err();
        assert_eq!((refusal.code, &refusal.details["by"]), (Code::AlreadyAnswered, &json!("ada")));
    }
    assert_eq!(guardrail.outcome().unwrap().text.as_deref(), Some("yes"));
    guardrail.taken();
    assert_eq!(guardrail.outcome().unwrap().text, None);
    assert_eq!(guardrail.view.state, GuardrailState::Taken);
    assert!(!serde_json::to_string(&guardrail.stored(|_| true)).unwrap().contains("yes"), "no answer is stored");
}

#[test]
fn who_declines_hands_nothing_over() {
    let (mut book, now) = (Book::new(rules()), Instant::now());
    raise(&mut book, "g", json!({ "fields": [{ "id": "f" }] }), now);
    let guardrail = book.get_mut("g").unwrap();
    guardrail.prefilled = BTreeMap::from([("password".to_owned(), "known".to_owned())]);
    let mut decline = answer("k", "no");
    decline.action = AnswerAction::Decline;
    decline.values = BTreeMap::from([("f".to_owned(), "typed".to_owned())]);
    guardrail.accept(decline, resolution(Outcome::Declined), |_| true);
    assert!(guardrail.outcome().unwrap().values.is_empty());
}

#[test]
fn a_deadline_is_the_questions_own_unless_it_keeps_waiting() {
    let (mut book, now) = (Book::new(rules()), Instant::now());
    raise(&mut book, "patient", json!({ "expiresIn": 1000 }), now);
    raise(&mut book, "brief", json!({ "expiresIn": 1000, "onTimeout": "fail" }), now);
    assert_eq!(book.get("patient").unwrap().deadline, now + Duration::from_secs(1000));
    assert_eq!(book.get("brief").unwrap().deadline, now + Duration::from_secs(1));
    assert_eq!(book.next_deadline(), Some(now + Duration::from_secs(1)));
}

#[test]
fn a_claim_is_one_persons_until_its_time_or_shortly_after_its_connection() {
    let (mut book, now) = (Book::new(rules()), Instant::now());
    raise(&mut book, "g", json!({}), now);
    let wall = time::OffsetDateTime::UNIX_EPOCH;
    let (ada, bob) = (person("ada", 1).holder, person("bob", 2).holder);
    let claim = |book: &mut Book, holder: &Holder, at: Instant, duration| {
        let claimed = book.get_mut("g").unwrap().claim(1, holder, (at, wall), duration, &rules());
        claimed.map(drop).map_err(|refusal| refusal.code)
    };
    assert_eq!(claim(&mut book, &ada, now, None), Ok(()));
    assert_eq!(claim(&mut book, &bob, now, None), Err(Code::Claimed));
    assert_eq!(claim(&mut book, &bob, now + Duration::from_secs(120), None), Ok(()), "ada's time is over");
    assert_eq!(claim(&mut book, &bob, now, Some(Duration::from_secs(5000))), Ok(()));
    assert_eq!(book.get("g").unwrap().claimed_until(), Some(now + Duration::from_secs(900)));
    book.connection_lost(ConnectionId(1), now);
    assert!(!book.expire_claims(now + Duration::from_secs(899)));
    book.connection_lost(ConnectionId(2), now);
    assert!(!book.expire_claims(now + Duration::from_millis(4_999)));
    assert!(book.expire_claims(now + Duration::from_secs(5)));
    assert_eq!(book.get("g").unwrap().claimed_until(), None);
}

#[test]
fn a_trigger_says_what_is_wrong_with_it() {
    let table = [
        (json!({ "type": "other" }), Code::Invalid),
        (json!({ "revision": 0 }), Code::Invalid),
        (json!({ "guardrailId": "no spaces" }), Code::Invalid),
        (json!({ "value": null }), Code::Invalid),
        (json!({ "expiresAt": "tomorrow" }), Code::Invalid),
        (json!({ "onTimeout": "default_answer" }), Code::Invalid),
        (json!({ "fields": [{ "id": "a" }, { "id": "a" }] }), Code::Invalid),
        (json!({ "fields": [{ "id": "" }] }), Code::Invalid),
        (
            json!({ "choices": [{ "id": "1" }, { "id": "2" }, { "id": "3" }, { "id": "4" }, { "id": "5" }] }),
            Code::TooLarge,
        ),
        (json!({ "value": "x".repeat(101) }), Code::TooLarge),
    ];
    for (more, code) in table {
        assert_eq!(trigger("g", more.clone()).map(drop).map_err(|refusal| refusal.code), Err(code), "{more}");
    }
    assert!(trigger("g", json!({ "kind": "of a later version" })).is_ok());
}

#[test]
fn the_last_sixteen_reasons_are_kept_and_none_twice_in_a_row() {
    let (mut book, now) = (Book::new(rules()), Instant::now());
    raise(&mut book, "g", json!({}), now);
    let guardrail = book.get_mut("g").unwrap();
    let why = |text: String| WhyView {
        at: String::new(),
        decision: "look_again".to_owned(),
        rule: 4,
        why: text,
        again_in_ms: None,
        inputs: None,
    };
    assert!(guardrail.decided(why("0".to_owned())));
    assert!(!guardrail.decided(why("0".to_owned())));
    for number in 1..20 {
        guardrail.decided(why(number.to_string()));
    }
    assert_eq!(guardrail.decisions.len(), DECISIONS);
    assert_eq!(guardrail.decisions[0].why, "4");
}
