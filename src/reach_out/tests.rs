//! Every rule, every edge between neighbours, and what no sequence of comings and goings may change.

use proptest::prelude::*;

use super::*;
use crate::watch::{Attentive, Book, Departure, Newcomer, WatchTimes, Watcher};

const WINDOWS: Windows = Windows { grace: Duration::from_secs(5), first_look: Duration::from_secs(10) };
const OFFSET: u64 = 7;
const GUARDRAIL: Subject = Subject::Guardrail { closed: false };
const RESULT: Subject = Subject::Result { stopped: false };

/// Time 0 of a table: far enough from the clock's own beginning that there is a before.
fn origin() -> Instant {
    static ORIGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *ORIGIN.get_or_init(|| Instant::now() + Duration::from_secs(1000))
}

/// Milliseconds from the raising.
fn at(milliseconds: i64) -> Instant {
    let size = Duration::from_millis(milliseconds.unsigned_abs());
    if milliseconds < 0 { origin() - size } else { origin() + size }
}

fn inputs<'a>(now: i64, subject: Subject, presence: &'a Presence) -> Inputs<'a> {
    Inputs {
        now: at(now),
        mode: ReachOutMode::Full,
        subject,
        raised_at: origin(),
        offset: OFFSET,
        held_until: None,
        notified: false,
        next_step: None,
        presence,
        start_grace_until: at(-500_000),
        windows: WINDOWS,
    }
}

fn watcher(able: bool, proved: Option<u64>) -> Watcher {
    Watcher { able, proved }
}

fn present(watchers: &[Watcher]) -> Presence {
    Presence { watchers: watchers.to_vec(), ..Presence::default() }
}

fn left(at_ms: i64, leave: Leave, able: bool, proved: Option<u64>) -> Departure {
    Departure { at: at(at_ms), leave, able, proved, last_able: able, last: true }
}

fn departed(departures: &[Departure]) -> Presence {
    Presence { departures: departures.to_vec(), ..Presence::default() }
}

fn look(milliseconds: i64) -> Action {
    Action::LookAgain(Some(at(milliseconds)))
}

#[track_caller]
fn assert_decides(inputs: &Inputs<'_>, action: Action, why: Why) {
    assert_eq!(decide(inputs), Decision { action, why });
}

#[test]
fn rule_1_is_silent_by_mode_and_for_what_is_over() {
    let nobody = Presence::default();
    let (closed, stopped) = (Subject::Guardrail { closed: true }, Subject::Result { stopped: true });
    let table = [
        (ReachOutMode::Off, GUARDRAIL, Action::Nothing, Why::ModeOff),
        (ReachOutMode::Off, RESULT, Action::Nothing, Why::ModeOff),
        (ReachOutMode::Off, closed, Action::Nothing, Why::ModeOff),
        (ReachOutMode::GuardrailOnly, GUARDRAIL, Action::Send, Why::NobodyLooks),
        (ReachOutMode::GuardrailOnly, closed, Action::Nothing, Why::Closed),
        (ReachOutMode::GuardrailOnly, RESULT, Action::Nothing, Why::ModeLeavesResultsOut),
        (ReachOutMode::GuardrailOnly, stopped, Action::Nothing, Why::ModeLeavesResultsOut),
        (ReachOutMode::Full, GUARDRAIL, Action::Send, Why::NobodyLooks),
        (ReachOutMode::Full, closed, Action::Nothing, Why::Closed),
        (ReachOutMode::Full, RESULT, Action::Send, Why::NobodyLooks),
        (ReachOutMode::Full, stopped, Action::Nothing, Why::StoppedByClient),
    ];
    for (mode, subject, action, why) in table {
        let got = decide(&Inputs { mode, ..inputs(0, subject, &nobody) });
        assert_eq!(got, Decision { action, why }, "{mode:?} {subject:?}");
    }
}

#[test]
fn rule_1_comes_before_everything_else() {
    let covering = present(&[watcher(true, Some(OFFSET))]);
    let held = Inputs { held_until: Some(at(60_000)), ..inputs(0, Subject::Guardrail { closed: true }, &covering) };
    assert_decides(&held, Action::Nothing, Why::Closed);
    assert_decides(&Inputs { mode: ReachOutMode::Off, ..held }, Action::Nothing, Why::ModeOff);
}

