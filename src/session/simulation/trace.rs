//! What happened in a run, in order, each with the milliseconds since its beginning. Time goes on over restarts.

use std::sync::{Mutex, MutexGuard};

use onlooker_protocol::view::ReachOutMode;
use tokio::time::Instant;

use crate::ids::SessionId;

/// A session, by its place in the order of their beginnings.
pub(super) type Nth = usize;

/// A question under one revision, or a result.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Subject {
    Question { session: Nth, id: String, revision: u32 },
    Result { session: Nth, task: String },
}

impl Subject {
    pub(super) fn session(&self) -> Nth {
        match self {
            Self::Question { session, .. } | Self::Result { session, .. } => *session,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attention {
    CannotSay,
    Active,
    Idle,
}

/// What the other end did with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Confirmed,
    Refused,
    Rejected,
    Unknown,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    // --- the gateway and what it stands on
    Started,
    Killed,
    Stopped,
    Jumped {
        by_ms: i64,
    },
    Trouble {
        begins: bool,
    },
    Quiet,
    Opened {
        session: Nth,
        mode: ReachOutMode,
    },
    // --- committed
    Raised {
        subject: Subject,
        offset: u64,
    },
    /// The record says that nothing can answer it any more.
    Closed {
        subject: Subject,
    },
    ResultDue {
        subject: Subject,
        offset: u64,
    },
    Control {
        session: Nth,
        taken: bool,
    },
    Ended {
        session: Nth,
    },
    Forgotten {
        session: Nth,
    },
    /// A notice's record was written.
    Kept {
        subject: Subject,
        target: String,
        rung: (u32, u32),
        id: String,
        opened: String,
        update: Option<String>,
    },
    // --- people
    Enters {
        who: u64,
        session: Nth,
        able: bool,
        sees_results: bool,
        observer: bool,
        attention: Attention,
    },
    Alive {
        who: u64,
    },
    Proves {
        who: u64,
        offset: u64,
    },
    Says {
        who: u64,
        active: bool,
    },
    Leaves {
        who: u64,
        clean: bool,
    },
    PollBegins {
        who: u64,
        session: Nth,
        able: bool,
    },
    PollRead {
        who: u64,
        questions: u64,
        result: Option<u64>,
    },
    PollEnds {
        who: u64,
    },
    ClaimAsked {
        subject: Subject,
        length_ms: u64,
        by: u64,
        connection: bool,
    },
    Claimed {
        subject: Subject,
        by: u64,
        granted: bool,
    },
    ReleaseAsked {
        subject: Subject,
        by: u64,
    },
    Released {
        subject: Subject,
        by: u64,
    },
    ConnectionLost {
        by: u64,
    },
    /// An answer under this key was told that it won.
    Answered {
        subject: Subject,
        key: String,
    },
    // --- messages
    Sends {
        nth: u64,
        target: String,
        id: String,
        kind: String,
        repeat: bool,
        step: u32,
        subject: Subject,
        card: bool,
    },
    Arrives {
        nth: u64,
    },
    /// With for how long the other end wants to hear nothing, and whether at any address.
    Sent {
        nth: u64,
        outcome: Outcome,
        wish_ms: u64,
        all: bool,
    },
    // --- at the end
    Unreached {
        count: usize,
    },
    Final {
        subject: Subject,
        target: String,
        rung: (u32, u32),
        state: &'static str,
    },
    Gone {
        session: Nth,
    },
}

#[derive(Default)]
pub(super) struct Trace {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    events: Vec<(u64, Event)>,
    sessions: Vec<SessionId>,
    /// The present life's beginning, as instant and in the run's time; none between lives.
    life: Option<(Instant, u64)>,
    now: u64,
    serial: u64,
}

impl Inner {
    fn tick(&mut self) -> u64 {
        if let Some((began, at)) = self.life {
            self.now = at + u64::try_from(began.elapsed().as_millis()).unwrap();
        }
        self.now
    }
}

impl Trace {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Nothing happens for a while, and then a runtime begins whose clock the run's goes with.
    pub(super) fn begin_life(&self, after_ms: u64) -> u64 {
        let mut inner = self.lock();
        inner.now += after_ms;
        inner.life = Some((Instant::now(), inner.now));
        inner.now
    }

    /// What is dropped from here on is dropped with its process, and did nothing.
    pub(super) fn end_life(&self) {
        let mut inner = self.lock();
        inner.tick();
        inner.life = None;
    }

    pub(super) fn now(&self) -> u64 {
        self.lock().tick()
    }

    pub(super) fn push(&self, event: Event) {
        let mut inner = self.lock();
        if inner.life.is_some() {
            let now = inner.tick();
            inner.events.push((now, event));
        }
    }

    pub(super) fn serial(&self) -> u64 {
        let mut inner = self.lock();
        inner.serial += 1;
        inner.serial
    }

    pub(super) fn nth(&self, session: SessionId) -> Nth {
        let mut inner = self.lock();
        inner.sessions.iter().position(|known| *known == session).unwrap_or_else(|| {
            inner.sessions.push(session);
            inner.sessions.len() - 1
        })
    }

    pub(super) fn events(&self) -> Vec<(u64, Event)> {
        std::mem::take(&mut self.lock().events)
    }
}
