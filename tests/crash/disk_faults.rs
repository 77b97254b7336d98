//! A disk that is full, fails, or takes half: what was acknowledged stays, reads are served, and nothing is made up.

use std::{fs, path::PathBuf, time::Duration};

use crate::{
    checker::Terms,
    driver::runtime::PATIENCE,
    random_seeds,
    scenario::{Cast, Scenario},
    shim::{Fault, Plan},
};

const SOON: Duration = Duration::from_secs(10);

/// A notice may be confirmed and the disk too full to keep that.
const TERMS: Terms = Terms { confirmation_kept_after: None };

/// A run whose disk behaves as planned while the returned file exists.
async fn with_switch(name: &str, seed: u64, fault: Fault) -> (Scenario, PathBuf) {
    let mut run = Scenario::begin(name, seed, &Cast { pace: Duration::from_millis(20), ..Cast::busy() }).await;
    let switch = run.gateway.folder.join("broken");
    assert!(run.gateway.start_with(Some(&Plan::only_while(fault, &switch))).await, "{}", run.gateway.last_words());
    run.wait_runtimes("events are acknowledged", SOON, |now| now.acknowledged > 50).await;
    let (writes, syncs) = run.gateway.counted();
    assert!(writes > 0 && syncs > 0, "the shim sees {writes} writes and {syncs} syncs: the disk is reached past it");
    (run, switch)
}

/// The switch is on: events are refused as `unavailable`, and what is acknowledged can be read.
async fn refuses_and_serves_reads(run: &Scenario) {
    let before = run.runtimes().unavailable;
    run.wait_runtimes("events are refused as unavailable", SOON, |now| now.unavailable > before + 3).await;
    // Deadlines pass and answers come meanwhile: a decision that cannot be kept must not hold up who only reads.
    tokio::time::sleep(PATIENCE + Duration::from_millis(500)).await;
    let unserved = run.unserved_reads(Duration::from_secs(3)).await;
    assert!(unserved.is_empty(), "seed {}: {} reads were not served: {unserved:#?}", run.seed, unserved.len());
    let now = run.runtimes();
    assert_eq!(now.unheard, 0, "seed {}: events of these sessions are not even refused: {now:?}", run.seed);
}

/// What an orchestrator asks that starts the gateway again when it is ill.
async fn health(run: &Scenario) -> u16 {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = client.get(format!("{}/healthz", run.gateway.url)).send().await;
    response.expect("it listens").status().as_u16()
}

#[tokio::test]
async fn on_a_full_disk_events_are_refused_reads_are_served_and_it_goes_on_by_itself() {
    for fault in [Fault::Full, Fault::ShortThenFull] {
        for seed in random_seeds(&[], 1) {
            let (run, switch) = with_switch(&format!("full-{fault:?}"), seed, fault).await;
            fs::write(&switch, "").unwrap();
            refuses_and_serves_reads(&run).await;
            assert_eq!(health(&run).await, 200, "starting again would not help");
            fs::remove_file(&switch).unwrap();
            let before = run.runtimes().acknowledged;
            run.wait_runtimes("it goes on", SOON, |now| now.acknowledged > before + 50).await;
            run.settle_and_check(TERMS).await;
        }
    }
}

#[tokio::test]
async fn killed_while_the_disk_is_full_it_has_what_it_acknowledged() {
    for seed in random_seeds(&[], 1) {
        let (mut run, switch) = with_switch("full-kill", seed, Fault::Full).await;
        fs::write(&switch, "").unwrap();
        refuses_and_serves_reads(&run).await;
        run.gateway.kill().await;
        run.gateway.start().await;
        run.settle_and_check(TERMS).await;
    }
}

#[tokio::test]
async fn started_on_a_full_disk_it_shows_what_it_has_and_goes_on_by_itself() {
    for seed in random_seeds(&[], 1) {
        let (mut run, switch) = with_switch("full-start", seed, Fault::Full).await;
        run.gateway.kill().await;
        fs::write(&switch, "").unwrap();
        let plan = Plan::only_while(Fault::Full, &switch);
        assert!(run.gateway.start_with(Some(&plan)).await, "{}", run.gateway.last_words());
        let unserved = run.unserved_reads(Duration::from_secs(3)).await;
        assert!(unserved.is_empty(), "seed {seed}: {} reads were not served: {unserved:#?}", unserved.len());
        let before = run.runtimes().acknowledged;
        fs::remove_file(&switch).unwrap();
        run.wait_runtimes("it goes on", SOON, |now| now.acknowledged > before + 50).await;
        run.settle_and_check(TERMS).await;
    }
}

/// After a failed sync nobody knows what is on the disk: it is not tried again by the same process.
#[tokio::test]
async fn after_a_failed_sync_it_refuses_until_it_is_started_again() {
    for seed in random_seeds(&[], 1) {
        let (mut run, switch) = with_switch("sync-error", seed, Fault::SyncError).await;
        fs::write(&switch, "").unwrap();
        refuses_and_serves_reads(&run).await;
        fs::remove_file(&switch).unwrap();
        let at_failure = run.runtimes();
        refuses_and_serves_reads(&run).await;
        assert_eq!(run.runtimes().acknowledged, at_failure.acknowledged, "nothing is acknowledged any more");
        assert_eq!(health(&run).await, 503, "starting again is the cure");
        run.gateway.kill().await;
        run.gateway.start().await;
        run.wait_runtimes("it goes on", SOON, |now| now.acknowledged > at_failure.acknowledged + 50).await;
        run.settle_and_check(TERMS).await;
    }
}

#[tokio::test]
async fn after_failed_writes_nothing_acknowledged_is_lost() {
    for seed in random_seeds(&[], 1) {
        let (mut run, switch) = with_switch("write-error", seed, Fault::WriteError).await;
        fs::write(&switch, "").unwrap();
        refuses_and_serves_reads(&run).await;
        fs::remove_file(&switch).unwrap();
        run.gateway.kill().await;
        run.gateway.start().await;
        run.settle_and_check(TERMS).await;
    }
}

#[tokio::test]
async fn a_disk_that_takes_half_of_each_write_is_written_to_the_end() {
    for seed in random_seeds(&[], 1) {
        let mut run = Scenario::begin("short", seed, &Cast::busy()).await;
        let plan = Plan { fault: Some(Fault::ShortWrite), ..Plan::count() };
        assert!(run.gateway.start_with(Some(&plan)).await, "{}", run.gateway.last_words());
        run.wait_runtimes("events are acknowledged", SOON, |now| now.acknowledged > 200).await;
        run.gateway.kill().await;
        run.gateway.start().await;
        run.settle_and_check(TERMS).await;
    }
}

#[tokio::test]
async fn a_second_process_on_the_same_directory_says_so_and_the_first_goes_on() {
    let mut run = Scenario::begin("second", 1, &Cast::busy()).await;
    run.gateway.start().await;
    run.wait_runtimes("events are acknowledged", SOON, |now| now.acknowledged > 50).await;
    let (status, said) = run.gateway.second().await;
    assert!(status.is_some_and(|status| status != 0), "{status:?}: {said}");
    let data = run.gateway.data();
    let sentences: Vec<_> = said.lines().filter(|line| line.contains(&*data.to_string_lossy())).collect();
    assert_eq!(sentences.len(), 1, "one sentence that names the directory: {said}");
    assert!(!said.contains("panicked") && !said.contains("listening on"), "{said}");
    let before = run.runtimes().acknowledged;
    run.wait_runtimes("the first goes on", SOON, |now| now.acknowledged > before + 50).await;
    run.settle_and_check(Terms::default()).await;
}
