//! Every session of this node, and what their owners share.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use dashmap::DashMap;
use futures::future::BoxFuture;
use onlooker_protocol::{
    code::{Code, Refusal},
    event::kind,
    view::{GuardrailState, GuardrailView, SessionStatus, SessionView},
};
use serde_json::json;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Created, IN_FLIGHT_BYTES, LOOKS, Look, MAILBOX, NewSession, Origin, Request, Session, Shared,
    appending::{Draft, LogEnd},
    holding::RuntimeSide,
    kept::KeptBehind,
    owner::{Ended, Owner},
    publishing::invalid,
    restoring::Restored,
    state::State,
};
use crate::{
    board::Boards,
    chat::marks::MarkKey,
    clock,
    control::{ControlTimes, Holder, HolderKey},
    engine::{Engine, Head},
    forms::Forms,
    guardrail::{Actor, GuardrailRules},
    hub::Side,
    ids::{self, Project, SessionId},
    images::{ImageBounds, Images, Picture, Reducer},
    links::Links,
    metrics::Metrics,
    notifier::{Extras, split_target},
    outbox::{NoticeKey, NoticeState, NoticeSubject, Outbox, Owners, Verdict},
    reach_out::{
        Windows,
        ladder::{Ladder, Step},
        told::verdict_without_owner,
    },
    runtime_link::{Link, Runtimes},
    task_webhook::{self, Due, Post, TaskWebhooks},
    watch::{Watch, WatchTimes},
};

/// The clocks of a session.
#[derive(Clone, Copy, Debug)]
pub struct SessionTimes {
    /// How long a runtime has to take a session that it was offered.
    pub offer: Duration,
    pub runtime_grace: Duration,
    pub http_away: Duration,
    pub inactivity: Duration,
    pub retention: Duration,
    pub sensitive: Duration,
    /// How long after a task's own limit the gateway ends it.
    pub task_slack: Duration,
    pub control: ControlTimes,
}

#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    pub sessions: usize,
    pub queued_tasks: usize,
}

/// Whom to tell.
pub struct Targets {
    pub links: Arc<Links>,
    /// The gateway's own webhook, if there is one.
    pub fallback: Option<String>,
    /// The steps of every project's ladder.
    pub ladder: Vec<Step>,
    /// The names of the chats that are configured.
    pub chats: Vec<&'static str>,
}

impl Targets {
    /// Whom to tell first: of these groups the first one, and the next where nobody in it can be reached. Chats linked
    /// to the project and environment, the project's default, the gateway's own.
    pub fn tiers(&self, project: &Project, environment: Option<&str>) -> Vec<Vec<String>> {
        let linked = self.links.targets(project, environment).into_iter();
        let own = self.fallback.iter().cloned().collect();
        linked.chain([own]).filter(|tier| !tier.is_empty()).collect()
    }

    /// A step's targets. `linked` stands for the chats that are told first, `default` for the project's default, and
    /// `webhook` for the gateway's own.
    pub fn expand(&self, named: &[String], project: &Project, environment: Option<&str>) -> Vec<String> {
        let mut targets = Vec::new();
        for name in named {
            match name.as_str() {
                "linked" => targets.extend(self.tiers(project, environment).into_iter().next().unwrap_or_default()),
                "default" => targets.extend(self.links.targets(project, None)[1].iter().cloned()),
                "webhook" => targets.extend(self.fallback.iter().cloned()),
                other => targets.push(other.to_owned()),
            }
        }
        targets.sort();
        targets.dedup();
        targets
    }

    /// Whether a target may still be told: a chat that was unlinked may not.
    pub fn may_be_told(&self, target: &str, project: &Project, environment: Option<&str>) -> bool {
        let has = |targets: &[String]| targets.iter().any(|known| known == target);
        self.fallback.as_deref() == Some(target)
            || self.links.targets(project, environment).iter().any(|tier| has(tier))
            || self.ladder(project).is_some_and(|ladder| ladder.names(target))
    }

