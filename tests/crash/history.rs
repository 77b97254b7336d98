//! What happened in one run, as everybody outside of the gateway saw it, in the order of time.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use onlooker_protocol::{
    Position,
    code::Code,
    event::EventFrame,
    subscriber::GapReason,
    view::{GuardrailView, Outcome, SessionStatus},
};

/// One revision of one guardrail.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Question {
    pub session: String,
    pub guardrail: String,
    pub revision: u32,
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} revision {}", self.session, self.guardrail, self.revision)
    }
}

/// By what an event that a runtime published is recognised in the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Trace {
    /// It leaves none, as a repeated question does.
    Nothing,
    /// Its data has the number.
    Numbered(u64),
    Sensitive(bool),
    Trigger {
        guardrail: String,
        asked: u32,
    },
    Taken {
        guardrail: String,
        revision: u32,
    },
}

/// What an answer says, without its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub outcome: Outcome,
    pub choice: Option<String>,
    /// Whether it holds anything that dies with the gateway's process.
    pub secret: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Accepted,
    Refused(Code),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// 204: the receiver has it.
    Confirmed,
    /// 500: it did not take it.
    Refused,
    /// The connection ended, or hung, without an answer.
    Silent,
}

/// One request that reached the webhook's receiver.
#[derive(Clone, Debug)]
pub struct Delivered {
    pub id: String,
    pub repeat: bool,
    pub kind: String,
    pub session: String,
    /// The guardrail and its revision, or the task and 0.
    pub about: (String, u32),
    pub reaction: Reaction,
}

#[derive(Clone, Debug)]
pub enum What {
    GatewayUp,
    GatewayKilled,
    /// The gateway's word that a session exists.
    Opened {
        session: String,
    },
    /// A runtime sends an event under a number for the first time, or another one in the place of a refused one.
    Sent {
        session: String,
        n: u64,
        trace: Trace,
    },
    /// The gateway's word that everything up to `n` is in the log, and up to where.
    Acknowledged {
        session: String,
        n: u64,
        position: Position,
    },
    /// At a claim: the number that the gateway expects.
    Expected {
        session: String,
        n: u64,
    },
    /// A runtime's claim of its own session was refused.
    ClaimRefused {
        session: String,
        code: Code,
    },
    /// A runtime was given the outcome of a question. The first one of a question is applied, others are not.
    Outcome {
        question: Question,
        outcome: Outcome,
        choice: Option<String>,
    },
    TaskReceived {
        session: String,
        task: String,
    },
    Saw {
        subscriber: String,
        frame: Arc<EventFrame>,
    },
    Gap {
        subscriber: String,
        session: String,
        reason: GapReason,
    },
    /// The guardrails that a snapshot shows as open.
    Snapshot {
        session: String,
        position: Position,
        open: Vec<(String, u32)>,
    },
    Answered {
        key: String,
        question: Question,
        said: Said,
    },
    Replied {
        key: String,
        reply: Reply,
    },
    /// The gateway's word that a task is queued.
    TaskQueued {
        session: String,
        task: String,
    },
    Delivered(Delivered),
}

#[derive(Clone, Debug)]
pub struct Entry {
    /// Since the run began.
    pub at: Duration,
    pub what: What,
}

/// Where everybody writes what they saw, before they act on it.
#[derive(Clone)]
pub struct History {
    began: Instant,
    entries: Arc<Mutex<Vec<Entry>>>,
}

impl History {
    pub fn begin() -> Self {
        Self { began: Instant::now(), entries: Arc::default() }
    }

    pub fn record(&self, what: What) {
        let mut entries = self.entries.lock().unwrap();
        entries.push(Entry { at: self.began.elapsed(), what });
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap().clone()
    }

    /// How many entries fit.
    pub fn count(&self, fits: impl Fn(&What) -> bool) -> usize {
        self.entries.lock().unwrap().iter().filter(|entry| fits(&entry.what)).count()
    }

    /// Every session that the gateway said exists.
    pub fn sessions(&self) -> Vec<String> {
        let entries = self.entries.lock().unwrap();
        let opened = |entry: &Entry| match &entry.what {
            What::Opened { session } => Some(session.clone()),
            _ => None,
        };
        entries.iter().filter_map(opened).collect()
    }
}

/// What the gateway says at the end, read in full through its public API.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// RFC 3339 with milliseconds, as in events: a deadline before this must have been applied.
    pub settled_at: String,
    pub sessions: std::collections::BTreeMap<String, SessionRead>,
}

#[derive(Clone, Debug)]
pub struct SessionRead {
    pub status: SessionStatus,
    pub events: Vec<EventFrame>,
    /// Every guardrail that the log names, as REST shows it.
    pub guardrails: Vec<GuardrailView>,
}