#[test]
fn rule_2_holds_until_control_or_a_claim_ends_and_no_longer() {
    for subject in [GUARDRAIL, RESULT] {
        let nobody = Presence::default();
        let held = |now| Inputs { held_until: Some(at(3_000)), ..inputs(now, subject, &nobody) };
        assert_decides(&held(2_999), look(3_000), Why::Held);
        assert_decides(&held(3_000), Action::Send, Why::NobodyLooks);
        assert_decides(&held(3_001), Action::Send, Why::NobodyLooks);
        let notified = Inputs { notified: true, ..held(2_999) };
        assert_decides(&notified, look(3_000), Why::Held);
    }
}

#[test]
fn a_step_that_is_due_is_taken_although_somebody_looks_who_does_not_answer() {
    let covering = present(&[watcher(true, Some(OFFSET))]);
    let due = |now| Inputs { next_step: Some(at(2_000)), ..inputs(now, GUARDRAIL, &covering) };
    assert_decides(&due(1_999), look(2_000), Why::Covered);
    assert_decides(&due(2_000), Action::Send, Why::StepDue);
    // The grace after a start comes first, as for every message.
    let restarted = Inputs { start_grace_until: at(9_000), ..due(2_000) };
    assert_decides(&restarted, look(9_000), Why::GraceAfterStart);
    let held = Inputs { held_until: Some(at(9_000)), ..due(2_000) };
    assert_decides(&held, look(9_000), Why::Held);
}

#[test]
fn rule_3_says_nothing_twice_and_takes_the_next_step_when_it_is_due() {
    let covering = present(&[watcher(true, Some(OFFSET))]);
    for presence in [&Presence::default(), &covering] {
        let notified = |now, next_step| Inputs { notified: true, next_step, ..inputs(now, GUARDRAIL, presence) };
        assert_decides(&notified(0, None), Action::Nothing, Why::AlreadyNotified);
        let step = Some(at(60_000));
        assert_decides(&notified(59_999, step), look(60_000), Why::StepNotDue);
        assert_decides(&notified(60_000, step), Action::Send, Why::StepDue);
        assert_decides(&notified(60_001, step), Action::Send, Why::StepDue);
    }
}

#[test]
fn rule_4_covers_a_guardrail_only_by_an_able_watcher_with_proof_of_it() {
    let next_change = Some(at(20_000));
    let covers = |watchers: &[Watcher]| Presence { next_change, ..present(watchers) };
    let table = [
        (vec![watcher(true, Some(OFFSET))], look(20_000), Why::Covered),
        (vec![watcher(true, Some(OFFSET + 1))], look(20_000), Why::Covered),
        (vec![watcher(false, Some(OFFSET)), watcher(true, Some(OFFSET))], look(20_000), Why::Covered),
        (vec![watcher(true, Some(OFFSET - 1))], look(10_000), Why::FirstLook),
        (vec![watcher(true, None)], look(10_000), Why::FirstLook),
        (vec![watcher(false, Some(OFFSET))], Action::Send, Why::NobodyLooks),
        (vec![watcher(false, Some(OFFSET)), watcher(true, None)], look(10_000), Why::FirstLook),
        (vec![], Action::Send, Why::NobodyLooks),
    ];
    for (watchers, action, why) in table {
        let presence = covers(&watchers);
        assert_eq!(decide(&inputs(0, GUARDRAIL, &presence)), Decision { action, why }, "{watchers:?}");
    }
}

#[test]
fn rule_4_settles_a_result_for_good_once_anybody_has_proved_it() {
    let proved = |offset| Presence { results_proved: offset, ..Presence::default() };
    assert_decides(&inputs(0, RESULT, &proved(Some(OFFSET))), Action::Nothing, Why::ResultProved);
    assert_decides(&inputs(0, RESULT, &proved(Some(OFFSET - 1))), Action::Send, Why::NobodyLooks);
    assert_decides(&inputs(0, RESULT, &proved(None)), Action::Send, Why::NobodyLooks);
    // A guardrail is not settled by it: that one needs somebody who is there.
    assert_decides(&inputs(0, GUARDRAIL, &proved(Some(OFFSET))), Action::Send, Why::NobodyLooks);
}

#[test]
fn rule_5_waits_after_a_watcher_with_proof_left_abnormally() {
    let gone = departed(&[left(1_000, Leave::Abnormal, true, Some(OFFSET))]);
    assert_decides(&inputs(1_000, GUARDRAIL, &gone), look(6_000), Why::GraceAfterProof);
    assert_decides(&inputs(5_999, GUARDRAIL, &gone), look(6_000), Why::GraceAfterProof);
    assert_decides(&inputs(6_000, GUARDRAIL, &gone), Action::Send, Why::NobodyLooks);
    for not_a_grace in [
        left(1_000, Leave::Clean, true, Some(OFFSET)),
        left(1_000, Leave::Abnormal, true, Some(OFFSET - 1)),
        left(1_000, Leave::Abnormal, true, None),
        left(1_000, Leave::Abnormal, false, Some(OFFSET)),
    ] {
        let presence = departed(&[not_a_grace]);
        assert_decides(&inputs(1_001, GUARDRAIL, &presence), Action::Send, Why::NobodyLooks);
    }
}

