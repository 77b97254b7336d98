//! People and their programs: who follows and proves it, freezes, vanishes, returns, lies; who polls; who answers.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use onlooker_protocol::{
    Position,
    code::Code,
    event::Since,
    subscriber::{Answer, AnswerAction, PictureLevel, SessionCommand},
    view::{GuardrailState, GuardrailView, TaskStatus},
};
use rand::{RngExt, rngs::StdRng};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    trace::{Attention, Event, Subject},
    world::Life,
};
use crate::{
    control::{Holder, HolderKey},
    guardrail::Actor,
    hub::Signal,
    ids::{ConnectionId, SessionId, random_id},
    session::Session,
    subscriber::{Following, Step, Wanted},
    watch::{Attentive, Leave, Newcomer},
};

const PING_EVERY: Duration = Duration::from_secs(10);
/// A connection without a pong for this long is closed.
const NO_PONG: Duration = Duration::from_secs(60);
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// How a client's code answers pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pongs {
    Prompt,
    /// Until then, and never after.
    Until(Instant),
    Never,
    /// Always the first one: alive, but with no proof of anything newer.
    Stale,
}

struct Manner {
    via: &'static str,
    observer: bool,
    able: bool,
    attention: Attention,
    flips: bool,
    pongs: Pongs,
    rtt: Duration,
    stays: Duration,
    clean: bool,
}

impl Manner {
    fn draw(life: &Life, random: &mut StdRng, flaps: bool) -> Self {
        let plan = &life.world.plan;
        let (via, observer, attention) = match random.random_range(0..10) {
            0 => ("sse", true, Attention::CannotSay),
            1..=3 => ("socketio", false, Attention::CannotSay),
            4 => ("websocket", false, Attention::Idle),
            _ => ("websocket", false, Attention::Active),
        };
        let pongs = match random.random_range(0..10) {
            _ if flaps => Pongs::Never,
            0..=3 if plan.frozen => {
                Pongs::Until(Instant::now() + Duration::from_millis(random.random_range(0..60_000)))
            }
            4 if plan.liars => Pongs::Never,
            5 | 6 if plan.liars => Pongs::Stale,
            _ => Pongs::Prompt,
        };
        let stays = if flaps { random.random_range(500..3_000) } else { random.random_range(500..120_000) };
        Self {
            via,
            observer: observer && !flaps,
            able: flaps || random.random_bool(0.8),
            attention: if flaps { Attention::CannotSay } else { attention },
            flips: random.random_bool(0.2),
            pongs,
            rtt: Duration::from_millis(random.random_range(1..500)),
            stays: Duration::from_millis(stays),
            clean: !flaps && random.random_bool(0.5),
        }
    }
}

/// Somebody who comes and goes.
pub(super) async fn subscriber(life: Life, salt: u64, flaps: bool) {
    let mut random = life.random(salt);
    let mut places: HashMap<SessionId, Position> = HashMap::new();
    loop {
        let away = if flaps { random.random_range(50..1_500) } else { random.random_range(100..30_000) };
        sleep(Duration::from_millis(away)).await;
        if life.world.is_quiet() && random.random_bool(0.7) {
            continue;
        }
        let Some(session) = life.some_session(&mut random) else { continue };
        let manner = Manner::draw(&life, &mut random, flaps);
        let since = places.get(&session.id).filter(|_| random.random_bool(0.5)).copied();
        let id = session.id;
        let place = Visit::begin(life.clone(), session, manner, since).run(&mut random).await;
        places.extend(place.map(|place| (id, place)));
    }
}

/// One subscription on a connection of its own.
struct Visit {
    life: Life,
    session: Session,
    manner: Manner,
    who: u64,
    connection: ConnectionId,
    signal: Arc<Signal>,
    following: Option<Following>,
    /// The newest offset that the client has.
    has: Option<u64>,
    last_ping: u64,
    /// When each answer arrives, of which ping, with what the client had before it.
    pongs: VecDeque<(Instant, u64, Option<u64>)>,
    first_ping_had: Option<u64>,
    next_ping: Instant,
    last_pong: Instant,
    next_word: Instant,
    ends: Instant,
}