    /// The project's ladder; `None` where it has no step.
    pub fn ladder(&self, project: &Project) -> Option<Ladder> {
        (!self.ladder.is_empty()).then(|| Ladder::of(&self.ladder, project))
    }

    /// Whether an answer by this channel belongs to a message in a chat: it was given there, or by the form that is
    /// linked there.
    pub fn is_chat(&self, channel: &str) -> bool {
        channel == "form" || self.chats.contains(&channel)
    }
}

/// Guardrails that nobody was told of and nobody has: what somebody is woken by.
#[derive(Default)]
pub struct Unreached {
    since: DashMap<(SessionId, String), Instant>,
}

impl Unreached {
    pub fn set(&self, session: SessionId, guardrail: &str, since: Option<Instant>) {
        let key = (session, guardrail.to_owned());
        match since {
            Some(since) => {
                self.since.insert(key, since);
            }
            None => {
                self.since.remove(&key);
            }
        }
    }

    pub fn contains(&self, session: SessionId, guardrail: &str) -> bool {
        self.since.contains_key(&(session, guardrail.to_owned()))
    }

    /// How many, and for how long the oldest has been so.
    pub fn totals(&self, now: Instant) -> (usize, Duration) {
        let oldest = self.since.iter().map(|entry| *entry.value()).min();
        (self.since.len(), oldest.map_or(Duration::ZERO, |oldest| now.saturating_duration_since(oldest)))
    }

    fn forget(&self, session: SessionId) {
        self.since.retain(|(other, _), _| *other != session);
    }
}

/// What every owner uses.
pub struct Services {
    pub engine: Arc<dyn Engine>,
    pub boards: Boards,
    pub runtimes: Runtimes,
    pub outbox: Outbox,
    pub webhooks: TaskWebhooks,
    pub targets: Targets,
    pub forms: Forms,
    pub marks: MarkKey,
    pub unreached: Unreached,
    pub metrics: Arc<Metrics>,
    pub guardrails: GuardrailRules,
    pub windows: Windows,
    pub watch: WatchTimes,
    pub images: ImageBounds,
    pub reducer: Reducer,
    pub times: SessionTimes,
    pub limits: SessionLimits,
    /// How far a session's record may be behind its log.
    pub kept_behind: KeptBehind,
    /// After a start everybody has until here to come back.
    pub start_grace_until: Instant,
    /// Sessions that have ended, in that order: the first to go when room is needed.
    pub ended: Mutex<VecDeque<(SessionId, CancellationToken)>>,
}

impl Services {
    /// Makes room by letting go of the session that ended longest ago. `false` when there is none left.
    pub(super) async fn make_room(&self, except: SessionId) -> bool {
        let oldest = {
            let mut ended = self.ended.lock().expect("no holder panics");
            let at = ended.iter().position(|(session, _)| *session != except);
            at.and_then(|at| ended.remove(at))
        };
        let Some((session, forget)) = oldest else { return false };
        forget.cancel();
        self.metrics.sessions_evicted.inc();
        self.engine.remove(session).await.is_ok()
    }
}

impl Shared {
    pub(super) fn new(
        id: SessionId,
        project: Project,
        services: &Services,
        head: watch::Receiver<Head>,
        side: watch::Receiver<Side>,
        (requests, looks): (mpsc::Sender<Box<Request>>, mpsc::Sender<Look>),
    ) -> Self {
        Self {
            id,
            project,
            images: Images::new(services.images, services.reducer.clone()),
            watch: Watch::new(services.watch),
            link: Link::new(id),
            shown_to_pollers: Default::default(),
            head,
            side,
            requests,
            looks,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_BYTES)),
        }
    }
}

/// Every session of this node.
#[derive(Clone)]
pub struct Directory {
    inner: Arc<Inner>,
}

