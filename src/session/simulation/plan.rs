//! What one seed stands for. Each seed has some of all that can go wrong and not the rest, so that faults also meet
//! without others around that would hide what they do.

use onlooker_protocol::view::ReachOutMode;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::reach_out::ladder::Step;

/// How a process ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Killed,
    /// At so many writes to the engine after its start: before or after the write has happened.
    KilledAtWrite {
        nth: u32,
        after: bool,
    },
    Stopped,
    /// While so many writes have begun since its start.
    StoppedAtWrite {
        nth: u32,
    },
    /// The last one: everything that can heal heals, and the run ends when all is settled.
    Quiet,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    /// Since the last one ended.
    pub(super) after_ms: u64,
    pub(super) lasts_ms: u64,
    pub(super) end: End,
}

/// How a target behaves until the run becomes quiet, in per mille of what it is sent; the rest is confirmed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Manners {
    pub(super) refuses: u32,
    pub(super) rejects: u32,
    pub(super) loses: u32,
    pub(super) hangs: u32,
    pub(super) panics: u32,
    pub(super) dies: u32,
    /// The longest that it takes to answer.
    pub(super) slow_ms: u64,
}

#[derive(Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) lives: Vec<Life>,
    pub(super) modes: Vec<ReachOutMode>,
    /// Targets by tier, and how each behaves.
    pub(super) tiers: Vec<Vec<(&'static str, Manners)>>,
    pub(super) ladder: Vec<Step>,
    /// The longest that the engine takes for a write, all the time.
    pub(super) lag_ms: u64,
    pub(super) engine_fails: bool,
    pub(super) jumps: bool,
    pub(super) runtime_crashes: bool,
    pub(super) questions_every_ms: u64,
    pub(super) subscribers: usize,
    pub(super) frozen: bool,
    pub(super) liars: bool,
    pub(super) flappers: usize,
    pub(super) pollers: usize,
    pub(super) answers: bool,
    pub(super) claims: bool,
    pub(super) control: bool,
}

impl Plan {
    pub(super) fn of(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let random = &mut random;
        let restarts = if random.random_bool(0.5) { random.random_range(1..=3) } else { 0 };
        let mut lives: Vec<Life> = (0..restarts).map(|_| life(random)).collect();
        lives.push(Life {
            after_ms: random.random_range(0..20_000),
            lasts_ms: random.random_range(40_000..150_000),
            end: End::Quiet,
        });
        let sessions = random.random_range(1..=2);
        let badly = random.random_bool(0.6);
        Self {
            seed,
            lives,
            modes: (0..sessions).map(|_| mode(random)).collect(),
            tiers: tiers(random, badly, restarts > 0),
            ladder: ladder(random),
            lag_ms: [0, 0, 0, 5, 40][random.random_range(0..5)],
            engine_fails: random.random_bool(0.25),
            jumps: random.random_bool(0.2),
            runtime_crashes: random.random_bool(0.3),
            questions_every_ms: random.random_range(4_000..40_000),
            subscribers: random.random_range(0..=4),
            frozen: random.random_bool(0.5),
            liars: random.random_bool(0.4),
            flappers: usize::from(random.random_bool(0.25)),
            pollers: usize::from(random.random_bool(0.25)),
            answers: random.random_bool(0.6),
            claims: random.random_bool(0.3),
            control: random.random_bool(0.15),
        }
    }

    /// Nothing goes wrong, and nobody looks.
    pub(super) fn calm(seed: u64) -> Self {
        let life = Life { after_ms: 0, lasts_ms: 150_000, end: End::Quiet };
        Self {
            seed,
            lives: vec![life],
            modes: vec![ReachOutMode::Full],
            tiers: vec![vec![("telegram:1", Manners::default())]],
            ladder: Vec::new(),
            lag_ms: 0,
            engine_fails: false,
            jumps: false,
            runtime_crashes: false,
            questions_every_ms: 6_000,
            subscribers: 0,
            frozen: false,
            liars: false,
            flappers: 0,
            pollers: 0,
            answers: false,
            claims: false,
            control: false,
        }
    }

    pub(super) fn random(&self, salt: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(salt))
    }

    pub(super) fn targets(&self, tier: usize) -> impl Iterator<Item = &'static str> + '_ {
        self.tiers.get(tier).into_iter().flatten().map(|(target, _)| *target)
    }
}

fn life(random: &mut StdRng) -> Life {
    let end = match random.random_range(0..10) {
        0..=2 => End::Killed,
        3..=6 => End::KilledAtWrite { nth: random.random_range(1..120), after: random.random_bool(0.5) },
        7 | 8 => End::StoppedAtWrite { nth: random.random_range(1..120) },
        _ => End::Stopped,
    };
    Life { after_ms: random.random_range(0..20_000), lasts_ms: random.random_range(500..90_000), end }
}

fn mode(random: &mut StdRng) -> ReachOutMode {
    match random.random_range(0..10) {
        0 => ReachOutMode::Off,
        1..=4 => ReachOutMode::GuardrailOnly,
        _ => ReachOutMode::Full,
    }
}

fn tiers(random: &mut StdRng, badly: bool, dies: bool) -> Vec<Vec<(&'static str, Manners)>> {
    let linked = random.random_range(0..=2);
    let linked: Vec<_> = ["telegram:1", "telegram:2"].into_iter().take(linked).collect();
    let default = random.random_bool(0.4).then_some("slack:1");
    let webhook = random.random_bool(0.6).then_some("webhook");
    let tiers = [linked, default.into_iter().collect(), webhook.into_iter().collect()];
    let mut with_manners = |target| (target, if badly { manners(random, dies) } else { Manners::default() });
    let tiers = tiers.map(|tier: Vec<_>| tier.into_iter().map(&mut with_manners).collect::<Vec<_>>());
    tiers.into_iter().filter(|tier| !tier.is_empty()).collect()
}

fn manners(random: &mut StdRng, dies: bool) -> Manners {
    let mut sometimes = |often: f64, most: u32| match random.random_bool(often) {
        true => random.random_range(1..=most),
        false => 0,
    };
    Manners {
        refuses: sometimes(0.4, 500),
        rejects: sometimes(0.2, 400),
        loses: sometimes(0.4, 400),
        hangs: sometimes(0.3, 200),
        panics: sometimes(0.2, 200),
        dies: if dies { sometimes(0.3, 150) } else { 0 },
        slow_ms: u64::from(sometimes(0.5, 8_000)),
    }
}

fn ladder(random: &mut StdRng) -> Vec<Step> {
    if random.random_bool(0.75) {
        return Vec::new();
    }
    let step = |random: &mut StdRng| Step {
        after: std::time::Duration::from_secs(random.random_range(10..50)),
        targets: vec!["webhook".to_owned()],
        repeat: random.random_range(0..=1),
        project: None,
    };
    let steps = random.random_range(1..=2);
    (0..steps).map(|_| step(random)).collect()
}