impl Visit {
    fn begin(life: Life, session: Session, manner: Manner, since: Option<Position>) -> Self {
        let connection = ConnectionId::random();
        let who = life.trace().serial();
        let wanted = Wanted {
            since: since.map_or(Since::Latest, Since::After),
            filter: Vec::new(),
            pictures: PictureLevel::None,
            viewer: HolderKey::Connection(connection),
        };
        let newcomer = Newcomer {
            subscriber: connection.into(),
            who: who.to_string().into(),
            via: manner.via,
            observer: manner.observer,
            able: manner.able,
            sees_results: true,
            attentive: match manner.attention {
                Attention::CannotSay => Attentive::CannotSay,
                Attention::Active => Attentive::Active,
                Attention::Idle => Attentive::Idle,
            },
        };
        let signal: Arc<Signal> = Arc::default();
        life.trace().push(Event::Enters {
            who,
            session: life.trace().nth(session.id),
            able: manner.able,
            sees_results: true,
            observer: manner.observer,
            attention: manner.attention,
        });
        let engine = Arc::clone(&life.directory.services().engine);
        let following = Following::begin(session.clone(), engine, &life.hub, (&signal, 0), wanted, newcomer);
        let now = Instant::now();
        let ends = now + manner.stays;
        Self {
            life,
            session,
            manner,
            who,
            connection,
            signal,
            following: Some(following),
            has: None,
            last_ping: 0,
            pongs: VecDeque::new(),
            first_ping_had: None,
            next_ping: now + PING_EVERY,
            last_pong: now,
            next_word: now + RENEW_EVERY,
            ends,
        }
    }

    async fn run(mut self, random: &mut StdRng) -> Option<Position> {
        if self.manner.able && self.life.world.plan.claims && random.random_bool(0.3) {
            self.claim(random).await;
        }
        let position = loop {
            let following = self.following.as_ref()?;
            let position = following.position();
            let next =
                [Some(self.next_ping), self.pongs.front().map(|pong| pong.0), Some(self.next_word), Some(self.ends)];
            let next = next.into_iter().flatten().chain(following.deadline()).min().unwrap();
            tokio::select! {
                biased;
                () = self.signal.wait() => {}
                () = sleep_until(next) => {}
            }
            if !self.take_steps().await || !self.on_time(random) {
                break position;
            }
        };
        self.session.connection_lost(self.connection).await;
        self.life.trace().push(Event::ConnectionLost { by: self.who });
        position
    }

    /// `false`: it is over.
    async fn take_steps(&mut self) -> bool {
        let mut urgent = false;
        while self.signal.take().is_some() {
            let Some(following) = &mut self.following else { return false };
            let step = following.step().await;
            urgent |= following.take_urgent();
            match step {
                Ok(Step::Nothing) => {}
                Ok(Step::Events(records)) => self.has = records.last().map(|record| record.offset).max(self.has),
                Ok(Step::Ended) => {
                    self.leave(true);
                    return false;
                }
                Ok(step) => {
                    following.wake();
                    if let Step::Snapshot(snapshot) = step {
                        self.has = Some(snapshot.position.offset);
                    }
                }
                Err(_) => {
                    self.leave(false);
                    return false;
                }
            }
        }
        if urgent {
            self.ping();
        }
        true
    }

    fn ping(&mut self) {
        let Some(following) = &mut self.following else { return };
        self.last_ping += 1;
        following.mark(self.last_ping);
        if self.last_ping == 1 {
            self.first_ping_had = self.has;
        }
        let now = Instant::now();
        self.next_ping = now + PING_EVERY;
        let answer = match self.manner.pongs {
            Pongs::Prompt => Some((self.last_ping, self.has)),
            Pongs::Until(until) => (now < until).then_some((self.last_ping, self.has)),
            Pongs::Never => None,
            Pongs::Stale => Some((1, self.first_ping_had)),
        };
        self.pongs.extend(answer.map(|(ping, has)| (now + self.manner.rtt, ping, has)));
    }

