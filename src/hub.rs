//! Fan-out on this node: what is committed to a session's log goes out to those who follow it.
//!
//! The log is the buffer, and everybody stands at a place of their own in it. One task per followed session follows the
//! committed head. Whoever is live and whose socket takes more is served by that task itself: what lies between a place
//! and the head is read and framed once, and handed to each outlet that stands there. Everybody else is called: their own
//! task reads on when it can. So the hub has no queue and cannot be slowed by a subscriber, and a subscriber that keeps
//! up costs no wake-up.
//!
//! Questions, results and ends always go through the own task: it asks at once for their proof.

mod audience;
mod place;
pub(crate) mod sync {
    //! What [`super::place`] is built on, so that a test can build it on something else.
    pub(crate) use std::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    };
}

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use onlooker_protocol::{
    event::{Epoch, kind},
    subscriber::{ClaimedGuardrail, PictureLevel},
    view::WatcherCounts,
};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::audience::{Audience, Seat};
pub use self::place::At;
use self::place::{Offered, Place};
use crate::{
    engine::{Engine, Head, ReadLimit, Record},
    ids::SessionId,
    images::{Newest, Picture},
};

/// How much one step of a subscription reads, and one frame batch of the fan-out holds: enough to be worth a write,
/// little enough to hold for a slow socket.
pub const STEP: ReadLimit = ReadLimit { records: 256, bytes: 64 * 1024 };
/// Batches that the fan-out hands to one subscriber before the next one has its turn. Who is further behind reads on
/// by itself.
const BATCHES: usize = 4;
/// Batches that a walk keeps: its subscribers stand at few different places, in few forms.
const KEPT: usize = 4;
/// A larger audience is split between this many tasks at most, so that more than one core writes to it.
const SPLIT: usize = 4;
/// Pieces of an audience for which another task is worth while.
const PIECES_FOR_A_TASK: usize = 32;

/// Turns that others have before a long walk, at most, and how many of them without a commit end the waiting.
const GATHERED: usize = 64;
const QUIET: usize = 6;

/// What a connection waits on: which of its subscriptions have something to read.
#[derive(Default)]
pub struct Signal(Mutex<Calls>);

#[derive(Default)]
struct Calls {
    ready: VecDeque<u32>,
    poked: bool,
    waiter: Option<Waker>,
}

impl Signal {
    /// Resolves when some subscription may have something to read. Cancel safe. One waiter.
    pub async fn wait(&self) {
        std::future::poll_fn(|cx| self.poll_wait(cx, true)).await;
    }