#[test]
fn rule_5_waits_after_the_last_able_watcher_left_abnormally_before_the_raising() {
    let gone = |departure| departed(&[departure]);
    let before = left(-2_000, Leave::Abnormal, true, None);
    assert_decides(&inputs(0, GUARDRAIL, &gone(before)), look(3_000), Why::GraceBeforeRaising);
    assert_decides(&inputs(2_999, GUARDRAIL, &gone(before)), look(3_000), Why::GraceBeforeRaising);
    assert_decides(&inputs(3_000, GUARDRAIL, &gone(before)), Action::Send, Why::NobodyLooks);
    let at_the_raising = left(0, Leave::Abnormal, true, None);
    assert_decides(&inputs(4_999, GUARDRAIL, &gone(at_the_raising)), look(5_000), Why::GraceBeforeRaising);
    for not_a_grace in [
        left(-2_000, Leave::Clean, true, None),
        left(-2_000, Leave::Abnormal, false, None),
        Departure { last_able: false, ..before },
        left(1, Leave::Abnormal, true, None),
        left(-5_000, Leave::Abnormal, true, None),
    ] {
        assert_decides(&inputs(2, GUARDRAIL, &gone(not_a_grace)), Action::Send, Why::NobodyLooks);
    }
}

#[test]
fn rule_5_counts_the_last_leave_before_the_raising_and_a_clean_one_ends_the_grace() {
    let abnormal_then_clean = [left(-3_000, Leave::Abnormal, true, None), left(-1_000, Leave::Clean, true, None)];
    assert_decides(&inputs(0, GUARDRAIL, &departed(&abnormal_then_clean)), Action::Send, Why::NobodyLooks);
    let after = [left(-3_000, Leave::Abnormal, true, None), left(1_000, Leave::Clean, true, None)];
    assert_decides(&inputs(1_000, GUARDRAIL, &departed(&after)), look(2_000), Why::GraceBeforeRaising);
}

#[test]
fn rule_5_waits_after_a_start_and_takes_the_latest_of_several_graces() {
    let nobody = Presence::default();
    let started = |now, presence| Inputs { start_grace_until: at(4_000), ..inputs(now, GUARDRAIL, presence) };
    assert_decides(&started(3_999, &nobody), look(4_000), Why::GraceAfterStart);
    assert_decides(&started(4_000, &nobody), Action::Send, Why::NobodyLooks);
    let gone = departed(&[left(1_000, Leave::Abnormal, true, Some(OFFSET))]);
    assert_decides(&started(1_000, &gone), look(6_000), Why::GraceAfterProof);
}

#[test]
fn rule_5_asks_for_any_watcher_where_a_result_is_concerned() {
    let before = departed(&[left(-2_000, Leave::Abnormal, false, None)]);
    assert_decides(&inputs(0, RESULT, &before), look(3_000), Why::GraceBeforeRaising);
    assert_decides(&inputs(0, GUARDRAIL, &before), Action::Send, Why::NobodyLooks);
}

#[test]
fn rule_6_gives_a_first_look_from_the_raising_or_from_the_end_of_cover() {
    let looking = present(&[watcher(true, None)]);
    assert_decides(&inputs(0, GUARDRAIL, &looking), look(10_000), Why::FirstLook);
    assert_decides(&inputs(9_999, GUARDRAIL, &looking), look(10_000), Why::FirstLook);
    assert_decides(&inputs(10_000, GUARDRAIL, &looking), Action::Send, Why::NoProofInTime);
    let cover_ended =
        Presence { departures: vec![left(3_000, Leave::Clean, true, Some(OFFSET))], ..present(&[watcher(true, None)]) };
    assert_decides(&inputs(12_999, GUARDRAIL, &cover_ended), look(13_000), Why::FirstLook);
    assert_decides(&inputs(13_000, GUARDRAIL, &cover_ended), Action::Send, Why::NoProofInTime);
    let read_only = present(&[watcher(false, None)]);
    assert_decides(&inputs(0, GUARDRAIL, &read_only), Action::Send, Why::NobodyLooks);
    assert_decides(&inputs(9_999, RESULT, &read_only), look(10_000), Why::FirstLook);
    assert_decides(&inputs(10_000, RESULT, &read_only), Action::Send, Why::NoProofInTime);
}

