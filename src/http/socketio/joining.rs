//! Joining a session: what its id opens, from where its client goes on, and what it is shown first.

use std::{sync::Arc, time::SystemTime};

use onlooker_protocol::{
    Position,
    code::{Code, Refusal},
    event::{Event, EventFrame, Since, kind},
    subscriber::PictureLevel,
    view::{GuardrailState, SessionStatus, TaskStatus, TaskView},
};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout};

use super::{
    super::{
        App,
        webrun::{
            frames::{self, Said},
            problem::Problem,
        },
    },
    connection::{Connection, Ended},
    forms::{Item, Share},
    hearing::OWNER,
    packet,
    transport::Transport,
};
use crate::{
    auth::{Grant, Scopes},
    config::key::Scope,
    control::HolderKey,
    engine::Record,
    ids::random_id,
    session::{Session, Snapshot, unnamed::Shown},
    subscriber::{Following, Step, Wanted},
    watch::{Attentive, Newcomer},
};

/// What a grant comes to once its session is joined: idle clients are many, and pay for what is kept.
pub(super) struct Rights {
    pub who: Arc<str>,
    pub expires: Option<SystemTime>,
    scopes: Scopes,
}

impl Rights {
    /// # Errors
    /// `forbidden` without the scope.
    pub(super) fn allow(&self, scope: Scope) -> Result<(), Refusal> {
        if self.scopes.contains(scope) {
            return Ok(());
        }
        let message = format!("this needs a key or token with the scope `{}`", scope.name());
        Err(Refusal::new(Code::Forbidden, message))
    }
}

/// What a connection holds of the session that it has joined.
pub(super) struct Joined {
    pub following: Following,
    pub rights: Rights,
    /// Everything before is sent: what a pong proves is what was shown.
    pub live: bool,
    /// The question that it was shown last.
    pub shown: Option<Arc<Shown>>,
    /// It has sent something that may have left control or a claim to let go of.
    pub touched: bool,
    has_outlet: bool,
    forms: Share,
    /// What it has of the session already.
    has: Has,
    /// Questions that this connection was shown and that are still open.
    asked: Vec<Shown>,
    /// The offsets of questions that are open, while history is being sent: others in it are closed.
    open: Vec<u64>,
}

/// From where a client goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Has {
    Nothing,
    /// It was connected at this position and has had no event since.
    ConnectedAt(Position),
    /// It has everything up to here.
    Everything(Position),
}

impl Has {
    fn of(auth: &Map<String, Value>) -> Self {
        let offset = auth.get("offset").map(|value| value.as_str().and_then(|text| text.parse().ok()));
        match (offset, Pid::of(auth)) {
            (Some(Some(offset)), _) => Self::Everything(offset),
            (None, Some(pid)) => Self::ConnectedAt(pid.at),
            // What cannot be read is nobody's place in the log.
            _ => Self::Nothing,
        }
    }

    fn since(self) -> Since {
        match self {
            Self::Nothing => Since::Latest,
            Self::ConnectedAt(position) | Self::Everything(position) => Since::After(position),
        }
    }
}

/// `pid`, the word that a client gives back when it comes again, and by which it knows that it has gone on where it was.
/// With the id that it had: a client that was recovered keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pid {
    /// Where it was connected first.
    at: Position,
    sid: String,
}

impl Pid {
    fn of(auth: &Map<String, Value>) -> Option<Self> {
        let (at, sid) = auth.get("pid")?.as_str()?.rsplit_once(':')?;
        let is_id = sid.len() == 20 && sid.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        is_id.then_some(Self { at: at.parse().ok()?, sid: sid.to_owned() })
    }
}

impl std::fmt::Display for Pid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.at, self.sid)
    }
}

impl Connection {
    pub(super) async fn connect(&mut self, auth: &Map<String, Value>) -> Result<(), Ended> {
        // Once is enough; a second one would replace what is there.
        if self.joined.is_some() {
            return Ok(());
        }
        let (limit, now) = (self.app.config.webrun.failed_joins_per_minute, Instant::now());
        let address = self.door.address;
        if let Some(wait) = self.app.socketio.failed_joins.refused(address, limit, now) {
            let seconds = wait.as_secs() + 1;
            self.app.metrics.refused(Code::RateLimited);
            let refusal = Refusal::plain(Code::RateLimited).with_retry_after(seconds * 1000);
            self.refuse_join(&Problem::from(refusal).with("retryAfter", seconds));
            return Ok(());
        }
        match self.join(auth).await {
            Ok((joined, pid)) => {
                self.joined = Some(Box::new(joined));
                self.send(match pid {
                    Some(pid) => packet::connected(&pid.sid, &pid.to_string()),
                    None => packet::connected(&random_id(), ""),
                });
            }
            Err(refusal) => {
                if matches!(refusal.code, Code::UnknownSession | Code::Unauthorized | Code::Invalid) {
                    self.app.socketio.failed_joins.failed(address, limit, now);
                }
                self.app.metrics.refused(refusal.code);
                self.refuse_join(&Problem::from(refusal));
            }
        }
        Ok(())
    }