    /// As [`Self::wait`]. Without `for_ready` only a poke ends it.
    pub fn poll_wait(&self, cx: &mut Context<'_>, for_ready: bool) -> Poll<()> {
        let mut calls = self.lock();
        if std::mem::take(&mut calls.poked) || for_ready && !calls.ready.is_empty() {
            return Poll::Ready(());
        }
        match &mut calls.waiter {
            Some(waiter) => waiter.clone_from(cx.waker()),
            waiter => *waiter = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Takes the subscription that has been ready for longest: one that always has more does not hold up the others.
    pub fn take(&self) -> Option<u32> {
        let ready = &mut self.lock().ready;
        let next = ready.pop_front();
        if ready.is_empty() {
            // Idle connections are many, and keep no room for what is rare.
            *ready = VecDeque::new();
        }
        next
    }

    /// Whether some subscription may have something to read.
    pub fn is_ready(&self) -> bool {
        !self.lock().ready.is_empty()
    }

    /// Wakes the connection although no subscription has anything: somebody spoke for it.
    pub fn poke(&self) {
        self.call(|calls| calls.poked = true);
    }

    fn push(&self, slot: u32) {
        self.call(|calls| calls.ready.push_back(slot));
    }

    fn call(&self, change: impl FnOnce(&mut Calls)) {
        let mut calls = self.lock();
        change(&mut calls);
        let waiter = calls.waiter.take();
        drop(calls);
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().expect("no holder panics")
    }
}

/// Events as they go over a socket, one behind the other.
#[derive(Clone, Debug)]
pub struct Frames {
    pub bytes: Bytes,
    pub messages: u32,
}

/// Pieces of a picture, the frame headers among them.
pub const PICTURE_PIECES: usize = 2;

/// What one wire form makes of events.
pub trait Form: Send + Sync {
    fn frames(&self, epoch: Epoch, records: &[Record]) -> Frames;

    /// A picture in pieces, of which none is copied, and how many messages it is.
    fn picture(&self, picture: &Picture) -> ([Bytes; PICTURE_PIECES], u32);
}

/// Where events of a subscription go without its own task: a socket.
pub trait Outlet: Send + Sync {
    /// Takes all of the pieces or nothing, and nothing while something waits before them: so many whole messages. What is
    /// taken comes before everything that is handed to the same socket later. Does not block.
    fn take(&self, pieces: &[Bytes], messages: u32) -> bool;

    /// In which form it wants events. Outlets that share a form share the frames.
    fn form(&self) -> &dyn Form;
}

type SharedOutlet = Arc<dyn Outlet>;

/// One subscription, as the hub knows it.
struct Follower {
    place: Place<SharedOutlet>,
    signal: Arc<Signal>,
    slot: u32,
    pictures: PictureLevel,
    /// The offset of the last picture that went out, and one; 0: none did. Whoever holds the place moves it.
    pictured: AtomicU64,
}

impl Follower {
    /// Hands out what a batch holds, with the picture that this follower has not had.
    fn hand_out(&self, outlet: &SharedOutlet, frames: &Frames, shot: &Shot) -> bool {
        let plain = || outlet.take(std::slice::from_ref(&frames.bytes), frames.messages);
        match (self.pictures, shot) {
            (PictureLevel::None, _) | (_, Shot::None) => plain(),
            (PictureLevel::Full, Shot::Picture { offset, pieces: [header, body], messages }) => {
                if self.pictured.load(Ordering::Relaxed) == offset + 1 {
                    return plain();
                }
                let pieces = [frames.bytes.clone(), header.clone(), body.clone()];
                let taken = outlet.take(&pieces, frames.messages + messages);
                if taken {
                    self.pictured.store(offset + 1, Ordering::Relaxed);
                }
                taken
            }
            (PictureLevel::Full, Shot::ForOwnTask) | (PictureLevel::Reduced, _) => false,
        }
    }

    fn wake(&self) {
        if self.place.call() {
            self.signal.push(self.slot);
        }
    }
}

/// State that is not in the log: who watches, who has claimed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    pub counts: WatcherCounts,
    pub claims: Arc<Vec<ClaimedGuardrail>>,
}

/// What a topic follows.
pub struct Source {
    pub head: watch::Receiver<Head>,
    pub side: watch::Receiver<Side>,
    /// Changes when a reduced picture is ready.
    pub pictures: watch::Receiver<()>,
    pub newest_picture: NewestPicture,
}

/// Finds the newest picture of those whose events are before an offset.
pub type NewestPicture = Box<dyn Fn(u64) -> Newest + Send + Sync>;

/// How a subscription is called, and whether its own task has more to send than events.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    pub signal: &'a Arc<Signal>,
    pub slot: u32,
    pub pictures: PictureLevel,
}

#[derive(Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

struct Inner {
    topics: Mutex<HashMap<SessionId, Arc<Topic>>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    sent: Counter,
}

type Followers = Arc<Mutex<Audience<Follower>>>;

struct Topic {
    hub: Hub,
    session: SessionId,
    followers: Followers,
    viewers: Arc<AtomicUsize>,
    /// Ends the topic's task.
    stop: CancellationToken,
}

impl Hub {
    /// Its tasks belong to `tasks` and end at `shutdown`; `sent` counts events that go out.
    pub fn new(tasks: TaskTracker, shutdown: CancellationToken, sent: Counter) -> Self {
        Self { inner: Arc::new(Inner { topics: Mutex::default(), tasks, shutdown, sent }) }
    }