struct Inner {
    services: Arc<Services>,
    sessions: DashMap<SessionId, Session>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Directory {
    /// Owners belong to `tasks` and end at `shutdown`.
    pub fn new(services: Arc<Services>, tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        Self { inner: Arc::new(Inner { services, sessions: DashMap::new(), tasks, shutdown }) }
    }

    pub fn services(&self) -> &Arc<Services> {
        &self.inner.services
    }

    /// A session of this project. Others' sessions are as unknown as none.
    pub fn get(&self, project: &Project, id: SessionId) -> Option<Session> {
        self.inner.sessions.get(&id).filter(|session| session.project == *project).map(|session| session.clone())
    }

    /// A session whatever its project: for those who hold its claim token.
    pub fn get_any(&self, id: SessionId) -> Option<Session> {
        self.inner.sessions.get(&id).map(|session| session.clone())
    }

    pub fn len(&self) -> usize {
        self.inner.sessions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.inner.sessions.is_empty()
    }

    /// Begins a session: its start is in the log when this returns.
    ///
    /// # Errors
    /// `no_runtime`, `over_capacity`, `unavailable`, `invalid`.
    pub(crate) async fn create(&self, new: NewSession) -> Result<Created, Refusal> {
        let services = &self.inner.services;
        if self.inner.sessions.len() >= services.limits.sessions && !services.make_room(SessionId::random()).await {
            return Err(Refusal::plain(Code::OverCapacity));
        }
        crate::secrets::check(&new.asked.secrets).map_err(invalid)?;
        if let Some(task) = &new.asked.task {
            crate::secrets::check(&task.secrets).map_err(invalid)?;
        }
        let (id, epoch) = (SessionId::random(), ids::random_epoch());
        let origin = match new.origin {
            Origin::Client => {
                let seat = services.runtimes.seat(&new.project, &HashSet::new());
                Some(Begun::Offer(seat.ok_or_else(|| Refusal::plain(Code::NoRuntime))?))
            }
            Origin::Runtime(seat) => Some(Begun::Held(seat)),
            Origin::HttpRuntime => None,
        };
        let labels = match &origin {
            Some(Begun::Offer(seat) | Begun::Held(seat)) => Arc::clone(&seat.labels),
            None => Arc::default(),
        };
        services.engine.create(id, epoch, 1).await.map_err(|error| Owner::refuse_append(&error))?;
        let head = services.engine.head(id).map_err(|error| Owner::refuse_append(&error))?;
        let (side_sender, side) = watch::channel(Side::default());
        let (sender, requests) = mpsc::channel(MAILBOX);
        let (look, looks) = mpsc::channel(LOOKS);
        let project = Arc::clone(&new.project);
        let session = Session(Arc::new(Shared::new(id, project, services, head, side, (sender, look))));
        let log = LogEnd::new(epoch);
        let mut asked = new.asked;
        let task = asked.task.take();
        let state = State::new(first_view(id, &asked));
        let owner = Owner::new(
            session.clone(),
            Arc::clone(services),
            (requests, looks),
            side_sender,
            log,
            state,
            asked,
            RuntimeSide::None,
        );
        // Before it is offered: the runtime's claim may come before this returns.
        self.insert(session.clone());
        let begun = owner.begin(origin, task, &new.by).await;
        let (owner, claim, task) = match begun {
            Ok(begun) => begun,
            Err(refusal) => {
                self.forget(id);
                let _ = services.engine.remove(id).await;
                return Err(refusal);
            }
        };
        services.metrics.sessions_created.inc();
        self.run(owner, None);
        Ok(Created { session, claim, task, labels })
    }

    pub(super) fn insert(&self, session: Session) {
        self.inner.sessions.insert(session.id, session);
    }

    pub(super) fn forget(&self, id: SessionId) {
        self.inner.sessions.remove(&id);
    }

    /// Starts an owner's task.
    pub(super) fn run(&self, owner: Owner, restored: Option<Box<Restored>>) {
        let session = owner.session.clone();
        self.inner.tasks.spawn(self.clone().keep(Box::new(owner), session, restored));
    }

    /// Runs an owner to its end, then forgets its session.
    async fn keep(self, mut owner: Box<Owner>, session: Session, restored: Option<Box<Restored>>) {
        let services = &self.inner.services;
        let ended = owner.run(restored, self.inner.shutdown.clone()).await;
        drop(owner);
        self.inner.sessions.remove(&session.id);
        services.ended.lock().expect("no holder panics").retain(|(ended, _)| *ended != session.id);
        services.unreached.forget(session.id);
        if ended == Ended::Stopped {
            return;
        }
        services.boards.of(&session.project).remove(session.id);
        services.outbox.forget(session.id).await;
        // What is another owner's by now is not ours to remove.
        if ended == Ended::Forgotten {
            let _ = services.engine.remove(session.id).await;
        }
    }
}

/// Who has the session at its start.
enum Begun {
    Offer(crate::runtime_link::Seat),
    Held(crate::runtime_link::Seat),
}

impl Owner {
    /// Puts the start into the log, offers the session or hands it to its runtime, and queues the first task.
    async fn begin(
        mut self,
        origin: Option<Begun>,
        task: Option<onlooker_protocol::subscriber::NewTask>,
        by: &str,
    ) -> Result<(Self, Option<String>, Option<String>), Refusal> {
        if let Some(task) = &task {
            self.check_task(task)?;
        }
        self.learn_secrets(self.asked.secrets.clone())?;
        let parameters = std::mem::take(&mut self.asked.parameters);
        self.learn_parameters(&parameters)?;
        self.asked.parameters = parameters;
        self.redact_names();
        // The record before the log: what has no record is found by nobody, and would lie about for ever.
        self.keep().await.map_err(|error| Self::refuse_append(&error))?;
        let runtime = match &origin {
            Some(Begun::Held(seat)) => Some(seat.name.clone()),
            Some(Begun::Offer(_)) => None,
            None => Some("http".to_owned()),
        };
        let mut data = json!({
            "by": by,
            "externalId": self.asked.external_id,
            "reachOutMode": self.asked.reach_out_mode,
            "environmentId": self.asked.environment_id,
            "runtime": runtime,
        });
        if let Some(members) = data.as_object_mut() {
            members.retain(|_, member| !member.is_null());
        }
        let started = Draft::new(kind::SESSION_STARTED, None, data);
        self.append(vec![started], None).await.map_err(|error| Self::refuse_append(&error))?;
        let lost = |_| Refusal::plain(Code::Unavailable);
        let mut first = None;
        if let Some(task) = task {
            let holder = Holder { who: by.to_owned(), by: HolderKey::Credential(by.into()) };
            let result = self.new_task(task, &Actor { holder, via: "rest" }).await.map_err(lost)??;
            first = result.get("task").and_then(|task| task.as_str()).map(str::to_owned);
        }
        let mut claim = None;
        match origin {
            Some(Begun::Offer(seat)) => self.offer(seat, HashSet::new()).await.map_err(lost)?,
            held => {
                claim = Some(self.tokens.issue());
                self.keep_surely().await.map_err(lost)?;
                if let Some(Begun::Held(seat)) = held {
                    self.session.link.connect(seat.connection, Arc::clone(&seat.outlet), 0);
                    self.runtime = RuntimeSide::Connected(seat);
                } else {
                    self.runtime = RuntimeSide::Http { last_contact: Instant::now() };
                }
                let data = json!({ "runtime": runtime });
                self.append_surely(vec![Draft::new(kind::RUNTIME_CONNECTED, None, data)]).await.map_err(lost)?;
            }
        }
        Ok((self, claim, first))
    }
}

fn first_view(id: SessionId, asked: &onlooker_protocol::runtime::OpenSession) -> SessionView {
    SessionView {
        session: id.to_string(),
        external_id: asked.external_id.clone(),
        status: SessionStatus::Pending,
        reason: None,
        reach_out_mode: asked.reach_out_mode,
        environment_id: asked.environment_id.clone(),
        labels: asked.labels.clone(),
        created_at: clock::now_text(),
        ended_at: None,
        runtime: None,
        tasks: Vec::new(),
        guardrails: Vec::new(),
        control: None,
        sensitive: false,
        picture: None,
    }
}

/// The picture that goes with a question into a chat: the newest one that everybody may see, and none while what is
/// shown could be secret.
fn to_show(images: &Images, state: &SessionView, committed: u64) -> Option<Arc<Picture>> {
    if state.sensitive { None } else { images.latest_for_all(committed) }
}

impl Owners for Directory {
    fn recheck<'a>(&'a self, key: &'a NoticeKey) -> BoxFuture<'a, Verdict> {
        Box::pin(async move {
            match self.get_any(key.session) {
                Some(session) => session.recheck(key.clone()).await,
                None => verdict_without_owner(),
            }
        })
    }