#[test]
fn every_reason_names_its_rule_and_says_it_in_a_sentence() {
    let all = [
        (Why::ModeOff, 1),
        (Why::ModeLeavesResultsOut, 1),
        (Why::Closed, 1),
        (Why::StoppedByClient, 1),
        (Why::Held, 2),
        (Why::AlreadyNotified, 3),
        (Why::StepNotDue, 3),
        (Why::StepDue, 3),
        (Why::Covered, 4),
        (Why::ResultProved, 4),
        (Why::GraceAfterProof, 5),
        (Why::GraceBeforeRaising, 5),
        (Why::GraceAfterStart, 5),
        (Why::FirstLook, 6),
        (Why::NobodyLooks, 7),
        (Why::NoProofInTime, 7),
    ];
    let sentences: std::collections::HashSet<_> = all.iter().map(|(why, _)| why.sentence()).collect();
    assert_eq!(sentences.len(), all.len(), "no two reasons read the same");
    for (why, rule) in all {
        assert_eq!(why.rule(), rule, "{why:?}");
    }
}

#[test]
fn a_result_that_was_seen_while_somebody_has_control_is_settled() {
    let seen = Presence { results_proved: Some(OFFSET), ..Presence::default() };
    let held = Inputs { held_until: Some(at(1_000)), ..inputs(0, RESULT, &seen) };
    assert_decides(&held, Action::Nothing, Why::ResultProved);
}

#[test]
fn who_left_although_others_stayed_leaves_no_grace_for_a_result() {
    let before = left(-1_000, Leave::Abnormal, false, None);
    assert_decides(&inputs(0, RESULT, &departed(&[before])), look(4_000), Why::GraceBeforeRaising);
    let others_stayed = departed(&[Departure { last: false, ..before }]);
    assert_decides(&inputs(0, RESULT, &others_stayed), Action::Send, Why::NobodyLooks);
}

fn any_departure() -> impl Strategy<Value = Departure> {
    let leave = prop_oneof![Just(Leave::Clean), Just(Leave::Abnormal)];
    (-20_000..20_000i64, leave, any::<bool>(), proptest::option::of(0..12u64), any::<bool>()).prop_map(
        |(ms, leave, able, proved, last)| Departure { last_able: able && last, last, ..left(ms, leave, able, proved) },
    )
}

fn any_presence() -> impl Strategy<Value = Presence> {
    let watcher = (any::<bool>(), proptest::option::of(0..12u64)).prop_map(|(able, proved)| watcher(able, proved));
    let watchers = proptest::collection::vec(watcher, 0..4);
    let departures = proptest::collection::vec(any_departure(), 0..5);
    let read = proptest::collection::vec(0..12u64, 0..3);
    (watchers, departures, proptest::option::of(0..12u64), read).prop_map(
        |(watchers, departures, results_proved, results_read)| Presence {
            watchers,
            departures,
            results_proved,
            results_read,
            next_change: None,
        },
    )
}

fn any_subject() -> impl Strategy<Value = Subject> {
    prop_oneof![
        any::<bool>().prop_map(|closed| Subject::Guardrail { closed }),
        any::<bool>().prop_map(|stopped| Subject::Result { stopped }),
    ]
}

fn any_mode() -> impl Strategy<Value = ReachOutMode> {
    prop_oneof![Just(ReachOutMode::Off), Just(ReachOutMode::GuardrailOnly), Just(ReachOutMode::Full)]
}

proptest! {
    #[test]
    fn it_never_says_to_look_again_at_a_time_that_has_passed(
        presence in any_presence(),
        subject in any_subject(),
        mode in any_mode(),
        now in 0..40_000i64,
        held in proptest::option::of(-5_000..45_000i64),
        step in proptest::option::of(proptest::option::of(-5_000..45_000i64)),
        start in -20_000..20_000i64,
        change in proptest::option::of(1..20_000i64),
    ) {
        // Who is present says of itself when it changes: always after now.
        let presence = Presence { next_change: change.map(|change| at(now + change)), ..presence };
        let next_step = step.flatten().map(at);
        let inputs = Inputs {
            mode,
            held_until: held.map(at),
            notified: step.is_some(),
            next_step,
            start_grace_until: at(start),
            ..inputs(now, subject, &presence)
        };
        if let Action::LookAgain(Some(again)) = decide(&inputs).action {
            prop_assert!(again > at(now), "{:?} at {now}", decide(&inputs));
        }
    }

    #[test]
    fn with_nobody_proving_and_nothing_holding_it_is_sent_within_its_windows(
        presence in any_presence(),
        start in -20_000..20_000i64,
    ) {
        let mut presence = presence;
        presence.watchers.iter_mut().for_each(|watcher| watcher.proved = None);
        // Departures up to now: the last moment at which one can give a time.
        let last = presence.departures.iter().map(|departure| departure.at).max().unwrap_or(origin()).max(origin());
        let end = (last + WINDOWS.first_look.max(WINDOWS.grace)).max(at(start));
        let inputs = Inputs { now: end, start_grace_until: at(start), ..inputs(0, GUARDRAIL, &presence) };
        prop_assert_eq!(decide(&inputs).action, Action::Send);
    }
}

