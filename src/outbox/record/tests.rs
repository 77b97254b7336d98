use std::collections::BTreeMap;

use proptest::prelude::*;

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

fn shown(at: &str) -> Sent {
    Sent::Shown(Receipt(at.to_owned()))
}

fn card(notice: &Notice) -> Option<String> {
    notice.message(Extras::default()).card.map(|card| card.0)
}

#[test]
fn a_message_that_comes_to_light_after_its_update_went_out_without_it_is_edited() {
    for lease_is_found_dead in ["before the end", "after the end"] {
        let mut notice = leased();
        let id = notice.opened.id.clone();
        if lease_is_found_dead == "before the end" {
            notice.settle(&unknown(), 0, SECOND);
            notice.close(&Map::new(), 1);
        } else {
            notice.close(&Map::new(), 1);
            notice.settle(&unknown(), 1, SECOND);
        }
        assert!(!notice.asks());
        notice.lease("other", SECOND);
        assert_eq!(card(&notice), None);
        notice.settle(&Sent::Confirmed, 2, SECOND);
        assert_eq!(notice.due_in(2), None);

        assert!(notice.confirm_late(&id, Some(&Receipt("7".to_owned())), 3));
        assert_eq!(notice.due_in(3), Some(Duration::ZERO), "{lease_is_found_dead}");
        notice.lease("other", SECOND);
        assert_eq!(card(&notice).as_deref(), Some("7"));
        notice.settle(&shown("7"), 4, SECOND);
        assert_eq!(notice.due_in(4), None, "once");
    }
}

#[test]
fn a_message_that_comes_to_light_while_its_update_is_sent_without_it_is_edited() {
    let mut notice = leased();
    let id = notice.opened.id.clone();
    notice.settle(&unknown(), 0, SECOND);
    notice.close(&Map::new(), 1);
    notice.lease("other", SECOND);
    assert!(notice.confirm_late(&id, Some(&Receipt("7".to_owned())), 2));
    assert!(notice.is_leased_by("other"));
    notice.settle(&Sent::Confirmed, 3, SECOND);
    assert_eq!((notice.due_in(3), card(&notice).as_deref()), (Some(Duration::ZERO), Some("7")));
}

#[test]
fn a_lease_that_is_given_back_is_no_try_and_after_the_end_asks_nobody() {
    let mut notice = leased();
    notice.release();
    assert_eq!((notice.opened.state(), notice.opened.attempts), (NoticeState::Queued, 0));
    notice.lease("me", SECOND);
    notice.close(&Map::new(), 0);
    notice.release();
    assert_eq!((notice.opened.state(), notice.update.is_some()), (NoticeState::Dropped, false));

    let mut may_be_there = leased();
    may_be_there.settle(&unknown(), 0, SECOND);
    may_be_there.lease("me", SECOND);
    may_be_there.close(&Map::new(), 0);
    may_be_there.release();
    assert_eq!((may_be_there.opened.state(), may_be_there.update.is_some()), (NoticeState::Dropped, true));
}

#[derive(Clone, Debug)]
enum Op {
    /// Somebody looks at it: sends what is due, unless it is being sent.
    Send,
    /// What came of what is being sent.
    Outcome(Sent),
    /// Its lease runs out; the one who sent it may say later what came of it.
    RunOut,
    /// Somebody whose lease was taken for dead reports success, with a receipt or without.
    Late(bool),
    /// Its target is held back before anything was sent.
    Release,
    Unwanted,
    Close,
    PutAgain,
    Retry,
}

fn op() -> impl Strategy<Value = Op> {
    let throttled = Sent::Throttled { error: "no".to_owned(), retry_after: SECOND };
    let rejected = Sent::Rejected { error: "gone".to_owned() };
    let outcomes = vec![Sent::Confirmed, shown("7"), refused(), throttled, rejected, unknown()];
    prop_oneof![
        6 => Just(Op::Send),
        6 => prop::sample::select(outcomes).prop_map(Op::Outcome),
        1 => Just(Op::RunOut),
        1 => any::<bool>().prop_map(Op::Late),
        1 => Just(Op::Release),
        1 => Just(Op::Unwanted),
        1 => Just(Op::Close),
        1 => Just(Op::PutAgain),
        1 => Just(Op::Retry),
    ]
}

