//! One subscription's life: attach, snapshot, what was missed, live, the end. It knows no socket and no wire form.
//!
//! A [`Following`] hands out [`Step`]s; a surface turns each into its own frames and sends them before it asks for the
//! next. So the log stays the only buffer: a slow surface asks later, and finds more in one read. While it is live and has
//! nothing more to hand out, the hub's fan-out may write its events to its outlet. What it holds of the hub and of the
//! watchers ends with it, exactly once.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use onlooker_protocol::{
    Position,
    code::{Code, Refusal},
    event::{Epoch, Since, kind},
    subscriber::{GapReason, PictureLevel},
    view::SessionStatus,
};
use tokio::time::{Instant, timeout};

use crate::{
    control::HolderKey,
    engine::{Engine, EngineError, Head, Record},
    hub::{At, Attachment, Caller, Hub, Outlet, STEP, Side, Signal, is_urgent},
    images::Picture,
    session::{Session, Snapshot},
    watch::{Guard, Leave, Newcomer},
};

/// An owner that does not answer for this long ends the subscription: its connection may follow other sessions too.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(10);
/// A session's end is told with its subscription's end after this, if no proof came before.
const END_WAIT: Duration = Duration::from_secs(10);

/// What a subscription asks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub since: Since,
    /// Only these types; empty means all.
    pub filter: Vec<String>,
    pub pictures: PictureLevel,
    /// As whom pictures are seen.
    pub viewer: HolderKey,
}

impl Wanted {
    pub fn lets_through(&self, kind: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|wanted| wanted == kind)
    }

    /// Whether questions reach this subscriber: only then can it count as covering one.
    pub fn sees_guardrails(&self) -> bool {
        self.lets_through(kind::GUARDRAIL_TRIGGER)
    }

    pub fn sees_results(&self) -> bool {
        self.lets_through(kind::TASK_COMPLETED) && self.lets_through(kind::ERROR)
    }
}

/// What the surface is to send next.
pub enum Step {
    /// Events are missing from here on; a snapshot follows.
    Gap {
        reason: GapReason,
        from: Option<Position>,
    },
    Snapshot(Snapshot),
    /// History before the snapshot. May be empty after filtering.
    Replay(Vec<Record>),
    /// Everything before has been handed out; live from here.
    Live(Position),
    Events(Vec<Record>),
    /// Who watches, who has claimed.
    Side(Side),
    Picture(Arc<Picture>),
    /// The session has ended and its end is proved, or had its time.
    Ended,
    /// Nothing now; the signal says when to ask again.
    Nothing,
}

/// Where a subscription is in its life.
enum Phase {
    /// To be told of a gap first, if there is a reason.
    Begin {
        gap: Option<GapReason>,
    },
    /// Handing out what came before the snapshot.
    Replaying {
        until: u64,
    },
    Live,
    Ended,
}

/// A subscription of one session.
pub struct Following {
    session: Session,
    engine: Arc<dyn Engine>,
    attachment: Attachment,
    /// Where the fan-out may write events.
    outlet: Option<Arc<dyn Outlet>>,
    guard: Guard,
    wanted: Wanted,
    phase: Phase,
    epoch: Epoch,
    /// The next offset to read.
    next: u64,
    /// Everything up to here has been handed out, as event or in a snapshot.
    shown: Option<u64>,
    side: Side,
    /// Pings that are under way, and what each proves.
    marks: VecDeque<(u64, u64)>,
    proved: Option<u64>,
    ended_seen: Option<Instant>,
    /// Something was handed out that is to be proved soon: a question or a result.
    urgent: bool,
}

/// Marks kept for pings without an answer. A client that answers none is no longer live long before.
const MARKS: usize = 8;

