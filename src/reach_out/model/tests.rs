//! The configurations that are explored, and the planted faults that each of them finds.

use std::time::Instant;

use stateright::{Checker, Model};

use super::*;

/// Larger bounds.
const FULL: &str = "ONLOOKER_TEST_FULL";

fn is_full() -> bool {
    std::env::var_os(FULL).is_some()
}

/// Explores all of it. Returns the marks that were seen.
#[track_caller]
fn holds(name: &str, bounds: Bounds) -> Vec<&'static str> {
    let began = Instant::now();
    let bounds = tuned(bounds);
    let limit = std::env::var("LIMIT").map_or(3000, |n| n.parse().unwrap());
    let checker = ReachOut { bounds, fault: None }
        .checker()
        .threads(1)
        .timeout(std::time::Duration::from_secs(limit))
        .spawn_bfs()
        .join();
    println!("generated {}", checker.state_count());
    let (states, took) = (checker.unique_state_count(), began.elapsed());
    println!("{name}: {states} states, depth {}, {:.1} s", checker.max_depth(), took.as_secs_f64());
    let mut seen = Vec::new();
    for (property, path) in checker.discoveries() {
        match checker.discovery_classification(property) {
            stateright::DiscoveryClassification::Example => seen.push(property),
            stateright::DiscoveryClassification::Counterexample => {
                panic!("{name}: {property} is broken by {:#?}", path.into_actions());
            }
        }
    }
    seen
}

fn watching() -> Bounds {
    Bounds { able: &[true, true], acts: if is_full() { 6 } else { 5 }, bad: 0, ..Bounds::NONE }
}

fn revisions() -> Bounds {
    let more = u8::from(is_full());
    let bounds = Bounds { able: &[true], raises: 2, acts: 2 + more, answers: 2, claims: 2, ..Bounds::NONE };
    Bounds { withdrawals: 1, expires: Some(3), ..bounds }
}

fn sending() -> Bounds {
    let more = u8::from(is_full());
    Bounds {
        able: &[true],
        tiers: &[&["a"], &["b"]],
        acts: 3,
        answers: 1,
        bad: 3 + more,
        unheard: 1,
        refused_writes: 1,
        ..Bounds::NONE
    }
}

fn climbing() -> Bounds {
    let more = u8::from(is_full());
    Bounds { able: &[true], step: Some("b"), acts: 3 + more, answers: 1, claims: 2, bad: 1, ..Bounds::NONE }
}

fn restarts() -> Bounds {
    let more = u8::from(is_full());
    Bounds {
        able: &[true],
        raises: 2,
        acts: 1 + more,
        answers: 1,
        bad: 1,
        crashes: 2,
        stops: 1,
        fine: true,
        ..Bounds::NONE
    }
}

fn two_nodes() -> Bounds {
    let more = u8::from(is_full());
    Bounds {
        nodes: 2,
        able: &[true],
        acts: 1,
        answers: 1,
        bad: 1 + more,
        take_overs: 1,
        freezes: 1,
        fine: true,
        ..Bounds::NONE
    }
}

#[test]
fn nobody_is_missed_and_nobody_nagged_however_people_come_and_go() {
    println!("{:?}", holds("watching", watching()));
}

#[test]
fn revisions_answers_and_claims() {
    println!("{:?}", holds("revisions", revisions()));
}

#[test]
fn sending_keeps_its_promises() {
    println!("{:?}", holds("sending", sending()));
}

#[test]
fn climbing_keeps() {
    println!("{:?}", holds("climbing", climbing()));
}

#[test]
fn restarts_keep() {
    println!("{:?}", holds("restarts", restarts()));
}

#[test]
fn two_nodes_keep() {
    println!("{:?}", holds("two nodes", two_nodes()));
}

fn tuned(mut b: Bounds) -> Bounds {
    let Ok(text) = std::env::var("MODEL") else { return b };
    for pair in text.split(',').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap();
        let n: u8 = value.parse().unwrap();
        match name {
            "nodes" => b.nodes = n as usize,
            "people" => b.able = [&[][..], &[true], &[true, true]][n as usize],
            "tiers" => {
                const ONE: &[&[&str]] = &[&["a"]];
                const TWO: &[&[&str]] = &[&["a"], &["b"]];
                b.tiers = [&[], ONE, TWO][n as usize];
            }
            "step" => b.step = [None, Some("b")][n as usize],
            "raises" => b.raises = n,
            "acts" => b.acts = n,
            "answers" => b.answers = n,
            "claims" => b.claims = n,
            "withdrawals" => b.withdrawals = n,
            "expires" => b.expires = Some(u32::from(n)).filter(|n| *n > 0),
            "bad" => b.bad = n,
            "crashes" => b.crashes = n,
            "stops" => b.stops = n,
            "take_overs" => b.take_overs = n,
            "freezes" => b.freezes = n,
            "unheard" => b.unheard = n,
            "refused_writes" => b.refused_writes = n,
            "fine" => b.fine = n > 0,
            _ => panic!("{name}"),
        }
    }
    b
}