/// Everything that was sent, as the people at the other end may have got it.
#[derive(Default)]
struct World {
    now_ms: u64,
    closed: bool,
    /// Every attempt that may have arrived, by id: whether it said that it is a repeat.
    arrived: BTreeMap<String, Vec<bool>>,
    /// Those whose senders were taken for dead, by id.
    dead: Vec<String>,
    confirmed: usize,
    tokens: u32,
}

impl World {
    fn send(&mut self, notice: &mut Notice) {
        if notice.is_leased() || notice.due_in(self.now_ms).is_none() {
            return;
        }
        assert!(!(self.closed && notice.asks()), "a closed question is asked");
        self.now_ms += u64::try_from(notice.due_in(self.now_ms).unwrap().as_millis()).unwrap();
        self.tokens += 1;
        notice.lease(&self.tokens.to_string(), SECOND);
    }

    fn outcome(&mut self, notice: &mut Notice, outcome: &Sent) {
        if !notice.is_leased() {
            return;
        }
        let message = notice.message(Extras::default());
        let asks = notice.asks();
        if matches!(outcome, Sent::Confirmed | Sent::Shown(_) | Sent::Unknown { .. }) {
            self.arrived.entry(message.id).or_default().push(message.repeat);
        }
        let state = notice.settle(outcome, self.now_ms, SECOND);
        self.confirmed += usize::from(asks && state == NoticeState::Confirmed);
    }

    fn apply(&mut self, notice: &mut Notice, op: &Op) {
        let body = |kind: &str| Map::from_iter([("type".to_owned(), Value::from(kind))]);
        match op {
            Op::Send => self.send(notice),
            Op::Outcome(outcome) => self.outcome(notice, outcome),
            Op::RunOut if notice.is_leased() => {
                self.dead.push(notice.current().id.clone());
                self.outcome(notice, &unknown());
            }
            Op::Late(with_receipt) => {
                if let Some(id) = self.dead.pop() {
                    let receipt = Receipt("late".to_owned());
                    let asks = id == notice.opened.id;
                    let news = notice.confirm_late(&id, with_receipt.then_some(&receipt), self.now_ms);
                    self.confirmed += usize::from(asks && news);
                }
            }
            Op::Release if notice.is_leased() => notice.release(),
            Op::Unwanted if notice.asks() && !notice.is_leased() => notice.drop_opened(),
            Op::Close => {
                notice.close(&body("guardrail.resolved"), self.now_ms);
                self.closed = true;
            }
            Op::PutAgain => {
                notice.close(&body(PUT_AGAIN), self.now_ms);
                self.closed = true;
            }
            Op::Retry => drop(notice.retry(self.now_ms)),
            Op::RunOut | Op::Release | Op::Unwanted => {}
        }
    }

    fn check(&self, notice: &Notice) {
        assert!(self.confirmed <= 1, "confirmed twice");
        for (id, repeats) in &self.arrived {
            assert!(repeats.len() <= 2, "{id} may have arrived more than twice");
            assert!(!repeats[0] && repeats[1..].iter().all(|repeat| *repeat), "{id}: {repeats:?}");
        }
        assert!(!self.closed || !notice.asks() || notice.is_leased(), "it would be asked after its end");
        let waits = matches!(notice.current().state(), NoticeState::Queued | NoticeState::Leased)
            || matches!(notice.current().state(), NoticeState::Failed | NoticeState::Rejected);
        assert_eq!(waits, notice.due_in(self.now_ms).is_some(), "silent: {:?}", notice.current().state());
        assert_eq!(Notice::decode(&notice.encode()).unwrap().encode(), notice.encode());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_key_is_confirmed_once_repeated_once_and_not_asked_after_its_end(
        ops in prop::collection::vec(op(), 0..40),
    ) {
        let (mut world, mut notice) = (World::default(), notice());
        for op in &ops {
            world.apply(&mut notice, op);
            world.check(&notice);
        }
        // Left alone, with everything taken, it comes to an end, and whoever has a card with buttons is told.
        for _ in 0..8 {
            world.apply(&mut notice, &Op::Send);
            world.apply(&mut notice, &Op::Outcome(Sent::Confirmed));
            world.check(&notice);
        }
        prop_assert_eq!(notice.due_in(world.now_ms), None);
        if let (true, Some(receipt)) = (world.closed, &notice.opened.receipt) {
            let update = notice.update.as_ref().expect("its end is told");
            prop_assert_eq!(update.card.as_ref(), Some(receipt));
        }
    }
}
