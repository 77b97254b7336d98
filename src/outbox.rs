//! Notices to people: each under its key, written before it is sent, and sent until it has arrived.
//!
//! * A key is created once, by compare-and-set, and every step of it is one. Of two that race, one sends.
//! * At most one *confirmed* notice a key, and at most one repeat after an unknown outcome; `record` has the states
//!   and the reasons.
//! * Nothing is silent: a key is confirmed, given up, dropped because nobody needs it any more, or has a next try.
//!   Notices outlive the process; the [`Dispatcher`] finds them again when it starts.
//! * When the engine does not answer, a notice waits; it is neither lost nor sent twice for that.
//!
//! Whether a notice is still wanted is asked of its [`Owners`] at the moment of sending. The outbox knows no session,
//! no watcher and no guardrail beyond their names.

mod attempt;
mod dispatcher;
#[cfg(test)]
pub(crate) mod modelled;
mod record;
mod schedule;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use onlooker_protocol::view::NoticeView;
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};
use tokio::time::Instant;

pub use self::{dispatcher::Dispatcher, record::Thread};
use self::{
    record::Notice,
    schedule::{Due, Schedule},
};
use crate::{
    engine::{Engine, EngineError, RecordKey, RecordKind, Version},
    ids::{Project, SessionId},
    notifier::{Extras, Notifiers, Receipt},
    reach_out::ladder::Rung,
};

/// Names a notice. Whether it is the repeat after an unknown outcome is kept in the record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NoticeKey {
    pub session: SessionId,
    pub subject: NoticeSubject,
    pub target: String,
    pub rung: Rung,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NoticeSubject {
    Guardrail { id: String, revision: u32 },
    Result { task: String },
}

impl NoticeSubject {
    fn id(&self) -> &str {
        match self {
            Self::Guardrail { id, .. } => id,
            Self::Result { task } => task,
        }
    }
}

/// A notice to be written.
pub struct Draft {
    pub key: NoticeKey,
    pub project: Project,
    /// The redacted message without its `id`. Null members are left out.
    pub body: Map<String, Value>,
    /// The question under whose message this one belongs, where the target has one.
    pub thread: Option<Thread>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoticeState {
    Queued,
    Leased,
    Confirmed,
    /// Refused so far; it has a next try.
    Failed,
    /// Refused, and refused until somebody changes something at the other end. It has a next try, but nobody should wait
    /// for it.
    Rejected,
    /// The outcome of sending is unknown. Told once through [`Owners::settled`]; the record then is queued as a repeat.
    Unknown,
    /// The repeat is unknown too. Counts as not notified.
    GivenUp,
    /// No longer wanted before anybody took it.
    Dropped,
}

impl NoticeState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Leased => "leased",
            Self::Confirmed => "confirmed",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Unknown => "unknown",
            Self::GivenUp => "given_up",
            Self::Dropped => "dropped",
        }
    }
}

/// What came of [`Outbox::queue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued {
    New,
    AlreadyThere(NoticeState),
}

/// Whether a notice is still to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Send,
    /// Not now: covered, claimed, in grace. [`Outbox::queue`] under the same key asks again at once.
    LookAgain(Duration),
    /// Never: closed or proved meanwhile.
    Drop,
}

/// Asked and told by the outbox; implemented by the directory of sessions.
///
/// Both may be asked of the task that is waiting in [`Outbox::queue`] or [`Outbox::close`]: those never wait for the
/// dispatcher.
pub trait Owners: Send + Sync + 'static {
    /// Decides again, with fresh inputs, at the moment of sending. Not asked for updates of closed guardrails.
    fn recheck<'a>(&'a self, key: &'a NoticeKey) -> BoxFuture<'a, Verdict>;

    /// What a message gets at the moment of sending; `id` is the notice's.
    fn dress<'a>(&'a self, _key: &'a NoticeKey, _id: &'a str) -> BoxFuture<'a, Extras> {
        Box::pin(async { Extras::default() })
    }

    /// A notice that asks changed its state, after that was written. Not told again after a crash: whoever starts
    /// anew reads [`Outbox::state`].
    fn settled<'a>(&'a self, key: &'a NoticeKey, state: NoticeState) -> BoxFuture<'a, ()>;
}

