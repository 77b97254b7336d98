//! What is true of a state, said without the code that brought it about.

use std::sync::Arc;

use super::{
    ReachOut,
    dispatch::Attempt,
    time::{LONGEST_WINDOW, TICK, at},
    world::{Name, World, is_alive},
};
use crate::{
    outbox::{
        NoticeKey, NoticeState,
        modelled::{self, Record},
    },
    reach_out::{Action, Why, ladder::Rung},
};

/// The open revision, if a process that runs owns the session, and nobody covers or claims the question.
pub(super) fn nobody_has_it(world: &World) -> Option<u32> {
    let node = world.owning()?;
    let process = world.nodes[node].as_ref().filter(|process| !process.frozen)?;
    let owner = process.owner.as_ref()?;
    let revision = owner.open_revision()?;
    let guardrail = owner.guardrail()?;
    let covered = owner.presence(world.now).covers(guardrail.view.position.offset);
    let claimed = guardrail.claimed_until().is_some_and(|until| at(world.now) < until);
    (!covered && !claimed).then_some(revision)
}

/// Somebody has a notice that may reach them, or has, or there is nobody whom to give one.
pub(super) fn is_served(world: &World, revision: u32) -> bool {
    let mut notices = world.engine.notices_of(revision).peekable();
    notices.peek().is_some() && notices.any(|(_, _, record)| is_alive(record.state())) || is_counted_as_unreached(world)
}

fn is_counted_as_unreached(world: &World) -> bool {
    let owner = world.owning().and_then(|node| world.nodes[node].as_ref()?.owner.as_ref());
    owner.is_some_and(|owner| {
        owner.unreached && world.engine.notices.values().any(|(_, record)| !is_alive(record.state()))
    })
}

pub(super) fn was_tried(world: &World, revision: u32) -> bool {
    world.engine.notices_of(revision).any(|(_, _, record)| record.attempts() > 0 || record.repetition() > 0)
}

/// The open question has none of what every open question has. Asked where the owner has done what follows from all
/// that it heard, and nothing is on its way to it.
pub(super) fn is_missed(model: &ReachOut, world: &World) -> bool {
    let Some(node) = world.owning() else { return false };
    let process = world.nodes[node].as_ref().expect("it owns");
    let owner = process.owner.as_ref().expect("it owns");
    let on_its_way = world.nodes.iter().flatten().any(|process| process.attempts.values().any(Attempt::is_telling));
    let tries_again = owner.again_at.is_some_and(|again| world.now < again);
    if process.frozen || !owner.work.is_empty() || on_its_way || tries_again {
        return false;
    }
    let Some(revision) = nobody_has_it(world) else { return false };
    let (decision, ..) = owner.decide(model, world.now);
    let window =
        matches!(decision.why, Why::GraceAfterProof | Why::GraceBeforeRaising | Why::GraceAfterStart | Why::FirstLook);
    if let Action::LookAgain(Some(until)) = decision.action
        && window
    {
        let now = at(world.now);
        return until <= now || until > now + TICK * u32::from(LONGEST_WINDOW);
    }
    // Somebody has it, or works on it, or will; where it is over, its owner is about to hear so.
    let is_under_way = |(name, _, record): (&Name, NoticeKey, &Arc<Record>)| {
        let goes_on = process.schedule.contains_key(name) || process.attempts.contains_key(name);
        record.state() == NoticeState::Confirmed || goes_on
    };
    if world.engine.notices_of(revision).any(is_under_way) {
        return false;
    }
    let someone_is_left = model.tiers().iter().flatten().any(|target| {
        let key = super::owner::key(revision, target, Rung::default());
        let state = world.engine.state_of(&modelled::name(&key).into());
        state.is_none_or(|state| state == NoticeState::Dropped)
    });
    someone_is_left || !owner.unreached
}