    fn refuse_join(&mut self, problem: &Problem) {
        let error = json!({ "message": problem.message(), "data": problem.body() });
        self.send(packet::refused("", &error));
    }

    async fn join(&mut self, auth: &Map<String, Value>) -> Result<(Joined, Option<Pid>), Refusal> {
        let id = auth.get("sessionId").and_then(Value::as_str);
        let id = id.ok_or_else(|| Refusal::new(Code::Invalid, "auth.sessionId names the session to join"))?;
        let (session, grant) = self.app.opened_by_id(id)?;
        let grant = self.with_key(auth, &session, grant)?;
        let has = Has::of(auth);
        check_not_over(&session, has).await?;
        let viewer = HolderKey::Connection(self.id);
        let wanted = Wanted { since: has.since(), filter: Vec::new(), pictures: level_of(auth), viewer };
        let newcomer = Newcomer {
            subscriber: self.id.into(),
            who: Arc::clone(&grant.who),
            via: "socketio",
            observer: false,
            able: grant.may(Scope::Answer),
            sees_results: true,
            attentive: Attentive::CannotSay,
        };
        let engine = Arc::clone(&self.app.directory.services().engine);
        let forms = self.app.socketio.forms.of(session.id);
        let following = Following::begin(session, engine, &self.app.hub, (&self.signal, 0), wanted, newcomer);
        let rights = Rights { who: grant.who, expires: grant.expires, scopes: grant.scopes };
        let has = if following.begins_with_gap() { Has::Nothing } else { has };
        // The same word again tells the client that it has gone on where it was.
        let known = Pid::of(auth).filter(|_| has != Has::Nothing);
        let begins = || following.position().map(|at| Pid { at, sid: random_id() });
        let pid = known.or_else(begins);
        let joined = Joined {
            following,
            rights,
            live: false,
            shown: None,
            touched: false,
            has_outlet: false,
            forms,
            has,
            asked: Vec::new(),
            open: Vec::new(),
        };
        Ok((joined, pid))
    }

    /// What a key adds to the session's id: who it is, and where the id alone opens nothing, the right to join.
    fn with_key(&self, auth: &Map<String, Value>, session: &Session, grant: Grant) -> Result<Grant, Refusal> {
        if self.app.auth.is_open() {
            return Ok(grant);
        }
        let named = ["apiKey", "token"].iter().find_map(|name| auth.get(*name)?.as_str());
        let key = named.or(self.door.key.as_ref().map(|key| key.expose())).unwrap_or_default();
        let known = self.app.auth.authenticate(key).ok();
        let known = known.filter(|known| known.may_see(&session.project, session.id.as_str()));
        match known {
            Some(known) if self.app.config.webrun.require_key => {
                let scopes: Scopes = grant.scopes.iter().filter(|scope| known.may(*scope)).collect();
                Ok(Grant { who: known.who, expires: known.expires, scopes, ..grant })
            }
            Some(known) => Ok(Grant { who: known.who, ..grant }),
            None if self.app.config.webrun.require_key => {
                Err(Refusal::new(Code::Unauthorized, "auth.apiKey must hold a key of the session's project"))
            }
            None => Ok(grant),
        }
    }
}

/// An ended session is not joined, except by a client that was there and has not had its end.
async fn check_not_over(session: &Session, has: Has) -> Result<(), Refusal> {
    let unavailable = |_| Refusal::plain(Code::Unavailable);
    let snapshot = timeout(OWNER, session.snapshot()).await.map_err(unavailable)??;
    let misses = match has {
        Has::Nothing => false,
        Has::ConnectedAt(at) | Has::Everything(at) => {
            at.epoch == snapshot.position.epoch && at.offset < snapshot.position.offset
        }
    };
    match snapshot.state.status {
        SessionStatus::Ended if !misses => Err(Refusal::plain(Code::SessionEnded)),
        _ => Ok(()),
    }
}

impl Joined {
    /// Over a websocket, events need not pass through here.
    pub(super) fn set_outlet(&mut self, transport: &Transport) {
        if !self.has_outlet
            && let Some(socket) = transport.socket()
        {
            self.following.set_outlet(self.forms.outlet(socket));
            self.has_outlet = true;
        }
    }

