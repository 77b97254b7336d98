//! Deaths at planted points: right before and right after each of the first commits of a short run.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use rand::RngExt as _;

use crate::{
    checker::Terms,
    driver::chance,
    is_full, random_seeds,
    scenario::{Cast, Scenario},
    shim::{Fault, Plan},
};

/// How many runs share the machine: each waits most of its time.
const AT_ONCE: usize = 6;

const SOON: Duration = Duration::from_secs(20);

/// Dies at each of the points, in one process after the other, and goes on for a while after that. `false`: the run
/// never came to one of them.
async fn dies_at(name: &str, seed: u64, points: &[(Fault, u64)]) -> bool {
    let mut run = Scenario::begin(name, seed, &Cast::small()).await;
    let mut all_died = true;
    for &(fault, number) in points {
        let plan = Plan::at(fault, number);
        let died = !run.gateway.start_with(Some(&plan)).await || run.gateway.ended_within(Duration::from_secs(4)).await;
        if !died {
            let (writes, syncs) = run.gateway.counted();
            println!("  {fault:?} {number}: only {writes} writes and {syncs} syncs came");
            run.gateway.kill().await;
        }
        all_died &= died;
    }
    run.gateway.start().await;
    run.wait_runtimes("it has its session", SOON, |now| now.held > 0).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    run.settle_and_check(Terms::default()).await;
    all_died
}

async fn sweep(name: &str, points: Vec<Vec<(Fault, u64)>>) {
    let runs = stream::iter(points).enumerate().map(|(i, points)| async move {
        let words: Vec<_> = points.iter().map(|(fault, number)| format!("{fault:?}-{number}")).collect();
        // Another course for each run, the same one each time that the tests run.
        let died = dies_at(&format!("{name}-{}", words.join("-")), i as u64, &points).await;
        (points, died)
    });
    let missed: Vec<_> = runs.buffer_unordered(AT_ONCE).filter(|(.., died)| std::future::ready(!died)).collect().await;
    assert!(missed.is_empty(), "never reached: {missed:?}");
}

/// The first ones are those of a new directory, of the start, and of the first session.
fn commits() -> u64 {
    if is_full() { 80 } else { 16 }
}

#[tokio::test]
async fn killed_before_and_after_each_of_the_first_commits_it_loses_nothing() {
    let points = (1..=commits()).flat_map(|k| [vec![(Fault::KillBeforeSync, k)], vec![(Fault::KillAfterSync, k)]]);
    sweep("commit", points.collect()).await;
}

/// What a start finds only in the log must be in the records before another death.
#[tokio::test]
async fn killed_again_at_each_of_the_first_commits_of_the_next_start_it_loses_nothing() {
    let rounds = if is_full() { 10 } else { 1 };
    let mut rng = chance(4, 3_000);
    let points = (0..rounds).flat_map(|_| 1..=commits()).map(|k| {
        let first = (Fault::KillAfterSync, rng.random_range(20..60));
        vec![first, (Fault::KillAfterSync, k)]
    });
    sweep("again", points.collect()).await;
}

#[tokio::test]
async fn killed_at_later_commits_writes_and_within_a_write_it_loses_nothing() {
    for seed in random_seeds(&[], 1) {
        let mut rng = chance(seed, 3_000);
        let mut points = Vec::new();
        for _ in 0..if is_full() { 20 } else { 3 } {
            points.push(vec![(Fault::KillBeforeSync, rng.random_range(17..60))]);
            points.push(vec![(Fault::KillBeforeWrite, rng.random_range(5..120))]);
            points.push(vec![(Fault::KillAfterWrite, rng.random_range(5..120))]);
            points.push(vec![(Fault::TornWrite, rng.random_range(1..120))]);
        }
        sweep(&format!("later-{seed}"), points).await;
    }
}
