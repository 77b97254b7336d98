use super::*;
use notifier::Delivery as Sent;

const SECOND: Duration = Duration::from_secs(1);

fn key(id: &str, target: &str) -> NoticeKey {
    let subject = NoticeSubject::Guardrail { id: id.to_owned(), revision: 1 };
    NoticeKey { session: SessionId::random(), subject, target: target.to_owned(), rung: Rung::default() }
}

fn notice() -> Notice {
    let body = serde_json::json!({"type": "guardrail.opened", "task": null});
    Notice::new(&key("g", "t"), "p", body.as_object().unwrap().clone(), 0)
}

fn leased() -> Notice {
    let mut notice = notice();
    notice.lease("me", 30 * SECOND);
    notice
}

fn refused() -> Sent {
    Sent::Refused { error: "no".to_owned(), retry_after: None }
}

fn unknown() -> Sent {
    Sent::Unknown { error: "?".to_owned() }
}

#[test]
fn a_stored_notice_comes_back_as_it_was_and_another_version_is_refused() {
    let mut notice = leased();
    notice.close(&Map::new(), 5);
    let bytes = notice.encode();
    assert_eq!(Notice::decode(&bytes).unwrap().encode(), bytes);
    let newer = String::from_utf8(bytes.to_vec()).unwrap().replacen("\"v\":1", "\"v\":2", 1);
    assert!(matches!(Notice::decode(newer.as_bytes()), Err(DecodeError::Version(2))));
    assert!(matches!(Notice::decode(b"{}"), Err(DecodeError::Damaged(_))));
}

#[test]
fn names_keep_parts_apart_whatever_they_hold() {
    assert_ne!(name(&key("a.1.0.b", "c")), name(&key("a", "b.1.0.c")));
    assert_eq!(name(&key("a", "chat:ä")), "g.a.1.0.chat=3a=c3=a4");
}

#[test]
fn null_members_are_left_out_and_only_the_repeat_says_so() {
    let mut notice = leased();
    let id = notice.opened.id.clone();
    let body: Value = serde_json::from_slice(&notice.message(Extras::default()).body).unwrap();
    assert_eq!(body, serde_json::json!({"type": "guardrail.opened", "id": id}));
    assert_eq!(notice.settle(&unknown(), 0, SECOND), NoticeState::Unknown);
    let repeat = notice.message(Extras::default());
    let body: Value = serde_json::from_slice(&repeat.body).unwrap();
    assert_eq!(body, serde_json::json!({"type": "guardrail.opened", "id": id, "repeat": true}));
    assert_eq!((repeat.repeat, repeat.id), (true, id));
}

#[test]
fn a_refused_repeat_is_tried_again_and_an_unknown_one_is_given_up() {
    let mut notice = leased();
    notice.settle(&unknown(), 0, SECOND);
    notice.lease("me", SECOND);
    assert_eq!(notice.settle(&refused(), 1_000, 2 * SECOND), NoticeState::Failed);
    assert_eq!(notice.due_in(1_000), Some(2 * SECOND));
    notice.lease("me", SECOND);
    assert_eq!(notice.settle(&unknown(), 0, SECOND), NoticeState::GivenUp);
    assert_eq!(notice.due_in(0), None);
}

#[test]
fn closing_tells_only_where_the_card_may_be() {
    let mut never_sent = notice();
    assert!(never_sent.close(&Map::new(), 0));
    assert_eq!((never_sent.opened.state(), never_sent.update.is_some()), (NoticeState::Dropped, false));

    let mut unknown_once = leased();
    unknown_once.settle(&unknown(), 0, SECOND);
    assert!(unknown_once.close(&Map::new(), 0));
    assert_eq!((unknown_once.opened.state(), unknown_once.update.is_some()), (NoticeState::Dropped, true));
    assert!(!unknown_once.close(&Map::new(), 0), "closing twice changes nothing");
}

#[test]
fn a_question_that_is_put_again_after_its_answer_was_told_is_told_once_more() {
    let body = |kind: &str| Map::from_iter([("type".to_owned(), Value::from(kind))]);
    let mut notice = leased();
    notice.settle(&Sent::Confirmed, 0, SECOND);
    assert!(notice.close(&body("guardrail.resolved"), 1));
    notice.lease("me", SECOND);
    notice.settle(&Sent::Confirmed, 2, SECOND);
    assert!(!notice.close(&body("guardrail.resolved"), 3), "that is known");
    assert!(notice.close(&body(PUT_AGAIN), 4));
    assert_eq!(notice.due_in(4), Some(Duration::ZERO));
    assert!(!notice.close(&body(PUT_AGAIN), 5) && !notice.close(&body("guardrail.resolved"), 6));
}

#[test]
fn closing_while_it_is_sent_waits_for_the_outcome() {
    for (outcome, state, told) in [
        (Sent::Confirmed, NoticeState::Confirmed, true),
        (refused(), NoticeState::Dropped, false),
        (unknown(), NoticeState::GivenUp, true),
    ] {
        let mut notice = leased();
        notice.close(&Map::new(), 0);
        assert!(notice.asks(), "the update waits");
        assert_eq!(notice.settle(&outcome, 0, SECOND), state);
        assert_eq!(notice.due_in(0), told.then_some(Duration::ZERO), "{outcome:?}");
    }
}

#[test]
fn a_late_confirmation_cancels_a_repeat_and_is_counted_once() {
    let mut notice = leased();
    let id = notice.opened.id.clone();
    notice.settle(&unknown(), 0, SECOND);
    assert!(notice.confirm_late(&id, None, 0));
    assert_eq!(notice.due_in(0), None);
    assert!(!notice.confirm_late(&id, None, 0));
}
