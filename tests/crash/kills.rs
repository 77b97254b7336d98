//! `kill -9` at random moments.

use std::time::Duration;

use rand::RngExt as _;
use tokio::time::Instant;

use crate::{
    checker::{Rule, Terms},
    driver::chance,
    is_full, random_seeds,
    scenario::{Cast, Scenario},
};

/// Seeds that once found something.
const KEPT: &[u64] = &[];

const SOON: Duration = Duration::from_secs(20);

async fn killed_at_random(name: &str, seed: u64, length: Duration, cast: &Cast) {
    let mut rng = chance(seed, 2_000);
    let mut run = Scenario::begin(name, seed, cast).await;
    let until = Instant::now() + length;
    run.gateway.start().await;
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(rng.random_range(200..2_000))).await;
        run.gateway.kill().await;
        run.gateway.start().await;
    }
    run.settle_and_check(Terms::default()).await;
}

fn length() -> Duration {
    Duration::from_secs(if is_full() { 120 } else { 8 })
}

/// Without a death: what those around the gateway and the checker are worth themselves.
#[tokio::test]
async fn a_run_without_a_death_has_no_fault() {
    let mut run = Scenario::begin("calm", 1, &Cast::busy()).await;
    run.gateway.start().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    run.settle_and_check(Terms::default()).await;
}

/// With a death after which the data is what it was before: what has to be found when something is lost.
#[tokio::test]
async fn a_gateway_that_forgets_what_it_acknowledged_is_found_out() {
    let mut run = Scenario::begin("forgets", 1, &Cast::busy()).await;
    run.gateway.start().await;
    run.wait_runtimes("events are acknowledged", SOON, |now| now.held == 6 && now.acknowledged > 100).await;
    run.gateway.kill().await;
    run.gateway.set_aside();
    let before = run.runtimes().acknowledged;
    run.gateway.start().await;
    run.wait_runtimes("more is acknowledged", SOON, |now| now.acknowledged > before + 200).await;
    run.gateway.kill().await;
    run.gateway.fall_back();
    run.gateway.start().await;
    let found = run.settle_and_find(Terms::default()).await;
    for rule in [Rule::LostEvent, Rule::ShownOtherwise, Rule::UnexpectedGap] {
        assert!(found.contains(&rule), "{rule:?} is not among {found:?}");
    }
}

#[tokio::test]
async fn killed_at_random_moments_it_loses_doubles_and_revives_nothing() {
    for seed in random_seeds(KEPT, 2) {
        killed_at_random("kills", seed, length(), &Cast::busy()).await;
    }
}

#[tokio::test]
async fn killed_at_random_moments_what_the_system_has_is_enough() {
    let cast = Cast { settings: "durability = \"os\"".to_owned(), ..Cast::busy() };
    for seed in random_seeds(KEPT, 1) {
        killed_at_random("kills-os", seed, length(), &cast).await;
    }
}

/// One session under as many questions as there can be: deaths fall between the parts of a decision more often.
#[tokio::test]
async fn killed_among_many_questions_each_is_answered_once() {
    let cast = Cast { ask_every: 2, tasks: 0.8, ..Cast::small() };
    for seed in random_seeds(KEPT, 1) {
        killed_at_random("questions", seed, length(), &cast).await;
    }
}