    fn dress<'a>(&'a self, key: &'a NoticeKey, id: &'a str) -> BoxFuture<'a, Extras> {
        Box::pin(async move {
            let services = self.services();
            let Some(session) = self.get_any(key.session) else { return Extras::default() };
            let view = services.forms.view(key.session.as_str());
            let NoticeSubject::Guardrail { id: guardrail, revision } = &key.subject else {
                return Extras { view, ..Extras::default() };
            };
            let Ok(snapshot) = session.snapshot().await else { return Extras::default() };
            let this = |view: &&GuardrailView| view.guardrail_id == *guardrail && view.revision == *revision;
            let asked = snapshot.state.guardrails.iter().find(this);
            let Some(asked) = asked.filter(|asked| asked.state == GuardrailState::Open) else {
                return Extras::default();
            };
            let form = || services.forms.link(id, clock::now());
            let in_chat = services.targets.is_chat(split_target(&key.target).0);
            let committed = snapshot.position.offset + 1;
            Extras {
                view,
                form: Some(asked).filter(|asked| !asked.fields.is_empty()).and_then(|_| form()),
                marks: services.marks.marks(id),
                picture: in_chat.then(|| to_show(&session.images, &snapshot.state, committed)).flatten(),
            }
        })
    }

    fn settled<'a>(&'a self, key: &'a NoticeKey, state: NoticeState) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(session) = self.get_any(key.session) {
                session.notice_settled(key.clone(), state).await;
            }
        })
    }
}

