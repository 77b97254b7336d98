//! Summaries of a project's sessions: what a grid or a queue follows. The newest summary of a session replaces the
//! last one, so that a slow reader skips states and never falls behind without bound.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
};

use onlooker_protocol::view::SessionSummary;
use tokio::sync::watch;

use crate::ids::{Project, SessionId};

/// Every project's board.
#[derive(Default)]
pub struct Boards {
    boards: dashmap::DashMap<Project, Arc<Board>>,
}

impl Boards {
    pub fn of(&self, project: &Project) -> Arc<Board> {
        Arc::clone(self.boards.entry(Arc::clone(project)).or_default().value())
    }
}

/// One project's sessions.
pub struct Board {
    content: Mutex<Content>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct Content {
    by_session: HashMap<SessionId, (u64, Arc<SessionSummary>)>,
    by_version: BTreeMap<u64, SessionId>,
    last: u64,
    /// Which sessions use a guardrail id: outside ids are unique in their session only.
    guardrails: HashMap<String, Vec<SessionId>>,
    /// Sessions that may have an unfinished guardrail: in here before anybody can have seen it.
    asking: HashSet<SessionId>,
}

impl Default for Board {
    fn default() -> Self {
        Self { content: Mutex::default(), version: watch::Sender::new(0) }
    }
}

impl Board {
    pub fn set(&self, session: SessionId, summary: SessionSummary) {
        let mut content = self.lock();
        let same = content.by_session.get(&session).is_some_and(|(_, old)| **old == summary);
        if same {
            return;
        }
        content.last += 1;
        let version = content.last;
        if let Some((old, _)) = content.by_session.insert(session, (version, Arc::new(summary))) {
            content.by_version.remove(&old);
        }
        content.by_version.insert(version, session);
        drop(content);
        self.version.send_replace(version);
    }

    /// Forgets a session whose retention has ended.
    pub fn remove(&self, session: SessionId) {
        let mut content = self.lock();
        if let Some((version, _)) = content.by_session.remove(&session) {
            content.by_version.remove(&version);
        }
        content.asking.remove(&session);
        content.guardrails.retain(|_, sessions| {
            sessions.retain(|other| *other != session);
            !sessions.is_empty()
        });
    }

    /// A guardrail is about to be raised: whoever sees its event finds it from here on.
    pub fn guardrail_raised(&self, session: SessionId, id: &str) {
        let mut content = self.lock();
        content.asking.insert(session);
        let sessions = content.guardrails.entry(id.to_owned()).or_default();
        if !sessions.contains(&session) {
            sessions.push(session);
        }
    }

    /// Nothing is unfinished in this session.
    pub fn nothing_asked(&self, session: SessionId) {
        self.lock().asking.remove(&session);
    }

    /// Sessions that may have an unfinished guardrail.
    pub fn asking(&self) -> Vec<SessionId> {
        self.lock().asking.iter().copied().collect()
    }

    /// The sessions that use this guardrail id.
    pub fn sessions_with(&self, guardrail: &str) -> Vec<SessionId> {
        self.lock().guardrails.get(guardrail).cloned().unwrap_or_default()
    }

    /// Up to `limit` summaries that changed after `version`, oldest change first, and the version they reach.
    pub fn since(&self, version: u64, limit: usize) -> (Vec<(SessionId, Arc<SessionSummary>)>, u64) {
        let content = self.lock();
        let changed = content.by_version.range(version + 1..).take(limit);
        let mut reached = version;
        let summaries = changed
            .map(|(version, session)| {
                reached = *version;
                (*session, Arc::clone(&content.by_session[session].1))
            })
            .collect();
        (summaries, reached)
    }

    pub fn follow(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().expect("no holder panics")
    }
}
