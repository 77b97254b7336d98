//! Where a notice of this node's sessions is found: by its id, by its message in a chat, by its state. Memory only, and
//! names only: what a notice says and how it stands is read from the engine.
//!
//! Bounded by the sessions that are known here: their notices come in when they are queued or taken up, and go with
//! them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard},
};

use uuid::Uuid;

use super::{NoticeState, record::Notice};
use crate::{
    engine::{RecordKey, Version},
    ids::{Project, SessionId},
    notifier::{Receipt, split_target},
};

/// What a list is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Listing<'a> {
    pub project: &'a str,
    /// Only of these sessions; `None`: of all of the project.
    pub sessions: Option<&'a BTreeSet<String>>,
    pub states: &'a [NoticeState],
    /// Only what is older than this notice, by its id.
    pub before: Option<Uuid>,
    pub limit: usize,
}

#[derive(Default)]
pub(super) struct Index {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Ids are ordered by time.
    notices: HashMap<Uuid, Place>,
    messages: HashMap<String, HashMap<Receipt, Uuid>>,
    sessions: HashMap<SessionId, HashSet<Uuid>>,
    states: BTreeSet<(Project, NoticeState, Uuid)>,
    /// How many are dead, by the name of their notifier.
    dead: HashMap<String, u64>,
}

struct Place {
    name: RecordKey,
    version: Version,
    project: Project,
    target: String,
    state: NoticeState,
    receipt: Option<Receipt>,
}

impl Index {
    /// A notice of a session that is known here, as it was just written or read.
    pub(super) fn add(&self, name: &RecordKey, version: Version, notice: &Notice) {
        self.lock().set(name, version, notice, true);
    }

    /// As [`Index::add`], for a notice whose session may have been forgotten meanwhile: then it stays so.
    pub(super) fn follow(&self, name: &RecordKey, version: Version, notice: &Notice) {
        self.lock().set(name, version, notice, false);
    }

    pub(super) fn forget(&self, session: SessionId) {
        let mut inner = self.lock();
        for id in inner.sessions.remove(&session).unwrap_or_default() {
            inner.remove(id);
        }
    }

    pub(super) fn find(&self, id: &str) -> Option<RecordKey> {
        let id = Uuid::try_parse(id).ok()?;
        self.lock().notices.get(&id).map(|place| place.name.clone())
    }

    pub(super) fn find_message(&self, target: &str, at: &Receipt) -> Option<RecordKey> {
        let inner = self.lock();
        let id = inner.messages.get(target)?.get(at)?;
        inner.notices.get(id).map(|place| place.name.clone())
    }

    /// Newest first.
    pub(super) fn list(&self, asked: &Listing<'_>) -> Vec<RecordKey> {
        let inner = self.lock();
        let mut ids = match asked.sessions {
            Some(sessions) => inner.of_sessions(sessions, asked),
            None => inner.of_project(asked),
        };
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids.truncate(asked.limit);
        ids.iter().filter_map(|id| inner.notices.get(id)).map(|place| place.name.clone()).collect()
    }

    /// How many nobody has and nobody should wait for, by the name of their notifier.
    pub(super) fn dead(&self) -> Vec<(String, u64)> {
        self.lock().dead.iter().map(|(name, count)| (name.clone(), *count)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }
}

impl Inner {
    fn set(&mut self, name: &RecordKey, version: Version, notice: &Notice, add: bool) {
        let Ok(id) = Uuid::try_parse(&notice.opened.id) else { return };
        let state = match self.notices.get(&id) {
            Some(known) if known.version >= version => return,
            // While it is tried again it is what it was before.
            Some(known) if known.state.is_dead() && notice.opened.state() == NoticeState::Leased => known.state,
            None if !add => return,
            _ => notice.opened.state(),
        };
        self.remove(id);
        let place = Place {
            name: name.clone(),
            version,
            project: notice.project.as_str().into(),
            target: notice.target.clone(),
            state,
            receipt: notice.opened.receipt.clone(),
        };
        if let Some(receipt) = &place.receipt {
            self.messages.entry(place.target.clone()).or_default().insert(receipt.clone(), id);
        }
        if place.state.is_dead() {
            *self.dead.entry(split_target(&place.target).0.to_owned()).or_default() += 1;
        }
        self.sessions.entry(name.session).or_default().insert(id);
        self.states.insert((place.project.clone(), place.state, id));
        self.notices.insert(id, place);
    }

    /// All but its entry in `sessions`.
    fn remove(&mut self, id: Uuid) {
        let Some(place) = self.notices.remove(&id) else { return };
        if let Some(receipt) = &place.receipt
            && let Some(messages) = self.messages.get_mut(&place.target)
        {
            // Another notice's message may lie there by now.
            if messages.get(receipt) == Some(&id) {
                messages.remove(receipt);
            }
            if messages.is_empty() {
                self.messages.remove(&place.target);
            }
        }
        if place.state.is_dead()
            && let Some(count) = self.dead.get_mut(split_target(&place.target).0)
        {
            *count -= 1;
        }
        self.states.remove(&(place.project, place.state, id));
    }

    /// The newest of each state.
    fn of_project(&self, asked: &Listing<'_>) -> Vec<Uuid> {
        let project: Project = asked.project.into();
        let end = asked.before.unwrap_or(Uuid::max());
        let newest = |state: &NoticeState| {
            let of = |id| (Project::clone(&project), *state, id);
            let range = self.states.range(of(Uuid::nil())..of(end));
            range.rev().take(asked.limit).map(|(_, _, id)| *id).collect::<Vec<_>>()
        };
        asked.states.iter().flat_map(newest).collect()
    }

    fn of_sessions(&self, sessions: &BTreeSet<String>, asked: &Listing<'_>) -> Vec<Uuid> {
        let ids = sessions.iter().filter_map(|session| self.sessions.get(&session.parse().ok()?)).flatten();
        let fits = |id: &&Uuid| {
            let older = asked.before.is_none_or(|before| **id < before);
            let place = self.notices.get(*id).filter(|place| *place.project == *asked.project);
            older && place.is_some_and(|place| asked.states.contains(&place.state))
        };
        ids.filter(fits).copied().collect()
    }
}
