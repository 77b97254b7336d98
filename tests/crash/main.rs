//! The real program, killed at any moment: what it acknowledged is there, and nothing is doubled, revived or shown.
//!
//! Runtimes, operators and a webhook's receiver of the test's own write down what they saw; a checker holds that
//! against what the gateway says at the end. Each run prints its seed; `ONLOOKER_TEST_SEED` runs with one alone, and
//! `ONLOOKER_TEST_FULL=1` runs for longer.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the right answer, also outside of the test functions")]
#![expect(unreachable_pub, reason = "modules of one test binary")]

#[path = "../../src/chat/telegram/tests/fake.rs"]
mod telegram;

mod checker;
mod disk_faults;
mod driver;
mod gateway;
mod history;
mod kills;
mod outgoing;
mod planted;
mod reaching;
mod scenario;
mod secrecy;
mod shim;
mod tap;

fn is_full() -> bool {
    std::env::var_os("ONLOOKER_TEST_FULL").is_some()
}

/// The one that was asked for; else those that once found something, and new ones.
fn random_seeds(kept: &[u64], new: usize) -> Vec<u64> {
    if let Some(seed) = std::env::var("ONLOOKER_TEST_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return vec![seed];
    }
    let new = (0..new).map(|_| rand::random_range(0..1_000_000));
    kept.iter().copied().chain(new).collect()
}