#[derive(Clone, Copy, Debug)]
pub struct OutboxTimes {
    /// Waits between tries: up to this long after the first refusal, doubling …
    pub retry_first: Duration,
    /// … up to this. The wait is drawn between zero and the bound.
    pub retry_longest: Duration,
    /// How long a lease counts after it was last seen changed. A notifier is cut off after half of it.
    pub lease: Duration,
    /// For one attempt of a webhook.
    pub webhook_timeout: Duration,
    /// How long after its guardrail's closing an update is tried.
    pub retention: Duration,
}

impl Default for OutboxTimes {
    fn default() -> Self {
        Self {
            retry_first: Duration::from_secs(1),
            retry_longest: Duration::from_secs(60),
            lease: Duration::from_secs(30),
            webhook_timeout: Duration::from_secs(10),
            retention: Duration::from_secs(3600),
        }
    }
}

/// Counted since the process began.
#[derive(Debug, Default)]
pub struct OutboxStats {
    /// Keys written.
    pub queued: AtomicU64,
    /// Notices that ask and were taken.
    pub confirmed: AtomicU64,
    /// Attempts that were refused, of updates too.
    pub refused: AtomicU64,
    /// Attempts whose outcome is unknown, of updates too.
    pub unknown: AtomicU64,
    /// Repeats after an unknown outcome, of updates too.
    pub repeated: AtomicU64,
    /// Keys that were given up: nobody may have been told.
    pub given_up: AtomicU64,
    /// Updates that were taken.
    pub updates: AtomicU64,
}

impl OutboxStats {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// How many notices wait in memory. About 300 bytes each; the rest waits in the engine.
const SCHEDULE_LIMIT: usize = 65_536;
/// How many one target is sent at once: a slow target leaves room for others.
const PER_TARGET: usize = 4;

/// The handle. Cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Arc<dyn Engine>,
    notifiers: Notifiers,
    times: OutboxTimes,
    schedule: Schedule,
    stats: OutboxStats,
}

impl Outbox {
    /// The outbox over an engine, and the task that sends. Nothing is sent until that runs.
    pub fn new(engine: Arc<dyn Engine>, notifiers: Notifiers, times: OutboxTimes) -> (Self, Dispatcher) {
        let schedule = Schedule::new(SCHEDULE_LIMIT, PER_TARGET);
        let shared = Arc::new(Shared { engine, notifiers, times, schedule, stats: OutboxStats::default() });
        (Self { shared: Arc::clone(&shared) }, Dispatcher::new(shared))
    }

    pub fn stats(&self) -> &OutboxStats {
        &self.shared.stats
    }

    /// Writes a notice unless its key is there, and has it looked at now unless it waits after a refusal. A question's
    /// notice that was dropped is queued again.
    ///
    /// After an error it may or may not be written: ask again with the same key.
    pub async fn queue(&self, draft: Draft) -> Result<Queued, EngineError> {
        let name = record_key(&draft.key);
        let mut notice = Notice::new(&draft.key, &draft.project, draft.body, wall_ms());
        notice.thread = draft.thread;
        match self.shared.engine.put(name.clone(), None, notice.encode()).await {
            Ok(version) => {
                OutboxStats::add(&self.shared.stats.queued);
                let id = notice.opened.id.as_str();
                tracing::info!(notice.id = id, session.id = ?draft.key.session, notice.target = draft.key.target, "notice queued");
                self.shared.schedule(name, &notice, version);
                Ok(Queued::New)
            }
            Err(conflict @ EngineError::Conflict { .. }) => {
                let (mut version, mut notice) = self.shared.read(&name).await?.ok_or(conflict)?;
                if notice.revive() {
                    version = self.shared.engine.put(name.clone(), Some(version), notice.encode()).await?;
                }
                self.shared.schedule(name, &notice, version);
                Ok(Queued::AlreadyThere(notice.opened.state()))
            }
            Err(error) => Err(error),
        }
    }