    /// Turns a step into events. Returns whether something was told that is to be proved soon.
    pub(super) fn tell(&mut self, step: Step, app: &App, transport: &mut Transport) -> bool {
        let mut urgent = false;
        match step {
            Step::Nothing | Step::Ended => return false,
            Step::Gap { .. } => {
                app.metrics.gaps.inc();
                (self.has, self.live) = (Has::Nothing, false);
            }
            Step::Snapshot(snapshot) => urgent = self.begin(&snapshot, transport),
            Step::Replay(records) => {
                for record in records {
                    let is_question = *record.kind == *kind::GUARDRAIL_TRIGGER;
                    if !is_question || self.open.contains(&record.offset) {
                        self.event(&record, app, transport);
                    }
                }
            }
            Step::Live(_) => (self.live, self.open) = (true, Vec::new()),
            Step::Events(records) => {
                records.iter().for_each(|record| self.event(record, app, transport));
                return false;
            }
            Step::Side(_) => {}
            Step::Picture(picture) => transport.queue(Item::Picture(self.forms.of_picture(&picture))),
        }
        self.following.wake();
        urgent
    }

    fn event(&mut self, record: &Record, app: &App, transport: &mut Transport) {
        let form = self.forms.of_record(self.following.epoch(), record);
        let Some(text) = form.text else { return };
        if let Some(asks) = form.asks {
            self.asks(asks);
        }
        app.metrics.frames_sent.inc();
        transport.queue(Item::Text(text));
    }

    fn asks(&mut self, shown: Arc<Shown>) {
        // One of each id: as many as a session may have.
        self.asked.retain(|known| known.guardrail != shown.guardrail);
        self.asked.push((*shown).clone());
        self.shown = Some(shown);
    }

    /// What a client is shown before anything else: open questions, and a result that nobody has had. What it has
    /// already, and what comes in the history that follows, is left out.
    fn begin(&mut self, snapshot: &Snapshot, transport: &mut Transport) -> bool {
        let open = |state| state == GuardrailState::Open;
        let questions = snapshot.state.guardrails.iter().filter(|question| open(question.state));
        self.open = questions.clone().map(|question| question.position.offset).collect();
        let is_open = |shown: &Shown| {
            questions
                .clone()
                .any(|view| (&view.guardrail_id, Some(view.revision)) == (&shown.guardrail, shown.revision))
        };
        self.asked.retain(is_open);
        let Some(reached) = self.following.position() else { return false };
        if let Has::Everything(position) = self.has {
            self.following.acknowledged(position, Instant::now());
            if let Some(last) = questions.clone().rfind(|question| question.position.offset <= position.offset) {
                self.asks(Arc::new(Shown { guardrail: last.guardrail_id.clone(), revision: Some(last.revision) }));
            }
            return false;
        }
        let mut items: Vec<(Position, Said)> = Vec::new();
        if let Some(result) = snapshot.state.tasks.last().and_then(|task| self.unheard(task, &snapshot.state.session)) {
            items.push(result);
        }
        for question in questions.filter(|question| question.position.offset <= reached.offset) {
            let shown = Shown { guardrail: question.guardrail_id.clone(), revision: Some(question.revision) };
            if !self.asked.contains(&shown) {
                self.asks(Arc::new(shown));
                items.push((question.position, frames::of_guardrail(question)));
            }
        }
        // Who leaves in between goes on behind what it has had: only the last one says that all were shown.
        if let Some((position, _)) = items.last_mut() {
            *position = reached;
        }
        for (position, said) in &items {
            let text = packet::event(said.event, &said.argument, Some(&position.to_string()));
            transport.queue(Item::Text(text.into()));
        }
        !items.is_empty()
    }

    /// The result of the last task, if nobody has had it and it is not in the history that follows.
    fn unheard(&self, task: &TaskView, session: &str) -> Option<(Position, Said)> {
        let kind = match task.status {
            TaskStatus::Completed => kind::TASK_COMPLETED,
            TaskStatus::Failed => kind::ERROR,
            _ => return None,
        };
        let ended = task.ended?;
        let proved = self.following.session().watch.presence(Instant::now()).results_proved;
        let reached = self.following.position()?;
        if proved >= Some(ended.offset) || ended.offset > reached.offset {
            return None;
        }
        let frame = EventFrame {
            session: session.to_owned(),
            position: ended,
            id: String::new(),
            at: String::new(),
            task: Some(task.task.clone()),
            event: Event { kind: kind.to_owned(), data: task.result.clone() },
        };
        Some((ended, frames::of_event(&frame)?))
    }
}

/// Which pictures a client asks for. What is no level asks for none.
fn level_of(auth: &Map<String, Value>) -> PictureLevel {
    match auth.get("pictures") {
        Some(Value::Bool(true)) => PictureLevel::Full,
        Some(Value::String(level)) if level == "full" => PictureLevel::Full,
        Some(Value::String(level)) if level == "reduced" => PictureLevel::Reduced,
        _ => PictureLevel::None,
    }
}