    /// From now on the caller's signal is told that its slot may have something to read. Read after attaching: what was
    /// committed before is in the log, what comes after wakes.
    pub fn attach(
        &self,
        session: SessionId,
        source: Source,
        engine: &Arc<dyn Engine>,
        caller: Caller<'_>,
    ) -> Attachment {
        let Caller { signal, slot, pictures } = caller;
        let (place, signal, pictured) = (Place::new(), Arc::clone(signal), AtomicU64::new(0));
        let follower = Arc::new(Follower { place, signal, slot, pictures, pictured });
        let mut topics = self.lock();
        let topic = topics.entry(session).or_insert_with(|| self.begin(session, source, engine));
        let seat = lock(&topic.followers).enter(Arc::clone(&follower));
        if pictures == PictureLevel::Full {
            topic.viewers.fetch_add(1, Ordering::Relaxed);
        }
        Attachment { topic: Arc::clone(topic), follower, seat }
    }

    /// Sessions that somebody follows here.
    pub fn followed(&self) -> usize {
        self.lock().len()
    }

    fn begin(&self, session: SessionId, source: Source, engine: &Arc<dyn Engine>) -> Arc<Topic> {
        let followers = Followers::default();
        let (stop, viewers) = (self.inner.shutdown.child_token(), Arc::<AtomicUsize>::default());
        let fan_out = FanOut {
            session,
            engine: Arc::clone(engine),
            followers: Arc::clone(&followers),
            head: source.head.clone(),
            newest_picture: source.newest_picture,
            viewers: Arc::clone(&viewers),
            sent: self.inner.sent.clone(),
        };
        let changes = (source.head, source.side, source.pictures);
        self.inner.tasks.spawn(follow(Arc::new(fan_out), changes, self.inner.tasks.clone(), stop.clone()));
        Arc::new(Topic { hub: self.clone(), session, followers, viewers, stop })
    }

    fn detach(&self, topic: &Arc<Topic>, follower: &Arc<Follower>, seat: Seat) {
        let mut topics = self.lock();
        let empty = {
            let mut followers = lock(&topic.followers);
            followers.leave(follower, seat);
            followers.len() == 0
        };
        if empty && topics.get(&topic.session).is_some_and(|known| Arc::ptr_eq(known, topic)) {
            topics.remove(&topic.session);
            topic.stop.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Topic>>> {
        self.inner.topics.lock().expect("no holder panics")
    }
}

fn lock(followers: &Mutex<Audience<Follower>>) -> MutexGuard<'_, Audience<Follower>> {
    followers.lock().expect("no holder panics")
}

/// Follows one session until it is stopped or the log is gone.
async fn follow(
    fan_out: Arc<FanOut>,
    (mut head, mut side, mut pictures): (watch::Receiver<Head>, watch::Receiver<Side>, watch::Receiver<()>),
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let gone = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = head.changed() => match changed {
                Ok(()) => {
                    fan_out.walk_all(&tasks).await;
                    continue;
                }
                Err(_) => true,
            },
            changed = side.changed() => changed.is_err(),
            changed = pictures.changed() => match changed {
                Ok(()) => {
                    fan_out.call_all(|follower| follower.pictures == PictureLevel::Reduced).await;
                    continue;
                }
                Err(_) => true,
            },
        };
        fan_out.call_all(|_| true).await;
        if gone {
            return;
        }
    }
}

/// What is handed to everybody who stands at one place.
struct Batch {
    /// Whose form it is in; `None` fits nobody.
    form: Option<usize>,
    from: At,
    to: u64,
    what: What,
}

enum What {
    Frames {
        frames: Frames,
        shot: Shot,
    },
    /// Something that the own task is to ask proof of, or that could not be read.
    ForOwnTask,
}

/// The picture that goes with a batch.
enum Shot {
    /// No picture was taken.
    None,
    /// The newest one, which is for everybody.
    Picture { offset: u64, pieces: [Bytes; PICTURE_PIECES], messages: u32 },
    /// Not everybody may see it.
    ForOwnTask,
}

impl Batch {
    fn none(epoch: Epoch) -> Self {
        Self { form: None, from: At { epoch, next: u64::MAX }, to: u64::MAX, what: What::ForOwnTask }
    }