    /// The notices of a guardrail, of all its revisions, or of a task's result, oldest first.
    pub async fn notices(&self, session: SessionId, subject_id: &str) -> Result<Vec<NoticeView>, EngineError> {
        let mut found = self.shared.read_all(session).await?;
        found.retain(|(_, _, notice)| notice.key(session).subject.id() == subject_id);
        // Ids are ordered by time.
        found.sort_by(|a, b| a.2.opened.id.cmp(&b.2.opened.id));
        Ok(found.iter().map(|(_, _, notice)| view(notice)).collect())
    }

    /// The state of one key; `None` where there is no notice.
    pub async fn state(&self, key: &NoticeKey) -> Result<Option<NoticeState>, EngineError> {
        Ok(self.shared.read(&record_key(key)).await?.map(|(_, notice)| notice.opened.state()))
    }

    /// Each of a session's keys, how it stands, and when it was written, in milliseconds of wall time.
    pub async fn states(&self, session: SessionId) -> Result<Vec<(NoticeKey, NoticeState, u64)>, EngineError> {
        let found = self.shared.read_all(session).await?;
        let state = |(_, _, notice): &Stored| (notice.key(session), notice.opened.state(), notice.opened.at_ms);
        Ok(found.iter().map(state).collect())
    }

    /// The notice with this id, of the message that asks.
    pub async fn find(&self, id: &str) -> Result<Option<Found>, EngineError> {
        let found = self.shared.list(None).await?;
        Ok(found.into_iter().find(|(_, _, notice)| notice.opened.id == id).map(Found::of))
    }

    /// The notice whose message lies there.
    pub async fn find_message(&self, target: &str, at: &Receipt) -> Result<Option<Found>, EngineError> {
        let found = self.shared.list(None).await?;
        let here = |notice: &Notice| notice.target == target && notice.opened.receipt.as_ref() == Some(at);
        Ok(found.into_iter().find(|(_, _, notice)| here(notice)).map(Found::of))
    }

    /// A guardrail's revision closed, or a higher one took its place: whoever may have its card is told `body` once,
    /// and notices that nobody has yet are dropped.
    ///
    /// After an error some targets may have been done: ask again, the rest follows.
    pub async fn close(
        &self,
        session: SessionId,
        guardrail: &str,
        revision: u32,
        body: Map<String, Value>,
    ) -> Result<(), EngineError> {
        for (name, version, notice) in self.shared.read_all(session).await? {
            let subject = notice.key(session).subject;
            if matches!(subject, NoticeSubject::Guardrail { id, revision: of } if id == guardrail && of == revision) {
                self.close_one(name, version, notice, &body).await?;
            }
        }
        Ok(())
    }

