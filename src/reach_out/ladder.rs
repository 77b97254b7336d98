//! The ladder: who is told next when nobody answers. Pure; off unless the operator configures steps.
//!
//! A place on the ladder is a [`Rung`]. Rung 0 is the first notice; each step of the configuration follows `after` the
//! rung below it and is repeated as often as it says, `after` apart. The climb never skips a rung, so that a claim that
//! has run out is followed by one message and not by all that would have been due meanwhile.

use std::time::Duration;

use tokio::time::Instant;

/// One step above the first notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// How long after the rung below.
    pub after: Duration,
    /// Targets, or the words that stand for some; see [`crate::session::Targets::expand`].
    pub targets: Vec<String>,
    /// How often it is sent again.
    pub repeat: u32,
    /// Only for this project; `None`: for all.
    pub project: Option<String>,
}

/// A place on the ladder. Ordered from the ground up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rung {
    /// 0: the first notice.
    pub step: u32,
    /// How often this step was sent before.
    pub round: u32,
}

/// The steps of one project.
#[derive(Clone, Debug, Default)]
pub struct Ladder {
    steps: Vec<Step>,
}

impl Ladder {
    /// Those of all steps that are for this project, in their order.
    pub fn of(steps: &[Step], project: &str) -> Self {
        let ours = |step: &&Step| step.project.as_deref().is_none_or(|only| only == project);
        Self { steps: steps.iter().filter(ours).cloned().collect() }
    }

    /// Whether a step names this target itself.
    pub fn names(&self, target: &str) -> bool {
        self.steps.iter().any(|step| step.targets.iter().any(|named| named == target))
    }

    pub fn step(&self, rung: Rung) -> Option<&Step> {
        self.steps.get(usize::try_from(rung.step.checked_sub(1)?).ok()?)
    }

    /// The rung above, and when it is due. `reached_at`: when `rung` was; on the ground, when the first notice was
    /// written, or the question raised if there is none.
    pub fn above(&self, rung: Rung, reached_at: Instant) -> Option<(Rung, Instant)> {
        let again = self.step(rung).filter(|step| rung.round < step.repeat);
        let next = match again {
            Some(_) => Rung { round: rung.round + 1, ..rung },
            None => Rung { step: rung.step + 1, round: 0 },
        };
        self.step(next).map(|step| (next, reached_at + step.after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(after: u64, repeat: u32) -> Step {
        Step { after: Duration::from_secs(after), targets: vec!["webhook".to_owned()], repeat, project: None }
    }

    #[test]
    fn the_climb_repeats_each_step_and_ends() {
        let ladder = Ladder::of(&[step(10, 2), step(60, 0)], "shop");
        let now = Instant::now();
        let mut climbed = Vec::new();
        let mut rung = Rung::default();
        let mut at = now;
        while let Some((next, due)) = ladder.above(rung, at) {
            climbed.push((next.step, next.round, (due - now).as_secs()));
            (rung, at) = (next, due);
        }
        assert_eq!(climbed, [(1, 0, 10), (1, 1, 20), (1, 2, 30), (2, 0, 90)]);
    }

    #[test]
    fn without_steps_nobody_climbs_and_a_projects_steps_are_its_own() {
        let now = Instant::now();
        assert_eq!(Ladder::default().above(Rung::default(), now), None);
        let theirs = Step { project: Some("other".to_owned()), ..step(1, 0) };
        assert_eq!(Ladder::of(std::slice::from_ref(&theirs), "shop").above(Rung::default(), now), None);
        assert!(Ladder::of(&[theirs], "other").above(Rung::default(), now).is_some());
    }
}