impl Following {
    /// Attaches first, then looks where to begin: what is committed in between is in the log.
    pub fn begin(
        session: Session,
        engine: Arc<dyn Engine>,
        hub: &Hub,
        (signal, slot): (&Arc<Signal>, u32),
        wanted: Wanted,
        newcomer: Newcomer,
    ) -> Self {
        let caller = Caller { signal, slot, pictures: wanted.pictures };
        let attachment = hub.attach(session.id, session.source(), &engine, caller);
        let guard = session.watch.enter(newcomer, Instant::now());
        let head = session.head();
        let (next, gap) = start(wanted.since, &head);
        attachment.wake();
        Self {
            session,
            engine,
            attachment,
            outlet: None,
            guard,
            wanted,
            phase: Phase::Begin { gap },
            epoch: head.epoch,
            next,
            shown: None,
            side: Side::default(),
            marks: VecDeque::new(),
            proved: None,
            ended_seen: None,
            urgent: false,
        }
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// From now on events may go straight to this outlet. The surface queues there what steps hand out, before it asks
    /// for the next step.
    pub fn set_outlet(&mut self, outlet: Arc<dyn Outlet>) {
        // What a filter takes out differs between subscribers.
        self.outlet = Some(outlet).filter(|_| self.wanted.filter.is_empty());
    }

    /// Whether the place that its client asked for can no longer be had. True until the first step says so.
    pub fn begins_with_gap(&self) -> bool {
        matches!(self.phase, Phase::Begin { gap: Some(_) })
    }

    /// The epoch of what is handed out.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Ends it, saying how its watcher left.
    pub fn end(self, leave: Leave) {
        self.guard.leave(leave);
    }

    /// Says how its watcher will have left when this is dropped.
    pub fn set_leave(&mut self, leave: Leave) {
        self.guard.set_leave(leave);
    }

    /// The position from which the client may resume.
    pub fn position(&self) -> Option<Position> {
        let next = self.attachment.at().map_or(self.next, |at| at.next);
        (next > 0).then(|| Position { epoch: self.epoch, offset: next - 1 })
    }

    /// Everything up to here has been handed out.
    fn shown(&self) -> Option<u64> {
        match self.attachment.at() {
            Some(at) => at.next.checked_sub(1),
            None => self.shown,
        }
    }

    /// What is to be sent next.
    ///
    /// # Errors
    /// When the session's owner or the engine does not answer: the subscription ends.
    pub async fn step(&mut self) -> Result<Step, Refusal> {
        if let Some(at) = self.attachment.take_back() {
            self.next = at.next;
            self.shown = at.next.checked_sub(1);
        }
        match self.phase {
            Phase::Begin { gap: Some(reason) } => {
                self.phase = Phase::Begin { gap: None };
                Ok(Step::Gap { reason, from: self.gap_from() })
            }
            Phase::Begin { gap: None } => self.snapshot().await,
            Phase::Replaying { until } if self.next > until => {
                self.phase = Phase::Live;
                Ok(Step::Live(Position { epoch: self.epoch, offset: until }))
            }
            Phase::Replaying { until } => self.replay(until).await,
            Phase::Live => self.live().await,
            Phase::Ended => Ok(Step::Nothing),
        }
    }

    fn gap_from(&self) -> Option<Position> {
        match self.wanted.since {
            _ if self.shown.is_some() => self.position(),
            Since::After(position) => Some(position),
            Since::Start | Since::Latest => None,
        }
    }

    async fn snapshot(&mut self) -> Result<Step, Refusal> {
        let unavailable = |_| Refusal::plain(Code::Unavailable);
        let snapshot = timeout(SNAPSHOT_WAIT, self.session.snapshot()).await.map_err(unavailable)??;
        let until = snapshot.position.offset;
        if snapshot.position.epoch != self.epoch {
            // The epoch broke between looking and asking: nothing of the old one can be read, and that is to be told.
            return Ok(self.begin_anew(GapReason::Epoch));
        }
        if snapshot.state.status == SessionStatus::Ended {
            self.ended_seen.get_or_insert_with(Instant::now);
        }
        // A gap leaves nothing to replay, and neither does a fresh beginning at the newest event.
        self.next = self.next.min(until + 1);
        self.phase = Phase::Replaying { until };
        self.shown = Some(until);
        self.urgent |= !snapshot.state.guardrails.is_empty();
        if snapshot.state.status == SessionStatus::Ended {
            self.ended_seen.get_or_insert_with(Instant::now);
            self.urgent = true;
        }
        Ok(Step::Snapshot(snapshot))
    }

    async fn replay(&mut self, until: u64) -> Result<Step, Refusal> {
        match self.engine.read(self.session.id, self.next, STEP).await {
            Ok(mut records) => {
                records.retain(|record| record.offset <= until);
                self.next = records.last().map_or(until + 1, |record| record.offset + 1);
                records.retain(|record| self.wanted.lets_through(&record.kind));
                Ok(Step::Replay(records))
            }
            // Trimmed while it was being replayed: what is left can still be had, after a new snapshot.
            Err(EngineError::Trimmed { .. }) => Ok(self.begin_anew(GapReason::Trimmed)),
            Err(_) => Err(Refusal::plain(Code::Unavailable)),
        }
    }

    async fn live(&mut self) -> Result<Step, Refusal> {
        let head = self.session.head();
        if head.epoch != self.epoch {
            return Ok(self.begin_anew(GapReason::Epoch));
        }
        if self.next < head.next {
            return self.events().await;
        }
        if let Some(step) = self.side_step() {
            return Ok(step);
        }
        if let Some(picture) = self.newer_picture(&head) {
            return Ok(Step::Picture(picture));
        }
        if self.has_ended()? {
            return Ok(Step::Ended);
        }
        self.hand_over();
        Ok(Step::Nothing)
    }

    /// There is nothing to hand out: what comes may go straight to the outlet.
    fn hand_over(&self) {
        if let Some(outlet) = self.outlet.as_ref().filter(|_| self.ended_seen.is_none()) {
            self.attachment.hand_over(At { epoch: self.epoch, next: self.next }, Arc::clone(outlet));
        }
    }

    async fn events(&mut self) -> Result<Step, Refusal> {
        match self.engine.read(self.session.id, self.next, STEP).await {
            Ok(mut records) => {
                let Some(last) = records.last() else { return Ok(Step::Nothing) };
                self.next = last.offset + 1;
                self.shown = Some(last.offset);
                if records.iter().any(|record| *record.kind == *kind::SESSION_ENDED) {
                    self.ended_seen.get_or_insert_with(Instant::now);
                }
                records.retain(|record| self.wanted.lets_through(&record.kind));
                self.urgent |= records.iter().any(|record| is_urgent(&record.kind));
                // Whatever else there is, or came meanwhile.
                self.attachment.wake();
                Ok(Step::Events(records))
            }
            Err(EngineError::Trimmed { .. }) => Ok(self.begin_anew(GapReason::Trimmed)),
            Err(EngineError::UnknownLog) => Ok(Step::Ended),
            Err(_) => Err(Refusal::plain(Code::Unavailable)),
        }
    }

    /// The place in the log is lost: a gap, then a snapshot.
    fn begin_anew(&mut self, reason: GapReason) -> Step {
        let from = self.position();
        let head = self.session.head();
        // What is trimmed because its epoch ended is lost for that reason.
        let reason = if head.epoch == self.epoch { reason } else { GapReason::Epoch };
        self.epoch = head.epoch;
        self.next = head.next;
        self.phase = Phase::Begin { gap: None };
        self.attachment.wake();
        Step::Gap { reason, from }
    }

    fn side_step(&mut self) -> Option<Step> {
        let side = self.session.side();
        if side == self.side {
            return None;
        }
        self.side = side.clone();
        self.attachment.wake();
        Some(Step::Side(side))
    }

    fn newer_picture(&mut self, head: &Head) -> Option<Arc<Picture>> {
        let newest = self.session.images.latest(&self.wanted.viewer, self.wanted.pictures, head.next)?;
        if self.attachment.pictured() == Some(newest.offset()) {
            return None;
        }
        self.attachment.set_pictured(newest.offset());
        Some(newest)
    }

    /// The subscription ends with its session once the end is proved, or has had its time. The end is in the snapshot
    /// or an event after it: the owner is not asked, for it has better to do than to answer everybody after each event.
    fn has_ended(&mut self) -> Result<bool, Refusal> {
        if self.session.is_gone() {
            return Err(Refusal::plain(Code::UnknownSession));
        }
        let Some(seen) = self.ended_seen else { return Ok(false) };
        let over = self.proved >= self.shown || Instant::now() >= seen + END_WAIT;
        if over {
            self.phase = Phase::Ended;
            self.guard.set_leave(Leave::Clean);
        }
        Ok(over)
    }

    /// When to ask again although nothing changed: an ended session's subscription ends by time.
    pub fn deadline(&self) -> Option<Instant> {
        let waits = matches!(self.phase, Phase::Live);
        self.ended_seen.filter(|_| waits).map(|seen| seen + END_WAIT)
    }

    /// Asks for a step at the next occasion.
    pub fn wake(&self) {
        self.attachment.wake();
    }

    /// Whether a question or a result was handed out since this was last asked: the surface pings at once.
    pub fn take_urgent(&mut self) -> bool {
        std::mem::take(&mut self.urgent)
    }

    /// A ping goes out now: its answer will prove everything handed out so far. Returns the resume position, if it
    /// moved since the last ping.
    pub fn mark(&mut self, ping: u64) -> Option<Position> {
        let shown = self.shown()?;
        if self.marks.back().map(|(_, offset)| *offset).or(self.proved) == Some(shown) {
            return None;
        }
        if self.marks.len() == MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back((ping, shown));
        self.position()
    }

    /// The client's own code answered this ping.
    pub fn answered(&mut self, ping: u64, now: Instant) {
        let mut proved = None;
        while let Some((_, offset)) = self.marks.pop_front_if(|(marked, _)| *marked <= ping) {
            proved = Some(offset);
        }
        if self.marks.is_empty() {
            self.marks = VecDeque::new();
        }
        match proved {
            Some(offset) => self.prove(offset, now),
            None => self.guard.alive(now),
        }
    }

    /// The client says that it has everything up to here; what it was not sent it cannot have.
    pub fn acknowledged(&mut self, position: Position, now: Instant) {
        if position.epoch == self.epoch
            && let Some(shown) = self.shown()
        {
            self.prove(position.offset.min(shown), now);
        }
    }

    fn prove(&mut self, offset: u64, now: Instant) {
        self.proved = self.proved.max(Some(offset));
        self.guard.proved(offset, now);
        if self.ended_seen.is_some() {
            self.attachment.wake();
        }
    }
}

/// Where to begin reading, and the gap that comes first if there is one.
fn start(since: Since, head: &Head) -> (u64, Option<GapReason>) {
    match since {
        Since::Latest => (head.next, None),
        Since::Start if head.first > 0 => (head.first, Some(GapReason::Trimmed)),
        Since::Start => (0, None),
        Since::After(position) if position.epoch != head.epoch => (head.next, Some(GapReason::Epoch)),
        Since::After(position) if position.offset >= head.next => (head.next, Some(GapReason::Ahead)),
        Since::After(position) if position.offset + 1 < head.first => (head.first, Some(GapReason::Trimmed)),
        Since::After(position) => (position.offset + 1, None),
    }
}