    /// `false`: it is over.
    fn on_time(&mut self, random: &mut StdRng) -> bool {
        let now = Instant::now();
        while let Some((_, ping, has)) = self.pongs.pop_front_if(|pong| pong.0 <= now) {
            self.last_pong = now;
            let Some(following) = &mut self.following else { return false };
            following.answered(ping, now);
            self.life.trace().push(match has {
                Some(offset) => Event::Proves { who: self.who, offset },
                None => Event::Alive { who: self.who },
            });
        }
        if now >= self.next_ping {
            self.ping();
        }
        if now >= self.next_word {
            self.speak(random);
        }
        if now >= self.ends {
            self.leave(self.manner.clean);
            return false;
        }
        if now >= self.last_pong + NO_PONG {
            self.leave(false);
            return false;
        }
        true
    }

    /// What a native client says of its person.
    fn speak(&mut self, random: &mut StdRng) {
        self.next_word = Instant::now() + RENEW_EVERY;
        let active = match self.manner.attention {
            Attention::CannotSay => return,
            Attention::Active => !self.manner.flips || random.random_bool(0.6),
            Attention::Idle => self.manner.flips && random.random_bool(0.3),
        };
        if let Some(following) = &self.following {
            following.guard().attention(active, Instant::now());
            self.life.trace().push(Event::Says { who: self.who, active });
        }
    }

    fn leave(&mut self, clean: bool) {
        if let Some(following) = self.following.take() {
            following.end(if clean { Leave::Clean } else { Leave::Abnormal });
            self.life.trace().push(Event::Leaves { who: self.who, clean });
        }
    }

    async fn claim(&mut self, random: &mut StdRng) {
        let holder = Holder { who: self.who.to_string(), by: HolderKey::Connection(self.connection) };
        let actor = Actor { holder, via: "websocket" };
        if let Some(view) = some_question(&self.session, random).await {
            claim(&self.life, &self.session, &view, &actor, (self.who, true)).await;
        }
    }
}

/// Somebody who reads now and then.
pub(super) async fn poller(life: Life, salt: u64) {
    let mut random = life.random(salt);
    let able = random.random_bool(0.8);
    let credential: Arc<str> = format!("poller {salt}").into();
    loop {
        sleep(Duration::from_millis(random.random_range(500..25_000))).await;
        if life.world.is_quiet() {
            return;
        }
        let Some(session) = life.some_session(&mut random) else { continue };
        let who = life.trace().serial();
        let poll = session.watch.poll(Arc::clone(&credential), "p", able, Instant::now());
        life.trace().push(Event::PollBegins { who, session: life.trace().nth(session.id), able });
        sleep(Duration::from_millis(random.random_range(0..4_000))).await;
        let snapshot = timeout(Duration::from_secs(10), session.snapshot()).await;
        sleep(Duration::from_millis(random.random_range(0..200))).await;
        if let Ok(Ok(snapshot)) = snapshot
            && random.random_bool(0.8)
        {
            let over = |status| matches!(status, TaskStatus::Completed | TaskStatus::Failed);
            let tasks = snapshot.state.tasks.iter().filter(|task| over(task.status));
            let result = tasks.filter_map(|task| task.ended).map(|ended| ended.offset).next();
            let questions = snapshot.position.offset;
            poll.written(Some(questions), None);
            result.into_iter().for_each(|offset| poll.written_result(offset));
            life.trace().push(Event::PollRead { who, questions, result });
        }
        drop(poll);
        life.trace().push(Event::PollEnds { who });
    }
}

/// Somebody who claims, answers and drives, from a chat, a console or a script.
pub(super) async fn operator(life: Life, salt: u64) {
    let mut random = life.random(salt);
    let plan = &Arc::clone(&life.world).plan;
    let via = ["websocket", "telegram", "rest"][random.random_range(0..3)];
    let holder = Holder { who: format!("person {salt}"), by: HolderKey::Credential(format!("key {salt}").into()) };
    let actor = Actor { holder, via };
    loop {
        sleep(Duration::from_millis(random.random_range(1_000..40_000))).await;
        if life.world.is_quiet() {
            return;
        }
        let Some(session) = life.some_session(&mut random) else { continue };
        if plan.control && random.random_bool(0.2) {
            drive(&session, &actor, &mut random).await;
        }
        let Some(view) = some_question(&session, &mut random).await else { continue };
        if plan.claims && random.random_bool(0.5) {
            claim(&life, &session, &view, &actor, (salt, false)).await;
            sleep(Duration::from_millis(random.random_range(0..30_000))).await;
            if random.random_bool(0.3) {
                release(&life, &session, &view, &actor, salt).await;
            }
        }
        if plan.answers {
            answer(&life, &session, &view, &actor, &mut random).await;
        }
    }
}