/// What one step of a random run does to the watchers.
#[derive(Clone, Debug)]
enum Act {
    /// Somebody comes who never proves anything; able or not, attentive.
    Enter {
        able: bool,
    },
    Alive(usize),
    Idle(usize),
    Leave(usize, Leave),
    Lapse,
}

fn any_act() -> impl Strategy<Value = (u64, Act)> {
    let act = prop_oneof![
        any::<bool>().prop_map(|able| Act::Enter { able }),
        any::<usize>().prop_map(Act::Alive),
        any::<usize>().prop_map(Act::Idle),
        (any::<usize>(), prop_oneof![Just(Leave::Clean), Just(Leave::Abnormal)])
            .prop_map(|(who, how)| Act::Leave(who, how)),
        Just(Act::Lapse),
    ];
    (1..3_000u64, act)
}

fn newcomer(able: bool) -> Newcomer {
    Newcomer {
        subscriber: "s".into(),
        who: "w".into(),
        via: "websocket",
        observer: false,
        able,
        sees_results: true,
        attentive: Attentive::Active,
    }
}

fn watch() -> Book {
    Book::new(WatchTimes {
        live_window: Duration::from_secs(2),
        attention_lease: Duration::from_secs(3),
        poll_window: Duration::from_secs(2),
        remember: Duration::from_secs(10),
    })
}

proptest! {
    /// Whoever comes and goes after the raising without proof changes neither the end of a grace nor that of the
    /// first look: the decision "send" comes at the latest at their end, and none of them can bring it forward.
    #[test]
    fn a_newcomer_without_proof_never_moves_an_origin(
        before in proptest::option::of((0..6_000u64, any::<bool>())),
        acts in proptest::collection::vec(any_act(), 1..40),
    ) {
        let start = Instant::now() + Duration::from_secs(1000);
        let mut watch = watch();
        let mut there: Vec<u64> = Vec::new();
        // Perhaps the last able watcher vanished before the raising: its window ran out.
        let mut raised = start + Duration::from_secs(20);
        let mut grace_end = None;
        if let Some((gap, proves)) = before {
            let id = watch.enter(newcomer(true), start);
            if proves {
                watch.proved(id, OFFSET - 1, start);
            }
            there.push(id);
            let lapse = start + Duration::from_secs(2);
            raised = lapse + Duration::from_millis(gap);
            grace_end = Some(lapse + WINDOWS.grace);
        }
        watch.raised(raised);
        let mut now = raised;
        for (wait, act) in acts {
            now += Duration::from_millis(wait);
            match act {
                Act::Enter { able } => there.push(watch.enter(newcomer(able), now)),
                Act::Alive(which) => if let Some(at) = pick(&there, which) { watch.alive(there[at], now); },
                Act::Idle(which) => if let Some(at) = pick(&there, which) { watch.attention(there[at], false, now); },
                Act::Leave(which, how) => if let Some(at) = pick(&there, which) { watch.leave(there.remove(at), how, now); },
                Act::Lapse => {}
            }
            let presence = watch.presence(now);
            let inputs = Inputs { raised_at: raised, now, ..inputs(0, GUARDRAIL, &presence) };
            let decision = decide(&inputs);
            let grace = grace_end.filter(|end| now < *end);
            let able = presence.any_able() && now < raised + WINDOWS.first_look;
            let expected = match (grace, able) {
                (Some(end), _) => Action::LookAgain(Some(end)),
                (None, true) => Action::LookAgain(Some(raised + WINDOWS.first_look)),
                (None, false) => Action::Send,
            };
            prop_assert_eq!(decision.action, expected, "{:?} {:?}", decision.why, presence);
        }
    }
}

fn pick(there: &[u64], which: usize) -> Option<usize> {
    which.checked_rem(there.len())
}
