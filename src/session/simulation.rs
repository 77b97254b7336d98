//! The core under a clock of its own: real owners, watch, hub, outbox and dispatcher over an engine in memory that is
//! slow and fails, with runtimes, people and receivers of notices that do what one seed says, and processes that are
//! killed anywhere. No sockets, no waiting: a run takes milliseconds, and a seed repeats it exactly.
//!
//! `ONLOOKER_TEST_SEED=7` runs one seed and prints its trace, `ONLOOKER_TEST_FULL=1` ten times as many seeds.
//! `simulation/seeds.txt` keeps seeds that once found something; they are always run first.

mod checker;
mod people;
mod plan;
mod runtimes;
mod spans;
mod targets;
mod trace;
mod world;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use self::{
    checker::{Class, Delay},
    plan::Plan,
    trace::Event,
    world::World,
};
use crate::{clock, ids};

const KEPT: &str = include_str!("simulation/seeds.txt");
/// Seeds of one run in an unoptimised build, as many as two cores do in a minute.
const SEEDS: u64 = 3_000;
const THREADS: u64 = 2;
/// Failing seeds that are told of in full.
const TOLD: usize = 10;

fn trace_of(plan: &Plan) -> Vec<(u64, Event)> {
    // A key of the process is made at the first answer: not from a seed.
    warm_up();
    ids::seeded::begin(plan.seed);
    let world = World::new(plan.clone());
    world.run();
    ids::seeded::end();
    clock::pretended::end();
    world.trace.events()
}

fn warm_up() {
    let answer = onlooker_protocol::subscriber::Answer {
        revision: 1,
        idempotency_key: String::new(),
        action: onlooker_protocol::subscriber::AnswerAction::Submit,
        text: None,
        choice: None,
        values: BTreeMap::new(),
    };
    let _ = crate::guardrail::AnswerDigest::of(&answer);
}

/// What is wrong with the runs of some seeds.
#[derive(Default)]
struct Found {
    wrong: Vec<(u64, Vec<String>)>,
    delays: Vec<Delay>,
    seeds: u64,
}

impl Found {
    fn run(&mut self, seed: u64) {
        self.run_plan(Plan::of(seed));
    }

    fn run_plan(&mut self, plan: Plan) {
        let (seed, trace) = (plan.seed, trace_of(&plan));
        let (wrong, delays) = checker::check(&plan, &trace);
        self.seeds += 1;
        self.delays.extend(delays);
        if !wrong.is_empty() {
            self.wrong.push((seed, wrong));
        }
    }

    fn of(seeds: impl IntoIterator<Item = u64>) -> Self {
        let mut found = Self::default();
        seeds.into_iter().for_each(|seed| found.run(seed));
        found
    }

    fn join(mut self, other: Self) -> Self {
        self.wrong.extend(other.wrong);
        self.delays.extend(other.delays);
        self.seeds += other.seeds;
        self
    }

    fn print_delays(&self) {
        println!("from a question or result to its first message, over {} seeds, in ms:", self.seeds);
        for class in [Class::Nobody, Class::Dead, Class::Unproved, Class::Other] {
            let mut all: Vec<u64> =
                self.delays.iter().filter(|delay| delay.class == class).map(|delay| delay.ms).collect();
            all.sort_unstable();
            let at = |share: usize| all.get((all.len() * share / 100).min(all.len().saturating_sub(1))).copied();
            println!("  {class:?}: {} times, p50 {:?}, p99 {:?}, max {:?}", all.len(), at(50), at(99), all.last());
        }
    }

    #[track_caller]
    fn assert_nothing(mut self) {
        self.print_delays();
        self.wrong.sort();
        for (seed, wrong) in self.wrong.iter().take(TOLD) {
            println!("seed {seed}:\n  {}", wrong.join("\n  "));
        }
        let seeds: Vec<u64> = self.wrong.iter().map(|(seed, _)| *seed).collect();
        assert!(
            seeds.is_empty(),
            "{} seeds break a promise: {seeds:?}\nto repeat one: ONLOOKER_TEST_SEED={} cargo test -p onlooker --lib \
             session::simulation::no_seed_breaks_a_promise -- --nocapture",
            seeds.len(),
            seeds[0]
        );
    }
}

/// Runs in which one thing goes wrong often and little else does.
#[track_caller]
fn assert_nothing_where(changed: impl Fn(&mut Plan)) {
    let mut found = Found::default();
    for seed in 1..=24 {
        let mut plan = Plan::calm(seed);
        changed(&mut plan);
        found.run_plan(plan);
    }
    found.assert_nothing();
}

#[test]
fn a_question_that_closed_while_the_engine_was_down_is_told_as_closed_afterwards() {
    assert_nothing_where(|plan| (plan.engine_fails, plan.answers) = (true, true));
}

#[test]
fn a_result_goes_to_everybody_in_its_tier_although_one_has_it_already() {
    assert_nothing_where(|plan| {
        let often = plan::Manners { refuses: 600, ..plan::Manners::default() };
        plan.tiers = vec![vec![("telegram:1", plan::Manners::default()), ("telegram:2", often)]];
    });
}

fn kept_seeds() -> impl Iterator<Item = u64> {
    let words = KEPT.lines().filter_map(|line| line.split('#').next()).flat_map(str::split_whitespace);
    words.map(|seed| seed.parse().expect("a number"))
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in kept_seeds().take(5).chain(1..20) {
        let (first, second) = (trace_of(&Plan::of(seed)), trace_of(&Plan::of(seed)));
        assert!(first.len() > 10, "seed {seed} does nothing");
        if let Some(at) = first.iter().zip(&second).position(|(first, second)| first != second) {
            panic!("seed {seed} goes {:?} and {:?}", first[at], second[at]);
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

#[test]
fn no_kept_seed_breaks_a_promise() {
    Found::of(kept_seeds()).assert_nothing();
}

#[test]
fn no_seed_breaks_a_promise() {
    if let Some(seed) = std::env::var("ONLOOKER_TEST_SEED").ok().and_then(|seed| seed.parse().ok()) {
        trace_of(&Plan::of(seed)).iter().for_each(|(at, event)| println!("{at:>7} {event:?}"));
        return Found::of([seed]).assert_nothing();
    }
    let full = std::env::var("ONLOOKER_TEST_FULL").is_ok_and(|full| full == "1");
    let last = std::env::var("ONLOOKER_TEST_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    let last = last.unwrap_or(if full { SEEDS * 10 } else { SEEDS });
    let next = AtomicU64::new(1);
    let work =
        || Found::of(std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed <= last)));
    let found = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(Found::default(), Found::join)
    });
    found.assert_nothing();
}
