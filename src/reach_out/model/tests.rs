//! The configurations that are explored, each small enough for every run, and the planted faults that they find.
//!
//! `ONLOOKER_TEST_FULL=1` explores larger ones. `--nocapture` shows how many states there were, and the shortest way to
//! each planted fault's broken promise.

use std::time::Instant;

use stateright::{Checker, DiscoveryClassification, HasDiscoveries, Model};

use super::*;

const FULL: &str = "ONLOOKER_TEST_FULL";

/// One more, where larger bounds are asked for.
fn more() -> u8 {
    u8::from(std::env::var_os(FULL).is_some())
}

/// Explores all of it. Every promise is kept everywhere, and what the configuration is there for does happen.
#[track_caller]
fn holds(name: &str, bounds: Bounds, happens: &[Mark]) {
    let began = Instant::now();
    let checker = ReachOut { bounds, fault: None }.checker().threads(2).spawn_bfs().join();
    let (states, depth, took) = (checker.unique_state_count(), checker.max_depth(), began.elapsed());
    println!("{name}: {states} states, up to {depth} steps, {:.1} s", took.as_secs_f64());
    assert!(checker.is_done());
    let mut seen = Vec::new();
    for (property, path) in checker.discoveries() {
        match checker.discovery_classification(property) {
            DiscoveryClassification::Example => seen.push(property),
            DiscoveryClassification::Counterexample => {
                panic!("{name}: \"{property}\" is broken by {:?}", path.into_actions());
            }
        }
    }
    for mark in happens {
        assert!(seen.contains(&mark.name()), "{name}: it never happens that {}", mark.name());
    }
}

/// Explores until a promise is broken, and says which one is in the fewest steps.
#[track_caller]
fn finds(fault: Fault, bounds: Bounds) -> &'static str {
    let checker = ReachOut { bounds, fault: Some(fault) }.checker().finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.spawn_bfs().join();
    let states = checker.unique_state_count();
    let is_broken =
        |property: &str| matches!(checker.discovery_classification(property), DiscoveryClassification::Counterexample);
    let found = checker.discoveries().into_iter().filter(|(property, _)| is_broken(property));
    let shortest = found.map(|(property, path)| (property, path.into_actions()));
    let shortest = shortest.min_by_key(|(property, acts)| (acts.len(), *property));
    let (property, acts) = shortest.unwrap_or_else(|| panic!("{fault:?} is not found in {states} states"));
    println!("{fault:?} breaks \"{property}\" in {} steps, found after {states} states: {acts:?}", acts.len());
    property
}

fn watching() -> Bounds {
    Bounds { able: &[true, true], acts: 5 + more(), ..Bounds::NONE }
}

fn read_only() -> Bounds {
    Bounds { able: &[true, false], acts: 4 + more(), ..Bounds::NONE }
}

fn answering() -> Bounds {
    let bounds = Bounds { able: &[true], raises: 2, answers: 2, claims: 1 + more(), ..Bounds::NONE };
    Bounds { withdrawals: 1, expires: Some(3), acts: more(), ..bounds }
}

fn sending() -> Bounds {
    let bounds = Bounds { able: &[true], tiers: &[&["a"], &["b"]], acts: 1 + more(), bad: 3, ..Bounds::NONE };
    Bounds { unheard: 1, refused_writes: 1, ..bounds }
}

fn sending_under_cover() -> Bounds {
    Bounds { able: &[true], acts: 3 + more(), answers: 1, bad: 1, ..Bounds::NONE }
}

fn climbing() -> Bounds {
    Bounds { able: &[true], step: Some("b"), acts: 2, claims: 1 + more(), bad: 1, ..Bounds::NONE }
}

fn crashing() -> Bounds {
    Bounds { answers: 1, bad: 1, crashes: 1 + more(), fine: true, ..Bounds::NONE }
}

fn stopping() -> Bounds {
    Bounds { answers: 1, bad: 1, stops: 1, crashes: more(), fine: true, ..Bounds::NONE }
}

fn crashing_between_revisions() -> Bounds {
    Bounds { able: &[true], raises: 2, acts: 1, answers: more(), crashes: 1, fine: true, ..Bounds::NONE }
}

const TWO_NODES: Bounds = Bounds { nodes: 2, able: &[true], take_overs: 1, fine: true, ..Bounds::NONE };

fn taking_over() -> Bounds {
    Bounds { bad: 1, freezes: 1, crashes: more(), ..TWO_NODES }
}

fn taking_over_from_who_answers() -> Bounds {
    Bounds { answers: 1, freezes: more(), bad: more(), ..TWO_NODES }
}

fn taking_over_who_watch() -> Bounds {
    Bounds { acts: 2, freezes: more(), ..TWO_NODES }
}

#[test]
fn however_two_people_come_and_go_nobody_is_missed_and_nobody_nagged() {
    holds("watching", watching(), &[Mark::Arrived, Mark::HeldBackByCover, Mark::GraceRuns]);
}