async fn some_question(session: &Session, random: &mut StdRng) -> Option<GuardrailView> {
    let snapshot = timeout(Duration::from_secs(10), session.snapshot()).await.ok()?.ok()?;
    let open = |view: &&GuardrailView| view.state == GuardrailState::Open;
    let open: Vec<_> = snapshot.state.guardrails.iter().filter(open).collect();
    (!open.is_empty()).then(|| open[random.random_range(0..open.len())].clone())
}

fn subject(life: &Life, view: &GuardrailView) -> Subject {
    let session = life.trace().nth(view.session.parse().unwrap());
    Subject::Question { session, id: view.guardrail_id.clone(), revision: view.revision }
}

async fn claim(life: &Life, session: &Session, view: &GuardrailView, actor: &Actor, (by, connection): (u64, bool)) {
    let subject = subject(life, view);
    let length_ms = 40_000;
    life.trace().push(Event::ClaimAsked { subject: subject.clone(), length_ms, by, connection });
    match session.claim(view.guardrail_id.clone(), view.revision, Some(length_ms), actor.clone()).await {
        // Its owner ended meanwhile: nobody knows.
        Err(refusal) if refusal.code == Code::UnknownSession => {}
        claimed => life.trace().push(Event::Claimed { subject, by, granted: claimed.is_ok() }),
    }
}

async fn release(life: &Life, session: &Session, view: &GuardrailView, actor: &Actor, by: u64) {
    let subject = subject(life, view);
    life.trace().push(Event::ReleaseAsked { subject: subject.clone(), by });
    if session.release(view.guardrail_id.clone(), view.revision, actor.clone()).await.is_ok() {
        life.trace().push(Event::Released { subject, by });
    }
}

async fn drive(session: &Session, actor: &Actor, random: &mut StdRng) {
    if session.command(SessionCommand::TakeControl, actor.clone()).await.is_err() {
        return;
    }
    sleep(Duration::from_millis(random.random_range(0..30_000))).await;
    if random.random_bool(0.5) {
        let _ = session.command(SessionCommand::ReleaseControl { token: None }, actor.clone()).await;
    }
}

/// One answer, or two at once, and sometimes the first one again.
async fn answer(life: &Life, session: &Session, view: &GuardrailView, actor: &Actor, random: &mut StdRng) {
    let mut draw = || {
        let declines = random.random_bool(0.2);
        let word = format!("word{}x", random.random_range(1_000..9_999));
        let values = view.fields.iter().map(|field| (field.id.clone(), word.clone()));
        let text = (view.fields.is_empty() && view.choices.is_empty()).then(|| word.clone());
        Answer {
            revision: view.revision,
            idempotency_key: random_id(),
            action: if declines { AnswerAction::Decline } else { AnswerAction::Submit },
            text: text.filter(|_| !declines),
            choice: view.choices.first().map(|choice| choice.id.clone()).filter(|_| !declines),
            values: if declines { Default::default() } else { values.collect() },
        }
    };
    let (first, second) = (draw(), draw());
    let races = random.random_bool(0.3);
    let give = async |answer: Answer, actor: &Actor| {
        let key = answer.idempotency_key.clone();
        if session.answer(view.guardrail_id.clone(), answer, actor.clone()).await.is_ok() {
            life.trace().push(Event::Answered { subject: subject(life, view), key });
        }
    };
    if races {
        let other = Actor { holder: Holder { who: "chat".to_owned(), ..actor.holder.clone() }, via: "telegram" };
        tokio::join!(give(first.clone(), actor), give(second, &other));
    } else {
        give(first.clone(), actor).await;
    }
    if random.random_bool(0.2) {
        give(first, actor).await;
    }
}