    fn offer(&self, follower: &Follower) -> Offered<SharedOutlet> {
        let take = |outlet: &SharedOutlet| match &self.what {
            What::Frames { frames, shot } => follower.hand_out(outlet, frames, shot),
            What::ForOwnTask => false,
        };
        follower.place.offer(self.from, self.to, |outlet| Some(identity(outlet.form())) == self.form, take)
    }

    fn messages(&self) -> u32 {
        match &self.what {
            What::Frames { frames, .. } => frames.messages,
            What::ForOwnTask => 0,
        }
    }
}

/// Tells forms apart.
fn identity(form: &dyn Form) -> usize {
    std::ptr::from_ref(form).cast::<()>().addr()
}

/// One session's fan-out.
struct FanOut {
    session: SessionId,
    engine: Arc<dyn Engine>,
    followers: Followers,
    head: watch::Receiver<Head>,
    newest_picture: NewestPicture,
    /// Followers that pictures go out to.
    viewers: Arc<AtomicUsize>,
    sent: Counter,
}

impl FanOut {
    async fn walk_all(self: &Arc<Self>, tasks: &TaskTracker) {
        let pieces = lock(&self.followers).pieces();
        // Of pictures only the newest goes out: one that comes along costs the one before it.
        if pieces > 1 && self.viewers.load(Ordering::Relaxed) == 0 {
            self.gather().await;
        }
        let shares = (pieces / PIECES_FOR_A_TASK).clamp(1, SPLIT);
        let others: Vec<_> = (1..shares)
            .map(|share| {
                let fan_out = Arc::clone(self);
                tasks.spawn(async move { fan_out.walk(share, shares).await })
            })
            .collect();
        self.walk(0, shares).await;
        for other in others {
            // It ends by itself; a panic in it was reported.
            drop(other.await);
        }
    }

    /// A walk past many takes long. What is about to be committed comes along in the same writes, instead of with the
    /// next walk: others have their turn until the head stays where it is. That costs microseconds where nothing comes.
    async fn gather(&self) {
        let (mut head, mut quiet) = (self.head(), 0);
        for _ in 0..GATHERED {
            tokio::task::yield_now().await;
            // The thread that commits may share the core.
            std::thread::yield_now();
            let newer = self.head();
            quiet = if newer == head { quiet + 1 } else { 0 };
            if quiet == QUIET {
                return;
            }
            head = newer;
        }
    }

    /// Brings every follower of every so-manieth piece to the head, as it is when its piece has its turn.
    async fn walk(&self, first: usize, step: usize) {
        let mut batches = Batches { current: Arc::new(Batch::none(self.head().epoch)), kept: VecDeque::new() };
        let mut index = first;
        while let Some(piece) = self.piece(index) {
            if index > first {
                // More may be committed meanwhile: who comes later gets it in the same write. Other tasks have their turn,
                // and so has the thread that commits where it shares the core.
                tokio::task::yield_now().await;
                std::thread::yield_now();
            }
            let head = self.head();
            let mut sent = 0;
            for follower in piece.iter() {
                sent += self.serve(follower, head, &mut batches).await;
            }
            self.sent.inc_by(sent);
            index += step;
        }
    }

    fn piece(&self, index: usize) -> Option<Arc<Vec<Arc<Follower>>>> {
        lock(&self.followers).piece(index)
    }

    fn head(&self) -> At {
        let head = self.head.borrow();
        At { epoch: head.epoch, next: head.next }
    }

    /// Returns how many messages went out.
    async fn serve(&self, follower: &Follower, head: At, batches: &mut Batches) -> u64 {
        let (mut sent, mut taken) = (0, 0);
        loop {
            match batches.current.offer(follower) {
                Offered::Taken => {
                    sent += u64::from(batches.current.messages());
                    taken += 1;
                    if batches.current.to >= head.next {
                        return sent;
                    }
                    if taken == BATCHES {
                        break;
                    }
                }
                Offered::Elsewhere(at, _) if at.epoch == head.epoch && at.next >= head.next => return sent,
                Offered::Elsewhere(at, _) if at.epoch != head.epoch => break,
                Offered::Elsewhere(at, outlet) => self.find(at, &outlet, batches).await,
                Offered::NotHeld => break,
            }
        }
        follower.place.give_back();
        follower.wake();
        sent
    }

