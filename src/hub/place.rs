//! Where a subscription stands in its log, and who moves it on: its own task, or the fan-out of its session.
//!
//! Whoever moves it holds it; the other one leaves it alone. The own task hands the place over when it has handed out
//! everything that it found, and takes it back with its next step. The fan-out gives it back when the outlet takes
//! nothing, and calls the own task.
//!
//! No event is handed out twice, because only the holder moves the place, under its lock, from where it stands. None is
//! missed: after each commit the fan-out comes by. It finds the place handed over and moves it, or it calls the own task,
//! which then takes another step, however far it was in the one before.
//!
//! The file is also compiled by a test that runs it under every order of its threads: it knows nothing of the rest.

use onlooker_protocol::event::Epoch;

use super::sync::{AtomicBool, Mutex, MutexGuard, Ordering};

/// A place in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub epoch: Epoch,
    /// The offset that comes next.
    pub next: u64,
}

/// A subscription's place. `O` is what the fan-out hands events to.
pub(super) struct Place<O> {
    held: Mutex<Held<O>>,
    /// The own task has been called and has not begun its step yet.
    called: AtomicBool,
}

struct Held<O> {
    /// Where the fan-out found it or left it; `None`: the own task knows.
    at: Option<At>,
    /// `Some`: the fan-out holds the place.
    outlet: Option<O>,
}

/// What the fan-out's offer came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offered<O> {
    Taken,
    /// It is for another place: this is where the subscription stands.
    Elsewhere(At, O),
    /// The own task holds the place; it is to be called.
    NotHeld,
}

impl<O: Clone> Place<O> {
    pub(super) fn new() -> Self {
        Self { held: Mutex::new(Held { at: None, outlet: None }), called: AtomicBool::new(false) }
    }

    /// For the own task, which is about to read: takes the place back. What is committed from now on calls it again.
    /// `Some` is where the fan-out left it.
    pub(super) fn take_back(&self) -> Option<At> {
        self.called.store(false, Ordering::Release);
        let mut held = self.lock();
        held.outlet = None;
        held.at.take()
    }

    /// Where the fan-out has it; `None` while the own task knows.
    pub(super) fn at(&self) -> Option<At> {
        self.lock().at
    }

    /// Hands the place over, behind everything that was handed out.
    pub(super) fn hand_over(&self, at: At, outlet: O) {
        *self.lock() = Held { at: Some(at), outlet: Some(outlet) };
    }

    /// For the fan-out: hands out what lies between `from` and `to`, if the subscription stands there. `fits` says
    /// whether it is in the form that the outlet wants, `take` whether the outlet took it.
    pub(super) fn offer(
        &self,
        from: At,
        to: u64,
        fits: impl FnOnce(&O) -> bool,
        take: impl FnOnce(&O) -> bool,
    ) -> Offered<O> {
        let mut held = self.lock();
        let (Some(at), Some(outlet)) = (held.at, &held.outlet) else { return Offered::NotHeld };
        if at != from || !fits(outlet) {
            return Offered::Elsewhere(at, outlet.clone());
        }
        if !take(outlet) {
            held.outlet = None;
            return Offered::NotHeld;
        }
        held.at = Some(At { epoch: at.epoch, next: to });
        Offered::Taken
    }

    /// For the fan-out, which gives the place back: the own task is to go on.
    pub(super) fn give_back(&self) {
        self.lock().outlet = None;
    }

    /// Whether the own task is to be woken: not if it was called since its last step began.
    pub(super) fn call(&self) -> bool {
        !self.called.swap(true, Ordering::AcqRel)
    }

    fn lock(&self) -> MutexGuard<'_, Held<O>> {
        self.held.lock().expect("no holder panics")
    }
}