impl task_webhook::Owners for Directory {
    fn begin<'a>(&'a self, due: &'a Due) -> BoxFuture<'a, Option<Post>> {
        Box::pin(async move { self.get_any(due.session)?.begin_webhook(due.task.clone()).await })
    }

    fn done<'a>(&'a self, due: &'a Due) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(session) = self.get_any(due.session) {
                session.webhook_done(due.task.clone()).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use onlooker_protocol::runtime::OpenSession;

    use super::*;
    use crate::{images::Placed, ingest::NewPicture};

    fn add(images: &Images, id: &str, offset: u64, only_for: Option<HolderKey>) {
        let picture = NewPicture { media: "image/png".to_owned(), bytes: "png".into() };
        images.add(SessionId::random(), picture, Placed { id: id.into(), offset, only_for });
    }

    #[test]
    fn a_chat_gets_the_newest_picture_that_is_nobodys_own_and_none_of_a_sensitive_window() {
        let reducer = Reducer::new(Default::default(), Default::default(), Default::default());
        let images = Images::new(ImageBounds { count: 9, bytes: 1000 }, reducer);
        let mut state = first_view(SessionId::random(), &OpenSession::default());
        let shown = |state: &SessionView| to_show(&images, state, 5).map(|picture| picture.id.to_string());
        assert_eq!(shown(&state), None);
        add(&images, "old", 1, None);
        add(&images, "new", 2, None);
        add(&images, "holder's", 3, Some(HolderKey::Credential("key".into())));
        add(&images, "not committed", 5, None);
        assert_eq!(shown(&state).as_deref(), Some("new"));
        state.sensitive = true;
        assert_eq!(shown(&state), None);
    }
}