    /// Makes the batch from this place the current one.
    async fn find(&self, from: At, outlet: &SharedOutlet, batches: &mut Batches) {
        let form = Some(identity(outlet.form()));
        if let Some(known) = batches.kept.iter().find(|batch| (batch.form, batch.from) == (form, from)) {
            batches.current = Arc::clone(known);
            return;
        }
        let records = self.engine.read(self.session, from.next, STEP).await.unwrap_or_default();
        // Offsets go on in a new epoch: what was read may be of that one, and it begins with a gap.
        let is_other = self.head().epoch != from.epoch;
        let for_own_task = is_other || records.is_empty() || records.iter().any(|record| is_urgent(&record.kind));
        let what = if for_own_task {
            What::ForOwnTask
        } else {
            let has_shot = records.iter().any(|record| *record.kind == *kind::SCREENSHOT);
            let shot = if has_shot { self.shot(outlet.form()) } else { Shot::None };
            What::Frames { frames: outlet.form().frames(from.epoch, &records), shot }
        };
        let to = records.last().map_or(from.next, |record| record.offset + 1);
        batches.current = Arc::new(Batch { form, from, to, what });
        batches.kept.truncate(KEPT - 1);
        batches.kept.push_front(Arc::clone(&batches.current));
    }

    fn shot(&self, form: &dyn Form) -> Shot {
        match (self.newest_picture)(self.head().next) {
            Newest::None => Shot::None,
            Newest::ForAll(picture) => {
                let (pieces, messages) = form.picture(&picture);
                Shot::Picture { offset: picture.offset(), pieces, messages }
            }
            Newest::ForOne => Shot::ForOwnTask,
        }
    }

    async fn call_all(&self, whom: impl Fn(&Follower) -> bool) {
        let mut index = 0;
        while let Some(piece) = self.piece(index) {
            piece.iter().filter(|follower| whom(follower)).for_each(|follower| follower.wake());
            drop(piece);
            index += 1;
            tokio::task::yield_now().await;
        }
    }
}

/// The batches of one walk.
struct Batches {
    current: Arc<Batch>,
    kept: VecDeque<Arc<Batch>>,
}

/// After these the surface pings at once: whoever looks shall prove it soon.
pub fn is_urgent(kind: &str) -> bool {
    kind == kind::GUARDRAIL_TRIGGER || kind::is_result(kind) || kind == kind::SESSION_ENDED
}

/// A subscription's place in the hub; dropping it detaches.
pub struct Attachment {
    topic: Arc<Topic>,
    follower: Arc<Follower>,
    seat: Seat,
}

impl Attachment {
    /// Says that this subscription is about to read: whatever is committed from now on wakes it again. Returns where the
    /// fan-out left it, if that had its place.
    pub fn take_back(&self) -> Option<At> {
        self.follower.place.take_back()
    }

    /// Leaves the subscription to the fan-out from here on.
    pub fn hand_over(&self, at: At, outlet: SharedOutlet) {
        self.follower.place.hand_over(at, outlet);
    }

    /// The offset of the last picture that went out. For whoever holds the place, as the next.
    pub fn pictured(&self) -> Option<u64> {
        self.follower.pictured.load(Ordering::Relaxed).checked_sub(1)
    }

    pub fn set_pictured(&self, offset: u64) {
        self.follower.pictured.store(offset + 1, Ordering::Relaxed);
    }

    /// Where the fan-out has the subscription, if it has.
    pub fn at(&self) -> Option<At> {
        self.follower.place.at()
    }

    /// Wakes the subscription itself, to go on where it stopped.
    pub fn wake(&self) {
        self.follower.wake();
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // Nothing goes out for it after this, whoever holds a piece of the audience.
        self.follower.place.take_back();
        if self.follower.pictures == PictureLevel::Full {
            self.topic.viewers.fetch_sub(1, Ordering::Relaxed);
        }
        self.topic.hub.detach(&self.topic, &self.follower, self.seat);
    }
}
