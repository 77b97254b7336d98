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
mod index;
#[cfg(test)]
pub(crate) mod modelled;
mod record;
mod schedule;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use onlooker_protocol::view::{ListedNotice, NoticeView};
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};
use tokio::time::Instant;

pub use self::{dispatcher::Dispatcher, index::Listing, record::Thread};
use self::{
    index::Index,
    record::Notice,
    schedule::{Due, Schedule, Shares},
};
use crate::{
    engine::{Engine, EngineError, RecordKey, RecordKind, Version},
    ids::{Project, SessionId},
    notifier::{Extras, Notifiers, Receipt, split_target},
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
    /// Those that a record can be in.
    pub const STORED: [Self; 7] =
        [Self::Queued, Self::Leased, Self::Confirmed, Self::Failed, Self::Rejected, Self::GivenUp, Self::Dropped];

    /// Nobody has it for certain, and nobody should wait for it.
    pub fn is_dead(self) -> bool {
        matches!(self, Self::Rejected | Self::GivenUp)
    }

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
    /// Attempts that were refused until somebody changes something at the other end, of updates too.
    pub rejected: AtomicU64,
    /// Attempts whose outcome is unknown, of updates too.
    pub unknown: AtomicU64,
    /// Repeats after an unknown outcome, of updates too.
    pub repeated: AtomicU64,
    /// Keys that were given up: nobody may have been told.
    pub given_up: AtomicU64,
    /// Updates that were taken.
    pub updates: AtomicU64,
}

/// Over all, and of each notifier.
struct Stats {
    all: OutboxStats,
    of: HashMap<String, OutboxStats>,
    /// Of targets whose notifier is not configured.
    of_none: OutboxStats,
}

impl Stats {
    fn new(notifiers: &Notifiers) -> Self {
        let of = notifiers.names().map(|name| (name.to_owned(), OutboxStats::default())).collect();
        Self { all: OutboxStats::default(), of, of_none: OutboxStats::default() }
    }

    fn add(&self, target: &str, counter: impl Fn(&OutboxStats) -> &AtomicU64) {
        let of = self.of.get(split_target(target).0).unwrap_or(&self.of_none);
        for stats in [&self.all, of] {
            counter(stats).fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Targets whose last notice was rejected.
#[derive(Default)]
struct Rejecting(Mutex<HashSet<String>>);

impl Rejecting {
    /// Whether that is news.
    fn begins(&self, target: &str) -> bool {
        let mut targets = self.0.lock().expect("no holder panics");
        !targets.contains(target) && (targets.len() >= REJECTING || targets.insert(target.to_owned()))
    }

    /// Whether it was among them.
    fn ends(&self, target: &str) -> bool {
        self.0.lock().expect("no holder panics").remove(target)
    }
}

/// How many notices wait in memory. About 300 bytes each; the rest waits in the engine.
const SCHEDULE_LIMIT: usize = 65_536;
/// How many one notifier is sent at once: a slow one leaves room for others.
const PER_NOTIFIER: usize = 16;
/// How many one target is sent at once, where its notifier has no pace for it: a slow target leaves room for others.
const PER_TARGET: usize = 8;
/// Targets of which it is remembered that they reject notices. More than that are said to do so each time.
const REJECTING: usize = 10_000;
/// Records that a list reads at once.
const READ_AT_ONCE: usize = 32;
/// What counters and gauges call targets whose notifier is not configured.
pub const NO_NOTIFIER: &str = "none";

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
    index: Index,
    rejecting: Rejecting,
    stats: Stats,
}

impl Outbox {
    /// The outbox over an engine, and the task that sends. Nothing is sent until that runs.
    pub fn new(engine: Arc<dyn Engine>, notifiers: Notifiers, times: OutboxTimes) -> (Self, Dispatcher) {
        Self::with_room_for(SCHEDULE_LIMIT, engine, notifiers, times)
    }

    fn with_room_for(
        waiting: usize,
        engine: Arc<dyn Engine>,
        notifiers: Notifiers,
        times: OutboxTimes,
    ) -> (Self, Dispatcher) {
        let shares = Shares { waiting, per_notifier: PER_NOTIFIER, per_target: PER_TARGET };
        let shared = Arc::new(Shared {
            schedule: Schedule::new(shares, notifiers.paces()),
            stats: Stats::new(&notifiers),
            index: Index::default(),
            rejecting: Rejecting::default(),
            engine,
            notifiers,
            times,
        });
        (Self { shared: Arc::clone(&shared) }, Dispatcher::new(shared))
    }

    pub fn stats(&self) -> &OutboxStats {
        &self.shared.stats.all
    }

    /// The same for each notifier, by its name.
    pub fn stats_by_notifier(&self) -> impl Iterator<Item = (&str, &OutboxStats)> {
        let of = self.shared.stats.of.iter().map(|(name, stats)| (name.as_str(), stats));
        of.chain([(NO_NOTIFIER, &self.shared.stats.of_none)])
    }

    /// How many notices of this node's sessions are dead, for each notifier, by its name.
    pub fn dead(&self) -> HashMap<&str, u64> {
        let mut dead: HashMap<&str, u64> = self.stats_by_notifier().map(|(name, _)| (name, 0)).collect();
        for (name, count) in self.shared.index.dead() {
            let known = self.shared.stats.of.get_key_value(&name).map_or(NO_NOTIFIER, |(name, _)| name);
            *dead.entry(known).or_default() += count;
        }
        dead
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
                self.shared.stats.add(&draft.key.target, |stats| &stats.queued);
                let id = notice.opened.id.as_str();
                tracing::info!(notice.id = id, session.id = ?draft.key.session, notice.target = draft.key.target, "notice queued");
                self.shared.take_up(name, &notice, version);
                Ok(Queued::New)
            }
            Err(conflict @ EngineError::Conflict { .. }) => {
                let (version, notice) = self.there(&name).await?.ok_or(conflict)?;
                self.shared.take_up(name, &notice, version);
                Ok(Queued::AlreadyThere(notice.opened.state()))
            }
            Err(error) => Err(error),
        }
    }