    async fn close_one(
        &self,
        name: RecordKey,
        mut version: Version,
        mut notice: Notice,
        body: &Map<String, Value>,
    ) -> Result<(), EngineError> {
        while notice.close(body, wall_ms()) {
            match self.shared.engine.put(name.clone(), Some(version), notice.encode()).await {
                Ok(version) => {
                    self.shared.schedule(name, &notice, version);
                    return Ok(());
                }
                Err(EngineError::Conflict { .. }) => match self.shared.read(&name).await? {
                    Some(fresh) => (version, notice) = fresh,
                    None => return Ok(()),
                },
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes up a session's notices, after this process became its owner.
    pub async fn resume(&self, session: SessionId) -> Result<(), EngineError> {
        for (name, version, notice) in self.shared.read_all(session).await? {
            self.shared.schedule(name, &notice, version);
        }
        Ok(())
    }

    /// The session's retention ended or another process owns it: its notices are no longer sent from here. Their
    /// records go with the session's.
    pub async fn forget(&self, session: SessionId) {
        self.shared.schedule.forget(session);
    }
}

type Stored = (RecordKey, Version, Notice);

/// A notice as those see it to whom somebody has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub id: String,
    pub key: NoticeKey,
    pub project: String,
    pub state: NoticeState,
    /// Where its message lies.
    pub receipt: Option<Receipt>,
}

impl Found {
    fn of((name, _, notice): Stored) -> Self {
        Self {
            key: notice.key(name.session),
            state: notice.opened.state(),
            id: notice.opened.id,
            project: notice.project,
            receipt: notice.opened.receipt,
        }
    }
}

impl Shared {
    async fn read(&self, name: &RecordKey) -> Result<Option<(Version, Notice)>, EngineError> {
        let found = self.engine.get(name.clone()).await?;
        Ok(found.and_then(|(version, bytes)| Some((version, decoded(name, &bytes)?))))
    }

    async fn read_all(&self, session: SessionId) -> Result<Vec<Stored>, EngineError> {
        self.list(Some(session)).await
    }

    async fn list(&self, session: Option<SessionId>) -> Result<Vec<Stored>, EngineError> {
        let found = self.engine.list(RecordKind::Notice, session).await?;
        Ok(found
            .into_iter()
            .filter_map(|(name, version, bytes)| decoded(&name, &bytes).map(|notice| (name, version, notice)))
            .collect())
    }

    /// Sees to it that the dispatcher looks at a notice when it is due.
    fn schedule(&self, name: RecordKey, notice: &Notice, version: Version) {
        if let Some(due) = due(notice, version) {
            self.schedule.put(name, due);
        }
    }
}

/// A record that cannot be read is left alone: a newer gateway may have written it.
fn decoded(name: &RecordKey, bytes: &[u8]) -> Option<Notice> {
    match Notice::decode(bytes) {
        Ok(notice) => Some(notice),
        Err(error) => {
            tracing::error!(session.id = ?name.session, error = %error, "a stored notice cannot be read and is not sent");
            None
        }
    }
}

fn due(notice: &Notice, version: Version) -> Option<Due> {
    let wait = notice.due_in(wall_ms())?;
    Some(Due { at: Instant::now() + wait, version, target: notice.target.as_str().into() })
}

fn record_key(key: &NoticeKey) -> RecordKey {
    RecordKey { kind: RecordKind::Notice, session: key.session, name: record::name(key) }
}

fn view(notice: &Notice) -> NoticeView {
    let opened = &notice.opened;
    let waits = matches!(opened.state(), NoticeState::Failed | NoticeState::Rejected);
    let next = opened.due_in(wall_ms()).filter(|_| waits);
    NoticeView {
        id: opened.id.clone(),
        target: notice.target.clone(),
        state: opened.state().as_str().to_owned(),
        attempts: opened.attempts,
        repetition: opened.repetition,
        at: time_text(opened.at_ms),
        error: opened.error.clone(),
        next_try_in_ms: next.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// A stored notice, for whoever looks at a stopped gateway's data: what it is about, and how it stands.
///
/// # Errors
/// It is damaged, or of a version that this gateway does not know.
pub fn read_kept(session: SessionId, record: &[u8]) -> Result<(NoticeSubject, NoticeView), String> {
    let notice = Notice::decode(record).map_err(|error| error.to_string())?;
    Ok((notice.key(session).subject, view(&notice)))
}

const MILLISECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

fn time_text(at_ms: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_ms) * 1_000_000);
    at.unwrap_or(OffsetDateTime::UNIX_EPOCH).format(MILLISECONDS).expect("every time has these parts")
}

/// Wall time in milliseconds: for what is stored. Waiting itself is on the monotonic clock.
fn wall_ms() -> u64 {
    crate::clock::milliseconds(OffsetDateTime::now_utc())
}