#[test]
fn who_may_not_answer_covers_nobody() {
    holds("read only", read_only(), &[Mark::Arrived, Mark::HeldBackByCover]);
}

#[test]
fn of_two_revisions_each_is_asked_answered_or_closed_once() {
    let answers = [Mark::AnswerWon, Mark::AnswerAgain, Mark::AnswerRefused, Mark::HeldBackByClaim];
    let ends = [Mark::Superseded, Mark::Expired, Mark::Edited, Mark::ToldAfterClosing];
    holds("answering", answering(), &[&answers[..], &ends].concat());
}

#[test]
fn whatever_comes_of_sending_somebody_is_told_or_it_is_counted() {
    let marks = [Mark::RepeatArrived, Mark::GivenUp, Mark::NextTier, Mark::Unreached];
    holds("sending", sending(), &marks);
}

#[test]
fn whoever_has_the_question_is_not_told_it() {
    let marks = [Mark::RepeatArrived, Mark::HeldBackByCover, Mark::Edited, Mark::ToldAfterClosing];
    holds("sending under cover", sending_under_cover(), &marks);
}

#[test]
fn the_ladder_is_climbed_once_unless_somebody_claims() {
    holds("climbing", climbing(), &[Mark::Climbed, Mark::HeldBackByClaim, Mark::RepeatArrived]);
}

#[test]
fn a_crash_between_any_two_writes_misses_nobody_and_asks_nobody_twice_unmarked() {
    let marks = [Mark::RepeatArrived, Mark::TakenForDead, Mark::GivenUp, Mark::Unreached, Mark::AnswerWon];
    holds("crashing", crashing(), &marks);
}

#[test]
fn a_stop_while_notices_are_asked_about_and_sent_misses_nobody() {
    holds("stopping", stopping(), &[Mark::RepeatArrived, Mark::TakenForDead, Mark::Edited]);
}

#[test]
fn a_crash_between_two_revisions_loses_neither() {
    holds("crashing between revisions", crashing_between_revisions(), &[Mark::Superseded, Mark::TakenForDead]);
}

#[test]
fn of_two_nodes_one_sends_and_the_old_owner_is_fenced() {
    let marks = [Mark::Fenced, Mark::StaleSent, Mark::TakenForDead, Mark::ConfirmedLate, Mark::RepeatArrived];
    holds("taking over", taking_over(), &marks);
}

#[test]
fn of_two_nodes_one_accepts_an_answer() {
    holds("taking over from who answers", taking_over_from_who_answers(), &[Mark::Fenced, Mark::AnswerWon]);
}

#[test]
fn after_a_take_over_everybody_gets_time_to_come_back() {
    holds("taking over who watch", taking_over_who_watch(), &[Mark::Fenced, Mark::HeldBackByCover, Mark::GraceRuns]);
}

#[test]
fn a_skipped_recheck_is_found() {
    let broken = finds(Fault::Without(Guard::Recheck), sending_under_cover());
    assert!(["no nag", "nothing after closed"].contains(&broken), "{broken}");
}

#[test]
fn a_grace_restarted_by_newcomers_is_found() {
    assert!(finds(Fault::Without(Guard::GraceOrigin), watching()).starts_with("no miss"));
}

#[test]
fn a_key_without_revision_is_found() {
    assert!(finds(Fault::Without(Guard::KeyRevision), answering()).starts_with("no miss"));
}

#[test]
fn a_second_repeat_is_found() {
    let broken = finds(Fault::Without(Guard::OneRepeat), sending());
    assert!(["at most one repeat", "the second says so"].contains(&broken), "{broken}");
}

#[test]
fn an_answer_that_is_accepted_after_the_closing_is_found() {
    assert_eq!(finds(Fault::Without(Guard::CompareAndSet), answering()), "one answer");
}

#[test]
fn a_lease_that_is_not_written_before_sending_is_found() {
    assert_eq!(finds(Fault::LeaseNotWritten, crashing()), "the second says so");
}

#[test]
fn an_ignored_fence_is_found() {
    assert_eq!(finds(Fault::FenceIgnored, taking_over_from_who_answers()), "nothing after closed");
}

#[test]
fn that_nobody_asks_again_after_the_lease_is_found() {
    let broken = finds(Fault::OnlyAskedBeforeTheLease, sending_under_cover());
    assert!(["no nag", "nothing after closed"].contains(&broken), "{broken}");
}

#[test]
fn that_a_notice_is_dropped_where_its_session_has_no_owner_is_found() {
    assert!(finds(Fault::DroppedForGood, stopping()).starts_with("no miss"));
}

#[test]
fn that_a_message_is_sent_under_an_old_lease_is_found() {
    assert_eq!(finds(Fault::OldLeaseUsed, taking_over()), "the second says so");
}