    /// The notice of a key that has one. If a question's was dropped, it is wanted all the same.
    async fn there(&self, name: &RecordKey) -> Result<Option<(Version, Notice)>, EngineError> {
        loop {
            let Some((version, mut notice)) = self.shared.read(name).await? else { return Ok(None) };
            if !notice.revive() {
                return Ok(Some((version, notice)));
            }
            match self.shared.engine.put(name.clone(), Some(version), notice.encode()).await {
                Ok(version) => return Ok(Some((version, notice))),
                Err(EngineError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
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

    /// The notice with this id, of the message that asks, among those of the sessions that are known here.
    pub async fn find(&self, id: &str) -> Result<Option<Found>, EngineError> {
        let Some(name) = self.shared.index.find(id) else { return Ok(None) };
        let found = self.shared.read(&name).await?.filter(|(_, notice)| notice.opened.id == id);
        Ok(found.map(|(_, notice)| Found::of(&name, notice)))
    }

    /// The notice whose message lies there, among those of the sessions that are known here.
    pub async fn find_message(&self, target: &str, at: &Receipt) -> Result<Option<Found>, EngineError> {
        let Some(name) = self.shared.index.find_message(target, at) else { return Ok(None) };
        Ok(self.shared.read(&name).await?.map(|(_, notice)| Found::of(&name, notice)))
    }

    /// Notices of the sessions that are known here, newest first.
    pub async fn list(&self, asked: &Listing<'_>) -> Result<Vec<ListedNotice>, EngineError> {
        let names = stream::iter(self.shared.index.list(asked));
        let read = |name: RecordKey| async move {
            let found = self.shared.read(&name).await?;
            Ok(found.map(|(_, notice)| listed(&name, &notice)))
        };
        let found: Vec<Option<ListedNotice>> = names.map(read).buffered(READ_AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Makes a notice due now that was refused or rejected, by its id. It is still sent only if it is wanted, and not
    /// while its target is held back. `None`: there is no such notice.
    ///
    /// The inner error says why there is nothing to try again.
    pub async fn retry(&self, id: &str) -> Result<Option<Result<ListedNotice, &'static str>>, EngineError> {
        let Some(name) = self.shared.index.find(id) else { return Ok(None) };
        loop {
            let Some((version, mut notice)) = self.shared.read(&name).await? else { return Ok(None) };
            if let Err(why) = notice.retry(wall_ms()) {
                return Ok(Some(Err(why)));
            }
            match self.shared.engine.put(name.clone(), Some(version), notice.encode()).await {
                Ok(version) => {
                    tracing::info!(notice.id = id, notice.target = notice.target, "notice made due by an operator");
                    self.shared.index.follow(&name, version, &notice);
                    self.shared.schedule(name.clone(), &notice, version);
                    return Ok(Some(Ok(listed(&name, &notice))));
                }
                Err(EngineError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
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
                    self.shared.take_up(name, &notice, version);
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

    /// Takes up a session's notices, after this process became its owner. Returns each of its keys, how it stands, and
    /// when it was written, in milliseconds of wall time.
    pub async fn resume(&self, session: SessionId) -> Result<Vec<(NoticeKey, NoticeState, u64)>, EngineError> {
        let mut states = Vec::new();
        for (name, version, notice) in self.shared.read_all(session).await? {
            states.push((notice.key(session), notice.opened.state(), notice.opened.at_ms));
            self.shared.take_up(name, &notice, version);
        }
        Ok(states)
    }

    /// The session's retention ended or another process owns it: its notices are no longer sent from here, and no
    /// longer found. Their records go with the session's.
    pub async fn forget(&self, session: SessionId) {
        self.shared.schedule.forget(session);
        self.shared.index.forget(session);
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
    /// An attempt whose outcome is unknown was repeated: another message like it may lie there.
    pub repeated: bool,
}

impl Found {
    fn of(name: &RecordKey, notice: Notice) -> Self {
        Self {
            key: notice.key(name.session),
            state: notice.opened.state(),
            id: notice.opened.id,
            project: notice.project,
            receipt: notice.opened.receipt,
            repeated: notice.opened.repetition > 0,
        }
    }
}

impl Shared {
    async fn read(&self, name: &RecordKey) -> Result<Option<(Version, Notice)>, EngineError> {
        let found = self.engine.get(name.clone()).await?;
        Ok(found.and_then(|(version, bytes)| Some((version, decoded(name, &bytes)?))))
    }

    async fn read_all(&self, session: SessionId) -> Result<Vec<Stored>, EngineError> {
        Ok(self.list(Some(session)).await?.collect())
    }

    /// Taken apart one after the other: all of them may be many.
    async fn list(&self, session: Option<SessionId>) -> Result<impl Iterator<Item = Stored> + Send, EngineError> {
        let found = self.engine.list(RecordKind::Notice, session).await?;
        Ok(found
            .into_iter()
            .filter_map(|(name, version, bytes)| Some((decoded(&name, &bytes)?, name, version)))
            .map(|(notice, name, version)| (name, version, notice)))
    }

    /// Sees to it that a notice is sent when it is due, and found.
    fn take_up(&self, name: RecordKey, notice: &Notice, version: Version) {
        self.index.add(&name, version, notice);
        self.schedule(name, notice, version);
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
        step: notice.step(),
        state: opened.state().as_str().to_owned(),
        attempts: opened.attempts,
        repetition: opened.repetition,
        at: time_text(opened.at_ms),
        error: opened.error.clone(),
        next_try_in_ms: next.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
    }
}

fn listed(name: &RecordKey, notice: &Notice) -> ListedNotice {
    let key = notice.key(name.session);
    let (guardrail_id, revision, task) = match key.subject {
        NoticeSubject::Guardrail { id, revision } => (Some(id), Some(revision), None),
        NoticeSubject::Result { task } => (None, None, Some(task)),
    };
    ListedNotice {
        session: name.session.to_string(),
        notifier: split_target(&notice.target).0.to_owned(),
        guardrail_id,
        revision,
        task,
        notice: view(notice),
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
    crate::clock::milliseconds(crate::clock::now())
}
